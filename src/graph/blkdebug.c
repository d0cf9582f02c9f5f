/* SPDX-License-Identifier: MIT
 *
 * blkdebug.c: the filter blkdebug: errors and delays on purpose (FEATURES 3.052).
 *
 * Purpose     Rules say which requests fail, how often and with what, or how long they take.
 * Owns        The rules of a node.
 * Invariants  K1  A rule with "once" applies to one request, whatever loops ask at the same time.
 * Order       None.
 * Concurrency Any loop; a rule is spent by an atomic exchange.
 * Failure     What the rules say.
 * Tests       tests/cli/filter_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/filters.h"

#define RULES_MAX 64u

enum { ON_READ = 1, ON_WRITE = 2, ON_ZERO = 4, ON_DISCARD = 8, ON_FLUSH = 16, ON_ALL = 31 };

struct rule { unsigned on; int error; uint64_t sector, delay_ns; bool has_sector, once; _Atomic bool spent; };
struct rules { unsigned count; struct rule rule[]; };

static int apply(struct co *co, struct graph_node *n, unsigned on, uint64_t off, uint64_t len)
{
    struct rules *all = n->flt_arg;
    for (unsigned i = 0; i < all->count; i++) {
        struct rule *u = &all->rule[i];
        bool here = !u->has_sector || (u->sector >= off / SECTOR && u->sector < div_up(off + len, SECTOR));
        if (!(u->on & on) || !here || (u->once && atomic_exchange(&u->spent, true)))
            continue;
        if (u->delay_ns)
            (void)co_sleep(co, u->delay_ns);     /* cut short when the request's coroutine is cancelled */
        if (u->error)
            return -u->error;
    }
    return 0;
}

static int debug_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    int r = apply(co, n, ON_READ, off, v.len_bytes);
    return r ? r : node_read(co, n->backing, v, off);
}

static int debug_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    int r = apply(co, n, ON_WRITE, off, v.len_bytes);
    return r ? r : node_write(co, n->backing, v, off, flags);
}

static int debug_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    int r = apply(co, n, ON_ZERO, off, len);
    return r ? r : node_zero(co, n->backing, off, len, flags);
}

static int debug_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    int r = apply(co, n, ON_DISCARD, off, len);
    return r ? r : node_discard(co, n->backing, off, len);
}

static int debug_flush(struct co *co, struct graph_node *n)
{
    int r = apply(co, n, ON_FLUSH, 0, UINT64_MAX - SECTOR);
    return r ? r : node_flush(co, n->backing);
}

static void debug_end(struct co *co, struct graph_node *n) { free(n->flt_arg); }

static const struct filter_ops debug_ops = { .name = "blkdebug", .read = debug_read, .write = debug_write, .zero = debug_zero, .discard = debug_discard,
                                             .flush = debug_flush, .free = debug_end };

/* ---- options ---- */

static const struct { const char *name; unsigned on; } kinds[] = {
    { "read", ON_READ }, { "write", ON_WRITE }, { "write-zeroes", ON_ZERO }, { "discard", ON_DISCARD }, { "flush", ON_FLUSH },
}, events[] = {
    { "none", ON_ALL }, { "read_aio", ON_READ }, { "write_aio", ON_WRITE }, { "pwritev", ON_WRITE }, { "pwritev_zero", ON_ZERO }, { "flush_to_disk", ON_FLUSH },
};

/* *on keeps what both allow. */
static int narrow_event(const char *name, unsigned *on, struct byre_err *err)
{
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (!strcmp(events[i].name, name)) {
            *on &= events[i].on;
            return 0;
        }
    return byre_fail(err, NOT_SUPPORTED, "blkdebug: the event '%s' is not supported", name);
}

static int narrow_kind(const char *name, unsigned *on, struct byre_err *err)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kinds[i].name, name)) {
            *on &= kinds[i].on;
            return 0;
        }
    return byre_fail(err, BAD_OPTION, "blkdebug: 'iotype' cannot be '%s'", name);
}

static int take_member(struct rule *u, const char *key, const json_t *v, struct byre_err *err)
{
    const char *s = json_string_value(v);
    bool number = json_is_integer(v);
    if (!strcmp(key, "event") && s)
        return narrow_event(s, &u->on, err);
    if (!strcmp(key, "iotype") && s)
        return narrow_kind(s, &u->on, err);
    if (!strcmp(key, "errno") && number && json_integer_value(v) >= 0 && json_integer_value(v) <= 4095) {
        u->error = (int)json_integer_value(v);
        return 0;
    }
    if (!strcmp(key, "sector") && number && json_integer_value(v) >= -1) {
        u->has_sector = json_integer_value(v) >= 0;
        u->sector = (uint64_t)json_integer_value(v);
        return 0;
    }
    if (!strcmp(key, "x-delay-ns") && number && json_integer_value(v) >= 0) {
        u->delay_ns = (uint64_t)json_integer_value(v);
        return 0;
    }
    if ((!strcmp(key, "once") || !strcmp(key, "immediately")) && json_is_boolean(v)) {
        if (!strcmp(key, "once"))
            u->once = json_is_true(v);
        return 0;
    }
    return byre_fail(err, BAD_OPTION, "blkdebug: 'inject-error': '%s' is not known, or its value is not acceptable", key);
}

static int take_rule(struct rule *u, const json_t *o, struct byre_err *err)
{
    const char *key;
    json_t *v;
    u->on = ON_ALL & ~ON_DISCARD;
    if (json_object_get(o, "iotype"))
        u->on = ON_ALL;
    u->error = json_object_get(o, "x-delay-ns") ? 0 : EIO;
    if (!json_is_string(json_object_get(o, "event")))
        return byre_fail(err, BAD_OPTION, "blkdebug: 'inject-error' needs 'event'");
    json_object_foreach((json_t *)(uintptr_t)o, key, v) {
        int r = take_member(u, key, v, err);
        if (r)
            return r;
    }
    return 0;
}

static int debug_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    const json_t *list = json_object_get(o, "inject-error");
    size_t count = json_array_size(list);
    if (list && !json_is_array(list))
        return byre_fail(err, BAD_OPTION, "blkdebug: 'inject-error' must be a list");
    if (count > RULES_MAX)
        return byre_fail(err, LIMIT, "blkdebug: at most %u rules", RULES_MAX);
    struct rules *all = calloc(1, sizeof *all + count * sizeof all->rule[0]);
    int r = all ? 0 : byre_fail(err, NOMEM, "no memory for a node");
    for (size_t i = 0; i < count && !r; i++, all->count++)
        r = take_rule(&all->rule[i], json_array_get(list, i), err);
    const struct filter_new f = { .ops = &debug_ops, .arg = all, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below };
    if (!r)
        r = filter_new(below->g, &f, ret_n, err);
    if (r)
        free(all);
    return r;
}

static const char *const debug_options[] = { "inject-error", NULL };
const struct filter_driver filter_blkdebug = { "blkdebug", "image", debug_options, debug_make };
