/* SPDX-License-Identifier: MIT
 *
 * scrub.c: the job that makes an image clean which is served already (BYRE_OPEN_SERVE_UNCLEAN).
 *
 * Purpose      Starts it; ends all jobs of a context. For serve, which shows them on its control socket.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as job_scrub_start
 * Tests        tests/cli/scrub_test.py
 */
#include "job/scrub.h"
#include "lib/lib_priv.h"

int lib_image_scrub(struct byre_image *image, const char *id, struct byre_err *err)
{
    struct job *job;
    if (!atomic_load(&graph_image(image->node)->unclean))
        return 0;
    struct job_scrub_opts o = { .node = image->node, .fix_leaks = true, .keep_failed = true, .job = { .id = id } };
    return job_scrub_start(&image->ctx->jobs, &o, &job, err);
}

void lib_ctx_no_scrubs(struct byre_ctx *ctx)
{
    for (struct graph_node *n = graph_next(ctx->graph, NULL); n; n = graph_next(ctx->graph, n)) {
        struct fmt_image *im = graph_image(n);
        if (im && im->ops->no_scrub)
            im->ops->no_scrub(im);
    }
}

void lib_ctx_jobs_stop(struct co *co, struct byre_ctx *ctx)
{
    jobs_stop(co, &ctx->jobs);
}
