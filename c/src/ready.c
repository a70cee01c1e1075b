/* ready.c — floor 3: levels, and the descriptors that show them.
 *
 * What a level is.  A FIFO beside the queue's file, named after the queue's id; the level is up while there are bytes in it.  A FIFO,
 * because it is the one thing that is in all processes the same, that unrelated ones can open by a path, and that select and epoll see:
 * an eventfd cannot be handed on, and what each process has of its own (inotify, an eventfd and a thread) stays up when another process
 * takes the last message.  (docs/decisions/0014-levels.md)
 *
 * It costs nothing until somebody asks.  listeners[level] in the header tells whether anybody has: the flag LISTENERS of an event word
 * is then set while the level is down, so that who puts sees it in the word that he looks at for sleepers anyway; and who takes
 * looks at listeners[].
 *
 * ITEMS.  Whoever changes what a take would find then settles:
 *     look whether a take would wait;  no: clear LISTENERS, raise;  yes: set LISTENERS, lower;
 *     look again, and if the answer has changed, or LISTENERS was cleared by another one, begin again.
 * Who must settle: who puts and sees LISTENERS; who takes and leaves nothing; who finds nothing although LISTENERS is clear.
 *   Down with a message there, for good?  Then the last to touch the FIFO has lowered it, and has then found nothing to take and
 *   LISTENERS set.  The message was published after that look, so its producer saw LISTENERS, or that it had been cleared; but who
 *   clears it raises next, and was not the last.  [T1]: publish, then look at the word, against write the word, then look at the ring.
 *   Up with nothing there, for good?  Then the last to touch it has raised it, and has then found a message.  Who took that did so
 *   later, and has settled after it.
 *   A death between clearing and raising is found by those who recover the dead one, and they settle.
 *
 * CHANGES.  Not a state but a knock: whoever waits for room, or for tasks, lowers the flag, sets LISTENERS of the event, and tries once
 * more; the next to make room clears LISTENERS and raises the flag.  All who listen see it, try, and lower it again, perhaps
 * before another one has looked: so who succeeds and leaves more behind raises it again (ringbuf_pass_on).  What may still be missed is
 * met by the look that everybody who waits takes every 100 ms anyway, because of the dead.
 *
 * Who has a FIFO open.  Listeners hold a shared lock on it; those who only tell, none.  Who gets the exclusive lock knows that nobody
 * listens any more: he makes listeners[level] even and removes the FIFO.  Its word counts up at every change, and who tells opens the
 * FIFO anew when the count has changed.  A listener checks after locking that the FIFO still has its name.
 * All kernel objects go with their holders; a FIFO whose listeners were all killed is met by the next listener, the next recovery, the
 * removal of the queue or rbi_ready_collect(), and has no memory behind it. */
#define _GNU_SOURCE
#include "ready.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAG_PREFIX "ringbuf-"
static const char *const level_names[RBI_LEVELS] = {"items", "changes"};

static const int64_t lock_patience_ns = 5000000000, lock_nap_ns = 100000;

/** The path of a level's FIFO; NULL if there is no memory. */
static char *path_of(const ringbuf *rb, enum rbi_level level)
{
    char id[2 * RBI_ID_BYTES + 1];
    for (size_t i = 0; i < RBI_ID_BYTES; i++) snprintf(id + 2 * i, 3, "%02x", (unsigned)rb->stamp.id[i]);
    const char *slash = strrchr(rb->path, '/');
    char *path = NULL;
    if (asprintf(&path, "%.*s/" FLAG_PREFIX "%s.%s", (int)(slash - rb->path), rb->path, level_names[level], id) < 0) return NULL;
    return path;
}

/* ---- the listeners' word ---- */

/** Somebody listens, from now on or anew. */
static void count_listener(ringbuf *rb, enum rbi_level level)
{
    rbi_atomic32 *word = &rb->header->listeners[level];
    for (;;) {
        uint32_t seen = rbi_load_total32(word);
        if (rbi_cas_total32(word, seen, (seen + 2) | 1)) break;
    }
    RBI_POINT(listener_counted);
}

/** Nobody listens, if that is still what it was when the word was read as `seen`. */
static void count_none(ringbuf *rb, enum rbi_level level, uint32_t seen)
{
    if (seen & 1) rbi_cas_total32(&rb->header->listeners[level], seen, seen + 1);
    RBI_POINT(listeners_gone);
}

/* ---- descriptors; with `telling` held ---- */

static void forget(struct rbi_descriptor *descriptor)
{
    rbi_file_close(descriptor->fd);
    *descriptor = (struct rbi_descriptor){.fd = -1};
}

/** The level's descriptor, to tell others by, opened if need be.  -1: nobody listens (then listeners[level] says so), or it cannot be
 *  opened now. */
static rbi_fd descriptor_of(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    uint32_t seen = rbi_load_total32(&rb->header->listeners[level]);
    if (!(seen & 1)) return -1;
    if (descriptor->asked || (descriptor->fd >= 0 && descriptor->version == seen)) return descriptor->fd;
    forget(descriptor);
    char *path = path_of(rb, level);
    ringbuf_status status = path ? rbi_flag_open(&descriptor->fd, path) : RINGBUF_E_NO_MEMORY;
    free(path);
    if (status == RINGBUF_OK) descriptor->version = seen;
    else descriptor->fd = -1;
    /* A listener makes the FIFO before he counts himself; so with none there, nobody has listened since `seen`. */
    if (status == RINGBUF_E_NOT_FOUND) count_none(rb, level, seen);
    return descriptor->fd;
}

/** Open the FIFO at `path` and lock it as a listener.  RINGBUF_E_BUSY: look again. */
static ringbuf_status try_to_listen(struct rbi_descriptor *descriptor, const char *path, uint32_t permissions)
{
    struct rbi_file_facts facts;
    ringbuf_status status = rbi_flag_make(path, permissions);
    RBI_POINT(flag_made);
    if (status != RINGBUF_OK && status != RINGBUF_E_EXISTS) return status;
    status = rbi_flag_open(&descriptor->fd, path);
    if (status != RINGBUF_OK) return status == RINGBUF_E_NOT_FOUND ? RINGBUF_E_BUSY : status;
    status = rbi_flag_lock_try(descriptor->fd, RBI_LOCK_SHARED);
    RBI_POINT(flag_locked);
    if (status == RINGBUF_OK) status = rbi_file_facts(descriptor->fd, &facts);
    if (status == RINGBUF_OK && facts.links == 0) status = RINGBUF_E_BUSY; /* removed before we had the lock */
    if (status != RINGBUF_OK) forget(descriptor);
    return status;
}

static ringbuf_status listen_at(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    if (descriptor->asked) return RINGBUF_OK;
    forget(descriptor);
    char *path = path_of(rb, level);
    if (!path) return RINGBUF_E_NO_MEMORY;
    int64_t give_up_ns = rbi_monotonic_ns() + lock_patience_ns;
    ringbuf_status status;
    while ((status = try_to_listen(descriptor, path, rb->stamp.permissions)) == RINGBUF_E_BUSY && rbi_monotonic_ns() < give_up_ns)
        rbi_nap(lock_nap_ns); /* somebody is just removing it */
    free(path);
    if (status != RINGBUF_OK) return status;
    descriptor->asked = true;
    count_listener(rb, level);
    return RINGBUF_OK;
}

/** `fd` is open on the FIFO at `path`, and we do not listen by it any more: if nobody does, remove it. */
static void remove_if_unheard(ringbuf *rb, enum rbi_level level, rbi_fd fd, const char *path)
{
    uint32_t seen = rbi_load_total32(&rb->header->listeners[level]);
    struct rbi_file_facts facts;
    if (rbi_flag_lock_try(fd, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) return;
    RBI_POINT(flag_alone);
    /* Not one that was removed already: another may have its name by now. */
    if (rbi_file_facts(fd, &facts) != RINGBUF_OK || facts.links == 0) return;
    count_none(rb, level, seen);
    rbi_path_unlink(path);
    RBI_POINT(flag_removed);
}

static void stop_listening(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    char *path = descriptor->asked ? path_of(rb, level) : NULL;
    if (path) remove_if_unheard(rb, level, descriptor->fd, path);
    free(path);
    forget(descriptor);
}

/** The same for others: if all who listened are dead. */
static void remove_if_deserted(ringbuf *rb, enum rbi_level level)
{
    if (rb->levels[level].asked || !(rbi_load_total32(&rb->header->listeners[level]) & 1)) return;
    rbi_fd fd;
    char *path = path_of(rb, level);
    if (path && rbi_flag_open(&fd, path) == RINGBUF_OK) {
        remove_if_unheard(rb, level, fd, path);
        rbi_file_close(fd);
    }
    free(path);
}

/* ---- ITEMS ---- */

/** Whether a take would find something, or say that the queue is shut down. */
static bool would_not_wait(ringbuf *rb)
{
    if (rbi_load_total32(&rb->header->shutdown)) return true; /* [T3] */
    if (!rbi_ring_some_returned(&rb->ring)) return rbi_ring_may_take(&rb->ring); /* [T1] */
    /* The hint says that something may have been returned; a take would look, so we do. */
    uint64_t items = 0;
    if (rbi_ring_count(&rb->ring, &items) != RBI_RING_OK) return true; /* a take would say what is wrong */
    if (items || !rbi_arena_is_used(&rb->arena)) return items;
    struct rbi_arena_census census;
    rbi_arena_count(&rb->arena, &census);
    return census.runs[RBI_BLOCK_RETURNED];
}

/** One round of settling.  Returns whether it is settled. */
static bool settled(ringbuf *rb)
{
    struct rbi_event *items = &rb->header->items;
    rbi_fd fd = descriptor_of(rb, RBI_LEVEL_ITEMS);
    if (fd < 0) {
        if (rbi_ready_is_asked(rb)) return true; /* and LISTENERS stays: the next one who puts tries again */
        rbi_event_unlisten(items);
        return !rbi_ready_is_asked(rb); /* else a listener has come, and it was his flag that we cleared */
    }
    bool up = would_not_wait(rb);
    if (up) {
        rbi_event_unlisten(items);
        RBI_POINT(listeners_cleared);
        rbi_flag_raise(fd);
        RBI_POINT(flag_raised);
    } else {
        rbi_event_listen(items);
        RBI_POINT(listeners_set);
        rbi_flag_lower(fd);
        RBI_POINT(flag_lowered);
    }
    return would_not_wait(rb) == up && (up || rbi_event_has_listeners(items));
}

void rbi_ready_settle(ringbuf *rb)
{
    pthread_mutex_lock(&rb->telling);
    while (!settled(rb)) continue; /* each further round means that somebody else has moved a message */
    pthread_mutex_unlock(&rb->telling);
}

void rbi_ready_after_take_slow(ringbuf *rb, bool took)
{
    if (took ? !would_not_wait(rb) : !rbi_event_has_listeners(&rb->header->items)) rbi_ready_settle(rb);
}

/* ---- CHANGES ---- */

static void raise_changes(ringbuf *rb, struct rbi_event *event)
{
    rbi_fd fd = descriptor_of(rb, RBI_LEVEL_CHANGES);
    if (fd < 0 && rbi_load_total32(&rb->header->listeners[RBI_LEVEL_CHANGES]) & 1) return; /* the next one tries again */
    if (event) rbi_event_unlisten(event);
    RBI_POINT(listeners_cleared);
    if (fd >= 0) rbi_flag_raise(fd);
    RBI_POINT(flag_raised);
}

void rbi_ready_tell(ringbuf *rb, struct rbi_event *event)
{
    pthread_mutex_lock(&rb->telling);
    raise_changes(rb, event);
    pthread_mutex_unlock(&rb->telling);
}

void rbi_ready_listen(ringbuf *rb, bool space, bool tasks)
{
    pthread_mutex_lock(&rb->telling);
    if (rb->levels[RBI_LEVEL_CHANGES].fd >= 0) rbi_flag_lower(rb->levels[RBI_LEVEL_CHANGES].fd);
    pthread_mutex_unlock(&rb->telling);
    RBI_POINT(flag_lowered);
    if (space) rbi_event_listen(&rb->header->space);
    if (space) rbi_event_listen(&rb->header->room);
    if (tasks) rbi_event_listen(&rb->header->tasks);
    RBI_POINT(listeners_set);
}

/* ---- both ---- */

ringbuf_status rbi_ready_ask(ringbuf *rb, enum rbi_level level, int *fd)
{
    pthread_mutex_lock(&rb->telling);
    ringbuf_status status = listen_at(rb, level);
    *fd = rb->levels[level].fd;
    pthread_mutex_unlock(&rb->telling);
    if (status == RINGBUF_OK && level == RBI_LEVEL_ITEMS) rbi_ready_settle(rb);
    return status;
}

void rbi_ready_remove(ringbuf *rb)
{
    pthread_mutex_lock(&rb->telling);
    for (uint32_t level = 0; level < RBI_LEVELS; level++) remove_if_deserted(rb, (enum rbi_level)level);
    pthread_mutex_unlock(&rb->telling);
}

void rbi_ready_recover(ringbuf *rb)
{
    rbi_ready_remove(rb);
    if (rbi_ready_is_asked(rb)) rbi_ready_settle(rb);
    if (rbi_load_total32(&rb->header->listeners[RBI_LEVEL_CHANGES]) & 1) rbi_ready_tell(rb, NULL);
}

void rbi_wake_everybody(ringbuf *rb)
{
    rbi_event_wake_all(&rb->header->items);
    if (rbi_ready_is_asked(rb)) rbi_ready_settle(rb);
    if (rbi_event_wake_all(&rb->header->space)) rbi_ready_tell(rb, &rb->header->space);
    if (rbi_event_wake_all(&rb->header->room)) rbi_ready_tell(rb, &rb->header->room);
    rbi_wake_joiners(rb);
}

void rbi_ready_close(ringbuf *rb)
{
    pthread_mutex_lock(&rb->telling);
    for (uint32_t level = 0; level < RBI_LEVELS; level++) stop_listening(rb, (enum rbi_level)level);
    pthread_mutex_unlock(&rb->telling);
}

void rbi_ready_after_fork(ringbuf *rb)
{
    pthread_mutex_init(&rb->telling, NULL);
    for (uint32_t level = 0; level < RBI_LEVELS; level++) {
        struct rbi_descriptor *descriptor = &rb->levels[level];
        /* The inherited one is the parent's, and so is its lock.  If it cannot be opened anew, the child has not asked. */
        bool keep = !rbi_handle_is_closed(rb) && descriptor->asked && rbi_flag_reopen(descriptor->fd) == RINGBUF_OK;
        if (!keep) forget(descriptor);
    }
}

/* ---- removing ---- */

static void collect_flag(const char *file_name, void *directory)
{
    char *path = NULL;
    rbi_fd fd;
    if (asprintf(&path, "%s/%s", (const char *)directory, file_name) < 0) return;
    if (rbi_flag_open(&fd, path) == RINGBUF_OK) {
        /* Also if its queue lives: nobody listens, and the next who does makes a new one. */
        struct rbi_file_facts facts;
        if (rbi_flag_lock_try(fd, RBI_LOCK_EXCLUSIVE) == RINGBUF_OK && rbi_file_facts(fd, &facts) == RINGBUF_OK && facts.links)
            rbi_path_unlink(path);
        rbi_file_close(fd);
    }
    free(path);
}

void rbi_ready_collect(const char *directory)
{
    for (uint32_t level = 0; level < RBI_LEVELS; level++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, FLAG_PREFIX "%s.", level_names[level]);
        rbi_directory_visit(directory, prefix, collect_flag, (void *)(uintptr_t)directory);
    }
}
