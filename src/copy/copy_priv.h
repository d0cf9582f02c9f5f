/* SPDX-License-Identifier: MIT
 *
 * copy_priv.h: the inside of copy/. Private to this folder.
 *
 *   window.c   workers on all loops that take pieces from one place: order, errors, cancellation
 *   reader.c   several sources as one: status and reads
 *   sparse.c   runs of zeros in a buffer
 *   pack.c     whole clusters of a target that is written compressed
 *   copy.c     the copy: which pieces there are, and what is done with each
 *   compare.c  the comparison
 *   live.c     the copy of a disk that goes on being written: its pieces are what is dirty
 *   live_watch.c  what happens to the guest's changes meanwhile
 *   live_resize.c  the disk gets another length
 *
 * Concurrency  A window asks for pieces and hears of their ends at the job's loop; what is done with a piece runs on its worker's loop and touches the worker,
 *              constant fields and atomic counters.
 */
#ifndef COPY_PRIV_H
#define COPY_PRIV_H

#include "base/assert.h"
#include "base/checked.h"
#include "base/list.h"
#include "copy/copy.h"
#include "copy/latency.h"
#include "rt/loop.h"
#include "rt/sync.h"

#define SECTOR 512u
#define BUF_ALIGN 4096u
#define PIECE_MIN (64u << 10)
/* Longest range that is asked for status, or zeroed, at once. */
#define RANGE_MAX (1ull << 30)

/* ---- pack.c ---- */

/* Where compressed clusters go. Offsets here are those of the target. */
/* unit: bytes of a cluster; end: length of the target; out: an attachment of the target by which it is written; NULL: itself */
struct pack_place { struct graph_node *target; uint64_t unit, end; struct graph_node *out; };
struct pack_bytes { const uint8_t *buf; uint64_t at, len; };               /* len bytes at buf for offset `at` */
struct packed { struct graph_encoded *e; uint64_t from, to; };             /* e NULL: no whole cluster */

/* How far an extent [at, at+len) goes when it has to end with a cluster: data goes on to that end; what is no data ends before it,
 * and if it has no whole cluster it is `mixed`: the cluster must be written as data. */
uint64_t pack_extent(const struct pack_place *p, uint64_t at, uint64_t len, bool data, bool *ret_mixed);
/* Length of the first run of clusters of buf that are all zero (*ret_zero), or none of which is. Parts of clusters count too. */
uint64_t pack_run(const struct pack_place *p, const uint8_t *buf, uint64_t len, uint64_t at, bool *ret_zero);
/* Compresses the whole clusters of b; packed_fini frees. */
MUST_USE int pack_encode(struct co *co, const struct pack_place *p, const struct fmt_encoding *how, const struct pack_bytes *b, struct packed *ret);
/* Writes b, a part of what k was made of: whole clusters as they are in k, the rest plain. */
MUST_USE int pack_write(struct co *co, const struct pack_place *p, const struct packed *k, const struct pack_bytes *b);
void packed_fini(struct packed *k);

/* ---- window.c ---- */

struct work_piece {
    uint64_t seq;              /* set by the window: 0, 1, 2, ... in the order of next() */
    uint64_t pos, len;
    unsigned kind;             /* the user's, as all below */
    bool turned;               /* it is this piece's turn to write */
    bool fail_read;            /* it failed at the source ... */
    uint64_t fail_off;         /* ... or the target: where, on failure */
    int failed;                /* live.c: its error; the window goes on ... */
    unsigned lock;             /* ... and which of the locks of pieces it holds */
    uint64_t begun_ns;         /* set by the window */
    bool claimed;              /* copy.c: claims->take has succeeded */
};

struct worker {
    struct window *w;
    struct rt_loop *loop;
    uint8_t *buf[2];           /* piece_bytes each; buf[1] NULL unless asked for */
    struct work_piece piece;
    struct packed packed;      /* of buf[0], while the piece is worked on */
    int result;                /* of the piece in hand, or of the worker */
    bool busy;
    struct rt_msg ended;
};

/* next and done: on the job's loop, one at a time; done must not suspend. work: on the worker's loop. */
struct window_ops {
    int (*next)(struct co *co, void *ctx, struct work_piece *p);      /* 1: a piece; 0: no more; -errno */
    int (*work)(struct co *co, void *ctx, struct worker *wk);
    void (*done)(void *ctx, const struct work_piece *p, int r);
};

struct window {
    const struct window_ops *ops;
    void *ctx;
    unsigned workers;
    uint32_t piece_bytes;
    bool two_buffers, spread;
    struct copy_latency *latency;      /* NULL: it is not counted */
    /* job's loop only */
    struct rt_loop *home;
    struct co_mutex next_lock;
    struct co_group running;
    struct co_waitq turns;
    uint64_t issued, turn;     /* pieces handed out; the first that is not done */
    uint64_t done_mask;        /* bit i: piece turn+i is done */
    bool ended;                /* next() has said that there is no more */
    int error;                 /* the first */
    struct worker *all;
};

/* Fills in workers and piece_bytes; -EINVAL. */
MUST_USE int window_init(struct window *w, unsigned workers, uint32_t piece_bytes, struct byre_err *err);
/* Works until next() says that there is no more, or something failed: the first error. Suspends. */
MUST_USE int window_run(struct co *co, struct window *w, struct byre_err *err);
/* For work(): waits until all pieces before this one are done. -ECANCELED: the window stops. */
MUST_USE int window_turn(struct co *co, struct worker *wk);

/* ---- reader.c ---- */

struct reader {
    const struct copy_part *parts;
    unsigned count;
    uint64_t *start;           /* count + 1 entries: where each part begins; the last: the total */
};
MUST_USE int reader_init(struct reader *rd, const struct copy_part *parts, unsigned count, struct byre_err *err);
void reader_fini(struct reader *rd);
static inline uint64_t reader_total(const struct reader *rd) { return rd->start[rd->count]; }
/* The part that holds pos, its node's offset for pos, and the bytes of the part from there. */
const struct copy_part *reader_at(const struct reader *rd, uint64_t pos, uint64_t *ret_off, uint64_t *ret_len);

/* Status of one node in rising order, asked for many extents at a time. */
#define STATUS_MAX 32
struct status_ahead {
    const struct graph_node *node;
    uint64_t off;                          /* of list[at] */
    unsigned count, at;
    struct graph_status list[STATUS_MAX];
};
/* The status at off, at most len bytes. *ret is the caller's to change. Job's loop, one caller at a time. */
MUST_USE int status_at(struct co *co, struct status_ahead *a, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len,
                       struct graph_status *ret);

/* ---- copy.c ---- */
enum kind {
    KIND_DATA,
    KIND_ZERO,           /* reads zeros */
    KIND_BLANK,          /* reads zeros, the target perhaps does not: compare before anything is written (COPY_BACKED) */
};

struct copying {
    const struct copy_job *job;
    struct reader rd;
    struct window w;
    struct graph_node **bottom;          /* per part: the layer that is the target's backing node, or NULL */
    struct status_ahead *ahead;          /* of what is copied, and of what is held above it (COPY_BELOW) */
    bool target_zero;
    bool keep_space;                     /* zeros are to keep their place */
    uint64_t min_sparse;
    struct pack_place place;             /* unit 0: nothing is compressed */
    struct pack_place whole;             /* what pieces consist of: clusters, or what claims want; unit 0: sectors */
    struct graph_node *out;              /* the target, or what its writes go by */
    struct fmt_encoding encoding;
    uint64_t pos, total, done, done_told;
    /* the wanted range and the status extent that pos is in */
    uint64_t want_start, want_end, ext_end;
    enum kind ext_kind;
    bool ext_skip;
    uint64_t rate_next_ns;
    bool failed, fail_read;
    uint64_t fail_off, fail_begun_ns;    /* ... and since when the piece was worked on */
    /* any loop */
    _Atomic uint64_t read, written, zeroed, skipped, offloaded, unreadable, left_out;
    _Atomic unsigned vain;           /* pieces, one behind the other, that the kernel did not copy */
};
/* Writes [from, to) of the worker's buffer: data as data, long runs of zeros as zeros. Worker's loop, as the next two. */
MUST_USE int put_range(struct co *co, struct copying *c, struct worker *wk, uint64_t from, uint64_t to);
MUST_USE int put_zeros(struct co *co, struct copying *c, struct worker *wk, uint64_t pos, uint64_t len);
MUST_USE int read_part(struct co *co, struct copying *c, uint8_t *buf, uint64_t pos, uint64_t len);
/* Lets the kernel copy [at, end) of a source that others may write, where it has one place for good (graph_copy_now). 1: it has; 0: not all of it; -EBUSY: nor
 * is it known whether it could. Then what was copied may be written once more, which tells whose an error is. Worker's loop. */
MUST_USE int copy_by_kernel(struct co *co, struct copying *c, uint64_t at, uint64_t end);
/* Not when it was asked in vain for long. */
bool kernel_may_copy(const struct copying *c);
/* What is written to the target from now on is going to be flushed: the disk may begin with it. */
void tell_stream(struct graph_node *target, bool on);

/* ---- sparse.c ---- */

/* Length of the first run of buf: a run of at least `min` zero bytes (*ret_zero), or the bytes in front of the next
 * such run. at: offset that the buffer has in the image; runs begin and end on multiples of min(min, 4096) of it, or
 * at the ends of the buffer. min: multiple of 512, > 0. */
uint64_t sparse_run(const uint8_t *buf, uint64_t len, uint64_t at, uint64_t min, bool *ret_zero);

#endif
