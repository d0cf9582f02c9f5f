/* SPDX-License-Identifier: MIT
 *
 * qed_fill.c: fills the holes of the file while the disk is in use.
 *
 * Purpose      The format has no list of free clusters: what has no owner is lost when the image is closed, unless it lies at the end of the
 *              file. Here the end of the file moves into the holes, so that the end can be cut off (qed_mark.c).
 * Owns         q->hold_from, q->hold_end; struct fill during a call.
 * Invariants   F1  All in front of `next` that is not in use is in `spare`, or in `away`: a scrub has just seen to it.
 *              F2  What the walk finds is a hint: it reads tables on the disk while they change. Each entry is looked at again under
 *                  its lock.
 *              F3  Data moves while its place is held: writers in place that saw the old one have left (a grace period), and no other
 *                  begins until the entry has changed. Who wants to begin waits (qed_write.c), with no lock in his hands.
 *              F4  A place that something moved away from is used again, or cut off, when the entry that names the new place is
 *                  durable, and a grace period has gone by since (D3).
 *              F5  A table moves under the lock of all that it maps, and is copied from the disk when all its changes are there.
 *              F7  What cannot be read stays where it is, and is told of; the rest goes on. Holes that are left for that are no reason for
 *                  the mark.
 *              F6  Each round makes progress: data comes down, then tables fit; else each table slides down by way of the end.
 * Order        copy | entry (E1, E2: the barriers of a pass) | the old place is used again.
 * Concurrency  Home loop, beside any requests. They take holes, too, from the lowest on.
 * Failure      What was moved stays moved; the rest stays where it is. Nothing to go back to. Places that cannot be given back, and holes that
 *              nobody has got to, are lost until the next scrub, and the mark says so (K2).
 * Memory       16 bytes for each table, and for up to twice MOVES_MAX clusters.
 * Tests        qed_fill_test.c, tests/kill/test_kill_qed.py, crash explorer (qed-fill, mutants QED_MOVE*)
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qed/qed_check_priv.h"

#define MOVES_MAX (1u << 18)
#define WINDOW_BYTES (2ull << 20)                 /* moved for one grace period, while writers may wait */
#define WINDOW_COUNT 64u
#define SETTLE_BYTES (64ull << 20)                /* moved between two flushes: it bounds what a crash leaks */
#define ROUNDS_MAX 1000u                          /* requests may take what one has made free */
#define L1_ITSELF UINT64_MAX

enum { AWAY_DATA, AWAY_TABLE };                   /* tags of `away` */

struct place { uint64_t cluster, at; };           /* of data: its guest offset; of a table: which entry of the L1 table */

struct fill {
    struct qed_image *q;
    const struct qed_geom *g;
    struct qed_checker *k;
    struct place *tables, *data;
    size_t table_count, table_room, data_count, want;       /* want: so many clusters of data are looked for, the last ones of the file */
    uint64_t from;                                /* in front of this cluster data is not looked for */
    struct rset away;                             /* F4 */
    struct rset unreadable;                       /* F7 */
    uint64_t unsettled;                           /* bytes moved since the last flush */
    uint64_t moves, taken;                        /* taken: qed_alloc.taken when the round began, and what the round itself took */
    bool tables_moved;
    struct fmt_steps steps;
};

static int step(struct co *co, struct fill *f)
{
    co_breathe(co);
    fmt_step_begins(co, &f->steps);
    return f->k->o->step ? f->k->o->step(co, f->k->o->arg) : 0;
}

/* ---- places ---- */

/* Where the file could end, in clusters. */
static uint64_t target(const struct fill *f) { return f->q->a.next - f->q->a.spare.total; }

/* Clusters of holes that something behind could move into. */
static uint64_t holes_below(const struct fill *f, uint64_t end)
{
    struct rset_range x;
    uint64_t n = 0;
    for (uint64_t at = 0; at < end && rset_next(&f->q->a.spare, at, &x) && x.start < end; at = x.end)
        n += min_u64(x.end, end) - x.start;
    return n;
}

static uint64_t lowest_hole(const struct fill *f)
{
    struct rset_range x;
    return rset_next(&f->q->a.spare, 0, &x) ? x.start : UINT64_MAX;
}

/* The lowest hole of n clusters that ends in front of `end`. */
static bool take_hole(struct fill *f, uint64_t n, uint64_t end, uint64_t *ret)
{
    struct rset_range x;
    if (!rset_fit(&f->q->a.spare, 0, n, &x) || x.start + n > end || rset_remove(&f->q->a.spare, x.start, x.start + n) < 0)
        return false;
    *ret = x.start;
    return true;
}

static void give_back(struct fill *f, uint64_t first, uint64_t n) { qed_alloc_offer(f->q, first, n); }

static void moved_away(struct fill *f, uint64_t first, uint64_t n, uint32_t tag)
{
    f->q->mark.keep |= rset_add(&f->away, first, first + n, tag) < 0;
    f->moves++;
    f->tables_moved |= tag == AWAY_TABLE;
    f->unsettled += n << f->g->cluster_bits;
}

/* F4 */
static int settle(struct co *co, struct fill *f)
{
    struct qed_image *q = f->q;
    unsigned bits = f->g->cluster_bits;
    struct rset_range x;
    int r = 0;
    f->unsettled = 0;
    if (!f->away.count)
        return 0;
    if (!MUTANT(MUT_QED_MOVED_REUSED)) {
        r = meta_flush(co, q->meta);
        if (r == 0)
            epoch_wait(co, q->im.epoch);
    }
    if (r == 0 && f->tables_moved)
        r = qed_tables_note(co, q);               /* qed_tables.c B2 */
    f->tables_moved &= r < 0;
    for (uint64_t at = 0; r == 0 && rset_next(&f->away, at, &x); at = x.end)
        if (x.tag != AWAY_TABLE || meta_forget(q->meta, x.start << bits, (x.end - x.start) << bits))
            give_back(f, x.start, x.end - x.start);
        else
            q->mark.keep = true;
    q->mark.keep |= r < 0;                        /* lost until the next scrub */
    rset_fini(&f->away);
    rset_init(&f->away);
    return r;
}

/* F7 */
static int leave(struct fill *f, uint64_t cluster)
{
    int r = rset_add(&f->unreadable, cluster, cluster + 1, 0);
    if (r == 0)
        qed_tell_unreadable(f->k, cluster);
    return r;
}

static bool is_left(const struct fill *f, uint64_t cluster)
{
    struct rset_range x;
    return rset_next(&f->unreadable, cluster, &x) && x.start <= cluster;
}

/* ---- what is where (F2) ---- */

static int add_table(struct fill *f, uint64_t off, uint64_t at)
{
    if (f->table_count == f->table_room) {
        size_t room = f->table_room ? f->table_room * 2 : 256;
        struct place *list = realloc(f->tables, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        f->tables = list;
        f->table_room = room;
    }
    f->tables[f->table_count++] = (struct place){ off >> f->g->cluster_bits, at };
    return 0;
}

static int see_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct fill *f = arg;
    if (r->i >= f->q->l1_entries || qed_table_kind(f->g, r->v, atomic_load(&f->q->file_end)) != QED_POINTER)
        return 0;                                 /* behind what the size uses: it stays */
    int rc = add_table(f, r->v, r->i);
    return rc < 0 ? rc : 1;
}

static int last_first(const void *a, const void *b)
{
    uint64_t x = ((const struct place *)a)->cluster, y = ((const struct place *)b)->cluster;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int64_t sort_job(void *arg)
{
    struct fill *f = arg;
    qsort(f->data, f->data_count, sizeof *f->data, last_first);
    qsort(f->tables, f->table_count, sizeof *f->tables, last_first);
    return 0;
}

/* Only the last `want` are worth keeping. */
static int keep_last(struct co *co, struct fill *f)
{
    int r = (int)rt_cpu(co, sort_job, f);
    if (r == 0 && f->data_count > f->want) {
        f->data_count = f->want;
        f->from = f->data[f->want - 1].cluster + 1;
    }
    return r;
}

static int see_data(struct co *co, void *arg, const struct qed_ref *r)
{
    struct fill *f = arg;
    uint64_t cluster = r->v >> f->g->cluster_bits;
    int rc = fmt_step_is_over(co, &f->steps, 1) ? step(co, f) : 0;
    if (rc < 0 || qed_kind(f->q, r->v) != QED_POINTER || cluster < f->from || is_left(f, cluster))
        return rc;
    f->data[f->data_count++] = (struct place){ cluster, r->i };
    return f->data_count == 2 * f->want ? keep_last(co, f) : 0;
}

static int unreadable(void *arg, bool l1, uint64_t off, int error) { return error; }

/* All tables, and the last f->want clusters of data from `from` on; both from the end of the file down. */
static int look(struct co *co, struct fill *f, uint64_t from)
{
    static const struct qed_visitor v = { .table = see_table, .entry = see_data, .unreadable = unreadable };
    struct qed_walk w = { .q = f->q, .v = &v, .arg = f };
    free(f->data);
    f->want = (size_t)min_u64(max_u64(holes_below(f, target(f)), 1), MOVES_MAX);
    f->data = malloc(2 * f->want * sizeof *f->data);
    f->data_count = f->table_count = 0;
    f->from = from;
    if (!f->data)
        return -ENOMEM;
    int r = add_table(f, f->q->h.l1_off, L1_ITSELF);
    if (r == 0)
        r = qed_walk(co, &w);
    return r < 0 ? r : keep_last(co, f);
}

/* ---- data ---- */

/* F3 */
static void hold(struct co *co, struct qed_image *q, uint64_t from, uint64_t end)
{
    atomic_store(&q->hold_from, from);
    atomic_store(&q->hold_end, end);
    if (!MUTANT(MUT_QED_MOVE_NO_GRACE))
        epoch_wait(co, q->im.epoch);
}

static void unhold(struct qed_image *q)
{
    atomic_store(&q->hold_end, 0);
    co_wake_all(&q->unheld);
}

/* The entry is locked, and names p->cluster. */
static int move_cluster(struct co *co, struct fill *f, const struct place *p, struct meta_block *b, uint32_t index)
{
    uint64_t to;
    bool unreadable;
    int r = rset_reserve(&f->away, 1);
    if (r < 0 || !take_hole(f, 1, p->cluster, &to))
        return r;
    r = qed_copy_clusters(co, f->q, p->cluster, to, 1, &unreadable);
    if (r < 0) {
        give_back(f, to, 1);
        return unreadable ? leave(f, p->cluster) : r;
    }
    CO_ATOMIC(co) {
        qed_entry_set(f->q, b, index, to << f->g->cluster_bits);
        if (!MUTANT(MUT_QED_MOVE_UNORDERED))
            meta_need_data_barrier(f->q->meta);
    }
    moved_away(f, p->cluster, 1, AWAY_DATA);
    return 0;
}

static int move_data(struct co *co, struct fill *f, const struct place *p)
{
    struct qed_image *q = f->q;
    struct co_range lock;
    struct meta_block *b;
    uint32_t index;
    co_range_lock(co, &q->locks, &lock, p->at, p->at + f->g->cluster_size);
    int r = qed_slice_get(co, q, p->at, &b, &index);
    if (r == 0 && b) {
        if (qed_entry(b, index) == p->cluster << f->g->cluster_bits)                 /* F2 */
            r = move_cluster(co, f, p, b, index);
        meta_put(q->meta, b);
    }
    co_range_unlock(&q->locks, &lock);
    return r;
}

/* From the last one down, as long as a hole lies in front. */
static int move_all_data(struct co *co, struct fill *f)
{
    unsigned bits = f->g->cluster_bits;
    size_t most = (size_t)min_u64(max_u64(WINDOW_BYTES >> bits, 1), WINDOW_COUNT);
    int r = 0;
    for (size_t i = 0, n; r == 0 && i < f->data_count && lowest_hole(f) < f->data[i].cluster; i += n) {
        n = (f->data_count - i < most) ? f->data_count - i : most;
        hold(co, f->q, f->data[i + n - 1].cluster << bits, (f->data[i].cluster + 1) << bits);
        for (size_t k = i; r == 0 && k < i + n; k++)
            r = move_data(co, f, &f->data[k]);
        unhold(f->q);
        if (r == 0 && f->unsettled >= SETTLE_BYTES)
            r = settle(co, f);
        if (r == 0)
            r = step(co, f);
    }
    return r;
}

/* ---- tables ---- */

/* 1: the table at t->cluster has moved; 0: it was not there any more. */
static int relink_table(struct co *co, struct fill *f, const struct place *t, uint64_t to)
{
    struct qed_image *q = f->q;
    if (atomic_load(&q->l1_region.words[t->at]) != le64_word(t->cluster << f->g->cluster_bits))         /* F2 */
        return 0;
    int r = MUTANT(MUT_QED_MOVE_TABLE_STALE) ? 0 : meta_flush(co, q->meta);          /* F5 */
    if (r == 0)
        r = qed_copy_clusters(co, f->q, t->cluster, to, f->g->table_clusters, NULL);
    if (r < 0)
        return r;
    CO_ATOMIC(co) {
        meta_region_put(q->meta, &q->l1_region, t->at, le64_word(to << f->g->cluster_bits));
        meta_need_table_barrier(q->meta);
    }
    return 1;
}

/* Under the lock of all that it maps. */
static int move_l2(struct co *co, struct fill *f, const struct place *t, uint64_t to)
{
    struct co_range lock;
    co_range_lock(co, &f->q->locks, &lock, t->at * f->g->l2_span, (t->at + 1) * f->g->l2_span);
    int r = relink_table(co, f, t, to);
    co_range_unlock(&f->q->locks, &lock);
    if (r <= 0)
        give_back(f, to, f->g->table_clusters);
    return r;
}

/* Changes of the L1 table that come while it is copied are written to its new place, by the next pass. When the header cannot be written, it
 * is not known what it names: both places stay out of reach. */
static int move_l1(struct co *co, struct fill *f, const struct place *t, uint64_t to)
{
    struct qed_image *q = f->q;
    meta_struct_begin(co, q->meta);
    int r = meta_pass_locked(co, q->meta);
    if (r == 0)
        r = qed_copy_clusters(co, f->q, t->cluster, to, f->g->table_clusters, NULL);
    if (r == 0)
        r = qed_barrier(co, q);
    if (r < 0)
        give_back(f, to, f->g->table_clusters);
    else
        r = qed_set_l1(co, q, to << f->g->cluster_bits);
    if (r == 0)
        q->l1_region.off = q->h.l1_off;
    else
        q->mark.keep = true;
    meta_struct_end(q->meta);
    return r < 0 ? r : 1;
}

/* To clusters that nothing names. */
static int move_table(struct co *co, struct fill *f, struct place *t, uint64_t to)
{
    if (!meta_forget(f->q->meta, to << f->g->cluster_bits, f->g->table_bytes)) {
        f->q->mark.keep = true;
        return -EUCLEAN;                          /* in use, whatever was found: it stays out of reach */
    }
    int r = t->at == L1_ITSELF ? move_l1(co, f, t, to) : move_l2(co, f, t, to);
    if (r <= 0)
        return r;
    moved_away(f, t->cluster, f->g->table_clusters, AWAY_TABLE);
    t->cluster = to;
    return 0;
}

/* Tables that reach behind where the file could end, into holes in front of that. *ret_stuck: one fits nowhere. */
static int fit_tables(struct co *co, struct fill *f, bool *ret_stuck)
{
    uint64_t end = target(f), n = f->g->table_clusters, to;
    int r = 0;
    *ret_stuck = false;
    for (size_t i = 0; r == 0 && i < f->table_count && f->tables[i].cluster + n > end; i++) {
        *ret_stuck |= !take_hole(f, n, end, &to);
        if (*ret_stuck)
            break;
        r = move_table(co, f, &f->tables[i], to);
        if (r == 0)
            r = step(co, f);
    }
    return r;
}

/* By way of the end of the file. 1: it lies further in front than before. */
static int slide(struct co *co, struct fill *f, struct place *t)
{
    uint64_t n = f->g->table_clusters, old = t->cluster, to;
    struct qed_run run;
    f->taken++;
    int r = qed_alloc_take(co, f->q, n, true, &run);
    if (r == 0)
        r = move_table(co, f, t, run.off >> f->g->cluster_bits);
    if (r == 0)
        r = settle(co, f);
    if (r == 0 && t->cluster != old && take_hole(f, n, t->cluster, &to))
        r = move_table(co, f, t, to);
    if (r == 0)
        r = settle(co, f);
    return r < 0 ? r : t->cluster < old;
}

/* Only tables lie behind the first hole, and none fits. 0: no use. */
static int slide_tables(struct co *co, struct fill *f)
{
    int better = 0, r = 0;
    for (size_t i = f->table_count; r >= 0 && i-- > 0;) {
        r = f->tables[i].cluster < lowest_hole(f) ? 0 : slide(co, f, &f->tables[i]);
        better |= r > 0;
        if (r >= 0)
            r = step(co, f);
    }
    return r < 0 ? r : better;
}

/* ---- the whole ---- */

/* F6. 0: nothing is left to do, or nothing can be done. 1: something has moved. */
static int fill_round(struct co *co, struct fill *f)
{
    uint64_t before = f->moves;
    bool stuck = false;
    int r = look(co, f, target(f));
    if (r == 0)
        r = fit_tables(co, f, &stuck);
    if (r == 0)
        r = move_all_data(co, f);
    if (r < 0 || f->moves > before || !stuck)
        return r < 0 ? r : f->moves > before;
    r = look(co, f, lowest_hole(f));
    if (r == 0)
        r = move_all_data(co, f);
    if (r < 0 || f->moves > before)
        return r < 0 ? r : 1;
    return slide_tables(co, f);
}

/* The walk of a round may have come too early for a table or a cluster that a request has taken since. 0: there is nothing to do any more. */
static int next_round(struct co *co, struct fill *f)
{
    if (!holes_below(f, target(f)))
        return 0;
    int r = meta_flush(co, f->q->meta);           /* the walk reads the disk */
    f->taken = f->q->a.taken;
    if (r == 0)
        r = fill_round(co, f);
    bool stale = f->q->a.taken != f->taken;
    int settled = settle(co, f);
    return r < 0 ? r : settled < 0 ? settled : r > 0 || stale;
}

int qed_fill(struct co *co, struct qed_checker *k)
{
    struct qed_image *q = k->q;
    struct fill f = { .q = q, .g = &q->g, .k = k };
    int r = qed_mark_enter(co, q);
    if (r < 0)
        return r;
    rset_init(&f.away);
    rset_init(&f.unreadable);
    q->filling = true;
    q->a.told = 0;
    r = 1;
    for (unsigned i = 0; i < ROUNDS_MAX && r > 0; i++)
        r = next_round(co, &f);
    if (r == 0)
        qed_alloc_told(q);
    q->filling = false;
    qed_mark_exit(q);
    rset_fini(&f.away);
    rset_fini(&f.unreadable);
    free(f.tables);
    free(f.data);
    return r == -ENOSPC || r > 0 ? 0 : r;         /* the holes that are left stay under the mark */
}
