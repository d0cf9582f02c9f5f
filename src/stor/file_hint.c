/* SPDX-License-Identifier: MIT
 *
 * file_hint.c: wishes to the file system, for a file that is still empty (FEATURES 3.018).
 *
 * Purpose      No copy-on-write, and the size of extents. A file system that does not know them is none the worse.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any loop; the pool of blocking calls does the work
 * Failure      none: nothing depends on it
 * Tests        tests/cli/create_test.py
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "rt/loop.h"
#include "stor/stor.h"

struct hinting { const char *path; const struct stor_file_hints *h; };

static int64_t hint_blocking(void *arg)
{
    const struct hinting *w = arg;
    struct fsxattr x;
    int flags, fd = open(w->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    if (w->h->nocow && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        (void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    if (w->h->extent_bytes && ioctl(fd, FS_IOC_FSGETXATTR, &x) == 0) {
        x.fsx_xflags |= FS_XFLAG_EXTSIZE;
        x.fsx_extsize = (uint32_t)w->h->extent_bytes;
        (void)ioctl(fd, FS_IOC_FSSETXATTR, &x);
    }
    close(fd);
    return 0;
}

void stor_file_hint(struct co *co, const char *path, const struct stor_file_hints *h)
{
    struct hinting w = { path, h };
    if (rt_blocking(co, hint_blocking, &w) < 0)
        (void)hint_blocking(&w);                 /* no memory for the pool */
}
