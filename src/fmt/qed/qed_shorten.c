/* SPDX-License-Identifier: MIT
 *
 * qed_shorten.c: a file without unused clusters.
 *
 * Purpose      The format has no list of free clusters: what has no owner is lost until the file is written anew. Here the end of the file
 *              moves into the holes, and is cut off.
 * Owns         Lists of what moves, during a call.
 * Invariants   I1 A cluster that is written has no owner, in memory and on the disk: it lost its owner before the last barrier.
 *              I2 One pointer names what moves; it changes after the copy is durable. At every moment the image is sound, with leaks.
 *              I3 Memory: 16 bytes for each table, and for up to MOVES_MAX clusters at a time.
 *              I4 Each round makes progress: data comes down, then tables fit; else each table slides down by way of the end. Only what cannot
 *                 be read can keep that from happening: then the rest of the holes stays.
 *              I5 What cannot be read stays where it is, and is told of; nothing is ever written there.
 * Order        Copies | entries | cut, or use of the places that are free now (E1, E2).
 * Concurrency  Home loop, image drained, inside meta_struct_begin.
 * Failure      -errno: what was moved stays moved.
 * Tests        qed_fix_test.c, tests/interop/test_qed_repair.py, tests/crash/qed_crash.c
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_check_priv.h"

#define MOVES_MAX (1u << 20)
#define BATCH_ENTRIES 4096u
#define BATCH_BYTES (256ull << 20)
#define L1_ITSELF UINT64_MAX

struct place { uint64_t cluster, at; };           /* of a table: which entry of the L1 table; of data: where its entry stands */

struct shorten {
    struct qed_checker *k;
    const struct qed_geom *g;
    struct place *tables, *data;
    size_t table_count, table_room, data_count;
    struct qed_owned is_table, stays;             /* stays: I5 */
    bool better;                                  /* I4: in this round */
    uint64_t lowest;                              /* data from this cluster on moves */
};

static int nothing_unreadable(void *arg, bool l1, uint64_t off, int error) { return error; }

static int by_cluster(const void *a, const void *b)
{
    uint64_t x = ((const struct place *)a)->cluster, y = ((const struct place *)b)->cluster;
    return x < y ? -1 : x > y;
}

/* ---- what is where ---- */

static int add_table(struct shorten *s, uint64_t off, uint64_t i)
{
    uint64_t cluster = off >> s->g->cluster_bits;
    if (s->table_count == s->table_room) {
        size_t room = s->table_room ? s->table_room * 2 : 256;
        struct place *list = realloc(s->tables, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        s->tables = list;
        s->table_room = room;
    }
    s->tables[s->table_count++] = (struct place){ cluster, i };
    return qed_owned_take(&s->is_table, cluster, s->g->table_clusters) < 0 ? -ENOMEM : 0;
}

static int see_table(struct co *co, void *arg, const struct qed_ref *r) { return add_table(arg, r->v, r->i); }

static int find_tables(struct co *co, struct shorten *s)
{
    static const struct qed_visitor v = { .table = see_table, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = s->k->q, .v = &v, .arg = s };
    qed_owned_fini(&s->is_table);
    s->table_count = 0;
    int r = qed_owned_init(&s->is_table, s->k->owned.n);
    if (r == 0 && qed_owned_take(&s->is_table, 0, s->g->header_bytes >> s->g->cluster_bits) < 0)
        r = -ENOMEM;
    if (r == 0)
        r = add_table(s, s->k->q->h.l1_off, L1_ITSELF);
    if (r == 0)
        r = qed_walk(co, &w);
    if (r == 0)
        qsort(s->tables, s->table_count, sizeof *s->tables, by_cluster);
    return r;
}

/* The last cluster below `to` that holds data which can be moved. */
static uint64_t last_data(const struct shorten *s, uint64_t to)
{
    uint64_t c = qed_owned_last(&s->k->owned, to);
    while (c != QED_OWNED_NONE && (qed_owned_has(&s->is_table, c) || qed_owned_has(&s->stays, c)))
        c = qed_owned_last(&s->k->owned, c);
    return c;
}

/* Data that lies behind a hole, from the end on, MOVES_MAX at most: how many, and the lowest of them. */
static size_t count_data(struct shorten *s)
{
    uint64_t hole = qed_owned_next(&s->k->owned, 0, s->k->owned.n, false), c = last_data(s, s->k->owned.n);
    size_t n = 0;
    for (; n < MOVES_MAX && c != QED_OWNED_NONE && hole < c; n++) {
        s->lowest = c;
        c = last_data(s, c);
        hole = qed_owned_next(&s->k->owned, hole + 1, s->k->owned.n, false);
    }
    return n;
}

static int follow(struct co *co, void *arg, const struct qed_ref *r) { return 1; }

static int see_data(struct co *co, void *arg, const struct qed_ref *r)
{
    struct shorten *s = arg;
    uint64_t cluster = r->v >> s->g->cluster_bits;
    if (r->v == 1 || cluster < s->lowest || qed_owned_has(&s->stays, cluster))
        return 0;
    if (s->data_count == MOVES_MAX)
        return -EUCLEAN;                         /* somebody else writes to the file */
    s->data[s->data_count++] = (struct place){ cluster, r->entry_off };
    return 0;
}

static int find_data(struct co *co, struct shorten *s, size_t n)
{
    static const struct qed_visitor v = { .table = follow, .entry = see_data, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = s->k->q, .v = &v, .arg = s };
    free(s->data);
    s->data_count = 0;
    s->data = malloc(MOVES_MAX * sizeof *s->data);
    int r = s->data ? qed_walk(co, &w) : -ENOMEM;
    if (r == 0 && s->data_count != n)
        r = -EUCLEAN;
    if (r == 0)
        qsort(s->data, s->data_count, sizeof *s->data, by_cluster);
    return r;
}

/* ---- moves ---- */

static int take(struct shorten *s, uint64_t first, uint64_t n) { return qed_owned_take(&s->k->owned, first, n) < 0 ? -ENOMEM : 0; }

static int move_l1(struct co *co, struct shorten *s, uint64_t to)
{
    struct qed_image *q = s->k->q;
    int r = qed_barrier(co, q);
    return r < 0 ? r : qed_set_l1(co, q, to << s->g->cluster_bits);
}

static int move_table(struct co *co, struct shorten *s, struct place *t, uint64_t to)
{
    uint64_t n = s->g->table_clusters;
    struct qed_edits e = { 0 };
    bool unreadable;
    int r = take(s, to, n);
    if (r == 0)
        r = qed_owned_take(&s->is_table, to, n) < 0 ? -ENOMEM : 0;
    if (r == 0)
        r = qed_copy_clusters(co, s->k->q, t->cluster, to, n, &unreadable);
    if (r == 0 && t->at == L1_ITSELF) {
        r = move_l1(co, s, to);
    } else if (r == 0) {
        r = qed_edits_add(&e, s->k->q->h.l1_off + t->at * 8, to << s->g->cluster_bits);
        if (r == 0)
            r = qed_edits_settle(co, &e, s->k->q);
    }
    qed_edits_fini(&e);
    if (r < 0)
        return r;
    qed_owned_drop(&s->k->owned, t->cluster, n);                                     /* I1 */
    qed_owned_drop(&s->is_table, t->cluster, n);
    t->cluster = to;
    return 0;
}

/* Tables that lie behind what the file will have, into holes before that. */
static int fit_tables(struct co *co, struct shorten *s)
{
    uint64_t want = atomic_load(&s->k->owned.count), n = s->g->table_clusters;
    for (size_t i = s->table_count; i-- > 0 && s->tables[i].cluster + n > want;) {
        uint64_t to = qed_owned_gap(&s->k->owned, 0, want, n);
        if (to == QED_OWNED_NONE)
            return 0;
        int r = move_table(co, s, &s->tables[i], to);
        if (r < 0)
            return r;
        s->better = true;
    }
    return 0;
}

/* Data list[from..to) was copied: its entries change, then its old places are free. */
static int settle_data(struct co *co, struct shorten *s, struct qed_edits *e, size_t from, size_t to)
{
    int r = qed_edits_settle(co, e, s->k->q);
    for (size_t i = from; r == 0 && i < to; i++)
        if (!qed_owned_has(&s->stays, s->data[i].cluster)) {
            qed_owned_drop(&s->k->owned, s->data[i].cluster, 1);
            s->better = true;
        }
    return r;
}

/* I5. What was written to the hole names nothing, so it is one still. */
static int leave(struct shorten *s, uint64_t cluster, uint64_t hole)
{
    qed_owned_drop(&s->k->owned, hole, 1);
    if (qed_owned_grow(&s->stays, cluster + 1) || qed_owned_take(&s->stays, cluster, 1) < 0)
        return -ENOMEM;
    qed_tell_unreadable(s->k, cluster);
    return 0;
}

static int move_one(struct co *co, struct shorten *s, const struct place *p, uint64_t hole, struct qed_edits *e)
{
    bool unreadable = false;
    int r = take(s, hole, 1);
    if (r == 0)
        r = qed_copy_clusters(co, s->k->q, p->cluster, hole, 1, &unreadable);
    if (unreadable)
        return leave(s, p->cluster, hole);
    return r < 0 ? r : qed_edits_add(e, p->at, hole << s->g->cluster_bits);
}

/* The last data into the first hole, and so on until they meet. */
static int move_data(struct co *co, struct shorten *s)
{
    struct qed_edits e = { 0 };
    uint64_t hole = 0;
    size_t i = s->data_count, done = i;
    int r = 0;
    while (r == 0 && i > 0) {
        hole = qed_owned_next(&s->k->owned, hole, s->k->owned.n, false);
        if (hole >= s->data[i - 1].cluster)
            break;
        r = move_one(co, s, &s->data[--i], hole, &e);
        if (r == 0 && (e.count == BATCH_ENTRIES || e.count << s->g->cluster_bits >= BATCH_BYTES)) {
            r = settle_data(co, s, &e, i, done);
            done = i;
        }
    }
    if (r == 0)
        r = settle_data(co, s, &e, i, done);
    qed_edits_fini(&e);
    return r;
}

/* Only tables, and what stays, lie behind the first hole, and none fits: each goes to the end and comes back in front of where it was. */
static int slide_tables(struct co *co, struct shorten *s)
{
    uint64_t n = s->g->table_clusters, end = s->k->owned.n;
    int r = qed_owned_grow(&s->k->owned, end + n);
    if (r == 0)
        r = qed_owned_grow(&s->is_table, end + n);
    for (size_t i = 0; r == 0 && i < s->table_count; i++) {
        uint64_t hole = qed_owned_next(&s->k->owned, 0, end, false), old = s->tables[i].cluster;
        if (hole == QED_OWNED_NONE || old < hole)
            continue;
        r = move_table(co, s, &s->tables[i], end);
        if (r == 0)
            r = move_table(co, s, &s->tables[i], qed_owned_gap(&s->k->owned, 0, end, n));      /* where it was, if nowhere else */
        s->better |= s->tables[i].cluster < old;
    }
    return r;
}

/* ---- the whole ---- */

/* What lies behind the last cluster in use. I1: the barrier was. */
static int cut(struct co *co, struct qed_checker *k)
{
    uint64_t end = qed_owned_last(&k->owned, k->owned.n) + 1;
    if (end >= k->owned.n)
        return 0;
    int r = stor_truncate(co, k->q->im.store, end << k->g->cluster_bits);
    return r < 0 ? r : qed_barrier(co, k->q);
}

static int shorten_round(struct co *co, struct shorten *s)
{
    size_t n;
    s->better = false;
    int r = find_tables(co, s);
    if (r == 0)
        r = fit_tables(co, s);
    if (r < 0 || s->better)
        return r;
    n = count_data(s);
    if (!n)
        return slide_tables(co, s);
    r = find_data(co, s, n);
    return r < 0 ? r : move_data(co, s);
}

static int run(struct co *co, struct shorten *s, struct byre_err *err)
{
    struct qed_checker *k = s->k;
    for (;;) {
        int r = cut(co, k);
        if (r < 0)
            return r;
        r = qed_check_begin(co, k, false, err);
        if (r == 0)
            r = qed_check_gather(co, k, false, err);
        if (r < 0)
            return r;
        if (k->res.corruptions || k->res.check_errors)
            return k->res.check_errors ? -EIO : -EUCLEAN;
        if (!k->res.leaks)
            return 0;
        uint64_t unreadable = k->unreadable;
        r = shorten_round(co, s);
        if (r < 0)
            return r;
        if (!s->better && k->unreadable == unreadable)               /* I4 */
            return cut(co, k);
    }
}

int qed_shorten(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    struct shorten s = { .k = k, .g = k->g };
    struct byre_err why = { 0 };
    k->quiet = true;
    int r = run(co, &s, &why);
    qed_owned_fini(&s.is_table);
    qed_owned_fini(&s.stays);
    free(s.tables);
    free(s.data);
    if (r == 0)
        return 0;
    if (why.code) {
        if (err)
            *err = why;
        return r;
    }
    return r == -ENOSPC ? byre_fail(err, NO_SPACE, "%s: no space left to move clusters", k->q->name)
                        : byre_fail_code(err, IO, r, "%s: clusters cannot be moved: %s", k->q->name, strerror(-r));
}
