/* SPDX-License-Identifier: MIT
 *
 * exports.c: what is offered to clients, by ids (FEATURES 8.019).
 *
 * Purpose      Exports over one NBD server, that come and go while it runs.
 * Owns         exports, their bitmaps' holds and their uses of nodes; the server
 * Invariants   I1 an export is attached to its node as long as the server may touch it: the node may become another one below it, and is not closed
 *              I2 the watcher is told once for each export, after the last touch of its node
 *              I3 who keeps an export (exports_keep) has all of it until he lets it go: its removal may have begun, and waits
 *              I4 the images of its bitmaps are held like the bitmaps: they may have left the chain, or lie beside it
 * Order        server first, then bitmaps and the attachment, then the watcher
 * Concurrency  home loop; a removal runs as a coroutine of its own, and exports_stop waits for all
 * Failure      an export that could not be added has left nothing
 * Tests        tests/daemon, tests/cli/serve_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "export/exports.h"
#include "graph/blockdev.h"
#include "graph/live.h"
#include "graph/tray.h"
#include "rt/loop.h"

struct exports {
    struct rt_loop *home;
    struct list list;
    struct nbd_server *server;
    struct iothreads iothreads;
    bool stopping;                       /* for good */
    struct co_mutex changing;            /* one addition, or the end of the server, at a time */
    exports_gone_fn *gone;
    void *gone_arg;
    struct co_group removals;
};

/* ---- life ---- */
int exports_new(struct rt_loop *home, struct exports **ret_x, struct byre_err *err)
{
    struct exports *x = calloc(1, sizeof *x);
    if (!x)
        return byre_fail(err, NOMEM, "no memory for exports");
    x->home = home;
    list_init(&x->list);
    iothreads_init(&x->iothreads);
    *ret_x = x;
    return 0;
}

void exports_free(struct exports *x)
{
    if (!x)
        return;
    ASSERT(list_empty(&x->list) && !x->server);
    iothreads_fini(&x->iothreads);
    free(x);
}

void exports_watch(struct exports *x, exports_gone_fn *fn, void *arg)
{
    x->gone = fn;
    x->gone_arg = arg;
}

struct export *exports_next(struct exports *x, struct export *prev)
{
    struct list_node *n = prev ? list_next(&x->list, &prev->link) : list_first(&x->list);
    return n ? CONTAINER_OF(n, struct export, link) : NULL;
}

struct export *exports_find(struct exports *x, const char *id)
{
    struct export *e = exports_next(x, NULL);
    while (e && strcmp(e->id, id))
        e = exports_next(x, e);
    return e;
}

/* ---- the server ---- */
int exports_server_start(struct exports *x, const struct nbd_server_opts *o, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    if (x->server || x->stopping)
        return byre_fail(err, EXISTS, "NBD server already running");
    return nbd_server_new(x->home, o, &x->server, err);
}

static int listen_at(struct co *co, struct nbd_door *d, const struct exports_address *a, uint16_t *ret_port, struct byre_err *err)
{
    switch (a->where) {
    case EXPORTS_UNIX: return nbd_server_listen_unix(co, d, &a->un, err);
    case EXPORTS_TCP: return nbd_server_listen_tcp(co, d, &a->tcp, ret_port, err);
    case EXPORTS_VSOCK: return nbd_server_listen_vsock(co, d, &a->vsock, err);
    default: return nbd_server_listen_fd(co, d, a->fd, err);
    }
}

static int listen_locked(struct co *co, struct exports *x, const struct nbd_door_opts *o, const struct exports_address *a, uint16_t *ret_port, struct byre_err *err)
{
    struct nbd_door *d = NULL;
    int r = x->server ? nbd_door_new(x->server, o, &d, err) : byre_fail(err, NOT_FOUND, "NBD server not running");
    if (!r)
        r = listen_at(co, d, a, ret_port, err);
    else if (a->where == EXPORTS_FD)
        close(a->fd);
    if (r && d)
        nbd_door_close(co, d);
    return r;
}

/* Under the lock: the end of the server waits for it. */
int exports_listen(struct co *co, struct exports *x, const struct nbd_door_opts *o, const struct exports_address *a, uint16_t *ret_port, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    uint16_t port;
    co_lock(co, &x->changing);
    int r = listen_locked(co, x, o, a, ret_port ? ret_port : &port, err);
    co_unlock(&x->changing);
    return r;
}

int exports_close_door(struct co *co, struct exports *x, const char *id, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    co_lock(co, &x->changing);
    struct nbd_door *d = x->server ? nbd_door_find(x->server, id) : NULL;
    if (d)
        nbd_door_close(co, d);
    co_unlock(&x->changing);
    return d ? 0 : byre_fail(err, NOT_FOUND, "there is no NBD server '%s'", id);
}

struct nbd_server *exports_server(const struct exports *x)
{
    return x->server;
}

/* ---- one export ---- */
/* An image that a job has taken out of the chain may be nobody else's: then nobody else can tell that it was not closed well. */
static void release_bitmaps(struct co *co, struct export *e)
{
    while (e->bitmap_count) {
        struct graph_node *image = e->bitmap_images[--e->bitmap_count];
        struct graph *g = graph_of(image);
        graph_bitmap_release(image, e->disk.bitmaps[e->bitmap_count]);
        graph_closed_badly(g, graph_close(co, image));
    }
}

/* So may a medium. */
static void take_medium_out(struct co *co, struct export *e)
{
    int r = graph_tray_remove(co, e->node);
    graph_closed_badly(graph_of(e->node), r);
    if (r)
        graph_warn(e->node, "%s: its medium was closed with an error, not everything that was written may be on the disk: %s", graph_filename(e->node), strerror(-r));
}

static void export_end(struct co *co, struct export *e)
{
    release_bitmaps(co, e);
    if (e->node && e->removable)
        take_medium_out(co, e);
    struct graph_node *n = e->node ? graph_attached(e->node) : NULL;
    if (n)
        graph_ref(n);
    if (e->node)
        (void)graph_detach(co, e->node);     /* whoever opened the node closes it, and tells */
    if (n) {
        graph_writer_gone(co, n);
        (void)!graph_close(co, n);           /* the same */
    }
    graph_haste_end(&e->haste);
    free(e->id);
    free(e);
}

/* Finds one in the chain (or at its node), loads and holds it. */
static int take_bitmap(struct co *co, struct export *e, const struct export_opts *o, const struct export_bitmap *want, struct byre_err *err)
{
    struct fmt_bitmap *b = NULL;
    struct graph_node *n = want->node ? want->node : o->node;
    int r = 0;
    while (n && !r && !b) {
        r = graph_bitmap_find(co, n, want->name, &b, err);
        n = b || r ? n : want->node ? NULL : graph_backing(n);
    }
    if (!r && !b)
        r = byre_fail(err, NOT_FOUND, "there is no bitmap '%s' in the chain of %s", want->name, graph_filename(o->node));
    if (!r)
        r = graph_bitmap_load(co, n, b, err);
    if (!r && b->busy)
        r = byre_fail(err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", graph_filename(n), want->name);
    if (!r && b->enabled && !graph_read_only(n) && !o->writable)
        r = byre_fail(err, BAD_ARGUMENT, "%s: bitmap '%s' records, a read-only export needs one that does not", graph_filename(n), want->name);
    if (r)
        return r;
    graph_bitmap_hold(b);
    n = graph_skip_filters(n);
    graph_ref(n);                        /* I4 */
    e->bitmap_images[e->bitmap_count] = n;
    e->disk.bitmaps[e->bitmap_count++] = b;
    return 0;
}

static int take_bitmaps(struct co *co, struct export *e, const struct export_opts *o, struct byre_err *err)
{
    int r = o->bitmap_count > EXPORT_BITMAPS_MAX ? byre_fail(err, LIMIT, "an export offers at most %u bitmaps", EXPORT_BITMAPS_MAX) : 0;
    for (unsigned i = 0; !r && i < o->bitmap_count; i++)
        r = take_bitmap(co, e, o, &o->bitmaps[i], err);
    return r;
}

static int set_range(struct export *e, const struct export_opts *o, struct byre_err *err)
{
    uint64_t have = graph_length(e->node);
    if (o->offset > have || (o->length && !range_inside(o->offset, o->length, have)))
        return byre_fail(err, BAD_ARGUMENT, "export '%s': %" PRIu64 " bytes at offset %" PRIu64 " are not inside the disk, which has %" PRIu64, o->id,
                         o->length, o->offset, have);
    e->disk.offset = o->offset;
    e->disk.length = o->length;
    e->disk.writethrough = o->writethrough;
    return 0;
}

static int offer(struct exports *x, struct export *e, const struct export_opts *o, struct byre_err *err)
{
    const char *names[EXPORT_BITMAPS_MAX];
    bool plain = !o->bitmap_count && !o->offset && !o->length && !o->writethrough;
    for (unsigned i = 0; i < o->bitmap_count; i++)
        names[i] = o->bitmaps[i].name;
    struct nbd_export_opts xo = { .name = o->name ? o->name : graph_node_name(o->node), .description = o->description,
        .ops = plain ? &nbd_graph_ops : &nbd_graph_bitmap_ops, .disk = plain ? (void *)e->node : (void *)&e->disk, .writable = o->writable,
        .is_default = o->is_default, .block_max = graph_max_transfer(o->node), .loop = e->io ? e->io->loop : NULL, .allocation_depth = o->allocation_depth, .bitmaps = names, .bitmap_count = o->bitmap_count };
    return nbd_server_add(x->server, &xo, &e->nbd, err);
}

static int fill(struct co *co, struct exports *x, struct export *e, const struct export_opts *o, struct byre_err *err)
{
    e->owner = x;
    e->writable = o->writable;
    e->removable = o->removable;
    e->id = strdup(o->id);
    if (!e->id)
        return byre_fail(err, NOMEM, "no memory for an export");
    if (o->removable && o->bitmap_count)
        return byre_fail(err, BAD_ARGUMENT, "export '%s': bitmaps are of one medium, and it could not become another one", o->id);
    e->fixed_io = o->fixed_iothread;
    if (!o->allow_inactive && !graph_is_active(o->node)) {
        int woken = graph_set_active(co, graph_of(o->node), o->node, true, err);
        if (woken)
            return woken;
    }
    int may = o->writable ? graph_writer_comes(co, o->node, err) : 0;
    if (may)
        return may;
    if (o->writable && graph_meant_read_only(o->node))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, an export of it cannot be writable", graph_node_name(o->node));
    char who[64];
    snprintf(who, sizeof who, "export '%s'", o->id);
    struct graph_attach_opts ao = { .who = who, .perm = STOR_PERM_READ | (o->writable ? STOR_PERM_WRITE : 0), .shared = STOR_PERM_ALL,
                                    .idle = o->allow_inactive || !o->writable, .tray = o->removable };
    int r = graph_attach(o->node, &ao, &e->node, err);
    e->disk.node = e->node;
    if (!r)
        r = set_range(e, o, err);
    if (!r)
        r = take_bitmaps(co, e, o, err);
    e->io = o->iothread ? iothread_find(&x->iothreads, o->iothread) : NULL;      /* nothing suspends from here until others find the export */
    if (!r && o->iothread && !e->io)
        r = byre_fail(err, NOT_FOUND, "export '%s': iothread '%s' not found", o->id, o->iothread);
    return r ? r : offer(x, e, o, err);
}

static int add_locked(struct co *co, struct exports *x, const struct export_opts *o, struct export **ret_e, struct byre_err *err)
{
    if (!x->server || x->stopping)
        return byre_fail(err, NOT_FOUND, "NBD server not running");
    if (exports_find(x, o->id))
        return byre_fail(err, EXISTS, "Block export id '%s' is already in use", o->id);
    struct export *e = calloc(1, sizeof *e);
    if (!e)
        return byre_fail(err, NOMEM, "no memory for an export");
    int r = fill(co, x, e, o, err);
    if (r) {
        export_end(co, e);
        graph_writer_gone(co, o->node);
        return r;
    }
    list_push_back(&x->list, &e->link);
    *ret_e = e;
    return 0;
}

static void keep_nodes(const struct export_opts *o)
{
    graph_ref(o->node);
    for (unsigned i = 0; i < o->bitmap_count; i++)
        if (o->bitmaps[i].node)
            graph_ref(o->bitmaps[i].node);
}

static void let_nodes(struct co *co, const struct export_opts *o)
{
    for (unsigned i = 0; i < o->bitmap_count; i++)
        if (o->bitmaps[i].node)
            (void)!graph_close(co, o->bitmaps[i].node);      /* somebody else has it, or had it and has gone: there is nobody to tell */
    (void)!graph_close(co, o->node);
}

/* Nodes are not opened in another way, and bitmaps do not go, from the look at them to the hold (graph_edges_hold). */
int exports_add(struct co *co, struct exports *x, const struct export_opts *o, struct export **ret_e, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    struct graph *g = graph_of(o->node);
    keep_nodes(o);
    co_lock(co, &x->changing);
    graph_edges_hold(co, g);
    struct export_opts then = *o;
    if (o->now)
        then.node = o->now(o->now_arg);
    int r = then.node ? add_locked(co, x, &then, ret_e, err) : byre_fail(err, NOT_FOUND, "export '%s': what it is to offer is gone", o->id);
    graph_edges_let(co, g);
    co_unlock(&x->changing);
    let_nodes(co, o);
    return r;
}

/* ---- threads ---- */
struct iothreads *exports_iothreads(struct exports *x)
{
    return &x->iothreads;
}

int exports_iothread_del(struct exports *x, struct iothread *io, struct byre_err *err)
{
    for (struct export *e = exports_next(x, NULL); e; e = exports_next(x, e))
        if (e->io == io)
            return byre_fail(err, PERMISSION, "object '%s' is in use, can not be deleted: export '%s' is served there", io->id, e->id);
    unsigned clients = x->server ? nbd_server_loop_users(x->server, io->loop) : 0;
    if (clients)
        return byre_fail(err, PERMISSION, "object '%s' is in use, can not be deleted: %u clients are served there", io->id, clients);
    iothread_del(&x->iothreads, io);
    return 0;
}

int exports_node_iothread(struct exports *x, struct graph_node *n, struct iothread *io, struct byre_err *err)
{
    for (struct export *e = exports_next(x, NULL); e; e = exports_next(x, e))
        if (!e->shutting_down && graph_attached(e->node) == n && e->fixed_io && e->io != io)
            return byre_fail(err, PERMISSION, "Cannot change iothread of node '%s': export '%s' is fixed to %s", graph_node_name(n), e->id, e->io ? e->io->id : "none");
    for (struct export *e = exports_next(x, NULL); e; e = exports_next(x, e))
        if (!e->shutting_down && graph_attached(e->node) == n && e->io != io) {          /* the server has freed its part of those that go */
            e->io = io;
            nbd_export_serve_on(e->nbd, io ? io->loop : NULL);
        }
    return 0;
}

/* ---- removal ---- */
/* What its clients have asked for ends without waiting for a limit. */
static void go(struct export *e)
{
    if (!e->shutting_down)
        graph_haste_may(&e->haste, e->node);
    graph_haste_begin(&e->haste);
    e->shutting_down = true;
}

static void tell_gone(struct co *co, struct exports *x, struct export *e)
{
    list_remove(&e->link);
    char *id = e->id;
    e->id = NULL;
    export_end(co, e);                   /* I2 */
    if (x->gone)
        x->gone(x->gone_arg, id);
    free(id);
}

static void removal_co(struct co *co, void *arg)
{
    struct export *e = arg;
    struct exports *x = e->owner;
    while (e->kept)
        co_wait(co, &e->let);            /* I3 */
    if (nbd_server_remove(co, x->server, e->nbd, true, NULL))
        UNREACHABLE();                   /* with force it cannot fail */
    tell_gone(co, x, e);
    co_group_leave(&x->removals);
}

int exports_keep(struct export *e, struct byre_err *err)
{
    ASSERT_LOOP(e->owner->home);
    if (e->shutting_down)
        return byre_fail(err, PERMISSION, "export '%s' is being removed", e->id);
    e->kept++;
    co_group_enter(&e->owner->removals);         /* the end of the server waits for it */
    return 0;
}

void exports_let(struct export *e)
{
    struct exports *x = e->owner;
    ASSERT(e->kept);
    if (--e->kept == 0)
        co_wake_all(&e->let);
    co_group_leave(&x->removals);
}

int exports_del(struct exports *x, struct export *e, bool force, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    if (e->shutting_down)
        return byre_fail(err, EXISTS, "Export '%s' is already shutting down", e->id);
    if (!force && nbd_export_users(e->nbd))
        return byre_fail(err, PERMISSION, "export '%s' still in use by %u clients; mode 'hard' cuts them off", e->id, nbd_export_users(e->nbd));
    go(e);
    co_group_enter(&x->removals);
    int r = rt_spawn(x->home, removal_co, e);
    if (r) {
        graph_haste_end(&e->haste);
        e->shutting_down = false;
        co_group_leave(&x->removals);
        return byre_fail(err, NOMEM, "no memory to remove an export");
    }
    return 0;
}

/* Removals that were begun need the server: they end first. */
static int stop_locked(struct co *co, struct exports *x, struct byre_err *err)
{
    if (!x->server)
        return byre_fail(err, NOT_FOUND, "NBD server not running");
    for (struct export *e = exports_next(x, NULL); e; e = exports_next(x, e))
        go(e);
    co_group_wait(co, &x->removals);
    nbd_server_stop(co, x->server);
    while (!list_empty(&x->list))
        tell_gone(co, x, exports_next(x, NULL));
    nbd_server_free(x->server);
    x->server = NULL;
    return 0;
}

int exports_server_stop(struct co *co, struct exports *x, struct byre_err *err)
{
    ASSERT_LOOP(x->home);
    co_lock(co, &x->changing);
    int r = stop_locked(co, x, err);
    co_unlock(&x->changing);
    return r;
}

/* Nobody finds the server before it listens, so it can end when that fails: others that opened a door of it were told that they had. */
int exports_open(struct co *co, struct exports *x, const struct nbd_door_opts *o, const struct exports_address *a, struct byre_err *err)
{
    struct byre_err why;
    uint16_t port;
    ASSERT_LOOP(x->home);
    co_lock(co, &x->changing);
    bool first = !x->server;
    int r = first || !o->id ? exports_server_start(x, NULL, err) : 0;        /* the second one without a name is refused, as the peer does */
    if (!r)
        r = listen_locked(co, x, o, a, &port, err);
    else if (a->where == EXPORTS_FD)
        close(a->fd);
    if (r && first && x->server)
        (void)!stop_locked(co, x, &why);         /* it is there */
    co_unlock(&x->changing);
    return r;
}

void exports_stop(struct co *co, struct exports *x)
{
    struct byre_err none_runs;
    x->stopping = true;
    if (exports_server_stop(co, x, &none_runs))
        return;
}
