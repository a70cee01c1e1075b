/* test_points.c — what others do at one point of a call, in one process: the hook of the test build does it with a handle of its own.
 *
 * Here belong the interleavings in which one call of one process is overtaken by several of another at a certain place.  All interleavings
 * of small cases are the explorer's; deaths and stops at every point are in test_crash.c. */
#include "support.h"

#include "points.h"
#include "segment.h"

enum { CAPACITY = 4096, ARENA = 64 << 12, LARGE = 2000, BATCH = 3 };

static ringbuf *queue; /* whose call is overtaken */
static ringbuf *other; /* who overtakes it */

/* ---- at a point ---- */

static enum rbi_point awaited;
static void (*what_happens)(void);
static unsigned happened;
static const char *went_wrong; /* there; asserted only when the overtaken call has ended, for it cannot be left in the middle */

static void hook(enum rbi_point point)
{
    static bool busy; /* with what happens, which passes points as well */
    if (busy || point != awaited) return;
    busy = true;
    happened++;
    what_happens();
    busy = false;
}

static void at(enum rbi_point point, void (*then)(void))
{
    awaited = point;
    what_happens = then;
    happened = 0;
    went_wrong = NULL;
    rbi_point_hook = hook;
}

static void expect(bool truth, const char *otherwise)
{
    if (!truth && !went_wrong) went_wrong = otherwise;
}

/** The call is over, and so often it came to the point. */
static void assert_happened(unsigned times)
{
    rbi_point_hook = NULL;
    TEST_ASSERT_NULL_MESSAGE(went_wrong, went_wrong);
    TEST_ASSERT_EQUAL_UINT(times, happened);
}

void setUp(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = CAPACITY;
    options.arena_bytes = ARENA;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&queue, "queue", &options));
    ASSERT_OK(ringbuf_open(&other, "queue", NULL));
}

void tearDown(void)
{
    rbi_point_hook = NULL;
    ringbuf_free(queue);
    ringbuf_free(other);
    queue = other = NULL;
    assert_nothing_is_left();
}

/* ---- a record is released once ---- */

static uint32_t next_put, next_got;

static ringbuf_status put_next(size_t size)
{
    uint8_t bytes[LARGE] = {0};
    memcpy(bytes, &next_put, sizeof next_put);
    ringbuf_status status = ringbuf_put(other, bytes, size, 0);
    if (status == RINGBUF_OK) next_put++;
    return status;
}

static bool get_next(void)
{
    uint8_t bytes[LARGE];
    size_t size;
    uint32_t number;
    if (ringbuf_get(other, &size, bytes, sizeof bytes, 0) != RINGBUF_OK) return false;
    memcpy(&number, bytes, sizeof number);
    return number == next_got++;
}

/** Fill the ring, and go on until also the cell that was just released has a message of the next lap in it. */
static void fill_the_released_cells(void)
{
    while (put_next(sizeof next_put) == RINGBUF_OK) {}
    for (int i = 0; i < 2; i++) {
        expect(get_next(), "the next message is not there");
        put_next(sizeof next_put); /* for which there is no room as long as another one of a batch is in the way */
    }
}

static void get_one(void)
{
    uint8_t bytes[LARGE];
    size_t size;
    ASSERT_OK(ringbuf_get(queue, &size, bytes, sizeof bytes, 0));
}

static void take_and_ack_one(void)
{
    ringbuf_message message = {.data = NULL};
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_ack(queue, &message));
}

static void lease_and_ack_one(void)
{
    ringbuf_message message = {.data = NULL};
    ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, 0));
    TEST_ASSERT_TRUE(message.in_arena);
    ASSERT_OK(ringbuf_ack(queue, &message));
}

static void take_and_ack_a_batch(void)
{
    ringbuf_message messages[BATCH];
    size_t count;
    ASSERT_OK(ringbuf_take_many(queue, messages, &count, BATCH, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(BATCH, count);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
}

/** `count` messages of this size are in the queue, and are consumed by `consume`; as soon as one's record is released, a producer is
 *  there and needs its cell. */
static void consume_beside_a_producer(uint32_t count, size_t size, void (*consume)(void))
{
    next_put = next_got = 0;
    for (uint32_t i = 0; i < count; i++) ASSERT_OK(put_next(size));
    next_got = count;
    at(RBI_POINT_released, fill_the_released_cells);
    consume();
    assert_happened(count);
    while (next_got < next_put) TEST_ASSERT_TRUE(get_next());
    uint64_t items;
    ASSERT_OK(ringbuf_size(other, &items));
    TEST_ASSERT_EQUAL_UINT64(0, items);
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(other, &stats));
    TEST_ASSERT_EQUAL_UINT64(0, stats.used_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
}

static void test_a_record_is_released_once_and_what_a_producer_then_puts_there_stays(void)
{
    for (int lap = 0; lap < 3; lap++) {
        consume_beside_a_producer(1, sizeof next_put, get_one);
        consume_beside_a_producer(1, sizeof next_put, take_and_ack_one);
        consume_beside_a_producer(1, sizeof next_put, lease_and_ack_one);
        consume_beside_a_producer(1, LARGE, get_one);
        consume_beside_a_producer(1, LARGE, take_and_ack_one);
        consume_beside_a_producer(1, LARGE, lease_and_ack_one);
        consume_beside_a_producer(BATCH, sizeof next_put, take_and_ack_a_batch);
    }
}

/* ---- who waits is woken after it, not before ---- */

static struct rbi_event *const *events_of(ringbuf *rb)
{
    static struct rbi_event *events[4];
    events[0] = &rb->header->items;
    events[1] = &rb->header->space;
    events[2] = &rb->header->room;
    events[3] = &rb->header->tasks;
    return events;
}

static uint32_t keys[4];

/** Somebody is about to sleep, whatever for. */
static void announce(void)
{
    for (int i = 0; i < 4; i++) keys[i] = rbi_event_announce(events_of(other)[i]);
}

static bool was_woken(int event) { return rbi_load_total32(&events_of(other)[event]->word) != keys[event]; }

static void assert_everybody_was_woken(void)
{
    TEST_ASSERT_TRUE_MESSAGE(was_woken(0), "who waits for messages");
    TEST_ASSERT_TRUE_MESSAGE(was_woken(1), "who waits for room in the ring");
    TEST_ASSERT_TRUE_MESSAGE(was_woken(2), "who waits for room in the arena");
    TEST_ASSERT_TRUE_MESSAGE(was_woken(3), "who waits for tasks");
}

static void test_everybody_is_woken_after_a_close_has_given_back_what_was_taken(void)
{
    ringbuf_message message = {.data = NULL};
    ASSERT_OK(ringbuf_put(queue, "x", 2, 0));
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    at(RBI_POINT_recovery_hinted, announce); /* its own sleepers were woken before */
    ringbuf_close(queue);
    assert_happened(1);
    assert_everybody_was_woken();
}

static bool woken_early[4];

static void note_who_was_woken(void)
{
    for (int i = 0; i < 4; i++) woken_early[i] = was_woken(i);
}

/** One of the handle's own calls is about to sleep; look again before anything is given back. */
static void announce_and_look_again_later(void)
{
    announce();
    awaited = RBI_POINT_recovery_swept;
    what_happens = note_who_was_woken;
}

static void test_a_close_wakes_the_sleepers_of_its_own_before_it_waits_for_them(void)
{
    memset(woken_early, 0, sizeof woken_early);
    at(RBI_POINT_close_began, announce_and_look_again_later);
    ringbuf_close(queue);
    assert_happened(2);
    for (int i = 0; i < 4; i++) TEST_ASSERT_TRUE(woken_early[i]);
}

static int take_and_die(void *context)
{
    (void)context;
    ringbuf_message message = {.data = NULL};
    if (ringbuf_take(queue, &message, NULL, 0, 0) != RINGBUF_OK) return 1;
    die();
}

static void test_everybody_is_woken_after_the_dead_one_s_records_are_recovered(void)
{
    uint64_t recovered;
    ASSERT_OK(ringbuf_put(queue, "x", 2, 0));
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_and_die, NULL));
    at(RBI_POINT_recovery_hinted, announce);
    ASSERT_OK(ringbuf_recover(other, &recovered));
    TEST_ASSERT_EQUAL_UINT64(1, recovered);
    assert_happened(1);
    assert_everybody_was_woken();
}

/** The queue is drained, and who drains it waits for the message that is just being put. */
static void shut_down_and_announce(void)
{
    if (happened == 1) expect(ringbuf_shutdown(other, 0) == RINGBUF_OK, "the shutdown failed");
    announce();
}

static void test_a_put_that_a_shutdown_refuses_after_its_claim_wakes_the_drainer(void)
{
    at(RBI_POINT_claimed, shut_down_and_announce);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_put(queue, "x", 2, 0));
    assert_happened(1);
    TEST_ASSERT_TRUE(was_woken(0));
    uint64_t items;
    ASSERT_OK(ringbuf_size(other, &items));
    TEST_ASSERT_EQUAL_UINT64(0, items);
}

static void test_a_batch_that_a_shutdown_refuses_after_its_claims_gives_up_all_of_them_and_wakes_the_others(void)
{
    static uint8_t bytes[LARGE];
    ringbuf_part parts[BATCH] = {{"one", 4}, {bytes, sizeof bytes}, {"three", 6}};
    at(RBI_POINT_claimed, shut_down_and_announce);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_put_all(queue, parts, BATCH, 0));
    assert_happened(BATCH);
    TEST_ASSERT_TRUE_MESSAGE(was_woken(0), "the drainer");
    TEST_ASSERT_TRUE_MESSAGE(was_woken(1), "who waits for room in the ring");
    TEST_ASSERT_TRUE_MESSAGE(was_woken(2), "who waits for room in the arena");
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(other, &stats));
    TEST_ASSERT_EQUAL_UINT64(0, stats.items);
    TEST_ASSERT_EQUAL_UINT64(0, stats.used_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
}

/* ---- a batch is published after all of it has been claimed ---- */

static void expect_nothing(void)
{
    uint8_t bytes[LARGE];
    size_t size;
    expect(ringbuf_get(other, &size, bytes, sizeof bytes, 0) == RINGBUF_E_TIMEOUT, "something is there already");
}

static void test_nothing_of_a_batch_can_be_seen_before_all_of_it_is_claimed_and_filled(void)
{
    static uint8_t bytes[LARGE];
    ringbuf_part parts[BATCH] = {{"one", 4}, {bytes, sizeof bytes}, {"three", 6}};
    static const struct {
        enum rbi_point point;
        unsigned times;
    } before[] = {{RBI_POINT_put_began, 1}, {RBI_POINT_run_begun, 1}, {RBI_POINT_claimed, BATCH}, {RBI_POINT_tail_moved, BATCH},
                  {RBI_POINT_run_queued, 1}, {RBI_POINT_payload_written, 1}};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        at(before[i].point, expect_nothing);
        ASSERT_OK(ringbuf_put_all(queue, parts, BATCH, 0));
        assert_happened(before[i].times);
        uint64_t items;
        ASSERT_OK(ringbuf_size(other, &items));
        TEST_ASSERT_EQUAL_UINT64(BATCH, items);
        take_and_ack_a_batch();
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_record_is_released_once_and_what_a_producer_then_puts_there_stays);
    RUN_TEST(test_everybody_is_woken_after_a_close_has_given_back_what_was_taken);
    RUN_TEST(test_a_close_wakes_the_sleepers_of_its_own_before_it_waits_for_them);
    RUN_TEST(test_everybody_is_woken_after_the_dead_one_s_records_are_recovered);
    RUN_TEST(test_a_put_that_a_shutdown_refuses_after_its_claim_wakes_the_drainer);
    RUN_TEST(test_a_batch_that_a_shutdown_refuses_after_its_claims_gives_up_all_of_them_and_wakes_the_others);
    RUN_TEST(test_nothing_of_a_batch_can_be_seen_before_all_of_it_is_claimed_and_filled);
    return leave_suite_directory(UNITY_END());
}
