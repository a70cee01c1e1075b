/* test_truncation.c — somebody truncates a queue's file while it is mapped: guard.c, and what every call makes of it.
 *
 * The guard cannot be taken out again, so the tests that need a process without it come first and use children; main installs it
 * between the two groups. */
#include "support.h"

#include "segment.h"

#include <pthread.h>

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

enum { SMALL = 16, MEDIUM = 1000, LARGE = 100000, SLOTS = 512 /* of 64 KiB in cells of 128 bytes */ };

static const char bytes[LARGE] = {1, 2, 3};
static char buffer[2 * LARGE];

static ringbuf *create_flagged(const char *name, uint32_t flags)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.capacity_bytes = 1 << 16;
    options.arena_bytes = 1 << 20;
    options.max_participants = 64;
    options.flags = flags;
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, name, &options));
    return rb;
}

static ringbuf *create(void) { return create_flagged("queue", RINGBUF_AUTO_CLEANUP); }

/** What somebody else does, who is none of the queue's users. */
static void cut(const ringbuf *rb, uint64_t size)
{
    if (truncate(ringbuf_path(rb), (off_t)size) != 0) abort();
}

static bool truncated(ringbuf *rb)
{
    ringbuf_info info;
    ASSERT_OK(ringbuf_get_info(rb, &info));
    return info.truncated;
}

static int mappings(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    TEST_ASSERT_NOT_NULL(maps);
    while (fgets(line, sizeof line, maps)) count += strstr(line, suite_directory) != NULL;
    fclose(maps);
    return count;
}

static int descriptors(void) { return directory_entries("/proc/self/fd", NULL, 0); }

static int64_t soon(void) { return ringbuf_now_ns() + 50 * (int64_t)MILLISECOND; }


/** Put until it is answered otherwise. */
static ringbuf_status put_on(ringbuf *rb, size_t size, int *puts)
{
    ringbuf_status status;
    for (*puts = 0; (status = ringbuf_put(rb, bytes, size, 0)) == RINGBUF_OK; ++*puts) {}
    return status;
}

/* ---- a process without the guard, and one that installs it over another handler ---- */

/* These run in children, which end without tidying up; the queue is then unlinked. */

enum { SURVIVED = 3, WRONG = 4, HANDLED = 5 };

/** A file of our own that is no queue, mapped and truncated.  Whoever writes there gets SIGBUS. */
static volatile char *missing_page(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/other", suite_directory);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || unlink(path) != 0 || ftruncate(fd, 4096) != 0) _exit(WRONG);
    volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED || ftruncate(fd, 0) != 0) _exit(WRONG);
    close(fd);
    return page;
}

static ringbuf *damaged_queue(void)
{
    ringbuf *rb = NULL;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_OK) _exit(WRONG);
    cut(rb, 0);
    return rb;
}

static void assert_end(int expected, child_main *body)
{
    TEST_ASSERT_EQUAL_INT(expected, run_child(body, NULL));
    ringbuf_unlink_name("queue", NULL); /* if there is one */
}

static int put_unguarded(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_DFL); /* and not a sanitizer's */
    ringbuf_put(damaged_queue(), bytes, SMALL, 0);
    return SURVIVED;
}

static void test_without_the_guard_a_truncated_file_ends_the_process(void) { assert_end(-SIGBUS, put_unguarded); }

static int wait_unguarded(void *nothing)
{
    (void)nothing;
    size_t size;
    ringbuf *rb = NULL;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_OK) return WRONG;
    cut(rb, rb->stamp.arena_offset + 4096);
    if (ringbuf_get(rb, &size, buffer, sizeof buffer, RINGBUF_FOREVER) != RINGBUF_E_CORRUPT) return WRONG;
    return truncated(rb) ? 0 : WRONG;
}

static void test_one_who_waits_notices_also_without_the_guard_and_without_touching_what_is_missing(void)
{
    assert_end(0, wait_unguarded);
}

/** Use a damaged queue, which the guard must survive, then do `other`, and say whether we are still there. */
static int guarded_then(void (*other)(void))
{
    if (ringbuf_guard_truncation() != RINGBUF_OK) return WRONG;
    if (ringbuf_put(damaged_queue(), bytes, SMALL, 0) != RINGBUF_E_CORRUPT) return WRONG;
    other();
    return SURVIVED;
}

static void touch_other(void) { *missing_page() = 1; }
static void send_one(void) { kill(getpid(), SIGBUS); }

static int default_then_touch(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_DFL);
    return guarded_then(touch_other);
}

static int default_then_send(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_DFL);
    return guarded_then(send_one);
}

static int ignored_then_touch(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_IGN);
    return guarded_then(touch_other);
}

static int ignored_then_send(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_IGN);
    return guarded_then(send_one);
}

static void test_a_sigbus_elsewhere_ends_the_process_as_ever(void)
{
    assert_end(-SIGBUS, default_then_touch);
    assert_end(-SIGBUS, default_then_send);
    assert_end(-SIGBUS, ignored_then_touch);
    assert_end(SURVIVED, ignored_then_send);
}

static volatile char *volatile expected_address;

static void end_handled(int number) { _exit(number == SIGBUS ? HANDLED : WRONG); }

static void end_if_as_expected(int number, siginfo_t *info, void *context)
{
    bool right = number == SIGBUS && context && info->si_code == BUS_ADRERR;
    _exit(right && info->si_addr == (void *)(uintptr_t)expected_address ? HANDLED : WRONG);
}

static void touch_expected(void) { *(expected_address = missing_page() + 123) = 1; }

static int simple_handler(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, end_handled);
    return guarded_then(touch_other);
}

static int full_handler(void *nothing)
{
    (void)nothing;
    struct sigaction action = {.sa_sigaction = end_if_as_expected, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    return guarded_then(touch_expected);
}

static void test_a_sigbus_elsewhere_reaches_the_handler_that_was_there_before(void)
{
    assert_end(HANDLED, simple_handler);
    assert_end(HANDLED, full_handler);
}

/** Where a queue was mapped, there is now something else. */
static int touch_in_a_queue_s_place(void *nothing)
{
    (void)nothing;
    signal(SIGBUS, SIG_DFL);
    ringbuf *rb = NULL;
    if (ringbuf_guard_truncation() != RINGBUF_OK || ringbuf_create(&rb, NULL, NULL) != RINGBUF_OK) return WRONG;
    void *place = rb->base;
    ringbuf_free(rb);
    volatile char *page = missing_page();
    if (mremap((void *)(uintptr_t)page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) return WRONG;
    *(volatile char *)place = 1;
    return SURVIVED;
}

static void test_what_is_mapped_where_a_queue_was_is_not_taken_for_it(void) { assert_end(-SIGBUS, touch_in_a_queue_s_place); }

static int opened_before(void *nothing)
{
    (void)nothing;
    ringbuf *rb = damaged_queue();
    if (ringbuf_guard_truncation() != RINGBUF_OK || ringbuf_guard_truncation() != RINGBUF_OK) return WRONG;
    return ringbuf_put(rb, bytes, SMALL, 0) == RINGBUF_E_CORRUPT ? HANDLED : WRONG;
}

static void test_the_guard_covers_what_was_opened_before_it(void) { assert_end(HANDLED, opened_before); }

/* ---- every call, whatever is missing ---- */

static ringbuf_message leased;          /* what the calls on a taken message are given */
static ringbuf_message kept;
static ringbuf_reservation reserved;
static int unpins;                      /* what was kept and reserved, and has not been ended */

static ringbuf_status call_put(ringbuf *rb) { return ringbuf_put(rb, bytes, SMALL, 0); }
static ringbuf_status call_put_medium(ringbuf *rb) { return ringbuf_put(rb, bytes, MEDIUM, 0); }
static ringbuf_status call_put_large(ringbuf *rb) { return ringbuf_put(rb, bytes, LARGE, 0); }

static ringbuf_status call_put_all(ringbuf *rb)
{
    ringbuf_part parts[] = {{bytes, SMALL}, {bytes, MEDIUM}, {bytes, LARGE}};
    return ringbuf_put_all(rb, parts, 3, 0);
}

static ringbuf_status call_get(ringbuf *rb)
{
    size_t size;
    return ringbuf_get(rb, &size, buffer, sizeof buffer, 0);
}

static ringbuf_status call_wait(ringbuf *rb)
{
    size_t size;
    ringbuf_status status;
    while ((status = ringbuf_get(rb, &size, buffer, sizeof buffer, soon())) == RINGBUF_OK) {}
    return status;
}

static ringbuf_status call_take(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    return ringbuf_take(rb, &message, NULL, 0, 0);
}

static ringbuf_status call_lease(ringbuf *rb)
{
    ringbuf_message message = {.data = NULL};
    return ringbuf_lease(rb, &message, NULL, 0, 0);
}

static ringbuf_status call_take_many(ringbuf *rb)
{
    ringbuf_message messages[8];
    size_t count = 99;
    ringbuf_status status = ringbuf_take_many(rb, messages, &count, 8, SIZE_MAX, buffer, sizeof buffer, 0);
    return status == RINGBUF_OK || count == 0 ? status : RINGBUF_E_SYSTEM;
}

static ringbuf_status call_ack(ringbuf *rb) { return ringbuf_ack(rb, &leased); }
static ringbuf_status call_nack(ringbuf *rb) { return ringbuf_nack(rb, &leased); }
static ringbuf_status call_copy(ringbuf *rb) { return ringbuf_copy(rb, &leased, buffer, 0, leased.size); }

static ringbuf_status call_keep(ringbuf *rb)
{
    ringbuf_status status = ringbuf_keep(rb, &leased);
    return status == RINGBUF_OK ? ringbuf_release(rb, &leased) : status;
}

static ringbuf_status call_release(ringbuf *rb)
{
    unpins &= ~1;
    return ringbuf_release(rb, &kept);
}

static ringbuf_status call_reserve(ringbuf *rb)
{
    ringbuf_reservation reservation;
    ringbuf_status status = ringbuf_reserve(rb, &reservation, LARGE, 0);
    if (status != RINGBUF_OK) return status;
    memset(reservation.data, 1, LARGE);
    return ringbuf_abort(rb, &reservation);
}

static ringbuf_status call_commit(ringbuf *rb)
{
    if (unpins & 2) memset(reserved.data, 1, LARGE); /* else it was another queue's, and is not mapped any more */
    ringbuf_status status = ringbuf_commit(rb, &reserved, LARGE, 0);
    if (status == RINGBUF_OK) unpins &= ~2;
    return status;
}

static ringbuf_status call_abort(ringbuf *rb)
{
    unpins &= ~2;
    return ringbuf_abort(rb, &reserved);
}

static ringbuf_status call_pin(ringbuf *rb)
{
    ringbuf_status status = ringbuf_pin(rb);
    if (status == RINGBUF_OK) ringbuf_unpin(rb);
    return status;
}

static ringbuf_status call_size(ringbuf *rb)
{
    uint64_t items;
    return ringbuf_size(rb, &items);
}

static ringbuf_status call_has_room(ringbuf *rb)
{
    int room;
    return ringbuf_has_room(rb, &room, LARGE);
}

static ringbuf_status call_stats(ringbuf *rb)
{
    ringbuf_stats stats;
    return ringbuf_get_stats(rb, &stats);
}

static ringbuf_status call_check(ringbuf *rb)
{
    ringbuf_findings findings;
    return ringbuf_check(rb, &findings);
}

static ringbuf_status call_peers(ringbuf *rb)
{
    ringbuf_peer peers[8];
    size_t count;
    return ringbuf_get_peers(rb, &count, peers, 8);
}

static ringbuf_status call_recover(ringbuf *rb)
{
    uint64_t recovered;
    return ringbuf_recover(rb, &recovered);
}

static ringbuf_status call_items_fd(ringbuf *rb)
{
    int fd;
    return ringbuf_items_fd(rb, &fd);
}

static ringbuf_status call_changes_fd(ringbuf *rb)
{
    int fd;
    return ringbuf_changes_fd(rb, RINGBUF_ROOM, &fd);
}

static ringbuf_status call_join(ringbuf *rb) { return ringbuf_join(rb, soon()); }
static ringbuf_status call_shutdown(ringbuf *rb) { return ringbuf_shutdown(rb, 0); }
static ringbuf_status call_shutdown_at_once(ringbuf *rb) { return ringbuf_shutdown(rb, 1); }

static ringbuf_status (*const calls[])(ringbuf *rb) = {
    call_put, call_put_medium, call_put_large, call_put_all, call_get, call_wait, call_take, call_lease, call_take_many, call_ack,
    call_nack, call_copy, call_keep, call_release, call_reserve, call_commit, call_abort, call_pin, call_size, call_has_room,
    call_stats, call_check, call_peers, call_recover, call_items_fd, call_changes_fd, call_join, call_shutdown,
    call_shutdown_at_once, ringbuf_task_done, ringbuf_pass_on,
};
enum { CALLS = sizeof calls / sizeof *calls };

/* These look at nothing that lies in the file, and may answer RINGBUF_OK if nobody has noticed before. */
static bool needs_no_memory(ringbuf_status (*call)(ringbuf *rb)) { return call == call_pin; }

/** A queue with messages of each size in it, one leased, one kept, and a reservation. */
static ringbuf *furnished(void)
{
    ringbuf *rb = create();
    ASSERT_OK(ringbuf_put(rb, bytes, LARGE, 0));
    ASSERT_OK(ringbuf_put(rb, bytes, LARGE, 0));
    kept = leased = (ringbuf_message){.data = NULL};
    ASSERT_OK(ringbuf_lease(rb, &kept, NULL, 0, 0));
    ASSERT_OK(ringbuf_keep(rb, &kept));
    ASSERT_OK(ringbuf_lease(rb, &leased, NULL, 0, 0));
    ASSERT_OK(ringbuf_reserve(rb, &reserved, LARGE, 0));
    ASSERT_OK(ringbuf_put(rb, bytes, SMALL, 0));
    ASSERT_OK(ringbuf_put(rb, bytes, MEDIUM, 0));
    ASSERT_OK(ringbuf_put(rb, bytes, LARGE, 0));
    unpins = 3;
    return rb;
}

static void end_furnished(ringbuf *rb)
{
    if (unpins & 1) ringbuf_release(rb, &kept);
    if (unpins & 2) ringbuf_abort(rb, &reserved);
    unpins = 0;
    ringbuf_free(rb);
}

/** All calls on a damaged handle answer the same; and it says why. */
static void assert_lost(ringbuf *rb)
{
    for (int i = 0; i < CALLS; i++) {
        if (calls[i] == call_release || calls[i] == call_abort) continue; /* once only */
        ASSERT_STATUS(RINGBUF_E_CORRUPT, calls[i](rb));
    }
    TEST_ASSERT_TRUE(truncated(rb));
}

static void test_when_all_is_missing_every_call_answers_corrupt_and_the_handle_closes(void)
{
    const int open_before = descriptors();
    for (int i = 0; i < CALLS; i++) {
        ringbuf *rb = furnished();
        TEST_ASSERT_FALSE(truncated(rb));
        cut(rb, 0);
        ASSERT_STATUS(needs_no_memory(calls[i]) ? RINGBUF_OK : RINGBUF_E_CORRUPT, calls[i](rb));
        if (needs_no_memory(calls[i])) call_put(rb);
        assert_lost(rb);
        end_furnished(rb);
        TEST_ASSERT_EQUAL_INT(0, mappings());
        TEST_ASSERT_EQUAL_INT(open_before, descriptors());
        TEST_ASSERT_EQUAL_INT(0, directory_entries(suite_directory, NULL, 0));
    }
}

/** Wherever the file ends now: a call answers as ever, or CORRUPT; from then on all do. */
static void try_a_cut_at(uint64_t (*where)(const struct rbi_stamp *stamp))
{
    for (int i = 0; i < CALLS; i++) {
        ringbuf *rb = furnished();
        cut(rb, where(&rb->stamp));
        ringbuf_status status = calls[i](rb);
        if (status == RINGBUF_E_CORRUPT) assert_lost(rb);
        else TEST_ASSERT_FALSE(truncated(rb)); /* it has touched nothing that is missing */
        ASSERT_STATUS(RINGBUF_E_CORRUPT, call_recover(rb)); /* which looks */
        assert_lost(rb);
        end_furnished(rb);
        TEST_ASSERT_EQUAL_INT(0, mappings());
    }
}

static uint64_t second_header_page(const struct rbi_stamp *stamp) { return stamp->header_bytes / 2; }
static uint64_t participants(const struct rbi_stamp *stamp) { return stamp->header_bytes; }
static uint64_t all_slots(const struct rbi_stamp *stamp) { return stamp->slots_offset; }
static uint64_t half_the_slots(const struct rbi_stamp *stamp) { return stamp->slots_offset + SLOTS * sizeof(struct rbi_slot) / 2; }
static uint64_t half_a_page_of_slots(const struct rbi_stamp *stamp) { return stamp->slots_offset + 2048; }
static uint64_t table(const struct rbi_stamp *stamp) { return stamp->table_offset; }
static uint64_t runs(const struct rbi_stamp *stamp) { return stamp->runs_offset; }
static uint64_t whole_arena(const struct rbi_stamp *stamp) { return stamp->arena_offset; }
static uint64_t half_the_arena(const struct rbi_stamp *stamp) { return (stamp->arena_offset + stamp->data_offset) / 2; }
static uint64_t within_a_message(const struct rbi_stamp *stamp) { return stamp->arena_offset + LARGE / 2; }
static uint64_t data(const struct rbi_stamp *stamp) { return stamp->data_offset; }
static uint64_t within_the_data(const struct rbi_stamp *stamp) { return stamp->data_offset + 1000; }
static uint64_t spare_lanes(const struct rbi_stamp *stamp) { return stamp->data_offset + (1 << 16); }

static void test_wherever_the_file_ends_every_call_ends_and_the_handle_closes(void)
{
    uint64_t (*const places[])(const struct rbi_stamp *) = {
        second_header_page, participants, all_slots, half_the_slots, half_a_page_of_slots, table, runs, whole_arena,
        half_the_arena, within_a_message, data, within_the_data, spare_lanes,
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) try_a_cut_at(places[i]);
}

/* ---- between any two steps ---- */

#ifdef RBI_TEST_POINTS
#include "points.h"

static int points_left; /* at the last of them it happens */
static char victim[256];
static ringbuf *noticed_by;

static void truncate_at_point(enum rbi_point point)
{
    (void)point;
    if (points_left > 0 && --points_left == 0 && truncate(victim, 0) != 0 && errno != ENOENT) abort();
}

static void notice_at_point(enum rbi_point point)
{
    (void)point;
    if (points_left > 0 && --points_left == 0) rbi_guard_lose(&noticed_by->calls, RBI_HANDLE_LOST);
}

/** From now on, truncate the queue's file at the n-th point that is passed. */
static void truncate_at(const char *path, int n)
{
    snprintf(victim, sizeof victim, "%s", path);
    points_left = n;
    rbi_point_hook = truncate_at_point;
}

/** From now on, have another thread notice, at the n-th point that is passed, that it was truncated. */
static void notice_at(ringbuf *rb, int n)
{
    noticed_by = rb;
    points_left = n;
    rbi_point_hook = notice_at_point;
}

/** Whether it came to that. */
static bool was_truncated(void)
{
    rbi_point_hook = NULL;
    return points_left == 0;
}

static void test_truncated_at_any_point_of_any_call_it_ends_with_what_it_has_done_or_corrupt(void)
{
    int cuts = 0;
    for (int i = 0; i < CALLS; i++) {
        for (int n = 1;; n++) {
            ringbuf *rb = furnished();
            truncate_at(ringbuf_path(rb), n);
            ringbuf_status status = calls[i](rb);
            const bool cut_now = was_truncated();
            if (cut_now) {
                TEST_ASSERT_EQUAL_INT(truncated(rb), status == RINGBUF_E_CORRUPT);
                if (!truncated(rb)) call_put(rb);
                assert_lost(rb);
            }
            end_furnished(rb);
            TEST_ASSERT_EQUAL_INT(0, mappings());
            if (!cut_now) break;
            cuts++;
        }
    }
    TEST_ASSERT_GREATER_THAN_INT(100, cuts);
}

static void test_whatever_a_call_has_done_when_another_thread_notices_it_ends_with_corrupt_and_pins_nothing(void)
{
    int cuts = 0;
    for (int i = 0; i < CALLS; i++) {
        for (int n = 1;; n++) {
            ringbuf *rb = furnished();
            notice_at(rb, n);
            ringbuf_status status = calls[i](rb);
            const bool noticed = was_truncated();
            if (noticed) {
                ASSERT_STATUS(RINGBUF_E_CORRUPT, status);
                assert_lost(rb);
            }
            end_furnished(rb);
            TEST_ASSERT_EQUAL_INT(0, mappings());
            if (!noticed) break;
            cuts++;
        }
    }
    TEST_ASSERT_GREATER_THAN_INT(100, cuts);
}

static void test_truncated_at_any_point_of_an_open_or_a_close_it_is_corrupt_and_nothing_is_left(void)
{
    const int open_before = descriptors();
    int cuts = 0;
    for (int n = 1;; n++) {
        ringbuf *rb = create(), *other = NULL;
        truncate_at(ringbuf_path(rb), n);
        ringbuf_status status = ringbuf_open(&other, "queue", NULL);
        const bool cut_now = was_truncated();
        if (cut_now) {
            cuts++;
            if (status == RINGBUF_OK) { /* it was truncated at the last point, after which open looks at nothing */
                TEST_ASSERT_FALSE(truncated(other));
                status = call_put(other);
            }
            ASSERT_STATUS(RINGBUF_E_CORRUPT, status);
            ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
        }
        ringbuf_free(other);
        ringbuf_free(rb);
        TEST_ASSERT_EQUAL_INT(0, mappings());
        TEST_ASSERT_EQUAL_INT(open_before, descriptors());
        if (!cut_now) break;
    }
    for (int n = 1;; n++) {
        ringbuf *rb = furnished();
        truncate_at(ringbuf_path(rb), n);
        ringbuf_close(rb);
        const bool cut_now = was_truncated();
        end_furnished(rb);
        TEST_ASSERT_EQUAL_INT(0, mappings());
        TEST_ASSERT_EQUAL_INT(open_before, descriptors());
        if (!cut_now) break;
        cuts++;
    }
    TEST_ASSERT_GREATER_THAN_INT(20, cuts);
}
#endif

/* ---- no message is put or got that was not ---- */

static void test_a_put_into_what_is_missing_is_not_ok(void)
{
    int puts;
    ringbuf *rb = create();
    ASSERT_OK(ringbuf_put(rb, bytes, SMALL, 0));
    cut(rb, all_slots(&rb->stamp) + 4096);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, put_on(rb, SMALL, &puts));
    TEST_ASSERT_EQUAL_INT(4096 / sizeof(struct rbi_slot) - 1, puts); /* those for whose slots there is a page */
    ringbuf_free(rb);
    rb = create();
    cut(rb, data(&rb->stamp) + 4096);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, put_on(rb, 1024, &puts));
    TEST_ASSERT_EQUAL_INT(4, puts);
    ringbuf_free(rb);
    rb = create();
    cut(rb, whole_arena(&rb->stamp) + 4096);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put_large(rb));
    ringbuf_free(rb);
}

static void test_a_message_is_not_got_whose_bytes_are_missing(void)
{
    size_t size;
    for (int large = 0; large < 2; large++) {
        ringbuf *rb = create();
        ASSERT_OK(ringbuf_put(rb, bytes, SMALL, 0));
        ASSERT_OK(ringbuf_put(rb, bytes, large ? LARGE : MEDIUM, 0));
        cut(rb, large ? rb->stamp.arena_offset + LARGE / 2 : rb->stamp.data_offset);
        ASSERT_OK(ringbuf_get(rb, &size, buffer, sizeof buffer, 0)); /* this one is there, */
        TEST_ASSERT_EQUAL_MEMORY(bytes, buffer, SMALL);
        ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_get(rb, &size, buffer, sizeof buffer, 0)); /* and this is not */
        TEST_ASSERT_TRUE(truncated(rb));
        ringbuf_free(rb);
    }
}

static void test_what_is_truncated_and_grows_again_is_an_empty_queue_to_who_had_not_looked_and_lost_to_who_had(void)
{
    size_t size;
    ringbuf *looked = create(), *other = NULL;
    ASSERT_OK(ringbuf_open(&other, "queue", NULL));
    ASSERT_OK(call_put(looked));
    cut(looked, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(looked));
    cut(looked, looked->stamp.file_bytes);
    assert_lost(looked);
    /* To the other, somebody has written zeros over the queue: that can lose its messages. */
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(other, &size, buffer, sizeof buffer, 0));
    TEST_ASSERT_FALSE(truncated(other));
    ringbuf_free(looked);
    ringbuf_free(other);
}

static void test_a_put_does_not_make_a_truncated_file_whole_again(void)
{
    int puts;
    struct stat facts;
    ringbuf *rb = create();
    cut(rb, data(&rb->stamp));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, put_on(rb, MEDIUM, &puts));
    TEST_ASSERT_EQUAL_INT(0, stat(ringbuf_path(rb), &facts));
    TEST_ASSERT_EQUAL_UINT64(data(&rb->stamp), facts.st_size);
    ringbuf_free(rb);
}

/* ---- what somebody looks at ---- */

static void test_who_looks_at_what_he_keeps_goes_on_and_sees_zeros_where_it_is_missing(void)
{
    ringbuf *rb = furnished();
    const char *near = kept.data, *far = leased.data;
    TEST_ASSERT_TRUE(near < far);
    cut(rb, (uint64_t)(far - (const char *)rb->base));
    TEST_ASSERT_EQUAL_MEMORY(bytes, near, LARGE);
    TEST_ASSERT_EACH_EQUAL_UINT8(0, far, LARGE);
    TEST_ASSERT_EQUAL_MEMORY(bytes, near, LARGE); /* and so it stays */
    memset(reserved.data, 7, LARGE);              /* nobody will see it */
    ringbuf_close(rb);
    TEST_ASSERT_EQUAL_MEMORY(bytes, near, LARGE);
    TEST_ASSERT_EACH_EQUAL_UINT8(7, reserved.data, LARGE);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_release(rb, &kept));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_abort(rb, &reserved));
    unpins = 0;
    TEST_ASSERT_EQUAL_INT(0, mappings());
    ringbuf_free(rb);
}

static void test_a_region_that_is_mapped_twice_is_replaced_in_both_places(void)
{
    for (uint32_t lane = 0; lane < RBI_LANES; lane++) {
        for (int second = 0; second < 2; second++) {
            ringbuf *rb = create();
            const uint64_t page = 4096, region = 1 << 16, end = RBI_LANES * 2 * region;
            uint8_t *all = (uint8_t *)rb->base + rb->prefix_bytes;
            memset(all, 1, end);
            cut(rb, rb->stamp.data_offset + lane * region + 3 * page);
            uint8_t *place = all + (2 * lane + (uint32_t)second) * region;
            TEST_ASSERT_EQUAL_UINT8(0, place[3 * page + 5]); /* and then no other page raises anything: */
            struct sigaction ours;
            TEST_ASSERT_EQUAL_INT(0, sigaction(SIGBUS, &(struct sigaction){.sa_handler = SIG_DFL}, &ours));
            for (uint64_t at = 0; at < end; at++) {
                uint64_t in_file = at / (2 * region) * region + at % region;
                TEST_ASSERT_EQUAL_UINT8(in_file < lane * region + 3 * page, all[at]);
            }
            TEST_ASSERT_EQUAL_INT(0, sigaction(SIGBUS, &ours, NULL));
            TEST_ASSERT_TRUE(truncated(rb));
            ringbuf_free(rb);
        }
    }
}

/* ---- one who sleeps ---- */

struct sleeper {
    ringbuf *rb;
    ringbuf_status (*call)(ringbuf *rb);
    ringbuf_status status;
};

static ringbuf_status sleep_for_item(ringbuf *rb)
{
    size_t size;
    return ringbuf_get(rb, &size, buffer, sizeof buffer, RINGBUF_FOREVER);
}

static ringbuf_status sleep_for_room(ringbuf *rb) { return ringbuf_put(rb, bytes, MEDIUM, RINGBUF_FOREVER); }

static ringbuf_status sleep_for_run(ringbuf *rb)
{
    ringbuf_reservation reservation;
    return ringbuf_reserve(rb, &reservation, 1 << 20, RINGBUF_FOREVER);
}

static ringbuf_status sleep_for_tasks(ringbuf *rb) { return ringbuf_join(rb, RINGBUF_FOREVER); }

static void *sleeping(void *context)
{
    struct sleeper *sleeper = context;
    sleeper->status = sleeper->call(sleeper->rb);
    return NULL;
}

static uint64_t sleeps(ringbuf *rb)
{
    ringbuf_stats stats;
    ASSERT_OK(ringbuf_get_stats(rb, &stats));
    return stats.sleeps;
}

static void try_a_sleeper(ringbuf *rb, ringbuf_status (*call)(ringbuf *rb), uint64_t size)
{
    struct sleeper sleeper = {rb, call, RINGBUF_OK};
    pthread_t thread;
    const uint64_t before = sleeps(rb);
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&thread, NULL, sleeping, &sleeper));
    while (sleeps(rb) == before) nap_ms(1);
    cut(rb, size);
    pthread_join(thread, NULL);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, sleeper.status);
    assert_lost(rb);
    ringbuf_free(rb);
}

static void test_one_who_sleeps_is_told(void)
{
    int puts;
    for (int all = 0; all < 2; all++) {
        ringbuf *rb = create();
        const uint64_t size = all ? 0 : spare_lanes(&rb->stamp); /* which no sleeper ever touches */
        try_a_sleeper(rb, sleep_for_item, size);
        rb = create();
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, put_on(rb, MEDIUM, &puts));
        try_a_sleeper(rb, sleep_for_room, size);
        rb = create();
        ASSERT_OK(call_put_large(rb));
        try_a_sleeper(rb, sleep_for_run, size);
        rb = create();
        ASSERT_OK(call_put(rb));
        try_a_sleeper(rb, sleep_for_tasks, size);
    }
}

/* ---- several queues, several processes ---- */

static void test_of_two_queues_only_the_truncated_one_is_lost(void)
{
    ringbuf *one = create(), *other = create_flagged("other", RINGBUF_AUTO_CLEANUP);
    ASSERT_OK(call_put(other));
    cut(one, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(one));
    ASSERT_OK(call_put_large(other));
    ASSERT_OK(call_get(other));
    ASSERT_OK(call_get(other));
    TEST_ASSERT_FALSE(truncated(other));
    ringbuf_free(one);
    ASSERT_OK(call_put(other));
    ringbuf_free(other);
}

static void test_two_handles_on_one_queue_find_out_each_by_itself(void)
{
    ringbuf *one = create(), *other = NULL;
    ASSERT_OK(ringbuf_open(&other, "queue", NULL));
    cut(one, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(one));
    TEST_ASSERT_FALSE(truncated(other));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(other));
    assert_lost(other);
    ringbuf_free(one);
    ringbuf_free(other);
}

static int expect_lost(void *context)
{
    ringbuf *rb = context;
    bool right = call_put(rb) == RINGBUF_E_CORRUPT && call_get(rb) == RINGBUF_E_CORRUPT && truncated(rb);
    ringbuf_close(rb);
    return right ? 0 : WRONG;
}

static void test_a_forked_child_is_guarded_whether_the_file_was_truncated_before_or_after(void)
{
    ringbuf *rb = create();
    cut(rb, 0);
    TEST_ASSERT_EQUAL_INT(0, run_child(expect_lost, rb)); /* the child notices, */
    TEST_ASSERT_FALSE(truncated(rb));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
    TEST_ASSERT_EQUAL_INT(0, run_child(expect_lost, rb)); /* and knows what its parent has noticed */
    ringbuf_free(rb);
}

static int use_until_lost(void *context)
{
    ringbuf *rb = context;
    size_t size;
    ringbuf_status status;
    do {
        status = ringbuf_put(rb, bytes, SMALL, 0);
        if (status == RINGBUF_OK) status = ringbuf_get(rb, &size, buffer, sizeof buffer, 0);
    } while (status == RINGBUF_OK || status == RINGBUF_E_TIMEOUT); /* the latter: another one is just publishing */
    return status == RINGBUF_E_CORRUPT ? 0 : (int)status + 10;
}

static void test_every_process_that_uses_it_survives(void)
{
    ringbuf *rb = create();
    pid_t children[4];
    for (int i = 0; i < 4; i++) children[i] = start_child(use_until_lost, rb);
    nap_ms(20);
    cut(rb, 0);
    for (int i = 0; i < 4; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
    ringbuf_free(rb);
}

/* ---- many threads at once ---- */

enum { THREADS = 6 };

/* Among zeros, two threads can believe that the same record or run is theirs, and copy to it at once.  What they copy is thrown
 * away.  So ThreadSanitizer is to say nothing of what lies in messages, nor of pages that are replaced while others look at
 * them: that is what the guard does.  It goes on looking at the handles and at the guard's own list. */
#ifdef __SANITIZE_THREAD__
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:rbi_map_zeros\nrace:rbi_copy\nrace:rbi_gather\nrace:attempt_put\nrace:move_into_arena\n"
           "race:read_message\nrace:write_message\n";
}
#endif

static __attribute__((noinline)) void read_message(void *to, const ringbuf_message *message)
{
    memcpy(to, message->data, message->size);
}

static __attribute__((noinline)) void write_message(const ringbuf_reservation *room) { memset(room->data, 1, room->size); }

struct worker {
    ringbuf *rb;
    uint64_t random;
    int number;
    bool right;
};

/** All sorts of calls until one is refused.  None hangs, none kills. */
static void *work(void *context)
{
    struct worker *worker = context;
    ringbuf *rb = worker->rb;
    char *room = malloc(2 * LARGE);
    ringbuf_status status = RINGBUF_OK;
    while (status != RINGBUF_E_CORRUPT) {
        const size_t size = (const size_t[]){SMALL, MEDIUM, LARGE}[random_below(&worker->random, 3)];
        ringbuf_message message = {.data = NULL};
        ringbuf_reservation reservation;
        size_t got;
        switch (random_below(&worker->random, 6)) {
        case 0:
        case 1: status = ringbuf_put(rb, bytes, size, worker->number % 2 ? soon() : 0); break;
        case 2: status = ringbuf_get(rb, &got, room, 2 * LARGE, worker->number % 2 ? soon() : 0); break;
        case 3:
            status = ringbuf_lease(rb, &message, NULL, 0, 0);
            if (status == RINGBUF_OK) {
                read_message(room, &message);
                status = size == SMALL ? ringbuf_nack(rb, &message) : ringbuf_ack(rb, &message);
            }
            break;
        case 4:
            status = ringbuf_reserve(rb, &reservation, size, 0);
            if (status == RINGBUF_OK) {
                write_message(&reservation);
                status = ringbuf_commit(rb, &reservation, size, 0);
                if (status != RINGBUF_OK) ringbuf_abort(rb, &reservation);
            }
            break;
        default:
            status = ringbuf_lease(rb, &message, NULL, 0, 0);
            if (status == RINGBUF_OK && message.in_arena && (status = ringbuf_keep(rb, &message)) == RINGBUF_OK) {
                read_message(room, &message);
                ringbuf_release(rb, &message);
            } else if (status == RINGBUF_OK) {
                status = ringbuf_ack(rb, &message);
            }
        }
        if (status == RINGBUF_E_INVALID || status == RINGBUF_E_SYSTEM) break;
    }
    free(room);
    worker->right = status == RINGBUF_E_CORRUPT && truncated(rb);
    return NULL;
}

static void test_threads_that_touch_what_is_missing_at_once_all_end_with_corrupt(void)
{
    uint64_t random = 20261122;
    const int rounds = SANITIZED ? 30 : 100;
    for (int round = 0; round < rounds; round++) {
        ringbuf *rb = create();
        pthread_t threads[THREADS];
        struct worker workers[THREADS];
        for (int i = 0; i < THREADS; i++) {
            workers[i] = (struct worker){rb, next_random(&random), i, false};
            TEST_ASSERT_EQUAL_INT(0, pthread_create(&threads[i], NULL, work, &workers[i]));
        }
        nap_ms((long)random_below(&random, 5));
        cut(rb, round % 4 ? random_below(&random, rb->stamp.file_bytes) : 0);
        for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < THREADS; i++) TEST_ASSERT_TRUE(workers[i].right);
        assert_lost(rb);
        ringbuf_free(rb);
        TEST_ASSERT_EQUAL_INT(0, mappings());
    }
}

/* A call must not end well among zeros because the handler, in another thread, has not come to the flag yet.  So here it
 * lingers as soon as the zeros are there.  (Sanitizers have an mmap of their own.) */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <sys/syscall.h>

static stage zeros_are_there; /* 1: since the handler has mapped them; before 0, while it is not to linger */

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *mapped = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    int lingers = -1;
    if (flags & MAP_ANONYMOUS && flags & MAP_FIXED && atomic_compare_exchange_strong(&zeros_are_there, &lingers, 1)) nap_ms(20);
    return mapped;
}

static void *put_once(void *rb)
{
    call_put(rb);
    return NULL;
}

static void test_no_call_ends_well_after_the_zeros_have_come(void)
{
    pthread_t thread;
    ringbuf *rb = create();
    cut(rb, 0);
    atomic_store(&zeros_are_there, -1);
    TEST_ASSERT_EQUAL_INT(0, pthread_create(&thread, NULL, put_once, rb));
    wait_for_stage(&zeros_are_there, 1);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
    TEST_ASSERT_TRUE(truncated(rb));
    pthread_join(thread, NULL);
    atomic_store(&zeros_are_there, 0);
    ringbuf_free(rb);
}
#endif

static stage opening_ends;

static void *open_and_close(void *context)
{
    (void)context;
    while (!atomic_load(&opening_ends)) {
        ringbuf *rb = NULL;
        if (ringbuf_create(&rb, NULL, NULL) != RINGBUF_OK || call_put(rb) != RINGBUF_OK) abort();
        ringbuf_free(rb);
    }
    return NULL;
}

static void test_queues_that_are_opened_and_closed_meanwhile_are_not_mistaken_for_it(void)
{
    pthread_t threads[3];
    atomic_store(&opening_ends, 0);
    for (int i = 0; i < 3; i++) TEST_ASSERT_EQUAL_INT(0, pthread_create(&threads[i], NULL, open_and_close, NULL));
    for (int round = 0; round < (SANITIZED ? 50 : 300); round++) {
        ringbuf *rb = create();
        cut(rb, 0);
        ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
        ringbuf_free(rb);
    }
    atomic_store(&opening_ends, 1);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
}

/* ---- leaving ---- */

static void test_the_last_one_out_leaves_the_file_to_its_users_and_unlink_removes_it(void)
{
    ringbuf *rb = create_flagged("queue", 0);
    cut(rb, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(1, directory_entries(suite_directory, NULL, 0));
    ASSERT_STATUS(RINGBUF_E_CORRUPT, ringbuf_open(&rb, "queue", NULL));
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
    rb = create_flagged("queue", 0);
    cut(rb, 0);
    ASSERT_STATUS(RINGBUF_E_CORRUPT, call_put(rb));
    ASSERT_OK(ringbuf_unlink(rb));
    ringbuf_close(rb);
    ASSERT_STATUS(RINGBUF_E_CLOSED, ringbuf_unlink(rb));
    ASSERT_STATUS(RINGBUF_E_CLOSED, call_put(rb));
    TEST_ASSERT_TRUE(truncated(rb));
    ringbuf_free(rb);
}

static void test_a_handle_closes_that_had_not_noticed(void)
{
    ringbuf *rb = furnished();
    cut(rb, 0);
    ringbuf_close(rb);
    end_furnished(rb);
    TEST_ASSERT_EQUAL_INT(0, mappings());
    rb = create_flagged("queue", 0);
    ASSERT_OK(call_put(rb));
    cut(rb, 0);
    ringbuf_free(rb);
    ASSERT_OK(ringbuf_unlink_name("queue", NULL));
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_without_the_guard_a_truncated_file_ends_the_process);
    RUN_TEST(test_one_who_waits_notices_also_without_the_guard_and_without_touching_what_is_missing);
    RUN_TEST(test_a_sigbus_elsewhere_ends_the_process_as_ever);
    RUN_TEST(test_a_sigbus_elsewhere_reaches_the_handler_that_was_there_before);
    RUN_TEST(test_what_is_mapped_where_a_queue_was_is_not_taken_for_it);
    RUN_TEST(test_the_guard_covers_what_was_opened_before_it);
    if (ringbuf_guard_truncation() != RINGBUF_OK) return 2;
    RUN_TEST(test_when_all_is_missing_every_call_answers_corrupt_and_the_handle_closes);
    RUN_TEST(test_wherever_the_file_ends_every_call_ends_and_the_handle_closes);
#ifdef RBI_TEST_POINTS
    RUN_TEST(test_truncated_at_any_point_of_any_call_it_ends_with_what_it_has_done_or_corrupt);
    RUN_TEST(test_whatever_a_call_has_done_when_another_thread_notices_it_ends_with_corrupt_and_pins_nothing);
    RUN_TEST(test_truncated_at_any_point_of_an_open_or_a_close_it_is_corrupt_and_nothing_is_left);
#endif
    RUN_TEST(test_a_put_into_what_is_missing_is_not_ok);
    RUN_TEST(test_a_message_is_not_got_whose_bytes_are_missing);
    RUN_TEST(test_what_is_truncated_and_grows_again_is_an_empty_queue_to_who_had_not_looked_and_lost_to_who_had);
    RUN_TEST(test_a_put_does_not_make_a_truncated_file_whole_again);
    RUN_TEST(test_who_looks_at_what_he_keeps_goes_on_and_sees_zeros_where_it_is_missing);
    RUN_TEST(test_a_region_that_is_mapped_twice_is_replaced_in_both_places);
    RUN_TEST(test_one_who_sleeps_is_told);
    RUN_TEST(test_of_two_queues_only_the_truncated_one_is_lost);
    RUN_TEST(test_two_handles_on_one_queue_find_out_each_by_itself);
    RUN_TEST(test_a_forked_child_is_guarded_whether_the_file_was_truncated_before_or_after);
    RUN_TEST(test_every_process_that_uses_it_survives);
    RUN_TEST(test_threads_that_touch_what_is_missing_at_once_all_end_with_corrupt);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    RUN_TEST(test_no_call_ends_well_after_the_zeros_have_come);
#endif
    RUN_TEST(test_queues_that_are_opened_and_closed_meanwhile_are_not_mistaken_for_it);
    RUN_TEST(test_the_last_one_out_leaves_the_file_to_its_users_and_unlink_removes_it);
    RUN_TEST(test_a_handle_closes_that_had_not_noticed);
    return leave_suite_directory(UNITY_END());
}
