/* ring.h — floor 1: the algorithm, on plain memory.  ring.c opens with how and why it works.
 *
 * Knows layout.h and atomics.h only: no operating system, no malloc, no sleeping.  The same object runs on a heap buffer under
 * ThreadSanitizer and on a mapped file. */
#ifndef RBI_RING_H
#define RBI_RING_H

#include "layout.h"

/** A process's view of one lane, and what this process last saw of words that only grow. */
struct rbi_lane {
    struct rbi_slot *slots;
    uint8_t *data;               /* 2 << (cells_log2 + cell_log2) bytes: the data region, twice */
    struct rbi_cursors *cursors;
    rbi_atomic64 reclaim_seen;   /* a lower bound of cursors->reclaim: mostly saves a cache miss */
    rbi_atomic64 reserved_seen;  /* likewise of cursors->reserved_cells */
    rbi_atomic64 roomy;          /* a claim that ends before this cell need not look at pages: three quarters of reserved_seen, or,
                                    when all have pages, wherever it ends */
};

/** A process's view of a ring: where it lies and how big it is (copied out of the checked stamp, never read from shared memory
 *  again).  Nearly always only lane 0 is in use. */
struct rbi_ring {
    struct rbi_order *order;
    uint32_t cells_log2;
    uint32_t cell_log2;
    uint32_t patience;           /* pauses to make when another one is at it: writing the message at head, or taking the same turn */
    uint32_t lane_count;
    bool looks_aside;            /* there is an arena, in which a returned message may be */
    bool undone;                 /* the last rbi_ring_recover() through this changed something, or met something returned */
    uint64_t max_items;          /* 0: unbounded */
    uint64_t least_lap;          /* a lap is cut short only after so many cells, */
    uint32_t age_shift;          /* and, of a ring in its lap n, after n >> age_shift */
    struct rbi_lane lanes[RBI_LANES];
};

enum rbi_ring_outcome {
    RBI_RING_OK = 0,
    RBI_RING_FULL,
    RBI_RING_EMPTY,
    RBI_RING_PENDING,      /* nothing to take, but somebody is writing a message */
    RBI_RING_SMALL,        /* the next message is larger than asked for */
    RBI_RING_UNRESERVED,   /* the first record.cells slots and cells of record.lane need pages first (claim only) */
    RBI_RING_ASIDE,        /* nothing that was returned is in the ring; record.position is what rbi_ring_clear_returned() wants (take
                              only, and only if the ring looks aside) */
    RBI_RING_CORRUPT,
};

/** A record that this process owns: claimed or taken. */
struct rbi_record {
    uint32_t lane;
    uint64_t position;
    uint64_t cells;
    uint64_t size;               /* of the message */
    bool reference;              /* the message lies in the arena, in the run whose number is the payload's 8 bytes */
    uint32_t attempts;           /* how often it has been taken, this time included */
    uint32_t turn;               /* tells this taking from the others; see layout.h */
    uint8_t *payload;
};

/** Set up the view, without lanes yet.  `max_items` as in the stamp. */
void rbi_ring_init(struct rbi_ring *ring, struct rbi_order *order, uint32_t cells_log2, uint32_t cell_log2,
                   uint64_t max_items);

/** Add the next lane to the view. */
void rbi_ring_add_lane(struct rbi_ring *ring, struct rbi_cursors *cursors, struct rbi_slot *slots, uint8_t *data);

/** Write the first values of all cursors, so that the ring is empty and its next position is `position` (a lap's first for a
 *  queue's life: rbi_ring_first_position; anything for tests).  The memory is zero and nobody else sees it yet. */
void rbi_ring_start_at(struct rbi_ring *ring, uint64_t position);
uint64_t rbi_ring_first_position(const struct rbi_ring *ring);

/** The largest payload that a ring can hold. */
uint64_t rbi_ring_max_payload(const struct rbi_ring *ring);

/** Reserve room for `size` bytes in the name of `owner`.  Lock-free.
 *  OK: *record is owner's to fill; end it with publish or void.  FULL: at one moment during the call there was no room.
 *  UNRESERVED: record->cells is how many cells of record->lane must have pages; reserve them, raise reserved_cells, try again.
 *  CORRUPT. */
enum rbi_ring_outcome rbi_ring_claim(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t size);

/** Before claims of `cells` cells together: if their pages end before that and the ring is empty, begin again at the front. */
void rbi_ring_look_ahead(struct rbi_ring *ring, uint64_t cells);

/** The first `cells` slots and cells of the lane have pages now.  OK or CORRUPT. */
enum rbi_ring_outcome rbi_ring_raise_reserved(struct rbi_ring *ring, uint32_t lane, uint64_t cells);

/** Make the claimed record, of RBI_REFERENCE_BYTES, one that refers to a run of the arena, in which a message of `size` bytes lies.
 *  And what a record refers to. */
void rbi_ring_refer(struct rbi_record *record, uint64_t size, uint64_t run);
uint64_t rbi_ring_reference(const struct rbi_record *record);

/** Make the filled record a message.  Wait-free but for setting the hint (lock-free).  OK or CORRUPT. */
enum rbi_ring_outcome rbi_ring_publish(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner);

/** Give a claimed record up.  OK or CORRUPT. */
enum rbi_ring_outcome rbi_ring_void(struct rbi_ring *ring, const struct rbi_record *record, uint32_t owner);

/** Take the oldest message of at most `limit` bytes in the name of `owner`.  Lock-free.
 *  OK: *record is owner's to read; end it with release or give_back.  EMPTY, PENDING: at one moment during the call no message
 *  whose put has returned was in the ring.  SMALL: record->size is the size of the next message, which stays.  CORRUPT. */
enum rbi_ring_outcome rbi_ring_take(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner, uint64_t limit);

/** A record as one number, and back: the record that `owner` took and that has this number.  OK, or CORRUPT if it holds none. */
uint64_t rbi_ring_number_of(const struct rbi_record *record);
enum rbi_ring_outcome rbi_ring_find_taken(struct rbi_ring *ring, struct rbi_record *record, uint32_t owner,
                                          uint64_t number);

/** What has become of the record with this number: its kind and owner, NONE if its lap is over.  Is it a reference? */
enum rbi_kind rbi_ring_fate(struct rbi_ring *ring, uint64_t number, uint32_t *owner, bool *reference);

/** Whether something may have been returned; say so; and, after a look everywhere that began with the hint `seen`, that there is
 *  nothing.  [T6] */
bool rbi_ring_some_returned(struct rbi_ring *ring);
void rbi_ring_set_returned(struct rbi_ring *ring);
void rbi_ring_clear_returned(struct rbi_ring *ring, uint64_t seen);

/** The taken record is done.  Wait-free. */
void rbi_ring_release(struct rbi_ring *ring, const struct rbi_record *record);

/** That the taken record was taken does not count as an attempt: it is about to go back untouched.  Its turn stays.  Wait-free. */
void rbi_ring_uncount_attempt(struct rbi_ring *ring, struct rbi_record *record);

/** The taken record goes back.  Lock-free. */
void rbi_ring_give_back(struct rbi_ring *ring, const struct rbi_record *record);

/** Undo what `owner` left half done: void its claims, return what it has taken.  Only when owner will never act again (its process
 *  died, or it is ours and idle); several may run at once, also for the same owner, each through its own view; may die anywhere and
 *  be done again. */
enum rbi_ring_outcome rbi_ring_recover(struct rbi_ring *ring, uint32_t owner);

/** After a claim of `size` bytes was FULL: a number for the record that stands in the way although consumers have gone past it,
 *  because its owner is in the middle of a put or get; 0 if there is none. */
uint64_t rbi_ring_stuck_at(struct rbi_ring *ring, uint64_t size);

/** Go on in another lane, if one is free, and leave the stuck record where it is; a claim of `size` bytes comes next.  Lock-free.
 *  OK: puts may try again.  FULL: no lane is free.  UNRESERVED: the first record->cells slots and cells of record->lane need pages
 *  first: without them the next claim could be worse off there, on a file system that is full. */
enum rbi_ring_outcome rbi_ring_bypass(struct rbi_ring *ring, uint64_t size, struct rbi_record *record);

/** After a claim of `size` bytes was UNRESERVED, and there are no pages to be had: make do with those there are.  Begin again at the
 *  front of this lane, or go on in another, if there is room.  Returns whether a claim may try again.  Lock-free. */
bool rbi_ring_make_do(struct rbi_ring *ring, uint64_t size);

/** Look, without changing anything that matters, whether a take could succeed now.  For spinning. */
bool rbi_ring_may_take(struct rbi_ring *ring);

/** Whether a message stands at head.  If not, there may be one elsewhere. */
bool rbi_ring_ready_at_head(struct rbi_ring *ring);

/** How many cells a record of `size` bytes occupies, and how many a ring has. */
uint64_t rbi_ring_cells_for(const struct rbi_ring *ring, uint64_t size);
uint64_t rbi_ring_cells(const struct rbi_ring *ring);

/** Whether a claim of `size` bytes could succeed now; whether claims of so many cells for so many messages could, one after the other.
 *  For spinning, and for full(). */
bool rbi_ring_has_room(struct rbi_ring *ring, uint64_t size);
bool rbi_ring_has_room_for(struct rbi_ring *ring, uint64_t cells, uint64_t items);

/** Messages waiting.  Exact when nobody moves. */
enum rbi_ring_outcome rbi_ring_count(struct rbi_ring *ring, uint64_t *items);

/** The same by the cursors alone, for a ring that cannot be walked: what was given back or voided may be counted wrongly. */
uint64_t rbi_ring_count_roughly(struct rbi_ring *ring);

/** Records of the given kinds (a bit each, 1 << RBI_KIND_…) between reclaim and tail. */
enum rbi_ring_outcome rbi_ring_census(struct rbi_ring *ring, uint64_t *records, uint32_t kinds);

/** Messages, waiting or taken, that refer to a run of the arena. */
enum rbi_ring_outcome rbi_ring_references(struct rbi_ring *ring, uint64_t *records);

/** The slots that hold the lane's records, from reclaim to tail: *count of them from *first on, round the end.  False: the cursors
 *  cannot be right, or have moved between two looks. */
bool rbi_ring_span(struct rbi_ring *ring, uint32_t lane, uint64_t *first, uint64_t *count);

/** Bytes of capacity in use. */
uint64_t rbi_ring_used_bytes(struct rbi_ring *ring);

/* The open lane's words taken apart, for tests and inspection. */
enum rbi_kind rbi_ring_kind_at(struct rbi_ring *ring, uint64_t position);
uint64_t rbi_ring_tail_position(struct rbi_ring *ring);
uint64_t rbi_ring_head_position(struct rbi_ring *ring);

#endif
