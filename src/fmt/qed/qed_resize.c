/* SPDX-License-Identifier: MIT
 *
 * qed_resize.c: another virtual size (2.017, 2.018).
 *
 * Purpose      The L1 table has its full length from the beginning: growing changes one field of the header, however large it becomes.
 * Owns         Nothing beyond the call; the image is drained.
 * Invariants   S1  A crash shows the old or the new size; what growing uncovers reads zero.
 *              S2  Until the header says the new size, im->size may be larger already, so that the graph can write zeros (fmt.h).
 *              S3  What stale entries named may belong to others, too: only a look at all tables can tell. The mark stays until then.
 * Order        Entries behind the old end, and all that the guest wrote, durable | the size | META_B_HEADER (Q19).
 * Concurrency  Home loop, drained. Suspends.
 * Failure      The old size.
 * Tests        qed_write_test.c, tests/interop/test_qed_write.py
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qed/qed_image.h"

/* ---- the L1 table in memory ---- */

static uint64_t l1_bytes(uint64_t entries) { return round_up(max_u64(entries * 8, 1), 512); }

int qed_l1_read(struct co *co, struct qed_image *q, uint64_t size, _Atomic uint64_t **ret_l1, uint64_t **ret_dirty)
{
    void *words = NULL;
    uint64_t *dirty = NULL, bytes = l1_bytes(qed_l1_used(&q->g, size));
    if (posix_memalign(&words, 4096, bytes))
        return -ENOMEM;
    int r = 0;
    if (!q->im.read_only && !(dirty = calloc(div_up(bytes, 512 * 64), 8)))
        r = -ENOMEM;
    if (r == 0)
        r = stor_read_exact(co, q->im.store, words, bytes, q->h.l1_off);
    if (r < 0) {
        free(words);
        free(dirty);
        return r;
    }
    *ret_l1 = words;
    *ret_dirty = dirty;
    return 0;
}

void qed_l1_install(struct qed_image *q, uint64_t size, _Atomic uint64_t *l1, uint64_t *dirty)
{
    _Atomic uint64_t *old = atomic_exchange_explicit(&q->l1, l1, memory_order_acq_rel);
    if (q->l1_dirty)
        meta_region_remove(q->meta, &q->l1_region);
    free(q->l1_dirty);
    free((void *)old);
    q->l1_entries = qed_l1_used(&q->g, size);
    q->l1_dirty = dirty;
    q->l1_region = (struct meta_region){ .rank = META_ROOTS, .off = q->h.l1_off, .words = l1, .bytes = l1_bytes(q->l1_entries), .dirty = dirty,
                                          .on_write = STOR_EV_L1_UPDATE };
    if (dirty)
        meta_region_add(q->meta, &q->l1_region);
}

/* ---- growing ---- */

/* The L1 entries that the new size begins to use, and nobody should have set. S3 */
static void clear_l1(struct qed_image *q, uint64_t from)
{
    for (uint64_t i = from; i < q->l1_entries; i++)
        if (atomic_load_explicit(&q->l1_region.words[i], memory_order_relaxed)) {
            meta_region_put(q->meta, &q->l1_region, i, 0);
            q->mark.keep = true;
        }
}

/* Entries of one slice behind the old end, which nobody should have set: they would show bytes in the new space. S3 */
static int clear_slice(struct co *co, struct qed_image *q, uint64_t off, uint64_t end)
{
    struct meta_block *b;
    uint32_t i;
    int r = qed_slice_get(co, q, off, &b, &i);
    if (r < 0 || !b)
        return r;
    for (uint64_t at = off; at < end; at += q->g.cluster_size, i++)
        if (qed_entry(b, i)) {
            q->mark.keep |= qed_entry(b, i) != 1;
            qed_entry_set(q, b, i, 0);
        }
    meta_put(q->meta, b);
    return 0;
}

/* The same in the last table that the old size uses. */
static int clear_behind(struct co *co, struct qed_image *q, uint64_t from, uint64_t to)
{
    uint64_t span = qed_slice_span(q), end;
    int r = 0;
    for (uint64_t off = round_up(from, q->g.cluster_size); r == 0 && off < to; off = end) {
        end = min_u64(to, round_down(off, span) + span);
        r = clear_slice(co, q, off, end);
    }
    return r;
}

static int grow(struct co *co, struct qed_image *q, uint64_t size)
{
    uint64_t old = q->h.size, *dirty;
    _Atomic uint64_t *l1;
    int r = qed_mark_enter(co, q);                /* entries may change */
    if (r < 0)
        return r;
    r = meta_flush(co, q->meta);                  /* the table on the disk is the one in memory */
    if (r == 0)
        r = qed_l1_read(co, q, size, &l1, &dirty);
    if (r == 0) {
        qed_l1_install(q, size, l1, dirty);
        clear_l1(q, qed_l1_used(&q->g, old));
        r = clear_behind(co, q, old, min_u64(round_up(size, q->g.cluster_size), qed_l1_used(&q->g, old) * q->g.l2_span));
    }
    if (r == 0)
        atomic_store(&q->im.size, size);          /* S2 */
    qed_mark_exit(q);
    return r;
}

int qed_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    struct qed_image *q = qed_of(im);
    ASSERT_LOOP(im->home);
    if (prealloc != FMT_PREALLOC_OFF)
        return byre_fail(err, NOT_SUPPORTED, "%s: images of the format qed know no preallocation", q->name);
    if (size % 512 || size > q->g.size_max)
        return byre_fail(err, BAD_SIZE, "%s: size %" PRIu64 " must be a multiple of 512 and at most %" PRIu64 " with this geometry", q->name, size, q->g.size_max);
    if (size < q->h.size)
        return byre_fail(err, NOT_SUPPORTED, "%s: images of the format qed cannot shrink", q->name);
    if (size == q->h.size)
        return 0;
    int r = qed_scrub_excludes(q, "resized", err);
    if (r < 0)
        return r;
    q->changing = "resized";
    r = grow(co, q, size);
    if (r < 0)
        q->changing = NULL;                       /* there is no commit */
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the table for the new space cannot be prepared", q->name) : 0;
}

int qed_resize_commit(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err)
{
    struct qed_image *q = qed_of(im);
    uint64_t size = atomic_load(&im->size);
    q->changing = NULL;
    if (size == q->h.size)
        return 0;
    int r = keep ? meta_flush(co, q->meta) : 0;
    if (keep && r == 0)
        r = qed_set_size(co, q, size);
    if (!keep || r < 0)
        atomic_store(&im->size, q->h.size);       /* the larger array serves the old size, too */
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the new size cannot be written", q->name) : 0;
}
