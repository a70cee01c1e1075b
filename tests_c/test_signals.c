/* test_signals.c — what the header says is async-signal-safe is called from signal handlers in the middle of every call.
 *
 * The storm: a timer interrupts the program at any instruction, and its handler makes one of the calls that are safe, on the same
 * handle, with descriptors asked for, while the program itself makes every call there is, and a second process listens and stops
 * listening.  No call hangs (the watchdog of the suite would see it), each answers what it may, and no message and no count is
 * lost.  Then the same at certain test points, where the interrupted call holds something.  */
#include "support.h"

#include "points.h"
#include "segment.h"

#include <poll.h>
#include <sys/time.h>

enum { SMALL = 40, LARGE = 9000, MANY = 5 };

static ringbuf *queue;
static int items_fd, room_fd, done_fd;
static uint8_t data[LARGE];

void setUp(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 16384;
    options.arena_bytes = 1 << 20;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&queue, "signals", &options));
}

void tearDown(void)
{
    rbi_point_hook = NULL;
    ringbuf_free(queue);
    queue = NULL;
    assert_nothing_is_left();
}

static void ask(void)
{
    ASSERT_OK(ringbuf_items_fd(queue, &items_fd));
    ASSERT_OK(ringbuf_changes_fd(queue, RINGBUF_ROOM, &room_fd));
    ASSERT_OK(ringbuf_changes_fd(queue, RINGBUF_DONE, &done_fd));
}

static bool is_up(int fd)
{
    struct pollfd seen = {.fd = fd, .events = POLLIN};
    return poll(&seen, 1, 0) == 1;
}

/* ---- the calls that are safe ---- */

/** What one who makes calls has counted; the handler has another one than the program. */
struct count {
    uint64_t puts, gets, done, failures;
    ringbuf_status what;
    const char *where;
};

static void note(struct count *count, ringbuf_status status, uint32_t allowed, const char *where)
{
    if (status == RINGBUF_OK || allowed >> status & 1) return;
    if (count->failures++ == 0) {
        count->what = status;
        count->where = where;
    }
}

#define BIT(status) (1u << RINGBUF_##status)
enum { FULL = BIT(E_TIMEOUT) | BIT(E_ARENA_FULL), EMPTY = BIT(E_TIMEOUT) | BIT(E_SMALL) };
enum { SAFE_CALLS = 22 };

static void safe_call(uint32_t which, struct count *count, uint8_t *buffer)
{
    ringbuf_message message, several[MANY];
    ringbuf_reservation room;
    ringbuf_part parts[2] = {{data, SMALL}, {data, SMALL}};
    ringbuf_stats stats;
    ringbuf_info info;
    ringbuf_peer peer;
    ringbuf_options options;
    size_t size, found = 0;
    uint64_t number;
    int yes;
    ringbuf_status status;
    switch (which) {
    case 0:
    case 1:
        note(count, status = ringbuf_put(queue, data, SMALL, 0), FULL, "put");
        count->puts += status == RINGBUF_OK;
        break;
    case 2:
        note(count, status = ringbuf_put(queue, data, LARGE, 0), FULL, "put of a large one");
        count->puts += status == RINGBUF_OK;
        break;
    case 3:
        note(count, status = ringbuf_put_parts(queue, parts, 2, 0), FULL, "put_parts");
        count->puts += status == RINGBUF_OK;
        break;
    case 4:
    case 5:
    case 6:
        note(count, status = ringbuf_get(queue, &size, buffer, LARGE, 0), EMPTY, "get");
        count->gets += status == RINGBUF_OK;
        break;
    case 7:
    case 8:
        status = which == 7 ? ringbuf_take(queue, &message, buffer, SMALL, 0) : ringbuf_lease(queue, &message, buffer, SMALL, -1);
        note(count, status, EMPTY, "take or lease");
        if (status != RINGBUF_OK) break;
        note(count, ringbuf_copy(queue, &message, buffer, 0, message.size), 0, "copy");
        note(count, status = ringbuf_ack(queue, &message), 0, "ack");
        count->gets += status == RINGBUF_OK;
        break;
    case 9:
        status = ringbuf_lease(queue, &message, NULL, 0, 0);
        note(count, status, EMPTY, "lease");
        if (status == RINGBUF_OK) note(count, ringbuf_nack(queue, &message), 0, "nack");
        break;
    case 10:
        status = ringbuf_lease(queue, &message, NULL, 0, 0);
        note(count, status, EMPTY, "lease");
        if (status != RINGBUF_OK) break;
        if (!message.in_arena) {
            note(count, ringbuf_nack(queue, &message), 0, "nack");
            break;
        }
        note(count, status = ringbuf_keep(queue, &message), 0, "keep");
        count->gets += status == RINGBUF_OK;
        note(count, ringbuf_release(queue, &message), 0, "release");
        break;
    case 11:
    case 12:
        status = ringbuf_take_many(queue, several, &found, MANY, SIZE_MAX, buffer, LARGE, 0);
        note(count, status, EMPTY, "take_many");
        if (status != RINGBUF_OK) break;
        if (which == 11) note(count, ringbuf_return_all(queue, several, found), 0, "return_all");
        else note(count, status = ringbuf_ack_all(queue, several, found), 0, "ack_all");
        if (which == 12 && status == RINGBUF_OK) count->gets += found;
        break;
    case 13:
    case 14:
        status = ringbuf_reserve(queue, &room, SMALL + (size_t)which % 2 * LARGE / 2, 0);
        note(count, status, FULL, "reserve");
        if (status != RINGBUF_OK) break;
        if (which == 13) {
            note(count, status = ringbuf_commit(queue, &room, room.size, 0), FULL, "commit");
            count->puts += status == RINGBUF_OK;
            if (status == RINGBUF_OK) break;
        }
        note(count, ringbuf_abort(queue, &room), 0, "abort");
        break;
    case 15:
        note(count, ringbuf_pin(queue), 0, "pin");
        note(count, ringbuf_unpin(queue), 0, "unpin");
        break;
    case 16:
        note(count, ringbuf_size(queue, &number), 0, "size");
        note(count, ringbuf_has_room(queue, &yes, SMALL), 0, "has_room");
        break;
    case 17:
        note(count, ringbuf_get_stats(queue, &stats), 0, "get_stats");
        note(count, ringbuf_get_info(queue, &info), 0, "get_info");
        break;
    case 18: note(count, ringbuf_get_peers(queue, &found, &peer, 1), 0, "get_peers"); break;
    case 19: note(count, ringbuf_recover(queue, &number), 0, "recover"); break;
    case 20:
        note(count, ringbuf_pass_on(queue), 0, "pass_on");
        note(count, ringbuf_join(queue, 0), BIT(E_TIMEOUT), "join");
        break;
    default:
        status = ringbuf_task_done(queue);
        note(count, status, BIT(E_TOO_MANY), "task_done");
        count->done += status == RINGBUF_OK;
        ringbuf_options_init(&options);
        (void)ringbuf_now_ns();
        (void)ringbuf_name(queue);
        (void)ringbuf_path(queue);
        (void)ringbuf_status_text(status);
        (void)ringbuf_version();
        (void)ringbuf_layout_version();
        (void)ringbuf_deletion_is_news(queue);
        (void)ringbuf_dead_letter_status(queue);
    }
}

/* ---- the storm ---- */

static struct count of_handler, of_program;
static volatile sig_atomic_t signals, storm_goes_on;
static uint64_t handlers_random = 7;
static uint8_t handlers_buffer[LARGE], programs_buffer[LARGE];

static void next_signal(void)
{
    struct itimerval timer = {.it_value = {.tv_usec = 20 + (suseconds_t)random_below(&handlers_random, 300)}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void on_signal(int number)
{
    int kept = errno;
    (void)number;
    signals++;
    safe_call((uint32_t)random_below(&handlers_random, SAFE_CALLS), &of_handler, handlers_buffer);
    if (storm_goes_on) next_signal();
    errno = kept;
}

/** Every call that is not safe, in the program. */
static void unsafe_call(uint64_t which, struct count *count)
{
    ringbuf *again;
    ringbuf_part parts[3] = {{data, SMALL}, {data, SMALL}, {data, LARGE}};
    size_t part_counts[2] = {2, 1};
    ringbuf_findings findings;
    ringbuf_options options;
    uint64_t number;
    ringbuf_status status;
    int fd;
    switch (which) {
    case 0:
        status = ringbuf_open(&again, "signals", NULL);
        note(count, status, 0, "open");
        if (status == RINGBUF_OK) ringbuf_free(again);
        break;
    case 1:
        ringbuf_options_init(&options);
        options.arena_bytes = 0;
        options.flags = RINGBUF_AUTO_CLEANUP;
        status = ringbuf_create(&again, "beside", &options);
        note(count, status, 0, "create");
        if (status != RINGBUF_OK) break;
        note(count, ringbuf_unlink(again), 0, "unlink");
        ringbuf_close(again);
        ringbuf_free(again);
        break;
    case 2:
        note(count, status = ringbuf_put_all(queue, parts, 3, 0), FULL, "put_all");
        if (status == RINGBUF_OK) count->puts += 3;
        break;
    case 3:
        note(count, status = ringbuf_put_all_parts(queue, parts, part_counts, 2, 0), FULL, "put_all_parts");
        if (status == RINGBUF_OK) count->puts += 2;
        break;
    case 4: note(count, ringbuf_items_fd(queue, &fd), BIT(E_BUSY), "items_fd"); break;
    case 5: note(count, ringbuf_changes_fd(queue, which % 2 ? RINGBUF_ROOM : RINGBUF_DONE, &fd), BIT(E_BUSY), "changes_fd"); break;
    case 6: note(count, ringbuf_check(queue, &findings), 0, "check"); break;
    case 7: note(count, ringbuf_collect(&number, NULL), 0, "collect"); break;
    default: note(count, ringbuf_get(queue, &(size_t){0}, programs_buffer, 1, ringbuf_now_ns() + 200000), EMPTY | BIT(E_INTR), "a get that waits");
    }
}

static stage *may_end;

static int listen_and_leave(void *context)
{
    (void)context;
    while (!atomic_load(may_end)) {
        ringbuf *rb;
        int fd;
        uint64_t items;
        if (ringbuf_open(&rb, "signals", NULL) != RINGBUF_OK) return 1;
        ringbuf_status status = ringbuf_items_fd(rb, &fd);
        if (status != RINGBUF_OK && status != RINGBUF_E_BUSY) return 2;
        if (ringbuf_size(rb, &items) != RINGBUF_OK) return 3;
        nap_ms(2);
        ringbuf_free(rb);
    }
    return 0;
}

static void test_calls_from_handlers_in_the_middle_of_every_call_never_hang_and_lose_nothing(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    uint64_t seed = 1;
    may_end = share_memory(sizeof *may_end);
    ask();
    of_handler = of_program = (struct count){0};
    pid_t listener = start_child(listen_and_leave, NULL);
    TEST_ASSERT_EQUAL_INT(0, sigaction(SIGALRM, &action, &before));
    storm_goes_on = 1;
    next_signal();
    const int64_t end_ns = ringbuf_now_ns() + INT64_C(2000000000);
    while (ringbuf_now_ns() < end_ns || signals < 200) {
        uint64_t which = random_below(&seed, 60);
        if (which < 9) unsafe_call(which, &of_program);
        else safe_call((uint32_t)(which % SAFE_CALLS), &of_program, programs_buffer);
    }
    storm_goes_on = 0;
    struct itimerval none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &none, NULL);
    sigaction(SIGALRM, &before, NULL);
    atomic_store(may_end, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(listener));
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, (int)of_handler.failures, of_handler.where);
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, (int)of_program.failures, of_program.where);
    uint64_t items, drained = 0;
    size_t size;
    ASSERT_OK(ringbuf_size(queue, &items));
    TEST_ASSERT_EQUAL(items > 0, is_up(items_fd));
    while (ringbuf_get(queue, &size, data, sizeof data, 0) == RINGBUF_OK) drained++;
    memset(data, 0, sizeof data);
    TEST_ASSERT_EQUAL_UINT64(items, drained);
    TEST_ASSERT_FALSE(is_up(items_fd));
    uint64_t puts = of_handler.puts + of_program.puts, gets = of_handler.gets + of_program.gets + drained;
    TEST_ASSERT_EQUAL_UINT64(puts, gets);
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64(puts, stats.puts);
    TEST_ASSERT_EQUAL_UINT64(gets, stats.gets);
    TEST_ASSERT_EQUAL_UINT64(puts - of_handler.done - of_program.done, stats.unfinished);
    TEST_ASSERT_EQUAL_UINT64(0, stats.held + stats.leased + stats.reserved + stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT32(0, rbi_load_total32(&queue->calls));
    TEST_ASSERT_EQUAL_UINT32(0, rbi_load_total32(&queue->pins));
}

/* ---- at certain points ---- */

static enum rbi_point awaited;
static unsigned happened;

static void at_point(enum rbi_point point)
{
    if (point != awaited) return;
    rbi_point_hook = NULL;
    happened++;
    raise(SIGUSR1);
}

static void on_usr1(int number)
{
    (void)number;
    for (uint32_t which = 0; which < SAFE_CALLS; which++) safe_call(which, &of_handler, handlers_buffer);
    note(&of_handler, ringbuf_put(queue, data, SMALL, 0), 0, "the put at the end");
    of_handler.puts++;
}

static void test_a_handler_at_any_step_of_telling_makes_its_calls_and_the_descriptor_is_right_after_it(void)
{
    static const enum rbi_point points[] = {RBI_POINT_listeners_set, RBI_POINT_listeners_cleared, RBI_POINT_flag_raised, RBI_POINT_flag_lowered,
                                            RBI_POINT_listener_counted};
    struct sigaction action = {.sa_handler = on_usr1}, before;
    TEST_ASSERT_EQUAL_INT(0, sigaction(SIGUSR1, &action, &before));
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        for (int get = 0; get < 2; get++) {
            size_t size;
            of_handler = (struct count){0};
            happened = 0;
            if (points[i] != RBI_POINT_listener_counted) ask();
            if (get) ASSERT_OK(ringbuf_put(queue, data, SMALL, 0));
            awaited = points[i];
            rbi_point_hook = at_point;
            if (points[i] == RBI_POINT_listener_counted) ask();
            else if (get) ringbuf_get(queue, &size, programs_buffer, LARGE, 0);
            else ASSERT_OK(ringbuf_put(queue, data, SMALL, 0));
            rbi_point_hook = NULL;
            TEST_ASSERT_EQUAL_INT_MESSAGE(0, (int)of_handler.failures, of_handler.where);
            uint64_t items;
            ASSERT_OK(ringbuf_size(queue, &items));
            TEST_ASSERT_EQUAL(items > 0, is_up(items_fd));
            TEST_ASSERT_TRUE(!happened || items > 0);
            while (ringbuf_get(queue, &size, programs_buffer, LARGE, 0) == RINGBUF_OK) {}
            TEST_ASSERT_FALSE(is_up(items_fd));
            /* A put raises the level and a get of the last message lowers it; a listener is counted when the descriptor is asked
             * for. */
            bool lowers = points[i] == RBI_POINT_listeners_set || points[i] == RBI_POINT_flag_lowered;
            if (points[i] == RBI_POINT_listener_counted || lowers == (get == 1)) TEST_ASSERT_EQUAL_UINT(1, happened);
            tearDown();
            setUp();
        }
    }
    sigaction(SIGUSR1, &before, NULL);
}

/** A forked child joins with its first call, under a lock: a signal comes only when it has. */
static int join_and_be_interrupted(void *context)
{
    (void)context;
    of_handler = (struct count){0};
    awaited = RBI_POINT_entry_written;
    rbi_point_hook = at_point;
    uint64_t items;
    if (ringbuf_size(queue, &items) != RINGBUF_OK || happened != 1) return 1;
    if (of_handler.failures) return 2;
    size_t size;
    while (ringbuf_get(queue, &size, programs_buffer, LARGE, 0) == RINGBUF_OK) {}
    ringbuf_close(queue);
    return 0;
}

static void test_a_handler_in_the_first_call_of_a_forked_child_makes_its_calls(void)
{
    struct sigaction action = {.sa_handler = on_usr1}, before;
    TEST_ASSERT_EQUAL_INT(0, sigaction(SIGUSR1, &action, &before));
    happened = 0;
    TEST_ASSERT_EQUAL_INT(0, run_child(join_and_be_interrupted, NULL));
    sigaction(SIGUSR1, &before, NULL);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_calls_from_handlers_in_the_middle_of_every_call_never_hang_and_lose_nothing);
    RUN_TEST(test_a_handler_at_any_step_of_telling_makes_its_calls_and_the_descriptor_is_right_after_it);
    RUN_TEST(test_a_handler_in_the_first_call_of_a_forked_child_makes_its_calls);
    return leave_suite_directory(UNITY_END());
}
