/* SPDX-License-Identifier: MIT
 *
 * cbw_view.c: the node snapshot-access: the disk as it was when a filter copy-before-write began to keep it (FEATURES 3.061, 9.071).
 *
 * Purpose     What is todo comes from the source, under the lock that keeps changes out; the rest from the filter's target.
 * Owns        The image of such a node; its side is the filter.
 * Invariants  cbw.h B1, B3. Further:
 *             A1  An answer is given only if, behind it, the snapshot is not broken and has the range still.
 *             A2  What a status says of a granule that is todo before and behind it was true of the snapshot.
 *             A3  It is an image, not a filter: what it shows is not what the nodes beside it show.
 *             A4  Below an image (B6) nothing takes the lock: who holds it reads there himself, when he writes a part of a cluster. What was read of
 *                 the source counts if all of it is todo still, for then no change had begun. When the filter is stopped, it shows how the disk goes on.
 * Order       None.
 * Concurrency Requests on any loop.
 * Failure     -EACCES: outside of what the snapshot has, or it is broken; for all writes.
 * Tests       cbw_test.c, tests/daemon/fleece_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/cbw_priv.h"

struct view { struct fmt_image im; struct cbw *cb; bool below; };

static struct view *view_of(struct fmt_image *im) { return CONTAINER_OF(im, struct view, im); }

/* ---- what is where ---- */

/* How far from off, at most to end, the snapshot has what is asked for. -EACCES */
static int allowed(const struct view *v, uint64_t off, uint64_t end, uint64_t *ret_stop)
{
    struct cbw *cb = v->cb;
    if ((v->below ? atomic_load(&cb->broken) : cbw_is_off(cb)) || off >= cb->size || !dirty_run(cb->access, off, end, ret_stop))
        return -EACCES;
    *ret_stop = min_u64(*ret_stop, end);
    return 0;
}

static struct graph_node *source_of(const struct cbw *cb) { return cb->node->backing; }

static int view_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    const struct view *v = view_of(im);
    struct cbw *cb = v->cb;
    struct graph_status st;
    for (;;) {
        uint64_t stop, run, again;
        int r = allowed(v, off, off + len, &stop);
        if (r)
            return r;
        bool todo = dirty_run(cb->todo, off, stop, &run);
        run = min_u64(run, stop);
        r = node_status(co, todo ? source_of(cb) : cb->target, NULL, off, run - off, &st);
        if (r)
            return r;
        if (todo && (!dirty_run(cb->todo, off, off + st.len, &again) || again < off + st.len))
            continue;                            /* A2 */
        *ret_e = (struct fmt_extent){ .kind = st.zero ? FMT_ZERO : FMT_ENCODED, .len = st.len, .encrypted = true };
        return allowed(v, off, off + st.len, &stop) || stop < off + st.len ? -EACCES : 0;
    }
}

/* ---- reading ---- */

/* The beginning of v, under the lock, if it is todo then. *ret_len: how much; 0: it is not. */
static int read_source(struct co *co, struct cbw *cb, struct iov v, uint64_t off, uint64_t *ret_len)
{
    struct cbw_hold what = { .until = UINT64_MAX, .reads = true };
    uint64_t stop;
    int r;
    *ret_len = 0;
    what.range.start = round_down(off, cb->granule);
    what.range.end = min_u64(round_up(off + v.len_bytes, cb->granule), cb->size);
    struct cbw_hold *h = cbw_hold_take(co, cb, &what, &r);
    if (!h)
        return r;
    if (dirty_run(cb->todo, off, off + v.len_bytes, &stop)) {
        *ret_len = min_u64(stop - off, v.len_bytes);
        r = node_read(co, source_of(cb), iov_slice(v, 0, *ret_len), off);
    }
    cbw_hold_put(h);
    return r;
}

/* A4. *ret_len 0: something was copied meanwhile. */
static int read_below(struct co *co, struct cbw *cb, struct iov v, uint64_t off, uint64_t *ret_len)
{
    uint64_t stop;
    int r = node_read(co, source_of(cb), v, off);
    *ret_len = !r && dirty_run(cb->todo, off, off + v.len_bytes, &stop) && stop >= off + v.len_bytes ? v.len_bytes : 0;
    return r;
}

static int view_read(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    const struct view *view = view_of(im);
    struct cbw *cb = view->cb;
    for (uint64_t at = 0, part; at < v.len_bytes; at += part) {
        uint64_t pos = off + at, stop, run;
        int r = allowed(view, pos, off + v.len_bytes, &stop);
        if (r)
            return r;
        bool todo = dirty_run(cb->todo, pos, stop, &run);
        part = min_u64(min_u64(run, stop) - pos, CBW_STEP);
        if (todo && view->below)
            r = read_below(co, cb, iov_slice(v, at, part), pos, &part);
        else if (todo)
            r = read_source(co, cb, iov_slice(v, at, part), pos, &part);
        else
            r = node_read(co, cb->target, iov_slice(v, at, part), pos);
        if (!r && part && (allowed(view, pos, pos + part, &stop) || stop < pos + part))
            r = -EACCES;                         /* A1 */
        if (r)
            return r;
    }
    return 0;
}

/* ---- discards, and what is refused ---- */

static int forget(struct co *co, struct cbw *cb, uint64_t start, uint64_t end)
{
    struct cbw_hold what = { .until = UINT64_MAX, .reads = true };
    int r;
    what.range.start = start;
    what.range.end = end;
    struct cbw_hold *h = cbw_hold_take(co, cb, &what, &r);
    if (!h)
        return r;
    r = dirty_clear(cb->access, start, end - start);
    if (!r)
        r = dirty_clear(cb->todo, start, end - start);
    if (!r)
        r = node_discard(co, cb->target, start, end - start);
    cbw_hold_put(h);
    return r;
}

static int view_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    struct cbw *cb = view_of(im)->cb;
    uint64_t start = round_up(off, cb->granule), end = off + len >= cb->size ? cb->size : round_down(off + len, cb->granule);
    return cbw_is_off(cb) ? -EACCES : start < end ? forget(co, cb, start, end) : 0;
}

static int view_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w) { return -EACCES; }
static int view_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags) { return -EACCES; }
/* So that the space of what was discarded comes back (Q9): nobody else flushes the target while a snapshot is kept there. */
static int view_flush(struct co *co, struct fmt_image *im) { return node_flush(co, view_of(im)->cb->target); }

static int view_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    *ret_info = (struct fmt_info){ .virtual_size = im->size };
    return 0;
}

static int view_close(struct co *co, struct fmt_image *im)
{
    struct view *v = view_of(im);
    epoch_drain(co, im->epoch);
    epoch_free(im->epoch);
    stor_close(co, im->store);
    cbw_unref(v->cb);
    free(v);
    return 0;
}

static const struct fmt_ops view_ops = { .name = "snapshot-access", .map = view_map, .read_encoded = view_read, .write_begin = view_write_begin, .zero = view_zero,
                                         .discard = view_discard, .flush = view_flush, .info = view_info, .close = view_close };

bool graph_is_snapshot_access(const struct graph_node *n) { return n->im && n->im->ops == &view_ops; }

/* ---- life ---- */

/* Its store holds nothing, for those who describe nodes. */
static struct view *view_new(struct co *co, struct graph_node *n, struct cbw *cb)
{
    struct view *v = calloc(1, sizeof *v);
    struct stor *s;
    if (!v)
        return NULL;
    v->cb = cb;
    if (stor_null_new(co, &(struct stor_null_opts){ .len = cb->size }, &s)) {
        free(v);
        return NULL;
    }
    v->im = (struct fmt_image){ .ops = &view_ops, .store = s, .data = s, .home = n->g->home, .size = cb->size, .granule = 1, .cluster = 1 };
    if (epoch_new(n->g->home, &v->im.epoch)) {
        stor_close(co, s);
        free(v);
        return NULL;
    }
    cbw_ref(cb);
    return v;
}

static int view_node(struct co *co, struct graph_node *below, const char *name, bool under, struct graph_node **ret_n, struct byre_err *err)
{
    struct cbw *cb = graph_cbw(below);
    struct graph_node *n;
    int r = node_new(below->g, name, &n, err);
    if (r)
        return r;
    struct view *v = view_new(co, n, cb);
    n->filename = v ? strdup(below->filename) : NULL;
    if (v) {
        v->below = under;
        n->im = &v->im;
    }
    n->no_lock = n->discard = n->ready = true;
    const struct graph_user use = { .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_ALL };
    r = n->filename ? side_set(n, below, &use, err) : byre_fail(err, NOMEM, "no memory for a node");
    if (r)
        (void)node_unref(co, n);                 /* nobody has used it */
    else
        *ret_n = n;
    return r;
}

static int view_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    if (!graph_cbw(below))
        return byre_fail(err, BAD_OPTION, "node '%s' keeps no snapshot: 'file' must be a node copy-before-write", below->name);
    return view_node(co, below, json_string_value(json_object_get(o, "node-name")), false, ret_n, err);
}

int cbw_view_below(struct co *co, struct graph_node *f, struct graph_node **ret_n, struct byre_err *err)
{
    int r = view_node(co, f, NULL, true, ret_n, err);
    if (!r)
        (*ret_n)->of_job = true;
    return r;
}

static const char *const no_options[] = { NULL };
const struct filter_driver filter_snapshot_access = { "snapshot-access", "file", no_options, view_make };
