/* SPDX-License-Identifier: MIT
 *
 * throttle_object.c: throttle groups, as users of the command line define them (FEATURES 3.075).
 *
 * Purpose      From the words of "throttle-group,id=g,limits.iops-total=50" (object.c) to a group of the context's graph.
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

#include "graph/throttle.h"
#include "lib/lib_priv.h"

#define LIMITS "limits."

/* A limit is a number; anything else stays what it is, and whoever reads it says what is wrong. */
static json_t *value_of(const char *text)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 0);
    return errno || !text[0] || *end ? json_string(text) : json_integer(n);
}

static json_t *value_of_word(const struct object_word *w)
{
    switch (w->kind) {
    case OBJECT_INTEGER: return json_integer(strtoll(w->value, NULL, 10));
    case OBJECT_BOOL: return json_boolean(!strcmp(w->value, "on"));
    case OBJECT_STRING: return json_string(w->value);
    default: return value_of(w->value);
    }
}

static int put(json_t *o, const struct object_word *w, struct byre_err *err)
{
    json_t *limits = json_object_get(o, "limits");
    bool nested = !strncmp(w->key, LIMITS, strlen(LIMITS));
    if (nested && !limits && json_object_set_new(o, "limits", limits = json_object()))
        return byre_fail(err, NOMEM, "no memory for an object");
    if (nested && !json_is_object(limits))
        return byre_fail(err, BAD_OPTION, "'limits' of an object is given twice");
    const char *leaf = nested ? w->key + strlen(LIMITS) : w->key;
    return json_object_set_new(nested ? limits : o, leaf, value_of_word(w)) ? byre_fail(err, NOMEM, "no memory for an object") : 0;
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

bool lib_throttle_has(struct byre_ctx *ctx, const char *id)
{
    return lib_ctx_call(ctx, find_home, &(struct adding){ ctx, id, NULL, NULL });
}

int lib_throttle_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err)
{
    struct throttle_limits l = { 0 };
    json_t *o = json_object();
    int r = o ? 0 : byre_fail(err, NOMEM, "no memory for an object");
    for (unsigned i = 0; !r && i < w->count; i++)
        r = put(o, &w->list[i], err);
    if (!r)
        r = throttle_members(o, &l, err);
    json_decref(o);
    return r ? r : lib_ctx_call(ctx, add_home, &(struct adding){ ctx, w->id, &l, err });
}

bool lib_throttle_is_type(const char *type) { return !strcmp(type, "throttle-group"); }
