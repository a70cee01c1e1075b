/* platform_model.c — platform.h for the explorer: locks, sleeping, time and FIFOs, each call a step.
 *
 * A process is known by the descriptor of its queue's file; its death drops the locks on it.  Memory is there already, so asking for pages
 * always succeeds.  Files are not modelled: the explorer begins with an attached queue. */
#include "platform_model.h"

#include "files.h"

#include <string.h>

enum {
    LOCKS = 16, MUTEXES = 8, FLAGS = 8, OPENED = 24,
    MUTEX_EDGE = LOCKS, FLAG_EDGE = MUTEX_EDGE + MUTEXES,
    OPENED_FD = 1000,
};
enum { UNLOCKED, SHARED_LOCK, LOCKED };

static struct {
    int8_t exclusive[LOCKS];      /* the process that holds it; -1 */
    uint8_t shared[LOCKS];        /* a bit for each process */
    struct {
        const void *at;
        int8_t owner;
    } mutexes[MUTEXES];
    struct {
        bool exists, named, up;
        int8_t level;
    } flags[FLAGS];
    struct {
        bool used;
        int8_t flag, process, lock;
    } opened[OPENED];
} kernel, kernel_at_start;

static void *shared_from, *shared_to; /* mutexes in here are shared by threads */

void platform_model_forget(void)
{
    memset(&kernel, 0, sizeof kernel);
    memset(kernel.exclusive, -1, sizeof kernel.exclusive);
}

void platform_model_share(void *from, void *to) { shared_from = from, shared_to = to; }
void platform_model_keep(void) { kernel_at_start = kernel; }
void platform_model_restore(void) { kernel = kernel_at_start; }

uint64_t platform_model_hash(void)
{
    uint64_t hash = 5;
    for (int i = 0; i < LOCKS; i++) hash = model_mix(hash, (uint64_t)(kernel.exclusive[i] + 1) << 8 | kernel.shared[i]);
    for (int i = 0; i < MUTEXES; i++)
        if (kernel.mutexes[i].at) hash = model_mix(hash, (uint64_t)(kernel.mutexes[i].owner + 1) << 4 | (uint64_t)i);
    for (int i = 0; i < FLAGS; i++)
        if (kernel.flags[i].exists)
            hash = model_mix(hash, (uint64_t)kernel.flags[i].level << 8 | (uint64_t)kernel.flags[i].named << 1 | kernel.flags[i].up);
    for (int i = 0; i < OPENED; i++)
        if (kernel.opened[i].used)
            hash = model_mix(hash, (uint64_t)i << 24 | (uint64_t)kernel.opened[i].flag << 16 | (uint64_t)(kernel.opened[i].process + 1) << 8 |
                                       (uint64_t)kernel.opened[i].lock);
    return hash;
}

void platform_model_died(int process)
{
    for (int i = 0; i < LOCKS; i++) {
        if (kernel.exclusive[i] != process && !(kernel.shared[i] >> process & 1)) continue;
        model_give(i, process); /* what the dead one has written is there */
        if (kernel.exclusive[i] == process) kernel.exclusive[i] = -1;
        kernel.shared[i] &= (uint8_t)~(1u << process);
    }
    for (int i = 0; i < MUTEXES; i++)
        if (kernel.mutexes[i].at && kernel.mutexes[i].owner == process) kernel.mutexes[i].owner = -1;
    for (int i = 0; i < OPENED; i++)
        if (kernel.opened[i].process == process) kernel.opened[i].used = false;
}

/* ---- locks ---- */

/** Who holds the lock, now that somebody asks: it may have died just before. */
static int holder_of(uint32_t which, int me)
{
    int holder = kernel.exclusive[which];
    if (holder >= 0 && holder != me && model_self() >= 0 && model_may_kill(holder) && model_choose(2, "whose holder dies now"))
        model_kill(holder);
    return kernel.exclusive[which];
}

uint32_t rbi_lock_look(rbi_fd fd, uint32_t which)
{
    int me = fd - PLATFORM_MODEL_FD;
    model_step("asks about the lock", which);
    int holder = holder_of(which, me);
    uint32_t presence = RINGBUF_NOBODY;
    if (holder >= 0 && holder != me) presence = RINGBUF_ALONE;
    else if (kernel.shared[which] & ~(1u << me)) presence = RINGBUF_SOMEBODY;
    if (model_trace && model_self() >= 0) printf("            %s\n", presence != RINGBUF_NOBODY ? "it is held" : "it is not held");
    return presence;
}

ringbuf_status rbi_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind)
{
    int me = fd - PLATFORM_MODEL_FD;
    model_step(kind == RBI_LOCK_SHARED ? "tries the shared lock" : "tries the lock", which);
    int holder = holder_of(which, me);
    bool got = holder < 0 || holder == me;
    if (kind == RBI_LOCK_EXCLUSIVE && kernel.shared[which] & ~(1u << me)) got = false;
    if (model_trace && model_self() >= 0) printf("            %s\n", got ? "gets it" : "does not get it");
    if (!got) return RINGBUF_E_BUSY;
    model_take((int)which);
    model_changed();
    kernel.exclusive[which] = -1;
    kernel.shared[which] &= (uint8_t)~(1u << me);
    if (kind == RBI_LOCK_EXCLUSIVE) kernel.exclusive[which] = (int8_t)me;
    else kernel.shared[which] |= (uint8_t)(1u << me);
    return RINGBUF_OK;
}

void rbi_lock_drop(rbi_fd fd, uint32_t which)
{
    int me = fd - PLATFORM_MODEL_FD;
    model_step("drops the lock", which);
    model_give((int)which, model_self());
    if (kernel.exclusive[which] == me) kernel.exclusive[which] = -1;
    kernel.shared[which] &= (uint8_t)~(1u << me);
    model_changed();
}

/* ---- mutexes: only those in handles that several threads use can be contended ---- */

static int mutex_index(const void *mutex)
{
    if (mutex < shared_from || mutex >= shared_to) return -1;
    for (int i = 0; i < MUTEXES; i++) {
        if (kernel.mutexes[i].at == mutex) return i;
        if (kernel.mutexes[i].at) continue;
        kernel.mutexes[i].at = mutex;
        kernel.mutexes[i].owner = -1;
        return i;
    }
    return -1;
}

int model_mutex_trylock(pthread_mutex_t *mutex)
{
    int index = mutex_index(mutex);
    if (model_self() < 0 || index < 0) return 0;
    model_step("tries mutex", (uint64_t)index);
    bool got = kernel.mutexes[index].owner < 0;
    if (!got) return 1;
    kernel.mutexes[index].owner = (int8_t)model_self();
    model_take(MUTEX_EDGE + index);
    return 0;
}

int model_mutex_lock(pthread_mutex_t *mutex)
{
    while (model_mutex_trylock(mutex) != 0) model_sleep(mutex, RINGBUF_FOREVER);
    return 0;
}

int model_mutex_unlock(pthread_mutex_t *mutex)
{
    int index = mutex_index(mutex);
    if (model_self() < 0 || index < 0) return 0;
    model_step("unlocks mutex", (uint64_t)index);
    model_give(MUTEX_EDGE + index, model_self());
    kernel.mutexes[index].owner = -1;
    model_wake(mutex, 1);
    return 0;
}

/* ---- sleeping and time ---- */

ringbuf_status rbi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns)
{
    model_step("is about to sleep unless the word has changed, expecting", expected);
    bool same = *(volatile uint32_t *)(void *)word == expected;
    if (!same) {
        if (model_trace && model_self() >= 0) printf("            it has\n");
        return RINGBUF_OK;
    }
    return model_sleep((const void *)word, deadline_ns) ? RINGBUF_OK : RINGBUF_E_TIMEOUT;
}

int rbi_futex_wake(_Atomic uint32_t *word, int count)
{
    model_step("wakes", (uint64_t)count);
    int woken = model_wake((const void *)word, count);
    return woken;
}

void rbi_yield(void) {}
void rbi_nap(int64_t ns) { model_sleep(NULL, model_clock() + ns); }

int64_t rbi_monotonic_ns(void) { return model_clock(); }
int64_t rbi_thread_ns(void) { return 0; } /* a step takes no time */

/* ---- what the explorer does not look into ---- */

uint64_t rbi_realtime_ns(void) { return 1; }
uint32_t rbi_pid(void) { return (uint32_t)(model_self() + 1); }
uint32_t rbi_user(void) { return 0; }
uint32_t rbi_processors(void) { return 1; } /* looking for a while before sleeping is no use where others run at every step */

ringbuf_status rbi_random(void *bytes, size_t count)
{
    memset(bytes, 7, count);
    return RINGBUF_OK;
}

void rbi_process_name(char *name, size_t capacity) { strncpy(name, "model", capacity); }
uint64_t rbi_page_bytes(void) { return 4096; }

bool platform_model_no_pages;

ringbuf_status rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    (void)fd, (void)offset, (void)bytes;
    return platform_model_no_pages ? RINGBUF_E_NO_SPACE : RINGBUF_OK;
}

ringbuf_status rbi_file_punch(rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    (void)fd, (void)offset, (void)bytes;
    return RINGBUF_OK;
}

/* ---- FIFOs ---- */

static int level_of(const char *path)
{
    return strstr(path, "items") ? 0 : strstr(path, "room") ? 1 : 2;
}

static int named_flag(const char *path)
{
    for (int i = 0; i < FLAGS; i++)
        if (kernel.flags[i].exists && kernel.flags[i].named && kernel.flags[i].level == level_of(path)) return i;
    return -1;
}

static int flag_of(rbi_fd fd) { return kernel.opened[fd - OPENED_FD].flag; }

ringbuf_status rbi_flag_make(const char *path)
{
    model_step("makes the FIFO of level", (uint64_t)level_of(path));
    bool there = named_flag(path) >= 0;
    if (there) return RINGBUF_E_EXISTS;
    for (int i = 0; i < FLAGS; i++) {
        if (kernel.flags[i].exists) continue;
        kernel.flags[i].exists = kernel.flags[i].named = true;
        kernel.flags[i].level = (int8_t)level_of(path);
        model_changed();
        return RINGBUF_OK;
    }
    return RINGBUF_E_NO_SPACE;
}

void rbi_flag_share(rbi_fd flag, rbi_fd file) { (void)flag, (void)file; }

static ringbuf_status open_flag(rbi_fd *fd, int flag)
{
    for (int i = 0; i < OPENED; i++) {
        if (kernel.opened[i].used) continue;
        kernel.opened[i].used = true;
        kernel.opened[i].flag = (int8_t)flag;
        kernel.opened[i].process = (int8_t)model_self();
        kernel.opened[i].lock = UNLOCKED;
        *fd = OPENED_FD + i;
        return RINGBUF_OK;
    }
    return RINGBUF_E_NO_FILES;
}

ringbuf_status rbi_flag_open(struct rbi_file *file, const char *path)
{
    rbi_fd fd;
    model_step("opens the FIFO of level", (uint64_t)level_of(path));
    int flag = named_flag(path);
    ringbuf_status status = flag < 0 ? RINGBUF_E_NOT_FOUND : open_flag(&fd, flag);
    file->fd = status == RINGBUF_OK ? fd : -1;
    file->listed = status == RINGBUF_OK;
    return status;
}

void rbi_file_close(struct rbi_file *file)
{
    rbi_fd fd = file->fd;
    file->fd = -1;
    file->listed = false;
    if (fd < OPENED_FD) return;
    model_step("closes FIFO", (uint64_t)flag_of(fd));
    kernel.opened[fd - OPENED_FD].used = false;
    model_changed();
}

/* Nobody closes descriptors behind our back, and nobody forks. */
bool rbi_file_is_ours(const struct rbi_file *file) { return file->fd >= 0; }
void rbi_files_hold(void) {}
bool rbi_files_try_hold(void) { return true; }
void rbi_files_let_go(void) {}
void rbi_files_at_fork(void (*in_child)(void)) { (void)in_child; }
void rbi_file_close_in_child(struct rbi_file *file) { (void)file; }
void rbi_file_close_held(struct rbi_file *file) { rbi_file_close(file); }

struct rbi_refusal *rbi_last_refusal(void)
{
    static struct rbi_refusal refusal;
    return &refusal;
}

void rbi_flag_raise(rbi_fd fd)
{
    model_step("raises FIFO", (uint64_t)flag_of(fd));
    kernel.flags[flag_of(fd)].up = true;
    model_give(FLAG_EDGE + flag_of(fd), model_self());
    model_changed();
    model_wake(&kernel.flags[flag_of(fd)], MODEL_PROCESSES);
}

void rbi_flag_lower(rbi_fd fd)
{
    model_step("lowers FIFO", (uint64_t)flag_of(fd));
    kernel.flags[flag_of(fd)].up = false;
    model_take(FLAG_EDGE + flag_of(fd));
    model_changed();
}

bool platform_model_is_up(rbi_fd fd) { return kernel.flags[flag_of(fd)].up; }

void platform_model_poll(rbi_fd fd, int64_t deadline_ns)
{
    model_step("looks at FIFO", (uint64_t)flag_of(fd));
    bool up = platform_model_is_up(fd);
    if (!up) model_sleep(&kernel.flags[flag_of(fd)], deadline_ns);
}

ringbuf_status rbi_flag_lock_try(rbi_fd fd, enum rbi_lock_kind kind)
{
    model_step(kind == RBI_LOCK_SHARED ? "locks, shared, FIFO" : "locks FIFO", (uint64_t)flag_of(fd));
    bool got = true;
    int mine = fd - OPENED_FD;
    for (int i = 0; i < OPENED; i++) {
        if (i == mine || !kernel.opened[i].used || kernel.opened[i].flag != flag_of(fd)) continue;
        if (kernel.opened[i].lock == UNLOCKED || (kernel.opened[i].lock == SHARED_LOCK && kind == RBI_LOCK_SHARED)) continue;
        int holder = kernel.opened[i].process;
        if (holder >= 0 && holder != model_self() && model_self() >= 0 && model_may_kill(holder) && model_choose(2, "whose holder dies now"))
            model_kill(holder);
        else got = false;
    }
    if (model_trace && model_self() >= 0) printf("            %s\n", got ? "gets it" : "does not get it");
    kernel.opened[mine].lock = !got ? UNLOCKED : kind == RBI_LOCK_SHARED ? SHARED_LOCK : LOCKED;
    model_changed();
    return got ? RINGBUF_OK : RINGBUF_E_BUSY;
}

ringbuf_status rbi_file_facts(rbi_fd fd, struct rbi_file_facts *facts)
{
    memset(facts, 0, sizeof *facts);
    if (fd < OPENED_FD) { /* the queue's file is there, whole and under its name */
        facts->bytes = UINT64_MAX;
        facts->links = 1;
        return RINGBUF_OK;
    }
    int flag = flag_of(fd);
    model_step("asks about FIFO", (uint64_t)flag);
    facts->inode = (uint64_t)flag + 1;
    facts->links = kernel.flags[flag].named;
    return RINGBUF_OK;
}

ringbuf_status rbi_path_facts(const char *path, struct rbi_file_facts *facts)
{
    memset(facts, 0, sizeof *facts);
    model_step("asks what is the FIFO of level", (uint64_t)level_of(path));
    int flag = named_flag(path);
    if (flag < 0) return RINGBUF_E_NOT_FOUND;
    facts->inode = (uint64_t)flag + 1;
    facts->links = 1;
    return RINGBUF_OK;
}

ringbuf_status rbi_path_unlink(const char *path)
{
    model_step("removes the FIFO of level", (uint64_t)level_of(path));
    int flag = named_flag(path);
    if (flag < 0) return RINGBUF_E_NOT_FOUND;
    kernel.flags[flag].named = false;
    model_changed();
    return RINGBUF_OK;
}

/* ---- files: the explorer begins with an attached queue, so nobody comes here ---- */

#define ABSENT(name, ...)                                                                                                 \
    ringbuf_status name(__VA_ARGS__) { model_fail(#name "() is not modelled"); }

#define UNUSED __attribute__((unused))
ABSENT(rbi_file_make_unnamed, struct rbi_file *file UNUSED, const char *directory UNUSED, uint32_t permissions UNUSED)
ABSENT(rbi_file_make, struct rbi_file *file UNUSED, const char *path UNUSED, uint32_t permissions UNUSED)
ABSENT(rbi_file_link, rbi_fd fd UNUSED, const char *from UNUSED, const char *path UNUSED)
ABSENT(rbi_file_open, struct rbi_file *file UNUSED, const char *path UNUSED)
ABSENT(rbi_file_open_held, struct rbi_file *file UNUSED, const char *path UNUSED)
ABSENT(rbi_file_reopen, struct rbi_file *file UNUSED, const struct rbi_file *other UNUSED, const char *path UNUSED)
ABSENT(rbi_file_recall, struct rbi_file *file UNUSED, const char *path UNUSED, const void *base UNUSED, const uint64_t lengths[2] UNUSED)
ABSENT(rbi_file_reopen_in_child, struct rbi_file *file UNUSED, struct rbi_file *spare UNUSED, const char *path UNUSED)
ABSENT(rbi_flag_reopen_in_child, struct rbi_file *file UNUSED)
ABSENT(rbi_lock_try_in_child, struct rbi_file *file UNUSED, uint32_t which UNUSED, enum rbi_lock_kind kind UNUSED)
ABSENT(rbi_file_lock_try, rbi_fd fd UNUSED, uint32_t which UNUSED, enum rbi_lock_kind kind UNUSED)
ABSENT(rbi_file_read, rbi_fd fd UNUSED, void *bytes UNUSED, size_t count UNUSED)
ABSENT(rbi_file_write, rbi_fd fd UNUSED, uint64_t offset UNUSED, const void *bytes UNUSED, size_t count UNUSED)
ABSENT(rbi_on_missing_page, bool (*mend)(uint64_t) __attribute__((unused)))
ABSENT(rbi_directory_bytes, const char *directory __attribute__((unused)), uint64_t *total __attribute__((unused)),
       uint64_t *available __attribute__((unused)))
ABSENT(rbi_file_set_size, rbi_fd fd __attribute__((unused)), uint64_t bytes __attribute__((unused)))
ABSENT(rbi_map, void **base __attribute__((unused)), rbi_fd fd __attribute__((unused)), uint64_t prefix_bytes __attribute__((unused)),
       uint64_t mirror_bytes __attribute__((unused)), uint32_t mirrors __attribute__((unused)))

bool rbi_may_lose_rights(void) { return false; }
uint64_t rbi_descriptors_most(void) { return 0; }
char *rbi_absolute(const char *path) { return strdup(path); }

void rbi_signals_hold(struct rbi_signals *before) { (void)before; }
void rbi_signals_let_go(const struct rbi_signals *before) { (void)before; }

void *rbi_memory(uint64_t bytes)
{
    (void)bytes;
    return NULL;
}

void rbi_memory_free(void *memory, uint64_t bytes)
{
    (void)memory;
    (void)bytes;
}

/** Nothing lies beside the queue. */
ringbuf_status rbi_directory_visit(const char *directory, const char *prefix, bool patient, void (*visit)(const char *, void *), void *context)
{
    (void)directory, (void)prefix, (void)patient, (void)visit, (void)context;
    return RINGBUF_OK;
}

bool rbi_map_zeros(uint64_t address, uint64_t bytes)
{
    (void)address, (void)bytes;
    return false;
}

void rbi_map_leave_out_of_dumps(void *base, uint64_t bytes) { (void)base, (void)bytes; }
void rbi_map_want_huge_pages(void *base, uint64_t bytes) { (void)base, (void)bytes; }
void rbi_map_touch(void *base, uint64_t bytes) { (void)base, (void)bytes; }
ABSENT(rbi_map_lock, void *base __attribute__((unused)), uint64_t bytes __attribute__((unused)))

void rbi_unmap(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors)
{
    (void)base, (void)prefix_bytes, (void)mirror_bytes, (void)mirrors;
}
