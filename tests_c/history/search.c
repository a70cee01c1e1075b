/* search.c — the definition of a linearizable history in code: try every order of its steps.  Exponential; for a handful of
 * calls.
 *
 * The queue is the one that check.c opens with.  A call is one step for each value, in order, and one more for "empty".  What
 * need not happen (a put that was not answered, what becomes of the messages of the dead) is a step that may be left out.  States
 * that were met before are not tried again. */
#include "history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 24, VALUES = 8, SEEN = 1 << 21, NOBODY = -1 };

enum step_kind { PUT, TAKE, TAKE_UNKNOWN, GIVE_BACK, GIVE_BACK_UNKNOWN, FIND_EMPTY };

struct step {
    enum step_kind kind;
    int value;
    int64_t from, to;
    bool may_be_left_out;
    int after; /* a step that must have been done before it, NOBODY: none */
};

struct state {
    uint8_t queue[VALUES], length; /* oldest first */
    uint8_t given_back;            /* a bit for each value */
    uint8_t taken;
    uint8_t unknown;               /* what somebody unknown has taken: value + 1 */
};

struct search {
    struct step steps[STEPS];
    int count;
    uint64_t names[VALUES];
    uint8_t older[VALUES]; /* a bit for each value whose put was before this one's */
    int value_count;
    bool possible; /* every value was put, and no more than we can handle */
    uint64_t *seen;
    uint32_t *touched; /* places of `seen`, to be cleared again */
    int touched_count;
};

static int number_of(struct search *search, uint64_t name)
{
    for (int i = 0; i < search->value_count; i++)
        if (search->names[i] == name) return i;
    search->possible = false;
    return 0;
}

static int add_step(struct search *search, enum step_kind kind, int value, int64_t from, int64_t to, bool may_be_left_out,
                    int after)
{
    if (search->count == STEPS) { fprintf(stderr, "too many steps\n"); abort(); }
    search->steps[search->count] = (struct step){kind, value, from, to, may_be_left_out, after};
    return search->count++;
}

static const struct history_op *death_of(const struct history *history, uint16_t worker)
{
    for (size_t i = 0; i < history->count; i++)
        if (history->ops[i].kind == HISTORY_DEATH && history->ops[i].worker == worker) return &history->ops[i];
    return NULL;
}

static bool was_ended(const struct history *history, const struct history_op *take, uint64_t name)
{
    for (size_t i = 0; i < history->count; i++) {
        const struct history_op *op = &history->ops[i];
        if (op->worker != take->worker || op->kind < HISTORY_ACK || op->kind > HISTORY_RETURN || op->begun_ns < take->ended_ns)
            continue;
        for (int j = 0; j < op->count; j++)
            if (op->values[j] == name) return op->outcome == HISTORY_DONE || op->kind != HISTORY_ACK;
    }
    return false;
}

static void add_take(struct search *search, const struct history *history, const struct history_op *op)
{
    const struct history_op *death = death_of(history, op->worker);
    bool pending = op->outcome == HISTORY_PENDING;
    int64_t to = !pending ? op->ended_ns : death ? death->ended_ns : INT64_MAX;
    int before = NOBODY;
    for (int i = 0; i < op->count; i++) {
        int value = number_of(search, op->values[i]);
        before = add_step(search, TAKE, value, op->begun_ns, to, false, before);
        bool consumed = op->kind == HISTORY_GET && !pending;
        if (death && !consumed && !was_ended(history, op, op->values[i]))
            add_step(search, GIVE_BACK, value, death->begun_ns, INT64_MAX, true, before);
    }
    if (!pending && op->count < (op->wanted ? op->wanted : 1)) add_step(search, FIND_EMPTY, 0, op->begun_ns, to, false, before);
    if (pending && op->count == 0) {
        before = add_step(search, TAKE_UNKNOWN, 0, op->begun_ns, to, true, NOBODY);
        if (death) add_step(search, GIVE_BACK_UNKNOWN, 0, death->begun_ns, INT64_MAX, true, before);
    }
}

static void read_steps(struct search *search, const struct history *history)
{
    for (size_t i = 0; i < history->count; i++) {
        const struct history_op *op = &history->ops[i];
        int before = NOBODY;
        for (int j = 0; op->kind == HISTORY_PUT && op->outcome != HISTORY_NOTHING && j < op->count; j++) {
            if (search->value_count == VALUES) abort();
            search->names[search->value_count] = op->values[j];
            bool pending = op->outcome == HISTORY_PENDING;
            before =
                add_step(search, PUT, search->value_count++, op->begun_ns, pending ? INT64_MAX : op->ended_ns, pending, before);
        }
    }
    for (int i = 0; i < search->count; i++) /* all of them puts */
        for (int j = 0; j < search->count; j++) {
            const struct step *one = &search->steps[i], *other = &search->steps[j];
            if (one->to < other->from || other->after == i) search->older[other->value] |= (uint8_t)(1u << one->value);
        }
    for (size_t i = 0; i < history->count; i++) {
        const struct history_op *op = &history->ops[i];
        if (op->kind == HISTORY_GET || op->kind == HISTORY_TAKE) add_take(search, history, op);
        if (op->kind != HISTORY_NACK && op->kind != HISTORY_RETURN) continue;
        bool pending = op->outcome == HISTORY_PENDING;
        for (int j = 0; j < op->count; j++)
            add_step(search, GIVE_BACK, number_of(search, op->values[j]), op->begun_ns, pending ? INT64_MAX : op->ended_ns,
                     pending, NOBODY);
    }
}

static void remove_from_queue(struct state *state, int place)
{
    memmove(state->queue + place, state->queue + place + 1, (size_t)(state->length - place - 1));
    state->queue[--state->length] = 0;
}

/** Take this value, if the queue would hand it out. */
static bool take(const struct search *search, struct state *state, int value)
{
    if (state->given_back >> value & 1) {
        state->given_back &= (uint8_t)~(1u << value);
    } else {
        if (state->given_back & search->older[value] || state->length == 0 || state->queue[0] != value) return false;
        remove_from_queue(state, 0);
    }
    state->taken |= (uint8_t)(1u << value);
    return true;
}

static bool give_back(struct state *state, int value)
{
    if (!(state->taken >> value & 1)) return false;
    state->taken &= (uint8_t)~(1u << value);
    state->given_back |= (uint8_t)(1u << value);
    return true;
}

static bool explore(struct search *search, struct state state, uint32_t done);

static bool go_on(struct search *search, const struct state *state, uint32_t done, int step)
{
    return explore(search, *state, done | 1u << step);
}

static bool try_step(struct search *search, struct state state, uint32_t done, int index)
{
    const struct step *step = &search->steps[index];
    switch (step->kind) {
    case PUT: state.queue[state.length++] = (uint8_t)step->value; return go_on(search, &state, done, index);
    case TAKE: return take(search, &state, step->value) && go_on(search, &state, done, index);
    case GIVE_BACK: return give_back(&state, step->value) && go_on(search, &state, done, index);
    case FIND_EMPTY: return state.length == 0 && state.given_back == 0 && go_on(search, &state, done, index);
    case TAKE_UNKNOWN:
        for (int value = 0; value < search->value_count; value++) {
            struct state next = state;
            if (!take(search, &next, value)) continue;
            next.unknown = (uint8_t)(value + 1);
            if (go_on(search, &next, done, index)) return true;
        }
        return false;
    case GIVE_BACK_UNKNOWN:
        if (state.unknown == 0 || !give_back(&state, state.unknown - 1)) return false;
        state.unknown = 0;
        return go_on(search, &state, done, index);
    }
    return false;
}

/** Whether this has been tried before; notes that it has. */
static bool was_seen(struct search *search, const struct state *state, uint32_t done)
{
    uint64_t key = (uint64_t)done << 40 | (uint64_t)state->unknown << 36 | (uint64_t)state->length << 32;
    for (int i = 0; i < state->length; i++) key ^= (uint64_t)state->queue[i] << (3 * i);
    uint64_t more =
        key * UINT64_C(0x9e3779b97f4a7c15) + ((uint64_t)state->given_back << 8 | state->taken) * UINT64_C(0xbf58476d1ce4e5b9);
    key = (more ^ more >> 29) | 1;
    for (uint64_t slot = key >> 1 & (SEEN - 1);; slot = (slot + 1) & (SEEN - 1)) {
        if (search->seen[slot] == key) return true;
        if (search->seen[slot]) continue;
        search->seen[slot] = key;
        search->touched[search->touched_count++] = (uint32_t)slot;
        if (search->touched_count == SEEN / 2) { fprintf(stderr, "too many states\n"); abort(); }
        return false;
    }
}

static bool explore(struct search *search, struct state state, uint32_t done)
{
    int64_t first_end = INT64_MAX, last_begin = INT64_MIN;
    bool all = true;
    for (int i = 0; i < search->count; i++) {
        if (done >> i & 1 && search->steps[i].from > last_begin) last_begin = search->steps[i].from;
        if (done >> i & 1 || search->steps[i].may_be_left_out) continue;
        all = false;
        if (search->steps[i].to < first_end) first_end = search->steps[i].to;
    }
    if (all) return true;
    if (was_seen(search, &state, done)) return false;
    for (int i = 0; i < search->count; i++) {
        const struct step *step = &search->steps[i];
        if (done >> i & 1 || step->from > first_end || step->to < last_begin) continue;
        if (step->after != NOBODY && !(done >> step->after & 1)) continue;
        if (try_step(search, state, done, i)) return true;
    }
    return false;
}

bool history_search(const struct history *history)
{
    static uint64_t seen[SEEN];
    static uint32_t touched[SEEN];
    struct search search = {.possible = true, .seen = seen, .touched = touched};
    read_steps(&search, history);
    bool found = search.possible && explore(&search, (struct state){.length = 0}, 0);
    while (search.touched_count) seen[touched[--search.touched_count]] = 0;
    return found;
}
