/* test_observe.c — floor 4: looking at a queue's file from outside: what it tells, and that it changes nothing. */
#include "support.h"

#include "points.h"
#include "segment.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

/** What a look has found. */
struct look {
    ringbuf_observation observation;
    ringbuf_info info;
    ringbuf_stats stats;
};

static struct look look_at(const char *name)
{
    struct look look;
    memset(&look, 0xa5, sizeof look);
    look.observation.struct_bytes = sizeof look.observation;
    ASSERT_OK(ringbuf_observe(&look.observation, &look.info, &look.stats, name, NULL));
    return look;
}

static void assert_condition(uint32_t condition, const char *name)
{
    struct look look = look_at(name);
    TEST_ASSERT_EQUAL_UINT32(condition, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT64(0, look.stats.capacity_bytes);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.handles);
}

static void assert_nothing_there(const char *name)
{
    ringbuf_observation observation = {.struct_bytes = sizeof observation};
    ASSERT_STATUS(RINGBUF_E_NOT_FOUND, ringbuf_observe(&observation, NULL, NULL, name, NULL));
}

static ringbuf *create(const char *name, uint32_t participants, uint32_t flags)
{
    ringbuf *rb = NULL;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 1 << 16;
    options.arena_bytes = 1 << 20;
    options.max_participants = participants;
    options.flags = flags;
    options.tag = "raw";
    ASSERT_OK(ringbuf_create(&rb, name, &options));
    return rb;
}

static void put_bytes(ringbuf *rb, size_t size)
{
    static const uint8_t zeros[200000];
    ASSERT_OK(ringbuf_put(rb, zeros, size, 0));
}

static const char *path_of(const char *file_name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", suite_directory, file_name);
    return path;
}

static struct stat stat_of(const char *path)
{
    struct stat facts;
    TEST_ASSERT_EQUAL_INT(0, stat(path, &facts));
    return facts;
}

static void write_at(const char *path, uint64_t offset, const void *bytes, size_t count)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    TEST_ASSERT_EQUAL_INT64((int64_t)count, pwrite(fd, bytes, count, (off_t)offset));
    close(fd);
}

static void read_at(const char *path, uint64_t offset, void *bytes, size_t count)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    TEST_ASSERT_EQUAL_INT64((int64_t)count, pread(fd, bytes, count, (off_t)offset));
    close(fd);
}

static void make_file(const char *path, const void *bytes, size_t count)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    TEST_ASSERT_EQUAL_INT64((int64_t)count, write(fd, bytes, count));
    close(fd);
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

/* ---- it tells what those who are attached would say ---- */

/** All of *stats but what the one who is asked knows and a look does not. */
static void assert_same_stats(const ringbuf_stats *expected, const ringbuf_stats *told)
{
    TEST_ASSERT_EQUAL_MEMORY(expected, told, sizeof *expected);
}

static void assert_told(ringbuf *rb)
{
    ringbuf_stats stats;
    ringbuf_info info;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    ASSERT_OK(ringbuf_get_info(rb, &info));
    struct look look = look_at(ringbuf_name(rb));
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOUND, look.observation.condition);
    assert_same_stats(&stats, &look.stats);
    TEST_ASSERT_EQUAL_MEMORY(&info, &look.info, sizeof info);
    TEST_ASSERT_EQUAL_MEMORY(info.id, look.observation.id, sizeof info.id);
    TEST_ASSERT_EQUAL_STRING(ringbuf_name(rb), look.observation.name);
    TEST_ASSERT_EQUAL_UINT32(strlen(ringbuf_name(rb)), look.observation.name_bytes);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.misplaced);
}

static void test_a_look_tells_what_the_attached_would_say_whatever_is_in_the_queue(void)
{
    ringbuf *rb = create("q", 8, RINGBUF_KEEP_WARM);
    uint8_t buffer[300];
    size_t size;
    uint64_t random = 7;
    ringbuf_message held[6] = {0};
    uint32_t holding = 0;
    assert_told(rb);
    for (int round = 0; round < 3000; round++) {
        ringbuf_message message;
        ringbuf_status status;
        switch (random_below(&random, 9)) {
        case 0:
        case 1:
        case 2: status = ringbuf_put(rb, buffer, random_below(&random, sizeof buffer), 0); break;
        case 3: status = ringbuf_put(rb, (uint8_t[20000]){0}, 9000 + random_below(&random, 11000), 0); break;
        case 4: status = ringbuf_get(rb, &size, buffer, sizeof buffer, 0); break;
        case 5: /* given back: counting by cursors would be wrong from here on */
            status = ringbuf_take(rb, &message, NULL, 0, 0);
            if (status == RINGBUF_OK) ASSERT_OK(ringbuf_nack(rb, &message));
            break;
        case 6:
            status = holding < 6 ? ringbuf_lease(rb, &held[holding], NULL, 0, 0) : RINGBUF_E_TIMEOUT;
            if (status == RINGBUF_OK) holding++;
            break;
        case 7:
            status = RINGBUF_OK;
            if (holding) ASSERT_OK(random_below(&random, 2) ? ringbuf_ack(rb, &held[--holding]) : ringbuf_nack(rb, &held[--holding]));
            break;
        default: status = ringbuf_task_done(rb); break;
        }
        if (status == RINGBUF_E_SMALL && ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK) ASSERT_OK(ringbuf_ack(rb, &message));
        if (round % 10 == 0) assert_told(rb);
    }
    ASSERT_OK(ringbuf_shutdown(rb, 0));
    assert_told(rb);
    ASSERT_OK(ringbuf_shutdown(rb, 1));
    assert_told(rb);
    ringbuf_free(rb);
}

static void test_a_full_arena_is_told_although_the_ring_is_nearly_empty(void)
{
    ringbuf *rb = create("q", 8, 0);
    while (ringbuf_put(rb, (uint8_t[100000]){0}, 100000, 0) == RINGBUF_OK) continue;
    struct look look = look_at("q");
    TEST_ASSERT_GREATER_THAN_UINT64(look.stats.arena_bytes / 10 * 9, look.stats.arena_used_bytes);
    TEST_ASSERT_LESS_THAN_UINT64(look.stats.capacity_bytes / 10, look.stats.used_bytes);
    assert_told(rb);
    ASSERT_OK(ringbuf_unlink(rb));
    ringbuf_free(rb);
}

static void test_every_name_is_told_as_it_is(void)
{
    char longest[1025];
    memset(longest, '/', 1024);
    longest[1024] = '\0';
    const char *const names[] = {"\x1b[31mred\n", "\xff\xfe", "[/x]", "\xe2\x80\xae" "evil", longest};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        ringbuf *rb = create(names[i], 8, 0);
        assert_told(rb);
        ringbuf_free(rb);
    }
}

static void test_handles_of_one_process_are_counted_as_handles_and_as_one_process(void)
{
    ringbuf *first = create("q", 8, 0), *second = NULL;
    ASSERT_OK(ringbuf_open(&second, "q", NULL));
    struct look look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(2, look.observation.handles);
    TEST_ASSERT_EQUAL_UINT32(1, look.observation.processes);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.dead);
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOMEBODY, look.observation.presence);
    ringbuf_free(second);
    ringbuf_free(first);
    assert_nothing_there("q");
}

/* ---- it changes nothing ---- */

static int leave_by_dying(void *context)
{
    ringbuf *rb = create("q", 8, 0);
    if (context) put_bytes(rb, 100);
    die();
}

static void test_an_abandoned_queue_stays_as_it_is_whether_empty_or_not(void)
{
    for (int full = 0; full < 2; full++) {
        TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, full ? &full : NULL));
        struct stat before = stat_of(path_of("ringbuf.q"));
        static uint8_t content[2][65536];
        read_at(path_of("ringbuf.q"), 0, content[0], sizeof content[0]);
        for (int look = 0; look < 3; look++) {
            struct look found = look_at("q");
            TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOUND, found.observation.condition);
            TEST_ASSERT_EQUAL_UINT32(RINGBUF_NOBODY, found.observation.presence);
            TEST_ASSERT_EQUAL_UINT64((uint64_t)full, found.stats.items);
            TEST_ASSERT_EQUAL_UINT32(1, found.observation.dead);
            TEST_ASSERT_EQUAL_UINT32(0, found.observation.handles);
        }
        read_at(path_of("ringbuf.q"), 0, content[1], sizeof content[1]);
        TEST_ASSERT_EQUAL_MEMORY(content[0], content[1], sizeof content[0]);
        struct stat after = stat_of(path_of("ringbuf.q"));
        TEST_ASSERT_EQUAL_INT64(before.st_ino, after.st_ino);
        TEST_ASSERT_EQUAL_INT64(before.st_blocks, after.st_blocks);
        TEST_ASSERT_EQUAL_INT64(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
        ASSERT_OK(ringbuf_unlink_name("q", NULL));
    }
}

static void test_a_queue_all_of_whose_places_are_taken_is_told_of_as_well(void)
{
    ringbuf *first = create("q", 2, 0), *second = NULL, *third = NULL;
    ASSERT_OK(ringbuf_open(&second, "q", NULL));
    ASSERT_STATUS(RINGBUF_E_CROWDED, ringbuf_open(&third, "q", NULL));
    assert_told(first);
    TEST_ASSERT_EQUAL_UINT32(2, look_at("q").observation.handles);
    ringbuf_free(second);
    ringbuf_free(first);
}

static void test_no_look_leaks_a_descriptor(void)
{
    ringbuf *rb = create("q", 8, 0);
    int before = open("/dev/null", O_RDONLY);
    close(before);
    for (int i = 0; i < 50; i++) look_at("q");
    int after = open("/dev/null", O_RDONLY);
    close(after);
    TEST_ASSERT_EQUAL_INT(before, after);
    ringbuf_free(rb);
}

/* ---- while others move ---- */

static _Atomic bool stop;

static void *move(void *context)
{
    ringbuf *rb = context;
    uint8_t buffer[400];
    size_t size;
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        ringbuf_message message;
        ringbuf_put(rb, buffer, i % 400, 0);
        if (i % 97 == 0 && ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK) ringbuf_nack(rb, &message);
        if (i % 3) ringbuf_get(rb, &size, buffer, sizeof buffer, 0);
    }
    return NULL;
}

static void test_a_queue_whose_messages_move_is_never_told_to_be_damaged(void)
{
    ringbuf *rb = create("q", 8, 0);
    pthread_t movers[2];
    atomic_store(&stop, false);
    for (int i = 0; i < 2; i++) TEST_ASSERT_EQUAL_INT(0, pthread_create(&movers[i], NULL, move, rb));
    for (int i = 0; i < (SANITIZED ? 200 : 1000); i++) {
        struct look look = look_at("q");
        if (look.observation.condition != RINGBUF_SOUND || look.stats.items > 512 || look.stats.used_bytes > look.stats.capacity_bytes) {
            atomic_store(&stop, true);
            TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOUND, look.observation.condition);
            TEST_ASSERT_LESS_OR_EQUAL_UINT64(512, look.stats.items);
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) pthread_join(movers[i], NULL);
    assert_told(rb);
    ASSERT_OK(ringbuf_unlink(rb));
    ringbuf_free(rb);
}

static int truncate_for_ever(void *context)
{
    (void)context;
    const off_t whole = stat_of(path_of("ringbuf.q")).st_size;
    for (off_t bytes = 0;; bytes = (bytes + 4099) % whole)
        if (truncate(path_of("ringbuf.q"), bytes) != 0 || truncate(path_of("ringbuf.q"), whole) != 0) return 1;
}

static void test_a_file_that_is_truncated_at_the_same_time_ends_nobody(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    pid_t child = start_child(truncate_for_ever, NULL);
    for (int i = 0; i < 3000; i++) TEST_ASSERT_LESS_OR_EQUAL_UINT32(RINGBUF_NO_QUEUE, look_at("q").observation.condition);
    kill_child(child);
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
}

#ifdef RBI_TEST_POINTS
static uint32_t looks;

/** As a process that moves something between any two looks: the file's cursors are never twice the same. */
static void move_a_cursor(enum rbi_point point)
{
    if (point != RBI_POINT_reclaimed) return;
    uint64_t number = ++looks;
    write_at(path_of("ringbuf.q"), offsetof(struct rbi_header, order.zero), &number, sizeof number);
}
#endif

static void test_a_ring_that_never_stands_still_is_counted_by_its_cursors_and_one_that_does_is_damaged(void)
{
#ifndef RBI_TEST_POINTS
    TEST_IGNORE_MESSAGE("in the build with test points only");
#else
    ringbuf *rb = create("q", 8, 0);
    ringbuf_message message;
    uint8_t buffer[100];
    size_t size;
    for (int i = 0; i < 5; i++) put_bytes(rb, 20);
    ASSERT_OK(ringbuf_get(rb, &size, buffer, sizeof buffer, 0)); /* released: reclaim passes it in each copy */
    ASSERT_OK(ringbuf_take(rb, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_nack(rb, &message)); /* so that the records are walked */
    rb->ring.lanes[0].slots[2].word = 0; /* one of them is no record */
    struct look look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_DAMAGED, look.observation.condition);
    looks = 0;
    rbi_point_hook = move_a_cursor;
    look = look_at("q");
    rbi_point_hook = NULL;
    TEST_ASSERT_GREATER_THAN_UINT32(1, looks);
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOUND, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT64(3, look.stats.items); /* tail - head: what was given back is behind head */
    ASSERT_OK(ringbuf_unlink(rb));
    ringbuf_free(rb);
#endif
}

/* ---- what is no queue, or no good one ---- */

static void test_what_is_no_file_is_named_and_not_opened(void)
{
    const char *path = path_of("ringbuf.q");
    assert_nothing_there("q");

    TEST_ASSERT_EQUAL_INT(0, mkdir(path, 0700));
    assert_condition(RINGBUF_NO_FILE, "q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_FOLDER, look_at("q").observation.file_type);
    TEST_ASSERT_EQUAL_INT(0, rmdir(path));

    TEST_ASSERT_EQUAL_INT(0, symlink("/etc/passwd", path));
    assert_condition(RINGBUF_NO_FILE, "q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_LINK, look_at("q").observation.file_type);
    TEST_ASSERT_EQUAL_INT(0, unlink(path));

    TEST_ASSERT_EQUAL_INT(0, mkfifo(path, 0600));
    int writer = open(path, O_WRONLY | O_NONBLOCK);
    TEST_ASSERT_EQUAL_INT(-1, writer); /* nobody reads */
    assert_condition(RINGBUF_NO_FILE, "q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_FIFO, look_at("q").observation.file_type);
    TEST_ASSERT_EQUAL_INT(0, unlink(path));

    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    TEST_ASSERT_LESS_THAN_UINT64(sizeof address.sun_path, strlen(path));
    memcpy(address.sun_path, path, strlen(path));
    TEST_ASSERT_EQUAL_INT(0, bind(fd, (const struct sockaddr *)&address, sizeof address));
    assert_condition(RINGBUF_NO_FILE, "q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOCKET, look_at("q").observation.file_type);
    close(fd);
    TEST_ASSERT_EQUAL_INT(0, unlink(path));
}

static void test_a_file_that_is_no_queue_is_told_from_a_damaged_one(void)
{
    static const uint8_t bytes[10000] = {1, 2, 3};
    static const size_t sizes[] = {0, 1, 8, 11, 12, 1000, 2047, 2048, 10000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        make_file(path_of("ringbuf.q"), bytes, sizes[i]);
        assert_condition(RINGBUF_NO_QUEUE, "q");
        TEST_ASSERT_EQUAL_UINT64(sizes[i], look_at("q").observation.file_bytes);
        TEST_ASSERT_EQUAL_INT(0, unlink(path_of("ringbuf.q")));
    }
}

static void test_a_truncated_queue_is_damaged_and_its_name_and_sizes_are_told(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    const char *path = path_of("ringbuf.q");
    TEST_ASSERT_EQUAL_INT(0, truncate(path, 3000));
    struct look look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_DAMAGED, look.observation.condition);
    TEST_ASSERT_EQUAL_STRING("q", look.observation.name);
    TEST_ASSERT_EQUAL_UINT32(1, look.info.truncated);
    TEST_ASSERT_EQUAL_UINT64(1 << 16, look.info.capacity_bytes);
    TEST_ASSERT_EQUAL_STRING("raw", look.info.tag);
    TEST_ASSERT_EQUAL_UINT64(0, look.stats.capacity_bytes);
    TEST_ASSERT_EQUAL_INT(0, truncate(path, 1000)); /* within the stamp: nothing of it can be believed */
    look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_DAMAGED, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.name_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, look.info.capacity_bytes);
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
}

static void test_a_flipped_bit_of_the_stamp_or_a_wild_cursor_is_damage(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    const char *path = path_of("ringbuf.q");
    struct rbi_stamp stamp;
    read_at(path, 0, &stamp, sizeof stamp);
    for (size_t at = 12; at < sizeof stamp; at += 7) {
        uint8_t byte = ((const uint8_t *)&stamp)[at] ^ 4;
        write_at(path, at, &byte, 1);
        assert_condition(RINGBUF_DAMAGED, "q");
        write_at(path, 0, &stamp, sizeof stamp);
    }
    uint64_t wild = UINT64_MAX / 3;
    write_at(path, offsetof(struct rbi_header, lanes), &wild, sizeof wild);
    struct look look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_DAMAGED, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT64(0, look.stats.capacity_bytes);
    TEST_ASSERT_EQUAL_STRING("q", look.observation.name);
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
}

static void test_whatever_lies_behind_the_stamp_the_figures_stay_within_their_bounds(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    const char *path = path_of("ringbuf.q");
    struct rbi_stamp stamp;
    static uint8_t whole[1 << 19];
    read_at(path, 0, &stamp, sizeof stamp);
    read_at(path, 0, whole, sizeof whole);
    uint64_t random = 11, sound = 0;
    for (int round = 0; round < 3000; round++) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint64_t words = 1 + random_below(&random, 30);
        while (words--) {
            uint64_t word = next_random(&random) >> random_below(&random, 64);
            uint64_t offset = sizeof stamp + random_below(&random, (round % 2 ? 8192 : stamp.runs_offset) - sizeof stamp);
            TEST_ASSERT_EQUAL_INT64(sizeof word, pwrite(fd, &word, sizeof word, (off_t)(offset & ~UINT64_C(7))));
        }
        struct look look = look_at("q");
        TEST_ASSERT_LESS_OR_EQUAL_UINT32(RINGBUF_DAMAGED, look.observation.condition);
        sound += look.observation.condition == RINGBUF_SOUND;
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(look.stats.arena_bytes, look.stats.arena_used_bytes);
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(RBI_LANES * look.stats.capacity_bytes, look.stats.used_bytes);
        TEST_ASSERT_LESS_OR_EQUAL_UINT32(8, look.observation.handles + look.observation.dead);
        if (round % 10 == 9) TEST_ASSERT_EQUAL_INT64(sizeof whole, pwrite(fd, whole, sizeof whole, 0));
        close(fd);
    }
    TEST_ASSERT_GREATER_THAN_UINT64(0, sound);
    TEST_ASSERT_LESS_THAN_UINT64(3000, sound);
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
}

static void test_a_queue_of_another_layout_or_byte_order_is_told_with_version_and_name(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    const char *path = path_of("ringbuf.q");
    struct rbi_stamp stamp;
    read_at(path, 0, &stamp, sizeof stamp);
    struct rbi_stamp other = stamp;
    other.layout_version = 77;
    other.flags = RINGBUF_PERSISTENT;
    memset(&other.slots_offset, 0xff, 48); /* not where a later layout need have them */
    write_at(path, 0, &other, sizeof other);
    struct look look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_OTHER_LAYOUT, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT32(77, look.observation.layout_version);
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_PERSISTENT, look.observation.flags);
    TEST_ASSERT_EQUAL_STRING("q", look.observation.name);
    TEST_ASSERT_EQUAL_MEMORY(stamp.id, look.observation.id, sizeof stamp.id);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.other_byte_order);

    other.magic = __builtin_bswap64(other.magic);
    other.layout_version = __builtin_bswap32(5);
    other.flags = __builtin_bswap32(RINGBUF_AUTO_CLEANUP);
    other.name_bytes = __builtin_bswap64(other.name_bytes);
    write_at(path, 0, &other, sizeof other);
    look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_OTHER_LAYOUT, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT32(1, look.observation.other_byte_order);
    TEST_ASSERT_EQUAL_UINT32(5, look.observation.layout_version);
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_AUTO_CLEANUP, look.observation.flags);
    TEST_ASSERT_EQUAL_STRING("q", look.observation.name);

    other = stamp;
    other.layout_version = 2; /* before anything was frozen */
    write_at(path, 0, &other, sizeof other);
    look = look_at("q");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_OTHER_LAYOUT, look.observation.condition);
    TEST_ASSERT_EQUAL_UINT32(0, look.observation.name_bytes);

    other.layout_version = 9;
    other.name_bytes = UINT64_MAX;
    write_sealed(path, other);
    TEST_ASSERT_EQUAL_UINT32(0, look_at("q").observation.name_bytes);
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
}

static void test_a_queue_under_another_ones_name_is_misplaced(void)
{
    char renamed[512];
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    snprintf(renamed, sizeof renamed, "%s", path_of("ringbuf.other"));
    TEST_ASSERT_EQUAL_INT(0, rename(path_of("ringbuf.q"), renamed));
    struct look look = look_at("other");
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_SOUND, look.observation.condition);
    TEST_ASSERT_EQUAL_STRING("q", look.observation.name);
    TEST_ASSERT_EQUAL_UINT32(1, look.observation.misplaced);
    TEST_ASSERT_EQUAL_STRING("ringbuf.other", look.observation.file_name);
    TEST_ASSERT_EQUAL_INT(0, unlink(renamed));
}

static int look_as_nobody(void *context)
{
    ringbuf_observation observation = {.struct_bytes = sizeof observation};
    ringbuf_info info;
    ringbuf_stats stats;
    if (setgid(65534) != 0 || setuid(65534) != 0) return 99;
    if (ringbuf_observe(&observation, &info, &stats, "q", NULL) != RINGBUF_OK) return 98;
    if (observation.user != 0 || observation.mode != *(uint32_t *)context) return 97;
    return (int)observation.condition * 10 + (int)stats.items;
}

static void test_another_user_may_look_where_it_may_read_and_else_learns_whose_it_is(void)
{
    if (geteuid() != 0) TEST_IGNORE_MESSAGE("needs root");
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0755));
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(leave_by_dying, &stop));
    uint32_t mode = 0600;
    TEST_ASSERT_EQUAL_INT(RINGBUF_UNREADABLE * 10, run_child(look_as_nobody, &mode));
    mode = 0644;
    TEST_ASSERT_EQUAL_INT(0, chmod(path_of("ringbuf.q"), mode));
    TEST_ASSERT_EQUAL_INT(RINGBUF_SOUND * 10 + 1, run_child(look_as_nobody, &mode));
    ASSERT_OK(ringbuf_unlink_name("q", NULL));
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0700));
}

static void test_a_file_without_a_name_is_told_through_its_descriptor_and_why_it_has_none(void)
{
    for (int how = 0; how < 2; how++) {
        ringbuf *rb = create("q", 8, 0);
        int fd = open(ringbuf_path(rb), O_RDONLY | O_CLOEXEC);
        if (how) TEST_ASSERT_EQUAL_INT(0, unlink(ringbuf_path(rb)));
        else ASSERT_OK(ringbuf_unlink(rb));
        struct look look = {.observation.struct_bytes = sizeof look.observation};
        ASSERT_OK(ringbuf_observe_fd(&look.observation, &look.info, &look.stats, fd));
        TEST_ASSERT_EQUAL_UINT32(how ? RINGBUF_DELETED : RINGBUF_REMOVED, look.observation.unlinked);
        TEST_ASSERT_EQUAL_STRING("q", look.observation.name);
        TEST_ASSERT_EQUAL_UINT32(1, look.observation.handles);
        close(fd);
        ringbuf_free(rb);
    }
}

static void test_a_struct_of_another_size_and_a_name_that_is_none_are_refused(void)
{
    ringbuf_observation observation = {.struct_bytes = sizeof observation - 8};
    char long_name[1026];
    memset(long_name, 'n', 1025);
    long_name[1025] = '\0';
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe(&observation, NULL, NULL, "q", NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe_file(&observation, NULL, NULL, "/dev/null"));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe_fd(&observation, NULL, NULL, 0));
    observation.struct_bytes = sizeof observation;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe(NULL, NULL, NULL, "q", NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe(&observation, NULL, NULL, "", NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe(&observation, NULL, NULL, NULL, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe(&observation, NULL, NULL, long_name, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe_file(&observation, NULL, NULL, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_observe_fd(&observation, NULL, NULL, -1));
    ASSERT_OK(ringbuf_observe_file(&observation, NULL, NULL, "/dev/null"));
    TEST_ASSERT_EQUAL_UINT32(RINGBUF_DEVICE, observation.file_type);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_look_tells_what_the_attached_would_say_whatever_is_in_the_queue);
    RUN_TEST(test_a_full_arena_is_told_although_the_ring_is_nearly_empty);
    RUN_TEST(test_every_name_is_told_as_it_is);
    RUN_TEST(test_handles_of_one_process_are_counted_as_handles_and_as_one_process);
    RUN_TEST(test_an_abandoned_queue_stays_as_it_is_whether_empty_or_not);
    RUN_TEST(test_a_queue_all_of_whose_places_are_taken_is_told_of_as_well);
    RUN_TEST(test_no_look_leaks_a_descriptor);
    RUN_TEST(test_a_queue_whose_messages_move_is_never_told_to_be_damaged);
    RUN_TEST(test_a_file_that_is_truncated_at_the_same_time_ends_nobody);
    RUN_TEST(test_a_ring_that_never_stands_still_is_counted_by_its_cursors_and_one_that_does_is_damaged);
    RUN_TEST(test_what_is_no_file_is_named_and_not_opened);
    RUN_TEST(test_a_file_that_is_no_queue_is_told_from_a_damaged_one);
    RUN_TEST(test_a_truncated_queue_is_damaged_and_its_name_and_sizes_are_told);
    RUN_TEST(test_a_flipped_bit_of_the_stamp_or_a_wild_cursor_is_damage);
    RUN_TEST(test_whatever_lies_behind_the_stamp_the_figures_stay_within_their_bounds);
    RUN_TEST(test_a_queue_of_another_layout_or_byte_order_is_told_with_version_and_name);
    RUN_TEST(test_a_queue_under_another_ones_name_is_misplaced);
    RUN_TEST(test_another_user_may_look_where_it_may_read_and_else_learns_whose_it_is);
    RUN_TEST(test_a_file_without_a_name_is_told_through_its_descriptor_and_why_it_has_none);
    RUN_TEST(test_a_struct_of_another_size_and_a_name_that_is_none_are_refused);
    return leave_suite_directory(UNITY_END());
}
