/* plain.c — plain data to bytes and back, without pickle: dict, list, tuple, str, bytes, bytearray, int, float, bool, None.
 *
 * Pickling the seed's small dict costs more than the queue does, most of it for machinery that plain data does not need: a pickler
 * object, a memo of everything, a table of functions, opcodes.  docs/decisions/0013-plain-data.md has the measurements.
 *
 * What comes out is what pickle would have given.  So only exact types are written here, of ints those of 64 bits, of strs those
 * without lone surrogates; all else is left to pickle, and the message as a whole with it.  pickle also keeps it when one object
 * is there twice.  For what can be changed (and for tuples, which may hold such) that is seen afterwards, so it is left to pickle, too:
 * what has a single reference cannot be there twice, and what has more is remembered.  Long strs and bytes are remembered, for
 * repeated they could make a message far larger than a pickle.
 *
 * Writing runs no Python code, so nothing changes meanwhile.  Reading trusts nothing: every byte that an element takes is taken from
 * those that are left, each element of a container is paid for when its count is read, and each number is read once.
 *
 * The format is a tag for each value, then what the tag says; numbers are little-endian on every machine that this runs on:
 *
 *     00-7f  an int, 0 to 127              f0  None                     f7  str      size:4, UTF-8
 *     80-bf  a str of 0 to 63 bytes UTF-8  f1  False                    f8  bytes    size:1, bytes
 *     c0-cf  a list of 0 to 15             f2  True                     f9  bytes    size:4, bytes
 *     d0-df  a tuple of 0 to 15            f3  int, 2 bytes, signed     fa  bytearray size:4, bytes
 *     e0-ef  a dict of 0 to 15 pairs       f4  int, 4 bytes             fb  list     count:4, values
 *            of a key and a value          f5  int, 8 bytes             fc  tuple    count:4, values
 *                                          f6  float, 8 bytes           fd  dict     count:4, pairs */
#include "binding.h"

enum {
    DEPTH_MOST = 32,   /* what is nested deeper is pickled */
    SEEN_SLOTS = 64,   /* a power of two; */
    SEEN_MOST = 48,    /* with more objects that could be there twice, it is pickled */
    LONG_BYTES = 64,   /* strs and bytes from this size on are remembered */
};

enum {
    TAG_STR = 0x80,
    TAG_LIST = 0xc0,
    TAG_TUPLE = 0xd0,
    TAG_DICT = 0xe0,
    TAG_NONE = 0xf0,
    TAG_FALSE,
    TAG_TRUE,
    TAG_INT_2,
    TAG_INT_4,
    TAG_INT_8,
    TAG_FLOAT,
    TAG_STR_4,
    TAG_BYTES_1,
    TAG_BYTES_4,
    TAG_BYTEARRAY_4,
    TAG_LIST_4,
    TAG_TUPLE_4,
    TAG_DICT_4,
};

/* Of the stable part of the API, these are functions. */
#ifdef Py_LIMITED_API
#define LIST_ITEM PyList_GetItem
#define TUPLE_ITEM PyTuple_GetItem
#define LIST_SET PyList_SetItem
#define TUPLE_SET PyTuple_SetItem
#define LIST_SIZE PyList_Size
#define TUPLE_SIZE PyTuple_Size
#define FLOAT_VALUE PyFloat_AsDouble
#else
#define LIST_ITEM PyList_GET_ITEM
#define TUPLE_ITEM PyTuple_GET_ITEM
#define LIST_SET PyList_SET_ITEM
#define TUPLE_SET PyTuple_SET_ITEM
#define LIST_SIZE PyList_GET_SIZE
#define TUPLE_SIZE PyTuple_GET_SIZE
#define FLOAT_VALUE PyFloat_AS_DOUBLE
#endif

/* ---- drafts ---- */

int draft_grow(draft *out, size_t more)
{
    size_t capacity = out->capacity * 2;
    if (more > SIZE_MAX / 4 || out->size > SIZE_MAX / 4) return 0;
    if (capacity < out->size + more) capacity = out->size + more;
    char *data = PyMem_Realloc(out->heap, capacity);
    if (!data) return 0;
    if (!out->heap) memcpy(data, out->data, out->size);
    out->heap = out->data = data;
    out->capacity = capacity;
    return 1;
}

/* ---- out ---- */

struct writer {
    draft *out;
    PyObject *first;            /* that could be there twice: mostly the item as a whole, and the only one */
    int seen_count;
    PyObject *seen[SEEN_SLOTS]; /* by address; anything while seen_count is 0 */
};

/** Whether `item`, which has other references than this one, is met for the first time (and the table has room to remember that). */
static int is_new(struct writer *writer, PyObject *item)
{
    if (!writer->first) {
        writer->first = item;
        return 1;
    }
    if (item == writer->first || writer->seen_count == SEEN_MOST) return 0;
    if (writer->seen_count++ == 0) memset(writer->seen, 0, sizeof writer->seen);
    size_t slot = (size_t)(((uint64_t)(uintptr_t)item >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 58);
    for (; writer->seen[slot]; slot = (slot + 1) % SEEN_SLOTS)
        if (writer->seen[slot] == item) return 0;
    writer->seen[slot] = item;
    return 1;
}

/** Whether `item` may be written here, as far as being there twice goes. */
static inline int may_write(struct writer *writer, PyObject *item) { return Py_REFCNT(item) == 1 || is_new(writer, item); }

/** Room for `bytes` more, or NULL. */
static inline char *extend(draft *out, size_t bytes)
{
    if (out->capacity - out->size < bytes && !draft_grow(out, bytes)) return NULL;
    char *to = out->data + out->size;
    out->size += bytes;
    return to;
}

static inline int write_number(draft *out, unsigned char tag, const void *number, size_t bytes)
{
    char *to = extend(out, 1 + bytes);
    if (!to) return 0;
    *to = (char)tag;
    memcpy(to + 1, number, bytes);
    return 1;
}

static inline int write_tag(draft *out, unsigned char tag) { return write_number(out, tag, &tag, 0); }

static inline int write_content(draft *out, unsigned char tag, const char *content, size_t size)
{
    if (size > UINT32_MAX) return 0;
    char *to = extend(out, 5 + size);
    if (!to) return 0;
    uint32_t size4 = (uint32_t)size;
    *to = (char)tag;
    memcpy(to + 1, &size4, 4);
    memcpy(to + 5, content, size);
    return 1;
}

/** The head of a container: its count in the tag if it is small. */
static inline int write_count(draft *out, unsigned char small, unsigned char large, Py_ssize_t count)
{
    if (count < 16) return write_tag(out, (unsigned char)(small + count));
    uint32_t count4 = (uint32_t)count;
    return (size_t)count <= UINT32_MAX && write_number(out, large, &count4, 4);
}

static int write_str(struct writer *writer, PyObject *item)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(item, &size); /* keeps the UTF-8 of what is not ASCII, as it does for pickle */
    if (!text) {
        PyErr_Clear(); /* a lone surrogate */
        return 0;
    }
    if (size >= LONG_BYTES) return may_write(writer, item) && write_content(writer->out, TAG_STR_4, text, (size_t)size);
    char *to = extend(writer->out, 1 + (size_t)size);
    if (!to) return 0;
    *to = (char)(TAG_STR + size);
    memcpy(to + 1, text, (size_t)size);
    return 1;
}

static int write_int(draft *out, PyObject *item)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow) return 0;
    if (value >= 0 && value < TAG_STR) return write_tag(out, (unsigned char)value);
    if (value == (int16_t)value) return write_number(out, TAG_INT_2, &(int16_t){(int16_t)value}, 2);
    if (value == (int32_t)value) return write_number(out, TAG_INT_4, &(int32_t){(int32_t)value}, 4);
    return write_number(out, TAG_INT_8, &(int64_t){value}, 8);
}

static int write_bytes(struct writer *writer, PyObject *item)
{
    size_t size = (size_t)PyBytes_Size(item);
    const char *content = PyBytes_AsString(item);
    if (size >= LONG_BYTES) return may_write(writer, item) && write_content(writer->out, TAG_BYTES_4, content, size);
    char *to = extend(writer->out, 2 + size);
    if (!to) return 0;
    to[0] = (char)TAG_BYTES_1;
    to[1] = (char)size;
    memcpy(to + 2, content, size);
    return 1;
}

static int write_value(struct writer *writer, PyObject *item, int depth);

static int write_container(struct writer *writer, PyObject *item, int depth)
{
    draft *out = writer->out;
#ifdef Py_GIL_DISABLED
    return 0; /* others could change it meanwhile */
#endif
    if (PyDict_CheckExact(item)) {
        if (depth == 0 || !may_write(writer, item) || !write_count(out, TAG_DICT, TAG_DICT_4, PyDict_Size(item))) return 0;
        PyObject *key, *value;
        Py_ssize_t position = 0;
        while (PyDict_Next(item, &position, &key, &value))
            if (!write_value(writer, key, depth - 1) || !write_value(writer, value, depth - 1)) return 0;
        return 1;
    }
    if (PyList_CheckExact(item)) {
        Py_ssize_t count = LIST_SIZE(item);
        if (depth == 0 || !may_write(writer, item) || !write_count(out, TAG_LIST, TAG_LIST_4, count)) return 0;
        for (Py_ssize_t number = 0; number < count; number++)
            if (!write_value(writer, LIST_ITEM(item, number), depth - 1)) return 0;
        return 1;
    }
    if (PyTuple_CheckExact(item)) {
        Py_ssize_t count = TUPLE_SIZE(item);
        if (depth == 0 || (count && !may_write(writer, item)) || !write_count(out, TAG_TUPLE, TAG_TUPLE_4, count)) return 0;
        for (Py_ssize_t number = 0; number < count; number++)
            if (!write_value(writer, TUPLE_ITEM(item, number), depth - 1)) return 0;
        return 1;
    }
    if (!PyByteArray_CheckExact(item)) return 0;
    size_t size = (size_t)PyByteArray_Size(item);
    return may_write(writer, item) && write_content(out, TAG_BYTEARRAY_4, PyByteArray_AsString(item), size);
}

static int write_value(struct writer *writer, PyObject *item, int depth)
{
    PyTypeObject *type = Py_TYPE(item);
    if (type == &PyUnicode_Type) return write_str(writer, item);
    if (type == &PyLong_Type) return write_int(writer->out, item);
    if (item == Py_None) return write_tag(writer->out, TAG_NONE);
    if (type == &PyFloat_Type) return write_number(writer->out, TAG_FLOAT, &(double){FLOAT_VALUE(item)}, 8);
    if (type == &PyBool_Type) return write_tag(writer->out, item == Py_True ? TAG_TRUE : TAG_FALSE);
    if (type == &PyBytes_Type) return write_bytes(writer, item);
    return write_container(writer, item, depth);
}

int plain_write(draft *out, PyObject *item)
{
    struct writer writer; /* not initialised as a whole: most of it is the table, which few need */
    writer.out = out;
    writer.first = NULL;
    writer.seen_count = 0;
    size_t before = out->size;
    if (write_tag(out, FRAME_PLAIN) && write_value(&writer, item, DEPTH_MOST)) return 1;
    out->size = before;
    return 0;
}

/* ---- in ---- */

struct reader {
    const unsigned char *at;
    size_t left;              /* bytes that no element has been promised: every value's tag is paid for before it is read */
    plain_names *names;
};

static void *malformed(const char *why)
{
    PyErr_Format(PyExc_ValueError, "malformed message: %s", why);
    return NULL;
}

/** Take `bytes` from those that are left. */
static inline const unsigned char *take(struct reader *reader, size_t bytes)
{
    if (reader->left < bytes) return malformed("plain data reaches beyond its end");
    const unsigned char *at = reader->at;
    reader->left -= bytes;
    reader->at += bytes;
    return at;
}

/** A content whose size is in four bytes. */
static inline const char *take_content(struct reader *reader, Py_ssize_t *size)
{
    uint32_t size4;
    const unsigned char *at = take(reader, 4);
    if (!at) return NULL;
    memcpy(&size4, at, 4);
    *size = (Py_ssize_t)size4;
    return (const char *)take(reader, size4);
}

/** Pay for `count` values. */
static inline int promise(struct reader *reader, size_t count)
{
    if (reader->left < count) return malformed("plain data with more elements than it can hold") != NULL;
    reader->left -= count;
    return 1;
}

static inline int take_count(struct reader *reader, uint32_t *count)
{
    const unsigned char *at = take(reader, 4);
    if (at) memcpy(count, at, 4);
    return at != NULL;
}

static PyObject *read_value(struct reader *reader, int depth);

static PyObject *read_list(struct reader *reader, uint32_t count, int depth)
{
    if (depth == 0) return malformed("plain data that is nested too deep");
    PyObject *list = promise(reader, count) ? PyList_New((Py_ssize_t)count) : NULL;
    for (uint32_t number = 0; list && number < count; number++) {
        PyObject *each = read_value(reader, depth - 1);
        if (each) LIST_SET(list, (Py_ssize_t)number, each);
        else Py_CLEAR(list);
    }
    return list;
}

static PyObject *read_tuple(struct reader *reader, uint32_t count, int depth)
{
    if (depth == 0) return malformed("plain data that is nested too deep");
    PyObject *tuple = promise(reader, count) ? PyTuple_New((Py_ssize_t)count) : NULL;
    for (uint32_t number = 0; tuple && number < count; number++) {
        PyObject *each = read_value(reader, depth - 1);
        if (each) TUPLE_SET(tuple, (Py_ssize_t)number, each);
        else Py_CLEAR(tuple);
    }
    return tuple;
}

static inline PyObject *new_str(const unsigned char *text, size_t size)
{
    return PyUnicode_FromStringAndSize((const char *)text, (Py_ssize_t)size);
}

/** A str that is likely to have been read before: a new reference to the same object, if it is among the names. */
static PyObject *read_name(struct reader *reader, size_t size)
{
    const unsigned char *text = take(reader, size);
    if (!text || size == 0 || size > PLAIN_NAME_BYTES || !reader->names) return text ? new_str(text, size) : NULL;
    uint32_t begin = 0, end = 0;
    if (size >= 4) {
        memcpy(&begin, text, 4);
        memcpy(&end, text + size - 4, 4);
    } else {
        begin = (uint32_t)text[0] | (uint32_t)text[size / 2] << 8 | (uint32_t)text[size - 1] << 16;
    }
    uint32_t mixed = (begin * 31 + end + (uint32_t)size) * UINT32_C(0x9e3779b1);
    struct plain_name *name = &reader->names->slots[mixed >> (32 - PLAIN_NAMES_LOG2)];
    if (name->size == size && !memcmp(name->bytes, text, size)) return Py_NewRef(name->text);
    PyObject *made = new_str(text, size);
    if (!made) return NULL;
    Py_XDECREF(name->text); /* a str: nothing else happens */
    name->text = Py_NewRef(made);
    name->size = (unsigned char)size;
    memcpy(name->bytes, text, size);
    return made;
}

static PyObject *read_key(struct reader *reader, int depth)
{
    unsigned char tag = *reader->at;
    if (tag < TAG_STR || tag >= TAG_LIST) return read_value(reader, depth);
    reader->at++;
    return read_name(reader, tag - TAG_STR);
}

static PyObject *read_dict(struct reader *reader, uint32_t count, int depth)
{
    if (depth == 0) return malformed("plain data that is nested too deep");
    PyObject *dict = promise(reader, 2 * (size_t)count) ? PyDict_New() : NULL;
    for (uint32_t number = 0; dict && number < count; number++) {
        PyObject *key = read_key(reader, depth - 1);
        PyObject *value = key ? read_value(reader, depth - 1) : NULL;
        if (!value || PyDict_SetItem(dict, key, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

/** A value that begins with a tag which says no more than what follows. */
static PyObject *read_other(struct reader *reader, unsigned char tag, int depth)
{
    const unsigned char *at;
    const char *content;
    Py_ssize_t size;
    uint32_t count;
    switch (tag) {
    case TAG_NONE: return Py_NewRef(Py_None);
    case TAG_FALSE: return Py_NewRef(Py_False);
    case TAG_TRUE: return Py_NewRef(Py_True);
    case TAG_INT_2: {
        int16_t value;
        if (!(at = take(reader, sizeof value))) return NULL;
        memcpy(&value, at, sizeof value);
        return PyLong_FromLong(value);
    }
    case TAG_INT_4: {
        int32_t value;
        if (!(at = take(reader, sizeof value))) return NULL;
        memcpy(&value, at, sizeof value);
        return PyLong_FromLong(value);
    }
    case TAG_INT_8: {
        int64_t value;
        if (!(at = take(reader, sizeof value))) return NULL;
        memcpy(&value, at, sizeof value);
        return PyLong_FromLongLong(value);
    }
    case TAG_FLOAT: {
        double value;
        if (!(at = take(reader, sizeof value))) return NULL;
        memcpy(&value, at, sizeof value);
        return PyFloat_FromDouble(value);
    }
    case TAG_STR_4:
        return (content = take_content(reader, &size)) ? PyUnicode_FromStringAndSize(content, size) : NULL;
    case TAG_BYTES_1:
        if (!(at = take(reader, 1))) return NULL;
        size = *at;
        return (at = take(reader, (size_t)size)) ? PyBytes_FromStringAndSize((const char *)at, size) : NULL;
    case TAG_BYTES_4:
        return (content = take_content(reader, &size)) ? PyBytes_FromStringAndSize(content, size) : NULL;
    case TAG_BYTEARRAY_4:
        return (content = take_content(reader, &size)) ? PyByteArray_FromStringAndSize(content, size) : NULL;
    case TAG_LIST_4: return take_count(reader, &count) ? read_list(reader, count, depth) : NULL;
    case TAG_TUPLE_4: return take_count(reader, &count) ? read_tuple(reader, count, depth) : NULL;
    case TAG_DICT_4: return take_count(reader, &count) ? read_dict(reader, count, depth) : NULL;
    }
    return malformed("plain data of an unknown kind");
}

/** Read a value, whose tag has been paid for. */
static PyObject *read_value(struct reader *reader, int depth)
{
    unsigned char tag = *reader->at++;
    if (tag < TAG_STR) return PyLong_FromLong(tag);
    if (tag < TAG_LIST) {
        const unsigned char *text = take(reader, tag - TAG_STR);
        return text ? new_str(text, tag - TAG_STR) : NULL;
    }
    if (tag >= TAG_NONE) return read_other(reader, tag, depth);
    if (tag < TAG_TUPLE) return read_list(reader, tag - TAG_LIST, depth);
    return tag < TAG_DICT ? read_tuple(reader, tag - TAG_TUPLE, depth) : read_dict(reader, tag - TAG_DICT, depth);
}

PyObject *plain_read(const char *data, size_t size, plain_names *names)
{
    if (size < 2) return malformed("plain data without a value");
    struct reader reader = {.at = (const unsigned char *)data + 1, .left = size - 2, .names = names};
    PyObject *item = read_value(&reader, DEPTH_MOST);
    if (item && reader.left) {
        Py_DECREF(item);
        return malformed("plain data that goes on behind its end");
    }
    return item;
}

void plain_names_clear(plain_names *names)
{
    for (size_t slot = 0; slot < sizeof names->slots / sizeof *names->slots; slot++) Py_CLEAR(names->slots[slot].text);
}
