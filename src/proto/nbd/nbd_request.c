/* SPDX-License-Identifier: MIT
 *
 * nbd_request.c: request headers of the transmission phase.
 *
 * Purpose      Decodes a header, decides by the protocol's rules whether the request is acceptable, and where its
 *              payload goes.
 * Owns         nothing; works on the state of nbd_codec.c.
 * Invariants   I1 a request without error lies inside the export, has only flags that fit its command, and is allowed
 *                 on this export: the host need not check again.
 *              I2 a payload is either delivered whole or skipped whole; the stream stays in step.
 *              I3 error values: EPERM for changes to a read-only export; ENOSPC for WRITE and WRITE_ZEROES past the end;
 *                 EOVERFLOW for an unfragmented read that is too long; EINVAL for all else.
 * Order        command, flags, rights, range, size, alignment: the first rule that is broken gives the error.
 * Concurrency  one owner; never suspends.
 * Failure      a bad magic or an absurd payload length closes, since the stream cannot be followed any more.
 * Tests        nbd_request_test.c, fuzz/nbd_server.c
 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cursor.h"
#include "proto/nbd/nbd_codec_priv.h"

/* One row per command; NBD_CMD_DISC never comes here. */
struct cmd_rule {
    uint16_t flags;            /* allowed in every mode */
    bool changes;              /* refused on a read-only export */
    bool ranged;               /* off and len name a part of the export; else both must be 0 */
    bool sized;                /* len <= payload_max */
    enum nbd_error past_end;
};

static const struct cmd_rule rules[] = {
    [NBD_CMD_READ] = { NBD_CMD_FLAG_FUA, false, true, true, NBD_EINVAL },
    [NBD_CMD_WRITE] = { NBD_CMD_FLAG_FUA, true, true, true, NBD_ENOSPC },
    [NBD_CMD_FLUSH] = { NBD_CMD_FLAG_FUA, false, false, false, NBD_EINVAL },
    [NBD_CMD_TRIM] = { NBD_CMD_FLAG_FUA, true, true, false, NBD_EINVAL },
    [NBD_CMD_CACHE] = { NBD_CMD_FLAG_FUA, false, true, false, NBD_EINVAL },
    [NBD_CMD_WRITE_ZEROES] = { NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, true, true, false, NBD_ENOSPC },
    [NBD_CMD_BLOCK_STATUS] = { NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, false, true, false, NBD_EINVAL },
};

static int refuse(struct nbdp_request *r, enum nbd_error e, const char *why)
{
    r->error = e;
    r->why = why;
    return -1;
}

static int check_flags(struct nbdp_request *r)
{
    unsigned allowed = rules[r->type].flags;
    if (r->type == NBD_CMD_READ && r->mode != NBDP_SIMPLE)
        allowed |= NBD_CMD_FLAG_DF;
    if (r->mode == NBDP_EXTENDED && (r->type == NBD_CMD_WRITE || r->type == NBD_CMD_BLOCK_STATUS))
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
    if (r->flags & ~allowed)
        return refuse(r, NBD_EINVAL, "a flag does not fit the command");
    if (r->mode == NBDP_EXTENDED && r->type == NBD_CMD_WRITE && !(r->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return refuse(r, NBD_EINVAL, "a write without payload");
    return 0;
}

static int check_range(const struct nbdp *p, struct nbdp_request *r)
{
    const struct cmd_rule *rule = &rules[r->type];
    if (!rule->ranged)
        return r->off || r->len ? refuse(r, NBD_EINVAL, "offset and length must be zero") : 0;
    if (!range_inside(r->off, r->len, p->size))
        return refuse(r, rule->past_end, "the range exceeds the export");
    if (rule->sized && r->len > p->lim.payload_max) {
        if (r->flags & NBD_CMD_FLAG_DF)
            return refuse(r, NBD_EOVERFLOW, "too long to be read unfragmented");
        return refuse(r, NBD_EINVAL, "longer than the maximum block size");
    }
    if (!is_aligned(r->off | r->len, p->block_min))
        return refuse(r, NBD_EINVAL, "not aligned to the minimum block size");
    return 0;
}

/* All rules but those about a block status payload. */
static int check(const struct nbdp *p, struct nbdp_request *r)
{
    if (p->shutdown)
        return refuse(r, NBD_ESHUTDOWN, "the server is shutting down");
    if (r->type >= sizeof rules / sizeof rules[0])
        return refuse(r, NBD_EINVAL, "unknown command");
    if (check_flags(r))
        return -1;
    if (rules[r->type].changes && p->read_only)
        return refuse(r, NBD_EPERM, "the export is read-only");
    if (check_range(p, r))
        return -1;
    if (r->type != NBD_CMD_BLOCK_STATUS)
        return 0;
    if (!p->ctx_mask)
        return refuse(r, NBD_EINVAL, "no metadata context was selected");
    return r->len ? 0 : refuse(r, NBD_EINVAL, "a status request of length zero");
}

uint32_t nbdp_request_header_len(const struct nbdp *p)
{
    return p->mode == NBDP_EXTENDED ? sizeof(struct nbd_wire_request_ext) : sizeof(struct nbd_wire_request);
}

/* Decodes the header; *ret_payload = bytes that follow it on the wire. -1: bad magic. */
static int decode(const struct nbdp *p, struct nbdp_request *r, uint64_t *ret_payload)
{
    bool ext = p->mode == NBDP_EXTENDED;
    struct rcur c = rcur_of(nbdp_rx(p), nbdp_request_header_len(p));
    if (rcur_be32(&c) != (ext ? NBD_MAGIC_REQUEST_EXT : NBD_MAGIC_REQUEST))
        return -1;
    *r = (struct nbdp_request){ .mode = (uint8_t)p->mode, .ctx_mask = p->ctx_mask };
    r->flags = rcur_be16(&c);
    r->type = rcur_be16(&c);
    r->cookie = rcur_be64(&c);
    r->off = rcur_be64(&c);
    r->len = ext ? rcur_be64(&c) : rcur_be32(&c);
    *ret_payload = 0;
    if (ext ? (r->flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0 : r->type == NBD_CMD_WRITE)
        *ret_payload = r->len;
    return 0;
}

static bool status_with_payload(const struct nbdp_request *r)
{
    return r->mode == NBDP_EXTENDED && r->type == NBD_CMD_BLOCK_STATUS && (r->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

static int drain(struct nbdp *p, uint32_t len)
{
    p->drain_left = len;
    p->state = NBDP_ST_DRAIN;
    return NBDP_GO_ON;
}

/* A block status payload: effect length, then context ids. */
static int begin_status_payload(struct nbdp *p, uint32_t len)
{
    if (len < 12 || len > 8 + 4 * NBDP_CONTEXTS_MAX || len % 4) {
        refuse(&p->req, NBD_EINVAL, "a block status payload of impossible length");
        return drain(p, len);
    }
    p->req.payload_len = len;
    p->state = NBDP_ST_STATUS_PAYLOAD;
    return NBDP_GO_ON;
}

int nbdp_status_payload(struct nbdp *p)
{
    struct nbdp_request *r = &p->req;
    struct rcur c = rcur_of(nbdp_rx(p), r->payload_len);
    unsigned mask = 0;
    bool bad = false;
    r->len = rcur_be64(&c);
    while (rcur_left(&c)) {
        uint32_t id = rcur_be32(&c);
        bad |= id >= NBDP_CONTEXTS_MAX || !(p->ctx_mask >> id & 1) || (mask >> id & 1);
        mask |= bad ? 0 : 1u << id;
    }
    nbdp_consume(p, r->payload_len);
    r->payload_len = 0;
    r->ctx_mask = (uint16_t)mask;
    if (!check(p, r) && bad)
        refuse(r, NBD_EINVAL, "a context id is unknown or named twice");
    p->state = NBDP_ST_REQUEST;
    return NBDP_REQUEST;
}

int nbdp_request_header(struct nbdp *p)
{
    struct nbdp_request *r = &p->req;
    uint64_t payload;
    if (decode(p, r, &payload))
        return nbdp_close_with(p, "bad request magic");
    nbdp_consume(p, nbdp_request_header_len(p));
    if (r->type == NBD_CMD_DISC)
        return nbdp_close_with(p, "the client disconnected");
    if (payload > p->lim.drain_max || (r->mode == NBDP_EXTENDED && payload > p->lim.payload_max))
        return nbdp_close_with(p, "payload too long");
    if (status_with_payload(r))
        return begin_status_payload(p, (uint32_t)payload);
    if (check(p, r))
        return drain(p, (uint32_t)payload);
    if (!payload)
        return NBDP_REQUEST;
    r->payload_len = (uint32_t)payload;
    p->state = NBDP_ST_ASK_BUFFER;
    return NBDP_PAYLOAD;
}

enum nbd_error nbdp_error_of(const struct nbdp_request *r, int err)
{
    switch (-err) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case ENOTSUP:
        return r->type == NBD_CMD_WRITE_ZEROES && (r->flags & NBD_CMD_FLAG_FAST_ZERO) ? NBD_ENOTSUP : NBD_EINVAL;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
