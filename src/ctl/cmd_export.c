/* SPDX-License-Identifier: MIT
 *
 * cmd_export.c: nbd-server-start, nbd-server-stop, nbd-server-add, nbd-server-remove, block-export-add, block-export-del,
 * query-block-exports, x-byre-query-nbd-servers (FEATURES 8.019), and the event BLOCK_EXPORT_DELETED (8.024).
 *
 * Purpose      What is offered to whom.
 * Owns         nothing; exports belong to export/exports.h
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/serve_test.py, tests/daemon/daemon_test.py, tests/daemon/tls_test.py (several servers)
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/id.h"
#include "ctl/addr.h"
#include "ctl/ctl_priv.h"
#include "export/exports.h"
#include "graph/blockdev.h"
#include "graph/tray.h"
#include "tls/objects.h"

#define HANDSHAKE_SECONDS 10u
#define CONNECTIONS 100u

static struct exports *exports_of(struct ctl_call *call)
{
    if (!call->c->env.exports)
        (void)byre_fail(&call->err, NOT_SUPPORTED, "there are no exports here");
    return call->c->env.exports;
}

/* ---- nbd-server-start ---- */
struct start_args { const struct ctl_addr *addr; uint64_t handshake, connections; bool has_handshake, has_connections; const char *id, *creds, *authz; };
static const struct ctl_arg start_rows[] = {
    { "addr", CTL_STRUCT, true, CTL_AT(struct start_args, addr), .of = &ctl_addr_shape },
    { "handshake-max-seconds", CTL_SIZE, false, CTL_AT_HAS(struct start_args, handshake), .max = 86400, .doc = "For a client to say what it wants; 0: for ever. 10 when it is not given." },
    { "max-connections", CTL_SIZE, false, CTL_AT_HAS(struct start_args, connections), .max = UINT32_MAX, .doc = "At the same time; 0: no limit. 100 when it is not given." },
    { "tls-creds", CTL_STR, false, CTL_AT(struct start_args, creds), .doc = "Credentials with endpoint=server: clients must speak TLS." },
    { "tls-authz", CTL_STR, false, CTL_AT(struct start_args, authz), .doc = "Rules about who may connect, looked up for each client; if they are not there, nobody may." },
    { "x-byre-id", CTL_STR, false, CTL_AT(struct start_args, id), .doc = "Name of this listener. With one, further listeners may be started, which all offer the same exports." },
    CTL_ARGS_END
};

static int number_of(struct ctl_call *call, const char *what, const char *text, unsigned max, unsigned *ret)
{
    uint64_t v = 0;
    const char *t = text;
    for (; *t >= '0' && *t <= '9' && v <= max; t++)
        v = v * 10 + (unsigned)(*t - '0');
    if (*t || t == text || v > max)
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter '%s' is a number up to %u, not '%s'", what, max, text);
    *ret = (unsigned)v;
    return 0;
}

static int address_of(struct co *co, struct ctl_call *call, const struct ctl_addr *a, struct exports_address *ret)
{
    unsigned v = 0;
    int r = 0;
    *ret = (struct exports_address){ .where = EXPORTS_UNIX };
    switch ((enum ctl_addr_type)a->type) {
    case CTL_ADDR_UNIX:
        ret->un = ctl_unix_addr(a->un);
        break;
    case CTL_ADDR_VSOCK:
        r = strcmp(a->vsock->cid, "-1") ? number_of(call, "addr.data.cid", a->vsock->cid, UINT32_MAX, &ret->vsock.cid) : 0;
        if (!r)
            r = number_of(call, "addr.data.port", a->vsock->port, UINT32_MAX, &ret->vsock.port);
        if (!strcmp(a->vsock->cid, "-1"))
            ret->vsock.cid = UINT32_MAX;         /* VMADDR_CID_ANY */
        ret->where = EXPORTS_VSOCK;
        break;
    case CTL_ADDR_INET:
        r = number_of(call, "addr.data.port", a->inet->port, 65535, &v);
        ret->where = EXPORTS_TCP;
        ret->tcp = (struct nbd_tcp_addr){ a->inet->host, (uint16_t)v };
        break;
    case CTL_ADDR_FD:
        r = ctl_take_socket(co, call, "addr.data.str", a->fd->str, &ret->fd);
        ret->where = EXPORTS_FD;
        break;
    }
    return r;
}

static int open_door(struct co *co, struct ctl_call *call, struct exports *x, const struct nbd_door_opts *o)
{
    const struct start_args *a = call->args;
    struct exports_address at;
    int r = address_of(co, call, a->addr, &at);
    return r ? r : exports_open(co, x, o, &at, &call->err);
}

static int run_start(struct co *co, struct ctl_call *call)
{
    const struct start_args *a = call->args;
    struct exports *x = exports_of(call);
    struct nbd_door_opts o = { .id = a->id, .handshake_ms = (unsigned)(a->has_handshake ? a->handshake : HANDSHAKE_SECONDS) * 1000,
        .connections_max = (unsigned)(a->has_connections ? a->connections : CONNECTIONS), .authz = a->authz, .objects = call->c->env.tls };
    if (!x)
        return call->err.code;
    if (a->id && !id_is_good(a->id, SIZE_MAX))
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' is no id: a letter, then letters, digits, '-', '.' and '_'", a->id);
    int r = a->creds ? tls_set_creds(call->c->env.tls, a->creds, true, &o.creds, &call->err) : 0;
    if (!r)
        r = open_door(co, call, x, &o);
    tls_creds_unref(o.creds);
    return r;
}

/* ---- nbd-server-stop ---- */
struct stop_args { const char *id; };
static const struct ctl_arg stop_rows[] = {
    { "x-byre-id", CTL_STR, false, CTL_AT(struct stop_args, id), .doc = "Close this listener alone, with its connections; exports stay." },
    CTL_ARGS_END
};

static int run_stop(struct co *co, struct ctl_call *call)
{
    struct exports *x = exports_of(call);
    const struct stop_args *a = call->args;
    if (!x)
        return call->err.code;
    return a->id ? exports_close_door(co, x, a->id, &call->err) : exports_server_stop(co, x, &call->err);
}

/* ---- x-byre-query-nbd-servers ---- */
static const struct ctl_arg door_rows[] = {
    { "id", CTL_STR, false, CTL_AT_NONE }, { "addresses", CTL_STR, true, CTL_AT_NONE, .list = true, .doc = "unix:PATH, unix:@NAME, vsock:CID:PORT or HOST:PORT." },
    { "connections", CTL_SIZE, true, CTL_AT_NONE }, { "max-connections", CTL_SIZE, true, CTL_AT_NONE, .doc = "0: no limit." },
    { "tls-creds", CTL_STR, false, CTL_AT_NONE }, { "tls-authz", CTL_STR, false, CTL_AT_NONE },
    CTL_ARGS_END
};
static const struct ctl_shape door_shape = { .name = "XByreNbdServer", .rows = door_rows };
static const struct ctl_arg ret_doors = { "servers", CTL_STRUCT, true, CTL_AT_NONE, .of = &door_shape, .list = true };

static json_t *door_json(const struct nbd_door *d)
{
    struct nbd_door_info i = nbd_door_get(d);
    json_t *list = json_array();
    for (unsigned n = 0; list && n < i.listeners; n++) {
        AUTOFREE char *text = nbd_door_address(d, n);
        if (json_array_append_new(list, text ? json_string(text) : NULL)) {
            json_decref(list);
            list = NULL;
        }
    }
    return list ? json_pack("{s:s*,s:o,s:I,s:I,s:s*,s:s*}", "id", i.id, "addresses", list, "connections", (json_int_t)i.connections,
                            "max-connections", (json_int_t)i.connections_max, "tls-creds", i.creds, "tls-authz", i.authz) : NULL;
}

static int run_query_servers(struct co *co, struct ctl_call *call)
{
    struct exports *x = call->c->env.exports;
    struct nbd_server *s = x ? exports_server(x) : NULL;
    call->ret = json_array();
    for (struct nbd_door *d = s ? nbd_door_next(s, NULL) : NULL; call->ret && d; d = nbd_door_next(s, d))
        if (nbd_door_get(d).listeners && json_array_append_new(call->ret, door_json(d)))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- block-export-add ---- */
struct bitmap_ref { const char *node, *name; };
static const struct ctl_arg ref_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct bitmap_ref, node) }, { "name", CTL_STR, true, CTL_AT(struct bitmap_ref, name) }, CTL_ARGS_END
};
static const struct ctl_shape ref_shape = { .name = "BlockDirtyBitmap", .rows = ref_rows, .bytes = sizeof(struct bitmap_ref) };
struct bitmap_choice { const char *local; const struct bitmap_ref *external; };
static const struct ctl_arg choice_rows[] = {
    { "local", CTL_STR, false, CTL_AT(struct bitmap_choice, local) }, { "external", CTL_STRUCT, false, CTL_AT(struct bitmap_choice, external), .of = &ref_shape },
    CTL_ARGS_END
};
static const struct ctl_shape choice_shape = { .name = "BlockDirtyBitmapOrStr", .rows = choice_rows, .bytes = sizeof(struct bitmap_choice) };

static const char *const type_words[] = { "nbd", NULL };
static const struct ctl_shape type_shape = { .name = "BlockExportType", .words = type_words };
struct add_args {
    int type;
    const char *id, *node_name, *name, *description;
    bool writable, writethrough, allocation_depth, allow_inactive, fixed_iothread, removable;
    const char *iothread;
    struct ctl_list bitmaps;
};
static const struct ctl_arg add_rows[] = {
    { "type", CTL_ENUM, true, CTL_AT(struct add_args, type), .of = &type_shape },
    { "id", CTL_STR, true, CTL_AT(struct add_args, id) },
    { "node-name", CTL_STR, true, CTL_AT(struct add_args, node_name) },
    { "writable", CTL_BOOL, false, CTL_AT(struct add_args, writable) },
    { "writethrough", CTL_BOOL, false, CTL_AT(struct add_args, writethrough), .doc = "A write is durable when it is answered." },
    { "iothread", CTL_STR, false, CTL_AT(struct add_args, iothread), .doc = "The iothread object whose thread serves its clients from the end of their handshake on. What changes tables of an image happens where it always does." },
    { "fixed-iothread", CTL_BOOL, false, CTL_AT(struct add_args, fixed_iothread), .doc = "No other thread will, also when x-blockdev-set-iothread asks for it." },
    { "allow-inactive", CTL_BOOL, false, CTL_AT(struct add_args, allow_inactive),
      .doc = "The node may be inactive, or become so: clients read, and cannot write. Otherwise it is made active first, and stays so." },
    { "x-byre-removable", CTL_BOOL, false, CTL_AT(struct add_args, removable), .doc = "It is a drive with a tray: its node is a medium, which may become another one (blockdev-change-medium)." },
    CTL_ARGS_END
};
static const struct ctl_arg nbd_rows[] = {
    { "name", CTL_STR, false, CTL_AT(struct add_args, name), .doc = "Name of the export; that of the node when it is not given." },
    { "description", CTL_STR, false, CTL_AT(struct add_args, description) },
    { "bitmaps", CTL_ALT, false, CTL_AT(struct add_args, bitmaps), .of = &choice_shape, .list = true, .doc = "Dirty bitmaps to offer as contexts." },
    { "allocation-depth", CTL_BOOL, false, CTL_AT(struct add_args, allocation_depth), .doc = "Offer the context qemu:allocation-depth." },
    CTL_ARGS_END
};
static const struct ctl_case add_cases[] = { { "nbd", nbd_rows }, { NULL, NULL } };

static int run_add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    const struct bitmap_choice *from = a->bitmaps.items;
    struct exports *x = exports_of(call);
    struct export_bitmap bitmaps[EXPORT_BITMAPS_MAX];
    struct export *e;
    if (x && !id_is_good(a->id, SIZE_MAX))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid block export id: '%s' is not a letter, then letters, digits, '-', '.' and '_'", a->id);
    if (x && a->bitmaps.count > EXPORT_BITMAPS_MAX)
        return byre_fail(&call->err, LIMIT, "an export offers at most %u bitmaps", EXPORT_BITMAPS_MAX);
    struct graph_node *n = x ? ctl_node(call, a->node_name) : NULL;
    for (size_t i = 0; n && i < a->bitmaps.count; i++) {
        bitmaps[i] = (struct export_bitmap){ NULL, from[i].local };
        if (from[i].external) {
            bitmaps[i] = (struct export_bitmap){ ctl_named(call, from[i].external->node), from[i].external->name };
            n = bitmaps[i].node ? n : NULL;
        }
    }
    if (!n)
        return call->err.code;
    struct export_opts o = { .id = a->id, .node = n, .name = a->name, .description = a->description, .writable = a->writable, .writethrough = a->writethrough, .allow_inactive = a->allow_inactive,
        .removable = a->removable, .iothread = a->iothread, .fixed_iothread = a->fixed_iothread,
        .allocation_depth = a->allocation_depth, .bitmaps = bitmaps, .bitmap_count = (unsigned)a->bitmaps.count };
    return exports_add(co, x, &o, &e, &call->err);
}

/* ---- block-export-del ---- */
enum { MODE_SAFE, MODE_HARD };
static const char *const mode_words[] = { [MODE_SAFE] = "safe", [MODE_HARD] = "hard", NULL };
static const struct ctl_shape mode_shape = { .name = "BlockExportRemoveMode", .words = mode_words };
struct del_args { const char *id; int mode; };
static const struct ctl_arg del_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct del_args, id) },
    { "mode", CTL_ENUM, false, CTL_AT(struct del_args, mode), .of = &mode_shape, .doc = "safe: refused while clients are connected; hard: they are cut off." },
    CTL_ARGS_END
};

static int del(struct ctl_call *call, const char *id, int mode)
{
    struct exports *x = exports_of(call);
    struct export *e = x ? exports_find(x, id) : NULL;
    if (!e)
        return x ? byre_fail(&call->err, NOT_FOUND, "Export '%s' is not found", id) : call->err.code;
    return exports_del(x, e, mode == MODE_HARD, &call->err);
}

static int run_del(struct co *co, struct ctl_call *call)
{
    const struct del_args *a = call->args;
    return del(call, a->id, a->mode);
}

void ctl_export_gone(void *arg, const char *id)
{
    ctl_send_event(arg, "BLOCK_EXPORT_DELETED", json_pack("{s:s}", "id", id));
}

/* ---- the older pair ---- */
struct old_add_args { const char *name, *description, *device, *bitmap; bool writable; };
static const struct ctl_arg old_add_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct old_add_args, device), .doc = "Device or node." },
    { "name", CTL_STR, false, CTL_AT(struct old_add_args, name), .doc = "Name and id of the export; that of the device when it is not given." },
    { "description", CTL_STR, false, CTL_AT(struct old_add_args, description) },
    { "writable", CTL_BOOL, false, CTL_AT(struct old_add_args, writable), .doc = "Read-only nodes stay read-only." },
    { "bitmap", CTL_STR, false, CTL_AT(struct old_add_args, bitmap) },
    CTL_ARGS_END
};

/* A mirror may take the disk to another node while this waits for it. */
static struct graph_node *old_add_node(void *arg)
{
    struct ctl_call *call = arg;
    return ctl_named(call, ((const struct old_add_args *)call->args)->device);
}

static int run_old_add(struct co *co, struct ctl_call *call)
{
    const struct old_add_args *a = call->args;
    struct exports *x = exports_of(call);
    struct graph_node *n = x ? ctl_named(call, a->device) : NULL;
    struct export_bitmap b = { NULL, a->bitmap };
    struct export *e;
    if (!n)
        return call->err.code;
    const char *name = a->name ? a->name : a->device;
    struct export_opts o = { .id = name, .node = n, .name = name, .description = a->description, .writable = a->writable && !graph_meant_read_only(n),
        .bitmaps = &b, .bitmap_count = a->bitmap ? 1 : 0, .now = old_add_node, .now_arg = call };
    return exports_add(co, x, &o, &e, &call->err);
}

struct old_del_args { const char *name; int mode; };
static const struct ctl_arg old_del_rows[] = {
    { "name", CTL_STR, true, CTL_AT(struct old_del_args, name) },
    { "mode", CTL_ENUM, false, CTL_AT(struct old_del_args, mode), .of = &mode_shape },
    CTL_ARGS_END
};

static int run_old_del(struct co *co, struct ctl_call *call)
{
    const struct old_del_args *a = call->args;
    return del(call, a->name, a->mode);
}

/* ---- query-block-exports ---- */
static const struct ctl_arg info_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE }, { "type", CTL_ENUM, true, CTL_AT_NONE, .of = &type_shape },
    { "node-name", CTL_STR, true, CTL_AT_NONE, .doc = "Empty: there is nothing in its tray." },
    { "shutting-down", CTL_BOOL, true, CTL_AT_NONE, .doc = "It is being removed; BLOCK_EXPORT_DELETED tells when it is gone." },
    { "x-byre-tray-open", CTL_BOOL, false, CTL_AT_NONE, .doc = "Of one that is removable." },
    CTL_ARGS_END
};
static const struct ctl_shape info_shape = { .name = "BlockExportInfo", .rows = info_rows };
static const struct ctl_arg ret_exports = { "exports", CTL_STRUCT, true, CTL_AT_NONE, .of = &info_shape, .list = true };

static int run_query_block_exports(struct co *co, struct ctl_call *call)
{
    struct exports *x = call->c->env.exports;
    call->ret = json_array();
    for (struct export *e = x ? exports_next(x, NULL) : NULL; e; e = exports_next(x, e)) {
        json_t *o = json_pack("{s:s,s:b,s:s,s:s}", "node-name", graph_attached_name(e->node), "shutting-down", e->shutting_down, "type", "nbd", "id", e->id);
        bool whole = o && (!e->removable || !json_object_set_new(o, "x-byre-tray-open", json_boolean(graph_tray_is_open(e->node))));
        if (!call->ret || json_array_append_new(call->ret, o) || !whole)
            return ctl_no_memory(call);
    }
    return call->ret ? 0 : ctl_no_memory(call);
}

const struct ctl_command ctl_cmd_nbd_server_start = { "nbd-server-start", start_rows, sizeof(struct start_args), run_start,
    .doc = "Starts the NBD server, which offers what block-export-add adds." };
const struct ctl_command ctl_cmd_nbd_server_stop = { "nbd-server-stop", stop_rows, sizeof(struct stop_args), run_stop,
    .doc = "Stops the NBD server with all its listeners: requests in flight are answered, clients cut off, exports removed." };
const struct ctl_command ctl_cmd_query_nbd_servers = { "x-byre-query-nbd-servers", NULL, 0, run_query_servers, .ret = &ret_doors,
    .doc = "Lists where the NBD server listens, on which terms, and how many clients are there." };
const struct ctl_command ctl_cmd_nbd_server_add = { "nbd-server-add", old_add_rows, sizeof(struct old_add_args), run_old_add,
    .doc = "The older form of block-export-add." };
const struct ctl_command ctl_cmd_nbd_server_remove = { "nbd-server-remove", old_del_rows, sizeof(struct old_del_args), run_old_del,
    .doc = "The older form of block-export-del." };
const struct ctl_command ctl_cmd_block_export_add = { "block-export-add", add_rows, sizeof(struct add_args), run_add, .tag = "type", .cases = add_cases,
    .doc = "Offers a node to clients." };
const struct ctl_command ctl_cmd_block_export_del = { "block-export-del", del_rows, sizeof(struct del_args), run_del,
    .doc = "Begins to take an export back." };
const struct ctl_command ctl_cmd_query_block_exports = { "query-block-exports", NULL, 0, run_query_block_exports, .ret = &ret_exports,
    .doc = "Lists what is offered to clients." };
