/* test_registry.c — floor 2: participants: numbers, deaths, what is forgiven.  On a nameless file, without handles: a registry that
 * closes its file has died as far as its locks tell; the tests that say "killed" kill a process. */
#include "support.h"

#include "registry.h"

enum { PARTICIPANTS = 8, CELLS_LOG2 = 5, CELL_LOG2 = RBI_CELL_MIN_LOG2, RING_BYTES = 1 << (CELLS_LOG2 + CELL_LOG2) };

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
    TEST_ASSERT_EQUAL_UINT64(5, recover(&me));
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, rbi_ring_count(&me.ring, &items));
    TEST_ASSERT_EQUAL_UINT64(5, items);
    for (uint32_t number = 1; number <= 5; number++) TEST_ASSERT_FALSE(entry_used(number));
    TEST_ASSERT_TRUE(entry_used(6));
    leave_ground(&me);
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
