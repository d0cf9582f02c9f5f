/* SPDX-License-Identifier: MIT
 *
 * q2_bms_load.c: persistent bitmaps: the list at open, content.
 *
 * Purpose      Decides what each entry of the directory is worth, and reads what is needed.
 * Owns         Nothing beyond the call; fills q->bms and im->bitmaps.
 * Invariants   L1  An entry in use is consistent only when it is claimed (B1).
 *              L2  A claimed one whose table does not fit the disk (a resize was cut short) counts as dirty where the table
 *                  says nothing.
 *              L3  What cannot be trusted makes that one bitmap bad; the image opens all the same (G.015).
 * Order        Reads, but for an extension that makes no sense: its autoclear bit goes before the first write.
 * Concurrency  Home loop, before any request; loading also later.
 * Failure      -ENOMEM, -EIO.
 * Tests        tests/interop/test_bitmaps.py, tests/crash, q2_oom_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_bms.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

/* B4. For reading it only must lie in the file. */
static int judge_place(struct co *co, struct q2_image *q, uint64_t off, uint64_t bytes, uint64_t file)
{
    uint64_t n = 0;
    if (!is_aligned(off, q->g.cluster_size) || !range_inside(off, bytes, round_up(file, q->g.cluster_size)))
        return -EUCLEAN;
    if (q->im.read_only || q->check_mode)
        return 0;
    int need = q2_guard_need(co, q);
    if (need < 0)
        return need;
    for (uint64_t at = off; at < off + bytes; at += q->g.cluster_size) {
        if (!q2_guard_clear(q, at) || meta_cached(q->meta, at, q->g.cluster_size))
            return -EUCLEAN;
        if (q->unclean && !q2_unclean_is_old(q, at >> q->g.cluster_bits) && !q2_marks_has(&q->alloc->given, at >> q->g.cluster_bits))
            return -EUCLEAN;             /* behind the old end, and not ours (U3 of q2_unclean.c) */
        if (q->unclean)
            continue;                    /* counts say nothing yet */
        int r = q2_refs_get(co, q, at >> q->g.cluster_bits, &n);
        if (r < 0 || n != 1)
            return r < 0 ? r : -EUCLEAN;
    }
    return 0;
}

int q2_bm_read_table(struct co *co, struct q2_image *q, struct q2_bm *bm)
{
    uint64_t n = bm->d.table_entries, file;
    if (bm->table)
        return 0;
    int r = stor_length(co, q->im.store, &file);
    if (r == 0 && n)
        r = judge_place(co, q, bm->d.table_off, n * 8, file);
    if (r < 0)
        return r;
    uint64_t *t = malloc(max_u64(n, 1) * 8);
    struct iovec slot;
    if (!t)
        return -ENOMEM;
    if (n)
        r = stor_read(co, q->im.store, iov_one(&slot, t, n * 8), bm->d.table_off);
    for (uint64_t i = 0; r == 0 && i < n; i++) {
        t[i] = be64_word(t[i]);
        if (t[i] & ~(Q2_BME_OFF | 1) || ((t[i] & Q2_BME_OFF) && (t[i] & 1)))
            r = -EUCLEAN;
        else if (t[i] & Q2_BME_OFF)
            r = judge_place(co, q, t[i] & Q2_BME_OFF, q->g.cluster_size, file);
    }
    if (r < 0) {
        free(t);
        return r;
    }
    bm->table = t;
    return 0;
}

static int read_bits(struct co *co, struct q2_image *q, struct q2_bm *bm, struct dirty *d)
{
    uint64_t per = q2_bm_per_cluster(q), cs = q->g.cluster_size;
    uint8_t *buf = malloc(cs);
    struct iovec slot;
    int r = buf ? 0 : -ENOMEM;
    for (uint64_t k = 0; r == 0 && k < bm->d.table_entries && k * per < d->bits; k++) {
        if (bm->table[k] == 1)
            dirty_set_bits(d, k * per, per);
        if (!(bm->table[k] & Q2_BME_OFF))
            continue;
        r = stor_read(co, q->im.store, iov_one(&slot, buf, cs), bm->table[k] & Q2_BME_OFF);
        if (r == 0)
            dirty_import(d, k * per, buf, cs);
    }
    if (r == 0 && bm->d.table_entries * per < d->bits)                   /* L2 */
        dirty_set_bits(d, bm->d.table_entries * per, d->bits);
    free(buf);
    return r;
}

int q2_bm_load_content(struct co *co, struct q2_image *q, struct q2_bm *bm)
{
    uint64_t size = atomic_load(&q->im.size);
    struct dirty *d;
    bool fits = bm->d.table_entries == q2_bm_entries(q, size, bm->d.granularity_bits);
    if (!fits && !bm->in_use)
        return -EUCLEAN;
    int r = q2_bm_read_table(co, q, bm);
    if (r == 0)
        r = dirty_new(size, bm->d.granularity_bits, q->im.bitmap_budget, &d);
    if (r < 0)
        return r;
    r = read_bits(co, q, bm, d);
    if (r < 0) {
        dirty_free(d);
        return r;
    }
    bm->pub->bits = d;
    bm->pub->changed |= !fits;
    return 0;
}

/* ---- the list ---- */

static int make_public(struct q2_image *q, struct q2_bm *bm, uint32_t index, bool claimed, struct fmt_bitmap ***tail)
{
    if (!bm->d.name)
        return 0;
    struct fmt_bitmap *b = calloc(1, sizeof *b);
    if (!b || !(b->name = strdup(bm->d.name))) {
        free(b);
        return -ENOMEM;
    }
    (void)q;
    b->persistent = true;
    b->granularity_bits = bm->d.granularity_bits;
    b->bad = bm->d.bad;
    b->enabled = bm->d.flags & Q2_BITMAP_AUTO;
    b->inconsistent = !b->bad && bm->in_use && !claimed;                  /* L1 */
    b->slot = index + 1;
    bm->pub = b;
    **tail = b;
    *tail = &b->next;
    return 0;
}

/* What nobody can make sense of is no longer trusted from the first write on (1.109). */
static int distrust(struct co *co, struct q2_image *q)
{
    if (q->im.read_only)
        return 0;
    uint64_t old = q->h.autoclear;
    q->h.autoclear &= ~(Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_SUPERSETS);
    int r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
    if (r < 0)
        q->h.autoclear = old;
    else
        q2_fixed_update(q);
    return r;
}

static int make_list(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct q2_bitmap *list = NULL;
    uint32_t count = 0;
    int r = q2_bitmaps_load(co, q->im.store, &q->g, &q->h, &list, &count, err);
    if (r == -EINVAL)
        return distrust(co, q);
    if (r < 0 || !count)
        return r;
    struct q2_bms *m = calloc(1, sizeof *m);
    if (!m || !(m->list = calloc(count, sizeof *m->list))) {
        free(m);
        q2_bitmaps_free(list, count);
        return -ENOMEM;
    }
    m->count = count;
    q->bms = m;
    struct fmt_bitmap **tail = &q->im.bitmaps;
    bool claim = q->h.has_supersets && q->h.autoclear & Q2_AUTOCLEAR_SUPERSETS;
    for (uint32_t i = 0; i < count; i++) {
        struct q2_bm *bm = &m->list[i];
        bm->d = list[i];
        bm->in_use = bm->d.flags & Q2_BITMAP_IN_USE;
        bm->old = q->unclean;
        if (r == 0)
            r = make_public(q, bm, i, claim && i < q->h.superset_count, &tail);
    }
    free(list);
    return r;
}

/* Those that record are loaded; a bad one among them spoils itself only (L3). */
static int load_recording(struct co *co, struct q2_image *q)
{
    for (uint32_t i = 0; i < q->bms->count; i++) {
        struct q2_bm *bm = &q->bms->list[i];
        struct fmt_bitmap *b = bm->pub;
        if (!b || b->bad || b->inconsistent || (!b->enabled && !bm->in_use))
            continue;
        int r = q2_bm_load_content(co, q, bm);
        if (r == -EUCLEAN)
            b->bad = bm->d.bad = "its table or its data is damaged";
        else if (r < 0)
            return r;
        bm->kept = r == 0 && b->enabled;
    }
    return 0;
}

/* Something on the disk is not as entering needs it: a table that does not fit, good entries behind those that cannot be
 * claimed, one that does not record and is in use. Then all is written anew, once. */
static bool needs_order(const struct q2_bms *m)
{
    uint32_t n = q2_bms_claimable(m);
    for (uint32_t i = 0; i < m->count; i++) {
        const struct q2_bm *bm = &m->list[i];
        if (bm->pub && bm->pub->changed)
            return true;
        if (bm->pub && bm->pub->bits && (i >= n || !bm->kept))
            return true;
    }
    return false;
}

/* Without the new order: what has no table that fits is as inconsistent as if somebody else had left it in use. */
static void do_without(struct q2_image *q)
{
    for (uint32_t i = 0; i < q->bms->count; i++) {
        struct q2_bm *bm = &q->bms->list[i];
        if (!bm->pub || !bm->pub->changed)
            continue;
        dirty_free(bm->pub->bits);
        bm->pub->bits = NULL;
        bm->pub->changed = bm->kept = false;
        bm->pub->inconsistent = true;
    }
}

static int begin_recording(struct co *co, struct q2_image *q)
{
    int r = load_recording(co, q);
    if (q->unclean) {
        q->bms->waits = true;            /* nothing is taken, and nothing written, before somebody wants to change something */
    } else if (r == 0 && needs_order(q->bms)) {
        r = q2_bms_sync(co, &q->im, NULL);
        if (r == 0 || r == -ENOMEM)
            return r;
        do_without(q);
        r = 0;
    }
    bool any = false;
    for (uint32_t i = 0; i < q->bms->count; i++)
        any |= q->bms->list[i].kept;
    struct q2_ahead n = { 0 };
    if (r == 0 && any)
        r = q2_ahead_make(q, &n);
    if (r == 0)
        q2_ahead_install(q, &n);
    return r;
}

int q2_bms_open(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    int r = q->info_only || q->check_mode ? 0 : make_list(co, q, NULL);
    if (r == 0 && !q->info_only && !q->check_mode && q->opts.outdated && q2_bitmaps_outdated(&q->h))
        q->opts.outdated(q->opts.corrupted_arg, q2_bitmaps_outdated(&q->h));
    if (r == 0 && q->bms && !im->read_only)
        r = begin_recording(co, q);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the persistent bitmaps cannot be read: %s", q->name, strerror(-r)) : 0;
}

int q2_bms_load(struct co *co, struct fmt_image *im, struct fmt_bitmap *b, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT(b->persistent && b->slot && (!b->bits || im->read_only));
    struct q2_bm *bm = &q->bms->list[b->slot - 1];
    int r = b->bits ? 0 : q2_bm_load_content(co, q, bm);
    if ((r == 0 || r == -EUCLEAN) && im->read_only && q2_generation_same(co, q, bm) == -ESTALE) {
        b->inconsistent = true;
        return byre_fail(err, BITMAP_INCONSISTENT, "%s: another program has written the image since it was opened here, and bitmap '%s' with it", q->name, b->name);
    }
    if (r == -EUCLEAN) {
        b->bad = bm->d.bad = "its table or its data is damaged";
        return byre_fail(err, Q2_BITMAPS, "%s: bitmap '%s' cannot be used: %s", q->name, b->name, b->bad);
    }
    return r < 0 ? byre_fail_code(err, IO, r, "%s: bitmap '%s' cannot be read: %s", q->name, b->name, strerror(-r)) : 0;
}
