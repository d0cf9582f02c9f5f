/* SPDX-License-Identifier: MIT
 *
 * nbd_server.c: the server object: exports, the list of connections, orderly stop.
 *
 * Purpose      Knows what is served and who is connected; everything of it lives on the home loop.
 * Owns         exports, listeners (nbd_listen.c), connections until they are gone.
 * Invariants   I1 a connection is freed on the home loop, after its coroutines have ended and after every message that
 *                 was posted to it has been handled (gone_seen, and stop_acked if stop_posted).
 *              I2 an export is freed only when users is 0 and it is in no list; so a connection that holds one may read
 *                 its constant fields from its own loop.
 *              I3 while stopping no connection is started.
 * Concurrency  home loop; connections reach it by rt_call (find) and messages (gone, ack).
 * Failure      whatever one client does ends its own connection only.
 * Tests        tests/nbd, nbd_server_test.c
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "export/nbd/nbd_priv.h"

/* ---- server ---- */

int nbd_server_new(struct rt_loop *home, const struct nbd_server_opts *opts, struct nbd_server **ret_s, struct byre_err *err)
{
    static const struct nbd_server_opts normal = NBD_SERVER_OPTS_DEFAULT;
    const struct nbd_server_opts *o = opts ? opts : &normal;
    if (!o->requests_max || o->requests_max > 256 || !o->bytes_max)
        return byre_fail(err, BAD_ARGUMENT, "NBD server: 1 to 256 requests and more than 0 bytes in flight are possible");
    struct nbd_server *s = calloc(1, sizeof *s);
    if (s)
        s->per_loop = calloc(rt_loop_slots(rt_of(home)), sizeof *s->per_loop);
    if (!s || !s->per_loop) {
        free(s);
        return byre_fail(err, NOMEM, "NBD server: no memory");
    }
    s->home = home;
    s->opts = *o;
    list_init(&s->exports);
    list_init(&s->listeners);
    list_init(&s->conns);
    list_init(&s->doors);
    struct nbd_door_opts front = { .connections_max = o->connections_max, .handshake_ms = o->handshake_ms };
    int r = nbd_door_new(s, &front, &s->front, err);
    if (r) {
        nbd_server_free(s);
        return r;
    }
    *ret_s = s;
    return 0;
}

void nbd_server_free(struct nbd_server *s)
{
    if (!s)
        return;
    ASSERT(list_empty(&s->exports) && list_empty(&s->listeners) && list_empty(&s->conns));
    while (!list_empty(&s->doors))
        nbd_door_forget(CONTAINER_OF(list_first(&s->doors), struct nbd_door, link));
    free(s->per_loop);
    free(s);
}

void nbd_server_watch(struct nbd_server *s, nbd_gone_fn *fn, void *arg)
{
    s->gone = fn;
    s->gone_arg = arg;
}

struct nbd_door *nbd_server_door(struct nbd_server *s)
{
    return s->front;
}

unsigned nbd_server_connections(const struct nbd_server *s)
{
    return s->n_conns;
}

/* ---- exports ---- */

static void export_free(struct nbd_export *x)
{
    if (!x)
        return;
    for (unsigned i = 0; i < x->ctx_count; i++)
        free(x->ctx[i]);
    free(x->name);
    free(x->description);
    free(x);
}
CLEANUP_DEF(struct nbd_export, export_free)

static struct nbd_export *export_of(struct list_node *n)
{
    return CONTAINER_OF(n, struct nbd_export, link);
}

struct nbd_export *nbd_server_find(struct nbd_server *s, const char *name)
{
    LIST_FOR(n, &s->exports)
        if (!strcmp(export_of(n)->name, name))
            return export_of(n);
    return NULL;
}

struct nbd_export *nbd_server_next(struct nbd_server *s, struct nbd_export *prev)
{
    struct list_node *n = prev ? list_next(&s->exports, &prev->link) : list_first(&s->exports);
    return n ? export_of(n) : NULL;
}

const char *nbd_export_name(const struct nbd_export *x)
{
    return x->name;
}

bool nbd_export_writable(const struct nbd_export *x)
{
    return x->writable;
}

unsigned nbd_export_users(const struct nbd_export *x)
{
    return x->users;
}

void nbd_export_serve_on(struct nbd_export *x, struct rt_loop *loop)
{
    x->loop = loop;
}

unsigned nbd_server_loop_users(const struct nbd_server *s, const struct rt_loop *loop)
{
    return s->per_loop[rt_loop_index(loop)];
}

static int check_export(struct nbd_server *s, const struct nbd_export_opts *o, struct byre_err *err)
{
    if (s->stopping)
        return byre_fail(err, CANCELLED, "NBD server: it is being stopped");
    if (strlen(o->name) > NBD_STRING_MAX || (o->description && strlen(o->description) > NBD_STRING_MAX))
        return byre_fail(err, BAD_ARGUMENT, "NBD export: name and description may have %u bytes", NBD_STRING_MAX);
    if (o->bitmap_count > NBD_BITMAPS_MAX || (o->bitmap_count && !o->ops->dirty))
        return byre_fail(err, LIMIT, "NBD export '%.64s': at most %u bitmaps, of a disk that has some", o->name, NBD_BITMAPS_MAX);
    if (o->ops->length(o->disk) > INT64_MAX)
        return byre_fail(err, BAD_SIZE, "NBD export '%.64s': the disk is larger than 2^63-1 bytes", o->name);
    if (o->block_min && (!is_pow2(o->block_min) || o->block_min > 65536))
        return byre_fail(err, BAD_ARGUMENT, "NBD export '%.64s': minimum block size %u", o->name, o->block_min);
    if (nbd_server_find(s, o->name))
        return byre_fail(err, EXISTS, "NBD export '%.64s' exists already", o->name);
    return 0;
}

static int copy_strings(struct nbd_export *x, const struct nbd_export_opts *o)
{
    static const char bitmap[] = "qemu:dirty-bitmap:";
    x->name = strdup(o->name);
    x->description = o->description ? strdup(o->description) : NULL;
    x->ctx[0] = strdup("base:allocation");
    x->ctx[1] = o->allocation_depth ? strdup("qemu:allocation-depth") : NULL;
    x->ctx_count = 2 + o->bitmap_count;
    bool ok = x->name && x->ctx[0] && (x->description || !o->description) && (x->ctx[1] || !o->allocation_depth);
    for (unsigned i = 0; ok && i < o->bitmap_count; i++) {
        size_t n = sizeof bitmap + strlen(o->bitmaps[i]);
        ok = (x->ctx[2 + i] = malloc(n)) != NULL;
        if (ok) {
            memcpy(x->ctx[2 + i], bitmap, sizeof bitmap - 1);
            memcpy(x->ctx[2 + i] + sizeof bitmap - 1, o->bitmaps[i], n - sizeof bitmap + 1);
        }
    }
    return ok ? 0 : -ENOMEM;
}

int nbd_server_add(struct nbd_server *s, const struct nbd_export_opts *o, struct nbd_export **ret_x, struct byre_err *err)
{
    ASSERT_LOOP(s->home);
    int r = check_export(s, o, err);
    if (r)
        return r;
    CLEANUP(export_freep) struct nbd_export *x = calloc(1, sizeof *x);
    if (!x || copy_strings(x, o))
        return byre_fail(err, NOMEM, "NBD export: no memory");
    x->serial = ++s->last_serial;
    x->ops = o->ops;
    x->disk = o->disk;
    x->writable = o->writable;
    x->is_default = o->is_default;
    x->rotational = o->rotational;
    x->loop = o->loop;
    x->block_min = o->block_min ? o->block_min : 1;
    x->block_preferred = (uint32_t)max_u64(o->block_preferred ? o->block_preferred : 4096, x->block_min);
    x->block_max = !o->block_max || o->block_max > NBDP_PAYLOAD_MAX ? 0 : (uint32_t)max_u64(round_down(o->block_max, x->block_min), x->block_preferred);
    list_push_back(&s->exports, &x->link);
    *ret_x = TAKE(x);
    return 0;
}

/* The export that a client means: by name, or the default one for the empty name. */
static struct nbd_export *lookup(struct nbd_server *s, const char *name, size_t len)
{
    struct nbd_export *fallback = NULL;
    LIST_FOR(n, &s->exports) {
        struct nbd_export *x = export_of(n);
        if (strlen(x->name) == len && !memcmp(x->name, name, len))
            return x;
        if (!len && x->is_default && !fallback)
            fallback = x;
    }
    return fallback;
}

static void release_export(struct nbd_conn *c)
{
    if (!c->x)
        return;
    ASSERT(c->x->users > 0);
    c->x->users--;
    if (c->x->removed && !c->x->users)
        co_wake_all(&c->server->changed);
    c->x = NULL;
}

struct find { struct nbd_conn *c; const char *name; size_t len; };

static int find_on_home(struct co *co, void *arg)
{
    struct find *f = arg;
    release_export(f->c);
    f->c->x = f->name ? lookup(f->c->server, f->name, f->len) : NULL;
    if (!f->c->x)
        return -ENOENT;
    f->c->x->users++;
    f->c->wanted = f->c->x->loop;
    return 0;
}

int nbd_conn_find_export(struct co *co, struct nbd_conn *c, const char *name, size_t len)
{
    struct find f = { c, name, len };
    return rt_call(co, c->server->home, find_on_home, &f);
}

/* ---- connections ---- */

static unsigned least_busy_loop(const struct nbd_server *s)
{
    unsigned best = 0, n = rt_loop_count(rt_of(s->home));
    for (unsigned i = 1; i < n; i++)
        if (s->per_loop[i] < s->per_loop[best])
            best = i;
    return best;
}

static void forget(struct nbd_conn *c)
{
    struct nbd_server *s = c->server;
    list_remove(&c->link);
    s->n_conns--;
    c->door->n_conns--;
    s->per_loop[rt_loop_index(c->loop)]--;
    free(c);
}

void nbd_conn_start(struct nbd_door *d, int fd)
{
    struct nbd_server *s = d->server;
    INV(I3, !s->stopping);
    struct nbd_conn *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    c->server = s;
    c->door = d;
    c->fd = fd;
    c->loop = rt_loop_at(rt_of(s->home), least_busy_loop(s));
    c->stop_msg.fn = nbd_conn_stop_msg;
    c->ack_msg.fn = nbd_conn_ack_msg;
    c->gone_msg.fn = nbd_conn_gone_msg;
    list_init(&c->to_send);
    list_init(&c->spare);
    list_push_back(&s->conns, &c->link);
    s->n_conns++;
    d->n_conns++;
    s->per_loop[rt_loop_index(c->loop)]++;
    if (rt_spawn_on(c->loop, nbd_conn_main, c)) {
        close(fd);
        forget(c);
    }
}

static void free_if_gone(struct nbd_conn *c)
{
    struct nbd_server *s = c->server;
    if (!c->gone_seen || (c->stop_posted && !c->stop_acked))
        return;      /* I1 */
    bool used = c->x != NULL;
    release_export(c);
    forget(c);
    co_wake_all(&s->changed);
    if (used && s->gone)
        s->gone(s->gone_arg, s->n_conns);
}

/* Goes on where its export is served; where it was when it is told to stop just now: the message is on the way there. */
static bool go_on(struct nbd_conn *c)
{
    struct nbd_server *s = c->server;
    c->moving = false;
    if (!c->stop_posted && c->x->loop) {
        s->per_loop[rt_loop_index(c->loop)]--;
        c->loop = c->x->loop;
        s->per_loop[rt_loop_index(c->loop)]++;
    }
    return !rt_spawn_on(c->loop, nbd_conn_main, c);
}

void nbd_conn_gone_msg(struct rt_msg *m)
{
    struct nbd_conn *c = CONTAINER_OF(m, struct nbd_conn, gone_msg);
    if (c->moving) {
        if (go_on(c))
            return;
        nbd_conn_fini(c);
    }
    c->gone_seen = true;
    free_if_gone(c);
}

void nbd_conn_ack_msg(struct rt_msg *m)
{
    struct nbd_conn *c = CONTAINER_OF(m, struct nbd_conn, ack_msg);
    c->stop_acked = true;
    free_if_gone(c);
}

void nbd_conns_stop(struct nbd_server *s, const struct nbd_export *x, const struct nbd_door *d)
{
    LIST_FOR(n, &s->conns) {
        struct nbd_conn *c = CONTAINER_OF(n, struct nbd_conn, link);
        if ((x && c->x != x) || (d && c->door != d) || c->stop_posted)
            continue;
        c->stop_posted = true;
        rt_post(c->loop, &c->stop_msg);
    }
}

static void remove_export(struct co *co, struct nbd_server *s, struct nbd_export *x)
{
    list_remove(&x->link);
    x->removed = true;
    nbd_conns_stop(s, x, NULL);
    while (x->users)
        co_wait(co, &s->changed);
    export_free(x);
}

int nbd_server_remove(struct co *co, struct nbd_server *s, struct nbd_export *x, bool force, struct byre_err *err)
{
    ASSERT_LOOP(s->home);
    if (x->users && !force)
        return byre_fail(err, PERMISSION, "NBD export '%.64s' is in use by %u connections", x->name, x->users);
    remove_export(co, s, x);
    return 0;
}

void nbd_server_stop(struct co *co, struct nbd_server *s)
{
    ASSERT_LOOP(s->home);
    s->stopping = true;
    while (!list_empty(&s->listeners))
        nbd_listener_stop(co, CONTAINER_OF(list_first(&s->listeners), struct nbd_listener, link));
    nbd_conns_stop(s, NULL, NULL);
    while (s->n_conns)
        co_wait(co, &s->changed);
    while (!list_empty(&s->exports))
        remove_export(co, s, export_of(list_first(&s->exports)));
}
