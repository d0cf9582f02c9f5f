/* SPDX-License-Identifier: MIT
 *
 * nbd_complaint.c: what a server says of a request that it refuses (FEATURES G.047).
 *
 * Purpose      For a client whose library of the protocol hands on the number of an error alone.
 * Owns         nothing
 * Invariants   I1 what it makes of a text is printable and short, whatever the server sends
 *              I2 an answer of a length that the protocol does not allow is none
 * Concurrency  pure
 * Failure      bytes that make no sense are no complaint
 * Tests        nbd_complaint_test.c, fuzz/nbd_complaint.c
 */
#include "base/checked.h"
#include "base/cursor.h"
#include "proto/nbd/nbd_complaint.h"

#define TYPE_IS_ERROR 0x8000u

/* I1 */
static void take_text(const uint8_t *from, size_t len, char *to, size_t room)
{
    size_t n = min_u64(len, room - 1);
    for (size_t i = 0; i < n; i++)
        to[i] = from[i] >= ' ' && from[i] <= '~' ? (char)from[i] : '?';
    to[n] = 0;
}

static bool take_body(struct rcur body, unsigned type, struct nbdp_complaint *ret)
{
    (void)rcur_be32(&body);                  /* the number of the error */
    size_t len = rcur_be16(&body);
    const uint8_t *text = rcur_view(&body, len);
    ret->has_off = type == NBD_REPLY_TYPE_ERROR_OFFSET;
    ret->off = ret->has_off ? rcur_be64(&body) : 0;
    if (rcur_ok(&body))
        take_text(text, len, ret->text, sizeof ret->text);
    return rcur_ok(&body);
}

size_t nbdp_complaint_parse(const void *buf, size_t have, struct nbdp_complaint *ret)
{
    struct rcur c = rcur_of(buf, have);
    uint32_t magic = rcur_be32(&c);
    (void)rcur_be16(&c);                     /* flags */
    unsigned type = rcur_be16(&c);
    bool ext = magic == NBD_MAGIC_CHUNK_EXT;
    if (rcur_ok(&c) && ((magic != NBD_MAGIC_CHUNK && !ext) || !(type & TYPE_IS_ERROR)))
        return 0;
    struct nbdp_complaint told = { .cookie = rcur_be64(&c) };
    if (ext)
        (void)rcur_be64(&c);                 /* the request's offset */
    uint64_t len = ext ? rcur_be64(&c) : rcur_be32(&c);
    if (!rcur_ok(&c))
        return ext ? sizeof(struct nbd_wire_chunk_ext) : sizeof(struct nbd_wire_chunk);
    if (len > NBDP_COMPLAINT_MAX - rcur_pos(&c))
        return 0;                            /* I2 */
    size_t need = rcur_pos(&c) + (size_t)len;
    if (need > have)
        return need;
    if (!take_body(rcur_sub(&c, (size_t)len), type, &told))
        return 0;
    *ret = told;
    return need;
}
