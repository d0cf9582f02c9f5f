/* SPDX-License-Identifier: MIT
 *
 * folder_stalls.c: a library to preload: to make the names in a folder durable takes as long as a file is there.
 *
 *     FOLDER_STALLS=path     fsync of a folder waits while path is there; each that does adds a byte to path.in before
 *
 * Purpose      The moment in which a new file is made, and nobody has it open yet.
 * Owns         Nothing.
 * Invariants   Without FOLDER_STALLS nothing changes.
 * Order        None.
 * Concurrency  Any threads.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        making_test.py
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int sync_fn(int fd);

static void tell(const char *path)
{
    char name[4096];
    snprintf(name, sizeof name, "%s.in", path);
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1)
        abort();
    close(fd);
}

static void stand_still(const char *path)
{
    if (!path || access(path, F_OK))
        return;
    tell(path);
    while (!access(path, F_OK))
        usleep(10000);
}

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
