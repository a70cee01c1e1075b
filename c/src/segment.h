/* segment.h — floor 3: a mapped queue file and the handle on it: create, attach, check, leave, remove; fork and close under calls.
 *
 * segment.c opens with the order of the steps and the locks.  Nothing here moves a message. */
#ifndef RBI_SEGMENT_H
#define RBI_SEGMENT_H

#include "files.h"
#include "guard.h"
#include "pins.h"
#include "registry.h"
#include "wait.h"

#include <pthread.h>

/* State of a handle, in one word with the number of calls in flight: { calls : 29 | lost | stale | closed }. */
enum {
    RBI_HANDLE_CLOSED = 1, /* no call may begin */
    RBI_HANDLE_STALE = 2,  /* not a participant: a forked child that is none yet, or its descriptor was closed and its number is gone */
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

/* For how many calls at a time a handle notes how long they have waited for room. */
enum { RBI_NOTES = 8 };

/* How long a handle looks before it sleeps, at first (waiting.c); how long memory of the arena is kept that nobody uses. */
enum { RBI_SPIN_START_NS = 4000, RBI_IDLE_S = 5 };

/* That a queue's file was deleted by other means than ours was seen through a handle, and its user was told. */
enum { RBI_DELETION_SEEN = 1, RBI_DELETION_TOLD = 2 };

/** What a handle has learned about waiting for one thing (waiting.c).  Guesses, which several threads may adjust. */
struct rbi_patience {
    rbi_atomic32 spin_ns; /* how long to look before sleeping */
    rbi_atomic32 lag;     /* pauses before the first look */
    rbi_atomic32 in_vain; /* the last wait slept until its deadline, and nothing came: looking before the next sleep is wasted, too */
    rbi_atomic64 served;  /* messages that had been moved at the last wait */
};

/** What a handle has of a level (ready.c). */
struct rbi_descriptor {
    struct rbi_file file;
    rbi_atomic32 asked; /* 1: by this process, which listens; else it is open so that we can tell others */
    uint32_t version;   /* of the listeners' word, when it was opened to tell others */
    char *path;         /* of the FIFO */
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
    rbi_atomic64 next_poll_ns;     /* calls that find nothing to do and do not sleep look for the dead no earlier than this */
    rbi_atomic64 stuck_at;         /* what a full ring was last found stuck at, if anything, */
    rbi_atomic64 stuck_since_ns;   /* and since when */
    rbi_atomic64 next_trim_ns;     /* idle blocks of the arena are looked for no earlier than this */
    uint64_t idle_s;               /* memory of the arena that was not used for so long goes back to the system */
    rbi_atomic64 notes[RBI_NOTES]; /* of calls that waited for room, and may come again (turn.c) */
    rbi_atomic32 some_notes;       /* whether there has ever been one */
    rbi_atomic64 consumed_before;  /* messages consumed up to the last round of a turn of ours */
    rbi_atomic64 reservations;     /* made through this handle; numbers their tickets */
    rbi_atomic64 generation;       /* of this handle alone, and another one in a forked child: what others have taken is not ours */
    struct rbi_pins tokens;        /* of what is kept and reserved; each is one of `pins` */
    rbi_atomic32 letter_trouble;   /* why a message could last not be moved to the dead-letter queue */
    rbi_atomic32 deletion;         /* what is known of the file's deletion: RBI_DELETION_SEEN, _TOLD */
    pthread_mutex_t recovery;      /* one thread at a time joins or recovers */
    pthread_mutex_t closing;
    rbi_atomic32 telling;          /* whether one thread uses the descriptors, and what it is to do before it stops; see ready.c */
    struct rbi_descriptor levels[RBI_LEVELS];
    bool handed_out;
    bool at_exit;                  /* the process is on its way out, and this handle has been seen to */
    bool listed;
    struct rbi_file file;
    struct rbi_file spare;         /* the mapping's open file, without locks: for children that may not open the file anew; often not open */
    ringbuf_status reopened;       /* in a forked child: why the file could not be opened anew, */
    struct rbi_refusal refusal;    /* and what the system said */
    rbi_atomic32 entering;         /* calls that wait to become participants again */
    struct rbi_guarded *guarded;   /* the memory, as the guard knows it; NULL: not mapped */
    void *base;
    uint64_t prefix_bytes;
    uint64_t mirror_bytes;
    uint64_t ring_limit;           /* the largest message that lies in the ring */
    uint32_t memory;               /* enum ringbuf_memory */
    struct rbi_stamp stamp;        /* our checked copy: the one in shared memory is never read again */
    char *name;
    char *path;
    char *private_path;            /* the name under which the file is made where it cannot be without one; NULL: it has none */
    char *label;
    struct ringbuf *next, *previous; /* all handles of this process that have a file (segment.c) */
};

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

static inline bool rbi_handle_is_stale(const ringbuf *rb) { return rbi_load_total32(&rb->calls) & RBI_HANDLE_STALE; }

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

/** What is where it is in every layout (layout.h). */
struct rbi_frozen {
    uint32_t layout_version, flags;
    bool swapped; /* the file is of another byte order */
};
/** Take it from a stamp, whatever the layout and the byte order.  False: no queue, or of a layout from before anything was frozen,
 *  of which only `layout_version` and `swapped` are right. */
bool rbi_segment_frozen(struct rbi_frozen *frozen, const struct rbi_stamp *stamp);

/** Whether a stamp read from a file of `file_bytes` bytes can be believed: everything that is used later is checked.  OK, VERSION
 *  (then rbi_last_refusal() knows the layout) or CORRUPT. */
ringbuf_status rbi_segment_check_stamp(const struct rbi_stamp *stamp, uint64_t file_bytes);

/** Where the file of a queue of this name lies; to be freed.  NULL: no name at all, or no memory. */
char *rbi_segment_path(const char *name, const ringbuf_options *options);
/** Whether it is the file of that name, without the directory. */
bool rbi_segment_is_file_of(const char *file_name, const char *name);

/** Make rb's views (header, ring, arena, registry) those of the queue whose checked stamp is rb->stamp and whose file is in this
 *  memory. */
void rbi_segment_lay_out(ringbuf *rb, void *memory);

/** Give the first `cells` slots and cells of the lane pages, and say so. */
ringbuf_status rbi_segment_reserve(ringbuf *rb, uint32_t lane, uint64_t cells);

/** Give these parts of the arena's table pages, and say so. */
ringbuf_status rbi_segment_reserve_parts(ringbuf *rb, uint64_t parts);

/** Give a reserved run memory, and say so. */
ringbuf_status rbi_segment_back(ringbuf *rb, struct rbi_run *run);

/** Free a run that is RESERVED by us, and give what memory it has back to the system. */
void rbi_segment_free_with_pages(ringbuf *rb, const struct rbi_run *run);

/** Give the memory of free blocks that have not been used for `idle_s` seconds back to the system, at most `pieces` pieces of it: first of
 *  those that are used again last. */
void rbi_segment_trim(ringbuf *rb, uint64_t idle_s, uint64_t pieces);

/** Account for the arena's blocks and runs. */
void rbi_segment_check(ringbuf *rb, struct rbi_arena_findings *findings);

/** Look what has become of the file's name: one of enum ringbuf_unlinked. */
uint64_t rbi_segment_unlinked(ringbuf *rb);

/** Before a system call on the handle's file: RINGBUF_OK if its descriptor is open on it, or was closed by others and could be opened anew
 *  without anybody having taken us for dead.  RINGBUF_E_INTR: the call is to be made again, as another participant.
 *  RINGBUF_E_NO_DESCRIPTOR: the file cannot be opened any more. */
ringbuf_status rbi_segment_own_file(ringbuf *rb);

/** There is no room in the queue's file system: remove what nobody uses any more from its directory, if that was not done lately.  Returns
 *  whether something was removed.  Allocates nothing and waits for nothing. */
bool rbi_segment_collect_for_room(ringbuf *rb);

/** Clean up after the dead, if no other thread of this handle is doing so.  Looks after the file's name as well. */
ringbuf_status rbi_segment_recover(ringbuf *rb, uint64_t *recovered);

/** When a handle that waits is to call rbi_segment_watch() next. */
static inline int64_t rbi_segment_wakes_ns(const ringbuf *rb)
{
    return (int64_t)rbi_load_relaxed64(&rb->registry.vigil.wakes_ns); /* relaxed: our own plan */
}

/** What a handle that waits does when it wakes up by itself: the same, if others have not looked lately; and it plans the next time.
 *  Returns whether somebody was cleaned up after. */
bool rbi_segment_watch(ringbuf *rb, int64_t now_ns);

/** What a call does that finds nothing to do and does not wait: the same, without a plan. */
bool rbi_segment_recover_by_the_way(ringbuf *rb, int64_t now_ns);

#endif
