/* SPDX-License-Identifier: MIT
 *
 * runtime.h: changes of the graph while it is used: who is attached to which node, other nodes under the same users, filters.
 *
 * Edges and their roles (FEATURES 11.001). An overlay has an edge "backing" to what lies below it; a filter has an edge "filtered" to the
 * node whose requests it sees. Both are graph_backing(). What is attached from outside the graph (an export, a device) has an edge
 * as well: the attachment, a node that is in no list and only passes requests on, so that the pointer its owner holds stays what
 * it is while the node below it is another one.
 *
 *   runtime.c    edges: replacing, inserting, removing, another backing node; freezing
 *   rebase.c     what an image records of its backing file (graph_record_backing here; graph_rebase of graph.h, which changes the edge as well)
 *   filter.c     attachments, and what all filters have in common; filters.c: the table of those that users can make
 *   tray.c       attachments whose node may be taken out (tray.h)
 *   threshold.c  thresholds
 *   live.h       layers whose content a job changes
 *
 * Invariants
 *   R1  An edge changes only while every node above it is drained: a request goes by the old edges or by the new ones, all the way.
 *   R2  A change is checked as a whole first: chains, sizes, permissions, frozen edges. Then it cannot fail.
 *   R3  An index of fixed layers (D6) covers no edge that changes: it is gone before, and made anew afterwards.
 *   R4  A filter is a layer that has nothing of its own: depths, statuses and "allocated above" do not count it.
 * Concurrency  Home loop, unless stated.
 */
#ifndef GRAPH_RUNTIME_H
#define GRAPH_RUNTIME_H

#include "graph/graph.h"

/* ---- attachments ---- */
/* `who` (copied) uses n for `perm` and lets others do `shared`. Requests, graph_length and graph_drain_* may be made with *ret_a, on any loop;
 * everything else wants the node: graph_attached. Takes a reference of n. */
/* inner: whoever makes requests with it sees to it that a section of n's gate is open meanwhile (cbw.h); they wait for no gate then. */
/* idle: n may be inactive, or become so; what the user may do beyond reading is put aside meanwhile (graph_set_active). */
/* tray: n is a medium, which may be taken out (tray.h). */
struct graph_attach_opts { const char *who; unsigned perm, shared; bool inner, idle, tray; };
MUST_USE int graph_attach(struct graph_node *n, const struct graph_attach_opts *o, struct graph_node **ret_a, struct byre_err *err);
/* No request is made with it any more. As graph_close of the node when it was its last user. */
int graph_detach(struct co *co, struct graph_node *a);
/* The node that it is attached to now; n itself when it is no attachment. NULL: nothing is in its tray (tray.h). */
struct graph_node *graph_attached(struct graph_node *n);
/* What users call that node; "": there is none. */
const char *graph_attached_name(struct graph_node *n);

/* ---- other nodes under the same users ---- */
/* All edges that lead to `from`, but those of `to` and of what lies below it, lead to `to` from now on, all or none. The two have
 * the same length. Users that are no edges (graph_user_add) stay where they are. References move along: the caller needs one of his own
 * if `from` is to stay open. Suspends. */
MUST_USE int graph_replace_node(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err);
/* The same, and `to`, which has nothing below it, gets `from` as what lies below it: a new overlay, or a filter made with graph_filter_new.
 * Below an overlay `from` is durable when it returns 0; no flush reaches it any more. */
MUST_USE int graph_insert_above(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err);
/* One of the two, for a job that has kept others away: by what it uses, and by edges that it has frozen. That is given up when all is drained, and nothing
 * suspends from there to the change, so nobody comes in between. When the change is refused, the job has it as before. longer: `to` may be longer than
 * `from`, and so is what its users have then. */
#define GRAPH_GOING_USES 2u
struct graph_going {
    struct graph_node *from, *to;
    bool insert, longer;
    struct graph_user *uses[GRAPH_GOING_USES];       /* NULL: none */
    struct graph_node *frozen;                       /* from there, as graph_freeze; NULL: nothing */
    const struct graph_node *frozen_base;
};
MUST_USE int graph_go_over(struct co *co, const struct graph_going *o, struct byre_err *err);
/* Takes the filter f out: its users use what it filtered. The caller keeps his reference of f, which filters nothing then. */
MUST_USE int graph_remove_filter(struct co *co, struct graph_node *f, struct byre_err *err);
/* Takes the overlay n out that was put there by graph_insert_above: its users use what lies below it, and what was written to n is not
 * theirs any more. n has nothing below it then. */
MUST_USE int graph_undo_insert(struct co *co, struct graph_node *n, struct byre_err *err);
/* What lies below n is `backing` (NULL: nothing) from now on; the image's own words stay as they are. Content that n shows through must be
 * the same, or be wanted to change. Suspends. */
MUST_USE int graph_set_backing(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err);
/* What the filter f filters is `to` from now on. What was written through it is durable. Suspends. */
MUST_USE int graph_set_filtered(struct co *co, struct graph_node *f, struct graph_node *to, struct byre_err *err);
/* The image says that its backing file is this one (NULL: none), durably; the graph stays as it is. An image that is open for
 * reading is opened for writing meanwhile. Suspends. */
MUST_USE int graph_record_backing(struct co *co, struct graph_node *n, const struct graph_name *to, struct byre_err *err);
/* Edges from `top` down to what lies above `base` (NULL: to the end of the chain) are not changed until they are thawed (FEATURES 11.012). Nests. */
MUST_USE int graph_freeze(struct graph_node *top, const struct graph_node *base, struct byre_err *err);
void graph_thaw(struct graph_node *top, const struct graph_node *base);
/* The owner, a job, is going to give the image n another backing node at its end: until graph_promise_end nobody freezes that edge or changes it, but
 * for filters that are taken out. Refused when somebody has frozen it, beside the owner's own (`own` times), or promised it. Idempotent. */
MUST_USE int graph_promise(struct graph_node *n, const void *owner, unsigned own, struct byre_err *err);
void graph_promise_end(struct graph *g, const void *owner);

/* From one to the other nobody else changes edges, or claims layers (live.h): for several changes that are one. Nests, by coroutine; before any
 * drain. */
void graph_edges_hold(struct co *co, struct graph *g);
void graph_edges_let(struct co *co, struct graph *g);

/* ---- thresholds ---- */
/* Tells the graph's watcher once that something was written behind `offset`, and then no more. 0: it does not. n may be a filter: its image is
 * watched. */
MUST_USE int graph_set_write_threshold(struct co *co, struct graph_node *n, uint64_t offset, struct byre_err *err);
uint64_t graph_write_threshold(const struct graph_node *n);      /* 0: none, or it has been told */
/* named: as it was when that was asked for. exceeded: by how many bytes. On the home loop, must not suspend. fn NULL: nobody. */
typedef void graph_threshold_fn(void *arg, const char *named, uint64_t exceeded, uint64_t threshold);
void graph_watch_threshold(struct graph *g, graph_threshold_fn *fn, void *arg);

/* ---- filters ---- */
/* n is a filter that a command of another name (block_set_io_throttle) has put there: users go on naming what lies below it. */
void graph_set_implicit(struct graph_node *n);
struct graph_node *graph_skip_implicit(struct graph_node *n);    /* the first node at or below n that is none of these */
bool graph_is_filter(const struct graph_node *n);
/* A bare file or device, over which images may lie; and the one that n lies over (NULL: it has a file of its own). */
bool graph_is_bare_file(const struct graph_node *n);
struct graph_node *graph_file(const struct graph_node *n);
/* A filter over nothing yet that a job inserts and takes out again, and that does nothing. The caller has a reference. */
enum graph_top { GRAPH_MIRROR_TOP, GRAPH_COMMIT_TOP, GRAPH_STREAM_TOP };
MUST_USE int graph_top_new(struct graph *g, enum graph_top kind, const char *node_name, struct graph_node **ret_n, struct byre_err *err);
/* The first node at or below n that is no filter. NULL: a filter that filters nothing. */
struct graph_node *graph_skip_filters(struct graph_node *n);
/* Requests are watched, and recorded in bitmaps, at images: a filter hands them on before either, so what is asked of it is done at the image below
 * (graph_skip_filters). -EINVAL: there is none below n; what: "a mirror". */
MUST_USE int graph_need_image(const struct graph_node *n, const char *what, struct byre_err *err);
/* ---- a picture ---- */
/* outside: it begins at an attachment. */
struct graph_edge { struct graph_node *parent, *child; const char *role, *who; bool outside; unsigned perm, shared; };
/* Calls fn for every edge, those of attachments too. */
void graph_each_edge(struct graph *g, void (*fn)(void *arg, const struct graph_edge *e), void *arg);

#endif
