/* SPDX-License-Identifier: MIT
 *
 * image_opts.c: node options given as a list become a json: name, so that one place decides what they mean (graph/).
 *
 * Purpose      Only the spelling changes: keys and values stay strings, which json: names accept.
 * Owns         nothing
 * Invariants   I1 the text that comes out is one JSON object without duplicate keys (the last value holds)
 * Concurrency  any thread
 * Failure      BAD_OPTION, NOMEM; *ret_name untouched
 * Tests        lib_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json_out.h"
#include "base/opt.h"
#include "byre/image.h"
#include "lib/image_opts.h"

#define KEYS_MAX 64

struct pairs { char *key[KEYS_MAX], *value[KEYS_MAX]; unsigned count; };

static void pairs_fini(struct pairs *p)
{
    for (unsigned i = 0; i < p->count; i++) {
        free(p->key[i]);
        free(p->value[i]);
    }
}

/* ---- sizes of caches ---- */
struct caches { uint64_t total, l2, refcounts; bool lazy; };

static const struct opt_row cache_rows[] = {
    { "cache-size", 0, OPT_SIZE, OPT_AT(struct caches, total), .help = "metadata cache in all" },
    { "l2-cache-size", 0, OPT_SIZE, OPT_AT(struct caches, l2), .help = "metadata cache for mapping tables" },
    { "refcount-cache-size", 0, OPT_SIZE, OPT_AT(struct caches, refcounts), .help = "metadata cache for reference counts" },
    { "lazy-refcounts", 0, OPT_BOOL, OPT_AT(struct caches, lazy), .help = "write reference counts late, or in time" },
    OPT_END
};

/* One budget serves all tables: the sum of what was asked for. All three at once contradict one another. */
static int settle_caches(const struct caches *c, uint64_t seen, struct byre_open_opts *o, struct byre_err *err)
{
    bool total = opt_seen(cache_rows, seen, "cache-size"), l2 = opt_seen(cache_rows, seen, "l2-cache-size");
    if (total && l2 && opt_seen(cache_rows, seen, "refcount-cache-size"))
        return byre_fail(err, BAD_OPTION, "only two of cache-size, l2-cache-size and refcount-cache-size can be given");
    if (total && (c->l2 > c->total || c->refcounts > c->total))
        return byre_fail(err, BAD_OPTION, "cache-size is smaller than one of its parts");
    if (total)
        o->cache_bytes = c->total;
    else if (l2 || opt_seen(cache_rows, seen, "refcount-cache-size"))
        o->cache_bytes = c->l2 + c->refcounts;
    if (opt_seen(cache_rows, seen, "lazy-refcounts"))
        o->lazy_refcounts = c->lazy ? BYRE_LAZY_ON : BYRE_LAZY_OFF;
    return 0;
}

/* Takes key and value over. */
static int pairs_add(struct pairs *p, char *key, char *value, struct byre_err *err)
{
    for (unsigned i = 0; i < p->count; i++) {
        if (strcmp(p->key[i], key) == 0) {
            free(key);
            free(p->value[i]);
            p->value[i] = value;
            return 0;
        }
    }
    if (p->count == KEYS_MAX) {
        free(key);
        free(value);
        return byre_fail(err, LIMIT, "more than %d image options", KEYS_MAX);
    }
    p->key[p->count] = key;
    p->value[p->count++] = value;
    return 0;
}

/* 1: the pair was a cache size (freed), 0: it is for somebody else. */
static int take_cache(struct caches *c, uint64_t *seen, char *key, char *value, struct byre_err *err)
{
    if (!opt_find(cache_rows, key))
        return 0;
    int r = opt_set(cache_rows, c, key, value, seen, err);
    free(key);
    free(value);
    return r ? r : 1;
}

static int pairs_parse(struct pairs *p, const char *list, struct byre_open_opts *o, struct byre_err *err)
{
    struct caches c = { 0 };
    uint64_t seen = 0;
    for (;;) {
        char *key = NULL, *value = NULL;
        int r = opt_list_next(&list, &key, &value);
        if (r == -EINVAL)
            return byre_fail(err, BAD_OPTION, "the image options hold an empty name");
        if (r < 0)
            return byre_fail(err, NOMEM, "no memory for image options");
        if (r == 0)
            return settle_caches(&c, seen, o, err);
        if (!value && !(value = strdup("on"))) {
            free(key);
            return byre_fail(err, NOMEM, "no memory for image options");
        }
        r = take_cache(&c, &seen, key, value, err);
        if (r == 0)
            r = pairs_add(p, key, value, err);
        if (r < 0)
            return r;
    }
}

static bool has_key(const struct pairs *p, const char *prefix, size_t n)
{
    for (unsigned i = 0; i < p->count; i++)
        if (strncmp(p->key[i], prefix, n) == 0)
            return true;
    return false;
}

static int emit(const struct pairs *p, char **ret_name, struct byre_err *err)
{
    struct json_out j;
    bool bare = !has_key(p, "driver", 7) && !has_key(p, "file.", 5);    /* the file is named without its level */
    json_out_init(&j, false);
    jo_open_obj(&j, NULL);
    for (unsigned i = 0; i < p->count; i++)
        jo_str(&j, bare && strcmp(p->key[i], "filename") == 0 ? "file.filename" : p->key[i], p->value[i]);
    jo_close(&j);
    char *name = json_out_error(&j) ? NULL : malloc(j.len_bytes + 6);
    if (name) {
        memcpy(name, "json:", 5);
        memcpy(name + 5, j.text, j.len_bytes + 1);
    }
    json_out_fini(&j);
    if (!name)
        return byre_fail(err, NOMEM, "no memory for image options");
    *ret_name = name;
    return 0;
}

int image_opts_to_name(const char *list, struct byre_open_opts *o, char **ret_name, struct byre_err *err)
{
    struct pairs p = { .count = 0 };
    int r = pairs_parse(&p, list, o, err);
    if (!r)
        r = emit(&p, ret_name, err);
    pairs_fini(&p);
    return r;
}
