/* SPDX-License-Identifier: MIT
 *
 * export.c: an image offered over NBD.
 *
 * Purpose      One server with one export per handle; address in, URI out.
 * Owns         struct byre_export, its set of exports
 * Invariants   I1 the image stays open while an export of it exists (byre_image.users)
 * Concurrency  start and stop: one foreign thread; the server lives on the home loop
 * Failure      start leaves nothing behind, no socket file either
 * Tests        examples/serve_disk.c, tests/cli/serve_test.py
 */
#include <stdio.h>
#include <unistd.h>

#include "export/exports.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

struct byre_export {
    struct byre_image *image;
    struct exports *set;             /* the export, and on a served image whatever the control socket adds */
    char *uri;
};

struct exports *lib_export_set(struct byre_export *e)
{
    return e->set;
}

struct exports *lib_exports_new(struct byre_ctx *ctx)
{
    struct exports *x = NULL;
    struct byre_err err;
    return exports_new(lib_home(ctx), &x, &err) ? NULL : x;
}

void lib_exports_stop(struct co *co, struct exports *x)
{
    exports_stop(co, x);
}

void lib_exports_free(struct exports *x)
{
    exports_free(x);
}

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

/* HOST:PORT, :PORT, [IPV6]:PORT. */
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

static char *make_uri(const struct address *a, const char *name, bool tls)
{
    const char *s = tls ? "s" : "";
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    if (!a->is_unix && !a->host) {           /* a socket that was handed over */
        fprintf(f, "nbd%s:///", s);
        put_escaped(f, name);
    } else if (a->is_unix) {
        fprintf(f, "nbd%s+unix:///", s);
        put_escaped(f, name);
        fputs("?socket=", f);
        put_escaped(f, a->path);
    } else {
        bool v6 = strchr(a->host, ':');
        const char *host = *a->host ? a->host : "localhost";
        fprintf(f, "nbd%s://%s%s%s:%u/", s, v6 ? "[" : "", host, v6 ? "]" : "", a->port);
        put_escaped(f, name);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* ---- start and stop ---- */
struct starting {
    struct byre_export *e;
    const struct byre_nbd_opts *o;
    struct address *a;
    struct tls_creds *creds;
    struct byre_err *err;
    bool fd_taken;
};

static int listen_on(struct co *co, struct starting *s, const struct nbd_server_opts *so)
{
    const struct byre_nbd_opts *o = s->o;
    struct nbd_door_opts door = { .connections_max = so->connections_max, .handshake_ms = so->handshake_ms, .creds = s->creds, .authz = o->tls_authz,
                                  .objects = lib_ctx_tls(s->e->image->ctx) };
    struct exports_address at = { .where = o->listen_fd > 0 ? EXPORTS_FD : s->a->is_unix ? EXPORTS_UNIX : EXPORTS_TCP, .un = { .path = s->a->path, .label = o->selinux_label },
                                  .tcp = { s->a->host, s->a->port }, .fd = o->listen_fd };
    nbd_server_watch(exports_server(s->e->set), o->client_gone, o->client_gone_arg);
    s->fd_taken = o->listen_fd > 0;
    return exports_listen(co, s->e->set, &door, &at, &s->a->port, s->err);
}

static int add_export(struct co *co, struct starting *s)
{
    const struct byre_nbd_opts *o = s->o;
    struct graph_node *n = s->e->image->node;
    struct export_bitmap bitmaps[EXPORT_BITMAPS_MAX];
    struct export *e;
    if (o->bitmap_count > EXPORT_BITMAPS_MAX)
        return byre_fail(s->err, LIMIT, "an export offers at most %u bitmaps", EXPORT_BITMAPS_MAX);
    for (unsigned i = 0; i < o->bitmap_count; i++)
        bitmaps[i] = (struct export_bitmap){ NULL, o->bitmaps[i] };
    const char *name = o->name ? o->name : "";
    struct export_opts xo = { .id = *name ? name : graph_node_name(n), .node = n, .name = name, .description = o->description,
        .writable = !(o->flags & BYRE_EXPORT_READ_ONLY) && !graph_read_only(n), .is_default = !(o->flags & BYRE_EXPORT_NOT_DEFAULT),
        .allocation_depth = !(o->flags & BYRE_EXPORT_NO_DEPTH), .offset = o->offset, .bitmaps = bitmaps, .bitmap_count = o->bitmap_count };
    return exports_add(co, s->e->set, &xo, &e, s->err);
}

static int start_co(struct co *co, void *arg)
{
    struct starting *s = arg;
    struct nbd_server_opts so = NBD_SERVER_OPTS_DEFAULT;
    if (s->o->max_clients)
        so.connections_max = s->o->max_clients;
    if (s->o->handshake_seconds)
        so.handshake_ms = s->o->handshake_seconds > 86400 ? 86400000 : s->o->handshake_seconds * 1000;
    if (s->o->flags & BYRE_EXPORT_UNLIMITED)
        so.connections_max = 0;
    if (s->o->flags & BYRE_EXPORT_PATIENT)
        so.handshake_ms = 0;
    if (s->o->stop_grace_ms)
        so.stop_grace_ms = s->o->stop_grace_ms;
    int r = exports_new(co_loop(co), &s->e->set, s->err);
    if (!r)
        r = exports_server_start(s->e->set, &so, s->err);
    if (!r)
        r = add_export(co, s);
    if (!r)
        r = listen_on(co, s, &so);
    if (r && s->e->set) {
        exports_stop(co, s->e->set);
        exports_free(s->e->set);
    }
    return r;
}

static int stop_co(struct co *co, void *arg)
{
    struct byre_export *e = arg;
    exports_stop(co, e->set);
    exports_free(e->set);
    return 0;
}

void byre_export_stop(struct byre_export *e)
{
    if (!e)
        return;
    struct byre_ctx *ctx = e->image->ctx;
    (void)lib_ctx_call(ctx, stop_co, e);
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
    if (o.flags & ~(unsigned)((BYRE_EXPORT_PATIENT << 1) - 1))
        return byre_fail(err, BAD_ARGUMENT, "an export flag is not known");
    a = (struct address){ 0 };
    struct starting s = { .o = &o, .a = &a, .err = err };
    r = o.listen_fd > 0 ? 0 : parse_address(o.address, &a, err);
    if (!r && o.selinux_label && !a.is_unix)
        r = byre_fail(err, BAD_ARGUMENT, "an SELinux label is given to the socket of a 'unix:' address only");
    if (!r && o.tls_creds)
        r = tls_set_creds(image->ctx->tls, o.tls_creds, true, &s.creds, err);
    if (r) {
        free(a.host);
        return r;
    }
    struct byre_export *e = s.e = calloc(1, sizeof *e);
    if (e) {
        e->image = image;
        r = lib_call(image->ctx, lib_home(image->ctx), start_co, &s);
    }
    tls_creds_unref(s.creds);
    if (!e || r) {
        if (o.listen_fd > 0 && !s.fd_taken)
            close(o.listen_fd);
        free(a.host);
        free(e);
        return e ? r : byre_fail(err, NOMEM, "no memory for an export");
    }
    atomic_fetch_add(&image->users, 1);
    e->uri = make_uri(&a, o.name ? o.name : "", o.tls_creds);
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
    struct nbd_server *s = exports_server(((struct byre_export *)arg)->set);
    return s ? (int)nbd_server_connections(s) : 0;
}

unsigned byre_export_clients(struct byre_export *e)
{
    int n = lib_call(e->image->ctx, lib_home(e->image->ctx), clients_co, e);
    return n < 0 ? 0 : (unsigned)n;
}
