/* test_batch.c — floor 4: several messages with one call: ringbuf_put_all_parts, ringbuf_take_many, ringbuf_ack_all, ringbuf_return_all.
 * ringbuf_put_all by itself is in test_queue.c and test_large.c. */
#include "support.h"

enum { CAPACITY = 32768, ARENA = 64 << 12, MOST = 100 };

static ringbuf *queue;
static ringbuf_message messages[MOST];
static size_t count;
static char bytes[4096];

void setUp(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = CAPACITY;
    options.arena_bytes = ARENA;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&queue, "queue", &options));
}

void tearDown(void)
{
    ringbuf_free(queue);
    queue = NULL;
    assert_nothing_is_left();
}

static uint64_t size(void)
{
    uint64_t items;
    ASSERT_OK(ringbuf_size(queue, &items));
    return items;
}

/** Put the numbers from `from` on, each as four bytes. */
static void put_numbers(uint32_t from, uint32_t upto)
{
    for (uint32_t number = from; number < upto; number++) ASSERT_OK(ringbuf_put(queue, &number, sizeof number, 0));
}

/** A message of `wanted` bytes, the first four of which are this number. */
static void put_large(uint32_t number, size_t wanted)
{
    static char large[ARENA];
    memcpy(large, &number, sizeof number);
    ASSERT_OK(ringbuf_put(queue, large, wanted, 0));
}

static uint32_t number_of(const ringbuf_message *message)
{
    uint32_t number;
    memcpy(&number, message->data, sizeof number);
    return number;
}

/** The next messages are these numbers, and nobody has taken them before. */
static void assert_untouched(uint32_t from, uint32_t upto)
{
    for (uint32_t number = from; number < upto; number++) {
        ringbuf_message message = {.data = NULL};
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT32(number, number_of(&message));
        TEST_ASSERT_EQUAL_UINT32(1, message.attempts);
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
}

static ringbuf_status take(size_t most, size_t most_bytes)
{
    return ringbuf_take_many(queue, messages, &count, most, most_bytes, bytes, sizeof bytes, 0);
}

static void test_several_are_taken_in_order_and_copied_one_behind_another(void)
{
    put_numbers(0, 20);
    ASSERT_OK(take(15, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT64(15, count);
    for (uint32_t i = 0; i < 15; i++) {
        TEST_ASSERT_EQUAL_PTR(bytes + i * sizeof i, messages[i].data);
        TEST_ASSERT_EQUAL_UINT32(1, messages[i].copied);
        TEST_ASSERT_EQUAL_UINT32(i, number_of(&messages[i]));
    }
    TEST_ASSERT_EQUAL_UINT64(5, size());
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack_all(queue, messages, 1));
    assert_untouched(15, 20);
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64(20, stats.gets);
    TEST_ASSERT_EQUAL_UINT64(80, stats.bytes_got);
    TEST_ASSERT_EQUAL_UINT64(0, stats.leased);
}

static void test_what_the_buffer_has_no_room_for_is_read_where_it_lies(void)
{
    put_numbers(0, 2);
    put_large(2, 5000);
    put_numbers(3, 4);
    put_large(4, 1000);
    ASSERT_OK(ringbuf_take_many(queue, messages, &count, MOST, SIZE_MAX, bytes, 12, 0));
    TEST_ASSERT_EQUAL_UINT64(5, count);
    for (uint32_t i = 0; i < 5; i++) {
        TEST_ASSERT_EQUAL_UINT32(i, number_of(&messages[i]));
        TEST_ASSERT_EQUAL(i == 2 || i == 4, messages[i].copied == 0);
    }
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, take(MOST, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT64(0, count);
}

static void test_no_more_bytes_are_taken_than_asked_for_but_at_least_one_message(void)
{
    put_numbers(0, 10);
    put_large(10, 20000);
    put_numbers(11, 12);
    ASSERT_OK(take(MOST, 11));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ASSERT_OK(take(MOST, 0));
    TEST_ASSERT_EQUAL_UINT64(1, count);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ASSERT_OK(take(MOST, 1000)); /* up to the large one */
    TEST_ASSERT_EQUAL_UINT64(7, count);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ASSERT_OK(take(MOST, 1000));
    TEST_ASSERT_EQUAL_UINT64(1, count);
    TEST_ASSERT_EQUAL_UINT32(10, number_of(&messages[0]));
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    assert_untouched(11, 12);
}

static void test_what_is_returned_comes_again_in_order_and_untouched(void)
{
    put_numbers(0, 10);
    for (int time = 0; time < 3; time++) {
        ASSERT_OK(take(7, SIZE_MAX));
        ASSERT_OK(ringbuf_return_all(queue, messages, count));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_return_all(queue, messages, 1));
        TEST_ASSERT_EQUAL_UINT64(10, size());
    }
    assert_untouched(0, 10);
    for (uint32_t number = 0; number < 3; number++) put_large(number, 10000);
    ASSERT_OK(take(3, SIZE_MAX));
    ASSERT_OK(ringbuf_return_all(queue, messages, count));
    assert_untouched(0, 3);
    ringbuf_findings findings;
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(0, findings.runs);
}

static void test_what_was_tried_before_keeps_those_attempts_when_it_is_returned_untouched(void)
{
    put_numbers(0, 1);
    for (uint32_t attempt = 1; attempt < 4; attempt++) {
        ASSERT_OK(take(1, SIZE_MAX));
        TEST_ASSERT_EQUAL_UINT32(attempt, messages[0].attempts);
        ASSERT_OK(ringbuf_return_all(queue, messages, 1));
        ASSERT_OK(take(1, SIZE_MAX));
        TEST_ASSERT_EQUAL_UINT32(attempt, messages[0].attempts);
        ASSERT_OK(ringbuf_nack(queue, &messages[0]));
    }
}

static void test_some_of_a_batch_can_be_ended_and_the_others_returned(void)
{
    put_numbers(0, 10);
    ASSERT_OK(take(10, SIZE_MAX));
    ASSERT_OK(ringbuf_ack_all(queue, messages, 4));
    ASSERT_OK(ringbuf_ack(queue, &messages[6]));
    ASSERT_OK(ringbuf_return_all(queue, messages + 7, 3));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_return_all(queue, messages + 4, 3)); /* but those that can be are */
    assert_untouched(4, 6);
    assert_untouched(7, 10);
}

static void test_messages_of_several_parts_go_in_together(void)
{
    static char large[20000];
    memset(large, 'x', sizeof large);
    ringbuf_part parts[] = {{"one", 3}, {" and ", 5}, {"two", 4}, {large, 100}, {large, sizeof large}, {large, 1}, {"end", 4}};
    const size_t part_counts[] = {3, 0, 3, 1};
    ASSERT_OK(ringbuf_put_all_parts(queue, parts, part_counts, 4, 0));
    ASSERT_OK(take(MOST, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT64(4, count);
    TEST_ASSERT_EQUAL_STRING("one and two", messages[0].data);
    TEST_ASSERT_EQUAL_UINT64(0, messages[1].size);
    TEST_ASSERT_EQUAL_UINT64(100 + sizeof large + 1, messages[2].size);
    TEST_ASSERT_EQUAL_MEMORY(large, messages[2].data, sizeof large);
    TEST_ASSERT_EQUAL_STRING("end", messages[3].data);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
}

static void test_more_messages_than_there_is_room_for_on_the_stack_go_in_together(void)
{
    uint32_t numbers[60];
    ringbuf_part parts[60];
    for (uint32_t i = 0; i < 60; i++) {
        numbers[i] = i;
        parts[i] = (ringbuf_part){&numbers[i], sizeof numbers[i]};
    }
    ASSERT_OK(ringbuf_put_all(queue, parts, 30, 0));
    TEST_ASSERT_EQUAL_UINT64(30, size());
    assert_untouched(0, 30);
    ASSERT_OK(ringbuf_put_all(queue, parts, 60, 0));
    assert_untouched(0, 60);
}

static void test_a_batch_for_which_the_arena_has_room_in_part_reserves_none_of_it(void)
{
    static char large[ARENA];
    ringbuf_part parts[] = {{large, 10000}, {large, ARENA - 20000}, {large, 4}};
    ringbuf_stats stats;
    put_large(0, 20000);
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    const uint64_t before = stats.arena_used_bytes;
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_put_all(queue, parts, 3, 0));
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64(before, stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.reserved);
    TEST_ASSERT_EQUAL_UINT64(1, stats.items);
    assert_untouched(0, 1);
    ASSERT_OK(ringbuf_put_all(queue, parts, 3, 0));
}

static void test_a_batch_goes_round_one_who_is_in_the_way_also_where_there_is_room_for_a_part_of_it(void)
{
    enum { FREE_CELLS = CAPACITY / 128 - 1 };
    ringbuf *holder;
    ringbuf_message held = {.data = NULL};
    uint32_t numbers[3] = {1, 2, 3};
    ringbuf_part parts[3] = {{&numbers[0], 4}, {&numbers[1], 4}, {&numbers[2], 4}};
    size_t got;
    for (int room = 0; room < 3; room++) {
        ASSERT_OK(ringbuf_open(&holder, "queue", NULL));
        put_numbers(0, 1);
        ASSERT_OK(ringbuf_take(holder, &held, NULL, 0, 0));
        for (int used = 1; used < FREE_CELLS - room; used++) {
            put_numbers(0, 1);
            ASSERT_OK(ringbuf_get(queue, &got, bytes, sizeof bytes, 0));
        }
        ASSERT_OK(ringbuf_put_all(queue, parts, 3, ringbuf_now_ns() + 20000 * (int64_t)MILLISECOND));
        assert_untouched(1, 4);
        ringbuf_free(holder); /* gives it back */
        ASSERT_OK(ringbuf_get(queue, &got, bytes, sizeof bytes, 0));
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, take(1, SIZE_MAX));
        ringbuf_free(queue); /* the next round begins with an empty ring */
        setUp();
    }
}

static void test_a_batch_that_waits_is_woken_by_the_first_message_and_takes_what_is_there(void)
{
    pid_t child = fork();
    if (child == 0) {
        struct timespec moment = {.tv_nsec = 50 * MILLISECOND};
        nanosleep(&moment, NULL);
        uint32_t numbers[3] = {0, 1, 2};
        ringbuf_part parts[3] = {{&numbers[0], 4}, {&numbers[1], 4}, {&numbers[2], 4}};
        _exit(ringbuf_put_all(queue, parts, 3, 0));
    }
    uint32_t next = 0;
    while (next < 3) {
        ASSERT_OK(ringbuf_take_many(queue, messages, &count, MOST, SIZE_MAX, bytes, sizeof bytes, RINGBUF_FOREVER));
        for (size_t i = 0; i < count; i++) TEST_ASSERT_EQUAL_UINT32(next++, number_of(&messages[i]));
        ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    }
    int state;
    TEST_ASSERT_EQUAL(child, waitpid(child, &state, 0));
    TEST_ASSERT_EQUAL(0, state);
}

static void test_what_a_dead_one_had_taken_comes_again(void)
{
    put_numbers(0, 10);
    pid_t child = fork();
    if (child == 0) {
        if (take(6, SIZE_MAX) != RINGBUF_OK || ringbuf_ack_all(queue, messages, 2) != RINGBUF_OK) _exit(1);
        kill(getpid(), SIGKILL);
    }
    int state;
    TEST_ASSERT_EQUAL(child, waitpid(child, &state, 0));
    TEST_ASSERT_TRUE(WIFSIGNALED(state));
    uint64_t recovered;
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(1, recovered);
    ASSERT_OK(take(MOST, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT64(8, count);
    for (uint32_t i = 0; i < 8; i++) TEST_ASSERT_EQUAL_UINT32(i + 2, number_of(&messages[i]));
    TEST_ASSERT_EQUAL_UINT32(2, messages[0].attempts);
    TEST_ASSERT_EQUAL_UINT32(1, messages[4].attempts);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
}

static void test_a_batch_in_hand_when_the_handle_is_closed_goes_back(void)
{
    ringbuf *other;
    put_numbers(0, 5);
    ASSERT_OK(ringbuf_open(&other, "queue", NULL));
    ASSERT_OK(ringbuf_take_many(other, messages, &count, 5, SIZE_MAX, bytes, sizeof bytes, 0));
    ringbuf_close(other);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_ack_all(other, messages, count));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_return_all(other, messages, count));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_take_many(other, messages, &count, 5, SIZE_MAX, bytes, sizeof bytes, 0));
    ringbuf_free(other);
    TEST_ASSERT_EQUAL_UINT64(5, size());
}

static void test_what_is_returned_after_a_shutdown_at_once_is_thrown_away(void)
{
    put_numbers(0, 5);
    ASSERT_OK(take(3, SIZE_MAX));
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    ASSERT_OK(ringbuf_return_all(queue, messages, count));
    TEST_ASSERT_EQUAL_UINT64(0, size());
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, take(3, SIZE_MAX));
    ASSERT_OK(ringbuf_join(queue, ringbuf_now_ns() + 1000 * (int64_t)MILLISECOND));
}

static void test_arguments_that_make_no_sense_are_refused(void)
{
    put_numbers(0, 1);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take_many(NULL, messages, &count, 1, 1, bytes, sizeof bytes, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take_many(queue, NULL, &count, 1, 1, bytes, sizeof bytes, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take_many(queue, messages, NULL, 1, 1, bytes, sizeof bytes, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take_many(queue, messages, &count, 0, 1, bytes, sizeof bytes, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take_many(queue, messages, &count, 1, 1, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack_all(queue, NULL, 1));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_return_all(queue, NULL, 1));
    ringbuf_part part = {NULL, 1};
    const size_t one = 1, two = 2;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_all_parts(queue, &part, &one, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_all_parts(NULL, &part, &one, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_all_parts(queue, NULL, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack_all(NULL, messages, 1));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_return_all(NULL, messages, 1));
    const ringbuf_part more_than_all[] = {{bytes, SIZE_MAX}, {bytes, 2}}; /* the sum is 1 */
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put_all_parts(queue, more_than_all, &two, 1, 0));
    TEST_ASSERT_EQUAL_UINT64(1, size());
    ASSERT_OK(ringbuf_put_all_parts(queue, NULL, NULL, 0, 0));
    part.size = 0;
    ASSERT_OK(ringbuf_put_all_parts(queue, &part, &one, 1, 0)); /* a message of no bytes lies nowhere */
    ASSERT_OK(ringbuf_ack_all(queue, messages, 0));
    ASSERT_OK(ringbuf_return_all(queue, messages, 0));
    ASSERT_OK(ringbuf_take_many(queue, messages, &count, 1, 1, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT32(0, messages[0].copied);
    ASSERT_OK(ringbuf_ack_all(queue, messages, 1));
}

static ringbuf_stats stats_now(void)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    return stats;
}

static void test_a_batch_goes_round_one_who_holds_a_message_while_the_ring_is_full(void)
{
    uint32_t put = 0;
    while (ringbuf_put(queue, &put, sizeof put, 0) == RINGBUF_OK) put++;
    ringbuf_message held = {.data = NULL};
    ASSERT_OK(ringbuf_take(queue, &held, NULL, 0, 0)); /* and holds it as one would who is stopped */
    ringbuf_part parts[20];
    uint32_t numbers[20];
    for (uint32_t i = 0; i < 20; i++) {
        numbers[i] = put + i;
        parts[i] = (ringbuf_part){&numbers[i], sizeof numbers[i]};
    }
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put_all(queue, parts, 20, 0));
    for (uint32_t i = 1; i < put; i++) {
        ringbuf_message message = {.data = NULL};
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
    for (uint32_t i = 1; i < put; i++) { /* all that is free now lies behind the one that is held */
        if (ringbuf_put(queue, &i, sizeof i, 0) != RINGBUF_OK) break;
    }
    uint64_t waiting = size();
    ASSERT_OK(ringbuf_put_all(queue, parts, 20, ringbuf_now_ns() + INT64_C(20000) * MILLISECOND));
    TEST_ASSERT_EQUAL_UINT64(waiting + 20, size());
    TEST_ASSERT_EQUAL_UINT32(0, number_of(&held)); /* his message is untouched */
    ASSERT_OK(ringbuf_ack(queue, &held));
    for (uint64_t i = 0; i < waiting; i++) {
        ringbuf_message message = {.data = NULL};
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
    assert_untouched(put, put + 20);
}

static void test_an_attempt_counter_that_is_full_stays_full_when_the_message_is_returned_untouched(void)
{
    enum { MOST_ATTEMPTS = 65535 };
    put_numbers(0, 1); /* in the ring */
    for (int i = 0; i < MOST_ATTEMPTS; i++) {
        ASSERT_OK(take(1, SIZE_MAX));
        ASSERT_OK(ringbuf_nack(queue, &messages[0]));
    }
    ASSERT_OK(take(1, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT32(MOST_ATTEMPTS, messages[0].attempts);
    ASSERT_OK(ringbuf_return_all(queue, messages, 1)); /* which may have been many more */
    ASSERT_OK(take(1, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT32(MOST_ATTEMPTS, messages[0].attempts);
    ASSERT_OK(ringbuf_ack(queue, &messages[0]));
    put_large(1, 5000); /* in the arena */
    for (int i = 0; i < MOST_ATTEMPTS; i++) {
        ASSERT_OK(take(1, SIZE_MAX));
        ASSERT_OK(ringbuf_nack(queue, &messages[0]));
    }
    ASSERT_OK(take(1, SIZE_MAX));
    ASSERT_OK(ringbuf_return_all(queue, messages, 1));
    ASSERT_OK(take(1, SIZE_MAX));
    TEST_ASSERT_EQUAL_UINT32(MOST_ATTEMPTS, messages[0].attempts);
    ASSERT_OK(ringbuf_ack(queue, &messages[0]));
    TEST_ASSERT_EQUAL_UINT64(0, stats_now().arena_used_bytes);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_several_are_taken_in_order_and_copied_one_behind_another);
    RUN_TEST(test_what_the_buffer_has_no_room_for_is_read_where_it_lies);
    RUN_TEST(test_no_more_bytes_are_taken_than_asked_for_but_at_least_one_message);
    RUN_TEST(test_what_is_returned_comes_again_in_order_and_untouched);
    RUN_TEST(test_what_was_tried_before_keeps_those_attempts_when_it_is_returned_untouched);
    RUN_TEST(test_some_of_a_batch_can_be_ended_and_the_others_returned);
    RUN_TEST(test_messages_of_several_parts_go_in_together);
    RUN_TEST(test_more_messages_than_there_is_room_for_on_the_stack_go_in_together);
    RUN_TEST(test_a_batch_for_which_the_arena_has_room_in_part_reserves_none_of_it);
    RUN_TEST(test_a_batch_goes_round_one_who_is_in_the_way_also_where_there_is_room_for_a_part_of_it);
    RUN_TEST(test_a_batch_that_waits_is_woken_by_the_first_message_and_takes_what_is_there);
    RUN_TEST(test_what_a_dead_one_had_taken_comes_again);
    RUN_TEST(test_a_batch_in_hand_when_the_handle_is_closed_goes_back);
    RUN_TEST(test_what_is_returned_after_a_shutdown_at_once_is_thrown_away);
    RUN_TEST(test_a_batch_goes_round_one_who_holds_a_message_while_the_ring_is_full);
    RUN_TEST(test_an_attempt_counter_that_is_full_stays_full_when_the_message_is_returned_untouched);
    RUN_TEST(test_arguments_that_make_no_sense_are_refused);
    return leave_suite_directory(UNITY_END());
}
