/* SPDX-License-Identifier: MIT
 *
 * cmd_object.c: object-add, object-del (FEATURES 8.021, 8.023).
 *
 * Purpose      Secrets that come and go while the server runs.
 * Owns         nothing
 * Invariants   I1 the text of a secret that was made here is wiped
 * Concurrency  home loop; files and keys are read on the blocking pool
 * Failure      as ctl_priv.h
 * Tests        tests/daemon
 */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "rt/loop.h"

static const char *const type_words[] = { "secret", "secret_keyring", NULL };
static const struct ctl_shape type_shape = { .name = "ObjectType", .words = type_words };
static const char *const format_words[] = { "raw", "base64", NULL };
static const struct ctl_shape format_shape = { .name = "QCryptoSecretFormat", .words = format_words };

static const struct ctl_arg add_rows[] = {
    { "qom-type", CTL_ENUM, true, CTL_AT_NONE, .of = &type_shape },
    { "id", CTL_STR, true, CTL_AT_NONE, .doc = "By which images name it." },
    CTL_ARGS_END
};
#define SECRET_ROWS                                                                                                  \
    { "format", CTL_ENUM, false, CTL_AT_NONE, .of = &format_shape },                                                  \
    { "keyid", CTL_STR, false, CTL_AT_NONE, .doc = "The secret that this one is encrypted with." },                   \
    { "iv", CTL_STR, false, CTL_AT_NONE }
static const struct ctl_arg secret_rows[] = {
    { "data", CTL_STR, false, CTL_AT_NONE, .doc = "The secret itself." },
    { "file", CTL_STR, false, CTL_AT_NONE, .doc = "A file that holds it." },
    SECRET_ROWS,
    CTL_ARGS_END
};
static const struct ctl_arg keyring_rows[] = { { "serial", CTL_INT, true, CTL_AT_NONE, .doc = "Number of a key of the kernel." }, SECRET_ROWS, CTL_ARGS_END };
static const struct ctl_case add_cases[] = { { "secret", secret_rows }, { "secret_keyring", keyring_rows }, { NULL, NULL } };

struct adding { const struct ctl_env *env; char *text; struct byre_err *err; };

static int64_t add_blocking(void *arg)
{
    struct adding *a = arg;
    return a->env->object_add(a->env->arg, a->text, a->err);
}

static int run_add(struct co *co, struct ctl_call *call)
{
    struct adding a = { &call->c->env, NULL, &call->err };
    if (!a.env->object_add)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no objects here");
    a.text = json_dumps(call->arguments, 0);
    if (!a.text)
        return byre_fail(&call->err, NOMEM, "no memory for an object");
    int64_t r = rt_blocking(co, add_blocking, &a);
    explicit_bzero(a.text, strlen(a.text));      /* I1 */
    free(a.text);
    if (r && !call->err.code)
        return byre_fail_code(&call->err, NOMEM, (int)r, "no memory for an object");
    return (int)r;
}

struct del_args { const char *id; };
static const struct ctl_arg del_rows[] = { { "id", CTL_STR, true, CTL_AT(struct del_args, id) }, CTL_ARGS_END };

static int run_del(struct co *co, struct ctl_call *call)
{
    const struct del_args *a = call->args;
    const struct ctl_env *e = &call->c->env;
    if (!e->object_del || e->object_del(e->arg, a->id))
        return byre_fail(&call->err, NOT_FOUND, "object '%s' not found", a->id);
    return 0;
}

const struct ctl_command ctl_cmd_object_add = { "object-add", add_rows, 0, run_add, .tag = "qom-type", .cases = add_cases,
    .doc = "Makes an object that nodes refer to: a secret." };
const struct ctl_command ctl_cmd_object_del = { "object-del", del_rows, sizeof(struct del_args), run_del,
    .doc = "Forgets an object. Images that were opened with a secret go on." };
