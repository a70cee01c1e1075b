/* explorer.c — a controlled scheduler for the library's own code.
 *
 * What runs.  c/src as it is, compiled with RBI_MODEL: every operation of atomics.h on tracked memory, every kernel call of platform.h and
 * every test point comes here first.  Each process is a coroutine; only one runs at a time, and another one only where this file says so.
 *
 * What is explored.  Before every step on a word that several processes use (and that one of them writes), any of them may go next
 * (`preemptions` counts the times that one is left who could have gone on; when one sleeps or ends, the choice is free).  A process may
 * die at every test point, and before every step, if it has changed anything since the last such place; what it holds of the kernel goes with
 * it.  A death later than that makes no difference to anybody until somebody tries the dead one's lock; there the explorer asks again,
 * so one that others have seen alive may be dead at the next look.  A sleep may end by its timeout at any time (`jumps`); when all sleep,
 * the clock goes on to the first timeout.  (But first: could one of them proceed?  Then a wake was lost.)
 *
 * Memory.  Values lie in the real words, and the last one written is there.  Each shared word also has its history.  With `stale` > 0 a
 * load may return any older value that C11 lets it: not older than what the process has read of this word, or knows of by an acquire
 * (views, as in operational accounts of release/acquire such as Kang et al., "A promising semantics for relaxed-memory concurrency",
 * 2017, without the promises); and a `total` load none older than the last `total` write of that word, for the order of steps is the
 * total order.  A read-modify-write always sees the newest value, but may fail, as a stale load,
 * on an older one.  What this leaves out
 * of C11: writes that take effect in another order than that of their steps (2+2W), and loads that see later stores (load buffering).
 *   Plain memory is judged by vector clocks, always: a read that does not follow the last write, or a write that does not follow all
 * reads and the last write, is a failure, whatever values it met.  So a weakened edge fails also where no value betrays it.
 *
 * What makes it finite.  An execution is a list of choices; depth first, the last one that has an alternative is changed and all is run
 * again from the start.  The state at a choice is: the words, what plain memory holds, each process's registers and stack and what its calls
 * have answered, what the kernel holds, the bounds left, and which calls have ended before which began
 * (the checks judge by that).  A state that was met before is not explored again.  States are remembered by 64-bit hashes: of 10 million,
 * the chance that any two are confused is 3 in a million.  Words that only one process uses, or nobody writes, are no choices; which these are is
 * learned by walking at random first, and if an execution shows that one was missed, all begins anew. */
#define _GNU_SOURCE
#include "explorer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

enum {
    WORDS = 8192,          /* tracked words met */
    SHARED = 160,          /* of these, shared ones */
    HISTORY = 512,         /* values of one word in one execution */
    VALUES = 16384,        /* values of all */
    EDGES = 64,
    GRANULE = 64,          /* bytes of plain memory judged together */
    STACK = 128 << 10,
    DEPTH = 60000,         /* choices in one execution */
    STEPS = 60000,         /* steps in one */
    ALTERNATIVES = 24,
    DISCOVERY = 400,       /* random walks to learn which words are shared */
    RANGES = 16,
    ADVANCES = 8,          /* times that the clock goes on because all sleep, without a call having ended, or a death, in between */
};

/* ---- memory ---- */

struct view {
    uint16_t clock[MODEL_PROCESSES];
    uint16_t at[SHARED];   /* the oldest value of each word that may still be read */
};

struct word {
    void *address;
    unsigned bytes;
    uint64_t initial;
    uint32_t users, writers;
    int shared;            /* its number among these; -1 */
};

struct history {
    int count;
    int total;             /* the last `total` write: what a total load may not be older than */
    uint16_t values[HISTORY];
};

struct value {
    uint64_t value;
    struct view view;      /* what an acquire of it learns */
};

struct range {
    uint8_t *base;
    size_t bytes;
    uint8_t *mirror;
    uint32_t first;        /* its first index: words, or granules */
};

struct granule {
    uint16_t written, reads[MODEL_PROCESSES];
    int8_t writer;
    bool touched;
    uint64_t hash;
};

static struct range ranges[RANGES], plain_ranges[RANGES];
static int range_count, plain_count;
static int16_t *word_index;          /* by 4-byte place in the tracked ranges; -1 */
static uint32_t word_places, granule_count;
static struct word words[WORDS];
static int word_count;
static struct history histories[SHARED];
static int shared_count;
static struct value values[VALUES];
static int value_count;
static struct granule *granules;
static uint32_t touched[1 << 16];
static int touched_count;
static struct view edges[EDGES];
static bool discovered;              /* a word turned out to be shared that was not known to be */

/* ---- processes ---- */

enum state { RUNNABLE, SLEEPING, ENDED, DEAD };

struct process {
    enum state state;
    const void *word;       /* it sleeps on this */
    int64_t deadline_ns;
    uint64_t since;         /* and began then, for the order of wakes */
    bool woken;
    bool changed;           /* it has changed something since it was last asked whether it dies */
    uint64_t hash;          /* what its calls have answered, and what it has copied out of plain memory since */
    const uint8_t *low;     /* its stack, from here up, is the rest of what it knows */
    enum rbi_point point;   /* the last that it passed */
    struct view view;
    jmp_buf head, here;     /* where its life begins, and where it is */
    bool born;
    ucontext_t context;
    void *stack;
};

static struct process processes[MODEL_PROCESSES];
static int self = MODEL_NOBODY;
static jmp_buf outside;
static ucontext_t outside_context;
static const struct model_program *program;
static struct model_bounds left, bounds;
static int64_t clock_ns;
static int advances;
static uint64_t memory_hash, notes_hash, step_count, sleep_count;
static bool died;

enum ending { PRUNED = 1, FINISHED, FAILED, LEARNED };

/* ---- choices ---- */

struct choice {
    uint8_t taken, count;
};

static struct choice path[DEPTH];
static int path_length, path_at;
static bool at_random, replaying;
static const char *replayed;          /* what of the schedule is still to come */
static uint64_t random_state;
static struct model_result *result;

static uint64_t *visited;
static uint64_t visited_mask, visited_count;

bool model_point_passed[RBI_POINT_COUNT];
uint64_t model_point_deaths[RBI_POINT_COUNT];
bool model_trace;

uint64_t model_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * UINT64_C(0x9e3779b97f4a7c15) ^ (b + UINT64_C(0x632be59bd9b4e019)) * UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 29;
    x *= UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 32;
}

static uint64_t next_random(void)
{
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    return model_mix(random_state, 1);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- ends of an execution ---- */

static void end_execution(enum ending how) __attribute__((noreturn));
static void end_execution(enum ending how)
{
    self = MODEL_NOBODY;
    _longjmp(outside, (int)how);
}

void model_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(result->failure, sizeof result->failure, format, arguments);
    va_end(arguments);
    result->failed = true;
    end_execution(FAILED);
}

/* ---- tracked ranges ---- */

void model_track(void *base, size_t bytes)
{
    ranges[range_count++] = (struct range){.base = base, .bytes = bytes, .first = word_places};
    word_places += (uint32_t)(bytes / 4);
    word_index = realloc(word_index, word_places * sizeof *word_index);
    memset(word_index, 0xff, word_places * sizeof *word_index);
}

void model_track_plain(void *base, size_t bytes, void *mirror)
{
    plain_ranges[plain_count++] = (struct range){.base = base, .bytes = bytes, .mirror = mirror, .first = granule_count};
    granule_count += (uint32_t)(bytes / GRANULE) + 1;
    granules = realloc(granules, granule_count * sizeof *granules);
    memset(granules, 0, granule_count * sizeof *granules);
}

void model_forget(void)
{
    range_count = plain_count = word_count = shared_count = 0;
    word_places = granule_count = 0;
    touched_count = 0;
}

static struct word *word_at(const void *address, unsigned bytes)
{
    for (int i = 0; i < range_count; i++) {
        size_t offset = (size_t)((const uint8_t *)address - ranges[i].base);
        if ((const uint8_t *)address < ranges[i].base || offset >= ranges[i].bytes) continue;
        int16_t *index = &word_index[ranges[i].first + offset / 4];
        if (*index < 0) {
            if (word_count == WORDS) abort();
            *index = (int16_t)word_count;
            words[word_count++] = (struct word){
                .address = (void *)(uintptr_t)address,
                .bytes = bytes,
                .initial = bytes == 8 ? *(const uint64_t *)address : *(const uint32_t *)address,
                .shared = -1,
            };
        }
        return &words[*index];
    }
    return NULL;
}

static uint64_t raw_load(const void *address, unsigned bytes)
{
    return bytes == 8 ? *(const volatile uint64_t *)address : *(const volatile uint32_t *)address;
}

static void raw_store(void *address, unsigned bytes, uint64_t value)
{
    if (bytes == 8) *(volatile uint64_t *)address = value;
    else *(volatile uint32_t *)address = (uint32_t)value;
}

/** Note who uses it; a word that is used by several and written by one is shared from the next beginning on. */
static void note_use(struct word *word, bool write)
{
    word->users |= 1u << self;
    if (write) word->writers |= 1u << self;
    if (word->shared < 0 && word->writers && word->users & (word->users - 1)) discovered = true;
}

/** Give the shared words their numbers. */
static void number_shared_words(void)
{
    shared_count = 0;
    for (struct word *word = words; word < words + word_count; word++) {
        word->shared = -1;
        if (!word->writers || !(word->users & (word->users - 1))) continue;
        if (shared_count == SHARED) abort();
        word->shared = shared_count++;
    }
    discovered = false;
}

/* ---- the state ---- */

/** What a process knows is in its registers and on its stack.  Every function here that may choose begins with ENTER: registers that
 *  the callers expect to be kept are put on the stack, and where that ends is noted. */
#define ENTER() (__builtin_unwind_init(), note_stack())
static __attribute__((noinline)) void note_stack(void)
{
    if (self != MODEL_NOBODY) processes[self].low = __builtin_frame_address(0);
}

static uint64_t hash_stack(const struct process *process)
{
    const uint64_t *top = (const uint64_t *)(void *)((uint8_t *)process->stack + STACK);
    uint64_t hash = 1, other = 2;
    if (!process->low) return 0;
    for (const uint64_t *at = (const uint64_t *)(const void *)process->low + 2; at + 1 < top; at += 2) {
        hash = (hash ^ at[0]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
        other = (other ^ at[1]) * UINT64_C(0xd6e8feb86659fd93);
        other ^= other >> 31;
    }
    return model_mix(hash, other);
}

static uint64_t state_hash(int kind)
{
    uint64_t hash = model_mix(memory_hash, notes_hash);
    for (int p = 0; p < program->processes; p++) {
        const struct process *process = &processes[p];
        hash = model_mix(hash, process->hash);
        if (process->state == RUNNABLE || process->state == SLEEPING) hash = model_mix(hash, hash_stack(process));
        hash = model_mix(hash, (uint64_t)process->state << 1 | process->changed);
        if (process->state == SLEEPING) hash = model_mix(hash, (uint64_t)process->deadline_ns);
        if (bounds.stale)
            for (int word = 0; word < shared_count; word++) hash = model_mix(hash, process->view.at[word]);
    }
    if (bounds.stale)
        for (int word = 0; word < shared_count; word++) {
            const struct history *history = &histories[word];
            hash = model_mix(hash, (uint64_t)history->count << 16 | (uint64_t)history->total);
            for (int i = 1; i < history->count; i++) {
                const struct value *value = &values[history->values[i]];
                hash = model_mix(hash, value->value);
                for (int other = 0; other < shared_count; other++) hash = model_mix(hash, value->view.at[other]);
            }
        }
    hash = model_mix(hash, (uint64_t)(self + 1) << 8 | (uint64_t)kind);
    hash = model_mix(hash, (uint64_t)(left.preemptions + 1) << 48 | (uint64_t)(left.crashes + 1) << 32 | (uint64_t)(left.stale + 1) << 16 |
                               (uint64_t)(left.jumps + 1));
    hash = model_mix(hash, (uint64_t)clock_ns + (uint64_t)advances);
    return model_mix(hash, program->hash());
}

/** Whether the state was met before; if not, it is now. */
static bool was_visited(uint64_t hash)
{
    if (hash == 0) hash = 1;
    if (visited_count * 2 > visited_mask) {
        uint64_t old_mask = visited_mask, *old = visited;
        visited_mask = visited_mask * 2 + 1;
        visited = calloc(visited_mask + 1, sizeof *visited);
        if (!visited) abort();
        for (uint64_t i = 0; i <= old_mask; i++) {
            if (!old[i]) continue;
            uint64_t at = old[i] & visited_mask;
            while (visited[at]) at = (at + 1) & visited_mask;
            visited[at] = old[i];
        }
        free(old);
    }
    uint64_t at = hash & visited_mask;
    for (; visited[at]; at = (at + 1) & visited_mask)
        if (visited[at] == hash) return true;
    visited[at] = hash;
    visited_count++;
    return false;
}

/** Choose; `weight` is the chance, of 256, that a random walk takes another one than the first. */
static int choose(int count, int kind, int weight)
{
    if (count < 2) return 0;
    int taken = 0;
    if (path_at < path_length) {
        taken = path[path_at].taken;
        if (path[path_at].count != count || taken >= count) {
            fprintf(stderr, "model: the execution is not the one that was recorded (choice %d)\n", path_at);
            abort();
        }
    } else {
        if (replaying) {
            int number, alternative, length = 0;
            if (sscanf(replayed, "%d:%d%n", &number, &alternative, &length) == 2 && number == path_length) {
                if (alternative >= count) model_fail("the schedule does not fit: choice %d has %d alternatives", number, count);
                taken = alternative;
                replayed += length + (replayed[length] == ',');
            }
        } else if (at_random) {
            if ((int)(next_random() & 255) < weight) taken = 1 + (int)(next_random() % (uint64_t)(count - 1));
        } else if (was_visited(state_hash(kind))) {
            end_execution(PRUNED);
        }
        if (path_length == DEPTH) model_fail("an execution without end: %d choices", DEPTH);
        path[path_length++] = (struct choice){.taken = (uint8_t)taken, .count = (uint8_t)count};
    }
    path_at++;
    return taken;
}

int model_choose(int count, const char *what)
{
    ENTER();
    if (self == MODEL_NOBODY) return 0;
    int taken = choose(count, 3, 128);
    if (model_trace && count > 1) printf("      p%d  %s: alternative %d of %d\n", self, what, taken, count);
    return taken;
}

/* ---- switching ---- */

static void spend(int *bound)
{
    if (*bound > 0) --*bound;
}

static __attribute__((noinline)) void go_to(int next)
{
    int from = self;
    if (next == from) return;
    self = next;
    if (_setjmp(processes[from].here) == 0) _longjmp(processes[next].here, 1);
}

void model_kill(int process)
{
    struct process *dead = &processes[process];
    spend(&left.crashes);
    result->crashes++;
    died = true;
    advances = 0; /* those who live have yet to find out */
    dead->state = DEAD;
    dead->hash = 0;
    dead->changed = false;
    if (model_point_passed[dead->point]) model_point_deaths[dead->point]++;
    if (model_trace) printf("      p%d  dies (after %s)\n", process, rbi_point_name(dead->point));
    if (program->died) program->died(process);
    if (bounds.stale) memset(dead->view.at, 0, sizeof dead->view.at);
}

const void *model_sleeps_on(int process) { return processes[process].state == SLEEPING ? processes[process].word : NULL; }
bool model_is_dead(int process) { return processes[process].state == DEAD; }
bool model_may_kill(int process)
{
    return process < program->processes && left.crashes != 0 && (processes[process].state == RUNNABLE || processes[process].state == SLEEPING);
}
bool model_anybody_died(void) { return died; }

/** The program's looks may move hints; that has not happened. */
static void ask_if_stuck(const int64_t *deadlines)
{
    static uint64_t kept[WORDS];
    uint64_t kept_hash = memory_hash;
    int kept_count = word_count;
    for (int i = 0; i < kept_count; i++) kept[i] = raw_load(words[i].address, words[i].bytes);
    program->stuck(deadlines);
    for (int i = 0; i < kept_count; i++) raw_store(words[i].address, words[i].bytes, kept[i]);
    for (int i = kept_count; i < word_count; i++) raw_store(words[i].address, words[i].bytes, words[i].initial);
    memory_hash = kept_hash;
}

/** Everybody sleeps, or has ended. */
static void meet_stuck(void)
{
    int64_t deadlines[MODEL_PROCESSES], first = INT64_MAX;
    bool sleeping = false;
    int me = self;
    for (int p = 0; p < MODEL_PROCESSES; p++) {
        deadlines[p] = -1;
        if (p >= program->processes || processes[p].state != SLEEPING) continue;
        sleeping = true;
        deadlines[p] = processes[p].deadline_ns;
        if (deadlines[p] < first) first = deadlines[p];
    }
    if (!sleeping) end_execution(FINISHED);
    self = MODEL_NOBODY;
    ask_if_stuck(deadlines);
    if (++advances > ADVANCES) {
        for (int p = 0; p < program->processes; p++)
            if (processes[p].state == SLEEPING && !program->sleeps_for_ever(p)) model_fail("p%d waits for ever", p);
        end_execution(FINISHED);
    }
    self = me;
    if (first > clock_ns && first != INT64_MAX) clock_ns = first;
    if (model_trace) printf("      everybody sleeps; the clock goes on to %.3f ms\n", (double)clock_ns / 1e6);
    for (int p = 0; p < program->processes; p++) {
        if (processes[p].state != SLEEPING || processes[p].deadline_ns > (first == INT64_MAX ? first : clock_ns)) continue;
        processes[p].state = RUNNABLE;
        processes[p].woken = false;
    }
}

/** Who goes next?  `goes_on`: the one that asks can. */
static void schedule(bool goes_on)
{
    for (;;) {
        struct {
            enum { GO, KILL, TIME } what;
            int process;
        } alternatives[ALTERNATIVES];
        int count = 0, me = self;
        if (goes_on) {
            alternatives[count].what = GO;
            alternatives[count++].process = me;
        }
        for (int p = 0; p < program->processes; p++) {
            if ((goes_on && p == me) || processes[p].state != RUNNABLE || (goes_on && left.preemptions == 0)) continue;
            alternatives[count].what = GO;
            alternatives[count++].process = p;
        }
        int goers = count;
        if (goes_on && processes[me].changed && left.crashes != 0) {
            alternatives[count].what = KILL;
            alternatives[count++].process = me;
        }
        for (int p = 0; p < program->processes && left.jumps != 0 && goers; p++) {
            if (processes[p].state != SLEEPING || processes[p].deadline_ns == INT64_MAX) continue;
            alternatives[count].what = TIME;
            alternatives[count++].process = p;
        }
        if (goes_on) processes[me].changed = false;
        if (!count) {
            meet_stuck();
            continue;
        }
        int taken = choose(count, goes_on, goes_on ? 64 : 192), process = alternatives[taken].process;
        switch (alternatives[taken].what) {
        case GO:
            if (goes_on && process != me) spend(&left.preemptions);
            go_to(process);
            return;
        case KILL:
            model_kill(me);
            goes_on = false;
            continue;
        case TIME:
            spend(&left.jumps);
            if (processes[process].deadline_ns > clock_ns) clock_ns = processes[process].deadline_ns;
            processes[process].state = RUNNABLE;
            processes[process].woken = false;
            if (model_trace) printf("      p%d's sleep ends, the clock says %.3f ms\n", process, (double)clock_ns / 1e6);
            continue;
        }
    }
}

static void count_step(void)
{
    step_count++;
    result->steps++;
    if (step_count > STEPS) model_fail("an execution without end: %d steps", STEPS);
}

void model_step(const char *what, uint64_t which)
{
    ENTER();
    if (self == MODEL_NOBODY) return;
    schedule(true);
    count_step();
    if (model_trace) printf("%5lu p%d  %s %lu\n", step_count, self, what, which);
}

void model_changed(void)
{
    if (self != MODEL_NOBODY) processes[self].changed = true;
}

bool model_sleep(const void *word, int64_t deadline_ns)
{
    ENTER();
    if (self == MODEL_NOBODY) return false; /* checks never wait */
    struct process *me = &processes[self];
    if (deadline_ns <= clock_ns) return false;
    me->state = SLEEPING;
    me->word = word;
    me->deadline_ns = deadline_ns;
    me->since = ++sleep_count;
    schedule(false);
    return me->woken;
}

int model_wake(const void *word, int count)
{
    int woken = 0;
    ENTER();
    if (self == MODEL_NOBODY) return 0;
    while (woken < count) {
        int sleepers[MODEL_PROCESSES], found = 0;
        for (int p = 0; p < program->processes; p++)
            if (processes[p].state == SLEEPING && processes[p].word == word) sleepers[found++] = p;
        if (!found) break;
        int taken = woken + found <= count ? 0 : choose(found, 2, 128);
        processes[sleepers[taken]].state = RUNNABLE;
        processes[sleepers[taken]].woken = true;
        if (model_trace) printf("      p%d is woken\n", sleepers[taken]);
        woken++;
    }
    if (woken) model_changed();
    return woken;
}

int model_self(void) { return self; }
int64_t model_clock(void) { return clock_ns; }
uint64_t model_now_step(void) { return step_count; }

void model_settle(uint64_t outcomes)
{
    if (self == MODEL_NOBODY) return;
    processes[self].hash = model_mix(outcomes, (uint64_t)self + 1000);
    advances = 0;
}

void model_note(uint64_t fact) { notes_hash ^= model_mix(fact, 4711); /* in whatever order */ }

/** Test points: a place to die, if anything has changed since the last one. */
static void at_point(enum rbi_point point)
{
    ENTER();
    if (self == MODEL_NOBODY) return;
    struct process *me = &processes[self];
    me->point = point;
    model_point_passed[point] = true;
    if (model_trace) printf("      p%d  (%s)\n", self, rbi_point_name(point));
    if (!me->changed || left.crashes == 0) return;
    if (choose(2, 4, 8) == 0) {
        me->changed = false;
        return;
    }
    model_kill(self);
    schedule(false);
}

/* ---- edges and clocks ---- */

static void join(struct view *into, const struct view *from)
{
    for (int p = 0; p < MODEL_PROCESSES; p++)
        if (into->clock[p] < from->clock[p]) into->clock[p] = from->clock[p];
    if (!bounds.stale) return;
    for (int word = 0; word < shared_count; word++)
        if (into->at[word] < from->at[word]) into->at[word] = from->at[word];
}

void model_give(int edge, int process)
{
    if (process == MODEL_NOBODY) return;
    join(&edges[edge], &processes[process].view);
    processes[process].view.clock[process]++;
}

void model_take(int edge)
{
    if (self != MODEL_NOBODY) join(&processes[self].view, &edges[edge]);
}

/* ---- the operations of atomics.h ---- */

static const char *const order_names[] = {"relaxed", "acquire", "release", "acq_rel", "total"};

static void trace_word(const struct word *word, const char *operation, enum model_order order, uint64_t before, uint64_t after, const char *more)
{
    char name[96];
    program->name_word(name, sizeof name, word->address);
    printf("%5lu p%d  %s_%s %s %lx", step_count, self, operation, order_names[order], name, before);
    if (before != after) printf(" -> %lx", after);
    printf("%s\n", more);
}

static bool acquires(enum model_order order) { return order == MODEL_ACQUIRE || order == MODEL_ACQ_REL || order == MODEL_TOTAL; }
static bool releases(enum model_order order) { return order == MODEL_RELEASE || order == MODEL_ACQ_REL || order == MODEL_TOTAL; }

static struct value *latest(const struct history *history) { return &values[history->values[history->count - 1]]; }

/** Read value number `at` of the word. */
static uint64_t read_value(const struct word *word, int at, enum model_order order)
{
    struct process *me = &processes[self];
    const struct value *value = &values[histories[word->shared].values[at]];
    if (me->view.at[word->shared] < at) me->view.at[word->shared] = (uint16_t)at;
    if (acquires(order)) join(&me->view, &value->view);
    return value->value;
}

/** Append a value.  `continues`: by a read-modify-write, which hands on what the value before it handed on. */
static void write_value(struct word *word, uint64_t new, enum model_order order, bool continues)
{
    struct process *me = &processes[self];
    struct history *history = &histories[word->shared];
    if (history->count == HISTORY || value_count == VALUES) model_fail("an execution without end: a word with %d values", history->count);
    struct value *value = &values[value_count];
    memset(value->view.clock, 0, sizeof value->view.clock);
    if (bounds.stale) memset(value->view.at, 0, (size_t)shared_count * sizeof value->view.at[0]);
    if (continues) join(&value->view, &latest(history)->view);
    value->value = new;
    history->values[history->count] = (uint16_t)value_count++;
    me->view.at[word->shared] = (uint16_t)history->count++;
    if (releases(order)) join(&value->view, &me->view);
    else value->view.at[word->shared] = me->view.at[word->shared];
    if (order == MODEL_TOTAL) history->total = history->count - 1;
    me->view.clock[self]++;
    me->changed = true;
}

static void store_now(struct word *word, void *address, unsigned bytes, uint64_t value)
{
    if (word) {
        uint64_t place = (uint64_t)(word - words);
        memory_hash ^= model_mix(place, raw_load(address, bytes)) ^ model_mix(place, value);
        if (self != MODEL_NOBODY) processes[self].changed = true;
    }
    raw_store(address, bytes, value);
}

/** A step on a word, before which others may come.  False: it is not one that several use, or nobody runs, so it is no step. */
static bool step_on(struct word *word, bool write)
{
    if (!word || self == MODEL_NOBODY) return false;
    note_use(word, write);
    if (word->shared < 0) return false;
    schedule(true);
    count_step();
    return true;
}

uint64_t model_load(const void *address, unsigned bytes, enum model_order order)
{
    ENTER();
    struct word *word = word_at(address, bytes);
    if (!step_on(word, false)) return raw_load(address, bytes);
    struct history *history = &histories[word->shared];
    int oldest = processes[self].view.at[word->shared], newest = history->count - 1;
    if (order == MODEL_TOTAL && oldest < history->total) oldest = history->total;
    int back = 0;
    if (left.stale != 0 && newest > oldest) {
        back = choose(newest - oldest + 1 < ALTERNATIVES ? newest - oldest + 1 : ALTERNATIVES, 5, 32);
        if (back) spend(&left.stale);
    }
    uint64_t value = read_value(word, newest - back, order);
    if (model_trace) trace_word(word, "load", order, value, value, back ? " (stale)" : "");
    return value;
}

void model_store(void *address, unsigned bytes, uint64_t value, enum model_order order)
{
    ENTER();
    struct word *word = word_at(address, bytes);
    if (step_on(word, true)) {
        if (model_trace) trace_word(word, "store", order, raw_load(address, bytes), value, "");
        write_value(word, value, order, false);
    }
    store_now(word, address, bytes, value);
}

uint64_t model_add(void *address, unsigned bytes, uint64_t add, enum model_order order)
{
    ENTER();
    struct word *word = word_at(address, bytes);
    bool is_step = step_on(word, true);
    uint64_t before = raw_load(address, bytes), after = bytes == 8 ? before + add : (uint32_t)(before + add);
    if (is_step) {
        read_value(word, histories[word->shared].count - 1, order);
        if (model_trace) trace_word(word, "add", order, before, after, "");
        write_value(word, after, order, true);
    }
    store_now(word, address, bytes, after);
    return before;
}

/** Whether a compare-and-swap that would succeed fails instead, by reading an older value: it is a load then, and no `total` one. */
static bool fails_on_older(const struct word *word, uint64_t expected)
{
    const struct history *history = &histories[word->shared];
    bool different = false;
    if (left.stale == 0) return false;
    for (int at = processes[self].view.at[word->shared]; at < history->count - 1; at++)
        different |= values[history->values[at]].value != expected;
    if (!different || !choose(2, 6, 16)) return false;
    spend(&left.stale);
    return true;
}

bool model_cas(void *address, unsigned bytes, uint64_t expected, uint64_t desired, enum model_order order)
{
    ENTER();
    struct word *word = word_at(address, bytes);
    if (step_on(word, true)) {
        uint64_t newest = raw_load(address, bytes);
        int newest_at = histories[word->shared].count - 1;
        if (newest != expected) {
            if (model_trace) trace_word(word, "cas", order, newest, newest, " (fails)");
            read_value(word, newest_at, MODEL_ACQUIRE);
            return false;
        }
        if (fails_on_older(word, expected)) {
            if (model_trace) trace_word(word, "cas", order, newest, newest, " (fails, on an older value)");
            return false;
        }
        if (model_trace) trace_word(word, "cas", order, expected, desired, "");
        read_value(word, newest_at, order);
        write_value(word, desired, order, true);
    }
    if (raw_load(address, bytes) != expected) return false;
    store_now(word, address, bytes, desired);
    return true;
}

/* ---- plain memory ---- */

static struct granule *granule_at(const struct range *range, size_t offset) { return &granules[range->first + offset / GRANULE]; }

static void plain_part(const struct range *range, size_t offset, size_t bytes, const uint8_t *contents)
{
    struct granule *granule = granule_at(range, offset);
    struct process *me = &processes[self];
    if (!granule->touched) {
        granule->touched = true;
        granule->writer = MODEL_NOBODY;
        touched[touched_count++ & 0xffff] = (uint32_t)(granule - granules);
    }
    char place[96];
    if (granule->writer != MODEL_NOBODY && granule->writer != self && me->view.clock[granule->writer] < granule->written) {
        program->name_word(place, sizeof place, range->base + offset);
        model_fail("p%d %s %s, which p%d has written, and no edge says that it is done", self, contents ? "writes" : "reads", place,
                   granule->writer);
    }
    if (!contents) {
        granule->reads[self] = me->view.clock[self];
        return;
    }
    for (int p = 0; p < program->processes; p++) {
        if (p == self || me->view.clock[p] >= granule->reads[p]) continue;
        program->name_word(place, sizeof place, range->base + offset);
        model_fail("p%d writes %s, which p%d has read, and no edge says that it is done", self, place, p);
    }
    granule->writer = (int8_t)self;
    granule->written = me->view.clock[self];
    me->changed = true;
    uint64_t hash = model_mix(offset, bytes);
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ contents[i]) * UINT64_C(0x100000001b3);
    uint64_t place_hash = (uint64_t)(granule - granules) + 1000000;
    memory_hash ^= model_mix(place_hash, granule->hash) ^ model_mix(place_hash, hash);
    granule->hash = hash;
}

static void plain_access(const void *at, size_t bytes, const uint8_t *contents)
{
    if (self == MODEL_NOBODY) return;
    const uint8_t *address = at;
    for (int i = 0; i < plain_count; i++) {
        const struct range *range = &plain_ranges[i];
        size_t offset;
        if (address >= range->base && address < range->base + range->bytes) offset = (size_t)(address - range->base);
        else if (range->mirror && address >= range->mirror && address < range->mirror + range->bytes)
            offset = (size_t)(address - range->mirror);
        else continue;
        while (bytes) {
            size_t inside = offset % range->bytes;
            size_t part = GRANULE - inside % GRANULE;
            if (part > bytes) part = bytes;
            plain_part(range, inside, part, contents);
            if (contents) contents += part;
            offset += part;
            bytes -= part;
        }
        return;
    }
}

void model_plain(const void *from, size_t bytes, bool write) { plain_access(from, bytes, write ? from : NULL); }

void *model_memcpy(void *to, const void *from, size_t bytes)
{
    plain_access(from, bytes, NULL);
    plain_access(to, bytes, from);
    if (self != MODEL_NOBODY) {
        uint64_t hash = processes[self].hash;
        for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)from)[i]) * UINT64_C(0x100000001b3);
        processes[self].hash = hash;
    }
    return memmove(to, from, bytes);
}

/* ---- one execution ---- */

/** A process, from before its birth.  Nothing is kept in variables here, for it is left and entered by jumps. */
static void live(void)
{
    _setjmp(processes[self].head);
    if (!processes[self].born) {
        processes[self].born = true;
        /* Back to the outside; the next time that somebody comes here, life begins. */
        if (_setjmp(processes[self].here) == 0) _longjmp(outside, 1);
    }
    program->body(self);
    processes[self].state = ENDED;
    processes[self].hash = model_mix(processes[self].hash, 99);
    schedule(false);
    abort(); /* nobody schedules one who has ended */
}

/** Make a coroutine that waits at the beginning of its life. */
static __attribute__((noinline)) void make_coroutine(struct process *process)
{
    process->born = false;
    if (_setjmp(outside)) return;
    if (process->stack) _longjmp(process->head, 1); /* it was left somewhere in its life: back to the beginning */
    process->stack = malloc(STACK);
    if (!process->stack) abort();
    getcontext(&process->context);
    process->context.uc_stack.ss_sp = process->stack;
    process->context.uc_stack.ss_size = STACK;
    process->context.uc_link = NULL;
    makecontext(&process->context, live, 0);
    swapcontext(&outside_context, &process->context);
}

static void make_coroutines(void)
{
    for (self = 0; self < program->processes; self++) make_coroutine(&processes[self]);
    self = MODEL_NOBODY;
}

static void reset(void)
{
    for (struct word *word = words; word < words + word_count; word++) raw_store(word->address, word->bytes, word->initial);
    value_count = 0;
    for (struct word *word = words; word < words + word_count; word++) {
        if (word->shared < 0) continue;
        struct history *history = &histories[word->shared];
        history->count = 1;
        history->total = 0;
        history->values[0] = (uint16_t)value_count;
        memset(&values[value_count], 0, sizeof values[0]);
        values[value_count++].value = word->initial;
    }
    for (int i = 0; i < touched_count; i++) memset(&granules[touched[i]], 0, sizeof *granules);
    touched_count = 0;
    memset(edges, 0, sizeof edges);
    for (int p = 0; p < MODEL_PROCESSES; p++) {
        struct process *process = &processes[p];
        process->state = RUNNABLE;
        process->changed = false;
        process->hash = (uint64_t)p + 1;
        process->low = NULL;
        process->point = RBI_POINT_put_began;
        memset(&process->view, 0, sizeof process->view);
        process->view.clock[p] = 1;
    }
    left = bounds;
    clock_ns = 1000000000;
    advances = 0;
    memory_hash = notes_hash = step_count = sleep_count = 0;
    died = false;
    path_at = 0;
    program->restore();
    make_coroutines();
}

static int start_first(void)
{
    int how = _setjmp(outside);
    if (how) return how;
    /* From nowhere: whoever may be the first. */
    int first = choose(program->processes, 7, 192);
    self = first;
    _longjmp(processes[first].here, 1);
}

static enum ending execute(void)
{
    reset();
    enum ending how = (enum ending)start_first();
    self = MODEL_NOBODY;
    if (how == FINISHED) {
        if (_setjmp(outside) == 0) program->check();
        else how = FAILED;
    }
    result->executions++;
    if (step_count > result->longest) result->longest = step_count;
    return how;
}

static void write_schedule(void)
{
    size_t used = 0;
    result->schedule[0] = '\0';
    for (int i = 0; i < path_length && used + 16 < sizeof result->schedule; i++)
        if (path[i].taken) used += (size_t)snprintf(result->schedule + used, 16, "%s%d:%d", used ? "," : "", i, path[i].taken);
}

/** Walk at random for a while, to see which words are shared. */
static void discover(void)
{
    struct model_result ignored = {0}, *kept = result;
    result = &ignored;
    at_random = true;
    bool trace = model_trace;
    model_trace = false;
    bool passed[RBI_POINT_COUNT];
    uint64_t deaths[RBI_POINT_COUNT];
    memcpy(passed, model_point_passed, sizeof passed);
    memcpy(deaths, model_point_deaths, sizeof deaths);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < DISCOVERY; i++) {
            random_state = (uint64_t)i * 7919 + 17;
            path_length = 0;
            execute();
        }
        number_shared_words();
    }
    memcpy(model_point_passed, passed, sizeof passed);
    memcpy(model_point_deaths, deaths, sizeof deaths);
    model_trace = trace;
    at_random = false;
    result = kept;
}

static void begin(const struct model_program *what, struct model_bounds within, struct model_result *out)
{
    program = what;
    bounds = within;
    result = out;
    memset(out, 0, sizeof *out);
    rbi_point_hook = at_point;
    for (struct word *word = words; word < words + word_count; word++) {
        /* What set-up has written is where every execution begins. */
        word->initial = raw_load(word->address, word->bytes);
        word->users = word->writers = 0;
        word->shared = -1;
    }
    discover();
}

static void begin_search(void)
{
    free(visited);
    visited_mask = (1 << 16) - 1;
    visited = calloc(visited_mask + 1, sizeof *visited);
    visited_count = 0;
    path_length = 0;
}

/** The next path: the last choice that has an alternative takes it.  False: there is none. */
static bool next_path(void)
{
    while (path_length && path[path_length - 1].taken + 1 == path[path_length - 1].count) path_length--;
    if (!path_length) return false;
    path[path_length - 1].taken++;
    return true;
}

void model_explore(const struct model_program *what, struct model_bounds within, double seconds, struct model_result *out)
{
    double start = seconds_now();
    begin(what, within, out);
    begin_search();
    for (;;) {
        enum ending how = execute();
        if (how == FAILED) {
            write_schedule();
            break;
        }
        if (discovered) {
            number_shared_words();
            begin_search();
            continue;
        }
        if (!next_path()) {
            out->complete = true;
            break;
        }
        if ((out->executions & 255) == 0 && seconds_now() - start > seconds) break;
    }
    out->states = visited_count;
    out->seconds = seconds_now() - start;
    free(visited);
    visited = NULL;
}

void model_walk(const struct model_program *what, struct model_bounds within, uint64_t seed, uint64_t walks, double seconds,
                struct model_result *out)
{
    double start = seconds_now();
    begin(what, within, out);
    at_random = true;
    for (uint64_t walk = 0; walk < walks && seconds_now() - start < seconds; walk++) {
        random_state = model_mix(seed, walk);
        path_length = 0;
        if (execute() != FAILED) {
            if (discovered) number_shared_words();
            continue;
        }
        write_schedule();
        break;
    }
    at_random = false;
    out->seconds = seconds_now() - start;
}

void model_replay(const struct model_program *what, struct model_bounds within, const char *schedule, struct model_result *out)
{
    begin(what, within, out);
    replaying = true;
    replayed = schedule;
    path_length = 0;
    model_trace = true;
    execute();
    write_schedule();
    model_trace = replaying = false;
}

void model_retrace(struct model_result *out)
{
    struct model_result kept = *out;
    model_trace = true;
    execute();
    model_trace = false;
    *out = kept;
}
