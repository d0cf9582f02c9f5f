/* SPDX-License-Identifier: MIT
 *
 * lib_inside.h: what the parts of the command that also drive ctl/ (server.c in src/bin, serve, daemon) need of the library's objects.
 * Not installed, not exported: `byre_` is for names that are, these have `lib_`.
 */
#ifndef LIB_INSIDE_H
#define LIB_INSIDE_H

#include <stdbool.h>

struct byre_ctx;
struct byre_image;
struct graph;
struct graph_node;

/* In the flags of struct byre_ctx_opts, beside the public ones: so many loops may be started later (objects of the type iothread). */
#define LIB_CTX_MORE_LOOPS (1u << 31)
#define LIB_SPARE_LOOPS 16u
struct graph *lib_ctx_graph(struct byre_ctx *ctx);
struct tree_opts;
const struct tree_opts *lib_ctx_tree(const struct byre_ctx *ctx);
struct jobs;
struct jobs *lib_ctx_jobs(struct byre_ctx *ctx);
/* On the home loop: cancels all jobs and waits for them; no new one starts. */
struct co;
void lib_ctx_jobs_stop(struct co *co, struct byre_ctx *ctx);
/* On the home loop: starts the job `id` that makes an unclean image clean; 0 too when it is clean. */
struct byre_err;
int lib_image_scrub(struct byre_image *image, const char *id, struct byre_err *err);
/* Runs fn(co, arg) on the home loop and waits; never fails for want of memory (it waits for some). Returns fn's result. */
int lib_ctx_call(struct byre_ctx *ctx, int (*fn)(struct co *co, void *arg), void *arg);
struct rt_loop;
struct rt_loop *lib_ctx_home(struct byre_ctx *ctx);
/* Credentials and rules of the context; lives as long as it. */
struct tls_set;
struct tls_set *lib_ctx_tls(struct byre_ctx *ctx);
/* Nobody else gives the id to an object until it is released. EXISTS: somebody is just doing that; whether an object has it already, the caller asks
 * behind it. Any thread. */
int lib_object_claim(struct byre_ctx *ctx, const char *id, struct byre_err *err);
void lib_object_release(struct byre_ctx *ctx, const char *id);
/* As byre_object_add, by who has claimed the id. */
int lib_object_add_claimed(struct byre_ctx *ctx, const char *definition, struct byre_err *err);
/* Is it the id of a secret, of credentials, or of rules? Never waits. */
bool lib_object_has(struct byre_ctx *ctx, const char *id);
/* Forgets a secret, credentials or rules; who uses them keeps them. -ENOENT. */
int lib_ctx_object_del(struct byre_ctx *ctx, const char *id);
struct graph_node *lib_image_node(struct byre_image *image);
/* On the home loop: an attachment (graph/runtime.h), which is the disk whatever node that becomes; and its end, before the image is closed. */
int lib_image_attach(struct byre_image *image, struct graph_node **ret_a, struct byre_err *err);
/* On the home loop: the end begins (graph/blockdev.h). */
void lib_ctx_parting(struct byre_ctx *ctx);
/* On the home loop: begins to flush all nodes, and does not wait (graph/blockdev.h). */
void lib_ctx_flush_soon(struct byre_ctx *ctx);
/* On the home loop, when nobody uses them any more: closes the nodes that the control socket has opened. The first error. */
int lib_ctx_close_nodes(struct co *co, struct byre_ctx *ctx);
void lib_image_detach(struct co *co, struct graph_node *a);
/* On the home loop: no scrub of an image will come. Requests that wait for one go on as they can, or fail. */
void lib_ctx_no_scrubs(struct byre_ctx *ctx);
/* A set of exports without a server; NULL: no memory. Stopped on the home loop, and freed when nobody names it any more. */
struct exports;
struct exports *lib_exports_new(struct byre_ctx *ctx);
void lib_exports_stop(struct co *co, struct exports *x);
void lib_exports_free(struct exports *x);
/* The exports of the server that this one started. */
struct byre_export;
struct exports *lib_export_set(struct byre_export *e);

#endif
