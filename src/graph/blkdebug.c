/* SPDX-License-Identifier: MIT
 *
 * blkdebug.c: the filter blkdebug: errors, delays and limits on purpose (FEATURES 3.052, 3.053, 3.054).
 *
 * Purpose     Rules (blkdebug_rules.c) say which requests fail, when and with what, and which stand still. Limits say how requests must look that go on.
 * Owns        The rules of a node; with limits, a store, whose gate (stor.h) makes requests fit: aligned, cut, read-modify-written.
 * Invariants  K2  Rules are asked of what goes on, behind the limits.
 * Order       None.
 * Concurrency Any loop.
 * Failure     What the rules say.
 * Tests       tests/cli/blkdebug_test.py, tests/daemon/under_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "graph/blkdebug.h"

struct debug_limits { uint64_t align, max_transfer, opt_zero, max_zero, opt_discard, max_discard; };
struct debug_node {
    struct stor s;                       /* first. What requests pass when there are limits */
    struct stor_events events;           /* of s: its gate says when it reads, to write what was not asked for */
    struct graph_node *n;
    bool limited;
    struct debug_limits lim;
    struct debug_rules rules;
};

static struct debug_rules *rules_of(const struct graph_node *n) { return &((struct debug_node *)n->flt_arg)->rules; }

static int apply(struct co *co, struct graph_node *n, unsigned on, uint64_t off, uint64_t len) { return debug_rules_apply(co, rules_of(n), on, off, len); }

static void debug_event(struct co *co, struct graph_node *n, enum stor_event_kind what) { debug_rules_event(co, rules_of(n), what); }

static void gate_event(struct co *co, struct stor_events *e, enum stor_event_kind what)
{
    debug_rules_event(co, &CONTAINER_OF(e, struct debug_node, events)->rules, what);
}

/* ---- behind the limits (K2) ---- */

static int read_on(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    int r = apply(co, n, ON_READ, off, v.len_bytes);
    return r ? r : node_read(co, n->backing, v, off);
}

static int write_on(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    debug_event(co, n, STOR_EV_PWRITEV);
    int r = apply(co, n, ON_WRITE, off, v.len_bytes);
    if (!r)
        r = node_write(co, n->backing, v, off, flags);
    debug_event(co, n, STOR_EV_PWRITEV_DONE);
    return r;
}

/* In steps of at most `most` bytes (0: no limit). */
static int in_steps(struct co *co, struct graph_node *n, unsigned on, uint64_t off, uint64_t len, uint64_t most, unsigned flags)
{
    int r = 0;
    for (uint64_t part; len && !r; off += part, len -= part) {
        part = most ? min_u64(len, most - off % most) : len;
        if (on == ON_ZERO)
            debug_event(co, n, STOR_EV_PWRITEV_ZERO);
        r = apply(co, n, on, off, part);
        if (!r)
            r = on == ON_ZERO ? node_zero(co, n->backing, off, part, flags) : node_discard(co, n->backing, off, part);
        if (on == ON_ZERO)
            debug_event(co, n, STOR_EV_PWRITEV_DONE);
    }
    return r;
}

static struct debug_node *of(struct stor *s) { return (struct debug_node *)s; }

/* A block may reach behind the end of the node: zeros are read there, and nothing is written. */
static uint64_t inside(const struct debug_node *d, uint64_t off, uint64_t len)
{
    uint64_t end = graph_length(d->n);
    return off < end ? min_u64(len, end - off) : 0;
}

static int64_t limit_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t len = inside(of(s), off, v.len_bytes);
    int r = len ? read_on(co, of(s)->n, iov_slice(v, 0, len), off) : 0;
    return r ? r : (int64_t)len;
}

static int64_t limit_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    uint64_t len = inside(of(s), off, v.len_bytes);
    int r = len ? write_on(co, of(s)->n, iov_slice(v, 0, len), off, flags & STOR_FUA ? GRAPH_FUA : 0) : 0;
    return r ? r : (int64_t)v.len_bytes;
}

static int limit_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    unsigned how = (flags & STOR_UNMAP ? GRAPH_UNMAP : 0) | (flags & STOR_NO_FALLBACK ? GRAPH_NO_FALLBACK : 0);
    return in_steps(co, of(s)->n, ON_ZERO, off, inside(of(s), off, len), of(s)->lim.max_zero, how);
}

static int limit_flush(struct co *co, struct stor *s)
{
    int r = apply(co, of(s)->n, ON_FLUSH, 0, 0);
    return r ? r : node_flush(co, of(s)->n->backing);
}

static int limit_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = graph_length(of(s)->n);
    return 0;
}

static const struct stor_ops limit_ops = { .name = "blkdebug", .preadv = limit_preadv, .pwritev = limit_pwritev, .flush = limit_flush, .zero = limit_zero,
                                           .length = limit_length };

/* ---- requests ---- */

static int debug_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    struct debug_node *d = n->flt_arg;
    return d->limited ? stor_read(co, &d->s, v, off) : read_on(co, n, v, off);
}

static int debug_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    struct debug_node *d = n->flt_arg;
    if (!d->limited || flags & GRAPH_COMPRESS)         /* whole clusters are what they are */
        return write_on(co, n, v, off, flags);
    int r = stor_write(co, &d->s, v, off, 0);
    return !r && flags & GRAPH_FUA ? limit_flush(co, &d->s) : r;
}

static int debug_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct debug_node *d = n->flt_arg;
    if (!d->limited)
        return in_steps(co, n, ON_ZERO, off, len, 0, flags);
    int r = stor_zero(co, &d->s, off, len, (flags & GRAPH_UNMAP ? STOR_UNMAP : 0) | (flags & GRAPH_NO_FALLBACK ? STOR_NO_FALLBACK : 0));
    return !r && flags & GRAPH_FUA ? limit_flush(co, &d->s) : r;
}

static int debug_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    const struct debug_limits *lim = &((const struct debug_node *)n->flt_arg)->lim;
    uint64_t unit = max_u64(max_u64(lim->opt_discard, lim->align), 1), end = off + len == graph_length(n) ? off + len : round_down(off + len, unit);
    off = round_up(off, unit);
    return off < end ? in_steps(co, n, ON_DISCARD, off, end - off, lim->max_discard, 0) : 0;
}

static int debug_flush(struct co *co, struct graph_node *n)
{
    int r = apply(co, n, ON_FLUSH, 0, 0);
    return r ? r : node_flush(co, n->backing);
}

static int debug_status(struct co *co, struct graph_node *n, uint64_t off, uint64_t len) { return apply(co, n, ON_STATUS, off, len); }

static void debug_node_free(struct debug_node *d)
{
    if (d->limited)
        stor_fini(&d->s);
    debug_rules_fini(&d->rules);
    free(d);
}

static void debug_end(struct co *co, struct graph_node *n) { debug_node_free(n->flt_arg); }

static uint64_t debug_max(const struct graph_node *n) { return ((const struct debug_node *)n->flt_arg)->lim.max_transfer; }

static const struct filter_ops debug_ops = { .name = "blkdebug", .read = debug_read, .write = debug_write, .zero = debug_zero, .discard = debug_discard,
                                             .flush = debug_flush, .status = debug_status, .event = debug_event, .max_transfer = debug_max, .free = debug_end };

/* ---- limits ---- */

/* A multiple of `unit`, below 2 GiB; a power of two when pow2. */
static int take_limit(const json_t *o, const char *key, uint64_t unit, bool pow2, uint64_t *ret, struct byre_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v)
        return 0;
    int r = name_take_size(key, v, ret, err);
    if (!r && (*ret > INT_MAX || *ret % unit || (pow2 && *ret & (*ret - 1))))
        r = byre_fail(err, BAD_OPTION, "Cannot meet constraints with %s %" PRIu64, key, *ret);
    return r;
}

static int take_limits(const json_t *o, struct debug_limits *l, struct byre_err *err)
{
    int r = take_limit(o, "align", 1, true, &l->align, err);
    uint64_t unit = max_u64(l->align, 1);
    if (!r)
        r = take_limit(o, "max-transfer", unit, false, &l->max_transfer, err);
    if (!r)
        r = take_limit(o, "opt-write-zero", unit, false, &l->opt_zero, err);
    if (!r)
        r = take_limit(o, "max-write-zero", max_u64(l->opt_zero, unit), false, &l->max_zero, err);
    if (!r)
        r = take_limit(o, "opt-discard", unit, false, &l->opt_discard, err);
    return r ? r : take_limit(o, "max-discard", max_u64(l->opt_discard, unit), false, &l->max_discard, err);
}

static int make_store(struct debug_node *d, struct byre_err *err)
{
    const struct debug_limits *l = &d->lim;
    if (!l->align && !l->max_transfer && !l->opt_zero && !l->max_zero)
        return 0;
    if (stor_init(&d->s, &limit_ops, "blkdebug"))
        return byre_fail(err, NOMEM, "no memory for a node");
    d->limited = true;
    d->events.raise = gate_event;
    d->s.events = &d->events;
    d->s.lim.block = (uint32_t)max_u64(l->align, 1);
    d->s.lim.max_transfer = l->max_transfer;
    d->s.lim.zero_block = (uint32_t)l->opt_zero;
    return 0;
}

/* ---- permissions ---- */

static int take_perms(const json_t *o, const char *key, unsigned *ret, struct byre_err *err)
{
    static const struct { const char *name; unsigned perm; } words[] = {
        { "consistent-read", STOR_PERM_READ }, { "write", STOR_PERM_WRITE }, { "write-unchanged", STOR_PERM_WRITE_UNCHANGED }, { "resize", STOR_PERM_RESIZE },
    };
    const json_t *list = json_object_get(o, key);
    if (list && !json_is_array(list))
        return byre_fail(err, BAD_OPTION, "blkdebug: '%s' must be a list", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        size_t w = 0;
        while (w < 4 && (!s || strcmp(words[w].name, s)))
            w++;
        if (w == 4)
            return byre_fail(err, BAD_OPTION, "blkdebug: '%s' does not accept value '%s'", key, s ? s : "");
        *ret |= words[w].perm;
    }
    return 0;
}

/* The filter asks for this of what lies below it, whatever others ask of the filter. */
static int claim_perms(struct graph_node *n, unsigned take, unsigned deny, struct byre_err *err)
{
    struct graph_user want = { .who = n->name, .perm = take, .shared = STOR_PERM_ALL & ~deny };
    if (take & (STOR_PERM_WRITE | STOR_PERM_RESIZE) && n->read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only", n->backing->name);
    int r = users_fit(n->backing, &want, &n->backing_use, err);
    if (r)
        return r;
    n->take_perm = take;
    n->deny_perm = deny;
    users_settle(n);
    return 0;
}

/* ---- breakpoints, from outside ---- */

static struct graph_node *find_debug(struct graph_node *n)
{
    while (n && n->flt != &debug_ops)
        n = n->flt ? n->backing : n->file;
    return n;
}

int graph_debug_break(struct graph_node *n, const char *event, const char *tag)
{
    struct graph_node *f = find_debug(n);
    enum stor_event_kind what = debug_event_by_name(event);
    if (!f)
        return -ENOTSUP;
    return what == STOR_EV_COUNT ? -ENOENT : debug_rules_break(rules_of(f), what, tag);
}

int graph_debug_remove(struct graph_node *n, const char *tag)
{
    struct graph_node *f = find_debug(n);
    return f ? debug_rules_unbreak(rules_of(f), tag) : -ENOTSUP;
}

int graph_debug_resume(struct graph_node *n, const char *tag)
{
    struct graph_node *f = find_debug(n);
    return f ? debug_rules_resume(rules_of(f), tag) : -ENOTSUP;
}

int graph_debug_wait(struct co *co, struct graph_node *n, const char *tag)
{
    struct graph_node *f = find_debug(n);
    if (!f)
        return -ENOTSUP;
    graph_ref(f);
    int r = debug_rules_wait(co, rules_of(f), tag), closed = node_unref(co, f);
    return r ? r : closed;
}

/* ---- the whole ---- */

static int take_options(struct co *co, struct debug_node *d, const json_t *o, unsigned *take, unsigned *deny, struct byre_err *err)
{
    int r = debug_rules_take(co, &d->rules, o, err);
    if (!r)
        r = take_limits(o, &d->lim, err);
    if (!r)
        r = take_perms(o, "take-child-perms", take, err);
    if (!r)
        r = take_perms(o, "unshare-child-perms", deny, err);
    return r ? r : make_store(d, err);
}

static struct debug_node *debug_node_new(void)
{
    struct debug_node *d = calloc(1, sizeof *d);
    if (d && debug_rules_init(&d->rules)) {
        free(d);
        return NULL;
    }
    return d;
}

static int debug_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    unsigned take = 0, deny = 0;
    struct debug_node *d = debug_node_new();
    if (!d)
        return byre_fail(err, NOMEM, "no memory for a node");
    int r = take_options(co, d, o, &take, &deny, err);
    const struct filter_new f = { .ops = &debug_ops, .arg = d, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    if (!r)
        r = filter_new(below->g, &f, ret_n, err);
    if (r) {
        debug_node_free(d);
        return r;
    }
    d->n = *ret_n;
    debug_rules_begin(&d->rules);
    r = claim_perms(*ret_n, take, deny, err);
    if (r)
        (void)node_unref(co, *ret_n);
    return r;
}

static const char *const debug_options[] = { "config", "inject-error", "set-state", "align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard",
                                             "take-child-perms", "unshare-child-perms", NULL };
const struct filter_driver filter_blkdebug = { "blkdebug", "image", debug_options, debug_make, true };
