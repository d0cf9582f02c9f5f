/* SPDX-License-Identifier: MIT
 *
 * cmd_serve.c: byre serve.
 *
 * Purpose      Opens an image, offers it over NBD, listens on a control socket, ends cleanly on a signal or `quit`.
 * Owns         image, export, and a private folder for sockets that were not named; the rest is server.h
 * Invariants   I1 the lines on standard output are printed when clients can connect, not before
 * Concurrency  main thread
 * Failure      exit 1; 128 + signal after a second signal
 * Tests        tests/cli/serve_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/server.h"
#include "lib/lib_inside.h"

struct opts {
    struct common common;
    char *nbd, *control, *name, *format, *cache, *aio, *discard, *description, *tls_creds, *tls_authz;
    uint64_t threads, max_clients;
    bool read_only, image_opts, force_share, quiet;
    struct opt_list bitmaps;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "nbd", 0, OPT_STR, OPT_AT(struct opts, nbd), .arg = "ADDRESS", .help = "unix:PATH, HOST:PORT or [V6]:PORT to listen on; port 0 is a free one [a socket in a private folder]" },
    { "control", 0, OPT_STR, OPT_AT(struct opts, control), .arg = "PATH", .help = "control socket [in a private folder]" },
    { "name", 'x', OPT_STR, OPT_AT(struct opts, name), .arg = "NAME", .def = "disk0", .help = "name of the node and of the export" },
    { "description", 'D', OPT_STR, OPT_AT(struct opts, description), .arg = "TEXT", .help = "description of the export" },
    { "bitmap", 'B', OPT_LIST, OPT_AT(struct opts, bitmaps), .arg = "NAME", .help = "dirty bitmap to offer as a context; may be repeated" },
    { "tls-creds", 0, OPT_STR, OPT_AT(struct opts, tls_creds), .arg = "ID", .help = "speak TLS with these credentials (--object), and with nobody who does not" },
    { "tls-authz", 0, OPT_STR, OPT_AT(struct opts, tls_authz), .arg = "ID", .help = "rules (--object) about who may connect over TLS" },
    { "read-only", 'r', OPT_BOOL, OPT_AT(struct opts, read_only), .help = "open the image read-only and refuse writes" },
    { "threads", 0, OPT_UINT, OPT_AT(struct opts, threads), .arg = "N", .max = 64, .help = "threads that serve clients, 0 for one per processor up to 4" },
    { "max-clients", 'e', OPT_UINT, OPT_AT(struct opts, max_clients), .arg = "N", .def = "100", .min = 1, .max = 10000, .help = "NBD connections at the same time" },
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_CACHE(struct opts, cache, "cache mode [writeback]"),
    { "aio", 'i', OPT_STR, OPT_AT(struct opts, aio), .arg = "MODE", .help = "threads, native or io_uring [io_uring]" },
    { "discard", 0, OPT_STR, OPT_AT(struct opts, discard), .arg = "MODE", .def = "unmap", .help = "what a discard does: unmap gives space back, ignore does nothing" },
    ROW_FORCE_SHARE(struct opts),
    ROW_QUIET(struct opts),
    OPT_END
};

struct serve {
    struct run *r;
    const struct opts *o;
    char *folder;                        /* private, removed at the end; NULL: none */
    char *nbd, *control;                 /* addresses that were chosen */
    int cache;
    struct byre_image *image;
    struct byre_export *export;
    struct ctl_device device;
    struct server server;
};

/* ---- addresses ---- */
static int private_folder(struct serve *s)
{
    const char *base = getenv("XDG_RUNTIME_DIR");
    if (s->folder)
        return 0;
    if (!base || base[0] != '/' || access(base, W_OK))
        base = "/tmp";
    if (asprintf(&s->folder, "%s/byre-XXXXXX", base) < 0) {
        s->folder = NULL;
        return run_fail(s->r, "no memory");
    }
    if (mkdtemp(s->folder))
        return 0;
    run_fail(s->r, "cannot make a folder in %s: %s", base, strerror(errno));
    free(s->folder);
    s->folder = NULL;
    return 1;
}

/* A relative path of a socket becomes absolute: the URI must hold for clients in other folders. */
static char *absolute(const char *path)
{
    char *text = NULL, *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    int n = cwd ? asprintf(&text, "%s/%s", cwd, path) : asprintf(&text, "%s", path);
    free(cwd);
    return n < 0 ? NULL : text;
}

static int choose_addresses(struct serve *s)
{
    const struct opts *o = s->o;
    bool is_unix = o->nbd && strncmp(o->nbd, "unix:", 5) == 0;
    int n = 0;
    if ((!o->nbd || !o->control) && private_folder(s))
        return 1;
    AUTOFREE char *path = is_unix ? absolute(o->nbd + 5) : NULL;
    if (!o->nbd)
        n |= asprintf(&s->nbd, "unix:%s/nbd", s->folder);
    else if (is_unix)
        n |= path ? asprintf(&s->nbd, "unix:%s", path) : -1;
    else
        n |= asprintf(&s->nbd, "%s", o->nbd);
    if (o->control)
        s->control = absolute(strncmp(o->control, "unix:", 5) == 0 ? o->control + 5 : o->control);
    else
        n |= asprintf(&s->control, "%s/control", s->folder);
    if (n < 0 || !s->control)
        return run_fail(s->r, "no memory");
    return 0;
}

/* ---- the parts ---- */
static int open_disk(struct serve *s)
{
    const struct opts *o = s->o;
    struct byre_err err;
    struct byre_open_opts oo = byre_open_opts_init();
    AUTOFREE char *prefix = NULL;
    if (asprintf(&prefix, "%s-b", o->name) < 0)
        return run_fail(s->r, "no memory");
    int discard = run_discard_mode(s->r, o->discard);
    if (discard < 0)
        return 1;
    oo.flags = (o->read_only ? BYRE_OPEN_READ_ONLY : BYRE_OPEN_REFUSE_GUESSED_RAW) | (o->image_opts ? BYRE_OPEN_IMAGE_OPTS : 0) |
               (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) | (unsigned)discard |
               (o->read_only ? 0 : BYRE_OPEN_SERVE_UNCLEAN);
    oo.cache = s->cache;
    oo.format = o->format;
    oo.node_name = o->name;
    oo.backing_names = prefix;
    if (byre_open(s->r->ctx, s->r->argv[0], &oo, &s->image, &err))
        return run_fail(s->r, "Could not open '%s': %s", s->r->argv[0], RUN_TEXT(&err));
    return 0;
}

static int start_export(struct serve *s)
{
    struct byre_err err;
    struct byre_nbd_opts no = byre_nbd_opts_init();
    no.flags = s->o->read_only ? BYRE_EXPORT_READ_ONLY : 0;
    no.address = s->nbd;
    no.name = s->o->name;
    no.description = s->o->description;
    no.max_clients = (unsigned)s->o->max_clients;
    no.tls_creds = s->o->tls_creds;
    no.tls_authz = s->o->tls_authz;
    no.bitmaps = (const char *const *)s->o->bitmaps.items;
    no.bitmap_count = (unsigned)s->o->bitmaps.count;
    if (byre_export_nbd(s->image, &no, &s->export, &err))
        return run_fail_err(s->r, &err);
    server_remember_path(strncmp(s->nbd, "unix:", 5) == 0 ? s->nbd + 5 : NULL);
    return 0;
}

struct attaching { struct serve *s; struct byre_err err; };

static int attach_co(struct co *co, void *arg)
{
    struct attaching *a = arg;
    return lib_image_attach(a->s->image, &a->s->device.node, &a->err);
}

static int detach_co(struct co *co, void *arg)
{
    lib_image_detach(co, arg);
    return 0;
}

static int start_control(struct serve *s)
{
    struct attaching a = { .s = s };
    s->device = (struct ctl_device){ s->o->name, NULL, s->cache == BYRE_CACHE_WRITETHROUGH || s->cache == BYRE_CACHE_DIRECTSYNC };
    if (lib_ctx_call(s->r->ctx, attach_co, &a))
        return run_fail_err(s->r, &a.err);
    s->server.exports = lib_export_set(s->export);
    if (server_control(&s->server, &s->device, 1))
        return 1;
    return server_listen(&s->server, s->control);
}

/* ---- the run ---- */
static void announce(const struct serve *s)
{
    if (!s->o->quiet)
        printf("serving: %s (%s, %" PRIu64 " bytes, %s)\n", byre_filename(s->image), byre_format(s->image), byre_size(s->image),
               byre_is_read_only(s->image) ? "read-only" : "read-write");
    printf("nbd: %s\ncontrol: %s\n", byre_export_uri(s->export), s->control);
    fflush(stdout);
}

struct scrubbing { struct serve *s; struct byre_err err; };

/* An image that was not closed cleanly is served already; now it is looked through. */
static int scrub_co(struct co *co, void *arg)
{
    struct scrubbing *st = arg;
    struct serve *s = st->s;
    char id[128];
    snprintf(id, sizeof id, "scrub-%s", s->o->name);
    return lib_image_scrub(s->image, id, &st->err);
}

static int serve(struct serve *s)
{
    const char *why = NULL;
    int code = open_disk(s);
    if (!code)
        code = start_export(s);
    if (!code)
        code = start_control(s);
    if (!code) {
        server_remember_path(s->folder);     /* behind what is in it */
        announce(s);
        struct scrubbing st = { .s = s };
        if (lib_ctx_call(s->r->ctx, scrub_co, &st))
            code = run_fail_err(s->r, &st.err);      /* requests may wait for it */
        why = code ? "host-error" : server_wait(&s->server);
    }
    server_end(&s->server, why);
    byre_export_stop(s->export);
    if (s->device.node)
        (void)lib_ctx_call(s->r->ctx, detach_co, s->device.node);
    code |= server_close_nodes(&s->server);
    run_close(s->r, s->image, &code);
    return code;
}

static int with_signals(struct serve *s)
{
    int code = 1, backend = run_backend(s->r, s->o->aio, s->cache, "--cache none");
    if (!server_begin(&s->server, s->r))
        return 1;
    s->r->more_loops = true;
    if (backend >= 0 && choose_addresses(s) == 0 && run_ctx(s->r, server_threads(s->o->threads), backend))
        code = serve(s);
    if (s->folder)
        (void)!rmdir(s->folder);
    server_fini(&s->server);
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct serve s = { .r = r, .o = o };
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    s.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    int code = s.cache < 0 ? 1 : with_signals(&s);
    free(s.folder);
    free(s.nbd);
    free(s.control);
    return code;
}

const struct cmd cmd_serve = { "serve", "FILE", "Offer an image over NBD, with a control socket", rows, sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
