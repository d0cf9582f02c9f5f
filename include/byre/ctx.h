/* SPDX-License-Identifier: MIT
 *
 * ctx.h: the context: I/O threads and policy, shared by all images opened in it.
 */
#ifndef BYRE_CTX_H
#define BYRE_CTX_H

#include "byre/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum byre_policy {
    BYRE_POLICY_STRICT = 0,      /* nothing is guessed: formats must be stated, backing files are plain paths with a recorded format */
    BYRE_POLICY_ECOSYSTEM = 1,   /* as the ecosystem's tools: formats are probed, json: names are understood */
};

enum byre_backend { BYRE_BACKEND_AUTO = 0, BYRE_BACKEND_URING = 1, BYRE_BACKEND_THREADS = 2 };

/* byre_ctx_opts.flags. CALLER_RUNS: no I/O thread is made; I/O goes on only while one thread, always the same, is
 * inside a blocking call, byre_queue_reap or byre_job_wait. Cheapest for a program that does nothing else. */
enum {
    BYRE_CTX_CALLER_RUNS = 1u << 0,
    BYRE_CTX_RECORD_OVERLAYS = 1u << 1,  /* an image that gets a backing file in another directory is recorded: in the registry, or in a file beside the
                                          * backing file, NAME.byre-children. When that cannot be, it is a warning */
};

struct byre_ctx_opts {
    size_t struct_size;
    unsigned loops;              /* I/O threads, 1 to 64; 0 = 1. With CALLER_RUNS at most 1 */
    unsigned flags;              /* BYRE_CTX_* */
    int policy;                  /* enum byre_policy */
    int backend;                 /* enum byre_backend */
    unsigned max_depth;          /* images in a backing chain; 0 = 256 */
    void (*warn)(void *arg, const char *text);   /* called for warnings, from any thread of the library; may be NULL */
    void *warn_arg;
    const char *registry;        /* a file that keeps the record of overlays of all images; NULL: each has its own beside it */
};
BYRE_DEFINE_INIT(byre_ctx_opts)

BYRE_EXPORT BYRE_MUST_USE int byre_ctx_new(const struct byre_ctx_opts *opts, struct byre_ctx **ret_ctx, struct byre_err *err);
/* Everything made in the context must have been closed, stopped or freed. Joins the threads. NULL is allowed. */
BYRE_EXPORT void byre_ctx_free(struct byre_ctx *ctx);
/* "io_uring" or "threads". */
BYRE_EXPORT const char *byre_ctx_backend(const struct byre_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
