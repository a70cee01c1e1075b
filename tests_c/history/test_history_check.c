/* test_history_check.c — the checker of histories: by hand, against a search through all orders, and that it rejects what was
 * falsified.
 *
 *   test_history_check [HISTORIES [SEED]]      default: 100000 random histories of each family */
#include "history.h"
#include "support.h"

static uint64_t histories = SANITIZED ? 10000 : 100000, seed;
static struct history_verdict verdict;

#define CHECK(expected, ...)                                                                                                     \
    do {                                                                                                                         \
        struct history_op ops[] = {__VA_ARGS__};                                                                                 \
        expect(expected, ops, sizeof ops / sizeof *ops, __LINE__);                                                               \
    } while (0)

static void expect(enum history_fault expected, struct history_op *ops, size_t count, int line)
{
    struct history history = {.ops = ops, .count = count, .hands_known = true};
    history_check(&history, &verdict);
    UNITY_TEST_ASSERT_EQUAL_STRING(history_fault_name(expected), history_fault_name(verdict.fault), line, verdict.text);
}

static void expect_at_the_end(enum history_fault expected, struct history_op *ops, size_t count, uint64_t always_fits)
{
    struct history history = {.ops = ops, .count = count, .hands_known = true, .drained = true, .always_fits = always_fits};
    history_check(&history, &verdict);
    TEST_ASSERT_EQUAL_STRING_MESSAGE(history_fault_name(expected), history_fault_name(verdict.fault), verdict.text);
}

/* A call of a worker between two times.  Values are letters. */
#define OP(k, w, b, e, o, n, want, ...)                                                                                          \
    {                                                                                                                            \
        .kind = (k), .worker = (w), .begun_ns = (b), .ended_ns = (e), .outcome = (o), .count = (n), .wanted = (want),            \
        .values = {                                                                                                              \
            __VA_ARGS__                                                                                                          \
        }                                                                                                                        \
    }
#define PUT(w, b, e, v)            OP(HISTORY_PUT, w, b, e, HISTORY_DONE, 1, 1, v)
#define PUT_TWO(w, b, e, v, u)     OP(HISTORY_PUT, w, b, e, HISTORY_DONE, 2, 2, v, u)
#define PUT_PENDING(w, b, v)       OP(HISTORY_PUT, w, b, 0, HISTORY_PENDING, 1, 1, v)
#define PUT_FULL(w, b, e, v)       OP(HISTORY_PUT, w, b, e, HISTORY_NOTHING, 1, 1, v)
#define GET(w, b, e, v)            OP(HISTORY_GET, w, b, e, HISTORY_DONE, 1, 1, v)
#define GET_EMPTY(w, b, e)         OP(HISTORY_GET, w, b, e, HISTORY_NOTHING, 0, 1, 0)
#define GET_PENDING(w, b)          OP(HISTORY_GET, w, b, 0, HISTORY_PENDING, 0, 1, 0)
#define GET_IN_DEAD_HANDS(w, b, v) OP(HISTORY_GET, w, b, 0, HISTORY_PENDING, 1, 1, v)
#define TAKE(w, b, e, v)           OP(HISTORY_TAKE, w, b, e, HISTORY_DONE, 1, 1, v)
#define TAKE_TWO(w, b, e, v, u)    OP(HISTORY_TAKE, w, b, e, HISTORY_DONE, 2, 2, v, u)
#define TAKE_PENDING(w, b)         OP(HISTORY_TAKE, w, b, 0, HISTORY_PENDING, 0, 1, 0)
#define ACK(w, b, e, v)            OP(HISTORY_ACK, w, b, e, HISTORY_DONE, 1, 1, v)
#define ACK_PENDING(w, b, v)       OP(HISTORY_ACK, w, b, 0, HISTORY_PENDING, 1, 1, v)
#define NACK(w, b, e, v)           OP(HISTORY_NACK, w, b, e, HISTORY_DONE, 1, 1, v)
#define DEATH(w, b, e)             OP(HISTORY_DEATH, w, b, e, HISTORY_PENDING, 0, 0, 0)
#define TRIED(w, b, e, v, a)                                                                                                     \
    {                                                                                                                            \
        .kind = HISTORY_TAKE, .worker = (w), .begun_ns = (b), .ended_ns = (e), .outcome = HISTORY_DONE, .count = 1, .wanted = 1, \
        .values = {v}, .attempts = {                                                                                             \
            a                                                                                                                    \
        }                                                                                                                        \
    }

/* ---- by hand ---- */

static void test_one_after_the_other_is_linearizable(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 6, 'a'), GET(2, 7, 8, 'b'), GET_EMPTY(2, 9, 10));
}

static void test_puts_that_overlap_may_come_in_any_order(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 5, 'a'), PUT(2, 2, 6, 'b'), GET(3, 7, 8, 'b'), GET(3, 9, 10, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 5, 'a'), PUT(2, 5, 6, 'b'), GET(3, 7, 8, 'b'), GET(3, 9, 10, 'a'));
}

static void test_gets_that_overlap_may_come_in_any_order(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 9, 'a'), GET(3, 5, 6, 'b'));
}

static void test_a_value_that_nobody_put_is_invented(void)
{
    CHECK(HISTORY_INVENTED, PUT(1, 1, 2, 'a'), GET(2, 3, 4, 'b'));
    CHECK(HISTORY_INVENTED, PUT_FULL(1, 1, 2, 'a'), GET(2, 3, 4, 'a'));
}

static void test_a_value_got_before_its_put_began_is_too_early(void)
{
    CHECK(HISTORY_TOO_EARLY, GET(2, 1, 2, 'a'), PUT(1, 3, 4, 'a'));
    CHECK(HISTORY_LINEARIZABLE, GET(2, 1, 3, 'a'), PUT(1, 3, 4, 'a'));
}

static void test_a_value_got_by_two_is_noticed(void)
{
    CHECK(HISTORY_TWICE, PUT(1, 1, 2, 'a'), GET(2, 3, 4, 'a'), GET(3, 3, 5, 'a'));
    CHECK(HISTORY_TWICE, PUT(1, 1, 2, 'a'), TAKE(2, 3, 4, 'a'), GET(3, 5, 6, 'a'), NACK(2, 7, 8, 'a'));
    CHECK(HISTORY_TWICE, PUT(1, 1, 2, 'a'), TAKE(2, 3, 4, 'a'), ACK(2, 5, 6, 'a'), GET(3, 7, 8, 'a'));
    CHECK(HISTORY_TWICE, PUT(1, 1, 2, 'a'), TAKE(2, 3, 4, 'a'), GET(3, 7, 8, 'a'), DEATH(2, 9, 10));
}

static void test_a_younger_value_got_first_has_overtaken(void)
{
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 6, 'b'), GET(2, 7, 8, 'a'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 6, 'b'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 6, 'a'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), GET_EMPTY(4, 3, 4), PUT(1, 5, 6, 'b'), GET(2, 7, 8, 'b'));
}

static void test_the_values_of_a_batch_come_in_order(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT_TWO(1, 1, 9, 'a', 'b'), GET(2, 2, 3, 'a'), GET(2, 4, 5, 'b'));
    CHECK(HISTORY_OVERTAKEN, PUT_TWO(1, 1, 9, 'a', 'b'), GET(2, 2, 3, 'b'), GET(2, 4, 5, 'a'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE_TWO(2, 5, 6, 'b', 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE_TWO(2, 5, 6, 'a', 'b'));
}

static void test_four_batches_can_go_round_in_a_circle(void)
{
    CHECK(HISTORY_CIRCLE, PUT_TWO(1, 1, 9, 'a', 'b'), PUT_TWO(2, 1, 9, 'c', 'd'), TAKE_TWO(3, 10, 20, 'b', 'c'),
          TAKE_TWO(4, 10, 20, 'd', 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT_TWO(1, 1, 9, 'a', 'b'), PUT_TWO(2, 1, 9, 'c', 'd'), TAKE_TWO(3, 10, 20, 'a', 'c'),
          TAKE_TWO(4, 10, 20, 'b', 'd'));
}

static void test_empty_is_wrong_while_something_is_surely_there(void)
{
    CHECK(HISTORY_NOT_EMPTY, PUT(1, 1, 2, 'a'), GET_EMPTY(2, 3, 4), GET(3, 5, 6, 'a'));
    CHECK(HISTORY_NOT_EMPTY, PUT(1, 1, 2, 'a'), GET_EMPTY(2, 3, 4));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), GET_EMPTY(2, 3, 5), GET(3, 5, 6, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 3, 'a'), GET_EMPTY(2, 3, 4), GET(3, 5, 6, 'a'));
    /* One after the other, never with a gap. */
    CHECK(HISTORY_NOT_EMPTY, PUT(1, 1, 2, 'a'), PUT(1, 3, 5, 'b'), GET_EMPTY(2, 3, 12), GET(3, 6, 10, 'a'), GET(3, 13, 14, 'b'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 7, 'b'), GET_EMPTY(2, 3, 12), GET(3, 6, 10, 'a'),
          GET(3, 13, 14, 'b'));
}

static void test_a_pending_put_may_have_happened_or_not(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT_PENDING(1, 1, 'a'), DEATH(1, 2, 3), GET_EMPTY(2, 4, 5));
    CHECK(HISTORY_LINEARIZABLE, PUT_PENDING(1, 1, 'a'), DEATH(1, 2, 3), GET_EMPTY(2, 4, 5), GET(2, 6, 7, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT_PENDING(1, 1, 'a'), PUT(2, 4, 5, 'b'), GET(2, 6, 7, 'b'), GET(2, 8, 9, 'a'));
    CHECK(HISTORY_TOO_EARLY, GET(2, 1, 2, 'a'), PUT_PENDING(1, 3, 'a'));
}

static void test_what_was_in_dead_hands_is_consumed_or_comes_back(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), GET_IN_DEAD_HANDS(2, 3, 'a'), DEATH(2, 4, 5), GET_EMPTY(1, 6, 7));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), GET_IN_DEAD_HANDS(2, 3, 'a'), DEATH(2, 4, 5), GET(1, 6, 7, 'a'));
    CHECK(HISTORY_TWICE, PUT(1, 1, 2, 'a'), GET_IN_DEAD_HANDS(2, 3, 'a'), GET(1, 4, 5, 'a'), DEATH(2, 6, 7));
}

static void test_a_death_explains_one_late_message_and_no_more(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET_PENDING(2, 5), GET(3, 6, 7, 'b'), DEATH(2, 8, 9),
          GET(3, 10, 11, 'a'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 1, 2, 'b'), PUT(1, 3, 4, 'c'), GET_PENDING(2, 5), GET(3, 6, 7, 'c'),
          DEATH(2, 8, 9), GET(3, 10, 11, 'a'), GET(3, 12, 13, 'b'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(3, 6, 7, 'b'), GET_PENDING(2, 8), DEATH(2, 8, 9),
          GET(3, 10, 11, 'a'));
    CHECK(HISTORY_OVERTAKEN, GET_PENDING(2, 1), DEATH(2, 2, 3), PUT(1, 4, 5, 'a'), PUT(1, 6, 7, 'b'), GET(3, 8, 9, 'b'),
          GET(3, 10, 11, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), TAKE_PENDING(2, 3), GET_EMPTY(3, 4, 5), DEATH(2, 6, 7), GET(3, 8, 9, 'a'));
    CHECK(HISTORY_NOT_EMPTY, PUT(1, 1, 2, 'a'), GET_EMPTY(3, 4, 5), TAKE_PENDING(2, 6), DEATH(2, 6, 7), GET(3, 8, 9, 'a'));
}

static void test_what_was_given_back_comes_before_younger_ones(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE(2, 5, 6, 'a'), GET(3, 7, 8, 'b'), NACK(2, 9, 10, 'a'),
          GET(3, 11, 12, 'a'));
    CHECK(HISTORY_PASSED_OVER, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE(2, 5, 6, 'a'), NACK(2, 7, 8, 'a'), GET(3, 9, 10, 'b'),
          GET(3, 11, 12, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE(2, 5, 6, 'a'), NACK(2, 7, 9, 'a'), GET(3, 9, 10, 'b'),
          GET(3, 11, 12, 'a'));
    CHECK(HISTORY_NOT_EMPTY, PUT(1, 1, 2, 'a'), TAKE(2, 5, 6, 'a'), NACK(2, 7, 8, 'a'), GET_EMPTY(3, 9, 10), GET(3, 11, 12, 'a'));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), TAKE(2, 5, 6, 'a'), GET_EMPTY(3, 7, 8), DEATH(2, 9, 10), GET_EMPTY(3, 11, 12),
          GET(3, 13, 14, 'a'));
    CHECK(HISTORY_OVERTAKEN, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), TAKE(2, 5, 6, 'b'), NACK(2, 7, 8, 'b'), GET(3, 9, 10, 'a'),
          GET(3, 11, 12, 'b'));
}

static void test_of_two_that_were_given_back_the_older_one_comes_first(void)
{
    struct history_op ops[] = {PUT(1, 1, 2, 'a'),  PUT(1, 3, 4, 'b'),   TAKE(2, 5, 6, 'a'),  TAKE(3, 5, 6, 'b'),
                               NACK(3, 7, 8, 'b'), NACK(2, 9, 10, 'a'), GET(4, 11, 12, 'b'), GET(4, 13, 14, 'a')};
    struct history history = {.ops = ops, .count = 8, .hands_known = true};
    TEST_ASSERT_EQUAL_INT_MESSAGE(HISTORY_LINEARIZABLE, history_check(&history, &verdict), verdict.text);
    history.fixed_lanes = true;
    TEST_ASSERT_EQUAL_INT_MESSAGE(HISTORY_OUT_OF_ORDER, history_check(&history, &verdict), verdict.text);
    ops[2].in_arena = 1; /* the older one in the arena, the younger one in the ring */
    TEST_ASSERT_EQUAL_INT_MESSAGE(HISTORY_LINEARIZABLE, history_check(&history, &verdict), verdict.text);
    ops[3].in_arena = 1;
    TEST_ASSERT_EQUAL_INT_MESSAGE(HISTORY_OUT_OF_ORDER, history_check(&history, &verdict), verdict.text);
    ops[5].ended_ns = 11; /* it came back while the other one was taken */
    TEST_ASSERT_EQUAL_INT_MESSAGE(HISTORY_LINEARIZABLE, history_check(&history, &verdict), verdict.text);
}

static void test_an_attempt_that_nobody_made_or_that_was_not_counted_is_noticed(void)
{
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), TRIED(2, 3, 4, 'a', 1), NACK(2, 5, 6, 'a'), TRIED(2, 7, 8, 'a', 2),
          ACK(2, 9, 10, 'a'));
    CHECK(HISTORY_MISCOUNTED, PUT(1, 1, 2, 'a'), TRIED(2, 3, 4, 'a', 1), NACK(2, 5, 6, 'a'), TRIED(2, 7, 8, 'a', 1),
          ACK(2, 9, 10, 'a'));
    CHECK(HISTORY_MISCOUNTED, PUT(1, 1, 2, 'a'), TRIED(2, 3, 4, 'a', 2));
    CHECK(HISTORY_LINEARIZABLE, PUT(1, 1, 2, 'a'), GET_PENDING(3, 2), DEATH(3, 3, 4), TRIED(2, 5, 6, 'a', 2));
    CHECK(HISTORY_MISCOUNTED, PUT(1, 1, 2, 'a'), GET_PENDING(3, 2), DEATH(3, 3, 4), TRIED(2, 5, 6, 'a', 3));
}

static void test_at_the_end_each_value_whose_put_returned_has_been_consumed(void)
{
    struct history_op lost[] = {PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), GET(2, 5, 6, 'a')};
    struct history_op held[] = {PUT(1, 1, 2, 'a'), TAKE(2, 5, 6, 'a'), DEATH(2, 7, 8)};
    struct history_op ended[] = {PUT(1, 1, 2, 'a'), PUT_PENDING(3, 1, 'b'), TAKE(2, 5, 6, 'a'), ACK_PENDING(2, 7, 'a'),
                                 DEATH(2, 8, 9)};
    expect_at_the_end(HISTORY_LOST, lost, 3, 0);
    expect_at_the_end(HISTORY_LOST, held, 3, 0);
    expect_at_the_end(HISTORY_LINEARIZABLE, ended, 5, 0);
}

static void test_full_is_wrong_where_more_always_fits(void)
{
    struct history_op full[] = {PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'b'), PUT_FULL(1, 5, 6, 'c'), GET(2, 7, 8, 'a'),
                                GET(2, 9, 10, 'b')};
    expect_at_the_end(HISTORY_NOT_FULL, full, 5, 3);
    expect_at_the_end(HISTORY_LINEARIZABLE, full, 5, 2);
    /* What was put and got before does not count, and what was put later neither. */
    struct history_op later[] = {PUT(1, 1, 2, 'a'), GET(2, 3, 4, 'a'), PUT_FULL(1, 5, 6, 'c'), PUT(1, 7, 8, 'b'),
                                 GET(2, 9, 10, 'b')};
    expect_at_the_end(HISTORY_NOT_FULL, later, 5, 1);
}

static void test_an_answer_that_is_wrong_by_itself_is_told(void)
{
    CHECK(HISTORY_WRONG_ANSWER, OP(HISTORY_GET, 1, 1, 2, HISTORY_WRONG, 0, 1, 0));
    CHECK(HISTORY_MALFORMED, PUT(1, 2, 1, 'a'));
    CHECK(HISTORY_MALFORMED, PUT(1, 1, 2, 'a'), PUT(1, 3, 4, 'a'));
    CHECK(HISTORY_MALFORMED, PUT(1, 1, 2, 'a'), ACK(1, 3, 4, 'a'));
}

/* ---- against the search ---- */

/** A random history: one of a queue, with times drawn apart, and half of the time with something in it changed. */
struct drawn {
    struct history_op ops[24];
    size_t count;
    uint64_t queue[8], back[8], held[8];
    size_t held_by[8]; /* the op that took it */
    int queued, returned, holding;
    int64_t now, spread;
    uint64_t next_value;
    uint16_t next_worker;
};

static int64_t draw(uint64_t *random, int64_t below) { return (int64_t)random_below(random, (uint64_t)below); }

static struct history_op *begin(struct drawn *drawn, uint64_t *random, enum history_kind kind)
{
    struct history_op *op = &drawn->ops[drawn->count++];
    drawn->now += 10;
    *op = (struct history_op){.kind = (uint8_t)kind, .outcome = HISTORY_DONE, .worker = drawn->next_worker++, .wanted = 1,
                              .begun_ns = drawn->now - draw(random, drawn->spread)};
    return op;
}

static void end(struct drawn *drawn, uint64_t *random, struct history_op *op)
{
    op->ended_ns = drawn->now + draw(random, drawn->spread);
}

static void draw_put(struct drawn *drawn, uint64_t *random)
{
    struct history_op *op = begin(drawn, random, HISTORY_PUT);
    op->count = (uint8_t)(draw(random, 3) ? 1 : 2);
    if (op->count > 8 - drawn->next_value) op->count = 1;
    bool pending = draw(random, 8) == 0, happens = !pending || draw(random, 2);
    for (int i = 0; i < op->count; i++) {
        op->values[i] = drawn->next_value++;
        if (happens) drawn->queue[drawn->queued++] = op->values[i];
        drawn->now += 3;
    }
    end(drawn, random, op);
    if (pending) op->outcome = HISTORY_PENDING;
}

static bool next_value(struct drawn *drawn, uint64_t *random, uint64_t *value)
{
    uint64_t *from = drawn->returned ? drawn->back : drawn->queue;
    int *count = drawn->returned ? &drawn->returned : &drawn->queued, place = 0;
    if (*count == 0) return false;
    if (drawn->returned) place = (int)draw(random, *count);
    *value = from[place];
    memmove(from + place, from + place + 1, (size_t)(--*count - place) * sizeof *from);
    return true;
}

static void draw_take(struct drawn *drawn, uint64_t *random, bool to_hold)
{
    struct history_op *op = begin(drawn, random, to_hold ? HISTORY_TAKE : HISTORY_GET);
    op->wanted = (uint8_t)(to_hold ? 1 + draw(random, 2) : 1);
    while (op->count < op->wanted && next_value(drawn, random, &op->values[op->count])) {
        if (to_hold) {
            drawn->held[drawn->holding] = op->values[op->count];
            drawn->held_by[drawn->holding++] = drawn->count - 1;
        }
        op->count++;
        drawn->now += 3;
    }
    if (op->count == 0) op->outcome = HISTORY_NOTHING;
    end(drawn, random, op);
    if (op->kind == HISTORY_GET && op->count && draw(random, 8) == 0) { /* in dead hands */
        op->outcome = HISTORY_PENDING;
        struct history_op *death = begin(drawn, random, HISTORY_DEATH);
        *death =
            (struct history_op){.kind = HISTORY_DEATH, .worker = op->worker, .begun_ns = drawn->now, .ended_ns = drawn->now + 5};
    }
}

/** One who dies in a get or take; what it had comes back later, or not. */
static void draw_unknown(struct drawn *drawn, uint64_t *random)
{
    struct history_op *op = begin(drawn, random, draw(random, 2) ? HISTORY_TAKE : HISTORY_GET);
    op->outcome = HISTORY_PENDING;
    uint64_t value;
    if (draw(random, 4) && next_value(drawn, random, &value)) drawn->back[drawn->returned++] = value;
    struct history_op *death = begin(drawn, random, HISTORY_DEATH);
    *death =
        (struct history_op){.kind = HISTORY_DEATH, .worker = op->worker, .begun_ns = op->begun_ns + 1, .ended_ns = drawn->now};
}

static void draw_end_of_held(struct drawn *drawn, uint64_t *random)
{
    int place = (int)draw(random, drawn->holding);
    uint64_t value = drawn->held[place];
    struct history_op *take = &drawn->ops[drawn->held_by[place]];
    for (size_t i = 0; i < drawn->count; i++)
        if (drawn->ops[i].kind == HISTORY_DEATH && drawn->ops[i].worker == take->worker) return; /* the dead end nothing */
    int choice = (int)draw(random, 4);
    drawn->held[place] = drawn->held[--drawn->holding];
    drawn->held_by[place] = drawn->held_by[drawn->holding];
    struct history_op *op = begin(drawn, random, choice == 0 ? HISTORY_ACK : choice == 1 ? HISTORY_DEATH : HISTORY_NACK);
    if (take->ended_ns >= drawn->now) take->ended_ns = drawn->now - 1;
    if (op->begun_ns <= take->ended_ns) op->begun_ns = take->ended_ns + 1;
    op->worker = take->worker;
    end(drawn, random, op);
    if (op->kind != HISTORY_DEATH) op->values[op->count++] = value;
    if (op->kind == HISTORY_DEATH) op->outcome = HISTORY_PENDING;
    if (op->kind == HISTORY_ACK) return;
    for (size_t i = 0; op->kind == HISTORY_DEATH && i < drawn->count; i++) /* it ended others before */
        if (drawn->ops[i].worker == op->worker && &drawn->ops[i] != op && drawn->ops[i].ended_ns > op->begun_ns)
            op->begun_ns = drawn->ops[i].ended_ns;
    if (op->ended_ns < op->begun_ns) op->ended_ns = op->begun_ns;
    if (op->kind == HISTORY_NACK || draw(random, 2)) drawn->back[drawn->returned++] = value;
}

static void rename_everywhere(struct drawn *drawn, uint64_t one, uint64_t other)
{
    for (size_t i = 0; i < drawn->count; i++)
        for (int j = 0; drawn->ops[i].kind != HISTORY_PUT && j < drawn->ops[i].count; j++) {
            uint64_t *value = &drawn->ops[i].values[j];
            if (*value == one) *value = other;
            else if (*value == other) *value = one;
        }
}

static void change_something(struct drawn *drawn, uint64_t *random)
{
    struct history_op *op = &drawn->ops[draw(random, (int64_t)drawn->count)];
    int choice = (int)draw(random, 3);
    if (choice == 0) {
        if (drawn->next_value)
            rename_everywhere(drawn, random_below(random, drawn->next_value), random_below(random, drawn->next_value));
        return;
    }
    if (choice == 1 && drawn->count < 20) {
        struct history_op *empty = begin(drawn, random, HISTORY_GET);
        empty->outcome = HISTORY_NOTHING;
        empty->begun_ns = 90 + draw(random, drawn->now - 80);
        empty->ended_ns = empty->begun_ns + draw(random, 20);
        return;
    }
    if (op->kind != HISTORY_PUT && op->kind != HISTORY_GET) return; /* others have times that depend on one another */
    int64_t by = draw(random, 61) - 30, length = draw(random, 30);
    op->begun_ns += by;
    if (op->outcome != HISTORY_PENDING) op->ended_ns = op->begun_ns + length;
}

static void draw_history(struct drawn *drawn, uint64_t *random, bool gives_back)
{
    *drawn = (struct drawn){.now = 100, .spread = 8 + draw(random, 40)};
    int calls = 3 + (int)draw(random, gives_back ? 6 : 8);
    for (int i = 0; i < calls; i++) {
        int choice = (int)draw(random, gives_back ? 12 : 9);
        if (choice >= 9 && choice < 11 && drawn->holding) draw_end_of_held(drawn, random);
        else if (choice == 11) draw_unknown(drawn, random);
        else if (choice < 4 && drawn->next_value < 7) draw_put(drawn, random);
        else draw_take(drawn, random, choice % 2);
    }
    for (int changes = (int)draw(random, 4); changes > 0; changes--) change_something(drawn, random);
}

struct agreement {
    uint64_t both_accept, both_reject, only_search_rejects;
};

static void print_history(const struct history *history)
{
    static const char *const kinds[] = {"?", "put", "get", "take", "ack", "nack", "return", "death"};
    for (size_t i = 0; i < history->count; i++) {
        const struct history_op *op = &history->ops[i];
        printf("  worker %u: %s [%lld, %lld] outcome %d of %d:", op->worker, kinds[op->kind], (long long)op->begun_ns,
               (long long)op->ended_ns, op->outcome, op->wanted);
        for (int j = 0; j < op->count; j++) printf(" %llu", (unsigned long long)op->values[j]);
        printf("\n");
    }
}

static struct agreement compare(bool gives_back)
{
    struct agreement agreement = {0};
    uint64_t random = seed + gives_back;
    for (uint64_t i = 0; i < histories; i++) {
        static struct drawn drawn;
        draw_history(&drawn, &random, gives_back);
        struct history history = {.ops = drawn.ops, .count = drawn.count, .hands_known = true};
        bool found = history_search(&history);
        bool accepted = history_check(&history, &verdict) == HISTORY_LINEARIZABLE;
        agreement.both_accept += found && accepted;
        agreement.both_reject += !found && !accepted;
        agreement.only_search_rejects += !found && accepted;
        if ((found && !accepted) || (!gives_back && found != accepted) || verdict.fault == HISTORY_MALFORMED) {
            printf("history %llu: the search says %s, the checker: %s %s\n", (unsigned long long)i,
                   found ? "linearizable" : "not", history_fault_name(verdict.fault), verdict.text);
            print_history(&history);
            TEST_FAIL_MESSAGE("they do not agree");
        }
    }
    printf("%llu histories: %llu linearizable, %llu not, and %llu not that the checker accepts\n", (unsigned long long)histories,
           (unsigned long long)agreement.both_accept, (unsigned long long)agreement.both_reject,
           (unsigned long long)agreement.only_search_rejects);
    return agreement;
}

static void test_without_anything_given_back_it_agrees_with_a_search_through_all_orders(void)
{
    struct agreement agreement = compare(false);
    TEST_ASSERT_GREATER_THAN_UINT64(histories / 5, agreement.both_accept);
    TEST_ASSERT_GREATER_THAN_UINT64(histories / 5, agreement.both_reject);
}

static void test_with_messages_given_back_it_never_rejects_what_the_search_accepts(void)
{
    struct agreement agreement = compare(true);
    TEST_ASSERT_GREATER_THAN_UINT64(histories / 5, agreement.both_accept);
    TEST_ASSERT_GREATER_THAN_UINT64(histories / 10, agreement.both_reject);
}

void setUp(void) {}
void tearDown(void) {}

int main(int count, char **words)
{
    seed = (uint64_t)time(NULL);
    if (count > 1) histories = strtoull(words[1], NULL, 10);
    if (count > 2) seed = strtoull(words[2], NULL, 10);
    printf("seed %llu\n", (unsigned long long)seed);
    UNITY_BEGIN();
    RUN_TEST(test_one_after_the_other_is_linearizable);
    RUN_TEST(test_puts_that_overlap_may_come_in_any_order);
    RUN_TEST(test_gets_that_overlap_may_come_in_any_order);
    RUN_TEST(test_a_value_that_nobody_put_is_invented);
    RUN_TEST(test_a_value_got_before_its_put_began_is_too_early);
    RUN_TEST(test_a_value_got_by_two_is_noticed);
    RUN_TEST(test_a_younger_value_got_first_has_overtaken);
    RUN_TEST(test_the_values_of_a_batch_come_in_order);
    RUN_TEST(test_four_batches_can_go_round_in_a_circle);
    RUN_TEST(test_empty_is_wrong_while_something_is_surely_there);
    RUN_TEST(test_a_pending_put_may_have_happened_or_not);
    RUN_TEST(test_what_was_in_dead_hands_is_consumed_or_comes_back);
    RUN_TEST(test_a_death_explains_one_late_message_and_no_more);
    RUN_TEST(test_what_was_given_back_comes_before_younger_ones);
    RUN_TEST(test_of_two_that_were_given_back_the_older_one_comes_first);
    RUN_TEST(test_an_attempt_that_nobody_made_or_that_was_not_counted_is_noticed);
    RUN_TEST(test_at_the_end_each_value_whose_put_returned_has_been_consumed);
    RUN_TEST(test_full_is_wrong_where_more_always_fits);
    RUN_TEST(test_an_answer_that_is_wrong_by_itself_is_told);
    RUN_TEST(test_without_anything_given_back_it_agrees_with_a_search_through_all_orders);
    RUN_TEST(test_with_messages_given_back_it_never_rejects_what_the_search_accepts);
    return UNITY_END();
}
