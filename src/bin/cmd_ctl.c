/* SPDX-License-Identifier: MIT
 *
 * cmd_ctl.c: byre ctl.
 *
 * Purpose      One command to a control socket, or the stream of its events.
 * Owns         the connection
 * Invariants   I1 standard output gets the value of "return" (or the events), nothing else
 * Concurrency  main thread, blocking socket
 * Failure      exit 1: no connection, or the command was answered with an error (told as CLASS: TEXT)
 * Tests        tests/cli/serve_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "bin/commands.h"
#include "bin/qmp_link.h"

struct opts { struct common common; bool compact; };

static const struct opt_row rows[] = {
    ROW_HELP,
    { "compact", 'c', OPT_BOOL, OPT_AT(struct opts, compact), .help = "one line of JSON instead of several" },
    OPT_END
};

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

static int watch(struct qmp_link *l)
{
    json_t *m;
    int code = 0;
    while (!code && (m = qmp_link_receive(l, false))) {
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

static int one_command(struct qmp_link *l, int argc, char **argv)
{
    json_t *msg = parse_command(l->r, argc, argv);
    json_t *answer = msg ? qmp_link_exchange(l, msg) : NULL;
    json_t *value = answer ? qmp_link_value(l, answer) : NULL;
    int code = value ? print_json(l->r, value) : 1;
    json_decref(msg);
    json_decref(value);
    return code;
}

/* The text as it is, for those who collect it. */
static int show_metrics(struct qmp_link *l)
{
    json_t *value = qmp_link_do(l, "x-byre-metrics", NULL);
    if (value)
        fputs(qmp_link_text(value, "text"), stdout);
    json_decref(value);
    return value ? 0 : 1;
}

static int cmd_run(struct run *r)
{
    struct qmp_link l;
    if (r->argc < 2)
        return run_usage(r, "the path of a control socket and a command are needed");
    bool watching = strcmp(r->argv[1], "watch") == 0, metrics = strcmp(r->argv[1], "metrics") == 0;
    if ((watching || metrics) && r->argc > 2)
        return run_usage(r, "%s takes no arguments", r->argv[1]);
    int code = qmp_link_open(r, r->argv[0], &l);
    if (!code)
        code = qmp_link_negotiate(&l);
    if (!code)
        code = watching ? watch(&l) : metrics ? show_metrics(&l) : one_command(&l, r->argc - 1, r->argv + 1);
    qmp_link_close(&l);
    return code;
}

const struct cmd cmd_ctl = { "ctl", "PATH COMMAND [KEY=VALUE... | JSON]", "Send a command to a running server, or watch its events or numbers", rows,
                             sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
