/* SPDX-License-Identifier: MIT
 *
 * cmd_export.c: nbd-server-start, nbd-server-stop, nbd-server-add, nbd-server-remove, block-export-add, block-export-del,
 * query-block-exports (FEATURES 8.019), and the event BLOCK_EXPORT_DELETED (8.024).
 *
 * Purpose      What is offered to whom.
 * Owns         nothing; exports belong to export/exports.h
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/serve_test.py, tests/daemon
 */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "export/exports.h"
#include "graph/runtime.h"

#define HANDSHAKE_SECONDS 10u
#define CONNECTIONS 100u

static struct exports *exports_of(struct ctl_call *call)
{
    if (!call->c->env.exports)
        (void)byre_fail(&call->err, NOT_SUPPORTED, "there are no exports here");
    return call->c->env.exports;
}

/* ---- nbd-server-start: a union with its data one level below, as the peer has it ---- */
struct inet_data { const char *host, *port; };
struct unix_data { const char *path; };
struct fd_data { const char *str; };
static const struct ctl_arg inet_data_rows[] = {
    { "host", CTL_STR, true, CTL_AT(struct inet_data, host), .doc = "Empty: all addresses." },
    { "port", CTL_STR, true, CTL_AT(struct inet_data, port), .doc = "A number; 0 picks a free one." },
    CTL_ARGS_END
};
static const struct ctl_arg unix_data_rows[] = { { "path", CTL_STR, true, CTL_AT(struct unix_data, path) }, CTL_ARGS_END };
static const struct ctl_arg fd_data_rows[] = { { "str", CTL_STR, true, CTL_AT(struct fd_data, str), .doc = "Number of a listening socket of the process." }, CTL_ARGS_END };
static const struct ctl_shape inet_shape = { .name = "InetSocketAddress", .rows = inet_data_rows, .bytes = sizeof(struct inet_data) };
static const struct ctl_shape unix_shape = { .name = "UnixSocketAddress", .rows = unix_data_rows, .bytes = sizeof(struct unix_data) };
static const struct ctl_shape fd_shape = { .name = "FdSocketAddress", .rows = fd_data_rows, .bytes = sizeof(struct fd_data) };

enum addr_type { ADDR_INET, ADDR_UNIX, ADDR_FD };
static const char *const addr_words[] = { [ADDR_INET] = "inet", [ADDR_UNIX] = "unix", [ADDR_FD] = "fd", NULL };
static const struct ctl_shape addr_type_shape = { .name = "SocketAddressType", .words = addr_words };
struct addr {
    int type;
    union { const struct inet_data *inet; const struct unix_data *un; const struct fd_data *fd; };
};
static const struct ctl_arg inet_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct addr, inet), .of = &inet_shape }, CTL_ARGS_END };
static const struct ctl_arg unix_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct addr, un), .of = &unix_shape }, CTL_ARGS_END };
static const struct ctl_arg fd_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct addr, fd), .of = &fd_shape }, CTL_ARGS_END };
static const struct ctl_case addr_cases[] = { { "inet", inet_rows }, { "unix", unix_rows }, { "fd", fd_rows }, { NULL, NULL } };
static const struct ctl_arg addr_rows[] = { { "type", CTL_ENUM, true, CTL_AT(struct addr, type), .of = &addr_type_shape }, CTL_ARGS_END };
static const struct ctl_shape addr_shape = { .name = "SocketAddressLegacy", .rows = addr_rows, .bytes = sizeof(struct addr), .tag = "type", .cases = addr_cases };

struct start_args { const struct addr *addr; uint64_t handshake, connections; bool has_handshake, has_connections; };
static const struct ctl_arg start_rows[] = {
    { "addr", CTL_STRUCT, true, CTL_AT(struct start_args, addr), .of = &addr_shape },
    { "handshake-max-seconds", CTL_SIZE, false, CTL_AT_HAS(struct start_args, handshake), .max = 86400, .doc = "For a client to say what it wants; 0: for ever. 10 when it is not given." },
    { "max-connections", CTL_SIZE, false, CTL_AT_HAS(struct start_args, connections), .max = UINT32_MAX, .doc = "At the same time; 0: no limit. 100 when it is not given." },
    CTL_ARGS_END
};

static int number_of(struct ctl_call *call, const char *what, const char *text, unsigned max, unsigned *ret)
{
    unsigned v = 0;
    const char *t = text;
    for (; *t >= '0' && *t <= '9' && v <= max; t++)
        v = v * 10 + (unsigned)(*t - '0');
    if (*t || t == text || v > max)
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter '%s' is a number up to %u, not '%s'", what, max, text);
    *ret = v;
    return 0;
}

static int listen_on(struct co *co, struct ctl_call *call, struct nbd_server *s, const struct addr *a)
{
    unsigned v = 0;
    uint16_t port;
    int r;
    switch ((enum addr_type)a->type) {
    case ADDR_UNIX:
        return nbd_server_listen_unix(co, s, a->un->path, &call->err);
    case ADDR_INET:
        r = number_of(call, "addr.data.port", a->inet->port, 65535, &v);
        return r ? r : nbd_server_listen_tcp(co, s, &(struct nbd_tcp_addr){ a->inet->host, (uint16_t)v }, &port, &call->err);
    case ADDR_FD:
        r = number_of(call, "addr.data.str", a->fd->str, 1u << 20, &v);
        return r ? r : nbd_server_listen_fd(co, s, (int)v, &call->err);
    }
    return -EINVAL;
}

static int run_start(struct co *co, struct ctl_call *call)
{
    const struct start_args *a = call->args;
    struct exports *x = exports_of(call);
    struct nbd_server_opts o = NBD_SERVER_OPTS_DEFAULT;
    o.handshake_ms = (unsigned)(a->has_handshake ? a->handshake : HANDSHAKE_SECONDS) * 1000;
    o.connections_max = (unsigned)(a->has_connections ? a->connections : CONNECTIONS);
    int r = x ? exports_server_start(x, &o, &call->err) : call->err.code;
    if (r)
        return r;
    r = listen_on(co, call, exports_server(x), a->addr);
    struct byre_err other;
    if (r && exports_server_stop(co, x, &other))
        return r;                            /* somebody stopped it in between */
    return r;
}

static int run_stop(struct co *co, struct ctl_call *call)
{
    struct exports *x = exports_of(call);
    return x ? exports_server_stop(co, x, &call->err) : call->err.code;
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
    bool writable, writethrough, allocation_depth;
    struct ctl_list bitmaps;
};
static const struct ctl_arg add_rows[] = {
    { "type", CTL_ENUM, true, CTL_AT(struct add_args, type), .of = &type_shape },
    { "id", CTL_STR, true, CTL_AT(struct add_args, id) },
    { "node-name", CTL_STR, true, CTL_AT(struct add_args, node_name) },
    { "writable", CTL_BOOL, false, CTL_AT(struct add_args, writable) },
    { "writethrough", CTL_BOOL, false, CTL_AT(struct add_args, writethrough), .doc = "A write is durable when it is answered." },
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

static bool id_is_good(const char *id)
{
    for (size_t i = 0; id[i]; i++) {
        char c = id[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && (i == 0 || !((c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_')))
            return false;
    }
    return id[0];
}

static struct graph_node *node_named(struct ctl_call *call, const char *name)
{
    struct graph_node *n = graph_find(call->c->env.graph, name);
    if (!n)
        (void)byre_fail(&call->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
    return n;
}

static int run_add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    const struct bitmap_choice *from = a->bitmaps.items;
    struct exports *x = exports_of(call);
    struct export_bitmap bitmaps[EXPORT_BITMAPS_MAX];
    struct export *e;
    if (x && !id_is_good(a->id))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid block export id: '%s' is not a letter, then letters, digits, '-', '.' and '_'", a->id);
    if (x && a->bitmaps.count > EXPORT_BITMAPS_MAX)
        return byre_fail(&call->err, LIMIT, "an export offers at most %u bitmaps", EXPORT_BITMAPS_MAX);
    struct graph_node *n = x ? node_named(call, a->node_name) : NULL;
    for (size_t i = 0; n && i < a->bitmaps.count; i++) {
        bitmaps[i] = (struct export_bitmap){ NULL, from[i].local };
        if (from[i].external) {
            bitmaps[i] = (struct export_bitmap){ ctl_named(call, from[i].external->node), from[i].external->name };
            n = bitmaps[i].node ? n : NULL;
        }
    }
    if (!n)
        return call->err.code;
    struct export_opts o = { .id = a->id, .node = n, .name = a->name, .description = a->description, .writable = a->writable, .writethrough = a->writethrough,
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

static int run_del(struct co *co, struct ctl_call *call)
{
    const struct del_args *a = call->args;
    struct exports *x = exports_of(call);
    struct export *e = x ? exports_find(x, a->id) : NULL;
    if (!e)
        return x ? byre_fail(&call->err, NOT_FOUND, "Export '%s' is not found", a->id) : call->err.code;
    return exports_del(x, e, a->mode == MODE_HARD, &call->err);
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
    struct export_opts o = { .id = name, .node = n, .name = name, .description = a->description, .writable = a->writable && !graph_read_only(n),
        .bitmaps = &b, .bitmap_count = a->bitmap ? 1 : 0 };
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
    struct exports *x = exports_of(call);
    struct export *e = x ? exports_find(x, a->name) : NULL;
    if (!e)
        return x ? byre_fail(&call->err, NOT_FOUND, "Export '%s' is not found", a->name) : call->err.code;
    return exports_del(x, e, a->mode == MODE_HARD, &call->err);
}

/* ---- query-block-exports ---- */
static const struct ctl_arg info_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE }, { "type", CTL_ENUM, true, CTL_AT_NONE, .of = &type_shape }, { "node-name", CTL_STR, true, CTL_AT_NONE },
    { "shutting-down", CTL_BOOL, true, CTL_AT_NONE, .doc = "It is being removed; BLOCK_EXPORT_DELETED tells when it is gone." },
    CTL_ARGS_END
};
static const struct ctl_shape info_shape = { .name = "BlockExportInfo", .rows = info_rows };
static const struct ctl_arg ret_exports = { "exports", CTL_STRUCT, true, CTL_AT_NONE, .of = &info_shape, .list = true };

static int run_query_block_exports(struct co *co, struct ctl_call *call)
{
    struct exports *x = call->c->env.exports;
    call->ret = json_array();
    for (struct export *e = x ? exports_next(x, NULL) : NULL; e; e = exports_next(x, e)) {
        json_t *o = json_pack("{s:s,s:b,s:s,s:s}", "node-name", graph_node_name(graph_skip_implicit(graph_attached(e->node))), "shutting-down", e->shutting_down, "type", "nbd", "id", e->id);
        if (!call->ret || json_array_append_new(call->ret, o))
            return byre_fail(&call->err, NOMEM, "no memory for a reply");
    }
    return call->ret ? 0 : byre_fail(&call->err, NOMEM, "no memory for a reply");
}

const struct ctl_command ctl_cmd_nbd_server_start = { "nbd-server-start", start_rows, sizeof(struct start_args), run_start,
    .doc = "Starts the NBD server, which offers what block-export-add adds." };
const struct ctl_command ctl_cmd_nbd_server_stop = { "nbd-server-stop", NULL, 0, run_stop,
    .doc = "Stops the NBD server: requests in flight are answered, clients cut off, exports removed." };
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
