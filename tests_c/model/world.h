/* world.h — a small queue, processes that use it by short scripts, and the accounts that are checked at every end. */
#ifndef WORLD_H
#define WORLD_H

#include "explorer.h"

/** What is explored: a queue and the scripts of its processes.
 *
 *  A script is a string of calls, each one letter, all of them waiting without a deadline unless a '0' follows:
 *    p w P   put a message: of a slot, of two cells, of the arena        b B  put two at once, of a slot, of the arena
 *    g       get                                   m  take up to two      M  the same, and give them back untouched
 *    t l     take, lease (what is taken is read where it lies)           a n k  acknowledge, give back, keep all that was taken
 *    r       release what was kept                 R C A  reserve; commit, abort what was reserved
 *    d j     mark a task as done; join             s S  shut down; at once
 *    c       clean up after the dead               z  close the handle     J  join: become a participant (which all others are already)
 *    f       ask for the descriptor of items       e  sleep until it is up, then get without waiting (and again if there is nothing)
 *    F       put a message of a slot, waiting by the descriptor of room
 *    q       ask for the size                      h  ask whether there is room for a message of a slot                              */
struct scenario {
    const char *name;
    const char *scripts[MODEL_PROCESSES];
    uint32_t cells_log2, max_items;     /* cells: 0 is 2 (4 cells) */
    bool arena;                         /* one of 64 blocks, of which `free_blocks` are free */
    uint32_t free_blocks;
    uint32_t prefill;                   /* messages of a slot in it at the start (by nobody) */
    bool after_a_death;                 /* the oldest of them is in the hands of a participant that died before the start */
    uint32_t turned;                    /* messages that went through it before, so that positions do not begin at 0 */
    uint32_t reserved;                  /* so many cells have pages, 0: all, and laps are cut short there */
    bool no_pages;                      /* and there are no more to be had; laps are cut short only for that */
    bool wrap;                          /* positions begin just before the end of their numbers */
    bool may_sleep;                     /* more is asked for than there is */
    int8_t thread_of[MODEL_PROCESSES];  /* if not 0: uses the handle of process thread_of - 1, of the same process */
    struct model_bounds quick, full;
};

extern const struct scenario scenarios[];

/** Arrange it; then model_explore() and its like with this program. */
const struct model_program *world_arrange(const struct scenario *scenario);

#endif
