/* SPDX-License-Identifier: MIT
 *
 * q2_snap_view.c: looking at an internal snapshot.
 *
 * Purpose      A read-only opening shows a snapshot instead of the disk, with the size that the disk had then (G.006).
 * Owns         Nothing.
 * Invariants   V1  Only what is in memory changes: from here on the image's L1 table and size are the snapshot's.
 * Order        Reads only.
 * Concurrency  Home loop, while the image is being opened.
 * Failure      NOT_FOUND, Q2_SNAPSHOTS; nothing changed.
 * Tests        tests/interop/test_snapshots.py
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_snap_priv.h"
#include "fmt/qcow2/q2_walk.h"

static int show(struct q2_image *q, const struct q2_snapshot *it, uint64_t file_bytes, struct byre_err *err)
{
    if (!it->l1_ok || (it->l1_size && q2_outside(&q->g, file_bytes, it->l1_off, (uint64_t)it->l1_size * 8)))
        return byre_fail(err, Q2_SNAPSHOTS, "%s: snapshot '%s': its L1 table of %" PRIu32 " entries at %#" PRIx64 " is not in the file", q->name, it->name, it->l1_size, it->l1_off);
    if (it->disk_size > INT64_MAX || q2_l1_entries(&q->g, it->disk_size) > Q2_L1_BYTES_MAX / 8)
        return byre_fail(err, Q2_SNAPSHOTS, "%s: snapshot '%s': %" PRIu64 " bytes are no size that a disk can have", q->name, it->name, it->disk_size);
    q->h.l1_off = it->l1_off;
    q->h.l1_size = it->l1_size;                      /* a shorter table than the size asks for reads zeros behind it */
    q->h.size = it->disk_size;
    atomic_store(&q->im.size, it->disk_size);
    return 0;
}

int q2_snapshot_view(struct co *co, struct q2_image *q, const struct fmt_snapshot_pick *pick, struct byre_err *err)
{
    struct q2_snapshot_scan list;
    uint64_t len;
    if (!q->im.read_only)
        return byre_fail(err, BAD_ARGUMENT, "%s: a snapshot can be opened for reading only", q->name);
    int r = stor_length(co, q->im.store, &len);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", q->name);
    r = q2_snapshots_scan_sound(co, q->im.store, &q->g, &q->h, &list, err);
    if (r < 0)
        return r;
    const struct q2_snapshot *it = q2_snap_find(q, &list, pick, err);
    r = it ? show(q, it, len, err) : -ENOENT;
    q2_snapshots_free(list.snapshots, list.count);
    return r;
}
