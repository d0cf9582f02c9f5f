/* SPDX-License-Identifier: MIT
 *
 * cmd_snapshot.c: blockdev-snapshot-internal-sync, blockdev-snapshot-delete-internal-sync (FEATURES 8.013, 9.075).
 *
 * Purpose      Snapshots inside an image while it is served.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop; the node is drained meanwhile
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/nbd/nbd_snapshot_test.py
 */
#include <string.h>
#include <time.h>

#include "ctl/transaction.h"

/* ---- create ---- */
struct create_args { const char *device, *name; };
static const struct ctl_arg create_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct create_args, device) },
    { "name", CTL_STR, true, CTL_AT(struct create_args, name) },
    CTL_ARGS_END
};

const struct ctl_shape ctl_shape_internal = { .name = "BlockdevSnapshotInternal", .rows = create_rows, .bytes = sizeof(struct create_args) };

static int create(struct co *co, struct ctl_call *call, struct graph_node *n, struct fmt_snapshot_info *ret)
{
    const struct create_args *a = call->args;
    struct timespec now = { 0, 0 };
    (void)clock_gettime(CLOCK_REALTIME, &now);       /* fails for unknown clocks only */
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = a->name, .unique = true, .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec };
    return graph_snapshot(co, n, &rq, ret, &call->err);
}

static int run_create(struct co *co, struct ctl_call *call)
{
    const struct create_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->device);
    return n ? create(co, call, n, NULL) : call->err.code;
}

static int open_create(struct co *co, struct ctl_act *t)
{
    const struct create_args *a = t->call.args;
    t->node = ctl_named(&t->call, a->device);
    t->state = ctl_arena_get(&t->call.arena, sizeof(struct fmt_snapshot_info));
    if (!t->node || !t->state)
        return t->node ? byre_fail(&t->call.err, NOMEM, "no memory for a snapshot") : t->call.err.code;
    graph_ref(t->node);
    return 0;
}

static int apply_create(struct co *co, struct ctl_act *t)
{
    int r = ctl_act_same(t, ctl_named(&t->call, ((const struct create_args *)t->call.args)->device));
    return r ? r : create(co, &t->call, t->node, t->state);
}

static void undo_create(struct co *co, struct ctl_act *t)
{
    struct byre_err why = { 0 };
    const struct fmt_snapshot_info *s = t->state;
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_DELETE, .pick = { .id = s->id } };
    if (graph_snapshot(co, t->node, &rq, NULL, &why))
        graph_warn(t->node, "%s: snapshot '%s' could not be taken back: %s", graph_filename(t->node), s->name, why.text);
}

static void end_create(struct co *co, struct ctl_act *t, bool good) { fmt_snapshot_fini(t->state); }
const struct ctl_action ctl_action_internal = { .open = open_create, .apply = apply_create, .undo = undo_create, .end = end_create };

/* ---- delete ---- */
struct delete_args { const char *device, *id, *name; };
static const struct ctl_arg delete_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct delete_args, device) },
    { "id", CTL_STR, false, CTL_AT(struct delete_args, id) },
    { "name", CTL_STR, false, CTL_AT(struct delete_args, name) },
    CTL_ARGS_END
};

static json_t *snapshot_json(const struct fmt_snapshot_info *s)
{
    json_t *o = json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "id", s->id, "name", s->name, "vm-state-size", (json_int_t)s->vm_state_size,
        "date-sec", (json_int_t)s->date_sec, "date-nsec", (json_int_t)s->date_nsec, "vm-clock-sec", (json_int_t)(s->vm_clock_ns / 1000000000u),
        "vm-clock-nsec", (json_int_t)(s->vm_clock_ns % 1000000000u));
    if (o && s->has_icount && json_object_set_new(o, "icount", json_integer((json_int_t)s->icount))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int run_delete(struct co *co, struct ctl_call *call)
{
    const struct delete_args *a = call->args;
    struct fmt_snapshot_info gone = { 0 };
    struct graph_node *n = ctl_named(call, a->device);
    if (!n)
        return call->err.code;
    if (!a->id && !a->name)
        return byre_fail(&call->err, BAD_ARGUMENT, "Name or id must be provided");
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_DELETE, .pick = { .id = a->id, .name = a->name } };
    int r = graph_snapshot(co, n, &rq, &gone, &call->err);
    if (r)
        return r;
    call->ret = snapshot_json(&gone);
    fmt_snapshot_fini(&gone);
    return call->ret ? 0 : byre_fail(&call->err, NOMEM, "the snapshot is deleted, but there is no memory for a reply");
}

const struct ctl_command ctl_cmd_snapshot_create = { "blockdev-snapshot-internal-sync", create_rows, sizeof(struct create_args), run_create,
    .doc = "Keeps the disk as it is at this moment inside its image." };
const struct ctl_command ctl_cmd_snapshot_delete = { "blockdev-snapshot-delete-internal-sync", delete_rows, sizeof(struct delete_args), run_delete,
    .ret = &ctl_ret_any, .doc = "Deletes a snapshot inside an image, and tells what it was." };
