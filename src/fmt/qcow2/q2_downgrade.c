/* SPDX-License-Identifier: MIT
 *
 * q2_downgrade.c: an image that version 2 can hold (FEATURES 1.139).
 *
 * Purpose     Says what version 2 has no words for; turns what reads zero by a flag into what reads zero without one.
 * Owns        Nothing beyond the call; the image is drained.
 * Invariants  I1  No guest byte changes. Where nothing shows from below, an entry becomes unallocated; else the cluster is filled
 *                 with zeros, as by a guest's write.
 *             I2  Until the header says version 2 the image is a sound one of version 3.
 * Order       As for discards and writes: q2_resize.c (cut), q2_write.c; snapshots first, whose tables the disk may share: q2_expand.c.
 * Concurrency Home loop, drained. Suspends.
 * Failure     What was done stays.
 * Tests       tests/cli/amend_test.py, tests/interop/test_clone.py, crash explorer (amend)
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_amend_priv.h"
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_snapshot.h"

/* ---- may it be? ---- */

static int check_snapshots(struct co *co, struct q2_image *q, uint64_t new_size, struct byre_err *err)
{
    struct q2_snapshot_scan scan;
    if (!q->h.nb_snapshots)
        return 0;
    int r = q2_snapshots_scan(co, q->im.store, &q->g, &q->h, &scan);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its snapshots cannot be read: %s", q->name, strerror(-r));
    for (uint32_t i = 0; r == 0 && i < scan.count; i++) {
        const struct q2_snapshot *s = &scan.snapshots[i];
        if (s->has_disk_size && s->disk_size != new_size)
            r = byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: snapshot '%s' has a size of its own, %" PRIu64 " bytes", q->name, s->name, s->disk_size);
        else if (s->vm_state_size > UINT32_MAX)
            r = byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: the VM state of snapshot '%s' is larger than 4 GiB", q->name, s->name);
    }
    q2_snapshots_free(scan.snapshots, scan.count);
    return r;
}

/* Who is the last owner of a cloned cluster gets his flag at a close that knows of clones (q2_clone.c L6), and the mark that there are some has no
 * place in version 2: there a check would find flags missing for good. The mark may be older than the last clone. */
static int check_clones(struct co *co, struct q2_image *q, struct byre_err *err)
{
    if (!q2_clone_any(q))
        return 0;
    int r = q2_clone_distrust(co, q);            /* a walk over all */
    if (r == 0)
        r = q2_rest(co, q);                      /* it goes when nothing is shared any more */
    q2_alloc_resume(q);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: cannot be brought to rest: %s", q->name, strerror(-r));
    return q2_clone_any(q) ? byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: clones share clusters%s, of which version 2 cannot tell; convert the image to a new one",
                                       q->name, q->h.nb_snapshots ? ", or may do so in snapshots" : "") : 0;
}

int q2_downgrade_check(struct co *co, struct q2_image *q, uint64_t new_size, struct byre_err *err)
{
    uint64_t features = q->h.incompat & ~Q2_INCOMPAT_DIRTY;
    if (q->g.data_file)
        return byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: not possible with an external data file", q->name);
    if (features)
        return byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: has no %s", q->name, features & Q2_INCOMPAT_EXT_L2 ? "extended L2 entries" : features & Q2_INCOMPAT_COMPRESSION ? "zstd compression" : "such incompatible features");
    if (q->h.crypt_method == 2)
        return byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: not possible with LUKS encryption", q->name);
    if (q->h.has_bitmaps && q->h.bitmap_count)
        return byre_fail(err, NOT_SUPPORTED, "%s: compat=0.10: has no persistent bitmaps; remove the %" PRIu32 " there are", q->name, q->h.bitmap_count);
    int r = check_snapshots(co, q, new_size, err);
    return r ? r : check_clones(co, q, err);
}

/* ---- zeros ---- */

/* Fills the clusters of [off, off+len) that the image may give: zeros, written as a guest would. *ret_len: how far. */
static int fill(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint64_t *ret_len)
{
    struct fmt_write w;
    int r = q2_write_begin(co, &q->im, off, len, &w);
    if (r < 0)
        return r;
    *ret_len = w.len ? w.len : q->g.cluster_size;
    if (!w.len)
        return 0;
    r = stor_zero(co, q->im.data, w.host - w.head, w.head + w.len + w.tail, 0);
    if (r < 0) {
        q2_write_abort(co, &q->im, &w);
        return r;
    }
    return q2_write_commit(co, &q->im, &w);
}

/* One extent of zeros. */
static int clear(struct co *co, struct q2_image *q, uint64_t off, uint64_t len)
{
    uint64_t below = atomic_load(&q->im.below_zero_from), size = q->h.size, end = off + len;
    int r = 0;
    while (r == 0 && off < end) {
        uint64_t show = min_u64(below, size), part;          /* from here on nothing shows */
        if (off >= show)
            return q2_cut(co, q, off, round_up(end, q->g.cluster_size));
        r = fill(co, q, off, min_u64(end, round_up(show, q->g.cluster_size)) - off, &part);
        off += part;
    }
    return r;
}

int q2_downgrade_zeros(struct co *co, struct q2_image *q, struct byre_err *err)
{
    uint64_t end = q->h.l1_size * q2_l2_span(&q->g);         /* behind the size too: what lies there is the VM's, or nobody's */
    int r = q2_expand_snapshots(co, q, err);
    if (r < 0)
        return r;
    for (uint64_t off = 0; r == 0 && off < end;) {
        struct fmt_extent e = { 0 };
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        r = q2_map(co, &q->im, off, end - off, &e);
        epoch_leave(q->im.epoch, co_loop(co), t);
        if (r == 0 && e.kind == FMT_ZERO)
            r = clear(co, q, off, e.len);
        off += e.len;
    }
    if (r == 0)
        r = meta_flush(co, q->meta);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: zero clusters cannot be expanded: %s", q->name, strerror(-r)) : 0;
}
