/* block.c — memory that Python objects look at, and that lives as long as they do.
 *
 * One type for private memory and for a queue's, because what looks at it is the same: memoryviews, and through them arrays.  It is
 * theirs alone to keep it: the queue may be closed and gone, and the last view may die in any thread, in a forked child or at the
 * interpreter's end.  The C library allows for all of these: release, abort and unpin may come at any time. */
#include "binding.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    HUGE_PAGE_BYTES = 2 * 1024 * 1024,
    HUGE_BYTES = 32 * 1024 * 1024, /* what is smaller comes from malloc's heap, touched before, once malloc has got used to it */
};

static PyTypeObject *block_type;

void prefer_huge_pages(char *data, size_t size)
{
    if (size < HUGE_BYTES) return;
    uintptr_t start = ((uintptr_t)data + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)data + size) & ~(uintptr_t)4095;
    madvise((void *)start, end - start, MADV_HUGEPAGE); /* a wish: no matter what comes of it */
}

static block *new_block(enum block_kind kind, char *data, Py_ssize_t size, int readonly)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(block_type, Py_tp_alloc);
    block *made = (block *)allocate(block_type, 0);
    if (!made) return NULL;
    made->kind = kind;
    made->data = data;
    made->size = size;
    made->readonly = readonly;
    return made;
}

block *block_private(Py_ssize_t size, int readonly)
{
    void *data;
    if (posix_memalign(&data, size < HUGE_BYTES ? 64 : HUGE_PAGE_BYTES, size ? (size_t)size : 1)) {
        PyErr_NoMemory();
        return NULL;
    }
    prefer_huge_pages(data, (size_t)size);
    block *made = new_block(BLOCK_PRIVATE, data, size, readonly);
    if (!made) free(data);
    return made;
}

block *block_of_message(ringbuf *rb, const ringbuf_message *message, int readonly, ringbuf_status *status)
{
    if ((*status = ringbuf_pin(rb)) != RINGBUF_OK) return NULL;
    block *made = new_block(BLOCK_PINNED, (char *)(uintptr_t)message->data, (Py_ssize_t)message->size, readonly);
    if (!made) {
        ringbuf_unpin(rb);
        return NULL;
    }
    made->rb = rb;
    made->message = *message;
    return made;
}

block *block_of_reservation(ringbuf *rb, const ringbuf_reservation *reservation)
{
    block *made = new_block(BLOCK_RESERVED, reservation->data, (Py_ssize_t)reservation->size, 0);
    if (!made) {
        ringbuf_abort(rb, reservation);
        return NULL;
    }
    made->rb = rb;
    made->reservation = *reservation;
    return made;
}

block *block_reserved(PyObject *object)
{
    if (Py_IS_TYPE(object, block_type) && ((block *)object)->kind == BLOCK_RESERVED) return (block *)object;
    PyErr_SetString(PyExc_ValueError, "not an open reservation");
    return NULL;
}

ringbuf_status block_finish(ringbuf *rb, const ringbuf_message *message, block *lying)
{
    if (!lying || lying->kind != BLOCK_PINNED) return ringbuf_ack(rb, message);
    if (lying->exports == 0) {
        block_end_views(lying); /* somebody may have kept the block itself, and the next message may lie there as soon as this is acknowledged */
        return ringbuf_ack(rb, message);
    }
    ringbuf_status status = ringbuf_keep(rb, message);
    if (status == RINGBUF_OK) {
        lying->kind = BLOCK_KEPT;
        ringbuf_unpin(rb);
    } else {
        block_end_views(lying);
    }
    return status;
}

ringbuf_status block_give_back(ringbuf *rb, const ringbuf_message *message, block *lying)
{
    block_end_views(lying);
    return ringbuf_nack(rb, message);
}

void block_end_views(block *lying)
{
    if (!lying || lying->kind != BLOCK_PINNED) return;
    lying->over = 1;
    if (lying->exports) return;
    lying->kind = BLOCK_OVER;
    ringbuf_unpin(lying->rb);
}

void block_committed(block *self)
{
    self->kind = BLOCK_PINNED;
    block_end_views(self);
}

PyObject *block_view(block *self) { return PyMemoryView_FromObject((PyObject *)self); }

static void block_dealloc(PyObject *object)
{
    block *self = (block *)object;
    PyTypeObject *type = Py_TYPE(object);
    switch (self->kind) {
    case BLOCK_PRIVATE: free(self->data); break;
    case BLOCK_PINNED: ringbuf_unpin(self->rb); break;
    case BLOCK_KEPT: ringbuf_release(self->rb, &self->message); break;
    case BLOCK_RESERVED: ringbuf_abort(self->rb, &self->reservation); break;
    case BLOCK_OVER: break;
    }
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int block_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    block *self = (block *)object;
    if (self->over) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "this memory is the queue's again");
        return -1;
    }
    int result = PyBuffer_FillInfo(view, object, self->data, self->size, self->readonly, flags);
    if (result == 0) self->exports++;
    return result;
}

static void block_releasebuffer(PyObject *object, Py_buffer *view)
{
    (void)view;
    ((block *)object)->exports--;
}

static PyType_Slot slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {Py_bf_releasebuffer, block_releasebuffer},
    {Py_tp_doc, "Memory, for as long as something looks at it."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "sage_queue._ringbuf.Block",
    .basicsize = sizeof(block),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int block_install(PyObject *module)
{
    /* For as long as the process lives; also if the module is imported anew, for old blocks must be known as what they are. */
    if (!block_type) block_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return block_type ? PyObject_SetAttrString(module, "Block", (PyObject *)block_type) : -1;
}
