/* registry.c — floor 2: participants and recovery.  registry.h tells the idea; this file the order of the steps.
 *
 * Join:    lock the byte -> write the entry -> state = in use -> raise participants_high.
 *          Death before `state`: the entry is free, the lock gone.  After it: in use without a lock, that is, dead.
 * Recover: lock the byte -> arena (arena.c) -> ring (ring.c) -> wake everybody -> forgive its tasks -> entry free -> unlock.
 *          Each step may be done twice: a death in between leaves the entry in use and its lock free, and the next one begins anew.
 * Leave:   arena, ring (what it took goes back) -> entry free -> unlock.
 *
 * Everybody is woken because the dead one may have swallowed a wake, and because its void claims may make room. */
#include "registry.h"

#include "wait.h"

#include <string.h>

enum { ENTRY_FREE = 0, ENTRY_USED = 1 };

uint32_t rbi_registry_high(const struct rbi_registry *registry)
{
    uint32_t high = rbi_load_total32(&registry->header->participants_high); /* [E5 entry] */
    return high <= registry->max_participants ? high : registry->max_participants;
}

static int64_t owed(const struct rbi_participant *entry)
{
    /* relaxed: whoever needs an order with the ring has it through slot words; see ringbuf_join */
    return (int64_t)(rbi_load_relaxed64(&entry->gets) - rbi_load_relaxed64(&entry->done) -
                     rbi_load_relaxed64(&entry->forgiven));
}

uint64_t rbi_registry_gets_owed(const struct rbi_registry *registry)
{
    uint64_t sum = 0;
    for (uint32_t i = 0, high = rbi_registry_high(registry); i < high; i++)
        /* acquire, so that none is read before the caller's looks at the done and the ring; see queue.c */
        sum += rbi_load_acquire64(&registry->entries[i].gets) - rbi_load_acquire64(&registry->entries[i].forgiven);
    return sum;
}

uint64_t rbi_registry_done(const struct rbi_registry *registry)
{
    uint64_t sum = 0;
    for (uint32_t i = 0, high = rbi_registry_high(registry); i < high; i++)
        sum += rbi_load_total64(&registry->entries[i].done); /* [E6 done] pairs with mark_done() in queue.c */
    return sum;
}

/** Messages that the dead one had got and not marked done: nobody else will mark them.  Doing it twice changes nothing. */
static void forgive(const struct rbi_registry *registry, struct rbi_participant *entry)
{
    int64_t before = (int64_t)entry->owed_before > 0 ? (int64_t)entry->owed_before : 0;
    int64_t lost = (int64_t)((uint64_t)owed(entry) - (uint64_t)before); /* of absurd counters, anything: it is bounded below */
    /* Others may have marked them for it: no more than is owed by all together. */
    int64_t owed_by_all = (int64_t)(rbi_registry_gets_owed(registry) - rbi_registry_done(registry));
    if (lost > owed_by_all) lost = owed_by_all;
    if (lost > 0) rbi_store_total64(&entry->forgiven, rbi_load_relaxed64(&entry->forgiven) + (uint64_t)lost);
}

/** Undo what participant `number` has left half done: the arena first, which needs the ring as it was left. */
static ringbuf_status undo(struct rbi_registry *registry, uint32_t number, bool keep)
{
    uint64_t now_s = (uint64_t)rbi_monotonic_ns() / 1000000000;
    enum rbi_arena_outcome arena = rbi_arena_recover(registry->arena, registry->ring, number, keep, now_s);
    enum rbi_ring_outcome ring = rbi_ring_recover(registry->ring, number);
    rbi_event_wake_all(&registry->header->items);
    rbi_event_wake_all(&registry->header->space);
    rbi_event_wake_all(&registry->header->room);
    rbi_event_wake_all(&registry->header->tasks);
    return arena == RBI_ARENA_OK && ring == RBI_RING_OK ? RINGBUF_OK : RINGBUF_E_CORRUPT;
}

/** Clean up after participant `number`, whose lock we hold. */
static ringbuf_status recover_one(struct rbi_registry *registry, uint32_t number)
{
    struct rbi_participant *entry = &registry->entries[number - 1];
    RBI_POINT(recovery_locked);
    ringbuf_status status = undo(registry, number, false);
    if (status != RINGBUF_OK) return status;
    RBI_POINT(recovery_woke);
    forgive(registry, entry);
    RBI_POINT(recovery_forgave);
    rbi_event_wake_all(&registry->header->tasks);
    /* relaxed: a statistic */
    rbi_add_relaxed64(&registry->header->recoveries, 1);
    rbi_store_total32(&entry->state, ENTRY_FREE); /* [E5 entry] */
    RBI_POINT(recovery_freed);
    return RINGBUF_OK;
}

ringbuf_status rbi_registry_recover(struct rbi_registry *registry, uint64_t *recovered)
{
    *recovered = 0;
    uint32_t high = rbi_registry_high(registry);
    for (uint32_t number = 1; number <= high; number++) {
        if (number == registry->self) continue;
        const struct rbi_participant *entry = &registry->entries[number - 1];
        if (rbi_load_total32(&entry->state) == ENTRY_FREE) continue; /* [E5 entry] */
        if (rbi_lock_try(registry->fd, RBI_LOCK_OWNER + number, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) continue; /* it lives */
        ringbuf_status status = RINGBUF_OK;
        /* Looked at again under the lock: another recoverer, or its own leave, may have been first. */
        if (rbi_load_total32(&entry->state) != ENTRY_FREE) {
            status = recover_one(registry, number);
            if (status == RINGBUF_OK) ++*recovered;
        }
        rbi_lock_drop(registry->fd, RBI_LOCK_OWNER + number);
        if (status != RINGBUF_OK) return status;
    }
    return RINGBUF_OK;
}

/** The entry's page must exist before it is touched. */
static ringbuf_status reserve_entry(const struct rbi_registry *registry, uint32_t number)
{
    if (number <= rbi_registry_high(registry)) return RINGBUF_OK;
    uint64_t offset = RBI_HEADER_BYTES + (uint64_t)(number - 1) * sizeof(struct rbi_participant);
    return rbi_file_reserve(registry->fd, offset, sizeof(struct rbi_participant));
}

static void raise_high(struct rbi_registry *registry, uint32_t number)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&registry->header->participants_high);
        if (seen >= number) return;
        if (rbi_cas_total32(&registry->header->participants_high, seen, number)) return; /* [E5 entry] */
    }
}

static void write_entry(struct rbi_participant *entry, const char *label)
{
    entry->pid = rbi_pid();
    entry->attached_ns = rbi_realtime_ns();
    memset(entry->label, 0, sizeof entry->label);
    if (label) strncpy((char *)entry->label, label, sizeof entry->label - 1);
    else rbi_process_name((char *)entry->label, sizeof entry->label);
    /* relaxed: nobody writes these while the number is free */
    entry->puts_before = rbi_load_relaxed64(&entry->puts);
    entry->gets_before = rbi_load_relaxed64(&entry->gets);
    entry->owed_before = (uint64_t)owed(entry);
}

ringbuf_status rbi_registry_join(struct rbi_registry *registry, const char *label)
{
    for (uint32_t number = 1; number <= registry->max_participants; number++) {
        struct rbi_participant *entry = &registry->entries[number - 1];
        if (number <= rbi_registry_high(registry) && rbi_load_total32(&entry->state) != ENTRY_FREE) continue; /* [E5] */
        ringbuf_status status = rbi_lock_try(registry->fd, RBI_LOCK_OWNER + number, RBI_LOCK_EXCLUSIVE);
        if (status == RINGBUF_E_BUSY) continue; /* somebody is joining or leaving right there */
        if (status != RINGBUF_OK) return status;
        RBI_POINT(entry_locked);
        status = reserve_entry(registry, number);
        /* In use although its lock was free: its process died since we looked. */
        if (status == RINGBUF_OK && rbi_load_total32(&entry->state) != ENTRY_FREE) status = recover_one(registry, number);
        if (status != RINGBUF_OK) {
            rbi_lock_drop(registry->fd, RBI_LOCK_OWNER + number);
            return status;
        }
        write_entry(entry, label);
        RBI_POINT(entry_written);
        rbi_store_total32(&entry->state, ENTRY_USED); /* [E5 entry] pairs with the load in rbi_registry_recover() */
        raise_high(registry, number);
        RBI_POINT(entry_published);
        registry->self = number;
        registry->attached_ns = entry->attached_ns;
        return RINGBUF_OK;
    }
    return RINGBUF_E_CROWDED;
}

bool rbi_registry_is_me(const struct rbi_registry *registry)
{
    const struct rbi_participant *entry = rbi_registry_me(registry);
    return rbi_load_total32(&entry->state) == ENTRY_USED && entry->pid == rbi_pid() && entry->attached_ns == registry->attached_ns; /* [E5] */
}

void rbi_registry_give_back(struct rbi_registry *registry, bool keep)
{
    if (registry->self) undo(registry, registry->self, keep); /* a damaged queue cannot be left more orderly */
}

void rbi_registry_leave(struct rbi_registry *registry)
{
    if (registry->self == 0) return;
    rbi_registry_give_back(registry, false);
    rbi_store_total32(&rbi_registry_me(registry)->state, ENTRY_FREE); /* [E5] */
    RBI_POINT(entry_freed);
    rbi_lock_drop(registry->fd, RBI_LOCK_OWNER + registry->self);
    RBI_POINT(entry_unlocked);
    registry->self = 0;
}
