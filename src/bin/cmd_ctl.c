/* SPDX-License-Identifier: MIT
 *
 * cmd_ctl.c: byre ctl.
 *
 * Purpose      One command to a control socket, or the stream of its events.
 * Owns         the connection
 * Invariants   I1 standard output gets the value of "return" (or the events), nothing else
 * Concurrency  main thread, blocking socket
 * Failure      exit 1: no connection, or the command was answered with an error (told as CLASS: TEXT)
 * Tests        tests/cli/ctl_test.py
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bin/bin.h"
#include "bin/commands.h"

struct opts { struct common common; bool compact; };

static const struct opt_row rows[] = {
    ROW_HELP,
    { "compact", 'c', OPT_BOOL, OPT_AT(struct opts, compact), .help = "one line of JSON instead of several" },
    OPT_END
};

struct link { struct run *r; int fd; FILE *in; char *line; size_t cap; };

/* ---- the connection ---- */
static int link_open(struct run *r, const char *path, struct link *l)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    *l = (struct link){ .r = r, .fd = -1 };
    if (strncmp(path, "unix:", 5) == 0)
        path += 5;
    if (strlen(path) >= sizeof sa.sun_path)
        return run_fail(r, "'%s': the path of a socket has at most %zu bytes", path, sizeof sa.sun_path - 1);
    memcpy(sa.sun_path, path, strlen(path));
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || connect(l->fd, (const struct sockaddr *)&sa, sizeof sa))
        return run_fail(r, "%s: cannot connect: %s", path, strerror(errno));
    int copy = dup(l->fd);
    l->in = copy < 0 ? NULL : fdopen(copy, "r");
    return l->in ? 0 : run_fail(r, "%s: %s", path, strerror(errno));
}

static void link_close(struct link *l)
{
    if (l->in)
        fclose(l->in);
    if (l->fd >= 0)
        close(l->fd);
    free(l->line);
}

static int link_send(struct link *l, const json_t *msg)
{
    char *text = json_dumps(msg, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0, at = 0;
    if (!text)
        return run_fail(l->r, "the command cannot be written as JSON");
    text[len++] = '\n';                      /* in place of the final 0 */
    while (at < len) {
        ssize_t n = send(l->fd, text + at, len - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    free(text);
    return at == len ? 0 : run_fail(l->r, "the connection broke: %s", strerror(errno));
}

/* The next message; NULL: end of the connection, or not JSON (told when `needed`). */
static json_t *link_receive(struct link *l, bool needed)
{
    json_error_t where;
    ssize_t n = getline(&l->line, &l->cap, l->in);
    json_t *m = n > 0 ? json_loads(l->line, 0, &where) : NULL;
    if (!m && (needed || n > 0))
        run_fail(l->r, n > 0 ? "the answer is not JSON" : "the connection was closed");
    return m;
}

/* Sends a command and waits for its answer, passing events by. NULL: told already. */
static json_t *exchange(struct link *l, const json_t *msg)
{
    if (link_send(l, msg))
        return NULL;
    for (;;) {
        json_t *m = link_receive(l, true);
        if (!m || !json_object_get(m, "event"))
            return m;
        json_decref(m);
    }
}

static int print_json(struct run *r, const json_t *v)
{
    const struct opts *o = r->opts;
    char *text = json_dumps(v, JSON_ENCODE_ANY | (o->compact ? 0 : JSON_INDENT(4)));
    if (!text)
        return run_fail(r, "no memory");
    printf("%s\n", text);
    free(text);
    return 0;
}

static int give_answer(struct run *r, json_t *m)
{
    json_t *error = json_object_get(m, "error"), *value = json_object_get(m, "return");
    if (error) {
        const char *cls = json_string_value(json_object_get(error, "class")), *desc = json_string_value(json_object_get(error, "desc"));
        return run_fail(r, "%s: %s", cls ? cls : "error", desc ? desc : "no description");
    }
    return value ? print_json(r, value) : run_fail(r, "the answer holds neither return nor error");
}

static int negotiate(struct link *l)
{
    json_t *greeting = link_receive(l, true);
    bool is_qmp = greeting && json_object_get(greeting, "QMP");
    json_decref(greeting);
    if (!greeting)
        return 1;
    if (!is_qmp)
        return run_fail(l->r, "this is no control socket");
    json_t *msg = json_pack("{s:s}", "execute", "qmp_capabilities");
    json_t *m = msg ? exchange(l, msg) : NULL;
    json_decref(msg);
    int code = m && json_object_get(m, "return") ? 0 : 1;
    json_decref(m);
    return code;
}

/* ---- the command ---- */
/* A value as JSON where it is JSON (numbers, true, lists, objects, quoted strings), else as a string. */
static json_t *parse_value(const char *text)
{
    json_t *v = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    return v ? v : json_string(text);
}

/* Sets a.b.c=value. */
static int set_dotted(json_t *obj, char *key, json_t *v)
{
    char *dot;
    while ((dot = strchr(key, '.'))) {
        *dot = 0;
        json_t *next = json_object_get(obj, key);
        if (!next) {
            next = json_object();
            if (json_object_set_new(obj, key, next))
                break;
        }
        obj = next;
        key = dot + 1;
    }
    if (!dot)
        return json_object_set_new(obj, key, v);
    json_decref(v);
    return -1;
}

static json_t *parse_arguments(struct run *r, int argc, char **argv)
{
    if (argc == 1 && argv[0][0] == '{') {
        json_error_t where;
        json_t *args = json_loads(argv[0], JSON_REJECT_DUPLICATES, &where);
        if (!args)
            run_fail(r, "the arguments are not JSON: %s", where.text);
        return args;
    }
    json_t *args = json_object();
    for (int i = 0; args && i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (!eq || eq == argv[i]) {
            run_fail(r, "'%s' is neither key=value nor a JSON object", argv[i]);
            json_decref(args);
            return NULL;
        }
        *eq = 0;
        if (set_dotted(args, argv[i], parse_value(eq + 1))) {
            run_fail(r, "the argument '%s' cannot be set", argv[i]);
            json_decref(args);
            return NULL;
        }
    }
    return args;
}

/* COMMAND [key=value ...| JSON], or a whole message as JSON. NULL: told already. */
static json_t *parse_command(struct run *r, int argc, char **argv)
{
    json_error_t where;
    if (argv[0][0] == '{') {
        json_t *msg = json_loads(argv[0], JSON_REJECT_DUPLICATES, &where);
        if (!msg || argc > 1)
            run_fail(r, msg ? "a command in JSON has its arguments inside" : "the command is not JSON: %s", where.text);
        if (msg && argc > 1) {
            json_decref(msg);
            return NULL;
        }
        return msg;
    }
    json_t *args = parse_arguments(r, argc - 1, argv + 1);
    if (!args)
        return NULL;
    json_t *msg = json_object_size(args) ? json_pack("{s:s,s:O}", "execute", argv[0], "arguments", args) : json_pack("{s:s}", "execute", argv[0]);
    json_decref(args);
    if (!msg)
        run_fail(r, "the command '%s' cannot be written as JSON", argv[0]);
    return msg;
}

static int watch(struct link *l)
{
    json_t *m;
    int code = 0;
    while (!code && (m = link_receive(l, false))) {
        char *text = json_dumps(m, 0);
        code = text ? 0 : run_fail(l->r, "no memory");
        if (text)
            printf("%s\n", text);
        fflush(stdout);
        free(text);
        json_decref(m);
    }
    return code;
}

static int one_command(struct link *l, int argc, char **argv)
{
    json_t *msg = parse_command(l->r, argc, argv);
    json_t *answer = msg ? exchange(l, msg) : NULL;
    int code = answer ? give_answer(l->r, answer) : 1;
    json_decref(msg);
    json_decref(answer);
    return code;
}

static int cmd_run(struct run *r)
{
    struct link l;
    if (r->argc < 2)
        return run_usage(r, "the path of a control socket and a command are needed");
    bool watching = strcmp(r->argv[1], "watch") == 0;
    if (watching && r->argc > 2)
        return run_usage(r, "watch takes no arguments");
    int code = link_open(r, r->argv[0], &l);
    if (!code)
        code = negotiate(&l);
    if (!code)
        code = watching ? watch(&l) : one_command(&l, r->argc - 1, r->argv + 1);
    link_close(&l);
    return code;
}

const struct cmd cmd_ctl = { "ctl", "PATH COMMAND [KEY=VALUE... | JSON]", "Send a command to a running server, or watch its events", rows,
                             sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
