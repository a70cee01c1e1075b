/* arena.h — floor 2: blocks for what is big and for what users hold.  arena.c opens with how and why it works.
 *
 * Knows layout.h, atomics.h and, of the ring, what has become of a record; no operating system, no malloc, no sleeping. */
#ifndef RBI_ARENA_H
#define RBI_ARENA_H

#include "ring.h"

/** A process's view of the arena: where it lies and how big it is (from the checked stamp). */
struct rbi_arena {
    struct rbi_arena_words *shared;
    rbi_atomic64 *table;         /* a word a block */
    struct rbi_run_entry *entries;
    uint8_t *memory;
    uint64_t blocks;             /* 0: there is no arena */
    uint32_t block_log2;
    bool undone;                 /* the last rbi_arena_recover() through this changed something, or met something returned */
};

/** A run of blocks that this process owns, or is about to. */
struct rbi_run {
    uint64_t first;
    uint64_t blocks;
    uint64_t size;               /* of the message in it */
    uint64_t record;             /* see struct rbi_run_entry */
    uint32_t attempts;
    uint32_t turn;               /* as in struct rbi_record */
    bool backed;                 /* it has memory behind all of its blocks */
    uint8_t *payload;
};

enum rbi_arena_outcome {
    RBI_ARENA_OK = 0,
    RBI_ARENA_FULL,
    RBI_ARENA_EMPTY,
    RBI_ARENA_SMALL,             /* the message is larger than asked for */
    RBI_ARENA_PARTS,             /* parts of the table need pages first */
    RBI_ARENA_CORRUPT,
};

void rbi_arena_init(struct rbi_arena *arena, struct rbi_arena_words *shared, rbi_atomic64 *table, struct rbi_run_entry *entries,
                    uint8_t *memory, uint64_t blocks, uint32_t block_log2);

/** The largest message. */
static inline uint64_t rbi_arena_bytes(const struct rbi_arena *arena) { return arena->blocks << arena->block_log2; }

/** How many blocks a run for `size` bytes has. */
static inline uint64_t rbi_arena_blocks_for(const struct rbi_arena *arena, uint64_t size)
{
    uint64_t blocks = (size + (UINT64_C(1) << arena->block_log2) - 1) >> arena->block_log2;
    return blocks ? blocks : 1;
}

/** Whether anything has ever been in the arena. */
static inline bool rbi_arena_is_used(const struct rbi_arena *arena)
{
    return arena->blocks && rbi_load_total64(&arena->shared->parts); /* [E8] */
}

/* ---- windows: blocks that are set aside (layout.h, struct rbi_turn) ---- */

enum { RBI_WINDOW_FIRST_SHIFT = 12, RBI_WINDOW_BLOCKS_SHIFT = 29, RBI_WINDOW_SINCE_SHIFT = 46 };
#define RBI_WINDOW_MASK UINT64_C(0x1ffff)

static inline uint64_t rbi_window(uint32_t owner, uint64_t first, uint64_t blocks, uint64_t since)
{
    return since << RBI_WINDOW_SINCE_SHIFT | blocks << RBI_WINDOW_BLOCKS_SHIFT | first << RBI_WINDOW_FIRST_SHIFT | owner;
}
static inline uint32_t rbi_window_owner(uint64_t window) { return (uint32_t)window & RBI_OWNER_MAX; }
static inline uint64_t rbi_window_first(uint64_t window) { return window >> RBI_WINDOW_FIRST_SHIFT & RBI_WINDOW_MASK; }
static inline uint64_t rbi_window_blocks(uint64_t window) { return window >> RBI_WINDOW_BLOCKS_SHIFT & RBI_WINDOW_MASK; }
static inline uint64_t rbi_window_end(uint64_t window) { return rbi_window_first(window) + rbi_window_blocks(window); }
static inline uint64_t rbi_window_since(uint64_t window) { return window >> RBI_WINDOW_SINCE_SHIFT; }

/** The first of `blocks` neighbouring blocks of which the fewest are in use.  A block that somebody holds, fills or works on counts as
 *  `held_weight` of those that wait to be taken.  A guess, if others move. */
uint64_t rbi_arena_emptiest(struct rbi_arena *arena, uint64_t blocks, uint64_t held_weight);

/** Reserve a run for `size` bytes in the name of `owner`, outside the window `spare` (0: anywhere).  Lock-free.
 *  OK: *run is owner's; if it is not backed, give it memory and call rbi_arena_set_backed().  FULL: no run was long enough.
 *  PARTS: *parts says which parts of the table must have pages; give them, call rbi_arena_raise_parts(), try again.
 *  *gave_back: blocks were taken for a moment, and others may have found the arena full because of that. */
enum rbi_arena_outcome rbi_arena_allocate(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t size,
                                          uint64_t spare, uint64_t *parts, bool *gave_back);
void rbi_arena_raise_parts(struct rbi_arena *arena, uint64_t parts);
void rbi_arena_set_backed(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner);

/** Free a run that `owner` has RESERVED.  `now_s`: coarse monotonic seconds.  Wait-free. */
void rbi_arena_free(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner, uint64_t now_s);

/** RESERVED -> QUEUED: the record with the number run->record, which owner has claimed, is about to refer to it.  OK or CORRUPT. */
enum rbi_arena_outcome rbi_arena_queue(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);

/** QUEUED -> LEASED: `owner` has taken the record that refers to the run `first`.  *run has the record's number, its size and attempts.
 *  OK or CORRUPT: it is not what the record says. */
enum rbi_arena_outcome rbi_arena_lease_queued(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t first);

/** Give a RESERVED run a ticket, so that it can be told from a later one of the same owner in its place. */
void rbi_arena_mark(struct rbi_arena *arena, const struct rbi_run *run, uint64_t ticket);

/** RESERVED -> LEASED: the run holds a copy of the message of run->record, which owner has taken and releases next.  OK or CORRUPT. */
enum rbi_arena_outcome rbi_arena_lease_copy(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);

/** RETURNED -> LEASED: take the oldest message of at most `limit` bytes that was returned.  OK, EMPTY, SMALL (run->size), CORRUPT. */
enum rbi_arena_outcome rbi_arena_take_returned(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t limit);

/** The run `first`, if it is of this kind and owner and has this record (or ticket).  OK or CORRUPT. */
enum rbi_arena_outcome rbi_arena_find(struct rbi_arena *arena, struct rbi_run *run, enum rbi_block_kind kind, uint32_t owner,
                                      uint64_t first, uint64_t record);

/** That the LEASED run was taken does not count as an attempt: it is about to go back untouched.  Its turn stays. */
void rbi_arena_uncount_attempt(struct rbi_arena *arena, struct rbi_run *run);

/** LEASED -> RETURNED, HELD, or RESERVED (to be freed).  OK, or CORRUPT: it was not LEASED by owner. */
enum rbi_arena_outcome rbi_arena_give_back(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);
enum rbi_arena_outcome rbi_arena_keep(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);
enum rbi_arena_outcome rbi_arena_end_lease(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);

/** HELD -> RESERVED (to be freed).  OK or CORRUPT. */
enum rbi_arena_outcome rbi_arena_end_hold(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);

/** Undo what `owner` left half done and give its leases back; before rbi_ring_recover() for the same owner.  With `keep`, leave what it
 *  holds and reserves as it is.  Only when owner will never act again, or is ours and in no call, and by one at a time for the same owner;
 *  may die anywhere and be done again. */
enum rbi_arena_outcome rbi_arena_recover(struct rbi_arena *arena, struct rbi_ring *ring, uint32_t owner, bool keep, uint64_t now_s);

/** Reserve free blocks that have memory and have not been used for `idle_s`, below block *from, to give their memory back: then
 *  call rbi_arena_free_without_pages().  About a MiB at a time, for a process that is stopped now keeps them from the others.
 *  OK or EMPTY; *from is where to go on, and *gave_back as in rbi_arena_allocate(). */
enum rbi_arena_outcome rbi_arena_take_idle(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t now_s, uint64_t idle_s,
                                           uint64_t *from, bool *gave_back);
void rbi_arena_free_without_pages(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);

/** The same for free blocks without memory, to give them some: then call rbi_arena_free().  Only in parts that have pages. */
enum rbi_arena_outcome rbi_arena_take_bare(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t *from, bool *gave_back);

/** Whether nobody has given memory back for `interval_ns`; if so, the caller is about to. */
bool rbi_arena_may_trim(struct rbi_arena *arena, uint64_t now_ns, uint64_t interval_ns);

/** Whether an allocation of `size` bytes outside the window `spare` could succeed now.  For looking before a wait. */
bool rbi_arena_has_room(struct rbi_arena *arena, uint64_t size, uint64_t spare);

/** Whether several allocations could succeed together: begin, then ask for each.  Never wrong when it says so and nobody moves.  It may
 *  say no where they would fit in another order, but not if as many free blocks as all need lie in a row. */
struct rbi_fitting {
    uint64_t spare, low, high;
};
void rbi_arena_begin_fitting(struct rbi_arena *arena, struct rbi_fitting *fitting, uint64_t spare);
bool rbi_arena_fits_too(struct rbi_arena *arena, struct rbi_fitting *fitting, uint64_t size);

/** Whether some free block has memory behind it. */
bool rbi_arena_has_spare_pages(struct rbi_arena *arena);

/** Which parts of the table and the entries have pages: a bit for each. */
uint64_t rbi_arena_parts(const struct rbi_arena *arena);

/** What is in the arena.  Exact when nobody moves. */
struct rbi_arena_census {
    uint64_t runs[RBI_BLOCK_REST];  /* by enum rbi_block_kind */
    uint64_t used_blocks;
    uint64_t backed_blocks;
    uint64_t longest_free_blocks;
};
void rbi_arena_count(struct rbi_arena *arena, struct rbi_arena_census *census);

/** Account for every block and run; see ringbuf_findings.  `alive` says whether a participant lives. */
struct rbi_arena_findings {
    uint64_t runs, orphaned_blocks, orphaned_runs, broken_runs, dangling_messages;
};
void rbi_arena_check(struct rbi_arena *arena, struct rbi_ring *ring, struct rbi_arena_findings *findings,
                     bool (*alive)(uint32_t owner, void *context), void *context);

#endif
