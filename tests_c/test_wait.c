/* test_wait.c — floor 2: event words: no wake is lost, a deadline is a point in time, a signal ends a sleep. */
#include "support.h"

#include "wait.h"

#include <pthread.h>
#include <sys/time.h>

static struct rbi_event event;

void setUp(void) { memset(&event, 0, sizeof event); }
void tearDown(void) {}

static uint32_t word_now(void) { return rbi_load_total32(&event.word); }

/* ---- the word ---- */

static void test_announcing_sets_the_flag_and_returns_the_word_to_sleep_on(void)
{
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
    uint32_t key = rbi_event_announce(&event);
    TEST_ASSERT_TRUE(rbi_event_has_waiters(&event));
    TEST_ASSERT_EQUAL_UINT32(key, word_now());
    TEST_ASSERT_EQUAL_UINT32(key, rbi_event_announce(&event)); /* a second sleeper has the same key */
    TEST_ASSERT_EACH_EQUAL_UINT32(0, event.zero, sizeof event.zero / sizeof *event.zero);
}

static void test_waking_one_where_nobody_is_announced_changes_nothing(void)
{
    for (int i = 0; i < 3; i++) rbi_event_wake_one(&event);
    TEST_ASSERT_EQUAL_UINT32(0, word_now());
}

static void test_waking_one_clears_the_flag_and_changes_the_word(void)
{
    uint32_t key = rbi_event_announce(&event);
    rbi_event_wake_one(&event);
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
    TEST_ASSERT_TRUE(word_now() != key);
    TEST_ASSERT_TRUE(rbi_event_announce(&event) != key); /* also for the next sleeper */
}

static void test_waking_all_changes_the_word_also_where_nobody_is_announced(void)
{
    rbi_event_wake_all(&event);
    uint32_t first = word_now();
    TEST_ASSERT_TRUE(first != 0);
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
    rbi_event_wake_all(&event);
    TEST_ASSERT_TRUE(word_now() != first);
}

static void test_the_count_of_wakes_wraps_and_leaves_the_other_flag_alone(void)
{
    rbi_store_total32(&event.word, UINT32_MAX);
    uint32_t key = rbi_event_announce(&event);
    TEST_ASSERT_EQUAL_UINT32(UINT32_MAX, key);
    rbi_event_wake_one(&event);
    TEST_ASSERT_EQUAL_UINT32(2, word_now()); /* the listeners' flag stays */
    ASSERT_OK(rbi_event_sleep(&event, key, RINGBUF_FOREVER));
}

/* ---- listeners ---- */

static void test_listening_sets_a_flag_beside_that_of_the_sleepers(void)
{
    TEST_ASSERT_FALSE(rbi_event_has_listeners(&event));
    TEST_ASSERT_FALSE(rbi_event_is_heard(&event));
    rbi_event_listen(&event);
    TEST_ASSERT_TRUE(rbi_event_has_listeners(&event));
    TEST_ASSERT_TRUE(rbi_event_is_heard(&event));
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
    uint32_t word = word_now();
    rbi_event_listen(&event);
    TEST_ASSERT_EQUAL_UINT32(word, word_now());
    uint32_t key = rbi_event_announce(&event);
    rbi_event_unlisten(&event);
    TEST_ASSERT_FALSE(rbi_event_has_listeners(&event));
    TEST_ASSERT_TRUE(rbi_event_has_waiters(&event));
    TEST_ASSERT_TRUE(rbi_event_is_heard(&event));
    TEST_ASSERT_EQUAL_UINT32(key & ~word, word_now()); /* nothing else has changed */
    rbi_event_unlisten(&event);
    TEST_ASSERT_EQUAL_UINT32(key & ~word, word_now());
}

static void test_every_wake_says_whether_there_are_listeners_and_leaves_their_flag(void)
{
    TEST_ASSERT_FALSE(rbi_event_wake_one(&event));
    TEST_ASSERT_FALSE(rbi_event_wake_all_if_any(&event));
    TEST_ASSERT_FALSE(rbi_event_wake_all(&event));
    rbi_event_announce(&event);
    TEST_ASSERT_FALSE(rbi_event_wake_one(&event));
    rbi_event_announce(&event);
    TEST_ASSERT_FALSE(rbi_event_wake_all_if_any(&event));
    for (int sleepers = 0; sleepers < 2; sleepers++) {
        rbi_event_listen(&event);
        if (sleepers) rbi_event_announce(&event);
        TEST_ASSERT_TRUE(rbi_event_wake_one(&event));
        TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
        if (sleepers) rbi_event_announce(&event);
        TEST_ASSERT_TRUE(rbi_event_wake_all_if_any(&event));
        TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
        if (sleepers) rbi_event_announce(&event);
        TEST_ASSERT_TRUE(rbi_event_wake_all(&event));
        TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
        TEST_ASSERT_TRUE(rbi_event_has_listeners(&event));
    }
}

static void test_waking_one_where_only_listeners_are_changes_nothing(void)
{
    rbi_event_listen(&event);
    uint32_t word = word_now();
    rbi_event_wake_one(&event);
    rbi_event_wake_all_if_any(&event);
    TEST_ASSERT_EQUAL_UINT32(word, word_now());
}

static void *listen_and_unlisten(void *stop)
{
    while (!atomic_load((stage *)stop)) {
        rbi_event_listen(&event);
        rbi_event_unlisten(&event);
    }
    return NULL;
}

static void test_a_wake_is_not_lost_to_one_who_changes_the_other_flag(void)
{
    stage stop = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, listen_and_unlisten, &stop);
    for (int i = 0; i < 100000; i++) {
        uint32_t key = rbi_event_announce(&event);
        rbi_event_wake_one(&event);
        if (rbi_event_has_waiters(&event) || (word_now() & ~2u) == (key & ~2u)) break;
        if (i == 99999) atomic_store(&stop, 2);
    }
    bool all = atomic_load(&stop) == 2;
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
    TEST_ASSERT_TRUE_MESSAGE(all, "a wake left the sleeper's flag");
}

/* ---- sleeping ---- */

static void test_a_wake_between_announcement_and_sleep_ends_the_sleep_at_once(void)
{
    uint32_t key = rbi_event_announce(&event);
    rbi_event_wake_one(&event);
    ASSERT_OK(rbi_event_sleep(&event, key, RINGBUF_FOREVER));
    key = rbi_event_announce(&event);
    rbi_event_wake_all(&event);
    ASSERT_OK(rbi_event_sleep(&event, key, RINGBUF_FOREVER));
}

static void test_a_sleep_that_nobody_ends_lasts_until_its_point_in_time(void)
{
    uint32_t key = rbi_event_announce(&event);
    int64_t until_ns = rbi_monotonic_ns() + 20 * MILLISECOND;
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, rbi_event_sleep(&event, key, until_ns));
    TEST_ASSERT_GREATER_OR_EQUAL_INT64(until_ns, rbi_monotonic_ns());
    TEST_ASSERT_EQUAL_UINT32(key, word_now()); /* the announcement stays */
}

static void test_a_point_in_the_past_is_a_timeout_without_a_sleep(void)
{
    uint32_t key = rbi_event_announce(&event);
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, rbi_event_sleep(&event, key, rbi_monotonic_ns() - MILLISECOND));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, rbi_event_sleep(&event, key, 1));
}

/* ---- sleepers in other threads ---- */

struct sleepers {
    stage announced, woken;
};

static void *sleep_until_woken(void *context)
{
    struct sleepers *sleepers = context;
    uint32_t key = rbi_event_announce(&event);
    atomic_fetch_add(&sleepers->announced, 1);
    ringbuf_status status = rbi_event_sleep(&event, key, RINGBUF_FOREVER);
    if (status == RINGBUF_OK) atomic_fetch_add(&sleepers->woken, 1);
    return NULL;
}

static void test_waking_all_wakes_every_sleeper(void)
{
    enum { THREADS = 4 };
    struct sleepers sleepers = {0};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, sleep_until_woken, &sleepers);
    wait_for_stage(&sleepers.announced, THREADS);
    nap_ms(20); /* most are asleep now; who is not finds the word changed */
    rbi_event_wake_all(&event);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    TEST_ASSERT_EQUAL_INT(THREADS, atomic_load(&sleepers.woken));
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&event));
}

static void test_a_wake_for_one_can_be_passed_on_until_everybody_is_up(void)
{
    enum { THREADS = 3 };
    struct sleepers sleepers = {0};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, sleep_until_woken, &sleepers);
    wait_for_stage(&sleepers.announced, THREADS);
    nap_ms(20);
    rbi_event_wake_one(&event);
    wait_for_stage(&sleepers.woken, 1);
    while (atomic_load(&sleepers.woken) < THREADS) {
        rbi_event_leave(&event); /* as who was woken does, for the others */
        rbi_event_wake_one(&event);
        nap_ms(1);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

/* ---- sleepers in other processes ---- */

struct shared {
    struct rbi_event event;
    stage announced;
};

static int sleep_in_child(void *context)
{
    struct shared *shared = context;
    uint32_t key = rbi_event_announce(&shared->event);
    atomic_fetch_add(&shared->announced, 1);
    return (int)rbi_event_sleep(&shared->event, key, RINGBUF_FOREVER);
}

static void test_a_sleeper_in_another_process_is_woken(void)
{
    struct shared *shared = share_memory(sizeof *shared);
    pid_t child = start_child(sleep_in_child, shared);
    wait_for_stage(&shared->announced, 1);
    nap_ms(20);
    rbi_event_wake_one(&shared->event);
    TEST_ASSERT_EQUAL_INT(RINGBUF_OK, end_of(child));
    munmap(shared, sizeof *shared);
}

static void test_a_killed_sleeper_leaves_a_flag_that_costs_one_wake(void)
{
    struct shared *shared = share_memory(sizeof *shared);
    pid_t child = start_child(sleep_in_child, shared);
    wait_for_stage(&shared->announced, 1);
    kill_child(child);
    TEST_ASSERT_TRUE(rbi_event_has_waiters(&shared->event));
    rbi_event_wake_one(&shared->event);
    TEST_ASSERT_FALSE(rbi_event_has_waiters(&shared->event));
    munmap(shared, sizeof *shared);
}

/* ---- signals ---- */

static volatile sig_atomic_t signals;
static void count_signal(int number)
{
    (void)number;
    signals = signals + 1;
}

static void test_a_signal_ends_a_sleep(void)
{
    struct sigaction action = {.sa_handler = count_signal};
    struct itimerval every_5_ms = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    uint32_t key = rbi_event_announce(&event);
    setitimer(ITIMER_REAL, &every_5_ms, NULL); /* again and again: the first may come before the sleep */
    ringbuf_status status = rbi_event_sleep(&event, key, rbi_monotonic_ns() + INT64_C(60000) * MILLISECOND);
    setitimer(ITIMER_REAL, &never, NULL);
    signal(SIGALRM, SIG_DFL);
    ASSERT_STATUS(RINGBUF_E_INTR, status);
    TEST_ASSERT_GREATER_THAN_INT(0, signals);
    TEST_ASSERT_EQUAL_UINT32(key, word_now());
}

int main(void)
{
    UNITY_BEGIN();
    RUN_TEST(test_announcing_sets_the_flag_and_returns_the_word_to_sleep_on);
    RUN_TEST(test_waking_one_where_nobody_is_announced_changes_nothing);
    RUN_TEST(test_waking_one_clears_the_flag_and_changes_the_word);
    RUN_TEST(test_waking_all_changes_the_word_also_where_nobody_is_announced);
    RUN_TEST(test_the_count_of_wakes_wraps_and_leaves_the_other_flag_alone);
    RUN_TEST(test_listening_sets_a_flag_beside_that_of_the_sleepers);
    RUN_TEST(test_every_wake_says_whether_there_are_listeners_and_leaves_their_flag);
    RUN_TEST(test_waking_one_where_only_listeners_are_changes_nothing);
    RUN_TEST(test_a_wake_is_not_lost_to_one_who_changes_the_other_flag);
    RUN_TEST(test_a_wake_between_announcement_and_sleep_ends_the_sleep_at_once);
    RUN_TEST(test_a_sleep_that_nobody_ends_lasts_until_its_point_in_time);
    RUN_TEST(test_a_point_in_the_past_is_a_timeout_without_a_sleep);
    RUN_TEST(test_a_sleeper_in_another_process_is_woken);
    RUN_TEST(test_a_killed_sleeper_leaves_a_flag_that_costs_one_wake);
    RUN_TEST(test_a_signal_ends_a_sleep);
    RUN_TEST(test_waking_all_wakes_every_sleeper);
    RUN_TEST(test_a_wake_for_one_can_be_passed_on_until_everybody_is_up);
    return UNITY_END();
}
