/* SPDX-License-Identifier: MIT
 *
 * q2_recount.c: the counts of an unclean image reach its refcount structure.
 *
 * Purpose      Writes what was counted of old clusters, and what is kept in memory of ours, into refcount blocks: the present
 *              ones where they are sound and nobody else's, new ones where not. Then counts are in the image.
 * Owns         A new refcount table in memory until it is installed.
 * Invariants   N1 A block or table that is not referenced exactly once, from the refcount table, is not written. A guest's table that
 *                 a crash had left in the same cluster may have been replaced since: what is cached of it is forgotten.
 *              N2 An old cluster that lost a reference while it was counted gets at least one: whether it is free says a later
 *                 round, when the loss is durable (Q9).
 *              N3 Counts of ours stand still from the moment they are copied until the image has them (frozen).
 *              N4 Before the last step the old structure is in force; the image is dirty all the time, so nobody relies on it.
 * Order        Blocks and new table | one header sector if the table has moved (Q7).
 * Concurrency  Home loop; requests run. Whoever changes a count in the last phase waits for it: a few blocks and two barriers.
 * Failure      Nothing has changed but blocks of counts that nobody may rely on; clusters that were taken are given back.
 * Tests        q2_scrub_test.c, q2_beside_test.c, crash explorer (lazy-*, *-hurt)
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_unclean.h"

struct recount {
    struct q2_checker *k;
    struct q2_image *q;
    struct q2_unclean *u;
    uint64_t *rt, entries;               /* host order; entries: a multiple of what a cluster holds */
    uint64_t kept;                       /* of them, from the old table: their blocks may have been there */
    uint64_t rt_cluster, rt_clusters;    /* place of the table */
    bool moved;
    struct q2_run *taken; size_t taken_count;
    uint64_t low, high;
    uint8_t *buf, *old;
};

static uint64_t per_block(const struct recount *c) { return 1ull << c->q->g.block_bits; }

static uint64_t want(const struct recount *c, uint64_t cluster)
{
    if (cluster >= c->u->first)
        return q2_counts_get(&c->u->counts, cluster - c->u->first);
    uint64_t n = q2_refs_wanted(c->k, cluster);
    return n || !q2_marks_has(&c->k->live->touched, cluster) ? n : 1;        /* N2 */
}

static bool is_needed(const struct recount *c, uint64_t i)
{
    uint64_t from = i * per_block(c), to = from + per_block(c), next = q2_counts_next(&c->k->refs, from);
    if (next < to && next < c->u->first)
        return true;
    for (uint64_t n = max_u64(from, c->u->first); n < to && n < c->q->alloc->end; n++)
        if (want(c, n))
            return true;
    for (uint64_t n = from; n < to && n < c->u->first; n++)
        if (want(c, n))
            return true;
    return false;
}

/* Does block i count only old clusters? They stand still. */
static bool only_old(const struct recount *c, uint64_t i) { return (i + 1) * per_block(c) <= c->u->first; }

/* N1 */
static bool becomes_own(const struct recount *c, uint64_t off)
{
    const struct q2_geom *g = &c->q->g;
    return off && is_aligned(off, g->cluster_size) && off >> g->cluster_bits < c->u->first &&
           q2_counts_get(&c->k->refs, off >> g->cluster_bits) == 1 && !q2_marks_has(&c->k->live->touched, off >> g->cluster_bits) &&
           meta_forget(c->q->meta, off, g->cluster_size);
}

static int no_count_overflows(struct co *co, const struct recount *c)
{
    int r = 0;
    for (uint64_t n = q2_counts_next(&c->k->refs, 0); r == 0 && n != Q2_COUNTS_NONE; n = q2_counts_next(&c->k->refs, n + 1)) {
        if (q2_counts_get(&c->k->refs, n) > c->q->g.refcount_max)
            r = -ERANGE;
        else if (n % 4096 == 0)
            r = q2_live_breathe(co, c->k);
    }
    return r;
}

static bool table_becomes_own(const struct recount *c)
{
    const struct q2_header *h = &c->q->h;
    for (uint64_t i = 0; i < h->rt_clusters; i++)
        if (!becomes_own(c, h->rt_off + (i << c->q->g.cluster_bits)))
            return false;
    return h->rt_clusters > 0;
}

/* ---- making room ---- */

static int take(struct co *co, struct recount *c, uint64_t n, uint64_t *ret_cluster)
{
    struct q2_run run;
    void *p = realloc(c->taken, (c->taken_count + 1) * sizeof *c->taken);
    if (!p)
        return -ENOMEM;
    c->taken = p;
    int r = q2_alloc_exact(co, c->q, n, &run);
    if (r < 0)
        return r;
    c->taken[c->taken_count++] = run;
    *ret_cluster = run.cluster;
    return meta_forget(c->q->meta, run.cluster << c->q->g.cluster_bits, n << c->q->g.cluster_bits) ? 0 : -EUCLEAN;
}

static int larger_table(struct co *co, struct recount *c, uint64_t entries)
{
    const struct q2_geom *g = &c->q->g;
    uint64_t clusters = div_up(entries * 8, g->cluster_size), n = (clusters << g->cluster_bits) / 8;
    if (clusters << g->cluster_bits > Q2_RT_BYTES_MAX)
        return -EFBIG;
    uint64_t *rt = realloc(c->rt, n * 8);
    if (!rt)
        return -ENOMEM;
    memset(rt + c->entries, 0, (n - c->entries) * 8);
    c->rt = rt;
    c->entries = n;
    c->rt_clusters = clusters;
    c->moved = true;
    return take(co, c, clusters, &c->rt_cluster);
}

/* ---- writing ---- */

/* First and behind the last 512 bytes in which the new block differs from the old one; false: nowhere. */
static bool difference(const struct recount *c, uint64_t *ret_from, uint64_t *ret_to)
{
    uint64_t cs = c->q->g.cluster_size, from = 0, to = cs;
    while (from < cs && memcmp(c->buf + from, c->old + from, 512) == 0)
        from += 512;
    while (to > from && memcmp(c->buf + to - 512, c->old + to - 512, 512) == 0)
        to -= 512;
    *ret_from = from;
    *ret_to = to;
    return from < to;
}

static int write_block(struct co *co, struct recount *c, uint64_t i)
{
    const struct q2_geom *g = &c->q->g;
    uint64_t per = per_block(c), from = 0, to = g->cluster_size;
    bool was_there = i < c->kept && c->rt[i] >> g->cluster_bits < c->u->first;
    memset(c->buf, 0, g->cluster_size);
    for (uint64_t n = 0; n < per; n++) {
        uint64_t v = want(c, i * per + n);
        if (v)
            q2_refcount_put(g, c->buf, n, v);
    }
    if (was_there) {
        int r = stor_read_exact(co, c->q->im.store, c->old, g->cluster_size, c->rt[i]);
        if (r < 0)
            return r;
        if (!difference(c, &from, &to))
            return 0;
        for (uint64_t n = 0; n < per; n++) {
            uint64_t a = q2_refcount_get(g, c->old, n), b = q2_refcount_get(g, c->buf, n);
            c->low += a < b;
            c->high += a > b;
        }
    }
    return meta_write_now(co, c->q->meta, c->buf + from, to - from, c->rt[i] + from);
}

/* A block wherever there is something to count; written at once if it counts only old clusters. *ret_all: there was one
 * everywhere already. Frozen: only looks. */
static int make_room(struct co *co, struct recount *c, bool *ret_all)
{
    *ret_all = true;
    uint64_t end = div_up(c->q->alloc->end, per_block(c));
    if (end > c->entries) {
        *ret_all = false;
        if (c->u->frozen)
            return 0;
        int r = larger_table(co, c, end + end / 2 + 1);
        if (r < 0)
            return r;
    }
    for (uint64_t i = 0; i < div_up(c->q->alloc->end, per_block(c)) && i < c->entries; i++) {
        uint64_t cluster;
        if (c->rt[i] || !is_needed(c, i))
            continue;
        *ret_all = false;
        if (c->u->frozen)
            return 0;
        int r = take(co, c, 1, &cluster);
        if (r < 0)
            return r;
        c->rt[i] = cluster << c->q->g.cluster_bits;
        if (only_old(c, i) && (r = write_block(co, c, i)) < 0)
            return r;
    }
    return 0;
}

/* The blocks that count only old clusters, or the others. */
static int write_blocks(struct co *co, struct recount *c, bool old)
{
    for (uint64_t i = 0; i < c->entries; i++) {
        int r = c->rt[i] && only_old(c, i) == old ? write_block(co, c, i) : 0;
        if (r < 0)
            return r;
        if (old && c->rt[i] && (r = q2_live_breathe(co, c->k)) < 0)
            return r;
    }
    return 0;
}

static int write_table(struct co *co, struct recount *c)
{
    uint8_t *bytes = malloc(c->entries * 8);
    if (!bytes)
        return -ENOMEM;
    for (uint64_t i = 0; i < c->entries; i++)
        be64_put((be64 *)(void *)(bytes + i * 8), c->rt[i]);
    int r = meta_write_now(co, c->q->meta, bytes, c->entries * 8, c->rt_cluster << c->q->g.cluster_bits);
    free(bytes);
    return r;
}

static int switch_header(struct co *co, struct recount *c)
{
    struct q2_header *h = &c->q->h;
    uint64_t off = h->rt_off;
    uint32_t clusters = h->rt_clusters;
    if (!c->moved)
        return 0;
    h->rt_off = c->rt_cluster << c->q->g.cluster_bits;
    h->rt_clusters = (uint32_t)c->rt_clusters;
    int r = q2_header_sync(co, c->q, 48, 60, META_B_SWITCH_AFTER);
    if (r < 0) {
        h->rt_off = off;
        h->rt_clusters = clusters;
    }
    return r;
}

/* N3: from here on the image has them. */
static void install(struct recount *c)
{
    struct q2_image *q = c->q;
    free(q->rt);
    q->rt = c->rt;
    q->rt_entries = c->entries;
    q2_guard_drop(q);
    c->rt = NULL;
    c->u->in_memory = false;
    if (MUTANT(MUT_UNCLEAN_USED_EARLY))
        q2_alloc_scan_again(q, c->u->first);
    q2_fixed_update(q);
    c->k->live->fixed.corruptions_fixed += c->low;
    c->k->live->fixed.leaks_fixed += c->high;
}

static int last_phase(struct co *co, struct recount *c)
{
    int r = write_blocks(co, c, false);
    if (r == 0)
        r = write_table(co, c);
    if (r == 0)
        r = meta_barrier(co, c->q->meta, META_B_SWITCH_BEFORE);
    if (r == 0)
        r = switch_header(co, c);
    if (r == 0)
        install(c);
    return r;
}

static int run(struct co *co, struct recount *c)
{
    int r = write_blocks(co, c, true);
    if (r == 0)
        r = meta_barrier(co, c->q->meta, META_B_SWITCH_BEFORE);  /* so that the one that others wait for is short */
    for (bool all = false; r == 0 && c->u->in_memory;) {
        r = make_room(co, c, &all);
        c->u->frozen = true;
        if (r == 0)
            r = make_room(co, c, &all);
        if (r == 0 && all)
            r = last_phase(co, c);
        c->u->frozen = false;
        co_wake_all(&c->u->thawed);
    }
    return r;
}

static int begin(struct co *co, struct recount *c)
{
    const struct q2_geom *g = &c->q->g;
    int r = no_count_overflows(co, c);
    if (r < 0)
        return r;
    void *a = NULL, *b = NULL;
    if (posix_memalign(&a, 4096, g->cluster_size) || posix_memalign(&b, 4096, g->cluster_size)) {
        free(a);
        return -ENOMEM;
    }
    c->buf = a;
    c->old = b;
    bool own = table_becomes_own(c);
    c->rt_cluster = c->q->h.rt_off >> g->cluster_bits;
    c->rt_clusters = own ? c->q->h.rt_clusters : 0;
    c->entries = own ? (c->rt_clusters << g->cluster_bits) / 8 : 0;
    c->rt = calloc(c->entries + 1, 8);
    if (!c->rt)
        return -ENOMEM;
    if (!own)
        r = larger_table(co, c, max_u64(c->k->rt_entries, 1));
    c->kept = min_u64(c->entries, c->k->rt_all);
    for (uint64_t i = 0; r == 0 && i < c->kept; i++)
        c->rt[i] = becomes_own(c, c->k->rt[i]) ? c->k->rt[i] : 0;
    return r;
}

int q2_recount(struct co *co, struct q2_checker *k)
{
    struct recount c = { .k = k, .q = k->q, .u = k->q->unclean };
    ASSERT(c.u && c.u->in_memory);
    int r = begin(co, &c);
    if (r == 0)
        r = run(co, &c);
    for (size_t i = 0; r < 0 && i < c.taken_count; i++)
        q2_alloc_return(c.q, &c.taken[i]);
    free(c.taken);
    free(c.rt);
    free(c.buf);
    free(c.old);
    return r;
}
