/* test_segment.c — floor 3: a queue's file from birth to removal, seen from outside: names, owners, damage, races, lifetimes. */
#include "small_fs.h"

#include "segment.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

void setUp(void) {}
void tearDown(void)
{
    unmount_small_file_system();
    assert_nothing_is_left();
}

/* ---- queues ---- */

static ringbuf_options defaults(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 1 << 16;
    options.max_participants = 16;
    return options;
}

static ringbuf *create_with(const char *name, const ringbuf_options *options)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, name, options));
    TEST_ASSERT_NOT_NULL(rb);
    return rb;
}

static ringbuf *create(const char *name)
{
    ringbuf_options options = defaults();
    return create_with(name, &options);
}

static ringbuf *create_flagged(const char *name, uint32_t flags)
{
    ringbuf_options options = defaults();
    options.flags = flags;
    return create_with(name, &options);
}

static ringbuf *open_queue(const char *name)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_open(&rb, name, NULL));
    TEST_ASSERT_NOT_NULL(rb);
    return rb;
}

static void assert_open(ringbuf_status expected, const char *name)
{
    ringbuf *rb = (ringbuf *)&rb;
    ASSERT_STATUS(expected, ringbuf_open(&rb, name, NULL));
    TEST_ASSERT_NULL(rb);
}

static void assert_create(ringbuf_status expected, const char *name, const ringbuf_options *options)
{
    ringbuf *rb = (ringbuf *)&rb;
    ASSERT_STATUS(expected, ringbuf_create(&rb, name, options));
    TEST_ASSERT_NULL(rb);
}

static ringbuf_info info_of(ringbuf *rb)
{
    ringbuf_info info;
    ASSERT_OK(ringbuf_get_info(rb, &info));
    return info;
}

static bool same_queue(ringbuf *a, ringbuf *b)
{
    ringbuf_info first = info_of(a), second = info_of(b);
    return memcmp(first.id, second.id, sizeof first.id) == 0;
}

static void put(ringbuf *rb, const char *text) { ASSERT_OK(ringbuf_put(rb, text, strlen(text) + 1, 0)); }

static void get(ringbuf *rb, const char *text)
{
    char buffer[256];
    size_t size;
    ASSERT_OK(ringbuf_get(rb, &size, buffer, sizeof buffer, 0));
    TEST_ASSERT_EQUAL_STRING(text, buffer);
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

/** Make a queue with one message in it and leave; returns its path. */
static const char *leave_behind_with(const char *name, const ringbuf_options *options)
{
    static char path[512];
    ringbuf *rb = create_with(name, options);
    put(rb, "left behind");
    snprintf(path, sizeof path, "%s", ringbuf_path(rb));
    ringbuf_free(rb);
    TEST_ASSERT_TRUE(exists(path));
    return path;
}

static const char *leave_queue_behind(const char *name)
{
    ringbuf_options options = defaults();
    return leave_behind_with(name, &options);
}

/* ---- files ---- */

static void write_at(const char *path, uint64_t offset, const void *bytes, size_t count)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    TEST_ASSERT_EQUAL_INT64((int64_t)count, pwrite(fd, bytes, count, (off_t)offset));
    close(fd);
}

static struct rbi_stamp read_stamp(const char *path)
{
    struct rbi_stamp stamp;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    TEST_ASSERT_EQUAL_INT64(sizeof stamp, pread(fd, &stamp, sizeof stamp, 0));
    close(fd);
    return stamp;
}

static struct stat stat_of(const char *path)
{
    struct stat facts;
    TEST_ASSERT_EQUAL_INT(0, stat(path, &facts));
    return facts;
}

/** Write a stamp whose checksum is right (FNV-1a, as docs/layout.md says). */
static void write_sealed(const char *path, struct rbi_stamp stamp)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    const uint8_t *bytes = (const uint8_t *)&stamp;
    for (size_t i = 0; i < offsetof(struct rbi_stamp, checksum); i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    stamp.checksum = hash;
    write_at(path, 0, &stamp, sizeof stamp);
}

/* ---- create, open, attach ---- */

static void test_a_created_queue_can_be_opened_and_both_are_the_same(void)
{
    ringbuf *a = create("queue"), *b = open_queue("queue");
    TEST_ASSERT_TRUE(same_queue(a, b));
    TEST_ASSERT_EQUAL_STRING("queue", ringbuf_name(b));
    TEST_ASSERT_EQUAL_STRING(ringbuf_path(a), ringbuf_path(b));
    put(a, "hello");
    get(b, "hello");
    ringbuf_free(a);
    ringbuf_free(b);
}

static void test_opening_or_attaching_where_there_is_none_finds_nothing_and_makes_nothing(void)
{
    uint8_t id[16] = {0};
    ringbuf *rb = NULL;
    assert_open(RINGBUF_E_NOT_FOUND, "nothing");
    ASSERT_STATUS(RINGBUF_E_NOT_FOUND, ringbuf_attach(&rb, "nothing", id, NULL));
    TEST_ASSERT_NULL(rb);
    ASSERT_STATUS(RINGBUF_E_NOT_FOUND, ringbuf_unlink_name("nothing", NULL));
}

static void test_attaching_by_id_finds_that_queue_and_no_other_of_its_name(void)
{
    ringbuf *a = create("queue"), *b = NULL;
    ringbuf_info info = info_of(a);
    ASSERT_OK(ringbuf_attach(&b, "queue", info.id, NULL));
    TEST_ASSERT_TRUE(same_queue(a, b));
    ringbuf_free(a);
    ringbuf_free(b);
    a = create("queue");
    ASSERT_STATUS(RINGBUF_E_GONE, ringbuf_attach(&b, "queue", info.id, NULL));
    TEST_ASSERT_NULL(b);
    put(a, "still there");
    get(a, "still there");
    ringbuf_free(a);
}

static void test_open_or_create_attaches_to_what_is_there_whose_own_sizes_hold(void)
{
    ringbuf_options options = defaults();
    ringbuf *a = create("queue");
    options.capacity_bytes = 1 << 20;
    options.max_items = 5;
    ringbuf *b = create_with("queue", &options);
    TEST_ASSERT_TRUE(same_queue(a, b));
    TEST_ASSERT_EQUAL_UINT64(1 << 16, info_of(b).capacity_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, info_of(b).max_items);
    ringbuf_free(a);
    ringbuf_free(b);
}

static void test_mode_create_refuses_a_queue_that_exists_and_leaves_it_alone(void)
{
    ringbuf_options options = defaults();
    options.mode = RINGBUF_CREATE;
    ringbuf *rb = create_with("queue", &options);
    put(rb, "a");
    assert_create(RINGBUF_E_EXISTS, "queue", &options);
    get(rb, "a");
    put(rb, "b");
    ringbuf_free(rb);
    assert_create(RINGBUF_E_EXISTS, "queue", &options); /* with a message and nobody there */
    rb = open_queue("queue");
    get(rb, "b");
    ringbuf_free(rb);
    ringbuf_free(create_with("queue", &options));
}

static void test_mode_create_says_exists_also_where_the_queue_is_crowded(void)
{
    ringbuf_options options = defaults();
    options.max_participants = 1;
    ringbuf *rb = create_with("queue", &options);
    options.mode = RINGBUF_CREATE;
    assert_create(RINGBUF_E_EXISTS, "queue", &options);
    assert_open(RINGBUF_E_CROWDED, "queue");
    options.mode = RINGBUF_OPEN_OR_CREATE;
    assert_create(RINGBUF_E_CROWDED, "queue", &options);
    ringbuf_free(rb);
}

static void test_mode_fresh_replaces_what_nobody_uses_and_refuses_what_somebody_does(void)
{
    ringbuf_options options = defaults();
    options.mode = RINGBUF_FRESH;
    ringbuf *rb = create("queue");
    put(rb, "old");
    assert_create(RINGBUF_E_BUSY, "queue", &options);
    uint64_t items = 0;
    ASSERT_OK(ringbuf_size(rb, &items));
    TEST_ASSERT_EQUAL_UINT64(1, items);
    ringbuf_free(rb);
    rb = create_with("queue", &options);
    ASSERT_OK(ringbuf_size(rb, &items));
    TEST_ASSERT_EQUAL_UINT64(0, items);
    ringbuf_free(rb);
}

static void test_mode_fresh_replaces_a_file_that_is_no_queue(void)
{
    ringbuf_options options = defaults();
    options.mode = RINGBUF_FRESH;
    const char *path = leave_queue_behind("queue");
    TEST_ASSERT_EQUAL_INT(0, truncate(path, 100));
    ringbuf *rb = create_with("queue", &options);
    put(rb, "a");
    get(rb, "a");
    ringbuf_free(rb);
}

static void test_arguments_that_make_no_sense_are_invalid_and_make_nothing(void)
{
    enum { CASES = 20 };
    char long_note[RBI_NOTE_BYTES + 1];
    memset(long_note, 'x', sizeof long_note);
    long_note[RBI_NOTE_BYTES] = '\0';
    ringbuf_options cases[CASES];
    for (int i = 0; i < CASES; i++) cases[i] = defaults();
    cases[0].capacity_bytes = 0;
    cases[1].capacity_bytes = (UINT64_C(64) << 30) + 1;
    cases[2].capacity_bytes = (uint64_t)INT64_C(-1);
    cases[3].max_participants = 0;
    cases[4].max_participants = 4096;
    cases[5].mode = 3;
    cases[6].flags = RINGBUF_AUTO_CLEANUP | RINGBUF_PERSISTENT;
    cases[7].flags = RINGBUF_UNNAMED;
    cases[8].flags = 16;
    cases[9].permissions = 01600;
    cases[10].tag = "a tag that has thirty-two bytes!";
    cases[11].struct_bytes = 8;
    cases[12].arena_bytes = (UINT64_C(64) << 30) + 1;
    cases[13].arena_bytes = UINT64_MAX - 1;
    cases[14].note = long_note;
    cases[15].memory = 16;
    cases[16].max_attempts = 3; /* and where to? */
    cases[17].dead_letter = "dead"; /* and when? */
    cases[18].max_attempts = RBI_ATTEMPTS_MAX;
    cases[18].dead_letter = "dead";
    cases[19].max_attempts = 3;
    cases[19].dead_letter = long_note;
    for (int i = 0; i < CASES; i++) assert_create(RINGBUF_E_INVALID, "queue", &cases[i]);
    ringbuf_options persistent = defaults();
    persistent.flags = RINGBUF_PERSISTENT;
    assert_create(RINGBUF_E_INVALID, NULL, &persistent); /* nobody could ever find it */
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_create(NULL, "queue", NULL));
    assert_open(RINGBUF_E_INVALID, NULL);
}

static void test_info_tells_what_the_queue_was_made_with(void)
{
    ringbuf_options options = defaults();
    options.capacity_bytes = 70000; /* rounded up */
    options.max_items = 9;
    options.max_participants = 77;
    options.flags = RINGBUF_AUTO_CLEANUP;
    options.permissions = 0640;
    options.arena_bytes = 100000; /* likewise */
    options.tag = "a tag that has thirty-one bytes";
    options.note = "what is to be done with messages that nobody can handle";
    options.max_attempts = 65534;
    options.dead_letter = "dead letters";
    mode_t before = umask(0077);
    ringbuf *rb = create_with("queue", &options);
    umask(before);
    ringbuf_info info = info_of(rb);
    TEST_ASSERT_EQUAL_UINT64(1 << 17, info.capacity_bytes);
    TEST_ASSERT_EQUAL_UINT64(4096, info.block_bytes);
    TEST_ASSERT_EQUAL_UINT64(64 * 4096, info.arena_bytes);
    TEST_ASSERT_EQUAL_UINT64(64 * 4096, info.max_message_bytes);
    TEST_ASSERT_EQUAL_UINT64((1 << 17) / 8, info.ring_message_bytes);
    TEST_ASSERT_EQUAL_UINT64(9, info.max_items);
    TEST_ASSERT_EQUAL_UINT32(77, info.max_participants);
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_AUTO_CLEANUP, info.flags);
    TEST_ASSERT_EQUAL_UINT32(0640, info.permissions);
    TEST_ASSERT_EQUAL_UINT32(getpid(), info.creator_pid);
    TEST_ASSERT_EQUAL_STRING(options.tag, info.tag);
    TEST_ASSERT_EQUAL_STRING(options.note, info.note);
    TEST_ASSERT_EQUAL(65534, info.max_attempts);
    TEST_ASSERT_EQUAL_STRING(options.dead_letter, info.dead_letter);
    struct stat facts = stat_of(ringbuf_path(rb));
    TEST_ASSERT_EQUAL_UINT64((uint64_t)facts.st_size, info.file_bytes);
    TEST_ASSERT_EQUAL_UINT32(0640, facts.st_mode & 07777); /* whatever the umask */
    ringbuf_free(rb);
    rb = create("default");
    TEST_ASSERT_EQUAL_UINT32(0600, stat_of(ringbuf_path(rb)).st_mode & 07777);
    TEST_ASSERT_EQUAL_UINT64(64 << 20, info_of(rb).arena_bytes);
    TEST_ASSERT_EQUAL_STRING("", info_of(rb).note);
    ringbuf_free(rb);
}

static void test_without_an_arena_the_largest_message_is_half_the_ring(void)
{
    ringbuf_options options = defaults();
    options.capacity_bytes = 1 << 17;
    options.arena_bytes = 0;
    ringbuf *rb = create_with("queue", &options);
    ringbuf_info info = info_of(rb);
    TEST_ASSERT_EQUAL_UINT64(0, info.arena_bytes);
    TEST_ASSERT_EQUAL_UINT64(1 << 16, info.max_message_bytes);
    TEST_ASSERT_EQUAL_UINT64(1 << 16, info.ring_message_bytes);
    ringbuf_free(rb);
}

/** Whether 64 GiB, of which a queue maps several times the addresses, are left out here. */
static int most_is_too_much(void)
{
    if (emulated()) printf("without 64 GiB: qemu keeps a note of every page of addresses, 3.7 GB of them\n");
    return SANITIZED || emulated();
}

static void test_an_arena_has_at_least_the_bytes_asked_for_and_no_more_blocks_than_its_table_can_name(void)
{
    static const struct { uint64_t asked, arena, block; } cases[] = {
        {1, 64 << 12, 1 << 12},
        {64 << 12, 64 << 12, 1 << 12},
        {(64 << 12) + 1, 128 << 12, 1 << 12},
        {1 << 28, 1 << 28, 1 << 12}, /* 2^16 blocks */
        {(1 << 28) + 1, (1 << 28) + (64 << 13), 1 << 13},
        {UINT64_C(64) << 30, UINT64_C(64) << 30, 1 << 20},
    };
    size_t count = sizeof cases / sizeof *cases - (size_t)most_is_too_much();
    for (size_t i = 0; i < count; i++) {
        ringbuf_options options = defaults();
        options.arena_bytes = cases[i].asked;
        ringbuf *rb = create_with("queue", &options);
        ringbuf_info info = info_of(rb);
        TEST_ASSERT_EQUAL_UINT64(cases[i].arena, info.arena_bytes);
        TEST_ASSERT_EQUAL_UINT64(cases[i].block, info.block_bytes);
        TEST_ASSERT_EQUAL_UINT64(cases[i].arena, info.max_message_bytes);
        TEST_ASSERT_EQUAL_UINT64((1 << 16) / 8, info.ring_message_bytes);
        TEST_ASSERT_LESS_THAN_INT64(64 << 10, stat_of(ringbuf_path(rb)).st_blocks * 512);
        ringbuf_free(rb);
    }
}

static void test_the_largest_message_of_a_ring_beside_an_arena_is_an_eighth_of_it_and_64_kib_at_most(void)
{
    static const struct { uint64_t capacity, largest; } cases[] = {
        {4096, 512}, {1 << 16, 1 << 13}, {1 << 19, 1 << 16}, {1 << 20, 1 << 16}, {1 << 24, 1 << 16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ringbuf_options options = defaults();
        options.capacity_bytes = cases[i].capacity;
        ringbuf *rb = create_with("queue", &options);
        TEST_ASSERT_EQUAL_UINT64(cases[i].largest, info_of(rb).ring_message_bytes);
        ringbuf_free(rb);
    }
}

static void test_the_smallest_and_the_largest_queue_work_and_take_little_memory_while_empty(void)
{
    const uint64_t capacities[] = {1, 4096, 4 << 20, UINT64_C(64) << 30};
    int count = 4 - most_is_too_much();
    for (int i = 0; i < count; i++) {
        ringbuf_options options = defaults();
        options.capacity_bytes = capacities[i];
        ringbuf *rb = create_with("queue", &options);
        TEST_ASSERT_LESS_THAN_INT64(64 << 10, stat_of(ringbuf_path(rb)).st_blocks * 512);
        put(rb, "a");
        get(rb, "a");
        /* Pages come for 64 cells at a time, and only huge queues have large cells. */
        if (capacities[i] <= 4 << 20) TEST_ASSERT_LESS_THAN_INT64(64 << 10, stat_of(ringbuf_path(rb)).st_blocks * 512);
        TEST_ASSERT_GREATER_OR_EQUAL_UINT64(capacities[i], info_of(rb).capacity_bytes);
        ringbuf_free(rb);
    }
}

/* ---- names ---- */

static void test_any_name_works_and_no_two_share_a_queue(void)
{
    char long_names[3][RBI_NAME_MAX_BYTES + 1];
    for (int i = 0; i < 3; i++) {
        memset(long_names[i], 'x', RBI_NAME_MAX_BYTES);
        long_names[i][RBI_NAME_MAX_BYTES] = '\0';
    }
    long_names[1][RBI_NAME_MAX_BYTES - 1] = 'y';
    long_names[2][400] = '\0';
    const char *names[] = {"a", "A", "a/b", "/a", "a b", ".", "..", "../a", "%41", "a%2Fb", "\xc3\xbc\xc3\xb1\xe6\x97\xa5", "\n",
                           long_names[0], long_names[1], long_names[2]};
    enum { NAMES = sizeof names / sizeof *names };
    ringbuf *queues[NAMES];
    ringbuf_options options = defaults();
    options.mode = RINGBUF_CREATE;
    for (int i = 0; i < NAMES; i++) queues[i] = create_with(names[i], &options);
    for (int i = 0; i < NAMES; i++) {
        ringbuf *again = open_queue(names[i]);
        TEST_ASSERT_TRUE(same_queue(queues[i], again));
        TEST_ASSERT_EQUAL_UINT64(strlen(names[i]), strnlen(ringbuf_name(again), RBI_NAME_MAX_BYTES + 8));
        TEST_ASSERT_EQUAL_MEMORY(names[i], ringbuf_name(again), strlen(names[i]));
        TEST_ASSERT_EQUAL_INT(0, strncmp(ringbuf_path(again), suite_directory, strlen(suite_directory)));
        TEST_ASSERT_NULL(strchr(ringbuf_path(again) + strlen(suite_directory) + 1, '/'));
        ringbuf_free(again);
    }
    for (int i = 0; i < NAMES; i++) ringbuf_free(queues[i]);
}

static void test_an_empty_name_and_one_of_1025_bytes_are_invalid(void)
{
    char name[RBI_NAME_MAX_BYTES + 2];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    assert_create(RINGBUF_E_INVALID, name, NULL);
    assert_create(RINGBUF_E_INVALID, "", NULL);
    assert_open(RINGBUF_E_INVALID, name);
    assert_open(RINGBUF_E_INVALID, "");
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unlink_name("", NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unlink_name(NULL, NULL));
}

static void test_an_unnamed_queue_is_found_by_the_name_it_tells_and_goes_with_its_last_user(void)
{
    ringbuf_options options = defaults();
    ringbuf *a = create_with(NULL, &options), *other = create_with(NULL, &options);
    TEST_ASSERT_FALSE(same_queue(a, other));
    ringbuf *b = open_queue(ringbuf_name(a));
    TEST_ASSERT_TRUE(same_queue(a, b));
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_UNNAMED | RINGBUF_AUTO_CLEANUP, info_of(a).flags);
    put(a, "never got");
    ringbuf_free(a);
    TEST_ASSERT_TRUE(exists(ringbuf_path(b)));
    ringbuf_free(b);
    ringbuf_free(other);
}

static void test_a_file_under_another_s_name_is_gone(void)
{
    const char *path = leave_queue_behind("queue");
    char other[600];
    snprintf(other, sizeof other, "%s/ringbuf.other", suite_directory);
    TEST_ASSERT_EQUAL_INT(0, rename(path, other));
    assert_open(RINGBUF_E_GONE, "other");
    ASSERT_OK(ringbuf_unlink_name("other", NULL));
}

/* ---- directories ---- */

static void test_a_directory_that_is_missing_is_named_as_the_cause(void)
{
    char missing[600];
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    uint64_t removed;
    snprintf(missing, sizeof missing, "%s/missing", suite_directory);
    options.directory = missing;
    assert_create(RINGBUF_E_NO_DIRECTORY, "queue", &options);
    options.mode = RINGBUF_FRESH;
    assert_create(RINGBUF_E_NO_DIRECTORY, "queue", &options);
    ASSERT_STATUS(RINGBUF_E_NOT_FOUND, ringbuf_open(&rb, "queue", &options));
    ASSERT_STATUS(RINGBUF_E_NO_DIRECTORY, ringbuf_collect(&removed, &options));
}

static void test_a_directory_that_cannot_hold_queues_is_no_directory(void)
{
    ringbuf_options options = defaults();
    options.directory = "/dev/null"; /* a file */
    assert_create(RINGBUF_E_NO_DIRECTORY, "queue", &options);
    options.directory = "/proc"; /* of a file system that has no files without a name */
    assert_create(RINGBUF_E_NO_DIRECTORY, "queue", &options);
}

static void test_without_a_directory_in_the_environment_queues_live_in_dev_shm(void)
{
    char name[64], expected[128];
    ringbuf_options options = defaults();
    options.flags = RINGBUF_AUTO_CLEANUP;
    snprintf(name, sizeof name, "test-segment-%d", (int)getpid());
    snprintf(expected, sizeof expected, "/dev/shm/ringbuf.%s", name);
    for (int set = 0; set <= 1; set++) {
        TEST_ASSERT_EQUAL_INT(0, set ? setenv("SAGE_QUEUE_DIR", "", 1) : unsetenv("SAGE_QUEUE_DIR")); /* empty is as not set */
        ringbuf *rb = NULL;
        ringbuf_status status = ringbuf_create(&rb, name, &options);
        setenv("SAGE_QUEUE_DIR", suite_directory, 1);
        ASSERT_OK(status);
        TEST_ASSERT_EQUAL_STRING(expected, ringbuf_path(rb));
        ringbuf_free(rb);
        TEST_ASSERT_EQUAL_INT(-1, access(expected, F_OK));
    }
}

static void test_the_option_goes_before_the_environment(void)
{
    char directory[600];
    ringbuf_options options = defaults();
    snprintf(directory, sizeof directory, "%s/sub", suite_directory);
    TEST_ASSERT_EQUAL_INT(0, mkdir(directory, 0700));
    options.directory = directory;
    ringbuf *a = create_with("queue", &options), *b = create("queue");
    TEST_ASSERT_FALSE(same_queue(a, b));
    TEST_ASSERT_EQUAL_INT(0, strncmp(ringbuf_path(a), directory, strlen(directory)));
    ringbuf_free(a);
    ringbuf_free(b);
    TEST_ASSERT_EQUAL_INT(0, rmdir(directory));
}

/* ---- what else may lie under the name ---- */

static const char *path_of_name(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/ringbuf.%s", suite_directory, name);
    return path;
}

static void test_a_symbolic_link_is_never_followed(void)
{
    const char *target = leave_queue_behind("target");
    const char *path = path_of_name("queue");
    TEST_ASSERT_EQUAL_INT(0, symlink(target, path));
    assert_open(RINGBUF_E_ACCESS, "queue");
    assert_create(RINGBUF_E_ACCESS, "queue", NULL);
    ASSERT_STATUS(RINGBUF_E_ACCESS, ringbuf_unlink_name("queue", NULL));
    TEST_ASSERT_EQUAL_INT(0, unlink(path));
    ASSERT_OK(ringbuf_unlink_name("target", NULL));
}

static void test_a_pipe_a_directory_or_a_socket_under_the_name_is_corrupt_and_stays(void)
{
    const char *path = path_of_name("queue");
    TEST_ASSERT_EQUAL_INT(0, mkfifo(path, 0600));
    assert_open(RINGBUF_E_CORRUPT, "queue");
    assert_create(RINGBUF_E_CORRUPT, "queue", NULL);
    TEST_ASSERT_EQUAL_INT(0, unlink(path));
    TEST_ASSERT_EQUAL_INT(0, mkdir(path, 0700));
    assert_open(RINGBUF_E_CORRUPT, "queue");
    assert_create(RINGBUF_E_CORRUPT, "queue", NULL);
    TEST_ASSERT_EQUAL_INT(0, rmdir(path));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path) + 1);
    int bound = socket(AF_UNIX, SOCK_STREAM, 0);
    TEST_ASSERT_EQUAL_INT(0, bind(bound, (struct sockaddr *)&address, sizeof address));
    assert_open(RINGBUF_E_CORRUPT, "queue");
    assert_create(RINGBUF_E_CORRUPT, "queue", NULL);
    close(bound);
    TEST_ASSERT_EQUAL_INT(0, unlink(path));
}

static void test_a_file_of_another_user_is_refused_unless_permissions_are_given(void)
{
    NEEDS_ROOT();
    ringbuf_options options = defaults();
    const char *path = leave_queue_behind("queue");
    TEST_ASSERT_EQUAL_INT(0, chown(path, 12345, 12345));
    assert_open(RINGBUF_E_ACCESS, "queue");
    assert_create(RINGBUF_E_ACCESS, "queue", &options);
    options.mode = RINGBUF_FRESH;
    assert_create(RINGBUF_E_ACCESS, "queue", &options);
    ASSERT_STATUS(RINGBUF_E_ACCESS, ringbuf_unlink_name("queue", NULL));
    uint64_t removed = 1;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    TEST_ASSERT_TRUE(exists(path));
    ringbuf *rb = NULL;
    options.permissions = 0666;
    ASSERT_OK(ringbuf_open(&rb, "queue", &options));
    get(rb, "left behind");
    ringbuf_free(rb);
}

static int use_as_another_user(void *context)
{
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    (void)context;
    if (setuid(12345) != 0) return 1;
    if (ringbuf_open(&rb, "private", NULL) != RINGBUF_E_ACCESS) return 2;
    options.permissions = 0666;
    if (ringbuf_open(&rb, "private", &options) != RINGBUF_E_ACCESS) return 3;
    if (ringbuf_create(&rb, "mine", NULL) != RINGBUF_E_ACCESS) return 4; /* the directory is not ours */
    if (ringbuf_open(&rb, "shared", NULL) != RINGBUF_E_ACCESS) return 5;
    if (ringbuf_open(&rb, "shared", &options) != RINGBUF_OK) return 6;
    if (ringbuf_put(rb, "hello", 6, 0) != RINGBUF_OK) return 7;
    ringbuf_free(rb);
    return 0;
}

static void test_another_user_gets_in_only_where_both_sides_allow_it(void)
{
    NEEDS_ROOT();
    ringbuf_options options = defaults();
    options.permissions = 0666;
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0755));
    ringbuf *private = create("private"), *shared = create_with("shared", &options);
    TEST_ASSERT_EQUAL_INT(0, run_child(use_as_another_user, NULL));
    get(shared, "hello");
    ringbuf_free(private);
    ringbuf_free(shared);
}

/* ---- damage ---- */

static void test_a_file_of_another_size_is_corrupt_whoever_asks_and_can_be_removed(void)
{
    static const int64_t sizes[] = {0, 1, 100, sizeof(struct rbi_stamp) - 1, 4096, 65536};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes + 1; i++) {
        const char *path = leave_queue_behind("queue");
        int64_t size = i < sizeof sizes / sizeof *sizes ? sizes[i] : stat_of(path).st_size + 4096;
        TEST_ASSERT_EQUAL_INT(0, truncate(path, size));
        assert_open(RINGBUF_E_CORRUPT, "queue");
        assert_create(RINGBUF_E_CORRUPT, "queue", NULL);
        uint64_t removed = 1;
        ASSERT_OK(ringbuf_collect(&removed, NULL));
        TEST_ASSERT_EQUAL_UINT64(0, removed);
        TEST_ASSERT_EQUAL_INT64(size, stat_of(path).st_size);
        ASSERT_OK(ringbuf_unlink_name("queue", NULL));
        TEST_ASSERT_FALSE(exists(path));
    }
}

static void test_a_file_of_zeros_or_of_garbage_is_corrupt(void)
{
    for (uint64_t round = 0; round < 50; round++) {
        const char *path = leave_queue_behind("queue");
        uint8_t bytes[16384] = {0};
        uint64_t seed = round;
        if (round)
            for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)next_random(&seed);
        write_at(path, 0, bytes, sizeof bytes);
        assert_open(RINGBUF_E_CORRUPT, "queue");
        assert_create(RINGBUF_E_CORRUPT, "queue", NULL);
        ASSERT_OK(ringbuf_unlink_name("queue", NULL));
    }
}

static void test_a_queue_of_another_byte_order_or_layout_is_another_version(void)
{
    const char *path = leave_queue_behind("queue");
    struct rbi_stamp good = read_stamp(path), stamp = good;
    stamp.magic = __builtin_bswap64(RBI_MAGIC);
    write_at(path, 0, &stamp, sizeof stamp);
    assert_open(RINGBUF_E_VERSION, "queue");
    assert_create(RINGBUF_E_VERSION, "queue", NULL);
    stamp = good;
    stamp.layout_version = RBI_LAYOUT_VERSION + 1;
    write_sealed(path, stamp);
    assert_open(RINGBUF_E_VERSION, "queue");
    write_at(path, 0, &good, sizeof good);
    ringbuf *rb = open_queue("queue");
    get(rb, "left behind");
    ringbuf_free(rb);
}

static void test_every_flipped_bit_of_the_stamp_is_noticed(void)
{
    const char *path = leave_queue_behind("queue");
    struct rbi_stamp good = read_stamp(path);
    const size_t version_begin = offsetof(struct rbi_stamp, layout_version), version_end = version_begin + 4;
    for (size_t bit = 0; bit < 8 * sizeof good; bit++) {
        struct rbi_stamp flipped = good;
        ((uint8_t *)&flipped)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        write_at(path, bit / 8, (uint8_t *)&flipped + bit / 8, 1);
        bool of_version = bit / 8 >= version_begin && bit / 8 < version_end;
        assert_open(of_version ? RINGBUF_E_VERSION : RINGBUF_E_CORRUPT, "queue");
        write_at(path, bit / 8, (uint8_t *)&good + bit / 8, 1);
    }
    ringbuf *rb = open_queue("queue");
    get(rb, "left behind");
    ringbuf_free(rb);
}

static void test_a_sealed_stamp_with_absurd_sizes_is_corrupt(void)
{
    enum { CASES = 22 };
    const char *path = leave_queue_behind("queue");
    struct rbi_stamp good = read_stamp(path), cases[CASES];
    for (int i = 0; i < CASES; i++) cases[i] = good;
    cases[0].header_bytes = 64;
    cases[1].max_participants = 0;
    cases[2].max_participants = RBI_OWNER_MAX + 1;
    cases[3].cell_log2 = 0;
    cases[4].cell_log2 = 63;
    cases[5].cells_log2 = 1;
    cases[6].cells_log2 = UINT32_MAX;
    cases[7].slots_offset = 0;
    cases[8].data_offset += 4096;
    cases[9].file_bytes *= 2;
    cases[10].name_bytes = 0;
    cases[11].name_bytes = UINT64_MAX;
    cases[13].lanes = RBI_LANES + 1;
    cases[14].blocks += 1; /* no multiple of the parts */
    cases[15].blocks = UINT64_MAX - RBI_TABLE_PARTS + 1;
    cases[16].block_log2 = RBI_BLOCK_MIN_LOG2 - 1;
    cases[17].block_log2 = 63;
    cases[18].table_offset += 4096;
    cases[19].runs_offset = 0;
    cases[20].arena_offset -= 4096;
    memset(cases[21].note, 'x', sizeof cases[21].note);
    memset(cases[12].tag, 'x', sizeof cases[12].tag);
    for (int i = 0; i < CASES; i++) {
        write_sealed(path, cases[i]);
        assert_open(RINGBUF_E_CORRUPT, "queue");
    }
    write_sealed(path, good);
    ringbuf *rb = open_queue("queue");
    get(rb, "left behind");
    ringbuf_free(rb);
}

static void test_a_sealed_stamp_whose_sizes_add_up_only_beyond_32_bits_is_corrupt(void)
{
    const char *path = leave_queue_behind("queue");
    struct rbi_stamp good = read_stamp(path), bad = good;
    bad.cells_log2 = 13;
    bad.cell_log2 = UINT32_MAX; /* together 12: a capacity of 4 KiB, in 8192 cells of what is left of a shift by 2^32 - 1 */
    uint64_t more = RBI_LANES * ((sizeof(struct rbi_slot) << 13) - (good.table_offset - good.slots_offset) / RBI_LANES);
    bad.table_offset += more;
    bad.runs_offset += more;
    bad.arena_offset += more;
    bad.data_offset += more;
    bad.file_bytes = bad.data_offset + RBI_LANES * 4096;
    TEST_ASSERT_EQUAL_INT(0, truncate(path, (off_t)bad.file_bytes));
    write_sealed(path, bad);
    assert_open(RINGBUF_E_CORRUPT, "queue");
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
}

/** Every call that could be led astray, once, on a handle of its own thread. */
static void call_everything(ringbuf *rb)
{
    char buffer[4096];
    size_t size;
    uint64_t number;
    int room;
    ringbuf_stats stats;
    ringbuf_peer peers[4];
    ringbuf_message message = {0};
    ringbuf_reservation reservation;
    ringbuf_findings findings;
    static const uint8_t large[20000];
    static uint8_t copy[sizeof large];
    ringbuf_size(rb, &number);
    ringbuf_has_room(rb, &room, 100);
    ringbuf_has_room(rb, &room, sizeof large);
    ringbuf_get_stats(rb, &stats);
    ringbuf_get_peers(rb, &size, peers, 4);
    for (int i = 0; i < 3; i++) {
        ringbuf_put(rb, buffer, 0, 0);
        ringbuf_put(rb, "hello", 6, rbi_monotonic_ns() + MILLISECOND);
        ringbuf_get(rb, &size, buffer, sizeof buffer, 0);
        if (ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK && ringbuf_nack(rb, &message) == RINGBUF_OK &&
            ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK)
            ringbuf_ack(rb, &message);
        ringbuf_put(rb, large, sizeof large - (size_t)i * 9000, rbi_monotonic_ns() + MILLISECOND);
        if (ringbuf_lease(rb, &message, NULL, 0, 0) == RINGBUF_OK) {
            ringbuf_copy(rb, &message, copy, 0, message.size < sizeof copy ? message.size : sizeof copy);
            if (i % 2 == 0) ringbuf_nack(rb, &message);
            else if (ringbuf_keep(rb, &message) == RINGBUF_OK) ringbuf_release(rb, &message);
        }
        if (ringbuf_reserve(rb, &reservation, sizeof large, 0) == RINGBUF_OK) {
            memset(reservation.data, i, sizeof large);
            if (i || ringbuf_commit(rb, &reservation, sizeof large, 0) != RINGBUF_OK) ringbuf_abort(rb, &reservation);
        }
        ringbuf_check(rb, &findings);
    }
    ringbuf_task_done(rb);
    ringbuf_join(rb, 0);
    ringbuf_recover(rb, &number);
    ringbuf_shutdown(rb, 1);
}

static void test_garbage_behind_a_good_stamp_crashes_nobody_and_hangs_nobody(void)
{
    enum { GARBAGE_BYTES = 64 << 10, PARTS = offsetof(struct rbi_header, arena) + offsetof(struct rbi_arena_words, parts) };
    static uint8_t garbage[GARBAGE_BYTES];
    ringbuf_options options = defaults();
    options.capacity_bytes = 4096; /* so that all up to the arena is garbage */
    options.arena_bytes = 1;
    memset(garbage, 0, sizeof garbage);
    for (uint64_t round = 0; round < 300; round++) {
        const char *path = leave_behind_with("queue", &options);
        uint64_t seed = round, density = 1 + random_below(&seed, 64), end = read_stamp(path).arena_offset;
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(sizeof garbage, end);
        for (size_t i = 2048; i < end; i++) garbage[i] = random_below(&seed, density) ? 0 : (uint8_t)next_random(&seed);
        if (round % 2) memset(garbage + PARTS, 0xff, sizeof(uint64_t)); /* what the table says counts */
        ringbuf *early = open_queue("queue"), *late = NULL;
        write_at(path, 2048, garbage + 2048, end - 2048);
        call_everything(early);
        if (ringbuf_open(&late, "queue", NULL) == RINGBUF_OK) call_everything(late);
        ringbuf_free(late);
        ringbuf_free(early);
        ringbuf_status status = ringbuf_unlink_name("queue", NULL);
        TEST_ASSERT_TRUE(status == RINGBUF_OK || status == RINGBUF_E_NOT_FOUND);
    }
}

/* ---- memory that runs out ---- */

/** Mount a file system of so many KiB; put a file on it that leaves only so many free. */
static ringbuf_options on_small_file_system(int kilobytes, int free_kilobytes)
{
    char size[32], filler[160];
    snprintf(size, sizeof size, "size=%dk", kilobytes);
    mount_small_file_system(size);
    snprintf(filler, sizeof filler, "%s/filler", small_file_system);
    int fd = open(filler, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    TEST_ASSERT_EQUAL_INT(0, posix_fallocate(fd, 0, (off_t)(kilobytes - free_kilobytes) << 10));
    close(fd);
    ringbuf_options options = defaults();
    options.directory = small_file_system;
    return options;
}

static void remove_filler(void)
{
    char filler[160];
    snprintf(filler, sizeof filler, "%s/filler", small_file_system);
    TEST_ASSERT_EQUAL_INT(0, unlink(filler));
}

static int files_on(const char *directory)
{
    char names[256];
    return directory_entries(directory, names, sizeof names);
}

static void test_a_full_file_system_is_no_space_at_create_and_leaves_nothing(void)
{
    NEEDS_ROOT();
    for (int free_kilobytes = 0; free_kilobytes <= 4; free_kilobytes += 4) {
        ringbuf_options options = on_small_file_system(256, free_kilobytes);
        assert_create(RINGBUF_E_NO_SPACE, "queue", &options);
        TEST_ASSERT_EQUAL_INT(1, files_on(small_file_system)); /* the filler */
        remove_filler();
        ringbuf_free(create_with("queue", &options));
        TEST_ASSERT_EQUAL_INT(0, files_on(small_file_system));
        unmount_small_file_system();
    }
}

static void test_a_full_file_system_is_no_space_at_put_and_loses_no_message(void)
{
    NEEDS_ROOT();
    static const int sizes[] = {8, 200, 5000}; /* of a message: in its slot, a few cells, many */
    for (int i = 0; i < 3; i++) {
        ringbuf_options options = on_small_file_system(512, 64);
        options.capacity_bytes = 1 << 20;
        ringbuf *rb = create_with("queue", &options);
        uint8_t bytes[5000], got[5000];
        size_t size;
        int puts = 0;
        ringbuf_status status;
        for (;; puts++) {
            memset(bytes, puts, sizeof bytes);
            status = ringbuf_put(rb, bytes, (size_t)sizes[i], 0);
            if (status != RINGBUF_OK) break;
        }
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, status);
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_put(rb, bytes, (size_t)sizes[i], ringbuf_now_ns() + 1000 * MILLISECOND));
        TEST_ASSERT_GREATER_THAN_INT(3, puts);
        ringbuf_stats stats;
        ASSERT_OK(ringbuf_get_stats(rb, &stats));
        TEST_ASSERT_EQUAL_UINT64(puts, stats.items);
        for (int n = 0; n < puts; n++) {
            ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, 0));
            TEST_ASSERT_EQUAL_UINT64(sizes[i], size);
            TEST_ASSERT_EACH_EQUAL_UINT8(n & 0xff, got, size);
        }
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(rb, &size, got, sizeof got, 0));
        remove_filler();
        ASSERT_OK(ringbuf_put(rb, "room again", 11, 0));
        ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, 0));
        TEST_ASSERT_EQUAL_STRING("room again", got);
        ringbuf_free(rb);
        TEST_ASSERT_EQUAL_INT(0, files_on(small_file_system));
        unmount_small_file_system();
    }
}

static void test_an_empty_queue_whose_pages_are_reserved_works_on_a_full_file_system(void)
{
    NEEDS_ROOT();
    ringbuf_options options = on_small_file_system(512, 256);
    options.capacity_bytes = 4096;
    ringbuf *rb = create_with("queue", &options);
    for (int i = 0; i < 40; i++) put(rb, "once around"), get(rb, "once around");
    int fd = open(small_file_system, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    for (off_t length = 4096; posix_fallocate(fd, 0, length) == 0;) length += 4096; /* full */
    for (int i = 0; i < 100; i++) {
        put(rb, "still works");
        get(rb, "still works");
    }
    close(fd);
    ringbuf_free(rb);
}

static int run_out_of_files(void *context)
{
    struct rlimit none = {3, 3};
    ringbuf *rb = NULL;
    (void)context;
    if (setrlimit(RLIMIT_NOFILE, &none) != 0) return 1;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_E_NO_FILES) return 2;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_E_NO_FILES) return 3;
    return rb ? 4 : 0;
}

static void test_running_out_of_descriptors_has_a_code_of_its_own(void)
{
    ringbuf *rb = create("queue");
    TEST_ASSERT_EQUAL_INT(0, run_child(run_out_of_files, NULL));
    ringbuf_free(rb);
}

static int run_out_of_addresses(void *context)
{
    struct rlimit little = {UINT64_C(1) << 30, UINT64_C(1) << 30};
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    (void)context;
    if (setrlimit(RLIMIT_AS, &little) != 0) return 1;
    options.capacity_bytes = UINT64_C(2) << 30;
    if (ringbuf_create(&rb, "queue", &options) != RINGBUF_E_NO_MEMORY) return 2;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_OK) return 3; /* nothing was left behind: this one is new */
    ringbuf_free(rb);
    return 0;
}

static void test_running_out_of_addresses_has_a_code_of_its_own(void)
{
    if (SANITIZED) TEST_IGNORE_MESSAGE("sanitizers need the addresses themselves");
    if (emulated()) TEST_IGNORE_MESSAGE("qemu does not set RLIMIT_AS for what it runs");
    TEST_ASSERT_EQUAL_INT(0, run_child(run_out_of_addresses, NULL));
}

static int descriptors(void)
{
    char names[1];
    return directory_entries("/proc/self/fd", names, 0);
}

static void test_no_outcome_leaks_a_descriptor(void)
{
    ringbuf_options options = defaults();
    ringbuf_free(create("warm up"));
    int before = descriptors();
    const char *path = leave_queue_behind("queue");
    options.mode = RINGBUF_CREATE;
    assert_create(RINGBUF_E_EXISTS, "queue", &options);
    assert_open(RINGBUF_E_NOT_FOUND, "nothing");
    TEST_ASSERT_EQUAL_INT(0, truncate(path, 100));
    assert_open(RINGBUF_E_CORRUPT, "queue");
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
    uint64_t removed;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    options.capacity_bytes = 0;
    assert_create(RINGBUF_E_INVALID, "queue", &options);
    TEST_ASSERT_EQUAL_INT(before, descriptors());
}

/* ---- many at once ---- */

enum { RACERS = 8, RACE_ROUNDS = 200 };

struct race {
    stage arrived;
    stage failures;
    ringbuf_status status[RACERS];
    uint8_t id[RACERS][16];
};

/** Wait until all racers came here for the `turn`-th time. */
static void meet(struct race *race, int turn)
{
    atomic_fetch_add(&race->arrived, 1);
    while (atomic_load(&race->arrived) < RACERS * turn) sched_yield();
}

struct racer {
    struct race *race;
    int number;
};

static int race_to_create(void *context)
{
    struct racer *me = context;
    struct race *race = me->race;
    ringbuf_options options = defaults();
    for (int round = 0, turn = 1; round < RACE_ROUNDS; round++) {
        ringbuf *rb = NULL;
        ringbuf_info info = {0};
        meet(race, turn++);
        race->status[me->number] = ringbuf_create(&rb, "race", &options);
        if (rb) ringbuf_get_info(rb, &info);
        memcpy(race->id[me->number], info.id, sizeof info.id);
        meet(race, turn++);
        if (race->status[me->number] != RINGBUF_OK || memcmp(race->id[0], info.id, sizeof info.id) != 0)
            atomic_fetch_add(&race->failures, 1);
        meet(race, turn++);
        ringbuf_free(rb);
    }
    return 0;
}

static void run_race(child_main *body, struct race *race)
{
    struct racer racers[RACERS];
    pid_t children[RACERS];
    for (int i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){race, i};
        children[i] = start_child(body, &racers[i]);
    }
    for (int i = 0; i < RACERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
}

static void test_of_many_that_create_at_once_one_does_and_all_end_in_the_same_queue(void)
{
    struct race *race = share_memory(sizeof *race);
    run_race(race_to_create, race);
    TEST_ASSERT_EQUAL_INT(0, atomic_load(&race->failures));
    munmap(race, sizeof *race);
}

/** Come, put one message, take one, go: the queue comes into being and vanishes all the time. */
static int come_and_go(void *context)
{
    ringbuf_options options = defaults();
    (void)context;
    for (int round = 0; round < RACE_ROUNDS; round++) {
        ringbuf *rb = NULL;
        char buffer[16];
        size_t size;
        if (ringbuf_create(&rb, "race", &options) != RINGBUF_OK) return 1;
        if (ringbuf_put(rb, "hello", 6, 0) != RINGBUF_OK) return 2;
        if (ringbuf_get(rb, &size, buffer, sizeof buffer, ringbuf_now_ns() + INT64_C(60000) * MILLISECOND) != RINGBUF_OK) return 3;
        if (strcmp(buffer, "hello") != 0) return 4;
        ringbuf_free(rb);
    }
    return 0;
}

static void test_coming_and_going_at_once_never_meets_a_dying_queue(void)
{
    struct race *race = share_memory(sizeof *race);
    run_race(come_and_go, race);
    munmap(race, sizeof *race);
}

/* ---- lifetime ---- */

static void test_the_last_one_out_removes_an_empty_queue_and_nobody_before(void)
{
    ringbuf *a = create("queue"), *b = open_queue("queue");
    char path[512];
    snprintf(path, sizeof path, "%s", ringbuf_path(a));
    ringbuf_free(a);
    TEST_ASSERT_TRUE(exists(path));
    ringbuf_free(b);
    TEST_ASSERT_FALSE(exists(path));
}

static void test_a_queue_with_messages_stays_and_keeps_them_for_the_next(void)
{
    ringbuf *rb = create("queue");
    ringbuf_info before = info_of(rb);
    put(rb, "a");
    put(rb, "b");
    ringbuf_free(rb);
    rb = create("queue");
    TEST_ASSERT_EQUAL_MEMORY(before.id, info_of(rb).id, sizeof before.id);
    get(rb, "a");
    ringbuf_free(rb);
    rb = open_queue("queue");
    get(rb, "b");
    ringbuf_free(rb);
    assert_open(RINGBUF_E_NOT_FOUND, "queue");
}

static void test_auto_cleanup_removes_at_the_last_exit_also_with_messages(void)
{
    ringbuf *a = create_flagged("queue", RINGBUF_AUTO_CLEANUP), *b = open_queue("queue");
    put(a, "never got");
    ringbuf_free(a);
    ringbuf *c = open_queue("queue");
    ringbuf_free(b);
    ringbuf_free(c);
    assert_open(RINGBUF_E_NOT_FOUND, "queue");
}

static void test_a_persistent_queue_stays_until_it_is_unlinked(void)
{
    ringbuf *rb = create_flagged("queue", RINGBUF_PERSISTENT);
    ringbuf_info before = info_of(rb);
    ringbuf_free(rb);
    uint64_t removed = 1;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    rb = create("queue");
    TEST_ASSERT_EQUAL_MEMORY(before.id, info_of(rb).id, sizeof before.id);
    ASSERT_OK(ringbuf_unlink(rb));
    ringbuf_free(rb);
}

static int leave_by_exit(void *context)
{
    (void)context;
    ringbuf *rb = NULL;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    exit(0);
}

static void test_a_process_that_exits_without_closing_leaves_no_empty_queue(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s", path_of_name("queue"));
    TEST_ASSERT_EQUAL_INT(0, run_child(leave_by_exit, NULL));
    TEST_ASSERT_FALSE(exists(path));
}

struct orphan {
    const char *name;
    uint32_t flags;
    bool with_message;
};

/** Make a queue and be killed. */
static int die_in_queue(void *context)
{
    const struct orphan *orphan = context;
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    options.flags = orphan->flags;
    if (ringbuf_create(&rb, orphan->name, &options) != RINGBUF_OK) return 1;
    if (orphan->with_message && ringbuf_put(rb, "orphan", 7, 0) != RINGBUF_OK) return 2;
    die();
}

static void leave_orphan(const char *name, uint32_t flags, bool with_message)
{
    struct orphan orphan = {name, flags, with_message};
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(die_in_queue, &orphan));
    TEST_ASSERT_TRUE(exists(path_of_name(name)));
}

static void test_an_empty_queue_of_killed_users_is_replaced_by_the_next_create(void)
{
    ringbuf_options options = defaults();
    leave_orphan("queue", 0, false);
    assert_open(RINGBUF_E_NOT_FOUND, "queue"); /* which removes it */
    leave_orphan("queue", 0, false);
    options.capacity_bytes = 1 << 18;
    options.mode = RINGBUF_CREATE; /* it does not count as existing */
    ringbuf *rb = create_with("queue", &options);
    TEST_ASSERT_EQUAL_UINT64(1 << 18, info_of(rb).capacity_bytes);
    ringbuf_free(rb);
}

static void test_a_queue_of_killed_users_with_messages_is_found_with_all_of_them(void)
{
    leave_orphan("queue", 0, true);
    ringbuf *rb = open_queue("queue");
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    TEST_ASSERT_EQUAL_UINT64(1, stats.participants);
    TEST_ASSERT_EQUAL_UINT64(1, stats.recoveries);
    get(rb, "orphan");
    ringbuf_free(rb);
}

static void test_collect_removes_what_nobody_is_attached_to_and_nothing_else(void)
{
    ringbuf *used = create("used"), *unnamed = create_with(NULL, NULL);
    leave_orphan("empty", 0, false);
    leave_orphan("cleanup", RINGBUF_AUTO_CLEANUP, true);
    leave_orphan("full", 0, true);
    leave_orphan("persistent", RINGBUF_PERSISTENT, false);
    int fd = open(path_of_name("no queue"), O_CREAT | O_RDWR, 0600);
    close(fd);
    uint64_t removed = 0;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(2, removed);
    TEST_ASSERT_FALSE(exists(path_of_name("empty")));
    TEST_ASSERT_FALSE(exists(path_of_name("cleanup")));
    TEST_ASSERT_TRUE(exists(path_of_name("full")));
    TEST_ASSERT_TRUE(exists(path_of_name("persistent")));
    TEST_ASSERT_TRUE(exists(path_of_name("no queue")));
    TEST_ASSERT_TRUE(exists(ringbuf_path(used)));
    TEST_ASSERT_TRUE(exists(ringbuf_path(unnamed)));
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    ASSERT_OK(ringbuf_unlink_name("full", NULL));
    ASSERT_OK(ringbuf_unlink_name("persistent", NULL));
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of_name("no queue")));
    ringbuf_free(used);
    ringbuf_free(unnamed);
}

static int stay_in_queue(void *context)
{
    ringbuf *rb = NULL;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    atomic_fetch_add((stage *)context, 1);
    sleep_for_ever();
}

static void test_collect_never_touches_the_queue_of_a_stopped_process(void)
{
    stage *ready = share_memory(sizeof *ready);
    pid_t child = start_child(stay_in_queue, ready);
    wait_for_stage(ready, 1);
    stop_child(child);
    uint64_t removed = 1;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    TEST_ASSERT_TRUE(exists(path_of_name("queue")));
    kill_child(child);
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(1, removed);
    munmap(ready, sizeof *ready);
}

/* ---- removing names ---- */

static void test_users_of_an_unlinked_queue_go_on_and_nobody_else_finds_it(void)
{
    ringbuf *a = create("queue"), *b = open_queue("queue");
    put(a, "before");
    ASSERT_OK(ringbuf_unlink(a));
    ASSERT_OK(ringbuf_unlink(a)); /* gone is gone */
    ASSERT_OK(ringbuf_unlink(b));
    assert_open(RINGBUF_E_NOT_FOUND, "queue");
    put(a, "after");
    get(b, "before");
    get(b, "after");
    put(a, "never got");
    ringbuf_free(a);
    ringbuf_free(b);
}

static void test_unlinking_by_name_removes_a_queue_in_use_or_not(void)
{
    ringbuf *rb = create("queue");
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
    assert_open(RINGBUF_E_NOT_FOUND, "queue");
    put(rb, "a");
    get(rb, "a");
    ringbuf_free(rb);
    leave_queue_behind("queue");
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
    ASSERT_STATUS(RINGBUF_E_NOT_FOUND, ringbuf_unlink_name("queue", NULL));
}

static void test_users_of_an_unlinked_queue_never_remove_the_next_of_its_name(void)
{
    ringbuf *old = create("queue"), *older = open_queue("queue");
    ASSERT_OK(ringbuf_unlink(old));
    ringbuf *new = create("queue");
    TEST_ASSERT_FALSE(same_queue(old, new));
    ASSERT_OK(ringbuf_unlink(old));
    ringbuf_free(old);
    TEST_ASSERT_TRUE(exists(path_of_name("queue")));
    ringbuf_free(older); /* the last one out of the old one */
    TEST_ASSERT_TRUE(exists(path_of_name("queue")));
    ringbuf *again = open_queue("queue");
    TEST_ASSERT_TRUE(same_queue(new, again));
    ringbuf_free(again);
    ringbuf_free(new);
}

/** Hold a file's lock as if about to remove it, for so long. */
struct remover {
    uint32_t lock;
    long ms;
    stage holds;
};

static int hold_lock(void *context)
{
    struct remover *remover = context;
    rbi_fd fd;
    if (rbi_open_file(&fd, path_of_name("queue")) != RINGBUF_OK) return 1;
    if (rbi_lock_try(fd, remover->lock, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) return 2;
    atomic_fetch_add(&remover->holds, 1);
    nap_ms(remover->ms);
    return 0;
}

static pid_t start_remover(struct remover **remover, uint32_t lock, long ms)
{
    *remover = share_memory(sizeof **remover);
    (*remover)->lock = lock;
    (*remover)->ms = ms;
    pid_t child = start_child(hold_lock, *remover);
    wait_for_stage(&(*remover)->holds, 1);
    return child;
}

static void test_opening_waits_for_somebody_who_is_just_looking_whether_to_remove_it(void)
{
    struct remover *remover;
    leave_queue_behind("queue");
    pid_t child = start_remover(&remover, RBI_LOCK_PRESENCE, 100);
    ringbuf *rb = open_queue("queue");
    get(rb, "left behind");
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    munmap(remover, sizeof *remover);
}

static void test_opening_beside_somebody_who_never_ends_removing_is_busy(void)
{
    struct remover *remover;
    leave_queue_behind("queue");
    pid_t child = start_remover(&remover, RBI_LOCK_PRESENCE, 600000);
    stop_child(child);
    assert_open(RINGBUF_E_BUSY, "queue");
    uint64_t removed = 1;
    ASSERT_OK(ringbuf_collect(&removed, NULL)); /* does not wait */
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    kill_child(child);
    ringbuf *rb = open_queue("queue");
    get(rb, "left behind");
    ringbuf_free(rb);
    munmap(remover, sizeof *remover);
}

static void test_unlinking_waits_for_somebody_who_is_at_it(void)
{
    struct remover *remover;
    ringbuf *rb = create("queue");
    pid_t child = start_remover(&remover, RBI_LOCK_NAME, 100);
    ASSERT_OK(ringbuf_unlink(rb));
    TEST_ASSERT_FALSE(exists(path_of_name("queue")));
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    munmap(remover, sizeof *remover);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_created_queue_can_be_opened_and_both_are_the_same);
    RUN_TEST(test_opening_or_attaching_where_there_is_none_finds_nothing_and_makes_nothing);
    RUN_TEST(test_attaching_by_id_finds_that_queue_and_no_other_of_its_name);
    RUN_TEST(test_open_or_create_attaches_to_what_is_there_whose_own_sizes_hold);
    RUN_TEST(test_mode_create_refuses_a_queue_that_exists_and_leaves_it_alone);
    RUN_TEST(test_mode_create_says_exists_also_where_the_queue_is_crowded);
    RUN_TEST(test_mode_fresh_replaces_what_nobody_uses_and_refuses_what_somebody_does);
    RUN_TEST(test_mode_fresh_replaces_a_file_that_is_no_queue);
    RUN_TEST(test_arguments_that_make_no_sense_are_invalid_and_make_nothing);
    RUN_TEST(test_info_tells_what_the_queue_was_made_with);
    RUN_TEST(test_without_an_arena_the_largest_message_is_half_the_ring);
    RUN_TEST(test_an_arena_has_at_least_the_bytes_asked_for_and_no_more_blocks_than_its_table_can_name);
    RUN_TEST(test_the_largest_message_of_a_ring_beside_an_arena_is_an_eighth_of_it_and_64_kib_at_most);
    RUN_TEST(test_the_smallest_and_the_largest_queue_work_and_take_little_memory_while_empty);
    RUN_TEST(test_any_name_works_and_no_two_share_a_queue);
    RUN_TEST(test_an_empty_name_and_one_of_1025_bytes_are_invalid);
    RUN_TEST(test_an_unnamed_queue_is_found_by_the_name_it_tells_and_goes_with_its_last_user);
    RUN_TEST(test_a_file_under_another_s_name_is_gone);
    RUN_TEST(test_a_directory_that_is_missing_is_named_as_the_cause);
    RUN_TEST(test_a_directory_that_cannot_hold_queues_is_no_directory);
    RUN_TEST(test_without_a_directory_in_the_environment_queues_live_in_dev_shm);
    RUN_TEST(test_the_option_goes_before_the_environment);
    RUN_TEST(test_a_symbolic_link_is_never_followed);
    RUN_TEST(test_a_pipe_a_directory_or_a_socket_under_the_name_is_corrupt_and_stays);
    RUN_TEST(test_a_file_of_another_user_is_refused_unless_permissions_are_given);
    RUN_TEST(test_another_user_gets_in_only_where_both_sides_allow_it);
    RUN_TEST(test_a_file_of_another_size_is_corrupt_whoever_asks_and_can_be_removed);
    RUN_TEST(test_a_file_of_zeros_or_of_garbage_is_corrupt);
    RUN_TEST(test_a_queue_of_another_byte_order_or_layout_is_another_version);
    RUN_TEST(test_every_flipped_bit_of_the_stamp_is_noticed);
    RUN_TEST(test_a_sealed_stamp_with_absurd_sizes_is_corrupt);
    RUN_TEST(test_a_sealed_stamp_whose_sizes_add_up_only_beyond_32_bits_is_corrupt);
    RUN_TEST(test_garbage_behind_a_good_stamp_crashes_nobody_and_hangs_nobody);
    RUN_TEST(test_a_full_file_system_is_no_space_at_create_and_leaves_nothing);
    RUN_TEST(test_a_full_file_system_is_no_space_at_put_and_loses_no_message);
    RUN_TEST(test_an_empty_queue_whose_pages_are_reserved_works_on_a_full_file_system);
    RUN_TEST(test_running_out_of_descriptors_has_a_code_of_its_own);
    RUN_TEST(test_running_out_of_addresses_has_a_code_of_its_own);
    RUN_TEST(test_no_outcome_leaks_a_descriptor);
    RUN_TEST(test_of_many_that_create_at_once_one_does_and_all_end_in_the_same_queue);
    RUN_TEST(test_coming_and_going_at_once_never_meets_a_dying_queue);
    RUN_TEST(test_the_last_one_out_removes_an_empty_queue_and_nobody_before);
    RUN_TEST(test_a_queue_with_messages_stays_and_keeps_them_for_the_next);
    RUN_TEST(test_auto_cleanup_removes_at_the_last_exit_also_with_messages);
    RUN_TEST(test_a_persistent_queue_stays_until_it_is_unlinked);
    RUN_TEST(test_a_process_that_exits_without_closing_leaves_no_empty_queue);
    RUN_TEST(test_an_empty_queue_of_killed_users_is_replaced_by_the_next_create);
    RUN_TEST(test_a_queue_of_killed_users_with_messages_is_found_with_all_of_them);
    RUN_TEST(test_collect_removes_what_nobody_is_attached_to_and_nothing_else);
    RUN_TEST(test_collect_never_touches_the_queue_of_a_stopped_process);
    RUN_TEST(test_users_of_an_unlinked_queue_go_on_and_nobody_else_finds_it);
    RUN_TEST(test_unlinking_by_name_removes_a_queue_in_use_or_not);
    RUN_TEST(test_users_of_an_unlinked_queue_never_remove_the_next_of_its_name);
    RUN_TEST(test_opening_waits_for_somebody_who_is_just_looking_whether_to_remove_it);
    RUN_TEST(test_opening_beside_somebody_who_never_ends_removing_is_busy);
    RUN_TEST(test_unlinking_waits_for_somebody_who_is_at_it);
    return leave_suite_directory(UNITY_END());
}
