/* SPDX-License-Identifier: MIT
 *
 * q2_reclaim.c: gives back what a crash left counted in the frontier that it recorded (P1, D4), behind the live disk.
 *
 * Purpose     Walks every reference once, and lowers the counts of clusters of the recorded range that nothing names.
 * Owns        The bitmap of clusters seen in the range, while it runs.
 * Invariants  C1  A cluster is given back only if no table named it at the start of this opening, and this opening
 *                 never handed it out: it was counted from the start, and the allocator takes only what is not counted
 *                 in the range while this runs (scan) or what lies behind the file as it was opened (growth).
 *             C2  A reference that is dropped while the walk runs counts as seen: the drop lowers that count, not we. So does a
 *                 cluster that a scrub frees meanwhile: it may be in use again before the walk ends.
 *             C3  All is read inside one epoch section (q2_survey.c): no table that it may still read is freed and reused.
 *             C4  A walk that met any fault gives nothing back.
 * Order       What a killed process wrote and never made durable looks, to us, like the rest: a barrier makes the tables
 *             that were walked durable before anything is given back (Q9). Then counts only fall.
 * Concurrency Home loop, one coroutine of a->drops; stops early when the image closes, or stands still for a snapshot (q2_alloc_halt_begin).
 * Failure     Nothing is given back; the autoclear bit stays for the next opening.
 *             It is no scrub of a range: a scrub compares with the stored counts of the whole image, leaves out what was touched and
 *             tells what is wrong, in memory that follows the file. This asks one bit of each cluster of one range, whose clusters
 *             nobody else can take meanwhile (C1), so it needs no counts, no marks and no second look. What they share, the
 *             walk over an image in use, is q2_survey.c.
 * Tests       crash explorer (leak bound over repeated crashes), interop kill tests, q2_scrub_test.c
 */
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_survey.h"

struct reclaim {
    struct q2_image *q;
    uint64_t start, end;                 /* clusters */
    uint64_t *seen;                      /* bit per cluster of the range */
};

static void mark(struct reclaim *r, uint64_t from, uint64_t to)
{
    for (uint64_t c = max_u64(from, r->start); c < to && c < r->end; c++)
        r->seen[(c - r->start) / 64] |= 1ull << ((c - r->start) % 64);
}

void q2_reclaim_saw(struct q2_alloc *a, uint64_t cluster, uint64_t n)
{
    mark(a->reclaim, cluster, cluster + n);
}

static int see(struct co *co, void *arg, const struct q2_ref *ref)
{
    struct reclaim *r = arg;
    (void)co;
    if (r->q->alloc->closing || r->q->alloc->halted)         /* who halts has stopped the guests, and waits for this */
        return -ECANCELED;
    uint32_t bits = r->q->g.cluster_bits;
    if (ref->bytes)
        mark(r, ref->off >> bits, ((ref->off + ref->bytes - 1) >> bits) + 1);
    return 0;
}

/* One cluster that nothing names: counted it is given back, not counted it may be used. It is counted more than once when it was being
 * filled with compressed clusters (q2_pack.c). */
static int give_back(struct co *co, struct q2_image *q, uint64_t c)
{
    uint64_t n;
    int rc = q2_refs_get(co, q, c, &n);
    if (rc == 0 && n > INT64_MAX)
        return 0;
    if (rc == 0 && n)
        rc = q2_refs_add(co, q, c, 1, -(int64_t)n);
    if (rc == 0 && !q2_hits_metadata(q, c << q->g.cluster_bits))
        rc = rset_add(&q->alloc->ready, c, c + 1, Q2_READY_PROVED);
    return rc;
}

static void reclaim_co(struct co *co, void *arg)
{
    struct reclaim *r = arg;
    struct q2_image *q = r->q;
    struct q2_alloc *a = q->alloc;
    struct q2_survey survey = { .q = q, .ref = see, .strict = true, .arg = r };
    int rc = q2_survey(co, &survey);             /* C3, C4 */
    if (rc == 0)
        rc = meta_flush(co, q->meta);
    co_lock(co, &a->mx);
    for (uint64_t i = 0; rc == 0 && i < r->end - r->start; i++) {
        if (i % 64 == 0 && r->seen[i / 64] == UINT64_MAX)
            i += 63;                     /* a range that a long run filled is mostly this */
        else if (!(r->seen[i / 64] >> (i % 64) & 1))
            rc = give_back(co, q, r->start + i);
        if (i % 4096 == 4095)
            co_yield(co);
    }
    a->reclaim = NULL;
    a->reclaim_unfinished = rc < 0;
    co_unlock(&a->mx);
    free(r->seen);
    free(r);
    co_group_leave(&a->drops);
}

void q2_reclaim_start(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    const struct q2_header *h = &q->h;
    if (!h->has_frontier || !(h->autoclear & Q2_AUTOCLEAR_FRONTIER))
        return;
    uint64_t start = h->frontier_start >> q->g.cluster_bits, end = min_u64(h->frontier_end >> q->g.cluster_bits, a->end);
    struct reclaim *r = end > start ? calloc(1, sizeof *r) : NULL;
    uint64_t *seen = r ? calloc(div_up(end - start, 64), 8) : NULL;
    if (!seen) {
        free(r);
        a->reclaim_unfinished = end > start;
        return;                                  /* the bit stays: the next opening tries again */
    }
    *r = (struct reclaim){ .q = q, .start = start, .end = end, .seen = seen };
    a->reclaim = r;
    a->reclaim_start = start;
    a->reclaim_end = end;
    co_group_enter(&a->drops);
    if (rt_spawn(q->im.home, reclaim_co, r) < 0) {
        a->reclaim = NULL;
        a->reclaim_unfinished = true;
        free(seen);
        free(r);
        co_group_leave(&a->drops);
    }
}

bool q2_reclaim_unfinished(const struct q2_image *q) { return q->alloc && q->alloc->reclaim_unfinished; }
