/* SPDX-License-Identifier: MIT
 *
 * cmd_daemon.c: byre daemon; called as qemu-storage-daemon it is that (FEATURES area 8a).
 *
 * Purpose      Serves what its options and its monitors define: the options are commands of the control socket in other words.
 * Owns         definitions of character devices, the pidfile
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
#include "base/size.h"
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
    { "trace", 'T', OPT_STR, .flags = OPT_LATER, .arg = "PATTERN", .help = "trace points" },
    { "blockdev", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "NODE", .help = "a node: driver=qcow2,node-name=q,file=f or the same as JSON" },
    { "chardev", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "DEVICE", .help = "where a monitor is: socket,id=ID,path=PATH,server=on,wait=off or stdio,id=ID" },
    { "export", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "EXPORT", .help = "offer a node: type=nbd,id=ID,node-name=NODE,writable=on" },
    { "monitor", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "MONITOR", .help = "a control socket: chardev=ID,pretty=on" },
    { "nbd-server", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "SERVER", .help = "the NBD server: addr.type=unix,addr.path=PATH or addr.type=inet,addr.host=HOST,addr.port=PORT" },
    { "object", 0, OPT_ACTION, OPT_AT(struct opts, actions), .arg = "OBJECT", .help = "an object that nodes refer to: secret,id=ID,data=TEXT or secret,id=ID,file=PATH" },
    { "daemonize", 0, OPT_BOOL, OPT_AT(struct opts, daemonize), .help = "go into the background as soon as everything is there" },
    { "pidfile", 0, OPT_STR, OPT_AT(struct opts, pidfile), .arg = "PATH", .help = "file for the number of the process" },
    { "threads", 0, OPT_UINT, OPT_AT(struct opts, threads), .arg = "N", .max = 64, .help = "threads that serve clients, 0 for one per processor up to 4" },
    OPT_END
};

struct daemon { struct server s; const struct opts *o; json_t *chardevs; struct pidfile pidfile; bool gone; };

static const char *text_of(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* on, off, true, false, or a fallback; -1 for anything else. */
static int flag_of(json_t *o, const char *key, bool fallback)
{
    json_t *v = json_object_get(o, key);
    const char *t = json_string_value(v);
    if (!v)
        return fallback;
    if (json_is_boolean(v))
        return json_is_true(v);
    if (t && (strcmp(t, "on") == 0 || strcmp(t, "yes") == 0 || strcmp(t, "true") == 0))
        return 1;
    return t && (strcmp(t, "off") == 0 || strcmp(t, "no") == 0 || strcmp(t, "false") == 0) ? 0 : -1;
}

/* A member that none of the words (separated by blanks) is; NULL: there is none. */
static const char *other_member(json_t *o, const char *words)
{
    const char *key;
    json_t *v;
    json_object_foreach(o, key, v) {
        char padded[64];
        snprintf(padded, sizeof padded, " %s ", key);
        if (!strstr(words, padded))
            return key;
    }
    return NULL;
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
        const char *text = text_of(json_object_get(a, "addr"), "path");
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
static int add_chardev(struct daemon *d, const struct option *op)
{
    json_t *a;
    bool words;
    if (parse(d, op, &(struct ctl_words){ .implied = "backend", .flags = true }, &a, &words))
        return 1;
    const char *kind = text_of(a, "backend"), *id = text_of(a, "id"), *other;
    int code = 0;
    if (!kind || (strcmp(kind, "socket") && strcmp(kind, "stdio")))
        code = run_fail(d->s.r, "%s: a character device is a socket or stdio, not '%s'", op->what, kind ? kind : "");
    else if (!id)
        code = run_fail(d->s.r, "%s: it needs an id", op->what);
    else if ((other = other_member(a, strcmp(kind, "socket") ? " backend id signal " : " backend id path fd server wait ")))
        code = run_fail(d->s.r, "%s: Parameter '%s' is unexpected", op->what, other);
    else if (strcmp(kind, "socket") == 0 && !text_of(a, "path") == !text_of(a, "fd"))
        code = run_fail(d->s.r, "%s: a socket has a path (a unix socket) or a fd", op->what);
    else if (flag_of(a, "server", false) < 0 || flag_of(a, "wait", true) < 0)
        code = run_fail(d->s.r, "%s: 'server' and 'wait' are on or off", op->what);
    else if (json_object_get(d->chardevs, id))
        code = run_fail(d->s.r, "%s: there is a character device '%s' already", op->what, id);
    else if (json_object_set(d->chardevs, id, a))
        code = run_fail(d->s.r, "no memory");
    json_decref(a);
    return code;
}

static int open_monitor(struct daemon *d, const struct option *op, json_t *dev, bool pretty)
{
    const char *fd = text_of(dev, "fd");
    struct ctl_monitor m = { .way = CTL_WAY_STDIO, .fd = -1, .pretty = pretty };
    if (strcmp(text_of(dev, "backend"), "socket") == 0) {
        m.way = flag_of(dev, "server", false) ? CTL_WAY_LISTEN : CTL_WAY_CONNECT;
        m.path = text_of(dev, "path");
        uint64_t n = 0;
        if (fd && (size_parse(fd, &n) || n < 3 || n > INT32_MAX))
            return run_fail(d->s.r, "%s: '%s' is no descriptor", op->what, fd);
        m.fd = fd ? (int)n : -1;
    }
    int code = server_monitor(&d->s, &m, op->what);
    if (!code && m.way == CTL_WAY_LISTEN && flag_of(dev, "wait", true))
        d->gone = !server_wait_client(&d->s);
    return code;
}

static int add_monitor(struct daemon *d, const struct option *op)
{
    json_t *a;
    bool words;
    if (parse(d, op, &(struct ctl_words){ .implied = "chardev" }, &a, &words))
        return 1;
    const char *chardev = text_of(a, "chardev"), *mode = text_of(a, "mode"), *other = other_member(a, " chardev id mode pretty ");
    json_t *dev = chardev ? json_object_get(d->chardevs, chardev) : NULL;
    int pretty = flag_of(a, "pretty", false), code;
    if (other || !chardev)
        code = run_fail(d->s.r, "%s: Parameter '%s' is %s", op->what, other ? other : "chardev", other ? "unexpected" : "missing");
    else if ((mode && strcmp(mode, "control")) || pretty < 0)
        code = run_fail(d->s.r, "%s: 'mode' is control, 'pretty' is on or off", op->what);
    else if (!dev)
        code = run_fail(d->s.r, "%s: chardev \"%s\" not found", op->what, chardev);
    else if (json_object_get(dev, "used") || json_object_set_new(dev, "used", json_true()))
        code = run_fail(d->s.r, "%s: chardev \"%s\" is in use by another monitor", op->what, chardev);
    else
        code = open_monitor(d, op, dev, pretty > 0);
    json_decref(a);
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
    byre_exports_free(d->s.exports);
    pidfile_remove(&d->pidfile);
    return code;
}

static int with_context(struct run *r, struct daemonizer *dz)
{
    struct daemon d = { .o = r->opts, .chardevs = json_object() };
    int code = 1;
    if (!server_begin(&d.s, r))
        return 1;
    if (run_ctx(r, server_threads(d.o->threads), BYRE_BACKEND_AUTO)) {
        d.s.exports = byre_exports_new(r->ctx);
        code = d.s.exports && d.chardevs ? run_daemon(&d, dz) : run_fail(r, "no memory");
    }
    json_decref(d.chardevs);
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
