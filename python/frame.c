/* frame.c — a message whose object's buffers lie beside its pickle, and other messages that are not one piece of bytes.
 *
 * The format is written down at the head of sage_queue/_codec.py.  On the way in, nothing is put together here: a letter is a list of
 * parts, which the C library copies straight to where the message lies.  On the way out, every number is read once and checked
 * before it is used, for the memory may be shared with somebody who writes into it.
 *
 * Small buffers stay inside the pickle: each one outside costs a line in the head, up to 63 bytes of padding, and a memoryview. */
#include "binding.h"

enum {
    IN_BAND_BYTES = 1024, /* buffers up to this size stay inside the pickle; where they lie costs the same at about 8 KiB */
};

static const char zeros[FRAME_ALIGNMENT];

static size_t aligned(size_t position) { return (position + FRAME_ALIGNMENT - 1) & ~(size_t)(FRAME_ALIGNMENT - 1); }

/* ---- out: letters ---- */

/** What a letter with a frame owns; one allocation, with `parts` and `head` behind the views. */
struct frame {
    Py_ssize_t held;   /* views that are to be released */
    ringbuf_part *parts;
    char *head;
    Py_buffer views[];
};

static void letter_init(letter *made)
{
    made->parts = made->own;
    made->count = 1;
    made->bytes = NULL;
    made->view.obj = NULL;
    made->frame = NULL;
}

static void set_own(letter *made, size_t number, const void *data, size_t size)
{
    made->own[number] = (ringbuf_part){.data = data, .size = size};
}

void letter_of_draft(letter *made, const draft *written, size_t start)
{
    letter_init(made);
    made->size = written->size - start;
    set_own(made, 0, written->data + start, made->size);
}

void letter_of_bytes(letter *made, PyObject *bytes)
{
    letter_init(made);
    made->bytes = bytes;
    made->size = (size_t)PyBytes_Size(bytes);
    set_own(made, 0, PyBytes_AsString(bytes), made->size);
}

/** Whether the exception that is set says that an object has no view of the kind that it was asked for.  Others are no answer, and stay
 *  set: no memory, or what a signal handler has raised in a __buffer__() that is written in Python. */
static int is_about_view(void)
{
    return PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError) ||
           PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_RuntimeError);
}

/** Look at an item as bytes.  PyBUF_FORMAT only to notice pointers; some arrays have no format and yet good bytes.  0, or -1 with an
 *  exception, and view->obj is NULL. */
static int look_at(PyObject *item, Py_buffer *view)
{
    if (PyObject_GetBuffer(item, view, PyBUF_ND | PyBUF_FORMAT) < 0) {
        view->obj = NULL;
        if (!is_about_view()) return -1;
        PyErr_Clear();
        if (PyObject_GetBuffer(item, view, PyBUF_ND) == 0) return 0;
        view->obj = NULL;
        return -1;
    }
    if (!view->format || !strchr(view->format, 'O')) return 0;
    PyBuffer_Release(view); /* which sets view->obj to NULL */
    PyErr_SetString(PyExc_TypeError, "an array of Python objects has no bytes to put");
    return -1;
}

int letter_of_buffer(letter *made, PyObject *item, const char *refusal)
{
    letter_init(made);
    if (PyBytes_CheckExact(item)) {
        letter_of_bytes(made, Py_NewRef(item));
        return 0;
    }
    if (!PyObject_CheckBuffer(item)) {
        PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(item), "__name__");
        if (name) PyErr_Format(PyExc_TypeError, "%s, not %U", refusal, name);
        Py_XDECREF(name);
        return -1;
    }
    if (look_at(item, &made->view) < 0) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) || !is_about_view()) return -1;
        PyErr_Clear(); /* not contiguous: then as bytes() has it */
        PyObject *bytes = PyBytes_FromObject(item);
        if (!bytes) return -1;
        letter_of_bytes(made, bytes);
        return 0;
    }
    made->size = (size_t)made->view.len;
    set_own(made, 0, made->view.buf, made->size);
    return 0;
}

int letter_of_content(letter *made, PyObject *item)
{
    static const char bytes_head[FRAME_ALIGNMENT] = {FRAME_BYTES}, bytearray_head[FRAME_ALIGNMENT] = {FRAME_BYTEARRAY};
    letter_init(made);
    if (PyObject_GetBuffer(item, &made->view, PyBUF_SIMPLE) < 0) {
        made->view.obj = NULL;
        return -1;
    }
    set_own(made, 0, PyBytes_Check(item) ? bytes_head : bytearray_head, FRAME_ALIGNMENT);
    set_own(made, 1, made->view.buf, (size_t)made->view.len);
    made->count = 2;
    made->size = FRAME_ALIGNMENT + (size_t)made->view.len;
    return 0;
}

static void add_part(letter *made, const void *data, size_t size)
{
    made->size += size;
    if (size) made->frame->parts[made->count++] = (ringbuf_part){.data = data, .size = size};
}

int letter_of_frame(letter *made, PyObject *pickle, PyObject *buffers)
{
    letter_init(made);
    made->bytes = pickle;
    uint32_t count = (uint32_t)PyList_Size(buffers);
    size_t head_bytes = FRAME_HEAD_BYTES + 8 * (size_t)count, part_bytes = (2 + 2 * (size_t)count) * sizeof(ringbuf_part);
    struct frame *frame = PyMem_Malloc(sizeof(struct frame) + count * sizeof(Py_buffer) + part_bytes + head_bytes);
    if (!frame) {
        letter_clear(made);
        PyErr_NoMemory();
        return -1;
    }
    frame->held = 0;
    frame->parts = (ringbuf_part *)&frame->views[count];
    frame->head = (char *)frame->parts + part_bytes;
    made->frame = frame;
    made->parts = frame->parts;
    made->count = made->size = 0;
    uint64_t pickle_bytes = (uint64_t)PyBytes_Size(pickle);
    memcpy(frame->head, (const char[4]){FRAME_BUFFERS}, 4);
    memcpy(frame->head + 4, &count, 4);
    memcpy(frame->head + 8, &pickle_bytes, 8);
    add_part(made, frame->head, head_bytes);
    add_part(made, PyBytes_AsString(pickle), (size_t)pickle_bytes);
    for (uint32_t number = 0; number < count; number++) {
        Py_buffer *view = &frame->views[number];
        if (PyObject_GetBuffer(PyList_GetItem(buffers, number), view, PyBUF_ANY_CONTIGUOUS) < 0) {
            letter_clear(made);
            return -1;
        }
        frame->held++;
        uint64_t bytes = (uint64_t)view->len;
        memcpy(frame->head + FRAME_HEAD_BYTES + 8 * (size_t)number, &bytes, 8);
        add_part(made, zeros, aligned(made->size) - made->size);
        add_part(made, view->buf, (size_t)bytes);
    }
    return 0;
}

void letter_clear(letter *made)
{
    if (made->frame) {
        while (made->frame->held) PyBuffer_Release(&made->frame->views[--made->frame->held]);
        PyMem_Free(made->frame);
    }
    if (made->view.obj) PyBuffer_Release(&made->view);
    Py_XDECREF(made->bytes);
}

/** Called with each buffer that an object offers while it is pickled: True keeps it inside the pickle. */
static PyObject *gather(PyObject *buffers, PyObject *buffer)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS) < 0) {
        if (!is_about_view()) return NULL;
        PyErr_Clear(); /* the pickler knows what to say about it */
        Py_RETURN_TRUE;
    }
    Py_ssize_t size = view.len;
    PyBuffer_Release(&view);
    if (size <= IN_BAND_BYTES) Py_RETURN_TRUE;
    if (PyList_Append(buffers, buffer) < 0) return NULL;
    Py_RETURN_FALSE;
}

PyObject *frame_gatherer(PyObject *buffers)
{
    static PyMethodDef method = {"gather", gather, METH_O, "Whether a buffer is to stay inside the pickle."};
    return PyCFunction_New(&method, buffers);
}

/* ---- in ---- */

static void *malformed(const char *why)
{
    PyErr_Format(PyExc_ValueError, "malformed message: %s", why);
    return NULL;
}

Py_ssize_t frame_content(const char *head, Py_ssize_t known, Py_ssize_t size)
{
    if (size >= FRAME_ALIGNMENT && known >= FRAME_HEAD_BYTES && !memcmp(head + 1, zeros, FRAME_HEAD_BYTES - 1))
        return FRAME_ALIGNMENT;
    malformed("its head is not that of bytes");
    return -1;
}

/** loads(pickle, buffers=buffers) */
static PyObject *load(PyObject *loads, PyObject *pickle, PyObject *buffers)
{
    PyObject *names = Py_BuildValue("(s)", "buffers");
    if (!names) return NULL;
    PyObject *arguments[] = {NULL, pickle, buffers};
    PyObject *item = PyObject_Vectorcall(loads, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    Py_DECREF(names);
    return item;
}

/** The memory may be shared, and written by others at this moment: what was read is what is checked and used, and the compiler
 *  must not read it a second time instead. */
#define READ_ONCE(variable) __asm__ volatile("" : "+r"(variable))

PyObject *frame_load(PyObject *loads, const char *data, Py_ssize_t size, PyObject *whole)
{
    uint32_t count;
    uint64_t pickle_bytes, end = (uint64_t)size;
    if (size < FRAME_HEAD_BYTES) return malformed("it ends in its head");
    if (memcmp(data + 1, zeros, 3)) return malformed("unknown flags");
    memcpy(&count, data + 4, 4);
    memcpy(&pickle_bytes, data + 8, 8);
    READ_ONCE(count);
    READ_ONCE(pickle_bytes);
    if (count > (end - FRAME_HEAD_BYTES) / 8) return malformed("more buffers than it can hold");
    uint64_t position = FRAME_HEAD_BYTES + 8 * (uint64_t)count;
    if (pickle_bytes > end - position) return malformed("its pickle is longer than itself");
    PyObject *pickle = PySequence_GetSlice(whole, (Py_ssize_t)position, (Py_ssize_t)(position + pickle_bytes));
    position += pickle_bytes;
    PyObject *buffers = pickle ? PyList_New(count) : NULL;
    const char *why = NULL;
    for (uint32_t number = 0; buffers && number < count; number++) {
        uint64_t bytes;
        memcpy(&bytes, data + FRAME_HEAD_BYTES + 8 * (size_t)number, 8);
        READ_ONCE(bytes);
        position = aligned(position);
        if (position > end || bytes > end - position) why = "a buffer reaches beyond its end";
        PyObject *view = why ? NULL : PySequence_GetSlice(whole, (Py_ssize_t)position, (Py_ssize_t)(position + bytes));
        if (!view || PyList_SetItem(buffers, number, view) < 0) Py_CLEAR(buffers);
        position += bytes;
    }
    if (buffers && position != end) why = "it goes on behind its last buffer";
    PyObject *item = NULL;
    if (why) malformed(why);
    else if (buffers) item = load(loads, pickle, buffers);
    Py_XDECREF(pickle);
    Py_XDECREF(buffers);
    return item;
}
