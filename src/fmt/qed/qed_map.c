/* SPDX-License-Identifier: MIT
 *
 * qed_map.c: where is this guest range?
 *
 * Purpose      L1 in memory, L2 in slices of the metadata cache; a range as far as one slice answers it. Makes missing L2 tables.
 * Owns         The L1 table in memory.
 * Invariants   M1  No pointer is followed that is not aligned, points into the header or does not lie in the file as a whole:
 *                  whoever meets it gets -EIO, everybody else his data.
 *              M2  A zero cluster is said to be zero, to its last byte; it is never absent (2.010, G.019).
 *              M3  An entry that names a cluster changes only when the cluster moves (qed_fill.c): what map() said stays true, and a cluster
 *                  may be written in place whenever it is there and not held for that.
 *              M4  A hole of the file says what a table holds only when nothing of it waits in the cache.
 *              M5  What names a table as data is read, and never written.
 * Order        A new table's zeros are written before its L1 entry is set, and its entries go in front of that: the barrier between
 *              tables and roots covers both, and the length of the file (E2, E3).
 * Concurrency  qed_map: any loop, inside an epoch section. The rest: home loop.
 * Failure      -EIO a bad entry, or a table that cannot be read. Inside the folder a bad entry is -EUCLEAN.
 * Tests        qed_read_test.c, qed_write_test.c, tests/interop/test_qed.py, fuzz/qed_open.c
 */
#include "base/assert.h"
#include "fmt/qed/qed_image.h"

#define HOLE_LOOK_MAX 4096u                       /* L1 entries looked at for one answer */

static uint64_t l1_entry(const struct qed_image *q, uint64_t guest)
{
    const _Atomic uint64_t *l1 = atomic_load_explicit(&q->l1, memory_order_acquire);
    return le64_word(atomic_load_explicit(&l1[qed_l1_index(&q->g, guest)], memory_order_acquire));
}

static uint64_t slice_off(const struct qed_image *q, uint64_t table, uint64_t guest)
{
    return table + round_down(qed_l2_index(&q->g, guest) * 8, QED_SLICE_BYTES);
}

/* What names nothing in an unclean image reads as its scrub will leave it. */
static enum qed_entry seen(const struct qed_image *q, enum qed_entry kind)
{
    return kind == QED_BAD && atomic_load_explicit(&q->im.unclean, memory_order_relaxed) ? QED_ABSENT : kind;
}

static void extent_of(const struct qed_image *q, bool held, enum qed_entry kind, uint64_t v, uint64_t off, struct fmt_extent *x)
{
    uint64_t in = qed_in_cluster(&q->g, off);
    *x = (struct fmt_extent){ .kind = kind == QED_POINTER ? FMT_DATA : kind == QED_ZERO ? FMT_ZERO : FMT_ABSENT, .len = q->g.cluster_size - in };
    x->has_host = kind == QED_POINTER;
    x->writable = x->has_host && !q->im.read_only && !held;
    x->host = x->has_host ? v + in : 0;
}

/* Maps [off, off+len) as far as the slice answers it. -EUCLEAN: its first entry is bad. */
static int map_slice(const struct qed_image *q, const struct meta_block *b, uint64_t off, uint64_t len, struct fmt_extent *ret)
{
    struct qed_held h = qed_held_now(q);
    uint64_t end = atomic_load_explicit(&q->file_end, memory_order_relaxed), i = qed_l2_index(&q->g, off) % QED_SLICE_ENTRIES;
    uint64_t v = qed_entry(b, i);
    enum qed_entry kind = seen(q, qed_entry_kind(&q->g, v, end));
    bool held = qed_held_has(&h, v);
    struct fmt_extent x;
    if (kind == QED_BAD)
        return -EUCLEAN;
    extent_of(q, held, kind, v, off, &x);
    while (x.len < len && ++i < QED_SLICE_ENTRIES) {
        v = qed_entry(b, i);
        if (seen(q, qed_entry_kind(&q->g, v, end)) != kind || (x.has_host && (v != x.host + x.len || qed_held_has(&h, v) != held)))
            break;
        x.len += q->g.cluster_size;
    }
    x.len = min_u64(x.len, len);
    if (x.writable && qed_hits_table(q, x.host, &x.len))          /* M5 */
        x.writable = false;
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

/* ---- slices ---- */

int qed_slice_get(struct co *co, struct qed_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index)
{
    uint64_t table = l1_entry(q, guest);
    enum qed_entry kind = seen(q, qed_table_kind(&q->g, table, atomic_load(&q->file_end)));
    *ret_b = NULL;
    *ret_index = qed_l2_index(&q->g, guest) % QED_SLICE_ENTRIES;
    if (kind == QED_ABSENT)
        return 0;
    return kind == QED_POINTER ? meta_get(co, q->meta, &q->kind_l2, slice_off(q, table, guest), ret_b) : -EUCLEAN;
}

/* Clusters for a table. What somebody uses as a table all the same, although no table names it, is out of reach until a check. */
static int take_for_table(struct co *co, struct qed_image *q, struct qed_run *ret)
{
    for (;;) {
        int r = qed_alloc_take(co, q, q->g.table_clusters, true, ret);
        if (r < 0 || meta_forget(q->meta, ret->off, q->g.table_bytes))
            return r;
        q->mark.keep = true;
    }
}

/* A table of zeros for the L1 entry of `guest`. Its index is locked. */
static int make_table(struct co *co, struct qed_image *q, uint64_t guest)
{
    struct qed_run run;
    int r = take_for_table(co, q, &run);
    if (r < 0)
        return r;
    stor_event(co, q->im.store, STOR_EV_L2_ALLOC_WRITE);
    r = run.known_zero ? 0 : stor_zero(co, q->im.store, run.off, q->g.table_bytes, 0);
    if (r < 0) {
        qed_alloc_return(q, &run);
        return r;
    }
    meta_region_put(q->meta, &q->l1_region, qed_l1_index(&q->g, guest), le64_word(run.off));
    meta_need_table_barrier(q->meta);
    return 0;
}

int qed_slice_own(struct co *co, struct qed_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index)
{
    if (!l1_entry(q, guest)) {
        struct co_range lock;
        uint64_t i = qed_l1_index(&q->g, guest);
        co_range_lock(co, &q->l1_locks, &lock, i, i + 1);
        int r = l1_entry(q, guest) ? 0 : make_table(co, q, guest);
        co_range_unlock(&q->l1_locks, &lock);
        if (r < 0)
            return r;
    }
    if (qed_table_shared(q, l1_entry(q, guest))) {
        qed_tell(q, l1_entry(q, guest), q->g.table_bytes, "two tables share clusters");
        return -EUCLEAN;
    }
    int r = qed_slice_get(co, q, guest, ret_b, ret_index);
    ASSERT(r < 0 || *ret_b);
    return r;
}

void qed_entry_set(struct qed_image *q, struct meta_block *b, uint32_t i, uint64_t v) { meta_put_word(q->meta, b, i, le64_word(v)); }

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
    if (c->ret->kind != FMT_ABSENT || c->ret->len == c->len || in_table % QED_SLICE_BYTES || !in_table || !meta_is_clean(c->q->meta))
        return;                                   /* M4 */
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
    uint32_t index;
    int r = qed_slice_get(co, q, c->off, &b, &index);
    if (r < 0)
        return r;
    if (!b) {
        map_hole(q, c->off, c->len, c->ret);
        return 0;
    }
    r = map_slice(q, b, c->off, c->len, c->ret);
    meta_put(q->meta, b);
    if (r == 0)
        extend_by_hole(co, c, l1_entry(q, c->off));
    return r;
}

static int map_home(struct co *co, void *arg)
{
    struct map_call *c = arg;
    int r = map_loaded(co, c);
    if (r == -EUCLEAN && c->q->im.read_only && file_has_grown(co, c->q))
        r = map_loaded(co, c);
    return r == -EUCLEAN || r == -ESTALE ? -EIO : r;
}

int qed_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    struct qed_image *q = qed_of(im);
    uint64_t table = l1_entry(q, off);
    if (!table) {
        map_hole(q, off, len, ret_e);
        return 0;
    }
    if (qed_table_kind(&q->g, table, atomic_load_explicit(&q->file_end, memory_order_relaxed)) != QED_POINTER)
        return -EAGAIN;
    struct meta_block *b = meta_peek(q->meta, slice_off(q, table, off));
    return b && map_slice(q, b, off, len, ret_e) == 0 ? 0 : -EAGAIN;
}

int qed_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    if (qed_map_at_hand(im, off, len, ret_e) == 0)
        return 0;
    struct map_call c = { qed_of(im), off, len, ret_e };
    return rt_call(co, im->home, map_home, &c);
}
