/* observe.c — floor 4: looking at a queue's file from outside, for those who list queues and must not disturb them.
 *
 * To attach is to take part: an abandoned queue that is attached to is found empty and removed, a crowded one cannot be attached
 * to, and another user's may not.  So a look from outside attaches to nothing.  It opens the file for reading, through the one
 * door (files.c), asks the kernel who holds which lock (rbi_lock_look(), which takes none), and reads.
 *
 * It reads with pread() into memory of its own, and does not map the file.  Whoever can write to the file can truncate it at any
 * moment; a mapping would raise SIGBUS then, and a read ends early.  And nobody can change the copy while it is looked at: what
 * was checked stays so.
 *
 * The copy has the file's layout, from the header up to the arena, but of each region only what is in use.  The views of ring.c,
 * arena.c and registry.c are laid over it as over a mapped file, and ringbuf_get_info() and ringbuf_get_stats() answer from
 * there, through a handle that nobody else has.  So there is one way to count, in one place, and it is the one that the fuzzer
 * and the explorer know.  Counting may move cursors on (rbi_ring_used_bytes() reclaims); here it moves those of the copy.
 *
 * Others go on meanwhile, so the order of the reads matters: cursors, then slots, then `reclaim` again.  A record that lies
 * between the second `reclaim` and the first `tail` was claimed before the slots were read and not yet written over afterwards,
 * so its word is one of its lap.  A kind may be older or newer than its neighbour's: the figures are approximate while others
 * move.  If the ring still looks damaged, it is looked at again: damage stays, and what others have moved has moved. */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

enum { LOOKS = 8 }; /* until a ring that looks different each time is taken for a busy one */

/* ---- the stamp ---- */

static bool is_legible(const struct rbi_stamp *stamp) { return rbi_segment_check_stamp(stamp, stamp->file_bytes) == RINGBUF_OK; }

static enum ringbuf_condition condition_of(const struct rbi_stamp *stamp, size_t got, uint64_t file_bytes)
{
    if (got < offsetof(struct rbi_stamp, header_bytes)) return RINGBUF_NO_QUEUE; /* too short for magic and version */
    if (stamp->magic != RBI_MAGIC && stamp->magic != __builtin_bswap64(RBI_MAGIC)) return RINGBUF_NO_QUEUE;
    ringbuf_status status = rbi_segment_check_stamp(stamp, file_bytes);
    if (status == RINGBUF_E_VERSION) return RINGBUF_OTHER_LAYOUT;
    return status == RINGBUF_OK ? RINGBUF_SOUND : RINGBUF_DAMAGED;
}

/** What has the same place in every layout.  Of a damaged stamp only if its checksum is right. */
static void read_frozen(ringbuf_observation *observation, const struct rbi_stamp *stamp)
{
    struct rbi_frozen frozen;
    const bool is_frozen = rbi_segment_frozen(&frozen, stamp);
    observation->other_byte_order = frozen.swapped;
    observation->layout_version = frozen.layout_version;
    if (!is_frozen || (observation->condition == RINGBUF_DAMAGED && !is_legible(stamp))) return;
    observation->flags = frozen.flags;
    memcpy(observation->id, stamp->id, sizeof observation->id);
    const uint64_t bytes = frozen.swapped ? __builtin_bswap64(stamp->name_bytes) : stamp->name_bytes;
    if (bytes == 0 || bytes > RBI_NAME_MAX_BYTES) return;
    observation->name_bytes = (uint32_t)strnlen((const char *)stamp->name, (size_t)bytes);
    memcpy(observation->name, stamp->name, observation->name_bytes); /* and zeros behind it */
}

/* ---- the copy ---- */

/** Read this part of the file to its place in the copy.  What the file has no more stays zero. */
static ringbuf_status copy(const ringbuf *rb, uint64_t offset, uint64_t bytes)
{
    size_t got;
    return rbi_file_read_at(rb->file.fd, &got, (uint8_t *)rb->base + offset, (size_t)bytes, offset);
}

static ringbuf_status copy_slots(ringbuf *rb, uint32_t lane)
{
    const uint64_t cells = rbi_ring_cells(&rb->ring), slot = sizeof(struct rbi_slot);
    const uint64_t offset = (uint64_t)((uint8_t *)rb->ring.lanes[lane].slots - (uint8_t *)rb->base);
    uint64_t first, count;
    if (!rbi_ring_span(&rb->ring, lane, &first, &count)) return RINGBUF_OK; /* counting says what is wrong */
    const uint64_t to_end = cells - first < count ? cells - first : count;
    ringbuf_status status = copy(rb, offset + first * slot, to_end * slot);
    if (status == RINGBUF_OK && count > to_end) status = copy(rb, offset, (count - to_end) * slot);
    if (status != RINGBUF_OK) return status;
    const struct rbi_cursors *cursors = rb->ring.lanes[lane].cursors;
    return copy(rb, (uint64_t)((const uint8_t *)&cursors->reclaim - (uint8_t *)rb->base), sizeof cursors->reclaim);
}

static ringbuf_status copy_table(ringbuf *rb)
{
    const uint64_t words = rb->stamp.blocks / RBI_TABLE_PARTS * sizeof(rbi_atomic64);
    const uint64_t parts = rbi_arena_parts(&rb->arena);
    ringbuf_status status = RINGBUF_OK;
    for (uint32_t part = 0; part < RBI_TABLE_PARTS && status == RINGBUF_OK; part++)
        if (parts >> part & 1) status = copy(rb, rb->stamp.table_offset + part * words, words);
    return status;
}

/** Bring the copy up to date. */
static ringbuf_status copy_all(ringbuf *rb)
{
    const struct rbi_stamp stamp = rb->stamp;
    ringbuf_status status = copy(rb, 0, RBI_HEADER_BYTES);
    if (status != RINGBUF_OK) return status;
    if (memcmp(rb->base, &stamp, sizeof stamp) != 0) return RINGBUF_E_CORRUPT; /* a stamp never changes */
    for (uint32_t lane = 0; lane < RBI_LANES && status == RINGBUF_OK; lane++) status = copy_slots(rb, lane);
    const uint64_t participants = rbi_registry_high(&rb->registry) * sizeof(struct rbi_participant);
    if (status == RINGBUF_OK) status = copy(rb, RBI_HEADER_BYTES, participants);
    return status == RINGBUF_OK ? copy_table(rb) : status;
}

/* ---- counting ---- */

/** The copy's cursors, to be compared with those of the file. */
struct positions {
    struct rbi_order order;
    struct rbi_cursors lanes[RBI_LANES];
};

static ringbuf_status read_positions(const ringbuf *rb, struct positions *positions)
{
    size_t got;
    memset(positions, 0, sizeof *positions);
    const rbi_fd fd = rb->file.fd;
    ringbuf_status status = rbi_file_read_at(fd, &got, &positions->order, sizeof positions->order, offsetof(struct rbi_header, order));
    if (status != RINGBUF_OK) return status;
    return rbi_file_read_at(fd, &got, positions->lanes, sizeof positions->lanes, offsetof(struct rbi_header, lanes));
}

/** Fill *stats from the copy, which is made anew until it can be believed.  CORRUPT: what is there is damaged. */
static ringbuf_status count(ringbuf *rb, ringbuf_stats *stats)
{
    ringbuf_status status = RINGBUF_E_CORRUPT;
    for (uint32_t look = 0; look < LOOKS; look++) {
        struct positions before, after;
        status = read_positions(rb, &before);
        if (status == RINGBUF_OK) status = copy_all(rb);
        if (status == RINGBUF_OK) status = ringbuf_get_stats(rb, stats);
        if (status != RINGBUF_E_CORRUPT) return status;
        status = read_positions(rb, &after);
        if (status != RINGBUF_OK) return status;
        if (memcmp(&before, &after, sizeof before) == 0) return RINGBUF_E_CORRUPT; /* nobody was in the way */
    }
    stats->items = rbi_ring_count_roughly(&rb->ring); /* a busy ring */
    return RINGBUF_OK;
}

static int by_number(const void *left, const void *right)
{
    const uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/** Of the entries in use, whose lock is held and whose is not. */
static ringbuf_status look_at_participants(ringbuf *rb, ringbuf_observation *observation)
{
    const uint32_t high = rbi_registry_high(&rb->registry);
    uint32_t *pids = calloc(high + 1, sizeof *pids);
    if (!pids) return RINGBUF_E_NO_MEMORY;
    for (uint32_t i = 0; i < high; i++) {
        const struct rbi_participant *entry = &rb->registry.entries[i];
        if (rbi_load_total32(&entry->state) == 0) continue;
        if (rbi_lock_look(rb->file.fd, RBI_LOCK_OWNER + i + 1) == RINGBUF_NOBODY) observation->dead++;
        else pids[observation->handles++] = entry->pid;
    }
    qsort(pids, observation->handles, sizeof *pids, by_number);
    for (uint32_t i = 0; i < observation->handles; i++) observation->processes += i == 0 || pids[i] != pids[i - 1];
    free(pids);
    return RINGBUF_OK;
}

/** What has become of the file's name.  What removes it writes the word before, so the word is read after the file has lost its
 *  name: the copy may have been made before both. */
static ringbuf_status look_for_the_name(ringbuf *rb, ringbuf_observation *observation, ringbuf_stats *stats)
{
    ringbuf_status status = RINGBUF_OK;
    if (rbi_segment_unlinked(rb) != RINGBUF_LINKED)
        status = copy(rb, offsetof(struct rbi_header, removed), sizeof rb->header->removed);
    stats->unlinked = rbi_segment_unlinked(rb);
    observation->unlinked = (uint32_t)stats->unlinked;
    return status;
}

/** Look into a queue whose stamp is right. */
static ringbuf_status look_inside(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats,
                                  const struct rbi_file *file, const struct rbi_stamp *stamp, bool is_whole)
{
    ringbuf_stats unwanted;
    ringbuf *rb = calloc(1, sizeof *rb);
    /* Zero, and without memory behind it but where something is read to. */
    void *memory = calloc(1, is_whole ? (size_t)stamp->arena_offset : RBI_HEADER_BYTES);
    ringbuf_status status = rb && memory ? RINGBUF_OK : RINGBUF_E_NO_MEMORY;
    if (status == RINGBUF_OK) {
        pthread_mutex_init(&rb->recovery, NULL);
        pthread_mutex_init(&rb->closing, NULL);
        rb->file.fd = file->fd; /* to ask by; not on the list of files.c, which closes nothing here */
        rb->file.device = file->device;
        rb->file.inode = file->inode;
        rb->base = memory;
        rb->stamp = *stamp;
        rbi_segment_lay_out(rb, memory);
        if (info) {
            ringbuf_get_info(rb, info);
            info->truncated = observation->file_bytes < stamp->file_bytes;
        }
        if (is_whole) {
            status = count(rb, stats ? stats : &unwanted);
            if (status == RINGBUF_OK) status = look_at_participants(rb, observation);
            if (status == RINGBUF_OK) status = look_for_the_name(rb, observation, stats ? stats : &unwanted);
        }
        pthread_mutex_destroy(&rb->recovery);
        pthread_mutex_destroy(&rb->closing);
    }
    free(memory);
    free(rb);
    return status;
}

static ringbuf_status observe(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats,
                              const struct rbi_file *file)
{
    size_t got;
    struct rbi_stamp stamp = {0};
    ringbuf_status status = rbi_file_read_at(file->fd, &got, &stamp, sizeof stamp, 0);
    if (status != RINGBUF_OK) return status;
    observation->condition = condition_of(&stamp, got, observation->file_bytes);
    if (observation->condition == RINGBUF_NO_QUEUE) return RINGBUF_OK;
    observation->presence = rbi_lock_look(file->fd, RBI_LOCK_PRESENCE);
    read_frozen(observation, &stamp);
    const bool is_whole = observation->condition == RINGBUF_SOUND;
    if (!is_whole && (observation->condition != RINGBUF_DAMAGED || !is_legible(&stamp))) return RINGBUF_OK;
    status = look_inside(observation, info, stats, file, &stamp, is_whole);
    if (status == RINGBUF_E_CORRUPT) {
        observation->condition = RINGBUF_DAMAGED;
        if (stats) memset(stats, 0, sizeof *stats);
        status = RINGBUF_OK;
    }
    return status;
}

/* ---- the calls ---- */

/** Whether the caller's structs can be filled; all zero then. */
static bool begin(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats)
{
    if (!observation || observation->struct_bytes != sizeof *observation) return false;
    memset(observation, 0, sizeof *observation);
    observation->struct_bytes = sizeof *observation;
    if (info) memset(info, 0, sizeof *info);
    if (stats) memset(stats, 0, sizeof *stats);
    return true;
}

static void note_facts(ringbuf_observation *observation, const struct rbi_file_facts *facts)
{
    observation->condition = facts->regular ? RINGBUF_UNREADABLE : RINGBUF_NO_FILE; /* until more is known */
    observation->file_type = facts->type;
    observation->file_bytes = facts->bytes;
    observation->memory_bytes = facts->memory_bytes;
    observation->user = facts->user;
    observation->mode = facts->mode;
}

/** Look at an open file. */
static ringbuf_status observe_open(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, rbi_fd fd)
{
    struct rbi_file_facts facts;
    ringbuf_status status = rbi_file_facts(fd, &facts);
    if (status != RINGBUF_OK) return status;
    note_facts(observation, &facts);
    const struct rbi_file file = {.fd = fd, .device = facts.device, .inode = facts.inode};
    return facts.regular ? observe(observation, info, stats, &file) : RINGBUF_OK;
}

/** Open it and look at it, if it is a plain file that may be read. */
static ringbuf_status observe_path(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, const char *path)
{
    struct rbi_file_facts facts;
    struct rbi_file file = RBI_NO_FILE;
    ringbuf_status status = rbi_path_facts(path, &facts);
    if (status != RINGBUF_OK) return status;
    note_facts(observation, &facts);
    if (!facts.regular) return RINGBUF_OK;
    status = rbi_file_open_to_read(&file, path);
    if (status == RINGBUF_E_ACCESS) return RINGBUF_OK;
    if (status == RINGBUF_E_CORRUPT) return RINGBUF_E_NOT_FOUND; /* it was replaced by something else at this moment */
    if (status != RINGBUF_OK) return status;
    status = observe_open(observation, info, stats, file.fd);
    rbi_file_close(&file);
    return status;
}

/** A look that has succeeded leaves alone what is known of the last refusal: it may be made in order to explain that. */
static ringbuf_status keeping(struct rbi_refusal before, ringbuf_status status)
{
    if (status == RINGBUF_OK) *rbi_last_refusal() = before;
    return status;
}

ringbuf_status ringbuf_observe_fd(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, int fd)
{
    const struct rbi_refusal before = *rbi_last_refusal();
    if (fd < 0 || !begin(observation, info, stats)) return RINGBUF_E_INVALID;
    return keeping(before, observe_open(observation, info, stats, fd));
}

ringbuf_status ringbuf_observe_file(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, const char *path)
{
    if (!path || !begin(observation, info, stats)) return RINGBUF_E_INVALID;
    const struct rbi_refusal before = *rbi_last_refusal();
    ringbuf_status status = keeping(before, observe_path(observation, info, stats, path));
    if (status != RINGBUF_OK) return status;
    const char *slash = strrchr(path, '/'), *file_name = slash ? slash + 1 : path;
    strncpy(observation->file_name, file_name, sizeof observation->file_name - 1); /* no file system has longer ones */
    if (observation->name_bytes) observation->misplaced = !rbi_segment_is_file_of(file_name, observation->name);
    return RINGBUF_OK;
}

ringbuf_status ringbuf_observe(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, const char *name,
                               const ringbuf_options *options)
{
    ringbuf_options defaults;
    ringbuf_options_init(&defaults);
    if (!options) options = &defaults;
    if (!name || options->struct_bytes != sizeof *options) return RINGBUF_E_INVALID;
    char *path = rbi_segment_path(name, options);
    if (!path) return *name && strlen(name) <= RBI_NAME_MAX_BYTES ? RINGBUF_E_NO_MEMORY : RINGBUF_E_INVALID;
    ringbuf_status status = ringbuf_observe_file(observation, info, stats, path);
    free(path);
    return status;
}
