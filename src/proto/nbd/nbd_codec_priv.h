/* SPDX-License-Identifier: MIT
 *
 * nbd_codec_priv.h: the state that nbd_codec.c, nbd_option.c and nbd_request.c share. Not for other folders.
 */
#ifndef PROTO_NBD_CODEC_PRIV_H
#define PROTO_NBD_CODEC_PRIV_H

#include "proto/nbd/nbd_codec.h"

enum nbdp_state {
    NBDP_ST_CLIENT_FLAGS,      /* 4 bytes from the client */
    NBDP_ST_OPTION,            /* one option, header and data, collected whole */
    NBDP_ST_ASK_HOST,          /* FIND_EXPORT or LIST was handed out */
    NBDP_ST_TLS,               /* STARTTLS was handed out */
    NBDP_ST_ENTER,             /* NBDP_READY is to be handed out */
    NBDP_ST_REQUEST,           /* a request header */
    NBDP_ST_ASK_BUFFER,        /* PAYLOAD was handed out */
    NBDP_ST_PAYLOAD,           /* bytes go to dst */
    NBDP_ST_STATUS_PAYLOAD,    /* the small payload of a block status request, collected whole */
    NBDP_ST_DRAIN,             /* bytes go nowhere, then the request is handed out as refused */
    NBDP_ST_CLOSED,
};

#define NBDP_RX_CAP (16u + NBDP_OPTION_BYTES_MAX)
#define NBDP_DIRECT_MIN (16u << 10)            /* shorter payload rests go through rx: one receive brings many requests */

struct nbdp {
    /* configuration */
    struct nbdp_limits lim;
    enum nbdp_tls tls;
    /* input: rx[head, head+have) is not consumed yet */
    uint8_t *rx;
    uint32_t head, have;
    /* output of the handshake: out[out_head, out_head+out_len) is not sent yet */
    uint8_t *out;
    size_t out_head, out_len, out_cap;
    /* handshake */
    enum nbdp_state state;
    bool tls_up, shutdown, no_zeroes, out_failed;
    uint32_t options;                          /* seen so far */
    uint32_t opt, opt_len;                     /* the one at rx[head] */
    uint32_t want_off, want_len;               /* export name inside its data */
    uint32_t query_off;                        /* list of infos or of context queries inside its data */
    /* negotiated */
    enum nbdp_mode mode;
    uint16_t ctx_mask;
    uint64_t ctx_serial;                       /* export that ctx_mask was chosen for */
    uint64_t serial, size;
    uint32_t block_min;
    bool read_only;
    /* transmission */
    struct nbdp_request req;
    uint8_t *dst;
    uint32_t dst_left, drain_left;
    bool direct;                               /* the last nbdp_space pointed into dst */
    const char *close_reason;
};

#define NBDP_GO_ON (-1)                        /* a step that made progress and has no event for the host */

/* nbd_codec.c. Steps return an enum nbdp_event or NBDP_GO_ON. */
int nbdp_close_with(struct nbdp *p, const char *reason);
static inline const uint8_t *nbdp_rx(const struct nbdp *p) { return p->rx + p->head; }
void nbdp_consume(struct nbdp *p, uint32_t n);             /* n <= have */
void nbdp_write(struct nbdp *p, const void *buf, size_t len);
/* nbd_option.c: the option at rx[head] is there whole */
int nbdp_option(struct nbdp *p);
void nbdp_forget_negotiated(struct nbdp *p);
/* nbd_request.c: the header at rx[head] is there whole / so is the block status payload */
uint32_t nbdp_request_header_len(const struct nbdp *p);
int nbdp_request_header(struct nbdp *p);
int nbdp_status_payload(struct nbdp *p);

#endif
