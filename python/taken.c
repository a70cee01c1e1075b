/* taken.c — a message that is being worked on: leased, and neither acknowledged nor given back.
 *
 * An object, so that there is no instruction at which an interrupted program has the message and nobody to give it back: what is
 * dropped gives it back by itself. */
#include "binding.h"

#include <unistd.h>

static PyTypeObject *taken_type;

taken *taken_new(PyObject *keeper, ringbuf *rb)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(taken_type, Py_tp_alloc);
    taken *made = (taken *)allocate(taken_type, 0);
    if (!made) return NULL;
    made->keeper = Py_NewRef(keeper);
    made->rb = rb;
    made->lying = NULL;
    made->pid = getpid();
    made->ended = 1; /* until there is a message */
    return made;
}

/** The parent's messages stay the parent's. */
static ringbuf_status end(taken *self)
{
    if (self->ended || self->pid != getpid()) return RINGBUF_E_INVALID;
    self->ended = 1;
    return RINGBUF_OK;
}

static void forget(taken *self)
{
    block *lying = self->lying;
    self->lying = NULL;
    block_end_views(lying); /* unless it was kept: in a forked child it is the parent's */
    Py_XDECREF((PyObject *)lying);
}

static PyObject *taken_ack(PyObject *object, PyObject *nothing)
{
    (void)nothing;
    taken *self = (taken *)object;
    ringbuf_status status = end(self);
    if (status == RINGBUF_OK) status = block_finish(self->rb, &self->message, self->lying);
    forget(self);
    return PyLong_FromLong(status);
}

static PyObject *taken_nack(PyObject *object, PyObject *nothing)
{
    (void)nothing;
    taken *self = (taken *)object;
    ringbuf_status status = end(self);
    if (status == RINGBUF_OK) status = block_give_back(self->rb, &self->message, self->lying);
    forget(self);
    return PyLong_FromLong(status);
}

static PyObject *taken_attempts(PyObject *object, void *nothing)
{
    (void)nothing;
    return PyLong_FromUnsignedLong(((taken *)object)->message.attempts);
}

static void taken_dealloc(PyObject *object)
{
    taken *self = (taken *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (end(self) == RINGBUF_OK) block_give_back(self->rb, &self->message, self->lying);
    forget(self);
    Py_DECREF(self->keeper);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"ack", taken_ack, METH_NOARGS, "ack() -> status: the message is done; its bytes stay for those who look at them."},
    {"nack", taken_nack, METH_NOARGS, "nack() -> status: the message goes back to the queue."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef members[] = {
    {"attempts", taken_attempts, NULL, "how often the message has been taken, this time included", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_dealloc, taken_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, members},
    {Py_tp_doc, "A message that was taken; given back if the object goes first."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "sage_queue._ringbuf.Taken",
    .basicsize = sizeof(taken),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int taken_install(PyObject *module)
{
    if (!taken_type) taken_type = (PyTypeObject *)PyType_FromSpec(&spec); /* once, as in block_install() */
    return taken_type ? PyObject_SetAttrString(module, "Taken", (PyObject *)taken_type) : -1;
}
