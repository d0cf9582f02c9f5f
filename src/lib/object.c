/* SPDX-License-Identifier: MIT
 *
 * object.c: objects of a context, from the words by which users define them (FEATURES 3.021, 3.072 to 3.075, 5.002).
 *
 * Purpose      From "TYPE,id=x,key=value", or the same as JSON, to words; and on to whoever makes objects of the type.
 * Owns         the words, wiped when the call ends: any may be a secret; the list of ids that are being given
 * Invariants   I1 an id is one object's, whatever its type: it is claimed before anybody looks whether it is free, and until its object is there
 *              I2 nested values are walked, never recursed into: objects, and lists of objects, of scalars, and no deeper
 *              I3 the first of several mistakes that is told: syntax, type, no id, an option that the type does not have, an id that is none, one that is
 *                 given already, and then what the type does with its options
 * Concurrency  Any thread that may wait for the home loop, but for claims: any thread. ids_mx is a leaf.
 * Failure      nothing is added
 * Tests        lib_test.c, tests/cli/object_test.py
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/opt.h"
#include "fmt/secret.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

static int no_memory(struct byre_err *err) { return byre_fail(err, NOMEM, "no memory for an object"); }

/* ---- words ---- */

static void text_free(char *text)
{
    if (text)
        secret_wipe(text, strlen(text));
    free(text);
}

static void words_fini(struct object_words *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        free(w->list[i].key);
        text_free(w->list[i].value);
    }
    free(w->list);
    free(w->type);
    free(w->id);
}

static int put_name(char **to, char *key, char *value, enum object_value kind, struct byre_err *err)
{
    int r = kind == OBJECT_TEXT || kind == OBJECT_STRING ? 0 : byre_fail(err, BAD_OPTION, "'%s' of an object must be a string", key);
    free(key);
    free(*to);
    *to = value;
    return r;
}

/* Takes key and value over, also on failure; either may be NULL: memory ran out. */
static int put(struct object_words *w, char *key, char *value, enum object_value kind, struct byre_err *err)
{
    bool good = key && value;
    if (good && !strcmp(key, "qom-type"))
        return put_name(&w->type, key, value, kind, err);
    if (good && !strcmp(key, "id"))
        return put_name(&w->id, key, value, kind, err);
    struct object_word *more = good ? reallocarray(w->list, w->count + 1, sizeof *more) : NULL;
    if (!more) {
        free(key);
        text_free(value);
        return no_memory(err);
    }
    w->list = more;
    more[w->count++] = (struct object_word){ key, value, kind };
    return 0;
}

static int parse_list(struct object_words *w, const char *text, struct byre_err *err)
{
    for (bool first = true;; first = false) {
        char *key = NULL, *value = NULL;
        int r = opt_list_next(&text, &key, &value);
        if (r == -EINVAL)
            return byre_fail(err, BAD_OPTION, "an option of an object has no name");
        if (r <= 0)
            return r ? no_memory(err) : 0;
        if (!value && first)
            r = put(w, strdup("qom-type"), key, OBJECT_TEXT, err);
        else
            r = put(w, key, value ? value : strdup("on"), value ? OBJECT_TEXT : OBJECT_BARE, err);
        if (r)
            return r;
    }
}

/* ---- JSON ---- */

/* Takes key over. */
static int put_scalar(struct object_words *w, char *key, const json_t *v, struct byre_err *err)
{
    char *text = NULL;
    if (json_is_string(v))
        return put(w, key, strdup(json_string_value(v)), OBJECT_STRING, err);
    if (json_is_boolean(v))
        return put(w, key, strdup(json_is_true(v) ? "on" : "off"), OBJECT_BOOL, err);
    if (json_is_integer(v))
        return put(w, key, asprintf(&text, "%" JSON_INTEGER_FORMAT, json_integer_value(v)) < 0 ? NULL : text, OBJECT_INTEGER, err);
    int r = byre_fail(err, BAD_OPTION, "'%s' of an object has a value of the wrong kind", key ? key : "");
    free(key);
    return r;
}

/* Members of o become "name.leaf". */
static int put_object(struct object_words *w, const char *name, const json_t *o, struct byre_err *err)
{
    const char *leaf;
    json_t *v;
    int r = 0;
    json_object_foreach((json_t *)(uintptr_t)o, leaf, v) {
        char *key = NULL;
        if (!r)
            r = asprintf(&key, "%s.%s", name, leaf) < 0 ? no_memory(err) : put_scalar(w, key, v, err);
    }
    return r;
}

static int put_array(struct object_words *w, const char *name, const json_t *list, struct byre_err *err)
{
    int r = 0;
    for (size_t i = 0; !r && i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        char *at = NULL;
        if (!json_is_object(o))
            r = byre_fail(err, BAD_OPTION, "'%s' of an object is a list of objects", name);
        else if (asprintf(&at, "%s.%zu", name, i) < 0)
            return no_memory(err);
        else
            r = put_object(w, at, o, err);
        free(at);
    }
    return r;
}

static void wipe_strings(json_t *root)
{
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
        if (json_is_string(v))
            secret_wipe((char *)(uintptr_t)json_string_value(v), json_string_length(v));
}

static int parse_json(struct object_words *w, const char *text, struct byre_err *err)
{
    json_error_t where;
    const char *key;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &where), *v;
    int r = json_is_object(root) ? 0 : byre_fail(err, BAD_ARGUMENT, "the definition of an object is no JSON object (column %d)", where.column);
    json_object_foreach(root, key, v)
        if (!r)
            r = json_is_array(v) ? put_array(w, key, v, err) : json_is_object(v) ? put_object(w, key, v, err) : put_scalar(w, strdup(key), v, err);
    wipe_strings(root);
    json_decref(root);
    return r;
}

/* ---- ids (I1) ---- */

struct claim { struct list_node link; char id[]; };

static struct claim *find_locked(const struct byre_ctx *ctx, const char *id)
{
    LIST_FOR(at, &ctx->claims) {
        struct claim *c = CONTAINER_OF(at, struct claim, link);
        if (!strcmp(c->id, id))
            return c;
    }
    return NULL;
}

int lib_object_claim(struct byre_ctx *ctx, const char *id, struct byre_err *err)
{
    size_t n = strlen(id) + 1;
    struct claim *c = malloc(sizeof *c + n);
    if (!c)
        return no_memory(err);
    memcpy(c->id, id, n);
    pthread_mutex_lock(&ctx->ids_mx);
    bool taken = find_locked(ctx, id);
    if (!taken)
        list_push_back(&ctx->claims, &c->link);
    pthread_mutex_unlock(&ctx->ids_mx);
    if (!taken)
        return 0;
    free(c);
    return byre_fail(err, EXISTS, "there is an object '%s' already", id);
}

void lib_object_release(struct byre_ctx *ctx, const char *id)
{
    pthread_mutex_lock(&ctx->ids_mx);
    struct claim *c = find_locked(ctx, id);
    list_remove(&c->link);
    pthread_mutex_unlock(&ctx->ids_mx);
    free(c);
}

bool lib_object_has(struct byre_ctx *ctx, const char *id)
{
    struct secret *s = secret_get(ctx->secrets, id);
    secret_put(s);
    return s || tls_set_has(ctx->tls, id);
}

int lib_ctx_object_del(struct byre_ctx *ctx, const char *id)
{
    return secret_set_remove(ctx->secrets, id) && tls_set_remove(ctx->tls, id) ? -ENOENT : 0;
}

/* ---- types ---- */

static const struct kind {
    bool (*is_type)(const char *type);
    int (*check)(const struct object_words *w, struct byre_err *err);        /* I3: options that the type does not have; NULL: make() says so */
    int (*make)(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err);
} kinds[] = {
    { lib_secret_is_type, lib_secret_check, lib_secret_make },
    { lib_throttle_is_type, NULL, lib_throttle_make },
    { tls_is_type, NULL, lib_tls_make },
    { lib_pr_is_type, lib_pr_check, lib_pr_make },
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

/* NULL: told. */
static const struct kind *kind_of(const struct object_words *w, struct byre_err *err)
{
    for (unsigned i = 0; w->type && i < KINDS; i++)
        if (kinds[i].is_type(w->type))
            return &kinds[i];
    (void)byre_fail(err, NOT_SUPPORTED, "objects of the type '%s' are not supported (secret, secret_keyring, throttle-group, tls-creds-..., authz-... and pr-manager-helper are)", w->type ? w->type : "");
    return NULL;
}

static int check(const struct object_words *w, const struct kind **ret_kind, struct byre_err *err)
{
    *ret_kind = kind_of(w, err);
    if (!*ret_kind)
        return -ENOTSUP;
    if (!w->id)
        return byre_fail(err, BAD_OPTION, "an object needs an 'id'");
    int r = (*ret_kind)->check ? (*ret_kind)->check(w, err) : 0;
    if (!r && !id_is_good(w->id, SIZE_MAX))
        r = byre_fail(err, BAD_OPTION, "'%s' is no id: a letter, then letters, digits, '-', '.' and '_'", w->id);
    return r;
}

static int make(struct byre_ctx *ctx, const struct kind *k, const struct object_words *w, struct byre_err *err)
{
    if (lib_object_has(ctx, w->id) || lib_throttle_has(ctx, w->id) || lib_pr_has(ctx, w->id))
        return byre_fail(err, EXISTS, "there is an object '%s' already", w->id);
    return k->make(ctx, w, err);
}

static int add(struct byre_ctx *ctx, const char *definition, bool claimed, struct byre_err *err)
{
    struct object_words w = { .type = NULL };
    const struct kind *k;
    int r = definition[0] == '{' ? parse_json(&w, definition, err) : parse_list(&w, definition, err);
    if (!r)
        r = check(&w, &k, err);
    if (!r && !claimed)
        r = lib_object_claim(ctx, w.id, err);
    if (!r) {
        r = make(ctx, k, &w, err);
        if (!claimed)
            lib_object_release(ctx, w.id);
    }
    words_fini(&w);
    return r;
}

int byre_object_add(struct byre_ctx *ctx, const char *definition, struct byre_err *err) { return add(ctx, definition, false, err); }

int lib_object_add_claimed(struct byre_ctx *ctx, const char *definition, struct byre_err *err) { return add(ctx, definition, true, err); }
