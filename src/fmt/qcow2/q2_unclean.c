/* SPDX-License-Identifier: MIT
 *
 * q2_unclean.c: serving an image that was not closed cleanly, before its counts are known.
 *
 * Purpose     Lets reads and writes begin at once, whatever the size, with nothing of the counts and as little as possible of
 *             the tables believed.
 * Owns        q->unclean, q->distrust_end, q->l1_bad.
 * Invariants  U1  Allocations come from behind the end of the file as it was found. So a cluster there is ours, and no old
 *                 cluster gains a reference while the image is unclean. A device has no such end: they wait until it is known
 *                 where its used part ends (q2_edge.c), and that is the end from then on. Before, every cluster is old.
 *             U2  No old cluster is written, be it data or a table: COPIED counts for nothing there, a write takes a new cluster.
 *                 Two owners that a crash has left are told apart by the scrub before either is written.
 *             U3  An old table that names a place at or behind the old end names nothing: it is never followed, never taken for
 *                 one of ours; it reads as a repair leaves it. Tables at places of ours hold only what was sanitised or written by us.
 *             U4  Old clusters are not used again before the end: one that loses a reference is found by the scrub. Ours are
 *                 counted in memory, and freed and used again as always.
 *             U5  Trust comes back in one step, while no request holds a cluster (else a write in place could overlap the
 *                 copy of the same cluster), and a grace period after the last old cluster has lost its count without one (U4):
 *                 somebody may be reading it still (D3).
 *             U6  With an external data file the image itself holds tables alone, and U1 to U5 speak of those. A cluster of
 *                 the data file can belong to nothing but the guest cluster at its own offset (q2_data.c), whatever happened: it
 *                 is written in place as always, once its table is one of ours.
 *             U7  Persistent bitmaps are read, and go on lying where they lie, until something wants to write in place what is old
 *                 of them: then the set is written anew as a whole (q2_bms_renew), and that is ours.
 *             U8  Nothing waits for the scrub while it holds what the scrub, or its end, waits for: requests wait before they
 *                 take a lock (q2_unclean_room_wait). The scrub itself waits for nobody to get clusters.
 * Order       The dirty bit stays until the counts are durable (q2_scrub.c). Only the length of the file must be durable before
 *             a table points there (q2_frontier.c).
 * Concurrency Home loop; distrust_end and l1_bad are read on any.
 * Failure     A request that meets damage is -EIO; the image is not marked corrupt for it, the scrub reports and mends.
 * Tests       q2_scrub_test.c, q2_beside_test.c, crash explorer (lazy-*, *-hurt), tests/interop/test_q2_scrub.py
 */
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_check_priv.h"

bool q2_unclean_wanted(const struct q2_image *q)
{
    return q->h.incompat & Q2_INCOMPAT_DIRTY && q->opts.unclean_ok && !q->im.read_only && !q->check_mode;
}

/* ---- the L1 table ---- */

static bool l1_is_outside(const struct q2_image *q, uint64_t raw)
{
    return (raw & Q2_L1E_OFF) >> q->g.cluster_bits >= q->unclean->first;
}

static bool l1_is_bad(const struct q2_image *q, uint64_t raw)
{
    struct q2_l1e e;
    return !q2_l1e_decode(&q->g, raw, &e) || (e.l2_off && q2_hits_metadata(q, e.l2_off));
}

/* The whole table is in memory: it is looked through at once. What names nothing is replaced, as a repair does. */
static int find_bad_l1(struct q2_image *q)
{
    const struct q2_l1 *l1 = atomic_load(&q->l1);
    for (uint64_t i = 0; i < l1->entries; i++) {
        uint64_t raw = be64_word(atomic_load_explicit(&l1->words[i], memory_order_relaxed));
        if (l1_is_outside(q, raw)) {
            q2_l1_set(q, i, 0);
            q->unclean->mended++;
            continue;
        }
        if (!l1_is_bad(q, raw))
            continue;
        _Atomic uint64_t *bad = atomic_load(&q->l1_bad);
        if (!bad && !(bad = calloc(div_up(l1->entries, 64), sizeof *bad)))
            return -ENOMEM;
        atomic_fetch_or(&bad[i / 64], 1ull << (i % 64));
        atomic_store(&q->l1_bad, bad);
    }
    return 0;
}

bool q2_unclean_l1_bad(const struct q2_image *q, uint64_t index)
{
    _Atomic uint64_t *bad = atomic_load_explicit(&((struct q2_image *)(uintptr_t)q)->l1_bad, memory_order_acquire);
    return bad && atomic_load_explicit(&bad[index / 64], memory_order_acquire) >> (index % 64) & 1;
}

void q2_unclean_l1_mended(struct q2_image *q, uint64_t index)
{
    _Atomic uint64_t *bad = atomic_load(&q->l1_bad);
    atomic_fetch_and_explicit(&bad[index / 64], ~(1ull << (index % 64)), memory_order_release);
    q->unclean->mended++;
}

/* ---- life ---- */

int q2_unclean_begin(struct q2_image *q, struct byre_err *err)
{
    struct q2_unclean *u = calloc(1, sizeof *u);
    if (!u)
        return byre_fail(err, NOMEM, "%s: no memory", q->name);
    u->file_bytes = q->file_bytes_at_open;
    u->first = div_up(u->file_bytes, q->g.cluster_size);
    u->in_memory = true;
    u->edge = q->im.store->traits.regular ? Q2_EDGE_KNOWN : Q2_EDGE_SOUGHT;
    q->unclean = u;
    q2_fixed_update(q);
    if (q2_counts_init(&u->counts, 0) || find_bad_l1(q))
        return byre_fail(err, NOMEM, "%s: no memory", q->name);
    atomic_store_explicit(&q->distrust_end, u->first << q->g.cluster_bits, memory_order_release);
    atomic_store(&q->im.unclean, true);
    return 0;
}

void q2_unclean_end(struct co *co, struct q2_image *q)
{
    struct co_range all;
    epoch_wait_stamp(co, q->im.epoch, epoch_stamp(q->im.epoch));             /* U5; without the lock, for which somebody inside may wait */
    co_range_lock(co, &q->locks, &all, 0, UINT64_MAX);
    atomic_store_explicit(&q->distrust_end, 0, memory_order_release);
    q2_alloc_scan_again(q, q->unclean->first);
    co_range_unlock(&q->locks, &all);
    struct q2_unclean *u = q->unclean;
    q->unclean = NULL;
    atomic_store(&q->im.unclean, false);
    co_wake_all(&u->changed);
    q2_counts_fini(&u->counts);
    free(u);
}

/* ---- a device ---- */

int q2_unclean_await(struct co *co, struct q2_image *q)
{
    while (q->unclean && q->unclean->edge == Q2_EDGE_SOUGHT)
        co_wait(co, &q->unclean->changed);
    return q->unclean && q->unclean->edge == Q2_EDGE_NONE ? -EIO : 0;
}

/* What requests leave to the scrub, and to one another's last steps. */
#define ROOM_BYTES (64ull << 20)
#define ROOM_CLUSTERS_MIN 64u

static bool little_room(const struct q2_image *q)
{
    const struct q2_alloc *a = q->alloc;
    uint64_t end = q->unclean->file_bytes >> q->g.cluster_bits, behind = end > a->end ? end - a->end : 0;
    return behind + a->frontier.total + a->counted.total + a->ready.total < max_u64(ROOM_BYTES >> q->g.cluster_bits, ROOM_CLUSTERS_MIN);
}

void q2_unclean_room_wait(struct co *co, struct q2_image *q)
{
    while (q->unclean && !q->im.store->traits.regular && !q->unclean->given_up && (q->unclean->edge == Q2_EDGE_SOUGHT || little_room(q)))
        co_wait(co, &q->unclean->changed);
}

void q2_unclean_scrub(struct q2_image *q, bool begins)
{
    struct q2_unclean *u = q->unclean;
    u->given_up = !begins;
    if (u->edge != Q2_EDGE_KNOWN)
        u->edge = begins ? Q2_EDGE_SOUGHT : Q2_EDGE_NONE;
    co_wake_all(&u->changed);
}

void q2_unclean_found(struct q2_image *q, uint64_t first)
{
    struct q2_unclean *u = q->unclean;
    struct q2_alloc *a = q->alloc;
    INV(U1, !a->frontier.total && !a->counted.total && !a->ready.total && !u->counts.n && first <= a->end);
    u->first = a->end = a->zero_from = a->settled_to = first;
    a->unsettled_count = 0;
    atomic_store_explicit(&q->distrust_end, first << q->g.cluster_bits, memory_order_release);
    u->edge = Q2_EDGE_KNOWN;
    co_wake_all(&u->changed);
}

void q2_unclean_free(struct q2_image *q)
{
    if (q->unclean)
        q2_counts_fini(&q->unclean->counts);
    free(q->unclean);
    free((void *)atomic_load(&q->l1_bad));
}

/* ---- entries ---- */

/* Does it name a byte at or behind `end`? */
static bool stale(const struct q2_image *q, uint64_t end, const struct q2_l2e *e)
{
    uint64_t bytes = e->kind == Q2_COMPRESSED ? e->comp_bytes : q->g.cluster_size;
    return e->host >= end || end - e->host < bytes;
}

bool q2_distrusted_entry(const struct q2_image *q, uint64_t distrust_end, uint64_t slice_off, struct q2_l2e *e)
{
    if (e->kind == Q2_UNALLOCATED || e->kind == Q2_ZERO_PLAIN || q->g.data_file)        /* U6 */
        return true;
    if (slice_off < distrust_end && stale(q, distrust_end, e)) {             /* U3: it reads as it will when it is mended */
        uint32_t zero = e->kind == Q2_COMPRESSED ? Q2_SUB_ALL : e->zero | e->alloc;
        *e = q->g.ext_l2 ? (struct q2_l2e){ .kind = Q2_UNALLOCATED, .zero = zero } : (struct q2_l2e){ .kind = Q2_ZERO_PLAIN };
        return true;
    }
    if (e->kind != Q2_COMPRESSED && q2_hits_metadata(q, e->host))
        return false;
    if (e->host < distrust_end)
        e->copied = false;                                       /* U2 */
    return true;
}

void q2_unclean_sanitise(struct q2_image *q, uint64_t *words)
{
    const struct q2_geom *g = &q->g;
    uint64_t end = q->unclean->first << g->cluster_bits;
    unsigned step = g->l2_entry_bytes / 8;
    if (g->data_file)                        /* U6 */
        return;
    for (uint64_t i = 0; i < g->cluster_size / 8; i += step) {
        uint64_t raw = be64_word(words[i]);
        struct q2_l2e e;
        bool known = g->ext_l2 ? q2_l2x_decode(g, raw, be64_word(words[i + 1]), &e) : q2_l2e_decode(g, raw, &e);
        if (known && (e.kind == Q2_UNALLOCATED || e.kind == Q2_ZERO_PLAIN))
            continue;
        uint64_t off = raw & Q2_E_COMPRESSED ? raw & g->coff_mask : raw & Q2_L2E_OFF;
        if (known ? !stale(q, end, &e) : off < end)
            continue;
        words[i] = be64_word(g->ext_l2 || !g->zero_clusters ? 0 : Q2_E_ZERO);   /* what a repair makes of it */
        if (g->ext_l2) {
            uint64_t bits = be64_word(words[i + 1]);
            words[i + 1] = be64_word(raw & Q2_E_COMPRESSED ? (uint64_t)Q2_SUB_ALL << 32 : (bits | bits << 32) & ~(uint64_t)UINT32_MAX);
        }
        q->unclean->mended++;
    }
}

/* ---- counts in memory ---- */

int q2_unclean_room(struct q2_image *q, uint64_t end)
{
    struct q2_unclean *u = q->unclean;
    return q2_counts_grow(&u->counts, end - u->first);
}

int q2_unclean_get(struct q2_image *q, uint64_t cluster, uint64_t *ret)
{
    struct q2_unclean *u = q->unclean;
    if (cluster < u->first)
        return -EIO;                                             /* nobody knows yet (U4) */
    *ret = q2_counts_get(&u->counts, cluster - u->first);
    return 0;
}

int q2_unclean_add(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, int64_t delta)
{
    struct q2_unclean *u = q->unclean;
    while (u->frozen)
        co_wait(co, &u->thawed);
    if (!u->in_memory)
        return 1;                                                /* they are in the image now */
    if (cluster < u->first || cluster + n - u->first > u->counts.n)
        return -EIO;
    for (uint64_t i = cluster - u->first; i < cluster + n - u->first; i++) {
        uint64_t c = q2_counts_get(&u->counts, i);
        if (delta > 0 && q->g.refcount_max - c < (uint64_t)delta)
            return -ERANGE;
        if (delta < 0 && c < (uint64_t)-delta)
            return -EUCLEAN;
    }
    for (uint64_t i = cluster - u->first; i < cluster + n - u->first; i++)
        if (q2_counts_set(&u->counts, i, q2_counts_get(&u->counts, i) + (uint64_t)delta)) {
            for (uint64_t j = cluster - u->first; j < i; j++) {
                int r = q2_counts_set(&u->counts, j, q2_counts_get(&u->counts, j) - (uint64_t)delta);
                ASSERT(r == 0);                                  /* a chunk never becomes narrower */
            }
            return -ENOMEM;
        }
    return 0;
}
