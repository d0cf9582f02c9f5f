/* SPDX-License-Identifier: MIT
 *
 * live_commit.c: commit of an intermediate layer as a job.
 *
 * Purpose     Which ranges go down, in which order the images are changed afterwards, and the way back.
 * Owns        struct live_commit, until the job is forgotten; its claim on the layers.
 * Invariants  live_commit.h. Further: C1  Only what a layer above the base hides is written to it.
 *             C2  Behind the end of `top` an overlay reads zeros: where the base is longer than top, and an overlay too, the base is
 *                 cleared there before the overlay lies right above it.
 *             C3  With drop_source a layer gives a range up after the base has it durably, and after every layer between it and the base has
 *                 given it up, durably; so no older layer ever shows through. Layers between are marked first.
 * Order       copy, clear | flush of the base | backing names: the overlays of the committed top, then its own, each durable | event (J2, J5).
 * Concurrency Home loop; the copy on all loops.
 * Failure     The chain is as before, a part of the data is in the base as well; a new commit does the rest.
 * Tests       tests/cli/live_commit_test.py, tests/kill/test_kill_jobs.py, tests/crash/test_chain_crash.py
 */
#include "job/live_commit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/mutant.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "job/relink.h"
#include "job/top.h"

#define STEP_BYTES (1ull << 30)
#define WINDOW_DEFAULT (64ull << 20)     /* a multiple of every cluster */

struct live_commit {
    struct job_copying how;
    struct graph_node *top, *base, *above_base;
    struct graph_claim *claim;
    struct job_top filter;               /* over top */
    char *backing_file;                  /* NULL: made up */
    unsigned workers;
    bool drop_source;
    uint64_t window;
    uint64_t cleared;                    /* behind the end of top the base reads zeros up to here */
};

/* ---- the work ---- */

static struct copy_job copy_of(struct live_commit *c, const struct copy_part *part)
{
    return (struct copy_job){
        .parts = part, .part_count = 1, .target = c->base, .target_off = part->off, .above = c->base, .flags = COPY_OUT_OF_ORDER | COPY_WORK,
        .workers = c->workers, .min_sparse = job_grain(graph_image(c->base)->granule), .progress = job_copying_progress, .arg = &c->how,
        .hooks = job_copying_hooks(&c->how) };
}

static int copy_part_down(struct co *co, struct live_commit *c, uint64_t off, uint64_t len, struct byre_err *err)
{
    const struct copy_part part = { c->top, off, len };
    struct copy_job cj = copy_of(c, &part);
    if (MUTANT(MUT_LIVE_COMMIT_UNFLUSHED))
        cj.flags |= COPY_NO_FLUSH;
    int r = copy_run(co, &cj, NULL, err);
    job_copying_part_done(&c->how);
    return r;
}

static int count(struct co *co, struct live_commit *c, struct byre_err *err)
{
    const struct copy_part part = { c->top, 0, graph_length(c->top) };
    const struct copy_job cj = copy_of(c, &part);
    return job_copying_count(co, &c->how, &cj, err);
}

/* C3. Window by window: whatever is cut short, a layer has given up only what the base has durably. */
static int copy_down(struct co *co, struct live_commit *c, struct byre_err *err)
{
    uint64_t total = graph_length(c->top);
    int r = c->drop_source ? graph_claim_mark(co, c->claim, err) : 0;
    if (!r)
        r = count(co, c, err);
    for (uint64_t at = 0, len; !r && at < total; at += len) {
        len = c->drop_source ? min_u64(c->window, total - at) : total;
        r = copy_part_down(co, c, at, len, err);
        if (!r && c->drop_source)
            r = graph_claim_forget(co, c->claim, at, at + len, err);
    }
    if (!r)
        job_copying_all_done(&c->how);
    return r;
}

/* C2. How far an overlay shows what the base has behind the end of top. */
static uint64_t shown_to(const struct live_commit *c, struct graph *g)
{
    uint64_t longest = 0;
    for (struct graph_node *n = graph_next(g, NULL); n; n = graph_next(g, n))
        if (graph_backing(n) == c->top)
            longest = max_u64(longest, graph_length(n));
    return min_u64(longest, graph_length(c->base));
}

static int clear_behind(struct co *co, struct live_commit *c, struct byre_err *err)
{
    uint64_t end = shown_to(c, graph_of(c->top));
    if (c->cleared >= end)
        return 0;
    int r = 0;
    while (!r && c->cleared < end) {
        uint64_t part = min_u64(end - c->cleared, STEP_BYTES);
        r = graph_zero(co, c->base, c->cleared, part, GRAPH_UNMAP);
        if (!r)
            c->cleared += part;
        if (!r)
            r = job_point(co, c->how.job);
    }
    if (!r)
        r = MUTANT(MUT_LIVE_COMMIT_UNFLUSHED) ? 0 : graph_flush(co, c->base);
    return r ? byre_fail_code(err, IO, r, "%s: cannot be cleared behind offset %" PRIu64 ": %s", graph_filename(c->base), c->cleared, strerror(-r)) : 0;
}

static int run(struct co *co, struct job *job, struct byre_err *err)
{
    struct live_commit *c = job->opaque;
    c->how.job = job;
    c->cleared = graph_length(c->top);
    int r = copy_down(co, c, err);
    return r ? r : clear_behind(co, c, err);
}

/* ---- the end ---- */

static int add_link(struct co *co, const struct live_commit *c, struct relink *l, struct graph_node *n, struct byre_err *err)
{
    bool overlay = n != c->top;
    char *made = NULL;
    int r = overlay && c->backing_file ? 0 : graph_name_of(co, n, c->above_base, &made, err);
    if (r == -ENOTSUP && c->backing_file)        /* what overlays record was given; top keeps the chain that it has, and shows the same by it */
        return 0;
    const struct relink_what w = { .n = n, .to = c->base, .optional = !overlay, .name = { made ? made : c->backing_file, graph_name_format(c->base), 0 } };
    if (!r)
        r = relink_add(co, l, &w, err);
    free(made);
    return r;
}

/* The committed top last: with that the layers between are in no chain any more, and would be strangers that depend on the base if the overlays
 * still had to be changed after a kill. Whoever keeps it goes on with a chain without them. */
static int list_links(struct co *co, const struct live_commit *c, struct relink *l, struct byre_err *err)
{
    struct graph *g = graph_of(c->top);
    int r = 0;
    struct graph_node *n = graph_next(g, NULL);
    graph_ref(n);
    for (struct graph_node *next; n; n = next) {         /* each is kept while it is needed to go on */
        if (!r && graph_backing(n) == c->top)
            r = add_link(co, c, l, n, err);
        next = graph_next(g, n);
        if (next)
            graph_ref(next);
        int closed = graph_close(co, n);
        (void)closed;                    /* its last user went meanwhile; then there is nobody left to tell */
    }
    return !r && graph_backing(c->top) != c->base ? add_link(co, c, l, c->top, err) : r;
}

static int switch_chain(struct co *co, struct live_commit *c, struct byre_err *err)
{
    struct relink *l;
    int r = relink_new(&l, err);
    if (r)
        return r;
    r = list_links(co, c, l, err);
    if (!r)
        r = relink_run(co, l, c->cleared < graph_length(c->base) ? c->cleared : 0, err);
    relink_free(co, l);
    return r;
}

/* Those that lie over `over` are led to the base at the end, and nobody else needs them to stay, or changes them, before. */
static int promise_overlays(const struct live_commit *c, const struct graph_node *over, struct byre_err *err)
{
    struct graph *g = graph_of(c->top);
    int r = 0;
    graph_promise_end(g, c);
    for (struct graph_node *n = graph_next(g, NULL); n && !r; n = graph_next(g, n))
        if (graph_backing(n) == over)
            r = graph_promise(n, c, 0, err);
    return r;
}

/* The claim is let go while edges are held, and the chain is another one, or claimed again, before they are let: nobody comes between. ret_again:
 * an overlay has become longer. */
static int switch_claimed(struct co *co, struct live_commit *c, bool *ret_again, struct byre_err *err)
{
    struct graph *g = graph_of(c->top);
    struct byre_err why = { 0 };
    graph_edges_hold(co, g);
    graph_claim_relax(c->claim);
    graph_promise_end(g, c);
    int r = switch_chain(co, c, &why);
    *ret_again = r == -EBUSY && c->cleared < shown_to(c, g);
    if (*ret_again)
        r = graph_claim_again(c->claim, &why);
    if (*ret_again && !r)
        r = promise_overlays(c, c->top, &why);
    graph_edges_let(co, g);
    if (r && err)
        *err = why;
    return r;
}

static int finish(struct co *co, struct job *job, struct byre_err *err)
{
    bool again = false;
    struct live_commit *c = job->opaque;
    int r = job_top_take(co, &c->filter, err);       /* overlays lie over top again */
    if (r)
        return r;
    do {                                 /* an overlay may become longer at any time */
        r = clear_behind(co, c, err);
        if (!r)
            r = switch_claimed(co, c, &again, err);
    } while (!r && again);
    if (r)
        return r;
    graph_claim_end(co, c->claim);
    c->claim = NULL;
    job_top_end(co, &c->filter);
    return 0;
}

static void give_up(struct co *co, struct job *job)
{
    struct live_commit *c = job->opaque;
    graph_promise_end(graph_of(c->base), c);
    job_top_end(co, &c->filter);
    graph_claim_end(co, c->claim);
    c->claim = NULL;
}

static void fini(struct job *job)
{
    struct live_commit *c = job->opaque;
    free(c->backing_file);
    free(c);
}

const struct job_kind job_live_commit_kind = { .type = "commit", .run = run, .commit = finish, .abort = give_up, .has_speed = true, .block_job = true, .fini = fini };

/* ---- the beginning ---- */

static int check_layers(const struct job_live_commit_opts *o, const struct graph_node *base, struct byre_err *err)
{
    if (!graph_lies_above(o->disk, o->top))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(o->top), graph_node_name(o->disk));
    if (o->top == base)
        return byre_fail(err, BAD_ARGUMENT, "cannot commit an image into itself");
    if (!graph_lies_above(o->top, base))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(base), graph_node_name(o->top));
    return 0;
}

/* Can the overlays record the new name? Nothing is changed. */
static int try_links(struct co *co, const struct live_commit *c, struct byre_err *err)
{
    struct relink *l;
    int r = relink_new(&l, err);
    if (!r)
        r = list_links(co, c, l, err);
    relink_free(co, l);
    return r;
}

static int begin(struct co *co, const struct job_live_commit_opts *o, struct live_commit *c, struct byre_err *err)
{
    if (o->backing_file && !(c->backing_file = strdup(o->backing_file)))
        return byre_fail(err, NOMEM, "no memory for a file name");
    int r = try_links(co, c, err);
    if (!r)
        r = graph_claim_layers(co, c->top, c->base, o->job.id ? o->job.id : "commit", &c->claim, err);
    if (!r)
        r = promise_overlays(c, c->top, err);
    graph_promise_end(graph_of(c->top), c);      /* the filter comes between */
    if (!r && c->drop_source)
        r = graph_claim_open_all(co, c->claim, err);
    if (!r)
        r = job_top_put(co, &c->filter, c->top, GRAPH_COMMIT_TOP, o->filter_node_name, err);
    return r ? r : promise_overlays(c, c->filter.inserted ? c->filter.filter : c->top, err);
}

static int start(struct co *co, struct jobs *js, const struct job_live_commit_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct graph_node *base = o->base;
    for (struct graph_node *n = o->top; !o->base && n; n = graph_backing(n))
        base = n;
    int r = check_layers(o, base, err);
    if (r)
        return r;
    struct live_commit *c = calloc(1, sizeof *c);
    struct job_opts jo = o->job;
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a commit");
    *c = (struct live_commit){ .how = { .on_read = o->on_error, .on_write = o->on_error }, .top = o->top, .base = base,
                               .above_base = graph_overlay_in(o->top, base), .workers = o->workers, .drop_source = o->drop_source,
                               .window = o->window ? o->window : WINDOW_DEFAULT };
    jo.opaque = c;
    jo.nodes[0] = o->top;
    r = begin(co, o, c, err);
    if (!r)
        r = job_start(js, &job_live_commit_kind, &jo, ret_job, err);
    if (r) {
        graph_promise_end(graph_of(base), c);
        job_top_end(co, &c->filter);
        graph_claim_end(co, c->claim);
        free(c->backing_file);
        free(c);
    }
    return r;
}

/* The chain stays as it is from the look at it to the claim. */
int job_live_commit_start(struct co *co, struct jobs *js, const struct job_live_commit_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct graph_node *const named[] = { o->disk, o->top, o->base };
    graph_chain_hold(co, named, 3);
    int r = start(co, js, o, ret_job, err);
    graph_chain_let(co, named, 3);
    return r;
}
