/* SPDX-License-Identifier: MIT
 *
 * nested.c: a name that the user gives, json:{...}, whose options nest nodes (FEATURES 3.063, 11.007).
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

bool name_nests(const char *filename)
{
    struct walk w;
    json_t *root;
    if (strncmp(filename, "json:", 5) || name_json_load(filename + strlen("json:"), &root, NULL))
        return false;
    bool yes = !walk(&w, root, straighten, NULL) && nests(root);
    json_decref(root);
    return yes;
}

int graph_open_nested(struct co *co, struct graph *g, const struct graph_open_opts *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct walk w;
    json_t *root;
    if (name_json_load(o->filename + strlen("json:"), &root, NULL))
        return 0;                                /* what is wrong is said by the one who reads plain names */
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
    return r ? r : 1;
}
