/* SPDX-License-Identifier: MIT
 *
 * q2_map.c: where is guest range R now?
 *
 * Purpose     Answers mappings from the cached tables, on any loop without a lock (D2); loads what is missing on
 *             the home loop; makes an L2 table the image's own before it is changed.
 * Owns        q->l2_mx. The tables belong to meta/ and to q->l1.
 * Invariants  M1  A lookup on another loop reads each entry once, as a whole (one atomic word, or a pair under the slice's
 *                 count), and decodes that.
 *             M2  `writable` is said only of COPIED standard clusters that hold no metadata (1.045, 1.048; q2_guard.h), through a table
 *                 that is COPIED too: else the table could be copied, flags cleared, and the cluster after it, while somebody still
 *                 writes into it in place (Q4). Nor is it said of clusters that are about to be moved (q2_move.c).
 *             M3  An L2 table is changed only when its L1 entry is COPIED (Q5); q2_slice_own sees to it.
 *             M4  A pinned slice stays the one that the L1 entry names: after each suspension the entry is compared.
 *             M5  What is held is looked at in front of the entries: behind them it could be over already, and an entry that was read
 *                 before its cluster was moved would be written in place, where nobody looks any more.
 * Order       A new table's zeros, or the copy of a shared one, are written before the L1 entry is set, so the data barrier
 *             covers them (Q5); a crash that keeps the L1 entry and loses what the same pass writes into the table finds
 *             the old mappings there. No barrier is needed between L2 and L1. In known-zero, settled space not even the
 *             data barrier is (Q23). The old table is dropped behind it (Q9).
 * Concurrency q2_map: any loop, inside an epoch section. The rest: home loop.
 * Failure     A bad entry is -EIO for the request that met it, and the image is marked corrupt when it is open for
 *             writing (Q22, 1.113). A table that cannot be read is -EIO and nothing more: the next request may get it.
 * Tests       interop, crash explorer, two-loop stress, fuzz/qcow2_open.
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

/* ---- places ---- */

static uint32_t slice_index(const struct q2_image *q, uint64_t guest)
{
    return (uint32_t)q2_l2_index(&q->g, guest) & (q->slice_entries - 1);
}

static uint64_t slice_off(const struct q2_image *q, uint64_t l2_off, uint64_t guest)
{
    return l2_off + round_down(q2_l2_index(&q->g, guest) * q->g.l2_entry_bytes, q->slice_bytes);
}

/* Guest bytes from `guest` to the end of its slice. */
static uint64_t left_in_slice(const struct q2_image *q, uint64_t guest)
{
    return q->slice_span - (guest & (q->slice_span - 1));
}

static bool overlaps(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen) { return a < b + blen && b < a + alen; }

unsigned q2_fixed_kinds(const struct q2_image *q, uint64_t host)
{
    static const uint8_t kind[Q2_FIXED] = { Q2_K_L1, Q2_K_TABLE, Q2_K_SNAPSHOTS, Q2_K_BITMAPS, Q2_K_LUKS };
    uint64_t cs = q->g.cluster_size, end = atomic_load_explicit(&q->fixed_end, memory_order_relaxed);
    if (LIKELY(end && host >= end))
        return 0;
    unsigned kinds = host < cs ? 1u << Q2_K_HEADER : 0;
    for (unsigned i = 0; i < Q2_FIXED; i++) {
        uint64_t off = atomic_load_explicit(&q->fixed[i].off, memory_order_relaxed);
        uint64_t len = atomic_load_explicit(&q->fixed[i].len, memory_order_relaxed);
        if (UNLIKELY(overlaps(host, cs, off, len)))
            kinds |= 1u << kind[i];
    }
    return kinds;
}

bool q2_hits_metadata(const struct q2_image *q, uint64_t host) { return q2_fixed_kinds(q, host) != 0; }

static void fixed_set(struct q2_image *q, unsigned i, uint64_t off, uint64_t len)
{
    uint64_t end = len && off > UINT64_MAX - len ? UINT64_MAX : off + len;
    if (len && end > atomic_load_explicit(&q->fixed_end, memory_order_relaxed))      /* before it is there: whoever sees it looks further */
        atomic_store_explicit(&q->fixed_end, end, memory_order_release);
    atomic_store_explicit(&q->fixed[i].off, len ? off : 0, memory_order_relaxed);
    atomic_store_explicit(&q->fixed[i].len, len, memory_order_relaxed);
}

void q2_fixed_update(struct q2_image *q)
{
    bool bitmaps = q->h.has_bitmaps && q->h.autoclear & Q2_AUTOCLEAR_BITMAPS;        /* else its space may be anybody's */
    fixed_set(q, 0, q->h.l1_off, (uint64_t)q->h.l1_size * 8);
    fixed_set(q, 1, q->h.rt_off, (uint64_t)q->h.rt_clusters << q->g.cluster_bits);
    uint64_t least = (uint64_t)q->h.nb_snapshots * sizeof(struct q2_disk_snapshot);
    bool known = q->h.nb_snapshots && q->snapshots_at == q->h.snapshots_off;
    fixed_set(q, 2, q->h.snapshots_off, known ? max_u64(least, q->snapshots_bytes) : least);
    fixed_set(q, 4, q->h.crypto_off, q->h.has_crypto ? q->h.crypto_len : 0);
    fixed_set(q, 3, bitmaps ? q->h.bitmap_dir_off : 0, bitmaps ? q->h.bitmap_dir_bytes : 0);
    uint64_t end = q->g.cluster_size;
    for (unsigned i = 0; i < Q2_FIXED; i++) {
        uint64_t off = atomic_load_explicit(&q->fixed[i].off, memory_order_relaxed), len = atomic_load_explicit(&q->fixed[i].len, memory_order_relaxed);
        end = max_u64(end, off > UINT64_MAX - len ? UINT64_MAX : off + len);
    }
    atomic_store_explicit(&q->fixed_end, end, memory_order_release);
}

void q2_fixed_snapshots(struct q2_image *q, uint64_t bytes)
{
    q->snapshots_at = q->h.snapshots_off;
    q->snapshots_bytes = bytes;
    q2_fixed_update(q);
}

static int l1_entry(const struct q2_image *q, uint64_t guest, struct q2_l1e *ret)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_acquire);
    uint64_t i = q2_l1_index(&q->g, guest);
    if (i >= l1->entries) {
        *ret = (struct q2_l1e){ 0 };
        return 0;
    }
    uint64_t raw = be64_word(atomic_load_explicit(&l1->words[i], memory_order_acquire));
    uint64_t distrust = atomic_load_explicit(&q->distrust_end, memory_order_acquire);
    if (!q2_l1e_decode(&q->g, raw, ret) || (UNLIKELY(distrust) && q2_unclean_l1_bad(q, i)))
        return -EUCLEAN;
    if (UNLIKELY(ret->l2_off < distrust))
        ret->copied = false;                 /* q2_unclean.c U2 */
    return 0;
}

static bool table_is_own(const struct q2_l1e *e) { return e->copied || MUTANT(MUT_L2_COPY_IN_PLACE); }

bool q2_slice_is_own(const struct q2_image *q, uint64_t guest)
{
    struct q2_l1e e;
    return l1_entry(q, guest, &e) == 0 && e.l2_off && table_is_own(&e);
}

#ifdef Q2_MAP_TEST                            /* a moment in which the home loop may go on, for tests */
void q2_map_pause(void);
#define MAP_PAUSE() q2_map_pause()
#else
#define MAP_PAUSE() (void)0
#endif

/* ---- mapping of entries ---- */

static void extent_of(const struct q2_image *q, const struct q2_held *held, const struct q2_l2e *e, uint64_t off, struct fmt_extent *x)
{
    uint64_t in = q2_in_cluster(&q->g, off);
    *x = (struct fmt_extent){ .len = q->g.cluster_size - in };
    switch (e->kind) {
    case Q2_UNALLOCATED:
        x->kind = FMT_ABSENT;
        break;
    case Q2_ZERO_PLAIN:
        x->kind = FMT_ZERO;
        break;
    case Q2_ZERO_ALLOC:
        x->kind = FMT_ZERO;
        x->has_host = true;
        x->host = e->host + in;
        break;
    case Q2_NORMAL:
        x->kind = FMT_DATA;
        x->has_host = true;
        x->host = e->host + in;
        x->writable = (e->copied || MUTANT(MUT_SHARED_IN_PLACE)) && (q->g.data_file || q2_guard_passes(q, e->host)) && !q2_held_has(held, e->host);
        if (UNLIKELY(q->im.weak_cipher)) {               /* legacy AES goes by guest offset */
            x->kind = FMT_ENCODED;
            x->encrypted = true;
            x->host = e->host;
            x->enc_guest = off - in;
        }
        break;
    case Q2_COMPRESSED:
        x->kind = FMT_ENCODED;
        x->host = e->host;
        x->enc_len = e->comp_bytes;
        x->enc_guest = off - in;
        break;
    }
}

static bool extends(const struct fmt_extent *x, const struct fmt_extent *next)
{
    if (x->kind != next->kind || x->has_host != next->has_host || x->writable != next->writable || x->kind == FMT_ENCODED)
        return false;
    return !x->has_host || next->host == x->host + x->len;
}

/* The same with subclusters: the run of those that are in the same state. */
static void extent_of_sub(const struct q2_image *q, const struct q2_held *held, const struct q2_l2e *e, uint64_t off, struct fmt_extent *x)
{
    uint64_t in = q2_in_cluster(&q->g, off), unit = 1ull << q->g.sub_bits;
    if (e->kind == Q2_COMPRESSED) {
        extent_of(q, held, e, off, x);
        return;
    }
    uint32_t first = (uint32_t)(in >> q->g.sub_bits), run;
    *x = (struct fmt_extent){ .has_host = e->kind == Q2_NORMAL, .host = e->kind == Q2_NORMAL ? e->host + in : 0 };
    switch (q2_sub_state(e, first, &run)) {
    case Q2_SUB_ABSENT:
        x->kind = FMT_ABSENT;
        break;
    case Q2_SUB_ZERO:
        x->kind = FMT_ZERO;
        break;
    case Q2_SUB_DATA:
        x->kind = FMT_DATA;
        x->writable = (e->copied || MUTANT(MUT_SHARED_IN_PLACE)) && (q->g.data_file || q2_guard_passes(q, e->host)) && !q2_held_has(held, e->host);
        break;
    }
    x->len = run * unit - in % unit;
}

static int map_slice_sub(const struct q2_image *q, const struct meta_block *b, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    len = min_u64(len, left_in_slice(q, off));
    struct q2_held held = q2_held_now(q);                        /* M5 */
    struct q2_l2e e;
    if (!q2_entry_get(q, b, slice_index(q, off), &e) || !q2_entry_fits(q, &e, off))
        return -EUCLEAN;
    struct fmt_extent x, next;
    MAP_PAUSE();
    extent_of_sub(q, &held, &e, off, &x);
    while (x.len < len && q2_in_cluster(&q->g, off + x.len) == 0) {     /* inside a cluster a run ends where the state changes */
        if (!q2_entry_get(q, b, slice_index(q, off + x.len), &e) || !q2_entry_fits(q, &e, off + x.len))
            break;
        extent_of_sub(q, &held, &e, off + x.len, &next);
        if (!extends(&x, &next))
            break;
        x.len += next.len;
    }
    x.len = min_u64(x.len, len);
    *ret = x;
    return 0;
}

/* Maps [off, off+len) as far as one slice answers it. `b` is valid while the caller is in its section or pins it. */
static int map_slice(const struct q2_image *q, const struct meta_block *b, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    if (UNLIKELY(q->g.ext_l2))
        return map_slice_sub(q, b, off, len, ret);
    len = min_u64(len, left_in_slice(q, off));
    struct q2_held held = q2_held_now(q);                        /* M5 */
    struct q2_l2e e;
    uint32_t i = slice_index(q, off);
    if (!q2_entry_get(q, b, i, &e) || !q2_entry_fits(q, &e, off))
        return -EUCLEAN;
    struct fmt_extent x;
    MAP_PAUSE();
    extent_of(q, &held, &e, off, &x);
    if (x.kind == FMT_ABSENT)                                    /* a walk through a chain meets many of them */
        for (; x.len < len && meta_word(b, i + 1) == 0; i++)
            x.len += q->g.cluster_size;
    while (x.len < len) {
        struct fmt_extent next;
        if (!q2_entry_get(q, b, ++i, &e) || !q2_entry_fits(q, &e, off + x.len))
            break;
        extent_of(q, &held, &e, off + x.len, &next);
        if (!extends(&x, &next))
            break;
        x.len += next.len;
    }
    x.len = min_u64(x.len, len);
    *ret = x;
    return 0;
}

/* No L2 table: how far? */
static void map_hole(const struct q2_image *q, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    uint64_t span = q2_l2_span(&q->g), end = round_down(off, span) + span;
    for (unsigned i = 0; i < 4096 && end < off + len; i++, end += span) {
        struct q2_l1e e;
        if (l1_entry(q, end, &e) < 0 || e.l2_off)
            break;
    }
    *ret = (struct fmt_extent){ .kind = FMT_ABSENT, .len = min_u64(end - off, len) };
}

/* ---- the home loop's part: load, then map ---- */

struct map_call { struct q2_image *q; uint64_t off, len; struct fmt_extent *ret; };

static int map_home(struct co *co, void *arg)
{
    struct map_call *c = arg;
    struct meta_block *b;
    uint32_t i;
    int r = q2_slice_get(co, c->q, c->off, &b, &i);
    if (r < 0)
        return q2_judge(co, c->q, r, "the L2 table of guest offset", c->off);
    if (!b) {
        map_hole(c->q, c->off, c->len, c->ret);
        return 0;
    }
    r = map_slice(c->q, b, c->off, c->len, c->ret);
    if (r == 0)
        c->ret->writable &= q2_slice_is_own(c->q, c->off);
    meta_put(c->q->meta, b);
    return q2_judge(co, c->q, r, "the L2 entry of guest offset", c->off);
}

static inline bool map_peek(struct q2_image *q, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    struct q2_l1e e;
    if (UNLIKELY(l1_entry(q, off, &e) < 0))
        return false;
    if (!e.l2_off) {
        map_hole(q, off, len, ret_e);
        return true;
    }
    struct meta_block *b = meta_peek(q->meta, slice_off(q, e.l2_off, off));
    if (!b || b->kind != &q->kind_l2 || UNLIKELY(map_slice(q, b, off, len, ret_e) < 0))
        return false;
    ret_e->writable &= table_is_own(&e);
    return true;
}

static bool has_failed(const struct q2_image *q) { return UNLIKELY(atomic_load_explicit(&q->failed, memory_order_relaxed)); }

int q2_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    struct q2_image *q = q2_of(im);
    return !has_failed(q) && map_peek(q, off, len, ret_e) ? 0 : -EAGAIN;
}

int q2_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    struct q2_image *q = q2_of(im);
    if (has_failed(q))
        return -EIO;
    if (LIKELY(map_peek(q, off, len, ret_e)))
        return 0;
    struct map_call c = { q, off, len, ret_e };
    return rt_call(co, im->home, map_home, &c);
}

/* ---- slices for the home loop ---- */

int q2_block_get(struct co *co, struct q2_image *q, const struct meta_kind *k, uint64_t off, struct meta_block **ret_b)
{
    int r = meta_get(co, q->meta, k, off, ret_b);
    uint64_t len;
    if (r == -EIO && stor_length(co, q->im.store, &len) == 0 && !range_inside(off, q->slice_bytes, len))
        return -EUCLEAN;
    if (r == -ESTALE && k == &q->kind_ref)
        return -EIO;                         /* a growth took the block back; nothing below its clusters was in use */
    return r;
}

int q2_slice_get(struct co *co, struct q2_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index)
{
    ASSERT_LOOP(q->im.home);
    for (;;) {
        struct q2_l1e e, again;
        int r = l1_entry(q, guest, &e);
        if (r < 0)
            return r;
        if (!e.l2_off) {
            *ret_b = NULL;
            return 0;
        }
        struct meta_block *b;
        r = q2_block_get(co, q, &q->kind_l2, slice_off(q, e.l2_off, guest), &b);
        if (r == -ESTALE)
            continue;                                                            /* M4 */
        if (r < 0)
            return r;
        if (l1_entry(q, guest, &again) == 0 && again.l2_off == e.l2_off) {       /* M4 */
            *ret_b = b;
            *ret_index = slice_index(q, guest);
            return 0;
        }
        meta_put(q->meta, b);
    }
}

/* Fills the new table's cluster: zeros, or the old table without its COPIED flags (which the second half of an extended
 * entry does not have). */
static int fill_table(struct co *co, struct q2_image *q, uint64_t old_off, uint64_t new_off, bool known_zero, bool keep_copied)
{
    uint64_t cs = q->g.cluster_size;
    if (!old_off) {
        stor_event(co, q->im.store, STOR_EV_L2_ALLOC_WRITE);
        return known_zero ? 0 : stor_zero(co, q->im.store, new_off, cs, 0);
    }
    void *buf = NULL;
    if (posix_memalign(&buf, 4096, cs))
        return -ENOMEM;
    stor_event(co, q->im.store, STOR_EV_L2_ALLOC_COW_READ);
    int r = stor_read_exact(co, q->im.store, buf, cs, old_off);
    if (r == 0) {
        uint64_t *w = buf;
        stor_event(co, q->im.store, STOR_EV_L2_ALLOC_WRITE);
        if (q2_unclean_is_old(q, old_off >> q->g.cluster_bits))
            q2_unclean_sanitise(q, w);
        for (uint64_t i = 0; !keep_copied && i < cs / 8; i += q->g.l2_entry_bytes / 8)
            w[i] = be64_word(be64_word(w[i]) & ~Q2_E_COPIED);
        r = meta_write_now(co, q->meta, buf, cs, new_off);
    }
    free(buf);
    return r;
}

/* Under l2_mx: gives the L1 entry of `guest` a table of its own. */
static int table_own(struct co *co, struct q2_image *q, uint64_t guest, const struct q2_l1e *old)
{
    struct q2_run run;
    int r = q2_alloc_take(co, q, 1, &run);
    if (r < 0)
        return r;
    uint64_t off = run.cluster << q->g.cluster_bits;
    if (!meta_forget(q->meta, off, q->g.cluster_size))
        return -EUCLEAN;                     /* in use, whatever its count said: it stays out of reach */
    /* a table of an unclean image has one owner as far as its flag says so: those of its clusters stay as they are (U2 of q2_unclean.c) */
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    bool alone = be64_word(atomic_load_explicit(&l1->words[q2_l1_index(&q->g, guest)], memory_order_relaxed)) & Q2_E_COPIED;
    r = fill_table(co, q, old->l2_off, off, run.known_zero, alone && old->l2_off);
    if (r < 0) {
        q2_alloc_return(q, &run);
        return r;
    }
    if (!q2_run_independent(q, &run) || old->l2_off)
        meta_need_data_barrier(q->meta);                     /* Q5; else Q23 */
    q2_l1_set(q, q2_l1_index(&q->g, guest), q2_l1e_encode(off, true));
    if (old->l2_off)
        q2_alloc_drop_table(q, old->l2_off >> q->g.cluster_bits, 1);
    return 0;
}

int q2_slice_own(struct co *co, struct q2_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index)
{
    for (;;) {
        struct q2_l1e e;
        int r = l1_entry(q, guest, &e);
        if (r < 0)
            return r;
        if (e.l2_off && q2_hits_metadata(q, e.l2_off))
            return -EUCLEAN;                                                   /* M2, for tables */
        if (e.l2_off && table_is_own(&e) && (r = q2_guard_may_change(co, q, e.l2_off, Q2_K_L2)) < 0)
            return r;
        if (!e.l2_off || !table_is_own(&e)) {                                  /* M3 */
            co_lock(co, &q->l2_mx);
            r = l1_entry(q, guest, &e);
            if (r == 0 && !(e.l2_off && e.copied))
                r = table_own(co, q, guest, &e);
            co_unlock(&q->l2_mx);
            if (r < 0)
                return r;
        }
        r = q2_slice_get(co, q, guest, ret_b, ret_index);
        if (r < 0 || *ret_b)
            return r;
    }
}
