/* SPDX-License-Identifier: MIT
 *
 * qed_walk.c: all entries of all tables.
 *
 * Purpose      Reads the L1 table piece by piece, the L2 tables ahead, several pieces at a time, and hands out what is not 0.
 * Owns         Buffers during a walk.
 * Invariants   I1 Entries come in the order of the guest's disk.
 *              I2 Memory is bounded: one piece of the L1 table, what pieces.c allows, and a list of LIST_MAX pieces.
 *              I3 No pointer is judged here: table() says which are followed.
 * Order        Reads only.
 * Concurrency  Home loop; work() on the CPU pool.
 * Failure      A table that cannot be read is told, and the walk goes on.
 * Tests        qed_read_test.c, qed_fix_test.c, tests/interop/test_qed.py
 */
#include "fmt/qed/qed_walk.h"

#include <stdlib.h>

#include "base/cleanup.h"

#define LIST_MAX 4096u

struct todo { uint64_t table, at, len, guest; };  /* bytes [at, at+len) of the L2 table, whose first entry is of `guest` */

struct walk {
    const struct qed_walk *w;
    const struct qed_geom *g;
    struct todo *list;
    unsigned count, next;
    uint64_t lost;                                /* the table that was told as unreadable last */
};

int qed_table_piece(struct co *co, const struct qed_image *q, uint64_t table, uint64_t *at, uint64_t *ret_len)
{
    while (*at < q->g.table_bytes) {
        struct stor_extent x;
        uint64_t left = q->g.table_bytes - *at;
        if (left > QED_SLICE_BYTES && stor_extent(co, q->im.store, table + *at, left, &x) == 0 && x.content == STOR_HOLE &&
            x.off + x.len >= table + *at + 8) {
            *at = min_u64(round_down(x.off + x.len - table, 8), q->g.table_bytes);
            continue;
        }
        *ret_len = min_u64(QED_PIECE_BYTES, left);
        return 1;
    }
    return 0;
}

/* ---- L2 tables ---- */

static bool next_todo(void *arg, struct fmt_piece *p)
{
    struct walk *k = arg;
    if (k->next == k->count)
        return false;
    const struct todo *t = &k->list[k->next];
    p->off = t->table + t->at;
    p->len = t->len;
    p->tag = k->next++;
    return true;
}

static int work_todo(void *arg, unsigned worker, struct fmt_piece *p)
{
    struct walk *k = arg;
    return k->w->v->work(k->w->arg, worker, k->list[p->tag].guest, (const le64 *)p->data, p->len / 8, p->marks);
}

static int use_todo(struct co *co, void *arg, struct fmt_piece *p)
{
    struct walk *k = arg;
    const struct todo *t = &k->list[p->tag];
    const struct qed_visitor *v = k->w->v;
    if (p->rc && k->lost == t->table)
        return 0;
    if (p->rc) {
        k->lost = t->table;
        return v->unreadable(k->w->arg, false, t->table, p->rc);
    }
    if (k->w->workers && v->work) {
        v->summed(k->w->arg, t->guest, p->marks);
        return 0;
    }
    for (uint64_t i = 0; i < p->len / 8; i++) {
        struct qed_ref r = { le64_get((const le64 *)p->data + i), p->off + i * 8, t->guest + (i << k->g->cluster_bits), t->table };
        int rc = r.v ? v->entry(co, k->w->arg, &r) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int run_list(struct co *co, struct walk *k)
{
    struct fmt_pieces_ops ops = { .next = next_todo, .use = use_todo, .work = k->w->v->work ? work_todo : NULL, .exact = true };
    k->next = 0;
    int r = fmt_pieces_run_on(co, k->w->q->im.store, QED_PIECE_BYTES, &ops, k, k->w->workers);
    k->count = 0;
    return r;
}

/* Puts an L2 table on the list. A table of one piece is not asked about its holes: reading it costs less. */
static int add_table(struct co *co, struct walk *k, uint64_t i, uint64_t off)
{
    for (uint64_t at = 0, len = k->g->table_bytes; at < k->g->table_bytes; at += len) {
        if (k->g->table_bytes > QED_PIECE_BYTES && !qed_table_piece(co, k->w->q, off, &at, &len))
            break;
        k->list[k->count++] = (struct todo){ off, at, len, i * k->g->l2_span + (at / 8 << k->g->cluster_bits) };
        int r = k->count == LIST_MAX ? run_list(co, k) : 0;
        if (r < 0)
            return r;
    }
    return k->w->strict && k->count ? run_list(co, k) : 0;
}

/* ---- L1 table ---- */

static int use_l1(struct co *co, struct walk *k, const uint8_t *buf, uint64_t at, uint64_t len)
{
    for (uint64_t i = 0; i < len / 8; i++) {
        struct qed_ref r = { .v = le64_get((const le64 *)buf + i), .entry_off = k->w->q->h.l1_off + at + i * 8, .i = at / 8 + i };
        int rc = r.v ? k->w->v->table(co, k->w->arg, &r) : 0;
        if (rc > 0)
            rc = add_table(co, k, r.i, r.v);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int walk_l1(struct co *co, struct walk *k, uint8_t *buf)
{
    const struct qed_image *q = k->w->q;
    uint64_t at = 0, len;
    int r = 0;
    while (r == 0 && qed_table_piece(co, q, q->h.l1_off, &at, &len)) {
        r = stor_read_exact(co, q->im.store, buf, len, q->h.l1_off + at);
        if (r < 0) {
            r = k->w->v->unreadable(k->w->arg, true, q->h.l1_off, r);
            break;
        }
        r = use_l1(co, k, buf, at, len);
        at += len;
    }
    return r < 0 || !k->count ? r : run_list(co, k);
}

int qed_walk(struct co *co, const struct qed_walk *w)
{
    struct walk k = { .w = w, .g = &w->q->g };
    AUTOFREE uint8_t *buf = malloc(min_u64(QED_PIECE_BYTES, w->q->g.table_bytes));
    AUTOFREE struct todo *list = malloc(LIST_MAX * sizeof *list);
    if (!buf || !list)
        return -ENOMEM;
    k.list = list;
    return walk_l1(co, &k, buf);
}
