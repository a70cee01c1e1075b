/* waiting.c — floor 4: waiting until an attempt succeeds.
 *
 * It looks again for a moment, announces itself, looks again, sleeps, and every LIVENESS_NS looks whether somebody died.
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
    LIVENESS_NS = 100000000,     /* sleepers look for the dead this often */
    POLL_RECOVERY_NS = 10000000, /* calls that do not sleep look at most this often */
    TRIM_NS = 2000000000,        /* the arena's idle memory is looked for at most this often, */
    TRIM_MORE_NS = 10000000,     /* or so soon, if there was more of it than */
    TRIM_PIECES = 8,
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

/** Look for the dead if nobody in this process has lately.  Returns whether somebody was cleaned up after. */
static bool recover_if_due(ringbuf *rb, int64_t now_ns, int64_t interval_ns)
{
    /* relaxed: it only limits how often */
    if ((uint64_t)now_ns < rbi_load_relaxed64(&rb->next_recovery_ns)) return false;
    rbi_store_relaxed64(&rb->next_recovery_ns, (uint64_t)(now_ns + interval_ns));
    uint64_t recovered = 0;
    rbi_segment_recover(rb, &recovered);
    return recovered > 0;
}

void rbi_trim_if_due(ringbuf *rb, int64_t now_ns)
{
    /* relaxed: it only limits how often */
    if (!rbi_arena_is_used(&rb->arena) || (uint64_t)now_ns < rbi_load_relaxed64(&rb->next_trim_ns)) return;
    /* Little at a time: this is somebody's ack, or get. */
    bool ended = rbi_segment_trim(rb, rb->idle_s, TRIM_PIECES);
    rbi_store_relaxed64(&rb->next_trim_ns, (uint64_t)now_ns + (ended ? TRIM_NS : TRIM_MORE_NS));
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
    int64_t look_ns = now_ns + (rbi_load_relaxed64(&rb->stuck_at) ? RBI_STUCK_NS : LIVENESS_NS);
    ringbuf_status slept = rbi_event_sleep(waiting->event, key, deadline_ns < look_ns ? deadline_ns : look_ns);
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
    if (recover_if_due(rb, now_ns, POLL_RECOVERY_NS) || (deadline_ns > now_ns && spin(rb, waiting, call, now_ns, deadline_ns))) {
        ringbuf_status status = waiting->attempt(rb, call);
        if (status != RINGBUF_E_TIMEOUT) {
            learn(waiting, 0);
            return status;
        }
    }
    bool slept = false;
    ringbuf_status status = RINGBUF_E_TIMEOUT;
    for (int turn = 0; turn < YIELDS && deadline_ns > now_ns; turn++) {
        rbi_yield();
        if (!waiting->may_succeed(rb, call)) continue;
        status = waiting->attempt(rb, call);
        if (status != RINGBUF_E_TIMEOUT) return status;
    }
    while (status == RINGBUF_E_TIMEOUT && (now_ns = rbi_monotonic_ns()) < deadline_ns) {
        status = sleep_once(rb, waiting, call, now_ns, deadline_ns);
        slept = true;
        if (status == RINGBUF_E_TIMEOUT) rbi_trim_if_due(rb, rbi_monotonic_ns());
        if (status == RINGBUF_E_TIMEOUT && recover_if_due(rb, rbi_monotonic_ns(), LIVENESS_NS / 2))
            status = waiting->attempt(rb, call);
    }
    if (slept) {
        learn(waiting, rbi_monotonic_ns() - start_ns);
        if (waiting->more) rbi_event_leave(waiting->event);
        if (waiting->more && waiting->more(rb)) rbi_event_wake_one(waiting->event);
    }
    return status;
}
