/* SPDX-License-Identifier: MIT
 *
 * nbd_reply.c: replies of the transmission phase.
 *
 * Purpose      Builds the header bytes that answer a request in the mode that was negotiated; collects block status.
 * Owns         nothing: pure functions of the request and the arguments.
 * Invariants   I1 a header fits nbdp_head whatever the texts are: texts are cut, never asserted.
 *              I2 extents of one status chunk: at least one, none empty, none past the request, at most
 *                 NBDP_STATUS_BYTES_MAX bytes in all, and exactly one with REQ_ONE.
 * Concurrency  any thread.
 * Failure      none
 * Tests        nbd_request_test.c, fuzz/nbd_server.c
 */
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cursor.h"
#include "proto/nbd/nbd_codec.h"

static void emit_simple(const struct nbdp_request *r, enum nbd_error e, struct nbdp_head *h)
{
    struct nbd_wire_simple w;
    be32_put(&w.magic, NBD_MAGIC_SIMPLE);
    be32_put(&w.error, e);
    be64_put(&w.cookie, r->cookie);
    memcpy(h->b, &w, sizeof w);
    h->len = sizeof w;
}

/* Chunk header for `len` bytes of payload, of which the first ones may follow in h itself. */
static struct wcur emit_chunk(const struct nbdp_request *r, uint16_t type, bool last, uint32_t len, struct nbdp_head *h)
{
    struct wcur c = wcur_of(h->b, sizeof h->b);
    bool ext = r->mode == NBDP_EXTENDED;
    ASSERT(r->mode != NBDP_SIMPLE);
    wcur_be32(&c, ext ? NBD_MAGIC_CHUNK_EXT : NBD_MAGIC_CHUNK);
    wcur_be16(&c, last ? NBD_REPLY_FLAG_DONE : 0);
    wcur_be16(&c, type);
    wcur_be64(&c, r->cookie);
    if (ext)
        wcur_be64(&c, r->off);
    if (ext)
        wcur_be64(&c, len);
    else
        wcur_be32(&c, len);
    return c;
}

static void finish(struct nbdp_head *h, const struct wcur *c)
{
    INV(I1, wcur_ok(c));
    h->len = (uint32_t)wcur_pos(c);
}

void nbdp_reply_ok(const struct nbdp_request *r, struct nbdp_head *h)
{
    if (r->mode == NBDP_SIMPLE) {
        emit_simple(r, NBD_SUCCESS, h);
        return;
    }
    struct wcur c = emit_chunk(r, NBD_REPLY_TYPE_NONE, true, 0, h);
    finish(h, &c);
}

void nbdp_reply_error(const struct nbdp_request *r, enum nbd_error e, const char *why, struct nbdp_head *h)
{
    ASSERT(e != NBD_SUCCESS);
    if (r->mode == NBDP_SIMPLE) {
        emit_simple(r, e, h);
        return;
    }
    uint16_t n = why ? (uint16_t)strnlen(why, NBDP_ERROR_TEXT_MAX) : 0;
    struct wcur c = emit_chunk(r, NBD_REPLY_TYPE_ERROR, true, 6u + n, h);
    wcur_be32(&c, e);
    wcur_be16(&c, n);
    wcur_bytes(&c, why, n);
    finish(h, &c);
}

void nbdp_reply_error_at(const struct nbdp_request *r, const struct nbdp_fault *f, bool last, struct nbdp_head *h)
{
    ASSERT(f->error != NBD_SUCCESS && f->off >= r->off && f->off - r->off < r->len);
    uint16_t n = f->why ? (uint16_t)strnlen(f->why, NBDP_ERROR_TEXT_MAX) : 0;
    struct wcur c = emit_chunk(r, NBD_REPLY_TYPE_ERROR_OFFSET, last, 14u + n, h);
    wcur_be32(&c, f->error);
    wcur_be16(&c, n);
    wcur_bytes(&c, f->why, n);
    wcur_be64(&c, f->off);
    finish(h, &c);
}

void nbdp_reply_data(const struct nbdp_request *r, uint64_t off, uint32_t len, bool last, struct nbdp_head *h)
{
    ASSERT(len && off >= r->off && range_inside(off - r->off, len, r->len) && len <= UINT32_MAX - 8);
    if (r->mode == NBDP_SIMPLE) {
        ASSERT(off == r->off && len == r->len && last);
        emit_simple(r, NBD_SUCCESS, h);
        return;
    }
    struct wcur c = emit_chunk(r, NBD_REPLY_TYPE_OFFSET_DATA, last, 8 + len, h);
    wcur_be64(&c, off);
    finish(h, &c);
}

void nbdp_reply_hole(const struct nbdp_request *r, uint64_t off, uint32_t len, bool last, struct nbdp_head *h)
{
    ASSERT(len && off >= r->off && range_inside(off - r->off, len, r->len));
    struct wcur c = emit_chunk(r, NBD_REPLY_TYPE_OFFSET_HOLE, last, 12, h);
    wcur_be64(&c, off);
    wcur_be32(&c, len);
    finish(h, &c);
}

/* ---- block status ---- */

static uint32_t extent_size(const struct nbdp_status *st)
{
    return st->req->mode == NBDP_EXTENDED ? sizeof(struct nbd_wire_extent_ext) : sizeof(struct nbd_wire_extent);
}

static uint32_t status_head_size(const struct nbdp_status *st)
{
    return st->req->mode == NBDP_EXTENDED ? 8 : 4;
}

void nbdp_status_begin(struct nbdp_status *st, const struct nbdp_request *r, uint32_t ctx_id, void *buf, uint32_t cap)
{
    ASSERT(r->mode != NBDP_SIMPLE && cap >= NBDP_STATUS_BUF_MIN);
    *st = (struct nbdp_status){ .req = r, .buf = buf, .ctx = ctx_id };
    st->cap = (uint32_t)min_u64(cap, NBDP_STATUS_BYTES_MAX);
    st->used = status_head_size(st);
}

/* Writes the pending extent to the buffer. Its room was checked when it became pending. */
static void status_flush(struct nbdp_status *st)
{
    if (!st->last_len)
        return;
    struct wcur c = wcur_of(st->buf + st->used, st->cap - st->used);
    if (st->req->mode == NBDP_EXTENDED) {
        wcur_be64(&c, st->last_len);
        wcur_be64(&c, st->last_flags);
    } else {
        ASSERT(st->last_len <= UINT32_MAX);
        wcur_be32(&c, (uint32_t)st->last_len);
        wcur_be32(&c, (uint32_t)st->last_flags);
    }
    INV(I2, wcur_ok(&c));
    st->used += (uint32_t)wcur_pos(&c);
    st->count++;
    st->last_len = 0;
}

bool nbdp_status_add(struct nbdp_status *st, uint64_t len, uint32_t flags)
{
    const struct nbdp_request *r = st->req;
    ASSERT(len);
    if (st->full)
        return false;
    len = min_u64(len, r->len - st->covered);
    if (!st->last_len || st->last_flags != flags) {
        bool room = st->used + (st->last_len ? 2 : 1) * extent_size(st) <= st->cap;
        if (!room || (st->last_len && (r->flags & NBD_CMD_FLAG_REQ_ONE))) {
            st->full = true;
            return false;
        }
        status_flush(st);
    }
    /* A request has less than 2^32 bytes unless headers are extended, so 32 bits hold every sum. */
    st->last_len += len;
    st->last_flags = flags;
    st->covered += len;
    st->full = st->covered == r->len;
    return !st->full;
}

void nbdp_status_end(struct nbdp_status *st, bool last, struct nbdp_head *h)
{
    status_flush(st);
    INV(I2, st->count > 0);
    bool ext = st->req->mode == NBDP_EXTENDED;
    struct wcur c = wcur_of(st->buf, st->cap);
    wcur_be32(&c, st->ctx);
    if (ext)
        wcur_be32(&c, st->count);
    struct wcur hc = emit_chunk(st->req, ext ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS, last, st->used, h);
    finish(h, &hc);
}
