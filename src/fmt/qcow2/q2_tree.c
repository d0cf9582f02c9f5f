/* SPDX-License-Identifier: MIT
 *
 * q2_tree.c: passes over the L2 tables of a tree.
 *
 * Purpose      What snapshots must know and change in mapping tables, in time that follows the size of the tables alone.
 * Owns         The list of tables; the ring of pieces while a pass runs.
 * Invariants   T1  Each table is read once per pass, in the order of the file, whatever the L1 table says.
 *              T2  A pass that finds an entry which cannot be right ends with -EUCLEAN; counting passes write nothing.
 *              T3  Only COPIED flags are ever changed here (callers of q2_tree_each answer for theirs), and a piece without a change is not written.
 * Order        None of its own: the caller puts barriers around passes (Q13..Q15).
 * Concurrency  Home loop, image drained, cache clean and forgotten afterwards (what is changed here is not seen there).
 * Failure      -EIO of the store: flags may be changed in some tables. -ENOMEM before anything.
 * Tests        q2_snap_test.c, crash explorer, tests/interop/test_snapshots.py
 */
#include "fmt/qcow2/q2_tree.h"

#include <stdlib.h>

#include "fmt/pieces.h"
#include "fmt/qcow2/q2_walk.h"

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct q2_tree_table *)a)->off, y = ((const struct q2_tree_table *)b)->off;
    return x < y ? -1 : x > y;
}

/* Sorts unless they are sorted, as they mostly are, and makes one of equal ones. */
static void put_in_order(struct q2_tree *t)
{
    bool sorted = true;
    for (size_t i = 1; i < t->count && sorted; i++)
        sorted = t->t[i - 1].off < t->t[i].off;
    if (sorted)
        return;
    qsort(t->t, t->count, sizeof *t->t, by_offset);
    size_t kept = 1;
    for (size_t i = 1; i < t->count; i++) {
        if (t->t[i].off == t->t[kept - 1].off)
            t->t[kept - 1].weight += t->t[i].weight;
        else
            t->t[kept++] = t->t[i];
    }
    t->count = kept;
}

int q2_tree_init(struct q2_tree *ret, const struct q2_geom *g, uint64_t file_bytes, const uint64_t *words, uint64_t entries)
{
    struct q2_tree t = { .t = malloc((entries ? entries : 1) * sizeof *t.t) };
    if (!t.t)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++) {
        struct q2_l1e e;
        if (!q2_l1e_decode(g, be64_word(words[i]), &e) || (e.l2_off && q2_outside(g, file_bytes, e.l2_off, g->cluster_size))) {
            free(t.t);
            return -EUCLEAN;
        }
        if (e.l2_off)
            t.t[t.count++] = (struct q2_tree_table){ e.l2_off, 1 };
    }
    put_in_order(&t);
    *ret = t;
    return 0;
}

void q2_tree_fini(struct q2_tree *t)
{
    free(t->t);
    *t = (struct q2_tree){ 0 };
}

void q2_tree_subtract(struct q2_tree *a, struct q2_tree *b)
{
    size_t i = 0, j = 0, keep_a = 0, keep_b = 0;
    while (i < a->count || j < b->count) {
        if (i < a->count && j < b->count && a->t[i].off == b->t[j].off && a->t[i].weight == b->t[j].weight) {
            i++;
            j++;
        } else if (j == b->count || (i < a->count && a->t[i].off <= b->t[j].off)) {
            a->t[keep_a++] = a->t[i++];
        } else {
            b->t[keep_b++] = b->t[j++];
        }
    }
    a->count = keep_a;
    b->count = keep_b;
}

/* ---- one pass ---- */

struct pass {
    struct q2_image *q;
    const struct q2_tree *t;
    size_t at;
    uint64_t max;
    /* One table. *changed: it is to be written. Does not suspend. */
    int (*table)(struct pass *p, const struct q2_tree_table *t, uint64_t *words, bool *changed);
    struct q2_counts *counts;
    const struct q2_counts *state;
};

static bool next_piece(void *arg, struct fmt_piece *p)
{
    struct pass *w = arg;
    uint64_t cs = w->q->g.cluster_size;
    if (w->at == w->t->count)
        return false;
    p->tag = w->at;
    p->off = w->t->t[w->at++].off;
    p->len = cs;
    for (; w->at < w->t->count && w->t->t[w->at].off == p->off + p->len && p->len + cs <= w->max; w->at++)
        p->len += cs;
    return true;
}

static int use_piece(struct co *co, void *arg, struct fmt_piece *p)
{
    struct pass *w = arg;
    uint64_t cs = w->q->g.cluster_size;
    bool changed = false;
    if (p->rc)
        return p->rc;
    for (uint64_t i = 0; i < p->len / cs; i++) {
        int r = w->table(w, &w->t->t[p->tag + i], (uint64_t *)(p->data + i * cs), &changed);
        if (r)
            return r;
    }
    return changed ? meta_write_now(co, w->q->meta, p->data, p->len, p->off) : 0;
}

static int run(struct co *co, struct pass *p)
{
    static const struct fmt_pieces_ops ops = { .next = next_piece, .use = use_piece, .exact = true };
    p->max = max_u64(FMT_PIECES_BYTES, p->q->g.cluster_size);
    return fmt_pieces_run(co, p->q->im.store, p->max, &ops, p);
}

/* ---- counting ---- */

/* Clusters in a row, so that they are added together. */
struct row { uint64_t first, n; };

static int add_row(const struct pass *p, struct row *r, uint64_t weight)
{
    if (!range_inside(r->first, r->n, p->counts->n))
        return -EUCLEAN;
    int rc = r->n ? q2_counts_add_run(p->counts, r->first, r->n, weight) : 0;
    *r = (struct row){ 0 };
    return rc;
}

/* What is neither plain nor empty: compressed, or wrong. */
static int odd_entry(const struct q2_geom *g, uint64_t raw, struct row *ret)
{
    struct q2_l2e e;
    if (!q2_l2e_decode(g, raw, &e) || e.kind != Q2_COMPRESSED)
        return -EUCLEAN;
    uint64_t first = e.host >> g->cluster_bits, last = (e.host + e.comp_bytes - 1) >> g->cluster_bits;
    *ret = (struct row){ first, last - first + 1 };
    return 0;
}

static int count_table(struct pass *p, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    const struct q2_geom *g = &p->q->g;
    struct row row = { t->off >> g->cluster_bits, 1 };
    uint64_t step = g->l2_entry_bytes / 8, n = g->cluster_size / 8, host;
    int r = 0;
    (void)changed;
    for (uint64_t i = 0; i < n && r == 0; i += step) {
        uint64_t raw = be64_word(words[i]);
        if (UNLIKELY(!q2_l2e_plain(g, raw, &host))) {
            struct row odd;
            r = add_row(p, &row, t->weight);
            if (r == 0)
                r = odd_entry(g, raw, &odd);
            if (r == 0)
                r = add_row(p, &odd, t->weight);
        } else if (host && row.n && host >> g->cluster_bits == row.first + row.n) {
            row.n++;
        } else if (host) {
            r = add_row(p, &row, t->weight);
            row = (struct row){ host >> g->cluster_bits, 1 };
        }
    }
    return r ? r : add_row(p, &row, t->weight);
}

int q2_tree_count(struct co *co, struct q2_image *q, const struct q2_tree *t, struct q2_counts *c)
{
    struct pass p = { .q = q, .t = t, .table = count_table, .counts = c };
    return run(co, &p);
}

/* ---- flags ---- */

static int unflag_table(struct pass *p, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    const struct q2_geom *g = &p->q->g;
    uint64_t step = g->l2_entry_bytes / 8, flag = be64_word(Q2_E_COPIED), all = 0;
    (void)t;
    for (uint64_t i = 0; i < g->cluster_size / 8; i += step) {
        all |= words[i];
        words[i] &= ~flag;
    }
    *changed |= (all & flag) != 0;
    return 0;
}

int q2_tree_unflag(struct co *co, struct q2_image *q, const struct q2_tree *t)
{
    struct pass p = { .q = q, .t = t, .table = unflag_table };
    return run(co, &p);
}

/* A compressed cluster has no flag, but none of its host clusters may be gone. */
static int odd_left(const struct pass *p, uint64_t raw)
{
    struct row row = { 0 };
    int r = odd_entry(&p->q->g, raw, &row);
    for (uint64_t c = row.first; r == 0 && c < row.first + row.n; c++)
        r = q2_counts_get(p->state, c) == Q2_LEFT_NONE ? -EUCLEAN : 0;
    return r;
}

static int flag_table(struct pass *p, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    const struct q2_geom *g = &p->q->g;
    const struct q2_counts *state = p->state;
    uint64_t step = g->l2_entry_bytes / 8, host, flag = be64_word(Q2_E_COPIED);
    if (q2_counts_get(state, t->off >> g->cluster_bits) == Q2_LEFT_NONE)
        return -EUCLEAN;
    for (uint64_t i = 0; i < g->cluster_size / 8; i += step) {
        uint64_t raw = be64_word(words[i]);
        if (UNLIKELY(!q2_l2e_plain(g, raw, &host))) {
            int r = odd_left(p, raw);
            if (r)
                return r;
            continue;
        }
        uint64_t c = host >> g->cluster_bits, left = host && c < state->n ? q2_counts_at(state, c) : 0;
        if (left == Q2_LEFT_ONE && !(words[i] & flag)) {
            words[i] |= flag;
            *changed = true;
        } else if (UNLIKELY(left == Q2_LEFT_NONE)) {
            return -EUCLEAN;
        }
    }
    return 0;
}

int q2_tree_flag(struct co *co, struct q2_image *q, const struct q2_tree *t, const struct q2_counts *state)
{
    struct pass p = { .q = q, .t = t, .table = flag_table, .state = state };
    return run(co, &p);
}

/* ---- others' passes ---- */

struct each { struct pass p; q2_tree_fn *fn; void *arg; };

static int each_table(struct pass *p, const struct q2_tree_table *t, uint64_t *words, bool *changed)
{
    struct each *e = (struct each *)p;
    return e->fn(e->arg, t, words, changed);
}

int q2_tree_each(struct co *co, struct q2_image *q, const struct q2_tree *t, q2_tree_fn *fn, void *arg)
{
    struct each e = { .p = { .q = q, .t = t, .table = each_table }, .fn = fn, .arg = arg };
    return run(co, &e.p);
}
