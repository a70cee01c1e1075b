/* segment.c — fuzz target: a queue whose shared memory somebody else writes into, before, between and during the calls.
 *
 * An input says which queue to make, then what to do, one after the other: a public call, a poke (a write into the file that no call
 * of ours makes), or a poke that is held back until the library has passed so many test points more, which is in the middle of some
 * later call.  Pokes are words that the library could have written itself, or nearly so, or anything.  And some that are held back are
 * no pokes but calls on another handle of the queue, as if another process had come in between.
 *
 * Built with FUZZ_PEER it is the target `peer`: an input begins with pokes that a thread makes over and over while the calls run,
 * each at a moment that nothing has chosen, as a hostile process would that has the file mapped.  What depends on these moments
 * an input does not repeat for sure; run it several times.
 *
 * Whatever the memory says: every call returns one of the statuses that ringbuf.h lists for it, none hangs, crashes, or reads or
 * writes outside of the mapping, what it hands out lies within the mapping and can be read to its end, and when all handles are gone
 * so are all mappings and descriptors. */
#include "harness.h"

#include "points.h"

#include <fcntl.h>
#ifdef FUZZ_PEER
#include <pthread.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    STEPS_MOST = 200,
    POKES_MOST = 16,
    HANDLES = 3,
    THINGS = 8,
    MANY = 6, /* messages in a batch */
    BUFFER_BYTES = 2048,
    LARGEST_BYTES = 300000,
};

/* ---- what may be returned ---- */

#define BIT(status) (1u << RINGBUF_##status)

enum {
    OPENING = BIT(OK) | BIT(E_EXISTS) | BIT(E_BUSY) | BIT(E_INVALID) | BIT(E_NO_SPACE) | BIT(E_NO_MEMORY) | BIT(E_NO_FILES) |
              BIT(E_NO_DIRECTORY) | BIT(E_ACCESS) | BIT(E_CORRUPT) | BIT(E_VERSION) | BIT(E_CROWDED) | BIT(E_NOT_FOUND) | BIT(E_GONE),
    PUTTING = BIT(OK) | BIT(E_TIMEOUT) | BIT(E_ARENA_FULL) | BIT(E_TOO_LARGE) | BIT(E_SHUTDOWN) | BIT(E_CLOSED) | BIT(E_INTR) |
              BIT(E_NO_SPACE) | BIT(E_CORRUPT) | BIT(E_CROWDED) | BIT(E_INVALID),
    GETTING = BIT(OK) | BIT(E_SMALL) | BIT(E_TIMEOUT) | BIT(E_SHUTDOWN) | BIT(E_CLOSED) | BIT(E_INTR) | BIT(E_CORRUPT) | BIT(E_CROWDED),
    ENDING = BIT(OK) | BIT(E_INVALID) | BIT(E_CLOSED),
    JOINING = BIT(OK) | BIT(E_TIMEOUT) | BIT(E_INTR) | BIT(E_CLOSED) | BIT(E_CORRUPT),
    LOOKING = BIT(OK) | BIT(E_CLOSED) | BIT(E_CORRUPT),
    LISTENING = BIT(OK) | BIT(E_NO_FILES) | BIT(E_NO_SPACE) | BIT(E_NO_MEMORY) | BIT(E_ACCESS) | BIT(E_CORRUPT) | BIT(E_BUSY) |
                BIT(E_CLOSED) | BIT(E_CROWDED),
    REMOVING = BIT(OK) | BIT(E_CLOSED) | BIT(E_BUSY) | BIT(E_NOT_FOUND) | BIT(E_CORRUPT),
};

static ringbuf_status listed(ringbuf_status status, uint32_t list)
{
    FUZZ_CHECK(status >= 0 && status <= RINGBUF_E_DEAD_LETTER && list >> status & 1, status);
    return status;
}

/* ---- the world of one input ---- */

enum thing_kind { NOTHING, TAKEN, KEPT, RESERVED, PINNED };

/** Something that a handle has given us.  A handle that has been freed lives on in what it has pinned. */
struct thing {
    enum thing_kind kind;
    ringbuf *rb;
    bool is_open; /* the handle has not been closed: else nobody may look at what is only taken */
    ringbuf_message message;
    ringbuf_reservation reservation;
};

struct poke {
    uint8_t recipe, region, lane;
    uint16_t index;
    uint64_t value;
};

struct world {
    struct input input;
    ringbuf *handles[HANDLES];
    struct thing things[THINGS];
    struct poke pokes[POKES_MOST]; /* held back; the first is due in `fuse` points */
    uint32_t poke_count, fuse, interrupts;
    const ringbuf *busy;           /* a handle that is being used without a call having begun on it */
    struct rbi_stamp stamp; /* where things lie in the file that we poke into */
    uint8_t *file;
    size_t file_bytes;
    uint64_t inode;
    ringbuf_options options;
};

static struct world world;
static uint8_t source[LARGEST_BYTES]; /* what messages are made of */

/* ---- pokes ---- */

enum { ACTS = 200 }; /* from this region on, what is held back is a call */

enum region {
    ORDER, CURSORS, EVENTS, COUNTERS, ARENA_WORDS, ENTRIES, SLOTS, SLOT_SIZES, SLOT_PAYLOADS, TABLE, RUNS, DATA, STAMP, ANYWHERE, REGIONS
};

/** Where in the file the word lies. */
static uint64_t offset_of(const struct poke *poke)
{
    const struct rbi_stamp *stamp = &world.stamp;
    const uint64_t cells = UINT64_C(1) << stamp->cells_log2, blocks = stamp->blocks ? stamp->blocks : 1;
    const uint64_t lane_slots = (stamp->table_offset - stamp->slots_offset) / RBI_LANES;
    const uint64_t lane = poke->lane % RBI_LANES, index = poke->index;
    const uint64_t slot = stamp->slots_offset + lane * lane_slots + index % cells * sizeof(struct rbi_slot);
    static const uint16_t cursors[] = {offsetof(struct rbi_cursors, tail), offsetof(struct rbi_cursors, head),
                                       offsetof(struct rbi_cursors, reclaim), offsetof(struct rbi_cursors, reserved_cells),
                                       offsetof(struct rbi_cursors, irregular)};
    static const uint16_t events[] = {offsetof(struct rbi_header, items), offsetof(struct rbi_header, space),
                                      offsetof(struct rbi_header, tasks), offsetof(struct rbi_header, room)};
    static const uint16_t counters[] = {offsetof(struct rbi_header, shutdown), offsetof(struct rbi_header, recoveries),
                                        offsetof(struct rbi_header, listeners), offsetof(struct rbi_header, listeners) + 8};
    switch ((enum region)(poke->region % REGIONS)) {
    case ORDER: return offsetof(struct rbi_header, order) + index % 3 * 8;
    case CURSORS: return offsetof(struct rbi_header, lanes) + lane * sizeof(struct rbi_cursors) + cursors[index % 5];
    case EVENTS: return events[index % 4];
    case COUNTERS: return counters[index % 4];
    case ARENA_WORDS: return index % 2 ? offsetof(struct rbi_header, arena.short_end) : offsetof(struct rbi_header, arena.parts);
    case ENTRIES: return RBI_HEADER_BYTES + index % (16 * stamp->max_participants) * 8;
    case SLOTS: return slot;
    case SLOT_SIZES: return slot + offsetof(struct rbi_slot, size);
    case SLOT_PAYLOADS: return slot + offsetof(struct rbi_slot, payload);
    case TABLE: return stamp->table_offset + index % blocks * 8;
    case RUNS: return stamp->runs_offset + index % (2 * blocks) * 8;
    case DATA: return stamp->data_offset + index % (cells << stamp->cell_log2 >> 3) * 8;
    case STAMP: return index % (sizeof(struct rbi_stamp) / 8) * 8;
    case ANYWHERE:
    case REGIONS: break;
    }
    return (uint64_t)index << 8 | (poke->lane & ~7u);
}

static uint64_t *word_at(uint64_t offset) { return (uint64_t *)(void *)(world.file + (offset + 8 <= world.file_bytes ? offset : 0)); }

/** The position that a cursor of the lane stands at: what is written near there is looked at. */
static uint64_t position_near(uint32_t lane, int8_t away)
{
    const struct rbi_cursors *cursors = &((const struct rbi_header *)(void *)world.file)->lanes[lane % RBI_LANES];
    const rbi_atomic64 *const each[] = {&cursors->tail, &cursors->head, &cursors->reclaim};
    uint64_t mask = (UINT64_C(1) << (63 - world.stamp.cells_log2)) - 1;
    return (rbi_load_relaxed64(each[lane / RBI_LANES % 3]) + (uint64_t)away) & mask;
}

static uint64_t value_of(const struct poke *poke, uint64_t before)
{
    static const uint64_t edges[] = {0, 1, 2, 3, UINT64_MAX, UINT64_MAX - 1, INT64_MAX, UINT64_C(1) << 63, UINT32_MAX,
                                     UINT64_C(1) << 32, RBI_MAGIC, RBI_SIZE_MASK, RBI_REFERENCE, RBI_REFERENCE | 8, UINT64_C(1) << 40};
    const uint64_t value = poke->value;
    const uint32_t log2 = world.stamp.cells_log2;
    const uint64_t cells_mask = (UINT64_C(1) << log2) - 1;
    switch (poke->recipe % 10) {
    case 0: return value;
    case 1: return before + (uint64_t)(int8_t)value;
    case 2: return before ^ UINT64_C(1) << (value & 63);
    case 3: return (before & ~UINT64_C(0xffff)) | (value & 0xffff);            /* another owner and kind */
    case 4: {                                                                  /* a slot's word: lap, cells, owner, kind */
        uint64_t lap = position_near((uint32_t)(value >> 24 & 15), (int8_t)(value >> 16)) >> log2;
        return lap << (16 + log2) | (value >> 32 & cells_mask) << 16 | (value & 0xffff);
    }
    case 5: return (value & UINT64_C(0x3ffffffffff));                          /* a block's word */
    case 6: return edges[value % (sizeof edges / sizeof *edges)];
    case 7: {                                                                  /* a cursor */
        uint64_t items = before >> (63 - log2);
        return (items + (value >> 16 & 3)) << (63 - log2) | position_near((uint32_t)value & 15, (int8_t)(value >> 8));
    }
    case 8: {
        struct poke from = {.region = (uint8_t)value, .lane = (uint8_t)(value >> 8), .index = (uint16_t)(value >> 16)};
        return __atomic_load_n(word_at(offset_of(&from)), __ATOMIC_RELAXED);
    }
    default: return (before & ~(UINT64_C(0xff) << (8 * (value & 7)))) | (value >> 8 & 0xff) << (8 * (value & 7));
    }
}

static void do_poke(const struct poke *poke)
{
    if (!world.file) return;
    uint64_t *word = word_at(offset_of(poke));
    uint64_t value = value_of(poke, __atomic_load_n(word, __ATOMIC_RELAXED)); /* the peer pokes, too */
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
    if (poke->region % REGIONS == STAMP && poke->lane & 1) fuzz_sign((struct rbi_stamp *)(void *)world.file);
}

static struct poke read_poke(void)
{
    static const uint8_t value_bytes[10] = {8, 1, 1, 2, 6, 6, 1, 3, 4, 2};
    struct poke poke = {.recipe = input_byte(&world.input), .region = input_byte(&world.input), .lane = input_byte(&world.input)};
    poke.index = (uint16_t)input_number(&world.input, poke.region % REGIONS >= TABLE ? 2 : 1);
    /* Mostly what is near the cursors matters. */
    if (poke.region % REGIONS == SLOTS || poke.region % REGIONS == SLOT_SIZES || poke.region % REGIONS == SLOT_PAYLOADS)
        if (world.file && poke.lane & 0x80) poke.index = (uint16_t)position_near((uint32_t)poke.lane & 15, (int8_t)poke.index);
    poke.value = input_number(&world.input, value_bytes[poke.recipe % 10]);
    return poke;
}

static void act(const struct poke *poke);

/** What is held back and due: a poke, or a call on another handle. */
static void do_next_poke(void)
{
    struct poke poke = world.pokes[0];
    memmove(world.pokes, world.pokes + 1, --world.poke_count * sizeof poke);
    world.fuse = (uint32_t)poke.recipe / 10; /* until the one behind it */
    if (poke.region >= ACTS) act(&poke);
    else do_poke(&poke);
}

static void at_point(enum rbi_point point)
{
    (void)point;
    if (world.poke_count && world.fuse-- == 0) do_next_poke();
}

/** As another process would, in the middle of a call of ours: through a handle that is in no call. */
static void act(const struct poke *poke)
{
    uint8_t buffer[BUFFER_BYTES];
    size_t size;
    uint64_t number;
    int64_t next_ns;
    ringbuf *rb = world.handles[poke->lane % HANDLES];
    if (!rb || rb == world.busy || rbi_load_total32(&rb->calls) >= RBI_HANDLE_CALL) return;
    void (*hook)(enum rbi_point point) = rbi_point_hook;
    rbi_point_hook = NULL;
    ringbuf_message message = {.data = NULL};
    switch (poke->index % 10) {
    case 0:
    case 1: listed(ringbuf_put(rb, source, poke->value % 600, 0), PUTTING); break;
    case 2: listed(ringbuf_put(rb, source, 5000 + poke->value % 9000, 0), PUTTING); break;
    case 3:
    case 4: listed(ringbuf_get(rb, &size, buffer, sizeof buffer, 0), GETTING); break;
    case 5:
        if (listed(ringbuf_take(rb, &message, NULL, 0, 0), GETTING & ~BIT(E_SMALL)) == RINGBUF_OK) listed(ringbuf_nack(rb, &message), ENDING);
        break;
    case 6:
        if (listed(ringbuf_lease(rb, &message, NULL, 0, 0), GETTING & ~BIT(E_SMALL)) == RINGBUF_OK) listed(ringbuf_ack(rb, &message), ENDING);
        break;
    case 7:
        fuzz_pass_time(60000000);
        listed(poke->value & 1 ? ringbuf_watch(rb, &next_ns) : ringbuf_recover(rb, &number), LOOKING);
        break;
    case 8: listed(ringbuf_shutdown(rb, poke->value & 1), LOOKING); break;
    default: rbi_lock_drop(rb->file.fd, RBI_LOCK_OWNER + rb->registry.self); break;
    }
    rbi_point_hook = hook;
}

/** Somebody else acts while we sleep. */
static ringbuf_status sleeping(int64_t deadline_ns)
{
    if (world.poke_count) {
        do_next_poke();
        return RINGBUF_OK;
    }
    if (world.interrupts) {
        world.interrupts--;
        return RINGBUF_E_INTR;
    }
    fuzz_pass_time(deadline_ns - ringbuf_now_ns());
    return RINGBUF_E_TIMEOUT;
}

/* ---- a peer that pokes all the time ---- */

#ifdef FUZZ_PEER
enum { PEERS_POKES_MOST = 24, PEERS_ROUNDS = 200 };

static struct {
    pthread_t thread;
    struct poke pokes[PEERS_POKES_MOST];
    uint32_t count, pauses;
    _Atomic bool ends;
} peer;
static pthread_mutex_t file_mutex = PTHREAD_MUTEX_INITIALIZER; /* which file is poked into */

static void hold_file(void) { pthread_mutex_lock(&file_mutex); }
static void let_go_of_file(void) { pthread_mutex_unlock(&file_mutex); }

static void *be_the_peer(void *nothing)
{
    for (uint32_t round = 0; round < PEERS_ROUNDS && !peer.ends; round++) {
        for (uint32_t i = 0; i < peer.count && !peer.ends; i++) {
            hold_file();
            struct poke poke = peer.pokes[i];
            if (poke.region % REGIONS >= SLOTS && poke.region % REGIONS <= SLOT_PAYLOADS && world.file && poke.lane & 0x80)
                poke.index = (uint16_t)position_near((uint32_t)poke.lane & 15, (int8_t)poke.index); /* where the calls are now */
            do_poke(&poke);
            let_go_of_file();
            for (uint32_t pause = 0; pause < peer.pauses; pause++) rbi_pause();
        }
    }
    return nothing;
}

static void start_peer(void)
{
    peer.count = input_below(&world.input, PEERS_POKES_MOST + 1);
    peer.pauses = (uint32_t)input_byte(&world.input) * 8;
    for (uint32_t i = 0; i < peer.count; i++) peer.pokes[i] = read_poke();
    peer.ends = false;
    FUZZ_CHECK(pthread_create(&peer.thread, NULL, be_the_peer, NULL) == 0, peer.count);
}

static void end_peer(void)
{
    peer.ends = true;
    pthread_join(peer.thread, NULL);
}
#else
static void hold_file(void) {}
static void let_go_of_file(void) {}
static void start_peer(void) {}
static void end_peer(void) {}
#endif

/** Poke into this queue's file from now on. */
static void look_into(const ringbuf *rb)
{
    struct stat st;
    FUZZ_CHECK(fstat(rb->file.fd, &st) == 0, rb->file.fd);
    if (world.file && world.inode == st.st_ino) return;
    hold_file();
    if (world.file) munmap(world.file, world.file_bytes);
    world.inode = st.st_ino;
    world.file_bytes = (size_t)rb->stamp.file_bytes;
    rbi_fd fd; /* a mapping keeps its open file, and that file's locks */
    FUZZ_CHECK(rbi_open_again(&fd, rb->file.fd) == RINGBUF_OK, rb->file.fd);
    world.file = mmap(NULL, world.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FUZZ_CHECK(world.file != MAP_FAILED, world.file_bytes);
    close(fd);
    world.stamp = rb->stamp;
    let_go_of_file();
}

/* ---- what is handed out ---- */

/** Whether all of it lies where messages lie, or in the caller's buffer. */
static bool is_within(const ringbuf *rb, const void *data, size_t size)
{
    const uint8_t *base = rb->base, *first = data;
    const struct rbi_stamp *stamp = &rb->stamp;
    if (first >= base + stamp->arena_offset && first < base + stamp->data_offset)
        return size <= (size_t)(base + stamp->data_offset - first);
    if (first >= base + stamp->slots_offset && first < base + stamp->table_offset) return size <= RBI_INLINE_BYTES;
    const uint8_t *end = base + rb->prefix_bytes + 2 * RBI_LANES * rb->mirror_bytes;
    return first >= base + stamp->data_offset && first <= end && size <= (size_t)(end - first) && size <= rb->mirror_bytes;
}

static void check_message(const ringbuf *rb, const ringbuf_message *message, const uint8_t *buffer, size_t capacity)
{
    FUZZ_CHECK(message->attempts >= 1 && message->attempts <= RBI_ATTEMPTS_MAX, message->attempts);
    FUZZ_CHECK(message->in_arena <= 1, message->in_arena);
    const uint8_t *data = message->data;
    FUZZ_CHECK(message->copied <= 1, message->copied);
    if (message->copied) FUZZ_CHECK(data >= buffer && data + message->size <= buffer + capacity, message->size);
    else FUZZ_CHECK(is_within(rb, message->data, message->size), message->size);
    fuzz_read(message->data, message->size);
}

static struct thing *free_thing(void)
{
    for (uint32_t i = 0; i < THINGS; i++)
        if (world.things[i].kind == NOTHING) return &world.things[i];
    return NULL;
}

static struct thing *note(enum thing_kind kind, ringbuf *rb)
{
    struct thing *thing = free_thing();
    if (!thing) fuzz_fail("nobody has looked whether there is a thing free", kind);
    *thing = (struct thing){.kind = kind, .rb = rb, .is_open = true};
    return thing;
}

/** What is pinned can be read for as long as it is, and what is taken until its handle is closed. */
static void read_thing(const struct thing *thing)
{
    if (thing->kind == KEPT || (thing->kind == TAKEN && thing->is_open)) fuzz_read(thing->message.data, thing->message.size);
    if (thing->kind == RESERVED) fuzz_read(thing->reservation.data, thing->reservation.size);
}

/** End what is pinned: as the caller of a handle that may have been freed, only once.  Whatever was written over it, it is over. */
static void end_thing(struct thing *thing)
{
    read_thing(thing);
    world.busy = thing->rb;
    if (thing->kind == KEPT) listed(ringbuf_release(thing->rb, &thing->message), BIT(OK) | BIT(E_CORRUPT));
    if (thing->kind == RESERVED) listed(ringbuf_abort(thing->rb, &thing->reservation), BIT(OK) | BIT(E_CORRUPT));
    if (thing->kind == PINNED) listed(ringbuf_unpin(thing->rb), BIT(OK));
    world.busy = NULL;
    thing->kind = NOTHING;
}

static struct thing *some_thing(enum thing_kind kind)
{
    struct thing *thing = &world.things[input_below(&world.input, THINGS)];
    for (uint32_t i = 0; i < THINGS && thing->kind != kind; i++)
        thing = thing + 1 < world.things + THINGS ? thing + 1 : world.things;
    return thing->kind == kind ? thing : NULL;
}

/* ---- handles ---- */

static void opened(uint32_t slot, ringbuf_status status)
{
    ringbuf *rb = world.handles[slot];
    listed(status, OPENING);
    FUZZ_CHECK(!rb == (status != RINGBUF_OK), status);
    if (!rb) return;
    fuzz_watch(rb);
    look_into(rb);
}

static void closed(const ringbuf *rb)
{
    for (uint32_t i = 0; i < THINGS; i++)
        if (world.things[i].rb == rb) world.things[i].is_open = false;
}

static void free_handle(uint32_t slot)
{
    ringbuf *rb = world.handles[slot];
    if (!rb) return;
    world.handles[slot] = NULL;
    closed(rb);
    for (uint32_t i = 0; i < THINGS; i++)
        if (world.things[i].kind == TAKEN && world.things[i].rb == rb) world.things[i].kind = NOTHING;
    ringbuf_free(rb);
}

/** Whoever looks now finds that this participant has died; but it goes on. */
static void let_go(const ringbuf *rb)
{
    if (!rbi_handle_is_closed(rb)) rbi_lock_drop(rb->file.fd, RBI_LOCK_OWNER + rb->registry.self);
}

/* ---- the steps ---- */

static size_t read_size(const ringbuf *rb)
{
    const size_t ring = (size_t)rb->ring_limit, block = (size_t)1 << rb->stamp.block_log2, arena = (size_t)rbi_arena_bytes(&rb->arena);
    const size_t sizes[] = {0, 1, 16, 48, 49, 128, 129, 300, ring, ring + 1, block, block + 1, 3 * block, arena / 2, arena, arena + 1};
    uint8_t which = input_byte(&world.input);
    size_t size = which < 128 ? sizes[which % 16] : (size_t)which << 4;
    return size < LARGEST_BYTES ? size : LARGEST_BYTES;
}

static int64_t read_deadline(void)
{
    switch (input_below(&world.input, 8)) {
    case 0: return ringbuf_now_ns() + 1;
    case 1: return ringbuf_now_ns() + 20000000;
    case 2: return ringbuf_now_ns() + 250000000;
    case 3: return -1000;
    case 4: return INT64_MIN;
    default: return 0;
    }
}

/** A buffer of exactly that size, so that writing beyond it is noticed. */
static void *buffer_of(size_t bytes)
{
    void *buffer = malloc(bytes ? bytes : 1);
    FUZZ_CHECK(buffer, bytes);
    return buffer;
}

static void do_put(ringbuf *rb)
{
    size_t size = read_size(rb);
    listed(ringbuf_put(rb, source, size, read_deadline()), PUTTING);
}

static void do_put_parts(ringbuf *rb)
{
    ringbuf_part parts[3];
    for (uint32_t i = 0; i < 3; i++) parts[i] = (ringbuf_part){.data = source, .size = input_byte(&world.input) * 7u};
    listed(ringbuf_put_parts(rb, parts, 3, read_deadline()), PUTTING);
}

static void do_put_all(ringbuf *rb)
{
    ringbuf_part parts[MANY];
    size_t counts[MANY] = {1, 2, 0, 1, 1, 1};
    uint32_t count = 1 + input_below(&world.input, MANY);
    for (uint32_t i = 0; i < count; i++) parts[i] = (ringbuf_part){.data = source, .size = read_size(rb)};
    if (count < 4) listed(ringbuf_put_all(rb, parts, count, read_deadline()), PUTTING | BIT(E_NO_MEMORY));
    else listed(ringbuf_put_all_parts(rb, parts, counts, 4, read_deadline()), PUTTING | BIT(E_NO_MEMORY));
}

static void do_get(ringbuf *rb)
{
    static const size_t capacities[] = {0, 1, 48, 200, BUFFER_BYTES, 70000, LARGEST_BYTES};
    size_t size = 0, capacity = capacities[input_below(&world.input, 7)];
    void *buffer = buffer_of(capacity);
    ringbuf_status status = listed(ringbuf_get(rb, &size, buffer, capacity, read_deadline()), GETTING);
    if (status == RINGBUF_OK) FUZZ_CHECK(size <= capacity, size);
    if (status == RINGBUF_E_SMALL) FUZZ_CHECK(size > capacity, size);
    free(buffer);
}

static void do_take(ringbuf *rb, bool is_lease)
{
    if (!free_thing()) return;
    size_t capacity = input_below(&world.input, 3) * 60u;
    void *buffer = capacity ? buffer_of(capacity) : NULL;
    ringbuf_message message;
    memset(&message, 0x5a, sizeof message); /* whatever it held before */
    int64_t deadline_ns = read_deadline();
    ringbuf_status status = (is_lease ? ringbuf_lease : ringbuf_take)(rb, &message, buffer, capacity, deadline_ns);
    if (listed(status, GETTING & ~BIT(E_SMALL)) == RINGBUF_OK) {
        check_message(rb, &message, buffer, capacity);
        struct thing *thing = note(TAKEN, rb);
        thing->message = message;
        if (message.copied) { /* gone with the buffer; the other fields say which message it is */
            thing->message.data = NULL;
            thing->message.size = 0;
            if (message.in_arena) { /* what is kept is looked at where it lies */
                thing->message.data = rb->arena.memory + ((message.position & ~(UINT64_C(1) << 63)) << rb->arena.block_log2);
                thing->message.size = message.size;
            }
        }
    }
    free(buffer);
}

static void do_batch(ringbuf *rb)
{
    ringbuf_message messages[MANY];
    size_t count = 0, most = 1 + input_below(&world.input, MANY), capacity = input_byte(&world.input) * 4u;
    uint8_t limit = input_byte(&world.input);
    uint8_t *buffer = buffer_of(capacity);
    ringbuf_status status = listed(ringbuf_take_many(rb, messages, &count, most, limit ? limit * 8u : SIZE_MAX, capacity ? buffer : NULL,
                                                     capacity, read_deadline()), GETTING & ~BIT(E_SMALL));
    if (status == RINGBUF_OK) {
        FUZZ_CHECK(count >= 1 && count <= most, count);
        for (size_t i = 0; i < count; i++) {
            check_message(rb, &messages[i], buffer, capacity);
        }
        if (limit & 1) listed(ringbuf_ack_all(rb, messages, count), ENDING);
        else if (limit & 2) listed(ringbuf_return_all(rb, messages, count), ENDING);
    }
    free(buffer);
}

static void do_end_taken(ringbuf *rb)
{
    struct thing *thing = some_thing(TAKEN);
    if (!thing) return;
    read_thing(thing);
    uint32_t how = input_below(&world.input, 5);
    if (how < 4) rb = thing->rb; /* else through a handle that has not taken it */
    if (how == 0) listed(ringbuf_ack(rb, &thing->message), ENDING);
    else if (how == 1) listed(ringbuf_nack(rb, &thing->message), ENDING);
    else if (how == 2 || how == 4) listed(ringbuf_ack_all(rb, &thing->message, 1), ENDING);
    else if (listed(ringbuf_keep(rb, &thing->message), ENDING) == RINGBUF_OK) {
        thing->kind = KEPT;
        read_thing(thing);
        return;
    }
    thing->kind = NOTHING;
}

static void do_copy(ringbuf *rb)
{
    (void)rb;
    struct thing *thing = some_thing(TAKEN);
    if (!thing) return;
    size_t size = input_byte(&world.input) * 9u, offset = input_byte(&world.input);
    void *buffer = buffer_of(size);
    listed(ringbuf_copy(thing->rb, &thing->message, buffer, offset, size), ENDING);
    free(buffer);
}

static void do_reserve(ringbuf *rb)
{
    ringbuf_reservation reservation;
    if (!free_thing()) return;
    size_t size = read_size(rb);
    ringbuf_status status = ringbuf_reserve(rb, &reservation, size, read_deadline());
    if (listed(status, PUTTING & ~BIT(E_TIMEOUT)) != RINGBUF_OK) return;
    FUZZ_CHECK(reservation.size == size && is_within(rb, reservation.data, size), reservation.size);
    note(RESERVED, rb)->reservation = reservation;
    for (size_t at = 0; at < size; at += 64) ((uint8_t *)reservation.data)[at] = 0x5a;
    if (size) ((uint8_t *)reservation.data)[size - 1] = 0x5a;
}

static void do_commit(ringbuf *rb)
{
    (void)rb;
    struct thing *thing = some_thing(RESERVED);
    if (!thing || !thing->is_open) return;
    read_thing(thing);
    size_t size = thing->reservation.size >> input_below(&world.input, 4);
    if (listed(ringbuf_commit(thing->rb, &thing->reservation, size, read_deadline()), PUTTING) == RINGBUF_OK) thing->kind = NOTHING;
}

/** A look from outside, at whatever the memory says.  Without points: what is held back stays for the calls that it was meant for. */
static void observe(void)
{
    ringbuf_observation observation = {.struct_bytes = sizeof observation};
    ringbuf_info info;
    ringbuf_stats stats;
    void (*hook)(enum rbi_point point) = rbi_point_hook;
    rbi_point_hook = NULL;
    ringbuf_status status = listed(ringbuf_observe(&observation, &info, &stats, "q", &world.options), BIT(OK) | BIT(E_NOT_FOUND));
    rbi_point_hook = hook;
    if (status != RINGBUF_OK) return;
    FUZZ_CHECK(observation.condition <= RINGBUF_NO_QUEUE && observation.file_type == RINGBUF_FILE, observation.condition);
    FUZZ_CHECK(observation.name_bytes <= RBI_NAME_MAX_BYTES && !observation.name[observation.name_bytes], observation.name_bytes);
    FUZZ_CHECK(memchr(info.tag, 0, sizeof info.tag) && memchr(info.note, 0, sizeof info.note), 0);
    FUZZ_CHECK(observation.handles + observation.dead <= info.max_participants && observation.processes <= observation.handles, observation.handles);
    FUZZ_CHECK(stats.arena_used_bytes <= stats.arena_bytes && stats.used_bytes <= RBI_LANES * stats.capacity_bytes, stats.used_bytes);
}

static void do_look(ringbuf *rb)
{
    uint64_t items = 0, recovered = 0;
    int room = 0;
    ringbuf_stats stats;
    ringbuf_info info;
    ringbuf_peer peers[2];
    ringbuf_findings findings;
    size_t count = 0;
    observe();
    switch (input_below(&world.input, 7)) {
    case 0: listed(ringbuf_size(rb, &items), LOOKING); break;
    case 1:
        if (listed(ringbuf_has_room(rb, &room, read_size(rb)), LOOKING) == RINGBUF_OK) FUZZ_CHECK(room == 0 || room == 1, room);
        break;
    case 2: listed(ringbuf_get_stats(rb, &stats), LOOKING); break;
    case 3:
        listed(ringbuf_get_info(rb, &info), BIT(OK));
        FUZZ_CHECK(memchr(info.tag, 0, sizeof info.tag) && memchr(info.note, 0, sizeof info.note), 0);
        FUZZ_CHECK(strlen(ringbuf_name(rb)) <= RBI_NAME_MAX_BYTES && *ringbuf_path(rb) == '/', 0);
        break;
    case 4:
        if (listed(ringbuf_get_peers(rb, &count, peers, 2), LOOKING) != RINGBUF_OK) break;
        FUZZ_CHECK(count <= rb->stamp.max_participants, count);
        for (size_t i = 0; i < count && i < 2; i++)
            FUZZ_CHECK(memchr(peers[i].label, 0, sizeof peers[i].label) && peers[i].number <= rb->stamp.max_participants, peers[i].number);
        break;
    case 5: listed(ringbuf_check(rb, &findings), LOOKING); break;
    default:
        fuzz_pass_time(20000000);
        listed(ringbuf_recover(rb, &recovered), LOOKING);
        break;
    }
}

static void do_listen(ringbuf *rb)
{
    int fd = -1;
    uint32_t which = input_below(&world.input, 4);
    if (which == 3) listed(ringbuf_pass_on(rb), LOOKING);
    else if (which == 0) listed(ringbuf_items_fd(rb, &fd), LISTENING);
    else listed(ringbuf_changes_fd(rb, which, &fd), LISTENING);
}

static void do_tasks(ringbuf *rb)
{
    uint32_t which = input_below(&world.input, 4);
    if (which == 0) listed(ringbuf_task_done(rb), LOOKING | BIT(E_TOO_MANY));
    else if (which == 1) listed(ringbuf_join(rb, read_deadline()), JOINING);
    else listed(ringbuf_shutdown(rb, which == 3), LOOKING);
}

/** A slot of the table of handles is filled. */
static void do_open(uint32_t slot)
{
    uint8_t id[RBI_ID_BYTES];
    memcpy(id, world.stamp.id, sizeof id);
    free_handle(slot);
    uint32_t how = input_below(&world.input, 6);
    world.options.mode = how % 3;
    world.options.label = how & 1 ? "somebody with a name that is longer than there is room for" : NULL;
    if (how < 3) opened(slot, ringbuf_create(&world.handles[slot], "q", &world.options));
    else if (how == 3) opened(slot, ringbuf_attach(&world.handles[slot], "q", id, &world.options));
    else opened(slot, ringbuf_open(&world.handles[slot], "q", &world.options));
}

static void do_remove(ringbuf *rb)
{
    uint64_t removed = 0;
    uint32_t which = input_below(&world.input, 3);
    if (which == 0) listed(ringbuf_unlink(rb), REMOVING);
    else if (which == 1) listed(ringbuf_unlink_name("q", &world.options), REMOVING);
    else listed(ringbuf_collect(&removed, &world.options), BIT(OK));
}

static void step(void)
{
    static const int64_t lengths[] = {1000000, 20000000, 60000000, 6000000000};
    const uint8_t what = input_byte(&world.input);
    const uint32_t slot = what >> 5 < 5 ? 0 : (what >> 5) - 5u; /* mostly the first */
    ringbuf *rb = world.handles[slot];
    switch (what & 31) {
    case 0:
    case 1:
    case 2: {
        struct poke poke = read_poke();
        do_poke(&poke);
        return;
    }
    case 3:
    case 4:
    case 5: {
        struct poke poke = read_poke();
        if (world.poke_count == 0) world.fuse = poke.recipe / 10;
        if (world.poke_count < POKES_MOST) world.pokes[world.poke_count++] = poke;
        return;
    }
    case 6: do_open(slot); return;
    case 7: fuzz_pass_time(lengths[input_below(&world.input, 4)]); return;
    case 8: {
        struct thing *thing = &world.things[input_below(&world.input, THINGS)];
        if (thing->kind != TAKEN) end_thing(thing);
        return;
    }
    default: break;
    }
    if (!rb) return;
    switch (what & 31) {
    case 9:
    case 10: do_put(rb); return;
    case 11: do_put_parts(rb); return;
    case 12: do_put_all(rb); return;
    case 13:
    case 14: do_get(rb); return;
    case 15: do_take(rb, false); return;
    case 16: do_take(rb, true); return;
    case 17: do_batch(rb); return;
    case 18:
    case 19: do_end_taken(rb); return;
    case 20: do_copy(rb); return;
    case 21: do_reserve(rb); return;
    case 22: do_commit(rb); return;
    case 23:
    case 24: do_look(rb); return;
    case 25: do_listen(rb); return;
    case 26: do_tasks(rb); return;
    case 27: do_remove(rb); return;
    case 28: let_go(rb); return;
    case 29:
        closed(rb);
        world.busy = rb;
        ringbuf_close(rb);
        world.busy = NULL;
        return;
    case 30: free_handle(slot); return;
    default:
        if (free_thing() && ringbuf_pin(rb) == RINGBUF_OK) note(PINNED, rb);
        world.interrupts++;
        return;
    }
}

static void begin(uint8_t how)
{
    static const uint64_t capacities[] = {4096, 8192, 32768, 1 << 20}, arenas[] = {1, 0, 1, 512 << 10};
    ringbuf_options_init(&world.options);
    world.options.directory = fuzz_directory();
    world.options.capacity_bytes = capacities[how & 3];
    world.options.arena_bytes = arenas[how >> 2 & 3];
    world.options.max_items = how >> 4 & 1 ? 3 : 0;
    world.options.max_participants = how >> 5 & 1 ? 40 : 4;
    world.options.flags = how >> 6 == 3 ? 0 : how >> 6;
    opened(0, ringbuf_create(&world.handles[0], "q", &world.options));
    FUZZ_CHECK(world.handles[0], how);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    for (size_t i = 0; i < sizeof source; i++) source[i] = (uint8_t)(i * 7);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    world = (struct world){.input = {data, size}};
    fuzz_begin();
    fuzz_sleep = sleeping;
    start_peer();
    begin(input_byte(&world.input));
    rbi_point_hook = at_point;
    for (uint32_t steps = 0; steps < STEPS_MOST && !input_ended(&world.input); steps++) step();
    observe();
    for (uint32_t i = 0; i < THINGS; i++) read_thing(&world.things[i]);
    for (uint32_t slot = 0; slot < HANDLES; slot++) free_handle(slot);
    for (uint32_t i = 0; i < THINGS; i++) end_thing(&world.things[i]);
    rbi_point_hook = NULL;
    end_peer();
    if (world.file) munmap(world.file, world.file_bytes);
    fuzz_end();
    return 0;
}
