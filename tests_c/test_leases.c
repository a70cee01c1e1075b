/* test_leases.c — producers and lease workers killed and stopped at random, with messages of 100 bytes to 8 MiB.
 *
 *   test_leases [KILLS SECONDS [SEED]]      for each of two storms; default: short ones for a test run
 *
 * Four producers put messages whole, in parts, or in place (reserve, fill, commit, sometimes abort).  Four lease workers hold several
 * messages at a time for a while; then they acknowledge most, give some back, and keep some a little longer; now and then one leaves
 * the queue with leases in its hands and comes back.  All eight are killed with SIGKILL at random and replaced, and stopped and
 * continued.  Three more are never harmed: a producer of messages that lie in the ring, one of messages of all sizes, and a lease worker.
 * The longest time in which each made no progress is reported.  Every other second the lease workers are slow, and arena and ring are
 * full; a large message then waits until it is lucky enough to find a run that is long enough.  In the second storm the arena is small
 * all the time, so that many leases stay in the ring.
 *
 * Accounting is exact.  Every message has a number of its own and a note in shared memory.  A producer notes that its put has returned.
 * A worker notes each delivery; it writes down which message it is about to acknowledge, and notes the acknowledgement when the call
 * has returned.  So every message whose put returned has exactly one acknowledgement noted, or none and its number is what a worker
 * was about to acknowledge when it was killed.  A message whose put did not return has at most one.  Each message is found whole when it
 * comes, and again before it is ended.
 * Attempts: each delivery that is noted is one, and each kill of a worker can add one, of a message that it had not noted yet.
 *
 * Built with the test points, the eight pause at points now and then, and most kills and stops meet them there: between two stores
 * to shared memory. */
#include "support.h"

#ifdef RBI_TEST_POINTS
#include "points.h"
#endif

#include <stdarg.h>
#include <sys/prctl.h>

enum {
    VICTIMS = 8,
    VICTIM_PRODUCERS = 4,
    STEADY = 8, /* the first that is never harmed */
    STEADY_SMALL_PRODUCER = 8,
    STEADY_PRODUCER = 9,
    STEADY_LEASER = 10,
    WORKERS = 11,
    ALWAYS_IN_RING = 64 << 10,
    HELD_MOST = 8,
    COPIED_MOST = 1024,
    SMALLEST = 100,
    LARGEST = 8 << 20,
    MOST_MESSAGES = 1 << 24,
};

struct message {
    uint64_t number;
    uint64_t size;
    uint64_t check;
    uint8_t filling[];
};

struct note {
    _Atomic uint8_t put_returned;
    _Atomic uint8_t acks;
    _Atomic uint16_t nacks;
    _Atomic uint16_t deliveries;
    _Atomic uint16_t attempts; /* at the last delivery */
};

/** What a worker is in the middle of, for whoever counts what kills have met. */
enum doing { IDLE, PUTTING, RESERVING, FILLING, COMMITTING, LEASING, ENDING, DOINGS };
static const char *const doing_names[DOINGS] = {"idle", "put", "reserve", "fill in place", "commit", "lease", "ack or nack"};

struct worker {
    _Atomic uint64_t progress;
    _Atomic uint64_t bytes;         /* acknowledged */
    _Atomic uint64_t acknowledging; /* number + 1 */
    _Atomic uint32_t doing;         /* enum doing */
    _Atomic uint32_t point;         /* 1 + the test point at which it pauses */
    _Atomic uint32_t leases;        /* that it holds */
    _Atomic uint32_t kept;
};

struct shared {
    _Atomic uint64_t next_number;
    _Atomic uint32_t stop_producing;
    _Atomic uint32_t in_ring;       /* leases that found no room in the arena */
    _Atomic uint32_t kept;
    _Atomic uint32_t walked_away;
    _Atomic uint32_t complaints;
    char complaint[256];            /* the first */
    struct worker workers[WORKERS];
};
static struct shared *shared;
static struct note *notes; /* by message number */
static int kills = 12;
static double seconds = 3;
static uint64_t seed;
static size_t largest; /* message of this storm */

/** The parent's view of what its kills have met. */
static struct {
    uint64_t *acknowledging;
    int count;
    int while_leasing[HELD_MOST + 1]; /* by the number of leases held */
    int while_doing[DOINGS];
    int at_point[256]; /* as in struct worker */
    uint64_t leases;
    uint64_t kept;
    uint64_t bytes; /* that they had acknowledged */
    int of_leasers;
    int stops;
} killed;

/* What a worker process has for itself. */
static struct worker *me;
static uint64_t my_random;
static uint8_t *my_buffer;

static bool one_in(uint64_t bound) { return random_below(&my_random, bound) == 0; }

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    if (atomic_fetch_add(&shared->complaints, 1) != 0) return;
    va_list words;
    va_start(words, format);
    vsnprintf(shared->complaint, sizeof shared->complaint, format, words);
    va_end(words);
}

static void refused(const char *call, ringbuf_status status) { complain("%s: %s", call, ringbuf_status_text(status)); }

static ringbuf_status come_in(ringbuf **rb) { return ringbuf_open(rb, "leases", NULL); }

static void nap_us(long us) { nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL); }

#ifdef RBI_TEST_POINTS
/** Now and then, so that each call has a chance to be met somewhere in it.  Some points come once a block. */
static void pause_at(enum rbi_point point)
{
    bool of_block = point == RBI_POINT_run_grown || point == RBI_POINT_block_freed;
    if (!one_in(of_block ? 20000 : 200)) return;
    me->point = 1 + (uint32_t)point;
    nap_us(200);
    me->point = 0;
}
static void pause_at_points(void) { rbi_point_hook = pause_at; }
enum { PAUSES_AT_POINTS = 1 };
_Static_assert(RBI_POINT_COUNT < 256, "killed.at_point");
#else
static void pause_at_points(void) {}
enum { PAUSES_AT_POINTS = 0 };
#endif

/* ---- messages ---- */

/** Mostly small, so that there are many, and a few large, so that they meet in the arena. */
static size_t random_size(void)
{
    static const struct {
        uint32_t of_thousand, from, to;
    } classes[] = {{780, SMALLEST, 1000}, {150, 1000, 64 << 10}, {60, 64 << 10, 512 << 10}, {8, 512 << 10, 4 << 20}, {2, 4 << 20, LARGEST + 1}};
    size_t class = 0;
    for (uint64_t lot = random_below(&my_random, 1000); lot >= classes[class].of_thousand;) lot -= classes[class++].of_thousand;
    size_t size = classes[class].from + random_below(&my_random, classes[class].to - classes[class].from);
    return size <= largest ? size : SMALLEST + size % (largest - SMALLEST);
}

/** A checksum over everything but itself. */
static uint64_t check_of(const struct message *message, size_t size)
{
    uint64_t sum = message->number * UINT64_C(0x9e3779b97f4a7c15) ^ message->size, word;
    size_t length = size - offsetof(struct message, filling), at = 0;
    for (; at + sizeof word <= length; at += sizeof word) {
        memcpy(&word, message->filling + at, sizeof word);
        sum = (sum ^ word) * UINT64_C(0x100000001b3);
    }
    for (; at < length; at++) sum = (sum ^ message->filling[at]) * UINT64_C(0x100000001b3);
    return sum;
}

static void fill(void *to, uint64_t number, size_t size)
{
    struct message *message = to;
    size_t length = size - offsetof(struct message, filling), at = 0;
    uint64_t word = number * UINT64_C(0xbf58476d1ce4e5b9);
    message->number = number;
    message->size = size;
    for (; at + sizeof word <= length; at += sizeof word, word += UINT64_C(0x94d049bb133111eb))
        memcpy(message->filling + at, &word, sizeof word);
    memset(message->filling + at, (int)(uint8_t)number, length - at);
    message->check = check_of(message, size);
}

static bool whole(const struct message *message, size_t size, uint64_t number)
{
    return size >= SMALLEST && message->number == number && message->size == size && message->check == check_of(message, size);
}

/* ---- producers ---- */

static int64_t soon(void) { return ringbuf_now_ns() + 500 * (int64_t)MILLISECOND; }

static bool may_go_on(ringbuf_status status)
{
    return status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL || status == RINGBUF_E_INTR;
}

static ringbuf_status put_in_parts(ringbuf *rb, size_t size)
{
    size_t first = random_below(&my_random, size), second = random_below(&my_random, size - first);
    ringbuf_part parts[] = {{my_buffer, first}, {NULL, 0}, {my_buffer + first, second}, {my_buffer + first + second, size - first - second}};
    return ringbuf_put_parts(rb, parts, 4, soon());
}

static ringbuf_status put_in_place(ringbuf *rb, uint64_t number, size_t size)
{
    size_t more = one_in(3) ? random_below(&my_random, 20000) : 0;
    ringbuf_reservation room;
    me->doing = RESERVING;
    ringbuf_status status = ringbuf_reserve(rb, &room, size + more, soon());
    if (status != RINGBUF_OK) return status;
    me->doing = FILLING;
    fill(room.data, number, size);
    if (one_in(10)) {
        status = RINGBUF_E_INTR; /* changed our mind */
    } else {
        me->doing = COMMITTING;
        status = ringbuf_commit(rb, &room, size, soon());
    }
    if (status != RINGBUF_OK) ringbuf_abort(rb, &room);
    return status;
}

static ringbuf_status put_somehow(ringbuf *rb, uint64_t number, size_t size)
{
    uint64_t way = random_below(&my_random, 4);
    if (way >= 2) return put_in_place(rb, number, size);
    me->doing = PUTTING;
    fill(my_buffer, number, size);
    return way ? put_in_parts(rb, size) : ringbuf_put(rb, my_buffer, size, soon());
}

/** By the one way that needs nothing of the arena. */
static ringbuf_status put_small(ringbuf *rb, uint64_t number, size_t size)
{
    fill(my_buffer, number, size);
    return ringbuf_put(rb, my_buffer, size, soon());
}

static void produce(ringbuf *rb, bool small)
{
    while (!shared->stop_producing) {
        uint64_t number = atomic_fetch_add(&shared->next_number, 1);
        if (number >= MOST_MESSAGES) return;
        size_t size;
        do size = random_size();
        while (small && size > ALWAYS_IN_RING);
        ringbuf_status status;
        do status = small ? put_small(rb, number, size) : put_somehow(rb, number, size);
        while (may_go_on(status) && !shared->stop_producing);
        if (status == RINGBUF_OK) notes[number].put_returned = 1;
        else if (!may_go_on(status)) refused("put", status);
        me->doing = IDLE;
        me->progress++;
    }
}

/* ---- lease workers ---- */

struct held {
    ringbuf_message message;
    uint64_t number;
    int64_t until_ns;
    bool leased;
    bool kept;
    _Alignas(struct message) uint8_t copy[COPIED_MOST];
};

static int64_t for_a_while(void)
{
    int64_t now_ns = ringbuf_now_ns();
    bool slow = now_ns / 1000000000 % 2;
    uint64_t most_ns = (slow ? 4 : 1) * (uint64_t)MILLISECOND * (one_in(32) ? 20 : 1);
    return now_ns + (int64_t)random_below(&my_random, most_ns);
}

static bool held_is_whole(const struct held *held) { return whole(held->message.data, held->message.size, held->number); }

static void note_delivery(struct held *held)
{
    const struct message *message = held->message.data;
    held->number = held->message.size >= SMALLEST ? message->number : MOST_MESSAGES;
    if (held->number >= shared->next_number || !held_is_whole(held)) {
        complain("message %llu of %zu bytes came damaged", (unsigned long long)held->number, held->message.size);
        _exit(3);
    }
    struct note *note = &notes[held->number];
    uint32_t attempts = held->message.attempts, nacks = note->nacks, before = atomic_exchange(&note->attempts, (uint16_t)attempts);
    if (attempts <= before || attempts <= nacks)
        complain("message %llu came at attempt %u, after attempt %u and %u nacks", (unsigned long long)held->number, attempts, before, nacks);
    note->deliveries++;
    if (!held->message.in_arena) shared->in_ring++;
    me->progress++;
}

static ringbuf_status lease(ringbuf *rb, struct held *held, int64_t deadline_ns)
{
    void *copy = one_in(2) ? held->copy : NULL;
    me->doing = LEASING;
    ringbuf_status status = ringbuf_lease(rb, &held->message, copy, copy ? COPIED_MOST : 0, deadline_ns);
    me->doing = IDLE;
    if (status != RINGBUF_OK) {
        if (!may_go_on(status) && status != RINGBUF_E_SHUTDOWN) refused("lease", status);
        return status;
    }
    held->leased = true;
    me->leases++;
    note_delivery(held);
    held->until_ns = for_a_while();
    return RINGBUF_OK;
}

static void release(ringbuf *rb, struct held *held)
{
    if (!held_is_whole(held)) complain("kept message %llu changed", (unsigned long long)held->number);
    ringbuf_status status = ringbuf_release(rb, &held->message);
    if (status != RINGBUF_OK) refused("release", status);
    held->kept = false;
    me->kept--;
}

static void nack(ringbuf *rb, struct held *held)
{
    ringbuf_status status = ringbuf_nack(rb, &held->message);
    if (status != RINGBUF_OK) refused("nack", status);
    else notes[held->number].nacks++; /* afterwards: so whoever has it now knows of no more than there were */
}

/** Acknowledge, or keep, which acknowledges as well. */
static void acknowledge(ringbuf *rb, struct held *held)
{
    bool keep = held->message.in_arena && held->message.data != held->copy && one_in(16);
    me->acknowledging = held->number + 1;
    ringbuf_status status = (keep ? ringbuf_keep : ringbuf_ack)(rb, &held->message);
    if (status == RINGBUF_OK) notes[held->number].acks++;
    else refused(keep ? "keep" : "ack", status);
    me->bytes += held->message.size;
    me->acknowledging = 0;
    if (!keep || status != RINGBUF_OK) return;
    held->kept = true;
    held->until_ns = for_a_while();
    shared->kept++;
    me->kept++;
    fill((void *)(uintptr_t)held->message.data, held->number, held->message.size); /* it is ours to write */
}

static void end(ringbuf *rb, struct held *held)
{
    if (held->kept) {
        release(rb, held);
        return;
    }
    me->doing = ENDING;
    if (!held_is_whole(held)) complain("message %llu changed during its lease", (unsigned long long)held->number);
    if (one_in(8)) nack(rb, held);
    else acknowledge(rb, held);
    held->leased = false;
    me->leases--;
    me->doing = IDLE;
}

/** Leave with leases in our hands, which go back to the queue by that, and come back.  What we have kept stays ours. */
static ringbuf *walk_away(ringbuf *rb, struct held *all)
{
    shared->walked_away++;
    ringbuf_free(rb);
    for (int i = 0; i < HELD_MOST; i++) {
        if (all[i].leased) me->leases--;
        all[i].leased = false;
        if (all[i].kept) release(rb, &all[i]);
    }
    if (come_in(&rb) != RINGBUF_OK) _exit(2);
    return rb;
}

/** Lease until we hold `most`, or nothing comes; 1: nothing will come any more. */
static bool take_more(ringbuf *rb, struct held *all, int *holding, int most)
{
    for (int i = 0; i < HELD_MOST && *holding < most; i++) {
        if (all[i].leased || all[i].kept) continue;
        int64_t patience_ns = (*holding ? 1 : 100) * (int64_t)MILLISECOND;
        ringbuf_status status = lease(rb, &all[i], ringbuf_now_ns() + patience_ns);
        if (status == RINGBUF_E_SHUTDOWN) return true;
        if (status != RINGBUF_OK) break;
        ++*holding;
    }
    return false;
}

static ringbuf *hold_and_end(ringbuf *rb)
{
    static struct held all[HELD_MOST];
    for (int holding = 0;;) {
        int most = 1 + (int)random_below(&my_random, HELD_MOST);
        if (holding >= most) nap_us(300);
        bool drained = take_more(rb, all, &holding, most);
        if (drained && holding == 0) return rb;
        if (holding && one_in(2000)) rb = walk_away(rb, all);
        int64_t now_ns = ringbuf_now_ns();
        holding = 0;
        for (int i = 0; i < HELD_MOST; i++) {
            if ((all[i].leased || all[i].kept) && (drained || all[i].until_ns <= now_ns)) end(rb, &all[i]);
            holding += all[i].leased || all[i].kept;
        }
    }
}

/* ---- the storm ---- */

static bool produces(int worker)
{
    return worker < VICTIM_PRODUCERS || worker == STEADY_SMALL_PRODUCER || worker == STEADY_PRODUCER;
}

static pid_t start(int worker)
{
    static uint64_t starts;
    starts++;
    killed.bytes += shared->workers[worker].bytes;
    memset(&shared->workers[worker], 0, sizeof shared->workers[worker]);
    fflush(NULL);
    pid_t child = fork();
    if (child != 0) return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    me = &shared->workers[worker];
    my_random = seed + starts * UINT64_C(0x2545f4914f6cdd1d);
    my_buffer = malloc(LARGEST);
    if (worker < STEADY) pause_at_points();
    ringbuf *rb;
    if (!my_buffer || come_in(&rb) != RINGBUF_OK) _exit(2);
    if (produces(worker)) produce(rb, worker == STEADY_SMALL_PRODUCER);
    else rb = hold_and_end(rb);
    ringbuf_free(rb);
    _exit(0);
}

/** Watch those that are never harmed; the longest pauses so far, in ns. */
static struct {
    uint64_t seen[WORKERS];
    int64_t since_ns[WORKERS], longest_ns[WORKERS];
} watched;

static void watch(int64_t length_ns)
{
    int64_t until_ns = ringbuf_now_ns() + length_ns, now_ns;
    do {
        nap_ms(2);
        now_ns = ringbuf_now_ns();
        for (int i = STEADY; i < WORKERS; i++) {
            uint64_t progress = shared->workers[i].progress;
            if (progress != watched.seen[i] || watched.since_ns[i] == 0) {
                watched.seen[i] = progress;
                watched.since_ns[i] = now_ns;
            } else if (now_ns - watched.since_ns[i] > watched.longest_ns[i]) {
                watched.longest_ns[i] = now_ns - watched.since_ns[i];
            }
        }
    } while (now_ns < until_ns);
}

static void note_what_was_killed(int victim)
{
    const struct worker *worker = &shared->workers[victim];
    killed.while_doing[worker->doing]++;
    killed.at_point[worker->point]++;
    if (produces(victim)) return;
    killed.of_leasers++;
    killed.while_leasing[worker->leases <= HELD_MOST ? worker->leases : HELD_MOST]++;
    killed.leases += worker->leases;
    killed.kept += worker->kept;
    if (worker->acknowledging) killed.acknowledging[killed.count++] = worker->acknowledging - 1;
}

static bool was_about_to_be_acknowledged(uint64_t number)
{
    for (int i = 0; i < killed.count; i++)
        if (killed.acknowledging[i] == number) return true;
    return false;
}

/** Whether it pauses at a point, and one at which we have met few; the less time there is, the more will do. */
static bool pauses_at_rare_point(int victim, int64_t left_ns)
{
    uint32_t point = shared->workers[victim].point;
    if (point == 0) return false;
    return left_ns < 20 * MILLISECOND || killed.at_point[point] == 0 || (left_ns < 40 * MILLISECOND && killed.at_point[point] < 3);
}

/** Left to chance alone, most would die asleep: wait, but not for long, for the victim to be in the middle of something. */
static void catch_in_the_middle(int victim, uint64_t *random)
{
    static const enum doing of_producer[] = {PUTTING, RESERVING, FILLING, COMMITTING}, of_leaser[] = {LEASING, ENDING, ENDING, ENDING};
    enum doing wanted = (produces(victim) ? of_producer : of_leaser)[random_below(random, 4)];
    int64_t until_ns = ringbuf_now_ns() + 50 * (int64_t)MILLISECOND;
    if (PAUSES_AT_POINTS) {
        while (!pauses_at_rare_point(victim, until_ns - ringbuf_now_ns()) && ringbuf_now_ns() < until_ns) {}
        return;
    }
    while (shared->workers[victim].doing != wanted && ringbuf_now_ns() < until_ns) {}
    for (int64_t at_ns = ringbuf_now_ns() + (int64_t)random_below(random, 20000); ringbuf_now_ns() < at_ns;) {}
}

static void kill_and_replace(pid_t *workers, int victim)
{
    int how;
    kill(workers[victim], SIGKILL);
    TEST_ASSERT_EQUAL_INT(workers[victim], waitpid(workers[victim], &how, 0));
    TEST_ASSERT_TRUE_MESSAGE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL, shared->complaints ? shared->complaint : "a worker ended by itself");
    note_what_was_killed(victim);
    workers[victim] = start(victim);
}

/** Stop one, sometimes two; when they have stood for a while, they go on, or die where they stand. */
static void stop_some(pid_t *workers, uint64_t *random)
{
    int first = (int)random_below(random, VICTIMS), second = (int)random_below(random, 3 * VICTIMS);
    catch_in_the_middle(first, random);
    kill(workers[first], SIGSTOP);
    if (second < VICTIMS) kill(workers[second], SIGSTOP);
    killed.stops += 1 + (second < VICTIMS && second != first);
    watch((int64_t)random_below(random, 200 * MILLISECOND));
    kill(workers[first], SIGCONT);
    if (second < VICTIMS) kill(workers[second], SIGCONT);
}

static void storm(pid_t *workers)
{
    uint64_t random = seed;
    int64_t between_ns = (int64_t)(seconds * 1e9 / kills), next_ns = ringbuf_now_ns();
    for (int done = 0; done < kills; done++) {
        next_ns += between_ns;
        bool stops = random_below(&random, 3) == 0;
        if (stops) stop_some(workers, &random);
        while (ringbuf_now_ns() < next_ns) watch(0);
        int victim = (int)random_below(&random, VICTIMS);
        if (random_below(&random, 4) == 0) {
            kill(workers[victim], SIGSTOP);
            killed.stops++;
            watch((int64_t)random_below(&random, 150 * MILLISECOND));
        } else if (random_below(&random, 4) != 0) {
            catch_in_the_middle(victim, &random);
        }
        kill_and_replace(workers, victim);
    }
}

static void expect_the_end_of(const pid_t *workers, bool producers)
{
    for (int i = 0; i < WORKERS; i++)
        if (produces(i) == producers) TEST_ASSERT_EQUAL_INT_MESSAGE(0, end_of(workers[i]), shared->complaint);
}

/** Whatever the workers have left: nothing, unless a message came back after the last of them had found the queue empty. */
static uint64_t drain_the_rest(ringbuf *rb)
{
    static struct worker parent;
    static struct held held;
    uint64_t recovered, drained = 0;
    me = &parent;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(rb, &recovered));
    for (ringbuf_status status; (status = lease(rb, &held, 0)) != RINGBUF_E_SHUTDOWN; drained++) {
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, status);
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_ack(rb, &held.message));
        notes[held.number].acks++;
    }
    return drained;
}

struct account {
    uint64_t numbers, puts, acks, nacks, deliveries, redeliveries, killed_in_ack, unreturned_but_acked, lost, twice, too_few_attempts,
        unnoted_attempts, most_attempts, bytes;
};

static void add_up(struct account *sum)
{
    *sum = (struct account){.bytes = killed.bytes};
    for (int i = 0; i < WORKERS; i++) sum->bytes += shared->workers[i].bytes;
    for (uint64_t number = 0; number < shared->next_number && number < MOST_MESSAGES; number++) {
        const struct note *note = &notes[number];
        sum->numbers++;
        sum->puts += note->put_returned;
        sum->acks += note->acks;
        sum->nacks += note->nacks;
        sum->deliveries += note->deliveries;
        sum->redeliveries += note->deliveries > 1 ? note->deliveries - 1u : 0;
        sum->twice += note->acks > 1;
        sum->unreturned_but_acked += !note->put_returned && note->acks;
        if (note->put_returned && !note->acks) {
            if (was_about_to_be_acknowledged(number)) sum->killed_in_ack++;
            else sum->lost++;
        }
        if (note->acks && note->attempts <= note->nacks) sum->too_few_attempts++;
        if (note->attempts < note->deliveries) sum->too_few_attempts++;
        else sum->unnoted_attempts += (uint64_t)note->attempts - note->deliveries;
        if (note->attempts > sum->most_attempts) sum->most_attempts = note->attempts;
    }
}

#define LLU(number) (unsigned long long)(number)

static void report(const struct account *sum, uint64_t drained, const ringbuf_stats *stats)
{
    printf("%d kills and %d stops in %.0f s: %llu puts returned (%.1f GB acknowledged), %llu acks noted, %llu killed in ack, %llu not returned but "
           "delivered, %llu lost, %llu twice\n",
           kills, killed.stops, seconds, LLU(sum->puts), (double)sum->bytes / 1e9, LLU(sum->acks), LLU(sum->killed_in_ack),
           LLU(sum->unreturned_but_acked), LLU(sum->lost), LLU(sum->twice));
    printf("%llu deliveries, %llu redeliveries, %llu nacks, most attempts %llu, %llu attempts of the killed not noted; %u kept, %u walks "
           "away, %u leases stayed in the ring, %llu recoveries, %llu left to the parent\n",
           LLU(sum->deliveries), LLU(sum->redeliveries), LLU(sum->nacks), LLU(sum->most_attempts), LLU(sum->unnoted_attempts), shared->kept,
           shared->walked_away, shared->in_ring, LLU(stats->recoveries), LLU(drained));
    printf("killed with %llu leases and %llu kept messages in their hands; workers by leases held:", LLU(killed.leases), LLU(killed.kept));
    for (int i = 0; i <= HELD_MOST; i++) printf(" %d:%d", i, killed.while_leasing[i]);
    printf("; in the middle of:");
    for (int i = 0; i < DOINGS; i++) printf(" %s %d%s", doing_names[i], killed.while_doing[i], i + 1 < DOINGS ? "," : "");
    int points = 0, at_points = 0;
    for (size_t i = 1; i < sizeof killed.at_point / sizeof *killed.at_point; i++) {
        points += killed.at_point[i] > 0;
        at_points += killed.at_point[i];
    }
    if (PAUSES_AT_POINTS) printf("; %d at %d different test points", at_points, points);
    printf("\nlongest pause of the unharmed producer of small messages %.0f ms, of messages of all sizes %.0f ms, of the unharmed worker %.0f ms\n",
           (double)watched.longest_ns[STEADY_SMALL_PRODUCER] / 1e6, (double)watched.longest_ns[STEADY_PRODUCER] / 1e6,
           (double)watched.longest_ns[STEADY_LEASER] / 1e6);
}

static void assert_nothing_is_in(ringbuf *rb, const ringbuf_stats *stats)
{
    TEST_ASSERT_EQUAL_UINT64(0, stats->items);
    TEST_ASSERT_EQUAL_UINT64(0, stats->leased);
    TEST_ASSERT_EQUAL_UINT64(0, stats->held);
    TEST_ASSERT_EQUAL_UINT64(0, stats->reserved);
    TEST_ASSERT_EQUAL_UINT64(0, stats->arena_used_bytes);
    TEST_ASSERT_EQUAL_UINT64(stats->arena_bytes, stats->arena_largest_bytes);
    TEST_ASSERT_EQUAL_UINT64(0, stats->used_bytes);
    TEST_ASSERT_EQUAL_UINT64(1, stats->participants);
    ringbuf_findings findings;
    ASSERT_OK(ringbuf_check(rb, &findings));
    TEST_ASSERT_EQUAL_UINT64(0, findings.runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_blocks);
    TEST_ASSERT_EQUAL_UINT64(0, findings.orphaned_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.broken_runs);
    TEST_ASSERT_EQUAL_UINT64(0, findings.dangling_messages);
}

static void begin(ringbuf **rb, uint64_t arena_bytes)
{
    memset(notes, 0, shared->next_number * sizeof *notes);
    memset(shared, 0, sizeof *shared);
    memset(&watched, 0, sizeof watched);
    uint64_t *numbers = killed.acknowledging;
    memset(&killed, 0, sizeof killed);
    killed.acknowledging = numbers;
    ringbuf_options options;
    ringbuf_options_init(&options);
    if (arena_bytes) options.arena_bytes = arena_bytes;
    ASSERT_OK(ringbuf_create(rb, "leases", &options));
}

static void go_through_a_storm(uint64_t arena_bytes)
{
    ringbuf *rb;
    begin(&rb, arena_bytes);
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) workers[i] = start(i);
    storm(workers);
    shared->stop_producing = 1;
    expect_the_end_of(workers, true);
    ASSERT_OK(ringbuf_shutdown(rb, 0));
    expect_the_end_of(workers, false);
    uint64_t drained = drain_the_rest(rb);

    struct account sum;
    ringbuf_stats stats;
    add_up(&sum);
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    report(&sum, drained, &stats);
    if (shared->complaints) TEST_FAIL_MESSAGE(shared->complaint);
    TEST_ASSERT_EQUAL_UINT64(0, sum.lost);
    TEST_ASSERT_EQUAL_UINT64(0, sum.twice);
    TEST_ASSERT_EQUAL_UINT64(0, sum.too_few_attempts);
    TEST_ASSERT_TRUE_MESSAGE(sum.unnoted_attempts <= (uint64_t)killed.of_leasers, "attempts that nobody made");
    assert_nothing_is_in(rb, &stats);
    ringbuf_free(rb);
}

static void test_in_a_storm_of_kills_every_leased_message_is_acknowledged_exactly_once(void)
{
    largest = LARGEST;
    go_through_a_storm(0);
}

static void test_the_same_holds_when_many_leases_find_no_room_in_the_arena(void)
{
    largest = ALWAYS_IN_RING;
    go_through_a_storm(256 << 10);
}

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

int main(int count, char **words)
{
    seed = (uint64_t)time(NULL);
    if (count >= 3) kills = atoi(words[1]), seconds = atof(words[2]);
    if (count >= 4) seed = strtoull(words[3], NULL, 10);
    printf("seed %llu\n", LLU(seed));
    enter_suite_directory();
    int access = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    shared = mmap(NULL, sizeof *shared, access, kind, -1, 0);
    notes = mmap(NULL, MOST_MESSAGES * sizeof *notes, access, kind, -1, 0);
    killed.acknowledging = calloc((size_t)kills + 1, sizeof *killed.acknowledging);
    if (shared == MAP_FAILED || (void *)notes == MAP_FAILED || !killed.acknowledging) return 1;
    UNITY_BEGIN();
    RUN_TEST(test_in_a_storm_of_kills_every_leased_message_is_acknowledged_exactly_once);
    RUN_TEST(test_the_same_holds_when_many_leases_find_no_room_in_the_arena);
    int failures = UNITY_END();
    free(killed.acknowledging);
    return leave_suite_directory(failures);
}
