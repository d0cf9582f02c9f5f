/* SPDX-License-Identifier: MIT
 *
 * cmd_nbd.c: byre nbd; called as qemu-nbd it is that, without the kernel's device (FEATURES area 7).
 *
 * Purpose      One image over NBD, until the last client leaves, a signal, or for ever.
 * Owns         image, export, the pidfile
 * Invariants   I1 the parent of --fork succeeds when clients can connect
 *              I2 the overlay of --snapshot has no name any more once it is open
 * Order        as server.h; the image is closed behind the export
 * Concurrency  main thread
 * Failure      exit 1; 128 + signal after a second signal
 * Tests        tests/daemon
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/nbd_exports.h"
#include "bin/server.h"

#define PORT_DEFAULT 10809u
#define FIRST_PASSED_FD 3

struct opts {
    struct common common;
    bool version, persistent, verbose, depth, list, fork, connect, disconnect, read_only, snapshot, nocache, image_opts;
    char *bind, *socket, *name, *description, *pidfile, *device, *format, *load_snapshot, *cache, *aio, *discard, *detect, *tls_creds, *tls_authz, *tls_hostname, *label;
    uint64_t port, shared, offset, handshake, threads;
    struct opt_list bitmaps;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "version", 'V', OPT_BOOL, OPT_AT(struct opts, version), .help = "show the version and exit" },
    { "port", 'p', OPT_UINT, OPT_AT(struct opts, port), .arg = "PORT", .def = "10809", .max = 65535, .help = "TCP port to listen on" },
    { "bind", 'b', OPT_STR, OPT_AT(struct opts, bind), .arg = "HOST", .help = "address to listen on [all]" },
    { "socket", 'k', OPT_STR, OPT_AT(struct opts, socket), .arg = "PATH", .help = "unix socket to listen on instead; an absolute path" },
    { "shared", 'e', OPT_UINT, OPT_AT(struct opts, shared), .arg = "N", .def = "1", .max = INT32_MAX, .help = "clients at the same time, 0 for any number" },
    { "persistent", 't', OPT_BOOL, OPT_AT(struct opts, persistent), .help = "go on when the last client has left" },
    { "export-name", 'x', OPT_STR, OPT_AT(struct opts, name), .arg = "NAME", .help = "name of the export [the empty name]" },
    { "description", 'D', OPT_STR, OPT_AT(struct opts, description), .arg = "TEXT", .help = "description of the export" },
    { "offset", 'o', OPT_SIZE, OPT_AT(struct opts, offset), .arg = "OFFSET", .help = "the export begins at this byte of the disk" },
    { "allocation-depth", 'A', OPT_BOOL, OPT_AT(struct opts, depth), .help = "offer which image of the chain holds what" },
    { "bitmap", 'B', OPT_LIST, OPT_AT(struct opts, bitmaps), .arg = "NAME", .help = "dirty bitmap to offer as a context; may be repeated" },
    { "list", 'L', OPT_BOOL, OPT_AT(struct opts, list), .help = "list the exports of the server at -k, or at -b and -p" },
    { "tls-creds", 0, OPT_STR, OPT_AT(struct opts, tls_creds), .arg = "ID", .help = "speak TLS with these credentials (--object), and with nobody who does not" },
    { "tls-authz", 0, OPT_STR, OPT_AT(struct opts, tls_authz), .arg = "ID", .help = "rules (--object) about who may connect over TLS" },
    { "tls-hostname", 0, OPT_STR, OPT_AT(struct opts, tls_hostname), .arg = "HOST", .help = "with --list: the name in the certificate of the server [its host]" },
    { "selinux-label", 0, OPT_STR, OPT_AT(struct opts, label), .arg = "LABEL", .help = "security label (SELinux) of the socket at -k" },
    ROW_TRACE,
    { "verbose", 'v', OPT_BOOL, OPT_AT(struct opts, verbose), .help = "tell where it listens" },
    { "fork", 0, OPT_BOOL, OPT_AT(struct opts, fork), .help = "go into the background as soon as clients can connect" },
    { "pid-file", 0, OPT_STR, OPT_AT(struct opts, pidfile), .arg = "PATH", .help = "file for the number of the process" },
    { "handshake-limit", 0, OPT_UINT, OPT_AT(struct opts, handshake), .arg = "SECONDS", .def = "10", .max = 86400, .help = "time for a client to say what it wants, 0 for ever" },
    { "connect", 'c', OPT_STR, OPT_AT(struct opts, device), .arg = "DEVICE", .help = "attach the image to a device of the kernel (refused: use nbd-client)" },
    { "disconnect", 'd', OPT_BOOL, OPT_AT(struct opts, disconnect), .help = "detach a device of the kernel (refused: use nbd-client -d)" },
    ROW_FORMAT(struct opts),
    { "read-only", 'r', OPT_BOOL, OPT_AT(struct opts, read_only), .help = "open the image read-only and refuse writes" },
    { "snapshot", 's', OPT_BOOL, OPT_AT(struct opts, snapshot), .help = "changes go to a temporary file that is gone at the end" },
    { "load-snapshot", 'l', OPT_STR, OPT_AT(struct opts, load_snapshot), .arg = "SNAPSHOT", .help = "offer an internal snapshot, read-only: its id or name, or snapshot.id=ID,snapshot.name=NAME" },
    { "nocache", 'n', OPT_BOOL, OPT_AT(struct opts, nocache), .help = "short for --cache none" },
    { "cache", 0, OPT_STR, OPT_AT(struct opts, cache), .arg = "MODE", .help = "cache mode (none, writeback, writethrough, directsync, unsafe) [writeback]" },
    { "aio", 0, OPT_STR, OPT_AT(struct opts, aio), .arg = "MODE", .help = "threads, native or io_uring [io_uring]" },
    { "discard", 0, OPT_STR, OPT_AT(struct opts, discard), .arg = "MODE", .def = "unmap", .help = "what a discard does: unmap gives space back, ignore does nothing" },
    { "detect-zeroes", 0, OPT_STR, OPT_AT(struct opts, detect), .arg = "MODE", .def = "off", .help = "store writes of zeros as zeros: off, on, or unmap, which gives space back" },
    { "threads", 0, OPT_UINT, OPT_AT(struct opts, threads), .arg = "N", .max = 64, .help = "threads that serve clients, 0 for one per processor up to 4" },
    ROW_IMAGE_OPTS(struct opts),
    OPT_END
};

struct nbd {
    struct server s;
    struct run *r;
    const struct opts *o;
    uint64_t seen;
    struct byre_image *image;
    struct byre_export *export;
    struct pidfile pidfile;
    int cache, fd;
};

/* ---- options ---- */
static bool given(const struct nbd *n, const char *name)
{
    return opt_seen(rows, n->seen, name);
}

/* The descriptor of a service manager: FIRST_PASSED_FD, 0 for none, -1: told already. */
static int passed_fd(const struct nbd *n)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    char ours[24];
    snprintf(ours, sizeof ours, "%ld", (long)getpid());
    if (!pid || !fds || strcmp(pid, ours))
        return 0;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    if (strcmp(fds, "1")) {
        run_fail(n->r, "one socket can be handed over, not %s", fds);
        return -1;
    }
    if (given(n, "port") || given(n, "bind") || given(n, "socket")) {
        run_fail(n->r, "a socket was handed over: --port, --bind and --socket cannot be given");
        return -1;
    }
    return FIRST_PASSED_FD;
}

static int check_options(struct nbd *n)
{
    const struct opts *o = n->o;
    if (o->device || o->disconnect)
        return run_fail(n->r, "devices of the kernel are not attached by this program: start the server, then use nbd-client");
    if (o->socket && o->socket[0] != '/')
        return run_fail(n->r, "socket path must be absolute: '%s'", o->socket);
    if (o->nocache && o->cache)
        return run_fail(n->r, "-n and --cache can only be specified once");
    if (o->tls_hostname)
        return run_fail(n->r, "--tls-hostname is of --list only");
    if (o->tls_authz && !o->tls_creds)
        return run_fail(n->r, "--tls-authz needs --tls-creds");
    if (o->label && !o->socket)
        return run_fail(n->r, "--selinux-label needs --socket");
    if (o->snapshot && o->load_snapshot)
        return run_fail(n->r, "--snapshot and --load-snapshot cannot be combined");
    n->fd = passed_fd(n);
    n->cache = n->fd < 0 ? -1 : run_cache(n->r, o->cache, o->nocache ? BYRE_CACHE_NONE : BYRE_CACHE_WRITEBACK, "cache");
    return n->cache < 0;
}

/* BYRE_OPEN_* of --discard and --detect-zeroes; -1: told already. */
static int zero_flags(const struct nbd *n)
{
    const char *detect = n->o->detect;
    int flags = run_discard_mode(n->r, n->o->discard);
    if (flags < 0)
        return flags;
    if (strcmp(detect, "on") == 0)
        return flags | BYRE_OPEN_DETECT_ZEROES;
    if (strcmp(detect, "unmap") == 0)
        return flags && given(n, "discard") ? flags | BYRE_OPEN_DETECT_UNMAP : (run_fail(n->r, "detect-zeroes=unmap needs --discard=unmap"), -1);
    return strcmp(detect, "off") ? (run_fail(n->r, "Invalid detect-zeroes option: %s", detect), -1) : flags;
}

/* ---- the parts ---- */
static int open_disk(struct nbd *n)
{
    const struct opts *o = n->o;
    bool read_only = o->read_only || o->load_snapshot;
    int flags = zero_flags(n);
    struct open_args a = { .name = n->r->argv[0], .format = o->format, .cache = n->cache, .image_opts = o->image_opts, .snapshot = o->load_snapshot,
                           .warn_raw = true, .flags = (unsigned)flags | (read_only ? BYRE_OPEN_READ_ONLY : 0) };
    AUTOFREE char *overlay = NULL;
    if (flags < 0)
        return 1;
    if (o->snapshot) {
        overlay = overlay_make(n->r, &a);
        if (!overlay)
            return 1;
        a.name = overlay;
        a.format = "qcow2";
        a.cache = BYRE_CACHE_UNSAFE;
    }
    n->image = run_open(n->r, &a);
    if (overlay)
        (void)!unlink(overlay);              /* I2 */
    return n->image ? 0 : 1;
}

static void on_client_gone(void *arg, unsigned left)
{
    struct nbd *n = arg;
    if (!left && !n->o->persistent)
        server_quit(&n->s);
}

static int start_export(struct nbd *n)
{
    const struct opts *o = n->o;
    struct byre_err err;
    struct byre_nbd_opts no = byre_nbd_opts_init();
    AUTOFREE char *address = NULL;
    bool v6 = o->bind && strchr(o->bind, ':');
    int len = o->socket ? asprintf(&address, "unix:%s", o->socket)
                        : asprintf(&address, "%s%s%s:%" PRIu64, v6 ? "[" : "", o->bind ? o->bind : "", v6 ? "]" : "", o->port);
    if (len < 0)
        return run_fail(n->r, "no memory");
    no.flags = (o->read_only || o->load_snapshot ? BYRE_EXPORT_READ_ONLY : 0) | (o->name ? BYRE_EXPORT_NOT_DEFAULT : 0) |
               (o->depth ? 0 : BYRE_EXPORT_NO_DEPTH) | (o->shared ? 0 : BYRE_EXPORT_UNLIMITED) | (o->handshake ? 0 : BYRE_EXPORT_PATIENT);
    no.address = address;
    no.name = o->name ? o->name : "";
    no.description = o->description;
    no.max_clients = (unsigned)o->shared;
    no.handshake_seconds = (unsigned)o->handshake;
    no.bitmaps = (const char *const *)o->bitmaps.items;
    no.bitmap_count = (unsigned)o->bitmaps.count;
    no.offset = o->offset;
    no.listen_fd = n->fd;
    no.tls_creds = o->tls_creds;
    no.tls_authz = o->tls_authz;
    no.selinux_label = o->label;
    no.client_gone = on_client_gone;
    no.client_gone_arg = n;
    if (byre_export_nbd(n->image, &no, &n->export, &err))
        return run_fail_err(n->r, &err);
    server_remember_path(o->socket);
    return 0;
}

/* ---- the run ---- */
static int list_exports(struct nbd *n)
{
    /* Others say nothing here, as with the peer. */
    static const char *const disk[] = { "export-name", "description", "offset", "allocation-depth", "bitmap", "format", "load-snapshot", "nocache", "cache", "aio",
        "discard", "fork", "connect", "disconnect" };
    if (n->r->argc)
        return run_fail(n->r, "List mode is incompatible with a file name");
    for (size_t i = 0; i < sizeof disk / sizeof disk[0]; i++)
        if (given(n, disk[i]))
            return run_fail(n->r, "List mode is incompatible with --%s", disk[i]);
    if (n->o->tls_authz)
        return run_fail(n->r, "TLS authorization is incompatible with export list");
    if (n->o->tls_hostname && !n->o->tls_creds)
        return run_fail(n->r, "--tls-hostname needs --tls-creds");
    return nbd_exports_print(n->r, &(struct nbd_exports_of){ n->o->socket, n->o->bind, (unsigned)n->o->port, n->o->tls_creds, n->o->tls_hostname });
}

static int serve(struct nbd *n, struct daemonizer *dz)
{
    int code = open_disk(n);
    if (!code)
        code = start_export(n);
    if (!code && n->o->pidfile)
        code = pidfile_write(&n->pidfile, n->r, n->o->pidfile);
    if (!code && n->o->verbose) {
        printf("listening: %s\n", byre_export_uri(n->export));
        fflush(stdout);
    }
    if (!code && dz)
        daemonize_ready(dz);
    if (!code)
        (void)server_wait(&n->s);
    server_end(&n->s, NULL);
    byre_export_stop(n->export);
    run_close(n->r, n->image, &code);
    pidfile_remove(&n->pidfile);
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct nbd n = { .r = r, .o = o, .seen = r->args.seen };
    struct daemonizer dz = { .keep_folder = true };
    if (o->version) {
        printf("%s version %s (byre)\n", r->peer ? r->prog : "byre nbd", byre_version());
        return 0;
    }
    if (o->list)
        return list_exports(&n);
    if (check_options(&n))
        return 1;
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    int backend = run_backend(r, o->aio, n.cache, "--cache none"), code = 1;
    if (backend < 0 || (o->fork && !daemonize_begin(&dz, r)) || !server_begin(&n.s, r))
        return 1;
    if (run_ctx(r, server_threads(o->threads), backend))
        code = serve(&n, o->fork ? &dz : NULL);
    server_fini(&n.s);
    return code;
}

const struct cmd cmd_nbd = { "nbd", "FILE", "Offer an image over NBD until its clients have left", rows, sizeof(struct opts), cmd_run,
    .flags = CMD_OTHER_PROGRAM };
