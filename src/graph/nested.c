/* SPDX-License-Identifier: MIT
 *
 * nested.c: a name that the user gives, json:{...} or blkdebug:CONFIG:IMAGE, whose options nest nodes (FEATURES 3.052, 3.063, 11.007).
 *
 * Purpose     {"driver": "qcow2", "file": {"driver": "throttle", ...}} = {"driver": "qcow2", "file.driver": "throttle", ...}: what is not a format over a
 *             plain file is opened by blockdev.c, as blockdev-add opens it. This brings such a name into its words, and says to all that it nests
 *             what was asked for the opening: for reading, sharing, cache mode.
 * Owns        Nothing.
 * Invariants  N1  Only what the user himself says comes here: a name that an image records never makes nodes (names.c).
 *             N2  What is opened belongs to the one who opened it, and everything below is closed with it.
 *             N3  A filter that is the disk itself is opened below a raw image: whoever opens a disk has an image.
 * Order       None.
 * Concurrency Home loop; suspends.
 * Failure     Everything opened is closed again.
 * Tests       tests/cli/nested_test.py
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/blockdev.h"
#include "graph/filters.h"
#include "graph/graph_priv.h"

/* ---- keys with dots ---- */

/* "file.driver" becomes "driver" of the object "file". */
static int lift(json_t *o, const char *child)
{
    const char *key;
    json_t *v, *in = json_object_get(o, child);
    void *at = NULL;
    size_t len = strlen(child);
    bool dotted = false;
    json_object_foreach(o, key, v)
        dotted |= !strncmp(key, child, len) && key[len] == '.';
    if (dotted && !in && (json_object_set_new(o, child, json_object()) || !(in = json_object_get(o, child))))
        return -ENOMEM;
    json_object_foreach_safe(o, at, key, v)
        if (!strncmp(key, child, len) && key[len] == '.' && (!json_is_object(in) || json_object_set(in, key + len + 1, v) || json_object_del(o, key)))
            return -EINVAL;
    return 0;
}

/* {"0": ..., "1": ...} is a list. */
static json_t *list_of(const json_t *o)
{
    json_t *list = json_array();
    char index[32];
    for (size_t i = 0; list && i < json_object_size(o); i++) {
        snprintf(index, sizeof index, "%zu", i);
        json_t *v = json_object_get(o, index);
        if (!v || json_array_append(list, v)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* Words and digits in lists of options stand for what they mean. */
static json_t *typed(const json_t *v)
{
    const char *s = json_string_value(v);
    char *end;
    long long n = s ? strtoll(s, &end, 10) : 0;
    if (s && s[0] && !*end)
        return json_integer(n);
    if (s && (!strcmp(s, "on") || !strcmp(s, "true")))
        return json_true();
    return s && (!strcmp(s, "off") || !strcmp(s, "false")) ? json_false() : json_incref((json_t *)(uintptr_t)v);
}

static int type_member(json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v ? json_object_set_new(o, key, typed(v)) : 0;
}

/* Rules of blkdebug: "inject-error.0.event". */
static int lift_rules(json_t *o, const char *name)
{
    const char *key;
    json_t *v, *list;
    void *at;
    size_t i;
    int r = lift(o, name);
    json_t *in = json_object_get(o, name);
    if (r || !json_is_object(in))
        return r;
    for (i = 0; i < 64 && !r; i++) {
        char index[32];
        snprintf(index, sizeof index, "%zu", i);
        r = lift(in, index);
    }
    list = r ? NULL : list_of(in);
    if (!list)
        return -EINVAL;
    json_array_foreach(list, i, v)
        json_object_foreach_safe(v, at, key, in)
            if (json_object_set_new(v, key, typed(in)))
                r = -ENOMEM;
    return json_object_set_new(o, name, list) ? -ENOMEM : r;
}

static int straighten_one(json_t *o)
{
    static const char *const words[] = { "read-only", "auto-read-only", "force-share", "read-zeroes", "latency-ns", NULL };
    int r = lift_rules(o, "inject-error");
    if (!r)
        r = lift_rules(o, "set-state");
    for (const char *const *w = words; !r && *w; w++)
        r = type_member(o, *w);
    for (const char *const *k = blockdev_children; !r && *k; k++)
        r = lift(o, *k);
    return r;
}

/* ---- all that is nested ---- */

/* Each object that is a node, outer ones first: fn says no to go on. NODES: more are refused when they are opened. */
#define NODES 64u
struct walk { json_t *at[NODES]; unsigned count; };

static int walk(struct walk *w, json_t *root, int (*fn)(json_t *o, void *arg), void *arg)
{
    *w = (struct walk){ { root }, 1 };
    for (unsigned i = 0; i < w->count; i++) {
        int r = fn(w->at[i], arg);
        if (r)
            return r;
        for (const char *const *k = blockdev_children; *k; k++) {
            json_t *child = json_object_get(w->at[i], *k);
            if (!json_is_object(child))
                continue;
            if (w->count == NODES)
                return -E2BIG;
            w->at[w->count++] = child;
        }
    }
    return 0;
}

static int straighten(json_t *o, void *arg) { return straighten_one(o); }

static int set_unless(json_t *o, const char *key, json_t *v)
{
    return json_object_get(o, key) ? (json_decref(v), 0) : json_object_set_new(o, key, v);
}

/* What was asked for the opening holds below as well. */
static int hand_on(json_t *o, void *arg)
{
    const struct graph_open_opts *go = arg;
    const char *driver = json_string_value(json_object_get(o, "driver"));
    int r = 0;
    if (!driver && json_object_get(o, "filename")) {
        r = json_object_set_new(o, "driver", json_string("file"));
        driver = "file";
    }
    if (!driver || r)
        return r;
    if (go->read_only)
        r = set_unless(o, "read-only", json_true());
    if (!r && go->force_share)
        r = set_unless(o, "force-share", json_true());
    if (!r && go->direct && !json_object_get(o, "cache"))
        r = set_unless(o, "cache.direct", json_true());
    if (!r && go->no_flush && !json_object_get(o, "cache"))
        r = set_unless(o, "cache.no-flush", json_true());
    return !r && go->no_lock && name_driver_is_file(driver) ? set_unless(o, "locking", json_string("off")) : r;
}

/* The image says whether it discards, by its own word or the caller's; what lies below does as it is told, unless it says so itself. A plain file is part of
 * its format's node, and has that one's word. */
static int discard_below(json_t *o, void *arg)
{
    for (const char *const *k = blockdev_children; *k; k++) {
        json_t *child = json_object_get(o, *k);
        if (json_is_object(child) && blockdev_needs_node(o, *k, child) && set_unless(child, "discard", json_string("unmap")))
            return -ENOMEM;
    }
    return 0;
}

/* Is this child more than a plain file, which is part of its format's node? */
static bool is_more(const json_t *o, const char *key)
{
    const json_t *child = json_object_get(o, key);
    const char *driver = json_string_value(json_object_get(child, "driver"));
    if (!strcmp(key, "header"))
        return json_is_object(child);            /* always a node (data.c I6) */
    return driver && (!strcmp(key, "backing") || !(name_driver_is_file(driver) || !strcmp(driver, "nbd")));
}

static bool is_filter_or_null(const char *driver)
{
    return driver && (filter_by_name(driver) || blockdev_is_null(driver));
}

static bool nests(const json_t *root)
{
    bool more = is_filter_or_null(json_string_value(json_object_get(root, "driver")));
    for (const char *const *k = blockdev_children; *k && !more; k++)
        more = is_more(root, *k);
    return more;
}

/* N3. Takes o over. NULL: no memory */
static json_t *as_image(json_t *o, const struct graph_open_opts *go)
{
    const char *driver = json_string_value(json_object_get(o, "driver"));
    if (is_filter_or_null(driver))
        return json_pack("{s:s,s:o}", "driver", "raw", "file", o);
    if (!driver && go->format && json_object_set_new(o, "driver", json_string(go->format))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* ---- blkdebug:CONFIG:IMAGE ---- */

static const char debug_prefix[] = "blkdebug:";

static bool is_debug(const char *name) { return !strncmp(name, debug_prefix, strlen(debug_prefix)); }

bool name_may_nest(const char *name) { return !strncmp(name, "json:", strlen("json:")) || is_debug(name); }

bool name_nests(const char *filename)
{
    struct walk w;
    json_t *root;
    if (is_debug(filename))
        return true;
    if (strncmp(filename, "json:", 5) || name_json_load(filename + strlen("json:"), &root, NULL))
        return false;
    bool yes = !walk(&w, root, straighten, NULL) && nests(root);
    json_decref(root);
    return yes;
}

/* The format of the image below the filter: what opens over a node does not guess. *ret_guessed_raw: it was nothing else. */
static int guess_below(struct co *co, struct graph *g, const struct graph_open_opts *o, const char *image, const char **ret_format, bool *ret_guessed_raw, struct byre_err *err)
{
    uint8_t head[PROBE_BYTES] = { 0 };           /* a store that keeps nothing leaves it as it is */
    struct iovec slot;
    struct stor *s;
    const struct stor_file_opts so = { .read_only = true, .locking = STOR_LOCK_OFF };
    int r = graph_store_open(co, g, image, &so, &s, err);
    if (r)
        return r;
    r = stor_read(co, s, iov_one(&slot, head, sizeof head), 0);
    stor_close(co, s);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot read the first sector", image);
    const struct fmt_ops *ops = fmt_probe(head, sizeof head);
    *ret_format = ops->name;
    *ret_guessed_raw = ops == &fmt_raw_ops;
    if (*ret_guessed_raw && fmt_signature(head, sizeof head))
        return byre_fail(err, NOT_SUPPORTED, "%s: looks like a %s image, which is not supported (state the format to override)", image, fmt_signature(head, sizeof head));
    if (*ret_guessed_raw && o->refuse_probed_raw && !o->read_only)
        return byre_fail(err, PROBED_RAW, "%s: the format was guessed as raw; state it to open the image for writing", image);
    return 0;
}

/* The name as an object. *ret_guessed_raw: its format was not stated, and nothing is known of its content. */
static int debug_name(struct co *co, struct graph *g, const struct graph_open_opts *o, json_t **ret, bool *ret_guessed_raw, struct byre_err *err)
{
    const char *config = o->filename + strlen(debug_prefix), *colon = strchr(config, ':'), *image = colon ? colon + 1 : "", *format = o->format;
    bool is_json = !strncmp(image, "json:", strlen("json:"));
    json_t *below = NULL;
    int r = !image[0] ? byre_fail(err, BAD_ARGUMENT, "'%s': the form is blkdebug:CONFIG:IMAGE", o->filename) : 0;
    if (!r && is_json)
        r = name_json_load(image + strlen("json:"), &below, err);
    if (!r && !format && is_json)
        r = byre_fail(err, BAD_OPTION, "'%s': the format must be stated", o->filename);
    if (!r && !format)
        r = guess_below(co, g, o, image, &format, ret_guessed_raw, err);
    if (r) {
        json_decref(below);
        return r;
    }
    below = below ? below : json_pack("{s:s,s:s}", "driver", "file", "filename", image);
    json_t *debug = json_pack("{s:s,s:o}", "driver", "blkdebug", "image", below);
    bool whole = debug && (colon == config || !json_object_set_new(debug, "config", json_stringn(config, (size_t)(colon - config))));
    *ret = whole ? json_pack("{s:s,s:o}", "driver", format, "file", debug) : NULL;
    if (!whole)
        json_decref(debug);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory for a node");
}

/* 1: *ret; 0: the name is for others. */
static int load_name(struct co *co, struct graph *g, const struct graph_open_opts *o, json_t **ret, bool *ret_guessed_raw, struct byre_err *err)
{
    *ret_guessed_raw = false;
    if (!is_debug(o->filename))
        return !name_json_load(o->filename + strlen("json:"), ret, NULL);      /* what is wrong is said by the one who reads plain names */
    int r = debug_name(co, g, o, ret, ret_guessed_raw, err);
    return r ? r : 1;
}

int graph_open_nested(struct co *co, struct graph *g, const struct graph_open_opts *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct walk w;
    json_t *root;
    bool guessed_raw;
    int got = load_name(co, g, o, &root, &guessed_raw, err);
    if (got <= 0)
        return got;
    if (walk(&w, root, straighten, NULL) || !nests(root)) {
        json_decref(root);
        return 0;
    }
    int r = walk(&w, root, hand_on, (void *)(uintptr_t)o);
    if (!r && !o->read_only && (o->discard || json_object_get(root, "discard")))
        r = walk(&w, root, discard_below, NULL);
    root = r ? root : as_image(root, o);
    if (r || !root)
        r = byre_fail(err, NOMEM, "no memory for a node");
    else if (!json_object_get(root, "driver"))
        r = byre_fail(err, BAD_OPTION, "json: 'driver' is missing: over another node the format must be stated");
    else
        r = blockdev_open(co, g, root, o, ret_n, err);
    json_decref(root);
    if (!r && guessed_raw) {
        (*ret_n)->probed = true;
        (*ret_n)->guard_first = !(*ret_n)->read_only;
    }
    return r ? r : 1;
}
