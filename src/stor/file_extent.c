/* SPDX-License-Identifier: MIT
 *
 * file_extent.c: where data lies in a file.
 *
 * Purpose      SEEK_DATA and SEEK_HOLE as one question, with the latest answer kept: who walks a long extent in small
 *              steps asks the kernel once.
 * Owns         The cache of one extent of data in struct file_stor.
 * Invariants   I1  A hole is only ever answered fresh from the kernel. (Space that is allocated but never written
 *                  counts as a hole for the kernel: it reads zero.)
 *              I2  The cache holds data only, and only if no zero, discard or truncate came between the question and
 *                  the keeping of the answer. Even a stale entry would be allowed: "data" is always a true answer,
 *                  only a costly one. Writes therefore need not touch the cache.
 * Order        Nothing.
 * Concurrency  Any loop; the seeks run on worker threads (they move the file's position, which nothing else uses).
 * Failure      An error is the answer "data" (the gate sees to it).
 * Tests        file_space_test.c
 */
#include <unistd.h>

#include "base/checked.h"
#include "rt/loop.h"
#include "stor/file_priv.h"

struct seek_args {
    struct file_stor *f;
    uint64_t off, end;
    struct stor_extent e;
};

void file_extent_forget(struct file_stor *f)
{
    pthread_mutex_lock(&f->extent.lock);
    f->extent.start = f->extent.end = 0;
    f->extent.generation++;
    pthread_mutex_unlock(&f->extent.lock);
}

static bool cache_lookup(struct file_stor *f, uint64_t off, uint64_t end, struct stor_extent *ret_e, uint64_t *ret_generation)
{
    struct file_extent_cache *c = &f->extent;
    pthread_mutex_lock(&c->lock);
    bool hit = c->start <= off && off < c->end;
    if (hit)
        *ret_e = (struct stor_extent){ STOR_DATA, off, min_u64(end, c->end) - off };
    *ret_generation = c->generation;
    pthread_mutex_unlock(&c->lock);
    return hit;
}

static void cache_keep(struct file_stor *f, const struct stor_extent *e, uint64_t generation)
{
    struct file_extent_cache *c = &f->extent;
    pthread_mutex_lock(&c->lock);
    if (c->generation == generation) {
        c->start = e->off;
        c->end = e->off + e->len;
    }
    pthread_mutex_unlock(&c->lock);
}

/* The extent at a->off, not cut to the request. */
static int64_t seek_blocking(void *arg)
{
    struct seek_args *a = arg;
    off_t data = lseek(a->f->fd, (off_t)a->off, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {     /* no data to the end of the file */
        a->e = (struct stor_extent){ STOR_HOLE, a->off, a->end - a->off };
        return 0;
    }
    if (data < 0 || (uint64_t)data < a->off)
        return data < 0 ? -errno : -EIO;
    if ((uint64_t)data > a->off) {
        a->e = (struct stor_extent){ STOR_HOLE, a->off, (uint64_t)data - a->off };
        return 0;
    }
    off_t hole = lseek(a->f->fd, (off_t)a->off, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= a->off)
        return hole < 0 ? -errno : -EIO;  /* it changed under us: "data" is right */
    a->e = (struct stor_extent){ STOR_DATA, a->off, (uint64_t)hole - a->off };
    return 0;
}

struct list_args { struct file_stor *f; uint64_t off, end; struct stor_extent *list; unsigned max; };

/* Extents in a row, each cut to the request. Their number, or the error of the first. */
static int64_t list_blocking(void *arg)
{
    const struct list_args *l = arg;
    struct seek_args a = { .f = l->f, .off = l->off, .end = l->end };
    unsigned n = 0;
    while (n < l->max && a.off < l->end) {
        int64_t r = seek_blocking(&a);
        if (r < 0)
            return n ? (int64_t)n : r;
        a.e.len = min_u64(a.e.len, l->end - a.off);
        l->list[n++] = a.e;
        a.off += a.e.len;
    }
    return n;
}

int file_extents(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max)
{
    struct file_stor *f = file_of(s);
    uint64_t generation;
    if (f->device || file_lacks(f, FILE_NO_SEEK))
        return -ENOTSUP;
    if (cache_lookup(f, off, off + len, &list[0], &generation))
        return 1;
    struct list_args a = { f, off, off + len, list, max };
    int r = (int)rt_blocking(co, list_blocking, &a);
    if (r == -EINVAL || file_is_unsupported(r))
        file_set_lacks(f, FILE_NO_SEEK);
    return r;
}

int file_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    struct file_stor *f = file_of(s);
    uint64_t generation;
    if (f->device || file_lacks(f, FILE_NO_SEEK))
        return -ENOTSUP;
    if (cache_lookup(f, off, off + len, ret_e, &generation))
        return 0;
    struct seek_args a = { .f = f, .off = off, .end = off + len };
    int r = (int)rt_blocking(co, seek_blocking, &a);
    if (r == -EINVAL || file_is_unsupported(r))
        file_set_lacks(f, FILE_NO_SEEK);
    if (r < 0)
        return r;
    if (a.e.content == STOR_DATA)
        cache_keep(f, &a.e, generation);
    *ret_e = a.e;
    return 0;
}
