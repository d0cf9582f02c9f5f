/* SPDX-License-Identifier: MIT
 *
 * snapshot.c: snapshots inside an image.
 *
 * Purpose      The face of graph_snapshot towards callers that block.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any foreign thread; the work runs on the home loop, drained
 * Failure      as fmt.h: all or nothing
 * Tests        lib_test.c, tests/cli/snapshot_test.py
 */
#include <time.h>

#include "lib/lib_priv.h"

struct asking { struct byre_image *image; const struct fmt_snapshot_req *rq; struct byre_err *err; };

static int ask_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    return graph_snapshot(co, a->image->node, a->rq, NULL, a->err);
}

static int ask(struct byre_image *image, const struct fmt_snapshot_req *rq, struct byre_err *err)
{
    struct asking a = { image, rq, err };
    return lib_call(image->ctx, lib_home(image->ctx), ask_co, &a);
}

int byre_snapshot_create(struct byre_image *image, const struct byre_snapshot_opts *opts, struct byre_err *err)
{
    struct byre_snapshot_opts o;
    struct timespec now;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.flags & ~(unsigned)BYRE_SNAPSHOT_UNIQUE)
        return byre_fail(err, BAD_ARGUMENT, "a flag for a snapshot is not known");
    if (!o.date_sec && !o.date_nsec && !clock_gettime(CLOCK_REALTIME, &now)) {
        o.date_sec = (uint32_t)now.tv_sec;
        o.date_nsec = (uint32_t)now.tv_nsec;
    }
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = o.name ? o.name : "", .unique = o.flags & BYRE_SNAPSHOT_UNIQUE,
        .date_sec = o.date_sec, .date_nsec = o.date_nsec };
    return ask(image, &rq, err);
}

static int ask_picked(struct byre_image *image, enum fmt_snapshot_op op, const struct byre_snapshot_pick *pick, struct byre_err *err)
{
    struct byre_snapshot_pick p;
    int r = lib_take_opts(&p, sizeof p, pick, err);
    if (r)
        return r;
    if (p.any ? p.id || p.name : !p.id && !p.name)
        return byre_fail(err, BAD_ARGUMENT, "a snapshot is picked by its id, its name, both, or by one word for either");
    const struct fmt_snapshot_req rq = { .op = op, .pick = { .id = p.id, .name = p.name, .any = p.any, .any_name_first = p.name_first } };
    return ask(image, &rq, err);
}

int byre_snapshot_apply(struct byre_image *image, const struct byre_snapshot_pick *pick, struct byre_err *err)
{
    return ask_picked(image, FMT_SNAPSHOT_APPLY, pick, err);
}

int byre_snapshot_delete(struct byre_image *image, const struct byre_snapshot_pick *pick, struct byre_err *err)
{
    return ask_picked(image, FMT_SNAPSHOT_DELETE, pick, err);
}
