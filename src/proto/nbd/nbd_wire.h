/* SPDX-License-Identifier: MIT
 *
 * nbd_wire.h: numbers and byte layouts of the NBD protocol (fixed newstyle, structured replies, extended
 * headers). Nothing else is in here. Names follow the protocol text so that both can be read side by side.
 */
#ifndef PROTO_NBD_WIRE_H
#define PROTO_NBD_WIRE_H

#include "base/assert.h"
#include "base/endian.h"

#define NBD_MAGIC_INIT        UINT64_C(0x4e42444d41474943)   /* "NBDMAGIC" */
#define NBD_MAGIC_OPTION      UINT64_C(0x49484156454f5054)   /* "IHAVEOPT" */
#define NBD_MAGIC_OPT_REPLY   UINT64_C(0x0003e889045565a9)
#define NBD_MAGIC_REQUEST     UINT32_C(0x25609513)
#define NBD_MAGIC_REQUEST_EXT UINT32_C(0x21e41c71)
#define NBD_MAGIC_SIMPLE      UINT32_C(0x67446698)
#define NBD_MAGIC_CHUNK       UINT32_C(0x668e33ef)
#define NBD_MAGIC_CHUNK_EXT   UINT32_C(0x6e8a278c)

#define NBD_STRING_MAX 4096u          /* bytes in any string of the protocol */
#define NBD_EXPORT_NAME_ZEROES 124u   /* padding after the answer to EXPORT_NAME unless NO_ZEROES was agreed */

enum {                                /* handshake flags (server) and client flags: the same bits */
    NBD_FLAG_FIXED_NEWSTYLE = 1u << 0,
    NBD_FLAG_NO_ZEROES = 1u << 1,
};

enum {                                /* transmission flags */
    NBD_FLAG_HAS_FLAGS = 1u << 0,
    NBD_FLAG_READ_ONLY = 1u << 1,
    NBD_FLAG_SEND_FLUSH = 1u << 2,
    NBD_FLAG_SEND_FUA = 1u << 3,
    NBD_FLAG_ROTATIONAL = 1u << 4,
    NBD_FLAG_SEND_TRIM = 1u << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1u << 6,
    NBD_FLAG_SEND_DF = 1u << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1u << 8,
    NBD_FLAG_SEND_CACHE = 1u << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1u << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1u << 12,
};

enum nbd_opt {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERR_BIT UINT32_C(0x80000000)
enum nbd_rep {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP           (NBD_REP_ERR_BIT | 1u)
#define NBD_REP_ERR_POLICY          (NBD_REP_ERR_BIT | 2u)
#define NBD_REP_ERR_INVALID         (NBD_REP_ERR_BIT | 3u)
#define NBD_REP_ERR_PLATFORM        (NBD_REP_ERR_BIT | 4u)
#define NBD_REP_ERR_TLS_REQD        (NBD_REP_ERR_BIT | 5u)
#define NBD_REP_ERR_UNKNOWN         (NBD_REP_ERR_BIT | 6u)
#define NBD_REP_ERR_SHUTDOWN        (NBD_REP_ERR_BIT | 7u)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERR_BIT | 8u)
#define NBD_REP_ERR_TOO_BIG         (NBD_REP_ERR_BIT | 9u)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERR_BIT | 10u)

enum { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2, NBD_INFO_BLOCK_SIZE = 3 };

enum nbd_cmd {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1u << 0,
    NBD_CMD_FLAG_NO_HOLE = 1u << 1,
    NBD_CMD_FLAG_DF = 1u << 2,
    NBD_CMD_FLAG_REQ_ONE = 1u << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1u << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1u << 5,
};

enum { NBD_REPLY_FLAG_DONE = 1u << 0 };
enum {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_OFFSET_HOLE = 2,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6,
    NBD_REPLY_TYPE_ERROR = 0x8001,
    NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002,
};

enum { NBD_STATE_HOLE = 1u << 0, NBD_STATE_ZERO = 1u << 1 };   /* base:allocation */
enum { NBD_STATE_DIRTY = 1u << 0 };                            /* qemu:dirty-bitmap:NAME */

enum nbd_error {                      /* the only values that may stand in an error field */
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct nbd_wire_greeting { be64 magic, magic_option; be16 flags; };
struct nbd_wire_option { be64 magic; be32 option, len; };
struct nbd_wire_opt_reply { be64 magic; be32 option, type, len; };
struct nbd_wire_export { be64 size; be16 flags; };
struct nbd_wire_info_export { be16 type; be64 size; be16 flags; };
struct nbd_wire_info_block { be16 type; be32 min, preferred, max; };

struct nbd_wire_request { be32 magic; be16 flags, type; be64 cookie, off; be32 len; };
struct nbd_wire_request_ext { be32 magic; be16 flags, type; be64 cookie, off, len; };
struct nbd_wire_simple { be32 magic, error; be64 cookie; };
struct nbd_wire_chunk { be32 magic; be16 flags, type; be64 cookie; be32 len; };
struct nbd_wire_chunk_ext { be32 magic; be16 flags, type; be64 cookie, off, len; };
struct nbd_wire_extent { be32 len, flags; };
struct nbd_wire_extent_ext { be64 len, flags; };

DISK_SIZE(struct nbd_wire_greeting, 18);
DISK_SIZE(struct nbd_wire_option, 16);
DISK_SIZE(struct nbd_wire_opt_reply, 20);
DISK_SIZE(struct nbd_wire_export, 10);
DISK_SIZE(struct nbd_wire_info_export, 12);
DISK_SIZE(struct nbd_wire_info_block, 14);
DISK_SIZE(struct nbd_wire_request, 28);
DISK_SIZE(struct nbd_wire_request_ext, 32);
DISK_SIZE(struct nbd_wire_simple, 16);
DISK_SIZE(struct nbd_wire_chunk, 20);
DISK_SIZE(struct nbd_wire_chunk_ext, 32);
DISK_SIZE(struct nbd_wire_extent, 8);
DISK_SIZE(struct nbd_wire_extent_ext, 16);

#endif
