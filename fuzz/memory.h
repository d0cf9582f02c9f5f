/* SPDX-License-Identifier: MIT
 *
 * memory.h: for fuzz targets that open an image: a store in memory, one at a time, that outlives the image.
 */
#ifndef FUZZ_MEMORY_H
#define FUZZ_MEMORY_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fmt/fmt.h"
#include "stor/stor.h"

/* cap: behind it there is no space. changes: how often somebody tried to write. */
static struct { uint8_t *bytes; uint64_t len, cap, changes; } disk;

static inline int64_t memory_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (n)
        iov_from_buf(v, disk.bytes + off, n);
    return (int64_t)n;
}

static inline int64_t memory_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    disk.changes++;
    if (!range_inside(off, v.len_bytes, disk.cap))
        return -ENOSPC;
    iov_to_buf(v, disk.bytes + off, v.len_bytes);
    disk.len = max_u64(disk.len, off + v.len_bytes);
    return (int64_t)v.len_bytes;
}

static inline int memory_truncate(struct co *co, struct stor *s, uint64_t len)
{
    disk.changes++;
    if (len > disk.cap)
        return -ENOSPC;
    if (len < disk.len)
        memset(disk.bytes + len, 0, disk.len - len);
    disk.len = len;
    return 0;
}

static inline int memory_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

/* Zeros of whole 512-byte blocks are a hole: the check may then skip them. */
static inline int memory_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    uint64_t end = off;
    while (end < off + len && (end >= disk.len || mem_is_zero(disk.bytes + end, min_u64(512, disk.len - end))))
        end += 512;
    *ret_e = end > off ? (struct stor_extent){ STOR_HOLE, off, min_u64(end - off, len) } : (struct stor_extent){ STOR_DATA, off, min_u64(512, len) };
    return 0;
}

static inline int memory_flush(struct co *co, struct stor *s) { return 0; }

static inline void memory_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

/* NULL: it cannot be opened. */
static inline struct fmt_image *memory_open(struct co *co, const struct stor_ops *on, const struct fmt_ops *ops, const struct fmt_open_opts *o)
{
    struct stor *s = calloc(1, sizeof *s);
    struct fmt_image *im;
    ASSERT(s && !stor_init(s, on, "fuzz"));
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits.regular = true;
    s->traits.can_zero = on->zero != NULL;
    if (!ops->open(co, s, o, &im, NULL))
        return im;
    memory_close(co, s);
    return NULL;
}

/* The input becomes the disk, in memory of `cap` bytes that is made once. */
static inline void memory_load(const uint8_t *data, size_t size, uint64_t cap)
{
    if (!disk.bytes)
        disk.bytes = calloc(1, cap);
    ASSERT(disk.bytes && size <= cap);
    memset(disk.bytes, 0, disk.len);
    memcpy(disk.bytes, data, size);
    disk.len = size;
    disk.cap = cap;
    disk.changes = 0;
}

#endif
