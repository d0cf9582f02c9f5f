/* SPDX-License-Identifier: MIT
 *
 * qmp_msg.c: commands in, messages out.
 *
 * Purpose      Checks the envelope of a command and writes the envelopes of everything that goes back.
 * Owns         nothing beyond a call; results belong to the caller.
 * Invariants   I1 a message is one JSON object followed by CR LF and is ASCII, whatever the texts inside are.
 *              I2 the id of a command comes back in its answer unchanged.
 * Concurrency  any thread; values passed in are used by one thread at a time.
 * Failure      -ENOMEM, -EINVAL; nothing is left behind.
 * Tests        qmp_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "proto/qmp/qmp.h"

/* ---- commands ---- */

static int bad_command(struct byre_err *err, const char *what)
{
    return byre_fail(err, BAD_ARGUMENT, "%s", what);
}

static int take_member(struct qmp_command *cmd, const char *key, json_t *value, struct byre_err *err)
{
    if (!strcmp(key, "id")) {
        cmd->id = value;
        return 0;
    }
    if (!strcmp(key, "arguments")) {
        if (!json_is_object(value))
            return bad_command(err, "QMP member 'arguments' must be an object");
        cmd->arguments = value;
        return 0;
    }
    bool oob = !strcmp(key, "exec-oob");
    if (!oob && strcmp(key, "execute") != 0)
        return byre_fail(err, BAD_ARGUMENT, "QMP member '%.64s' is not expected", key);
    if (!json_is_string(value))
        return byre_fail(err, BAD_ARGUMENT, "QMP member '%s' must be a string", key);
    if (cmd->name)
        return bad_command(err, "QMP members 'execute' and 'exec-oob' exclude each other");
    cmd->name = json_string_value(value);
    cmd->oob = oob;
    return 0;
}

int qmp_command_parse(const char *text, size_t len, struct qmp_command *ret_cmd, struct byre_err *err)
{
    json_error_t je;
    const char *key;
    json_t *value;
    *ret_cmd = (struct qmp_command){ .root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je) };
    if (!ret_cmd->root)
        return byre_fail(err, BAD_ARGUMENT, "not valid JSON: %s", je.text);
    if (!json_is_object(ret_cmd->root))
        return bad_command(err, "QMP input must be a JSON object");
    ret_cmd->id = json_object_get(ret_cmd->root, "id");
    json_object_foreach(ret_cmd->root, key, value) {
        int r = take_member(ret_cmd, key, value, err);
        if (r)
            return r;
    }
    return ret_cmd->name ? 0 : bad_command(err, "QMP input lacks member 'execute'");
}

void qmp_command_fini(struct qmp_command *cmd)
{
    json_decref(cmd->root);
    *cmd = (struct qmp_command){ 0 };
}

/* ---- messages ---- */

/* A JSON string from any bytes: what is no UTF-8 becomes question marks. */
static json_t *any_string(const char *s)
{
    json_t *j = json_string(s);
    if (j)
        return j;
    char *copy = strdup(s);
    if (!copy)
        return NULL;
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    j = json_string(copy);
    free(copy);
    return j;
}

/* Dumps and drops obj (NULL: memory ran out when it was made). */
static int finish(json_t *obj, bool pretty, struct qmp_text *ret)
{
    if (!obj)
        return -ENOMEM;
    char *body = json_dumps(obj, JSON_ENSURE_ASCII | (pretty ? JSON_INDENT(4) : 0));
    json_decref(obj);
    if (!body)
        return -EINVAL;
    size_t n = strlen(body);
    char *text = realloc(body, n + 3);
    if (!text) {
        free(body);
        return -ENOMEM;
    }
    memcpy(text + n, "\r\n", 3);
    *ret = (struct qmp_text){ text, n + 2 };
    return 0;
}

/* {name: value, "id": id}; takes over value. */
static json_t *answer(const char *name, json_t *value, json_t *id)
{
    json_t *obj = value ? json_pack("{s:o}", name, value) : NULL;
    if (obj && id && json_object_set(obj, "id", id)) {
        json_decref(obj);
        return NULL;
    }
    return obj;
}

int qmp_make_greeting(const struct qmp_version *v, bool oob, bool pretty, struct qmp_text *ret)
{
    json_t *caps = oob ? json_pack("[s]", "oob") : json_array();
    json_t *package = any_string(v->package ? v->package : "");
    if (!caps || !package) {
        json_decref(caps);
        json_decref(package);
        return -ENOMEM;
    }
    return finish(json_pack("{s:{s:{s:{s:i,s:i,s:i},s:o},s:o}}", "QMP", "version", "qemu", "micro", v->micro, "minor", v->minor,
                            "major", v->major, "package", package, "capabilities", caps), pretty, ret);
}

int qmp_make_return(json_t *value, json_t *id, bool pretty, struct qmp_text *ret)
{
    return finish(answer("return", value ? json_incref(value) : json_object(), id), pretty, ret);
}

int qmp_make_error(const struct qmp_error *e, json_t *id, bool pretty, struct qmp_text *ret)
{
    json_t *desc = any_string(e->desc);
    if (!desc)
        return -ENOMEM;
    json_t *body = json_pack("{s:s,s:o}", "class", e->class_name ? e->class_name : "GenericError", "desc", desc);
    return finish(answer("error", body, id), pretty, ret);
}

int qmp_make_event(const struct qmp_event *e, bool pretty, struct qmp_text *ret)
{
    json_t *obj = json_pack("{s:{s:I,s:i},s:s}", "timestamp", "seconds", (json_int_t)e->seconds, "microseconds", (int)e->microseconds,
                            "event", e->name);
    if (obj && e->data && json_object_set(obj, "data", e->data)) {
        json_decref(obj);
        return -ENOMEM;
    }
    return finish(obj, pretty, ret);
}
