/* test_hostile.c — a program that may write to the file writes over a word between two readings of it: docs/correctness.md has
 * the list.
 *
 * The hook of the test build writes at one point of a call, as another process could.  Whatever it writes, a call puts no more
 * into the caller's buffer than that holds, hands out nothing that lies outside of the message's own memory, and frees no blocks
 * but those of its run. */
#include "support.h"

#include "calls.h"
#include "points.h"

enum { SMALL = 100, LARGE = 20000, HUGE_SIZE = 40000, GUARD = 0xee };

static ringbuf *queue;
static uint8_t buffer[SMALL + 65536], bytes[HUGE_SIZE];

static rbi_atomic64 *word;
static uint64_t value;
static enum rbi_point awaited;
static unsigned happened;

static void write_over(enum rbi_point point)
{
    if (point != awaited || !word) return;
    rbi_store_total64(word, value);
    word = NULL;
    happened++;
}

static void at(enum rbi_point point, rbi_atomic64 *which, uint64_t what)
{
    awaited = point;
    word = which;
    value = what;
    happened = 0;
    rbi_point_hook = write_over;
}

static void assert_happened(void)
{
    rbi_point_hook = NULL;
    TEST_ASSERT_EQUAL_UINT(1, happened);
}

void setUp(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 1 << 20;
    options.arena_bytes = 1 << 20;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&queue, "hostile", &options));
    memset(buffer, GUARD, sizeof buffer);
    memset(bytes, 'm', sizeof bytes);
}

void tearDown(void)
{
    rbi_point_hook = NULL;
    ringbuf_free(queue);
    queue = NULL;
    assert_nothing_is_left();
}

static void assert_untouched_behind(size_t size)
{
    for (size_t i = size; i < sizeof buffer; i++) TEST_ASSERT_EQUAL_UINT8(GUARD, buffer[i]);
}

static struct rbi_slot *slot_of(const ringbuf_message *message)
{
    return &queue->ring.lanes[0].slots[message->position & ((UINT64_C(1) << queue->ring.cells_log2) - 1)];
}

/** Put a message, take it and give it back; its token at that taking. */
static ringbuf_message put_and_return(size_t size)
{
    ringbuf_message message;
    ASSERT_OK(ringbuf_put(queue, bytes, size, 0));
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_nack(queue, &message));
    return message;
}

static uint64_t sized(uint64_t size) { return size | UINT64_C(1) << RBI_ATTEMPTS_SHIFT | UINT64_C(1) << RBI_TURN_SHIFT; }

static void test_a_returned_record_s_size_that_grows_after_the_take_is_not_believed(void)
{
    size_t size = 0;
    ringbuf_message message = put_and_return(HUGE_SIZE); /* with cells for so much */
    rbi_store_relaxed64(&slot_of(&message)->size, sized(SMALL));
    at(RBI_POINT_record_owned, &slot_of(&message)->size, sized(HUGE_SIZE));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_get(queue, &size, buffer, SMALL, 0));
    assert_happened();
    assert_untouched_behind(0);
}

static void test_a_returned_record_that_becomes_a_reference_after_the_take_is_not_believed(void)
{
    size_t size = 0;
    ringbuf_message message = put_and_return(SMALL);
    at(RBI_POINT_record_owned, &slot_of(&message)->size, sized(SMALL) | RBI_REFERENCE);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_get(queue, &size, buffer, SMALL, 0));
    assert_happened();
    assert_untouched_behind(0);
}

static void test_a_ready_record_s_size_is_read_once(void)
{
    size_t size = 0;
    ASSERT_OK(ringbuf_put(queue, bytes, HUGE_SIZE, 0));
    uint64_t first = rbi_ring_first_position(&queue->ring);
    struct rbi_slot *slot = &queue->ring.lanes[0].slots[first & ((UINT64_C(1) << queue->ring.cells_log2) - 1)];
    rbi_store_relaxed64(&slot->size, SMALL);
    at(RBI_POINT_record_owned, &slot->size, HUGE_SIZE);
    ASSERT_OK(ringbuf_get(queue, &size, buffer, SMALL, 0));
    assert_happened();
    TEST_ASSERT_EQUAL_UINT64(SMALL, size);
    assert_untouched_behind(SMALL);
}

static void test_a_returned_run_s_size_that_grows_after_the_take_is_checked_again(void)
{
    const uint64_t grown[] = {LARGE, 5 * 4096 + 1, RBI_SIZE_MASK};
    for (size_t i = 0; i < sizeof grown / sizeof *grown; i++) {
        size_t size = 0;
        ringbuf_message message;
        ringbuf_reservation room;
        ASSERT_OK(ringbuf_reserve(queue, &room, LARGE, 0));
        ASSERT_OK(ringbuf_commit(queue, &room, LARGE, 0));
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
        ASSERT_OK(ringbuf_nack(queue, &message));
        rbi_atomic64 *entry = &queue->arena.entries[message.position & ~RBI_IN_ARENA].size;
        rbi_store_relaxed64(entry, sized(SMALL));
        at(RBI_POINT_run_retaken, entry, sized(grown[i]));
        ringbuf_status status = ringbuf_get(queue, &size, buffer, SMALL, 0);
        ASSERT_STATUS(i == 0 ? RINGBUF_E_SMALL : RINGBUF_E_CORRUPT, status);
        assert_happened();
        assert_untouched_behind(0);
        tearDown();
        setUp();
    }
}

static void test_a_queued_run_s_size_and_record_are_those_that_its_reference_says(void)
{
    for (int which = 0; which < 2; which++) {
        size_t size = 0;
        ringbuf_reservation room;
        ASSERT_OK(ringbuf_reserve(queue, &room, LARGE, 0));
        ASSERT_OK(ringbuf_commit(queue, &room, LARGE, 0));
        struct rbi_run_entry *entry = &queue->arena.entries[room.position & ~RBI_IN_ARENA];
        if (which) at(RBI_POINT_record_owned, &entry->record, 12345);
        else at(RBI_POINT_record_owned, &entry->size, LARGE + 1);
        ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_get(queue, &size, buffer, LARGE, 0));
        assert_happened();
        assert_untouched_behind(0);
        tearDown();
        setUp();
    }
}

static void test_a_leased_run_s_size_is_not_read_again_for_the_copy(void)
{
    size_t size = 0;
    ringbuf_reservation room;
    ASSERT_OK(ringbuf_reserve(queue, &room, LARGE, 0));
    ASSERT_OK(ringbuf_commit(queue, &room, LARGE, 0));
    at(RBI_POINT_attempt_counted, &queue->arena.entries[room.position & ~RBI_IN_ARENA].size, sized(HUGE_SIZE));
    ASSERT_OK(ringbuf_get(queue, &size, buffer, LARGE, 0));
    assert_happened();
    TEST_ASSERT_EQUAL_UINT64(LARGE, size);
    assert_untouched_behind(LARGE);
}

static void test_what_a_taken_message_s_words_say_later_leads_no_call_out_of_its_memory(void)
{
    const uint64_t sizes[] = {RBI_SIZE_MASK, HUGE_SIZE, 0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ringbuf_message message;
        ASSERT_OK(ringbuf_put(queue, bytes, SMALL, 0));
        ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
        uint64_t before = rbi_load_relaxed64(&slot_of(&message)->size);
        rbi_store_relaxed64(&slot_of(&message)->size, (before & ~RBI_SIZE_MASK) | sizes[i]);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, buffer, 0, SMALL + 64));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, buffer, UINT64_C(1) << 30, 1));
        assert_untouched_behind(0);
        rbi_store_relaxed64(&slot_of(&message)->size, before);
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
}

static void test_a_run_whose_length_grows_frees_no_blocks_but_its_own(void)
{
    ringbuf_message a, b;
    ringbuf_reservation rooms[2];
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(ringbuf_reserve(queue, &rooms[i], LARGE, 0));
        memset(rooms[i].data, 'a' + i, LARGE);
    }
    int low = rooms[1].position < rooms[0].position; /* the one before the other */
    ASSERT_OK(ringbuf_commit(queue, &rooms[low], LARGE, 0));
    ASSERT_OK(ringbuf_commit(queue, &rooms[!low], LARGE, 0));
    ASSERT_OK(ringbuf_take(queue, &a, NULL, 0, 0));
    ASSERT_OK(ringbuf_take(queue, &b, NULL, 0, 0));
    rbi_atomic64 *of_a = &queue->arena.table[a.position & ~RBI_IN_ARENA];
    rbi_store_relaxed64(of_a, rbi_load_relaxed64(of_a) + (UINT64_C(5) << 16));
    ringbuf_ack(queue, &a);
    TEST_ASSERT_EQUAL_UINT8(low ? 'a' : 'b', *(const uint8_t *)b.data);
    ASSERT_OK(ringbuf_copy(queue, &b, buffer, 0, LARGE));
    ASSERT_OK(ringbuf_ack(queue, &b));
}

static void test_a_number_of_participants_beyond_all_is_not_believed(void)
{
    ringbuf_stats stats;
    ringbuf_peer peers[2];
    size_t count;
    uint64_t recovered;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.max_participants = 2;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ringbuf *few;
    ASSERT_OK(ringbuf_create(&few, "few", &options));
    rbi_store_relaxed32(&few->header->participants_high, UINT32_MAX);
    memset(few->registry.entries[0].label, 'x', RBI_LABEL_BYTES); /* without an end */
    ASSERT_OK(ringbuf_get_stats(few, &stats));
    ASSERT_OK(ringbuf_recover(few, &recovered));
    ASSERT_OK(ringbuf_get_peers(few, &count, peers, 2));
    TEST_ASSERT_EQUAL_UINT64(1, count);
    TEST_ASSERT_EQUAL_UINT64(RBI_LABEL_BYTES - 1, strlen(peers[0].label));
    ringbuf_free(few);
}

static void test_the_stamp_is_read_once(void)
{
    struct rbi_stamp *stamp = &queue->header->stamp;
    ringbuf_info before, after;
    ASSERT_OK(ringbuf_get_info(queue, &before));
    memset((uint8_t *)stamp + 16, 0xff, sizeof *stamp - 16);
    ASSERT_OK(ringbuf_get_info(queue, &after));
    TEST_ASSERT_EQUAL_MEMORY(&before, &after, sizeof before);
    TEST_ASSERT_EQUAL_STRING("hostile", ringbuf_name(queue));
    size_t size;
    ASSERT_OK(ringbuf_put(queue, bytes, SMALL, 0));
    ASSERT_OK(ringbuf_get(queue, &size, buffer, SMALL, 0));
}

static void test_more_reserved_cells_than_there_are_are_not_believed(void)
{
    size_t size;
    rbi_store_total64(&queue->header->lanes[0].reserved_cells, UINT64_MAX);
    ringbuf_status status = ringbuf_put(queue, bytes, SMALL, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, status);
    status = ringbuf_get(queue, &size, buffer, SMALL, 0);
    TEST_ASSERT_TRUE(status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_CORRUPT);
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_returned_record_s_size_that_grows_after_the_take_is_not_believed);
    RUN_TEST(test_a_returned_record_that_becomes_a_reference_after_the_take_is_not_believed);
    RUN_TEST(test_a_ready_record_s_size_is_read_once);
    RUN_TEST(test_a_returned_run_s_size_that_grows_after_the_take_is_checked_again);
    RUN_TEST(test_a_queued_run_s_size_and_record_are_those_that_its_reference_says);
    RUN_TEST(test_a_leased_run_s_size_is_not_read_again_for_the_copy);
    RUN_TEST(test_what_a_taken_message_s_words_say_later_leads_no_call_out_of_its_memory);
    RUN_TEST(test_a_run_whose_length_grows_frees_no_blocks_but_its_own);
    RUN_TEST(test_a_number_of_participants_beyond_all_is_not_believed);
    RUN_TEST(test_the_stamp_is_read_once);
    RUN_TEST(test_more_reserved_cells_than_there_are_are_not_believed);
    return leave_suite_directory(UNITY_END());
}
