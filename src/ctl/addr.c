/* SPDX-License-Identifier: MIT
 *
 * addr.c: addresses of sockets as arguments of commands.
 *
 * Purpose      One set of rows for servers and character devices.
 * Owns         constant tables
 * Invariants   none
 * Concurrency  any
 * Failure      none
 * Tests        tests/daemon
 */
#include "ctl/addr.h"

static const struct ctl_arg inet_data_rows[] = {
    { "host", CTL_STR, true, CTL_AT(struct ctl_addr_inet, host), .doc = "Empty: all addresses." },
    { "port", CTL_STR, true, CTL_AT(struct ctl_addr_inet, port), .doc = "A number; 0 picks a free one." },
    CTL_ARGS_END
};
static const struct ctl_arg unix_data_rows[] = {
    { "path", CTL_STR, true, CTL_AT(struct ctl_addr_unix, path) },
    { "abstract", CTL_BOOL, false, CTL_AT(struct ctl_addr_unix, abstract), .doc = "A name that is in no folder: there are no permissions on it." },
    { "tight", CTL_BOOL, false, CTL_AT_HAS(struct ctl_addr_unix, tight), .doc = "off: an abstract name is filled up with zeros." },
    CTL_ARGS_END
};
static const struct ctl_arg vsock_data_rows[] = {
    { "cid", CTL_STR, true, CTL_AT(struct ctl_addr_vsock, cid), .doc = "Of the virtual machine, or of this host: a number; -1: all." },
    { "port", CTL_STR, true, CTL_AT(struct ctl_addr_vsock, port) },
    CTL_ARGS_END
};
static const struct ctl_shape vsock_shape = { .name = "VsockSocketAddress", .rows = vsock_data_rows, .bytes = sizeof(struct ctl_addr_vsock) };
static const struct ctl_arg fd_data_rows[] = { { "str", CTL_STR, true, CTL_AT(struct ctl_addr_fd, str), .doc = "A name that getfd has given; on the command line: the number of a socket of the process." }, CTL_ARGS_END };
static const struct ctl_shape inet_shape = { .name = "InetSocketAddress", .rows = inet_data_rows, .bytes = sizeof(struct ctl_addr_inet) };
static const struct ctl_shape unix_shape = { .name = "UnixSocketAddress", .rows = unix_data_rows, .bytes = sizeof(struct ctl_addr_unix) };
static const struct ctl_shape fd_shape = { .name = "FdSocketAddress", .rows = fd_data_rows, .bytes = sizeof(struct ctl_addr_fd) };

static const char *const type_words[] = { [CTL_ADDR_INET] = "inet", [CTL_ADDR_UNIX] = "unix", [CTL_ADDR_VSOCK] = "vsock", [CTL_ADDR_FD] = "fd", NULL };
static const struct ctl_shape type_shape = { .name = "SocketAddressType", .words = type_words };
static const struct ctl_arg inet_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct ctl_addr, inet), .of = &inet_shape }, CTL_ARGS_END };
static const struct ctl_arg unix_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct ctl_addr, un), .of = &unix_shape }, CTL_ARGS_END };
static const struct ctl_arg vsock_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct ctl_addr, vsock), .of = &vsock_shape }, CTL_ARGS_END };
static const struct ctl_arg fd_rows[] = { { "data", CTL_STRUCT, true, CTL_AT(struct ctl_addr, fd), .of = &fd_shape }, CTL_ARGS_END };
static const struct ctl_case cases[] = { { "inet", inet_rows }, { "unix", unix_rows }, { "vsock", vsock_rows }, { "fd", fd_rows }, { NULL, NULL } };
static const struct ctl_arg rows[] = { { "type", CTL_ENUM, true, CTL_AT(struct ctl_addr, type), .of = &type_shape }, CTL_ARGS_END };
const struct ctl_shape ctl_addr_shape = { .name = "SocketAddressLegacy", .rows = rows, .bytes = sizeof(struct ctl_addr), .tag = "type", .cases = cases };
