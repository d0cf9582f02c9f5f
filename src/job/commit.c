/* SPDX-License-Identifier: MIT
 *
 * commit.c: commit and rebase of a chain that is not in use (FEATURES 5d, 5h).
 *
 * Purpose     Rows over the copy engine: what is selected, where it goes, what follows.
 * Owns        Nothing beyond the calls.
 * Invariants  commit.h. Further: C1  A commit writes to the base only what a layer above it hides: no write to it can be seen from the top.
 *             C2  A rebase writes to the image what it shows already, read through the old chain, in whole clusters or subclusters:
 *                 what surrounds a write in its cluster comes from the old chain as well.
 * Order       commit: copy | flush of the base | empty, durable (J2). rebase: copy | flush of the image | name in one sector (J3, Q18) |
 *             what is equal is dropped, if it is to be | flush.
 * Concurrency commit.h.
 * Failure     commit.h.
 * Tests       tests/interop/test_commit.py, tests/interop/test_rebase.py, crash explorer (chain-*), tests/kill/test_kill_chain.py
 */
#include <inttypes.h>

#include "base/checked.h"
#include "base/mutant.h"
#include "graph/live.h"
#include "graph/reach.h"
#include "job/commit.h"
#include "job/copying.h"
#include "job/drop_equal.h"
#include "stor/stor.h"

static struct copy_job copy_of(const struct job_copy_how *how, struct graph_node *target)
{
    uint64_t granule = graph_image(target)->granule;
    return (struct copy_job){
        .target = target, .flags = COPY_OUT_OF_ORDER, .workers = how->workers, .min_sparse = job_grain(granule),
        .rate = how->rate, .progress = how->progress, .arg = how->arg, .cancel = how->cancel };
}

/* ---- commit ---- */

static int find_base(struct co *co, const struct commit_job *job, struct graph_node **ret, struct byre_err *err)
{
    const char *name = graph_filename(job->top);
    *ret = graph_backing(job->top);
    if (!*ret)
        return byre_fail(err, NOT_FOUND, "%s: Image does not have a backing file", name);
    if (job->base)
        *ret = graph_layer(co, job->top, job->base);
    return *ret ? 0 : byre_fail(err, NOT_FOUND, "Did not find '%s' in the backing chain of '%s'", job->base, name);
}

static int can_empty(const struct commit_job *job, struct byre_err *err)
{
    const char *name = graph_filename(job->top);
    if (job->keep)
        return 0;
    if (!graph_image(job->top)->ops->make_empty)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot be emptied; -d leaves the image as it is", name, graph_format(job->top)->name);
    return graph_read_only(job->top) ? byre_fail(err, READ_ONLY, "%s: is open read-only and cannot be emptied", name) : 0;
}

static int commit_into(struct co *co, const struct commit_job *job, struct graph_node *base, struct copy_result *ret, struct byre_err *err)
{
    struct copy_part part = { job->top, 0, graph_length(job->top) };
    struct copy_job cj = copy_of(&job->how, base);
    cj.parts = &part;
    cj.part_count = 1;
    cj.above = base;
    if (MUTANT(MUT_COMMIT_EMPTY_EARLY))
        cj.flags |= COPY_NO_FLUSH;
    int r = copy_run(co, &cj, ret, err);
    if (!r && !job->keep)
        r = graph_make_empty(co, job->top, err);
    return r;
}

int commit_run(struct co *co, const struct commit_job *job, struct graph_node **ret_base, struct copy_result *ret, struct byre_err *err)
{
    struct graph_node *base;
    int r = find_base(co, job, &base, err);
    if (!r)
        r = can_empty(job, err);
    if (!r && !job->keep && stor_null_is_name(graph_filename(base)))
        r = byre_fail(err, NOT_SUPPORTED, "%s: keeps nothing of what is committed into it, and '%s' would be emptied", graph_filename(base), graph_filename(job->top));
    if (!r)
        r = graph_make_writable(co, base, graph_overlay_in(job->top, base), err);
    if (!r)
        graph_keep_writable(base);               /* nobody else is there to whom it would matter */
    if (!r && ret_base)
        *ret_base = base;
    if (!r)
        r = graph_make_long(co, base, graph_length(job->top), err);
    return r ? r : commit_into(co, job, base, ret, err);
}

/* ---- rebase ---- */

/* Behind the copy comes as much again when what is equal is looked for. */
struct halves { const struct job_copy_how *how; uint64_t more; };

static void first_half(void *arg, uint64_t done, uint64_t total)
{
    const struct halves *h = arg;
    h->how->progress(h->how->arg, done, total + h->more);
}

static int copy_difference(struct co *co, const struct rebase_job *job, struct copy_result *ret, struct byre_err *err)
{
    struct copy_part part = { job->top, 0, graph_length(job->top) };
    struct copy_job cj = copy_of(&job->how, job->top);
    cj.parts = &part;
    cj.part_count = 1;
    cj.below = graph_backing(job->top);
    cj.against = job->backing;
    struct halves h = { &job->how, job->drop_equal ? cj.parts->len : 0 };
    if (cj.progress) {
        cj.progress = first_half;
        cj.arg = &h;
    }
    cj.flags |= COPY_BELOW | (job->backing ? COPY_BACKED : COPY_TARGET_ZERO) | (job->compress ? COPY_COMPRESS : 0);
    return copy_run(co, &cj, ret, err);
}

int rebase_run(struct co *co, const struct rebase_job *job, struct copy_result *ret, struct byre_err *err)
{
    if (graph_read_only(job->top))
        return byre_fail(err, READ_ONLY, "%s: is open read-only", graph_filename(job->top));
    if (job->unsafe)
        return graph_rebase(co, job->top, job->backing, &job->to, err);
    const struct drop_equal drop = { job->top, job->backing, &job->how };
    int r = job->drop_equal ? drop_equal_check(job->top, err) : 0;
    if (!r)
        r = graph_rebase_check(co, job->top, job->backing, &job->to, err);
    if (r)
        return r;
    graph_stand_alone(job->top, true);
    r = copy_difference(co, job, ret, err);
    if (!r && job->drop_equal && MUTANT(MUT_REBASE_DROP_EARLY))
        r = drop_equal_run(co, &drop, err);
    if (!r)
        r = graph_rebase(co, job->top, job->backing, &job->to, err);
    if (r)
        graph_stand_alone(job->top, false);
    return r || !job->drop_equal ? r : drop_equal_run(co, &drop, err);
}
