/* harness.c — see harness.h. */
#include "harness.h"

#include "points.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

_Noreturn void fuzz_fail(const char *what, int64_t number)
{
    fprintf(stderr, "fuzz target: not so: %s (%lld)\n", what, (long long)number);
    abort();
}

char *input_string(struct input *input, size_t most)
{
    size_t size = input->left < most ? input->left : most;
    char *text = malloc(size + 1);
    FUZZ_CHECK(text, size);
    memcpy(text, input->at, size);
    text[size] = '\0';
    input->at += size;
    input->left -= size;
    return text;
}

/* ---- the directory ---- */

static char directory[PATH_MAX];

static void remove_directory(void)
{
    fuzz_empty_directory();
    rmdir(directory);
}

const char *fuzz_directory(void)
{
    if (*directory) return directory;
    const char *parent = getenv("SAGE_QUEUE_DIR");
    snprintf(directory, sizeof directory, "%s/ringbuf-fuzz-XXXXXX", parent && *parent ? parent : "/dev/shm");
    if (!mkdtemp(directory)) {
        perror(directory);
        exit(2);
    }
    atexit(remove_directory);
    return directory;
}

void fuzz_empty_directory(void)
{
    DIR *stream = opendir(fuzz_directory());
    if (!stream) return;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) != 0) unlinkat(dirfd(stream), entry->d_name, AT_REMOVEDIR);
    }
    closedir(stream);
}

/* ---- in the place of the platform's ---- */

int64_t __wrap_rbi_monotonic_ns(void);
int64_t __wrap_rbi_thread_ns(void);
uint64_t __wrap_rbi_realtime_ns(void);
ringbuf_status __wrap_rbi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns);
void __wrap_rbi_nap(int64_t ns);
uint32_t __wrap_rbi_processors(void);
ringbuf_status __wrap_rbi_random(void *bytes, size_t count);

enum { TICK_NS = 50000 };

static int64_t now_ns;
static uint8_t next_random;

ringbuf_status (*fuzz_sleep)(int64_t deadline_ns);

void fuzz_pass_time(int64_t ns) { now_ns += ns; }

int64_t __wrap_rbi_monotonic_ns(void) { return now_ns += TICK_NS; }

int64_t __wrap_rbi_thread_ns(void) { return now_ns; } /* so that a run can be repeated */

uint64_t __wrap_rbi_realtime_ns(void) { return (uint64_t)(now_ns += TICK_NS); }

ringbuf_status __wrap_rbi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns)
{
    now_ns += TICK_NS;
    if (rbi_load_total32(word) != expected) return RINGBUF_OK;
    if (deadline_ns <= now_ns) return RINGBUF_E_TIMEOUT;
    FUZZ_CHECK(deadline_ns != RINGBUF_FOREVER, 0); /* nobody would ever wake it */
    if (fuzz_sleep) return fuzz_sleep(deadline_ns);
    now_ns = deadline_ns;
    return RINGBUF_E_TIMEOUT;
}

void __wrap_rbi_nap(int64_t ns) { now_ns += ns; }

uint32_t __wrap_rbi_processors(void) { return 2; }

ringbuf_status __wrap_rbi_random(void *bytes, size_t count)
{
    memset(bytes, ++next_random, count);
    return RINGBUF_OK;
}

/* ---- mappings: with pages around each that nobody may touch ---- */

void *__real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t bytes);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t bytes);

enum { GUARD_BYTES = 1 << 20, MAPPINGS_MOST = 64 };

static struct {
    uint8_t *base;
    size_t bytes;
} mappings[MAPPINGS_MOST];

static bool is_watched; /* an input is being run: what is mapped now is the library's */

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    /* A mapping of the library begins with a range that is only held (platform/linux.c). */
    bool is_range = is_watched && !address && protection == PROT_NONE && fd == -1;
    if (!is_range) return __real_mmap(address, bytes, protection, flags, fd, offset);
    size_t number = 0;
    while (number < MAPPINGS_MOST && mappings[number].base) number++;
    FUZZ_CHECK(number < MAPPINGS_MOST, number);
    uint8_t *range = __real_mmap(NULL, bytes + 2 * GUARD_BYTES, PROT_NONE, flags, -1, 0);
    if (range == MAP_FAILED) return MAP_FAILED;
    mappings[number].base = range + GUARD_BYTES;
    mappings[number].bytes = bytes;
    return range + GUARD_BYTES;
}

int __wrap_munmap(void *address, size_t bytes)
{
    for (size_t number = 0; number < MAPPINGS_MOST; number++) {
        if (!mappings[number].base || mappings[number].base != address) continue;
        FUZZ_CHECK(mappings[number].bytes == bytes, bytes);
        mappings[number].base = NULL;
        ASAN_UNPOISON_MEMORY_REGION(address, bytes < UINT64_C(1) << 30 ? bytes : UINT64_C(1) << 30);
        return __real_munmap((uint8_t *)address - GUARD_BYTES, bytes + 2 * GUARD_BYTES);
    }
    return __real_munmap(address, bytes);
}

static void poison(const uint8_t *base, uint64_t from, uint64_t to)
{
    if (from < to && to < UINT64_C(1) << 30) ASAN_POISON_MEMORY_REGION(base + from, to - from);
}

void fuzz_watch(const ringbuf *rb)
{
    const struct rbi_stamp *stamp = &rb->stamp;
    const uint8_t *base = rb->base;
    poison(base, RBI_HEADER_BYTES + (uint64_t)stamp->max_participants * sizeof(struct rbi_participant), stamp->slots_offset);
    uint64_t lane_bytes = (stamp->table_offset - stamp->slots_offset) / RBI_LANES;
    for (uint64_t lane = 0; lane < RBI_LANES; lane++) {
        uint64_t offset = stamp->slots_offset + lane * lane_bytes;
        poison(base, offset + (sizeof(struct rbi_slot) << stamp->cells_log2), offset + lane_bytes);
    }
    poison(base, stamp->table_offset + stamp->blocks * sizeof(rbi_atomic64), stamp->runs_offset);
    poison(base, stamp->runs_offset + stamp->blocks * sizeof(struct rbi_run_entry), stamp->arena_offset);
}

void fuzz_read(const void *data, size_t size)
{
    const volatile uint8_t *bytes = data;
    if (size) (void)bytes[size - 1];
    for (size_t at = 0; at < size; at += 64) (void)bytes[at];
}

/* ---- an input ---- */

static int free_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    FUZZ_CHECK(fd >= 0, fd);
    close(fd);
    return fd;
}

static int free_before;

void fuzz_begin(void)
{
    fuzz_directory();
    now_ns = INT64_C(1000000000000);
    next_random = 0;
    free_before = free_descriptor();
    is_watched = true;
}

void fuzz_end(void)
{
    is_watched = false;
    for (size_t number = 0; number < MAPPINGS_MOST; number++) FUZZ_CHECK(!mappings[number].base, number);
    int free_now = free_descriptor();
    FUZZ_CHECK(free_now == free_before, free_now);
    fuzz_empty_directory();
}

void fuzz_sign(struct rbi_stamp *stamp)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const uint8_t *byte = (const uint8_t *)stamp, *end = byte + offsetof(struct rbi_stamp, checksum); byte < end; byte++)
        hash = (hash ^ *byte) * UINT64_C(0x100000001b3);
    stamp->checksum = hash;
}
