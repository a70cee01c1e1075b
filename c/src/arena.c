/* arena.c — floor 2: runs of blocks, each with one word that says whose it is.
 *
 * The idea.  A run is one or more neighbouring blocks.  The word of its first block says in what state the run is, who owns it and
 * how long it is; the words of its other blocks say REST and which block is the first: "ask there".  So a run changes hands by one
 * store or compare-and-swap, whatever its length, and there is no instruction at which blocks are in use and nobody knows by whom:
 * a REST word is written only while its first block is owned, and gone before that is freed.
 *
 *   FREE --CAS, block by block--> RESERVED(me) --queue--> QUEUED(me) --publish (ring)--> QUEUED --take (ring)--> LEASED(you)
 *    ^                              |   ^  ^                                                                     |   |   ^
 *    |            free, or death    |   |  +---- ack: end_lease -------------------------------------------------+   |   | take_returned
 *    +------------------------------+   |                                                              nack, death   v   |
 *                                       +---- release: end_hold -- HELD(you) <--keep-- LEASED(you)                   RETURNED
 *
 * Allocation.  Find so many free blocks in a row; CAS the first to RESERVED(me, length), then each of the others to REST(first), upwards.
 * If one has been taken meanwhile, give back what we have and look further.  Everybody goes upwards, so of several that get in each
 * other's way the topmost never gives up: lock-free.  A process that is stopped or killed on its way holds what it has claimed so
 * far and nothing more, and one word says so.
 *   One window of blocks may be set aside for the process whose turn it is (turn.c): everybody else looks past it.  That is a rule of
 * the search and nothing more.  A claim does not look at the window, so an owner that is too late to see it harms nothing but the order.
 *   Nothing has to be joined when runs are freed, for free blocks are just that.  A boundary-tag list, which would claim a run of any
 *   length with one CAS, was considered: splitting a free run between several who all want a piece of it needs either an owner of the
 *   whole rest for a moment (a stop there stops everybody) or helping with versions.  4096 uncontended CASes for 16 MiB cost 1 % of
 *   copying them.
 *
 * Where.  Long runs are looked for from the bottom, short ones (SHORT_BLOCKS) from the top: messages that users hold for long are mostly
 * short, and would lie scattered between the long ones.  So as not to walk over all short runs each time, everybody shares a guess below
 * which block there is room for one (short_end): moved down by who finds room, up by who frees.
 *
 * Put of a large message: allocate; fill; claim a record in the ring; note its number in the run; RESERVED -> QUEUED; write the reference;
 * publish the record.  While the record is only CLAIMED, the message does not exist; the run's owner can tell, for it looks at the
 * record.  From the publication on, the record accounts for the run, and QUEUED's owner means nothing any more.
 *   A death before QUEUED leaves RESERVED: freed.  After it: recovery finds QUEUED by the dead one, and its record is either still
 *   claimed by the dead one (then free the run; the ring's recovery then voids the record), or voided already (the same), or a
 *   message that somebody else accounts for.  A record's number is of one lap, so a later record is not taken for it.
 *
 * Take of a large message: TAKEN(me) in the ring; QUEUED -> LEASED(me); release the record.  From the release on the run accounts for
 * the message; until then the record does.  So a death between the two is seen by recovery as LEASED by the dead one, whose record
 * is still TAKEN by it: back to QUEUED, and the ring's recovery returns the record.
 *
 * Lease of a small message: TAKEN(me) in the ring; allocate; copy; note the record's number; RESERVED -> LEASED(me); release the record.
 * The same rule: as long as the record is TAKEN by the dead one it accounts for the message, and the copy is freed.
 *
 * So recovery handles the arena first, then the ring: it needs the ring as the dead one left it.  It may itself die anywhere: each of
 * its steps leaves a state that it would handle in the same way again.
 *
 * Orders.  FREE is stored with release and claimed with acquire ([E7]): the old owner's reads and writes of the blocks are over.  What a
 * lease copies or a producer fills is handed on with the ring's [E1], or, returned, with the run's own word ([E9]).  A waiter for
 * room and one who frees do not need the total order: the freer looks for waiters by a write (rbi_event_wake_all_if_any, [E10]). */
#include "arena.h"

enum {
    KIND_BITS = 4,
    OWNER_SHIFT = KIND_BITS,
    LENGTH_SHIFT = 16, /* also the number of the first block in REST */
    PAGES_SHIFT = 40,
    FREED_SHIFT = 42,  /* coarse seconds, 22 bits */
    SHORT_BLOCKS = 16,
    IDLE_BYTES_LOG2 = 20, /* memory is given back in pieces of at most this size, or a block */
};
#define LENGTH_MASK UINT64_C(0xffffff)
#define FREED_MASK UINT64_C(0x3fffff)

static inline uint64_t run_word(enum rbi_block_kind kind, uint32_t owner, uint64_t blocks, enum rbi_pages pages)
{
    return (uint64_t)pages << PAGES_SHIFT | blocks << LENGTH_SHIFT | (uint64_t)owner << OWNER_SHIFT | (uint64_t)kind;
}
static inline uint64_t rest_word(uint64_t first) { return first << LENGTH_SHIFT | RBI_BLOCK_REST; }
static inline uint64_t free_word(enum rbi_pages pages, uint64_t now_s)
{
    return (now_s & FREED_MASK) << FREED_SHIFT | (uint64_t)pages << PAGES_SHIFT;
}
static inline enum rbi_block_kind kind_of(uint64_t word) { return (enum rbi_block_kind)(word & 15); }
static inline uint32_t owner_of(uint64_t word) { return (uint32_t)(word >> OWNER_SHIFT) & RBI_OWNER_MAX; }
static inline uint64_t length_of(uint64_t word) { return word >> LENGTH_SHIFT & LENGTH_MASK; }
static inline enum rbi_pages pages_of(uint64_t word) { return (enum rbi_pages)(word >> PAGES_SHIFT & 3); }
static inline uint64_t with(uint64_t word, uint32_t owner, enum rbi_block_kind kind)
{
    return (word & ~UINT64_C(0xffff)) | (uint64_t)owner << OWNER_SHIFT | (uint64_t)kind;
}

/** A word that only a run's first block can have, of a run that fits. */
static inline bool begins_run(const struct rbi_arena *arena, uint64_t block, uint64_t word)
{
    return kind_of(word) >= RBI_BLOCK_RESERVED && kind_of(word) <= RBI_BLOCK_RETURNED && length_of(word) != 0 &&
           length_of(word) <= arena->blocks - block;
}

static inline uint64_t load_word(const struct rbi_arena *arena, uint64_t block)
{
    return rbi_load_total64(&arena->table[block]); /* [E7] [E9] [E10] */
}

static inline uint64_t part_of(const struct rbi_arena *arena, uint64_t block) { return block / (arena->blocks / RBI_TABLE_PARTS); }

/** Whether the part of the table that `block` lies in has pages; what has none is free. */
static inline bool has_part(uint64_t parts, const struct rbi_arena *arena, uint64_t block)
{
    return parts >> part_of(arena, block) & 1;
}

static inline uint64_t load_parts(const struct rbi_arena *arena)
{
    return rbi_load_total64(&arena->shared->parts); /* [E8 parts] pairs with rbi_arena_raise_parts() */
}

void rbi_arena_init(struct rbi_arena *arena, struct rbi_arena_words *shared, rbi_atomic64 *table, struct rbi_run_entry *entries,
                    uint8_t *memory, uint64_t blocks, uint32_t block_log2)
{
    *arena = (struct rbi_arena){
        .shared = shared, .table = table, .entries = entries, .memory = memory, .blocks = blocks, .block_log2 = block_log2};
}

void rbi_arena_raise_parts(struct rbi_arena *arena, uint64_t parts)
{
    for (;;) {
        uint64_t seen = load_parts(arena);
        if ((seen | parts) == seen) return;
        if (rbi_cas_total64(&arena->shared->parts, seen, seen | parts)) return; /* [E8 parts]: the pages were there before */
    }
}

/* ---- walking ---- */

/** Call `visit` with every block whose word is not FREE, up to the first that it does not want to go on after.  Not run by run: a run
 *  that is just being claimed can reach over others, to which it will yet give way. */
static void walk(struct rbi_arena *arena, bool (*visit)(struct rbi_arena *, uint64_t block, uint64_t word, void *context), void *context)
{
    if (arena->blocks == 0) return;
    uint64_t parts = load_parts(arena);
    for (uint64_t block = 0; block < arena->blocks;) {
        if (!has_part(parts, arena, block)) {
            block = (part_of(arena, block) + 1) * (arena->blocks / RBI_TABLE_PARTS);
            continue;
        }
        uint64_t word = load_word(arena, block);
        if (kind_of(word) != RBI_BLOCK_FREE && !visit(arena, block, word, context)) return;
        block++;
    }
}

/* ---- allocating and freeing ---- */

/** Find `wanted` free blocks in a row, at or beyond `block`; returns the first, or arena->blocks. */
static uint64_t find_up(const struct rbi_arena *arena, uint64_t block, uint64_t wanted, uint64_t parts)
{
    uint64_t begin = block;
    while (block < arena->blocks && block - begin < wanted) {
        if (!has_part(parts, arena, block)) {
            block = (part_of(arena, block) + 1) * (arena->blocks / RBI_TABLE_PARTS);
            continue;
        }
        uint64_t word = load_word(arena, block);
        if (kind_of(word) == RBI_BLOCK_FREE) {
            block++;
            continue;
        }
        /* Past the whole run, if it is complete. */
        bool complete = begins_run(arena, block, word) && kind_of(word) != RBI_BLOCK_RESERVED;
        block += complete ? length_of(word) : 1;
        begin = block;
    }
    return block - begin >= wanted && begin + wanted <= arena->blocks ? begin : arena->blocks;
}

/** The same from the block before `end` on downwards. */
static uint64_t find_down(const struct rbi_arena *arena, uint64_t end, uint64_t wanted, uint64_t parts)
{
    uint64_t block = end;
    while (block > 0 && end - block < wanted) {
        if (has_part(parts, arena, block - 1) && kind_of(load_word(arena, block - 1)) != RBI_BLOCK_FREE) end = block - 1;
        block--;
    }
    return end - block >= wanted ? block : arena->blocks;
}

static bool overlaps(uint64_t window, uint64_t first, uint64_t blocks)
{
    return first < rbi_window_end(window) && rbi_window_first(window) < first + blocks;
}

/** The same two without the blocks of the window `spare`, which is empty or lies within the arena.  Of two places where the run would
 *  fit, the lower one in the window, the other lies wholly above it. */
static uint64_t find_upwards(const struct rbi_arena *arena, uint64_t block, uint64_t wanted, uint64_t parts, uint64_t spare)
{
    uint64_t found = find_up(arena, block, wanted, parts);
    if (found == arena->blocks || !overlaps(spare, found, wanted)) return found;
    return find_up(arena, rbi_window_end(spare), wanted, parts);
}

static uint64_t find_downwards(const struct rbi_arena *arena, uint64_t end, uint64_t wanted, uint64_t parts, uint64_t spare)
{
    uint64_t found = find_down(arena, end, wanted, parts);
    if (found == arena->blocks || !overlaps(spare, found, wanted)) return found;
    return find_down(arena, rbi_window_first(spare), wanted, parts);
}

/** Where a search goes on: long runs are looked for from here upwards, short ones from here downwards. */
struct search {
    uint64_t wanted;
    uint64_t spare; /* a window that is not looked into */
    uint64_t from;
    bool guessed; /* the search began at short_end: beyond that it has not looked */
};

static struct search begin_search(const struct rbi_arena *arena, uint64_t wanted, uint64_t spare)
{
    struct search search = {.wanted = wanted, .spare = rbi_window_end(spare) <= arena->blocks ? spare : 0};
    if (wanted > SHORT_BLOCKS) return search;
    search.from = rbi_load_relaxed64(&arena->shared->short_end); /* relaxed: a guess */
    search.guessed = search.from != 0 && search.from < arena->blocks;
    if (!search.guessed) search.from = arena->blocks;
    return search;
}

/** The next place to try; arena->blocks: none. */
static uint64_t find(const struct rbi_arena *arena, struct search *search, uint64_t parts)
{
    uint64_t found;
    if (search->wanted > SHORT_BLOCKS) {
        found = find_upwards(arena, search->from, search->wanted, parts, search->spare);
        search->from = found + 1;
        return found;
    }
    found = find_downwards(arena, search->from, search->wanted, parts, search->spare);
    if (found == arena->blocks && search->guessed) {
        search->guessed = false;
        found = find_downwards(arena, arena->blocks, search->wanted, parts, search->spare);
    }
    search->from = found + search->wanted - 1;
    return found;
}

/** Free the blocks [first + 1, first + blocks) that belong to the run, then the first.  [E7 block] pairs with the CASes in claim(): our
 *  reads and writes of the blocks stay before. */
static void free_blocks(struct rbi_arena *arena, uint64_t first, uint64_t blocks, enum rbi_pages pages, uint64_t now_s)
{
    uint64_t freed = free_word(pages, now_s);
    for (uint64_t block = first + 1; block < first + blocks; block++) {
        /* relaxed: only the run's owner, which we are, changes a REST of it */
        if (rbi_load_relaxed64(&arena->table[block]) != rest_word(first)) continue;
        rbi_store_release64(&arena->table[block], freed);
        RBI_POINT(block_freed);
    }
    rbi_store_release64(&arena->table[first], freed);
    RBI_POINT(run_freed);
}

/** CAS [first, first + blocks) from FREE to a run of ours.  False: some block was taken meanwhile, and *claimed of them were ours for a
 *  moment. */
static bool claim(struct rbi_arena *arena, uint64_t first, uint64_t blocks, uint32_t owner, uint64_t *claimed, bool *backed)
{
    *claimed = 0;
    uint64_t word = load_word(arena, first);
    if (kind_of(word) != RBI_BLOCK_FREE) return false;
    *backed = pages_of(word) == RBI_PAGES_BACKED;
    uint64_t freed_s = word >> FREED_SHIFT;
    if (!rbi_cas_acq_rel64(&arena->table[first], word, run_word(RBI_BLOCK_RESERVED, owner, blocks, RBI_PAGES_UNSURE))) return false;
    RBI_POINT(run_begun);
    for (*claimed = 1; *claimed < blocks; ++*claimed) {
        rbi_atomic64 *next = &arena->table[first + *claimed];
        word = rbi_load_acquire64(next); /* [E7] */
        if (kind_of(word) != RBI_BLOCK_FREE || !rbi_cas_acq_rel64(next, word, rest_word(first))) break;
        if (pages_of(word) != RBI_PAGES_BACKED) *backed = false;
        RBI_POINT(run_grown);
    }
    if (*claimed == blocks) return true;
    free_blocks(arena, first, *claimed, *backed ? RBI_PAGES_BACKED : RBI_PAGES_UNSURE, freed_s);
    return false;
}

static uint64_t parts_of(const struct rbi_arena *arena, uint64_t first, uint64_t blocks)
{
    uint64_t low = part_of(arena, first), high = part_of(arena, first + blocks - 1);
    uint64_t upto = high == 63 ? ~UINT64_C(0) : (UINT64_C(1) << (high + 1)) - 1;
    return upto & ~((UINT64_C(1) << low) - 1);
}

enum rbi_arena_outcome rbi_arena_allocate(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t size,
                                          uint64_t spare, uint64_t *parts, bool *gave_back)
{
    *gave_back = false;
    if (arena->blocks == 0 || size > rbi_arena_bytes(arena)) return RBI_ARENA_FULL;
    uint64_t wanted = rbi_arena_blocks_for(arena, size);
    uint64_t present = load_parts(arena), first;
    struct search search = begin_search(arena, wanted, spare);
    while ((first = find(arena, &search, present)) != arena->blocks) {
        *parts = parts_of(arena, first, wanted) & ~present;
        if (*parts) return RBI_ARENA_PARTS;
        uint64_t claimed;
        bool backed;
        if (claim(arena, first, wanted, owner, &claimed, &backed)) {
            *run = (struct rbi_run){.first = first, .blocks = wanted, .size = size, .backed = backed,
                                    .payload = arena->memory + (first << arena->block_log2)};
            if (wanted <= SHORT_BLOCKS) rbi_store_relaxed64(&arena->shared->short_end, first); /* relaxed: a guess */
            if (backed) rbi_arena_set_backed(arena, run, owner);
            return RBI_ARENA_OK;
        }
        if (claimed) *gave_back = true;
    }
    return RBI_ARENA_FULL;
}

void rbi_arena_set_backed(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner)
{
    run->backed = true;
    /* release: recovery reads it; nobody else does while it is ours */
    rbi_store_release64(&arena->table[run->first], run_word(RBI_BLOCK_RESERVED, owner, run->blocks, RBI_PAGES_BACKED));
    RBI_POINT(run_backed);
}

/** There is room for a short run below `end`. */
static void raise_short_end(struct rbi_arena *arena, uint64_t end)
{
    uint64_t seen = rbi_load_relaxed64(&arena->shared->short_end); /* relaxed, both: a guess */
    if (seen != 0 && seen < end) rbi_store_relaxed64(&arena->shared->short_end, end);
}

/** Whether the run is RESERVED by owner: nobody frees what is not his. */
static bool is_reserved(const struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    uint64_t word = load_word(arena, run->first);
    return kind_of(word) == RBI_BLOCK_RESERVED && owner_of(word) == owner && length_of(word) == run->blocks;
}

void rbi_arena_free(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner, uint64_t now_s)
{
    if (!is_reserved(arena, run, owner)) return;
    free_blocks(arena, run->first, run->blocks, run->backed ? RBI_PAGES_BACKED : RBI_PAGES_UNSURE, now_s);
    if (run->blocks <= SHORT_BLOCKS) raise_short_end(arena, run->first + run->blocks);
}

void rbi_arena_free_without_pages(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    if (is_reserved(arena, run, owner)) free_blocks(arena, run->first, run->blocks, RBI_PAGES_NONE, 0);
}

/* ---- a run's life ---- */

/** Change the word of a run of `owner`. */
static enum rbi_arena_outcome change(struct rbi_arena *arena, const struct rbi_run *run, enum rbi_block_kind from, uint32_t owner,
                                     enum rbi_block_kind to, uint32_t new_owner)
{
    rbi_atomic64 *shared = &arena->table[run->first];
    uint64_t word = rbi_load_acquire64(shared);
    if (kind_of(word) != from || owner_of(word) != owner || length_of(word) != run->blocks) return RBI_ARENA_CORRUPT;
    /* A CAS and not a store, so that of two who mean to end the same run one is refused.  [E9 run]: what we wrote into the run and its
     * entry comes before. */
    return rbi_cas_total64(shared, word, with(word, new_owner, to)) ? RBI_ARENA_OK : RBI_ARENA_CORRUPT;
}

static inline uint64_t size_word(const struct rbi_run *run)
{
    return run->size | (uint64_t)run->attempts << RBI_ATTEMPTS_SHIFT | (uint64_t)run->turn << RBI_TURN_SHIFT;
}

static void write_entry(struct rbi_arena *arena, const struct rbi_run *run)
{
    struct rbi_run_entry *entry = &arena->entries[run->first];
    /* [E11 size] pairs with describe(): who sees it sees that the run is ours.  To who comes for the run the word that follows
     * carries them. */
    rbi_store_release64(&entry->size, size_word(run));
    rbi_store_relaxed64(&entry->record, run->record); /* relaxed: nobody looks at it who does not then own the run, or only guesses */
    RBI_POINT(entry_filled);
}

/** Fill *run from its word and entry. */
static bool describe(struct rbi_arena *arena, struct rbi_run *run, uint64_t first, uint64_t word)
{
    const struct rbi_run_entry *entry = &arena->entries[first];
    /* acquire: [E11 size], for the caller may look at the word again; that this run's size is there is [E9], or the run is ours. */
    uint64_t size = rbi_load_acquire64(&entry->size);
    *run = (struct rbi_run){
        .first = first,
        .blocks = length_of(word),
        .size = size & RBI_SIZE_MASK,
        .record = rbi_load_relaxed64(&entry->record), /* relaxed: [E9] likewise; nobody uses it whose run it is not */
        .attempts = size >> RBI_ATTEMPTS_SHIFT & RBI_ATTEMPTS_MAX,
        .turn = size >> RBI_TURN_SHIFT & RBI_TURN_MAX,
        .backed = pages_of(word) == RBI_PAGES_BACKED,
        .payload = arena->memory + (first << arena->block_log2),
    };
    return run->size <= run->blocks << arena->block_log2;
}

void rbi_arena_mark(struct rbi_arena *arena, const struct rbi_run *run, uint64_t ticket)
{
    rbi_store_relaxed64(&arena->entries[run->first].record, ticket); /* relaxed: the run is ours */
}

static void write_attempts(struct rbi_arena *arena, const struct rbi_run *run)
{
    /* [E11 size], as in write_entry(); the word hands it on. */
    rbi_store_release64(&arena->entries[run->first].size, size_word(run));
}

static void count_attempt(struct rbi_arena *arena, struct rbi_run *run)
{
    if (run->attempts < RBI_ATTEMPTS_MAX) run->attempts++;
    run->turn = (run->turn + 1) & RBI_TURN_MAX;
    write_attempts(arena, run);
    RBI_POINT(attempt_counted);
}

void rbi_arena_uncount_attempt(struct rbi_arena *arena, struct rbi_run *run)
{
    if (run->attempts == 0 || run->attempts == RBI_ATTEMPTS_MAX) return; /* the latter: which may be many more */
    run->attempts--;
    write_attempts(arena, run);
}

enum rbi_arena_outcome rbi_arena_queue(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    if (!is_reserved(arena, run, owner)) return RBI_ARENA_CORRUPT;
    write_entry(arena, run);
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_RESERVED, owner, RBI_BLOCK_QUEUED, owner);
    RBI_POINT(run_queued);
    return outcome;
}

/** The first block's word, if `first` is a number that a run of this kind can have. */
static bool read_run(struct rbi_arena *arena, uint64_t first, enum rbi_block_kind kind, uint64_t *word)
{
    if (arena->blocks == 0 || first >= arena->blocks || !has_part(load_parts(arena), arena, first)) return false;
    *word = load_word(arena, first);
    /* All of its table must have pages: who frees the run writes there. */
    return kind_of(*word) == kind && begins_run(arena, first, *word) && !(parts_of(arena, first, length_of(*word)) & ~load_parts(arena));
}

enum rbi_arena_outcome rbi_arena_lease_queued(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t first)
{
    uint64_t word, record = run->record, size = run->size;
    uint32_t attempts = run->attempts;
    if (!read_run(arena, first, RBI_BLOCK_QUEUED, &word) || !describe(arena, run, first, word)) return RBI_ARENA_CORRUPT;
    if (run->record != record || run->size != size) return RBI_ARENA_CORRUPT;
    if (!rbi_cas_total64(&arena->table[first], word, with(word, owner, RBI_BLOCK_LEASED))) return RBI_ARENA_CORRUPT;
    RBI_POINT(run_leased);
    /* The record has counted this attempt, and those of who died between the record and the run. */
    if (run->attempts + 1 < attempts) run->attempts = attempts - 1;
    count_attempt(arena, run);
    return RBI_ARENA_OK;
}

enum rbi_arena_outcome rbi_arena_lease_copy(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    if (!is_reserved(arena, run, owner)) return RBI_ARENA_CORRUPT;
    write_entry(arena, run);
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_RESERVED, owner, RBI_BLOCK_LEASED, owner);
    RBI_POINT(run_leased);
    return outcome;
}

struct oldest {
    uint64_t first, word, record;
};

/** Of what was returned, the one whose record's position is least: the order of puts, as long as the ring has not changed lanes. */
static bool note_oldest(struct rbi_arena *arena, uint64_t block, uint64_t word, void *context)
{
    struct oldest *oldest = context;
    if (kind_of(word) != RBI_BLOCK_RETURNED || !begins_run(arena, block, word)) return true;
    uint64_t record = rbi_load_relaxed64(&arena->entries[block].record); /* relaxed: a guess until the run is taken */
    if (oldest->first == arena->blocks || record < oldest->record) *oldest = (struct oldest){block, word, record};
    return true;
}

enum rbi_arena_outcome rbi_arena_take_returned(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t limit)
{
    for (;;) {
        struct oldest oldest = {.first = arena->blocks};
        walk(arena, note_oldest, &oldest);
        if (oldest.first == arena->blocks) return RBI_ARENA_EMPTY;
        rbi_atomic64 *shared = &arena->table[oldest.first];
        /* The size is this run's if the word is still the same; or there was a longer run in its place meanwhile, and then another
         * one of the same length was returned.  So one that does not fit means nothing before the run is ours. */
        if (describe(arena, run, oldest.first, oldest.word) && run->size > limit) {
            if (rbi_load_total64(shared) != oldest.word) continue;
            return RBI_ARENA_SMALL;
        }
        /* [E9 run]: the writes of whoever returned it come before. */
        if (!rbi_cas_total64(shared, oldest.word, with(oldest.word, owner, RBI_BLOCK_LEASED))) continue;
        RBI_POINT(run_retaken);
        /* The entry anew, now that it is ours: another run, of the same length and returned as well, could have been in its place. */
        bool valid = describe(arena, run, oldest.first, oldest.word);
        if (!valid || run->size > limit) {
            change(arena, run, RBI_BLOCK_LEASED, owner, RBI_BLOCK_RETURNED, 0);
            return valid ? RBI_ARENA_SMALL : RBI_ARENA_CORRUPT;
        }
        count_attempt(arena, run);
        return RBI_ARENA_OK;
    }
}

enum rbi_arena_outcome rbi_arena_find(struct rbi_arena *arena, struct rbi_run *run, enum rbi_block_kind kind, uint32_t owner,
                                      uint64_t first, uint64_t record)
{
    uint64_t word;
    if (!read_run(arena, first, kind, &word) || owner_of(word) != owner) return RBI_ARENA_CORRUPT;
    bool valid = describe(arena, run, first, word);
    if (kind == RBI_BLOCK_RESERVED) { /* its entry has what an earlier message left there */
        run->size = 0;
        run->attempts = 0;
        run->turn = 0;
        valid = true;
    }
    return valid && run->record == record ? RBI_ARENA_OK : RBI_ARENA_CORRUPT;
}

enum rbi_arena_outcome rbi_arena_give_back(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_LEASED, owner, RBI_BLOCK_RETURNED, 0);
    RBI_POINT(run_returned);
    return outcome;
}

enum rbi_arena_outcome rbi_arena_keep(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_LEASED, owner, RBI_BLOCK_HELD, owner);
    RBI_POINT(run_kept);
    return outcome;
}

enum rbi_arena_outcome rbi_arena_end_lease(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_LEASED, owner, RBI_BLOCK_RESERVED, owner);
    RBI_POINT(run_ended);
    return outcome;
}

enum rbi_arena_outcome rbi_arena_end_hold(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner)
{
    enum rbi_arena_outcome outcome = change(arena, run, RBI_BLOCK_HELD, owner, RBI_BLOCK_RESERVED, owner);
    RBI_POINT(run_ended);
    return outcome;
}

/* ---- recovery ---- */

struct recovery {
    struct rbi_ring *ring;
    uint64_t now_s;
    uint32_t owner;
    bool keep;
    bool some_returned;
    bool undone;
    bool corrupt;
};

static void discard(struct rbi_arena *arena, uint64_t first, uint64_t word, uint64_t now_s)
{
    if (parts_of(arena, first, length_of(word)) & ~load_parts(arena)) return; /* no run: something has written over it */
    enum rbi_pages pages = pages_of(word) == RBI_PAGES_BACKED ? RBI_PAGES_BACKED : RBI_PAGES_UNSURE;
    free_blocks(arena, first, length_of(word), pages, now_s);
    if (length_of(word) <= SHORT_BLOCKS) raise_short_end(arena, first + length_of(word));
}

/** What the dead one had leased.  Its record accounts for the message as long as it is TAKEN by the dead one. */
static void return_lease(struct rbi_arena *arena, struct recovery *recovery, uint64_t first, uint64_t word)
{
    uint32_t taker;
    bool reference;
    uint64_t number = rbi_load_relaxed64(&arena->entries[first].record); /* relaxed: [E9] through the word */
    enum rbi_kind fate = rbi_ring_fate(recovery->ring, number, &taker, &reference);
    if (fate != RBI_KIND_TAKEN || taker != recovery->owner) {
        rbi_store_total64(&arena->table[first], with(word, 0, RBI_BLOCK_RETURNED)); /* [E9] */
        recovery->some_returned = true;
    } else if (reference) {
        rbi_store_total64(&arena->table[first], with(word, 0, RBI_BLOCK_QUEUED)); /* [E9] */
    } else {
        discard(arena, first, word, recovery->now_s);
    }
    RBI_POINT(recovery_lease_undone);
}

/** What the dead one had queued: a message if its record was published, and then the record accounts for it. */
static void drop_unpublished(struct rbi_arena *arena, struct recovery *recovery, uint64_t first, uint64_t word)
{
    uint32_t owner;
    bool reference;
    uint64_t number = rbi_load_relaxed64(&arena->entries[first].record); /* relaxed: [E9] through the word */
    enum rbi_kind fate = rbi_ring_fate(recovery->ring, number, &owner, &reference);
    if (fate == RBI_KIND_READY || fate == RBI_KIND_TAKEN || fate == RBI_KIND_RETURNED) return;
    /* Not published, or consumed since we read the word: then it has changed. */
    if (!rbi_cas_total64(&arena->table[first], word, with(word, recovery->owner, RBI_BLOCK_RESERVED))) return;
    recovery->undone = true;
    RBI_POINT(recovery_run_dropped);
    discard(arena, first, word, recovery->now_s);
}

static bool undo(struct rbi_arena *arena, uint64_t block, uint64_t word, void *context)
{
    struct recovery *recovery = context;
    if (kind_of(word) == RBI_BLOCK_REST) return true;
    if (!begins_run(arena, block, word)) {
        recovery->corrupt = true;
        return true;
    }
    if (kind_of(word) == RBI_BLOCK_RETURNED) recovery->some_returned = true; /* who returned it may have died before the hint */
    if (owner_of(word) != recovery->owner) return true;
    switch (kind_of(word)) {
    case RBI_BLOCK_RESERVED:
    case RBI_BLOCK_HELD:
        if (recovery->keep) break;
        recovery->undone = true;
        discard(arena, block, word, recovery->now_s);
        RBI_POINT(recovery_run_freed);
        break;
    case RBI_BLOCK_QUEUED:
        drop_unpublished(arena, recovery, block, word);
        break;
    case RBI_BLOCK_LEASED:
        recovery->undone = true;
        return_lease(arena, recovery, block, word);
        break;
    default:
        break;
    }
    return true;
}

enum rbi_arena_outcome rbi_arena_recover(struct rbi_arena *arena, struct rbi_ring *ring, uint32_t owner, bool keep, uint64_t now_s)
{
    struct recovery recovery = {.ring = ring, .owner = owner, .keep = keep, .now_s = now_s};
    walk(arena, undo, &recovery);
    if (recovery.some_returned) rbi_ring_set_returned(ring);
    arena->undone = recovery.undone || recovery.some_returned;
    return recovery.corrupt ? RBI_ARENA_CORRUPT : RBI_ARENA_OK;
}

/* ---- giving memory back ---- */

static bool is_idle(uint64_t word, uint64_t now_s, uint64_t idle_s)
{
    if (kind_of(word) != RBI_BLOCK_FREE || pages_of(word) == RBI_PAGES_NONE) return false;
    return ((now_s - (word >> FREED_SHIFT)) & FREED_MASK) >= idle_s;
}

/** What take_free() looks for. */
struct wish {
    bool bare;              /* blocks without memory; else idle ones with memory */
    uint64_t now_s, idle_s;
};

static bool is_wished_for(uint64_t word, const struct wish *wish)
{
    if (wish->bare) return kind_of(word) == RBI_BLOCK_FREE && pages_of(word) != RBI_PAGES_BACKED;
    return is_idle(word, wish->now_s, wish->idle_s);
}

/** Reserve the next free blocks below *from that are wished for. */
static enum rbi_arena_outcome take_free(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, const struct wish *wish,
                                        uint64_t *from, bool *gave_back)
{
    *gave_back = false;
    if (arena->blocks == 0) return RBI_ARENA_EMPTY;
    const uint64_t parts = load_parts(arena);
    const uint64_t most = arena->block_log2 < IDLE_BYTES_LOG2 ? UINT64_C(1) << (IDLE_BYTES_LOG2 - arena->block_log2) : 1;
    uint64_t first = *from <= arena->blocks ? *from : arena->blocks;
    while (first > 0) {
        const uint64_t end = first;
        while (first > 0 && end - first < most && has_part(parts, arena, first - 1) && is_wished_for(load_word(arena, first - 1), wish))
            first--;
        uint64_t claimed;
        bool backed;
        if (first == end) {
            first--;
        } else if (claim(arena, first, end - first, owner, &claimed, &backed)) {
            *run = (struct rbi_run){.first = first, .blocks = end - first, .backed = backed};
            *from = first;
            return RBI_ARENA_OK;
        } else if (claimed) {
            *gave_back = true;
        }
    }
    *from = 0;
    return RBI_ARENA_EMPTY;
}

enum rbi_arena_outcome rbi_arena_take_idle(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t now_s, uint64_t idle_s,
                                           uint64_t *from, bool *gave_back)
{
    return take_free(arena, run, owner, &(struct wish){.now_s = now_s, .idle_s = idle_s}, from, gave_back);
}

enum rbi_arena_outcome rbi_arena_take_bare(struct rbi_arena *arena, struct rbi_run *run, uint32_t owner, uint64_t *from, bool *gave_back)
{
    return take_free(arena, run, owner, &(struct wish){.bare = true}, from, gave_back);
}

bool rbi_arena_may_trim(struct rbi_arena *arena, uint64_t now_ns, uint64_t interval_ns)
{
    /* relaxed, all: it only limits how often.  A time that lies in the future was written by another clock, and says nothing. */
    uint64_t last = rbi_load_relaxed64(&arena->shared->trimmed_ns);
    if (now_ns - last < interval_ns) return false;
    rbi_store_relaxed64(&arena->shared->trimmed_ns, now_ns);
    return true;
}

/* ---- looking ---- */

bool rbi_arena_has_room(struct rbi_arena *arena, uint64_t size, uint64_t spare)
{
    if (arena->blocks == 0 || size > rbi_arena_bytes(arena)) return false;
    struct search search = begin_search(arena, rbi_arena_blocks_for(arena, size), spare);
    return find(arena, &search, load_parts(arena)) != arena->blocks;
}

uint64_t rbi_arena_parts(const struct rbi_arena *arena) { return arena->blocks ? load_parts(arena) : 0; }

void rbi_arena_begin_fitting(struct rbi_arena *arena, struct rbi_fitting *fitting, uint64_t spare)
{
    *fitting = (struct rbi_fitting){.spare = rbi_window_end(spare) <= arena->blocks ? spare : 0, .high = arena->blocks};
}

bool rbi_arena_fits_too(struct rbi_arena *arena, struct rbi_fitting *fitting, uint64_t size)
{
    if (arena->blocks == 0 || size > rbi_arena_bytes(arena)) return false;
    const uint64_t wanted = rbi_arena_blocks_for(arena, size), parts = load_parts(arena);
    uint64_t found;
    if (wanted > SHORT_BLOCKS) {
        found = find_upwards(arena, fitting->low, wanted, parts, fitting->spare);
        if (found == arena->blocks) return false;
        fitting->low = found + wanted;
    } else {
        found = find_downwards(arena, fitting->high, wanted, parts, fitting->spare);
        if (found == arena->blocks) return false;
        fitting->high = found;
    }
    return fitting->low <= fitting->high;
}

bool rbi_arena_has_spare_pages(struct rbi_arena *arena)
{
    if (arena->blocks == 0) return false;
    uint64_t parts = load_parts(arena);
    for (uint64_t block = 0; block < arena->blocks;) {
        if (!has_part(parts, arena, block)) {
            block = (part_of(arena, block) + 1) * (arena->blocks / RBI_TABLE_PARTS);
            continue;
        }
        uint64_t word = load_word(arena, block);
        if (kind_of(word) == RBI_BLOCK_FREE && pages_of(word) != RBI_PAGES_NONE) return true;
        block++;
    }
    return false;
}

/** Goes through the arena block by block. */
struct scales {
    uint64_t block;
    uint64_t run_end; /* blocks before this belong to a run, of which each weighs `weight` */
    uint64_t weight;
};

/** How much the next block weighs. */
static uint64_t weigh_next(const struct rbi_arena *arena, struct scales *scales, uint64_t parts, uint64_t held_weight)
{
    uint64_t block = scales->block++;
    if (block < scales->run_end) return scales->weight;
    if (!has_part(parts, arena, block)) return 0;
    uint64_t word = load_word(arena, block);
    if (kind_of(word) == RBI_BLOCK_FREE) return 0;
    if (!begins_run(arena, block, word)) return 1;
    const bool waits = kind_of(word) == RBI_BLOCK_QUEUED || kind_of(word) == RBI_BLOCK_RETURNED;
    scales->weight = waits ? 1 : held_weight;
    scales->run_end = block + length_of(word);
    return scales->weight;
}

uint64_t rbi_arena_emptiest(struct rbi_arena *arena, uint64_t blocks, uint64_t held_weight)
{
    /* Others may change the words between the first look and the second: then a sum is wrong, and a window is chosen that is not the
     * best. */
    const uint64_t parts = load_parts(arena);
    struct scales front = {0}, back = {0};
    uint64_t sum = 0, least = UINT64_MAX, best = 0;
    while (front.block < arena->blocks) {
        sum += weigh_next(arena, &front, parts, held_weight);
        if (front.block < blocks) continue;
        bool better = blocks > SHORT_BLOCKS ? sum < least : sum <= least; /* as they are looked for: from the bottom, from the top */
        if (better) {
            least = sum;
            best = front.block - blocks;
        }
        uint64_t left_behind = weigh_next(arena, &back, parts, held_weight);
        sum -= left_behind < sum ? left_behind : sum;
    }
    return best;
}

void rbi_arena_count(struct rbi_arena *arena, struct rbi_arena_census *census)
{
    *census = (struct rbi_arena_census){0};
    if (arena->blocks == 0) return;
    uint64_t parts = load_parts(arena), free_since = 0;
    for (uint64_t block = 0; block < arena->blocks; block++) {
        uint64_t word = has_part(parts, arena, block) ? load_word(arena, block) : 0;
        if (kind_of(word) == RBI_BLOCK_FREE) {
            if (pages_of(word) != RBI_PAGES_NONE) census->backed_blocks++;
            if (block + 1 - free_since > census->longest_free_blocks) census->longest_free_blocks = block + 1 - free_since;
            continue;
        }
        free_since = block + 1;
        census->used_blocks++;
        census->backed_blocks++;
        if (kind_of(word) < RBI_BLOCK_REST) census->runs[kind_of(word)]++;
    }
}

struct checking {
    struct rbi_ring *ring;
    struct rbi_arena_findings *findings;
    bool (*alive)(uint32_t owner, void *context);
    void *context;
    uint64_t covered_to; /* blocks before this belong to a run that was seen */
    uint64_t referred;   /* runs that a message in the ring refers to */
};

static bool is_accounted_for(struct rbi_arena *arena, uint64_t block, uint64_t word, struct checking *checking)
{
    uint32_t owner;
    bool reference;
    switch (kind_of(word)) {
    case RBI_BLOCK_RETURNED: return true;
    case RBI_BLOCK_QUEUED: {
        uint64_t number = rbi_load_relaxed64(&arena->entries[block].record); /* relaxed: a check */
        enum rbi_kind fate = rbi_ring_fate(checking->ring, number, &owner, &reference);
        if (fate == RBI_KIND_READY || fate == RBI_KIND_TAKEN || fate == RBI_KIND_RETURNED) {
            checking->referred += reference;
            return reference;
        }
        return owner_of(word) != 0 && checking->alive(owner_of(word), checking->context);
    }
    default: return checking->alive(owner_of(word), checking->context);
    }
}

static bool check_block(struct rbi_arena *arena, uint64_t block, uint64_t word, void *context)
{
    struct checking *checking = context;
    struct rbi_arena_findings *findings = checking->findings;
    if (kind_of(word) == RBI_BLOCK_REST) {
        if (block >= checking->covered_to) findings->orphaned_blocks++;
        return true;
    }
    findings->runs++;
    bool whole = begins_run(arena, block, word);
    for (uint64_t rest = 1; whole && rest < length_of(word); rest++) {
        uint64_t of = block + rest;
        whole = has_part(load_parts(arena), arena, of) && load_word(arena, of) == rest_word(block);
    }
    if (!whole) {
        findings->broken_runs++;
        return true;
    }
    checking->covered_to = block + length_of(word);
    if (!is_accounted_for(arena, block, word, checking)) findings->orphaned_runs++;
    return true;
}

void rbi_arena_check(struct rbi_arena *arena, struct rbi_ring *ring, struct rbi_arena_findings *findings,
                     bool (*alive)(uint32_t owner, void *context), void *context)
{
    *findings = (struct rbi_arena_findings){0};
    struct checking checking = {.ring = ring, .findings = findings, .alive = alive, .context = context};
    walk(arena, check_block, &checking);
    uint64_t references = 0;
    if (rbi_ring_references(ring, &references) == RBI_RING_OK && references > checking.referred)
        findings->dangling_messages = references - checking.referred;
}
