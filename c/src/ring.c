/* ring.c — floor 1: many producers, many consumers, any of whom may stop or die at any instruction.
 *
 * The idea.  The ring is an array of cells, and beside each cell a slot.  A message occupies one or more neighbouring cells; the slot
 * of its first cell holds one 64-bit word, and that word is the only truth about it: which lap it belongs to, how many cells it
 * has, in what state it is, and whose turn it is.  Ownership and fact change in one compare-and-swap, so there is no instruction at
 * which a record has been reserved or taken but nobody knows by whom; a death leaves a word with the dead one's number in it.
 * The cursors tail, head and reclaim are hints: they lag behind the words by at most one step, and a process that meets a lagging one
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
 * Lanes.  Whoever is stopped between claim and publish, or between take and release, keeps its record's cells, so reclaim stops there,
 * and after one more lap the ring would be full until it goes on.  So a ring has lanes: complete rings of the same size, of which
 * puts use one and the others cost nothing but address space.  A producer that has found the ring full for a while, of records that
 * consumers have gone past, closes the lane: it puts END where the next record would begin (one cell is always kept free for
 * that).  Puts go on in the next lane; consumers follow when they come to END.
 *   put_epoch and get_epoch count such changes; epoch e uses lane e % lanes.  A change may leave out epochs, whose lanes somebody is
 *   stuck in; END says how many to go on.  Both epochs only follow what END words say, and END carries the epoch it ends, so that a
 *   reopened lane's old END is told from a new one.  A lane may be opened for an epoch only when it
 *   is quiet: consumers have left it (get_epoch), and reclaim has come to its END, so nobody holds anything in it; and it stays so,
 *   for no claim can begin there.  Opening is moving tail past the old END, and any claimer may do it.
 *   A claim needs no epoch to be safe: tail stands at END in every lane but the open one.  A take checks that get_epoch has not moved
 *   since it looked at head, or it might take from a lane that has been reopened for messages of a later epoch.
 *
 * Pages.  Slots and cells get their pages in steps, from the front on, before tail first comes to them; reserved_cells says how
 * far.  If each lap went on to the ring's end, a queue that never holds more than one message would soon have all of its
 * pages.  So a producer that comes to where pages end, or into the last quarter of them, and finds the lane empty begins again at
 * the front: it puts a GAP at tail, a word that stands for all cells from there to the end of the lap.
 *   The GAP is complete with the compare-and-swap that makes it, and nobody owns it.  So a process that stops or dies before it
 *   has left nothing, and one that stops or dies after it has left a word that every other process passes, at tail, at head and
 *   at reclaim.  Of several producers one makes it; the others find the word changed and look again.  It is no item: cursors do
 *   not count it.
 *   Who may put it: the cells from tail to the end of the lap and all before tail have been reclaimed, for reclaim was found at
 *   tail, and they stay so unless another process claims at tail, which changes the word.  A consumer's reads of a cell that the
 *   GAP stands for are over ([E2], [E3]); the GAP writes one slot's word and nothing else.  Since nothing in use lies before a
 *   GAP, reclaim can pass it at once: it takes no capacity from anybody.
 *   Where it lies there must be a page.  So while a lane has not all of its pages, a claim needs one slot more than its own
 *   cells.  An END has room there, too.
 *   A GAP uses up a lap, and a word is told from an older one by its lap.  So the older a ring is, the longer its laps must be:
 *   in lap n a lap is cut short only if n >> age_shift cells have pages, which are all of them when an eighth of the laps there
 *   are has gone.
 *   When the file system has no more pages to give, rbi_ring_make_do() does the same whatever the length of the lap, and also if
 *   the lane is not empty but has room at its front: then what has pages is a ring by itself.  In that case the GAP takes
 *   capacity until what lies before it is released; there is no memory that it could be taken from.
 *
 * irregular.  tail.items - head.items counts records between head and tail.  That is the number of messages unless one was voided
 * before head reached it, skipped, or returned.  Whoever is about to do one of these first raises `irregular` beyond the record; while
 * reclaim has not passed that point, counting walks the records instead.
 *
 * Orders.  Slot words, head, tail, `returned` and epochs are read and written in one total order ([T1] … [T7]): the sleepers' protocol
 * (wait.c) needs "publish, then look for sleepers" against "announce, then look for messages" and the same for room and shutdown.  On
 * x86-64 this costs nothing on the put side (the CAS is a full barrier anyway) and one xchg on release.
 *
 * Progress: claim, publish, take, release, give_back and recover are lock-free, none waits for another participant.  What is stopped in
 * the middle of a put or get costs the others nothing but its own message, as long as it is no more than one process a spare lane.
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

/** How many cells a word's record occupies.  An END occupies one; its `cells` tell how many epochs it leads on.  A GAP's are the rest of
 *  its lap. */
static inline uint64_t word_length(const struct rbi_ring *ring, uint64_t word)
{
    return word_kind(word) == RBI_KIND_END ? 1 : word_cells(ring, word);
}

/** A word's record can be what it says: no hostile or overwritten length leads anywhere.  An END leads over other lanes but never round
 *  to its own: by a multiple of all the epochs that its tag can tell apart, it would be found to end the epoch that it leads to, for
 *  ever. */
static inline bool sane(const struct rbi_ring *ring, uint64_t word)
{
    uint64_t cells = word_cells(ring, word);
    return cells != 0 && (word_kind(word) != RBI_KIND_END || cells < ring->lane_count);
}

/** lane_count is a power of two. */
static inline struct rbi_lane *lane_of(struct rbi_ring *ring, uint64_t epoch)
{
    return &ring->lanes[epoch & (ring->lane_count - 1)];
}

/** What an END word says of the epoch it ends. */
static inline uint32_t tag_of(uint64_t epoch) { return (uint32_t)epoch & RBI_OWNER_MAX; }

/** How many epochs before `epoch` this END was written, 0: it ends this one; negative: it is from a later one. */
static inline int32_t age_of_end(uint64_t word, uint64_t epoch)
{
    int32_t age = (int32_t)(tag_of(epoch) - word_owner(word)) & RBI_OWNER_MAX;
    return age <= RBI_OWNER_MAX / 2 ? age : age - (RBI_OWNER_MAX + 1);
}

static inline struct rbi_slot *slot_at(const struct rbi_ring *ring, const struct rbi_lane *lane, uint64_t position)
{
    return &lane->slots[index_of(ring, position)];
}

static inline uint64_t load_word(const struct rbi_ring *ring, const struct rbi_lane *lane, uint64_t position)
{
    return rbi_load_total64(&slot_at(ring, lane, position)->word); /* [E1] [T1] [T2] */
}

static inline uint64_t load_reclaim(const struct rbi_ring *ring, const struct rbi_lane *lane)
{
    return rbi_load_acquire64(&lane->cursors->reclaim) & position_mask(ring); /* [E3] pairs with the CAS in reclaim() */
}

/** How many slots and cells have pages behind them, from the first on.  The count only grows, so an old view of it errs on the safe
 *  side. */
static uint64_t look_at_reserved(const struct rbi_ring *ring, struct rbi_lane *lane)
{
    /* [E4 pages] pairs with rbi_ring_raise_reserved(): the pages were there before the count said so. */
    uint64_t reserved = rbi_load_total64(&lane->cursors->reserved_cells);
    if (reserved > cells_of_ring(ring)) reserved = 0; /* nonsense in shared memory; rbi_ring_raise_reserved reports it */
    /* release, of both: hands [E4] on to our other threads */
    rbi_store_release64(&lane->reserved_seen, reserved);
    rbi_store_release64(&lane->roomy, reserved == cells_of_ring(ring) ? UINT64_MAX : reserved - reserved / 4);
    return reserved;
}

/** Whether the first `cells` slots and cells have pages behind them.  Touching one that has none could allocate it, or raise SIGBUS
 *  when the file system is full. */
static inline bool has_pages_up_to(const struct rbi_ring *ring, struct rbi_lane *lane, uint64_t cells)
{
    /* A lower bound, which saves the next load.  acquire: [E4] as this process last saw it, perhaps in another thread. */
    if (cells <= rbi_load_acquire64(&lane->reserved_seen)) return true;
    return cells <= look_at_reserved(ring, lane);
}

/** Whether the slot at `position` can be read.  If not, it has never been anything but zero: no record. */
static inline bool has_pages(const struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position)
{
    return has_pages_up_to(ring, lane, index_of(ring, position) + 1);
}

/** The word at `position`, or 0, which is no record's, where there is no page. */
static inline uint64_t peek_word(const struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position)
{
    return has_pages(ring, lane, position) ? load_word(ring, lane, position) : 0;
}

static inline uint64_t cells_for(const struct rbi_ring *ring, uint64_t size)
{
    if (size <= RBI_INLINE_BYTES) return 1;
    return (size + (UINT64_C(1) << ring->cell_log2) - 1) >> ring->cell_log2;
}

static inline uint8_t *payload_at(const struct rbi_ring *ring, const struct rbi_lane *lane, uint64_t position, uint64_t size)
{
    if (size <= RBI_INLINE_BYTES) return slot_at(ring, lane, position)->payload;
    return lane->data + (index_of(ring, position) << ring->cell_log2);
}

/* ---- set-up ---- */

void rbi_ring_init(struct rbi_ring *ring, struct rbi_order *order, uint32_t cells_log2, uint32_t cell_log2,
                   uint64_t max_items)
{
    ring->order = order;
    ring->cells_log2 = cells_log2;
    ring->cell_log2 = cell_log2;
    ring->patience = 256;
    ring->looks_aside = false;
    ring->max_items = max_items;
    ring->lane_count = 0;
    /* 32 KiB of cells, or 64 cells if that is more: pages are reserved for 64 at a time. */
    ring->least_lap = cell_log2 < 9 ? UINT64_C(1) << (15 - cell_log2) : 64;
    /* So that short laps use up at most an eighth of the laps that a word can tell apart. */
    uint32_t lap_bits = 48 - cells_log2 < 63 - 2 * cells_log2 ? 48 - cells_log2 : 63 - 2 * cells_log2;
    ring->age_shift = lap_bits - 3 - cells_log2;
}

void rbi_ring_add_lane(struct rbi_ring *ring, struct rbi_cursors *cursors, struct rbi_slot *slots, uint8_t *data)
{
    struct rbi_lane *lane = &ring->lanes[ring->lane_count++];
    lane->slots = slots;
    lane->data = data;
    lane->cursors = cursors;
    atomic_init(&lane->reclaim_seen, rbi_load_acquire64(&cursors->reclaim));
    atomic_init(&lane->reserved_seen, 0);
    atomic_init(&lane->roomy, 0);
}

uint64_t rbi_ring_first_position(const struct rbi_ring *ring) { return cells_of_ring(ring); }

void rbi_ring_start_at(struct rbi_ring *ring, uint64_t position)
{
    position &= position_mask(ring);
    for (uint32_t i = 0; i < ring->lane_count; i++) {
        struct rbi_lane *lane = &ring->lanes[i];
        /* relaxed: nobody else sees this memory until the file gets its name */
        rbi_store_relaxed64(&lane->cursors->tail, position);
        rbi_store_relaxed64(&lane->cursors->head, position);
        rbi_store_relaxed64(&lane->cursors->reclaim, position);
        rbi_store_relaxed64(&lane->cursors->irregular, position);
        rbi_store_relaxed64(&lane->reclaim_seen, position);
    }
}

uint64_t rbi_ring_max_payload(const struct rbi_ring *ring) { return cells_of_ring(ring) / 2 << ring->cell_log2; }

enum rbi_ring_outcome rbi_ring_raise_reserved(struct rbi_ring *ring, uint32_t lane, uint64_t cells)
{
    rbi_atomic64 *reserved = &ring->lanes[lane].cursors->reserved_cells;
    for (;;) {
        uint64_t seen = rbi_load_acquire64(reserved);
        if (seen > cells_of_ring(ring)) return RBI_RING_CORRUPT;
        if (seen >= cells) return RBI_RING_OK;
        /* [E4 pages] pairs with has_pages_up_to().  Total: a put that needed it stands in [T1]. */
        if (rbi_cas_total64(reserved, seen, cells)) return RBI_RING_OK;
    }
}

/** Somebody else is doing the same on another processor at this moment: step aside for a few microseconds.  He goes on with his lines
 *  in his cache, and then we with ours in ours; taking turns at every message would cost each of us several misses. */
static void back_off(const struct rbi_ring *ring)
{
    for (uint32_t i = 0; i < ring->patience; i++) rbi_pause();
}

/* ---- moving cursors, setting hints ---- */

/** The cursor one step on: over a record, which counts as an item, or over an END or a GAP, which does not. */
static inline uint64_t cursor_past_word(const struct rbi_ring *ring, uint64_t cursor, uint64_t word)
{
    uint64_t past = cursor_past(ring, cursor, word_length(ring, word));
    return word_kind(word) >= RBI_KIND_END ? past - (UINT64_C(1) << position_bits(ring)) : past;
}

/** Move tail over the record, GAP or reopened END at `position` if it still stands there.  Losing is fine: another one did it. */
static void help_tail(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    uint64_t tail = rbi_load_total64(&lane->cursors->tail);
    if (position_of(ring, tail) == position) rbi_cas_total64(&lane->cursors->tail, tail, cursor_past_word(ring, tail, word));
    RBI_POINT(tail_moved);
}

/** Move head, which was read as `head`, over the record there. */
static void advance_head(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t head, uint64_t word)
{
    rbi_cas_total64(&lane->cursors->head, head, cursor_past_word(ring, head, word));
    RBI_POINT(head_moved);
}

/** The same over what is no message any more, or never was. */
static void pass_at_head(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t head, uint64_t word)
{
    /* A record is claimed and then filled, and its producer has moved tail before that.  A GAP is complete at once. */
    if (word_kind(word) == RBI_KIND_GAP) help_tail(ring, lane, position_of(ring, head), word); /* head must not pass tail */
    advance_head(ring, lane, head, word);
}

/** Let `irregular` lie beyond the record, before it becomes irregular. */
static void mark_irregular(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t cells)
{
    uint64_t beyond = advanced(ring, position, cells);
    for (;;) {
        uint64_t seen = rbi_load_total64(&lane->cursors->irregular);
        if (distance(ring, seen, beyond) >= 0) return;
        if (rbi_cas_total64(&lane->cursors->irregular, seen, beyond)) return;
    }
}

/** Move head on until it stands at a READY or CLAIMED record, at END, or at tail. */
static void help_head(struct rbi_ring *ring, struct rbi_lane *lane)
{
    for (;;) {
        uint64_t head = rbi_load_total64(&lane->cursors->head);
        uint64_t position = position_of(ring, head);
        uint64_t word = peek_word(ring, lane, position);
        if (!word_is_of(ring, word, position)) {
            if (rbi_load_total64(&lane->cursors->head) != head) continue;
            return;
        }
        enum rbi_kind kind = word_kind(word);
        if (kind == RBI_KIND_READY || kind == RBI_KIND_CLAIMED || kind == RBI_KIND_END || !sane(ring, word)) return;
        pass_at_head(ring, lane, head, word);
    }
}

bool rbi_ring_some_returned(struct rbi_ring *ring) { return rbi_load_total64(&ring->order->returned) & 1; /* [T6] */ }

/** Tell consumers that there is, or may be, something RETURNED.  After the fact.  [T6 hint] pairs with the looks in rbi_ring_take(). */
void rbi_ring_set_returned(struct rbi_ring *ring)
{
    for (;;) {
        uint64_t seen = rbi_load_total64(&ring->order->returned);
        if (rbi_cas_total64(&ring->order->returned, seen, ((seen >> 1) + 1) << 1 | 1)) break;
    }
    RBI_POINT(hint_set);
}

void rbi_ring_clear_returned(struct rbi_ring *ring, uint64_t seen)
{
    rbi_cas_total64(&ring->order->returned, seen, seen & ~UINT64_C(1)); /* [T6]: defeated by any newer setting */
    RBI_POINT(hint_cleared);
}

/** Nothing before `position` is in use any more: let `irregular` not fall so far behind that it would seem to lie ahead. */
static void pull_irregular(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position)
{
    uint64_t seen = rbi_load_total64(&lane->cursors->irregular);
    if (distance(ring, seen, position) < 0) rbi_cas_total64(&lane->cursors->irregular, seen, position);
}

/** Move `reclaim` over released records, about `most` cells of them.  OK or CORRUPT. */
static enum rbi_ring_outcome reclaim(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t most)
{
    uint64_t start = load_reclaim(ring, lane);
    uint64_t position = start;
    uint64_t passed = 0;
    while (passed < most && has_pages(ring, lane, position)) {
        uint64_t word = load_word(ring, lane, position); /* [E2 release] pairs with the store in rbi_ring_release(): the consumer's
                                                            reads are over before anybody writes these cells again. */
        if (!word_is_of(ring, word, position)) break;
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        if (word_kind(word) == RBI_KIND_END) {
            /* Passed only when the lane has been opened again. */
            if (distance(ring, position_of(ring, rbi_load_total64(&lane->cursors->tail)), position) <= 0) break;
        } else if (word_kind(word) != RBI_KIND_RELEASED && word_kind(word) != RBI_KIND_GAP) {
            break;
        }
        uint64_t head = rbi_load_total64(&lane->cursors->head);
        if (position_of(ring, head) == position) pass_at_head(ring, lane, head, word); /* void, END or GAP, and not yet passed */
        passed += word_length(ring, word);
        position = advanced(ring, position, word_length(ring, word));
    }
    if (passed) {
        /* [E3 reclaim] pairs with load_reclaim(): hands the consumers' [E2] on to the claimer.  Losing is fine. */
        rbi_cas_acq_rel64(&lane->cursors->reclaim, start, position);
        RBI_POINT(reclaimed);
        if (lap_of(ring, position) != lap_of(ring, start)) pull_irregular(ring, lane, start);
    }
    return RBI_RING_OK;
}

/** Call `visit` with every record of the lane from reclaim to tail, in order, while others move.  Records that are reclaimed meanwhile
 *  are left out.  `visit` returns false to see the same record again. */
static enum rbi_ring_outcome walk(struct rbi_ring *ring, struct rbi_lane *lane,
                                  bool (*visit)(struct rbi_ring *, struct rbi_lane *, uint64_t position, uint64_t word, void *),
                                  void *context)
{
    /* reclaim after tail could have moved on by laps; the other way round it cannot. */
    uint64_t end = position_of(ring, rbi_load_total64(&lane->cursors->tail));
    uint64_t position = load_reclaim(ring, lane);
    if (distance(ring, end, position) > (int64_t)cells_of_ring(ring)) return RBI_RING_CORRUPT;
    while (distance(ring, position, end) < 0) {
        if (!has_pages(ring, lane, position)) return RBI_RING_CORRUPT;
        uint64_t word = load_word(ring, lane, position);
        if (!word_is_of(ring, word, position)) {
            uint64_t reclaimed_to = load_reclaim(ring, lane);
            if (distance(ring, reclaimed_to, position) <= 0) return RBI_RING_CORRUPT;
            position = reclaimed_to;
            continue;
        }
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        if (visit(ring, lane, position, word, context)) position = advanced(ring, position, word_length(ring, word));
    }
    return RBI_RING_OK;
}

struct census {
    uint32_t kinds;
    uint64_t records;
};

static bool count_record(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word, void *context)
{
    (void)ring;
    (void)lane;
    (void)position;
    struct census *census = context;
    if (census->kinds >> word_kind(word) & 1) census->records++;
    return true;
}

static enum rbi_ring_outcome lane_census(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t *records, uint32_t kinds)
{
    struct census census = {.kinds = kinds, .records = 0};
    enum rbi_ring_outcome outcome = walk(ring, lane, count_record, &census);
    *records += census.records;
    return outcome;
}

enum rbi_ring_outcome rbi_ring_census(struct rbi_ring *ring, uint64_t *records, uint32_t kinds)
{
    *records = 0;
    for (uint32_t i = 0; i < ring->lane_count; i++)
        if (lane_census(ring, &ring->lanes[i], records, kinds) != RBI_RING_OK) return RBI_RING_CORRUPT;
    return RBI_RING_OK;
}

static bool count_reference(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word, void *context)
{
    enum rbi_kind kind = word_kind(word);
    bool is_message = kind == RBI_KIND_READY || kind == RBI_KIND_TAKEN || kind == RBI_KIND_RETURNED;
    /* relaxed: [E1] through the word */
    if (is_message && rbi_load_relaxed64(&slot_at(ring, lane, position)->size) & RBI_REFERENCE) ++*(uint64_t *)context;
    return true;
}

enum rbi_ring_outcome rbi_ring_references(struct rbi_ring *ring, uint64_t *records)
{
    *records = 0;
    for (uint32_t i = 0; i < ring->lane_count; i++)
        if (walk(ring, &ring->lanes[i], count_reference, records) != RBI_RING_OK) return RBI_RING_CORRUPT;
    return RBI_RING_OK;
}

/** Whether counting the lane's records by its cursors would go wrong, reclaim having been moved as far as it goes. */
static enum rbi_ring_outcome find_irregular(struct rbi_ring *ring, struct rbi_lane *lane, bool *found)
{
    uint64_t irregular = rbi_load_total64(&lane->cursors->irregular);
    *found = distance(ring, irregular, load_reclaim(ring, lane)) > 0;
    if (!*found) return RBI_RING_OK;
    enum rbi_ring_outcome outcome = reclaim(ring, lane, cells_of_ring(ring));
    *found = distance(ring, irregular, load_reclaim(ring, lane)) > 0;
    return outcome;
}

/** How many lanes can hold anything: one, in a ring that has never been stuck. */
static uint32_t lanes_used(const struct rbi_ring *ring)
{
    uint64_t epochs = rbi_load_total64(&ring->order->put_epoch);
    return epochs < ring->lane_count ? (uint32_t)epochs + 1 : ring->lane_count;
}

enum { ITEMS = 1u << RBI_KIND_READY | 1u << RBI_KIND_RETURNED };

/** Count the items: by the cursors where that is right, else the records of these kinds. */
static enum rbi_ring_outcome count_items(struct rbi_ring *ring, uint64_t *items, uint32_t kinds)
{
    *items = 0;
    for (uint32_t i = 0, used = lanes_used(ring); i < used; i++) {
        struct rbi_lane *lane = &ring->lanes[i];
        bool irregular;
        if (find_irregular(ring, lane, &irregular) != RBI_RING_OK) return RBI_RING_CORRUPT;
        if (irregular) {
            if (lane_census(ring, lane, items, kinds) != RBI_RING_OK) return RBI_RING_CORRUPT;
        } else {
            uint64_t head = rbi_load_total64(&lane->cursors->head);
            *items += items_between(ring, head, rbi_load_total64(&lane->cursors->tail));
        }
    }
    return RBI_RING_OK;
}

/* ---- put ---- */

enum {
    RECLAIM_CELLS = 64,      /* more than a put needs */
    RECLAIM_NEAR_END = 1024, /* to see whether the ring is empty */
};

/** Whether `cells` cells from `position` on, and one more for an END, were free when this process last looked. */
static inline bool was_reclaimed(const struct rbi_ring *ring, uint64_t position, uint64_t cells, uint64_t reclaimed_to)
{
    int64_t used = distance(ring, position, reclaimed_to);
    return used >= 0 && (uint64_t)used + cells < cells_of_ring(ring);
}

/** Look again for room for `cells` cells at `position`. */
static enum rbi_ring_outcome make_room(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t cells)
{
    uint64_t reclaimed_to = load_reclaim(ring, lane);
    while (!was_reclaimed(ring, position, cells, reclaimed_to)) {
        uint64_t before = reclaimed_to;
        /* What this put needs and some more: a whole lap at once would be half a millisecond in which this producer does nothing. */
        if (reclaim(ring, lane, cells + RECLAIM_CELLS) != RBI_RING_OK) return RBI_RING_CORRUPT;
        reclaimed_to = load_reclaim(ring, lane);
        if (reclaimed_to == before) break; /* else it has moved, perhaps by another's hand and not as far as it could */
    }
    /* release: another thread of this process that finds room by this value needs our acquire of [E3], too. */
    rbi_store_release64(&lane->reclaim_seen, reclaimed_to);
    return was_reclaimed(ring, position, cells, reclaimed_to) ? RBI_RING_OK : RBI_RING_FULL;
}

/** Whether so many more items are within the bound.  Items that head has gone past, but that are or may yet become messages, count. */
static enum rbi_ring_outcome below_max_items(struct rbi_ring *ring, uint64_t more)
{
    uint64_t items = 0;
    if (count_items(ring, &items, ITEMS | 1u << RBI_KIND_CLAIMED | 1u << RBI_KIND_SKIPPED) != RBI_RING_OK) return RBI_RING_CORRUPT;
    return items + more <= ring->max_items ? RBI_RING_OK : RBI_RING_FULL;
}

/** Ask for the lines that puts of the same size will write soon.  They lie in the consumers' caches, and a locked instruction waits
 *  for every store before it, so each miss would stand in full on the way of a put. */
static inline void fetch_ahead(const struct rbi_ring *ring, const struct rbi_lane *lane, uint64_t position, uint64_t cells)
{
    uint64_t ahead = index_of(ring, position + 4 * cells);
    __builtin_prefetch(&lane->slots[ahead], 1);
    __builtin_prefetch(lane->data + (ahead << ring->cell_log2), 1);
}

/** END stands at tail of the lane for `epoch`.  If it is from the lane's last turn, open the lane; if it ends this one, say so in
 *  put_epoch.  CORRUPT if it is neither and nobody has moved on. */
static enum rbi_ring_outcome meet_end_at_tail(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t epoch, uint64_t position,
                                              uint64_t word)
{
    int32_t age = age_of_end(word, epoch);
    if (age > 0) {
        help_tail(ring, lane, position, word);
        RBI_POINT(lane_opened);
    } else if (age == 0) {
        rbi_cas_total64(&ring->order->put_epoch, epoch, epoch + word_cells(ring, word));
        RBI_POINT(put_epoch_moved);
    } else if (rbi_load_total64(&ring->order->put_epoch) == epoch) {
        return RBI_RING_CORRUPT;
    }
    return RBI_RING_OK;
}

/** The shortest lap that ends in a GAP at `position`, in cells: the older the ring, the longer.  See the head of the file. */
static uint64_t least_lap(const struct rbi_ring *ring, uint64_t position)
{
    uint64_t by_age = lap_of(ring, position) >> ring->age_shift;
    return by_age > ring->least_lap ? by_age : ring->least_lap;
}

/** Put a GAP at tail, so that the next record lies at the front.  After tail was read as `tail`, the word there was read as `word`, which
 *  is not of this lap, and then reclaim was found not to be beyond.  So `word` is not of a later lap either. */
static void begin_again(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t tail, uint64_t word)
{
    uint64_t position = position_of(ring, tail);
    uint64_t gap = word_of(ring, position, cells_of_ring(ring) - index_of(ring, position), 0, RBI_KIND_GAP);
    if (!rbi_cas_total64(&slot_at(ring, lane, position)->word, word, gap)) return; /* another one was quicker */
    RBI_POINT(began_again);
    help_tail(ring, lane, position, gap);
}

/** A claim of `cells` cells at `tail` comes to where pages end, or near it.  OK: go on.  EMPTY: look again.  UNRESERVED: so many cells
 *  must have pages.  CORRUPT. */
static enum rbi_ring_outcome look_ahead(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t tail, uint64_t cells,
                                        uint64_t *wanted)
{
    const uint64_t all = cells_of_ring(ring);
    uint64_t position = position_of(ring, tail), index = index_of(ring, position);
    uint64_t reserved = look_at_reserved(ring, lane);
    /* A slot behind it, for a GAP or an END.  A record that wraps needs pages up to the end; at the beginning they are there already. */
    *wanted = index + cells < all ? index + cells + 1 : all;
    if (index >= reserved) return RBI_RING_UNRESERVED;
    bool lacks = *wanted > reserved;
    if (!lacks && (reserved == all || *wanted <= reserved - reserved / 4)) return RBI_RING_OK;
    uint64_t word = load_word(ring, lane, position);
    if (rbi_load_total64(&lane->cursors->tail) != tail) return RBI_RING_EMPTY;
    if (word_is_of(ring, word, position)) return RBI_RING_OK; /* nothing is claimed here any more: the claim goes past it */
    enum rbi_ring_outcome otherwise = lacks ? RBI_RING_UNRESERVED : RBI_RING_OK;
    /* In front there must be room for it; and while there is room here, too, a lap should not be given away for little. */
    if (index < (lacks ? 1 : reserved / 2) || cells >= reserved || reserved < least_lap(ring, position)) return otherwise;
    if (reclaim(ring, lane, lacks ? all : RECLAIM_NEAR_END) != RBI_RING_OK) return RBI_RING_CORRUPT;
    if (load_reclaim(ring, lane) != position) return otherwise;
    begin_again(ring, lane, tail, word);
    return RBI_RING_EMPTY;
}

enum rbi_ring_outcome rbi_ring_claim(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t size)
{
    uint64_t cells = cells_for(ring, size);
    for (;;) {
        uint64_t epoch = rbi_load_total64(&ring->order->put_epoch);
        struct rbi_lane *lane = lane_of(ring, epoch);
        uint64_t tail = rbi_load_total64(&lane->cursors->tail);
        uint64_t position = position_of(ring, tail);
        record->lane = (uint32_t)(lane - ring->lanes);
        /* acquire: [E4] as this process last saw it, perhaps in another thread. */
        if (index_of(ring, position) + cells >= rbi_load_acquire64(&lane->roomy)) {
            enum rbi_ring_outcome pages = look_ahead(ring, lane, tail, cells, &record->cells);
            if (pages == RBI_RING_EMPTY) continue;
            if (pages != RBI_RING_OK) return pages;
        }
        struct rbi_slot *slot = slot_at(ring, lane, position);
        uint64_t word = rbi_load_total64(&slot->word);
        if (rbi_load_total64(&lane->cursors->tail) != tail) continue; /* `word` may be of a later lap: see the head of the file */
        if (word_is_of(ring, word, position)) {
            if (!sane(ring, word)) return RBI_RING_CORRUPT;
            if (word_kind(word) == RBI_KIND_END) {
                if (meet_end_at_tail(ring, lane, epoch, position, word) != RBI_RING_OK) return RBI_RING_CORRUPT;
            } else {
                help_tail(ring, lane, position, word);
                back_off(ring);
            }
            continue;
        }
        enum rbi_ring_outcome room = RBI_RING_OK;
        /* acquire: [E3] as this process last saw it, perhaps in another thread. */
        if (!was_reclaimed(ring, position, cells, rbi_load_acquire64(&lane->reclaim_seen)))
            room = make_room(ring, lane, position, cells);
        if (room == RBI_RING_OK && ring->max_items) room = below_max_items(ring, 1);
        if (room != RBI_RING_OK) {
            uint64_t reclaimed_to = load_reclaim(ring, lane);
            if (rbi_load_total64(&lane->cursors->tail) != tail) continue;
            return distance(ring, position, reclaimed_to) < 0 ? RBI_RING_CORRUPT : room; /* reclaim never passes tail */
        }
        /* The linearization of the reservation; it names its owner in the same word. [T3] */
        if (!rbi_cas_total64(&slot->word, word, word_of(ring, position, cells, owner, RBI_KIND_CLAIMED))) {
            back_off(ring);
            continue;
        }
        RBI_POINT(claimed);
        /* Not help_tail: tail is most likely still ours, and one load less matters here.  Losing is fine. */
        rbi_cas_total64(&lane->cursors->tail, tail, cursor_past(ring, tail, cells));
        RBI_POINT(tail_moved);
        record->position = position;
        record->cells = cells;
        record->size = size;
        record->reference = false;
        record->attempts = 0;
        record->turn = 0;
        record->payload = payload_at(ring, lane, position, size);
        fetch_ahead(ring, lane, position, cells);
        return RBI_RING_OK;
    }
}

void rbi_ring_look_ahead(struct rbi_ring *ring, uint64_t cells)
{
    struct rbi_lane *lane = lane_of(ring, rbi_load_total64(&ring->order->put_epoch));
    uint64_t tail = rbi_load_total64(&lane->cursors->tail), wanted;
    uint64_t end = index_of(ring, position_of(ring, tail)) + cells;
    /* acquire: as in a claim.  The outcome is the first claim's to find. */
    if (end >= rbi_load_acquire64(&lane->roomy)) look_ahead(ring, lane, tail, cells, &wanted);
}

void rbi_ring_refer(struct rbi_record *record, uint64_t size, uint64_t run)
{
    for (uint32_t i = 0; i < RBI_REFERENCE_BYTES; i++) record->payload[i] = (uint8_t)(run >> (8 * i));
    record->size = size;
    record->reference = true;
}

uint64_t rbi_ring_reference(const struct rbi_record *record)
{
    uint64_t run = 0;
    for (uint32_t i = 0; i < RBI_REFERENCE_BYTES; i++) run |= (uint64_t)record->payload[i] << (8 * i);
    return run;
}

enum rbi_ring_outcome rbi_ring_publish(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner)
{
    struct rbi_slot *slot = slot_at(ring, &ring->lanes[record->lane], record->position);
    uint64_t claimed = word_of(ring, record->position, record->cells, owner, RBI_KIND_CLAIMED);
    /* [E11 size] pairs with describe(): who sees it sees our claim, too, and does not take it for an earlier record's.  To who comes
     * for this record the CAS below carries it. */
    rbi_store_release64(&slot->size, record->size | (record->reference ? RBI_REFERENCE : 0));
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
    rbi_ring_set_returned(ring);
    return RBI_RING_OK;
}

/** CLAIMED or SKIPPED by `owner` -> RELEASED; only a consumer's skip may come in between.  [E2]: its writes stay before it. */
static bool void_claim(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    rbi_atomic64 *shared = &slot_at(ring, lane, position)->word;
    mark_irregular(ring, lane, position, word_cells(ring, word));
    if (rbi_cas_total64(shared, word, word_with(word, 0, RBI_KIND_RELEASED))) return true;
    uint64_t skipped = word_with(word, word_owner(word), RBI_KIND_SKIPPED);
    return rbi_cas_total64(shared, skipped, word_with(word, 0, RBI_KIND_RELEASED));
}

enum rbi_ring_outcome rbi_ring_void(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner)
{
    uint64_t claimed = word_of(ring, record->position, record->cells, owner, RBI_KIND_CLAIMED);
    bool done = void_claim(ring, &ring->lanes[record->lane], record->position, claimed);
    RBI_POINT(claim_voided);
    return done ? RBI_RING_OK : RBI_RING_CORRUPT;
}

/* ---- get ---- */

/** Fill *record from a word that says READY, RETURNED or TAKEN.  The size counts only if the word is still the same afterwards. */
static bool describe(struct rbi_ring *ring, struct rbi_record *record, struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    record->lane = (uint32_t)(lane - ring->lanes);
    record->position = position;
    record->cells = word_cells(ring, word);
    /* acquire: [E11 size], for the caller looks at the word again; that this record's size is there is [E1]. */
    uint64_t size = rbi_load_acquire64(&slot_at(ring, lane, position)->size);
    record->size = size & RBI_SIZE_MASK;
    record->reference = size & RBI_REFERENCE;
    record->attempts = size >> RBI_ATTEMPTS_SHIFT & RBI_ATTEMPTS_MAX;
    record->turn = size >> RBI_TURN_SHIFT & RBI_TURN_MAX;
    record->payload = payload_at(ring, lane, position, record->reference ? 0 : record->size);
    if (record->reference) return record->cells == 1;
    return record->size <= RBI_INLINE_BYTES || record->size <= record->cells << ring->cell_log2;
}

static void write_attempts(struct rbi_ring *ring, const struct rbi_record *record, struct rbi_lane *lane)
{
    /* [E11 size], as in rbi_ring_publish(); who takes the record next has it by [E1] through the word. */
    rbi_store_release64(&slot_at(ring, lane, record->position)->size,
                        record->size | (uint64_t)record->attempts << RBI_ATTEMPTS_SHIFT | (uint64_t)record->turn << RBI_TURN_SHIFT |
                            (record->reference ? RBI_REFERENCE : 0));
}

/** Count an attempt on a record that we have taken, and give it a turn.  An attempt counts also if its process dies in the next instruction. */
static void count_attempt(struct rbi_ring *ring, struct rbi_record *record, struct rbi_lane *lane)
{
    if (record->attempts < RBI_ATTEMPTS_MAX) record->attempts++;
    record->turn = (record->turn + 1) & RBI_TURN_MAX;
    write_attempts(ring, record, lane);
}

/** Take a READY or RETURNED record whose word was read as `word`.  EMPTY: it changed, look again. */
static enum rbi_ring_outcome take_record(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit,
                                         struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    bool valid = describe(ring, record, lane, position, word);
    if (!valid || record->size > limit) {
        if (load_word(ring, lane, position) != word) return RBI_RING_EMPTY; /* so the size was another record's */
        return valid ? RBI_RING_SMALL : RBI_RING_CORRUPT;
    }
    /* acquire on success: [E1]; the size read above is this record's, for the word did not change in between. */
    if (!rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_with(word, owner, RBI_KIND_TAKEN)))
        return RBI_RING_EMPTY;
    RBI_POINT(record_owned);
    /* What is given back bears the same word each time: it may have been taken, counted and given back since its size word was read.  So
     * attempts and turn are read again.  Size and reference cannot have changed, for the record is the same one; if they have, something
     * has written over them, and what was checked above no longer holds. */
    if (word_kind(word) == RBI_KIND_RETURNED) {
        const struct rbi_record before = *record;
        describe(ring, record, lane, position, word);
        if (record->size != before.size || record->reference != before.reference) return RBI_RING_CORRUPT;
    }
    count_attempt(ring, record, lane);
    return RBI_RING_OK;
}

/** Look for a RETURNED record in one lane, oldest first.  EMPTY: none, or the hint has changed since it was read as `hint`. */
static enum rbi_ring_outcome take_returned_in(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit,
                                              struct rbi_lane *lane, uint64_t hint)
{
    if (reclaim(ring, lane, cells_of_ring(ring)) != RBI_RING_OK) return RBI_RING_CORRUPT;
    /* What was skipped and then published while head still stood at it is RETURNED at head.  Past it before we look, or we would clear
     * the hint, and head would then go past it for good. */
    help_head(ring, lane);
    uint64_t position = load_reclaim(ring, lane);
    uint64_t end = position_of(ring, rbi_load_total64(&lane->cursors->head));
    while (distance(ring, position, end) < 0) {
        uint64_t word = peek_word(ring, lane, position);
        if (!word_is_of(ring, word, position)) { /* released and reclaimed while we walked */
            uint64_t reclaimed_to = load_reclaim(ring, lane);
            if (distance(ring, reclaimed_to, position) <= 0) return RBI_RING_CORRUPT;
            position = reclaimed_to;
            continue;
        }
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        if (word_kind(word) == RBI_KIND_RETURNED) {
            /* An older one may have been returned behind our back, before this one was put: then begin again. */
            if (rbi_load_total64(&ring->order->returned) != hint) return RBI_RING_EMPTY;
            enum rbi_ring_outcome outcome = take_record(ring, record, owner, limit, lane, position, word);
            RBI_POINT(retaken);
            if (outcome != RBI_RING_EMPTY) return outcome;
            continue;
        }
        position = advanced(ring, position, word_length(ring, word));
    }
    return RBI_RING_EMPTY;
}

/** Look for a RETURNED record, oldest lane first.  `hint` is `returned` as read, with `some` set.
 *  EMPTY: there is none, and the hint has been cleared if nobody set it anew; or it changed: look again in any case.
 *  ASIDE: there is none here. */
static enum rbi_ring_outcome take_returned(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit,
                                           uint64_t hint)
{
    uint64_t newest = rbi_load_total64(&ring->order->put_epoch);
    uint32_t used = lanes_used(ring);
    for (uint64_t epoch = newest - (used - 1); epoch != newest + 1; epoch++) {
        enum rbi_ring_outcome outcome = take_returned_in(ring, record, owner, limit, lane_of(ring, epoch), hint);
        if (outcome != RBI_RING_EMPTY) return outcome;
    }
    if (ring->looks_aside) {
        if (rbi_load_total64(&ring->order->returned) != hint) return RBI_RING_EMPTY;
        record->position = hint;
        return RBI_RING_ASIDE;
    }
    rbi_ring_clear_returned(ring, hint);
    return RBI_RING_EMPTY;
}

/** Whether a READY record follows the claimed one at `position`, here or, beyond END, perhaps in the next lane. */
static bool ready_behind(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    uint64_t walked = 0;
    for (;;) {
        uint64_t cells = word_cells(ring, word);
        walked += cells;
        if (cells == 0 || walked >= cells_of_ring(ring)) return false;
        position = advanced(ring, position, cells);
        word = peek_word(ring, lane, position);
        if (!word_is_of(ring, word, position)) return false;
        if (word_kind(word) == RBI_KIND_READY || word_kind(word) == RBI_KIND_END) return true;
    }
}

/** The record at head is claimed and a message waits behind it: give its producer a moment, then go past. */
static void skip(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word)
{
    for (uint32_t look = 0; look < ring->patience; look++) {
        if (load_word(ring, lane, position) != word) return;
        rbi_pause();
    }
    help_tail(ring, lane, position, word); /* head must not pass tail */
    mark_irregular(ring, lane, position, word_cells(ring, word));
    RBI_POINT(skip_marked);
    rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_with(word, word_owner(word), RBI_KIND_SKIPPED));
    RBI_POINT(skipped);
}

/** END stands at head of the lane for `epoch`.  The counterpart of meet_end_at_tail(). */
static enum rbi_ring_outcome meet_end_at_head(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t epoch, uint64_t head,
                                              uint64_t word)
{
    int32_t age = age_of_end(word, epoch);
    if (age > 0) {
        help_tail(ring, lane, position_of(ring, head), word); /* head must not pass tail */
        advance_head(ring, lane, head, word);
    } else if (age == 0) {
        /* put_epoch first: get_epoch is never ahead of it.  [T7 lane] pairs with rbi_ring_take() and is_quiet(). */
        rbi_cas_total64(&ring->order->put_epoch, epoch, epoch + word_cells(ring, word));
        rbi_cas_total64(&ring->order->get_epoch, epoch, epoch + word_cells(ring, word));
        RBI_POINT(get_epoch_moved);
    } else if (rbi_load_total64(&ring->order->get_epoch) == epoch) {
        return RBI_RING_CORRUPT;
    }
    return RBI_RING_OK;
}

enum rbi_ring_outcome rbi_ring_take(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit)
{
    for (;;) {
        uint64_t hint = rbi_load_total64(&ring->order->returned);
        if (hint & 1) {
            enum rbi_ring_outcome outcome = take_returned(ring, record, owner, limit, hint);
            if (outcome != RBI_RING_EMPTY) return outcome;
            continue;
        }
        uint64_t epoch = rbi_load_total64(&ring->order->get_epoch);
        struct rbi_lane *lane = lane_of(ring, epoch);
        uint64_t head = rbi_load_total64(&lane->cursors->head);
        uint64_t position = position_of(ring, head);
        uint64_t word = peek_word(ring, lane, position);
        bool of_this_lap = word_is_of(ring, word, position);
        if (of_this_lap && !sane(ring, word)) return RBI_RING_CORRUPT;
        enum rbi_kind kind = of_this_lap ? word_kind(word) : RBI_KIND_NONE;
        switch (kind) {
        case RBI_KIND_READY: {
            if (rbi_load_total64(&ring->order->returned) != hint) continue;   /* [T6] an older one first */
            if (rbi_load_total64(&ring->order->get_epoch) != epoch) continue; /* [T7] it may be of a later epoch */
            enum rbi_ring_outcome outcome = take_record(ring, record, owner, limit, lane, position, word);
            if (outcome == RBI_RING_EMPTY) {
                back_off(ring);
                continue;
            }
            if (outcome == RBI_RING_OK) {
                RBI_POINT(taken);
                advance_head(ring, lane, head, word);
            }
            return outcome;
        }
        case RBI_KIND_NONE:
        case RBI_KIND_CLAIMED:
            if (kind == RBI_KIND_CLAIMED && ready_behind(ring, lane, position, word)) {
                skip(ring, lane, position, word);
                continue;
            }
            /* Nothing there, if all this was so at one moment.  (And a word of another lap may be of a later one.) */
            if (rbi_load_total64(&lane->cursors->head) != head || peek_word(ring, lane, position) != word ||
                rbi_load_total64(&ring->order->returned) != hint || rbi_load_total64(&ring->order->get_epoch) != epoch)
                continue;
            return kind == RBI_KIND_NONE ? RBI_RING_EMPTY : RBI_RING_PENDING;
        case RBI_KIND_SKIPPED:
        case RBI_KIND_TAKEN:
        case RBI_KIND_RETURNED:
        case RBI_KIND_RELEASED:
        case RBI_KIND_GAP:
            pass_at_head(ring, lane, head, word);
            if (kind == RBI_KIND_TAKEN) back_off(ring);
            continue;
        case RBI_KIND_END:
            if (meet_end_at_head(ring, lane, epoch, head, word) != RBI_RING_OK) return RBI_RING_CORRUPT;
            continue;
        }
        return RBI_RING_CORRUPT;
    }
}

/* A position has at most 58 bits. */
enum { LANE_SHIFT = 60 };

uint64_t rbi_ring_number_of(const struct rbi_record *record) { return (uint64_t)record->lane << LANE_SHIFT | record->position; }

enum rbi_ring_outcome rbi_ring_find_taken(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t number)
{
    uint64_t position = number & ((UINT64_C(1) << LANE_SHIFT) - 1);
    if (number >> LANE_SHIFT >= ring->lane_count || position > position_mask(ring)) return RBI_RING_CORRUPT;
    struct rbi_lane *lane = &ring->lanes[number >> LANE_SHIFT];
    uint64_t word = peek_word(ring, lane, position);
    if (!word_is_of(ring, word, position) || word_kind(word) != RBI_KIND_TAKEN || word_owner(word) != owner || !sane(ring, word))
        return RBI_RING_CORRUPT;
    return describe(ring, record, lane, position, word) ? RBI_RING_OK : RBI_RING_CORRUPT;
}

enum rbi_kind rbi_ring_fate(struct rbi_ring *ring, uint64_t number, uint32_t *owner, bool *reference)
{
    uint64_t position = number & ((UINT64_C(1) << LANE_SHIFT) - 1);
    *owner = 0;
    *reference = false;
    if (number >> LANE_SHIFT >= ring->lane_count || position > position_mask(ring)) return RBI_KIND_NONE;
    struct rbi_lane *lane = &ring->lanes[number >> LANE_SHIFT];
    uint64_t word = peek_word(ring, lane, position);
    if (!word_is_of(ring, word, position)) return RBI_KIND_NONE;
    *owner = word_owner(word);
    *reference = rbi_load_relaxed64(&slot_at(ring, lane, position)->size) & RBI_REFERENCE; /* relaxed: [E1] through the word */
    return word_kind(word);
}

void rbi_ring_release(struct rbi_ring *ring, const struct rbi_record *record)
{
    /* [E2 release] pairs with reclaim(): our reads of the payload stay before it.
     * [T2] total: the caller then looks for producers that wait for room.  A store suffices: the record is ours alone. */
    rbi_store_total64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,
                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));
    RBI_POINT(released);
}

void rbi_ring_uncount_attempt(struct rbi_ring *ring, struct rbi_record *record)
{
    if (record->attempts == 0 || record->attempts == RBI_ATTEMPTS_MAX) return; /* the latter: which may be many more */
    record->attempts--;
    write_attempts(ring, record, &ring->lanes[record->lane]);
}

void rbi_ring_give_back(struct rbi_ring *ring, const struct rbi_record *record)
{
    struct rbi_lane *lane = &ring->lanes[record->lane];
    mark_irregular(ring, lane, record->position, record->cells);
    RBI_POINT(nack_marked);
    /* [E1] anew: the next taker's reads come after ours.  A store suffices: the record is ours alone. */
    rbi_store_total64(&slot_at(ring, lane, record->position)->word,
                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RETURNED));
    RBI_POINT(given_back);
    rbi_ring_set_returned(ring);
}

/* ---- recovery ---- */

struct recovery {
    uint32_t owner;
    bool some_returned;
    bool undone;
};

static bool undo(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t position, uint64_t word, void *context)
{
    struct recovery *recovery = context;
    if (word_kind(word) == RBI_KIND_RETURNED) recovery->some_returned = true;
    if (word_owner(word) != recovery->owner) return true;
    if (word_kind(word) != RBI_KIND_END) recovery->undone = true; /* an END's owner is none */
    switch (word_kind(word)) {
    case RBI_KIND_CLAIMED:
    case RBI_KIND_SKIPPED:
        void_claim(ring, lane, position, word);
        RBI_POINT(recovery_voided);
        return false;
    case RBI_KIND_TAKEN:
        mark_irregular(ring, lane, position, word_cells(ring, word));
        rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_with(word, 0, RBI_KIND_RETURNED));
        RBI_POINT(recovery_returned);
        return false; /* see it again, as RETURNED */
    default:
        return true;
    }
}

static enum rbi_ring_outcome recover_lane(struct rbi_ring *ring, struct rbi_lane *lane, struct recovery *recovery)
{
    /* It may have died between its claim and moving tail: the record *at* tail counts, too. */
    for (;;) {
        uint64_t tail = rbi_load_total64(&lane->cursors->tail);
        uint64_t position = position_of(ring, tail);
        uint64_t word = peek_word(ring, lane, position);
        if (rbi_load_total64(&lane->cursors->tail) != tail) continue;
        if (!word_is_of(ring, word, position) || word_kind(word) == RBI_KIND_END) break;
        if (!sane(ring, word)) return RBI_RING_CORRUPT;
        help_tail(ring, lane, position, word);
    }
    RBI_POINT(recovery_tail_helped);
    enum rbi_ring_outcome outcome = walk(ring, lane, undo, recovery);
    if (outcome != RBI_RING_OK) return outcome;
    help_head(ring, lane); /* it may have died between its take and moving head */
    return RBI_RING_OK;
}

enum rbi_ring_outcome rbi_ring_recover(struct rbi_ring *ring, uint32_t owner)
{
    struct recovery recovery = {.owner = owner, .some_returned = false};
    for (uint32_t i = 0; i < ring->lane_count; i++)
        if (recover_lane(ring, &ring->lanes[i], &recovery) != RBI_RING_OK) return RBI_RING_CORRUPT;
    RBI_POINT(recovery_swept);
    /* Also for records that were only met: who returned them may have died before it set the hint. */
    if (recovery.some_returned) rbi_ring_set_returned(ring);
    RBI_POINT(recovery_hinted);
    ring->undone = recovery.undone || recovery.some_returned;
    return RBI_RING_OK;
}

/* ---- going round what is stuck ---- */

uint64_t rbi_ring_stuck_at(struct rbi_ring *ring, uint64_t size)
{
    struct rbi_lane *lane = lane_of(ring, rbi_load_total64(&ring->order->put_epoch));
    uint64_t tail = position_of(ring, rbi_load_total64(&lane->cursors->tail));
    if (make_room(ring, lane, tail, cells_for(ring, size)) == RBI_RING_OK) return 0; /* it is max_items that makes it full */
    struct rbi_record stuck = {.lane = (uint32_t)(lane - ring->lanes), .position = load_reclaim(ring, lane)};
    uint64_t word = peek_word(ring, lane, stuck.position);
    if (!word_is_of(ring, word, stuck.position)) return 0;
    /* Whoever returned it may be stopped, or have died, before he set the hint; consumers would not look. */
    if (word_kind(word) == RBI_KIND_RETURNED && !(rbi_load_total64(&ring->order->returned) & 1)) rbi_ring_set_returned(ring);
    if (word_kind(word) != RBI_KIND_TAKEN && word_kind(word) != RBI_KIND_SKIPPED) return 0;
    /* Only if more has been consumed behind it: else the ring is full of what waits, and that is what full means. */
    uint64_t behind = advanced(ring, stuck.position, word_cells(ring, word));
    if (distance(ring, position_of(ring, rbi_load_total64(&lane->cursors->head)), behind) <= 0) return 0;
    return rbi_ring_number_of(&stuck) + 1;
}

/** Whether nobody holds anything in the lane, and nobody will before it is opened for `epoch`.  [T7]: consumers have left it. */
static bool is_quiet(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t epoch)
{
    if (reclaim(ring, lane, cells_of_ring(ring)) != RBI_RING_OK) return false;
    uint64_t tail = position_of(ring, rbi_load_total64(&lane->cursors->tail));
    if (load_reclaim(ring, lane) != tail) return false;
    uint64_t word = peek_word(ring, lane, tail);
    if (!word_is_of(ring, word, tail)) return true; /* never used: in a lane that was, tail stands at END */
    int32_t age = word_kind(word) == RBI_KIND_END ? age_of_end(word, epoch) : 0;
    return age > 0 && rbi_load_total64(&ring->order->get_epoch) > epoch - (uint64_t)age;
}

/** Whether a lane that is quiet has the pages for a claim of `cells` cells, where its tail stands or at its front.  *wanted: how many of
 *  its cells must have pages for the former. */
static bool has_pages_for(struct rbi_ring *ring, struct rbi_lane *lane, uint64_t cells, uint64_t *wanted)
{
    uint64_t tail = position_of(ring, rbi_load_total64(&lane->cursors->tail));
    uint64_t index = index_of(ring, tail);
    if (word_is_of(ring, peek_word(ring, lane, tail), tail)) index++; /* an END, which is passed when the lane is opened */
    *wanted = index + cells < cells_of_ring(ring) ? index + cells + 1 : cells_of_ring(ring);
    if (has_pages_up_to(ring, lane, *wanted)) return true;
    return has_pages_up_to(ring, lane, index + 1) && has_pages_up_to(ring, lane, cells + 1);
}

/** Close the open lane, for which put_epoch was read as `epoch`, and lead `step` epochs on.  Whether it is closed, or was already. */
static bool close_lane(struct rbi_ring *ring, uint64_t epoch, uint64_t step)
{
    struct rbi_lane *lane = lane_of(ring, epoch);
    uint64_t tail = rbi_load_total64(&lane->cursors->tail);
    uint64_t position = position_of(ring, tail);
    if (!has_pages(ring, lane, position)) return false;
    uint64_t word = load_word(ring, lane, position);
    if (rbi_load_total64(&lane->cursors->tail) != tail || rbi_load_total64(&ring->order->put_epoch) != epoch) return true;
    if (!word_is_of(ring, word, position)) {
        /* The cell is free: every claim has left one.  The next lane is still quiet if this succeeds: it could only have been opened
         * after an END here, which would have changed the word. */
        rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_of(ring, position, step, tag_of(epoch), RBI_KIND_END));
        RBI_POINT(lane_closed);
    }
    return true; /* the next claim sees what became of it */
}

enum rbi_ring_outcome rbi_ring_bypass(struct rbi_ring *ring, uint64_t size, struct rbi_record *record)
{
    uint64_t epoch = rbi_load_total64(&ring->order->put_epoch);
    uint64_t wanted, cells = cells_for(ring, size);
    bool lacks = false;
    for (uint64_t step = 1; step < ring->lane_count; step++) { /* over lanes in which another one is stuck as well */
        struct rbi_lane *next = lane_of(ring, epoch + step);
        if (!is_quiet(ring, next, epoch + step)) continue;
        if (has_pages_for(ring, next, cells, &wanted)) return close_lane(ring, epoch, step) ? RBI_RING_OK : RBI_RING_FULL;
        if (lacks) continue;
        record->lane = (uint32_t)(next - ring->lanes);
        record->cells = wanted;
        lacks = true;
    }
    return lacks ? RBI_RING_UNRESERVED : RBI_RING_FULL;
}

bool rbi_ring_make_do(struct rbi_ring *ring, uint64_t size)
{
    struct rbi_record record;
    uint64_t cells = cells_for(ring, size);
    struct rbi_lane *lane = lane_of(ring, rbi_load_total64(&ring->order->put_epoch));
    uint64_t tail = rbi_load_total64(&lane->cursors->tail);
    uint64_t position = position_of(ring, tail), index = index_of(ring, position);
    if (index && has_pages(ring, lane, position) && has_pages_up_to(ring, lane, cells + 1)) {
        uint64_t word = load_word(ring, lane, position);
        if (rbi_load_total64(&lane->cursors->tail) != tail) return true;
        if (word_is_of(ring, word, position)) return true; /* the next claim goes past it */
        /* What comes behind the GAP must find room before it, as if the ring ended here.  In a ring that is empty it does. */
        enum rbi_ring_outcome room = make_room(ring, lane, position, cells_of_ring(ring) - index + cells);
        if (room == RBI_RING_OK || load_reclaim(ring, lane) == position) {
            begin_again(ring, lane, tail, word);
            return true;
        }
    }
    return rbi_ring_bypass(ring, size, &record) == RBI_RING_OK;
}

/* ---- looking ---- */

enum rbi_ring_outcome rbi_ring_count(struct rbi_ring *ring, uint64_t *items) { return count_items(ring, items, ITEMS); }

uint64_t rbi_ring_count_roughly(struct rbi_ring *ring)
{
    uint64_t items = 0;
    for (uint32_t i = 0, used = lanes_used(ring); i < used; i++) {
        struct rbi_lane *lane = &ring->lanes[i];
        uint64_t head = rbi_load_total64(&lane->cursors->head);
        items += items_between(ring, head, rbi_load_total64(&lane->cursors->tail));
    }
    return items;
}

bool rbi_ring_may_take(struct rbi_ring *ring)
{
    if (rbi_load_total64(&ring->order->returned) & 1) return true;
    struct rbi_lane *lane = lane_of(ring, rbi_load_total64(&ring->order->get_epoch));
    uint64_t position = position_of(ring, rbi_load_total64(&lane->cursors->head));
    uint64_t word = peek_word(ring, lane, position);
    if (!word_is_of(ring, word, position)) return false;
    return word_kind(word) != RBI_KIND_CLAIMED || ready_behind(ring, lane, position, word);
}

bool rbi_ring_ready_at_head(struct rbi_ring *ring)
{
    struct rbi_lane *lane = lane_of(ring, rbi_load_total64(&ring->order->get_epoch));
    uint64_t position = position_of(ring, rbi_load_total64(&lane->cursors->head));
    uint64_t word = peek_word(ring, lane, position);
    return word_is_of(ring, word, position) && word_kind(word) == RBI_KIND_READY;
}

uint64_t rbi_ring_cells_for(const struct rbi_ring *ring, uint64_t size) { return cells_for(ring, size); }

uint64_t rbi_ring_cells(const struct rbi_ring *ring) { return cells_of_ring(ring); }

bool rbi_ring_has_room(struct rbi_ring *ring, uint64_t size) { return rbi_ring_has_room_for(ring, cells_for(ring, size), 1); }

bool rbi_ring_has_room_for(struct rbi_ring *ring, uint64_t cells, uint64_t items)
{
    for (;;) {
        uint64_t epoch = rbi_load_total64(&ring->order->put_epoch);
        struct rbi_lane *lane = lane_of(ring, epoch);
        uint64_t tail = rbi_load_total64(&lane->cursors->tail);
        uint64_t position = position_of(ring, tail);
        if (make_room(ring, lane, position, cells) != RBI_RING_FULL) break;
        /* Full, but perhaps closed: a claim would go on in the next lane.  Whoever looks before it claims, as a batch does, never
         * comes to claim while this says no, so the look must go on as well. */
        uint64_t word = peek_word(ring, lane, position);
        if (rbi_load_total64(&lane->cursors->tail) != tail) continue; /* `word` may be of a later lap */
        if (!word_is_of(ring, word, position) || word_kind(word) != RBI_KIND_END || age_of_end(word, epoch) > 0) return false;
        /* It may be damaged: the claim says so. */
        if (!sane(ring, word) || meet_end_at_tail(ring, lane, epoch, position, word) != RBI_RING_OK) return true;
    }
    return !ring->max_items || below_max_items(ring, items) != RBI_RING_FULL;
}

uint64_t rbi_ring_used_bytes(struct rbi_ring *ring)
{
    uint64_t sum = 0;
    for (uint32_t i = 0, used = lanes_used(ring); i < used; i++) {
        struct rbi_lane *lane = &ring->lanes[i];
        reclaim(ring, lane, cells_of_ring(ring));
        int64_t cells = distance(ring, position_of(ring, rbi_load_total64(&lane->cursors->tail)), load_reclaim(ring, lane));
        if (cells > 0 && (uint64_t)cells <= cells_of_ring(ring)) sum += (uint64_t)cells << ring->cell_log2;
    }
    return sum;
}

bool rbi_ring_span(struct rbi_ring *ring, uint32_t lane, uint64_t *first, uint64_t *count)
{
    uint64_t end = position_of(ring, rbi_load_total64(&ring->lanes[lane].cursors->tail)); /* before reclaim, as in walk() */
    uint64_t start = load_reclaim(ring, &ring->lanes[lane]);
    int64_t cells = distance(ring, end, start);
    *first = index_of(ring, start);
    *count = cells > 0 ? (uint64_t)cells : 0;
    return cells >= 0 && *count <= cells_of_ring(ring);
}

static struct rbi_lane *open_lane(struct rbi_ring *ring) { return lane_of(ring, rbi_load_total64(&ring->order->put_epoch)); }

enum rbi_kind rbi_ring_kind_at(struct rbi_ring *ring, uint64_t position)
{
    uint64_t word = load_word(ring, open_lane(ring), position);
    return word_is_of(ring, word, position) ? word_kind(word) : RBI_KIND_NONE;
}

uint64_t rbi_ring_tail_position(struct rbi_ring *ring)
{
    return position_of(ring, rbi_load_total64(&open_lane(ring)->cursors->tail));
}

uint64_t rbi_ring_head_position(struct rbi_ring *ring)
{
    return position_of(ring, rbi_load_total64(&open_lane(ring)->cursors->head));
}
