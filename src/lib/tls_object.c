/* SPDX-License-Identifier: MIT
 *
 * tls_object.c: credentials of TLS and rules about who may connect, as users define them (FEATURES 3.073, 3.074).
 *
 * Purpose      From "tls-creds-x509,id=t,endpoint=server,dir=d", or the same as JSON, to the words of tls/objects.h.
 * Owns         the words, until the call ends
 * Invariants   I1 nested values are walked, never recursed into: lists of objects of scalars, and no deeper
 * Concurrency  any thread that may block
 * Failure      nothing is added
 * Tests        tests/daemon/tls_test.py
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/id.h"
#include "base/opt.h"
#include "fmt/secret.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

struct words { char *type, *id; struct tls_word *list; unsigned count; };

static void words_fini(struct words *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        free((void *)(uintptr_t)w->list[i].key);
        free((void *)(uintptr_t)w->list[i].value);
    }
    free(w->list);
    free(w->type);
    free(w->id);
}

static int no_memory(struct byre_err *err)
{
    return byre_fail(err, NOMEM, "no memory for an object");
}

/* Takes key and value over, also on failure. */
static int put(struct words *w, char *key, char *value, struct byre_err *err)
{
    char **own = key && value ? !strcmp(key, "qom-type") ? &w->type : !strcmp(key, "id") ? &w->id : NULL : NULL;
    struct tls_word *more = own || !key || !value ? NULL : reallocarray(w->list, w->count + 1, sizeof *more);
    if (more) {
        w->list = more;
        more[w->count++] = (struct tls_word){ key, value };
        return 0;
    }
    if (own) {
        free(*own);
        *own = value;
        free(key);
        return 0;
    }
    free(key);
    free(value);
    return no_memory(err);
}

/* ---- key=value ---- */

static int parse_list(struct words *w, const char *text, struct byre_err *err)
{
    for (bool first = true;; first = false) {
        char *key = NULL, *value = NULL;
        int r = opt_list_next(&text, &key, &value);
        if (r == -EINVAL)
            return byre_fail(err, BAD_OPTION, "an option of an object has no name");
        if (r <= 0)
            return r ? no_memory(err) : 0;
        if (!value && first) {
            value = key;
            key = strdup("qom-type");
        } else if (!value) {
            value = strdup("on");
        }
        r = put(w, key, value, err);
        if (r)
            return r;
    }
}

/* ---- JSON ---- */

static char *scalar_text(const json_t *v)
{
    char *text = NULL;
    if (json_is_string(v))
        return strdup(json_string_value(v));
    if (json_is_boolean(v))
        return strdup(json_is_true(v) ? "on" : "off");
    return json_is_integer(v) && asprintf(&text, "%" JSON_INTEGER_FORMAT, json_integer_value(v)) >= 0 ? text : NULL;
}

static int put_scalar(struct words *w, char *key, const json_t *v, struct byre_err *err)
{
    if (json_is_string(v) || json_is_boolean(v) || json_is_integer(v))
        return put(w, key, scalar_text(v), err);
    int r = byre_fail(err, BAD_OPTION, "'%s' of an object has a value of the wrong kind", key ? key : "");
    free(key);
    return r;
}

static int put_array(struct words *w, const char *name, const json_t *list, struct byre_err *err)
{
    const char *leaf;
    json_t *v;
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *o = json_array_get(list, i);
        if (!json_is_object(o))
            return byre_fail(err, BAD_OPTION, "'%s' of an object is a list of objects", name);
        json_object_foreach(o, leaf, v) {
            char *key = NULL;
            int r = asprintf(&key, "%s.%zu.%s", name, i, leaf) < 0 ? no_memory(err) : put_scalar(w, key, v, err);
            if (r)
                return r;
        }
    }
    return 0;
}

static int parse_json(struct words *w, const char *text, struct byre_err *err)
{
    json_error_t where;
    const char *key;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &where), *v;
    int r = json_is_object(root) ? 0 : byre_fail(err, BAD_ARGUMENT, "the definition of an object is no JSON object (column %d)", where.column);
    json_object_foreach(root, key, v)
        if (!r)
            r = json_is_array(v) ? put_array(w, key, v, err) : put_scalar(w, strdup(key), v, err);
    json_decref(root);
    return r;
}

/* ---- adding ---- */

/* The bytes of the secret that `passwordid` names as text; *ret_text is wiped and freed by the caller. */
static int take_password(struct byre_ctx *ctx, const struct words *w, char **ret_text, struct byre_err *err)
{
    const char *id = NULL;
    for (unsigned i = 0; i < w->count; i++)
        if (!strcmp(w->list[i].key, "passwordid"))
            id = w->list[i].value;
    struct secret *s = id ? secret_get(ctx->secrets, id) : NULL;
    if (!s)
        return 0;                            /* whoever makes the object tells that it is missing */
    size_t len = s->len;
    while (len && s->bytes[len - 1] == '\n') /* as editors leave it in files */
        len--;
    *ret_text = memchr(s->bytes, 0, len) ? NULL : secret_new(len + 1);
    int r = *ret_text ? 0 : byre_fail(err, BAD_ARGUMENT, "the secret '%s' cannot be the password of a key", id);
    if (!r)
        memcpy(*ret_text, s->bytes, len);
    secret_put(s);
    return r;
}

static int add(struct byre_ctx *ctx, const struct words *w, struct byre_err *err)
{
    struct tls_words all = { .type = w->type, .id = w->id, .list = w->list, .count = w->count };
    if (!w->id)
        return byre_fail(err, BAD_OPTION, "an object needs an 'id'");
    if (!id_is_good(w->id, SIZE_MAX))
        return byre_fail(err, BAD_OPTION, "'%s' is no id: a letter, then letters, digits, '-', '.' and '_'", w->id);
    struct secret *same = secret_get(ctx->secrets, w->id);
    secret_put(same);
    if (same || lib_throttle_object_has(ctx, w->id))
        return byre_fail(err, EXISTS, "there is a %s '%s' already", same ? "secret" : "throttle group", w->id);
    char *password = NULL;
    int r = take_password(ctx, w, &password, err);
    all.password = password;
    if (!r)
        r = tls_set_add(ctx->tls, &all, err);
    secret_free(password);
    return r;
}

/* A cheap look, so that nothing is made of the words of a secret here. */
static bool may_be_ours(const char *text)
{
    return strstr(text, "tls-creds-") || strstr(text, "authz-");
}

int lib_tls_object_add(struct byre_ctx *ctx, const char *definition, struct byre_err *err)
{
    struct words w = { 0 };
    struct byre_err why = { 0 };
    if (!may_be_ours(definition))
        return 1;
    int r = definition[0] == '{' ? parse_json(&w, definition, &why) : parse_list(&w, definition, &why);
    bool ours = w.type && tls_is_type(w.type);
    if (!r && ours)
        r = add(ctx, &w, &why);
    for (unsigned i = 0; !ours && i < w.count; i++)
        secret_wipe((void *)(uintptr_t)w.list[i].value, strlen(w.list[i].value));
    words_fini(&w);
    if (!ours)
        return 1;
    if (r && err)
        *err = why;
    return r;
}
