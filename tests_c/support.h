/* support.h — for the suites of the floors: a directory of their own for queue files, children, and stages they reach together.
 *
 * Children never assert: they return an exit code, which the parent asserts.  Nothing here knows about rings. */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <ringbuf/ringbuf.h>
#include <unity.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { MILLISECOND = 1000000 };

/** Whether an emulator runs us (CMakeLists.txt says so), which has limits of its own; who asks says which. */
static inline bool emulated(void) { return getenv("RINGBUF_EMULATED") != NULL; }

#define ASSERT_STATUS(expected, call) TEST_ASSERT_EQUAL_STRING(ringbuf_status_text(expected), ringbuf_status_text(call))
#define ASSERT_OK(call) ASSERT_STATUS(RINGBUF_OK, call)

/* ---- a directory of our own ---- */

static char suite_directory[] = "/dev/shm/ringbuf-test-XXXXXX";

/** Make it, and make every queue of this process and its children live there. */
static inline void enter_suite_directory(void)
{
    if (!mkdtemp(suite_directory) || setenv("SAGE_QUEUE_DIR", suite_directory, 1) != 0) {
        perror(suite_directory);
        exit(2);
    }
}

/** How many entries a directory has; their names are appended to `names`, as far as they fit. */
static inline int directory_entries(const char *directory, char *names, size_t capacity)
{
    int count = 0;
    size_t length = 0;
    DIR *stream = opendir(directory);
    if (!stream) return -1;
    if (capacity) names[0] = '\0';
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        count++;
        if (length < capacity) length += (size_t)snprintf(names + length, capacity - length, "%s ", entry->d_name);
    }
    closedir(stream);
    return count;
}

static inline void remove_entries(const char *directory)
{
    DIR *stream = opendir(directory);
    if (!stream) return;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) != 0) unlinkat(dirfd(stream), entry->d_name, AT_REMOVEDIR);
    }
    closedir(stream);
}

/** To be called by tearDown: every test leaves the directory as it found it. */
static inline void assert_nothing_is_left(void)
{
    char names[512];
    int count = directory_entries(suite_directory, names, sizeof names);
    remove_entries(suite_directory);
    if (count != 0) TEST_FAIL_MESSAGE(names);
}

/** To be returned from main after UNITY_END(): adds what is left in the directory to the failures. */
static inline int leave_suite_directory(int failures)
{
    if (rmdir(suite_directory) == 0) return failures;
    perror(suite_directory);
    return failures + 1;
}

/* ---- children ---- */

/** What a child does; returns its exit code.  0 is success. */
typedef int child_main(void *context);

static inline pid_t start_child(child_main *body, void *context)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(body(context));
    TEST_ASSERT_GREATER_THAN_INT(0, child);
    return child;
}

/** Wait for its end; its exit code, or minus the signal that ended it. */
static inline int end_of(pid_t child)
{
    int how = 0;
    while (waitpid(child, &how, 0) < 0 && errno == EINTR) {}
    return WIFSIGNALED(how) ? -WTERMSIG(how) : WEXITSTATUS(how);
}

static inline int run_child(child_main *body, void *context) { return end_of(start_child(body, context)); }

static inline void kill_child(pid_t child)
{
    kill(child, SIGKILL);
    TEST_ASSERT_EQUAL_INT(-SIGKILL, end_of(child));
}

static inline void stop_child(pid_t child)
{
    int how = 0;
    kill(child, SIGSTOP);
    TEST_ASSERT_EQUAL_INT(child, waitpid(child, &how, WUNTRACED));
    TEST_ASSERT_TRUE(WIFSTOPPED(how));
}

static inline _Noreturn void sleep_for_ever(void)
{
    for (;;) pause();
}

/** Die as kill -9 would have it. */
static inline _Noreturn void die(void)
{
    kill(getpid(), SIGKILL);
    sleep_for_ever();
}

static inline void nap_ms(long ms)
{
    struct timespec length = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&length, NULL);
}

/* ---- stages: counters that parent and children share ---- */

/** Zeroed memory that children share. */
static inline void *share_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TEST_ASSERT_TRUE(memory != MAP_FAILED);
    return memory;
}

typedef _Atomic int stage;

static inline void wait_for_stage(stage *reached, int wanted)
{
    while (atomic_load(reached) < wanted) nap_ms(1);
}

/* ---- random numbers that are the same every time ---- */

static inline uint64_t next_random(uint64_t *state)
{
    /* splitmix64 */
    uint64_t mixed = *state += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

static inline uint64_t random_below(uint64_t *state, uint64_t bound) { return next_random(state) % bound; }

#endif
