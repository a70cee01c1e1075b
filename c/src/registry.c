/* registry.c — floor 2: participants, recovery, and when to look for the dead.  registry.h tells the idea; this file the order of the steps.
 *
 * Join:    lock the byte -> write the entry -> state = in use -> raise participants_high.
 *          Death before `state`: the entry is free, the lock gone.  After it: in use without a lock, that is, dead.
 * Recover: of each entry in use whose byte can be locked: lock it -> its turn at the arena (turn.c) -> arena (arena.c) -> ring (ring.c)
 *          -> forgive its tasks.  Then, once for all of them: wake every sleeper.  Then of each: entry free -> unlock.
 *          Each step may be done twice: a death in between leaves entries in use and their locks free, and the next look begins anew.
 * Leave:   arena, ring (what it took goes back) -> wake every sleeper, if something went back -> entry free -> unlock.
 *
 * After a death every sleeper is woken, because the dead participant may have swallowed a wake, and because its void claims may make room.
 * That is a herd, so it comes once a look and not once a death.  A participant that leaves is in no call and passed on what wakes it had
 * got (waiting.c), so it wakes others only if it gives something back.
 *
 * When to look.  A look asks the kernel about the lock of every participant, and each ask walks all of the file's locks: its cost grows
 * with the square of their number (2 us for 2, 7 ms for 1,000).  So one look serves all that wait:
 *
 *   looked_ns   in the header is when the last look began.  A waiter that finds it older than the period claims the next look by a
 *               compare-and-swap of that word, looks, and writes down what it cost.  Of all that find it due at once, one looks.
 *   period      100 ms, or 200 times the cost if that is more: however many wait, looks take 0.5 % of one processor.  The cost is processor
 *               time, not time, so that a look that was preempted does not count for more.  It is that of a look that found nobody dead.
 *
 * The claim is a time and nothing else.  Nobody holds it: a looker that dies or is stopped in its look leaves a look that becomes due again
 * one period after it began, and the entries it had not come to as they were.  A look that meets a lock held by another looker takes that
 * participant for alive, and the next look finds it again.
 *
 * The words are hints, so their order with others does not matter (relaxed, and a compare-and-swap only so that one of several claims
 * succeeds), and what they say is believed only as far as it harms nobody:
 *   - A time that cannot be right, because it lies in the future or before one that was seen earlier, was written by a clock of
 *     another time namespace, or by a peer that means harm.  That it has changed means that somebody looked since this handle last saw it; so it
 *     counts as now, when it is first seen, and ages by this handle's own clock.
 *   - A cost of more than 50 ms is not believed: the period is at most 10 s.
 *   - A peer that writes new times for ever, and does not look, is not believed for ever either: a handle that waits looks by itself, whatever the
 *     words say, once in 4 periods for each participant.  (Periods by the cost that it has measured itself.)  If all looks are shared
 *     evenly, each of n waiters looks once in n periods anyway, so this adds a quarter at most.
 *
 * When to wake up for it.  A handle that waits wakes up by itself for three things: to look, if that is due; to see what has become of the file;
 * and to attempt what it waits for, in case that another one was woken for it and died.  It does so as often as others leave to it.  It
 * rests for a time of its own: twice as long after each time that it finds that a look is not due yet, 100 ms again once it finds one
 * overdue by half a period, for then nobody else is there to look.  A rest is at most 100 ms for each participant, up to 2 s; from 500
 * participants on 4 ms for each, up to 4 s; half of it is random, so that those who began together do not stay together.  So one
 * waiter wakes up exactly when the next look is due; a few wake up some 20 times a second together; a thousand wake up 300 times a second
 * together and not 10,000 times, and some waiter is always up in time.  If all waiters but one are killed at once, the one that is
 * left finds that out at the end of its rest.
 *
 * A wait that its caller has cut into slices (port.c) would wake up at the end of each slice as well.  So of a slice's end and a rest's
 * end that are close to each other, the earlier one waits for the later, where others look as well.
 *
 * Polls and attachments look more often than waiters, so that they do not depend on them, but not when the last look was less
 * than 20 of its costs ago: a thousand processes that attach one after the other, or poll all the time, take 5 % of one processor for it.
 * With few participants, none of this is worth it: each attachment looks, and polls do every 10 ms of their handle. */
#include "registry.h"

#include "wait.h"

#include <string.h>

#ifndef RBI_JITTER
#define RBI_JITTER 1 /* the explorer says 0: half of a rest is not random, but over */
#endif

enum { ENTRY_FREE = 0, ENTRY_USED = 1 };

enum {
    FEW = 16,                   /* so many participants are asked in 15 us */
    PERIOD_NS = 100000000,      /* from one look to the next, */
    PERIOD_COSTS = 200,         /* or so many times what one costs */
    POLL_PERIOD_NS = 10000000,  /* the same for calls that do not sleep */
    POLL_COSTS = 20,
    COST_MOST_NS = 50000000,    /* more is not believed */
    BACKSTOP = 4,               /* periods for each participant after which a handle looks by itself */
    REST_LEAST_NS = 100000000,  /* also what each participant adds to the longest rest */
    REST_LONG_NS = 2000000000,  /* up to here; */
    REST_MORE_NS = 4000000,     /* this is what each adds in a crowd, */
};

static const uint64_t rest_most_ns = 4000000000; /* up to here */

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
        sum += rbi_load_total64(&registry->entries[i].done); /* [E6 done] pairs with rbi_mark_done() in queue.c */
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

/** End its turn at the arena, if it has one.  By a CAS, for another may take it at any moment: a turn that is not renewed lapses. */
static void end_turn(struct rbi_header *header, uint32_t number)
{
    uint64_t window = rbi_load_total64(&header->turn.window);
    if (window && rbi_window_owner(window) == number) rbi_cas_total64(&header->turn.window, window, 0); /* [T9 window] */
    RBI_POINT(recovery_turn_ended);
}

/** Undo what participant `number` has left half done: the arena first, which needs the ring as it was left.  Wakes nobody. */
static ringbuf_status undo(struct rbi_registry *registry, uint32_t number, bool keep)
{
    uint64_t now_s = (uint64_t)rbi_monotonic_ns() / 1000000000;
    end_turn(registry->header, number); /* before the wake: what it set aside is there for all */
    enum rbi_arena_outcome arena = rbi_arena_recover(registry->arena, registry->ring, number, keep, now_s);
    enum rbi_ring_outcome ring = rbi_ring_recover(registry->ring, number);
    return arena == RBI_ARENA_OK && ring == RBI_RING_OK ? RINGBUF_OK : RINGBUF_E_CORRUPT;
}

static void wake_every_sleeper(const struct rbi_registry *registry)
{
    rbi_event_wake_all(&registry->header->items);
    rbi_event_wake_all(&registry->header->space);
    rbi_event_wake_all(&registry->header->room);
    rbi_event_wake_all(&registry->header->tasks);
}

/** The first part of a recovery: undo what the dead participant `number`, whose lock we hold, has left half done, and forgive its tasks. */
static ringbuf_status clean_up(struct rbi_registry *registry, uint32_t number)
{
    RBI_POINT(recovery_locked);
    ringbuf_status status = undo(registry, number, false);
    if (status != RINGBUF_OK) return status;
    forgive(registry, &registry->entries[number - 1]);
    RBI_POINT(recovery_forgave);
    return RINGBUF_OK;
}

/** The last part, after every sleeper was woken: its number may be used again. */
static void free_entry(struct rbi_registry *registry, uint32_t number)
{
    /* relaxed: a statistic */
    rbi_add_relaxed64(&registry->header->recoveries, 1);
    rbi_store_total32(&registry->entries[number - 1].state, ENTRY_FREE); /* [E5 entry] */
    RBI_POINT(recovery_freed);
}

/** Participants that were cleaned up after and whose locks are held until their entries are free. */
struct harvest {
    uint64_t numbers[RBI_OWNER_MAX / 64 + 1]; /* a bit each */
    uint64_t count;
};

/** Ask about every participant; clean up after those that died. */
static ringbuf_status ask_all(struct rbi_registry *registry, struct harvest *dead, uint64_t *met)
{
    uint32_t high = rbi_registry_high(registry);
    for (uint32_t number = 1; number <= high; number++) {
        const struct rbi_participant *entry = &registry->entries[number - 1];
        if (number != registry->self && rbi_load_total32(&entry->state) == ENTRY_FREE) continue; /* [E5 entry] */
        ++*met;
        if (number == registry->self || rbi_lock_is_held(registry->fd, RBI_LOCK_OWNER + number)) continue; /* it lives */
        if (rbi_lock_try(registry->fd, RBI_LOCK_OWNER + number, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) continue;
        ringbuf_status status = RINGBUF_OK;
        /* Looked at again under the lock: another recoverer, or its own leave, may have been first. */
        bool is_dead = rbi_load_total32(&entry->state) != ENTRY_FREE;
        if (is_dead) status = clean_up(registry, number);
        if (is_dead && status == RINGBUF_OK) {
            dead->numbers[number / 64] |= UINT64_C(1) << number % 64;
            dead->count++;
        } else {
            rbi_lock_drop(registry->fd, RBI_LOCK_OWNER + number);
        }
        if (status != RINGBUF_OK) return status;
    }
    return RINGBUF_OK;
}

/** Clean up after all that died.  A look that has begun: looked_ns says so. */
static ringbuf_status look(struct rbi_registry *registry, uint64_t *recovered)
{
    struct harvest dead = {.count = 0};
    struct rbi_watch *watch = &registry->header->watch;
    uint64_t met = 0;
    int64_t begin_ns = rbi_thread_ns();
    ringbuf_status status = ask_all(registry, &dead, &met);
    *recovered = dead.count;
    if (dead.count) {
        wake_every_sleeper(registry);
        RBI_POINT(recovery_woke);
        for (uint32_t number = 1; number <= RBI_OWNER_MAX; number++) {
            if (!(dead.numbers[number / 64] >> number % 64 & 1)) continue;
            free_entry(registry, number);
            rbi_lock_drop(registry->fd, RBI_LOCK_OWNER + number);
        }
    } else if (status == RINGBUF_OK) {
        /* relaxed: hints.  Written only if they say something else, for every waiter reads this line. */
        uint64_t cost = (uint64_t)(rbi_thread_ns() - begin_ns);
        rbi_store_relaxed64(&registry->vigil.cost_ns, cost);
        if (cost != rbi_load_relaxed64(&watch->cost_ns)) rbi_store_relaxed64(&watch->cost_ns, cost);
        if (met != rbi_load_relaxed64(&watch->participants)) rbi_store_relaxed64(&watch->participants, met);
    }
    RBI_POINT(look_ended);
    return status;
}

/** Our clock says `now_ns`, and a look of ours has just begun. */
static void note_own_look(struct rbi_registry *registry, uint64_t now_ns)
{
    rbi_store_relaxed64(&registry->vigil.seen_ns, now_ns); /* relaxed, as all of it: guesses */
    rbi_store_relaxed64(&registry->vigil.last_ns, now_ns);
    rbi_store_relaxed64(&registry->vigil.own_ns, now_ns);
    RBI_POINT(look_began);
}

ringbuf_status rbi_registry_recover(struct rbi_registry *registry, uint64_t *recovered)
{
    uint64_t now_ns = (uint64_t)rbi_monotonic_ns();
    rbi_store_relaxed64(&registry->header->watch.looked_ns, now_ns); /* relaxed: a hint */
    note_own_look(registry, now_ns);
    return look(registry, recovered);
}

/* ---- when to look ---- */

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/** How old the last look must be. */
static uint64_t period_of(const struct rbi_registry *registry, enum rbi_occasion occasion)
{
    uint64_t cost = smaller(rbi_load_relaxed64(&registry->header->watch.cost_ns), COST_MOST_NS); /* relaxed: a hint */
    if (occasion == RBI_WAITING) return larger(PERIOD_NS, cost * PERIOD_COSTS);
    if (rbi_registry_high(registry) <= FEW) return 0;
    return occasion == RBI_POLLING ? larger(POLL_PERIOD_NS, cost * POLL_COSTS) : cost * POLL_COSTS;
}

/** How long ago the last look began, as far as we can know; *seen_ns is what looked_ns said. */
static uint64_t age_of(struct rbi_registry *registry, uint64_t now_ns, uint64_t *seen_ns)
{
    struct rbi_vigil *vigil = &registry->vigil; /* relaxed, all of it: hints and guesses; see above */
    uint64_t last_ns = rbi_load_relaxed64(&vigil->last_ns);
    *seen_ns = rbi_load_relaxed64(&registry->header->watch.looked_ns);
    if (*seen_ns != rbi_load_relaxed64(&vigil->seen_ns)) {
        last_ns = *seen_ns <= now_ns && *seen_ns > last_ns ? *seen_ns : now_ns;
        rbi_store_relaxed64(&vigil->last_ns, last_ns);
        rbi_store_relaxed64(&vigil->seen_ns, *seen_ns);
    }
    return now_ns > last_ns ? now_ns - last_ns : 0;
}

/** Whether we have looked so long ago ourselves that what others say is not enough. */
static bool is_for_us(const struct rbi_registry *registry, uint64_t now_ns)
{
    const struct rbi_vigil *vigil = &registry->vigil; /* relaxed: guesses */
    uint64_t period = larger(PERIOD_NS, rbi_load_relaxed64(&vigil->cost_ns) * PERIOD_COSTS);
    uint64_t own_ns = rbi_load_relaxed64(&vigil->own_ns);
    return now_ns > own_ns && now_ns - own_ns >= period * BACKSTOP * larger(rbi_registry_high(registry), 1);
}

/** Look, if it is due and nobody else begins at this moment.  Returns how old the last look was. */
static uint64_t look_if_due(struct rbi_registry *registry, uint64_t now_ns, enum rbi_occasion occasion, ringbuf_status *status,
                            uint64_t *recovered)
{
    uint64_t seen_ns, age = age_of(registry, now_ns, &seen_ns);
    *recovered = 0;
    *status = RINGBUF_OK;
    if (age < period_of(registry, occasion) && !(occasion == RBI_WAITING && is_for_us(registry, now_ns))) return age;
    /* A claim, for which nothing needs an order: whoever fails sees a new time the next time. */
    if (!rbi_cas_acq_rel64(&registry->header->watch.looked_ns, seen_ns, now_ns)) return 0;
    note_own_look(registry, now_ns);
    *status = look(registry, recovered);
    return age;
}

ringbuf_status rbi_registry_recover_if_due(struct rbi_registry *registry, int64_t now_ns, enum rbi_occasion occasion, uint64_t *recovered)
{
    ringbuf_status status;
    look_if_due(registry, (uint64_t)now_ns, occasion, &status, recovered);
    return status;
}

/** From 0 to `most`.  Children of one parent begin with the same state, so the number counts, too. */
static uint64_t random_up_to(struct rbi_registry *registry, uint64_t most)
{
    if (!RBI_JITTER) return 0;
    /* splitmix64; relaxed: two threads may draw the same */
    uint64_t mixed = rbi_load_relaxed64(&registry->vigil.random) + UINT64_C(0x9e3779b97f4a7c15);
    rbi_store_relaxed64(&registry->vigil.random, mixed);
    mixed ^= (uint64_t)registry->self << 32;
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return (mixed ^ mixed >> 31) % (most + 1);
}

/** How long a handle may leave it to others to look. */
static uint64_t longest_rest(const struct rbi_registry *registry)
{
    uint64_t participants = smaller(rbi_load_relaxed64(&registry->header->watch.participants), RBI_OWNER_MAX); /* relaxed: a hint */
    uint64_t few = smaller(participants * REST_LEAST_NS, REST_LONG_NS);
    return smaller(larger(few, participants * REST_MORE_NS), rest_most_ns);
}

void rbi_registry_rest(struct rbi_registry *registry, int64_t now_ns)
{
    struct rbi_vigil *vigil = &registry->vigil; /* relaxed: guesses */
    uint64_t now = (uint64_t)now_ns, seen_ns, age = age_of(registry, now, &seen_ns), period = period_of(registry, RBI_WAITING);
    uint64_t rest = larger(rbi_load_relaxed64(&vigil->rest_ns), REST_LEAST_NS);
    rest = rest / 2 + random_up_to(registry, rest / 2);
    /* Not before a look is due, for which it would be too early; but not for ever. */
    uint64_t due = age < period ? period - age : 0;
    rbi_store_relaxed64(&vigil->wakes_ns, now + smaller(larger(rest, due), rest_most_ns));
}

int64_t rbi_registry_sleeps_until(const struct rbi_registry *registry, int64_t now_ns, int64_t deadline_ns)
{
    const struct rbi_vigil *vigil = &registry->vigil; /* relaxed: guesses */
    int64_t wakes_ns = (int64_t)rbi_load_relaxed64(&vigil->wakes_ns), rest_ns = (int64_t)rbi_load_relaxed64(&vigil->rest_ns);
    if (deadline_ns < wakes_ns) return deadline_ns;
    /* Two wake-ups that are close to each other are one, where others look as well. */
    bool close = rest_ns > REST_LEAST_NS && deadline_ns - wakes_ns < rest_ns / 2 && deadline_ns - now_ns <= (int64_t)rest_most_ns;
    return close ? deadline_ns : wakes_ns;
}

bool rbi_registry_wakes_now(const struct rbi_registry *registry, int64_t now_ns, bool is_up)
{
    const struct rbi_vigil *vigil = &registry->vigil; /* relaxed: guesses */
    int64_t wakes_ns = (int64_t)rbi_load_relaxed64(&vigil->wakes_ns), rest_ns = (int64_t)rbi_load_relaxed64(&vigil->rest_ns);
    return now_ns >= wakes_ns - (is_up && rest_ns > REST_LEAST_NS ? rest_ns / 4 : 0);
}

ringbuf_status rbi_registry_watch(struct rbi_registry *registry, int64_t now_ns, uint64_t *recovered)
{
    struct rbi_vigil *vigil = &registry->vigil; /* relaxed: guesses */
    ringbuf_status status;
    uint64_t period = period_of(registry, RBI_WAITING);
    uint64_t age = look_if_due(registry, (uint64_t)now_ns, RBI_WAITING, &status, recovered);
    uint64_t rest = rbi_load_relaxed64(&vigil->rest_ns);
    if (age < period) rest *= 2;
    else if (age >= period + period / 2) rest = REST_LEAST_NS;
    rbi_store_relaxed64(&vigil->rest_ns, larger(smaller(rest, longest_rest(registry)), REST_LEAST_NS));
    rbi_registry_rest(registry, now_ns);
    return status;
}

/* ---- join, leave ---- */

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

/** Clean up after participant `number`, whose lock we hold and keep. */
static ringbuf_status recover_one(struct rbi_registry *registry, uint32_t number)
{
    ringbuf_status status = clean_up(registry, number);
    if (status != RINGBUF_OK) return status;
    wake_every_sleeper(registry);
    RBI_POINT(recovery_woke);
    free_entry(registry, number);
    return RINGBUF_OK;
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
        rbi_store_relaxed64(&registry->vigil.own_ns, (uint64_t)rbi_monotonic_ns()); /* relaxed: a guess */
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
    if (!registry->self) return;
    ringbuf_status status = undo(registry, registry->self, keep); /* a damaged queue cannot be left more orderly */
    if (status != RINGBUF_OK || registry->ring->undone || registry->arena->undone) wake_every_sleeper(registry);
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
