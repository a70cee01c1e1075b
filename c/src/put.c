/* put.c — floor 4: putting one message; reserving room in the arena, filling it in place, and committing it. */
#include "calls.h"

#include <string.h>

/* ---- the arena ---- */

void rbi_free_run(ringbuf *rb, const struct rbi_run *run)
{
    int64_t now_ns = rbi_monotonic_ns();
    rbi_arena_free(&rb->arena, run, rb->registry.self, (uint64_t)now_ns / 1000000000);
    rbi_wake_for_room(rb);
    rbi_trim_if_due(rb, now_ns);
}

ringbuf_status rbi_try_to_reserve(ringbuf *rb, struct rbi_reserve_call *call)
{
    uint32_t shutdown = call->is_put ? rbi_shutdown_of(rb) : 0;
    if (shutdown) return rbi_refusal(shutdown);
    enum rbi_arena_outcome outcome;
    uint64_t parts;
    bool gave_back;
    do {
        uint64_t spare = rbi_turn_to_spare(rb, call->wait);
        outcome = rbi_arena_allocate(&rb->arena, &call->run, rb->registry.self, call->size, spare, &parts, &gave_back);
        if (gave_back) rbi_wake_for_room(rb);
        if (outcome == RBI_ARENA_PARTS) {
            ringbuf_status status = rbi_segment_reserve_parts(rb, parts);
            if (status != RINGBUF_OK) return status;
        }
    } while (outcome == RBI_ARENA_PARTS);
    if (outcome != RBI_ARENA_OK) return RINGBUF_E_TIMEOUT;
    if (call->run.backed) return RINGBUF_OK;
    ringbuf_status status = rbi_segment_back(rb, &call->run);
    if (status != RINGBUF_OK) {
        /* What pages the run has are given back: others may need just these, and free blocks with pages are what those look for that
         * wait for pages (waiting.c). */
        rbi_segment_free_with_pages(rb, &call->run);
        rbi_wake_for_room(rb);
    }
    return status;
}

ringbuf_status rbi_attempt_reserve(ringbuf *rb, void *context)
{
    struct rbi_reserve_call *call = context;
    ringbuf_status status = rbi_try_to_reserve(rb, call);
    return status == RINGBUF_E_TIMEOUT && rbi_turn_ask(rb, call->wait) ? rbi_try_to_reserve(rb, call) : status;
}

struct room_call {
    uint64_t cells, items;
};

static bool some_room_for(ringbuf *rb, void *context)
{
    const struct room_call *call = context;
    return rbi_ring_has_room_for(&rb->ring, call->cells, call->items) || rbi_shutdown_of(rb);
}

static ringbuf_status attempt_look(ringbuf *rb, void *context)
{
    const struct room_call *call = context;
    if (some_room_for(rb, context) || rbi_went_round_the_stuck(rb, call->cells << rb->stamp.cell_log2)) return RINGBUF_OK;
    return RINGBUF_E_TIMEOUT;
}

ringbuf_status rbi_look_for_room(ringbuf *rb, uint64_t cells, uint64_t items, int64_t deadline_ns)
{
    struct room_call call = {cells, items};
    if (deadline_ns > rbi_monotonic_ns()) return RINGBUF_OK; /* it waits for the ring with what it has reserved */
    ringbuf_status status = attempt_look(rb, &call);
    struct rbi_waiting waiting = {&rb->header->space, &rb->space_patience, &rbi_registry_me(&rb->registry)->puts,
                                  attempt_look, some_room_for, NULL};
    return status == RINGBUF_E_TIMEOUT ? rbi_wait_until(rb, &waiting, &call, 0) : status; /* also the dead may be in the way */
}

static bool room_for_run(ringbuf *rb, void *context)
{
    const struct rbi_reserve_call *call = context;
    return rbi_arena_has_room(&rb->arena, call->size, rbi_turn_to_spare(rb, call->wait)) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** Reserve a run, waiting for one.  RINGBUF_E_ARENA_FULL if there is none in time. */
static ringbuf_status reserve(ringbuf *rb, struct rbi_reserve_call *call, int64_t deadline_ns)
{
    struct rbi_wait wait = {.blocks = rbi_arena_blocks_for(&rb->arena, call->size)};
    call->wait = &wait;
    struct rbi_waiting waiting = {&rb->header->room, &rb->room_patience, &rbi_registry_me(&rb->registry)->puts,
                              rbi_attempt_reserve, room_for_run, NULL};
    ringbuf_status status = rbi_wait_for_pages_too(rb, &waiting, call, rbi_attempt_reserve(rb, call), 0, deadline_ns);
    rbi_turn_end(rb, &wait, status);
    return status == RINGBUF_E_TIMEOUT ? RINGBUF_E_ARENA_FULL : status;
}

/* ---- put ---- */

/** A message to be put: its parts, which are copied into the ring, or a run that is RESERVED by us and holds it. */
struct put_call {
    const ringbuf_part *parts;
    size_t count;
    size_t size;
    struct rbi_run *run;
    uint64_t own_runs; /* how many runs are reserved for this message, the one that holds it or another */
};

/** How many bytes of the ring the call needs. */
static inline size_t ring_bytes(const struct put_call *call) { return call->run ? RBI_REFERENCE_BYTES : call->size; }

bool rbi_went_round_the_stuck(ringbuf *rb, uint64_t size)
{
    /* relaxed: several threads may note different things; then it takes longer */
    uint64_t at = rbi_ring_stuck_at(&rb->ring, size);
    uint64_t now_ns = (uint64_t)rbi_monotonic_ns();
    if (at == 0 || at != rbi_load_relaxed64(&rb->stuck_at)) {
        rbi_store_relaxed64(&rb->stuck_at, at);
        rbi_store_relaxed64(&rb->stuck_since_ns, now_ns);
        return false;
    }
    if (now_ns - rbi_load_relaxed64(&rb->stuck_since_ns) < RBI_STUCK_NS) return false;
    rbi_store_relaxed64(&rb->stuck_at, 0);
    struct rbi_record lacking;
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_bypass(&rb->ring, size, &lacking)) == RBI_RING_UNRESERVED)
        if (rbi_segment_reserve(rb, lacking.lane, lacking.cells) != RINGBUF_OK) return false;
    return outcome == RBI_RING_OK;
}

ringbuf_status rbi_refer(ringbuf *rb, struct rbi_record *record, struct rbi_run *run, size_t size)
{
    run->size = size;
    run->record = rbi_ring_number_of(record);
    if (rbi_arena_queue(&rb->arena, run, rb->registry.self) != RBI_ARENA_OK) return RINGBUF_E_CORRUPT;
    rbi_ring_refer(record, size, run->first);
    return RINGBUF_OK;
}

static ringbuf_status attempt_put(ringbuf *rb, void *context)
{
    const struct put_call *call = context;
    struct rbi_record record;
    RBI_POINT(put_began);
    ringbuf_status status = rbi_claim(rb, &record, ring_bytes(call));
    uint32_t shutdown = rbi_shutdown_of(rb);
    if (status == RINGBUF_E_TIMEOUT && shutdown) return rbi_refusal(shutdown);
    if (status == RINGBUF_E_TIMEOUT && rbi_went_round_the_stuck(rb, ring_bytes(call))) return attempt_put(rb, context);
    if (status != RINGBUF_OK) return status;
    /* [T3 shutdown] claim, then look at the flag; against "set the flag, then look at the ring": either we see the flag, or whoever
     * drains the queue sees our claim and waits for it. */
    if (shutdown) {
        rbi_ring_void(&rb->ring, &record, rb->registry.self);
        rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claim */
        return rbi_refusal(shutdown);
    }
    if (call->run) {
        status = rbi_refer(rb, &record, call->run, call->size);
        if (status != RINGBUF_OK) {
            rbi_ring_void(&rb->ring, &record, rb->registry.self);
            return status;
        }
    } else if (call->count == 1) {
        memcpy(record.payload, call->parts->data, call->size);
    } else {
        rbi_gather(record.payload, call->parts, call->count);
    }
    RBI_POINT(payload_written);
    if (rbi_ring_publish(&rb->ring, &record, rb->registry.self) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
    rbi_count_put(rb, call->size);
    rbi_wake_items(rb);
    RBI_POINT(put_woke);
    return RINGBUF_OK;
}

static bool room_for_call(ringbuf *rb, void *call)
{
    return rbi_ring_has_room(&rb->ring, ring_bytes(call)) || rbi_shutdown_of(rb) || rbi_handle_is_closed(rb);
}

/** Put, waiting for room in the ring. */
static inline ringbuf_status put(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    ringbuf_status status = attempt_put(rb, call);
    if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_NO_SPACE) return status;
    struct rbi_waiting waiting = {&rb->header->space, &rb->space_patience, &rbi_registry_me(&rb->registry)->puts,
                              attempt_put, room_for_call, rbi_some_room};
    return rbi_wait_for_pages_too(rb, &waiting, call, status, call->own_runs, deadline_ns);
}

/** Put a message that is too large for the ring: into the arena, and a reference to it into the ring. */
static ringbuf_status put_large(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    struct rbi_reserve_call room = {.size = call->size, .is_put = true};
    if (call->size > rbi_arena_bytes(&rb->arena)) return RINGBUF_E_TOO_LARGE;
    ringbuf_status status = rbi_look_for_room(rb, rbi_ring_cells_for(&rb->ring, RBI_REFERENCE_BYTES), 1, deadline_ns);
    if (status == RINGBUF_OK) status = reserve(rb, &room, deadline_ns);
    if (status != RINGBUF_OK) return status;
    rbi_gather(room.run.payload, call->parts, call->count);
    RBI_POINT(payload_written);
    call->run = &room.run;
    call->own_runs = 1;
    status = put(rb, call, deadline_ns);
    if (status != RINGBUF_OK) rbi_free_run(rb, &room.run);
    return status;
}

static ringbuf_status put_any(ringbuf *rb, struct put_call *call, int64_t deadline_ns)
{
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (call->size <= rb->ring_limit) status = put(rb, call, deadline_ns);
    else status = put_large(rb, call, deadline_ns);
    return rbi_handle_leave(rb, status);
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

/* ---- reserve, commit, abort ---- */

ringbuf_status ringbuf_reserve(ringbuf *rb, ringbuf_reservation *reservation, size_t size, int64_t deadline_ns)
{
    if (!rb || !reservation) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    struct rbi_reserve_call call = {.size = size, .is_put = true};
    status = rb->arena.blocks && size <= rbi_arena_bytes(&rb->arena) ? reserve(rb, &call, deadline_ns) : RINGBUF_E_TOO_LARGE;
    if (status != RINGBUF_OK) return rbi_handle_leave(rb, status);
    const struct rbi_token token = {
        .position = RBI_IN_ARENA | call.run.first,
        .ticket = RBI_RESERVATION | rbi_add_relaxed64(&rb->reservations, 1), /* relaxed: a number of its own */
        .generation = rbi_load_relaxed64(&rb->generation), /* relaxed: changes only by fork */
    };
    rbi_arena_mark(&rb->arena, &call.run, token.ticket);
    status = rbi_pin_token(rb, &token);
    if (status != RINGBUF_OK) {
        rbi_free_run(rb, &call.run);
        return rbi_handle_leave(rb, status);
    }
    status = rbi_handle_leave(rb, RINGBUF_OK);
    if (status != RINGBUF_OK) {
        rbi_unpin_token(rb, &token); /* lost: the caller has got nothing */
        return status;
    }
    *reservation = (ringbuf_reservation){
        .data = call.run.payload, .size = size, .position = token.position, .ticket = token.ticket, .generation = token.generation};
    return RINGBUF_OK;
}

static inline struct rbi_token token_of(const ringbuf_reservation *reservation)
{
    return (struct rbi_token){.position = reservation->position, .ticket = reservation->ticket, .generation = reservation->generation};
}

/** The run of a reservation of this process. */
static bool find_reserved(ringbuf *rb, struct rbi_run *run, const ringbuf_reservation *reservation)
{
    if (!(reservation->position & RBI_IN_ARENA) || rbi_is_inherited(rb, reservation->generation)) return false;
    return rbi_arena_find(&rb->arena, run, RBI_BLOCK_RESERVED, rb->registry.self, reservation->position & ~RBI_IN_ARENA,
                          reservation->ticket) == RBI_ARENA_OK;
}

ringbuf_status ringbuf_commit(ringbuf *rb, const ringbuf_reservation *reservation, size_t size, int64_t deadline_ns)
{
    struct rbi_run run;
    if (!rb || !reservation || size > reservation->size) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    const struct rbi_token token = token_of(reservation);
    if (!rbi_pins_has(&rb->tokens, &token) || !find_reserved(rb, &run, reservation) || size > run.blocks << rb->stamp.block_log2) {
        status = RINGBUF_E_INVALID;
    } else {
        /* A small message would waste most of its block. */
        ringbuf_part part = {.data = run.payload, .size = size};
        bool copy = size <= rb->ring_limit && size <= UINT64_C(1) << (rb->stamp.block_log2 - 1);
        struct put_call call = {.parts = &part, .count = 1, .size = size, .run = copy ? NULL : &run, .own_runs = 1};
        status = put(rb, &call, deadline_ns);
        if (status == RINGBUF_OK && copy) rbi_free_run(rb, &run);
    }
    status = rbi_handle_leave(rb, status);
    if (status == RINGBUF_OK) rbi_unpin_token(rb, &token);
    return status;
}

ringbuf_status ringbuf_abort(ringbuf *rb, const ringbuf_reservation *reservation)
{
    struct rbi_run run;
    if (!rb || !reservation) return RINGBUF_E_INVALID;
    const struct rbi_token token = token_of(reservation);
    if (!(token.ticket & RBI_RESERVATION) || !rbi_pins_end(&rb->tokens, &token)) return RINGBUF_E_INVALID;
    ringbuf_status status = RINGBUF_OK;
    if (!rbi_is_inherited(rb, token.generation) && !rbi_handle_is_lost(rb)) {
        if (find_reserved(rb, &run, reservation)) rbi_free_run(rb, &run);
        else status = RINGBUF_E_CORRUPT; /* it was reserved, and shared memory says otherwise */
    }
    if (rbi_handle_is_lost(rb)) status = RINGBUF_E_CORRUPT;
    rbi_handle_unpin(rb);
    return status;
}
