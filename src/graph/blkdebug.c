/* SPDX-License-Identifier: MIT
 *
 * blkdebug.c: the filter blkdebug: errors, delays and limits on purpose (FEATURES 3.052, 3.054).
 *
 * Purpose     Rules say which requests fail, how often and with what, or how long they take. Limits say how requests must look that go on.
 * Owns        The rules of a node; with limits, a store, whose gate (stor.h) makes requests fit: aligned, cut, read-modify-written.
 * Invariants  K1  A rule with "once" applies to one request, whatever loops ask at the same time.
 *             K2  Rules are asked of what goes on, behind the limits.
 *             K3  A request is judged by the state in which it finds the node; what it changes holds for those behind it.
 * Order       None.
 * Concurrency Any loop; a rule is spent by an atomic exchange. Of requests at the same time each may see the state before or behind the others.
 * Failure     What the rules say.
 * Tests       tests/cli/filter_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "graph/filters.h"

#define RULES_MAX 64u

enum { ON_READ = 1, ON_WRITE = 2, ON_ZERO = 4, ON_DISCARD = 8, ON_FLUSH = 16, ON_ALL = 31 };

struct rule { unsigned on, state, new_state; int error; uint64_t sector, delay_ns; bool has_sector, once; _Atomic bool spent; };
struct debug_limits { uint64_t align, max_transfer, opt_zero, max_zero, opt_discard, max_discard; };
struct rules {
    struct stor s;                       /* first. What requests pass when there are limits */
    struct graph_node *n;
    bool limited;
    struct debug_limits lim;
    _Atomic unsigned state;              /* 1 at first */
    unsigned count, errors;              /* the first `errors` of them are those of inject-error, the others of set-state */
    struct rule rule[];
};

/* K3. The state that a request finds. */
static unsigned pass_state(struct rules *all, unsigned on)
{
    unsigned found = atomic_load(&all->state);
    for (unsigned i = all->errors; i < all->count; i++)
        if (all->rule[i].on & on && (!all->rule[i].state || all->rule[i].state == found))
            atomic_store(&all->state, all->rule[i].new_state);
    return found;
}

static int apply(struct co *co, struct graph_node *n, unsigned on, uint64_t off, uint64_t len)
{
    struct rules *all = n->flt_arg;
    unsigned state = pass_state(all, on);
    for (unsigned i = 0; i < all->errors; i++) {
        struct rule *u = &all->rule[i];
        bool here = !u->has_sector || (u->sector >= off / SECTOR && u->sector < div_up(off + len, SECTOR));
        if (!(u->on & on) || !here || (u->state && u->state != state) || (u->once && atomic_exchange(&u->spent, true)))
            continue;
        if (u->delay_ns)
            (void)co_sleep(co, u->delay_ns);     /* cut short when the request's coroutine is cancelled */
        if (u->error)
            return -u->error;
    }
    return 0;
}

/* ---- behind the limits (K2) ---- */

static int read_on(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    int r = apply(co, n, ON_READ, off, v.len_bytes);
    return r ? r : node_read(co, n->backing, v, off);
}

static int write_on(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    int r = apply(co, n, ON_WRITE, off, v.len_bytes);
    return r ? r : node_write(co, n->backing, v, off, flags);
}

/* In steps of at most `most` bytes (0: no limit). */
static int in_steps(struct co *co, struct graph_node *n, unsigned on, uint64_t off, uint64_t len, uint64_t most, unsigned flags)
{
    int r = 0;
    for (uint64_t part; len && !r; off += part, len -= part) {
        part = most ? min_u64(len, most - off % most) : len;
        r = apply(co, n, on, off, part);
        if (!r)
            r = on == ON_ZERO ? node_zero(co, n->backing, off, part, flags) : node_discard(co, n->backing, off, part);
    }
    return r;
}

static struct rules *of(struct stor *s) { return (struct rules *)s; }

/* A block may reach behind the end of the node: zeros are read there, and nothing is written. */
static uint64_t inside(const struct rules *all, uint64_t off, uint64_t len)
{
    uint64_t end = graph_length(all->n);
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
    int r = apply(co, of(s)->n, ON_FLUSH, 0, UINT64_MAX - SECTOR);
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
    struct rules *all = n->flt_arg;
    return all->limited ? stor_read(co, &all->s, v, off) : read_on(co, n, v, off);
}

static int debug_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    struct rules *all = n->flt_arg;
    if (!all->limited || flags & GRAPH_COMPRESS)         /* whole clusters are what they are */
        return write_on(co, n, v, off, flags);
    int r = stor_write(co, &all->s, v, off, 0);
    return !r && flags & GRAPH_FUA ? limit_flush(co, &all->s) : r;
}

static int debug_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct rules *all = n->flt_arg;
    if (!all->limited)
        return in_steps(co, n, ON_ZERO, off, len, 0, flags);
    int r = stor_zero(co, &all->s, off, len, (flags & GRAPH_UNMAP ? STOR_UNMAP : 0) | (flags & GRAPH_NO_FALLBACK ? STOR_NO_FALLBACK : 0));
    return !r && flags & GRAPH_FUA ? limit_flush(co, &all->s) : r;
}

static int debug_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    const struct debug_limits *lim = &((const struct rules *)n->flt_arg)->lim;
    uint64_t unit = max_u64(max_u64(lim->opt_discard, lim->align), 1), end = off + len == graph_length(n) ? off + len : round_down(off + len, unit);
    off = round_up(off, unit);
    return off < end ? in_steps(co, n, ON_DISCARD, off, end - off, lim->max_discard, 0) : 0;
}

static int debug_flush(struct co *co, struct graph_node *n)
{
    int r = apply(co, n, ON_FLUSH, 0, UINT64_MAX - SECTOR);
    return r ? r : node_flush(co, n->backing);
}

static void rules_free(struct rules *all)
{
    if (all && all->limited)
        stor_fini(&all->s);
    free(all);
}

static void debug_end(struct co *co, struct graph_node *n) { rules_free(n->flt_arg); }

static uint64_t debug_max(const struct graph_node *n) { return ((const struct rules *)n->flt_arg)->lim.max_transfer; }

static const struct filter_ops debug_ops = { .name = "blkdebug", .read = debug_read, .write = debug_write, .zero = debug_zero, .discard = debug_discard,
                                             .flush = debug_flush, .max_transfer = debug_max, .free = debug_end };

/* ---- options ---- */

static const struct { const char *name; unsigned on; } kinds[] = {
    { "read", ON_READ }, { "write", ON_WRITE }, { "write-zeroes", ON_ZERO }, { "discard", ON_DISCARD }, { "flush", ON_FLUSH },
}, events[] = {
    { "none", ON_ALL }, { "read_aio", ON_READ }, { "write_aio", ON_WRITE }, { "pwritev", ON_WRITE }, { "pwritev_zero", ON_ZERO }, { "flush_to_disk", ON_FLUSH },
    { "flush_to_os", ON_FLUSH },
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
    if (!strcmp(key, "state") && number && json_integer_value(v) >= 0 && json_integer_value(v) <= INT_MAX) {
        u->state = (unsigned)json_integer_value(v);
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

static bool take_number(const json_t *o, const char *key, unsigned *ret)
{
    const json_t *v = json_object_get(o, key);
    bool good = !v || (json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= INT_MAX);
    if (v && good)
        *ret = (unsigned)json_integer_value(v);
    return good;
}

static int take_change(struct rule *u, const json_t *o, struct byre_err *err)
{
    const char *key, *event = json_string_value(json_object_get(o, "event"));
    json_t *v;
    u->on = ON_ALL;
    if (!event || !json_object_get(o, "new_state"))
        return byre_fail(err, BAD_OPTION, "blkdebug: 'set-state' needs 'event' and 'new_state'");
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
        if (strcmp(key, "event") && strcmp(key, "state") && strcmp(key, "new_state"))
            return byre_fail(err, BAD_OPTION, "blkdebug: 'set-state': '%s' is not known", key);
    if (!take_number(o, "state", &u->state) || !take_number(o, "new_state", &u->new_state))
        return byre_fail(err, BAD_OPTION, "blkdebug: 'set-state': a state is a number from 0 to %d", INT_MAX);
    return narrow_event(event, &u->on, err);
}

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

static int make_store(struct rules *all, struct byre_err *err)
{
    const struct debug_limits *l = &all->lim;
    if (!l->align && !l->max_transfer && !l->opt_zero && !l->max_zero)
        return 0;
    if (stor_init(&all->s, &limit_ops, "blkdebug"))
        return byre_fail(err, NOMEM, "no memory for a node");
    all->limited = true;
    all->s.lim.block = (uint32_t)max_u64(l->align, 1);
    all->s.lim.max_transfer = l->max_transfer;
    all->s.lim.zero_block = (uint32_t)l->opt_zero;
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

/* ---- the whole ---- */

static int take_rules(struct rules *all, const json_t *errors, const json_t *changes, struct byre_err *err)
{
    int r = 0;
    for (size_t i = 0; i < json_array_size(errors) && !r; i++, all->errors++)
        r = take_rule(&all->rule[all->count++], json_array_get(errors, i), err);
    for (size_t i = 0; i < json_array_size(changes) && !r; i++)
        r = take_change(&all->rule[all->count++], json_array_get(changes, i), err);
    return r;
}

static int debug_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    const json_t *errors = json_object_get(o, "inject-error"), *changes = json_object_get(o, "set-state");
    size_t count = json_array_size(errors) + json_array_size(changes);
    unsigned take = 0, deny = 0;
    if ((errors && !json_is_array(errors)) || (changes && !json_is_array(changes)))
        return byre_fail(err, BAD_OPTION, "blkdebug: '%s' must be a list", errors && !json_is_array(errors) ? "inject-error" : "set-state");
    if (count > RULES_MAX)
        return byre_fail(err, LIMIT, "blkdebug: at most %u rules", RULES_MAX);
    struct rules *all = calloc(1, sizeof *all + count * sizeof all->rule[0]);
    int r = all ? take_rules(all, errors, changes, err) : byre_fail(err, NOMEM, "no memory for a node");
    if (!r)
        r = take_limits(o, &all->lim, err);
    if (!r)
        r = take_perms(o, "take-child-perms", &take, err);
    if (!r)
        r = take_perms(o, "unshare-child-perms", &deny, err);
    if (!r)
        r = make_store(all, err);
    const struct filter_new f = { .ops = &debug_ops, .arg = all, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    if (!r)
        r = filter_new(below->g, &f, ret_n, err);
    if (r) {
        rules_free(all);
        return r;
    }
    atomic_store(&all->state, 1);
    all->n = *ret_n;
    r = claim_perms(*ret_n, take, deny, err);
    if (r)
        (void)node_unref(co, *ret_n);
    return r;
}

static const char *const debug_options[] = { "inject-error", "set-state", "align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard",
                                             "take-child-perms", "unshare-child-perms", NULL };
const struct filter_driver filter_blkdebug = { "blkdebug", "image", debug_options, debug_make, true };
