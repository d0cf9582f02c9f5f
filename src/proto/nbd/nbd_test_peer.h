/* SPDX-License-Identifier: MIT
 *
 * nbd_test_peer.h: a client's bytes and a small host around the codec, for the tests of this folder and the fuzz
 * target. The host offers four exports and keeps a log of everything that happened.
 */
#ifndef PROTO_NBD_TEST_PEER_H
#define PROTO_NBD_TEST_PEER_H

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "proto/nbd/nbd_codec.h"

/* ---- growing byte string ---- */

struct bytes { uint8_t *b; size_t len, cap; };

static inline void put(struct bytes *m, const void *src, size_t n)
{
    if (m->len + n > m->cap) {
        m->cap = (m->len + n) * 2 + 64;
        m->b = realloc(m->b, m->cap);
        ASSERT(m->b);
    }
    if (n)
        memcpy(m->b + m->len, src, n);
    m->len += n;
}
static inline void put16(struct bytes *m, uint16_t x) { be16 v; be16_put(&v, x); put(m, &v, sizeof v); }
static inline void put32(struct bytes *m, uint32_t x) { be32 v; be32_put(&v, x); put(m, &v, sizeof v); }
static inline void put64(struct bytes *m, uint64_t x) { be64 v; be64_put(&v, x); put(m, &v, sizeof v); }
static inline void put_fill(struct bytes *m, uint8_t c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        put(m, &c, 1);
}
static inline void put_str(struct bytes *m, const char *s)
{
    put32(m, (uint32_t)strlen(s));
    put(m, s, strlen(s));
}
static inline void bytes_free(struct bytes *m)
{
    free(m->b);
    *m = (struct bytes){ 0 };
}

/* ---- what a client says ---- */

static inline void say_flags(struct bytes *m, uint32_t flags) { put32(m, flags); }
static inline void say_option(struct bytes *m, uint32_t opt, const void *data, uint32_t len)
{
    put64(m, NBD_MAGIC_OPTION);
    put32(m, opt);
    put32(m, len);
    put(m, data, len);
}
/* INFO and GO, asking for the n information types in `infos` */
static inline void say_info(struct bytes *m, uint32_t opt, const char *name, const uint16_t *infos, uint16_t n)
{
    struct bytes d = { 0 };
    put_str(&d, name);
    put16(&d, n);
    for (uint16_t i = 0; i < n; i++)
        put16(&d, infos[i]);
    say_option(m, opt, d.b, (uint32_t)d.len);
    bytes_free(&d);
}
static inline void say_go(struct bytes *m, const char *name) { say_info(m, NBD_OPT_GO, name, NULL, 0); }
/* LIST_ and SET_META_CONTEXT with up to three queries (NULL ends) */
static inline void say_meta(struct bytes *m, uint32_t opt, const char *name, const char *const q[4])
{
    struct bytes d = { 0 };
    uint32_t n = 0;
    while (q[n])
        n++;
    put_str(&d, name);
    put32(&d, n);
    for (uint32_t i = 0; i < n; i++)
        put_str(&d, q[i]);
    say_option(m, opt, d.b, (uint32_t)d.len);
    bytes_free(&d);
}
static inline void say_request(struct bytes *m, uint16_t type, uint16_t flags, uint64_t off, uint32_t len)
{
    put32(m, NBD_MAGIC_REQUEST);
    put16(m, flags);
    put16(m, type);
    put64(m, UINT64_C(0xc0ffee00) + type);
    put64(m, off);
    put32(m, len);
}
static inline void say_request_ext(struct bytes *m, uint16_t type, uint16_t flags, uint64_t off, uint64_t len)
{
    put32(m, NBD_MAGIC_REQUEST_EXT);
    put16(m, flags);
    put16(m, type);
    put64(m, UINT64_C(0xc0ffee00) + type);
    put64(m, off);
    put64(m, len);
}

/* ---- the host ---- */

#define PEER_SIZE (UINT64_C(6) << 30)          /* export "disk0", also the default one */
#define PEER_BIG ((UINT64_C(1) << 62) + 4096)  /* export "big" */

static const char *const peer_ctx[] = { "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0", NULL, "qemu:dirty-bitmap:b2" };
static const struct nbdp_export peer_exports[] = {
    { .serial = 1, .name = "disk0", .description = "first disk", .size = PEER_SIZE, .multi_conn = true,
      .block_min = 1, .block_preferred = 4096, .ctx_count = 5, .ctx = peer_ctx },
    { .serial = 2, .name = "ro", .size = 1 << 20, .read_only = true, .block_min = 1, .block_preferred = 512, .ctx_count = 1, .ctx = peer_ctx },
    { .serial = 3, .name = "big", .size = PEER_BIG, .block_min = 512, .block_preferred = 65536, .ctx_count = 2, .ctx = peer_ctx },
    { .serial = 4, .name = "wheel", .size = 1 << 20, .rotational = true, .block_min = 4096, .block_preferred = 4096 },
};
#define PEER_EXPORTS (sizeof peer_exports / sizeof peer_exports[0])

struct peer {
    struct nbdp *p;
    struct bytes out;              /* everything the codec wrote */
    struct bytes payload;          /* everything that arrived as payload */
    struct nbdp_request reqs[256];
    unsigned n_reqs, n_ready, n_tls;
    bool closed, shutdown_now;
    bool refuse_payload;           /* as if memory were short */
    void *buf;
    /* called for each request if set (the fuzz target answers them) */
    void (*on_request)(struct peer *t, const struct nbdp_request *r);
};

static inline void peer_init(struct peer *t, const struct nbdp_limits *lim, enum nbdp_tls tls)
{
    *t = (struct peer){ 0 };
    ASSERT(nbdp_new(lim, tls, &t->p) == 0);
}
static inline void peer_fini(struct peer *t)
{
    nbdp_free(t->p);
    free(t->buf);
    bytes_free(&t->out);
    bytes_free(&t->payload);
}

static inline void peer_find(struct peer *t)
{
    size_t len;
    const char *name = nbdp_wanted_name(t->p, &len);
    for (size_t i = 0; i < PEER_EXPORTS; i++) {
        const struct nbdp_export *e = &peer_exports[i];
        if ((len == strlen(e->name) && !memcmp(name, e->name, len)) || (!len && !i)) {
            nbdp_export_found(t->p, e);
            return;
        }
    }
    nbdp_export_refused(t->p, NBD_REP_ERR_UNKNOWN, "no such export");
}

static inline void peer_take_output(struct peer *t)
{
    const uint8_t *b;
    size_t n = nbdp_output(t->p, &b);
    put(&t->out, b, n);
    nbdp_output_sent(t->p, n);
}

static inline void peer_request(struct peer *t)
{
    const struct nbdp_request *r = nbdp_request(t->p);
    if (t->buf && !r->error)
        put(&t->payload, t->buf, r->payload_len);
    free(t->buf);
    t->buf = NULL;
    if (t->n_reqs < 256)
        t->reqs[t->n_reqs] = *r;
    t->n_reqs++;
    if (t->on_request)
        t->on_request(t, r);
}

static inline void peer_payload(struct peer *t)
{
    if (t->refuse_payload) {
        nbdp_payload_refuse(t->p, NBD_ENOMEM, "no memory");
        return;
    }
    t->buf = malloc(nbdp_request(t->p)->payload_len);
    ASSERT(t->buf);
    nbdp_payload_into(t->p, t->buf);
}

/* Handles events until the codec wants input (true) or has closed (false). */
static inline bool peer_run(struct peer *t)
{
    for (;;) {
        enum nbdp_event ev = nbdp_next(t->p);
        peer_take_output(t);
        nbdp_check(t->p);
        switch (ev) {
        case NBDP_NEED_INPUT:
            return true;
        case NBDP_CLOSE:
            t->closed = true;
            return false;
        case NBDP_FIND_EXPORT:
            peer_find(t);
            break;
        case NBDP_LIST:
            for (size_t i = 0; i < PEER_EXPORTS; i++)
                nbdp_list_item(t->p, peer_exports[i].name, peer_exports[i].description);
            nbdp_list_end(t->p);
            break;
        case NBDP_STARTTLS:
            t->n_tls++;
            nbdp_tls_started(t->p);
            break;
        case NBDP_READY:
            t->n_ready++;
            break;
        case NBDP_PAYLOAD:
            peer_payload(t);
            break;
        case NBDP_REQUEST:
            peer_request(t);
            break;
        }
    }
}

/* Feeds bytes, at most `piece` at a time. Stops when the codec has closed. */
static inline void peer_feed(struct peer *t, const void *data, size_t len, size_t piece)
{
    const uint8_t *b = data;
    while (peer_run(t) && len) {
        uint8_t *room;
        size_t n = nbdp_space(t->p, &room);
        ASSERT(n > 0);
        n = (size_t)min_u64(min_u64(n, piece), len);
        memcpy(room, b, n);
        nbdp_filled(t->p, n);
        b += n;
        len -= n;
    }
}

#endif
