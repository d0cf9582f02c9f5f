/* SPDX-License-Identifier: MIT
 *
 * throttle_object.c: throttle groups, as users of the command line define them (FEATURES 3.075).
 *
 * Purpose      From "throttle-group,id=g,limits.iops-total=50", or the same as JSON, to a group of the context's graph.
 * Owns         the words, until the call ends
 * Invariants   none
 * Concurrency  any thread that may wait for the home loop
 * Failure      nothing is added
 * Tests        tests/cli/nested_test.py
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/opt.h"
#include "fmt/secret.h"
#include "graph/throttle.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

#define TYPE "throttle-group"
#define LIMITS "limits."

/* A limit is a number; anything else stays what it is, and whoever reads it says what is wrong. */
static json_t *value_of(const char *key, const char *text)
{
    char *end;
    bool word = !strcmp(key, "qom-type") || !strcmp(key, "id");
    errno = 0;
    long long n = strtoll(text, &end, 0);
    return word || errno || !text[0] || *end ? json_string(text) : json_integer(n);
}

static int put(json_t *o, const char *key, const char *text, struct byre_err *err)
{
    json_t *limits = json_object_get(o, "limits");
    bool nested = !strncmp(key, LIMITS, strlen(LIMITS));
    if (nested && !limits && json_object_set_new(o, "limits", limits = json_object()))
        return byre_fail(err, NOMEM, "no memory for an object");
    if (nested && !json_is_object(limits))
        return byre_fail(err, BAD_OPTION, "'limits' of an object is given twice");
    const char *leaf = nested ? key + strlen(LIMITS) : key;
    return json_object_set_new(nested ? limits : o, leaf, value_of(leaf, text)) ? byre_fail(err, NOMEM, "no memory for an object") : 0;
}

static int parse_list(json_t *o, const char *text, struct byre_err *err)
{
    int got, r;
    for (bool first = true;; first = false) {
        char *key = NULL, *value = NULL;
        got = opt_list_next(&text, &key, &value);
        if (got <= 0)
            return !got ? 0 : got == -EINVAL ? byre_fail(err, BAD_OPTION, "an option of an object has no name") : byre_fail(err, NOMEM, "no memory for an object");
        r = !value && first ? put(o, "qom-type", key, err) : put(o, key, value ? value : "on", err);
        free(key);
        free(value);
        if (r)
            return r;
    }
}

/* NULL: it is none of ours, as far as can be seen; whoever takes it says what is wrong. */
static json_t *parse(const char *text, int *ret_r, struct byre_err *err)
{
    *ret_r = 0;
    if (strncmp(text, TYPE, strlen(TYPE)) && !(text[0] == '{' ? strstr(text, TYPE) : strstr(text, "qom-type=" TYPE)))       /* nothing is made of the words of a secret here */
        return NULL;
    json_t *o = text[0] == '{' ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : json_object();
    if (o && text[0] != '{')
        *ret_r = parse_list(o, text, err);
    const char *type = json_string_value(json_object_get(o, "qom-type"));
    if (type && !strcmp(type, TYPE))
        return o;
    json_decref(o);
    return NULL;
}

struct adding { struct byre_ctx *ctx; const char *id; const struct throttle_limits *limits; struct byre_err *err; };

static int add_home(struct co *co, void *arg)
{
    const struct adding *a = arg;
    struct throttle_group *t;
    int r = throttle_group_new(a->ctx->graph, a->id, a->limits, &t, a->err);
    if (!r)
        throttle_group_keep(t);
    return r;
}

static int find_home(struct co *co, void *arg)
{
    const struct adding *a = arg;
    return throttle_group_find(a->ctx->graph, a->id) != NULL;
}

bool lib_throttle_object_has(struct byre_ctx *ctx, const char *id)
{
    return lib_ctx_call(ctx, find_home, &(struct adding){ ctx, id, NULL, NULL });
}

static int add(struct byre_ctx *ctx, const json_t *o, struct byre_err *err)
{
    struct throttle_limits l = { 0 };
    const char *id = json_string_value(json_object_get(o, "id"));
    if (!id)
        return byre_fail(err, BAD_OPTION, "an object needs an 'id'");
    if (!id_is_good(id, SIZE_MAX))
        return byre_fail(err, BAD_OPTION, "'%s' is no id: a letter, then letters, digits, '-', '.' and '_'", id);
    struct secret *same = secret_get(ctx->secrets, id);
    secret_put(same);
    if (same || tls_set_has(ctx->tls, id))
        return byre_fail(err, EXISTS, "there is an object '%s' already", id);
    int r = throttle_members(o, &l, err);
    return r ? r : lib_ctx_call(ctx, add_home, &(struct adding){ ctx, id, &l, err });
}

int lib_throttle_object_add(struct byre_ctx *ctx, const char *definition, struct byre_err *err)
{
    int r;
    json_t *o = parse(definition, &r, err);
    if (!o)
        return 1;
    if (!r)
        r = add(ctx, o, err);
    json_decref(o);
    return r;
}
