/* registry.h — floor 2: who is attached, who died, and what their death left half done.
 *
 * A participant is one process's attachment: a number (the `owner` of slot words), an entry in the segment, and an exclusive kernel
 * lock on the number's byte of the file.  The lock is the liveness: the kernel drops it at death, whatever the cause, and needs no
 * pid for it (containers, reuse, zombies).  A stopped process keeps it, so it is alive and nothing of it is touched.
 *
 * The lock is taken before the entry is written, and dropped after the entry is freed.  So: entry in use and lock free = dead.
 * Holding a dead one's lock while recovering makes recovery exclusive, and a recoverer's own death leaves the entry for the next.
 * A number is used again only after its entry was freed, which is the last step of recovery. */
#ifndef RBI_REGISTRY_H
#define RBI_REGISTRY_H

#include "arena.h"
#include "files.h"

/** What a handle knows of the looks after the dead, its own and those of others (registry.c).  Guesses, which several threads may adjust. */
struct rbi_vigil {
    rbi_atomic64 seen_ns;        /* the header's looked_ns when it was last read, */
    rbi_atomic64 last_ns;        /* and when, by our clock, that look began, as far as we can know */
    rbi_atomic64 own_ns;         /* when our own last look began (at first, when we came), */
    rbi_atomic64 cost_ns;        /* and what it cost */
    rbi_atomic64 wakes_ns;       /* who waits on this handle wakes up by itself at this time */
    rbi_atomic64 rest_ns;        /* and about so long after that the next time */
    rbi_atomic64 random;
};

/** Why to look for the dead. */
enum rbi_occasion { RBI_WAITING, RBI_POLLING, RBI_ATTACHING };

struct rbi_registry {
    struct rbi_header *header;
    struct rbi_participant *entries;
    struct rbi_ring *ring;
    struct rbi_arena *arena;
    _Atomic rbi_fd fd;           /* changes when the file had to be opened anew (segment.c) */
    uint32_t max_participants;
    uint32_t self;               /* our number; 0: not a participant (yet) */
    struct rbi_vigil vigil;
    uint64_t attached_ns;        /* as in our entry */
};

/** Become a participant.  RINGBUF_OK, RINGBUF_E_CROWDED, or what reserving the entry's page or locking says.
 *  Callers serialise calls on one registry. */
ringbuf_status rbi_registry_join(struct rbi_registry *registry, const char *label);

/** Give back what we have taken; with `keep`, what we hold and have reserved stays ours.  No call of ours is under way. */
void rbi_registry_give_back(struct rbi_registry *registry, bool keep);

/** Give back what we hold, free our entry.  Nobody acts in our name any more.  Does nothing if we are no participant. */
void rbi_registry_leave(struct rbi_registry *registry);

/** Look for participants that died, all of them, and clean up after those.  *recovered counts them.  RINGBUF_OK or RINGBUF_E_CORRUPT.
 *  Callers serialise calls on one registry (locks of one open file do not exclude its own threads); processes may all call it. */
ringbuf_status rbi_registry_recover(struct rbi_registry *registry, uint64_t *recovered);

/** The same, unless the last look, whoever took it, is recent enough for this occasion. */
ringbuf_status rbi_registry_recover_if_due(struct rbi_registry *registry, int64_t now_ns, enum rbi_occasion occasion, uint64_t *recovered);

/** It is vigil.wakes_ns: the same, for one that waits, and choose when to wake up again. */
ringbuf_status rbi_registry_watch(struct rbi_registry *registry, int64_t now_ns, uint64_t *recovered);

/** Whether a handle that waits is to do what it does when it wakes up by itself; `is_up`: it is up anyway, so a little early will do. */
bool rbi_registry_wakes_now(const struct rbi_registry *registry, int64_t now_ns, bool is_up);

/** Until when it sleeps. */
int64_t rbi_registry_sleeps_until(const struct rbi_registry *registry, int64_t now_ns, int64_t deadline_ns);

/** Only choose when to wake up again. */
void rbi_registry_rest(struct rbi_registry *registry, int64_t now_ns);

/** Entries [0, here) may be in use; checked. */
uint32_t rbi_registry_high(const struct rbi_registry *registry);

/** Our own entry. */
static inline struct rbi_participant *rbi_registry_me(const struct rbi_registry *registry)
{
    return &registry->entries[registry->self - 1];
}

/** Whether the entry with our number still is the one that we have made: nobody has taken us for dead. */
bool rbi_registry_is_me(const struct rbi_registry *registry);

/** Tasks marked done, summed over everybody; a snapshot. */
uint64_t rbi_registry_done(const struct rbi_registry *registry);

/** Gets whose task was or may yet be marked done, summed over everybody; a snapshot.  See queue.c on the order of reading. */
uint64_t rbi_registry_gets_owed(const struct rbi_registry *registry);

#endif
