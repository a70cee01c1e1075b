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
 *   A look may also err because others move, but only while they do: to "nothing" only if there were puts meanwhile, which have seen, or
 *   cleared, the flag that was set before the look; to "something" only beside a taker who will look himself, later.
 *   The FIFO may be another one by now: that shows in listeners[], and then it is done again with the new one.
 *   A death between clearing and raising is found by those who recover the dead one, and they settle.  One who is stopped there leaves
 *   the level as it is: who finds nothing although he listens settles, and so does every ringbuf_recover().
 *
 * ROOM and TASKS.  Not states but knocks: whoever waits for room lowers the flag, sets LISTENERS of the events, and tries once more; the
 * next to make room clears LISTENERS and raises the flag.  All who listen see it, try, and lower it again, perhaps before another one
 * has looked: so who has lowered it and goes raises it again (ringbuf_pass_on); who stays has found, after lowering it, that there is no
 * room for him.  Two levels, because who waits for tasks does not find that.  What may still be missed (by one who wants less than
 * the one who lowered it) is met by the attempt that each of them makes every 100 ms anyway.
 *
 * One thread of a process at a time is at the descriptors (the word `telling` of the handle).  Who finds another one there does not wait: it
 * writes into the same word what is to be done, and goes.  It may be a signal handler's call, and the one it has found there the very
 * call that it has interrupted; then waiting would never end.
 *   Nothing is lost by that.  The request and the look whether somebody is there are one compare-and-swap; so are clearing the requests
 *   before doing them, and leaving, which fails while there is a request.  So a request was written either before the one that is there
 *   clears it, and is done after that, with all that the requester has changed in the queue before it; or after the last one left,
 *   and then the requester does it by itself.  What is to be done is always "make it what it should be now" or "raise it", so that one
 *   time does for several requests.
 *   The level may become what it should be a moment after the call that has asked for it returned, as it would if another process were
 *   at it.  A thread that is stopped there keeps its process from telling anybody until it goes on, as one that held a lock would; a
 *   death is met as above.
 *   Only who must have something done before it goes on (asking for a descriptor, lowering one, closing) waits for its turn.
 *
 * Who has a FIFO open.  Listeners hold a shared lock on it; those who only tell, none.  Who gets the exclusive lock knows that nobody
 * listens any more: he removes the FIFO, and then makes listeners[level] even.  A death between the two leaves a word that says that
 * somebody listens, and who tells corrects it when he finds no FIFO.  The word counts up at every change, and who tells opens the
 * FIFO anew when the count has changed.  A listener checks after locking that the FIFO still has its name.
 * All kernel objects go with their holders; a FIFO whose listeners were all killed is met by the next listener, the next recovery, the
 * removal of the queue or rbi_ready_collect(), and has no memory behind it. */
#define _GNU_SOURCE
#include "ready.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAG_PREFIX "ringbuf-"
static const char *const level_names[RBI_LEVELS] = {"items", "room", "tasks"};

static const int64_t lock_patience_ns = 5000000000, lock_nap_ns = 100000;

ringbuf_status rbi_ready_prepare(ringbuf *rb)
{
    char id[2 * RBI_ID_BYTES + 1];
    for (size_t i = 0; i < RBI_ID_BYTES; i++) snprintf(id + 2 * i, 3, "%02x", (unsigned)rb->stamp.id[i]);
    const char *slash = strrchr(rb->path, '/');
    for (uint32_t level = 0; level < RBI_LEVELS; level++) {
        char **path = &rb->levels[level].path;
        if (asprintf(path, "%.*s/" FLAG_PREFIX "%s.%s", (int)(slash - rb->path), rb->path, level_names[level], id) < 0) *path = NULL;
        if (!*path) return RINGBUF_E_NO_MEMORY;
    }
    return RINGBUF_OK;
}

void rbi_ready_free(ringbuf *rb)
{
    for (uint32_t level = 0; level < RBI_LEVELS; level++) free(rb->levels[level].path);
}

/* ---- the listeners' word ---- */

/** Somebody listens, from now on or anew. */
static void count_listener(ringbuf *rb, enum rbi_level level)
{
    rbi_atomic32 *word = &rb->header->listeners[level];
    for (;;) {
        uint32_t seen = rbi_load_total32(word);
        if (rbi_cas_total32(word, seen, (seen + 2) | 1)) break; /* [T8 listener]: he then looks at the ring, or listens */
    }
    RBI_POINT(listener_counted);
}

/** Nobody listens, if that is still what it was when the word was read as `seen`. */
static void count_none(ringbuf *rb, enum rbi_level level, uint32_t seen)
{
    if (seen & 1) rbi_cas_total32(&rb->header->listeners[level], seen, seen + 1);
    RBI_POINT(listeners_gone);
}

/* ---- descriptors; for the one that is at them ---- */

static inline bool is_asked(const struct rbi_descriptor *descriptor) { return rbi_load_total32(&descriptor->asked); }

static ringbuf_status open_flag(struct rbi_descriptor *descriptor) { return rbi_flag_open(&descriptor->file, descriptor->path); }

static void forget(struct rbi_descriptor *descriptor)
{
    rbi_file_close(&descriptor->file);
    rbi_store_total32(&descriptor->asked, 0);
    descriptor->version = 0;
}

/** Whether the descriptor, if there is one, still is open on the FIFO.  If others have closed it, we have not asked any more: whoever had
 *  its number has lost it, too. */
static bool has_descriptor(struct rbi_descriptor *descriptor)
{
    if (rbi_file_is_ours(&descriptor->file)) return true;
    if (descriptor->file.listed || is_asked(descriptor)) forget(descriptor);
    return false;
}

/** The level's descriptor, to tell others by, opened if need be.  -1: nobody listens (then listeners[level] says so), or it cannot be
 *  opened now. */
static rbi_fd descriptor_of(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    uint32_t seen = rbi_load_total32(&rb->header->listeners[level]);
    if (is_asked(descriptor) && has_descriptor(descriptor)) {
        /* A process that cannot see the FIFO where it should be, for its directory is another one, has said that nobody listens. */
        if (!(seen & 1)) count_listener(rb, level);
        return descriptor->file.fd;
    }
    if (!(seen & 1)) return -1;
    if (descriptor->version == seen && has_descriptor(descriptor)) return descriptor->file.fd;
    forget(descriptor);
    ringbuf_status status = open_flag(descriptor);
    if (status == RINGBUF_OK) descriptor->version = seen;
    /* A listener makes the FIFO before he counts himself; so with none there, nobody has listened since `seen`. */
    if (status == RINGBUF_E_NOT_FOUND) count_none(rb, level, seen);
    return descriptor->file.fd;
}

/** Whether descriptor_of() would still give this one. */
static bool is_current(const ringbuf *rb, enum rbi_level level, rbi_fd fd)
{
    const struct rbi_descriptor *descriptor = &rb->levels[level];
    uint32_t seen = rbi_load_total32(&rb->header->listeners[level]); /* [T8], after the event word was written */
    if (fd < 0) return !(seen & 1);
    return is_asked(descriptor) || descriptor->version == seen;
}

/** Whether this FIFO may be listened to: where only the queue's user may write to its file, nobody else can have made its FIFO. */
static ringbuf_status check_flag(const ringbuf *rb, const struct rbi_file_facts *facts)
{
    struct rbi_file_facts file;
    if (facts->links == 0) return RINGBUF_E_BUSY; /* removed before we had the lock */
    ringbuf_status status = rbi_file_facts(rb->file.fd, &file);
    if (status != RINGBUF_OK) return status;
    bool known = facts->user == rbi_user() || facts->user == file.user || facts->user == 0;
    return known || file.mode & 022 ? RINGBUF_OK : RINGBUF_E_ACCESS;
}

/** Open the FIFO and lock it as a listener.  RINGBUF_E_BUSY: look again. */
static ringbuf_status try_to_listen(ringbuf *rb, struct rbi_descriptor *descriptor)
{
    struct rbi_file_facts facts;
    const char *path = descriptor->path;
    ringbuf_status status = open_flag(descriptor);
    if (status == RINGBUF_E_NOT_FOUND) { /* made only now, so that one who is out of descriptors leaves none behind */
        status = rbi_flag_make(path);
        RBI_POINT(flag_made);
        if (status != RINGBUF_OK && status != RINGBUF_E_EXISTS) return status;
        status = open_flag(descriptor);
        if (status == RINGBUF_E_NOT_FOUND) return RINGBUF_E_BUSY;
    }
    /* Whoever makes it opens it to others only after this. */
    if (status == RINGBUF_E_ACCESS && rbi_path_facts(path, &facts) == RINGBUF_OK && facts.mode == 0600 && rb->stamp.permissions != 0600)
        return RINGBUF_E_BUSY;
    if (status != RINGBUF_OK) return status;
    status = rbi_flag_lock_try(descriptor->file.fd, RBI_LOCK_SHARED);
    RBI_POINT(flag_locked);
    if (status == RINGBUF_OK) status = rbi_file_facts(descriptor->file.fd, &facts);
    if (status == RINGBUF_OK) status = check_flag(rb, &facts);
    if (status == RINGBUF_OK) rbi_flag_share(descriptor->file.fd, rb->file.fd);
    if (status != RINGBUF_OK) forget(descriptor);
    return status;
}

static ringbuf_status listen_at(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    if (is_asked(descriptor) && descriptor_of(rb, level) >= 0 && is_asked(descriptor)) return RINGBUF_OK;
    forget(descriptor);
    ringbuf_status status = try_to_listen(rb, descriptor);
    if (status != RINGBUF_OK) return status;
    rbi_store_total32(&descriptor->asked, 1);
    count_listener(rb, level);
    return RINGBUF_OK;
}

/** The level's FIFO is open, and we do not listen by it any more: if nobody does, remove it. */
static void remove_if_unheard(ringbuf *rb, enum rbi_level level)
{
    const rbi_fd fd = rb->levels[level].file.fd;
    const char *path = rb->levels[level].path;
    uint32_t seen = rbi_load_total32(&rb->header->listeners[level]);
    struct rbi_file_facts facts;
    if (rbi_flag_lock_try(fd, RBI_LOCK_EXCLUSIVE) != RINGBUF_OK) return;
    RBI_POINT(flag_alone);
    /* Not one that was removed already: another may have its name by now. */
    if (rbi_file_facts(fd, &facts) != RINGBUF_OK || facts.links == 0) return;
    rbi_path_unlink(path);
    RBI_POINT(flag_removed);
    count_none(rb, level, seen);
}

static void stop_listening(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    if (has_descriptor(descriptor) && is_asked(descriptor)) remove_if_unheard(rb, level);
    forget(descriptor);
}

/** The same for others: if all who listened are dead. */
static void remove_if_deserted(ringbuf *rb, enum rbi_level level)
{
    struct rbi_descriptor *descriptor = &rb->levels[level];
    if (is_asked(descriptor)) return;
    forget(descriptor);
    if (descriptor->path && open_flag(descriptor) == RINGBUF_OK) remove_if_unheard(rb, level);
    forget(descriptor);
}

/* ---- ITEMS ---- */

/** Whether a take would find something, or say that the queue is shut down. */
static bool would_not_wait(ringbuf *rb)
{
    if (rbi_load_total32(&rb->header->shutdown)) return true; /* [T3] */
    if (rbi_ring_ready_at_head(&rb->ring)) return true;       /* [T1] */
    if (!rbi_ring_may_take(&rb->ring)) return false;
    /* Something may have been returned, or head stands at what is no message; a take would look further, so we do. */
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
        return is_current(rb, RBI_LEVEL_ITEMS, fd); /* else a listener has come, and it was his flag that we cleared */
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
    return would_not_wait(rb) == up && (up || rbi_event_has_listeners(items)) && is_current(rb, RBI_LEVEL_ITEMS, fd);
}


/* ---- ROOM and TASKS ---- */

static void knock(ringbuf *rb, enum rbi_level level, struct rbi_event *event)
{
    rbi_fd fd;
    do { /* again, if a listener has come in between: it could have been his flag that we cleared */
        fd = descriptor_of(rb, level);
        if (fd < 0 && rbi_load_total32(&rb->header->listeners[level]) & 1) return; /* the next one tries again */
        if (event) rbi_event_unlisten(event);
        RBI_POINT(listeners_cleared);
        if (fd >= 0) rbi_flag_raise(fd);
        RBI_POINT(flag_raised);
    } while (!is_current(rb, level, fd));
}

/* ---- one thread at a time ---- */

/* The word `telling`. */
enum {
    HELD = 1,            /* a thread is at the descriptors */
    SLEEPER = 2,         /* another one sleeps until it is not */
    SETTLE = 4,          /* to be done before it stops: ITEMS; */
    TELL_SPACE = 8,      /* the levels of these events; */
    TELL_ROOM = 16,
    TELL_TASKS = 32,
    TELL_ALL = 64,       /* ROOM and TASKS, whatever has happened; */
    LOOK_AFTER_DEAD = 128, /* all levels, after a death */
    TO_DO = SETTLE | TELL_SPACE | TELL_ROOM | TELL_TASKS | TELL_ALL | LOOK_AFTER_DEAD,
};

static void do_all(ringbuf *rb, uint32_t what)
{
    if (what & LOOK_AFTER_DEAD) {
        for (uint32_t level = 0; level < RBI_LEVELS; level++)
            if (rbi_load_total32(&rb->header->listeners[level]) & 1) remove_if_deserted(rb, (enum rbi_level)level);
        what |= TELL_ALL | (rbi_ready_is_asked(rb) ? SETTLE : 0);
    }
    while (what & SETTLE && !settled(rb)) continue; /* each further round means that a message was moved, or a listener has come or gone */
    if (what & TELL_SPACE) knock(rb, RBI_LEVEL_ROOM, &rb->header->space);
    if (what & TELL_ROOM) knock(rb, RBI_LEVEL_ROOM, &rb->header->room);
    if (what & TELL_ALL) knock(rb, RBI_LEVEL_ROOM, NULL);
    if (what & TELL_TASKS) knock(rb, RBI_LEVEL_TASKS, &rb->header->tasks);
    if (what & TELL_ALL) knock(rb, RBI_LEVEL_TASKS, NULL);
}

/** Do what is to be done, and stop being at the descriptors. */
static void let_go(ringbuf *rb)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->telling);
        if (seen & TO_DO) {
            if (rbi_cas_total32(&rb->telling, seen, seen & ~(uint32_t)TO_DO)) do_all(rb, seen & TO_DO);
        } else if (rbi_cas_total32(&rb->telling, seen, 0)) {
            if (seen & SLEEPER) rbi_futex_wake(&rb->telling, INT_MAX);
            return;
        }
    }
}

/** Have this done: by the one that is at the descriptors, or by us. */
static void request(ringbuf *rb, uint32_t what)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->telling);
        if (!rbi_cas_total32(&rb->telling, seen, seen | HELD | what)) continue;
        if (!(seen & HELD)) let_go(rb);
        return;
    }
}

/** Be at the descriptors, after whoever is.  Not for calls from signal handlers. */
static void hold(ringbuf *rb)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&rb->telling);
        if (!rbi_cas_total32(&rb->telling, seen, seen | (seen & HELD ? SLEEPER : HELD))) continue;
        if (!(seen & HELD)) return;
        rbi_futex_wait(&rb->telling, seen | SLEEPER, RINGBUF_FOREVER);
    }
}

void rbi_ready_settle(ringbuf *rb) { request(rb, SETTLE); }

void rbi_ready_after_take_slow(ringbuf *rb, bool took)
{
    /* A listener that finds nothing may have come because of a byte that a stopped process has written too late.  It must not come again
     * and again. */
    const bool listens = is_asked(&rb->levels[RBI_LEVEL_ITEMS]);
    if (took ? !would_not_wait(rb) : !rbi_event_has_listeners(&rb->header->items) || listens) rbi_ready_settle(rb);
}

void rbi_ready_tell(ringbuf *rb, struct rbi_event *event)
{
    if (!event) request(rb, TELL_ALL);
    else if (event == &rb->header->tasks) request(rb, TELL_TASKS);
    else request(rb, event == &rb->header->room ? TELL_ROOM : TELL_SPACE);
}

void rbi_ready_listen(ringbuf *rb, enum rbi_level level)
{
    hold(rb);
    if (has_descriptor(&rb->levels[level])) rbi_flag_lower(rb->levels[level].file.fd);
    let_go(rb);
    RBI_POINT(flag_lowered);
    if (level == RBI_LEVEL_TASKS) {
        rbi_event_listen(&rb->header->tasks);
    } else {
        rbi_event_listen(&rb->header->space);
        rbi_event_listen(&rb->header->room);
    }
    RBI_POINT(listeners_set);
}

/* ---- both ---- */

ringbuf_status rbi_ready_ask(ringbuf *rb, enum rbi_level level, int *fd)
{
    int64_t give_up_ns = rbi_monotonic_ns() + lock_patience_ns;
    for (;;) {
        hold(rb);
        ringbuf_status status = listen_at(rb, level);
        *fd = rb->levels[level].file.fd;
        let_go(rb);
        if (status == RINGBUF_OK && level == RBI_LEVEL_ITEMS) rbi_ready_settle(rb);
        if (status != RINGBUF_E_BUSY || rbi_monotonic_ns() > give_up_ns) return status;
        if (rbi_handle_is_closed(rb)) return RINGBUF_E_CLOSED;
        rbi_nap(lock_nap_ns); /* somebody is just making or removing it */
    }
}

void rbi_ready_remove(ringbuf *rb)
{
    hold(rb);
    for (uint32_t level = 0; level < RBI_LEVELS; level++) remove_if_deserted(rb, (enum rbi_level)level);
    let_go(rb);
}

void rbi_ready_recover(ringbuf *rb) { request(rb, LOOK_AFTER_DEAD); }

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
    hold(rb);
    for (uint32_t level = 0; level < RBI_LEVELS; level++) stop_listening(rb, (enum rbi_level)level);
    let_go(rb);
}

void rbi_ready_after_fork(ringbuf *rb)
{
    rbi_store_total32(&rb->telling, 0); /* the parent's threads do what is to be done there */
    for (uint32_t level = 0; level < RBI_LEVELS; level++) {
        struct rbi_descriptor *descriptor = &rb->levels[level];
        /* The inherited one is the parent's, and so is its lock.  If it cannot be opened anew, the child has not asked. */
        bool keep = !rbi_handle_is_closed(rb) && is_asked(descriptor) && rbi_flag_reopen_in_child(&descriptor->file) == RINGBUF_OK;
        if (keep) continue;
        rbi_file_close_in_child(&descriptor->file);
        rbi_store_total32(&descriptor->asked, 0);
        descriptor->version = 0;
    }
}

/* ---- removing ---- */

static void collect_flag(const char *file_name, void *directory)
{
    char *path = NULL;
    struct rbi_file file = RBI_NO_FILE;
    if (asprintf(&path, "%s/%s", (const char *)directory, file_name) < 0) return;
    if (rbi_flag_open(&file, path) == RINGBUF_OK) {
        /* Also if its queue lives: nobody listens, and the next who does makes a new one. */
        struct rbi_file_facts facts;
        if (rbi_flag_lock_try(file.fd, RBI_LOCK_EXCLUSIVE) == RINGBUF_OK && rbi_file_facts(file.fd, &facts) == RINGBUF_OK && facts.links)
            rbi_path_unlink(path);
        rbi_file_close(&file);
    }
    free(path);
}

void rbi_ready_collect(const char *directory)
{
    for (uint32_t level = 0; level < RBI_LEVELS; level++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, FLAG_PREFIX "%s.", level_names[level]);
        rbi_directory_visit(directory, prefix, true, collect_flag, (void *)(uintptr_t)directory);
    }
}
