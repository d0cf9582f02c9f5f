/* SPDX-License-Identifier: MIT
 *
 * measure.c: how large a file will be.
 *
 * Purpose      Counts the clusters of a source that hold something, and lets the format of the target do the sum.
 * Owns         nothing
 * Invariants   I1 a cluster of the target is counted once, however many extents of the source touch it
 * Concurrency  any foreign thread; the count runs on the home loop
 * Failure      -ENOTSUP: the format cannot be measured
 * Tests        tests/cli/measure_test.py
 */
#include "base/checked.h"
#include "base/opt.h"
#include "lib/create_priv.h"

#define ENTRY_HEAD_BYTES 24u          /* of a bitmap directory entry, before its name */

struct measuring { struct create *c; struct byre_image *source; uint64_t data_bytes, bitmap_bytes; };

/* Bytes of the whole clusters (of the target) that hold data of the source. */
static int count_data(struct co *co, struct measuring *m)
{
    struct graph_node *n = m->source->node;
    uint64_t size = graph_length(n), unit = m->c->fo.cluster_size, counted_to = 0;
    if (!unit || !is_pow2(unit))
        unit = 1;
    for (uint64_t off = 0; off < size;) {
        struct graph_status st;
        int r = graph_status(co, n, NULL, off, size - off, &st);
        if (r)
            return byre_fail_code(m->c->err, IO, r, "%s: cannot read what is allocated", graph_filename(n));
        bool holds = st.data && !st.zero;
        if (holds) {
            uint64_t from = max_u64(round_down(off, unit), counted_to), to = round_up(off + st.len, unit);
            if (to > from)
                m->data_bytes += to - from;
            counted_to = max_u64(counted_to, to);
        }
        off += st.len;
    }
    return 0;
}

/* Clusters that the persistent bitmaps of the source will need: data, tables and one directory. */
static void count_bitmaps(struct measuring *m, const struct fmt_info *info)
{
    uint64_t cluster = m->c->fo.cluster_size, directory = 0;
    for (size_t i = 0; i < info->bitmap_count; i++) {
        const struct fmt_bitmap_info *b = &info->bitmaps[i];
        uint64_t bits = div_up(info->virtual_size, b->granularity ? b->granularity : 1);
        uint64_t clusters = div_up(div_up(bits, 8), cluster);
        m->bitmap_bytes += clusters * cluster + round_up(clusters * 8, cluster);
        directory += round_up(ENTRY_HEAD_BYTES + strlen(b->name), 8);
    }
    m->bitmap_bytes += round_up(directory, cluster);
}

static int measure_co(struct co *co, void *arg)
{
    struct measuring *m = arg;
    struct fmt_info info = { 0 };
    struct fmt_image *im = graph_image(m->source->node);
    int r = count_data(co, m);
    if (!r)
        r = im->ops->info(co, im, &info, m->c->err);
    if (!r && is_pow2(m->c->fo.cluster_size))
        count_bitmaps(m, &info);
    fmt_info_fini(&info);
    return r;
}

static void give(struct byre_measure *ret, const struct fmt_measure *f, const struct measuring *m)
{
    struct byre_measure full = byre_measure_init();
    const struct graph_node *n = m->source ? m->source->node : NULL;
    full.required = f->required;
    full.fully_allocated = f->fully_allocated;
    /* Bitmaps only travel between formats that can hold them. */
    full.has_bitmaps = n && graph_format(n) == &fmt_qcow2_ops && m->c->ops == &fmt_qcow2_ops && m->c->fo.version >= 3;
    full.bitmaps = full.has_bitmaps ? m->bitmap_bytes : 0;
    size_t size = ret->struct_size;
    memcpy(ret, &full, size < sizeof full ? size : sizeof full);
    ret->struct_size = size;
}

int byre_measure_image(struct byre_ctx *ctx, struct byre_image *source, const struct byre_create_opts *opts,
                       struct byre_measure *ret, struct byre_err *err)
{
    struct create c = { .ctx = ctx, .filename = "measure", .err = err };
    struct measuring m = { .c = &c, .source = source };
    struct fmt_measure fm = { 0 };
    int r = lib_take_opts(&c.o, sizeof c.o, opts, err);
    if (!r)
        r = create_settle(&c, err);
    if (!r && !c.ops->measure)
        r = byre_fail(err, NOT_SUPPORTED, "images of format %s cannot be measured", c.ops->name);
    if (!r && !source && !c.has_size)
        r = byre_fail(err, BAD_SIZE, "either a size or a source image is needed");
    if (!r && source)
        r = lib_call(ctx, lib_home(ctx), measure_co, &m);
    if (!r) {
        c.fo.size = source ? graph_length(source->node) : round_up(c.fo.size, 512);
        r = c.ops->measure(&c.fo, m.data_bytes, &fm, err);
    }
    if (!r)
        give(ret, &fm, &m);
    create_fini(&c);
    return r;
}
