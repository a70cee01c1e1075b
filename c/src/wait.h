/* wait.h — floor 2: sleeping until something may have happened, and waking those who do.
 *
 * An event word counts wakes and has two flags:
 *   WAITERS   somebody may be asleep.  May stay set when nobody is (costs one wake).  Must not be clear while somebody has announced
 *             himself and nobody has been woken since (costs a sleep until the next liveness check).
 *   LISTENERS somebody waits for this by a file descriptor (ready.c), and that is not to be seen there yet.
 *
 * A waiter:     key = rbi_event_announce(event);  look again;  if still nothing: rbi_event_sleep(event, key, until).
 * A publisher:  change the ring in total order;  rbi_event_wake_one(event).
 * The announcement and the publication are both in the total order, and each side then looks at the other's: one of the two sees the
 * other ([T1] items, [T2] space, [T3] shutdown, [T4] tasks).  A wake therefore meets a sleeper, or a word that has changed so that the
 * sleep ends at once, or a waiter that has looked again and found what was published.
 *
 * Waking costs the waker a system call, so the flag is cleared by whoever wakes: those who publish before the sleeper is up have
 * nothing to do.  In exchange a waiter that has slept sets the flag again when it leaves, for others may still be asleep, and then
 * looks whether there is more than it took; if so it passes the wake on, as a wake of its own (rbi_event_wake_one: the more may be its own
 * doing, as after a lane change, and then one that is about to sleep must not).  Both in the total order: a publisher that saw the
 * flag clear has published before that look.
 * If a woken one dies before it leaves, the others find out at their next liveness check, which bounds every sleep.
 */
#ifndef RBI_WAIT_H
#define RBI_WAIT_H

#include "layout.h"
#include "platform.h"

enum { RBI_WAITERS = 1, RBI_LISTENERS = 2 };

/** Announce a sleeper; returns the key to sleep on.  After this, look again before sleeping. */
uint32_t rbi_event_announce(struct rbi_event *event);

/** Sleep until woken, or `until_ns`.  RINGBUF_OK, _TIMEOUT, _INTR. */
ringbuf_status rbi_event_sleep(struct rbi_event *event, uint32_t key, int64_t until_ns);

/* The next three return whether there are listeners, who are then to be told: rbi_wake_items() and its like in ready.h do both. */

/** Something one waiter may use has happened: wake one if any is announced.  One load when none is. */
bool rbi_event_wake_one(struct rbi_event *event);

/** Wake everybody, if anybody is announced.  For what may suit all, some or none of those who wait, as room in the arena. */
bool rbi_event_wake_all_if_any(struct rbi_event *event);

/** Wake everybody, e.g. after shutdown. */
bool rbi_event_wake_all(struct rbi_event *event);

/** Called by a waiter that has slept and goes: others may still be asleep.  After this, look whether there is more, and if so wake one. */
void rbi_event_leave(struct rbi_event *event);

/** Set the listeners' flag, by a write also if it is set; and clear it. */
void rbi_event_listen(struct rbi_event *event);
void rbi_event_unlisten(struct rbi_event *event);

/** Whether somebody may be asleep. */
static inline bool rbi_event_has_waiters(const struct rbi_event *event)
{
    return rbi_load_total32(&event->word) & RBI_WAITERS; /* [T4] */
}

/** Whether anybody may want to be told. */
static inline bool rbi_event_is_heard(const struct rbi_event *event)
{
    return rbi_load_total32(&event->word) & (RBI_WAITERS | RBI_LISTENERS); /* [T4] */
}

static inline bool rbi_event_has_listeners(const struct rbi_event *event)
{
    return rbi_load_total32(&event->word) & RBI_LISTENERS;
}

#endif
