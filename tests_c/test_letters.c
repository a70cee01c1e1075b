/* test_letters.c — max_attempts and dead_letter hold for every consumer and every way of taking a message. */
#include "support.h"

#include "segment.h"

enum { MOST = 2, SMALL = 30, LARGE = 9000, BURSTS = 12 };

static ringbuf *queue;
static uint8_t bytes[LARGE], got[LARGE];

static void create(ringbuf **rb, const char *name, const char *dead_letter, uint64_t arena, const char *tag)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 4096;
    options.arena_bytes = arena;
    options.dead_letter = dead_letter;
    options.max_attempts = dead_letter ? MOST : 0;
    options.tag = tag;
    ASSERT_OK(ringbuf_create(rb, name, &options));
}

void setUp(void) { create(&queue, "work", "dead", 1 << 20, "bytes"); }

void tearDown(void)
{
    size_t size;
    ringbuf *dead;
    if (queue)
        while (ringbuf_get(queue, &size, got, sizeof got, 0) == RINGBUF_OK) {}
    ringbuf_free(queue);
    queue = NULL;
    if (ringbuf_open(&dead, "dead", NULL) == RINGBUF_OK) { /* a test that has failed left something */
        ringbuf_shutdown(dead, 1);
        ringbuf_free(dead);
    }
    assert_nothing_is_left();
}

static void put(uint8_t with, size_t size)
{
    memset(bytes, with, size);
    ASSERT_OK(ringbuf_put(queue, bytes, size, 0));
}

/** The next message has its attempts, and each fails. */
static void exhaust(void)
{
    for (uint32_t attempt = 1; attempt <= MOST; attempt++) {
        ringbuf_message message;
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT32(attempt, message.attempts);
        ASSERT_OK(ringbuf_nack(queue, &message));
    }
}

/** What is in the dead-letter queue, in order, each byte one message's filling; and it is empty, and so gone, after that. */
static void assert_dead(const char *fillings, size_t size)
{
    ringbuf *dead;
    size_t found;
    ASSERT_OK(ringbuf_open(&dead, "dead", NULL));
    for (const char *filling = fillings; *filling; filling++) {
        ASSERT_OK(ringbuf_get(dead, &found, got, sizeof got, 0));
        TEST_ASSERT_EQUAL_UINT64(size, found);
        for (size_t i = 0; i < size; i++) TEST_ASSERT_EQUAL_UINT8((uint8_t)*filling, got[i]);
    }
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(dead, &found, got, sizeof got, 0));
    ringbuf_free(dead);
}

/* ---- every way of taking ---- */

enum how { GET, TAKE, LEASE, MANY_FIRST, WAYS };

/** Take the next message and be done with it; its filling. */
static ringbuf_status consume(enum how how, uint8_t *filling, int64_t deadline_ns)
{
    ringbuf_message message;
    ringbuf_status status;
    size_t size, count;
    if (how == GET) {
        status = ringbuf_get(queue, &size, got, sizeof got, deadline_ns);
        if (status == RINGBUF_OK) *filling = got[0];
        return status;
    }
    if (how == TAKE) status = ringbuf_take(queue, &message, NULL, 0, deadline_ns);
    else if (how == LEASE) status = ringbuf_lease(queue, &message, NULL, 0, deadline_ns);
    else status = ringbuf_take_many(queue, &message, &count, 1, SIZE_MAX, NULL, 0, deadline_ns);
    if (status != RINGBUF_OK) return status;
    *filling = *(const uint8_t *)message.data;
    return ringbuf_ack(queue, &message);
}

static void test_what_has_had_its_attempts_is_moved_by_every_call_that_takes(void)
{
    const size_t sizes[] = {SMALL, LARGE};
    for (int s = 0; s < 2; s++) {
        for (enum how how = GET; how < WAYS; how++) {
            uint8_t filling = 0;
            put('a', sizes[s]);
            exhaust();
            put('b', sizes[s]);
            ASSERT_OK(consume(how, &filling, 0));
            TEST_ASSERT_EQUAL_UINT8('b', filling);
            put('c', sizes[s]);
            exhaust();
            ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(how, &filling, 0));
            assert_dead("ac", sizes[s]);
        }
    }
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64(2 * 2 * WAYS, stats.dead_letters);
    TEST_ASSERT_EQUAL_UINT64(0, stats.items + stats.leased + stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(stats.puts, stats.gets);
}

static void test_a_batch_leaves_out_what_has_had_its_attempts_wherever_it_is(void)
{
    ringbuf_message messages[8];
    size_t count;
    for (const char *filling = "abcd"; *filling; filling++) put((uint8_t)*filling, SMALL);
    for (int attempt = 0; attempt < MOST; attempt++) {
        ASSERT_OK(ringbuf_take_many(queue, messages, &count, 4, SIZE_MAX, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT64(4, count);
        ASSERT_OK(ringbuf_nack(queue, &messages[1]));
        ASSERT_OK(ringbuf_nack(queue, &messages[3]));
        ASSERT_OK(ringbuf_return_all(queue, messages, 1));
        ASSERT_OK(ringbuf_return_all(queue, messages + 2, 1));
    }
    ASSERT_OK(ringbuf_take_many(queue, messages, &count, 8, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    TEST_ASSERT_EQUAL_UINT8('a', *(const uint8_t *)messages[0].data);
    TEST_ASSERT_EQUAL_UINT8('c', *(const uint8_t *)messages[1].data);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    assert_dead("bd", SMALL);
}

static int die_with_a_lease(void *context)
{
    ringbuf *rb;
    ringbuf_message message;
    if (ringbuf_open(&rb, "work", NULL) != RINGBUF_OK) return 100;
    ringbuf_status status = ringbuf_lease(rb, &message, NULL, 0, ringbuf_now_ns() + 300 * MILLISECOND);
    if (status == RINGBUF_E_TIMEOUT) _exit(50);
    if (status != RINGBUF_OK || message.attempts != *(uint32_t *)context) return 101;
    die();
}

static void test_a_message_that_kills_its_consumers_kills_no_more_than_it_may(void)
{
    put('k', SMALL);
    for (uint32_t attempt = 1; attempt <= MOST; attempt++) TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(die_with_a_lease, &attempt));
    TEST_ASSERT_EQUAL_INT(50, run_child(die_with_a_lease, NULL));
    assert_dead("k", SMALL);
}

static void test_a_moved_message_is_a_task_that_is_done(void)
{
    put('a', SMALL);
    exhaust();
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, 0));
    uint8_t filling;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(GET, &filling, 0));
    ASSERT_OK(ringbuf_join(queue, 0));
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
    assert_dead("a", SMALL);
}

static void test_the_dead_letter_queue_is_made_as_the_queue_is(void)
{
    ringbuf *dead;
    ringbuf_info info, of_dead;
    put('a', SMALL);
    exhaust();
    uint8_t filling;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(TAKE, &filling, 0));
    ASSERT_OK(ringbuf_open(&dead, "dead", NULL));
    ASSERT_OK(ringbuf_get_info(queue, &info));
    ASSERT_OK(ringbuf_get_info(dead, &of_dead));
    TEST_ASSERT_EQUAL_UINT64(info.capacity_bytes, of_dead.capacity_bytes);
    TEST_ASSERT_EQUAL_UINT64(info.arena_bytes, of_dead.arena_bytes);
    TEST_ASSERT_EQUAL_UINT32(info.permissions, of_dead.permissions);
    TEST_ASSERT_EQUAL_UINT32(info.max_participants, of_dead.max_participants);
    TEST_ASSERT_EQUAL_STRING("bytes", of_dead.tag);
    TEST_ASSERT_EQUAL_UINT32(0, of_dead.max_attempts);
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(dead, &stats));
    TEST_ASSERT_EQUAL_UINT64(1, stats.participants); /* who has moved it is not there any more */
    ringbuf_free(dead);
    assert_dead("a", SMALL);
}

/* ---- when it cannot be moved ---- */

static void test_what_cannot_be_moved_stays_and_is_said_to_whoever_finds_nothing_else(void)
{
    static const char *const obstacles[] = {"full", "tag", "shut down", "a file that is no queue"};
    for (size_t o = 0; o < sizeof obstacles / sizeof *obstacles; o++) {
        for (enum how how = GET; how < WAYS; how++) {
            ringbuf *dead = NULL;
            char path[512];
            uint8_t filling = 0;
            ringbuf_status why = RINGBUF_E_TIMEOUT;
            if (o < 3) create(&dead, "dead", NULL, 0, o == 1 ? "others" : "bytes");
            if (o == 0)
                while (ringbuf_put(dead, "x", 1, 0) == RINGBUF_OK) {}
            if (o == 1) why = RINGBUF_E_INVALID;
            if (o == 2) {
                ASSERT_OK(ringbuf_shutdown(dead, 0));
                why = RINGBUF_E_SHUTDOWN;
            }
            if (o == 3) {
                snprintf(path, sizeof path, "%s/ringbuf.dead", suite_directory);
                int fd = open(path, O_CREAT | O_WRONLY, 0600);
                TEST_ASSERT_EQUAL_INT(4, write(fd, "nope", 4));
                close(fd);
                why = RINGBUF_E_CORRUPT;
            }
            put('a', SMALL);
            exhaust();
            for (int again = 0; again < 3; again++) {
                ASSERT_STATUS(RINGBUF_E_DEAD_LETTER, consume(how, &filling, again ? RINGBUF_FOREVER : 0));
                ASSERT_STATUS(why, ringbuf_dead_letter_status(queue));
                uint64_t items;
                ASSERT_OK(ringbuf_size(queue, &items));
                TEST_ASSERT_EQUAL_UINT64(1, items);
            }
            /* It is in nobody's way. */
            for (uint8_t next = 'b'; next < 'b' + 100; next++) { /* more than once round the ring */
                put(next, SMALL);
                ASSERT_OK(consume(how, &filling, 0));
                TEST_ASSERT_EQUAL_UINT8(next, filling);
            }
            if (dead && o == 0) { /* now there is room */
                size_t size;
                while (ringbuf_get(dead, &size, got, sizeof got, 0) == RINGBUF_OK) {}
            } else if (dead) {
                ASSERT_OK(ringbuf_unlink(dead));
            } else {
                TEST_ASSERT_EQUAL_INT(0, unlink(path));
            }
            ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(how, &filling, 0));
            assert_dead("a", SMALL);
            ringbuf_free(dead);
        }
    }
}

static void test_many_that_cannot_be_moved_stay_in_order_with_their_attempts_and_hold_up_nobody(void)
{
    ringbuf *dead;
    ringbuf_message message, messages[BURSTS];
    size_t count;
    create(&dead, "dead", NULL, 0, "others");
    for (uint8_t i = 0; i < BURSTS; i++) put((uint8_t)('A' + i), SMALL);
    for (int attempt = 0; attempt < MOST; attempt++) {
        ASSERT_OK(ringbuf_take_many(queue, messages, &count, BURSTS, SIZE_MAX, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT64(BURSTS, count);
        for (size_t i = 0; i < count; i++) ASSERT_OK(ringbuf_nack(queue, &messages[i]));
    }
    for (int i = 0; i < 50; i++) {
        put('z', SMALL);
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT8('z', *(const uint8_t *)message.data);
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
    ASSERT_STATUS(RINGBUF_E_DEAD_LETTER, ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_unlink(dead));
    ringbuf_free(dead);
    uint8_t filling;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(GET, &filling, 0));
    assert_dead("ABCDEFGHIJKL", SMALL);
}

static void test_a_queue_that_is_drained_is_said_to_be_shut_down_with_what_cannot_be_moved_in_it(void)
{
    ringbuf *dead;
    uint8_t filling;
    create(&dead, "dead", NULL, 0, "others");
    put('a', SMALL);
    exhaust();
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, consume(GET, &filling, RINGBUF_FOREVER));
    uint64_t items;
    ASSERT_OK(ringbuf_size(queue, &items));
    TEST_ASSERT_EQUAL_UINT64(1, items);
    ASSERT_OK(ringbuf_unlink(dead));
    ringbuf_free(dead);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, consume(GET, &filling, 0));
    assert_dead("a", SMALL);
}

/* ---- which queue it may be ---- */

static void test_a_queue_is_not_its_own_dead_letter_queue_and_two_may_be_each_other_s(void)
{
    ringbuf *other;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.dead_letter = "itself";
    options.max_attempts = 1;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_create(&other, "itself", &options));
    create(&other, "dead", "work", 0, "bytes");
    put('a', SMALL);
    exhaust();
    uint8_t filling;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(GET, &filling, 0));
    ringbuf *work = queue;
    queue = other; /* there it has its attempts again, and comes back */
    exhaust();
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, consume(GET, &filling, 0));
    queue = work;
    ringbuf_message message;
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT32(1, message.attempts);
    ASSERT_OK(ringbuf_ack(queue, &message));
    ringbuf_free(other);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_what_has_had_its_attempts_is_moved_by_every_call_that_takes);
    RUN_TEST(test_a_batch_leaves_out_what_has_had_its_attempts_wherever_it_is);
    RUN_TEST(test_a_message_that_kills_its_consumers_kills_no_more_than_it_may);
    RUN_TEST(test_a_moved_message_is_a_task_that_is_done);
    RUN_TEST(test_the_dead_letter_queue_is_made_as_the_queue_is);
    RUN_TEST(test_what_cannot_be_moved_stays_and_is_said_to_whoever_finds_nothing_else);
    RUN_TEST(test_many_that_cannot_be_moved_stay_in_order_with_their_attempts_and_hold_up_nobody);
    RUN_TEST(test_a_queue_that_is_drained_is_said_to_be_shut_down_with_what_cannot_be_moved_in_it);
    RUN_TEST(test_a_queue_is_not_its_own_dead_letter_queue_and_two_may_be_each_other_s);
    return leave_suite_directory(UNITY_END());
}
