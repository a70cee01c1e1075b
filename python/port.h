/* port.h — what port.c and batches.c share: the port, how it waits, how it fails, and what makes a message of an item and an item of a
 * message. */
#ifndef SAGE_PORT_H
#define SAGE_PORT_H

#include "binding.h"

enum {
    SMALL_BYTES = 4096, /* messages up to this size are copied out while they are taken */
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
    PyObject *buffers;     /* an empty list, and a callback that gathers in it, when no call is using them; or NULL */
    PyObject *gather;
    size_t ring_bytes;     /* larger messages go into the arena, */
    size_t most_bytes;     /* and still larger ones nowhere */
    int counts_attempts;   /* the queue moves away what was taken too often, so what cannot be decoded goes back */
    plain_names *names;    /* NULL until plain data is read */
    int views;             /* what is got looks at the queue's memory, where it can */
    int readonly;
} port;

/** None: for ever.  Else nanoseconds on CLOCK_MONOTONIC; 0 polls; below 0 looks for so long.  -1 with an exception. */
int port_deadline_of(PyObject *key, int64_t *deadline_ns);

/** How long to wait before looking for signals again.  A signal that comes during a sleep ends it at once; but one that comes
 *  in the microseconds before it, when Python has just noted it and we do not know, is noticed only after it.  So a wait is in slices: the
 *  first is of 100 ms, as most waits are short, and each is twice as long as the one before, up to 4 s, for a thousand processes that
 *  wait would else wake up 10,000 times a second for this.  *slice_ns is the length of the last one; 0: there was none. */
int64_t port_next_look(int64_t deadline_ns, int64_t *slice_ns);

/** Whether to go on waiting: a signal came, or it is only time to look for one.  *raised if a handler has raised, or the warning that
 *  the queue's file was deleted, which comes here. */
int port_goes_on(ringbuf *rb, ringbuf_status status, int64_t until_ns, int64_t deadline_ns, int *raised);

/** Have Python raise what the status means. */
void port_refuse(port *self, ringbuf_status status, int is_put, int64_t deadline_ns, size_t size);

/** Encoding or decoding has raised.  Returns the exception that says that the item is at fault, or NULL: the error stays set. */
PyObject *port_verdict_on_error(port *self, int is_put);

/** Raise it, unless it is NULL. */
void port_raise_verdict(PyObject *verdict);

/** Make a message of an item, in `written` (behind what is there) if it is plain data.  0, or -1 with an exception.  On failure `made`
 *  holds nothing, and must not be cleared; `written` may have grown in any case, and is the caller's to clear. */
int port_write_letter(port *self, PyObject *item, letter *made, draft *written);

/** A taken message's object: made of bytes of its own.  NULL with an exception, or with *status not RINGBUF_OK and none. */
PyObject *port_read_copy(port *self, const ringbuf_message *message, ringbuf_status *status);

/* ---- batches.c ---- */

/** port[deadline, refuse_batch] = items: all or none, if they can be in the queue together; if not, refuse_batch(count, bytes) raises
 *  what there is to say, except with deadline None. */
int port_put_items(port *self, PyObject *key, PyObject *items);

/** port[deadline, most, most_bytes, exactly]: a list of up to `most` items (None: MANY_ITEMS), of no more than `most_bytes` (None: any
 *  number) in all, but at least one; `exactly` so many, or none. */
PyObject *port_get_items(port *self, PyObject *key);

#endif
