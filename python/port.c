/* port.c — the calls on one queue that do not go through cffi: `port[deadline] = item`, `port[deadline]`, several items at once in the
 * same ways, lease, reserve, commit.
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
 * A message is taken, decoded, and then acknowledged: what dies or fails in between gives it back.  Several are taken, decoded, and
 * then acknowledged together: a get of several that raises has taken none of them. */
#include "binding.h"

int sage_install_port(void);

enum {
    SMALL_BYTES = 4096,      /* messages up to this size are copied out while they are taken */
    CONTENT_BYTES = 256,     /* from this size on, bytes and bytearrays are put as they are and not pickled: 0.5 us less */
    DRAFTS_BYTES = 16384,    /* several messages, likewise; */
    FEW = 64,                /* so many are taken together, into so much room */
    MANY_ITEMS = 1024,       /* a get of several without a bound gives at most so many: they keep their room in the ring until all are
                                decoded */
    LOOK_NS = 100000000,     /* a wait looks for signals at least this often */
    DRAFT_BYTES = 1024,      /* plain data up to this size is written down on the stack */
};

typedef struct port {
    PyObject_HEAD
    ringbuf *rb;
    PyObject *handle;      /* what frees rb when it goes */
    int framed;            /* messages are as frame.c has it */
    PyObject *dumps;       /* framed: (item, protocol, buffer_callback=) -> bytes; else (item) -> bytes-like, or None: the item is it */
    PyObject *with_torch;  /* framed: the same, for when torch is loaded */
    PyObject *loads;       /* bytes-like -> item, framed also with buffers=; None: the message is the item */
    PyObject *refuse;      /* (status, is_put, polling, size) -> raises what the status means */
    PyObject *failed;      /* (error, is_put) -> the exception to raise for an item at fault, or None: it is not the item's fault */
    PyObject *bury;        /* (bytes, attempts): moves a message away that was taken too often */
    PyObject *buffers;     /* an empty list, and a callback that gathers in it, when no call is using them; or NULL */
    PyObject *gather;
    size_t ring_bytes;     /* larger messages go into the arena, */
    size_t most_bytes;     /* and still larger ones nowhere */
    uint32_t max_attempts; /* 0: any number */
    plain_names *names;    /* NULL until plain data is read */
    int views;             /* what is got looks at the queue's memory, where it can */
    int readonly;
} port;

static PyObject *protocol, *callback_name, *torch_name; /* 5, ("buffer_callback",), "torch" */

static PyObject *port_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    unsigned long long address;
    unsigned int max_attempts;
    int framed, views, writable;
    PyObject *handle, *dumps, *with_torch, *loads, *refuse, *failed, *bury;
    if (!PyArg_ParseTuple(arguments, "OKpOOOOOOIpp", &handle, &address, &framed, &dumps, &with_torch, &loads, &refuse, &failed, &bury,
                          &max_attempts, &views, &writable))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    port *made = (port *)allocate(type, 0);
    if (!made) return NULL;
    made->rb = (ringbuf *)(uintptr_t)address;
    ringbuf_info info;
    if (ringbuf_get_info(made->rb, &info) != RINGBUF_OK) info.ring_message_bytes = info.max_message_bytes = SIZE_MAX;
    made->ring_bytes = info.ring_message_bytes;
    made->most_bytes = info.max_message_bytes;
    made->handle = Py_NewRef(handle);
    made->framed = framed;
    made->dumps = Py_NewRef(dumps);
    made->with_torch = Py_NewRef(with_torch);
    made->loads = Py_NewRef(loads);
    made->refuse = Py_NewRef(refuse);
    made->failed = Py_NewRef(failed);
    made->bury = Py_NewRef(bury);
    made->max_attempts = max_attempts;
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
    Py_VISIT(seen->bury);
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
    Py_DECREF(gone->bury);
    Py_DECREF(gone->handle);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *call(PyObject *function, PyObject *argument)
{
    PyObject *arguments[] = {NULL, argument};
    return PyObject_Vectorcall(function, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

/** None: for ever.  Else nanoseconds on CLOCK_MONOTONIC; 0 polls. */
static int deadline_of(PyObject *key, int64_t *deadline_ns)
{
    *deadline_ns = RINGBUF_FOREVER;
    if (key == Py_None) return 0;
    *deadline_ns = PyLong_AsLongLong(key);
    return *deadline_ns == -1 && PyErr_Occurred() ? -1 : 0;
}

/** Have Python raise what the status means. */
static void refuse(port *self, ringbuf_status status, int is_put, int64_t deadline_ns, size_t size)
{
    PyObject *answer = PyObject_CallFunction(self->refuse, "iOOn", (int)status, is_put ? Py_True : Py_False,
                                             deadline_ns == 0 ? Py_True : Py_False, (Py_ssize_t)size);
    if (!answer) return;
    Py_DECREF(answer);
    PyErr_SetString(PyExc_SystemError, "a refusal raised nothing");
}

/** How long to wait before looking for signals again.  A signal that comes during a sleep ends it at once; but one that comes
 *  in the microseconds before it, when Python has just noted it and we do not know, would be noticed only after it. */
static int64_t next_look(int64_t deadline_ns)
{
    int64_t look_ns = ringbuf_now_ns() + LOOK_NS;
    return look_ns < deadline_ns ? look_ns : deadline_ns;
}

/** Whether to go on waiting: a signal came, or it is only time to look for one.  *raised if a handler has raised. */
static int goes_on(ringbuf_status status, int64_t until_ns, int64_t deadline_ns, int *raised)
{
    int waited = status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL;
    if (status != RINGBUF_E_INTR && (!waited || until_ns == deadline_ns)) return 0;
    *raised = PyErr_CheckSignals() < 0;
    return !*raised;
}

/** Encoding or decoding has raised.  Returns the exception that says that the item is at fault, or NULL: the error stays set. */
static PyObject *verdict_on_error(port *self, int is_put)
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

static void raise_verdict(PyObject *verdict)
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
    else if (pickle && (result = letter_of_frame(made, pickle, buffers)) < 0) letter_clear(made);
    if (result == 0 && !count && !self->buffers) {
        self->buffers = buffers;
        self->gather = gather;
        return 0;
    }
    Py_XDECREF(gather);
    Py_XDECREF(buffers);
    return result;
}

/** Make a message of an item, in `written` (behind what is there) if it is plain data.  0, or -1 with an exception. */
static int write_letter(port *self, PyObject *item, letter *made, draft *written)
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
    int64_t until_ns = 0;
    ringbuf_status status = put(rb, message, 0);
    while (status != RINGBUF_OK && goes_on(status, until_ns, deadline_ns, raised)) {
        until_ns = next_look(deadline_ns);
        PyThreadState *state = PyEval_SaveThread();
        status = put(rb, message, until_ns);
        PyEval_RestoreThread(state);
    }
    return status;
}

/** Reserve, waiting for room in the arena. */
static ringbuf_status reserve(ringbuf *rb, ringbuf_reservation *reservation, size_t size, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0;
    for (;;) {
        PyThreadState *state = PyEval_SaveThread(); /* also for the first attempt: it may have pages to make */
        ringbuf_status status = ringbuf_reserve(rb, reservation, size, until_ns);
        PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !goes_on(status, until_ns, deadline_ns, raised)) return status;
        until_ns = next_look(deadline_ns);
    }
}

/** Commit, waiting for room in the ring. */
static ringbuf_status commit(ringbuf *rb, const ringbuf_reservation *reservation, int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0;
    for (;;) {
        PyThreadState *state = PyEval_SaveThread();
        ringbuf_status status = ringbuf_commit(rb, reservation, reservation->size, until_ns);
        PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !goes_on(status, until_ns, deadline_ns, raised)) return status;
        until_ns = next_look(deadline_ns);
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
    if (status == RINGBUF_OK || !goes_on(status, 0, deadline_ns, raised)) return status;
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

/* ---- put several ---- */

/** Messages on their way into the queue.  Small ones are in `written`, one behind another; the others are letters. */
typedef struct outbox {
    draft written;
    struct outgoing {
        size_t start, size; /* in `written`, */
        letter *letter;     /* unless there is one */
    } *messages;
    size_t count, room;
    size_t parts;           /* of all messages */
    size_t largest, bytes;  /* of the largest message, and of all */
    int letters;            /* whether there are any */
    char own[DRAFTS_BYTES];
} outbox;

static void outbox_clear(outbox *box)
{
    for (size_t number = 0; number < box->count; number++) {
        if (!box->messages[number].letter) continue;
        letter_clear(box->messages[number].letter);
        PyMem_Free(box->messages[number].letter);
    }
    PyMem_Free(box->messages);
    draft_clear(&box->written);
}

/** Add a message, which begins in `written` at `start` if it is there, and take it over.  0, or -1 without memory. */
static int outbox_add(outbox *box, letter *message, size_t start)
{
    if (box->count == box->room) {
        size_t room = box->room ? 2 * box->room : FEW;
        void *messages = PyMem_Realloc(box->messages, room * sizeof *box->messages);
        if (!messages) return -1;
        box->messages = messages;
        box->room = room;
    }
    struct outgoing *outgoing = &box->messages[box->count];
    *outgoing = (struct outgoing){.start = start, .size = message->size};
    draft *written = &box->written;
    if (written->size == start && message->size <= SMALL_BYTES) { /* an object less to keep */
        if (written->capacity - start < message->size && !draft_grow(written, message->size)) return -1;
        for (size_t part = 0; part < message->count; part++) {
            if (message->parts[part].size) memcpy(written->data + written->size, message->parts[part].data, message->parts[part].size);
            written->size += message->parts[part].size;
        }
        letter_clear(message);
        box->parts++;
    } else if (written->size > start) {
        box->parts++;
    } else {
        outgoing->letter = PyMem_Malloc(sizeof *message);
        if (!outgoing->letter) return -1;
        *outgoing->letter = *message;
        if (message->parts == message->own) outgoing->letter->parts = outgoing->letter->own;
        box->parts += message->count;
        box->letters = 1;
    }
    box->count++;
    box->bytes += outgoing->size;
    if (outgoing->size > box->largest) box->largest = outgoing->size;
    return 0;
}

/** Make messages of all items of a list or tuple.  0, or -1 with an exception. */
static int outbox_fill(port *self, outbox *box, PyObject *items)
{
    int is_list = PyList_Check(items);
    /* The size anew each time: pickling may run code that changes the list. */
    for (Py_ssize_t number = 0; number < (is_list ? PyList_Size(items) : PyTuple_Size(items)); number++) {
        PyObject *item = Py_NewRef(is_list ? PyList_GetItem(items, number) : PyTuple_GetItem(items, number));
        letter message;
        size_t start = box->written.size;
        int result = write_letter(self, item, &message, &box->written);
        Py_DECREF(item);
        if (result < 0) {
            raise_verdict(verdict_on_error(self, 1));
            return -1;
        }
        if (outbox_add(box, &message, start) < 0) {
            letter_clear(&message);
            PyErr_NoMemory();
            return -1;
        }
    }
    return 0;
}

/** The messages as the C library takes them.  part_counts stays NULL if each is one part.  0, or -1 with an exception. */
static int outbox_list(const outbox *box, ringbuf_part **parts, size_t **part_counts)
{
    *part_counts = NULL;
    *parts = PyMem_Malloc(box->parts * sizeof **parts + 1);
    if (*parts && box->letters) *part_counts = PyMem_Malloc(box->count * sizeof **part_counts);
    if (!*parts || (box->letters && !*part_counts)) {
        PyErr_NoMemory();
        return -1;
    }
    ringbuf_part *next = *parts;
    for (size_t number = 0; number < box->count; number++) {
        const struct outgoing *outgoing = &box->messages[number];
        size_t count = outgoing->letter ? outgoing->letter->count : 1;
        if (*part_counts) (*part_counts)[number] = count;
        if (outgoing->letter) memcpy(next, outgoing->letter->parts, count * sizeof *next);
        else *next = (ringbuf_part){.data = box->written.data + outgoing->start, .size = outgoing->size};
        next += count;
    }
    return 0;
}

/** Put all or none, waiting for room.  Of a wait that is interrupted to look for signals, large messages are copied again. */
static ringbuf_status put_all(ringbuf *rb, const ringbuf_part *parts, const size_t *part_counts, size_t count, size_t bytes,
                              int64_t deadline_ns, int *raised)
{
    int64_t until_ns = 0;
    for (;;) {
        PyThreadState *state = until_ns || bytes > MANY_BYTES ? PyEval_SaveThread() : NULL;
        ringbuf_status status = ringbuf_put_all_parts(rb, parts, part_counts, count, until_ns);
        if (state) PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !goes_on(status, until_ns, deadline_ns, raised)) return status;
        until_ns = next_look(deadline_ns);
    }
}

/** Say in the exception that is set how many items were put nevertheless. */
static void note_put_items(size_t put)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *number = PyLong_FromSize_t(put);
    if (!number || PyObject_SetAttrString(error, "put_items", number) < 0) PyErr_Clear();
    Py_XDECREF(number);
    PyErr_Restore(type, error, traceback);
}

/** Put all messages: together; or, if they could never be in the queue together and the wait has no bound, in parts.  `refuse_batch` as
 *  port[deadline, refuse_batch] has it.  0, or -1 with an exception. */
static int put_outbox(port *self, const outbox *box, PyObject *refuse_batch, int64_t deadline_ns)
{
    ringbuf_part *parts;
    size_t *part_counts, put = 0, part = 0, together = box->count;
    ringbuf_status status = RINGBUF_OK;
    int raised = outbox_list(box, &parts, &part_counts) < 0;
    if (!raised && box->largest > self->most_bytes) status = RINGBUF_E_TOO_LARGE;
    while (!raised && status == RINGBUF_OK) { /* once also for no messages: the queue may be closed */
        if (together > box->count - put) together = box->count - put;
        const size_t *counts = part_counts ? part_counts + put : NULL;
        status = put_all(self->rb, parts + part, counts, together, box->bytes, deadline_ns, &raised);
        if (status == RINGBUF_E_TOO_LARGE && together > 1) {
            if (deadline_ns == RINGBUF_FOREVER) {
                together = (together + 1) / 2;
                status = RINGBUF_OK;
                continue;
            }
            PyObject *answer = PyObject_CallFunction(refuse_batch, "nn", (Py_ssize_t)box->count, (Py_ssize_t)box->bytes);
            if (answer) PyErr_SetString(PyExc_SystemError, "a refusal raised nothing");
            Py_XDECREF(answer);
            raised = 1;
        }
        if (status != RINGBUF_OK) break;
        for (size_t end = put + together; put < end; put++) part += part_counts ? part_counts[put] : 1;
        if (put == box->count) break;
    }
    PyMem_Free(parts);
    PyMem_Free(part_counts);
    if (!raised && status != RINGBUF_OK) {
        refuse(self, status, 1, deadline_ns, box->largest);
        raised = 1;
    }
    if (raised && put) note_put_items(put);
    return raised ? -1 : 0;
}

/** port[deadline, refuse_batch] = items: all or none, if they can be in the queue together; if not, refuse_batch(count, bytes) raises
 *  what there is to say, except with deadline None.  (Not inlined, as get_items(): the single calls need less of the stack.) */
__attribute__((noinline)) static int put_items(port *self, PyObject *key, PyObject *items)
{
    PyObject *first, *refuse_batch;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(key, "OO", &first, &refuse_batch) || deadline_of(first, &deadline_ns) < 0) return -1;
    /* Before anything is reserved: a generator may take its time, and may raise. */
    items = PyList_CheckExact(items) || PyTuple_CheckExact(items) ? Py_NewRef(items) : PySequence_List(items);
    if (!items) return -1;
    outbox box; /* not initialised as a whole: most of it is room */
    draft_init(&box.written, box.own, sizeof box.own);
    box.messages = NULL;
    box.count = box.room = box.parts = box.largest = box.bytes = 0;
    box.letters = 0;
    int result = outbox_fill(self, &box, items);
    if (result == 0) result = put_outbox(self, &box, refuse_batch, deadline_ns);
    outbox_clear(&box);
    Py_DECREF(items);
    return result;
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
    if (key != Py_None && PyTuple_Check(key)) return put_items(self, key, item);
    if (deadline_of(key, &deadline_ns) < 0) return -1;
    draft_init(&written, room, sizeof room);
    if (write_letter(self, item, &message, &written) < 0) {
        raise_verdict(verdict_on_error(self, 1));
        return -1;
    }
    int raised = 0;
    int is_large = message.size > MANY_BYTES && message.size > self->ring_bytes;
    ringbuf_status status = is_large ? put_large(self->rb, &message, deadline_ns, &raised)
                                     : put_small(self->rb, &message, deadline_ns, &raised);
    size_t size = message.size;
    letter_clear(&message);
    draft_clear(&written);
    if (status == RINGBUF_OK) return 0;
    if (!raised) refuse(self, status, 1, deadline_ns, size);
    return -1; /* nothing was put */
}

/* ---- take, lease ---- */

typedef ringbuf_status take_function(ringbuf *rb, ringbuf_message *message, int64_t deadline_ns);

/** Copy a part of the taken message.  Not by ourselves: another thread may close the queue meanwhile. */
static ringbuf_status copy(ringbuf *rb, const ringbuf_message *message, void *to, size_t offset, size_t size)
{
    if (message->data == message->buffer) {
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
    if (message->data == message->buffer) return PyBytes_FromStringAndSize((const char *)message->buffer + offset, (Py_ssize_t)size);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!bytes) return NULL;
    prefer_huge_pages(PyBytes_AsString(bytes), size);
    *status = copy(rb, message, PyBytes_AsString(bytes), offset, size);
    if (*status != RINGBUF_OK) Py_CLEAR(bytes);
    return bytes;
}

/** The message was taken more often than it may be: move it away.  0, or -1 with an exception, and it goes back. */
static int bury(port *self, const ringbuf_message *message)
{
    ringbuf_status status = RINGBUF_OK;
    PyObject *bytes = bytes_of(self->rb, message, 0, &status);
    PyObject *done = bytes ? PyObject_CallFunction(self->bury, "OI", bytes, (unsigned int)message->attempts) : NULL;
    Py_XDECREF(bytes);
    if (!done) {
        ringbuf_nack(self->rb, message);
        if (status != RINGBUF_OK) refuse(self, status, 0, 1, 0);
        return -1;
    }
    Py_DECREF(done);
    if (ringbuf_ack(self->rb, message) == RINGBUF_OK) ringbuf_task_done(self->rb);
    return 0;
}

/** Take the next message that may still be taken, waiting for one.  *raised with an exception, and nothing is taken. */
static ringbuf_status take_next(port *self, take_function *take, ringbuf_message *message, int64_t deadline_ns, int *raised)
{
    for (;;) {
        int64_t until_ns = 0;
        ringbuf_status status = take(self->rb, message, 0);
        while (status != RINGBUF_OK && goes_on(status, until_ns, deadline_ns, raised)) {
            until_ns = next_look(deadline_ns);
            PyThreadState *state = PyEval_SaveThread();
            status = take(self->rb, message, until_ns);
            PyEval_RestoreThread(state);
        }
        if (status != RINGBUF_OK || self->max_attempts == 0 || message->attempts <= self->max_attempts) return status;
        *raised = bury(self, message) < 0;
        if (*raised) return RINGBUF_OK;
    }
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

/** A taken message's object: made of bytes of its own. */
static PyObject *read_copy(port *self, const ringbuf_message *message, ringbuf_status *status)
{
    char room[FRAME_HEAD_BYTES];
    const char *head = message->buffer;
    Py_ssize_t size = (Py_ssize_t)message->size, known = size;
    enum frame_kind kind = FRAME_NONE;
    if (self->framed && size) {
        if (message->data != head) { /* there was no room for it */
            head = room;
            if (known > (Py_ssize_t)sizeof room) known = sizeof room;
            if ((*status = copy(self->rb, message, room, 0, (size_t)known)) != RINGBUF_OK) return NULL;
        }
        kind = frame_kind_of((unsigned char)head[0]);
    }
    if (kind == FRAME_PLAIN && message->data == head) return read_plain(self, head, message->size);
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
        if (head == FRAME_PLAIN) return read_copy(self, message, status); /* there is nothing that could be looked at in place */
    }
    if (message->in_arena && message->data != message->buffer) {
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
    PyObject *item = self->views ? read_views(self, message, lying, &status) : read_copy(self, message, &status);
    if (item) return item;
    if (status != RINGBUF_OK) {
        refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, 1, 0); /* closed: that gave it back */
        return NULL;
    }
    /* Whose fault?  If the message's, it is consumed, unless its attempts are counted; then, and else, it goes back. */
    PyObject *verdict = verdict_on_error(self, 0);
    if (!verdict || self->max_attempts) ringbuf_nack(self->rb, message);
    else if (block_finish(self->rb, message, *lying) == RINGBUF_OK && leased) ringbuf_task_done(self->rb);
    raise_verdict(verdict);
    return NULL;
}

/* ---- get several ---- */

/** Messages that have been taken, and neither acknowledged nor given back. */
typedef struct inbox {
    ringbuf_message *messages;
    size_t count, room;
    ringbuf_message own[FEW];
} inbox;

/** Take up to `most` more messages behind those that there are, waiting for the first until `deadline_ns` (0: not at all).  Their bytes
 *  go into `bytes`.  RINGBUF_E_NO_MEMORY without an exception.  *raised with one. */
static ringbuf_status inbox_take(port *self, inbox *box, size_t most, size_t most_bytes, char *bytes, int64_t deadline_ns, int *raised)
{
    if (box->room - box->count < most) {
        size_t room = 2 * box->room + FEW;
        ringbuf_message *old = box->messages == box->own ? NULL : box->messages;
        ringbuf_message *messages = PyMem_Realloc(old, room * sizeof *messages);
        if (!messages) return RINGBUF_E_NO_MEMORY;
        if (!old) memcpy(messages, box->own, box->count * sizeof *messages);
        box->messages = messages;
        box->room = room;
    }
    ringbuf_message *to = box->messages + box->count;
    size_t count = 0;
    int64_t until_ns = 0;
    ringbuf_status status = ringbuf_take_many(self->rb, to, &count, most, most_bytes, bytes, DRAFTS_BYTES, 0);
    while (status != RINGBUF_OK && goes_on(status, until_ns, deadline_ns, raised)) {
        until_ns = next_look(deadline_ns);
        PyThreadState *state = PyEval_SaveThread();
        status = ringbuf_take_many(self->rb, to, &count, most, most_bytes, bytes, DRAFTS_BYTES, until_ns);
        PyEval_RestoreThread(state);
    }
    box->count += count;
    return status;
}

/** Give back all messages from the one with this number on, as if they had not been taken. */
static void inbox_return(port *self, inbox *box, size_t from)
{
    ringbuf_return_all(self->rb, box->messages + from, box->count - from);
    box->count = from;
}

/** Bury those from the one with this number on that were taken too often.  0, or -1 with an exception. */
static int inbox_bury(port *self, inbox *box, size_t from)
{
    size_t kept = from;
    int result = 0;
    for (size_t number = from; number < box->count; number++) {
        ringbuf_message *message = &box->messages[number];
        if (result == 0 && message->attempts > self->max_attempts) result = bury(self, message); /* which ends it in any case */
        else box->messages[kept++] = *message;
    }
    box->count = kept;
    return result;
}

/** Decode the messages from the one with this number on and append them to `items`.  Returns how many are left when one could not be
 *  decoded: then there is an exception, or *status is not RINGBUF_OK. */
static size_t inbox_decode(port *self, const inbox *box, size_t from, PyObject *items, ringbuf_status *status)
{
    for (size_t number = from; number < box->count; number++) {
        PyObject *item = read_copy(self, &box->messages[number], status);
        int result = item ? PyList_Append(items, item) : -1;
        Py_XDECREF(item);
        if (result < 0) return box->count - number;
    }
    return 0;
}

/** The message with this number could not be decoded, and it is its own fault: end it as a get() does. */
static void inbox_drop(port *self, inbox *box, size_t number)
{
    if (self->max_attempts) ringbuf_nack(self->rb, &box->messages[number]);
    else ringbuf_ack(self->rb, &box->messages[number]);
    box->count--;
    memmove(box->messages + number, box->messages + number + 1, (box->count - number) * sizeof *box->messages);
}

/** Fill `items`.  On success all of them are taken and none is acknowledged.  -1 with an exception: none is taken. */
static int get_into(port *self, inbox *box, PyObject *items, size_t most, size_t most_bytes, int exactly, int64_t deadline_ns)
{
    char bytes[DRAFTS_BYTES];
    ringbuf_status status = RINGBUF_OK;
    int raised = 0;
    size_t bytes_left = most_bytes;
    while (box->count < most && (box->count == 0 || bytes_left) && !raised) {
        size_t from = box->count, asked = most - from < FEW ? most - from : FEW;
        status = inbox_take(self, box, asked, bytes_left, bytes, from ? 0 : deadline_ns, &raised);
        if (status != RINGBUF_OK || raised) break;
        size_t taken = box->count - from;
        if (self->max_attempts && inbox_bury(self, box, from) < 0) raised = 1;
        for (size_t number = from; number < box->count && most_bytes != SIZE_MAX; number++) {
            size_t size = box->messages[number].size;
            if (size > bytes_left && number) { /* it came although it is too large: one is always taken */
                inbox_return(self, box, number);
                bytes_left = 0;
                break;
            }
            bytes_left -= size < bytes_left ? size : bytes_left;
        }
        size_t left = raised ? 0 : inbox_decode(self, box, from, items, &status);
        if (status != RINGBUF_OK) break;
        if (left) {
            size_t failed = box->count - left;
            PyObject *verdict = verdict_on_error(self, 0);
            if (verdict && failed && !exactly) { /* the next get meets it */
                Py_DECREF(verdict);
                inbox_return(self, box, failed);
                return 0;
            }
            if (verdict) inbox_drop(self, box, failed);
            raise_verdict(verdict);
            raised = 1;
        }
        if (taken < asked && box->count) break; /* the queue is empty */
    }
    /* What came before the end, or the shutdown, of the queue is there nevertheless. */
    int enough = exactly ? box->count == most : box->count > 0;
    if (!raised && enough && box->count == (size_t)PyList_Size(items)) return 0;
    inbox_return(self, box, 0);
    if (raised) return -1;
    if (status == RINGBUF_OK) status = RINGBUF_E_TIMEOUT;
    if (status == RINGBUF_E_NO_MEMORY) PyErr_NoMemory();
    else refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
    return -1;
}

/** port[deadline, most, most_bytes, exactly]: a list of up to `most` items (None: MANY_ITEMS), of no more than `most_bytes` (None: any
 *  number) in all, but at least one; `exactly` so many, or none. */
__attribute__((noinline)) static PyObject *get_items(port *self, PyObject *key)
{
    PyObject *first, *most_items, *most_bytes;
    int exactly;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(key, "OOOp", &first, &most_items, &most_bytes, &exactly) || deadline_of(first, &deadline_ns) < 0) return NULL;
    size_t most = most_items == Py_None ? MANY_ITEMS : PyLong_AsSize_t(most_items);
    size_t bytes = most_bytes == Py_None ? SIZE_MAX : PyLong_AsSize_t(most_bytes);
    PyObject *items = PyErr_Occurred() ? NULL : PyList_New(0);
    if (!items) return NULL;
    inbox box; /* not initialised as a whole: most of it is room */
    box.messages = box.own;
    box.count = 0;
    box.room = FEW;
    if (get_into(self, &box, items, most, bytes, exactly, deadline_ns) < 0) {
        Py_CLEAR(items);
    } else {
        ringbuf_status status = ringbuf_ack_all(self->rb, box.messages, box.count);
        if (status != RINGBUF_OK) { /* closed while we decoded: that gave the messages back */
            Py_CLEAR(items);
            refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
        }
    }
    if (box.messages != box.own) PyMem_Free(box.messages);
    return items;
}

/** port[deadline] */
static PyObject *port_get(PyObject *object, PyObject *key)
{
    port *self = (port *)object;
    char small[SMALL_BYTES];
    ringbuf_message message = {.buffer = small, .capacity = sizeof small};
    int64_t deadline_ns;
    if (key != Py_None && PyTuple_Check(key)) return get_items(self, key);
    if (deadline_of(key, &deadline_ns) < 0) return NULL;
    int raised = 0;
    ringbuf_status status = take_next(self, ringbuf_take, &message, deadline_ns, &raised);
    if (raised) return NULL; /* nothing was taken */
    if (status != RINGBUF_OK) {
        refuse(self, status, 0, deadline_ns, 0);
        return NULL;
    }
    block *lying;
    PyObject *item = read_message(self, &message, &lying, 0);
    if (item) {
        status = block_finish(self->rb, &message, lying);
        if (status != RINGBUF_OK) { /* closed while we decoded: that gave the message back */
            Py_CLEAR(item);
            refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
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
    if (deadline_of(key, &deadline_ns) < 0) return NULL;
    taken *made = taken_new(object, self->rb);
    if (!made) return NULL;
    made->message = (ringbuf_message){.buffer = small, .capacity = sizeof small};
    int raised = 0;
    PyObject *item = NULL, *result = NULL;
    ringbuf_status status = take_next(self, ringbuf_lease, &made->message, deadline_ns, &raised);
    if (!raised && status != RINGBUF_OK) refuse(self, status, 0, deadline_ns, 0);
    if (!raised && status == RINGBUF_OK) item = read_message(self, &made->message, &made->lying, 1);
    made->message.buffer = NULL; /* the other fields say which message it is */
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
    if (!PyArg_ParseTuple(arguments, "nO", &size, &key) || deadline_of(key, &deadline_ns) < 0) return NULL;
    ringbuf_reservation reservation;
    int raised = 0;
    ringbuf_status status = reserve(self->rb, &reservation, (size_t)size, deadline_ns, &raised);
    if (status == RINGBUF_OK) return (PyObject *)block_of_reservation(self->rb, &reservation);
    if (!raised) refuse(self, status, 1, deadline_ns, (size_t)size);
    return NULL;
}

/** port.commit(block, deadline) */
static PyObject *port_commit(PyObject *object, PyObject *arguments)
{
    port *self = (port *)object;
    PyObject *filled, *key;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(arguments, "OO", &filled, &key) || deadline_of(key, &deadline_ns) < 0) return NULL;
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
    if (!raised) refuse(self, status, 1, deadline_ns, reserved->reservation.size);
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

/** Add our types to the module that cffi made.  0, or -1.  (cffi has released the GIL.) */
int sage_install_port(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *module = PyImport_ImportModule("sage_queue._ringbuf");
    protocol = PyLong_FromLong(5);
    callback_name = Py_BuildValue("(s)", "buffer_callback");
    torch_name = PyUnicode_InternFromString("torch");
    PyObject *type = module && protocol && callback_name && torch_name ? PyType_FromSpec(&spec) : NULL;
    int result = type && block_install(module) == 0 && taken_install(module) == 0 ? PyObject_SetAttrString(module, "Port", type) : -1;
    if (result < 0) PyErr_Print();
    Py_XDECREF(type);
    Py_XDECREF(module);
    PyGILState_Release(gil);
    return result;
}
