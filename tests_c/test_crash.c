/* test_crash.c — every operation, killed and stopped at every test point.
 *
 * A scenario is an operation of a child process on a queue in a certain state.  It is run once to see which points it passes, and how
 * often; then once more for each of these places with SIGKILL there, and once more with SIGSTOP there and SIGCONT later.  After
 * each, the survivor (this process, attached all the while) must make progress, and every message must be accounted for:
 *   a message whose put returned is delivered exactly once, whole, in order;
 *   one whose put did not return is delivered whole or not at all, and certainly if it had been published;
 *   one that a child had taken but not released is delivered to the survivor, one that it had released is not;
 *   a stopped child delays only what it is holding, and finishes its operation once it goes on;
 *   of a batch, each message singly: a put_all that did not return has put those that were published and no others, and what a batch
 *   in hand had not ended comes again in order, those from the ring before those from the arena, with its attempts counted.
 * Where the survivor listens, its descriptor shows what the queue holds after the recovery of the dead, and when the child has finished.
 * At the end every point of atomics.h must have been passed by some scenario.
 *
 * Nearly all of the time goes by in waiting, so several workers, each with a queue of its own, go through the scenarios side by side. */
#include <errno.h>
#include <poll.h>
#include <points.h>
#include <ringbuf/ringbuf.h>
#include <segment.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <dirent.h>
#include <unistd.h>
#include <unity.h>

enum { MESSAGES = 512, OCCURRENCES = 3, ASSIST_AFTER_MS = 40, RING_LIMIT = 512, LARGEST = 9000, LARGE_ID = 7, ARENA_BLOCKS = 64, BATCH = 3, WORKERS = 4 };
static const int64_t patience_ns = 20000000000; /* a watchdog, not a measurement */

enum how { COUNT, KILL, STOP };

/** What parent and child tell each other. */
struct shared {
    volatile uint32_t passed[RBI_POINT_COUNT]; /* by the child, in this run */
    volatile int armed;
    volatile enum how how;
    volatile enum rbi_point point;
    volatile uint32_t occurrence;
    volatile int prelude; /* a point at which the child stops once, for the parent to do something; -1: none */
    volatile int prelude_done;
    volatile int finished;
    volatile ringbuf_status status;
    volatile uint64_t got; /* id of the message in the child's hands, 0: none */
    volatile uint8_t buffer[16384];
    /* Of a batch that the child has taken: ids and attempts, and how many of them, from the first on, it has ended or given back. */
    volatile uint64_t batch[BATCH];
    volatile uint32_t attempts[BATCH];
    volatile uint32_t ended, given_back;
    volatile bool ending, giving_back;
};
static struct shared *shared;
static char directory[64];

/** What the workers share. */
struct work {
    atomic_size_t next_scenario;
    atomic_uint cases, missed;
    _Atomic uint32_t passed_ever[RBI_POINT_COUNT];
};
static struct work *work;
static const char *only; /* scenarios with this in their names; NULL: all */

/* ---- messages: an id, a size that follows from it, and a filling that is checked ---- */

static size_t size_of_id(uint64_t id)
{
    static const size_t sizes[] = {16, 40, 48, 49, 128, 300, 700, LARGEST}; /* the last two lie in the arena, in one and three blocks */
    return sizes[id % 8];
}

static size_t fill(uint8_t *bytes, uint64_t id)
{
    size_t size = size_of_id(id);
    memcpy(bytes, &id, sizeof id);
    for (size_t i = sizeof id; i < size; i++) bytes[i] = (uint8_t)(id * 31 + i);
    return size;
}

static uint64_t check(const volatile uint8_t *bytes, size_t size)
{
    uint64_t id;
    memcpy(&id, (const void *)bytes, sizeof id);
    TEST_ASSERT_EQUAL_UINT64(size_of_id(id), size);
    for (size_t i = sizeof id; i < size; i++) TEST_ASSERT_EQUAL_UINT8((uint8_t)(id * 31 + i), bytes[i]);
    return id;
}

/* ---- the queue under test ---- */

static ringbuf *survivor;
static uint64_t next_id;
static unsigned taken_by_bystanders;
static bool reaches_nobody[MESSAGES]; /* never put, or consumed by one that died */
static uint64_t delivered[MESSAGES];
static size_t deliveries;
static uint32_t attempts_seen[MESSAGES]; /* of those that were delivered after the death of one with a batch in hand */
static pid_t bystanders[4];
static int bystander_count;
static int listened_by = -1; /* the survivor's descriptor for items, if it listens */
static int room_by = -1;     /* and the one for room */

static ringbuf_options options(void)
{
    ringbuf_options made;
    ringbuf_options_init(&made);
    made.directory = directory;
    made.capacity_bytes = 4096;
    made.arena_bytes = ARENA_BLOCKS * 4096;
    made.max_participants = 16;
    return made;
}

static ringbuf_status put(ringbuf *rb, uint64_t id, int64_t deadline_ns)
{
    uint8_t bytes[16384];
    size_t size = fill(bytes, id);
    return ringbuf_put(rb, bytes, size, deadline_ns);
}

static void expect_none(uint64_t id) { reaches_nobody[id] = true; }

/** Leave out the numbers before `id`. */
static void skip_to(uint64_t id)
{
    while (next_id < id) expect_none(next_id++);
}

static void survivor_puts(void) { TEST_ASSERT_EQUAL_INT(RINGBUF_OK, put(survivor, next_id++, 0)); }

static bool survivor_gets(int64_t deadline_ns)
{
    uint8_t bytes[16384];
    size_t size;
    ringbuf_status status = ringbuf_get(survivor, &size, bytes, sizeof bytes, deadline_ns);
    if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) return false;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, status);
    TEST_ASSERT_LESS_THAN(MESSAGES, deliveries);
    delivered[deliveries++] = check(bytes, size);
    return true;
}

/* ---- states ---- */

static void leave_empty(void) {}

static void fill_partly(void)
{
    for (int i = 0; i < 3; i++) survivor_puts();
}

static void fill_up(void)
{
    while (put(survivor, next_id, 0) == RINGBUF_OK) next_id++;
    while (ringbuf_put(survivor, "padding", 0, 0) == RINGBUF_OK) {} /* not even an empty one fits now; not accounted for */
}

static void go_to_the_wrap(void)
{
    /* 32 cells: leave two before the end, so that any longer record wraps. */
    uint8_t byte = 0;
    size_t size;
    for (int i = 0; i < 30; i++) {
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_put(survivor, &byte, 1, 0));
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get(survivor, &size, &byte, 1, 0));
    }
    skip_to(5); /* 300 bytes, three cells */
    survivor_puts();
}

/** A message that was taken and given back waits behind head. */
static void return_one(void)
{
    fill_partly();
    ringbuf_message message = {.data = NULL};
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_take(survivor, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_nack(survivor, &message));
}

/* ---- the child ---- */

static void hook(enum rbi_point point)
{
    if (!shared->armed) return;
    if (shared->prelude == (int)point) {
        shared->prelude = -1;
        raise(SIGSTOP);
    }
    uint32_t times = shared->passed[point]++;
    if (shared->ending && (point == RBI_POINT_released || point == RBI_POINT_run_ended)) shared->ended++;
    if (shared->passed[RBI_POINT_letter_ended] && point == RBI_POINT_released) shared->ended++;
    if (shared->giving_back && (point == RBI_POINT_given_back || point == RBI_POINT_run_returned)) shared->given_back++;
    if (shared->how == COUNT || point != shared->point || times != shared->occurrence) return;
    if (shared->how == KILL) kill(getpid(), SIGKILL);
    else raise(SIGSTOP);
}

/* Laps are cut short where pages end, although a queue as small as this one has all its pages from the first put on. */
static bool laps_are_short;

static void shorten_laps(ringbuf *rb)
{
    rb->ring.least_lap = 1;
    rb->ring.age_shift = 63;
}

static ringbuf *attach(void)
{
    ringbuf *rb = NULL;
    ringbuf_options how = options();
    if (ringbuf_open(&rb, "q", &how) != RINGBUF_OK) _exit(3);
    if (laps_are_short) shorten_laps(rb);
    return rb;
}

static void operate_put(ringbuf *rb) { shared->status = put(rb, next_id, RINGBUF_FOREVER); }

static void operate_put_shutdown(ringbuf *rb) { operate_put(rb); }

/** As one that has waited for half a second in calls before this one, and so has its turn at the arena at once; see turn.c on notes. */
static void operate_put_in_its_turn(ringbuf *rb)
{
    const uint64_t now = (uint64_t)ringbuf_now_ns() >> 24, blocks = (size_of_id(next_id) + 4095) / 4096;
    rbi_store_total64(&rb->notes[0], UINT64_C(1) << 62 | (now & 0x3ffff) << 35 | ((now - 30) & 0x3ffff) << 17 | blocks);
    rbi_store_total32(&rb->some_notes, 1);
    operate_put(rb);
}

static void operate_get(ringbuf *rb)
{
    size_t size;
    shared->status = ringbuf_get(rb, &size, (void *)(uintptr_t)shared->buffer, sizeof shared->buffer, RINGBUF_FOREVER);
    if (shared->status == RINGBUF_OK) memcpy((void *)(uintptr_t)&shared->got, (void *)(uintptr_t)shared->buffer, 8);
}

static void operate_poll(ringbuf *rb)
{
    size_t size;
    shared->status = ringbuf_get(rb, &size, (void *)(uintptr_t)shared->buffer, sizeof shared->buffer, 0);
}

static void operate_take_and_ack(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_take(rb, &message, (void *)(uintptr_t)shared->buffer, sizeof shared->buffer, RINGBUF_FOREVER);
    if (shared->status != RINGBUF_OK) return;
    memcpy((void *)(uintptr_t)&shared->got, message.data, 8);
    shared->status = ringbuf_ack(rb, &message);
}

static void operate_take_and_nack(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_take(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_nack(rb, &message);
}

static void operate_take_and_close(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_take(rb, &message, NULL, 0, 0);
    ringbuf_close(rb);
}

static void operate_lease_and_ack(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_lease(rb, &message, (void *)(uintptr_t)shared->buffer, sizeof shared->buffer, RINGBUF_FOREVER);
    if (shared->status != RINGBUF_OK) return;
    memcpy((void *)(uintptr_t)&shared->got, message.data, 8);
    shared->status = ringbuf_ack(rb, &message);
}

static void operate_lease_and_nack(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_nack(rb, &message);
}

static void operate_lease_and_close(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_lease(rb, &message, NULL, 0, 0);
    ringbuf_close(rb);
}

static void operate_keep_and_release(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    shared->status = ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (shared->status != RINGBUF_OK) return;
    memcpy((void *)(uintptr_t)shared->buffer, message.data, message.size);
    shared->status = ringbuf_keep(rb, &message);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_release(rb, &message);
}

static void operate_reserve_and_commit(ringbuf *rb)
{
    ringbuf_reservation reservation;
    shared->status = ringbuf_reserve(rb, &reservation, LARGEST, RINGBUF_FOREVER);
    if (shared->status != RINGBUF_OK) return;
    size_t size = fill(reservation.data, next_id);
    shared->status = ringbuf_commit(rb, &reservation, size, RINGBUF_FOREVER);
}

static void operate_put_all(ringbuf *rb)
{
    static uint8_t bytes[BATCH][LARGEST];
    ringbuf_part messages[BATCH];
    for (size_t i = 0; i < BATCH; i++) messages[i] = (ringbuf_part){.data = bytes[i], .size = fill(bytes[i], next_id + i)};
    shared->status = ringbuf_put_all(rb, messages, BATCH, RINGBUF_FOREVER);
}

/** The same, each message in three parts, the first of them empty. */
static void operate_put_all_parts(ringbuf *rb)
{
    static uint8_t bytes[BATCH][LARGEST];
    ringbuf_part parts[3 * BATCH];
    size_t part_counts[BATCH];
    for (size_t i = 0; i < BATCH; i++) {
        size_t size = fill(bytes[i], next_id + i);
        part_counts[i] = 3;
        parts[3 * i] = (ringbuf_part){.data = NULL, .size = 0};
        parts[3 * i + 1] = (ringbuf_part){.data = bytes[i], .size = 9};
        parts[3 * i + 2] = (ringbuf_part){.data = bytes[i] + 9, .size = size - 9};
    }
    shared->status = ringbuf_put_all_parts(rb, parts, part_counts, BATCH, RINGBUF_FOREVER);
}

static bool puts_a_batch(void (*operate)(ringbuf *)) { return operate == operate_put_all || operate == operate_put_all_parts; }

/** Take up to BATCH messages and note which; the largest are read where they lie.  Returns how many. */
static size_t take_batch(ringbuf *rb, ringbuf_message *messages)
{
    size_t count;
    shared->status = ringbuf_take_many(rb, messages, &count, BATCH, SIZE_MAX, (void *)(uintptr_t)shared->buffer, 1000, RINGBUF_FOREVER);
    for (size_t i = 0; i < count; i++) {
        shared->attempts[i] = messages[i].attempts;
        if (messages[i].size >= 8) memcpy((void *)(uintptr_t)&shared->batch[i], messages[i].data, 8);
    }
    return count;
}

static void operate_take_many_and_ack_all(ringbuf *rb)
{
    ringbuf_message messages[BATCH];
    size_t count = take_batch(rb, messages);
    if (shared->status != RINGBUF_OK) return;
    shared->ending = true;
    shared->status = ringbuf_ack_all(rb, messages, count);
    shared->ending = false;
}

static void operate_take_many_and_return_all(ringbuf *rb)
{
    ringbuf_message messages[BATCH];
    size_t count = take_batch(rb, messages);
    if (shared->status != RINGBUF_OK) return;
    shared->giving_back = true;
    shared->status = ringbuf_return_all(rb, messages, count);
    shared->giving_back = false;
}

static void operate_take_many_and_close(ringbuf *rb)
{
    ringbuf_message messages[BATCH];
    take_batch(rb, messages);
    ringbuf_close(rb);
}

static void operate_reserve_and_abort(ringbuf *rb)
{
    ringbuf_reservation reservation;
    shared->status = ringbuf_reserve(rb, &reservation, LARGEST, RINGBUF_FOREVER);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_abort(rb, &reservation);
}

/** Everything that is free has been idle for long enough. */
static void operate_get_and_trim(ringbuf *rb)
{
    rb->idle_s = 0;
    operate_get(rb);
}

/** The first message has been taken as often as this queue allows. */
static void operate_bury_and_get(ringbuf *rb)
{
    rb->stamp.max_attempts = 1;
    memcpy(rb->stamp.dead_letter, "dead", sizeof "dead");
    operate_get(rb);
}

static void operate_close(ringbuf *rb)
{
    ringbuf_close(rb);
    shared->status = RINGBUF_OK;
}

static void operate_unlink(ringbuf *rb) { shared->status = ringbuf_unlink(rb); }

static void operate_recover(ringbuf *rb)
{
    uint64_t recovered;
    shared->status = ringbuf_recover(rb, &recovered);
}

static void operate_attach(ringbuf *rb)
{
    (void)rb;
    ringbuf_options how = options();
    ringbuf *attached = NULL;
    shared->status = ringbuf_open(&attached, "q", &how);
    ringbuf_free(attached);
}

static void operate_create(ringbuf *rb)
{
    (void)rb;
    ringbuf_options how = options();
    ringbuf *created = NULL;
    shared->status = ringbuf_create(&created, "q", &how);
    ringbuf_free(created);
}

/* In the place of the platform's (CMakeLists.txt): a file system that has no files without a name. */
ringbuf_status __real_rbi_open_unnamed(rbi_fd *fd, const char *where, uint32_t permissions);
ringbuf_status __wrap_rbi_open_unnamed(rbi_fd *fd, const char *where, uint32_t permissions);
static bool has_no_unnamed_files;

ringbuf_status __wrap_rbi_open_unnamed(rbi_fd *fd, const char *where, uint32_t permissions)
{
    return has_no_unnamed_files ? RINGBUF_E_NO_DIRECTORY : __real_rbi_open_unnamed(fd, where, permissions);
}

static void operate_create_under_a_private_name(ringbuf *rb)
{
    has_no_unnamed_files = true;
    operate_create(rb);
    has_no_unnamed_files = false;
}

static void operate_create_without_a_name(ringbuf *rb)
{
    (void)rb;
    ringbuf_options how = options();
    ringbuf *created = NULL;
    shared->status = ringbuf_create(&created, NULL, &how);
    ringbuf_free(created);
}

static void operate_shutdown(ringbuf *rb) { shared->status = ringbuf_shutdown(rb, 0); }

static void operate_task_done(ringbuf *rb) { shared->status = ringbuf_task_done(rb); }

static void operate_listen_and_close(ringbuf *rb)
{
    int fd;
    shared->status = ringbuf_items_fd(rb, &fd);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_changes_fd(rb, RINGBUF_DONE, &fd);
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_pass_on(rb);
    ringbuf_close(rb);
}

/** Wait for room by a descriptor only. */
static void operate_put_by_descriptor(ringbuf *rb)
{
    struct pollfd polled = {.events = POLLIN};
    for (;;) {
        shared->status = ringbuf_changes_fd(rb, RINGBUF_ROOM, &polled.fd);
        if (shared->status == RINGBUF_OK) shared->status = put(rb, next_id, 0);
        if (shared->status != RINGBUF_E_TIMEOUT) break;
        poll(&polled, 1, 100);
    }
    if (shared->status == RINGBUF_OK) shared->status = ringbuf_pass_on(rb);
}

/** Wait for a message by a descriptor only. */
static void operate_get_by_descriptor(ringbuf *rb)
{
    struct pollfd polled = {.events = POLLIN};
    do {
        uint64_t recovered;
        shared->status = ringbuf_items_fd(rb, &polled.fd);
        if (shared->status != RINGBUF_OK) return;
        if (poll(&polled, 1, 100) == 0) ringbuf_recover(rb, &recovered);
        operate_poll(rb);
    } while (shared->status == RINGBUF_E_TIMEOUT);
    if (shared->status == RINGBUF_OK) memcpy((void *)(uintptr_t)&shared->got, (void *)(uintptr_t)shared->buffer, 8);
}

/* ---- scenarios ---- */

enum role {
    PUTS = 1,
    GETS = 2,
    TAKES = 4,
    ENDS = 8, /* the queue is shut down or gone afterwards */
    ALONE = 16,
    LEASES = 32, /* with GETS: what it gets is moved into the arena first */
    BATCHES = 64, /* with GETS or TAKES: several at once */
    MAKES_ROOM = 128,
};

struct scenario {
    const char *name;
    void (*arrange)(void);
    void (*operate)(ringbuf *rb);
    unsigned role;
    int prelude;              /* the point at which the child stops for ... */
    void (*at_prelude)(void); /* ... this */
    void (*assist)(void);     /* done when the child neither ends nor dies: it is waiting for us */
};

static void wait_for_stop(pid_t child)
{
    int state;
    TEST_ASSERT_EQUAL_INT(child, waitpid(child, &state, WUNTRACED));
    TEST_ASSERT_TRUE_MESSAGE(WIFSTOPPED(state), "the bystander ended instead of stopping");
}

/** A process that ends up at a point, dead or stopped, with what it then holds. */
static void add_bystander(void (*operate)(ringbuf *), enum rbi_point point, enum how how)
{
    taken_by_bystanders += operate != operate_put && operate != operate_reserve_and_commit && operate != operate_listen_and_close;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also if it is stopped */
        rbi_point_hook = hook;
        ringbuf *rb = attach();
        memset((void *)(uintptr_t)shared->passed, 0, sizeof shared->passed);
        shared->how = how;
        shared->point = point;
        shared->occurrence = 0;
        shared->prelude = -1;
        shared->armed = 1;
        operate(rb);
        _exit(4);
    }
    int state;
    if (how == KILL) {
        TEST_ASSERT_EQUAL_INT(child, waitpid(child, &state, 0));
        TEST_ASSERT_TRUE(WIFSIGNALED(state));
    } else {
        wait_for_stop(child);
        bystanders[bystander_count++] = child;
    }
    shared->armed = 0;
}

static void leave_a_dead_taker_and_a_dead_claimer(void)
{
    fill_partly();
    add_bystander(operate_take_and_nack, RBI_POINT_taken, KILL);
    add_bystander(operate_put, RBI_POINT_claimed, KILL);
    expect_none(next_id++);
    survivor_puts();
}

static void leave_a_stopped_claimer(void)
{
    add_bystander(operate_put, RBI_POINT_claimed, STOP); /* it is killed in the end */
    expect_none(next_id++);
    survivor_puts();
}

/** The next message that the child puts is a large one. */
static void be_about_to_put_a_large_one(void)
{
    fill_partly();
    skip_to(LARGE_ID);
}

static void skip_to_a_large_one(void) { skip_to(LARGE_ID); }

/** A large message that was taken and given back, and small ones behind it. */
static void return_a_large_one(void)
{
    skip_to(LARGE_ID);
    survivor_puts();
    ringbuf_message message;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_take(survivor, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_nack(survivor, &message));
    skip_to(LARGE_ID + 1);
    survivor_puts();
    survivor_puts();
}

static void be_about_to_get_a_large_one(void)
{
    skip_to(LARGE_ID);
    fill_partly();
}

static ringbuf_reservation all_of_the_arena;

static void fill_the_arena(void)
{
    be_about_to_put_a_large_one();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_reserve(survivor, &all_of_the_arena, (ARENA_BLOCKS - 2) * 4096, 0));
}

/** A batch of a short and a long run: room for the first of them only. */
static void fill_the_arena_but_for_one_run(void)
{
    fill_partly();
    skip_to(LARGE_ID - 1);
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_reserve(survivor, &all_of_the_arena, (ARENA_BLOCKS - 2) * 4096, 0));
}

static void make_room_in_the_arena(void)
{
    if (all_of_the_arena.data) TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_abort(survivor, &all_of_the_arena));
    all_of_the_arena.data = NULL;
}

/** A message that was leased and given back waits in the arena. */
static void return_a_lease(void)
{
    fill_partly();
    ringbuf_message message = {.data = NULL};
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_lease(survivor, &message, NULL, 0, 0));
    TEST_ASSERT_EQUAL_INT(1, (int)message.in_arena);
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_nack(survivor, &message));
}

static void return_a_lease_and_get_it(void)
{
    return_a_lease();
    TEST_ASSERT_TRUE(survivor_gets(0));
}

static void return_a_lease_and_die_retaking_it(void)
{
    return_a_lease();
    add_bystander(operate_lease_and_nack, RBI_POINT_run_retaken, KILL);
}

static void end_bystanders(void);

/** Four deaths at once, in each half-done state of a run that recovery tells apart. */
static void leave_the_dead_in_the_arena(void)
{
    fill_partly();
    survivor_puts();
    add_bystander(operate_lease_and_nack, RBI_POINT_run_leased, STOP); /* a copy of 1, whose record is still taken */
    add_bystander(operate_lease_and_nack, RBI_POINT_released, STOP);   /* 2, whose record is not */
    add_bystander(operate_keep_and_release, RBI_POINT_run_kept, STOP); /* 3, consumed */
    skip_to(LARGE_ID);
    expect_none(3);
    expect_none(next_id);
    add_bystander(operate_put, RBI_POINT_run_queued, STOP);            /* its record is not published */
    next_id++;
    end_bystanders();
}

/** The same for large messages: taken but not yet leased, leased but the record not yet free, reserved. */
static void leave_the_dead_with_large_ones(void)
{
    for (int i = 0; i < 3; i++) {
        skip_to(LARGE_ID + 8 * (uint64_t)i);
        survivor_puts();
    }
    add_bystander(operate_take_and_nack, RBI_POINT_taken, STOP);
    add_bystander(operate_take_and_nack, RBI_POINT_run_leased, STOP);
    add_bystander(operate_reserve_and_commit, RBI_POINT_run_backed, STOP);
    end_bystanders();
}

static void get_one(void);
static void drain(void);

/** The ring is full of one record that its taker holds, stopped, and of free room behind it. */
static void be_stuck(void)
{
    fill_up();
    add_bystander(operate_take_and_nack, RBI_POINT_taken, STOP);
    get_one();
}

/** Puts have gone round the stuck record into another lane; consumers have not followed yet. */
static void go_round(void)
{
    be_stuck();
    while (put(survivor, next_id, 0) == RINGBUF_OK) next_id++; /* what was kept free for others */
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, put(survivor, next_id++, ringbuf_now_ns() + patience_ns));
}

static void go_round_and_empty_the_first_lane(void)
{
    uint64_t items;
    go_round(); /* the last one put is alone in the second lane */
    while (ringbuf_size(survivor, &items) == RINGBUF_OK && items > 1) {
        uint8_t bytes[16384];
        size_t size;
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get(survivor, &size, bytes, sizeof bytes, 0));
        if (size >= 8) delivered[deliveries++] = check(bytes, size);
    }
}

static void go_round_and_drain(void)
{
    uint64_t recovered;
    go_round();
    end_bystanders();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(survivor, &recovered));
    drain();
}

static void go_round_three_times_and_be_stuck(void)
{
    for (int i = 0; i < 3; i++) go_round_and_drain();
    be_stuck();
    while (put(survivor, next_id, 0) == RINGBUF_OK) next_id++;
}

/** One is stopped in lane 0 all the time; others get stuck in the other lanes, one after the other, and go on. */
static void go_round_many_times_with_one_stopped_for_ever(void)
{
    uint64_t recovered;
    go_round();
    for (int i = 0; i < 5; i++) {
        drain();
        be_stuck();
        while (put(survivor, next_id, 0) == RINGBUF_OK) next_id++;
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, put(survivor, next_id++, ringbuf_now_ns() + patience_ns));
        kill(bystanders[--bystander_count], SIGKILL);
        waitpid(bystanders[bystander_count], NULL, 0);
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(survivor, &recovered));
    }
}

static void go_past_the_claim(void)
{
    uint64_t late = next_id++;
    survivor_puts(); /* behind it */
    TEST_ASSERT_TRUE(survivor_gets(0)); /* so the claim is skipped */
    next_id = late;
}

static void go_past_the_claims(void)
{
    uint64_t late = next_id;
    next_id += BATCH;
    survivor_puts(); /* behind the first claim, before the others */
    TEST_ASSERT_TRUE(survivor_gets(0));
    next_id = late;
}

static void shut_down(void) { TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_shutdown(survivor, 0)); }

static void put_one(void)
{
    survivor_puts();
}

static void get_one(void)
{
    uint8_t bytes[16384];
    size_t size;
    /* Until there is room for a message of any size. */
    for (int i = 0; i < 8; i++)
        if (ringbuf_get(survivor, &size, bytes, sizeof bytes, 0) == RINGBUF_OK && size >= 8)
            delivered[deliveries++] = check(bytes, size);
}

static void get_one_task(void)
{
    fill_partly();
    TEST_ASSERT_TRUE(survivor_gets(0));
}

static void leave_alone(void)
{
    ringbuf_close(survivor); /* the child is the last one */
}

static void be_nobody(void)
{
    ringbuf_free(survivor);
    survivor = NULL;
}

static void return_one_and_get_it(void)
{
    return_one();
    TEST_ASSERT_TRUE(survivor_gets(0));
}

static void leave_an_unnamed_queue_of_the_dead(void)
{
    ringbuf_free(survivor);
    survivor = NULL;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        ringbuf_options how = options();
        ringbuf *created = NULL;
        if (ringbuf_create(&created, NULL, &how) != RINGBUF_OK) _exit(1);
        kill(getpid(), SIGKILL);
    }
    waitpid(child, NULL, 0);
}

static void leave_an_empty_queue_of_the_dead(void)
{
    add_bystander(operate_put, RBI_POINT_put_began, KILL);
    /* The survivor goes as if it had died, too: its entry stays. */
    pid_t keeper = fork();
    if (keeper == 0) {
        attach();
        kill(getpid(), SIGKILL);
    }
    waitpid(keeper, NULL, 0);
    add_bystander(operate_put, RBI_POINT_put_began, STOP); /* holds it while we leave */
    ringbuf_free(survivor);
    survivor = NULL;
    kill(bystanders[--bystander_count], SIGKILL);
    waitpid(bystanders[bystander_count], NULL, 0);
}

/* ---- states for batches: a batch takes the first three ---- */

static void put_from(uint64_t id, int count)
{
    skip_to(id);
    for (int i = 0; i < count; i++) survivor_puts();
}

static void put_small_ones(void) { put_from(1, 5); }
static void put_a_mix(void) { put_from(LARGE_ID - 2, 5); }                       /* ring, arena, arena; ring, ring */
static void put_a_mix_that_begins_in_the_arena(void) { put_from(LARGE_ID - 1, 5); } /* arena, arena, ring; ring, ring */

static void put_large_ones(void)
{
    for (uint64_t i = 0; i < 4; i++) put_from(LARGE_ID + 8 * i, 1);
}

static void put_across_the_wrap(void)
{
    go_to_the_wrap();
    put_from(8, 4);
}

/** Two cells before the position after which they begin anew at 0.  Nobody else is attached yet. */
static void stand_before_the_last_position(void) { rbi_ring_start_at(&survivor->ring, (uint64_t)0 - 2); }

static void put_across_the_last_position(void)
{
    stand_before_the_last_position();
    put_small_ones();
}

static void stand_before_the_last_position_and_a_mix(void)
{
    stand_before_the_last_position();
    skip_to(LARGE_ID - 2);
}

/* ---- states where pages end ---- */

/** The next record would end where pages do.  No other process is attached yet. */
static void stand_where_pages_end(void)
{
    enum { PAGES = 12 };
    laps_are_short = true;
    shorten_laps(survivor);
    rbi_store_total64(&survivor->header->lanes[0].reserved_cells, PAGES);
    rbi_ring_start_at(&survivor->ring, rbi_ring_first_position(&survivor->ring) + PAGES - 1);
}

static void put_past_a_gap(void)
{
    stand_where_pages_end();
    survivor_puts();
    TEST_ASSERT_EQUAL_UINT64(2 * rbi_ring_cells(&survivor->ring) + 1, rbi_ring_tail_position(&survivor->ring));
}

static void leave_one_that_died_at_its_gap(void)
{
    stand_where_pages_end();
    add_bystander(operate_put, RBI_POINT_began_again, KILL);
    expect_none(next_id++);
}

static void leave_one_that_is_stopped_at_its_gap(void)
{
    stand_where_pages_end();
    add_bystander(operate_put, RBI_POINT_began_again, STOP); /* it is killed in the end */
    expect_none(next_id++);
}

static void return_one_and_put_more(void)
{
    return_one();
    put_from(next_id, 2);
}

static void return_a_lease_and_put_more(void)
{
    return_a_lease();
    put_from(next_id, 2);
}

/* ---- states with a listener ---- */

/** The survivor listens for everything, and the descriptor shows what is there. */
static void begin_to_listen(void)
{
    int fd;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_changes_fd(survivor, RINGBUF_ROOM, &room_by));
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_changes_fd(survivor, RINGBUF_DONE, &fd));
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_items_fd(survivor, &listened_by));
}

static void listen_and_put_one(void)
{
    begin_to_listen();
    survivor_puts();
}

static void listen_and_put_some(void)
{
    begin_to_listen();
    fill_partly();
}

static void listen_and_fill_up(void)
{
    fill_up();
    begin_to_listen();
}

static void listen_and_fill_the_arena(void)
{
    fill_the_arena();
    begin_to_listen();
}

static void listen_and_get_one_task(void)
{
    get_one_task();
    begin_to_listen();
}

static void listen_and_get_a_large_one(void)
{
    be_about_to_get_a_large_one();
    begin_to_listen();
}

static void listen_and_return_one(void)
{
    begin_to_listen();
    return_one();
}

static void listen_and_go_round(void)
{
    begin_to_listen();
    go_round_and_empty_the_first_lane();
}

static void put_a_mix_and_listen(void)
{
    put_a_mix();
    begin_to_listen();
}

static void put_large_ones_and_listen(void)
{
    put_large_ones();
    begin_to_listen();
}

static void listen_and_leave_the_dead(void)
{
    begin_to_listen();
    leave_a_dead_taker_and_a_dead_claimer();
}

static void leave_dead_listeners(void)
{
    static const enum rbi_point deaths[] = {RBI_POINT_flag_made, RBI_POINT_flag_locked, RBI_POINT_listener_counted,
                                            RBI_POINT_listeners_set, RBI_POINT_flag_alone, RBI_POINT_flag_removed};
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) add_bystander(operate_listen_and_close, deaths[i], KILL);
    fill_partly();
}

/** Who waits for room has been told of it. */
static void check_room(unsigned role, const char *when)
{
    if (room_by < 0 || !(role & MAKES_ROOM)) return;
    struct pollfd polled = {.fd = room_by, .events = POLLIN};
    TEST_ASSERT_EQUAL_INT_MESSAGE(1, poll(&polled, 1, 0), when);
}

/** Whether the survivor's descriptor shows what is there. */
static void check_level(const char *when)
{
    if (listened_by < 0) return;
    struct pollfd polled = {.fd = listened_by, .events = POLLIN};
    ringbuf_stats stats;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get_stats(survivor, &stats));
    TEST_ASSERT_EQUAL_INT_MESSAGE(stats.items > 0 || stats.shutdown > 0, poll(&polled, 1, 0), when);
}

#define STATES(name, operate, role, ...)                                                                                   \
    {name " empty", leave_empty, operate, role, -1, NULL, ##__VA_ARGS__}, {name " partly full", fill_partly, operate, role, -1, NULL, NULL}, \
    {name " full", fill_up, operate, role, -1, NULL, get_one}, {name " at the wrap", go_to_the_wrap, operate, role, -1, NULL, NULL}

#define BATCH_STATES(name, operate, role)                                                                                   \
    {name ", empty", leave_empty, operate, role | BATCHES, -1, NULL, put_one},                                              \
    {name ", all there is", fill_partly, operate, role | BATCHES, -1, NULL, NULL},                                          \
    {name ", some of what there is", put_small_ones, operate, role | BATCHES, -1, NULL, NULL},                              \
    {name ", full", fill_up, operate, role | BATCHES, -1, NULL, NULL},                                                      \
    {name ", large ones", put_large_ones, operate, role | BATCHES, -1, NULL, NULL},                                         \
    {name ", a mix", put_a_mix, operate, role | BATCHES, -1, NULL, NULL},                                                   \
    {name ", a mix the other way round", put_a_mix_that_begins_in_the_arena, operate, role | BATCHES, -1, NULL, NULL},      \
    {name ", at the wrap", put_across_the_wrap, operate, role | BATCHES, -1, NULL, NULL},                                   \
    {name ", across the last position", put_across_the_last_position, operate, role | BATCHES, -1, NULL, NULL},             \
    {name ", first a returned one", return_one_and_put_more, operate, role | BATCHES, -1, NULL, NULL},                      \
    {name ", first a returned lease", return_a_lease_and_put_more, operate, role | BATCHES, -1, NULL, NULL}

static const struct scenario scenarios[] = {
    STATES("put", operate_put, PUTS, NULL),
    STATES("get", operate_get, GETS, put_one),
    STATES("take and ack", operate_take_and_ack, GETS, put_one),
    STATES("take and nack", operate_take_and_nack, TAKES, put_one),
    STATES("take and close", operate_take_and_close, TAKES, NULL),
    STATES("poll", operate_poll, GETS, NULL),
    STATES("lease and ack", operate_lease_and_ack, GETS | LEASES, put_one),
    STATES("lease and nack", operate_lease_and_nack, TAKES, put_one),
    STATES("lease and close", operate_lease_and_close, TAKES, NULL),
    STATES("keep and release", operate_keep_and_release, GETS | LEASES, put_one),
    STATES("reserve and commit", operate_reserve_and_commit, PUTS, NULL),
    STATES("reserve and abort", operate_reserve_and_abort, 0, NULL),
    STATES("put all", operate_put_all, PUTS, NULL),
    {"put all, large ones, too", be_about_to_put_a_large_one, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all late", leave_empty, operate_put_all, PUTS, RBI_POINT_claimed, go_past_the_claims, NULL},
    {"put all into a full arena", fill_the_arena, operate_put_all, PUTS, -1, NULL, make_room_in_the_arena},
    {"put all, all late", leave_empty, operate_put_all, PUTS, RBI_POINT_payload_written, go_past_the_claims, NULL},
    {"put all, all late, large ones, too", skip_to_a_large_one, operate_put_all, PUTS, RBI_POINT_payload_written, go_past_the_claims, NULL},
    {"put all into an arena with room for one", fill_the_arena_but_for_one_run, operate_put_all, PUTS, -1, NULL, make_room_in_the_arena},
    {"put all across the last position", stand_before_the_last_position, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all, large ones, too, across the last position", stand_before_the_last_position_and_a_mix, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all round a stopped consumer", be_stuck, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all into a shutdown", leave_empty, operate_put_all, PUTS | ENDS, RBI_POINT_claimed, shut_down, NULL},
    {"put all, large ones, too, into a shutdown", skip_to_a_large_one, operate_put_all, PUTS | ENDS, RBI_POINT_claimed, shut_down, NULL},
    {"put all in parts", be_about_to_put_a_large_one, operate_put_all_parts, PUTS, -1, NULL, NULL},
    {"put all in parts at the wrap", go_to_the_wrap, operate_put_all_parts, PUTS, -1, NULL, NULL},
    BATCH_STATES("take many and ack all", operate_take_many_and_ack_all, GETS),
    BATCH_STATES("take many and return all", operate_take_many_and_return_all, TAKES),
    {"take many and close", put_a_mix, operate_take_many_and_close, TAKES | BATCHES, -1, NULL, NULL},
    {"take many and ack all, past a stopped producer", leave_a_stopped_claimer, operate_take_many_and_ack_all, GETS | BATCHES, -1, NULL, NULL},
    {"take many and ack all, from two lanes", go_round, operate_take_many_and_ack_all, GETS | BATCHES, -1, NULL, NULL},
    {"take many and return all, from two lanes", go_round, operate_take_many_and_return_all, TAKES | BATCHES, -1, NULL, NULL},
    {"take many and ack all, after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_take_many_and_ack_all, GETS | BATCHES, -1,
     NULL, NULL},
    {"put where pages end", stand_where_pages_end, operate_put, PUTS, -1, NULL, NULL},
    {"put all where pages end", stand_where_pages_end, operate_put_all, PUTS, -1, NULL, NULL},
    {"put late where pages end", stand_where_pages_end, operate_put, PUTS, RBI_POINT_claimed, go_past_the_claim, NULL},
    {"put into a shutdown where pages end", stand_where_pages_end, operate_put_shutdown, ENDS, RBI_POINT_claimed, shut_down, NULL},
    {"put after one that died at its gap", leave_one_that_died_at_its_gap, operate_put, PUTS, -1, NULL, NULL},
    {"put beside one that is stopped at its gap", leave_one_that_is_stopped_at_its_gap, operate_put, PUTS, -1, NULL, NULL},
    {"get past a gap", put_past_a_gap, operate_get, GETS, -1, NULL, NULL},
    {"take and nack past a gap", put_past_a_gap, operate_take_and_nack, TAKES, -1, NULL, NULL},
    {"get after one that died at its gap", leave_one_that_died_at_its_gap, operate_get, GETS, -1, NULL, put_one},
    {"poll beside one that is stopped at its gap", leave_one_that_is_stopped_at_its_gap, operate_poll, GETS, -1, NULL, NULL},
    {"recover after one that died at its gap", leave_one_that_died_at_its_gap, operate_recover, 0, -1, NULL, NULL},
    {"put a large message", be_about_to_put_a_large_one, operate_put, PUTS, -1, NULL, NULL},
    {"put a large message late", skip_to_a_large_one, operate_put, PUTS, RBI_POINT_claimed, go_past_the_claim, NULL},
    {"put a large message into a full arena", fill_the_arena, operate_put, PUTS, -1, NULL, make_room_in_the_arena},
    {"put a large message in its turn", fill_the_arena, operate_put_in_its_turn, PUTS, -1, NULL, make_room_in_the_arena},
    {"reserve and commit in a full arena", fill_the_arena, operate_reserve_and_commit, PUTS, -1, NULL, make_room_in_the_arena},
    {"get a large message", be_about_to_get_a_large_one, operate_get, GETS, -1, NULL, NULL},
    {"take and nack a large message", be_about_to_get_a_large_one, operate_take_and_nack, TAKES, -1, NULL, NULL},
    {"lease and ack a large message", be_about_to_get_a_large_one, operate_lease_and_ack, GETS | LEASES, -1, NULL, NULL},
    {"keep and release a large message", be_about_to_get_a_large_one, operate_keep_and_release, GETS | LEASES, -1, NULL, NULL},
    {"give the arena's memory back", be_about_to_get_a_large_one, operate_get_and_trim, GETS, -1, NULL, NULL},
    {"get a returned lease", return_a_lease, operate_get, GETS, -1, NULL, NULL},
    {"lease a returned lease", return_a_lease, operate_lease_and_ack, GETS | LEASES, -1, NULL, NULL},
    {"get after the returned lease is gone", return_a_lease_and_get_it, operate_get, GETS, -1, NULL, NULL},
    {"get after a death in retaking", return_a_lease_and_die_retaking_it, operate_get, GETS, -1, NULL, NULL},
    {"attach after deaths in the arena", leave_the_dead_in_the_arena, operate_attach, 0, -1, NULL, NULL},
    {"get after deaths in the arena", leave_the_dead_in_the_arena, operate_get, GETS, -1, NULL, NULL},
    {"get after deaths with large messages", leave_the_dead_with_large_ones, operate_get, GETS, -1, NULL, NULL},
    {"attach after deaths with large messages", leave_the_dead_with_large_ones, operate_attach, 0, -1, NULL, NULL},
    STATES("attach and leave", operate_attach, 0, NULL),
    STATES("create what is there, and leave", operate_create, 0, NULL),
    STATES("close", operate_close, 0, NULL),
    STATES("unlink", operate_unlink, ENDS, NULL),
    {"put late", leave_empty, operate_put, PUTS, RBI_POINT_claimed, go_past_the_claim, NULL},
    {"put into a shutdown", leave_empty, operate_put_shutdown, ENDS, RBI_POINT_claimed, shut_down, NULL},
    {"get a returned message", return_one, operate_get, GETS, -1, NULL, NULL},
    {"move a dead letter and get", return_one, operate_bury_and_get, GETS, -1, NULL, NULL},
    {"move a large dead letter and get", return_a_large_one, operate_bury_and_get, GETS, -1, NULL, NULL},
    {"get after the returned ones are gone", return_one_and_get_it, operate_get, GETS, -1, NULL, NULL},
    {"put round a stopped consumer", be_stuck, operate_put, PUTS, -1, NULL, NULL},
    {"get before the lane has changed", go_round, operate_get, GETS, -1, NULL, NULL},
    {"get from the next lane", go_round_and_empty_the_first_lane, operate_get, GETS, -1, NULL, NULL},
    {"get after the lane has changed", go_round_and_drain, operate_get, GETS, -1, NULL, put_one},
    {"put into a lane used before", go_round_three_times_and_be_stuck, operate_put, PUTS, -1, NULL, NULL},
    {"get after many rounds round a stopped one", go_round_many_times_with_one_stopped_for_ever, operate_get, GETS, -1, NULL, put_one},
    {"get past a stopped producer", leave_a_stopped_claimer, operate_get, GETS, -1, NULL, NULL},
    {"get after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_get, GETS, -1, NULL, NULL},
    {"recover after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_recover, 0, -1, NULL, NULL},
    {"attach after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_attach, 0, -1, NULL, NULL},
    {"put after two deaths", leave_a_dead_taker_and_a_dead_claimer, operate_put, PUTS, -1, NULL, NULL},
    {"shutdown", fill_partly, operate_shutdown, ENDS, -1, NULL, NULL},
    {"task done", get_one_task, operate_task_done, 0, -1, NULL, NULL},
    {"put before one who listens", begin_to_listen, operate_put, PUTS, -1, NULL, NULL},
    {"put more before one who listens", listen_and_put_some, operate_put, PUTS, -1, NULL, NULL},
    {"put late before one who listens", begin_to_listen, operate_put, PUTS, RBI_POINT_claimed, go_past_the_claim, NULL},
    {"put all before one who listens", begin_to_listen, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all, large ones, too, where messages are, before one who listens", put_a_mix_and_listen, operate_put_all, PUTS, -1, NULL, NULL},
    {"put all late before one who listens", begin_to_listen, operate_put_all, PUTS, RBI_POINT_payload_written, go_past_the_claims, NULL},
    {"put all into a shutdown before one who listens", begin_to_listen, operate_put_all, PUTS | ENDS, RBI_POINT_claimed, shut_down, NULL},
    {"take many and ack all, all there is, before one who listens", listen_and_put_some, operate_take_many_and_ack_all,
     GETS | BATCHES | MAKES_ROOM, -1, NULL, NULL},
    {"take many and ack all, some of a mix, before one who listens", put_a_mix_and_listen, operate_take_many_and_ack_all,
     GETS | BATCHES | MAKES_ROOM, -1, NULL, NULL},
    {"take many and ack all, large ones, before one who listens", put_large_ones_and_listen, operate_take_many_and_ack_all,
     GETS | BATCHES | MAKES_ROOM, -1, NULL, NULL},
    {"take many and ack all before one who listens for room", listen_and_fill_up, operate_take_many_and_ack_all,
     GETS | BATCHES | MAKES_ROOM, -1, NULL, NULL},
    {"take many and return all before one who listens", listen_and_put_some, operate_take_many_and_return_all, TAKES | BATCHES, -1, NULL,
     NULL},
    {"take many and return all, some of a mix, before one who listens", put_a_mix_and_listen, operate_take_many_and_return_all,
     TAKES | BATCHES, -1, NULL, NULL},
    {"take many and close before one who listens", listen_and_put_some, operate_take_many_and_close, TAKES | BATCHES, -1, NULL, NULL},
    {"put into a full arena before one who listens", listen_and_fill_the_arena, operate_put, PUTS, -1, NULL, make_room_in_the_arena},
    {"get the last before one who listens", listen_and_put_one, operate_get, GETS, -1, NULL, NULL},
    {"get one of several before one who listens", listen_and_put_some, operate_get, GETS, -1, NULL, NULL},
    {"get a returned message before one who listens", listen_and_return_one, operate_get, GETS, -1, NULL, NULL},
    {"get from the next lane before one who listens", listen_and_go_round, operate_get, GETS, -1, NULL, NULL},
    {"get before one who listens for room", listen_and_fill_up, operate_get, GETS, -1, NULL, NULL},
    {"lease and ack before one who listens", listen_and_get_a_large_one, operate_lease_and_ack, GETS | LEASES, -1, NULL, NULL},
    {"take and nack before one who listens", listen_and_put_one, operate_take_and_nack, TAKES, -1, NULL, NULL},
    {"lease and nack before one who listens", listen_and_put_one, operate_lease_and_nack, TAKES, -1, NULL, NULL},
    {"take and close before one who listens", listen_and_put_one, operate_take_and_close, TAKES, -1, NULL, NULL},
    {"poll before one who listens", begin_to_listen, operate_poll, GETS, -1, NULL, NULL},
    {"shutdown before one who listens", begin_to_listen, operate_shutdown, ENDS, -1, NULL, NULL},
    {"task done before one who listens", listen_and_get_one_task, operate_task_done, 0, -1, NULL, NULL},
    {"recover before one who listens", listen_and_leave_the_dead, operate_recover, 0, -1, NULL, NULL},
    {"listen", leave_empty, operate_listen_and_close, 0, -1, NULL, NULL},
    {"listen where messages are", fill_partly, operate_listen_and_close, 0, -1, NULL, NULL},
    {"listen beside another one", begin_to_listen, operate_listen_and_close, 0, -1, NULL, NULL},
    {"listen after deaths of listeners", leave_dead_listeners, operate_listen_and_close, 0, -1, NULL, NULL},
    {"recover after deaths of listeners", leave_dead_listeners, operate_recover, 0, -1, NULL, NULL},
    {"put after deaths of listeners", leave_dead_listeners, operate_put, PUTS, -1, NULL, NULL},
    {"put by a descriptor", fill_up, operate_put_by_descriptor, PUTS, -1, NULL, get_one},
    {"get by a descriptor", leave_empty, operate_get_by_descriptor, GETS, -1, NULL, put_one},
    {"get by a descriptor before one who listens", begin_to_listen, operate_get_by_descriptor, GETS, -1, NULL, put_one},
    {"listen as the last", leave_alone, operate_listen_and_close, ALONE, -1, NULL, NULL},
    {"create the first", be_nobody, operate_create, ALONE, -1, NULL, NULL},
    {"create the first, under a private name", be_nobody, operate_create_under_a_private_name, ALONE, -1, NULL, NULL},
    {"create after the dead, under a private name", leave_an_empty_queue_of_the_dead, operate_create_under_a_private_name, ALONE, -1, NULL, NULL},
    {"create without a name after the dead", leave_an_unnamed_queue_of_the_dead, operate_create_without_a_name, ALONE, -1, NULL, NULL},
    {"create after the dead", leave_an_empty_queue_of_the_dead, operate_create, ALONE, -1, NULL, NULL},
    {"close as the last", leave_alone, operate_close, ALONE, -1, NULL, NULL},
    {"unlink as the last", leave_alone, operate_unlink, ALONE, -1, NULL, NULL},
};

/* ---- running one ---- */

static int files_left(void)
{
    int count = 0;
    DIR *stream = opendir(directory);
    for (struct dirent *entry; (entry = readdir(stream));) count += entry->d_name[0] != '.';
    closedir(stream);
    return count;
}

/** Start the child; returns with its wait status once it has ended, died or stopped where it should. */
static pid_t run_child(const struct scenario *scenario, enum how how, enum rbi_point point, uint32_t occurrence, int *state)
{
    int to_child[2], from_child[2];
    char byte = 0;
    TEST_ASSERT_EQUAL_INT(0, pipe(to_child));
    TEST_ASSERT_EQUAL_INT(0, pipe(from_child));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also if it is stopped */
        rbi_point_hook = hook;
        bool attaches = scenario->operate == operate_attach || scenario->operate == operate_create ||
                       scenario->operate == operate_create_under_a_private_name || scenario->operate == operate_create_without_a_name;
        ringbuf *rb = attaches ? NULL : attach();
        if (write(from_child[1], &byte, 1) != 1 || read(to_child[0], &byte, 1) != 1) _exit(5);
        shared->armed = 1;
        scenario->operate(rb);
        shared->finished = 1;
        ringbuf_free(rb);
        shared->armed = 0;
        _exit(0);
    }
    if (scenario->role & ALONE && survivor) {
        TEST_ASSERT_EQUAL_INT(1, read(from_child[0], &byte, 1)); /* it is attached: now we may leave */
        leave_alone();
    } else {
        TEST_ASSERT_EQUAL_INT(1, read(from_child[0], &byte, 1));
    }
    memset((void *)(uintptr_t)shared->passed, 0, sizeof shared->passed);
    shared->how = how;
    shared->point = point;
    shared->occurrence = occurrence;
    shared->prelude = scenario->prelude;
    shared->finished = 0;
    shared->prelude_done = 0;
    shared->status = -1;
    shared->got = 0;
    TEST_ASSERT_EQUAL_INT(1, write(to_child[1], &byte, 1));
    close(to_child[0]), close(to_child[1]), close(from_child[0]), close(from_child[1]);
    if (scenario->prelude >= 0) {
        TEST_ASSERT_EQUAL_INT(child, waitpid(child, state, WUNTRACED));
        if (WIFSIGNALED(*state) || shared->prelude >= 0) return child; /* it came to its end, or its stop, before the prelude */
        scenario->at_prelude();
        kill(child, SIGCONT);
        shared->prelude_done = 1;
    }
    for (int waited_ms = 0; waitpid(child, state, WNOHANG | WUNTRACED) == 0; waited_ms++) {
        if (waited_ms == ASSIST_AFTER_MS && scenario->assist) scenario->assist();
        TEST_ASSERT_LESS_THAN_MESSAGE(20000, waited_ms, "the child hangs");
        usleep(1000);
    }
    return child;
}

/** The survivor goes on: gets what there is, puts one more, gets that one. */
static void survivor_makes_progress(void)
{
    const uint64_t last = MESSAGES - 1;
    make_room_in_the_arena();
    int64_t deadline_ns = ringbuf_now_ns() + patience_ns;
    for (;;) {
        ringbuf_status status = put(survivor, last, 0);
        if (status == RINGBUF_OK) break;
        if (status != RINGBUF_E_ARENA_FULL) TEST_ASSERT_EQUAL_INT(RINGBUF_E_TIMEOUT, status);
        TEST_ASSERT_TRUE_MESSAGE(ringbuf_now_ns() < deadline_ns, "the survivor cannot put");
        uint8_t bytes[16384];
        size_t size;
        if (ringbuf_get(survivor, &size, bytes, sizeof bytes, 0) == RINGBUF_OK && size >= 8)
            delivered[deliveries++] = check(bytes, size);
    }
    for (;;) {
        uint8_t bytes[16384];
        size_t size;
        TEST_ASSERT_EQUAL_INT_MESSAGE(RINGBUF_OK, ringbuf_get(survivor, &size, bytes, sizeof bytes, deadline_ns),
                                      "the survivor cannot get");
        if (size < 8) continue; /* padding */
        uint64_t id = check(bytes, size);
        if (id == last) return;
        TEST_ASSERT_LESS_THAN(MESSAGES, deliveries);
        delivered[deliveries++] = id;
    }
}

static void drain(void)
{
    uint8_t bytes[16384];
    size_t size;
    for (;;) {
        ringbuf_status status = ringbuf_get(survivor, &size, bytes, sizeof bytes, 0);
        if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) return;
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, status);
        if (size < 8) continue;
        TEST_ASSERT_LESS_THAN(MESSAGES, deliveries);
        delivered[deliveries++] = check(bytes, size);
    }
}

static unsigned times_delivered(uint64_t id)
{
    unsigned times = 0;
    for (size_t i = 0; i < deliveries; i++) times += delivered[i] == id;
    return times;
}

/** Whether the child has consumed the message that it had in its hands. */
static bool consumed(const struct scenario *scenario)
{
    bool in_arena = shared->passed[RBI_POINT_run_leased] || shared->passed[RBI_POINT_run_retaken];
    if (scenario->operate == operate_keep_and_release) return shared->passed[RBI_POINT_run_kept];
    if (shared->passed[RBI_POINT_letter_ended]) return shared->ended; /* after the dead letter, which comes first */
    return shared->passed[in_arena ? RBI_POINT_run_ended : RBI_POINT_released];
}

/** Whether the child, which takes several, has consumed this one. */
static bool ended_in_a_batch(uint64_t id)
{
    for (uint32_t i = 0; i < BATCH && i < shared->ended; i++)
        if (shared->batch[i] == id) return true;
    return false;
}

/** Every message: put by the survivor (before next_id) or by the child (next_id). */
static void account(const struct scenario *scenario, bool claimer_stopped)
{
    uint64_t childs = 0;
    memcpy(&childs, (void *)(uintptr_t)shared->buffer, 8);
    for (uint64_t id = 1; id < next_id; id++) {
        if (reaches_nobody[id]) {
            TEST_ASSERT_EQUAL_UINT_MESSAGE(0, times_delivered(id), "a message that reaches nobody");
            continue;
        }
        bool gone = scenario->role & BATCHES ? ended_in_a_batch(id) : scenario->role & GETS && childs == id && consumed(scenario);
        unsigned expected = gone ? 0 : 1;
        TEST_ASSERT_EQUAL_UINT_MESSAGE(expected, times_delivered(id), "a message of the survivor");
    }
    if (scenario->role & PUTS) {
        uint32_t published = shared->passed[RBI_POINT_published] + shared->passed[RBI_POINT_published_late];
        uint32_t wanted = puts_a_batch(scenario->operate) ? BATCH : 1;
        if (shared->finished && shared->status == RINGBUF_OK) TEST_ASSERT_EQUAL_UINT32(wanted, published);
        if (shared->finished && scenario->role & ENDS) TEST_ASSERT_EQUAL_UINT32(shared->status == RINGBUF_OK ? wanted : 0, published);
        else if (shared->finished) TEST_ASSERT_EQUAL_INT(RINGBUF_OK, shared->status);
        /* None of them is a message before all are claimed. */
        if (published) TEST_ASSERT_GREATER_OR_EQUAL_UINT32(wanted, shared->passed[RBI_POINT_claimed]);
        for (uint32_t i = 0; i < wanted; i++)
            TEST_ASSERT_EQUAL_UINT_MESSAGE(i < published, times_delivered(next_id + i), "the child's message");
    }
    /* In order: only a late publication, or the messages that were in the hands of a child, may come after younger ones. */
    if (scenario->at_prelude || claimer_stopped || shared->how == STOP) return;
    unsigned in_hands = taken_by_bystanders + (scenario->role & BATCHES ? BATCH : scenario->role & (GETS | TAKES) ? 1 : 0);
    uint64_t last = 0;
    for (size_t i = 0; i < deliveries; i++) {
        if (delivered[i] > last) {
            last = delivered[i];
        } else {
            TEST_ASSERT_NOT_EQUAL_MESSAGE(0, in_hands, "out of order");
            in_hands--;
        }
    }
}

/** Take everything out of the dead-letter queue, if there is one, and remove it.  Returns how often this message was in it. */
static unsigned times_in_dead_letters(uint64_t id)
{
    uint8_t bytes[16384];
    size_t size;
    unsigned times = 0;
    ringbuf *dead;
    ringbuf_options with = options();
    ringbuf_status status = ringbuf_open(&dead, "dead", &with);
    if (status == RINGBUF_E_NOT_FOUND) return 0;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, status);
    while ((status = ringbuf_get(dead, &size, bytes, sizeof bytes, 0)) == RINGBUF_OK) {
        TEST_ASSERT_EQUAL_UINT64(id, check(bytes, size));
        times++;
    }
    TEST_ASSERT_EQUAL_INT(RINGBUF_E_TIMEOUT, status);
    ringbuf_free(dead); /* and it goes, for it is empty */
    return times;
}

/** The message that was to be moved is in one of the queues; in both, if its mover died, or was about to end it here. */
static void account_for_the_dead_letter(const struct scenario *scenario)
{
    const uint64_t id = scenario->arrange == return_one ? 1 : LARGE_ID;
    const unsigned here = times_delivered(id), there = times_in_dead_letters(id);
    TEST_ASSERT_LESS_OR_EQUAL_UINT_MESSAGE(1, here, "a dead letter is twice in its queue");
    TEST_ASSERT_LESS_OR_EQUAL_UINT_MESSAGE(1, there, "a dead letter was moved twice");
    TEST_ASSERT_GREATER_OR_EQUAL_UINT_MESSAGE(1, here + there, "a dead letter is lost");
    if (shared->passed[RBI_POINT_letter_ended]) TEST_ASSERT_EQUAL_UINT_MESSAGE(0, here, "a dead letter was moved, and is still here");
    if (!shared->passed[RBI_POINT_published]) TEST_ASSERT_EQUAL_UINT_MESSAGE(0, there, "a dead letter was moved before it was");
    expect_none(id);
    if (here) /* as if it had never come */
        for (size_t i = 0; i < deliveries; i++)
            if (delivered[i] == id) memmove(&delivered[i], &delivered[i + 1], (--deliveries - i) * sizeof *delivered);
}

/** The survivor takes and ends everything, and notes how often each message had been taken. */
static void drain_and_note_attempts(void)
{
    uint8_t bytes[16384];
    ringbuf_message message;
    while (ringbuf_take(survivor, &message, bytes, sizeof bytes, 0) == RINGBUF_OK) {
        if (message.size >= 8) {
            TEST_ASSERT_LESS_THAN(MESSAGES, deliveries);
            uint64_t id = check(message.data, message.size);
            attempts_seen[id] = message.attempts;
            delivered[deliveries++] = id;
        }
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_ack(survivor, &message));
    }
}

/** Of a batch whose taker died, everything has been delivered to the survivor: what was given back counts as untouched, what was not
 *  as one attempt more; and the one that it was just giving back as the one or the other. */
static void check_attempts_of_the_batch(void)
{
    for (uint32_t i = 0; i < BATCH; i++) {
        uint64_t id = shared->batch[i];
        if (id == 0 || ended_in_a_batch(id)) continue;
        bool just_then = shared->giving_back && i == shared->given_back;
        uint32_t expected = shared->attempts[i] + (i < shared->given_back ? 0 : 1);
        if (just_then && attempts_seen[id] + 1 == expected) continue;
        TEST_ASSERT_EQUAL_UINT32_MESSAGE(expected, attempts_seen[id], "the attempts of one of a batch");
    }
}

/** Of what lies in the ring, and of what lies in the arena, each in the order of the puts.  A large message whose record had not been
 *  released when its taker died is one of the ring. */
static void check_order_of_a_batch(const struct scenario *scenario, enum how how)
{
    static const enum rbi_point before_the_release[] = {RBI_POINT_record_owned, RBI_POINT_taken, RBI_POINT_head_moved, RBI_POINT_run_leased,
                                                        RBI_POINT_attempt_counted};
    bool one_is_of_the_ring = false;
    for (size_t i = 0; how == KILL && i < sizeof before_the_release / sizeof *before_the_release; i++)
        one_is_of_the_ring |= shared->point == before_the_release[i];
    uint64_t last_small = 0, last_large = 0;
    for (size_t i = 0; i < deliveries; i++) {
        bool was_leased = delivered[i] == 1 && scenario->arrange == return_a_lease_and_put_more;
        bool large = was_leased || size_of_id(delivered[i]) > RING_LIMIT;
        uint64_t *last = large ? &last_large : &last_small;
        if (delivered[i] < *last) {
            TEST_ASSERT_TRUE_MESSAGE(large && one_is_of_the_ring, "a batch came back out of order");
            one_is_of_the_ring = false;
        }
        *last = delivered[i];
    }
}

static void end_bystanders(void)
{
    while (bystander_count) {
        kill(bystanders[--bystander_count], SIGKILL);
        waitpid(bystanders[bystander_count], NULL, 0);
    }
}

static void run(const struct scenario *scenario, enum how how, enum rbi_point point, uint32_t occurrence)
{
    char label[128];
    snprintf(label, sizeof label, "%s, %s at %s #%u", scenario->name, how == KILL ? "killed" : how == STOP ? "stopped" : "whole",
             rbi_point_name(point), occurrence);
    Unity.CurrentDetail1 = label;

    ringbuf_options with = options();
    memset(shared, 0, sizeof *shared);
    deliveries = 0;
    next_id = 1;
    memset(reaches_nobody, 0, sizeof reaches_nobody);
    all_of_the_arena.data = NULL;
    memset(attempts_seen, 0, sizeof attempts_seen);
    taken_by_bystanders = 0;
    laps_are_short = false;
    listened_by = room_by = -1;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_create(&survivor, "q", &with));
    if (scenario->arrange != leave_alone) scenario->arrange();
    memset((void *)(uintptr_t)shared->buffer, 0, sizeof shared->buffer);
    bool claimer_stopped = scenario->arrange == leave_a_stopped_claimer;

    int state = 0;
    pid_t child = run_child(scenario, how, point, occurrence, &state);
    /* A prelude message lies behind the child's. */
    uint64_t behind = scenario->at_prelude == go_past_the_claim && shared->prelude_done ? next_id + 1 : 0;
    if (scenario->at_prelude == go_past_the_claims && shared->prelude_done) behind = next_id + BATCH;

    /* How often one who waits looks, sleeps and reclaims depends on time; and beside one who assists, also what it meets half done: then it
     * went whole past this occurrence. */
    bool by_time = occurrence > 0 || scenario->assist || scenario->arrange == be_stuck ||
                   scenario->arrange == go_round_three_times_and_be_stuck;
    if (how != COUNT && by_time && WIFEXITED(state) && WEXITSTATUS(state) == 0) {
        how = COUNT;
        atomic_fetch_add(&work->missed, 1); /* it did not come to its point again */
    }
    if (how == COUNT) {
        TEST_ASSERT_TRUE_MESSAGE(WIFEXITED(state) && WEXITSTATUS(state) == 0, "the operation failed unhurt");
        TEST_ASSERT_TRUE(shared->finished);
        for (int i = 0; i < RBI_POINT_COUNT; i++) atomic_fetch_add(&work->passed_ever[i], shared->passed[i]);
    } else if (how == KILL) {
        TEST_ASSERT_TRUE_MESSAGE(WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL, "the child did not come to the point");
    } else {
        TEST_ASSERT_TRUE_MESSAGE(WIFSTOPPED(state), "the child did not come to the point");
    }

    uint64_t recovered;
    if (how == KILL && listened_by >= 0) {
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(survivor, &recovered));
        check_level("the descriptor is wrong after the recovery");
        check_room(scenario->role, "nobody was told of the room that a recovery has made");
    }
    if (how == COUNT) {
        check_level("the descriptor is wrong after the operation");
        check_room(scenario->role, "nobody was told of the room that the operation has made");
    }
    bool all_is_back = scenario->role & BATCHES && bystander_count == 0 && taken_by_bystanders == 0;
    if (how == KILL && all_is_back) {
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(survivor, &recovered));
        drain_and_note_attempts();
        check_attempts_of_the_batch();
    }
    if (scenario->role & ALONE) {
        if (how == STOP) {
            kill(child, SIGCONT);
            TEST_ASSERT_EQUAL_INT(child, waitpid(child, &state, 0));
            TEST_ASSERT_TRUE(WIFEXITED(state));
        }
        ringbuf_free(survivor);
        /* The next one to come finds no queue, or none that is in the way. */
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_create(&survivor, "q", &with));
        survivor_makes_progress();
        /* What has no name that anybody knows goes with a collection. */
        TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_collect(&recovered, &with));
    } else if (!(scenario->role & ENDS)) {
        survivor_makes_progress();
    }
    if (how == STOP && !(scenario->role & ALONE)) {
        kill(child, SIGCONT);
        /* Its wait may have been for what the survivor has taken away meanwhile. */
        for (int waited_ms = 0; waitpid(child, &state, WNOHANG) == 0; waited_ms++) {
            if (scenario->prelude >= 0 && waited_ms % 50 == 49) kill(child, SIGCONT); /* it may have come to its prelude only now */
            if (waited_ms % 200 == 100 && scenario->role & (GETS | TAKES)) survivor_puts();
            TEST_ASSERT_LESS_THAN_MESSAGE(20000, waited_ms, "the child hangs after it went on");
            usleep(1000);
        }
        TEST_ASSERT_TRUE_MESSAGE(WIFEXITED(state) && WEXITSTATUS(state) == 0 && shared->finished, "the child did not finish");
    }
    if (how == STOP && bystander_count == 0) check_level("the descriptor is wrong after the operation went on");
    end_bystanders();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_recover(survivor, &recovered));
    drain();
    check_level("the descriptor is wrong when all is drained");
    if (behind) TEST_ASSERT_EQUAL_UINT(1, times_delivered(behind));
    if (scenario->operate == operate_bury_and_get) account_for_the_dead_letter(scenario);
    account(scenario, claimer_stopped);
    if (how != STOP && all_is_back) check_order_of_a_batch(scenario, how);
    uint64_t items = 99;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_size(survivor, &items));
    TEST_ASSERT_EQUAL_UINT64(0, items);
    ringbuf_stats stats;
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_get_stats(survivor, &stats));
    TEST_ASSERT_EQUAL_UINT64(1, stats.participants);
    ringbuf_findings findings;
    make_room_in_the_arena();
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, ringbuf_check(survivor, &findings));
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, findings.runs + findings.orphaned_blocks + findings.dangling_messages, "left in the arena");
    ringbuf_free(survivor);
    survivor = NULL;
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, files_left(), "something is left in the directory");
    Unity.CurrentDetail1 = NULL;
}

/** Go through scenarios that no other worker has gone through. */
static void run_some(enum how how)
{
    const size_t count = sizeof scenarios / sizeof *scenarios;
    for (size_t s; (s = atomic_fetch_add(&work->next_scenario, 1)) < count;) {
        const struct scenario *scenario = &scenarios[s];
        if (only && !strstr(scenario->name, only)) continue;
        run(scenario, COUNT, RBI_POINT_put_began, 0);
        uint32_t passed[RBI_POINT_COUNT];
        memcpy(passed, (void *)(uintptr_t)shared->passed, sizeof passed);
        for (int point = 0; point < RBI_POINT_COUNT; point++)
            for (uint32_t occurrence = 0; occurrence < passed[point] && occurrence < OCCURRENCES; occurrence++) {
                atomic_fetch_add(&work->cases, 1);
                run(scenario, how, (enum rbi_point)point, occurrence);
            }
    }
}

/** One worker, in a process and with a directory of its own.  Exits with 0 if all went well; what did not is printed. */
static _Noreturn void be_a_worker(enum how how)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(directory, sizeof directory, "/dev/shm/ringbuf-crash-%d", (int)getpid());
    if (mkdir(directory, 0700) != 0) _exit(2);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) _exit(2);
    volatile bool done = false;
    if (TEST_PROTECT()) {
        run_some(how);
        done = true;
    }
    end_bystanders();
    ringbuf_free(survivor);
    survivor = NULL;
    if (rmdir(directory) != 0 && done) {
        printf("left in %s: FAIL\n", directory);
        done = false;
    }
    fflush(NULL);
    _exit(done ? 0 : 1);
}

static void run_everywhere(enum how how)
{
    pid_t workers[WORKERS];
    atomic_store(&work->next_scenario, 0);
    atomic_store(&work->cases, 0);
    atomic_store(&work->missed, 0);
    fflush(NULL);
    for (int i = 0; i < WORKERS; i++)
        if ((workers[i] = fork()) == 0) be_a_worker(how);
    int failed = 0;
    for (int i = 0; i < WORKERS; i++) {
        int state;
        TEST_ASSERT_EQUAL_INT(workers[i], waitpid(workers[i], &state, 0));
        failed += !WIFEXITED(state) || WEXITSTATUS(state) != 0;
    }
    unsigned cases = atomic_load(&work->cases), missed = atomic_load(&work->missed);
    printf("%zu scenarios, %u cases of %s, %u of them not met a second time\n", sizeof scenarios / sizeof *scenarios, cases,
           how == KILL ? "SIGKILL" : "SIGSTOP", missed);
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, failed, "workers failed; each has printed why");
    TEST_ASSERT_LESS_THAN_UINT(cases / 50, missed);
}

static void test_a_death_at_any_point_of_any_operation_harms_nobody(void) { run_everywhere(KILL); }

static void test_a_stop_at_any_point_of_any_operation_delays_nobody_and_loses_nothing(void) { run_everywhere(STOP); }

static void test_every_point_was_passed_by_some_operation(void)
{
    for (int point = 0; point < RBI_POINT_COUNT; point++)
        TEST_ASSERT_NOT_EQUAL_MESSAGE(0, atomic_load(&work->passed_ever[point]), rbi_point_name((enum rbi_point)point));
}

void setUp(void) {}

void tearDown(void) {}

/** test_crash [TEXT]: with TEXT only the scenarios that have it in their names, and not the question whether every point was passed. */
int main(int argc, char **argv)
{
    if (argc > 1) only = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    work = mmap(NULL, sizeof *work, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (work == MAP_FAILED) return 1;
    UNITY_BEGIN();
    RUN_TEST(test_a_death_at_any_point_of_any_operation_harms_nobody);
    RUN_TEST(test_a_stop_at_any_point_of_any_operation_delays_nobody_and_loses_nothing);
    if (!only) RUN_TEST(test_every_point_was_passed_by_some_operation);
    return UNITY_END();
}
