/* test_arena.c — floor 2: runs of blocks, on plain memory.  Situations are arranged by writing the table's words, and the ring's by
 * the calls of its floor.  Built with the test points: what others do between two steps of a call happens there, and so do deaths. */
#include "support.h"

#include "arena.h"

#include <pthread.h>
#include <setjmp.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

enum {
    ME = 1,
    OTHER = 2,
    DEAD = 3,
    BLOCKS = 128, /* two in each part of the table */
    BLOCK_LOG2 = 6,
    BLOCK = 1 << BLOCK_LOG2,
    SHORT = 16, /* the longest runs that are looked for from the top */
    CELLS_LOG2 = 5,
    CELLS = 1 << CELLS_LOG2,
    CELL_LOG2 = RBI_CELL_MIN_LOG2,
    NOW = 1000, /* seconds */
};
static const uint64_t all_parts = UINT64_MAX;

/* ---- memory with a fence around it: nobody writes there, and under AddressSanitizer nobody reads there either ---- */

enum { FENCE = 64, FENCE_BYTE = 0xa5, FENCES = 6 };

static struct fenced {
    uint8_t *whole;
    size_t bytes;
} fenced[FENCES];
static int fences;

static void *fence(uint64_t bytes)
{
    uint8_t *whole = calloc(1, (size_t)bytes + 2 * FENCE);
    TEST_ASSERT_NOT_NULL(whole);
    memset(whole, FENCE_BYTE, FENCE);
    memset(whole + FENCE + bytes, FENCE_BYTE, FENCE);
    ASAN_POISON_MEMORY_REGION(whole, FENCE);
    ASAN_POISON_MEMORY_REGION(whole + FENCE + bytes, FENCE);
    fenced[fences++] = (struct fenced){whole, (size_t)bytes};
    return whole + FENCE;
}

/** Give all of it back; whether every fence is as it was. */
static bool tear_fences_down(void)
{
    bool whole = true;
    while (fences) {
        struct fenced *last = &fenced[--fences];
        ASAN_UNPOISON_MEMORY_REGION(last->whole, FENCE);
        ASAN_UNPOISON_MEMORY_REGION(last->whole + FENCE + last->bytes, FENCE);
        for (size_t i = 0; i < FENCE; i++)
            whole = whole && last->whole[i] == FENCE_BYTE && last->whole[FENCE + last->bytes + i] == FENCE_BYTE;
        free(last->whole);
    }
    return whole;
}

/* ---- an arena and a ring to play with ---- */

static struct rbi_arena arena;
static struct rbi_arena_words words;
static rbi_atomic64 *table;
static struct rbi_run_entry *entries;
static uint8_t *memory;

static struct rbi_ring ring;
static struct rbi_order order;
static struct rbi_slot *slots;

/** An arena whose table has pages where `parts` says so, and an empty ring beside it. */
static void start_arena_of(uint64_t blocks, uint32_t block_log2, uint64_t parts)
{
    TEST_ASSERT_TRUE(tear_fences_down());
    table = fence(blocks * sizeof *table);
    entries = fence(blocks * sizeof *entries);
    memory = fence(blocks << block_log2);
    memset(&words, 0, sizeof words);
    rbi_arena_init(&arena, &words, table, entries, memory, blocks, block_log2);
    if (parts) rbi_arena_raise_parts(&arena, parts);

    struct rbi_cursors *cursors = fence(RBI_LANES * sizeof *cursors);
    slots = fence((RBI_LANES * sizeof *slots) << CELLS_LOG2);
    uint8_t *data = fence((RBI_LANES * 2ul) << (CELLS_LOG2 + CELL_LOG2)); /* not mirrored: messages here lie in their slots */
    memset(&order, 0, sizeof order);
    rbi_ring_init(&ring, &order, CELLS_LOG2, CELL_LOG2, 0);
    for (uint64_t lane = 0; lane < RBI_LANES; lane++) {
        rbi_ring_add_lane(&ring, &cursors[lane], &slots[lane << CELLS_LOG2], data + ((2 * lane) << (CELLS_LOG2 + CELL_LOG2)));
        rbi_store_relaxed64(&cursors[lane].reserved_cells, CELLS);
    }
    rbi_ring_start_at(&ring, rbi_ring_first_position(&ring));
    ring.patience = 0;
    ring.looks_aside = true;
}

static void start_arena(void) { start_arena_of(BLOCKS, BLOCK_LOG2, all_parts); }

void setUp(void) { start_arena(); }
void tearDown(void)
{
    rbi_point_hook = NULL;
    if (!tear_fences_down()) TEST_FAIL_MESSAGE("somebody wrote over a fence");
}

/* ---- words as layout.h pictures them ---- */

static uint64_t run_word(enum rbi_block_kind kind, uint32_t owner, uint64_t blocks, enum rbi_pages pages)
{
    return (uint64_t)pages << 40 | blocks << 16 | (uint64_t)owner << 4 | (uint64_t)kind;
}
static uint64_t rest_word(uint64_t first) { return first << 16 | RBI_BLOCK_REST; }
static uint64_t free_word(uint64_t freed_s, enum rbi_pages pages) { return freed_s << 42 | (uint64_t)pages << 40; }

static uint64_t word_at(uint64_t block) { return rbi_load_total64(&table[block]); }
static void write_word(uint64_t block, uint64_t word) { rbi_store_total64(&table[block], word); }
static enum rbi_block_kind kind_at(uint64_t block) { return (enum rbi_block_kind)(word_at(block) & 15); }
static uint32_t owner_at(uint64_t block) { return (uint32_t)(word_at(block) >> 4) & RBI_OWNER_MAX; }

/** A complete run, by hand. */
static void write_run(uint64_t first, enum rbi_block_kind kind, uint32_t owner, uint64_t blocks)
{
    write_word(first, run_word(kind, owner, blocks, RBI_PAGES_BACKED));
    for (uint64_t block = first + 1; block < first + blocks; block++) write_word(block, rest_word(first));
}

static void write_entry(uint64_t first, uint64_t size, uint32_t attempts, uint64_t record)
{
    rbi_store_relaxed64(&entries[first].size, size | (uint64_t)attempts << RBI_ATTEMPTS_SHIFT);
    rbi_store_relaxed64(&entries[first].record, record);
}

static uint32_t attempts_at(uint64_t first)
{
    return rbi_load_relaxed64(&entries[first].size) >> RBI_ATTEMPTS_SHIFT & RBI_ATTEMPTS_MAX;
}

/* ---- one line for each thing that is done all the time ---- */

#define ASSERT_OUTCOME(expected, call) TEST_ASSERT_EQUAL_INT(expected, call)
#define ASSERT_DONE(call) ASSERT_OUTCOME(RBI_ARENA_OK, call)
#define ASSERT_RING(expected, call) TEST_ASSERT_EQUAL_INT(expected, call)

static enum rbi_arena_outcome allocate(struct rbi_run *run, uint32_t owner, uint64_t size)
{
    uint64_t parts;
    bool gave_back;
    return rbi_arena_allocate(&arena, run, owner, size, 0, &parts, &gave_back);
}

/** Idle memory, wherever it lies. */
static enum rbi_arena_outcome take_idle(struct rbi_run *run, uint32_t owner, uint64_t now_s, uint64_t idle_s)
{
    uint64_t from = arena.blocks;
    bool gave_back;
    return rbi_arena_take_idle(&arena, run, owner, now_s, idle_s, &from, &gave_back);
}

/** A run with memory. */
static struct rbi_run reserve_as(uint32_t owner, uint64_t blocks)
{
    struct rbi_run run;
    ASSERT_DONE(allocate(&run, owner, blocks << arena.block_log2));
    TEST_ASSERT_EQUAL_UINT64(blocks, run.blocks);
    TEST_ASSERT_EQUAL_PTR(memory + (run.first << arena.block_log2), run.payload);
    if (!run.backed) rbi_arena_set_backed(&arena, &run, owner);
    return run;
}

static struct rbi_run reserve(uint64_t blocks) { return reserve_as(ME, blocks); }

static void release_run(const struct rbi_run *run) { rbi_arena_free(&arena, run, ME, NOW); }

static void assert_allocate(enum rbi_arena_outcome expected, uint64_t size)
{
    struct rbi_run run;
    TEST_ASSERT_EQUAL(expected == RBI_ARENA_OK, rbi_arena_has_room(&arena, size, 0));
    ASSERT_OUTCOME(expected, allocate(&run, ME, size));
}

static struct rbi_arena_census census(void)
{
    struct rbi_arena_census counted;
    rbi_arena_count(&arena, &counted);
    return counted;
}

static void assert_all_free(void)
{
    for (uint64_t block = 0; block < arena.blocks; block++) TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(block));
    struct rbi_arena_census counted = census();
    TEST_ASSERT_EQUAL_UINT64(0, counted.used_blocks);
    TEST_ASSERT_EQUAL_UINT64(arena.blocks, counted.longest_free_blocks);
}

/** How long the longest row of free blocks is, counted by the simplest means. */
static uint64_t longest_free(void)
{
    uint64_t longest = 0, length = 0;
    for (uint64_t block = 0; block < arena.blocks; block++) {
        length = kind_at(block) == RBI_BLOCK_FREE ? length + 1 : 0;
        if (length > longest) longest = length;
    }
    return longest;
}

static bool everybody_but_the_dead(uint32_t owner, void *context)
{
    (void)context;
    return owner == ME || owner == OTHER;
}

static struct rbi_arena_findings check(void)
{
    struct rbi_arena_findings found;
    rbi_arena_check(&arena, &ring, &found, everybody_but_the_dead, NULL);
    return found;
}

static void assert_findings(uint64_t runs, uint64_t orphaned_blocks, uint64_t orphaned_runs, uint64_t broken_runs,
                            uint64_t dangling_messages)
{
    struct rbi_arena_findings found = check();
    TEST_ASSERT_EQUAL_UINT64(runs, found.runs);
    TEST_ASSERT_EQUAL_UINT64(orphaned_blocks, found.orphaned_blocks);
    TEST_ASSERT_EQUAL_UINT64(orphaned_runs, found.orphaned_runs);
    TEST_ASSERT_EQUAL_UINT64(broken_runs, found.broken_runs);
    TEST_ASSERT_EQUAL_UINT64(dangling_messages, found.dangling_messages);
}

static void assert_healthy(uint64_t runs) { assert_findings(runs, 0, 0, 0, 0); }

static bool hint(void) { return rbi_ring_some_returned(&ring); }
static void clear_hint(void) { rbi_store_total64(&order.returned, 0); }

/* ---- messages: as queue.c moves them ---- */

enum { LARGE = 5 * BLOCK - 3, SMALL = 20 };

static void write_number(uint8_t *payload, uint64_t size, uint64_t number)
{
    for (uint64_t i = 0; i < size; i++) payload[i] = (uint8_t)(number * 31 + i);
}

static bool tells_number(const uint8_t *payload, uint64_t size, uint64_t number)
{
    for (uint64_t i = 0; i < size; i++)
        if (payload[i] != (uint8_t)(number * 31 + i)) return false;
    return true;
}

/** A record that is claimed by `owner` and will refer to the run, which is queued. */
static struct rbi_record queue_unpublished(struct rbi_run *run, uint32_t owner)
{
    struct rbi_record record;
    ASSERT_RING(RBI_RING_OK, rbi_ring_claim(&ring, &record, owner, sizeof run->first));
    run->record = rbi_ring_number_of(&record);
    ASSERT_DONE(rbi_arena_queue(&arena, run, owner));
    rbi_ring_refer(&record, run->size, run->first);
    return record;
}

/** Put message `number` into the arena. */
static struct rbi_run put_large_as(uint32_t owner, uint64_t number)
{
    struct rbi_run run = reserve_as(owner, (LARGE + BLOCK - 1) / BLOCK);
    run.size = LARGE;
    write_number(run.payload, LARGE, number);
    struct rbi_record record = queue_unpublished(&run, owner);
    ASSERT_RING(RBI_RING_OK, rbi_ring_publish(&ring, &record, owner));
    return run;
}

static struct rbi_run put_large(uint64_t number) { return put_large_as(ME, number); }

static void put_small(uint64_t number)
{
    struct rbi_record record;
    ASSERT_RING(RBI_RING_OK, rbi_ring_claim(&ring, &record, ME, SMALL));
    write_number(record.payload, SMALL, number);
    ASSERT_RING(RBI_RING_OK, rbi_ring_publish(&ring, &record, ME));
}

static struct rbi_record take_record_as(uint32_t owner)
{
    struct rbi_record record;
    ASSERT_RING(RBI_RING_OK, rbi_ring_take(&ring, &record, owner, UINT64_MAX));
    return record;
}

/** The run that a taken record refers to, leased; the record is still taken. */
static struct rbi_run follow_as(uint32_t owner, const struct rbi_record *record)
{
    uint64_t first;
    struct rbi_run run = {.record = rbi_ring_number_of(record), .size = record->size, .attempts = record->attempts};
    TEST_ASSERT_TRUE(record->reference);
    memcpy(&first, record->payload, sizeof first);
    ASSERT_DONE(rbi_arena_lease_queued(&arena, &run, owner, first));
    return run;
}

/** A lease on the next message, which is a large one. */
static struct rbi_run lease_large_as(uint32_t owner)
{
    struct rbi_record record = take_record_as(owner);
    struct rbi_run run = follow_as(owner, &record);
    rbi_ring_release(&ring, &record);
    return run;
}

/** A copy of a small message that was taken; the record is still taken. */
static struct rbi_run copy_as(uint32_t owner, const struct rbi_record *record)
{
    struct rbi_run run = reserve_as(owner, 1);
    memcpy(run.payload, record->payload, record->size);
    run.size = record->size;
    run.attempts = record->attempts;
    run.record = rbi_ring_number_of(record);
    ASSERT_DONE(rbi_arena_lease_copy(&arena, &run, owner));
    return run;
}

static struct rbi_run lease_small_as(uint32_t owner)
{
    struct rbi_record record = take_record_as(owner);
    struct rbi_run run = copy_as(owner, &record);
    rbi_ring_release(&ring, &record);
    return run;
}

static void acknowledge_as(uint32_t owner, struct rbi_run *run)
{
    ASSERT_DONE(rbi_arena_end_lease(&arena, run, owner));
    rbi_arena_free(&arena, run, owner, NOW);
}

static void give_back_as(uint32_t owner, const struct rbi_run *run)
{
    ASSERT_DONE(rbi_arena_give_back(&arena, run, owner));
    rbi_ring_set_returned(&ring);
}

/** Get the next message, wherever it lies.  False if there is none. */
static bool get_next(uint64_t *number_of_bytes, uint8_t *bytes, uint32_t *attempts)
{
    struct rbi_record record;
    struct rbi_run run;
    for (;;) {
        enum rbi_ring_outcome outcome = rbi_ring_take(&ring, &record, ME, UINT64_MAX);
        if (outcome == RBI_RING_ASIDE) {
            enum rbi_arena_outcome aside = rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX);
            if (aside == RBI_ARENA_EMPTY) {
                rbi_ring_clear_returned(&ring, record.position);
                continue;
            }
            ASSERT_DONE(aside);
        } else if (outcome == RBI_RING_EMPTY || outcome == RBI_RING_PENDING) {
            return false;
        } else {
            ASSERT_RING(RBI_RING_OK, outcome);
            if (!record.reference) {
                memcpy(bytes, record.payload, record.size);
                *number_of_bytes = record.size;
                *attempts = record.attempts;
                rbi_ring_release(&ring, &record);
                return true;
            }
            run = follow_as(ME, &record);
            rbi_ring_release(&ring, &record);
        }
        memcpy(bytes, run.payload, run.size);
        *number_of_bytes = run.size;
        *attempts = run.attempts;
        acknowledge_as(ME, &run);
        return true;
    }
}

static void get_at_attempt(uint64_t number, uint64_t size, uint32_t attempts)
{
    uint64_t got_size = 0;
    uint32_t got_attempts = 0;
    uint8_t got[LARGE];
    TEST_ASSERT_TRUE(get_next(&got_size, got, &got_attempts));
    TEST_ASSERT_EQUAL_UINT64(size, got_size);
    TEST_ASSERT_TRUE(tells_number(got, size, number));
    TEST_ASSERT_EQUAL_UINT32(attempts, got_attempts);
}

static void assert_no_message(void)
{
    uint64_t size;
    uint32_t attempts;
    uint8_t got[LARGE];
    TEST_ASSERT_FALSE(get_next(&size, got, &attempts));
}

/* ---- allocating ---- */

static void test_a_new_arena_is_free_and_has_never_been_used(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 0);
    struct rbi_arena_census counted = census();
    TEST_ASSERT_FALSE(rbi_arena_is_used(&arena));
    TEST_ASSERT_EQUAL_UINT64(BLOCKS * BLOCK, rbi_arena_bytes(&arena));
    TEST_ASSERT_EQUAL_UINT64(0, counted.backed_blocks);
    TEST_ASSERT_TRUE(rbi_arena_has_room(&arena, BLOCKS * BLOCK, 0));
    TEST_ASSERT_FALSE(rbi_arena_has_room(&arena, BLOCKS * BLOCK + 1, 0));
    assert_all_free();
    assert_healthy(0);
}

static void test_an_arena_without_blocks_is_full_and_empty_and_harms_nobody(void)
{
    struct rbi_run run;
    start_arena_of(0, BLOCK_LOG2, 0);
    assert_allocate(RBI_ARENA_FULL, 0);
    assert_allocate(RBI_ARENA_FULL, 1);
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, take_idle(&run, ME, NOW, 0));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_lease_queued(&arena, &run, ME, 0));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &run, RBI_BLOCK_LEASED, ME, 0, 0));
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, ME, false, NOW));
    TEST_ASSERT_FALSE(rbi_arena_is_used(&arena));
    TEST_ASSERT_EQUAL_UINT64(0, rbi_arena_bytes(&arena));
    TEST_ASSERT_EQUAL_UINT64(0, census().longest_free_blocks);
    assert_healthy(0);
    struct rbi_arena zeros;
    memset(&zeros, 0, sizeof zeros); /* as where nobody has set up anything */
    ASSERT_DONE(rbi_arena_recover(&zeros, &ring, ME, false, NOW));
    TEST_ASSERT_FALSE(rbi_arena_is_used(&zeros));
}

static void test_a_run_s_first_block_names_owner_and_length_and_the_others_name_the_first(void)
{
    struct rbi_run run = reserve(3);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RESERVED, ME, 3, RBI_PAGES_BACKED), word_at(run.first));
    TEST_ASSERT_EQUAL_HEX64(rest_word(run.first), word_at(run.first + 1));
    TEST_ASSERT_EQUAL_HEX64(rest_word(run.first), word_at(run.first + 2));
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 3, longest_free());
    assert_healthy(1);
    release_run(&run);
    for (uint64_t block = 0; block < 3; block++)
        TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_BACKED), word_at(run.first + block));
    assert_all_free();
}

static void test_sizes_around_the_block_boundaries_use_the_blocks_they_need(void)
{
    static const struct { uint64_t size, blocks; } cases[] = {
        {0, 1},         {1, 1},         {BLOCK - 1, 1},         {BLOCK, 1},
        {BLOCK + 1, 2}, {2 * BLOCK, 2}, {2 * BLOCK + 1, 3},     {SHORT * BLOCK, SHORT},
        {SHORT * BLOCK + 1, SHORT + 1}, {BLOCKS * BLOCK - 1, BLOCKS}, {BLOCKS * BLOCK, BLOCKS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rbi_run run;
        ASSERT_DONE(allocate(&run, ME, cases[i].size));
        TEST_ASSERT_EQUAL_UINT64(cases[i].size, run.size);
        TEST_ASSERT_EQUAL_UINT64(cases[i].blocks, run.blocks);
        TEST_ASSERT_EQUAL_UINT64(cases[i].blocks, census().used_blocks);
        release_run(&run);
        assert_all_free();
    }
}

static void test_a_message_larger_than_the_arena_never_fits(void)
{
    static const uint64_t sizes[] = {BLOCKS * BLOCK + 1, UINT64_C(1) << 40, UINT64_MAX - BLOCK, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) assert_allocate(RBI_ARENA_FULL, sizes[i]);
    assert_all_free();
}

static void test_long_runs_lie_at_the_bottom_and_short_ones_at_the_top(void)
{
    struct rbi_run long_run = reserve(SHORT + 1), short_run = reserve(SHORT);
    TEST_ASSERT_EQUAL_UINT64(0, long_run.first);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - SHORT, short_run.first);
    struct rbi_run next_long = reserve(2 * SHORT), next_short = reserve(1);
    TEST_ASSERT_EQUAL_UINT64(SHORT + 1, next_long.first);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - SHORT - 1, next_short.first);
}

static void test_a_long_run_takes_the_lowest_hole_that_is_long_enough(void)
{
    write_run(0, RBI_BLOCK_HELD, OTHER, 4);
    write_run(4 + 19, RBI_BLOCK_LEASED, OTHER, 2); /* before it 19 free blocks, behind it 20, then 30 */
    write_run(4 + 19 + 2 + 20, RBI_BLOCK_RESERVED, OTHER, 3);
    write_run(BLOCKS - 50, RBI_BLOCK_QUEUED, OTHER, 50);
    TEST_ASSERT_EQUAL_UINT64(30, longest_free());
    assert_allocate(RBI_ARENA_FULL, 31 * BLOCK);
    TEST_ASSERT_EQUAL_UINT64(25, reserve(20).first);
    TEST_ASSERT_EQUAL_UINT64(4, reserve(19).first);
    TEST_ASSERT_EQUAL_UINT64(48, reserve(30).first);
    TEST_ASSERT_EQUAL_UINT64(0, longest_free());
    assert_allocate(RBI_ARENA_FULL, 0);
}

static void test_a_short_run_takes_the_topmost_hole_that_is_long_enough(void)
{
    write_run(0, RBI_BLOCK_HELD, OTHER, 100);
    write_run(103, RBI_BLOCK_HELD, OTHER, 10); /* before it three free blocks, behind it two, then one */
    write_run(115, RBI_BLOCK_HELD, OTHER, 12);
    assert_allocate(RBI_ARENA_FULL, 4 * BLOCK);
    TEST_ASSERT_EQUAL_UINT64(127, reserve(1).first);
    TEST_ASSERT_EQUAL_UINT64(113, reserve(2).first);
    assert_allocate(RBI_ARENA_FULL, 3 * BLOCK + 1);
    TEST_ASSERT_EQUAL_UINT64(100, reserve(3).first);
    assert_allocate(RBI_ARENA_FULL, 0);
}

static void test_a_short_run_is_found_wherever_the_guess_lies(void)
{
    static const uint64_t guesses[] = {0, 1, 2, 50, BLOCKS - 1, BLOCKS, BLOCKS + 1, UINT64_MAX};
    for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++)
        for (uint64_t hole = 0; hole < BLOCKS; hole += 9) {
            start_arena();
            if (hole) write_run(0, RBI_BLOCK_HELD, OTHER, hole);
            if (hole + 2 < BLOCKS) write_run(hole + 2, RBI_BLOCK_HELD, OTHER, BLOCKS - hole - 2);
            rbi_store_relaxed64(&words.short_end, guesses[i]);
            assert_allocate(RBI_ARENA_FULL, 2 * BLOCK + 1);
            TEST_ASSERT_TRUE(rbi_arena_has_room(&arena, 2 * BLOCK, 0));
            TEST_ASSERT_EQUAL_UINT64(hole, reserve(2).first);
        }
}

static void test_short_runs_go_up_again_to_where_others_were_freed(void)
{
    struct rbi_run runs[20];
    for (int i = 0; i < 20; i++) runs[i] = reserve(2);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 40, runs[19].first);
    release_run(&runs[3]);
    release_run(&runs[19]); /* the one freed last does not draw the next ones down */
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 8, reserve(2).first);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 40, reserve(2).first);
    write_run(BLOCKS - 2, RBI_BLOCK_RESERVED, DEAD, 2);
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, DEAD, false, NOW));
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 2, reserve(1).first & ~UINT64_C(1));
}

static void test_an_arena_is_full_exactly_when_every_block_is_taken(void)
{
    struct rbi_run runs[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) runs[i] = reserve(1);
    assert_allocate(RBI_ARENA_FULL, 0);
    assert_allocate(RBI_ARENA_FULL, BLOCK);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS, census().used_blocks);
    assert_healthy(BLOCKS);
    release_run(&runs[77]);
    assert_allocate(RBI_ARENA_FULL, BLOCK + 1);
    runs[77] = reserve(1);
    assert_allocate(RBI_ARENA_FULL, 0);
    for (int i = 0; i < BLOCKS; i++) release_run(&runs[i]);
    assert_all_free();
}

static void test_a_refused_allocation_changes_nothing(void)
{
    write_run(30, RBI_BLOCK_HELD, OTHER, 70);
    uint64_t before[BLOCKS];
    struct rbi_run run;
    uint64_t parts;
    bool gave_back = true;
    memcpy(before, table, sizeof before);
    ASSERT_OUTCOME(RBI_ARENA_FULL, rbi_arena_allocate(&arena, &run, ME, 31 * BLOCK, 0, &parts, &gave_back));
    TEST_ASSERT_FALSE(gave_back);
    TEST_ASSERT_EQUAL_MEMORY(before, table, sizeof before);
}

static void test_neighbours_that_were_freed_are_one_hole(void)
{
    struct rbi_run runs[8];
    for (int i = 0; i < 8; i++) runs[i] = reserve(BLOCKS / 8);
    assert_allocate(RBI_ARENA_FULL, 0);
    static const int freed_in_this_order[] = {3, 5, 4};
    for (int i = 0; i < 3; i++) release_run(&runs[freed_in_this_order[i]]);
    TEST_ASSERT_EQUAL_UINT64(3 * BLOCKS / 8, census().longest_free_blocks);
    assert_allocate(RBI_ARENA_FULL, 3 * BLOCKS / 8 * BLOCK + 1);
    struct rbi_run whole = reserve(3 * BLOCKS / 8);
    assert_allocate(RBI_ARENA_FULL, 0);
    release_run(&whole);
    for (int i = 0; i < 8; i++)
        if (i < 3 || i > 5) release_run(&runs[i]);
    assert_all_free();
    whole = reserve(BLOCKS);
    assert_allocate(RBI_ARENA_FULL, 0);
    release_run(&whole);
    assert_all_free();
}

/* ---- parts of the table ---- */

static void test_an_allocation_says_which_parts_need_pages_and_changes_nothing(void)
{
    static const struct { uint64_t blocks, parts; } cases[] = {
        {1, UINT64_C(1) << 63},          {2, UINT64_C(1) << 63},
        {3, UINT64_C(3) << 62},          {SHORT, UINT64_C(255) << 56},
        {SHORT + 1, (1u << 9) - 1},      {2 * SHORT, (1u << 16) - 1},
        {BLOCKS - 2, UINT64_MAX >> 1},   {BLOCKS, UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start_arena_of(BLOCKS, BLOCK_LOG2, 0);
        struct rbi_run run;
        uint64_t parts = 0;
        bool gave_back = true;
        ASSERT_OUTCOME(RBI_ARENA_PARTS, rbi_arena_allocate(&arena, &run, ME, cases[i].blocks * BLOCK, 0, &parts, &gave_back));
        TEST_ASSERT_EQUAL_HEX64(cases[i].parts, parts);
        TEST_ASSERT_FALSE(gave_back);
        TEST_ASSERT_FALSE(rbi_arena_is_used(&arena));
        for (uint64_t block = 0; block < BLOCKS; block++) TEST_ASSERT_EQUAL_HEX64(0, word_at(block));
        rbi_arena_raise_parts(&arena, parts);
        TEST_ASSERT_TRUE(rbi_arena_is_used(&arena));
        ASSERT_DONE(rbi_arena_allocate(&arena, &run, ME, cases[i].blocks * BLOCK, 0, &parts, &gave_back));
        TEST_ASSERT_EQUAL_UINT64(cases[i].blocks, run.blocks);
    }
}

static void test_an_allocation_asks_only_for_the_parts_that_are_missing(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 5);
    struct rbi_run run;
    uint64_t parts = 0;
    bool gave_back;
    ASSERT_OUTCOME(RBI_ARENA_PARTS, rbi_arena_allocate(&arena, &run, ME, 20 * BLOCK, 0, &parts, &gave_back));
    TEST_ASSERT_EQUAL_HEX64(((1u << 10) - 1) & ~5u, parts);
}

static void test_parts_once_raised_stay(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 0);
    rbi_arena_raise_parts(&arena, 1);
    rbi_arena_raise_parts(&arena, 6);
    rbi_arena_raise_parts(&arena, 2);
    TEST_ASSERT_EQUAL_HEX64(7, rbi_load_total64(&words.parts));
}

static void test_what_lies_in_a_part_without_pages_is_free_and_not_looked_at(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 0);
    struct rbi_run run;
    for (uint64_t block = 0; block < BLOCKS; block++) write_word(block, run_word(RBI_BLOCK_RETURNED, 0, 1, RBI_PAGES_BACKED));
    TEST_ASSERT_TRUE(rbi_arena_has_room(&arena, BLOCKS * BLOCK, 0));
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, take_idle(&run, ME, NOW, 0));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &run, RBI_BLOCK_RETURNED, 0, 3, 0));
    struct rbi_arena_census counted = census();
    TEST_ASSERT_EQUAL_UINT64(0, counted.used_blocks);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS, counted.longest_free_blocks);
    assert_healthy(0);
    rbi_arena_raise_parts(&arena, 2); /* blocks 2 and 3 */
    TEST_ASSERT_EQUAL_UINT64(2, census().used_blocks);
    TEST_ASSERT_EQUAL_UINT64(BLOCKS - 4, census().longest_free_blocks);
    assert_healthy(2);
}

/* ---- what has memory behind it ---- */

static void test_memory_that_was_given_to_a_run_is_known_to_be_there_for_the_next_one(void)
{
    struct rbi_run run;
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    TEST_ASSERT_FALSE(run.backed);
    rbi_arena_set_backed(&arena, &run, ME);
    TEST_ASSERT_TRUE(run.backed);
    release_run(&run);
    TEST_ASSERT_EQUAL_UINT64(20, census().backed_blocks);
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    TEST_ASSERT_TRUE(run.backed);
    release_run(&run);
    ASSERT_DONE(allocate(&run, ME, 21 * BLOCK)); /* one block more, which has none */
    TEST_ASSERT_FALSE(run.backed);
}

static void test_a_run_is_backed_only_if_its_first_block_is_too(void)
{
    struct rbi_run run;
    for (uint64_t block = 1; block < 20; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    TEST_ASSERT_FALSE(run.backed);
}

static void test_who_frees_a_run_without_memory_does_not_claim_that_it_has_any(void)
{
    struct rbi_run run;
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    release_run(&run); /* giving it memory failed, perhaps half way */
    for (uint64_t block = 0; block < 20; block++) TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_UNSURE), word_at(block));
    TEST_ASSERT_EQUAL_UINT64(20, census().backed_blocks); /* there may be some, to be given back */
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    TEST_ASSERT_FALSE(run.backed);
    rbi_arena_free_without_pages(&arena, &run, ME);
    for (uint64_t block = 0; block < 20; block++) TEST_ASSERT_EQUAL_HEX64(0, word_at(block));
    TEST_ASSERT_EQUAL_UINT64(0, census().backed_blocks);
}

/* ---- others in between ---- */

static uint64_t steal_from, steal_blocks;

/** Somebody takes blocks right after our run was begun. */
static void steal(enum rbi_point point)
{
    if (point != RBI_POINT_run_begun) return;
    rbi_point_hook = NULL;
    write_run(steal_from, RBI_BLOCK_HELD, OTHER, steal_blocks);
}

static enum rbi_arena_outcome allocate_robbed(struct rbi_run *run, uint64_t blocks, uint64_t from, uint64_t length, bool *gave_back)
{
    uint64_t parts;
    steal_from = from;
    steal_blocks = length;
    rbi_point_hook = steal;
    *gave_back = false;
    return rbi_arena_allocate(&arena, run, ME, blocks * BLOCK, 0, &parts, gave_back);
}

static void test_an_allocation_gives_way_to_who_was_quicker_says_so_and_looks_further(void)
{
    struct rbi_run run;
    bool gave_back;
    ASSERT_DONE(allocate_robbed(&run, 20, 10, 3, &gave_back));
    TEST_ASSERT_TRUE(gave_back);
    TEST_ASSERT_EQUAL_UINT64(13, run.first);
    for (uint64_t block = 0; block < 10; block++) TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(block));
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_HELD, OTHER, 3, RBI_PAGES_BACKED), word_at(10));
    assert_healthy(2);
}

static void test_blocks_that_were_ours_for_a_moment_keep_their_memory_and_their_age(void)
{
    struct rbi_run run;
    bool gave_back;
    for (uint64_t block = 0; block < BLOCKS; block++) write_word(block, free_word(NOW - 50, RBI_PAGES_BACKED));
    ASSERT_DONE(allocate_robbed(&run, 20, 10, 3, &gave_back));
    TEST_ASSERT_TRUE(run.backed);
    for (uint64_t block = 0; block < 10; block++) TEST_ASSERT_EQUAL_HEX64(free_word(NOW - 50, RBI_PAGES_BACKED), word_at(block));
}

static void test_blocks_that_were_ours_for_a_moment_are_not_believed_to_have_memory_if_one_of_them_had_none(void)
{
    struct rbi_run run;
    bool gave_back;
    for (uint64_t block = 0; block < 9; block++) write_word(block, free_word(NOW - 50, RBI_PAGES_BACKED));
    ASSERT_DONE(allocate_robbed(&run, 20, 10, 3, &gave_back));
    TEST_ASSERT_FALSE(run.backed);
    for (uint64_t block = 0; block < 10; block++) TEST_ASSERT_EQUAL_HEX64(free_word(NOW - 50, RBI_PAGES_UNSURE), word_at(block));
}

static void test_an_allocation_is_full_if_who_was_quicker_has_left_too_little(void)
{
    struct rbi_run run;
    bool gave_back;
    ASSERT_OUTCOME(RBI_ARENA_FULL, allocate_robbed(&run, 100, 60, 2, &gave_back));
    TEST_ASSERT_TRUE(gave_back);
    TEST_ASSERT_EQUAL_UINT64(2, census().used_blocks);
}

static void test_a_short_allocation_that_gave_way_near_its_last_place_looks_everywhere_else(void)
{
    struct rbi_run run;
    bool gave_back;
    write_run(0, RBI_BLOCK_HELD, OTHER, 64);
    rbi_store_relaxed64(&words.short_end, 66);
    ASSERT_DONE(allocate_robbed(&run, 2, 65, 1, &gave_back)); /* it was about to take 64 and 65; all above is free */
    TEST_ASSERT_TRUE(gave_back);
    TEST_ASSERT_GREATER_OR_EQUAL_UINT64(66, run.first);
}

static void test_blocks_freed_one_by_one_can_be_taken_before_the_last_is(void)
{
    struct rbi_run long_run = reserve(40);
    TEST_ASSERT_EQUAL_UINT64(0, long_run.first);
    write_run(40, RBI_BLOCK_HELD, OTHER, BLOCKS - 40);
    for (uint64_t block = 1; block < 30; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED)); /* we are freeing upwards */
    struct rbi_run within = reserve_as(OTHER, 29);
    TEST_ASSERT_EQUAL_UINT64(1, within.first);
    release_run(&long_run); /* the rest of it */
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RESERVED, OTHER, 29, RBI_PAGES_BACKED), word_at(1));
    for (uint64_t block = 2; block < 30; block++) TEST_ASSERT_EQUAL_HEX64(rest_word(1), word_at(block));
    for (uint64_t block = 30; block < 40; block++) TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(block));
    TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(0));
    assert_healthy(2);
}

/* ---- a run's life ---- */

enum { ENTRY_SIZE = 2 * BLOCK + 5, ENTRY_RECORD = 77, ENTRY_ATTEMPTS = 3, RUN_AT = 40, RUN_BLOCKS = 3 };

/** A run of three blocks in this state. */
static struct rbi_run run_in_state(enum rbi_block_kind kind, uint32_t owner)
{
    start_arena();
    write_run(RUN_AT, kind, owner, RUN_BLOCKS);
    write_entry(RUN_AT, ENTRY_SIZE, ENTRY_ATTEMPTS, ENTRY_RECORD);
    return (struct rbi_run){.first = RUN_AT,
                            .blocks = RUN_BLOCKS,
                            .size = ENTRY_SIZE,
                            .record = ENTRY_RECORD,
                            .attempts = ENTRY_ATTEMPTS,
                            .backed = true,
                            .payload = memory + RUN_AT * BLOCK};
}

static enum rbi_arena_outcome lease_as_queued(struct rbi_arena *of, const struct rbi_run *run, uint32_t owner)
{
    struct rbi_run leased = {.record = run->record, .size = run->size};
    return rbi_arena_lease_queued(of, &leased, owner, run->first);
}

static const struct transition {
    enum rbi_arena_outcome (*make)(struct rbi_arena *arena, const struct rbi_run *run, uint32_t owner);
    enum rbi_block_kind from, to;
    bool from_anybody; /* whoever owned it before */
    bool to_nobody;
} transitions[] = {
    {rbi_arena_queue, RBI_BLOCK_RESERVED, RBI_BLOCK_QUEUED, false, false},
    {rbi_arena_lease_copy, RBI_BLOCK_RESERVED, RBI_BLOCK_LEASED, false, false},
    {lease_as_queued, RBI_BLOCK_QUEUED, RBI_BLOCK_LEASED, true, false},
    {rbi_arena_give_back, RBI_BLOCK_LEASED, RBI_BLOCK_RETURNED, false, true},
    {rbi_arena_keep, RBI_BLOCK_LEASED, RBI_BLOCK_HELD, false, false},
    {rbi_arena_end_lease, RBI_BLOCK_LEASED, RBI_BLOCK_RESERVED, false, false},
    {rbi_arena_end_hold, RBI_BLOCK_HELD, RBI_BLOCK_RESERVED, false, false},
};
enum { TRANSITIONS = sizeof transitions / sizeof *transitions };

static void test_every_transition_changes_state_and_owner_and_nothing_else(void)
{
    for (int i = 0; i < TRANSITIONS; i++) {
        const struct transition *transition = &transitions[i];
        struct rbi_run run = run_in_state(transition->from, transition->from_anybody ? OTHER : ME);
        ASSERT_DONE(transition->make(&arena, &run, ME));
        uint64_t expected = run_word(transition->to, transition->to_nobody ? 0 : ME, RUN_BLOCKS, RBI_PAGES_BACKED);
        TEST_ASSERT_EQUAL_HEX64(expected, word_at(RUN_AT));
        TEST_ASSERT_EQUAL_HEX64(rest_word(RUN_AT), word_at(RUN_AT + 1));
        TEST_ASSERT_EQUAL_HEX64(rest_word(RUN_AT), word_at(RUN_AT + 2));
        TEST_ASSERT_EQUAL_UINT64(RUN_BLOCKS, census().used_blocks);
        TEST_ASSERT_EQUAL_UINT64(ENTRY_RECORD, rbi_load_relaxed64(&entries[RUN_AT].record));
        TEST_ASSERT_EQUAL_UINT64(ENTRY_SIZE, rbi_load_relaxed64(&entries[RUN_AT].size) & RBI_SIZE_MASK);
    }
}

static void test_no_transition_can_be_made_twice(void)
{
    for (int i = 0; i < TRANSITIONS; i++) {
        struct rbi_run run = run_in_state(transitions[i].from, ME);
        ASSERT_DONE(transitions[i].make(&arena, &run, ME));
        uint64_t word = word_at(RUN_AT);
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, transitions[i].make(&arena, &run, ME));
        TEST_ASSERT_EQUAL_HEX64(word, word_at(RUN_AT));
    }
}

static void test_no_transition_can_be_made_from_another_state_or_by_another_owner_or_of_another_length(void)
{
    for (int i = 0; i < TRANSITIONS; i++)
        for (int kind = 0; kind < 16; kind++)
            for (uint32_t owner = ME; owner <= OTHER; owner++)
                for (int wrong_length = 0; wrong_length <= 1; wrong_length++) {
                    const struct transition *transition = &transitions[i];
                    struct rbi_run run = run_in_state((enum rbi_block_kind)kind, owner);
                    bool right_owner = owner == ME || transition->from_anybody;
                    run.blocks -= (uint64_t)wrong_length;
                    bool right_length = !wrong_length || transition->from_anybody; /* who knows it from its word only */
                    if (kind == (int)transition->from && right_owner && right_length) continue;
                    uint64_t word = word_at(RUN_AT);
                    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, transition->make(&arena, &run, ME));
                    TEST_ASSERT_EQUAL_HEX64(word, word_at(RUN_AT));
                }
}

static void test_a_message_goes_through_the_arena_whole(void)
{
    struct rbi_run put = put_large(1);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_QUEUED, ME, 5, RBI_PAGES_BACKED), word_at(put.first));
    assert_healthy(1);
    struct rbi_record record = take_record_as(OTHER);
    TEST_ASSERT_EQUAL_UINT64(LARGE, record.size);
    struct rbi_run run = follow_as(OTHER, &record);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_LEASED, OTHER, 5, RBI_PAGES_BACKED), word_at(put.first));
    assert_findings(1, 0, 0, 0, 1); /* the record refers to it until it is released, in the next step */
    rbi_ring_release(&ring, &record);
    assert_healthy(1);
    TEST_ASSERT_EQUAL_UINT64(LARGE, run.size);
    TEST_ASSERT_EQUAL_UINT64(5, run.blocks);
    TEST_ASSERT_EQUAL_UINT32(1, run.attempts);
    TEST_ASSERT_TRUE(run.backed);
    TEST_ASSERT_TRUE(tells_number(run.payload, LARGE, 1));
    acknowledge_as(OTHER, &run);
    assert_all_free();
    TEST_ASSERT_EQUAL_UINT64(5, census().backed_blocks);
    assert_no_message();
}

static void test_a_reference_that_does_not_fit_its_run_is_corrupt_and_leaves_it_alone(void)
{
    struct rbi_run put = put_large(1);
    uint64_t word = word_at(put.first), number = put.record;
    static const struct { int64_t record, size, first; } wrong[] = {
        {1, 0, 0}, {0, 1, 0}, {0, -1, 0}, {0, 0, 1}, {0, 0, -1}, {0, 0, BLOCKS}, {0, 0, INT64_MAX}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct rbi_run run = {.record = number + (uint64_t)wrong[i].record, .size = (uint64_t)(LARGE + wrong[i].size)};
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_lease_queued(&arena, &run, ME, put.first + (uint64_t)wrong[i].first));
        TEST_ASSERT_EQUAL_HEX64(word, word_at(put.first));
    }
    struct rbi_run run = {.record = number, .size = 5 * BLOCK + 1};
    write_entry(put.first, 5 * BLOCK + 1, 0, number); /* larger than its run */
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_lease_queued(&arena, &run, ME, put.first));
    TEST_ASSERT_EQUAL_HEX64(word, word_at(put.first));
}

static void test_a_run_is_found_by_its_state_owner_and_record_only(void)
{
    static const enum rbi_block_kind kinds[] = {RBI_BLOCK_LEASED, RBI_BLOCK_HELD};
    struct rbi_run found;
    for (int i = 0; i < 2; i++) {
        run_in_state(kinds[i], ME);
        ASSERT_DONE(rbi_arena_find(&arena, &found, kinds[i], ME, RUN_AT, ENTRY_RECORD));
        TEST_ASSERT_EQUAL_UINT64(RUN_AT, found.first);
        TEST_ASSERT_EQUAL_UINT64(RUN_BLOCKS, found.blocks);
        TEST_ASSERT_EQUAL_UINT64(ENTRY_SIZE, found.size);
        TEST_ASSERT_EQUAL_UINT32(ENTRY_ATTEMPTS, found.attempts);
        TEST_ASSERT_EQUAL_PTR(memory + RUN_AT * BLOCK, found.payload);
        TEST_ASSERT_TRUE(found.backed);
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, kinds[1 - i], ME, RUN_AT, ENTRY_RECORD));
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, kinds[i], OTHER, RUN_AT, ENTRY_RECORD));
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, kinds[i], ME, RUN_AT, ENTRY_RECORD + 1));
        static const uint64_t elsewhere[] = {RUN_AT - 1, RUN_AT + 1, RUN_AT + RUN_BLOCKS, BLOCKS, BLOCKS + RUN_AT, UINT64_MAX};
        for (size_t e = 0; e < sizeof elsewhere / sizeof *elsewhere; e++)
            ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, kinds[i], ME, elsewhere[e], ENTRY_RECORD));
        write_entry(RUN_AT, RUN_BLOCKS * BLOCK + 1, ENTRY_ATTEMPTS, ENTRY_RECORD); /* larger than its run */
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, kinds[i], ME, RUN_AT, ENTRY_RECORD));
    }
}

static void test_a_reservation_is_found_by_its_ticket_and_brings_nothing_of_who_had_its_blocks_before(void)
{
    struct rbi_run found, run = run_in_state(RBI_BLOCK_RESERVED, ME);
    write_entry(RUN_AT, RUN_BLOCKS * BLOCK + 1, ENTRY_ATTEMPTS, ENTRY_RECORD); /* of a message that is over */
    rbi_arena_mark(&arena, &run, 4711);
    ASSERT_DONE(rbi_arena_find(&arena, &found, RBI_BLOCK_RESERVED, ME, RUN_AT, 4711));
    TEST_ASSERT_EQUAL_UINT64(RUN_BLOCKS, found.blocks);
    TEST_ASSERT_EQUAL_UINT64(0, found.size);
    TEST_ASSERT_EQUAL_UINT32(0, found.attempts);
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, RBI_BLOCK_RESERVED, OTHER, RUN_AT, 4711));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, RBI_BLOCK_RESERVED, ME, RUN_AT, ENTRY_RECORD));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_find(&arena, &found, RBI_BLOCK_RESERVED, ME, RUN_AT, 4712));
}

static void test_nobody_frees_what_he_has_not_reserved(void)
{
    for (int kind = 0; kind < 16; kind++)
        for (uint32_t owner = ME; owner <= OTHER; owner++)
            for (int wrong_length = 0; wrong_length <= 1; wrong_length++) {
                struct rbi_run run = run_in_state((enum rbi_block_kind)kind, owner);
                run.blocks -= (uint64_t)wrong_length;
                if (kind == RBI_BLOCK_RESERVED && owner == ME && !wrong_length) continue;
                uint64_t before[BLOCKS];
                memcpy(before, table, sizeof before);
                rbi_arena_free(&arena, &run, ME, NOW);
                rbi_arena_free_without_pages(&arena, &run, ME);
                TEST_ASSERT_EQUAL_MEMORY(before, table, sizeof before);
            }
}

/* ---- attempts ---- */

static void test_every_lease_of_a_large_message_is_counted(void)
{
    put_large(1);
    struct rbi_run run = lease_large_as(ME);
    for (uint32_t attempt = 1; attempt <= 4; attempt++) {
        TEST_ASSERT_EQUAL_UINT32(attempt, run.attempts);
        TEST_ASSERT_EQUAL_UINT32(attempt, attempts_at(run.first));
        give_back_as(ME, &run);
        ASSERT_DONE(rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
        TEST_ASSERT_EQUAL_UINT64(LARGE, run.size);
        TEST_ASSERT_TRUE(tells_number(run.payload, LARGE, 1));
    }
    acknowledge_as(ME, &run);
    assert_all_free();
}

static void test_a_small_message_s_attempts_go_with_it_into_the_arena(void)
{
    put_small(1);
    struct rbi_record record = take_record_as(ME);
    rbi_ring_give_back(&ring, &record);
    struct rbi_run run = lease_small_as(ME);
    TEST_ASSERT_EQUAL_UINT32(2, attempts_at(run.first));
    give_back_as(ME, &run);
    get_at_attempt(1, SMALL, 3);
    assert_all_free();
}

static void test_attempts_stay_at_their_ceiling(void)
{
    struct rbi_run run = put_large(1);
    write_entry(run.first, LARGE, RBI_ATTEMPTS_MAX - 1, run.record);
    run = lease_large_as(ME);
    for (int i = 0; i < 3; i++) {
        TEST_ASSERT_EQUAL_UINT32(RBI_ATTEMPTS_MAX, run.attempts);
        TEST_ASSERT_EQUAL_UINT64(LARGE, run.size);
        give_back_as(ME, &run);
        ASSERT_DONE(rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    }
    TEST_ASSERT_EQUAL_UINT64((uint64_t)LARGE | (uint64_t)RBI_ATTEMPTS_MAX << RBI_ATTEMPTS_SHIFT | UINT64_C(4) << RBI_TURN_SHIFT,
                             rbi_load_relaxed64(&entries[run.first].size));
}

/* ---- what was returned ---- */

static void test_what_was_returned_is_taken_in_the_order_of_its_puts(void)
{
    for (uint64_t number = 1; number <= 4; number++) put_large(number);
    struct rbi_run leases[4];
    for (int i = 0; i < 4; i++) leases[i] = lease_large_as(OTHER);
    static const int returned_in_this_order[] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++) give_back_as(OTHER, &leases[returned_in_this_order[i]]);
    for (uint64_t number = 1; number <= 4; number++) {
        struct rbi_run run;
        ASSERT_DONE(rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
        TEST_ASSERT_TRUE(tells_number(run.payload, LARGE, number));
        TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_LEASED, ME, 5, RBI_PAGES_BACKED), word_at(run.first));
        acknowledge_as(ME, &run);
    }
    struct rbi_run run;
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    assert_all_free();
}

static void test_what_is_too_large_for_the_taker_stays_and_tells_its_size_also_where_a_younger_one_would_fit(void)
{
    put_large(1);
    put_small(2);
    struct rbi_run large = lease_large_as(OTHER), small = lease_small_as(OTHER), run;
    give_back_as(OTHER, &large);
    give_back_as(OTHER, &small);
    uint64_t word = word_at(large.first);
    ASSERT_OUTCOME(RBI_ARENA_SMALL, rbi_arena_take_returned(&arena, &run, ME, LARGE - 1));
    TEST_ASSERT_EQUAL_UINT64(LARGE, run.size);
    TEST_ASSERT_EQUAL_HEX64(word, word_at(large.first));
    TEST_ASSERT_EQUAL_UINT32(1, attempts_at(large.first)); /* it was not taken */
    ASSERT_DONE(rbi_arena_take_returned(&arena, &run, ME, LARGE));
    acknowledge_as(ME, &run);
    get_at_attempt(2, SMALL, 2);
    assert_all_free();
}

static uint64_t grown_size;

/** Between our look at a run and our taking it, it has become another one of the same length: with a larger message in it. */
static void let_it_be_another(enum rbi_point point)
{
    if (point != RBI_POINT_run_retaken) return;
    rbi_point_hook = NULL;
    rbi_store_relaxed64(&entries[RUN_AT].size, grown_size);
}

static void test_what_turns_out_too_large_only_when_it_is_taken_goes_back(void)
{
    struct rbi_run run = run_in_state(RBI_BLOCK_RETURNED, 0);
    grown_size = RUN_BLOCKS * BLOCK;
    rbi_point_hook = let_it_be_another;
    ASSERT_OUTCOME(RBI_ARENA_SMALL, rbi_arena_take_returned(&arena, &run, ME, ENTRY_SIZE));
    TEST_ASSERT_EQUAL_UINT64(RUN_BLOCKS * BLOCK, run.size);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RETURNED, 0, RUN_BLOCKS, RBI_PAGES_BACKED), word_at(RUN_AT));
}

static void test_a_returned_message_larger_than_its_run_is_corrupt_and_not_read(void)
{
    struct rbi_run run = run_in_state(RBI_BLOCK_RETURNED, 0);
    write_entry(RUN_AT, RUN_BLOCKS * BLOCK + 1, 1, 1);
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_take_returned(&arena, &run, ME, 10));
    TEST_ASSERT_EQUAL_INT(RBI_BLOCK_RETURNED, kind_at(RUN_AT));
    write_entry(RUN_AT, 1, 1, 1);
    grown_size = RUN_BLOCKS * BLOCK + 1;
    rbi_point_hook = let_it_be_another;
    ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    TEST_ASSERT_EQUAL_INT(RBI_BLOCK_RETURNED, kind_at(RUN_AT));
}

static void test_a_size_that_does_not_fit_means_nothing_before_the_run_is_taken(void)
{
    struct rbi_run run = run_in_state(RBI_BLOCK_RETURNED, 0);
    write_entry(RUN_AT, 2 * RUN_BLOCKS * BLOCK, 1, 1); /* of a longer run that was in its place for a moment */
    grown_size = 5;
    rbi_point_hook = let_it_be_another;
    ASSERT_OUTCOME(RBI_ARENA_OK, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(5, run.size);
}

static void test_only_what_was_returned_is_taken(void)
{
    for (int kind = 0; kind < 16; kind++) {
        if (kind == RBI_BLOCK_RETURNED) continue;
        struct rbi_run run = run_in_state((enum rbi_block_kind)kind, ME);
        uint64_t word = word_at(RUN_AT);
        ASSERT_OUTCOME(RBI_ARENA_EMPTY, rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX));
        TEST_ASSERT_EQUAL_HEX64(word, word_at(RUN_AT));
    }
}

/* ---- recovery ---- */

static void recover_arena(uint32_t owner, bool keep)
{
    uint64_t words_before[BLOCKS];
    struct rbi_run_entry entries_before[BLOCKS];
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, owner, keep, NOW));
    memcpy(words_before, table, sizeof words_before);
    memcpy(entries_before, entries, sizeof entries_before);
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, owner, keep, NOW + 1)); /* twice is once */
    TEST_ASSERT_EQUAL_MEMORY(words_before, table, sizeof words_before);
    TEST_ASSERT_EQUAL_MEMORY(entries_before, entries, sizeof entries_before);
}

/** As the registry does it; and all of it a second time, for a recoverer can die before it has freed the entry. */
static void recover_keeping(uint32_t owner, bool keep)
{
    recover_arena(owner, keep);
    ASSERT_RING(RBI_RING_OK, rbi_ring_recover(&ring, owner));
    recover_arena(owner, keep);
    ASSERT_RING(RBI_RING_OK, rbi_ring_recover(&ring, owner));
}

static void recover(void) { recover_keeping(DEAD, false); }

static void test_recovery_of_one_who_has_nothing_changes_nothing(void)
{
    struct rbi_run mine = reserve(3), queued = put_large(1);
    uint64_t before[BLOCKS];
    memcpy(before, table, sizeof before);
    recover();
    TEST_ASSERT_EQUAL_MEMORY(before, table, sizeof before);
    TEST_ASSERT_FALSE(hint());
    (void)mine;
    (void)queued;
}

static void test_what_the_dead_had_reserved_or_held_is_free(void)
{
    struct rbi_run reserved = reserve_as(DEAD, 20), held = reserve_as(DEAD, 3), mine = reserve(2);
    write_word(held.first, run_word(RBI_BLOCK_HELD, DEAD, 3, RBI_PAGES_BACKED));
    recover();
    TEST_ASSERT_EQUAL_UINT64(2, census().used_blocks);
    TEST_ASSERT_EQUAL_INT(RBI_BLOCK_RESERVED, kind_at(mine.first));
    TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_BACKED), word_at(reserved.first));
    TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_BACKED), word_at(held.first + 2));
    TEST_ASSERT_FALSE(hint());
    release_run(&mine);
    assert_all_free();
}

static void test_one_who_only_closes_keeps_what_he_holds_and_reserves_and_gives_back_what_he_leased(void)
{
    struct rbi_run reserved = reserve_as(DEAD, 20), held = reserve_as(DEAD, 3);
    write_word(held.first, run_word(RBI_BLOCK_HELD, DEAD, 3, RBI_PAGES_BACKED));
    put_large(1);
    struct rbi_run leased = lease_large_as(DEAD);
    recover_keeping(DEAD, true);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RESERVED, DEAD, 20, RBI_PAGES_BACKED), word_at(reserved.first));
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_HELD, DEAD, 3, RBI_PAGES_BACKED), word_at(held.first));
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RETURNED, 0, 5, RBI_PAGES_BACKED), word_at(leased.first));
    get_at_attempt(1, LARGE, 2);
    recover();
    assert_all_free();
}

static void test_a_reservation_without_memory_is_not_believed_to_have_any_when_its_owner_died(void)
{
    struct rbi_run run;
    ASSERT_DONE(allocate(&run, DEAD, 20 * BLOCK));
    recover();
    TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_UNSURE), word_at(run.first));
    assert_all_free();
}

static void test_an_allocation_that_was_killed_half_way_costs_others_nothing(void)
{
    for (uint64_t claimed = 1; claimed <= 6; claimed++) {
        start_arena();
        write_word(10, run_word(RBI_BLOCK_RESERVED, DEAD, 6, RBI_PAGES_UNSURE));
        for (uint64_t block = 11; block < 10 + claimed; block++) write_word(block, rest_word(10));
        if (claimed < 5) write_run(15, RBI_BLOCK_HELD, OTHER, 4); /* somebody was quicker */
        recover();
        for (uint64_t block = 10; block < 10 + claimed; block++) TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(block));
        if (claimed >= 5) continue;
        TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_HELD, OTHER, 4, RBI_PAGES_BACKED), word_at(15));
        for (uint64_t block = 16; block < 19; block++) TEST_ASSERT_EQUAL_HEX64(rest_word(15), word_at(block));
        assert_healthy(1);
    }
}

static void test_freeing_that_was_killed_half_way_is_finished_and_leaves_alone_what_others_have_made_of_it(void)
{
    for (uint64_t freed = 0; freed < 10; freed++) {
        start_arena();
        write_run(10, RBI_BLOCK_RESERVED, DEAD, 10);
        for (uint64_t block = 11; block <= 10 + freed; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
        if (freed >= 4) write_run(12, RBI_BLOCK_LEASED, OTHER, 3);
        recover();
        TEST_ASSERT_EQUAL_UINT64(freed >= 4 ? 3 : 0, census().used_blocks);
        assert_healthy(freed >= 4);
    }
}

static void test_a_message_whose_record_was_not_published_does_not_exist(void)
{
    struct rbi_run run = reserve_as(DEAD, 5);
    run.size = LARGE;
    queue_unpublished(&run, DEAD);
    recover();
    assert_all_free();
    assert_no_message();
}

static void test_a_message_whose_record_was_skipped_and_not_published_does_not_exist(void)
{
    struct rbi_run run = reserve_as(DEAD, 5);
    struct rbi_record record = queue_unpublished(&run, DEAD);
    put_small(2);
    get_at_attempt(2, SMALL, 1);
    TEST_ASSERT_EQUAL_INT(RBI_KIND_SKIPPED, rbi_ring_kind_at(&ring, record.position));
    recover();
    assert_all_free();
    assert_no_message();
}

static void test_a_message_whose_record_was_given_up_is_dropped_also_when_its_lap_is_over(void)
{
    for (int lap_over = 0; lap_over <= 1; lap_over++) {
        start_arena();
        struct rbi_run run = reserve_as(DEAD, 5);
        struct rbi_record record = queue_unpublished(&run, DEAD);
        /* A recoverer did the ring, and then somebody overtook it all. */
        ASSERT_RING(RBI_RING_OK, rbi_ring_void(&ring, &record, DEAD));
        for (int i = 0; lap_over && i < 2 * CELLS; i++) {
            put_small(2);
            get_at_attempt(2, SMALL, 1);
        }
        recover();
        assert_all_free();
    }
}

static void test_a_published_message_outlives_its_producer_in_whatever_state(void)
{
    put_large_as(DEAD, 1);
    recover(); /* READY */
    assert_healthy(1);
    get_at_attempt(1, LARGE, 1);
    put_large_as(DEAD, 2);
    struct rbi_record record = take_record_as(ME);
    recover(); /* TAKEN */
    struct rbi_run run = follow_as(ME, &record);
    rbi_ring_release(&ring, &record);
    acknowledge_as(ME, &run);
    put_large_as(DEAD, 3);
    record = take_record_as(ME);
    rbi_ring_give_back(&ring, &record);
    recover(); /* RETURNED */
    get_at_attempt(3, LARGE, 2);
    assert_all_free();
    assert_no_message();
}

static void test_a_message_published_late_outlives_its_producer(void)
{
    struct rbi_run run = reserve_as(DEAD, 5);
    run.size = LARGE;
    write_number(run.payload, LARGE, 1);
    struct rbi_record record = queue_unpublished(&run, DEAD);
    put_small(2);
    get_at_attempt(2, SMALL, 1);
    ASSERT_RING(RBI_RING_OK, rbi_ring_publish(&ring, &record, DEAD));
    recover();
    get_at_attempt(1, LARGE, 1);
    assert_all_free();
}

static void test_a_message_of_its_own_that_the_dead_had_taken_but_not_leased_is_returned(void)
{
    put_large_as(DEAD, 1);
    take_record_as(DEAD);
    recover();
    assert_healthy(1);
    get_at_attempt(1, LARGE, 2); /* that was one, too */
    assert_all_free();
}

static void test_a_lease_whose_record_was_not_yet_released_is_a_queued_message_again(void)
{
    put_large(1);
    put_small(2);
    struct rbi_record record = take_record_as(DEAD);
    struct rbi_run run = follow_as(DEAD, &record);
    recover_arena(DEAD, false);
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_QUEUED, 0, 5, RBI_PAGES_BACKED), word_at(run.first));
    TEST_ASSERT_FALSE(hint()); /* nothing in the arena waits */
    recover();
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_QUEUED, 0, 5, RBI_PAGES_BACKED), word_at(run.first));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, rbi_ring_kind_at(&ring, record.position));
    assert_healthy(1);
    get_at_attempt(1, LARGE, 2);
    get_at_attempt(2, SMALL, 1);
    assert_all_free();
}

static void test_a_lease_whose_record_was_released_is_returned(void)
{
    put_large(1);
    put_small(2);
    put_small(3);
    struct rbi_run large = lease_large_as(DEAD), small = lease_small_as(DEAD);
    clear_hint();
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, DEAD, false, NOW));
    TEST_ASSERT_TRUE(hint());
    recover();
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RETURNED, 0, 5, RBI_PAGES_BACKED), word_at(large.first));
    TEST_ASSERT_EQUAL_HEX64(run_word(RBI_BLOCK_RETURNED, 0, 1, RBI_PAGES_BACKED), word_at(small.first));
    assert_healthy(2);
    get_at_attempt(1, LARGE, 2);
    get_at_attempt(2, SMALL, 2);
    get_at_attempt(3, SMALL, 1);
    assert_all_free();
    assert_no_message();
}

static void test_a_lease_is_returned_also_when_the_lap_of_its_record_is_over(void)
{
    put_large(1);
    lease_large_as(DEAD);
    for (int i = 0; i < 3 * CELLS; i++) {
        put_small(2);
        get_at_attempt(2, SMALL, 1);
    }
    recover();
    get_at_attempt(1, LARGE, 2);
    assert_all_free();
}

static void test_a_copy_whose_record_was_not_yet_released_is_free_and_the_record_is_returned(void)
{
    put_small(1);
    put_small(2);
    struct rbi_record record = take_record_as(DEAD);
    copy_as(DEAD, &record);
    recover_arena(DEAD, false);
    assert_all_free();
    recover();
    assert_healthy(0);
    get_at_attempt(1, SMALL, 2);
    get_at_attempt(2, SMALL, 1);
    assert_no_message();
}

static void test_a_lease_that_was_taken_again_after_it_was_returned_is_returned_again(void)
{
    put_large(1);
    struct rbi_run run = lease_large_as(ME);
    give_back_as(ME, &run);
    ASSERT_DONE(rbi_arena_take_returned(&arena, &run, DEAD, UINT64_MAX));
    recover();
    get_at_attempt(1, LARGE, 3);
    assert_all_free();
}

static void test_recovery_leaves_the_runs_of_others_alone_in_every_state(void)
{
    struct rbi_run runs[6];
    for (int i = 0; i < 6; i++) {
        runs[i] = reserve_as(OTHER, 3);
        enum rbi_block_kind kind = (enum rbi_block_kind)(RBI_BLOCK_RESERVED + i % 5);
        write_word(runs[i].first, run_word(kind, i < 5 ? OTHER : 0, 3, RBI_PAGES_BACKED));
        write_entry(runs[i].first, 3, 1, 5);
    }
    write_word(runs[5].first, run_word(RBI_BLOCK_QUEUED, 0, 3, RBI_PAGES_BACKED));
    uint64_t before[BLOCKS];
    memcpy(before, table, sizeof before);
    recover();
    TEST_ASSERT_EQUAL_MEMORY(before, table, sizeof before);
}

static void test_recovery_sets_the_hint_for_what_was_returned_and_it_only_meets(void)
{
    put_large(1);
    struct rbi_run run = lease_large_as(OTHER);
    ASSERT_DONE(rbi_arena_give_back(&arena, &run, OTHER)); /* and it died before the hint */
    clear_hint();
    recover_arena(DEAD, false);
    TEST_ASSERT_TRUE(hint());
    get_at_attempt(1, LARGE, 2);
}

static void test_recovery_says_so_if_the_table_is_damaged_and_does_all_the_rest(void)
{
    static const uint64_t damages[] = {
        RBI_BLOCK_RESERVED,                                      /* of no blocks */
        RBI_BLOCK_LEASED | (uint64_t)(BLOCKS - 39) << 16,        /* beyond the end */
        RBI_BLOCK_HELD | (uint64_t)0xffffff << 16,
        7 | (uint64_t)1 << 16,                                   /* of no kind */
        15,
        UINT64_MAX,
    };
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        start_arena();
        struct rbi_run above = reserve_as(DEAD, 3), below = reserve_as(DEAD, 20);
        write_word(40, damages[i]);
        ASSERT_OUTCOME(RBI_ARENA_CORRUPT, rbi_arena_recover(&arena, &ring, DEAD, false, NOW));
        TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(above.first));
        TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(below.first + 19));
        TEST_ASSERT_EQUAL_HEX64(damages[i], word_at(40));
    }
}

static void test_recovery_touches_no_run_that_reaches_where_the_table_has_no_pages(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 1); /* blocks 0 and 1 */
    write_run(1, RBI_BLOCK_RESERVED, DEAD, 3);
    uint64_t before[BLOCKS];
    memcpy(before, table, sizeof before);
    rbi_arena_recover(&arena, &ring, DEAD, false, NOW);
    TEST_ASSERT_EQUAL_MEMORY(before, table, sizeof before);
}

/* ---- deaths at every point ---- */

static _Thread_local int points_to_live; /* 0: for ever */
static _Thread_local jmp_buf grave;

static void count_down(enum rbi_point point)
{
    (void)point;
    if (points_to_live && --points_to_live == 0) longjmp(grave, 1);
}

/** Do it, but stop for ever at the n-th point.  False if it was done before. */
static bool dies_at(int point, void (*body)(void))
{
    rbi_point_hook = count_down;
    points_to_live = point;
    bool died = setjmp(grave) != 0;
    if (!died) body();
    points_to_live = 0;
    rbi_point_hook = NULL;
    return died;
}

static void reserve_and_free_by_the_dead(void)
{
    struct rbi_run run = reserve_as(DEAD, 5);
    rbi_arena_free(&arena, &run, DEAD, NOW);
}

static void put_large_by_the_dead(void) { put_large_as(DEAD, 1); }

static void get_large_by_the_dead(void)
{
    struct rbi_run run = lease_large_as(DEAD);
    acknowledge_as(DEAD, &run);
}

static void lease_small_and_acknowledge_by_the_dead(void)
{
    struct rbi_run run = lease_small_as(DEAD);
    acknowledge_as(DEAD, &run);
}

static void lease_and_give_back_and_lease_again_by_the_dead(void)
{
    struct rbi_run run = lease_small_as(DEAD);
    give_back_as(DEAD, &run);
    ASSERT_DONE(rbi_arena_take_returned(&arena, &run, DEAD, UINT64_MAX));
    give_back_as(DEAD, &run);
}

static void keep_and_release_by_the_dead(void)
{
    struct rbi_run run = lease_large_as(DEAD);
    ASSERT_DONE(rbi_arena_keep(&arena, &run, DEAD));
    ASSERT_DONE(rbi_arena_end_hold(&arena, &run, DEAD));
    rbi_arena_free(&arena, &run, DEAD, NOW);
}

static void give_memory_back_by_the_dead(void)
{
    struct rbi_run run;
    while (take_idle(&run, DEAD, NOW, 0) == RBI_ARENA_OK) rbi_arena_free_without_pages(&arena, &run, DEAD);
}

/** What a dead one was at, and what must come of it: so many messages at least and at most, the first of this size. */
static const struct life {
    void (*body)(void);
    bool large_waits, small_waits; /* before */
    int least, most;               /* messages left after */
    int if_done;                   /* likewise, if it lived to the end */
    uint64_t size;
} lives[] = {
    {reserve_and_free_by_the_dead, false, false, 0, 0, 0, 0},
    {put_large_by_the_dead, false, false, 0, 1, 1, LARGE},
    {get_large_by_the_dead, true, false, 0, 1, 0, LARGE},
    {lease_small_and_acknowledge_by_the_dead, false, true, 0, 1, 0, SMALL},
    {lease_and_give_back_and_lease_again_by_the_dead, false, true, 1, 1, 1, SMALL},
    {keep_and_release_by_the_dead, true, false, 0, 1, 0, LARGE},
    {give_memory_back_by_the_dead, false, false, 0, 0, 0, 0},
};

static void recover_once(void)
{
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, DEAD, false, NOW));
    ASSERT_RING(RBI_RING_OK, rbi_ring_recover(&ring, DEAD));
}

/** Arrange, die, be recovered by one who dies as well, and by one who does not.  Returns whether the recoverer died. */
static bool live_and_die(const struct life *life, int point, int recovery_point, bool *died)
{
    uint8_t got[LARGE];
    uint64_t size = 0;
    uint32_t attempts;
    int messages = 0;
    start_arena();
    for (uint64_t block = 20; block < 30; block++) write_word(block, free_word(NOW - 10, RBI_PAGES_BACKED));
    if (life->large_waits) put_large(1);
    if (life->small_waits) put_small(1);
    *died = dies_at(point, life->body);
    bool recoverer_died = dies_at(recovery_point, recover_once);
    recover();
    struct rbi_arena_findings found = check();
    TEST_ASSERT_EQUAL_UINT64(0, found.orphaned_blocks + found.orphaned_runs + found.broken_runs + found.dangling_messages);
    while (get_next(&size, got, &attempts)) {
        TEST_ASSERT_EQUAL_UINT64(life->size, size);
        TEST_ASSERT_TRUE(tells_number(got, size, 1));
        messages++;
    }
    TEST_ASSERT_GREATER_OR_EQUAL_INT(*died ? life->least : life->if_done, messages);
    TEST_ASSERT_LESS_OR_EQUAL_INT(*died ? life->most : life->if_done, messages);
    assert_all_free();
    return recoverer_died;
}

static void test_a_death_at_any_point_is_recovered_from_also_if_who_recovers_dies_at_any_point(void)
{
    for (size_t i = 0; i < sizeof lives / sizeof *lives; i++) {
        bool died = true, recoverer_died = true;
        int points = 0;
        for (int point = 1; died; point++) {
            recoverer_died = true;
            for (int recovery_point = 1; recoverer_died; recovery_point++)
                recoverer_died = live_and_die(&lives[i], point, recovery_point, &died);
            points = point;
        }
        TEST_ASSERT_GREATER_THAN_INT(5, points);
    }
}

/* ---- giving memory back ---- */

static void assert_idle(enum rbi_arena_outcome expected, uint64_t now_s, uint64_t idle_s, uint64_t first, uint64_t blocks)
{
    struct rbi_run run;
    ASSERT_OUTCOME(expected, take_idle(&run, ME, now_s, idle_s));
    if (expected != RBI_ARENA_OK) return;
    TEST_ASSERT_EQUAL_UINT64(first, run.first);
    TEST_ASSERT_EQUAL_UINT64(blocks, run.blocks);
    TEST_ASSERT_EQUAL_INT(RBI_BLOCK_RESERVED, kind_at(first));
    TEST_ASSERT_EQUAL_UINT32(ME, owner_at(first));
    rbi_arena_free_without_pages(&arena, &run, ME);
    for (uint64_t block = first; block < first + blocks; block++) TEST_ASSERT_EQUAL_HEX64(0, word_at(block));
}

static void test_memory_is_idle_when_its_blocks_were_freed_long_enough_ago(void)
{
    struct rbi_run run = reserve(20);
    assert_idle(RBI_ARENA_EMPTY, NOW + 100, 0, 0, 0); /* in use */
    release_run(&run);
    assert_idle(RBI_ARENA_EMPTY, NOW, 5, 0, 0);
    assert_idle(RBI_ARENA_EMPTY, NOW + 4, 5, 0, 0);
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, 0, 20);
    assert_idle(RBI_ARENA_EMPTY, NOW + 100, 0, 0, 0); /* given back already */
    TEST_ASSERT_EQUAL_UINT64(0, census().backed_blocks);
}

static void test_blocks_that_never_had_memory_are_not_idle_and_those_that_may_have_some_are(void)
{
    write_word(3, free_word(NOW, RBI_PAGES_NONE));
    write_word(7, free_word(NOW, RBI_PAGES_UNSURE));
    assert_idle(RBI_ARENA_OK, NOW, 0, 7, 1);
    assert_idle(RBI_ARENA_EMPTY, NOW + 100, 0, 0, 0);
}

static void test_idle_blocks_are_taken_from_the_top_in_as_long_runs_as_there_are_and_younger_ones_stay(void)
{
    for (uint64_t block = 10; block < 30; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
    write_word(15, free_word(NOW + 3, RBI_PAGES_BACKED));
    write_run(20, RBI_BLOCK_HELD, OTHER, 2);
    write_word(BLOCKS - 1, free_word(NOW, RBI_PAGES_BACKED));
    write_word(0, free_word(NOW, RBI_PAGES_BACKED));
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, BLOCKS - 1, 1);
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, 22, 8);
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, 16, 4);
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, 10, 5);
    assert_idle(RBI_ARENA_OK, NOW + 5, 5, 0, 1);
    assert_idle(RBI_ARENA_EMPTY, NOW + 5, 5, 0, 0);
    TEST_ASSERT_EQUAL_HEX64(free_word(NOW + 3, RBI_PAGES_BACKED), word_at(15));
    assert_healthy(1);
}

static void test_idle_blocks_are_looked_for_from_where_the_last_look_ended_and_taken_in_pieces(void)
{
    enum { PIECE = 4 };
    struct rbi_run run;
    bool gave_back = true;
    start_arena_of(BLOCKS, 18, all_parts); /* four blocks to the MiB */
    for (uint64_t block = 10; block < 20; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
    uint64_t from = BLOCKS;
    for (uint64_t end = 20; end > 10; end -= end - 10 < PIECE ? end - 10 : PIECE) {
        ASSERT_DONE(rbi_arena_take_idle(&arena, &run, ME, NOW, 0, &from, &gave_back));
        TEST_ASSERT_FALSE(gave_back);
        TEST_ASSERT_EQUAL_UINT64(end, run.first + run.blocks);
        TEST_ASSERT_EQUAL_UINT64(end >= 10 + PIECE ? PIECE : 2, run.blocks);
        TEST_ASSERT_EQUAL_UINT64(run.first, from);
        rbi_arena_free(&arena, &run, ME, NOW); /* as where the file system keeps it: then it is not looked at again at once */
    }
    ASSERT_OUTCOME(RBI_ARENA_EMPTY, rbi_arena_take_idle(&arena, &run, ME, NOW, 0, &from, &gave_back));
    TEST_ASSERT_EQUAL_UINT64(0, from);
    start_arena_of(BLOCKS, 20, all_parts);
    for (uint64_t block = 10; block < 20; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
    from = 15;
    ASSERT_DONE(rbi_arena_take_idle(&arena, &run, ME, NOW, 0, &from, &gave_back));
    TEST_ASSERT_EQUAL_UINT64(14, run.first);
    TEST_ASSERT_EQUAL_UINT64(1, run.blocks);
}

static void test_who_takes_idle_blocks_gives_way_to_who_was_quicker_and_says_so(void)
{
    struct rbi_run run;
    uint64_t from = BLOCKS;
    bool gave_back = false;
    for (uint64_t block = 10; block < 20; block++) write_word(block, free_word(NOW, RBI_PAGES_BACKED));
    write_word(5, free_word(NOW, RBI_PAGES_BACKED));
    steal_from = 15;
    steal_blocks = 1;
    rbi_point_hook = steal;
    ASSERT_DONE(rbi_arena_take_idle(&arena, &run, ME, NOW, 0, &from, &gave_back));
    TEST_ASSERT_TRUE(gave_back);
    TEST_ASSERT_EQUAL_UINT64(5, run.first);
    for (uint64_t block = 10; block < 15; block++) TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_BACKED), word_at(block));
    assert_healthy(2);
}

static void test_ages_are_right_across_the_wrap_of_the_clock(void)
{
    const uint64_t lap = UINT64_C(1) << 22; /* seconds */
    for (uint64_t laps = 0; laps <= 3; laps += 3) {
        start_arena();
        struct rbi_run run = reserve(20);
        rbi_arena_free(&arena, &run, ME, (laps + 1) * lap - 2);
        assert_idle(RBI_ARENA_EMPTY, (laps + 1) * lap + 2, 5, 0, 0);
        assert_idle(RBI_ARENA_OK, (laps + 1) * lap + 3, 5, 0, 20);
        run = reserve(20);
        rbi_arena_free(&arena, &run, ME, laps * lap + 7);
        assert_idle(RBI_ARENA_EMPTY, laps * lap + 11, 5, 0, 0);
        assert_idle(RBI_ARENA_OK, laps * lap + 12, 5, 0, 20);
    }
}

static void test_memory_that_a_dead_one_was_giving_back_may_be_there_or_not(void)
{
    struct rbi_run run = reserve(20);
    release_run(&run);
    ASSERT_DONE(take_idle(&run, DEAD, NOW + 5, 5));
    recover();
    assert_all_free();
    TEST_ASSERT_EQUAL_HEX64(free_word(NOW, RBI_PAGES_UNSURE), word_at(0));
    ASSERT_DONE(allocate(&run, ME, 20 * BLOCK));
    TEST_ASSERT_FALSE(run.backed);
}

/* ---- looking ---- */

static void test_the_census_counts_runs_by_state_and_blocks_by_use(void)
{
    static const struct { enum rbi_block_kind kind; uint64_t at, blocks; } runs[] = {
        {RBI_BLOCK_RESERVED, 0, 2}, {RBI_BLOCK_QUEUED, 2, 3},    {RBI_BLOCK_QUEUED, 10, 1}, {RBI_BLOCK_HELD, 40, 4},
        {RBI_BLOCK_LEASED, 44, 5},  {RBI_BLOCK_RETURNED, 60, 6}, {RBI_BLOCK_HELD, 127, 1},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) write_run(runs[i].at, runs[i].kind, OTHER, runs[i].blocks);
    write_word(70, free_word(NOW, RBI_PAGES_BACKED));
    write_word(71, free_word(NOW, RBI_PAGES_UNSURE));
    struct rbi_arena_census counted = census();
    TEST_ASSERT_EQUAL_UINT64(0, counted.runs[RBI_BLOCK_FREE]);
    TEST_ASSERT_EQUAL_UINT64(1, counted.runs[RBI_BLOCK_RESERVED]);
    TEST_ASSERT_EQUAL_UINT64(2, counted.runs[RBI_BLOCK_QUEUED]);
    TEST_ASSERT_EQUAL_UINT64(2, counted.runs[RBI_BLOCK_HELD]);
    TEST_ASSERT_EQUAL_UINT64(1, counted.runs[RBI_BLOCK_LEASED]);
    TEST_ASSERT_EQUAL_UINT64(1, counted.runs[RBI_BLOCK_RETURNED]);
    TEST_ASSERT_EQUAL_UINT64(22, counted.used_blocks);
    TEST_ASSERT_EQUAL_UINT64(24, counted.backed_blocks);
    TEST_ASSERT_EQUAL_UINT64(127 - 66, counted.longest_free_blocks);
}

static void test_a_check_finds_nothing_where_everything_is_accounted_for(void)
{
    reserve(3);
    struct rbi_run held = reserve_as(OTHER, 2), unpublished = reserve(1);
    write_word(held.first, run_word(RBI_BLOCK_HELD, OTHER, 2, RBI_PAGES_BACKED));
    put_large(1);
    put_small(2);
    put_large(3);
    put_large(4);
    lease_large_as(OTHER);
    lease_small_as(OTHER);
    struct rbi_run returned = lease_large_as(OTHER);
    give_back_as(OTHER, &returned);
    queue_unpublished(&unpublished, ME);
    assert_healthy(7);
    clear_hint(); /* so that the next one taken is the one in the ring */
    struct rbi_record record = take_record_as(OTHER);
    assert_healthy(7); /* taken, and not yet leased */
    rbi_ring_give_back(&ring, &record);
    assert_healthy(7);
}

static void test_a_check_finds_blocks_that_belong_to_no_run(void)
{
    write_word(50, rest_word(49));
    write_word(51, rest_word(BLOCKS + 7));
    assert_findings(0, 2, 0, 0, 0);
    write_run(60, RBI_BLOCK_RESERVED, ME, 3);
    write_word(63, rest_word(60)); /* beyond its length */
    assert_findings(1, 3, 0, 0, 0);
}

static void test_a_check_finds_runs_whose_blocks_do_not_say_that_they_belong_to_them(void)
{
    write_run(60, RBI_BLOCK_RESERVED, ME, 4);
    write_word(62, 0);
    assert_findings(1, 2, 0, 1, 0); /* and what is left of it belongs to no run */
    write_word(62, rest_word(59));
    assert_findings(1, 3, 0, 1, 0);
    write_word(62, run_word(RBI_BLOCK_HELD, OTHER, 1, RBI_PAGES_BACKED));
    assert_findings(2, 2, 0, 1, 0);
    start_arena();
    write_word(60, run_word(RBI_BLOCK_RESERVED, ME, 0, RBI_PAGES_BACKED));
    write_word(61, run_word(RBI_BLOCK_RESERVED, ME, BLOCKS, RBI_PAGES_BACKED));
    write_word(62, 9);
    assert_findings(3, 0, 0, 3, 0);
}

static void test_a_check_finds_runs_whose_block_lies_where_the_table_has_no_pages(void)
{
    start_arena_of(BLOCKS, BLOCK_LOG2, 1);
    write_run(1, RBI_BLOCK_RESERVED, ME, 2);
    assert_findings(1, 0, 0, 1, 0);
}

static void test_a_check_finds_runs_that_nobody_accounts_for(void)
{
    static const struct { enum rbi_block_kind kind; uint32_t owner; uint64_t orphans; } cases[] = {
        {RBI_BLOCK_RESERVED, DEAD, 1}, {RBI_BLOCK_HELD, DEAD, 1},  {RBI_BLOCK_LEASED, DEAD, 1}, {RBI_BLOCK_QUEUED, DEAD, 1},
        {RBI_BLOCK_RESERVED, 0, 1},    {RBI_BLOCK_HELD, 0, 1},     {RBI_BLOCK_LEASED, 0, 1},    {RBI_BLOCK_QUEUED, 0, 1},
        {RBI_BLOCK_RETURNED, 0, 0},    {RBI_BLOCK_RETURNED, DEAD, 0}, {RBI_BLOCK_QUEUED, OTHER, 0}, {RBI_BLOCK_HELD, ME, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start_arena();
        write_run(60, cases[i].kind, cases[i].owner, 4);
        assert_findings(1, 0, cases[i].orphans, 0, 0);
    }
}

static void test_a_check_finds_a_run_whose_record_is_a_message_of_another_kind(void)
{
    put_small(1);
    write_run(60, RBI_BLOCK_QUEUED, ME, 4);
    write_entry(60, 100, 0, rbi_ring_first_position(&ring)); /* the small one's number */
    assert_findings(1, 0, 1, 0, 0);
}

static void test_a_check_finds_messages_without_the_run_they_refer_to(void)
{
    struct rbi_run run = put_large(1);
    put_large(2);
    assert_healthy(2);
    for (uint64_t block = run.first; block < run.first + run.blocks; block++) write_word(block, 0);
    assert_findings(1, 0, 0, 0, 1);
    take_record_as(OTHER);
    assert_findings(1, 0, 0, 0, 1);
}

/* ---- shared memory that somebody wrote over ---- */

static volatile uint64_t sink; /* so that what is read for nothing is read all the same */

static void read_all(const struct rbi_run *run, uint64_t bytes)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++) sum += run->payload[i];
    sink = sum;
}

static void write_all(const struct rbi_run *run) { memset(run->payload, 0x5a, run->blocks << arena.block_log2); }

static void end_somehow(struct rbi_run *run, uint64_t *seed)
{
    switch (random_below(seed, 4)) {
    case 0: rbi_arena_give_back(&arena, run, ME); break;
    case 1:
        if (rbi_arena_keep(&arena, run, ME) != RBI_ARENA_OK) break;
        if (rbi_arena_end_hold(&arena, run, ME) == RBI_ARENA_OK) release_run(run);
        break;
    case 2:
        if (rbi_arena_end_lease(&arena, run, ME) == RBI_ARENA_OK) release_run(run);
        break;
    default: break;
    }
}

/** Everything an arena can be asked, once.  What it answers does not matter, as long as it is an answer. */
static void ask_everything(uint64_t *seed)
{
    struct rbi_run run;
    uint64_t parts = 0;
    bool gave_back;
    struct rbi_arena_census counted = census();
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(BLOCKS, counted.used_blocks);
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(BLOCKS, counted.longest_free_blocks);
    check();
    for (int i = 0; i < 3; i++) {
        uint64_t size = random_below(seed, 4) ? random_below(seed, 40 * BLOCK) : next_random(seed) >> random_below(seed, 64);
        enum rbi_arena_outcome outcome = rbi_arena_allocate(&arena, &run, ME, size, 0, &parts, &gave_back);
        if (outcome == RBI_ARENA_OK) {
            TEST_ASSERT_LESS_OR_EQUAL_UINT64(BLOCKS, run.first + run.blocks);
            write_all(&run);
            if (random_below(seed, 2)) rbi_arena_set_backed(&arena, &run, ME);
            run.record = next_random(seed);
            switch (random_below(seed, 4)) {
            case 0: release_run(&run); break;
            case 1: ASSERT_DONE(rbi_arena_queue(&arena, &run, ME)); break;
            case 2: ASSERT_DONE(rbi_arena_lease_copy(&arena, &run, ME)); end_somehow(&run, seed); break;
            default: break;
            }
        } else if (outcome == RBI_ARENA_PARTS) {
            TEST_ASSERT_TRUE(parts != 0);
            rbi_arena_raise_parts(&arena, parts);
        } else {
            ASSERT_OUTCOME(RBI_ARENA_FULL, outcome);
        }
        outcome = rbi_arena_take_returned(&arena, &run, ME, random_below(seed, 2) ? UINT64_MAX : 100);
        if (outcome == RBI_ARENA_OK) {
            read_all(&run, run.size);
            end_somehow(&run, seed);
        } else if (outcome != RBI_ARENA_EMPTY && outcome != RBI_ARENA_SMALL) {
            ASSERT_OUTCOME(RBI_ARENA_CORRUPT, outcome);
        }
        uint64_t first = random_below(seed, 4) ? random_below(seed, BLOCKS) : next_random(seed);
        uint64_t entry_size = first < BLOCKS ? rbi_load_relaxed64(&entries[first].size) : 0;
        run.record = first < BLOCKS ? rbi_load_relaxed64(&entries[first].record) : 0;
        run.size = entry_size & RBI_SIZE_MASK;
        outcome = rbi_arena_lease_queued(&arena, &run, ME, first);
        if (outcome == RBI_ARENA_OK) {
            read_all(&run, run.size);
            end_somehow(&run, seed);
        } else {
            ASSERT_OUTCOME(RBI_ARENA_CORRUPT, outcome);
        }
        enum rbi_block_kind kind = (enum rbi_block_kind)random_below(seed, 16);
        uint64_t record = first < BLOCKS ? rbi_load_relaxed64(&entries[first].record) : 0;
        outcome = rbi_arena_find(&arena, &run, kind, (uint32_t)random_below(seed, 4), first, record);
        if (outcome != RBI_ARENA_OK) ASSERT_OUTCOME(RBI_ARENA_CORRUPT, outcome);
        else if (kind == RBI_BLOCK_RESERVED) write_all(&run);
        else read_all(&run, run.size);
        uint64_t from = random_below(seed, 2) ? 0 : next_random(seed) >> random_below(seed, 64);
        if (rbi_arena_take_idle(&arena, &run, ME, NOW, random_below(seed, 10), &from, &gave_back) == RBI_ARENA_OK) {
            write_all(&(struct rbi_run){.payload = memory + (run.first << BLOCK_LOG2), .blocks = run.blocks});
            rbi_arena_free_without_pages(&arena, &run, ME);
        }
        outcome = rbi_arena_recover(&arena, &ring, (uint32_t)random_below(seed, 4), random_below(seed, 2), NOW);
        if (outcome != RBI_ARENA_OK) ASSERT_OUTCOME(RBI_ARENA_CORRUPT, outcome);
        sink = rbi_arena_has_room(&arena, size, 0) + (uint64_t)rbi_arena_is_used(&arena);
    }
}

/** A word that is garbage, or plausible. */
static uint64_t hostile_word(uint64_t *seed, uint64_t block)
{
    enum rbi_pages pages = (enum rbi_pages)random_below(seed, 4);
    switch (random_below(seed, 8)) {
    case 0: return next_random(seed);
    case 1:
    case 2: return 0;
    case 3: return rest_word(random_below(seed, 2) ? block - random_below(seed, 4) : next_random(seed) & 0xffffff);
    case 4: return free_word(next_random(seed), pages);
    default:
        return run_word((enum rbi_block_kind)random_below(seed, 16), (uint32_t)random_below(seed, 4),
                        random_below(seed, 4) ? random_below(seed, 5) : next_random(seed) & 0xffffff, pages);
    }
}

static void make_hostile(uint64_t *seed)
{
    for (uint64_t block = 0; block < BLOCKS; block++) {
        write_word(block, hostile_word(seed, block));
        uint64_t size = next_random(seed);
        if (random_below(seed, 3)) size = random_below(seed, 4 * BLOCK) | size << RBI_ATTEMPTS_SHIFT;
        rbi_store_relaxed64(&entries[block].size, size);
        rbi_store_relaxed64(&entries[block].record, random_below(seed, 3) ? CELLS + random_below(seed, CELLS) : next_random(seed));
    }
    for (uint64_t i = 0; i < RBI_LANES * CELLS; i++) {
        uint64_t plausible = UINT64_C(1) << (16 + CELLS_LOG2) | 1u << 16 | random_below(seed, 64); /* of the ring's first lap */
        rbi_store_relaxed64(&slots[i].word, random_below(seed, 4) ? plausible : next_random(seed));
        rbi_store_relaxed64(&slots[i].size, (random_below(seed, 2) ? RBI_REFERENCE : 0) | random_below(seed, 400));
    }
}

static void test_an_arena_of_garbage_ends_every_call_and_leads_nobody_out_of_bounds(void)
{
    for (uint64_t round = 0; round < 4000; round++) {
        uint64_t seed = round;
        start_arena_of(BLOCKS, BLOCK_LOG2, random_below(&seed, 3) ? all_parts : next_random(&seed));
        make_hostile(&seed);
        rbi_store_relaxed64(&words.short_end, random_below(&seed, 2) ? random_below(&seed, 2 * BLOCKS) : next_random(&seed));
        ask_everything(&seed);
    }
}

/* ---- random operations against a model too simple to be wrong ---- */

/* The model: for every block the run it belongs to, and for every run what has been done to it. */
enum { MODEL_OWNERS = 4, NOBODYS = 255 };
struct model_run {
    struct rbi_run run;
    enum rbi_block_kind kind;
    uint32_t owner;
    uint8_t mark; /* its first byte in memory */
};
static struct model_run model[BLOCKS];
static uint8_t run_of[BLOCKS]; /* index into model, or NOBODYS */
static bool has_memory[BLOCKS];
static uint64_t model_records;

static uint64_t model_longest_free(void)
{
    uint64_t longest = 0, length = 0;
    for (uint64_t block = 0; block < BLOCKS; block++) {
        length = run_of[block] == NOBODYS ? length + 1 : 0;
        if (length > longest) longest = length;
    }
    return longest;
}

/** One of the runs in this state, of this owner if he is not 0; or NULL. */
static struct model_run *model_pick(enum rbi_block_kind kind, uint32_t owner, uint64_t *seed)
{
    struct model_run *picked = NULL;
    uint64_t seen = 0;
    for (int i = 0; i < BLOCKS; i++)
        if (model[i].kind == kind && (owner == 0 || model[i].owner == owner) && random_below(seed, ++seen) == 0) picked = &model[i];
    return picked;
}

static void model_free(struct model_run *run)
{
    for (uint64_t block = run->run.first; block < run->run.first + run->run.blocks; block++) {
        run_of[block] = NOBODYS;
        has_memory[block] = run->run.backed;
    }
    run->kind = RBI_BLOCK_FREE;
}

static void random_allocation(uint64_t *seed, uint32_t owner)
{
    uint64_t blocks = 1 + random_below(seed, random_below(seed, 4) ? SHORT + 4 : BLOCKS), longest = model_longest_free();
    struct model_run *run = model_pick(RBI_BLOCK_FREE, 0, seed);
    if (!run) return;
    TEST_ASSERT_EQUAL(blocks <= longest, rbi_arena_has_room(&arena, blocks * BLOCK, 0));
    ASSERT_OUTCOME(blocks <= longest ? RBI_ARENA_OK : RBI_ARENA_FULL, allocate(&run->run, owner, blocks * BLOCK));
    if (blocks > longest) return;
    bool backed = true;
    for (uint64_t block = run->run.first; block < run->run.first + blocks; block++) {
        TEST_ASSERT_EQUAL_UINT8(NOBODYS, run_of[block]);
        run_of[block] = (uint8_t)(run - model);
        backed = backed && has_memory[block];
    }
    TEST_ASSERT_EQUAL(backed, run->run.backed);
    if (!backed && random_below(seed, 8)) rbi_arena_set_backed(&arena, &run->run, owner);
    run->kind = RBI_BLOCK_RESERVED;
    run->owner = owner;
    run->mark = (uint8_t)next_random(seed);
    run->run.record = ++model_records; /* of a lap that the ring has not: nobody accounts for it there */
    memset(run->run.payload, run->mark, blocks * BLOCK);
}

static void random_transition(uint64_t *seed, uint32_t owner)
{
    const struct transition *transition = &transitions[random_below(seed, TRANSITIONS)];
    struct model_run *run = model_pick(transition->from, transition->from_anybody ? 0 : owner, seed);
    if (!run) return;
    ASSERT_DONE(transition->make(&arena, &run->run, owner));
    if (transition->make == lease_as_queued) run->run.attempts++;
    run->kind = transition->to;
    run->owner = transition->to_nobody ? 0 : owner;
}

static void random_free(uint64_t *seed, uint32_t owner)
{
    struct model_run *run = model_pick(RBI_BLOCK_RESERVED, owner, seed);
    if (!run) return;
    rbi_arena_free(&arena, &run->run, owner, NOW);
    model_free(run);
}

static void random_retaking(uint64_t *seed, uint32_t owner)
{
    struct model_run *oldest = NULL;
    struct rbi_run run;
    uint64_t limit = random_below(seed, 4) ? UINT64_MAX : random_below(seed, SHORT * BLOCK);
    for (int i = 0; i < BLOCKS; i++)
        if (model[i].kind == RBI_BLOCK_RETURNED && (!oldest || model[i].run.record < oldest->run.record)) oldest = &model[i];
    bool small = oldest && oldest->run.size > limit;
    ASSERT_OUTCOME(!oldest ? RBI_ARENA_EMPTY : small ? RBI_ARENA_SMALL : RBI_ARENA_OK,
                   rbi_arena_take_returned(&arena, &run, owner, limit));
    if (!oldest || small) return;
    TEST_ASSERT_EQUAL_UINT64(oldest->run.first, run.first);
    TEST_ASSERT_EQUAL_UINT64(oldest->run.size, run.size);
    TEST_ASSERT_EQUAL_UINT64(oldest->run.record, run.record);
    TEST_ASSERT_EQUAL_UINT32(++oldest->run.attempts, run.attempts);
    oldest->kind = RBI_BLOCK_LEASED;
    oldest->owner = owner;
}

static void random_death(uint64_t *seed, uint32_t owner)
{
    bool keep = random_below(seed, 2);
    ASSERT_DONE(rbi_arena_recover(&arena, &ring, owner, keep, NOW));
    for (int i = 0; i < BLOCKS; i++) {
        if (model[i].kind == RBI_BLOCK_FREE || model[i].owner != owner) continue;
        if (model[i].kind == RBI_BLOCK_LEASED) {
            model[i].kind = RBI_BLOCK_RETURNED;
            model[i].owner = 0;
        } else if (model[i].kind == RBI_BLOCK_QUEUED || !keep) {
            model_free(&model[i]);
        }
    }
}

static void model_compare(void)
{
    uint64_t runs[RBI_BLOCK_REST] = {0}, used = 0;
    for (int i = 0; i < BLOCKS; i++) {
        if (model[i].kind == RBI_BLOCK_FREE) continue;
        const struct rbi_run *run = &model[i].run;
        runs[model[i].kind]++;
        used += run->blocks;
        uint64_t pages = run->backed ? RBI_PAGES_BACKED : RBI_PAGES_UNSURE;
        TEST_ASSERT_EQUAL_HEX64(run_word(model[i].kind, model[i].owner, run->blocks, (enum rbi_pages)pages), word_at(run->first));
        for (uint64_t block = run->first + 1; block < run->first + run->blocks; block++)
            TEST_ASSERT_EQUAL_HEX64(rest_word(run->first), word_at(block));
        TEST_ASSERT_EACH_EQUAL_UINT8(model[i].mark, run->payload, run->blocks * BLOCK);
    }
    for (uint64_t block = 0; block < BLOCKS; block++)
        if (run_of[block] == NOBODYS) TEST_ASSERT_EQUAL_INT(RBI_BLOCK_FREE, kind_at(block));
    struct rbi_arena_census counted = census();
    for (int kind = RBI_BLOCK_RESERVED; kind < RBI_BLOCK_REST; kind++) TEST_ASSERT_EQUAL_UINT64(runs[kind], counted.runs[kind]);
    TEST_ASSERT_EQUAL_UINT64(used, counted.used_blocks);
    TEST_ASSERT_EQUAL_UINT64(model_longest_free(), counted.longest_free_blocks);
}

static void run_model(uint64_t seed, int operations)
{
    start_arena();
    memset(model, 0, sizeof model);
    memset(run_of, NOBODYS, sizeof run_of);
    memset(has_memory, 0, sizeof has_memory);
    model_records = 0;
    for (int i = 0; i < operations; i++) {
        uint32_t owner = (uint32_t)random_below(&seed, MODEL_OWNERS) + 1;
        switch (random_below(&seed, 16)) {
        case 0:
            if (random_below(&seed, 8) == 0) random_death(&seed, owner);
            break;
        case 1: random_retaking(&seed, owner); break;
        case 2:
        case 3:
        case 4:
        case 5:
        case 6: random_allocation(&seed, owner); break;
        case 7:
        case 8:
        case 9: random_free(&seed, owner); break;
        default: random_transition(&seed, owner); break;
        }
        model_compare();
    }
    for (uint32_t owner = 1; owner <= MODEL_OWNERS; owner++) random_death(&seed, owner);
    model_compare();
}

static void test_random_operations_agree_with_an_array(void)
{
    for (uint64_t seed = 0; seed < (SANITIZED ? 4 : 20); seed++) run_model(seed, 3000);
}

/* ---- how much of an arena can be used ---- */

/* As large as by default. */
enum {
    LARGE_ARENA_LOG2 = 14,
    LARGE_ARENA = 1 << LARGE_ARENA_LOG2,
    LARGE_BLOCK_LOG2 = 12,
    FAILURES = SANITIZED ? 20 : 1000,
    KIB = 1024,
    MIB = 1024 * KIB,
};

/** Messages of random sizes (so that each power of two is as likely), ended in the order they came or in any, among leases of one
 *  block each that are held for a random and long time. */
struct mix {
    const char *name;
    uint64_t smallest, largest;
    bool in_order;
    uint64_t leases;
};

/** What was found: how much of the arena was in use, in blocks, when a message did not fit. */
struct use {
    uint64_t failures, first, least, sum;
    uint64_t scattered; /* failures although so many blocks were free, here and there */
};

static struct rbi_run live[LARGE_ARENA];

static uint64_t random_size(const struct mix *mix, uint64_t *seed)
{
    uint64_t doublings = 0;
    while (mix->smallest << (doublings + 1) <= mix->largest) doublings++;
    if (doublings == 0) return mix->smallest;
    uint64_t base = mix->smallest << random_below(seed, doublings);
    return base + random_below(seed, base) + 1;
}

static void note_failure(struct use *use, uint64_t size)
{
    uint64_t blocks = (size + (1 << LARGE_BLOCK_LOG2) - 1) >> LARGE_BLOCK_LOG2, used = census().used_blocks;
    TEST_ASSERT_LESS_THAN_UINT64(blocks, longest_free()); /* the bound that must hold */
    if (use->failures++ == 0) use->first = use->least = used;
    if (used < use->least) use->least = used;
    use->sum += used;
    use->scattered += LARGE_ARENA - used >= blocks;
}

static void end_one(uint64_t *count, bool in_order, uint64_t *seed)
{
    uint64_t which = in_order ? 0 : random_below(seed, *count);
    release_run(&live[which]);
    --*count;
    if (in_order) memmove(live, live + 1, *count * sizeof *live);
    else live[which] = live[*count];
}

/** Keep as many leases as the mix has, and replace one now and then. */
static void keep_leases(const struct mix *mix, struct rbi_run *leases, uint64_t *count, uint64_t *seed)
{
    if (mix->leases == 0) return;
    for (int i = 0; i < 8; i++) {
        if (*count == mix->leases || (*count && random_below(seed, 4) == 0)) {
            uint64_t which = random_below(seed, *count);
            release_run(&leases[which]);
            leases[which] = leases[--*count];
        }
        if (allocate(&leases[*count], ME, 100) == RBI_ARENA_OK) ++*count;
    }
}

static struct use measure(const struct mix *mix)
{
    static struct rbi_run leases[LARGE_ARENA];
    struct use use = {0};
    uint64_t seed = 1, count = 0, lease_count = 0;
    start_arena_of(LARGE_ARENA, LARGE_BLOCK_LOG2, all_parts);
    while (use.failures < FAILURES) {
        uint64_t size = random_size(mix, &seed);
        keep_leases(mix, leases, &lease_count, &seed);
        if (allocate(&live[count], ME, size) == RBI_ARENA_OK) {
            count++;
            continue;
        }
        note_failure(&use, size);
        do end_one(&count, mix->in_order, &seed);
        while (!rbi_arena_has_room(&arena, size, 0));
    }
    return use;
}

static void test_a_request_fails_only_if_no_row_of_free_blocks_is_long_enough(void)
{
    static const struct mix mixes[] = {
        {"64 KiB to 16 MiB, in order", 64 * KIB, 16 * MIB, true, 0},
        {"64 KiB to 16 MiB, in any order", 64 * KIB, 16 * MIB, false, 0},
        {"64 KiB to 1 MiB, in order", 64 * KIB, MIB, true, 0},
        {"64 KiB to 1 MiB, in any order", 64 * KIB, MIB, false, 0},
        {"1 MiB to 16 MiB, in any order", MIB, 16 * MIB, false, 0},
        {"16 MiB, in order", 16 * MIB, 16 * MIB, true, 0},
        {"16 MiB, in order, and 1000 leases of a block", 16 * MIB, 16 * MIB, true, 1000},
        {"64 KiB to 16 MiB, in order, and 1000 leases of a block", 64 * KIB, 16 * MIB, true, 1000},
        {"64 KiB to 16 MiB, in any order, and 1000 leases of a block", 64 * KIB, 16 * MIB, false, 1000},
        {"5 KiB to 256 KiB, in any order, and 4000 leases of a block", 5 * KIB, 256 * KIB, false, 4000},
    };
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++) {
        struct use use = measure(&mixes[i]);
        double percent = 100.0 / LARGE_ARENA;
        printf("64 MiB of %s: in use when one did not fit: %.0f %% the first time, %.0f %% on average, %.0f %% at least; "
               "of %llu failures %.0f %% with enough blocks free in all\n",
               mixes[i].name, (double)use.first * percent, (double)use.sum / (double)use.failures * percent,
               (double)use.least * percent, (unsigned long long)use.failures, 100.0 * (double)use.scattered / (double)use.failures);
    }
}

/* ---- threads ---- */

/* Workers never assert: they count what is wrong. */
enum { WORKERS = 4, WORKER_RUNS = 6, OPERATIONS = SANITIZED ? 30000 : 60000, LIVES = SANITIZED ? 1500 : 8000 };

struct worker {
    uint32_t owner;
    uint64_t seed;
    uint64_t wrong;
    uint64_t done;
    pthread_t thread;
};

static stage workers_end;

static void run_workers(void *(*body)(void *), struct worker *workers)
{
    atomic_store(&workers_end, 0);
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){.owner = 10 + i, .seed = i};
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&workers[i].thread, NULL, body, &workers[i]));
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        TEST_ASSERT_EQUAL_UINT64(0, workers[i].wrong);
    }
}

static bool filled_with(const struct rbi_run *run, uint8_t mark)
{
    for (uint64_t i = 0; i < run->blocks << arena.block_log2; i++)
        if (run->payload[i] != mark) return false;
    return true;
}

static void *allocate_and_free(void *context)
{
    struct worker *me = context;
    struct rbi_run runs[WORKER_RUNS];
    uint8_t marks[WORKER_RUNS];
    bool used[WORKER_RUNS] = {false};
    for (int i = 0; i < OPERATIONS; i++) {
        uint64_t which = random_below(&me->seed, WORKER_RUNS);
        struct rbi_run *run = &runs[which];
        if (used[which]) {
            me->wrong += !filled_with(run, marks[which]);
            rbi_arena_free(&arena, run, me->owner, NOW);
            used[which] = false;
        } else if (allocate(run, me->owner, random_below(&me->seed, 24 * BLOCK + 1)) == RBI_ARENA_OK) {
            if (!run->backed) rbi_arena_set_backed(&arena, run, me->owner);
            marks[which] = (uint8_t)next_random(&me->seed);
            memset(run->payload, marks[which], run->blocks * BLOCK);
            used[which] = true;
            me->done++;
        }
    }
    for (int i = 0; i < WORKER_RUNS; i++) {
        if (!used[i]) continue;
        me->wrong += !filled_with(&runs[i], marks[i]);
        rbi_arena_free(&arena, &runs[i], me->owner, NOW);
    }
    return NULL;
}

/** Meanwhile. */
static void *look_and_give_memory_back(void *context)
{
    struct worker *me = context;
    struct rbi_arena_findings found;
    struct rbi_run run;
    while (!atomic_load(&workers_end)) {
        struct rbi_arena_census counted = census();
        me->wrong += counted.used_blocks > BLOCKS || counted.longest_free_blocks > BLOCKS;
        rbi_arena_check(&arena, &ring, &found, everybody_but_the_dead, NULL);
        rbi_arena_has_room(&arena, random_below(&me->seed, BLOCKS * BLOCK), 0);
        if (take_idle(&run, me->owner, NOW, 0) == RBI_ARENA_OK) {
            memset(run.payload = memory + run.first * BLOCK, 0, run.blocks * BLOCK); /* as the system does it */
            rbi_arena_free_without_pages(&arena, &run, me->owner);
            me->done++;
        }
        nap_ms(1);
    }
    return NULL;
}

static void test_threads_that_allocate_and_free_at_once_never_share_a_block_and_leave_none(void)
{
    struct worker workers[WORKERS], looker = {.owner = 9};
    atomic_store(&workers_end, 0);
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&looker.thread, NULL, look_and_give_memory_back, &looker));
    run_workers(allocate_and_free, workers);
    atomic_store(&workers_end, 1);
    pthread_join(looker.thread, NULL);
    TEST_ASSERT_EQUAL_UINT64(0, looker.wrong);
    for (int i = 0; i < WORKERS; i++) TEST_ASSERT_GREATER_THAN_UINT64(0, workers[i].done);
    assert_all_free();
    assert_healthy(0);
}

/** A message of our own making, which no record of the ring knows; or one that somebody else left behind.  Ends somehow. */
static void handle_one_message(struct worker *me)
{
    struct rbi_run run;
    if (random_below(&me->seed, 2)) {
        enum rbi_arena_outcome outcome = rbi_arena_take_returned(&arena, &run, me->owner, UINT64_MAX);
        if (outcome == RBI_ARENA_EMPTY) return;
        if (outcome != RBI_ARENA_OK || !tells_number(run.payload, run.size, run.record)) {
            me->wrong++;
            return;
        }
    } else {
        uint64_t size = random_below(&me->seed, 24 * BLOCK + 1);
        if (allocate(&run, me->owner, size) != RBI_ARENA_OK) return;
        if (!run.backed) rbi_arena_set_backed(&arena, &run, me->owner);
        run.record = ++me->done * WORKERS + me->owner % WORKERS;
        write_number(run.payload, size, run.record);
        me->wrong += rbi_arena_lease_copy(&arena, &run, me->owner) != RBI_ARENA_OK;
    }
    uint64_t way = random_below(&me->seed, 8);
    if (way < 3) {
        me->wrong += rbi_arena_give_back(&arena, &run, me->owner) != RBI_ARENA_OK;
        return;
    }
    if (way == 3) {
        me->wrong += rbi_arena_keep(&arena, &run, me->owner) != RBI_ARENA_OK;
        me->wrong += !tells_number(run.payload, run.size, run.record);
        me->wrong += rbi_arena_end_hold(&arena, &run, me->owner) != RBI_ARENA_OK;
    } else {
        me->wrong += rbi_arena_end_lease(&arena, &run, me->owner) != RBI_ARENA_OK;
    }
    rbi_arena_free(&arena, &run, me->owner, NOW);
}

static void *live_die_and_be_recovered(void *context)
{
    struct worker *me = context;
    for (volatile int life = 0; life < LIVES; life++) {
        bool recovering = false;
        do {
            points_to_live = (int)(1 + random_below(&me->seed, 100));
            if (setjmp(grave) == 0) {
                if (recovering) {
                    struct rbi_arena own = arena; /* each process has its own view, in which a recovery notes what it did */
                    me->wrong += rbi_arena_recover(&own, &ring, me->owner, false, NOW) != RBI_ARENA_OK;
                    recovering = false;
                    points_to_live = 0;
                    break;
                }
                for (;;) handle_one_message(me);
            }
            recovering = true; /* also if who recovered us has died as well */
        } while (true);
    }
    return NULL;
}

static void test_threads_that_die_in_the_middle_and_are_recovered_lose_no_block_and_spoil_no_message(void)
{
    struct worker workers[WORKERS];
    struct rbi_run run;
    rbi_point_hook = count_down;
    run_workers(live_die_and_be_recovered, workers);
    rbi_point_hook = NULL;
    for (enum rbi_arena_outcome outcome; (outcome = rbi_arena_take_returned(&arena, &run, ME, UINT64_MAX)) != RBI_ARENA_EMPTY;) {
        ASSERT_DONE(outcome);
        TEST_ASSERT_TRUE(tells_number(run.payload, run.size, run.record));
        acknowledge_as(ME, &run);
    }
    assert_all_free();
    assert_healthy(0);
}

/* Messages through ring and arena: two put, two get. */

enum { MESSAGES = SANITIZED ? 4000 : 20000 };
static _Atomic uint8_t deliveries[2 * MESSAGES];
static _Atomic uint64_t delivered;

static void put_patiently(struct worker *me, uint64_t number)
{
    struct rbi_record record;
    struct rbi_run run = {.payload = NULL};
    bool large = random_below(&me->seed, 2);
    uint64_t size = 8 + random_below(&me->seed, large ? 12 * BLOCK : RBI_INLINE_BYTES - 7);
    while (large && allocate(&run, me->owner, size) != RBI_ARENA_OK) nap_ms(0);
    if (large) {
        if (!run.backed) rbi_arena_set_backed(&arena, &run, me->owner);
        write_number(run.payload, size, number);
        memcpy(run.payload, &number, sizeof number);
    }
    while (rbi_ring_claim(&ring, &record, me->owner, large ? sizeof run.first : size) != RBI_RING_OK) nap_ms(0);
    if (large) {
        run.record = rbi_ring_number_of(&record);
        me->wrong += rbi_arena_queue(&arena, &run, me->owner) != RBI_ARENA_OK;
        rbi_ring_refer(&record, size, run.first);
    } else {
        write_number(record.payload, size, number);
        memcpy(record.payload, &number, sizeof number);
    }
    me->wrong += rbi_ring_publish(&ring, &record, me->owner) != RBI_RING_OK;
}

static void *put_many(void *context)
{
    struct worker *me = context;
    for (uint64_t i = 0; i < MESSAGES; i++) put_patiently(me, i * 2 + me->owner % 2);
    return NULL;
}

static void count_delivery(struct worker *me, const uint8_t *payload, uint64_t size)
{
    uint64_t number;
    uint8_t expected[16 * BLOCK];
    memcpy(&number, payload, sizeof number);
    write_number(expected, size, number);
    if (number >= 2 * MESSAGES || memcmp(payload + 8, expected + 8, size - 8) != 0) {
        me->wrong++;
        return;
    }
    atomic_fetch_add(&deliveries[number], 1);
    atomic_fetch_add(&delivered, 1);
}

static void end_run(struct worker *me, struct rbi_run *run)
{
    uint64_t way = random_below(&me->seed, 4);
    if (way == 0) {
        me->wrong += rbi_arena_give_back(&arena, run, me->owner) != RBI_ARENA_OK;
        rbi_ring_set_returned(&ring);
        return;
    }
    count_delivery(me, run->payload, run->size);
    if (way == 1) {
        me->wrong += rbi_arena_keep(&arena, run, me->owner) != RBI_ARENA_OK;
        me->wrong += rbi_arena_end_hold(&arena, run, me->owner) != RBI_ARENA_OK;
    } else {
        me->wrong += rbi_arena_end_lease(&arena, run, me->owner) != RBI_ARENA_OK;
    }
    rbi_arena_free(&arena, run, me->owner, NOW);
}

static void end_record(struct worker *me, struct rbi_record *record)
{
    struct rbi_run run = {.record = rbi_ring_number_of(record), .size = record->size};
    uint64_t way = random_below(&me->seed, 4);
    if (way == 0) {
        rbi_ring_give_back(&ring, record);
    } else if (record->reference) {
        uint64_t first;
        memcpy(&first, record->payload, sizeof first);
        me->wrong += rbi_arena_lease_queued(&arena, &run, me->owner, first) != RBI_ARENA_OK;
        rbi_ring_release(&ring, record);
        end_run(me, &run);
    } else if (way == 1 && allocate(&run, me->owner, record->size) == RBI_ARENA_OK) {
        memcpy(run.payload, record->payload, record->size);
        run.size = record->size;
        run.record = rbi_ring_number_of(record);
        run.attempts = record->attempts;
        me->wrong += rbi_arena_lease_copy(&arena, &run, me->owner) != RBI_ARENA_OK;
        rbi_ring_release(&ring, record);
        end_run(me, &run);
    } else {
        count_delivery(me, record->payload, record->size);
        rbi_ring_release(&ring, record);
    }
}

static void *get_many(void *context)
{
    struct worker *me = context;
    struct rbi_record record;
    struct rbi_run run;
    while (atomic_load(&delivered) < 2 * MESSAGES && me->wrong == 0) {
        enum rbi_ring_outcome outcome = rbi_ring_take(&ring, &record, me->owner, UINT64_MAX);
        if (outcome == RBI_RING_OK) {
            end_record(me, &record);
        } else if (outcome == RBI_RING_ASIDE) {
            enum rbi_arena_outcome aside = rbi_arena_take_returned(&arena, &run, me->owner, UINT64_MAX);
            if (aside == RBI_ARENA_OK) end_run(me, &run);
            else if (aside == RBI_ARENA_EMPTY) rbi_ring_clear_returned(&ring, record.position);
            else me->wrong++;
        } else {
            me->wrong += outcome == RBI_RING_CORRUPT;
            nap_ms(0);
        }
    }
    return NULL;
}

static void *put_or_get_many(void *context)
{
    struct worker *me = context;
    return me->owner < 12 ? put_many(context) : get_many(context);
}

static void test_threads_that_hand_messages_on_through_ring_and_arena_deliver_each_whole_and_once(void)
{
    struct worker workers[WORKERS];
    memset((void *)deliveries, 0, sizeof deliveries);
    atomic_store(&delivered, 0);
    run_workers(put_or_get_many, workers);
    for (int i = 0; i < 2 * MESSAGES; i++) TEST_ASSERT_EQUAL_UINT8(1, atomic_load(&deliveries[i]));
    assert_all_free();
    assert_no_message();
    assert_healthy(0);
}

int main(void)
{
    UNITY_BEGIN();
    RUN_TEST(test_a_new_arena_is_free_and_has_never_been_used);
    RUN_TEST(test_an_arena_without_blocks_is_full_and_empty_and_harms_nobody);
    RUN_TEST(test_a_run_s_first_block_names_owner_and_length_and_the_others_name_the_first);
    RUN_TEST(test_sizes_around_the_block_boundaries_use_the_blocks_they_need);
    RUN_TEST(test_a_message_larger_than_the_arena_never_fits);
    RUN_TEST(test_long_runs_lie_at_the_bottom_and_short_ones_at_the_top);
    RUN_TEST(test_a_long_run_takes_the_lowest_hole_that_is_long_enough);
    RUN_TEST(test_a_short_run_takes_the_topmost_hole_that_is_long_enough);
    RUN_TEST(test_a_short_run_is_found_wherever_the_guess_lies);
    RUN_TEST(test_short_runs_go_up_again_to_where_others_were_freed);
    RUN_TEST(test_an_arena_is_full_exactly_when_every_block_is_taken);
    RUN_TEST(test_a_refused_allocation_changes_nothing);
    RUN_TEST(test_neighbours_that_were_freed_are_one_hole);
    RUN_TEST(test_an_allocation_says_which_parts_need_pages_and_changes_nothing);
    RUN_TEST(test_an_allocation_asks_only_for_the_parts_that_are_missing);
    RUN_TEST(test_parts_once_raised_stay);
    RUN_TEST(test_what_lies_in_a_part_without_pages_is_free_and_not_looked_at);
    RUN_TEST(test_memory_that_was_given_to_a_run_is_known_to_be_there_for_the_next_one);
    RUN_TEST(test_a_run_is_backed_only_if_its_first_block_is_too);
    RUN_TEST(test_who_frees_a_run_without_memory_does_not_claim_that_it_has_any);
    RUN_TEST(test_an_allocation_gives_way_to_who_was_quicker_says_so_and_looks_further);
    RUN_TEST(test_blocks_that_were_ours_for_a_moment_keep_their_memory_and_their_age);
    RUN_TEST(test_blocks_that_were_ours_for_a_moment_are_not_believed_to_have_memory_if_one_of_them_had_none);
    RUN_TEST(test_an_allocation_is_full_if_who_was_quicker_has_left_too_little);
    RUN_TEST(test_a_short_allocation_that_gave_way_near_its_last_place_looks_everywhere_else);
    RUN_TEST(test_blocks_freed_one_by_one_can_be_taken_before_the_last_is);
    RUN_TEST(test_every_transition_changes_state_and_owner_and_nothing_else);
    RUN_TEST(test_no_transition_can_be_made_twice);
    RUN_TEST(test_no_transition_can_be_made_from_another_state_or_by_another_owner_or_of_another_length);
    RUN_TEST(test_a_message_goes_through_the_arena_whole);
    RUN_TEST(test_a_reference_that_does_not_fit_its_run_is_corrupt_and_leaves_it_alone);
    RUN_TEST(test_a_run_is_found_by_its_state_owner_and_record_only);
    RUN_TEST(test_a_reservation_is_found_by_its_ticket_and_brings_nothing_of_who_had_its_blocks_before);
    RUN_TEST(test_nobody_frees_what_he_has_not_reserved);
    RUN_TEST(test_every_lease_of_a_large_message_is_counted);
    RUN_TEST(test_a_small_message_s_attempts_go_with_it_into_the_arena);
    RUN_TEST(test_attempts_stay_at_their_ceiling);
    RUN_TEST(test_what_was_returned_is_taken_in_the_order_of_its_puts);
    RUN_TEST(test_what_is_too_large_for_the_taker_stays_and_tells_its_size_also_where_a_younger_one_would_fit);
    RUN_TEST(test_what_turns_out_too_large_only_when_it_is_taken_goes_back);
    RUN_TEST(test_a_returned_message_larger_than_its_run_is_corrupt_and_not_read);
    RUN_TEST(test_a_size_that_does_not_fit_means_nothing_before_the_run_is_taken);
    RUN_TEST(test_only_what_was_returned_is_taken);
    RUN_TEST(test_recovery_of_one_who_has_nothing_changes_nothing);
    RUN_TEST(test_what_the_dead_had_reserved_or_held_is_free);
    RUN_TEST(test_one_who_only_closes_keeps_what_he_holds_and_reserves_and_gives_back_what_he_leased);
    RUN_TEST(test_a_reservation_without_memory_is_not_believed_to_have_any_when_its_owner_died);
    RUN_TEST(test_an_allocation_that_was_killed_half_way_costs_others_nothing);
    RUN_TEST(test_freeing_that_was_killed_half_way_is_finished_and_leaves_alone_what_others_have_made_of_it);
    RUN_TEST(test_a_message_whose_record_was_not_published_does_not_exist);
    RUN_TEST(test_a_message_whose_record_was_skipped_and_not_published_does_not_exist);
    RUN_TEST(test_a_message_whose_record_was_given_up_is_dropped_also_when_its_lap_is_over);
    RUN_TEST(test_a_published_message_outlives_its_producer_in_whatever_state);
    RUN_TEST(test_a_message_published_late_outlives_its_producer);
    RUN_TEST(test_a_message_of_its_own_that_the_dead_had_taken_but_not_leased_is_returned);
    RUN_TEST(test_a_lease_whose_record_was_not_yet_released_is_a_queued_message_again);
    RUN_TEST(test_a_lease_whose_record_was_released_is_returned);
    RUN_TEST(test_a_lease_is_returned_also_when_the_lap_of_its_record_is_over);
    RUN_TEST(test_a_copy_whose_record_was_not_yet_released_is_free_and_the_record_is_returned);
    RUN_TEST(test_a_lease_that_was_taken_again_after_it_was_returned_is_returned_again);
    RUN_TEST(test_recovery_leaves_the_runs_of_others_alone_in_every_state);
    RUN_TEST(test_recovery_sets_the_hint_for_what_was_returned_and_it_only_meets);
    RUN_TEST(test_recovery_says_so_if_the_table_is_damaged_and_does_all_the_rest);
    RUN_TEST(test_recovery_touches_no_run_that_reaches_where_the_table_has_no_pages);
    RUN_TEST(test_a_death_at_any_point_is_recovered_from_also_if_who_recovers_dies_at_any_point);
    RUN_TEST(test_memory_is_idle_when_its_blocks_were_freed_long_enough_ago);
    RUN_TEST(test_blocks_that_never_had_memory_are_not_idle_and_those_that_may_have_some_are);
    RUN_TEST(test_idle_blocks_are_taken_from_the_top_in_as_long_runs_as_there_are_and_younger_ones_stay);
    RUN_TEST(test_idle_blocks_are_looked_for_from_where_the_last_look_ended_and_taken_in_pieces);
    RUN_TEST(test_who_takes_idle_blocks_gives_way_to_who_was_quicker_and_says_so);
    RUN_TEST(test_ages_are_right_across_the_wrap_of_the_clock);
    RUN_TEST(test_memory_that_a_dead_one_was_giving_back_may_be_there_or_not);
    RUN_TEST(test_the_census_counts_runs_by_state_and_blocks_by_use);
    RUN_TEST(test_a_check_finds_nothing_where_everything_is_accounted_for);
    RUN_TEST(test_a_check_finds_blocks_that_belong_to_no_run);
    RUN_TEST(test_a_check_finds_runs_whose_blocks_do_not_say_that_they_belong_to_them);
    RUN_TEST(test_a_check_finds_runs_whose_block_lies_where_the_table_has_no_pages);
    RUN_TEST(test_a_check_finds_runs_that_nobody_accounts_for);
    RUN_TEST(test_a_check_finds_a_run_whose_record_is_a_message_of_another_kind);
    RUN_TEST(test_a_check_finds_messages_without_the_run_they_refer_to);
    RUN_TEST(test_an_arena_of_garbage_ends_every_call_and_leads_nobody_out_of_bounds);
    RUN_TEST(test_random_operations_agree_with_an_array);
    RUN_TEST(test_a_request_fails_only_if_no_row_of_free_blocks_is_long_enough);
    RUN_TEST(test_threads_that_allocate_and_free_at_once_never_share_a_block_and_leave_none);
    RUN_TEST(test_threads_that_die_in_the_middle_and_are_recovered_lose_no_block_and_spoil_no_message);
    RUN_TEST(test_threads_that_hand_messages_on_through_ring_and_arena_deliver_each_whole_and_once);
    return UNITY_END();
}
