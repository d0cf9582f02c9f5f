/* SPDX-License-Identifier: MIT
 *
 * q2_empty.c: an image that holds nothing of its own any more (FEATURES 1.059): what commit leaves.
 *
 * Purpose     Unallocates every cluster and every L2 table of the disk, and makes the file as short as that allows. Internal snapshots
 *             and bitmaps keep what is theirs.
 * Owns        Nothing beyond the call; the image is drained.
 * Invariants  I1  The caller says that the layers below hold the content, durably (J2). So any mix of entries that are gone and entries
 *                 that are not reads the same, and their order does not matter; only space must not be used again before its
 *                 entry is gone (Q9).
 * Order       The pass, as ever. An external data file is punched behind the pass (Q21): an entry never names a hole that was data.
 * Concurrency Home loop, drained. Suspends.
 * Failure     Some of it is gone, the disk reads the same.
 * Tests       tests/interop/test_commit.py, crash explorer (chain-*), tests/kill/test_kill_chain.py
 */
#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fmt/qcow2/q2_compact_priv.h"

static int give_back(struct co *co, struct q2_image *q)
{
    if (q->g.data_file && !q->opts.discard_no_punch) {
        int r = stor_discard(co, q2_data_below(q), 0, round_up(q->h.size, 512));
        (void)r;                                 /* advisory: no entry names it */
    }
    int r = q2_alloc_scan_all(co, q);            /* what is free behind the last one in use must be known to be cut off */
    return r < 0 ? r : q2_shorten(co, q);
}

int q2_make_empty(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (q->failed)
        return byre_fail(err, Q2_CORRUPT, "%s: the image is corrupt", q->name);
    if (im->data_raw)
        return byre_fail(err, NOT_SUPPORTED, "%s: its external data file is a raw image of its own and cannot be emptied", q->name);
    int r = q2_scrub_excludes(q, "emptied", err);
    if (r < 0)
        return r;
    q->changing = true;                          /* no scrub begins */
    stor_event(co, im->store, STOR_EV_EMPTY_IMAGE_PREPARE);
    r = q2_cut(co, q, 0, round_up(q->h.size, q2_l2_span(&q->g)));
    if (r == 0)
        r = meta_flush(co, q->meta);
    if (r == 0)
        r = give_back(co, q);
    if (r == 0)
        r = meta_flush(co, q->meta);             /* counts that were lowered meanwhile */
    q->changing = false;
    r = q2_judge(co, q, r, "what was met when the image was emptied, behind guest offset", 0);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: cannot be emptied: %s", q->name, strerror(-r)) : 0;
}
