/* SPDX-License-Identifier: MIT
 *
 * filters.c: the table of filters that the user can make, and what their options have in common.
 *
 * Purpose     Finds the driver, checks the names of options, finds the child.
 * Owns        constant table
 * Invariants  F1  An option that neither all nodes nor the filter has is refused by name.
 * Order       None.
 * Concurrency Home loop.
 * Failure     As graph.h.
 * Tests       tests/cli/blockdev_test.py
 */
#include <string.h>

#include "graph/filters.h"

static const struct filter_driver *const drivers[] = { &filter_blkdebug, &filter_cbw, &filter_compress, &filter_cor, &filter_prealloc, &filter_snapshot_access, &filter_throttle, NULL };

const struct filter_driver *filter_by_name(const char *name)
{
    for (const struct filter_driver *const *d = drivers; *d; d++)
        if (!strcmp((*d)->name, name))
            return *d;
    return NULL;
}

static bool is_one_of(const char *key, const char *const *words)
{
    while (*words && strcmp(*words, key))
        words++;
    return *words;
}

static int check_names(const struct filter_driver *f, const json_t *o, struct byre_err *err)
{
    static const char *const common[] = { "driver", "node-name", "read-only", "auto-read-only", "discard", "force-share", "cache", "detect-zeroes", "active", NULL };
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
        if (strcmp(key, f->child) && !is_one_of(key, common) && !is_one_of(key, f->options))
            return byre_fail(err, BAD_OPTION, "driver '%s' has no option '%s'", f->name, key);
    return 0;
}

int filter_add(struct co *co, struct graph *g, const struct filter_driver *f, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    const json_t *file = json_object_get(o, f->child);
    int r = check_names(f, o, err);
    if (r)
        return r;
    if (!json_is_string(file))
        return byre_fail(err, BAD_OPTION, "driver '%s' needs '%s': a node, or options of one", f->name, f->child);
    struct graph_node *below = graph_find(g, json_string_value(file));
    if (below && json_is_false(json_object_get(o, "active")) && !f->may_sleep)
        return byre_fail(err, NOT_SUPPORTED, "driver '%s': 'active' cannot be off", f->name);
    if (!below)
        return byre_fail(err, NOT_FOUND, "there is no node '%s' that could be '%s'", json_string_value(file), f->child);
    graph_ref(below);                            /* making it may suspend */
    r = f->make(co, below, o, ret_n, err);
    (void)node_unref(co, below);                 /* the filter has it, or its user has gone meanwhile: then there is nobody to tell */
    return r;
}
