/* SPDX-License-Identifier: MIT
 *
 * ctl.h: control: QMP over unix sockets and standard input and output, and the same commands for the command line.
 *
 *     ctl_new -> ctl_execute, ctl_listen ... -> (clients come and go; commands act on struct ctl_env) -> ctl_stop -> ctl_free
 *
 * Concurrency  Everything on the home loop of the environment.
 * Security     The socket is made with mode 0600; a peer whose uid (SO_PEERCRED) is neither ours nor root's is closed
 *              before a byte of it is read (SECURITY.md).
 * Limits       CTL_CLIENTS_MAX clients, messages as proto/qmp/qmp.h, one message of any length and CTL_OUT_MAX
 *              bytes that a client has not taken yet.
 */
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "base/err.h"
#include "rt/co.h"
#include "rt/loop.h"

#define CTL_CLIENTS_MAX 16
#define CTL_OUT_MAX (4u << 20)

struct graph;
struct graph_node;
struct jobs;
struct tree_opts;
struct tls_set;

struct ctl_device { const char *name; struct graph_node *node; bool writethrough; };
struct exports;

/* What the commands act on. Owned by the caller; constant, or changed on the home loop only. */
struct ctl_env {
    struct graph *graph;
    const struct ctl_device *devices; size_t device_count;
    struct exports *exports;             /* the server watches them until ctl_stop; NULL: there are none */
    struct tls_set *tls;                 /* credentials and rules; NULL: there are none */
    struct jobs *jobs;                   /* the server watches it until ctl_stop; NULL: none */
    int major, minor, micro;             /* version of the program */
    const char *package;
    void (*quit)(void *arg);             /* the command quit; called once, on the home loop, must not suspend */
    int (*object_add)(void *arg, const char *definition, struct byre_err *err);      /* of a thread that may block; NULL: there are no objects */
    int (*object_del)(void *arg, const char *id);                                    /* must not suspend, nor must the next three */
    /* Around all that makes an object: nobody else gives the id to one meanwhile. EXISTS: somebody is doing that. With object_add, all of them */
    int (*object_claim)(void *arg, const char *id, struct byre_err *err);
    void (*object_release)(void *arg, const char *id);
    bool (*object_has)(void *arg, const char *id);                                   /* one of those that object_add makes */
    /* Images are not changed under others that depend on them (src/tree); NULL: they are. With a guard_warning it is only told */
    const struct tree_opts *tree;
    void (*guard_warning)(void *arg, const char *text);
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
uint64_t ctl_arrivals(const struct ctl *c);      /* clients that have come so far */

/* Executes a command as a client would, with arguments that are borrowed (NULL: none). words: scalars are strings, as the command line
 * has them ("on", "64k"); they become what they mean. *ret_value (may be NULL) is owned by the caller. Suspends. */
struct ctl_request { const char *command; json_t *arguments; bool words; };
MUST_USE int ctl_execute(struct co *co, struct ctl *c, const struct ctl_request *rq, json_t **ret_value, struct byre_err *err);
/* Options of the command line in the peer's grammar: a JSON object, or key=value,... with dots for levels ("addr.type=unix") and numbers for
 * lists ("bitmaps.0=a"); a first word alone is the value of `implied` (NULL: that is refused). flags:
 * later words alone are on ("server"), and off behind "no" ("nowait"). *ret_words: not JSON. */
struct ctl_words { const char *implied; bool flags; };
MUST_USE int ctl_parse_words(const char *text, const struct ctl_words *how, json_t **ret_object, bool *ret_words, struct byre_err *err);
/* Sends the event SHUTDOWN ("host-signal", "host-qmp-quit") to all clients. */
void ctl_send_shutdown(struct ctl *c, const char *reason);
/* Lets nobody in any more, gives clients a moment to take their last messages, closes all. Suspends. Idempotent. */
void ctl_stop(struct co *co, struct ctl *c);
void ctl_free(struct ctl *c);            /* stopped; NULL ok */

#endif
