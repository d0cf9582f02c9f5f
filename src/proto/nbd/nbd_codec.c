/* SPDX-License-Identifier: MIT
 *
 * nbd_codec.c: the state machine of one connection, seen from the server.
 *
 * Purpose      Cuts the byte stream of a client into options, requests and payloads, and says what the host has to do.
 *
 *     CLIENT_FLAGS -> OPTION <-> ASK_HOST (FIND_EXPORT, LIST)         nbd_option.c
 *                     OPTION  -> TLS -> OPTION                        nbdp_tls_started
 *                     ASK_HOST -> ENTER -> REQUEST                    EXPORT_NAME, GO
 *     REQUEST -> ASK_BUFFER -> PAYLOAD | DRAIN -> REQUEST             a WRITE, nbd_request.c
 *     REQUEST -> STATUS_PAYLOAD | DRAIN -> REQUEST
 *     any -> CLOSED                                                   nbdp_close_with; final
 *
 * Owns         one input buffer of fixed size, one growing output buffer (its size follows from the host's exports and
 *              texts, not from the client).
 * Invariants   I1 head + have <= NBDP_RX_CAP: no length from the client is used before it was compared with a limit.
 *              I2 the state is complete before the first byte arrives.
 *              I3 nothing negotiated survives nbdp_tls_started.
 *              I4 dst is set exactly while a payload is expected (PAYLOAD).
 * Concurrency  one owner; never suspends.
 * Failure      a client that breaks the protocol ends in CLOSED with a reason; memory shortage does too.
 * Tests        nbd_option_test.c, nbd_context_test.c, nbd_request_test.c, fuzz/nbd_server.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "proto/nbd/nbd_codec_priv.h"

static uint32_t limit(uint32_t wanted, uint32_t normal)
{
    return wanted ? wanted : normal;
}

static void greet(struct nbdp *p)
{
    struct nbd_wire_greeting g;
    be64_put(&g.magic, NBD_MAGIC_INIT);
    be64_put(&g.magic_option, NBD_MAGIC_OPTION);
    be16_put(&g.flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbdp_write(p, &g, sizeof g);
}

int nbdp_new(const struct nbdp_limits *limits, enum nbdp_tls tls, struct nbdp **ret_p)
{
    struct nbdp *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    struct nbdp_limits l = limits ? *limits : (struct nbdp_limits){ 0 };
    p->lim.option_bytes_max = (uint32_t)min_u64(limit(l.option_bytes_max, NBDP_OPTION_BYTES_MAX), NBDP_OPTION_BYTES_MAX);
    p->lim.options_max = limit(l.options_max, NBDP_OPTIONS_MAX);
    p->lim.payload_max = limit(l.payload_max, NBDP_PAYLOAD_MAX);
    p->lim.drain_max = limit(l.drain_max, NBDP_DRAIN_MAX);
    p->tls = tls;
    p->block_min = 1;
    p->rx = malloc(NBDP_RX_CAP);
    if (p->rx)
        greet(p);
    if (!p->rx || p->out_failed) {
        nbdp_free(p);
        return -ENOMEM;
    }
    *ret_p = p;
    return 0;
}

void nbdp_free(struct nbdp *p)
{
    if (!p)
        return;
    free(p->rx);
    free(p->out);
    free(p);
}

int nbdp_close_with(struct nbdp *p, const char *reason)
{
    if (p->state != NBDP_ST_CLOSED)
        p->close_reason = reason;
    p->state = NBDP_ST_CLOSED;
    p->dst = NULL;
    p->dst_left = 0;
    return NBDP_CLOSE;
}

void nbdp_consume(struct nbdp *p, uint32_t n)
{
    INV(I1, n <= p->have);
    p->head += n;
    p->have -= n;
    if (!p->have)
        p->head = 0;
}

/* ---- output ---- */

static bool out_reserve(struct nbdp *p, size_t len)
{
    if (p->out_head) {
        memmove(p->out, p->out + p->out_head, p->out_len);
        p->out_head = 0;
    }
    if (len <= p->out_cap - p->out_len)
        return true;
    size_t cap = p->out_cap ? p->out_cap : 512;
    while (cap - p->out_len < len)
        cap *= 2;
    uint8_t *bigger = realloc(p->out, cap);
    if (!bigger)
        return false;
    p->out = bigger;
    p->out_cap = cap;
    return true;
}

void nbdp_write(struct nbdp *p, const void *buf, size_t len)
{
    if (p->out_failed || !len)
        return;
    if (!out_reserve(p, len)) {
        p->out_failed = true;
        return;
    }
    memcpy(p->out + p->out_len, buf, len);
    p->out_len += len;
}

size_t nbdp_output(const struct nbdp *p, const uint8_t **ret_buf)
{
    *ret_buf = p->out_len ? p->out + p->out_head : NULL;
    return p->out_failed ? 0 : p->out_len;
}

void nbdp_output_sent(struct nbdp *p, size_t n)
{
    ASSERT(n <= p->out_len);
    p->out_head += n;
    p->out_len -= n;
    if (!p->out_len)
        p->out_head = 0;
}

/* ---- input ---- */

size_t nbdp_space(struct nbdp *p, uint8_t **ret_buf)
{
    p->direct = p->state == NBDP_ST_PAYLOAD && p->dst_left >= NBDP_DIRECT_MIN;
    if (p->direct) {
        ASSERT(!p->have);      /* a payload takes all of rx before it asks for more */
        *ret_buf = p->dst;
        return p->dst_left;
    }
    if (p->head && NBDP_RX_CAP - p->head - p->have < NBDP_RX_CAP / 4) {
        memmove(p->rx, p->rx + p->head, p->have);
        p->head = 0;
    }
    *ret_buf = p->rx + p->head + p->have;
    return NBDP_RX_CAP - p->head - p->have;
}

void nbdp_filled(struct nbdp *p, size_t n)
{
    if (p->direct) {
        ASSERT(n <= p->dst_left);
        p->dst += n;
        p->dst_left -= (uint32_t)n;
        return;
    }
    INV(I1, n <= NBDP_RX_CAP - p->head - p->have);
    p->have += (uint32_t)n;
}

/* ---- steps ---- */

static int step_client_flags(struct nbdp *p)
{
    if (p->have < sizeof(be32))
        return NBDP_NEED_INPUT;
    uint32_t flags = be32_get((const be32 *)(const void *)nbdp_rx(p));
    nbdp_consume(p, sizeof(be32));
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        return nbdp_close_with(p, "unknown client flags");
    if (p->tls == NBDP_TLS_REQUIRED && !(flags & NBD_FLAG_FIXED_NEWSTYLE))
        return nbdp_close_with(p, "TLS is required and the client cannot negotiate it");
    p->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    p->state = NBDP_ST_OPTION;
    return NBDP_GO_ON;
}

static int step_option(struct nbdp *p)
{
    struct nbd_wire_option h;
    if (p->have < sizeof h)
        return NBDP_NEED_INPUT;
    memcpy(&h, nbdp_rx(p), sizeof h);
    if (be64_get(&h.magic) != NBD_MAGIC_OPTION)
        return nbdp_close_with(p, "bad option magic");
    if (p->options >= p->lim.options_max)
        return nbdp_close_with(p, "too many options");
    p->opt = be32_get(&h.option);
    p->opt_len = be32_get(&h.len);
    if (p->opt_len > p->lim.option_bytes_max)
        return nbdp_close_with(p, "option data too long");
    if (p->have < sizeof h + p->opt_len)
        return NBDP_NEED_INPUT;
    p->options++;
    return nbdp_option(p);
}

static int step_payload(struct nbdp *p)
{
    uint32_t n = (uint32_t)min_u64(p->have, p->dst_left);
    memcpy(p->dst, nbdp_rx(p), n);
    nbdp_consume(p, n);
    p->dst += n;
    p->dst_left -= n;
    if (p->dst_left)
        return NBDP_NEED_INPUT;
    p->dst = NULL;
    p->state = NBDP_ST_REQUEST;
    return NBDP_REQUEST;
}

static int step_drain(struct nbdp *p)
{
    uint32_t n = (uint32_t)min_u64(p->have, p->drain_left);
    nbdp_consume(p, n);
    p->drain_left -= n;
    if (p->drain_left)
        return NBDP_NEED_INPUT;
    p->state = NBDP_ST_REQUEST;
    return NBDP_REQUEST;
}

static int step(struct nbdp *p)
{
    switch (p->state) {
    case NBDP_ST_CLIENT_FLAGS:
        return step_client_flags(p);
    case NBDP_ST_OPTION:
        return step_option(p);
    case NBDP_ST_ENTER:
        p->state = NBDP_ST_REQUEST;
        return NBDP_READY;
    case NBDP_ST_REQUEST:
        return p->have < nbdp_request_header_len(p) ? NBDP_NEED_INPUT : nbdp_request_header(p);
    case NBDP_ST_PAYLOAD:
        return step_payload(p);
    case NBDP_ST_STATUS_PAYLOAD:
        return p->have < p->req.payload_len ? NBDP_NEED_INPUT : nbdp_status_payload(p);
    case NBDP_ST_DRAIN:
        return step_drain(p);
    case NBDP_ST_CLOSED:
        return NBDP_CLOSE;
    case NBDP_ST_ASK_HOST:
    case NBDP_ST_TLS:
    case NBDP_ST_ASK_BUFFER:
        break;      /* the host has not answered: its fault, not the client's */
    }
    UNREACHABLE();
}

enum nbdp_event nbdp_next(struct nbdp *p)
{
    int ev = NBDP_GO_ON;
    while (ev == NBDP_GO_ON) {
        if (p->out_failed)
            nbdp_close_with(p, "out of memory");
        ev = step(p);
    }
    return (enum nbdp_event)ev;
}

/* ---- payloads ---- */

void nbdp_payload_into(struct nbdp *p, void *buf)
{
    ASSERT(p->state == NBDP_ST_ASK_BUFFER);
    p->dst = buf;
    p->dst_left = p->req.payload_len;
    p->state = NBDP_ST_PAYLOAD;
}

void nbdp_payload_refuse(struct nbdp *p, enum nbd_error e, const char *why)
{
    ASSERT(p->state == NBDP_ST_ASK_BUFFER && e != NBD_SUCCESS);
    p->req.error = e;
    p->req.why = why;
    p->drain_left = p->req.payload_len;
    p->state = NBDP_ST_DRAIN;
}

void nbdp_tls_started(struct nbdp *p)
{
    ASSERT(p->state == NBDP_ST_TLS && !p->out_len);
    nbdp_forget_negotiated(p);
    p->head = p->have = 0;
    p->tls_up = true;
    p->state = NBDP_ST_OPTION;
}

/* ---- state ---- */

const struct nbdp_request *nbdp_request(const struct nbdp *p)
{
    return &p->req;
}

void nbdp_set_shutdown(struct nbdp *p)
{
    p->shutdown = true;
}

bool nbdp_in_transmission(const struct nbdp *p)
{
    return p->serial != 0;
}

enum nbdp_mode nbdp_mode(const struct nbdp *p)
{
    return p->mode;
}

uint64_t nbdp_export_serial(const struct nbdp *p)
{
    return p->serial;
}

uint16_t nbdp_contexts(const struct nbdp *p)
{
    return p->ctx_mask;
}

const char *nbdp_close_reason(const struct nbdp *p)
{
    return p->close_reason ? p->close_reason : "";
}

void nbdp_check(const struct nbdp *p)
{
    INV(I1, p->head <= NBDP_RX_CAP && p->have <= NBDP_RX_CAP - p->head);
    INV(I1, p->opt_len <= p->lim.option_bytes_max || p->state == NBDP_ST_CLOSED);
    INV(I2, p->rx && (unsigned)p->state <= NBDP_ST_CLOSED && is_pow2(p->block_min));
    INV(I3, !p->ctx_mask || p->mode != NBDP_SIMPLE);
    INV(I4, (p->dst != NULL) == (p->state == NBDP_ST_PAYLOAD));
    ASSERT(p->out_head + p->out_len <= p->out_cap);
    ASSERT((p->state == NBDP_ST_CLOSED) == (p->close_reason != NULL));
}
