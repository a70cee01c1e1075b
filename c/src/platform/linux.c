/* platform/linux.c — floor 0: platform.h on Linux.
 *
 * Open-file-description locks (3.15) are what liveness rests on: they belong to the open file, not to the process, so the kernel drops
 * them exactly when the last holder of that open file is gone, and two handles in one process do not take them from each other. */
#define _GNU_SOURCE
#include "../platform.h"

#include "../layout.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "locks lie at large offsets");

static const uint64_t RAMFS = 0x858458f6; /* as RAMFS_MAGIC in linux/magic.h */

/* Where the C library would else allocate it at its first use, which must not happen in a signal handler or after fork(). */
#ifdef __GLIBC__
__attribute__((tls_model("initial-exec")))
#endif
static _Thread_local struct rbi_refusal last_refusal;

struct rbi_refusal *rbi_last_refusal(void) { return &last_refusal; }

/* The one place where errno becomes a status. */
static ringbuf_status status_of(int error)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT: return RINGBUF_E_NO_SPACE;
    case ENOMEM: return RINGBUF_E_NO_MEMORY;
    case EMFILE:
    case ENFILE: return RINGBUF_E_NO_FILES;
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP: return RINGBUF_E_ACCESS;
    case EEXIST: return RINGBUF_E_EXISTS;
    case ENOENT: return RINGBUF_E_NOT_FOUND;
    case ENOTDIR: return RINGBUF_E_NO_DIRECTORY;
    case EISDIR:
    case ENXIO: return RINGBUF_E_CORRUPT; /* something else than a file lies under the name */
    case EINTR: return RINGBUF_E_INTR;
    default: return RINGBUF_E_SYSTEM;
    }
}

static void note(const char *call, int error) { last_refusal = (struct rbi_refusal){.call = call, .number = error}; }

/** What `call` was refused with. */
static ringbuf_status refused(const char *call, int error)
{
    ringbuf_status status = status_of(error);
    /* The others are answers that the library acts upon. */
    if (status != RINGBUF_E_EXISTS && status != RINGBUF_E_NOT_FOUND && status != RINGBUF_E_CORRUPT && status != RINGBUF_E_INTR) note(call, error);
    return status;
}

static ringbuf_status outcome(const char *call, int result) { return result < 0 ? refused(call, errno) : RINGBUF_OK; }

/* ---- opening ---- */

enum { STANDARD = 3 }; /* descriptors below are the program's, whether it has them open or not */

/** open(), but never one of the standard descriptors.  Where some of those are closed, a descriptor that nothing can be written to takes
 *  their place meanwhile: what another thread then writes to its stderr must not end in our file, not even for a moment. */
static int open_above(const char *path, int flags, mode_t mode)
{
    int low[STANDARD], lows = 0, fd;
    while (lows < STANDARD && (fd = open("/", O_PATH | O_CLOEXEC)) >= 0) {
        if (fd >= STANDARD) {
            close(fd);
            break;
        }
        low[lows++] = fd;
    }
    fd = open(path, flags | O_CLOEXEC, mode);
    int error = errno;
    if (fd >= 0 && fd < STANDARD) { /* one was closed since */
        int above = fcntl(fd, F_DUPFD_CLOEXEC, STANDARD);
        error = errno;
        close(fd);
        fd = above;
    }
    while (lows) close(low[--lows]);
    errno = error;
    return fd;
}

static ringbuf_status open_status(rbi_fd *fd, int result)
{
    *fd = result;
    return outcome("open", result);
}

static ringbuf_status with_mode(rbi_fd *fd, uint32_t permissions)
{
    /* Not through open's mode, which the umask would cut. */
    if (fchmod(*fd, (mode_t)permissions) == 0) return RINGBUF_OK;
    ringbuf_status status = refused("fchmod", errno);
    close(*fd);
    *fd = -1;
    return status;
}

ringbuf_status rbi_open_unnamed(rbi_fd *fd, const char *directory, uint32_t permissions)
{
    *fd = open_above(directory, O_TMPFILE | O_RDWR, 0600);
    if (*fd >= 0) return with_mode(fd, permissions);
    ringbuf_status status = refused("open(O_TMPFILE)", errno);
    /* EISDIR, EOPNOTSUPP, EINVAL: a file system, or a system, that has no nameless files. */
    if (errno != ENOENT && errno != EISDIR && errno != EOPNOTSUPP && errno != EINVAL) return status;
    note("open(O_TMPFILE)", errno);
    return RINGBUF_E_NO_DIRECTORY;
}

ringbuf_status rbi_open_new(rbi_fd *fd, const char *path, uint32_t permissions)
{
    ringbuf_status status = open_status(fd, open_above(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    return status == RINGBUF_OK ? with_mode(fd, permissions) : status;
}

ringbuf_status rbi_open_file(rbi_fd *fd, const char *path)
{
    /* O_NONBLOCK: a FIFO of that name must not hang us. */
    return open_status(fd, open_above(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0));
}

ringbuf_status rbi_open_to_read(rbi_fd *fd, const char *path)
{
    struct stat st;
    *fd = -1;
    /* First without opening: to open a FIFO is an event for those at its other end, and a device may do anything. */
    if (lstat(path, &st) < 0) return refused("lstat", errno);
    if (!S_ISREG(st.st_mode)) return RINGBUF_E_CORRUPT;
    /* O_NONBLOCK: also if it has become a FIFO by now, or if its owner holds a lease on it. */
    *fd = open_above(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
    if (*fd < 0) return errno == EAGAIN ? RINGBUF_E_ACCESS : refused("open", errno);
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) return RINGBUF_OK;
    close(*fd);
    *fd = -1;
    return RINGBUF_E_CORRUPT;
}

/* The name under which the kernel shows an open file.  Longest: "/proc/self/fd/2147483647". */
static void fd_path(char path[32], rbi_fd fd)
{
    /* By hand: also called after fork(), where snprintf is not allowed. */
    static const char prefix[] = "/proc/self/fd/";
    memcpy(path, prefix, sizeof prefix - 1);
    char digits[12];
    int count = 0;
    unsigned rest = (unsigned)fd;
    do digits[count++] = (char)('0' + rest % 10);
    while (rest /= 10);
    char *end = path + sizeof prefix - 1;
    while (count) *end++ = digits[--count];
    *end = '\0';
}

ringbuf_status rbi_open_again(rbi_fd *again, rbi_fd fd)
{
    char path[32];
    fd_path(path, fd);
    return open_status(again, open_above(path, O_RDWR, 0));
}

ringbuf_status rbi_open_mapped(rbi_fd *fd, const void *base, uint64_t bytes)
{
    char path[64];
    uintptr_t first = (uintptr_t)base;
    snprintf(path, sizeof path, "/proc/self/map_files/%llx-%llx", (unsigned long long)first, (unsigned long long)(first + bytes));
    return open_status(fd, open_above(path, O_RDWR, 0));
}

ringbuf_status rbi_open_flag(rbi_fd *fd, const char *path)
{
    /* For reading and writing, so that it never hangs up, and opening does not wait for another side. */
    ringbuf_status status = open_status(fd, open_above(path, O_RDWR | O_NONBLOCK | O_NOFOLLOW, 0));
    if (status != RINGBUF_OK) return status;
    struct stat st;
    if (fstat(*fd, &st) == 0 && S_ISFIFO(st.st_mode)) return RINGBUF_OK;
    close(*fd);
    *fd = -1;
    return RINGBUF_E_CORRUPT;
}

ringbuf_status rbi_open_flag_in_place(rbi_fd fd)
{
    char path[32];
    fd_path(path, fd);
    int again = open_above(path, O_RDWR | O_NONBLOCK, 0);
    if (again < 0) return refused("open", errno);
    ringbuf_status status = rbi_flag_lock_try(again, RBI_LOCK_SHARED);
    if (status == RINGBUF_OK) status = outcome("dup3", dup3(again, fd, O_CLOEXEC));
    close(again);
    return status;
}

ringbuf_status rbi_open_directory(rbi_fd *fd, const char *directory)
{
    ringbuf_status status = open_status(fd, open_above(directory, O_RDONLY | O_DIRECTORY, 0));
    return status == RINGBUF_E_NOT_FOUND ? RINGBUF_E_NO_DIRECTORY : status;
}

ringbuf_status rbi_open_process_name(rbi_fd *fd) { return open_status(fd, open_above("/proc/self/comm", O_RDONLY, 0)); }

void rbi_close(rbi_fd fd)
{
    if (fd >= 0) close(fd);
}

/* ---- files ---- */

ringbuf_status rbi_file_link(rbi_fd fd, const char *from, const char *path)
{
    char unnamed[32];
    fd_path(unnamed, fd);
    if (from) return outcome("linkat", linkat(AT_FDCWD, from, AT_FDCWD, path, 0));
    if (linkat(AT_FDCWD, unnamed, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0) return RINGBUF_OK;
    const int error = errno;
    /* No /proc?  Root, and newer kernels for others, do without. */
    if (error == ENOENT && linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH) == 0) return RINGBUF_OK;
    return error == ENOENT && errno == EEXIST ? RINGBUF_E_EXISTS : refused("linkat", error);
}

static uint32_t type_of(const struct stat *st)
{
    switch (st->st_mode & S_IFMT) {
    case S_IFREG: return RINGBUF_FILE;
    case S_IFDIR: return RINGBUF_FOLDER;
    case S_IFLNK: return RINGBUF_LINK;
    case S_IFIFO: return RINGBUF_FIFO;
    case S_IFSOCK: return RINGBUF_SOCKET;
    default: return RINGBUF_DEVICE;
    }
}

static struct rbi_file_facts facts_of(const struct stat *st)
{
    return (struct rbi_file_facts){
        .device = st->st_dev,
        .inode = st->st_ino,
        .bytes = (uint64_t)st->st_size,
        .memory_bytes = (uint64_t)st->st_blocks * 512,
        .links = (uint32_t)st->st_nlink,
        .user = st->st_uid,
        .mode = st->st_mode & 07777,
        .type = type_of(st),
        .regular = S_ISREG(st->st_mode),
    };
}

ringbuf_status rbi_file_facts(rbi_fd fd, struct rbi_file_facts *facts)
{
    struct stat st;
    if (fstat(fd, &st) < 0) return refused("fstat", errno);
    *facts = facts_of(&st);
    return RINGBUF_OK;
}

ringbuf_status rbi_path_facts(const char *path, struct rbi_file_facts *facts)
{
    struct stat st;
    if (lstat(path, &st) < 0) return refused("lstat", errno);
    *facts = facts_of(&st);
    return RINGBUF_OK;
}

ringbuf_status rbi_path_unlink(const char *path) { return outcome("unlink", unlink(path)); }

ringbuf_status rbi_file_read(rbi_fd fd, void *bytes, size_t count)
{
    ssize_t got = pread(fd, bytes, count, 0);
    if (got < 0) return refused("pread", errno);
    return (size_t)got == count ? RINGBUF_OK : RINGBUF_E_CORRUPT;
}

ringbuf_status rbi_file_read_at(rbi_fd fd, size_t *got, void *bytes, size_t count, uint64_t offset)
{
    ssize_t read;
    *got = 0;
    while (*got < count) { /* a signal, or a read of more than 2 GiB, ends one early */
        read = pread(fd, (uint8_t *)bytes + *got, count - *got, (off_t)(offset + *got));
        if (read < 0 && errno == EINTR) continue;
        if (read < 0) return refused("pread", errno);
        if (read == 0) break;
        *got += (size_t)read;
    }
    return RINGBUF_OK;
}

size_t rbi_text_read(rbi_fd fd, char *text, size_t most)
{
    ssize_t got = read(fd, text, most);
    return got > 0 ? (size_t)got : 0;
}

/** Beyond this limit the kernel does not only refuse, but sends SIGXFSZ, which ends a program that does not expect it. */
static bool may_reach(uint64_t bytes)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur;
}

static ringbuf_status too_long(const char *call)
{
    note(call, EFBIG);
    return RINGBUF_E_NO_SPACE;
}

ringbuf_status rbi_file_write(rbi_fd fd, uint64_t offset, const void *bytes, size_t count)
{
    if (!may_reach(offset + count)) return too_long("pwrite");
    ssize_t written;
    do written = pwrite(fd, bytes, count, (off_t)offset);
    while (written < 0 && errno == EINTR);
    if (written < 0) return refused("pwrite", errno);
    return (size_t)written == count ? RINGBUF_OK : RINGBUF_E_NO_SPACE;
}

ringbuf_status rbi_file_set_size(rbi_fd fd, uint64_t bytes)
{
    return may_reach(bytes) ? outcome("ftruncate", ftruncate(fd, (off_t)bytes)) : too_long("ftruncate");
}

/** A file system that cannot reserve pages, and always has more: nothing is promised by reserving there, and nothing is needed. */
static bool on_ramfs(rbi_fd fd)
{
    const int error = errno;
    struct statfs facts;
    bool is = fstatfs(fd, &facts) == 0 && (uint32_t)facts.f_type == RAMFS;
    errno = error;
    return is;
}

ringbuf_status rbi_file_reserve(rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    int result;
    /* The size stays as it is: a file that somebody has truncated is not to look whole again. */
    do result = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
    while (result < 0 && errno == EINTR); /* a signal must not make a put fail that has all it needs */
    if (result < 0 && errno == EOPNOTSUPP && on_ramfs(fd)) return RINGBUF_OK;
    return outcome("fallocate", result);
}

ringbuf_status rbi_file_punch(rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    return outcome("fallocate(FALLOC_FL_PUNCH_HOLE)", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes));
}

/* ---- locks ---- */

static struct flock locked_bytes(uint32_t which, off_t bytes, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)(RBI_LOCK_BASE + which), .l_len = bytes};
}

static int set_lock(rbi_fd fd, int command, uint32_t which, off_t bytes, short type)
{
    struct flock lock = locked_bytes(which, bytes, type);
    return fcntl(fd, command, &lock);
}

static ringbuf_status try_lock(rbi_fd fd, int command, const char *call, uint32_t which, enum rbi_lock_kind kind)
{
    if (set_lock(fd, command, which, 1, kind == RBI_LOCK_SHARED ? F_RDLCK : F_WRLCK) == 0) return RINGBUF_OK;
    return errno == EAGAIN || errno == EACCES ? RINGBUF_E_BUSY : refused(call, errno);
}

ringbuf_status rbi_file_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind)
{
    return try_lock(fd, F_OFD_SETLK, "fcntl(F_OFD_SETLK)", which, kind);
}

void rbi_file_lock_drop(rbi_fd fd, uint32_t which) { set_lock(fd, F_OFD_SETLK, which, 1, F_UNLCK); }

void rbi_file_lock_drop_all(rbi_fd fd) { set_lock(fd, F_OFD_SETLK, 0, 0, F_UNLCK); }

ringbuf_status rbi_process_lock_try(rbi_fd fd, uint32_t which, enum rbi_lock_kind kind)
{
    return try_lock(fd, F_SETLK, "fcntl(F_SETLK)", which, kind);
}

void rbi_process_lock_drop(rbi_fd fd, uint32_t which) { set_lock(fd, F_SETLK, which, 1, F_UNLCK); }

uint32_t rbi_lock_look(rbi_fd fd, uint32_t which)
{
    /* Walks the file's locks as setting one does, but allocates nothing for one that it will not set.  l_pid must be 0.  For
     * writing: any lock of others would be in the way. */
    struct flock lock = locked_bytes(which, 1, F_WRLCK);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK) return RINGBUF_NOBODY;
    return lock.l_type == F_RDLCK ? RINGBUF_SOMEBODY : RINGBUF_ALONE;
}

/* ---- flags ---- */

ringbuf_status rbi_flag_make(const char *path) { return outcome("mkfifo", mkfifo(path, 0600)); }

void rbi_flag_share(rbi_fd flag, rbi_fd file)
{
    struct stat is, wanted;
    if (fstat(flag, &is) < 0 || fstat(file, &wanted) < 0 || (is.st_uid != geteuid() && geteuid() != 0)) return;
    mode_t mode = wanted.st_mode & 0777;
    /* To the same group, or to none. */
    if (is.st_gid != wanted.st_gid && fchown(flag, (uid_t)-1, wanted.st_gid) < 0) mode &= ~(mode_t)070;
    /* Not through mkfifo's mode, which the umask would cut. */
    if ((is.st_mode & 0777) != mode && fchmod(flag, mode) < 0) return;
    /* Root gives it to the file's user, who may not open root's; others cannot, and need not. */
    int given = is.st_uid == wanted.st_uid ? 0 : fchown(flag, wanted.st_uid, (gid_t)-1);
    (void)given;
}

void rbi_flag_raise(rbi_fd fd)
{
    ssize_t written;
    do written = write(fd, "", 1); /* EAGAIN: it is full, so it is up */
    while (written < 0 && errno == EINTR);
}

void rbi_flag_lower(rbi_fd fd)
{
    char bytes[512];
    ssize_t got;
    do got = read(fd, bytes, sizeof bytes); /* fewer than asked for: then there were no more */
    while (got == (ssize_t)sizeof bytes || (got < 0 && errno == EINTR));
}

ringbuf_status rbi_flag_lock_try(rbi_fd fd, enum rbi_lock_kind kind)
{
    if (flock(fd, (kind == RBI_LOCK_SHARED ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0) return RINGBUF_OK;
    return errno == EWOULDBLOCK ? RINGBUF_E_BUSY : refused("flock", errno);
}

/* ---- memory ---- */

/** Without access at first: after mlockall(MCL_FUTURE) the kernel would else touch every page of the file here, and so give memory to all of
 *  it, of which most may never be used. */
static bool map_at(uint8_t *address, rbi_fd fd, uint64_t offset, uint64_t bytes)
{
    return mmap(address, (size_t)bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) != MAP_FAILED;
}

/** EAGAIN: more than this process may lock into memory (mlockall, RLIMIT_MEMLOCK). */
static ringbuf_status refused_mapping(const char *call, int error)
{
    note(call, error);
    return error == EAGAIN ? RINGBUF_E_NO_MEMORY : status_of(error);
}

ringbuf_status rbi_map(void **base, rbi_fd fd, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors)
{
    if (prefix_bytes > SIZE_MAX / 4 || mirror_bytes > SIZE_MAX / 8 / mirrors) return RINGBUF_E_NO_MEMORY;
    size_t total = (size_t)(prefix_bytes + 2 * mirror_bytes * mirrors);
    /* Hold the whole range first, so that nobody else's mapping gets between the parts. */
    uint8_t *range = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return refused_mapping("mmap", errno);
    bool mapped = map_at(range, fd, 0, prefix_bytes);
    for (uint64_t i = 0; i < 2 * (uint64_t)mirrors; i++)
        mapped = mapped && map_at(range + prefix_bytes + i * mirror_bytes, fd, prefix_bytes + i / 2 * mirror_bytes, mirror_bytes);
    const char *call = mapped ? "mprotect" : "mmap";
    if (!mapped || mprotect(range, total, PROT_READ | PROT_WRITE) < 0) {
        ringbuf_status status = refused_mapping(call, errno);
        munmap(range, total);
        return status;
    }
    *base = range;
    return RINGBUF_OK;
}

void rbi_unmap(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors)
{
    munmap(base, (size_t)(prefix_bytes + 2 * mirror_bytes * mirrors));
}

void rbi_map_leave_out_of_dumps(void *base, uint64_t bytes) { madvise(base, (size_t)bytes, MADV_DONTDUMP); }

void rbi_map_want_huge_pages(void *base, uint64_t bytes) { madvise(base, (size_t)bytes, MADV_HUGEPAGE); }

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void rbi_map_touch(void *base, uint64_t bytes)
{
    if (madvise(base, (size_t)bytes, MADV_POPULATE_WRITE) == 0 || errno != EINVAL) return;
    /* Before Linux 5.14.  Reading maps a page of a tmpfs for writing as well. */
    const volatile uint8_t *byte = base;
    for (uint64_t offset = 0, page = rbi_page_bytes(); offset < bytes; offset += page) (void)byte[offset];
}

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

ringbuf_status rbi_map_lock(void *base, uint64_t bytes)
{
    if (syscall(SYS_mlock2, base, (size_t)bytes, MLOCK_ONFAULT) == 0) return RINGBUF_OK;
    const int error = errno;
    const ringbuf_status status = refused("mlock2", error);
    return error == ENOMEM || error == EAGAIN || error == EPERM ? RINGBUF_E_NO_MEMORY : status;
}

uint64_t rbi_page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

void *rbi_memory(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void rbi_memory_free(void *memory, uint64_t bytes) { munmap(memory, bytes); }

bool rbi_map_zeros(uint64_t address, uint64_t bytes)
{
    return bytes == 0 || mmap((void *)(uintptr_t)address, (size_t)bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static bool (*mend_page)(uint64_t address);
static struct sigaction action_before; /* ours */

/** A SIGBUS that is not for us: as if we were not there. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    const bool is_fault = info->si_code > 0; /* else somebody has sent it */
    if (action_before.sa_handler == SIG_IGN && !is_fault) return;
    if (action_before.sa_handler == SIG_DFL || action_before.sa_handler == SIG_IGN) {
        /* The instruction faults again when we return, and the kernel ends the process there: the core shows what it would have
         * shown.  (So it would for a fault that is ignored: those it does not ignore.) */
        signal(number, SIG_DFL);
        if (!is_fault) raise(number);
        return;
    }
    if (action_before.sa_flags & (int)SA_RESETHAND) signal(number, SIG_DFL);
    if (action_before.sa_flags & SA_SIGINFO) action_before.sa_sigaction(number, info, context);
    else action_before.sa_handler(number);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    const int error = errno;
    const bool mended = info->si_code == BUS_ADRERR && mend_page((uint64_t)(uintptr_t)info->si_addr);
    errno = error;
    if (!mended) pass_on(number, info, context);
}

ringbuf_status rbi_on_missing_page(bool (*mend)(uint64_t address))
{
    if (mend_page) return RINGBUF_OK;
    /* Asked for before it is replaced: our handler may run as soon as it is there. */
    if (sigaction(SIGBUS, NULL, &action_before) < 0) return refused("sigaction", errno);
    struct sigaction ours = {
        .sa_sigaction = on_bus_error,
        .sa_mask = action_before.sa_mask,
        /* On the thread's own stack for signals, if it has one: what has made it may have no room elsewhere. */
        .sa_flags = SA_SIGINFO | SA_ONSTACK | (action_before.sa_flags & (SA_RESTART | SA_NODEFER)),
    };
    mend_page = mend;
    if (sigaction(SIGBUS, &ours, NULL) == 0) return RINGBUF_OK;
    mend_page = NULL;
    return refused("sigaction", errno);
}

/* ---- sleeping ---- */

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

ringbuf_status rbi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns)
{
    struct timespec until = timespec_of(deadline_ns);
    /* _BITSET takes an absolute CLOCK_MONOTONIC time.  Never _PRIVATE: the other side is another process. */
    long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, deadline_ns == RINGBUF_FOREVER ? NULL : &until, NULL,
                          FUTEX_BITSET_MATCH_ANY);
    if (result == 0 || errno == EAGAIN) return RINGBUF_OK;
    if (errno == ETIMEDOUT) return RINGBUF_E_TIMEOUT;
    return refused("futex", errno);
}

int rbi_futex_wake(_Atomic uint32_t *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken > 0 ? (int)woken : 0;
}

void rbi_yield(void) { sched_yield(); }

void rbi_nap(int64_t ns)
{
    struct timespec length = timespec_of(ns);
    nanosleep(&length, NULL);
}

/* ---- the rest ---- */

_Static_assert(sizeof(sigset_t) <= sizeof(struct rbi_signals), "a mask has room");

void rbi_signals_hold(struct rbi_signals *before)
{
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t all, mask;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&all, faults[i]);
    sigemptyset(&mask);
    pthread_sigmask(SIG_BLOCK, &all, &mask);
    memcpy(before->mask, &mask, sizeof mask);
}

void rbi_signals_let_go(const struct rbi_signals *before)
{
    sigset_t mask;
    memcpy(&mask, before->mask, sizeof mask);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

int64_t rbi_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t rbi_thread_ns(void)
{
    struct timespec used;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used) < 0) return 0;
    return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

uint64_t rbi_realtime_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint32_t rbi_pid(void) { return (uint32_t)getpid(); }

uint32_t rbi_user(void) { return (uint32_t)geteuid(); }

uint32_t rbi_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (uint32_t)CPU_COUNT(&set);
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (uint32_t)count : 1;
}

ringbuf_status rbi_random(void *bytes, size_t count)
{
    /* Up to 256 bytes come whole and are not interrupted. */
    if (getrandom(bytes, count, 0) == (ssize_t)count) return RINGBUF_OK;
    note("getrandom", errno);
    return RINGBUF_E_SYSTEM;
}

void rbi_thread_name(char *name, size_t capacity)
{
    char whole[16] = "";
    if (prctl(PR_GET_NAME, whole) < 0) whole[0] = '\0';
    snprintf(name, capacity, "%s", whole);
}

bool rbi_may_lose_rights(void)
{
    uid_t user, effective, saved;
    gid_t group, effective_group, saved_group;
    if (getresuid(&user, &effective, &saved) < 0 || getresgid(&group, &effective_group, &saved_group) < 0) return false;
    return effective == 0 || user != effective || saved != effective || group != effective_group || saved_group != effective_group;
}

uint64_t rbi_descriptors_most(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) < 0 ? 0 : limit.rlim_cur;
}

char *rbi_absolute(const char *path)
{
    if (*path == '/') return strdup(path);
    char *here = getcwd(NULL, 0), *absolute = NULL;
    if (!here) {
        refused("getcwd", errno);
        return NULL;
    }
    if (asprintf(&absolute, "%s/%s", strcmp(here, "/") == 0 ? "" : here, path) < 0) absolute = NULL;
    free(here);
    return absolute;
}

ringbuf_status rbi_directory_bytes(const char *directory, uint64_t *total, uint64_t *available)
{
    struct statvfs facts;
    if (statvfs(directory, &facts) < 0) return refused("statvfs", errno);
    *total = (uint64_t)facts.f_blocks * facts.f_frsize;
    *available = (uint64_t)facts.f_bavail * facts.f_frsize;
    return RINGBUF_OK;
}

/** What the kernel writes for each entry (getdents64(2)); the C library's readdir would open and allocate by itself. */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t bytes;
    uint8_t type;
    char name[];
};

ringbuf_status rbi_directory_read(rbi_fd fd, bool *more, void (*visit)(const char *file_name, void *context), void *context)
{
    _Alignas(struct entry) char buffer[2048];
    long got = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
    *more = got > 0;
    if (got < 0) return refused("getdents64", errno);
    for (long at = 0; at < got; at += ((const struct entry *)(const void *)(buffer + at))->bytes)
        visit(((const struct entry *)(const void *)(buffer + at))->name, context);
    return RINGBUF_OK;
}
