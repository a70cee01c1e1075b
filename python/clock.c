/* clock.c — the time as deadlines have it, for Python.
 *
 * Not Python's own time.monotonic_ns: libraries for tests (freezegun, time-machine) replace it, and a deadline in their time, which stands
 * still or lies in 1970, would never come in the kernel's. */
#include "binding.h"

static PyObject *now_ns(PyObject *module, PyObject *nothing)
{
    (void)module, (void)nothing;
    return PyLong_FromLongLong(ringbuf_now_ns());
}

int clock_install(PyObject *module)
{
    static PyMethodDef method = {"now_ns", now_ns, METH_NOARGS, "now_ns() -> CLOCK_MONOTONIC in nanoseconds, whatever the time module says."};
    PyObject *function = PyCFunction_New(&method, NULL);
    int result = function ? PyObject_SetAttrString(module, "now_ns", function) : -1;
    Py_XDECREF(function);
    return result;
}
