/* SPDX-License-Identifier: MIT
 *
 * cmd_object.c: object-add, object-del (FEATURES 3.021, 8.021, 8.023).
 *
 * Purpose      Secrets, credentials and rules that come and go while the server runs.
 * Owns         nothing
 * Invariants   I1 the text of a secret that was made here is wiped
 *              I2 an id is one object's, whatever its type, also where two clients add at the same time
 * Concurrency  home loop; files and keys are read on the blocking pool
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/tls_test.py, tests/daemon/daemon_test.py, tests/cli/stats_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "ctl/qom.h"
#include "rt/loop.h"

static const char *const type_words[] = { "iothread", "pr-manager-helper", "secret", "secret_keyring", "throttle-group", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509", "authz-simple", "authz-list", "authz-list-file",
    "authz-listfile", "authz-pam", NULL };      /* the second spelling is the one in the schema of the peer */
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
#define LIMIT(name) { "x-" name, CTL_SIZE, false, CTL_AT_NONE }, { "x-" name "-max", CTL_SIZE, false, CTL_AT_NONE }, { "x-" name "-max-length", CTL_SIZE, false, CTL_AT_NONE }
#define NESTED(name) { name, CTL_SIZE, false, CTL_AT_NONE }, { name "-max", CTL_SIZE, false, CTL_AT_NONE }, { name "-max-length", CTL_SIZE, false, CTL_AT_NONE }
static const struct ctl_arg limits_rows[] = {
    NESTED("bps-total"), NESTED("bps-read"), NESTED("bps-write"), NESTED("iops-total"), NESTED("iops-read"), NESTED("iops-write"),
    { "iops-size", CTL_SIZE, false, CTL_AT_NONE, .doc = "A request counts as one per so many bytes." },
    CTL_ARGS_END
};
static const struct ctl_shape limits_shape = { .name = "ThrottleLimits", .rows = limits_rows };
static const struct ctl_arg iothread_rows[] = {
    { "poll-max-ns", CTL_INT, false, CTL_AT_NONE, .doc = "This and the rest are kept and shown; a thread here waits in the kernel and never polls." },
    { "poll-grow", CTL_INT, false, CTL_AT_NONE }, { "poll-shrink", CTL_INT, false, CTL_AT_NONE }, { "aio-max-batch", CTL_INT, false, CTL_AT_NONE },
    { "thread-pool-min", CTL_INT, false, CTL_AT_NONE }, { "thread-pool-max", CTL_INT, false, CTL_AT_NONE },
    CTL_ARGS_END
};
static const struct ctl_arg pr_rows[] = { { "path", CTL_STR, true, CTL_AT_NONE, .doc = "The unix socket at which the helper listens." }, CTL_ARGS_END };
static const struct ctl_arg throttle_rows[] = {
    { "limits", CTL_ANY, false, CTL_AT_NONE, .of = &limits_shape, .doc = "Bytes and requests per second that all members share; 0: no limit." },
    LIMIT("bps-total"), LIMIT("bps-read"), LIMIT("bps-write"), LIMIT("iops-total"), LIMIT("iops-read"), LIMIT("iops-write"),
    { "x-iops-size", CTL_SIZE, false, CTL_AT_NONE },
    CTL_ARGS_END
};
static const char *const endpoint_words[] = { "client", "server", NULL };
static const struct ctl_shape endpoint_shape = { .name = "QCryptoTLSCredsEndpoint", .words = endpoint_words };
#define CREDS_ROWS                                                                                                            \
    { "endpoint", CTL_ENUM, false, CTL_AT_NONE, .of = &endpoint_shape, .doc = "client when it is not given." },                \
    { "priority", CTL_STR, false, CTL_AT_NONE, .doc = "What may be agreed on, in the words of GnuTLS; TLS 1.2 and 1.3 when it is not given." }, \
    { "verify-peer", CTL_BOOL, false, CTL_AT_NONE, .doc = "Does the other side have to prove who it is? It does when it is not given." }
static const struct ctl_arg anon_rows[] = { { "dir", CTL_STR, false, CTL_AT_NONE, .doc = "Not needed." }, CREDS_ROWS, CTL_ARGS_END };
static const struct ctl_arg psk_rows[] = {
    { "dir", CTL_STR, false, CTL_AT_NONE, .doc = "Needed: folder of keys.psk, lines of user:key." },
    { "username", CTL_STR, false, CTL_AT_NONE, .doc = "Whose key, on the client's side; qemu when it is not given." },
    CREDS_ROWS,
    CTL_ARGS_END
};
static const struct ctl_arg x509_rows[] = {
    { "dir", CTL_STR, false, CTL_AT_NONE, .doc = "Needed: folder of ca-cert.pem, ca-crl.pem, server-cert.pem and so on." },
    { "sanity-check", CTL_BOOL, false, CTL_AT_NONE, .doc = "Refuse an own certificate that nobody would accept; on when it is not given." },
    { "passwordid", CTL_STR, false, CTL_AT_NONE, .doc = "Secret with the password of the private key." },
    CREDS_ROWS,
    CTL_ARGS_END
};
static const char *const policy_words[] = { "deny", "allow", NULL };
static const struct ctl_shape policy_shape = { .name = "QAuthZListPolicy", .words = policy_words };
static const char *const match_words[] = { "exact", "glob", NULL };
static const struct ctl_shape match_shape = { .name = "QAuthZListFormat", .words = match_words };
static const struct ctl_arg rule_rows[] = {
    { "match", CTL_STR, true, CTL_AT_NONE, .doc = "A name; with glob, * is any text and ? any character." },
    { "policy", CTL_ENUM, true, CTL_AT_NONE, .of = &policy_shape },
    { "format", CTL_ENUM, false, CTL_AT_NONE, .of = &match_shape, .doc = "exact when it is not given." },
    CTL_ARGS_END
};
static const struct ctl_shape rule_shape = { .name = "QAuthZListRule", .rows = rule_rows };
static const struct ctl_arg simple_rows[] = { { "identity", CTL_STR, true, CTL_AT_NONE, .doc = "The one who may connect." }, CTL_ARGS_END };
static const struct ctl_arg list_rows[] = {
    { "policy", CTL_ENUM, false, CTL_AT_NONE, .of = &policy_shape, .doc = "For whoever no rule matches; deny when it is not given." },
    { "rules", CTL_STRUCT, false, CTL_AT_NONE, .of = &rule_shape, .list = true, .doc = "The first that matches decides." },
    CTL_ARGS_END
};
static const struct ctl_arg file_rows[] = {
    { "filename", CTL_STR, true, CTL_AT_NONE, .doc = "JSON as authz-list takes it." },
    { "refresh", CTL_BOOL, false, CTL_AT_NONE, .doc = "Read it again when it has changed; on when it is not given." },
    CTL_ARGS_END
};
static const struct ctl_arg pam_rows[] = { { "service", CTL_STR, true, CTL_AT_NONE, .doc = "A service of PAM (a file in /etc/pam.d) whose account rules decide." }, CTL_ARGS_END };
static const struct ctl_case add_cases[] = {
    { "iothread", iothread_rows }, { "pr-manager-helper", pr_rows }, { "secret", secret_rows }, { "secret_keyring", keyring_rows }, { "throttle-group", throttle_rows }, { "tls-creds-anon", anon_rows },
    { "tls-creds-psk", psk_rows }, { "tls-creds-x509", x509_rows }, { "authz-simple", simple_rows }, { "authz-list", list_rows },
    { "authz-list-file", file_rows }, { "authz-listfile", file_rows }, { "authz-pam", pam_rows }, { NULL, NULL }
};

struct adding { const struct ctl_env *env; char *text; struct byre_err *err; };

static int64_t add_blocking(void *arg)
{
    struct adding *a = arg;
    return a->env->object_add(a->env->arg, a->text, a->err);
}

/* Its id is claimed, and nobody has it. */
static int add(struct co *co, struct ctl_call *call)
{
    struct adding a = { &call->c->env, NULL, &call->err };
    const char *type = json_string_value(json_object_get(call->arguments, "qom-type"));
    if (!strcmp(type, "throttle-group"))
        return ctl_throttle_add(call);
    if (!strcmp(type, "iothread"))
        return ctl_iothread_add(co, call);
    if (!strcmp(type, "pr-manager-helper"))
        return ctl_pr_add(co, call);
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

static int run_add(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    const char *id = json_string_value(json_object_get(call->arguments, "id"));
    int r = e->object_claim ? e->object_claim(e->arg, id, &call->err) : 0;
    if (r)
        return r;
    if (ctl_throttle(call->c, id) || ctl_iothread(call->c, id) || ctl_pr(call->c, id) || (e->object_has && e->object_has(e->arg, id)))
        r = byre_fail(&call->err, EXISTS, "there is an object '%s' already", id);       /* I2 */
    else
        r = add(co, call);
    if (e->object_release)
        e->object_release(e->arg, id);
    return r;
}

struct del_args { const char *id; };
static const struct ctl_arg del_rows[] = { { "id", CTL_STR, true, CTL_AT(struct del_args, id) }, CTL_ARGS_END };

static int run_del(struct co *co, struct ctl_call *call)
{
    const struct del_args *a = call->args;
    const struct ctl_env *e = &call->c->env;
    int r = ctl_throttle_del(call, a->id);
    if (r > 0)
        r = ctl_iothread_del(call, a->id);
    if (r > 0)
        r = ctl_pr_del(call, a->id);
    if (r <= 0)
        return r;
    if (!e->object_del || e->object_del(e->arg, a->id))
        return byre_fail(&call->err, NOT_FOUND, "object '%s' not found", a->id);
    return 0;
}

const struct ctl_arg *ctl_object_rows(const char *type)
{
    const struct ctl_case *c = add_cases;
    while (c->word && strcmp(c->word, type))
        c++;
    return c->rows;
}

const struct ctl_shape ctl_object_types = { .name = "ObjectType", .words = type_words };
const struct ctl_command ctl_cmd_object_add = { "object-add", add_rows, 0, run_add, .tag = "qom-type", .cases = add_cases,
    .doc = "Makes an object that others refer to: a secret, a throttle group, a thread for exports, credentials of TLS, rules about who may connect, or a manager of persistent reservations, which connects to its helper." };
const struct ctl_command ctl_cmd_object_del = { "object-del", del_rows, sizeof(struct del_args), run_del,
    .doc = "Forgets an object. Throttle groups, threads and managers of persistent reservations that are in use stay; who uses anything else goes on; rules that are gone let nobody in." };
