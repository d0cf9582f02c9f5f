/* SPDX-License-Identifier: MIT
 *
 * q2_stream.c: a buffered window over part of a store.
 *
 * Purpose      Lets parsers walk tables of hostile length with 64 KiB of memory.
 * Owns         Its buffer.
 * Invariants   I1 buf holds [buf_off, buf_off + buf_len) of the store; pos lies in it or it is empty.
 *              I2 Nothing at or behind `end` is read.
 * Order        Reads only.
 * Concurrency  One coroutine.
 * Failure      As in the header; after a failure the stream is to be closed.
 * Tests        q2_tables_test.c
 */
#include "fmt/qcow2/q2_stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"

int q2_stream_init(struct q2_stream *s, struct stor *store, uint64_t off, uint64_t end)
{
    *s = (struct q2_stream){ .store = store, .pos = off, .end = max_u64(off, end), .buf_off = off };
    s->buf = malloc(Q2_STREAM_BUF);
    return s->buf ? 0 : -ENOMEM;
}

void q2_stream_fini(struct q2_stream *s)
{
    free(s->buf);
    s->buf = NULL;
}

int q2_stream_get(struct co *co, struct q2_stream *s, uint32_t n, const uint8_t **ret_p)
{
    ASSERT(n <= Q2_STREAM_BUF);
    if (n > s->end - s->pos)
        return -ENODATA;
    if (!range_inside(s->pos - s->buf_off, n, s->buf_len)) {
        uint32_t len = (uint32_t)min_u64(Q2_STREAM_BUF, s->end - s->pos);
        struct iovec v;
        int rc = stor_read(co, s->store, iov_one(&v, s->buf, len), s->pos);
        if (rc)
            return rc;
        s->buf_off = s->pos;
        s->buf_len = len;
    }
    *ret_p = s->buf + (s->pos - s->buf_off);
    s->pos += n;
    return 0;
}

int q2_stream_skip(struct q2_stream *s, uint64_t n)
{
    if (n > s->end - s->pos)
        return -ENODATA;
    s->pos += n;
    return 0;
}
