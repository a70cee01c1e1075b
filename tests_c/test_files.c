/* test_files.c — the descriptors of the library, the files it makes, and what is left of them: what a program and a system do to both.
 *
 * Programs close descriptors that are not theirs, start without standard ones, fork while another thread opens, and give up their rights.
 * Systems have no files without a name, no /proc, or no locks of open files.  (The last three are played: CMakeLists.txt puts what is
 * below in the place of the platform's.) */
#define _GNU_SOURCE
#include "support.h"

#include <layout.h>
#include <platform.h>

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

/* ---- in the place of the platform's ---- */

static bool has_no_unnamed_files, has_no_proc, has_no_file_locks, is_full;

ringbuf_status __real_rbi_open_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions);
ringbuf_status __wrap_rbi_open_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions);
ringbuf_status __wrap_rbi_open_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions)
{
    return has_no_unnamed_files ? RINGBUF_E_NO_DIRECTORY : __real_rbi_open_unnamed(fd, directory, permissions);
}

ringbuf_status __real_rbi_file_link(rbi_fd fd, const char *from, const char *path);
ringbuf_status __wrap_rbi_file_link(rbi_fd fd, const char *from, const char *path);
ringbuf_status __wrap_rbi_file_link(rbi_fd fd, const char *from, const char *path)
{
    return has_no_proc && !from ? RINGBUF_E_NOT_FOUND : __real_rbi_file_link(fd, from, path);
}

ringbuf_status __real_rbi_open_again(rbi_fd *again, rbi_fd fd);
ringbuf_status __wrap_rbi_open_again(rbi_fd *again, rbi_fd fd);
ringbuf_status __wrap_rbi_open_again(rbi_fd *again, rbi_fd fd)
{
    return has_no_proc ? RINGBUF_E_NOT_FOUND : __real_rbi_open_again(again, fd);
}

ringbuf_status __real_rbi_file_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
ringbuf_status __wrap_rbi_file_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind);
ringbuf_status __wrap_rbi_file_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind)
{
    if (!has_no_file_locks) return __real_rbi_file_lock_try(fd, which, kind);
    *rbi_last_refusal() = (struct rbi_refusal){.call = "fcntl(F_OFD_SETLK)", .number = EINVAL};
    return RINGBUF_E_SYSTEM;
}

ringbuf_status __real_rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes);
ringbuf_status __wrap_rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes);
ringbuf_status __wrap_rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    char names[4096];
    /* Full as long as there is a leftover. */
    if (is_full && directory_entries(suite_directory, names, sizeof names) > 1 && strstr(names, "leftover")) return RINGBUF_E_NO_SPACE;
    return __real_rbi_file_reserve(fd, offset, bytes);
}

/* ---- queues and files ---- */

static const char *path_of(const char *file)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", suite_directory, file);
    return path;
}

static ringbuf *create_flagged(const char *name, uint32_t flags)
{
    ringbuf_options options;
    ringbuf *rb = NULL;
    ringbuf_options_init(&options);
    options.flags = flags;
    return ringbuf_create(&rb, name, &options) == RINGBUF_OK ? rb : NULL;
}

static ringbuf *create(const char *name) { return create_flagged(name, 0); }

static ringbuf *attach(const char *name)
{
    ringbuf *rb = NULL;
    return ringbuf_open(&rb, name, NULL) == RINGBUF_OK ? rb : NULL;
}

static bool puts_and_gets(ringbuf *putter, ringbuf *getter)
{
    char text[8] = "";
    size_t size;
    return ringbuf_put(putter, "text", 5, 0) == RINGBUF_OK && ringbuf_get(getter, &size, text, sizeof text, 0) == RINGBUF_OK &&
           strcmp(text, "text") == 0;
}

static ringbuf_status recover(ringbuf *rb)
{
    uint64_t recovered;
    return ringbuf_recover(rb, &recovered);
}

static uint64_t participants(ringbuf *rb)
{
    ringbuf_stats stats;
    if (recover(rb) != RINGBUF_OK || ringbuf_get_stats(rb, &stats) != RINGBUF_OK) return 99;
    return stats.participants;
}

static int files_left(void) { return directory_entries(suite_directory, NULL, 0); }

/** How many descriptors of this process lead into the directory. */
static int descriptors_of_ours(void)
{
    int count = 0;
    for (int fd = 0; fd < 4096; fd++) {
        char path[64], target[256];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = '\0';
        count += strstr(target, suite_directory) != NULL;
    }
    return count;
}

/* ---- children forked while another thread opens ---- */

enum { FORKS = 40 };

static atomic_bool stop_opening;

static void *open_and_close(void *context)
{
    const char *how = context;
    while (!atomic_load(&stop_opening)) {
        sched_yield(); /* a fork waits for the lock, too */
        ringbuf *rb = create_flagged(*how == 'u' ? "queue" : NULL, *how == 'u' ? RINGBUF_PERSISTENT : 0);
        uint64_t removed;
        int fd;
        if (!rb) abort();
        if (*how == 'f' && ringbuf_items_fd(rb, &fd) != RINGBUF_OK) abort();
        ringbuf_free(rb);
        if (*how == 'u' && ringbuf_unlink_name("queue", NULL) != RINGBUF_OK) abort();
        if (*how == 'c' && ringbuf_collect(&removed, NULL) != RINGBUF_OK) abort();
    }
    return NULL;
}

static int count_descriptors(void *context)
{
    (void)context;
    ringbuf_leave_all(); /* what the child knows of */
    return descriptors_of_ours();
}

static void test_a_child_forked_while_another_thread_opens_or_closes_keeps_no_descriptor(void)
{
    static const char *const kinds[] = {"open", "unlink by name", "collect", "fifo"};
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        pthread_t thread;
        int with_some = 0;
        atomic_store(&stop_opening, false);
        TEST_ASSERT_EQUAL_INT(0, pthread_create(&thread, NULL, open_and_close, (void *)(uintptr_t)kinds[kind]));
        for (int i = 0; i < FORKS; i++) with_some += run_child(count_descriptors, NULL) != 0;
        atomic_store(&stop_opening, true);
        pthread_join(thread, NULL);
        TEST_ASSERT_EQUAL_INT_MESSAGE(0, with_some, kinds[kind]);
    }
}

/* ---- the standard descriptors ---- */

static bool low_is_closed(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) >= 0) return false;
    return true;
}

static int use_without_standard_descriptors(void *context)
{
    (void)context;
    int fd;
    for (fd = 0; fd < 3; fd++) close(fd);
    ringbuf *rb = create("queue"), *other = attach("queue");
    if (!rb || !other || !low_is_closed()) return 1;
    if (ringbuf_items_fd(rb, &fd) != RINGBUF_OK || fd < 3 || !low_is_closed()) return 2;
    if (write(2, "oops", 4) >= 0) return 3; /* what a library says on stderr */
    pid_t child = fork();
    if (child == 0) _exit(puts_and_gets(other, rb) && low_is_closed() ? 0 : 1);
    if (end_of(child) != 0 || !puts_and_gets(rb, other)) return 4;
    ringbuf_free(rb);
    ringbuf_free(other);
    return low_is_closed() ? 0 : 5;
}

static void test_no_descriptor_of_ours_is_a_standard_one(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(use_without_standard_descriptors, NULL));
}

/* ---- a program closes our descriptors ---- */

enum { KEPT_MOST = 64 };

/** Close all but the standard descriptors, and have others' files under the numbers.  Returns how many. */
static int take_all_numbers(int files[KEPT_MOST])
{
    /* Not by close(): to ThreadSanitizer, closing what another thread uses is a race, and here it is meant. */
    for (int fd = 3; fd < KEPT_MOST; fd++) syscall(SYS_close, fd);
    int count = 0;
    while (count < KEPT_MOST / 2) {
        files[count] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (files[count++] < 0) abort();
    }
    return count;
}

/** Whether these are open and nothing was written to them, cut or locked. */
static bool are_as_they_were(const int files[KEPT_MOST], int count)
{
    for (int i = 0; i < count; i++) {
        struct stat facts;
        if (fstat(files[i], &facts) != 0 || facts.st_size || facts.st_blocks) return false;
    }
    return true;
}

static int go_on_after_all_was_closed(void *context)
{
    (void)context;
    int files[KEPT_MOST];
    ringbuf_message message;
    ringbuf_info info;
    ringbuf *rb = create("queue");
    if (!rb || ringbuf_put(rb, "work", 5, 0) != RINGBUF_OK || ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 1;
    int count = take_all_numbers(files);
    if (recover(rb) != RINGBUF_OK || ringbuf_get_info(rb, &info) != RINGBUF_OK || info.truncated) return 2;
    /* Nobody has taken us for dead, and nobody does now. */
    pid_t child = fork();
    if (child == 0) {
        ringbuf *other = attach("queue");
        _exit(other && participants(other) == 2 ? 0 : 1);
    }
    if (end_of(child) != 0) return 3;
    if (ringbuf_ack(rb, &message) != RINGBUF_OK) return 4;
    for (int i = 0; i < 2000; i++) /* the ring needs pages for these */
        if (ringbuf_put(rb, "more", 5, 0) != RINGBUF_OK) return 5;
    if (!are_as_they_were(files, count)) return 6;
    ringbuf_shutdown(rb, 1);
    ringbuf_free(rb);
    return are_as_they_were(files, count) ? 0 : 7;
}

static void test_after_its_descriptors_were_closed_a_handle_goes_on_and_others_files_stay_theirs(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(go_on_after_all_was_closed, NULL));
}

/** Each way in which this process looks for leftovers, and no call on the handle before. */
static int collect_after_all_was_closed(void *context)
{
    int files[KEPT_MOST];
    ringbuf_options options;
    ringbuf *rb = NULL, *other = NULL;
    uint64_t removed = 99;
    ringbuf_options_init(&options);
    options.flags = *(const uint32_t *)context;
    if (ringbuf_create(&rb, "queue", &options) != RINGBUF_OK) return 1;
    take_all_numbers(files);
    if (ringbuf_collect(&removed, NULL) != RINGBUF_OK || removed != 0) return 2;
    if (ringbuf_create(&other, NULL, NULL) != RINGBUF_OK) return 3;
    ringbuf_free(other); /* making one without a name looks, too */
    if (access(path_of("ringbuf.queue"), F_OK) != 0) return 4;
    if (ringbuf_put(rb, "work", 5, 0) != RINGBUF_OK) return 5;
    ringbuf_shutdown(rb, 1);
    ringbuf_free(rb);
    return access(path_of("ringbuf.queue"), F_OK) != 0 ? 0 : 6;
}

static void test_a_process_whose_descriptors_were_closed_does_not_collect_its_own_queues(void)
{
    static const uint32_t flags[] = {0, RINGBUF_AUTO_CLEANUP};
    for (int i = 0; i < 2; i++) TEST_ASSERT_EQUAL_INT(0, run_child(collect_after_all_was_closed, (void *)(uintptr_t)&flags[i]));
}

/** At once, without any call in between. */
static int close_after_all_was_closed(void *context)
{
    (void)context;
    int files[KEPT_MOST], fd;
    ringbuf *rb = create("queue"), *other = create("other");
    if (!rb || !other || ringbuf_items_fd(rb, &fd) != RINGBUF_OK) return 1;
    int count = take_all_numbers(files);
    if (ringbuf_put(rb, "to the end", 11, 0) != RINGBUF_OK) return 2; /* which tells the listener, who has lost it */
    if (!are_as_they_were(files, count)) return 3;
    if (ringbuf_unlink(rb) != RINGBUF_OK) return 4;
    ringbuf_free(rb);
    ringbuf_free(other);
    return are_as_they_were(files, count) ? 0 : 5;
}

static void test_after_its_descriptors_were_closed_a_handle_is_closed_in_order_and_closes_nothing_else(void)
{
    uint64_t removed;
    TEST_ASSERT_EQUAL_INT(0, run_child(close_after_all_was_closed, NULL));
    ASSERT_OK(ringbuf_collect(&removed, NULL)); /* FIFOs */
    TEST_ASSERT_EQUAL_UINT64(0, removed);
}

struct taken_for_dead {
    stage closed, recovered;
};

static int be_taken_for_dead(void *context)
{
    struct taken_for_dead *meeting = context;
    ringbuf_message message;
    int files[KEPT_MOST];
    ringbuf *rb = attach("queue");
    if (!rb || ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK) return 1;
    int count = take_all_numbers(files);
    atomic_fetch_add(&meeting->closed, 1);
    wait_for_stage(&meeting->recovered, 1);
    /* Whatever finds out first: what was taken is not ours any more, and we are another participant. */
    uint64_t recovered;
    ringbuf_status status = ringbuf_recover(rb, &recovered);
    if (status != RINGBUF_OK && status != RINGBUF_E_INTR) return 2;
    if (recover(rb) != RINGBUF_OK) return 3;
    if (ringbuf_ack(rb, &message) != RINGBUF_E_INVALID || ringbuf_nack(rb, &message) != RINGBUF_E_INVALID) return 4;
    if (!puts_and_gets(rb, rb) || participants(rb) != 2) return 5;
    if (ringbuf_put(rb, "mine", 5, 0) != RINGBUF_OK) return 6;
    ringbuf_free(rb);
    return are_as_they_were(files, count) ? 0 : 7;
}

static void test_a_handle_that_was_taken_for_dead_becomes_another_participant_and_has_lost_what_it_had(void)
{
    struct taken_for_dead *meeting = share_memory(sizeof *meeting);
    ringbuf *rb = create("queue");
    uint8_t text[16];
    size_t size;
    ASSERT_OK(ringbuf_put(rb, "work", 5, 0));
    pid_t child = start_child(be_taken_for_dead, meeting);
    wait_for_stage(&meeting->closed, 1);
    ASSERT_OK(recover(rb));
    ASSERT_OK(ringbuf_get(rb, &size, text, sizeof text, 0)); /* delivered to us now */
    TEST_ASSERT_EQUAL_STRING("work", text);
    atomic_fetch_add(&meeting->recovered, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    ASSERT_OK(ringbuf_get(rb, &size, text, sizeof text, 0));
    TEST_ASSERT_EQUAL_STRING("mine", text);
    TEST_ASSERT_EQUAL_UINT64(1, participants(rb));
    ringbuf_free(rb);
    munmap(meeting, sizeof *meeting);
}

/** A call that sleeps in another thread works under the old number, and must end before there is a new one. */
static void *get_in_a_thread(void *context)
{
    static char text[16];
    size_t size;
    ringbuf_status status;
    while ((status = ringbuf_get(context, &size, text, sizeof text, ringbuf_now_ns() + INT64_C(20000) * MILLISECOND)) == RINGBUF_E_INTR) {}
    return status == RINGBUF_OK ? text : NULL;
}

static int be_taken_for_dead_in_a_wait(void *context)
{
    struct taken_for_dead *meeting = context;
    int files[KEPT_MOST];
    void *got;
    pthread_t thread;
    ringbuf *rb = attach("queue");
    ringbuf_stats stats;
    if (!rb || pthread_create(&thread, NULL, get_in_a_thread, rb) != 0) return 1;
    do if (ringbuf_get_stats(rb, &stats) != RINGBUF_OK) return 2;
    while (stats.sleeps == 0);
    take_all_numbers(files);
    atomic_fetch_add(&meeting->closed, 1);
    wait_for_stage(&meeting->recovered, 1);
    ringbuf_status status = recover(rb);
    if (status != RINGBUF_OK && status != RINGBUF_E_INTR) return 3;
    if (ringbuf_put(rb, "for both", 9, 0) != RINGBUF_OK) return 4;
    if (pthread_join(thread, &got) != 0 || !got || strcmp(got, "for both") != 0) return 5;
    if (participants(rb) != 2) return 6;
    ringbuf_free(rb);
    return 0;
}

static void test_a_sleeper_whose_handle_was_taken_for_dead_goes_on_as_another_participant(void)
{
    struct taken_for_dead *meeting = share_memory(sizeof *meeting);
    ringbuf *rb = create("queue");
    uint64_t recovered = 0;
    pid_t child = start_child(be_taken_for_dead_in_a_wait, meeting);
    wait_for_stage(&meeting->closed, 1);
    /* It may have noticed by itself, and before us. */
    ASSERT_OK(ringbuf_recover(rb, &recovered));
    atomic_fetch_add(&meeting->recovered, 1);
    TEST_ASSERT_EQUAL_INT(0, end_of(child));
    TEST_ASSERT_EQUAL_UINT64(1, participants(rb));
    ringbuf_free(rb);
    munmap(meeting, sizeof *meeting);
}

static int lose_the_number_to_another_handle(void *context)
{
    (void)context;
    ringbuf *first = create("queue");
    if (!first) return 1;
    for (int fd = 3; fd < KEPT_MOST; fd++) close(fd);
    ringbuf *second = attach("queue"); /* the same file, under the same number, with locks of its own */
    if (!second) return 2;
    if (!puts_and_gets(first, second)) return 3;
    ringbuf_free(first);
    if (!puts_and_gets(second, second) || recover(second) != RINGBUF_OK) return 4;
    pid_t child = fork();
    if (child == 0) {
        ringbuf *other = attach("queue");
        _exit(other && participants(other) == 2 ? 0 : 1);
    }
    if (end_of(child) != 0) return 5;
    ringbuf_free(second);
    return 0;
}

static void test_a_number_that_another_handle_has_got_is_not_closed_under_it(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(lose_the_number_to_another_handle, NULL));
}

static int lose_it_for_good(void *context)
{
    (void)context;
    int files[KEPT_MOST];
    ringbuf *rb = create("queue");
    if (!rb || ringbuf_unlink(rb) != RINGBUF_OK) return 1;
    if (geteuid() == 0 && setuid(12345) != 0) return 2; /* root may open what is mapped */
    int count = take_all_numbers(files);
    if (recover(rb) != RINGBUF_E_NO_DESCRIPTOR) return 3;
    if (ringbuf_put(rb, "text", 5, 0) != RINGBUF_E_NO_DESCRIPTOR) return 4;
    ringbuf_free(rb);
    return are_as_they_were(files, count) ? 0 : 5;
}

static void test_a_file_that_cannot_be_opened_again_is_an_error_of_its_own(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(lose_it_for_good, NULL));
}

static int open_what_is_mapped(void *context)
{
    (void)context;
    int files[KEPT_MOST];
    ringbuf *rb = create("queue");
    if (!rb || ringbuf_unlink(rb) != RINGBUF_OK) return 1;
    take_all_numbers(files);
    if (recover(rb) != RINGBUF_OK || !puts_and_gets(rb, rb)) return 2;
    ringbuf_free(rb);
    return 0;
}

static void test_root_opens_a_file_without_a_name_again_through_its_mapping(void)
{
    if (geteuid() != 0) TEST_IGNORE_MESSAGE("only root may");
    TEST_ASSERT_EQUAL_INT(0, run_child(open_what_is_mapped, NULL));
}

static int close_all_in_a_child(void *context)
{
    int files[KEPT_MOST];
    ringbuf *rb = context;
    int count = take_all_numbers(files); /* as daemons do, before their first call */
    if (ringbuf_put(rb, "from a daemon", 14, 0) != RINGBUF_OK) return 1;
    if (participants(rb) != 2 || !are_as_they_were(files, count)) return 2;
    ringbuf_leave_all();
    return 0;
}

static void test_a_child_that_closes_everything_before_its_first_call_takes_part(void)
{
    ringbuf *rb = create("queue");
    uint8_t text[16];
    size_t size;
    TEST_ASSERT_EQUAL_INT(0, run_child(close_all_in_a_child, rb));
    ASSERT_OK(ringbuf_get(rb, &size, text, sizeof text, 0));
    TEST_ASSERT_EQUAL_UINT64(1, participants(rb));
    ringbuf_free(rb);
}

/* ---- rights that are given up ---- */

static int fork_without_rights(void *context)
{
    (void)context;
    ringbuf *rb = create("queue"), *other = attach("queue"), *second = create("second");
    stage *used = share_memory(sizeof *used);
    if (!rb || !other || !second || setuid(12345) != 0) return 1;
    pid_t child = fork();
    if (child == 0) {
        /* Two handles on one queue, whose locks by process must exclude each other; and one on another. */
        if (!puts_and_gets(rb, other) || !puts_and_gets(second, second)) _exit(1);
        if (participants(rb) != 4 || participants(other) != 4 || participants(second) != 2) _exit(2);
        pid_t grandchild = fork();
        if (grandchild == 0) _exit(puts_and_gets(other, rb) && participants(rb) == 6 && participants(second) == 3 ? 0 : 1);
        if (end_of(grandchild) != 0) _exit(3);
        if (participants(rb) != 4) _exit(4); /* it is gone, and was found out */
        ringbuf_free(other);
        if (participants(rb) != 3) _exit(5);
        atomic_store(used, 1);
        wait_for_stage(used, 2);
        ringbuf_message message;
        if (ringbuf_lease(rb, &message, NULL, 0, 0) != RINGBUF_OK) _exit(6);
        atomic_store(used, 3);
        sleep_for_ever();
    }
    int how;
    while (atomic_load(used) != 1)
        if (waitpid(child, &how, WNOHANG) == child) return 10 + WEXITSTATUS(how);
    if (ringbuf_put(rb, "work", 5, 0) != RINGBUF_OK) return 2;
    atomic_store(used, 2);
    while (atomic_load(used) != 3)
        if (waitpid(child, &how, WNOHANG) == child) return 10 + WEXITSTATUS(how);
    char text[8];
    size_t size;
    /* It lives, and keeps what it has. */
    if (participants(rb) != 3 || ringbuf_get(rb, &size, text, sizeof text, 0) != RINGBUF_E_TIMEOUT) return 3;
    kill(child, SIGKILL);
    if (end_of(child) != -SIGKILL) return 4;
    if (ringbuf_get(rb, &size, text, sizeof text, ringbuf_now_ns() + INT64_C(20000) * MILLISECOND) != RINGBUF_OK) return 5;
    if (participants(rb) != 2) return 6;
    ringbuf_free(rb);
    ringbuf_free(other);
    ringbuf_free(second);
    return 0;
}

static void test_a_child_of_a_root_that_gave_up_its_rights_uses_the_queues_it_has_inherited(void)
{
    if (geteuid() != 0) TEST_IGNORE_MESSAGE("only root has rights to give up");
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0777)); /* so that the last one can remove the files */
    TEST_ASSERT_EQUAL_INT(0, run_child(fork_without_rights, NULL));
}

static int outlive_the_parent(void *context)
{
    stage *stages = context;
    ringbuf *rb = attach("queue");
    if (!rb || setuid(12345) != 0) return 1;
    if (fork() == 0) {
        bool works = puts_and_gets(rb, rb);
        atomic_store(stages, works ? 1 : 9);
        wait_for_stage(stages, 2); /* the parent is dead meanwhile */
        _exit(0);
    }
    sleep_for_ever();
}

static void test_such_a_child_does_not_keep_the_locks_of_its_dead_parent(void)
{
    if (geteuid() != 0) TEST_IGNORE_MESSAGE("only root has rights to give up");
    stage *stages = share_memory(sizeof *stages);
    TEST_ASSERT_EQUAL_INT(0, chmod(suite_directory, 0777));
    ringbuf *rb = create("queue");
    pid_t parent = start_child(outlive_the_parent, stages);
    while (atomic_load(stages) == 0) usleep(1000);
    TEST_ASSERT_EQUAL_INT(1, atomic_load(stages));
    TEST_ASSERT_EQUAL_UINT64(3, participants(rb));
    kill_child(parent);
    TEST_ASSERT_EQUAL_UINT64(2, participants(rb)); /* the child is there, its parent is not */
    atomic_store(stages, 2);
    while (participants(rb) != 1) usleep(1000);
    ringbuf_free(rb);
    munmap(stages, sizeof *stages);
}

static int close_another_handle_of_the_file(void *context)
{
    (void)context;
    ringbuf *rb = create("queue");
    if (!rb || seteuid(12345) != 0) return 1;
    pid_t child = fork();
    if (child == 0) {
        if (!puts_and_gets(rb, rb)) _exit(1);
        if (seteuid(0) != 0) _exit(2);
        for (int i = 0; i < 100; i++) { /* each closes a descriptor of the file, which would drop our locks */
            ringbuf *other = attach("queue");
            if (!other) _exit(3);
            ringbuf_free(other);
        }
        pid_t looker = fork();
        if (looker == 0) {
            ringbuf *other = attach("queue");
            _exit(other && participants(other) == 3 + 0 ? 0 : 1); /* parent, child, and this one by its own handle */
        }
        _exit(end_of(looker) == 0 ? 0 : 4);
    }
    int end = end_of(child);
    seteuid(0);
    ringbuf_free(rb);
    return end;
}

static void test_closing_another_handle_of_the_file_drops_no_lock_by_process(void)
{
    if (geteuid() != 0) TEST_IGNORE_MESSAGE("only root has rights to give up");
    TEST_ASSERT_EQUAL_INT(0, run_child(close_another_handle_of_the_file, NULL));
}

/* ---- relative directories ---- */

static void test_a_relative_directory_stays_the_same_when_the_working_directory_changes(void)
{
    char before[512], expected[600];
    int fd;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.directory = "sub";
    TEST_ASSERT_NOT_NULL(getcwd(before, sizeof before));
    TEST_ASSERT_EQUAL_INT(0, chdir(suite_directory));
    TEST_ASSERT_EQUAL_INT(0, mkdir("sub", 0700));
    ringbuf *rb = NULL;
    ASSERT_OK(ringbuf_create(&rb, "queue", &options));
    TEST_ASSERT_EQUAL_INT(0, chdir("/"));
    snprintf(expected, sizeof expected, "%s/sub/ringbuf.queue", suite_directory);
    TEST_ASSERT_EQUAL_STRING(expected, ringbuf_path(rb));
    ASSERT_OK(ringbuf_items_fd(rb, &fd));
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(0, rmdir(path_of("sub"))); /* neither the queue nor the FIFO is left */
    TEST_ASSERT_EQUAL_INT(0, chdir(before));
}

/* ---- systems that lack something ---- */

static int use_a_queue(void *context)
{
    (void)context;
    int fd;
    ringbuf *rb = create("queue"), *unnamed = create(NULL), *other = attach("queue");
    if (!rb || !unnamed || !other || files_left() != 2) return 1;
    if (!puts_and_gets(rb, other) || ringbuf_items_fd(rb, &fd) != RINGBUF_OK) return 2;
    pid_t child = fork();
    if (child == 0) _exit(puts_and_gets(other, rb) && puts_and_gets(unnamed, unnamed) ? 0 : 1);
    if (end_of(child) != 0) return 3;
    ringbuf_free(rb);
    ringbuf_free(unnamed);
    ringbuf_free(other);
    return files_left();
}

static int without_unnamed_files(void *context)
{
    has_no_unnamed_files = true;
    return use_a_queue(context);
}

static int without_proc(void *context)
{
    has_no_proc = true;
    return use_a_queue(context);
}

static void test_where_there_are_no_files_without_a_name_or_no_proc_queues_work_as_ever(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(without_unnamed_files, NULL));
    TEST_ASSERT_EQUAL_INT(0, run_child(without_proc, NULL));
}

static int create_at_once(void *context)
{
    has_no_unnamed_files = true;
    wait_for_stage(context, 1);
    for (int i = 0; i < 50; i++) {
        ringbuf *rb = create("queue");
        uint64_t removed;
        if (!rb || ringbuf_put(rb, "text", 5, 0) != RINGBUF_OK) return 1;
        ringbuf_free(rb);
        if (ringbuf_collect(&removed, NULL) != RINGBUF_OK) return 2; /* which must not take a file away that is being made */
    }
    return 0;
}

static void test_many_that_make_files_under_private_names_end_in_one_queue(void)
{
    enum { CHILDREN = 4 };
    pid_t children[CHILDREN];
    stage *go = share_memory(sizeof *go);
    for (int i = 0; i < CHILDREN; i++) children[i] = start_child(create_at_once, go);
    atomic_fetch_add(go, 1);
    for (int i = 0; i < CHILDREN; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
    ringbuf *rb = attach("queue");
    uint64_t items = 0;
    TEST_ASSERT_NOT_NULL(rb);
    ASSERT_OK(ringbuf_size(rb, &items));
    TEST_ASSERT_EQUAL_UINT64(CHILDREN * 50, items);
    TEST_ASSERT_EQUAL_INT(1, files_left());
    ASSERT_OK(ringbuf_shutdown(rb, 1));
    ringbuf_free(rb);
    munmap(go, sizeof *go);
}

static void test_without_locks_of_open_files_there_is_no_queue_and_the_call_is_named(void)
{
    ringbuf *rb = NULL;
    has_no_file_locks = true;
    ringbuf_status status = ringbuf_create(&rb, "queue", NULL);
    has_no_file_locks = false;
    ASSERT_STATUS(RINGBUF_E_SYSTEM, status);
    TEST_ASSERT_EQUAL_STRING("fcntl(F_OFD_SETLK)", ringbuf_error_call());
    TEST_ASSERT_EQUAL_INT(EINVAL, ringbuf_error_number());
}

/* ---- what was refused ---- */

static void test_a_refusal_of_the_system_is_named_and_a_decision_of_our_own_is_none(void)
{
    ringbuf_options options;
    ringbuf *rb = NULL;
    ringbuf_options_init(&options);
    options.directory = "/proc";
    ASSERT_STATUS(RINGBUF_E_NO_DIRECTORY, ringbuf_create(&rb, "queue", &options));
    TEST_ASSERT_NOT_NULL(ringbuf_error_call());
    TEST_ASSERT_EQUAL_INT(0, strncmp("open", ringbuf_error_call(), 4));
    TEST_ASSERT_NOT_EQUAL(0, ringbuf_error_number());
    if (geteuid() == 0) {
        ringbuf *mine = create_flagged("queue", RINGBUF_PERSISTENT);
        TEST_ASSERT_NOT_NULL(mine);
        ringbuf_free(mine);
        TEST_ASSERT_EQUAL_INT(0, chown(path_of("ringbuf.queue"), 12345, 12345));
        ASSERT_STATUS(RINGBUF_E_ACCESS, ringbuf_open(&rb, "queue", NULL));
        TEST_ASSERT_NULL(ringbuf_error_call());
        TEST_ASSERT_EQUAL_INT(0, ringbuf_error_number());
        TEST_ASSERT_EQUAL_INT(0, unlink(path_of("ringbuf.queue")));
    }
}

static int create_at_the_descriptor_limit(void *context)
{
    ringbuf *rb = NULL;
    (void)context;
    struct rlimit limit = {.rlim_cur = 3, .rlim_max = 3};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return 1;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_E_NO_FILES) return 2;
    return ringbuf_error_call() && strncmp(ringbuf_error_call(), "open", 4) == 0 && ringbuf_error_number() == EMFILE ? 0 : 3;
}

static int create_beyond_the_size_limit(void *context)
{
    ringbuf *rb = NULL;
    (void)context;
    struct rlimit limit = {.rlim_cur = 1 << 16, .rlim_max = 1 << 16};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_E_NO_SPACE) return 2;
    return ringbuf_error_call() && strcmp(ringbuf_error_call(), "ftruncate") == 0 && ringbuf_error_number() == EFBIG ? 0 : 3;
}

static int create_beyond_the_address_limit(void *context)
{
    ringbuf *rb = NULL;
    (void)context;
    struct rlimit limit = {.rlim_cur = 1 << 26, .rlim_max = 1 << 26};
    if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
    if (ringbuf_create(&rb, "queue", NULL) != RINGBUF_E_NO_MEMORY) return 2;
    return ringbuf_error_call() && strcmp(ringbuf_error_call(), "mmap") == 0 && ringbuf_error_number() == ENOMEM ? 0 : 3;
}

static void test_each_limit_is_named_by_the_call_that_met_it(void)
{
    TEST_ASSERT_EQUAL_INT(0, run_child(create_at_the_descriptor_limit, NULL));
    TEST_ASSERT_EQUAL_INT(0, run_child(create_beyond_the_size_limit, NULL));
    if (!SANITIZED) TEST_ASSERT_EQUAL_INT(0, run_child(create_beyond_the_address_limit, NULL));
}

/* ---- leftovers ---- */

static int die_with(void *context)
{
    const char *const *name = context;
    ringbuf *rb = create_flagged(*name, *name ? RINGBUF_AUTO_CLEANUP : 0);
    if (!rb || ringbuf_put(rb, "text", 5, 0) != RINGBUF_OK) return 1;
    die();
}

static void leave_over(const char *name)
{
    int before = files_left();
    TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(die_with, &name));
    TEST_ASSERT_EQUAL_INT(before + 1, files_left());
}

static int create_unnamed(void *context)
{
    (void)context;
    ringbuf *rb = create(NULL);
    return !rb ? 100 : files_left();
}

static int create_unnamed_and_close(void *context)
{
    (void)context;
    ringbuf *rb = create(NULL);
    if (!rb) return 100;
    ringbuf_free(rb);
    return files_left();
}

static void test_making_an_unnamed_queue_removes_those_of_the_dead_and_no_others(void)
{
    ringbuf *used = create(NULL), *kept = create_flagged("kept", RINGBUF_PERSISTENT);
    TEST_ASSERT_NOT_NULL(used);
    TEST_ASSERT_NOT_NULL(kept);
    ringbuf_free(kept);
    leave_over("leftover");
    leave_over("another");
    TEST_ASSERT_EQUAL_INT(2, run_child(create_unnamed_and_close, NULL));
    TEST_ASSERT_EQUAL_INT(0, access(ringbuf_path(used), F_OK));
    ringbuf_free(used);
    ASSERT_OK(ringbuf_unlink_name("kept", NULL));
}

static void test_a_program_that_is_killed_again_and_again_leaves_nothing_but_its_last(void)
{
    for (int i = 0; i < 50; i++) {
        const char *name = NULL;
        TEST_ASSERT_EQUAL_INT(-SIGKILL, run_child(die_with, &name));
        TEST_ASSERT_EQUAL_INT(1, files_left()); /* its own; the one before is gone */
    }
    TEST_ASSERT_EQUAL_INT(1, run_child(create_unnamed, NULL)); /* which ends without closing */
    uint64_t removed;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(1, removed);
}

static int stay_in(void *context)
{
    stage *ready = context;
    ringbuf *rb = attach("queue");
    if (!rb) return 1;
    atomic_fetch_add(ready, 1);
    sleep_for_ever();
}

/** Workers are there when we leave, and are killed then. */
static void leave_before_the_killed(uint32_t flags)
{
    stage *ready = share_memory(sizeof *ready);
    ringbuf *rb = create_flagged("queue", flags);
    TEST_ASSERT_NOT_NULL(rb);
    pid_t child = start_child(stay_in, ready);
    wait_for_stage(ready, 1);
    ringbuf_free(rb);
    TEST_ASSERT_EQUAL_INT(1, files_left());
    kill_child(child);
    munmap(ready, sizeof *ready);
}

static int leave_and_end(void *context)
{
    const uint32_t *flags = context;
    leave_before_the_killed(*flags);
    if (files_left() != 1) return 1;
    exit(0);
}

static void test_what_was_left_to_others_who_were_killed_is_removed_at_the_end_or_before(void)
{
    static uint32_t kinds[] = {RINGBUF_AUTO_CLEANUP, 0};
    for (size_t kind = 0; kind < 2; kind++) {
        TEST_ASSERT_EQUAL_INT(0, run_child(leave_and_end, &kinds[kind])); /* at the end */
        TEST_ASSERT_EQUAL_INT(0, files_left());
        leave_before_the_killed(kinds[kind]);
        for (int left = 2; left != 1;) { /* not more often than its cost allows, so perhaps not the first time */
            usleep(50000);
            ringbuf *other = create_flagged("other", RINGBUF_AUTO_CLEANUP);
            left = files_left();
            ringbuf_free(other);
        }
    }
}

static void test_what_others_still_use_or_another_queue_of_its_name_stays(void)
{
    stage *ready = share_memory(sizeof *ready);
    ringbuf *rb = create("queue");
    pid_t child = start_child(stay_in, ready);
    wait_for_stage(ready, 1);
    ringbuf_free(rb);
    usleep(50000);
    ringbuf_free(create_flagged("other", RINGBUF_AUTO_CLEANUP));
    TEST_ASSERT_EQUAL_INT(1, files_left()); /* it is in use */
    TEST_ASSERT_EQUAL_INT(0, unlink(path_of("ringbuf.queue")));
    ringbuf *next = create("queue");
    TEST_ASSERT_TRUE(ringbuf_put(next, "text", 5, 0) == RINGBUF_OK);
    kill_child(child);
    usleep(50000);
    ringbuf_free(create_flagged("other", RINGBUF_AUTO_CLEANUP));
    TEST_ASSERT_EQUAL_INT(1, files_left()); /* it is another one */
    ASSERT_OK(ringbuf_shutdown(next, 1));
    ringbuf_free(next);
    munmap(ready, sizeof *ready);
}

static int meet_a_full_file_system(void *context)
{
    const char *const *kind = context;
    ringbuf_status status;
    is_full = **kind == 'c';
    ringbuf *rb = create_flagged("queue", RINGBUF_AUTO_CLEANUP);
    if (!rb) return 1;
    is_full = true;
    for (int i = 0; i < 2000; i++)
        if ((status = ringbuf_put(rb, "text", 5, 0)) != RINGBUF_OK) return 2;
    ringbuf_free(rb);
    return files_left();
}

static void test_what_the_dead_left_makes_room_at_create_and_at_put(void)
{
    static const char *kinds[] = {"create", "put"};
    for (size_t kind = 0; kind < 2; kind++) {
        leave_over("leftover");
        TEST_ASSERT_EQUAL_INT(0, run_child(meet_a_full_file_system, &kinds[kind]));
    }
}

/* ---- other layouts ---- */

static void write_u32(const char *path, off_t offset, uint32_t value)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    TEST_ASSERT_EQUAL_INT64(sizeof value, pwrite(fd, &value, sizeof value, offset));
    close(fd);
}

static void swap(const char *path, off_t offset, size_t bytes)
{
    uint8_t before[8], after[8];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    TEST_ASSERT_EQUAL_INT64((int64_t)bytes, pread(fd, before, bytes, offset));
    for (size_t i = 0; i < bytes; i++) after[i] = before[bytes - 1 - i];
    TEST_ASSERT_EQUAL_INT64((int64_t)bytes, pwrite(fd, after, bytes, offset));
    close(fd);
}

static void test_leftovers_of_other_layouts_are_named_and_collected_and_nothing_else_of_theirs(void)
{
    static const struct { uint32_t layout; bool swapped, goes; } cases[] = {
        {3, false, true}, {5, false, true}, {77, false, true}, {5, true, true}, {RBI_LAYOUT_VERSION, true, true}, {2, false, false},
    };
    ringbuf *rb = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        leave_over("leftover");
        const char *path = path_of("ringbuf.leftover");
        write_u32(path, 8, cases[i].layout);
        if (cases[i].swapped) swap(path, 0, 8), swap(path, 8, 4), swap(path, 28, 4);
        ASSERT_STATUS(RINGBUF_E_VERSION, ringbuf_open(&rb, "leftover", NULL));
        TEST_ASSERT_EQUAL_HEX32(cases[i].layout | (cases[i].swapped ? UINT32_C(1) << 31 : 0), ringbuf_error_layout());
        uint64_t removed = 99;
        ASSERT_OK(ringbuf_collect(&removed, NULL));
        TEST_ASSERT_EQUAL_UINT64(cases[i].goes, removed);
        if (!cases[i].goes) TEST_ASSERT_EQUAL_INT(0, unlink(path));
    }
    /* Somebody has it; and one that would stay. */
    leave_over("leftover");
    const char *path = path_of("ringbuf.leftover");
    write_u32(path, 8, 3);
    rbi_fd fd;
    ASSERT_OK(rbi_open_file(&fd, path));
    ASSERT_OK(rbi_file_lock_try(fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED));
    uint64_t removed = 99;
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    rbi_close(fd);
    write_u32(path, 28, 0);
    ASSERT_OK(ringbuf_collect(&removed, NULL));
    TEST_ASSERT_EQUAL_UINT64(0, removed);
    ASSERT_OK(ringbuf_unlink_name("leftover", NULL));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_child_forked_while_another_thread_opens_or_closes_keeps_no_descriptor);
    RUN_TEST(test_no_descriptor_of_ours_is_a_standard_one);
    RUN_TEST(test_after_its_descriptors_were_closed_a_handle_goes_on_and_others_files_stay_theirs);
    RUN_TEST(test_a_process_whose_descriptors_were_closed_does_not_collect_its_own_queues);
    RUN_TEST(test_after_its_descriptors_were_closed_a_handle_is_closed_in_order_and_closes_nothing_else);
    RUN_TEST(test_a_handle_that_was_taken_for_dead_becomes_another_participant_and_has_lost_what_it_had);
    RUN_TEST(test_a_sleeper_whose_handle_was_taken_for_dead_goes_on_as_another_participant);
    RUN_TEST(test_a_number_that_another_handle_has_got_is_not_closed_under_it);
    RUN_TEST(test_a_file_that_cannot_be_opened_again_is_an_error_of_its_own);
    RUN_TEST(test_root_opens_a_file_without_a_name_again_through_its_mapping);
    RUN_TEST(test_a_child_that_closes_everything_before_its_first_call_takes_part);
    RUN_TEST(test_a_child_of_a_root_that_gave_up_its_rights_uses_the_queues_it_has_inherited);
    RUN_TEST(test_such_a_child_does_not_keep_the_locks_of_its_dead_parent);
    RUN_TEST(test_closing_another_handle_of_the_file_drops_no_lock_by_process);
    RUN_TEST(test_a_relative_directory_stays_the_same_when_the_working_directory_changes);
    RUN_TEST(test_where_there_are_no_files_without_a_name_or_no_proc_queues_work_as_ever);
    RUN_TEST(test_many_that_make_files_under_private_names_end_in_one_queue);
    RUN_TEST(test_without_locks_of_open_files_there_is_no_queue_and_the_call_is_named);
    RUN_TEST(test_a_refusal_of_the_system_is_named_and_a_decision_of_our_own_is_none);
    RUN_TEST(test_each_limit_is_named_by_the_call_that_met_it);
    RUN_TEST(test_making_an_unnamed_queue_removes_those_of_the_dead_and_no_others);
    RUN_TEST(test_a_program_that_is_killed_again_and_again_leaves_nothing_but_its_last);
    RUN_TEST(test_what_was_left_to_others_who_were_killed_is_removed_at_the_end_or_before);
    RUN_TEST(test_what_others_still_use_or_another_queue_of_its_name_stays);
    RUN_TEST(test_what_the_dead_left_makes_room_at_create_and_at_put);
    RUN_TEST(test_leftovers_of_other_layouts_are_named_and_collected_and_nothing_else_of_theirs);
    return leave_suite_directory(UNITY_END());
}
