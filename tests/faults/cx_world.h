/* SPDX-License-Identifier: MIT
 *
 * cx_world.h: the engine in one thread over memory: a seeded scheduler with a virtual clock, and a store that records
 * every operation, so that any moment of a run can be cut and continued in every way a power cut allows.
 *
 * Storage model: 512-byte sectors are atomic; what completed before a flush was issued is durable when
 * the flush has completed; everything else may land or not, in any order, whole or torn; length changes and
 * zeroing are operations of their own. The bytes of a write are taken at a seeded moment between its issue and its
 * completion, so a buffer that changes while it is written shows (D5).
 *
 * Concurrency  One thread. One world at a time.
 */
#ifndef CX_WORLD_H
#define CX_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/prng.h"
#include "graph/graph.h"
#include "rt/loop.h"

#define CX_FILE_MAX (24u << 20)         /* a simulated file never grows past this: -ENOSPC */
#define CX_SECTOR 512u

enum cx_op_kind { CX_WRITE, CX_ZERO, CX_TRUNCATE, CX_FLUSH };
struct cx_op {
    enum cx_op_kind kind;
    bool in_data;                        /* of file "data", not "img": each is made durable by its own flushes */
    uint64_t off, len;                   /* TRUNCATE: len is the new length */
    uint8_t *data;                       /* WRITE: what landed; owned by the log */
    uint64_t issued, completed;          /* stamps; completed 0: never did */
};

struct cx_bytes { uint8_t *data; uint64_t len; };   /* data has CX_FILE_MAX bytes; behind len all zero */

enum cx_fault_kind { CX_F_READ, CX_F_WRITE, CX_F_FLUSH, CX_F_ZERO, CX_F_TRUNCATE, CX_F_DISCARD, CX_F_LENGTH, CX_F_OPEN, CX_F_KINDS };
struct cx_faults {                      /* the nth call of a kind fails (1 = next), once or from then on */
    enum cx_fault_kind kind;
    uint64_t nth;                        /* 0: none */
    bool forever, short_transfer;
    bool nothing;                        /* a short transfer moves no byte at all */
    bool late;                           /* the call does its work and reports the error all the same (writes, truncate, zero) */
    int error;                           /* positive errno */
    uint64_t calls[CX_F_KINDS];         /* counted always */
    uint64_t hits;
};

struct cx_world {
    struct rt *rt;
    struct rt_loop *loop;
    struct prng sched;                   /* who runs next, when bytes are taken */
    uint64_t clock_ns;
    uint64_t now;                        /* stamp counter: oracle events take stamps too */
    struct cx_bytes image, backing, data;       /* files "img", "base" and "data" */
    const struct cx_bytes *data_from;    /* what "data" held before what is in the log; NULL: nothing */
    uint64_t device;                     /* "img" is a block device of so many bytes; 0: a file */
    bool recording, jitter;              /* jitter: operations suspend a seeded number of times */
    bool punch;                          /* discard=unmap */
    bool unclean_ok;                     /* for the next opening */
    bool qed;                            /* "img" is one */
    struct cx_op *log;
    size_t log_count, log_cap;
    uint64_t trace;                      /* hash of every recorded operation: the same seed gives the same trace */
    struct cx_faults faults;
    unsigned lies;                       /* bit per enum cx_fault_kind (flush, write): says done and does nothing */
    int open_stores;                     /* opened and not closed */
    struct graph *graph;
    struct graph_node *node;             /* open image, or NULL */
    uint64_t frontier_bytes, cache_bytes, bitmap_region;
    unsigned keys;                       /* passphrases that cx_open tries, in this order: FX_KEY_A, FX_KEY_B (fx_luks.h); 0: none */
};

void cx_world_init(struct cx_world *w);
void cx_world_fini(struct cx_world *w);
/* Starts over with this seed; keeps the bytes of both files. No coroutine is kept from before: as many are made as in any other run. */
void cx_world_seed(struct cx_world *w, uint64_t seed);
void cx_log_clear(struct cx_world *w);

/* Runs body as a coroutine until it has ended. false: nothing can run and it has not (a deadlock). */
typedef void cx_body(struct co *co, void *arg);
MUST_USE bool cx_run(struct cx_world *w, cx_body *body, void *arg);

/* Inside a body: opens and closes "img" through the graph. */
MUST_USE int cx_open(struct co *co, struct cx_world *w, bool read_only, bool check_mode, struct byre_err *err);
MUST_USE int cx_close(struct co *co, struct cx_world *w);
/* Puts a random state of a crash at stamp `cut` of the log into the image: `from` with what is durable, and some of the
 * rest, some of it torn. */
void cx_state_random(struct cx_world *w, const struct cx_bytes *from, uint64_t cut, struct prng *p);
/* Stamp before which everything completed is durable at `cut`, in "img" or in "data". */
uint64_t cx_durable_stamp(const struct cx_world *w, uint64_t cut, bool in_data);
/* "data" as it was before what is in the log. */
void cx_data_back(struct cx_world *w);
/* A store over one of the files (for creating an image). */
MUST_USE int cx_store_open(struct cx_world *w, const char *name, bool read_only, struct stor **ret_s);
/* "img" as it is before an image is made there: an empty file, or a device full of old bytes. */
void cx_image_blank(struct cx_world *w);
/* Both keep I1 (bytes behind len are zero); the cost follows the lengths. */
void cx_bytes_copy(struct cx_bytes *to, const struct cx_bytes *from);
/* Applies an operation, or the part [from, to) of its bytes, to a file's bytes. */
void cx_apply(struct cx_bytes *b, const struct cx_op *o, uint64_t from, uint64_t to);

/* Who opens a file anew reads what a failed call left in it, and cannot know that it failed: from here on that counts as
 * done, so that the next flush makes it durable. */
void cx_believe(struct cx_world *w);

#endif
