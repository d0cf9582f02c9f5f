/* SPDX-License-Identifier: MIT
 *
 * toyfmt_test.h: a copy-on-write format in memory for the tests of graph/ and copy/: a table of clusters over the
 * toy store, every kind of extent, every kind of fill, faults on request. Freed clusters are scribbled over after a
 * grace period, fresh ones before they are handed out: a missing fill or a read outside its section shows.
 */
#ifndef GRAPH_TOYFMT_TEST_H
#define GRAPH_TOYFMT_TEST_H

#include "stor/stor_test.h"

#include "graph/graph_priv.h"

#define TOYFMT_NONE UINT32_MAX
#define TOYFMT_FREED 0xdd            /* what a freed cluster holds */
#define TOYFMT_FRESH 0xee            /* what a fresh cluster holds when it is not known to be zero */
#define TOYFMT_XOR 0x5a              /* ENCODED: stored bytes are the guest's with these bits flipped */

struct toyfmt_cluster {
    enum fmt_kind kind;
    bool shared;                     /* DATA that must not be overwritten in place */
    uint32_t host;                   /* index of the cluster in the store; TOYFMT_NONE */
};

enum toyfmt_step { TOYFMT_MAP, TOYFMT_BEGIN, TOYFMT_COMMIT, TOYFMT_ZERO, TOYFMT_DISCARD, TOYFMT_DECODE, TOYFMT_ENCODE, TOYFMT_WRITE_ENCODED, TOYFMT_RESIZE, TOYFMT_STEPS };

struct toyfmt {
    struct fmt_image im;             /* first */
    struct toy *t;
    uint32_t cluster_bytes, clusters, hosts, next_host;
    uint64_t old_size;               /* before a resize that is not committed */
    pthread_mutex_t lock;
    struct toyfmt_cluster *map;      /* guarded by lock */
    uint32_t *free_list, free_count; /* guarded by lock */
    struct prng rng;                 /* guarded by lock */
    struct co_range_locks busy;      /* home */
    bool known_zero;                 /* fresh clusters are zero: nothing needs a fill where nothing lies below */
    bool no_zero;                    /* zero answers -ENOTSUP */
    bool too_far;                    /* write_encoded answers -EFBIG */
    bool cut;                        /* answers are cut short at random */
    bool absent_after_discard;
    _Atomic unsigned calls[TOYFMT_STEPS], begun, committed, aborted;
    _Atomic int fail_step;           /* this step fails ... */
    _Atomic int fail_after;          /* ... when it was called that many times more; < 0: never */
};

/* An image of `size` bytes over a fresh toy store. Home: the loop of co. */
struct toyfmt *toyfmt_new(struct co *co, uint64_t size, uint32_t cluster_bytes);
/* Gives cluster i a kind; DATA and ENCODED get a host cluster whose guest bytes all are `byte`. */
void toyfmt_set(struct toyfmt *f, uint32_t i, enum fmt_kind kind, bool shared, uint8_t byte);
/* A node over any image, hanging over `backing` (NULL: none; a reference is taken). */
struct graph_node *toy_node(struct graph *g, struct fmt_image *im, struct graph_node *backing);
/* A node over a raw image over a toy store of len bytes. */
struct graph_node *toy_raw_node(struct co *co, struct graph *g, uint64_t len, struct toy **ret_t);
struct graph *toy_graph(struct co *co);
/* Every begin was ended, no cluster is in two places, nobody is inside. */
void toyfmt_check(struct toyfmt *f);

/* ---- requests on plain buffers ---- */
int t_read(struct co *co, struct graph_node *n, void *buf, uint64_t len, uint64_t off);
int t_write(struct co *co, struct graph_node *n, const void *buf, uint64_t len, uint64_t off, unsigned flags);

#endif
