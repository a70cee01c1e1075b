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
 *          -> the name still leads here? -> check the stamp -> map -> recover the dead, if nobody has just looked -> participant.
 * Leave:   participant no more -> not present -> alone? -> recover the dead -> nothing left in it? -> remove the name.
 *          Who cannot get PRESENCE exclusively is not the last; somebody else is there and will come through here.
 *          A death in between leaves a file that nobody is present at: the next create or attach of that name, or collect, removes it.
 *
 * Closing under calls: `calls` counts calls in flight with two flags beside the count.  Close sets CLOSED, wakes the sleepers, and
 * waits until the count is zero before it unmaps.
 *
 * Fork: the child must not keep the parent's locks alive, so the atfork handler opens each file anew (a new open file has no locks),
 * closes the inherited one, marks itself present, and flags the handle STALE; the child's first call makes it a participant.  The
 * memory, which the child inherits too, is mapped through yet another open file, for a mapping holds on to its own.
 *
 * Descriptors are opened, closed and doubted in files.c.  "A descriptor that others have closed", below, tells what becomes of a handle
 * that has lost its own; "leftovers" what is removed unasked. */
#define _GNU_SOURCE
#include "ready.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- names and paths ---- */

#define FILE_PREFIX "ringbuf."
#define PRIVATE_PREFIX "ringbuf-new."
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

/** Absolute, for the working directory may be another one when the name is to be removed. */
static char *path_of(const char *name, const ringbuf_options *options)
{
    char file_name[256];
    escape(file_name, sizeof file_name, name);
    char *directory = rbi_absolute(directory_of(options)), *path = NULL;
    if (directory && asprintf(&path, "%s/" FILE_PREFIX "%s", directory, file_name) < 0) path = NULL;
    free(directory);
    return path;
}

/** How much of a path is its directory. */
static int directory_length(const char *path) { return (int)(strrchr(path, '/') - path); }

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

static const uint32_t known_memory = RINGBUF_PREFAULT | RINGBUF_HUGE_PAGES | RINGBUF_LOCK_MEMORY | RINGBUF_DUMP;

/** Fill a stamp from the caller's wishes; name and id come later. */
static ringbuf_status plan(struct rbi_stamp *stamp, const ringbuf_options *options)
{
    const uint64_t largest = UINT64_C(64) << 30, arena = arena_bytes_for(options);
    const uint32_t known_flags = RINGBUF_AUTO_CLEANUP | RINGBUF_PERSISTENT | RINGBUF_KEEP_WARM;
    const uint32_t opposites = RINGBUF_AUTO_CLEANUP | RINGBUF_PERSISTENT;
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
    if (options->memory & RINGBUF_PREFAULT) stamp->flags |= RINGBUF_KEEP_WARM; /* else it would not last */
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

/* In what ringbuf_error_layout() says of a file of another byte order. */
#define RBI_LAYOUT_SWAPPED (UINT32_C(1) << 31)

/** Whether a stamp read from a file of `file_bytes` bytes can be believed: everything that is used later is checked here. */
static ringbuf_status check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes)
{
    if (stamp->magic == __builtin_bswap64(RBI_MAGIC) || (stamp->magic == RBI_MAGIC && stamp->layout_version != RBI_LAYOUT_VERSION)) {
        const bool swapped = stamp->magic != RBI_MAGIC;
        uint32_t version = swapped ? __builtin_bswap32(stamp->layout_version) : stamp->layout_version;
        rbi_last_refusal()->layout = version | (swapped ? RBI_LAYOUT_SWAPPED : 0);
        return RINGBUF_E_VERSION;
    }
    if (stamp->magic != RBI_MAGIC) return RINGBUF_E_CORRUPT;
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

ringbuf_status rbi_segment_check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes)
{
    return check_stamp(stamp, file_bytes);
}

char *rbi_segment_path(const char *name, const ringbuf_options *options)
{
    return check_name(name) == RINGBUF_OK ? path_of(name, options) : NULL;
}

bool rbi_segment_is_file_of(const char *file_name, const char *name)
{
    char expected[256];
    escape(expected, sizeof expected, name);
    const size_t prefix = sizeof FILE_PREFIX - 1;
    return strncmp(file_name, FILE_PREFIX, prefix) == 0 && strcmp(file_name + prefix, expected) == 0;
}

bool rbi_segment_frozen(struct rbi_frozen *frozen, const struct rbi_stamp *stamp)
{
    *frozen = (struct rbi_frozen){.swapped = stamp->magic == __builtin_bswap64(RBI_MAGIC)};
    if (stamp->magic != RBI_MAGIC && !frozen->swapped) return false;
    frozen->layout_version = frozen->swapped ? __builtin_bswap32(stamp->layout_version) : stamp->layout_version;
    frozen->flags = frozen->swapped ? __builtin_bswap32(stamp->flags) : stamp->flags;
    return frozen->layout_version >= RBI_LAYOUT_FROZEN;
}

static bool read_frozen(rbi_fd fd, struct rbi_frozen *frozen)
{
    struct rbi_stamp stamp;
    return rbi_file_read(fd, &stamp, offsetof(struct rbi_stamp, slots_offset)) == RINGBUF_OK && rbi_segment_frozen(frozen, &stamp);
}

/* ---- the handles of this process, and fork ---- */

static struct ringbuf *handles; /* with the fork lock held (files.c) */

/* Queues that this process has left while others were there: see remember().  The one left last is first.  With the fork lock held. */
struct left {
    struct left *next;
    uint64_t device, inode;
    char path[];
};
static struct left *remembered, *remembered_by_parent;
static uint32_t remembered_count;

/* When this process looks for leftovers next: when it makes an unnamed queue, when it finds no room, among those that it remembers. */
static struct { rbi_atomic64 unnamed_ns, room_ns, remembered_ns; } next_look;

static void drop_from_list(struct ringbuf *rb)
{
    if (!rb->listed) return;
    rb->listed = false;
    if (rb->previous) rb->previous->next = rb->next;
    else handles = rb->next;
    if (rb->next) rb->next->previous = rb->previous;
}

/** Called in a forked child (files.c).  Only async-signal-safe calls: other threads of the parent are gone, and may have held any lock but
 *  the fork lock. */
static void after_fork_in_child(void)
{
    for (struct ringbuf *rb = handles; rb; rb = rb->next) {
        pthread_mutex_init(&rb->recovery, NULL);
        pthread_mutex_init(&rb->closing, NULL);
        rbi_ready_after_fork(rb);
        /* relaxed: this process has one thread now */
        rbi_add_relaxed64(&rb->generation, 1);
        /* Not what another thread of the parent was just about to pin or to unpin. */
        rbi_store_total32(&rb->pins, (rbi_load_total32(&rb->pins) & (RBI_PIN - 1)) + RBI_PIN * rbi_pins_count(&rb->tokens));
        if (rbi_handle_is_closed(rb)) {
            /* Another thread of the parent was opening or closing it, and what it has mapped stays mapped; or it was closed while
             * something of it was in use, and then the child's last pin unmaps it. */
            drop_from_list(rb);
            rbi_file_close_in_child(&rb->file);
            rbi_file_close_in_child(&rb->spare);
        } else {
            /* Calls of the parent's other threads are not ours.  What is lost is lost for us, too. */
            rbi_store_total32(&rb->calls, RBI_HANDLE_STALE | (rbi_load_total32(&rb->calls) & RBI_HANDLE_LOST));
            rbi_store_total32(&rb->entering, 0);
            /* If it fails, the child's first call tries again, and says why. */
            rb->reopened = rbi_file_reopen_in_child(&rb->file, &rb->spare, rb->path);
            rb->refusal = *rbi_last_refusal();
            rb->registry.fd = rb->file.fd;
            rb->registry.self = 0;
        }
    }
    /* What the parent has left, it sees to.  Nothing can be freed here, so it is set aside for try_remembered(). */
    struct left **end = &remembered_by_parent;
    while (*end) end = &(*end)->next;
    *end = remembered;
    remembered = NULL;
    remembered_count = 0;
    rbi_store_relaxed64(&next_look.unnamed_ns, 0); /* relaxed, as above: a process that begins looks */
    rbi_store_relaxed64(&next_look.room_ns, 0);
    rbi_store_relaxed64(&next_look.remembered_ns, 0);
    /* When all that is to be closed is closed: locks by process do not survive that (files.c). */
    for (struct ringbuf *rb = handles; rb; rb = rb->next)
        if (rb->file.fd >= 0) rbi_lock_try_in_child(&rb->file, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
}

/* A handle is on the list from before it has a file until its file is closed, so a child forked by another thread at any moment opens
 * the file anew, or closes it.  Otherwise it would keep locks of a parent that has died. */

static void list_handle(struct ringbuf *rb)
{
    rbi_files_hold();
    rbi_files_at_fork(after_fork_in_child);
    rb->listed = true;
    rb->next = handles;
    if (handles) handles->previous = rb;
    handles = rb;
    rbi_files_let_go();
}

static void unlist_handle(struct ringbuf *rb)
{
    rbi_files_hold();
    drop_from_list(rb);
    rbi_file_close_held(&rb->file);
    rbi_file_close_held(&rb->spare);
    rbi_files_let_go();
}

static ringbuf_status attach_mapped(ringbuf *rb);
static ringbuf_status prefault(ringbuf *rb);
static void close_within(ringbuf *rb, int64_t patience);
static void depart(ringbuf *rb);

/* At exit a call in flight may be one that a signal handler interrupted to call exit(): it will never end. */
static const int64_t at_exit_ns = 500000000;

/** A process that ends without closing would leave its empty queues behind. */
static void close_all(void)
{
    for (;;) {
        rbi_files_hold();
        struct ringbuf *rb = handles;
        while (rb && (rb->at_exit || !rb->handed_out)) rb = rb->next;
        if (rb) {
            rb->at_exit = true;
            rbi_handle_pin(rb); /* so that it is there as long as we use it: it is freed only after it was taken off the list */
        }
        rbi_files_let_go();
        if (!rb) return;
        close_within(rb, at_exit_ns);
        depart(rb);
        rbi_handle_unpin(rb);
    }
}

static void try_remembered(bool at_the_end);

__attribute__((destructor)) static void leave_at_exit(void)
{
    close_all();
    try_remembered(true);
}

void rbi_segment_leave_all(void) { leave_at_exit(); }

static const int64_t patience_ns = 5000000000;
static const int64_t nap_ns = 1000000;

/* ---- a descriptor that others have closed ----
 *
 * The mapping goes on, but with the descriptor our locks are gone, so others take us for dead: sooner or later one recovers us, and another
 * participant gets our number.  A call notices when it looks at the file, or needs the system to do something with it, and then:
 *   the file is opened anew; PRESENCE shared; OWNER with our number, if nobody has it.
 *   We have it, and the entry is as we left it: nobody has recovered us whole.  (If one has begun and died, what it gave back is not ours
 *   any more, and the word of each message says so.)  Everything goes on.
 *   Else what we had taken is gone, as a parent's is for a forked child: the handle becomes STALE, calls under way end or are made again
 *   (RINGBUF_E_INTR), and when none is under way any more that works under the old number, the next call becomes a participant anew. */

/** See to it that the file is open.  With `recovery` held. */
static ringbuf_status have_file(ringbuf *rb)
{
    if (rbi_file_is_ours(&rb->file)) return RINGBUF_OK;
    /* As it lies in memory: the first lane's first part follows the prefix in the file as well, so the kernel may see one mapping. */
    const uint64_t lengths[2] = {rb->prefix_bytes + rb->mirror_bytes, rb->prefix_bytes};
    ringbuf_status status = rbi_file_recall(&rb->file, rb->path, rb->base, lengths);
    rb->registry.fd = rb->file.fd;
    if (status == RINGBUF_OK) rb->reopened = RINGBUF_OK;
    if (status == RINGBUF_E_NO_DESCRIPTOR && rb->reopened != RINGBUF_OK) { /* it was never open in this process */
        *rbi_last_refusal() = rb->refusal;
        return rb->reopened;
    }
    return status;
}

/** Be present, shared.  The name may be gone by now, but not the memory. */
static ringbuf_status be_present_anew(ringbuf *rb)
{
    const int64_t give_up_ns = rbi_monotonic_ns() + patience_ns;
    for (;;) {
        ringbuf_status status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
        if (status != RINGBUF_E_BUSY || rbi_monotonic_ns() > give_up_ns) return status;
        rbi_nap(nap_ns); /* somebody is just looking whether to remove it */
    }
}

/** Take the locks of a participant again, under the same number.  With `recovery` held. */
static ringbuf_status regain(ringbuf *rb)
{
    if (!rbi_handle_is_stale(rb) && rbi_file_is_ours(&rb->file)) return RINGBUF_OK; /* another thread was quicker */
    ringbuf_status status = have_file(rb);
    if (status == RINGBUF_OK) status = be_present_anew(rb);
    if (status == RINGBUF_OK && rb->registry.self) {
        status = rbi_lock_try(rb->file.fd, RBI_LOCK_OWNER + rb->registry.self, RBI_LOCK_EXCLUSIVE);
        if (status == RINGBUF_OK) {
            if (!rbi_handle_is_stale(rb) && rbi_registry_is_me(&rb->registry)) return RINGBUF_OK;
            rbi_lock_drop(rb->file.fd, RBI_LOCK_OWNER + rb->registry.self);
        }
        if (status == RINGBUF_E_BUSY) status = RINGBUF_OK;
    }
    for (uint32_t seen = rbi_load_total32(&rb->calls); !(seen & RBI_HANDLE_STALE); seen = rbi_load_total32(&rb->calls))
        if (rbi_cas_total32(&rb->calls, seen, seen | RBI_HANDLE_STALE)) break;
    return status == RINGBUF_OK ? RINGBUF_E_INTR : status;
}

ringbuf_status rbi_segment_own_file(ringbuf *rb)
{
    if (rbi_file_is_ours(&rb->file)) return RINGBUF_OK;
    if (pthread_mutex_trylock(&rb->recovery) != 0) return RINGBUF_E_INTR; /* another thread is at it */
    ringbuf_status status = regain(rb);
    pthread_mutex_unlock(&rb->recovery);
    return status;
}

/** At the end of a handle: whether the file is ours.  If so, and we still are the participant that we were, everything can be left in
 *  order; else what we had is no longer ours to give back. */
static bool is_ours_at_the_end(ringbuf *rb)
{
    if (rbi_handle_is_lost(rb) || (!rbi_handle_is_stale(rb) && rbi_file_is_ours(&rb->file))) return rbi_file_is_ours(&rb->file);
    pthread_mutex_lock(&rb->recovery);
    if (regain(rb) != RINGBUF_OK) rb->registry.self = 0;
    pthread_mutex_unlock(&rb->recovery);
    return rbi_file_is_ours(&rb->file);
}

/** One attempt to become a participant (again).  RINGBUF_E_BUSY: calls that work under an old number are still under way. */
static ringbuf_status try_to_take_part(ringbuf *rb)
{
    if (!rbi_handle_is_stale(rb)) return RINGBUF_OK;
    ringbuf_status status = have_file(rb);
    /* The parent may have left while we were between fork and here; then the name is gone, but not the memory. */
    if (status == RINGBUF_OK) status = be_present_anew(rb);
    if (status != RINGBUF_OK) return status;
    if (rb->registry.self) {
        if (rbi_load_total32(&rb->calls) / RBI_HANDLE_CALL > rbi_load_total32(&rb->entering)) return RINGBUF_E_BUSY;
        rb->registry.self = 0;
        rbi_add_relaxed64(&rb->generation, 1); /* relaxed: whoever compares it has begun its call after this one has ended */
    }
    status = rbi_registry_join(&rb->registry, rb->label);
    /* Full of the dead, perhaps: earlier children that ended without closing, and nobody had to wait and to look for them since. */
    if (status == RINGBUF_E_CROWDED) status = attach_mapped(rb);
    if (status == RINGBUF_OK) rbi_add_total32(&rb->calls, (uint32_t)-RBI_HANDLE_STALE);
    return status;
}

static ringbuf_status take_part(ringbuf *rb)
{
    const int64_t give_up_ns = rbi_monotonic_ns() + patience_ns;
    ringbuf_status status;
    rbi_add_total32(&rb->entering, 1);
    for (;;) {
        struct rbi_signals before; /* a handler's call would wait for ours, which it interrupts */
        rbi_signals_hold(&before);
        pthread_mutex_lock(&rb->recovery);
        status = try_to_take_part(rb);
        pthread_mutex_unlock(&rb->recovery);
        rbi_signals_let_go(&before);
        if (status != RINGBUF_E_BUSY || rbi_monotonic_ns() > give_up_ns) break;
        if (rbi_handle_is_closed(rb)) status = RINGBUF_E_CLOSED;
        if (status == RINGBUF_E_CLOSED) break;
        rbi_nap(nap_ns); /* sleepers look every 100 ms */
    }
    rbi_add_total32(&rb->entering, (uint32_t)-1);
    return status;
}

ringbuf_status rbi_handle_enter_slow(ringbuf *rb)
{
    ringbuf_status status = RINGBUF_E_CLOSED;
    if (!rbi_handle_is_closed(rb)) status = rbi_handle_is_lost(rb) ? RINGBUF_E_CORRUPT : take_part(rb);
    if (status != RINGBUF_OK) rbi_handle_leave(rb, status);
    return status;
}

ringbuf_status rbi_handle_enter_lost(ringbuf *rb)
{
    ringbuf_status status = rbi_handle_enter(rb);
    if (status != RINGBUF_E_CORRUPT || !rbi_handle_is_lost(rb)) return status;
    uint32_t before = rbi_own_add_total32(&rb->calls, RBI_HANDLE_CALL);
    status = before & RBI_HANDLE_CLOSED ? RINGBUF_E_CLOSED : RINGBUF_OK;
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
    rbi_files_hold();
    ringbuf_status status = rbi_guard_install();
    rbi_files_let_go();
    return status;
}

/** Map the file, under the guard's eyes. */
static ringbuf_status map_guarded(ringbuf *rb, rbi_fd fd)
{
    void *base;
    ringbuf_status status = rbi_map(&base, fd, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    if (status != RINGBUF_OK) return status;
    rbi_files_hold(); /* so that a forked child finds the guard's list whole */
    rb->guarded = rbi_guard_add(base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES, &rb->calls, RBI_HANDLE_LOST);
    rbi_files_let_go();
    if (rb->guarded) rb->base = base;
    else rbi_unmap(base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    return rb->guarded ? RINGBUF_OK : RINGBUF_E_NO_MEMORY;
}

/** Have the mapping as the options wish.  By default it is left out of core dumps: writing one reads every page, and to read a page of a
 *  file in memory that has none is to give it one, which nobody would give back. */
static ringbuf_status advise(ringbuf *rb)
{
    const uint64_t bytes = rb->prefix_bytes + 2 * rb->mirror_bytes * RBI_LANES;
    uint8_t *arena = (uint8_t *)rb->base + rb->stamp.arena_offset;
    if (!(rb->memory & RINGBUF_DUMP)) rbi_map_leave_out_of_dumps(rb->base, bytes);
    if (rb->memory & RINGBUF_HUGE_PAGES) rbi_map_want_huge_pages(arena, arena_bytes_of(&rb->stamp));
    return rb->memory & RINGBUF_LOCK_MEMORY ? rbi_map_lock(rb->base, bytes) : RINGBUF_OK;
}

static void unmap_guarded(ringbuf *rb)
{
    rbi_files_hold();
    rbi_guard_drop(rb->guarded); /* first: these addresses may be another mapping's as soon as they are free */
    rb->guarded = NULL;
    rbi_files_let_go();
    rbi_unmap(rb->base, rb->prefix_bytes, rb->mirror_bytes, RBI_LANES);
    rb->base = NULL;
}

/* ---- a handle's memory ---- */

static void handle_free(ringbuf *rb)
{
    if (!rb) return;
    free(rb->name);
    free(rb->path);
    free(rb->private_path);
    free(rb->label);
    rbi_pins_free(&rb->tokens);
    pthread_mutex_destroy(&rb->recovery);
    pthread_mutex_destroy(&rb->closing);
    rbi_ready_free(rb);
    free(rb);
}

/** Allocate and list a handle that has no file yet. */
static ringbuf *handle_new(const char *path, const ringbuf_options *options)
{
    ringbuf *rb = calloc(1, sizeof *rb);
    if (!rb) return NULL;
    rb->file.fd = rb->spare.fd = -1;
    rb->file.kept = rb->spare.kept = true;
    atomic_init(&rb->calls, RBI_HANDLE_CLOSED); /* until it is handed out */
    rb->idle_s = RBI_IDLE_S;
    rb->memory = options->memory;
    atomic_init(&rb->items_patience.spin_ns, RBI_SPIN_START_NS);
    atomic_init(&rb->space_patience.spin_ns, RBI_SPIN_START_NS);
    atomic_init(&rb->room_patience.spin_ns, RBI_SPIN_START_NS);
    pthread_mutex_init(&rb->recovery, NULL);
    pthread_mutex_init(&rb->closing, NULL);
    for (int level = 0; level < RBI_LEVELS; level++) {
        rb->levels[level].file.fd = -1;
        rb->levels[level].file.kept = true;
    }
    rb->path = strdup(path);
    rb->label = options->label ? strdup(options->label) : NULL;
    uint64_t generation;
    bool known = rbi_random(&generation, sizeof generation) == RINGBUF_OK;
    atomic_init(&rb->generation, known ? generation : (uint64_t)(uintptr_t)rb ^ (uint64_t)rbi_monotonic_ns());
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
    if (rb->private_path) rbi_path_unlink(rb->private_path);
    unlist_handle(rb);
    handle_free(rb);
}

static void hand_out(ringbuf **out, ringbuf *rb)
{
    rbi_files_hold(); /* other threads go through the list of handles, and ask this */
    rb->handed_out = true;
    rbi_files_let_go();
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

/** Whether to keep the mapping's open file for children that may not open the file anew: where this process can give up its rights, as
 *  long as that leaves it half of its descriptors. */
static bool needs_spare(const ringbuf *rb)
{
    return rbi_may_lose_rights() && rb->spare.fd >= 0 && (uint64_t)rb->spare.fd < rbi_descriptors_most() / 2;
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
        .fd = rb->file.fd,
        .max_participants = rb->stamp.max_participants,
    };
}

static ringbuf_status handle_map(ringbuf *rb)
{
    rb->name = strndup((const char *)rb->stamp.name, rb->stamp.name_bytes);
    if (!rb->name || rbi_ready_prepare(rb) != RINGBUF_OK) return RINGBUF_E_NO_MEMORY;
    rb->prefix_bytes = rb->stamp.data_offset;
    rb->mirror_bytes = capacity_of(&rb->stamp);
    /* Through an open file of its own, without locks: a mapping keeps its open file, and a forked child keeps the mapping. */
    ringbuf_status status = rbi_file_reopen(&rb->spare, &rb->file, rb->private_path ? rb->private_path : rb->path);
    if (status != RINGBUF_OK) return status;
    status = map_guarded(rb, rb->spare.fd);
    if (!needs_spare(rb)) rbi_file_close(&rb->spare);
    if (status == RINGBUF_OK) status = advise(rb);
    if (status != RINGBUF_OK) return status;
    rbi_segment_lay_out(rb, rb->base);
    return RINGBUF_OK;
}

/* ---- removing ---- */

static void remember(const ringbuf *rb);

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

/** With NAME held: remove the name of the file `fd` is open on, if `path` still leads to it.  OK also if it does not. */
static ringbuf_status remove_name_locked(rbi_fd fd, const char *path)
{
    RBI_POINT(name_locked);
    struct rbi_file_facts ours, named;
    ringbuf_status status = rbi_file_facts(fd, &ours);
    if (status != RINGBUF_OK) return status;
    status = rbi_path_facts(path, &named);
    RBI_POINT(name_checked);
    if (status == RINGBUF_OK && ours.device == named.device && ours.inode == named.inode) {
        say_removed(fd, ours.bytes, 1);
        RBI_POINT(removed);
        status = rbi_path_unlink(path);
        if (status != RINGBUF_OK && status != RINGBUF_E_NOT_FOUND) say_removed(fd, ours.bytes, 0);
    }
    RBI_POINT(unlinked);
    return status == RINGBUF_E_NOT_FOUND ? RINGBUF_OK : status;
}

/** The same with the lock.  BUSY: somebody else is at it. */
static ringbuf_status remove_name(rbi_fd fd, const char *path)
{
    ringbuf_status status = rbi_lock_try(fd, RBI_LOCK_NAME, RBI_LOCK_EXCLUSIVE);
    if (status != RINGBUF_OK) return status;
    status = remove_name_locked(fd, path);
    rbi_lock_drop(fd, RBI_LOCK_NAME);
    return status;
}

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
static void remove_if_last(ringbuf *rb, bool took_part)
{
    rbi_lock_drop(rb->file.fd, RBI_LOCK_PRESENCE);
    RBI_POINT(presence_left);
    if (rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) {
        if (took_part) remember(rb); /* else it was its parent's */
        return;
    }
    RBI_POINT(alone);
    rbi_ready_remove(rb);
    if (!worth_keeping(rb)) remove_name(rb->file.fd, rb->path); /* if another process is at it already, it does that */
}

static void leave(ringbuf *rb)
{
    const bool took_part = rb->registry.self != 0, ours = is_ours_at_the_end(rb);
    if (!rbi_handle_is_lost(rb)) { /* else there is nothing to give back, and the lock goes with the file */
        rbi_registry_leave(&rb->registry);
        rbi_ready_recover(rb); /* what we had taken went back */
    }
    rbi_ready_close(rb);
    if (ours) remove_if_last(rb, took_part);
}

/* ---- attach ---- */

static ringbuf_status check_file(const struct rbi_file_facts *facts, const ringbuf_options *options)
{
    if (!facts->regular) return RINGBUF_E_CORRUPT;
    if (facts->user != rbi_user() && options->permissions == 0) {
        rbi_last_refusal()->call = NULL; /* our own decision */
        rbi_last_refusal()->number = 0;
        return RINGBUF_E_ACCESS;
    }
    return RINGBUF_OK;
}

/** Open the file at rb->path and become present at it: exclusively (*alone) if nobody else is, else shared if `company` will do.
 *  BUSY: somebody holds it alone, or is there at all.  NOT_FOUND: no file there, or it was removed while we looked. */
static ringbuf_status try_to_be_present(ringbuf *rb, bool *alone, bool company, const ringbuf_options *options)
{
    struct rbi_file_facts facts;
    ringbuf_status status = rbi_file_open(&rb->file, rb->path);
    if (status != RINGBUF_OK) return status;
    RBI_POINT(opened);
    status = rbi_file_facts(rb->file.fd, &facts);
    if (status == RINGBUF_OK) status = check_file(&facts, options);
    if (status == RINGBUF_OK) {
        status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_EXCLUSIVE);
        *alone = status == RINGBUF_OK;
        if (!*alone && company) status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
    }
    RBI_POINT(present);
    /* Now nobody removes it any more for being empty; but that may have happened before. */
    if (status == RINGBUF_OK) status = rbi_file_facts(rb->file.fd, &facts);
    if (status == RINGBUF_OK && facts.links == 0) status = RINGBUF_E_NOT_FOUND;
    if (status != RINGBUF_OK) rbi_file_close(&rb->file);
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
    ringbuf_status status = rbi_file_facts(rb->file.fd, &facts);
    /* Read, not mapped: a file that is too short gives a short count, not SIGBUS. */
    if (status == RINGBUF_OK) status = rbi_file_read(rb->file.fd, &rb->stamp, sizeof rb->stamp);
    if (status == RINGBUF_OK) status = check_stamp(&rb->stamp, facts.bytes);
    if (status == RINGBUF_OK) status = handle_map(rb);
    RBI_POINT(mapped);
    return status;
}

/** Clean up after the dead, then become a participant. */
static ringbuf_status recover_and_join(ringbuf *rb, bool at_all_events)
{
    uint64_t recovered;
    ringbuf_status status = at_all_events ? rbi_registry_recover(&rb->registry, &recovered)
                                          : rbi_registry_recover_if_due(&rb->registry, rbi_monotonic_ns(), RBI_ATTACHING, &recovered);
    if (status == RINGBUF_OK && recovered) rbi_ready_recover(rb);
    if (status == RINGBUF_OK) status = rbi_registry_join(&rb->registry, rb->label);
    return status;
}

/** Become a participant of a mapped queue, in the public sense of attaching. */
static ringbuf_status attach_mapped(ringbuf *rb)
{
    ringbuf_status status = recover_and_join(rb, false);
    /* Full, perhaps of those that have died since the last look, on which we have relied. */
    if (status == RINGBUF_E_CROWDED) status = recover_and_join(rb, true);
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
        status = remove_name(rb->file.fd, rb->path);
        if (status == RINGBUF_OK) status = RINGBUF_E_NOT_FOUND;
    } else {
        if (alone) rbi_ready_remove(rb);
        if (alone) status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
        if (status == RINGBUF_OK) status = attach_mapped(rb);
        if (status == RINGBUF_OK) status = prefault(rb);
    }
    if (status != RINGBUF_OK) {
        leave(rb); /* while we were present, the last user may have left and not been able to see that he was */
        handle_discard(rb);
        return status;
    }
    hand_out(out, rb);
    return RINGBUF_OK;
}

/** Whether this handle has lost its descriptor on the file at `path`. */
static bool has_lost(ringbuf *rb, const char *path)
{
    return rb->handed_out && !rbi_handle_is_closed(rb) && strcmp(rb->path, path) == 0 && !rbi_file_is_ours(&rb->file);
}

/** Before the file at `path` is looked at by a new handle: older ones of this process that have lost their descriptors take their locks
 *  again.  Else the new one would find nobody there, and remove an empty queue. */
static void regain_others(const char *path)
{
    for (int tries = 0; tries < 100; tries++) { /* each finds another handle, unless one cannot be helped */
        rbi_files_hold();
        struct ringbuf *rb = handles;
        while (rb && !has_lost(rb, path)) rb = rb->next;
        if (rb) rbi_handle_pin(rb);
        rbi_files_let_go();
        if (!rb) return;
        rbi_segment_own_file(rb);
        const bool helped = rbi_file_is_ours(&rb->file);
        rbi_handle_unpin(rb);
        if (!helped) return;
    }
}

ringbuf_status rbi_segment_open(ringbuf **out, const char *name, const uint8_t *id, const ringbuf_options *options)
{
    ringbuf_status status = options->memory & ~known_memory ? RINGBUF_E_INVALID : check_name(name);
    if (status != RINGBUF_OK) return status;
    try_remembered(false);
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    regain_others(path);
    status = open_path(out, name, path, id, options);
    free(path);
    return status;
}

/* ---- leftovers ----
 *
 * What everybody left behind by dying.  Whoever gets PRESENCE exclusively knows that nobody is attached, so nothing here is a guess. */

struct collection {
    uint64_t removed;
    const char *directory;
    const ringbuf_options *options;
};

/** Whether this process has a handle on that file that is not closed.  Its locks do not say so: they are gone with a descriptor that the
 *  program has closed behind our back, until the handle's next call notices.  With the fork lock held. */
static bool is_in_use_here(uint64_t device, uint64_t inode)
{
    for (const struct ringbuf *rb = handles; rb; rb = rb->next)
        if (rb->handed_out && !rbi_handle_is_closed(rb) && rb->file.device == device && rb->file.inode == inode) return true;
    return false;
}

/** Remove the file at `path` if nobody is present at it, and it would go with its last user: it is unnamed or auto-cleanup, of whatever
 *  layout, or has a private name.  With the fork lock held; waits for nothing, and allocates nothing. */
static bool remove_if_left_over(const char *path, const ringbuf_options *options, bool private)
{
    struct rbi_file file = RBI_NO_FILE;
    struct rbi_file_facts facts;
    struct rbi_frozen frozen;
    if (rbi_file_open_held(&file, path) != RINGBUF_OK) return false;
    bool goes = rbi_file_facts(file.fd, &facts) == RINGBUF_OK && check_file(&facts, options) == RINGBUF_OK;
    if (goes && !private) goes = read_frozen(file.fd, &frozen) && frozen.flags & (RINGBUF_AUTO_CLEANUP | RINGBUF_UNNAMED);
    goes = goes && !is_in_use_here(file.device, file.inode) &&
           rbi_file_lock_try(file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_EXCLUSIVE) == RINGBUF_OK;
    RBI_POINT(leftover_alone);
    goes = goes && rbi_file_facts(file.fd, &facts) == RINGBUF_OK && facts.links &&
           rbi_file_lock_try(file.fd, RBI_LOCK_NAME, RBI_LOCK_EXCLUSIVE) == RINGBUF_OK && remove_name_locked(file.fd, path) == RINGBUF_OK;
    rbi_file_close_held(&file); /* and the locks with it */
    return goes;
}

static void collect_leftover(const char *file_name, void *context)
{
    struct collection *collection = context;
    char path[1024];
    int length = snprintf(path, sizeof path, "%s/%s", collection->directory, file_name);
    if (length < 0 || (size_t)length >= sizeof path || !rbi_files_try_hold()) return;
    const bool private = strncmp(file_name, PRIVATE_PREFIX, sizeof PRIVATE_PREFIX - 1) == 0;
    const struct rbi_refusal before = *rbi_last_refusal();
    collection->removed += remove_if_left_over(path, collection->options, private);
    *rbi_last_refusal() = before;
    rbi_files_let_go();
}

/* A look at the directory costs up to a fiftieth of a process's time, however many files there are. */
enum { LOOKS_COST = 50 };

/** Collect what remove_if_left_over() removes, unless that was done lately.  Returns whether something was removed. */
static bool collect_leftovers(const char *directory, rbi_atomic64 *next_ns)
{
    const ringbuf_options options = {.permissions = 0};
    struct collection collection = {.directory = directory, .options = &options};
    const int64_t began_ns = rbi_monotonic_ns();
    if ((uint64_t)began_ns < rbi_load_relaxed64(next_ns)) return false; /* relaxed: it only limits how often */
    const struct rbi_refusal before = *rbi_last_refusal();
    rbi_directory_visit(directory, FILE_PREFIX, false, collect_leftover, &collection);
    rbi_directory_visit(directory, PRIVATE_PREFIX, false, collect_leftover, &collection);
    *rbi_last_refusal() = before;
    const int64_t now_ns = rbi_monotonic_ns();
    rbi_store_relaxed64(next_ns, (uint64_t)(now_ns + LOOKS_COST * (now_ns - began_ns))); /* relaxed: as above */
    return collection.removed;
}

static bool collect_leftovers_beside(const char *path, rbi_atomic64 *next_ns)
{
    char directory[1024];
    int length = snprintf(directory, sizeof directory, "%.*s", directory_length(path), path);
    return length > 0 && (size_t)length < sizeof directory && collect_leftovers(directory, next_ns);
}

bool rbi_segment_collect_for_room(ringbuf *rb) { return collect_leftovers_beside(rb->path, &next_look.room_ns); }

/** The same for what has to be looked into; `device` and `inode` 0: whatever file it is.  RINGBUF_E_BUSY: somebody is there. */
static ringbuf_status collect_path(const char *path, const ringbuf_options *options, uint64_t device, uint64_t inode)
{
    ringbuf *rb = handle_new(path, options);
    if (!rb) return RINGBUF_E_NO_MEMORY;
    bool alone = false;
    ringbuf_status status = try_to_be_present(rb, &alone, false, options);
    if (status == RINGBUF_OK && inode && (rb->file.device != device || rb->file.inode != inode)) status = RINGBUF_E_GONE;
    if (status == RINGBUF_OK) {
        rbi_files_hold();
        if (is_in_use_here(rb->file.device, rb->file.inode)) status = RINGBUF_E_BUSY;
        rbi_files_let_go();
    }
    if (status == RINGBUF_OK) status = check_and_map(rb);
    if (status == RINGBUF_OK) rbi_ready_remove(rb);
    if (status == RINGBUF_OK) status = worth_keeping(rb) ? RINGBUF_E_EXISTS : remove_name(rb->file.fd, path);
    handle_discard(rb);
    return status;
}

static void collect_file(const char *file_name, void *context)
{
    struct collection *collection = context;
    uint64_t before = collection->removed;
    collect_leftover(file_name, context);
    char *path = NULL;
    if (collection->removed > before || asprintf(&path, "%s/%s", collection->directory, file_name) < 0) return;
    collection->removed += collect_path(path, collection->options, 0, 0) == RINGBUF_OK;
    free(path);
}

ringbuf_status rbi_segment_collect(uint64_t *removed, const ringbuf_options *options)
{
    struct collection collection = {.directory = directory_of(options), .options = options};
    ringbuf_status status = rbi_directory_visit(collection.directory, FILE_PREFIX, true, collect_file, &collection);
    *removed = collection.removed;
    if (status == RINGBUF_OK) rbi_directory_visit(collection.directory, PRIVATE_PREFIX, true, collect_leftover, &collection);
    rbi_ready_collect(directory_of(options));
    return status;
}

static bool collect_all_for_room(const ringbuf_options *options)
{
    const struct rbi_refusal before = *rbi_last_refusal();
    uint64_t removed = 0;
    rbi_segment_collect(&removed, options);
    *rbi_last_refusal() = before;
    return removed;
}

/* Queues that this process has left while others were there.  Those remove the queue, if they leave; if they are being killed, nobody does,
 * although this process is still there: a parent that terminates its workers and closes the queue before they are gone.  So it tries again
 * when it makes, opens or closes a queue, and at its end.  A bounded number: beyond it the one left longest ago is forgotten. */

enum { REMEMBERED_MOST = 256 };

static void remember(const ringbuf *rb)
{
    if (rb->stamp.flags & RINGBUF_PERSISTENT) return;
    const size_t bytes = strlen(rb->path) + 1;
    struct left *left = malloc(sizeof *left + bytes), *oldest = NULL;
    if (!left) return;
    left->device = rb->file.device;
    left->inode = rb->file.inode;
    memcpy(left->path, rb->path, bytes);
    rbi_files_hold();
    left->next = remembered;
    remembered = left;
    for (struct left **each = &left->next; *each; each = &(*each)->next) { /* once for each queue */
        if ((*each)->device != left->device || (*each)->inode != left->inode) continue;
        oldest = *each;
        *each = oldest->next;
        break;
    }
    if (!oldest && ++remembered_count > REMEMBERED_MOST) {
        struct left **each = &left->next;
        while ((*each)->next) each = &(*each)->next;
        oldest = *each;
        *each = NULL;
        remembered_count--;
    }
    rbi_files_let_go();
    free(oldest);
}

/** Try those again, or at the end of the process for the last time; else no more often than a look at a directory. */
static void try_remembered(bool at_the_end)
{
    rbi_atomic64 *next_ns = &next_look.remembered_ns;
    const int64_t began_ns = rbi_monotonic_ns();
    if (!at_the_end && (uint64_t)began_ns < rbi_load_relaxed64(next_ns)) return; /* relaxed: it only limits how often */
    rbi_files_hold();
    struct left *all = remembered, *again = NULL, **end = &again, *parents = remembered_by_parent;
    remembered = remembered_by_parent = NULL;
    remembered_count = 0;
    rbi_files_let_go();
    while (parents) {
        struct left *next = parents->next;
        free(parents);
        parents = next;
    }
    if (!all) return;
    const struct rbi_refusal before = *rbi_last_refusal();
    const ringbuf_options options = {.permissions = 0777}; /* what this process has used, it may remove */
    uint32_t count = 0;
    while (all) {
        struct left *left = all;
        all = left->next;
        if (collect_path(left->path, &options, left->device, left->inode) == RINGBUF_E_BUSY && !at_the_end) {
            left->next = NULL;
            *end = left;
            end = &left->next;
            count++;
        } else {
            free(left);
        }
    }
    *rbi_last_refusal() = before;
    rbi_files_hold();
    *end = remembered; /* others may have remembered more meanwhile */
    remembered = again;
    remembered_count += count;
    rbi_files_let_go();
    const int64_t now_ns = rbi_monotonic_ns();
    rbi_store_relaxed64(next_ns, (uint64_t)(now_ns + LOOKS_COST * (now_ns - began_ns))); /* relaxed: as above */
}

/* ---- create ---- */

/* Where there are no files without a name (RINGBUF_E_NO_DIRECTORY), or none can be given one (no /proc), a queue is made under a private
 * name, `ringbuf-new.` and its id, and that is removed when it has its own.  Who makes it is present from the beginning: whoever finds a
 * file of such a name that nobody is present at removes it (collect), also between its first two steps; then its maker begins anew. */

static ringbuf_status make_private(ringbuf *rb)
{
    char id[2 * RBI_ID_BYTES + 1];
    struct rbi_file_facts facts;
    uint8_t number[RBI_ID_BYTES];
    ringbuf_status status = rbi_random(number, sizeof number);
    if (status != RINGBUF_OK) return status;
    for (size_t i = 0; i < RBI_ID_BYTES; i++) snprintf(id + 2 * i, 3, "%02x", (unsigned)number[i]);
    char *private_path = NULL;
    if (asprintf(&private_path, "%.*s/" PRIVATE_PREFIX "%s", directory_length(rb->path), rb->path, id) < 0) return RINGBUF_E_NO_MEMORY;
    status = rbi_file_make(&rb->file, private_path, rb->stamp.permissions);
    RBI_POINT(private_made);
    if (status != RINGBUF_OK) {
        free(private_path);
        return status;
    }
    rb->private_path = private_path;
    status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
    RBI_POINT(private_present);
    if (status == RINGBUF_OK) status = rbi_file_facts(rb->file.fd, &facts);
    if (status == RINGBUF_OK && facts.links == 0) status = RINGBUF_E_BUSY;
    return status;
}

/** A complete queue without a name, or with a private one. */
static ringbuf_status make(ringbuf **out, const struct rbi_stamp *stamp, const char *path, const ringbuf_options *options, bool private)
{
    ringbuf *rb = handle_new(path, options);
    if (!rb) return RINGBUF_E_NO_MEMORY;
    rb->stamp = *stamp;
    ringbuf_status status = private ? make_private(rb) : rbi_file_make_unnamed(&rb->file, directory_of(options), stamp->permissions);
    RBI_POINT(file_made);
    if (status == RINGBUF_OK) status = rbi_file_set_size(rb->file.fd, stamp->file_bytes);
    RBI_POINT(file_sized);
    if (status == RINGBUF_OK) status = rbi_file_reserve(rb->file.fd, 0, RBI_HEADER_BYTES);
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
    status = rbi_lock_try(rb->file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED);
    RBI_POINT(creator_present);
    if (status == RINGBUF_OK) status = rbi_registry_join(&rb->registry, rb->label);
    RBI_POINT(creator_attached);
    if (status == RINGBUF_OK) status = prefault(rb);
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
    if (status == RINGBUF_OK) status = remove_name(rb->file.fd, path);
    if (status == RINGBUF_OK) rbi_ready_collect(directory_of(options)); /* what its users left, if they were killed */
    handle_discard(rb);
    return status == RINGBUF_E_NOT_FOUND ? RINGBUF_OK : status;
}

/** It has its own name: the private one goes.  A death before leaves both, and the private one goes when nobody is present. */
static void forget_private_name(ringbuf *rb)
{
    if (!rb->private_path) return;
    rbi_path_unlink(rb->private_path);
    RBI_POINT(private_removed);
    free(rb->private_path);
    rb->private_path = NULL;
}

static ringbuf_status create_at(ringbuf **out, const char *name, const char *path, const struct rbi_stamp *stamp,
                                const ringbuf_options *options)
{
    bool private = false, made_room = false;
    uint32_t taken_away = 0; /* so often another process has removed our file before we were present at it */
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
        status = make(&rb, stamp, path, options, private);
        if (status == RINGBUF_OK) {
            status = rbi_file_link(rb->file.fd, rb->private_path, path);
            RBI_POINT(linked);
            if (status == RINGBUF_OK) {
                forget_private_name(rb);
                hand_out(out, rb);
                return RINGBUF_OK;
            }
            handle_discard(rb);
            if (status == RINGBUF_E_EXISTS) continue; /* another process was quicker: look what it has made */
        }
        if (!private && (status == RINGBUF_E_NO_DIRECTORY || status == RINGBUF_E_NOT_FOUND)) {
            private = true;
        } else if (status == RINGBUF_E_NO_SPACE && !made_room) {
            made_room = true;
            if (!collect_all_for_room(options)) return status;
        } else if (!private || (status != RINGBUF_E_BUSY && status != RINGBUF_E_NOT_FOUND) || ++taken_away == 100) {
            return status == RINGBUF_E_NOT_FOUND ? RINGBUF_E_NO_DIRECTORY : status;
        } else if (status == RINGBUF_E_NOT_FOUND) {
            struct rbi_file_facts facts;
            if (rbi_path_facts(directory_of(options), &facts) != RINGBUF_OK) return RINGBUF_E_NO_DIRECTORY;
        }
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
    if (status == RINGBUF_OK && options->dead_letter && strcmp(options->dead_letter, name) == 0) status = RINGBUF_E_INVALID;
    if (status != RINGBUF_OK) return status;
    set_name(&stamp, name);
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    try_remembered(false);
    regain_others(path);
    /* Programs that make unnamed queues in every life, and are killed each time, must not fill the memory. */
    if (stamp.flags & RINGBUF_UNNAMED) collect_leftovers_beside(path, &next_look.unnamed_ns);
    status = create_at(out, name, path, &stamp, options);
    free(path);
    return status;
}

/* ---- leave and remove ---- */

/** Leave for good and unmap.  With `closing` held; the handle is closed, no call under way, and nothing pinned. */
static void finish_closing(ringbuf *rb)
{
    if (!rb->base) return;
    leave(rb);
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
    is_ours_at_the_end(rb);
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
            else if (rb->file.fd >= 0) give_back(rb);
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
    if (pinned && rb->base && rbi_file_is_ours(&rb->file) && rbi_load_total32(&rb->pins) & RBI_PIN_CLOSED) {
        remove_if_last(rb, true);
        rbi_lock_drop(rb->file.fd, RBI_LOCK_PRESENCE); /* the file stays open */
    }
    pthread_mutex_unlock(&rb->closing);
}

void rbi_handle_unpin(ringbuf *rb)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->pins);
        if (seen < RBI_PIN) return; /* there is none */
        if (seen < 2 * RBI_PIN && seen & RBI_PIN_CLOSED) break; /* ours is the last: only close_all() could still pin it */
        if (rbi_cas_total32(&rb->pins, seen, seen - RBI_PIN)) return;
    }
    pthread_mutex_lock(&rb->closing);
    finish_closing(rb);
    pthread_mutex_unlock(&rb->closing);
    uint32_t before = rbi_add_total32(&rb->pins, (uint32_t)-RBI_PIN);
    if (before < 2 * RBI_PIN && before & RBI_PIN_FREED) handle_free(rb);
}

void rbi_segment_close(ringbuf *rb)
{
    close_within(rb, RINGBUF_FOREVER);
    try_remembered(false);
}

void rbi_segment_free(ringbuf *rb)
{
    if (!rb) return;
    rbi_segment_close(rb);
    if (flag_pins(rb, RBI_PIN_FREED) < RBI_PIN) handle_free(rb);
}

ringbuf_status rbi_segment_unlink(ringbuf *rb)
{
    ringbuf_status status = rbi_segment_own_file(rb);
    return status == RINGBUF_OK || rbi_file_is_ours(&rb->file) ? remove_name_patiently(rb->file.fd, rb->path) : status;
}

ringbuf_status rbi_segment_unlink_name(const char *name, const ringbuf_options *options)
{
    ringbuf_status status = check_name(name);
    if (status != RINGBUF_OK) return status;
    char *path = path_of(name, options);
    if (!path) return RINGBUF_E_NO_MEMORY;
    struct rbi_file file = RBI_NO_FILE;
    status = rbi_file_open(&file, path);
    if (status == RINGBUF_OK) {
        struct rbi_file_facts facts;
        status = rbi_file_facts(file.fd, &facts);
        if (status == RINGBUF_OK) status = check_file(&facts, options);
        if (status == RINGBUF_OK) status = remove_name_patiently(file.fd, path);
        if (status == RINGBUF_OK) rbi_ready_collect(directory_of(options));
        rbi_file_close(&file);
    }
    free(path);
    return status;
}

/* ---- pages ---- */

/** The next handle after `rb` (NULL: the first) in which a call of ours may begin, as one has; then the call in `rb` ends.
 *  No call waits here, and close waits for calls without the mutex; so the handle stays on the list until its call ends. */
static ringbuf *next_open_handle(ringbuf *rb)
{
    rbi_files_hold();
    ringbuf *next = rb ? rb->next : handles;
    while (next && rbi_own_add_total32(&next->calls, RBI_HANDLE_CALL) & RBI_HANDLE_BARRED) {
        rbi_handle_leave(next, RINGBUF_OK);
        next = next->next;
    }
    rbi_files_let_go();
    if (rb) rbi_handle_leave(rb, RINGBUF_OK);
    return next;
}

/** Give the idle memory of all other queues that this process has open, and that have these flags, back to the system.  The process may
 *  have consumed from one of them what it now puts into another.  What it wants to be there at any time stays. */
static void trim_others(const ringbuf *ours, uint32_t flags)
{
    for (ringbuf *rb = next_open_handle(NULL); rb; rb = next_open_handle(rb))
        if ((rb->stamp.flags & RINGBUF_KEEP_WARM) == flags && !(rb->memory & RINGBUF_PREFAULT) &&
            memcmp(rb->stamp.id, ours->stamp.id, RBI_ID_BYTES) != 0)
            rbi_segment_trim(rb, 0, UINT64_MAX);
}

/** Reserve memory of the file, with what trim_others() gives back if need be. */
static ringbuf_status reserve_from_others(ringbuf *rb, uint64_t offset, uint64_t bytes)
{
    ringbuf_status status = rbi_file_reserve(rb->file.fd, offset, bytes);
    for (uint32_t warm = 0; warm <= RINGBUF_KEEP_WARM && status == RINGBUF_E_NO_SPACE; warm += RINGBUF_KEEP_WARM) {
        trim_others(rb, warm);
        status = rbi_file_reserve(rb->file.fd, offset, bytes);
    }
    return status;
}

/** Reserve memory of the file; if there is none and it is `needed`, what the free blocks of arenas have may do. */
static ringbuf_status reserve(ringbuf *rb, uint64_t offset, uint64_t bytes, bool needed)
{
    ringbuf_status status = rbi_segment_own_file(rb);
    if (status == RINGBUF_OK) status = rbi_file_reserve(rb->file.fd, offset, bytes);
    if (status != RINGBUF_E_NO_SPACE || !needed) return status;
    rbi_segment_trim(rb, 0, UINT64_MAX);
    status = reserve_from_others(rb, offset, bytes);
    if (status == RINGBUF_E_NO_SPACE && rbi_segment_collect_for_room(rb)) status = rbi_file_reserve(rb->file.fd, offset, bytes);
    return status;
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

/** What is known of the file, if the descriptor still is open on it. */
static bool look(const ringbuf *rb, struct rbi_file_facts *facts)
{
    const rbi_fd fd = rb->file.fd;
    return fd >= 0 && rbi_file_facts(fd, facts) == RINGBUF_OK && facts->device == rb->file.device && facts->inode == rb->file.inode;
}

uint64_t rbi_segment_unlinked(ringbuf *rb)
{
    struct rbi_file_facts facts;
    return look(rb, &facts) ? note_links(rb, facts.links) : (uint64_t)RINGBUF_LINKED;
}

/** Whether the file was truncated and whether it was deleted, as far as can be seen without touching what may be missing: for one who
 *  sleeps, and may never touch it.  False: the descriptor is not open on it any more. */
static bool look_at_file(ringbuf *rb)
{
    struct rbi_file_facts facts;
    if (rbi_handle_is_lost(rb)) return true;
    if (!look(rb, &facts)) return false;
    if (facts.bytes < rb->stamp.file_bytes) rbi_guard_lose(&rb->calls, RBI_HANDLE_LOST);
    else if (!rbi_load_total32(&rb->deletion)) note_links(rb, facts.links); /* once seen, it stays so */
    return true;
}

/** The same before locks are asked about: on a descriptor that leads elsewhere, every participant would seem to be dead. */
static ringbuf_status look_at_own_file(ringbuf *rb)
{
    ringbuf_status status = look_at_file(rb) ? RINGBUF_OK : rbi_segment_own_file(rb);
    return rbi_handle_is_lost(rb) ? RINGBUF_E_CORRUPT : status;
}

/* ---- recovery ---- */

ringbuf_status rbi_segment_recover(ringbuf *rb, uint64_t *recovered)
{
    *recovered = 0;
    ringbuf_status status = look_at_own_file(rb);
    if (status != RINGBUF_OK) return status;
    if (pthread_mutex_trylock(&rb->recovery) != 0) return RINGBUF_OK;
    status = rbi_registry_recover(&rb->registry, recovered);
    pthread_mutex_unlock(&rb->recovery);
    if (*recovered) rbi_ready_recover(rb);
    return status;
}

bool rbi_segment_watch(ringbuf *rb, int64_t now_ns)
{
    uint64_t recovered = 0;
    if (look_at_own_file(rb) != RINGBUF_OK) {
        rbi_registry_rest(&rb->registry, now_ns);
        return false;
    }
    if (pthread_mutex_trylock(&rb->recovery) != 0) { /* another thread looks, or joins; if it dies in there, so do we */
        rbi_registry_rest(&rb->registry, now_ns);
        return false;
    }
    rbi_registry_watch(&rb->registry, now_ns, &recovered);
    pthread_mutex_unlock(&rb->recovery);
    if (recovered) rbi_ready_recover(rb);
    return recovered > 0;
}

bool rbi_segment_recover_by_the_way(ringbuf *rb, int64_t now_ns)
{
    uint64_t recovered = 0;
    if (look_at_own_file(rb) != RINGBUF_OK || pthread_mutex_trylock(&rb->recovery) != 0) return false;
    rbi_registry_recover_if_due(&rb->registry, now_ns, RBI_POLLING, &recovered);
    pthread_mutex_unlock(&rb->recovery);
    if (recovered) rbi_ready_recover(rb);
    return recovered > 0;
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

void rbi_segment_free_with_pages(ringbuf *rb, const struct rbi_run *run)
{
    uint32_t log2 = rb->stamp.block_log2;
    ringbuf_status status = rbi_segment_own_file(rb);
    if (status == RINGBUF_OK) status = rbi_file_punch(rb->file.fd, rb->stamp.arena_offset + (run->first << log2), run->blocks << log2);
    RBI_POINT(blocks_given_back);
    if (status == RINGBUF_OK) rbi_arena_free_without_pages(&rb->arena, run, rb->registry.self);
    else rbi_arena_free(&rb->arena, run, rb->registry.self, (uint64_t)rbi_monotonic_ns() / 1000000000); /* a file system without holes */
}

void rbi_segment_trim(ringbuf *rb, uint64_t idle_s, uint64_t pieces)
{
    /* Long runs are used from the bottom upwards, so from the top downwards; but the topmost blocks last, which short runs use first. */
    const uint64_t blocks = rb->stamp.blocks, short_bytes = UINT64_C(1) << 20;
    const uint64_t for_short = short_bytes >> rb->stamp.block_log2 < blocks / 16 ? short_bytes >> rb->stamp.block_log2 : blocks / 16;
    bool wake = false, upper = false;
    struct rbi_run run;
    for (uint64_t from = blocks - for_short; pieces && rbi_arena_is_used(&rb->arena);) {
        bool gave_back;
        uint64_t now_s = (uint64_t)rbi_monotonic_ns() / 1000000000;
        bool ended = rbi_arena_take_idle(&rb->arena, &run, rb->registry.self, now_s, idle_s, &from, &gave_back) != RBI_ARENA_OK;
        wake |= gave_back || !ended;
        if (!ended) {
            rbi_segment_free_with_pages(rb, &run);
            pieces--;
        } else if (upper) {
            break;
        } else {
            upper = true;
            from = blocks;
        }
    }
    if (wake) rbi_wake_for_room(rb); /* somebody may have found them taken */
}

/** Give every free block of the arena memory. */
static ringbuf_status back_all(ringbuf *rb)
{
    uint32_t log2 = rb->stamp.block_log2;
    uint64_t from = rb->stamp.blocks;
    bool gave_back, wake = false;
    struct rbi_run run;
    ringbuf_status status = RINGBUF_OK;
    while (status == RINGBUF_OK && rbi_arena_take_bare(&rb->arena, &run, rb->registry.self, &from, &gave_back) == RBI_ARENA_OK) {
        wake = true;
        /* Not at the cost of our own free blocks, which are just getting theirs. */
        status = reserve_from_others(rb, rb->stamp.arena_offset + (run.first << log2), run.blocks << log2);
        RBI_POINT(blocks_reserved);
        if (status == RINGBUF_OK) {
            rbi_arena_set_backed(&rb->arena, &run, rb->registry.self);
            rbi_arena_free(&rb->arena, &run, rb->registry.self, (uint64_t)rbi_monotonic_ns() / 1000000000);
        } else {
            rbi_segment_free_with_pages(rb, &run);
        }
    }
    if (wake || gave_back) rbi_wake_for_room(rb); /* somebody may have found them taken */
    return status;
}

/** If the options wish so, give the queue all its memory, and touch it.  Of the lanes, the one that is in use. */
static ringbuf_status prefault(ringbuf *rb)
{
    if (!(rb->memory & RINGBUF_PREFAULT)) return RINGBUF_OK;
    const struct rbi_stamp *stamp = &rb->stamp;
    const uint32_t lane = (uint32_t)(rbi_load_total64(&rb->header->order.put_epoch) % RBI_LANES);
    uint8_t *base = rb->base;
    ringbuf_status status = reserve(rb, 0, stamp->slots_offset, true);
    if (status == RINGBUF_OK) status = rbi_segment_reserve(rb, lane, UINT64_C(1) << stamp->cells_log2);
    if (status == RINGBUF_OK && stamp->blocks) status = rbi_segment_reserve_parts(rb, UINT64_MAX);
    if (status == RINGBUF_OK && stamp->blocks) status = back_all(rb);
    if (status != RINGBUF_OK) return status;
    rbi_map_touch(base, stamp->slots_offset);
    rbi_map_touch(base + stamp->slots_offset + lane * slots_bytes_of(stamp), slots_bytes_of(stamp));
    rbi_map_touch(base + rb->prefix_bytes + 2 * lane * rb->mirror_bytes, 2 * rb->mirror_bytes);
    if (stamp->blocks) rbi_map_touch(base + stamp->table_offset, stamp->data_offset - stamp->table_offset);
    return RINGBUF_OK;
}

/** Whether the participant with this number lives (or is ours). */
static bool lives(uint32_t number, void *context)
{
    ringbuf *rb = context;
    if (number == rb->registry.self) return true;
    if (number == 0 || number > rbi_registry_high(&rb->registry)) return false;
    return !rbi_file_is_ours(&rb->file) || rbi_lock_is_held(rb->file.fd, RBI_LOCK_OWNER + number);
}

void rbi_segment_check(ringbuf *rb, struct rbi_arena_findings *findings)
{
    pthread_mutex_lock(&rb->recovery);
    rbi_arena_check(&rb->arena, &rb->ring, findings, lives, rb);
    pthread_mutex_unlock(&rb->recovery);
}
