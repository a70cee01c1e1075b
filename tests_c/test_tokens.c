/* test_tokens.c — a token ends what it stands for, once, and nothing else: every call that takes one, with every kind of bad token.
 *
 * In each case the queue has one message that is taken (in the ring, in the arena, or leased), one that is kept and one
 * reservation, and a pin.  After the call with the bad token all four are as they were. */
#include "support.h"

#include "calls.h"

enum { SMALL = 20, LARGE = 20000, RESERVED = 5000, PLACES = 3 };

static ringbuf *queue, *other;
static ringbuf_message live, kept;
static ringbuf_reservation reserved;
static uint8_t bytes[LARGE], seen[LARGE];

static void fill(uint8_t with, size_t size) { memset(bytes, with, size); }

static bool is_full_of(const void *data, uint8_t with, size_t size)
{
    const uint8_t *at = data;
    for (size_t i = 0; i < size; i++)
        if (at[i] != with) return false;
    return true;
}

static void put(uint8_t with, size_t size)
{
    fill(with, size);
    ASSERT_OK(ringbuf_put(queue, bytes, size, 0));
}

/** Take the next message in one of the places: in the ring, in the arena, moved there. */
static ringbuf_message take_in(int place)
{
    ringbuf_message message;
    memset(&message, 0x5a, sizeof message);
    if (place == 2) ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, 0));
    else ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT32(place != 0, message.in_arena);
    return message;
}

static size_t size_in(int place) { return place == 1 ? LARGE : SMALL; }

void setUp(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 65536;
    options.arena_bytes = 1 << 20;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&queue, "tokens", &options));
    ASSERT_OK(ringbuf_open(&other, "tokens", NULL));
    put('k', LARGE);
    kept = take_in(1);
    ASSERT_OK(ringbuf_keep(queue, &kept));
    ASSERT_OK(ringbuf_reserve(queue, &reserved, RESERVED, 0));
    memset(reserved.data, 'r', RESERVED);
    ASSERT_OK(ringbuf_pin(queue));
}

void tearDown(void)
{
    ringbuf_free(queue);
    ringbuf_free(other);
    queue = other = NULL;
    assert_nothing_is_left();
}

static void assert_untouched(int place, const char *what)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(queue, &stats));
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(1, stats.held, what);
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(1, stats.reserved, what);
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(place != 0, stats.leased, what);
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, stats.items, what);
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(3, rbi_load_total32(&queue->pins) / RBI_PIN, what);
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(0, rbi_load_total32(&other->pins) / RBI_PIN, what);
    ASSERT_OK(ringbuf_copy(queue, &live, seen, 0, live.size));
    TEST_ASSERT_TRUE_MESSAGE(is_full_of(seen, 'm', live.size), what);
    TEST_ASSERT_TRUE_MESSAGE(is_full_of(kept.data, 'k', LARGE), what);
    TEST_ASSERT_TRUE_MESSAGE(is_full_of(reserved.data, 'r', RESERVED), what);
}

/** End everything, each once; what is kept, reserved and pinned after close. */
static void end_all(void)
{
    ASSERT_OK(ringbuf_ack(queue, &live));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &live));
    ringbuf_close(queue);
    TEST_ASSERT_TRUE(is_full_of(kept.data, 'k', LARGE));
    ASSERT_OK(ringbuf_unpin(queue));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unpin(queue));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unpin(queue));
    TEST_ASSERT_TRUE(is_full_of(reserved.data, 'r', RESERVED));
    ASSERT_OK(ringbuf_abort(queue, &reserved));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_abort(queue, &reserved));
    TEST_ASSERT_TRUE(is_full_of(kept.data, 'k', LARGE));
    ASSERT_OK(ringbuf_release(queue, &kept));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(queue, &kept));
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(other, &stats));
    TEST_ASSERT_EQUAL_UINT64(0, stats.held + stats.reserved + stats.leased + stats.arena_used_bytes);
}

/* ---- the calls ---- */

static ringbuf_status call_copy(ringbuf *rb, const ringbuf_message *message) { return ringbuf_copy(rb, message, seen, 0, 1); }
static ringbuf_status call_ack_all(ringbuf *rb, const ringbuf_message *message) { return ringbuf_ack_all(rb, message, 1); }
static ringbuf_status call_return_all(ringbuf *rb, const ringbuf_message *message) { return ringbuf_return_all(rb, message, 1); }

static ringbuf_reservation as_reservation(const ringbuf_message *message)
{
    return (ringbuf_reservation){.data = bytes, .size = SMALL, .position = message->position, .ticket = message->ticket, .generation = message->generation};
}

static ringbuf_status call_commit(ringbuf *rb, const ringbuf_message *message)
{
    ringbuf_reservation reservation = as_reservation(message);
    return ringbuf_commit(rb, &reservation, SMALL, 0);
}

static ringbuf_status call_abort(ringbuf *rb, const ringbuf_message *message)
{
    ringbuf_reservation reservation = as_reservation(message);
    return ringbuf_abort(rb, &reservation);
}

static const struct call {
    const char *name;
    ringbuf_status (*call)(ringbuf *rb, const ringbuf_message *message);
} calls[] = {
    {"copy", call_copy}, {"ack", ringbuf_ack}, {"nack", ringbuf_nack}, {"keep", ringbuf_keep}, {"ack_all", call_ack_all},
    {"return_all", call_return_all}, {"release", ringbuf_release}, {"commit", call_commit}, {"abort", call_abort},
};
enum { CALLS = sizeof calls / sizeof *calls, RELEASE = 6, COMMIT = 7, ABORT = 8 };

/** No call but those named may know this token; through the other handle none may. */
static void assert_refused(const char *kind, const ringbuf_message *bad, int place, bool is_live, bool is_kept, bool is_reserved)
{
    char what[128];
    for (int i = 0; i < CALLS; i++) {
        snprintf(what, sizeof what, "%s of %s, place %d", calls[i].name, kind, place);
        bool knows = i == RELEASE ? is_kept : i == COMMIT || i == ABORT ? is_reserved : is_live;
        if (!knows) TEST_ASSERT_EQUAL_INT_MESSAGE(RINGBUF_E_INVALID, calls[i].call(queue, bad), what);
        TEST_ASSERT_EQUAL_INT_MESSAGE(RINGBUF_E_INVALID, calls[i].call(other, bad), what);
        assert_untouched(place, what);
    }
}

static void take_live(int place)
{
    put('m', size_in(place));
    live = take_in(place);
}

static void test_garbage_ends_nothing(void)
{
    for (int place = 0; place < PLACES; place++) {
        take_live(place);
        ringbuf_message bad;
        for (int byte = 0; byte < 256; byte += 51) {
            memset(&bad, byte, sizeof bad);
            assert_refused("garbage", &bad, place, false, false, false);
        }
        const uint64_t positions[] = {0, 1, UINT64_MAX, UINT64_C(1) << 63, live.position ^ 1, live.position ^ UINT64_C(1) << 63, kept.position};
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
            bad = live;
            bad.position = positions[i];
            assert_refused("another position", &bad, place, false, false, false);
        }
        ASSERT_OK(ringbuf_ack(queue, &live));
    }
    take_live(0);
    end_all();
}

static void test_a_token_with_another_number_anywhere_ends_nothing(void)
{
    for (int place = 0; place < PLACES; place++) {
        take_live(place);
        for (int field = 0; field < 4; field++) {
            const ringbuf_message *const good[] = {&live, &kept};
            for (int which = 0; which < 2; which++) {
                ringbuf_message bad = *good[which];
                if (field == 0) bad.turn ^= 1;
                if (field == 1) bad.ticket ^= 1;
                if (field == 2) bad.generation += 1;
                if (field == 3) bad.attempts += 1;
                if (field == 1 && which == 0 && place == 0) continue; /* what lies in the ring has no ticket */
                if (field == 3 && which == 1) continue;               /* what is kept is known by the others */
                assert_refused("another number", &bad, place, false, false, false);
            }
        }
        ringbuf_message bad = {.position = reserved.position, .ticket = reserved.ticket ^ 1, .generation = reserved.generation};
        assert_refused("another ticket", &bad, place, false, false, false);
        ASSERT_OK(ringbuf_ack(queue, &live));
    }
    take_live(0);
    end_all();
}

static void test_what_is_taken_kept_or_reserved_is_not_ended_as_another_of_these(void)
{
    for (int place = 0; place < PLACES; place++) {
        take_live(place);
        assert_refused("what is taken", &live, place, true, false, false);
        assert_refused("what is kept", &kept, place, false, true, false);
        ringbuf_message as_message = {.position = reserved.position, .ticket = reserved.ticket, .generation = reserved.generation, .attempts = 1};
        assert_refused("a reservation", &as_message, place, false, false, true);
        ASSERT_OK(ringbuf_ack(queue, &live));
    }
    take_live(0);
    end_all();
}

static void test_a_token_of_an_earlier_taking_of_the_same_message_ends_nothing(void)
{
    for (int place = 0; place < PLACES; place++) {
        for (int how = 0; how < 2; how++) {
            take_live(place);
            ringbuf_message first = live;
            for (int again = 0; again < 5; again++) {
                ringbuf_message stale = live;
                if (how == 0) ASSERT_OK(ringbuf_return_all(queue, &live, 1));
                else ASSERT_OK(ringbuf_nack(queue, &live));
                live = take_in(place);
                TEST_ASSERT_EQUAL_UINT32(how ? first.attempts + (uint32_t)again + 1 : first.attempts, live.attempts);
                assert_refused(how ? "what was nacked" : "what was returned", &stale, place, false, false, false);
                assert_refused("the first taking", &first, place, false, false, false);
            }
            ASSERT_OK(ringbuf_ack(queue, &live));
        }
    }
    take_live(0);
    end_all();
}

static void test_no_two_of_a_thousand_takings_have_the_same_token(void)
{
    for (int place = 0; place < PLACES; place++) {
        take_live(place);
        ringbuf_message first = live;
        for (int again = 0; again < 1000; again++) {
            ASSERT_OK(ringbuf_return_all(queue, &live, 1));
            live = take_in(place);
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &first, seen, 0, 1));
        }
        TEST_ASSERT_EQUAL_UINT32(1, live.attempts);
        ASSERT_OK(ringbuf_ack(queue, &live));
    }
    take_live(0);
    end_all();
}

static void test_what_has_ended_is_not_ended_again(void)
{
    for (int place = 0; place < PLACES; place++) {
        put('x', size_in(place));
        ringbuf_message acked = take_in(place);
        ASSERT_OK(ringbuf_ack(queue, &acked));
        ringbuf_reservation room;
        ASSERT_OK(ringbuf_reserve(queue, &room, LARGE, 0));
        ASSERT_OK(ringbuf_abort(queue, &room));
        ringbuf_message aborted = {.position = room.position, .ticket = room.ticket, .generation = room.generation};
        ASSERT_OK(ringbuf_reserve(queue, &room, LARGE, 0));
        ASSERT_OK(ringbuf_commit(queue, &room, LARGE, 0));
        ringbuf_message committed = {.position = room.position, .ticket = room.ticket, .generation = room.generation};
        ringbuf_message released = take_in(1);
        ASSERT_OK(ringbuf_keep(queue, &released));
        ASSERT_OK(ringbuf_release(queue, &released));
        take_live(place); /* perhaps in the same place as one of them */
        assert_refused("what was acknowledged", &acked, place, false, false, false);
        assert_refused("what was aborted", &aborted, place, false, false, false);
        assert_refused("what was committed", &committed, place, false, false, false);
        assert_refused("what was released", &released, place, false, false, false);
        ASSERT_OK(ringbuf_ack(queue, &live));
    }
    take_live(0);
    end_all();
}

static void test_a_token_of_a_handle_that_was_freed_ends_nothing_of_one_with_its_number(void)
{
    for (int place = 0; place < PLACES; place++) {
        ringbuf *before;
        ASSERT_OK(ringbuf_open(&before, "tokens", NULL));
        uint32_t number = before->registry.self;
        put('m', size_in(place));
        ringbuf_message old;
        ASSERT_OK(place == 2 ? ringbuf_lease(before, &old, NULL, 0, 0) : ringbuf_take(before, &old, NULL, 0, 0));
        ringbuf_free(before);
        ringbuf *after;
        ASSERT_OK(ringbuf_open(&after, "tokens", NULL));
        TEST_ASSERT_EQUAL_UINT32(number, after->registry.self);
        ringbuf_message now;
        ASSERT_OK(place == 2 ? ringbuf_lease(after, &now, NULL, 0, 0) : ringbuf_take(after, &now, NULL, 0, 0));
        now.attempts = old.attempts;
        now.turn = old.turn;
        for (int i = 0; i < CALLS; i++) TEST_ASSERT_EQUAL_INT_MESSAGE(RINGBUF_E_INVALID, calls[i].call(after, &old), calls[i].name);
        ringbuf_free(after);
        size_t size;
        ASSERT_OK(ringbuf_get(queue, &size, bytes, sizeof bytes, 0));
    }
    take_live(0);
    end_all();
}

/* ---- processes ---- */

struct family {
    ringbuf_message childs_taken, childs_kept;
    stage taken, may_end;
};
static struct family *family;

/** A forked child: what it inherits, it may end once, and that changes nothing for others. */
static int be_an_heir(void *context)
{
    (void)context;
    for (int i = 0; i < CALLS; i++)
        if (i < RELEASE && calls[i].call(queue, &live) != RINGBUF_E_INVALID) return 1;
    if (rbi_load_total32(&queue->pins) / RBI_PIN != 3) return 2;
    if (ringbuf_commit(queue, &reserved, 1, 0) != RINGBUF_E_INVALID) return 3;
    ringbuf_close(queue);
    if (!is_full_of(kept.data, 'k', LARGE)) return 4;
    if (ringbuf_release(queue, &kept) != RINGBUF_OK || ringbuf_release(queue, &kept) != RINGBUF_E_INVALID) return 5;
    if (ringbuf_abort(queue, &reserved) != RINGBUF_OK || ringbuf_abort(queue, &reserved) != RINGBUF_E_INVALID) return 6;
    if (!queue->base || ringbuf_unpin(queue) != RINGBUF_OK || ringbuf_unpin(queue) != RINGBUF_E_INVALID) return 7;
    return queue->base ? 8 : 0; /* unmapped with the last */
}

static void test_a_forked_child_ends_what_it_inherits_once_and_nothing_of_its_parent(void)
{
    take_live(0);
    TEST_ASSERT_EQUAL_INT(0, run_child(be_an_heir, NULL));
    assert_untouched(0, "after a child");
    end_all();
}

static int be_a_stranger(void *context)
{
    (void)context;
    ringbuf_message kept_here;
    if (ringbuf_take(queue, &family->childs_kept, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(queue, &family->childs_kept) != RINGBUF_OK) return 1;
    kept_here = family->childs_kept;
    if (ringbuf_take(queue, &family->childs_taken, NULL, 0, 0) != RINGBUF_OK) return 2;
    atomic_store(&family->taken, 1);
    wait_for_stage(&family->may_end, 1);
    return ringbuf_ack(queue, &family->childs_taken) || ringbuf_release(queue, &kept_here) ? 3 : 0;
}

static void test_a_token_of_another_process_ends_nothing(void)
{
    family = share_memory(sizeof *family);
    take_live(0);
    put('c', LARGE);
    put('d', SMALL);
    pid_t child = start_child(be_a_stranger, NULL);
    wait_for_stage(&family->taken, 1);
    const ringbuf_message *const bad[] = {&family->childs_taken, &family->childs_kept};
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < CALLS; i++) {
            TEST_ASSERT_EQUAL_INT_MESSAGE(RINGBUF_E_INVALID, calls[i].call(queue, bad[which]), calls[i].name);
            TEST_ASSERT_EQUAL_UINT32(3, rbi_load_total32(&queue->pins) / RBI_PIN);
        }
    atomic_store(&family->may_end, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    assert_untouched(0, "after a stranger");
    end_all();
}

/* ---- many ---- */

static void test_hundreds_of_kept_messages_are_each_released_once_in_any_order(void)
{
    enum { MANY = 200 };
    static ringbuf_message messages[MANY];
    take_live(0);
    for (uint32_t i = 0; i < MANY; i++) {
        put((uint8_t)i, SMALL);
        messages[i] = take_in(2);
        ASSERT_OK(ringbuf_keep(queue, &messages[i]));
    }
    for (uint32_t k = 0; k < MANY; k++) {
        ringbuf_message *message = &messages[k * 77 % MANY];
        TEST_ASSERT_TRUE(is_full_of(message->data, (uint8_t)(k * 77 % MANY), SMALL));
        ASSERT_OK(ringbuf_release(queue, message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(queue, message));
    }
    assert_untouched(0, "after many");
    end_all();
}

static void test_what_was_written_over_is_over_all_the_same(void)
{
    take_live(0);
    rbi_store_total64(&queue->arena.table[kept.position & ~RBI_IN_ARENA], 0);
    rbi_store_total64(&queue->arena.table[reserved.position & ~RBI_IN_ARENA], 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_release(queue, &kept));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_abort(queue, &reserved));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(queue, &kept));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_abort(queue, &reserved));
    TEST_ASSERT_EQUAL_UINT32(1, rbi_load_total32(&queue->pins) / RBI_PIN);
    ASSERT_OK(ringbuf_unpin(queue));
    ASSERT_OK(ringbuf_ack(queue, &live));
}

static void test_a_message_struct_may_hold_anything_before_it_is_taken_into(void)
{
    put('m', SMALL);
    put('m', SMALL);
    ringbuf_message messages[2];
    memset(messages, 0x5a, sizeof messages);
    size_t count;
    ASSERT_OK(ringbuf_take_many(queue, messages, &count, 2, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    TEST_ASSERT_EQUAL_UINT32(0, messages[0].copied);
    ASSERT_OK(ringbuf_ack_all(queue, messages, count));
    put('m', SMALL);
    memset(messages, 0x5a, sizeof messages);
    ASSERT_OK(ringbuf_take(queue, messages, seen, sizeof seen, 0));
    TEST_ASSERT_EQUAL_UINT32(1, messages->copied);
    TEST_ASSERT_EQUAL_PTR(seen, messages->data);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take(queue, messages + 1, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_lease(queue, messages + 1, NULL, 1, 0));
    ASSERT_OK(ringbuf_ack(queue, messages));
    take_live(0);
    end_all();
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_garbage_ends_nothing);
    RUN_TEST(test_a_token_with_another_number_anywhere_ends_nothing);
    RUN_TEST(test_what_is_taken_kept_or_reserved_is_not_ended_as_another_of_these);
    RUN_TEST(test_a_token_of_an_earlier_taking_of_the_same_message_ends_nothing);
    RUN_TEST(test_no_two_of_a_thousand_takings_have_the_same_token);
    RUN_TEST(test_what_has_ended_is_not_ended_again);
    RUN_TEST(test_a_token_of_a_handle_that_was_freed_ends_nothing_of_one_with_its_number);
    RUN_TEST(test_a_forked_child_ends_what_it_inherits_once_and_nothing_of_its_parent);
    RUN_TEST(test_a_token_of_another_process_ends_nothing);
    RUN_TEST(test_hundreds_of_kept_messages_are_each_released_once_in_any_order);
    RUN_TEST(test_what_was_written_over_is_over_all_the_same);
    RUN_TEST(test_a_message_struct_may_hold_anything_before_it_is_taken_into);
    return leave_suite_directory(UNITY_END());
}
