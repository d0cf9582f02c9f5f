/* SPDX-License-Identifier: MIT
 *
 * nbd_option.c: option haggling.
 *
 * Purpose      Answers one option of the handshake: at once, or after the host has looked up the export it names.
 * Owns         nothing; works on the state of nbd_codec.c.
 * Invariants   I1 an option is handled only when it is there whole and within option_bytes_max.
 *              I2 every option is answered in every state of the negotiation (order is the client's choice);
 *                 only EXPORT_NAME has no error answer and closes instead.
 *              I3 SET_META_CONTEXT leaves no earlier selection behind, whether it succeeds or fails.
 *              I4 without TLS, when TLS is required, nothing of an export is shown or opened.
 * Concurrency  one owner; never suspends.
 * Failure      malformed data: an error reply and the next option; see nbd_codec.c for what closes.
 * Tests        nbd_option_test.c, nbd_context_test.c, fuzz/nbd_server.c
 */
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cursor.h"
#include "proto/nbd/nbd_codec_priv.h"

static const uint8_t *data_of(const struct nbdp *p)
{
    return nbdp_rx(p) + sizeof(struct nbd_wire_option);
}

static int option_done(struct nbdp *p)
{
    nbdp_consume(p, (uint32_t)sizeof(struct nbd_wire_option) + p->opt_len);
    p->state = NBDP_ST_OPTION;
    return NBDP_GO_ON;
}

static void reply_head(struct nbdp *p, uint32_t type, uint32_t len)
{
    struct nbd_wire_opt_reply h;
    be64_put(&h.magic, NBD_MAGIC_OPT_REPLY);
    be32_put(&h.option, p->opt);
    be32_put(&h.type, type);
    be32_put(&h.len, len);
    nbdp_write(p, &h, sizeof h);
}

static int answer(struct nbdp *p, uint32_t type)
{
    reply_head(p, type, 0);
    return option_done(p);
}

/* EXPORT_NAME cannot be answered with an error. */
static int answer_error(struct nbdp *p, uint32_t rep_err, const char *why)
{
    if (p->opt == NBD_OPT_EXPORT_NAME)
        return nbdp_close_with(p, why);
    uint32_t len = (uint32_t)strnlen(why, NBDP_ERROR_TEXT_MAX);
    reply_head(p, rep_err, len);
    nbdp_write(p, why, len);
    return option_done(p);
}

void nbdp_forget_negotiated(struct nbdp *p)
{
    p->mode = NBDP_SIMPLE;
    p->ctx_mask = 0;
    p->ctx_serial = 0;
}

/* ---- parsing ---- */

static bool good_string(const void *s, uint32_t len)
{
    return len <= NBD_STRING_MAX && !memchr(s, 0, len);
}

static const char *parse_export_name(struct nbdp *p)
{
    if (!good_string(data_of(p), p->opt_len))
        return "bad export name";
    p->want_off = 0;
    p->want_len = p->opt_len;
    return NULL;
}

/* Name with its length in front; the cursor stands behind it. */
static const char *parse_name(struct nbdp *p, struct rcur *c)
{
    uint32_t len = rcur_be32(c);
    p->want_off = (uint32_t)rcur_pos(c);
    p->want_len = len;
    const void *s = rcur_view(c, len);
    if (!rcur_ok(c))
        return "the export name does not fit the option";
    return good_string(s, len) ? NULL : "bad export name";
}

/* name, number of information requests (16 bits), the requests (16 bits each) */
static const char *parse_info(struct nbdp *p)
{
    struct rcur c = rcur_of(data_of(p), p->opt_len);
    const char *why = parse_name(p, &c);
    if (why)
        return why;
    p->query_off = (uint32_t)rcur_pos(&c);
    uint32_t n = rcur_be16(&c);
    rcur_skip(&c, (size_t)n * sizeof(be16));
    return rcur_at_end(&c) ? NULL : "the information requests do not fit the option";
}

static bool info_wanted(const struct nbdp *p, uint16_t type)
{
    struct rcur c = rcur_of(data_of(p), p->opt_len);
    rcur_seek(&c, p->query_off);
    for (uint32_t n = rcur_be16(&c); n; n--)
        if (rcur_be16(&c) == type)
            return true;
    return false;
}

/* name, number of queries (32 bits), each query with its length in front */
static const char *parse_meta(struct nbdp *p)
{
    struct rcur c = rcur_of(data_of(p), p->opt_len);
    const char *why = parse_name(p, &c);
    if (why)
        return why;
    p->query_off = (uint32_t)rcur_pos(&c);
    for (uint32_t n = rcur_be32(&c); n && rcur_ok(&c); n--) {
        uint32_t len = rcur_be32(&c);
        const void *s = rcur_view(&c, len);
        if (rcur_ok(&c) && !good_string(s, len))
            return "bad query string";
    }
    return rcur_at_end(&c) ? NULL : "the queries do not fit the option";
}

/* Does a query select ctx? Exactly by name; when listing also by a prefix that ends in a colon, or by no query at all. */
static bool query_matches(const struct nbdp *p, const char *ctx)
{
    bool list = p->opt == NBD_OPT_LIST_META_CONTEXT;
    size_t ctx_len = strlen(ctx);
    struct rcur c = rcur_of(data_of(p), p->opt_len);
    rcur_seek(&c, p->query_off);
    uint32_t n = rcur_be32(&c);
    if (!n)
        return list;
    for (; n; n--) {
        uint32_t len = rcur_be32(&c);
        const char *q = rcur_view(&c, len);
        if (len > ctx_len || !len || memcmp(q, ctx, len) != 0)
            continue;
        if (len == ctx_len || (list && q[len - 1] == ':'))
            return true;
    }
    return false;
}

/* ---- the export is known ---- */

static uint16_t transmission_flags(const struct nbdp *p, const struct nbdp_export *e)
{
    unsigned f = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;
    f |= e->read_only ? NBD_FLAG_READ_ONLY : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (e->rotational)
        f |= NBD_FLAG_ROTATIONAL;
    if (e->multi_conn)
        f |= NBD_FLAG_CAN_MULTI_CONN;
    if (p->mode != NBDP_SIMPLE)
        f |= NBD_FLAG_SEND_DF;
    if (p->mode == NBDP_EXTENDED && p->ctx_mask && p->ctx_serial == e->serial)
        f |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return (uint16_t)f;
}

/* To the transmission phase. sizes_agreed: the client promised to keep to the block sizes. */
static void enter(struct nbdp *p, const struct nbdp_export *e, bool sizes_agreed)
{
    if (p->ctx_serial != e->serial)
        p->ctx_mask = 0;
    p->serial = e->serial;
    p->size = e->size;
    p->read_only = e->read_only;
    p->block_min = sizes_agreed ? e->block_min : 1;
    option_done(p);
    p->state = NBDP_ST_ENTER;
}

static void found_export_name(struct nbdp *p, const struct nbdp_export *e)
{
    static const uint8_t zeroes[NBD_EXPORT_NAME_ZEROES];
    struct nbd_wire_export w;
    be64_put(&w.size, e->size);
    be16_put(&w.flags, transmission_flags(p, e));
    nbdp_write(p, &w, sizeof w);
    if (!p->no_zeroes)
        nbdp_write(p, zeroes, sizeof zeroes);
    enter(p, e, false);
}

static void info_string(struct nbdp *p, uint16_t type, const char *s)
{
    be16 t;
    uint32_t len = (uint32_t)strnlen(s, NBD_STRING_MAX);
    be16_put(&t, type);
    reply_head(p, NBD_REP_INFO, (uint32_t)sizeof t + len);
    nbdp_write(p, &t, sizeof t);
    nbdp_write(p, s, len);
}

static void found_info(struct nbdp *p, const struct nbdp_export *e)
{
    struct nbd_wire_info_export x;
    be16_put(&x.type, NBD_INFO_EXPORT);
    be64_put(&x.size, e->size);
    be16_put(&x.flags, transmission_flags(p, e));
    reply_head(p, NBD_REP_INFO, sizeof x);
    nbdp_write(p, &x, sizeof x);

    if (info_wanted(p, NBD_INFO_NAME))
        info_string(p, NBD_INFO_NAME, e->name);
    if (e->description && info_wanted(p, NBD_INFO_DESCRIPTION))
        info_string(p, NBD_INFO_DESCRIPTION, e->description);

    struct nbd_wire_info_block b;
    be16_put(&b.type, NBD_INFO_BLOCK_SIZE);
    be32_put(&b.min, e->block_min);
    be32_put(&b.preferred, e->block_preferred);
    be32_put(&b.max, e->block_max && e->block_max < p->lim.payload_max ? e->block_max : p->lim.payload_max);
    reply_head(p, NBD_REP_INFO, sizeof b);
    nbdp_write(p, &b, sizeof b);

    reply_head(p, NBD_REP_ACK, 0);
    if (p->opt == NBD_OPT_GO)
        enter(p, e, info_wanted(p, NBD_INFO_BLOCK_SIZE));
    else
        option_done(p);
}

static void found_meta(struct nbdp *p, const struct nbdp_export *e)
{
    bool set = p->opt == NBD_OPT_SET_META_CONTEXT;
    for (unsigned i = 0; i < e->ctx_count; i++) {
        if (!e->ctx[i] || !query_matches(p, e->ctx[i]))
            continue;
        be32 id;
        be32_put(&id, set ? i : 0);
        uint32_t len = (uint32_t)strnlen(e->ctx[i], NBD_STRING_MAX);
        reply_head(p, NBD_REP_META_CONTEXT, (uint32_t)sizeof id + len);
        nbdp_write(p, &id, sizeof id);
        nbdp_write(p, e->ctx[i], len);
        if (set)
            p->ctx_mask = (uint16_t)(p->ctx_mask | 1u << i);
    }
    if (set)
        p->ctx_serial = e->serial;
    answer(p, NBD_REP_ACK);
}

void nbdp_export_found(struct nbdp *p, const struct nbdp_export *e)
{
    ASSERT(p->state == NBDP_ST_ASK_HOST && p->opt != NBD_OPT_LIST);
    ASSERT(e->serial && e->size <= INT64_MAX && e->ctx_count <= NBDP_CONTEXTS_MAX);
    ASSERT(is_pow2(e->block_min) && e->block_min <= 65536 && is_pow2(e->block_preferred) && e->block_preferred >= e->block_min);
    ASSERT(!e->block_max || (e->block_max >= e->block_preferred && e->block_max % e->block_min == 0));
    switch (p->opt) {
    case NBD_OPT_EXPORT_NAME:
        found_export_name(p, e);
        return;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        found_info(p, e);
        return;
    default:
        found_meta(p, e);
        return;
    }
}

void nbdp_export_refused(struct nbdp *p, uint32_t rep_err, const char *why)
{
    ASSERT(p->state == NBDP_ST_ASK_HOST && p->opt != NBD_OPT_LIST && (rep_err & NBD_REP_ERR_BIT));
    (void)answer_error(p, rep_err, why);      /* the next nbdp_next sees the new state */
}

const char *nbdp_wanted_name(const struct nbdp *p, size_t *ret_len)
{
    ASSERT(p->state == NBDP_ST_ASK_HOST && p->opt != NBD_OPT_LIST);
    *ret_len = p->want_len;
    return (const char *)data_of(p) + p->want_off;
}

/* ---- LIST ---- */

void nbdp_list_item(struct nbdp *p, const char *name, const char *description)
{
    ASSERT(p->state == NBDP_ST_ASK_HOST && p->opt == NBD_OPT_LIST);
    uint32_t name_len = (uint32_t)strnlen(name, NBD_STRING_MAX);
    uint32_t desc_len = description ? (uint32_t)strnlen(description, NBD_STRING_MAX) : 0;
    be32 n;
    be32_put(&n, name_len);
    reply_head(p, NBD_REP_SERVER, (uint32_t)sizeof n + name_len + desc_len);
    nbdp_write(p, &n, sizeof n);
    nbdp_write(p, name, name_len);
    nbdp_write(p, description, desc_len);
}

void nbdp_list_end(struct nbdp *p)
{
    ASSERT(p->state == NBDP_ST_ASK_HOST && p->opt == NBD_OPT_LIST);
    (void)answer(p, NBD_REP_ACK);
}

/* ---- one option ---- */

static int ask_host(struct nbdp *p, enum nbdp_event ev)
{
    p->state = NBDP_ST_ASK_HOST;
    return ev;
}

static int find_export(struct nbdp *p, const char *parse_error)
{
    return parse_error ? answer_error(p, NBD_REP_ERR_INVALID, parse_error) : ask_host(p, NBDP_FIND_EXPORT);
}

static int opt_starttls(struct nbdp *p)
{
    if (p->opt_len)
        return answer_error(p, NBD_REP_ERR_INVALID, "this option takes no data");
    if (p->tls == NBDP_TLS_NONE)
        return answer_error(p, NBD_REP_ERR_POLICY, "TLS is not offered here");
    if (p->tls_up)
        return answer_error(p, NBD_REP_ERR_INVALID, "TLS is on already");
    (void)answer(p, NBD_REP_ACK);
    p->state = NBDP_ST_TLS;
    return NBDP_STARTTLS;
}

static int opt_structured(struct nbdp *p)
{
    if (p->mode == NBDP_EXTENDED)
        return answer_error(p, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are on already");
    p->mode = NBDP_STRUCTURED;
    return answer(p, NBD_REP_ACK);
}

static int opt_set_meta(struct nbdp *p)
{
    p->ctx_mask = 0;
    p->ctx_serial = 0;
    if (p->mode == NBDP_SIMPLE)
        return answer_error(p, NBD_REP_ERR_INVALID, "structured replies must be negotiated first");
    return find_export(p, parse_meta(p));
}

/* Refuses an option before looking at its data. true: it was answered, or the connection closed. */
static bool refused_early(struct nbdp *p)
{
    bool bare = p->opt == NBD_OPT_LIST || p->opt == NBD_OPT_STRUCTURED_REPLY || p->opt == NBD_OPT_EXTENDED_HEADERS;
    if (p->opt == NBD_OPT_ABORT)
        return false;
    if (p->tls == NBDP_TLS_REQUIRED && !p->tls_up && p->opt != NBD_OPT_STARTTLS)
        (void)answer_error(p, NBD_REP_ERR_TLS_REQD, "TLS is required");
    else if (p->shutdown)
        (void)answer_error(p, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    else if (bare && p->opt_len)
        (void)answer_error(p, NBD_REP_ERR_INVALID, "this option takes no data");
    else
        return false;
    return true;
}

int nbdp_option(struct nbdp *p)
{
    if (refused_early(p))
        return NBDP_GO_ON;
    switch (p->opt) {
    case NBD_OPT_EXPORT_NAME:
        return find_export(p, parse_export_name(p));
    case NBD_OPT_ABORT:
        (void)answer(p, NBD_REP_ACK);
        return nbdp_close_with(p, "the client aborted the handshake");
    case NBD_OPT_LIST:
        return ask_host(p, NBDP_LIST);
    case NBD_OPT_STARTTLS:
        return opt_starttls(p);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return find_export(p, parse_info(p));
    case NBD_OPT_STRUCTURED_REPLY:
        return opt_structured(p);
    case NBD_OPT_LIST_META_CONTEXT:
        return find_export(p, parse_meta(p));
    case NBD_OPT_SET_META_CONTEXT:
        return opt_set_meta(p);
    case NBD_OPT_EXTENDED_HEADERS:
        p->mode = NBDP_EXTENDED;
        return answer(p, NBD_REP_ACK);
    default:
        return answer_error(p, NBD_REP_ERR_UNSUP, "unknown option");
    }
}
