/* layout.h — floor 0: every byte of a queue's file.
 *
 * Owns: the structs, their offsets, the words' bit fields, and the asserts that hold them to the picture.  docs/layout.md is the
 * same in prose.  Refuses to know: what the words mean over time (ring.c, registry.c, wait.c).
 *
 *   0           8192                       slots (page)                      table      runs        arena    data (page)
 *   | header    | participants, 128 B each | slots of lane 0 | 1 | 2 | 3 | block    | a run's   | blocks | data of lane 0 | 1 | 2 | 3 |
 *   | two pages | owner number - 1         | 64 B each, one per cell       | words    | entry     |        | each mapped twice in a row |
 *                                                                       | 8 B each | 16 B each |
 *
 * Only fixed-width integers and offsets live here: no pointer, size_t, bool, enum or pthread type.  Padding is named and zero.
 * Zero bytes are a valid, empty ring and a valid, empty arena: pages that nobody has reached need no initialization (and no memory). */
#ifndef RBI_LAYOUT_H
#define RBI_LAYOUT_H

#include "atomics.h"

#include <stddef.h>

enum {
    RBI_LAYOUT_VERSION = 4,
    RBI_LAYOUT_FROZEN = 3,       /* from this layout on the offsets named at struct rbi_stamp are what they are */
    RBI_HEADER_BYTES = 8192,
    RBI_LANES = 4,               /* a ring and three spare ones: see ring.c on lanes */
    RBI_NAME_MAX_BYTES = 1024,
    RBI_TAG_BYTES = 32,
    RBI_NOTE_BYTES = 512,
    RBI_DEAD_LETTER_BYTES = 320, /* the name of the queue for messages that have had their attempts, with a zero byte */
    RBI_LABEL_BYTES = 32,
    RBI_ID_BYTES = 16,
    RBI_OWNER_MAX = 4095,        /* owner numbers are 12 bits; 0 is nobody */
    RBI_INLINE_BYTES = 48,       /* a message of at most this size lies in its slot and touches no data cell */
    RBI_CELL_MIN_LOG2 = 7,       /* 128 B: two cache lines, so that neighbours never share one */
    RBI_CELLS_MIN_LOG2 = 5,
    RBI_CELLS_MAX_LOG2 = 20,     /* larger queues get larger cells */
    RBI_RING_LIMIT_BYTES = 65536,/* a message of more than this, or of more than an eighth of the capacity, lies in the arena */
    RBI_BLOCK_MIN_LOG2 = 12,
    RBI_BLOCKS_MAX_LOG2 = 16,    /* larger arenas get larger blocks */
    RBI_TABLE_PARTS = 64,        /* the table gets its pages in this many steps */
    RBI_LEVELS = 3,              /* descriptors that tell of a queue; see ready.h */
};
#define RBI_MAGIC UINT64_C(0x31664275426e6952) /* "RinBuBf1", also tells the byte order */

/* A cursor: { items : cells_log2 + 1 | position : 63 - cells_log2 }.
 * A position counts cells for ever (as far as its bits go); its slot is position & (cells - 1), its lap position >> cells_log2.
 * `items` counts records modulo 2^(cells_log2 + 1), so that tail.items - head.items is the number of records between the two.
 * The first position is `cells` (lap 1), so that an all-zero slot word belongs to a lap long gone. */

/* A slot's word, the one truth about the record that starts at its cell:
 *   { lap : 48 - cells_log2 | cells : cells_log2 | owner : 12 | kind : 4 }
 * lap   tells whether the word is about this lap at all: any other lap's word says "no record starts here yet"
 * cells how many cells the record occupies; of an END, which occupies one, how many epochs it leads on; of a GAP, how many it leaves
 *       out
 * owner who may change the word next (CLAIMED, SKIPPED, TAKEN); of an END, the low bits of the epoch it ends; else 0 */
enum rbi_kind {
    RBI_KIND_NONE = 0,
    RBI_KIND_CLAIMED = 1,  /* a producer, `owner`, is writing it */
    RBI_KIND_SKIPPED = 2,  /* the same, and consumers have gone past it */
    RBI_KIND_READY = 3,    /* a message; only the one at `head` is taken */
    RBI_KIND_TAKEN = 4,    /* a consumer, `owner`, is reading it */
    RBI_KIND_RETURNED = 5, /* a message that consumers have gone past: published late, given back, or its taker died */
    RBI_KIND_RELEASED = 6, /* done, or void: its cells are free once `reclaim` has passed them */
    RBI_KIND_END = 7,      /* no record: puts go on in the next lane from here on */
    RBI_KIND_GAP = 8,      /* no record: the rest of this lap is left out, the next record lies at the front */
};

/** The record that starts at this cell: its word, its size and, if it is small, its bytes. */
struct rbi_slot {
    rbi_atomic64 word;
    rbi_atomic64 size;     /* { reference : 1 | turn : 10 | attempts : 16 | payload bytes : 37 }; see below */
    uint8_t payload[RBI_INLINE_BYTES];
};
_Static_assert(sizeof(struct rbi_slot) == 64, "a slot is one cache line");

/* A slot's size word.  The owner of a claim writes it before it publishes; whoever has taken the record writes attempts and turn.
 * With RBI_REFERENCE the message lies in the arena, and the slot's payload is the number of its run's first block, in 8 bytes.
 *
 * attempts counts takings, and a taking that is given back untouched is subtracted again.  turn counts takings and is never subtracted, so
 * that a token (struct ringbuf_message) which names both belongs to one taking: of the same message a later taking has another turn, or,
 * 1024 takings later, another number of attempts, unless each of them was given back untouched. */
enum { RBI_ATTEMPTS_SHIFT = 37, RBI_ATTEMPTS_MAX = 65535, RBI_TURN_SHIFT = 53, RBI_TURN_MAX = 1023, RBI_REFERENCE_BYTES = 8 };
#define RBI_SIZE_MASK ((UINT64_C(1) << RBI_ATTEMPTS_SHIFT) - 1)
#define RBI_REFERENCE (UINT64_C(1) << 63)

/* A block's word, the one truth about the run that begins there (arena.c):
 *   of the first block of a run:  { 0 : 20 | pages : 2 | length in blocks : 24 | owner : 12 | kind : 4 } */
enum rbi_block_kind {
    RBI_BLOCK_FREE = 0,     /* { freed at : 22 | pages : 2 | 0 : 36 | kind }; coarse seconds */
    RBI_BLOCK_RESERVED = 1, /* `owner` is making, filling or freeing the run */
    RBI_BLOCK_QUEUED = 2,   /* a message whose slot has, or is about to have, a reference to it; `owner` is who put it, or 0 */
    RBI_BLOCK_HELD = 3,     /* a message that was delivered, and whose bytes `owner` still looks at */
    RBI_BLOCK_LEASED = 4,   /* a message that `owner` has taken */
    RBI_BLOCK_RETURNED = 5, /* a message that waits to be taken again */
    RBI_BLOCK_REST = 6,     /* a further block of the run whose first block's number stands in place of the length */
};

/** What is known about the memory behind a block. */
enum rbi_pages {
    RBI_PAGES_NONE = 0,     /* there may be none: writing could fail */
    RBI_PAGES_BACKED = 1,
    RBI_PAGES_UNSURE = 2,   /* as NONE for who wants to write, as BACKED for who wants to give memory back */
};

/** More about a run; belongs to its first block's owner. */
struct rbi_run_entry {
    rbi_atomic64 size;      /* { 0 : 1 | turn : 10 | attempts : 16 | message bytes : 37 }, as in a slot */
    rbi_atomic64 record;    /* the number of the record in the ring that the message came, or comes, by; of a reservation its ticket */
};
_Static_assert(sizeof(struct rbi_run_entry) == 16, "four entries a cache line");

/** An event word for sleepers and listeners (wait.c): { count : 30 | LISTENERS : 1 | WAITERS : 1 }. */
struct rbi_event {
    rbi_atomic32 word;
    uint32_t zero[31];
};
_Static_assert(sizeof(struct rbi_event) == 128, "an event word has a cache-line pair of its own");

/** What the header says once and for all.  Written before the file gets its name; checked against fstat before anything else.
 *
 *  Frozen: the offsets of magic, layout_version, flags, id, name_bytes and name, and the locks PRESENCE and NAME, are the same in every
 *  layout from 3 on, so that a library can name and collect what another version left behind. */
struct rbi_stamp {
    uint64_t magic;                /* RBI_MAGIC, in the byte order of the creator */
    uint32_t layout_version;
    uint32_t header_bytes;
    uint32_t max_participants;
    uint32_t cell_log2;            /* log2 of the bytes of a cell */
    uint32_t cells_log2;           /* log2 of the number of cells and slots */
    uint32_t flags;                /* enum ringbuf_flag */
    uint64_t slots_offset;
    uint64_t data_offset;
    uint64_t file_bytes;
    uint64_t max_items;
    uint64_t created_ns;           /* CLOCK_REALTIME */
    uint32_t creator_pid;
    uint32_t permissions;
    uint32_t lanes;                /* RBI_LANES */
    uint32_t block_log2;           /* log2 of the bytes of an arena block */
    uint64_t blocks;               /* a multiple of RBI_TABLE_PARTS; 0: no arena */
    uint64_t table_offset;
    uint64_t runs_offset;
    uint64_t arena_offset;
    uint8_t id[RBI_ID_BYTES];
    uint8_t tag[RBI_TAG_BYTES];
    uint8_t note[RBI_NOTE_BYTES];
    uint64_t name_bytes;
    uint8_t name[RBI_NAME_MAX_BYTES];
    uint8_t dead_letter[RBI_DEAD_LETTER_BYTES]; /* a name, if max_attempts is not 0 */
    uint32_t max_attempts;         /* how often a message is handed out; 0: any number */
    uint32_t zero_attempts;
    uint64_t checksum;             /* FNV-1a of everything above */
};
_Static_assert(offsetof(struct rbi_stamp, magic) == 0 && offsetof(struct rbi_stamp, layout_version) == 8 &&
                   offsetof(struct rbi_stamp, flags) == 28 && offsetof(struct rbi_stamp, id) == 120 &&
                   offsetof(struct rbi_stamp, name_bytes) == 680 && offsetof(struct rbi_stamp, name) == 688,
               "frozen for all layouts");
_Static_assert(sizeof(struct rbi_stamp) == 2048, "the stamp fills the first part of the header");

/** The words that move a lane.  Each has a cache-line pair of its own: producers write tail, consumers head. */
struct rbi_cursors {
    rbi_atomic64 tail;             /* cursor; the next position to claim, or one record behind it */
    uint64_t zero_tail[15];
    rbi_atomic64 head;             /* cursor; the next position to take, or behind it */
    uint64_t zero_head[15];
    rbi_atomic64 reclaim;          /* position; everything before it is free */
    rbi_atomic64 reserved_cells;   /* slots and cells [0, here) have pages; only grows, up to all */
    uint64_t zero_reclaim[14];
    rbi_atomic64 irregular;        /* position; every record that was skipped, returned or voided lies before it */
    uint64_t zero_irregular[15];
};

/** The words that order the lanes.  Read by every call, written rarely. */
struct rbi_order {
    rbi_atomic64 returned;         /* { version : 63 | some : 1 }; see ring.c */
    rbi_atomic64 put_epoch;        /* the lane put_epoch % lanes is open for puts */
    rbi_atomic64 get_epoch;        /* the lane get_epoch % lanes is the one to take from; never ahead of put_epoch */
    uint64_t zero[13];
};

/** What the arena's users share beside its table. */
struct rbi_arena_words {
    rbi_atomic64 parts;            /* a bit for each of RBI_TABLE_PARTS equal parts of table and entries: it has pages; only grows */
    uint64_t zero_parts[15];
    rbi_atomic64 short_end;        /* short runs are looked for below this block first; 0: below the last.  A guess */
    rbi_atomic64 trimmed_ns;       /* CLOCK_MONOTONIC when idle memory was last looked for, to be given back; a hint */
    uint64_t zero_short[14];
};

/** The last look for participants that have died: one look serves all that wait (registry.c).  All three are hints. */
struct rbi_watch {
    rbi_atomic64 looked_ns;        /* CLOCK_MONOTONIC at its beginning; another clock, of another time namespace, may have written it */
    rbi_atomic64 cost_ns;          /* the processor time that one took which found nobody dead */
    rbi_atomic64 participants;     /* how many entries it found in use */
    uint64_t zero[13];
};

/** Whose turn it is at the arena: of those that wait for room, the one that has waited longest, once it has waited long (arena.c). */
struct rbi_turn {
    rbi_atomic64 window;           /* { since : 18 | blocks : 17 | first block : 17 | owner : 12 }; 0: nobody's */
    rbi_atomic64 until_ns;         /* CLOCK_MONOTONIC; the turn lapses then, unless its owner renews it; a hint */
    uint64_t zero[14];
};

/** The header pages. */
struct rbi_header {
    struct rbi_stamp stamp;
    struct rbi_order order;
    struct rbi_event items;        /* consumers sleep here */
    struct rbi_event space;        /* producers sleep here */
    struct rbi_event tasks;        /* joiners sleep here */
    rbi_atomic32 shutdown;         /* 0 open, 1 draining, 2 shut down at once; only grows */
    rbi_atomic32 participants_high;/* entries [0, here) may be in use; only grows */
    rbi_atomic64 recoveries;
    rbi_atomic32 listeners[RBI_LEVELS]; /* { version : 31 | some : 1 }: somebody has asked for this level's descriptor (ready.c) */
    rbi_atomic32 removed;          /* 1: the file's name was removed, or is just being removed, by this library (segment.c) */
    rbi_atomic64 dead_letters;     /* messages that were moved to the dead-letter queue */
    uint64_t zero_shared[11];
    struct rbi_event room;         /* who waits for room in the arena sleeps here */
    struct rbi_arena_words arena;
    struct rbi_watch watch;
    struct rbi_turn turn;
    uint8_t zero_page[2048 - 10 * 128];
    struct rbi_cursors lanes[RBI_LANES];
    uint8_t zero_end[4096 - RBI_LANES * sizeof(struct rbi_cursors)];
};
_Static_assert(sizeof(struct rbi_cursors) == 512, "cursors: four line pairs");
_Static_assert(sizeof(struct rbi_order) == 128, "order: one line pair");
_Static_assert(sizeof(struct rbi_header) == RBI_HEADER_BYTES, "the header is two pages");
_Static_assert(offsetof(struct rbi_header, watch) == 3072 && offsetof(struct rbi_header, turn) == 3200, "picture");
_Static_assert(offsetof(struct rbi_header, order) == 2048 && offsetof(struct rbi_header, lanes) == 4096, "picture");

/** A participant's entry.  Its number, the `owner` of slot words, is its index + 1.
 *  Counters belong to the number, not to the process: they go on counting when the number is used again, so nothing has to be
 *  folded anywhere when a process dies, and the sum over all entries is the truth. */
struct rbi_participant {
    rbi_atomic32 state;            /* 0 free, 1 in use; the byte lock (registry.c) tells whether its process lives */
    uint32_t pid;
    uint64_t attached_ns;          /* CLOCK_REALTIME */
    uint8_t label[RBI_LABEL_BYTES];
    uint64_t puts_before;          /* the counters when this process attached */
    uint64_t gets_before;
    /* Only the participant's own process writes these (its threads add atomically). */
    rbi_atomic64 puts;
    rbi_atomic64 gets;
    rbi_atomic64 bytes_put;
    rbi_atomic64 bytes_got;
    rbi_atomic64 sleeps;
    rbi_atomic64 done;             /* ringbuf_task_done calls */
    rbi_atomic64 forgiven;         /* gets whose task_done will never come: their participant died */
    uint64_t owed_before;          /* gets - done - forgiven when this process attached */
};
_Static_assert(sizeof(struct rbi_participant) == 128, "an entry has a cache-line pair of its own");

/* Kernel byte-range locks on the file (registry.c, segment.c).  They lie beyond any data. */
#define RBI_LOCK_BASE ((int64_t)1 << 60)
enum {
    RBI_LOCK_PRESENCE = 0, /* shared by everyone attached; exclusive: nobody is */
    RBI_LOCK_NAME = 1,     /* exclusive: about to remove the file's name */
    RBI_LOCK_OWNER = 1,    /* + owner number: that participant lives, or is being recovered */
};

#endif
