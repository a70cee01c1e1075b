/* files.h — floor 1: the one door through which descriptors are opened and closed, and what this process holds by them.
 *
 * files.c opens with why there is one. */
#ifndef RBI_FILES_H
#define RBI_FILES_H

#include "platform.h"

/* Locks on one file at a time: PRESENCE, NAME, our own OWNER, and that of a participant that is being recovered. */
enum { RBI_FILE_LOCKS = 4 };

/** A descriptor of ours, and which file it is open on. */
struct rbi_file {
    _Atomic rbi_fd fd;     /* -1: none */
    bool listed;
    bool kept;             /* a forked child's handler sees to it (rbi_files_at_fork); else it is closed there */
    bool by_process;       /* locks are asked for by the process, not by the open file: see rbi_file_share() */
    uint64_t device, inode;
    struct {
        uint32_t which;
        enum rbi_lock_kind kind;
        bool held;
    } locks[RBI_FILE_LOCKS]; /* of one that is by_process */
    struct rbi_file *next, *previous;
};

#define RBI_NO_FILE ((struct rbi_file){.fd = -1})

/** Between these two no child of this process is born by fork(), and no descriptor opened. */
void rbi_files_hold(void);
bool rbi_files_try_hold(void);
void rbi_files_let_go(void);

/** Have this called in forked children, before the descriptors that nobody keeps are closed there.  Only async-signal-safe calls.  With
 *  the lock held. */
void rbi_files_at_fork(void (*in_child)(void));

/* Each opens `file`, which is not open, for its owner to close.  The functions of the same names in platform.h say more. */
ringbuf_status rbi_file_open(struct rbi_file *file, const char *path);
ringbuf_status rbi_file_make_unnamed(struct rbi_file *file, const char *directory, uint32_t permissions);
ringbuf_status rbi_file_make(struct rbi_file *file, const char *path, uint32_t permissions);
ringbuf_status rbi_file_open_to_read(struct rbi_file *file, const char *path);
ringbuf_status rbi_flag_open(struct rbi_file *file, const char *path);

/** Open the file that `other` is open on once more: through /proc, or by `path` if that leads to the same file. */
ringbuf_status rbi_file_reopen(struct rbi_file *file, const struct rbi_file *other, const char *path);

/** Open the file again that `file` was open on, whose descriptor others have closed: by `path`, if that leads to the same file, or as the
 *  file that is mapped at `base` in one of these lengths.  RINGBUF_E_NO_DESCRIPTOR if neither can be. */
ringbuf_status rbi_file_recall(struct rbi_file *file, const char *path, const void *base, const uint64_t lengths[2]);

/** Close it, if the descriptor is still ours; what others have put under its number stays open. */
void rbi_file_close(struct rbi_file *file);

/** Whether its descriptor still is open on the file that it was opened on. */
bool rbi_file_is_ours(const struct rbi_file *file);

/** With the lock held, for what must not wait for it (rbi_files_try_hold). */
ringbuf_status rbi_file_open_held(struct rbi_file *file, const char *path);
void rbi_file_close_held(struct rbi_file *file);

/** Call `visit` with every file name in `directory` that starts with `prefix`.  Unless `patient`, do nothing (RINGBUF_E_BUSY) instead of
 *  waiting for the lock. */
ringbuf_status rbi_directory_visit(const char *directory, const char *prefix, bool patient,
                                   void (*visit)(const char *file_name, void *context), void *context);

/** This process's command name, at most `capacity` - 1 bytes. */
void rbi_process_name(char *name, size_t capacity);

/* ---- in a forked child, from the function given to rbi_files_at_fork() ---- */

/** Open the inherited file anew, with locks of its own, in place of `file`, and close the inherited descriptor.  If that cannot be, go on
 *  with `spare`, if that is open, with locks of this process; else `file` is closed. */
ringbuf_status rbi_file_reopen_in_child(struct rbi_file *file, struct rbi_file *spare, const char *path);
/** Open the inherited FIFO anew under the same number, with a shared lock of its own; if that cannot be, close it. */
ringbuf_status rbi_flag_reopen_in_child(struct rbi_file *file);
ringbuf_status rbi_lock_try_in_child(struct rbi_file *file, uint32_t which, enum rbi_lock_kind kind);
/** Close an inherited descriptor. */
void rbi_file_close_in_child(struct rbi_file *file);

/* ---- locks on the bytes of a file (layout.h): dropped by the kernel when their holder is gone, however it died ---- */

/** Try to lock byte `which`.  RINGBUF_E_BUSY if another holds it.  Converts a lock already held. */
ringbuf_status rbi_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
void rbi_lock_drop(rbi_fd fd, uint32_t which);

#endif
