/* SPDX-License-Identifier: MIT
 *
 * recent.c: what has been asked of nodes in the last few seconds (FEATURES 9.096).
 *
 * Purpose     Latencies over intervals that end now; how fast a node has been changed lately.
 * Owns        struct stats_recent of a node.
 * Invariants  C1 to C3 of stats.h. Further: R1  An interval is told by parts, each of a tenth of it: the part that goes on, and the ten before.
 *             R2  A part that is looked at while its loop begins it anew counts as empty; so does a mark.
 * Order       None.
 * Concurrency As stats.h.
 * Failure     Intervals that could not be made leave the old ones as they were.
 * Tests       tests/daemon/events_test.py, request_test.c
 */
#include <inttypes.h>
#include <stdlib.h>

#include "graph/stats_priv.h"

#define PARTS 10u
#define NS_PER_S UINT64_C(1000000000)
#define SECONDS_MAX UINT64_C(31622400)       /* a year */

/* number: of the part of time, from 1 on; 0: empty. */
struct part { _Atomic uint64_t number, count, min_ns, max_ns, sum_ns; };
struct row { struct part part[GRAPH_STATS_OPS][PARTS + 1]; };
struct stats_recent {
    unsigned count, loops;
    uint64_t since_ns, seconds[GRAPH_INTERVALS_MAX];
    struct row rows[];                       /* loops times count */
};

static uint64_t part_ns(const struct stats_recent *r, unsigned i) { return r->seconds[i] * (NS_PER_S / PARTS); }

static uint64_t get(const _Atomic uint64_t *v) { return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)v, memory_order_relaxed); }
static void put(_Atomic uint64_t *to, uint64_t v) { atomic_store_explicit(to, v, memory_order_relaxed); }

/* R2: the number last. */
static void begin_part(struct part *p, uint64_t number)
{
    put(&p->number, 0);
    atomic_thread_fence(memory_order_release);
    put(&p->count, 0);
    put(&p->sum_ns, 0);
    put(&p->max_ns, 0);
    put(&p->min_ns, UINT64_MAX);
    atomic_store_explicit(&p->number, number, memory_order_release);
}

void stats_count_recent(const struct node_stats *s, unsigned loop, const struct stats_done *d, uint64_t now)
{
    struct stats_recent *r = s->recent;
    uint64_t ns = now - d->begun;
    for (unsigned i = 0; r && i < r->count; i++) {
        uint64_t number = now / part_ns(r, i) + 1;
        struct part *p = &r->rows[loop * r->count + i].part[d->op][number % (PARTS + 1)];
        if (get(&p->number) != number)
            begin_part(p, number);
        stats_add(&p->count, 1);
        stats_add(&p->sum_ns, ns);
        put(&p->min_ns, min_u64(get(&p->min_ns), ns));
        put(&p->max_ns, max_u64(get(&p->max_ns), ns));
    }
}

static void add_part(struct graph_recent *to, const struct part *p, uint64_t first, uint64_t last)
{
    uint64_t number = atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)&p->number, memory_order_acquire);
    const struct graph_recent seen = { get(&p->count), get(&p->min_ns), get(&p->max_ns), get(&p->sum_ns) };
    atomic_thread_fence(memory_order_acquire);
    if (number < first || number > last || get(&p->number) != number || !seen.count)
        return;
    to->min_ns = to->count ? min_u64(to->min_ns, seen.min_ns) : seen.min_ns;
    to->max_ns = max_u64(to->max_ns, seen.max_ns);
    to->sum_ns += seen.sum_ns;
    to->count += seen.count;
}

bool graph_interval_get(const struct graph_node *n, unsigned i, uint64_t now_ns, struct graph_interval *ret)
{
    const struct stats_recent *r = n->stats->recent;
    if (!r || i >= r->count)
        return false;
    uint64_t number = now_ns / part_ns(r, i) + 1, first = number > PARTS ? number - PARTS : 1;
    *ret = (struct graph_interval){ .length_s = r->seconds[i], .span_ns = now_ns - max_u64((first - 1) * part_ns(r, i), min_u64(r->since_ns, now_ns)) };
    for (unsigned loop = 0; loop < r->loops; loop++)
        for (unsigned op = 0; op < GRAPH_STATS_OPS; op++)
            for (unsigned k = 0; k <= PARTS; k++)
                add_part(&ret->of[op], &r->rows[loop * r->count + i].part[op][k], first, number);
    return true;
}

static struct stats_recent *recent_new(const struct graph_intervals *v, unsigned loops)
{
    struct stats_recent *r = calloc(1, sizeof *r + (size_t)loops * v->count * sizeof r->rows[0]);
    if (!r)
        return NULL;
    r->count = v->count;
    r->loops = loops;
    for (unsigned i = 0; i < v->count; i++)
        r->seconds[i] = v->seconds[i];
    return r;
}

int graph_intervals_set(struct co *co, struct graph_node *n, const struct graph_intervals *v, struct byre_err *err)
{
    struct node_stats *s = n->stats;
    ASSERT_LOOP(n->g->home);
    if (v->count > GRAPH_INTERVALS_MAX)
        return byre_fail(err, LIMIT, "%u intervals are too many, the most is %u", v->count, GRAPH_INTERVALS_MAX);
    for (unsigned i = 0; i < v->count; i++)
        if (!v->seconds[i] || v->seconds[i] > SECONDS_MAX)
            return byre_fail(err, BAD_ARGUMENT, "an interval has 1 to %" PRIu64 " seconds, number %u has %" PRIu64, SECONDS_MAX, i + 1, v->seconds[i]);
    struct stats_recent *r = v->count ? recent_new(v, s->loops) : NULL;
    if (v->count && !r)
        return byre_fail(err, NOMEM, "no memory for intervals");
    graph_shut_begin(co, n);                    /* C3 */
    if (r)
        r->since_ns = rt_now(n->g->home);
    free(s->recent);
    s->recent = r;
    atomic_fetch_and(&s->closer, ~(unsigned)STATS_RECENT);
    if (r)
        atomic_fetch_or(&s->closer, STATS_RECENT);
    graph_shut_end(n);
    return 0;
}

/* ---- how fast it is changed ---- */

/* R2: the time last. */
void stats_mark(struct stats_slot *slot, uint64_t now)
{
    struct stats_mark *m = &slot->mark[slot->marks++ % STATS_MARKS];
    slot->next_mark_ns = now + NS_PER_S;
    put(&m->ns, 0);
    atomic_thread_fence(memory_order_release);
    put(&m->changed, get(&slot->changed));
    atomic_store_explicit(&m->ns, now, memory_order_release);
}

/* The oldest mark of a slot from `from_ns` on; false: it was not in use since. */
static bool oldest_mark(const struct stats_slot *slot, uint64_t from_ns, struct graph_changes *ret, uint64_t *at_ns)
{
    uint64_t best = UINT64_MAX, changed = 0;
    for (unsigned i = 0; i < STATS_MARKS; i++) {
        const struct stats_mark *m = &slot->mark[i];
        uint64_t ns = atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)&m->ns, memory_order_acquire), seen = get(&m->changed);
        atomic_thread_fence(memory_order_acquire);
        if (!ns || ns < from_ns || ns >= best || get(&m->ns) != ns)
            continue;
        best = ns;
        changed = seen;
    }
    if (best == UINT64_MAX)
        return false;
    ret->bytes += get(&slot->changed) - changed;
    *at_ns = min_u64(*at_ns, best);
    return true;
}

bool graph_changes_get(struct graph_node *n, uint64_t now_ns, struct graph_changes *ret)
{
    uint64_t window = STATS_MARKS * NS_PER_S, at_ns = UINT64_MAX;
    bool any = false;
    *ret = (struct graph_changes){ 0 };
    n = graph_skip_filters(n);
    for (unsigned i = 0; n && i < n->stats->loops; i++)
        any |= oldest_mark(&n->stats->slot[i], now_ns > window ? now_ns - window : 0, ret, &at_ns);
    ret->span_ns = any && now_ns > at_ns ? now_ns - at_ns : 0;
    return ret->span_ns >= NS_PER_S;
}
