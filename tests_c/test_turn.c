/* test_turn.c — floor 4: whose turn it is at the arena, what happens where there are no pages, and what memory is given back and asked for.
 *
 * How long somebody has waited, and whose turn it is, is arranged by writing the notes and the words that say so: nothing here waits for a
 * time to pass, but for what must come. */
#include "small_fs.h"

#include "calls.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    BLOCK = 4 * KIB,
    CAPACITY = 64 * KIB,
    RING_LIMIT = CAPACITY / 8,
    ARENA = 4 * MIB,
    LARGE = 100 * KIB + 7, /* a message for the arena; the size does not matter */
    LARGE_BLOCKS = (LARGE + BLOCK - 1) / BLOCK,
    LARGE_ROOM = LARGE_BLOCKS * BLOCK,
};

static ringbuf *queue;
static uint8_t sent[ARENA], got[ARENA];

static ringbuf_options defaults(void)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = CAPACITY;
    options.arena_bytes = ARENA;
    options.max_participants = 16;
    options.flags = RINGBUF_AUTO_CLEANUP;
    return options;
}

/** Begin again with other options. */
static void recreate(const ringbuf_options *options)
{
    ringbuf_free(queue);
    queue = NULL;
    ASSERT_OK(ringbuf_create(&queue, "queue", options));
}

void setUp(void)
{
    ringbuf_options options = defaults();
    queue = NULL;
    recreate(&options);
}

void tearDown(void)
{
    rbi_point_hook = NULL;
    ringbuf_free(queue);
    queue = NULL;
    unmount_small_file_system();
    assert_nothing_is_left();
}

static void write_number(void *bytes, size_t size, uint64_t number)
{
    memset(bytes, (int)(number & 0xff), size);
    memcpy(bytes, &number, size < sizeof number ? size : sizeof number);
}

static ringbuf_status try_to_put(ringbuf *rb, uint64_t number, size_t size, int64_t deadline_ns)
{
    write_number(sent, size, number);
    return ringbuf_put(rb, sent, size, deadline_ns);
}

static void put(uint64_t number, size_t size) { ASSERT_OK(try_to_put(queue, number, size, 0)); }

static void get(uint64_t number, size_t size)
{
    static uint8_t expected[ARENA];
    size_t got_size = SIZE_MAX;
    ASSERT_OK(ringbuf_get(queue, &got_size, got, sizeof got, 0));
    write_number(expected, size, number);
    TEST_ASSERT_EQUAL_UINT64(size, got_size);
    TEST_ASSERT_EQUAL_INT(0, memcmp(expected, got, size));
}

static ringbuf_message lease(uint64_t number, size_t size)
{
    ringbuf_message message = {0};
    ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(size, message.size);
    TEST_ASSERT_EQUAL_INT(0, memcmp(&number, message.data, sizeof number));
    return message;
}

static ringbuf_stats stats_of(ringbuf *rb)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    return stats;
}

static void assert_empty(void)
{
    ringbuf_findings findings;
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(0, stats.items);
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(0, findings.runs + findings.orphaned_blocks);
}

struct other_process {
    stage ready;
};

static int hold_and_wait(void *context)
{
    struct other_process *shared = context;
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &message) != RINGBUF_OK) return 2;
    atomic_fetch_add(&shared->ready, 1);
    sleep_for_ever();
}

/* ---- whose turn it is ---- */

enum { UNIT_LOG2 = 24, LONG_UNITS = 30, ROUND_UNITS = 60 }; /* as in turn.c; half a second, longer than a wait for a turn */

static uint64_t units(uint64_t ago) { return (((uint64_t)ringbuf_now_ns() >> UNIT_LOG2) - ago) & 0x3ffff; }

static uint64_t turn_now(void) { return rbi_load_total64(&queue->header->turn.window); }

/** It is the turn of participant `owner`, until now + `left_ns`. */
static void give_turn(uint32_t owner, uint64_t first, uint64_t blocks, uint64_t since, int64_t left_ns)
{
    rbi_store_total64(&queue->header->turn.window, rbi_window(owner, first, blocks, since));
    rbi_store_total64(&queue->header->turn.until_ns, (uint64_t)(ringbuf_now_ns() + left_ns));
}

/** A call for so many blocks has ended just now at its deadline, and had waited since then. */
static void note_wait(uint64_t blocks, uint64_t since, uint64_t round)
{
    rbi_store_total64(&queue->notes[0], UINT64_C(1) << 62 | round << 53 | units(0) << 35 | since << 17 | blocks);
    rbi_store_total32(&queue->some_notes, 1);
}

static uint64_t notes_used(void)
{
    uint64_t used = 0;
    for (int i = 0; i < RBI_NOTES; i++) used += rbi_load_total64(&queue->notes[i]) != 0;
    return used;
}

/** Four messages of a quarter of the arena each. */
static void fill_arena(void)
{
    for (uint64_t i = 0; i < 4; i++) put(i, MIB);
}

static void empty_arena(uint64_t from)
{
    for (uint64_t i = from; i < 4; i++) get(i, MIB);
    assert_empty();
}

enum { OTHER_NUMBER = 9, BIG = 2 * MIB, BIG_BLOCKS = BIG / BLOCK };

struct big_put {
    pthread_t thread;
    ringbuf *rb;
    ringbuf_status status;
};

static void *put_big(void *context)
{
    static uint8_t bytes[BIG];
    struct big_put *call = context;
    write_number(bytes, BIG, 99);
    call->status = ringbuf_put(call->rb, bytes, BIG, RINGBUF_FOREVER);
    return NULL;
}

static void test_what_has_waited_long_has_blocks_set_aside_until_it_is_served(void)
{
    struct big_put call = {.rb = queue};
    int room;
    fill_arena();
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&call.thread, NULL, put_big, &call));
    while (rbi_window_blocks(turn_now()) == 0) nap_ms(1);
    TEST_ASSERT_EQUAL_UINT32(queue->registry.self, rbi_window_owner(turn_now()));
    TEST_ASSERT_EQUAL_UINT64(BIG_BLOCKS, rbi_window_blocks(turn_now()));
    /* Whichever half it is: when its first quarter is free, that is for nobody else. */
    for (uint64_t next = 0; call.status == 0 && next < 4 && rbi_window_first(turn_now()) > next * BIG_BLOCKS / 2; next++) get(next, MIB);
    TEST_ASSERT_EQUAL_UINT64(0, rbi_window_first(turn_now()));
    get(0, MIB);
    ASSERT_OK(ringbuf_has_room(queue, &room, MIB));
    TEST_ASSERT_EQUAL_INT(0, room);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, MIB, 0));
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, RING_LIMIT + 1, 0));
    get(1, MIB);
    TEST_ASSERT_EQUAL_INT(0, pthread_join(call.thread, NULL));
    ASSERT_OK(call.status);
    TEST_ASSERT_EQUAL_HEX64(0, turn_now());
    get(2, MIB);
    put(4, MIB);
    get(3, MIB);
    get(99, BIG);
    get(4, MIB);
    assert_empty();
}

static void test_only_a_turn_that_is_renewed_and_makes_sense_keeps_others_out(void)
{
    static const struct {
        uint64_t first, blocks;
        int64_t left_ns;
        bool keeps_out;
    } cases[] = {
        {0, ARENA / BLOCK, 200 * (int64_t)MILLISECOND, true},
        {0, ARENA / BLOCK, -1, false},                   /* lapsed: its owner is stopped, or has given up */
        {0, ARENA / BLOCK, -1000 * (int64_t)MILLISECOND, false},
        {0, ARENA / BLOCK, 100000 * (int64_t)MILLISECOND, false}, /* by another clock */
        {0, ARENA / BLOCK, INT64_MIN / 2, false},
        {0, 0, 200 * (int64_t)MILLISECOND, false},
        {1, ARENA / BLOCK, 200 * (int64_t)MILLISECOND, false},    /* beyond the end */
        {0x1ffff, 0x1ffff, 200 * (int64_t)MILLISECOND, false},
        {ARENA / BLOCK - 1, 1, 200 * (int64_t)MILLISECOND, false},
        {0, ARENA / BLOCK - LARGE_BLOCKS, 200 * (int64_t)MILLISECOND, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ringbuf_status status;
        int64_t began_ns;
        do { /* once, unless this process had no processor for so long that the turn has lapsed */
            began_ns = ringbuf_now_ns();
            give_turn(OTHER_NUMBER, cases[i].first, cases[i].blocks, units(0), cases[i].left_ns);
            status = try_to_put(queue, 1, LARGE, 0);
            if (status == RINGBUF_OK) get(1, LARGE);
        } while (cases[i].keeps_out && ringbuf_now_ns() - began_ns >= 200 * (int64_t)MILLISECOND);
        ASSERT_STATUS(cases[i].keeps_out ? RINGBUF_E_ARENA_FULL : RINGBUF_OK, status);
    }
    assert_empty();
}

static void test_who_waits_behind_a_turn_that_lapses_goes_on(void)
{
    give_turn(OTHER_NUMBER, 0, ARENA / BLOCK, units(LONG_UNITS), 200 * (int64_t)MILLISECOND);
    ASSERT_OK(try_to_put(queue, 1, LARGE, RINGBUF_FOREVER)); /* nobody renews it, and nobody wakes us */
    get(1, LARGE);
    assert_empty();
}

static void test_a_poll_that_comes_again_has_waited_since_the_first_time(void)
{
    fill_arena();
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
    TEST_ASSERT_EQUAL_UINT64(1, notes_used());
    const uint64_t since = units(LONG_UNITS);
    note_wait(LARGE_BLOCKS, since, 0);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
    TEST_ASSERT_EQUAL_UINT64(1, notes_used());
    TEST_ASSERT_EQUAL_UINT64(since, rbi_load_total64(&queue->notes[0]) >> 17 & 0x3ffff);
    TEST_ASSERT_EQUAL_UINT64(since, rbi_window_since(turn_now())); /* it was long enough */
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, 2 * LARGE, 0));
    TEST_ASSERT_EQUAL_UINT64(2, notes_used());
    get(0, MIB);
    put(4, LARGE); /* at the first attempt: it has not waited */
    for (uint64_t i = 1; i < 4; i++) get(i, MIB);
    get(4, LARGE);
    assert_empty();
}

static void test_a_note_that_is_old_counts_no_more(void)
{
    fill_arena();
    note_wait(LARGE_BLOCKS, units(LONG_UNITS), 0);
    rbi_store_total64(&queue->notes[0], rbi_load_total64(&queue->notes[0]) - (UINT64_C(16) << 35));
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
    TEST_ASSERT_EQUAL_HEX64(0, turn_now());
    empty_arena(0);
}

static void test_more_threads_that_wait_than_there_is_room_for_notes_are_an_end_of_nothing(void)
{
    fill_arena();
    for (uint64_t i = 0; i < 3 * RBI_NOTES; i++) ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE + i * BLOCK, 0));
    TEST_ASSERT_EQUAL_UINT64(RBI_NOTES, notes_used());
    empty_arena(0);
}

static void test_of_two_the_one_that_has_waited_longer_has_the_turn(void)
{
    fill_arena();
    for (int older = 0; older < 2; older++) {
        int64_t began_ns;
        const uint64_t since = units(LONG_UNITS), other = older ? since - 1 : since + 1;
        do {
            began_ns = ringbuf_now_ns();
            give_turn(OTHER_NUMBER, 3, 4, other & 0x3ffff, 200 * (int64_t)MILLISECOND);
            note_wait(LARGE_BLOCKS, since, 0);
            ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
        } while (ringbuf_now_ns() - began_ns >= 200 * (int64_t)MILLISECOND);
        TEST_ASSERT_EQUAL_UINT32(older ? OTHER_NUMBER : queue->registry.self, rbi_window_owner(turn_now()));
    }
    /* What has lapsed is anybody's. */
    const uint64_t since = units(LONG_UNITS);
    give_turn(OTHER_NUMBER, 3, 4, (since - 1) & 0x3ffff, -1);
    note_wait(LARGE_BLOCKS, since, 0);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
    TEST_ASSERT_EQUAL_UINT32(queue->registry.self, rbi_window_owner(turn_now()));
    empty_arena(0);
}

static bool replace_turn;

/** The turn comes, and with it room; and then, perhaps, another one takes the turn. */
static void serve(enum rbi_point point)
{
    if (point == RBI_POINT_turn_taken) {
        rbi_point_hook = NULL;
        get(0, MIB);
        rbi_point_hook = serve;
    } else if (point == RBI_POINT_run_begun && replace_turn) {
        give_turn(OTHER_NUMBER, 3, 4, units(2 * LONG_UNITS), 200 * (int64_t)MILLISECOND);
    }
}

static void test_who_is_served_ends_its_own_turn_and_no_other(void)
{
    for (int replaced = 0; replaced < 2; replaced++) {
        replace_turn = replaced;
        fill_arena();
        note_wait(LARGE_BLOCKS, units(LONG_UNITS), 0);
        rbi_point_hook = serve;
        ringbuf_status status = try_to_put(queue, 4, LARGE, 0);
        rbi_point_hook = NULL;
        ASSERT_OK(status);
        TEST_ASSERT_EQUAL_UINT64(0, notes_used());
        TEST_ASSERT_EQUAL_UINT32(replaced ? OTHER_NUMBER : 0, rbi_window_owner(turn_now()));
        rbi_store_total64(&queue->header->turn.window, 0);
        for (uint64_t i = 1; i < 4; i++) get(i, MIB);
        get(4, LARGE);
        assert_empty();
    }
}

static void test_a_turn_under_which_nobody_consumes_anything_sets_nothing_aside_for_a_round(void)
{
    fill_arena();
    get(0, MIB);
    const uint64_t since = units(9 + ROUND_UNITS + ROUND_UNITS / 2); /* in round 1 */
    for (int consumed = 0; consumed < 2; consumed++) {
        give_turn(queue->registry.self, 0, BIG_BLOCKS, since, 200 * (int64_t)MILLISECOND);
        note_wait(BIG_BLOCKS, since, 0);
        rbi_store_total64(&queue->consumed_before, rbi_registry_gets_owed(&queue->registry) - (uint64_t)consumed);
        ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, BIG, 0));
        TEST_ASSERT_EQUAL_UINT32(queue->registry.self, rbi_window_owner(turn_now()));
        TEST_ASSERT_EQUAL_UINT64(consumed ? BIG_BLOCKS : 0, rbi_window_blocks(turn_now()));
        if (consumed) continue;
        put(4, LARGE); /* there is room, and it is nobody's */
        rbi_store_total64(&queue->notes[0], 0);
    }
    for (uint64_t i = 1; i < 4; i++) get(i, MIB);
    get(4, LARGE);
    assert_empty();
}

static void test_a_window_that_does_not_empty_is_chosen_anew_elsewhere(void)
{
    fill_arena();
    ringbuf_message message = lease(0, MIB); /* the lowest */
    const uint64_t since = units(9 + ROUND_UNITS + ROUND_UNITS / 2);
    give_turn(queue->registry.self, 0, LARGE_BLOCKS, since, 200 * (int64_t)MILLISECOND);
    note_wait(LARGE_BLOCKS, since, 0);
    rbi_store_total64(&queue->consumed_before, UINT64_MAX);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 4, LARGE, 0));
    TEST_ASSERT_EQUAL_UINT64(MIB / BLOCK, rbi_window_first(turn_now()));
    ASSERT_OK(ringbuf_ack(queue, &message));
    empty_arena(1);
}

static void test_the_turn_of_a_killed_process_is_over_when_it_was_recovered_and_that_of_another_goes_on(void)
{
    struct other_process *shared = share_memory(sizeof *shared);
    for (int of_dead = 0; of_dead < 2; of_dead++) {
        uint64_t recovered;
        size_t count;
        ringbuf_peer peers[4];
        atomic_store(&shared->ready, 0);
        put(1, LARGE);
        pid_t child = start_child(hold_and_wait, shared);
        wait_for_stage(&shared->ready, 1);
        ASSERT_OK(ringbuf_get_peers(queue, &count, peers, 4));
        TEST_ASSERT_EQUAL_UINT64(2, count);
        uint32_t number = peers[0].number == queue->registry.self ? peers[1].number : peers[0].number;
        give_turn(of_dead ? number : OTHER_NUMBER, 3, 4, units(0), 200 * (int64_t)MILLISECOND);
        kill_child(child);
        ASSERT_OK(ringbuf_recover(queue, &recovered));
        TEST_ASSERT_EQUAL_UINT64(1, recovered);
        TEST_ASSERT_EQUAL_UINT32(of_dead ? 0 : OTHER_NUMBER, rbi_window_owner(turn_now()));
        rbi_store_total64(&queue->header->turn.window, 0);
        assert_empty();
    }
    munmap(shared, sizeof *shared);
}

static void test_a_batch_has_one_turn_for_all_it_brings(void)
{
    fill_arena();
    ringbuf_part parts[] = {{sent, MIB}, {sent, RING_LIMIT + 1}, {sent, 5}, {sent, MIB / 2}};
    const uint64_t blocks = MIB / BLOCK + 3 + MIB / 2 / BLOCK;
    note_wait(blocks, units(LONG_UNITS), 0);
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_put_all(queue, parts, 4, 0));
    TEST_ASSERT_EQUAL_UINT64(blocks, rbi_window_blocks(turn_now()));
    get(0, MIB);
    get(1, MIB);
    ASSERT_OK(ringbuf_put_all(queue, parts, 4, 0));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).reserved);
    get(2, MIB);
    get(3, MIB);
    size_t size;
    for (int i = 0; i < 4; i++) ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, 0));
    assert_empty();
}

/* ---- where there are no pages ---- */

/** Begin again on a file system of so many KiB. */
static void recreate_on_small_file_system(int kilobytes)
{
    char size[32];
    snprintf(size, sizeof size, "size=%dk", kilobytes);
    mount_small_file_system(size);
    ringbuf_options options = defaults();
    options.directory = small_file_system;
    recreate(&options);
}

static uint64_t free_file_system_blocks(void)
{
    struct statvfs facts;
    TEST_ASSERT_EQUAL_INT(0, statvfs(small_file_system, &facts));
    return facts.f_bavail * facts.f_bsize / BLOCK;
}

static char *filler(void)
{
    static char path[160];
    snprintf(path, sizeof path, "%s/filler", small_file_system);
    return path;
}

/** Leave only so many blocks of the file system free. */
static void fill_file_system_but(uint64_t blocks)
{
    int fd = open(filler(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    TEST_ASSERT_EQUAL_INT(0, posix_fallocate(fd, 0, (off_t)((free_file_system_blocks() - blocks) * BLOCK)));
    close(fd);
}

static void leave_small_file_system(void)
{
    ringbuf_free(queue);
    queue = NULL;
    unlink(filler());
    unmount_small_file_system();
}

enum page_call { PAGES_PUT, PAGES_RESERVE, PAGES_BATCH, PAGES_RING, PAGES_RING_BATCH, PAGES_CALLS };

struct waiting_for_pages {
    pthread_t thread;
    enum page_call which;
    int64_t deadline_ns;
    ringbuf_status status;
    ringbuf_reservation reservation;
};

static void *call_for_pages(void *context)
{
    static _Thread_local uint8_t bytes[LARGE];
    struct waiting_for_pages *call = context;
    ringbuf_part parts[2] = {{bytes, LARGE}, {bytes, LARGE}}, small[2] = {{bytes, RING_LIMIT}, {bytes, RING_LIMIT}};
    write_number(bytes, LARGE, 99);
    switch (call->which) {
    case PAGES_PUT: call->status = ringbuf_put(queue, bytes, LARGE, call->deadline_ns); break;
    case PAGES_RESERVE: call->status = ringbuf_reserve(queue, &call->reservation, LARGE, call->deadline_ns); break;
    case PAGES_BATCH: call->status = ringbuf_put_all(queue, parts, 2, call->deadline_ns); break;
    case PAGES_RING: call->status = ringbuf_put(queue, bytes, RING_LIMIT, call->deadline_ns); break;
    default: call->status = ringbuf_put_all(queue, small, 2, call->deadline_ns); break;
    }
    return NULL;
}

/** Two large messages are there, and no page is left. */
static void use_up_all_pages(void)
{
    recreate_on_small_file_system(2048);
    put(0, LARGE);
    put(1, LARGE);
    fill_file_system_but(0);
}

static void test_a_call_that_finds_no_pages_waits_for_those_that_messages_will_free(void)
{
    for (int which = 0; which < PAGES_CALLS; which++) {
        struct waiting_for_pages call = {.which = (enum page_call)which};
        use_up_all_pages();
        if (which == PAGES_RING || which == PAGES_RING_BATCH) { /* beyond the ring's first pages */
            ringbuf_status status;
            uint64_t next = 2;
            while ((status = try_to_put(queue, next, 1000, 0)) == RINGBUF_OK) next++;
            ASSERT_STATUS(RINGBUF_E_NO_SPACE, status);
        }
        call_for_pages(&call); /* a poll */
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, call.status);
        TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).reserved);
        uint64_t sleeps;
        do { /* it waits, and does not try all the time; once more if the machine was so busy that the deadline passed before it slept */
            call.deadline_ns = ringbuf_now_ns() + 30 * (int64_t)MILLISECOND;
            sleeps = stats_of(queue).sleeps;
            call_for_pages(&call);
            ASSERT_STATUS(RINGBUF_E_NO_SPACE, call.status);
            TEST_ASSERT_GREATER_OR_EQUAL_INT64(call.deadline_ns, ringbuf_now_ns());
            TEST_ASSERT_TRUE(stats_of(queue).sleeps < sleeps + 20);
        } while (stats_of(queue).sleeps == sleeps);
        call.deadline_ns = RINGBUF_FOREVER;
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&call.thread, NULL, call_for_pages, &call));
        nap_ms(2);
        get(0, LARGE);
        get(1, LARGE);
        TEST_ASSERT_EQUAL_INT(0, pthread_join(call.thread, NULL));
        ASSERT_OK(call.status);
        if (which == PAGES_RESERVE) ASSERT_OK(ringbuf_abort(queue, &call.reservation));
        leave_small_file_system();
    }
}

static void test_two_calls_that_wait_for_pages_do_not_keep_each_other_awake(void)
{
    static struct waiting_for_pages calls[3] = {{.which = PAGES_PUT}, {.which = PAGES_PUT}, {.which = PAGES_BATCH}};
    use_up_all_pages();
    const uint64_t sleeps = stats_of(queue).sleeps;
    const int64_t deadline_ns = ringbuf_now_ns() + 500 * (int64_t)MILLISECOND;
    for (int i = 0; i < 3; i++) {
        calls[i].deadline_ns = deadline_ns;
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&calls[i].thread, NULL, call_for_pages, &calls[i]));
    }
    for (int i = 0; i < 3; i++) {
        TEST_ASSERT_EQUAL_INT(0, pthread_join(calls[i].thread, NULL));
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, calls[i].status);
    }
    TEST_ASSERT_TRUE(stats_of(queue).sleeps < sleeps + 200);
    leave_small_file_system();
}

static void test_where_nothing_of_the_queue_will_free_pages_there_is_no_use_in_waiting(void)
{
    recreate_on_small_file_system(2048);
    put(0, 10); /* the first pages of the ring */
    get(0, 10);
    fill_file_system_but(0);
    for (int which = PAGES_PUT; which <= PAGES_BATCH; which++) {
        struct waiting_for_pages call = {.which = (enum page_call)which, .deadline_ns = RINGBUF_FOREVER};
        call_for_pages(&call);
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, call.status);
    }
    leave_small_file_system();
}

static void test_a_queue_gets_pages_that_others_of_this_process_have_and_do_not_use(void)
{
    for (int warm = 0; warm < 2; warm++) {
        ringbuf *other = NULL;
        size_t size;
        recreate_on_small_file_system(4096);
        put(0, LARGE);
        get(0, LARGE);
        ringbuf_options options = defaults();
        options.directory = small_file_system;
        options.flags |= warm ? RINGBUF_KEEP_WARM : 0;
        ASSERT_OK(ringbuf_create(&other, "other", &options));
        ASSERT_OK(try_to_put(other, 1, MIB, 0));
        ASSERT_OK(ringbuf_get(other, &size, got, sizeof got, 0));
        TEST_ASSERT_EQUAL_UINT64(MIB, stats_of(other).arena_backed_bytes);
        fill_file_system_but(0);
        put(2, MIB - 4 * BLOCK);
        TEST_ASSERT_EQUAL_UINT64(0, stats_of(other).arena_backed_bytes);
        get(2, MIB - 4 * BLOCK);
        ringbuf_close(other); /* and a closed one is left alone */
        put(3, LARGE);
        get(3, LARGE);
        ringbuf_free(other);
        leave_small_file_system();
    }
}

/* ---- memory that is given back ---- */

static void test_idle_memory_goes_back_little_by_little_and_what_is_used_first_goes_last(void)
{
    fill_arena();
    empty_arena(0);
    ringbuf *second = NULL;
    ASSERT_OK(ringbuf_open(&second, "queue", NULL));
    queue->idle_s = second->idle_s = 0;
    rbi_store_total64(&queue->next_trim_ns, 0);
    rbi_store_total64(&queue->header->arena.trimmed_ns, 0);
    int64_t now_ns = ringbuf_now_ns();
    for (int look = 0; look < 3; look++) {
        rbi_trim_if_due(queue, now_ns + look);
        rbi_trim_if_due(second, now_ns + look); /* it is the queue's pace, not each one's */
        TEST_ASSERT_EQUAL_UINT64(ARENA - MIB, stats_of(queue).arena_backed_bytes);
    }
    put(1, 2 * MIB); /* long messages find their memory there, */
    ringbuf_message bottom = lease(1, 2 * MIB);
    TEST_ASSERT_EQUAL_UINT64(ARENA - MIB, stats_of(queue).arena_backed_bytes);
    ASSERT_OK(ringbuf_ack(queue, &bottom));
    for (int64_t i = 1; i <= 4; i++) {
        put(2, 100);
        ringbuf_message top = lease(2, 100); /* and short ones, too, to the last */
        TEST_ASSERT_EQUAL_UINT64(ARENA - (uint64_t)i * MIB, stats_of(queue).arena_backed_bytes);
        ASSERT_OK(ringbuf_ack(queue, &top));
        rbi_trim_if_due(second, now_ns + i * 2000000000);
        if (i == 3) break;
    }
    TEST_ASSERT_EQUAL_UINT64(MIB / 4, stats_of(queue).arena_backed_bytes);
    rbi_trim_if_due(queue, now_ns + 10000000000);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).arena_backed_bytes);
    rbi_store_total64(&queue->header->arena.trimmed_ns, UINT64_MAX / 2); /* by another clock: it stops nobody */
    put(1, LARGE);
    get(1, LARGE);
    rbi_trim_if_due(queue, now_ns + 20000000000);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).arena_backed_bytes);
    ringbuf_free(second);
}

static void test_a_queue_that_keeps_warm_gives_nothing_back_while_it_is_idle(void)
{
    ringbuf_options options = defaults();
    options.flags |= RINGBUF_KEEP_WARM;
    recreate(&options);
    put(1, MIB);
    get(1, MIB);
    queue->idle_s = 0;
    rbi_store_total64(&queue->next_trim_ns, 0);
    rbi_trim_if_due(queue, ringbuf_now_ns());
    TEST_ASSERT_EQUAL_UINT64(MIB, stats_of(queue).arena_backed_bytes);
}

/* ---- what a process may wish for its mapping ---- */

static uint64_t file_blocks(const ringbuf *rb)
{
    struct stat facts;
    TEST_ASSERT_EQUAL_INT(0, stat(ringbuf_path(rb), &facts));
    return (uint64_t)facts.st_blocks * 512 / BLOCK;
}

static void test_a_prefaulted_queue_has_all_its_memory_and_keeps_it(void)
{
    ringbuf_options options = defaults();
    ringbuf_info info;
    options.memory = RINGBUF_PREFAULT;
    recreate(&options);
    ASSERT_OK(ringbuf_get_info(queue, &info));
    TEST_ASSERT_TRUE(info.flags & RINGBUF_KEEP_WARM);
    TEST_ASSERT_EQUAL_UINT64(ARENA, stats_of(queue).arena_backed_bytes);
    const uint64_t before = file_blocks(queue);
    fill_arena();
    empty_arena(0);
    for (uint64_t i = 0; i < 3 * CAPACITY / 1000; i++) {
        put(i, 1000);
        get(i, 1000);
    }
    TEST_ASSERT_EQUAL_UINT64(before, file_blocks(queue));
    queue->idle_s = 0;
    rbi_store_total64(&queue->next_trim_ns, 0);
    rbi_trim_if_due(queue, ringbuf_now_ns());
    TEST_ASSERT_EQUAL_UINT64(ARENA, stats_of(queue).arena_backed_bytes);
}

static void test_who_attaches_may_prefault_a_queue_in_which_there_is_something(void)
{
    ringbuf *second = NULL;
    ringbuf_options options = defaults();
    options.memory = RINGBUF_PREFAULT;
    put(1, LARGE);
    put(2, 100);
    ASSERT_OK(ringbuf_open(&second, "queue", &options));
    TEST_ASSERT_EQUAL_UINT64(ARENA, stats_of(queue).arena_backed_bytes);
    get(1, LARGE);
    get(2, 100);
    assert_empty();
    ringbuf_free(second);
}

static void test_a_queue_that_cannot_be_prefaulted_is_not_made_and_leaves_nothing(void)
{
    char names[256];
    ringbuf *rb = NULL;
    recreate_on_small_file_system(2048);
    ringbuf_free(queue);
    queue = NULL;
    ringbuf_options options = defaults();
    options.directory = small_file_system;
    options.memory = RINGBUF_PREFAULT;
    const uint64_t before = free_file_system_blocks();
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_create(&rb, "queue", &options));
    TEST_ASSERT_NULL(rb);
    TEST_ASSERT_EQUAL_INT(0, directory_entries(small_file_system, names, sizeof names));
    TEST_ASSERT_EQUAL_UINT64(before, free_file_system_blocks());
    options.memory = 0;
    recreate(&options);
    put(1, LARGE);
    options.memory = RINGBUF_PREFAULT;
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_open(&rb, "queue", &options));
    TEST_ASSERT_NULL(rb);
    get(1, LARGE);
    put(2, LARGE);
    get(2, LARGE);
    assert_empty();
    leave_small_file_system();
}

/** Whether the system says of all parts of the mapping that it has this flag ("dd", "lo", "hg"). */
static bool mapping_has(const char *flag, uint64_t offset, uint64_t bytes)
{
    char line[512];
    bool ours = false, all = true, any = false;
    FILE *maps = fopen("/proc/self/smaps", "r");
    TEST_ASSERT_NOT_NULL(maps);
    const uint64_t first = (uint64_t)(uintptr_t)queue->base + offset;
    while (fgets(line, sizeof line, maps)) {
        uint64_t from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) ours = from < first + bytes && to > first;
        if (!ours || strncmp(line, "VmFlags:", 8) != 0) continue;
        char wanted[8];
        snprintf(wanted, sizeof wanted, " %s ", flag);
        any = true;
        all &= strstr(line, wanted) != NULL;
    }
    fclose(maps);
    return any && all;
}

static void test_a_mapping_is_left_out_of_core_dumps_unless_it_is_wanted_there(void)
{
    const uint64_t bytes = queue->prefix_bytes + 2 * queue->mirror_bytes * RBI_LANES;
    TEST_ASSERT_TRUE(mapping_has("dd", 0, bytes));
    ringbuf_options options = defaults();
    options.memory = RINGBUF_DUMP;
    recreate(&options);
    TEST_ASSERT_FALSE(mapping_has("dd", 0, bytes));
}

static void test_a_mapping_is_locked_and_has_huge_pages_if_that_is_wished_for(void)
{
    const uint64_t bytes = queue->prefix_bytes + 2 * queue->mirror_bytes * RBI_LANES;
    TEST_ASSERT_FALSE(mapping_has("lo", 0, bytes));
    TEST_ASSERT_FALSE(mapping_has("hg", queue->stamp.arena_offset, ARENA));
    ringbuf_options options = defaults();
    options.memory = RINGBUF_LOCK_MEMORY | RINGBUF_HUGE_PAGES;
    ringbuf_free(queue);
    queue = NULL;
    ringbuf_status status = ringbuf_create(&queue, "queue", &options);
    if (status == RINGBUF_E_NO_MEMORY) TEST_IGNORE_MESSAGE("may not lock so much memory");
    ASSERT_OK(status);
    TEST_ASSERT_TRUE(mapping_has("lo", 0, bytes));
    const bool has_huge_pages = access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0;
    TEST_ASSERT_EQUAL(has_huge_pages, mapping_has("hg", queue->stamp.arena_offset, ARENA));
    TEST_ASSERT_TRUE(file_blocks(queue) < ARENA / BLOCK); /* locked as it is touched */
    put(1, LARGE);
    get(1, LARGE);
}

static int lock_beyond_the_limit(void *context)
{
    (void)context;
    ringbuf *rb = NULL;
    char names[256];
    struct rlimit little = {.rlim_cur = 64 * KIB, .rlim_max = 64 * KIB};
    if (setrlimit(RLIMIT_MEMLOCK, &little) != 0) return 10;
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 11; /* root may lock what it likes */
    ringbuf_options options = defaults();
    options.memory = RINGBUF_LOCK_MEMORY;
    if (ringbuf_create(&rb, "locked", &options) != RINGBUF_E_NO_MEMORY || rb) return 1;
    options.memory = 0;
    if (!SANITIZED) { /* with a sanitizer mlockall does nothing */
        if (mlockall(MCL_FUTURE) != 0) return 12;
        if (ringbuf_create(&rb, "locked", &options) != RINGBUF_E_NO_MEMORY || rb) return 2;
        munlockall();
    }
    if (ringbuf_create(&rb, "locked", &options) != RINGBUF_OK) return 3;
    ringbuf_free(rb);
    return directory_entries(suite_directory, names, sizeof names) == 1 ? 0 : 4;
}

static void test_more_than_may_be_locked_is_no_memory_and_leaves_nothing(void)
{
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0777));
    TEST_ASSERT_EQUAL_INT(0, run_child(lock_beyond_the_limit, NULL));
}

static int make_a_queue_with_all_memory_locked(void *context)
{
    (void)context;
    ringbuf_options options = defaults();
    ringbuf *rb = NULL;
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) return 77;
    if (ringbuf_create(&rb, "locked", &options) != RINGBUF_OK) return 1;
    const uint64_t blocks = file_blocks(rb);
    ringbuf_free(rb);
    return blocks < 64 ? 0 : 2;
}

static void test_a_process_that_has_all_its_memory_locked_makes_a_queue_without_giving_it_all_its_memory(void)
{
    int result = run_child(make_a_queue_with_all_memory_locked, NULL);
    if (result == 77) TEST_IGNORE_MESSAGE("may not lock so much memory");
    TEST_ASSERT_EQUAL_INT(0, result);
}

static void test_wishes_that_are_not_known_are_invalid(void)
{
    ringbuf *rb = NULL;
    ringbuf_options options = defaults();
    options.memory = 16;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_create(&rb, "other", &options));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_open(&rb, "queue", &options));
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_what_has_waited_long_has_blocks_set_aside_until_it_is_served);
    RUN_TEST(test_only_a_turn_that_is_renewed_and_makes_sense_keeps_others_out);
    RUN_TEST(test_who_waits_behind_a_turn_that_lapses_goes_on);
    RUN_TEST(test_a_poll_that_comes_again_has_waited_since_the_first_time);
    RUN_TEST(test_a_note_that_is_old_counts_no_more);
    RUN_TEST(test_more_threads_that_wait_than_there_is_room_for_notes_are_an_end_of_nothing);
    RUN_TEST(test_of_two_the_one_that_has_waited_longer_has_the_turn);
    RUN_TEST(test_who_is_served_ends_its_own_turn_and_no_other);
    RUN_TEST(test_a_turn_under_which_nobody_consumes_anything_sets_nothing_aside_for_a_round);
    RUN_TEST(test_a_window_that_does_not_empty_is_chosen_anew_elsewhere);
    RUN_TEST(test_the_turn_of_a_killed_process_is_over_when_it_was_recovered_and_that_of_another_goes_on);
    RUN_TEST(test_a_batch_has_one_turn_for_all_it_brings);
    RUN_TEST(test_a_call_that_finds_no_pages_waits_for_those_that_messages_will_free);
    RUN_TEST(test_two_calls_that_wait_for_pages_do_not_keep_each_other_awake);
    RUN_TEST(test_where_nothing_of_the_queue_will_free_pages_there_is_no_use_in_waiting);
    RUN_TEST(test_a_queue_gets_pages_that_others_of_this_process_have_and_do_not_use);
    RUN_TEST(test_idle_memory_goes_back_little_by_little_and_what_is_used_first_goes_last);
    RUN_TEST(test_a_queue_that_keeps_warm_gives_nothing_back_while_it_is_idle);
    RUN_TEST(test_a_prefaulted_queue_has_all_its_memory_and_keeps_it);
    RUN_TEST(test_who_attaches_may_prefault_a_queue_in_which_there_is_something);
    RUN_TEST(test_a_queue_that_cannot_be_prefaulted_is_not_made_and_leaves_nothing);
    RUN_TEST(test_a_mapping_is_left_out_of_core_dumps_unless_it_is_wanted_there);
    RUN_TEST(test_a_mapping_is_locked_and_has_huge_pages_if_that_is_wished_for);
    RUN_TEST(test_more_than_may_be_locked_is_no_memory_and_leaves_nothing);
    RUN_TEST(test_a_process_that_has_all_its_memory_locked_makes_a_queue_without_giving_it_all_its_memory);
    RUN_TEST(test_wishes_that_are_not_known_are_invalid);
    return leave_suite_directory(UNITY_END());
}
