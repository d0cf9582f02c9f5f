/* SPDX-License-Identifier: MIT
 *
 * nbd_test_replies.h: option replies as a client reads them, and well-formed options, for the handshake tests.
 */
#ifndef PROTO_NBD_TEST_REPLIES_H
#define PROTO_NBD_TEST_REPLIES_H

#include "base/cursor.h"
#include "base/test.h"
#include "proto/nbd/nbd_test_peer.h"

#define BOTH_FLAGS (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)
#define GREETING 18u

/* ---- reading what the codec answered ---- */

struct rep { uint32_t opt, type, len; const uint8_t *data; };

static inline bool next_rep(struct rcur *c, struct rep *ret)
{
    if (rcur_left(c) < sizeof(struct nbd_wire_opt_reply))
        return false;
    if (rcur_be64(c) != NBD_MAGIC_OPT_REPLY)
        return false;
    ret->opt = rcur_be32(c);
    ret->type = rcur_be32(c);
    ret->len = rcur_be32(c);
    ret->data = rcur_view(c, ret->len);
    assert_true(rcur_ok(c));
    return true;
}

static inline struct rcur replies(const struct peer *t)
{
    assert_true(t->out.len >= GREETING);
    return rcur_of(t->out.b + GREETING, t->out.len - GREETING);
}

/* The last reply; how many replies of its option there were before it. */
static inline struct rep last_rep(const struct peer *t, unsigned *ret_before)
{
    struct rcur c = replies(t);
    struct rep r = { 0 }, last = { 0 };
    unsigned before = 0;
    while (next_rep(&c, &r)) {
        before = r.opt == last.opt ? before + 1 : 0;
        last = r;
    }
    if (ret_before)
        *ret_before = before;
    return last;
}

static inline uint32_t last_type(const struct peer *t)
{
    return last_rep(t, NULL).type;
}

/* Payload of the information `type` among the replies, NULL if it was not sent. */
static inline const uint8_t *info_of(const struct peer *t, uint16_t type, uint32_t *ret_len)
{
    struct rcur c = replies(t);
    struct rep r;
    const uint8_t *found = NULL;
    while (next_rep(&c, &r)) {
        if (r.type != NBD_REP_INFO)
            continue;
        struct rcur d = rcur_of(r.data, r.len);
        if (rcur_be16(&d) == type) {
            *ret_len = r.len - 2;
            found = r.data + 2;
        }
    }
    return found;
}

static inline void talk(struct peer *t, const struct bytes *m)
{
    peer_feed(t, m->b, m->len, SIZE_MAX);
}

/* ---- options ---- */

static const char *const no_query[] = { NULL, NULL, NULL, NULL };
static const char *const alloc_query[] = { "base:allocation", NULL, NULL, NULL };

static const uint32_t all_options[] = {
    NBD_OPT_EXPORT_NAME, NBD_OPT_ABORT, NBD_OPT_LIST, NBD_OPT_STARTTLS, NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY,
    NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_EXTENDED_HEADERS, 0, 4, 12, 0x7f, 0xffffffffu,
};
#define OPTIONS (sizeof all_options / sizeof all_options[0])

/* A well-formed option for export "disk0". */
static inline void say_good(struct bytes *m, uint32_t opt)
{
    switch (opt) {
    case NBD_OPT_EXPORT_NAME:
        say_option(m, opt, "disk0", 5);
        return;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        say_info(m, opt, "disk0", NULL, 0);
        return;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        say_meta(m, opt, "disk0", alloc_query);
        return;
    default:
        say_option(m, opt, NULL, 0);
    }
}

#endif
