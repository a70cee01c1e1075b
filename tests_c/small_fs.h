/* small_fs.h — for suites that need a file system which runs full: one is mounted in the suite's directory. */
#ifndef TESTS_SMALL_FS_H
#define TESTS_SMALL_FS_H

#include "support.h"

#include <sys/mount.h>

#define NEEDS_ROOT() \
    do { if (geteuid() != 0) TEST_IGNORE_MESSAGE("needs root"); } while (0)

static char small_file_system[128]; /* where one is mounted, else empty */

/** Mount one with these options of tmpfs; where that is not allowed, the test is ignored. */
static inline void mount_small_file_system(const char *options)
{
    NEEDS_ROOT();
    snprintf(small_file_system, sizeof small_file_system, "%s/small", suite_directory);
    TEST_ASSERT_EQUAL_INT(0, mkdir(small_file_system, 0700));
    if (mount("tmpfs", small_file_system, "tmpfs", 0, options) != 0) {
        rmdir(small_file_system);
        *small_file_system = '\0';
        TEST_IGNORE_MESSAGE("cannot mount a file system here");
    }
}

/** To be called by tearDown. */
static inline void unmount_small_file_system(void)
{
    if (!*small_file_system) return;
    umount2(small_file_system, MNT_DETACH);
    rmdir(small_file_system);
    *small_file_system = '\0';
}

#endif
