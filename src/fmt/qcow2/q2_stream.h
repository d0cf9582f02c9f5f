/* SPDX-License-Identifier: MIT
 *
 * q2_stream.h: reads a table of unknown or large size front to back with one small buffer. Shared by the files of
 * this folder that parse the snapshot table and the bitmap directory.
 */
#ifndef Q2_STREAM_H
#define Q2_STREAM_H

#include <stdint.h>

#include "stor/stor.h"

#define Q2_STREAM_BUF (64u << 10)

struct q2_stream {
    struct stor *store;
    uint64_t pos, end;         /* file offsets: next byte to hand out; first byte that may not be read */
    uint64_t buf_off;          /* file offset of buf[0] */
    uint32_t buf_len;          /* valid bytes in buf */
    uint8_t *buf;              /* Q2_STREAM_BUF bytes */
};

/* Over [off, end); what lies behind the end of the store reads as zeros. -ENOMEM. */
MUST_USE int q2_stream_init(struct q2_stream *s, struct stor *store, uint64_t off, uint64_t end);
void q2_stream_fini(struct q2_stream *s);
/* The next n bytes (n <= Q2_STREAM_BUF) in place, valid until the next call; they are consumed. -ENODATA: fewer are
 * left before `end`; -EIO and others: the store failed. Suspends. */
MUST_USE int q2_stream_get(struct co *co, struct q2_stream *s, uint32_t n, const uint8_t **ret_p);
/* Passes over n bytes. -ENODATA: fewer are left. */
MUST_USE int q2_stream_skip(struct q2_stream *s, uint64_t n);

#endif
