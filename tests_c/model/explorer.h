/* explorer.h — runs processes as coroutines, one step at a time, in every order that the bounds allow.
 *
 * explorer.c opens with what a step is, what is explored, and what makes it finite.
 * Layers, upwards: explorer (this), platform_model.c (the operating system, as steps), world.c (a small queue, its users' scripts and the
 * accounts), scenarios.c (the list), main.c. */
#ifndef EXPLORER_H
#define EXPLORER_H

#include "points.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MODEL_PROCESSES = 6, MODEL_NOBODY = -1 };

/** How much of what may happen in one execution; -1: as much as there is. */
struct model_bounds {
    int preemptions; /* switches away from a process that could go on */
    int crashes;
    int stale;       /* loads, and failing compare-and-swaps, that do not see the newest value */
    int jumps;       /* sleeps that end by their timeout although somebody else could go on: time passes */
};

/** What is explored. */
struct model_program {
    int processes;
    void (*body)(int me);                      /* a process's life, as a coroutine */
    void (*died)(int process);                 /* its kernel objects go */
    void (*restore)(void);                     /* all that is not tracked memory, to what it was after set-up */
    uint64_t (*hash)(void);                    /* of all that is not tracked memory */
    void (*stuck)(const int64_t *deadlines);   /* everybody sleeps: is that right?  deadlines[p] < 0: p does not sleep */
    bool (*sleeps_for_ever)(int process);      /* whether a sleeper that nobody will wake is right */
    void (*check)(void);                       /* at the end of every execution, with all processes ended or dead */
    void (*name_word)(char *text, size_t bytes, const void *word);
};

struct model_result {
    uint64_t executions, states, steps, crashes, longest;
    bool complete;                             /* everything within the bounds was explored */
    bool failed;
    char failure[512];
    char schedule[4096];                       /* to be replayed */
    double seconds;
};

/** Words that are steps: atomics in [base, base + bytes). */
void model_track(void *base, size_t bytes);
/** Plain memory whose reads and writes are judged: [base, base + bytes), and again from `mirror` on, if that is not NULL. */
void model_track_plain(void *base, size_t bytes, void *mirror);
/** Forget all tracked memory, and what was learned about it. */
void model_forget(void);

/** Explore everything within the bounds, for at most `seconds`; or walk at random, `walks` times from `seed` on. */
void model_explore(const struct model_program *program, struct model_bounds bounds, double seconds, struct model_result *result);
void model_walk(const struct model_program *program, struct model_bounds bounds, uint64_t seed, uint64_t walks, double seconds,
                struct model_result *result);
/** Repeat one execution, and print every step. */
void model_replay(const struct model_program *program, struct model_bounds bounds, const char *schedule, struct model_result *result);

/** The same for the execution that has just failed. */
void model_retrace(struct model_result *result);

/* ---- for the layers above, inside an execution ---- */

/** Who is running; MODEL_NOBODY in set-up and in checks, where every step is just done. */
int model_self(void);
/** The promise is broken: ends the execution. */
void model_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/** A step on something of the operating system: others may come before it.  `what` is for the trace. */
void model_step(const char *what, uint64_t which);
/** Choose one of `count` things that may happen. */
int model_choose(int count, const char *what);
/** The step has changed something. */
void model_changed(void);
/** Sleep on a word (or NULL) until woken or until the clock says `deadline_ns`; returns whether woken. */
bool model_sleep(const void *word, int64_t deadline_ns);
/** Wake up to `count` who sleep on it. */
int model_wake(const void *word, int count);
/** The process dies now: one that is not running, but was about to. */
void model_kill(int process);
bool model_is_dead(int process);
const void *model_sleeps_on(int process);
bool model_may_kill(int process);
/** What a kernel object hands from the one who lets go of it to the next: as an edge. */
void model_give(int edge, int process);
void model_take(int edge);
/** A call has ended with this outcome, and nothing but that is left of it in the process. */
void model_settle(uint64_t outcomes);
/** Something that has happened and that the checks will judge by: becomes part of the state. */
void model_note(uint64_t fact);
int64_t model_clock(void);
uint64_t model_now_step(void);
bool model_anybody_died(void);
void model_plain(const void *from, size_t bytes, bool write);
void *model_memcpy(void *to, const void *from, size_t bytes);
uint64_t model_mix(uint64_t a, uint64_t b);

/* What was passed, and died at, in all executions so far. */
extern bool model_point_passed[RBI_POINT_COUNT];
extern uint64_t model_point_deaths[RBI_POINT_COUNT];
extern bool model_trace;

#endif
