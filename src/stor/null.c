/* SPDX-License-Identifier: MIT
 *
 * null.c: a byte store that keeps nothing, for measurements: every request succeeds after a fixed time.
 *
 * Purpose      The cost of everything above the stores, or a device of known latency.
 * Owns         Nothing but its options.
 * Invariants   I1  A read gives zeros, always: a buffer left as it is would hand what this process held before to a client, or into a copy. With
 *                  read_zeroes the store is one hole, without it one extent of data.
 *              I2  The length changes only by truncate.
 * Order        None.
 * Concurrency  Any loop. Suspends only when there is a latency; a cancelled coroutine does not wait the rest of it.
 * Failure      None.
 * Tests        mem_test.c
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "rt/co.h"
#include "stor/nbd.h"
#include "stor/stor.h"

struct null_stor {
    struct stor s;                        /* first */
    struct stor_null_opts opts;
    _Atomic uint64_t len;
};

static struct null_stor *null_of(struct stor *s) { return (struct null_stor *)s; }

static void delay(struct co *co, struct stor *s)
{
    uint64_t ns = null_of(s)->opts.latency_ns;
    if (ns)
        (void)co_sleep(co, ns);           /* file I/O always completes, cancelled or not */
}

static int64_t null_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    delay(co, s);
    uint64_t now = atomic_load(&null_of(s)->len), n = off < now ? min_u64(v.len_bytes, now - off) : 0;
    iov_set(iov_slice(v, 0, n), 0);
    return (int64_t)n;
}

static int64_t null_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    delay(co, s);
    return (int64_t)v.len_bytes;
}

static int null_flush(struct co *co, struct stor *s)
{
    delay(co, s);
    return 0;
}

static int null_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    delay(co, s);
    return 0;
}

static int null_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    delay(co, s);
    return 0;
}

static int null_truncate(struct co *co, struct stor *s, uint64_t len)
{
    atomic_store(&null_of(s)->len, len);
    return 0;
}

static int null_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = atomic_load(&null_of(s)->len);
    return 0;
}

static int null_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    *ret_e = (struct stor_extent){ null_of(s)->opts.read_zeroes ? STOR_HOLE : STOR_DATA, off, len };
    return 0;
}

static int null_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    *ret_bytes = 0;
    return 0;
}

static void null_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(null_of(s));
}

static const struct stor_ops null_ops = {
    .name = "null",
    .preadv = null_preadv,
    .pwritev = null_pwritev,
    .flush = null_flush,
    .zero = null_zero,
    .discard = null_discard,
    .truncate = null_truncate,
    .length = null_length,
    .extent = null_extent,
    .allocated = null_allocated,
    .close = null_close,
};

bool stor_names_no_file(const char *text) { return stor_nbd_is_name(text) || stor_null_is_name(text); }
bool stor_null_is_name(const char *text) { return !strncmp(text, "null-co:", 8) || !strncmp(text, "null-aio:", 9); }

int stor_null_new(struct co *co, const struct stor_null_opts *opts, struct stor **ret_s)
{
    if (opts->len > (uint64_t)INT64_MAX)
        return -EINVAL;
    struct null_stor *n = calloc(1, sizeof *n);
    if (!n || stor_init(&n->s, &null_ops, "null") < 0) {
        free(n);
        return -ENOMEM;
    }
    n->opts = *opts;
    atomic_init(&n->len, opts->len);
    n->s.traits = (struct stor_traits){ .regular = true, .can_zero = true, .can_punch = true };
    n->s.discard_ok = true;
    *ret_s = &n->s;
    return 0;
}
