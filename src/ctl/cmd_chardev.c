/* SPDX-License-Identifier: MIT
 *
 * cmd_chardev.c: chardev-add, chardev-remove, chardev-change, chardev-send-break, query-chardev, query-chardev-backends
 * (FEATURES 8.022), and x-byre-monitor-add.
 *
 * Purpose      More ways in while the server runs.
 * Owns         nothing; devices belong to chardev.h
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/chardev_test.py
 */
#include <stdio.h>
#include <string.h>

#include "ctl/addr.h"
#include "ctl/chardev.h"

static const char *const kind_words[] = { [CHARDEV_NULL] = "null", [CHARDEV_SOCKET] = "socket", [CHARDEV_STDIO] = "stdio", [CHARDEV_RINGBUF] = "ringbuf", [CHARDEV_MEMORY] = "memory", NULL };
static const struct ctl_shape kind_shape = { .name = "ChardevBackendKind", .words = kind_words };

/* ---- chardev-add ---- */
struct socket_data { const struct ctl_addr *addr; bool server, wait, has_server; };
static const struct ctl_arg socket_data_rows[] = {
    { "addr", CTL_STRUCT, true, CTL_AT(struct socket_data, addr), .of = &ctl_addr_shape },
    { "server", CTL_BOOL, false, CTL_AT_HAS(struct socket_data, server), .doc = "Others connect to it; on when it is not given." },
    { "wait", CTL_BOOL, false, CTL_AT(struct socket_data, wait), .doc = "On the command line: until the first client has come. Refused in a command, which would stop the others." },
    CTL_ARGS_END
};
static const struct ctl_shape socket_data_shape = { .name = "ChardevSocket", .rows = socket_data_rows, .bytes = sizeof(struct socket_data) };
static const struct ctl_arg stdio_data_rows[] = { { "signal", CTL_BOOL, false, CTL_AT_NONE, .doc = "Taken; signals are those of the program." }, CTL_ARGS_END };
static const struct ctl_shape stdio_data_shape = { .name = "ChardevStdio", .rows = stdio_data_rows, .bytes = 1 };
static const struct ctl_arg null_data_rows[] = { CTL_ARGS_END };
static const struct ctl_shape null_data_shape = { .name = "ChardevCommon", .rows = null_data_rows, .bytes = 1 };

struct ring_data { uint64_t size; bool has_size; };
static const struct ctl_arg ring_data_rows[] = {
    { "size", CTL_SIZE, false, CTL_AT_HAS(struct ring_data, size), .doc = "A power of two; 65536 when it is not given." }, CTL_ARGS_END
};
static const struct ctl_shape ring_data_shape = { .name = "ChardevRingbuf", .rows = ring_data_rows, .bytes = sizeof(struct ring_data) };

struct backend { int kind; const struct socket_data *socket; const struct ring_data *ring; };
static const struct ctl_arg socket_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct backend, socket), .of = &socket_data_shape }, CTL_ARGS_END };
static const struct ctl_arg stdio_rows[] = { { "data", CTL_STRUCT, true, CTL_AT_NONE, .of = &stdio_data_shape }, CTL_ARGS_END };
static const struct ctl_arg null_rows[] = { { "data", CTL_STRUCT, true, CTL_AT_NONE, .of = &null_data_shape }, CTL_ARGS_END };
static const struct ctl_arg ring_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct backend, ring), .of = &ring_data_shape }, CTL_ARGS_END };
static const struct ctl_case backend_cases[] = { { "null", null_rows }, { "ringbuf", ring_rows }, { "memory", ring_rows }, { "socket", socket_rows }, { "stdio", stdio_rows }, { NULL, NULL } };
static const struct ctl_arg backend_rows[] = { { "type", CTL_ENUM, true, CTL_AT(struct backend, kind), .of = &kind_shape }, CTL_ARGS_END };
static const struct ctl_shape backend_shape = { .name = "ChardevBackend", .rows = backend_rows, .bytes = sizeof(struct backend), .tag = "type", .cases = backend_cases };

struct add_args { const char *id; const struct backend *backend; };
static const struct ctl_arg add_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct add_args, id) },
    { "backend", CTL_STRUCT, true, CTL_AT(struct add_args, backend), .of = &backend_shape },
    CTL_ARGS_END
};

static int place_of(struct co *co, struct ctl_call *call, const struct ctl_addr *a, struct unix_addr *un, struct chardev_opts *o)
{
    switch ((enum ctl_addr_type)a->type) {
    case CTL_ADDR_UNIX:
        *un = ctl_unix_addr(a->un);
        o->at = un;
        return 0;
    case CTL_ADDR_FD:
        return ctl_take_socket(co, call, "addr.data.str", a->fd->str, &o->fd);
    case CTL_ADDR_VSOCK:
        return byre_fail(&call->err, NOT_SUPPORTED, "control is offered on unix sockets only: nobody could tell which user of a virtual machine asks");
    case CTL_ADDR_INET:
        return byre_fail(&call->err, NOT_SUPPORTED, "control is offered on unix sockets only: a port of this host would be open to all its users");
    }
    return -EINVAL;
}

static int add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    const struct socket_data *s = a->backend->socket;
    struct unix_addr un;
    struct chardev_opts o = { .id = a->id, .kind = (enum chardev_kind)a->backend->kind, .fd = -1 };
    if (o.kind == CHARDEV_SOCKET) {
        o.server = !s->has_server || s->server;
        if (s->wait && call->client)
            return byre_fail(&call->err, NOT_SUPPORTED, "'wait' is of the command line: here it would stop all clients of the control socket");
        int r = place_of(co, call, s->addr, &un, &o);
        if (r)
            return r;
    }
    if (o.kind >= CHARDEV_RINGBUF)
        o.ring_bytes = a->backend->ring->has_size ? a->backend->ring->size : 65536;
    return chardev_add(co, call->c, &o, &call->err);
}

static int run_add(struct co *co, struct ctl_call *call)
{
    int r = add(co, call);
    call->ret = r ? NULL : json_object();
    return r;
}

/* ---- chardev-change ---- */
/* Only what has no monitor, as with the peer, whose monitors cannot change their device either. */
static int run_change(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    struct chardev *d = chardev_find(call->c, a->id);
    if (!d)
        return byre_fail(&call->err, NOT_FOUND, "Chardev '%s' does not exist", a->id);
    if (d->used)
        return byre_fail(&call->err, BUSY, "Chardev user does not support chardev hotswap");
    if (d->kind != CHARDEV_NULL || a->backend->kind != CHARDEV_NULL)
        return byre_fail(&call->err, NOT_SUPPORTED, "Chardev '%s' cannot be changed: remove it and add another", a->id);
    call->ret = json_object();
    return 0;
}

/* ---- the rest of its life ---- */
struct id_args { const char *id; };
static const struct ctl_arg id_rows[] = { { "id", CTL_STR, true, CTL_AT(struct id_args, id) }, CTL_ARGS_END };

static int run_remove(struct co *co, struct ctl_call *call)
{
    return chardev_remove(co, call->c, ((const struct id_args *)call->args)->id, &call->err);
}

static int run_break(struct co *co, struct ctl_call *call)
{
    const struct id_args *a = call->args;
    return chardev_find(call->c, a->id) ? 0 : byre_fail(&call->err, NOT_FOUND, "Chardev '%s' not found", a->id);
}

struct monitor_args { const char *chardev, *id; int mode; bool pretty; };
static const char *const mode_words[] = { "control", NULL };
static const struct ctl_shape mode_shape = { .name = "MonitorMode", .words = mode_words };
static const struct ctl_arg monitor_rows[] = {
    { "chardev", CTL_STR, true, CTL_AT(struct monitor_args, chardev), .doc = "Id of the character device." },
    { "id", CTL_STR, false, CTL_AT(struct monitor_args, id), .doc = "Its own name, which no other monitor has." },
    { "mode", CTL_ENUM, false, CTL_AT(struct monitor_args, mode), .of = &mode_shape },
    { "pretty", CTL_BOOL, false, CTL_AT(struct monitor_args, pretty), .doc = "Answers over several lines." },
    CTL_ARGS_END
};

static int run_monitor(struct co *co, struct ctl_call *call)
{
    const struct monitor_args *a = call->args;
    return chardev_monitor(call->c, a->chardev, a->id, a->pretty, &call->err);
}

/* ---- queries ---- */
static json_t *device_info(const struct chardev *d)
{
    char name[192] = "";
    if (d->kind == CHARDEV_SOCKET)
        snprintf(name, sizeof name, "%s%s%s%s%s", d->listener || d->served ? "disconnected:" : "", d->path ? "unix:" : "fd", d->path ? d->path : "", d->abstract ? ",abstract=on" : "",
            d->listener || d->served ? ",server=on" : "");
    else
        snprintf(name, sizeof name, "%s", kind_words[d->kind]);
    return json_pack("{s:b,s:s,s:s}", "frontend-open", d->used, "filename", name, "label", d->id);
}

static int run_query(struct co *co, struct ctl_call *call)
{
    call->ret = json_array();
    LIST_FOR(at, &call->c->chardevs)
        if (!call->ret || json_array_append_new(call->ret, device_info(CONTAINER_OF(at, struct chardev, link))))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

static int run_query_backends(struct co *co, struct ctl_call *call)
{
    call->ret = json_array();
    for (size_t i = 0; kind_words[i]; i++)
        if (!call->ret || json_array_append_new(call->ret, json_pack("{s:s}", "name", kind_words[i])))
            return ctl_no_memory(call);
    return 0;
}

static const struct ctl_arg pty_rows[] = { { "pty", CTL_STR, false, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape return_shape = { .name = "ChardevReturn", .rows = pty_rows };
static const struct ctl_arg ret_chardev = { "chardev", CTL_STRUCT, true, CTL_AT_NONE, .of = &return_shape };
static const struct ctl_arg info_rows[] = {
    { "label", CTL_STR, true, CTL_AT_NONE, .doc = "The id." }, { "filename", CTL_STR, true, CTL_AT_NONE, .doc = "What it is." },
    { "frontend-open", CTL_BOOL, true, CTL_AT_NONE, .doc = "A monitor has it." }, CTL_ARGS_END
};
static const struct ctl_shape info_shape = { .name = "ChardevInfo", .rows = info_rows };
static const struct ctl_arg ret_infos = { "devices", CTL_STRUCT, true, CTL_AT_NONE, .of = &info_shape, .list = true };
static const struct ctl_arg name_rows[] = { { "name", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape name_shape = { .name = "ChardevBackendInfo", .rows = name_rows };
static const struct ctl_arg ret_names = { "backends", CTL_STRUCT, true, CTL_AT_NONE, .of = &name_shape, .list = true };

const struct ctl_command ctl_cmd_chardev_add = { "chardev-add", add_rows, sizeof(struct add_args), run_add, .ret = &ret_chardev,
    .doc = "Makes a character device: a unix socket, standard input and output, one that keeps the last bytes, or one that leads nowhere. A socket listens from now on; its clients are served when it has a monitor." };
const struct ctl_command ctl_cmd_chardev_change = { "chardev-change", add_rows, sizeof(struct add_args), run_change, .ret = &ret_chardev,
    .doc = "Puts another device in the place of one. Monitors do not support it, so it is refused for all but devices that lead nowhere." };
const struct ctl_command ctl_cmd_chardev_remove = { "chardev-remove", id_rows, sizeof(struct id_args), run_remove,
    .doc = "Removes a character device that no monitor has." };
const struct ctl_command ctl_cmd_chardev_send_break = { "chardev-send-break", id_rows, sizeof(struct id_args), run_break,
    .doc = "Sends a break, which no device here takes notice of." };
const struct ctl_command ctl_cmd_query_chardev = { "query-chardev", NULL, 0, run_query, .ret = &ret_infos, .doc = "Lists the character devices." };
const struct ctl_command ctl_cmd_query_chardev_backends = { "query-chardev-backends", NULL, 0, run_query_backends, .ret = &ret_names,
    .doc = "Lists the kinds of character devices." };
const struct ctl_command ctl_cmd_monitor_add = { "x-byre-monitor-add", monitor_rows, sizeof(struct monitor_args), run_monitor,
    .doc = "Serves the control protocol on a character device, as --monitor does." };
