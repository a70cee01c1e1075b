/* batch.c — floor 4: putting several messages, all or none.
 *
 * Claim a record for every message, then fill all, then publish all; if there is no room for one, void those that were claimed.  So as
 * not to claim and void in vain, it first looks whether there is room for all.  A death before the first publication leaves claims,
 * which are voided; after it, some of the messages have been put, as if by so many puts, and the others have not. */
#include "calls.h"
#include "copy.h"

#include <stdlib.h>
#include <string.h>

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
        if (is_large(rb, &call->messages[i])) rbi_free_run(rb, &call->runs[i]);
}

/** Reserve runs for all large messages, or for none. */
static ringbuf_status attempt_reserve_all(ringbuf *rb, void *context)
{
    struct put_all_call *call = context;
    for (size_t i = 0; i < call->count; i++) {
        if (!is_large(rb, &call->messages[i])) continue;
        struct rbi_reserve_call room = {.size = call->messages[i].size, .is_put = true};
        ringbuf_status status = rbi_attempt_reserve(rb, &room);
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
    return rbi_arena_has_room(&rb->arena, largest) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

static void void_claims(ringbuf *rb, const struct put_all_call *call, size_t claimed)
{
    while (claimed) rbi_ring_void(&rb->ring, &call->records[--claimed], rb->registry.self);
    rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claims */
    if (rbi_event_wake_all(&rb->header->space)) rbi_ready_tell(rb, &rb->header->space);
}

static ringbuf_status attempt_put_all(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    size_t claimed = 0;
    ringbuf_status status = RINGBUF_OK;
    RBI_POINT(put_began);
    if (rbi_ring_has_room_for(&rb->ring, call->cells, call->count)) {
        while (claimed < call->count && status == RINGBUF_OK) {
            status = rbi_claim(rb, &call->records[claimed], bytes_in_ring(rb, &call->messages[claimed]));
            if (status == RINGBUF_OK) claimed++;
        }
    } else {
        status = RINGBUF_E_TIMEOUT;
    }
    uint32_t shutdown = rbi_shutdown_of(rb); /* [T3] as in attempt_put() */
    if (shutdown) status = rbi_refusal(shutdown);
    for (size_t i = 0; status == RINGBUF_OK && i < call->count; i++) {
        const ringbuf_part *message = &call->messages[i];
        if (is_large(rb, message)) status = rbi_refer(rb, &call->records[i], &call->runs[i], message->size);
        else if (message->size) memcpy(call->records[i].payload, message->data, message->size);
    }
    RBI_POINT(payload_written);
    if (status != RINGBUF_OK) {
        if (claimed) void_claims(rb, call, claimed);
        if (status == RINGBUF_E_TIMEOUT && rbi_went_round_the_stuck(rb, call->cells << rb->stamp.cell_log2)) return attempt_put_all(rb, context);
        return status;
    }
    for (size_t i = 0; i < call->count; i++) {
        if (rbi_ring_publish(&rb->ring, &call->records[i], rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
        rbi_count_put(rb, call->messages[i].size);
    }
    rbi_wake_items(rb); /* and he the next one: rbi_event_pass_on() */
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_all(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    return rbi_ring_has_room_for(&rb->ring, call->cells, call->count) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
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
        struct rbi_waiting room = {&rb->header->room, &rb->room_patience, puts, attempt_reserve_all, room_for_runs, NULL};
        status = attempt_reserve_all(rb, call);
        if (status == RINGBUF_E_TIMEOUT) status = rbi_wait_until(rb, &room, call, deadline_ns);
        if (status == RINGBUF_E_TIMEOUT) return RINGBUF_E_ARENA_FULL;
        if (status != RINGBUF_OK) return status;
        for (size_t i = 0; i < call->count; i++)
            if (is_large(rb, &call->messages[i])) rbi_copy(call->runs[i].payload, call->messages[i].data, call->messages[i].size);
    }
    struct rbi_waiting space = {&rb->header->space, &rb->space_patience, puts, attempt_put_all, room_for_all, rbi_some_room};
    status = attempt_put_all(rb, call);
    if (status == RINGBUF_E_TIMEOUT) status = rbi_wait_until(rb, &space, call, deadline_ns);
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
