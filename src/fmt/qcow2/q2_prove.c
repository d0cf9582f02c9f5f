/* SPDX-License-Identifier: MIT
 *
 * q2_prove.c: proves, behind the disk, that clusters which the disk counts 0 are free.
 *
 * Purpose     What another program, or an earlier opening, has freed is known by its count alone. That is enough to hand a cluster out,
 *             not to zero those beside it (A3 of q2_ahead.c): a count may be wrong. One walk over all references shows what nothing names.
 * Owns        a->proof: the bits, to the end of the opening (the scan for free clusters goes on by and by).
 * Invariants  F1  Proved is a cluster that is counted 0, that no table named while the walk went by, and that this opening has neither handed
 *                 out nor dropped: nobody could come to name it meanwhile, since for that he has to be given it.
 *             F2  A reference that goes away while the walk runs counts as seen, as does one that was dropped before and is not
 *                 released yet: somebody may still be inside.
 *             F3  Nobody waits for the walk, so it stands in no epoch section. Instead it counts for nothing if a table was released
 *                 meanwhile (then something else may have been read in its place) or if the header names other tables than before.
 *             F4  A walk that met any fault proves nothing.
 *             F5  What something names is not handed out, though it is counted 0. It is out of reach until the next opening.
 * Order       Q9: tables that were walked are durable before anything is zeroed on their word: a killed process may have left them
 *             in the page cache. A flush beside the walk is enough for that, and comes sooner than one behind it: it covers all that
 *             was there when the image was opened; what this opening changes takes its own way through passes, and F1 leaves out
 *             all that lost a reference by it.
 * Cost        It begins when as many first writes have been filled one by one as there are tables to be read: it costs at most about as
 *             much as has been lost for want of it, and disks of which nothing freed is used again never pay. Whole tables are
 *             looked at on the CPU pool. One bit for each cluster of the file.
 * Concurrency Home loop, one coroutine of a->drops; ends early when the image closes, or counts are about to be changed on the disk itself.
 * Failure     Nothing is proved; tried again later, a few times.
 * Tests       q2_prove_test.c (also with the mutants PROVE_*), crash explorer (mutants AHEAD_*)
 */
#include "fmt/qcow2/q2_prove.h"

#include <stdlib.h>

#include "base/assert.h"
#include "fmt/pieces.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_survey.h"
#include "rt/loop.h"

#define CLUSTERS_MAX (UINT64_C(1) << 29)         /* 64 MiB of bits */
#define TRIES_MAX 4u
#define REFS_PER_STEP 512u

struct prove { struct q2_image *q; unsigned refs; struct co_group flush; int flushed; };

/* ---- the bits ---- */

static void mark_word(struct q2_proof *p, uint64_t word, uint64_t bits)
{
    if (bits & ~atomic_load_explicit(&p->named[word], memory_order_relaxed))
        atomic_fetch_or_explicit(&p->named[word], bits, memory_order_relaxed);
}

/* Any thread. */
static void mark(struct q2_proof *p, uint64_t from, uint64_t to)
{
    to = min_u64(to, p->end);
    for (uint64_t c = from; c < to && !MUTANT(MUT_PROVE_BLIND);) {
        uint64_t stop = min_u64(to, (c | 63) + 1), n = stop - c;
        mark_word(p, c / 64, (n == 64 ? UINT64_MAX : (1ull << n) - 1) << c % 64);
        c = stop;
    }
}

static bool has(const struct q2_proof *p, uint64_t c)
{
    return atomic_load_explicit(&p->named[c / 64], memory_order_relaxed) >> c % 64 & 1;
}

static void forget(struct q2_proof *p)
{
    free(p->named);
    p->named = NULL;
    p->end = 0;
}

bool q2_prove_free(const struct q2_alloc *a, uint64_t c)
{
    const struct q2_proof *p = &a->proof;
    return p->state == Q2_PROOF_THERE && c < p->end && !has(p, c);
}

bool q2_prove_named(const struct q2_alloc *a, uint64_t c)
{
    const struct q2_proof *p = &a->proof;
    return p->state == Q2_PROOF_THERE && c < p->end && has(p, c);
}

void q2_prove_saw(struct q2_alloc *a, uint64_t cluster, uint64_t n)
{
    if (a->proof.state == Q2_PROOF_RUNS && !MUTANT(MUT_PROVE_DROPPED))
        mark(&a->proof, cluster, cluster + n);
}

void q2_prove_spoil(struct q2_alloc *a) { a->proof.spoilt = !MUTANT(MUT_PROVE_UNSPOILT); }

void q2_prove_gone(struct q2_alloc *a, uint64_t from, uint64_t to)
{
    struct q2_proof *p = &a->proof;
    for (uint64_t c = from; p->state == Q2_PROOF_THERE && c < min_u64(to, p->end); c++)
        atomic_fetch_and_explicit(&p->named[c / 64], ~(1ull << c % 64), memory_order_relaxed);
}

void q2_prove_fini(struct q2_alloc *a) { forget(&a->proof); }

/* ---- the walk ---- */

static bool stops(const struct q2_alloc *a) { return a->closing || a->halted || a->proof.spoilt; }

static int see(struct co *co, void *arg, const struct q2_ref *r)
{
    struct prove *k = arg;
    struct q2_alloc *a = k->q->alloc;
    uint32_t bits = k->q->g.cluster_bits;
    if (r->bytes)
        mark(&a->proof, r->off >> bits, ((r->off + r->bytes - 1) >> bits) + 1);
    if (++k->refs % REFS_PER_STEP == 0)
        co_breathe(co);
    return stops(a) ? -ECANCELED : 0;
}

/* A whole table, by a worker; one in which something is odd is told entry by entry (F4). */
static int look(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data)
{
    struct prove *k = arg;
    struct q2_proof *p = &k->q->alloc->proof;
    const struct q2_geom *g = &k->q->g;
    uint64_t from = 0, to = 0;           /* clusters that lie one behind the other, not marked yet */
    (void)worker;
    (void)t;
    for (uint64_t at = 0; at < g->cluster_size; at += g->l2_entry_bytes) {
        uint64_t raw = be64_get((const be64 *)(data + at)), off = raw & Q2_L2E_OFF;
        if (g->data_file || raw & Q2_E_COMPRESSED || raw & ~(Q2_L2E_OFF | Q2_E_COPIED | (g->ext_l2 ? 0 : Q2_E_ZERO)) || !is_aligned(off, g->cluster_size))
            return 0;
        if (!off)
            continue;
        if (off >> g->cluster_bits != to) {
            mark(p, from, to);
            from = off >> g->cluster_bits;
        }
        to = (off >> g->cluster_bits) + 1;
    }
    mark(p, from, to);
    return 1;
}

/* On the loop, behind some look(). */
static int looked(void *arg)
{
    const struct prove *k = arg;
    return stops(k->q->alloc) ? -ECANCELED : 0;
}

static void dropped(void *arg, uint64_t first, uint64_t n) { mark(arg, first, first + n); }

/* Does the header name the same tables (F3)? */
static bool same_roots(const struct q2_header *a, const struct q2_header *b)
{
    return a->l1_off == b->l1_off && a->l1_size == b->l1_size && a->rt_off == b->rt_off && a->rt_clusters == b->rt_clusters && a->snapshots_off == b->snapshots_off &&
           a->nb_snapshots == b->nb_snapshots && a->has_bitmaps == b->has_bitmaps && a->bitmap_dir_off == b->bitmap_dir_off && a->bitmap_dir_bytes == b->bitmap_dir_bytes;
}

/* What the scan has found already is told what has come out. Under mx. */
static void tell_ready(struct co *co, struct q2_alloc *a)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&a->ready, at, &x); co_yield(co)) {
        uint64_t from = max_u64(x.start, at), to = min_u64(x.end, from + 4096);
        at = to;
        while ((!x.tag || x.tag == Q2_READY_HOLE) && from < to) {
            bool named = q2_prove_named(a, from);
            uint64_t c = from + 1;
            while (c < to && q2_prove_named(a, c) == named)
                c++;
            int r = named ? rset_remove(&a->ready, from, c) : x.tag ? 0 : rset_add(&a->ready, from, c, Q2_READY_PROVED);
            if (r < 0)
                return;                  /* no memory: it stays as it was */
            from = c;
        }
    }
}

/* Under mx. */
static void ended(struct co *co, struct q2_alloc *a, int r)
{
    struct q2_proof *p = &a->proof;
    p->state = r == 0 ? Q2_PROOF_THERE : r == -EIO || p->tries == TRIES_MAX ? Q2_PROOF_NEVER : Q2_PROOF_NONE;
    p->missed = 0;
    if (r == 0)
        tell_ready(co, a);
    else
        forget(p);
}

static void flush_co(struct co *co, void *arg)
{
    struct prove *k = arg;
    k->flushed = meta_flush(co, k->q->meta);
    co_group_leave(&k->flush);
}

/* Order above. */
static void flush_start(struct prove *k)
{
    co_group_enter(&k->flush);
    k->flushed = rt_spawn(k->q->im.home, flush_co, k);
    if (k->flushed < 0)
        co_group_leave(&k->flush);
}

static void prove_co(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    struct q2_alloc *a = q->alloc;
    struct prove k = { .q = q };
    const struct q2_header before = q->h;
    struct q2_survey s = { .q = q, .ref = see, .bulk = look, .bulked = looked, .strict = true, .unheld = true, .arg = &k,
        .workers = (unsigned)min_u64(rt_cpu_workers(rt_of(co_loop(co))), FMT_PIECES_WORKERS_MAX) };
    flush_start(&k);
    int r = q2_survey(co, &s);
    co_group_wait(co, &k.flush);
    if (r == 0)
        r = k.flushed;
    co_lock(co, &a->mx);
    if (r == 0 && (stops(a) || !same_roots(&before, &q->h)))
        r = -ECANCELED;
    ended(co, a, r);
    co_unlock(&a->mx);
    co_group_leave(&a->drops);
}

/* How many tables have to be read, about. */
static uint64_t price(const struct q2_image *q)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    uint64_t n = 1;
    for (uint64_t i = 0; i < l1->entries; i++)
        n += atomic_load_explicit(&l1->words[i], memory_order_relaxed) != 0;
    return n * (1 + q->h.nb_snapshots);
}

static int start(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    struct q2_proof *p = &a->proof;
    p->named = a->scan_end <= CLUSTERS_MAX ? calloc(div_up(a->scan_end, 64), sizeof *p->named) : NULL;
    if (!p->named)
        return -ENOMEM;
    p->end = a->scan_end;
    p->spoilt = false;
    p->state = Q2_PROOF_RUNS;
    q2_drop_each(a, dropped, p);         /* F2 */
    co_group_enter(&a->drops);
    int r = rt_spawn(q->im.home, prove_co, q);
    if (r < 0)
        co_group_leave(&a->drops);
    return r;
}

void q2_prove_want(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    struct q2_proof *p = &a->proof;
    if (p->state != Q2_PROOF_NONE || q->unclean || a->proved || a->reclaim || a->halted || a->closing || ++p->missed < p->price)
        return;
    p->price = price(q);
    if (p->missed < p->price)
        return;
    p->tries++;
    if (start(q) < 0) {
        forget(p);
        p->state = Q2_PROOF_NEVER;
    }
}
