/* queue.c — floor 4: the public calls.  Each checks its arguments, composes the floors below, and maps their outcomes.
 *
 * One attempt of a call never waits.  If it finds nothing to do and the deadline allows, wait_until() below looks again for a moment,
 * announces itself, looks again, sleeps, and every LIVENESS_NS looks whether somebody died.
 *
 * How long to look before sleeping.  A sleep costs the sleeper a context switch and the one who wakes it 7-9 us, a look costs the
 * processor to somebody who may need it.  So each handle learns from every wait: one that was short, found while looking or not,
 * doubles the time for the next look, one that was long quarters it, down to next to nothing; with a single processor there is no
 * looking at all.  And if what it waits for came at the first look, and waits are rare enough for several messages each, it lets the other
 * side get ahead a little (lag_of).  Then it yields a few times: where there are more processes than processors, the one it waits for is likely to be
 * ready to run, and a yield costs neither side a futex call.
 *
 * Unfinished tasks: messages in the ring, plus those got, minus those marked done.  They are read in the order done, ring, got, against
 * the order in which a message moves (ring, got, done; a get counts itself before it releases the message): so a message whose put
 * has returned is seen at least once, and join never returns too early.  The edges: who sees a record released ([E2]), or a task
 * counted as done ([E6]), sees the get counted that came before. */
#include "copy.h"
#include "segment.h"

#include <stdlib.h>
#include <string.h>

enum {
    LIVENESS_NS = 100000000,     /* sleepers look for the dead this often */
    STUCK_NS = 50000000,         /* a record in the way for this long is gone round */
    POLL_RECOVERY_NS = 10000000, /* calls that do not sleep look at most this often */
    TRIM_NS = 2000000000,        /* the arena's idle memory is looked for at most this often, */
    TRIM_MORE_NS = 10000000,     /* or so soon, if there was more of it than */
    TRIM_PIECES = 8,
    SPIN_LEAST_NS = 500,
    SPIN_MOST_NS = 32000,
    SPIN_WORTH_NS = 64000,       /* a wait of less than this would have been met by looking a little longer */
    YIELDS = 4,                  /* turns given to others before the first sleep */
    SPIN_PAUSES = 8,             /* between two looks, so as not to pull at the line that the other side is writing */
    LAG_MOST = 128,
    SPIN_LOOKS = 8,              /* looks between two readings of the clock */
};

/* A message's position: the number of its record in the ring, or of its run's first block in the arena with this bit. */
#define IN_ARENA (UINT64_C(1) << 63)

/* A reservation's ticket has this bit, and no record's number has. */
#define RESERVATION (UINT64_C(1) << 62)

static ringbuf_status status_of(enum rbi_ring_outcome outcome)
{
    switch (outcome) {
    case RBI_RING_OK: return RINGBUF_OK;
    case RBI_RING_FULL:
    case RBI_RING_EMPTY:
    case RBI_RING_PENDING: return RINGBUF_E_TIMEOUT;
    case RBI_RING_SMALL: return RINGBUF_E_SMALL;
    case RBI_RING_UNRESERVED:
    case RBI_RING_ASIDE:
    case RBI_RING_CORRUPT: break;
    }
    return RINGBUF_E_CORRUPT;
}

static inline uint32_t shutdown_of(const ringbuf *rb) { return rbi_load_total32(&rb->header->shutdown); /* [T3] */ }

/** What a call answers when it finds the queue shut down. */
static ringbuf_status refusal(uint32_t shutdown) { return shutdown <= 2 ? RINGBUF_E_SHUTDOWN : RINGBUF_E_CORRUPT; }

/* ---- waiting ---- */

/** What a call waits for. */
struct waiting {
    struct rbi_event *event;
    struct rbi_patience *patience;
    const rbi_atomic64 *moved;                          /* counts the messages that this participant has moved this way */
    ringbuf_status (*attempt)(ringbuf *rb, void *call); /* anything but E_TIMEOUT ends the waiting */
    bool (*may_succeed)(ringbuf *rb, void *call);       /* a cheap look */
    bool (*more)(ringbuf *rb);                          /* whether another waiter may succeed as well; NULL: wakes go to all */
};

/** How many pauses to make before the first look.  Two sides in step, each message looked for as soon as it is put, cost each other
 *  cache misses at every message; if the slower one falls behind a little, the next ones come together.  That it helped shows in
 *  several messages having been moved since the last wait; two that answer each other never see that. */
static uint32_t lag_of(const struct waiting *waiting)
{
    uint64_t moved = rbi_load_relaxed64(waiting->moved); /* relaxed, here and below: guesses */
    uint64_t since_last = moved - rbi_load_relaxed64(&waiting->patience->served);
    rbi_store_relaxed64(&waiting->patience->served, moved);
    return since_last > 1 ? rbi_load_relaxed32(&waiting->patience->lag) : 0;
}

/** Look for a while. */
static bool spin(ringbuf *rb, const struct waiting *waiting, void *call, int64_t now_ns, int64_t deadline_ns)
{
    static rbi_atomic32 known; /* relaxed: whoever comes first writes it, and all would write the same */
    uint32_t processors = rbi_load_relaxed32(&known);
    if (processors == 0) rbi_store_relaxed32(&known, processors = rbi_processors());
    if (processors == 1) return false;
    /* relaxed: a guess that several threads may adjust */
    int64_t until_ns = now_ns + rbi_load_relaxed32(&waiting->patience->spin_ns);
    if (until_ns > deadline_ns) until_ns = deadline_ns;
    uint32_t lag = lag_of(waiting);
    for (uint32_t pause = 0; pause < lag; pause++) rbi_pause();
    bool first = true;
    do {
        for (int look = 0; look < SPIN_LOOKS; look++) {
            if (waiting->may_succeed(rb, call)) {
                lag = first ? lag * 2 + SPIN_PAUSES : 0;
                rbi_store_relaxed32(&waiting->patience->lag, lag < LAG_MOST ? lag : LAG_MOST);
                return true;
            }
            first = false;
            for (int pause = 0; pause < SPIN_PAUSES; pause++) rbi_pause();
        }
    } while (rbi_monotonic_ns() < until_ns);
    return false;
}

/** Learn from a wait that took `waited_ns`, found while looking or after a sleep. */
static void learn(const struct waiting *waiting, int64_t waited_ns)
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

/** Give memory that the arena has not used for a while back to the system, if nobody in this process has looked lately. */
static void trim_if_due(ringbuf *rb, int64_t now_ns)
{
    /* relaxed: it only limits how often */
    if (!rbi_arena_is_used(&rb->arena) || (uint64_t)now_ns < rbi_load_relaxed64(&rb->next_trim_ns)) return;
    /* Little at a time: this is somebody's ack, or get. */
    bool ended = rbi_segment_trim(rb, rb->idle_s, TRIM_PIECES);
    rbi_store_relaxed64(&rb->next_trim_ns, (uint64_t)now_ns + (ended ? TRIM_NS : TRIM_MORE_NS));
}

/** Go to sleep once, announced and looked again.  E_TIMEOUT means only that it is time to look. */
static ringbuf_status sleep_once(ringbuf *rb, const struct waiting *waiting, void *call, int64_t now_ns, int64_t deadline_ns)
{
    uint32_t key = rbi_event_announce(waiting->event);
    ringbuf_status status = waiting->attempt(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    if (rbi_handle_is_closed(rb)) return RINGBUF_E_CLOSED; /* [T5], announced before */
    rbi_own_add64(&rbi_registry_me(&rb->registry)->sleeps, 1);
    int64_t look_ns = now_ns + (rbi_load_relaxed64(&rb->stuck_at) ? STUCK_NS : LIVENESS_NS);
    ringbuf_status slept = rbi_event_sleep(waiting->event, key, deadline_ns < look_ns ? deadline_ns : look_ns);
    status = waiting->attempt(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    if (rbi_handle_is_closed(rb)) return RINGBUF_E_CLOSED;
    return slept == RINGBUF_E_INTR ? RINGBUF_E_INTR : RINGBUF_E_TIMEOUT;
}

/** After a first attempt in vain: wait until an attempt ends otherwise, or the deadline. */
static ringbuf_status wait_until(ringbuf *rb, const struct waiting *waiting, void *call, int64_t deadline_ns)
{
    int64_t now_ns = rbi_monotonic_ns();
    /* A poll, too, must not report full or empty for ever because of a dead one. */
    const int64_t start_ns = now_ns;
    trim_if_due(rb, now_ns);
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
        if (status == RINGBUF_E_TIMEOUT) trim_if_due(rb, rbi_monotonic_ns());
        if (status == RINGBUF_E_TIMEOUT && recover_if_due(rb, rbi_monotonic_ns(), LIVENESS_NS / 2))
            status = waiting->attempt(rb, call);
    }
    if (slept) {
        learn(waiting, rbi_monotonic_ns() - start_ns);
        if (waiting->more) rbi_event_leave(waiting->event);
        if (waiting->more && waiting->more(rb)) rbi_event_pass_on(waiting->event);
    }
    return status;
}

/* ---- the arena ---- */

struct reserve_call {
    struct rbi_run run;
    uint64_t size;
    bool is_put;          /* refused when the queue is shut down */
};

static void wake_for_room(ringbuf *rb)
{
    rbi_event_wake_all_if_any(&rb->header->room);
    RBI_POINT(room_woke);
}

/** Free a run that is RESERVED by us. */
static void free_run(ringbuf *rb, const struct rbi_run *run)
{
    int64_t now_ns = rbi_monotonic_ns();
    rbi_arena_free(&rb->arena, run, rb->registry.self, (uint64_t)now_ns / 1000000000);
    wake_for_room(rb);
    trim_if_due(rb, now_ns);
}

static ringbuf_status attempt_reserve(ringbuf *rb, void *context)
{
    struct reserve_call *call = context;
    uint32_t shutdown = call->is_put ? shutdown_of(rb) : 0;
    if (shutdown) return refusal(shutdown);
    enum rbi_arena_outcome outcome;
    uint64_t parts;
    bool gave_back;
    do {
        outcome = rbi_arena_allocate(&rb->arena, &call->run, rb->registry.self, call->size, &parts, &gave_back);
        if (gave_back) wake_for_room(rb);
        if (outcome == RBI_ARENA_PARTS) {
            ringbuf_status status = rbi_segment_reserve_parts(rb, parts);
            if (status != RINGBUF_OK) return status;
        }
    } while (outcome == RBI_ARENA_PARTS);
    if (outcome != RBI_ARENA_OK) return RINGBUF_E_TIMEOUT;
    ringbuf_status status = call->run.backed ? RINGBUF_OK : rbi_segment_back(rb, &call->run);
    if (status != RINGBUF_OK) free_run(rb, &call->run);
    return status;
}

static bool room_for_run(ringbuf *rb, void *call)
{
    return rbi_arena_has_room(&rb->arena, ((const struct reserve_call *)call)->size) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** Reserve a run, waiting for one.  RINGBUF_E_ARENA_FULL if there is none in time. */
static ringbuf_status reserve(ringbuf *rb, struct reserve_call *call, int64_t deadline_ns)
{
    ringbuf_status status = attempt_reserve(rb, call);
    if (status == RINGBUF_E_TIMEOUT) {
        struct waiting waiting = {&rb->header->room, &rb->room_patience, &rbi_registry_me(&rb->registry)->puts,
                                  attempt_reserve, room_for_run, NULL};
        status = wait_until(rb, &waiting, call, deadline_ns);
    }
    return status == RINGBUF_E_TIMEOUT ? RINGBUF_E_ARENA_FULL : status;
}

/* ---- put ---- */

/** A message to be put: its parts, which are copied into the ring, or a run that is RESERVED by us and holds it. */
struct put_call {
    const ringbuf_part *parts;
    size_t count;
    size_t size;
    struct rbi_run *run;
};

/** How many bytes of the ring the call needs. */
static inline size_t ring_bytes(const struct put_call *call) { return call->run ? RBI_REFERENCE_BYTES : call->size; }

/** The ring is full.  If that is for a while now because of one who is stopped in the middle of something, go round him. */
static bool went_round_the_stuck(ringbuf *rb, uint64_t size)
{
    /* relaxed: several threads may note different things; then it takes longer */
    uint64_t at = rbi_ring_stuck_at(&rb->ring, size);
    uint64_t now_ns = (uint64_t)rbi_monotonic_ns();
    if (at == 0 || at != rbi_load_relaxed64(&rb->stuck_at)) {
        rbi_store_relaxed64(&rb->stuck_at, at);
        rbi_store_relaxed64(&rb->stuck_since_ns, now_ns);
        return false;
    }
    if (now_ns - rbi_load_relaxed64(&rb->stuck_since_ns) < STUCK_NS) return false;
    rbi_store_relaxed64(&rb->stuck_at, 0);
    return rbi_ring_bypass(&rb->ring);
}

static void gather(uint8_t *to, const ringbuf_part *parts, size_t count)
{
    for (const ringbuf_part *part = parts; part < parts + count; to += part++->size)
        if (part->size) rbi_copy(to, part->data, part->size);
}

/** Claim a record for so many bytes, which gets its pages if need be.  RINGBUF_E_TIMEOUT: the ring is full. */
static inline ringbuf_status claim(ringbuf *rb, struct rbi_record *record, size_t bytes)
{
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_claim(&rb->ring, record, rb->registry.self, bytes)) == RBI_RING_UNRESERVED) {
        ringbuf_status status = rbi_segment_reserve(rb, record->lane, record->cells);
        if (status != RINGBUF_OK) return status;
    }
    return status_of(outcome);
}

/** Make the claimed record one that refers to the run, which holds a message of `size` bytes and is RESERVED by us. */
static ringbuf_status refer(ringbuf *rb, struct rbi_record *record, struct rbi_run *run, size_t size)
{
    run->size = size;
    run->record = rbi_ring_number_of(record);
    if (rbi_arena_queue(&rb->arena, run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_CORRUPT;
    rbi_ring_refer(record, size, run->first);
    return RINGBUF_OK;
}

static inline void count_put(ringbuf *rb, size_t size)
{
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->puts, 1);
    rbi_own_add64(&me->bytes_put, size);
    RBI_POINT(put_counted);
}

static ringbuf_status attempt_put(ringbuf *rb, void *context)
{
    const struct put_call *call = context;
    struct rbi_record record;
    RBI_POINT(put_began);
    ringbuf_status status = claim(rb, &record, ring_bytes(call));
    uint32_t shutdown = shutdown_of(rb);
    if (status == RINGBUF_E_TIMEOUT && shutdown) return refusal(shutdown);
    if (status == RINGBUF_E_TIMEOUT && went_round_the_stuck(rb, ring_bytes(call))) return attempt_put(rb, context);
    if (status != RINGBUF_OK) return status;
    /* [T3 shutdown] claim, then look at the flag; against "set the flag, then look at the ring": either we see the flag, or whoever
     * drains the queue sees our claim and waits for it. */
    if (shutdown) {
        rbi_ring_void(&rb->ring, &record, rb->registry.self);
        rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claim */
        return refusal(shutdown);
    }
    if (call->run) {
        status = refer(rb, &record, call->run, call->size);
        if (status != RINGBUF_OK) {
            rbi_ring_void(&rb->ring, &record, rb->registry.self);
            return status;
        }
    } else if (call->count == 1) {
        memcpy(record.payload, call->parts->data, call->size);
    } else {
        gather(record.payload, call->parts, call->count);
    }
    RBI_POINT(payload_written);
    if (rbi_ring_publish(&rb->ring, &record, rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
    count_put(rb, call->size);
    rbi_event_wake_one(&rb->header->items);
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_call(ringbuf *rb, void *call)
{
    return rbi_ring_has_room(&rb->ring, ring_bytes(call)) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static bool some_room(ringbuf *rb) { return rbi_ring_has_room(&rb->ring, 0); }

/** Put, waiting for room in the ring. */
static inline ringbuf_status put(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    ringbuf_status status = attempt_put(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    struct waiting waiting = {&rb->header->space, &rb->space_patience, &rbi_registry_me(&rb->registry)->puts,
                              attempt_put, room_for_call, some_room};
    return wait_until(rb, &waiting, call, deadline_ns);
}

/** Put a message that is too large for the ring: into the arena, and a reference to it into the ring. */
static ringbuf_status put_large(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    struct reserve_call room = {.size = call->size, .is_put = true};
    if (call->size > rbi_arena_bytes(&rb->arena)) return RINGBUF_E_TOO_LARGE;
    ringbuf_status status = reserve(rb, &room, deadline_ns);
    if (status != RINGBUF_OK) return status;
    gather(room.run.payload, call->parts, call->count);
    RBI_POINT(payload_written);
    call->run = &room.run;
    status = put(rb, call, deadline_ns);
    if (status != RINGBUF_OK) free_run(rb, &room.run);
    return status;
}

static ringbuf_status put_any(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (call->size <= rb->ring_limit) status = put(rb, call, deadline_ns);
    else status = put_large(rb, call, deadline_ns);
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_put(ringbuf *rb, const void *data, size_t size, int64_t deadline_ns)
{
    if (!rb || (!data && size)) return RINGBUF_E_INVALID;
    ringbuf_part part = {.data = size ? data : "", .size = size};
    struct put_call call = {.parts = &part, .count = 1, .size = size};
    return put_any(rb, &call, deadline_ns);
}

ringbuf_status ringbuf_put_parts(ringbuf *rb, const ringbuf_part *parts, size_t count, int64_t deadline_ns)
{
    if (!rb || (!parts && count)) return RINGBUF_E_INVALID;
    struct put_call call = {.parts = parts, .count = count};
    for (size_t i = 0; i < count; i++) {
        if (!parts[i].data && parts[i].size) return RINGBUF_E_INVALID;
        if (__builtin_add_overflow(call.size, parts[i].size, &call.size)) return RINGBUF_E_TOO_LARGE;
    }
    if (call.size == 0) call.count = 0; /* so that nobody copies from NULL */
    return put_any(rb, &call, deadline_ns);
}

/* ---- put_all ----
 *
 * Claim a record for every message, then fill all, then publish all; if there is no room for one, void those that were claimed.  So as
 * not to claim and void in vain, it first looks whether there is room for all.  A death before the first publication leaves claims,
 * which are voided; after it, some of the messages have been put, as if by so many puts, and the others have not. */

struct put_all_call {
    const ringbuf_part *messages;
    size_t count;
    uint64_t cells;             /* of the ring, for all of them */
    struct rbi_record *records;
    struct rbi_run *runs;       /* of the messages that are too large for the ring; NULL if none is */
};

static inline bool is_large(const ringbuf *rb, const ringbuf_part *message) { return message->size > rb->ring_limit; }

static inline size_t bytes_in_ring(const ringbuf *rb, const ringbuf_part *message)
{
    return is_large(rb, message) ? RBI_REFERENCE_BYTES : message->size;
}

static void free_runs(ringbuf *rb, const struct put_all_call *call, size_t upto)
{
    for (size_t i = 0; i < upto; i++)
        if (is_large(rb, &call->messages[i])) free_run(rb, &call->runs[i]);
}

/** Reserve runs for all large messages, or for none. */
static ringbuf_status attempt_reserve_all(ringbuf *rb, void *context)
{
    struct put_all_call *call = context;
    for (size_t i = 0; i < call->count; i++) {
        if (!is_large(rb, &call->messages[i])) continue;
        struct reserve_call room = {.size = call->messages[i].size, .is_put = true};
        ringbuf_status status = attempt_reserve(rb, &room);
        if (status != RINGBUF_OK) {
            free_runs(rb, call, i);
            return status;
        }
        call->runs[i] = room.run;
    }
    return RINGBUF_OK;
}

/** A cheap look: whether there would be room for the largest. */
static bool room_for_runs(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    uint64_t largest = 0;
    for (size_t i = 0; i < call->count; i++)
        if (call->messages[i].size > largest) largest = call->messages[i].size;
    return rbi_arena_has_room(&rb->arena, largest) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static void void_claims(ringbuf *rb, const struct put_all_call *call, size_t claimed)
{
    while (claimed) rbi_ring_void(&rb->ring, &call->records[--claimed], rb->registry.self);
    rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claims */
    rbi_event_wake_all(&rb->header->space);
}

static ringbuf_status attempt_put_all(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    size_t claimed = 0;
    ringbuf_status status = RINGBUF_OK;
    RBI_POINT(put_began);
    if (rbi_ring_has_room_for(&rb->ring, call->cells, call->count)) {
        while (claimed < call->count && status == RINGBUF_OK) {
            status = claim(rb, &call->records[claimed], bytes_in_ring(rb, &call->messages[claimed]));
            if (status == RINGBUF_OK) claimed++;
        }
    } else {
        status = RINGBUF_E_TIMEOUT;
    }
    uint32_t shutdown = shutdown_of(rb); /* [T3] as in attempt_put() */
    if (shutdown) status = refusal(shutdown);
    for (size_t i = 0; status == RINGBUF_OK && i < call->count; i++) {
        const ringbuf_part *message = &call->messages[i];
        if (is_large(rb, message)) status = refer(rb, &call->records[i], &call->runs[i], message->size);
        else if (message->size) memcpy(call->records[i].payload, message->data, message->size);
    }
    RBI_POINT(payload_written);
    if (status != RINGBUF_OK) {
        if (claimed) void_claims(rb, call, claimed);
        if (status == RINGBUF_E_TIMEOUT && went_round_the_stuck(rb, call->cells << rb->stamp.cell_log2)) return attempt_put_all(rb, context);
        return status;
    }
    for (size_t i = 0; i < call->count; i++) {
        if (rbi_ring_publish(&rb->ring, &call->records[i], rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
        count_put(rb, call->messages[i].size);
    }
    rbi_event_wake_one(&rb->header->items); /* and he the next one: rbi_event_pass_on() */
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_all(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    return rbi_ring_has_room_for(&rb->ring, call->cells, call->count) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** Add up what the messages need.  RINGBUF_E_TOO_LARGE if they can never be in the queue together. */
static ringbuf_status measure(ringbuf *rb, struct put_all_call *call, size_t *large)
{
    uint64_t blocks = 0;
    *large = 0;
    for (size_t i = 0; i < call->count; i++) {
        const ringbuf_part *message = &call->messages[i];
        if (!message->data && message->size) return RINGBUF_E_INVALID;
        call->cells += rbi_ring_cells_for(&rb->ring, bytes_in_ring(rb, message));
        if (!is_large(rb, message)) continue;
        ++*large;
        if (message->size > rbi_arena_bytes(&rb->arena)) return RINGBUF_E_TOO_LARGE;
        blocks += rbi_arena_blocks_for(&rb->arena, message->size);
    }
    if (call->cells > rbi_ring_cells(&rb->ring) / 2 || blocks > rb->arena.blocks) return RINGBUF_E_TOO_LARGE;
    return rb->stamp.max_items && call->count > rb->stamp.max_items ? RINGBUF_E_TOO_LARGE : RINGBUF_OK;
}

static ringbuf_status put_all(ringbuf *rb, struct put_all_call *call, size_t large, int64_t deadline_ns)
{
    rbi_atomic64 *puts = &rbi_registry_me(&rb->registry)->puts;
    ringbuf_status status = RINGBUF_OK;
    if (large) {
        struct waiting room = {&rb->header->room, &rb->room_patience, puts, attempt_reserve_all, room_for_runs, NULL};
        status = attempt_reserve_all(rb, call);
        if (status == RINGBUF_E_TIMEOUT) status = wait_until(rb, &room, call, deadline_ns);
        if (status == RINGBUF_E_TIMEOUT) return RINGBUF_E_ARENA_FULL;
        if (status != RINGBUF_OK) return status;
        for (size_t i = 0; i < call->count; i++)
            if (is_large(rb, &call->messages[i])) rbi_copy(call->runs[i].payload, call->messages[i].data, call->messages[i].size);
    }
    struct waiting space = {&rb->header->space, &rb->space_patience, puts, attempt_put_all, room_for_all, some_room};
    status = attempt_put_all(rb, call);
    if (status == RINGBUF_E_TIMEOUT) status = wait_until(rb, &space, call, deadline_ns);
    if (status != RINGBUF_OK && large) free_runs(rb, call, call->count);
    return status;
}

ringbuf_status ringbuf_put_all(ringbuf *rb, const ringbuf_part *messages, size_t count, int64_t deadline_ns)
{
    if (!rb || (!messages && count)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct put_all_call call = {.messages = messages, .count = count};
    size_t large;
    status = measure(rb, &call, &large);
    if (status == RINGBUF_OK && count) {
        call.records = calloc(count, sizeof *call.records);
        if (large) call.runs = calloc(count, sizeof *call.runs);
        if (!call.records || (large && !call.runs)) status = RINGBUF_E_NO_MEMORY;
        else status = put_all(rb, &call, large, deadline_ns);
        free(call.records);
        free(call.runs);
    }
    rbi_handle_leave(rb);
    return status;
}

/* ---- reserve, commit, abort ---- */

ringbuf_status ringbuf_reserve(ringbuf *rb, ringbuf_reservation *reservation, size_t size, int64_t deadline_ns)
{
    if (!rb || !reservation) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct reserve_call call = {.size = size, .is_put = true};
    status = rb->arena.blocks && size <= rbi_arena_bytes(&rb->arena) ? reserve(rb, &call, deadline_ns) : RINGBUF_E_TOO_LARGE;
    if (status == RINGBUF_OK) {
        rbi_handle_pin(rb);
        *reservation = (ringbuf_reservation){
            .data = call.run.payload,
            .size = size,
            .position = IN_ARENA | call.run.first,
            .ticket = RESERVATION | rbi_add_relaxed64(&rb->reservations, 1), /* relaxed: a number of its own */
            .generation = rbi_load_relaxed64(&rb->generation), /* relaxed: changes only by fork */
        };
        rbi_arena_mark(&rb->arena, &call.run, reservation->ticket);
    }
    rbi_handle_leave(rb);
    return status;
}

/** Whether this process is a forked child of the one that took or reserved this.  relaxed: changes only by fork. */
static inline bool is_inherited(const ringbuf *rb, uint64_t generation) { return generation != rbi_load_relaxed64(&rb->generation); }

/** The run of a reservation of this process. */
static bool find_reserved(ringbuf *rb, struct rbi_run *run, const ringbuf_reservation *reservation)
{
    if (!(reservation->position & IN_ARENA) || is_inherited(rb, reservation->generation)) return false;
    return rbi_arena_find(&rb->arena, run, RBI_BLOCK_RESERVED, rb->registry.self, reservation->position & ~IN_ARENA,
                          reservation->ticket) == RBI_ARENA_OK;
}

ringbuf_status ringbuf_commit(ringbuf *rb, const ringbuf_reservation *reservation, size_t size, int64_t deadline_ns)
{
    struct rbi_run run;
    if (!rb || !reservation || size > reservation->size) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (!find_reserved(rb, &run, reservation)) {
        status = RINGBUF_E_INVALID;
    } else {
        /* A small message would waste most of its block. */
        ringbuf_part part = {.data = run.payload, .size = size};
        bool copy = size <= rb->ring_limit && size <= UINT64_C(1) << (rb->stamp.block_log2 - 1);
        struct put_call call = {.parts = &part, .count = 1, .size = size, .run = copy ? NULL : &run};
        status = put(rb, &call, deadline_ns);
        if (status == RINGBUF_OK && copy) free_run(rb, &run);
    }
    rbi_handle_leave(rb);
    if (status == RINGBUF_OK) rbi_handle_unpin(rb);
    return status;
}

ringbuf_status ringbuf_abort(ringbuf *rb, const ringbuf_reservation *reservation)
{
    struct rbi_run run;
    if (!rb || !reservation) return RINGBUF_E_INVALID;
    if (!is_inherited(rb, reservation->generation)) {
        if (!find_reserved(rb, &run, reservation)) return RINGBUF_E_INVALID;
        free_run(rb, &run);
    }
    rbi_handle_unpin(rb);
    return RINGBUF_OK;
}

/* ---- get, take, lease, ack, nack ---- */

/** A message that we have taken: a record of the ring that is TAKEN by us, or a run of the arena that is LEASED by us. */
struct taken {
    struct rbi_record record;
    struct rbi_run run;
    bool in_arena;
    uint64_t limit;
};

static inline uint64_t size_of(const struct taken *taken) { return taken->in_arena ? taken->run.size : taken->record.size; }
static inline const void *bytes_of(const struct taken *taken) { return taken->in_arena ? taken->run.payload : taken->record.payload; }

/** Nothing in the ring was returned; perhaps something in the arena was. */
static ringbuf_status take_aside(ringbuf *rb, struct taken *taken)
{
    uint64_t hint = taken->record.position;
    switch (rbi_arena_take_returned(&rb->arena, &taken->run, rb->registry.self, taken->limit)) {
    case RBI_ARENA_OK: taken->in_arena = true; return RINGBUF_OK;
    case RBI_ARENA_EMPTY: rbi_ring_clear_returned(&rb->ring, hint); return RINGBUF_E_INTR; /* look at the ring again */
    case RBI_ARENA_SMALL:
        rbi_ring_set_returned(&rb->ring); /* it may have been ours for a moment, in which another one found nothing */
        taken->in_arena = true;
        return RINGBUF_E_SMALL;
    default: return RINGBUF_E_CORRUPT;
    }
}

/** We have taken a record that refers to a run: from now on we have the run, and the record is free. */
static ringbuf_status follow_reference(ringbuf *rb, struct taken *taken)
{
    taken->run.record = rbi_ring_number_of(&taken->record);
    taken->run.size = taken->record.size;
    taken->run.attempts = taken->record.attempts;
    if (rbi_arena_lease_queued(&rb->arena, &taken->run, rb->registry.self, rbi_ring_reference(&taken->record)) != RBI_ARENA_OK)
        return RINGBUF_E_CORRUPT;
    taken->in_arena = true;
    rbi_ring_release(&rb->ring, &taken->record);
    rbi_event_wake_one(&rb->header->space);
    return RINGBUF_OK;
}

static ringbuf_status attempt_take(ringbuf *rb, void *context)
{
    struct taken *taken = context;
    RBI_POINT(take_began);
    uint32_t shutdown = shutdown_of(rb); /* before looking at the ring: [T3] */
    if (shutdown >= 2) return refusal(shutdown);
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_take(&rb->ring, &taken->record, rb->registry.self, taken->limit)) == RBI_RING_ASIDE) {
        ringbuf_status status = take_aside(rb, taken);
        if (status != RINGBUF_E_INTR) return status;
    }
    if (outcome == RBI_RING_EMPTY && shutdown) return RINGBUF_E_SHUTDOWN;
    if (outcome == RBI_RING_OK && taken->record.reference) return follow_reference(rb, taken);
    return status_of(outcome);
}

static bool message_there(ringbuf *rb, void *call)
{
    (void)call;
    return rbi_ring_may_take(&rb->ring) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static bool some_message(ringbuf *rb) { return rbi_ring_may_take(&rb->ring); }

static ringbuf_status take_patiently(ringbuf *rb, struct taken *taken, int64_t deadline_ns)
{
    struct waiting waiting = {&rb->header->items, &rb->items_patience, &rbi_registry_me(&rb->registry)->gets,
                              attempt_take, message_there, some_message};
    return wait_until(rb, &waiting, taken, deadline_ns);
}

/** The queue was shut down and seems drained.  What the dead had taken is still to be delivered: look for them before saying so. */
static ringbuf_status take_from_the_dead(ringbuf *rb, struct taken *taken)
{
    uint64_t recovered = 0;
    if (shutdown_of(rb) == 1) rbi_segment_recover(rb, &recovered);
    return recovered ? attempt_take(rb, taken) : RINGBUF_E_SHUTDOWN;
}

/** Take the next message, waiting for one. */
static inline ringbuf_status take(ringbuf *rb, struct taken *taken, int64_t deadline_ns)
{
    ringbuf_status status = attempt_take(rb, taken);
    if (status == RINGBUF_E_TIMEOUT) status = take_patiently(rb, taken, deadline_ns);
    return status == RINGBUF_E_SHUTDOWN ? take_from_the_dead(rb, taken) : status;
}

static inline void count_get(ringbuf *rb, uint64_t size)
{
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->bytes_got, size);
    rbi_own_add64(&me->gets, 1); /* [E2] and [E9] carry it: who sees the message gone sees it counted */
    RBI_POINT(get_counted);
}

/** The message has been used: count it, then release it, then wake a producer. */
static inline ringbuf_status finish(ringbuf *rb, const struct taken *taken)
{
    count_get(rb, size_of(taken));
    if (taken->in_arena) {
        if (rbi_arena_end_lease(&rb->arena, &taken->run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_INVALID;
        free_run(rb, &taken->run);
        return RINGBUF_OK;
    }
    rbi_ring_release(&rb->ring, &taken->record);
    rbi_event_wake_one(&rb->header->space);
    RBI_POINT(release_woke);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_get(ringbuf *rb, size_t *size, void *buffer, size_t capacity, int64_t deadline_ns)
{
    if (!rb || !size || (!buffer && capacity)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct taken taken;
    taken.in_arena = false;
    taken.limit = capacity;
    status = take(rb, &taken, deadline_ns);
    if (status == RINGBUF_OK || status == RINGBUF_E_SMALL) *size = (size_t)size_of(&taken);
    if (status == RINGBUF_OK) {
        if (*size) rbi_copy(buffer, bytes_of(&taken), *size);
        RBI_POINT(copied);
        status = finish(rb, &taken);
    }
    rbi_handle_leave(rb);
    return status;
}

/** Tell the caller about the message we have taken for him. */
static void describe(ringbuf *rb, ringbuf_message *message, const struct taken *taken)
{
    message->size = (size_t)size_of(taken);
    message->data = bytes_of(taken);
    message->in_arena = taken->in_arena;
    message->attempts = taken->in_arena ? taken->run.attempts : taken->record.attempts;
    message->position = taken->in_arena ? IN_ARENA | taken->run.first : rbi_ring_number_of(&taken->record);
    message->ticket = taken->in_arena ? taken->run.record : 0;
    message->generation = rbi_load_relaxed64(&rb->generation); /* relaxed: changes only by fork */
    if (message->buffer && message->size <= message->capacity) {
        rbi_copy(message->buffer, message->data, message->size);
        message->data = message->buffer;
    }
    RBI_POINT(copied);
}

/** Move the message from the ring into the arena, so that it can stay with us; if there is no room, it stays where it is. */
static void move_into_arena(ringbuf *rb, struct taken *taken)
{
    struct reserve_call room = {.size = taken->record.size};
    if (rb->arena.blocks == 0 || attempt_reserve(rb, &room) != RINGBUF_OK) return;
    memcpy(room.run.payload, taken->record.payload, taken->record.size);
    room.run.size = taken->record.size;
    room.run.attempts = taken->record.attempts;
    room.run.record = rbi_ring_number_of(&taken->record);
    if (rbi_arena_lease_copy(&rb->arena, &room.run, rb->registry.self) != RBI_ARENA_OK) return;
    rbi_ring_release(&rb->ring, &taken->record);
    rbi_event_wake_one(&rb->header->space);
    taken->run = room.run;
    taken->in_arena = true;
}

/** Take a message and tell the caller about it; if it is to stay with him, out of the ring. */
static ringbuf_status take_for_caller(ringbuf *rb, ringbuf_message *message, int64_t deadline_ns, bool to_stay)
{
    if (!rb || !message) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct taken taken;
    taken.in_arena = false;
    taken.limit = UINT64_MAX;
    status = take(rb, &taken, deadline_ns);
    if (status == RINGBUF_OK) {
        if (to_stay && !taken.in_arena) move_into_arena(rb, &taken);
        describe(rb, message, &taken);
    }
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_take(ringbuf *rb, ringbuf_message *message, int64_t deadline_ns)
{
    return take_for_caller(rb, message, deadline_ns, false);
}

ringbuf_status ringbuf_lease(ringbuf *rb, ringbuf_message *message, int64_t deadline_ns)
{
    return take_for_caller(rb, message, deadline_ns, true);
}

/** What a message stands for, if this process has taken it and not ended it: in the arena, with a run of this kind. */
static bool find_taken(ringbuf *rb, struct taken *taken, const ringbuf_message *message, enum rbi_block_kind kind)
{
    if (is_inherited(rb, message->generation)) return false;
    taken->in_arena = message->position & IN_ARENA;
    if (!taken->in_arena)
        return rbi_ring_find_taken(&rb->ring, &taken->record, rb->registry.self, message->position) == RBI_RING_OK &&
               taken->record.attempts == message->attempts;
    return rbi_arena_find(&rb->arena, &taken->run, kind, rb->registry.self, message->position & ~IN_ARENA, message->ticket) ==
               RBI_ARENA_OK && taken->run.attempts == message->attempts;
}

/** Enter, and find what a message stands for. */
static ringbuf_status enter_with_taken(ringbuf *rb, struct taken *taken, const ringbuf_message *message)
{
    if (!rb || !message) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (find_taken(rb, taken, message, RBI_BLOCK_LEASED)) return RINGBUF_OK;
    rbi_handle_leave(rb);
    return RINGBUF_E_INVALID;
}

ringbuf_status ringbuf_copy(ringbuf *rb, const ringbuf_message *message, void *buffer, size_t offset, size_t size)
{
    struct taken taken;
    if (!buffer && size) return RINGBUF_E_INVALID;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    if (offset > size_of(&taken) || size > size_of(&taken) - offset) status = RINGBUF_E_INVALID;
    else if (size) rbi_copy(buffer, (const uint8_t *)bytes_of(&taken) + offset, size);
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_ack(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    status = finish(rb, &taken);
    rbi_handle_leave(rb);
    return status;
}

/** Throw away what nobody can get any more, if a shutdown at once has come before this message was back. */
static void discard_if_shut_down(ringbuf *rb)
{
    if (shutdown_of(rb) != 2) return;
    struct taken taken = {.limit = UINT64_MAX};
    for (;;) {
        enum rbi_ring_outcome outcome = rbi_ring_take(&rb->ring, &taken.record, rb->registry.self, UINT64_MAX);
        taken.in_arena = false;
        if (outcome == RBI_RING_ASIDE) {
            ringbuf_status status = take_aside(rb, &taken);
            if (status == RINGBUF_E_INTR) continue;
            if (status != RINGBUF_OK) return;
        } else if (outcome != RBI_RING_OK || (taken.record.reference && follow_reference(rb, &taken) != RINGBUF_OK)) {
            return;
        }
        if (!taken.in_arena) {
            rbi_ring_release(&rb->ring, &taken.record);
        } else if (rbi_arena_end_lease(&rb->arena, &taken.run, rb->registry.self) == RBI_ARENA_OK) {
            free_run(rb, &taken.run);
        }
    }
}

ringbuf_status ringbuf_nack(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    if (taken.in_arena) {
        if (rbi_arena_give_back(&rb->arena, &taken.run, rb->registry.self) != RBI_ARENA_OK) status = RINGBUF_E_INVALID;
        else rbi_ring_set_returned(&rb->ring);
    } else {
        rbi_ring_give_back(&rb->ring, &taken.record);
    }
    rbi_event_wake_one(&rb->header->items);
    discard_if_shut_down(rb);
    if (shutdown_of(rb) == 2) rbi_event_wake_all(&rb->header->tasks); /* it was the last thing a join waited for, perhaps */
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_keep(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    if (!taken.in_arena) {
        status = RINGBUF_E_INVALID;
    } else {
        count_get(rb, taken.run.size);
        status = rbi_arena_keep(&rb->arena, &taken.run, rb->registry.self) == RBI_ARENA_OK ? RINGBUF_OK : RINGBUF_E_INVALID;
        if (status == RINGBUF_OK) rbi_handle_pin(rb);
    }
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_release(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    if (!rb || !message || !(message->position & IN_ARENA)) return RINGBUF_E_INVALID;
    if (!is_inherited(rb, message->generation)) {
        if (!find_taken(rb, &taken, message, RBI_BLOCK_HELD)) return RINGBUF_E_INVALID;
        if (rbi_arena_end_hold(&rb->arena, &taken.run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_INVALID;
        free_run(rb, &taken.run);
    }
    rbi_handle_unpin(rb);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_pin(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    rbi_handle_pin(rb);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

void ringbuf_unpin(ringbuf *rb)
{
    if (rb) rbi_handle_unpin(rb);
}

/* ---- shutdown, tasks ---- */

ringbuf_status ringbuf_shutdown(ringbuf *rb, int immediate)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    uint32_t wanted = immediate ? 2 : 1;
    for (uint32_t seen = shutdown_of(rb); seen < wanted; seen = shutdown_of(rb))
        if (rbi_cas_total32(&rb->header->shutdown, seen, wanted)) break; /* [T3] */
    RBI_POINT(shutdown_set);
    if (immediate) discard_if_shut_down(rb);
    rbi_event_wake_all(&rb->header->items);
    rbi_event_wake_all(&rb->header->space);
    rbi_event_wake_all(&rb->header->room);
    rbi_event_wake_all(&rb->header->tasks);
    RBI_POINT(shutdown_woke);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

/** Runs of these kinds (a bit each). */
static uint64_t count_in_arena(ringbuf *rb, uint32_t kinds)
{
    uint64_t runs = 0;
    if (!rbi_arena_is_used(&rb->arena)) return 0;
    struct rbi_arena_census census;
    rbi_arena_count(&rb->arena, &census);
    for (uint32_t kind = 0; kind < RBI_BLOCK_REST; kind++)
        if (kinds >> kind & 1) runs += census.runs[kind];
    return runs;
}

/** Messages waiting. */
static ringbuf_status count_items(ringbuf *rb, uint64_t *items)
{
    ringbuf_status status = status_of(rbi_ring_count(&rb->ring, items));
    /* What waits in the arena without a record was returned, and the hint says so. */
    if (status == RINGBUF_OK && rbi_ring_some_returned(&rb->ring)) *items += count_in_arena(rb, 1u << RBI_BLOCK_RETURNED);
    if (shutdown_of(rb) == 2) *items = 0; /* what a late put may still have brought is for nobody */
    return status;
}

/** Messages put and neither marked done nor forgiven; never less than there were at the start. */
static ringbuf_status unfinished_tasks(ringbuf *rb, int64_t *tasks)
{
    /* After a shutdown at once, what waits is nobody's task; what somebody has taken still is. */
    const bool all = shutdown_of(rb) != 2;
    const uint32_t in_ring = 1u << RBI_KIND_TAKEN | (all ? 1u << RBI_KIND_READY | 1u << RBI_KIND_RETURNED : 0);
    const uint32_t in_arena = 1u << RBI_BLOCK_LEASED | (all ? 1u << RBI_BLOCK_RETURNED : 0);
    uint64_t done = rbi_registry_done(&rb->registry); /* [T4 tasks] done, ring, got: in this order */
    uint64_t waiting = 0;
    if (rbi_ring_census(&rb->ring, &waiting, in_ring) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
    waiting += count_in_arena(rb, in_arena);
    *tasks = (int64_t)(waiting + rbi_registry_gets_owed(&rb->registry) - done);
    return RINGBUF_OK;
}

static ringbuf_status mark_done(ringbuf *rb)
{
    rbi_atomic64 *mine = &rbi_registry_me(&rb->registry)->done;
    for (;;) {
        uint64_t done = rbi_load_total64(mine);
        int64_t tasks = (int64_t)(rbi_registry_gets_owed(&rb->registry) - rbi_registry_done(&rb->registry));
        if (tasks <= 0) { /* else what was got is enough; now ask the ring, too */
            ringbuf_status status = unfinished_tasks(rb, &tasks);
            if (status != RINGBUF_OK) return status;
            if (tasks <= 0) return RINGBUF_E_TOO_MANY;
        }
        /* [E6 done] pairs with rbi_registry_done().  A CAS: two threads cannot both mark the last one.  (Two processes can; then one
         * of them had no task to mark.) */
        if (rbi_cas_total64(mine, done, done + 1)) break;
    }
    RBI_POINT(done_counted);
    if (rbi_event_has_waiters(&rb->header->tasks)) rbi_event_wake_all(&rb->header->tasks);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_task_done(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = mark_done(rb);
    rbi_handle_leave(rb);
    return status;
}

static ringbuf_status attempt_join(ringbuf *rb, void *call)
{
    (void)call;
    int64_t tasks = 0;
    ringbuf_status status = unfinished_tasks(rb, &tasks);
    if (status != RINGBUF_OK) return status;
    return tasks <= 0 ? RINGBUF_OK : RINGBUF_E_TIMEOUT;
}

static bool nothing_to_see(ringbuf *rb, void *call)
{
    (void)rb;
    (void)call;
    return false;
}

ringbuf_status ringbuf_join(ringbuf *rb, int64_t deadline_ns)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = attempt_join(rb, NULL);
    if (status == RINGBUF_E_TIMEOUT) {
        struct rbi_patience none = {0}; /* nothing to look at; see nothing_to_see() */
        struct waiting waiting = {&rb->header->tasks, &none, &rbi_registry_me(&rb->registry)->done,
                                  attempt_join, nothing_to_see, NULL};
        status = wait_until(rb, &waiting, NULL, deadline_ns);
    }
    rbi_handle_leave(rb);
    return status;
}

/* ---- looking in ---- */

ringbuf_status ringbuf_size(ringbuf *rb, uint64_t *items)
{
    if (!rb || !items) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = count_items(rb, items);
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_has_room(ringbuf *rb, int *room, size_t size)
{
    if (!rb || !room) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (size <= rb->ring_limit) *room = rbi_ring_has_room(&rb->ring, size);
    else *room = rbi_arena_has_room(&rb->arena, size) && rbi_ring_has_room(&rb->ring, 0);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

static void count_arena(ringbuf *rb, ringbuf_stats *stats)
{
    uint32_t log2 = rb->stamp.block_log2;
    struct rbi_arena_census census;
    rbi_arena_count(&rb->arena, &census);
    stats->arena_bytes = rbi_arena_bytes(&rb->arena);
    stats->arena_used_bytes = census.used_blocks << log2;
    stats->arena_backed_bytes = census.backed_blocks << log2;
    stats->arena_largest_bytes = census.longest_free_blocks << log2;
    stats->reserved = census.runs[RBI_BLOCK_RESERVED];
    stats->held = census.runs[RBI_BLOCK_HELD];
    stats->leased = census.runs[RBI_BLOCK_LEASED];
}

ringbuf_status ringbuf_get_stats(ringbuf *rb, ringbuf_stats *stats)
{
    if (!rb || !stats) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    int64_t tasks = 0;
    *stats = (ringbuf_stats){.capacity_bytes = UINT64_C(1) << (rb->stamp.cells_log2 + rb->stamp.cell_log2)};
    status = count_items(rb, &stats->items);
    if (status == RINGBUF_OK) status = unfinished_tasks(rb, &tasks);
    stats->unfinished = tasks > 0 ? (uint64_t)tasks : 0;
    stats->used_bytes = rbi_ring_used_bytes(&rb->ring);
    count_arena(rb, stats);
    stats->shutdown = shutdown_of(rb);
    stats->recoveries = rbi_load_relaxed64(&rb->header->recoveries);
    for (uint32_t i = 0; i < rbi_registry_high(&rb->registry); i++) {
        /* relaxed: statistics */
        const struct rbi_participant *entry = &rb->registry.entries[i];
        stats->puts += rbi_load_relaxed64(&entry->puts);
        stats->gets += rbi_load_relaxed64(&entry->gets);
        stats->bytes_put += rbi_load_relaxed64(&entry->bytes_put);
        stats->bytes_got += rbi_load_relaxed64(&entry->bytes_got);
        stats->sleeps += rbi_load_relaxed64(&entry->sleeps);
        stats->participants += rbi_load_relaxed32(&entry->state) != 0;
    }
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_get_info(ringbuf *rb, ringbuf_info *info)
{
    if (!rb || !info) return RINGBUF_E_INVALID;
    const struct rbi_stamp *stamp = &rb->stamp;
    *info = (ringbuf_info){
        .capacity_bytes = UINT64_C(1) << (stamp->cells_log2 + stamp->cell_log2),
        .max_items = stamp->max_items,
        .max_message_bytes = rbi_arena_bytes(&rb->arena) > rb->ring_limit ? rbi_arena_bytes(&rb->arena) : rb->ring_limit,
        .ring_message_bytes = rb->ring_limit,
        .arena_bytes = rbi_arena_bytes(&rb->arena),
        .block_bytes = UINT64_C(1) << stamp->block_log2,
        .file_bytes = stamp->file_bytes,
        .created_ns = stamp->created_ns,
        .max_participants = stamp->max_participants,
        .flags = stamp->flags,
        .permissions = stamp->permissions,
        .creator_pid = stamp->creator_pid,
    };
    memcpy(info->id, stamp->id, sizeof info->id);
    memcpy(info->tag, stamp->tag, sizeof info->tag);
    memcpy(info->note, stamp->note, sizeof info->note);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_get_peers(ringbuf *rb, size_t *count, ringbuf_peer *peers, size_t capacity)
{
    if (!rb || !count || (!peers && capacity)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    uint64_t recovered;
    status = rbi_segment_recover(rb, &recovered); /* so that nobody listed is dead */
    *count = 0;
    for (uint32_t i = 0; i < rbi_registry_high(&rb->registry); i++) {
        const struct rbi_participant *entry = &rb->registry.entries[i];
        if (rbi_load_total32(&entry->state) == 0) continue; /* [E5]: label and pid are this participant's */
        if (*count < capacity) {
            ringbuf_peer *peer = &peers[*count];
            *peer = (ringbuf_peer){
                .number = i + 1,
                .pid = entry->pid,
                .attached_ns = entry->attached_ns,
                .puts = rbi_load_relaxed64(&entry->puts) - entry->puts_before, /* relaxed: statistics */
                .gets = rbi_load_relaxed64(&entry->gets) - entry->gets_before,
            };
            memcpy(peer->label, entry->label, sizeof peer->label - 1);
        }
        ++*count;
    }
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_check(ringbuf *rb, ringbuf_findings *findings)
{
    if (!rb || !findings) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct rbi_arena_findings found;
    rbi_segment_check(rb, &found);
    *findings = (ringbuf_findings){
        .runs = found.runs,
        .orphaned_blocks = found.orphaned_blocks,
        .orphaned_runs = found.orphaned_runs,
        .broken_runs = found.broken_runs,
        .dangling_messages = found.dangling_messages,
    };
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

const char *ringbuf_name(const ringbuf *rb) { return rb->name; }

const char *ringbuf_path(const ringbuf *rb) { return rb->path; }

ringbuf_status ringbuf_recover(ringbuf *rb, uint64_t *recovered)
{
    if (!rb || !recovered) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_segment_recover(rb, recovered);
    rbi_handle_leave(rb);
    return status;
}

int64_t ringbuf_now_ns(void) { return rbi_monotonic_ns(); }

/* ---- create, open, close, remove ---- */

void ringbuf_options_init(ringbuf_options *options)
{
    *options = (ringbuf_options){
        .struct_bytes = sizeof *options,
        .capacity_bytes = UINT64_C(4) << 20,
        .arena_bytes = UINT64_C(64) << 20,
        .max_participants = 1024,
    };
}

/** The caller's options, or the defaults.  NULL if they were not initialized. */
static const ringbuf_options *checked(const ringbuf_options *options, ringbuf_options *defaults)
{
    if (options) return options->struct_bytes == sizeof *options ? options : NULL;
    ringbuf_options_init(defaults);
    return defaults;
}

ringbuf_status ringbuf_create(ringbuf **out, const char *name, const ringbuf_options *options)
{
    ringbuf_options defaults;
    if (!out) return RINGBUF_E_INVALID;
    *out = NULL;
    options = checked(options, &defaults);
    return options ? rbi_segment_create(out, name, options) : RINGBUF_E_INVALID;
}

ringbuf_status ringbuf_open(ringbuf **out, const char *name, const ringbuf_options *options)
{
    ringbuf_options defaults;
    if (!out) return RINGBUF_E_INVALID;
    *out = NULL;
    options = checked(options, &defaults);
    return options ? rbi_segment_open(out, name, NULL, options) : RINGBUF_E_INVALID;
}

ringbuf_status ringbuf_attach(ringbuf **out, const char *name, const uint8_t *id, const ringbuf_options *options)
{
    ringbuf_options defaults;
    if (!out || !id) return RINGBUF_E_INVALID;
    *out = NULL;
    options = checked(options, &defaults);
    return options ? rbi_segment_open(out, name, id, options) : RINGBUF_E_INVALID;
}

void ringbuf_close(ringbuf *rb)
{
    if (rb) rbi_segment_close(rb);
}

void ringbuf_free(ringbuf *rb) { rbi_segment_free(rb); }

void ringbuf_leave_all(void) { rbi_segment_leave_all(); }

ringbuf_status ringbuf_unlink(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_segment_unlink(rb);
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_unlink_name(const char *name, const ringbuf_options *options)
{
    ringbuf_options defaults;
    options = checked(options, &defaults);
    return options ? rbi_segment_unlink_name(name, options) : RINGBUF_E_INVALID;
}

ringbuf_status ringbuf_collect(uint64_t *removed, const ringbuf_options *options)
{
    ringbuf_options defaults;
    options = checked(options, &defaults);
    return options && removed ? rbi_segment_collect(removed, options) : RINGBUF_E_INVALID;
}
