/* history.h — what many processes did to one queue, each call with the times between which it took effect, and the question
 * whether a FIFO queue could have answered so.
 *
 * The checker knows nothing of the library: a history can be recorded (storm.c), written by hand or drawn at random
 * (test_history.c). */
#ifndef TESTS_HISTORY_H
#define TESTS_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HISTORY_BATCH = 4, HISTORY_WORKERS = 1 << 16 };

enum history_kind {
    HISTORY_PUT = 1, /* of `count` values, one behind the other, all or none */
    HISTORY_GET,     /* taken and consumed in one call */
    HISTORY_TAKE,    /* of up to `wanted` values, to be ended one by one */
    HISTORY_ACK,     /* the end of what was taken: consumed, */
    HISTORY_NACK,    /* given back, */
    HISTORY_RETURN,  /* given back, and the attempt does not count */
    HISTORY_DEATH    /* of the worker: begun_ns is when it was surely alive for the last time, ended_ns when it was surely dead */
};

enum history_outcome {
    HISTORY_PENDING = 0, /* never answered: it has taken effect, or not */
    HISTORY_DONE,
    HISTORY_NOTHING,     /* it found the queue full or empty */
    HISTORY_WRONG        /* an answer that is wrong by itself: another status, a message that is not whole */
};

/** One call.  The values of a put are known when it begins, those of a get when it is answered; of one that was never answered
 *  they are known, too, if the message was found whole in the hands of the dead. */
struct history_op {
    int64_t begun_ns;
    int64_t ended_ns;                 /* nothing, while it is pending */
    uint64_t values[HISTORY_BATCH];   /* no two messages have the same */
    uint16_t attempts[HISTORY_BATCH]; /* of a take: how often the message has been taken, this time included; 0: unknown */
    uint16_t worker;                  /* calls of one worker do not overlap */
    uint8_t kind;                     /* enum history_kind */
    uint8_t outcome;                  /* enum history_outcome */
    uint8_t count;
    uint8_t wanted;
    uint8_t in_arena;                 /* of a take: a bit for each message that lies in the arena */
};

struct history {
    struct history_op *ops; /* in any order */
    size_t count;
    bool drained;           /* at the end somebody has taken what there was */
    bool fixed_lanes;       /* the queue never changed lanes: what was given back has an order, too */
    bool hands_known;       /* a pending get without a value had not consumed any: its hands were looked at */
    uint64_t always_fits;   /* so many messages fit in whatever their sizes; 0: unknown, answers "full" are not judged */
};

enum history_fault {
    HISTORY_LINEARIZABLE = 0,
    HISTORY_MALFORMED,    /* no history: a value put twice, an end of what was not taken, times that run backwards */
    HISTORY_WRONG_ANSWER, /* a call answered what it never may */
    HISTORY_INVENTED,     /* got, but never put */
    HISTORY_TOO_EARLY,    /* got before its put began */
    HISTORY_TWICE,        /* got by two, or again after it was consumed, or while another one had it */
    HISTORY_LOST,         /* put, and neither got nor there at the end */
    HISTORY_OVERTAKEN,    /* by one whose put began after its own put had returned */
    HISTORY_CIRCLE,       /* each was put, or got, before the next one, and the last before the first */
    HISTORY_NOT_EMPTY,    /* "empty", while something was there at every moment of the call */
    HISTORY_NOT_FULL,     /* "full", while there was room at every moment of the call */
    HISTORY_PASSED_OVER,  /* a message that had been given back waited all the time while a younger one was taken */
    HISTORY_OUT_OF_ORDER, /* of two that had been given back, the younger one was taken while the older one waited all the time */
    HISTORY_MISCOUNTED,   /* attempts that nobody made, or one that was not counted */
    HISTORY_FAULTS
};

struct history_verdict {
    enum history_fault fault;
    char text[768];       /* about the fault: the values and calls, times in ns since the first call */
    /* What was judged: */
    uint64_t operations, values, deliveries, redeliveries, empties, fulls, fulls_judged, pending, deaths, orders_judged;
    uint64_t explained;   /* messages late because somebody unknown had them when it died */
};

/** Whether the history is that of a FIFO queue as docs/guarantees.md has it; check.c opens with what that means.  O(n log n). */
enum history_fault history_check(const struct history *history, struct history_verdict *verdict);

const char *history_fault_name(enum history_fault fault);

/** The same question for at most 16 steps by trying every order; the definition in code, against which the other is compared. */
bool history_search(const struct history *history);

#endif
