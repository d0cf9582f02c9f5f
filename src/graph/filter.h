/* SPDX-License-Identifier: MIT
 *
 * filter.h: nodes that see the requests for another node. Private to graph/.
 *
 * A filter is a row, struct filter_ops. What a row leaves out is passed on. A filter has an image of its own, in which there is nothing
 * (every range is absent), so that all that walks chains and describes nodes need not know of it.
 */
#ifndef GRAPH_FILTER_H
#define GRAPH_FILTER_H

#include "graph/graph_priv.h"
#include "graph/runtime.h"

/* Filters on the way of one request: each takes a bit of the coroutine's stack. */
#define FILTERS_MAX 32u

/* Called inside a section of a gate at or above n, on any loop; they go on with node_*(co, n->backing, ...). NULL: passed on. */
struct filter_ops {
    const char *name;                     /* the driver; NULL: an attachment */
    int (*read)(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
    int (*write)(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags);
    int (*zero)(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags);
    int (*discard)(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
    int (*flush)(struct co *co, struct graph_node *n);
    /* What lies over n with n as its file is about to do this (stor/event.h). May be NULL. */
    void (*event)(struct co *co, struct graph_node *n, enum stor_event_kind what);
    /* Are errors made up for one who asks what is there? May be NULL: no. */
    int (*status)(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
    /* Home. The store of a format over n has become `len` bytes long, at the format's wish (under.c). May be NULL. */
    void (*grown)(struct co *co, struct graph_node *n, uint64_t len);
    uint64_t (*max_transfer)(const struct graph_node *n);      /* 0: no limit. May be NULL: none */
    unsigned deny;                        /* STOR_PERM_*: what others may not do beside it to what it filters, while somebody uses the filter */
    /* Drained. n->backing has become another one, or its length another. May be NULL. */
    void (*moved)(struct graph_node *n);
    /* Drained: another process will write the file below. What the filter has of its own there is given back. May be NULL. */
    void (*rest)(struct co *co, struct graph_node *n);
    /* The node ends; nobody is inside. May be NULL. */
    void (*free)(struct co *co, struct graph_node *n);
};

/* A filter over `below` (NULL: over nothing yet), in the graph, with one reference. On failure `arg` stays the caller's. Home. */
struct filter_new { const struct filter_ops *ops; void *arg; const char *node_name; struct graph_node *below; bool inactive; };
MUST_USE int filter_new(struct graph *g, const struct filter_new *f, struct graph_node **ret_n, struct byre_err *err);
/* Are there few enough filters below n, and it one, for another one over it? LIMIT */
MUST_USE int filters_allow_above(const struct graph_node *n, struct byre_err *err);
/* Of attachments with a tray (tray.c). */
extern const struct filter_ops tray_ops;
/* After a change of edges, of a length or of an image: filters are as long as what they filter, and so on. Home. */
void filters_refresh(struct graph *g);

#endif
