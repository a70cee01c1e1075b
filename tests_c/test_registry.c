/* test_registry.c — floor 2: participants: numbers, deaths, what is forgiven.  On a nameless file, without handles: a registry that
 * closes its file has died as far as its locks tell; the tests that say "killed" kill a process. */
#include "support.h"

#include "registry.h"

enum { PARTICIPANTS = 24, CELLS_LOG2 = 5, CELL_LOG2 = RBI_CELL_MIN_LOG2, RING_BYTES = 1 << (CELLS_LOG2 + CELL_LOG2) };

/** Everything of a queue's file that a registry needs; in shared memory, so that children see it. */
struct ground {
    struct rbi_header header;
    struct rbi_participant entries[PARTICIPANTS];
    struct rbi_slot slots[1 << CELLS_LOG2]; /* one lane is enough here */
    uint8_t data[2 * RING_BYTES];           /* not mirrored: messages here are short */
    stage child_ready;
};
static struct ground *ground;
static int ground_fd;

/** One participant's view. */
struct view {
    struct rbi_ring ring;
    struct rbi_arena arena; /* all zero: there is none */
    struct rbi_registry registry;
};

static void view_ring(struct rbi_ring *ring)
{
    rbi_ring_init(ring, &ground->header.order, CELLS_LOG2, CELL_LOG2, 0);
    rbi_ring_add_lane(ring, &ground->header.lanes[0], ground->slots, ground->data);
}

static rbi_atomic64 *reserved_cells(void) { return &ground->header.lanes[0].reserved_cells; }

static ringbuf_status open_ground(struct view *view)
{
    rbi_fd fd;
    ringbuf_status status = rbi_open_again(&fd, ground_fd);
    view->registry.fd = fd;
    return status;
}

/** A view with an open file of its own, as every handle has. */
static void view_ground(struct view *view, uint32_t max_participants)
{
    view_ring(&view->ring);
    memset(&view->arena, 0, sizeof view->arena);
    view->registry = (struct rbi_registry){.header = &ground->header,
                                           .entries = ground->entries,
                                           .ring = &view->ring,
                                           .arena = &view->arena,
                                           .max_participants = max_participants};
    if (open_ground(view) != RINGBUF_OK) abort();
}

static void leave_ground(struct view *view)
{
    rbi_registry_leave(&view->registry);
    rbi_close(view->registry.fd);
}

/** Its locks go, and nothing else happens. */
static void die_quietly(struct view *view) { rbi_close(view->registry.fd); }

void setUp(void)
{
    ground_fd = memfd_create("registry", MFD_CLOEXEC);
    ASSERT_OK(rbi_file_set_size(ground_fd, sizeof *ground));
    ground = mmap(NULL, sizeof *ground, PROT_READ | PROT_WRITE, MAP_SHARED, ground_fd, 0);
    TEST_ASSERT_TRUE(ground != MAP_FAILED);
    struct rbi_ring ring;
    view_ring(&ring);
    rbi_ring_start_at(&ring, rbi_ring_first_position(&ring));
    rbi_store_relaxed64(reserved_cells(), 1 << CELLS_LOG2);
}

void tearDown(void)
{
    munmap(ground, sizeof *ground);
    close(ground_fd);
}

static uint32_t join(struct view *view)
{
    view_ground(view, PARTICIPANTS);
    ASSERT_OK(rbi_registry_join(&view->registry, "test"));
    return view->registry.self;
}

static uint64_t recover(struct view *view)
{
    uint64_t recovered = UINT64_MAX;
    ASSERT_OK(rbi_registry_recover(&view->registry, &recovered));
    return recovered;
}

/** How often consumers were woken since the word of their event was this. */
static uint32_t wakes_since(uint32_t word) { return (rbi_load_total32(&ground->header.items.word) - word) / 4; }

static bool entry_used(uint32_t number) { return rbi_load_total32(&ground->entries[number - 1].state) != 0; }

static struct rbi_record claim(struct view *view)
{
    struct rbi_record record;
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_claim(&view->ring, &record, view->registry.self, 1));
    return record;
}

static void put(struct view *view, char letter)
{
    struct rbi_record record = claim(view);
    record.payload[0] = (uint8_t)letter;
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_publish(&view->ring, &record, view->registry.self));
}

static char take(struct view *view, struct rbi_record *record)
{
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_take(&view->ring, record, view->registry.self, UINT64_MAX));
    return (char)record->payload[0];
}

/* ---- numbers ---- */

static void test_participants_get_numbers_from_one_on(void)
{
    struct view a, b, c;
    TEST_ASSERT_EQUAL_UINT32(1, join(&a));
    TEST_ASSERT_EQUAL_UINT32(2, join(&b));
    TEST_ASSERT_EQUAL_UINT32(3, join(&c));
    TEST_ASSERT_EQUAL_UINT32(3, rbi_registry_high(&a.registry));
    TEST_ASSERT_EQUAL_PTR(&ground->entries[1], rbi_registry_me(&b.registry));
    TEST_ASSERT_EQUAL_UINT32(getpid(), ground->entries[1].pid);
    TEST_ASSERT_EQUAL_STRING("test", ground->entries[1].label);
    leave_ground(&a);
    leave_ground(&b);
    leave_ground(&c);
}

static void test_a_number_is_used_again_only_after_its_participant_left(void)
{
    struct view a, b, c;
    join(&a);
    join(&b);
    TEST_ASSERT_EQUAL_UINT32(3, join(&c));
    leave_ground(&b);
    TEST_ASSERT_FALSE(entry_used(2));
    TEST_ASSERT_EQUAL_UINT32(0, b.registry.self);
    TEST_ASSERT_EQUAL_UINT32(2, join(&b));
    leave_ground(&a);
    leave_ground(&b);
    leave_ground(&c);
    TEST_ASSERT_EQUAL_UINT32(3, rbi_registry_high(&a.registry)); /* only grows */
}

static void test_leaving_without_having_joined_does_nothing(void)
{
    struct view a;
    view_ground(&a, PARTICIPANTS);
    leave_ground(&a);
    TEST_ASSERT_FALSE(entry_used(1));
    TEST_ASSERT_EQUAL_UINT32(0, rbi_registry_high(&a.registry));
}

static void test_a_registry_with_everybody_in_it_is_crowded_until_one_leaves(void)
{
    struct view a, b, c;
    view_ground(&a, 2);
    view_ground(&b, 2);
    view_ground(&c, 2);
    ASSERT_OK(rbi_registry_join(&a.registry, NULL));
    ASSERT_OK(rbi_registry_join(&b.registry, NULL));
    ASSERT_STATUS(RINGBUF_E_CROWDED, rbi_registry_join(&c.registry, NULL));
    TEST_ASSERT_EQUAL_UINT32(0, c.registry.self);
    leave_ground(&a);
    ASSERT_OK(rbi_registry_join(&c.registry, NULL));
    TEST_ASSERT_EQUAL_UINT32(1, c.registry.self);
    leave_ground(&b);
    leave_ground(&c);
}

static void test_a_participant_without_a_label_bears_its_command_name(void)
{
    struct view a;
    char name[RBI_LABEL_BYTES];
    rbi_process_name(name, sizeof name);
    view_ground(&a, PARTICIPANTS);
    ASSERT_OK(rbi_registry_join(&a.registry, NULL));
    TEST_ASSERT_EQUAL_STRING(name, ground->entries[0].label);
    leave_ground(&a);
}

static void test_a_label_that_is_too_long_is_cut_and_ends_in_a_zero(void)
{
    struct view a;
    view_ground(&a, PARTICIPANTS);
    ASSERT_OK(rbi_registry_join(&a.registry, "a label that is much longer than thirty-one bytes"));
    TEST_ASSERT_EQUAL_STRING("a label that is much longer tha", ground->entries[0].label);
    leave_ground(&a);
}

static void test_a_highest_number_beyond_all_entries_is_not_believed(void)
{
    struct view a;
    join(&a);
    rbi_store_total32(&ground->header.participants_high, UINT32_MAX);
    TEST_ASSERT_EQUAL_UINT32(PARTICIPANTS, rbi_registry_high(&a.registry));
    TEST_ASSERT_EQUAL_UINT64(0, recover(&a));
    leave_ground(&a);
}

/* ---- the dead and the living ---- */

static int join_and_hold(void *context)
{
    struct view view;
    struct rbi_record record;
    (void)context;
    view_ground(&view, PARTICIPANTS);
    if (rbi_registry_join(&view.registry, "child") != RINGBUF_OK) return 1;
    if (rbi_ring_take(&view.ring, &record, view.registry.self, UINT64_MAX) != RBI_RING_OK) return 2;
    if (rbi_ring_claim(&view.ring, &record, view.registry.self, 1) != RBI_RING_OK) return 3;
    atomic_fetch_add(&ground->child_ready, 1);
    sleep_for_ever();
}

static void test_a_killed_participant_is_recovered_and_its_messages_go_to_others(void)
{
    struct view me;
    struct rbi_record record;
    join(&me);
    put(&me, 'a');
    put(&me, 'b');
    pid_t child = start_child(join_and_hold, NULL);
    wait_for_stage(&ground->child_ready, 1);
    TEST_ASSERT_EQUAL_UINT64(0, recover(&me)); /* it lives */
    kill_child(child);
    TEST_ASSERT_TRUE(entry_used(2));
    TEST_ASSERT_EQUAL_UINT64(1, recover(&me));
    TEST_ASSERT_FALSE(entry_used(2));
    TEST_ASSERT_EQUAL_UINT64(1, rbi_load_relaxed64(&ground->header.recoveries));
    TEST_ASSERT_EQUAL_INT('a', take(&me, &record));
    TEST_ASSERT_EQUAL_INT('b', take(&me, &record));
    TEST_ASSERT_EQUAL_INT(RBI_RING_EMPTY, rbi_ring_take(&me.ring, &record, 1, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(0, recover(&me)); /* once is enough */
    leave_ground(&me);
}

static void test_a_stopped_participant_is_alive_and_keeps_what_it_has(void)
{
    struct view me;
    struct rbi_record record;
    uint64_t taken = 0;
    join(&me);
    put(&me, 'a');
    put(&me, 'b');
    pid_t child = start_child(join_and_hold, NULL);
    wait_for_stage(&ground->child_ready, 1);
    stop_child(child);
    TEST_ASSERT_EQUAL_UINT64(0, recover(&me));
    TEST_ASSERT_TRUE(entry_used(2));
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_census(&me.ring, &taken, 1u << RBI_KIND_TAKEN | 1u << RBI_KIND_CLAIMED));
    TEST_ASSERT_EQUAL_UINT64(2, taken);
    TEST_ASSERT_EQUAL_INT('b', take(&me, &record));
    kill_child(child);
    TEST_ASSERT_EQUAL_UINT64(1, recover(&me));
    leave_ground(&me);
}

static void test_many_dead_are_recovered_in_one_go(void)
{
    struct view me, dead[5];
    for (int i = 0; i < 5; i++) join(&dead[i]);
    join(&me);
    for (int i = 0; i < 5; i++) put(&dead[i], 'x'), claim(&dead[i]);
    for (int i = 0; i < 5; i++) die_quietly(&dead[i]);
    uint64_t items;
    uint32_t word = rbi_load_total32(&ground->header.items.word);
    TEST_ASSERT_EQUAL_UINT64(5, recover(&me));
    TEST_ASSERT_EQUAL_UINT32(1, wakes_since(word)); /* one herd for all of them */
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_count(&me.ring, &items));
    TEST_ASSERT_EQUAL_UINT64(5, items);
    for (uint32_t number = 1; number <= 5; number++) TEST_ASSERT_FALSE(entry_used(number));
    TEST_ASSERT_TRUE(entry_used(6));
    leave_ground(&me);
}

static void test_leaving_wakes_others_only_if_something_goes_back(void)
{
    struct view me, other;
    struct rbi_record record;
    join(&me);
    join(&other);
    put(&me, 'a');
    uint32_t word = rbi_load_total32(&ground->header.items.word);
    leave_ground(&other);
    TEST_ASSERT_EQUAL_UINT32(0, wakes_since(word));
    join(&other);
    take(&other, &record);
    leave_ground(&other);
    TEST_ASSERT_EQUAL_UINT32(1, wakes_since(word));
    join(&other);
    claim(&other);
    leave_ground(&other);
    TEST_ASSERT_EQUAL_UINT32(2, wakes_since(word));
    leave_ground(&me);
}

static void test_asking_about_a_lock_tells_whether_another_one_has_it_and_changes_nothing(void)
{
    struct view a, b;
    join(&a);
    view_ground(&b, PARTICIPANTS);
    for (int twice = 0; twice < 2; twice++) {
        TEST_ASSERT_TRUE(rbi_lock_is_held(b.registry.fd, RBI_LOCK_OWNER + 1));
        TEST_ASSERT_FALSE(rbi_lock_is_held(b.registry.fd, RBI_LOCK_OWNER + 2));
        TEST_ASSERT_FALSE(rbi_lock_is_held(a.registry.fd, RBI_LOCK_OWNER + 1)); /* its own */
        TEST_ASSERT_FALSE(rbi_lock_is_held(a.registry.fd, RBI_LOCK_OWNER + 2)); /* and asking has not locked it */
    }
    TEST_ASSERT_FALSE(rbi_lock_is_held(-1, RBI_LOCK_OWNER + 1));
    die_quietly(&a);
    TEST_ASSERT_FALSE(rbi_lock_is_held(b.registry.fd, RBI_LOCK_OWNER + 1));
    TEST_ASSERT_EQUAL_UINT64(1, recover(&b));
    leave_ground(&b);
}

/* ---- when to look: by a clock of ours ---- */

static const int64_t noon = INT64_C(1000) * 3600 * 1000 * MILLISECOND;

static struct rbi_watch *shared_watch(void) { return &ground->header.watch; }

/** What the last look cost, whatever it really did. */
static void pretend_cost(uint64_t ns) { rbi_store_relaxed64(&shared_watch()->cost_ns, ns); }

/** Another handle looks. */
static void pretend_look(int64_t now_ns) { rbi_store_relaxed64(&shared_watch()->looked_ns, (uint64_t)now_ns); }

/** Join, as at noon. */
static void join_at_noon(struct view *view)
{
    join(view);
    rbi_store_relaxed64(&view->registry.vigil.own_ns, (uint64_t)noon);
}

/** Whether it looks now, at this time and on this occasion. */
static bool looks(struct view *view, int64_t now_ns, enum rbi_occasion occasion)
{
    uint64_t recovered = UINT64_MAX, cost = rbi_load_relaxed64(&shared_watch()->cost_ns);
    ASSERT_OK(rbi_registry_recover_if_due(&view->registry, now_ns, occasion, &recovered));
    TEST_ASSERT_EQUAL_UINT64(0, recovered);
    pretend_cost(cost);
    rbi_store_relaxed64(&view->registry.vigil.cost_ns, 0);
    return rbi_load_relaxed64(&shared_watch()->looked_ns) == (uint64_t)now_ns;
}

static void test_one_look_serves_all_and_the_next_is_due_a_period_later(void)
{
    struct view a, b;
    join_at_noon(&a);
    join_at_noon(&b);
    TEST_ASSERT_TRUE(looks(&a, noon, RBI_WAITING)); /* nobody ever has */
    TEST_ASSERT_EQUAL_UINT64(2, rbi_load_relaxed64(&shared_watch()->participants));
    for (int64_t ms = 0; ms < 100; ms++) {
        TEST_ASSERT_FALSE(looks(&b, noon + ms * MILLISECOND + 1, RBI_WAITING));
        TEST_ASSERT_FALSE(looks(&a, noon + ms * MILLISECOND + 1, RBI_WAITING));
    }
    TEST_ASSERT_TRUE(looks(&b, noon + 100 * MILLISECOND, RBI_WAITING));
    TEST_ASSERT_FALSE(looks(&a, noon + 100 * MILLISECOND + 1, RBI_WAITING));
    leave_ground(&a);
    leave_ground(&b);
}

static void test_a_look_whose_looker_died_is_taken_by_the_next_one_a_period_later(void)
{
    struct view me, dead, looker;
    uint64_t recovered;
    join_at_noon(&me);
    join(&dead);
    join(&looker);
    die_quietly(&dead);
    pretend_look(noon); /* it has claimed the look, and died */
    die_quietly(&looker);
    ASSERT_OK(rbi_registry_recover_if_due(&me.registry, noon + 99 * MILLISECOND, RBI_WAITING, &recovered));
    TEST_ASSERT_EQUAL_UINT64(0, recovered);
    ASSERT_OK(rbi_registry_recover_if_due(&me.registry, noon + 100 * MILLISECOND, RBI_WAITING, &recovered));
    TEST_ASSERT_EQUAL_UINT64(2, recovered);
    leave_ground(&me);
}

static void test_the_period_is_200_times_the_cost_and_no_cost_makes_it_more_than_10_s(void)
{
    static const struct { uint64_t cost_ns; int64_t period_ms; } cases[] = {
        {0, 100}, {500000, 100}, {1000000, 200}, {7000000, 1400}, {50000000, 10000}, {50000001, 10000}, {UINT64_MAX, 10000},
    };
    struct view a;
    join(&a);
    int64_t now_ns = noon;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rbi_store_relaxed64(&a.registry.vigil.own_ns, (uint64_t)(now_ns + cases[i].period_ms * MILLISECOND - 1)); /* so it need not */
        pretend_look(now_ns);
        pretend_cost(cases[i].cost_ns);
        now_ns += cases[i].period_ms * MILLISECOND;
        TEST_ASSERT_FALSE(looks(&a, now_ns - 1, RBI_WAITING));
        TEST_ASSERT_TRUE(looks(&a, now_ns, RBI_WAITING));
        now_ns++;
    }
    leave_ground(&a);
}

static void test_a_look_in_the_future_or_the_past_of_our_clock_ages_from_when_we_first_see_it(void)
{
    static const int64_t other_clocks[] = {3600, -3600};
    struct view a;
    join(&a);
    int64_t now_ns = noon;
    for (int i = 0; i < 2; i++) {
        rbi_store_relaxed64(&a.registry.vigil.own_ns, (uint64_t)now_ns);
        now_ns += 200 * MILLISECOND;
        TEST_ASSERT_TRUE(looks(&a, now_ns, RBI_WAITING));
        pretend_look(now_ns + other_clocks[i] * 1000 * MILLISECOND);
        now_ns += 50 * MILLISECOND;
        TEST_ASSERT_FALSE(looks(&a, now_ns, RBI_WAITING)); /* seen first */
        TEST_ASSERT_FALSE(looks(&a, now_ns + 99 * MILLISECOND, RBI_WAITING));
        TEST_ASSERT_TRUE(looks(&a, now_ns + 100 * MILLISECOND, RBI_WAITING));
        now_ns += 100 * MILLISECOND;
    }
    leave_ground(&a);
}

static void test_one_who_only_pretends_to_look_keeps_nobody_from_looking(void)
{
    static const uint64_t lies[] = {0, 1, UINT64_MAX};
    struct view a;
    join_at_noon(&a);
    TEST_ASSERT_EQUAL_UINT32(1, rbi_registry_high(&a.registry));
    for (int ms = 10; ms < 400; ms += 10) {
        pretend_look(noon + ms * MILLISECOND - 1);
        TEST_ASSERT_FALSE(looks(&a, noon + ms * MILLISECOND, RBI_WAITING));
    }
    pretend_look(noon + 400 * MILLISECOND - 1);
    TEST_ASSERT_TRUE(looks(&a, noon + 400 * MILLISECOND, RBI_WAITING)); /* 4 periods for each participant */
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        int64_t now_ns = noon + (int64_t)(i + 2) * 400 * MILLISECOND;
        rbi_store_relaxed64(&shared_watch()->looked_ns, lies[i]);
        rbi_store_relaxed64(&shared_watch()->cost_ns, lies[i]);
        rbi_store_relaxed64(&shared_watch()->participants, lies[i]);
        TEST_ASSERT_TRUE(looks(&a, now_ns, RBI_WAITING));
    }
    leave_ground(&a);
}

static void test_with_few_participants_every_poll_and_attachment_looks_and_with_many_not_so_soon_after_another_look(void)
{
    struct view a;
    join_at_noon(&a);
    pretend_cost(1000000);
    for (int64_t i = 0; i < 3; i++) {
        TEST_ASSERT_TRUE(looks(&a, noon + 2 * i, RBI_POLLING));
        TEST_ASSERT_TRUE(looks(&a, noon + 2 * i + 1, RBI_ATTACHING));
    }
    rbi_store_total32(&ground->header.participants_high, 17);
    pretend_look(noon + 10);
    TEST_ASSERT_FALSE(looks(&a, noon + 9 + 20 * MILLISECOND, RBI_POLLING));
    TEST_ASSERT_FALSE(looks(&a, noon + 9 + 20 * MILLISECOND, RBI_ATTACHING));
    TEST_ASSERT_TRUE(looks(&a, noon + 10 + 20 * MILLISECOND, RBI_ATTACHING));
    TEST_ASSERT_TRUE(looks(&a, noon + 10 + 40 * MILLISECOND, RBI_POLLING));
    pretend_cost(1000);
    TEST_ASSERT_TRUE(looks(&a, noon + 40 * MILLISECOND + 20010, RBI_ATTACHING));
    TEST_ASSERT_FALSE(looks(&a, noon + 50 * MILLISECOND + 20009, RBI_POLLING));
    TEST_ASSERT_TRUE(looks(&a, noon + 50 * MILLISECOND + 20010, RBI_POLLING));
    leave_ground(&a);
}

static void test_a_look_that_is_asked_for_is_always_taken_and_serves_the_others(void)
{
    struct view a, b;
    join(&a);
    join(&b);
    for (int i = 0; i < 3; i++) {
        uint64_t before = rbi_load_relaxed64(&shared_watch()->looked_ns);
        recover(&a);
        TEST_ASSERT_TRUE(rbi_load_relaxed64(&shared_watch()->looked_ns) != before);
    }
    pretend_cost(0);
    TEST_ASSERT_FALSE(looks(&b, (int64_t)rbi_load_relaxed64(&shared_watch()->looked_ns) + 99 * MILLISECOND, RBI_WAITING));
    leave_ground(&a);
    leave_ground(&b);
}

/* ---- when to wake up ---- */

/** It wakes up at this time; returns how long it rests then. */
static int64_t rest_after(struct view *view, int64_t now_ns)
{
    uint64_t recovered;
    rbi_store_relaxed64(&view->registry.vigil.own_ns, (uint64_t)now_ns);
    ASSERT_OK(rbi_registry_watch(&view->registry, now_ns, &recovered));
    pretend_cost(0);
    return (int64_t)rbi_load_relaxed64(&view->registry.vigil.wakes_ns) - now_ns;
}

static void assert_between(int64_t least_ms, int64_t most_ms, int64_t ns)
{
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(least_ms * MILLISECOND, ns);
    TEST_ASSERT_LESS_OR_EQUAL_INT64(most_ms * MILLISECOND, ns);
}

static void test_one_who_waits_alone_wakes_up_exactly_when_a_look_is_due(void)
{
    struct view a;
    join_at_noon(&a);
    int64_t now_ns = noon;
    for (int i = 0; i < 20; i++) {
        TEST_ASSERT_EQUAL_INT64(100 * MILLISECOND, rest_after(&a, now_ns));
        TEST_ASSERT_EQUAL_UINT64((uint64_t)now_ns, rbi_load_relaxed64(&shared_watch()->looked_ns));
        now_ns += 100 * MILLISECOND;
    }
    leave_ground(&a);
}

static void test_where_others_look_a_rest_grows_and_is_100_ms_again_once_a_look_is_overdue(void)
{
    static const struct { uint64_t participants; int64_t most_ms; } crowds[] = {
        {0, 100}, {1, 100}, {2, 200}, {5, 500}, {20, 2000}, {500, 2000}, {750, 3000}, {1000, 4000}, {4095, 4000}, {UINT64_MAX, 4000},
    };
    struct view a;
    join(&a);
    int64_t now_ns = noon;
    for (size_t i = 0; i < sizeof crowds / sizeof *crowds; i++) {
        int64_t expected_ms = 100;
        rbi_store_relaxed64(&a.registry.vigil.rest_ns, 0);
        for (int times = 0; times < 10; times++) {
            rbi_store_relaxed64(&shared_watch()->participants, crowds[i].participants);
            pretend_look(now_ns - 1);
            expected_ms = times && expected_ms * 2 < crowds[i].most_ms ? expected_ms * 2 : times ? crowds[i].most_ms : 100;
            int64_t rest_ns = rest_after(&a, now_ns);
            /* Not before the next look is due. */
            assert_between(expected_ms / 2 > 99 ? expected_ms / 2 : 99, expected_ms, rest_ns);
            now_ns += rest_ns;
        }
        now_ns += 150 * MILLISECOND;
        TEST_ASSERT_EQUAL_INT64(100 * MILLISECOND, rest_after(&a, now_ns));
        now_ns += 100 * MILLISECOND;
    }
    leave_ground(&a);
}

static void test_one_who_looks_a_little_late_rests_as_before(void)
{
    struct view views[5];
    for (int i = 0; i < 5; i++) join(&views[i]);
    rbi_store_relaxed64(&views[0].registry.vigil.rest_ns, UINT64_C(500) * MILLISECOND);
    pretend_look(noon - 149 * MILLISECOND);
    assert_between(250, 500, rest_after(&views[0], noon));
    TEST_ASSERT_EQUAL_UINT64((uint64_t)noon, rbi_load_relaxed64(&shared_watch()->looked_ns));
    TEST_ASSERT_EQUAL_UINT64(UINT64_C(500) * MILLISECOND, rbi_load_relaxed64(&views[0].registry.vigil.rest_ns));
    for (int i = 0; i < 5; i++) leave_ground(&views[i]);
}

static void test_no_rest_is_longer_than_4_s_however_dear_a_look_is(void)
{
    struct view a;
    join(&a);
    pretend_look(noon - 1);
    pretend_cost(UINT64_MAX);
    TEST_ASSERT_EQUAL_INT64(INT64_C(4000) * MILLISECOND, rest_after(&a, noon));
    leave_ground(&a);
}

static void test_those_who_begin_together_do_not_rest_for_the_same_time(void)
{
    struct view views[PARTICIPANTS];
    int64_t rests[PARTICIPANTS];
    int same = 0;
    for (int i = 0; i < PARTICIPANTS; i++) join(&views[i]);
    for (int i = 0; i < PARTICIPANTS; i++) {
        rbi_store_relaxed64(&views[i].registry.vigil.rest_ns, UINT64_C(2000) * MILLISECOND);
        pretend_look(noon - 1);
        rbi_store_relaxed64(&shared_watch()->participants, PARTICIPANTS);
        rests[i] = rest_after(&views[i], noon);
        for (int other = 0; other < i; other++) same += rests[other] == rests[i];
    }
    TEST_ASSERT_EQUAL_INT(0, same);
    for (int i = 0; i < PARTICIPANTS; i++) leave_ground(&views[i]);
}

static void test_of_a_deadline_and_a_rest_that_end_about_the_same_time_the_later_counts_where_others_look(void)
{
    struct view a;
    join(&a);
    struct rbi_vigil *vigil = &a.registry.vigil;
    rbi_store_relaxed64(&vigil->wakes_ns, (uint64_t)(noon + 1500 * MILLISECOND));
    rbi_store_relaxed64(&vigil->rest_ns, UINT64_C(2000) * MILLISECOND);
    const int64_t wakes = noon + 1500 * MILLISECOND;
    TEST_ASSERT_EQUAL_INT64(noon + 10, rbi_registry_sleeps_until(&a.registry, noon, noon + 10));
    TEST_ASSERT_EQUAL_INT64(wakes - 1, rbi_registry_sleeps_until(&a.registry, noon, wakes - 1));
    TEST_ASSERT_EQUAL_INT64(wakes + 999 * MILLISECOND, rbi_registry_sleeps_until(&a.registry, noon, wakes + 999 * MILLISECOND));
    TEST_ASSERT_EQUAL_INT64(wakes, rbi_registry_sleeps_until(&a.registry, noon, wakes + 1000 * MILLISECOND));
    TEST_ASSERT_EQUAL_INT64(wakes, rbi_registry_sleeps_until(&a.registry, noon, RINGBUF_FOREVER));
    TEST_ASSERT_FALSE(rbi_registry_wakes_now(&a.registry, wakes - 1, false));
    TEST_ASSERT_TRUE(rbi_registry_wakes_now(&a.registry, wakes, false));
    TEST_ASSERT_FALSE(rbi_registry_wakes_now(&a.registry, wakes - 501 * MILLISECOND, true));
    TEST_ASSERT_TRUE(rbi_registry_wakes_now(&a.registry, wakes - 500 * MILLISECOND, true));
    rbi_store_relaxed64(&vigil->rest_ns, UINT64_C(100) * MILLISECOND); /* nobody else looks: in time */
    TEST_ASSERT_EQUAL_INT64(wakes, rbi_registry_sleeps_until(&a.registry, noon, wakes + 1));
    TEST_ASSERT_FALSE(rbi_registry_wakes_now(&a.registry, wakes - 1, true));
    leave_ground(&a);
}

static void test_joining_where_somebody_died_recovers_him_first(void)
{
    struct view dead, me;
    struct rbi_record record;
    join(&dead);
    put(&dead, 'a');
    take(&dead, &record);
    die_quietly(&dead);
    /* Its process died after writing the entry and before raising the highest number: nobody else looks at it. */
    rbi_store_total32(&ground->header.participants_high, 0);
    TEST_ASSERT_EQUAL_UINT32(1, join(&me));
    TEST_ASSERT_EQUAL_UINT64(1, rbi_load_relaxed64(&ground->header.recoveries));
    TEST_ASSERT_EQUAL_INT('a', take(&me, &record));
    leave_ground(&me);
}

static void test_a_dead_one_s_number_is_not_given_away_before_it_is_recovered(void)
{
    struct view dead, me;
    join(&dead);
    die_quietly(&dead);
    TEST_ASSERT_EQUAL_UINT32(2, join(&me));
    TEST_ASSERT_EQUAL_UINT64(1, recover(&me));
    struct view next;
    TEST_ASSERT_EQUAL_UINT32(1, join(&next));
    leave_ground(&next);
    leave_ground(&me);
}

static void test_leaving_gives_back_what_was_taken_and_gives_up_what_was_claimed(void)
{
    struct view a, b;
    struct rbi_record record;
    join(&a);
    join(&b);
    put(&a, '1');
    put(&a, '2');
    TEST_ASSERT_EQUAL_INT('1', take(&b, &record));
    claim(&b);
    leave_ground(&b);
    TEST_ASSERT_EQUAL_INT('1', take(&a, &record));
    rbi_ring_release(&a.ring, &record);
    TEST_ASSERT_EQUAL_INT('2', take(&a, &record));
    rbi_ring_release(&a.ring, &record);
    TEST_ASSERT_EQUAL_INT(RBI_RING_EMPTY, rbi_ring_take(&a.ring, &record, 1, UINT64_MAX));
    leave_ground(&a);
}

static void test_recovery_of_a_damaged_ring_says_so_and_leaves_the_entry_for_later(void)
{
    struct view dead, me;
    join(&dead);
    join(&me);
    struct rbi_record record = claim(&dead);
    uint64_t index = record.position & ((1 << CELLS_LOG2) - 1), recovered;
    uint64_t good = rbi_load_total64(&ground->slots[index].word);
    rbi_store_total64(&ground->slots[index].word, good & ~((uint64_t)((1 << CELLS_LOG2) - 1) << 16)); /* no cells */
    die_quietly(&dead);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, rbi_registry_recover(&me.registry, &recovered));
    TEST_ASSERT_TRUE(entry_used(1));
    rbi_store_total64(&ground->slots[index].word, good);
    TEST_ASSERT_EQUAL_UINT64(1, recover(&me));
    leave_ground(&me);
}

/* ---- counters, and what is owed ---- */

static void test_counters_go_on_counting_when_a_number_is_used_again(void)
{
    struct view a;
    join(&a);
    rbi_store_relaxed64(&ground->entries[0].puts, 7);
    rbi_store_relaxed64(&ground->entries[0].gets, 5);
    rbi_store_relaxed64(&ground->entries[0].done, 2);
    leave_ground(&a);
    join(&a);
    TEST_ASSERT_EQUAL_UINT64(7, rbi_load_relaxed64(&ground->entries[0].puts));
    TEST_ASSERT_EQUAL_UINT64(7, ground->entries[0].puts_before);
    TEST_ASSERT_EQUAL_UINT64(5, ground->entries[0].gets_before);
    TEST_ASSERT_EQUAL_UINT64(3, ground->entries[0].owed_before);
    leave_ground(&a);
}

/** As if it had got so many messages and marked so many as done. */
static void pretend_work(struct view *view, uint64_t gets, uint64_t done)
{
    rbi_own_add64(&rbi_registry_me(&view->registry)->gets, gets);
    rbi_own_add64(&rbi_registry_me(&view->registry)->done, done);
}

/** Messages got that still wait for being marked done. */
static uint64_t owed(struct view *view)
{
    return rbi_registry_gets_owed(&view->registry) - rbi_registry_done(&view->registry);
}

static void test_what_a_dead_one_had_not_marked_done_is_forgiven(void)
{
    struct view me, dead;
    join(&me);
    join(&dead);
    pretend_work(&me, 2, 0);
    pretend_work(&dead, 5, 1);
    TEST_ASSERT_EQUAL_UINT64(6, owed(&me));
    die_quietly(&dead);
    recover(&me);
    TEST_ASSERT_EQUAL_UINT64(2, owed(&me)); /* those of the living stay */
    TEST_ASSERT_EQUAL_UINT64(4, rbi_load_relaxed64(&ground->entries[1].forgiven));
    leave_ground(&me);
}

static void test_forgiving_twice_changes_nothing_more(void)
{
    struct view me, dead;
    join(&me);
    join(&dead);
    pretend_work(&dead, 3, 0);
    die_quietly(&dead);
    recover(&me);
    rbi_store_total32(&ground->entries[1].state, 1); /* its recoverer died before it freed the entry */
    TEST_ASSERT_EQUAL_UINT64(1, recover(&me));
    TEST_ASSERT_EQUAL_UINT64(3, rbi_load_relaxed64(&ground->entries[1].forgiven));
    TEST_ASSERT_EQUAL_UINT64(0, owed(&me));
    leave_ground(&me);
}

static void test_what_one_who_left_had_not_marked_done_is_not_forgiven_with_his_successor(void)
{
    struct view me, other;
    join(&me);
    join(&other);
    pretend_work(&other, 3, 0);
    leave_ground(&other);
    TEST_ASSERT_EQUAL_UINT64(3, owed(&me)); /* somebody else may yet mark them */
    TEST_ASSERT_EQUAL_UINT32(2, join(&other));
    pretend_work(&other, 2, 1);
    die_quietly(&other);
    recover(&me);
    TEST_ASSERT_EQUAL_UINT64(3, owed(&me));
    leave_ground(&me);
}

static void test_no_more_is_forgiven_than_all_together_owe(void)
{
    struct view me, dead;
    join(&me);
    join(&dead);
    pretend_work(&dead, 3, 0);
    pretend_work(&me, 0, 2); /* marked by somebody else in its place */
    die_quietly(&dead);
    recover(&me);
    TEST_ASSERT_EQUAL_UINT64(1, rbi_load_relaxed64(&ground->entries[1].forgiven));
    TEST_ASSERT_EQUAL_UINT64(0, owed(&me));
    leave_ground(&me);
}

static void test_absurd_counters_of_a_dead_one_forgive_nothing(void)
{
    struct view me, dead;
    join(&me);
    join(&dead);
    pretend_work(&me, 3, 0);
    rbi_store_relaxed64(&ground->entries[1].gets, UINT64_C(1) << 63); /* minus that many, it owes, */
    ground->entries[1].owed_before = INT64_MAX;                       /* and owed before it came */
    die_quietly(&dead);
    recover(&me);
    TEST_ASSERT_EQUAL_UINT64(0, rbi_load_relaxed64(&ground->entries[1].forgiven));
    leave_ground(&me);
}

int main(void)
{
    UNITY_BEGIN();
    RUN_TEST(test_participants_get_numbers_from_one_on);
    RUN_TEST(test_a_number_is_used_again_only_after_its_participant_left);
    RUN_TEST(test_leaving_without_having_joined_does_nothing);
    RUN_TEST(test_a_registry_with_everybody_in_it_is_crowded_until_one_leaves);
    RUN_TEST(test_a_participant_without_a_label_bears_its_command_name);
    RUN_TEST(test_a_label_that_is_too_long_is_cut_and_ends_in_a_zero);
    RUN_TEST(test_a_highest_number_beyond_all_entries_is_not_believed);
    RUN_TEST(test_a_killed_participant_is_recovered_and_its_messages_go_to_others);
    RUN_TEST(test_a_stopped_participant_is_alive_and_keeps_what_it_has);
    RUN_TEST(test_many_dead_are_recovered_in_one_go);
    RUN_TEST(test_leaving_wakes_others_only_if_something_goes_back);
    RUN_TEST(test_asking_about_a_lock_tells_whether_another_one_has_it_and_changes_nothing);
    RUN_TEST(test_one_look_serves_all_and_the_next_is_due_a_period_later);
    RUN_TEST(test_a_look_whose_looker_died_is_taken_by_the_next_one_a_period_later);
    RUN_TEST(test_the_period_is_200_times_the_cost_and_no_cost_makes_it_more_than_10_s);
    RUN_TEST(test_a_look_in_the_future_or_the_past_of_our_clock_ages_from_when_we_first_see_it);
    RUN_TEST(test_one_who_only_pretends_to_look_keeps_nobody_from_looking);
    RUN_TEST(test_with_few_participants_every_poll_and_attachment_looks_and_with_many_not_so_soon_after_another_look);
    RUN_TEST(test_a_look_that_is_asked_for_is_always_taken_and_serves_the_others);
    RUN_TEST(test_one_who_waits_alone_wakes_up_exactly_when_a_look_is_due);
    RUN_TEST(test_where_others_look_a_rest_grows_and_is_100_ms_again_once_a_look_is_overdue);
    RUN_TEST(test_one_who_looks_a_little_late_rests_as_before);
    RUN_TEST(test_no_rest_is_longer_than_4_s_however_dear_a_look_is);
    RUN_TEST(test_those_who_begin_together_do_not_rest_for_the_same_time);
    RUN_TEST(test_of_a_deadline_and_a_rest_that_end_about_the_same_time_the_later_counts_where_others_look);
    RUN_TEST(test_joining_where_somebody_died_recovers_him_first);
    RUN_TEST(test_a_dead_one_s_number_is_not_given_away_before_it_is_recovered);
    RUN_TEST(test_leaving_gives_back_what_was_taken_and_gives_up_what_was_claimed);
    RUN_TEST(test_recovery_of_a_damaged_ring_says_so_and_leaves_the_entry_for_later);
    RUN_TEST(test_counters_go_on_counting_when_a_number_is_used_again);
    RUN_TEST(test_what_a_dead_one_had_not_marked_done_is_forgiven);
    RUN_TEST(test_forgiving_twice_changes_nothing_more);
    RUN_TEST(test_what_one_who_left_had_not_marked_done_is_not_forgiven_with_his_successor);
    RUN_TEST(test_no_more_is_forgiven_than_all_together_owe);
    RUN_TEST(test_absurd_counters_of_a_dead_one_forgive_nothing);
    return UNITY_END();
}
