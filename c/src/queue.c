/* queue.c — floor 4: the public calls on the queue as a whole: shutdown and tasks, looking in, making and leaving queues.
 *
 * Unfinished tasks: messages in the ring, plus those got, minus those marked done.  They are read in the order done, ring, got, against
 * the order in which a message moves (ring, got, done; a get counts itself before it releases the message): so a message whose put
 * has returned is seen at least once, and join never returns too early.  The edges: who sees a record released ([E2]), or a task
 * counted as done ([E6]), sees the get counted that came before. */
#include "calls.h"

#include <string.h>

/* ---- shutdown, tasks ---- */

ringbuf_status ringbuf_shutdown(ringbuf *rb, int immediate)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    uint32_t wanted = immediate ? 2 : 1;
    for (uint32_t seen = rbi_shutdown_of(rb); seen < wanted; seen = rbi_shutdown_of(rb))
        if (rbi_cas_total32(&rb->header->shutdown, seen, wanted)) break; /* [T3] */
    RBI_POINT(shutdown_set);
    if (immediate) rbi_discard_if_shut_down(rb);
    rbi_wake_everybody(rb);
    RBI_POINT(shutdown_woke);
    return rbi_handle_leave(rb, RINGBUF_OK);
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
    ringbuf_status status = rbi_status_of(rbi_ring_count(&rb->ring, items));
    /* What waits in the arena without a record was returned, and the hint says so. */
    if (status == RINGBUF_OK && rbi_ring_some_returned(&rb->ring)) *items += count_in_arena(rb, 1u << RBI_BLOCK_RETURNED);
    if (rbi_shutdown_of(rb) == 2) *items = 0; /* what a late put may still have brought is for nobody */
    return status;
}

/** Messages put and neither marked done nor forgiven; never less than there were at the start. */
static ringbuf_status unfinished_tasks(ringbuf *rb, int64_t *tasks)
{
    /* After a shutdown at once, what waits is nobody's task; what somebody has taken still is. */
    const bool all = rbi_shutdown_of(rb) != 2;
    const uint32_t in_ring = 1u << RBI_KIND_TAKEN | (all ? 1u << RBI_KIND_READY | 1u << RBI_KIND_RETURNED : 0);
    const uint32_t in_arena = 1u << RBI_BLOCK_LEASED | (all ? 1u << RBI_BLOCK_RETURNED : 0);
    uint64_t done = rbi_registry_done(&rb->registry); /* [T4 tasks] done, ring, got: in this order */
    uint64_t waiting = 0;
    if (rbi_ring_census(&rb->ring, &waiting, in_ring) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
    waiting += count_in_arena(rb, in_arena);
    *tasks = (int64_t)(waiting + rbi_registry_gets_owed(&rb->registry) - done);
    return RINGBUF_OK;
}

ringbuf_status rbi_mark_done(ringbuf *rb)
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
    if (rbi_event_is_heard(&rb->header->tasks)) rbi_wake_joiners(rb);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_task_done(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_mark_done(rb);
    return rbi_handle_leave(rb, status);
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
        struct rbi_waiting waiting = {&rb->header->tasks, &none, &rbi_registry_me(&rb->registry)->done,
                                  attempt_join, nothing_to_see, NULL};
        status = rbi_wait_until(rb, &waiting, NULL, deadline_ns);
    }
    return rbi_handle_leave(rb, status);
}

/* ---- descriptors ---- */

ringbuf_status ringbuf_items_fd(ringbuf *rb, int *fd)
{
    if (!rb || !fd) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_ready_ask(rb, RBI_LEVEL_ITEMS, fd);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_changes_fd(ringbuf *rb, uint32_t change, int *fd)
{
    if (!rb || !fd || (change != RINGBUF_ROOM && change != RINGBUF_DONE)) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    enum rbi_level level = change == RINGBUF_ROOM ? RBI_LEVEL_ROOM : RBI_LEVEL_TASKS;
    status = rbi_ready_ask(rb, level, fd);
    if (status == RINGBUF_OK) rbi_ready_listen(rb, level);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_pass_on(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    rbi_ready_tell(rb, NULL);
    return rbi_handle_leave(rb, RINGBUF_OK);
}

/* ---- looking in ---- */

ringbuf_status ringbuf_size(ringbuf *rb, uint64_t *items)
{
    if (!rb || !items) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = count_items(rb, items);
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_has_room(ringbuf *rb, int *room, size_t size)
{
    if (!rb || !room) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    if (size <= rb->ring_limit) *room = rbi_ring_has_room(&rb->ring, size);
    else *room = rbi_arena_has_room(&rb->arena, size, rbi_turn_to_spare(rb, NULL)) && rbi_ring_has_room(&rb->ring, 0);
    return rbi_handle_leave(rb, RINGBUF_OK);
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
    stats->shutdown = rbi_shutdown_of(rb);
    stats->unlinked = rbi_segment_unlinked(rb);
    stats->dead_letters = rbi_load_relaxed64(&rb->header->dead_letters);
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
    return rbi_handle_leave(rb, status);
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
        .truncated = rbi_handle_is_lost(rb),
        .max_attempts = stamp->max_attempts,
    };
    memcpy(info->id, stamp->id, sizeof info->id);
    memcpy(info->tag, stamp->tag, sizeof info->tag);
    memcpy(info->note, stamp->note, sizeof info->note);
    memcpy(info->dead_letter, stamp->dead_letter, sizeof info->dead_letter);
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
    return rbi_handle_leave(rb, status);
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
    return rbi_handle_leave(rb, RINGBUF_OK);
}

const char *ringbuf_name(const ringbuf *rb) { return rb->name; }

const char *ringbuf_path(const ringbuf *rb) { return rb->path; }

ringbuf_status ringbuf_recover(ringbuf *rb, uint64_t *recovered)
{
    if (!rb || !recovered) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_segment_recover(rb, recovered);
    rbi_ready_settle(rb); /* whatever may have kept somebody from it */
    return rbi_handle_leave(rb, status);
}

ringbuf_status ringbuf_watch(ringbuf *rb, int64_t *next_ns)
{
    if (!rb || !next_ns) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_OK) return status;
    int64_t now_ns = rbi_monotonic_ns();
    if (now_ns >= rbi_segment_wakes_ns(rb)) {
        rbi_segment_watch(rb, now_ns);
        if (!rbi_handle_is_lost(rb) && rbi_ready_is_asked(rb)) rbi_ready_settle(rb); /* as in ringbuf_recover() */
    }
    *next_ns = rbi_segment_wakes_ns(rb);
    return rbi_handle_leave(rb, RINGBUF_OK);
}

int ringbuf_deletion_is_news(ringbuf *rb)
{
    /* Of several threads one tells. */
    return rb && rbi_load_total32(&rb->deletion) == RBI_DELETION_SEEN && rbi_cas_total32(&rb->deletion, RBI_DELETION_SEEN, RBI_DELETION_TOLD);
}

int64_t ringbuf_now_ns(void) { return rbi_monotonic_ns(); }

/* ---- create, open, close, remove ---- */

void ringbuf_options_init(ringbuf_options *options)
{
    *options = (ringbuf_options){
        .struct_bytes = sizeof *options,
        .capacity_bytes = UINT64_C(4) << 20,
        .arena_bytes = RINGBUF_ARENA_DEFAULT,
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

ringbuf_status ringbuf_guard_truncation(void) { return rbi_segment_guard(); }

void ringbuf_leave_all(void) { rbi_segment_leave_all(); }

ringbuf_status ringbuf_unlink(ringbuf *rb)
{
    if (!rb) return RINGBUF_E_INVALID;
    ringbuf_status status = rbi_handle_enter_lost(rb);
    if (status != RINGBUF_OK) return status;
    status = rbi_segment_unlink(rb);
    rbi_handle_leave(rb, status);
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
