/* storm.c — a recorder of histories.
 *
 * What survives a kill -9 lies in memory that the parent has mapped before: each worker's log, and its hands, the buffer into
 * which it receives.  A call is noted in three steps: what it is and when it began; the call; its outcome and when it ended.  So
 * of one that was killed its last call is pending, and its hands tell what it had received by then: the message is copied whole
 * before it is consumed, so from empty hands nothing was consumed.
 *
 * A worker that died is replaced by one with a new number, so a number's calls never overlap.  A log is a chain of chunks, which
 * workers fetch from one heap. */
#include "storm.h"

#include <ringbuf/ringbuf.h>
#include <segment.h>

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNK = 128,      /* calls */
    MOST_WORKERS = 16,
    HANDS = 65536,    /* bytes */
    PARENT = 0,       /* its number as a worker */
    FALSE_WITNESS = HISTORY_WORKERS - 1,
    PATIENCE_S = 60,  /* a watchdog, not a measurement */
    MILLISECOND = 1000000
};

struct chunk {
    struct history_op ops[CHUNK];
};

/** A worker, as the parent sees it. */
struct place {
    struct history_op *current; /* the call that it is in, or made last */
    _Atomic uint64_t calls;
    _Atomic bool dying;         /* by its own hand */
    uint8_t hands[HANDS];
};

struct shared {
    _Atomic bool stop;
    _Atomic uint64_t chunks_used;
    uint64_t chunk_count;
    struct place places[MOST_WORKERS + 1]; /* the last one is the parent's */
};

static struct shared *shared;
static struct chunk *chunks;
static const struct storm_plan *plan;

/* This process. */
static struct place *me;
static uint16_t my_number;
static uint64_t my_random;
static uint32_t my_sequence;
static struct chunk *my_chunk;
static size_t my_chunk_used;

static uint64_t next_random(uint64_t *state)
{
    /* splitmix64 */
    uint64_t mixed = *state += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

static uint64_t below(uint64_t *state, uint64_t bound) { return next_random(state) % bound; }
static bool one_in(uint64_t count) { return below(&my_random, count) == 0; }

static void nap_ns(int64_t ns)
{
    struct timespec length = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&length, NULL);
}

static void *map_shared(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        abort();
    }
    return memory;
}

/* ---- messages: a value, a check of it, and a filling that depends on both ---- */

enum { HEAD = 16 };

static uint64_t check_of(uint64_t value) { return (value + 1) * UINT64_C(0x9e3779b97f4a7c15); }

static size_t size_of(uint64_t value)
{
    static const size_t small[] = {16, 24, 48, 49, 128, 129, 300, 400}, large[] = {16, 24, 40, 128, 300, 500, 1200, 4096, 9000};
    uint64_t choice = check_of(value) >> 32;
    return plan->large ? large[choice % 9] : small[choice % 8];
}

static uint8_t filling_of(uint64_t value, size_t at) { return (uint8_t)((value ^ value >> 32) * 31 + at); }

static size_t write_message(uint8_t *bytes, uint64_t value)
{
    size_t size = size_of(value);
    uint64_t check = check_of(value);
    memcpy(bytes, &value, 8);
    memcpy(bytes + 8, &check, 8);
    for (size_t i = HEAD; i < size; i++) bytes[i] = filling_of(value, i);
    return size;
}

/** Whether a whole message lies there. */
static bool is_whole(const uint8_t *bytes, uint64_t *value)
{
    uint64_t check;
    memcpy(value, bytes, 8);
    memcpy(&check, bytes + 8, 8);
    if (check != check_of(*value)) return false;
    for (size_t i = HEAD, size = size_of(*value); i < size; i++)
        if (bytes[i] != filling_of(*value, i)) return false;
    return true;
}

static void empty_hands(void)
{
    memset(me->hands, 0, HEAD);
    atomic_signal_fence(memory_order_seq_cst);
}

/* ---- the log ---- */

/** Note that a call begins.  NULL: the log is full. */
static struct history_op *begin(enum history_kind kind, uint8_t wanted, const uint64_t *values, uint8_t count)
{
    if (!my_chunk || my_chunk_used == CHUNK) {
        uint64_t next = atomic_fetch_add(&shared->chunks_used, 1);
        if (next >= shared->chunk_count) return NULL;
        my_chunk = &chunks[next];
        my_chunk_used = 0;
    }
    struct history_op *op = &my_chunk->ops[my_chunk_used];
    op->worker = my_number;
    op->wanted = wanted;
    op->count = count;
    if (count) memcpy(op->values, values, count * sizeof *values);
    op->begun_ns = ringbuf_now_ns();
    /* What is above is there when `kind` is, and then it counts. */
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint8_t *)&op->kind = (uint8_t)kind;
    *(struct history_op *volatile *)&me->current = op;
    atomic_signal_fence(memory_order_seq_cst);
    my_chunk_used++;
    return op;
}

static void end(struct history_op *op, enum history_outcome outcome)
{
    op->ended_ns = ringbuf_now_ns();
    atomic_signal_fence(memory_order_seq_cst);
    *(volatile uint8_t *)&op->outcome = (uint8_t)outcome;
    atomic_signal_fence(memory_order_seq_cst);
    atomic_fetch_add_explicit(&me->calls, 1, memory_order_relaxed);
}

static enum history_outcome outcome_of(ringbuf_status status)
{
    if (status == RINGBUF_OK) return HISTORY_DONE;
    if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL) return HISTORY_NOTHING;
    return HISTORY_WRONG;
}

/** A call that a signal ended says nothing: it never was. */
static bool was_interrupted(struct history_op *op, ringbuf_status status)
{
    if (status != RINGBUF_E_INTR) return false;
    *(volatile uint8_t *)&op->kind = 0;
    return true;
}

/* ---- what a worker does ---- */

static int64_t some_deadline(void)
{
    switch (below(&my_random, 4)) {
    case 0: return 0;
    case 1: return ringbuf_now_ns() + (int64_t)below(&my_random, 50000);
    default: return ringbuf_now_ns() + (int64_t)below(&my_random, 5 * MILLISECOND);
    }
}

static bool put(ringbuf *rb)
{
    static uint8_t bytes[HISTORY_BATCH][16384];
    uint8_t count = (uint8_t)(one_in(3) ? 2 + below(&my_random, HISTORY_BATCH - 1) : 1);
    if (plan->max_items && count > plan->max_items) count = 1;
    uint64_t values[HISTORY_BATCH];
    ringbuf_part messages[HISTORY_BATCH];
    for (int i = 0; i < count; i++) {
        values[i] = (uint64_t)my_number << 32 | my_sequence++;
        messages[i] = (ringbuf_part){bytes[i], write_message(bytes[i], values[i])};
    }
    int64_t deadline_ns = some_deadline();
    struct history_op *op = begin(HISTORY_PUT, count, values, count);
    if (!op) return false;
    ringbuf_status status =
        count == 1 ? ringbuf_put(rb, bytes[0], messages[0].size, deadline_ns) : ringbuf_put_all(rb, messages, count, deadline_ns);
    if (!was_interrupted(op, status)) end(op, outcome_of(status));
    return true;
}

static bool get(ringbuf *rb, int64_t deadline_ns)
{
    size_t size = 0;
    empty_hands();
    struct history_op *op = begin(HISTORY_GET, 1, NULL, 0);
    if (!op) return false;
    ringbuf_status status = ringbuf_get(rb, &size, me->hands, HANDS, deadline_ns);
    if (was_interrupted(op, status)) return true;
    enum history_outcome outcome = outcome_of(status);
    if (status == RINGBUF_OK) {
        if (!is_whole(me->hands, &op->values[0]) || size != size_of(op->values[0])) outcome = HISTORY_WRONG;
        else op->count = 1;
    }
    end(op, outcome);
    return true;
}

/** Messages that this worker has taken. */
struct held {
    ringbuf_message messages[HISTORY_BATCH];
    uint64_t values[HISTORY_BATCH];
    uint8_t count;
};

enum how_taken { TAKEN, LEASED, SEVERAL };

static bool take(ringbuf *rb, struct held *held, enum how_taken how)
{
    uint8_t wanted = (uint8_t)(how == SEVERAL ? 2 + below(&my_random, HISTORY_BATCH - 1) : 1);
    size_t count = 1;
    int64_t deadline_ns = some_deadline();
    held->count = 0;
    void *hands = one_in(8) ? NULL : me->hands;
    empty_hands();
    struct history_op *op = begin(HISTORY_TAKE, wanted, NULL, 0);
    if (!op) return false;
    ringbuf_status status;
    if (how == SEVERAL) status = ringbuf_take_many(rb, held->messages, &count, wanted, SIZE_MAX, me->hands, HANDS, deadline_ns);
    else if (how == LEASED) status = ringbuf_lease(rb, &held->messages[0], hands, hands ? HANDS : 0, deadline_ns);
    else status = ringbuf_take(rb, &held->messages[0], hands, hands ? HANDS : 0, deadline_ns);
    if (was_interrupted(op, status)) return true;
    enum history_outcome outcome = outcome_of(status);
    for (size_t i = 0; status == RINGBUF_OK && i < count && i < HISTORY_BATCH; i++) {
        const ringbuf_message *message = &held->messages[i];
        uint64_t value = 0;
        if (message->size < HEAD || !is_whole(message->data, &value) || message->size != size_of(value)) {
            outcome = HISTORY_WRONG;
            break;
        }
        op->attempts[i] = (uint16_t)message->attempts;
        op->in_arena |= (uint8_t)(message->in_arena << i);
        op->values[i] = held->values[i] = value;
    }
    if (outcome == HISTORY_DONE) op->count = held->count = (uint8_t)count;
    end(op, outcome);
    return true;
}

static bool end_one(ringbuf *rb, struct held *held, int i, enum history_kind kind)
{
    struct history_op *op = begin(kind, 1, &held->values[i], 1);
    if (!op) return false;
    const ringbuf_message *message = &held->messages[i];
    ringbuf_status status = kind == HISTORY_ACK ? ringbuf_ack(rb, message)
                          : kind == HISTORY_NACK ? ringbuf_nack(rb, message) : ringbuf_return_all(rb, message, 1);
    end(op, outcome_of(status));
    return true;
}

static bool end_all(ringbuf *rb, struct held *held, enum history_kind kind)
{
    struct history_op *op = begin(kind, held->count, held->values, held->count);
    if (!op) return false;
    ringbuf_status status = kind == HISTORY_ACK ? ringbuf_ack_all(rb, held->messages, held->count)
                                                : ringbuf_return_all(rb, held->messages, held->count);
    end(op, outcome_of(status));
    return true;
}

static enum history_kind some_end(void)
{
    static const enum history_kind ends[] = {HISTORY_ACK, HISTORY_ACK,  HISTORY_ACK,   HISTORY_ACK,
                                             HISTORY_ACK, HISTORY_NACK, HISTORY_RETURN};
    return ends[below(&my_random, sizeof ends / sizeof *ends)];
}

static void die_by_own_hand(void)
{
    atomic_store(&me->dying, true);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* With the test points compiled in, workers also pause and die in the middle of calls, not only where the clock finds them. */
#ifdef RBI_TEST_POINTS
static void pause_or_die_at(enum rbi_point point)
{
    (void)point;
    if (one_in(64)) sched_yield();
    if (one_in(2000)) nap_ns((int64_t)below(&my_random, 200000));
    if (plan->holds && one_in(100000)) nap_ns((int64_t)below(&my_random, 120 * MILLISECOND));
    if (plan->kills_per_s && one_in(20000)) die_by_own_hand();
}

static void listen_at_points(void) { rbi_point_hook = pause_or_die_at; }
#else
static void listen_at_points(void) {}
#endif

static bool take_and_end(ringbuf *rb)
{
    struct held held;
    if (!take(rb, &held, (enum how_taken)below(&my_random, 3))) return false;
    if (held.count == 0) return true;
    if (plan->kills_per_s && one_in(3000)) die_by_own_hand();
    if (one_in(16) && !put(rb)) return false;
    if (one_in(64)) nap_ns((int64_t)below(&my_random, MILLISECOND));
    if (plan->holds && one_in(4000)) nap_ns((int64_t)below(&my_random, 120 * MILLISECOND));
    if (held.count > 1 && one_in(2)) return end_all(rb, &held, one_in(6) ? HISTORY_RETURN : HISTORY_ACK);
    for (int i = 0; i < held.count; i++)
        if (!end_one(rb, &held, i, some_end())) return false;
    return true;
}

static void work(ringbuf *rb)
{
    while (!atomic_load_explicit(&shared->stop, memory_order_relaxed)) {
        /* For a while mostly this, then mostly that: so the queue is empty at times, and full at times. */
        uint64_t puts_of_ten = below(&my_random, 2) ? 7 : 2;
        for (uint64_t calls = 1 + below(&my_random, 60); calls > 0 && !atomic_load_explicit(&shared->stop, memory_order_relaxed);
             calls--) {
            bool goes_on = below(&my_random, 10) < puts_of_ten ? put(rb)
                         : plan->leases && !one_in(3) ? take_and_end(rb) : get(rb, some_deadline());
            if (!goes_on) return;
        }
    }
}

/* ---- the parent ---- */

struct child {
    pid_t pid;
    uint16_t number;
    bool stopped;
    int64_t goes_on_ns;
};

static struct child children[MOST_WORKERS];
static uint16_t next_number;
static uint64_t storm_seed;

static ringbuf_options options(void)
{
    ringbuf_options made;
    ringbuf_options_init(&made);
    made.capacity_bytes = plan->capacity_bytes;
    made.arena_bytes = plan->arena_bytes;
    made.max_items = plan->max_items;
    made.max_participants = 64;
    return made;
}

static void shorten_laps(ringbuf *rb)
{
    if (!plan->short_laps) return;
    rb->ring.least_lap = 1;
    rb->ring.age_shift = 63;
}

static void start(int place)
{
    struct child *child = &children[place];
    *child = (struct child){.number = next_number++};
    shared->places[place].current = NULL;
    atomic_store(&shared->places[place].dying, false);
    fflush(NULL);
    child->pid = fork();
    if (child->pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    me = &shared->places[place];
    my_number = child->number;
    my_random = storm_seed + my_number * UINT64_C(0x2545f4914f6cdd1d);
    my_chunk = NULL;
    my_sequence = 0;
    ringbuf *rb;
    ringbuf_options how = options();
    if (ringbuf_open(&rb, "history", &how) != RINGBUF_OK) _exit(2);
    shorten_laps(rb);
    listen_at_points();
    work(rb);
    ringbuf_free(rb);
    _exit(0);
}

static void complain(struct storm_record *record, const char *what, int number)
{
    if (!record->complaint[0]) snprintf(record->complaint, sizeof record->complaint, "%s (%d)", what, number);
}

/** One of us is dead: look at its last call and into its hands, and note it. */
static void bury(int place, int64_t alive_ns)
{
    struct place *grave = &shared->places[place];
    struct history_op *last = grave->current;
    if (last) {
        int64_t last_ns = last->outcome == HISTORY_PENDING ? last->begun_ns : last->ended_ns;
        if (grave->dying || last_ns > alive_ns) alive_ns = last_ns;
        uint64_t value;
        bool takes = last->kind == HISTORY_GET || last->kind == HISTORY_TAKE;
        if (takes && last->outcome == HISTORY_PENDING) {
            last->count = 0;
            if (is_whole(grave->hands, &value)) {
                last->values[0] = value;
                last->count = 1;
            }
        }
    }
    struct history_op *death = begin(HISTORY_DEATH, 0, NULL, 0);
    if (!death) return;
    death->worker = children[place].number;
    death->begun_ns = alive_ns;
    death->ended_ns = ringbuf_now_ns();
}

/** See who has died by his own hand, and replace him. */
static void look_round(struct storm_record *record)
{
    int how;
    for (pid_t pid; (pid = waitpid(-1, &how, WNOHANG)) > 0;)
        for (int i = 0; i < plan->workers; i++) {
            if (children[i].pid != pid) continue;
            children[i].pid = 0;
            if (WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL && shared->places[i].dying) {
                record->deaths_by_own_hand++;
                bury(i, 0);
                start(i);
            } else if (!WIFEXITED(how) || WEXITSTATUS(how) != 0) {
                complain(record, "a worker ended by itself", how);
            }
        }
}

static void kill_one(int place, struct storm_record *record)
{
    int how;
    int64_t alive_ns = ringbuf_now_ns();
    if (children[place].pid == 0) return;
    kill(children[place].pid, SIGKILL);
    while (waitpid(children[place].pid, &how, 0) < 0 && errno == EINTR) {}
    children[place].pid = 0;
    if (WIFEXITED(how)) return; /* its log was full */
    if (!WIFSIGNALED(how) || WTERMSIG(how) != SIGKILL) complain(record, "a worker ended by itself", how);
    record->kills += !shared->places[place].dying;
    record->deaths_by_own_hand += shared->places[place].dying;
    bury(place, alive_ns);
    start(place);
}

static void stop_one(int place, int64_t length_ns, struct storm_record *record)
{
    if (children[place].pid == 0 || children[place].stopped) return;
    kill(children[place].pid, SIGSTOP);
    children[place].stopped = true;
    children[place].goes_on_ns = ringbuf_now_ns() + length_ns;
    record->stops++;
}

static void let_go_on(bool all)
{
    for (int i = 0; i < plan->workers; i++) {
        if (!children[i].stopped || (!all && ringbuf_now_ns() < children[i].goes_on_ns)) continue;
        children[i].stopped = false;
        if (children[i].pid) kill(children[i].pid, SIGCONT);
    }
}

static uint64_t calls_made(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < plan->workers; i++) sum += atomic_load_explicit(&shared->places[i].calls, memory_order_relaxed);
    return sum;
}

/** Some are left alone, so that there is always work going on. */
static void harm(uint64_t operations, struct storm_record *record)
{
    uint64_t random = storm_seed, seen = 0;
    int64_t seen_ns = ringbuf_now_ns();
    int victims = plan->workers > 2 ? plan->workers - 1 : plan->workers;
    while (calls_made() < operations && atomic_load(&shared->chunks_used) < shared->chunk_count) {
        int64_t pause_ns = plan->kills_per_s ? (int64_t)below(&random, 1000000000 / plan->kills_per_s) : MILLISECOND;
        nap_ns(pause_ns < 2 * MILLISECOND ? pause_ns : 2 * MILLISECOND);
        let_go_on(false);
        look_round(record);
        if (calls_made() != seen) seen = calls_made(), seen_ns = ringbuf_now_ns();
        if (ringbuf_now_ns() - seen_ns > PATIENCE_S * INT64_C(1000000000)) {
            complain(record, "nobody has finished a call for a minute", 0);
            return;
        }
        if (pause_ns > 2 * MILLISECOND) nap_ns(pause_ns - 2 * MILLISECOND);
        if (!plan->kills_per_s || next_number >= HISTORY_WORKERS - MOST_WORKERS - 1) continue;
        int victim = (int)below(&random, (uint64_t)victims);
        if (below(&random, 2)) stop_one(victim, (int64_t)below(&random, (below(&random, 8) ? 3 : 150) * MILLISECOND), record);
        else kill_one(victim, record);
    }
}

static void let_finish(struct storm_record *record)
{
    int how;
    atomic_store(&shared->stop, true);
    let_go_on(true);
    for (int i = 0; i < plan->workers; i++) {
        if (children[i].pid == 0) continue;
        int64_t until_ns = ringbuf_now_ns() + PATIENCE_S * INT64_C(1000000000);
        while (waitpid(children[i].pid, &how, WNOHANG) == 0) {
            nap_ns(MILLISECOND);
            if (ringbuf_now_ns() > until_ns) kill(children[i].pid, SIGKILL);
        }
        if (WIFSIGNALED(how) && shared->places[i].dying) bury(i, 0);
        else if (!WIFEXITED(how) || WEXITSTATUS(how) != 0) complain(record, "a worker did not end well", how);
    }
}

/** Get what is left, until there is nothing and nobody dead to be recovered. */
static void drain(ringbuf *rb, struct storm_record *record)
{
    uint64_t recovered, items;
    struct history_op *last;
    do {
        if (ringbuf_recover(rb, &recovered) != RINGBUF_OK) complain(record, "recovery failed", 0);
        do {
            if (!get(rb, 0)) {
                complain(record, "the log was too short", 0);
                return;
            }
            last = me->current;
        } while (last->outcome == HISTORY_DONE);
    } while (recovered);
    ringbuf_stats stats;
    ringbuf_findings findings;
    if (ringbuf_size(rb, &items) != RINGBUF_OK || items) complain(record, "items left", (int)items);
    if (ringbuf_get_stats(rb, &stats) != RINGBUF_OK || stats.used_bytes || stats.arena_used_bytes)
        complain(record, "room left in use", (int)stats.used_bytes);
    if (ringbuf_check(rb, &findings) != RINGBUF_OK || findings.runs || findings.orphaned_blocks)
        complain(record, "runs left", (int)findings.runs);
    record->lane_changes = rbi_load_total64(&rb->ring.order->put_epoch);
}

static void gather(struct storm_record *record)
{
    uint64_t used = atomic_load(&shared->chunks_used);
    if (used > shared->chunk_count) used = shared->chunk_count;
    struct history *history = &record->history;
    history->ops = malloc((used * CHUNK + 2) * sizeof *history->ops); /* and a little more, for falsify() */
    if (!history->ops) abort();
    for (uint64_t i = 0; i < used * CHUNK; i++) {
        const struct history_op *op = &chunks[i / CHUNK].ops[i % CHUNK];
        if (op->kind) history->ops[history->count++] = *op;
    }
    history->drained = true;
    history->hands_known = true;
    history->fixed_lanes = record->lane_changes == 0;
    history->always_fits = plan->always_fits;
}

void storm(const struct storm_plan *how, uint64_t operations, uint64_t seed, struct storm_record *record)
{
    *record = (struct storm_record){.seconds = 0};
    int64_t start_ns = ringbuf_now_ns();
    plan = how;
    storm_seed = seed;
    shared = map_shared(sizeof *shared);
    /* Twice what is needed: the killed leave chunks that are not full. */
    shared->chunk_count = operations * 2 / CHUNK + 4096;
    chunks = map_shared(shared->chunk_count * sizeof *chunks);
    me = &shared->places[MOST_WORKERS];
    my_number = PARENT;
    next_number = PARENT + 1;
    my_chunk = NULL;
    ringbuf *rb;
    ringbuf_options queue = options();
    queue.mode = RINGBUF_CREATE;
    if (ringbuf_create(&rb, "history", &queue) != RINGBUF_OK) {
        complain(record, "no queue", 0);
    } else {
        shorten_laps(rb);
        for (int i = 0; i < plan->workers; i++) start(i);
        harm(operations, record);
        let_finish(record);
        drain(rb, record);
        record->laps = rbi_ring_tail_position(&rb->ring) / rbi_ring_cells(&rb->ring);
        ringbuf_unlink(rb);
        ringbuf_free(rb);
    }
    gather(record);
    munmap(chunks, shared->chunk_count * sizeof *chunks);
    munmap(shared, sizeof *shared);
    record->seconds = (double)(ringbuf_now_ns() - start_ns) / 1e9;
}

/* ---- falsifying ---- */

const char *falsification_name(enum falsification how)
{
    static const char *const names[FALSIFICATIONS] = {"two deliveries swapped",    "a delivery dropped",
                                                      "a delivery doubled",        "a get before its put",
                                                      "an empty beside a message", "a message that nobody put"};
    return names[how];
}

static int64_t death_of(const struct history *history, uint16_t worker)
{
    for (size_t i = 0; i < history->count; i++)
        if (history->ops[i].kind == HISTORY_DEATH && history->ops[i].worker == worker) return history->ops[i].ended_ns;
    return INT64_MAX;
}

/** A get of one message, answered, and nobody who died in a get or take could explain that it is late. */
static bool is_plain(const struct history *history, const struct history_op *get, const struct history_op *put)
{
    for (size_t i = 0; i < history->count; i++) {
        const struct history_op *op = &history->ops[i];
        bool unknown = (op->kind == HISTORY_TAKE || op->kind == HISTORY_GET) && op->outcome == HISTORY_PENDING;
        if (unknown && op->begun_ns <= get->ended_ns && death_of(history, op->worker) >= put->begun_ns) return false;
        bool again = (op->kind == HISTORY_TAKE || op->kind == HISTORY_GET) && op != get;
        for (int j = 0; again && j < op->count; j++)
            if (op->values[j] == get->values[0]) return false;
    }
    return true;
}

static struct history_op *put_of(const struct history *history, uint64_t value)
{
    for (size_t i = 0; i < history->count; i++) {
        struct history_op *op = &history->ops[i];
        for (int j = 0; op->kind == HISTORY_PUT && op->outcome == HISTORY_DONE && j < op->count; j++)
            if (op->values[j] == value) return op;
    }
    return NULL;
}

/** Some plain get that began no earlier than that. */
static struct history_op *some_get(const struct history *history, uint64_t *random, int64_t from_ns, struct history_op **put)
{
    for (int tries = 0; tries < 4000; tries++) {
        struct history_op *op = &history->ops[below(random, history->count)];
        if (op->kind != HISTORY_GET || op->outcome != HISTORY_DONE || op->begun_ns < from_ns) continue;
        *put = put_of(history, op->values[0]);
        if (*put && is_plain(history, op, *put)) return op;
    }
    return NULL;
}

/** One that was put and got wholly after the other one. */
static struct history_op *later_get(const struct history *history, const struct history_op *get, const struct history_op *put)
{
    for (size_t i = 0; i < history->count; i++) {
        struct history_op *op = &history->ops[i];
        if (op->kind != HISTORY_GET || op->outcome != HISTORY_DONE || op->begun_ns <= get->ended_ns ||
            op->begun_ns > get->ended_ns + 50 * MILLISECOND)
            continue;
        const struct history_op *its_put = put_of(history, op->values[0]);
        /* The later one is delivered early then: it must have been put by that time. */
        if (its_put && its_put->begun_ns > put->ended_ns && its_put->ended_ns < get->begun_ns && is_plain(history, op, its_put))
            return op;
    }
    return NULL;
}

bool falsify(const struct history *history, enum falsification how, uint64_t *random, struct history *falsified)
{
    *falsified = *history;
    falsified->ops = malloc((history->count + 2) * sizeof *falsified->ops);
    if (!falsified->ops) abort();
    memcpy(falsified->ops, history->ops, history->count * sizeof *history->ops);
    for (int tries = 0; tries < 200; tries++) {
        struct history_op *put, *get = some_get(falsified, random, 0, &put), *other;
        if (!get) break;
        switch (how) {
        case SWAP_TWO_DELIVERIES:
            if (!(other = later_get(falsified, get, put))) continue;
            uint64_t value = get->values[0];
            get->values[0] = other->values[0];
            other->values[0] = value;
            return true;
        case DROP_A_DELIVERY: *get = falsified->ops[--falsified->count]; return true;
        case DOUBLE_A_DELIVERY:
            other = &falsified->ops[falsified->count++];
            *other = *get;
            other->begun_ns = get->ended_ns + 1;
            other->ended_ns = get->ended_ns + 1000;
            return true;
        case GET_BEFORE_THE_PUT:
            get->ended_ns = put->begun_ns - 1;
            get->begun_ns = get->ended_ns - 100;
            return true;
        case EMPTY_BESIDE_A_MESSAGE:
            if (get->begun_ns - put->ended_ns < 3) continue;
            other = &falsified->ops[falsified->count++];
            *other = (struct history_op){.kind = HISTORY_GET,
                                         .outcome = HISTORY_NOTHING,
                                         .wanted = 1,
                                         .worker = FALSE_WITNESS,
                                         .begun_ns = put->ended_ns + 1,
                                         .ended_ns = get->begun_ns - 1};
            return true;
        case INVENT_A_MESSAGE: get->values[0] ^= UINT64_C(1) << 63; return true;
        case FALSIFICATIONS: break;
        }
    }
    free(falsified->ops);
    falsified->ops = NULL;
    return false;
}
