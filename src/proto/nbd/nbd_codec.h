/* SPDX-License-Identifier: MIT
 *
 * nbd_codec.h: the server side of the NBD protocol without any I/O. Bytes go in, events come out; the host (the
 * program around the codec) answers events and sends what the codec wrote.
 *
 *     for (;;) {
 *         enum nbdp_event ev = nbdp_next(p);
 *         send and clear nbdp_output(p)                      only the handshake writes there
 *         switch (ev) {
 *         case NBDP_NEED_INPUT:  n = recv(nbdp_space(p, &buf)...); nbdp_filled(p, n); break;
 *         case NBDP_FIND_EXPORT: nbdp_export_found(p, &info) or nbdp_export_refused(p, ...); break;
 *         case NBDP_LIST:        nbdp_list_item(p, ...)...; nbdp_list_end(p); break;
 *         case NBDP_STARTTLS:    (only with tls) do the TLS handshake; nbdp_tls_started(p); break;
 *         case NBDP_READY:       the handshake is over: drop its time limit
 *         case NBDP_PAYLOAD:     nbdp_payload_into(p, buf) or nbdp_payload_refuse(p, NBD_ENOMEM, ...); break;
 *         case NBDP_REQUEST:     copy *nbdp_request(p); execute; answer with nbdp_reply_*; break;
 *         case NBDP_CLOSE:       finish what is in flight and close
 *         }
 *     }
 *
 * Replies of the transmission phase are built by pure functions of the request (nbdp_reply_*, nbdp_status_*), so any
 * number of requests can be in flight and answered in any order.
 *
 * Limits (all of what a peer can size): struct nbdp_limits.
 */
#ifndef PROTO_NBD_CODEC_H
#define PROTO_NBD_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/nbd/nbd_wire.h"

#define NBDP_CONTEXTS_MAX 16u                  /* contexts that one client may select; ids 0..15 */
#define NBDP_OPTION_BYTES_MAX (64u << 10)
#define NBDP_OPTIONS_MAX (64u << 10)           /* who lists exports asks several questions about each; the handshake has a time limit, too */
#define NBDP_PAYLOAD_MAX (32u << 20)
#define NBDP_DRAIN_MAX (64u << 20)
#define NBDP_STATUS_BYTES_MAX (1u << 20)       /* one block status chunk */
#define NBDP_ERROR_TEXT_MAX 160u               /* longer texts of ours are cut */
#define NBDP_HEAD_MAX (32u + 6u + NBDP_ERROR_TEXT_MAX + 8u)

/* A zero member means its default, the macro above. */
struct nbdp_limits {
    uint32_t option_bytes_max;                 /* data of one option; more ends the connection. <= 64 KiB */
    uint32_t options_max;                      /* options in one handshake; more ends the connection */
    uint32_t payload_max;                      /* bytes of a READ or WRITE; advertised as maximum block size */
    uint32_t drain_max;                        /* unwanted payload that is skipped; more ends the connection */
};

enum nbdp_tls { NBDP_TLS_NONE, NBDP_TLS_REQUIRED };
enum nbdp_mode { NBDP_SIMPLE, NBDP_STRUCTURED, NBDP_EXTENDED };

enum nbdp_event {
    NBDP_NEED_INPUT,
    NBDP_FIND_EXPORT,
    NBDP_LIST,
    NBDP_STARTTLS,
    NBDP_READY,
    NBDP_PAYLOAD,
    NBDP_REQUEST,
    NBDP_CLOSE,
};

/* What the codec must know of an export. Strings: UTF-8, at most NBD_STRING_MAX bytes, read during the call only. */
struct nbdp_export {
    uint64_t serial;                           /* never reused for another export of this process */
    const char *name;                          /* canonical name */
    const char *description;                   /* NULL = none */
    uint64_t size;                             /* bytes; at most 2^63-1 */
    bool read_only, multi_conn, rotational;
    uint32_t block_min;                        /* power of two, 1..65536; enforced only if the client agreed to it */
    uint32_t block_preferred;                  /* power of two, >= 512 */
    uint32_t block_max;                        /* what clients are told to send at most, if they ask; 0: no less than any may. Not enforced */
    unsigned ctx_count;                        /* <= NBDP_CONTEXTS_MAX */
    const char *const *ctx;                    /* name of context id i, NULL where not offered */
};

struct nbdp_request {
    uint64_t cookie, off, len;                 /* len: bytes of the export that are meant */
    uint32_t payload_len;                      /* bytes that NBDP_PAYLOAD delivers (WRITE) */
    uint16_t type, flags;                      /* enum nbd_cmd, NBD_CMD_FLAG_* */
    uint16_t ctx_mask;                         /* BLOCK_STATUS: bit i = answer for context id i */
    uint8_t mode;                              /* enum nbdp_mode: how to answer */
    enum nbd_error error;                      /* not NBD_SUCCESS: refused; answer with exactly this */
    const char *why;                           /* static text for `error` */
};

struct nbdp;

/* tls: NONE answers STARTTLS with an error; REQUIRED accepts nothing but STARTTLS and ABORT before TLS is up.
 * The greeting is in the output afterwards. -ENOMEM. limits may be NULL. */
MUST_USE int nbdp_new(const struct nbdp_limits *limits, enum nbdp_tls tls, struct nbdp **ret_p);
void nbdp_free(struct nbdp *p);                /* NULL ok */

enum nbdp_event nbdp_next(struct nbdp *p);
/* Where the next bytes from the peer belong, and how many fit (> 0 after NBDP_NEED_INPUT). */
size_t nbdp_space(struct nbdp *p, uint8_t **ret_buf);
void nbdp_filled(struct nbdp *p, size_t n);    /* n <= what nbdp_space said */
/* Bytes to send; valid until the next call on p. nbdp_output_sent drops the first n. */
size_t nbdp_output(const struct nbdp *p, const uint8_t **ret_buf);
void nbdp_output_sent(struct nbdp *p, size_t n);

/* ---- answers of the host in the handshake ---- */
const char *nbdp_wanted_name(const struct nbdp *p, size_t *ret_len);    /* after FIND_EXPORT; no NUL inside, not terminated */
void nbdp_export_found(struct nbdp *p, const struct nbdp_export *e);
void nbdp_export_refused(struct nbdp *p, uint32_t rep_err, const char *why);    /* NBD_REP_ERR_* */
void nbdp_list_item(struct nbdp *p, const char *name, const char *description);
void nbdp_list_end(struct nbdp *p);
void nbdp_tls_started(struct nbdp *p);         /* forgets all negotiated state and every byte received in plain text */

/* ---- transmission ---- */
const struct nbdp_request *nbdp_request(const struct nbdp *p);
/* The payload of the current request goes to buf (payload_len bytes, valid until its NBDP_REQUEST event). */
void nbdp_payload_into(struct nbdp *p, void *buf);
/* The payload is skipped; NBDP_REQUEST follows with this error. */
void nbdp_payload_refuse(struct nbdp *p, enum nbd_error e, const char *why);
/* From now on options and requests are answered with the "shutting down" errors. */
void nbdp_set_shutdown(struct nbdp *p);

/* ---- state, for hosts and tests ---- */
bool nbdp_in_transmission(const struct nbdp *p);
enum nbdp_mode nbdp_mode(const struct nbdp *p);
uint64_t nbdp_export_serial(const struct nbdp *p);        /* 0 before NBDP_READY */
uint16_t nbdp_contexts(const struct nbdp *p);             /* selected ids as a mask */
const char *nbdp_close_reason(const struct nbdp *p);      /* after NBDP_CLOSE: static text */
void nbdp_check(const struct nbdp *p);                    /* asserts the invariants of nbd_codec.c */

/* ---- replies: header bytes in a fixed buffer; data follows from the host's own buffers ---- */
struct nbdp_head { uint32_t len; uint8_t b[NBDP_HEAD_MAX]; };
void nbdp_reply_ok(const struct nbdp_request *r, struct nbdp_head *h);
/* Final. In simple mode the text is not sent. */
void nbdp_reply_error(const struct nbdp_request *r, enum nbd_error e, const char *why, struct nbdp_head *h);
/* len bytes of READ data follow. Simple mode: off and len must be those of the request. */
void nbdp_reply_data(const struct nbdp_request *r, uint64_t off, uint32_t len, bool last, struct nbdp_head *h);
/* Zeros, not sent. Not in simple mode. */
void nbdp_reply_hole(const struct nbdp_request *r, uint64_t off, uint32_t len, bool last, struct nbdp_head *h);
/* An error at an offset inside the request. Not in simple mode. */
struct nbdp_fault { enum nbd_error error; uint64_t off; const char *why; };
void nbdp_reply_error_at(const struct nbdp_request *r, const struct nbdp_fault *f, bool last, struct nbdp_head *h);
/* -errno of the engine -> error value of the protocol, by the rules for this request. Never NBD_SUCCESS. */
enum nbd_error nbdp_error_of(const struct nbdp_request *r, int err);

/* One block status chunk, collected in the host's buffer. */
struct nbdp_status {
    const struct nbdp_request *req;
    uint8_t *buf;                              /* payload; ctx id first */
    uint32_t cap, used, count;
    uint64_t covered;                          /* bytes of the export described so far */
    uint64_t last_len, last_flags;             /* extent not yet written to buf */
    uint32_t ctx;
    bool full;
};
#define NBDP_STATUS_BUF_MIN 32u
/* cap >= NBDP_STATUS_BUF_MIN; more than NBDP_STATUS_BYTES_MAX is not used. */
void nbdp_status_begin(struct nbdp_status *st, const struct nbdp_request *r, uint32_t ctx_id, void *buf, uint32_t cap);
/* Next extent: len > 0 bytes. Equal neighbours merge, parts past the request are cut off. true: more is wanted. */
bool nbdp_status_add(struct nbdp_status *st, uint64_t len, uint32_t flags);
/* At least one extent was added. Fills the header; st->used bytes of st->buf follow it. */
void nbdp_status_end(struct nbdp_status *st, bool last, struct nbdp_head *h);

#endif
