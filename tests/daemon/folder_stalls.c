/* SPDX-License-Identifier: MIT
 *
 * folder_stalls.c: a library to preload: what is asked of a folder takes as long as a file is there.
 *
 *     FOLDER_STALLS=path     fsync of a folder waits while path is there; each that does adds a byte to path.in before
 *     REALPATH_STALLS=path   so does realpath
 *
 * Purpose      The moment in which a new file is made, and nobody has it open yet; a file server that hangs.
 * Owns         Nothing.
 * Invariants   Without these nothing changes.
 * Order        None.
 * Concurrency  Any threads.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        making_test.py, recorded_test.py
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "stalls.h"

typedef int sync_fn(int fd);
typedef char *path_fn(const char *path, char *buf);

int fsync(int fd)
{
    struct stat st;
    sync_fn *f = (sync_fn *)dlsym(RTLD_NEXT, "fsync");
    if (!f)
        abort();
    if (!fstat(fd, &st) && S_ISDIR(st.st_mode))
        stand_still(getenv("FOLDER_STALLS"));
    return f(fd);
}

char *realpath(const char *restrict path, char *restrict buf)
{
    path_fn *f = (path_fn *)dlsym(RTLD_NEXT, "realpath");
    if (!f)
        abort();
    stand_still(getenv("REALPATH_STALLS"));
    return f(path, buf);
}
