/* check.c — whether a history is linearizable as a FIFO queue, in O(n log n).
 *
 * What is asked.  Is there a moment for each call, between its beginning and its end, so that the calls, done one after the other
 * at these moments, are those of this queue:
 *     a FIFO, and beside it the messages that were given back;
 *     put appends; a batch is so many puts in this order; "full" changes nothing;
 *     take hands out one that was given back, or the oldest of the others, unless one was given back whose put was before its
 *         put; several by one call are taken in this order;
 *     get is take and acknowledge; "empty" says that there was nothing of either kind;
 *     nack, return and the death of the holder give back; acknowledge ends.
 * A call that was never answered, for its process was killed, happens at any time after its beginning or never; what the dead had
 * is given back at any time after its death.  Of those given back the order is open (docs/guarantees.md, "Order"), but for this,
 * as long as the queue does not change lanes: those in the ring come before those in the arena, and each kind in the order of
 * their puts.
 *
 * What it stands on.  Without anything given back, and with calls that are all answered: Henzinger, Sezgin, Vafeiadis,
 * "Aspect-Oriented Linearizability Proofs" (CONCUR 2013): a history of distinct values is linearizable as a queue if and only if
 * none of four patterns is in it:
 *     a value got that was never put, or before its put began;
 *     a value got twice;
 *     put(a) before put(b), but b got before a, or b got and a never;
 *     "empty" answered, and at each moment of that call some value had been put and its get had not begun.
 * ("Before": the one ended before the other began.  Without distinct values the question is NP-complete, already for a register:
 * Gibbons and Korach, "Testing Shared Memories", 1997.)  A pending put whose value was got is one that ends at no time; a pending
 * put whose value was not got can be left out, and so can a pending get from empty hands.  Each pattern is a sweep over sorted
 * times.
 *   Batches are no intervals: the values of one put have an order although their times are the same.  So the third pattern is not
 * asked of pairs only.  Let a -> b if put(a) is before put(b), get(a) before get(b), or both are in one batch, a first.  A total
 * order of the values that agrees with -> gives the order of the puts and of the gets; put and get of the values can be
 * interleaved so that each value is put before it is got unless some get(v) ended before put(w) began with w <= v; and that is
 * excluded by ending each put where its get ends, at the latest.  So a history without "empty" is linearizable if and only if ->
 * has no circle; sort_out() looks for one without writing the edges down.
 *
 * What is complete, and what is not.
 *   Complete, both ways: puts, batches, gets, pending puts, and pending gets whose value is known.  "Empty" by the theorem, if
 * there are no batches; with batches by comparison only: on millions of random histories the verdict was that of a search through
 * all orders (test_history_check.c).
 *   Sound (whatever is refused is wrong), and complete for each call alone: messages that were given back.  Looked for are
 * "empty", or a take of one that had never been given back, while at each moment of that call an older one that had surely been
 * given back waited; and, of two that were given back, the taking of the younger while the older one surely waited during the
 * whole call.  Not looked for are conflicts in which each of these calls has a moment, but the moments do not fit together.  A
 * message that may have been published late, that is after consumers went past it, comes before what was given back in the arena:
 * that pair is not judged if another put was under way at the same time.
 *   Sound, and lenient: a get or take of a killed process that had not yet copied its message.  It is not known what it had
 * taken, so it explains why a message came late, or why the queue seemed empty.  It explains no more messages than it can have
 * taken, by a matching, and only such as were put before the death.  What is explained forbids nothing until it is delivered.
 * Which choice explains all is searched for, and given up after MOST_TRIES: then a linearizable history could be refused.
 *   "Full" is judged by what was surely not in the way: it is wrong if fewer messages than always fit were begun since the oldest
 * that was not surely gone.  After a death with something in hand that was never seen again nothing is judged.
 *
 * Beside linearizability: each value whose put returned is consumed by one call, or may have been by one that was never answered;
 * nothing is delivered while another one has it, or after it was acknowledged; attempts count at least all deliveries that were
 * answered before, and no more than these and what killed processes can have taken. */
#include "history.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NEVER INT64_MAX
enum { NOBODY = -1, TEXT_TIMES = 24 };

enum end { HELD, CONSUMED, PERHAPS_CONSUMED, BACK };

struct delivery {
    uint32_t value; /* index into values */
    uint32_t op;
    uint8_t place;  /* in the op */
    uint8_t end;    /* enum end */
    bool uncounted; /* given back so that the attempt does not count, perhaps */
    bool unsure;    /* the stretch before it was cut by somebody unknown */
    int64_t begun, ended;           /* of the take; of one that was never answered, until its worker was surely dead, */
    int64_t order;                  /* but it is in order at the time when it surely lived: others noticed before we did */
    int64_t back_begun, back_ended; /* of the giving back */
};

struct value {
    uint64_t name;
    uint32_t op;    /* of its put */
    uint8_t place;
    bool returned;  /* the put was answered */
    bool explained; /* somebody unknown had it before its first delivery */
    bool certain;   /* nobody unknown can have had it before its first delivery */
    uint32_t first, deliveries;
    int64_t put_begun, put_ended;   /* ended: also by its first take, at the latest */
    int64_t take_begun, take_ended; /* the first; NEVER */
    int64_t gone;                   /* when it had surely been consumed; NEVER */
};

/** The end of a taken message, as its worker said. */
struct ending {
    uint32_t value, op;
    int64_t begun;
};

/** A call of a dead process that had perhaps taken something nobody knows. */
struct shadow {
    int64_t begun, dead;
    uint8_t room;
    int64_t needs[HISTORY_BATCH]; /* who is explained by it */
};

/** A message that is late, and could have been in the hands of the dead. */
struct need {
    uint32_t value, stretch, nth;
    int64_t lower, upper; /* taken by a call that died after `lower` and began before `upper` */
};

/** Something was surely there, after `begun` and before `ended`. */
struct presence {
    int64_t begun, ended;
    uint32_t value, stretch;
};

struct union_of {
    struct presence *all; /* by begun */
    size_t count;
    int64_t *last_end; /* of those up to here */
    int64_t *merged;   /* pairs */
    size_t pieces;
};

struct checker {
    const struct history *history;
    struct history_verdict *verdict;
    struct value *values;
    size_t value_count;
    struct delivery *deliveries;
    size_t delivery_count;
    struct ending *endings;
    size_t ending_count;
    struct history_op *deaths; /* by worker; kind 0: it lives */
    struct shadow *shadows;
    size_t shadow_count;
    struct need *needs;
    size_t need_count, need_room;
    bool *visited;
    struct union_of there, given_back;
    int64_t start_ns;
};

const char *history_fault_name(enum history_fault fault)
{
    static const char *const names[HISTORY_FAULTS] = {"linearizable", "malformed",   "wrong answer", "invented",  "too early",
                                                      "twice",        "lost",        "overtaken",    "circle",    "not empty",
                                                      "not full",     "passed over", "out of order", "miscounted"};
    return fault < HISTORY_FAULTS ? names[fault] : "?";
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory) {
        perror("history_check");
        abort();
    }
    return memory;
}

/* ---- saying what is wrong ---- */

/** A time for a reader. */
static const char *when(const struct checker *checker, int64_t ns, char text[TEXT_TIMES])
{
    if (ns == NEVER) snprintf(text, TEXT_TIMES, "never");
    else snprintf(text, TEXT_TIMES, "%lld", (long long)(ns - checker->start_ns));
    return text;
}

static void add(struct checker *checker, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct checker *checker, const char *format, ...)
{
    char *text = checker->verdict->text;
    size_t length = strlen(text);
    va_list words;
    va_start(words, format);
    vsnprintf(text + length, sizeof checker->verdict->text - length, format, words);
    va_end(words);
}

static void add_op(struct checker *checker, const struct history_op *op)
{
    static const char *const kinds[] = {"?", "put", "get", "take", "ack", "nack", "return", "death"};
    static const char *const outcomes[] = {"pending", "done", "nothing", "WRONG"};
    char from[TEXT_TIMES], to[TEXT_TIMES];
    add(checker, "; %s by %u [%s, %s] %s", kinds[op->kind <= HISTORY_DEATH ? op->kind : 0], op->worker,
        when(checker, op->begun_ns, from),
        op->outcome == HISTORY_PENDING && op->kind != HISTORY_DEATH ? "never" : when(checker, op->ended_ns, to),
        outcomes[op->outcome & 3]);
    for (int i = 0; i < op->count && i < HISTORY_BATCH; i++) add(checker, " %llx", (unsigned long long)op->values[i]);
}

/** All that is known of a value. */
static void add_value(struct checker *checker, const struct value *value)
{
    add(checker, " | value %llx", (unsigned long long)value->name);
    add_op(checker, &checker->history->ops[value->op]);
    for (uint32_t i = 0; i < value->deliveries; i++) {
        const struct delivery *delivery = &checker->deliveries[value->first + i];
        char from[TEXT_TIMES], to[TEXT_TIMES];
        add_op(checker, &checker->history->ops[delivery->op]);
        if (delivery->end == BACK)
            add(checker, ", back [%s, %s]", when(checker, delivery->back_begun, from), when(checker, delivery->back_ended, to));
    }
}

static bool fail(struct checker *checker, enum history_fault fault)
{
    checker->verdict->fault = fault;
    snprintf(checker->verdict->text, sizeof checker->verdict->text, "%s", history_fault_name(fault));
    return false;
}

static bool fail_with_op(struct checker *checker, enum history_fault fault, const struct history_op *op)
{
    fail(checker, fault);
    add_op(checker, op);
    return false;
}

static bool fail_with_values(struct checker *checker, enum history_fault fault, const struct value *one,
                             const struct value *other)
{
    fail(checker, fault);
    if (one) add_value(checker, one);
    if (other) add_value(checker, other);
    return false;
}

/* ---- sorting and searching ---- */

static int by_time(int64_t one, int64_t other) { return one < other ? -1 : one > other; }

static int by_name(const void *one, const void *other)
{
    uint64_t a = ((const struct value *)one)->name, b = ((const struct value *)other)->name;
    return a < b ? -1 : a > b;
}

static int by_value_and_time(const void *one, const void *other)
{
    const struct delivery *a = one, *b = other;
    if (a->value != b->value) return a->value < b->value ? -1 : 1;
    return by_time(a->order, b->order);
}

static int endings_in_order(const void *one, const void *other)
{
    const struct ending *a = one, *b = other;
    if (a->value != b->value) return a->value < b->value ? -1 : 1;
    return by_time(a->begun, b->begun);
}

static int by_begun(const void *one, const void *other)
{
    return by_time(((const struct presence *)one)->begun, ((const struct presence *)other)->begun);
}

static int shadows_in_order(const void *one, const void *other)
{
    return by_time(((const struct shadow *)one)->begun, ((const struct shadow *)other)->begun);
}

/** A time of a value, to be sorted. */
struct moment {
    int64_t ns;
    uint32_t value;
};

static int moments_in_order(const void *one, const void *other)
{
    return by_time(((const struct moment *)one)->ns, ((const struct moment *)other)->ns);
}

static struct value *find(const struct checker *checker, uint64_t name)
{
    struct value wanted = {.name = name};
    return bsearch(&wanted, checker->values, checker->value_count, sizeof wanted, by_name);
}

/* ---- reading the calls ---- */

static bool is_sane(const struct history_op *op)
{
    if (op->kind < HISTORY_PUT || op->kind > HISTORY_DEATH || op->count > HISTORY_BATCH || op->wanted > HISTORY_BATCH)
        return false;
    return (op->outcome == HISTORY_PENDING && op->kind != HISTORY_DEATH) || op->ended_ns >= op->begun_ns;
}

static int64_t end_of(const struct history_op *op) { return op->outcome == HISTORY_PENDING ? NEVER : op->ended_ns; }

static bool read_calls(struct checker *checker)
{
    struct history_verdict *verdict = checker->verdict;
    const struct history_op *ops = checker->history->ops;
    size_t puts = 0, takes = 0, endings = 0, pending = 0;
    checker->start_ns = checker->history->count ? ops[0].begun_ns : 0;
    for (size_t i = 0; i < checker->history->count; i++) {
        const struct history_op *op = &ops[i];
        if (!is_sane(op)) return fail_with_op(checker, HISTORY_MALFORMED, op);
        if (op->outcome == HISTORY_WRONG) return fail_with_op(checker, HISTORY_WRONG_ANSWER, op);
        if (op->begun_ns < checker->start_ns) checker->start_ns = op->begun_ns;
        verdict->operations += op->kind != HISTORY_DEATH;
        verdict->deaths += op->kind == HISTORY_DEATH;
        if (op->kind == HISTORY_DEATH) checker->deaths[op->worker] = *op;
        else if (op->outcome == HISTORY_PENDING) verdict->pending++, pending++;
        if (op->kind == HISTORY_PUT && op->outcome != HISTORY_NOTHING) puts += op->count;
        else if (op->kind == HISTORY_GET || op->kind == HISTORY_TAKE) takes += op->count;
        else if (op->kind == HISTORY_ACK || op->kind == HISTORY_NACK || op->kind == HISTORY_RETURN) endings += op->count;
    }
    checker->values = allocate(puts, sizeof *checker->values);
    checker->deliveries = allocate(takes, sizeof *checker->deliveries);
    checker->endings = allocate(endings, sizeof *checker->endings);
    checker->shadows = allocate(pending, sizeof *checker->shadows);
    return true;
}

static bool read_puts(struct checker *checker)
{
    for (size_t i = 0; i < checker->history->count; i++) {
        const struct history_op *op = &checker->history->ops[i];
        if (op->kind != HISTORY_PUT || op->outcome == HISTORY_NOTHING) continue;
        for (uint8_t place = 0; place < op->count; place++)
            checker->values[checker->value_count++] = (struct value){
                .name = op->values[place], .op = (uint32_t)i, .place = place, .returned = op->outcome == HISTORY_DONE,
                .put_begun = op->begun_ns, .put_ended = end_of(op), .take_begun = NEVER, .take_ended = NEVER, .gone = NEVER};
    }
    qsort(checker->values, checker->value_count, sizeof *checker->values, by_name);
    for (size_t i = 1; i < checker->value_count; i++)
        if (checker->values[i].name == checker->values[i - 1].name)
            return fail_with_values(checker, HISTORY_MALFORMED, &checker->values[i - 1], &checker->values[i]);
    return true;
}

/** When the worker was surely dead, and surely alive for the last time; NEVER if it lives. */
static int64_t dead_by(const struct checker *checker, const struct history_op *op)
{
    const struct history_op *death = &checker->deaths[op->worker];
    return death->kind ? death->ended_ns : NEVER;
}

static int64_t dead_since(const struct checker *checker, const struct history_op *op)
{
    const struct history_op *death = &checker->deaths[op->worker];
    return death->kind ? death->begun_ns : NEVER;
}

static bool read_takes(struct checker *checker)
{
    for (size_t i = 0; i < checker->history->count; i++) {
        const struct history_op *op = &checker->history->ops[i];
        bool takes = op->kind == HISTORY_GET || op->kind == HISTORY_TAKE;
        bool ends = op->kind == HISTORY_ACK || op->kind == HISTORY_NACK || op->kind == HISTORY_RETURN;
        for (uint8_t place = 0; (takes || ends) && place < op->count; place++) {
            struct value *value = find(checker, op->values[place]);
            if (!value) return fail_with_op(checker, HISTORY_INVENTED, op);
            uint32_t index = (uint32_t)(value - checker->values);
            if (ends)
                checker->endings[checker->ending_count++] =
                    (struct ending){.value = index, .op = (uint32_t)i, .begun = op->begun_ns};
            else
                checker->deliveries[checker->delivery_count++] = (struct delivery){
                    .value = index, .op = (uint32_t)i, .place = place, .begun = op->begun_ns,
                    .ended = op->outcome == HISTORY_PENDING ? dead_by(checker, op) : op->ended_ns,
                    .order = op->outcome == HISTORY_PENDING ? dead_since(checker, op) : op->ended_ns,
                    .back_begun = NEVER, .back_ended = NEVER};
        }
        uint8_t wanted = op->wanted ? op->wanted : 1;
        if (takes && op->outcome == HISTORY_PENDING && op->count < wanted)
            checker->shadows[checker->shadow_count++] = (struct shadow){.begun = op->begun_ns,
                                                                        .dead = dead_by(checker, op),
                                                                        .room = (uint8_t)(wanted - op->count),
                                                                        .needs = {NOBODY, NOBODY, NOBODY, NOBODY}};
    }
    qsort(checker->deliveries, checker->delivery_count, sizeof *checker->deliveries, by_value_and_time);
    qsort(checker->endings, checker->ending_count, sizeof *checker->endings, endings_in_order);
    qsort(checker->shadows, checker->shadow_count, sizeof *checker->shadows, shadows_in_order);
    for (size_t i = checker->delivery_count; i-- > 0;) {
        checker->values[checker->deliveries[i].value].first = (uint32_t)i;
        checker->values[checker->deliveries[i].value].deliveries++;
    }
    return true;
}

/* ---- each value alone ---- */

/** Say of a delivery how its worker ended it. */
static bool end_delivery(struct checker *checker, const struct ending *ending)
{
    const struct history_op *op = &checker->history->ops[ending->op];
    struct value *value = &checker->values[ending->value];
    for (uint32_t i = value->deliveries; i-- > 0;) {
        struct delivery *delivery = &checker->deliveries[value->first + i];
        const struct history_op *take = &checker->history->ops[delivery->op];
        if (take->kind != HISTORY_TAKE || take->worker != op->worker || take->outcome != HISTORY_DONE) continue;
        if (delivery->end != HELD || delivery->ended > op->begun_ns) continue;
        delivery->back_begun = op->begun_ns;
        delivery->back_ended = end_of(op);
        delivery->uncounted = op->kind == HISTORY_RETURN;
        if (op->kind != HISTORY_ACK) delivery->end = BACK;
        else delivery->end = op->outcome == HISTORY_DONE ? CONSUMED : PERHAPS_CONSUMED;
        if (delivery->end == PERHAPS_CONSUMED) delivery->back_begun = dead_since(checker, op);
        return true;
    }
    return fail_with_op(checker, HISTORY_MALFORMED, op);
}

/** The deliveries that nobody ended: gets, and what the dead held. */
static void end_the_rest(struct checker *checker)
{
    for (size_t i = 0; i < checker->delivery_count; i++) {
        struct delivery *delivery = &checker->deliveries[i];
        const struct history_op *op = &checker->history->ops[delivery->op];
        if (delivery->end != HELD) continue;
        if (op->kind == HISTORY_GET) delivery->end = op->outcome == HISTORY_DONE ? CONSUMED : PERHAPS_CONSUMED;
        else if (checker->deaths[op->worker].kind) delivery->end = BACK;
        delivery->back_begun = dead_since(checker, op);
    }
}

/** One that was perhaps consumed by a dead one is the last, if those behind it were given back while that one may have lived. */
static void put_last(struct delivery *deliveries, uint32_t count)
{
    for (uint32_t i = count - 1; count && deliveries[count - 1].end == BACK && i-- > 0;) {
        struct delivery moved = deliveries[i];
        if (moved.end != PERHAPS_CONSUMED || moved.ended < deliveries[count - 1].back_begun) continue;
        memmove(&deliveries[i], &deliveries[i + 1], (count - 1 - i) * sizeof moved);
        deliveries[count - 1] = moved;
    }
}

/** Exactly once: one after the other, and nothing after the one that consumed it. */
static bool follow(struct checker *checker, struct value *value)
{
    struct delivery *deliveries = &checker->deliveries[value->first];
    put_last(deliveries, value->deliveries);
    for (uint32_t i = 0; i < value->deliveries; i++) {
        struct delivery *delivery = &deliveries[i];
        if (delivery->ended < value->put_begun) return fail_with_values(checker, HISTORY_TOO_EARLY, value, NULL);
        if (i + 1 == value->deliveries) break;
        if (delivery->end == CONSUMED || delivery->end == HELD) return fail_with_values(checker, HISTORY_TWICE, value, NULL);
        if (deliveries[i + 1].ended < delivery->back_begun) return fail_with_values(checker, HISTORY_TWICE, value, NULL);
        if (delivery->end == PERHAPS_CONSUMED) { /* so it was not */
            delivery->end = BACK;
            delivery->back_ended = NEVER;
        }
    }
    const struct delivery *last = value->deliveries ? &deliveries[value->deliveries - 1] : NULL;
    bool consumed = last && (last->end == CONSUMED || last->end == PERHAPS_CONSUMED);
    if (last && last->end == CONSUMED)
        value->gone = checker->history->ops[last->op].kind == HISTORY_TAKE ? last->back_ended : last->ended;
    if (checker->history->drained && value->returned && !consumed && (last || checker->history->hands_known))
        return fail_with_values(checker, HISTORY_LOST, value, NULL);
    if (last) {
        value->take_begun = deliveries[0].begun > value->put_begun ? deliveries[0].begun : value->put_begun;
        value->take_ended = deliveries[0].ended;
        if (value->put_ended > value->take_ended) value->put_ended = value->take_ended;
    }
    return true;
}

/** Whether it was put.  One whose put was never answered, and of which nothing was ever seen, nor of those behind it in its
 *  batch, was not: or if it was, that makes no difference. */
static bool has_happened(const struct checker *checker, const struct value *value)
{
    const struct history_op *op = &checker->history->ops[value->op];
    bool seen = value->returned;
    for (uint8_t place = value->place; !seen && place < op->count; place++) {
        const struct value *behind = find(checker, op->values[place]);
        seen = behind && behind->deliveries;
    }
    return seen;
}

static bool follow_each(struct checker *checker)
{
    for (size_t i = 0; i < checker->ending_count; i++)
        if (!end_delivery(checker, &checker->endings[i])) return false;
    end_the_rest(checker);
    bool *happened = allocate(checker->value_count, sizeof *happened);
    bool fine = true;
    for (size_t i = 0; i < checker->value_count && fine; i++) {
        fine = follow(checker, &checker->values[i]);
        happened[i] = fine && has_happened(checker, &checker->values[i]);
    }
    size_t kept = 0;
    for (size_t i = 0; i < checker->value_count && fine; i++) {
        checker->verdict->deliveries += checker->values[i].deliveries;
        if (checker->values[i].deliveries) checker->verdict->redeliveries += checker->values[i].deliveries - 1;
        if (!happened[i]) continue;
        for (uint32_t j = 0; j < checker->values[i].deliveries; j++)
            checker->deliveries[checker->values[i].first + j].value = (uint32_t)kept;
        checker->values[kept++] = checker->values[i];
    }
    free(happened);
    if (fine) checker->value_count = kept;
    checker->verdict->values = kept;
    return fine;
}

/* ---- what the dead may have had ---- */

static int64_t back_before(const struct checker *checker, const struct value *value, uint32_t stretch)
{
    return stretch ? checker->deliveries[value->first + stretch - 1].back_begun : value->put_begun;
}

static bool can_explain(const struct shadow *shadow, const struct need *need)
{
    return shadow->begun <= need->upper && shadow->dead >= need->lower;
}

/** Kuhn's algorithm: find room for the need, moving others. */
static bool match(struct checker *checker, size_t index)
{
    const struct need *need = &checker->needs[index];
    for (size_t i = checker->shadow_count; i-- > 0;) {
        struct shadow *shadow = &checker->shadows[i];
        if (checker->visited[i] || !can_explain(shadow, need)) continue;
        checker->visited[i] = true;
        for (uint8_t place = 0; place < shadow->room; place++) {
            if (shadow->needs[place] != NOBODY && !match(checker, (size_t)shadow->needs[place])) continue;
            shadow->needs[place] = (int64_t)index;
            return true;
        }
    }
    return false;
}

static void forget(struct checker *checker, size_t index)
{
    for (size_t i = 0; i < checker->shadow_count; i++)
        for (uint8_t place = 0; place < checker->shadows[i].room; place++)
            if (checker->shadows[i].needs[place] == (int64_t)index) checker->shadows[i].needs[place] = NOBODY;
}

/** Whether the message's being away in this stretch (the one before its delivery `stretch`) by `upper` at the latest can be
 *  explained. */
static bool explain_nth(struct checker *checker, uint32_t index, uint32_t stretch, uint32_t nth, int64_t upper)
{
    struct value *value = &checker->values[index];
    size_t found = 0;
    for (; found < checker->need_count; found++) {
        const struct need *need = &checker->needs[found];
        if (need->value == index && need->stretch == stretch && need->nth == nth) break;
    }
    struct need before = {
        .value = index, .stretch = stretch, .nth = nth, .lower = back_before(checker, value, stretch), .upper = NEVER};
    bool is_new = found == checker->need_count;
    if (!is_new) {
        before = checker->needs[found];
        if (before.upper <= upper) return true;
    } else if (checker->need_count == checker->need_room) {
        checker->need_room = checker->need_room * 2 + 16;
        checker->needs = realloc(checker->needs, checker->need_room * sizeof *checker->needs);
        if (!checker->needs) abort();
    }
    checker->needs[found] = before;
    checker->needs[found].upper = upper;
    struct shadow *shadows = allocate(checker->shadow_count, sizeof *shadows);
    memcpy(shadows, checker->shadows, checker->shadow_count * sizeof *shadows);
    forget(checker, found);
    memset(checker->visited, 0, checker->shadow_count);
    bool matched = match(checker, found);
    if (matched) {
        if (is_new) checker->need_count++, checker->verdict->explained++;
        if (stretch < value->deliveries) checker->deliveries[value->first + stretch].unsure = true;
        if (stretch == 0) value->explained = true;
    } else {
        memcpy(checker->shadows, shadows, checker->shadow_count * sizeof *shadows);
        checker->needs[found] = before;
    }
    free(shadows);
    return matched;
}

static bool explain(struct checker *checker, uint32_t index, uint32_t stretch, int64_t upper)
{
    return explain_nth(checker, index, stretch, 0, upper);
}

/** Note which values nobody unknown can have had. */
static void note_certain(struct checker *checker)
{
    int64_t *last_dead = allocate(checker->shadow_count, sizeof *last_dead); /* of the calls up to here */
    for (size_t i = 0; i < checker->shadow_count; i++) {
        last_dead[i] = checker->shadows[i].dead;
        if (i && last_dead[i - 1] > last_dead[i]) last_dead[i] = last_dead[i - 1];
    }
    for (size_t i = 0; i < checker->value_count; i++) {
        struct value *value = &checker->values[i];
        size_t low = 0, high = checker->shadow_count; /* the first call that began too late */
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (checker->shadows[middle].begun > value->take_ended) high = middle;
            else low = middle + 1;
        }
        value->certain = low == 0 || last_dead[low - 1] < value->put_begun;
    }
    free(last_dead);
}

/* ---- attempts ---- */

static bool count_attempts(struct checker *checker)
{
    for (size_t i = 0; i < checker->value_count; i++) {
        const struct value *value = &checker->values[i];
        uint32_t least = 1, most = 1, last_known = 0;
        uint16_t excess_before = 0;
        for (uint32_t j = 0; j < value->deliveries; j++) {
            struct delivery *delivery = &checker->deliveries[value->first + j];
            const struct history_op *op = &checker->history->ops[delivery->op];
            uint16_t attempts = op->attempts[delivery->place];
            if (op->kind == HISTORY_TAKE && op->outcome == HISTORY_DONE && attempts) {
                if (attempts < least) return fail_with_values(checker, HISTORY_MISCOUNTED, value, NULL);
                uint16_t excess = attempts > most ? (uint16_t)(attempts - most) : 0;
                /* Somebody unknown has had it, since the last time that its attempts were told. */
                for (; excess_before < excess; excess_before++) {
                    uint32_t nth = excess_before;
                    if (!explain_nth(checker, (uint32_t)i, j, nth, delivery->ended) &&
                        !explain_nth(checker, (uint32_t)i, last_known, nth, delivery->ended))
                        return fail_with_values(checker, HISTORY_MISCOUNTED, value, NULL);
                    for (uint32_t k = last_known; k <= j; k++) checker->deliveries[value->first + k].unsure = true;
                    if (last_known == 0) checker->values[i].explained = true;
                }
                last_known = j + 1;
            }
            bool counted = op->outcome == HISTORY_DONE && !delivery->uncounted;
            bool perhaps = !delivery->uncounted || delivery->back_ended == NEVER;
            least += counted;
            most += counted || perhaps;
        }
    }
    return true;
}

/* ---- order ---- */

/** Whether put(one) is before put(other), by time or in their batch. */
static bool put_before(const struct value *one, const struct value *other)
{
    if (one->op == other->op) return one->place < other->place;
    return one->put_ended < other->put_begun;
}

/** Look for one that was overtaken: the earliest end of a get of any that was put after it, against the beginning of its own. */
static bool look_for_overtaken(struct checker *checker)
{
    size_t count = checker->value_count;
    struct moment *puts = allocate(count, sizeof *puts);
    uint32_t *earliest = allocate(count + 1, sizeof *earliest); /* of those from here on, the one taken first */
    bool fine = true;
    for (size_t i = 0; i < count; i++) puts[i] = (struct moment){checker->values[i].put_begun, (uint32_t)i};
    qsort(puts, count, sizeof *puts, moments_in_order);
    for (size_t i = count; i-- > 0;) {
        earliest[i] = puts[i].value;
        if (i + 1 < count && checker->values[earliest[i + 1]].take_ended < checker->values[earliest[i]].take_ended)
            earliest[i] = earliest[i + 1];
    }
    for (size_t i = 0; i < count && fine; i++) {
        const struct value *value = &checker->values[i];
        size_t low = 0, high = count; /* the first put that began after its put had ended */
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (puts[middle].ns > value->put_ended) high = middle;
            else low = middle + 1;
        }
        const struct value *by = low < count ? &checker->values[earliest[low]] : NULL;
        for (uint8_t place = (uint8_t)(value->place + 1); place < checker->history->ops[value->op].count; place++) {
            const struct value *next = find(checker, checker->history->ops[value->op].values[place]);
            if (next && (!by || next->take_ended < by->take_ended)) by = next;
        }
        if (!by || by->take_ended >= value->take_begun) continue;
        if (!explain(checker, (uint32_t)i, 0, by->take_ended)) fine = fail_with_values(checker, HISTORY_OVERTAKEN, value, by);
    }
    free(puts);
    free(earliest);
    return fine;
}

/** In one batch, a younger one before an older one, unless the older one came back just then. */
static bool look_into_batches(struct checker *checker)
{
    for (size_t i = 0; i < checker->value_count; i++) {
        const struct value *value = &checker->values[i];
        if (!value->deliveries || value->explained) continue;
        const struct delivery *delivery = &checker->deliveries[value->first];
        const struct history_op *op = &checker->history->ops[delivery->op];
        for (uint8_t place = 0; place < delivery->place; place++) {
            const struct value *before = find(checker, op->values[place]);
            bool fresh = before && checker->deliveries[before->first].op == delivery->op && !before->explained;
            if (!fresh || !put_before(value, before) || explain(checker, (uint32_t)i, 0, op->ended_ns)) continue;
            return fail_with_values(checker, HISTORY_OVERTAKEN, value, before);
        }
    }
    return true;
}

/** What sort_out() keeps of a value: how many of its conditions are not met yet, and the next one in its batches. */
struct waiting {
    uint8_t conditions;
    bool out;
    int64_t next_put, next_take;
};

/** The next value that must come after this one for being in a batch with it; NOBODY. */
static int64_t next_in_put(const struct checker *checker, const struct value *value)
{
    const struct history_op *op = &checker->history->ops[value->op];
    for (uint8_t place = (uint8_t)(value->place + 1); place < op->count; place++) {
        const struct value *next = find(checker, op->values[place]);
        if (next) return next - checker->values;
    }
    return NOBODY;
}

static int64_t next_in_take(const struct checker *checker, const struct value *value)
{
    if (!value->deliveries || !value->certain) return NOBODY;
    const struct delivery *delivery = &checker->deliveries[value->first];
    const struct history_op *op = &checker->history->ops[delivery->op];
    for (uint8_t place = (uint8_t)(delivery->place + 1); place < op->count; place++) {
        const struct value *next = find(checker, op->values[place]);
        if (next && next->certain && checker->deliveries[next->first].op == delivery->op) return next - checker->values;
    }
    return NOBODY;
}

static void later(int64_t *time, int64_t than) { *time = *time > than ? *time : than; }
static void earlier(int64_t *time, int64_t than) { *time = *time < than ? *time : than; }

/** What a batch says of the times of its values: each is put and got no later than those behind it, and got no earlier than those
 *  before. */
static void bound(struct checker *checker, const struct waiting *waiting, const uint32_t *order, size_t count)
{
    struct value *values = checker->values;
    for (size_t i = 0; i < count; i++) {
        const struct value *value = &values[order[i]];
        int64_t behind[2] = {waiting[order[i]].next_put, waiting[order[i]].next_take};
        for (int j = 0; j < 2 && value->certain; j++)
            if (behind[j] != NOBODY && values[behind[j]].certain) later(&values[behind[j]].take_begun, value->take_begun);
    }
    for (size_t i = count; i-- > 0;) {
        struct value *value = &values[order[i]];
        int64_t behind[2] = {waiting[order[i]].next_put, waiting[order[i]].next_take};
        for (int j = 0; j < 2 && value->certain; j++) {
            if (behind[j] == NOBODY || !values[behind[j]].certain) continue;
            earlier(&value->take_ended, values[behind[j]].take_ended);
            earlier(&value->put_ended, values[behind[j]].put_ended);
        }
        earlier(&value->put_ended, value->take_ended);
    }
}

/** Take the values out in an order that agrees with ->, one after the other; CIRCLE if none is free.  A value is free when no put
 *  of those left ends before its put begins, no get of those left ends before its get begins, and those before it in its batches
 *      are out. */
static bool sort_out(struct checker *checker)
{
    size_t count = checker->value_count, free_count = 0, taken_out = 0;
    struct waiting *waiting = allocate(count, sizeof *waiting);
    uint32_t *queue = allocate(count, sizeof *queue);
    struct moment *begins[2], *ends[2];
    size_t next_begin[2] = {0, 0}, next_end[2] = {0, 0};
    for (int side = 0; side < 2; side++) {
        begins[side] = allocate(count, sizeof **begins);
        ends[side] = allocate(count, sizeof **ends);
    }
    for (size_t i = 0; i < count; i++) {
        const struct value *value = &checker->values[i];
        /* If somebody unknown can have had it first, it can have been taken at any time since it was put. */
        int64_t take_begun = value->certain ? value->take_begun : value->put_begun;
        begins[0][i] = (struct moment){value->put_begun, (uint32_t)i};
        begins[1][i] = (struct moment){take_begun, (uint32_t)i};
        ends[0][i] = (struct moment){value->put_ended, (uint32_t)i};
        ends[1][i] = (struct moment){value->take_ended, (uint32_t)i};
        waiting[i].conditions = (uint8_t)(waiting[i].conditions + 2);
        waiting[i].next_put = next_in_put(checker, value);
        waiting[i].next_take = next_in_take(checker, value);
        if (waiting[i].next_put != NOBODY) waiting[waiting[i].next_put].conditions++;
        if (waiting[i].next_take != NOBODY) waiting[waiting[i].next_take].conditions++;
    }
    for (int side = 0; side < 2; side++) {
        qsort(begins[side], count, sizeof **begins, moments_in_order);
        qsort(ends[side], count, sizeof **ends, moments_in_order);
    }
    for (;;) {
        for (int side = 0; side < 2; side++) {
            while (next_end[side] < count && waiting[ends[side][next_end[side]].value].out) next_end[side]++;
            int64_t first_end = next_end[side] < count ? ends[side][next_end[side]].ns : NEVER;
            for (; next_begin[side] < count && begins[side][next_begin[side]].ns <= first_end; next_begin[side]++) {
                uint32_t value = begins[side][next_begin[side]].value;
                if (--waiting[value].conditions == 0) queue[free_count++] = value;
            }
        }
        if (taken_out == free_count) break;
        struct waiting *out = &waiting[queue[taken_out++]];
        out->out = true;
        if (out->next_put != NOBODY && --waiting[out->next_put].conditions == 0) queue[free_count++] = (uint32_t)out->next_put;
        if (out->next_take != NOBODY && --waiting[out->next_take].conditions == 0) queue[free_count++] = (uint32_t)out->next_take;
    }
    bool fine = taken_out == count;
    if (fine) bound(checker, waiting, queue, count);
    if (!fine)
        fail_with_values(checker, HISTORY_CIRCLE, &checker->values[ends[0][next_end[0]].value],
                         &checker->values[ends[1][next_end[1]].value]);
    for (int side = 0; side < 2; side++) {
        free(begins[side]);
        free(ends[side]);
    }
    free(queue);
    free(waiting);
    return fine;
}

/* ---- when something was surely there ---- */

static void note(struct union_of *together, int64_t begun, int64_t ended, size_t value, uint32_t stretch)
{
    if (begun < ended) together->all[together->count++] = (struct presence){begun, ended, (uint32_t)value, stretch};
}

/** Merge what overlaps.  Where one ends and the next begins, there may have been nothing. */
static void merge(struct union_of *together)
{
    qsort(together->all, together->count, sizeof *together->all, by_begun);
    together->last_end = allocate(together->count, sizeof *together->last_end);
    for (size_t i = 0; i < together->count; i++) {
        together->last_end[i] = together->all[i].ended;
        if (i && together->last_end[i - 1] > together->last_end[i]) together->last_end[i] = together->last_end[i - 1];
    }
    together->merged = allocate(together->count, 2 * sizeof *together->merged);
    together->pieces = 0;
    for (size_t i = 0; i < together->count; i++) {
        int64_t *last = together->pieces ? &together->merged[2 * (together->pieces - 1)] : NULL;
        if (last && together->all[i].begun < last[1]) {
            if (together->all[i].ended > last[1]) last[1] = together->all[i].ended;
            continue;
        }
        together->merged[2 * together->pieces] = together->all[i].begun;
        together->merged[2 * together->pieces + 1] = together->all[i].ended;
        together->pieces++;
    }
}

static void look_when_there(struct checker *checker)
{
    struct union_of *there = &checker->there, *given_back = &checker->given_back;
    there->all = allocate(checker->delivery_count + checker->value_count, sizeof *there->all);
    given_back->all = allocate(checker->delivery_count, sizeof *given_back->all);
    for (size_t i = 0; i < checker->value_count; i++) {
        const struct value *value = &checker->values[i];
        if (!value->explained) note(there, value->put_ended, value->take_begun, i, 0);
        for (uint32_t j = 0; j < value->deliveries; j++) {
            const struct delivery *delivery = &checker->deliveries[value->first + j];
            if (delivery->end != BACK) continue;
            bool again = j + 1 < value->deliveries;
            if (again && delivery[1].unsure) continue;
            note(there, delivery->back_ended, again ? delivery[1].begun : NEVER, i, j + 1);
            note(given_back, delivery->back_ended, again ? delivery[1].begun : NEVER, i, j + 1);
        }
    }
    merge(there);
    merge(given_back);
}

/** Whether there was no moment between these times without something there. */
static bool is_covered(const struct union_of *together, int64_t begun, int64_t ended)
{
    size_t low = 0, high = together->pieces; /* the last piece that begins before `begun` */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (together->merged[2 * middle] < begun) low = middle + 1;
        else high = middle;
    }
    return low > 0 && together->merged[2 * low - 1] > ended;
}

/* ---- calls at which something was there at every moment, unless the dead had it ---- */

enum { MOST_TRIES = 100000 };

/** A call that must have a moment at which nothing of `together` was there; or, if it is the first take of a value, one that
 *  somebody unknown had before, so that it was given back itself. */
struct demand {
    const struct union_of *together;
    const struct history_op *op;
    int64_t begun, ended, value;
    bool perhaps_late; /* the value: consumers may have gone past it before it was published */
};

struct demands {
    struct demand *all;
    size_t count, furthest;
    uint64_t tries;
};

/** What explanations there are. */
struct snapshot {
    struct shadow *shadows;
    struct need *needs;
    size_t need_count;
    uint64_t explained;
};

static struct snapshot remember(const struct checker *checker)
{
    struct snapshot snapshot = {allocate(checker->shadow_count, sizeof *checker->shadows),
                                allocate(checker->need_count, sizeof *checker->needs), checker->need_count,
                                checker->verdict->explained};
    memcpy(snapshot.shadows, checker->shadows, checker->shadow_count * sizeof *checker->shadows);
    if (checker->need_count) memcpy(snapshot.needs, checker->needs, checker->need_count * sizeof *checker->needs);
    return snapshot;
}

static void go_back(struct checker *checker, const struct snapshot *snapshot)
{
    memcpy(checker->shadows, snapshot->shadows, checker->shadow_count * sizeof *checker->shadows);
    if (snapshot->need_count) memcpy(checker->needs, snapshot->needs, snapshot->need_count * sizeof *checker->needs);
    checker->need_count = snapshot->need_count;
    checker->verdict->explained = snapshot->explained;
}

/** The first that can have been there at this time. */
static size_t first_there(const struct union_of *together, int64_t ns)
{
    size_t low = 0, high = together->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (together->last_end[middle] >= ns) high = middle;
        else low = middle + 1;
    }
    return low;
}

/** Where the message lay when it was given back before its delivery `stretch`: the ring (0) or the arena (1); NOBODY: unknown. */
static int lay_in(const struct checker *checker, const struct value *value, uint32_t stretch)
{
    const struct delivery *delivery = &checker->deliveries[value->first + stretch - 1];
    const struct history_op *op = &checker->history->ops[delivery->op];
    return op->kind == HISTORY_TAKE && op->outcome == HISTORY_DONE ? op->in_arena >> delivery->place & 1 : NOBODY;
}

/** Whether the queue had to hand this out before what the call took. */
static bool is_in_the_way(const struct checker *checker, const struct demand *demand, const struct presence *presence)
{
    if (demand->value == NOBODY) return true;
    const struct value *taken = &checker->values[demand->value], *waits = &checker->values[presence->value];
    return put_before(waits, taken) && (!demand->perhaps_late || lay_in(checker, waits, presence->stretch) == 0);
}

static bool is_explained(const struct checker *checker, uint32_t value, uint32_t stretch, int64_t ns)
{
    for (size_t i = 0; i < checker->need_count; i++) {
        const struct need *need = &checker->needs[i];
        if (need->value == value && need->stretch == stretch && need->upper <= ns) return true;
    }
    return false;
}

/** Whether the dead had all that was there at this moment: by what is explained already, or by what can be explained now. */
static bool nothing_at(struct checker *checker, const struct demand *demand, int64_t ns, bool explaining)
{
    const struct union_of *together = demand->together;
    for (size_t i = first_there(together, ns); i < together->count && together->all[i].begun < ns; i++) {
        const struct presence *presence = &together->all[i];
        if (presence->ended <= ns || !is_in_the_way(checker, demand, presence) ||
            is_explained(checker, presence->value, presence->stretch, ns))
            continue;
        if (!explaining || !explain(checker, presence->value, presence->stretch, ns)) return false;
    }
    return true;
}

/** The next time after `ns` at which it can make a difference what was there; NEVER. */
static int64_t next_moment(const struct demand *demand, int64_t ns)
{
    int64_t next = demand->ended;
    if (ns >= next) return NEVER;
    for (size_t i = first_there(demand->together, ns); i < demand->together->count && demand->together->all[i].begun < next;
         i++) {
        const struct presence *presence = &demand->together->all[i];
        if (presence->begun > ns) next = presence->begun;
        if (presence->ended > ns && presence->ended < next) next = presence->ended;
    }
    return next;
}

static bool is_settled(struct checker *checker, const struct demand *demand)
{
    if (demand->value != NOBODY && is_explained(checker, (uint32_t)demand->value, 0, demand->ended)) return true;
    for (int64_t ns = demand->begun; ns != NEVER; ns = next_moment(demand, ns))
        if (nothing_at(checker, demand, ns, false)) return true;
    return false;
}

/** Explain them all, from this one on: by some choice of who was in whose hands. */
static bool settle(struct checker *checker, struct demands *demands, size_t from)
{
    while (from < demands->count && is_settled(checker, &demands->all[from])) from++;
    if (from > demands->furthest) demands->furthest = from;
    if (from == demands->count) return true;
    if (checker->shadow_count == 0 || ++demands->tries > MOST_TRIES) return false;
    const struct demand *demand = &demands->all[from];
    struct snapshot before = remember(checker);
    bool settled = demand->value != NOBODY && explain(checker, (uint32_t)demand->value, 0, demand->ended) &&
                   settle(checker, demands, from + 1);
    for (int64_t ns = demand->begun; !settled && ns != NEVER; ns = next_moment(demand, ns)) {
        go_back(checker, &before);
        settled = nothing_at(checker, demand, ns, true) && settle(checker, demands, from + 1);
    }
    free(before.shadows);
    free(before.needs);
    return settled;
}

static void demand(struct demands *demands, const struct union_of *together, const struct history_op *op, int64_t begun,
                   int64_t ended, int64_t value)
{
    if (is_covered(together, begun, ended))
        demands->all[demands->count++] = (struct demand){together, op, begun, ended, value, false};
}

/** Two puts that began first. */
struct first_puts {
    int64_t begun_ns[2];
    uint32_t ops[2];
};

static struct first_puts with_put(struct first_puts puts, int64_t begun_ns, uint32_t op)
{
    if (op == puts.ops[0] || op == puts.ops[1]) return puts; /* of one call, all begin at once */
    if (begun_ns < puts.begun_ns[0]) return (struct first_puts){{begun_ns, puts.begun_ns[0]}, {op, puts.ops[0]}};
    if (begun_ns < puts.begun_ns[1]) return (struct first_puts){{puts.begun_ns[0], begun_ns}, {puts.ops[0], op}};
    return puts;
}

/** Which values may have been published late: another put was under way at the same time, so its message may have been claimed behind
 *  and published before; whoever met it has gone past ours, and may have been stopped before he took it. */
static void note_late(const struct checker *checker, struct demands *demands)
{
    struct moment *ends = allocate(checker->value_count, sizeof *ends);
    struct first_puts *first = allocate(checker->value_count + 1, sizeof *first); /* of those that end from here on */
    for (size_t i = 0; i < checker->value_count; i++) ends[i] = (struct moment){checker->values[i].put_ended, (uint32_t)i};
    qsort(ends, checker->value_count, sizeof *ends, moments_in_order);
    first[checker->value_count] = (struct first_puts){{NEVER, NEVER}, {UINT32_MAX, UINT32_MAX}};
    for (size_t i = checker->value_count; i-- > 0;) {
        const struct value *value = &checker->values[ends[i].value];
        first[i] = with_put(first[i + 1], value->put_begun, value->op);
    }
    for (size_t i = 0; i < demands->count; i++) {
        if (demands->all[i].value == NOBODY) continue;
        const struct value *value = &checker->values[demands->all[i].value];
        const struct history_op *put = &checker->history->ops[value->op];
        size_t low = 0, high = checker->value_count;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (ends[middle].ns >= put->begun_ns) high = middle;
            else low = middle + 1;
        }
        int64_t begun_ns = first[low].begun_ns[first[low].ops[0] == value->op];
        demands->all[i].perhaps_late = put->count > 1 || begun_ns <= end_of(put);
    }
    free(ends);
    free(first);
}

static int in_time(const void *one, const void *other)
{
    return by_time(((const struct demand *)one)->ended, ((const struct demand *)other)->ended);
}

/** "Empty" only where nothing was there at some moment; a take of one that had never been given back only where nothing that had
 *  been was. */
static bool look_for_moments(struct checker *checker)
{
    struct demands demands = {.all = allocate(checker->history->count + checker->value_count, sizeof *demands.all)};
    for (size_t i = 0; i < checker->history->count; i++) {
        const struct history_op *op = &checker->history->ops[i];
        bool takes = op->kind == HISTORY_GET || op->kind == HISTORY_TAKE;
        /* A take of fewer than were wanted ended for having found nothing more. */
        if (!takes || op->outcome == HISTORY_PENDING || (op->outcome == HISTORY_DONE && op->count >= op->wanted)) continue;
        checker->verdict->empties += op->outcome == HISTORY_NOTHING;
        int64_t begun_ns = op->begun_ns;
        for (uint8_t place = 0; place < op->count; place++) {
            const struct value *value = find(checker, op->values[place]);
            if (value && value->certain && checker->deliveries[value->first].op == i) later(&begun_ns, value->take_begun);
        }
        demand(&demands, &checker->there, op, begun_ns, op->ended_ns, NOBODY);
    }
    for (size_t i = 0; i < checker->value_count; i++) {
        const struct value *value = &checker->values[i];
        if (!value->deliveries || value->explained) continue;
        const struct history_op *op = &checker->history->ops[checker->deliveries[value->first].op];
        demand(&demands, &checker->given_back, op, value->take_begun, value->take_ended, (int64_t)i);
    }
    note_late(checker, &demands);
    qsort(demands.all, demands.count, sizeof *demands.all, in_time);
    bool fine = settle(checker, &demands, 0);
    if (!fine) {
        const struct demand *failed = &demands.all[demands.furthest];
        fail_with_op(checker, failed->value == NOBODY ? HISTORY_NOT_EMPTY : HISTORY_PASSED_OVER, failed->op);
        if (failed->value != NOBODY) add_value(checker, &checker->values[failed->value]);
        for (size_t j = first_there(failed->together, failed->begun), told = 0; j < failed->together->count && told < 3; j++) {
            const struct presence *presence = &failed->together->all[j];
            if (presence->begun >= failed->ended || presence->ended <= failed->begun) continue;
            add_value(checker, &checker->values[presence->value]);
            told++;
        }
    }
    free(demands.all);
    return fine;
}

/* ---- the order of what was given back ---- */

/** Whether nobody unknown can have had the value before its delivery `stretch`. */
static bool is_known(const struct checker *checker, const struct value *value, uint32_t stretch)
{
    int64_t lower = back_before(checker, value, stretch);
    int64_t upper = stretch < value->deliveries ? checker->deliveries[value->first + stretch].ended : NEVER;
    for (size_t i = 0; i < checker->shadow_count && checker->shadows[i].begun <= upper; i++)
        if (checker->shadows[i].dead >= lower) return false;
    return true;
}

/** Those of one kind in the order of their puts, and those in the ring before those in the arena. */
static bool look_at_order_of_returned(struct checker *checker)
{
    const struct union_of *given_back = &checker->given_back;
    for (size_t i = 0; checker->history->fixed_lanes && i < given_back->count; i++) {
        const struct value *value = &checker->values[given_back->all[i].value];
        uint32_t stretch = given_back->all[i].stretch;
        if (stretch == value->deliveries) continue;
        const struct delivery *delivery = &checker->deliveries[value->first + stretch];
        int lies_in = lay_in(checker, value, stretch);
        if (lies_in == NOBODY || !is_known(checker, value, stretch)) continue;
        checker->verdict->orders_judged++;
        for (size_t j = first_there(given_back, delivery->ended);
             j < given_back->count && given_back->all[j].begun < delivery->begun; j++) {
            const struct presence *waits = &given_back->all[j];
            const struct value *other = &checker->values[waits->value];
            if (other == value || waits->ended <= delivery->ended) continue;
            int other_lies_in = lay_in(checker, other, waits->stretch);
            bool first = other_lies_in == lies_in ? put_before(other, value) : other_lies_in == 0;
            if (other_lies_in != NOBODY && first && is_known(checker, other, waits->stretch))
                return fail_with_values(checker, HISTORY_OUT_OF_ORDER, value, other);
        }
    }
    return true;
}

/* ---- full ---- */

/** The puts by their beginnings, and up to each the time when all of them were surely gone. */
static bool look_at_fulls(struct checker *checker)
{
    struct moment *puts = allocate(checker->history->count * HISTORY_BATCH, sizeof *puts);
    int64_t *gone = allocate(checker->history->count * HISTORY_BATCH, sizeof *gone);
    size_t count = 0;
    bool fine = true;
    for (size_t i = 0; i < checker->history->count; i++) {
        const struct history_op *op = &checker->history->ops[i];
        for (uint8_t place = 0; op->kind == HISTORY_PUT && place < op->count; place++)
            puts[count++] = (struct moment){op->begun_ns, (uint32_t)i};
    }
    qsort(puts, count, sizeof *puts, moments_in_order);
    for (size_t i = 0; i < count; i++) {
        const struct history_op *op = &checker->history->ops[puts[i].value];
        int64_t latest = op->outcome == HISTORY_NOTHING ? op->ended_ns : 0;
        for (uint8_t place = 0; op->outcome != HISTORY_NOTHING && place < op->count; place++) {
            const struct value *value = find(checker, op->values[place]);
            int64_t when_gone = value ? value->gone : NEVER;
            if (when_gone > latest) latest = when_gone;
        }
        gone[i] = i && gone[i - 1] > latest ? gone[i - 1] : latest;
    }
    for (size_t i = 0; i < checker->history->count && fine; i++) {
        const struct history_op *op = &checker->history->ops[i];
        if (op->kind != HISTORY_PUT || op->outcome != HISTORY_NOTHING) continue;
        checker->verdict->fulls++;
        if (checker->history->always_fits == 0) continue;
        size_t oldest = 0, high = count; /* the first that was not surely gone when the call began */
        while (oldest < high) {
            size_t middle = (oldest + high) / 2;
            if (gone[middle] >= op->begun_ns) high = middle;
            else oldest = middle + 1;
        }
        size_t behind = oldest; /* the first that began after it ended; its own values are among those before */
        high = count;
        while (behind < high) {
            size_t middle = (behind + high) / 2;
            if (puts[middle].ns > op->ended_ns) high = middle;
            else behind = middle + 1;
        }
        checker->verdict->fulls_judged += oldest == count || gone[oldest] != NEVER;
        if (behind - oldest <= checker->history->always_fits) fine = fail_with_op(checker, HISTORY_NOT_FULL, op);
    }
    free(puts);
    free(gone);
    return fine;
}

/* ---- all of it ---- */

enum history_fault history_check(const struct history *history, struct history_verdict *verdict)
{
    struct checker checker = {.history = history, .verdict = verdict};
    *verdict = (struct history_verdict){.fault = HISTORY_LINEARIZABLE};
    size_t workers = 1;
    for (size_t i = 0; i < history->count; i++)
        if (history->ops[i].worker >= workers) workers = history->ops[i].worker + 1u;
    checker.deaths = allocate(workers, sizeof *checker.deaths);
    bool fine = read_calls(&checker) && read_puts(&checker) && read_takes(&checker);
    if (fine) checker.visited = allocate(checker.shadow_count, sizeof *checker.visited);
    fine = fine && follow_each(&checker);
    if (fine) note_certain(&checker);
    fine = fine && count_attempts(&checker) && look_for_overtaken(&checker) && look_into_batches(&checker) &&
           sort_out(&checker);
    if (fine) look_when_there(&checker);
    fine = fine && look_for_moments(&checker) && look_at_order_of_returned(&checker) && look_at_fulls(&checker);
    free(checker.values);
    free(checker.deliveries);
    free(checker.endings);
    free(checker.deaths);
    free(checker.shadows);
    free(checker.needs);
    free(checker.visited);
    free(checker.there.all);
    free(checker.there.last_end);
    free(checker.given_back.last_end);
    free(checker.there.merged);
    free(checker.given_back.all);
    free(checker.given_back.merged);
    return verdict->fault;
}
