/* SPDX-License-Identifier: MIT
 *
 * kill_at.c: a library to preload: the program dies (SIGKILL) at its n-th call that changes a file.
 *
 *     KILL_AT=n            the n-th call of pwritev, fdatasync, fallocate, ftruncate or copy_file_range is never made
 *     KILL_AT=n KILL_PART=1    ... but a write moves the first half of its sectors before
 *
 * Purpose      Every point of an operation at which a process can die, one after another (RG9): what call n leaves is what call
 *              n + 1 finds when it is never made.
 * Owns         The number of calls.
 * Invariants   Without KILL_AT nothing changes.
 * Order        Calls are numbered as they are made, over all threads.
 * Concurrency  Any threads: the number is atomic.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        test_kill_snapshots.py: a program that needs n calls is killed n times and then not.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SECTOR = 512, VECS = 64 };

static atomic_ulong calls;
static unsigned long kill_at;
static bool part;

__attribute__((constructor)) static void read_words(void)
{
    const char *n = getenv("KILL_AT");
    kill_at = n ? strtoul(n, NULL, 10) : 0;
    part = getenv("KILL_PART") != NULL;
}

static bool is_last(void) { return atomic_fetch_add(&calls, 1) + 1 == kill_at; }

static void die(void)
{
    raise(SIGKILL);
    for (;;)
        pause();
}

static void *real(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f)
        abort();
    return f;
}

typedef ssize_t pwritev_fn(int fd, const struct iovec *iov, int n, off_t off);

/* The first half of the sectors of a write, at least one. */
static void write_part(int fd, const struct iovec *iov, int n, off_t off)
{
    struct iovec half[VECS];
    size_t bytes = 0, left;
    int used = 0;
    for (int i = 0; i < n; i++)
        bytes += iov[i].iov_len;
    left = (bytes / 2 + SECTOR - 1) / SECTOR * SECTOR;
    for (; used < n && used < VECS && left; used++) {
        half[used] = iov[used];
        if (half[used].iov_len > left)
            half[used].iov_len = left;
        left -= half[used].iov_len;
    }
    (void)((pwritev_fn *)real("pwritev"))(fd, half, used, off);       /* it dies anyway */
}

static void write_or_die(int fd, const struct iovec *iov, int n, off_t off)
{
    if (!is_last())
        return;
    if (part)
        write_part(fd, iov, n, off);
    die();
}

#define PWRITEV(name)                                                          \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off);           \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off)            \
    {                                                                          \
        write_or_die(fd, iov, n, off);                                         \
        return ((pwritev_fn *)real(#name))(fd, iov, n, off);                   \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define PWRITEV2(name)                                                         \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off, int flags); \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off, int flags) \
    {                                                                          \
        write_or_die(fd, iov, n, off);                                         \
        return ((ssize_t (*)(int, const struct iovec *, int, off_t, int))real(#name))(fd, iov, n, off, flags); \
    }
PWRITEV2(pwritev2)
PWRITEV2(pwritev64v2)

#define OTHER(type, name, params, args)                                        \
    type name params;                                                          \
    type name params                                                           \
    {                                                                          \
        if (is_last())                                                         \
            die();                                                             \
        return ((type (*) params)real(#name))args;                             \
    }
OTHER(int, fdatasync, (int fd), (fd))
OTHER(int, fallocate, (int fd, int mode, off_t off, off_t len), (fd, mode, off, len))
OTHER(int, fallocate64, (int fd, int mode, off_t off, off_t len), (fd, mode, off, len))
OTHER(int, ftruncate, (int fd, off_t len), (fd, len))
OTHER(int, ftruncate64, (int fd, off_t len), (fd, len))
OTHER(ssize_t, copy_file_range, (int in, off_t *in_off, int out, off_t *out_off, size_t len, unsigned flags), (in, in_off, out, out_off, len, flags))
