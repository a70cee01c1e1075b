/* test_threads.c — floors 1 and 2: participants that are threads, on one ring and one arena in plain memory.
 *
 * ThreadSanitizer does not see races between processes, nor between two handles of one process, whose mappings are different addresses.
 * So here each participant has a view and a number of its own, as a process has, but all views are of the same memory; and one
 * participant has two threads, as a handle may.  Payloads, and what is noted about each message, are plain memory, which only the
 * edges of docs/memory-model.md hand on: a write and a read that no edge orders is reported.
 *
 * Everybody does everything at random: puts of all sizes, gives claims up, takes, leases, keeps, gives back, skips, gives memory
 * back, changes lanes; and dies.  To die is to stop in the middle of something and to go on under another number, while the old one
 * waits for somebody to recover it; a mutex stands for the lock byte, which the kernel hands on.  (What dies here has finished its
 * last store.  test_crash.c kills between any two.)
 *
 * At the end every message whose put returned was consumed once and the others never; each take was counted as an attempt; and nothing
 * is left in ring and arena.
 *
 *   test_threads [OPERATIONS [SEED]]      of each thread */
#include "support.h"

#include "arena.h"
#include "platform.h"
#include "wait.h"

#include <pthread.h>

enum {
    CELLS_LOG2 = 5, /* 32 cells: often full, often empty, a lap in no time */
    CELL_LOG2 = RBI_CELL_MIN_LOG2,
    BLOCK_LOG2 = 12,
    BLOCKS = 2 * RBI_TABLE_PARTS,
    MORTALS = 3,
    WORKERS = MORTALS + 2, /* the last two are threads of one participant */
    NUMBERS = 3 * WORKERS, /* owner numbers */
    NOW = 1000,
    MOST_MESSAGES = 1 << 20,
};

/* ---- what all share ---- */

static struct rbi_order order;
static struct rbi_cursors cursors[RBI_LANES];
static struct rbi_slot slots[RBI_LANES << CELLS_LOG2];
static uint8_t data[(size_t)RBI_LANES << (CELLS_LOG2 + CELL_LOG2 + 1)]; /* each lane's twice, though not the same memory: none wraps */
static struct rbi_arena_words arena_words;
static rbi_atomic64 table[BLOCKS];
static struct rbi_run_entry entries[BLOCKS];
static uint8_t blocks[BLOCKS << BLOCK_LOG2];
static struct rbi_event items;

static _Atomic uint64_t next_number = 1;

/** About each message, by number.  Plain memory: it belongs to whom the message belongs to. */
static struct note {
    uint32_t takes;
    uint8_t put_returned, consumed;
} notes[MOST_MESSAGES];

/** Whose number is whose.  The mutex stands for the kernel's lock bytes. */
static pthread_mutex_t numbers = PTHREAD_MUTEX_INITIALIZER;
static uint32_t unused[NUMBERS], unused_count, dead[NUMBERS], dead_count;

struct view {
    struct rbi_ring ring;
    struct rbi_arena arena;
};

struct worker {
    struct view *view;
    uint32_t owner;
    bool mortal;
    uint64_t seed;
    uint64_t operations; /* at random; 0: a worker that does steps, and only what is needed */
    uint64_t wrong, puts, gets, returns, deaths, recoveries, lanes_changed;
    const char *what; /* is wrong, first */
    pthread_t thread;
};

static void look_at(struct view *view)
{
    rbi_ring_init(&view->ring, &order, CELLS_LOG2, CELL_LOG2, 0);
    for (uint64_t lane = 0; lane < RBI_LANES; lane++)
        rbi_ring_add_lane(&view->ring, &cursors[lane], &slots[lane << CELLS_LOG2], data + (lane << (CELLS_LOG2 + CELL_LOG2 + 1)));
    view->ring.looks_aside = true;
    view->ring.patience = 2; /* so that slow ones are skipped often */
    view->ring.least_lap = 8;
    view->ring.age_shift = 63;
    rbi_arena_init(&view->arena, &arena_words, table, entries, blocks, BLOCKS, BLOCK_LOG2);
}

static void is_wrong(struct worker *me, const char *what)
{
    if (!me->wrong++) me->what = what;
}

static bool chance(struct worker *me, uint64_t in) { return random_below(&me->seed, in) == 0; }

/* ---- dying and being recovered ---- */

static void recover(struct worker *me)
{
    pthread_mutex_lock(&numbers);
    uint32_t number = dead_count ? dead[--dead_count] : 0;
    pthread_mutex_unlock(&numbers);
    if (!number) return;
    /* A recovery notes in the view what it did, so each has its own: those of several processes run at once, those of one do not. */
    struct view own;
    look_at(&own);
    if (rbi_arena_recover(&own.arena, &own.ring, number, false, NOW) != RBI_ARENA_OK) is_wrong(me, "arena's recovery");
    if (rbi_ring_recover(&own.ring, number) != RBI_RING_OK) is_wrong(me, "ring's recovery");
    me->recoveries++;
    rbi_event_wake_all(&items);
    pthread_mutex_lock(&numbers);
    unused[unused_count++] = number;
    pthread_mutex_unlock(&numbers);
}

/** Perhaps die here.  True: what was being done is not ours any more. */
static bool dies(struct worker *me)
{
    if (!me->mortal || !chance(me, 60)) return false;
    me->deaths++;
    pthread_mutex_lock(&numbers);
    dead[dead_count++] = me->owner;
    pthread_mutex_unlock(&numbers);
    for (;;) {
        pthread_mutex_lock(&numbers);
        me->owner = unused_count ? unused[--unused_count] : 0;
        pthread_mutex_unlock(&numbers);
        if (me->owner) return true;
        recover(me);
    }
}

/* ---- messages ---- */

static void fill(uint8_t *payload, uint64_t size, uint64_t number)
{
    memset(payload, (int)(uint8_t)number, size);
    memcpy(payload, &number, sizeof number);
}

static uint64_t read_number(struct worker *me, const uint8_t *payload, uint64_t size)
{
    uint64_t number;
    memcpy(&number, payload, sizeof number);
    if (size < sizeof number || number == 0 || number >= MOST_MESSAGES) {
        is_wrong(me, "a message without number");
        return 0;
    }
    bool whole = size == sizeof number || payload[size - 1] == (uint8_t)number;
    for (uint64_t i = sizeof number; i < size; i += 37) whole &= payload[i] == (uint8_t)number;
    if (!whole) is_wrong(me, "a message is damaged");
    return number;
}

static bool allocate(struct worker *me, struct rbi_run *run, uint64_t size)
{
    for (;;) {
        uint64_t parts;
        bool gave_back;
        switch (rbi_arena_allocate(&me->view->arena, run, me->owner, size, 0, &parts, &gave_back)) {
        case RBI_ARENA_PARTS: rbi_arena_raise_parts(&me->view->arena, parts); continue;
        case RBI_ARENA_OK:
            if (!run->backed) rbi_arena_set_backed(&me->view->arena, run, me->owner);
            return true;
        case RBI_ARENA_FULL: return false;
        default: is_wrong(me, "allocate"); return false;
        }
    }
}

static void free_run(struct worker *me, const struct rbi_run *run) { rbi_arena_free(&me->view->arena, run, me->owner, NOW); }

static void reserve(struct worker *me, const struct rbi_record *record)
{
    if (rbi_ring_raise_reserved(&me->view->ring, record->lane, record->cells) != RBI_RING_OK) is_wrong(me, "raise");
}

static bool claim(struct worker *me, struct rbi_record *record, uint64_t size)
{
    struct rbi_ring *ring = &me->view->ring;
    enum rbi_ring_outcome outcome;
    for (;;) {
        switch (rbi_ring_claim(ring, record, me->owner, size)) {
        case RBI_RING_OK: return true;
        case RBI_RING_UNRESERVED:
            if (!chance(me, 3) || !rbi_ring_make_do(ring, size)) reserve(me, record);
            continue;
        case RBI_RING_FULL:
            if (!rbi_ring_stuck_at(ring, size) || !chance(me, 20)) return false;
            while ((outcome = rbi_ring_bypass(ring, size, record)) == RBI_RING_UNRESERVED) reserve(me, record);
            me->lanes_changed += outcome == RBI_RING_OK;
            return false;
        default: is_wrong(me, "claim"); return false;
        }
    }
}

static void put(struct worker *me)
{
    struct rbi_ring *ring = &me->view->ring;
    struct rbi_record record;
    struct rbi_run run;
    uint64_t number = atomic_fetch_add(&next_number, 1);
    if (number >= MOST_MESSAGES) return;
    static const uint64_t sizes[] = {8, 16, 48, 49, 128, 129, 500, 900};
    bool large = chance(me, 4);
    uint64_t size = large ? 1000 + random_below(&me->seed, 5 << BLOCK_LOG2) : sizes[random_below(&me->seed, 8)];
    if (large) {
        if (!allocate(me, &run, size)) return;
        fill(run.payload, size, number);
        if (dies(me)) return;
    }
    if (!claim(me, &record, large ? RBI_REFERENCE_BYTES : size)) {
        if (large) free_run(me, &run);
        return;
    }
    if (dies(me)) return;
    if (large) {
        run.size = size;
        run.attempts = 0;
        run.record = rbi_ring_number_of(&record);
        if (rbi_arena_queue(&me->view->arena, &run, me->owner) != RBI_ARENA_OK) is_wrong(me, "queue");
        if (dies(me)) return;
        rbi_ring_refer(&record, size, run.first);
    } else {
        fill(record.payload, size, number);
        if (chance(me, 16)) {
            if (rbi_ring_void(ring, &record, me->owner) != RBI_RING_OK) is_wrong(me, "void");
            return;
        }
    }
    if (chance(me, 8)) sched_yield(); /* so that others come, and skip it */
    if (dies(me)) return;
    notes[number].put_returned = 1; /* before it does: afterwards the message and its note are another's */
    if (rbi_ring_publish(ring, &record, me->owner) != RBI_RING_OK) is_wrong(me, "publish");
    rbi_event_wake_one(&items);
    me->puts++;
    dies(me);
}

/** A message that was taken: in the record, or in the run. */
struct taken {
    struct rbi_record record;
    struct rbi_run run;
    bool in_arena;
    uint64_t number;
};

/** Count the take, as the library does. */
static void note_take(struct worker *me, struct taken *taken, const uint8_t *payload, uint64_t size, uint32_t attempts)
{
    taken->number = read_number(me, payload, size);
    if (++notes[taken->number].takes != attempts) is_wrong(me, "a take was not counted");
    if (!notes[taken->number].put_returned) is_wrong(me, "a message that nobody put");
}

/** False: there is none, or we died. */
static bool take(struct worker *me, struct taken *taken)
{
    struct rbi_ring *ring = &me->view->ring;
    struct rbi_arena *arena = &me->view->arena;
    taken->in_arena = false;
    enum rbi_ring_outcome outcome;
    while ((outcome = rbi_ring_take(ring, &taken->record, me->owner, UINT64_MAX)) == RBI_RING_ASIDE) {
        uint64_t hint = taken->record.position;
        enum rbi_arena_outcome aside = rbi_arena_take_returned(arena, &taken->run, me->owner, UINT64_MAX);
        if (aside == RBI_ARENA_OK) {
            taken->in_arena = true;
            note_take(me, taken, taken->run.payload, taken->run.size, taken->run.attempts);
            return true;
        }
        if (aside != RBI_ARENA_EMPTY) is_wrong(me, "take_returned");
        rbi_ring_clear_returned(ring, hint);
    }
    if (outcome == RBI_RING_EMPTY || outcome == RBI_RING_PENDING) return false;
    if (outcome != RBI_RING_OK) {
        is_wrong(me, "take");
        return false;
    }
    struct rbi_record *record = &taken->record;
    if (record->reference) {
        uint64_t first = rbi_ring_reference(record);
        note_take(me, taken, blocks + (first << BLOCK_LOG2), record->size, record->attempts);
        if (dies(me)) return false;
        taken->run.record = rbi_ring_number_of(record);
        taken->run.size = record->size;
        taken->run.attempts = record->attempts;
        if (rbi_arena_lease_queued(arena, &taken->run, me->owner, first) != RBI_ARENA_OK) is_wrong(me, "lease_queued");
        if (taken->run.attempts != notes[taken->number].takes) is_wrong(me, "a take was not counted in the run");
    } else {
        note_take(me, taken, record->payload, record->size, record->attempts);
        if (dies(me)) return false;
        if (!me->operations || !chance(me, 4) || !allocate(me, &taken->run, record->size)) return true;
        memcpy(taken->run.payload, record->payload, record->size);
        taken->run.size = record->size;
        taken->run.attempts = record->attempts;
        taken->run.record = rbi_ring_number_of(record);
        if (dies(me)) return false;
        if (rbi_arena_lease_copy(arena, &taken->run, me->owner) != RBI_ARENA_OK) is_wrong(me, "lease_copy");
    }
    if (dies(me)) return false;
    rbi_ring_release(ring, record);
    taken->in_arena = true;
    return true;
}

static void give_back(struct worker *me, const struct taken *taken)
{
    if (!taken->in_arena) {
        rbi_ring_give_back(&me->view->ring, &taken->record);
    } else {
        if (rbi_arena_give_back(&me->view->arena, &taken->run, me->owner) != RBI_ARENA_OK) is_wrong(me, "give_back");
        if (dies(me)) return; /* whoever recovers sets the hint */
        rbi_ring_set_returned(&me->view->ring);
    }
    rbi_event_wake_one(&items);
    me->returns++;
}

/** Done with it, at once or after having kept it. */
static void consume(struct worker *me, const struct taken *taken)
{
    struct rbi_arena *arena = &me->view->arena;
    notes[taken->number].consumed++;
    me->gets++;
    if (!taken->in_arena) {
        rbi_ring_release(&me->view->ring, &taken->record);
        return;
    }
    if (!me->operations || chance(me, 2)) {
        if (rbi_arena_end_lease(arena, &taken->run, me->owner) != RBI_ARENA_OK) is_wrong(me, "end_lease");
    } else {
        if (rbi_arena_keep(arena, &taken->run, me->owner) != RBI_ARENA_OK) is_wrong(me, "keep");
        if (dies(me)) return;
        read_number(me, taken->run.payload, taken->run.size);
        if (rbi_arena_end_hold(arena, &taken->run, me->owner) != RBI_ARENA_OK) is_wrong(me, "end_hold");
    }
    if (dies(me)) return;
    free_run(me, &taken->run);
}

static void wait_for_items(struct worker *me)
{
    uint32_t key = rbi_event_announce(&items);
    if (!rbi_ring_may_take(&me->view->ring)) rbi_event_sleep(&items, key, rbi_monotonic_ns() + MILLISECOND);
    rbi_event_leave(&items);
    if (rbi_ring_may_take(&me->view->ring)) rbi_event_wake_one(&items);
}

static void get(struct worker *me, bool may_wait)
{
    struct taken taken;
    if (!take(me, &taken)) {
        if (may_wait && chance(me, 50)) wait_for_items(me);
        return;
    }
    if (dies(me)) return;
    read_number(me, taken.in_arena ? taken.run.payload : taken.record.payload, taken.in_arena ? taken.run.size : taken.record.size);
    if (chance(me, 3)) give_back(me, &taken);
    else consume(me, &taken);
}

static bool any_number_is_alive(uint32_t owner, void *context)
{
    (void)owner;
    (void)context;
    return true;
}

/** What others do meanwhile: count, check, give memory back. */
static void look_around(struct worker *me)
{
    struct rbi_arena_findings found;
    struct rbi_arena_census census;
    struct rbi_run run;
    uint64_t count, from = me->view->arena.blocks;
    bool gave_back;
    rbi_ring_used_bytes(&me->view->ring);
    if (rbi_ring_count(&me->view->ring, &count) != RBI_RING_OK) is_wrong(me, "count");
    if (rbi_ring_references(&me->view->ring, &count) != RBI_RING_OK) is_wrong(me, "references");
    rbi_arena_count(&me->view->arena, &census);
    rbi_arena_check(&me->view->arena, &me->view->ring, &found, any_number_is_alive, NULL);
    if (rbi_arena_take_idle(&me->view->arena, &run, me->owner, NOW, 0, &from, &gave_back) != RBI_ARENA_OK || dies(me)) return;
    memset(blocks + (run.first << BLOCK_LOG2), 0, (size_t)run.blocks << BLOCK_LOG2); /* as the system does it */
    rbi_arena_free_without_pages(&me->view->arena, &run, me->owner);
}

static void *work(void *context)
{
    struct worker *me = context;
    for (uint64_t i = 0; i < me->operations && !me->wrong; i++) {
        uint64_t what = random_below(&me->seed, 64);
        if (what < 24) put(me);
        else if (what < 62) get(me, true);
        else if (what == 62) recover(me);
        else if (chance(me, 8)) look_around(me);
    }
    return NULL;
}

/* ---- one edge at a time ---- */

/* Threads that do one step after the other, in an order that they tell each other by relaxed operations.  So nothing orders what they do
 * but the edge that a step is about; without it, ThreadSanitizer reports a race each time.  (Where other edges run the same way, as the
 * hint beside a word RETURNED, this says less than the test below.) */

enum { STEPPERS = 4 };

static struct view own[STEPPERS];
static _Atomic int turn;

struct step {
    int thread;
    void (*body)(struct worker *me);
};
static const struct step *steps;

static void start_afresh(uint64_t position)
{
    memset(&order, 0, sizeof order);
    memset(cursors, 0, sizeof cursors);
    memset(slots, 0, sizeof slots);
    memset(&arena_words, 0, sizeof arena_words);
    memset(table, 0, sizeof table);
    memset(notes, 0, sizeof notes);
    atomic_store(&next_number, 1);
    look_at(&own[0]);
    rbi_ring_start_at(&own[0].ring, position);
    for (int lane = 0; lane < RBI_LANES; lane++) rbi_store_relaxed64(&cursors[lane].reserved_cells, UINT64_C(1) << CELLS_LOG2);
    for (int i = 0; i < STEPPERS; i++) look_at(&own[i]);
    atomic_store(&turn, 0);
}

static void *do_steps(void *context)
{
    struct worker *me = context;
    for (int i = 0; steps[i].body; i++) {
        if (steps[i].thread != (int)me->owner - 1) continue;
        while (atomic_load_explicit(&turn, memory_order_relaxed) != i) sched_yield();
        steps[i].body(me);
        atomic_store_explicit(&turn, i + 1, memory_order_relaxed);
    }
    return NULL;
}

static void run_steps(const struct step *these)
{
    static struct worker workers[STEPPERS];
    steps = these;
    for (uint32_t i = 0; i < STEPPERS; i++) {
        workers[i] = (struct worker){.view = &own[i], .owner = i + 1};
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&workers[i].thread, NULL, do_steps, &workers[i]));
    }
    for (int i = 0; i < STEPPERS; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].wrong) TEST_FAIL_MESSAGE(workers[i].what);
    }
}

static struct rbi_run run_of_first; /* what the first thread has, or had; only it uses it */

static void put_sized(struct worker *me, uint64_t size)
{
    struct rbi_record record;
    uint64_t number = atomic_fetch_add_explicit(&next_number, 1, memory_order_relaxed);
    if (!claim(me, &record, size)) {
        is_wrong(me, "there is no room");
        return;
    }
    fill(record.payload, size, number);
    notes[number].put_returned = 1;
    if (rbi_ring_publish(&me->view->ring, &record, me->owner) != RBI_RING_OK) is_wrong(me, "publish");
}

static void put_one(struct worker *me) { put_sized(me, 300); }

static void get_one(struct worker *me)
{
    struct taken taken;
    if (!take(me, &taken)) is_wrong(me, "there is no message");
    else consume(me, &taken);
}

static void test_who_takes_a_message_sees_what_was_put(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, put_one}, {1, get_one}, {0, NULL}});
}

/** Cells 1 to 31 of the ring, the first four of them one message. */
static void fill_ring(struct worker *me)
{
    put_sized(me, 4 << CELL_LOG2);
    put_sized(me, 14 << CELL_LOG2);
    put_sized(me, 13 << CELL_LOG2);
}

/** Cells 0 to 2: in cell 0 there was nothing yet, and what was in the others is known by `reclaim` only. */
static void put_across(struct worker *me) { put_sized(me, 3 << CELL_LOG2); }

static void look_for_room(struct worker *me)
{
    if (!rbi_ring_has_room(&me->view->ring, 3 << CELL_LOG2)) is_wrong(me, "there is no room to be seen");
}

static void test_who_reclaims_a_record_writes_after_its_consumer_has_read(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, fill_ring}, {1, get_one}, {2, put_across}, {0, NULL}});
}

static void test_who_finds_a_record_reclaimed_writes_after_its_consumer_has_read(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, fill_ring}, {1, get_one}, {3, look_for_room}, {2, put_across}, {0, NULL}});
}

static void look_for_room_by_the_third_view(struct worker *me)
{
    me->view = &own[2];
    look_for_room(me);
}

static void test_who_finds_a_record_reclaimed_by_a_thread_of_its_own_writes_after_its_consumer_has_read(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, fill_ring}, {1, get_one}, {3, look_for_room_by_the_third_view}, {2, put_across}, {0, NULL}});
}

static void use_three_blocks(struct worker *me)
{
    if (!allocate(me, &run_of_first, 3 << BLOCK_LOG2)) is_wrong(me, "no blocks");
    fill(run_of_first.payload, 3 << BLOCK_LOG2, 1);
    free_run(me, &run_of_first);
}

static void use_blocks(struct worker *me, uint64_t count)
{
    struct rbi_run run;
    if (!allocate(me, &run, count << BLOCK_LOG2)) is_wrong(me, "no blocks");
    else fill(run.payload, count << BLOCK_LOG2, 2);
}

static void use_the_last_block(struct worker *me) { use_blocks(me, 1); }
static void use_the_same_blocks(struct worker *me) { use_blocks(me, 3); }

static void test_who_claims_a_run_writes_after_the_owner_before(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, use_three_blocks}, {1, use_the_same_blocks}, {0, NULL}});
}

static void test_who_claims_the_last_block_of_a_run_writes_after_the_owner_before(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{0, use_three_blocks}, {1, use_the_last_block}, {0, NULL}});
}

static void set_hint(struct worker *me) { rbi_ring_set_returned(&me->view->ring); }

/** A message of our own making that no record of the ring knows, given back in the arena; the hint is another's. */
static void return_a_run(struct worker *me)
{
    struct rbi_run run;
    if (!allocate(me, &run, 3 << BLOCK_LOG2)) is_wrong(me, "no blocks");
    run.size = 3 << BLOCK_LOG2;
    run.attempts = 0;
    run.record = 1;
    fill(run.payload, run.size, 1);
    notes[1].put_returned = 1;
    if (rbi_arena_lease_copy(&me->view->arena, &run, me->owner) != RBI_ARENA_OK) is_wrong(me, "lease_copy");
    if (rbi_arena_give_back(&me->view->arena, &run, me->owner) != RBI_ARENA_OK) is_wrong(me, "give_back");
}

static void test_who_takes_a_returned_run_sees_what_was_written_into_it(void)
{
    start_afresh(33);
    run_steps((const struct step[]){{2, set_hint}, {0, return_a_run}, {1, get_one}, {0, NULL}});
}

/* ---- all at once ---- */

static uint64_t operations = SANITIZED ? 20000 : 150000, first_seed = 1;

static void account(void)
{
    uint64_t put = 0, lost = 0, twice = 0, never_put = 0;
    for (uint64_t number = 1; number < atomic_load(&next_number) && number < MOST_MESSAGES; number++) {
        const struct note *note = &notes[number];
        put += note->put_returned;
        lost += note->put_returned && !note->consumed;
        twice += note->consumed > 1;
        never_put += note->consumed && !note->put_returned;
    }
    TEST_ASSERT_GREATER_THAN_UINT64(0, put);
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, lost, "lost");
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, twice, "consumed twice");
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, never_put, "consumed, and never put");
}

static void test_threads_that_do_everything_and_die_in_the_middle_of_it_lose_nothing_and_race_nowhere(void)
{
    static struct view views[MORTALS + 1];
    static struct worker workers[WORKERS];
    start_afresh(UINT64_C(1) << CELLS_LOG2);
    for (int lane = 0; lane < RBI_LANES; lane++) rbi_store_relaxed64(&cursors[lane].reserved_cells, 0); /* [E4] too */
    for (int i = 0; i <= MORTALS; i++) look_at(&views[i]);
    for (uint32_t number = WORKERS + 1; number <= NUMBERS; number++) unused[unused_count++] = number;
    for (uint32_t i = 0; i < WORKERS; i++) {
        bool mortal = i < MORTALS;
        workers[i] = (struct worker){.view = &views[mortal ? i : MORTALS], .owner = mortal ? i + 1 : MORTALS + 1, .mortal = mortal,
                                     .seed = first_seed + i, .operations = operations};
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&workers[i].thread, NULL, work, &workers[i]));
    }
    struct worker all = {.view = &views[MORTALS], .owner = MORTALS + 1};
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].wrong) TEST_FAIL_MESSAGE(workers[i].what);
        all.puts += workers[i].puts;
        all.gets += workers[i].gets;
        all.returns += workers[i].returns;
        all.deaths += workers[i].deaths;
        all.recoveries += workers[i].recoveries;
        all.lanes_changed += workers[i].lanes_changed;
    }
    while (dead_count) recover(&all);
    uint64_t count = 1;
    for (uint64_t before = UINT64_MAX; all.gets + all.returns != before;) {
        before = all.gets + all.returns;
        get(&all, false);
        if (all.wrong) TEST_FAIL_MESSAGE(all.what);
    }
    printf("%llu puts, %llu gets, %llu given back, %llu deaths, %llu recoveries, %llu changes of lane\n", (unsigned long long)all.puts,
           (unsigned long long)all.gets, (unsigned long long)all.returns, (unsigned long long)all.deaths,
           (unsigned long long)all.recoveries, (unsigned long long)all.lanes_changed);
    account();
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_count(&all.view->ring, &count));
    TEST_ASSERT_EQUAL_UINT64(0, count);
    struct rbi_arena_census census;
    rbi_arena_count(&all.view->arena, &census);
    TEST_ASSERT_EQUAL_UINT64(0, census.used_blocks);
    TEST_ASSERT_GREATER_THAN_UINT64(0, all.deaths);
    TEST_ASSERT_GREATER_THAN_UINT64(0, all.recoveries);
}

void setUp(void) {}
void tearDown(void) {}

int main(int count, char **words)
{
    if (count > 1) operations = strtoull(words[1], NULL, 10);
    if (count > 2) first_seed = strtoull(words[2], NULL, 10);
    UNITY_BEGIN();
    RUN_TEST(test_who_takes_a_message_sees_what_was_put);
    RUN_TEST(test_who_reclaims_a_record_writes_after_its_consumer_has_read);
    RUN_TEST(test_who_finds_a_record_reclaimed_writes_after_its_consumer_has_read);
    RUN_TEST(test_who_finds_a_record_reclaimed_by_a_thread_of_its_own_writes_after_its_consumer_has_read);
    RUN_TEST(test_who_claims_a_run_writes_after_the_owner_before);
    RUN_TEST(test_who_claims_the_last_block_of_a_run_writes_after_the_owner_before);
    RUN_TEST(test_who_takes_a_returned_run_sees_what_was_written_into_it);
    RUN_TEST(test_threads_that_do_everything_and_die_in_the_middle_of_it_lose_nothing_and_race_nowhere);
    return UNITY_END();
}
