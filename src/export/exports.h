/* SPDX-License-Identifier: MIT
 *
 * exports.h: what is offered to clients, by ids, and the NBD server that offers it.
 *
 *     exports_new -> exports_server_start, listeners on exports_server -> exports_add ... exports_del ... -> exports_stop -> exports_free
 *
 * Concurrency  Every call on the home loop. One change at a time of what has the same id.
 */
#ifndef EXPORT_EXPORTS_H
#define EXPORT_EXPORTS_H

#include "base/err.h"
#include "base/list.h"
#include "export/iothreads.h"
#include "export/nbd/nbd.h"
#include "graph/graph.h"
#include "rt/sync.h"

#define EXPORT_BITMAPS_MAX 14u

/* A dirty bitmap that is offered: of this node, or (node NULL) of the nearest one of the chain that has it. */
struct export_bitmap { struct graph_node *node; const char *name; };

struct export_opts {
    /* What a name means may change while one waits for those who change the graph: asked again then, for the node to offer. NULL: node stays. */
    struct graph_node *(*now)(void *arg);
    void *now_arg;
    const char *id;                      /* unique */
    struct graph_node *node;
    const char *name;                    /* NULL: the name of the node */
    const char *description;             /* NULL: none */
    bool writable, writethrough, allocation_depth;
    bool removable;                      /* it has a tray, and its node is a medium (graph/tray.h) */
    bool allow_inactive;                 /* the node may be inactive, or become so: it is read as it was, and not written. Else it is made active before */
    bool is_default;                     /* also under the empty name */
    const struct export_bitmap *bitmaps; unsigned bitmap_count;
    const char *iothread;                /* whose loop serves its clients; NULL: any */
    bool fixed_iothread;                 /* and no other one will: exports_node_iothread leaves it there, and says so */
    uint64_t offset;                     /* the export begins there */
    uint64_t length;                     /* and has so many bytes; 0: to the end */
};

struct export {
    struct list_node link;
    struct exports *owner;
    char *id;
    struct graph_node *node;             /* an attachment: graph_attached says which node that is now */
    bool shutting_down, writable, removable;
    struct iothread *io;                 /* NULL: none */
    bool fixed_io;
    /* inside */
    struct nbd_export *nbd;
    struct nbd_graph_disk disk;
    struct graph_node *bitmap_images[EXPORT_BITMAPS_MAX];        /* whose they are: held as long as they are */
    unsigned bitmap_count;
    unsigned kept;                       /* exports_keep */
    struct co_waitq let;                 /* nobody keeps it any more */
    struct graph_haste haste;            /* of its requests, while it goes */
};

struct exports;
MUST_USE int exports_new(struct rt_loop *home, struct exports **ret_x, struct byre_err *err);
void exports_free(struct exports *x);                                    /* stopped; NULL ok */
/* Who is told that an export is gone: on the home loop, must not suspend. fn NULL: nobody. */
typedef void exports_gone_fn(void *arg, const char *id);
void exports_watch(struct exports *x, exports_gone_fn *fn, void *arg);

/* EXISTS: there is one already. */
MUST_USE int exports_server_start(struct exports *x, const struct nbd_server_opts *o, struct byre_err *err);
struct nbd_server *exports_server(const struct exports *x);              /* NULL: none runs */
/* Opens a door of the server that runs, with one listener. *ret_port (may be NULL): of TCP. NOT_FOUND: none runs. Suspends. */
enum exports_where { EXPORTS_UNIX, EXPORTS_TCP, EXPORTS_FD, EXPORTS_VSOCK };
struct exports_address { enum exports_where where; struct unix_addr un; struct nbd_tcp_addr tcp; struct nbd_vsock_addr vsock; int fd; /* owned from then on, also on failure */ };
MUST_USE int exports_listen(struct co *co, struct exports *x, const struct nbd_door_opts *o, const struct exports_address *a, uint16_t *ret_port, struct byre_err *err);
/* The same, and starts the server before when none runs; a door without an id is the first one. EXISTS. When it fails all is as it was. */
MUST_USE int exports_open(struct co *co, struct exports *x, const struct nbd_door_opts *o, const struct exports_address *a, struct byre_err *err);
/* Closes the door of that id and cuts its clients off. NOT_FOUND. Suspends. */
MUST_USE int exports_close_door(struct co *co, struct exports *x, const char *id, struct byre_err *err);
/* Removes all exports and closes all connections. NOT_FOUND: none runs. Suspends. */
MUST_USE int exports_server_stop(struct co *co, struct exports *x, struct byre_err *err);

/* Needs a server. EXISTS: the id or the name is taken; READ_ONLY, PERMISSION: the node does not allow it. Suspends. */
MUST_USE int exports_add(struct co *co, struct exports *x, const struct export_opts *o, struct export **ret_e, struct byre_err *err);
/* Until exports_let its removal waits, for commands that suspend. PERMISSION: that has begun. */
MUST_USE int exports_keep(struct export *e, struct byre_err *err);
void exports_let(struct export *e);
struct export *exports_find(struct exports *x, const char *id);          /* NULL: none */
struct export *exports_next(struct exports *x, struct export *prev);     /* iterate; prev NULL: the first */
/* Begins to remove it: it is gone when the watcher was told. force: its clients are cut off; otherwise PERMISSION while it has some. */
MUST_USE int exports_del(struct exports *x, struct export *e, bool force, struct byre_err *err);
/* Objects of the type iothread. An export that is there names one, or serves clients there: then it is in use, and is not removed (PERMISSION). */
struct iothreads *exports_iothreads(struct exports *x);
MUST_USE int exports_iothread_del(struct exports *x, struct iothread *io, struct byre_err *err);
/* Clients of the exports of n that come from now on are served by the loop of io (NULL: any). PERMISSION: one of them is fixed to another. */
MUST_USE int exports_node_iothread(struct exports *x, struct graph_node *n, struct iothread *io, struct byre_err *err);
/* All of it, server and exports; no new ones come. Suspends; idempotent. */
void exports_stop(struct co *co, struct exports *x);

#endif
