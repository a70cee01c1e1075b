/* ready.h — floor 3: telling those who wait by a file descriptor: select, epoll, and the loops built on them.
 *
 * A level is something that is up or down, and that each process can have a descriptor of, which is readable while it is up.
 * ready.c opens with what keeps it true. */
#ifndef RBI_READY_H
#define RBI_READY_H

#include "segment.h"

enum rbi_level {
    RBI_LEVEL_ITEMS = 0,   /* up while a take would not wait: there is a message, or the queue is shut down */
    RBI_LEVEL_ROOM = 1,    /* raised when there is more room for puts, by what was listened for */
    RBI_LEVEL_TASKS = 2,   /* raised when tasks are done, likewise */
};

/** Before anything else, for a handle whose path and stamp are known: RINGBUF_OK or RINGBUF_E_NO_MEMORY.  And its end. */
ringbuf_status rbi_ready_prepare(ringbuf *rb);
void rbi_ready_free(ringbuf *rb);

/** This process's descriptor for a level; asks for it to be kept true from now on. */
ringbuf_status rbi_ready_ask(ringbuf *rb, enum rbi_level level, int *fd);

/** Lower ROOM or TASKS, and have it raised by what happens next. */
void rbi_ready_listen(ringbuf *rb, enum rbi_level level);

/* The next three never wait for another thread, and never for the call that a signal handler has interrupted: whoever is at the
 * descriptors already does it before it stops. */

/** Make ITEMS what it should be. */
void rbi_ready_settle(ringbuf *rb);

/** This event, which has listeners, has happened: raise the level that it belongs to.  NULL: it may be any. */
void rbi_ready_tell(ringbuf *rb, struct rbi_event *event);

/** Somebody died, or left: make ITEMS what it should be, and if he was the last who listened, stop telling. */
void rbi_ready_recover(ringbuf *rb);

/** The handle is about to be left.  [fork] A child was forked. */
void rbi_ready_close(ringbuf *rb);
void rbi_ready_after_fork(ringbuf *rb);

/** Remove the queue's FIFOs, or all in the directory, that nobody listens by. */
void rbi_ready_remove(ringbuf *rb);
void rbi_ready_collect(const char *directory);

/** Whether anybody has asked for ITEMS.  [T8 listener]: who takes does so first, and then looks here. */
static inline bool rbi_ready_is_asked(const ringbuf *rb) { return rbi_load_total32(&rb->header->listeners[RBI_LEVEL_ITEMS]) & 1; }

/** After an attempt to take, successful or not. */
void rbi_ready_after_take_slow(ringbuf *rb, bool took);
static inline void rbi_ready_after_take(ringbuf *rb, bool took)
{
    if (rbi_ready_is_asked(rb)) rbi_ready_after_take_slow(rb, took);
}

/* ---- waking: sleepers first, then listeners ---- */

static inline void rbi_wake_items(ringbuf *rb)
{
    if (rbi_event_wake_one(&rb->header->items)) rbi_ready_settle(rb);
}

static inline void rbi_wake_space(ringbuf *rb)
{
    if (rbi_event_wake_one(&rb->header->space)) rbi_ready_tell(rb, &rb->header->space);
}

static inline void rbi_wake_for_room(ringbuf *rb)
{
    if (rbi_event_wake_all_if_any(&rb->header->room)) rbi_ready_tell(rb, &rb->header->room);
    RBI_POINT(room_woke);
}

static inline void rbi_wake_joiners(ringbuf *rb)
{
    if (rbi_event_wake_all(&rb->header->tasks)) rbi_ready_tell(rb, &rb->header->tasks);
}

/** Everybody, whatever he waits for. */
void rbi_wake_everybody(ringbuf *rb);

#endif
