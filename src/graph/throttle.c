/* SPDX-License-Identifier: MIT
 *
 * throttle.c: throttle groups and the filter that belongs to one.
 *
 * Purpose     Leaky buckets, six a group; requests reserve what they need when they arrive and sleep until it is theirs.
 * Owns        The groups of a graph.
 * Invariants  T1  A request that was let through has been counted in every bucket that concerns it.
 *             T2  Whoever drains the graph waits for no bucket, nor does the end, nor who is on his way out (haste.c): those who sleep go on at once.
 *             T3  A change of the limits empties the buckets, and those who sleep count anew.
 *             T4  A group stays while it has members, is held, or a request sleeps in it; one that is nobody's object goes with the last who let it go.
 * Order       None: requests keep their own.
 * Concurrency Any loop takes from the buckets, under a lock that is held for a few sums. Groups change on the home loop.
 * Failure     None in requests.
 * Tests       throttle_test.c, tests/cli/filter_test.py
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/filters.h"
#include "graph/throttle.h"

#define VALUE_MAX UINT64_C(1000000000000000)
#define SLICE_NS UINT64_C(20000000)              /* how long a sleeper may take to notice a drain, haste or other limits */

struct throttle_group {
    struct list_node link;
    struct graph *g;
    char *name;
    unsigned members, held;
    bool kept;
    _Atomic unsigned asleep;                     /* requests; a node that moves to another group leaves some behind */
    pthread_mutex_t lock;
    struct throttle_bucket bucket[THROTTLE_UNITS];      /* guarded by lock, as what follows */
    uint64_t iops_size, at_ns;
    _Atomic unsigned round;                      /* of limits (T3) */
};

/* ---- the sums ---- */

static double leak(double level, double per_second, uint64_t dt_ns)
{
    level -= per_second * (double)dt_ns / 1e9;
    return level > 0 ? level : 0;
}

uint64_t throttle_take(struct throttle_bucket *b, uint64_t dt_ns, uint64_t units)
{
    const struct throttle_limit *l = &b->limit;
    double avg = (double)l->avg, max = (double)l->max, length = l->length > 1 ? (double)l->length : 1;
    if (!l->avg)
        return 0;
    b->level = leak(b->level, avg, dt_ns);
    b->burst = leak(b->burst, max, dt_ns);
    double over = b->level - (l->max ? max * length : avg / 10), wait = over > 0 ? over / avg : 0;
    double burst_over = l->max && length > 1 ? b->burst - max / 10 : 0, burst_wait = burst_over > 0 ? burst_over / max : 0;
    b->level += (double)units;
    b->burst += (double)units;
    double most = wait > burst_wait ? wait : burst_wait;
    return most > 1e8 ? UINT64_C(100000000) * 1000000000 : (uint64_t)(most * 1e9);
}

/* ---- options ---- */

static const char *const unit_name[THROTTLE_UNITS] = { "bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write" };
static const char *const suffix[3] = { "", "-max", "-max-length" };

static uint64_t *field(struct throttle_limit *l, unsigned which)
{
    return which == 0 ? &l->avg : which == 1 ? &l->max : &l->length;
}

static uint64_t *find_field(struct throttle_limits *l, const char *key)
{
    char name[32];
    for (unsigned u = 0; u < THROTTLE_UNITS; u++)
        for (unsigned s = 0; s < 3; s++) {
            snprintf(name, sizeof name, "%s%s", unit_name[u], suffix[s]);
            if (!strcmp(key, name))
                return field(&l->of[u], s);
        }
    return strcmp(key, "iops-size") ? NULL : &l->iops_size;
}

int throttle_option(struct throttle_limits *l, const char *key, const json_t *v, struct byre_err *err)
{
    uint64_t *to = find_field(l, key);
    if (!to)
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > VALUE_MAX)
        return byre_fail(err, BAD_OPTION, "'%s' must be a number from 0 to %" PRIu64, key, VALUE_MAX);
    if (strstr(key, "-max-length") && !json_integer_value(v))
        return byre_fail(err, BAD_OPTION, "'%s' must be at least 1", key);
    *to = (uint64_t)json_integer_value(v);
    return 1;
}

const char *throttle_nth(const struct throttle_limits *l, unsigned i, uint64_t *ret)
{
    static const char *const names[] = { "bps-total", "bps-total-max", "bps-total-max-length", "bps-read", "bps-read-max", "bps-read-max-length", "bps-write",
        "bps-write-max", "bps-write-max-length", "iops-total", "iops-total-max", "iops-total-max-length", "iops-read", "iops-read-max", "iops-read-max-length",
        "iops-write", "iops-write-max", "iops-write-max-length", "iops-size" };
    if (i >= sizeof names / sizeof names[0])
        return NULL;
    *ret = *find_field((struct throttle_limits *)(uintptr_t)l, names[i]);
    if (strstr(names[i], "-length") && !*ret)
        *ret = 1;
    return names[i];
}

static int check_unit(const struct throttle_limits *l, unsigned u, struct byre_err *err)
{
    const struct throttle_limit *x = &l->of[u];
    if (x->max && !x->avg)
        return byre_fail(err, BAD_OPTION, "'%s-max' needs '%s'", unit_name[u], unit_name[u]);
    if (x->max && x->max < x->avg)
        return byre_fail(err, BAD_OPTION, "'%s-max' must not be less than '%s'", unit_name[u], unit_name[u]);
    if (x->length > 1 && !x->max)
        return byre_fail(err, BAD_OPTION, "'%s-max-length' needs '%s-max'", unit_name[u], unit_name[u]);
    if (x->length > 1 && x->max > VALUE_MAX / x->length)
        return byre_fail(err, BAD_OPTION, "'%s-max-length' is too large for this '%s-max'", unit_name[u], unit_name[u]);
    return 0;
}

int throttle_check(const struct throttle_limits *l, struct byre_err *err)
{
    for (unsigned u = 0; u < THROTTLE_UNITS; u += 3) {
        bool total = l->of[u].avg || l->of[u].max, part = l->of[u + 1].avg || l->of[u + 1].max || l->of[u + 2].avg || l->of[u + 2].max;
        if (total && part)
            return byre_fail(err, BAD_OPTION, "'%s' cannot be beside '%s' or '%s'", unit_name[u], unit_name[u + 1], unit_name[u + 2]);
    }
    int r = 0;
    for (unsigned u = 0; u < THROTTLE_UNITS && !r; u++)
        r = check_unit(l, u, err);
    bool iops = l->of[THROTTLE_IOPS_TOTAL].avg || l->of[THROTTLE_IOPS_READ].avg || l->of[THROTTLE_IOPS_WRITE].avg;
    if (!r && l->iops_size && !iops)
        r = byre_fail(err, BAD_OPTION, "'iops-size' needs a limit of requests");
    return r;
}

int throttle_limits_take(const json_t *o, struct throttle_limits *l, struct byre_err *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v) {
        int r = throttle_option(l, key, v, err);
        if (r < 0)
            return r;
        if (!r)
            return byre_fail(err, BAD_OPTION, "a throttle group has no limit '%s'", key);
    }
    return throttle_check(l, err);
}

/* "limits": {...} or "x-iops-total": 7. */
static int take_member(const char *key, const json_t *v, struct throttle_limits *l, struct byre_err *err)
{
    if (!strcmp(key, "qom-type") || !strcmp(key, "id"))
        return 0;
    if (!strcmp(key, "limits"))
        return json_is_object(v) ? throttle_limits_take(v, l, err) : byre_fail(err, BAD_OPTION, "'limits' must be an object");
    int r = strncmp(key, "x-", 2) ? 0 : throttle_option(l, key + 2, v, err);
    return r > 0 ? 0 : r < 0 ? r : byre_fail(err, BAD_OPTION, "throttle-group has no property '%s'", key);
}

int throttle_members(const json_t *o, struct throttle_limits *l, struct byre_err *err)
{
    const char *key;
    json_t *v;
    int r = 0;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
        if (!r)
            r = take_member(key, v, l, err);
    return r;
}

/* ---- groups ---- */

struct throttle_group *throttle_group_find(struct graph *g, const char *name)
{
    LIST_FOR(l, &g->throttles) {
        struct throttle_group *t = CONTAINER_OF(l, struct throttle_group, link);
        if (!strcmp(t->name, name))
            return t;
    }
    return NULL;
}

int throttle_group_new(struct graph *g, const char *name, const struct throttle_limits *l, struct throttle_group **ret_t, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    int r = throttle_check(l, err);
    if (r)
        return r;
    if (throttle_group_find(g, name))
        return byre_fail(err, EXISTS, "there is a throttle group '%s' already", name);
    struct throttle_group *t = calloc(1, sizeof *t);
    if (!t || !(t->name = strdup(name))) {
        free(t);
        return byre_fail(err, NOMEM, "no memory for a throttle group");
    }
    t->g = g;
    pthread_mutex_init(&t->lock, NULL);
    throttle_group_set(t, l);
    list_push_back(&g->throttles, &t->link);
    *ret_t = t;
    return 0;
}

static void group_end(struct throttle_group *t)
{
    list_remove(&t->link);
    pthread_mutex_destroy(&t->lock);
    free(t->name);
    free(t);
}

bool throttle_group_in_use(const struct throttle_group *t) { return t->members || t->held || atomic_load(&t->asleep); }

int throttle_group_free(struct throttle_group *t, struct byre_err *err)
{
    ASSERT_LOOP(t->g->home);
    if (t->members)
        return byre_fail(err, PERMISSION, "throttle group '%s' is in use by %u nodes", t->name, t->members);
    if (throttle_group_in_use(t))
        return byre_fail(err, PERMISSION, "throttle group '%s' is in use", t->name);
    group_end(t);
    return 0;
}

void throttle_group_hold(struct throttle_group *t) { t->held++; }

void throttle_group_let(struct throttle_group *t)
{
    ASSERT_LOOP(t->g->home);
    ASSERT(t->held);
    t->held--;
    if (!t->kept && !throttle_group_in_use(t))
        group_end(t);
}

void throttle_groups_free(struct graph *g)
{
    struct list_node *l;
    while ((l = list_first(&g->throttles))) {
        struct throttle_group *t = CONTAINER_OF(l, struct throttle_group, link);
        ASSERT(!throttle_group_in_use(t));
        group_end(t);
    }
}

struct throttle_group *throttle_group_next(struct graph *g, struct throttle_group *prev)
{
    struct list_node *l = prev ? list_next(&g->throttles, &prev->link) : list_first(&g->throttles);
    return l ? CONTAINER_OF(l, struct throttle_group, link) : NULL;
}

const char *throttle_group_name(const struct throttle_group *t) { return t->name; }
void throttle_group_keep(struct throttle_group *t) { t->kept = true; }
bool throttle_group_kept(const struct throttle_group *t) { return t->kept; }

void throttle_group_set(struct throttle_group *t, const struct throttle_limits *l)
{
    pthread_mutex_lock(&t->lock);
    for (unsigned u = 0; u < THROTTLE_UNITS; u++)
        t->bucket[u] = (struct throttle_bucket){ .limit = l->of[u] };
    t->iops_size = l->iops_size;
    t->at_ns = rt_now(t->g->home);
    atomic_fetch_add(&t->round, 1);              /* T3 */
    pthread_mutex_unlock(&t->lock);
}

void throttle_group_get(struct throttle_group *t, struct throttle_limits *ret)
{
    pthread_mutex_lock(&t->lock);
    for (unsigned u = 0; u < THROTTLE_UNITS; u++)
        ret->of[u] = t->bucket[u].limit;
    ret->iops_size = t->iops_size;
    pthread_mutex_unlock(&t->lock);
}

/* ---- requests ---- */

/* T1. How many ns from `now` on. */
static uint64_t reserve(struct throttle_group *t, uint64_t now, bool is_write, uint64_t bytes, unsigned *ret_round)
{
    pthread_mutex_lock(&t->lock);
    uint64_t dt = now > t->at_ns ? now - t->at_ns : 0, wait = 0;
    uint64_t ops = t->iops_size && bytes > t->iops_size ? div_up(bytes, t->iops_size) : 1;
    t->at_ns = max_u64(now, t->at_ns);
    for (unsigned u = 0; u < THROTTLE_UNITS; u++) {
        unsigned side = u % 3;                   /* total, read, write */
        bool concerned = side == 0 || (side == 2) == is_write;
        uint64_t units = !concerned ? 0 : u < THROTTLE_IOPS_TOTAL ? bytes : ops, w = throttle_take(&t->bucket[u], dt, units);
        wait = concerned ? max_u64(wait, w) : wait;
    }
    *ret_round = atomic_load(&t->round);
    pthread_mutex_unlock(&t->lock);
    return wait;
}

static void sleep_in(struct co *co, const struct graph_node *n, struct throttle_group *t, bool is_write, uint64_t bytes)
{
    for (;;) {
        unsigned round;
        uint64_t now = rt_now(co_loop(co)), until = now + reserve(t, now, is_write, bytes, &round);
        while ((now = rt_now(co_loop(co))) < until && atomic_load(&t->round) == round) {
            if (graph_draining(n) || graph_is_hasty(n)) {        /* T2 */
                co_yield(co);                    /* else one that never waits would keep its loop from those who wait for it */
                return;
            }
            if (co_sleep(co, min_u64(until - now, SLICE_NS)))
                return;
        }
        if (now >= until)
            return;
    }
}

static void wait_turn(struct co *co, struct graph_node *n, bool is_write, uint64_t bytes)
{
    struct throttle_group *t = n->flt_arg;
    atomic_fetch_add(&t->asleep, 1);             /* T4 */
    sleep_in(co, n, t, is_write, bytes);
    atomic_fetch_sub(&t->asleep, 1);
}

static int throttle_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    wait_turn(co, n, false, v.len_bytes);
    return node_read(co, n->backing, v, off);
}

static int throttle_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    wait_turn(co, n, true, v.len_bytes);
    return node_write(co, n->backing, v, off, flags);
}

static int throttle_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    wait_turn(co, n, true, len);
    return node_zero(co, n->backing, off, len, flags);
}

static int throttle_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    wait_turn(co, n, true, len);
    return node_discard(co, n->backing, off, len);
}

static void throttle_end(struct co *co, struct graph_node *n)
{
    struct throttle_group *t = n->flt_arg;
    t->members--;
}

static const struct filter_ops throttle_ops = { .name = "throttle", .read = throttle_read, .write = throttle_write, .zero = throttle_zero, .discard = throttle_discard,
                                                .free = throttle_end };

static int make(struct graph *g, const struct filter_new *f, struct graph_node **ret_n, struct byre_err *err)
{
    struct throttle_group *t = f->arg;
    int r = filter_new(g, f, ret_n, err);
    t->members += r == 0;
    return r;
}

int throttle_node_new(struct graph *g, struct graph_node *below, struct throttle_group *t, const char *node_name, struct graph_node **ret_n, struct byre_err *err)
{
    const struct filter_new f = { .ops = &throttle_ops, .arg = t, .node_name = node_name, .below = below };
    return make(g, &f, ret_n, err);
}

struct throttle_group *throttle_of(const struct graph_node *n)
{
    return n->flt == &throttle_ops ? n->flt_arg : NULL;
}

void throttle_node_move(struct graph_node *n, struct throttle_group *t)
{
    ASSERT(throttle_of(n));
    throttle_of(n)->members--;
    n->flt_arg = t;
    t->members++;
}

static int throttle_make(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    const char *name = json_string_value(json_object_get(o, "throttle-group"));
    if (!name)
        return byre_fail(err, BAD_OPTION, "driver 'throttle' needs 'throttle-group'");
    struct throttle_group *t = throttle_group_find(below->g, name);
    if (!t)
        return byre_fail(err, NOT_FOUND, "there is no throttle group '%s'", name);
    const struct filter_new f = { .ops = &throttle_ops, .arg = t, .node_name = json_string_value(json_object_get(o, "node-name")), .below = below,
                                  .inactive = json_is_false(json_object_get(o, "active")) };
    return make(below->g, &f, ret_n, err);
}

static const char *const throttle_options[] = { "throttle-group", NULL };
const struct filter_driver filter_throttle = { "throttle", "file", throttle_options, throttle_make, true };
