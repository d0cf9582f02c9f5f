/* SPDX-License-Identifier: MIT
 *
 * q2_expand.c: entries of snapshots that read zero by a flag become ones that version 2 can say (FEATURES 1.139).
 *
 * Purpose      In every L2 table that a snapshot has: with nothing below the entry goes, else it gets a cluster of zeros of its own.
 * Owns         struct expand for the time of the call; the clusters until a table may name them.
 * Invariants   X1  What an entry reads does not change, so a table may be changed where it lies although others share it: whoever reads
 *                  it, at whatever crash, finds the zeros (P3).
 *              X2  A new cluster is counted as often as L1 tables lead to its entry (Q1), and is zero, before the entry; what the entry
 *                  kept before loses as many owners after it (Q11). New entries never say COPIED: nobody writes them in place.
 *              X3  Nothing is changed before all of it is known to be possible (N2 of q2_snap.c).
 * Order        Q25: clusters zero, counts up | META_B_EXPAND | tables | META_B_EXPANDED | counts down | META_B_FINAL.
 * Concurrency  Home loop, drained, at rest as N1 of q2_snap.c.
 * Failure      Before the first table: as it was. Behind it the image is sound, some entries are changed, and space may be lost.
 * Tests        tests/cli/amend_test.py, crash explorer (amend), tests/faults
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_amend_priv.h"
#include "fmt/qcow2/q2_snap_priv.h"

struct expand {
    struct q2_image *q;
    struct q2_snap s;                        /* its: the tables that snapshots have, with all their owners; mine: those of the disk */
    bool fill;                               /* something may show from below */
    uint64_t zeros;                          /* entries that are to be changed */
    struct q2_taken taken;                   /* a cluster for each of them, if `fill` */
    size_t run_at; uint64_t run_used;        /* the next one */
    bool written;                            /* tables may name them */
};

/* ---- which tables? ---- */

/* Appends the L1 table of one snapshot. */
static int add_l1(struct co *co, struct expand *x, struct q2_snapshot *it, uint64_t *all, uint64_t *n)
{
    uint64_t *words = q2_snap_words(it->l1_size);
    x->s.it = it;
    int r = words ? q2_snap_read_l1(co, &x->s, words, it->l1_size) : -ENOMEM;
    if (r == 0)
        memcpy(all + *n, words, (size_t)it->l1_size * 8);
    *n += it->l1_size;
    free(words);
    return r;
}

static int list_tables(struct co *co, struct expand *x)
{
    struct q2_image *q = x->q;
    struct q2_snap *s = &x->s;
    uint64_t active = atomic_load_explicit(&q->l1, memory_order_relaxed)->entries, n = active, total = active;
    for (uint32_t i = 0; i < s->old.count; i++)
        total += s->old.snapshots[i].l1_size;
    if (total - active > s->file_bytes / 8)      /* they lie apart from one another: damage, and not a reason to take that much memory */
        return -EUCLEAN;
    uint64_t *all = q2_snap_words(total);
    struct q2_tree mine = { 0 };
    if (!all)
        return -ENOMEM;
    q2_snap_active_words(q, all, active);
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < s->old.count; i++)
        r = add_l1(co, x, &s->old.snapshots[i], all, &n);
    if (r == 0)
        r = q2_tree_init(&s->its, &q->g, s->file_bytes, all, n);
    if (r == 0)
        r = q2_tree_init(&s->mine, &q->g, s->file_bytes, all, active);
    if (r == 0)
        r = q2_tree_init(&mine, &q->g, s->file_bytes, all, active);
    if (r == 0)
        q2_tree_subtract(&s->its, &mine);    /* as many owners there: the disk's alone */
    q2_tree_fini(&mine);
    free(all);
    return r;
}

static bool is_zero(const struct q2_geom *g, uint64_t raw)
{
    uint64_t host;
    return (raw & Q2_E_ZERO) && q2_l2e_plain(g, raw, &host);
}

static int count_zeros(void *arg, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    struct expand *x = arg;
    (void)t;
    (void)changed;
    for (uint64_t i = 0; i < x->q->g.cluster_size / 8; i++)
        x->zeros += is_zero(&x->q->g, be64_word(words[i]));
    return 0;
}

/* ---- clusters ---- */

static int take_clusters(struct co *co, struct expand *x)
{
    struct q2_image *q = x->q;
    int r = 0;
    for (uint64_t left = x->fill ? x->zeros : 0; r == 0 && left;) {
        struct q2_run run;
        r = q2_alloc_take(co, q, left, &run);
        if (r == 0)
            r = q2_taken_keep(q, &x->taken, &run);
        if (r == 0)
            r = stor_zero(co, q->im.data, run.cluster << q->g.cluster_bits, run.count << q->g.cluster_bits, 0);
        if (r == 0)
            left -= run.count;
    }
    return r;
}

/* -EUCLEAN: more entries than were counted; somebody else writes to the file. */
static int next_cluster(struct expand *x, uint64_t *ret)
{
    if (x->run_at == x->taken.count)
        return -EUCLEAN;
    *ret = x->taken.runs[x->run_at].cluster + x->run_used;
    if (++x->run_used == x->taken.runs[x->run_at].count) {
        x->run_at++;
        x->run_used = 0;
    }
    return 0;
}

/* ---- counts, and the tables (both passes meet the same entries in the same order) ---- */

static int add(struct q2_counts *c, uint64_t cluster, uint64_t n)
{
    return !n ? 0 : cluster < c->n ? q2_counts_add_run(c, cluster, 1, n) : -EUCLEAN;
}

static int shift_table(void *arg, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    struct expand *x = arg;
    const struct q2_geom *g = &x->q->g;
    int r = 0;
    (void)changed;
    for (uint64_t i = 0; r == 0 && i < g->cluster_size / 8; i++) {
        uint64_t raw = be64_word(words[i]);
        if (!is_zero(g, raw))
            continue;
        if (raw & Q2_L2E_OFF)
            r = add(&x->s.shift.loss, (raw & Q2_L2E_OFF) >> g->cluster_bits, t->weight);
        uint64_t c;
        if (r == 0 && x->fill)
            r = next_cluster(x, &c);
        if (r == 0 && x->fill)
            r = add(&x->s.shift.gain, c, t->weight - 1);
    }
    return r;
}

static int change_table(void *arg, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    struct expand *x = arg;
    const struct q2_geom *g = &x->q->g;
    (void)t;
    for (uint64_t i = 0; i < g->cluster_size / 8; i++) {
        if (!is_zero(g, be64_word(words[i])))
            continue;
        uint64_t c = 0;
        if (x->fill && next_cluster(x, &c))
            return -EUCLEAN;
        words[i] = be64_word(c << g->cluster_bits);
        *changed = true;
    }
    return 0;
}

/* A cluster whose count was lost looks free, and may have been taken for zeros: it stays out of reach. */
static int check_taken(struct expand *x)
{
    for (size_t i = 0; i < x->taken.count; i++)
        for (uint64_t c = x->taken.runs[i].cluster; c < x->taken.runs[i].cluster + x->taken.runs[i].count; c++)
            if (q2_counts_get(&x->s.shift.loss, c)) {
                x->s.shift.bad_cluster = c;
                x->taken.count = 0;          /* neither used nor given back */
                return -EUCLEAN;
            }
    return 0;
}

static int prepare(struct co *co, struct expand *x)
{
    struct q2_snap *s = &x->s;
    int r = q2_tree_each(co, x->q, &s->its, shift_table, x);
    if (r == 0)
        r = check_taken(x);
    if (r == 0)
        r = q2_shift_check(co, &s->shift);
    if (r < 0)
        return r;
    r = q2_shift_up(co, &s->shift);
    if (r == 0)
        r = meta_barrier(co, x->q->meta, META_B_EXPAND);
    if (r < 0) {
        int u = q2_shift_undo(co, &s->shift);
        (void)u;                             /* counts stay too high: safe */
    }
    return r;
}

static int change(struct co *co, struct expand *x)
{
    x->run_at = 0;
    x->run_used = 0;
    x->written = true;
    int r = MUTANT(MUT_EXPAND_FREE_FIRST) ? q2_shift_down(co, &x->s.shift) : 0;
    if (r == 0)
        r = q2_tree_each(co, x->q, &x->s.its, change_table, x);
    if (r == 0)
        r = meta_barrier(co, x->q->meta, META_B_EXPANDED);
    if (r == 0 && !MUTANT(MUT_EXPAND_FREE_FIRST))
        return q2_snap_settle(co, &x->s, true, 0, 0);
    return r;
}

static int at_rest(struct co *co, struct expand *x)
{
    struct q2_image *q = x->q;
    int r = q2_alloc_halt_begin(co, q);
    if (r < 0)
        return r;
    r = q2_lazy_leave(co, q);                /* counts on the disk have to be true (Q12) */
    if (r < 0) {
        q2_alloc_halt_end(q);
        return r;
    }
    epoch_wait(co, q->im.epoch);
    meta_struct_begin(co, q->meta);
    r = meta_pass_locked(co, q->meta);
    if (r == 0)
        r = stor_length(co, q->im.store, &x->s.file_bytes);
    if (r == 0)
        r = q2_shift_init(&x->s.shift, q, x->s.file_bytes);
    x->s.shift.fresh = true;
    if (r == 0)
        r = prepare(co, x);
    if (r == 0)
        r = change(co, x);
    meta_forget_all(q->meta);
    if (r == -EUCLEAN && x->written)
        r = q2_corrupt_locked(co, q, "what is left of the refcounts behind", 0);
    meta_struct_end(q->meta);
    q2_alloc_halt_end(q);
    return r;
}

static void fini(struct expand *x)
{
    q2_taken_end(x->q, &x->taken, !x->written);
    q2_snapshots_free(x->s.old.snapshots, x->s.old.count);
    q2_tree_fini(&x->s.mine);
    q2_tree_fini(&x->s.its);
    q2_shift_fini(&x->s.shift);
    free(x);
}

int q2_expand_snapshots(struct co *co, struct q2_image *q, struct byre_err *err)
{
    if (!q->h.nb_snapshots)
        return 0;
    struct expand *x = calloc(1, sizeof *x);
    if (!x)
        return byre_fail(err, NOMEM, "%s: no memory to look at its snapshots", q->name);
    x->q = x->s.q = q;
    x->s.err = err;
    x->fill = atomic_load(&q->im.below_zero_from) > 0;
    int r = q2_snapshots_scan_sound(co, q->im.store, &q->g, &q->h, &x->s.old, err);
    if (r == 0) {
        r = meta_flush(co, q->meta);         /* tables are read from the file */
        if (r == 0)
            r = stor_length(co, q->im.store, &x->s.file_bytes);
        if (r == 0)
            r = list_tables(co, x);
        if (r == 0)
            r = q2_tree_each(co, q, &x->s.its, count_zeros, x);
        if (r == 0 && x->zeros)
            r = take_clusters(co, x);
        if (r == 0 && x->zeros)
            r = at_rest(co, x);
        if (r < 0)
            r = q2_snap_fail(&x->s, r, "expanding the zero clusters of snapshots");
    }
    fini(x);
    return r;
}
