/* SPDX-License-Identifier: MIT
 *
 * server.c: a process that serves until a signal or `quit`.
 *
 * Purpose      Signals, control, and the order of the end, once for serve, daemon and nbd.
 * Owns         descriptors of signals and of `quit`; the control server
 * Invariants   I1 after the first signal: clients are answered and closed, images are flushed and closed, sockets are removed
 *              I2 after a second signal the process ends at once (what was flushed is durable; the sockets that were made here are removed)
 *              I3 exports live as long as the control server: its commands name them
 *              I4 whoever keeps the end waiting, what guests were told is written meanwhile: images are flushed from its beginning on, each beside the others
 *              I5 no server of NBD that stands still keeps the end waiting for ever, whatever it is that waits for it
 * Order        jobs, exports, control; whoever opened images closes them behind it
 * Concurrency  main thread waits for signals; everything else runs on the threads of the context
 * Failure      told on standard error
 * Tests        tests/cli/serve_test.py, tests/daemon
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/server.h"
#include "lib/lib_inside.h"

/* ---- a second signal ---- */
#define PATHS_MAX 64
#define WAIT_CLIENT_MS 20
static struct made { char path[256]; dev_t dev; ino_t ino; } made[PATHS_MAX];
static volatile sig_atomic_t made_count;

/* Only what is still what was made here. */
static void on_second_signal(int sig)
{
    struct stat st;
    for (int i = 0; i < made_count; i++)
        if (lstat(made[i].path, &st) == 0 && st.st_dev == made[i].dev && st.st_ino == made[i].ino && unlink(made[i].path))
            (void)!rmdir(made[i].path);
    _exit(128 + sig);
}

void server_remember_path(const char *path)
{
    AUTOFREE char *full = path ? realpath(path, NULL) : NULL;    /* the folder may be left (--daemonize) */
    struct stat st;
    if (!full || made_count == PATHS_MAX || strlen(full) >= sizeof made[0].path || lstat(full, &st))
        return;
    struct made *m = &made[made_count];
    memcpy(m->path, full, strlen(full) + 1);
    m->dev = st.st_dev;
    m->ino = st.st_ino;
    made_count++;
}

static void arm_second_signal(const sigset_t *set)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
    for (int i = 0; i < 3; i++)
        signal(signals[i], on_second_signal);
    sigprocmask(SIG_UNBLOCK, set, NULL);
}

/* ---- life ---- */
bool server_begin(struct server *s, struct run *r)
{
    *s = (struct server){ .r = r, .signal_fd = -1, .quit_fd = -1 };
    sigemptyset(&s->set);
    sigaddset(&s->set, SIGINT);
    sigaddset(&s->set, SIGTERM);
    sigaddset(&s->set, SIGHUP);
    sigprocmask(SIG_BLOCK, &s->set, NULL);
    s->signal_fd = signalfd(-1, &s->set, SFD_CLOEXEC);
    s->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->signal_fd >= 0 && s->quit_fd >= 0)
        return true;
    run_fail(r, "no descriptor left: %s", strerror(errno));
    server_fini(s);
    return false;
}

void server_fini(struct server *s)
{
    if (s->signal_fd >= 0)
        close(s->signal_fd);
    if (s->quit_fd >= 0)
        close(s->quit_fd);
    s->signal_fd = s->quit_fd = -1;
}

unsigned server_threads(uint64_t wanted)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (wanted)
        return (unsigned)wanted;
    return cores > 4 ? 4 : cores > 1 ? (unsigned)cores : 1;
}

/* ---- control ---- */
void server_quit(struct server *s)
{
    uint64_t one = 1;
    (void)!write(s->quit_fd, &one, sizeof one);
}

static void on_quit(void *arg)
{
    server_quit(arg);
}

static int on_object_add(void *arg, const char *definition, struct byre_err *err)
{
    return lib_object_add_claimed(((struct server *)arg)->r->ctx, definition, err);
}

static int on_object_claim(void *arg, const char *id, struct byre_err *err)
{
    return lib_object_claim(((struct server *)arg)->r->ctx, id, err);
}

static void on_object_release(void *arg, const char *id)
{
    lib_object_release(((struct server *)arg)->r->ctx, id);
}

static bool on_object_has(void *arg, const char *id)
{
    return lib_object_has(((struct server *)arg)->r->ctx, id);
}

static int on_object_del(void *arg, const char *id)
{
    return lib_ctx_object_del(((struct server *)arg)->r->ctx, id);
}

static void on_guard_warning(void *arg, const char *text)
{
    run_warn(((struct server *)arg)->r, "%s", text);
}

struct starting { struct server *s; const struct ctl_device *devices; size_t count; struct byre_err err; };

static int control_co(struct co *co, void *arg)
{
    struct starting *st = arg;
    struct server *s = st->s;
    struct ctl_env env = { .graph = lib_ctx_graph(s->r->ctx), .jobs = lib_ctx_jobs(s->r->ctx), .devices = st->devices, .device_count = st->count,
        .exports = s->exports, .major = BYRE_VERSION_MAJOR, .minor = BYRE_VERSION_MINOR, .micro = BYRE_VERSION_MICRO, .package = "byre " BYRE_VERSION,
        .quit = on_quit, .object_add = on_object_add, .object_del = on_object_del, .object_claim = on_object_claim,
        .object_release = on_object_release, .object_has = on_object_has, .tls = lib_ctx_tls(s->r->ctx), .arg = s,
        .tree = lib_ctx_tree(s->r->ctx), .guard_warning = s->r->peer ? on_guard_warning : NULL };
    return ctl_new(lib_ctx_home(s->r->ctx), &env, &s->ctl, &st->err);
}

int server_control(struct server *s, const struct ctl_device *devices, size_t count)
{
    struct starting st = { .s = s, .devices = devices, .count = count };
    return lib_ctx_call(s->r->ctx, control_co, &st) ? run_fail_err(s->r, &st.err) : 0;
}

static int tell(struct server *s, const char *what, const struct byre_err *err)
{
    return what ? run_fail(s->r, "%s: %s", what, RUN_TEXT(err)) : run_fail_err(s->r, err);
}

struct executing { struct server *s; struct ctl_request rq; struct byre_err err; };

static int execute_co(struct co *co, void *arg)
{
    struct executing *e = arg;
    return ctl_execute(co, e->s->ctl, &e->rq, NULL, &e->err);
}

int server_execute(struct server *s, const struct server_call *call, json_t *arguments)
{
    struct executing e = { .s = s, .rq = { call->command, arguments, call->words } };
    int r = lib_ctx_call(s->r->ctx, execute_co, &e);
    json_decref(arguments);
    return r ? tell(s, call->what, &e.err) : 0;
}

/* ---- monitors ---- */
struct listening { struct server *s; const char *path; struct byre_err err; };

static int listen_co(struct co *co, void *arg)
{
    struct listening *l = arg;
    return ctl_listen(co, l->s->ctl, l->path, &l->err);
}

int server_listen(struct server *s, const char *path)
{
    struct listening l = { .s = s, .path = path };
    if (lib_ctx_call(s->r->ctx, listen_co, &l))
        return tell(s, NULL, &l.err);
    server_remember_path(path);
    return 0;
}

struct asking { struct server *s; uint64_t arrivals; };

static int arrivals_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    a->arrivals = ctl_arrivals(a->s->ctl);
    return 0;
}

bool server_wait_client(struct server *s)
{
    struct asking a = { s, 0 };
    for (;;) {
        struct pollfd p[2] = { { .fd = s->signal_fd, .events = POLLIN }, { .fd = s->quit_fd, .events = POLLIN } };
        (void)lib_ctx_call(s->r->ctx, arrivals_co, &a);
        if (a.arrivals)
            return true;
        if (poll(p, 2, WAIT_CLIENT_MS) > 0)
            return false;                    /* server_wait takes it */
    }
}

/* ---- the end ---- */
const char *server_wait(struct server *s)
{
    for (;;) {
        struct pollfd p[2] = { { .fd = s->signal_fd, .events = POLLIN }, { .fd = s->quit_fd, .events = POLLIN } };
        if (poll(p, 2, -1) < 0)
            continue;
        struct signalfd_siginfo taken;      /* else the signal stays pending and counts as the second one */
        if (p[0].revents && read(s->signal_fd, &taken, sizeof taken) == sizeof taken)
            return "host-signal";
        if (p[1].revents)
            return "host-qmp-quit";
    }
}

#define FLUSH_AGAIN_NS UINT64_C(500000000)

/* Whatever the end waits for below (a job, a request, a command that stands still): what guests were told before is durable soon (I4). */
static void flusher_co(struct co *co, void *arg)
{
    struct server *s = arg;
    do
        lib_ctx_flush_soon(s->r->ctx);
    while (!co_sleep(co, FLUSH_AGAIN_NS));
}

struct farewell { struct server *s; const char *event; };

static int end_co(struct co *co, void *arg)
{
    struct farewell *f = arg;
    struct server *s = f->s;
    struct rt_task flusher;
    lib_ctx_parting(s->r->ctx);
    bool flushes = !rt_task_start(co_loop(co), &flusher, flusher_co, s);
    if (s->ctl && f->event)
        ctl_send_shutdown(s->ctl, f->event);
    /* Jobs end while clients can still be told, and before the exports: a request may be waiting for a scrub that is paused, or
     * that was never started. */
    lib_ctx_jobs_stop(co, s->r->ctx);
    lib_ctx_no_scrubs(s->r->ctx);
    if (s->exports)
        lib_exports_stop(co, s->exports);
    if (s->ctl)
        ctl_stop(co, s->ctl);
    ctl_free(s->ctl);
    s->ctl = NULL;
    if (flushes) {
        rt_cancel(&flusher);
        rt_task_join(co, &flusher);
    }
    return 0;
}

void server_end(struct server *s, const char *event)
{
    struct farewell f = { s, event };
    arm_second_signal(&s->set);
    (void)lib_ctx_call(s->r->ctx, end_co, &f);
}

static int close_nodes_co(struct co *co, void *arg)
{
    return lib_ctx_close_nodes(co, ((struct server *)arg)->r->ctx);
}

int server_close_nodes(struct server *s)
{
    int r = lib_ctx_call(s->r->ctx, close_nodes_co, s);
    return r ? run_fail(s->r, "a node could not be closed: %s; not everything that was written may be on the disk", strerror(-r)) : 0;
}
