/* SPDX-License-Identifier: MIT
 *
 * copy.h: the copy engine (DESIGN D7) and the comparison that shares its walk.
 *
 * Purpose     Moves the guest content of one or several sources, one behind the other, into a target: convert and dd, commit, rebase and
 *             stream, by other selectors and flags. For a source whose changes are to be followed: live.h (mirror, commit of the active layer).
 * Invariants  I1  After copy_run returned 0 every selected byte of the target reads as the source did when it was
 *                 copied (with COPY_SALVAGE: or as zeros where a read error was reported), and, unless
 *                 COPY_NO_FLUSH, is durable (DESIGN D8).
 *             I2  Bytes outside the selected ranges are never written. A range is written at most once.
 *             I3  Memory: workers * piece_bytes of buffers (once more with COPY_BACKED and when comparing, and once more
 *                 with COPY_COMPRESS), whatever the size of the images. With COPY_COMPRESS a piece is a cluster at least.
 *             I4  Without COPY_OUT_OF_ORDER pieces are written in rising order of offset, one at a time.
 *             I5  Nothing is written after a piece has failed or the job was cancelled, but what was in flight ends first.
 * Order       One flush of the target behind everything. Nothing else is ordered.
 * Concurrency copy_run and compare_run run on the calling coroutine's loop (the job's loop); pieces are worked on by
 *             coroutines spread over all loops of the runtime, where that helps. Callbacks come on the job's loop and must not suspend.
 * Failure     The first error in time; *err and the result say where. The target is then incomplete.
 */
#ifndef COPY_COPY_H
#define COPY_COPY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "graph/graph.h"
#include "rt/co.h"

enum {
    COPY_OUT_OF_ORDER = 1u << 0,      /* pieces may be written in any order, several at a time (convert -W) */
    COPY_TARGET_ZERO = 1u << 1,       /* the target reads zeros wherever it is not written: zeros need no write */
    COPY_PRE_ZERO = 1u << 2,          /* the old content of the target may go first, if that is cheap: then as COPY_TARGET_ZERO */
    COPY_OFFLOAD = 1u << 3,           /* let the kernel copy where both sides are plain host ranges (convert -C). With claims it does so under them: who
                                         changes the source waits for it */
    COPY_SALVAGE = 1u << 4,           /* read errors become zeros and are reported */
    COPY_BACKED = 1u << 5,            /* the target hides a backing image: what that supplies already is left out (convert -B) */
    COPY_NO_FLUSH = 1u << 6,          /* the caller flushes */
    COPY_NO_SPREAD = 1u << 7,         /* all pieces on the job's loop */
    COPY_COMPRESS = 1u << 8,          /* clusters are stored compressed; what does not fill one is written plain (convert -c) */
    COPY_BELOW = 1u << 9,             /* only what no layer above `below` answers for is copied (rebase) */
    COPY_ABSENT = 1u << 10,           /* only what the target itself does not have is written, whatever others write to it meanwhile (stream) */
    COPY_WORK = 1u << 11,             /* progress tells of what is worked on alone: what is left out does not count (copy_work) */
    COPY_USED = 1u << 12,             /* with COPY_BACKED: the target may have data of its own above that image, so that nothing follows from a source's
                                         lying over the same one */
};

/* A source that others write while it is copied, and that is kept as it was (graph/cbw.h). A piece is read, then taken, and of it only what is
 * wanted still is written: nobody copies that or changes it before the piece is given back. */
struct copy_taken { unsigned slot; uint64_t pos, len; };     /* slot: below COPY_WORKERS_MAX, of no other piece that is taken */
struct copy_latency;
struct copy_claims {
    uint64_t unit;                    /* pieces consist of such whole ones, a power of two; the last may be short */
    struct graph_node *door;          /* writes go by this attachment of the target */
    int (*take)(struct co *co, void *arg, const struct copy_taken *t);       /* job's loop; suspends */
    bool (*wanted)(void *arg, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);      /* any loop; as select */
    void (*give)(void *arg, const struct copy_taken *t, bool written);       /* job's loop; must not suspend */
    void *arg;
};

#define COPY_WORKERS_DEFAULT 8
#define COPY_WORKERS_MAX 64
#define COPY_PARALLEL_MAX 16             /* that a user of the command line or the library may ask for */
#define COPY_PIECE_DEFAULT (1u << 20)
#define COPY_PIECE_MAX (32u << 20)

/* A range of a source. Parts follow one another in the target without a gap. */
struct copy_part { struct graph_node *node; uint64_t off, len; };

/* off: as in select */
struct copy_failure { int error; bool read; uint64_t off, len; };
enum { COPY_LEAVE = 1 };

struct copy_job {
    /* what (constant while the job runs) */
    const struct copy_part *parts;
    unsigned part_count;
    struct graph_node *target;        /* open for writing, long enough */
    uint64_t target_off;
    /* First wanted range that ends behind `from`, in bytes from the start of the first part; false: none is left.
     * Called with rising `from`; ranges must rise too. NULL: everything. */
    bool (*select)(void *select_arg, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);
    void *select_arg;
    /* Selection by layers of the sources (each NULL: none). It is the status that decides, so pieces may hold more with COPY_COMPRESS. */
    struct graph_node *above;         /* only what a layer above this one answers for, or hides because it ends, is copied (commit) */
    struct graph_node *below;         /* COPY_BELOW: only what the layers from this one down answer for, or nobody does */
    struct graph_node *against;       /* COPY_BACKED: what this disk supplies already is left out, and not what the target does; what lies
                                         behind its end is zeros (rebase: the backing image that is to come) */
    /* how */
    unsigned flags;
    unsigned workers;                 /* pieces in flight, 1..COPY_WORKERS_MAX; 0 = default */
    uint32_t piece_bytes;             /* longest piece; 0 = default; a power of two, 64 KiB..COPY_PIECE_MAX */
    uint64_t min_sparse;              /* runs of zeros at least this long are not stored; multiple of 512; 0 = store everything */
    uint64_t rate;                    /* bytes per second; 0 = no limit */
    struct fmt_encoding encoding;     /* COPY_COMPRESS */
    /* hooks; each may be NULL */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void (*salvaged)(void *arg, uint64_t off, uint64_t len, int error);   /* this range could not be read; off as in select */
    void *arg;
    const _Atomic bool *cancel;       /* becomes true: stop soon, -ECANCELED */
    const struct copy_claims *claims; /* NULL: nobody writes the source. Not beside COPY_BACKED, _ABSENT and _SALVAGE, and out of order */
    /* For live jobs, each may be NULL; on the job's loop; these may suspend as long as they like. */
    struct copy_hooks {
        /* Before a piece is begun; bytes of data, 0 when it is none. < 0: the copy ends with that. */
        int (*step)(struct co *co, void *arg, uint64_t bytes);
        /* A piece failed, or the status of what follows. 0: again; COPY_LEAVE: it is left out; < 0: the copy ends with that. */
        int (*failed)(struct co *co, void *arg, const struct copy_failure *f);
        /* Instead of `rate`, which may change: pieces are no longer than an eighth of what it says. Must not suspend. */
        uint64_t (*speed)(void *arg);
        void *arg;
        struct copy_latency *latency;     /* latency.h; stays until copy_run has returned */
    } hooks;
};

struct copy_result {
    uint64_t read, written;           /* bytes of data moved */
    uint64_t zeroed, skipped;         /* bytes made zero by request; bytes that needed nothing */
    uint64_t offloaded;               /* of `written`: bytes that the kernel copied */
    uint64_t unreadable;              /* bytes replaced by zeros (COPY_SALVAGE) */
    uint64_t left_out;                /* bytes of pieces that were given up (COPY_LEAVE) */
    uint64_t fail_off;                /* on failure: where, in bytes from the start of the first part */
    bool fail_read;                   /* on failure: the source, not the target */
};

/* Copies. ret may be NULL. -EINVAL: a field of the job is not acceptable; -ENOSPC: the target is too short;
 * -ECANCELED; else the error of the first request that failed. Suspends. */
MUST_USE int copy_run(struct co *co, const struct copy_job *job, struct copy_result *ret, struct byre_err *err);

/* How many bytes copy_run would work on, by the status of now: all that is not left out (FEATURES 11.031). What has no status counts; nobody is asked
 * about that, as the copy meets it, too. Of the hooks only step is called. Suspends. */
MUST_USE int copy_work(struct co *co, const struct copy_job *job, uint64_t *ret_bytes, struct byre_err *err);

/* ---- compare (FEATURES 5.026 to 5.028) ---- */

struct compare_job {
    struct graph_node *a, *b;
    bool strict;                      /* lengths and allocation must be the same, too */
    unsigned flags;                   /* COPY_NO_SPREAD */
    unsigned workers;                 /* as above */
    uint32_t piece_bytes;
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    const _Atomic bool *cancel;
};

enum compare_verdict {
    COMPARE_SAME,
    COMPARE_CONTENT,                  /* the sector at `off` differs */
    COMPARE_STATUS,                   /* strict: the allocation at `off` differs */
    COMPARE_SIZE,                     /* strict: the lengths differ */
};

struct compare_result {
    enum compare_verdict verdict;
    uint64_t off;                     /* first difference, rounded down to 512 */
    bool size_differs;                /* the lengths differ: what the longer one has in excess was compared with zeros */
    bool fail_status;                 /* on failure: the status could not be had (else: the data) */
    bool fail_b;                      /* on failure: of b (else: of a) */
    uint64_t fail_off;
};

/* 0 with ret->verdict, or the error of the first request that failed (no difference was found before it). Suspends. */
MUST_USE int compare_run(struct co *co, const struct compare_job *job, struct compare_result *ret, struct byre_err *err);

#endif
