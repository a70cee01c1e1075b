/* test_queue.c — floor 4: the public calls, each with each outcome that ringbuf.h promises.  Messages of the ring; test_large.c has
 * those of the arena. */
#include "support.h"

#include "segment.h"

#include <pthread.h>
#include <sched.h>

enum { CAPACITY = 4096, LARGEST = CAPACITY / 2, ARENA = 64 << 12 };

static ringbuf *queue; /* the one most tests need */

static ringbuf *create_with(uint64_t max_items, uint32_t max_participants, uint64_t arena_bytes)
{
    ringbuf_options options;
    ringbuf *rb = NULL;
    ringbuf_options_init(&options);
    options.capacity_bytes = CAPACITY;
    options.arena_bytes = arena_bytes;
    options.max_items = max_items;
    options.max_participants = max_participants;
    options.label = "tester";
    options.flags = RINGBUF_AUTO_CLEANUP;
    ASSERT_OK(ringbuf_create(&rb, "queue", &options));
    return rb;
}

static ringbuf *create(void) { return create_with(0, 16, ARENA); }

static ringbuf *open_again(void)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_open(&rb, "queue", NULL));
    return rb;
}

void setUp(void) { queue = create(); }
void tearDown(void)
{
    ringbuf_free(queue);
    queue = NULL;
    assert_nothing_is_left();
}

/** Begin again with other sizes. */
static void recreate(uint64_t max_items, uint32_t max_participants)
{
    ringbuf_free(queue);
    queue = create_with(max_items, max_participants, ARENA);
}

/** Begin again without an arena: messages of up to half the ring lie in the ring. */
static void recreate_without_arena(uint64_t max_items)
{
    ringbuf_free(queue);
    queue = create_with(max_items, 16, 0);
}

static int64_t in_ms(int64_t ms) { return ringbuf_now_ns() + ms * MILLISECOND; }

static void put(ringbuf *rb, const char *text) { ASSERT_OK(ringbuf_put(rb, text, strlen(text) + 1, 0)); }

static void get(ringbuf *rb, const char *text)
{
    char buffer[LARGEST];
    size_t size = 0;
    ASSERT_OK(ringbuf_get(rb, &size, buffer, sizeof buffer, 0));
    TEST_ASSERT_EQUAL_UINT64(strlen(text) + 1, size);
    TEST_ASSERT_EQUAL_STRING(text, buffer);
}

static ringbuf_status get_until(ringbuf *rb, int64_t deadline_ns)
{
    char buffer[LARGEST];
    size_t size;
    return ringbuf_get(rb, &size, buffer, sizeof buffer, deadline_ns);
}

static ringbuf_message take(ringbuf *rb, const char *text)
{
    ringbuf_message message = {0};
    ASSERT_OK(ringbuf_take(rb, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_STRING(text, message.data);
    return message;
}

static void assert_size(uint64_t expected)
{
    uint64_t items = UINT64_MAX;
    ASSERT_OK(ringbuf_size(queue, &items));
    TEST_ASSERT_EQUAL_UINT64(expected, items);
}

static void assert_empty(void)
{
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, 0));
    assert_size(0);
}

static ringbuf_stats stats_of(ringbuf *rb)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    return stats;
}

/** Put until it is full; returns how many. */
static int fill(void)
{
    int count = 0;
    ringbuf_status status;
    while ((status = ringbuf_put(queue, "x", 2, 0)) == RINGBUF_OK) count++;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, status);
    return count;
}

/* ---- calls that wait, in threads ---- */

enum call_kind { GET, PUT, TAKE, JOIN, PUT_ALL, PUT_LARGE_ALL, RESERVE };

struct blocked_call {
    enum call_kind kind;
    ringbuf *rb;
    int64_t deadline_ns;
    ringbuf_status status;
    char buffer[LARGEST];
    pthread_t thread;
    stage ended;
};

static void *make_call(void *context)
{
    struct blocked_call *call = context;
    ringbuf_message message = {.data = NULL};
    size_t size;
    static const char much[ARENA / 4];
    const ringbuf_part small[] = {{"late", 5}, {"later", 6}}, large[] = {{much, sizeof much}, {much, sizeof much}};
    ringbuf_reservation room;
    switch (call->kind) {
    case GET: call->status = ringbuf_get(call->rb, &size, call->buffer, sizeof call->buffer, call->deadline_ns); break;
    case PUT: call->status = ringbuf_put(call->rb, "late", 5, call->deadline_ns); break;
    case TAKE: call->status = ringbuf_take(call->rb, &message, call->buffer, sizeof call->buffer, call->deadline_ns); break;
    case JOIN: call->status = ringbuf_join(call->rb, call->deadline_ns); break;
    case PUT_ALL: call->status = ringbuf_put_all(call->rb, small, 2, call->deadline_ns); break;
    case PUT_LARGE_ALL: call->status = ringbuf_put_all(call->rb, large, 2, call->deadline_ns); break;
    case RESERVE: call->status = ringbuf_reserve(call->rb, &room, sizeof much, call->deadline_ns); break;
    }
    atomic_fetch_add(&call->ended, 1);
    return NULL;
}

/** Make the call in a thread of its own; returns when it sleeps. */
static void start_call(struct blocked_call *call, enum call_kind kind, ringbuf *rb)
{
    *call = (struct blocked_call){.kind = kind, .rb = rb, .deadline_ns = RINGBUF_FOREVER, .status = -1};
    uint64_t sleeps = stats_of(rb).sleeps;
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&call->thread, NULL, make_call, call));
    while (stats_of(rb).sleeps == sleeps) nap_ms(1);
}

static ringbuf_status outcome_of(struct blocked_call *call)
{
    pthread_join(call->thread, NULL);
    return call->status;
}

/* ---- put and get ---- */

static void test_messages_arrive_whole_and_in_order_across_handles(void)
{
    ringbuf *other = open_again();
    put(queue, "a");
    put(other, "b");
    ASSERT_OK(ringbuf_put(queue, NULL, 0, 0));
    assert_size(3);
    get(other, "a");
    get(queue, "b");
    size_t size = 7;
    ASSERT_OK(ringbuf_get(other, &size, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(0, size);
    assert_empty();
    ringbuf_free(other);
}

static void send_random_messages_around(void)
{
    uint8_t sent[LARGEST], got[LARGEST];
    uint64_t put_seed = 1, get_seed = 1, waiting = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t before = put_seed;
        size_t size = random_below(&put_seed, random_below(&put_seed, 8) ? 100 : LARGEST + 1), got_size = 0;
        memset(sent, (int)(next_random(&put_seed) & 0xff), size);
        ringbuf_status status = ringbuf_put(queue, sent, size, 0);
        if (status == RINGBUF_OK) {
            waiting++;
            continue;
        }
        if (status != RINGBUF_E_ARENA_FULL) ASSERT_STATUS(RINGBUF_E_TIMEOUT, status);
        put_seed = before;
        for (uint64_t n = random_below(&before, waiting) + 1; n > 0; n--, waiting--) {
            ASSERT_OK(ringbuf_get(queue, &got_size, got, sizeof got, 0));
            size = random_below(&get_seed, random_below(&get_seed, 8) ? 100 : LARGEST + 1);
            TEST_ASSERT_EQUAL_UINT64(size, got_size);
            uint8_t byte = (uint8_t)next_random(&get_seed);
            for (size_t b = 0; b < size; b++) TEST_ASSERT_EQUAL_UINT8(byte, got[b]);
        }
        assert_size(waiting);
    }
}

static void test_random_messages_go_around_a_small_queue_unharmed(void)
{
    send_random_messages_around();
    recreate_without_arena(0);
    send_random_messages_around();
}

static void test_without_an_arena_a_message_larger_than_half_the_ring_is_refused_at_once(void)
{
    static const uint8_t bytes[LARGEST + 1];
    uint8_t got[LARGEST];
    size_t size;
    recreate_without_arena(0);
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put(queue, bytes, LARGEST + 1, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put(queue, bytes, SIZE_MAX, RINGBUF_FOREVER));
    assert_empty();
    ASSERT_OK(ringbuf_put(queue, bytes, LARGEST, 0));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(queue, bytes, LARGEST, 0)); /* one cell is kept free */
    ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(LARGEST, size);
}

static void test_with_an_arena_only_a_message_larger_than_that_is_refused_and_at_once(void)
{
    static const uint8_t bytes[ARENA + 1];
    static uint8_t got[ARENA];
    size_t size;
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put(queue, bytes, ARENA + 1, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_TOO_LARGE, ringbuf_put(queue, bytes, SIZE_MAX, RINGBUF_FOREVER));
    assert_empty();
    ASSERT_OK(ringbuf_put(queue, bytes, ARENA, 0));
    ASSERT_STATUS(RINGBUF_E_ARENA_FULL, ringbuf_put(queue, bytes, LARGEST, 0));
    put(queue, "small ones go on");
    ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(ARENA, size);
    get(queue, "small ones go on");
}

static void test_a_buffer_too_small_leaves_the_message_and_tells_its_size(void)
{
    char buffer[8];
    size_t size = 0;
    put(queue, "0123456789");
    put(queue, "b");
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(queue, &size, buffer, sizeof buffer, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(11, size);
    ASSERT_STATUS(RINGBUF_E_SMALL, ringbuf_get(queue, &size, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(11, size);
    assert_size(2);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).gets);
    get(queue, "0123456789");
    get(queue, "b");
}

static void test_arguments_that_make_no_sense_are_invalid(void)
{
    char buffer[8];
    size_t size;
    uint64_t number;
    int room;
    ringbuf_message message = {0};
    ringbuf_stats stats;
    ringbuf_info info;
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put(queue, NULL, 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_put(NULL, "a", 1, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get(queue, NULL, buffer, 8, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get(queue, &size, NULL, 8, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get(NULL, &size, buffer, 8, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take(queue, NULL, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_take(NULL, &message, NULL, 0, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(NULL, &message));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_size(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_size(NULL, &number));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_has_room(queue, NULL, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_has_room(NULL, &room, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_stats(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_stats(NULL, &stats));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_info(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_info(NULL, &info));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_peers(queue, &size, NULL, 1));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_peers(queue, NULL, NULL, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_get_peers(NULL, &size, NULL, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_recover(queue, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_recover(NULL, &number));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_changes_fd(NULL, RINGBUF_ROOM, &room));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_shutdown(NULL, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_task_done(NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_join(NULL, 0));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unlink(NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_collect(NULL, NULL));
    ringbuf_options of_another_size = {.struct_bytes = 1};
    ringbuf *none = queue;
    const uint8_t id[16] = {0};
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_open(NULL, "queue", NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_attach(NULL, "queue", id, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_attach(&none, "queue", NULL, NULL));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_attach(&none, "queue", id, &of_another_size));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_open(&none, "queue", &of_another_size));
    TEST_ASSERT_NULL(none);
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_unlink_name("queue", &of_another_size));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_collect(&number, &of_another_size));
    ringbuf_close(NULL);
    ringbuf_free(NULL);
    assert_empty();
}

/* ---- deadlines ---- */

static void test_an_empty_queue_times_out_at_its_deadline_and_not_before(void)
{
    ringbuf_message message = {0};
    const int64_t passed[] = {0, 1, INT64_MIN, -1, in_ms(-1)};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) {
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, passed[i]));
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_take(queue, &message, NULL, 0, passed[i]));
    }
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).sleeps);
    static const int64_t waits_ms[] = {1, 30, 250}; /* the last one outlasts liveness checks */
    for (size_t i = 0; i < sizeof waits_ms / sizeof *waits_ms; i++) {
        int64_t deadline_ns = in_ms(waits_ms[i]);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, deadline_ns));
        TEST_ASSERT_GREATER_OR_EQUAL_INT64(deadline_ns, ringbuf_now_ns());
    }
    TEST_ASSERT_GREATER_OR_EQUAL_UINT64(2, stats_of(queue).sleeps);
    put(queue, "a");
    ASSERT_OK(get_until(queue, 1)); /* what is there is had also after the deadline */
}

static void test_a_call_with_a_deadline_below_zero_looks_for_so_long_and_does_not_sleep(void)
{
    if (sysconf(_SC_NPROCESSORS_ONLN) == 1) TEST_IGNORE_MESSAGE("with one processor nobody can come meanwhile");
    int64_t began_ns = ringbuf_now_ns();
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, -300000));
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(began_ns + 300000, ringbuf_now_ns());
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).sleeps);
    put(queue, "a");
    ASSERT_OK(get_until(queue, -300000));
}

static void test_a_full_queue_times_out_at_its_deadline_and_not_before(void)
{
    int count = fill();
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(queue, "a", 1, in_ms(-5)));
    int64_t deadline_ns = in_ms(30);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(queue, "a", 1, deadline_ns));
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(deadline_ns, ringbuf_now_ns());
    assert_size((uint64_t)count);
}

static void test_a_blocked_get_is_woken_by_a_put(void)
{
    struct blocked_call call;
    ringbuf *other = open_again();
    start_call(&call, GET, queue);
    put(other, "a");
    ASSERT_OK(outcome_of(&call));
    TEST_ASSERT_EQUAL_STRING("a", call.buffer);
    assert_empty();
    ringbuf_free(other);
}

static void test_a_blocked_put_is_woken_by_a_get(void)
{
    struct blocked_call call;
    int count = fill();
    start_call(&call, PUT, queue);
    get(queue, "x");
    ASSERT_OK(outcome_of(&call));
    assert_size((uint64_t)count);
    while (--count > 0) get(queue, "x");
    get(queue, "late");
}

static void test_a_put_blocked_by_max_items_is_woken_by_a_take_or_its_end(void)
{
    struct blocked_call call;
    recreate(1, 16);
    put(queue, "a");
    start_call(&call, PUT, queue);
    get(queue, "a");
    ASSERT_OK(outcome_of(&call));
    get(queue, "late");
}

static void test_every_one_of_several_blocked_gets_has_its_message(void)
{
    enum { CALLS = 4 };
    struct blocked_call calls[CALLS];
    for (int i = 0; i < CALLS; i++) start_call(&calls[i], i % 2 ? GET : TAKE, queue);
    for (int i = 0; i < CALLS; i++) put(queue, "m");
    for (int i = 0; i < CALLS; i++) ASSERT_OK(outcome_of(&calls[i]));
    assert_empty();
}

static volatile sig_atomic_t signals;
static void count_signal(int number)
{
    (void)number;
    signals = signals + 1;
}

static void test_a_signal_ends_each_blocking_call_and_loses_nothing(void)
{
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    static const enum call_kind kinds[] = {GET, TAKE, JOIN, PUT};
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < 4; i++) {
        struct blocked_call call;
        int count = kinds[i] == PUT ? fill() : 0;
        if (kinds[i] == JOIN) {
            put(queue, "unfinished");
            get(queue, "unfinished");
        }
        start_call(&call, kinds[i], queue);
        while (!atomic_load(&call.ended)) {
            pthread_kill(call.thread, SIGUSR1);
            nap_ms(1);
        }
        ASSERT_STATUS(RINGBUF_E_INTR, outcome_of(&call));
        assert_size((uint64_t)count);
    }
    TEST_ASSERT_GREATER_OR_EQUAL_INT(4, signals);
    signal(SIGUSR1, SIG_DFL);
}

/* ---- take, ack, nack ---- */

static void test_a_taken_message_is_copied_if_it_fits_and_else_read_where_it_lies(void)
{
    char buffer[8];
    ringbuf_message message = {.data = NULL};
    put(queue, "short");
    put(queue, "longer than the buffer");
    ASSERT_OK(ringbuf_take(queue, &message, buffer, sizeof buffer, 0));
    TEST_ASSERT_EQUAL_PTR(buffer, message.data);
    TEST_ASSERT_EQUAL_UINT64(6, message.size);
    TEST_ASSERT_EQUAL_STRING("short", buffer);
    ASSERT_OK(ringbuf_ack(queue, &message));
    ASSERT_OK(ringbuf_take(queue, &message, buffer, sizeof buffer, 0));
    TEST_ASSERT_TRUE(message.data != buffer);
    TEST_ASSERT_EQUAL_UINT64(23, message.size);
    TEST_ASSERT_EQUAL_STRING("longer than the buffer", message.data);
    TEST_ASSERT_EQUAL_STRING("short", buffer);
    ASSERT_OK(ringbuf_ack(queue, &message));
    assert_empty();
}

static void test_a_taken_message_is_seen_by_nobody_else_and_keeps_its_room(void)
{
    put(queue, "a");
    uint64_t used = stats_of(queue).used_bytes;
    ringbuf_message a = take(queue, "a");
    assert_size(0);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, 0));
    TEST_ASSERT_EQUAL_UINT64(used, stats_of(queue).used_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).gets);
    ASSERT_OK(ringbuf_ack(queue, &a));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).used_bytes);
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).gets);
}

static void test_a_message_can_be_ended_once_only_and_only_by_its_taker(void)
{
    ringbuf *other = open_again();
    put(queue, "a");
    put(queue, "b");
    ringbuf_message a = take(queue, "a"), never = {.position = 12345};
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(other, &a));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(other, &a));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &never));
    ASSERT_OK(ringbuf_ack(queue, &a));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &a));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &a));
    ringbuf_message b = take(queue, "b");
    ASSERT_OK(ringbuf_nack(queue, &b));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_nack(queue, &b));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_ack(queue, &b));
    get(other, "b");
    assert_empty();
    ringbuf_free(other);
}

static void test_a_message_given_back_is_the_next_one_delivered(void)
{
    put(queue, "a");
    put(queue, "b");
    put(queue, "c");
    ringbuf_message a = take(queue, "a"), b = take(queue, "b");
    ASSERT_OK(ringbuf_nack(queue, &b));
    ASSERT_OK(ringbuf_nack(queue, &a));
    assert_size(3);
    get(queue, "a");
    get(queue, "b");
    get(queue, "c");
    assert_empty();
}

static void test_a_message_given_back_wakes_a_blocked_get(void)
{
    struct blocked_call call;
    put(queue, "a");
    ringbuf_message a = take(queue, "a");
    start_call(&call, GET, queue);
    ASSERT_OK(ringbuf_nack(queue, &a));
    ASSERT_OK(outcome_of(&call));
    TEST_ASSERT_EQUAL_STRING("a", call.buffer);
}

/** Somebody has announced himself and is about to sleep: the call changes the word that he will sleep on.  (Whether calls that wait come
 *  back does not tell, for they look every 100 ms by themselves.) */
#define ASSERT_WAKES(event, call)                                                                           \
    do {                                                                                                    \
        uint32_t key = rbi_event_announce(&queue->header->event);                                           \
        ASSERT_OK(call);                                                                                    \
        TEST_ASSERT_TRUE_MESSAGE(rbi_load_total32(&queue->header->event.word) != key, #call " wakes nobody"); \
    } while (0)

static void test_every_change_wakes_who_waits_for_it(void)
{
    static uint8_t large[2000];
    char bytes[sizeof large];
    ringbuf_part parts[3] = {{"one", 4}, {"two", 4}, {large, sizeof large}};
    ringbuf_message message = {.data = NULL}, several[3];
    ringbuf_reservation reservation;
    size_t size, count;

    ASSERT_WAKES(items, ringbuf_put(queue, "x", 2, 0));
    ASSERT_WAKES(space, ringbuf_get(queue, &size, bytes, sizeof bytes, 0));
    ASSERT_WAKES(tasks, ringbuf_task_done(queue));
    ASSERT_WAKES(items, ringbuf_put(queue, large, sizeof large, 0));
    ASSERT_WAKES(space, ringbuf_take(queue, &message, NULL, 0, 0)); /* from now on it is in the arena only */
    ASSERT_WAKES(items, ringbuf_nack(queue, &message));
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(room, ringbuf_ack(queue, &message));
    ASSERT_OK(ringbuf_reserve(queue, &reservation, sizeof large, 0));
    ASSERT_WAKES(room, ringbuf_abort(queue, &reservation));
    ASSERT_OK(ringbuf_reserve(queue, &reservation, sizeof large, 0));
    ASSERT_WAKES(items, ringbuf_commit(queue, &reservation, sizeof large, 0));
    ASSERT_OK(ringbuf_lease(queue, &message, NULL, 0, 0));
    ASSERT_OK(ringbuf_keep(queue, &message));
    ASSERT_WAKES(room, ringbuf_release(queue, &message));
    ASSERT_OK(ringbuf_reserve(queue, &reservation, sizeof large, 0));
    ASSERT_WAKES(room, ringbuf_commit(queue, &reservation, 4, 0)); /* it went into the ring instead */
    ASSERT_WAKES(space, ringbuf_lease(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(items, ringbuf_nack(queue, &message));
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(room, ringbuf_ack(queue, &message));
    put(queue, "x");
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(items, ringbuf_nack(queue, &message));
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(space, ringbuf_ack(queue, &message));

    ASSERT_WAKES(items, ringbuf_put_all(queue, parts, 3, 0));
    ASSERT_WAKES(space, ringbuf_take_many(queue, several, &count, 3, SIZE_MAX, NULL, 0, 0)); /* the large one's record */
    ASSERT_WAKES(items, ringbuf_return_all(queue, several, count));
    ASSERT_OK(ringbuf_take_many(queue, several, &count, 3, SIZE_MAX, NULL, 0, 0));
    TEST_ASSERT_EQUAL_UINT64(3, count);
    ASSERT_WAKES(space, ringbuf_ack_all(queue, several, 2));
    ASSERT_WAKES(room, ringbuf_ack_all(queue, several + 2, 1));

    put(queue, "x");
    ASSERT_OK(ringbuf_take(queue, &message, NULL, 0, 0));
    ASSERT_WAKES(items, ringbuf_shutdown(queue, 0));
    ASSERT_WAKES(space, ringbuf_shutdown(queue, 1));
    ASSERT_WAKES(room, ringbuf_shutdown(queue, 1));
    ASSERT_WAKES(tasks, ringbuf_shutdown(queue, 1));
    ASSERT_WAKES(tasks, ringbuf_nack(queue, &message)); /* it is thrown away, and a join waited for nothing else */
}

static stage sleeper_announced;

/** A sleeper who does not look by himself. */
static void *sleep_until_woken(void *status)
{
    uint32_t key = rbi_event_announce(&queue->header->items);
    atomic_store(&sleeper_announced, 1);
    *(ringbuf_status *)status = rbi_event_sleep(&queue->header->items, key, in_ms(20000));
    return NULL;
}

static void *get_one_in_a_thread(void *status)
{
    char bytes[16];
    size_t size;
    *(ringbuf_status *)status = ringbuf_get(queue, &size, bytes, sizeof bytes, in_ms(20000));
    return NULL;
}

static void test_one_wake_for_several_messages_is_passed_on_to_the_next_sleeper(void)
{
    ringbuf_part parts[2] = {{"a", 2}, {"b", 2}};
    for (int round = 0; round < 8; round++) { /* the one who gets is not always the first to be woken */
        pthread_t getter, sleeper;
        ringbuf_status got, slept;
        uint64_t sleeps = stats_of(queue).sleeps;
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&getter, NULL, get_one_in_a_thread, &got));
        while (stats_of(queue).sleeps == sleeps) nap_ms(1);
        atomic_store(&sleeper_announced, 0);
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&sleeper, NULL, sleep_until_woken, &slept));
        wait_for_stage(&sleeper_announced, 1);
        nap_ms(2); /* he is asleep now, most likely */
        ASSERT_OK(ringbuf_put_all(queue, parts, 2, 0));
        pthread_join(getter, NULL);
        pthread_join(sleeper, NULL);
        ASSERT_OK(got);
        ASSERT_OK(slept);
        ASSERT_OK(get_until(queue, 0));
    }
}

static void test_closing_gives_back_what_was_taken_also_to_who_waits(void)
{
    struct blocked_call call;
    ringbuf *other = open_again();
    put(queue, "a");
    put(queue, "b");
    take(other, "a");
    take(other, "b");
    start_call(&call, GET, queue);
    ringbuf_close(other);
    ASSERT_OK(outcome_of(&call));
    TEST_ASSERT_EQUAL_STRING("a", call.buffer);
    get(queue, "b");
    ringbuf_free(other);
}

/* ---- close ---- */

static void test_closing_ends_every_blocked_call_on_that_handle_only(void)
{
    enum { CALLS = 4 };
    struct blocked_call calls[CALLS], elsewhere;
    ringbuf *other = open_again();
    start_call(&calls[0], GET, queue);
    start_call(&calls[1], TAKE, queue);
    start_call(&calls[2], GET, queue);
    start_call(&elsewhere, GET, other);
    ringbuf_close(queue);
    for (int i = 0; i < 3; i++) ASSERT_STATUS(RINGBUF_E_CLOSED, outcome_of(&calls[i]));
    TEST_ASSERT_EQUAL_INT(0, atomic_load(&elsewhere.ended));
    put(other, "a");
    ASSERT_OK(outcome_of(&elsewhere));
    put(other, "unfinished");
    ringbuf_free(queue);
    queue = other;
    fill();
    start_call(&calls[0], PUT, queue);
    start_call(&calls[1], JOIN, queue);
    ringbuf_close(queue);
    ASSERT_STATUS(RINGBUF_E_CLOSED, outcome_of(&calls[0]));
    ASSERT_STATUS(RINGBUF_E_CLOSED, outcome_of(&calls[1]));
}

static void test_every_call_on_a_closed_handle_says_so(void)
{
    char buffer[8];
    size_t size;
    uint64_t number;
    int room;
    ringbuf_message message = {0};
    ringbuf_stats stats;
    ringbuf_info info;
    ringbuf_close(queue);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_put(queue, "a", 1, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_put(queue, buffer, SIZE_MAX, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_get(queue, &size, buffer, 8, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_take(queue, &message, NULL, 0, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_ack(queue, &message));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_nack(queue, &message));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_shutdown(queue, 1));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_task_done(queue));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_join(queue, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_size(queue, &number));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_has_room(queue, &room, 0));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_get_stats(queue, &stats));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_get_peers(queue, &size, NULL, 0));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_recover(queue, &number));
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_unlink(queue));
    ASSERT_OK(ringbuf_get_info(queue, &info)); /* these answer still */
    TEST_ASSERT_EQUAL_UINT64(CAPACITY, info.capacity_bytes);
    TEST_ASSERT_EQUAL_STRING("queue", ringbuf_name(queue));
    TEST_ASSERT_NOT_NULL(strstr(ringbuf_path(queue), "queue"));
    ringbuf_close(queue);
}

static void *close_queue(void *context)
{
    ringbuf_close(context);
    return NULL;
}

static void test_a_handle_can_be_closed_by_several_threads_at_once(void)
{
    enum { THREADS = 4 };
    for (int round = 0; round < 50; round++) {
        pthread_t threads[THREADS];
        ringbuf *other = open_again();
        for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, close_queue, other);
        for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_put(other, "a", 1, 0));
        ringbuf_free(other);
    }
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
}

static void *call_until_closed(void *context)
{
    for (;;) {
        char buffer[8];
        size_t size;
        if (ringbuf_put(context, "a", 2, 0) == RINGBUF_E_CLOSED) return NULL;
        if (ringbuf_get(context, &size, buffer, 8, 0) == RINGBUF_E_CLOSED) return NULL;
    }
}

static void test_closing_under_busy_threads_lets_each_finish_and_then_tells_it(void)
{
    for (int round = 0; round < 20; round++) {
        pthread_t threads[3];
        ringbuf *other = open_again();
        for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, call_until_closed, other);
        nap_ms(1);
        ringbuf_close(other);
        for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
        ringbuf_free(other);
    }
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(stats.puts, stats.gets + stats.items);
}

/* ---- looking for a moment, and one processor ---- */

static void *put_one(void *context)
{
    nap_ms(1);
    put(context, "a");
    return NULL;
}

static void test_a_get_that_looks_for_a_moment_gets_what_comes_meanwhile_and_never_sleeps(void)
{
    for (int round = 0; round < 20; round++) {
        pthread_t producer;
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&producer, NULL, put_one, queue));
        while (get_until(queue, -MILLISECOND) == RINGBUF_E_TIMEOUT) {}
        pthread_join(producer, NULL);
        assert_size(0);
    }
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).sleeps);
}

static int get_on_one_processor(void *context)
{
    ringbuf *rb = NULL;
    (void)context;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) return 10;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (get_until(rb, -MILLISECOND) != RINGBUF_E_TIMEOUT) return 2; /* looking would keep the other from coming */
    if (ringbuf_put(rb, "here I am", 10, 0) != RINGBUF_OK || get_until(rb, 0) != RINGBUF_OK) return 3;
    if (get_until(rb, RINGBUF_FOREVER) != RINGBUF_OK) return 4;
    ringbuf_free(rb);
    return 0;
}

/* Must be the first test: how many processors there are is asked once in a process, and a child inherits the answer. */
static void test_on_one_processor_nobody_looks_and_a_sleeper_is_woken(void)
{
    pid_t child = start_child(get_on_one_processor, NULL);
    while (stats_of(queue).sleeps == 0) nap_ms(1);
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    assert_size(0);
}

/* ---- shutdown ---- */

static void test_a_draining_shutdown_refuses_puts_and_delivers_what_is_there(void)
{
    ringbuf *other = open_again();
    put(queue, "a");
    put(queue, "b");
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).shutdown);
    ASSERT_OK(ringbuf_shutdown(other, 0));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).shutdown);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_put(queue, "c", 2, RINGBUF_FOREVER));
    assert_size(2);
    get(queue, "a");
    get(other, "b");
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, get_until(queue, 0));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, get_until(other, RINGBUF_FOREVER));
    ASSERT_OK(ringbuf_shutdown(queue, 0)); /* twice is once */
    ringbuf_free(other);
}

static void test_an_immediate_shutdown_discards_and_cannot_be_undone(void)
{
    put(queue, "a");
    put(queue, "b");
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    assert_size(0);
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, get_until(queue, RINGBUF_FOREVER));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_put(queue, "c", 2, RINGBUF_FOREVER));
    ASSERT_OK(ringbuf_join(queue, RINGBUF_FOREVER)); /* what was discarded counts as finished */
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).shutdown);
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).unfinished);
}

static void test_a_full_queue_says_shutdown_and_not_timeout(void)
{
    fill();
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, ringbuf_put(queue, "c", 2, 0));
}

static void test_both_shutdowns_end_every_blocked_get_and_put(void)
{
    for (int immediate = 0; immediate <= 1; immediate++) {
        struct blocked_call calls[3];
        recreate(0, 16);
        start_call(&calls[0], GET, queue);
        start_call(&calls[1], TAKE, queue);
        ASSERT_OK(ringbuf_shutdown(queue, immediate));
        for (int i = 0; i < 2; i++) ASSERT_STATUS(RINGBUF_E_SHUTDOWN, outcome_of(&calls[i]));
        recreate(0, 16);
        int count = fill();
        for (int i = 0; i < 3; i++) start_call(&calls[i], PUT, queue);
        ASSERT_OK(ringbuf_shutdown(queue, immediate));
        for (int i = 0; i < 3; i++) ASSERT_STATUS(RINGBUF_E_SHUTDOWN, outcome_of(&calls[i]));
        assert_size(immediate ? 0 : (uint64_t)count);
    }
}

/** Calls that wait for room: two messages for the ring, two for the arena, a reservation.  Each is to end with this. */
static void assert_end_of_those_who_wait_for_room(ringbuf_status expected, void (*end)(ringbuf *rb))
{
    static const enum call_kind kinds[] = {PUT_ALL, PUT_LARGE_ALL, RESERVE};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct blocked_call call;
        ringbuf_reservation all;
        recreate(0, 16);
        ringbuf *other = open_again();
        int count = kinds[i] == PUT_ALL ? fill() : 0;
        if (kinds[i] != PUT_ALL) ASSERT_OK(ringbuf_reserve(queue, &all, ARENA, 0));
        start_call(&call, kinds[i], other);
        end(other);
        ASSERT_STATUS(expected, outcome_of(&call));
        assert_size((uint64_t)count); /* nothing was put */
        if (kinds[i] != PUT_ALL) ASSERT_OK(ringbuf_abort(queue, &all));
        TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).arena_used_bytes);
        ringbuf_free(other);
    }
}

static void drain_down(ringbuf *rb) { ringbuf_shutdown(rb, 0); }

static void test_a_shutdown_ends_batches_and_reservations_that_wait_for_room(void)
{
    assert_end_of_those_who_wait_for_room(RINGBUF_E_SHUTDOWN, drain_down);
}

static void test_a_close_ends_batches_and_reservations_that_wait_for_room(void)
{
    assert_end_of_those_who_wait_for_room(RINGBUF_E_CLOSED, ringbuf_close);
}

static void test_an_immediate_shutdown_ends_a_join(void)
{
    struct blocked_call call;
    put(queue, "a");
    start_call(&call, JOIN, queue);
    ASSERT_OK(ringbuf_shutdown(queue, 1));
    ASSERT_OK(outcome_of(&call));
}

static void test_a_message_taken_before_a_shutdown_can_still_be_ended(void)
{
    put(queue, "a");
    ringbuf_message a = take(queue, "a");
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    ASSERT_OK(ringbuf_nack(queue, &a));
    a = take(queue, "a");
    ASSERT_OK(ringbuf_ack(queue, &a));
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, get_until(queue, 0));
}

/* ---- tasks ---- */

static void test_a_task_can_be_marked_done_once_per_message_and_no_more(void)
{
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
    put(queue, "a");
    put(queue, "b");
    get(queue, "a");
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_OK(ringbuf_task_done(queue)); /* b waits: as in the standard library, it can be marked before it is got */
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).unfinished);
    get(queue, "b");
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
    TEST_ASSERT_EQUAL_UINT64(0, stats_of(queue).unfinished);
}

static void test_join_waits_until_everything_is_marked_done(void)
{
    struct blocked_call call;
    ringbuf *other = open_again();
    ASSERT_OK(ringbuf_join(queue, 0)); /* nothing was put */
    put(queue, "a");
    put(queue, "b");
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, 0));
    int64_t deadline_ns = in_ms(20);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_join(queue, deadline_ns));
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(deadline_ns, ringbuf_now_ns());
    start_call(&call, JOIN, queue);
    get(other, "a");
    ringbuf_message b = take(other, "b");
    ASSERT_OK(ringbuf_task_done(other));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).unfinished); /* b, which is held */
    ASSERT_OK(ringbuf_ack(other, &b));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).unfinished);
    TEST_ASSERT_EQUAL_INT(0, atomic_load(&call.ended));
    ASSERT_OK(ringbuf_task_done(other));
    ASSERT_OK(outcome_of(&call));
    ASSERT_OK(ringbuf_join(queue, 0));
    ringbuf_free(other);
}

static int get_two_mark_one_and_die(void *context)
{
    ringbuf *rb = NULL;
    (void)context;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (get_until(rb, 0) != RINGBUF_OK || get_until(rb, 0) != RINGBUF_OK) return 2;
    if (ringbuf_task_done(rb) != RINGBUF_OK) return 3;
    die();
}

static void test_join_returns_when_a_worker_is_killed_before_it_marked_its_tasks(void)
{
    struct blocked_call call;
    put(queue, "a");
    put(queue, "b");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(get_two_mark_one_and_die, NULL));
    ASSERT_OK(ringbuf_join(queue, RINGBUF_FOREVER)); /* a liveness check notices */
    put(queue, "c");
    put(queue, "d");
    put(queue, "e");
    get(queue, "c");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(get_two_mark_one_and_die, NULL));
    start_call(&call, JOIN, queue);
    uint64_t recovered;
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).unfinished); /* c, which we have got */
    ASSERT_OK(ringbuf_task_done(queue));
    ASSERT_OK(outcome_of(&call));
    ASSERT_STATUS(RINGBUF_E_TOO_MANY, ringbuf_task_done(queue));
}

/* ---- the dead ---- */

static int take_one_and_die(void *context)
{
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    (void)context;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_take(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 2;
    die();
}

static void test_what_a_killed_process_had_taken_reaches_a_waiting_get_by_itself(void)
{
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_one_and_die, NULL));
    ASSERT_OK(get_until(queue, RINGBUF_FOREVER));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).recoveries);
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
}

static void test_a_get_from_a_queue_that_is_shut_down_first_looks_for_what_the_dead_had_taken(void)
{
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_one_and_die, NULL));
    ASSERT_OK(ringbuf_shutdown(queue, 0));
    get(queue, "a");
    ASSERT_STATUS(RINGBUF_E_SHUTDOWN, get_until(queue, RINGBUF_FOREVER));
}

static void test_a_poll_finds_it_too_if_it_comes_often_enough(void)
{
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_one_and_die, NULL));
    while (get_until(queue, 0) == RINGBUF_E_TIMEOUT) nap_ms(1);
    assert_size(0);
}

static void test_one_who_waits_by_descriptors_finds_it_by_watching(void)
{
    int64_t next_ns = 0;
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_one_and_die, NULL));
    while (stats_of(queue).items == 0) {
        ASSERT_OK(ringbuf_watch(queue, &next_ns));
        TEST_ASSERT_GREATER_THAN_INT64(0, next_ns);
        int64_t left_ns = next_ns - ringbuf_now_ns();
        if (left_ns > 0) nap_ms(left_ns / MILLISECOND + 1);
    }
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).recoveries);
    get(queue, "a");
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_watch(NULL, &next_ns));
    ASSERT_STATUS(RINGBUF_E_INVALID, ringbuf_watch(queue, NULL));
    ringbuf_close(queue);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_watch(queue, &next_ns));
}

static void test_watching_before_its_time_looks_for_nobody(void)
{
    int64_t next_ns, again_ns;
    const rbi_atomic64 *looked_ns = &queue->header->watch.looked_ns;
    for (int early = 0; early < 3;) {
        ASSERT_OK(ringbuf_watch(queue, &next_ns));
        uint64_t looked = rbi_load_relaxed64(looked_ns);
        ASSERT_OK(ringbuf_watch(queue, &again_ns));
        if (ringbuf_now_ns() >= next_ns) continue; /* we were slow */
        TEST_ASSERT_EQUAL_INT64(next_ns, again_ns);
        TEST_ASSERT_EQUAL_UINT64(looked, rbi_load_relaxed64(looked_ns));
        early++;
    }
}

static void test_all_handles_that_wait_share_one_look(void)
{
    enum { OTHERS = 15 };
    ringbuf *others[OTHERS];
    int64_t next_ns;
    for (int i = 0; i < OTHERS; i++) others[i] = open_again();
    for (bool in_time = false; !in_time;) {
        int64_t begin_ns = ringbuf_now_ns();
        uint64_t recovered;
        ASSERT_OK(ringbuf_recover(queue, &recovered));
        uint64_t looked = rbi_load_relaxed64(&queue->header->watch.looked_ns), seen = 0;
        for (int i = 0; i < OTHERS; i++) {
            ASSERT_OK(ringbuf_watch(others[i], &next_ns));
            seen += rbi_load_relaxed64(&queue->header->watch.looked_ns) == looked;
        }
        in_time = ringbuf_now_ns() - begin_ns < 100 * MILLISECOND; /* else another look was due */
        if (in_time) TEST_ASSERT_EQUAL_UINT64(OTHERS, seen);
    }
    for (int i = 0; i < OTHERS; i++) ringbuf_free(others[i]);
}

static int open_many_and_die(void *context)
{
    ringbuf *rb;
    (void)context;
    for (int i = 0; i < 18; i++)
        if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    die();
}

static void test_who_finds_a_queue_full_of_the_dead_looks_although_another_one_has_just_looked(void)
{
    ringbuf *more;
    recreate(0, 19);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(open_many_and_die, NULL));
    /* Attachments rely on a look for as long as they want to be few beside it. */
    rbi_store_relaxed64(&queue->header->watch.cost_ns, UINT64_C(50) * MILLISECOND);
    rbi_store_relaxed64(&queue->header->watch.looked_ns, (uint64_t)ringbuf_now_ns());
    ASSERT_OK(ringbuf_open(&more, "queue", NULL));
    TEST_ASSERT_EQUAL_UINT64(18, stats_of(queue).recoveries);
    ringbuf_free(more);
}

struct holder {
    stage holds;
};

static int take_one_and_stay(void *context)
{
    struct holder *holder = context;
    ringbuf_message message = {0};
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_take(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 2;
    atomic_fetch_add(&holder->holds, 1);
    sleep_for_ever();
}

static void test_recover_counts_the_dead_it_cleaned_up_after(void)
{
    uint64_t recovered = 9;
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(0, recovered);
    put(queue, "a");
    put(queue, "b");
    struct holder *holder = share_memory(sizeof *holder);
    pid_t first = start_child(take_one_and_stay, holder), second = start_child(take_one_and_stay, holder);
    wait_for_stage(&holder->holds, 2);
    kill_child(first);
    kill_child(second);
    munmap(holder, sizeof *holder);
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(2, recovered);
    get(queue, "a");
    get(queue, "b");
    assert_empty();
}

static void test_a_stopped_process_keeps_what_it_has_and_stops_nobody(void)
{
    struct holder *holder = share_memory(sizeof *holder);
    uint64_t recovered = 9;
    put(queue, "a");
    pid_t child = start_child(take_one_and_stay, holder);
    wait_for_stage(&holder->holds, 1);
    stop_child(child);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, get_until(queue, in_ms(150)));
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(0, recovered);
    for (int i = 0; i < 10; i++) {
        put(queue, "b");
        get(queue, "b");
    }
    kill_child(child);
    ASSERT_OK(get_until(queue, RINGBUF_FOREVER));
    assert_empty();
    munmap(holder, sizeof *holder);
}

/* ---- fork ---- */

static int put_from_child(void *context)
{
    (void)context;
    if (ringbuf_put(queue, "from the child", 15, 0) != RINGBUF_OK) return 1;
    ringbuf_stats stats;
    if (ringbuf_get_stats(queue, &stats) != RINGBUF_OK || stats.participants != 2) return 2;
    ringbuf_close(queue);
    return ringbuf_put(queue, "x", 2, 0) == RINGBUF_E_CLOSED ? 0 : 3;
}

static void test_an_inherited_handle_works_in_the_child_which_is_a_participant_of_its_own(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(put_from_child, NULL));
    TEST_ASSERT_EQUAL_UINT64(1, stats_of(queue).participants);
    get(queue, "from the child"); /* and closing it there did not close it here */
    assert_empty();
}

static int end_of_parent_s_message(void *context)
{
    if (ringbuf_ack(queue, context) != RINGBUF_E_INVALID) return 1;
    if (ringbuf_nack(queue, context) != RINGBUF_E_INVALID) return 2;
    return get_until(queue, 0) == RINGBUF_E_TIMEOUT ? 0 : 3;
}

static void test_what_the_parent_has_taken_stays_the_parent_s(void)
{
    put(queue, "a");
    ringbuf_message a = take(queue, "a");
    TEST_ASSERT_EQUAL_INT(0, run_child(end_of_parent_s_message, &a));
    ASSERT_OK(ringbuf_ack(queue, &a));
    assert_empty();
}

static int exit_without_closing(void *context)
{
    (void)context;
    if (ringbuf_put(queue, "a", 2, 0) != RINGBUF_OK) return 1;
    exit(0);
}

static int leave_without_a_call(void *context)
{
    if (context) exit(0);
    return 0; /* _exit: not even the library's own end is run */
}

static void test_a_child_that_ends_without_closing_harms_nobody(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(exit_without_closing, NULL));
    get(queue, "a");
    TEST_ASSERT_EQUAL_INT(0, run_child(leave_without_a_call, NULL));
    TEST_ASSERT_EQUAL_INT(0, run_child(leave_without_a_call, queue));
    ringbuf *other = open_again(); /* the name is still there */
    put(other, "b");
    get(queue, "b");
    TEST_ASSERT_EQUAL_UINT64(2, stats_of(queue).participants);
    ringbuf_free(other);
}

struct family {
    stage child_ready;
    stage parent_gone;
    stage child_result;
};

static int outlive_parent(void *context)
{
    struct family *family = context;
    atomic_fetch_add(&family->child_ready, 1);
    for (int ms = 0; ms < 20000 && !atomic_load(&family->parent_gone); ms++) nap_ms(1); /* nobody can end us if the test fails */
    bool works = ringbuf_put(queue, "from the orphan", 16, 0) == RINGBUF_OK;
    atomic_store(&family->child_result, works ? 1 : 2);
    return 0;
}

static int take_fork_and_die(void *context)
{
    struct family *family = context;
    ringbuf_message message = {0};
    ringbuf_free(queue);
    if (ringbuf_open(&queue, "queue", NULL) != RINGBUF_OK) return 1;
    if (ringbuf_take(queue, &message, NULL, 0, 0) != RINGBUF_OK) return 2;
    pid_t child = fork();
    if (child == 0) _exit(outlive_parent(family));
    wait_for_stage(&family->child_ready, 1);
    die();
}

static void test_a_child_does_not_keep_its_killed_parent_alive(void)
{
    struct family *family = share_memory(sizeof *family);
    uint64_t recovered = 0;
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_fork_and_die, family));
    ASSERT_OK(ringbuf_recover(queue, &recovered));
    TEST_ASSERT_EQUAL_UINT64(1, recovered); /* although its child lives, with all it inherited */
    get(queue, "a");
    atomic_fetch_add(&family->parent_gone, 1);
    wait_for_stage(&family->child_result, 1);
    TEST_ASSERT_EQUAL_INT(1, atomic_load(&family->child_result));
    get(queue, "from the orphan");
    while (stats_of(queue).participants > 1) ASSERT_OK(ringbuf_recover(queue, &recovered)); /* it leaves without a word */
    munmap(family, sizeof *family);
}

static int keep_queue_and_wait(void *context)
{
    struct family *family = context;
    atomic_fetch_add(&family->child_ready, 1);
    wait_for_stage(&family->parent_gone, 1);
    return ringbuf_put(queue, "still here", 11, 0) == RINGBUF_OK ? 0 : 1;
}

static void test_a_queue_lives_while_a_child_holds_it_that_has_not_yet_called(void)
{
    struct family *family = share_memory(sizeof *family);
    pid_t child = start_child(keep_queue_and_wait, family);
    wait_for_stage(&family->child_ready, 1);
    ringbuf_free(queue); /* auto-cleanup, and we were the only participant */
    queue = open_again();
    atomic_fetch_add(&family->parent_gone, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    get(queue, "still here");
    munmap(family, sizeof *family);
}

static int be_one_too_many(void *context)
{
    (void)context;
    uint64_t items;
    if (ringbuf_put(queue, "a", 2, 0) != RINGBUF_E_CROWDED) return 1;
    if (get_until(queue, RINGBUF_FOREVER) != RINGBUF_E_CROWDED) return 2;
    if (ringbuf_size(queue, &items) != RINGBUF_E_CROWDED) return 3;
    ringbuf_close(queue);
    return 0;
}

static void test_a_child_that_is_one_participant_too_many_is_told_so(void)
{
    recreate(0, 1);
    TEST_ASSERT_EQUAL_INT(0, run_child(be_one_too_many, NULL));
    put(queue, "a");
    get(queue, "a");
}

/* ---- looking in ---- */

static void test_statistics_add_up_over_all_participants_also_those_that_left(void)
{
    ringbuf *other = open_again();
    put(queue, "abc");
    put(other, "d");
    put(other, "e");
    get(other, "abc");
    ringbuf_free(other);
    ringbuf_message d = take(queue, "d");
    ringbuf_stats stats = stats_of(queue);
    TEST_ASSERT_EQUAL_UINT64(1, stats.items);
    TEST_ASSERT_EQUAL_UINT64(2 * 128, stats.used_bytes);
    TEST_ASSERT_EQUAL_UINT64(CAPACITY, stats.capacity_bytes);
    TEST_ASSERT_EQUAL_UINT64(3, stats.puts);
    TEST_ASSERT_EQUAL_UINT64(1, stats.gets);
    TEST_ASSERT_EQUAL_UINT64(8, stats.bytes_put);
    TEST_ASSERT_EQUAL_UINT64(4, stats.bytes_got);
    TEST_ASSERT_EQUAL_UINT64(3, stats.unfinished);
    TEST_ASSERT_EQUAL_UINT64(1, stats.participants);
    TEST_ASSERT_EQUAL_UINT64(0, stats.recoveries);
    TEST_ASSERT_EQUAL_UINT64(0, stats.shutdown);
    ASSERT_OK(ringbuf_ack(queue, &d));
}

static void test_peers_are_those_attached_now_with_what_they_did_since(void)
{
    ringbuf_options options;
    ringbuf_peer peers[3];
    ringbuf *other = NULL;
    size_t count = 0;
    ringbuf_options_init(&options);
    options.label = "a label that is much longer than thirty-one bytes";
    ASSERT_OK(ringbuf_open(&other, "queue", &options));
    put(queue, "a");
    put(other, "b");
    get(other, "a");
    ASSERT_OK(ringbuf_get_peers(queue, &count, peers, 3));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    TEST_ASSERT_EQUAL_UINT32(1, peers[0].number);
    TEST_ASSERT_EQUAL_UINT32(getpid(), peers[0].pid);
    TEST_ASSERT_EQUAL_STRING("tester", peers[0].label);
    TEST_ASSERT_EQUAL_UINT64(1, peers[0].puts);
    TEST_ASSERT_EQUAL_UINT64(0, peers[0].gets);
    TEST_ASSERT_EQUAL_UINT32(2, peers[1].number);
    TEST_ASSERT_EQUAL_STRING("a label that is much longer tha", peers[1].label);
    TEST_ASSERT_EQUAL_UINT64(1, peers[1].gets);
    TEST_ASSERT_GREATER_OR_EQUAL_UINT64(peers[0].attached_ns, peers[1].attached_ns);
    ASSERT_OK(ringbuf_get_peers(queue, &count, peers, 1)); /* no room for all: still counted */
    TEST_ASSERT_EQUAL_UINT64(2, count);
    ASSERT_OK(ringbuf_get_peers(queue, &count, NULL, 0));
    TEST_ASSERT_EQUAL_UINT64(2, count);
    ringbuf_free(other);
    ASSERT_OK(ringbuf_open(&other, "queue", &options)); /* the same number, but it did nothing yet */
    ASSERT_OK(ringbuf_get_peers(queue, &count, peers, 3));
    TEST_ASSERT_EQUAL_UINT32(2, peers[1].number);
    TEST_ASSERT_EQUAL_UINT64(0, peers[1].gets);
    ringbuf_free(other);
}

static void test_the_dead_are_no_peers(void)
{
    size_t count = 0;
    put(queue, "a");
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(take_one_and_die, NULL));
    ASSERT_OK(ringbuf_get_peers(queue, &count, NULL, 0));
    TEST_ASSERT_EQUAL_UINT64(1, count);
}

static void test_has_room_agrees_with_what_a_put_then_does(void)
{
    static const uint8_t bytes[LARGEST + 1];
    for (uint64_t max_items = 0; max_items <= 10; max_items += 5) {
        recreate_without_arena(max_items);
        uint64_t seed = max_items;
        for (int i = 0; i < 3000; i++) {
            size_t size = random_below(&seed, random_below(&seed, 4) ? 300 : LARGEST + 2);
            int room = -1;
            ASSERT_OK(ringbuf_has_room(queue, &room, size));
            ringbuf_status status = ringbuf_put(queue, bytes, size, 0);
            ASSERT_STATUS(room ? RINGBUF_OK : size > LARGEST ? RINGBUF_E_TOO_LARGE : RINGBUF_E_TIMEOUT, status);
            if (random_below(&seed, 2)) get_until(queue, 0);
        }
    }
}

static void test_has_room_agrees_with_what_a_put_then_does_also_where_there_is_an_arena(void)
{
    static const uint8_t bytes[ARENA + 1];
    static uint8_t got[ARENA];
    size_t got_size;
    for (uint64_t max_items = 0; max_items <= 10; max_items += 5) {
        recreate(max_items, 16);
        uint64_t seed = max_items;
        for (int i = 0; i < 3000; i++) {
            size_t size = random_below(&seed, random_below(&seed, 4) ? 4 * 4096 : ARENA + 2);
            if (random_below(&seed, 2)) size %= 513; /* the largest in the ring, and less */
            int room = -1;
            /* No poll goes on from refused ones before it: over 150 ms of them would have blocks set aside, and find room that others do
             * not have. */
            rbi_store_relaxed32(&queue->some_notes, 0);
            ASSERT_OK(ringbuf_has_room(queue, &room, size));
            ringbuf_status status = ringbuf_put(queue, bytes, size, 0);
            if (room) ASSERT_OK(status);
            else if (size > ARENA) ASSERT_STATUS(RINGBUF_E_TOO_LARGE, status);
            else if (status != RINGBUF_E_ARENA_FULL || size <= 512) ASSERT_STATUS(RINGBUF_E_TIMEOUT, status);
            if (random_below(&seed, 2)) ringbuf_get(queue, &got_size, got, sizeof got, 0);
        }
    }
}

static void test_max_items_bounds_the_queue_exactly(void)
{
    static const uint64_t bounds[] = {1, 10};
    for (int i = 0; i < 2; i++) {
        recreate(bounds[i], 16);
        TEST_ASSERT_EQUAL_INT(bounds[i], fill());
        assert_size(bounds[i]);
        get(queue, "x");
        TEST_ASSERT_EQUAL_INT(1, fill());
    }
}

static void test_the_clock_is_monotonic_and_in_nanoseconds(void)
{
    struct timespec now;
    int64_t before = ringbuf_now_ns();
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t between = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    TEST_ASSERT_LESS_OR_EQUAL_INT64(between, before);
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(between, ringbuf_now_ns());
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_on_one_processor_nobody_looks_and_a_sleeper_is_woken);
    RUN_TEST(test_messages_arrive_whole_and_in_order_across_handles);
    RUN_TEST(test_random_messages_go_around_a_small_queue_unharmed);
    RUN_TEST(test_without_an_arena_a_message_larger_than_half_the_ring_is_refused_at_once);
    RUN_TEST(test_with_an_arena_only_a_message_larger_than_that_is_refused_and_at_once);
    RUN_TEST(test_a_buffer_too_small_leaves_the_message_and_tells_its_size);
    RUN_TEST(test_arguments_that_make_no_sense_are_invalid);
    RUN_TEST(test_an_empty_queue_times_out_at_its_deadline_and_not_before);
    RUN_TEST(test_a_call_with_a_deadline_below_zero_looks_for_so_long_and_does_not_sleep);
    RUN_TEST(test_a_full_queue_times_out_at_its_deadline_and_not_before);
    RUN_TEST(test_a_blocked_get_is_woken_by_a_put);
    RUN_TEST(test_a_blocked_put_is_woken_by_a_get);
    RUN_TEST(test_a_put_blocked_by_max_items_is_woken_by_a_take_or_its_end);
    RUN_TEST(test_every_one_of_several_blocked_gets_has_its_message);
    RUN_TEST(test_a_signal_ends_each_blocking_call_and_loses_nothing);
    RUN_TEST(test_a_taken_message_is_copied_if_it_fits_and_else_read_where_it_lies);
    RUN_TEST(test_a_taken_message_is_seen_by_nobody_else_and_keeps_its_room);
    RUN_TEST(test_a_message_can_be_ended_once_only_and_only_by_its_taker);
    RUN_TEST(test_a_message_given_back_is_the_next_one_delivered);
    RUN_TEST(test_a_message_given_back_wakes_a_blocked_get);
    RUN_TEST(test_every_change_wakes_who_waits_for_it);
    RUN_TEST(test_one_wake_for_several_messages_is_passed_on_to_the_next_sleeper);
    RUN_TEST(test_closing_gives_back_what_was_taken_also_to_who_waits);
    RUN_TEST(test_closing_ends_every_blocked_call_on_that_handle_only);
    RUN_TEST(test_every_call_on_a_closed_handle_says_so);
    RUN_TEST(test_a_handle_can_be_closed_by_several_threads_at_once);
    RUN_TEST(test_closing_under_busy_threads_lets_each_finish_and_then_tells_it);
    RUN_TEST(test_a_get_that_looks_for_a_moment_gets_what_comes_meanwhile_and_never_sleeps);
    RUN_TEST(test_a_draining_shutdown_refuses_puts_and_delivers_what_is_there);
    RUN_TEST(test_an_immediate_shutdown_discards_and_cannot_be_undone);
    RUN_TEST(test_a_full_queue_says_shutdown_and_not_timeout);
    RUN_TEST(test_both_shutdowns_end_every_blocked_get_and_put);
    RUN_TEST(test_a_shutdown_ends_batches_and_reservations_that_wait_for_room);
    RUN_TEST(test_a_close_ends_batches_and_reservations_that_wait_for_room);
    RUN_TEST(test_an_immediate_shutdown_ends_a_join);
    RUN_TEST(test_a_message_taken_before_a_shutdown_can_still_be_ended);
    RUN_TEST(test_a_task_can_be_marked_done_once_per_message_and_no_more);
    RUN_TEST(test_join_waits_until_everything_is_marked_done);
    RUN_TEST(test_join_returns_when_a_worker_is_killed_before_it_marked_its_tasks);
    RUN_TEST(test_what_a_killed_process_had_taken_reaches_a_waiting_get_by_itself);
    RUN_TEST(test_a_get_from_a_queue_that_is_shut_down_first_looks_for_what_the_dead_had_taken);
    RUN_TEST(test_a_poll_finds_it_too_if_it_comes_often_enough);
    RUN_TEST(test_one_who_waits_by_descriptors_finds_it_by_watching);
    RUN_TEST(test_watching_before_its_time_looks_for_nobody);
    RUN_TEST(test_all_handles_that_wait_share_one_look);
    RUN_TEST(test_who_finds_a_queue_full_of_the_dead_looks_although_another_one_has_just_looked);
    RUN_TEST(test_recover_counts_the_dead_it_cleaned_up_after);
    RUN_TEST(test_a_stopped_process_keeps_what_it_has_and_stops_nobody);
    RUN_TEST(test_an_inherited_handle_works_in_the_child_which_is_a_participant_of_its_own);
    RUN_TEST(test_what_the_parent_has_taken_stays_the_parent_s);
    RUN_TEST(test_a_child_that_ends_without_closing_harms_nobody);
    RUN_TEST(test_a_child_does_not_keep_its_killed_parent_alive);
    RUN_TEST(test_a_queue_lives_while_a_child_holds_it_that_has_not_yet_called);
    RUN_TEST(test_a_child_that_is_one_participant_too_many_is_told_so);
    RUN_TEST(test_statistics_add_up_over_all_participants_also_those_that_left);
    RUN_TEST(test_peers_are_those_attached_now_with_what_they_did_since);
    RUN_TEST(test_the_dead_are_no_peers);
    RUN_TEST(test_has_room_agrees_with_what_a_put_then_does);
    RUN_TEST(test_has_room_agrees_with_what_a_put_then_does_also_where_there_is_an_arena);
    RUN_TEST(test_max_items_bounds_the_queue_exactly);
    RUN_TEST(test_the_clock_is_monotonic_and_in_nanoseconds);
    return leave_suite_directory(UNITY_END());
}
