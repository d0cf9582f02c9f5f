/* SPDX-License-Identifier: MIT
 *
 * file_ops.c: transfers and space management of files and block devices.
 *
 * Purpose      Each operation of struct stor_ops as the system calls that do it.
 * Owns         Nothing; the file belongs to file.c.
 * Invariants   I1  Zeroing inside a file never changes its length; zeroing past the end extends it to the end of the
 *                  request and never shortens it, whatever others write meanwhile (so: no ftruncate here).
 *              I2  What a file system does not know is asked once per file.
 * Order        flush is fdatasync: data and the length.
 * Concurrency  Any loop. Transfers, fdatasync and fallocate are operations of the loop's backend; ftruncate, ioctl and
 *              copy_file_range have none and run on worker threads, copies on some of their own. fstat of a local file does not wait for a device
 *              and is called in place.
 * Failure      -errno. EINTR is repeated. -ENOTSUP: the caller of the gate writes zeros, or copies, by itself.
 * Tests        file_test.c, file_space_test.c
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/checked.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "stor/file_priv.h"

enum { FILE_VECS_STACK = 32, FILE_VECS_MAX = 1024 };
/* One call of copy_file_range: long enough for reflinks to be cheap, short enough for a worker. */
#define FILE_COPY_BYTES_MAX (64ull << 20)

/* ---- transfers ---- */

/* The window as an array for the kernel: vec itself, or a copy that may be shorter than the window. */
struct file_vecs {
    const struct iovec *vec;
    unsigned cnt;
    struct iovec *heap;
    struct iovec stack[FILE_VECS_STACK];
};

static void vecs_of(struct iov v, struct file_vecs *ret)
{
    size_t cnt = iov_count(v);
    struct iovec *out = ret->stack;
    size_t max = FILE_VECS_STACK;
    ret->heap = NULL;
    if (cnt > FILE_VECS_STACK) {
        max = min_u64(cnt, FILE_VECS_MAX);
        ret->heap = malloc(max * sizeof *out);
        if (ret->heap)
            out = ret->heap;
        else
            max = FILE_VECS_STACK;        /* a shorter transfer needs no memory */
    }
    ret->cnt = (unsigned)iov_export(v, out, max, NULL);
    ret->vec = out;
}

static int64_t file_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct file_vecs x;
    vecs_of(v, &x);
    int64_t n = rt_preadv(co, file_of(s)->fd, x.vec, x.cnt, off);
    free(x.heap);
    return n;
}

/* Where the kernel has no durable write for this file: write, then flush. */
static int64_t write_then_flush(struct co *co, struct file_stor *f, const struct file_vecs *x, uint64_t off)
{
    int64_t n = rt_pwritev(co, f->fd, x->vec, x->cnt, off, 0);
    if (n < 0)
        return n;
    int r = rt_fdatasync(co, f->fd);
    return r < 0 ? r : n;
}

#define UNCACHED_BYTES_MIN (128u << 10)

/* So many bytes are gathered in the page cache before the disk is told to begin. */
#define WRITE_OUT_BYTES (8u << 20)

static void file_stream(struct stor *s, bool on)
{
    atomic_store_explicit(&file_of(s)->streams, on && !s->traits.direct && !s->no_flush, memory_order_relaxed);
}

#define CACHED_WINDOW (64 << 20)          /* so much of it is looked at in one go */

static int64_t forget_pages(void *arg)
{
    const struct file_stor *f = arg;
    return -posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void file_drop_cache(struct co *co, struct stor *s)
{
    int64_t r = rt_blocking(co, forget_pages, file_of(s));
    (void)r;
}

/* Of one window of the file. */
static int64_t cached_at(int fd, off_t at, size_t len)
{
    static const size_t page = 4096;
    int64_t bytes = 0;
    unsigned char *in = malloc(len / page + 1);
    void *map = in ? mmap(NULL, len, PROT_READ, MAP_SHARED, fd, at) : MAP_FAILED;
    if (map == MAP_FAILED) {
        free(in);
        return in ? -errno : -ENOMEM;
    }
    if (mincore(map, len, in))
        bytes = -errno;
    for (size_t i = 0; bytes >= 0 && i < div_up(len, page); i++)
        bytes += in[i] & 1 ? (int64_t)page : 0;
    (void)munmap(map, len);
    free(in);
    return bytes;
}

#ifndef SYS_cachestat
#define SYS_cachestat 451                 /* Linux 6.5; the same on all architectures that we know */
#endif

/* One call tells it of the whole file. -ENOTSUP: this kernel cannot. */
static int64_t count_by_kernel(struct file_stor *f)
{
    struct { uint64_t off, len; } all = { 0, 0 };                /* up to the end */
    struct { uint64_t cached, dirty, writeback, evicted, recently; } pages = { 0 };
    if (file_lacks(f, FILE_NO_CACHESTAT))
        return -ENOTSUP;
    if (!syscall(SYS_cachestat, f->fd, &all, &pages, 0))
        return (int64_t)(pages.cached * (uint64_t)sysconf(_SC_PAGESIZE));
    file_set_lacks(f, FILE_NO_CACHESTAT);
    return -ENOTSUP;
}

static int64_t count_cached(void *arg)
{
    struct file_stor *f = arg;
    struct stat st;
    int64_t n = fstat(f->fd, &st) ? -errno : 0;
    if (n || !S_ISREG(st.st_mode))
        return n;
    n = count_by_kernel(f);
    if (n != -ENOTSUP)
        return n;
    n = 0;
    for (off_t at = 0; !n && at < st.st_size; at += CACHED_WINDOW)
        n = cached_at(f->fd, at, (size_t)min_u64(CACHED_WINDOW, (uint64_t)(st.st_size - at)));
    return n;
}

static int64_t file_cached(struct co *co, struct stor *s)
{
    return rt_blocking(co, count_cached, file_of(s));
}

static int64_t start_write_out(void *arg)
{
    const struct file_stor *f = arg;
    return sync_file_range(f->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

/* Starts, does not wait, and looks at no error: the flush does that. */
static void write_out(struct co *co, struct file_stor *f, uint64_t n)
{
    uint64_t before = atomic_fetch_add(&f->streamed, n);
    if ((before + n) / WRITE_OUT_BYTES == before / WRITE_OUT_BYTES)
        return;
    int64_t r = rt_blocking(co, start_write_out, f);
    (void)r;
}

/* A piece of a copy, which nobody reads again soon: its pages go to the disk at once and leave the page cache, so that the copy needs
 * little memory (taken anew, it costs more than the transfer on some hosts) and the flush at the end finds little to do. Small ones stay: they are
 * a guest's, whose first write into a cluster is as long as that, or metadata. -EOPNOTSUPP: not known here, or nothing of the kind. */
static int64_t write_uncached(struct co *co, struct file_stor *f, struct iov v, const struct file_vecs *x, uint64_t off)
{
    if (!atomic_load_explicit(&f->streams, memory_order_relaxed) || v.len_bytes < UNCACHED_BYTES_MIN || file_lacks(f, FILE_NO_DONTCACHE))
        return -EOPNOTSUPP;
    int64_t n = rt_pwritev(co, f->fd, x->vec, x->cnt, off, RT_RWF_DONTCACHE);
    if (n != -EOPNOTSUPP && n != -EINVAL)
        return n;
    file_set_lacks(f, FILE_NO_DONTCACHE);
    return -EOPNOTSUPP;
}

/* As it comes, into the page cache or past it. */
static int64_t write_plain(struct co *co, struct file_stor *f, const struct file_vecs *x, uint64_t off)
{
    int64_t n = f->one_by_one ? rt_pwritev_lane(co, &f->lane, f->fd, x->vec, x->cnt, off) : rt_pwritev(co, f->fd, x->vec, x->cnt, off, 0);
    if (n > 0 && atomic_load_explicit(&f->streams, memory_order_relaxed))
        write_out(co, f, (uint64_t)n);
    return n;
}

static int64_t write_durable(struct co *co, struct file_stor *f, const struct file_vecs *x, uint64_t off)
{
    int64_t n = file_lacks(f, FILE_NO_DSYNC) ? -EOPNOTSUPP : rt_pwritev(co, f->fd, x->vec, x->cnt, off, RT_RWF_DSYNC);
    if (n != -EOPNOTSUPP)
        return n;
    file_set_lacks(f, FILE_NO_DSYNC);
    return write_then_flush(co, f, x, off);
}

static int64_t file_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct file_stor *f = file_of(s);
    struct file_vecs x;
    vecs_of(v, &x);
    int64_t n = flags & STOR_FUA ? write_durable(co, f, &x, off) : write_uncached(co, f, v, &x, off);
    if (n == -EOPNOTSUPP && !(flags & STOR_FUA))
        n = write_plain(co, f, &x, off);
    free(x.heap);
    return n;
}

static int file_flush(struct co *co, struct stor *s)
{
    return rt_fdatasync(co, file_of(s)->fd);
}

/* ---- length ---- */

struct length_args { struct file_stor *f; uint64_t len, allocated; };

static int64_t length_blocking(void *arg)
{
    struct length_args *a = arg;
    struct stat st;
    if (a->f->device)
        return ioctl(a->f->fd, BLKGETSIZE64, &a->len) < 0 ? -errno : 0;
    if (fstat(a->f->fd, &st) < 0)
        return -errno;
    a->len = (uint64_t)st.st_size;
    a->allocated = (uint64_t)st.st_blocks * 512;
    return 0;
}

static int get_length(struct co *co, struct length_args *a)
{
    return a->f->may_stall ? (int)rt_blocking(co, length_blocking, a) : (int)length_blocking(a);
}

static int file_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    struct length_args a = { file_of(s), 0, 0 };
    int r = get_length(co, &a);
    if (r == 0)
        *ret_len = a.len;
    return r;
}

static int file_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    struct length_args a = { file_of(s), 0, 0 };
    int r = get_length(co, &a);
    if (r == 0)
        *ret_bytes = a.allocated;
    return r;
}

struct truncate_args { int fd; uint64_t len; };

static int64_t truncate_blocking(void *arg)
{
    const struct truncate_args *a = arg;
    int r;
    do
        r = ftruncate(a->fd, (off_t)a->len);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static int file_truncate(struct co *co, struct stor *s, uint64_t len)
{
    struct file_stor *f = file_of(s);
    if (f->device) {
        uint64_t now = 0;
        int r = file_length(co, s, &now);
        return r < 0 ? r : len == now ? 0 : len > now ? -EINVAL : -ENOTSUP;
    }
    struct truncate_args a = { f->fd, len };
    int r = (int)rt_blocking(co, truncate_blocking, &a);
    file_extent_forget(f);
    return r;
}

/* ---- zero, discard, preallocate ---- */

/* fallocate, remembering what is not known here. -ENOTSUP: not known, or not for this range. */
static int try_fallocate(struct co *co, struct file_stor *f, unsigned lack, int mode, uint64_t off, uint64_t len)
{
    if (file_lacks(f, lack))
        return -ENOTSUP;
    int r = rt_fallocate(co, f->fd, mode, off, len);
    if (file_is_unsupported(r))
        file_set_lacks(f, lack);
    return file_is_unsupported(r) || r == -EINVAL ? -ENOTSUP : r;
}

static int punch(struct co *co, struct file_stor *f, uint64_t off, uint64_t len)
{
    return try_fallocate(co, f, FILE_NO_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
}

/* Makes the file at least `end` long by allocating its last byte: cannot shorten what others extend. */
static int extend_to(struct co *co, struct file_stor *f, uint64_t end)
{
    uint64_t now = 0;
    int r = file_length(co, &f->s, &now);
    if (r < 0 || end <= now)
        return r;
    return try_fallocate(co, f, FILE_NO_ALLOCATE, 0, end - 1, 1);
}

static int zero_regular(struct co *co, struct file_stor *f, uint64_t off, uint64_t len, bool unmap)
{
    uint64_t now = 0;
    int r;
    if (unmap) {
        r = punch(co, f, off, len);
        if (r == 0)
            r = extend_to(co, f, off + len);
        if (r != -ENOTSUP)
            return r;
    }
    r = try_fallocate(co, f, FILE_NO_ZERO_RANGE, FALLOC_FL_ZERO_RANGE, off, len);
    if (r != -ENOTSUP)
        return r;
    r = file_length(co, &f->s, &now);
    if (r < 0)
        return r;
    /* What lies inside must be emptied before it is allocated; what lies behind the end is empty. */
    if (off < now && !unmap)
        r = punch(co, f, off, min_u64(off + len, now) - off);
    else if (off < now)
        r = -ENOTSUP;
    return r < 0 ? r : try_fallocate(co, f, FILE_NO_ALLOCATE, 0, off, len);
}

struct range_ioctl { int fd; unsigned long request; uint64_t range[2]; };

static int64_t range_ioctl_blocking(void *arg)
{
    struct range_ioctl *a = arg;
    int r;
    do
        r = ioctl(a->fd, a->request, a->range);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static int try_range_ioctl(struct co *co, struct file_stor *f, unsigned lack, unsigned long request, uint64_t off, uint64_t len)
{
    if (file_lacks(f, lack))
        return -ENOTSUP;
    struct range_ioctl a = { f->fd, request, { off, len } };
    int r = (int)rt_blocking(co, range_ioctl_blocking, &a);
    if (file_is_unsupported(r))
        file_set_lacks(f, lack);
    return file_is_unsupported(r) || r == -EINVAL ? -ENOTSUP : r;
}

/* Punching a device zeroes it without moving data, or fails; BLKZEROOUT may end in writing zeros. */
static int zero_device(struct co *co, struct file_stor *f, uint64_t off, uint64_t len, unsigned flags)
{
    if (flags & STOR_UNMAP) {
        int r = punch(co, f, off, len);
        if (r != -ENOTSUP)
            return r;
    }
    if ((flags & STOR_NO_FALLBACK) && !f->offload_zero)
        return -ENOTSUP;
    return try_range_ioctl(co, f, FILE_NO_BLK_ZEROOUT, BLKZEROOUT, off, len);
}

static int file_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    struct file_stor *f = file_of(s);
    int r = f->device ? zero_device(co, f, off, len, flags) : zero_regular(co, f, off, len, flags & STOR_UNMAP);
    file_extent_forget(f);
    return r;
}

/* FEATURES 9.099 */
static int counted(struct stor *s, uint64_t len, int r)
{
    atomic_fetch_add_explicit(r ? &s->failed_discards : &s->discards, 1, memory_order_relaxed);
    if (!r)
        atomic_fetch_add_explicit(&s->discarded_bytes, len, memory_order_relaxed);
    return r;
}

static int file_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct file_stor *f = file_of(s);
    uint64_t now = 0;
    int r = file_length(co, s, &now);
    if (r < 0 || off >= now)
        return r;
    len = min_u64(len, now - off);
    if (f->device)
        return counted(s, len, try_range_ioctl(co, f, FILE_NO_BLK_DISCARD, BLKDISCARD, off, len));
    r = punch(co, f, off, len);
    file_extent_forget(f);
    return counted(s, len, r);
}

static int file_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct file_stor *f = file_of(s);
    if (f->device)
        return -ENOTSUP;
    int r = try_fallocate(co, f, FILE_NO_ALLOCATE, 0, off, len);
    file_extent_forget(f);
    return r;
}

int stor_file_ahead(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    if (s->ops != &file_ops || file_of(s)->device || s->read_only)
        return -ENOTSUP;
    return try_fallocate(co, file_of(s), FILE_NO_ALLOCATE, FALLOC_FL_KEEP_SIZE, off, len);
}

/* ---- copy ---- */

struct copy_args { int in, out; uint64_t in_off, out_off, len; };

static int64_t copy_blocking(void *arg)
{
    const struct copy_args *a = arg;
    off_t in_off = (off_t)a->in_off, out_off = (off_t)a->out_off;
    ssize_t n;
    do
        n = copy_file_range(a->in, &in_off, a->out, &out_off, a->len, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int64_t file_copy_from(struct co *co, struct stor *s, uint64_t off, struct stor *src, uint64_t src_off, uint64_t len)
{
    struct file_stor *f = file_of(s);
    if (src->ops != &file_ops || f->device || file_of(src)->device || file_lacks(f, FILE_NO_COPY))
        return -ENOTSUP;
    struct copy_args a = { file_of(src)->fd, f->fd, src_off, off, min_u64(len, FILE_COPY_BYTES_MAX) };
    int64_t n = rt_blocking_long(co, copy_blocking, &a);
    if (n == -EOPNOTSUPP || n == -ENOSYS)
        file_set_lacks(f, FILE_NO_COPY);
    /* These say that this pair of files, or this range, is not for the kernel to copy. */
    if (n == -EOPNOTSUPP || n == -ENOSYS || n == -EXDEV || n == -EINVAL || n == -EPERM || n == -ETXTBSY)
        return -ENOTSUP;
    return n;
}

const struct stor_ops file_ops = {
    .name = "file",
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .stream = file_stream,
    .drop_cache = file_drop_cache,
    .cached = file_cached,
    .flush = file_flush,
    .zero = file_zero,
    .discard = file_discard,
    .truncate = file_truncate,
    .preallocate = file_preallocate,
    .length = file_length,
    .extent = file_extent,
    .extents = file_extents,
    .copy_from = file_copy_from,
    .lock = file_lock,
    .allocated = file_allocated,
    .close = file_close,
};
