/* test_stress.c — real traffic, fully accounted for: threads on one handle, and processes.
 *
 * Every message carries producer, sequence and a checksum over its filling.  At the end none is lost, none came twice, and each
 * consumer saw each producer's messages in order.
 *
 *   test_stress                     both, in a size that suits a test run
 *   test_stress threads|processes MESSAGES [PRODUCERS CONSUMERS]     one, as large as you like
 *
 * ThreadSanitizer sees the threads only; the processes run without it as well. */
#include <pthread.h>
#include <ringbuf/ringbuf.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <unity.h>

enum { MOST = 16, LARGEST = 2048 };

struct message {
    uint32_t producer;
    uint32_t checksum;
    uint64_t sequence;
    uint8_t filling[LARGEST];
};

/** What all workers share; in memory that forked ones share, too. */
struct shared {
    _Atomic uint64_t got[MOST];          /* by producer */
    _Atomic uint64_t sum[MOST];          /* of the sequences got, by producer: finds what a count does not */
    _Atomic uint32_t out_of_order, damaged, failed;
};
static struct shared *shared;
static uint64_t messages_each;
static char directory[64];

static ringbuf_options options(void)
{
    ringbuf_options made;
    ringbuf_options_init(&made);
    made.directory = directory;
    made.capacity_bytes = 64 << 10; /* small, so that it is full and empty often */
    return made;
}

static uint32_t checksum(const struct message *message, size_t size)
{
    uint32_t hash = 2166136261u ^ message->producer ^ (uint32_t)message->sequence;
    for (size_t i = 0; i < size - offsetof(struct message, filling); i++) hash = (hash ^ message->filling[i]) * 16777619u;
    return hash;
}

static size_t size_for(uint64_t sequence)
{
    static const size_t fillings[] = {0, 1, 24, 32, 33, 48, 100, 112, 113, 700};
    return offsetof(struct message, filling) + (sequence % 97 ? fillings[sequence % 10] : LARGEST);
}

static void produce(ringbuf *rb, uint32_t producer)
{
    struct message message = {.producer = producer};
    for (uint64_t sequence = 1; sequence <= messages_each; sequence++) {
        message.sequence = sequence;
        memset(message.filling, (int)(sequence * 7 + producer), sizeof message.filling);
        size_t size = size_for(sequence);
        message.checksum = checksum(&message, size);
        if (ringbuf_put(rb, &message, size, RINGBUF_FOREVER) != RINGBUF_OK) {
            atomic_fetch_add(&shared->failed, 1);
            return;
        }
    }
}

static void consume(ringbuf *rb)
{
    uint64_t last[MOST] = {0};
    struct message message;
    for (;;) {
        size_t size;
        ringbuf_status status = ringbuf_get(rb, &size, &message, sizeof message, RINGBUF_FOREVER);
        if (status == RINGBUF_E_SHUTDOWN) return;
        if (status != RINGBUF_OK || message.producer >= MOST) {
            atomic_fetch_add(&shared->failed, 1);
            return;
        }
        if (size != size_for(message.sequence) || message.checksum != checksum(&message, size))
            atomic_fetch_add(&shared->damaged, 1);
        if (message.sequence <= last[message.producer]) atomic_fetch_add(&shared->out_of_order, 1);
        last[message.producer] = message.sequence;
        atomic_fetch_add_explicit(&shared->got[message.producer], 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&shared->sum[message.producer], message.sequence, memory_order_relaxed);
    }
}

static void account(int producers)
{
    TEST_ASSERT_EQUAL_UINT32(0, shared->failed);
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(0, shared->damaged, "a message was damaged");
    TEST_ASSERT_EQUAL_UINT32_MESSAGE(0, shared->out_of_order, "a producer's messages came out of order");
    for (int i = 0; i < producers; i++) {
        TEST_ASSERT_EQUAL_UINT64_MESSAGE(messages_each, shared->got[i], "lost or twice");
        TEST_ASSERT_EQUAL_UINT64_MESSAGE(messages_each * (messages_each + 1) / 2, shared->sum[i], "one lost and one twice");
    }
}

/* ---- threads on one handle ---- */

struct worker {
    ringbuf *rb;
    uint32_t producer;
};

static void *producer_thread(void *worker)
{
    produce(((struct worker *)worker)->rb, ((struct worker *)worker)->producer);
    return NULL;
}

static void *consumer_thread(void *worker)
{
    consume(((struct worker *)worker)->rb);
    return NULL;
}

static void run_threads(uint64_t messages, int producers, int consumers)
{
    memset(shared, 0, sizeof *shared);
    messages_each = messages / (uint64_t)producers;
    ringbuf *rb;
    ringbuf_options how = options();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_create(&rb, NULL, &how));
    pthread_t threads[2 * MOST];
    struct worker workers[2 * MOST];
    for (int i = 0; i < producers + consumers; i++) {
        workers[i] = (struct worker){rb, (uint32_t)i};
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&threads[i], NULL, i < producers ? producer_thread : consumer_thread, &workers[i]));
    }
    for (int i = 0; i < producers; i++) pthread_join(threads[i], NULL);
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_shutdown(rb, 0));
    for (int i = producers; i < producers + consumers; i++) pthread_join(threads[i], NULL);
    account(producers);
    ringbuf_stats stats;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get_stats(rb, &stats));
    TEST_ASSERT_EQUAL_UINT64(messages_each * (uint64_t)producers, stats.puts);
    TEST_ASSERT_EQUAL_UINT64(messages_each * (uint64_t)producers, stats.gets);
    TEST_ASSERT_EQUAL_UINT64(0, stats.items);
    ringbuf_free(rb);
}

/* ---- processes ---- */

static void run_processes(uint64_t messages, int producers, int consumers)
{
    memset(shared, 0, sizeof *shared);
    messages_each = messages / (uint64_t)producers;
    ringbuf *rb;
    ringbuf_options how = options();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_create(&rb, NULL, &how));
    fflush(NULL);
    pid_t children[2 * MOST];
    for (int i = 0; i < producers + consumers; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            ringbuf *mine;
            if (ringbuf_open(&mine, ringbuf_name(rb), &how) != RINGBUF_OK) _exit(2);
            ringbuf_close(rb); /* the inherited handle is another participant */
            if (i < producers) produce(mine, (uint32_t)i);
            else consume(mine);
            ringbuf_free(mine);
            _exit(0);
        }
    }
    int state;
    for (int i = 0; i < producers; i++) {
        waitpid(children[i], &state, 0);
        TEST_ASSERT_EQUAL_INT(0, state);
    }
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_shutdown(rb, 0));
    for (int i = producers; i < producers + consumers; i++) {
        waitpid(children[i], &state, 0);
        TEST_ASSERT_EQUAL_INT(0, state);
    }
    account(producers);
    ringbuf_free(rb);
}

#ifdef __SANITIZE_THREAD__
enum { THREAD_MESSAGES = 40000, PROCESS_MESSAGES = 40000 };
#else
enum { THREAD_MESSAGES = 400000, PROCESS_MESSAGES = 1000000 };
#endif

static void test_eight_threads_on_one_handle_lose_nothing(void) { run_threads(THREAD_MESSAGES, 4, 4); }
static void test_one_thread_each_way_loses_nothing(void) { run_threads(THREAD_MESSAGES, 1, 1); }
static void test_four_producer_and_four_consumer_processes_lose_nothing(void) { run_processes(PROCESS_MESSAGES, 4, 4); }
static void test_many_producers_of_one_consumer_lose_nothing(void) { run_processes(PROCESS_MESSAGES / 4, 7, 1); }
static void test_many_consumers_of_one_producer_lose_nothing(void) { run_processes(PROCESS_MESSAGES / 4, 1, 7); }

void setUp(void) {}
void tearDown(void) {}

static int chosen_processes, chosen_producers = 4, chosen_consumers = 4;
static uint64_t chosen_messages;

static void test_the_chosen_run_loses_nothing(void)
{
    (chosen_processes ? run_processes : run_threads)(chosen_messages, chosen_producers, chosen_consumers);
}

int main(int count, char **words)
{
    snprintf(directory, sizeof directory, "/dev/shm/ringbuf-stress-%d", (int)getpid());
    if (mkdir(directory, 0700) != 0) return 1;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    UNITY_BEGIN();
    if (count >= 3) {
        chosen_processes = strcmp(words[1], "processes") == 0;
        chosen_messages = strtoull(words[2], NULL, 10);
        if (count >= 5) chosen_producers = atoi(words[3]), chosen_consumers = atoi(words[4]);
        RUN_TEST(test_the_chosen_run_loses_nothing);
    } else {
        RUN_TEST(test_eight_threads_on_one_handle_lose_nothing);
        RUN_TEST(test_one_thread_each_way_loses_nothing);
        RUN_TEST(test_four_producer_and_four_consumer_processes_lose_nothing);
        RUN_TEST(test_many_producers_of_one_consumer_lose_nothing);
        RUN_TEST(test_many_consumers_of_one_producer_lose_nothing);
    }
    int failures = UNITY_END();
    if (rmdir(directory) != 0) {
        printf("left in %s: FAIL\n", directory);
        failures++;
    }
    return failures;
}
