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
#include <time.h>

#include "ctl/ctl_priv.h"

/* ---- create ---- */
struct create_args { const char *device, *name; };
static const struct ctl_arg create_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct create_args, device) },
    { "name", CTL_STR, true, CTL_AT(struct create_args, name) },
    CTL_ARGS_END
};

static int run_create(struct co *co, struct ctl_call *call)
{
    const struct create_args *a = call->args;
    struct timespec now = { 0, 0 };
    struct graph_node *n = ctl_named(call, a->device);
    if (!n)
        return call->err.code;
    (void)clock_gettime(CLOCK_REALTIME, &now);       /* fails for unknown clocks only */
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = a->name, .unique = true, .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec };
    return graph_snapshot(co, n, &rq, NULL, &call->err);
}

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
