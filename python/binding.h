/* binding.h — what the files of the Python module share.
 *
 *   port.c   the calls on one queue: put, get, lease, reserve
 *   batches.c  the same for several items
 *   plain.c  plain data to bytes and back, without pickle
 *   frame.c  a message whose object's buffers lie beside its pickle
 *   block.c  memory that Python objects look at, and that lives as long as they do
 *   taken.c  a message that is being worked on
 *
 * All of it runs with the GIL held, except where a function says that it lets it go. */
#ifndef SAGE_BINDING_H
#define SAGE_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <ringbuf/ringbuf.h>

#include <string.h>

enum {
    MANY_BYTES = 256 * 1024, /* copying more than this lets other threads run */
};

/* ---- block.c ---- */

enum block_kind {
    BLOCK_PRIVATE,  /* our own, freed with the block */
    BLOCK_PINNED,   /* a queue's, which stays mapped for us; whose it is, is not the block's affair */
    BLOCK_KEPT,     /* a kept message, released with the block */
    BLOCK_RESERVED, /* a reservation, aborted with the block */
    BLOCK_OVER,     /* none any more */
};

/** Memory with the buffer interface.  Whatever looks at it keeps it alive. */
typedef struct block {
    PyObject_HEAD
    enum block_kind kind;
    int readonly;
    int over;                        /* what lies here is not ours to look at any more: no new views */
    char *data;
    Py_ssize_t size;
    Py_ssize_t exports;              /* how many look at it */
    ringbuf *rb;                     /* where it is the queue's; may be closed and freed by now */
    ringbuf_message message;         /* if KEPT, or to be */
    ringbuf_reservation reservation; /* if RESERVED */
} block;

/** Make the type and add it to the module.  0, or -1 with an exception. */
int block_install(PyObject *module);

/** Memory is about to be written.  If it is so large that malloc makes it afresh each time, have it made in large pages: a fault for
 *  each small one costs several times what the copying does. */
void prefer_huge_pages(char *data, size_t size);

/** Memory of our own, aligned to 64 bytes, with anything in it.  NULL with an exception. */
block *block_private(Py_ssize_t size, int readonly);

/** A taken message that lies in the arena, pinned.  NULL with an exception, or with *status not RINGBUF_OK and none. */
block *block_of_message(ringbuf *rb, const ringbuf_message *message, int readonly, ringbuf_status *status);

/** A reservation; aborted if this fails.  NULL with an exception. */
block *block_of_reservation(ringbuf *rb, const ringbuf_reservation *reservation);

/** `object` as a block with this reservation still open.  NULL with an exception. */
block *block_reserved(PyObject *object);

/** The message is done: kept for those who still look at it, acknowledged if nobody does.  `lying` may be NULL, here and below.
 *  Whatever the answer, who looks at it from now on looks at a kept message, or is refused. */
ringbuf_status block_finish(ringbuf *rb, const ringbuf_message *message, block *lying);

/** The message goes back to the queue, and who wants to look at it from now on is refused. */
ringbuf_status block_give_back(ringbuf *rb, const ringbuf_message *message, block *lying);

/** The message is another's by now.  Who looks at it already keeps the memory mapped, no more. */
void block_end_views(block *lying);

/** The reservation has been committed: what looks at it keeps the memory mapped, no more. */
void block_committed(block *self);

/** A memoryview of all of the block.  NULL with an exception. */
PyObject *block_view(block *self);

/* ---- plain.c ---- */

/** Bytes that are being written: at first in memory of the caller's, then on the heap. */
typedef struct draft {
    char *data;
    size_t size, capacity;
    char *heap; /* or NULL */
} draft;

static inline void draft_init(draft *made, char *room, size_t capacity)
{
    *made = (draft){.data = room, .capacity = capacity};
}

static inline void draft_clear(draft *made)
{
    if (made->heap) PyMem_Free(made->heap);
}

/** Make room for `more` bytes.  Returns whether there is, without an exception. */
int draft_grow(draft *out, size_t more);

enum {
    PLAIN_NAME_BYTES = 23,
    PLAIN_NAMES_LOG2 = 6,
};

/** Short strs that were read lately: the keys of dicts are few, and come again. */
typedef struct plain_names {
    struct plain_name {
        PyObject *text; /* or NULL, and size 0 */
        unsigned char size;
        char bytes[PLAIN_NAME_BYTES];
    } slots[1 << PLAIN_NAMES_LOG2];
} plain_names;

/** Write the item behind what is in `out`, as a message of FRAME_PLAIN.  Returns whether it is plain data; if not, or if there is no
 *  memory, nothing has been written.  Never raises, and runs no Python code. */
int plain_write(draft *out, PyObject *item);

/** The object in a message of FRAME_PLAIN.  NULL with an exception.  `names` may be NULL. */
PyObject *plain_read(const char *data, size_t size, plain_names *names);

void plain_names_clear(plain_names *names);

/* ---- frame.c ---- */

/** A message on its way into the queue: its parts, and what they lie in.  Made by letter_of_*(), ended by letter_clear().  One whose
 *  making failed holds nothing, and needs no clearing. */
typedef struct letter {
    const ringbuf_part *parts;
    size_t count;
    size_t size;
    PyObject *bytes;     /* or NULL */
    Py_buffer view;      /* of the item itself; view.obj may be NULL */
    struct frame *frame; /* or NULL */
    ringbuf_part own[2];
} letter;

/** The message is what was written down from `start` on, and stays there. */
void letter_of_draft(letter *made, const draft *written, size_t start);

/** The message is these bytes (a reference is taken over). */
void letter_of_bytes(letter *made, PyObject *bytes);

/** The message is what `item` shows through the buffer interface, as it lies there if it can be.  0, or -1 with an exception: where
 *  it shows nothing, a TypeError that begins with `refusal`. */
int letter_of_buffer(letter *made, PyObject *item, const char *refusal);

/** The message is the content of `item`, a bytes or bytearray, behind a head.  0, or -1 with an exception. */
int letter_of_content(letter *made, PyObject *item);

/** The message is this pickle (a reference is taken over, also on failure), and these buffers behind it.  0, or -1 with an exception. */
int letter_of_frame(letter *made, PyObject *pickle, PyObject *buffers);

void letter_clear(letter *made);

/** A callback for pickling, which puts the buffers that are to stay outside the pickle into `buffers`, a list. */
PyObject *frame_gatherer(PyObject *buffers);

enum frame_kind {
    FRAME_NONE = 0,
    FRAME_BUFFERS = 1,
    FRAME_BYTES = 2,
    FRAME_BYTEARRAY = 3,
    FRAME_PLAIN = 4, /* and the version of what follows */
};

enum {
    FRAME_HEAD_BYTES = 16,
    FRAME_ALIGNMENT = 64,
};

/** What a message is that begins with `byte`. */
static inline enum frame_kind frame_kind_of(unsigned char byte)
{
    return byte >= FRAME_BUFFERS && byte <= FRAME_PLAIN ? (enum frame_kind)byte : FRAME_NONE;
}

/** Where the content of a FRAME_BYTES or FRAME_BYTEARRAY begins, whose first `known` bytes are at `head`.  -1 with an exception:
 *  malformed. */
Py_ssize_t frame_content(const char *head, Py_ssize_t known, Py_ssize_t size);

/** The object in a FRAME_BUFFERS message, which lies at `data` and which `whole` is a memoryview of.  NULL with an exception. */
PyObject *frame_load(PyObject *loads, const char *data, Py_ssize_t size, PyObject *whole);

/* ---- taken.c ---- */

/** A message that is neither acknowledged nor given back; the latter happens when the object goes. */
typedef struct taken {
    PyObject_HEAD
    PyObject *keeper; /* keeps the handle from being freed */
    ringbuf *rb;
    block *lying;     /* where its object's buffers lie, or NULL */
    ringbuf_message message;
    pid_t pid;
    int ended;
} taken;

/** As block_install(). */
int taken_install(PyObject *module);

/** NULL with an exception. */
taken *taken_new(PyObject *keeper, ringbuf *rb);

/* ---- clock.c ---- */

/** As block_install(). */
int clock_install(PyObject *module);

#endif
