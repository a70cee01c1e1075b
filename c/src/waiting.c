/* waiting.c — floor 4: waiting until an attempt succeeds.
 *
 * It looks again for a moment, announces itself, looks again, and sleeps, until it is woken or wakes up by itself: now and then, to see
 * whether a participant died, what has become of the file, and whether what it waits for is there after all (registry.c has when).
 *
 * A wake that reaches a process that dies is not lost for long.  What it was about lies in the queue, and any other waiter that wakes up by
 * itself, or is woken, attempts, takes it, and passes a wake on when it leaves (`more`); and the look that finds the death wakes all.
 *
 * How long to look before sleeping.  A sleep costs the sleeper a context switch and the one who wakes it 7-9 us, a look costs the
 * processor to somebody who may need it.  So each handle learns from every wait: one that was short, found while looking or not,
 * doubles the time for the next look, one that was long quarters it, down to next to nothing; with a single processor there is no
 * looking at all.  And if what it waits for came at the first look, and waits are rare enough for several messages each, it lets the
 * other side get ahead a little (lag_of).  Then it yields a few times: where there are more processes than processors, the one it
 * waits for is likely to be ready to run, and a yield costs neither side a futex call. */
#include "calls.h"

#ifndef RBI_YIELDS
#define RBI_YIELDS 4 /* the explorer, whose processes yield at every step, says 0 */
#endif

enum {
    POLL_RECOVERY_NS = 10000000, /* calls that do not sleep look for the dead at most this often */
    ROOM_LOOK_NS = 100000000,    /* a call that waits for room in the arena looks again this often */
    TRIM_NS = 2000000000,        /* of the arena's idle memory, one of */
    TRIM_SHARE = 16,             /* so many equal parts (but at least a MiB) is given back in this time, */
    TRIM_PIECES = 8,             /* no more than so many MiB at a look */
    LOOK_MOST_NS = 1000000,      /* for callers who look but do not sleep */
    SPIN_LEAST_NS = 500,
    SPIN_MOST_NS = 32000,
    SPIN_WORTH_NS = 64000,       /* a wait of less than this would have been met by looking a little longer */
    YIELDS = RBI_YIELDS,         /* turns given to others before the first sleep */
    SPIN_PAUSES = 8,             /* between two looks, so as not to pull at the line that the other side is writing */
    LAG_MOST = 128,
    SPIN_LOOKS = 8,              /* looks between two readings of the clock */
};

/** How many pauses to make before the first look.  Two sides in step, each message looked for as soon as it is put, cost each other
 *  cache misses at every message; if the slower one falls behind a little, the next ones come together.  That it helped shows in
 *  several messages having been moved since the last wait; two that answer each other never see that. */
static uint32_t lag_of(const struct rbi_waiting *waiting)
{
    uint64_t moved = rbi_load_relaxed64(waiting->moved); /* relaxed, here and below: guesses */
    uint64_t since_last = moved - rbi_load_relaxed64(&waiting->patience->served);
    rbi_store_relaxed64(&waiting->patience->served, moved);
    return since_last > 1 ? rbi_load_relaxed32(&waiting->patience->lag) : 0;
}

static uint32_t processors_of_ours(void)
{
    static rbi_atomic32 known; /* relaxed: whoever comes first writes it, and all would write the same */
    uint32_t processors = rbi_load_relaxed32(&known);
    if (processors == 0) rbi_store_relaxed32(&known, processors = rbi_processors());
    return processors;
}

/** Look until then. */
static bool look_until(ringbuf *rb, const struct rbi_waiting *waiting, void *call, int64_t until_ns)
{
    do {
        for (int look = 0; look < SPIN_LOOKS; look++) {
            if (waiting->may_succeed(rb, call)) return true;
            for (int pause = 0; pause < SPIN_PAUSES; pause++) rbi_pause();
        }
    } while (rbi_monotonic_ns() < until_ns);
    return false;
}

/** Look for a while. */
static bool spin(ringbuf *rb, const struct rbi_waiting *waiting, void *call, int64_t now_ns, int64_t deadline_ns)
{
    if (processors_of_ours() == 1) return false;
    /* relaxed: a guess that several threads may adjust */
    int64_t until_ns = now_ns + rbi_load_relaxed32(&waiting->patience->spin_ns);
    if (until_ns > deadline_ns) until_ns = deadline_ns;
    uint32_t lag = lag_of(waiting);
    for (uint32_t pause = 0; pause < lag; pause++) rbi_pause();
    bool at_once = waiting->may_succeed(rb, call);
    if (!at_once && !look_until(rb, waiting, call, until_ns)) return false;
    lag = at_once ? lag * 2 + SPIN_PAUSES : 0;
    rbi_store_relaxed32(&waiting->patience->lag, lag < LAG_MOST ? lag : LAG_MOST);
    return true;
}

/** Learn from a wait that took `waited_ns`, found while looking or after a sleep. */
static void learn(const struct rbi_waiting *waiting, int64_t waited_ns)
{
    uint32_t spin_ns = rbi_load_relaxed32(&waiting->patience->spin_ns); /* relaxed: as above */
    if (waited_ns < SPIN_WORTH_NS) spin_ns = spin_ns * 2 < SPIN_MOST_NS ? spin_ns * 2 : SPIN_MOST_NS;
    else spin_ns = spin_ns / 4 > SPIN_LEAST_NS ? spin_ns / 4 : SPIN_LEAST_NS;
    rbi_store_relaxed32(&waiting->patience->spin_ns, spin_ns);
}

/** Look for the dead if it is time.  Returns whether somebody was cleaned up after. */
static bool watch_if_due(ringbuf *rb, int64_t now_ns, bool is_up)
{
    return rbi_registry_wakes_now(&rb->registry, now_ns, is_up) && rbi_segment_watch(rb, now_ns);
}

/** The same in a call that does not wait. */
static bool recover_by_the_way(ringbuf *rb, int64_t now_ns)
{
    /* relaxed: it only limits how often */
    if ((uint64_t)now_ns < rbi_load_relaxed64(&rb->next_poll_ns)) return false;
    rbi_store_relaxed64(&rb->next_poll_ns, (uint64_t)(now_ns + POLL_RECOVERY_NS));
    return rbi_segment_recover_by_the_way(rb, now_ns);
}

void rbi_trim_if_due(ringbuf *rb, int64_t now_ns)
{
    /* relaxed: it only limits how often */
    if (!rbi_arena_is_used(&rb->arena) || (uint64_t)now_ns < rbi_load_relaxed64(&rb->next_trim_ns)) return;
    /* Little at a time, for this is somebody's ack, or get; and little in all, for the next large message wants its memory back. */
    const uint64_t piece = UINT64_C(1) << (rb->stamp.block_log2 > 20 ? rb->stamp.block_log2 : 20);
    const uint64_t share = rbi_arena_bytes(&rb->arena) / TRIM_SHARE / piece, due = share ? share : 1;
    const uint64_t pieces = due < TRIM_PIECES ? due : TRIM_PIECES;
    const uint64_t interval_ns = TRIM_NS / due * pieces;
    rbi_store_relaxed64(&rb->next_trim_ns, (uint64_t)now_ns + interval_ns);
    if (rb->stamp.flags & RINGBUF_KEEP_WARM || !rbi_arena_may_trim(&rb->arena, (uint64_t)now_ns, interval_ns)) return;
    rbi_segment_trim(rb, rb->idle_s, pieces);
}

/** Go to sleep once, announced and looked again.  E_TIMEOUT means only that it is time to look. */
static ringbuf_status sleep_once(ringbuf *rb, const struct rbi_waiting *waiting, void *call, int64_t now_ns, int64_t deadline_ns)
{
    uint32_t key = rbi_event_announce(waiting->event);
    ringbuf_status status = waiting->attempt(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    if (rbi_handle_is_closed(rb)) return RINGBUF_E_CLOSED; /* [T5], announced before */
    if (rbi_handle_is_lost(rb)) return RINGBUF_E_CORRUPT;  /* nobody will ever wake us */
    if (rbi_handle_is_stale(rb)) return RINGBUF_E_INTR;    /* our number may be another's: begin again, as another participant */
    rbi_own_add64(&rbi_registry_me(&rb->registry)->sleeps, 1);
    int64_t until_ns = rbi_registry_sleeps_until(&rb->registry, now_ns, deadline_ns);
    if (rbi_load_relaxed64(&rb->stuck_at) && now_ns + RBI_STUCK_NS < until_ns) until_ns = now_ns + RBI_STUCK_NS;
    /* A call that waits for room takes and renews turns, sees those of others lapse, and looks for pages that others have freed. */
    if (waiting->event == &rb->header->room && now_ns + ROOM_LOOK_NS < until_ns) until_ns = now_ns + ROOM_LOOK_NS;
    ringbuf_status slept = rbi_event_sleep(waiting->event, key, until_ns);
    status = waiting->attempt(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    if (rbi_handle_is_closed(rb)) return RINGBUF_E_CLOSED;
    return slept == RINGBUF_E_INTR ? RINGBUF_E_INTR : RINGBUF_E_TIMEOUT;
}

ringbuf_status rbi_wait_until(ringbuf *rb, const struct rbi_waiting *waiting, void *call, int64_t deadline_ns)
{
    int64_t now_ns = rbi_monotonic_ns();
    if (deadline_ns < 0) {
        int64_t until_ns = now_ns + (deadline_ns > -LOOK_MOST_NS ? -deadline_ns : LOOK_MOST_NS);
        if (processors_of_ours() == 1 || !look_until(rb, waiting, call, until_ns)) return RINGBUF_E_TIMEOUT;
        return waiting->attempt(rb, call);
    }
    /* A poll, too, must not report full or empty for ever because of a dead one. */
    const int64_t start_ns = now_ns;
    rbi_trim_if_due(rb, now_ns);
    bool waits = deadline_ns > now_ns;
    /* A long wait that comes in slices, for whoever has to look at something else now and then, goes on sleeping at once. */
    bool hopes = waits && !rbi_load_relaxed32(&waiting->patience->in_vain); /* relaxed: a guess */
    if ((waits ? watch_if_due(rb, now_ns, !hopes) : recover_by_the_way(rb, now_ns)) || (hopes && spin(rb, waiting, call, now_ns, deadline_ns))) {
        ringbuf_status status = waiting->attempt(rb, call);
        if (status != RINGBUF_E_TIMEOUT) {
            learn(waiting, 0);
            return status;
        }
    }
    bool slept = false;
    ringbuf_status status = RINGBUF_E_TIMEOUT;
    for (int turn = 0; turn < YIELDS && hopes; turn++) {
        rbi_yield();
        if (!waiting->may_succeed(rb, call)) continue;
        status = waiting->attempt(rb, call);
        if (status != RINGBUF_E_TIMEOUT) return status;
    }
    while (status == RINGBUF_E_TIMEOUT && (now_ns = rbi_monotonic_ns()) < deadline_ns) {
        status = sleep_once(rb, waiting, call, now_ns, deadline_ns);
        slept = true;
        if (status != RINGBUF_E_TIMEOUT) break;
        now_ns = rbi_monotonic_ns();
        rbi_trim_if_due(rb, now_ns);
        if (watch_if_due(rb, now_ns, false)) status = waiting->attempt(rb, call);
    }
    if (slept) {
        learn(waiting, rbi_monotonic_ns() - start_ns);
        bool in_vain = status == RINGBUF_E_TIMEOUT;
        if (in_vain != rbi_load_relaxed32(&waiting->patience->in_vain)) rbi_store_relaxed32(&waiting->patience->in_vain, in_vain); /* a guess */
        if (waiting->more) rbi_event_leave(waiting->event);
        if (waiting->more && waiting->more(rb)) rbi_event_wake_one(waiting->event);
    }
    return status;
}

/* ---- waiting for pages ---- */

/** A call that has found no memory for pages in the file system, and would have all else. */
struct pages_call {
    const struct rbi_waiting *waiting;
    void *call;
    uint64_t own_runs;
    int64_t next_ns; /* it tries again no earlier, unless there are pages to be seen */
    bool blind;      /* what is to be seen did not help, for the file system does not take it back */
};

/** Whether something of this queue can still give pages back when it comes to its end: a run other than the call's own, or a message. */
static bool may_free_pages(ringbuf *rb, uint64_t own_runs)
{
    uint64_t items = 0, runs = 0;
    if (rbi_ring_count(&rb->ring, &items) == RBI_RING_OK && items) return true;
    if (!rbi_arena_is_used(&rb->arena)) return false;
    struct rbi_arena_census census;
    rbi_arena_count(&rb->arena, &census);
    for (int kind = 0; kind < RBI_BLOCK_REST; kind++) runs += census.runs[kind];
    return runs > own_runs;
}

static bool pages_to_be_seen(ringbuf *rb, void *context)
{
    const struct pages_call *pages = context;
    return (!pages->blind && rbi_arena_has_spare_pages(&rb->arena)) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** RINGBUF_E_TIMEOUT: there are no pages yet.  _NO_SPACE: and there will be none.  _BUSY: there are, and the attempt wants something else. */
static ringbuf_status attempt_with_pages(ringbuf *rb, void *context)
{
    struct pages_call *pages = context;
    /* An attempt that fails takes blocks for a moment and wakes those that may have missed them.  If each wake made another attempt, two
     * such calls would wake each other for ever.  But it leaves no free block with pages. */
    if (rbi_monotonic_ns() < pages->next_ns && !pages_to_be_seen(rb, pages)) return RINGBUF_E_TIMEOUT;
    ringbuf_status status = pages->waiting->attempt(rb, pages->call);
    /* Once more: what was in use may have come to its end between the attempt and the look. */
    if (status == RINGBUF_E_NO_SPACE && !may_free_pages(rb, pages->own_runs)) {
        status = pages->waiting->attempt(rb, pages->call);
        if (status == RINGBUF_E_NO_SPACE) return status;
    }
    pages->next_ns = rbi_monotonic_ns() + ROOM_LOOK_NS;
    pages->blind = rbi_arena_has_spare_pages(&rb->arena);
    if (status == RINGBUF_E_NO_SPACE) return RINGBUF_E_TIMEOUT;
    return status == RINGBUF_E_TIMEOUT ? RINGBUF_E_BUSY : status;
}

ringbuf_status rbi_wait_for_pages_too(ringbuf *rb, const struct rbi_waiting *waiting, void *call, ringbuf_status status, uint64_t own_runs,
                                      int64_t deadline_ns)
{
    for (;;) {
        if (status == RINGBUF_E_TIMEOUT) status = rbi_wait_until(rb, waiting, call, deadline_ns);
        if (status != RINGBUF_E_NO_SPACE || deadline_ns <= rbi_monotonic_ns()) return status;
        /* Pages become free when runs do, so it sleeps with those that wait for room, whatever it waited for before. */
        struct pages_call pages = {.waiting = waiting, .call = call, .own_runs = own_runs};
        struct rbi_waiting room = {&rb->header->room, &rb->room_patience, waiting->moved, attempt_with_pages, pages_to_be_seen, NULL};
        status = attempt_with_pages(rb, &pages);
        if (status == RINGBUF_E_TIMEOUT) {
            status = rbi_wait_until(rb, &room, &pages, deadline_ns);
            if (status == RINGBUF_E_TIMEOUT) return RINGBUF_E_NO_SPACE;
        }
        if (status == RINGBUF_E_NO_SPACE) return status;
        if (status == RINGBUF_E_BUSY) status = RINGBUF_E_TIMEOUT;
    }
}
