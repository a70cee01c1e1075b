/* files.c — floor 1: every descriptor of this library is opened and closed here.
 *
 * Three things go wrong with descriptors that belong to a library.
 *
 * 1. Children inherit them.  A child that another thread forks between an open and a close keeps the descriptor, and with it the file's
 *    memory and its locks.  So descriptors are opened and closed with the fork lock held, and are on a list in between; the handler for
 *    forked children closes what is on the list.  What a handle keeps open is its own to open anew there (segment.c, ready.c).
 *
 * 2. The program closes them: os.closerange(), a library that makes a daemon.  The number then is free, or another file's.  So each
 *    entry knows its file, by device and inode, and whoever is about to use the descriptor for a system call asks first whether it is
 *    still that file's (rbi_file_is_ours).  Where another descriptor of ours gets a number that is on the list, the older entry has lost
 *    it, although the file may be the same.
 *
 * 3. The program uses them: what it writes to stderr, while that is closed, goes to the descriptor 2, whatever it is.  So none of ours is
 *    below 3 (platform).
 *
 * Locks by process.  A forked child needs locks of its own on a file that it has inherited.  They belong to an open file, so it opens the
 * file anew.  A child that may not (root has created the queue, and has given its rights up since) has a spare descriptor, whose open
 * file nobody has locks on: that of the mapping.  But it shares this open file with its parent and its siblings, so their locks there
 * would be one.  Such a child asks for locks by process (F_SETLK): they conflict with those of other processes and of other open files,
 * are not inherited, and go when the process does.  Two rules of theirs have to be made good here:
 *   - Within the process they do not conflict with one another.  So each entry remembers its own, and all entries of one file are asked.
 *   - They all go when the process closes any descriptor of the file.  So while there is an entry by process, other descriptors of its
 *     file are not closed but parked, without locks, until the last such entry is closed.  Where there is no more room for parking, the
 *     descriptor is closed and the locks are taken again at once; in between another process may take this one for dead. */
#include "files.h"

#include "atomics.h"

#include <pthread.h>
#include <string.h>

static pthread_mutex_t fork_lock = PTHREAD_MUTEX_INITIALIZER;

/* With the lock held. */
static struct rbi_file *files;
static void (*child_handler)(void);

enum { PARKED_MOST = 32 };
static struct {
    rbi_fd fd;
    uint64_t device, inode;
} parked[PARKED_MOST];
static uint32_t parked_count;

static rbi_atomic32 by_process_count; /* entries with locks by process; nearly always 0, and then nobody looks for them */

static bool same_file(const struct rbi_file *file, uint64_t device, uint64_t inode) { return file->device == device && file->inode == inode; }

/* ---- the list ---- */

static void unlist(struct rbi_file *file)
{
    if (!file->listed) return;
    file->listed = false;
    if (file->previous) file->previous->next = file->next;
    else files = file->next;
    if (file->next) file->next->previous = file->previous;
    file->next = file->previous = NULL;
}

/** `fd` was opened (or not): make it this entry's. */
static ringbuf_status enter(struct rbi_file *file, ringbuf_status status, rbi_fd fd)
{
    struct rbi_file_facts facts;
    if (status == RINGBUF_OK && (status = rbi_file_facts(fd, &facts)) != RINGBUF_OK) rbi_close(fd);
    if (status != RINGBUF_OK) {
        file->fd = -1;
        return status;
    }
    /* One that others have closed: its number is this one's now. */
    for (struct rbi_file *other = files; other; other = other->next)
        if (other->fd == fd) other->fd = -1;
    file->device = facts.device;
    file->inode = facts.inode;
    file->fd = fd;
    if (file->listed) return RINGBUF_OK;
    file->listed = true;
    file->previous = NULL;
    file->next = files;
    if (files) files->previous = file;
    files = file;
    return RINGBUF_OK;
}

bool rbi_file_is_ours(const struct rbi_file *file)
{
    struct rbi_file_facts facts;
    rbi_fd fd = file->fd;
    return fd >= 0 && rbi_file_facts(fd, &facts) == RINGBUF_OK && same_file(file, facts.device, facts.inode);
}

/* ---- locks by process ---- */

/** Another entry of this file whose locks are by process. */
static struct rbi_file *by_process_beside(const struct rbi_file *file, struct rbi_file *after)
{
    for (struct rbi_file *other = after ? after->next : files; other; other = other->next)
        if (other != file && other->by_process && same_file(other, file->device, file->inode)) return other;
    return NULL;
}

static struct rbi_file *by_process_at(rbi_fd fd)
{
    if (rbi_load_relaxed32(&by_process_count) == 0) return NULL; /* relaxed: changes only in a forked child that has one thread, or to 0 */
    for (struct rbi_file *file = files; file; file = file->next)
        if (file->fd == fd) return file->by_process ? file : NULL;
    return NULL;
}

static int lock_index(const struct rbi_file *file, uint32_t which, bool held)
{
    for (int i = 0; i < RBI_FILE_LOCKS; i++)
        if (held ? file->locks[i].held && file->locks[i].which == which : !file->locks[i].held) return i;
    return -1;
}

static ringbuf_status try_by_process(struct rbi_file *file, uint32_t which, enum rbi_lock_kind kind)
{
    int index = lock_index(file, which, true);
    if (index < 0) index = lock_index(file, which, false);
    if (index < 0) return RINGBUF_E_BUSY; /* never: see RBI_FILE_LOCKS */
    for (struct rbi_file *other = NULL; (other = by_process_beside(file, other));) {
        int theirs = lock_index(other, which, true);
        if (theirs >= 0 && (kind == RBI_LOCK_EXCLUSIVE || other->locks[theirs].kind == RBI_LOCK_EXCLUSIVE)) return RINGBUF_E_BUSY;
    }
    ringbuf_status status = rbi_process_lock_try(file->fd, which, kind);
    if (status != RINGBUF_OK) return status;
    file->locks[index].which = which;
    file->locks[index].kind = kind;
    file->locks[index].held = true;
    return RINGBUF_OK;
}

static void drop_by_process(struct rbi_file *file, uint32_t which)
{
    int index = lock_index(file, which, true);
    if (index < 0) return;
    file->locks[index].held = false;
    for (struct rbi_file *other = NULL; (other = by_process_beside(file, other));)
        if (lock_index(other, which, true) >= 0) return; /* it is the other's, too */
    rbi_process_lock_drop(file->fd, which);
}

ringbuf_status rbi_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind)
{
    if (rbi_load_relaxed32(&by_process_count) == 0) return rbi_file_lock_try(fd, which, kind); /* relaxed: as above */
    rbi_files_hold();
    struct rbi_file *file = by_process_at(fd);
    ringbuf_status status = file ? try_by_process(file, which, kind) : rbi_file_lock_try(fd, which, kind);
    rbi_files_let_go();
    return status;
}

void rbi_lock_drop(rbi_fd fd, uint32_t which)
{
    if (rbi_load_relaxed32(&by_process_count) == 0) {
        rbi_file_lock_drop(fd, which);
        return;
    }
    rbi_files_hold();
    struct rbi_file *file = by_process_at(fd);
    if (file) drop_by_process(file, which);
    else rbi_file_lock_drop(fd, which);
    rbi_files_let_go();
}

/** A descriptor of this file was closed: take the locks by process again that went with it. */
static void take_again(const struct rbi_file *closed)
{
    for (struct rbi_file *other = NULL; (other = by_process_beside(closed, other));)
        for (int i = 0; i < RBI_FILE_LOCKS; i++)
            if (other->locks[i].held) rbi_process_lock_try(other->fd, other->locks[i].which, other->locks[i].kind);
}

/** The last entry by process of this file is closed. */
static void close_parked(const struct rbi_file *file)
{
    for (uint32_t i = 0; i < parked_count;) {
        if (same_file(file, parked[i].device, parked[i].inode)) {
            rbi_close(parked[i].fd);
            parked[i] = parked[--parked_count];
        } else {
            i++;
        }
    }
}

static void close_or_park(const struct rbi_file *file)
{
    if (rbi_load_relaxed32(&by_process_count) == 0 || !by_process_beside(file, NULL)) { /* relaxed: as above */
        rbi_close(file->fd);
    } else if (parked_count < PARKED_MOST) {
        if (!file->by_process) rbi_file_lock_drop_all(file->fd);
        parked[parked_count].fd = file->fd;
        parked[parked_count].device = file->device;
        parked[parked_count++].inode = file->inode;
    } else {
        rbi_close(file->fd);
        take_again(file);
    }
}

/* ---- closing ---- */

void rbi_file_close_held(struct rbi_file *file)
{
    if (!file->listed) return;
    unlist(file);
    if (file->by_process) {
        for (int i = 0; i < RBI_FILE_LOCKS; i++)
            if (file->locks[i].held) drop_by_process(file, file->locks[i].which);
        rbi_add_relaxed32(&by_process_count, (uint32_t)-1); /* relaxed: see by_process_at() */
        if (!by_process_beside(file, NULL)) close_parked(file);
    }
    if (rbi_file_is_ours(file)) close_or_park(file);
    file->by_process = false;
    file->fd = -1;
}

void rbi_file_close(struct rbi_file *file)
{
    rbi_files_hold();
    rbi_file_close_held(file);
    rbi_files_let_go();
}

/* ---- opening ---- */

ringbuf_status rbi_file_open_held(struct rbi_file *file, const char *path)
{
    rbi_fd fd;
    ringbuf_status status = rbi_open_file(&fd, path);
    return enter(file, status, fd);
}

ringbuf_status rbi_file_open(struct rbi_file *file, const char *path)
{
    rbi_files_hold();
    ringbuf_status status = rbi_file_open_held(file, path);
    rbi_files_let_go();
    return status;
}

ringbuf_status rbi_file_open_to_read(struct rbi_file *file, const char *path)
{
    rbi_fd fd;
    rbi_files_hold();
    ringbuf_status status = rbi_open_to_read(&fd, path);
    status = enter(file, status, fd);
    rbi_files_let_go();
    return status;
}

ringbuf_status rbi_file_make_unnamed(struct rbi_file *file, const char *directory, uint32_t permissions)
{
    rbi_fd fd;
    rbi_files_hold();
    ringbuf_status status = rbi_open_unnamed(&fd, directory, permissions);
    status = enter(file, status, fd);
    rbi_files_let_go();
    return status;
}

ringbuf_status rbi_file_make(struct rbi_file *file, const char *path, uint32_t permissions)
{
    rbi_fd fd;
    rbi_files_hold();
    ringbuf_status status = rbi_open_new(&fd, path, permissions);
    status = enter(file, status, fd);
    rbi_files_let_go();
    return status;
}

ringbuf_status rbi_flag_open(struct rbi_file *file, const char *path)
{
    rbi_fd fd;
    rbi_files_hold();
    ringbuf_status status = rbi_open_flag(&fd, path);
    status = enter(file, status, fd);
    rbi_files_let_go();
    return status;
}

/** Whether this descriptor, which is closed if not, is open on that file. */
static bool leads_to(rbi_fd fd, uint64_t device, uint64_t inode)
{
    struct rbi_file_facts facts;
    bool is = rbi_file_facts(fd, &facts) == RINGBUF_OK && facts.device == device && facts.inode == inode;
    if (!is) rbi_close(fd);
    return is;
}

/** What /proc would open, by its path. */
static ringbuf_status open_again(rbi_fd *fd, const struct rbi_file *file, const char *path)
{
    const struct rbi_refusal before = *rbi_last_refusal();
    ringbuf_status status = rbi_open_again(fd, file->fd);
    if (status == RINGBUF_OK || status == RINGBUF_E_NO_FILES) return status;
    const struct rbi_refusal refusal = *rbi_last_refusal();
    if (rbi_open_file(fd, path) == RINGBUF_OK && leads_to(*fd, file->device, file->inode)) {
        *rbi_last_refusal() = before;
        return RINGBUF_OK;
    }
    *rbi_last_refusal() = refusal;
    return status;
}

ringbuf_status rbi_file_reopen(struct rbi_file *file, const struct rbi_file *other, const char *path)
{
    rbi_fd fd = -1;
    rbi_files_hold();
    ringbuf_status status = open_again(&fd, other, path);
    status = enter(file, status, fd);
    rbi_files_let_go();
    return status;
}

ringbuf_status rbi_file_recall(struct rbi_file *file, const char *path, const void *base, const uint64_t lengths[2])
{
    const uint64_t device = file->device, inode = file->inode;
    rbi_fd fd;
    rbi_files_hold();
    file->fd = -1; /* the new one may get the same number */
    ringbuf_status status = rbi_open_file(&fd, path);
    bool found = status == RINGBUF_OK && leads_to(fd, device, inode);
    for (int i = 0; i < 2 && !found; i++)
        found = rbi_open_mapped(&fd, base, lengths[i]) == RINGBUF_OK && leads_to(fd, device, inode);
    if (found) {
        rbi_file_close_held(file); /* and with it the locks by process, if there were any */
        status = enter(file, RINGBUF_OK, fd);
    } else {
        status = status == RINGBUF_E_NO_FILES ? status : RINGBUF_E_NO_DESCRIPTOR;
    }
    rbi_files_let_go();
    return status;
}

struct visit {
    const char *prefix;
    void (*visit)(const char *file_name, void *context);
    void *context;
};

static void visit_if_it_begins_so(const char *file_name, void *context)
{
    const struct visit *visit = context;
    if (strncmp(file_name, visit->prefix, strlen(visit->prefix)) == 0) visit->visit(file_name, visit->context);
}

ringbuf_status rbi_directory_visit(const char *directory, const char *prefix, bool patient,
                                   void (*visit)(const char *file_name, void *context), void *context)
{
    struct visit each = {prefix, visit, context};
    struct rbi_file file = RBI_NO_FILE;
    rbi_fd fd;
    if (patient) rbi_files_hold();
    else if (!rbi_files_try_hold()) return RINGBUF_E_BUSY;
    ringbuf_status status = rbi_open_directory(&fd, directory);
    status = enter(&file, status, fd);
    rbi_files_let_go();
    for (bool more = status == RINGBUF_OK; more && status == RINGBUF_OK;)
        status = rbi_directory_read(file.fd, &more, visit_if_it_begins_so, &each);
    rbi_file_close(&file);
    return status;
}

void rbi_process_name(char *name, size_t capacity)
{
    struct rbi_file file = RBI_NO_FILE;
    rbi_fd fd;
    rbi_files_hold();
    ringbuf_status status = rbi_open_process_name(&fd);
    status = enter(&file, status, fd);
    rbi_files_let_go();
    size_t length = status == RINGBUF_OK ? rbi_text_read(file.fd, name, capacity - 1) : 0;
    rbi_file_close(&file);
    if (length == 0) { /* no /proc */
        rbi_thread_name(name, capacity);
        return;
    }
    if (name[length - 1] == '\n') length--;
    name[length] = '\0';
}

/* ---- fork ---- */

void rbi_file_close_in_child(struct rbi_file *file)
{
    if (rbi_file_is_ours(file)) rbi_close(file->fd);
    unlist(file);
    file->fd = -1;
}

ringbuf_status rbi_file_reopen_in_child(struct rbi_file *file, struct rbi_file *spare, const char *path)
{
    rbi_fd again = -1;
    const bool was_by_process = file->by_process;
    memset(file->locks, 0, sizeof file->locks); /* locks by process are not inherited */
    if (!rbi_file_is_ours(file)) { /* nor were the parent's */
        unlist(file);
        file->fd = -1;
        file->by_process = false;
        if (was_by_process) rbi_add_relaxed32(&by_process_count, (uint32_t)-1); /* relaxed: there is one thread now */
        return RINGBUF_E_NO_DESCRIPTOR;
    }
    ringbuf_status status = open_again(&again, file, path);
    if (status == RINGBUF_OK) {
        if (was_by_process) rbi_add_relaxed32(&by_process_count, (uint32_t)-1); /* relaxed: as above */
        file->by_process = false;
        rbi_close(file->fd);
        file->fd = again;
        return RINGBUF_OK;
    }
    if (was_by_process) return RINGBUF_OK; /* the spare of before, which has served the parent and serves us */
    rbi_file_close_in_child(file);
    if (!rbi_file_is_ours(spare)) return status;
    rbi_fd fd = spare->fd;
    unlist(spare);
    spare->fd = -1;
    file->by_process = true;
    rbi_add_relaxed32(&by_process_count, 1); /* relaxed: as above */
    return enter(file, RINGBUF_OK, fd);
}

ringbuf_status rbi_lock_try_in_child(struct rbi_file *file, uint32_t which, enum rbi_lock_kind kind)
{
    return file->by_process ? try_by_process(file, which, kind) : rbi_file_lock_try(file->fd, which, kind);
}

ringbuf_status rbi_flag_reopen_in_child(struct rbi_file *file)
{
    ringbuf_status status = rbi_file_is_ours(file) ? rbi_open_flag_in_place(file->fd) : RINGBUF_E_NO_DESCRIPTOR;
    if (status != RINGBUF_OK) rbi_file_close_in_child(file);
    return status;
}

/* Signals are held back as long as the lock is held, in the thread that holds it: a call from a signal handler may need the lock, too (it
 * opens a descriptor to tell listeners by), and would wait for its own thread for ever. */
static struct rbi_signals signals_before; /* of the thread that holds the lock */

static void hold(void)
{
    struct rbi_signals before;
    rbi_signals_hold(&before);
    pthread_mutex_lock(&fork_lock);
    signals_before = before;
}

static bool try_hold(void)
{
    struct rbi_signals before;
    rbi_signals_hold(&before);
    const bool held = pthread_mutex_trylock(&fork_lock) == 0;
    if (held) signals_before = before;
    else rbi_signals_let_go(&before);
    return held;
}

static void let_go(void)
{
    const struct rbi_signals before = signals_before;
    pthread_mutex_unlock(&fork_lock);
    rbi_signals_let_go(&before);
}

/** Only async-signal-safe calls: other threads of the parent are gone, and may have held any lock but this one. */
static void after_fork_in_child(void)
{
    /* Parked ones first: to close them drops locks by process, of which the child has none yet. */
    while (parked_count) rbi_close(parked[--parked_count].fd);
    for (struct rbi_file *file = files, *next; file; file = next) {
        next = file->next;
        if (!file->kept) rbi_file_close_in_child(file); /* of a thread that is not here; or of a call that a signal handler has interrupted */
    }
    if (child_handler) child_handler();
    let_go(); /* this thread, the only one of the child, took it before the fork */
}

static void install(void) { pthread_atfork(hold, let_go, after_fork_in_child); }

void rbi_files_hold(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    hold();
}

bool rbi_files_try_hold(void) { return try_hold(); }

void rbi_files_let_go(void) { let_go(); }

void rbi_files_at_fork(void (*in_child)(void)) { child_handler = in_child; }
