/* SPDX-License-Identifier: MIT
 *
 * qed_map.c: where is this guest range?
 *
 * Purpose      L1 in memory, L2 in slices of the metadata cache; a range as far as one slice answers it.
 * Owns         Nothing.
 * Invariants   M1 No pointer is followed that is not aligned, points into the header or does not lie in the file as a whole:
 *                 whoever meets it gets -EIO, everybody else his data.
 *              M2 A zero cluster is said to be zero, to its last byte; it is never absent (2.010, G.019).
 * Order        None: nothing is written.
 * Concurrency  qed_map: any loop, inside an epoch section.
 * Failure      -EIO a bad entry, or a table that cannot be read.
 * Tests        qed_read_test.c, tests/interop/test_qed.py, fuzz/qed_open.c
 */
#include "fmt/qed/qed_image.h"

#define HOLE_LOOK_MAX 4096u                       /* L1 entries looked at for one answer */

static uint64_t l1_entry(const struct qed_image *q, uint64_t guest)
{
    return le64_word(atomic_load_explicit(&q->l1[qed_l1_index(&q->g, guest)], memory_order_acquire));
}

static uint64_t l2_entry(const struct meta_block *b, uint64_t i) { return le64_word(atomic_load_explicit(&b->words[i], memory_order_acquire)); }

static uint64_t slice_off(const struct qed_image *q, uint64_t table, uint64_t guest)
{
    return table + round_down(qed_l2_index(&q->g, guest) * 8, QED_SLICE_BYTES);
}

static void extent_of(const struct qed_image *q, enum qed_entry kind, uint64_t v, uint64_t off, struct fmt_extent *x)
{
    uint64_t in = qed_in_cluster(&q->g, off);
    *x = (struct fmt_extent){ .kind = kind == QED_POINTER ? FMT_DATA : kind == QED_ZERO ? FMT_ZERO : FMT_ABSENT, .len = q->g.cluster_size - in };
    x->has_host = kind == QED_POINTER;
    x->host = x->has_host ? v + in : 0;
}

/* Maps [off, off+len) as far as the slice answers it. -EUCLEAN: its first entry is bad. */
static int map_slice(const struct qed_image *q, const struct meta_block *b, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    uint64_t end = atomic_load_explicit(&q->file_end, memory_order_relaxed), i = qed_l2_index(&q->g, off) % QED_SLICE_ENTRIES;
    uint64_t v = l2_entry(b, i);
    enum qed_entry kind = qed_entry_kind(&q->g, v, end);
    struct fmt_extent x;
    if (kind == QED_BAD)
        return -EUCLEAN;
    extent_of(q, kind, v, off, &x);
    while (x.len < len && ++i < QED_SLICE_ENTRIES) {
        v = l2_entry(b, i);
        if (qed_entry_kind(&q->g, v, end) != kind || (x.has_host && v != x.host + x.len))
            break;
        x.len += q->g.cluster_size;
    }
    x.len = min_u64(x.len, len);
    *ret = x;
    return 0;
}

/* No L2 table: how far? */
static void map_hole(const struct qed_image *q, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    uint64_t end = round_down(off, q->g.l2_span) + q->g.l2_span;
    for (unsigned i = 0; i < HOLE_LOOK_MAX && end < off + len && !l1_entry(q, end); i++)
        end += q->g.l2_span;
    *ret = (struct fmt_extent){ .kind = FMT_ABSENT, .len = min_u64(end - off, len) };
}

/* ---- the home loop's part: load, then map ---- */

struct map_call { struct qed_image *q; uint64_t off, len; struct fmt_extent *ret; };

/* Somebody else may write the file that is read here (force-share), and have made it longer. */
static bool file_has_grown(struct co *co, struct qed_image *q)
{
    uint64_t len, old = atomic_load(&q->file_end);
    if (stor_length(co, q->im.store, &len) || qed_file_end(&q->g, len) <= old)
        return false;
    atomic_store(&q->file_end, qed_file_end(&q->g, len));
    return true;
}

/* The slice has nothing from the asked offset to its end: does a hole of the file say so of the slices behind it, too? Else a
 * table of a gibibyte would be read slice by slice, to learn that it is empty. */
static void extend_by_hole(struct co *co, struct map_call *c, uint64_t table)
{
    const struct qed_geom *g = &c->q->g;
    uint64_t next = c->off + c->ret->len, in_table = qed_l2_index(g, next) * 8;
    struct stor_extent x;
    if (c->ret->kind != FMT_ABSENT || c->ret->len == c->len || in_table % QED_SLICE_BYTES || !in_table)
        return;
    if (stor_extent(co, c->q->im.store, table + in_table, g->table_bytes - in_table, &x) || x.content != STOR_HOLE)
        return;
    uint64_t end = min_u64(x.off + x.len, table + g->table_bytes);
    if (end > table + in_table)
        c->ret->len = min_u64(c->ret->len + ((end - table - in_table) / 8 << g->cluster_bits), c->len);
}

static int map_loaded(struct co *co, struct map_call *c)
{
    struct qed_image *q = c->q;
    struct meta_block *b;
    uint64_t table = l1_entry(q, c->off);
    enum qed_entry kind = qed_table_kind(&q->g, table, atomic_load(&q->file_end));
    if (kind == QED_ABSENT)
        map_hole(q, c->off, c->len, c->ret);
    if (kind != QED_POINTER)
        return kind == QED_BAD ? -EUCLEAN : 0;
    int r = meta_get(co, q->meta, &q->kind_l2, slice_off(q, table, c->off), &b);
    if (r < 0)
        return r;
    r = map_slice(q, b, c->off, c->len, c->ret);
    meta_put(q->meta, b);
    if (r == 0)
        extend_by_hole(co, c, table);
    return r;
}

static int map_home(struct co *co, void *arg)
{
    struct map_call *c = arg;
    int r = map_loaded(co, c);
    if (r == -EUCLEAN && file_has_grown(co, c->q))
        r = map_loaded(co, c);
    return r == -EUCLEAN || r == -ESTALE ? -EIO : r;
}

int qed_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    struct qed_image *q = qed_of(im);
    uint64_t table = l1_entry(q, off);
    if (!table) {
        map_hole(q, off, len, ret_e);
        return 0;
    }
    if (qed_table_kind(&q->g, table, atomic_load_explicit(&q->file_end, memory_order_relaxed)) == QED_POINTER) {
        struct meta_block *b = meta_peek(q->meta, slice_off(q, table, off));
        if (b && map_slice(q, b, off, len, ret_e) == 0)
            return 0;
    }
    struct map_call c = { q, off, len, ret_e };
    return rt_call(co, im->home, map_home, &c);
}
