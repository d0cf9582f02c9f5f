/* SPDX-License-Identifier: MIT
 *
 * lk_store.c: a store that encrypts what is written through it and decrypts what is read.
 *
 * Purpose      Guest data of encrypted images passes here, whatever the format: graph/ and copy/ see plain bytes.
 * Owns         Its bounce buffers. Neither the store below nor the key.
 * Invariants   I1  A buffer of a write is never changed: encryption happens in memory of our own.
 *              I2  Only whole sectors reach the store below. Smaller requests are read, changed and written back by the gate,
 *                  which orders them with all other writes of the same sectors (stor.h I3).
 *              I3  Nothing here promises zeros: a hole below is no zeros above, space gained is not known to be zero, and zeros
 *                  are written as their ciphertext.
 *              I4  No copy goes around the cipher: the store has no copy_from, and is none that others could copy from.
 *              I5  A request is ciphered in any number of pieces of whole sectors at once: none depends on another (lk_cipher.c I2).
 *                  Ciphertext goes down only when all of its piece of PIECE_BYTES is made, plain text up when all of the request is.
 * Order        None; FUA and flush are handed down.
 * Concurrency  Any loop. No lock is held while sectors are transformed; large ones are on the
 *              CPU pool, the largest on several of its threads (FEATURES 1.060).
 * Failure      -errno of the store below, -ENOMEM, -EACCES without a key.
 * Tests        luks_test.c, crash explorer (geometry c512-luks), tests/interop/test_luks.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fmt/luks/lk.h"
#include "rt/loop.h"

/* Above this many bytes a transformation goes to the CPU pool: the way there and back costs about as much as 16 KiB. */
#define INLINE_BYTES (16u << 10)
/* Above this many, to several threads of it, in shares of SHARE_BYTES: a share takes longer than waking a thread. */
#define SPLIT_BYTES (128u << 10)
#define SHARE_BYTES (64u << 10)
/* Bytes that are bounced at a time. */
#define PIECE_BYTES (1u << 20)

struct lk_store {
    struct stor s;                           /* first */
    struct lk_store_opts o;
};

static struct lk_store *of(struct stor *s) { return (struct lk_store *)s; }

/* ---- transformation ---- */

struct work {
    const struct lk_xform *x;
    struct iov v;
    uint8_t *buf;                            /* encrypt: v is copied here first. NULL: decrypt v in place */
    uint64_t sector;
};

/* Every element of v is whole sectors: the gate sees to it (limits.block). */
static void decrypt_in_place(const struct work *w)
{
    uint64_t left = w->v.len_bytes, skip = w->v.skip_bytes, sector = w->sector;
    for (size_t i = 0; left; i++, skip = 0) {
        uint64_t n = min_u64(w->v.vec[i].iov_len - skip, left);
        lk_decrypt(w->x, (uint8_t *)w->v.vec[i].iov_base + skip, n, sector);
        sector += n / LK_SECTOR;
        left -= n;
    }
}

static int64_t run_work(void *arg)
{
    const struct work *w = arg;
    if (w->buf) {
        iov_to_buf(w->v, w->buf, w->v.len_bytes);                /* I1 */
        lk_encrypt(w->x, w->buf, w->v.len_bytes, w->sector);
    } else {
        decrypt_in_place(w);
    }
    return 0;
}

/* I5 */
static void run_share(void *arg, unsigned i)
{
    const struct work *w = arg;
    uint64_t at = (uint64_t)i * SHARE_BYTES, n = min_u64(SHARE_BYTES, w->v.len_bytes - at);
    struct work share = { .x = w->x, .v = iov_slice(w->v, at, n), .buf = w->buf ? w->buf + at : NULL, .sector = w->sector + at / LK_SECTOR };
    (void)run_work(&share);
}

static void transform(struct co *co, struct work *w)
{
    int r = -ENOMEM;
    if (w->v.len_bytes > SPLIT_BYTES)
        r = rt_cpu_split(co, run_share, w, (unsigned)div_up(w->v.len_bytes, SHARE_BYTES));
    else if (w->v.len_bytes > INLINE_BYTES)
        r = (int)rt_cpu(co, run_work, w);
    if (r < 0)
        (void)run_work(w);                   /* it is small, or there is no memory to hand it over: it is done here */
}

static uint64_t sector_of(const struct lk_store *k, uint64_t off)
{
    return (k->o.base + off - k->o.iv_base) / LK_SECTOR;
}

/* ---- transfers ---- */

static int64_t lk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct lk_store *k = of(s);
    if (!k->o.x)
        return -EACCES;
    int r = stor_read(co, k->o.below, v, k->o.base + off);
    if (r < 0)
        return r;
    struct work w = { .x = k->o.x, .v = v, .sector = sector_of(k, off) };
    transform(co, &w);
    return (int64_t)v.len_bytes;
}

static int64_t lk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct lk_store *k = of(s);
    if (!k->o.x)
        return -EACCES;
    uint64_t step = min_u64(v.len_bytes, PIECE_BYTES);
    void *buf = NULL;
    if (posix_memalign(&buf, max_u64(k->o.below->lim.mem_align, 4096), step))
        return -ENOMEM;
    int r = 0;
    for (uint64_t done = 0; done < v.len_bytes && !r; done += step) {
        uint64_t n = min_u64(step, v.len_bytes - done);
        struct work w = { .x = k->o.x, .v = iov_slice(v, done, n), .buf = buf, .sector = sector_of(k, off + done) };
        transform(co, &w);
        r = stor_write_buf(co, k->o.below, buf, n, k->o.base + off + done, flags & STOR_FUA);
    }
    free(buf);
    return r < 0 ? r : (int64_t)v.len_bytes;
}

/* ---- what passes through ---- */

static int lk_flush(struct co *co, struct stor *s)
{
    return stor_flush(co, of(s)->o.below);   /* passed down; when is the format's decision (D5) */
}

static int lk_truncate(struct co *co, struct stor *s, uint64_t len)
{
    return stor_truncate(co, of(s)->o.below, of(s)->o.base + len);
}

static int lk_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    return stor_preallocate(co, of(s)->o.below, of(s)->o.base + off, len);
}

static int lk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    uint64_t len;
    int r = stor_length(co, of(s)->o.below, &len);
    if (r < 0)
        return r;
    /* A last sector that is cut short counts: what is missing of it reads as zero bytes of ciphertext. */
    *ret_len = len > of(s)->o.base ? round_up(len - of(s)->o.base, LK_SECTOR) : 0;
    return 0;
}

static int lk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    *ret_e = (struct stor_extent){ STOR_DATA, off, len };        /* I3 */
    return 0;
}

static int lk_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    return stor_allocated(co, of(s)->o.below, ret_bytes);
}

static void lk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(of(s));
}

static const struct stor_ops lk_store_ops = {
    .name = "crypt",
    .preadv = lk_preadv,
    .pwritev = lk_pwritev,
    .flush = lk_flush,
    .truncate = lk_truncate,
    .preallocate = lk_preallocate,
    .length = lk_length,
    .extent = lk_extent,
    .allocated = lk_allocated,
    .close = lk_close,
};

int lk_store_new(const struct lk_store_opts *o, struct stor **ret_s)
{
    ASSERT(is_aligned(o->base | o->iv_base, LK_SECTOR));
    struct lk_store *k = calloc(1, sizeof *k);
    if (!k)
        return -ENOMEM;
    int r = stor_init(&k->s, &lk_store_ops, o->below->name);
    if (r < 0) {
        free(k);
        return r;
    }
    k->o = *o;
    k->s.read_only = o->below->read_only;
    k->s.no_flush = o->below->no_flush;
    k->s.lim = (struct stor_limits){ .block = LK_SECTOR, .mem_align = 1, .opt_block = o->below->lim.opt_block };
    /* Not `regular`: the gate must not cut the store back to a length that is no whole sector. */
    k->s.traits = (struct stor_traits){ .direct = o->below->traits.direct, .enospc_early = o->below->traits.enospc_early };
    *ret_s = &k->s;
    return 0;
}
