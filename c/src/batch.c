/* batch.c — floor 4: putting several messages, all or none; taking several, and ending them.
 *
 * Put.  Claim a record for every message, then fill all, then publish all; if there is no room for one, void those that were claimed.
 * So as not to claim and void in vain, it first looks whether there is room for all.
 * Runs for large messages are reserved before, all or none, under one turn (turn.c).  An attempt that fails has taken some for a moment, and
 * wakes those that may have missed them; so that two batches do not wake each other for ever, a batch that has failed tries again when it
 * sees room for all, or after a while.  A death before the first publication leaves
 * claims, which are voided; after it, some of the messages have been put, as if by so many puts, and the others have not.
 *
 * Take, end and return: as so many calls for one message, but with one entering of the handle and one wake at the end.  A death in
 * between leaves some messages taken, ended or returned and the others not, as between two such calls; and if it comes before the
 * wake, whoever sleeps looks by himself at his next liveness check, as after a death between a release and its wake. */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

enum {
    FEW = 32,             /* messages for which there is room on the stack */
    RETRY_NS = 100000000, /* see struct put_all_call, next_ns */
};

/** A message on its way in. */
struct outgoing {
    const ringbuf_part *parts;
    size_t count;
    size_t size;
    struct rbi_record record;
};

struct put_all_call {
    struct outgoing *messages;
    size_t count;
    uint64_t cells;       /* of the ring, for all of them */
    struct rbi_run *runs; /* of the messages that are too large for the ring; NULL if none is */
    struct rbi_wait wait; /* for room for all runs */
    int64_t next_ns;      /* runs are reserved no earlier, unless there is room for all to be seen; 0: at once */
};

static inline bool is_large(const ringbuf *rb, const struct outgoing *message) { return message->size > rb->ring_limit; }

static inline size_t bytes_in_ring(const ringbuf *rb, const struct outgoing *message)
{
    return is_large(rb, message) ? RBI_REFERENCE_BYTES : message->size;
}

static void free_runs(ringbuf *rb, const struct put_all_call *call, size_t upto)
{
    for (size_t i = 0; i < upto; i++)
        if (is_large(rb, &call->messages[i])) rbi_free_run(rb, &call->runs[i]);
}

/** There were no pages for the run with this number: free those before it, without keeping pages that another call may need. */
static void free_runs_with_pages(ringbuf *rb, const struct put_all_call *call, size_t upto)
{
    for (size_t i = 0; i < upto; i++)
        if (is_large(rb, &call->messages[i])) rbi_segment_free_with_pages(rb, &call->runs[i]);
    rbi_wake_for_room(rb);
}

/** Reserve runs for all large messages, or for none. */
static ringbuf_status try_to_reserve_all(ringbuf *rb, struct put_all_call *call)
{
    for (size_t i = 0; i < call->count; i++) {
        if (!is_large(rb, &call->messages[i])) continue;
        struct rbi_reserve_call room = {.size = call->messages[i].size, .wait = &call->wait, .is_put = true};
        ringbuf_status status = rbi_try_to_reserve(rb, &room);
        if (status != RINGBUF_OK) {
            if (status == RINGBUF_E_NO_SPACE) free_runs_with_pages(rb, call, i);
            else free_runs(rb, call, i);
            return status;
        }
        call->runs[i] = room.run;
    }
    return RINGBUF_OK;
}

/** Whether there is room for all runs to be seen. */
static bool room_for_runs(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    if (rbi_shutdown_of(rb) || rbi_handle_is_closed(rb)) return true;
    struct rbi_fitting fitting;
    rbi_arena_begin_fitting(&rb->arena, &fitting, rbi_turn_to_spare(rb, &call->wait));
    for (size_t i = 0; i < call->count; i++)
        if (is_large(rb, &call->messages[i]) && !rbi_arena_fits_too(&rb->arena, &fitting, call->messages[i].size)) return false;
    return true;
}

static ringbuf_status attempt_reserve_all(ringbuf *rb, void *context)
{
    struct put_all_call *call = context;
    ringbuf_status status = RINGBUF_E_TIMEOUT;
    if (call->next_ns <= rbi_monotonic_ns() || room_for_runs(rb, call)) status = try_to_reserve_all(rb, call);
    if (status == RINGBUF_E_TIMEOUT && rbi_turn_ask(rb, &call->wait)) status = try_to_reserve_all(rb, call);
    if (status == RINGBUF_E_TIMEOUT && call->next_ns <= rbi_monotonic_ns()) call->next_ns = rbi_monotonic_ns() + RETRY_NS;
    return status;
}

static void void_claims(ringbuf *rb, const struct put_all_call *call, size_t claimed)
{
    while (claimed) rbi_ring_void(&rb->ring, &call->messages[--claimed].record, rb->registry.self);
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
        rbi_ring_look_ahead(&rb->ring, call->cells);
        while (claimed < call->count && status == RINGBUF_OK) {
            status = rbi_claim(rb, &call->messages[claimed].record, bytes_in_ring(rb, &call->messages[claimed]));
            if (status == RINGBUF_OK) claimed++;
        }
    } else {
        status = RINGBUF_E_TIMEOUT;
    }
    uint32_t shutdown = rbi_shutdown_of(rb); /* [T3] as in attempt_put() */
    if (shutdown) status = rbi_refusal(shutdown);
    for (size_t i = 0; status == RINGBUF_OK && i < call->count; i++) {
        struct outgoing *message = &call->messages[i];
        if (is_large(rb, message)) status = rbi_refer(rb, &message->record, &call->runs[i], message->size);
        else if (message->count == 1 && message->size) memcpy(message->record.payload, message->parts->data, message->size);
        else rbi_gather(message->record.payload, message->parts, message->count);
    }
    RBI_POINT(payload_written);
    if (status != RINGBUF_OK) {
        if (claimed) void_claims(rb, call, claimed);
        if (status == RINGBUF_E_TIMEOUT && rbi_went_round_the_stuck(rb, call->cells << rb->stamp.cell_log2)) return attempt_put_all(rb, context);
        return status;
    }
    for (size_t i = 0; i < call->count; i++) {
        if (rbi_ring_publish(&rb->ring, &call->messages[i].record, rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
        rbi_count_put(rb, call->messages[i].size);
    }
    rbi_wake_items(rb); /* and he the next one: rbi_wait_until() */
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_all(ringbuf *rb, void *context)
{
    const struct put_all_call *call = context;
    return rbi_ring_has_room_for(&rb->ring, call->cells, call->count) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** Note where each message lies and add up what they need.  RINGBUF_E_TOO_LARGE if they can never be in the queue together.
 *  `part_counts` NULL: each is one part. */
static ringbuf_status measure(ringbuf *rb, struct put_all_call *call, const ringbuf_part *part, const size_t *part_counts, size_t *large)
{
    uint64_t blocks = 0;
    bool too_large = false;
    *large = 0;
    for (size_t i = 0; i < call->count; i++) {
        struct outgoing *message = &call->messages[i];
        message->parts = part;
        message->count = part_counts ? part_counts[i] : 1;
        message->size = 0;
        for (const ringbuf_part *end = part + message->count; part < end; part++) {
            if (!part->data && part->size) return RINGBUF_E_INVALID;
            if (__builtin_add_overflow(message->size, part->size, &message->size)) return RINGBUF_E_TOO_LARGE;
        }
        call->cells += rbi_ring_cells_for(&rb->ring, bytes_in_ring(rb, message));
        if (!is_large(rb, message)) continue;
        ++*large;
        too_large |= message->size > rbi_arena_bytes(&rb->arena);
        blocks += rbi_arena_blocks_for(&rb->arena, message->size);
    }
    call->wait.blocks = blocks;
    too_large |= call->cells > rbi_ring_cells(&rb->ring) / 2 || blocks > rb->arena.blocks;
    return too_large || (rb->stamp.max_items && call->count > rb->stamp.max_items) ? RINGBUF_E_TOO_LARGE : RINGBUF_OK;
}

static ringbuf_status put_all(ringbuf *rb, struct put_all_call *call, size_t large, int64_t deadline_ns)
{
    rbi_atomic64 *puts = &rbi_registry_me(&rb->registry)->puts;
    ringbuf_status status = RINGBUF_OK;
    if (large) {
        struct rbi_waiting room = {&rb->header->room, &rb->room_patience, puts, attempt_reserve_all, room_for_runs, NULL};
        status = rbi_look_for_room(rb, call->cells, call->count, deadline_ns);
        if (status != RINGBUF_OK) return status;
        status = rbi_wait_for_pages_too(rb, &room, call, attempt_reserve_all(rb, call), 0, deadline_ns);
        rbi_turn_end(rb, &call->wait, status);
        if (status == RINGBUF_E_TIMEOUT) return RINGBUF_E_ARENA_FULL;
        if (status != RINGBUF_OK) return status;
        for (size_t i = 0; i < call->count; i++)
            if (is_large(rb, &call->messages[i])) rbi_gather(call->runs[i].payload, call->messages[i].parts, call->messages[i].count);
    }
    struct rbi_waiting space = {&rb->header->space, &rb->space_patience, puts, attempt_put_all, room_for_all, rbi_some_room};
    status = attempt_put_all(rb, call);
    if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_NO_SPACE)
        status = rbi_wait_for_pages_too(rb, &space, call, status, large, deadline_ns);
    if (status != RINGBUF_OK && large) free_runs(rb, call, call->count);
    return status;
}

ringbuf_status ringbuf_put_all_parts(ringbuf *rb, const ringbuf_part *parts, const size_t *part_counts, size_t count, int64_t deadline_ns)
{
    if (!rb || (!parts && !part_counts && count)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct outgoing few[FEW]; /* not initialised: measure() fills what is used */
    struct put_all_call call = {.messages = few, .count = count};
    if (count > FEW) call.messages = count <= SIZE_MAX / sizeof *few ? malloc(count * sizeof *few) : NULL;
    size_t large = 0;
    status = call.messages ? measure(rb, &call, parts, part_counts, &large) : RINGBUF_E_NO_MEMORY;
    if (status == RINGBUF_OK && large && !(call.runs = calloc(count, sizeof *call.runs))) status = RINGBUF_E_NO_MEMORY;
    if (status == RINGBUF_OK && count) status = put_all(rb, &call, large, deadline_ns);
    free(call.runs);
    if (call.messages != few) free(call.messages);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_put_all(ringbuf *rb, const ringbuf_part *messages, size_t count, int64_t deadline_ns)
{
    return ringbuf_put_all_parts(rb, messages, NULL, count, deadline_ns);
}

/* ---- take, end, return ---- */

ringbuf_status ringbuf_take_many(ringbuf *rb, ringbuf_message *messages, size_t *count, size_t most, size_t most_bytes, void *buffer,
                                 size_t capacity, int64_t deadline_ns)
{
    if (!rb || !messages || !count || !most || (!buffer && capacity)) return RINGBUF_E_INVALID;
    *count = 0;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    uint8_t *to = buffer;
    size_t taken = 0;
    while (taken < most && (taken == 0 || most_bytes)) {
        ringbuf_message *message = &messages[taken];
        status = taken ? rbi_take_another(rb, message, to, capacity, most_bytes) : rbi_take_first(rb, message, to, capacity, deadline_ns);
        if (status != RINGBUF_OK) break;
        taken++;
        most_bytes -= message->size < most_bytes ? message->size : most_bytes;
        if (!message->copied) continue; /* too large for what is left of the buffer */
        to += message->size;
        capacity -= message->size;
    }
    if (taken > 1) rbi_ready_after_take(rb, true); /* the first has looked by itself */
    status = rbi_handle_leave(rb, taken ? RINGBUF_OK : status);
    *count = status == RINGBUF_OK ? taken : 0;
    return status;
}

ringbuf_status ringbuf_ack_all(ringbuf *rb, const ringbuf_message *messages, size_t count)
{
    if (!rb || (!messages && count)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    for (size_t i = 0; i < count; i++) {
        ringbuf_status ended = rbi_end_taken(rb, &messages[i]);
        if (ended != RINGBUF_OK) status = ended;
    }
    if (count) rbi_wake_space(rb); /* and he the next one, if there is room for both */
    RBI_POINT(release_woke);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_return_all(ringbuf *rb, const ringbuf_message *messages, size_t count)
{
    if (!rb || (!messages && count)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    for (size_t i = 0; i < count; i++) {
        ringbuf_status returned = rbi_return_untouched(rb, &messages[i]);
        if (returned != RINGBUF_OK) status = returned;
    }
    if (count) rbi_after_giving_back(rb);
    return rbi_handle_leave(rb, status);
}
