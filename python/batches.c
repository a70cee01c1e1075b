/* batches.c — several items with one call: `port[deadline, refuse_batch] = items` and `port[deadline, most, most_bytes, exactly]`.
 *
 * Subscripts for the reason that port.c gives.  All items are encoded before any is put.  Messages are taken, decoded, and then acknowledged
 * together: a get that raises has taken none of them.
 *
 * What a call works with does not lie on the stack.  An object may put or get a batch while it is pickled or unpickled, and so on; Python
 * ends that at a number of calls, which says nothing about their bytes, and the stack would end before. */
#include "port.h"

enum {
    DRAFTS_BYTES = 16384, /* room for small messages on their way in, and for those on their way out, of which */
    FEW = 64,             /* so many are taken together */
    MANY_ITEMS = 1024,    /* a get without a bound gives at most so many: they keep their room in the ring until all are decoded */
};

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

/** Messages that have been taken, and neither acknowledged nor given back. */
typedef struct inbox {
    ringbuf_message *messages;
    size_t count, room;
    ringbuf_message own[FEW];
    char bytes[DRAFTS_BYTES]; /* where the small ones of those that are being decoded lie */
} inbox;

/* ---- what a call works with ---- */

typedef union desk {
    outbox out;
    inbox in;
} desk;

static desk *spare; /* that of the last call, for the next one; or NULL */

/** With anything in it.  NULL with an exception. */
static desk *desk_take(void)
{
    desk *taken = spare;
    spare = NULL;
    if (!taken) taken = PyMem_Malloc(sizeof *taken);
    if (!taken) PyErr_NoMemory();
    return taken;
}

static void desk_give_back(desk *taken)
{
    if (spare) PyMem_Free(taken);
    else spare = taken;
}

/* ---- put ---- */

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
        int result = port_write_letter(self, item, &message, &box->written);
        Py_DECREF(item);
        if (result < 0) {
            port_raise_verdict(port_verdict_on_error(self, 1));
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
    int64_t until_ns = 0, slice_ns = 0;
    for (;;) {
        PyThreadState *state = until_ns || bytes > MANY_BYTES ? PyEval_SaveThread() : NULL;
        ringbuf_status status = ringbuf_put_all_parts(rb, parts, part_counts, count, until_ns);
        if (state) PyEval_RestoreThread(state);
        if (status == RINGBUF_OK || !port_goes_on(rb, status, until_ns, deadline_ns, raised)) return status;
        until_ns = port_next_look(deadline_ns, &slice_ns);
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
        port_refuse(self, status, 1, deadline_ns, status == RINGBUF_E_NO_SPACE ? box->bytes : box->largest);
        raised = 1;
    }
    if (raised && put) note_put_items(put);
    return raised ? -1 : 0;
}

int port_put_items(port *self, PyObject *key, PyObject *items)
{
    PyObject *first, *refuse_batch;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(key, "OO", &first, &refuse_batch) || port_deadline_of(first, &deadline_ns) < 0) return -1;
    /* Before anything is reserved: a generator may take its time, and may raise. */
    items = PyList_CheckExact(items) || PyTuple_CheckExact(items) ? Py_NewRef(items) : PySequence_List(items);
    if (!items) return -1;
    desk *taken = desk_take();
    int result = -1;
    if (taken) {
        outbox *box = &taken->out; /* not initialised as a whole: most of it is room */
        draft_init(&box->written, box->own, sizeof box->own);
        box->messages = NULL;
        box->count = box->room = box->parts = box->largest = box->bytes = 0;
        box->letters = 0;
        result = outbox_fill(self, box, items);
        if (result == 0) result = put_outbox(self, box, refuse_batch, deadline_ns);
        outbox_clear(box);
        desk_give_back(taken);
    }
    Py_DECREF(items);
    return result;
}

/* ---- get ---- */

/** Take up to `most` more messages behind those that there are, waiting for the first until `deadline_ns` (0: not at all).  Their bytes
 *  go into box->bytes.  RINGBUF_E_NO_MEMORY without an exception.  *raised with one. */
static ringbuf_status inbox_take(port *self, inbox *box, size_t most, size_t most_bytes, int64_t deadline_ns, int *raised)
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
    int64_t until_ns = 0, slice_ns = 0;
    ringbuf_status status = ringbuf_take_many(self->rb, to, &count, most, most_bytes, box->bytes, DRAFTS_BYTES, 0);
    while (status != RINGBUF_OK && port_goes_on(self->rb, status, until_ns, deadline_ns, raised)) {
        until_ns = port_next_look(deadline_ns, &slice_ns);
        PyThreadState *state = PyEval_SaveThread();
        status = ringbuf_take_many(self->rb, to, &count, most, most_bytes, box->bytes, DRAFTS_BYTES, until_ns);
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

/** Decode the messages from the one with this number on and append them to `items`.  Returns how many are left when one could not be
 *  decoded: then there is an exception, or *status is not RINGBUF_OK. */
static size_t inbox_decode(port *self, const inbox *box, size_t from, PyObject *items, ringbuf_status *status)
{
    for (size_t number = from; number < box->count; number++) {
        PyObject *item = port_read_copy(self, &box->messages[number], status);
        int result = item ? PyList_Append(items, item) : -1;
        Py_XDECREF(item);
        if (result < 0) return box->count - number;
    }
    return 0;
}

/** The message with this number could not be decoded, and it is its own fault: end it as a get() does. */
static void inbox_drop(port *self, inbox *box, size_t number)
{
    if (self->counts_attempts) ringbuf_nack(self->rb, &box->messages[number]);
    else ringbuf_ack(self->rb, &box->messages[number]);
    box->count--;
    memmove(box->messages + number, box->messages + number + 1, (box->count - number) * sizeof *box->messages);
}

/** Fill `items`.  On success all of them are taken and none is acknowledged.  -1 with an exception: none is taken. */
static int get_into(port *self, inbox *box, PyObject *items, size_t most, size_t most_bytes, int exactly, int64_t deadline_ns)
{
    ringbuf_status status = RINGBUF_OK;
    int raised = 0;
    size_t bytes_left = most_bytes;
    while (box->count < most && (box->count == 0 || bytes_left) && !raised) {
        size_t from = box->count, asked = most - from < FEW ? most - from : FEW;
        status = inbox_take(self, box, asked, bytes_left, from ? 0 : deadline_ns, &raised);
        if (status != RINGBUF_OK || raised) break;
        size_t taken = box->count - from;
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
            PyObject *verdict = port_verdict_on_error(self, 0);
            if (verdict && failed && !exactly) { /* the next get meets it */
                Py_DECREF(verdict);
                inbox_return(self, box, failed);
                return 0;
            }
            if (verdict) inbox_drop(self, box, failed);
            port_raise_verdict(verdict);
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
    else port_refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
    return -1;
}

PyObject *port_get_items(port *self, PyObject *key)
{
    PyObject *first, *most_items, *most_bytes;
    int exactly;
    int64_t deadline_ns;
    if (!PyArg_ParseTuple(key, "OOOp", &first, &most_items, &most_bytes, &exactly) || port_deadline_of(first, &deadline_ns) < 0) return NULL;
    size_t most = most_items == Py_None ? MANY_ITEMS : PyLong_AsSize_t(most_items);
    size_t bytes = most_bytes == Py_None ? SIZE_MAX : PyLong_AsSize_t(most_bytes);
    PyObject *items = PyErr_Occurred() ? NULL : PyList_New(0);
    desk *taken = items ? desk_take() : NULL;
    if (!taken) {
        Py_XDECREF(items);
        return NULL;
    }
    inbox *box = &taken->in; /* not initialised as a whole: most of it is room */
    box->messages = box->own;
    box->count = 0;
    box->room = FEW;
    if (get_into(self, box, items, most, bytes, exactly, deadline_ns) < 0) {
        Py_CLEAR(items);
    } else {
        ringbuf_status status = ringbuf_ack_all(self->rb, box->messages, box->count);
        if (status != RINGBUF_OK) { /* closed while we decoded: that gave the messages back */
            Py_CLEAR(items);
            port_refuse(self, status == RINGBUF_E_INVALID ? RINGBUF_E_CLOSED : status, 0, deadline_ns, 0);
        }
    }
    if (box->messages != box->own) PyMem_Free(box->messages);
    desk_give_back(taken);
    return items;
}
