/* SPDX-License-Identifier: MIT
 *
 * ctl.h: the control socket: QMP over a unix socket.
 *
 *     ctl_new -> ctl_listen -> (clients come and go; commands act on struct ctl_env) -> ctl_stop -> ctl_free
 *
 * Concurrency  Everything on the home loop of the environment.
 * Security     The socket is made with mode 0600; a peer whose uid (SO_PEERCRED) is neither ours nor root's is closed
 *              before a byte of it is read (SECURITY.md).
 * Limits       CTL_CLIENTS_MAX clients, messages as proto/qmp/qmp.h, CTL_OUT_MAX bytes that a client has not taken yet.
 */
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "rt/co.h"
#include "rt/loop.h"

#define CTL_CLIENTS_MAX 16
#define CTL_OUT_MAX (4u << 20)

struct graph;
struct graph_node;
struct jobs;

struct ctl_device { const char *name; struct graph_node *node; bool writethrough; };
struct ctl_export { const char *id, *type; struct graph_node *node; bool shutting_down; };

/* What the commands act on. Owned by the caller; constant, or changed on the home loop only. */
struct ctl_env {
    struct graph *graph;
    const struct ctl_device *devices; size_t device_count;
    const struct ctl_export *exports; size_t export_count;
    struct jobs *jobs;                   /* the server watches it until ctl_stop; NULL: none */
    int major, minor, micro;             /* version of the program */
    const char *package;
    void (*quit)(void *arg);             /* the command quit; called once, on the home loop, must not suspend */
    void *arg;
};

/* The reference of commands and events: sections of an mdoc page. */
struct opt_out;
void ctl_document(const struct opt_out *out);

struct ctl;
MUST_USE int ctl_new(struct rt_loop *home, const struct ctl_env *env, struct ctl **ret_c, struct byre_err *err);
/* A path of at most 107 bytes. A socket that nobody listens on is replaced; anything else in the way is an error. The path is
 * removed by ctl_stop. Suspends. */
MUST_USE int ctl_listen(struct co *co, struct ctl *c, const char *path, struct byre_err *err);
/* Sends the event SHUTDOWN ("host-signal", "host-qmp-quit") to all clients. */
void ctl_send_shutdown(struct ctl *c, const char *reason);
/* Lets nobody in any more, gives clients a moment to take their last messages, closes all. Suspends. Idempotent. */
void ctl_stop(struct co *co, struct ctl *c);
void ctl_free(struct ctl *c);            /* stopped; NULL ok */

#endif
