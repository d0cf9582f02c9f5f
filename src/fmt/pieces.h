/* SPDX-License-Identifier: MIT
 *
 * pieces.h: reads pieces of a store ahead of their use, several at a time, lets all cores have a first look at
 * them, and hands them out in order. Shared by the walker, check and repair.
 */
#ifndef FMT_PIECES_H
#define FMT_PIECES_H

#include <stdbool.h>
#include <stdint.h>

#include "stor/stor.h"

#define FMT_PIECES_SLOTS 8u                    /* without work(); with it more, as long as they are small: */
#define FMT_PIECES_SLOTS_MAX 64u
#define FMT_PIECES_ROOM (16u << 20)            /* bytes of all pieces together */
#define FMT_PIECES_WORKERS_MAX 64u
#define FMT_PIECES_BYTES (1u << 20)            /* a piece is at most this or one cluster, whichever is larger */

struct fmt_piece {
    uint64_t off, len;                       /* bytes of the store; what lies behind its end reads as zeros, or is an error (exact) */
    uint64_t tag;                            /* the caller's */
    uint8_t *data;                           /* valid during use(); the caller may change it */
    int rc;                                  /* 0, or why it could not be read (data is zeros then) */
    uint64_t marks[(FMT_PIECES_BYTES >> 9) / 64];      /* one bit per 512 bytes: zeros at work(), kept for use() */
};

struct fmt_pieces_ops {
    /* The next piece (off, len <= max_bytes, tag). false: no more. Must not suspend. */
    bool (*next)(void *arg, struct fmt_piece *p);
    /* Pieces in the order of next(). Anything but 0 ends the run and is returned. May suspend. */
    int (*use)(struct co *co, void *arg, struct fmt_piece *p);
    /* May be NULL. A first look at a piece that was read, on a thread of the CPU pool, in no order and many at once; no
     * two at a time with the same worker number. What it found out goes to use() in marks. Not called for a piece that
     * could not be read. Anything but 0 ends the run and is returned. */
    int (*work)(void *arg, unsigned worker, struct fmt_piece *p);
    /* May be NULL. After each work(), on the loop, before that worker number is used again. As work(). */
    int (*worked)(void *arg, unsigned worker);
    bool exact;                              /* a piece that the store does not have whole cannot be read: -EIO */
};

/* Runs until next() says false. max_bytes: longest piece. -ENOMEM, or what a callback returned. Suspends. */
MUST_USE int fmt_pieces_run(struct co *co, struct stor *store, uint64_t max_bytes, const struct fmt_pieces_ops *ops, void *arg);
/* The same with work() on up to `workers` threads, numbered from 0 (0: work() is not called). */
MUST_USE int fmt_pieces_run_on(struct co *co, struct stor *store, uint64_t max_bytes, const struct fmt_pieces_ops *ops, void *arg, unsigned workers);

#endif
