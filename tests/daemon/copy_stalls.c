/* SPDX-License-Identifier: MIT
 *
 * copy_stalls.c: a library to preload: copies by the kernel take as long as a file is there.
 *
 *     COPY_STALLS=path     copy_file_range waits while path is there; each that does adds a byte to path.in before
 *
 * Purpose      A copy that stands still in the kernel, as over a server that does not answer.
 * Owns         Nothing.
 * Invariants   Without COPY_STALLS nothing changes.
 * Order        None.
 * Concurrency  Any threads.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        copy_stalled_test.py
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>

typedef ssize_t copy_fn(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags);

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

ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags)
{
    copy_fn *f = (copy_fn *)dlsym(RTLD_NEXT, "copy_file_range");
    if (!f)
        abort();
    stand_still(getenv("COPY_STALLS"));
    return f(in, in_off, out, out_off, len, flags);
}
