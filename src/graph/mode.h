/* SPDX-License-Identifier: MIT
 *
 * mode.h: how a node's image is open, and changing that while it is used. Private to graph/.
 */
#ifndef GRAPH_MODE_H
#define GRAPH_MODE_H

#include "graph/graph_priv.h"

/* how: not owned. */
struct node_mode { struct node_how *how; bool read_only, discard, writethrough; enum graph_detect detect; };
struct node_mode mode_of(const struct graph_node *n);
/* Could n's image be opened so? Whether its users agree is the caller's matter. */
MUST_USE int mode_check(struct graph_node *n, const struct node_mode *m, struct byre_err *err);
/* Drains, and opens it so. On success n->how is m->how, and the old one the caller's to free; so it may be when it failed at the
 * very end, else n->how is the old one. Edges are held (runtime.h), unless nobody else is there. */
MUST_USE int mode_switch(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err);
/* From one to the other no lock of n is lowered, for changes of mode that are undone together. Nests. let suspends, and settles n. */
void mode_locks_hold(struct graph_node *n);
void mode_locks_let(struct co *co, struct graph_node *n);
/* What shares the store of a bare file goes over to the one that it has now, behind mode_switch of it; and a look at them before that: opening a file for
 * writing may touch it. Edges are held, and they are drained. */
MUST_USE int mode_follow_file(struct co *co, struct graph_node *file, struct byre_err *err);
void mode_look_at_sharers(struct co *co, struct graph_node *file);
/* mode_check, and mode_switch with what goes with it: the file of an image that is to write is opened for writing first, and what shares the store of a
 * bare file follows. */
MUST_USE int mode_switch_all(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err);
/* Nodes that are drained while they are opened in another way, each with a reference. */
struct node_set { struct graph_node **all; size_t count; bool still; };
/* Drains, or stills, all that the predicate takes; end after begin, also when that failed, which leaves none. Edges are held. Suspend. */
MUST_USE int node_set_begin(struct co *co, struct graph *g, bool (*takes)(const void *arg, const struct graph_node *n), const void *arg, bool still,
                            struct node_set *ret, struct byre_err *err);
void node_set_end(struct co *co, struct node_set *s);
/* What lies over n knows nothing of n's content any more, not even that it ends somewhere: it is about to be written, or has grown. */
void mode_forget_below(struct graph_node *n);
/* One that is being opened comes to the file's store by itself (open.c I6); of one that is being closed nothing is wanted any more. */
static inline bool mode_is_open(const struct graph_node *m) { return m->im && m->how && !m->ending; }
/* The last who wrote to n has gone: a file that is open for writing only when somebody writes gives its lock up. */
void mode_writer_gone(struct co *co, struct graph_node *n);
/* graph_writer_gone for an image, by whoever may not wait for edges: it goes back in a coroutine of its own, one of graph->partings. Nothing when somebody is
 * in the way still (mode.c M7), or the end has begun. */
void mode_settle(struct graph_node *n);
/* Before n is opened for writing: what its files are, as far as they are nodes, is (graph_writer_comes). And behind it, when it is not any more. */
MUST_USE int mode_files_writer_comes(struct co *co, struct graph_node *n, struct byre_err *err);
void mode_files_writer_gone(struct co *co, struct graph_node *n);
/* Somebody who changes n, or may rewrite what it holds; NULL: nobody. */
const char *mode_writer(const struct graph_node *n);

#endif
