/* test_ready_storm.c — many who put and get at random, beside others who sleep only in poll() on the queue's descriptors.
 *
 *   test_ready_storm [SECONDS [SEED]]      for each of three storms; default: short ones for a test run
 *
 * Movers put, put batches, get, take and give back, lease and give back, and leave and come back.  Sleepers do nothing but poll() the
 * descriptor of ringbuf_items_fd() with a tick of 100 ms, get without waiting when it is readable, and now and then leave and come back,
 * so that FIFOs come and go.
 *
 * The first storm has no kills.  A tick may then never be what brings somebody a message: a poll() that timed out, and a get behind it of
 * a message whose put had returned before the last 50 ms of that poll(), is a lost wake-up, and there must be none.  Every now and then
 * all pause; then each sleeper's descriptor must show what the queue holds, exactly, without any call that would mend it.
 * In the second, movers and sleepers are killed and stopped at random, and each tick calls ringbuf_recover().
 * In the third, producers sleep only on ringbuf_changes_fd(), in a queue that is nearly always full, and somebody joins by it.
 *
 * Accounting is that of test_storm.c: a message whose put returned is delivered exactly once, or lies in the hands of a killed one.
 *
 * Built with the test points, all stumble at points now and then, and who is to be killed kills himself at one. */
#include "support.h"

#ifdef RBI_TEST_POINTS
#include "points.h"

#include <sched.h>
#endif

#include <poll.h>

enum { MOVERS = 3, SLEEPERS = 3, WORKERS = MOVERS + SLEEPERS, TICK_MS = 100, BATCH = 4, LARGEST = 3000, KILLS_LEAST = 20, KILLS_MOST = 10000 };
enum { PUT_RETURNED = 1, DELIVERY = 2 }; /* of a note */
#define MOST_MESSAGES ((uint64_t)1 << 24)
static const int64_t late_ns = INT64_C(50) * MILLISECOND;

enum phase { RUN, PAUSE, LOOK, DRAIN, END };

struct message {
    uint64_t number;
    uint64_t check;
    uint8_t filling[LARGEST];
};

struct shared {
    _Atomic int phase;
    _Atomic int paused, looked;
    _Atomic uint64_t next_number;
    _Atomic uint32_t wrong, wrong_levels, lost;
    _Atomic uint64_t ticks, ticks_with_message, spurious, most_spurious, recovered, gets, waits, waits_in_vain;
    _Atomic int64_t latest_ns;
    _Atomic int die[WORKERS];
    struct message hand[WORKERS];
};
static struct shared *shared;
static _Atomic uint8_t *notes;
static _Atomic int64_t *since_ns; /* by message number: there for everybody since; 0: not, or not yet noted */
static double seconds = SANITIZED ? 1.5 : 3;
static uint64_t seed;
static uint64_t random_state; /* of this process */
static bool kills;
static int me = -1;

static ringbuf_options options(void)
{
    ringbuf_options made;
    ringbuf_options_init(&made);
    made.capacity_bytes = 8192;
    made.arena_bytes = 1 << 20;
    made.max_participants = 64;
    return made;
}

static void note_most(_Atomic uint64_t *most, uint64_t value)
{
    for (uint64_t seen = atomic_load(most); seen < value && !atomic_compare_exchange_weak(most, &seen, value);) continue;
}

static void wrong(const char *what, ringbuf_status status)
{
    fprintf(stderr, "worker %d: %s: %s\n", me, what, ringbuf_status_text(status));
    atomic_fetch_add(&shared->wrong, 1);
}

/* ---- messages ---- */

static size_t size_of_number(uint64_t number)
{
    static const size_t fillings[] = {0, 8, 32, 33, 100, 400, LARGEST};
    return offsetof(struct message, filling) + fillings[number % 7];
}

static uint64_t check_of(uint64_t number) { return (number + 1) * UINT64_C(0x9e3779b97f4a7c15); }

static size_t fill(struct message *message, uint64_t number)
{
    size_t size = size_of_number(number);
    message->number = number;
    message->check = check_of(number);
    memset(message->filling, (int)(uint8_t)number, size - offsetof(struct message, filling));
    return size;
}

static bool whole(const struct message *message)
{
    if (message->check != check_of(message->number) || message->number >= MOST_MESSAGES) return false;
    for (size_t i = 0; i < size_of_number(message->number) - offsetof(struct message, filling); i++)
        if (message->filling[i] != (uint8_t)message->number) return false;
    return true;
}

static void note_put(uint64_t number)
{
    int64_t none = 0;
    atomic_compare_exchange_strong(&since_ns[number], &none, ringbuf_now_ns());
    atomic_fetch_or(&notes[number], PUT_RETURNED);
}

static void note_delivery(size_t size)
{
    const struct message *hand = &shared->hand[me];
    if (!whole(hand) || size != size_of_number(hand->number)) wrong("a message that is not whole", RINGBUF_OK);
    else atomic_fetch_add(&notes[hand->number], DELIVERY);
    atomic_fetch_add(&shared->gets, 1);
}

/** Nothing in our hands, for whoever looks when we are dead. */
static struct message *empty_hand(void)
{
    *(volatile uint64_t *)&shared->hand[me].check = 0;
    return &shared->hand[me];
}

static ringbuf_status get_one(ringbuf *rb)
{
    size_t size;
    ringbuf_status status = ringbuf_get(rb, &size, empty_hand(), sizeof(struct message), 0);
    if (status == RINGBUF_OK) note_delivery(size);
    else if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_SHUTDOWN) wrong("get", status);
    return status;
}

/* ---- movers ---- */

static void put_one(ringbuf *rb)
{
    static struct message message;
    uint64_t number = atomic_fetch_add(&shared->next_number, 1);
    if (number >= MOST_MESSAGES) return;
    ringbuf_status status = ringbuf_put(rb, &message, fill(&message, number), 0);
    if (status == RINGBUF_OK) note_put(number);
    else if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_ARENA_FULL) wrong("put", status);
}

static void put_several(ringbuf *rb)
{
    static struct message messages[BATCH];
    ringbuf_part parts[BATCH];
    uint64_t first = atomic_fetch_add(&shared->next_number, BATCH);
    if (first + BATCH > MOST_MESSAGES) return;
    for (size_t i = 0; i < BATCH; i++) parts[i] = (ringbuf_part){&messages[i], fill(&messages[i], first + i)};
    ringbuf_status status = ringbuf_put_all(rb, parts, BATCH, 0);
    for (size_t i = 0; status == RINGBUF_OK && i < BATCH; i++) note_put(first + i);
    if (status != RINGBUF_OK && status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_ARENA_FULL) wrong("put_all", status);
}

static void take_one(ringbuf *rb, bool lease, bool give_back)
{
    ringbuf_message message = {.data = NULL};
    ringbuf_status status = (lease ? ringbuf_lease : ringbuf_take)(rb, &message, empty_hand(), sizeof(struct message), 0);
    if (status == RINGBUF_E_TIMEOUT) return;
    if (status != RINGBUF_OK) {
        wrong("take", status);
        return;
    }
    if (!give_back) {
        status = ringbuf_ack(rb, &message);
        if (status == RINGBUF_OK) note_delivery(message.size);
    } else {
        uint64_t number = shared->hand[me].number;
        empty_hand();
        atomic_store(&since_ns[number], -1);
        status = ringbuf_nack(rb, &message);
        int64_t away = -1;
        atomic_compare_exchange_strong(&since_ns[number], &away, ringbuf_now_ns());
    }
    if (status != RINGBUF_OK) wrong("ack or nack", status);
}

static ringbuf *attach(void)
{
    ringbuf *rb = NULL;
    ringbuf_status status = ringbuf_open(&rb, "q", NULL);
    if (status != RINGBUF_OK) {
        wrong("open", status);
        _exit(2);
    }
    return rb;
}

static void pause_if_told(void)
{
    if (atomic_load(&shared->phase) != PAUSE) return;
    atomic_fetch_add(&shared->paused, 1);
    while (atomic_load(&shared->phase) == PAUSE || atomic_load(&shared->phase) == LOOK) nap_ms(1);
}

static void move(void)
{
    ringbuf *rb = attach();
    while (atomic_load(&shared->phase) < DRAIN) {
        pause_if_told();
        uint64_t what = random_below(&random_state, 100);
        if (what < 45) put_one(rb);
        else if (what < 50) put_several(rb);
        else if (what < 65) get_one(rb);
        else if (what < 75) take_one(rb, false, true);
        else if (what < 80) take_one(rb, true, true);
        else if (what < 85) take_one(rb, what % 2, false);
        else if (what < 97) nap_ms((long)random_below(&random_state, 3));
        else if (random_below(&random_state, 20) == 0) {
            ringbuf_free(rb);
            rb = attach();
        }
    }
    ringbuf_free(rb);
}

/* ---- sleepers ---- */

static bool is_readable(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, 0) == 1;
}

/** When all pause: does the descriptor show what is there? */
static void look_if_told(ringbuf *rb, int fd)
{
    if (atomic_load(&shared->phase) != PAUSE) return;
    atomic_fetch_add(&shared->paused, 1);
    while (atomic_load(&shared->phase) == PAUSE) nap_ms(1);
    uint64_t items = 0;
    if (ringbuf_size(rb, &items) != RINGBUF_OK) wrong("size", RINGBUF_E_CORRUPT);
    if (is_readable(fd) != (items > 0)) {
        fprintf(stderr, "worker %d: %d messages, and the descriptor is %s\n", me, (int)items, items ? "down" : "up");
        atomic_fetch_add(&shared->wrong_levels, 1);
    }
    atomic_fetch_add(&shared->looked, 1);
    while (atomic_load(&shared->phase) == LOOK) nap_ms(1);
}

static void tick(ringbuf *rb, int64_t began_ns)
{
    atomic_fetch_add(&shared->ticks, 1);
    if (get_one(rb) == RINGBUF_OK) {
        atomic_fetch_add(&shared->ticks_with_message, 1);
        int64_t there_ns = atomic_load(&since_ns[shared->hand[me].number]);
        int64_t waited_ns = began_ns + (int64_t)TICK_MS * MILLISECOND - there_ns;
        if (there_ns > 0 && waited_ns > late_ns) {
            if (!kills) fprintf(stderr, "worker %d: a message lay there for %.1f ms\n", me, (double)waited_ns / 1e6);
            atomic_fetch_add(&shared->lost, 1);
        }
    }
    uint64_t recovered;
    ringbuf_status status = ringbuf_recover(rb, &recovered);
    if (status != RINGBUF_OK) wrong("recover", status);
    else atomic_fetch_add(&shared->recovered, recovered);
}

static void sleep_and_get(void)
{
    uint64_t in_a_row = 0;
    ringbuf *rb = NULL;
    for (;;) {
        struct pollfd polled = {.fd = -1, .events = POLLIN};
        if (!rb) rb = attach();
        ringbuf_status status = ringbuf_items_fd(rb, &polled.fd);
        if (status != RINGBUF_OK) {
            wrong("items_fd", status);
            return;
        }
        look_if_told(rb, polled.fd);
        int64_t began_ns = ringbuf_now_ns();
        int ready = poll(&polled, 1, TICK_MS);
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0 || polled.revents & ~POLLIN) wrong("poll", RINGBUF_E_SYSTEM);
        if (ready == 0) {
            tick(rb, began_ns);
            continue;
        }
        status = get_one(rb);
        if (status == RINGBUF_E_SHUTDOWN) break;
        in_a_row = status == RINGBUF_E_TIMEOUT ? in_a_row + 1 : 0;
        if (status == RINGBUF_E_TIMEOUT) atomic_fetch_add(&shared->spurious, 1);
        note_most(&shared->most_spurious, in_a_row);
        for (uint64_t more = random_below(&random_state, 4); status == RINGBUF_OK && more; more--) status = get_one(rb);
        if (random_below(&random_state, 200) == 0) {
            ringbuf_free(rb);
            rb = NULL;
        }
    }
    ringbuf_free(rb);
}

/* ---- workers ---- */

#ifdef RBI_TEST_POINTS
static void stumble(enum rbi_point point)
{
    static uint64_t own_state;
    if (!own_state) own_state = random_state ^ 1;
    uint64_t dice = random_below(&own_state, 2000);
    if (shared->die[me] && dice < 200) die();
    if (point == RBI_POINT_take_began || point == RBI_POINT_put_began) return;
    if (dice < 100) sched_yield();
    else if (dice == 100) nap_ms(1);
}
#endif

static int work(void *context)
{
    me = *(int *)context;
    random_state = seed * 1000 + (uint64_t)me * 7919 + (uint64_t)getpid() * 104729;
#ifdef RBI_TEST_POINTS
    rbi_point_hook = stumble;
#endif
    if (me < MOVERS) move();
    else sleep_and_get();
    return 0;
}

static pid_t start(int worker)
{
    static int numbers[WORKERS];
    numbers[worker] = worker;
    atomic_store(&shared->die[worker], 0);
    return start_child(work, &numbers[worker]);
}

static uint64_t *in_dead_hands;
static size_t dead_hands;

static void kill_one(pid_t *workers, int victim)
{
#ifdef RBI_TEST_POINTS
    atomic_store(&shared->die[victim], 1); /* at a point, if it comes to one soon */
    nap_ms(5);
#endif
    kill(workers[victim], SIGKILL);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, end_of(workers[victim]));
    const struct message *hand = &shared->hand[victim];
    if (hand->check && whole(hand)) in_dead_hands[dead_hands++] = hand->number;
    workers[victim] = start(victim);
}

static bool was_in_dead_hands(uint64_t number)
{
    for (size_t i = 0; i < dead_hands; i++)
        if (in_dead_hands[i] == number) return true;
    return false;
}

static void account(void)
{
    uint64_t put = 0, in_hands = 0, missing = 0, twice = 0;
    for (uint64_t number = 0; number < shared->next_number && number < MOST_MESSAGES; number++) {
        put += notes[number] & PUT_RETURNED;
        twice += notes[number] / DELIVERY > 1;
        if (notes[number] == PUT_RETURNED) {
            if (was_in_dead_hands(number)) in_hands++;
            else missing++;
        }
    }
    printf("%llu puts, %llu gets, %zu kills, %llu in the hands of the killed; %llu ticks, %llu of them with a message, %u late; %llu times "
           "readable and nothing there, at most %llu in a row\n", (unsigned long long)put, (unsigned long long)shared->gets, dead_hands,
           (unsigned long long)in_hands, (unsigned long long)shared->ticks, (unsigned long long)shared->ticks_with_message,
           (unsigned)shared->lost, (unsigned long long)shared->spurious, (unsigned long long)shared->most_spurious);
    TEST_ASSERT_EQUAL_UINT64(0, missing);
    TEST_ASSERT_EQUAL_UINT64(0, twice);
    TEST_ASSERT_EQUAL_UINT32(0, shared->wrong);
    TEST_ASSERT_GREATER_THAN_UINT64(100, shared->gets);
}

/** Pause everybody, have every sleeper look, and go on. */
static void look_at_rest(void)
{
    atomic_store(&shared->paused, 0);
    atomic_store(&shared->looked, 0);
    atomic_store(&shared->phase, PAUSE);
    wait_for_stage(&shared->paused, WORKERS);
    atomic_store(&shared->phase, LOOK);
    wait_for_stage(&shared->looked, SLEEPERS);
    atomic_store(&shared->phase, RUN);
}

/** The movers end; the sleepers get what is left, then end with the queue. */
static void end_workers(ringbuf *rb, pid_t *workers)
{
    atomic_store(&shared->phase, DRAIN);
    for (int i = 0; i < MOVERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(workers[i]));
    int64_t give_up_ns = ringbuf_now_ns() + INT64_C(30000) * MILLISECOND;
    struct pollfd polled = {.events = POLLIN};
    uint64_t items = 1, recovered = 1;
    ASSERT_OK(ringbuf_items_fd(rb, &polled.fd));
    while (items || recovered || is_readable(polled.fd)) {
        TEST_ASSERT_TRUE_MESSAGE(ringbuf_now_ns() < give_up_ns, "the sleepers do not get what is there, or the level stays up");
        ASSERT_OK(ringbuf_recover(rb, &recovered));
        ASSERT_OK(ringbuf_size(rb, &items));
        nap_ms(5);
    }
    ASSERT_OK(ringbuf_shutdown(rb, 0));
    TEST_ASSERT_TRUE(is_readable(polled.fd));
    for (int i = MOVERS; i < WORKERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(workers[i]));
}

static void *zeroed(size_t bytes)
{
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/** Forget them by new mappings; madvise would be shorter, but qemu ignores it. */
static void forget_messages(void)
{
    munmap((void *)(uintptr_t)notes, MOST_MESSAGES);
    munmap((void *)(uintptr_t)since_ns, MOST_MESSAGES * sizeof *since_ns);
    notes = zeroed(MOST_MESSAGES);
    since_ns = zeroed(MOST_MESSAGES * sizeof *since_ns);
    TEST_ASSERT_TRUE((void *)(uintptr_t)notes != MAP_FAILED && (void *)(uintptr_t)since_ns != MAP_FAILED);
    dead_hands = 0;
}

static ringbuf *begin(bool with_kills, pid_t *workers)
{
    ringbuf *rb = NULL;
    ringbuf_options how = options();
    kills = with_kills;
    memset(shared, 0, sizeof *shared);
    forget_messages();
    ASSERT_OK(ringbuf_create(&rb, "q", &how));
    for (int i = 0; i < WORKERS; i++) workers[i] = start(i);
    return rb;
}

static void test_in_a_storm_no_sleeper_is_left_beside_a_message_and_all_levels_are_exact_at_rest(void)
{
    pid_t workers[WORKERS];
    ringbuf *rb = begin(false, workers);
    int rounds = (int)(seconds * 5);
    for (int round = 0; round < rounds; round++) {
        nap_ms(150);
        look_at_rest();
    }
    end_workers(rb, workers);
    account();
    TEST_ASSERT_EQUAL_UINT32(0, shared->wrong_levels);
    TEST_ASSERT_EQUAL_UINT32(0, shared->lost);
    TEST_ASSERT_LESS_THAN_UINT64(1000, shared->most_spurious);
    ringbuf_free(rb);
}

static void test_a_storm_of_kills_loses_nothing_and_leaves_nobody_asleep(void)
{
    pid_t workers[WORKERS];
    ringbuf *rb = begin(true, workers);
    uint64_t state = seed;
    int64_t until_ns = ringbuf_now_ns() + (int64_t)(seconds * 1e9);
    while ((ringbuf_now_ns() < until_ns || dead_hands < KILLS_LEAST) && dead_hands < KILLS_MOST) {
        nap_ms(10 + (long)random_below(&state, 40));
        int victim = (int)random_below(&state, WORKERS);
        if (random_below(&state, 6) == 0) {
            stop_child(workers[victim]);
            nap_ms(130);
            if (random_below(&state, 2)) {
                kill(workers[victim], SIGCONT);
                continue;
            }
        }
        kill_one(workers, victim);
    }
    end_workers(rb, workers);
    account();
    TEST_ASSERT_LESS_THAN_UINT64(1000, shared->most_spurious);
    ringbuf_free(rb);
}

/* ---- CHANGES ---- */

static uint64_t each_puts;

static ringbuf_status put_number(ringbuf *rb, uint64_t number)
{
    static struct message message;
    return ringbuf_put(rb, &message, fill(&message, number), 0);
}

static bool is_full(ringbuf_status status) { return status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL; }

/** Wait for room by a descriptor only, as the header says. */
static ringbuf_status put_when_there_is_room(ringbuf *rb, uint64_t number)
{
    ringbuf_status status = put_number(rb, number);
    if (!is_full(status)) return status;
    for (;;) {
        struct pollfd polled = {.events = POLLIN};
        status = ringbuf_changes_fd(rb, RINGBUF_ROOM, &polled.fd);
        if (status == RINGBUF_OK) status = put_number(rb, number);
        if (!is_full(status)) break;
        atomic_fetch_add(&shared->waits, 1);
        if (poll(&polled, 1, TICK_MS) == 0) atomic_fetch_add(&shared->waits_in_vain, 1);
        status = put_number(rb, number);
        if (!is_full(status)) break;
    }
    ringbuf_pass_on(rb);
    return status;
}

static int produce_by_descriptor(void *context)
{
    me = *(int *)context;
    random_state = seed + (uint64_t)me;
#ifdef RBI_TEST_POINTS
    rbi_point_hook = stumble;
#endif
    ringbuf *rb = attach();
    for (uint64_t i = 0; i < each_puts; i++) {
        uint64_t number = atomic_fetch_add(&shared->next_number, 1);
        ringbuf_status status = put_when_there_is_room(rb, number);
        if (status == RINGBUF_OK) note_put(number);
        else wrong("put", status);
    }
    ringbuf_free(rb);
    return 0;
}

static int consume_slowly(void *context)
{
    me = *(int *)context;
    random_state = seed + (uint64_t)me;
    ringbuf *rb = attach();
    for (;;) {
        struct pollfd polled = {.events = POLLIN};
        if (ringbuf_items_fd(rb, &polled.fd) != RINGBUF_OK) return 1;
        poll(&polled, 1, TICK_MS);
        ringbuf_status status;
        while ((status = get_one(rb)) == RINGBUF_OK) {
            if (ringbuf_task_done(rb) != RINGBUF_OK) wrong("task_done", RINGBUF_E_TOO_MANY);
            if (random_below(&random_state, 30) == 0) nap_ms(1);
        }
        if (status == RINGBUF_E_SHUTDOWN) break;
    }
    ringbuf_free(rb);
    return 0;
}

static void test_those_who_wait_for_room_and_tasks_by_a_descriptor_all_come_through(void)
{
    enum { PRODUCERS = 4, CONSUMERS = 2 };
    static int numbers[WORKERS];
    pid_t workers[WORKERS];
    ringbuf *rb = NULL;
    ringbuf_options how = options();
    how.max_items = 8;
    how.arena_bytes = 64 * 4096;
    memset(shared, 0, sizeof *shared);
    forget_messages();
    each_puts = (uint64_t)(seconds * (SANITIZED ? 100 : 1000));
    ASSERT_OK(ringbuf_create(&rb, "q", &how));
    for (int i = 0; i < PRODUCERS + CONSUMERS; i++) {
        numbers[i] = i;
        workers[i] = start_child(i < PRODUCERS ? produce_by_descriptor : consume_slowly, &numbers[i]);
    }
    while (atomic_load(&shared->next_number) < 1) nap_ms(1);
    struct pollfd polled = {.events = POLLIN};
    for (;;) { /* join, by a descriptor only */
        ASSERT_OK(ringbuf_changes_fd(rb, RINGBUF_DONE, &polled.fd));
        ringbuf_status status = ringbuf_join(rb, 0);
        if (status == RINGBUF_OK && atomic_load(&shared->gets) == each_puts * PRODUCERS) break;
        if (status != RINGBUF_OK) ASSERT_STATUS(RINGBUF_E_TIMEOUT, status);
        poll(&polled, 1, TICK_MS);
    }
    ASSERT_OK(ringbuf_pass_on(rb));
    for (int i = 0; i < PRODUCERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(workers[i]));
    ASSERT_OK(ringbuf_shutdown(rb, 0));
    for (int i = PRODUCERS; i < PRODUCERS + CONSUMERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(workers[i]));
    printf("%llu waits for room, %llu of them the full tick\n", (unsigned long long)shared->waits, (unsigned long long)shared->waits_in_vain);
    account();
    ringbuf_free(rb);
}

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

int main(int count, char **words)
{
    if (count > 1) seconds = atof(words[1]);
    seed = count > 2 ? strtoull(words[2], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    shared = zeroed(sizeof *shared);
    notes = zeroed(MOST_MESSAGES);
    since_ns = zeroed(MOST_MESSAGES * sizeof *since_ns);
    in_dead_hands = calloc(KILLS_MOST + 1, sizeof *in_dead_hands);
    if (shared == MAP_FAILED || (void *)notes == MAP_FAILED || (void *)since_ns == MAP_FAILED || !in_dead_hands) return 1;
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_in_a_storm_no_sleeper_is_left_beside_a_message_and_all_levels_are_exact_at_rest);
    RUN_TEST(test_a_storm_of_kills_loses_nothing_and_leaves_nobody_asleep);
    RUN_TEST(test_those_who_wait_for_room_and_tasks_by_a_descriptor_all_come_through);
    int failures = leave_suite_directory(UNITY_END());
    free(in_dead_hands);
    return failures;
}
