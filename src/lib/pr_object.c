/* SPDX-License-Identifier: MIT
 *
 * pr_object.c: managers of persistent reservations, as users of the command line define them (FEATURES 3.021).
 *
 * Purpose      From the words of "pr-manager-helper,id=p,path=/run/helper.sock" (object.c) to a manager of the context.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any thread that may wait for the home loop
 * Failure      nothing is added
 * Tests        tests/cli/object_test.py, tests/cli/doc_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "lib/lib_priv.h"
#include "stor/pr.h"

bool lib_pr_is_type(const char *type) { return !strcmp(type, "pr-manager-helper"); }

static const char *path_of(const struct object_words *w)
{
    const char *path = NULL;
    for (unsigned i = 0; i < w->count; i++)
        if (!strcmp(w->list[i].key, "path"))
            path = w->list[i].value;
    return path;
}

int lib_pr_check(const struct object_words *w, struct byre_err *err)
{
    if (!path_of(w))
        return byre_fail(err, BAD_OPTION, "Parameter 'path' is missing: where the helper listens");
    for (unsigned i = 0; i < w->count; i++) {
        if (strcmp(w->list[i].key, "path"))
            return byre_fail(err, BAD_OPTION, "Parameter '%s' is unexpected: an object pr-manager-helper has 'path' alone", w->list[i].key);
        if (w->list[i].kind != OBJECT_TEXT && w->list[i].kind != OBJECT_STRING)
            return byre_fail(err, BAD_OPTION, "'path' of an object pr-manager-helper must be a string");
    }
    return 0;
}

struct adding { struct byre_ctx *ctx; const char *id, *path; struct byre_err *err; };

static int add_home(struct co *co, void *arg)
{
    const struct adding *a = arg;
    return pr_add(co, a->ctx->prs, &(struct pr_new){ a->id, a->path, PR_ADD_MS }, a->err);
}

static int find_home(struct co *co, void *arg)
{
    const struct adding *a = arg;
    return pr_find(a->ctx->prs, a->id) != NULL;
}

bool lib_pr_has(struct byre_ctx *ctx, const char *id)
{
    return lib_ctx_call(ctx, find_home, &(struct adding){ ctx, id, NULL, NULL });
}

int lib_pr_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err)
{
    const char *path = path_of(w);
    AUTOFREE char *whole = path[0] == '/' ? NULL : realpath(path, NULL);        /* a daemon leaves the folder, and connects anew from elsewhere */
    return lib_ctx_call(ctx, add_home, &(struct adding){ ctx, w->id, whole ? whole : path, err });
}
