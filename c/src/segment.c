/* segment.c — floor 3: a queue's file from birth to removal, and the handle on it.
 *
 * Locks, all on bytes of the file, all kernel locks that die with their holder:
 *   PRESENCE  shared by everyone attached, from before they look at the contents until they leave.  Whoever gets it exclusively knows
 *             that nobody is attached, and may look whether the queue is to be removed.
 *   NAME      exclusive while removing the file's name: check that the name still belongs to this file, then unlink.  A name can come
 *             to belong to another file only after it was removed from this one, so check and unlink are one step.
 *   OWNER     registry.h.
 * All are only tried, never waited for in the kernel; attach retries for up to five seconds against somebody who is just removing.
 *
 * Create:  nameless file -> size -> header page -> stamp -> present -> participant -> link to the name.
 *          Nobody can find it before it is complete; a death before the link leaves nothing.  The loser of two attaches to the winner's.
 * Attach:  open -> present (shared; or exclusively, if alone: then first see whether it was left behind and is to be removed)
 *          -> the name still leads here? -> check the stamp -> map -> recover the dead -> participant.
 * Leave:   participant no more -> not present -> alone? -> recover the dead -> nothing left in it? -> remove the name.
 *          Who cannot get PRESENCE exclusively is not the last; somebody else is there and will come through here.
 *          A death in between leaves a file that nobody is present at: the next create or attach of that name, or collect, removes it.
 *
 * Closing under calls: `calls` counts calls in flight with two flags beside the count.  Close sets CLOSED, wakes the sleepers, and
 * waits until the count is zero before it unmaps.
 *
 * Fork: the child must not keep the parent's locks alive, so the atfork handler opens each file anew (a new open file has no locks),
 * closes the inherited one, marks itself present, and flags the handle STALE; the child's first call makes it a participant.  The
 * memory, which the child inherits too, is mapped through yet another open file, for a mapping holds on to its own. */
#define _GNU_SOURCE
#include "ready.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- names and paths ---- */

#define FILE_PREFIX "ringbuf."
static const char default_directory[] = "/dev/shm";

static uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count)
{
    for (const uint8_t *byte = bytes, *end = byte + count; byte < end; byte++) hash = (hash ^ *byte) * UINT64_C(0x100000001b3);
    return hash;
}
static const uint64_t fnv_basis = UINT64_C(0xcbf29ce484222325);

static const char *directory_of(const ringbuf_options *options)
{
    if (options->directory) return options->directory;
    const char *configured = secure_getenv("SAGE_QUEUE_DIR");
    return configured && *configured ? configured : default_directory;
}

/** Write `name` as part of a file name: letters, digits, '_', '-' and '.' as they are, other bytes as %XX; what is long ends in a
 *  hash of the whole name instead. */
static void escape(char *file_name, size_t capacity, const char *name)
{
    enum { ESCAPED_MAX = 160 };
    size_t length = 0;
    for (const char *c = name; *c && length < ESCAPED_MAX; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_' || *c == '-' ||
                     *c == '.';
        length += (size_t)snprintf(file_name + length, capacity - length, plain ? "%c" : "%%%02X", (unsigned char)*c);
    }
    if (length < ESCAPED_MAX) return;
    uint64_t hash = fnv1a(fnv_basis, name, strlen(name));
    snprintf(file_name + length, capacity - length, "~%016llx%016llx", (unsigned long long)hash,
             (unsigned long long)fnv1a(hash, name, strlen(name)));
}

static char *path_of(const char *name, const ringbuf_options *options)
{
    char file_name[256];
    escape(file_name, sizeof file_name, name);
    char *path = NULL;
    return asprintf(&path, "%s/" FILE_PREFIX "%s", directory_of(options), file_name) < 0 ? NULL : path;
}

static ringbuf_status check_name(const char *name)
{
    if (!name || !*name || strlen(name) > RBI_NAME_MAX_BYTES) return RINGBUF_E_INVALID;
    return RINGBUF_OK;
}

/* ---- geometry and stamp ---- */

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }
static uint64_t capacity_of(const struct rbi_stamp *stamp) { return UINT64_C(1) << (stamp->cells_log2 + stamp->cell_log2); }

static uint64_t slots_bytes_of(const struct rbi_stamp *stamp)
{
    return round_up(sizeof(struct rbi_slot) << stamp->cells_log2, rbi_page_bytes());
}

static uint64_t arena_bytes_of(const struct rbi_stamp *stamp) { return stamp->blocks << stamp->block_log2; }

/** Offsets and file size follow from the sizes and the page size. */
static void place_regions(struct rbi_stamp *stamp)
{
    uint64_t page = rbi_page_bytes();
    uint64_t participants = (uint64_t)stamp->max_participants * sizeof(struct rbi_participant);
    stamp->slots_offset = round_up(RBI_HEADER_BYTES + participants, page);
    stamp->table_offset = stamp->slots_offset + RBI_LANES * slots_bytes_of(stamp);
    stamp->runs_offset = stamp->table_offset + round_up(stamp->blocks * sizeof(rbi_atomic64), page);
    stamp->arena_offset = stamp->runs_offset + round_up(stamp->blocks * sizeof(struct rbi_run_entry), page);
    stamp->data_offset = stamp->arena_offset + arena_bytes_of(stamp);
    stamp->file_bytes = stamp->data_offset + RBI_LANES * capacity_of(stamp);
}

static uint64_t checksum_of(const struct rbi_stamp *stamp) { return fnv1a(fnv_basis, stamp, offsetof(struct rbi_stamp, checksum)); }

/** Blocks of at least a page, and not more of them than the table is made for. */
static void plan_arena(struct rbi_stamp *stamp, uint64_t bytes)
{
    stamp->block_log2 = RBI_BLOCK_MIN_LOG2;
    while (UINT64_C(1) << stamp->block_log2 < rbi_page_bytes() || bytes >> stamp->block_log2 >> RBI_BLOCKS_MAX_LOG2 > 1 ||
           bytes > UINT64_C(1) << (stamp->block_log2 + RBI_BLOCKS_MAX_LOG2))
        stamp->block_log2++;
    stamp->blocks = round_up(round_up(bytes, UINT64_C(1) << stamp->block_log2) >> stamp->block_log2, RBI_TABLE_PARTS);
}

/** The arena's bytes that were asked for.  By default two queues are to fit into a file system as small as Docker's /dev/shm, 64 MiB. */
static uint64_t arena_bytes_for(const ringbuf_options *options)
{
    const uint64_t usual = UINT64_C(64) << 20;
    uint64_t total, available;
    if (options->arena_bytes != RINGBUF_ARENA_DEFAULT) return options->arena_bytes;
    if (rbi_directory_bytes(directory_of(options), &total, &available) != RINGBUF_OK || total == 0) return usual; /* 0: it has no bound */
    return total / 4 < usual ? total / 4 : usual;
}

/** Fill a stamp from the caller's wishes; name and id come later. */
static ringbuf_status plan(struct rbi_stamp *stamp, const ringbuf_options *options)
{
    const uint64_t largest = UINT64_C(64) << 30, arena = arena_bytes_for(options);
    const uint32_t known_flags = RINGBUF_AUTO_CLEANUP | RINGBUF_PERSISTENT | RINGBUF_KEEP_WARM;
    const uint32_t opposites = RINGBUF_AUTO_CLEANUP | RINGBUF_PERSISTENT;
    const uint32_t known_memory = RINGBUF_PREFAULT | RINGBUF_HUGE_PAGES | RINGBUF_LOCK_MEMORY | RINGBUF_DUMP;
    if (options->capacity_bytes == 0 || options->capacity_bytes > largest || arena > largest || options->max_participants == 0 ||
        options->max_participants > RBI_OWNER_MAX || options->mode > RINGBUF_FRESH || options->flags & ~known_flags ||
        (options->flags & opposites) == opposites || options->memory & ~known_memory || options->permissions > 0777 ||
        options->max_attempts >= RBI_ATTEMPTS_MAX || !options->max_attempts != !options->dead_letter ||
        (options->dead_letter && (!*options->dead_letter || strlen(options->dead_letter) >= RBI_DEAD_LETTER_BYTES)) ||
        (options->tag && strlen(options->tag) >= RBI_TAG_BYTES) || (options->note && strlen(options->note) >= RBI_NOTE_BYTES))
        return RINGBUF_E_INVALID;

    uint64_t smallest = UINT64_C(1) << (RBI_CELLS_MIN_LOG2 + RBI_CELL_MIN_LOG2);
    if (smallest < rbi_page_bytes()) smallest = rbi_page_bytes();
    uint32_t capacity_log2 = 0;
    while (UINT64_C(1) << capacity_log2 < options->capacity_bytes || UINT64_C(1) << capacity_log2 < smallest) capacity_log2++;

    memset(stamp, 0, sizeof *stamp);
    stamp->magic = RBI_MAGIC;
    stamp->layout_version = RBI_LAYOUT_VERSION;
    stamp->header_bytes = RBI_HEADER_BYTES;
    stamp->max_participants = options->max_participants;
    stamp->lanes = RBI_LANES;
    stamp->cells_log2 = capacity_log2 - RBI_CELL_MIN_LOG2;
    if (stamp->cells_log2 > RBI_CELLS_MAX_LOG2) stamp->cells_log2 = RBI_CELLS_MAX_LOG2;
    stamp->cell_log2 = capacity_log2 - stamp->cells_log2;
    stamp->flags = options->flags;
    stamp->max_items = options->max_items;
    stamp->created_ns = rbi_realtime_ns();
    stamp->creator_pid = rbi_pid();
    stamp->permissions = options->permissions ? options->permissions : 0600;
    if (options->tag) memcpy(stamp->tag, options->tag, strlen(options->tag));
    if (options->note) memcpy(stamp->note, options->note, strlen(options->note));
    stamp->max_attempts = options->max_attempts;
    if (options->dead_letter) memcpy(stamp->dead_letter, options->dead_letter, strlen(options->dead_letter));
    plan_arena(stamp, arena);
    place_regions(stamp);
    return rbi_random(stamp->id, sizeof stamp->id);
}

static void set_name(struct rbi_stamp *stamp, const char *name)
{
    stamp->name_bytes = strlen(name);
    memcpy(stamp->name, name, stamp->name_bytes);
    stamp->checksum = checksum_of(stamp);
}

/** Whether a stamp read from a file of `file_bytes` bytes can be believed: everything that is used later is checked here. */
static ringbuf_status check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes)
{
    if (stamp->magic == __builtin_bswap64(RBI_MAGIC)) return RINGBUF_E_VERSION;
    if (stamp->magic != RBI_MAGIC) return RINGBUF_E_CORRUPT;
    if (stamp->layout_version != RBI_LAYOUT_VERSION) return RINGBUF_E_VERSION;
    if (stamp->checksum != checksum_of(stamp)) return RINGBUF_E_CORRUPT;
    if (stamp->header_bytes != RBI_HEADER_BYTES || stamp->max_participants == 0 || stamp->max_participants > RBI_OWNER_MAX ||
        stamp->cells_log2 < RBI_CELLS_MIN_LOG2 || stamp->cells_log2 > RBI_CELLS_MAX_LOG2 ||
        stamp->cell_log2 < RBI_CELL_MIN_LOG2 || stamp->cell_log2 > 36 - stamp->cells_log2 || /* not their sum, which could wrap */
        stamp->lanes != RBI_LANES || stamp->name_bytes == 0 || stamp->name_bytes > RBI_NAME_MAX_BYTES ||
        stamp->tag[RBI_TAG_BYTES - 1] != 0 || stamp->note[RBI_NOTE_BYTES - 1] != 0 ||
        stamp->dead_letter[RBI_DEAD_LETTER_BYTES - 1] != 0 || stamp->max_attempts >= RBI_ATTEMPTS_MAX ||
        !stamp->max_attempts != !stamp->dead_letter[0] || stamp->block_log2 < RBI_BLOCK_MIN_LOG2 ||
        stamp->block_log2 > 20 || stamp->blocks > UINT64_C(1) << RBI_BLOCKS_MAX_LOG2 || stamp->blocks % RBI_TABLE_PARTS != 0)
        return RINGBUF_E_CORRUPT;
    struct rbi_stamp placed = *stamp;
    place_regions(&placed);
    if (placed.slots_offset != stamp->slots_offset || placed.table_offset != stamp->table_offset ||
        placed.runs_offset != stamp->runs_offset || placed.arena_offset != stamp->arena_offset || placed.data_offset != stamp->data_offset ||
        placed.file_bytes != stamp->file_bytes || file_bytes != stamp->file_bytes)
        return RINGBUF_E_CORRUPT;
    return RINGBUF_OK;
}

ringbuf_status rbi_segment_check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes) { return check_stamp(stamp, file_bytes); }

char *rbi_segment_path(const char *name, const ringbuf_options *options) { return check_name(name) == RINGBUF_OK ? path_of(name, options) : NULL; }

bool rbi_segment_is_file_of(const char *file_name, const char *name)
{
    char expected[256];
    escape(expected, sizeof expected, name);
    return strncmp(file_name, FILE_PREFIX, sizeof FILE_PREFIX - 1) == 0 && strcmp(file_name + sizeof FILE_PREFIX - 1, expected) == 0;
}

/* ---- the handles of this process, and fork ---- */

static pthread_mutex_t handles_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct ringbuf *handles;

void rbi_handles_hold(void) { pthread_mutex_lock(&handles_mutex); }
void rbi_handles_let_go(void) { pthread_mutex_unlock(&handles_mutex); }

static void drop_from_list(struct ringbuf *rb)
{
    if (!rb->listed) return;
    rb->listed = false;
    if (rb->previous) rb->previous->next = rb->next;
    else handles = rb->next;
    if (rb->next) rb->next->previous = rb->previous;
}

/** Only async-signal-safe calls: other threads of the parent are gone, and may have held any lock but handles_mutex. */
static void after_fork_in_child(void)
{
    for (struct ringbuf *rb = handles; rb; rb = rb->next) {
        rbi_fd inherited = rb->fd;
        rb->fd = -1;
        pthread_mutex_init(&rb->recovery, NULL);
        pthread_mutex_init(&rb->closing, NULL);
        rbi_ready_after_fork(rb);
        /* relaxed: this process has one thread now */
        rbi_add_relaxed64(&rb->generation, 1);
        if (rbi_handle_is_closed(rb)) {
            /* Another thread of the parent was opening or closing it, and what it has mapped stays mapped; or it was closed while
             * something of it was in use, and then the child's last pin unmaps it. */
            drop_from_list(rb);
        } else {
            /* Calls of the parent's other threads are not ours.  What is lost is lost for us, too. */
            rbi_store_total32(&rb->calls, RBI_HANDLE_STALE | (rbi_load_total32(&rb->calls) & RBI_HANDLE_LOST));
            /* If it fails, the child's first call says so. */
            if (rbi_file_reopen(&rb->fd, inherited) == RINGBUF_OK) rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
            rb->registry.fd = rb->fd;
            rb->registry.self = 0;
        }
        rbi_file_close(inherited);
    }
    rbi_handles_let_go(); /* this thread, the only one of the child, took it before the fork */
}

static void install_fork_handlers(void) { pthread_atfork(rbi_handles_hold, rbi_handles_let_go, after_fork_in_child); }

/* A handle is on the list from before it has a file until its file is closed, and both happen under the mutex: a child forked by
 * another thread at any moment knows every file it has inherited.  Otherwise it would keep locks of a parent that has died. */

static void hold_handles_over_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_fork_handlers);
    pthread_mutex_lock(&handles_mutex);
}

static void list_handle(struct ringbuf *rb)
{
    hold_handles_over_forks();
    rb->listed = true;
    rb->next = handles;
    if (handles) handles->previous = rb;
    handles = rb;
    pthread_mutex_unlock(&handles_mutex);
}

static void unlist_handle(struct ringbuf *rb)
{
    pthread_mutex_lock(&handles_mutex);
    drop_from_list(rb);
    rbi_file_close(rb->fd);
    rb->fd = -1;
    pthread_mutex_unlock(&handles_mutex);
}

/** Open the existing file at `path`, or with `directory` make one without a name. */
static ringbuf_status handle_open_file(struct ringbuf *rb, const char *path, const char *directory, uint32_t permissions)
{
    pthread_mutex_lock(&handles_mutex);
    ringbuf_status status =
        directory ? rbi_file_make_unnamed(&rb->fd, directory, permissions) : rbi_file_open(&rb->fd, path);
    if (status != RINGBUF_OK) rb->fd = -1;
    pthread_mutex_unlock(&handles_mutex);
    return status;
}

static void handle_close_file(struct ringbuf *rb)
{
    pthread_mutex_lock(&handles_mutex);
    rbi_file_close(rb->fd);
    rb->fd = -1;
    pthread_mutex_unlock(&handles_mutex);
}

static ringbuf_status attach_mapped(ringbuf *rb);
static void close_within(ringbuf *rb, int64_t patience);
static void depart(ringbuf *rb);

/* At exit a call in flight may be one that a signal handler interrupted to call exit(): it will never end. */
static const int64_t at_exit_ns = 500000000;

/** A process that ends without closing would leave its empty queues behind. */
__attribute__((destructor)) static void close_all(void)
{
    for (;;) {
        pthread_mutex_lock(&handles_mutex);
        struct ringbuf *rb = handles;
        while (rb && (rb->at_exit || !rb->handed_out)) rb = rb->next;
        if (rb) {
            rb->at_exit = true;
            rbi_handle_pin(rb); /* so that it is there as long as we use it: it is freed only after it was taken off the list */
        }
        pthread_mutex_unlock(&handles_mutex);
        if (!rb) return;
        close_within(rb, at_exit_ns);
        depart(rb);
        rbi_handle_unpin(rb);
    }
}

void rbi_segment_leave_all(void) { close_all(); }

static ringbuf_status join_after_fork(ringbuf *rb)
{
    if (rb->fd < 0) return RINGBUF_E_NO_FILES;
    pthread_mutex_lock(&rb->recovery);
    ringbuf_status status = RINGBUF_OK;
    if (rbi_load_total32(&rb->calls) & RBI_HANDLE_STALE) {
        /* The parent may have left while we were between fork and here; then the name is gone, but not the memory. */
        status = rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
        if (status == RINGBUF_OK) status = rbi_registry_join(&rb->registry, rb->label);
        /* Full of the dead, perhaps: earlier children that ended without closing, and nobody had to wait and to look for them since. */
        if (status == RINGBUF_E_CROWDED) status = attach_mapped(rb);
        if (status == RINGBUF_OK) rbi_add_total32(&rb->calls, (uint32_t)-RBI_HANDLE_STALE);
    }
    pthread_mutex_unlock(&rb->recovery);
    return status;
}

ringbuf_status rbi_handle_enter_slow(ringbuf *rb)
{
    ringbuf_status status = RINGBUF_E_CLOSED;
    if (!rbi_handle_is_closed(rb)) status = rbi_handle_is_lost(rb) ? RINGBUF_E_CORRUPT : join_after_fork(rb);
    if (status != RINGBUF_OK) rbi_handle_leave(rb, status);
    return status;
}

ringbuf_status rbi_handle_enter_lost(ringbuf *rb)
{
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_E_CORRUPT || !rbi_handle_is_lost(rb)) return status;
    uint32_t before = rbi_own_add_total32(&rb->calls, RBI_HANDLE_CALL);
    status = before & RBI_HANDLE_CLOSED ? RINGBUF_E_CLOSED : rb->fd < 0 ? RINGBUF_E_NO_FILES : RINGBUF_OK;
    if (status != RINGBUF_OK) rbi_handle_leave(rb, status);
    return status;
}

ringbuf_status rbi_handle_leave_slow(ringbuf *rb, uint32_t before, ringbuf_status status)
{
    const uint32_t beside = RBI_HANDLE_STALE | RBI_HANDLE_LOST;
    if ((before & ~beside) == (RBI_HANDLE_CALL | RBI_HANDLE_CLOSED)) rbi_futex_wake(&rb->calls, INT_MAX); /* the last one */
    return before & RBI_HANDLE_LOST ? RINGBUF_E_CORRUPT : status;
}

/* ---- memory that is lost: guard.c ---- */

ringbuf_status rbi_segment_guard(void)
{
    hold_handles_over_forks();
    ringbuf_status status = rbi_guard_install();
    rbi_handles_let_go();
    return status;
}

/** Map the file, under the guard's eyes. */
static ringbuf_status map_guarded(ringbuf *rb, rbi_fd fd)
{
    void *base;
    ringbuf_status status = rbi_map(&base, fd, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    if (status != RINGBUF_OK) return status;
    rbi_handles_hold(); /* so that a forked child finds the guard's list whole */
    rb->guarded = rbi_guard_add(base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES, &rb->calls, RBI_HANDLE_LOST);
    rbi_handles_let_go();
    if (rb->guarded) rb->base = base;
    else rbi_unmap(base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    return rb->guarded ? RINGBUF_OK : RINGBUF_E_NO_MEMORY;
}

static void unmap_guarded(ringbuf *rb)
{
    rbi_handles_hold();
    rbi_guard_drop(rb->guarded); /* first: these addresses may be another mapping's as soon as they are free */
    rb->guarded = NULL;
    rbi_handles_let_go();
    rbi_unmap(rb->base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    rb->base = NULL;
}

/* ---- a handle's memory ---- */

static void handle_free(ringbuf *rb)
{
    if (!rb) return;
    free(rb->name);
    free(rb->path);
    free(rb->label);
    pthread_mutex_destroy(&rb->recovery);
    pthread_mutex_destroy(&rb->closing);
    pthread_mutex_destroy(&rb->telling);
    free(rb);
}

/** Allocate and list a handle that has no file yet. */
static ringbuf *handle_new(const char *path, const ringbuf_options *options)
{
    ringbuf *rb = calloc(1, sizeof *rb);
    if (!rb) return NULL;
    rb->fd = -1;
    atomic_init(&rb->calls, RBI_HANDLE_CLOSED); /* until it is handed out */
    rb->idle_s = RBI_IDLE_S;
    atomic_init(&rb->items_patience.spin_ns, RBI_SPIN_START_NS);
    atomic_init(&rb->space_patience.spin_ns, RBI_SPIN_START_NS);
    atomic_init(&rb->room_patience.spin_ns, RBI_SPIN_START_NS);
    pthread_mutex_init(&rb->recovery, NULL);
    pthread_mutex_init(&rb->closing, NULL);
    pthread_mutex_init(&rb->telling, NULL);
    for (int level = 0; level < RBI_LEVELS; level++) rb->levels[level].fd = -1;
    rb->path = strdup(path);
    rb->label = options->label ? strdup(options->label) : NULL;
    if (!rb->path || (options->label && !rb->label)) {
        handle_free(rb);
        return NULL;
    }
    list_handle(rb);
    return rb;
}

/** Drop everything of a handle that the caller has not got. */
static void handle_discard(ringbuf *rb)
{
    if (rb->base) unmap_guarded(rb);
    unlist_handle(rb);
    handle_free(rb);
}

static void hand_out(ringbuf **out, ringbuf *rb)
{
    rb->handed_out = true;
    rbi_add_total32(&rb->calls, (uint32_t)-RBI_HANDLE_CLOSED); /* and not a store: it may be lost by now */
    *out = rb;
}

/** The largest message that lies in the ring: larger ones are copied in less time than they would keep others from the room they
 *  stand in.  Without an arena, the largest that fits at all. */
static uint64_t ring_limit_of(const ringbuf *rb)
{
    if (rb->stamp.blocks == 0) return rbi_ring_max_payload(&rb->ring);
    uint64_t eighth = capacity_of(&rb->stamp) / 8;
    return eighth < RBI_RING_LIMIT_BYTES ? eighth : RBI_RING_LIMIT_BYTES;
}

void rbi_segment_lay_out(ringbuf *rb, void *memory)
{
    uint8_t *base = memory, *data = base + rb->stamp.data_offset;
    rb->header = memory;
    rbi_ring_init(&rb->ring, &rb->header->order, rb->stamp.cells_log2, rb->stamp.cell_log2, rb->stamp.max_items);
    for (uint32_t lane = 0; lane < RBI_LANES; lane++)
        rbi_ring_add_lane(&rb->ring, &rb->header->lanes[lane],
                          (struct rbi_slot *)(void *)(base + rb->stamp.slots_offset + lane * slots_bytes_of(&rb->stamp)),
                          data + 2 * lane * capacity_of(&rb->stamp));
    rb->ring.looks_aside = rb->stamp.blocks != 0;
    rb->ring_limit = ring_limit_of(rb);
    rbi_arena_init(&rb->arena, &rb->header->arena, (rbi_atomic64 *)(void *)(base + rb->stamp.table_offset),
                   (struct rbi_run_entry *)(void *)(base + rb->stamp.runs_offset), base + rb->stamp.arena_offset, rb->stamp.blocks,
                   rb->stamp.block_log2);
    rb->registry = (struct rbi_registry){
        .header = rb->header,
        .entries = (struct rbi_participant *)(void *)(base + RBI_HEADER_BYTES),
        .ring = &rb->ring,
        .arena = &rb->arena,
        .fd = rb->fd,
        .max_participants = rb->stamp.max_participants,
    };
}

static ringbuf_status handle_map(ringbuf *rb)
{
    rb->name = strndup((const char *)rb->stamp.name, rb->stamp.name_bytes);
    if (!rb->name) return RINGBUF_E_NO_MEMORY;
    rb->prefix_bytes = rb->stamp.data_offset;
    rb->mirror_bytes = capacity_of(&rb->stamp);
    /* Through an open file of its own, without locks: a mapping keeps its open file, and a forked child keeps the mapping. */
    rbi_fd unlocked;
    ringbuf_status status = rbi_file_reopen(&unlocked, rb->fd);
    if (status != RINGBUF_OK) return status;
    status = map_guarded(rb, unlocked);
    rbi_file_close(unlocked);
    if (status != RINGBUF_OK) return status;
    rbi_segment_lay_out(rb, rb->base);
    return RINGBUF_OK;
}

/* ---- removing ---- */

/** Say in the header, if there is one, that the name goes because we want it, or that it stays.  Those who are attached and find their
 *  file without a name learn from it whether that was meant (rbi_segment_unlinked).  Written and not mapped: who removes a queue by its
 *  name need not be attached, and what lies there may be no queue.
 *  Before the unlink: nobody may take a removal for a deletion.  A death in between leaves a queue with its name and the word set, and
 *  a later deletion of it would not be noticed. */
static void say_removed(rbi_fd fd, uint64_t file_bytes, uint32_t removed)
{
    struct rbi_stamp stamp;
    if (rbi_file_read(fd, &stamp, sizeof stamp) == RINGBUF_OK && check_stamp(&stamp, file_bytes) == RINGBUF_OK)
        rbi_file_write(fd, offsetof(struct rbi_header, removed), &removed, sizeof removed);
}

/** Remove the name of the file `fd` is open on, if `path` still leads to it.  OK also if it does not; BUSY: somebody else is at it. */
static ringbuf_status remove_name(rbi_fd fd, const char *path)
{
    ringbuf_status status = rbi_lock_try(fd, RBI_LOCK_NAME, RBI_LOCK_EXCLUSIVE);
    if (status != RINGBUF_OK) return status;
    RBI_POINT(name_locked);
    struct rbi_file_facts ours, named;
    status = rbi_file_facts(fd, &ours);
    if (status == RINGBUF_OK) {
        status = rbi_path_facts(path, &named);
        RBI_POINT(name_checked);
        if (status == RINGBUF_OK && ours.device == named.device && ours.inode == named.inode) {
            say_removed(fd, ours.bytes, 1);
            RBI_POINT(removed);
            status = rbi_path_unlink(path);
            if (status != RINGBUF_OK && status != RINGBUF_E_NOT_FOUND) say_removed(fd, ours.bytes, 0);
        }
        RBI_POINT(unlinked);
        if (status == RINGBUF_E_NOT_FOUND) status = RINGBUF_OK;
    }
    rbi_lock_drop(fd, RBI_LOCK_NAME);
    return status;
}

static const int64_t patience_ns = 5000000000;
static const int64_t nap_ns = 1000000;

static ringbuf_status remove_name_patiently(rbi_fd fd, const char *path)
{
    int64_t give_up_ns = rbi_monotonic_ns() + patience_ns;
    for (;;) {
        ringbuf_status status = remove_name(fd, path);
        if (status != RINGBUF_E_BUSY || rbi_monotonic_ns() > give_up_ns) return status;
        rbi_nap(nap_ns);
    }
}

/** With PRESENCE held exclusively: clean up after everybody, and say whether the queue has reason to stay. */
static bool worth_keeping(ringbuf *rb)
{
    uint64_t recovered, items = 0;
    ringbuf_status status = rbi_handle_is_lost(rb) ? RINGBUF_E_CORRUPT : rbi_registry_recover(&rb->registry, &recovered);
    /* Truncated: there is nothing to deliver, but the name is its users' to remove, unless the queue was made to go with them. */
    if (rbi_handle_is_lost(rb)) return !(rb->stamp.flags & RINGBUF_AUTO_CLEANUP);
    if (status != RINGBUF_OK) return true; /* damaged: not ours to judge */
    if (rb->stamp.flags & RINGBUF_PERSISTENT) return true;
    if (rb->stamp.flags & RINGBUF_AUTO_CLEANUP) return false;
    if (rbi_load_total32(&rb->header->shutdown) == 2) return false; /* nobody can get what is in it */
    if (rbi_ring_count(&rb->ring, &items) != RBI_RING_OK) return true;
    struct rbi_arena_census census = {0};
    if (rbi_arena_is_used(&rb->arena)) rbi_arena_count(&rb->arena, &census);
    return items + census.runs[RBI_BLOCK_RETURNED] != 0 || rbi_handle_is_lost(rb); /* the latter: counted among zeros */
}

/** Be present no more; the last one out removes the queue, if nothing is left in it. */
static void remove_if_last(ringbuf *rb)
{
    rbi_lock_drop(rb->fd, RBI_LOCK_PRESENCE);
    RBI_POINT(presence_left);
    if (rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) return;
    RBI_POINT(alone);
    rbi_ready_remove(rb);
    if (!worth_keeping(rb)) remove_name(rb->fd, rb->path); /* if somebody is at it already, let him */
}

static void leave(ringbuf *rb)
{
    if (!rbi_handle_is_lost(rb)) { /* else there is nothing to give back, and the lock goes with the file */
        rbi_registry_leave(&rb->registry);
        rbi_ready_recover(rb); /* what we had taken went back */
    }
    rbi_ready_close(rb);
    remove_if_last(rb);
}

/* ---- attach ---- */

static ringbuf_status check_file(const struct rbi_file_facts *facts, const ringbuf_options *options)
{
    if (!facts->regular) return RINGBUF_E_CORRUPT;
    if (facts->user != rbi_user() && options->permissions == 0) return RINGBUF_E_ACCESS;
    return RINGBUF_OK;
}

/** Open the file at rb->path and become present at it: exclusively (*alone) if nobody else is, else shared if `company` will do.
 *  BUSY: somebody holds it alone, or is there at all.  NOT_FOUND: no file there, or it was removed while we looked. */
static ringbuf_status try_to_be_present(ringbuf *rb, bool *alone, bool company, const ringbuf_options *options)
{
    struct rbi_file_facts facts;
    ringbuf_status status = handle_open_file(rb, rb->path, NULL, 0);
    if (status != RINGBUF_OK) return status;
    RBI_POINT(opened);
    status = rbi_file_facts(rb->fd, &facts);
    if (status == RINGBUF_OK) status = check_file(&facts, options);
    if (status == RINGBUF_OK) {
        status = rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_EXCLUSIVE);
        *alone = status == RINGBUF_OK;
        if (!*alone && company) status = rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
    }
    RBI_POINT(present);
    /* Now nobody removes it any more for being empty; but that may have happened before. */
    if (status == RINGBUF_OK) status = rbi_file_facts(rb->fd, &facts);
    if (status == RINGBUF_OK && facts.links == 0) status = RINGBUF_E_NOT_FOUND;
    if (status != RINGBUF_OK) handle_close_file(rb);
    return status;
}

static ringbuf_status be_present(ringbuf *rb, bool *alone, const ringbuf_options *options)
{
    int64_t give_up_ns = rbi_monotonic_ns() + patience_ns;
    for (;;) {
        ringbuf_status status = try_to_be_present(rb, alone, true, options);
        if (status != RINGBUF_E_BUSY || rbi_monotonic_ns() > give_up_ns) return status;
        rbi_nap(nap_ns); /* somebody is just looking whether to remove it */
    }
}

/** Read and check the stamp, map the file. */
static ringbuf_status check_and_map(ringbuf *rb)
{
    struct rbi_file_facts facts;
    ringbuf_status status = rbi_file_facts(rb->fd, &facts);
    /* Read, not mapped: a file that is too short gives a short count, not SIGBUS. */
    if (status == RINGBUF_OK) status = rbi_file_read(rb->fd, &rb->stamp, sizeof rb->stamp);
    if (status == RINGBUF_OK) status = check_stamp(&rb->stamp, facts.bytes);
    if (status == RINGBUF_OK) status = handle_map(rb);
    RBI_POINT(mapped);
    return status;
}

/** Become a participant of a mapped queue, in the public sense of attaching. */
static ringbuf_status attach_mapped(ringbuf *rb)
{
    uint64_t recovered;
    ringbuf_status status = rbi_registry_recover(&rb->registry, &recovered);
    if (status == RINGBUF_OK && recovered) rbi_ready_recover(rb);
    if (status == RINGBUF_OK) status = rbi_registry_join(&rb->registry, rb->label);
    return rbi_handle_is_lost(rb) ? RINGBUF_E_CORRUPT : status;
}

static ringbuf_status open_path(ringbuf **out, const char *name, const char *path, const uint8_t *id,
                                const ringbuf_options *options)
{
    bool alone = false;
    ringbuf *rb = handle_new(path, options);
    if (!rb) return RINGBUF_E_NO_MEMORY;
    ringbuf_status status = be_present(rb, &alone, options);
    if (status == RINGBUF_OK) status = check_and_map(rb);
    if (status != RINGBUF_OK) {
        handle_discard(rb);
        return status;
    }
    if (rb->stamp.name_bytes != strlen(name) || memcmp(rb->stamp.name, name, rb->stamp.name_bytes) != 0)
        status = RINGBUF_E_GONE; /* two long names with one hash */
    else if (id && memcmp(rb->stamp.id, id, RBI_ID_BYTES) != 0)
        status = RINGBUF_E_GONE;
    else if (alone && !worth_keeping(rb)) {
        /* All its users have died or were killed while leaving, and nothing is in it: it should not be here any more. */
        status = remove_name(rb->fd, rb->path);
        if (status == RINGBUF_OK) status = RINGBUF_E_NOT_FOUND;
    } else {
        if (alone) rbi_ready_remove(rb);
        if (alone) status = rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
        if (status == RINGBUF_OK) status = attach_mapped(rb);
    }
    if (status != RINGBUF_OK) {
        leave(rb); /* while we were present, the last user may have left and not been able to see that he was */
        handle_discard(rb);
        return status;
    }
    hand_out(out, rb);
    return RINGBUF_OK;
}

ringbuf_status rbi_segment_open(ringbuf **out, const char *name, const uint8_t *id, const ringbuf_options *options)
{
    ringbuf_status status = check_name(name);
    if (status != RINGBUF_OK) return status;
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    status = open_path(out, name, path, id, options);
    free(path);
    return status;
}

/* ---- create ---- */

/** A complete queue without a name. */
static ringbuf_status make(ringbuf **out, const struct rbi_stamp *stamp, const char *path, const ringbuf_options *options)
{
    ringbuf *rb = handle_new(path, options);
    if (!rb) return RINGBUF_E_NO_MEMORY;
    rb->stamp = *stamp;
    ringbuf_status status = handle_open_file(rb, NULL, directory_of(options), stamp->permissions);
    RBI_POINT(file_made);
    if (status == RINGBUF_OK) status = rbi_file_set_size(rb->fd, stamp->file_bytes);
    RBI_POINT(file_sized);
    if (status == RINGBUF_OK) status = rbi_file_reserve(rb->fd, 0, RBI_HEADER_BYTES);
    RBI_POINT(header_reserved);
    if (status == RINGBUF_OK) status = handle_map(rb);
    if (status != RINGBUF_OK) {
        handle_discard(rb);
        return status;
    }
    rbi_ring_start_at(&rb->ring, rbi_ring_first_position(&rb->ring));
    RBI_POINT(header_written);
    rb->header->stamp = *stamp;
    RBI_POINT(stamp_written);
    status = rbi_lock_try(rb->fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
    RBI_POINT(creator_present);
    if (status == RINGBUF_OK) status = rbi_registry_join(&rb->registry, rb->label);
    RBI_POINT(creator_attached);
    if (rbi_handle_is_lost(rb)) status = RINGBUF_E_CORRUPT;
    if (status != RINGBUF_OK) {
        handle_discard(rb);
        return status;
    }
    *out = rb;
    return RINGBUF_OK;
}

/** Make room for RINGBUF_FRESH: remove what is there, if nobody is present at it. */
static ringbuf_status remove_unused(const char *path, const ringbuf_options *options)
{
    bool alone = false;
    ringbuf *rb = handle_new(path, options);
    if (!rb) return RINGBUF_E_NO_MEMORY;
    ringbuf_status status;
    for (int tries = 0; (status = try_to_be_present(rb, &alone, false, options)) == RINGBUF_E_BUSY && tries < 20; tries++)
        rbi_nap(nap_ns); /* its last user may just be leaving */
    if (status == RINGBUF_OK) status = remove_name(rb->fd, path);
    if (status == RINGBUF_OK) rbi_ready_collect(directory_of(options)); /* what its users left, if they were killed */
    handle_discard(rb);
    return status == RINGBUF_E_NOT_FOUND ? RINGBUF_OK : status;
}

static ringbuf_status create_at(ringbuf **out, const char *name, const char *path, const struct rbi_stamp *stamp,
                                const ringbuf_options *options)
{
    for (;;) {
        ringbuf_status status;
        if (options->mode == RINGBUF_FRESH) {
            status = remove_unused(path, options);
            if (status != RINGBUF_OK) return status;
        } else {
            /* Also for RINGBUF_CREATE: an empty queue left behind by the dead does not count as existing. */
            status = open_path(out, name, path, NULL, options);
            if (status == RINGBUF_OK && options->mode == RINGBUF_CREATE) {
                rbi_segment_free(*out);
                *out = NULL;
                return RINGBUF_E_EXISTS;
            }
            if (status == RINGBUF_E_CROWDED && options->mode == RINGBUF_CREATE) return RINGBUF_E_EXISTS;
            if (status != RINGBUF_E_NOT_FOUND) return status;
        }
        ringbuf *rb = NULL;
        status = make(&rb, stamp, path, options);
        if (status != RINGBUF_OK) return status == RINGBUF_E_NOT_FOUND ? RINGBUF_E_NO_DIRECTORY : status;
        status = rbi_file_link(rb->fd, path);
        RBI_POINT(linked);
        if (status == RINGBUF_OK) {
            hand_out(out, rb);
            return RINGBUF_OK;
        }
        handle_discard(rb);
        if (status != RINGBUF_E_EXISTS) return status; /* somebody was quicker: look what he made */
    }
}

ringbuf_status rbi_segment_create(ringbuf **out, const char *name, const ringbuf_options *options)
{
    struct rbi_stamp stamp;
    ringbuf_status status = plan(&stamp, options);
    if (status != RINGBUF_OK) return status;
    char anonymous[sizeof "anonymous-" + 2 * RBI_ID_BYTES] = "anonymous-";
    if (!name) {
        for (size_t i = 0; i < RBI_ID_BYTES; i++)
            snprintf(anonymous + sizeof "anonymous-" - 1 + 2 * i, 3, "%02x", (unsigned)stamp.id[i]);
        name = anonymous;
        if (stamp.flags & RINGBUF_PERSISTENT) return RINGBUF_E_INVALID; /* nobody could ever find it */
        stamp.flags |= RINGBUF_UNNAMED | RINGBUF_AUTO_CLEANUP;
    }
    status = check_name(name);
    if (status != RINGBUF_OK) return status;
    set_name(&stamp, name);
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    status = create_at(out, name, path, &stamp, options);
    free(path);
    return status;
}

/* ---- leave and remove ---- */

/** Leave for good and unmap.  With `closing` held; the handle is closed, no call under way, and nothing pinned. */
static void finish_closing(ringbuf *rb)
{
    if (!rb->base) return;
    if (rb->fd >= 0) leave(rb);
    else rbi_ready_close(rb);
    unmap_guarded(rb);
    rb->header = NULL;
    unlist_handle(rb); /* last: a child forked meanwhile must find it on the list, to make `closing` usable again */
}

static void wake_everybody(ringbuf *rb)
{
    rbi_event_wake_all(&rb->header->items);
    rbi_event_wake_all(&rb->header->space);
    rbi_event_wake_all(&rb->header->room);
    rbi_event_wake_all(&rb->header->tasks);
}

/** Set a flag in the pins' word; returns the word before. */
static uint32_t flag_pins(ringbuf *rb, uint32_t flag)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->pins);
        if (rbi_cas_total32(&rb->pins, seen, seen | flag)) return seen;
    }
}

/** What we have taken goes back; what we hold stays with us. */
static void give_back(ringbuf *rb)
{
    if (!rbi_handle_is_lost(rb)) {
        rbi_registry_give_back(&rb->registry, true);
        rbi_ready_recover(rb);
    }
    rbi_ready_close(rb);
}

/** Close, and wait up to `patience` ns for the calls in flight.  If they do not end, the memory stays mapped, and the kernel does the
 *  rest when the process is gone.  While something is pinned, only what was taken is given back, and the last unpin does the rest. */
static void close_within(ringbuf *rb, int64_t patience)
{
    pthread_mutex_lock(&rb->closing);
    if (!rbi_handle_is_closed(rb)) {
        bool ended = true;
        for (uint32_t seen = rbi_load_total32(&rb->calls); !rbi_cas_total32(&rb->calls, seen, seen | RBI_HANDLE_CLOSED);)
            seen = rbi_load_total32(&rb->calls);
        RBI_POINT(close_began);
        /* [T5 close] A call that has looked at CLOSED before we set it has announced itself before, or will find the word
         * changed. */
        wake_everybody(rb);
        int64_t give_up_ns = patience == RINGBUF_FOREVER ? RINGBUF_FOREVER : rbi_monotonic_ns() + patience;
        for (uint32_t calls; ended && (calls = rbi_load_total32(&rb->calls)) >= RBI_HANDLE_CALL;)
            ended = rbi_futex_wait(&rb->calls, calls, give_up_ns) != RINGBUF_E_TIMEOUT;
        if (ended) {
            if (flag_pins(rb, RBI_PIN_CLOSED) < RBI_PIN) finish_closing(rb);
            else if (rb->fd >= 0) give_back(rb);
        }
    }
    pthread_mutex_unlock(&rb->closing);
}

/** The process ends, and something is pinned that will not be unpinned any more: see to it that the queue does not stay because of us.
 *  We stay a participant, for another thread may just be giving back what we hold; when the process is gone, the others recover us. */
static void depart(ringbuf *rb)
{
    pthread_mutex_lock(&rb->closing);
    bool pinned = rbi_load_total32(&rb->pins) >= 2 * RBI_PIN; /* by more than close_all() */
    if (pinned && rb->base && rb->fd >= 0 && rbi_load_total32(&rb->pins) & RBI_PIN_CLOSED) {
        remove_if_last(rb);
        rbi_lock_drop(rb->fd, RBI_LOCK_PRESENCE); /* the file stays open */
    }
    pthread_mutex_unlock(&rb->closing);
}

void rbi_handle_unpin(ringbuf *rb)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->pins);
        if (seen < 2 * RBI_PIN && seen & RBI_PIN_CLOSED) break; /* ours is the last: only close_all() could still pin it */
        if (rbi_cas_total32(&rb->pins, seen, seen - RBI_PIN)) return;
    }
    pthread_mutex_lock(&rb->closing);
    finish_closing(rb);
    pthread_mutex_unlock(&rb->closing);
    uint32_t before = rbi_add_total32(&rb->pins, (uint32_t)-RBI_PIN);
    if (before < 2 * RBI_PIN && before & RBI_PIN_FREED) handle_free(rb);
}

void rbi_segment_close(ringbuf *rb) { close_within(rb, RINGBUF_FOREVER); }

void rbi_segment_free(ringbuf *rb)
{
    if (!rb) return;
    rbi_segment_close(rb);
    if (flag_pins(rb, RBI_PIN_FREED) < RBI_PIN) handle_free(rb);
}

ringbuf_status rbi_segment_unlink(ringbuf *rb) { return remove_name_patiently(rb->fd, rb->path); }

ringbuf_status rbi_segment_unlink_name(const char *name, const ringbuf_options *options)
{
    ringbuf_status status = check_name(name);
    if (status != RINGBUF_OK) return status;
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    rbi_fd fd;
    status = rbi_file_open(&fd, path);
    if (status == RINGBUF_OK) {
        struct rbi_file_facts facts;
        status = rbi_file_facts(fd, &facts);
        if (status == RINGBUF_OK) status = check_file(&facts, options);
        if (status == RINGBUF_OK) status = remove_name_patiently(fd, path);
        if (status == RINGBUF_OK) rbi_ready_collect(directory_of(options));
        rbi_file_close(fd);
    }
    free(path);
    return status;
}

struct collection {
    uint64_t removed;
    const ringbuf_options *options;
};

static void collect_file(const char *file_name, void *context)
{
    struct collection *collection = context;
    char *path = NULL;
    if (asprintf(&path, "%s/%s", directory_of(collection->options), file_name) < 0) return;
    ringbuf *rb = handle_new(path, collection->options);
    if (rb) {
        bool alone = false;
        if (try_to_be_present(rb, &alone, false, collection->options) == RINGBUF_OK && check_and_map(rb) == RINGBUF_OK &&
            !worth_keeping(rb) && remove_name(rb->fd, path) == RINGBUF_OK)
            collection->removed++;
        handle_discard(rb);
    }
    free(path);
}

ringbuf_status rbi_segment_collect(uint64_t *removed, const ringbuf_options *options)
{
    struct collection collection = {.removed = 0, .options = options};
    ringbuf_status status = rbi_directory_visit(directory_of(options), FILE_PREFIX, collect_file, &collection);
    *removed = collection.removed;
    rbi_ready_collect(directory_of(options));
    return status;
}

/* ---- pages ---- */

/** Reserve memory of the file; if there is none and it is `needed`, what the arena's free blocks have may do. */
static ringbuf_status reserve(ringbuf *rb, uint64_t offset, uint64_t bytes, bool needed)
{
    ringbuf_status status = rbi_file_reserve(rb->fd, offset, bytes);
    if (status != RINGBUF_E_NO_SPACE || !needed) return status;
    rbi_store_relaxed64(&rb->trim_from, 0); /* relaxed: where to look */
    rbi_segment_trim(rb, 0, UINT64_MAX);
    return rbi_file_reserve(rb->fd, offset, bytes);
}

ringbuf_status rbi_segment_reserve(ringbuf *rb, uint32_t lane, uint64_t cells)
{
    /* In steps that double, up to a MiB of data at a time: few calls for a queue that fills, few pages for one that does not. */
    const uint64_t all = UINT64_C(1) << rb->stamp.cells_log2;
    const uint64_t unit = 64; /* slots in a page of 4 KiB, and whole pages of cells */
    const uint64_t largest_step = (UINT64_C(1) << 20) >> (rb->stamp.cell_log2 < 20 ? rb->stamp.cell_log2 : 20);
    const uint64_t least = round_up(cells, unit) < all ? round_up(cells, unit) : all;
    uint64_t slots_offset = rb->stamp.slots_offset + lane * slots_bytes_of(&rb->stamp);
    uint64_t data_offset = rb->stamp.data_offset + lane * rb->mirror_bytes;
    uint64_t reserved = rbi_load_acquire64(&rb->header->lanes[lane].reserved_cells);
    if (reserved > all) return RINGBUF_E_CORRUPT;
    uint64_t step = reserved < largest_step ? reserved : largest_step;
    uint64_t wanted = round_up(reserved + step, unit) < all ? round_up(reserved + step, unit) : all;
    if (wanted < least) wanted = least;
    for (;;) {
        if (wanted <= reserved) return RINGBUF_OK; /* somebody was quicker */
        bool needed = wanted == least;
        uint64_t more = wanted - reserved; /* not all from the beginning: the kernel would walk over it at every step */
        ringbuf_status status = reserve(rb, slots_offset + reserved * sizeof(struct rbi_slot), more * sizeof(struct rbi_slot), needed);
        if (status == RINGBUF_OK) status = reserve(rb, data_offset + (reserved << rb->stamp.cell_log2), more << rb->stamp.cell_log2, needed);
        RBI_POINT(pages_reserved);
        if (status == RINGBUF_OK) {
            if (rbi_ring_raise_reserved(&rb->ring, lane, wanted) != RBI_RING_OK) return RINGBUF_E_CORRUPT;
            RBI_POINT(reserved_published);
            return RINGBUF_OK;
        }
        if (status != RINGBUF_E_NO_SPACE || wanted == least) return status;
        wanted = least; /* the file system is nearly full: then just what is needed */
    }
}

/* ---- what others do to the file ---- */

static uint64_t note_links(ringbuf *rb, uint32_t links)
{
    if (links) return RINGBUF_LINKED;
    /* Whoever sees the unlink must see what was written before it, and fstat promises no such order: so not by a load, which might
     * come first, but by adding nothing, which cannot. */
    if (rbi_add_total32(&rb->header->removed, 0)) return RINGBUF_REMOVED;
    rbi_cas_total32(&rb->deletion, 0, RBI_DELETION_SEEN);
    return RINGBUF_DELETED;
}

uint64_t rbi_segment_unlinked(ringbuf *rb)
{
    struct rbi_file_facts facts;
    return rb->fd >= 0 && rbi_file_facts(rb->fd, &facts) == RINGBUF_OK ? note_links(rb, facts.links) : (uint64_t)RINGBUF_LINKED;
}

/** Whether the file was truncated and whether it was deleted, as far as can be seen without touching what may be missing: for one who
 *  sleeps, and may never touch it. */
static void look_at_file(ringbuf *rb)
{
    struct rbi_file_facts facts;
    if (rbi_handle_is_lost(rb) || rb->fd < 0 || rbi_file_facts(rb->fd, &facts) != RINGBUF_OK) return;
    if (facts.bytes < rb->stamp.file_bytes) rbi_guard_lose(&rb->calls, RBI_HANDLE_LOST);
    else if (!rbi_load_total32(&rb->deletion)) note_links(rb, facts.links); /* once seen, it stays so */
}

/* ---- recovery ---- */

ringbuf_status rbi_segment_recover(ringbuf *rb, uint64_t *recovered)
{
    *recovered = 0;
    look_at_file(rb);
    if (rbi_handle_is_lost(rb)) return RINGBUF_E_CORRUPT;
    if (pthread_mutex_trylock(&rb->recovery) != 0) return RINGBUF_OK;
    ringbuf_status status = rbi_registry_recover(&rb->registry, recovered);
    pthread_mutex_unlock(&rb->recovery);
    if (*recovered) rbi_ready_recover(rb);
    return status;
}

/* ---- the arena's memory ---- */

ringbuf_status rbi_segment_reserve_parts(ringbuf *rb, uint64_t parts)
{
    uint64_t blocks = rb->stamp.blocks / RBI_TABLE_PARTS;
    for (uint32_t part = 0; part < RBI_TABLE_PARTS; part++) {
        if (!(parts >> part & 1)) continue;
        const uint64_t words = blocks * sizeof(rbi_atomic64), entries = blocks * sizeof(struct rbi_run_entry);
        ringbuf_status status = reserve(rb, rb->stamp.table_offset + part * words, words, true);
        if (status == RINGBUF_OK) status = reserve(rb, rb->stamp.runs_offset + part * entries, entries, true);
        if (status != RINGBUF_OK) return status;
    }
    RBI_POINT(parts_reserved);
    rbi_arena_raise_parts(&rb->arena, parts);
    RBI_POINT(parts_raised);
    return RINGBUF_OK;
}

ringbuf_status rbi_segment_back(ringbuf *rb, struct rbi_run *run)
{
    uint32_t log2 = rb->stamp.block_log2;
    uint64_t offset = rb->stamp.arena_offset + (run->first << log2);
    ringbuf_status status = reserve(rb, offset, run->blocks << log2, true);
    RBI_POINT(blocks_reserved);
    if (status == RINGBUF_OK) rbi_arena_set_backed(&rb->arena, run, rb->registry.self);
    return status;
}

bool rbi_segment_trim(ringbuf *rb, uint64_t idle_s, uint64_t pieces)
{
    uint32_t log2 = rb->stamp.block_log2;
    uint64_t from = rbi_load_relaxed64(&rb->trim_from); /* relaxed: where to look */
    if (from >= rb->stamp.blocks) from = 0;
    bool wake = false, ended = false;
    struct rbi_run run;
    while (pieces-- && rbi_arena_is_used(&rb->arena)) {
        bool gave_back;
        uint64_t now_s = (uint64_t)rbi_monotonic_ns() / 1000000000;
        ended = rbi_arena_take_idle(&rb->arena, &run, rb->registry.self, now_s, idle_s, &from, &gave_back) != RBI_ARENA_OK;
        wake |= gave_back || !ended;
        if (ended) break;
        ringbuf_status status = rbi_file_punch(rb->fd, rb->stamp.arena_offset + (run.first << log2), run.blocks << log2);
        RBI_POINT(blocks_given_back);
        if (status == RINGBUF_OK) rbi_arena_free_without_pages(&rb->arena, &run, rb->registry.self);
        else rbi_arena_free(&rb->arena, &run, rb->registry.self, now_s); /* a file system without holes keeps it */
    }
    rbi_store_relaxed64(&rb->trim_from, from);
    if (wake) rbi_wake_for_room(rb); /* somebody may have found them taken */
    return ended;
}

/** Whether the participant with this number lives (or is ours).  With `recovery` held: the lock would else be another thread's. */
static bool lives(uint32_t number, void *context)
{
    ringbuf *rb = context;
    if (number == rb->registry.self) return true;
    if (number == 0 || number > rbi_registry_high(&rb->registry)) return false;
    if (rbi_lock_try(rb->fd, RBI_LOCK_OWNER + number, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) return true;
    rbi_lock_drop(rb->fd, RBI_LOCK_OWNER + number);
    return false;
}

void rbi_segment_check(ringbuf *rb, struct rbi_arena_findings *findings)
{
    pthread_mutex_lock(&rb->recovery);
    rbi_arena_check(&rb->arena, &rb->ring, findings, lives, rb);
    pthread_mutex_unlock(&rb->recovery);
}
