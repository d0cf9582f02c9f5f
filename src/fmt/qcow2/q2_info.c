/* SPDX-License-Identifier: MIT
 *
 * q2_info.c: what is there to tell about an image?
 *
 * Purpose      Fills struct fmt_info from the open image.
 * Owns         Nothing: every string is copied for the caller.
 * Invariants   I1 No second file is touched: works without data file, backing file and keys (1.073, 1.080).
 *              I2 Broken snapshot tables and bitmap directories make the lists shorter, not the call fail (G.015).
 * Order        Reads only.
 * Concurrency  Home loop; suspends in reads.
 * Failure      -ENOMEM, -EIO; then nothing is left allocated.
 * Tests        tests/interop/test_q2_create.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_snapshot.h"

static bool dup_to(char **ret, const char *s)
{
    if (!s)
        return true;
    *ret = strdup(s);
    return *ret != NULL;
}

static int fill_snapshots(struct co *co, const struct q2_image *q, struct fmt_info *i)
{
    struct q2_snapshot_scan scan;
    int rc = q2_snapshots_scan(co, q->im.store, &q->g, &q->h, &scan);
    if (rc || !scan.count) {
        q2_snapshots_free(scan.snapshots, scan.count);
        return rc;
    }
    i->snapshots = calloc(scan.count, sizeof *i->snapshots);
    rc = i->snapshots ? 0 : -ENOMEM;
    while (!rc && i->snapshot_count < scan.count) {
        const struct q2_snapshot *s = &scan.snapshots[i->snapshot_count];
        struct fmt_snapshot_info *r = &i->snapshots[i->snapshot_count++];
        *r = (struct fmt_snapshot_info){
            .vm_state_size = s->vm_state_size, .disk_size = s->disk_size, .vm_clock_ns = s->vm_clock_ns,
            .icount = s->icount, .date_sec = s->date_sec, .date_nsec = s->date_nsec, .has_icount = s->has_icount,
        };
        if (!dup_to(&r->id, s->id) || !dup_to(&r->name, s->name))
            rc = -ENOMEM;
    }
    q2_snapshots_free(scan.snapshots, scan.count);
    return rc;
}

static int fill_bitmaps(struct co *co, const struct q2_image *q, struct fmt_info *i)
{
    struct q2_bitmap *list = NULL;
    uint32_t count = 0;
    int rc = q2_bitmaps_load(co, q->im.store, &q->g, &q->h, &list, &count, NULL);
    if (rc == -EINVAL) {
        i->bitmaps_damaged = 1;
        return 0;
    }
    if (rc || !count)
        return rc;
    i->bitmaps = calloc(count, sizeof *i->bitmaps);
    rc = i->bitmaps ? 0 : -ENOMEM;
    for (uint32_t k = 0; !rc && k < count; k++) {
        const struct q2_bitmap *b = &list[k];
        i->bitmaps_damaged += b->bad != NULL;
        if (b->bad)
            continue;
        struct fmt_bitmap_info *r = &i->bitmaps[i->bitmap_count++];
        *r = (struct fmt_bitmap_info){
            .granularity = 1u << b->granularity_bits, .in_use = b->flags & Q2_BITMAP_IN_USE, .auto_on = b->flags & Q2_BITMAP_AUTO,
        };
        if (!dup_to(&r->name, b->name))
            rc = -ENOMEM;
    }
    q2_bitmaps_free(list, count);
    return rc;
}

int q2_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    const struct q2_image *q = q2_of(im);
    const struct q2_header *h = &q->h;
    struct fmt_info i = {
        .virtual_size = h->size,
        .cluster_size = q->g.cluster_size,
        .dirty = h->incompat & Q2_INCOMPAT_DIRTY,
        .corrupt = h->incompat & Q2_INCOMPAT_CORRUPT,
        .vm_state_offset = q2_l1_entries(&q->g, h->size) * q2_l2_span(&q->g),
        .is_qcow2 = true,
        .lazy_refcounts = h->compat & Q2_COMPAT_LAZY,
        .extended_l2 = q->g.ext_l2,
        .has_data_file = h->incompat & Q2_INCOMPAT_DATA_FILE,
        .data_file_raw = h->incompat & Q2_INCOMPAT_DATA_FILE && h->autoclear & Q2_AUTOCLEAR_RAW_DATA,
        .encrypted = h->crypt_method != 0,
        .version = h->version,
        .refcount_bits = q->g.refcount_bits,
        .compression = h->compression_type ? "zstd" : "zlib",
    };
    i.generation = h->generation;
    i.others_wrote = h->generation && !(h->autoclear & Q2_AUTOCLEAR_GENERATION);
    i.bitmaps_outdated = q2_bitmaps_outdated(h);
    if (h->nb_snapshots > Q2_SNAPSHOTS_MAX)
        return byre_fail(err, Q2_SNAPSHOTS, "%s: %" PRIu32 " snapshots are more than %u", q->name, h->nb_snapshots, Q2_SNAPSHOTS_MAX);
    bool ok = dup_to(&i.backing_name, h->backing_name) && dup_to(&i.backing_format, h->backing_format) &&
              dup_to(&i.data_file, i.has_data_file ? h->data_file : NULL);
    int rc = ok ? fill_snapshots(co, q, &i) : -ENOMEM;
    if (!rc)
        rc = fill_bitmaps(co, q, &i);
    if (!rc)
        rc = q2_crypt_info(q, &i.crypt);
    if (rc) {
        fmt_info_fini(&i);
        return byre_fail_code(err, IO, rc, "%s: cannot be described: %s", q->name, strerror(-rc));
    }
    *ret_info = i;
    return 0;
}
