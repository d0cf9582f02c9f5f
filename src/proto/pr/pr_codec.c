/* SPDX-License-Identifier: MIT
 *
 * pr_codec.c: persistent reservations as bytes (FEATURES 3.021).
 *
 * Purpose      The layouts of pr_codec.h, in one place.
 * Owns         nothing; what is made of data points into it
 * Invariants   I1 no length that a helper or a device says leads out of what came
 * Concurrency  pure
 * Failure      what makes no sense is refused, or, in a list that ends too early, left out and told
 * Tests        pr_codec_test.c, fuzz/pr_answer.c
 */
#include <string.h>

#include "base/checked.h"
#include "proto/pr/pr_codec.h"

#define OPCODE_IN 0x5eu
#define OPCODE_OUT 0x5fu
#define LIST_HEAD_BYTES 8u                 /* generation, length of the list */

size_t prp_request_emit(const struct prp_request *rq, uint8_t ret[PRP_REQUEST_MAX])
{
    struct wcur w = wcur_of(ret, PRP_REQUEST_MAX);
    wcur_u8(&w, rq->out ? OPCODE_OUT : OPCODE_IN);
    wcur_u8(&w, rq->action & 0x1f);
    wcur_u8(&w, rq->out ? rq->type & 0x0f : 0);        /* scope above the type: 0, the logical unit */
    wcur_zero(&w, 2);
    if (rq->out) {
        wcur_be32(&w, PRP_PARAMETER_BYTES);
    } else {
        wcur_zero(&w, 2);
        wcur_be16(&w, PRP_DATA_MAX);
    }
    wcur_zero(&w, PRP_CDB_BYTES - wcur_pos(&w));
    if (rq->out) {
        wcur_be64(&w, rq->key);
        wcur_be64(&w, rq->action_key);
        wcur_zero(&w, 4);
        wcur_u8(&w, (uint8_t)((rq->all_ports ? 1u << 2 : 0) | (rq->aptpl ? 1u : 0)));
        wcur_zero(&w, 3);
    }
    return wcur_pos(&w);
}

int prp_head_parse(const uint8_t bytes[PRP_HEAD_BYTES], const struct prp_request *rq, struct prp_head *ret, struct byre_err *err)
{
    struct rcur c = rcur_of(bytes, PRP_HEAD_BYTES);
    uint32_t status = rcur_be32(&c), len = rcur_be32(&c);
    uint32_t most = rq->out || status != PRP_GOOD ? 0 : PRP_DATA_MAX;
    if (status > UINT8_MAX)
        return byre_fail(err, PROTOCOL, "%#x is no SCSI status", status);
    if (len > most)
        return byre_fail(err, PROTOCOL, "%u bytes of data are announced, and there can be %u at most", len, most);
    ret->status = (uint8_t)status;
    ret->len_bytes = len;
    (void)rcur_bytes(&c, ret->sense, sizeof ret->sense);      /* there are so many */
    return 0;
}

bool prp_sense_parse(const uint8_t sense[PRP_SENSE_BYTES], struct prp_sense *ret)
{
    switch (sense[0] & 0x7f) {
    case 0x70:
    case 0x71:
        *ret = (struct prp_sense){ sense[2] & 0x0f, sense[12], sense[13] };
        return true;
    case 0x72:
    case 0x73:
        *ret = (struct prp_sense){ sense[1] & 0x0f, sense[2], sense[3] };
        return true;
    default:
        return false;
    }
}

/* ---- data ---- */

static int too_short(size_t len, size_t least, struct byre_err *err)
{
    return byre_fail(err, PROTOCOL, "the data has %zu bytes, and %zu at least were due", len, least);
}

/* The list behind generation and length, as much of it as came (I1). */
static int take_list(const void *data, size_t len, uint32_t *ret_generation, bool *ret_more, struct rcur *ret_list, struct byre_err *err)
{
    struct rcur c = rcur_of(data, len);
    uint32_t generation = rcur_be32(&c), said = rcur_be32(&c);
    if (!rcur_ok(&c))
        return too_short(len, LIST_HEAD_BYTES, err);
    size_t have = min_u64(said, rcur_left(&c));
    *ret_generation = generation;
    *ret_more = said > have;
    *ret_list = rcur_sub(&c, have);
    return 0;
}

int prp_keys_parse(const void *data, size_t len, struct prp_keys *ret, struct byre_err *err)
{
    return take_list(data, len, &ret->generation, &ret->more, &ret->rest, err);
}

bool prp_keys_next(struct prp_keys *k, uint64_t *ret_key)
{
    uint64_t key = rcur_be64(&k->rest);
    if (!rcur_ok(&k->rest))
        return false;
    *ret_key = key;
    return true;
}

int prp_reservation_parse(const void *data, size_t len, struct prp_reservation *ret, struct byre_err *err)
{
    struct prp_reservation v = { 0 };
    struct rcur c;
    bool more;
    int r = take_list(data, len, &v.generation, &more, &c, err);
    if (r)
        return r;
    v.held = rcur_left(&c) || more;
    v.key = rcur_be64(&c);
    (void)rcur_skip(&c, 5);
    unsigned kind = rcur_u8(&c);
    v.scope = kind >> 4;
    v.type = kind & 0x0f;
    if (v.held && !rcur_ok(&c))
        return too_short(len, LIST_HEAD_BYTES + 14, err);
    *ret = v;
    return 0;
}

int prp_capabilities_parse(const void *data, size_t len, struct prp_capabilities *ret, struct byre_err *err)
{
    struct rcur c = rcur_of(data, len);
    (void)rcur_be16(&c);                     /* length: what is behind these bytes is not known */
    unsigned can = rcur_u8(&c), is = rcur_u8(&c), low = rcur_u8(&c), high = rcur_u8(&c);
    if (!rcur_ok(&c))
        return too_short(len, 6, err);
    *ret = (struct prp_capabilities){
        .replaces_lost = can & 0x80, .compatible = can & 0x10, .any_initiator = can & 0x08, .all_ports = can & 0x04, .aptpl = can & 0x01,
        .types_known = is & 0x80, .allows = (is >> 4) & 7, .aptpl_now = is & 0x01,
        .types = is & 0x80 ? low | (high << 8) : 0,
    };
    return 0;
}

int prp_status_parse(const void *data, size_t len, struct prp_status *ret, struct byre_err *err)
{
    return take_list(data, len, &ret->generation, &ret->more, &ret->rest, err);
}

bool prp_status_next(struct prp_status *s, struct prp_registrant *ret)
{
    struct rcur *c = &s->rest;
    if (!rcur_left(c))
        return false;
    struct prp_registrant v = { .key = rcur_be64(c) };
    (void)rcur_skip(c, 4);
    unsigned flags = rcur_u8(c), kind = rcur_u8(c);
    (void)rcur_skip(c, 4);
    v.port = rcur_be16(c);
    v.transport_bytes = rcur_be32(c);
    v.transport = rcur_view(c, v.transport_bytes);
    v.all_ports = flags & 0x02;
    v.holder = flags & 0x01;
    v.scope = kind >> 4;
    v.type = kind & 0x0f;
    if (!rcur_ok(c)) {
        s->more = true;
        return false;
    }
    *ret = v;
    return true;
}
