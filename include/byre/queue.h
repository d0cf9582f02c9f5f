/* SPDX-License-Identifier: MIT
 *
 * queue.h: asynchronous requests.
 *
 * A queue takes batches of requests and gives completions back, each with the tag of its request, in the order in
 * which they end. Requests that are in the queue together run at the same time; nothing orders them, so overlapping
 * writes give either content. A flush covers what had completed when it was submitted.
 *
 * One thread submits and reaps at a time; different queues are independent. Buffers must stay as they are until
 * the completion has been reaped.
 *
 *     submit(reqs, n) -> reap(comps, max, min, timeout) -> ... -> free
 *
 * In a program with an event loop of its own: poll byre_queue_fd for input, then reap with min 0.
 */
#ifndef BYRE_QUEUE_H
#define BYRE_QUEUE_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

enum byre_op { BYRE_OP_READ = 1, BYRE_OP_WRITE = 2, BYRE_OP_ZERO = 3, BYRE_OP_DISCARD = 4, BYRE_OP_FLUSH = 5 };

struct byre_request {
    uint32_t op;                 /* enum byre_op */
    uint32_t flags;              /* BYRE_FUA, BYRE_UNMAP, BYRE_NO_FALLBACK, BYRE_COMPRESS */
    uint64_t off, len;           /* bytes; FLUSH ignores both */
    void *buf;                   /* READ, WRITE: len bytes; or NULL with iov */
    const struct iovec *iov;     /* READ, WRITE with buf NULL: the list must stay too, and hold len bytes */
    uint32_t iov_count;
    uint32_t reserved;           /* 0 */
    uint64_t tag;                /* the caller's */
};

struct byre_completion {
    uint64_t tag;
    int32_t result;              /* 0 or a negative errno */
    uint32_t reserved;
};

struct byre_queue_opts {
    size_t struct_size;
    unsigned depth;              /* requests between submit and reap, 1 to 4096; 0 = 128 */
    int loop;                    /* index of the I/O thread that runs it + 1; 0: the next in turn */
};
BYRE_DEFINE_INIT(byre_queue_opts)

BYRE_EXPORT BYRE_MUST_USE int byre_queue_new(struct byre_image *image, const struct byre_queue_opts *opts, struct byre_queue **ret_queue, struct byre_err *err);
/* Waits until nothing is in flight and drops completions that were not reaped. NULL is allowed. */
BYRE_EXPORT void byre_queue_free(struct byre_queue *queue);

/* Takes up to count requests; returns how many (fewer only when the queue is full: reap first), or -EINVAL for a
 * request that makes no sense (those before it are taken: never returned when it is not the first). */
BYRE_EXPORT BYRE_MUST_USE int byre_queue_submit(struct byre_queue *queue, const struct byre_request *reqs, unsigned count);
/* Gives up to max completions; waits until there are at least min (of those in flight), or timeout_ms passed
 * (-1: for ever). Returns how many. */
BYRE_EXPORT int byre_queue_reap(struct byre_queue *queue, struct byre_completion *ret, unsigned max, unsigned min, int timeout_ms);
/* Requests submitted and not reaped. */
BYRE_EXPORT unsigned byre_queue_in_flight(const struct byre_queue *queue);
/* A descriptor that polls readable when completions may be waiting. Owned by the queue. -ENOTSUP in a context with
 * BYRE_CTX_CALLER_RUNS. */
BYRE_EXPORT int byre_queue_fd(struct byre_queue *queue);

#ifdef __cplusplus
}
#endif
#endif
