/* SPDX-License-Identifier: MIT
 *
 * lib_priv.h: the inside of the public library. Private to lib/; the servers of src/bin use lib_inside.h.
 *
 *   ctx.c      context; the one bridge from blocking callers into the runtime
 *   image.c    images and blocking requests
 *   queue.c    asynchronous requests
 *   job.c      a blocking call that runs behind: one result, waited for by a thread. What has states and verbs is src/job
 *   convert.c check.c create.c info.c map.c export.c    one per header of include/byre/
 */
#ifndef LIB_PRIV_H
#define LIB_PRIV_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "byre/byre.h"
#include "graph/graph.h"
#include "job/job.h"
#include "lib/lib_inside.h"
#include "rt/loop.h"

struct byre_ctx {
    struct rt *rt;
    struct graph *graph;
    struct secret_set *secrets;
    bool caller_runs;
    bool inside;                     /* caller_runs: a bridge is running the loop (no nesting) */
    enum graph_policy policy;
    unsigned loops;
    atomic_uint turn;                /* next loop for work that may run anywhere */
    atomic_uint users;               /* images open in the context */
    struct jobs jobs;                /* home loop */
};

struct byre_image {
    struct byre_ctx *ctx;
    struct graph_node *node;
    atomic_uint users;               /* queues, jobs and exports that use the image */
    bool check_mode;
};

/* Copies an option struct of another age: what the caller's does not have is zero; what we do not know must be zero.
 * user NULL: all zero. -E2BIG otherwise. */
MUST_USE int lib_take_opts(void *to, size_t to_size, const void *user, struct byre_err *err);

/* The single blocking bridge: runs fn(co, arg) as a coroutine of `loop` and waits in the calling thread, which must
 * be none of the runtime's. Returns fn's result or -ENOMEM. */
MUST_USE int lib_call(struct byre_ctx *ctx, struct rt_loop *loop, int (*fn)(struct co *co, void *arg), void *arg);
/* caller_runs: runs the loop until stop(arg), or until timeout_ms passed (-1: no limit). */
void lib_run_until(struct byre_ctx *ctx, bool (*stop)(void *arg), void *arg, int timeout_ms);

static inline struct rt_loop *lib_home(struct byre_ctx *ctx)
{
    return rt_loop_at(ctx->rt, 0);
}
struct rt_loop *lib_next_loop(struct byre_ctx *ctx);

/* ---- jobs ---- */
/* Embedded at the start of each kind of job. run() fills *err on failure; it should look at cancel_wanted between
 * steps of a second or less. fini() releases what the kind owns. */
struct byre_job {
    struct byre_ctx *ctx;
    int (*run)(struct co *co, struct byre_job *job, struct byre_err *err);
    void (*fini)(struct byre_job *job);
    _Atomic uint64_t done_units, total_units;
    atomic_bool cancel_wanted;
    struct lib_signal *signal;
    int result;
    struct byre_err err;
};
static inline void lib_job_progress(struct byre_job *job, uint64_t done, uint64_t total)
{
    atomic_store_explicit(&job->done_units, done, memory_order_relaxed);
    atomic_store_explicit(&job->total_units, total, memory_order_relaxed);
}
/* Starts job->run on the home loop. On failure the job is finished and freed. */
MUST_USE int lib_job_start(struct byre_job *job, struct byre_ctx *ctx, struct byre_job **ret_job, struct byre_err *err);

/* ---- options of creation (create_rows.c) ---- */
struct opt_row;
/* The rows of a format, for struct fmt_create_opts; NULL: no such format. */
const struct opt_row *create_rows(const char *format, bool with_file_options);
/* The same for options that can be changed later. */
const struct opt_row *amend_rows(const char *format);
/* Names in the order of the line that is told before creation; ends with NULL. */
const char *const *create_order(const char *format);

#endif
