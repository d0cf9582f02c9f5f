/* SPDX-License-Identifier: MIT
 *
 * q2_ahead.h: reads pieces of a store ahead of their use, up to 8 at a time, and hands them out in order. Shared by
 * the walker, check and repair.
 */
#ifndef Q2_AHEAD_H
#define Q2_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

#include "stor/stor.h"

#define Q2_AHEAD_SLOTS 8u
#define Q2_AHEAD_BYTES (1u << 20)            /* a piece is at most this or one cluster, whichever is larger */

struct q2_piece {
    uint64_t off, len;                       /* bytes of the store; what lies behind its end reads as zeros */
    uint64_t tag;                            /* the caller's */
    uint8_t *data;                           /* valid during use(); the caller may change it */
    int rc;                                  /* 0, or why it could not be read (data is zeros then) */
};

struct q2_ahead_ops {
    /* The next piece (off, len <= max_bytes, tag). false: no more. Must not suspend. */
    bool (*next)(void *arg, struct q2_piece *p);
    /* Pieces in the order of next(). Anything but 0 ends the run and is returned. May suspend. */
    int (*use)(struct co *co, void *arg, struct q2_piece *p);
};

/* Runs until next() says false. max_bytes: longest piece. -ENOMEM, or what use() returned. Suspends. */
MUST_USE int q2_ahead_run(struct co *co, struct stor *store, uint64_t max_bytes, const struct q2_ahead_ops *ops, void *arg);

#endif
