/* take.c — floor 4: taking messages, and ending what was taken. */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

enum { PASSED_FEW = 4 };

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
        rbi_wake_items(rb);
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
    rbi_wake_space(rb);
    return RINGBUF_OK;
}

static ringbuf_status look_for_any(ringbuf *rb, struct taken *taken)
{
    RBI_POINT(take_began);
    uint32_t shutdown = rbi_shutdown_of(rb); /* before looking at the ring: [T3] */
    if (shutdown >= 2) return rbi_refusal(shutdown);
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_take(&rb->ring, &taken->record, rb->registry.self, taken->limit)) == RBI_RING_ASIDE) {
        ringbuf_status status = take_aside(rb, taken);
        if (status != RINGBUF_E_INTR) return status;
    }
    if (outcome == RBI_RING_EMPTY && shutdown) return RINGBUF_E_SHUTDOWN;
    if (outcome == RBI_RING_OK && taken->record.reference) return follow_reference(rb, taken);
    return rbi_status_of(outcome);
}

static inline ringbuf_status finish(ringbuf *rb, const struct taken *taken);
static void move_into_arena(ringbuf *rb, struct taken *taken);
static ringbuf_status give_back(ringbuf *rb, const struct taken *taken);

static inline bool has_had_its_attempts(const ringbuf *rb, const struct taken *taken)
{
    const uint32_t attempts = taken->in_arena ? taken->run.attempts : taken->record.attempts;
    return rb->stamp.max_attempts && attempts > rb->stamp.max_attempts;
}

/** Messages that have had their attempts and could not be moved: taken by us until the end of the call, so that it finds what is
 *  behind. */
struct passed {
    struct taken *all;
    size_t count, room;
    struct taken own[PASSED_FEW];
};

static bool pass_over(ringbuf *rb, struct passed *passed, struct taken *taken)
{
    if (passed->count == passed->room) {
        size_t room = 4 * passed->room;
        struct taken *more = malloc(room * sizeof *more);
        if (!more) return false;
        memcpy(more, passed->all, passed->count * sizeof *more);
        if (passed->all != passed->own) free(passed->all);
        passed->all = more;
        passed->room = room;
    }
    if (!taken->in_arena) move_into_arena(rb, taken); /* it may stay for long, and must not hold up the ring */
    passed->all[passed->count++] = *taken;
    return true;
}

static void return_untouched(ringbuf *rb, struct taken *taken)
{
    if (taken->in_arena) rbi_arena_uncount_attempt(&rb->arena, &taken->run);
    else rbi_ring_uncount_attempt(&rb->ring, &taken->record);
    give_back(rb, taken);
}

/** We have taken a message that has had its attempts: move it to the dead-letter queue, and look on.
 *
 *  If that queue cannot take it (it is full, shut down, of another tag, or cannot be made) the message stays here and must not
 *  keep others from being found: we hold it, and all of its kind that come, until the call has found another message or none,
 *  then give them back, and the attempt does not count.  So nothing is lost, nobody waits for it, and each call tries once.
 *  Where there is nothing else, the answer is RINGBUF_E_DEAD_LETTER. */
static __attribute__((noinline)) ringbuf_status look_past_the_dead(ringbuf *rb, struct taken *taken)
{
    struct passed passed; /* not initialised as a whole: most of it is room */
    passed.all = passed.own;
    passed.count = 0;
    passed.room = PASSED_FEW;
    ringbuf_status trouble = RINGBUF_OK, status = RINGBUF_OK;
    while (status == RINGBUF_OK && has_had_its_attempts(rb, taken)) {
        if (trouble == RINGBUF_OK) trouble = rbi_bury(rb, bytes_of(taken), (size_t)size_of(taken));
        if (trouble == RINGBUF_OK) {
            rbi_add_relaxed64(&rb->header->dead_letters, 1); /* relaxed: a statistic */
            if (finish(rb, taken) == RINGBUF_OK) rbi_mark_done(rb);
            RBI_POINT(letter_ended);
        } else if (!pass_over(rb, &passed, taken)) {
            return_untouched(rb, taken);
            status = RINGBUF_E_DEAD_LETTER;
            break;
        }
        taken->in_arena = false;
        status = look_for_any(rb, taken);
    }
    for (size_t i = 0; i < passed.count; i++) return_untouched(rb, &passed.all[i]);
    if (passed.count) rbi_after_giving_back(rb);
    if (passed.count && status == RINGBUF_E_TIMEOUT) status = RINGBUF_E_DEAD_LETTER;
    if (passed.all != passed.own) free(passed.all);
    if (trouble != RINGBUF_OK) rbi_store_relaxed32(&rb->letter_trouble, (uint32_t)trouble); /* relaxed: for whoever asks after this call */
    return status;
}

static inline ringbuf_status look_for_message(ringbuf *rb, struct taken *taken)
{
    ringbuf_status status = look_for_any(rb, taken);
    return status == RINGBUF_OK && has_had_its_attempts(rb, taken) ? look_past_the_dead(rb, taken) : status;
}

static ringbuf_status attempt_take(ringbuf *rb, void *taken)
{
    ringbuf_status status = look_for_message(rb, taken);
    if (status == RINGBUF_OK || status == RINGBUF_E_TIMEOUT) rbi_ready_after_take(rb, status == RINGBUF_OK);
    return status;
}

static bool message_there(ringbuf *rb, void *call)
{
    (void)call;
    return rbi_ring_may_take(&rb->ring) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static bool some_message(ringbuf *rb) { return rbi_ring_may_take(&rb->ring); }

static ringbuf_status take_patiently(ringbuf *rb, struct taken *taken, int64_t deadline_ns)
{
    struct rbi_waiting waiting = {&rb->header->items, &rb->items_patience, &rbi_registry_me(&rb->registry)->gets,
                              attempt_take, message_there, some_message};
    return rbi_wait_until(rb, &waiting, taken, deadline_ns);
}

/** The queue was shut down and seems drained.  What the dead had taken is still to be delivered: look for them before saying so. */
static ringbuf_status take_from_the_dead(ringbuf *rb, struct taken *taken)
{
    uint64_t recovered = 0;
    if (rbi_shutdown_of(rb) == 1) rbi_segment_recover(rb, &recovered);
    return recovered ? attempt_take(rb, taken) : RINGBUF_E_SHUTDOWN;
}

/** Take the next message, waiting for one. */
static inline ringbuf_status take(ringbuf *rb, struct taken *taken, int64_t deadline_ns)
{
    ringbuf_status status = attempt_take(rb, taken);
    while (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) {
        if (status == RINGBUF_E_TIMEOUT) status = take_patiently(rb, taken, deadline_ns);
        if (status != RINGBUF_E_SHUTDOWN) break;
        status = take_from_the_dead(rb, taken);
        if (status != RINGBUF_E_TIMEOUT) break; /* one of the dead was in the way, and now a put is that has not ended: wait for it */
    }
    return status;
}

static inline void count_get(ringbuf *rb, uint64_t size)
{
    struct rbi_participant *me = rbi_registry_me(&rb->registry);
    rbi_own_add64(&me->bytes_got, size);
    rbi_own_add64(&me->gets, 1); /* [E2] and [E9] carry it: who sees the message gone sees it counted */
    RBI_POINT(get_counted);
}

/** The message has been used: count it, then release it.  Its room in the ring is there for a producer, who is yet to be woken. */
static inline ringbuf_status end_of(ringbuf *rb, const struct taken *taken)
{
    count_get(rb, size_of(taken));
    if (taken->in_arena) {
        if (rbi_arena_end_lease(&rb->arena, &taken->run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_INVALID;
        rbi_free_run(rb, &taken->run);
        return RINGBUF_OK;
    }
    rbi_ring_release(&rb->ring, &taken->record);
    return RINGBUF_OK;
}

/** The same, and wake a producer. */
static inline ringbuf_status finish(ringbuf *rb, const struct taken *taken)
{
    ringbuf_status status = end_of(rb, taken);
    if (taken->in_arena) return status;
    rbi_wake_space(rb);
    RBI_POINT(release_woke);
    return status;
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
    return rbi_handle_leave(rb, status);
}

/** Tell the caller about the message that was taken for it, and copy it if it fits. */
static void describe(ringbuf *rb, ringbuf_message *message, const struct taken *taken, void *buffer, size_t capacity)
{
    message->size = (size_t)size_of(taken);
    message->data = bytes_of(taken);
    message->in_arena = taken->in_arena;
    message->attempts = taken->in_arena ? taken->run.attempts : taken->record.attempts;
    message->turn = taken->in_arena ? taken->run.turn : taken->record.turn;
    message->position = taken->in_arena ? RBI_IN_ARENA | taken->run.first : rbi_ring_number_of(&taken->record);
    message->ticket = taken->in_arena ? taken->run.record : 0;
    message->generation = rbi_load_relaxed64(&rb->generation); /* relaxed: changes only by fork */
    message->copied = buffer && message->size <= capacity;
    if (message->copied) {
        rbi_copy(buffer, message->data, message->size);
        message->data = buffer;
    }
    RBI_POINT(copied);
}

/** Move the message from the ring into the arena, so that it can stay with us; if there is no room, it stays where it is. */
static void move_into_arena(ringbuf *rb, struct taken *taken)
{
    struct rbi_reserve_call room = {.size = taken->record.size};
    if (rb->arena.blocks == 0 || rbi_attempt_reserve(rb, &room) != RINGBUF_OK) return;
    memcpy(room.run.payload, taken->record.payload, taken->record.size);
    room.run.size = taken->record.size;
    room.run.attempts = taken->record.attempts;
    room.run.turn = taken->record.turn;
    room.run.record = rbi_ring_number_of(&taken->record);
    if (rbi_arena_lease_copy(&rb->arena, &room.run, rb->registry.self) != RBI_ARENA_OK) return;
    rbi_ring_release(&rb->ring, &taken->record);
    rbi_wake_space(rb);
    taken->run = room.run;
    taken->in_arena = true;
}

/** Take a message and tell the caller about it; if it is to stay with the caller, out of the ring. */
static ringbuf_status take_for_caller(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns, bool to_stay)
{
    if (!rb || !message || (!buffer && capacity)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct taken taken;
    taken.in_arena = false;
    taken.limit = UINT64_MAX;
    status = take(rb, &taken, deadline_ns);
    if (status == RINGBUF_OK) {
        if (to_stay && !taken.in_arena) move_into_arena(rb, &taken);
        describe(rb, message, &taken, buffer, capacity);
    }
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_take(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns)
{
    return take_for_caller(rb, message, buffer, capacity, deadline_ns, false);
}

ringbuf_status ringbuf_lease(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns)
{
    return take_for_caller(rb, message, buffer, capacity, deadline_ns, true);
}

/** What a token stands for, if it is of a taking through this handle that was not ended: in the arena, with a run of this kind.
 *  Every field of the token must be that of this taking; a token can be anything. */
static bool find_taken(ringbuf *rb, struct taken *taken, const ringbuf_message *message, enum rbi_block_kind kind)
{
    if (rbi_is_inherited(rb, message->generation)) return false;
    taken->in_arena = message->position & RBI_IN_ARENA;
    if (!taken->in_arena)
        return rbi_ring_find_taken(&rb->ring, &taken->record, rb->registry.self, message->position) == RBI_RING_OK &&
               taken->record.attempts == message->attempts && taken->record.turn == message->turn;
    return rbi_arena_find(&rb->arena, &taken->run, kind, rb->registry.self, message->position & ~RBI_IN_ARENA, message->ticket) ==
               RBI_ARENA_OK && taken->run.attempts == message->attempts && taken->run.turn == message->turn;
}

/** Enter, and find what a message stands for. */
static ringbuf_status enter_with_taken(ringbuf *rb, struct taken *taken, const ringbuf_message *message)
{
    if (!rb || !message) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (find_taken(rb, taken, message, RBI_BLOCK_LEASED)) return RINGBUF_OK;
    return rbi_handle_leave(rb, RINGBUF_E_INVALID);
}

ringbuf_status ringbuf_copy(ringbuf *rb, const ringbuf_message *message, void *buffer, size_t offset, size_t size)
{
    struct taken taken;
    if (!buffer && size) return RINGBUF_E_INVALID;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    if (offset > size_of(&taken) || size > size_of(&taken) - offset) status = RINGBUF_E_INVALID;
    else if (size) rbi_copy(buffer, (const uint8_t *)bytes_of(&taken) + offset, size);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_ack(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    status = finish(rb, &taken);
    return rbi_handle_leave(rb, status);
}

void rbi_discard_if_shut_down(ringbuf *rb)
{
    if (rbi_shutdown_of(rb) != 2) return;
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
            rbi_free_run(rb, &taken.run);
        }
    }
}

/** The message goes back to the queue, whose consumers are yet to be woken. */
static ringbuf_status give_back(ringbuf *rb, const struct taken *taken)
{
    if (taken->in_arena) {
        if (rbi_arena_give_back(&rb->arena, &taken->run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_INVALID;
        rbi_ring_set_returned(&rb->ring);
    } else {
        rbi_ring_give_back(&rb->ring, &taken->record);
    }
    return RINGBUF_OK;
}

void rbi_after_giving_back(ringbuf *rb)
{
    rbi_wake_items(rb);
    rbi_discard_if_shut_down(rb);
    if (rbi_shutdown_of(rb) == 2) rbi_wake_joiners(rb); /* it was the last thing a join waited for, perhaps */
}

ringbuf_status ringbuf_nack(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    status = give_back(rb, &taken);
    rbi_after_giving_back(rb);
    return rbi_handle_leave(rb, status);
}

static inline struct rbi_token token_of(const ringbuf_message *message)
{
    return (struct rbi_token){
        .position = message->position, .ticket = message->ticket, .generation = message->generation, .turn = message->turn};
}

ringbuf_status ringbuf_keep(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    ringbuf_status status = enter_with_taken(rb, &taken, message);
    if (status != RINGBUF_OK) return status;
    const struct rbi_token token = token_of(message);
    status = taken.in_arena ? rbi_pin_token(rb, &token) : RINGBUF_E_INVALID;
    if (status != RINGBUF_OK) return rbi_handle_leave(rb, status);
    count_get(rb, taken.run.size);
    if (rbi_arena_keep(&rb->arena, &taken.run, rb->registry.self) != RBI_ARENA_OK) status = RINGBUF_E_INVALID;
    status = rbi_handle_leave(rb, status);
    if (status != RINGBUF_OK) rbi_unpin_token(rb, &token); /* lost, perhaps: it is not kept */
    return status;
}

ringbuf_status ringbuf_release(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    if (!rb || !message) return RINGBUF_E_INVALID;
    const struct rbi_token token = token_of(message);
    if (token.ticket & RBI_RESERVATION || !rbi_pins_end(&rb->tokens, &token)) return RINGBUF_E_INVALID;
    ringbuf_status status = RINGBUF_OK;
    if (!rbi_is_inherited(rb, token.generation) && !rbi_handle_is_lost(rb)) {
        if (find_taken(rb, &taken, message, RBI_BLOCK_HELD) &&
            rbi_arena_end_hold(&rb->arena, &taken.run, rb->registry.self) == RBI_ARENA_OK)
            rbi_free_run(rb, &taken.run);
        else status = RINGBUF_E_CORRUPT; /* it was kept, and shared memory says otherwise */
    }
    if (rbi_handle_is_lost(rb)) status = RINGBUF_E_CORRUPT;
    rbi_handle_unpin(rb);
    return status;
}

ringbuf_status ringbuf_pin(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    rbi_handle_pin(rb);
    rbi_pins_add_plain(&rb->tokens);
    status = rbi_handle_leave(rb, RINGBUF_OK);
    if (status != RINGBUF_OK) ringbuf_unpin(rb);
    return status;
}

ringbuf_status ringbuf_unpin(ringbuf *rb)
{
    if (!rb || !rbi_pins_end_plain(&rb->tokens)) return RINGBUF_E_INVALID;
    rbi_handle_unpin(rb);
    return RINGBUF_OK;
}

/* ---- the same for several, without entering and waking ---- */

ringbuf_status rbi_take_first(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns)
{
    struct taken taken = {.limit = UINT64_MAX};
    ringbuf_status status = take(rb, &taken, deadline_ns);
    if (status == RINGBUF_OK) describe(rb, message, &taken, buffer, capacity);
    return status;
}

ringbuf_status rbi_take_another(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, uint64_t limit)
{
    struct taken taken = {.limit = limit};
    ringbuf_status status = look_for_message(rb, &taken);
    if (status == RINGBUF_OK) describe(rb, message, &taken, buffer, capacity);
    return status;
}

ringbuf_status rbi_end_taken(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    return find_taken(rb, &taken, message, RBI_BLOCK_LEASED) ? end_of(rb, &taken) : RINGBUF_E_INVALID;
}

ringbuf_status rbi_return_untouched(ringbuf *rb, const ringbuf_message *message)
{
    struct taken taken;
    if (!find_taken(rb, &taken, message, RBI_BLOCK_LEASED)) return RINGBUF_E_INVALID;
    if (taken.in_arena) rbi_arena_uncount_attempt(&rb->arena, &taken.run);
    else rbi_ring_uncount_attempt(&rb->ring, &taken.record);
    return give_back(rb, &taken);
}
