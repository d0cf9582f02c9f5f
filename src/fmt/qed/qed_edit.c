/* SPDX-License-Identifier: MIT
 *
 * qed_edit.c: what repair writes: entries, and copies of clusters and tables.
 *
 * Purpose      The few ways in which a repair changes the file.
 * Owns         The list of entries.
 * Invariants   I1 Every write of entries is whole 512-byte sectors; an entry never lies in two.
 *              I2 A copy goes to a place that no durable entry names.
 * Order        qed_edits_settle: copies | entries | whatever follows (E1, E2).
 * Concurrency  Home loop, inside meta_struct_begin.
 * Failure      -errno: each sector is old or new; a barrier that failed lets nothing be written any more.
 * Tests        qed_fix_test.c, tests/crash/qed_crash.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/mutant.h"
#include "fmt/qed/qed_check_priv.h"

#define SPAN_MAX 65536u                           /* bytes written at once */
#define GAP_MAX 4096u                             /* entries closer than this share a span */

int qed_barrier(struct co *co, struct qed_image *q) { return meta_barrier(co, q->meta, META_B_REPAIR); }

/* ---- entries ---- */

void qed_edits_fini(struct qed_edits *e)
{
    free(e->list);
    *e = (struct qed_edits){ 0 };
}

int qed_edits_add(struct qed_edits *e, uint64_t off, uint64_t v)
{
    ASSERT(off % 8 == 0);
    if (e->count == e->room) {
        size_t room = e->room ? e->room * 2 : 64;
        struct qed_edit *list = realloc(e->list, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        e->list = list;
        e->room = room;
    }
    e->list[e->count++] = (struct qed_edit){ off, v };
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct qed_edit *)a)->off, y = ((const struct qed_edit *)b)->off;
    return x < y ? -1 : x > y;
}

static int apply_span(struct co *co, struct qed_image *q, struct qed_edits *in, const struct qed_edit *from, const struct qed_edit *to, uint8_t *buf)
{
    uint64_t start = round_down(from->off, 512), len = round_up((to - 1)->off + 8, 512) - start;
    int r = stor_read_exact(co, q->im.store, buf, len, start);
    if (r < 0)
        return r;
    for (const struct qed_edit *e = from; e < to; e++)
        le64_put((le64 *)(buf + (e->off - start)), e->v);
    in->begun = true;
    return meta_write_now(co, q->meta, buf, len, start);
}

int qed_edits_apply(struct co *co, struct qed_edits *e, struct qed_image *q)
{
    AUTOFREE uint8_t *buf = NULL;
    void *mem;
    int r = 0;
    if (!e->count)
        return 0;
    if (posix_memalign(&mem, 4096, SPAN_MAX + 1024))
        return -ENOMEM;
    buf = mem;
    qsort(e->list, e->count, sizeof *e->list, by_offset);
    for (size_t i = 0, n; r == 0 && i < e->count; i = n) {
        for (n = i + 1; n < e->count; n++)
            if (e->list[n].off - e->list[n - 1].off > GAP_MAX || e->list[n].off - e->list[i].off > SPAN_MAX - 512)
                break;
        r = apply_span(co, q, e, &e->list[i], &e->list[n], buf);
    }
    e->count = 0;
    return r;
}

int qed_edits_settle(struct co *co, struct qed_edits *e, struct qed_image *q)
{
    if (!e->count)
        return 0;
    int r = MUTANT(MUT_QED_COPY_LATE) ? 0 : qed_barrier(co, q);
    if (r == 0)
        r = qed_edits_apply(co, e, q);
    return r < 0 || MUTANT(MUT_QED_REUSE_EARLY) ? r : qed_barrier(co, q);
}

/* ---- copies ---- */

static void clean_table(const struct qed_geom *g, le64 *w, uint64_t n, uint64_t end)
{
    for (uint64_t i = 0; i < n; i++)
        if (qed_entry_kind(g, le64_get(&w[i]), end) == QED_BAD)
            le64_put(&w[i], 0);
}

static int copy_piece(struct co *co, struct qed_image *q, struct qed_copy *c, uint64_t at, uint64_t n, uint8_t *buf)
{
    int r = stor_read_exact(co, q->im.store, buf, n, c->from + at);
    c->unreadable = r == -EIO;
    if (r < 0)
        return r;
    if (c->table_end)
        clean_table(&q->g, (le64 *)buf, n / 8, c->table_end);
    return meta_write_now(co, q->meta, buf, n, c->to + at);
}

/* A hole stays one, as far as the file can have holes. */
static int copy_some(struct co *co, struct qed_image *q, struct qed_copy *c, uint64_t at, uint8_t *buf, uint64_t *ret_n)
{
    struct stor_extent x;
    uint64_t left = c->len - at;
    *ret_n = min_u64(left, QED_PIECE_BYTES);
    if (stor_extent(co, q->im.store, c->from + at, left, &x) == 0 && x.content == STOR_HOLE && x.off <= c->from + at) {
        uint64_t n = round_down(min_u64(x.off + x.len - (c->from + at), left), QED_SLICE_BYTES);
        if (n) {
            *ret_n = n;
            return stor_zero(co, q->im.store, c->to + at, n, STOR_UNMAP);
        }
    }
    return copy_piece(co, q, c, at, *ret_n, buf);
}

int qed_copy_out(struct co *co, struct qed_image *q, struct qed_copy *c)
{
    AUTOFREE uint8_t *buf = NULL;
    void *mem;
    uint64_t len, n;
    int r = stor_length(co, q->im.store, &len);
    if (posix_memalign(&mem, 4096, min_u64(QED_PIECE_BYTES, c->len)))
        return -ENOMEM;
    buf = mem;
    if (r == 0 && len < c->to + c->len)
        r = stor_truncate(co, q->im.store, c->to + c->len);
    for (uint64_t at = 0; r == 0 && at < c->len; at += n)
        r = copy_some(co, q, c, at, buf, &n);
    return r;
}

int qed_copy_clusters(struct co *co, struct qed_image *q, uint64_t from, uint64_t to, uint64_t n, bool *ret_unreadable)
{
    unsigned bits = q->g.cluster_bits;
    struct qed_copy c = { .from = from << bits, .to = to << bits, .len = n << bits };
    int r = qed_copy_out(co, q, &c);
    if (ret_unreadable)
        *ret_unreadable = c.unreadable;
    return r;
}
