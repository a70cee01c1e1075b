/* harness.h — what the fuzz targets share: reading an input, a directory of their own, a clock that they wind, and memory that is watched.
 *
 * A target is a file with LLVMFuzzerTestOneInput().  libFuzzer drives it (.ci/fuzz), and so does replay.c, in every preset.
 *
 * An input decides everything.  Nothing here sleeps or reads a real clock: the linker puts functions of harness.c in the place of the
 * platform's (CMakeLists.txt names them), so that a wait for a second costs nothing and ends in the same way every time.
 *
 * Memory of a file is mmap'ed, of which AddressSanitizer knows nothing.  So every mapping that the library makes gets pages around it
 * that nobody may touch, and fuzz_watch() poisons what lies unused between the regions of a queue. */
#ifndef FUZZ_HARNESS_H
#define FUZZ_HARNESS_H

#include "segment.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

/** A finding. */
_Noreturn void fuzz_fail(const char *what, int64_t number);

#define FUZZ_CHECK(condition, number)                                                                                     \
    do {                                                                                                                  \
        if (!(condition)) fuzz_fail(#condition, (int64_t)(number));                                                       \
    } while (0)

/* ---- reading an input: behind its end there are zeros ---- */

struct input {
    const uint8_t *at;
    size_t left;
};

static inline bool input_ended(const struct input *input) { return input->left == 0; }

static inline uint64_t input_number(struct input *input, uint32_t bytes)
{
    uint64_t number = 0;
    for (uint32_t i = 0; i < bytes && input->left; i++, input->left--) number |= (uint64_t)*input->at++ << (8 * i);
    return number;
}

static inline uint8_t input_byte(struct input *input) { return (uint8_t)input_number(input, 1); }
static inline uint32_t input_below(struct input *input, uint32_t bound) { return input_byte(input) % bound; }

/** The next `most` bytes at most, as a string of exactly that size; to be freed. */
char *input_string(struct input *input, size_t most);

/* ---- the directory ---- */

/** Made at the first call, below $SAGE_QUEUE_DIR or /dev/shm; removed when the process ends. */
const char *fuzz_directory(void);
void fuzz_empty_directory(void);

/* ---- time ---- */

/** It goes on a little whenever somebody looks, and by so many nanoseconds here. */
void fuzz_pass_time(int64_t ns);

/** Called when the library is about to sleep until `deadline_ns`: returns what the sleep is to return, with the clock put on if it
 *  is RINGBUF_E_TIMEOUT. */
extern ringbuf_status (*fuzz_sleep)(int64_t deadline_ns);

/* ---- memory and descriptors ---- */

/** Poison what lies unused between the regions of this mapped queue, until it is unmapped. */
void fuzz_watch(const ringbuf *rb);

/** Read it: of every cache line a byte, and the last. */
void fuzz_read(const void *data, size_t size);

/** Before and after an input: as many mappings and open descriptors as before. */
void fuzz_begin(void);
void fuzz_end(void);

/** The stamp's checksum, anew. */
void fuzz_sign(struct rbi_stamp *stamp);

#endif
