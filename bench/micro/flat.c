/* SPDX-License-Identifier: MIT
 *
 * flat.c: a byte store in flat memory, without a lock and without a wait.
 *
 * Purpose      The cheapest thing that an image can lie on.
 * Owns         Its memory; the list of stores that have names.
 * Invariants   I1  Bytes behind the length are zero.
 * Order        None.
 * Concurrency  One thread.
 * Failure      -ENOSPC behind the capacity.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct flat { struct stor s; uint8_t *bytes; uint64_t len, cap; };

static struct flat *flat_of(struct stor *s) { return (struct flat *)s; }

static int64_t flat_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct flat *f = flat_of(s);
    uint64_t n = off < f->len ? min_u64(v.len_bytes, f->len - off) : 0;
    if (n)
        iov_from_buf(v, f->bytes + off, n);
    return (int64_t)n;
}

static int64_t flat_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct flat *f = flat_of(s);
    if (off + v.len_bytes > f->cap)
        return -ENOSPC;
    iov_to_buf(v, f->bytes + off, v.len_bytes);
    f->len = max_u64(f->len, off + v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int flat_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    struct flat *f = flat_of(s);
    if (off + len > f->cap)
        return -ENOSPC;
    memset(f->bytes + off, 0, len);
    f->len = max_u64(f->len, off + len);
    return 0;
}

static int flat_truncate(struct co *co, struct stor *s, uint64_t len)
{
    struct flat *f = flat_of(s);
    if (len > f->cap)
        return -ENOSPC;
    if (len < f->len)
        memset(f->bytes + len, 0, f->len - len);       /* I1 */
    f->len = len;
    return 0;
}

static int flat_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = flat_of(s)->len;
    return 0;
}

static int flat_flush(struct co *co, struct stor *s) { return 0; }

static void flat_close(struct co *co, struct stor *s)
{
    free(flat_of(s)->bytes);
    stor_fini(s);
    free(s);
}

static const struct stor_ops flat_ops = {
    .name = "flat", .preadv = flat_preadv, .pwritev = flat_pwritev, .flush = flat_flush, .zero = flat_zero, .truncate = flat_truncate,
    .length = flat_length, .close = flat_close,
};

struct stor *flat_new(uint64_t cap)
{
    struct flat *f = calloc(1, sizeof *f);
    ASSERT(f);
    OK(stor_init(&f->s, &flat_ops, "flat"));
    f->bytes = calloc(1, cap);
    ASSERT(f->bytes);
    f->cap = cap;
    f->s.traits = (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true, .can_zero = true };
    return &f->s;
}

/* ---- by name ---- */

#define NAMES 64u
static struct stor *named[NAMES];

void flat_set(unsigned i, struct stor *s) { named[i % NAMES] = s; }

static struct stor *by_name(const char *name) { return named[strtoul(name + 1, NULL, 10) % NAMES]; }

static int open_named(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    *ret_s = stor_share(by_name(name));
    return 0;
}

static bool no_identity(void *arg, const struct stor *s, uint64_t *ret_a, uint64_t *ret_b) { return false; }

const struct graph_opener flat_opener = { .open = open_named, .identity = no_identity };
