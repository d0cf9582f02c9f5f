/* SPDX-License-Identifier: MIT
 *
 * reader.c: several sources as one, one behind the other; status ahead of the copy.
 *
 * Purpose     Maps a position to a part; keeps a list of the next extents of a node.
 * Owns        The table of where each part begins.
 * Invariants  I1  start[] rises strictly but for empty parts; the last entry is the total.
 *             I2  A list is used for rising offsets only; an offset that it does not hold makes a new one.
 * Order       None.
 * Concurrency The reader is constant after reader_init: any loop. A list belongs to the job's loop.
 * Failure     -EINVAL for parts that do not lie in their nodes.
 * Tests       copy_test.c
 */
#include <inttypes.h>
#include <stdlib.h>

#include "copy/copy_priv.h"

int reader_init(struct reader *rd, const struct copy_part *parts, unsigned count, struct byre_err *err)
{
    *rd = (struct reader){ .parts = parts, .count = count };
    rd->start = calloc((size_t)count + 1, sizeof *rd->start);
    if (!rd->start)
        return byre_fail(err, NOMEM, "no memory for %u sources", count);
    for (unsigned i = 0; i < count; i++) {
        if (!range_inside(parts[i].off, parts[i].len, graph_length(parts[i].node)) || add_overflows(rd->start[i], parts[i].len, &rd->start[i + 1])) {
            reader_fini(rd);
            return byre_fail(err, BAD_ARGUMENT, "%s: bytes %" PRIu64 " to %" PRIu64 " are not all in the image", graph_filename(parts[i].node),
                             parts[i].off, parts[i].off + parts[i].len);
        }
    }
    return 0;
}

void reader_fini(struct reader *rd)
{
    free(rd->start);
    rd->start = NULL;
}

const struct copy_part *reader_at(const struct reader *rd, uint64_t pos, uint64_t *ret_off, uint64_t *ret_len)
{
    unsigned lo = 0, hi = rd->count;
    ASSERT(pos < reader_total(rd));
    while (hi - lo > 1) {
        unsigned mid = lo + (hi - lo) / 2;
        if (rd->start[mid] <= pos)
            lo = mid;
        else
            hi = mid;
    }
    *ret_off = rd->parts[lo].off + (pos - rd->start[lo]);
    *ret_len = rd->start[lo + 1] - pos;
    return &rd->parts[lo];
}

int status_at(struct co *co, struct status_ahead *a, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len,
              struct graph_status *ret)
{
    bool known = a->node == n && off >= a->off;
    while (known && a->at < a->count && a->off + a->list[a->at].len <= off)
        a->off += a->list[a->at++].len;
    if (!known || a->at >= a->count) {
        a->node = NULL;
        int r = graph_status_list(co, n, bottom, off, len, a->list, STATUS_MAX);
        if (r < 0)
            return r;
        a->node = n;
        a->off = off;
        a->count = (unsigned)r;
        a->at = 0;
    }
    *ret = a->list[a->at];
    ret->len = min_u64(ret->len - (off - a->off), len);
    ret->offset += off - a->off;
    return 0;
}
