/* SPDX-License-Identifier: MIT
 *
 * pack.c: whole clusters of a target that is written compressed.
 *
 * Purpose     A compressed cluster is written whole or not at all, so extents and runs of zeros end where clusters of the target do;
 *             what does not fill a cluster is written plain.
 * Owns        struct packed: what was made of the clusters of a piece.
 * Invariants  I1  Compressing comes before the turn of a piece: pieces are compressed at the same time and written in order.
 *             I2  A short last cluster counts as whole when it ends with the target.
 * Order       None.
 * Concurrency Any loop.
 * Failure     As graph_encode and graph_write_encoded.
 * Tests       pack_test.c, copy_test.c
 */
#include "copy/copy_priv.h"

uint64_t pack_extent(const struct pack_place *p, uint64_t at, uint64_t len, bool data, bool *ret_mixed)
{
    uint64_t end = at + len, down = end >= p->end ? end : round_down(end, p->unit);
    *ret_mixed = false;
    if (data)
        return min_u64(round_up(end, p->unit), p->end) - at;
    if (down > at)
        return down - at;
    *ret_mixed = true;
    return min_u64(round_up(at + 1, p->unit), p->end) - at;
}

/* Bytes from at to the next border, at most len. */
static uint64_t step(const struct pack_place *p, uint64_t at, uint64_t len)
{
    return min_u64(p->unit - at % p->unit, len);
}

uint64_t pack_run(const struct pack_place *p, const uint8_t *buf, uint64_t len, uint64_t at, bool *ret_zero)
{
    uint64_t run = step(p, at, len);
    *ret_zero = mem_is_zero(buf, run);
    while (run < len) {
        uint64_t next = step(p, at + run, len - run);
        if (mem_is_zero(buf + run, next) != *ret_zero)
            break;
        run += next;
    }
    return run;
}

int pack_encode(struct co *co, const struct pack_place *p, const struct fmt_encoding *how, const struct pack_bytes *b, struct packed *ret)
{
    uint64_t end = b->at + b->len, from = round_up(b->at, p->unit), to = end >= p->end ? end : round_down(end, p->unit);
    *ret = (struct packed){ .e = NULL };
    if (from >= to)
        return 0;
    struct iovec slot;
    ret->from = from;
    ret->to = to;
    return graph_encode(co, p->target, how, iov_one(&slot, b->buf + (from - b->at), to - from), from, &ret->e);
}

static int write_plain(struct co *co, const struct pack_place *p, const struct pack_bytes *b, uint64_t from, uint64_t to)
{
    struct iovec slot;
    return from < to ? graph_write(co, p->out ? p->out : p->target, iov_one(&slot, b->buf + (from - b->at), to - from), from, 0) : 0;
}

int pack_write(struct co *co, const struct pack_place *p, const struct packed *k, const struct pack_bytes *b)
{
    uint64_t end = b->at + b->len;
    uint64_t from = min_u64(max_u64(b->at, k->e ? k->from : end), end), to = max_u64(min_u64(end, k->e ? k->to : end), from);
    struct iovec slot;
    int r = write_plain(co, p, b, b->at, from);
    if (!r && from < to)
        r = graph_write_encoded(co, p->out ? p->out : p->target, k->e, iov_one(&slot, b->buf + (from - b->at), to - from), from);
    return r ? r : write_plain(co, p, b, to, end);
}

void packed_fini(struct packed *k)
{
    graph_encoded_free(k->e);
    k->e = NULL;
}
