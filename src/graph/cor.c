/* SPDX-License-Identifier: MIT
 *
 * cor.c: the filter copy-on-read (FEATURES 3.051, 11.028).
 *
 * Purpose     What is read from layers below an image is written down into it, so that it is read from there the next time.
 * Owns        Nothing.
 * Invariants  C1  A cluster is written down only while the format holds other writes of it off (fmt.h I2), and only when it is still absent
 *                 then: no write of a guest is lost.
 *             C2  A read never fails because writing down failed.
 * Order       As for a write.
 * Concurrency Any loop.
 * Failure     C2.
 * Tests       tests/cli/filter_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/filters.h"

struct cor { struct graph_node *bottom; };      /* NULL: the whole chain; with a reference */

/* C1. 0, also when there was nothing to do. */
static int write_down(struct co *co, struct graph_node *n, uint64_t pos, uint64_t len)
{
    struct fmt_write w;
    struct fmt_extent e;
    struct iovec slot;
    int r = n->im->ops->write_begin(co, n->im, pos, len, &w);
    if (r || !w.len)
        return r;
    epoch_token t = epoch_enter(n->im->epoch, co_loop(co));
    r = n->im->ops->map(co, n->im, pos, w.len, &e);
    epoch_leave(n->im->epoch, co_loop(co), t);
    bool still = !r && e.kind == FMT_ABSENT && e.len >= w.len && !w.head && !w.tail;
    void *buf = still ? malloc(w.len) : NULL;
    if (buf)
        r = chain_read(co, n->backing, iov_one(&slot, buf, w.len), pos);
    node_event(co, n, STOR_EV_COR_WRITE);
    if (buf && !r)
        r = fill_write(co, n, &w, iov_one(&slot, buf, w.len), NULL);
    free(buf);
    if (!buf || r) {
        n->im->ops->write_abort(co, n->im, &w);
        return r;
    }
    return n->im->ops->write_commit(co, n->im, &w);
}

/* Is the range absent in n, and does a layer down to `bottom` have it? *ret_len: for how long that holds. */
static int wanted(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t pos, uint64_t end, uint64_t *ret_len)
{
    struct chain_memo memo = { .reading = false };
    struct piece p;
    int r = chain_find(co, n, n->backing, pos, end, &memo, &p);
    if (r)
        return r;
    piece_release(co, &p);
    *ret_len = p.len;
    if (p.e.kind != FMT_ABSENT || !n->backing)
        return 0;
    struct chain_memo below = { .reading = false };
    r = chain_find(co, n->backing, bottom ? bottom->backing : NULL, pos, pos + p.len, &below, &p);
    if (r)
        return r;
    piece_release(co, &p);
    *ret_len = p.len;
    return p.layer && p.e.kind != FMT_ABSENT && !p.past_end;
}

/* By the unit in which the format says what is there. f: what the filter lies over, n: its image. */
static int copy_range(struct co *co, struct graph_node *f, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len)
{
    uint64_t unit = max_u64(n->im->granule, SECTOR), end = min_u64(round_up(off + len, unit), atomic_load(&n->im->size)), part;
    for (uint64_t pos = round_down(off, unit); pos < end; pos += part) {
        int r = wanted(co, n, bottom, pos, end, &part);
        if (r < 0)
            return r;
        if (!r)
            continue;
        uint64_t first = round_down(pos, unit), stop = min_u64(first + unit, end);
        if (f->flt && f->flt->event)
            f->flt->event(co, f, STOR_EV_COR_WRITE);
        r = write_down(co, n, first, stop - first);
        if (r)
            return r;
        part = stop - pos;
    }
    return 0;
}

static int cor_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    const struct cor *c = n->flt_arg;
    struct graph_node *image = graph_skip_filters(n);
    if (!image->read_only && v.len_bytes)
        (void)copy_range(co, n->backing, image, c->bottom, off, v.len_bytes);      /* C2 */
    return node_read(co, n->backing, v, off);
}

static void cor_end(struct co *co, struct graph_node *n)
{
    struct cor *c = n->flt_arg;
    if (c->bottom)
        (void)node_unref(co, c->bottom);         /* it lies below and is read-only */
    free(c);
}

static const struct filter_ops cor_ops = { .name = "copy-on-read", .read = cor_read, .free = cor_end };

static int find_bottom(struct graph_node *below, const char *name, struct graph_node **ret, struct byre_err *err)
{
    *ret = name ? graph_find(below->g, name) : NULL;
    if (name && !*ret)
        return byre_fail(err, NOT_FOUND, "there is no node '%s' that could be 'bottom'", name);
    if (*ret && !chain_has(below, *ret))
        return byre_fail(err, BAD_OPTION, "node '%s', the 'bottom', does not lie below node '%s'", name, below->name);
    return 0;
}

static int cor_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct cor c = { NULL }, *kept;
    struct graph_node *image = graph_skip_filters(below);
    int r = find_bottom(below, json_string_value(json_object_get(o, "bottom")), &c.bottom, err);
    if (r)
        return r;
    if (!image || image->read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only: nothing can be copied into it", below->name);
    kept = malloc(sizeof *kept);
    if (!kept)
        return byre_fail(err, NOMEM, "no memory for a node");
    *kept = c;
    const struct filter_new f = { .ops = &cor_ops, .arg = kept, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    r = filter_new(below->g, &f, ret_n, err);
    if (r)
        free(kept);
    else if (c.bottom)
        c.bottom->refs++;
    return r;
}

int graph_copy_on_read(struct co *co, struct graph_node *below, struct graph_node **ret_n, struct byre_err *err)
{
    return cor_make(co, below, NULL, ret_n, err);
}

static const char *const cor_options[] = { "bottom", NULL };
const struct filter_driver filter_cor = { "copy-on-read", "file", cor_options, cor_make, true };
