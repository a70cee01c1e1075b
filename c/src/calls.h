/* calls.h — floor 4: what the files of public calls share: how they wait, what statuses mean, and the steps that several of them take.
 *
 *   put.c      putting one message; reserving room and filling it in place
 *   batch.c    putting and taking several at once
 *   take.c     taking messages, and ending what was taken
 *   bury.c     moving a message that has had its attempts to the dead-letter queue
 *   waiting.c  waiting until an attempt succeeds
 *   turn.c     whose turn it is, of those that wait for room in the arena
 *   queue.c    shutdown and tasks, looking in, making and leaving queues
 *   observe.c  looking at a queue from outside
 *
 * One attempt of a call never waits.  If it finds nothing to do and the deadline allows, rbi_wait_until() tries again. */
#ifndef RBI_CALLS_H
#define RBI_CALLS_H

#include "copy.h"
#include "ready.h"

enum {
    RBI_STUCK_NS = 50000000, /* a record in the way for this long is gone round */
};

/* A message's position: the number of its record in the ring, or of its run's first block in the arena with this bit. */
#define RBI_IN_ARENA (UINT64_C(1) << 63)

/* A reservation's ticket has this bit, and no record's number has. */
#define RBI_RESERVATION (UINT64_C(1) << 62)

/** What an outcome of the ring is to a caller. */
static inline ringbuf_status rbi_status_of(enum rbi_ring_outcome outcome)
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

static inline uint32_t rbi_shutdown_of(const ringbuf *rb) { return rbi_load_total32(&rb->header->shutdown); /* [T3] */ }

/** What a call answers when it finds the queue shut down. */
static inline ringbuf_status rbi_refusal(uint32_t shutdown) { return shutdown <= 2 ? RINGBUF_E_SHUTDOWN : RINGBUF_E_CORRUPT; }

/** Whether this was taken or reserved by another process (which this one was forked from), or through another handle.  relaxed: changes
 *  only by fork. */
static inline bool rbi_is_inherited(const ringbuf *rb, uint64_t generation) { return generation != rbi_load_relaxed64(&rb->generation); }

/** Pin the memory for what this token stands for: before that is kept, in a call that has begun.  RINGBUF_OK or RINGBUF_E_NO_MEMORY. */
static inline ringbuf_status rbi_pin_token(ringbuf *rb, const struct rbi_token *token)
{
    rbi_handle_pin(rb);
    ringbuf_status status = rbi_pins_add(&rb->tokens, token);
    if (status != RINGBUF_OK) rbi_handle_unpin(rb);
    return status;
}

/** It is over, if it was not already. */
static inline void rbi_unpin_token(ringbuf *rb, const struct rbi_token *token)
{
    if (rbi_pins_end(&rb->tokens, token)) rbi_handle_unpin(rb);
}

/* ---- waiting.c ---- */

/** What a call waits for. */
struct rbi_waiting {
    struct rbi_event *event;
    struct rbi_patience *patience;
    const rbi_atomic64 *moved;                          /* counts the messages that this participant has moved this way */
    ringbuf_status (*attempt)(ringbuf *rb, void *call); /* anything but E_TIMEOUT ends the waiting */
    bool (*may_succeed)(ringbuf *rb, void *call);       /* a cheap look */
    bool (*more)(ringbuf *rb);                          /* whether another waiter may succeed as well; NULL: wakes go to all */
};

/** After a first attempt in vain: wait until an attempt ends otherwise, or the deadline. */
ringbuf_status rbi_wait_until(ringbuf *rb, const struct rbi_waiting *waiting, void *call, int64_t deadline_ns);

/** The first attempt has ended with `status`.  Wait as rbi_wait_until() does, and also for pages: while the deadline allows it and something
 *  of this queue may still free some, RINGBUF_E_NO_SPACE is no reason to give up.  `own_runs`: how many runs the call itself has reserved.
 *  RINGBUF_E_NO_SPACE if pages were what was missing at the end. */
ringbuf_status rbi_wait_for_pages_too(ringbuf *rb, const struct rbi_waiting *waiting, void *call, ringbuf_status status, uint64_t own_runs,
                                      int64_t deadline_ns);

/** Give memory that the arena has not used for a while back to the system, if nobody in this process has looked lately. */
void rbi_trim_if_due(ringbuf *rb, int64_t now_ns);

/* ---- turn.c ---- */

/** A call that may have to wait for room in the arena.  `blocks`, of all its runs together, is the caller's to set; the rest begins as 0. */
struct rbi_wait {
    uint64_t blocks;
    uint64_t since;       /* when it began to wait, in the units of turn.c, */
    uint64_t round;       /* and what it has tried since */
    bool began, paused;
};

/** The window that this call (NULL: one that does not wait) leaves alone; 0: none. */
uint64_t rbi_turn_to_spare_slow(ringbuf *rb, const struct rbi_wait *wait, uint64_t window);
static inline uint64_t rbi_turn_to_spare(ringbuf *rb, const struct rbi_wait *wait)
{
    uint64_t window = rbi_load_total64(&rb->header->turn.window); /* [T9 window] */
    return window ? rbi_turn_to_spare_slow(rb, wait, window) : 0;
}

/** There is no room for this call: take the turn if it has waited long enough, or renew it.  Returns whether to try again at once. */
bool rbi_turn_ask(ringbuf *rb, struct rbi_wait *wait);

/** The waiting has ended with this status. */
void rbi_turn_end(ringbuf *rb, const struct rbi_wait *wait, ringbuf_status status);

/* ---- put.c ---- */

struct rbi_reserve_call {
    struct rbi_run run;
    uint64_t size;
    struct rbi_wait *wait; /* NULL: it does not wait */
    bool is_put;           /* refused when the queue is shut down */
};

/** Reserve a run.  E_TIMEOUT: the arena is full. */
ringbuf_status rbi_attempt_reserve(ringbuf *rb, void *reserve_call);

/** The same for one of several runs: without taking the turn. */
ringbuf_status rbi_try_to_reserve(ringbuf *rb, struct rbi_reserve_call *call);

/** Before a put that does not wait reserves runs: is there room in the ring for so many messages of so many cells together?
 *  RINGBUF_E_TIMEOUT if not: then runs would be reserved in vain, and giving them back would wake those who wait for room in the arena,
 *  who may try in vain as well, and wake us. */
ringbuf_status rbi_look_for_room(ringbuf *rb, uint64_t cells, uint64_t items, int64_t deadline_ns);

/** Free a run that is RESERVED by us. */
void rbi_free_run(ringbuf *rb, const struct rbi_run *run);

/** The ring is full.  If that is for a while now because of one who is stopped in the middle of something, go round him. */
bool rbi_went_round_the_stuck(ringbuf *rb, uint64_t size);

/** Make the claimed record one that refers to the run, which holds a message of `size` bytes and is RESERVED by us. */
ringbuf_status rbi_refer(ringbuf *rb, struct rbi_record *record, struct rbi_run *run, size_t size);

/** Copy the parts, one behind another. */
static inline void rbi_gather(uint8_t *to, const ringbuf_part *parts, size_t count)
{
    for (const ringbuf_part *part = parts; part < parts + count; to += part++->size)
        if (part->size) rbi_copy(to, part->data, part->size);
}

/** Claim a record for so many bytes, which gets its pages if need be.  RINGBUF_E_TIMEOUT: the ring is full.
 *  RINGBUF_E_NO_SPACE: the file system has no more pages, and in those of the ring there is no room. */
static inline ringbuf_status rbi_claim(ringbuf *rb, struct rbi_record *record, size_t bytes)
{
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_claim(&rb->ring, record, rb->registry.self, bytes)) == RBI_RING_UNRESERVED) {
        ringbuf_status status = rbi_segment_reserve(rb, record->lane, record->cells);
        if (status != RINGBUF_OK && (status != RINGBUF_E_NO_SPACE || !rbi_ring_make_do(&rb->ring, bytes))) return status;
    }
    return rbi_status_of(outcome);
}

/** A message has been put. */
static inline void rbi_count_put(ringbuf *rb, size_t size)
{
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->puts, 1);
    rbi_own_add64(&me->bytes_put, size);
    RBI_POINT(put_counted);
}

/** Whether another producer may succeed as well. */
static inline bool rbi_some_room(ringbuf *rb) { return rbi_ring_has_room(&rb->ring, 0); }

/* ---- bury.c ---- */

/** Put a copy of a message into the dead-letter queue, without waiting for room.  Returns as ringbuf_create and ringbuf_put, and
 *  RINGBUF_E_INVALID if that queue has another tag.  Opens files and allocates: not in a signal handler. */
ringbuf_status rbi_bury(ringbuf *rb, const void *bytes, size_t size);

/* ---- queue.c ---- */

/** ringbuf_task_done() in a call that has begun. */
ringbuf_status rbi_mark_done(ringbuf *rb);

/* ---- take.c ---- */

/** Throw away what nobody can get any more, if a shutdown at once has come. */
void rbi_discard_if_shut_down(ringbuf *rb);

/** Messages have gone back: wake a consumer, or throw them away if a shutdown at once has come. */
void rbi_after_giving_back(ringbuf *rb);

/** The steps of ringbuf_take, _ack and _nack for whoever does several in one call: in a call that has begun, without waking. */
ringbuf_status rbi_take_first(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns);

/** One attempt.  E_SMALL: the next message is of more than `limit` bytes. */
ringbuf_status rbi_take_another(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, uint64_t limit);
ringbuf_status rbi_end_taken(ringbuf *rb, const ringbuf_message *message);

/** Give back a message that nobody has looked at: the attempt does not count. */
ringbuf_status rbi_return_untouched(ringbuf *rb, const ringbuf_message *message);

#endif
