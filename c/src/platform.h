/* platform.h — floor 0: what this library asks of the operating system.  A port is one .c file in platform/.
 *
 * Every function returns a status from the public list and leaves errno behind the door.  All of them may be called from any
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

/** Make a file without a name in `directory`.  RINGBUF_E_NO_DIRECTORY if it is none, or its file system cannot. */
ringbuf_status rbi_file_make_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions);
/** Give it a name.  RINGBUF_E_EXISTS if the name is taken. */
ringbuf_status rbi_file_link(rbi_fd fd, const char *path);
/** Open an existing file for reading and writing; a symbolic link is RINGBUF_E_ACCESS. */
ringbuf_status rbi_file_open(rbi_fd *fd, const char *path);
/** Open an existing plain file for reading only.  Never waits, and opens nothing else: RINGBUF_E_CORRUPT if something else lies there. */
ringbuf_status rbi_file_open_to_read(rbi_fd *fd, const char *path);
/** Open the same file again, with locks of its own, also when it has no name any more.  [fork] */
ringbuf_status rbi_file_reopen(rbi_fd *again, rbi_fd fd);
void rbi_file_close(rbi_fd fd); /* [fork] */
ringbuf_status rbi_file_facts(rbi_fd fd, struct rbi_file_facts *facts);
/** Facts about whatever is at `path`; RINGBUF_E_NOT_FOUND. */
ringbuf_status rbi_path_facts(const char *path, struct rbi_file_facts *facts);
ringbuf_status rbi_path_unlink(const char *path);
/** Read the first `count` bytes; RINGBUF_E_CORRUPT if there are fewer. */
ringbuf_status rbi_file_read(rbi_fd fd, void *bytes, size_t count);
/** Read up to `count` bytes from `offset` on; *got says how many there were. */
ringbuf_status rbi_file_read_at(rbi_fd fd, size_t *got, void *bytes, size_t count, uint64_t offset);
/** Write `count` bytes from `offset` on, where the file has memory. */
ringbuf_status rbi_file_write(rbi_fd fd, uint64_t offset, const void *bytes, size_t count);
/** RINGBUF_E_NO_SPACE, too, if this process may not make files so large. */
ringbuf_status rbi_file_set_size(rbi_fd fd, uint64_t bytes);
/** Make sure that [offset, offset + bytes) has memory behind it; RINGBUF_E_NO_SPACE otherwise. */
ringbuf_status rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes);

/** Give the memory behind [offset, offset + bytes), whole pages, back to the system; they read as zeros then. */
ringbuf_status rbi_file_punch(rbi_fd fd, uint64_t offset, uint64_t bytes);

/* ---- byte locks on a file: held by the open file, dropped by the kernel when its last holder is gone, however it died ---- */

enum rbi_lock_kind { RBI_LOCK_SHARED, RBI_LOCK_EXCLUSIVE };
/** Try to lock byte `which` (layout.h).  RINGBUF_E_BUSY if another open file holds it.  Converts a lock already held. */
ringbuf_status rbi_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
void rbi_lock_drop(rbi_fd fd, uint32_t which);
/** Whether other open files hold byte `which`, and how: one of enum ringbuf_presence.  Locks nothing; the file may be open for reading only. */
uint32_t rbi_lock_look(rbi_fd fd, uint32_t which);

/* ---- a FIFO, used as a flag that select and epoll can see: up while there are bytes in it ---- */

/** Make one that only this user may open.  RINGBUF_E_EXISTS if there is something at `path`. */
ringbuf_status rbi_flag_make(const char *path);
/** Let those open it who may open this file, if it is ours to say so. */
void rbi_flag_share(rbi_fd flag, rbi_fd file);
/** Open it.  RINGBUF_E_CORRUPT if there is something else at `path`. */
ringbuf_status rbi_flag_open(rbi_fd *fd, const char *path);
void rbi_flag_raise(rbi_fd fd);
void rbi_flag_lower(rbi_fd fd);
/** Lock all of it, as rbi_lock_try() does a byte of a file.  Converts a lock already held; if that fails, none is held. */
ringbuf_status rbi_flag_lock_try(rbi_fd fd, enum rbi_lock_kind kind);
/** Open the same flag again in place of `fd`, under the same number, with a shared lock of its own.  [fork] */
ringbuf_status rbi_flag_reopen(rbi_fd fd);

/* ---- memory ---- */

/** Map [0, prefix_bytes) of the file, and behind it each of the `mirrors` regions of mirror_bytes that follow in the file twice in a
 *  row.  All are multiples of the page size. */
ringbuf_status rbi_map(void **base, rbi_fd fd, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors);
void rbi_unmap(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors);
uint64_t rbi_page_bytes(void);

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

/* ---- the rest ---- */

int64_t rbi_monotonic_ns(void);
uint64_t rbi_realtime_ns(void);
uint32_t rbi_pid(void);
uint32_t rbi_user(void);
/** How many processors this process may run on. */
uint32_t rbi_processors(void);
ringbuf_status rbi_random(void *bytes, size_t count);
/** This process's command name, at most `capacity` - 1 bytes. */
void rbi_process_name(char *name, size_t capacity);
/** How many bytes the file system that `directory` is in can hold, and how many of them are free. */
ringbuf_status rbi_directory_bytes(const char *directory, uint64_t *total, uint64_t *available);
/** Call `visit` with every file name in `directory` that starts with `prefix`. */
ringbuf_status rbi_directory_visit(const char *directory, const char *prefix,
                                   void (*visit)(const char *file_name, void *context), void *context);

#endif
