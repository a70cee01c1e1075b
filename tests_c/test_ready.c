/* test_ready.c — floor 3: descriptors that show a queue's levels, exact after every operation, in every handle and process that asks.
 *
 * What many do at once is test_ready_storm.c; deaths and stops in the middle are scenarios of test_crash.c. */
#include "small_fs.h"

#include "ready.h"

#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/select.h>

enum { LARGE = 100000 };

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
    options.capacity_bytes = 4096;
    options.arena_bytes = 1 << 20;
    options.max_participants = 16;
    return options;
}

static ringbuf *create(void)
{
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    return rb;
}

static ringbuf *attach(void)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_open(&rb, "q", NULL));
    return rb;
}

/** Wait for a child to come so far; it must not end before. */
static void wait_for_child(pid_t child, stage *reached, int wanted)
{
    while (atomic_load(reached) < wanted) {
        int how;
        if (waitpid(child, &how, WNOHANG) == child) {
            char text[64];
            snprintf(text, sizeof text, "the child ended with %d", WIFEXITED(how) ? WEXITSTATUS(how) : -WTERMSIG(how));
            TEST_FAIL_MESSAGE(text);
        }
        nap_ms(1);
    }
}

static void put(ringbuf *rb) { ASSERT_OK(ringbuf_put(rb, "message", 8, 0)); }

static void get(ringbuf *rb)
{
    static char bytes[LARGE];
    size_t size;
    ASSERT_OK(ringbuf_get(rb, &size, bytes, sizeof bytes, 0));
}

static void get_nothing(ringbuf *rb)
{
    char bytes[16];
    size_t size;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(rb, &size, bytes, sizeof bytes, 0));
}

static ringbuf_message take(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    ASSERT_OK(ringbuf_take(rb, &message, NULL, 0, 0));
    return message;
}

static void recover(ringbuf *rb, uint64_t expected)
{
    uint64_t recovered = 99;
    ASSERT_OK(ringbuf_recover(rb, &recovered));
    TEST_ASSERT_EQUAL_UINT64(expected, recovered);
}

/* ---- descriptors ---- */

static int items_fd(ringbuf *rb)
{
    int fd = -1;
    ASSERT_OK(ringbuf_items_fd(rb, &fd));
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    return fd;
}

static int changes_fd(ringbuf *rb, uint32_t change)
{
    int fd = -1;
    ASSERT_OK(ringbuf_changes_fd(rb, change, &fd));
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    return fd;
}

/** What poll, select and epoll say of it; -1 if they do not agree. */
static int readable(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    int by_poll = poll(&polled, 1, 0);
    if (polled.revents & ~POLLIN) return -1; /* POLLHUP, POLLERR, POLLNVAL */
    fd_set set;
    struct timeval none = {0, 0};
    FD_ZERO(&set);
    FD_SET(fd, &set);
    int by_select = select(fd + 1, &set, NULL, NULL, &none);
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) by_select = -1;
    int by_epoll = epoll_wait(epoll, &event, 1, 0);
    int again = epoll_wait(epoll, &event, 1, 0); /* level-triggered */
    close(epoll);
    return by_poll == by_select && by_poll == by_epoll && by_epoll == again ? by_poll : -1;
}

#define ASSERT_UP(fd) TEST_ASSERT_EQUAL_INT(1, readable(fd))
#define ASSERT_DOWN(fd) TEST_ASSERT_EQUAL_INT(0, readable(fd))

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/** How many FIFOs there are. */
static int flags_left(void)
{
    int count = 0;
    DIR *stream = opendir(suite_directory);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) count += strncmp(entry->d_name, "ringbuf-", 8) == 0;
    closedir(stream);
    return count;
}

/** The path of the queue's FIFO. */
static char *flag_path(ringbuf *rb, const char *level)
{
    static char path[256];
    ringbuf_info info;
    ASSERT_OK(ringbuf_get_info(rb, &info));
    int length = snprintf(path, sizeof path, "%s/ringbuf-%s.", suite_directory, level);
    for (size_t i = 0; i < sizeof info.id; i++) length += snprintf(path + length, sizeof path - (size_t)length, "%02x", info.id[i]);
    return path;
}

/** How many descriptors this process has on FIFOs of the suite's directory. */
static int descriptors_on_flags(void)
{
    int count = 0;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%s/ringbuf-", suite_directory);
    DIR *stream = opendir("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        char target[256];
        ssize_t length = readlinkat(dirfd(stream), entry->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        count += strncmp(target, prefix, strlen(prefix)) == 0;
    }
    closedir(stream);
    return count;
}

/* ---- ITEMS: what it shows ---- */

static void test_the_level_is_up_exactly_while_there_is_a_message(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    ASSERT_DOWN(fd);
    for (int round = 0; round < 100; round++) { /* more than a lap */
        for (int i = 0; i < 3; i++) {
            put(rb);
            ASSERT_UP(fd);
        }
        for (int i = 0; i < 3; i++) {
            ASSERT_UP(fd);
            get(rb);
        }
        ASSERT_DOWN(fd);
        get_nothing(rb);
        ASSERT_DOWN(fd);
    }
    ringbuf_free(rb);
}

static void test_who_asks_when_there_are_messages_finds_it_up(void)
{
    ringbuf *rb = create();
    put(rb);
    int fd = items_fd(rb);
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_every_handle_that_asks_sees_the_same_whoever_moves_the_messages(void)
{
    enum { HANDLES = 4 };
    ringbuf *rb[HANDLES] = {create(), attach(), attach(), attach()}; /* the last one never asks */
    int fd[HANDLES];
    for (int i = 0; i < HANDLES - 1; i++) fd[i] = items_fd(rb[i]);
    for (int putter = 0; putter < HANDLES; putter++)
        for (int getter = 0; getter < HANDLES; getter++) {
            put(rb[putter]);
            for (int i = 0; i < HANDLES - 1; i++) ASSERT_UP(fd[i]);
            get(rb[getter]);
            for (int i = 0; i < HANDLES - 1; i++) ASSERT_DOWN(fd[i]);
        }
    for (int i = 0; i < HANDLES; i++) ringbuf_free(rb[i]);
}

struct other {
    stage told, done;
    _Atomic int seen;
};

static int look_in_another_process(void *context)
{
    struct other *other = context;
    ringbuf *rb = NULL;
    int fd;
    if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK || ringbuf_items_fd(rb, &fd) != RINGBUF_OK) return 1;
    atomic_store(&other->done, 1);
    for (int step = 1;; step++) {
        while (atomic_load(&other->told) < step) nap_ms(1);
        if (step == 9) break;
        atomic_store(&other->seen, readable(fd));
        atomic_store(&other->done, step + 1);
    }
    ringbuf_free(rb);
    return 0;
}

static void test_another_process_sees_the_same(void)
{
    struct other *other = share_memory(sizeof *other);
    ringbuf *rb = create();
    pid_t child = start_child(look_in_another_process, other);
    wait_for_child(child, &other->done, 1);
    int fd = items_fd(rb);
    for (int step = 1; step < 9; step++) {
        if (step % 2) put(rb);
        else get(rb);
        atomic_store(&other->told, step);
        wait_for_child(child, &other->done, step + 1);
        TEST_ASSERT_EQUAL_INT(step % 2, atomic_load(&other->seen));
        TEST_ASSERT_EQUAL_INT(step % 2, readable(fd));
    }
    atomic_store(&other->told, 9);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    munmap(other, sizeof *other);
    ringbuf_free(rb);
}

static int sleep_until_readable(void *context)
{
    struct other *other = context;
    ringbuf *rb = NULL;
    struct pollfd polled = {.events = POLLIN};
    char bytes[16];
    size_t size;
    if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK || ringbuf_items_fd(rb, &polled.fd) != RINGBUF_OK) return 1;
    atomic_fetch_add(&other->done, 1);
    if (poll(&polled, 1, -1) != 1) return 2;
    if (ringbuf_get(rb, &size, bytes, sizeof bytes, 0) != RINGBUF_OK) return 3;
    ringbuf_free(rb);
    return 0;
}

static void test_one_who_sleeps_in_poll_without_an_end_is_woken_by_a_put(void)
{
    struct other *other = share_memory(sizeof *other);
    ringbuf *rb = create();
    pid_t child = start_child(sleep_until_readable, other);
    wait_for_child(child, &other->done, 1);
    nap_ms(20);
    put(rb);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    munmap(other, sizeof *other);
    ringbuf_free(rb);
}

static void test_the_last_take_lowers_it_and_giving_back_raises_it(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    put(rb);
    put(rb);
    ringbuf_message first = take(rb);
    ASSERT_UP(fd);
    ringbuf_message second = take(rb);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_nack(rb, &first));
    ASSERT_UP(fd);
    first = take(rb);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_ack(rb, &first));
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_nack(rb, &second));
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_lease_lowers_it_and_its_return_to_the_arena_raises_it(void)
{
    static char large[LARGE];
    ringbuf *rb = create();
    int fd = items_fd(rb);
    for (int turn = 0; turn < 2; turn++) {
        ringbuf_message message = {.data = NULL};
        ASSERT_OK(ringbuf_put(rb, large, turn ? sizeof large : 8, 0));
        ASSERT_UP(fd);
        ASSERT_OK(ringbuf_lease(rb, &message, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
        ASSERT_DOWN(fd);
        ASSERT_OK(ringbuf_nack(rb, &message));
        ASSERT_UP(fd);
        put(rb);
        ASSERT_UP(fd);
        ASSERT_OK(ringbuf_lease(rb, &message, NULL, 0, 0)); /* the returned one */
        ASSERT_UP(fd);
        ASSERT_OK(ringbuf_keep(rb, &message));
        ASSERT_UP(fd);
        get(rb);
        ASSERT_DOWN(fd);
        ASSERT_OK(ringbuf_release(rb, &message));
        ASSERT_DOWN(fd);
    }
    ringbuf_free(rb);
}

static void test_a_message_that_is_too_large_for_the_buffer_leaves_it_up(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    ringbuf_message message = {.data = NULL};
    char byte;
    size_t size;
    put(rb);
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(rb, &size, &byte, 1, 0));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_lease(rb, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_nack(rb, &message)); /* now it waits in the arena */
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(rb, &size, &byte, 1, 0));
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_batch_raises_it_and_the_last_of_the_batch_lowers_it(void)
{
    static char large[LARGE];
    ringbuf *rb = create();
    int fd = items_fd(rb);
    ringbuf_part messages[] = {{"one", 4}, {large, sizeof large}, {"three", 6}};
    ASSERT_OK(ringbuf_put_all(rb, messages, 3, 0));
    for (int i = 0; i < 3; i++) {
        ASSERT_UP(fd);
        get(rb);
    }
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_put_all(rb, messages, 0, 0));
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_batch_that_takes_the_last_lowers_it_and_one_that_is_returned_raises_it(void)
{
    static char large[LARGE];
    ringbuf *rb = create();
    ringbuf *other = attach();
    int fd = items_fd(rb);
    ringbuf_part messages[] = {{"one", 4}, {large, sizeof large}, {"three", 6}, {"four", 5}};
    ringbuf_message taken[4];
    size_t count;
    ASSERT_OK(ringbuf_put_all(rb, messages, 4, 0));
    ASSERT_OK(ringbuf_take_many(other, taken, &count, 3, SIZE_MAX, NULL, 0, 0));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_return_all(other, taken, count));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_take_many(other, taken, &count, 4, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(4, count);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_return_all(other, taken + 2, 2));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_ack_all(other, taken, 2));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_take_many(other, taken, &count, 4, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_ack_all(other, taken, count));
    ASSERT_DOWN(fd);
    ringbuf_free(other);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_batch_that_found_no_room_leaves_it_as_it_was(void)
{
    ringbuf *rb = create();
    ringbuf *other = attach();
    int fd = items_fd(rb);
    ringbuf_part messages[12];
    ringbuf_message held[24];
    for (int i = 0; i < 12; i++) messages[i] = (ringbuf_part){"part", 5};
    for (int i = 0; i < 24; i++) put(rb);
    for (int i = 0; i < 24; i++) held[i] = take(other); /* 24 of 32 cells are in use, and nothing is there */
    ASSERT_DOWN(fd);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put_all(rb, messages, 12, 0));
    ASSERT_DOWN(fd);
    recover(rb, 0);
    ASSERT_DOWN(fd);
    for (int i = 0; i < 24; i++) ASSERT_OK(ringbuf_ack(other, &held[i]));
    ASSERT_OK(ringbuf_put_all(rb, messages, 12, 0));
    ASSERT_UP(fd);
    ringbuf_free(other);
    for (int i = 0; i < 12; i++) get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_reservation_is_seen_when_it_is_committed(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    for (int large = 0; large < 2; large++) {
        ringbuf_reservation reservation;
        ASSERT_OK(ringbuf_reserve(rb, &reservation, LARGE, 0));
        ASSERT_DOWN(fd);
        ASSERT_OK(ringbuf_commit(rb, &reservation, large ? LARGE : 10, 0));
        ASSERT_UP(fd);
        get(rb);
        ASSERT_DOWN(fd);
        ASSERT_OK(ringbuf_reserve(rb, &reservation, LARGE, 0));
        ASSERT_OK(ringbuf_abort(rb, &reservation));
        ASSERT_DOWN(fd);
    }
    ringbuf_free(rb);
}

static void test_a_queue_of_one_item_is_as_exact(void)
{
    ringbuf_options options = defaults();
    options.max_items = 1;
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    int fd = items_fd(rb);
    for (int i = 0; i < 50; i++) {
        put(rb);
        ASSERT_UP(fd);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(rb, "", 0, 0));
        ASSERT_UP(fd);
        ringbuf_message message = take(rb);
        ASSERT_DOWN(fd);
        ASSERT_OK(ringbuf_nack(rb, &message));
        ASSERT_UP(fd);
        get(rb);
        ASSERT_DOWN(fd);
    }
    ringbuf_free(rb);
}

static void test_a_shutdown_raises_it_for_good(void)
{
    for (int immediate = 0; immediate < 2; immediate++)
        for (int messages = 0; messages < 3; messages++) {
            ringbuf *rb = create(), *late = attach();
            int fd = items_fd(rb);
            for (int i = 0; i < messages; i++) put(rb);
            ASSERT_OK(ringbuf_shutdown(rb, immediate));
            ASSERT_UP(fd);
            for (int i = 0; i < messages && !immediate; i++) get(rb);
            ASSERT_UP(fd);
            char bytes[16];
            size_t size;
            ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_get(rb, &size, bytes, sizeof bytes, 0));
            ASSERT_UP(fd);
            ASSERT_UP(items_fd(late));
            ringbuf_free(late);
            ringbuf_free(rb);
        }
}

static void test_a_close_gives_back_and_raises_it(void)
{
    ringbuf *rb = create(), *taker = attach();
    int fd = items_fd(rb);
    put(rb);
    take(taker);
    ASSERT_DOWN(fd);
    ringbuf_close(taker);
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(taker);
    ringbuf_free(rb);
}

static void test_a_close_with_pins_closes_the_descriptors_and_tells_the_others(void)
{
    ringbuf *rb = create(), *taker = attach();
    ringbuf_message kept = {.data = NULL};
    int fd = items_fd(rb), own = items_fd(taker), changes = changes_fd(taker, RINGBUF_ROOM);
    put(rb);
    put(rb);
    ASSERT_OK(ringbuf_lease(taker, &kept, NULL, 0, 0));
    ASSERT_OK(ringbuf_keep(taker, &kept));
    take(taker);
    ASSERT_DOWN(fd);
    ringbuf_close(taker);
    TEST_ASSERT_FALSE(is_open(own));
    TEST_ASSERT_FALSE(is_open(changes));
    ASSERT_UP(fd);
    int room = changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(room);
    ASSERT_OK(ringbuf_release(taker, &kept)); /* by a handle that is closed */
    ASSERT_UP(room);
    ringbuf_free(taker);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_an_unlinked_queue_goes_on_telling(void)
{
    ringbuf *rb = create(), *other = attach();
    int fd = items_fd(rb);
    ASSERT_OK(ringbuf_unlink(rb));
    put(other);
    ASSERT_UP(fd);
    int late = items_fd(other);
    ASSERT_UP(late);
    get(other);
    ASSERT_DOWN(fd);
    ASSERT_DOWN(late);
    ringbuf_free(other);
    put(rb);
    ASSERT_UP(fd);
    ringbuf_free(rb);
}

static int take_and_die(void *context)
{
    ringbuf *rb = NULL;
    ringbuf_message message = {.data = NULL};
    if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK) return 1;
    if (context && ringbuf_items_fd(rb, context) != RINGBUF_OK) return 2;
    if (ringbuf_take(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 3;
    die();
}

static void test_what_a_killed_one_had_taken_raises_it_at_the_recovery(void)
{
    for (int listens = 0; listens < 2; listens++) {
        int theirs;
        ringbuf *rb = create();
        int fd = items_fd(rb);
        put(rb);
        TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_and_die, listens ? &theirs : NULL));
        ASSERT_DOWN(fd);
        recover(rb, 1);
        ASSERT_UP(fd);
        get(rb);
        ASSERT_DOWN(fd);
        ringbuf_free(rb);
    }
}

/* ---- ITEMS: odd states of the ring ---- */

static struct rbi_record claim(ringbuf *rb)
{
    struct rbi_record record;
    uint64_t reserved = 0;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, rbi_segment_reserve(rb, 0, rbi_ring_cells(&rb->ring)));
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_claim(&rb->ring, &record, rb->registry.self, 8));
    memset(record.payload, 0, 8);
    (void)reserved;
    return record;
}

static void test_a_message_that_is_being_written_is_none_and_does_not_hide_those_behind_it(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    struct rbi_record record = claim(rb);
    ASSERT_DOWN(fd);
    recover(rb, 0);
    ASSERT_DOWN(fd);
    put(rb);
    ASSERT_UP(fd);
    get(rb); /* past the claim, which is skipped */
    ASSERT_DOWN(fd);
    get_nothing(rb);
    ASSERT_DOWN(fd);
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_publish(&rb->ring, &record, rb->registry.self));
    rbi_wake_items(rb);
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_claim_that_is_given_up_leaves_it_down(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    for (int behind = 0; behind < 2; behind++) {
        struct rbi_record record = claim(rb);
        if (behind) put(rb);
        TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_void(&rb->ring, &record, rb->registry.self));
        rbi_wake_items(rb);
        recover(rb, 0); /* looks again */
        TEST_ASSERT_EQUAL_INT(behind, readable(fd));
        if (behind) get(rb);
        ASSERT_DOWN(fd);
    }
    ringbuf_free(rb);
}

static void test_a_hint_of_something_returned_that_is_gone_leaves_it_down(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    put(rb);
    ringbuf_message message = take(rb);
    ASSERT_OK(ringbuf_nack(rb, &message));
    get(rb);
    TEST_ASSERT_TRUE(rbi_ring_some_returned(&rb->ring)); /* the hint is still up */
    ASSERT_DOWN(fd);
    recover(rb, 0);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_a_change_of_lanes_leaves_it_exact(void)
{
    ringbuf *rb = create(), *holder = attach();
    int fd = items_fd(rb);
    for (int turn = 0; turn < 6; turn++) {
        put(rb);
        ringbuf_message held = take(holder); /* in the ring, so that puts cannot go past it */
        uint64_t items = 0;
        ASSERT_DOWN(fd);
        while (ringbuf_put(rb, "message", 8, 0) == RINGBUF_OK) items++;
        ASSERT_UP(fd);
        get(rb);
        ASSERT_OK(ringbuf_put(rb, "message", 8, ringbuf_now_ns() + INT64_C(20000) * MILLISECOND)); /* goes round it */
        while (items--) {
            ASSERT_UP(fd);
            get(rb);
        }
        ASSERT_DOWN(fd); /* head stands at the end of a lane perhaps, but there is nothing behind */
        recover(rb, 0);
        ASSERT_DOWN(fd);
        get_nothing(rb);
        ASSERT_DOWN(fd);
        put(rb);
        ASSERT_UP(fd);
        get(rb);
        ASSERT_DOWN(fd);
        if (turn % 2) ASSERT_OK(ringbuf_ack(holder, &held));
        else {
            ASSERT_OK(ringbuf_nack(holder, &held));
            ASSERT_UP(fd);
            get(rb);
        }
        ASSERT_DOWN(fd);
    }
    ringbuf_free(holder);
    ringbuf_free(rb);
}

static void test_a_byte_that_one_has_written_too_late_is_taken_out_by_who_came_for_it(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    TEST_ASSERT_EQUAL_INT(1, write(fd, "", 1)); /* as one who is stopped between looking and raising */
    ASSERT_UP(fd);
    get_nothing(rb);
    ASSERT_DOWN(fd);
    TEST_ASSERT_EQUAL_INT(1, write(fd, "", 1));
    recover(rb, 0);
    ASSERT_DOWN(fd);
    put(rb);
    ASSERT_UP(fd);
    get(rb);
    ringbuf_free(rb);
}

static void test_a_recovery_raises_it_where_one_who_is_stopped_has_not_come_to_it(void)
{
    ringbuf *rb = create();
    int fd = items_fd(rb);
    rbi_event_unlisten(&rb->header->items); /* he has cleared the flag, and not raised the level */
    put(rb);
    ASSERT_DOWN(fd);
    recover(rb, 0);
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

/* ---- the descriptor itself ---- */

static void test_each_handle_has_one_number_until_it_is_closed(void)
{
    ringbuf *rb = create(), *other = attach();
    int fd = items_fd(rb), changes = changes_fd(rb, RINGBUF_ROOM);
    TEST_ASSERT_EQUAL_INT(fd, items_fd(rb));
    int tasks = changes_fd(rb, RINGBUF_DONE);
    TEST_ASSERT_EQUAL_INT(changes, changes_fd(rb, RINGBUF_ROOM));
    TEST_ASSERT_EQUAL_INT(tasks, changes_fd(rb, RINGBUF_DONE));
    TEST_ASSERT_TRUE(fd != changes && fd != tasks && tasks != changes && fd != items_fd(other));
    TEST_ASSERT_TRUE(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    ringbuf_close(rb);
    TEST_ASSERT_FALSE(is_open(fd));
    TEST_ASSERT_FALSE(is_open(changes));
    TEST_ASSERT_FALSE(is_open(tasks));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_items_fd(rb, &fd));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_pass_on(rb));
    ringbuf_free(rb);
    ringbuf_free(other);
}

static void test_arguments_that_make_no_sense_are_refused(void)
{
    ringbuf *rb = create();
    int fd;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_items_fd(NULL, &fd));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_items_fd(rb, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_changes_fd(rb, 0, &fd));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_changes_fd(rb, RINGBUF_ROOM | RINGBUF_DONE, &fd));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_changes_fd(rb, 4, &fd));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_changes_fd(rb, RINGBUF_ROOM, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_pass_on(NULL));
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    ringbuf_free(rb);
}

static void test_nothing_is_made_before_somebody_asks(void)
{
    ringbuf *rb = create();
    put(rb);
    get(rb);
    get_nothing(rb);
    ASSERT_OK(ringbuf_pass_on(rb));
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    TEST_ASSERT_EQUAL_INT(0, descriptors_on_flags());
    TEST_ASSERT_EQUAL_UINT32(0, rbi_load_total32(&rb->header->listeners[0]) | rbi_load_total32(&rb->header->listeners[1]));
    ringbuf_free(rb);
}

static void test_when_the_last_who_listened_closes_telling_ends(void)
{
    ringbuf *rb = create(), *first = attach(), *second = attach();
    items_fd(first);
    TEST_ASSERT_EQUAL_INT(1, flags_left());
    items_fd(second);
    changes_fd(second, RINGBUF_ROOM);
    TEST_ASSERT_EQUAL_INT(2, flags_left());
    ringbuf_free(first);
    TEST_ASSERT_EQUAL_INT(2, flags_left());
    put(rb);
    ringbuf_free(second);
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    TEST_ASSERT_FALSE(rbi_ready_is_asked(rb));
    get(rb);
    put(rb); /* one more may still see the flag in the event word */
    TEST_ASSERT_FALSE(rbi_event_has_listeners(&rb->header->items));
    int fd = items_fd(rb); /* another FIFO by now */
    ASSERT_UP(fd);
    get(rb);
    ASSERT_DOWN(fd);
    ringbuf_free(rb);
}

static void test_those_who_told_by_the_old_fifo_tell_by_the_new_one(void)
{
    ringbuf *teller = create();
    for (int turn = 0; turn < 5; turn++) {
        ringbuf *rb = attach();
        int fd = items_fd(rb), changes = changes_fd(rb, RINGBUF_DONE);
        put(teller);
        ASSERT_UP(fd);
        get(teller);
        ASSERT_DOWN(fd);
        ASSERT_DOWN(changes);
        ASSERT_OK(ringbuf_task_done(teller));
        ASSERT_UP(changes);
        ringbuf_free(rb);
    }
    ringbuf_free(teller);
}

/* ---- ROOM and TASKS ---- */

static void fill_up(ringbuf *rb)
{
    while (ringbuf_put(rb, "message", 8, 0) == RINGBUF_OK) continue;
}

static void test_room_in_the_ring_is_told_once_it_is_there(void)
{
    ringbuf *rb = create(), *getter = attach();
    fill_up(rb);
    int fd = changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    ringbuf_message message = take(getter);
    ASSERT_DOWN(fd); /* it still has its room */
    ASSERT_OK(ringbuf_ack(getter, &message));
    ASSERT_UP(fd);
    put(rb);
    ASSERT_UP(fd); /* until somebody listens again */
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    get(getter);
    ASSERT_UP(fd);
    ringbuf_free(getter);
    while (ringbuf_size(rb, &(uint64_t){0}) == RINGBUF_OK && ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK) ASSERT_OK(ringbuf_ack(rb, &message));
    ringbuf_free(rb);
}

static void test_a_put_that_fails_wakes_nobody_who_waits_for_room(void)
{
    static char large[LARGE];
    ringbuf *rb = create();
    ringbuf_part several[] = {{large, sizeof large}, {large, sizeof large}};
    fill_up(rb);
    int fd = changes_fd(rb, RINGBUF_ROOM);
    for (int i = 0; i < 3; i++) {
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(rb, "message", 8, 0));
        ASSERT_DOWN(fd);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(rb, large, sizeof large, 0));
        ASSERT_DOWN(fd);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put_all(rb, several, 2, 0));
        ASSERT_DOWN(fd);
    }
    ringbuf_message message;
    while (message = (ringbuf_message){.data = NULL}, ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK) ASSERT_OK(ringbuf_ack(rb, &message));
    ringbuf_reservation reservation;
    ASSERT_OK(ringbuf_reserve(rb, &reservation, (1 << 20) - 3 * 4096, 0));
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_put(rb, large, sizeof large, 0));
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_put_all(rb, several, 2, 0));
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_abort(rb, &reservation));
    ringbuf_free(rb);
}

static void test_room_in_a_queue_of_few_items_is_told(void)
{
    ringbuf_options options = defaults();
    options.max_items = 2;
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    fill_up(rb);
    int fd = changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    get(rb);
    ASSERT_UP(fd);
    get(rb);
    ringbuf_free(rb);
}

static void test_room_in_the_arena_is_told_however_it_comes_to_be_there(void)
{
    ringbuf *rb = create(), *other = attach();
    static char large[LARGE];
    int fd = changes_fd(rb, RINGBUF_ROOM);
    ringbuf_reservation reservation;
    ASSERT_OK(ringbuf_reserve(other, &reservation, LARGE, 0));
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_abort(other, &reservation));
    ASSERT_UP(fd);
    ASSERT_OK(ringbuf_put(other, large, sizeof large, 0));
    ringbuf_message message = {.data = NULL};
    ASSERT_OK(ringbuf_lease(other, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_keep(other, &message));
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    ASSERT_OK(ringbuf_release(other, &message));
    ASSERT_UP(fd);
    ringbuf_free(other);
    ringbuf_free(rb);
}

static void test_tasks_are_told_and_nothing_is_told_that_was_not_listened_for(void)
{
    ringbuf *rb = create();
    for (int i = 0; i < 4; i++) put(rb);
    int tasks = changes_fd(rb, RINGBUF_DONE), room = changes_fd(rb, RINGBUF_ROOM);
    get(rb);
    ASSERT_UP(room);
    ASSERT_DOWN(tasks);
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(room);
    ASSERT_OK(ringbuf_task_done(rb));
    ASSERT_UP(tasks);
    ASSERT_DOWN(room);
    changes_fd(rb, RINGBUF_ROOM); /* who waits for room takes no knock from who waits for tasks */
    ASSERT_UP(tasks);
    get(rb);
    changes_fd(rb, RINGBUF_DONE);
    ASSERT_UP(room);
    ASSERT_DOWN(tasks);
    put(rb);
    ASSERT_DOWN(tasks);
    for (int i = 0; i < 3; i++) get(rb);
    ASSERT_DOWN(tasks);
    for (int i = 0; i < 4; i++) ASSERT_OK(ringbuf_task_done(rb));
    ASSERT_UP(tasks);
    ASSERT_OK(ringbuf_join(rb, 0));
    ringbuf_free(rb);
}

static void test_a_shutdown_is_a_change_of_everything(void)
{
    ringbuf *rb = create();
    int fd = changes_fd(rb, RINGBUF_ROOM);
    ASSERT_OK(ringbuf_shutdown(rb, 0));
    ASSERT_UP(fd);
    changes_fd(rb, RINGBUF_ROOM);
    ASSERT_DOWN(fd);
    int tasks = changes_fd(rb, RINGBUF_DONE);
    ASSERT_OK(ringbuf_shutdown(rb, 1));
    ASSERT_UP(fd);
    ASSERT_UP(tasks);
    ringbuf_free(rb);
}

static void test_a_death_that_is_recovered_is_a_change(void)
{
    ringbuf *rb = create();
    int room = changes_fd(rb, RINGBUF_ROOM), tasks = changes_fd(rb, RINGBUF_DONE);
    put(rb);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_and_die, NULL));
    ASSERT_DOWN(room);
    ASSERT_DOWN(tasks);
    recover(rb, 1);
    ASSERT_UP(room);
    ASSERT_UP(tasks);
    get(rb);
    ringbuf_free(rb);
}

static void test_passing_on_wakes_those_whose_knock_was_taken(void)
{
    ringbuf *rb = create(), *other = attach();
    fill_up(rb);
    int first = changes_fd(rb, RINGBUF_ROOM), second = changes_fd(other, RINGBUF_ROOM);
    get(rb);
    ASSERT_UP(first);
    ASSERT_UP(second);
    changes_fd(other, RINGBUF_ROOM); /* lowers it for both */
    ASSERT_DOWN(first);
    put(other);
    ASSERT_OK(ringbuf_pass_on(other));
    ASSERT_UP(first);
    ASSERT_UP(second);
    ringbuf_message message;
    while (message = (ringbuf_message){.data = NULL}, ringbuf_take(rb, &message, NULL, 0, 0) == RINGBUF_OK) ASSERT_OK(ringbuf_ack(rb, &message));
    ringbuf_free(other);
    ringbuf_free(rb);
}

/* ---- fork ---- */

struct forked {
    ringbuf *rb;
    int fd;
    struct other *other;
};

static int look_in_forked_child(void *context)
{
    struct forked *forked = context;
    if (!is_open(forked->fd) || items_fd(forked->rb) != forked->fd) return 1;
    atomic_store(&forked->other->done, 1);
    wait_for_stage(&forked->other->told, 1); /* the parent has closed its handle, and another one has put */
    if (readable(forked->fd) != 1) return 2;
    char bytes[16];
    size_t size;
    if (ringbuf_get(forked->rb, &size, bytes, sizeof bytes, 0) != RINGBUF_OK) return 3;
    if (readable(forked->fd) != 0) return 4;
    ringbuf_free(forked->rb);
    return is_open(forked->fd) ? 5 : 0;
}

static void test_a_forked_child_has_a_descriptor_of_its_own_under_the_same_number(void)
{
    ringbuf *rb = create(), *listener = attach();
    struct forked forked = {listener, items_fd(listener), share_memory(sizeof(struct other))};
    pid_t child = start_child(look_in_forked_child, &forked);
    wait_for_child(child, &forked.other->done, 1);
    ringbuf_free(listener);
    TEST_ASSERT_EQUAL_INT(1, flags_left()); /* the child listens */
    put(rb);
    atomic_store(&forked.other->told, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    munmap(forked.other, sizeof *forked.other);
    ringbuf_free(rb);
}

static int close_in_forked_child(void *context)
{
    ringbuf_free(context);
    return 0;
}

static int end_at_once(void *context)
{
    (void)context;
    return 0;
}

static void test_a_child_that_closes_or_dies_takes_nothing_from_its_parent(void)
{
    ringbuf *rb = create(), *other = attach();
    int fd = items_fd(rb);
    TEST_ASSERT_EQUAL_INT(0, run_child(close_in_forked_child, rb));
    TEST_ASSERT_EQUAL_INT(0, run_child(end_at_once, NULL));
    TEST_ASSERT_EQUAL_INT(1, flags_left());
    put(other);
    ASSERT_UP(fd);
    get(other);
    ASSERT_DOWN(fd);
    ringbuf_free(other);
    ringbuf_free(rb);
}

static int fork_and_be_killed(void *context)
{
    struct other *other = context;
    ringbuf *rb = NULL;
    struct pollfd polled = {.events = POLLIN};
    if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK || ringbuf_items_fd(rb, &polled.fd) != RINGBUF_OK) return 1;
    if (fork() == 0) {
        atomic_store(&other->done, 1);
        bool woken = poll(&polled, 1, 60000) == 1;
        char bytes[16];
        size_t size;
        ringbuf_status status = ringbuf_get(rb, &size, bytes, sizeof bytes, 0);
        ringbuf_leave_all(); /* also the handle that it has inherited from the test */
        atomic_store(&other->seen, woken && status == RINGBUF_OK ? 1 : 2);
        _exit(0);
    }
    wait_for_stage(&other->done, 1);
    die();
}

static void test_a_child_whose_parent_was_killed_goes_on_listening(void)
{
    struct other *other = share_memory(sizeof *other);
    ringbuf *rb = create();
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(fork_and_be_killed, other));
    recover(rb, 1);
    uint64_t removed;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_INT(1, flags_left());
    put(rb);
    while (atomic_load(&other->seen) == 0) nap_ms(1);
    TEST_ASSERT_EQUAL_INT(1, atomic_load(&other->seen));
    munmap(other, sizeof *other);
    ringbuf_free(rb);
}

static void *open_and_close(void *context)
{
    stage *stop = context;
    while (!atomic_load(stop)) {
        ringbuf *rb = NULL;
        int fd;
        if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK) break;
        if (ringbuf_items_fd(rb, &fd) != RINGBUF_OK || ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd) != RINGBUF_OK) break;
        ringbuf_free(rb);
    }
    return NULL;
}

static int count_inherited(void *context)
{
    (void)context;
    ringbuf_leave_all();
    return descriptors_on_flags();
}

static void test_a_child_forked_while_others_ask_and_close_inherits_nothing_it_does_not_know(void)
{
    enum { THREADS = 2 };
    ringbuf *rb = create();
    stage stop = 0;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, open_and_close, &stop);
    int children = emulated() ? 10 : 200;
    if (emulated()) printf("without 190 of 200 forks: qemu takes seconds for one beside other threads\n");
    for (int i = 0; i < children; i++) TEST_ASSERT_EQUAL_INT(0, run_child(count_inherited, NULL));
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    recover(rb, 0);
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    ringbuf_free(rb);
}

/* ---- what the dead leave ---- */

static int listen_and_die(void *context)
{
    ringbuf *rb = NULL;
    int fd;
    (void)context;
    if (ringbuf_open(&rb, "q", NULL) != RINGBUF_OK || ringbuf_items_fd(rb, &fd) != RINGBUF_OK) return 1;
    if (ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd) != RINGBUF_OK) return 2;
    die();
}

static void let_a_listener_die(void)
{
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(listen_and_die, NULL));
    TEST_ASSERT_EQUAL_INT(2, flags_left());
}

static void test_a_recovery_removes_the_fifos_of_the_dead(void)
{
    ringbuf *rb = create();
    let_a_listener_die();
    recover(rb, 1);
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    TEST_ASSERT_FALSE(rbi_ready_is_asked(rb));
    ringbuf_free(rb);
}

static void test_the_last_to_leave_removes_the_fifos_of_the_dead(void)
{
    ringbuf *rb = create();
    let_a_listener_die();
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, flags_left());
}

static void test_the_last_to_leave_removes_a_fifo_that_nobody_has_counted(void)
{
    ringbuf *rb = create();
    TEST_ASSERT_EQUAL_INT(0, mkfifo(flag_path(rb, "items"), 0600)); /* as one who dies when he has just made it */
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, flags_left());
}

static int create_listen_and_die(void *context)
{
    ringbuf *rb = NULL;
    int fd;
    ringbuf_options options = defaults();
    options.flags = context ? RINGBUF_PERSISTENT : 0;
    if (ringbuf_create(&rb, "q", &options) != RINGBUF_OK || ringbuf_items_fd(rb, &fd) != RINGBUF_OK) return 1;
    die();
}

static void test_the_next_to_come_removes_the_fifos_of_a_queue_of_the_dead(void)
{
    ringbuf_options options = defaults();
    for (int way = 0; way < 5; way++) {
        ringbuf *rb = NULL;
        uint64_t removed;
        TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(create_listen_and_die, way == 1 ? suite_directory : NULL));
        TEST_ASSERT_EQUAL_INT(1, flags_left());
        switch (way) {
        case 0: /* another queue of that name */
        case 1: /* the same queue */
            ASSERT_OK(ringbuf_create(&rb, "q", &options));
            break;
        case 2:
            options.mode = RINGBUF_FRESH;
            ASSERT_OK(ringbuf_create(&rb, "q", &options));
            break;
        case 3: ASSERT_OK(ringbuf_unlink_name("q", NULL)); break;
        default: ASSERT_OK(ringbuf_collect(&removed, NULL));
        }
        TEST_ASSERT_EQUAL_INT(0, flags_left());
        if (rb) ASSERT_OK(ringbuf_unlink(rb));
        ringbuf_free(rb);
    }
}

static void test_a_collection_removes_deserted_fifos_and_never_one_in_use(void)
{
    uint64_t removed;
    ringbuf *rb = create();
    let_a_listener_die();
    ASSERT_OK(ringbuf_collect(&removed, NULL)); /* the queue lives, and the dead one was not recovered yet */
    TEST_ASSERT_EQUAL_INT(0, flags_left());
    put(rb); /* by nobody's FIFO */
    get(rb);
    int fd = items_fd(rb), changes = changes_fd(rb, RINGBUF_ROOM);
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    TEST_ASSERT_EQUAL_INT(2, flags_left());
    ringbuf *other = attach();
    put(other);
    ASSERT_UP(fd);
    get(other);
    ASSERT_DOWN(fd);
    ASSERT_UP(changes);
    ringbuf_free(other);
    ringbuf_free(rb);
}

static void test_a_fifo_of_an_unlinked_queue_of_the_dead_goes_with_a_collection(void)
{
    uint64_t removed;
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(create_listen_and_die, NULL));
    char queue[256];
    snprintf(queue, sizeof queue, "%s/ringbuf.q", suite_directory);
    TEST_ASSERT_EQUAL_INT(0, unlink(queue));
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_INT(0, flags_left());
}

/* ---- descriptors, memory, rights ---- */

static int run_out_of_descriptors(void *context)
{
    struct forked *forked = context;
    ringbuf *listener = NULL;
    if (ringbuf_open(&listener, "q", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_size(forked->rb, &(uint64_t){0}) != RINGBUF_OK) return 2; /* a participant, too */
    struct rlimit none = {3, 3};
    if (setrlimit(RLIMIT_NOFILE, &none) != 0) return 3;
    int fd;
    if (ringbuf_changes_fd(listener, RINGBUF_ROOM, &fd) != RINGBUF_E_NO_FILES) return 4;
    if (ringbuf_put(listener, "message", 8, 0) != RINGBUF_OK) return 5; /* it cannot tell anybody */
    _exit(0);
}

static void test_one_who_is_out_of_descriptors_leaves_nothing_and_is_made_good_by_a_recovery(void)
{
    ringbuf *rb = create();
    struct forked forked = {rb, items_fd(rb), NULL};
    TEST_ASSERT_EQUAL_INT(0, run_child(run_out_of_descriptors, &forked));
    TEST_ASSERT_EQUAL_INT(1, flags_left());
    recover(rb, 2);
    ASSERT_UP(forked.fd);
    get(rb);
    ASSERT_DOWN(forked.fd);
    ringbuf_free(rb);
}

static void test_a_file_system_that_can_hold_no_more_files_says_so(void)
{
    mount_small_file_system("size=8m,nr_inodes=3"); /* its root, the queue, one FIFO */
    ringbuf_options options = defaults();
    options.directory = small_file_system;
    ringbuf *rb = NULL;
    int fd;
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    items_fd(rb);
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd));
    put(rb);
    get(rb);
    ringbuf_free(rb);
}

static void test_something_else_under_the_name_is_told_and_harms_no_put(void)
{
    ringbuf *rb = create();
    char *path = flag_path(rb, "items");
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), fd;
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, file);
    close(file);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_items_fd(rb, &fd));
    put(rb);
    get(rb);
    unlink(path);
    ringbuf_free(rb);
}

static void test_who_cannot_get_the_lock_is_told_after_a_while(void)
{
    ringbuf *rb = create();
    char *path = flag_path(rb, "items");
    TEST_ASSERT_EQUAL_INT(0, mkfifo(path, 0600));
    int stopped = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC), fd; /* one who is about to remove it, and stopped */
    TEST_ASSERT_EQUAL_INT(0, flock(stopped, LOCK_EX | LOCK_NB));
    ASSERT_STATUS(RINGBUF_E_BUSY, ringbuf_items_fd(rb, &fd));
    put(rb);
    close(stopped);
    ASSERT_UP(items_fd(rb));
    get(rb);
    ringbuf_free(rb);
}

static int use_as_another_user(void *context)
{
    struct other *other = context;
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    int fd;
    gid_t group = 4711;
    if (setgroups(1, &group) != 0 || setgid(12345) != 0 || setuid(12345) != 0) return 1;
    options.permissions = 0660;
    if (ringbuf_open(&rb, "q", &options) != RINGBUF_OK) return 2;
    if (ringbuf_put(rb, "hello", 6, 0) != RINGBUF_OK) return 3;
    atomic_store(&other->done, 1);
    wait_for_stage(&other->told, 1);
    if (ringbuf_changes_fd(rb, RINGBUF_DONE, &fd) != RINGBUF_OK) return 4; /* this one is made by us */
    if (ringbuf_items_fd(rb, &fd) != RINGBUF_OK || readable(fd) != 0) return 5;
    if (ringbuf_changes_fd(rb, RINGBUF_DONE, &fd) != RINGBUF_OK || readable(fd) != 0) return 6;
    atomic_store(&other->done, 2);
    wait_for_stage(&other->told, 2);
    if (readable(fd) != 1) return 7;
    ringbuf_free(rb);
    return 0;
}

static void test_other_users_who_may_use_the_queue_may_tell_and_listen(void)
{
    NEEDS_ROOT();
    ringbuf_options options = defaults();
    struct other *other = share_memory(sizeof *other);
    ringbuf *rb = NULL;
    options.permissions = 0660;
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 01777));
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    TEST_ASSERT_EQUAL_INT(0, chown(ringbuf_path(rb), 0, 4711));
    int fd = items_fd(rb);
    struct stat st;
    TEST_ASSERT_EQUAL_INT(0, stat(flag_path(rb, "items"), &st));
    TEST_ASSERT_EQUAL_INT(0660, st.st_mode & 0777);
    TEST_ASSERT_EQUAL_INT(4711, st.st_gid);
    pid_t child = start_child(use_as_another_user, other);
    wait_for_child(child, &other->done, 1);
    ASSERT_UP(fd);
    get(rb);
    atomic_store(&other->told, 1);
    wait_for_child(child, &other->done, 2);
    TEST_ASSERT_EQUAL_INT(0, stat(flag_path(rb, "tasks"), &st));
    TEST_ASSERT_EQUAL_INT(0660, st.st_mode & 0777);
    TEST_ASSERT_EQUAL_INT(4711, st.st_gid);
    TEST_ASSERT_EQUAL_INT(12345, st.st_uid);
    ASSERT_OK(ringbuf_task_done(rb));
    atomic_store(&other->told, 2);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    munmap(other, sizeof *other);
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0700));
}

static int create_as_another_user(void *context)
{
    struct other *other = context;
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    int fd;
    if (setgid(12345) != 0 || setuid(12345) != 0) return 1;
    if (ringbuf_create(&rb, "q", &options) != RINGBUF_OK) return 2;
    atomic_store(&other->done, 1);
    wait_for_stage(&other->told, 1); /* root listens */
    if (ringbuf_put(rb, "hello", 6, 0) != RINGBUF_OK) return 3;
    if (ringbuf_items_fd(rb, &fd) != RINGBUF_OK || readable(fd) != 1) return 4;
    atomic_store(&other->done, 2);
    wait_for_stage(&other->told, 2);
    ringbuf_free(rb);
    return 0;
}

static void test_root_who_listens_to_the_queue_of_a_user_does_not_shut_him_out(void)
{
    NEEDS_ROOT();
    struct other *other = share_memory(sizeof *other);
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    options.permissions = 0600;
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 01777));
    pid_t child = start_child(create_as_another_user, other);
    wait_for_child(child, &other->done, 1);
    ASSERT_OK(ringbuf_open(&rb, "q", &options));
    int fd = items_fd(rb);
    ASSERT_DOWN(fd);
    atomic_store(&other->told, 1);
    wait_for_child(child, &other->done, 2);
    ASSERT_UP(fd);
    get(rb);
    ringbuf_free(rb);
    atomic_store(&other->told, 2);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0700));
    munmap(other, sizeof *other);
}

static int make_a_fifo_as_another_user(void *path)
{
    if (setuid(12345) != 0) return 1;
    umask(0);
    return mkfifo(path, 0666) == 0 ? 0 : 2;
}

static void test_a_fifo_that_a_stranger_has_put_there_is_not_listened_to(void)
{
    NEEDS_ROOT();
    int fd;
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 01777));
    ringbuf *rb = create();
    char *path = flag_path(rb, "items");
    TEST_ASSERT_EQUAL_INT(0, run_child(make_a_fifo_as_another_user, path));
    ASSERT_STATUS(RINGBUF_E_ACCESS, ringbuf_items_fd(rb, &fd));
    put(rb);
    get(rb);
    unlink(path);
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0700));
}

static void test_a_fifo_that_one_left_before_he_opened_it_to_others_is_opened_by_the_next(void)
{
    NEEDS_ROOT();
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    struct stat st;
    options.permissions = 0666;
    ASSERT_OK(ringbuf_create(&rb, "q", &options));
    TEST_ASSERT_EQUAL_INT(0, mkfifo(flag_path(rb, "items"), 0600));
    items_fd(rb);
    TEST_ASSERT_EQUAL_INT(0, stat(flag_path(rb, "items"), &st));
    TEST_ASSERT_EQUAL_INT(0666, st.st_mode & 0777);
    ringbuf_free(rb);
}

static void test_one_who_does_not_find_the_fifo_makes_nobody_deaf(void)
{
    ringbuf *rb = create(), *other = attach();
    char hidden[300], *path = flag_path(rb, "items");
    int fd = items_fd(rb);
    snprintf(hidden, sizeof hidden, "%s.hidden", path);
    TEST_ASSERT_EQUAL_INT(0, rename(path, hidden)); /* as for one to whom the directory is another one */
    put(other);
    TEST_ASSERT_FALSE(rbi_ready_is_asked(rb));
    TEST_ASSERT_EQUAL_INT(0, rename(hidden, path));
    recover(rb, 0);
    ASSERT_UP(fd);
    get(other);
    ASSERT_DOWN(fd);
    put(other);
    ASSERT_UP(fd);
    get(other);
    ringbuf_free(other);
    ringbuf_free(rb);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_the_level_is_up_exactly_while_there_is_a_message);
    RUN_TEST(test_who_asks_when_there_are_messages_finds_it_up);
    RUN_TEST(test_every_handle_that_asks_sees_the_same_whoever_moves_the_messages);
    RUN_TEST(test_another_process_sees_the_same);
    RUN_TEST(test_one_who_sleeps_in_poll_without_an_end_is_woken_by_a_put);
    RUN_TEST(test_the_last_take_lowers_it_and_giving_back_raises_it);
    RUN_TEST(test_a_lease_lowers_it_and_its_return_to_the_arena_raises_it);
    RUN_TEST(test_a_message_that_is_too_large_for_the_buffer_leaves_it_up);
    RUN_TEST(test_a_batch_raises_it_and_the_last_of_the_batch_lowers_it);
    RUN_TEST(test_a_batch_that_takes_the_last_lowers_it_and_one_that_is_returned_raises_it);
    RUN_TEST(test_a_batch_that_found_no_room_leaves_it_as_it_was);
    RUN_TEST(test_a_reservation_is_seen_when_it_is_committed);
    RUN_TEST(test_a_queue_of_one_item_is_as_exact);
    RUN_TEST(test_a_shutdown_raises_it_for_good);
    RUN_TEST(test_a_close_gives_back_and_raises_it);
    RUN_TEST(test_a_close_with_pins_closes_the_descriptors_and_tells_the_others);
    RUN_TEST(test_an_unlinked_queue_goes_on_telling);
    RUN_TEST(test_what_a_killed_one_had_taken_raises_it_at_the_recovery);
    RUN_TEST(test_a_message_that_is_being_written_is_none_and_does_not_hide_those_behind_it);
    RUN_TEST(test_a_claim_that_is_given_up_leaves_it_down);
    RUN_TEST(test_a_hint_of_something_returned_that_is_gone_leaves_it_down);
    RUN_TEST(test_a_change_of_lanes_leaves_it_exact);
    RUN_TEST(test_a_byte_that_one_has_written_too_late_is_taken_out_by_who_came_for_it);
    RUN_TEST(test_a_recovery_raises_it_where_one_who_is_stopped_has_not_come_to_it);
    RUN_TEST(test_each_handle_has_one_number_until_it_is_closed);
    RUN_TEST(test_arguments_that_make_no_sense_are_refused);
    RUN_TEST(test_nothing_is_made_before_somebody_asks);
    RUN_TEST(test_when_the_last_who_listened_closes_telling_ends);
    RUN_TEST(test_those_who_told_by_the_old_fifo_tell_by_the_new_one);
    RUN_TEST(test_room_in_the_ring_is_told_once_it_is_there);
    RUN_TEST(test_a_put_that_fails_wakes_nobody_who_waits_for_room);
    RUN_TEST(test_room_in_a_queue_of_few_items_is_told);
    RUN_TEST(test_room_in_the_arena_is_told_however_it_comes_to_be_there);
    RUN_TEST(test_tasks_are_told_and_nothing_is_told_that_was_not_listened_for);
    RUN_TEST(test_a_shutdown_is_a_change_of_everything);
    RUN_TEST(test_a_death_that_is_recovered_is_a_change);
    RUN_TEST(test_passing_on_wakes_those_whose_knock_was_taken);
    RUN_TEST(test_a_forked_child_has_a_descriptor_of_its_own_under_the_same_number);
    RUN_TEST(test_a_child_that_closes_or_dies_takes_nothing_from_its_parent);
    RUN_TEST(test_a_child_whose_parent_was_killed_goes_on_listening);
    RUN_TEST(test_a_child_forked_while_others_ask_and_close_inherits_nothing_it_does_not_know);
    RUN_TEST(test_a_recovery_removes_the_fifos_of_the_dead);
    RUN_TEST(test_the_last_to_leave_removes_the_fifos_of_the_dead);
    RUN_TEST(test_the_last_to_leave_removes_a_fifo_that_nobody_has_counted);
    RUN_TEST(test_the_next_to_come_removes_the_fifos_of_a_queue_of_the_dead);
    RUN_TEST(test_a_collection_removes_deserted_fifos_and_never_one_in_use);
    RUN_TEST(test_a_fifo_of_an_unlinked_queue_of_the_dead_goes_with_a_collection);
    RUN_TEST(test_one_who_is_out_of_descriptors_leaves_nothing_and_is_made_good_by_a_recovery);
    RUN_TEST(test_a_file_system_that_can_hold_no_more_files_says_so);
    RUN_TEST(test_something_else_under_the_name_is_told_and_harms_no_put);
    RUN_TEST(test_who_cannot_get_the_lock_is_told_after_a_while);
    RUN_TEST(test_other_users_who_may_use_the_queue_may_tell_and_listen);
    RUN_TEST(test_root_who_listens_to_the_queue_of_a_user_does_not_shut_him_out);
    RUN_TEST(test_a_fifo_that_a_stranger_has_put_there_is_not_listened_to);
    RUN_TEST(test_a_fifo_that_one_left_before_he_opened_it_to_others_is_opened_by_the_next);
    RUN_TEST(test_one_who_does_not_find_the_fifo_makes_nobody_deaf);
    return leave_suite_directory(UNITY_END());
}
