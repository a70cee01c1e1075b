/* turn.c — floor 4: whose turn it is at the arena, so that a call that has waited long is served before those that have waited less.
 *
 * The fault it mends.  A run needs neighbouring blocks.  Among short runs, which take every hole as soon as it is there, a long one would
 * wait until chance empties enough neighbours.
 *
 * The idea.  A call that has waited for BOUND_UNITS may set a window of blocks aside: the one in which the fewest are in use, and as long
 * as the runs that it wants (for a batch, all of them together).  Every other allocation looks past the window.  So it empties as the
 * messages in it come to their end, and then the owner's attempt, which looks everywhere, succeeds.  The others keep the rest of the arena.
 *   Of two who want a turn, the one that has waited longer has it: it replaces the window of one that has waited less.
 *
 * What the words mean (layout.h, struct rbi_turn).  `window` says whose turn it is, since when that call has waited, and which blocks are
 * set aside.  `until_ns` says when the turn lapses.  Both are advice.  Who gets a block is decided by the block's word alone (arena.c), so
 * whatever stands here, written by whomever, costs at most time; and how much is bounded:
 *   - a turn that is not renewed lapses after TURN_NS.  So a process that is stopped, or whose call came to its deadline, keeps a window
 *     for a quarter of a second and no longer.  A time further ahead than TURN_NS was written by another clock, and does not count.
 *   - after each round (ROUND_UNITS) the owner chooses anew, because something may be held in the window for hours; and what is held
 *     weighs more from round to round.
 *   - if no message was consumed in a whole round, the owner sets nothing aside in the next one.  Those whose work would empty the window
 *     may just be waiting for room themselves.
 *
 * The order of the steps.  Taking: CAS `window`, then store `until_ns`.  Not the other way round: a failed CAS must not prolong the turn of
 * another, which may be stopped.  In between, the turn looks lapsed, and another may take it; then the first one sees that at its next
 * look.  A death in between, or anywhere later, leaves a window that lapses, and that recovery clears (registry.c).
 *   Ending: CAS `window` from what is ours to 0, so that the turn of one that has replaced us stays; then wake all who wait for room, for
 *   they may have room now.  [T9 window] pairs with a waiter's announcement and its attempt after it: of the two, one sees the other.
 *   A turn that lapses wakes nobody; who waits for room looks again every 100 ms in any case (waiting.c).
 *
 * Calls that go on.  A binding waits in slices, as many calls with a deadline each, and a program may poll.  So a call that ends at its
 * deadline leaves a note in its handle: for so many blocks, since then.  A call for as many blocks that begins within NOTE_UNITS takes the
 * note and has waited as long.  A note is one word and is taken by one CAS, so of several threads each takes another; calls for
 * equally many blocks are alike, and it does not matter which thread goes on with which.  A turn is known as its call's by the owner's number,
 * `since` and the blocks, so that it stays the call's from slice to slice. */
#include "calls.h"

enum {
    UNIT_LOG2 = 24,         /* times in words are in units of 2^24 ns, about 17 ms, modulo 2^18: 73 min */
    SINCE_BITS = 18,
    BOUND_UNITS = 9,        /* 151 ms */
    ROUND_UNITS = 60,       /* 1 s */
    AGE_MOST_UNITS = 1 << 16, /* who has waited longer than 18 min counts as having waited so long, */
    AGE_SLACK_UNITS = 1 << 12, /* adjusted now and then */
    NOTE_UNITS = 15,        /* 252 ms */
    TURN_NS = 250000000,
    HELD_WEIGHT_LOG2 = 2,   /* what is held weighs 4 times as much as what waits, 16 times in the next round, */
    HELD_WEIGHT_MOST_LOG2 = 18, /* and in the end more than all blocks together */
};
#define SINCE_MASK ((UINT64_C(1) << SINCE_BITS) - 1)

static uint64_t units_of(int64_t now_ns) { return (uint64_t)now_ns >> UNIT_LOG2; }

/** How many units lie between the two. */
static uint64_t units_since(uint64_t now, uint64_t since) { return (now - since) & SINCE_MASK; }

/** Whether `a` is the earlier of the two. */
static bool is_earlier(uint64_t a, uint64_t b) { return a != b && units_since(b, a) < (UINT64_C(1) << (SINCE_BITS - 1)); }

/* ---- notes: { 1 | paused : 1 | round : 8 | ended : 18 | since : 18 | blocks : 17 } ---- */

enum { NOTE_SINCE_SHIFT = 17, NOTE_ENDED_SHIFT = 35, NOTE_ROUND_SHIFT = 53, NOTE_PAUSED_SHIFT = 61, NOTE_USED_SHIFT = 62 };

static uint64_t note_of(const struct rbi_wait *wait, uint64_t ended)
{
    return UINT64_C(1) << NOTE_USED_SHIFT | (uint64_t)wait->paused << NOTE_PAUSED_SHIFT | (wait->round & 0xff) << NOTE_ROUND_SHIFT |
           (ended & SINCE_MASK) << NOTE_ENDED_SHIFT | wait->since << NOTE_SINCE_SHIFT | wait->blocks;
}

static bool is_fresh(uint64_t note, uint64_t now) { return note && units_since(now, note >> NOTE_ENDED_SHIFT & SINCE_MASK) <= NOTE_UNITS; }

/** The first time that this call found no room: it goes on from a note, or begins now. */
static void begin(ringbuf *rb, struct rbi_wait *wait, uint64_t now)
{
    wait->began = true;
    wait->since = now & SINCE_MASK;
    if (!rbi_load_relaxed32(&rb->some_notes)) return; /* relaxed, here and below: notes of our own process, each complete in its word */
    for (;;) {
        rbi_atomic64 *oldest = NULL;
        uint64_t found = 0;
        for (int i = 0; i < RBI_NOTES; i++) {
            uint64_t note = rbi_load_relaxed64(&rb->notes[i]);
            if (!is_fresh(note, now) || (note & RBI_WINDOW_MASK) != wait->blocks) continue;
            if (oldest && !is_earlier(note >> NOTE_SINCE_SHIFT & SINCE_MASK, found >> NOTE_SINCE_SHIFT & SINCE_MASK)) continue;
            oldest = &rb->notes[i];
            found = note;
        }
        if (!oldest) return;
        if (!rbi_cas_acq_rel64(oldest, found, 0)) continue; /* another thread has it */
        wait->since = found >> NOTE_SINCE_SHIFT & SINCE_MASK;
        wait->round = found >> NOTE_ROUND_SHIFT & 0xff;
        wait->paused = found >> NOTE_PAUSED_SHIFT & 1;
        return;
    }
}

/** Leave a note.  If there is no place for it, the next call begins anew. */
static void leave_note(ringbuf *rb, const struct rbi_wait *wait)
{
    const uint64_t now = units_of(rbi_monotonic_ns());
    for (int i = 0; i < RBI_NOTES; i++) {
        uint64_t note = rbi_load_relaxed64(&rb->notes[i]);
        if (is_fresh(note, now) || !rbi_cas_acq_rel64(&rb->notes[i], note, note_of(wait, now))) continue;
        rbi_store_relaxed32(&rb->some_notes, 1);
        return;
    }
}

/* ---- the turn ---- */

static bool is_mine(const ringbuf *rb, const struct rbi_wait *wait, uint64_t window)
{
    return wait && wait->began && rbi_window_owner(window) == rb->registry.self && rbi_window_since(window) == wait->since &&
           (rbi_window_blocks(window) == wait->blocks || rbi_window_blocks(window) == 0);
}

static bool is_live(ringbuf *rb, int64_t now_ns)
{
    uint64_t left = rbi_load_relaxed64(&rb->header->turn.until_ns) - (uint64_t)now_ns; /* relaxed: a hint */
    return left - 1 < TURN_NS;
}

uint64_t rbi_turn_to_spare_slow(ringbuf *rb, const struct rbi_wait *wait, uint64_t window)
{
    return is_mine(rb, wait, window) || rbi_window_blocks(window) == 0 || !is_live(rb, rbi_monotonic_ns()) ? 0 : window;
}

/** Messages consumed so far. */
static uint64_t consumed(ringbuf *rb) { return rbi_registry_gets_owed(&rb->registry); }

/** Whether a new round has begun since this call last asked; then it is decided whether to pause. */
static bool begin_round(ringbuf *rb, struct rbi_wait *wait, uint64_t waited)
{
    const uint64_t round = (waited - BOUND_UNITS) / ROUND_UNITS & 0xff;
    if (round == wait->round) return false;
    wait->round = round;
    /* relaxed: threads of one process may take each other's number for theirs; then one pauses, or does not, and a round later again */
    const uint64_t now = consumed(rb), before = rbi_load_relaxed64(&rb->consumed_before);
    rbi_store_relaxed64(&rb->consumed_before, now);
    wait->paused = now == before && !wait->paused;
    return true;
}

static uint64_t held_weight(uint64_t round)
{
    const uint64_t log2 = (round + 1) * HELD_WEIGHT_LOG2;
    return UINT64_C(1) << (log2 < HELD_WEIGHT_MOST_LOG2 ? log2 : HELD_WEIGHT_MOST_LOG2);
}

static void renew(ringbuf *rb, int64_t now_ns)
{
    rbi_store_relaxed64(&rb->header->turn.until_ns, (uint64_t)now_ns + TURN_NS); /* relaxed: a hint */
    RBI_POINT(turn_renewed);
}

bool rbi_turn_ask(ringbuf *rb, struct rbi_wait *wait)
{
    if (!wait || wait->blocks == 0 || wait->blocks > rb->arena.blocks) return false;
    const int64_t now_ns = rbi_monotonic_ns();
    const uint64_t now = units_of(now_ns);
    const bool is_first = !wait->began;
    if (is_first) begin(rb, wait, now);
    uint64_t waited = units_since(now, wait->since);
    if (waited < BOUND_UNITS) return false;
    uint64_t window = rbi_load_total64(&rb->header->turn.window); /* [T9] */
    const bool mine = is_mine(rb, wait, window);
    bool change = !mine;
    if (waited > AGE_MOST_UNITS + AGE_SLACK_UNITS) {
        waited = AGE_MOST_UNITS;
        wait->since = (now - waited) & SINCE_MASK;
        change = true;
    }
    if (begin_round(rb, wait, waited)) change = true;
    if (!change) {
        renew(rb, now_ns);
        return is_first; /* its attempt could not know yet that the window is its own */
    }
    const bool others = window && !mine && is_live(rb, now_ns);
    if (others && !is_earlier(wait->since, rbi_window_since(window))) return false;
    if (!mine && wait->paused) return false;
    if (!mine) rbi_store_relaxed64(&rb->consumed_before, consumed(rb)); /* relaxed: as above */
    const uint64_t first = wait->paused ? 0 : rbi_arena_emptiest(&rb->arena, wait->blocks, held_weight(wait->round));
    const uint64_t wanted = rbi_window(rb->registry.self, first, wait->paused ? 0 : wait->blocks, wait->since);
    if (wanted != window && !rbi_cas_total64(&rb->header->turn.window, window, wanted)) return false;
    RBI_POINT(turn_taken);
    renew(rb, now_ns);
    if (window && window != wanted) rbi_wake_for_room(rb); /* what was set aside before is there for all */
    return true;
}

void rbi_turn_end(ringbuf *rb, const struct rbi_wait *wait, ringbuf_status status)
{
    if (!wait->began) return;
    const bool may_go_on = status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_INTR || status == RINGBUF_E_NO_SPACE;
    if (may_go_on) {
        leave_note(rb, wait);
        return;
    }
    const uint64_t window = rbi_load_total64(&rb->header->turn.window);
    if (!window || !is_mine(rb, wait, window) || !rbi_cas_total64(&rb->header->turn.window, window, 0)) return; /* [T9] */
    RBI_POINT(turn_ended);
    rbi_wake_for_room(rb);
}
