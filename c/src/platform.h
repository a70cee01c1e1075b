/* platform.h — floor 0: what this library asks of the operating system.  A port is one .c file in platform/.
 *
 * Every function returns a status from the public list; errno stays in here, but for rbi_last_refusal().  All of them may be called from any
 * thread; those marked [fork] also between fork() and exec in a child, where only async-signal-safe calls are allowed. */
#ifndef RBI_PLATFORM_H
#define RBI_PLATFORM_H

#include <ringbuf/ringbuf.h>

#include <stdbool.h>

/** An open file; -1 is none. */
typedef int rbi_fd;

/** What fstat knows that matters here. */
struct rbi_file_facts {
    uint64_t device, inode, bytes;
    uint64_t memory_bytes;       /* that the file has pages for */
    uint32_t links, user, mode;
    uint32_t type;               /* enum ringbuf_file_type */
    bool regular;
};

/* ---- files ---- */

/* Opening and closing.  Only files.c calls these, and keeps forks away meanwhile.  No descriptor below 3 is ever returned: what a program
 * writes to its standard descriptors, also while they are closed, does not reach a file of ours. */

/** Make a file without a name in `directory`.  RINGBUF_E_NO_DIRECTORY if it is none, or its file system has no such files. */
ringbuf_status rbi_open_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions);
/** Make a file at `path`.  RINGBUF_E_EXISTS if there is something. */
ringbuf_status rbi_open_new(rbi_fd *fd, const char *path, uint32_t permissions);
/** Open an existing file for reading and writing; a symbolic link is RINGBUF_E_ACCESS.  [fork] */
ringbuf_status rbi_open_file(rbi_fd *fd, const char *path);
/** Open an existing plain file for reading only.  Never waits, and opens nothing else: RINGBUF_E_CORRUPT if something else lies
 *  there. */
ringbuf_status rbi_open_to_read(rbi_fd *fd, const char *path);
/** Open the same file again, with locks of its own, also when it has no name any more.  RINGBUF_E_NOT_FOUND without /proc.  [fork] */
ringbuf_status rbi_open_again(rbi_fd *again, rbi_fd fd);
/** Open the file that is mapped at exactly these addresses.  The system lets only few do so. */
ringbuf_status rbi_open_mapped(rbi_fd *fd, const void *base, uint64_t bytes);
/** Open a FIFO.  RINGBUF_E_CORRUPT if there is something else at `path`. */
ringbuf_status rbi_open_flag(rbi_fd *fd, const char *path);
/** Open the same FIFO again in place of `fd`, under the same number, with a shared lock of its own.  [fork] */
ringbuf_status rbi_open_flag_in_place(rbi_fd fd);
ringbuf_status rbi_open_directory(rbi_fd *fd, const char *directory);
/** The file that this process's command name can be read from. */
ringbuf_status rbi_open_process_name(rbi_fd *fd);
void rbi_close(rbi_fd fd); /* [fork] */

/** Give a file its name: `from` is its private name, or NULL for one without a name.  RINGBUF_E_EXISTS if the name is taken;
 *  RINGBUF_E_NOT_FOUND if the file cannot be given one (no /proc), or its private name is gone. */
ringbuf_status rbi_file_link(rbi_fd fd, const char *from, const char *path);
ringbuf_status rbi_file_facts(rbi_fd fd, struct rbi_file_facts *facts);
/** Facts about whatever is at `path`; RINGBUF_E_NOT_FOUND. */
ringbuf_status rbi_path_facts(const char *path, struct rbi_file_facts *facts);
ringbuf_status rbi_path_unlink(const char *path);
/** Read the first `count` bytes; RINGBUF_E_CORRUPT if there are fewer. */
ringbuf_status rbi_file_read(rbi_fd fd, void *bytes, size_t count);
/** Read up to `count` bytes from `offset` on; *got says how many there were. */
ringbuf_status rbi_file_read_at(rbi_fd fd, size_t *got, void *bytes, size_t count, uint64_t offset);
/** Read up to `most` bytes of a text; how many there were, 0 also on errors. */
size_t rbi_text_read(rbi_fd fd, char *text, size_t most);
/** Write `count` bytes from `offset` on, where the file has memory. */
ringbuf_status rbi_file_write(rbi_fd fd, uint64_t offset, const void *bytes, size_t count);
/** RINGBUF_E_NO_SPACE, too, if this process may not make files so large. */
ringbuf_status rbi_file_set_size(rbi_fd fd, uint64_t bytes);
/** Make sure that [offset, offset + bytes) has memory behind it; RINGBUF_E_NO_SPACE otherwise.  On a ramfs, which has no bound and
 *  cannot reserve, pages come as they are touched. */
ringbuf_status rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes);

/** Give the memory behind [offset, offset + bytes), whole pages, back to the system; they read as zeros then. */
ringbuf_status rbi_file_punch(rbi_fd fd, uint64_t offset, uint64_t bytes);

/* ---- byte locks on a file: held by the open file, dropped by the kernel when its last holder is gone, however it died ---- */

enum rbi_lock_kind { RBI_LOCK_SHARED, RBI_LOCK_EXCLUSIVE };
/** Try to lock byte `which` (layout.h) for this open file.  RINGBUF_E_BUSY if another holds it.  Converts a lock already held.  [fork] */
ringbuf_status rbi_file_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
void rbi_file_lock_drop(rbi_fd fd, uint32_t which);
void rbi_file_lock_drop_all(rbi_fd fd);
/** The same for this process: such a lock also goes when this process closes any descriptor of the file.  [fork] */
ringbuf_status rbi_process_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
void rbi_process_lock_drop(rbi_fd fd, uint32_t which);
/** Whether another open file, or a process that locks for itself, holds byte `which`, and how: one of enum ringbuf_presence.  Asks
 *  and changes nothing; the file may be open for reading only.  RINGBUF_NOBODY also if the system does not say. */
uint32_t rbi_lock_look(rbi_fd fd, uint32_t which);
static inline bool rbi_lock_is_held(rbi_fd fd, uint32_t which) { return rbi_lock_look(fd, which) != RINGBUF_NOBODY; }

/* ---- a FIFO, used as a flag that select and epoll can see: up while there are bytes in it ---- */

/** Make one that only this user may open.  RINGBUF_E_EXISTS if there is something at `path`. */
ringbuf_status rbi_flag_make(const char *path);
/** Let those open it who may open this file, if it is ours to say so. */
void rbi_flag_share(rbi_fd flag, rbi_fd file);
void rbi_flag_raise(rbi_fd fd);
void rbi_flag_lower(rbi_fd fd);
/** Lock all of it, as rbi_file_lock_try() does a byte of a file.  Converts a lock already held; if that fails, none is held. */
ringbuf_status rbi_flag_lock_try(rbi_fd fd, enum rbi_lock_kind kind);

/* ---- memory ---- */

/** Map [0, prefix_bytes) of the file, and behind it each of the `mirrors` regions of mirror_bytes that follow in the file twice in a
 *  row.  All are multiples of the page size.  Nothing of it is touched, also where the process has all its memory locked
 *  (mlockall); RINGBUF_E_NO_MEMORY if it may not lock so much. */
ringbuf_status rbi_map(void **base, rbi_fd fd, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors);
void rbi_unmap(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors);
uint64_t rbi_page_bytes(void);

/* What a process may wish for a mapping, whole pages.  Hints, where they return nothing. */
void rbi_map_leave_out_of_dumps(void *base, uint64_t bytes);
void rbi_map_want_huge_pages(void *base, uint64_t bytes);
/** Touch all of it, so that no page fault comes later.  What has no memory behind it gets some. */
void rbi_map_touch(void *base, uint64_t bytes);
/** Keep in memory what is touched of it.  RINGBUF_E_NO_MEMORY: more than this process may lock. */
ringbuf_status rbi_map_lock(void *base, uint64_t bytes);

/** Memory of this process alone, zeros, from the system and not from malloc: a signal handler may ask for it.  NULL: there is none. */
void *rbi_memory(uint64_t bytes);
void rbi_memory_free(void *memory, uint64_t bytes);

/** From now on, whenever any thread touches a page of a mapped file that the file has no more (it was truncated), or for which
 *  there is no memory, call `mend` with the address, in that thread, as from a signal handler.  If it returns true, the page is
 *  there now and is touched again; else the fault goes to whoever got such faults before.  Only for one `mend`; not from two
 *  threads at once. */
ringbuf_status rbi_on_missing_page(bool (*mend)(uint64_t address));
/** Map zeros, for this process alone, in place of what is mapped there; whole pages.  May be called by `mend`. */
bool rbi_map_zeros(uint64_t address, uint64_t bytes);

/* ---- sleeping ---- */

/** Sleep while *word == expected, at most until `deadline_ns`.  Words are shared between processes.
 *  RINGBUF_OK woken or the word differs; RINGBUF_E_TIMEOUT; RINGBUF_E_INTR. */
ringbuf_status rbi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns);
/** Wake up to `count` sleepers; returns how many there were. */
int rbi_futex_wake(_Atomic uint32_t *word, int count);
/** Let somebody else have the processor, if anybody wants it. */
void rbi_yield(void);
/** Sleep for a while; returns early on a signal. */
void rbi_nap(int64_t ns);

/** Hold back signals in this thread, but for those that a fault raises; and let through again what came before.  For the few moments in
 *  which a lock is held that a call from a signal handler may need, too.  [fork] */
struct rbi_signals {
    uint64_t mask[16];
};
void rbi_signals_hold(struct rbi_signals *before);
void rbi_signals_let_go(const struct rbi_signals *before);

/* ---- the rest ---- */

int64_t rbi_monotonic_ns(void);
/** Processor time that this thread has used. */
int64_t rbi_thread_ns(void);
uint64_t rbi_realtime_ns(void);
uint32_t rbi_pid(void);
uint32_t rbi_user(void);
/** How many processors this process may run on. */
uint32_t rbi_processors(void);
ringbuf_status rbi_random(void *bytes, size_t count);
/** The calling thread's name, at most `capacity` - 1 bytes. */
void rbi_thread_name(char *name, size_t capacity);
/** Whether this process can give up rights that it has now: it is root, or has more than one user or group. */
bool rbi_may_lose_rights(void);
/** Up to which number this process may have descriptors. */
uint64_t rbi_descriptors_most(void);
/** `path` as an absolute one, to be freed by the caller; NULL if there is no memory or no working directory. */
char *rbi_absolute(const char *path);
/** How many bytes the file system that `directory` is in can hold, and how many of them are free. */
ringbuf_status rbi_directory_bytes(const char *directory, uint64_t *total, uint64_t *available);
/** Read some of a directory's entries and call `visit` for each.  *more is false at the end. */
ringbuf_status rbi_directory_read(rbi_fd fd, bool *more, void (*visit)(const char *file_name, void *context), void *context);

/* ---- the last refused system call of this thread ---- */

struct rbi_refusal {
    const char *call; /* NULL: none */
    int32_t number;   /* errno */
    uint32_t layout;  /* not a refusal of the system: the layout found in a file that this library does not read */
};

/** What was refused last: a status from RINGBUF_E_ACCESS, _NO_SPACE, _NO_MEMORY, _NO_FILES, _NO_DIRECTORY, _SYSTEM that the system was the
 *  cause of.  [fork] */
struct rbi_refusal *rbi_last_refusal(void);

#endif
