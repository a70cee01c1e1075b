/* test_storm.c — producers and consumers killed at random while they work.
 *
 *   test_storm [KILLS SECONDS]      default: a short one for a test run
 *
 * Four producers and four consumers are killed with SIGKILL and replaced, one every now and then; sometimes one is stopped for a
 * while first.  One producer and one consumer more are never harmed: the longest time in which they made no progress is reported.
 *
 * Accounting is exact.  Every message has a number of its own and a byte in shared memory.  A producer notes there that its put has
 * returned.  A consumer receives into its own place in shared memory, and notes the delivery when get has returned.  So for every
 * message whose put returned: either exactly one delivery is noted, or none is and the message lies in the place of a consumer that was
 * killed after get had released it and before it could note that.  Each kill explains at most one message. */
#include <ringbuf/ringbuf.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <unity.h>

enum { WORKERS = 10, STEADY_PRODUCER = 8, STEADY_CONSUMER = 9, LARGEST = 8192, PUT_RETURNED = 1, DELIVERY = 2 };
#define MOST_MESSAGES ((uint64_t)1 << 28)

struct message {
    uint64_t number;
    uint64_t check;
    uint8_t filling[LARGEST];
};

struct shared {
    _Atomic uint64_t next_number;
    _Atomic uint64_t progress[WORKERS];
    _Atomic uint32_t wrong;
    _Atomic uint32_t stop_producing;
    struct message hand[WORKERS]; /* where each consumer receives */
};
static struct shared *shared;
static _Atomic uint8_t *notes; /* by message number */
static char directory[64];
static int kills = 24;
static double seconds = 6;
static uint64_t *in_dead_hands;
static int dead_hands;

static ringbuf_options options(void)
{
    ringbuf_options made;
    ringbuf_options_init(&made);
    made.directory = directory;
    made.capacity_bytes = 128 << 10;
    return made;
}

static size_t size_of_number(uint64_t number)
{
    static const size_t fillings[] = {0, 8, 32, 33, 100, 400, 1500};
    return offsetof(struct message, filling) + (number % 61 ? fillings[number % 7] : LARGEST);
}

static uint64_t check_of(uint64_t number) { return (number + 1) * UINT64_C(0x9e3779b97f4a7c15); }

static bool whole(const struct message *message)
{
    if (message->check != check_of(message->number)) return false;
    for (size_t i = 0; i < size_of_number(message->number) - offsetof(struct message, filling); i++)
        if (message->filling[i] != (uint8_t)message->number) return false;
    return true;
}

static void produce(ringbuf *rb, int me)
{
    struct message message;
    while (!shared->stop_producing) {
        message.number = atomic_fetch_add(&shared->next_number, 1);
        if (message.number >= MOST_MESSAGES) return;
        message.check = check_of(message.number);
        memset(message.filling, (int)(uint8_t)message.number, sizeof message.filling);
        ringbuf_status status;
        do status = ringbuf_put(rb, &message, size_of_number(message.number), ringbuf_now_ns() + 500000000);
        while (status == RINGBUF_E_TIMEOUT && !shared->stop_producing);
        if (status == RINGBUF_OK) atomic_fetch_or(&notes[message.number], PUT_RETURNED);
        else if (status != RINGBUF_E_TIMEOUT) atomic_fetch_add(&shared->wrong, 1);
        atomic_fetch_add(&shared->progress[me], 1);
    }
}

static void consume(ringbuf *rb, int me)
{
    struct message *hand = &shared->hand[me];
    for (;;) {
        size_t size;
        *(volatile uint64_t *)&hand->check = 0; /* empty; before the call, for whoever looks when we are dead */
        ringbuf_status status = ringbuf_get(rb, &size, hand, sizeof *hand, RINGBUF_FOREVER);
        if (status == RINGBUF_E_SHUTDOWN) return;
        if (status != RINGBUF_OK || !whole(hand) || size != size_of_number(hand->number)) {
            atomic_fetch_add(&shared->wrong, 1);
            return;
        }
        atomic_fetch_add(&notes[hand->number], DELIVERY);
        atomic_fetch_add(&shared->progress[me], 1);
    }
}

static bool produces(int worker) { return worker == STEADY_PRODUCER || worker < 4; }

static pid_t start(int worker)
{
    fflush(NULL);
    pid_t child = fork();
    if (child != 0) return child;
    ringbuf *rb;
    ringbuf_options how = options();
    if (ringbuf_open(&rb, "storm", &how) != RINGBUF_OK) _exit(2);
    if (produces(worker)) produce(rb, worker);
    else consume(rb, worker);
    ringbuf_free(rb);
    _exit(0);
}

static void note_dead_hand(int worker)
{
    const struct message *hand = &shared->hand[worker];
    if (produces(worker) || hand->check == 0 || !whole(hand)) return;
    in_dead_hands[dead_hands++] = hand->number;
}

static bool was_in_dead_hands(uint64_t number)
{
    for (int i = 0; i < dead_hands; i++)
        if (in_dead_hands[i] == number) return true;
    return false;
}

/** Watch the two that are never harmed; returns the longest pause so far, in ns. */
static int64_t watch(void)
{
    static uint64_t seen[WORKERS];
    static int64_t since_ns[WORKERS], longest_ns;
    int64_t now_ns = ringbuf_now_ns();
    for (int worker = STEADY_PRODUCER; worker <= STEADY_CONSUMER; worker++) {
        uint64_t progress = shared->progress[worker];
        if (progress != seen[worker] || since_ns[worker] == 0) {
            seen[worker] = progress;
            since_ns[worker] = now_ns;
        } else if (now_ns - since_ns[worker] > longest_ns) {
            longest_ns = now_ns - since_ns[worker];
        }
    }
    return longest_ns;
}

static void test_a_storm_of_kills_loses_and_doubles_nothing(void)
{
    ringbuf *rb;
    ringbuf_options how = options();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_create(&rb, "storm", &how));
    /* Workers attach by name; the handle they inherit would make each of them present twice. */
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) workers[i] = start(i);
    int64_t between_ns = (int64_t)(seconds * 1e9 / kills), next_ns = ringbuf_now_ns() + between_ns, longest_ns = 0;
    for (int killed = 0; killed < kills;) {
        usleep(5000);
        longest_ns = watch();
        if (ringbuf_now_ns() < next_ns) continue;
        int victim = rand() % 8, state;
        if (rand() % 4 == 0) {
            kill(workers[victim], SIGSTOP);
            for (int i = 0; i < 30; i++) {
                usleep(5000);
                longest_ns = watch();
            }
        }
        kill(workers[victim], SIGKILL);
        TEST_ASSERT_EQUAL_INT(workers[victim], waitpid(workers[victim], &state, 0));
        TEST_ASSERT_TRUE_MESSAGE(WIFSIGNALED(state), "a worker ended by itself");
        note_dead_hand(victim);
        workers[victim] = start(victim);
        killed++;
        next_ns += between_ns;
    }
    shared->stop_producing = 1;
    int state;
    for (int i = 0; i < WORKERS; i++)
        if (produces(i)) {
            waitpid(workers[i], &state, 0);
            TEST_ASSERT_EQUAL_INT(0, state);
        }
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_shutdown(rb, 0));
    for (int i = 0; i < WORKERS; i++)
        if (!produces(i)) {
            waitpid(workers[i], &state, 0);
            TEST_ASSERT_EQUAL_INT(0, state);
        }
    TEST_ASSERT_EQUAL_UINT32(0, shared->wrong);

    uint64_t put = 0, delivered = 0, in_hands = 0, lost = 0, twice = 0;
    for (uint64_t number = 0; number < shared->next_number && number < MOST_MESSAGES; number++) {
        unsigned deliveries = notes[number] / DELIVERY;
        put += notes[number] & PUT_RETURNED;
        delivered += deliveries;
        twice += deliveries > 1;
        if (notes[number] == PUT_RETURNED) {
            if (was_in_dead_hands(number)) in_hands++;
            else lost++;
        }
    }
    ringbuf_stats stats;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get_stats(rb, &stats));
    printf("%d kills in %.0f s: %llu puts returned, %llu deliveries, %llu in the hands of the killed, %llu lost, %llu twice, "
           "%llu recoveries, longest pause of the unharmed %.0f ms\n",
           kills, seconds, (unsigned long long)put, (unsigned long long)delivered, (unsigned long long)in_hands,
           (unsigned long long)lost, (unsigned long long)twice, (unsigned long long)stats.recoveries, (double)longest_ns / 1e6);
    TEST_ASSERT_EQUAL_UINT64(0, lost);
    TEST_ASSERT_EQUAL_UINT64(0, twice);
    TEST_ASSERT_EQUAL_UINT64(0, stats.items);
    ringbuf_free(rb);
}

void setUp(void) {}
void tearDown(void) {}

int main(int count, char **words)
{
    if (count == 3) kills = atoi(words[1]), seconds = atof(words[2]);
    unsigned seed = (unsigned)time(NULL);
    srand(seed);
    printf("seed %u\n", seed);
    snprintf(directory, sizeof directory, "/dev/shm/ringbuf-storm-%d", (int)getpid());
    if (mkdir(directory, 0700) != 0) return 1;
    int access = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    shared = mmap(NULL, sizeof *shared, access, kind, -1, 0);
    notes = mmap(NULL, MOST_MESSAGES, access, kind, -1, 0);
    in_dead_hands = calloc((size_t)kills + 1, sizeof *in_dead_hands);
    if (shared == MAP_FAILED || (void *)notes == MAP_FAILED || !in_dead_hands) return 1;
    UNITY_BEGIN();
    RUN_TEST(test_a_storm_of_kills_loses_and_doubles_nothing);
    int failures = UNITY_END();
    free(in_dead_hands);
    if (rmdir(directory) != 0) {
        printf("left in %s: FAIL\n", directory);
        failures++;
    }
    return failures;
}
