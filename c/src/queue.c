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
#include "segment.h"

#include <stdlib.h>
#include <string.h>

enum {
    LIVENESS_NS = 100000000,     /* sleepers look for the dead this often */
    STUCK_NS = 50000000,         /* a record in the way for this long is gone round */
    POLL_RECOVERY_NS = 10000000, /* calls that do not sleep look at most this often */
    SPIN_LEAST_NS = 500,
    SPIN_MOST_NS = 32000,
    SPIN_WORTH_NS = 64000,       /* a wait of less than this would have been met by looking a little longer */
    YIELDS = 4,                  /* turns given to others before the first sleep */
    SPIN_PAUSES = 8,             /* between two looks, so as not to pull at the line that the other side is writing */
    LAG_MOST = 128,
    SPIN_LOOKS = 8,              /* looks between two readings of the clock */
};

static ringbuf_status status_of(enum rbi_ring_outcome outcome)
{
    switch (outcome) {
    case RBI_RING_OK: return RINGBUF_OK;
    case RBI_RING_FULL:
    case RBI_RING_EMPTY:
    case RBI_RING_PENDING: return RINGBUF_E_TIMEOUT;
    case RBI_RING_SMALL: return RINGBUF_E_SMALL;
    case RBI_RING_UNRESERVED:
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

/* ---- put ---- */

struct put_call {
    const void *data;
    size_t size;
};

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

static ringbuf_status attempt_put(ringbuf *rb, void *context)
{
    const struct put_call *call = context;
    struct rbi_record record;
    enum rbi_ring_outcome outcome;
    RBI_POINT(put_began);
    while ((outcome = rbi_ring_claim(&rb->ring, &record, rb->registry.self, call->size)) == RBI_RING_UNRESERVED) {
        ringbuf_status status = rbi_segment_reserve(rb, record.lane, record.cells);
        if (status != RINGBUF_OK) return status;
    }
    uint32_t shutdown = shutdown_of(rb);
    if (outcome == RBI_RING_FULL && shutdown) return refusal(shutdown);
    if (outcome == RBI_RING_FULL && went_round_the_stuck(rb, call->size)) return attempt_put(rb, context);
    if (outcome != RBI_RING_OK) return status_of(outcome);
    /* [T3 shutdown] claim, then look at the flag; against "set the flag, then look at the ring": either we see the flag, or whoever
     * drains the queue sees our claim and waits for it. */
    if (shutdown) {
        rbi_ring_void(&rb->ring, &record, rb->registry.self);
        rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claim */
        return refusal(shutdown);
    }
    memcpy(record.payload, call->data, call->size);
    RBI_POINT(payload_written);
    if (rbi_ring_publish(&rb->ring, &record, rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->puts, 1);
    rbi_own_add64(&me->bytes_put, call->size);
    RBI_POINT(put_counted);
    rbi_event_wake_one(&rb->header->items);
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_call(ringbuf *rb, void *call)
{
    return rbi_ring_has_room(&rb->ring, ((const struct put_call *)call)->size) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static bool some_room(ringbuf *rb) { return rbi_ring_has_room(&rb->ring, 0); }

ringbuf_status ringbuf_put(ringbuf *rb, const void *data, size_t size, int64_t deadline_ns)
{
    if (!rb || (!data && size)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct put_call call = {.data = size ? data : "", .size = size};
    if (size > rbi_ring_max_payload(&rb->ring)) status = RINGBUF_E_TOO_LARGE;
    else status = attempt_put(rb, &call);
    if (status == RINGBUF_E_TIMEOUT) {
        struct waiting waiting = {&rb->header->space, &rb->space_patience, &rbi_registry_me(&rb->registry)->puts,
                                  attempt_put, room_for_call, some_room};
        status = wait_until(rb, &waiting, &call, deadline_ns);
    }
    rbi_handle_leave(rb);
    return status;
}

/* ---- get, take, ack, nack ---- */

struct take_call {
    struct rbi_record record;
    uint64_t limit;
};

static ringbuf_status attempt_take(ringbuf *rb, void *context)
{
    struct take_call *call = context;
    RBI_POINT(take_began);
    uint32_t shutdown = shutdown_of(rb); /* before looking at the ring: [T3] */
    if (shutdown >= 2) return refusal(shutdown);
    enum rbi_ring_outcome outcome = rbi_ring_take(&rb->ring, &call->record, rb->registry.self, call->limit);
    if (outcome == RBI_RING_EMPTY && shutdown) return RINGBUF_E_SHUTDOWN;
    return status_of(outcome);
}

static bool message_there(ringbuf *rb, void *call)
{
    (void)call;
    return rbi_ring_may_take(&rb->ring) || shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static bool some_message(ringbuf *rb) { return rbi_ring_may_take(&rb->ring); }

/** Take the next message, waiting for one. */
static inline ringbuf_status take(ringbuf *rb, struct take_call *call, int64_t deadline_ns)
{
    ringbuf_status status = attempt_take(rb, call);
    if (status != RINGBUF_E_TIMEOUT) return status;
    struct waiting waiting = {&rb->header->items, &rb->items_patience, &rbi_registry_me(&rb->registry)->gets,
                              attempt_take, message_there, some_message};
    return wait_until(rb, &waiting, call, deadline_ns);
}

/** The message has been used: count it, then release it, then wake a producer. */
static void finish(ringbuf *rb, const struct rbi_record *record)
{
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->bytes_got, record->size);
    rbi_own_add64(&me->gets, 1); /* [E2] carries it: who sees the record released sees it counted */
    RBI_POINT(get_counted);
    rbi_ring_release(&rb->ring, record);
    rbi_event_wake_one(&rb->header->space);
    RBI_POINT(release_woke);
}

ringbuf_status ringbuf_get(ringbuf *rb, size_t *size, void *buffer, size_t capacity, int64_t deadline_ns)
{
    if (!rb || !size || (!buffer && capacity)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct take_call call = {.limit = capacity};
    status = take(rb, &call, deadline_ns);
    if (status == RINGBUF_OK || status == RINGBUF_E_SMALL) *size = (size_t)call.record.size;
    if (status == RINGBUF_OK) {
        if (call.record.size) memcpy(buffer, call.record.payload, *size);
        RBI_POINT(copied);
        finish(rb, &call.record);
    }
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_take(ringbuf *rb, ringbuf_message *message, int64_t deadline_ns)
{
    if (!rb || !message) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct take_call call = {.limit = UINT64_MAX};
    status = take(rb, &call, deadline_ns);
    if (status == RINGBUF_OK) {
        message->size = (size_t)call.record.size;
        message->data = call.record.payload;
        if (message->buffer && message->size <= message->capacity) {
            memcpy(message->buffer, call.record.payload, message->size);
            message->data = message->buffer;
        }
        message->position = rbi_ring_number_of(&call.record);
        RBI_POINT(copied);
    }
    rbi_handle_leave(rb);
    return status;
}

/** Enter, and find the record that a message stands for. */
static ringbuf_status enter_with_taken(ringbuf *rb, struct rbi_record *record, const ringbuf_message *message)
{
    if (!rb || !message) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (rbi_ring_find_taken(&rb->ring, record, rb->registry.self, message->position) == RBI_RING_OK) return RINGBUF_OK;
    rbi_handle_leave(rb);
    return RINGBUF_E_INVALID;
}

ringbuf_status ringbuf_copy(ringbuf *rb, const ringbuf_message *message, void *buffer)
{
    struct rbi_record record;
    if (!buffer && message && message->size) return RINGBUF_E_INVALID;
    ringbuf_status status = enter_with_taken(rb, &record, message);
    if (status != RINGBUF_OK) return status;
    if (record.size != message->size) status = RINGBUF_E_CORRUPT;
    else if (record.size) memcpy(buffer, record.payload, message->size);
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_ack(ringbuf *rb, const ringbuf_message *message)
{
    struct rbi_record record;
    ringbuf_status status = enter_with_taken(rb, &record, message);
    if (status != RINGBUF_OK) return status;
    finish(rb, &record);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_nack(ringbuf *rb, const ringbuf_message *message)
{
    struct rbi_record record;
    ringbuf_status status = enter_with_taken(rb, &record, message);
    if (status != RINGBUF_OK) return status;
    rbi_ring_give_back(&rb->ring, &record);
    rbi_event_wake_one(&rb->header->items);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
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
    if (immediate) {
        struct rbi_record record;
        while (rbi_ring_take(&rb->ring, &record, rb->registry.self, UINT64_MAX) == RBI_RING_OK)
            rbi_ring_release(&rb->ring, &record);
    }
    rbi_event_wake_all(&rb->header->items);
    rbi_event_wake_all(&rb->header->space);
    rbi_event_wake_all(&rb->header->tasks);
    RBI_POINT(shutdown_woke);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

/** Messages put and neither marked done nor forgiven; never less than there were at the start. */
static ringbuf_status unfinished_tasks(ringbuf *rb, int64_t *tasks)
{
    const uint32_t not_done = 1u << RBI_KIND_READY | 1u << RBI_KIND_TAKEN | 1u << RBI_KIND_RETURNED;
    uint64_t done = rbi_registry_done(&rb->registry); /* [T4 tasks] done, ring, got: in this order */
    uint64_t waiting = 0;
    if (shutdown_of(rb) != 2 && rbi_ring_census(&rb->ring, &waiting, not_done) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
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
    status = status_of(rbi_ring_count(&rb->ring, items));
    if (shutdown_of(rb) == 2) *items = 0; /* what a late put may still have brought is for nobody */
    rbi_handle_leave(rb);
    return status;
}

ringbuf_status ringbuf_has_room(ringbuf *rb, int *room, size_t size)
{
    if (!rb || !room) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    *room = size <= rbi_ring_max_payload(&rb->ring) && rbi_ring_has_room(&rb->ring, size);
    rbi_handle_leave(rb);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_get_stats(ringbuf *rb, ringbuf_stats *stats)
{
    if (!rb || !stats) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    int64_t tasks = 0;
    *stats = (ringbuf_stats){.capacity_bytes = UINT64_C(1) << (rb->stamp.cells_log2 + rb->stamp.cell_log2)};
    status = status_of(rbi_ring_count(&rb->ring, &stats->items));
    if (status == RINGBUF_OK) status = unfinished_tasks(rb, &tasks);
    stats->unfinished = tasks > 0 ? (uint64_t)tasks : 0;
    stats->used_bytes = rbi_ring_used_bytes(&rb->ring);
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
        .max_message_bytes = rbi_ring_max_payload(&rb->ring),
        .file_bytes = stamp->file_bytes,
        .created_ns = stamp->created_ns,
        .max_participants = stamp->max_participants,
        .flags = stamp->flags,
        .permissions = stamp->permissions,
        .creator_pid = stamp->creator_pid,
    };
    memcpy(info->id, stamp->id, sizeof info->id);
    memcpy(info->tag, stamp->tag, sizeof info->tag);
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
