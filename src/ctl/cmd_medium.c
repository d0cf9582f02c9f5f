/* SPDX-License-Identifier: MIT
 *
 * cmd_medium.c: blockdev-open-tray, blockdev-close-tray, blockdev-insert-medium, blockdev-remove-medium, blockdev-change-medium, eject, and the event
 * DEVICE_TRAY_MOVED (FEATURES G.051).
 *
 * Purpose      The words that system emulators have for drives, of what is a drive here: an export that was added as removable. Another node comes
 *              under its id while clients stay connected.
 * Owns         of an export whose tray is open: a reference of the medium in it
 * Invariants   M1  With an open tray, or without a medium, an export leads to a node that answers nothing (ENOMEDIUM) and is as long as the last medium.
 *              M2  Clients that are connected never see another length: NBD has no way to tell them. The change is refused instead.
 *              M3  The medium that goes is durable before it goes.
 *              M4  What fails leaves the drive as it was, but blockdev-change-medium and eject, which are several steps: the tray may stay open.
 * Concurrency  home loop; each command holds the edges, and keeps the export
 * Failure      as ctl_priv.h; DeviceNotFound for names of nothing
 * Tests        tests/daemon/medium_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "export/exports.h"
#include "graph/blockdev.h"

enum { RETAIN, READ_ONLY, READ_WRITE };
static const char *const mode_words[] = { [RETAIN] = "retain", [READ_ONLY] = "read-only", [READ_WRITE] = "read-write", NULL };
static const struct ctl_shape mode_shape = { .name = "BlockdevChangeReadOnlyMode", .words = mode_words };

/* Of all these commands. */
struct medium_args { const char *device, *id, *node_name, *filename, *format; bool force; int mode; };
#define DRIVE_ROWS                                                                                                               \
    { "device", CTL_STR, false, CTL_AT(struct medium_args, device), .doc = "The export: the older name of this argument." },     \
    { "id", CTL_STR, false, CTL_AT(struct medium_args, id), .doc = "The export." }
#define FORCE_ROW { "force", CTL_BOOL, false, CTL_AT(struct medium_args, force), .doc = "Changes nothing: no client can lock a tray." }
static const struct ctl_arg force_rows[] = { DRIVE_ROWS, FORCE_ROW, CTL_ARGS_END };
static const struct ctl_arg close_rows[] = { DRIVE_ROWS, CTL_ARGS_END };
static const struct ctl_arg remove_rows[] = { { "id", CTL_STR, true, CTL_AT(struct medium_args, id), .doc = "The export." }, CTL_ARGS_END };
static const struct ctl_arg insert_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct medium_args, id), .doc = "The export." }, { "node-name", CTL_STR, true, CTL_AT(struct medium_args, node_name) }, CTL_ARGS_END
};
static const struct ctl_arg change_rows[] = {
    DRIVE_ROWS, FORCE_ROW,
    { "filename", CTL_STR, true, CTL_AT(struct medium_args, filename) },
    { "format", CTL_STR, false, CTL_AT(struct medium_args, format), .doc = "Found out when it is not given; a disk that is to be written and seems to be raw is refused then." },
    { "read-only-mode", CTL_ENUM, false, CTL_AT(struct medium_args, mode), .of = &mode_shape, .doc = "retain: as the export is, when it is not given." },
    CTL_ARGS_END
};

static struct export *find(struct ctl_call *call)
{
    const struct medium_args *a = call->args;
    struct exports *x = call->c->env.exports;
    const char *name = a->id ? a->id : a->device;
    if (!name || (a->id && a->device)) {
        (void)byre_fail(&call->err, BAD_ARGUMENT, "one of 'device' and 'id' is needed");
        return NULL;
    }
    struct export *e = x ? exports_find(x, name) : NULL;
    if (!e) {
        call->error_class = "DeviceNotFound";
        (void)byre_fail(&call->err, NOT_FOUND, "Device '%s' not found", name);
    } else if (!e->removable) {
        (void)byre_fail(&call->err, NOT_SUPPORTED, "Device '%s' is not removable: it was not added with x-byre-removable", name);
        e = NULL;
    }
    return e;
}

/* ---- what the export leads to ---- */

/* M1. Flushes succeed: there is nothing that they could lose. The caller disowns it once it is in use. */
static int make_empty(struct co *co, struct ctl_call *call, uint64_t length, struct graph_node **ret_n)
{
    static const char *const types[] = { "read", "write", "write-zeroes", "discard", "block-status" };
    json_t *rules = json_array(), *o = json_pack("{s:s,s:o,s:{s:s,s:I}}", "driver", "blkdebug", "inject-error", rules, "image", "driver", "null-co", "size", (json_int_t)length);
    bool made = o;
    for (size_t i = 0; made && i < sizeof types / sizeof types[0]; i++)
        made = !json_array_append_new(rules, json_pack("{s:s,s:s,s:i}", "event", "none", "iotype", types[i], "errno", ENOMEDIUM));
    int r = made ? graph_blockdev_add(co, call->c->env.graph, o, ret_n, &call->err) : ctl_no_memory(call);
    json_decref(o);
    return r;
}

static int empty_it(struct co *co, struct ctl_call *call, struct export *e)
{
    struct graph_node *n;
    int r = make_empty(co, call, graph_length(e->node), &n);
    if (r)
        return r;
    r = graph_attach_to(co, e->node, n, &call->err);
    if (!r)
        return graph_blockdev_disown(co, n);
    (void)!graph_blockdev_del(co, n, NULL);      /* nobody has it */
    return r;
}

/* Could this node be the medium? M2. */
static int check_fits(const struct ctl_call *call, const struct export *e, const struct graph_node *n, struct byre_err *err)
{
    unsigned clients = nbd_export_users(e->nbd);
    uint64_t now = graph_length(e->node), then = graph_length(n);
    ASSERT(call->c->env.graph == graph_of(n));
    if (e->bitmap_count)
        return byre_fail(err, PERMISSION, "export '%s' offers bitmaps of its medium, and cannot get another one", e->id);
    if (!graph_is_active(n))
        return byre_fail(err, PERMISSION, "node '%s' is inactive", graph_node_name(n));
    if (e->writable && graph_meant_read_only(n))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and export '%s' is writable", graph_node_name(n), e->id);
    if (clients && now != then)
        return byre_fail(err, BAD_SIZE, "node '%s' has %" PRIu64 " bytes, and export '%s' has %u clients who were told %" PRIu64 ": NBD cannot tell them another size", graph_node_name(n),
                         then, e->id, clients, now);
    return 0;
}

/* ---- the steps ---- */

static void tell_moved(struct ctl_call *call, const struct export *e)
{
    ctl_send_event(call->c, "DEVICE_TRAY_MOVED", json_pack("{s:s,s:s,s:b}", "device", "", "id", e->id, "tray-open", e->tray_open));
}

static int open_tray(struct co *co, struct ctl_call *call, struct export *e)
{
    if (e->tray_open)
        return 0;
    struct graph_node *medium = e->no_medium ? NULL : graph_attached(e->node);
    if (medium)
        graph_ref(medium);
    int r = medium ? empty_it(co, call, e) : 0;
    if (r) {
        (void)!graph_close(co, medium);          /* the export has it still */
        return r;
    }
    if (medium && e->writable)
        graph_writer_gone(co, medium);
    e->medium = medium;
    e->no_medium = e->tray_open = true;
    tell_moved(call, e);
    return 0;
}

static int lead_back(struct co *co, struct ctl_call *call, struct export *e)
{
    struct graph_node *n = e->medium;
    int r = check_fits(call, e, n, &call->err);
    if (!r && e->writable)
        r = graph_writer_comes(co, n, &call->err);
    if (r)
        return r;
    r = graph_attach_to(co, e->node, n, &call->err);
    if (r) {
        graph_writer_gone(co, n);
        return r;
    }
    e->medium = NULL;
    e->no_medium = false;
    (void)!graph_close(co, n);                   /* the export has one of its own now */
    return 0;
}

static int close_tray(struct co *co, struct ctl_call *call, struct export *e)
{
    int r = e->tray_open && e->medium ? lead_back(co, call, e) : 0;
    if (r || !e->tray_open)
        return r;
    e->tray_open = false;
    tell_moved(call, e);
    return 0;
}

static int need_open(struct ctl_call *call, const struct export *e)
{
    return e->tray_open ? 0 : byre_fail(&call->err, PERMISSION, "Tray of device '%s' is not open", e->id);
}

static int remove_medium(struct co *co, struct ctl_call *call, struct export *e)
{
    struct graph_node *n = e->medium;
    int r = need_open(call, e);
    e->medium = r ? n : NULL;
    if (r || !n)
        return r;
    r = graph_close(co, n);
    return r ? byre_fail_code(&call->err, IO, r, "the medium of '%s' was closed with an error: not everything that was written may be on the disk", e->id) : 0;
}

static int insert_medium(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n)
{
    int r = need_open(call, e);
    if (!r && e->medium)
        r = byre_fail(&call->err, EXISTS, "There already is a medium in device '%s'", e->id);
    if (!r)
        r = check_fits(call, e, n, &call->err);
    if (r)
        return r;
    ASSERT(co);
    graph_ref(n);
    e->medium = n;
    return 0;
}

/* ---- commands ---- */

typedef int step_fn(struct co *co, struct ctl_call *call, struct export *e);

/* The export stays, and nobody changes edges, until it has ended. */
static int with_drive(struct co *co, struct ctl_call *call, step_fn *step)
{
    struct export *e = find(call);
    struct graph *g = call->c->env.graph;
    int r = e ? exports_change_begin(e, &call->err) : call->err.code;
    if (r)
        return r;
    graph_edges_hold(co, g);
    r = step(co, call, e);
    graph_edges_let(co, g);
    exports_change_end(e);
    return r;
}

static int run_open(struct co *co, struct ctl_call *call) { return with_drive(co, call, open_tray); }
static int run_close(struct co *co, struct ctl_call *call) { return with_drive(co, call, close_tray); }
static int run_remove(struct co *co, struct ctl_call *call) { return with_drive(co, call, remove_medium); }

static int eject(struct co *co, struct ctl_call *call, struct export *e)
{
    int r = open_tray(co, call, e);
    return r ? r : remove_medium(co, call, e);
}

static int run_eject(struct co *co, struct ctl_call *call) { return with_drive(co, call, eject); }

static int insert_named(struct co *co, struct ctl_call *call, struct export *e)
{
    struct graph_node *n = ctl_node(call, ((const struct medium_args *)call->args)->node_name);
    return n ? insert_medium(co, call, e, n) : call->err.code;
}

static int run_insert(struct co *co, struct ctl_call *call) { return with_drive(co, call, insert_named); }

static int open_file(struct co *co, struct ctl_call *call, const struct export *e, struct graph_node **ret_n)
{
    const struct medium_args *a = call->args;
    const struct graph_open_opts o = { .filename = a->filename, .format = a->format, .read_only = a->mode == READ_ONLY || (a->mode == RETAIN && !e->writable),
                                       .refuse_probed_raw = true };
    return graph_open(co, call->c->env.graph, &o, ret_n, &call->err);
}

static int put_in(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n)
{
    int r = check_fits(call, e, n, &call->err);
    if (!r)
        r = eject(co, call, e);
    if (!r)
        r = insert_medium(co, call, e, n);
    if (r)
        return r;
    r = close_tray(co, call, e);
    if (r) {
        e->medium = NULL;
        (void)!graph_close(co, n);               /* the caller has it, too */
    }
    return r;
}

/* The file is looked at first: one that does not fit leaves the drive as it is (M4). It goes with its last user. */
static int change(struct co *co, struct ctl_call *call, struct export *e)
{
    struct graph_node *n;
    int r = open_file(co, call, e, &n);
    if (r)
        return r;
    r = put_in(co, call, e, n);
    int closed = graph_close(co, n);
    return r ? r : closed;
}

static int run_change(struct co *co, struct ctl_call *call) { return with_drive(co, call, change); }

const struct ctl_command ctl_cmd_open_tray = { "blockdev-open-tray", force_rows, sizeof(struct medium_args), run_open,
    .doc = "Opens the tray of a removable export: what clients ask for fails until it is closed again." };
const struct ctl_command ctl_cmd_close_tray = { "blockdev-close-tray", close_rows, sizeof(struct medium_args), run_close,
    .doc = "Closes the tray of a removable export. The medium in it has the size that clients were told." };
const struct ctl_command ctl_cmd_remove_medium = { "blockdev-remove-medium", remove_rows, sizeof(struct medium_args), run_remove,
    .doc = "Takes the medium out of an open tray." };
const struct ctl_command ctl_cmd_insert_medium = { "blockdev-insert-medium", insert_rows, sizeof(struct medium_args), run_insert,
    .doc = "Puts a node into an open and empty tray." };
const struct ctl_command ctl_cmd_change_medium = { "blockdev-change-medium", change_rows, sizeof(struct medium_args), run_change,
    .doc = "Opens the tray, takes out what is in it, puts a file in, and closes it." };
const struct ctl_command ctl_cmd_eject = { "eject", force_rows, sizeof(struct medium_args), run_eject,
    .doc = "Opens the tray of a removable export and takes out what is in it." };
