/* SPDX-License-Identifier: MIT
 *
 * under.h: the node below a format, as the format's store. Private to graph/.
 */
#ifndef GRAPH_UNDER_H
#define GRAPH_UNDER_H

#include "graph/filter.h"

#define UNDER_LEVELS_MAX 4u                  /* formats over formats: each takes its bit of the coroutine's stack */

/* n as a store for an image named `who`, which says itself what it does to n (graph_user). Home; closed there, before n is. */
MUST_USE int under_new(struct co *co, struct graph_node *n, const char *who, bool read_only, struct stor **ret_s, struct byre_err *err);
bool under_is_store(const struct stor *s);
/* Of such a store: requests to the node go by this, also while others wait for it to be drained. */
struct graph_node *under_door(const struct stor *s);
/* The node at the bottom that shows a file as it is, or a part of it. NULL: s is no such store, or what it shows is made of more than bytes of a file,
 * which may change while that stays the same. */
struct graph_node *under_file(const struct stor *s);
/* stor_file_seen of s or, when that is a store over a node, of the file at its bottom. */
bool under_seen(struct co *co, struct stor *s, struct stor_seen *ret);
/* Is it such a store, and does what it shows come from another format? */
bool under_shows_format(const struct stor *s);
/* What stores over nodes want of this image's file, beside itself. */
void unders_want(const struct graph_node *bottom, unsigned *perm, unsigned *unshared);
/* Can its length be changed? */
bool node_has_free_length(const struct graph_node *n);
/* Does space that the image n gains by growing read as zeros? What an encrypted one gains is what its key makes of zeros. */
bool node_gains_zeros(const struct graph_node *n);

#endif
