/* SPDX-License-Identifier: MIT
 *
 * cbw.c: the filter copy-before-write: its state, its locks, and the row of filters.c.
 *
 * Purpose     Knows what is copied already, gives locks of ranges to those who copy or read, and stands in the way of changes.
 * Owns        struct cbw, by references: the filter's, those of copies that are left alone, a job's.
 * Invariants  cbw.h B1 to B6 (J4).
 * Order       None.
 * Concurrency cbw.h. Locks are taken and given back on the home loop.
 * Failure     A granule whose copy failed stays todo.
 * Tests       cbw_test.c, tests/daemon/fleece_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graph/cbw_priv.h"

#define BYTES_MAX (UINT64_C(64) << 20)           /* of copies under way, or one copy if that is larger */

/* ---- life ---- */

void cbw_ref(struct cbw *cb) { atomic_fetch_add(&cb->refs, 1); }

void cbw_unref(struct cbw *cb)
{
    if (atomic_fetch_sub(&cb->refs, 1) != 1)
        return;
    dirty_free(cb->todo);
    dirty_free(cb->access);
    free(cb);
}

uint64_t cbw_granule_for(const struct graph_node *target, uint64_t min_granule)
{
    uint64_t cluster = max_u64(target->im->cluster, target->im->encode_bytes);
    return max_u64(max_u64(CBW_GRANULE_MIN, min_granule), cluster);
}

static int new_bits(struct cbw *cb, const struct dirty *only, struct dirty **ret)
{
    int r = dirty_new(cb->size, (unsigned)__builtin_ctzll(cb->granule), NULL, ret);
    if (!r && only)
        dirty_merge(*ret, only);
    else if (!r)
        dirty_set(*ret, 0, cb->size);
    return r;
}

static struct cbw *cbw_new(const struct cbw_opts *o)
{
    struct cbw *cb = calloc(1, sizeof *cb);
    if (!cb)
        return NULL;
    *cb = (struct cbw){ .target = o->target, .home = o->target->g->home, .size = graph_length(o->source), .on_error = o->on_error, .timeout_ns = o->timeout_ns,
                        .granule = cbw_granule_for(o->target, o->min_granule), .compress = o->compress, .zeros_too = o->zeros_too,
                        .refs = 1 };
    if (new_bits(cb, o->only, &cb->todo) || new_bits(cb, o->only, &cb->access)) {
        cbw_unref(cb);
        return NULL;
    }
    return cb;
}

static int check(const struct cbw_opts *o, struct byre_err *err)
{
    uint64_t have = graph_length(o->target), want = graph_length(o->source);
    if (o->source == o->target || (!o->over && graph_goes_to(o->target, o->source)) || graph_goes_to(o->source, o->target))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' and node '%s' lie over one another: what is kept of one cannot go to the other", o->source->name, o->target->name);
    if (have < want)
        return byre_fail(err, BAD_SIZE, "node '%s' has %" PRIu64 " bytes, and node '%s', of which it is to keep what is overwritten, has %" PRIu64, o->target->name,
                         have, o->source->name, want);
    if (o->min_granule && (!is_pow2(o->min_granule) || o->min_granule > CBW_GRANULE_MAX))
        return byre_fail(err, BAD_ARGUMENT, "min-cluster-size %" PRIu64 " is no power of two up to %" PRIu64, o->min_granule, CBW_GRANULE_MAX);
    if (o->only && round_up(o->only->size, SECTOR) != want)
        return byre_fail(err, BAD_ARGUMENT, "the bitmap is of a disk of %" PRIu64 " bytes, node '%s' has %" PRIu64, o->only->size, o->source->name, want);
    if (o->compress && !o->target->im->encode_bytes)
        return byre_fail(err, NOT_SUPPORTED, "%s: this image (%s) cannot hold compressed clusters", o->target->filename, o->target->im->ops->name);
    return 0;
}

uint64_t cbw_granule(const struct cbw *cb) { return cb->granule; }
int cbw_broken(const struct cbw *cb) { return atomic_load(&((struct cbw *)(uintptr_t)cb)->broken); }
bool cbw_broken_by_source(const struct cbw *cb) { return atomic_load(&((struct cbw *)(uintptr_t)cb)->broken_by_source); }
const struct dirty *cbw_todo(const struct cbw *cb) { return cb->todo; }

bool cbw_next(const struct cbw *cb, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    if (from >= cb->size || !dirty_next(cb->todo, from, cb->size, ret_start, ret_end))
        return false;
    *ret_start = round_down(*ret_start, cb->granule);
    *ret_end = min_u64(round_up(*ret_end, cb->granule), cb->size);
    return true;
}

uint64_t cbw_left(const struct cbw *cb) { return min_u64(dirty_count(cb->todo), cb->size); }

void cbw_stop(struct cbw *cb)
{
    ASSERT_LOOP(cb->home);
    atomic_store(&cb->stop, true);
    co_wake_all(&cb->moved);
}

/* ---- locks ---- */

static void give_back(struct rt_msg *m)
{
    struct cbw_hold *h = CONTAINER_OF(m, struct cbw_hold, msg);
    struct cbw *cb = h->cb;
    co_range_unlock(&cb->busy, &h->range);
    cb->bytes -= h->bytes;
    free(h);
    co_wake_all(&cb->moved);
    cbw_unref(cb);
}

void cbw_hold_put(struct cbw_hold *h)
{
    if (--h->refs == 0)
        rt_post(h->cb->home, &h->msg);
}

struct terms { uint64_t until, bytes; bool reads; };

static int lock_range(struct co *co, struct cbw *cb, struct co_range *range, const struct terms *t)
{
    uint64_t start = range->start, end = range->end;
    for (;;) {
        if (!t->reads && atomic_load(&cb->stop))
            return -ECANCELED;
        bool room = !cb->bytes || cb->bytes + t->bytes <= BYTES_MAX;
        if (room && co_range_trylock(&cb->busy, range, start, end))
            break;
        if (!co_wait_slice(co, &cb->moved, t->until, CBW_SLICE_NS))
            return -ETIMEDOUT;
    }
    cb->bytes += t->bytes;
    return 0;
}

static int take_on_home(struct co *co, void *arg)
{
    struct cbw_hold *h = arg;
    return lock_range(co, h->cb, &h->range, &(struct terms){ h->until, h->bytes, h->reads });
}

struct cbw_hold *cbw_hold_take(struct co *co, struct cbw *cb, const struct cbw_hold *what, int *ret_error)
{
    struct cbw_hold *h = malloc(sizeof *h);
    if (!h) {
        *ret_error = -ENOMEM;
        return NULL;
    }
    *h = *what;
    h->cb = cb;
    h->refs = 1;
    h->msg.fn = give_back;
    cbw_ref(cb);
    *ret_error = rt_call(co, cb->home, take_on_home, h);
    if (!*ret_error)
        return h;
    free(h);
    cbw_unref(cb);
    return NULL;
}

/* ---- claims ---- */

int cbw_claim(struct co *co, struct cbw *cb, struct cbw_claim *c, uint64_t off, uint64_t len)
{
    ASSERT_LOOP(cb->home);
    struct graph_node *filter = cb->node;
    graph_ref(filter);                           /* a drain may last until everybody else has left it and it is closed */
    epoch_token t = gate_enter(co, filter);
    *c = (struct cbw_claim){ .cb = cb, .tok = epoch_enter(cb->target->gate, cb->home) };      /* B3: nobody has drained it, for that drains us */
    c->range.start = round_down(off, cb->granule);
    c->range.end = min_u64(round_up(off + len, cb->granule), cb->size);
    int r = lock_range(co, cb, &c->range, &(struct terms){ .until = UINT64_MAX });
    if (!r && atomic_load(&cb->broken)) {
        r = atomic_load(&cb->broken);
        co_range_unlock(&cb->busy, &c->range);
        co_wake_all(&cb->moved);
    }
    gate_leave(co, filter, t);
    if (r)
        epoch_leave(cb->target->gate, cb->home, c->tok);
    (void)node_unref(co, filter);                /* it writes nothing of its own, and who copies holds its target */
    return r;
}

void cbw_claim_end(struct cbw_claim *c, bool copied)
{
    struct cbw *cb = c->cb;
    ASSERT_LOOP(cb->home);
    if (copied && dirty_clear(cb->todo, c->range.start, c->range.end - c->range.start))
        copied = false;                          /* no memory: it is copied once more */
    co_range_unlock(&cb->busy, &c->range);
    co_wake_all(&cb->moved);
    epoch_leave(cb->target->gate, cb->home, c->tok);
}

/* ---- the filter ---- */

static int cbw_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    int r = cbw_before(co, n, off, v.len_bytes);
    return r ? r : node_write(co, n->backing, v, off, flags);
}

static int cbw_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    int r = cbw_before(co, n, off, len);
    return r ? r : node_zero(co, n->backing, off, len, flags);
}

static int cbw_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    const struct graph_node *image = graph_skip_filters(n);
    int r = image->discard ? cbw_before(co, n, off, len) : 0;      /* else nothing changes */
    return r ? r : node_discard(co, n->backing, off, len);
}

static void cbw_end(struct co *co, struct graph_node *n)
{
    struct cbw *cb = n->flt_arg;
    atomic_store(&cb->stop, true);
    cbw_unref(cb);
}

static const struct filter_ops cbw_ops = { .name = "copy-before-write", .write = cbw_write, .zero = cbw_zero, .discard = cbw_discard, .free = cbw_end,
                                           .deny = STOR_PERM_WRITE | STOR_PERM_RESIZE };

/* ---- a target that lies over the source (B6) ---- */

struct graph_node *cbw_over(struct graph_node *target, const struct graph_node *source)
{
    struct graph_node *image = graph_skip_filters(target);
    return image && image->backing == source ? image : NULL;
}

/* Edges are held. `lenient` is what the edge is from now on. */
static void lead_over(struct co *co, struct graph_node *over, struct graph_node *below, bool lenient)
{
    graph_shut_begin(co, over);
    indexes_drop(co, over);
    over->lenient = lenient;
    edge_to_backing(co, over, below);
    graph_shut_end(over);
}

static int slip_below(struct co *co, struct graph_node *f, struct graph_node *over, struct byre_err *err)
{
    struct graph_node *view;
    if (over->frozen)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", over->name);
    int r = cbw_view_below(co, f, &view, err);
    if (r)
        return r;
    lead_over(co, over, view, false);
    over->frozen++;
    (void)node_unref(co, view);                  /* `over` holds it */
    return 0;
}

void graph_cbw_let_over(struct co *co, struct graph_node *f, struct graph_node *over, struct graph_node *source)
{
    ASSERT_LOOP(f->g->home);
    if (!over->backing || over->backing->side != f)
        return;
    graph_edges_hold(co, f->g);
    over->frozen--;
    lead_over(co, over, f->backing ? f->backing : source, true);
    graph_edges_let(co, f->g);
}

struct cbw *graph_cbw(const struct graph_node *n) { return n->flt == &cbw_ops ? n->flt_arg : NULL; }

int graph_cbw_new(struct co *co, const struct cbw_opts *o, struct graph_node *below, struct graph_node **ret_n, struct byre_err *err)
{
    struct graph *g = o->target->g;
    ASSERT_LOOP(g->home);
    int r = check(o, err);
    if (r)
        return r;
    struct cbw *cb = cbw_new(o);
    if (!cb)
        return byre_fail(err, NOMEM, "no memory for what node '%s' has copied", o->node_name ? o->node_name : "copy-before-write");
    const struct filter_new f = { .ops = &cbw_ops, .arg = cb, .node_name = o->node_name, .below = below };
    r = filter_new(g, &f, &cb->node, err);
    if (r) {
        cbw_unref(cb);
        return r;
    }
    const struct graph_user use = { .who = cb->node->name, .perm = STOR_PERM_WRITE, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    struct graph_node *n = cb->node;
    n->of_job = o->of_job;
    r = o->over ? slip_below(co, n, o->over, err) : 0;
    if (!r)
        r = side_set(n, o->target, &use, err);
    if (!r) {
        *ret_n = n;
        return 0;
    }
    if (o->over)
        graph_cbw_let_over(co, n, o->over, o->source);
    (void)node_unref(co, n);                     /* and cb with it; nobody has written to it */
    return r;
}

/* ---- the row ---- */

static int take_bitmap(struct co *co, struct graph *g, const json_t *o, const struct dirty **ret, struct byre_err *err)
{
    const json_t *b = json_object_get(o, "bitmap");
    const char *node = json_string_value(json_object_get(b, "node")), *name = json_string_value(json_object_get(b, "name"));
    struct fmt_bitmap *found;
    *ret = NULL;
    if (!b)
        return 0;
    if (!node || !name)
        return byre_fail(err, BAD_OPTION, "'bitmap' must be an object with 'node' and 'name'");
    struct graph_node *n = graph_find(g, node);
    if (!n)
        return byre_fail(err, NOT_FOUND, "there is no node '%s', of which 'bitmap' speaks", node);
    int r = graph_bitmap_find(co, n, name, &found, err);
    if (!r && !found)
        return byre_fail(err, NOT_FOUND, "node '%s' has no bitmap '%s'", node, name);
    if (!r)
        r = graph_bitmap_load(co, n, found, err);
    *ret = r ? NULL : found->bits;
    return r;
}

static int take_numbers(const json_t *o, struct cbw_opts *c, struct byre_err *err)
{
    const json_t *timeout = json_object_get(o, "cbw-timeout"), *min = json_object_get(o, "min-cluster-size");
    uint64_t seconds = 0;
    int r = timeout ? name_take_size("cbw-timeout", timeout, &seconds, err) : 0;
    if (!r && seconds > UINT32_MAX)
        return byre_fail(err, BAD_OPTION, "'cbw-timeout' is a number of seconds, at most %u", UINT32_MAX);
    c->timeout_ns = seconds * 1000000000;
    return r || !min ? r : name_take_size("min-cluster-size", min, &c->min_granule, err);
}

static int take_policy(const json_t *o, enum cbw_on_error *ret, struct byre_err *err)
{
    const json_t *v = json_object_get(o, "on-cbw-error");
    const char *word = v ? json_string_value(v) : "break-guest-write";
    *ret = word && !strcmp(word, "break-snapshot") ? CBW_BREAK_SNAPSHOT : CBW_BREAK_GUEST_WRITE;
    if (!word || (strcmp(word, "break-snapshot") && strcmp(word, "break-guest-write")))
        return byre_fail(err, BAD_OPTION, "'on-cbw-error' is 'break-guest-write' or 'break-snapshot', not '%s'", word ? word : "something else");
    return 0;
}

/* Edges are held: target and bitmap, which may have to be loaded, stay. */
static int make_held(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct cbw_opts c = { .source = below, .node_name = json_string_value(json_object_get(o, "node-name")) };
    const char *target = json_string_value(json_object_get(o, "target"));
    if (!target)
        return byre_fail(err, BAD_OPTION, "driver 'copy-before-write' needs 'target': a node, or options of one");
    c.target = graph_find(below->g, target);
    if (!c.target)
        return byre_fail(err, NOT_FOUND, "there is no node '%s' that could be 'target'", target);
    int r = take_policy(o, &c.on_error, err);
    if (!r)
        r = take_numbers(o, &c, err);
    if (!r)
        r = take_bitmap(co, below->g, o, &c.only, err);
    return r ? r : graph_cbw_new(co, &c, below, ret_n, err);
}

static int cbw_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct graph *g = below->g;
    graph_edges_hold(co, g);
    int r = make_held(co, below, o, ret_n, err);
    graph_edges_let(co, g);
    return r;
}

static const char *const cbw_options[] = { "target", "bitmap", "on-cbw-error", "cbw-timeout", "min-cluster-size", NULL };
const struct filter_driver filter_cbw = { "copy-before-write", "file", cbw_options, cbw_make };
