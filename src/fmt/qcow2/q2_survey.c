/* SPDX-License-Identifier: MIT
 *
 * q2_survey.c: one look at every reference of an open image that is in use.
 *
 * Purpose     Brings snapshots and bitmaps together for q2_walk, and says whether anything was missed.
 * Owns        Nothing beyond the call.
 * Invariants  Y1  All that is read, directories included, is read inside one epoch section: what is dropped meanwhile keeps its
 *                 bytes until the survey has ended. Or, unheld, the caller sees that something was dropped and throws the answer away
 *                 (q2_prove.c): requests that wait for epochs would wait for as long as a walk over all tables takes.
 *             Y2  The header is taken at one moment, when nobody is about to switch it: a set of bitmaps that is switched to meanwhile is
 *                 not mixed with the old one, nor missed while the header names none. The length is read behind that, and active
 *                 tables are followed beyond it: one that has moved there names what its old place named.
 *             Y3  0 is returned only when every reference that was there from the beginning to the end has been told.
 * Order       Reads only.
 * Concurrency Home loop, any requests beside it.
 * Failure     -EIO, and nobody is told which references are missing.
 * Tests       q2_scrub_test.c, q2_beside_test.c, crash explorer
 */
#include "fmt/qcow2/q2_survey.h"

#include "fmt/qcow2/q2_bms.h"

static int on_ref(struct co *co, void *arg, const struct q2_ref *r)
{
    struct q2_survey *s = arg;
    return s->ref(co, s->arg, r);
}

static void on_fault(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc)
{
    struct q2_survey *s = arg;
    (void)r;
    (void)rc;
    s->missed |= s->strict || f == Q2_WALK_READ || f == Q2_WALK_BAD_L1 || f == Q2_WALK_BUDGET;
}

static int on_bulk(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data)
{
    struct q2_survey *s = arg;
    return s->bulk(s->arg, worker, t, data);
}

static int on_bulked(void *arg, unsigned worker)
{
    struct q2_survey *s = arg;
    (void)worker;
    return s->bulked ? s->bulked(s->arg) : 0;
}

static int load_bitmaps(struct co *co, struct q2_survey *s, const struct q2_header *h, struct q2_bitmap **ret, uint32_t *ret_count)
{
    int r = q2_bitmaps_load(co, s->q->im.store, &s->q->g, h, ret, ret_count, NULL);
    for (uint32_t i = 0; r == 0 && i < *ret_count; i++)
        s->missed |= (*ret)[i].bad && (s->strict || !(*ret)[i].table_entries);
    return r == -EINVAL ? -EIO : r;
}

static int inside(struct co *co, struct q2_survey *s)
{
    static const struct q2_visitor told = { .ref = on_ref, .fault = on_fault }, whole = { .ref = on_ref, .fault = on_fault, .bulk = on_bulk, .bulked = on_bulked };
    struct q2_image *q = s->q;
    meta_struct_begin(co, q->meta);                              /* Y2 */
    const struct q2_header h = q->h;
    meta_struct_end(q->meta);
    struct q2_snapshot_scan snaps = { 0 };
    struct q2_bitmap *bitmaps = NULL;
    uint32_t count = 0;
    uint64_t len = 0;
    s->missed = q->bms && q->bms->count && !(h.has_bitmaps && h.autoclear & Q2_AUTOCLEAR_BITMAPS);      /* as in q2_live_begin */
    int r = q2_snapshots_scan(co, q->im.store, &q->g, &h, &snaps);
    s->missed |= r == 0 && snaps.faults & (s->strict ? ~0u : Q2_SNAP_CUT | Q2_SNAP_COUNT | Q2_SNAP_ENDED | Q2_SNAP_OUTSIDE);
    if (r == 0)
        r = load_bitmaps(co, s, &h, &bitmaps, &count);
    if (r == 0)
        r = stor_length(co, q->im.store, &len);
    struct q2_walk w = { .store = q->im.store, .g = &q->g, .h = &h, .file_bytes = len, .snapshots = &snaps, .bitmaps = bitmaps, .bitmap_count = count,
        .bitmaps_valid = h.autoclear & Q2_AUTOCLEAR_BITMAPS && h.has_bitmaps, .parts = Q2_WALK_ALL, .open_ended = s->strict, .workers = s->bulk ? s->workers : 0,
        .v = s->bulk ? &whole : &told, .arg = s };
    if (r == 0 && !s->missed)
        r = q2_walk(co, &w);
    q2_snapshots_free(snaps.snapshots, snaps.count);
    q2_bitmaps_free(bitmaps, count);
    return r == 0 && s->missed ? -EIO : r;
}

int q2_survey(struct co *co, struct q2_survey *s)
{
    struct epoch *e = s->q->im.epoch;
    if (s->unheld)
        return inside(co, s);
    epoch_token t = epoch_enter(e, co_loop(co));                 /* Y1 */
    int r = inside(co, s);
    epoch_leave(e, co_loop(co), t);
    return r;
}
