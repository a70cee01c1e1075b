/* names.c — fuzz target: names, options, directories, and whatever lies where a queue should be.
 *
 * An input is a sequence of steps: make, open or remove a queue of some name with some options; put a file of some content there, with a
 * stamp as of a real queue but for some bytes (and a right checksum, for who writes such a file can compute one); put something
 * there that is no file; list and collect.
 *
 * Every call returns a status that ringbuf.h lists for it, what is opened can be used, and nothing stays: no mapping, no descriptor. */
#include "harness.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEPS_MOST = 24, HANDLES = 2, FILE_MOST_BYTES = 64 << 20 };

#define BIT(status) (1u << RINGBUF_##status)

enum {
    OPENING = BIT(OK) | BIT(E_EXISTS) | BIT(E_BUSY) | BIT(E_INVALID) | BIT(E_NO_SPACE) | BIT(E_NO_MEMORY) | BIT(E_NO_FILES) |
              BIT(E_NO_DIRECTORY) | BIT(E_ACCESS) | BIT(E_CORRUPT) | BIT(E_VERSION) | BIT(E_CROWDED) | BIT(E_GONE) | BIT(E_SYSTEM),
    FINDING = OPENING | BIT(E_NOT_FOUND),
    REMOVING = BIT(OK) | BIT(E_INVALID) | BIT(E_BUSY) | BIT(E_ACCESS) | BIT(E_NOT_FOUND) | BIT(E_NO_DIRECTORY) | BIT(E_CORRUPT) | BIT(E_SYSTEM),
};

static ringbuf_status listed(ringbuf_status status, uint32_t list)
{
    FUZZ_CHECK(status >= 0 && status <= RINGBUF_E_DEAD_LETTER && list >> status & 1, status);
    return status;
}

static struct input input;
static ringbuf *handles[HANDLES];
static char *strings[8]; /* freed at the end of the input: options point to them */
static uint32_t string_count;

static const char *read_string(void)
{
    static const char *const usual[] = {"q", "", "a/b", "..", ".", "\xc3\xa4", "%2F", "\xff\xfe", "anonymous-x"};
    uint8_t which = input_byte(&input);
    if (which < sizeof usual / sizeof *usual) return usual[which];
    if (which < 200 || string_count == sizeof strings / sizeof *strings) return usual[0];
    if (which < 210) { /* long: around the limits of names, file names, tags and notes */
        static const uint16_t lengths[] = {31, 32, 159, 160, 161, 511, 512, 1024, 1025, 4000};
        char *text = strings[string_count++] = malloc(lengths[which - 200] + 1u);
        FUZZ_CHECK(text, which);
        memset(text, which & 1 ? 'n' : '/', lengths[which - 200]);
        text[lengths[which - 200]] = '\0';
        return text;
    }
    return strings[string_count++] = input_string(&input, input_byte(&input));
}

static const char *read_directory(void)
{
    static char inside[PATH_MAX];
    switch (input_below(&input, 12)) {
    case 0: return "/nowhere";
    case 1: return "";
    case 2: return "/dev/null";
    case 3: return "/proc/self";
    case 4: snprintf(inside, sizeof inside, "%s/inside", fuzz_directory()); return inside;
    case 5: snprintf(inside, sizeof inside, "%s/.", fuzz_directory()); return inside;
    default: return fuzz_directory();
    }
}

static uint64_t read_size(void)
{
    static const uint64_t sizes[] = {0,       1,       4095,    4096, 4097, 65536,
                                     1 << 20, 1 << 26, (UINT64_C(64) << 30) + 1, UINT64_MAX, UINT64_C(1) << 63};
    uint8_t which = input_byte(&input);
    return which < 200 ? sizes[which % (sizeof sizes / sizeof *sizes)] : input_number(&input, 3);
}

static void read_options(ringbuf_options *options)
{
    ringbuf_options_init(options);
    uint8_t what = input_byte(&input);
    options->directory = read_directory();
    options->capacity_bytes = what & 1 ? read_size() : 4096;
    options->arena_bytes = what & 2 ? read_size() : 1;
    options->max_items = what & 4 ? input_number(&input, 8) : 0;
    options->max_participants = what & 8 ? (uint32_t)input_number(&input, 4) : 8;
    options->mode = what & 16 ? (uint32_t)input_number(&input, 1) : 0;
    options->flags = what & 32 ? (uint32_t)input_number(&input, 4) : 0;
    if (what & 64) {
        options->permissions = (uint32_t)input_number(&input, 2);
        options->label = read_string();
    }
    if (what & 128) {
        options->tag = read_string();
        options->note = read_string();
        if (input_byte(&input) == 255) options->struct_bytes--;
    }
}

/* ---- files ---- */

/** A path where a queue of this name would lie; its file name as the library would choose it for simple names. */
static void path_of(char path[PATH_MAX], const char *prefix)
{
    snprintf(path, PATH_MAX, "%s/%s", fuzz_directory(), prefix);
}

/** A real queue's first bytes, made once. */
static const struct rbi_stamp *real_stamp(void)
{
    static struct rbi_stamp stamp;
    if (stamp.magic) return &stamp;
    ringbuf *rb;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.directory = fuzz_directory();
    options.capacity_bytes = 4096;
    options.arena_bytes = 1;
    options.max_participants = 8;
    FUZZ_CHECK(ringbuf_create(&rb, "q", &options) == RINGBUF_OK, 0);
    stamp = rb->stamp;
    ringbuf_free(rb);
    return &stamp;
}

/** What follows from the sizes, as segment.c has it: so that a stamp with strange sizes is not found out by its offsets. */
static void place(struct rbi_stamp *stamp)
{
    const uint64_t page = 4096, cells = UINT64_C(1) << (stamp->cells_log2 & 63);
    const uint64_t capacity = UINT64_C(1) << ((stamp->cells_log2 + stamp->cell_log2) & 63);
#define ROUND_UP(bytes) (((bytes) + page - 1) / page * page)
    stamp->slots_offset = ROUND_UP(RBI_HEADER_BYTES + (uint64_t)stamp->max_participants * sizeof(struct rbi_participant));
    stamp->table_offset = stamp->slots_offset + RBI_LANES * ROUND_UP(cells * sizeof(struct rbi_slot));
    stamp->runs_offset = stamp->table_offset + ROUND_UP(stamp->blocks * sizeof(rbi_atomic64));
    stamp->arena_offset = stamp->runs_offset + ROUND_UP(stamp->blocks * sizeof(struct rbi_run_entry));
    stamp->data_offset = stamp->arena_offset + (stamp->blocks << (stamp->block_log2 & 63));
    stamp->file_bytes = stamp->data_offset + RBI_LANES * capacity;
#undef ROUND_UP
}

static void write_file(void)
{
    static const uint16_t fields[] = {offsetof(struct rbi_stamp, max_participants), offsetof(struct rbi_stamp, cell_log2),
                                      offsetof(struct rbi_stamp, cells_log2), offsetof(struct rbi_stamp, block_log2),
                                      offsetof(struct rbi_stamp, blocks), offsetof(struct rbi_stamp, flags),
                                      offsetof(struct rbi_stamp, max_items), offsetof(struct rbi_stamp, name_bytes),
                                      offsetof(struct rbi_stamp, permissions)};
    struct rbi_stamp stamp = *real_stamp();
    uint8_t what = input_byte(&input);
    uint32_t changes = input_below(&input, 5);
    while (changes--) {
        uint8_t which = input_byte(&input);
        uint32_t bytes = 1 + input_below(&input, 8);
        size_t at = which < 200 ? fields[which % (sizeof fields / sizeof *fields)] : input_number(&input, 2) % sizeof stamp;
        uint64_t value = input_number(&input, bytes);
        if (which < 200 && which & 1) value = (uint64_t)(int64_t)(int8_t)value; /* just below 0 */
        memcpy((uint8_t *)&stamp + at, &value, bytes < sizeof stamp - at ? bytes : sizeof stamp - at);
    }
    if (what & 1) place(&stamp);
    if (what & 2) fuzz_sign(&stamp);
    uint64_t bytes = what & 4 ? input_number(&input, 3) : stamp.file_bytes;
    if (bytes > FILE_MOST_BYTES) bytes = FILE_MOST_BYTES;
    char path[PATH_MAX];
    path_of(path, "ringbuf.q");
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return; /* a directory, perhaps */
    ssize_t written = write(fd, &stamp, sizeof stamp);
    FUZZ_CHECK(written == (ssize_t)sizeof stamp, written);
    uint32_t words = input_below(&input, 6);
    while (words--) { /* behind the stamp: mostly the header and the participants */
        uint64_t value = input_number(&input, 8);
        uint64_t offset = sizeof stamp + input_number(&input, 2) % 12288;
        written = pwrite(fd, &value, sizeof value, (off_t)(offset & ~UINT64_C(7)));
    }
    FUZZ_CHECK(ftruncate(fd, (off_t)bytes) == 0, bytes);
    close(fd);
}

static void write_something_else(void)
{
    static const char *const prefixes[] = {"ringbuf.q", "ringbuf.", "ringbuf.x", "ringbuf-items.01010101010101010101010101010101",
                                           "ringbuf-room.", "ringbuf-tasks.q", "inside", "ringbuf.a%2Fb"};
    char path[PATH_MAX];
    path_of(path, prefixes[input_below(&input, 8)]);
    unlink(path);
    int fd;
    switch (input_below(&input, 6)) {
    case 0: (void)!mkdir(path, 0700); return;
    case 1: (void)!mkfifo(path, 0600); return;
    case 2: (void)!symlink("ringbuf.q", path); return;
    case 3: (void)!symlink("/dev/zero", path); return;
    default: {
        char *content = input_string(&input, input_byte(&input));
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (fd >= 0) {
            ssize_t written = write(fd, content, strlen(content));
            (void)written;
            close(fd);
        }
        free(content);
    }
    }
}

/* ---- the steps ---- */

/** What was opened is good for something. */
static void use(uint32_t slot)
{
    static const uint32_t putting = BIT(OK) | BIT(E_TIMEOUT) | BIT(E_ARENA_FULL) | BIT(E_TOO_LARGE) | BIT(E_SHUTDOWN) | BIT(E_CORRUPT) |
                                    BIT(E_NO_SPACE);
    static const uint32_t getting = BIT(OK) | BIT(E_SMALL) | BIT(E_TIMEOUT) | BIT(E_SHUTDOWN) | BIT(E_CORRUPT);
    ringbuf *rb = handles[slot];
    uint8_t bytes[6000] = {0};
    ringbuf_info info;
    ringbuf_stats stats;
    size_t size;
    int fd;
    fuzz_watch(rb);
    listed(ringbuf_get_info(rb, &info), BIT(OK));
    FUZZ_CHECK(memchr(info.tag, 0, sizeof info.tag) && memchr(info.note, 0, sizeof info.note), 0);
    FUZZ_CHECK(*ringbuf_name(rb) && strlen(ringbuf_name(rb)) <= RBI_NAME_MAX_BYTES && strlen(ringbuf_path(rb)) > 0, 0);
    FUZZ_CHECK(info.max_participants >= 1 && info.max_participants <= RBI_OWNER_MAX, info.max_participants);
    listed(ringbuf_put(rb, bytes, 100, 0), putting);
    listed(ringbuf_put(rb, bytes, sizeof bytes, 0), putting);
    listed(ringbuf_get_stats(rb, &stats), BIT(OK) | BIT(E_CORRUPT));
    listed(ringbuf_get(rb, &size, bytes, sizeof bytes, 0), getting);
    if (input_byte(&input) & 1)
        listed(ringbuf_items_fd(rb, &fd), BIT(OK) | BIT(E_BUSY) | BIT(E_CORRUPT) | BIT(E_ACCESS) | BIT(E_NO_FILES));
}

/** Look from outside at whatever lies under the usual names. */
static void observe(void)
{
    static const char *const names[] = {"q", "x", "a/b", "\xff\xfe"};
    ringbuf_options options;
    ringbuf_info info;
    ringbuf_stats stats;
    ringbuf_options_init(&options);
    options.directory = fuzz_directory();
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
        ringbuf_observation observation = {.struct_bytes = sizeof observation};
        ringbuf_status status = listed(ringbuf_observe(&observation, &info, &stats, names[i], &options),
                                       BIT(OK) | BIT(E_NOT_FOUND) | BIT(E_NO_MEMORY));
        if (status != RINGBUF_OK) continue;
        FUZZ_CHECK(observation.condition <= RINGBUF_UNREADABLE && observation.file_type <= RINGBUF_DEVICE, observation.condition);
        FUZZ_CHECK(observation.name_bytes <= RBI_NAME_MAX_BYTES && !observation.name[observation.name_bytes], observation.name_bytes);
        FUZZ_CHECK(memchr(info.tag, 0, sizeof info.tag) && memchr(info.note, 0, sizeof info.note), 0);
    }
}

static void step(void)
{
    uint8_t what = input_byte(&input);
    const uint32_t slot = what >> 7;
    ringbuf_options options;
    uint64_t removed;
    switch (what & 7) {
    case 0:
    case 1:
    case 2: {
        ringbuf_free(handles[slot]);
        handles[slot] = NULL;
        const char *name = read_string();
        read_options(&options);
        if ((what & 7) == 0) listed(ringbuf_create(&handles[slot], what & 8 ? NULL : name, &options), OPENING);
        else if ((what & 7) == 1) listed(ringbuf_open(&handles[slot], name, &options), FINDING);
        else listed(ringbuf_attach(&handles[slot], name, real_stamp()->id, what & 8 ? NULL : &options), FINDING);
        if (handles[slot]) use(slot);
        return;
    }
    case 3: write_file(); return;
    case 4: write_something_else(); return;
    case 5: {
        const char *name = read_string();
        read_options(&options);
        listed(ringbuf_unlink_name(name, &options), REMOVING);
        return;
    }
    case 6:
        read_options(&options);
        listed(ringbuf_collect(&removed, &options), BIT(OK) | BIT(E_INVALID) | BIT(E_NO_DIRECTORY) | BIT(E_ACCESS));
        return;
    default:
        ringbuf_free(handles[slot]);
        handles[slot] = NULL;
        return;
    }
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    setenv("SAGE_QUEUE_DIR", fuzz_directory(), 1); /* for calls without options */
    real_stamp();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = (struct input){data, size};
    fuzz_begin();
    for (uint32_t steps = 0; steps < STEPS_MOST && !input_ended(&input); steps++) step();
    observe();
    for (uint32_t slot = 0; slot < HANDLES; slot++) {
        ringbuf_free(handles[slot]);
        handles[slot] = NULL;
    }
    fuzz_end();
    while (string_count) free(strings[--string_count]);
    return 0;
}
