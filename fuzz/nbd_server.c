/* SPDX-License-Identifier: MIT
 *
 * nbd_server.c: fuzz target for the NBD server codec: handshake, requests and every reply builder.
 *
 * Purpose      Plays an input as a client's byte stream to a host that answers all there is to answer, and checks what
 *              comes out with a reader of replies written from the protocol's point of view.
 * Input        byte 0: bit 0 TLS required, bit 1 small limits, bit 2 shutting down, bit 3 payload buffers refused;
 *              bits 4..7: pieces of 2^n bytes (0: as much as fits). The rest is the stream.
 * Invariants   I1 the codec's own (nbdp_check), after every event.
 *              I2 a request without error lies inside its export and changes nothing that is read-only.
 *              I3 every reply can be read back: right magic, cookie, lengths; data and holes inside the request.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/nbd_server)
 */
#include <errno.h>

#include "base/cursor.h"
#include "proto/nbd/nbd_test_peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct nbdp_export *export_of(uint64_t serial)
{
    for (size_t i = 0; i < PEER_EXPORTS; i++)
        if (peer_exports[i].serial == serial)
            return &peer_exports[i];
    return NULL;
}

/* Reads a chunk header; returns a cursor over what lies in h behind it. */
static struct rcur read_chunk(const struct nbdp_request *r, const struct nbdp_head *h, uint16_t *ret_type, uint64_t *ret_len)
{
    struct rcur c = rcur_of(h->b, h->len);
    bool ext = r->mode == NBDP_EXTENDED;
    ASSERT(h->len <= sizeof h->b);
    ASSERT(rcur_be32(&c) == (ext ? NBD_MAGIC_CHUNK_EXT : NBD_MAGIC_CHUNK));
    ASSERT(rcur_be16(&c) <= NBD_REPLY_FLAG_DONE);
    *ret_type = rcur_be16(&c);
    ASSERT(rcur_be64(&c) == r->cookie);
    if (ext)
        ASSERT(rcur_be64(&c) == r->off);
    *ret_len = ext ? rcur_be64(&c) : rcur_be32(&c);
    ASSERT(rcur_ok(&c));
    return c;
}

/* data_len: bytes that the host would send behind h. */
static void check_reply(const struct nbdp_request *r, const struct nbdp_head *h, uint64_t data_len)
{
    uint16_t type;
    uint64_t len;
    if (r->mode == NBDP_SIMPLE) {
        struct rcur c = rcur_of(h->b, h->len);
        ASSERT(rcur_be32(&c) == NBD_MAGIC_SIMPLE && (rcur_be32(&c) == 0 || data_len == 0) && rcur_be64(&c) == r->cookie);
        ASSERT(rcur_at_end(&c));
        return;
    }
    struct rcur c = read_chunk(r, h, &type, &len);
    ASSERT(rcur_left(&c) + data_len == len);
    if (type == NBD_REPLY_TYPE_OFFSET_DATA || type == NBD_REPLY_TYPE_OFFSET_HOLE) {
        uint64_t off = rcur_be64(&c), n = type == NBD_REPLY_TYPE_OFFSET_HOLE ? rcur_be32(&c) : data_len;
        ASSERT(n && off >= r->off && range_inside(off - r->off, n, r->len) && rcur_at_end(&c));
    } else if (type & 0x8000) {
        ASSERT(rcur_be32(&c) != 0);
        rcur_skip(&c, rcur_be16(&c));
        if (type == NBD_REPLY_TYPE_ERROR_OFFSET) {
            uint64_t off = rcur_be64(&c);
            ASSERT(off >= r->off && off - r->off < r->len);
        }
        ASSERT(rcur_at_end(&c));
    } else {
        ASSERT(type != NBD_REPLY_TYPE_NONE || len == 0);
    }
}

static void answer_read(const struct nbdp_request *r)
{
    struct nbdp_head h;
    uint32_t len = (uint32_t)r->len, half = len / 2;
    if (!len) {
        nbdp_reply_ok(r, &h);
        check_reply(r, &h, 0);
        return;
    }
    if (r->mode == NBDP_SIMPLE || (r->flags & NBD_CMD_FLAG_DF) || !half) {
        nbdp_reply_data(r, r->off, len, true, &h);
        check_reply(r, &h, len);
        return;
    }
    nbdp_reply_data(r, r->off, half, false, &h);
    check_reply(r, &h, half);
    nbdp_reply_hole(r, r->off + half, len - half, false, &h);
    check_reply(r, &h, 0);
    struct nbdp_fault f = { nbdp_error_of(r, -EIO), r->off + r->cookie % r->len, "fault" };
    nbdp_reply_error_at(r, &f, true, &h);
    check_reply(r, &h, 0);
}

static void answer_status(const struct nbdp_request *r, uint32_t ctx)
{
    static uint8_t buf[4096];
    struct nbdp_status st;
    struct nbdp_head h;
    uint64_t x = r->cookie | 1, covered = 0;
    unsigned n = 0;
    nbdp_status_begin(&st, r, ctx, buf, (uint32_t)(NBDP_STATUS_BUF_MIN + r->cookie % (sizeof buf - NBDP_STATUS_BUF_MIN)));
    do {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    } while (nbdp_status_add(&st, x & 1 ? (x >> 1) | 1 : (x >> 44 | 1), (uint32_t)(x >> 9 & 3)));
    nbdp_status_end(&st, true, &h);
    check_reply(r, &h, st.used);
    struct rcur c = rcur_of(buf, st.used);
    bool ext = r->mode == NBDP_EXTENDED;
    ASSERT(rcur_be32(&c) == ctx);
    uint32_t count = ext ? rcur_be32(&c) : 0;
    for (; rcur_left(&c); n++) {
        uint64_t len = ext ? rcur_be64(&c) : rcur_be32(&c);
        ASSERT(len && range_inside(covered, len, r->len));
        covered += len;
        rcur_skip(&c, ext ? 8 : 4);
    }
    ASSERT(rcur_ok(&c) && n >= 1 && (!ext || count == n) && (n == 1 || !(r->flags & NBD_CMD_FLAG_REQ_ONE)));
}

static void answer(struct peer *t, const struct nbdp_request *r)
{
    const struct nbdp_export *e = export_of(nbdp_export_serial(t->p));
    struct nbdp_head h;
    ASSERT(e);
    if (r->error) {
        nbdp_reply_error(r, r->error, r->why, &h);
        check_reply(r, &h, 0);
        return;
    }
    ASSERT(range_inside(r->off, r->len, e->size));
    ASSERT(!e->read_only || (r->type != NBD_CMD_WRITE && r->type != NBD_CMD_TRIM && r->type != NBD_CMD_WRITE_ZEROES));
    ASSERT(r->type != NBD_CMD_WRITE || r->payload_len == r->len);
    if (r->type == NBD_CMD_READ) {
        answer_read(r);
        return;
    }
    if (r->type == NBD_CMD_BLOCK_STATUS) {
        ASSERT(r->ctx_mask && !(r->ctx_mask & ~nbdp_contexts(t->p)));
        for (uint32_t i = 0; i < NBDP_CONTEXTS_MAX; i++)
            if (r->ctx_mask >> i & 1)
                answer_status(r, i);
        return;
    }
    if (r->cookie & 1)
        nbdp_reply_ok(r, &h);
    else
        nbdp_reply_error(r, nbdp_error_of(r, -(int)(r->cookie >> 1 & 127)), "engine", &h);
    check_reply(r, &h, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct nbdp_limits small = { .option_bytes_max = 200, .options_max = 6, .payload_max = 4096, .drain_max = 5000 };
    struct nbdp_limits lim = { .payload_max = 1 << 20, .drain_max = 2 << 20 };
    struct peer t;
    if (!size)
        return 0;
    uint8_t ctl = data[0];
    peer_init(&t, ctl & 2 ? &small : &lim, ctl & 1 ? NBDP_TLS_REQUIRED : NBDP_TLS_NONE);
    if (ctl & 4)
        nbdp_set_shutdown(t.p);
    t.refuse_payload = ctl & 8;
    t.on_request = answer;
    peer_feed(&t, data + 1, size - 1, ctl >> 4 ? (size_t)1 << (ctl >> 4) : SIZE_MAX);
    peer_fini(&t);
    return 0;
}
