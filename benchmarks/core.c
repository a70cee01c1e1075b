/* core.c — how fast the C core moves messages between processes, and how long a round trip takes.
 *
 *   core throughput PRODUCERS CONSUMERS BYTES SECONDS   prints one JSON line: messages confirmed at the consumers
 *   core pingpong ROUNDS                                 prints one JSON line: round trips through two queues, in nanoseconds
 *   core futex ROUNDS                                    the same with two bare futex words: what the kernel alone costs
 *
 * The two processes of a round trip are bound to a core each once they have warmed up, as pingpong.py does it and says why.
 * Every message carries its producer and sequence; a consumer that sees a producer's sequence go back ends the run with an error. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <ringbuf/ringbuf.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 64, LARGEST = 1 << 20, WARM_UP_ROUNDS = 100 };

struct shared {
    _Atomic uint32_t ready;
    _Atomic uint32_t go;
    _Atomic uint32_t stop;
    _Atomic uint64_t put[MOST], got[MOST];
    _Atomic uint32_t wrong;
    _Atomic uint32_t turn[2];
};

static struct shared *shared;

static void die(const char *what, ringbuf_status status)
{
    fprintf(stderr, "%s: %s\n", what, ringbuf_status_text(status));
    exit(1);
}

static ringbuf *attach(const char *name)
{
    ringbuf *rb;
    ringbuf_status status = ringbuf_open(&rb, name, NULL);
    if (status) die("open", status);
    return rb;
}

static void wait_for_go(void)
{
    atomic_fetch_add(&shared->ready, 1);
    while (!atomic_load(&shared->go)) usleep(100);
}

static void produce(const char *name, int me, size_t bytes)
{
    ringbuf *rb = attach(name);
    uint64_t *message = calloc(1, LARGEST);
    message[0] = (uint64_t)me;
    wait_for_go();
    uint64_t sequence = 0;
    while (!atomic_load_explicit(&shared->stop, memory_order_relaxed)) {
        message[1] = ++sequence;
        ringbuf_status status = ringbuf_put(rb, message, bytes, RINGBUF_FOREVER);
        if (status == RINGBUF_E_SHUTDOWN) {
            sequence--;
            break;
        }
        if (status) die("put", status);
    }
    atomic_store(&shared->put[me], sequence);
    ringbuf_free(rb);
    free(message);
}

static void consume(const char *name, int me)
{
    ringbuf *rb = attach(name);
    uint64_t *message = calloc(1, LARGEST);
    uint64_t last[MOST] = {0}, count = 0;
    wait_for_go();
    for (;;) {
        size_t size;
        ringbuf_status status = ringbuf_get(rb, &size, message, LARGEST, RINGBUF_FOREVER);
        if (status == RINGBUF_E_SHUTDOWN) break;
        if (status) die("get", status);
        if (message[1] <= last[message[0]]) atomic_store(&shared->wrong, 1);
        last[message[0]] = message[1];
        atomic_store_explicit(&shared->got[me], ++count, memory_order_relaxed);
    }
    ringbuf_free(rb);
    free(message);
}

static uint64_t sum(_Atomic uint64_t *values)
{
    uint64_t total = 0;
    for (int i = 0; i < MOST; i++) total += atomic_load(&values[i]);
    return total;
}

static int throughput(int producers, int consumers, size_t bytes, double seconds)
{
    ringbuf *rb;
    ringbuf_options options;
    ringbuf_options_init(&options);
    if (bytes > 16384) options.capacity_bytes = 16 << 20;
    ringbuf_status status = ringbuf_create(&rb, NULL, &options);
    if (status) die("create", status);
    if (bytes < 16) bytes = 16;
    for (int i = 0; i < producers + consumers; i++) {
        if (fork() == 0) {
            if (i < producers) produce(ringbuf_name(rb), i, bytes);
            else consume(ringbuf_name(rb), i - producers);
            _exit(0);
        }
    }
    while ((int)atomic_load(&shared->ready) < producers + consumers) usleep(1000);
    atomic_store(&shared->go, 1);
    usleep(200000); /* the first lap touches fresh pages */
    uint64_t before = sum(shared->got);
    int64_t start_ns = ringbuf_now_ns();
    usleep((useconds_t)(seconds * 1e6));
    uint64_t after = sum(shared->got);
    int64_t end_ns = ringbuf_now_ns();
    atomic_store(&shared->stop, 1);
    ringbuf_shutdown(rb, 0);
    int failed = 0, child;
    while (wait(&child) > 0) failed |= child;
    uint64_t put = sum(shared->put), got = sum(shared->got);
    double rate = (double)(after - before) / ((double)(end_ns - start_ns) * 1e-9);
    printf("{\"producers\": %d, \"consumers\": %d, \"bytes\": %zu, \"messages_per_s\": %.0f, \"put\": %llu, \"got\": %llu}\n",
           producers, consumers, bytes, rate, (unsigned long long)put, (unsigned long long)got);
    ringbuf_free(rb);
    return failed || put != got || atomic_load(&shared->wrong);
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report(int64_t *ns, int rounds)
{
    qsort(ns, (size_t)rounds, sizeof *ns, by_size);
    printf("{\"rounds\": %d, \"p50_ns\": %lld, \"p99_ns\": %lld, \"p999_ns\": %lld}\n", rounds, (long long)ns[rounds / 2],
           (long long)ns[rounds * 99 / 100], (long long)ns[rounds * 999 / 1000]);
}

/** Run on the `number`th usable core only, if there are that many. */
static void bind_to_core(int number)
{
    cpu_set_t usable, one;
    if (sched_getaffinity(0, sizeof usable, &usable)) return;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &usable) || number-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

static int pingpong(int rounds)
{
    ringbuf *ping, *pong;
    ringbuf_status status = ringbuf_create(&ping, NULL, NULL);
    if (!status) status = ringbuf_create(&pong, NULL, NULL);
    if (status) die("create", status);
    char message[64] = {0};
    size_t size;
    if (fork() == 0) {
        for (int i = -WARM_UP_ROUNDS; ringbuf_get(ping, &size, message, sizeof message, RINGBUF_FOREVER) == RINGBUF_OK; i++) {
            if (i == 0) bind_to_core(1);
            ringbuf_put(pong, message, size, RINGBUF_FOREVER);
        }
        _exit(0);
    }
    int64_t *ns = calloc((size_t)rounds, sizeof *ns);
    for (int i = -WARM_UP_ROUNDS; i < rounds; i++) {
        if (i == 0) bind_to_core(0);
        int64_t start = ringbuf_now_ns();
        ringbuf_put(ping, message, sizeof message, RINGBUF_FOREVER);
        ringbuf_get(pong, &size, message, sizeof message, RINGBUF_FOREVER);
        if (i >= 0) ns[i] = ringbuf_now_ns() - start;
    }
    ringbuf_shutdown(ping, 0);
    wait(NULL);
    report(ns, rounds);
    ringbuf_free(ping);
    ringbuf_free(pong);
    return 0;
}

static void pass_turn(int to)
{
    atomic_store(&shared->turn[to], 1);
    syscall(SYS_futex, &shared->turn[to], FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void await_turn(int me)
{
    while (atomic_exchange(&shared->turn[me], 0) == 0) syscall(SYS_futex, &shared->turn[me], FUTEX_WAIT, 0, NULL, NULL, 0);
}

static int bare_futex(int rounds)
{
    int64_t *ns = calloc((size_t)rounds, sizeof *ns);
    pid_t child = fork();
    if (child == 0)
        for (int i = -WARM_UP_ROUNDS;; i++) {
            await_turn(0);
            if (i == 0) bind_to_core(1);
            pass_turn(1);
        }
    for (int i = -WARM_UP_ROUNDS; i < rounds; i++) {
        if (i == 0) bind_to_core(0);
        int64_t start = ringbuf_now_ns();
        pass_turn(0);
        await_turn(1);
        if (i >= 0) ns[i] = ringbuf_now_ns() - start;
    }
    kill(child, SIGKILL);
    wait(NULL);
    report(ns, rounds);
    return 0;
}

int main(int count, char **words)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    if (count == 6 && strcmp(words[1], "throughput") == 0)
        return throughput(atoi(words[2]), atoi(words[3]), (size_t)atol(words[4]), atof(words[5]));
    if (count == 3 && strcmp(words[1], "pingpong") == 0) return pingpong(atoi(words[2]));
    if (count == 3 && strcmp(words[1], "futex") == 0) return bare_futex(atoi(words[2]));
    fprintf(stderr, "core throughput PRODUCERS CONSUMERS BYTES SECONDS | core pingpong ROUNDS | core futex ROUNDS\n");
    return 2;
}
