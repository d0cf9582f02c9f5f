/* SPDX-License-Identifier: MIT
 *
 * q2_drop.c: quarantine. How a cluster that lost a pointer becomes free again (D3, Q9).
 *
 * Purpose     Collects dropped references, and after the pass that makes the unlinking durable and a grace period,
 *             punches what nobody owns any more, lowers the counts, and offers the clusters for use.
 * Owns        a->dropping and a->extra (dropped since the last freeze), one batch per pass behind that.
 * Invariants  I1  A reference dropped before a freeze is in the batch of that freeze, so its table change is in
 *                 the same pass (meta I5).
 *             I2  Between drop and the end of its batch the cluster stays counted: it cannot be found by the scan.
 *             I3  A punch has completed before the count falls to 0 and the cluster is offered.
 *             I4  What other tables name as metadata, or what nothing counts, is never punched or freed: the image is damaged.
 * Order       Q9, Q11: table durable (pass) -> grace period -> punch -> count lowered in memory -> ready. The lowered count
 *             reaches the disk with a later pass; a crash before that leaks.
 * Concurrency Home loop; a batch is worked off by a coroutine of its own. Bounded: past Q2_QUARANTINE_MAX clusters
 *             a pass is started at once.
 * Failure     Out of memory, unreadable counts, failed punch: the clusters stay counted (a leak, a->lost), never reused
 *             early. A failed punch does not keep a cluster from reuse: it only keeps its blocks on the disk.
 * Tests       crash explorer: discard racing with rewrite; mutants MUT_FREE_*.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

#define Q2_QUARANTINE_MAX (1u << 16)     /* clusters in `dropping` that start a pass */

#define TAG_TABLE 1u                      /* blocks of it may be cached */

struct batch {
    struct meta_free f;                  /* first */
    struct q2_image *q;
    struct rset set;
    struct q2_drop_extra *extra;
    size_t extra_count;
    uint64_t number;
    bool released;                       /* it has left meta: it is being worked off */
    struct list_node link;               /* a->batches */
};

static void release_run(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint32_t tag);

static void batch_free(struct batch *b)
{
    list_remove(&b->link);
    rset_fini(&b->set);
    free(b->extra);
    co_wake_all(&b->q->alloc->freed);
    free(b);
}

static bool remember_extra(struct q2_alloc *a, uint64_t cluster)
{
    for (size_t i = a->extra_count; i > 0 && i + 8 > a->extra_count; i--)
        if (a->extra[i - 1].cluster == cluster) {
            a->extra[i - 1].count++;
            return true;
        }
    if (a->extra_count == a->extra_cap) {
        size_t cap = a->extra_cap ? a->extra_cap * 2 : 16;
        void *p = realloc(a->extra, cap * sizeof *a->extra);
        if (!p)
            return false;
        a->extra = p;
        a->extra_cap = cap;
    }
    a->extra[a->extra_count++] = (struct q2_drop_extra){ cluster, 1 };
    return true;
}

static void drop_one_run(struct q2_alloc *a, uint64_t c, uint64_t n, uint32_t tag)
{
    if (!rset_overlaps(&a->dropping, c, c + n)) {
        if (rset_add(&a->dropping, c, c + n, tag) < 0)
            a->lost += n;
        return;
    }
    for (uint64_t i = c; i < c + n; i++) {       /* compressed clusters share host clusters */
        bool again = rset_overlaps(&a->dropping, i, i + 1);
        if (again ? !remember_extra(a, i) : rset_add(&a->dropping, i, i + 1, tag) < 0)
            a->lost++;
    }
}

static void pass_co(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    int r = meta_flush(co, q->meta);
    (void)r;                                     /* the next flush of the guest reports it */
    co_group_leave(&q->alloc->drops);
}

#ifdef BYRE_MUTANTS
struct at_once { struct q2_image *q; uint64_t cluster, n; };
static void at_once_co(struct co *co, void *arg)
{
    struct at_once *o = arg;
    release_run(co, o->q, o->cluster, o->cluster + o->n, 0);
    co_group_leave(&o->q->alloc->drops);
    free(o);
}
static void drop_at_once(struct q2_image *q, uint64_t cluster, uint64_t n)
{
    struct at_once *o = malloc(sizeof *o);
    if (!o)
        return;
    *o = (struct at_once){ q, cluster, n };
    co_group_enter(&q->alloc->drops);
    int r = rt_spawn(q->im.home, at_once_co, o);
    ASSERT(r == 0);
}
#else
#define drop_at_once(q, cluster, n) ((void)0)
#endif

static void drop(struct q2_image *q, uint64_t cluster, uint64_t n, uint32_t tag)
{
    struct q2_alloc *a = q->alloc;
    uint64_t before = a->dropping.total;
    if (MUTANT(MUT_COUNT_DOWN_EARLY) || (tag == TAG_TABLE && MUTANT(MUT_L2_OLD_FREED_EARLY))) {
        drop_at_once(q, cluster, n);
        return;
    }
    if (a->reclaim)
        q2_reclaim_saw(a, cluster, n);
    q2_scrub_touch(q, cluster, n);
    while (n && q2_unclean_is_old(q, cluster) && q->unclean->in_memory) {       /* q2_unclean.c U4 */
        cluster++;
        n--;
    }
    if (!n)
        return;
    drop_one_run(a, cluster, n, tag);
    a->quarantined += a->dropping.total - before;
    if (before < Q2_QUARANTINE_MAX && a->dropping.total >= Q2_QUARANTINE_MAX) {
        co_group_enter(&a->drops);
        if (rt_spawn(q->im.home, pass_co, q) < 0)
            co_group_leave(&a->drops);
    }
}

void q2_alloc_drop(struct q2_image *q, uint64_t cluster, uint64_t n) { drop(q, cluster, n, 0); }
void q2_alloc_drop_packed(struct q2_image *q, uint64_t cluster, uint64_t n)
{
    if (MUTANT(MUT_COMPRESSED_FREED_EARLY))
        drop_at_once(q, cluster, n);
    else
        drop(q, cluster, n, 0);
}
void q2_alloc_drop_moved(struct q2_image *q, uint64_t cluster, uint64_t n)
{
    if (MUTANT(MUT_MOVED_FREED_EARLY))
        drop_at_once(q, cluster, n);
    else
        drop(q, cluster, n, 0);
}
void q2_alloc_drop_table(struct q2_image *q, uint64_t cluster, uint64_t n) { drop(q, cluster, n, TAG_TABLE); }

/* ---- a batch that has become safe ---- */

/* Does a table of a damaged image name metadata as data? That is neither punched nor freed (1.111). */
static int refuse_metadata(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint32_t tag)
{
    uint32_t bits = q->g.cluster_bits;
    int r = q2_guard_need(co, q);
    if (r < 0)
        return r;
    for (uint64_t i = c; i < end; i++)
        if (!q2_guard_clear(q, i << bits)) {
            q2_note(q, i << bits, q->g.cluster_size, "the last reference to the cluster at %#" PRIx64 " was dropped, but metadata lies there", i << bits);
            return -EUCLEAN;
        }
    return tag != TAG_TABLE && meta_cached(q->meta, c << bits, (end - c) << bits) ? -EUCLEAN : 0;
}

/* Length of the run of clusters from c on that have exactly one owner left, or more than one (*ret_last). -EUCLEAN: none. */
static int owners_run(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint64_t *ret_end, bool *ret_last)
{
    uint64_t n;
    int r = q2_refs_get(co, q, c, &n);
    if (r == 0 && n == 0)
        r = -EUCLEAN;
    if (r < 0)
        return r;
    *ret_last = n == 1;
    for (c++; c < end; c++) {
        r = q2_refs_get(co, q, c, &n);
        if (r < 0 || n == 0 || (n == 1) != *ret_last)
            break;
    }
    *ret_end = c;
    return 0;
}

static void punch(struct co *co, struct q2_image *q, uint64_t c, uint64_t n, uint32_t tag)
{
    bool no = tag == TAG_TABLE ? q->opts.tables_no_punch : q->opts.discard_no_punch;
    if (no || !q->im.store->discard_ok)
        return;
    int r = stor_discard(co, q->im.store, c << q->g.cluster_bits, n << q->g.cluster_bits);
    (void)r;                                     /* advisory: the clusters are free all the same */
}

/* Clusters [c, end) lost one reference. */
static void release_run(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint32_t tag)
{
    struct q2_alloc *a = q->alloc;
    while (c < end) {
        uint64_t stop = end;
        bool last = false;
        int r = q->failed ? -EIO : owners_run(co, q, c, end, &stop, &last);
        if (r == 0 && last)
            r = refuse_metadata(co, q, c, stop, tag);
        if (r < 0) {
            a->lost += end - c;
            (void)q2_judge(co, q, r, "the refcount of the cluster at", c << q->g.cluster_bits);   /* nobody waits for this; later requests are told */
            return;
        }
        if (last && !MUTANT(MUT_FREE_SKIP_PUNCH))
            punch(co, q, c, stop - c, tag);
        co_lock(co, &a->mx);
        if (last && tag == TAG_TABLE && !meta_forget(q->meta, c << q->g.cluster_bits, (stop - c) << q->g.cluster_bits))
            r = -EUCLEAN;                        /* a second owner that nobody counted works on it */
        if (r == 0)
            r = q2_refs_add(co, q, c, stop - c, -1);
        if (r < 0 || (last && q2_alloc_freed(q, c, stop) < 0))
            a->lost += stop - c;
        co_unlock(&a->mx);
        (void)q2_judge(co, q, r, "the refcount of the cluster at", c << q->g.cluster_bits);       /* a->lost tells it already */
        if (last && MUTANT(MUT_FREE_SKIP_PUNCH))
            punch(co, q, c, stop - c, tag);
        c = stop;
    }
}

static bool has_tables(const struct rset *s)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(s, at, &x); at = x.end)
        if (x.tag == TAG_TABLE)
            return true;
    return false;
}

static void batch_work(struct co *co, struct batch *b)
{
    struct q2_image *q = b->q;
    struct q2_alloc *a = q->alloc;
    for (size_t i = 0; i < b->extra_count; i++)
        for (uint64_t k = 0; k < b->extra[i].count; k++)
            if (q2_refs_add(co, q, b->extra[i].cluster, 1, -1) < 0)
                a->lost++;
    struct rset_range x;
    if (has_tables(&b->set))
        q2_scrub_wait_walk(co, q);               /* one that is being walked is neither punched nor used again */
    for (uint64_t at = 0; rset_next(&b->set, at, &x); at = x.end)
        release_run(co, q, max_u64(x.start, at), x.end, x.tag);
    a->quarantined -= min_u64(a->quarantined, b->set.total);
    batch_free(b);
}

static void batch_co(struct co *co, void *arg)
{
    struct batch *b = arg;
    struct q2_alloc *a = b->q->alloc;
    batch_work(co, b);
    co_group_leave(&a->drops);
}

static void batch_release(struct meta_free *f)
{
    struct batch *b = (struct batch *)f;
    struct q2_alloc *a = b->q->alloc;
    b->released = true;
    co_group_enter(&a->drops);
    if (rt_spawn(b->q->im.home, batch_co, b) < 0) {      /* no memory: the clusters leak, counted */
        a->lost += b->set.total;
        batch_free(b);
        co_group_leave(&a->drops);
    }
}

static void batch_abandon(struct meta_free *f)
{
    struct batch *b = (struct batch *)f;
    b->q->alloc->lost += b->set.total;
    batch_free(b);
}

void q2_drop_each(const struct q2_alloc *a, void (*fn)(void *arg, uint64_t first, uint64_t n), void *arg)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&a->dropping, at, &x); at = x.end)
        fn(arg, x.start, x.end - x.start);
    LIST_FOR(l, &((struct q2_alloc *)(uintptr_t)a)->batches) {
        const struct batch *b = CONTAINER_OF(l, struct batch, link);
        for (uint64_t at = 0; rset_next(&b->set, at, &x); at = x.end)
            fn(arg, x.start, x.end - x.start);
    }
}

void q2_drop_freeze(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!a || !a->dropping.count)
        return;
    struct batch *b = calloc(1, sizeof *b);
    if (!b)
        return;                                  /* stays in `dropping`: a later freeze tries again */
    b->q = q;
    b->number = ++a->batch_number;
    list_push_back(&a->batches, &b->link);
    b->set = a->dropping;
    rset_init(&a->dropping);
    b->extra = a->extra;
    b->extra_count = a->extra_count;
    a->extra = NULL;
    a->extra_count = a->extra_cap = 0;
    meta_defer_free(q->meta, &b->f, batch_release, batch_abandon);
}

static const struct batch *oldest(const struct q2_alloc *a)
{
    const struct list_node *first = list_first(&a->batches);
    return first ? CONTAINER_OF(first, const struct batch, link) : NULL;
}

int q2_drop_settle(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    const struct batch *b;
    int r = a->dropping.count ? meta_flush(co, q->meta) : 0;     /* freezes it (I1) */
    uint64_t last = a->batch_number;
    while (r == 0 && (b = oldest(a)) && b->number <= last) {
        if (b->released)
            co_wait(co, &a->freed);
        else
            r = meta_settle_step(co, q->meta);
    }
    return r;
}

int q2_drop_settle_all(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    for (unsigned i = 0; i < 3 && (a->dropping.count || meta_frees_waiting(q->meta) || a->drops.n); i++) {
        if (a->dropping.count) {
            int r = meta_flush(co, q->meta);
            if (r < 0)
                return r;
        }
        int r = meta_settle(co, q->meta);
        if (r < 0)
            return r;
        co_group_wait(co, &a->drops);
    }
    return 0;
}
