/* SPDX-License-Identifier: MIT
 *
 * cmd_throttle.c: block_set_io_throttle, and the threshold of writes (FEATURES 3.075, 9.091, 9.094, 9.098).
 *
 * Purpose      Limits of a device: a throttle filter comes under it, gets others, and goes, while the device is in use.
 * Owns         the groups that block_set_io_throttle has made, which live as long as the graph or until their last member goes
 * Invariants   I1 a group that the command has made without need is gone when the command fails
 *              I2 no pointer to a group is used behind a suspension unless a node that is held is its member: object-del may have come
 * Concurrency  home loop; suspends; the edges of the graph are held, so that the filters are those that were looked at
 * Failure      as ctl_priv.h; a refused change leaves the limits as they were
 * Tests        tests/cli/filter_test.py
 */
#include <string.h>

#include "base/cleanup.h"
#include "ctl/ctl_priv.h"
#include "graph/throttle.h"

/* ---- block_set_io_throttle ---- */

struct throttle_args {
    const char *device, *id, *group;
    uint64_t v[6], max[6], length[6], size;
};
#define UNIT(i, name)                                                                                                 \
    { name, CTL_SIZE, true, .off = offsetof(struct throttle_args, v) + (i) * sizeof(uint64_t), .has_off = SIZE_MAX }, \
    { name "_max", CTL_SIZE, false, .off = offsetof(struct throttle_args, max) + (i) * sizeof(uint64_t), .has_off = SIZE_MAX }, \
    { name "_max_length", CTL_SIZE, false, .off = offsetof(struct throttle_args, length) + (i) * sizeof(uint64_t), .has_off = SIZE_MAX }
static const struct ctl_arg throttle_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct throttle_args, device) },
    { "id", CTL_STR, false, CTL_AT(struct throttle_args, id), .doc = "The device, too." },
    UNIT(THROTTLE_BPS_TOTAL, "bps"), UNIT(THROTTLE_BPS_READ, "bps_rd"), UNIT(THROTTLE_BPS_WRITE, "bps_wr"),
    UNIT(THROTTLE_IOPS_TOTAL, "iops"), UNIT(THROTTLE_IOPS_READ, "iops_rd"), UNIT(THROTTLE_IOPS_WRITE, "iops_wr"),
    { "iops_size", CTL_SIZE, false, CTL_AT(struct throttle_args, size), .doc = "Larger requests count as several." },
    { "group", CTL_STR, false, CTL_AT(struct throttle_args, group), .doc = "Devices of a group share its limits." },
    CTL_ARGS_END
};

static int limits_of(const struct throttle_args *a, struct throttle_limits *l, bool *ret_any, struct byre_err *err)
{
    *l = (struct throttle_limits){ .iops_size = a->size };
    *ret_any = false;
    for (unsigned u = 0; u < THROTTLE_UNITS; u++) {
        if (a->v[u] > UINT64_C(1000000000000000) || a->max[u] > UINT64_C(1000000000000000))
            return byre_fail(err, BAD_ARGUMENT, "a limit is larger than 10^15");
        l->of[u] = (struct throttle_limit){ a->v[u], a->max[u], a->length[u] };
        *ret_any |= a->v[u] || a->max[u];
    }
    return throttle_check(l, err);
}

/* The filter of the device; NULL: it has none. *ret_top: what the device is attached to. */
static struct graph_node *filter_of(struct ctl_call *call, const char *device, struct graph_node **ret_top)
{
    const struct ctl_env *e = &call->c->env;
    *ret_top = NULL;
    for (size_t i = 0; i < e->device_count; i++)
        if (!strcmp(e->devices[i].name, device))
            *ret_top = graph_attached(e->devices[i].node);
    return *ret_top && throttle_of(*ret_top) ? *ret_top : NULL;
}

/* I1, I2 */
static int drop_group(struct graph *g, const char *name, struct byre_err *err)
{
    struct throttle_group *t = throttle_group_find(g, name);
    return t && !throttle_group_in_use(t) && !throttle_group_kept(t) ? throttle_group_free(t, err) : 0;
}

static int leave(struct co *co, struct graph_node *f, struct byre_err *err)
{
    struct graph *g = graph_of(f);
    AUTOFREE char *name = strdup(throttle_group_name(throttle_of(f)));
    if (!name)
        return byre_fail(err, NOMEM, "no memory to take limits away");
    int r = graph_remove_filter(co, f, err);     /* f ends: nobody but its users held it */
    return r ? r : drop_group(g, name, err);
}

static int enter(struct co *co, struct ctl_call *call, struct graph_node *top, const char *group, const struct throttle_limits *l)
{
    struct graph *g = call->c->env.graph;
    struct throttle_group *t = throttle_group_find(g, group);
    struct graph_node *f;
    int r = t ? 0 : throttle_group_new(g, group, l, &t, &call->err);
    if (!r)
        r = throttle_node_new(g, NULL, t, NULL, &f, &call->err);
    if (r)
        return r;
    graph_set_implicit(f);
    r = graph_insert_above(co, top, f, &call->err);
    if (r) {
        (void)graph_close(co, f);
        (void)!drop_group(g, group, NULL);
        return r;
    }
    throttle_group_set(t, l);
    return graph_close(co, f);                   /* its users hold it */
}

/* The filter that is there becomes a member of another group: nothing is refused behind the first step, and no request gets by without limits. */
static int change(struct co *co, struct ctl_call *call, struct graph_node *f, const char *group, const struct throttle_limits *l)
{
    struct graph *g = call->c->env.graph;
    struct throttle_group *t = throttle_group_find(g, group), *was = throttle_of(f);
    int r = t ? 0 : throttle_group_new(g, group, l, &t, &call->err);
    if (r)
        return r;
    throttle_group_hold(t);                      /* I2 */
    throttle_group_hold(was);
    graph_drain_begin(co, f);
    throttle_node_move(f, t);
    throttle_group_set(t, l);
    graph_drain_end(f);
    throttle_group_let(was);
    throttle_group_let(t);
    return 0;
}

static int do_throttle(struct co *co, struct ctl_call *call)
{
    const struct throttle_args *a = call->args;
    struct throttle_limits l;
    struct graph_node *top;
    bool any;
    const char *device = a->device ? a->device : a->id;
    if (!a->device == !a->id)
        return byre_fail(&call->err, BAD_ARGUMENT, "one of 'device' and 'id' must be given, and not both");
    int r = limits_of(a, &l, &any, &call->err);
    if (r)
        return r;
    struct graph_node *f = filter_of(call, device, &top);
    if (!top) {
        call->error_class = "DeviceNotFound";
        return byre_fail(&call->err, NOT_FOUND, "there is no device '%s'", device);
    }
    const char *group = a->group ? a->group : f ? throttle_group_name(throttle_of(f)) : device;
    bool stay = f && any && !strcmp(group, throttle_group_name(throttle_of(f)));
    if (stay) {
        throttle_group_set(throttle_of(f), &l);
        return 0;
    }
    if (f)
        return any ? change(co, call, f, group, &l) : leave(co, f, &call->err);
    return any ? enter(co, call, top, group, &l) : 0;
}

static int run_throttle(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_throttle); }

/* ---- block-set-write-threshold ---- */

struct threshold_args { const char *node_name; uint64_t threshold; };
static const struct ctl_arg threshold_rows[] = {
    { "node-name", CTL_STR, true, CTL_AT(struct threshold_args, node_name) },
    { "write-threshold", CTL_SIZE, true, CTL_AT(struct threshold_args, threshold), .doc = "Bytes from the beginning; 0: none." },
    CTL_ARGS_END
};

static int run_threshold(struct co *co, struct ctl_call *call)
{
    const struct threshold_args *a = call->args;
    struct graph_node *n = ctl_node(call, a->node_name);
    return n ? graph_set_write_threshold(co, n, a->threshold, &call->err) : call->err.code;
}

void ctl_write_threshold(void *arg, const char *named, uint64_t exceeded, uint64_t threshold)
{
    ctl_send_event(arg, "BLOCK_WRITE_THRESHOLD", json_pack("{s:s,s:I,s:I}", "node-name", named, "amount-exceeded", (json_int_t)exceeded,
                                                           "write-threshold", (json_int_t)threshold));
}

const struct ctl_command ctl_cmd_io_throttle = { "block_set_io_throttle", throttle_rows, sizeof(struct throttle_args), run_throttle,
    .doc = "Limits bytes and requests per second of a device from now on. All limits 0: it has none." };
const struct ctl_command ctl_cmd_write_threshold = { "block-set-write-threshold", threshold_rows, sizeof(struct threshold_args), run_threshold,
    .doc = "Asks for one event BLOCK_WRITE_THRESHOLD when a node is written to behind an offset." };
