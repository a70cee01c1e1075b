/* test_surroundings.c — what the world around a queue does to it.
 *
 * Long stops.  test_crash.c stops a child at every point for as long as the survivor needs for a few calls.  Here it stays stopped for
 * longer than anything in the library waits: 200 ms, where a stuck record is gone round after 50 ms and sleepers look for the dead every
 * 100 ms; idle memory of the arena, which is looked for every 2 s and kept for 5 s, counts as idle at once.  With SAGE_QUEUE_LONG
 * (.ci/surroundings) it is 7 s, and idle memory is kept as ever.  So that this takes no hours, every case has a queue of its own, and many
 * children are stopped at the same time.  Meanwhile a thread of ours puts and gets on each queue: all that it puts
 * must come out, in order, while the child is stopped.  Then the child goes on, and must end its operation with the truth.
 *
 * Deletions, limits on the size of files, and thousands of handles and children are below. */
#define _GNU_SOURCE
#include <points.h>
#include <segment.h>
#include "support.h"

#include <pthread.h>
#include <sys/resource.h>

enum { LONGEST_WAIT_S = 30 }; /* a watchdog, not a measurement */

static int64_t give_up_ns(void) { return ringbuf_now_ns() + LONGEST_WAIT_S * INT64_C(1000) * MILLISECOND; }

static bool is_long(void) { return getenv("SAGE_QUEUE_LONG") != NULL; }

/* ---- long stops: cases ---- */

enum { AT_ONCE = 40, ROUNDS = 64 /* several laps of a ring */, IDS = 1 << 16, BATCH = 3, LARGE = 9000, CASES = 2048 };
#define CHILD_ID (UINT64_C(1) << 40) /* messages that a child puts have numbers from here on */

/** What a child and we tell each other. */
struct seat {
    stage go;
    volatile int armed;
    volatile int point; /* to stop at, or -1 */
    volatile uint8_t passed[RBI_POINT_COUNT];
    volatile int finished;
    volatile ringbuf_status status;
    volatile uint64_t got; /* what it has consumed; 0: nothing */
    volatile uint32_t put; /* how many messages are put if the status is OK */
};

struct operation {
    const char *name;
    enum { SOME, NONE, FULL, WITH_A_DEAD_ONE } before;
    void (*operate)(ringbuf *rb, struct seat *seat);
    unsigned gives_back; /* how many messages it may take and give back: so many may come late */
};

static struct seat *seats; /* AT_ONCE of them */
static struct seat *mine;  /* in a child */

static void hook(enum rbi_point point)
{
    if (!mine->armed) return;
    bool first = !mine->passed[point];
    mine->passed[point] = 1;
    if (first && mine->point == (int)point) raise(SIGSTOP);
}

static size_t fill(uint8_t *bytes, uint64_t id, size_t size)
{
    memcpy(bytes, &id, sizeof id);
    for (size_t i = sizeof id; i < size; i++) bytes[i] = (uint8_t)(id * 31 + i);
    return size;
}

static size_t size_of(uint64_t id)
{
    static const size_t sizes[] = {16, 40, 300, 8, 700, 49, 128, 8, LARGE, 16, 200, 60};
    return sizes[id % 12];
}

/** The message's number; 0 if it is damaged. */
static uint64_t id_of(const uint8_t *bytes, size_t size)
{
    uint64_t id = 0;
    if (size < sizeof id) return 0;
    memcpy(&id, bytes, sizeof id);
    for (size_t i = sizeof id; i < size; i++)
        if (bytes[i] != (uint8_t)(id * 31 + i)) return 0;
    return id;
}

/* ---- what children do ---- */

static void put_of(ringbuf *rb, struct seat *seat, size_t size, int64_t deadline_ns)
{
    uint8_t bytes[LARGE];
    seat->put = 1;
    seat->status = ringbuf_put(rb, bytes, fill(bytes, CHILD_ID, size), deadline_ns);
}

static void operate_put(ringbuf *rb, struct seat *seat) { put_of(rb, seat, 300, RINGBUF_FOREVER); }
static void operate_put_large(ringbuf *rb, struct seat *seat) { put_of(rb, seat, LARGE, RINGBUF_FOREVER); }
static void operate_put_shortly(ringbuf *rb, struct seat *seat) { put_of(rb, seat, 300, ringbuf_now_ns() + 20 * MILLISECOND); }

static void get_until(ringbuf *rb, struct seat *seat, int64_t deadline_ns)
{
    uint8_t bytes[LARGE];
    size_t size;
    seat->status = ringbuf_get(rb, &size, bytes, sizeof bytes, deadline_ns);
    if (seat->status == RINGBUF_OK && !(seat->got = id_of(bytes, size))) _exit(6);
}

static void operate_get(ringbuf *rb, struct seat *seat) { get_until(rb, seat, RINGBUF_FOREVER); }
static void operate_get_shortly(ringbuf *rb, struct seat *seat) { get_until(rb, seat, ringbuf_now_ns() + 20 * MILLISECOND); }

static void operate_get_and_trim(ringbuf *rb, struct seat *seat)
{
    rb->idle_s = 0;
    get_until(rb, seat, RINGBUF_FOREVER);
}

static void operate_take_and_nack(ringbuf *rb, struct seat *seat)
{
    ringbuf_message message = {.data = NULL};
    seat->status = ringbuf_take(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (seat->status == RINGBUF_OK) seat->status = ringbuf_nack(rb, &message);
}

static void operate_lease_and_ack(ringbuf *rb, struct seat *seat)
{
    ringbuf_message message = {.data = NULL};
    seat->status = ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (seat->status != RINGBUF_OK) return;
    if (!(seat->got = id_of(message.data, message.size))) _exit(6);
    seat->status = ringbuf_ack(rb, &message);
}

static void operate_lease_and_nack(ringbuf *rb, struct seat *seat)
{
    ringbuf_message message = {.data = NULL};
    seat->status = ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER);
    if (seat->status == RINGBUF_OK) seat->status = ringbuf_nack(rb, &message);
}

static void operate_keep_and_release(ringbuf *rb, struct seat *seat)
{
    ringbuf_message message = {.data = NULL};
    do {
        seat->status = ringbuf_lease(rb, &message, NULL, 0, RINGBUF_FOREVER);
        if (seat->status != RINGBUF_OK) return;
        if (!message.in_arena) ringbuf_nack(rb, &message); /* no room there at the moment */
    } while (!message.in_arena);
    if (!(seat->got = id_of(message.data, message.size))) _exit(6);
    seat->status = ringbuf_keep(rb, &message);
    if (seat->status == RINGBUF_OK) seat->status = ringbuf_release(rb, &message);
}

static void operate_reserve_and_commit(ringbuf *rb, struct seat *seat)
{
    ringbuf_reservation reservation;
    seat->put = 1;
    seat->status = ringbuf_reserve(rb, &reservation, LARGE, RINGBUF_FOREVER);
    if (seat->status == RINGBUF_OK)
        seat->status = ringbuf_commit(rb, &reservation, fill(reservation.data, CHILD_ID, LARGE), RINGBUF_FOREVER);
}

static void operate_put_all(ringbuf *rb, struct seat *seat)
{
    uint8_t bytes[BATCH][300];
    ringbuf_part messages[BATCH];
    for (size_t i = 0; i < BATCH; i++) messages[i] = (ringbuf_part){.data = bytes[i], .size = fill(bytes[i], CHILD_ID + i, 100 * (i + 1))};
    seat->put = BATCH;
    seat->status = ringbuf_put_all(rb, messages, BATCH, RINGBUF_FOREVER);
}

static void operate_attach(ringbuf *rb, struct seat *seat)
{
    ringbuf *another = NULL;
    seat->status = ringbuf_open(&another, ringbuf_name(rb), NULL);
    ringbuf_free(another);
}

static void operate_recover(ringbuf *rb, struct seat *seat)
{
    uint64_t recovered;
    seat->status = ringbuf_recover(rb, &recovered);
}

static void operate_listen(ringbuf *rb, struct seat *seat)
{
    int fd;
    seat->status = ringbuf_items_fd(rb, &fd);
}

static void operate_unlink(ringbuf *rb, struct seat *seat) { seat->status = ringbuf_unlink(rb); }

static void operate_close(ringbuf *rb, struct seat *seat)
{
    ringbuf_message message = {.data = NULL};
    seat->status = ringbuf_take(rb, &message, NULL, 0, RINGBUF_FOREVER);
    ringbuf_close(rb);
}

static const struct operation operations[] = {
    {"put", SOME, operate_put, 0},
    {"put into a full ring", FULL, operate_put, 0},
    {"put a large message", SOME, operate_put_large, 0},
    {"put with a deadline that passes", FULL, operate_put_shortly, 0},
    {"put several", SOME, operate_put_all, 0},
    {"reserve and commit", SOME, operate_reserve_and_commit, 0},
    {"get", SOME, operate_get, 0},
    {"get from an empty ring", NONE, operate_get, 0},
    {"get with a deadline that passes", NONE, operate_get_shortly, 0},
    {"get and give idle memory back", SOME, operate_get_and_trim, 0},
    {"take and nack", SOME, operate_take_and_nack, 1},
    {"lease and ack", SOME, operate_lease_and_ack, 0},
    {"lease and nack", SOME, operate_lease_and_nack, 1},
    {"keep and release", SOME, operate_keep_and_release, IDS},
    {"take and close", SOME, operate_close, 1},
    {"attach and leave", SOME, operate_attach, 0},
    {"attach beside a dead one", WITH_A_DEAD_ONE, operate_attach, 1},
    {"recover a dead one", WITH_A_DEAD_ONE, operate_recover, 1},
    {"listen", SOME, operate_listen, 0},
    {"unlink", SOME, operate_unlink, 0},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* ---- one queue, and our thread on it ---- */

struct place {
    const struct operation *operation;
    struct seat *seat;
    ringbuf *rb;
    pid_t child;
    pthread_t thread;
    bool missed;           /* the child ended without having come to its point */
    uint64_t first_id, next_id;
    uint64_t last_got;
    unsigned late;         /* messages that came after younger ones */
    _Atomic uint64_t rounds; /* while everybody who is to stop was stopped */
    uint8_t delivered[IDS];
    uint8_t from_child[BATCH];
    const char *_Atomic failure;
};
static struct place places[AT_ONCE];
static _Atomic int phase; /* FEED, ALL_STOPPED, FEED again, END */
enum { FEED, ALL_STOPPED, END };

/** A child is woken by what we put, and gets to it before we do, at some time. */
static bool put_next(struct place *place, int64_t deadline_ns)
{
    uint8_t bytes[LARGE];
    ringbuf_status status = ringbuf_put(place->rb, bytes, fill(bytes, place->next_id, size_of(place->next_id)), deadline_ns);
    if (status == RINGBUF_OK) place->next_id++;
    else if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_ARENA_FULL) place->failure = ringbuf_status_text(status);
    return status == RINGBUF_OK;
}

static bool get_next(struct place *place, int64_t deadline_ns)
{
    uint8_t bytes[LARGE];
    size_t size;
    ringbuf_status status = ringbuf_get(place->rb, &size, bytes, sizeof bytes, deadline_ns);
    if (status == RINGBUF_E_TIMEOUT) return false;
    uint64_t id = status == RINGBUF_OK ? id_of(bytes, size) : 0;
    if (id >= CHILD_ID && id < CHILD_ID + BATCH) {
        place->from_child[id - CHILD_ID]++;
    } else if (id > 0 && id < IDS) {
        place->delivered[id]++;
        if (id < place->last_got) place->late++;
        else place->last_got = id;
    } else {
        place->failure = status == RINGBUF_OK ? "a damaged message" : ringbuf_status_text(status);
        return false;
    }
    return true;
}

/** How many of ours have not come out.  (A child may have one, or several that it is about to give back.) */
static uint64_t outstanding(const struct place *place)
{
    uint64_t out = 0;
    for (uint64_t id = place->first_id; id < place->next_id; id++) out += !place->delivered[id];
    return out;
}

static void *go_on(void *context)
{
    struct place *place = context;
    while (!place->failure && place->next_id < IDS - 8) {
        switch (atomic_load(&phase)) {
        case FEED: /* the child may be waiting for a message, or for room */
            if (!put_next(place, 0))
                while (!place->failure && get_next(place, 0)) {}
            break;
        case ALL_STOPPED: /* we go on: what we put comes out, but for what the child has in its hands */
            for (int64_t until_ns = give_up_ns(); !place->failure && !put_next(place, ringbuf_now_ns() + 100 * MILLISECOND);) {
                /* A message that the child gave back, and was about to tell of, is found by who finds the ring full. */
                while (!place->failure && get_next(place, 0)) {}
                if (ringbuf_now_ns() > until_ns) place->failure = "no room, although everything was got";
            }
            while (!place->failure && get_next(place, 0)) {}
            while (!place->failure && outstanding(place) > 1)
                if (!get_next(place, give_up_ns()) && !place->failure) place->failure = "a message of ours stays away";
            atomic_fetch_add(&place->rounds, 1);
            break;
        default: return NULL;
        }
        nap_ms(2);
    }
    return NULL;
}

static void name_of(char name[16], size_t number) { snprintf(name, 16, "q%zu", number); }

static int be_the_child(const struct operation *operation, size_t number)
{
    char name[16];
    ringbuf *rb = NULL;
    name_of(name, number);
    rbi_point_hook = hook;
    mine = &seats[number];
    wait_for_stage(&mine->go, 1);
    if (ringbuf_open(&rb, name, NULL) != RINGBUF_OK) return 3;
    mine->armed = 1;
    operation->operate(rb, mine);
    mine->finished = 1;
    ringbuf_free(rb);
    return 0;
}

static int die_holding(void *context)
{
    ringbuf *rb = NULL;
    ringbuf_message message = {.data = NULL};
    if (ringbuf_open(&rb, context, NULL) != RINGBUF_OK || ringbuf_take(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 1;
    die();
}

static void arrange(struct place *place, size_t number)
{
    char name[16];
    ringbuf_options options;
    name_of(name, number);
    ringbuf_options_init(&options);
    options.capacity_bytes = 4096;
    options.arena_bytes = 64 * 4096;
    options.max_participants = 16;
    ASSERT_OK(ringbuf_create(&place->rb, name, &options));
    place->rb->idle_s = is_long() ? RBI_IDLE_S : 0;
    bool some = place->operation->before == SOME || place->operation->before == WITH_A_DEAD_ONE;
    place->first_id = place->next_id = some ? 7 : 1; /* 8 is a large one */
    if (place->operation->before == NONE) return;
    for (int i = 0; i < 3; i++) TEST_ASSERT_TRUE(put_next(place, 0));
    if (place->operation->before == WITH_A_DEAD_ONE) TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(die_holding, name));
    while (place->operation->before == FULL && put_next(place, 0)) {}
}

static void account(struct place *place)
{
    uint64_t recovered, items;
    ringbuf_stats stats;
    ringbuf_findings findings;
    struct seat *seat = place->seat;
    const char *name = place->operation->name;
    if (place->failure) printf("%s at %s: ", place->failure, seat->point < 0 ? "-" : rbi_point_name((enum rbi_point)seat->point));
    TEST_ASSERT_NULL_MESSAGE(place->failure, name);
    TEST_ASSERT_TRUE_MESSAGE(seat->finished, name);
    ASSERT_OK(ringbuf_recover(place->rb, &recovered));
    while (get_next(place, 0)) {}
    if (place->failure) printf("%s at %s: ", place->failure, seat->point < 0 ? "-" : rbi_point_name((enum rbi_point)seat->point));
    TEST_ASSERT_NULL_MESSAGE(place->failure, name);
    bool may_time_out = seat->status == RINGBUF_E_TIMEOUT;
    may_time_out &= place->operation->operate == operate_put_shortly || place->operation->operate == operate_get_shortly;
    if (!may_time_out) ASSERT_OK(seat->status);
    for (uint64_t id = place->first_id; id < place->next_id; id++)
        TEST_ASSERT_EQUAL_UINT_MESSAGE(1, place->delivered[id] + (seat->got == id), name);
    for (uint32_t i = 0; i < BATCH; i++)
        TEST_ASSERT_EQUAL_UINT_MESSAGE(seat->status == RINGBUF_OK && i < seat->put, place->from_child[i], name);
    TEST_ASSERT_TRUE_MESSAGE(place->late <= place->operation->gives_back, "out of order");
    ASSERT_OK(ringbuf_size(place->rb, &items));
    TEST_ASSERT_EQUAL_UINT64(0, items);
    ASSERT_OK(ringbuf_get_stats(place->rb, &stats));
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(1, stats.participants, name);
    ASSERT_OK(ringbuf_check(place->rb, &findings));
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(0, findings.runs + findings.orphaned_blocks + findings.dangling_messages, name);
    ringbuf_free(place->rb);
    place->rb = NULL;
}

/** Wait until every child has stopped or ended; the ended are reaped. */
static void wait_for_children(size_t count, bool for_their_end)
{
    int64_t until_ns = give_up_ns();
    bool stopped[AT_ONCE] = {false};
    for (size_t open = count; open; nap_ms(1)) {
        open = 0;
        for (size_t i = 0; i < count; i++) {
            int how = 0;
            if (!places[i].child || stopped[i]) continue;
            pid_t changed = waitpid(places[i].child, &how, WNOHANG | WUNTRACED);
            if (changed == 0) {
                open++;
                continue;
            }
            if (WIFSTOPPED(how) && !for_their_end) {
                stopped[i] = true;
                continue;
            }
            places[i].child = 0;
            TEST_ASSERT_TRUE_MESSAGE(WIFEXITED(how) && WEXITSTATUS(how) == 0, places[i].operation->name);
        }
        TEST_ASSERT_TRUE_MESSAGE(ringbuf_now_ns() < until_ns, "a child hangs");
    }
}

struct stop_case {
    uint8_t operation;
    int16_t point; /* -1: none, the operation is run to see which points it passes */
};

static uint64_t least_rounds;

/** Run these cases, all at once.  Returns how many children did not come to their point. */
static size_t run_cases(const struct stop_case *cases, size_t count, long stop_ms)
{
    size_t missed = 0;
    memset(places, 0, sizeof places);
    memset(seats, 0, AT_ONCE * sizeof *seats);
    for (size_t i = 0; i < count; i++) {
        places[i].operation = &operations[cases[i].operation];
        places[i].seat = &seats[i];
        seats[i].point = cases[i].point;
        fflush(stdout);
        places[i].child = fork();
        if (places[i].child == 0) _exit(be_the_child(places[i].operation, i));
    }
    for (size_t i = 0; i < count; i++) arrange(&places[i], i);
    atomic_store(&phase, FEED);
    for (size_t i = 0; i < count; i++) {
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&places[i].thread, NULL, go_on, &places[i]));
        atomic_store(&seats[i].go, 1);
    }
    wait_for_children(count, false);
    for (size_t i = 0; i < count; i++) places[i].missed = cases[i].point >= 0 && !places[i].child;
    if (cases[0].point >= 0) {
        atomic_store(&phase, ALL_STOPPED);
        nap_ms(stop_ms);
        int64_t until_ns = give_up_ns();
        for (size_t i = 0; i < count; i++) /* however slow this machine is, they go on before he does */
            while (atomic_load(&places[i].rounds) < ROUNDS && !places[i].failure) {
                TEST_ASSERT_TRUE_MESSAGE(ringbuf_now_ns() < until_ns, places[i].operation->name);
                nap_ms(1);
            }
        for (size_t i = 0; i < count; i++) missed += places[i].missed;
        atomic_store(&phase, FEED);
        for (size_t i = 0; i < count; i++)
            if (places[i].child) kill(places[i].child, SIGCONT);
        wait_for_children(count, true);
    }
    atomic_store(&phase, END);
    for (size_t i = 0; i < count; i++) pthread_join(places[i].thread, NULL);
    for (size_t i = 0; i < count; i++) {
        if (cases[i].point >= 0 && atomic_load(&places[i].rounds) < least_rounds) least_rounds = atomic_load(&places[i].rounds);
        account(&places[i]);
    }
    return missed;
}

static void test_one_stopped_for_longer_than_everybody_waits_delays_nobody_and_ends_its_operation_with_the_truth(void)
{
    long stop_ms = is_long() ? 7000 : 200;
    struct stop_case *cases = share_memory(CASES * sizeof *cases);
    size_t count = 0, missed = 0;
    struct stop_case whole[OPERATIONS];
    for (uint8_t i = 0; i < OPERATIONS; i++) whole[i] = (struct stop_case){i, -1};
    _Static_assert((int)OPERATIONS <= (int)AT_ONCE, "run to see which points they pass");
    run_cases(whole, OPERATIONS, 0);
    for (uint8_t i = 0; i < OPERATIONS; i++)
        for (int16_t point = 0; point < RBI_POINT_COUNT; point++)
            if (seats[i].passed[point]) {
                TEST_ASSERT_LESS_THAN_UINT64(CASES, count);
                cases[count++] = (struct stop_case){i, point};
            }
    least_rounds = UINT64_MAX;
    for (size_t first = 0; first < count; first += AT_ONCE)
        missed += run_cases(cases + first, count - first < AT_ONCE ? count - first : AT_ONCE, stop_ms);
    printf("%zu stops of %ld ms, %zu of them not come to; the others went at least %llu rounds meanwhile\n", count, stop_ms, missed,
           (unsigned long long)least_rounds);
    /* Which points a call passes depends on what others do meanwhile. */
    TEST_ASSERT_GREATER_THAN_UINT64(100, count);
    TEST_ASSERT_LESS_THAN_UINT64(count / 5, missed);
    TEST_ASSERT_TRUE(least_rounds >= ROUNDS);
}

/* ---- deletions ---- */

static char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/ringbuf.%s", suite_directory, name);
    return path;
}

static uint64_t unlinked(ringbuf *rb)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    return stats.unlinked;
}

static ringbuf *create(const char *name)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, name, NULL));
    return rb;
}

static ringbuf *attach(const char *name)
{
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_open(&rb, name, NULL));
    return rb;
}

static void test_a_deleted_file_is_reported_once_to_each_handle_and_its_users_go_on(void)
{
    uint8_t bytes[LARGE], got[LARGE];
    size_t size;
    uint64_t recovered;
    ringbuf *one = create("deleted"), *other = attach("deleted");
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_LINKED, unlinked(one));
    ASSERT_OK(ringbuf_put(one, bytes, fill(bytes, 1, 16), 0));
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of("deleted")));
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, ringbuf_deletion_is_news(one), "nobody has looked");
    ASSERT_OK(ringbuf_put(one, bytes, fill(bytes, 2, LARGE), 0));
    ASSERT_OK(ringbuf_recover(one, &recovered));
    TEST_ASSERT_EQUAL_INT(1, ringbuf_deletion_is_news(one));
    TEST_ASSERT_EQUAL_INT(0, ringbuf_deletion_is_news(one));
    for (uint64_t id = 1; id <= 2; id++) {
        ASSERT_OK(ringbuf_get(other, &size, got, sizeof got, 0));
        TEST_ASSERT_EQUAL_UINT64(id, id_of(got, size));
    }
    TEST_ASSERT_EQUAL_INT_MESSAGE(0, ringbuf_deletion_is_news(other), "it has found what it looked for");
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(other, &size, got, sizeof got, ringbuf_now_ns() + 150 * MILLISECOND));
    TEST_ASSERT_EQUAL_INT_MESSAGE(1, ringbuf_deletion_is_news(other), "sleepers look");
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_DELETED, unlinked(one));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_DELETED, unlinked(other));

    ringbuf *new = create("deleted"); /* another queue */
    ASSERT_OK(ringbuf_put(new, bytes, fill(bytes, 3, 16), 0));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(other, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_LINKED, unlinked(new));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_DELETED, unlinked(other));
    ringbuf_free(one);
    ringbuf_free(other); /* the last of the old one leaves the new one alone */
    ASSERT_OK(ringbuf_get(new, &size, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(3, id_of(got, size));
    ringbuf_free(new);
}

static void test_polls_look_after_the_file_too(void)
{
    uint8_t byte;
    size_t size;
    ringbuf *rb = create("polled");
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of("polled")));
    for (int64_t until_ns = give_up_ns(); !ringbuf_deletion_is_news(rb);) {
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(rb, &size, &byte, 1, 0));
        TEST_ASSERT_TRUE(ringbuf_now_ns() < until_ns);
    }
    ringbuf_free(rb);
}

static void test_a_file_that_was_replaced_is_deleted_for_those_who_have_the_old_one(void)
{
    ringbuf *old = create("replaced");
    ringbuf *other = create("other");
    char path[128];
    strcpy(path, path_of("other"));
    TEST_ASSERT_EQUAL_INT(0, rename(path, path_of("replaced")));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_DELETED, unlinked(old));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_LINKED, unlinked(other)); /* it has a name, if not its own */
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of("replaced")));
    ringbuf_free(old);
    ringbuf_free(other);
}

static void remove_by_handle(ringbuf *rb) { ASSERT_OK(ringbuf_unlink(rb)); }

static void remove_by_name(ringbuf *rb) { ASSERT_OK(ringbuf_unlink_name(ringbuf_name(rb), NULL)); }

static int remove_in_a_child(void *context)
{
    return ringbuf_unlink(context) == RINGBUF_OK ? 0 : 1;
}

static void remove_by_another_process(ringbuf *rb) { TEST_ASSERT_EQUAL_INT(0, run_child(remove_in_a_child, rb)); }

static void test_a_removal_by_the_library_is_no_deletion_whoever_asked_for_it(void)
{
    static void (*const removals[])(ringbuf *) = {remove_by_handle, remove_by_name, remove_by_another_process};
    for (size_t i = 0; i < sizeof removals / sizeof *removals; i++) {
        uint8_t byte;
        size_t size;
        ringbuf *one = create("removed"), *other = attach("removed");
        removals[i](one);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(other, &size, &byte, 1, ringbuf_now_ns() + 150 * MILLISECOND));
        TEST_ASSERT_EQUAL_UINT64(RINGBUF_REMOVED, unlinked(one));
        TEST_ASSERT_EQUAL_UINT64(RINGBUF_REMOVED, unlinked(other));
        TEST_ASSERT_EQUAL_INT(0, ringbuf_deletion_is_news(one) + ringbuf_deletion_is_news(other));
        ringbuf_free(one);
        ringbuf_free(other);
    }
}

static void test_a_name_that_was_already_deleted_when_it_was_to_be_removed_stays_deleted(void)
{
    ringbuf *rb = create("both");
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of("both")));
    ASSERT_OK(ringbuf_unlink(rb));
    TEST_ASSERT_EQUAL_UINT64(RINGBUF_DELETED, unlinked(rb));
    ringbuf_free(rb);
}

static void test_what_is_no_queue_is_removed_by_name_and_not_written_to(void)
{
    static const char text[] = "not a queue at all, but somebody's file";
    char got[8192] = "";
    int fd = open(path_of("text"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    TEST_ASSERT_EQUAL_INT(sizeof text, write(fd, text, sizeof text));
    TEST_ASSERT_EQUAL_INT(0, ftruncate(fd, sizeof got));
    ASSERT_OK(ringbuf_unlink_name("text", NULL));
    TEST_ASSERT_EQUAL_INT(sizeof got, pread(fd, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_STRING(text, got);
    for (size_t i = sizeof text; i < sizeof got; i++) TEST_ASSERT_EQUAL_UINT8(0, got[i]);
    close(fd);
}

static struct { stage forked, left; } *family;

static int use_what_the_parent_left(void *context)
{
    uint8_t byte;
    size_t size;
    atomic_store(&family->forked, 1);
    wait_for_stage(&family->left, 1);
    if (ringbuf_get(context, &size, &byte, 1, ringbuf_now_ns() + 150 * MILLISECOND) != RINGBUF_E_TIMEOUT) return 1;
    return ringbuf_deletion_is_news(context) ? 2 : 0;
}

static void test_a_child_whose_parent_left_as_the_last_one_sees_no_deletion(void)
{
    family = share_memory(sizeof *family);
    ringbuf *rb = create("family");
    ASSERT_OK(ringbuf_unlink(rb)); /* as the last one to leave would, between the fork and the child's lock */
    pid_t child = start_child(use_what_the_parent_left, rb);
    wait_for_stage(&family->forked, 1);
    ringbuf_free(rb);
    atomic_store(&family->left, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
}

/* ---- a limit on the size of files, beyond which the kernel sends SIGXFSZ ---- */

static int work_under_a_limit_on_files(void *context)
{
    (void)context;
    uint8_t bytes[LARGE], got[LARGE];
    size_t size;
    ringbuf *made = NULL, *opened = NULL;
    signal(SIGXFSZ, SIG_DFL); /* which ends the process */
    if (ringbuf_open(&opened, "limited", NULL) != RINGBUF_OK) return 1;
    struct rlimit limit = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    if (ringbuf_create(&made, "too large", NULL) != RINGBUF_E_NO_SPACE || made) return 3;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 4096;
    options.arena_bytes = 0;
    options.max_participants = 16;
    if (ringbuf_create(&made, "small", &options) != RINGBUF_OK) return 4;
    ringbuf_free(made);
    struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_FSIZE, &none) != 0) return 5;
    if (ringbuf_create(&made, "small", &options) != RINGBUF_E_NO_SPACE) return 6;
    if (ringbuf_open(&made, "limited", NULL) != RINGBUF_OK) return 7; /* what is there can be used, and gets its memory */
    for (uint64_t id = 1; id < 3000; id++) {
        if (ringbuf_put(made, bytes, fill(bytes, id, id % 8 ? 3000 : LARGE), 0) != RINGBUF_OK) return 8;
        if (ringbuf_get(opened, &size, got, sizeof got, 0) != RINGBUF_OK || id_of(got, size) != id) return 9;
    }
    ringbuf_free(made);
    ringbuf_free(opened);
    return 0;
}

static void test_beyond_the_limit_on_the_size_of_files_is_no_space_and_no_signal(void)
{
    ringbuf *rb = create("limited");
    TEST_ASSERT_EQUAL_INT(0, run_child(work_under_a_limit_on_files, NULL));
    ringbuf_free(rb);
}

/* ---- thousands ---- */

struct belongings {
    int descriptors, mappings;
    uint64_t participants, blocks;
};

static int lines_of(const char *path)
{
    int lines = 0;
    FILE *file = fopen(path, "r");
    TEST_ASSERT_NOT_NULL(file);
    for (int c; (c = getc(file)) != EOF;) lines += c == '\n';
    fclose(file);
    return lines;
}

/** What this process and the queue have. */
static struct belongings belongings_of(ringbuf *rb)
{
    uint64_t recovered;
    ringbuf_stats stats;
    struct stat st;
    char names[1];
    ASSERT_OK(ringbuf_recover(rb, &recovered));
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    TEST_ASSERT_EQUAL_INT(0, stat(ringbuf_path(rb), &st));
    return (struct belongings){directory_entries("/proc/self/fd", names, 0), lines_of("/proc/self/maps"), stats.participants,
                               (uint64_t)st.st_blocks};
}

static void assert_the_same(const struct belongings *before, const struct belongings *after)
{
    TEST_ASSERT_EQUAL_INT_MESSAGE(before->descriptors, after->descriptors, "descriptors");
    if (!SANITIZED) TEST_ASSERT_EQUAL_INT_MESSAGE(before->mappings, after->mappings, "mappings");
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(before->participants, after->participants, "participants");
    TEST_ASSERT_EQUAL_UINT64_MESSAGE(before->blocks, after->blocks, "memory of the file");
}

/** A small queue that has been around, so that all the pages that it will have are there. */
static ringbuf *create_small(const char *name, uint32_t participants)
{
    uint8_t bytes[16], got[16];
    size_t size;
    ringbuf *rb = NULL;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 4096;
    options.arena_bytes = 0;
    options.max_participants = participants;
    ASSERT_OK(ringbuf_create(&rb, name, &options));
    for (uint64_t id = 1; id < 100; id++) {
        ASSERT_OK(ringbuf_put(rb, bytes, fill(bytes, id, 16), 0));
        ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, 0));
    }
    return rb;
}

static void test_after_ten_thousand_handles_one_after_the_other_everything_is_as_before(void)
{
    uint8_t bytes[16], got[16];
    size_t size;
    ringbuf *rb = create_small("coming and going", 16);
    ringbuf_free(attach("coming and going"));
    struct belongings before = belongings_of(rb);
    for (uint64_t i = 1; i <= (is_long() || !SANITIZED ? 10000 : 1000); i++) {
        ringbuf *visitor = attach("coming and going");
        if (i % 16 == 0) {
            ASSERT_OK(ringbuf_put(visitor, bytes, fill(bytes, i, 16), 0));
            ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, 0));
            TEST_ASSERT_EQUAL_UINT64(i, id_of(got, size));
        }
        ringbuf_free(visitor);
    }
    struct belongings after = belongings_of(rb);
    assert_the_same(&before, &after);
    ringbuf_free(rb);
}

static void test_too_many_handles_at_once_are_an_error_with_a_name_and_the_others_work(void)
{
    enum { MOST = 10000, QUEUES = 200 };
    static ringbuf *handles[MOST];
    const size_t many = is_long() ? MOST : SANITIZED ? 400 : 2000;
    char name[16];
    uint8_t bytes[16], got[16];
    size_t count = 0, size;
    struct rlimit files, was;
    TEST_ASSERT_EQUAL_INT(0, getrlimit(RLIMIT_NOFILE, &was));
    files = was;
    files.rlim_cur = files.rlim_max < many + 100 ? files.rlim_max : many + 100;
    TEST_ASSERT_EQUAL_INT(0, setrlimit(RLIMIT_NOFILE, &files));
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 4096;
    options.arena_bytes = 0;
    options.max_participants = 64;
    ringbuf *keeper = create_small("keeper", 16);
    struct belongings before = belongings_of(keeper);
    ringbuf_status status = RINGBUF_OK;
    for (; count < many; count++) {
        name_of(name, count % QUEUES);
        status = ringbuf_create(&handles[count], name, &options);
        if (status != RINGBUF_OK) break;
    }
    /* Its limits differ from machine to machine: descriptors, or mappings (nine a handle, of 65530). */
    TEST_ASSERT_TRUE(count == many || status == RINGBUF_E_NO_FILES || status == RINGBUF_E_NO_MEMORY);
    TEST_ASSERT_GREATER_THAN_UINT64(200, count);
    printf("%zu handles at once, then: %s\n", count, ringbuf_status_text(status));
    for (size_t i = 0; i < count; i++) {
        ASSERT_OK(ringbuf_put(handles[i], bytes, fill(bytes, i + 1, 16), 0));
        ASSERT_OK(ringbuf_get(handles[(i + QUEUES) % (count - count % QUEUES)], &size, got, sizeof got, 0));
        TEST_ASSERT_EQUAL_UINT64(i + 1, id_of(got, size));
    }
    for (size_t i = 0; i < count; i++) ringbuf_free(handles[i]);
    struct belongings after = belongings_of(keeper);
    assert_the_same(&before, &after);
    ringbuf_free(keeper);
    TEST_ASSERT_EQUAL_INT(0, setrlimit(RLIMIT_NOFILE, &was));
}

static void test_one_participant_too_many_is_crowded_and_room_for_it_is_there_when_one_has_left(void)
{
    enum { MOST = 64 };
    ringbuf *handles[MOST], *more = NULL;
    handles[0] = create_small("crowd", MOST);
    for (size_t i = 1; i < MOST; i++) handles[i] = attach("crowd");
    ASSERT_STATUS(RINGBUF_E_CROWDED, ringbuf_open(&more, "crowd", NULL));
    ringbuf_free(handles[MOST / 2]);
    handles[MOST / 2] = attach("crowd");
    ASSERT_STATUS(RINGBUF_E_CROWDED, ringbuf_open(&more, "crowd", NULL));
    for (size_t i = 0; i < MOST; i++) ringbuf_free(handles[i]);
}

static int put_one_and_end(void *context)
{
    uint8_t bytes[16];
    return ringbuf_put(context, bytes, fill(bytes, 7, 16), RINGBUF_FOREVER) == RINGBUF_OK ? 0 : 1;
}

static int end_at_once(void *context)
{
    (void)context;
    return 0;
}

static void test_children_that_ended_without_closing_keep_nobody_else_from_taking_part(void)
{
    enum { SEATS = 8 };
    uint8_t got[16];
    size_t size;
    ringbuf *rb = create_small("seats", SEATS);
    for (size_t i = 0; i < 5 * SEATS; i++) {
        TEST_ASSERT_EQUAL_INT(0, run_child(put_one_and_end, rb));
        ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, 0)); /* at once: nobody had to wait, and to look for the dead */
    }
    ringbuf_free(rb);
}

static void test_a_thousand_children_that_end_without_closing_leave_nothing(void)
{
    enum { CHILDREN = SANITIZED ? 200 : 1000, TOGETHER = 50 };
    uint8_t got[16];
    size_t size;
    pid_t children[TOGETHER];
    ringbuf *rb = create_small("parents", 2 * TOGETHER);
    ringbuf *others[2 * TOGETHER - 1]; /* so that all entries have their pages */
    for (size_t i = 0; i < 2 * TOGETHER - 1; i++) others[i] = attach("parents");
    for (size_t i = 0; i < 2 * TOGETHER - 1; i++) ringbuf_free(others[i]);
    struct belongings before = belongings_of(rb);
    for (size_t first = 0; first < CHILDREN; first += TOGETHER) {
        for (size_t i = 0; i < TOGETHER; i++) children[i] = start_child(i % 2 ? put_one_and_end : end_at_once, rb);
        for (size_t i = 0; i < TOGETHER / 2; i++) {
            ASSERT_OK(ringbuf_get(rb, &size, got, sizeof got, give_up_ns()));
            TEST_ASSERT_EQUAL_UINT64(7, id_of(got, size));
        }
        for (size_t i = 0; i < TOGETHER; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
    }
    struct belongings after = belongings_of(rb);
    assert_the_same(&before, &after);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(rb, &size, got, sizeof got, 0));
    ringbuf_free(rb);
}

/* ---- the suite ---- */

void setUp(void) {}

void tearDown(void)
{
    for (size_t i = 0; i < AT_ONCE; i++)
        if (places[i].child) {
            kill(places[i].child, SIGKILL);
            waitpid(places[i].child, NULL, 0);
            places[i].child = 0;
        }
    assert_nothing_is_left();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    enter_suite_directory();
    seats = mmap(NULL, AT_ONCE * sizeof *seats, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seats == MAP_FAILED) return 2;
    UNITY_BEGIN();
    RUN_TEST(test_one_stopped_for_longer_than_everybody_waits_delays_nobody_and_ends_its_operation_with_the_truth);
    RUN_TEST(test_a_deleted_file_is_reported_once_to_each_handle_and_its_users_go_on);
    RUN_TEST(test_polls_look_after_the_file_too);
    RUN_TEST(test_a_file_that_was_replaced_is_deleted_for_those_who_have_the_old_one);
    RUN_TEST(test_a_removal_by_the_library_is_no_deletion_whoever_asked_for_it);
    RUN_TEST(test_a_name_that_was_already_deleted_when_it_was_to_be_removed_stays_deleted);
    RUN_TEST(test_what_is_no_queue_is_removed_by_name_and_not_written_to);
    RUN_TEST(test_a_child_whose_parent_left_as_the_last_one_sees_no_deletion);
    RUN_TEST(test_beyond_the_limit_on_the_size_of_files_is_no_space_and_no_signal);
    RUN_TEST(test_after_ten_thousand_handles_one_after_the_other_everything_is_as_before);
    RUN_TEST(test_too_many_handles_at_once_are_an_error_with_a_name_and_the_others_work);
    RUN_TEST(test_one_participant_too_many_is_crowded_and_room_for_it_is_there_when_one_has_left);
    RUN_TEST(test_children_that_ended_without_closing_keep_nobody_else_from_taking_part);
    RUN_TEST(test_a_thousand_children_that_end_without_closing_leave_nothing);
    return leave_suite_directory(UNITY_END());
}
