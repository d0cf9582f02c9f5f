/* SPDX-License-Identifier: MIT
 *
 * cmd_stats.c: query-blockstats, block-latency-histogram-set, x-byre-stats-intervals, x-byre-query-export-stats, x-byre-metrics
 * (FEATURES 9.095 to 9.099, 8.011).
 *
 * Purpose      Numbers of nodes and exports, in the words of QMP and as OpenMetrics text.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/cli/stats_test.py, tests/daemon/events_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "export/exports.h"
#include "graph/runtime.h"
#include "graph/cbw.h"
#include "graph/stats.h"
#include "stor/nbd.h"

static const char *const op_prefix[GRAPH_STATS_OPS] = { "rd", "wr", "unmap", "flush" };
static const char *const op_word[GRAPH_STATS_OPS] = { "read", "write", "discard", "flush" };

/* Of a file below an image, where nothing is counted. */
static const char *const none_words[] = {
    "rd_bytes", "wr_bytes", "unmap_bytes", "zone_append_bytes", "rd_operations", "wr_operations", "unmap_operations", "flush_operations", "zone_append_operations",
    "rd_total_time_ns", "wr_total_time_ns", "unmap_total_time_ns", "flush_total_time_ns", "zone_append_total_time_ns", "rd_merged", "wr_merged", "unmap_merged",
    "zone_append_merged", "failed_rd_operations", "failed_wr_operations", "failed_unmap_operations", "failed_flush_operations", "failed_zone_append_operations",
    "invalid_rd_operations", "invalid_wr_operations", "invalid_unmap_operations", "invalid_flush_operations", "invalid_zone_append_operations", "wr_highest_offset",
};

static void set_number(json_t *o, const char *prefix, const char *name, uint64_t v)
{
    char key[64];
    snprintf(key, sizeof key, name[0] == '%' ? "%s%s" : "%s_%s", prefix, name[0] == '%' ? name + 1 : name);
    (void)json_object_set_new(o, key, json_integer((json_int_t)v));      /* a member that is missing shows in the count: object_is_whole */
}

/* ---- the words of QMP ---- */

static json_t *histogram_json(const struct graph_histogram *h)
{
    json_t *limits = json_array(), *bins = json_array();
    bool ok = limits && bins;
    for (unsigned i = 0; ok && i < h->limit_count; i++)
        ok = !json_array_append_new(limits, json_integer((json_int_t)h->limits[i]));
    for (unsigned i = 0; ok && i <= h->limit_count; i++)
        ok = !json_array_append_new(bins, json_integer((json_int_t)h->bins[i]));
    json_t *o = ok ? json_pack("{s:O,s:O}", "boundaries", limits, "bins", bins) : NULL;
    json_decref(limits);
    json_decref(bins);
    return o;
}

static int add_histograms(json_t *o, const struct graph_node *n)
{
    for (unsigned op = 0; op < GRAPH_STATS_OPS; op++) {
        struct graph_histogram h;
        char key[64];
        if (graph_histogram_get(n, op, &h))
            return -ENOMEM;
        if (!h.limit_count)
            continue;
        snprintf(key, sizeof key, "%s_latency_histogram", op_prefix[op]);
        int r = json_object_set_new(o, key, histogram_json(&h));
        free(h.limits);
        free(h.bins);
        if (r)
            return -ENOMEM;
    }
    return 0;
}

/* FEATURES 9.096 */
static json_t *interval_json(const struct graph_interval *v)
{
    static const char *const words[GRAPH_STATS_OPS] = { "rd", "wr", NULL, "flush" };
    json_t *o = json_pack("{s:I,s:i,s:i,s:i,s:f}", "interval_length", (json_int_t)v->length_s, "min_zone_append_latency_ns", 0, "max_zone_append_latency_ns", 0,
                          "avg_zone_append_latency_ns", 0, "avg_zone_append_queue_depth", 0.0);
    for (unsigned op = 0; o && op < GRAPH_STATS_OPS; op++) {
        const struct graph_recent *r = &v->of[op];
        char key[64];
        if (!words[op])
            continue;
        const struct { const char *what; uint64_t ns; } all[] = { { "min", r->min_ns }, { "max", r->max_ns }, { "avg", r->count ? r->sum_ns / r->count : 0 } };
        for (unsigned i = 0; i < 3; i++) {
            snprintf(key, sizeof key, "%s_%s_latency_ns", all[i].what, words[op]);
            (void)json_object_set_new(o, key, json_integer((json_int_t)all[i].ns));      /* counted below */
        }
        snprintf(key, sizeof key, "avg_%s_queue_depth", words[op]);
        if (op != GRAPH_STATS_FLUSH)
            (void)json_object_set_new(o, key, json_real(v->span_ns ? (double)r->sum_ns / (double)v->span_ns : 0.0));
    }
    if (o && json_object_size(o) != 16) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int add_intervals(json_t *o, const struct graph_node *n, uint64_t now)
{
    struct graph_interval v;
    json_t *list = json_array();
    for (unsigned i = 0; list && graph_interval_get(n, i, now, &v); i++)
        if (json_array_append_new(list, interval_json(&v))) {
            json_decref(list);
            return -ENOMEM;
        }
    return json_object_set_new(o, "timed_stats", list) ? -ENOMEM : 0;
}

/* NULL: no memory. */
static json_t *stats_json(struct ctl *c, const struct graph_node *n)
{
    struct graph_stats s;
    graph_stats_get(n, rt_now(c->home), &s);
    json_t *o = json_pack("{s:b,s:b,s:I,s:i,s:i,s:i,s:i,s:i,s:i}", "account_invalid", 0, "account_failed", 1, "wr_highest_offset",
                          (json_int_t)s.highest_write, "zone_append_bytes", 0, "zone_append_operations", 0, "zone_append_merged", 0,
                          "zone_append_total_time_ns", 0, "failed_zone_append_operations", 0, "invalid_zone_append_operations", 0);
    size_t want = o ? json_object_size(o) : 0;
    for (unsigned op = 0; o && op < GRAPH_STATS_OPS; op++) {
        const struct graph_op_stats *p = &s.of[op];
        char failed[32], invalid[32];
        snprintf(failed, sizeof failed, "failed_%s_operations", op_prefix[op]);
        snprintf(invalid, sizeof invalid, "invalid_%s_operations", op_prefix[op]);
        set_number(o, op_prefix[op], "operations", p->done);
        set_number(o, op_prefix[op], "total_time_ns", p->time_ns);
        set_number(o, failed, "%", p->failed);
        set_number(o, invalid, "%", p->invalid);
        want += 4;
        if (op == GRAPH_STATS_FLUSH)
            continue;
        set_number(o, op_prefix[op], "bytes", p->bytes);
        set_number(o, op_prefix[op], "merged", 0);
        want += 2;
    }
    if (o && s.was_used) {
        set_number(o, "idle_time_ns", "%", s.idle_ns);
        want++;
    }
    if (o && json_object_size(o) == want && !add_histograms(o, n) && !add_intervals(o, n, rt_now(c->home)))
        return o;
    json_decref(o);
    return NULL;
}

/* ---- what lies below an image (FEATURES 9.099) ---- */

static int add_driver(json_t *o, const struct stor *s)
{
    const char *driver = stor_is_nbd(s) || !strcmp(s->ops->name, "null") ? NULL : s->traits.regular ? "file" : "host_device";
    json_t *d = driver ? json_pack("{s:s,s:I,s:I,s:I}", "driver", driver, "discard-nb-ok", (json_int_t)atomic_load(&s->discards), "discard-nb-failed",
                                   (json_int_t)atomic_load(&s->failed_discards), "discard-bytes-ok", (json_int_t)atomic_load(&s->discarded_bytes)) : NULL;
    return driver && json_object_set_new(o, "driver-specific", d) ? -ENOMEM : 0;
}

/* The file of an image that is no node of its own: what is asked of it is counted at the image. */
static json_t *file_json(struct graph_node *n)
{
    char name[GRAPH_NAME_MAX + 8];
    json_t *stats = json_object();
    for (unsigned i = 0; stats && i < sizeof none_words / sizeof none_words[0]; i++)
        (void)json_object_set_new(stats, none_words[i], json_integer(0));                    /* counted below */
    if (graph_file_node_name(n))
        snprintf(name, sizeof name, "%s", graph_file_node_name(n));
    else
        snprintf(name, sizeof name, "%s-file", graph_node_name(n));
    if (stats && json_object_size(stats) != sizeof none_words / sizeof none_words[0]) {
        json_decref(stats);
        return NULL;
    }
    json_t *o = stats ? json_pack("{s:s,s:o}", "node-name", name, "stats", stats) : NULL;
    if (o && (json_object_set_new(stats, "account_invalid", json_false()) || json_object_set_new(stats, "account_failed", json_false()) ||
              json_object_set_new(stats, "timed_stats", json_array()) || add_driver(o, graph_store(n)))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *node_json(struct ctl *c, struct graph_node *n)
{
    json_t *stats = stats_json(c, n);
    json_t *o = stats ? json_pack("{s:s,s:o}", "node-name", graph_node_name(n), "stats", stats) : NULL;
    if (o && graph_is_bare_file(n) && add_driver(o, graph_store(n))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* Puts what n reads from into its description; takes `parent` over. */
static json_t *with_parent(json_t *o, json_t *parent)
{
    if (o && json_object_set_new(o, "parent", parent) == 0)
        return o;
    json_decref(o ? o : parent);
    return NULL;
}

/* With the file of an image, if it has one. */
static json_t *image_json(struct ctl *c, struct graph_node *n)
{
    json_t *o = node_json(c, n);
    if (!o || graph_is_bare_file(n) || graph_is_filter(n) || graph_is_snapshot_access(n))
        return o;
    return with_parent(o, graph_file(n) ? node_json(c, graph_file(n)) : file_json(n));
}

static struct graph_node *filters_down(struct graph_node *n, unsigned count)
{
    for (; n && count; count--)
        n = graph_is_filter(n) ? graph_backing(n) : NULL;
    return n;
}

/* The same, and below a filter what it filters: from the bottom up, since each holds the one below. */
static json_t *filtered_json(struct ctl *c, struct graph_node *top)
{
    unsigned depth = 0;
    while (filters_down(top, depth + 1))
        depth++;
    json_t *below = image_json(c, filters_down(top, depth));
    while (below && depth--)
        below = with_parent(node_json(c, filters_down(top, depth)), below);
    return below;
}

/* With what lies below it: from the bottom up, since each holds the one below. */
static json_t *chain_json(struct ctl *c, struct graph_node *top)
{
    unsigned depth = 0;
    json_t *below = NULL;
    for (struct graph_node *n = top; n; n = graph_backing(n))
        depth++;
    for (; depth; depth--) {
        struct graph_node *n = top;
        for (unsigned i = 1; i < depth; i++)
            n = graph_backing(n);
        json_t *o = image_json(c, n);
        if (o && below && json_object_set(o, "backing", below)) {
            json_decref(o);
            o = NULL;
        }
        json_decref(below);
        below = o;
        if (!o)
            return NULL;
    }
    return below;
}

struct query_args { bool query_nodes; };
static const struct ctl_arg query_rows[] = {
    { "query-nodes", CTL_BOOL, false, CTL_AT(struct query_args, query_nodes), .doc = "All nodes, each by itself, instead of devices with what lies below them." },
    CTL_ARGS_END
};

static int run_query(struct co *co, struct ctl_call *call)
{
    const struct query_args *a = call->args;
    const struct ctl_env *e = &call->c->env;
    call->ret = json_array();
    if (!call->ret)
        return ctl_no_memory(call);
    for (struct graph_node *n = a->query_nodes ? graph_next(e->graph, NULL) : NULL; n; n = graph_next(e->graph, n))
        if (json_array_append_new(call->ret, filtered_json(call->c, n)))
            return ctl_no_memory(call);
    for (size_t i = 0; !a->query_nodes && i < e->device_count; i++) {
        json_t *o = chain_json(call->c, graph_skip_implicit(graph_attached(e->devices[i].node)));
        if (!o || json_object_set_new(o, "device", json_string(e->devices[i].name)) || json_array_append(call->ret, o)) {
            json_decref(o);
            return ctl_no_memory(call);
        }
        json_decref(o);
    }
    return 0;
}

static int run_exports(struct co *co, struct ctl_call *call)
{
    struct exports *x = call->c->env.exports;
    call->ret = json_array();
    for (struct export *e = x && call->ret ? exports_next(x, NULL) : NULL; e; e = exports_next(x, e)) {
        json_t *stats = stats_json(call->c, e->node);
        json_t *o = stats ? json_pack("{s:s,s:s,s:o}", "id", e->id, "node-name", graph_attached_name(e->node), "stats", stats) : NULL;
        if (json_array_append_new(call->ret, o))
            return ctl_no_memory(call);
    }
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- histograms ---- */

struct histogram_args { const char *id; struct ctl_list all, read, write, flush, unmap; bool has_all, has_read, has_write, has_flush, has_unmap; };
#define LIMITS(name, field, text) { name, CTL_SIZE, false, .off = offsetof(struct histogram_args, field), .has_off = offsetof(struct histogram_args, has_##field), \
                                    .list = true, .doc = text }
static const struct ctl_arg histogram_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct histogram_args, id), .doc = "A device, a node or an export." },
    LIMITS("boundaries", all, "Of all kinds of requests: ns, each greater than the one before."),
    LIMITS("boundaries-read", read, "Of reads; instead of 'boundaries'."),
    LIMITS("boundaries-write", write, "Of writes."),
    LIMITS("boundaries-flush", flush, "Of flushes."),
    LIMITS("boundaries-unmap", unmap, "Of discards."),
    CTL_ARGS_END
};

/* Kept as long as the call: who removes the export meanwhile does not free it. */
static struct graph_node *find_counted(struct ctl_call *call, const char *id)
{
    struct export *e = call->c->env.exports ? exports_find(call->c->env.exports, id) : NULL;
    struct graph_node *n = e ? e->node : ctl_named(call, id);
    if (n && !e)
        n = graph_skip_implicit(graph_attached(n));
    return ctl_keep(call, n) ? NULL : n;
}

static int set_limits(struct co *co, struct ctl_call *call, const char *id, enum graph_stats_op op, const struct ctl_list *l)
{
    struct graph_node *n = find_counted(call, id);       /* time passes between two of them */
    const struct graph_limits limits = { l->items, (unsigned)l->count };
    return n ? graph_histogram_set(co, n, op, &limits, &call->err) : call->err.code;
}

static int run_histogram(struct co *co, struct ctl_call *call)
{
    const struct histogram_args *a = call->args;
    const struct ctl_list *one[GRAPH_STATS_OPS] = { a->has_read ? &a->read : NULL, a->has_write ? &a->write : NULL, a->has_unmap ? &a->unmap : NULL,
                                                    a->has_flush ? &a->flush : NULL };
    static const struct ctl_list none;
    bool any = a->has_all;
    int r = 0;
    for (unsigned op = 0; op < GRAPH_STATS_OPS; op++) {
        any |= one[op] != NULL;
        const struct ctl_list *l = one[op] ? one[op] : a->has_all ? &a->all : NULL;
        for (size_t i = 0; l && i < l->count && !r; i++)         /* nothing is changed when one of them will not do */
            if (((const uint64_t *)l->items)[i] <= (i ? ((const uint64_t *)l->items)[i - 1] : 0))
                r = byre_fail(&call->err, BAD_ARGUMENT, "boundaries rise strictly, and the first is not 0; those of '%s' do not", op_word[op]);
    }
    for (unsigned op = 0; op < GRAPH_STATS_OPS && !r; op++) {
        if (one[op] || a->has_all)
            r = set_limits(co, call, a->id, op, one[op] ? one[op] : &a->all);
        else if (!any)
            r = set_limits(co, call, a->id, op, &none);
    }
    return r;
}

/* ---- intervals ---- */

struct interval_args { const char *id; struct ctl_list intervals; };
static const struct ctl_arg interval_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct interval_args, id), .doc = "A device, a node or an export." },
    { "intervals", CTL_SIZE, true, CTL_AT(struct interval_args, intervals), .list = true, .doc = "Seconds each, at most 8 of them; an empty list: none." },
    CTL_ARGS_END
};

static int run_intervals(struct co *co, struct ctl_call *call)
{
    const struct interval_args *a = call->args;
    struct graph_node *n = find_counted(call, a->id);
    if (!n)
        return call->err.code;
    const struct graph_intervals v = { a->intervals.items, a->intervals.count > UINT32_MAX ? UINT32_MAX : (unsigned)a->intervals.count };
    return graph_intervals_set(co, n, &v, &call->err);
}

/* ---- OpenMetrics ---- */

struct family { const char *name, *unit, *help; };

static void put_label(FILE *f, const char *s)
{
    for (; *s; s++)
        if (*s == '\\' || *s == '"')
            fprintf(f, "\\%c", *s);
        else if (*s == '\n')
            fputs("\\n", f);
        else
            fputc(*s, f);
}

static void put_labels(FILE *f, const char *kind, const char *id, const char *op)
{
    fprintf(f, "{%s=\"", kind);
    put_label(f, id);
    fputs("\"", f);
    if (op)
        fprintf(f, ",op=\"%s\"", op);
}

enum metric { M_BYTES, M_REQUESTS, M_FAILED, M_INVALID, M_SECONDS, M_HIGHEST, M_LATENCY, METRICS };
static const struct { const char *name, *type, *unit, *help; } metrics[METRICS] = {
    [M_BYTES] = { "bytes", "counter", "bytes", "Bytes of requests that succeeded." },
    [M_REQUESTS] = { "requests", "counter", NULL, "Requests that succeeded." },
    [M_FAILED] = { "failed_requests", "counter", NULL, "Requests that failed." },
    [M_INVALID] = { "invalid_requests", "counter", NULL, "Requests that were refused as out of range or not allowed." },
    [M_SECONDS] = { "request_seconds", "counter", "seconds", "Time that requests took, added up." },
    [M_HIGHEST] = { "highest_write_bytes", "gauge", "bytes", "End of the write that went farthest." },
    [M_LATENCY] = { "latency_seconds", "histogram", "seconds", "How many requests took how long." },
};

static void put_count(FILE *f, enum metric m, const char *kind, const char *id, unsigned op, const struct graph_op_stats *p)
{
    const uint64_t v[] = { [M_BYTES] = p->bytes, [M_REQUESTS] = p->done, [M_FAILED] = p->failed, [M_INVALID] = p->invalid };
    fprintf(f, "byre_%s_%s_total", kind, metrics[m].name);
    put_labels(f, kind, id, op_word[op]);
    if (m == M_SECONDS)
        fprintf(f, "} %" PRIu64 ".%09" PRIu64 "\n", p->time_ns / 1000000000u, p->time_ns % 1000000000u);
    else
        fprintf(f, "} %" PRIu64 "\n", v[m]);
}

static int put_histogram(FILE *f, const char *kind, const char *id, unsigned op, const struct graph_node *n)
{
    struct graph_histogram h;
    uint64_t sum = 0;
    if (graph_histogram_get(n, op, &h))
        return -ENOMEM;
    for (unsigned i = 0; h.limit_count && i <= h.limit_count; i++) {
        sum += h.bins[i];
        fprintf(f, "byre_%s_latency_seconds_bucket", kind);
        put_labels(f, kind, id, op_word[op]);
        if (i < h.limit_count)
            fprintf(f, ",le=\"%" PRIu64 ".%09" PRIu64 "\"} %" PRIu64 "\n", h.limits[i] / 1000000000u, h.limits[i] % 1000000000u, sum);
        else
            fprintf(f, ",le=\"+Inf\"} %" PRIu64 "\n", sum);
    }
    if (h.limit_count) {
        fprintf(f, "byre_%s_latency_seconds_count", kind);
        put_labels(f, kind, id, op_word[op]);
        fprintf(f, "} %" PRIu64 "\n", sum);
    }
    free(h.limits);
    free(h.bins);
    return 0;
}

static int put_metric(FILE *f, struct ctl *c, enum metric m, const char *kind, const char *id, const struct graph_node *n)
{
    struct graph_stats s;
    int r = 0;
    graph_stats_get(n, rt_now(c->home), &s);
    if (m == M_HIGHEST) {
        fprintf(f, "byre_%s_%s", kind, metrics[m].name);
        put_labels(f, kind, id, NULL);
        fprintf(f, "} %" PRIu64 "\n", s.highest_write);
        return 0;
    }
    for (unsigned op = 0; op < GRAPH_STATS_OPS && !r; op++)
        if (m == M_LATENCY)
            r = put_histogram(f, kind, id, op, n);
        else
            put_count(f, m, kind, id, op, &s.of[op]);
    return r;
}

static int put_metrics(FILE *f, struct ctl *c, const char *kind, bool nodes)
{
    struct exports *x = c->env.exports;
    int r = 0;
    for (enum metric m = 0; m < METRICS && !r; m++) {
        fprintf(f, "# TYPE byre_%s_%s %s\n", kind, metrics[m].name, metrics[m].type);
        if (metrics[m].unit)
            fprintf(f, "# UNIT byre_%s_%s %s\n", kind, metrics[m].name, metrics[m].unit);
        fprintf(f, "# HELP byre_%s_%s %s\n", kind, metrics[m].name, metrics[m].help);
        for (struct graph_node *n = nodes ? graph_next(c->env.graph, NULL) : NULL; n && !r; n = graph_next(c->env.graph, n))
            r = put_metric(f, c, m, kind, graph_node_name(n), n);
        for (struct export *e = nodes || !x ? NULL : exports_next(x, NULL); e && !r; e = exports_next(x, e))
            r = put_metric(f, c, m, kind, e->id, e->node);
    }
    return r;
}

static int run_metrics(struct co *co, struct ctl_call *call)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    int r = !f || put_metrics(f, call->c, "node", true) || put_metrics(f, call->c, "export", false) || fputs("# EOF\n", f) < 0 ? -ENOMEM : 0;
    if (f && fclose(f))
        r = -ENOMEM;
    call->ret = r ? NULL : json_pack("{s:s#}", "text", text, len);
    free(text);
    return call->ret ? 0 : ctl_no_memory(call);
}

static const struct ctl_arg text_rows[] = { { "text", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape text_shape = { .name = "ByreMetrics", .rows = text_rows };
static const struct ctl_arg ret_metrics = { "metrics", CTL_STRUCT, true, CTL_AT_NONE, .of = &text_shape };

const struct ctl_command ctl_cmd_stats_intervals = { "x-byre-stats-intervals", interval_rows, sizeof(struct interval_args), run_intervals,
    .doc = "Says over which intervals query-blockstats tells the latencies of the last seconds, as timed_stats." };
const struct ctl_command ctl_cmd_query_blockstats = { "query-blockstats", query_rows, sizeof(struct query_args), run_query, .ret = &ctl_ret_any,
    .doc = "Tells what has been asked of images by all who use them, and how long it took. Zeros are writes; times are those of the turns of the loops." };
const struct ctl_command ctl_cmd_x_byre_export_stats = { "x-byre-query-export-stats", NULL, 0, run_exports, .ret = &ctl_ret_any,
    .doc = "Tells the same of exports." };
const struct ctl_command ctl_cmd_latency_histogram = { "block-latency-histogram-set", histogram_rows, sizeof(struct histogram_args), run_histogram,
    .doc = "Counts from now on how many requests take how long; query-blockstats tells. Without boundaries: no more." };
const struct ctl_command ctl_cmd_x_byre_metrics = { "x-byre-metrics", NULL, 0, run_metrics, .ret = &ret_metrics,
    .doc = "Gives the numbers of nodes and exports as OpenMetrics text." };
