/* SPDX-License-Identifier: MIT
 *
 * active.h: nodes that leave their files to another process for a while. Private to graph/.
 */
#ifndef GRAPH_ACTIVE_H
#define GRAPH_ACTIVE_H

#include "graph/graph_priv.h"

/* n is being opened as one that is not active, and is to be what n's fields say once it is. */
void active_open_asleep(struct graph_node *n);
/* May n, which is used by somebody who is active (or not: idle), have a new user? */
MUST_USE int active_allows(const struct graph_node *n, bool idle, const char *who, struct byre_err *err);
/* A new user of n: what it may not do for now is put aside. */
void active_settle_user(const struct graph_node *n, struct graph_user *u);
/* What changes n is refused when it is not active ("node 'd' is inactive and cannot be resized"); 0: it is. what: "be resized". */
MUST_USE int active_need(const struct graph_node *n, const char *what, struct byre_err *err);

#endif
