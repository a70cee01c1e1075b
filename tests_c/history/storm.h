/* storm.h — record a history: processes that work on one real queue at random, while the parent kills, stops and replaces them.
 * */
#ifndef TESTS_HISTORY_STORM_H
#define TESTS_HISTORY_STORM_H

#include "history.h"

/** A queue, who works on it, and what happens to them. */
struct storm_plan {
    const char *name;
    uint64_t capacity_bytes, arena_bytes, max_items;
    int workers;
    bool short_laps;         /* a lap ends where pages do, however few they are */
    bool large;              /* also messages for the arena */
    bool leases;             /* take and lease, to acknowledge, give back, return, hold and die with; else get only */
    bool holds;              /* now and then for longer than it takes until a ring counts as stuck */
    unsigned kills_per_s;    /* about so many, and as many stops; 0: nobody is harmed */
    uint64_t always_fits;
};

struct storm_record {
    struct history history;  /* its ops are malloc'ed */
    uint64_t kills, stops, deaths_by_own_hand;
    uint64_t lane_changes, laps;
    double seconds;
    char complaint
        [256]; /* about something that is no call: a worker that ended by itself, something left in the queue; or empty */
};

/** Let it storm until so many calls have been made, and let everybody finish.  Queues are made in $SAGE_QUEUE_DIR. */
void storm(const struct storm_plan *plan, uint64_t operations, uint64_t seed, struct storm_record *record);

/* Ways to falsify a history in one place. */
enum falsification {
    SWAP_TWO_DELIVERIES,
    DROP_A_DELIVERY,
    DOUBLE_A_DELIVERY,
    GET_BEFORE_THE_PUT,
    EMPTY_BESIDE_A_MESSAGE,
    INVENT_A_MESSAGE,
    FALSIFICATIONS
};

const char *falsification_name(enum falsification how);

/** Falsify a copy of the history (free its ops), in one place of those where that cannot be explained by a death.  Returns
 *  whether there is such a place. */
bool falsify(const struct history *history, enum falsification how, uint64_t *random, struct history *falsified);

#endif
