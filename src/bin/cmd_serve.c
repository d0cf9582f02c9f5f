/* SPDX-License-Identifier: MIT
 *
 * cmd_serve.c: byre serve.
 *
 * Purpose      Opens an image, offers it over NBD, listens on a control socket, ends cleanly on a signal or `quit`.
 * Owns         image, export, control server, and a private folder for sockets that were not named
 * Invariants   I1 the lines on standard output are printed when clients can connect, not before
 *              I2 after the first signal: clients are answered and closed, the image is flushed and closed, sockets are removed
 *              I3 after a second signal the process ends at once (what was flushed is durable; the sockets are removed)
 * Concurrency  main thread waits for signals; everything else runs on the threads of the context
 * Failure      exit 1; 128 + signal after a second signal
 * Tests        tests/cli/serve_test.py
 */
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "ctl/ctl.h"
#include "lib/lib_inside.h"

struct opts {
    struct common common;
    char *nbd, *control, *name, *format, *cache, *aio, *discard, *description;
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
    struct ctl_export exports[1];
    struct ctl *ctl;
    int quit_fd;
};

/* ---- a second signal ---- */
static char hard_paths[3][108];          /* two sockets and the folder */

static void on_second_signal(int sig)
{
    (void)!unlink(hard_paths[0]);
    (void)!unlink(hard_paths[1]);
    (void)!rmdir(hard_paths[2]);
    _exit(128 + sig);
}

static void remember_path(int i, const char *path)
{
    if (path)
        snprintf(hard_paths[i], sizeof hard_paths[i], "%s", path);
}

static void arm_second_signal(const sigset_t *set)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
    for (int i = 0; i < 3; i++)
        signal(signals[i], on_second_signal);
    sigprocmask(SIG_UNBLOCK, set, NULL);
}

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
    remember_path(0, strncmp(s->nbd, "unix:", 5) == 0 ? s->nbd + 5 : NULL);
    remember_path(1, s->control);
    remember_path(2, s->folder);
    return 0;
}

/* ---- the parts ---- */
static int backend_of(struct serve *s)
{
    const char *aio = s->o->aio;
    if (!aio || strcmp(aio, "io_uring") == 0)
        return BYRE_BACKEND_AUTO;
    if (strcmp(aio, "threads") == 0)
        return BYRE_BACKEND_THREADS;
    if (strcmp(aio, "native") == 0 && (s->cache == BYRE_CACHE_NONE || s->cache == BYRE_CACHE_DIRECTSYNC))
        return BYRE_BACKEND_AUTO;
    run_fail(s->r, strcmp(aio, "native") ? "Invalid aio option: %s" : "aio=%s needs direct I/O (--cache none)", aio);
    return -1;
}

static int open_disk(struct serve *s)
{
    const struct opts *o = s->o;
    struct byre_err err;
    struct byre_open_opts oo = byre_open_opts_init();
    AUTOFREE char *prefix = NULL;
    if (asprintf(&prefix, "%s-b", o->name) < 0)
        return run_fail(s->r, "no memory");
    if (strcmp(o->discard, "unmap") && strcmp(o->discard, "on") && strcmp(o->discard, "ignore") && strcmp(o->discard, "off"))
        return run_fail(s->r, "Invalid discard option: %s", o->discard);
    bool unmap = strcmp(o->discard, "unmap") == 0 || strcmp(o->discard, "on") == 0;
    oo.flags = (o->read_only ? BYRE_OPEN_READ_ONLY : BYRE_OPEN_REFUSE_GUESSED_RAW) | (o->image_opts ? BYRE_OPEN_IMAGE_OPTS : 0) |
               (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) | (unmap ? BYRE_OPEN_DISCARD : 0) |
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
    no.bitmaps = (const char *const *)s->o->bitmaps.items;
    no.bitmap_count = (unsigned)s->o->bitmaps.count;
    return byre_export_nbd(s->image, &no, &s->export, &err) ? run_fail_err(s->r, &err) : 0;
}

static void on_quit(void *arg)
{
    uint64_t one = 1;
    (void)!write(((struct serve *)arg)->quit_fd, &one, sizeof one);
}

struct starting { struct serve *s; struct byre_err err; };

static int start_ctl_co(struct co *co, void *arg)
{
    struct starting *st = arg;
    struct serve *s = st->s;
    struct ctl_env env = {
        .graph = byre_ctx_graph(s->r->ctx), .jobs = byre_ctx_jobs(s->r->ctx), .devices = &s->device, .device_count = 1, .exports = s->exports, .export_count = 1,
        .major = BYRE_VERSION_MAJOR, .minor = BYRE_VERSION_MINOR, .micro = BYRE_VERSION_MICRO, .package = "byre " BYRE_VERSION, .quit = on_quit, .arg = s };
    int r = byre_image_attach(s->image, &s->device.node, &st->err);
    if (r)
        return r;
    s->exports[0].node = s->device.node;
    r = ctl_new(byre_ctx_home(s->r->ctx), &env, &s->ctl, &st->err);
    return r ? r : ctl_listen(co, s->ctl, s->control, &st->err);
}

static int start_control(struct serve *s)
{
    struct starting st = { .s = s };
    s->device = (struct ctl_device){ s->o->name, NULL, s->cache == BYRE_CACHE_WRITETHROUGH || s->cache == BYRE_CACHE_DIRECTSYNC };
    s->exports[0] = (struct ctl_export){ s->o->name, "nbd", NULL, false };
    return byre_ctx_call(s->r->ctx, start_ctl_co, &st) ? run_fail_err(s->r, &st.err) : 0;
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

struct farewell { struct serve *s; const char *reason; };

static int shutdown_co(struct co *co, void *arg)
{
    struct farewell *f = arg;
    f->s->exports[0].shutting_down = true;
    ctl_send_shutdown(f->s->ctl, f->reason);
    return 0;
}

/* Jobs end while clients can still be told, and before the exports: a request may be waiting for a scrub that is paused, or
 * that was never started. */
static int stop_jobs_co(struct co *co, void *arg)
{
    struct serve *s = arg;
    byre_ctx_jobs_stop(co, s->r->ctx);
    if (s->image)
        byre_image_no_scrub(s->image);
    return 0;
}

static int stop_ctl_co(struct co *co, void *arg)
{
    struct serve *s = arg;
    if (s->ctl)
        ctl_stop(co, s->ctl);
    ctl_free(s->ctl);
    if (s->device.node)
        byre_image_detach(co, s->device.node);
    return 0;
}

/* An image that was not closed cleanly is served already; now it is looked through. */
static int scrub_co(struct co *co, void *arg)
{
    struct starting *st = arg;
    struct serve *s = st->s;
    char id[128];
    snprintf(id, sizeof id, "scrub-%s", s->o->name);
    return byre_image_scrub(s->image, id, &st->err);
}

/* Waits for a signal or for `quit`; tells why. */
static const char *wait_for_end(struct serve *s, int signal_fd)
{
    for (;;) {
        struct pollfd p[2] = { { .fd = signal_fd, .events = POLLIN }, { .fd = s->quit_fd, .events = POLLIN } };
        if (poll(p, 2, -1) < 0)
            continue;
        struct signalfd_siginfo taken;      /* else the signal stays pending and counts as the second one */
        if (p[0].revents && read(signal_fd, &taken, sizeof taken) == sizeof taken)
            return "host-signal";
        if (p[1].revents)
            return "host-qmp-quit";
    }
}

static int serve(struct serve *s, int signal_fd, const sigset_t *set)
{
    int code = open_disk(s);
    if (!code)
        code = start_export(s);
    if (!code)
        code = start_control(s);
    if (!code) {
        announce(s);
        struct starting st = { .s = s };
        if (byre_ctx_call(s->r->ctx, scrub_co, &st))
            code = run_fail_err(s->r, &st.err);      /* requests may wait for it */
        struct farewell f = { s, code ? "host-error" : wait_for_end(s, signal_fd) };
        arm_second_signal(set);
        (void)byre_ctx_call(s->r->ctx, shutdown_co, &f);
    }
    (void)byre_ctx_call(s->r->ctx, stop_jobs_co, s);
    byre_export_stop(s->export);
    (void)byre_ctx_call(s->r->ctx, stop_ctl_co, s);
    run_close(s->r, s->image, &code);
    return code;
}

static unsigned thread_count(const struct opts *o)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (o->threads)
        return (unsigned)o->threads;
    return cores > 4 ? 4 : cores > 1 ? (unsigned)cores : 1;
}

static int with_signals(struct serve *s)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signal_fd = signalfd(-1, &set, SFD_CLOEXEC), code = 1;
    int backend = backend_of(s);
    s->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_fd < 0 || s->quit_fd < 0)
        run_fail(s->r, "no descriptor left: %s", strerror(errno));
    else if (backend >= 0 && choose_addresses(s) == 0 && run_ctx(s->r, thread_count(s->o), backend))
        code = serve(s, signal_fd, &set);
    if (s->folder)
        (void)!rmdir(s->folder);
    if (signal_fd >= 0)
        close(signal_fd);
    if (s->quit_fd >= 0)
        close(s->quit_fd);
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
