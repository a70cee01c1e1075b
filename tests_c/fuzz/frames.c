/* frames.c — fuzz target: python/plain.c and python/frame.c, which read bytes of a segment, in an interpreter of its own.
 *
 * The input is a message.  Read as plain data and as a frame it gives an object or a ValueError (of a str a UnicodeDecodeError, which is
 * one, of a dict's key a TypeError); what a frame hands to the unpickler are views that lie within the message, one behind another.
 * And what was read as plain data is written and read again without a change. */
#include "binding.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

#define FUZZ_CHECK(condition)                                                                                             \
    do {                                                                                                                  \
        if (!(condition)) {                                                                                               \
            fprintf(stderr, "fuzz target: not so: %s\n", #condition);                                                     \
            PyErr_Print();                                                                                                \
            abort();                                                                                                      \
        }                                                                                                                 \
    } while (0)

/* What an interpreter makes once and keeps is no leak; and what it leaks otherwise, the Python tests would see. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static const char *message;
static size_t message_bytes;
static PyObject *loads;
static plain_names names; /* as a port has them: what one message leaves behind, the next one meets */

static Py_ssize_t check_view(PyObject *view, Py_ssize_t from)
{
    Py_buffer seen;
    FUZZ_CHECK(PyObject_GetBuffer(view, &seen, PyBUF_SIMPLE) == 0);
    Py_ssize_t at = from;
    if (seen.len) {
        at = (const char *)seen.buf - message;
        FUZZ_CHECK(at >= from && (size_t)(at + seen.len) <= message_bytes);
    }
    Py_ssize_t end = at + seen.len;
    PyBuffer_Release(&seen);
    return end;
}

/** In the place of pickle.loads: (pickle, buffers=) -> the buffers. */
static PyObject *note_what_is_loaded(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords)
{
    (void)self;
    FUZZ_CHECK(count == 1 && PyTuple_Size(keywords) == 1);
    Py_ssize_t position = check_view(arguments[0], FRAME_HEAD_BYTES);
    for (Py_ssize_t number = 0; number < PyList_Size(arguments[1]); number++)
        position = check_view(PyList_GetItem(arguments[1], number), position);
    return Py_NewRef(arguments[1]);
}

/** An object, or an error that says what is wrong with the message. */
static bool is_good(PyObject *item)
{
    FUZZ_CHECK(!item == !!PyErr_Occurred());
    if (item) return true;
    FUZZ_CHECK(PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_TypeError));
    PyErr_Clear();
    return false;
}

static void read_again(PyObject *item)
{
    draft first, second;
    char room[64];
    draft_init(&first, room, sizeof room);
    if (!plain_write(&first, item)) { /* a long str or bytes twice is left to pickle */
        draft_clear(&first);
        return;
    }
    PyObject *again = plain_read(first.data, first.size, NULL);
    FUZZ_CHECK(again);
    char more[64];
    draft_init(&second, more, sizeof more);
    FUZZ_CHECK(plain_write(&second, again));
    FUZZ_CHECK(first.size == second.size && !memcmp(first.data, second.data, first.size));
    Py_DECREF(again);
    draft_clear(&first);
    draft_clear(&second);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.allocator = PYMEM_ALLOCATOR_MALLOC; /* whose blocks AddressSanitizer watches */
    FUZZ_CHECK(!PyStatus_Exception(Py_PreInitialize(&before)));
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.install_signal_handlers = 0;
    FUZZ_CHECK(!PyStatus_Exception(Py_InitializeFromConfig(&config)));
    PyConfig_Clear(&config);
    static PyMethodDef method = {"loads", (PyCFunction)(void (*)(void))note_what_is_loaded, METH_FASTCALL | METH_KEYWORDS, NULL};
    FUZZ_CHECK(loads = PyCFunction_New(&method, NULL));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0; /* that is no frame; port.c knows */
    message = (const char *)data;
    message_bytes = size;
    PyObject *item = plain_read(message, size, size & 1 ? &names : NULL);
    if (is_good(item)) read_again(item);
    Py_XDECREF(item);
    PyObject *whole = PyMemoryView_FromMemory((char *)(uintptr_t)data, (Py_ssize_t)size, PyBUF_READ);
    FUZZ_CHECK(whole);
    item = frame_load(loads, message, (Py_ssize_t)size, whole);
    is_good(item);
    Py_XDECREF(item);
    Py_DECREF(whole);
    Py_ssize_t known = size < FRAME_HEAD_BYTES ? (Py_ssize_t)size : FRAME_HEAD_BYTES;
    Py_ssize_t start = frame_content(message, known, (Py_ssize_t)size);
    FUZZ_CHECK((start < 0) == !!PyErr_Occurred() && start <= (Py_ssize_t)size);
    PyErr_Clear();
    return 0;
}
