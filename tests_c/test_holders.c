/* test_holders.c — what users hold costs the others nothing: traffic through a small ring beside one who holds a lot.
 *
 *   test_holders [MESSAGES]      default: as many as suit a test run
 *
 * One process holds 100 kept messages (50 of them small ones that were leased first), 100 unacknowledged leases of small messages and
 * a reservation, all the time.  Meanwhile four producers and three consumers pass MESSAGES further ones through the same queue, whose
 * ring of 1 MiB goes round many times.  One consumer gets, one takes and acknowledges, one leases and acknowledges.
 *
 * Every message has a byte in shared memory, by producer and sequence, in which its deliveries are counted; each consumer sees each
 * producer's messages in order; each is whole.  When all have come, nothing of the ring is in use, and exactly what the holder holds
 * is in the arena. */
#include "support.h"

#include <sys/prctl.h>

enum {
    PRODUCERS = 4,
    CONSUMERS = 3,
    KEPT_LARGE = 50,
    KEPT_SMALL = 50,
    KEPT = KEPT_LARGE + KEPT_SMALL,
    LEASED = 100,
    HELD = KEPT + LEASED,
    LARGE_BYTES = 100000, /* more than a ring takes */
    LARGEST_BYTES = 150000,
    SMALL_BYTES = 200,
    RESERVED_BYTES = 1 << 20,
    HOLDERS_MESSAGES = PRODUCERS, /* in the place of a producer's number */
};

struct message {
    uint32_t producer; /* or HOLDERS_MESSAGES */
    uint32_t check;
    uint64_t sequence; /* from 1 */
    uint8_t filling[LARGEST_BYTES];
};

struct shared {
    stage holder_holds; /* 1: everything, -1: something went wrong */
    stage end_holding;
    stage produced;     /* producers that are done */
    stage delivered[CONSUMERS];
    _Atomic uint32_t damaged, out_of_order, failed;
    _Atomic uint8_t deliveries[]; /* [producer * messages_each + sequence - 1] */
};
static struct shared *shared;
static size_t shared_bytes;
static uint64_t messages_each = (SANITIZED ? 40000 : 200000) / PRODUCERS;

/* ---- messages ---- */

static uint32_t check_of(const struct message *message, size_t size)
{
    uint32_t hash = 2166136261u ^ message->producer ^ (uint32_t)message->sequence ^ (uint32_t)size;
    for (size_t i = 0; i < size - offsetof(struct message, filling); i++) hash = (hash ^ message->filling[i]) * 16777619u;
    return hash;
}

static void fill(struct message *message, uint32_t producer, uint64_t sequence, size_t size)
{
    message->producer = producer;
    message->sequence = sequence;
    for (size_t i = 0; i < size - offsetof(struct message, filling); i++) message->filling[i] = (uint8_t)(sequence * 31 + producer + i * 7);
    message->check = check_of(message, size);
}

static size_t size_for(uint32_t producer, uint64_t sequence)
{
    uint64_t state = sequence * PRODUCERS + producer;
    if (producer == HOLDERS_MESSAGES) return sequence <= KEPT_LARGE ? LARGE_BYTES : SMALL_BYTES;
    if (sequence % 500 == 0) return LARGE_BYTES + random_below(&state, LARGEST_BYTES - LARGE_BYTES);
    return offsetof(struct message, filling) + random_below(&state, sequence % 16 == 0 ? 4000 : 300);
}

static bool whole(const struct message *message, size_t size)
{
    return size >= offsetof(struct message, filling) && message->producer <= HOLDERS_MESSAGES &&
           size == size_for(message->producer, message->sequence) && message->check == check_of(message, size);
}

/* ---- the holder ---- */

struct hoard {
    ringbuf_message messages[HELD]; /* the kept ones first */
    ringbuf_reservation reservation;
};

static bool is_held(const ringbuf_message *message, uint64_t sequence)
{
    const struct message *data = message->data;
    return message->in_arena && whole(data, message->size) && data->producer == HOLDERS_MESSAGES && data->sequence == sequence;
}

static bool take_hold(ringbuf *rb, struct hoard *hoard)
{
    for (int i = 0; i < HELD; i++) {
        ringbuf_message *message = &hoard->messages[i];
        if (ringbuf_lease(rb, message, NULL, 0, RINGBUF_FOREVER) != RINGBUF_OK || message->attempts != 1 || !is_held(message, (uint64_t)i + 1)) return false;
        if (i < KEPT && ringbuf_keep(rb, message) != RINGBUF_OK) return false;
    }
    if (ringbuf_reserve(rb, &hoard->reservation, RESERVED_BYTES, 0) != RINGBUF_OK) return false;
    memset(hoard->reservation.data, 0xa5, RESERVED_BYTES);
    return true;
}

static bool everything_is_unchanged(const struct hoard *hoard)
{
    for (int i = 0; i < HELD; i++)
        if (!is_held(&hoard->messages[i], (uint64_t)i + 1)) return false;
    const uint8_t *reserved = hoard->reservation.data;
    for (size_t i = 0; i < RESERVED_BYTES; i++)
        if (reserved[i] != 0xa5) return false;
    return true;
}

static bool let_go(ringbuf *rb, const struct hoard *hoard)
{
    for (int i = 0; i < KEPT; i++)
        if (ringbuf_release(rb, &hoard->messages[i]) != RINGBUF_OK) return false;
    for (int i = KEPT; i < HELD; i++)
        if (ringbuf_ack(rb, &hoard->messages[i]) != RINGBUF_OK) return false;
    return ringbuf_abort(rb, &hoard->reservation) == RINGBUF_OK;
}

static int hold(void *context)
{
    (void)context;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    static struct hoard hoard;
    ringbuf *rb;
    if (ringbuf_open(&rb, "holders", NULL) != RINGBUF_OK) return 2;
    atomic_store(&shared->holder_holds, take_hold(rb, &hoard) ? 1 : -1);
    wait_for_stage(&shared->end_holding, 1);
    if (!everything_is_unchanged(&hoard)) return 3;
    if (!let_go(rb, &hoard)) return 4;
    ringbuf_free(rb);
    return 0;
}

/* ---- the traffic ---- */

static int produce(void *context)
{
    static struct message message;
    uint32_t producer = *(uint32_t *)context;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ringbuf *rb;
    if (ringbuf_open(&rb, "holders", NULL) != RINGBUF_OK) return 2;
    for (uint64_t sequence = 1; sequence <= messages_each; sequence++) {
        size_t size = size_for(producer, sequence);
        fill(&message, producer, sequence, size);
        ringbuf_status status;
        do status = ringbuf_put(rb, &message, size, RINGBUF_FOREVER);
        while (status == RINGBUF_E_INTR);
        if (status != RINGBUF_OK) return 3;
    }
    ringbuf_free(rb);
    return 0;
}

static void note(const struct message *message, size_t size, uint64_t *last)
{
    if (!whole(message, size) || message->producer >= PRODUCERS || message->sequence == 0 || message->sequence > messages_each) {
        atomic_fetch_add(&shared->damaged, 1);
        return;
    }
    if (message->sequence <= last[message->producer]) atomic_fetch_add(&shared->out_of_order, 1);
    last[message->producer] = message->sequence;
    atomic_fetch_add(&shared->deliveries[message->producer * messages_each + message->sequence - 1], 1);
}

/** The next message, by the way that this consumer takes them. */
static ringbuf_status receive(ringbuf *rb, uint32_t consumer, uint64_t *last)
{
    static struct message buffer;
    int64_t deadline_ns = ringbuf_now_ns() + 100 * (int64_t)MILLISECOND;
    if (consumer == 0) {
        size_t size;
        ringbuf_status status = ringbuf_get(rb, &size, &buffer, sizeof buffer, deadline_ns);
        if (status == RINGBUF_OK) note(&buffer, size, last);
        return status;
    }
    ringbuf_message message = {0};
    ringbuf_status status = (consumer == 1 ? ringbuf_take : ringbuf_lease)(rb, &message, NULL, 0, deadline_ns);
    if (status != RINGBUF_OK) return status;
    note(message.data, message.size, last);
    return ringbuf_ack(rb, &message);
}

static int consume(void *context)
{
    uint32_t consumer = *(uint32_t *)context;
    uint64_t last[PRODUCERS] = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ringbuf *rb;
    if (ringbuf_open(&rb, "holders", NULL) != RINGBUF_OK) return 2;
    for (;;) {
        bool produced = shared->produced == PRODUCERS; /* before we look for the last time */
        ringbuf_status status = receive(rb, consumer, last);
        if (status == RINGBUF_OK) atomic_fetch_add(&shared->delivered[consumer], 1);
        else if (status == RINGBUF_E_TIMEOUT && produced) break;
        else if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_INTR) return 3;
    }
    ringbuf_free(rb);
    return 0;
}

/** Pauses of progress: how long nobody, and how long one of the consumers, got nothing. */
static struct pauses {
    int seen[CONSUMERS + 1];
    int64_t since_ns[CONSUMERS + 1], longest_ns[CONSUMERS + 1];
} pauses;

static void look_at(int i, int count)
{
    int64_t now_ns = ringbuf_now_ns();
    if (count != pauses.seen[i] || pauses.since_ns[i] == 0) {
        pauses.seen[i] = count;
        pauses.since_ns[i] = now_ns;
    } else if (now_ns - pauses.since_ns[i] > pauses.longest_ns[i]) {
        pauses.longest_ns[i] = now_ns - pauses.since_ns[i];
    }
}

/** Until all producers have ended: then what is left is in the ring, and consumers may run dry. */
static void watch_until_all_is_produced(const pid_t *producers)
{
    pauses = (struct pauses){0};
    while (shared->produced < PRODUCERS) {
        nap_ms(1);
        int sum = 0;
        for (int i = 0; i < CONSUMERS; i++) {
            sum += shared->delivered[i];
            look_at(i, shared->delivered[i]);
        }
        look_at(CONSUMERS, sum);
        int how;
        if (waitpid(producers[shared->produced], &how, WNOHANG) == 0) continue;
        TEST_ASSERT_EQUAL_INT(0, how);
        shared->produced++;
    }
}

static void expect_each_exactly_once(void)
{
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(0, shared->damaged, "a message was damaged");
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(0, shared->out_of_order, "a producer's messages came out of order");
    uint64_t lost = 0, twice = 0;
    for (uint64_t i = 0; i < messages_each * PRODUCERS; i++) {
        lost += shared->deliveries[i] == 0;
        twice += shared->deliveries[i] > 1;
    }
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, lost, "lost");
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, twice, "twice");
}

static void pass_traffic(const char *beside_what)
{
    pid_t producers[PRODUCERS], consumers[CONSUMERS];
    int64_t start_ns = ringbuf_now_ns();
    for (uint32_t i = 0; i < CONSUMERS; i++) consumers[i] = start_child(consume, &i);
    for (uint32_t i = 0; i < PRODUCERS; i++) producers[i] = start_child(produce, &i);
    watch_until_all_is_produced(producers);
    int64_t taken_ns = ringbuf_now_ns() - start_ns;
    for (int i = 0; i < CONSUMERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(consumers[i]));
    expect_each_exactly_once();
    int64_t longest_of_one_ns = 0;
    for (int i = 0; i < CONSUMERS; i++)
        if (pauses.longest_ns[i] > longest_of_one_ns) longest_of_one_ns = pauses.longest_ns[i];
    printf("%s: %llu messages in %.2f s (get %d, take %d, lease %d), longest pause of all %.0f ms, of one consumer %.0f ms\n", beside_what,
           (unsigned long long)(messages_each * PRODUCERS), (double)taken_ns / 1e9, shared->delivered[0], shared->delivered[1],
           shared->delivered[2], (double)pauses.longest_ns[CONSUMERS] / 1e6, (double)longest_of_one_ns / 1e6);
}

/* ---- the tests ---- */

/** A queue, and somebody who holds much of it. */
static ringbuf *begin(pid_t *holder)
{
    memset(shared, 0, offsetof(struct shared, deliveries));
    memset((void *)shared->deliveries, 0, shared_bytes - offsetof(struct shared, deliveries));
    ringbuf *rb;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 1 << 20;
    ASSERT_OK(ringbuf_create(&rb, "holders", &options));
    *holder = start_child(hold, NULL);
    static struct message message;
    for (uint64_t sequence = 1; sequence <= HELD; sequence++) {
        size_t size = size_for(HOLDERS_MESSAGES, sequence);
        fill(&message, HOLDERS_MESSAGES, sequence, size);
        ASSERT_OK(ringbuf_put(rb, &message, size, RINGBUF_FOREVER));
    }
    while (shared->holder_holds == 0) nap_ms(1);
    TEST_ASSERT_EQUAL_INT(1, shared->holder_holds);
    return rb;
}

static void expect_in_arena(ringbuf *rb, uint64_t held, uint64_t leased, uint64_t reserved)
{
    ringbuf_stats stats;
    ringbuf_findings findings;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    TEST_ASSERT_EQUAL_UINT64(0, stats.items);
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, stats.used_bytes, "something is left in the ring");
    TEST_ASSERT_EQUAL_UINT64(held, stats.held);
    TEST_ASSERT_EQUAL_UINT64(leased, stats.leased);
    TEST_ASSERT_EQUAL_UINT64(reserved, stats.reserved);
    if (held + leased + reserved == 0) TEST_ASSERT_EQUAL_UINT64(0, stats.arena_used_bytes);
    ASSERT_OK(ringbuf_check(rb, &findings));
    TEST_ASSERT_EQUAL_UINT64(held + leased + reserved, findings.runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_blocks);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.broken_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.dangling_messages);
}

static void let_the_holder_end(ringbuf *rb, pid_t holder)
{
    atomic_store(&shared->end_holding, 1);
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, end_of(holder), "3: what was held has changed");
    expect_in_arena(rb, 0, 0, 0);
    ringbuf_free(rb);
}

static void test_beside_one_who_holds_200_messages_all_others_pass(void)
{
    pid_t holder;
    ringbuf *rb = begin(&holder);
    pass_traffic("beside a holder");
    expect_in_arena(rb, KEPT, LEASED, 1);
    let_the_holder_end(rb, holder);
}

static void test_beside_one_who_is_stopped_while_he_holds_200_messages_all_others_pass(void)
{
    pid_t holder;
    ringbuf *rb = begin(&holder);
    stop_child(holder);
    pass_traffic("beside a stopped holder");
    expect_in_arena(rb, KEPT, LEASED, 1);
    kill(holder, SIGCONT);
    let_the_holder_end(rb, holder);
}

static void test_when_the_holder_is_killed_his_leases_are_delivered_again_and_the_rest_is_free(void)
{
    pid_t holder;
    ringbuf *rb = begin(&holder);
    pass_traffic("beside a holder who is killed then");
    kill_child(holder);
    for (uint64_t sequence = KEPT + 1; sequence <= HELD; sequence++) {
        ringbuf_message message = {0};
        ASSERT_OK(ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER));
        TEST_ASSERT_TRUE_MESSAGE(is_held(&message, sequence), "not the oldest of his leases");
        TEST_ASSERT_EQUAL_UINT32(2, message.attempts);
        ASSERT_OK(ringbuf_ack(rb, &message));
    }
    ringbuf_message none = {0};
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_lease(rb, &none, NULL, 0, 0));
    expect_in_arena(rb, 0, 0, 0);
    ringbuf_free(rb);
}

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

int main(int count, char **words)
{
    if (count >= 2) messages_each = strtoull(words[1], NULL, 10) / PRODUCERS;
    shared_bytes = sizeof *shared + messages_each * PRODUCERS;
    shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_beside_one_who_holds_200_messages_all_others_pass);
    RUN_TEST(test_beside_one_who_is_stopped_while_he_holds_200_messages_all_others_pass);
    RUN_TEST(test_when_the_holder_is_killed_his_leases_are_delivered_again_and_the_rest_is_free);
    return leave_suite_directory(UNITY_END());
}
