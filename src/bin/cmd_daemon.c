/* SPDX-License-Identifier: MIT
 *
 * cmd_daemon.c: byre daemon; called as qemu-storage-daemon it is that (FEATURES area 8a).
 *
 * Purpose      Serves what its options and its monitors define: the options are commands of the control socket in other words.
 * Owns         which character devices wait for a client, the pidfile
 * Invariants   I1 options take effect in the order given; the first that fails ends the program, and nothing stays behind
 *              I2 the parent of --daemonize succeeds when everything is there, the pidfile too
 * Order        exports, nodes, control (server.h); then the pidfile
 * Concurrency  main thread
 * Failure      exit 1, "prog: --option value: why"; 128 + signal after a second signal
 * Tests        tests/daemon
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/server.h"
#include "lib/lib_inside.h"

struct opts {
    struct common common;
    bool version, daemonize;
    char *pidfile;
    uint64_t threads;
    struct opt_list actions;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    { "version", 'V', OPT_BOOL, OPT_AT(struct opts, version), .help = "show the version and exit" },
    ROW_TRACE,
    { "blockdev", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "NODE", .help = "a node: driver=qcow2,node-name=q,file=f or the same as JSON" },
    { "chardev", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "DEVICE", .help = "where a monitor is: socket,id=ID,path=PATH,server=on,wait=off or stdio,id=ID" },
    { "export", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "EXPORT", .help = "offer a node: type=nbd,id=ID,node-name=NODE,writable=on" },
    { "monitor", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "MONITOR", .help = "a control socket: chardev=ID,pretty=on" },
    { "nbd-server", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "SERVER", .help = "the NBD server: addr.type=unix,addr.path=PATH or addr.type=inet,addr.host=HOST,addr.port=PORT; tls-creds=ID; with x-byre-id=ID another one for the same exports" },
    { "object", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "OBJECT", .help = "an object that nodes and servers refer to: secret,id=ID,data=TEXT; throttle-group,id=ID,limits.iops-total=N; iothread,id=ID; pr-manager-helper,id=ID,path=SOCKET; tls-creds-x509,id=ID,endpoint=server,dir=PATH; authz-list-file,id=ID,filename=PATH" },
    { "daemonize", 0, OPT_BOOL, OPT_AT(struct opts, daemonize), .help = "go into the background as soon as everything is there" },
    { "pidfile", 0, OPT_STR, OPT_AT(struct opts, pidfile), .arg = "PATH", .help = "file for the number of the process" },
    { "threads", 0, OPT_UINT, OPT_AT(struct opts, threads), .arg = "N", .max = 64, .help = "threads that serve clients, 0 for one per processor up to 4" },
    OPT_END
};

struct daemon { struct server s; const struct opts *o; json_t *waits; struct pidfile pidfile; bool gone; };

static const char *text_of(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* ---- options that are commands ---- */
/* The command line has "addr.path" where the protocol has "addr.data.path". */
static bool nest_address(json_t *o)
{
    json_t *addr = json_object_get(o, "addr"), *v, *nested, *data;
    const char *key;
    if (!json_is_object(addr) || json_object_get(addr, "data"))
        return true;
    nested = json_object();
    data = json_object();
    bool good = nested && data;
    json_object_foreach(addr, key, v)
        if (good && json_object_set(strcmp(key, "type") ? data : nested, key, v))
            good = false;
    good = good && json_object_set(nested, "data", data) == 0;
    json_decref(data);
    if (good)
        return json_object_set_new(o, "addr", nested) == 0;
    json_decref(nested);
    return false;
}

static bool is_on(json_t *v)
{
    const char *t = json_string_value(v);
    return json_is_true(v) || (t && (strcmp(t, "on") == 0 || strcmp(t, "yes") == 0 || strcmp(t, "true") == 0));
}

struct option { const char *name, *text, *what; };

static int parse(struct daemon *d, const struct option *op, const struct ctl_words *how, json_t **ret, bool *ret_words)
{
    struct byre_err err;
    return ctl_parse_words(op->text, how, ret, ret_words, &err) ? run_fail(d->s.r, "%s: %s", op->what, err.text) : 0;
}

static int as_command(struct daemon *d, const struct option *op, const char *command, const char *implied)
{
    json_t *a;
    struct server_call call = { .command = command, .what = op->what };
    if (parse(d, op, &(struct ctl_words){ .implied = implied }, &a, &call.words))
        return 1;
    AUTOFREE char *path = NULL;
    if (strcmp(op->name, "nbd-server") == 0) {
        json_t *addr = json_object_get(a, "addr");
        const char *text = is_on(json_object_get(addr, "abstract")) ? NULL : text_of(addr, "path");      /* nothing to remove at the end */
        path = text ? strdup(text) : NULL;
        if ((text && !path) || !nest_address(a)) {
            json_decref(a);
            return run_fail(d->s.r, "no memory");
        }
    }
    int code = server_execute(&d->s, &call, a);
    if (!code)
        server_remember_path(path);
    return code;
}

/* ---- monitors ---- */
/* "socket,id=m,path=p,server=on,wait=off" as the arguments of chardev-add. Takes `a` over; NULL: no memory. */
static json_t *chardev_arguments(json_t *a)
{
    json_t *kind = json_incref(json_object_get(a, "backend")), *id = json_incref(json_object_get(a, "id"));
    json_t *path = json_incref(json_object_get(a, "path")), *fd = json_incref(json_object_get(a, "fd"));
    static const char *const moved[] = { "backend", "id", "path", "fd" };
    for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++)
        (void)json_object_del(a, moved[i]);          /* what is left is data of the device */
    bool socket = kind && strcmp(json_string_value(kind), "socket") == 0, good = true;
    json_t *abstract = json_incref(json_object_get(a, "abstract")), *tight = json_incref(json_object_get(a, "tight"));
    (void)json_object_del(a, "abstract");
    (void)json_object_del(a, "tight");
    if (path)
        good = json_object_set_new(a, "addr", json_pack("{s:s,s:{s:O,s:O*,s:O*}}", "type", "unix", "data", "path", path, "abstract", abstract, "tight", tight)) == 0;
    else if (fd)
        good = json_object_set_new(a, "addr", json_pack("{s:s,s:{s:O}}", "type", "fd", "data", "str", fd)) == 0;
    if (socket && !json_object_get(a, "server"))
        good &= json_object_set_new(a, "server", json_false()) == 0;
    json_t *all = good ? json_pack("{s:{s:O*,s:O},s:O*}", "backend", "type", kind, "data", a, "id", id) : NULL;
    json_decref(a);
    json_decref(kind);
    json_decref(id);
    json_decref(path);
    json_decref(fd);
    json_decref(abstract);
    json_decref(tight);
    return all;
}

static bool is_off(json_t *v)
{
    const char *t = json_string_value(v);
    return json_is_false(v) || (t && (strcmp(t, "off") == 0 || strcmp(t, "no") == 0 || strcmp(t, "false") == 0));
}

static int add_chardev(struct daemon *d, const struct option *op)
{
    json_t *a;
    struct server_call call = { .command = "chardev-add", .what = op->what };
    if (parse(d, op, &(struct ctl_words){ .implied = "backend", .flags = true }, &a, &call.words))
        return 1;
    if (call.words && json_object_get(a, "path") && json_object_get(a, "fd")) {
        json_decref(a);
        return run_fail(d->s.r, "%s: a socket has a path (a unix socket) or a fd", op->what);
    }
    if (call.words)
        a = chardev_arguments(a);
    const char *id = a ? text_of(a, "id") : NULL;
    json_t *data = json_object_get(json_object_get(a, "backend"), "data");
    const char *kind = text_of(json_object_get(a, "backend"), "type"), *path = text_of(json_object_get(json_object_get(data, "addr"), "data"), "path");
    bool server = kind && strcmp(kind, "socket") == 0 && !is_off(json_object_get(data, "server"));
    bool waits = server && !is_off(json_object_get(data, "wait"));
    if (!a || (id && waits && json_object_set_new(d->waits, id, json_true()))) {
        json_decref(a);
        return run_fail(d->s.r, "no memory");
    }
    bool abstract = is_on(json_object_get(json_object_get(json_object_get(data, "addr"), "data"), "abstract"));
    AUTOFREE char *made = server && path && !abstract ? strdup(path) : NULL;
    int code = server_execute(&d->s, &call, a);
    if (!code)
        server_remember_path(made);
    return code;
}

static int add_monitor(struct daemon *d, const struct option *op)
{
    json_t *a;
    struct server_call call = { .command = "x-byre-monitor-add", .what = op->what };
    if (parse(d, op, &(struct ctl_words){ .implied = "chardev" }, &a, &call.words))
        return 1;
    const char *id = text_of(a, "chardev");
    bool waits = id && json_object_get(d->waits, id);
    int code = server_execute(&d->s, &call, a);
    if (!code && waits)
        d->gone = !server_wait_client(&d->s);
    return code;
}

/* ---- the run ---- */
static int one_option(struct daemon *d, const struct option *op)
{
    static const struct { const char *option, *command, *implied; } commands[] = {
        { "blockdev", "blockdev-add", "driver" }, { "export", "block-export-add", "type" }, { "nbd-server", "nbd-server-start", NULL },
        { "object", "object-add", "qom-type" },
    };
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].option, op->name) == 0)
            return as_command(d, op, commands[i].command, commands[i].implied);
    return strcmp(op->name, "chardev") ? add_monitor(d, op) : add_chardev(d, op);
}

static int all_options(struct daemon *d)
{
    for (size_t i = 0; i < d->o->actions.count && !d->gone; i++) {
        char *item = d->o->actions.items[i], *eq = strchr(item, '=');
        AUTOFREE char *what = NULL;
        AUTOFREE char *name = strndup(item, (size_t)(eq - item));
        bool secret = name && strcmp(name, "object") == 0;
        if (!name || asprintf(&what, "--%s %s", name, secret ? "(an object)" : eq + 1) < 0)
            return run_fail(d->s.r, "no memory");
        int code = one_option(d, &(struct option){ name, eq + 1, what });
        if (secret)
            explicit_bzero(eq + 1, strlen(eq + 1));
        if (code)
            return code;
    }
    return 0;
}

static int run_daemon(struct daemon *d, struct daemonizer *dz)
{
    int code = server_control(&d->s, NULL, 0);
    if (!code)
        code = all_options(d);
    if (!code && d->o->pidfile)
        code = pidfile_write(&d->pidfile, d->s.r, d->o->pidfile);
    if (!code && dz)
        daemonize_ready(dz);
    if (!code)
        (void)server_wait(&d->s);
    server_end(&d->s, NULL);             /* the peer's daemon sends no SHUTDOWN */
    code |= server_close_nodes(&d->s);
    lib_exports_free(d->s.exports);
    pidfile_remove(&d->pidfile);
    return code;
}

static int with_context(struct run *r, struct daemonizer *dz)
{
    struct daemon d = { .o = r->opts, .waits = json_object() };
    int code = 1;
    if (!server_begin(&d.s, r))
        return 1;
    r->more_loops = true;
    if (run_ctx(r, server_threads(d.o->threads), BYRE_BACKEND_AUTO)) {
        d.s.exports = lib_exports_new(r->ctx);
        code = d.s.exports && d.waits ? run_daemon(&d, dz) : run_fail(r, "no memory");
    }
    json_decref(d.waits);
    server_fini(&d.s);
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct daemonizer dz;
    if (o->version) {
        printf("%s version %s (byre)\n", r->peer ? r->prog : "byre daemon", byre_version());
        return 0;
    }
    if (r->argc)
        return run_fail(r, "%s: Unexpected argument", r->argv[0]);
    if (o->daemonize && !daemonize_begin(&dz, r))
        return 1;
    return with_context(r, o->daemonize ? &dz : NULL);
}

const struct cmd cmd_daemon = { "daemon", "", "Serve disks that options and control sockets define", rows, sizeof(struct opts), cmd_run,
    .flags = CMD_OTHER_PROGRAM };
