/* ring.c — floor 1: many producers, many consumers, any of whom may stop or die at any instruction.
 *
 * The idea.  The ring is an array of cells, and beside each cell a slot.  A message occupies one or more neighbouring cells; the slot
 * of its first cell holds one 64-bit word, and that word is the only truth about it: which lap it belongs to, how many cells it
 * has, in what state it is, and whose turn it is.  Ownership and fact change in one compare-and-swap, so there is no instruction at
 * which a record has been reserved or taken but nobody knows by whom; a death leaves a word with the dead one's number in it.
 * The cursors tail, head and reclaim are hints: they lag behind the words by at most one step, and whoever meets a lagging one
 * moves it on.  reclaim <= head <= tail, always.
 *
 * A record's life (lap tags omitted):
 *
 *      any word of an older lap
 *         | claim CAS by a producer at tail
 *         v
 *      CLAIMED(me) --publish CAS--> READY --take CAS at head--> TAKEN(me) --release--> RELEASED --> (older lap)
 *         |                                                      |   ^
 *         | skip CAS by a consumer                    give back, |   | retake CAS
 *         v                                           recovery   v   |
 *      SKIPPED(me) --publish CAS-------------------------> RETURNED --
 *
 *      CLAIMED(me) or SKIPPED(me) --void CAS: its owner gave up, or died--> RELEASED
 *
 * Put.  Read tail; if the word there already bears this lap, somebody claimed and has not moved tail yet: move it for him and go on.
 * Check that the cells up to there have been reclaimed; CAS the word from whatever it was to CLAIMED(lap, me, cells).  Move tail.
 * Fill the payload.  CAS to READY.  A word of another lap can be anything old, for the cells in the middle of a long record are not
 * touched; only equality with this lap means something.
 *   Why tail is read twice: between "tail is t" and "the word at t is c", others may have gone a whole lap, and c would be of a later
 *   lap, fit for destruction by our CAS.  If tail is still t after c was read, c was read while nothing beyond t was claimed.
 *
 * Get.  Read head; READY -> CAS to TAKEN(me); move head; read the payload; RELEASED.  Anything else of this lap at head, except
 * CLAIMED, is behind us already: move head.
 *
 * Skipping.  A producer that is slow, or stopped, between claim and publish must not hold up the messages behind it.  A consumer that
 * finds CLAIMED at head looks whether a READY one follows.  If so, it waits a moment (patience), then marks the claim SKIPPED and
 * goes on.  The producer finds its publish CAS refused, and publishes as RETURNED: a message that head has gone past.  Consumers look
 * for those before they take at head.  If none follows, the queue is empty as far as returned puts go.
 *   FIFO is kept: a put that has not returned may be ordered after those that overlap it.  See "returned" for those that begin later.
 *
 * returned: { version | some }.  Whoever makes a word RETURNED (or meets one while recovering) then sets `some` under a new version;
 * who scans and finds none clears it by a CAS that a newer version defeats.  A consumer reads it *after* it has seen READY at head
 * and before it takes: if the put of that message began after a RETURNED one's put had returned, the hint was set before the READY
 * became visible, so the consumer sees it and serves the older one first.  A scan that is about to take a RETURNED record checks
 * the version again for the same reason.  "Empty" is concluded only with the version unchanged around the look at head.
 *   This makes the ring linearizable as a FIFO, with one exception that cannot be avoided: a message whose taker died or gave it back
 *   is delivered after younger ones that were taken in the meantime.
 *
 * reclaim.  Walks over RELEASED records of their lap and moves on with one CAS for the whole walk.  A producer claims only cells that
 * reclaim has passed; a consumer's reads therefore lie before the next writes ([E2], [E3]).  It never passes head: head would be
 * left standing at a word of the next lap, which it could not interpret.
 *
 * irregular.  tail.items - head.items counts records between head and tail.  That is the number of messages unless one was voided
 * before head reached it, skipped, or returned.  Whoever is about to do one of these first raises `irregular` beyond the record; while
 * reclaim has not passed that point, counting walks the records instead.
 *
 * Orders.  Slot words, head, tail and `returned` are read and written in one total order ([T1] … [T3]): the sleepers' protocol
 * (wait.c) needs "publish, then look for sleepers" against "announce, then look for messages" and the same for room and shutdown.  On
 * x86-64 this costs nothing on the put side (the CAS is a full barrier anyway) and one xchg on release.
 *
 * Progress: claim, publish, take, release, give_back and recover are lock-free, none waits for another participant.  What a process
 * stopped in the middle of a put or get does cost: its own record stays where it is, so reclaim stops there, and after one more lap
 * (capacity bytes) the ring is full until it goes on or dies.  docs/guarantees.md says so.
 *
 * What was tried instead.  Two words a slot (claim and state) and positions in bytes, as first designed: a second array of positions
 * to keep in step, a free slot needed between laps, and a FREE word to be written for the lap to come.  Unifying slot and cell made
 * `void` the same as `release`, needs no initialization and halves the words that a recovery has to understand. */
#include "ring.h"

/* ---- words and cursors, taken apart and put together ---- */

enum { KIND_BITS = 4, OWNER_BITS = 12, CELLS_SHIFT = KIND_BITS + OWNER_BITS };

static inline uint64_t cells_of_ring(const struct rbi_ring *ring) { return UINT64_C(1) << ring->cells_log2; }
static inline uint32_t position_bits(const struct rbi_ring *ring) { return 63 - ring->cells_log2; }
static inline uint64_t position_mask(const struct rbi_ring *ring) { return (UINT64_C(1) << position_bits(ring)) - 1; }
static inline uint64_t index_of(const struct rbi_ring *ring, uint64_t position) { return position & (cells_of_ring(ring) - 1); }

static inline uint64_t lap_of(const struct rbi_ring *ring, uint64_t position)
{
    return (position >> ring->cells_log2) & ((UINT64_C(1) << (48 - ring->cells_log2)) - 1);
}

static inline uint64_t word_of(const struct rbi_ring *ring, uint64_t position, uint64_t cells, uint32_t owner,
                               enum rbi_kind kind)
{
    return lap_of(ring, position) << (CELLS_SHIFT + ring->cells_log2) | cells << CELLS_SHIFT | (uint64_t)owner << KIND_BITS |
           (uint64_t)kind;
}

static inline enum rbi_kind word_kind(uint64_t word) { return (enum rbi_kind)(word & 15); }
static inline uint32_t word_owner(uint64_t word) { return (uint32_t)(word >> KIND_BITS) & RBI_OWNER_MAX; }

static inline uint64_t word_cells(const struct rbi_ring *ring, uint64_t word)
{
    return (word >> CELLS_SHIFT) & (cells_of_ring(ring) - 1);
}

/** The same record with another owner and kind. */
static inline uint64_t word_with(uint64_t word, uint32_t owner, enum rbi_kind kind)
{
    return (word & ~UINT64_C(0xffff)) | (uint64_t)owner << KIND_BITS | (uint64_t)kind;
}

/** A record starts at `position`, says this word.  (Of zero bytes no lap is true, also when laps have wrapped to 0.) */
static inline bool word_is_of(const struct rbi_ring *ring, uint64_t word, uint64_t position)
{
    return word >> (CELLS_SHIFT + ring->cells_log2) == lap_of(ring, position) && word_kind(word) != RBI_KIND_NONE;
}

static inline uint64_t position_of(const struct rbi_ring *ring, uint64_t cursor) { return cursor & position_mask(ring); }

static inline uint64_t advanced(const struct rbi_ring *ring, uint64_t position, uint64_t cells)
{
    return (position + cells) & position_mask(ring);
}

/** The cursor one record of `cells` further on. */
static inline uint64_t cursor_past(const struct rbi_ring *ring, uint64_t cursor, uint64_t cells)
{
    return ((cursor & ~position_mask(ring)) + (UINT64_C(1) << position_bits(ring))) |
           advanced(ring, position_of(ring, cursor), cells);
}

/** How far `position` lies beyond `base`; negative if before it. */
static inline int64_t distance(const struct rbi_ring *ring, uint64_t position, uint64_t base)
{
    uint32_t spare = 64 - position_bits(ring);
    return (int64_t)((position - base) << spare) >> spare;
}

static uint64_t items_between(const struct rbi_ring *ring, uint64_t head, uint64_t tail)
{
    uint64_t items = (tail >> position_bits(ring)) - (head >> position_bits(ring));
    items &= 2 * cells_of_ring(ring) - 1;
    return items <= cells_of_ring(ring) ? items : 0; /* head read later than tail may be ahead of it */
}

/** A word's record can be what it says: no hostile or overwritten length leads anywhere. */
static inline bool sane(const struct rbi_ring *ring, uint64_t word) { return word_cells(ring, word) != 0; }

static inline struct rbi_slot *slot_at(const struct rbi_ring *ring, uint64_t position)
{
    return &ring->slots[index_of(ring, position)];
}

static inline uint64_t load_word(const struct rbi_ring *ring, uint64_t position)
{
    return rbi_load_total64(&slot_at(ring, position)->word); /* [E1] [T1] [T2] */
}

/** Whether the first `cells` slots and cells have pages behind them.  Touching one that has none could allocate it, or raise SIGBUS
 *  when the file system is full.  The count only grows, so an old view of it errs on the safe side. */
static inline bool has_pages_up_to(struct rbi_ring *ring, uint64_t cells)
{
    /* relaxed: a lower bound that only saves the next load; pages, once there, need no edge */
    if (cells <= rbi_load_relaxed64(&ring->reserved_seen)) return true;
    /* [E4 pages] pairs with rbi_ring_raise_reserved(): the pages were there before the count said so. */
    uint64_t reserved = rbi_load_acquire64(&ring->cursors->reserved_cells);
    if (reserved > cells_of_ring(ring)) reserved = 0; /* nonsense in shared memory; rbi_ring_raise_reserved reports it */
    rbi_store_relaxed64(&ring->reserved_seen, reserved);
    return cells <= reserved;
}

/** Whether the slot at `position` can be read.  If not, it has never been anything but zero: no record. */
static inline bool has_pages(struct rbi_ring *ring, uint64_t position)
{
    return has_pages_up_to(ring, index_of(ring, position) + 1);
}

static inline uint64_t cells_for(const struct rbi_ring *ring, uint64_t size)
{
    if (size <= RBI_INLINE_BYTES) return 1;
    return (size + (UINT64_C(1) << ring->cell_log2) - 1) >> ring->cell_log2;
}

static inline uint8_t *payload_at(const struct rbi_ring *ring, uint64_t position, uint64_t size)
{
    if (size <= RBI_INLINE_BYTES) return slot_at(ring, position)->payload;
    return ring->data + (index_of(ring, position) << ring->cell_log2);
}

/* ---- set-up ---- */

void rbi_ring_init(struct rbi_ring *ring, struct rbi_cursors *cursors, struct rbi_slot *slots, uint8_t *data,
                   uint32_t cells_log2, uint32_t cell_log2, uint64_t max_items)
{
    ring->slots = slots;
    ring->data = data;
    ring->cursors = cursors;
    ring->cells_log2 = cells_log2;
    ring->cell_log2 = cell_log2;
    ring->patience = 128;
    ring->max_items = max_items;
    atomic_init(&ring->reclaim_seen, rbi_load_acquire64(&cursors->reclaim));
    atomic_init(&ring->reserved_seen, 0);
}

uint64_t rbi_ring_first_position(const struct rbi_ring *ring) { return cells_of_ring(ring); }

void rbi_ring_start_at(struct rbi_ring *ring, uint64_t position)
{
    position &= position_mask(ring);
    /* relaxed: nobody else sees this memory until the file gets its name */
    rbi_store_relaxed64(&ring->cursors->tail, position);
    rbi_store_relaxed64(&ring->cursors->head, position);
    rbi_store_relaxed64(&ring->cursors->reclaim, position);
    rbi_store_relaxed64(&ring->cursors->irregular, position);
    rbi_store_relaxed64(&ring->reclaim_seen, position);
}

uint64_t rbi_ring_max_payload(const struct rbi_ring *ring) { return cells_of_ring(ring) / 2 << ring->cell_log2; }

enum rbi_ring_outcome rbi_ring_raise_reserved(struct rbi_ring *ring, uint64_t cells)
{
    for (;;) {
        uint64_t seen = rbi_load_acquire64(&ring->cursors->reserved_cells);
        if (seen > cells_of_ring(ring)) return RBI_RING_CORRUPT;
        if (seen >= cells) return RBI_RING_OK;
        /* [E4 pages] pairs with has_pages_up_to(). */
        if (rbi_cas_acq_rel64(&ring->cursors->reserved_cells, seen, cells)) return RBI_RING_OK;
    }
}

/* ---- moving cursors, setting hints ---- */

/** Move tail over the record at `position` if it still stands there.  Losing is fine: somebody else did it. */
static void help_tail(struct rbi_ring *ring, uint64_t position, uint64_t cells)
{
    uint64_t tail = rbi_load_total64(&ring->cursors->tail);
    if (position_of(ring, tail) == position) rbi_cas_total64(&ring->cursors->tail, tail, cursor_past(ring, tail, cells));
    RBI_POINT(tail_moved);
}

/** Move head, which was read as `head`, over the record there. */
static void advance_head(struct rbi_ring *ring, uint64_t head, uint64_t cells)
{
    rbi_cas_total64(&ring->cursors->head, head, cursor_past(ring, head, cells));
    RBI_POINT(head_moved);
}

/** Let `irregular` lie beyond the record, before it becomes irregular. */
static void mark_irregular(struct rbi_ring *ring, uint64_t position, uint64_t cells)
{
    uint64_t beyond = advanced(ring, position, cells);
    for (;;) {
        uint64_t seen = rbi_load_total64(&ring->cursors->irregular);
        if (distance(ring, seen, beyond) >= 0) return;
        if (rbi_cas_total64(&ring->cursors->irregular, seen, beyond)) return;
    }
}

/** Move head on until it stands at a READY or CLAIMED record, or at tail. */
static void help_head(struct rbi_ring *ring)
{
    for (;;) {
        uint64_t head = rbi_load_total64(&ring->cursors->head);
        uint64_t position = position_of(ring, head);
        uint64_t word = has_pages(ring, position) ? load_word(ring, position) : 0;
        if (!word_is_of(ring, word, position)) {
            if (rbi_load_total64(&ring->cursors->head) != head) continue;
            return;
        }
        if (word_kind(word) == RBI_KIND_READY || word_kind(word) == RBI_KIND_CLAIMED || !sane(ring, word)) return;
        advance_head(ring, head, word_cells(ring, word));
    }
}

/** Tell consumers that there is, or may be, a RETURNED record.  After the fact. */
static void set_returned(struct rbi_ring *ring)
{
    for (;;) {
        uint64_t seen = rbi_load_total64(&ring->cursors->returned);
        if (rbi_cas_total64(&ring->cursors->returned, seen, ((seen >> 1) + 1) << 1 | 1)) break;
    }
    RBI_POINT(hint_set);
}

/* ---- put ---- */

enum rbi_ring_outcome rbi_ring_reclaim(struct rbi_ring *ring)
{
    uint64_t start = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring); /* [E3] */
    uint64_t position = start;
    uint64_t passed = 0;
    while (passed < cells_of_ring(ring) && has_pages(ring, position)) {
        uint64_t word = load_word(ring, position); /* [E2 release] pairs with the store in rbi_ring_release(): the consumer's
                                                      reads are over before anybody writes these cells again. */
        if (!word_is_of(ring, word, position) || word_kind(word) != RBI_KIND_RELEASED) break;
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        uint64_t head = rbi_load_total64(&ring->cursors->head);
        if (position_of(ring, head) == position) advance_head(ring, head, word_cells(ring, word)); /* void, not yet passed */
        passed += word_cells(ring, word);
        position = advanced(ring, position, word_cells(ring, word));
    }
    if (passed) {
        /* [E3 reclaim] pairs with the acquire of reclaim: hands the consumers' [E2] on to the claimer.  Losing is fine. */
        rbi_cas_acq_rel64(&ring->cursors->reclaim, start, position);
        RBI_POINT(reclaimed);
    }
    return RBI_RING_OK;
}

/** Whether `cells` cells from `position` on were free when this process last looked.  *unlike is set if reclaim makes no sense. */
static inline bool was_reclaimed(const struct rbi_ring *ring, uint64_t position, uint64_t cells, uint64_t reclaim)
{
    int64_t used = distance(ring, position, reclaim);
    return used >= 0 && (uint64_t)used + cells <= cells_of_ring(ring);
}

/** Look again for room for `cells` cells at `position`. */
static enum rbi_ring_outcome make_room(struct rbi_ring *ring, uint64_t position, uint64_t cells)
{
    uint64_t reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring); /* [E3] */
    if (!was_reclaimed(ring, position, cells, reclaim)) {
        if (rbi_ring_reclaim(ring) != RBI_RING_OK) return RBI_RING_CORRUPT;
        reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring); /* [E3] */
    }
    /* release: another thread of this process that finds room by this value needs our acquire of [E3], too. */
    rbi_store_release64(&ring->reclaim_seen, reclaim);
    return was_reclaimed(ring, position, cells, reclaim) ? RBI_RING_OK : RBI_RING_FULL;
}

/** Whether one more item is within the bound, with tail as read.  Items that head has gone past, but that are or may yet become
 *  messages, count. */
static enum rbi_ring_outcome below_max_items(struct rbi_ring *ring, uint64_t tail)
{
    uint64_t items = items_between(ring, rbi_load_total64(&ring->cursors->head), tail);
    uint64_t irregular = rbi_load_total64(&ring->cursors->irregular);
    if (distance(ring, irregular, rbi_load_acquire64(&ring->cursors->reclaim)) > 0) {
        uint64_t late = 0;
        if (rbi_ring_reclaim(ring) != RBI_RING_OK) return RBI_RING_CORRUPT;
        if (rbi_ring_census(ring, &late, 1u << RBI_KIND_SKIPPED | 1u << RBI_KIND_RETURNED) != RBI_RING_OK)
            return RBI_RING_CORRUPT;
        items += late;
    }
    return items < ring->max_items ? RBI_RING_OK : RBI_RING_FULL;
}

/** Ask for the lines that puts of the same size will write soon.  They lie in the consumers' caches, and a locked instruction waits
 *  for every store before it, so each miss would stand in full on the way of a put. */
static inline void fetch_ahead(const struct rbi_ring *ring, uint64_t position, uint64_t cells)
{
    uint64_t ahead = index_of(ring, position + 4 * cells);
    __builtin_prefetch(&ring->slots[ahead], 1);
    __builtin_prefetch(ring->data + (ahead << ring->cell_log2), 1);
}

enum rbi_ring_outcome rbi_ring_claim(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t size)
{
    uint64_t cells = cells_for(ring, size);
    for (;;) {
        uint64_t tail = rbi_load_total64(&ring->cursors->tail);
        uint64_t position = position_of(ring, tail);
        /* A record that wraps needs pages up to the end; those at the beginning are there already. */
        uint64_t needed = index_of(ring, position) + cells;
        if (needed > cells_of_ring(ring)) needed = cells_of_ring(ring);
        if (!has_pages_up_to(ring, needed)) {
            record->cells = needed;
            return RBI_RING_UNRESERVED;
        }
        struct rbi_slot *slot = slot_at(ring, position);
        uint64_t word = rbi_load_total64(&slot->word);
        if (rbi_load_total64(&ring->cursors->tail) != tail) continue; /* `word` may be of a later lap: see the head of the file */
        if (word_is_of(ring, word, position)) {
            if (!sane(ring, word)) return RBI_RING_CORRUPT;
            help_tail(ring, position, word_cells(ring, word));
            continue;
        }
        enum rbi_ring_outcome room = RBI_RING_OK;
        /* acquire: [E3] as this process last saw it, perhaps in another thread. */
        if (!was_reclaimed(ring, position, cells, rbi_load_acquire64(&ring->reclaim_seen)))
            room = make_room(ring, position, cells);
        if (room == RBI_RING_OK && ring->max_items) room = below_max_items(ring, tail);
        if (room != RBI_RING_OK) {
            uint64_t reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
            if (rbi_load_total64(&ring->cursors->tail) != tail) continue;
            return distance(ring, position, reclaim) < 0 ? RBI_RING_CORRUPT : room; /* reclaim never passes tail */
        }
        /* The linearization of the reservation; it names its owner in the same word. [T3] */
        if (!rbi_cas_total64(&slot->word, word, word_of(ring, position, cells, owner, RBI_KIND_CLAIMED))) continue;
        RBI_POINT(claimed);
        /* Not help_tail: tail is most likely still ours, and one load less matters here.  Losing is fine. */
        rbi_cas_total64(&ring->cursors->tail, tail, cursor_past(ring, tail, cells));
        RBI_POINT(tail_moved);
        record->position = position;
        record->cells = cells;
        record->size = size;
        record->payload = payload_at(ring, position, size);
        fetch_ahead(ring, position, cells);
        return RBI_RING_OK;
    }
}

enum rbi_ring_outcome rbi_ring_publish(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner)
{
    struct rbi_slot *slot = slot_at(ring, record->position);
    uint64_t claimed = word_of(ring, record->position, record->cells, owner, RBI_KIND_CLAIMED);
    /* relaxed: the publish CAS carries it */
    rbi_store_relaxed64(&slot->size, record->size);
    RBI_POINT(size_written);
    /* [E1 publish] pairs with load_word() in a take.  Without it a consumer could see READY before the payload and its size.
     * [T1] total: the caller then looks for sleepers. */
    if (rbi_cas_total64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))) {
        RBI_POINT(published);
        return RBI_RING_OK;
    }
    /* Consumers have gone past; the hint brings them back.  It is set before put returns. */
    if (!rbi_cas_total64(&slot->word, word_with(claimed, owner, RBI_KIND_SKIPPED), word_with(claimed, 0, RBI_KIND_RETURNED)))
        return RBI_RING_CORRUPT; /* nobody else may have changed it */
    RBI_POINT(published_late);
    set_returned(ring);
    return RBI_RING_OK;
}

/** CLAIMED or SKIPPED by `owner` -> RELEASED; only a consumer's skip may come in between. */
static bool void_claim(struct rbi_ring *ring, uint64_t position, uint64_t word)
{
    rbi_atomic64 *shared = &slot_at(ring, position)->word;
    mark_irregular(ring, position, word_cells(ring, word));
    if (rbi_cas_total64(shared, word, word_with(word, 0, RBI_KIND_RELEASED))) return true;
    uint64_t skipped = word_with(word, word_owner(word), RBI_KIND_SKIPPED);
    return rbi_cas_total64(shared, skipped, word_with(word, 0, RBI_KIND_RELEASED));
}

enum rbi_ring_outcome rbi_ring_void(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner)
{
    uint64_t claimed = word_of(ring, record->position, record->cells, owner, RBI_KIND_CLAIMED);
    bool done = void_claim(ring, record->position, claimed);
    RBI_POINT(claim_voided);
    return done ? RBI_RING_OK : RBI_RING_CORRUPT;
}

/* ---- get ---- */

/** Fill *record from a word that says READY, RETURNED or TAKEN.  The size counts only if the word is still the same afterwards. */
static bool describe(struct rbi_ring *ring, struct rbi_record *record, uint64_t position, uint64_t word)
{
    record->position = position;
    record->cells = word_cells(ring, word);
    /* relaxed: [E1] through the word, which the caller has read */
    record->size = rbi_load_relaxed64(&slot_at(ring, position)->size);
    record->payload = payload_at(ring, position, record->size);
    return record->size <= RBI_INLINE_BYTES || record->size <= record->cells << ring->cell_log2;
}

/** Take a READY or RETURNED record whose word was read as `word`.  EMPTY: it changed, look again. */
static enum rbi_ring_outcome take_record(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit,
                                         uint64_t position, uint64_t word)
{
    bool valid = describe(ring, record, position, word);
    if (!valid || record->size > limit) {
        if (load_word(ring, position) != word) return RBI_RING_EMPTY; /* so the size was another record's */
        return valid ? RBI_RING_SMALL : RBI_RING_CORRUPT;
    }
    /* acquire on success: [E1]; the size read above is this record's, for the word did not change in between. */
    if (!rbi_cas_total64(&slot_at(ring, position)->word, word, word_with(word, owner, RBI_KIND_TAKEN))) return RBI_RING_EMPTY;
    return RBI_RING_OK;
}

/** Look for a RETURNED record, oldest first.  `hint` is `returned` as read, with `some` set.
 *  EMPTY: there is none, and the hint has been cleared if nobody set it anew; or it changed: look again in any case. */
static enum rbi_ring_outcome take_returned(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit,
                                           uint64_t hint)
{
    if (rbi_ring_reclaim(ring) != RBI_RING_OK) return RBI_RING_CORRUPT;
    uint64_t position = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
    uint64_t end = position_of(ring, rbi_load_total64(&ring->cursors->head));
    while (distance(ring, position, end) < 0) {
        uint64_t word = load_word(ring, position);
        if (!word_is_of(ring, word, position)) { /* released and reclaimed while we walked */
            uint64_t reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
            if (distance(ring, reclaim, position) <= 0) return RBI_RING_CORRUPT;
            position = reclaim;
            continue;
        }
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        if (word_kind(word) == RBI_KIND_RETURNED) {
            /* An older one may have been returned behind our back, before this one was put: then begin again. */
            if (rbi_load_total64(&ring->cursors->returned) != hint) return RBI_RING_EMPTY;
            enum rbi_ring_outcome outcome = take_record(ring, record, owner, limit, position, word);
            RBI_POINT(retaken);
            if (outcome != RBI_RING_EMPTY) return outcome;
            continue;
        }
        position = advanced(ring, position, word_cells(ring, word));
    }
    rbi_cas_total64(&ring->cursors->returned, hint, hint & ~UINT64_C(1));
    RBI_POINT(hint_cleared);
    return RBI_RING_EMPTY;
}

/** Whether a READY record follows the claimed one at `position`. */
static bool ready_behind(struct rbi_ring *ring, uint64_t position, uint64_t word)
{
    uint64_t walked = 0;
    for (;;) {
        uint64_t cells = word_cells(ring, word);
        walked += cells;
        if (cells == 0 || walked >= cells_of_ring(ring)) return false;
        position = advanced(ring, position, cells);
        if (!has_pages(ring, position)) return false;
        word = load_word(ring, position);
        if (!word_is_of(ring, word, position)) return false;
        if (word_kind(word) == RBI_KIND_READY) return true;
    }
}

/** The record at head is claimed and a message waits behind it: give its producer a moment, then go past. */
static void skip(struct rbi_ring *ring, uint64_t head, uint64_t word)
{
    uint64_t position = position_of(ring, head);
    for (uint32_t look = 0; look < ring->patience; look++) {
        if (load_word(ring, position) != word) return;
        rbi_pause();
    }
    help_tail(ring, position, word_cells(ring, word)); /* head must not pass tail */
    mark_irregular(ring, position, word_cells(ring, word));
    RBI_POINT(skip_marked);
    rbi_cas_total64(&slot_at(ring, position)->word, word, word_with(word, word_owner(word), RBI_KIND_SKIPPED));
    RBI_POINT(skipped);
}

enum rbi_ring_outcome rbi_ring_take(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit)
{
    for (;;) {
        uint64_t hint = rbi_load_total64(&ring->cursors->returned);
        if (hint & 1) {
            enum rbi_ring_outcome outcome = take_returned(ring, record, owner, limit, hint);
            if (outcome != RBI_RING_EMPTY) return outcome;
            continue;
        }
        uint64_t head = rbi_load_total64(&ring->cursors->head);
        uint64_t position = position_of(ring, head);
        uint64_t word = has_pages(ring, position) ? load_word(ring, position) : 0;
        if (!word_is_of(ring, word, position)) {
            if (rbi_load_total64(&ring->cursors->head) != head) continue;      /* the word may be of a later lap */
            if (rbi_load_total64(&ring->cursors->returned) != hint) continue;  /* there was a moment without both */
            return RBI_RING_EMPTY;
        }
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        switch (word_kind(word)) {
        case RBI_KIND_READY: {
            if (rbi_load_total64(&ring->cursors->returned) != hint) continue;  /* an older one first */
            enum rbi_ring_outcome outcome = take_record(ring, record, owner, limit, position, word);
            if (outcome == RBI_RING_EMPTY) continue;
            if (outcome == RBI_RING_OK) {
                RBI_POINT(taken);
                advance_head(ring, head, record->cells);
            }
            return outcome;
        }
        case RBI_KIND_CLAIMED:
            if (ready_behind(ring, position, word)) {
                skip(ring, head, word);
                continue;
            }
            if (load_word(ring, position) != word || rbi_load_total64(&ring->cursors->returned) != hint) continue;
            return RBI_RING_PENDING;
        case RBI_KIND_SKIPPED:
        case RBI_KIND_TAKEN:
        case RBI_KIND_RETURNED:
        case RBI_KIND_RELEASED:
            advance_head(ring, head, word_cells(ring, word));
            continue;
        case RBI_KIND_NONE:
            break;
        }
        return RBI_RING_CORRUPT;
    }
}

enum rbi_ring_outcome rbi_ring_find_taken(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner,
                                          uint64_t position)
{
    if (position > position_mask(ring) || !has_pages(ring, position)) return RBI_RING_CORRUPT;
    uint64_t word = load_word(ring, position);
    if (!word_is_of(ring, word, position) || word_kind(word) != RBI_KIND_TAKEN || word_owner(word) != owner || !sane(ring, word))
        return RBI_RING_CORRUPT;
    return describe(ring, record, position, word) ? RBI_RING_OK : RBI_RING_CORRUPT;
}

void rbi_ring_release(struct rbi_ring *ring, const struct rbi_record *record)
{
    /* [E2 release] pairs with rbi_ring_reclaim(): our reads of the payload stay before it.
     * [T2] total: the caller then looks for producers that wait for room.  A store suffices: the record is ours alone. */
    rbi_store_total64(&slot_at(ring, record->position)->word,
                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));
    RBI_POINT(released);
}

void rbi_ring_give_back(struct rbi_ring *ring, const struct rbi_record *record)
{
    mark_irregular(ring, record->position, record->cells);
    RBI_POINT(nack_marked);
    /* [E1] anew: the next taker's reads come after ours.  A store suffices: the record is ours alone. */
    rbi_store_total64(&slot_at(ring, record->position)->word,
                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RETURNED));
    RBI_POINT(given_back);
    set_returned(ring);
}

/* ---- the rare paths ---- */

/** Call `visit` with every record from reclaim to tail, in order, while others move.  Records that are reclaimed meanwhile are left
 *  out.  `visit` returns false to see the same record again. */
static enum rbi_ring_outcome walk(struct rbi_ring *ring, bool (*visit)(struct rbi_ring *, uint64_t position, uint64_t word, void *),
                                  void *context)
{
    uint64_t position = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
    uint64_t end = position_of(ring, rbi_load_total64(&ring->cursors->tail));
    if (distance(ring, end, position) > (int64_t)cells_of_ring(ring)) {
        /* reclaim may have moved on between the two loads; it cannot be more than a lap behind tail twice */
        position = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
        if (distance(ring, end, position) > (int64_t)cells_of_ring(ring)) return RBI_RING_CORRUPT;
    }
    while (distance(ring, position, end) < 0) {
        if (!has_pages(ring, position)) return RBI_RING_CORRUPT;
        uint64_t word = load_word(ring, position);
        if (!word_is_of(ring, word, position)) {
            uint64_t reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
            if (distance(ring, reclaim, position) <= 0) return RBI_RING_CORRUPT;
            position = reclaim;
            continue;
        }
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        if (visit(ring, position, word, context)) position = advanced(ring, position, word_cells(ring, word));
    }
    return RBI_RING_OK;
}

struct recovery {
    uint32_t owner;
    bool some_returned;
};

static bool undo(struct rbi_ring *ring, uint64_t position, uint64_t word, void *context)
{
    struct recovery *recovery = context;
    if (word_kind(word) == RBI_KIND_RETURNED) recovery->some_returned = true;
    if (word_owner(word) != recovery->owner) return true;
    switch (word_kind(word)) {
    case RBI_KIND_CLAIMED:
    case RBI_KIND_SKIPPED:
        void_claim(ring, position, word);
        RBI_POINT(recovery_voided);
        return false;
    case RBI_KIND_TAKEN:
        mark_irregular(ring, position, word_cells(ring, word));
        rbi_cas_total64(&slot_at(ring, position)->word, word, word_with(word, 0, RBI_KIND_RETURNED));
        RBI_POINT(recovery_returned);
        return false; /* see it again, as RETURNED */
    default:
        return true;
    }
}

enum rbi_ring_outcome rbi_ring_recover(struct rbi_ring *ring, uint32_t owner)
{
    /* It may have died between its claim and moving tail: the record *at* tail counts, too. */
    for (;;) {
        uint64_t tail = rbi_load_total64(&ring->cursors->tail);
        uint64_t position = position_of(ring, tail);
        uint64_t word = has_pages(ring, position) ? load_word(ring, position) : 0;
        if (rbi_load_total64(&ring->cursors->tail) != tail) continue;
        if (!word_is_of(ring, word, position)) break;
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        help_tail(ring, position, word_cells(ring, word));
    }
    RBI_POINT(recovery_tail_helped);
    struct recovery recovery = {.owner = owner, .some_returned = false};
    enum rbi_ring_outcome outcome = walk(ring, undo, &recovery);
    if (outcome != RBI_RING_OK) return outcome;
    RBI_POINT(recovery_swept);
    help_head(ring); /* it may have died between its take and moving head */
    /* Also for records that were only met: who returned them may have died before it set the hint. */
    if (recovery.some_returned) set_returned(ring);
    RBI_POINT(recovery_hinted);
    return RBI_RING_OK;
}

struct census {
    uint32_t kinds;
    uint64_t records;
};

static bool count_record(struct rbi_ring *ring, uint64_t position, uint64_t word, void *context)
{
    (void)ring;
    (void)position;
    struct census *census = context;
    if (census->kinds >> word_kind(word) & 1) census->records++;
    return true;
}

enum rbi_ring_outcome rbi_ring_census(struct rbi_ring *ring, uint64_t *records, uint32_t kinds)
{
    struct census census = {.kinds = kinds, .records = 0};
    enum rbi_ring_outcome outcome = walk(ring, count_record, &census);
    *records = census.records;
    return outcome;
}

enum rbi_ring_outcome rbi_ring_count(struct rbi_ring *ring, uint64_t *items)
{
    uint64_t irregular = rbi_load_total64(&ring->cursors->irregular);
    if (distance(ring, irregular, rbi_load_acquire64(&ring->cursors->reclaim)) > 0) {
        if (rbi_ring_reclaim(ring) != RBI_RING_OK) return RBI_RING_CORRUPT;
        if (distance(ring, irregular, rbi_load_acquire64(&ring->cursors->reclaim)) > 0)
            return rbi_ring_census(ring, items, 1u << RBI_KIND_READY | 1u << RBI_KIND_RETURNED);
    }
    uint64_t head = rbi_load_total64(&ring->cursors->head);
    *items = items_between(ring, head, rbi_load_total64(&ring->cursors->tail));
    return RBI_RING_OK;
}

bool rbi_ring_may_take(struct rbi_ring *ring)
{
    if (rbi_load_total64(&ring->cursors->returned) & 1) return true;
    uint64_t position = position_of(ring, rbi_load_total64(&ring->cursors->head));
    if (!has_pages(ring, position)) return false;
    uint64_t word = load_word(ring, position);
    return word_is_of(ring, word, position) && word_kind(word) != RBI_KIND_CLAIMED;
}

bool rbi_ring_has_room(struct rbi_ring *ring, uint64_t size)
{
    uint64_t tail = rbi_load_total64(&ring->cursors->tail);
    if (make_room(ring, position_of(ring, tail), cells_for(ring, size)) == RBI_RING_FULL) return false;
    return !ring->max_items || below_max_items(ring, tail) != RBI_RING_FULL;
}

uint64_t rbi_ring_used_bytes(struct rbi_ring *ring)
{
    rbi_ring_reclaim(ring);
    uint64_t reclaim = rbi_load_acquire64(&ring->cursors->reclaim) & position_mask(ring);
    int64_t cells = distance(ring, position_of(ring, rbi_load_total64(&ring->cursors->tail)), reclaim);
    if (cells < 0 || (uint64_t)cells > cells_of_ring(ring)) return 0;
    return (uint64_t)cells << ring->cell_log2;
}

enum rbi_kind rbi_ring_kind_at(struct rbi_ring *ring, uint64_t position)
{
    uint64_t word = load_word(ring, position);
    return word_is_of(ring, word, position) ? word_kind(word) : RBI_KIND_NONE;
}

uint64_t rbi_ring_tail_position(struct rbi_ring *ring)
{
    return position_of(ring, rbi_load_total64(&ring->cursors->tail));
}

uint64_t rbi_ring_head_position(struct rbi_ring *ring)
{
    return position_of(ring, rbi_load_total64(&ring->cursors->head));
}
