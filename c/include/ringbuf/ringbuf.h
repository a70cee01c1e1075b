/* ringbuf.h — a work queue in shared memory, for many producer and many consumer processes.
 *
 * A queue is one file in shared memory.  Every process that uses it attaches to it and gets a handle.  Messages are byte
 * strings.  Each is delivered to exactly one consumer, in order, and the death of any process at any instruction leaves the
 * queue working for all others.  docs/guarantees.md says exactly what is promised, docs/layout.md how the file looks.
 *
 * Conventions
 *   1. Every function that can fail returns a ringbuf_status; 0 is success.  errno is never the way to learn anything.
 *   2. Arguments come in this order: handle, outputs, inputs (a length follows its buffer), deadline.
 *   3. Sizes are in bytes.  Deadlines are absolute nanoseconds on CLOCK_MONOTONIC: 0 polls, RINGBUF_FOREVER never expires,
 *      anything else is a point in time, ringbuf_now_ns() + how long.  A deadline bounds the whole call.  One below 0 is for event
 *      loops: the call looks for so many nanoseconds, a millisecond at most, and does not sleep.
 *   4. On any error the queue is unchanged and outputs other than those named are unspecified.
 *   5. A blocking call that a signal interrupts returns RINGBUF_E_INTR; call again with the same deadline.  So does any call that finds
 *      that this process has closed the queue's descriptor and was taken for dead: the next one attaches anew.
 *
 * Who may call what together (X: the caller must see to it that these do not overlap, on the same handle)
 *
 *                          put get take size …   ack nack keep …   commit abort         close   free
 *                                                (same message)    (same reservation)
 *   put get take size …            .                  .                 .                 .       X
 *   ack nack keep release          .                  X                 .                 .       X
 *     (same message)
 *   commit abort                   .                  .                 X                 .       X
 *     (same reservation)
 *   close                          .                  .                 .                 .       X
 *   free                           X                  X                 X                 X       X
 *   Except that ringbuf_release, ringbuf_abort and ringbuf_unpin may come at any time, also after close and, for what is not ended yet,
 *   after free.
 *
 *   Handles of different threads or processes on one queue never need anything from one another.
 *
 * Signal handlers: these are async-signal-safe, also on the handle whose call was interrupted, with a deadline of 0 or below (the
 * interrupted call cannot go on meanwhile) and as long as the handle is open; a handler saves errno, as ever.
 *   put, put_parts, reserve, commit, abort                size, has_room, get_stats, get_info, get_peers, dead_letter_status
 *   get, take, lease, take_many (on a queue without       task_done, join, shutdown, recover, pass_on, deletion_is_news
 *     max_attempts; with it they may open another queue)  options_init, now_ns, name, path
 *   copy, ack, nack, keep, release, ack_all, return_all   status_text, version, layout_version
 *   pin, unpin
 * These are not: create, open, attach, close, free, leave_all, unlink, unlink_name, collect, guard_truncation (files, locks, malloc);
 *   put_all, put_all_parts (malloc); items_fd, changes_fd, check (they wait for other threads); and release, abort and unpin after
 *   close, where the last of them frees the handle.
 *
 * fork(): a handle works in the child, too.  The child becomes a participant of its own at its first call; what the parent has
 * taken stays the parent's.  Children made by vfork() or a bare clone() must not call the library before exec.
 */
#ifndef RINGBUF_RINGBUF_H
#define RINGBUF_RINGBUF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Blank in the Python module, whose only exported symbol is its init function. */
#ifndef RINGBUF_API
#define RINGBUF_API __attribute__((visibility("default")))
#endif

/** A deadline that never expires. */
#define RINGBUF_FOREVER INT64_MAX

/** ringbuf_options.arena_bytes: as much as suits the file system. */
#define RINGBUF_ARENA_DEFAULT UINT64_MAX

/* The region between the two marks is also the cdef of the Python binding: plain declarations only. */
/* [cdef begin] */

/** One process's attachment to one queue.  Opaque. */
typedef struct ringbuf ringbuf;

/** The outcome of a call: one of enum ringbuf_code. */
typedef int32_t ringbuf_status;

enum ringbuf_code {
    RINGBUF_OK = 0,
    RINGBUF_E_TIMEOUT = 1,   /* full (put) or empty (get, take) until the deadline */
    RINGBUF_E_SMALL = 2,     /* the caller's buffer is smaller than the message, which stays queued */
    RINGBUF_E_INTR = 3,      /* a signal arrived while waiting */
    RINGBUF_E_SHUTDOWN = 4,  /* the queue was shut down */
    RINGBUF_E_CLOSED = 5,    /* this handle was closed */
    RINGBUF_E_TOO_LARGE = 6, /* the message can never fit, whatever is taken out first */
    RINGBUF_E_INVALID = 7,   /* an argument makes no sense */
    RINGBUF_E_NOT_FOUND = 8, /* no queue of that name */
    RINGBUF_E_EXISTS = 9,    /* a queue of that name exists */
    RINGBUF_E_GONE = 10,     /* a queue of that name exists, but it is not the one meant */
    RINGBUF_E_ACCESS = 11,   /* permission denied, or the file belongs to another user */
    RINGBUF_E_CORRUPT = 12,  /* the file is not a queue, or something wrote over it or truncated it */
    RINGBUF_E_VERSION = 13,  /* a queue of another layout version or byte order */
    RINGBUF_E_NO_SPACE = 14, /* the shared-memory file system is full, or this process may not make files so large */
    RINGBUF_E_NO_MEMORY = 15,/* out of memory or address space in this process */
    RINGBUF_E_BUSY = 16,     /* somebody holds the queue, and the call needs it alone */
    RINGBUF_E_CROWDED = 17,  /* as many participants as the queue was made for are attached */
    RINGBUF_E_NO_FILES = 18, /* out of file descriptors */
    RINGBUF_E_NO_DIRECTORY = 19, /* the directory for queues does not exist or cannot hold them */
    RINGBUF_E_TOO_MANY = 20, /* ringbuf_task_done called more often than there were messages */
    RINGBUF_E_SYSTEM = 21,   /* the operating system refused in a way that has no code of its own */
    RINGBUF_E_ARENA_FULL = 22, /* until the deadline the arena had no run of blocks that was long enough */
    RINGBUF_E_NO_DESCRIPTOR = 23, /* this process has closed the queue's descriptor, and the file cannot be opened again */
    RINGBUF_E_DEAD_LETTER = 24 /* the next message has had its attempts, and the dead-letter queue cannot take it; it stays */
};

/** What ringbuf_create does about a queue that is there already. */
enum ringbuf_mode {
    RINGBUF_OPEN_OR_CREATE = 0, /* attach to it; its own sizes hold */
    RINGBUF_CREATE = 1,         /* RINGBUF_E_EXISTS */
    RINGBUF_FRESH = 2           /* replace it if nobody is attached, else RINGBUF_E_BUSY */
};

/** Lifetime flags, fixed when the queue is created. */
enum ringbuf_flag {
    RINGBUF_AUTO_CLEANUP = 1, /* removed when the last one leaves, even with messages in it */
    RINGBUF_PERSISTENT = 2,   /* never removed, except by ringbuf_unlink */
    RINGBUF_UNNAMED = 4,      /* set by the library for queues made without a name; implies AUTO_CLEANUP */
    RINGBUF_KEEP_WARM = 8     /* the arena's memory is not given back to the system while the queue is idle, only when there is no other */
};

/** What a process wishes for its mapping of a queue; not kept with the queue. */
enum ringbuf_memory {
    RINGBUF_PREFAULT = 1,     /* give the queue its memory now (not to the spare lanes), and map it: no page fault and no E_NO_SPACE later;
                                 E_NO_SPACE now if there is not so much.  A queue created so has RINGBUF_KEEP_WARM */
    RINGBUF_HUGE_PAGES = 2,   /* ask for huge pages, where the file system has them (tmpfs mounted with huge=advise) */
    RINGBUF_LOCK_MEMORY = 4,  /* lock what is mapped into memory (mlock2, as it is touched); E_NO_MEMORY above RLIMIT_MEMLOCK, which
                                 counts all of the mapping.  Not in forked children */
    RINGBUF_DUMP = 8          /* let core dumps contain the mapping; by default they leave it out */
};

/** How to make or find a queue.  Always fill it with ringbuf_options_init first. */
typedef struct ringbuf_options {
    uint64_t struct_bytes;     /* set by ringbuf_options_init: lets the struct grow */
    uint64_t capacity_bytes;   /* bytes for small messages; rounded up to a power of two, 4 KiB to 64 GiB */
    uint64_t arena_bytes;      /* bytes for large messages and for what users hold, up to 64 GiB; rounded up to 64 blocks; 0: none;
                                  RINGBUF_ARENA_DEFAULT: 64 MiB, or a quarter of what the file system can hold if that is less */
    uint64_t max_items;        /* at most this many messages; 0: bounded by capacity only */
    uint32_t max_participants; /* attached processes at a time, 1 to 4095 */
    uint32_t mode;             /* enum ringbuf_mode */
    uint32_t flags;            /* enum ringbuf_flag */
    uint32_t permissions;      /* file mode; 0: 0600 and only files of the caller's own user are opened */
    const char *directory;     /* NULL: $SAGE_QUEUE_DIR, else /dev/shm */
    const char *label;         /* shown to others as this participant's name; NULL: the process's command name */
    const char *tag;           /* up to 31 bytes kept with the queue for its users, e.g. the name of a serializer */
    const char *note;          /* up to 511 bytes more of the same */
    const char *dead_letter;   /* up to 319 bytes: the name of the queue for messages that were handed out max_attempts times; another one */
    uint32_t max_attempts;     /* 1 to 65534, with dead_letter; 0: a message is handed out any number of times */
    uint32_t memory;           /* enum ringbuf_memory, for this process */
} ringbuf_options;

/** What is fixed about a queue. */
typedef struct ringbuf_info {
    uint8_t id[16];            /* random; no two queues share it */
    uint64_t capacity_bytes;
    uint64_t max_items;        /* 0: unbounded */
    uint64_t max_message_bytes;
    uint64_t ring_message_bytes; /* messages of up to this size lie in the ring, larger ones in the arena */
    uint64_t arena_bytes;
    uint64_t block_bytes;      /* the arena is given out in runs of whole blocks */
    uint64_t file_bytes;       /* size of the file; pages are only used as messages first reach them */
    uint64_t created_ns;       /* CLOCK_REALTIME */
    uint32_t max_participants;
    uint32_t flags;
    uint32_t permissions;
    uint32_t creator_pid;
    uint32_t truncated;        /* not fixed: 1 if this handle has found its file truncated; calls answer RINGBUF_E_CORRUPT */
    uint32_t max_attempts;     /* 0: a message is handed out any number of times */
    char tag[32];
    char note[512];
    char dead_letter[320];
} ringbuf_info;

/** What has become of the name of a queue's file.  Those who are attached go on in any case. */
enum ringbuf_unlinked {
    RINGBUF_LINKED = 0,        /* it leads to the queue */
    RINGBUF_REMOVED = 1,       /* it was removed by this library: ringbuf_unlink, ringbuf_unlink_name */
    RINGBUF_DELETED = 2        /* the file was deleted by other means, unasked: whoever opens the name now gets another queue, or none */
};

/** Counters since the queue was created, summed over all participants, also those that left.
 *  Each is exact when nobody is in a call; while others are, each is a value of the recent past. */
typedef struct ringbuf_stats {
    uint64_t items;            /* messages waiting */
    uint64_t used_bytes;       /* bytes of capacity that are not available to producers now */
    uint64_t capacity_bytes;
    uint64_t puts;
    uint64_t gets;
    uint64_t bytes_put;
    uint64_t bytes_got;
    uint64_t sleeps;           /* how often a call went to sleep */
    uint64_t unfinished;       /* messages put and not yet marked with ringbuf_task_done */
    uint64_t recoveries;       /* dead participants that were cleaned up after */
    uint64_t participants;     /* attached now */
    uint64_t shutdown;         /* 0 open, 1 draining, 2 shut down at once */
    uint64_t arena_bytes;
    uint64_t arena_used_bytes; /* in runs of whatever state */
    uint64_t arena_backed_bytes; /* with memory behind them: in use, or free and not yet given back to the system */
    uint64_t arena_largest_bytes; /* the longest run that is free */
    uint64_t reserved;         /* runs that somebody is filling */
    uint64_t held;             /* runs of messages that were delivered and are still being looked at */
    uint64_t leased;           /* runs of messages that are neither acknowledged nor given back */
    uint64_t unlinked;         /* enum ringbuf_unlinked */
    uint64_t dead_letters;     /* messages that were moved to the dead-letter queue */
} ringbuf_stats;

/** What lies where a queue's file would be. */
enum ringbuf_condition {
    RINGBUF_SOUND = 0,         /* a queue that this library can attach to, as far as a look can tell */
    RINGBUF_DAMAGED = 1,       /* a queue's file that something wrote over or truncated */
    RINGBUF_OTHER_LAYOUT = 2,  /* a queue of another layout version or byte order */
    RINGBUF_NO_QUEUE = 3,      /* a plain file that is no queue */
    RINGBUF_NO_FILE = 4,       /* no plain file: file_type tells what it is */
    RINGBUF_UNREADABLE = 5     /* a plain file that this process may not read */
};

enum ringbuf_file_type {
    RINGBUF_FILE = 0, RINGBUF_FOLDER = 1, RINGBUF_LINK = 2, RINGBUF_FIFO = 3, RINGBUF_SOCKET = 4, RINGBUF_DEVICE = 5
};

/** Who is attached to a queue. */
enum ringbuf_presence {
    RINGBUF_NOBODY = 0,
    RINGBUF_SOMEBODY = 1,
    RINGBUF_ALONE = 2          /* one process that looks at this moment whether the queue is to be removed */
};

/** What a look at a queue's file from outside has found.  Set struct_bytes before the call. */
typedef struct ringbuf_observation {
    uint64_t struct_bytes;     /* in: sizeof of this struct; lets it grow */
    uint64_t file_bytes;
    uint64_t memory_bytes;     /* what the file occupies */
    uint32_t condition;        /* enum ringbuf_condition */
    uint32_t file_type;        /* enum ringbuf_file_type */
    uint32_t user;             /* the file's owner */
    uint32_t mode;             /* the file's permissions now */
    uint32_t presence;         /* enum ringbuf_presence */
    uint32_t unlinked;         /* enum ringbuf_unlinked; only of what is sound */
    uint32_t misplaced;        /* 1: its name belongs to another file name, so that no call finds it here; 0 after ringbuf_observe_fd */
    uint32_t layout_version;   /* of what is sound, damaged or of another layout; so are flags, id and name, as far as they can be read */
    uint32_t other_byte_order; /* 1: made on a machine with another byte order */
    uint32_t flags;            /* enum ringbuf_flag */
    uint32_t handles;          /* living participants; this and the next two only of what is sound */
    uint32_t dead;             /* participants that died and were not cleaned up after yet */
    uint32_t processes;        /* different pids among the living: containers that share the queue may have the same ones */
    uint32_t name_bytes;       /* 0: the name cannot be read */
    uint8_t id[16];
    char name[1032];           /* ends with a zero byte; may hold any other */
    char file_name[256];       /* of the file, without its directory; empty after ringbuf_observe_fd */
} ringbuf_observation;

/** One attached participant. */
typedef struct ringbuf_peer {
    uint32_t number;           /* its number in this queue, from 1 */
    uint32_t pid;              /* in its own pid namespace */
    uint64_t attached_ns;      /* CLOCK_REALTIME */
    uint64_t puts;             /* since it attached; so are all below */
    uint64_t gets;
    char label[32];
} ringbuf_peer;

/** A message that was taken and is neither acknowledged nor given back: what it is, and the token that ends it.
 *
 *  A token belongs to one taking by one handle in one process.  A call that is given another one (of an earlier taking of the same
 *  message, of another handle or process, one that was ended before, or anything else) answers RINGBUF_E_INVALID and changes nothing. */
typedef struct ringbuf_message {
    const void *data;          /* the message: in the caller's buffer, or where it lies in shared memory */
    size_t size;               /* its size in bytes */
    uint32_t attempts;         /* how often it has been taken, this time included; stays at 65535 */
    uint32_t in_arena;         /* 1 if it lies in the arena, and takes no room in the ring */
    uint32_t copied;           /* 1 if `data` is in the caller's buffer */
    uint32_t turn;             /* the library's; leave it alone, like all that follow */
    uint64_t position;
    uint64_t ticket;
    uint64_t generation;
} ringbuf_message;

/** Room in the arena that is the caller's to fill. */
typedef struct ringbuf_reservation {
    void *data;                /* out: `size` bytes of shared memory, aligned to a block; with anything in them */
    size_t size;               /* out: as asked for */
    uint64_t position;         /* out: the library's; leave it alone, like the next two */
    uint64_t ticket;
    uint64_t generation;
} ringbuf_reservation;

/** A piece of a message that is put together from several. */
typedef struct ringbuf_part {
    const void *data;
    size_t size;
} ringbuf_part;

/** What ringbuf_check found.  All but the first are 0 in a queue that nobody is using at this moment. */
typedef struct ringbuf_findings {
    uint64_t runs;             /* in use, of whatever state */
    uint64_t orphaned_blocks;  /* that belong to no run */
    uint64_t orphaned_runs;    /* that no message, no reservation and no living participant accounts for */
    uint64_t broken_runs;      /* whose blocks do not say that they belong to them */
    uint64_t dangling_messages;/* in the ring, without the run that they refer to */
} ringbuf_findings;

/** Fill `options` with the defaults: 4 MiB, RINGBUF_ARENA_DEFAULT, unbounded items, 1024 participants, RINGBUF_OPEN_OR_CREATE, no flags. */
RINGBUF_API void ringbuf_options_init(ringbuf_options *options);

/** Create a queue, or attach to the one that is there (options->mode), and return a handle in *out.
 *
 *  `name` is any non-empty UTF-8 string of up to 1024 bytes; NULL makes an unnamed queue, found by the name that
 *  ringbuf_name() tells.  `options` may be NULL.  Creation is atomic: nobody ever finds half a queue, and of several that
 *  create at once one does and the others attach to it.
 *  Any number of processes and threads may call it at once.  Does not wait, but for one thing: if the last user of a queue
 *  of this name is removing it at this moment, it waits up to five seconds for that.
 *  Making an unnamed queue removes unnamed and auto-cleanup queues from the directory that nobody is attached to, and without room
 *  all that ringbuf_collect removes.  A relative directory counts from the working directory at this call.
 *  Returns  RINGBUF_OK            the queue is there and this process attached
 *           RINGBUF_E_EXISTS      mode RINGBUF_CREATE and a queue is there
 *           RINGBUF_E_BUSY        mode RINGBUF_FRESH and somebody uses it; or somebody is removing it and does not finish
 *           RINGBUF_E_INVALID     an argument makes no sense
 *           RINGBUF_E_GONE        where its file should be lies that of a queue of another name
 *           RINGBUF_E_NO_SPACE, _NO_MEMORY, _NO_FILES, _NO_DIRECTORY, _ACCESS, _CORRUPT, _VERSION, _CROWDED, _SYSTEM
 *  On an error *out is NULL and nothing is left behind.                                                                  */
RINGBUF_API ringbuf_status ringbuf_create(ringbuf **out, const char *name, const ringbuf_options *options);

/** Attach to an existing queue.  Of `options` (may be NULL) only directory, label and permissions matter.
 *  Returns as ringbuf_create, and RINGBUF_E_NOT_FOUND if there is none. */
RINGBUF_API ringbuf_status ringbuf_open(ringbuf **out, const char *name, const ringbuf_options *options);

/** Attach to exactly the queue with this `id` (16 bytes) under this name.
 *  Returns as ringbuf_open, and RINGBUF_E_GONE if the name now belongs to another queue. */
RINGBUF_API ringbuf_status ringbuf_attach(ringbuf **out, const char *name, const uint8_t *id,
                                          const ringbuf_options *options);

/** Leave the queue.  Idempotent.  Calls blocked on this handle in other threads return RINGBUF_E_CLOSED; close waits for them
 *  (and for calls that are just finishing), never for other processes.  What this handle has taken and neither acknowledged,
 *  kept, nor given back goes back to the queue.  Every later call on the handle answers RINGBUF_E_CLOSED, but for
 *  ringbuf_release, ringbuf_abort and ringbuf_unpin: what was kept, reserved or pinned stays mapped until it is ended, and only
 *  the last of these completes the close.
 *  The last one to leave removes the queue if nothing is in it (see enum ringbuf_flag).
 *  Not to be called from a signal handler. */
RINGBUF_API void ringbuf_close(ringbuf *rb);

/** Close the handle if it is open and free its memory.  NULL is allowed.  No other call on it may be under way or follow, but
 *  for ringbuf_release, ringbuf_abort and ringbuf_unpin, the last of which then frees it. */
RINGBUF_API void ringbuf_free(ringbuf *rb);

/** Close every open handle of this process, also those with something kept: for a process that is about to end without exit(),
 *  by _exit() or a signal.  (exit() does it by itself.)  What is mapped stays mapped. */
RINGBUF_API void ringbuf_leave_all(void);

/** Survive the truncation of a queue's file, by a program that is none of its users, while this process has it mapped.
 *
 *  Without this, whoever touches the missing part is ended by SIGBUS.  With it, a handler for SIGBUS maps zeros there, which
 *  only this process sees.  The call under way and every later one on the handle answer RINGBUF_E_CORRUPT, and
 *  ringbuf_info.truncated is 1; who only reads what he has kept or reserved reads zeros.  What the file had is lost, also what
 *  the call under way has taken.  ringbuf_close, ringbuf_free, ringbuf_unlink, ringbuf_name, ringbuf_path and ringbuf_get_info
 *  work as ever.  ringbuf_release and ringbuf_abort end what they are given and answer RINGBUF_E_CORRUPT.
 *
 *  Holds for every handle of this process, also those that are open already and those of forked children.  Every other SIGBUS
 *  goes to the handler that was there before, or ends the process as ever.  A handler that is installed later stands before
 *  this one, so call this after all others are installed.  A thread that blocks SIGBUS is not guarded; nor is a system call
 *  that is given such memory, which answers EFAULT.  Cannot be undone: what has called it must not be unloaded (dlclose) any
 *  more.
 *  Any thread may call it, any number of times.  Does not block.  Returns RINGBUF_OK or RINGBUF_E_SYSTEM. */
RINGBUF_API ringbuf_status ringbuf_guard_truncation(void);

/** Remove the queue's name.  Those who are attached go on with it; nobody can attach to it any more; its memory goes with the
 *  last of them.  Returns RINGBUF_OK, also if the name was gone; RINGBUF_E_CLOSED; RINGBUF_E_BUSY (another process has
 *  been stopped in the middle of the same); RINGBUF_E_ACCESS. */
RINGBUF_API ringbuf_status ringbuf_unlink(ringbuf *rb);

/** Remove a queue by name, without attaching.  Of `options` (may be NULL) directory and permissions matter.
 *  Removes also what is no valid queue.  Returns as ringbuf_unlink, and RINGBUF_E_NOT_FOUND. */
RINGBUF_API ringbuf_status ringbuf_unlink_name(const char *name, const ringbuf_options *options);

/** Remove every queue in the directory that provably nobody is attached to and that is empty, unnamed or auto-cleanup; of other layouts
 *  those that are unnamed or auto-cleanup.
 *  *removed counts them.  `options` (may be NULL): directory.  Does not block.  Never touches a queue in use. */
RINGBUF_API ringbuf_status ringbuf_collect(uint64_t *removed, const ringbuf_options *options);

/** Look at the queue of this name, or at whatever lies where its file would be, without attaching and without changing anything.
 *
 *  Reads the file and never maps it.  Takes no lock, joins nothing, cleans up after nobody, removes nothing, and works as well when
 *  all participants' places are taken.  Opens plain files only, for reading, and never waits.
 *  `info` and `stats` may be NULL.  *info is what ringbuf_get_info tells if the stamp can be read (else zeros; id is that of the
 *  observation), *stats what ringbuf_get_stats tells if the condition is RINGBUF_SOUND (else zeros).  While others put and take,
 *  the figures are of slightly different moments.  Nothing in the file is believed unchecked.
 *  Of `options` (may be NULL) only directory matters.  Any thread may call it.
 *  Returns  RINGBUF_OK           something lies there, and observation->condition says what
 *           RINGBUF_E_NOT_FOUND  nothing does
 *           RINGBUF_E_INVALID, _NO_FILES, _NO_MEMORY, _ACCESS (to the directory), _NO_DIRECTORY, _SYSTEM */
RINGBUF_API ringbuf_status ringbuf_observe(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, const char *name,
                                           const ringbuf_options *options);

/** The same for a path. */
RINGBUF_API ringbuf_status ringbuf_observe_file(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats,
                                                const char *path);

/** The same for an open file, which may have lost its name.  It stays open. */
RINGBUF_API ringbuf_status ringbuf_observe_fd(ringbuf_observation *observation, ringbuf_info *info, ringbuf_stats *stats, int fd);

/** Put one message of `size` bytes (0 is allowed) into the queue, waiting until `deadline_ns` for room.
 *
 *  Messages of up to ringbuf_info.ring_message_bytes lie in the ring, larger ones in the arena.
 *  Blocks while the queue is full; interruptible.  Any number of processes and threads may call it at once; none of them waits
 *  for another one's put.  Lock-free.
 *  Returns  RINGBUF_OK          the message is in the queue and will be delivered, whatever happens to this process
 *           RINGBUF_E_TIMEOUT   the ring was full until the deadline
 *           RINGBUF_E_ARENA_FULL the arena was
 *           RINGBUF_E_TOO_LARGE larger than ringbuf_info.max_message_bytes; at once
 *           RINGBUF_E_NO_SPACE  there was no memory for pages until the deadline; at once if nothing in the queue can free any
 *           RINGBUF_E_SHUTDOWN, _CLOSED, _INTR, _CORRUPT, _CROWDED, _INVALID, _NO_DESCRIPTOR (so every call on a handle)
 *  On any error nothing was put. */
RINGBUF_API ringbuf_status ringbuf_put(ringbuf *rb, const void *data, size_t size, int64_t deadline_ns);

/** Put one message that consists of these parts, one behind the other, in this order.  As ringbuf_put in everything else. */
RINGBUF_API ringbuf_status ringbuf_put_parts(ringbuf *rb, const ringbuf_part *parts, size_t count, int64_t deadline_ns);

/** Put several messages, all or none, one behind the other, waiting until `deadline_ns` for room for all of them.
 *
 *  Consumers may get the first while the last is still being published; if this process dies then, some have been put and the others
 *  have not.  Wakes once.  Blocks and returns as ringbuf_put, with RINGBUF_E_TOO_LARGE also if they could never be in the queue
 *  together (in the ring's share, half of the capacity), and RINGBUF_E_NO_MEMORY.  On any error nothing was put. */
RINGBUF_API ringbuf_status ringbuf_put_all(ringbuf *rb, const ringbuf_part *messages, size_t count, int64_t deadline_ns);

/** As ringbuf_put_all, for `count` messages that consist of several parts each: the first of the first part_counts[0] parts, and so on. */
RINGBUF_API ringbuf_status ringbuf_put_all_parts(ringbuf *rb, const ringbuf_part *parts, const size_t *part_counts, size_t count,
                                                 int64_t deadline_ns);

/** Reserve `size` bytes (0 is allowed) of the arena, waiting until `deadline_ns` for them, to be filled in place.
 *
 *  The caller may take as long as it likes: a reservation costs the others nothing but its room in the arena.  End it with
 *  ringbuf_commit or ringbuf_abort; if this process dies, it is aborted.  Blocks while the arena is full; interruptible.
 *  Returns  RINGBUF_OK, RINGBUF_E_ARENA_FULL, RINGBUF_E_TOO_LARGE, _SHUTDOWN, _CLOSED, _INTR, _NO_SPACE, _CORRUPT, _CROWDED, _INVALID */
RINGBUF_API ringbuf_status ringbuf_reserve(ringbuf *rb, ringbuf_reservation *reservation, size_t size, int64_t deadline_ns);

/** Put the first `size` bytes of the reservation into the queue as a message, waiting until `deadline_ns` for room in the ring.
 *  With RINGBUF_OK the reservation is over.  On any error it is unchanged, to be committed again or aborted.
 *  Blocks while the ring is full; interruptible.  Returns as ringbuf_put, and RINGBUF_E_INVALID if it is over already, or made
 *  through another handle, or in another process. */
RINGBUF_API ringbuf_status ringbuf_commit(ringbuf *rb, const ringbuf_reservation *reservation, size_t size, int64_t deadline_ns);

/** Give the reservation up.  Never blocks.  When it may be called and what it returns: as ringbuf_release. */
RINGBUF_API ringbuf_status ringbuf_abort(ringbuf *rb, const ringbuf_reservation *reservation);

/** Copy the oldest message into `buffer` and remove it, waiting until `deadline_ns` for one.
 *
 *  Blocks while the queue is empty; interruptible.  Any number of processes and threads may call it at once.
 *  If this process dies before the message is copied whole, another consumer gets it.
 *  Returns  RINGBUF_OK         *size holds the message's size
 *           RINGBUF_E_SMALL    *size holds the size needed; the message stays queued
 *           RINGBUF_E_TIMEOUT  empty until the deadline
 *           RINGBUF_E_SHUTDOWN shut down and empty (or shut down at once)
 *           RINGBUF_E_DEAD_LETTER nothing is there but messages that have had their attempts and cannot be moved; at once
 *           RINGBUF_E_CLOSED, _INTR, _CORRUPT, _CROWDED
 *
 *  Where the queue has max_attempts, this call and its like (ringbuf_take, _lease, _take_many) move a message that was taken so often
 *  already to the queue of the name dead_letter in the same directory, and go on with the next: it is put there without waiting for
 *  room, and counts here as got and done.  That queue is made when it is first needed, with the tag, permissions and sizes of this one;
 *  one that is there must have the same tag, or none.  If this process dies between the two, the message is in both queues.  If it cannot
 *  be put there, it stays here, whatever is behind it is served first, and ringbuf_dead_letter_status says why. */
RINGBUF_API ringbuf_status ringbuf_get(ringbuf *rb, size_t *size, void *buffer, size_t capacity, int64_t deadline_ns);

/** Take the oldest message without removing it yet: nobody else sees it, and if this process dies it goes to another consumer.
 *
 *  A message of up to `capacity` bytes is copied to `buffer` (NULL: none is); a larger one is read where it lies, at message->data,
 *  until it is ended or the handle closed.  What *message held before does not count.  End it with ringbuf_ack (done), ringbuf_nack (back
 *  to the queue) or ringbuf_keep, from any thread of this process.
 *  A small message keeps its room in the ring until then, so be quick: this is for decoding a message.  For working on it there
 *  is ringbuf_lease.
 *  Blocks and returns as ringbuf_get, except that RINGBUF_E_SMALL does not occur. */
RINGBUF_API ringbuf_status ringbuf_take(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns);

/** Take up to `most` of the oldest messages, in order: wait until `deadline_ns` for the first, then take what is there.  Of more than
 *  one message no more than `most_bytes` in all (SIZE_MAX: any number).
 *
 *  As many as fit are copied into `buffer`, one behind another; their `copied` is 1.  What `messages` held before does not count.  End
 *  them with ringbuf_ack_all or ringbuf_return_all, or one by one, as after ringbuf_take.
 *  Blocks and returns as ringbuf_take; with RINGBUF_OK, *count is at least 1. */
RINGBUF_API ringbuf_status ringbuf_take_many(ringbuf *rb, ringbuf_message *messages, size_t *count, size_t most, size_t most_bytes,
                                             void *buffer, size_t capacity, int64_t deadline_ns);

/** As ringbuf_ack for each of these taken messages, with one wake.  Never blocks.  Returns as ringbuf_ack; those that can be are ended
 *  also if others cannot. */
RINGBUF_API ringbuf_status ringbuf_ack_all(ringbuf *rb, const ringbuf_message *messages, size_t count);

/** Give these taken messages back as if they had not been taken: the attempts do not count.  Otherwise as ringbuf_nack for each, and as
 *  ringbuf_ack_all. */
RINGBUF_API ringbuf_status ringbuf_return_all(ringbuf *rb, const ringbuf_message *messages, size_t count);

/** As ringbuf_take, for as long as the caller likes: a small message moves from the ring into the arena, so that the lease costs the
 *  others nothing but its room there.  Only if the arena is full, or there is none, it stays in the ring (message->in_arena is 0). */
RINGBUF_API ringbuf_status ringbuf_lease(ringbuf *rb, ringbuf_message *message, void *buffer, size_t capacity, int64_t deadline_ns);

/** Copy `size` bytes of a taken message from `offset` on to `buffer`.  For messages that were not copied when they were taken, where
 *  another thread may close the handle: then message->data is no longer to be read.
 *  Never blocks.  Returns as ringbuf_ack, and RINGBUF_E_INVALID if there are no such bytes in it. */
RINGBUF_API ringbuf_status ringbuf_copy(ringbuf *rb, const ringbuf_message *message, void *buffer, size_t offset, size_t size);

/** The taken message is done and removed, as by ringbuf_ack, but its bytes stay where they are, at message->data, and are the
 *  caller's to read and write until ringbuf_release, also after ringbuf_close.  If this process dies, they are released.
 *  Only for messages with in_arena 1.  Never blocks.  Returns as ringbuf_ack, and RINGBUF_E_NO_MEMORY: then it is still taken. */
RINGBUF_API ringbuf_status ringbuf_keep(ringbuf *rb, const ringbuf_message *message);

/** Give the bytes of a kept message back.  Never blocks.  Also after ringbuf_close, and after ringbuf_free as long as something is kept,
 *  reserved or pinned: with the last of these the handle is gone.  In a forked child it only says that the child does not use the memory
 *  any more, once for what its parent had kept.
 *  Returns RINGBUF_OK; RINGBUF_E_INVALID if this handle keeps no such message; RINGBUF_E_CORRUPT if the file was truncated or something
 *  has written over the queue's memory: then it is over as well. */
RINGBUF_API ringbuf_status ringbuf_release(ringbuf *rb, const ringbuf_message *message);

/** Keep the queue's memory mapped until ringbuf_unpin, also after ringbuf_close.  Returns RINGBUF_OK or RINGBUF_E_CLOSED. */
RINGBUF_API ringbuf_status ringbuf_pin(ringbuf *rb);

/** End one ringbuf_pin.  Also after ringbuf_close and ringbuf_free, as ringbuf_release.  Returns RINGBUF_OK, or RINGBUF_E_INVALID if no
 *  ringbuf_pin is left to be ended: what was kept or reserved stays mapped in any case. */
RINGBUF_API ringbuf_status ringbuf_unpin(ringbuf *rb);

/** The taken message is done: remove it.  Never blocks.
 *  Returns RINGBUF_OK; RINGBUF_E_INVALID if it was not taken through this handle or is done already; RINGBUF_E_CLOSED. */
RINGBUF_API ringbuf_status ringbuf_ack(ringbuf *rb, const ringbuf_message *message);

/** Give the taken message back: the next consumer gets it, before younger ones.  Never blocks.  Returns as ringbuf_ack. */
RINGBUF_API ringbuf_status ringbuf_nack(ringbuf *rb, const ringbuf_message *message);

/** Shut the queue down for everyone: every put, also a blocked one, answers RINGBUF_E_SHUTDOWN from now on.
 *  With `immediate` 0, consumers drain what is there and then get RINGBUF_E_SHUTDOWN.  What somebody else has taken by then is not
 *  waited for; if it comes back after the last consumer has left, it stays in the queue.  With `immediate` not 0, waiting messages
 *  are discarded (and count as finished) and every get answers RINGBUF_E_SHUTDOWN.  Cannot be undone.  Does not block. */
RINGBUF_API ringbuf_status ringbuf_shutdown(ringbuf *rb, int immediate);

/** Mark one message that was got as finished.  Does not block.
 *  Returns RINGBUF_E_TOO_MANY if every message put was marked already. */
RINGBUF_API ringbuf_status ringbuf_task_done(ringbuf *rb);

/** Wait until every message that was put has been got and marked with ringbuf_task_done.  Messages that a participant had got and
 *  not marked when it died count as finished.  Blocks; interruptible.  Returns RINGBUF_OK, _TIMEOUT, _INTR, _CLOSED, _CORRUPT. */
RINGBUF_API ringbuf_status ringbuf_join(ringbuf *rb, int64_t deadline_ns);

/* What ringbuf_changes_fd() can listen for. */
enum ringbuf_change {
    RINGBUF_ROOM = 1, /* room for a put, in the ring or in the arena */
    RINGBUF_DONE = 2, /* tasks marked as done */
};

/** A file descriptor that is readable while a get would not wait: a message is there, or the queue is shut down.  For select, poll,
 *  epoll, level-triggered; do not read from it.
 *
 *  It belongs to this handle, and ringbuf_close closes it.  A forked child has one of its own under the same number.  Other processes
 *  may have theirs; all show the same.  Costs the others nothing until somebody asks; then one more system call each time that
 *  the queue becomes empty, or is so no more.
 *  Readable does not promise a message, for somebody else may take it first: use calls that do not wait.
 *  Somebody must look after the dead: every call that waits does; who only sleeps on descriptors calls ringbuf_watch() now and then.
 *  Returns RINGBUF_OK, and *fd is it, the same at each call; RINGBUF_E_NO_FILES, _NO_SPACE, _NO_MEMORY, _ACCESS, _CORRUPT (something
 *  else has its name), _BUSY (another process has been stopped while it made or removed the same), _CLOSED, _CROWDED, _SYSTEM. */
RINGBUF_API ringbuf_status ringbuf_items_fd(ringbuf *rb, int *fd);

/** A file descriptor that becomes readable when this `change` (one of enum ringbuf_change) happens after this call.
 *
 *  To wait for room: try to put; call this; try to put again; sleep until *fd is readable, or 100 ms; begin again.  The call lowers the
 *  descriptor, also for other processes, so: who has called it and leaves, having put or not, calls ringbuf_pass_on().
 *  Otherwise as ringbuf_items_fd(); each change has a descriptor of its own. */
RINGBUF_API ringbuf_status ringbuf_changes_fd(ringbuf *rb, uint32_t change, int *fd);

/** Make the descriptors of ringbuf_changes_fd() readable: for the others, after having used less than all of the room. */
RINGBUF_API ringbuf_status ringbuf_pass_on(ringbuf *rb);

/** Why a call on this handle could last not move a message to the dead-letter queue: a status of ringbuf_create or ringbuf_put,
 *  RINGBUF_E_INVALID: that queue has another tag; RINGBUF_OK if that never happened.  Never blocks.  Also on a closed handle. */
RINGBUF_API ringbuf_status ringbuf_dead_letter_status(ringbuf *rb);

/** How many messages are waiting.  Exact when nobody is in a call, and the same for every process.  Never blocks. */
RINGBUF_API ringbuf_status ringbuf_size(ringbuf *rb, uint64_t *items);

/** *room is 1 if a message of `size` bytes could be put now, else 0.  Never blocks.  (Others may be moving it; and a put that goes on
 *  from refused polls of over 150 ms, for which blocks of the arena are set aside, may find room where this says 0.) */
RINGBUF_API ringbuf_status ringbuf_has_room(ringbuf *rb, int *room, size_t size);

/** Statistics; see the struct.  Never blocks. */
RINGBUF_API ringbuf_status ringbuf_get_stats(ringbuf *rb, ringbuf_stats *stats);

/** What is fixed about the queue.  Answers also on a closed handle. */
RINGBUF_API ringbuf_status ringbuf_get_info(ringbuf *rb, ringbuf_info *info);

/** The attached participants: up to `capacity` of them into `peers`, how many there are into *count.  Never blocks. */
RINGBUF_API ringbuf_status ringbuf_get_peers(ringbuf *rb, size_t *count, ringbuf_peer *peers, size_t capacity);

/** The queue's name, valid until ringbuf_free.  Answers also on a closed handle. */
RINGBUF_API const char *ringbuf_name(const ringbuf *rb);

/** The path of the queue's file, valid until ringbuf_free.  Answers also on a closed handle. */
RINGBUF_API const char *ringbuf_path(const ringbuf *rb);

/** Walk the arena and account for every block and run.  Never blocks.  What others are doing meanwhile can look like a finding. */
RINGBUF_API ringbuf_status ringbuf_check(ringbuf *rb, ringbuf_findings *findings);

/** Clean up after participants that died, now.  *recovered counts them.  Calls that would otherwise wait do this by themselves.
 *  Asks the kernel about every participant: for what is called again and again there is ringbuf_watch(). */
RINGBUF_API ringbuf_status ringbuf_recover(ringbuf *rb, uint64_t *recovered);

/** What a call that waits does now and then while it waits, for those who wait by descriptors: clean up after participants that died,
 *  unless somebody else has looked lately, and see to it that the descriptors tell the truth.  *next_ns (as ringbuf_now_ns) is when to
 *  call it again, from 50 ms to 4 s from now; before then it does nothing, and costs nothing.  One look serves all who wait for
 *  a queue, in all processes, so *next_ns is the further away the more others there are.  Never blocks.
 *  Returns RINGBUF_OK, RINGBUF_E_CLOSED, RINGBUF_E_CORRUPT. */
RINGBUF_API ringbuf_status ringbuf_watch(ringbuf *rb, int64_t *next_ns);

/** For who warns his user: 1 once for each handle, if its queue's file was found to be RINGBUF_DELETED, else 0.
 *  Looks only at what calls on this handle have found: those that found nothing to do look every now and then, as for the dead, and
 *  ringbuf_recover, ringbuf_get_peers and ringbuf_get_stats each time.  Never blocks.  Also on a closed handle. */
RINGBUF_API int ringbuf_deletion_is_news(ringbuf *rb);

/** CLOCK_MONOTONIC now, in nanoseconds. */
RINGBUF_API int64_t ringbuf_now_ns(void);

/** A sentence for a status, in English, static. */
RINGBUF_API const char *ringbuf_status_text(ringbuf_status status);

/** What the operating system refused: the system call, e.g. "fallocate", and its errno.  They belong to the last call of this thread that
 *  returned RINGBUF_E_ACCESS, _NO_SPACE, _NO_MEMORY, _NO_FILES, _NO_DIRECTORY, _NO_DESCRIPTOR or _SYSTEM; NULL and 0 if that was the
 *  library's own decision, as for a file of another user.  The string is static.  Never block; async-signal-safe. */
RINGBUF_API const char *ringbuf_error_call(void);
RINGBUF_API int ringbuf_error_number(void);

/** The layout version found in the file, of the last call of this thread that returned RINGBUF_E_VERSION; 0 if none did.  A file of
 *  another byte order: its layout version plus 2^31.  Never blocks; async-signal-safe. */
RINGBUF_API uint32_t ringbuf_error_layout(void);

/** The library's version, "MAJOR.MINOR.PATCH", static. */
RINGBUF_API const char *ringbuf_version(void);

/** The version of the shared-memory layout this library reads and writes. */
RINGBUF_API uint32_t ringbuf_layout_version(void);

/* [cdef end] */

#ifdef __cplusplus
}
#endif

#endif
