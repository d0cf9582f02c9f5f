/* SPDX-License-Identifier: MIT
 *
 * cmd_medium.c: blockdev-open-tray, blockdev-close-tray, blockdev-insert-medium, blockdev-remove-medium, blockdev-change-medium, eject, and the event
 * DEVICE_TRAY_MOVED (FEATURES G.051).
 *
 * Purpose      The words that system emulators have for drives, of what is a drive here: an export that was added as removable. Another node comes
 *              under its id while clients stay connected. What a tray does is graph/tray.h's.
 * Owns         nothing beyond a call
 * Invariants   M1  Clients that are connected never see another length: NBD has no way to tell them. The change is refused instead.
 *              M2  The event is sent when a tray has moved, and only then.
 *              M3  What fails leaves the drive as it was, but blockdev-change-medium and eject, which are several steps: the tray may stay open. A file
 *                  that does not fit has not opened it.
 * Concurrency  home loop; each command keeps the export and holds the edges, but for the opening of a file, which may take long
 * Failure      as ctl_priv.h; DeviceNotFound for names of nothing
 * Tests        tests/daemon/medium_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "export/exports.h"
#include "graph/tray.h"

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

/* ---- which drive ---- */

static bool is_device(const struct ctl_env *e, const char *name)
{
    for (size_t i = 0; i < e->device_count; i++)
        if (!strcmp(e->devices[i].name, name))
            return true;
    return false;
}

static struct export *find(struct ctl_call *call)
{
    const struct medium_args *a = call->args;
    const struct ctl_env *env = &call->c->env;
    const char *name = a->id ? a->id : a->device;
    if (!a->id == !a->device) {
        (void)byre_fail(&call->err, BAD_ARGUMENT, "one of 'device' and 'id' must be given, and not both");
        return NULL;
    }
    struct export *e = env->exports ? exports_find(env->exports, name) : NULL;
    if (e && e->removable)
        return e;
    if (e || is_device(env, name)) {
        (void)byre_fail(&call->err, NOT_SUPPORTED, "Device '%s' is not removable: it was not added with x-byre-removable", name);
        return NULL;
    }
    call->error_class = "DeviceNotFound";
    (void)byre_fail(&call->err, NOT_FOUND, "Device '%s' not found", name);
    return NULL;
}

/* ---- the steps ---- */

static unsigned clients(void *arg) { return nbd_export_users(((const struct export *)arg)->nbd); }
static struct graph_tray_told told(struct export *e) { return (struct graph_tray_told){ clients, e }; }

/* M2 */
static void tell_if_moved(struct ctl_call *call, const struct export *e, bool was_open)
{
    bool open = graph_tray_is_open(e->node);
    if (open != was_open)
        ctl_send_event(call->c, "DEVICE_TRAY_MOVED", json_pack("{s:s,s:s,s:b}", "device", "", "id", e->id, "tray-open", open));
}

static int open_tray(struct co *co, struct ctl_call *call, struct export *e)
{
    bool was_open = graph_tray_is_open(e->node);
    int r = graph_tray_open(co, e->node, &call->err);
    tell_if_moved(call, e, was_open);
    return r;
}

static int close_tray(struct co *co, struct ctl_call *call, struct export *e)
{
    bool was_open = graph_tray_is_open(e->node);
    graph_tray_close(co, e->node);
    tell_if_moved(call, e, was_open);
    return 0;
}

static int need_open(struct ctl_call *call, const struct export *e)
{
    return graph_tray_is_open(e->node) ? 0 : byre_fail(&call->err, PERMISSION, "Tray of device '%s' is not open", e->id);
}

static int remove_medium(struct co *co, struct ctl_call *call, struct export *e)
{
    int r = need_open(call, e);
    if (r)
        return r;
    r = graph_tray_remove(co, e->node);
    return r ? byre_fail_code(&call->err, IO, r, "the medium of '%s' is out, and was closed with an error: not everything that was written may be on the disk", e->id) : 0;
}

static int insert_medium(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n)
{
    const struct graph_tray_told to = told(e);
    int r = need_open(call, e);
    if (!r && graph_attached(e->node))
        r = byre_fail(&call->err, EXISTS, "There already is a medium in device '%s'", e->id);
    return r ? r : graph_tray_insert(co, e->node, n, &to, &call->err);
}

static int eject(struct co *co, struct ctl_call *call, struct export *e)
{
    int r = open_tray(co, call, e);
    return r ? r : remove_medium(co, call, e);
}

static int change_to(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n)
{
    const struct graph_tray_told to = told(e);
    int r = graph_tray_fits(e->node, n, &to, &call->err);        /* M3 */
    if (!r)
        r = eject(co, call, e);
    if (!r)
        r = insert_medium(co, call, e, n);
    return r ? r : close_tray(co, call, e);
}

/* ---- commands ---- */

/* n: a medium that comes; NULL: the step needs none. */
typedef int step_fn(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n);

/* Nobody else changes edges, or this tray, until it has ended. */
static int with_drive(struct co *co, struct ctl_call *call, step_fn *step, struct graph_node *n)
{
    struct export *e = find(call);
    struct graph *g = call->c->env.graph;
    int r = e ? exports_keep(e, &call->err) : call->err.code;
    if (r)
        return r;
    graph_edges_hold(co, g);
    r = step(co, call, e, n);
    graph_edges_let(co, g);
    exports_let(e);
    return r;
}

static int open_step(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n) { return open_tray(co, call, e); }
static int close_step(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n) { return close_tray(co, call, e); }
static int remove_step(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n) { return remove_medium(co, call, e); }
static int eject_step(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *n) { return eject(co, call, e); }

static int run_open(struct co *co, struct ctl_call *call) { return with_drive(co, call, open_step, NULL); }
static int run_close(struct co *co, struct ctl_call *call) { return with_drive(co, call, close_step, NULL); }
static int run_remove(struct co *co, struct ctl_call *call) { return with_drive(co, call, remove_step, NULL); }
static int run_eject(struct co *co, struct ctl_call *call) { return with_drive(co, call, eject_step, NULL); }

/* The name is looked up when nobody changes edges any more. */
static int insert_step(struct co *co, struct ctl_call *call, struct export *e, struct graph_node *none)
{
    struct graph_node *n = ctl_node(call, ((const struct medium_args *)call->args)->node_name);
    return n ? insert_medium(co, call, e, n) : call->err.code;
}

static int run_insert(struct co *co, struct ctl_call *call) { return with_drive(co, call, insert_step, NULL); }

static int open_file(struct co *co, struct ctl_call *call, struct graph_node **ret_n)
{
    const struct medium_args *a = call->args;
    const struct export *e = find(call);
    if (!e)
        return call->err.code;
    const struct graph_open_opts o = { .filename = a->filename, .format = a->format, .read_only = a->mode == READ_ONLY || (a->mode == RETAIN && !e->writable),
                                       .refuse_probed_raw = true };
    return graph_open(co, call->c->env.graph, &o, ret_n, &call->err);
}

/* The file goes with its last user. */
static int run_change(struct co *co, struct ctl_call *call)
{
    struct graph_node *n;
    int r = open_file(co, call, &n);
    if (r)
        return r;
    r = with_drive(co, call, change_to, n);
    int closed = graph_close(co, n);
    return r || !closed ? r : byre_fail_code(&call->err, IO, closed, "%s", strerror(-closed));
}

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
