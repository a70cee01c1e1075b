/* port.c — the hot path of the Python binding: one object with two operations, `port[deadline] = data` and `port[deadline]`.
 *
 * Everything else goes through cffi.  These two do not, because cffi costs more than the queue itself: it releases the GIL around
 * every call (a dozen locked instructions), packs arguments into tuples, and a get would need three calls and a buffer to itself.
 * docs/decisions/0008-port.md has the measurements.
 *
 * Why subscripts and not methods.  CPython runs signal handlers after a *call*, so that a Ctrl-C could throw away what the call
 * returned: a message that is gone from the queue.  After BINARY_SUBSCR and STORE_SUBSCR it does not look (since 3.11; in 3.10 it looks
 * nearly everywhere).  So a get that was interrupted has taken nothing, and a put that was interrupted has put nothing.
 *
 * The GIL is kept for the first attempt, which never waits, and released for waiting and for copying much.
 * A message is taken, decoded, and then acknowledged: what dies or fails in between gives it back. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <ringbuf/ringbuf.h>

int sage_install_port(void);

enum {
    SMALL_BYTES = 4096,      /* messages up to this size are copied out while they are taken */
    MANY_BYTES = 256 * 1024, /* copying more than this lets other threads run */
    LOOK_NS = 100000000,     /* a wait looks for signals at least this often */
};

typedef struct port {
    PyObject_HEAD
    ringbuf *rb;           /* kept alive by the queue that owns the port */
    PyObject *loads;       /* bytes -> item; None: the bytes are the item */
    PyObject *refuse;      /* (status, is_put, polling, size) -> raises what the status means */
    PyObject *undecodable; /* (error) -> the exception to raise for a message that is consumed, or None: give it back */
} port;

static PyObject *port_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    unsigned long long address;
    PyObject *loads, *refuse, *undecodable;
    if (!PyArg_ParseTuple(arguments, "KOOO", &address, &loads, &refuse, &undecodable)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    port *made = (port *)allocate(type, 0);
    if (!made) return NULL;
    made->rb = (ringbuf *)(uintptr_t)address;
    made->loads = Py_NewRef(loads);
    made->refuse = Py_NewRef(refuse);
    made->undecodable = Py_NewRef(undecodable);
    return (PyObject *)made;
}

static void port_dealloc(PyObject *self)
{
    port *gone = (port *)self;
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(gone->loads);
    Py_DECREF(gone->refuse);
    Py_DECREF(gone->undecodable);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
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
static void refuse(port *self, ringbuf_status status, int is_put, int64_t deadline_ns, Py_ssize_t size)
{
    PyObject *answer = PyObject_CallFunction(self->refuse, "iOOn", (int)status, is_put ? Py_True : Py_False,
                                             deadline_ns == 0 ? Py_True : Py_False, size);
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
    if (status != RINGBUF_E_INTR && (status != RINGBUF_E_TIMEOUT || until_ns == deadline_ns)) return 0;
    *raised = PyErr_CheckSignals() < 0;
    return !*raised;
}

/* ---- put ---- */

static ringbuf_status put(ringbuf *rb, const char *data, Py_ssize_t size, int64_t until_ns)
{
    PyThreadState *state = PyEval_SaveThread();
    ringbuf_status status = ringbuf_put(rb, data, (size_t)size, until_ns);
    PyEval_RestoreThread(state);
    return status;
}

/** port[deadline] = data */
static int port_put(PyObject *self, PyObject *key, PyObject *value)
{
    char *data;
    Py_ssize_t size;
    int64_t deadline_ns;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "a port's messages cannot be deleted");
        return -1;
    }
    if (deadline_of(key, &deadline_ns) < 0 || PyBytes_AsStringAndSize(value, &data, &size) < 0) return -1;
    ringbuf *rb = ((port *)self)->rb;
    int raised = 0;
    int64_t until_ns = 0;
    ringbuf_status status = size <= MANY_BYTES ? ringbuf_put(rb, data, (size_t)size, 0) : put(rb, data, size, 0);
    while (status != RINGBUF_OK && goes_on(status, until_ns, deadline_ns, &raised)) {
        until_ns = next_look(deadline_ns);
        status = put(rb, data, size, until_ns);
    }
    if (status == RINGBUF_OK) return 0;
    if (raised) return -1; /* nothing was put */
    refuse((port *)self, status, 1, deadline_ns, size);
    return -1;
}

/* ---- get ---- */

static ringbuf_status take(ringbuf *rb, ringbuf_message *message, int64_t until_ns)
{
    PyThreadState *state = PyEval_SaveThread();
    ringbuf_status status = ringbuf_take(rb, message, until_ns);
    PyEval_RestoreThread(state);
    return status;
}

/** The taken message as bytes of our own.  NULL with an exception, or with *status not RINGBUF_OK and none. */
static PyObject *bytes_of(ringbuf *rb, const ringbuf_message *message, ringbuf_status *status)
{
    *status = RINGBUF_OK;
    if (message->data == message->buffer) return PyBytes_FromStringAndSize(message->data, (Py_ssize_t)message->size);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)message->size);
    if (!bytes) return NULL;
    char *start = PyBytes_AsString(bytes);
    PyThreadState *state = message->size > MANY_BYTES ? PyEval_SaveThread() : NULL;
    *status = ringbuf_copy(rb, message, start); /* not by ourselves: another thread may close the queue meanwhile */
    if (state) PyEval_RestoreThread(state);
    if (*status == RINGBUF_OK) return bytes;
    Py_DECREF(bytes);
    return NULL;
}

/** Decoding has raised.  If that is the message's fault, it is consumed, and the caller is told; else it goes back. */
static void decide(port *self, const ringbuf_message *message)
{
    PyObject *type, *error, *traceback, *verdict = NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback) PyException_SetTraceback(error, traceback);
    if (PyErr_GivenExceptionMatches(error, PyExc_Exception) && !PyErr_GivenExceptionMatches(error, PyExc_MemoryError))
        verdict = PyObject_CallFunctionObjArgs(self->undecodable, error, NULL);
    int consumed = verdict && verdict != Py_None;
    if (consumed) ringbuf_ack(self->rb, message);
    else ringbuf_nack(self->rb, message);
    if (consumed) PyErr_SetObject((PyObject *)Py_TYPE(verdict), verdict);
    if (PyErr_Occurred()) { /* the verdict, or what a signal handler raised while it was found */
        Py_DECREF(type);
        Py_DECREF(error);
        Py_XDECREF(traceback);
    } else {
        PyErr_Restore(type, error, traceback);
    }
    Py_XDECREF(verdict);
}

/** port[deadline] */
static PyObject *port_get(PyObject *object, PyObject *key)
{
    port *self = (port *)object;
    char small[SMALL_BYTES];
    ringbuf_message message = {.buffer = small, .capacity = sizeof small};
    int64_t deadline_ns;
    if (deadline_of(key, &deadline_ns) < 0) return NULL;
    int raised = 0;
    int64_t until_ns = 0;
    ringbuf_status status = ringbuf_take(self->rb, &message, 0);
    while (status != RINGBUF_OK && goes_on(status, until_ns, deadline_ns, &raised)) {
        until_ns = next_look(deadline_ns);
        status = take(self->rb, &message, until_ns);
    }
    if (raised) return NULL; /* nothing was taken */
    if (status != RINGBUF_OK) {
        refuse(self, status, 0, deadline_ns, 0);
        return NULL;
    }
    PyObject *bytes = bytes_of(self->rb, &message, &status);
    PyObject *item = NULL;
    if (bytes) {
        if (self->loads == Py_None) {
            item = bytes;
        } else {
            item = PyObject_CallFunctionObjArgs(self->loads, bytes, NULL);
            Py_DECREF(bytes);
        }
    }
    if (!item) {
        if (status != RINGBUF_OK) refuse(self, status, 0, deadline_ns, 0); /* closed: that gave it back */
        else decide(self, &message);
        return NULL;
    }
    status = ringbuf_ack(self->rb, &message);
    if (status == RINGBUF_OK) return item;
    Py_DECREF(item); /* closed while we decoded: that gave the message back */
    refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
    return NULL;
}

/* ---- the type ---- */

static PyType_Slot slots[] = {
    {Py_tp_new, port_new},
    {Py_tp_dealloc, port_dealloc},
    {Py_mp_subscript, port_get},
    {Py_mp_ass_subscript, port_put},
    {Py_tp_doc, "Port(handle, loads, refuse, undecodable): port[deadline] = data puts, port[deadline] gets."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "sage_queue._ringbuf.Port",
    .basicsize = sizeof(port),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

/** Add Port to the module that cffi made.  0, or -1.  (cffi has released the GIL.) */
int sage_install_port(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *module = PyImport_ImportModule("sage_queue._ringbuf");
    PyObject *type = module ? PyType_FromSpec(&spec) : NULL;
    int result = type ? PyObject_SetAttrString(module, "Port", type) : -1;
    if (result < 0) PyErr_Print();
    Py_XDECREF(type);
    Py_XDECREF(module);
    PyGILState_Release(gil);
    return result;
}
