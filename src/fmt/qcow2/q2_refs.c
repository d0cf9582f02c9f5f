/* SPDX-License-Identifier: MIT
 *
 * q2_refs.c: how many owners has host cluster C?
 *
 * Purpose     Reads and changes refcounts through the metadata cache. Knows neither policy nor mappings.
 * Owns        The refcount table in memory (q->rt, host order offsets of blocks; 0 = no block: counts are 0).
 * Invariants  R1  A count never passes the width's maximum (1.043) nor zero; such a call fails and changes nothing.
 *             R2  The table changes only in q2_alloc.c (growth) and q2_reload().
 * Order       Counts are rank META_COUNTS: durable before the tables of the same pass (Q1).
 * Concurrency Home loop. get and add suspend when a slice is not cached.
 * Failure     -EIO: block unreadable; -EUCLEAN: it lies behind the end of the file, or a count would go below zero;
 *             -ERANGE: width; -ENOENT: no block there.
 * Tests       interop (all widths), crash explorer.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

int q2_refs_load_table(struct co *co, struct q2_image *q, struct byre_err *err)
{
    uint64_t inside = q->h.rt_off < q->file_end_at_open ? q->file_end_at_open - q->h.rt_off : 0;   /* check sees any table */
    uint64_t bytes = min_u64((uint64_t)q->h.rt_clusters << q->g.cluster_bits, inside);
    uint64_t *rt = malloc(bytes ? bytes : 8);
    if (!rt)
        return byre_fail(err, NOMEM, "%s: refcount table of %" PRIu64 " bytes", q->name, bytes);
    struct iovec slot;                           /* the last cluster of a file may be cut short */
    stor_event(co, q->im.store, STOR_EV_REFTABLE_LOAD);
    int r = bytes ? stor_read(co, q->im.store, iov_one(&slot, rt, bytes), q->h.rt_off) : 0;
    if (r < 0) {
        free(rt);
        return byre_fail_code(err, IO, r, "%s: the refcount table at %#" PRIx64 " (%" PRIu64 " bytes) cannot be read", q->name, q->h.rt_off, bytes);
    }
    for (uint64_t i = 0; i < bytes / 8; i++) {
        uint64_t off;
        if (!q2_rte_decode(&q->g, be64_word(rt[i]), &off)) {
            if (!q->check_mode && !q->im.read_only && !q2_unclean_wanted(q)) {
                uint64_t bad = be64_word(rt[i]);
                free(rt);
                return byre_fail(err, Q2_TABLE, "%s: refcount table entry %" PRIu64 " is %#" PRIx64 "; run check -r all", q->name, i, bad);
            }
            off = 0;
        }
        rt[i] = off;
    }
    free(q->rt);
    q->rt = rt;
    q->rt_entries = bytes / 8;
    q2_guard_drop(q);
    return 0;
}

struct place { uint64_t slice_off; uint64_t index, left; };   /* of a count: its slice, index in it, counts from there to its end */

static int place_of(const struct q2_image *q, uint64_t cluster, struct place *ret)
{
    const struct q2_geom *g = &q->g;
    uint64_t ti = cluster >> g->block_bits;
    if (ti >= q->rt_entries || !q->rt[ti])
        return -ENOENT;
    uint64_t per_slice = (uint64_t)q->slice_bytes * 8 / g->refcount_bits;
    uint64_t in_block = cluster & ((1ull << g->block_bits) - 1);
    ret->slice_off = q->rt[ti] + in_block / per_slice * q->slice_bytes;
    ret->index = in_block % per_slice;
    ret->left = per_slice - ret->index;
    return 0;
}

uint64_t q2_refs_slice_end(const struct q2_image *q, uint64_t cluster)
{
    uint64_t per_slice = (uint64_t)q->slice_bytes * 8 / q->g.refcount_bits;
    return (cluster / per_slice + 1) * per_slice;
}

int q2_refs_get(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t *ret_count)
{
    struct place p;
    if (q2_counts_in_memory(q))
        return q2_unclean_get(q, cluster, ret_count);
    if (place_of(q, cluster, &p) < 0) {
        *ret_count = 0;
        return 0;
    }
    struct meta_block *b;
    int r = q2_block_get(co, q, &q->kind_ref, p.slice_off, &b);
    if (r < 0)
        return r;
    *ret_count = q2_refcount_get(&q->g, (const void *)b->words, p.index);
    meta_put(q->meta, b);
    return 0;
}

int q2_refs_first_used(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, uint64_t *ret_cluster)
{
    uint64_t end = cluster + n;
    while (cluster < end) {
        struct place p;
        if (place_of(q, cluster, &p) < 0) {
            cluster = ((cluster >> q->g.block_bits) + 1) << q->g.block_bits;      /* no block: all 0 */
            continue;
        }
        struct meta_block *b;
        int r = q2_block_get(co, q, &q->kind_ref, p.slice_off, &b);
        if (r < 0)
            return r;
        uint64_t i = 0, m = min_u64(p.left, end - cluster);
        while (i < m && q2_refcount_get(&q->g, (const void *)b->words, p.index + i) == 0)
            i++;
        meta_put(q->meta, b);
        cluster += i;
        if (i < m)
            break;
    }
    *ret_cluster = min_u64(cluster, end);
    return 0;
}

int q2_refs_end(struct co *co, struct q2_image *q, uint64_t *ret_end)
{
    uint64_t per_slice = (uint64_t)q->slice_bytes * 8 / q->g.refcount_bits;
    *ret_end = 0;
    for (uint64_t ti = q->rt_entries; ti-- > 0;) {
        for (uint64_t at = q->rt[ti] ? q->g.cluster_size : 0; at > 0; at -= q->slice_bytes) {
            struct meta_block *b;
            int r = q2_block_get(co, q, &q->kind_ref, q->rt[ti] + at - q->slice_bytes, &b);
            if (r < 0)
                return r;
            uint64_t i = per_slice;
            while (i > 0 && q2_refcount_get(&q->g, (const void *)b->words, i - 1) == 0)
                i--;
            meta_put(q->meta, b);
            if (i > 0) {
                *ret_end = (ti << q->g.block_bits) + (at / q->slice_bytes - 1) * per_slice + i;
                return 0;
            }
        }
    }
    return 0;
}

static int check_slice(const struct q2_image *q, const struct meta_block *b, const struct place *p, uint64_t n, int64_t delta)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t c = q2_refcount_get(&q->g, (const void *)b->words, p->index + i);
        if (delta > 0 && q->g.refcount_max - c < (uint64_t)delta)
            return -ERANGE;
        if (delta < 0 && c < (uint64_t)-delta)
            return -EUCLEAN;
    }
    return 0;
}

static void apply_slice(struct q2_image *q, struct meta_block *b, const struct place *p, uint64_t n, int64_t delta)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t c = q2_refcount_get(&q->g, (const void *)b->words, p->index + i);
        q2_refcount_put(&q->g, (void *)b->words, p->index + i, c + (uint64_t)delta);
    }
    uint32_t from = (uint32_t)(p->index * q->g.refcount_bits / 8);
    uint32_t to = (uint32_t)(((p->index + n) * q->g.refcount_bits + 7) / 8);
    meta_dirty(q->meta, b, from, to);
}

/* One slice's share. Returns how many clusters were changed. */
static int64_t add_some(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, int64_t delta)
{
    struct place p;
    int r = place_of(q, cluster, &p);
    if (r == 0)
        r = q2_guard_may_change(co, q, q->rt[cluster >> q->g.block_bits], Q2_K_BLOCK);
    if (r < 0)
        return r;
    struct meta_block *b;
    r = q2_block_get(co, q, &q->kind_ref, p.slice_off, &b);
    if (r < 0)
        return r;
    n = min_u64(n, p.left);
    r = check_slice(q, b, &p, n, delta);
    if (r == 0)
        apply_slice(q, b, &p, n, delta);
    meta_put(q->meta, b);
    return r < 0 ? r : (int64_t)n;
}

int q2_refs_add(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, int64_t delta)
{
    uint64_t done = 0;
    int early = q2_counts_in_memory(q) ? q2_unclean_add(co, q, cluster, n, delta) : 1;
    if (early <= 0)
        return early;
    q2_scrub_touch(q, cluster, n);
    while (done < n) {
        int64_t r = add_some(co, q, cluster + done, n - done, delta);
        if (r < 0) {
            while (done > 0) {           /* undo; what cannot be undone is a leak, never a count too low */
                int64_t u = add_some(co, q, cluster, done, -delta);
                if (u <= 0)
                    break;
                cluster += (uint64_t)u;
                done -= (uint64_t)u;
            }
            return (int)r;
        }
        done += (uint64_t)r;
    }
    q2_scrub_touch(q, cluster, n);               /* again: one may have begun while a slice was read */
    return 0;
}
