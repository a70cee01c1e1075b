/* test_large.c — floor 4: messages too large for the ring, and messages that somebody holds, through the public calls.  Each with
 * each outcome that ringbuf.h promises; test_queue.c has what they share with small ones. */
#include "small_fs.h"

#include "segment.h"

#include <pthread.h>
#include <sys/statvfs.h>

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    BLOCK = 4 * KIB,
    CELL = 128,
    CAPACITY = 64 * KIB,
    RING_LIMIT = CAPACITY / 8,
    ARENA = 4 * MIB,
    LARGE = 100 * KIB + 7, /* a message for the arena; the size does not matter */
    LARGE_BLOCKS = (LARGE + BLOCK - 1) / BLOCK,
};

static ringbuf *queue; /* the one most tests need */
static uint8_t sent[ARENA + 1], got[ARENA + 1];
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

static void recreate_without_arena(void)
{
    ringbuf_options options = defaults();
    options.arena_bytes = 0;
    recreate(&options);
}

static void recreate_without_cleanup(void)
{
    ringbuf_options options = defaults();
    options.flags = 0;
    recreate(&options);
}

static ringbuf *open_again(void)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_open(&rb, "queue", NULL));
    return rb;
}

void setUp(void)
{
    ringbuf_options options = defaults();
    queue = NULL;
    recreate(&options);
}

void tearDown(void)
{
    ringbuf_free(queue);
    queue = NULL;
    unmount_small_file_system();
    assert_nothing_is_left();
}

static int64_t in_ms(int64_t ms) { return ringbuf_now_ns() + ms * MILLISECOND; }

/* ---- messages that tell their number, whatever their size ---- */

static void write_number(void *bytes, size_t size, uint64_t number)
{
    uint64_t seed = number;
    uint8_t *to = bytes;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word = next_random(&seed);
        memcpy(to + i, &word, 8);
    }
    memset(to + size / 8 * 8, (int)(number & 0xff), size % 8);
}

static bool tells_number(const void *bytes, size_t size, uint64_t number)
{
    uint64_t seed = number;
    const uint8_t *from = bytes;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word = next_random(&seed);
        if (memcmp(from + i, &word, 8) != 0) return false;
    }
    for (size_t i = size / 8 * 8; i < size; i++)
        if (from[i] != (number & 0xff)) return false;
    return true;
}

static ringbuf_status try_to_put(ringbuf *rb, uint64_t number, size_t size, int64_t deadline_ns)
{
    write_number(sent, size, number);
    return ringbuf_put(rb, sent, size, deadline_ns);
}

static void put(uint64_t number, size_t size) { ASSERT_OK(try_to_put(queue, number, size, 0)); }

static void get_from(ringbuf *rb, uint64_t number, size_t size)
{
    size_t got_size = SIZE_MAX;
    ASSERT_OK(ringbuf_get(rb, &got_size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(size, got_size);
    TEST_ASSERT_TRUE(tells_number(got, size, number));
}

static void get(uint64_t number, size_t size) { get_from(queue, number, size); }

static void assert_message(const ringbuf_message *message, uint64_t number, size_t size, uint32_t attempts)
{
    TEST_ASSERT_EQUAL_UINT64(size, message->size);
    TEST_ASSERT_EQUAL_UINT32(attempts, message->attempts);
    TEST_ASSERT_TRUE(tells_number(message->data, size, number));
}

static ringbuf_message lease_from(ringbuf *rb, uint64_t number, size_t size, uint32_t attempts)
{
    ringbuf_message message = {0};
    ASSERT_OK(ringbuf_lease(rb, &message, NULL, 0, 0));
    assert_message(&message, number, size, attempts);
    return message;
}

static ringbuf_message lease(uint64_t number, size_t size) { return lease_from(queue, number, size, 1); }

static ringbuf_message take(uint64_t number, size_t size, uint32_t attempts)
{
    ringbuf_message message = {0};
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    assert_message(&message, number, size, attempts);
    return message;
}

static ringbuf_message keep(uint64_t number, size_t size)
{
    ringbuf_message message = lease(number, size);
    ASSERT_OK(ringbuf_keep(queue, &message));
    return message;
}

static ringbuf_reservation reserve(size_t size)
{
    ringbuf_reservation reservation = {0};
    ASSERT_OK(ringbuf_reserve(queue, &reservation, size, 0));
    TEST_ASSERT_EQUAL_UINT64(size, reservation.size);
    return reservation;
}

static void commit(const ringbuf_reservation *reservation, size_t size) { ASSERT_OK(ringbuf_commit(queue, reservation, size, 0)); }

static ringbuf_stats stats_of(ringbuf *rb)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    return stats;
}

static uint64_t used_blocks(void) { return stats_of(queue).arena_used_bytes / BLOCK; }

static void assert_size(uint64_t expected)
{
    uint64_t items = UINT64_MAX;
    ASSERT_OK(ringbuf_size(queue, &items));
    TEST_ASSERT_EQUAL_UINT64(expected, items);
}

static void assert_unfinished(uint64_t expected) { TEST_ASSERT_EQUAL_UINT64(expected, stats_of(queue).unfinished); }

/** What ringbuf_check says of a queue in which all is well and that nobody uses at this moment. */
static void assert_healthy(uint64_t runs)
{
    ringbuf_findings findings;
    memset(&findings, 0xff, sizeof findings);
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(runs, findings.runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_blocks);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.broken_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.dangling_messages);
}

static void assert_arena_is_free(void)
{
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(stats.arena_bytes, stats.arena_largest_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.reserved + stats.held + stats.leased);
    assert_healthy(0);
}

static void assert_empty(void)
{
    size_t size;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(queue, &size, got, sizeof got, 0));
    assert_size(0);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).used_bytes);
    assert_arena_is_free();
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

/** Whether there is memory of ours at this address. */
static bool is_mapped(const void *address)
{
    unsigned char resident;
    uintptr_t page = (uintptr_t)address & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    return mincore((void *)page, 1, &resident) == 0; /* NOLINT: an address, never a pointer that is followed */
}

/* ---- put and get ---- */

static void test_messages_of_every_size_arrive_whole_and_only_large_ones_use_the_arena(void)
{
    static const size_t sizes[] = {0,             1,         48,       49,             RING_LIMIT - 1, RING_LIMIT, RING_LIMIT + 1,
                                   3 * BLOCK - 1, 3 * BLOCK, 64 * KIB, 16 * BLOCK + 1, MIB,            MIB + 1,    ARENA - 1, ARENA};
    ringbuf *other = open_again();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size = sizes[i];
        put(i, size);
        TEST_ASSERT_EQUAL_UINT64(size <= RING_LIMIT ? 0 : (size + BLOCK - 1) / BLOCK, used_blocks());
        assert_size(1);
        assert_healthy(size > RING_LIMIT);
        get_from(other, i, size);
        assert_empty();
    }
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(sizeof sizes / sizeof *sizes, stats.puts);
    TEST_ASSERT_EQUAL_UINT64(stats.puts, stats.gets);
    TEST_ASSERT_EQUAL_UINT64(stats.bytes_put, stats.bytes_got);
    ringbuf_free(other);
}

static void test_a_message_larger_than_the_arena_is_refused_at_once(void)
{
    ringbuf_reservation reservation;
    static const size_t sizes[] = {ARENA + 1, SIZE_MAX / 2, SIZE_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put(queue, sent, sizes[i], RINGBUF_FOREVER));
        ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_reserve(queue, &reservation, sizes[i], RINGBUF_FOREVER));
        int room = 1;
        ASSERT_OK(ringbuf_has_room(queue, &room, sizes[i]));
        TEST_ASSERT_EQUAL_INT(0, room);
    }
    assert_empty();
}

static void test_without_an_arena_there_is_no_room_to_reserve(void)
{
    ringbuf_reservation reservation;
    recreate_without_arena();
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_reserve(queue, &reservation, 0, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_reserve(queue, &reservation, 1, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).arena_bytes);
    assert_healthy(0);
}

static void test_an_arena_of_larger_blocks_works_alike(void)
{
    ringbuf_options options = defaults();
    options.arena_bytes = SANITIZED ? (UINT64_C(256) * MIB) + 1 : UINT64_C(64) * KIB * MIB;
    recreate(&options);
    ringbuf_info info;
    ASSERT_OK(ringbuf_get_info(queue, &info));
    TEST_ASSERT_EQUAL_UINT64(SANITIZED ? 8 * KIB : MIB, info.block_bytes);
    const size_t sizes[] = {RING_LIMIT, RING_LIMIT + 1, info.block_bytes, info.block_bytes + 1, 2 * MIB};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        put(i, sizes[i]);
        put(100, 1);
        ringbuf_message message = lease(i, sizes[i]), small = lease(100, 1);
        ASSERT_OK(ringbuf_ack(queue, &small));
        ASSERT_OK(ringbuf_ack(queue, &message));
        assert_empty();
    }
}

static void test_small_and_large_messages_keep_their_order(void)
{
    uint64_t seed = 1, sizes[300];
    ringbuf *other = open_again();
    for (uint64_t i = 0; i < 300; i++) {
        sizes[i] = random_below(&seed, 2) ? random_below(&seed, 100) : RING_LIMIT + 1 + random_below(&seed, 3 * BLOCK);
        ASSERT_OK(try_to_put(i % 3 ? queue : other, i, sizes[i], 0));
    }
    assert_size(300);
    for (uint64_t i = 0; i < 300; i++) get_from(i % 2 ? queue : other, i, sizes[i]);
    assert_empty();
    ringbuf_free(other);
}

static void test_random_messages_go_around_unharmed(void)
{
    uint64_t seed = 1, first = 0, next = 0;
    static uint64_t sizes[4096];
    while (next < (SANITIZED ? 2000 : 20000)) {
        uint64_t size = random_below(&seed, random_below(&seed, 3) ? 1000 : random_below(&seed, 16) ? 20 * KIB : ARENA + 1);
        ringbuf_status status = try_to_put(queue, next, size, 0);
        if (status == RINGBUF_OK) {
            sizes[next++ % 4096] = size;
            continue;
        }
        ASSERT_STATUS(size > RING_LIMIT && status == RINGBUF_E_ARENA_FULL ? RINGBUF_E_ARENA_FULL : RINGBUF_E_TIMEOUT, status);
        assert_size(next - first);
        for (uint64_t n = 1 + random_below(&seed, next - first); n > 0; n--, first++) get(first, sizes[first % 4096]);
    }
    while (first < next) {
        get(first, sizes[first % 4096]);
        first++;
    }
    assert_empty();
}

static void test_a_large_message_is_copied_if_it_fits_and_else_read_where_it_lies(void)
{
    ringbuf_message message = {.data = NULL};
    put(1, LARGE);
    put(2, LARGE + 1);
    ASSERT_OK(ringbuf_take(queue, &message, got, LARGE, 0));
    TEST_ASSERT_EQUAL_PTR(got, message.data);
    TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
    assert_message(&message, 1, LARGE, 1);
    TEST_ASSERT_EQUAL_UINT64(CELL, stats_of(queue).used_bytes); /* the other one's: this one takes no room in the ring any more */
    ASSERT_OK(ringbuf_ack(queue, &message));
    ASSERT_OK(ringbuf_take(queue, &message, got, LARGE, 0));
    TEST_ASSERT_TRUE(message.data != got);
    TEST_ASSERT_EQUAL_UINT64(0, (uintptr_t)message.data % BLOCK);
    assert_message(&message, 2, LARGE + 1, 1);
    TEST_ASSERT_TRUE(tells_number(got, LARGE, 1));
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_a_buffer_too_small_for_a_large_message_leaves_it_and_tells_its_size(void)
{
    size_t size = 0;
    put(1, LARGE);
    put(2, 5);
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(queue, &size, got, LARGE - 1, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(LARGE, size);
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(queue, &size, NULL, 0, 0));
    assert_size(2);
    /* And the same for one that was returned and waits in the arena. */
    ringbuf_message message = lease(1, LARGE);
    ASSERT_OK(ringbuf_nack(queue, &message));
    size = 0;
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(queue, &size, got, LARGE - 1, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(LARGE, size);
    assert_size(2);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).gets);
    ASSERT_OK(ringbuf_get(queue, &size, got, LARGE, 0));
    TEST_ASSERT_TRUE(tells_number(got, LARGE, 1));
    get(2, 5);
    assert_empty();
}

/* ---- parts ---- */

static void test_a_message_put_in_parts_is_their_bytes_one_behind_the_other(void)
{
    static const size_t totals[] = {1, 48, 300, RING_LIMIT, RING_LIMIT + 1, LARGE, ARENA};
    static ringbuf_part parts[1000];
    for (size_t t = 0; t < sizeof totals / sizeof *totals; t++)
        for (uint64_t round = 0; round < 8; round++) {
            uint64_t seed = round * 100 + t;
            size_t total = totals[t], at = 0, count = 0;
            write_number(sent, total, seed);
            while (at < total && count < 998) {
                size_t size = (size_t)random_below(&seed, (total / (round < 4 ? 3 : 300)) + 2); /* some of them empty */
                if (size > total - at) size = total - at;
                parts[count++] = (ringbuf_part){size ? sent + at : NULL, size};
                at += size;
            }
            parts[count++] = (ringbuf_part){sent + at, total - at};
            ASSERT_OK(ringbuf_put_parts(queue, parts, count, 0));
            get(round * 100 + t, total);
        }
    assert_empty();
}

static void test_no_parts_and_empty_parts_make_an_empty_message(void)
{
    const ringbuf_part nothing[3] = {{NULL, 0}, {"", 0}, {NULL, 0}};
    ASSERT_OK(ringbuf_put_parts(queue, NULL, 0, 0));
    ASSERT_OK(ringbuf_put_parts(queue, nothing, 0, 0));
    ASSERT_OK(ringbuf_put_parts(queue, nothing, 3, 0));
    ASSERT_OK(ringbuf_put_parts(queue, nothing, 1, 0));
    assert_size(4);
    for (int i = 0; i < 4; i++) get(0, 0);
    assert_empty();
}

static void test_parts_that_make_no_sense_are_refused_and_nothing_is_put(void)
{
    const ringbuf_part half[2] = {{sent, 10}, {NULL, 1}}, large[2] = {{sent, ARENA}, {sent, 1}};
    const ringbuf_part overflow[2] = {{sent, SIZE_MAX}, {sent, 2}};
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_parts(NULL, half, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_parts(queue, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put_parts(queue, half, 2, 0));
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put_parts(queue, overflow, 2, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put_parts(queue, large, 2, RINGBUF_FOREVER));
    assert_empty();
}

/* ---- calls that wait, in threads ---- */

enum call_kind { PUT_LARGE, RESERVE };

struct blocked_call {
    enum call_kind kind;
    ringbuf *rb;
    ringbuf_status status;
    ringbuf_reservation reservation;
    uint8_t bytes[LARGE];
    pthread_t thread;
    stage ended;
};

static void *make_call(void *context)
{
    struct blocked_call *call = context;
    if (call->kind == PUT_LARGE) call->status = ringbuf_put(call->rb, call->bytes, LARGE, RINGBUF_FOREVER);
    else call->status = ringbuf_reserve(call->rb, &call->reservation, LARGE, RINGBUF_FOREVER);
    atomic_fetch_add(&call->ended, 1);
    return NULL;
}

/** Make the call in a thread of its own; returns when it sleeps. */
static void start_call(struct blocked_call *call, enum call_kind kind, ringbuf *rb)
{
    memset(call, 0, sizeof *call);
    call->kind = kind;
    call->rb = rb;
    write_number(call->bytes, LARGE, 99);
    uint64_t sleeps = stats_of(rb).sleeps;
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&call->thread, NULL, make_call, call));
    while (stats_of(rb).sleeps == sleeps) nap_ms(1);
}

static ringbuf_status outcome_of(struct blocked_call *call)
{
    pthread_join(call->thread, NULL);
    return call->status;
}

/** It had room in the end: end what it made, so that only that room is used again. */
static void assert_call_succeeded(struct blocked_call *call)
{
    ASSERT_OK(outcome_of(call));
    if (call->kind == RESERVE) {
        TEST_ASSERT_EQUAL_UINT64(LARGE, call->reservation.size);
        write_number(call->reservation.data, LARGE, 99);
        ASSERT_OK(ringbuf_commit(call->rb, &call->reservation, LARGE, 0));
    }
}

/** How often sleepers have been woken who wait for room: a wake and not only a look at the clock. */
static uint32_t room_wakes(void) { return rbi_load_total32(&queue->header->room.word) >> 1; }

/* ---- full ---- */

static void test_a_full_arena_says_so_at_the_deadline_and_not_before_and_small_messages_go_on(void)
{
    ringbuf_reservation reservation;
    put(1, ARENA);
    const int64_t passed[] = {0, 1, INT64_MIN, in_ms(-1)};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) {
        ASSERT_STATUS(RINGBUF_E_ARENA_FULL, try_to_put(queue, 2, LARGE, passed[i]));
        ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_reserve(queue, &reservation, 0, passed[i]));
    }
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).sleeps);
    static const int64_t waits_ms[] = {1, 30, 250}; /* the last one outlasts liveness checks */
    for (size_t i = 0; i < sizeof waits_ms / sizeof *waits_ms; i++) {
        int64_t deadline_ns = in_ms(waits_ms[i]);
        ASSERT_STATUS(RINGBUF_E_ARENA_FULL,
                      i % 2 ? try_to_put(queue, 2, LARGE, deadline_ns) : ringbuf_reserve(queue, &reservation, 1, deadline_ns));
        TEST_ASSERT_GREATER_OR_EQUAL_INT64(deadline_ns, ringbuf_now_ns());
    }
    int room = 1;
    ASSERT_OK(ringbuf_has_room(queue, &room, LARGE));
    TEST_ASSERT_EQUAL_INT(0, room);
    assert_size(1);
    assert_healthy(1);
    put(3, 100);
    get(1, ARENA);
    ASSERT_OK(ringbuf_has_room(queue, &room, LARGE));
    TEST_ASSERT_EQUAL_INT(1, room);
    get(3, 100);
    assert_empty();
}

static void test_a_full_ring_is_a_timeout_for_a_large_message_too_which_then_uses_no_room(void)
{
    ringbuf_options options = defaults();
    options.max_items = 1;
    recreate(&options);
    put(1, 5);
    int room = 1;
    ASSERT_OK(ringbuf_has_room(queue, &room, LARGE));
    TEST_ASSERT_EQUAL_INT(0, room);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, try_to_put(queue, 2, LARGE, 0));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, try_to_put(queue, 2, LARGE, in_ms(20)));
    assert_arena_is_free();
    get(1, 5);
    put(2, LARGE);
    get(2, LARGE);
    assert_empty();
}

/** What makes room in an arena that is full of one message, reservation or kept message. */
enum room_maker {
    ACK,
    GET,
    NACK_AND_GET,
    RELEASE,
    ABORT,
    SMALL_COMMIT,
    KILLED_HOLDER,
    KILLED_RESERVER,
    CLOSED_HOLDER,
    ROOM_MAKERS,
};

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

static int reserve_and_wait(void *context)
{
    struct other_process *shared = context;
    ringbuf_reservation reservation;
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_reserve(rb, &reservation, ARENA, 0) != RINGBUF_OK) return 2;
    memset(reservation.data, 1, 2 * BLOCK);
    atomic_fetch_add(&shared->ready, 1);
    sleep_for_ever();
}

static void test_whoever_makes_room_wakes_who_waits_for_it(void)
{
    struct other_process *shared = share_memory(sizeof *shared);
    for (int maker = 0; maker < ROOM_MAKERS; maker++)
        for (int kind = PUT_LARGE; kind <= RESERVE; kind++) {
            static struct blocked_call call;
            ringbuf_message message = {0};
            ringbuf_reservation reservation = {0};
            ringbuf *other = NULL;
            pid_t child = 0;
            bool reserves = maker == ABORT || maker == SMALL_COMMIT || maker == KILLED_RESERVER;
            atomic_store(&shared->ready, 0);
            if (!reserves) put(1, ARENA);
            if (maker == CLOSED_HOLDER) other = open_again();
            if (maker == ACK || maker == RELEASE || maker == NACK_AND_GET) message = lease(1, ARENA);
            if (maker == CLOSED_HOLDER) message = lease_from(other, 1, ARENA, 1);
            if (maker == RELEASE) ASSERT_OK(ringbuf_keep(queue, &message));
            if (maker == CLOSED_HOLDER) ASSERT_OK(ringbuf_keep(other, &message));
            if (maker == ABORT || maker == SMALL_COMMIT) reservation = reserve(ARENA);
            if (maker == KILLED_HOLDER) child = start_child(hold_and_wait, shared);
            if (maker == KILLED_RESERVER) child = start_child(reserve_and_wait, shared);
            if (child) wait_for_stage(&shared->ready, 1);
            start_call(&call, (enum call_kind)kind, queue);
            TEST_ASSERT_EQUAL_INT(0, atomic_load(&call.ended));
            uint32_t wakes = room_wakes();
            switch ((enum room_maker)maker) {
            case ACK: ASSERT_OK(ringbuf_ack(queue, &message)); break;
            case GET: get(1, ARENA); break;
            case NACK_AND_GET:
                ASSERT_OK(ringbuf_nack(queue, &message));
                get(1, ARENA);
                break;
            case RELEASE: ASSERT_OK(ringbuf_release(queue, &message)); break;
            case ABORT: ASSERT_OK(ringbuf_abort(queue, &reservation)); break;
            case SMALL_COMMIT: commit(&reservation, 0); break;
            case KILLED_HOLDER:
            case KILLED_RESERVER: kill_child(child); break;
            case CLOSED_HOLDER:
                ringbuf_close(other);
                ASSERT_OK(ringbuf_release(other, &message));
                ringbuf_free(other);
                break;
            case ROOM_MAKERS: break;
            }
            assert_call_succeeded(&call);
            TEST_ASSERT_TRUE(room_wakes() != wakes);
            if (maker == SMALL_COMMIT) get(0, 0);
            get(99, LARGE);
            assert_empty();
        }
    munmap(shared, sizeof *shared);
}

static void test_every_one_of_several_that_wait_for_room_has_it_in_turn(void)
{
    enum { CALLS = 4 };
    static struct blocked_call calls[CALLS];
    put(1, ARENA);
    for (int i = 0; i < CALLS; i++) start_call(&calls[i], PUT_LARGE, queue);
    get(1, ARENA);
    for (int i = 0; i < CALLS; i++) ASSERT_OK(outcome_of(&calls[i]));
    for (int i = 0; i < CALLS; i++) get(99, LARGE);
    assert_empty();
}

static volatile sig_atomic_t signals;
static void count_signal(int number)
{
    (void)number;
    signals = signals + 1;
}

static void test_a_signal_ends_a_wait_for_room_and_loses_nothing(void)
{
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    put(1, ARENA);
    for (int kind = PUT_LARGE; kind <= RESERVE; kind++) {
        static struct blocked_call call;
        start_call(&call, (enum call_kind)kind, queue);
        while (!atomic_load(&call.ended)) {
            pthread_kill(call.thread, SIGUSR1);
            nap_ms(1);
        }
        ASSERT_STATUS(RINGBUF_E_INTR, outcome_of(&call));
        assert_size(1);
        assert_healthy(1);
    }
    get(1, ARENA);
    assert_empty();
    signal(SIGUSR1, SIG_DFL);
}

static void test_a_close_ends_a_wait_for_room_on_that_handle_only(void)
{
    static struct blocked_call here[2], elsewhere;
    ringbuf *other = open_again();
    put(1, ARENA);
    start_call(&here[0], PUT_LARGE, other);
    start_call(&here[1], RESERVE, other);
    start_call(&elsewhere, PUT_LARGE, queue);
    ringbuf_close(other);
    ASSERT_STATUS(RINGBUF_E_CLOSED, outcome_of(&here[0]));
    ASSERT_STATUS(RINGBUF_E_CLOSED, outcome_of(&here[1]));
    TEST_ASSERT_EQUAL_INT(0, atomic_load(&elsewhere.ended));
    get(1, ARENA);
    ASSERT_OK(outcome_of(&elsewhere));
    get(99, LARGE);
    assert_empty();
    ringbuf_free(other);
}

static void test_both_shutdowns_wake_and_refuse_who_waits_for_room(void)
{
    for (int immediate = 0; immediate <= 1; immediate++) {
        static struct blocked_call calls[2];
        ringbuf_options options = defaults();
        recreate(&options);
        put(1, ARENA);
        ringbuf_message message = lease(1, ARENA); /* so that the shutdown makes no room by discarding it */
        start_call(&calls[0], PUT_LARGE, queue);
        start_call(&calls[1], RESERVE, queue);
        uint32_t wakes = room_wakes();
        ASSERT_OK(ringbuf_shutdown(queue, immediate));
        uint32_t woken = room_wakes();
        for (int i = 0; i < 2; i++) ASSERT_STATUS(RINGBUF_E_SHUTDOWN, outcome_of(&calls[i]));
        TEST_ASSERT_TRUE_MESSAGE(woken != wakes, "they were not woken, and noticed only at their next look at the dead");
        ASSERT_OK(ringbuf_ack(queue, &message));
        assert_arena_is_free();
    }
}

/* ---- reserve, commit, abort ---- */

static void test_a_reservation_is_nobody_s_message_until_it_is_committed(void)
{
    ringbuf_reservation reservation = reserve(LARGE);
    TEST_ASSERT_EQUAL_UINT64(0, (uintptr_t)reservation.data % BLOCK);
    write_number(reservation.data, LARGE, 1);
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(1, stats.reserved);
    TEST_ASSERT_EQUAL_UINT64(LARGE_BLOCKS * BLOCK, stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.items + stats.puts + stats.unfinished + stats.used_bytes);
    ASSERT_OK(ringbuf_join(queue, 0));
    assert_healthy(1);
    put(2, 5); /* it holds up nobody */
    get(2, 5);
    commit(&reservation, LARGE);
    stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(0, stats.reserved);
    TEST_ASSERT_EQUAL_UINT64(2, stats.puts);
    TEST_ASSERT_EQUAL_UINT64(LARGE + 5, stats.bytes_put);
    assert_size(1);
    assert_healthy(1);
    get(1, LARGE);
    assert_empty();
}

static void test_less_than_was_reserved_can_be_committed_and_more_cannot(void)
{
    static const size_t sizes[] = {0, 1, 48, BLOCK / 2, BLOCK / 2 + 1, RING_LIMIT, RING_LIMIT + 1, LARGE - 1, LARGE};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ringbuf_reservation reservation = reserve(LARGE);
        write_number(reservation.data, sizes[i], i);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &reservation, LARGE + 1, 0));
        commit(&reservation, sizes[i]);
        get(i, sizes[i]);
        assert_empty();
    }
}

static void test_a_small_commit_lies_in_the_ring_and_leaves_the_arena_at_once(void)
{
    ringbuf_reservation reservation = reserve(LARGE);
    write_number(reservation.data, 100, 1);
    commit(&reservation, 100);
    assert_arena_is_free();
    TEST_ASSERT_EQUAL_UINT64(CELL, stats_of(queue).used_bytes);
    ringbuf_message message = take(1, 100, 1);
    TEST_ASSERT_EQUAL_UINT32(0, message.in_arena);
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_a_reservation_of_nothing_is_one(void)
{
    ringbuf_reservation a = reserve(0), b = reserve(0);
    TEST_ASSERT_TRUE(a.data != b.data);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &a, 1, 0));
    commit(&a, 0);
    ASSERT_OK(ringbuf_abort(queue, &b));
    get(0, 0);
    assert_empty();
}

static void test_an_aborted_reservation_leaves_nothing(void)
{
    ringbuf_reservation a = reserve(LARGE), b = reserve(ARENA / 2);
    ASSERT_OK(ringbuf_abort(queue, &a));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).reserved);
    ASSERT_OK(ringbuf_abort(queue, &b));
    assert_empty();
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).puts);
}

static void test_a_reservation_can_be_ended_once_only(void)
{
    for (size_t size = 100; size <= LARGE; size += LARGE - 100) {
        ringbuf_reservation reservation = reserve(LARGE);
        write_number(reservation.data, size, 1);
        commit(&reservation, size);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &reservation, size, 0));
        assert_size(1);
        get(1, size);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &reservation, size, 0));
        assert_empty();
    }
}

static void test_a_reservation_that_is_over_stays_over_when_its_room_is_reserved_again(void)
{
    ringbuf_reservation first = reserve(LARGE);
    write_number(first.data, LARGE, 1);
    commit(&first, LARGE);
    get(1, LARGE);
    ringbuf_reservation second = reserve(LARGE);
    TEST_ASSERT_EQUAL_PTR(first.data, second.data);
    ringbuf_status status = ringbuf_commit(queue, &first, LARGE, 0);
    if (status == RINGBUF_OK) ringbuf_pin(queue); /* or the handle would lose count */
    ASSERT_STATUS(RINGBUF_E_INVALID, status);
    ASSERT_OK(ringbuf_abort(queue, &second));
    assert_empty();
}

static void test_a_reservation_belongs_to_its_handle(void)
{
    ringbuf *other = open_again();
    ringbuf_reservation reservation = reserve(LARGE), never = {.data = sent, .size = LARGE, .position = 5};
    write_number(reservation.data, LARGE, 1);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(other, &reservation, LARGE, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &never, LARGE, 0));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).reserved);
    commit(&reservation, LARGE);
    get(1, LARGE);
    assert_empty();
    ringbuf_free(other);
}

static void test_a_message_that_was_reserved_is_at_its_first_attempt_whatever_was_there_before(void)
{
    put(1, LARGE);
    ringbuf_message old = lease(1, LARGE);
    ASSERT_OK(ringbuf_nack(queue, &old));
    old = lease_from(queue, 1, LARGE, 2);
    ASSERT_OK(ringbuf_ack(queue, &old));
    ringbuf_reservation reservation = reserve(LARGE);
    TEST_ASSERT_EQUAL_PTR(old.data, reservation.data);
    write_number(reservation.data, LARGE, 2);
    commit(&reservation, LARGE);
    ringbuf_message fresh = lease(2, LARGE); /* at attempt 1 */
    ASSERT_OK(ringbuf_ack(queue, &fresh));
    assert_empty();
}

static void test_a_commit_that_finds_the_ring_full_can_be_made_again(void)
{
    ringbuf_options options = defaults();
    options.max_items = 1;
    recreate(&options);
    for (size_t size = 100; size <= LARGE; size += LARGE - 100) {
        ringbuf_reservation reservation = reserve(LARGE);
        write_number(reservation.data, size, 2);
        put(1, 5);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_commit(queue, &reservation, size, 0));
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_commit(queue, &reservation, size, in_ms(20)));
        TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).reserved);
        assert_size(1);
        get(1, 5);
        commit(&reservation, size);
        get(2, size);
        assert_empty();
    }
}

static void test_a_commit_after_a_shutdown_is_refused_and_the_reservation_can_be_given_up(void)
{
    size_t size;
    for (int immediate = 0; immediate <= 1; immediate++) {
        ringbuf_options options = defaults();
        recreate(&options);
        ringbuf_reservation reservation = reserve(LARGE), later;
        ASSERT_OK(ringbuf_shutdown(queue, immediate));
        ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_get(queue, &size, got, sizeof got, RINGBUF_FOREVER)); /* it holds up nobody */
        ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_commit(queue, &reservation, LARGE, RINGBUF_FOREVER));
        ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_commit(queue, &reservation, 10, RINGBUF_FOREVER));
        ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_reserve(queue, &later, 10, RINGBUF_FOREVER));
        ASSERT_STATUS(RINGBUF_E_SHUTDOWN, try_to_put(queue, 1, LARGE, RINGBUF_FOREVER));
        ASSERT_OK(ringbuf_join(queue, RINGBUF_FOREVER));
        TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).reserved);
        ASSERT_OK(ringbuf_abort(queue, &reservation));
        assert_arena_is_free();
    }
}

static void test_a_commit_after_close_says_closed_and_the_reservation_stays_writable_until_it_is_given_up(void)
{
    recreate_without_cleanup();
    char path[512];
    ringbuf *other = open_again();
    snprintf(path, sizeof path, "%s", ringbuf_path(queue));
    ringbuf_reservation reservation = reserve(LARGE), after;
    ringbuf_close(queue);
    write_number(reservation.data, LARGE, 1);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_commit(queue, &reservation, LARGE, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_reserve(queue, &after, LARGE, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(other).reserved);
    TEST_ASSERT_TRUE(tells_number(reservation.data, LARGE, 1));
    ASSERT_OK(ringbuf_abort(queue, &reservation));
    TEST_ASSERT_FALSE(is_mapped(reservation.data));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(other).reserved);
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(other).participants);
    TEST_ASSERT_TRUE(exists(path));
    ringbuf_free(other);
    TEST_ASSERT_FALSE(exists(path));
}

static void test_a_reservation_can_be_given_up_after_its_handle_was_freed(void)
{
    recreate_without_cleanup();
    char path[512];
    snprintf(path, sizeof path, "%s", ringbuf_path(queue));
    ringbuf_reservation a = reserve(LARGE), b = reserve(1);
    ringbuf *freed = queue;
    ringbuf_free(queue);
    queue = NULL;
    memset(a.data, 1, LARGE);
    ASSERT_OK(ringbuf_abort(freed, &a));
    memset(b.data, 1, 1);
    TEST_ASSERT_TRUE(exists(path));
    ASSERT_OK(ringbuf_abort(freed, &b));
    TEST_ASSERT_FALSE(exists(path));
    TEST_ASSERT_FALSE(is_mapped(a.data));
}

static int end_the_parent_s_reservation(void *context)
{
    const ringbuf_reservation *reservation = context;
    if (ringbuf_commit(queue, reservation, LARGE, 0) != RINGBUF_E_INVALID) return 1;
    if (ringbuf_abort(queue, reservation) != RINGBUF_OK) return 2;
    return ringbuf_put(queue, "from the child", 15, 0) == RINGBUF_OK ? 0 : 3;
}

static void test_a_reservation_stays_the_parent_s_whatever_a_child_does_with_it(void)
{
    ringbuf_reservation reservation = reserve(LARGE);
    write_number(reservation.data, LARGE, 1);
    TEST_ASSERT_EQUAL_INT(0, run_child(end_the_parent_s_reservation, &reservation));
    size_t size;
    ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).reserved);
    commit(&reservation, LARGE);
    get(1, LARGE);
    uint64_t recovered;
    ASSERT_OK(ringbuf_recover(queue, &recovered)); /* the child did not close */
    assert_empty();
}

/* ---- leases ---- */

static void test_a_leased_small_message_moves_into_the_arena_and_takes_no_room_in_the_ring(void)
{
    put(1, 100);
    put(2, RING_LIMIT);
    ringbuf_message a = lease(1, 100), b = lease(2, RING_LIMIT);
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT32(1, a.in_arena);
    TEST_ASSERT_EQUAL_UINT32(1, b.in_arena);
    TEST_ASSERT_EQUAL_UINT64(0, stats.used_bytes + stats.items + stats.gets);
    TEST_ASSERT_EQUAL_UINT64(2, stats.leased);
    TEST_ASSERT_EQUAL_UINT64(BLOCK + RING_LIMIT, stats.arena_used_bytes);
    assert_healthy(2);
    ASSERT_OK(ringbuf_ack(queue, &a));
    TEST_ASSERT_TRUE(tells_number(b.data, RING_LIMIT, 2));
    ASSERT_OK(ringbuf_ack(queue, &b));
    TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).gets);
    assert_empty();
}

static void test_a_leased_large_message_stays_where_it_lies(void)
{
    put(1, LARGE);
    ringbuf_message message = lease(1, LARGE);
    TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
    TEST_ASSERT_EQUAL_UINT64(LARGE_BLOCKS, used_blocks());
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).used_bytes);
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_an_empty_message_can_be_leased(void)
{
    put(0, 0);
    ringbuf_message message = lease(0, 0);
    TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
    TEST_ASSERT_NOT_NULL(message.data);
    ASSERT_OK(ringbuf_copy(queue, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_a_leased_message_is_copied_to_the_caller_s_buffer_if_it_fits(void)
{
    char buffer[8];
    ringbuf_message message = {.data = NULL};
    put(1, 8);
    put(2, 9);
    ASSERT_OK(ringbuf_lease(queue, &message, buffer, sizeof buffer, 0));
    TEST_ASSERT_EQUAL_PTR(buffer, message.data);
    assert_message(&message, 1, 8, 1);
    ASSERT_OK(ringbuf_ack(queue, &message));
    ASSERT_OK(ringbuf_lease(queue, &message, buffer, sizeof buffer, 0));
    TEST_ASSERT_TRUE(message.data != buffer);
    assert_message(&message, 2, 9, 1);
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_the_ring_turns_while_a_hundred_messages_are_held(void)
{
    enum { HELD = 100 };
    ringbuf_message messages[HELD];
    uint64_t seed = 1;
    for (uint64_t i = 0; i < HELD; i++) {
        put(i, i * 31);
        messages[i] = lease(i, i * 31);
        TEST_ASSERT_EQUAL_UINT32(1, messages[i].in_arena);
    }
    for (uint64_t i = 0; i < 20 * CAPACITY / CELL; i++) {
        put(1000 + i, 100);
        if (i % 20 == 0) put(2000 + i, LARGE);
        get(1000 + i, 100);
        if (i % 20 == 0) get(2000 + i, LARGE);
    }
    TEST_ASSERT_EQUAL_UINT64(HELD, stats_of(queue).leased);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).used_bytes);
    for (uint64_t left = HELD; left > 0; left--) {
        uint64_t which = random_below(&seed, left);
        ringbuf_message message = messages[which];
        messages[which] = messages[left - 1];
        TEST_ASSERT_TRUE(tells_number(message.data, message.size, message.size / 31));
        ASSERT_OK(ringbuf_ack(queue, &message));
    }
    assert_empty();
}

static void test_a_lease_given_back_is_the_next_message_delivered_and_counts_its_attempts(void)
{
    static const size_t sizes[] = {100, LARGE};
    for (int i = 0; i < 2; i++) {
        put(1, sizes[i]);
        put(2, 5);
        ringbuf_message message = lease(1, sizes[i]);
        for (uint32_t attempt = 2; attempt <= 4; attempt++) {
            assert_size(1);
            ASSERT_OK(ringbuf_nack(queue, &message));
            assert_size(2);
            assert_healthy(1);
            TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).leased);
            message = attempt == 3 ? take(1, sizes[i], attempt) : lease_from(queue, 1, sizes[i], attempt);
            TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
        }
        ASSERT_OK(ringbuf_ack(queue, &message));
        get(2, 5);
        assert_empty();
    }
}

static void test_leases_given_back_in_any_order_are_delivered_in_the_order_of_their_puts(void)
{
    ringbuf_message messages[4];
    static const size_t sizes[] = {LARGE, 10, 0, 3 * LARGE};
    for (uint64_t i = 0; i < 4; i++) put(i, sizes[i]);
    for (uint64_t i = 0; i < 4; i++) messages[i] = lease(i, sizes[i]);
    static const int given_back_in_this_order[] = {2, 3, 0, 1};
    for (int i = 0; i < 4; i++) ASSERT_OK(ringbuf_nack(queue, &messages[given_back_in_this_order[i]]));
    assert_size(4);
    for (uint64_t i = 0; i < 4; i++) get(i, sizes[i]);
    assert_empty();
}

static void test_of_what_was_given_back_that_in_the_ring_comes_first_then_that_in_the_arena_then_what_is_younger(void)
{
    for (uint64_t i = 1; i <= 5; i++) put(i, 10);
    ringbuf_message a = lease(1, 10), b = take(2, 10, 1), c = lease(3, 10), d = take(4, 10, 1);
    ASSERT_OK(ringbuf_nack(queue, &c));
    ASSERT_OK(ringbuf_nack(queue, &d));
    ASSERT_OK(ringbuf_nack(queue, &a));
    ASSERT_OK(ringbuf_nack(queue, &b));
    static const uint64_t delivered[] = {2, 4, 1, 3, 5};
    for (int i = 0; i < 5; i++) get(delivered[i], 10);
    assert_empty();
}

static void test_a_lease_can_be_ended_once_only_and_only_by_who_has_it(void)
{
    ringbuf *other = open_again();
    static const size_t sizes[] = {100, LARGE};
    for (int i = 0; i < 2; i++) {
        put(1, sizes[i]);
        ringbuf_message message = lease(1, sizes[i]), stale;
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(other, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(other, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(other, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(other, &message, got, 0, 1));
        ASSERT_OK(ringbuf_nack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &message));
        stale = message;
        message = lease_from(queue, 1, sizes[i], 2);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &stale)); /* the same message, at an attempt that is over */
        ASSERT_OK(ringbuf_ack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &message));
        put(2, sizes[i]);
        ringbuf_message next = lease(2, sizes[i]); /* in the same blocks */
        TEST_ASSERT_EQUAL_PTR(message.data, next.data);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &message));
        ASSERT_OK(ringbuf_ack(queue, &next));
        assert_empty();
    }
    TEST_ASSERT_EQUAL_UINT64(4, stats_of(queue).gets);
    ringbuf_free(other);
}

static void test_a_lease_stays_in_the_ring_where_the_arena_has_no_room_or_there_is_none(void)
{
    for (int absent = 0; absent <= 1; absent++) {
        ringbuf_reservation all = {0};
        if (absent) recreate_without_arena();
        else all = reserve(ARENA);
        put(1, 100);
        put(2, 100);
        ringbuf_message message = lease(1, 100);
        TEST_ASSERT_EQUAL_UINT32(0, message.in_arena);
        TEST_ASSERT_EQUAL_UINT64(2 * CELL, stats_of(queue).used_bytes);
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &message));
        ASSERT_OK(ringbuf_nack(queue, &message));
        message = lease_from(queue, 1, 100, 2);
        ASSERT_OK(ringbuf_ack(queue, &message));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &message));
        get(2, 100);
        TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).gets);
        if (!absent) ASSERT_OK(ringbuf_abort(queue, &all));
        assert_empty();
    }
}

static void test_a_lease_waits_for_a_message_and_times_out_without_one(void)
{
    ringbuf_message message = {0};
    int64_t deadline_ns = in_ms(30);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_lease(queue, &message, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_lease(queue, &message, NULL, 0, deadline_ns));
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(deadline_ns, ringbuf_now_ns());
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
    assert_arena_is_free();
}

static void test_any_part_of_a_taken_message_can_be_copied_and_nothing_beyond_it(void)
{
    static const size_t sizes[] = {100, LARGE};
    for (int i = 0; i < 2; i++)
        for (int leased = 0; leased <= 1; leased++) {
            size_t size = sizes[i];
            put(1, size);
            ringbuf_message message = leased ? lease(1, size) : take(1, size, 1);
            memset(got, 0, size);
            ASSERT_OK(ringbuf_copy(queue, &message, got, 0, size));
            TEST_ASSERT_TRUE(tells_number(got, size, 1));
            uint8_t piece[11] = {0};
            ASSERT_OK(ringbuf_copy(queue, &message, piece, size - 10, 10));
            TEST_ASSERT_EQUAL_MEMORY(got + size - 10, piece, 10);
            TEST_ASSERT_EQUAL_UINT8(0, piece[10]);
            ASSERT_OK(ringbuf_copy(queue, &message, piece, size, 0));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, 0, size + 1));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, size, 1));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, size + 1, 0));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, SIZE_MAX, 2));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, 2, SIZE_MAX));
            ASSERT_OK(ringbuf_ack(queue, &message));
            ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, 0, 1));
            assert_empty();
        }
}

static void test_closing_gives_leases_back_and_others_have_them_at_the_next_attempt(void)
{
    ringbuf *other = open_again();
    put(1, 100);
    put(2, LARGE);
    put(3, 5);
    ringbuf_message a = lease_from(other, 1, 100, 1), b = lease_from(other, 2, LARGE, 1);
    ringbuf_close(other);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_ack(other, &a));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_nack(other, &b));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_keep(other, &b));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_copy(other, &b, got, 0, 1));
    TEST_ASSERT_FALSE(is_mapped(b.data));
    assert_size(3);
    ringbuf_message again = lease_from(queue, 1, 100, 2);
    ASSERT_OK(ringbuf_ack(queue, &again));
    again = take(2, LARGE, 2);
    ASSERT_OK(ringbuf_ack(queue, &again));
    get(3, 5);
    assert_empty();
    ringbuf_free(other);
}

static int lease_two_and_die(void *context)
{
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    (void)context;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK || !message.in_arena) return 2;
    if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK || !message.in_arena) return 3;
    die();
}

static void test_leases_of_a_killed_process_reach_others_at_the_next_attempt(void)
{
    for (uint32_t deaths = 1; deaths <= 3; deaths++) {
        put(1, 100);
        put(2, LARGE);
        put(3, 5);
        for (uint32_t i = 0; i < deaths; i++) {
            uint64_t recovered = 0;
            TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(lease_two_and_die, NULL));
            ASSERT_OK(ringbuf_recover(queue, &recovered));
            TEST_ASSERT_EQUAL_UINT64(1, recovered);
            assert_size(3);
            assert_healthy(2);
        }
        ringbuf_message a = lease_from(queue, 1, 100, deaths + 1), b = lease_from(queue, 2, LARGE, deaths + 1);
        ASSERT_OK(ringbuf_ack(queue, &a));
        ASSERT_OK(ringbuf_ack(queue, &b));
        get(3, 5);
        assert_empty();
    }
}

static void test_leases_of_a_killed_process_reach_a_waiting_lease_by_itself(void)
{
    put(1, 100);
    put(2, LARGE);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(lease_two_and_die, NULL));
    ringbuf_message message = {0};
    ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
    assert_message(&message, 1, 100, 2);
    ASSERT_OK(ringbuf_ack(queue, &message));
    get(2, LARGE);
    assert_empty();
}

static void test_a_queue_stays_for_a_message_that_was_returned_to_the_arena(void)
{
    recreate_without_cleanup();
    put(1, 100);
    put(2, LARGE);
    lease(1, 100);
    lease(2, LARGE);
    ringbuf_free(queue); /* which gives them back; the ring is empty */
    uint64_t removed = 1;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    queue = open_again();
    assert_size(2);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(lease_two_and_die, NULL));
    ringbuf_free(queue);
    queue = open_again();
    ringbuf_message message = lease_from(queue, 1, 100, 3);
    ASSERT_OK(ringbuf_ack(queue, &message));
    get(2, LARGE);
    assert_empty();
}

/* ---- keep and release ---- */

static void test_a_kept_message_is_done_and_its_bytes_stay_the_keeper_s_until_it_releases_them(void)
{
    static const size_t sizes[] = {0, 100, LARGE};
    for (int i = 0; i < 3; i++) {
        uint64_t gets = stats_of(queue).gets;
        put(1, sizes[i]);
        ringbuf_message message = keep(1, sizes[i]);
        ringbuf_stats stats = stats_of(queue);
        TEST_ASSERT_EQUAL_UINT64(1, stats.held);
        TEST_ASSERT_EQUAL_UINT64(0, stats.leased + stats.items + stats.used_bytes);
        TEST_ASSERT_EQUAL_UINT64(gets + 1, stats.gets);
        assert_healthy(1);
        for (uint64_t n = 0; n < 2000; n++) {
            put(n, n % 50 ? 100 : LARGE);
            get(n, n % 50 ? 100 : LARGE);
        }
        assert_message(&message, 1, sizes[i], 1);
        write_number((void *)(uintptr_t)message.data, sizes[i], 2); /* to read and write */
        assert_message(&message, 2, sizes[i], 1);
        ASSERT_OK(ringbuf_release(queue, &message));
        assert_empty();
    }
}

static void test_a_kept_message_cannot_be_ended_otherwise(void)
{
    put(1, LARGE);
    ringbuf_message message = keep(1, LARGE);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &message));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).gets);
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).held);
    ASSERT_OK(ringbuf_release(queue, &message));
    assert_empty();
}

static void test_a_large_message_that_was_taken_can_be_kept_too(void)
{
    put(1, LARGE);
    put(2, 100);
    ringbuf_message large = take(1, LARGE, 1), small = take(2, 100, 1);
    ASSERT_OK(ringbuf_keep(queue, &large));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &small)); /* it lies in the ring */
    ASSERT_OK(ringbuf_ack(queue, &small));
    ASSERT_OK(ringbuf_release(queue, &large));
    assert_empty();
}

static void test_kept_bytes_stay_through_close_and_free_and_the_last_release_leaves_the_queue(void)
{
    for (int freed = 0; freed <= 1; freed++) {
        char path[512];
        recreate_without_cleanup();
        snprintf(path, sizeof path, "%s", ringbuf_path(queue));
        put(1, LARGE);
        put(2, 100);
        ringbuf_message a = keep(1, LARGE), b = keep(2, 100);
        ringbuf *closed = queue;
        if (freed) ringbuf_free(queue);
        else ringbuf_close(queue);
        queue = open_again(); /* it is still there */
        TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).held);
        TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).participants);
        assert_healthy(2);
        put(3, ARENA / 2);
        get(3, ARENA / 2);
        assert_message(&a, 1, LARGE, 1);
        ASSERT_OK(ringbuf_release(closed, &a));
        assert_message(&b, 2, 100, 1);
        TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).held);
        ringbuf_free(queue);
        queue = NULL;
        TEST_ASSERT_TRUE(exists(path));
        assert_message(&b, 2, 100, 1);
        ASSERT_OK(ringbuf_release(closed, &b));
        TEST_ASSERT_FALSE(exists(path));
        TEST_ASSERT_FALSE(is_mapped(b.data));
        if (!freed) ringbuf_free(closed);
    }
}

static void test_closing_with_something_kept_gives_leases_back_at_once(void)
{
    ringbuf *other = open_again();
    put(1, LARGE);
    put(2, 100);
    put(3, LARGE);
    ringbuf_message kept = lease_from(other, 1, LARGE, 1), leased = lease_from(other, 2, 100, 1);
    ASSERT_OK(ringbuf_keep(other, &kept));
    ringbuf_message taken = {0};
    ASSERT_OK(ringbuf_take(other, &taken, NULL, 0, 0));
    ringbuf_close(other);
    ringbuf_message again = lease_from(queue, 2, 100, 2);
    ASSERT_OK(ringbuf_ack(queue, &again));
    again = lease_from(queue, 3, LARGE, 2);
    ASSERT_OK(ringbuf_ack(queue, &again));
    assert_message(&kept, 1, LARGE, 1);
    assert_message(&leased, 2, 100, 1); /* still mapped, though it could have been overwritten */
    ASSERT_OK(ringbuf_release(other, &kept));
    assert_empty();
    ringbuf_free(other);
}

static int release_the_parent_s_message(void *context)
{
    const ringbuf_message *message = context;
    if (!tells_number(message->data, LARGE, 1)) return 1;
    if (ringbuf_release(queue, message) != RINGBUF_OK) return 2;
    if (ringbuf_put(queue, "from the child", 15, 0) != RINGBUF_OK) return 3;
    ringbuf_free(queue);
    return 0;
}

static int close_and_release_the_parent_s_message(void *context)
{
    const ringbuf_message *message = context;
    ringbuf_free(queue);
    if (!tells_number(message->data, LARGE, 1)) return 1;
    if (ringbuf_release(queue, message) != RINGBUF_OK) return 2;
    return is_mapped(message->data) ? 3 : 0;
}

static int inherit_and_exit(void *context)
{
    const ringbuf_message *message = context;
    if (!tells_number(message->data, LARGE, 1)) return 1;
    exit(0);
}

static void test_a_child_s_release_says_only_that_the_child_does_not_use_it_any_more(void)
{
    put(1, LARGE);
    ringbuf_message message = keep(1, LARGE);
    TEST_ASSERT_EQUAL_INT(0, run_child(release_the_parent_s_message, &message));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).held);
    size_t size;
    ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_INT(0, run_child(close_and_release_the_parent_s_message, &message));
    TEST_ASSERT_EQUAL_INT(0, run_child(inherit_and_exit, &message));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).held);
    put(2, ARENA / 2);
    get(2, ARENA / 2);
    assert_message(&message, 1, LARGE, 1);
    ASSERT_OK(ringbuf_release(queue, &message));
    assert_empty();
}

static void test_a_child_of_one_who_has_closed_sees_what_is_kept_and_releases_it_for_itself(void)
{
    put(1, LARGE);
    ringbuf_message message = keep(1, LARGE);
    ringbuf *closed = queue;
    ringbuf_close(queue);
    TEST_ASSERT_EQUAL_INT(0, run_child(close_and_release_the_parent_s_message, &message));
    TEST_ASSERT_EQUAL_INT(0, run_child(inherit_and_exit, &message));
    assert_message(&message, 1, LARGE, 1);
    queue = open_again();
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).held);
    ASSERT_OK(ringbuf_release(closed, &message));
    ringbuf_free(closed);
    assert_empty();
}

static int keep_and_die(void *context)
{
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    (void)context;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &message) != RINGBUF_OK) return 2;
    if (context) ringbuf_close(rb);
    die();
}

static void test_what_a_killed_process_had_kept_is_released_and_delivered_to_nobody_also_if_it_had_closed(void)
{
    for (int closed = 0; closed <= 1; closed++) {
        uint64_t recovered = 0;
        put(1, LARGE);
        TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(keep_and_die, closed ? &recovered : NULL));
        ASSERT_OK(ringbuf_recover(queue, &recovered));
        TEST_ASSERT_EQUAL_UINT64(1, recovered);
        assert_empty();
        TEST_ASSERT_EQUAL_UINT64(stats_of(queue).puts, stats_of(queue).gets);
    }
}

static void test_a_poll_finds_the_room_of_the_dead_too_if_it_comes_often_enough(void)
{
    put(1, ARENA);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(keep_and_die, NULL));
    ringbuf_status status;
    while ((status = try_to_put(queue, 2, LARGE, 0)) == RINGBUF_E_ARENA_FULL) nap_ms(1);
    ASSERT_OK(status);
    get(2, LARGE);
    assert_empty();
}

struct releaser {
    ringbuf *rb;
    ringbuf_message messages[20];
    uint64_t wrong;
    pthread_t thread;
};

static void *release_all(void *context)
{
    struct releaser *me = context;
    for (int i = 0; i < 20; i++) {
        me->wrong += !tells_number(me->messages[i].data, me->messages[i].size, 7);
        me->wrong += ringbuf_release(me->rb, &me->messages[i]) != RINGBUF_OK;
    }
    return NULL;
}

static void test_threads_may_release_while_another_closes_and_frees_the_handle(void)
{
    enum { THREADS = 4 };
    for (int round = 0; round < 30; round++) {
        struct releaser releasers[THREADS];
        ringbuf *other = open_again();
        for (int t = 0; t < THREADS; t++) {
            releasers[t] = (struct releaser){.rb = other};
            for (int i = 0; i < 20; i++) {
                put(7, i % 5 ? 50 : RING_LIMIT + 1);
                ASSERT_OK(ringbuf_lease(other, &releasers[t].messages[i], NULL, 0, 0));
                ASSERT_OK(ringbuf_keep(other, &releasers[t].messages[i]));
            }
        }
        for (int t = 0; t < THREADS; t++)
            TEST_ASSERT_EQUAL_INT(0, pthread_create(&releasers[t].thread, NULL, release_all, &releasers[t]));
        if (round % 2) ringbuf_close(other);
        ringbuf_free(other);
        for (int t = 0; t < THREADS; t++) {
            pthread_join(releasers[t].thread, NULL);
            TEST_ASSERT_EQUAL_UINT64(0, releasers[t].wrong);
        }
        TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
        assert_empty();
    }
}

/* ---- pins ---- */

static void test_a_pinned_handle_s_memory_stays_mapped_through_close_until_the_last_unpin(void)
{
    ringbuf *other = open_again();
    put(1, 100);
    put(2, LARGE);
    ringbuf_message small = {0}; /* this one lies in the ring */
    ASSERT_OK(ringbuf_take(other, &small, NULL, 0, 0));
    ringbuf_message large = lease_from(other, 2, LARGE, 1);
    ASSERT_OK(ringbuf_pin(other));
    ASSERT_OK(ringbuf_pin(other));
    ringbuf_close(other);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_pin(other));
    assert_size(2); /* given back all the same */
    assert_message(&large, 2, LARGE, 1);
    assert_message(&small, 1, 100, 1);
    ringbuf_unpin(other);
    assert_message(&large, 2, LARGE, 1);
    assert_message(&small, 1, 100, 1);
    ringbuf_unpin(other);
    TEST_ASSERT_FALSE(is_mapped(large.data));
    TEST_ASSERT_FALSE(is_mapped(small.data));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
    ringbuf_free(other);
    get(1, 100);
    get(2, LARGE);
    assert_empty();
}

static void test_the_last_unpin_after_a_free_leaves_the_queue(void)
{
    recreate_without_cleanup();
    char path[512];
    snprintf(path, sizeof path, "%s", ringbuf_path(queue));
    ASSERT_OK(ringbuf_pin(queue));
    ringbuf *pinned = queue;
    ringbuf_free(queue);
    queue = NULL;
    TEST_ASSERT_TRUE(exists(path));
    ringbuf_unpin(pinned);
    TEST_ASSERT_FALSE(exists(path));
    ringbuf_unpin(NULL);
}

static void test_pins_without_a_close_change_nothing(void)
{
    ASSERT_OK(ringbuf_pin(queue));
    put(1, LARGE);
    ringbuf_unpin(queue);
    get(1, LARGE);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_pin(NULL));
    assert_empty();
}

/* ---- leaving in a hurry ---- */

struct leaver {
    stage left;
    stage may_end;
    bool dies;
    uint32_t flags;
};

static int hold_everything_and_leave(void *context)
{
    struct leaver *shared = context;
    ringbuf_message leased = {0}, kept = {0};
    ringbuf_reservation reservation;
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_lease(rb, &kept, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &kept) != RINGBUF_OK) return 2;
    if (ringbuf_lease(rb, &leased, NULL, 0, 0) != RINGBUF_OK) return 3;
    if (ringbuf_reserve(rb, &reservation, LARGE, 0) != RINGBUF_OK) return 4;
    ringbuf_leave_all();
    if (ringbuf_put(rb, "x", 1, 0) != RINGBUF_E_CLOSED) return 5;
    if (ringbuf_commit(rb, &reservation, 1, 0) != RINGBUF_E_CLOSED) return 6;
    if (!tells_number(kept.data, LARGE, 1)) return 7;
    memset(reservation.data, 1, LARGE);
    ringbuf_leave_all(); /* twice is once */
    atomic_fetch_add(&shared->left, 1);
    wait_for_stage(&shared->may_end, 1);
    if (shared->dies) die();
    if (!tells_number(kept.data, LARGE, 1)) return 8;
    if (ringbuf_release(rb, &kept) != RINGBUF_OK || ringbuf_abort(rb, &reservation) != RINGBUF_OK) return 9;
    if (is_mapped(kept.data)) return 10;
    ringbuf_free(rb);
    return 0;
}

static void test_leaving_all_queues_gives_back_what_was_leased_and_keeps_what_was_kept_to_the_end(void)
{
    struct leaver *shared = share_memory(sizeof *shared);
    for (int dies = 0; dies <= 1; dies++) {
        uint64_t recovered = 0;
        *shared = (struct leaver){.dies = dies};
        put(1, LARGE);
        put(2, LARGE);
        pid_t child = start_child(hold_everything_and_leave, shared);
        wait_for_stage(&shared->left, 1);
        assert_size(1);
        ringbuf_message message = lease_from(queue, 2, LARGE, 2); /* at once, although it lives */
        put(3, ARENA / 2);
        get(3, ARENA / 2);
        atomic_fetch_add(&shared->may_end, 1);
        TEST_ASSERT_EQUAL_INT(dies ? -SIGKILL : 0, end_of(child));
        ASSERT_OK(ringbuf_recover(queue, &recovered));
        TEST_ASSERT_EQUAL_UINT64(dies, recovered);
        TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
        assert_message(&message, 2, LARGE, 2);
        ASSERT_OK(ringbuf_ack(queue, &message));
        assert_empty();
    }
    munmap(shared, sizeof *shared);
}

static int keep_one_of_two_and_leave(void *context)
{
    struct leaver *shared = context;
    ringbuf_message kept = {0};
    ringbuf *rb = NULL;
    ringbuf_options options = defaults();
    options.flags = shared->flags;
    if (ringbuf_create(&rb, "another", &options) != RINGBUF_OK) return 1;
    if (try_to_put(rb, 1, LARGE, 0) != RINGBUF_OK || try_to_put(rb, 2, 100, 0) != RINGBUF_OK) return 2;
    if (ringbuf_lease(rb, &kept, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &kept) != RINGBUF_OK) return 3;
    ringbuf_leave_all();
    atomic_fetch_add(&shared->left, 1);
    wait_for_stage(&shared->may_end, 1);
    return tells_number(kept.data, LARGE, 1) ? 0 : 4;
}

static void test_a_queue_whose_last_user_has_left_with_something_kept_is_open_to_the_next_one_at_once(void)
{
    struct leaver *shared = share_memory(sizeof *shared);
    static const uint32_t flags[] = {0, RINGBUF_AUTO_CLEANUP, RINGBUF_PERSISTENT};
    for (int i = 0; i < 3; i++) {
        ringbuf *next = NULL;
        ringbuf_options options = defaults();
        *shared = (struct leaver){.flags = flags[i]};
        pid_t child = start_child(keep_one_of_two_and_leave, shared);
        wait_for_stage(&shared->left, 1);
        ringbuf_status status = ringbuf_create(&next, "another", &options); /* with auto-cleanup it is a new one */
        ringbuf_status removed = ringbuf_unlink_name("another", NULL);
        uint64_t items = 0;
        if (status == RINGBUF_OK) ringbuf_size(next, &items);
        atomic_fetch_add(&shared->may_end, 1);
        TEST_ASSERT_EQUAL_INT(0, end_of(child));
        ASSERT_OK(status);
        ASSERT_OK(removed);
        TEST_ASSERT_EQUAL_UINT64(flags[i] != RINGBUF_AUTO_CLEANUP, items);
        ringbuf_free(next);
    }
    munmap(shared, sizeof *shared);
}

static int keep_and_leave_by_exit(void *context)
{
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    (void)context;
    if (ringbuf_create(&rb, "another", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_put(rb, sent, LARGE, 0) != RINGBUF_OK) return 2;
    if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &message) != RINGBUF_OK) return 3;
    if (context) ringbuf_free(rb);
    exit(0);
}

static void test_a_process_that_exits_with_something_kept_leaves_no_queue_behind(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(keep_and_leave_by_exit, NULL)); /* tearDown looks */
    TEST_ASSERT_EQUAL_INT(1, directory_entries(suite_directory, (char[1]){0}, 0));
    TEST_ASSERT_EQUAL_INT(0, run_child(keep_and_leave_by_exit, queue));
    TEST_ASSERT_EQUAL_INT(1, directory_entries(suite_directory, (char[1]){0}, 0));
}

/* ---- tasks ---- */

static void test_a_task_is_unfinished_from_its_put_through_leases_and_returns_until_it_is_marked(void)
{
    static const size_t sizes[] = {100, LARGE};
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(ringbuf_join(queue, 0));
        put(1, sizes[i]);
        assert_unfinished(1);
        ringbuf_message message = lease(1, sizes[i]);
        assert_unfinished(1);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, 0));
        ASSERT_OK(ringbuf_nack(queue, &message));
        assert_unfinished(1);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, in_ms(10)));
        message = lease_from(queue, 1, sizes[i], 2);
        if (i == 0) ASSERT_OK(ringbuf_keep(queue, &message));
        else ASSERT_OK(ringbuf_ack(queue, &message));
        assert_unfinished(1);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, 0));
        ASSERT_OK(ringbuf_task_done(queue));
        ASSERT_OK(ringbuf_join(queue, 0));
        ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
        if (i == 0) ASSERT_OK(ringbuf_release(queue, &message));
        assert_unfinished(0);
        assert_empty();
    }
}

static void test_a_leased_task_can_be_marked_before_it_is_ended(void)
{
    put(1, LARGE);
    ringbuf_message message = lease(1, LARGE);
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
    ASSERT_OK(ringbuf_join(queue, 0));
    ASSERT_OK(ringbuf_ack(queue, &message));
    ASSERT_OK(ringbuf_join(queue, 0));
    assert_unfinished(0);
}

static void test_a_killed_one_s_leases_stay_unfinished_and_what_it_had_kept_is_forgiven(void)
{
    uint64_t recovered;
    put(1, 100);
    put(2, LARGE);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(lease_two_and_die, NULL));
    assert_unfinished(2);
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    assert_unfinished(2);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(keep_and_die, NULL));
    assert_unfinished(2);
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    assert_unfinished(1);
    get(2, LARGE);
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_OK(ringbuf_join(queue, 0));
    assert_empty();
}

/* ---- shutdown ---- */

static void test_an_immediate_shutdown_discards_what_waits_wherever_it_lies(void)
{
    ringbuf *other = open_again();
    put(1, 100);
    put(2, LARGE);
    put(3, 100);
    put(4, LARGE);
    put(5, LARGE);
    ringbuf_message a = lease(1, 100), b = lease(2, LARGE), c = lease_from(other, 3, 100, 1), d = lease_from(other, 4, LARGE, 1);
    ASSERT_OK(ringbuf_nack(queue, &a)); /* it waits in the arena now, 5 in ring and arena */
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    TEST_ASSERT_EQUAL_UINT64(3, stats_of(queue).leased);
    assert_size(0);
    assert_healthy(3);
    TEST_ASSERT_EQUAL_UINT64(1 + 2 * LARGE_BLOCKS, used_blocks());
    assert_unfinished(3); /* what is at work is not discarded */
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, 0));
    ASSERT_OK(ringbuf_ack(queue, &b));
    ASSERT_OK(ringbuf_nack(other, &c)); /* nobody can get it any more */
    ASSERT_OK(ringbuf_keep(other, &d));
    TEST_ASSERT_EQUAL_UINT64(LARGE_BLOCKS, used_blocks());
    ASSERT_OK(ringbuf_release(other, &d));
    assert_arena_is_free();
    assert_unfinished(2);
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_OK(ringbuf_join(queue, RINGBUF_FOREVER));
    ringbuf_free(other);
}

static void test_an_immediate_shutdown_leaves_an_arena_in_which_nobody_is_at_work_empty(void)
{
    for (uint64_t i = 0; i < 30; i++) put(i, i % 3 ? 100 : LARGE);
    ringbuf_message first = lease(0, LARGE), second = lease(1, 100);
    ASSERT_OK(ringbuf_nack(queue, &second));
    ASSERT_OK(ringbuf_nack(queue, &first));
    TEST_ASSERT_TRUE(stats_of(queue).arena_used_bytes > 0);
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    assert_size(0);
    assert_arena_is_free();
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).used_bytes);
    ASSERT_OK(ringbuf_join(queue, RINGBUF_FOREVER));
}

static void test_what_is_left_in_the_arena_when_somebody_closes_after_an_immediate_shutdown_goes_with_the_queue(void)
{
    recreate_without_cleanup();
    char path[512];
    snprintf(path, sizeof path, "%s", ringbuf_path(queue));
    ringbuf *other = open_again();
    put(1, LARGE);
    put(2, 100);
    lease_from(other, 1, LARGE, 1);
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    ringbuf_free(other);
    assert_size(0);
    assert_healthy(stats_of(queue).arena_used_bytes != 0);
    ringbuf_free(queue);
    queue = NULL;
    TEST_ASSERT_FALSE(exists(path));
}

static void test_a_draining_shutdown_delivers_large_and_returned_messages(void)
{
    ringbuf_message message = {0};
    put(1, LARGE);
    put(2, 100);
    put(3, LARGE);
    ringbuf_message first = lease(1, LARGE), second = lease(2, 100);
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    ASSERT_OK(ringbuf_nack(queue, &first));
    get(1, LARGE);
    get(3, LARGE);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
    ASSERT_OK(ringbuf_nack(queue, &second));
    get(2, 100);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
    assert_arena_is_free();
}

/* ---- arguments, and closed handles ---- */

static void test_arguments_that_make_no_sense_are_invalid(void)
{
    ringbuf_message message = {0};
    ringbuf_reservation reservation = {0};
    ringbuf_findings findings;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_reserve(NULL, &reservation, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_reserve(queue, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(NULL, &reservation, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &reservation, 0, 0)); /* never made */
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_abort(NULL, &reservation));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_abort(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_lease(NULL, &message, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_lease(queue, NULL, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(NULL, &message, got, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, NULL, got, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, NULL, 0, 1));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &message, got, 0, 0)); /* never taken */
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(NULL, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(NULL, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_release(queue, &message)); /* of the ring */
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_check(NULL, &findings));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_check(queue, NULL));
    assert_empty();
}

static void test_positions_that_lead_nowhere_are_invalid(void)
{
    put(1, LARGE);
    ringbuf_message good = lease(1, LARGE);
    const uint64_t in_arena = UINT64_C(1) << 63;
    const uint64_t positions[] = {0, 5, UINT64_MAX, in_arena | (ARENA / BLOCK), in_arena | UINT64_C(1) << 40};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        ringbuf_message bad = good;
        bad.position = positions[i];
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &bad));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &bad));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_keep(queue, &bad));
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_copy(queue, &bad, got, 0, 1));
        ringbuf_reservation reservation = {.data = sent, .size = 10, .position = positions[i], .generation = good.generation};
        ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_commit(queue, &reservation, 10, 0));
    }
    ASSERT_OK(ringbuf_ack(queue, &good));
    assert_empty();
}

static void test_every_call_on_a_closed_handle_says_so(void)
{
    ringbuf_message message = {0};
    ringbuf_reservation reservation = {0};
    ringbuf_findings findings;
    ringbuf_part part = {sent, LARGE};
    ringbuf_close(queue);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_put(queue, sent, LARGE, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_put_parts(queue, &part, 1, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_reserve(queue, &reservation, LARGE, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_commit(queue, &reservation, 0, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_copy(queue, &message, got, 0, 0));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_keep(queue, &message));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_pin(queue));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_check(queue, &findings));
}

/* ---- looking in ---- */

static void test_statistics_tell_what_is_in_the_arena(void)
{
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(ARENA, stats.arena_bytes);
    TEST_ASSERT_EQUAL_UINT64(ARENA, stats.arena_largest_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes + stats.arena_backed_bytes);
    ringbuf_reservation reservation = reserve(ARENA / 4);
    put(1, ARENA / 4);
    put(2, ARENA / 4);
    put(3, 100);
    ringbuf_message leased = lease(1, ARENA / 4), kept = keep(2, ARENA / 4), small = lease(3, 100);
    put(4, ARENA / 8);
    stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(1, stats.reserved);
    TEST_ASSERT_EQUAL_UINT64(1, stats.held);
    TEST_ASSERT_EQUAL_UINT64(2, stats.leased);
    TEST_ASSERT_EQUAL_UINT64(1, stats.items);
    TEST_ASSERT_EQUAL_UINT64(ARENA / 4 * 3 + ARENA / 8 + BLOCK, stats.arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(stats.arena_used_bytes, stats.arena_backed_bytes);
    TEST_ASSERT_EQUAL_UINT64(ARENA - stats.arena_used_bytes, stats.arena_largest_bytes);
    TEST_ASSERT_EQUAL_UINT64(4, stats.unfinished);
    assert_healthy(5);
    ASSERT_OK(ringbuf_abort(queue, &reservation));
    TEST_ASSERT_EQUAL_UINT64(ARENA / 4, stats_of(queue).arena_largest_bytes);
    ASSERT_OK(ringbuf_ack(queue, &leased));
    ASSERT_OK(ringbuf_ack(queue, &small));
    ASSERT_OK(ringbuf_release(queue, &kept));
    get(4, ARENA / 8);
    TEST_ASSERT_EQUAL_UINT64(stats.arena_backed_bytes, stats_of(queue).arena_backed_bytes); /* for the next ones, for a while */
    assert_empty();
}

static void test_a_check_finds_what_is_damaged(void)
{
    ringbuf_findings findings;
    put(1, LARGE);
    put(2, LARGE);
    ringbuf_message message = lease(1, LARGE);
    uint64_t first = message.position & ~(UINT64_C(1) << 63);
    rbi_atomic64 *word = &queue->arena.table[first + 1];
    uint64_t good = rbi_load_total64(word);
    rbi_store_total64(word, 0);
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(1, findings.broken_runs);
    TEST_ASSERT_EQUAL_UINT64(LARGE_BLOCKS - 2, findings.orphaned_blocks);
    rbi_store_total64(word, good);
    word = &queue->arena.table[first];
    good = rbi_load_total64(word);
    rbi_store_total64(word, (good & ~UINT64_C(0xfff0)) | 9 << 4); /* a number that nobody has */
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(1, findings.orphaned_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.broken_runs + findings.orphaned_blocks + findings.dangling_messages);
    rbi_store_total64(word, good);
    ASSERT_OK(ringbuf_ack(queue, &message));
    word = &queue->arena.table[LARGE_BLOCKS]; /* of the second message */
    good = rbi_load_total64(word);
    rbi_store_total64(word, 0);
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(1, findings.dangling_messages);
    rbi_store_total64(word, good);
    assert_healthy(1);
    get(2, LARGE);
    assert_empty();
}

static int reserve_lease_keep_and_wait(void *context)
{
    struct other_process *shared = context;
    ringbuf_message leased = {0}, kept = {0};
    ringbuf_reservation reservation;
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_lease(rb, &leased, NULL, 0, 0) != RINGBUF_OK) return 2;
    if (ringbuf_lease(rb, &kept, NULL, 0, 0) != RINGBUF_OK || ringbuf_keep(rb, &kept) != RINGBUF_OK) return 3;
    if (ringbuf_reserve(rb, &reservation, LARGE, 0) != RINGBUF_OK) return 4;
    atomic_fetch_add(&shared->ready, 1);
    sleep_for_ever();
}

static void test_a_check_holds_the_living_for_alive_and_the_dead_for_dead(void)
{
    struct other_process *shared = share_memory(sizeof *shared);
    ringbuf_findings findings;
    uint64_t recovered;
    put(1, LARGE);
    put(2, 100);
    pid_t child = start_child(reserve_lease_keep_and_wait, shared);
    wait_for_stage(&shared->ready, 1);
    assert_healthy(3);
    stop_child(child);
    assert_healthy(3);
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(0, recovered);
    kill_child(child);
    ASSERT_OK(ringbuf_check(queue, &findings));
    TEST_ASSERT_EQUAL_UINT64(3, findings.runs);
    TEST_ASSERT_EQUAL_UINT64(3, findings.orphaned_runs);
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(1, recovered);
    assert_healthy(1);
    ringbuf_message message = lease_from(queue, 1, LARGE, 2);
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
    munmap(shared, sizeof *shared);
}

/* ---- memory that runs out, and memory that is given back ---- */

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

/** Give back all memory that is not in use, at once. */
static void trim(void) { rbi_segment_trim(queue, 0, UINT64_MAX); }

static uint64_t free_file_system_blocks(void)
{
    struct statvfs facts;
    TEST_ASSERT_EQUAL_INT(0, statvfs(small_file_system, &facts));
    return facts.f_bavail * facts.f_bsize / BLOCK;
}

/** Leave only so many blocks of the file system free. */
static void fill_file_system_but(uint64_t blocks)
{
    char filler[160];
    snprintf(filler, sizeof filler, "%s/filler", small_file_system);
    int fd = open(filler, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    TEST_ASSERT_EQUAL_INT(0, posix_fallocate(fd, 0, (off_t)((free_file_system_blocks() - blocks) * BLOCK)));
    close(fd);
    TEST_ASSERT_EQUAL_UINT64(blocks, free_file_system_blocks());
}

static void remove_filler(void)
{
    char filler[160];
    snprintf(filler, sizeof filler, "%s/filler", small_file_system);
    TEST_ASSERT_EQUAL_INT(0, unlink(filler));
}

static void leave_small_file_system(void)
{
    char names[256];
    ringbuf_free(queue);
    queue = NULL;
    TEST_ASSERT_EQUAL_INT(0, directory_entries(small_file_system, names, sizeof names));
    unmount_small_file_system();
}

static void test_a_full_file_system_is_no_space_at_put_and_reserve_and_loses_no_message(void)
{
    ringbuf_reservation reservation;
    recreate_on_small_file_system(2048);
    put(0, 10); /* the ring has its first pages */
    get(0, 10);
    uint64_t puts = 0;
    fill_file_system_but(70);
    ringbuf_status status;
    while ((status = try_to_put(queue, puts, LARGE, 0)) == RINGBUF_OK) puts++;
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, status);
    TEST_ASSERT_EQUAL_UINT64(2, puts);
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, try_to_put(queue, puts, LARGE, in_ms(1000)));
    ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_reserve(queue, &reservation, LARGE, in_ms(1000)));
    assert_size(puts);
    assert_healthy(puts);
    for (uint64_t i = 0; i < puts; i++) get(i, LARGE);
    assert_empty();
    put(7, LARGE); /* in memory that the others had */
    get(7, LARGE);
    remove_filler();
    put(8, MIB);
    get(8, MIB);
    assert_empty();
    leave_small_file_system();
}

static void test_no_page_for_the_arena_s_table_is_no_space_and_can_be_tried_again(void)
{
    ringbuf_reservation reservation;
    for (uint64_t blocks = 0; blocks <= 3; blocks++) {
        recreate_on_small_file_system(1024);
        put(0, 10);
        get(0, 10);
        fill_file_system_but(blocks);
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, try_to_put(queue, 1, LARGE, in_ms(1000)));
        ASSERT_STATUS(RINGBUF_E_NO_SPACE, ringbuf_reserve(queue, &reservation, LARGE, 0));
        assert_empty();
        put(2, 10);
        ringbuf_message message = lease(2, 10);
        TEST_ASSERT_EQUAL_UINT32(0, message.in_arena); /* without memory for a copy it stays in the ring */
        ASSERT_OK(ringbuf_ack(queue, &message));
        remove_filler();
        put(3, LARGE);
        put(4, 10);
        message = lease(3, LARGE);
        ASSERT_OK(ringbuf_ack(queue, &message));
        message = lease(4, 10);
        TEST_ASSERT_EQUAL_UINT32(1, message.in_arena);
        ASSERT_OK(ringbuf_ack(queue, &message));
        assert_empty();
        leave_small_file_system();
    }
}

static void test_where_the_file_system_is_full_memory_that_is_free_elsewhere_in_the_arena_is_used(void)
{
    enum { SHORTER = 20, LONGER = 21 }; /* blocks */
    recreate_on_small_file_system(2048);
    put(1, SHORTER * BLOCK);
    put(2, SHORTER * BLOCK);
    ringbuf_reservation tables = reserve(ARENA / 8); /* so that only blocks are missing later */
    ASSERT_OK(ringbuf_abort(queue, &tables));
    get(1, SHORTER * BLOCK);
    get(2, SHORTER * BLOCK);
    assert_empty();
    trim();
    put(1, SHORTER * BLOCK);
    put(2, SHORTER * BLOCK);
    fill_file_system_but(LONGER - SHORTER);
    get(1, SHORTER * BLOCK);
    put(3, LONGER * BLOCK); /* does not fit where 1 was; but 1's memory is what it needs */
    get(2, SHORTER * BLOCK);
    get(3, LONGER * BLOCK);
    assert_empty();
    remove_filler();
    leave_small_file_system();
}

static uint64_t file_blocks(void)
{
    struct stat facts;
    TEST_ASSERT_EQUAL_INT(0, stat(ringbuf_path(queue), &facts));
    return (uint64_t)facts.st_blocks * 512 / BLOCK;
}

static void test_memory_that_was_not_used_for_a_while_goes_back_to_the_system_and_what_is_in_use_stays(void)
{
    size_t size;
    put(1, LARGE);
    put(2, MIB);
    put(3, MIB);
    put(4, 100);
    ringbuf_message large = lease(1, LARGE);
    get(2, MIB);
    ringbuf_message kept = keep(3, MIB), small = lease(4, 100);
    uint64_t in_use = stats_of(queue).arena_used_bytes, before = file_blocks();
    TEST_ASSERT_EQUAL_UINT64(in_use + MIB, stats_of(queue).arena_backed_bytes);
    while (stats_of(queue).arena_backed_bytes != in_use)
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(queue, &size, got, sizeof got, in_ms(50)));
    TEST_ASSERT_EQUAL_UINT64(before - MIB / BLOCK, file_blocks());
    assert_healthy(3);
    assert_message(&large, 1, LARGE, 1);
    assert_message(&kept, 3, MIB, 1);
    assert_message(&small, 4, 100, 1);
    put(5, MIB + MIB / 2);
    get(5, MIB + MIB / 2);
    ASSERT_OK(ringbuf_ack(queue, &large));
    ASSERT_OK(ringbuf_release(queue, &kept));
    ASSERT_OK(ringbuf_ack(queue, &small));
    assert_empty();
}

static void test_giving_memory_back_at_once_leaves_every_message_as_it_was(void)
{
    uint64_t seed = 1, first = 0, next = 0, sizes[64];
    for (int i = 0; i < 400; i++) {
        uint64_t size = RING_LIMIT + 1 + random_below(&seed, 40 * BLOCK);
        if (next - first < 16 && try_to_put(queue, next, size, 0) == RINGBUF_OK) sizes[next++ % 64] = size;
        if (random_below(&seed, 2) && first < next) {
            get(first, sizes[first % 64]);
            first++;
        }
        trim();
        TEST_ASSERT_EQUAL_UINT64(stats_of(queue).arena_used_bytes, stats_of(queue).arena_backed_bytes);
    }
    while (first < next) {
        get(first, sizes[first % 64]);
        first++;
    }
    assert_empty();
}

/* ---- processes ---- */

enum { FLOW = SANITIZED ? 400 : 2000 };

static size_t flow_size(uint64_t number)
{
    uint64_t seed = number;
    return 8 + (size_t)random_below(&seed, random_below(&seed, 2) ? 200 : random_below(&seed, 8) ? 10 * BLOCK : MIB);
}

static int put_flow(void *context)
{
    ringbuf *rb = NULL;
    uint64_t begin = (uint64_t)(uintptr_t)context;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    for (uint64_t number = begin; number < 2 * FLOW; number += 2) {
        size_t size = flow_size(number);
        ringbuf_reservation reservation;
        if (number % 3) {
            if (try_to_put(rb, number, size, RINGBUF_FOREVER) != RINGBUF_OK) return 2;
        } else {
            if (ringbuf_reserve(rb, &reservation, size, RINGBUF_FOREVER) != RINGBUF_OK) return 3;
            write_number(reservation.data, size, number);
            if (ringbuf_commit(rb, &reservation, size, RINGBUF_FOREVER) != RINGBUF_OK) return 4;
        }
    }
    ringbuf_free(rb);
    return 0;
}

static void test_two_processes_messages_arrive_whole_once_and_in_each_one_s_order(void)
{
    pid_t children[2];
    uint64_t expected[2] = {0, 1}, seed = 5;
    ringbuf_message kept[8];
    int held = 0;
    for (uintptr_t i = 0; i < 2; i++) children[i] = start_child(put_flow, (void *)i); /* NOLINT: a number on its way */
    while (expected[0] < 2 * FLOW || expected[1] < 2 * FLOW) {
        ringbuf_message message = {0};
        ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, RINGBUF_FOREVER));
        bool of_first = expected[0] < 2 * FLOW && message.size == flow_size(expected[0]) &&
                        tells_number(message.data, message.size, expected[0]);
        int from = of_first ? 0 : 1;
        assert_message(&message, expected[from], flow_size(expected[from]), 1);
        expected[from] += 2;
        if (message.in_arena && held < 8 && random_below(&seed, 4) == 0) {
            ASSERT_OK(ringbuf_keep(queue, &message));
            kept[held++] = message;
        } else {
            ASSERT_OK(ringbuf_ack(queue, &message));
        }
        if (held && random_below(&seed, 4) == 0) ASSERT_OK(ringbuf_release(queue, &kept[--held]));
    }
    while (held) ASSERT_OK(ringbuf_release(queue, &kept[--held]));
    for (int i = 0; i < 2; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
    assert_empty();
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_messages_of_every_size_arrive_whole_and_only_large_ones_use_the_arena);
    RUN_TEST(test_a_message_larger_than_the_arena_is_refused_at_once);
    RUN_TEST(test_without_an_arena_there_is_no_room_to_reserve);
    RUN_TEST(test_an_arena_of_larger_blocks_works_alike);
    RUN_TEST(test_small_and_large_messages_keep_their_order);
    RUN_TEST(test_random_messages_go_around_unharmed);
    RUN_TEST(test_a_large_message_is_copied_if_it_fits_and_else_read_where_it_lies);
    RUN_TEST(test_a_buffer_too_small_for_a_large_message_leaves_it_and_tells_its_size);
    RUN_TEST(test_a_message_put_in_parts_is_their_bytes_one_behind_the_other);
    RUN_TEST(test_no_parts_and_empty_parts_make_an_empty_message);
    RUN_TEST(test_parts_that_make_no_sense_are_refused_and_nothing_is_put);
    RUN_TEST(test_a_full_arena_says_so_at_the_deadline_and_not_before_and_small_messages_go_on);
    RUN_TEST(test_a_full_ring_is_a_timeout_for_a_large_message_too_which_then_uses_no_room);
    RUN_TEST(test_whoever_makes_room_wakes_who_waits_for_it);
    RUN_TEST(test_every_one_of_several_that_wait_for_room_has_it_in_turn);
    RUN_TEST(test_a_signal_ends_a_wait_for_room_and_loses_nothing);
    RUN_TEST(test_a_close_ends_a_wait_for_room_on_that_handle_only);
    RUN_TEST(test_both_shutdowns_wake_and_refuse_who_waits_for_room);
    RUN_TEST(test_a_reservation_is_nobody_s_message_until_it_is_committed);
    RUN_TEST(test_less_than_was_reserved_can_be_committed_and_more_cannot);
    RUN_TEST(test_a_small_commit_lies_in_the_ring_and_leaves_the_arena_at_once);
    RUN_TEST(test_a_reservation_of_nothing_is_one);
    RUN_TEST(test_an_aborted_reservation_leaves_nothing);
    RUN_TEST(test_a_reservation_can_be_ended_once_only);
    RUN_TEST(test_a_reservation_that_is_over_stays_over_when_its_room_is_reserved_again);
    RUN_TEST(test_a_reservation_belongs_to_its_handle);
    RUN_TEST(test_a_message_that_was_reserved_is_at_its_first_attempt_whatever_was_there_before);
    RUN_TEST(test_a_commit_that_finds_the_ring_full_can_be_made_again);
    RUN_TEST(test_a_commit_after_a_shutdown_is_refused_and_the_reservation_can_be_given_up);
    RUN_TEST(test_a_commit_after_close_says_closed_and_the_reservation_stays_writable_until_it_is_given_up);
    RUN_TEST(test_a_reservation_can_be_given_up_after_its_handle_was_freed);
    RUN_TEST(test_a_reservation_stays_the_parent_s_whatever_a_child_does_with_it);
    RUN_TEST(test_a_leased_small_message_moves_into_the_arena_and_takes_no_room_in_the_ring);
    RUN_TEST(test_a_leased_large_message_stays_where_it_lies);
    RUN_TEST(test_an_empty_message_can_be_leased);
    RUN_TEST(test_a_leased_message_is_copied_to_the_caller_s_buffer_if_it_fits);
    RUN_TEST(test_the_ring_turns_while_a_hundred_messages_are_held);
    RUN_TEST(test_a_lease_given_back_is_the_next_message_delivered_and_counts_its_attempts);
    RUN_TEST(test_leases_given_back_in_any_order_are_delivered_in_the_order_of_their_puts);
    RUN_TEST(test_of_what_was_given_back_that_in_the_ring_comes_first_then_that_in_the_arena_then_what_is_younger);
    RUN_TEST(test_a_lease_can_be_ended_once_only_and_only_by_who_has_it);
    RUN_TEST(test_a_lease_stays_in_the_ring_where_the_arena_has_no_room_or_there_is_none);
    RUN_TEST(test_a_lease_waits_for_a_message_and_times_out_without_one);
    RUN_TEST(test_any_part_of_a_taken_message_can_be_copied_and_nothing_beyond_it);
    RUN_TEST(test_closing_gives_leases_back_and_others_have_them_at_the_next_attempt);
    RUN_TEST(test_leases_of_a_killed_process_reach_others_at_the_next_attempt);
    RUN_TEST(test_leases_of_a_killed_process_reach_a_waiting_lease_by_itself);
    RUN_TEST(test_a_queue_stays_for_a_message_that_was_returned_to_the_arena);
    RUN_TEST(test_a_kept_message_is_done_and_its_bytes_stay_the_keeper_s_until_it_releases_them);
    RUN_TEST(test_a_kept_message_cannot_be_ended_otherwise);
    RUN_TEST(test_a_large_message_that_was_taken_can_be_kept_too);
    RUN_TEST(test_kept_bytes_stay_through_close_and_free_and_the_last_release_leaves_the_queue);
    RUN_TEST(test_closing_with_something_kept_gives_leases_back_at_once);
    RUN_TEST(test_a_child_s_release_says_only_that_the_child_does_not_use_it_any_more);
    RUN_TEST(test_a_child_of_one_who_has_closed_sees_what_is_kept_and_releases_it_for_itself);
    RUN_TEST(test_what_a_killed_process_had_kept_is_released_and_delivered_to_nobody_also_if_it_had_closed);
    RUN_TEST(test_a_poll_finds_the_room_of_the_dead_too_if_it_comes_often_enough);
    RUN_TEST(test_threads_may_release_while_another_closes_and_frees_the_handle);
    RUN_TEST(test_a_pinned_handle_s_memory_stays_mapped_through_close_until_the_last_unpin);
    RUN_TEST(test_the_last_unpin_after_a_free_leaves_the_queue);
    RUN_TEST(test_pins_without_a_close_change_nothing);
    RUN_TEST(test_leaving_all_queues_gives_back_what_was_leased_and_keeps_what_was_kept_to_the_end);
    RUN_TEST(test_a_queue_whose_last_user_has_left_with_something_kept_is_open_to_the_next_one_at_once);
    RUN_TEST(test_a_process_that_exits_with_something_kept_leaves_no_queue_behind);
    RUN_TEST(test_a_task_is_unfinished_from_its_put_through_leases_and_returns_until_it_is_marked);
    RUN_TEST(test_a_leased_task_can_be_marked_before_it_is_ended);
    RUN_TEST(test_a_killed_one_s_leases_stay_unfinished_and_what_it_had_kept_is_forgiven);
    RUN_TEST(test_an_immediate_shutdown_discards_what_waits_wherever_it_lies);
    RUN_TEST(test_an_immediate_shutdown_leaves_an_arena_in_which_nobody_is_at_work_empty);
    RUN_TEST(test_what_is_left_in_the_arena_when_somebody_closes_after_an_immediate_shutdown_goes_with_the_queue);
    RUN_TEST(test_a_draining_shutdown_delivers_large_and_returned_messages);
    RUN_TEST(test_arguments_that_make_no_sense_are_invalid);
    RUN_TEST(test_positions_that_lead_nowhere_are_invalid);
    RUN_TEST(test_every_call_on_a_closed_handle_says_so);
    RUN_TEST(test_statistics_tell_what_is_in_the_arena);
    RUN_TEST(test_a_check_finds_what_is_damaged);
    RUN_TEST(test_a_check_holds_the_living_for_alive_and_the_dead_for_dead);
    RUN_TEST(test_a_full_file_system_is_no_space_at_put_and_reserve_and_loses_no_message);
    RUN_TEST(test_no_page_for_the_arena_s_table_is_no_space_and_can_be_tried_again);
    RUN_TEST(test_where_the_file_system_is_full_memory_that_is_free_elsewhere_in_the_arena_is_used);
    RUN_TEST(test_memory_that_was_not_used_for_a_while_goes_back_to_the_system_and_what_is_in_use_stays);
    RUN_TEST(test_giving_memory_back_at_once_leaves_every_message_as_it_was);
    RUN_TEST(test_two_processes_messages_arrive_whole_once_and_in_each_one_s_order);
    return leave_suite_directory(UNITY_END());
}
