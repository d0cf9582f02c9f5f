/* SPDX-License-Identifier: MIT
 *
 * q2_bms_enter.c: persistent bitmaps: before a region of the disk is changed for the first time.
 *
 * Purpose      Makes what is on the disk a superset of what is about to happen (G.014).
 * Owns         im->ahead's bits.
 * Invariants   B1, B2, B4 of q2_bms.h
 * Order        First change of all: of an unclean image the set anew (U7 of q2_unclean.c); claim, generation, IN_USE | META_B_BITMAPS (Q16). Each region: bits, new clusters, counts |
 *              META_B_BITMAPS, if a table must name new clusters | tables | META_B_BITMAPS | the guest's write. A new cluster
 *              that reads zero and is settled needs no barrier in front of its entry: the entry replaces one that
 *              says zeros (Q23).
 * Concurrency  Home loop, one at a time (m->mx); those who come meanwhile share the next round and its barrier.
 * Failure      Memory, space, a failed write: the claim is taken back, and the bitmaps are what they are with others,
 *              inconsistent after a crash. Only if even that fails does the guest's request.
 * Tests        tests/crash (mutants MUT_BITMAP_*), kill tests, faults
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_bms.h"

struct entry { uint32_t bitmap; uint64_t k, word; struct q2_run run; };

struct round {
    struct q2_image *q;
    uint8_t *buf;                        /* a cluster */
    struct entry *entries;               /* table entries that change */
    size_t count, cap;
    bool wrote, need_barrier;
};

/* ---- the first change of all ---- */

static bool wants_mark(const struct q2_image *q, const struct q2_bm *bm)
{
    (void)q;
    return bm->in_use || bm->kept || bm->d.bad;
}

static bool any_to_mark(const struct q2_image *q)
{
    for (uint32_t i = 0; i < q->bms->count; i++)
        if (!q->bms->list[i].in_use && wants_mark(q, &q->bms->list[i]))
            return true;
    return false;
}

/* U7 of q2_unclean.c. Nothing is entered, so nothing is being changed. When it fails what lies on the disk cannot be followed: the
 * next attempt is made when the image is closed. */
static bool renew(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    if (!m->waits)
        return true;
    int r = q2_bms_renew(co, q);
    for (uint32_t i = 0; r < 0 && i < m->count; i++)
        if (m->list[i].pub && m->list[i].pub->bits)
            m->list[i].pub->changed = true;
    m->waits = false;
    return r == 0;
}

static int mark(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    bool renewed = renew(co, q);
    uint32_t n = renewed ? q2_bms_claimable(m) : 0;
    int r = n ? q2_bms_claim(co, q, n) : -ENOSPC;
    m->claims = r == 0;
    if (r < 0)
        r = q2_bms_unclaim(co, q);
    if (r == 0)
        r = q2_generation_next(co, q);
    if (r == 0 && !MUTANT(MUT_BITMAP_MARK_LATE))
        r = any_to_mark(q) ? q2_bms_set_flags(co, q, wants_mark) : meta_barrier(co, q->meta, META_B_BITMAPS);
    m->marked = r == 0;
    return r;
}

/* ---- bits ---- */

static struct entry *entry_of(struct round *x, uint32_t bitmap, uint64_t k)
{
    for (size_t i = x->count; i-- > 0;)
        if (x->entries[i].bitmap == bitmap && x->entries[i].k == k)
            return &x->entries[i];
    return NULL;
}

static struct entry *new_entry(struct round *x)
{
    if (x->count == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 16;
        struct entry *p = realloc(x->entries, cap * sizeof *p);
        if (!p)
            return NULL;
        x->entries = p;
        x->cap = cap;
    }
    return &x->entries[x->count++];
}

/* Bits [from, to) of a cluster that there is, in whole sectors. */
static int mark_in_place(struct co *co, struct round *x, const struct q2_bm *bm, uint64_t k, uint64_t from, uint64_t to)
{
    struct q2_image *q = x->q;
    uint64_t base = k * q2_bm_per_cluster(q), a = round_down((from - base) / 8, 512), z = round_up(div_up(to - base, 8), 512);
    q2_bm_fill(q, bm->pub, base + a * 8, x->buf, z - a, true);
    x->wrote = true;
    return meta_write_now(co, q->meta, x->buf, z - a, (bm->table[k] & Q2_BME_OFF) + a);
}

/* The entry says "zeros": a new cluster; without space for one the entry says "ones". */
static int mark_new(struct co *co, struct round *x, uint32_t i, uint64_t k)
{
    struct q2_image *q = x->q;
    struct q2_bm *bm = &q->bms->list[i];
    struct entry *e = new_entry(x);
    if (!e)
        return -ENOMEM;
    *e = (struct entry){ .bitmap = i, .k = k, .word = 1 };
    if (q2_alloc_take(co, q, 1, &e->run) < 0) {
        e->run.count = 0;
        return 0;
    }
    uint64_t off = e->run.cluster << q->g.cluster_bits;
    if (!meta_forget(q->meta, off, q->g.cluster_size)) {
        e->run.count = 0;                /* somebody uses it, whatever its count says: nobody gets it */
        return -EUCLEAN;
    }
    e->word = off;
    x->wrote = true;
    x->need_barrier |= !q2_run_independent(q, &e->run) && !MUTANT(MUT_BITMAP_TABLE_EARLY);
    q2_bm_fill(q, bm->pub, k * q2_bm_per_cluster(q), x->buf, q->g.cluster_size, true);
    return meta_write_now(co, q->meta, x->buf, q->g.cluster_size, off);
}

/* Bits [from, to) of bitmap i. */
static int mark_bits(struct co *co, struct round *x, uint32_t i, uint64_t from, uint64_t to)
{
    struct q2_bm *bm = &x->q->bms->list[i];
    uint64_t per = q2_bm_per_cluster(x->q);
    int r = 0;
    for (uint64_t k; r == 0 && from < to; from = min_u64(to, (k + 1) * per)) {
        k = from / per;
        if (bm->table[k] & Q2_BME_OFF)
            r = mark_in_place(co, x, bm, k, from, min_u64(to, (k + 1) * per));
        else if (!bm->table[k] && !entry_of(x, i, k))
            r = mark_new(co, x, i, k);
    }
    return r;
}

static bool is_due(const struct fmt_ahead *a, const uint64_t *round, uint64_t r)
{
    return (round[r / 64] & ~atomic_load_explicit(&a->entered[r / 64], memory_order_relaxed)) >> (r % 64) & 1;
}

/* Runs of regions of this round that are not entered. false: none at or behind *from. */
static bool next_due(const struct fmt_ahead *a, const uint64_t *round, uint64_t *from, uint64_t *ret_end)
{
    uint64_t r = *from;
    while (r < a->regions && !is_due(a, round, r))
        r++;
    *from = r;
    while (r < a->regions && is_due(a, round, r))
        r++;
    *ret_end = r;
    return *from < r;
}

static int mark_bitmap(struct co *co, struct round *x, uint32_t i)
{
    const struct fmt_ahead *a = atomic_load(&x->q->im.ahead);
    const struct fmt_bitmap *b = x->q->bms->list[i].pub;
    unsigned g = b->granularity_bits;
    int r = 0;
    for (uint64_t from = 0, end; r == 0 && next_due(a, x->q->bms->round, &from, &end); from = end)
        r = mark_bits(co, x, i, (from << a->region_bits) >> g, min_u64(b->bits->bits, (((end << a->region_bits) - 1) >> g) + 1));
    return r;
}

static int write_entries(struct co *co, struct round *x)
{
    struct q2_image *q = x->q;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < q->bms->count; i++)
        if (q->bms->list[i].kept && q->bms->list[i].unsure) {
            x->wrote = true;
            r = q2_bm_write_table(co, q, &q->bms->list[i], 0, q->bms->list[i].d.table_entries);
        }
    for (size_t i = 0; r == 0 && i < x->count; i++) {
        struct q2_bm *bm = &q->bms->list[x->entries[i].bitmap];
        bm->table[x->entries[i].k] = x->entries[i].word;
        x->entries[i].run.count = 0;     /* it may be named on the disk from now on */
        x->wrote = true;
        r = q2_bm_write_table(co, q, bm, x->entries[i].k, x->entries[i].k + 1);
    }
    return r;
}

static int mark_regions(struct co *co, struct q2_image *q)
{
    struct round x = { .q = q };
    int r = 0;
    if (posix_memalign((void **)&x.buf, 4096, q->g.cluster_size))
        return -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < q->bms->count; i++)
        if (q->bms->list[i].kept)
            r = mark_bitmap(co, &x, i);
    if (r == 0 && x.need_barrier)
        r = q2_bms_settle_counts(co, q);
    if (r == 0)
        r = write_entries(co, &x);
    for (size_t i = 0; i < x.count; i++)
        if (x.entries[i].run.count)
            q2_alloc_return(q, &x.entries[i].run);
    if (r == 0 && x.wrote && !MUTANT(MUT_BITMAP_BITS_LATE))
        r = meta_barrier(co, q->meta, META_B_BITMAPS);
    free(x.entries);
    free(x.buf);
    return r;
}

/* ---- entering ---- */

static void enter(struct q2_image *q, const uint64_t *which)
{
    struct fmt_ahead *a = atomic_load(&q->im.ahead);
    for (uint64_t w = 0; w < div_up(a->regions, 64); w++)
        atomic_fetch_or_explicit(&a->entered[w], which ? which[w] : UINT64_MAX, memory_order_release);
}

/* All regions that somebody waits for now. */
static int enter_round(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    uint64_t bytes = div_up(atomic_load(&q->im.ahead)->regions, 64) * 8;
    int r = m->marked ? 0 : mark(co, q);
    if (r < 0)
        return r;
    memcpy(m->round, m->wanted, bytes);
    memset(m->wanted, 0, bytes);
    if (m->claims && !MUTANT(MUT_BITMAP_NO_BITS))
        r = mark_regions(co, q);
    if (r == 0 && m->claims) {
        enter(q, m->round);
    } else {
        r = q2_bms_unclaim(co, q);
        for (uint32_t i = 0; r == 0 && i < m->count; i++)
            m->list[i].lost |= m->list[i].kept;
        m->claims &= r < 0;
        if (r == 0)
            enter(q, NULL);
    }
    memset(m->round, 0, bytes);
    return r;
}

struct call { struct q2_image *q; uint64_t off, len; };

static void want(struct q2_bms *m, const struct fmt_ahead *a, uint64_t off, uint64_t len)
{
    for (uint64_t r = off >> a->region_bits; r <= (off + len - 1) >> a->region_bits && r < a->regions; r++)
        m->wanted[r / 64] |= 1ull << (r % 64);
}

static int enter_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct q2_image *q = c->q;
    struct q2_bms *m = q->bms;
    const struct fmt_ahead *a = atomic_load(&q->im.ahead);
    if (!a || q->failed)
        return a ? -EIO : 0;
    int r = 0;
    want(m, a, c->off, c->len);          /* seen by a round that begins while this one waits */
    co_lock(co, &m->mx);
    if (!fmt_ahead_entered(a, c->off, c->len)) {
        want(m, a, c->off, c->len);      /* a round that failed has taken the wishes with it */
        r = enter_round(co, q);
    }
    co_unlock(&m->mx);
    return r;
}

int q2_bms_enter(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    struct call c = { q2_of(im), off, len };
    return len ? rt_call(co, im->home, enter_home, &c) : 0;
}
