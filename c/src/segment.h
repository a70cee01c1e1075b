/* segment.h — floor 3: a mapped queue file and the handle on it: create, attach, check, leave, remove; fork and close under calls.
 *
 * segment.c opens with the order of the steps and the locks.  Nothing here moves a message. */
#ifndef RBI_SEGMENT_H
#define RBI_SEGMENT_H

#include "guard.h"
#include "registry.h"
#include "wait.h"

#include <pthread.h>

/* State of a handle, in one word with the number of calls in flight: { calls : 29 | lost | stale | closed }. */
enum {
    RBI_HANDLE_CLOSED = 1, /* no call may begin */
    RBI_HANDLE_STALE = 2,  /* we are a forked child and not yet a participant */
    RBI_HANDLE_LOST = 4,   /* the file was truncated, and zeros of our own may lie where its memory was; never cleared */
    RBI_HANDLE_CALL = 8,
    RBI_HANDLE_BARRED = RBI_HANDLE_CLOSED | RBI_HANDLE_STALE | RBI_HANDLE_LOST, /* no call may begin just so */
};

/* The pins of a handle, in one word: { count : 30 | freed | closed }.  One word, so that whoever removes the last pin learns in the same
 * instruction whether there is anything left to do, and else touches the handle no more. */
enum {
    RBI_PIN_CLOSED = 1, /* the last pin completes the close */
    RBI_PIN_FREED = 2,  /* and frees the handle */
    RBI_PIN = 4,
};

/* How long a handle looks before it sleeps, at first (waiting.c); how long memory of the arena is kept that nobody uses. */
enum { RBI_SPIN_START_NS = 4000, RBI_IDLE_S = 5 };

/* That a queue's file was deleted by other means than ours was seen through a handle, and its user was told. */
enum { RBI_DELETION_SEEN = 1, RBI_DELETION_TOLD = 2 };

/** What a handle has learned about waiting for one thing (waiting.c).  Guesses, which several threads may adjust. */
struct rbi_patience {
    rbi_atomic32 spin_ns; /* how long to look before sleeping */
    rbi_atomic32 lag;     /* pauses before the first look */
    rbi_atomic64 served;  /* messages that had been moved at the last wait */
};

/** What a handle has of a level (ready.c). */
struct rbi_descriptor {
    rbi_fd fd;        /* -1: not open */
    bool asked;       /* by this process, which listens; else it is open so that we can tell others */
    uint32_t version; /* of the listeners' word, when it was opened to tell others */
};

/** A handle.  The public opaque type. */
struct ringbuf {
    rbi_atomic32 calls;
    rbi_atomic32 pins;             /* how many need the memory to stay mapped, also beyond close; see RBI_PIN */
    struct rbi_ring ring;
    struct rbi_arena arena;
    struct rbi_registry registry;
    struct rbi_header *header;
    struct rbi_patience items_patience;
    struct rbi_patience space_patience;
    struct rbi_patience room_patience;
    rbi_atomic64 next_recovery_ns; /* calls that find nothing to do look for the dead no earlier than this */
    rbi_atomic64 stuck_at;         /* what a full ring was last found stuck at, if anything, */
    rbi_atomic64 stuck_since_ns;   /* and since when */
    rbi_atomic64 next_trim_ns;     /* idle blocks of the arena are looked for no earlier than this */
    uint64_t idle_s;               /* memory of the arena that was not used for so long goes back to the system */
    rbi_atomic64 trim_from;        /* the block at which that look goes on */
    rbi_atomic64 reservations;     /* made through this handle; numbers their tickets */
    rbi_atomic64 generation;       /* changes in a forked child: what the parent has taken is not ours */
    rbi_atomic32 deletion;         /* what is known of the file's deletion: RBI_DELETION_SEEN, _TOLD */
    pthread_mutex_t recovery;      /* one thread at a time joins or recovers */
    pthread_mutex_t closing;
    pthread_mutex_t telling;       /* one thread at a time uses the descriptors */
    struct rbi_descriptor levels[RBI_LEVELS];
    bool handed_out;
    bool at_exit;                  /* the process is on its way out, and this handle has been seen to */
    bool listed;
    rbi_fd fd;
    struct rbi_guarded *guarded;   /* the memory, as the guard knows it; NULL: not mapped */
    void *base;
    uint64_t prefix_bytes;
    uint64_t mirror_bytes;
    uint64_t ring_limit;           /* the largest message that lies in the ring */
    struct rbi_stamp stamp;        /* our checked copy: the one in shared memory is never read again */
    char *name;
    char *path;
    char *label;
    struct ringbuf *next, *previous; /* all handles of this process that have a file (segment.c) */
};

/** Between these two no child of this process is born by fork(). */
void rbi_handles_hold(void);
void rbi_handles_let_go(void);

/** Begin a call: RINGBUF_OK, or RINGBUF_E_CLOSED, or RINGBUF_E_CORRUPT because the memory is lost, or why a forked child cannot
 *  become a participant. */
ringbuf_status rbi_handle_enter_slow(ringbuf *rb);
static inline ringbuf_status rbi_handle_enter(ringbuf *rb)
{
    /* total: against rbi_segment_close(), which sets CLOSED and then looks at the calls [T5 close] */
    if (!(rbi_own_add_total32(&rb->calls, RBI_HANDLE_CALL) & RBI_HANDLE_BARRED)) return RINGBUF_OK;
    return rbi_handle_enter_slow(rb);
}

/** The same for a call that looks at the file and not at the memory: also if that is lost. */
ringbuf_status rbi_handle_enter_lost(ringbuf *rb);

/** End a call that has begun.  Returns its status, or RINGBUF_E_CORRUPT if the memory was lost before its end.
 *
 *  No call that has met the zeros in place of lost memory returns anything else.  The guard sets LOST before it maps the zeros
 *  (guard.c).  If this add comes before that in the order of this word's changes, what the call has read and written comes before
 *  the zeros; else the add sees the flag. */
ringbuf_status rbi_handle_leave_slow(ringbuf *rb, uint32_t before, ringbuf_status status);
static inline ringbuf_status rbi_handle_leave(ringbuf *rb, ringbuf_status status)
{
    uint32_t before = rbi_own_add_total32(&rb->calls, (uint32_t)-RBI_HANDLE_CALL);
    if (!(before & (RBI_HANDLE_CLOSED | RBI_HANDLE_LOST))) return status;
    return rbi_handle_leave_slow(rb, before, status);
}

static inline bool rbi_handle_is_closed(const ringbuf *rb) { return rbi_load_total32(&rb->calls) & RBI_HANDLE_CLOSED; }

static inline bool rbi_handle_is_lost(const ringbuf *rb) { return rbi_load_total32(&rb->calls) & RBI_HANDLE_LOST; }

/** Keep the memory mapped: only during a call that has begun.  Any number of times. */
static inline void rbi_handle_pin(ringbuf *rb) { rbi_add_total32(&rb->pins, RBI_PIN); }

/** From any thread, at any time: also when the handle was closed and freed, which the last pin then completes. */
void rbi_handle_unpin(ringbuf *rb);

ringbuf_status rbi_segment_create(ringbuf **out, const char *name, const ringbuf_options *options);
/** `id` may be NULL: any queue of that name. */
ringbuf_status rbi_segment_open(ringbuf **out, const char *name, const uint8_t *id, const ringbuf_options *options);
void rbi_segment_close(ringbuf *rb);
void rbi_segment_free(ringbuf *rb);
void rbi_segment_leave_all(void);
ringbuf_status rbi_segment_guard(void);
ringbuf_status rbi_segment_unlink(ringbuf *rb);
ringbuf_status rbi_segment_unlink_name(const char *name, const ringbuf_options *options);
ringbuf_status rbi_segment_collect(uint64_t *removed, const ringbuf_options *options);

/** Whether a stamp read from a file of `file_bytes` bytes can be believed: everything that is used later is checked.  OK, VERSION or CORRUPT. */
ringbuf_status rbi_segment_check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes);

/** Where the file of a queue of this name lies; to be freed.  NULL: no name at all, or no memory. */
char *rbi_segment_path(const char *name, const ringbuf_options *options);
/** Whether it is the file of that name, without the directory. */
bool rbi_segment_is_file_of(const char *file_name, const char *name);

/** Make rb's views (header, ring, arena, registry) those of the queue whose checked stamp is rb->stamp and whose file is in this memory. */
void rbi_segment_lay_out(ringbuf *rb, void *memory);

/** Give the first `cells` slots and cells of the lane pages, and say so. */
ringbuf_status rbi_segment_reserve(ringbuf *rb, uint32_t lane, uint64_t cells);

/** Give these parts of the arena's table pages, and say so. */
ringbuf_status rbi_segment_reserve_parts(ringbuf *rb, uint64_t parts);

/** Give a reserved run memory, and say so. */
ringbuf_status rbi_segment_back(ringbuf *rb, struct rbi_run *run);

/** Give the memory of free blocks that have not been used for `idle_s` seconds back to the system, at most `pieces` pieces of it, from
 *  where the last look ended on.  Returns whether that look has come to the end of the arena. */
bool rbi_segment_trim(ringbuf *rb, uint64_t idle_s, uint64_t pieces);

/** Account for the arena's blocks and runs. */
void rbi_segment_check(ringbuf *rb, struct rbi_arena_findings *findings);

/** Look what has become of the file's name: one of enum ringbuf_unlinked. */
uint64_t rbi_segment_unlinked(ringbuf *rb);

/** Clean up after the dead, if no other thread of this handle is doing so.  Looks after the file's name as well. */
ringbuf_status rbi_segment_recover(ringbuf *rb, uint64_t *recovered);

#endif
