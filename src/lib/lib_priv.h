/* SPDX-License-Identifier: MIT
 *
 * lib_priv.h: the inside of the public library. Private to lib/; the servers of src/bin use lib_inside.h.
 *
 *   ctx.c      context; the one bridge from blocking callers into the runtime
 *   image.c    images and blocking requests
 *   queue.c    asynchronous requests
 *   job.c      a blocking call that runs behind: one result, waited for by a thread. What has states and verbs is src/job
 *   chain.c    commit and rebase; image_opts.c: options of nodes
 *   amend.c bitmap.c check.c compact.c convert.c create.c debug.c export.c info.c map.c measure.c nbd_list.c object.c pr_object.c scrub.c secret.c snapshot.c throttle_object.c tls_object.c tree.c version.c
 *              what their names say
 *
 * Concurrency  Callers' threads come in by lib_call alone; what it runs, runs on a loop: requests on one in turn, everything else on the home loop.
 */
#ifndef LIB_PRIV_H
#define LIB_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "byre/byre.h"
#include "graph/graph.h"
#include "job/job.h"
#include "lib/lib_inside.h"
#include "rt/loop.h"
#include "tree/tree.h"

/* What is kept of overlays that get a backing file (tree.c). */
struct lib_records {
    bool on;
    char *registry;                  /* NULL: none */
    struct tree_opts o;
    void (*warn)(void *arg, const char *text);
    void *warn_arg;
};
MUST_USE int lib_records_init(struct lib_records *records, const struct byre_ctx_opts *o, struct byre_err *err);
/* As graph_opts.linked; arg: the struct lib_records. */
void lib_records_linked(struct co *co, void *arg, const char *overlay, const char *backing);

struct byre_ctx {
    struct rt *rt;
    struct graph *graph;
    struct secret_set *secrets;
    struct tls_set *tls;
    pthread_mutex_t ids_mx;
    struct list claims;              /* under ids_mx: ids of objects that are being made (object.c) */
    struct fdsets *passed;
    struct pr_set *prs;
    bool caller_runs;
    bool inside;                     /* caller_runs: a bridge is running the loop (no nesting) */
    enum graph_policy policy;
    unsigned loops;
    atomic_uint turn;                /* next loop for work that may run anywhere */
    atomic_uint users;               /* images open in the context */
    struct jobs jobs;                /* home loop */
    struct lib_records records;
};

struct byre_image {
    struct byre_ctx *ctx;
    struct graph_node *node;
    struct graph_node *reader;       /* guest data is read by this node: itself, or one over it that keeps what it brings (COPY_ON_READ) */
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

/* ---- objects: object.c takes definitions apart; secret.c, tls_object.c, throttle_object.c and pr_object.c make what they say ---- */
enum object_value { OBJECT_TEXT, OBJECT_BARE, OBJECT_STRING, OBJECT_INTEGER, OBJECT_BOOL };      /* key=value; key alone ("on"); of JSON the rest */
struct object_word { char *key, *value; enum object_value kind; };                               /* "limits.iops-total", "rules.0.match": what is nested */
struct object_words { char *type, *id; struct object_word *list; unsigned count; };              /* the list is without type and id */
bool lib_secret_is_type(const char *type);
bool lib_throttle_is_type(const char *type);
MUST_USE int lib_secret_check(const struct object_words *w, struct byre_err *err);
/* The id is good, nobody has it, and it is claimed. */
MUST_USE int lib_secret_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err);
MUST_USE int lib_tls_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err);
MUST_USE int lib_throttle_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err);
bool lib_throttle_has(struct byre_ctx *ctx, const char *id);
bool lib_pr_is_type(const char *type);
MUST_USE int lib_pr_check(const struct object_words *w, struct byre_err *err);
MUST_USE int lib_pr_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err);
bool lib_pr_has(struct byre_ctx *ctx, const char *id);

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

#endif
