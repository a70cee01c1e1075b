/* port.c — the calls on one queue that do not go through cffi: `port[deadline] = item`, `port[deadline]`, lease, reserve, commit; those
 * for several items are in batches.c.
 *
 * Everything else goes through cffi.  Putting and getting do not, because cffi costs more than the queue itself: it releases the GIL
 * around every call (a dozen locked instructions), packs arguments into tuples, and a get would need three calls and a buffer to
 * itself.  docs/decisions/0008-port.md has the measurements.  The others do not because what they hand out must give itself back if
 * the program is interrupted before it has it.
 *
 * Why subscripts and not methods.  CPython runs signal handlers after a *call*, so that a Ctrl-C could throw away what the call
 * returned: a message that is gone from the queue.  After BINARY_SUBSCR and STORE_SUBSCR it does not look (since 3.11; in 3.10 it looks
 * nearly everywhere).  So a get that was interrupted has taken nothing, and a put that was interrupted has put nothing.
 *
 * The GIL is kept for the first attempt, which never waits, and released for waiting and for copying much.
 * A message is taken, decoded, and then acknowledged: what dies or fails in between gives it back. */
#include "port.h"

int sage_install_port(void);

enum {
    CONTENT_BYTES = 256,     /* from this size on, bytes and bytearrays are put as they are and not pickled: 0.5 us less */
    LOOK_NS = 100000000,     /* a wait looks for signals after so long, then after twice as long, and so on, */
    DRAFT_BYTES = 1024,      /* plain data up to this size is written down on the stack */
};

static const int64_t look_most_ns = 4000000000; /* and at least this often */

static PyObject *protocol, *callback_name, *torch_name; /* 5, ("buffer_callback",), "torch" */

static PyObject *port_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    unsigned long long address;
    int framed, views, writable;
    PyObject *handle, *dumps, *with_torch, *loads, *refuse, *failed;
    if (!PyArg_ParseTuple(arguments, "OKpOOOOOpp", &handle, &address, &framed, &dumps, &with_torch, &loads, &refuse, &failed, &views,
                          &writable))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    port *made = (port *)allocate(type, 0);
    if (!made) return NULL;
    made->rb = (ringbuf *)(uintptr_t)address;
    ringbuf_info info;
    if (ringbuf_get_info(made->rb, &info) != RINGBUF_OK)
        info = (ringbuf_info){.ring_message_bytes = SIZE_MAX, .max_message_bytes = SIZE_MAX};
    made->ring_bytes = info.ring_message_bytes;
    made->most_bytes = info.max_message_bytes;
    made->handle = Py_NewRef(handle);
    made->framed = framed;
    made->dumps = Py_NewRef(dumps);
    made->with_torch = Py_NewRef(with_torch);
    made->loads = Py_NewRef(loads);
    made->refuse = Py_NewRef(refuse);
    made->failed = Py_NewRef(failed);
    made->counts_attempts = info.max_attempts != 0;
    made->views = views;
    made->readonly = !writable;
    return (PyObject *)made;
}

static int port_traverse(PyObject *self, visitproc visit, void *arg)
{
    port *seen = (port *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(seen->dumps);
    Py_VISIT(seen->with_torch);
    Py_VISIT(seen->loads);
    Py_VISIT(seen->refuse);
    Py_VISIT(seen->failed);
    return 0;
}

static void port_dealloc(PyObject *self)
{
    port *gone = (port *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (gone->names) plain_names_clear(gone->names);
    PyMem_Free(gone->names);
    Py_XDECREF(gone->gather);
    Py_XDECREF(gone->buffers);
    Py_DECREF(gone->dumps);
    Py_DECREF(gone->with_torch);
    Py_DECREF(gone->loads);
    Py_DECREF(gone->refuse);
    Py_DECREF(gone->failed);
    Py_DECREF(gone->handle);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *call(PyObject *function, PyObject *argument)
{
    PyObject *arguments[] = {NULL, argument};
    return PyObject_Vectorcall(function, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

int port_deadline_of(PyObject *key, int64_t *deadline_ns)
{
    *deadline_ns = RINGBUF_FOREVER;
    if (key == Py_None) return 0;
    *deadline_ns = PyLong_AsLongLong(key);
    return *deadline_ns == -1 && PyErr_Occurred() ? -1 : 0;
}

void port_refuse(port *self, ringbuf_status status, int is_put, int64_t deadline_ns, size_t size)
{
    PyObject *answer = PyObject_CallFunction(self->refuse, "iOOn", (int)status, is_put ? Py_True : Py_False,
                                             deadline_ns == 0 ? Py_True : Py_False, (Py_ssize_t)size);
    if (!answer) return;
    Py_DECREF(answer);
    PyErr_SetString(PyExc_SystemError, "a refusal raised nothing");
}

int64_t port_next_look(int64_t deadline_ns, int64_t *slice_ns)
{
    *slice_ns = *slice_ns == 0 ? LOOK_NS : *slice_ns * 2 < look_most_ns ? *slice_ns * 2 : look_most_ns;
    int64_t now_ns = ringbuf_now_ns();
    /* Up to a quarter less, by the clock's last digits: those that began together do not stay together. */
    int64_t look_ns = now_ns + *slice_ns - (*slice_ns >> 12) * (now_ns & 1023);
    return look_ns < deadline_ns ? look_ns : deadline_ns;
}

/** Once for each handle.  -1 with an exception: warnings are errors here, and so is this one. */
static int warn_of_deletion(ringbuf *rb)
{
    PyObject *native = PyImport_ImportModule("sage_queue._native");
    PyObject *done = native ? PyObject_CallMethod(native, "warn_of_deletion", "sy", ringbuf_name(rb), ringbuf_path(rb)) : NULL;
    Py_XDECREF(native);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

int port_goes_on(ringbuf *rb, ringbuf_status status, int64_t until_ns, int64_t deadline_ns, int *raised)
{
    if (ringbuf_deletion_is_news(rb) && warn_of_deletion(rb) < 0) {
        *raised = 1;
        return 0;
    }
    int waited = status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL;
    /* A wait for pages that has ended before its time says that there will be none. */
    if (status == RINGBUF_E_NO_SPACE) waited = until_ns <= ringbuf_now_ns();
    if (status != RINGBUF_E_INTR && (!waited || until_ns == deadline_ns)) return 0;
    *raised = PyErr_CheckSignals() < 0;
    return !*raised;
}

PyObject *port_verdict_on_error(port *self, int is_put)
{
    PyObject *type, *error, *traceback, *verdict = NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback) PyException_SetTraceback(error, traceback);
    if (PyErr_GivenExceptionMatches(error, PyExc_Exception) && !PyErr_GivenExceptionMatches(error, PyExc_MemoryError))
        verdict = PyObject_CallFunctionObjArgs(self->failed, error, is_put ? Py_True : Py_False, NULL);
    if (verdict == Py_None) Py_CLEAR(verdict);
    if (verdict || PyErr_Occurred()) { /* the latter: a signal handler has raised meanwhile */
        Py_DECREF(type);
        Py_DECREF(error);
        Py_XDECREF(traceback);
    } else {
        PyErr_Restore(type, error, traceback);
    }
    return verdict;
}

void port_raise_verdict(PyObject *verdict)
{
    if (!verdict) return;
    PyErr_SetObject((PyObject *)Py_TYPE(verdict), verdict);
    Py_DECREF(verdict);
}

/* ---- put ---- */

/** Whether torch is loaded.  Looked up again whenever the number of modules has changed. */
static int has_torch(void)
{
    static Py_ssize_t modules_then;
    static int known;
    PyObject *modules = PyImport_GetModuleDict();
    Py_ssize_t count = PyDict_Size(modules);
    if (count != modules_then) {
        PyObject *found = PyDict_GetItemWithError(modules, torch_name);
        known = found && found != Py_None; /* None: somebody does not want it to be imported */
        modules_then = count;
    }
    return known;
}

/** Pickle an item.  0, or -1 with an exception.
 *  The list and the callback for its buffers are made once and used again; a pickling that meets another one under way (of another
 *  thread, or of an object that puts something while it is pickled) makes its own. */
static int write_pickle(port *self, PyObject *item, letter *made)
{
    PyObject *buffers = self->buffers, *gather = self->gather;
    self->buffers = self->gather = NULL;
    if (!buffers) {
        buffers = PyList_New(0);
        gather = buffers ? frame_gatherer(buffers) : NULL;
    }
    PyObject *pickle = NULL;
    if (gather) {
        PyObject *dumps = has_torch() ? self->with_torch : self->dumps; /* the former is slower: it looks for tensors */
        PyObject *arguments[] = {NULL, item, protocol, gather};
        pickle = PyObject_Vectorcall(dumps, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, callback_name);
    }
    if (pickle && !PyBytes_Check(pickle)) {
        Py_CLEAR(pickle);
        PyErr_SetString(PyExc_TypeError, "the pickler gave something else than bytes");
    }
    Py_ssize_t count = buffers ? PyList_Size(buffers) : 0;
    int result = pickle ? 0 : -1;
    if (pickle && !count) letter_of_bytes(made, pickle);
    else if (pickle) result = letter_of_frame(made, pickle, buffers);
    if (result == 0 && !count && !self->buffers) {
        self->buffers = buffers;
        self->gather = gather;
        return 0;
    }
    Py_XDECREF(gather);
    Py_XDECREF(buffers);
    return result;
}

int port_write_letter(port *self, PyObject *item, letter *made, draft *written)
{
    if (self->framed) {
        PyTypeObject *type = Py_TYPE(item);
        if ((type == &PyBytes_Type && PyBytes_Size(item) >= CONTENT_BYTES) ||
            (type == &PyByteArray_Type && PyByteArray_Size(item) >= CONTENT_BYTES))
            return letter_of_content(made, item);
        size_t start = written->size;
        if (plain_write(written, item)) {
            letter_of_draft(made, written, start);
            return 0;
        }
        return write_pickle(self, item, made);
    }
    if (self->dumps == Py_None)
        return letter_of_buffer(made, item, "serializer=\"raw\" takes bytes, bytearray, memoryview or an array without gaps");
    PyObject *bytes = call(self->dumps, item);
    if (!bytes) return -1;
    int result = letter_of_buffer(made, bytes, "the serializer's dumps() gives bytes");
    Py_DECREF(bytes);
    return result;
}

static inline ringbuf_status put(ringbuf *rb, const letter *message, int64_t until_ns)
{
    if (message->count == 1) return ringbuf_put(rb, message->parts->data, message->parts->size, until_ns);
    return ringbuf_put_parts(rb, message->parts, message->count, until_ns);
}

/** Put, waiting for room.  *raised with an exception, and nothing is put. */
static ringbuf_status put_small(ringbuf *rb, const letter *message, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0, slice_ns = 0;
    ringbuf_status status = put(rb, message, 0);
    while (status != RINGBUF_OK && port_goes_on(rb, status, until_ns, deadline_ns, raised)) {
        until_ns = port_next_look(deadline_ns, &slice_ns);
        PyThreadState *state = PyEval_SaveThread();
        status = put(rb, message, until_ns);
        PyEval_RestoreThread(state);
    }
    return status;
}

/** Reserve, waiting for room in the arena. */
static ringbuf_status reserve(ringbuf *rb, ringbuf_reservation *reservation, size_t size, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0, slice_ns = 0;
    for (;;) {
        PyThreadState *state = PyEval_SaveThread(); /* also for the first attempt: it may have pages to make */
        ringbuf_status status = ringbuf_reserve(rb, reservation, size, until_ns);
        PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !port_goes_on(rb, status, until_ns, deadline_ns, raised)) return status;
        until_ns = port_next_look(deadline_ns, &slice_ns);
    }
}

/** Commit, waiting for room in the ring. */
static ringbuf_status commit(ringbuf *rb, const ringbuf_reservation *reservation, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0, slice_ns = 0;
    for (;;) {
        PyThreadState *state = PyEval_SaveThread();
        ringbuf_status status = ringbuf_commit(rb, reservation, reservation->size, until_ns);
        PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !port_goes_on(rb, status, until_ns, deadline_ns, raised)) return status;
        until_ns = port_next_look(deadline_ns, &slice_ns);
    }
}

/** Put what goes into the arena.  A wait is in two steps, for room there and for room in the ring, so that what is large is copied once
 *  and no more, however often the wait is interrupted to look for signals. */
static ringbuf_status put_large(ringbuf *rb, const letter *message, int64_t deadline_ns, int *raised)
{
    int room = 0;
    ringbuf_reservation reservation;
    PyThreadState *state = PyEval_SaveThread();
    ringbuf_status status = ringbuf_has_room(rb, &room, message->size);
    if (status == RINGBUF_OK && (room || deadline_ns == 0)) status = put(rb, message, 0);
    else if (status == RINGBUF_OK) status = RINGBUF_E_TIMEOUT;
    PyEval_RestoreThread(state);
    if (status == RINGBUF_OK || !port_goes_on(rb, status, 0, deadline_ns, raised)) return status;
    status = reserve(rb, &reservation, message->size, deadline_ns, raised);
    if (status != RINGBUF_OK) return status;
    state = PyEval_SaveThread();
    char *to = reservation.data;
    for (size_t part = 0; part < message->count; part++) {
        memcpy(to, message->parts[part].data, message->parts[part].size);
        to += message->parts[part].size;
    }
    PyEval_RestoreThread(state);
    status = commit(rb, &reservation, deadline_ns, raised);
    if (status != RINGBUF_OK) ringbuf_abort(rb, &reservation);
    return status;
}

/** port[deadline] = item */
static int port_put(PyObject *object, PyObject *key, PyObject *item)
{
    port *self = (port *)object;
    letter message;
    draft written;
    char room[DRAFT_BYTES];
    int64_t deadline_ns;
    if (!item) {
        PyErr_SetString(PyExc_TypeError, "a port's messages cannot be deleted");
        return -1;
    }
    if (key != Py_None && PyTuple_Check(key)) return port_put_items(self, key, item);
    if (port_deadline_of(key, &deadline_ns) < 0) return -1;
    draft_init(&written, room, sizeof room);
    ringbuf_status status = RINGBUF_OK;
    size_t size = 0;
    int raised = 0, is_written = port_write_letter(self, item, &message, &written) == 0;
    if (is_written) {
        size = message.size;
        status = size > MANY_BYTES && size > self->ring_bytes ? put_large(self->rb, &message, deadline_ns, &raised)
                                                              : put_small(self->rb, &message, deadline_ns, &raised);
        letter_clear(&message);
    }
    draft_clear(&written); /* also of an item that turned out not to be plain data when much of it had been written */
    if (!is_written) {
        port_raise_verdict(port_verdict_on_error(self, 1));
        return -1;
    }
    if (status == RINGBUF_OK) return 0;
    if (!raised) port_refuse(self, status, 1, deadline_ns, size);
    return -1; /* nothing was put */
}

/* ---- take, lease ---- */

typedef ringbuf_status take_function(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns);

/** Copy a part of the taken message.  Not by ourselves: another thread may close the queue meanwhile. */
static ringbuf_status copy(ringbuf *rb, const ringbuf_message *message, void *to, size_t offset, size_t size)
{
    if (message->copied) {
        memcpy(to, (const char *)message->data + offset, size);
        return RINGBUF_OK;
    }
    PyThreadState *state = size > MANY_BYTES ? PyEval_SaveThread() : NULL;
    ringbuf_status status = ringbuf_copy(rb, message, to, offset, size);
    if (state) PyEval_RestoreThread(state);
    return status;
}

/** The taken message from `offset` on, as bytes of our own.  NULL with an exception, or with *status not RINGBUF_OK and none. */
static PyObject *bytes_of(ringbuf *rb, const ringbuf_message *message, size_t offset, ringbuf_status *status)
{
    size_t size = message->size - offset;
    if (message->copied) return PyBytes_FromStringAndSize((const char *)message->data + offset, (Py_ssize_t)size);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!bytes) return NULL;
    prefer_huge_pages(PyBytes_AsString(bytes), size);
    *status = copy(rb, message, PyBytes_AsString(bytes), offset, size);
    if (*status != RINGBUF_OK) Py_CLEAR(bytes);
    return bytes;
}

/** Take the next message, waiting for one; what fits is copied to `small`, of SMALL_BYTES.  *raised with an exception, and
 *  nothing is taken. */
static ringbuf_status take_next(port *self, take_function *take, ringbuf_message *message, char *small, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0, slice_ns = 0;
    ringbuf_status status = take(self->rb, message, small, SMALL_BYTES, 0);
    while (status != RINGBUF_OK && port_goes_on(self->rb, status, until_ns, deadline_ns, raised)) {
        until_ns = port_next_look(deadline_ns, &slice_ns);
        PyThreadState *state = PyEval_SaveThread();
        status = take(self->rb, message, small, SMALL_BYTES, until_ns);
        PyEval_RestoreThread(state);
    }
    return status;
}

/* ---- decoding ---- */

/** Plain data that has been copied out of the queue. */
static PyObject *read_plain(port *self, const char *data, size_t size)
{
#ifndef Py_GIL_DISABLED /* without a GIL, two threads could change the names at once */
    if (!self->names) self->names = PyMem_Calloc(1, sizeof *self->names); /* if it cannot be, it works without */
#endif
    return plain_read(data, size, self->names);
}

PyObject *port_read_copy(port *self, const ringbuf_message *message, ringbuf_status *status)
{
    char room[FRAME_HEAD_BYTES];
    const char *head = message->data;
    Py_ssize_t size = (Py_ssize_t)message->size, known = size;
    enum frame_kind kind = FRAME_NONE;
    if (self->framed && size) {
        if (!message->copied) { /* there was no room for it */
            head = room;
            if (known > (Py_ssize_t)sizeof room) known = sizeof room;
            if ((*status = copy(self->rb, message, room, 0, (size_t)known)) != RINGBUF_OK) return NULL;
        }
        kind = frame_kind_of((unsigned char)head[0]);
    }
    if (kind == FRAME_PLAIN && message->copied) return read_plain(self, head, message->size);
    if (kind == FRAME_NONE || kind == FRAME_PLAIN) {
        PyObject *bytes = bytes_of(self->rb, message, 0, status);
        if (!bytes || self->loads == Py_None) return bytes;
        PyObject *item = kind == FRAME_PLAIN ? read_plain(self, PyBytes_AsString(bytes), message->size) : call(self->loads, bytes);
        Py_DECREF(bytes);
        return item;
    }
    if (kind != FRAME_BUFFERS) {
        Py_ssize_t start = frame_content(head, known, size);
        if (start < 0) return NULL;
        if (kind == FRAME_BYTES) return bytes_of(self->rb, message, (size_t)start, status);
        PyObject *array = PyByteArray_FromStringAndSize(NULL, size - start);
        if (array) *status = copy(self->rb, message, PyByteArray_AsString(array), (size_t)start, (size_t)(size - start));
        if (*status != RINGBUF_OK) Py_CLEAR(array);
        return array;
    }
    block *lying = block_private(size, 0);
    if (lying) *status = copy(self->rb, message, lying->data, 0, (size_t)size);
    PyObject *whole = lying && *status == RINGBUF_OK ? block_view(lying) : NULL;
    PyObject *item = whole ? frame_load(self->loads, lying->data, size, whole) : NULL;
    Py_XDECREF(whole);
    Py_XDECREF((PyObject *)lying);
    return item;
}

/** A taken message's object, which looks at the queue's memory if the message lies in the arena, else at a copy.
 *  *lying (a reference, or NULL) is what it looks at. */
static PyObject *read_views(port *self, const ringbuf_message *message, block **lying, ringbuf_status *status)
{
    Py_ssize_t size = (Py_ssize_t)message->size;
    if (self->framed && size) {
        char head;
        if ((*status = copy(self->rb, message, &head, 0, 1)) != RINGBUF_OK) return NULL;
        if (head == FRAME_PLAIN) return port_read_copy(self, message, status); /* there is nothing that could be looked at in place */
    }
    if (message->in_arena && !message->copied) {
        *lying = block_of_message(self->rb, message, self->readonly, status);
    } else {
        *lying = block_private(size, self->readonly);
        if (*lying) *status = copy(self->rb, message, (*lying)->data, 0, (size_t)size);
    }
    if (!*lying || *status != RINGBUF_OK) return NULL;
    PyObject *whole = block_view(*lying);
    if (!whole || self->loads == Py_None) return whole;
    const char *data = (*lying)->data;
    enum frame_kind kind = self->framed && size ? frame_kind_of((unsigned char)data[0]) : FRAME_NONE;
    PyObject *item = NULL;
    if (kind == FRAME_NONE) {
        item = call(self->loads, whole);
    } else if (kind == FRAME_BUFFERS) {
        item = frame_load(self->loads, data, size, whole);
    } else {
        Py_ssize_t start = frame_content(data, size, size);
        if (start >= 0) item = PySequence_GetSlice(whole, start, size);
    }
    Py_DECREF(whole);
    return item;
}

/** The object of a taken message.  On failure NULL with an exception, and the message has been ended; *lying as read_views() has it.
 *  `leased`: what is consumed here is a finished task. */
static PyObject *read_message(port *self, const ringbuf_message *message, block **lying, int leased)
{
    ringbuf_status status = RINGBUF_OK;
    *lying = NULL;
    PyObject *item = self->views ? read_views(self, message, lying, &status) : port_read_copy(self, message, &status);
    if (item) return item;
    if (status != RINGBUF_OK) {
        block_end_views(*lying);
        port_refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, 1, 0); /* closed: that gave it back */
        return NULL;
    }
    /* Whose fault?  If the message's, it is consumed, unless its attempts are counted; then, and else, it goes back. */
    PyObject *verdict = port_verdict_on_error(self, 0);
    if (!verdict || self->counts_attempts) status = block_give_back(self->rb, message, *lying);
    else if ((status = block_finish(self->rb, message, *lying)) == RINGBUF_OK && leased) ringbuf_task_done(self->rb);
    if (verdict && status == RINGBUF_E_CORRUPT) { /* it was truncated while we looked: no wonder */
        Py_CLEAR(verdict);
        port_refuse(self, status, 0, 1, 0);
    }
    port_raise_verdict(verdict);
    return NULL;
}

/** port[deadline] */
static PyObject *port_get(PyObject *object, PyObject *key)
{
    port *self = (port *)object;
    char small[SMALL_BYTES];
    ringbuf_message message;
    int64_t deadline_ns;
    if (key != Py_None && PyTuple_Check(key)) return port_get_items(self, key);
    if (port_deadline_of(key, &deadline_ns) < 0) return NULL;
    int raised = 0;
    ringbuf_status status = take_next(self, ringbuf_take, &message, small, deadline_ns, &raised);
    if (raised) return NULL; /* nothing was taken */
    if (status != RINGBUF_OK) {
        port_refuse(self, status, 0, deadline_ns, 0);
        return NULL;
    }
    block *lying;
    PyObject *item = read_message(self, &message, &lying, 0);
    if (item) {
        status = block_finish(self->rb, &message, lying);
        if (status != RINGBUF_OK) { /* closed while we decoded: that gave the message back */
            Py_CLEAR(item);
            port_refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
        }
    }
    Py_XDECREF((PyObject *)lying);
    return item;
}

/** port.lease(deadline) -> (Taken, item) */
static PyObject *port_lease(PyObject *object, PyObject *key)
{
    port *self = (port *)object;
    char small[SMALL_BYTES];
    int64_t deadline_ns;
    if (port_deadline_of(key, &deadline_ns) < 0) return NULL;
    taken *made = taken_new(object, self->rb);
    if (!made) return NULL;
    int raised = 0;
    PyObject *item = NULL, *result = NULL;
    ringbuf_status status = take_next(self, ringbuf_lease, &made->message, small, deadline_ns, &raised);
    if (!raised && status != RINGBUF_OK) port_refuse(self, status, 0, deadline_ns, 0);
    if (!raised && status == RINGBUF_OK) item = read_message(self, &made->message, &made->lying, 1);
    if (item) {
        made->ended = 0;
        result = PyTuple_Pack(2, (PyObject *)made, item);
        Py_DECREF(item);
    }
    Py_DECREF((PyObject *)made);
    return result;
}

/* ---- reserve, commit ---- */

/** port.reserve(size, deadline) -> Block */
static PyObject *port_reserve(PyObject *object, PyObject *arguments)
{
    port *self = (port *)object;
    Py_ssize_t size;
    PyObject *key;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(arguments, "nO", &size, &key) || port_deadline_of(key, &deadline_ns) < 0) return NULL;
    ringbuf_reservation reservation;
    int raised = 0;
    ringbuf_status status = reserve(self->rb, &reservation, (size_t)size, deadline_ns, &raised);
    if (status == RINGBUF_OK) return (PyObject *)block_of_reservation(self->rb, &reservation);
    if (!raised) port_refuse(self, status, 1, deadline_ns, (size_t)size);
    return NULL;
}

/** port.commit(block, deadline) */
static PyObject *port_commit(PyObject *object, PyObject *arguments)
{
    port *self = (port *)object;
    PyObject *filled, *key;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(arguments, "OO", &filled, &key) || port_deadline_of(key, &deadline_ns) < 0) return NULL;
    block *reserved = block_reserved(filled);
    if (!reserved) return NULL;
    int raised = 0;
    ringbuf_status status = ringbuf_pin(self->rb); /* for who goes on looking at it when it is the queue's */
    if (status == RINGBUF_OK) {
        status = commit(self->rb, &reserved->reservation, deadline_ns, &raised);
        if (status != RINGBUF_OK) ringbuf_unpin(self->rb);
    }
    if (status == RINGBUF_OK) {
        block_committed(reserved);
        Py_RETURN_NONE;
    }
    if (!raised) port_refuse(self, status, 1, deadline_ns, reserved->reservation.size);
    return NULL;
}

/* ---- the type ---- */

static PyMethodDef methods[] = {
    {"lease", port_lease, METH_O, "lease(deadline) -> (Taken, item)"},
    {"reserve", port_reserve, METH_VARARGS, "reserve(size, deadline) -> Block, to be filled and committed; aborted if dropped"},
    {"commit", port_commit, METH_VARARGS, "commit(block, deadline): the filled block becomes a message"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, port_new},
    {Py_tp_dealloc, port_dealloc},
    {Py_tp_traverse, port_traverse},
    {Py_tp_methods, methods},
    {Py_mp_subscript, port_get},
    {Py_mp_ass_subscript, port_put},
    {Py_tp_doc, "One way of using a queue: port[deadline] = item puts, port[deadline] gets; port[deadline, refuse_batch] = items and "
                "port[deadline, most, most_bytes, exactly] do so with several items."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "sage_queue._ringbuf.Port",
    .basicsize = sizeof(port),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

/** Add our types to the module.  They are made once, as in block_install().  0, or -1. */
static int install(void)
{
    static PyObject *type;
    if (!type) {
        protocol = PyLong_FromLong(5);
        callback_name = Py_BuildValue("(s)", "buffer_callback");
        torch_name = PyUnicode_InternFromString("torch");
        if (protocol && callback_name && torch_name) type = PyType_FromSpec(&spec);
        /* An unhandled KeyboardInterrupt ends the process by SIGINT once the interpreter is finalized, and then no destructor runs.  If there
         * is no place for it (-1), only that end is the worse for it. */
        if (type) (void)Py_AtExit(ringbuf_leave_all);
    }
    PyObject *module = PyImport_ImportModule("sage_queue._ringbuf");
    int result = -1;
    if (module && type && block_install(module) == 0 && taken_install(module) == 0 && clock_install(module) == 0)
        result = PyObject_SetAttrString(module, "Port", type);
    if (result < 0) PyErr_Print();
    Py_XDECREF(module);
    return result;
}

/** Add our types to the module that cffi made.  (cffi has released the GIL.)  0; -1 if that failed; 1 in a subinterpreter, where nothing
 *  is done: what is static here is the main interpreter's.  Before CPython 3.12 the GIL is taken for the main one anyway, and a
 *  subinterpreter finds its own module without the types. */
int sage_install_port(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    int result = PyInterpreterState_GetID(PyInterpreterState_Get()) == 0 ? install() : 1;
    PyGILState_Release(gil);
    return result;
}
