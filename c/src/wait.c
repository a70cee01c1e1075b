/* wait.c — floor 2: event words around a futex.  wait.h tells the protocol and why no wake is lost.
 *
 * Knows nothing of rings or messages.  The futexes are shared between processes; a count beside the flag makes every wake change the
 * word, so that a sleep on an old key ends at once. */
#include "wait.h"

#include <limits.h>

enum { ONE_WAKE = 4 };

uint32_t rbi_event_announce(struct rbi_event *event)
{
    for (;;) {
        uint32_t word = rbi_load_total32(&event->word);
        /* Also when the flag is set already: the announcement must be a write of ours in the total order, after which we look
         * again, or we could read an old ring and an old flag that a waker is about to clear. */
        if (rbi_cas_total32(&event->word, word, word | RBI_WAITERS)) { /* [T1] [T2] [T3] [T4] [T5] [E10 room] */
            RBI_POINT(waiter_announced);
            return word | RBI_WAITERS;
        }
    }
}

ringbuf_status rbi_event_sleep(struct rbi_event *event, uint32_t key, int64_t until_ns)
{
    ringbuf_status status = rbi_futex_wait(&event->word, key, until_ns);
    RBI_POINT(waiter_woke);
    return status;
}

/** Change the word, so that nobody goes to sleep on its old value any more, and clear the flag. */
static void bump(struct rbi_event *event)
{
    for (;;) {
        uint32_t word = rbi_load_total32(&event->word);
        if (rbi_cas_total32(&event->word, word, (word + ONE_WAKE) & ~(uint32_t)RBI_WAITERS)) break;
    }
    RBI_POINT(event_bumped);
}

bool rbi_event_wake_one(struct rbi_event *event)
{
    uint32_t word = rbi_load_total32(&event->word); /* [T1] [T2] */
    if (!(word & (RBI_WAITERS | RBI_LISTENERS))) return false;
    /* Losing can mean that another waker has just done it, or that the other flag was changed. */
    for (uint32_t seen = word; seen & RBI_WAITERS; seen = rbi_load_total32(&event->word)) {
        if (!rbi_cas_total32(&event->word, seen, (seen + ONE_WAKE) & ~(uint32_t)RBI_WAITERS)) continue;
        RBI_POINT(event_bumped);
        rbi_futex_wake(&event->word, 1);
        break;
    }
    return word & RBI_LISTENERS;
}

void rbi_event_leave(struct rbi_event *event) { rbi_event_announce(event); }

bool rbi_event_wake_all_if_any(struct rbi_event *event)
{
    /* [E10 room] A write, though it changes nothing: it and the announcement are in one order.  If it comes second, it sees the flag;
     * if first, the announcer sees what we have freed. */
    uint32_t word = rbi_add_total32(&event->word, 0);
    if (word & RBI_WAITERS) rbi_event_wake_all(event);
    return word & RBI_LISTENERS;
}

bool rbi_event_wake_all(struct rbi_event *event)
{
    bump(event);
    rbi_futex_wake(&event->word, INT_MAX);
    return rbi_event_has_listeners(event);
}

void rbi_event_listen(struct rbi_event *event)
{
    for (;;) {
        uint32_t word = rbi_load_total32(&event->word);
        /* Also when the flag is set already, as in rbi_event_announce(). */
        if (rbi_cas_total32(&event->word, word, word | RBI_LISTENERS)) return; /* [T1] [T2] [T4] [E10 room] */
    }
}

void rbi_event_unlisten(struct rbi_event *event)
{
    for (;;) {
        uint32_t word = rbi_load_total32(&event->word);
        if (!(word & RBI_LISTENERS) || rbi_cas_total32(&event->word, word, word & ~(uint32_t)RBI_LISTENERS)) return;
    }
}
