/* SPDX-License-Identifier: MIT
 *
 * export.c: an image offered over NBD.
 *
 * Purpose      One server with one export per handle; address in, URI out.
 * Owns         struct byre_export, its server
 * Invariants   I1 the image stays open while an export of it exists (byre_image.users)
 * Concurrency  start and stop: one foreign thread; the server lives on the home loop
 * Failure      start leaves nothing behind, no socket file either
 * Tests        examples/serve_disk.c, tests/cli/serve_test.py
 */
#include <stdio.h>

#include "export/nbd/nbd.h"
#include "graph/runtime.h"
#include "lib/lib_priv.h"

struct byre_export {
    struct byre_image *image;
    struct nbd_server *server;
    struct nbd_export *export;
    char *uri;
    struct nbd_graph_disk disk;      /* with bitmaps */
    unsigned bitmap_count;
};

/* ---- addresses ---- */
struct address { bool is_unix; char *host; const char *path; uint16_t port; };

static int parse_port(const char *text, uint16_t *ret)
{
    unsigned v = 0;
    if (!*text)
        return -EINVAL;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || (v = v * 10 + (unsigned)(*text - '0')) > 65535)
            return -EINVAL;
    }
    *ret = (uint16_t)v;
    return 0;
}

/* HOST:PORT, :PORT, [V6]:PORT. */
static int parse_tcp(const char *text, struct address *a, struct byre_err *err)
{
    const char *colon = strrchr(text, ':');
    const char *host = text, *end = colon;
    if (colon && text[0] == '[' && colon > text && colon[-1] == ']') {
        host = text + 1;
        end = colon - 1;
    }
    if (!colon || parse_port(colon + 1, &a->port) || (host == text && memchr(text, ':', (size_t)(colon - text))))
        return byre_fail(err, BAD_ARGUMENT, "'%s' is no address: write unix:PATH, HOST:PORT or [V6]:PORT", text);
    a->host = strndup(host, (size_t)(end - host));
    return a->host ? 0 : byre_fail(err, NOMEM, "no memory for an address");
}

static int parse_address(const char *text, struct address *a, struct byre_err *err)
{
    *a = (struct address){ 0 };
    if (!text)
        return byre_fail(err, BAD_ARGUMENT, "an export needs an address");
    if (strncmp(text, "unix:", 5) != 0)
        return parse_tcp(text, a, err);
    a->is_unix = true;
    a->path = text + 5;
    return a->path[0] == '/' ? 0 : byre_fail(err, BAD_ARGUMENT, "'%s': the path of a socket must be absolute", text);
}

/* Everything but letters, digits and -._~/ as %XX. */
static void put_escaped(FILE *f, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || strchr("-._~/", c);
        fprintf(f, plain ? "%c" : "%%%02X", c);
    }
}

static char *make_uri(const struct address *a, const char *name)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    if (a->is_unix) {
        fputs("nbd+unix:///", f);
        put_escaped(f, name);
        fputs("?socket=", f);
        put_escaped(f, a->path);
    } else {
        bool v6 = strchr(a->host, ':');
        const char *host = *a->host ? a->host : "localhost";
        fprintf(f, "nbd://%s%s%s:%u/", v6 ? "[" : "", host, v6 ? "]" : "", a->port);
        put_escaped(f, name);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* ---- start and stop ---- */
struct starting { struct byre_export *e; const struct byre_nbd_opts *o; struct address *a; struct byre_err *err; };

/* Nobody makes requests any more. */
static void release(struct co *co, struct byre_export *e)
{
    for (unsigned i = 0; i < e->bitmap_count; i++)
        graph_bitmap_release(e->disk.bitmaps[i]);
    e->bitmap_count = 0;
    if (e->disk.node)
        (void)graph_detach(co, e->disk.node);    /* the image's own handle is closed after this, and tells */
    e->disk.node = NULL;
}

/* Finds one in the chain, loads and holds it. */
static int take_bitmap(struct co *co, struct starting *s, const char *name)
{
    struct byre_export *e = s->e;
    struct fmt_bitmap *b = NULL;
    struct graph_node *n = e->image->node;
    int r = 0;
    while (n && !r && !b) {
        r = graph_bitmap_find(co, n, name, &b, s->err);
        n = b || r ? n : graph_backing(n);
    }
    if (!r && !b)
        r = byre_fail(s->err, NOT_FOUND, "there is no bitmap '%s' in the chain of %s", name, graph_filename(e->image->node));
    if (!r)
        r = graph_bitmap_load(co, n, b, s->err);
    if (!r && b->busy)
        r = byre_fail(s->err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", graph_filename(n), name);
    if (!r && b->enabled && !graph_read_only(n) && s->o->flags & BYRE_EXPORT_READ_ONLY)
        r = byre_fail(s->err, BAD_ARGUMENT, "%s: bitmap '%s' records, a read-only export needs one that does not", graph_filename(n), name);
    if (r)
        return r;
    graph_bitmap_hold(b);
    e->disk.bitmaps[e->bitmap_count++] = b;
    return 0;
}

static int take_bitmaps(struct co *co, struct starting *s)
{
    int r = s->o->bitmap_count > 14 ? byre_fail(s->err, LIMIT, "an export offers at most 14 bitmaps") : 0;
    for (unsigned i = 0; !r && i < s->o->bitmap_count; i++)
        r = take_bitmap(co, s, s->o->bitmaps[i]);
    return r;
}

static int add_and_listen(struct co *co, struct starting *s)
{
    struct byre_export *e = s->e;
    bool writable = !(s->o->flags & BYRE_EXPORT_READ_ONLY) && !graph_read_only(e->image->node);
    char who[64];
    snprintf(who, sizeof who, "export '%s'", s->o->name ? s->o->name : "");
    struct graph_attach_opts ao = { who, STOR_PERM_READ | (writable ? STOR_PERM_WRITE : 0), STOR_PERM_ALL };
    int taken = graph_attach(e->image->node, &ao, &e->disk.node, s->err);
    if (!taken)
        taken = take_bitmaps(co, s);
    if (taken)
        return taken;
    struct nbd_export_opts xo = { .name = s->o->name ? s->o->name : "", .description = s->o->description, .ops = &nbd_graph_ops,
        .disk = e->disk.node, .bitmaps = s->o->bitmaps, .bitmap_count = s->o->bitmap_count, .writable = writable,
        .is_default = !(s->o->flags & BYRE_EXPORT_NOT_DEFAULT), .allocation_depth = true };
    if (e->bitmap_count) {
        xo.ops = &nbd_graph_bitmap_ops;
        xo.disk = &e->disk;
    }
    int r = nbd_server_add(e->server, &xo, &e->export, s->err);
    if (!r && s->a->is_unix)
        return nbd_server_listen_unix(co, e->server, s->a->path, s->err);
    if (!r)
        r = nbd_server_listen_tcp(co, e->server, &(struct nbd_tcp_addr){ s->a->host, s->a->port }, &s->a->port, s->err);
    return r;
}

static int start_co(struct co *co, void *arg)
{
    struct starting *s = arg;
    struct nbd_server_opts so = NBD_SERVER_OPTS_DEFAULT;
    if (s->o->max_clients)
        so.connections_max = s->o->max_clients;
    if (s->o->handshake_seconds)
        so.handshake_ms = s->o->handshake_seconds > 86400 ? 86400000 : s->o->handshake_seconds * 1000;
    if (s->o->stop_grace_ms)
        so.stop_grace_ms = s->o->stop_grace_ms;
    int r = nbd_server_new(co_loop(co), &so, &s->e->server, s->err);
    if (r)
        return r;
    r = add_and_listen(co, s);
    if (r) {
        nbd_server_stop(co, s->e->server);
        nbd_server_free(s->e->server);
        release(co, s->e);
    }
    return r;
}

static int stop_co(struct co *co, void *arg)
{
    struct byre_export *e = arg;
    nbd_server_stop(co, e->server);
    nbd_server_free(e->server);
    release(co, e);
    return 0;
}

void byre_export_stop(struct byre_export *e)
{
    if (!e)
        return;
    struct byre_ctx *ctx = e->image->ctx;
    (void)byre_ctx_call(ctx, stop_co, e);
    atomic_fetch_sub(&e->image->users, 1);
    free(e->uri);
    free(e);
}

int byre_export_nbd(struct byre_image *image, const struct byre_nbd_opts *opts, struct byre_export **ret_export, struct byre_err *err)
{
    struct byre_nbd_opts o;
    struct address a;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.flags & ~(unsigned)(BYRE_EXPORT_READ_ONLY | BYRE_EXPORT_NOT_DEFAULT))
        return byre_fail(err, BAD_ARGUMENT, "an export flag is not known");
    r = parse_address(o.address, &a, err);
    if (r)
        return r;
    struct byre_export *e = calloc(1, sizeof *e);
    struct starting s = { e, &o, &a, err };
    if (e) {
        e->image = image;
        r = lib_call(image->ctx, lib_home(image->ctx), start_co, &s);
    }
    if (!e || r) {
        free(a.host);
        free(e);
        return e ? r : byre_fail(err, NOMEM, "no memory for an export");
    }
    atomic_fetch_add(&image->users, 1);
    e->uri = make_uri(&a, o.name ? o.name : "");
    free(a.host);
    if (!e->uri) {
        byre_export_stop(e);
        return byre_fail(err, NOMEM, "no memory for an export");
    }
    *ret_export = e;
    return 0;
}

const char *byre_export_uri(const struct byre_export *e)
{
    return e->uri;
}

static int clients_co(struct co *co, void *arg)
{
    return (int)nbd_server_connections(((struct byre_export *)arg)->server);
}

unsigned byre_export_clients(struct byre_export *e)
{
    int n = lib_call(e->image->ctx, lib_home(e->image->ctx), clients_co, e);
    return n < 0 ? 0 : (unsigned)n;
}
