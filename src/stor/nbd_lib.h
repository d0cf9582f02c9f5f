/* SPDX-License-Identifier: MIT
 *
 * nbd_lib.h: the functions of libnbd, which is loaded with the first disk of an NBD server. Private to stor/nbd*.c.
 */
#ifndef STOR_NBD_LIB_H
#define STOR_NBD_LIB_H

#include <libnbd.h>

#include "base/err.h"

struct co;

#define NBD_LIB_FUNCTIONS(X)                                                                                                       \
    X(add_meta_context) X(aio_block_status) X(aio_connect_socket) X(aio_disconnect) X(aio_flush) X(aio_get_direction)              \
    X(aio_get_fd) X(aio_is_closed) X(aio_is_connecting) X(aio_is_dead) X(aio_is_negotiating) X(aio_is_ready)                       \
    X(aio_notify_read) X(aio_notify_write) X(aio_opt_abort) X(aio_opt_info) X(aio_opt_list) X(aio_opt_list_meta_context)           \
    X(aio_pread) X(aio_pwrite) X(aio_trim) X(aio_zero) X(can_cache) X(can_df) X(can_fast_zero) X(can_flush) X(can_fua)             \
    X(can_meta_context) X(can_multi_conn) X(can_trim) X(can_zero) X(close) X(create) X(get_block_size) X(get_errno) X(get_error)   \
    X(get_size) X(get_private_data) X(set_private_data) X(get_structured_replies_negotiated) X(is_read_only) X(is_rotational) X(set_export_name) X(set_full_info)          \
    X(set_opt_mode)

struct nbd_lib {
#define NBD_LIB_MEMBER(f) __typeof__(nbd_##f) *f;
    NBD_LIB_FUNCTIONS(NBD_LIB_MEMBER)
#undef NBD_LIB_MEMBER
};

/* Members are called as libnbd's functions are, without their prefix. Constant once nbd_lib_load has succeeded: whoever holds a handle may use it. */
extern struct nbd_lib nbd_lib;

/* Any loop; suspends. NOT_SUPPORTED: there is no libnbd here. */
MUST_USE int nbd_lib_load(struct co *co, struct byre_err *err);

#endif
