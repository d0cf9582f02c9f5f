/* SPDX-License-Identifier: MIT
 *
 * compress.c: the filter compress (FEATURES 3.058): writes of whole clusters become compressed ones.
 *
 * Purpose     Cuts a write at the borders of clusters; the whole ones go on as compressed writes, the rest as it is.
 * Owns        Nothing.
 * Invariants  None.
 * Order       None.
 * Concurrency Any loop.
 * Failure     As a write; parts of it may have been done.
 * Tests       tests/cli/filter_test.py
 */
#include "graph/filters.h"

static int compress_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    const struct graph_node *image = graph_skip_filters(n);
    uint64_t unit = image->im->encode_bytes, end = off + v.len_bytes;
    if (!unit)                                   /* another image has come to lie below it */
        return node_write(co, n->backing, v, off, flags);
    uint64_t start = round_up(off, unit), stop = end == graph_length(n) ? end : round_down(end, unit);
    if (start >= stop)
        return node_write(co, n->backing, v, off, flags);
    int r = start > off ? node_write(co, n->backing, iov_slice(v, 0, start - off), off, flags) : 0;
    if (!r)
        r = node_write(co, n->backing, iov_slice(v, start - off, stop - start), start, flags | GRAPH_COMPRESS);
    if (!r && stop < end)
        r = node_write(co, n->backing, iov_slice(v, stop - off, end - stop), stop, flags);
    return r;
}

static const struct filter_ops compress_ops = { .name = "compress", .write = compress_write };

static int compress_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct graph_node *image = graph_skip_filters(below);
    if (!image || !image->im->encode_bytes)
        return byre_fail(err, NOT_SUPPORTED, "node '%s': its image does not compress", below->name);
    const struct filter_new f = { .ops = &compress_ops, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    return filter_new(below->g, &f, ret_n, err);
}

static const char *const no_options[] = { NULL };
const struct filter_driver filter_compress = { "compress", "file", no_options, compress_make, true };
