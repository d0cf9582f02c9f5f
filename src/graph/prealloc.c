/* SPDX-License-Identifier: MIT
 *
 * prealloc.c: the filter preallocate (FEATURES 3.059): a file that grows gets its space in large steps.
 *
 * Purpose     When what lies over the filter makes the file longer, space behind its new end is taken as well, so that the next steps find it.
 * Owns        The space behind the end of the file, until the filter ends.
 * Invariants  A1  The file is never longer than it is without the filter: only its space goes beyond its end. So a program that dies leaves a file
 *                 whose content and length are right, with space that the next change of its length gives back.
 *             A2  While another process may write the file nothing of it is the filter's: what comes later does not cut off what that has written.
 *             A3  Its length is only touched while nobody else may change it. Otherwise the space stays until somebody does.
 * Order       None: space holds nothing.
 * Concurrency Home loop.
 * Failure     None: without the space things go on as they would without the filter.
 * Tests       tests/daemon/under_test.py
 */
#include <stdlib.h>

#include "graph/filters.h"

struct prealloc { uint64_t align, size, taken; /* space is there up to here; 0: none was taken */ };

/* The file at the bottom, to be closed: it may be opened in another way meanwhile. NULL: it is none. */
static struct stor *file_of(struct graph_node *n)
{
    const struct graph_node *b = graph_skip_filters(n);
    return b && b->is_raw && b->is_file ? stor_share(b->im->store) : NULL;
}

static void prealloc_grown(struct co *co, struct graph_node *n, uint64_t len)
{
    struct prealloc *p = n->flt_arg;
    struct stor *file = len > p->taken ? file_of(n) : NULL;
    uint64_t end = len + p->size;
    end = end > UINT64_MAX / 4 ? len : div_up(end, p->align) * p->align;      /* which is no power of two, perhaps */
    if (file && end > len && stor_file_ahead(co, file, len, end - len) == 0)
        p->taken = end;
    stor_close(co, file);
}

/* Somebody writes to b beside the filter: who makes it longer while its space is given back would lose what comes behind the old end (A3). */
static bool is_written(const struct graph_node *b)
{
    for (const struct graph_user *u = b->users; u; u = u->next)
        if (u->perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE))
            return true;
    return false;
}

/* What was taken and not used is given back. Whoever makes the file longer holds its `whole`, or wrote to it when that was taken. */
static void prealloc_rest(struct co *co, struct graph_node *n)
{
    struct prealloc *p = n->flt_arg;
    struct graph_node *b = n->backing && p->taken ? graph_skip_filters(n) : NULL;
    if (!b)
        return;
    graph_hold_image(co, b);
    struct stor *file = is_written(b) ? NULL : file_of(n);
    uint64_t len;
    if (file && !stor_length(co, file, &len) && len < p->taken)
        (void)!stor_truncate(co, file, len);
    stor_close(co, file);
    graph_release_image(b);
    p->taken = 0;
}

static void prealloc_end(struct co *co, struct graph_node *n)
{
    prealloc_rest(co, n);
    free(n->flt_arg);
}

static const struct filter_ops prealloc_ops = { .name = "preallocate", .grown = prealloc_grown, .rest = prealloc_rest, .free = prealloc_end };

static int take_size(const json_t *o, const char *key, uint64_t def, uint64_t *ret, struct byre_err *err)
{
    const json_t *v = json_object_get(o, key);
    *ret = def;
    return v ? name_take_size(key, v, ret, err) : 0;
}

static int prealloc_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct prealloc p = { 0 };
    int r = take_size(o, "prealloc-align", 1u << 20, &p.align, err);
    if (!r)
        r = take_size(o, "prealloc-size", 128u << 20, &p.size, err);
    if (!r && p.align % SECTOR)
        r = byre_fail(err, BAD_OPTION, "driver 'preallocate': 'prealloc-align' is no multiple of %u", SECTOR);
    if (r)
        return r;
    struct prealloc *own = malloc(sizeof *own);
    if (!own)
        return byre_fail(err, NOMEM, "no memory for a node");
    *own = p;
    own->align = max_u64(p.align, SECTOR);
    const struct filter_new f = { .ops = &prealloc_ops, .arg = own, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    r = filter_new(below->g, &f, ret_n, err);
    if (r)
        free(own);
    return r;
}

static const char *const prealloc_options[] = { "prealloc-align", "prealloc-size", NULL };
const struct filter_driver filter_prealloc = { "preallocate", "file", prealloc_options, prealloc_make, true };
