/* SPDX-License-Identifier: MIT
 *
 * q2_drop.c: quarantine. How a cluster that lost a pointer becomes free again (D3, Q9).
 *
 * Purpose     Collects dropped references, and after the pass that makes the unlinking durable and a grace period,
 *             punches what nobody owns any more, lowers the counts, and offers the clusters for use.
 * Owns        a->dropping, a->extra and a->spare (dropped since the last freeze), one batch per pass behind that, and a->kept: what
 *             could not be released for a reason that may pass.
 * Invariants  I1  A reference dropped before a freeze is in the batch of that freeze, so its table change is in
 *                 the same pass (meta I5).
 *             I2  Between drop and the end of its batch the cluster stays counted: it cannot be found by the scan.
 *             I3  A punch has completed before the count falls to 0 and the cluster is offered.
 *             I5  What is in a batch has not been released: a part leaves it in the moment in which its count falls. So the same
 *                 batch can be worked off again, and a scrub is told of all that is still to be released (q2_drop_each).
 *             I6  Whether a reference is the last one is decided under mx, where counts fall: two batches may hold the last two of a
 *                 cluster, and the second one frees it.
 *             I4  What other tables name as metadata, or what nothing counts, is never punched or freed: the image is damaged.
 * Order       Q9, Q11: table durable (pass) -> grace period -> punch -> count lowered in memory -> ready. The lowered count
 *             reaches the disk with a later pass; a crash before that leaks.
 * Concurrency Home loop; a batch is worked off by a coroutine of its own. Bounded: past Q2_QUARANTINE_MAX clusters
 *             a pass is started at once.
 * Failure     Out of memory, counts that cannot be read or written: the clusters stay counted and never are reused early; the batch is
 *             kept, and tried again with the next pass, when space is short, and at the close (G.005). What is left then, what was
 *             damaged, and what exceeds Q2_KEPT_MAX leaks (a->lost) and is told at the close. A failed punch does not keep a
 *             cluster from reuse: it only keeps its blocks on the disk.
 * Tests       q2_kept_test.c; crash explorer: discard racing with rewrite; mutants MUT_FREE_*; tests/faults: no leak after one failure.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

#define Q2_QUARANTINE_MAX (1u << 16)     /* clusters in `dropping` that start a pass */

#define Q2_KEPT_MAX (1u << 16)           /* ranges of batches that are kept: a few MiB */

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

static uint64_t release_run(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint32_t tag);

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

/* No memory: there is room for a few, until a freeze finds some. */
static void drop_spare(struct q2_alloc *a, uint64_t c, uint64_t n, uint32_t tag)
{
    struct q2_drop_spare *last = a->spare_count ? &a->spare[a->spare_count - 1] : NULL;
    if (last && last->cluster + last->n == c && last->tag == tag)
        last->n += n;
    else if (a->spare_count < Q2_DROP_SPARE)
        a->spare[a->spare_count++] = (struct q2_drop_spare){ c, n, tag };
    else
        a->lost += n;
}

static void drop_one_run(struct q2_alloc *a, uint64_t c, uint64_t n, uint32_t tag)
{
    if (!rset_overlaps(&a->dropping, c, c + n)) {
        if (rset_add(&a->dropping, c, c + n, tag) < 0)
            drop_spare(a, c, n, tag);
        return;
    }
    for (uint64_t i = c; i < c + n; i++) {       /* compressed clusters share host clusters */
        bool again = rset_overlaps(&a->dropping, i, i + 1);
        if (again ? !remember_extra(a, i) : rset_add(&a->dropping, i, i + 1, tag) < 0)
            drop_spare(a, i, 1, tag);
    }
}

static void pour_spare(struct q2_alloc *a)
{
    struct q2_drop_spare s[Q2_DROP_SPARE];
    unsigned n = a->spare_count;
    memcpy(s, a->spare, n * sizeof *s);
    a->spare_count = 0;
    for (unsigned i = 0; i < n; i++)
        drop_one_run(a, s[i].cluster, s[i].n, s[i].tag);
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
    (void)release_run(co, o->q, o->cluster, o->cluster + o->n, 0);       /* the mutant's leak */
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
    q2_prove_saw(a, cluster, n);
    if (cluster < a->end)                        /* else it is no cluster of this file, whatever an entry says */
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
#ifdef BYRE_MUTANTS
void q2_alloc_drop_cloned(struct q2_image *q, uint64_t cluster, uint64_t n) { drop_at_once(q, cluster, n); }
#endif
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

/* May it succeed later? What cannot be right does not become so; of a damaged image nothing is released any more. */
static bool passes(const struct q2_image *q, int r) { return r != -EUCLEAN && r != -ERANGE && !q->failed; }

/* Lowers the counts of [c, end), all punched if it was the last reference; returns where it failed, or end. Under mx. */
static uint64_t lower(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, bool last, int *ret_r)
{
    while (c < end) {
        uint64_t stop = min_u64(end, q2_refs_slice_end(q, c));       /* whole, or not at all */
        *ret_r = q2_refs_add(co, q, c, stop - c, -1);
        if (*ret_r < 0)
            return c;
        if (last && q2_alloc_freed(q, c, stop) < 0)
            q->alloc->missed += stop - c;        /* free, but out of sight until the next opening */
        if (!last)
            q2_clone_left(q, c, stop - c);
        c = stop;
    }
    return end;
}

/* Under mx (I6): is it still as owners_run found it? Else it is looked at again. */
static bool as_found(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, bool last, int *ret_r)
{
    uint64_t stop = end;
    bool now = last;
    *ret_r = owners_run(co, q, c, end, &stop, &now);
    return *ret_r == 0 && now == last && stop == end;
}

/* A part that has one owner, or one more. Returns up to where the counts were lowered. */
static uint64_t release_part(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, bool last, uint32_t tag, int *ret_r)
{
    struct q2_alloc *a = q->alloc;
    uint64_t to = c;
    if (!last)
        *ret_r = q2_clone_unsettle(co, q);       /* its lock comes before mx */
    if (*ret_r < 0)
        return c;
    if (last && tag == TAG_TABLE)
        q2_prove_spoil(a);
    if (last && !MUTANT(MUT_FREE_SKIP_PUNCH))
        punch(co, q, c, end - c, tag);
    co_lock(co, &a->mx);
    bool same = as_found(co, q, c, end, last, ret_r);
    if (same && last && tag == TAG_TABLE && !meta_forget(q->meta, c << q->g.cluster_bits, (end - c) << q->g.cluster_bits))
        *ret_r = -EUCLEAN;                       /* a second owner that nobody counted works on it */
    if (same && *ret_r == 0)
        to = lower(co, q, c, end, last, ret_r);
    co_unlock(&a->mx);
    if (last && MUTANT(MUT_FREE_SKIP_PUNCH))
        punch(co, q, c, end - c, tag);
    return to;
}

/* Clusters [c, end) lost one reference. Returns from where on they have to be tried again; end: that is over, for good or ill. */
static uint64_t release_run(struct co *co, struct q2_image *q, uint64_t c, uint64_t end, uint32_t tag)
{
    while (c < end) {
        uint64_t stop = end;
        bool last = false;
        int r = q->failed ? -EIO : owners_run(co, q, c, end, &stop, &last);
        if (r == 0 && last)
            r = refuse_metadata(co, q, c, stop, tag);
        uint64_t to = r == 0 ? release_part(co, q, c, stop, last, tag, &r) : c;
        if (r < 0) {
            if (passes(q, r))
                return to;
            q->alloc->lost += end - to;
            (void)q2_judge(co, q, r, "the refcount of the cluster at", to << q->g.cluster_bits);   /* nobody waits for this; later requests are told */
            return end;
        }
        c = to;
    }
    return end;
}

static bool has_tables(const struct rset *s)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(s, at, &x); at = x.end)
        if (x.tag == TAG_TABLE)
            return true;
    return false;
}

/* Further references: they go first, so that the one in the set is the last. false: memory or storage failed. */
static bool lower_extra(struct co *co, struct batch *b)
{
    struct q2_image *q = b->q;
    if (b->extra_count && q2_clone_unsettle(co, q) < 0)
        return false;
    for (size_t i = 0; i < b->extra_count; i++)
        while (b->extra[i].count) {
            int r = q2_refs_add(co, q, b->extra[i].cluster, 1, -1);
            if (r < 0 && passes(q, r))
                return false;
            b->extra[i].count--;
            q->alloc->lost += r < 0;
        }
    return true;
}

/* What is released leaves the set (I5): from the front of a range, which takes no memory. */
static void release_set(struct co *co, struct batch *b)
{
    struct q2_alloc *a = b->q->alloc;
    struct rset_range x;
    if (has_tables(&b->set))
        q2_scrub_wait_walk(co, b->q);            /* one that is being walked is neither punched nor used again */
    for (uint64_t at = 0; rset_next(&b->set, at, &x); at = x.end) {
        uint64_t to = release_run(co, b->q, x.start, x.end, x.tag);
        int r = rset_remove(&b->set, x.start, to);
        ASSERT(r == 0);
        a->quarantined -= min_u64(a->quarantined, to - x.start);
    }
}

static uint64_t batch_ranges(const struct batch *b) { return b->set.count + b->extra_count + 1; }

static uint64_t batch_left(const struct batch *b)
{
    uint64_t n = b->set.total;
    for (size_t i = 0; i < b->extra_count; i++)  /* further references of what is in the set are no further clusters */
        n += b->extra[i].count && !rset_overlaps(&b->set, b->extra[i].cluster, b->extra[i].cluster + 1);
    return n;
}

/* What it still holds leaks. */
static void batch_lose(struct batch *b)
{
    struct q2_alloc *a = b->q->alloc;
    a->lost += batch_left(b);
    a->quarantined -= min_u64(a->quarantined, b->set.total);
    batch_free(b);
}

static void batch_keep(struct batch *b)
{
    struct q2_alloc *a = b->q->alloc;
    if (a->kept_ranges + batch_ranges(b) > Q2_KEPT_MAX) {
        batch_lose(b);
        return;
    }
    a->kept_ranges += batch_ranges(b);
    list_remove(&b->link);
    list_push_back(&a->kept, &b->link);
    co_wake_all(&a->freed);
}

/* Works a batch of a->batches off. false: it is kept, or was given up. */
static bool batch_work(struct co *co, struct batch *b)
{
    stor_event(co, b->q->im.store, STOR_EV_CLUSTER_FREE);
    bool lowered = lower_extra(co, b);
    if (lowered)
        release_set(co, b);
    bool done = lowered && !b->set.count;
    if (done)
        batch_free(b);
    else
        batch_keep(b);
    return done;
}

static void batch_co(struct co *co, void *arg)
{
    struct batch *b = arg;
    struct q2_alloc *a = b->q->alloc;
    (void)batch_work(co, b);
    co_group_leave(&a->drops);
}

static void batch_release(struct meta_free *f)
{
    struct batch *b = (struct batch *)f;
    struct q2_alloc *a = b->q->alloc;
    b->released = true;
    co_group_enter(&a->drops);
    if (rt_spawn(b->q->im.home, batch_co, b) < 0) {
        batch_keep(b);
        co_group_leave(&a->drops);
    }
}

/* ---- what was kept ---- */

/* Once each; not all: until one fails again. */
static void retry(struct co *co, struct q2_image *q, bool all)
{
    struct q2_alloc *a = q->alloc;
    size_t n = 0;
    if (a->retrying)
        return;
    a->retrying = true;
    LIST_FOR(l, &a->kept)
        n++;
    for (bool more = true; n && more && !list_empty(&a->kept); n--) {
        struct batch *b = CONTAINER_OF(list_first(&a->kept), struct batch, link);
        a->kept_ranges -= batch_ranges(b);
        list_remove(&b->link);
        list_push_front(&a->batches, &b->link);  /* older than any there: who settles waits for it */
        more = batch_work(co, b) || all;
    }
    a->retrying = false;
}

static void retry_here(struct co *co, struct q2_image *q, bool all)
{
    co_group_enter(&q->alloc->drops);            /* who waits for everything waits for this */
    retry(co, q, all);
    co_group_leave(&q->alloc->drops);
}

static void retry_co(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    retry(co, q, false);
    co_group_leave(&q->alloc->drops);
}

static void retry_behind(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (list_empty(&a->kept) || a->retrying || a->halted || a->closing)
        return;
    co_group_enter(&a->drops);
    if (rt_spawn(q->im.home, retry_co, q) < 0)
        co_group_leave(&a->drops);
}

uint64_t q2_drop_left(const struct q2_alloc *a)
{
    uint64_t n = a->dropping.total;
    for (unsigned i = 0; i < a->spare_count; i++)
        n += a->spare[i].n;
    LIST_FOR(l, &((struct q2_alloc *)(uintptr_t)a)->kept)
        n += batch_left(CONTAINER_OF(l, const struct batch, link));
    return n;
}

void q2_drop_fini(struct q2_alloc *a)
{
    LIST_FOR(l, &a->kept)
        batch_free(CONTAINER_OF(l, struct batch, link));
    rset_fini(&a->dropping);
    free(a->extra);
}

static void batch_abandon(struct meta_free *f)
{
    batch_lose((struct batch *)f);
}

static void each_of(const struct batch *b, void (*fn)(void *arg, uint64_t first, uint64_t n), void *arg)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&b->set, at, &x); at = x.end)
        fn(arg, x.start, x.end - x.start);
    for (size_t i = 0; i < b->extra_count; i++)  /* its own is in the set of a batch that may have been released by now */
        if (b->extra[i].count)
            fn(arg, b->extra[i].cluster, 1);
}

void q2_drop_each(const struct q2_alloc *a, void (*fn)(void *arg, uint64_t first, uint64_t n), void *arg)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&a->dropping, at, &x); at = x.end)
        fn(arg, x.start, x.end - x.start);
    for (unsigned i = 0; i < a->spare_count; i++)
        fn(arg, a->spare[i].cluster, a->spare[i].n);
    LIST_FOR(l, &((struct q2_alloc *)(uintptr_t)a)->batches)
        each_of(CONTAINER_OF(l, struct batch, link), fn, arg);
    LIST_FOR(l, &((struct q2_alloc *)(uintptr_t)a)->kept)
        each_of(CONTAINER_OF(l, struct batch, link), fn, arg);
}

void q2_drop_freeze(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!a)
        return;
    retry_behind(q);
    pour_spare(a);
    if (!a->dropping.count)
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
    int r = a->dropping.count || a->spare_count ? meta_flush(co, q->meta) : 0;     /* freezes it (I1) */
    uint64_t last = a->batch_number;
    while (r == 0 && (b = oldest(a)) && b->number <= last) {
        if (b->released)
            co_wait(co, &a->freed);
        else
            r = meta_settle_step(co, q->meta);
    }
    if (r == 0)
        retry_here(co, q, false);
    return r;
}

bool q2_drop_settled(const struct q2_image *q)
{
    const struct q2_alloc *a = q->alloc;
    return !a->dropping.count && !a->spare_count && !meta_frees_waiting(q->meta) && !a->drops.n && list_empty(&a->kept);
}

int q2_drop_settle_all(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    for (unsigned i = 0; i < 3 && !q2_drop_settled(q); i++) {
        if (a->dropping.count || a->spare_count) {
            int r = meta_flush(co, q->meta);
            if (r < 0)
                return r;
        }
        int r = meta_settle(co, q->meta);
        if (r < 0)
            return r;
        co_group_wait(co, &a->drops);
        retry_here(co, q, true);
    }
    return 0;
}
