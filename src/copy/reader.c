/* SPDX-License-Identifier: MIT
 *
 * reader.c: several sources as one, one behind the other.
 *
 * Purpose     Maps a position to a part.
 * Owns        The table of where each part begins.
 * Invariants  I1  start[] rises strictly but for empty parts; the last entry is the total.
 * Order       None.
 * Concurrency Constant after reader_init: any loop.
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
