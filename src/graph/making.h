/* SPDX-License-Identifier: MIT
 *
 * making.h: files that are being made, so that no two make one at a time.
 *
 *     graph_making_begin -> graph_uses_file? -> the file is made -> graph_making_is -> its node is open -> graph_making_end
 *                                                              \-> graph_making_drop -> graph_making_end
 *
 * From the end of its making until its node is open a file is in no node and is locked by nobody: graph_uses_file says no, and a second maker would empty it.
 * So who makes a file has its name from before it asks graph_uses_file, until the node is open and nothing can go wrong that would have the file removed.
 */
#ifndef GRAPH_MAKING_H
#define GRAPH_MAKING_H

#include "base/cleanup.h"
#include "graph/graph.h"

struct graph_making;
/* path: of a file, as graph_name_to_make tells it. EXISTS: somebody is making that file, under this name or another one. Suspends. */
MUST_USE int graph_making_begin(struct co *co, struct graph *g, const char *path, struct graph_making **ret_m, struct byre_err *err);
/* The file is s from now on. */
void graph_making_is(struct graph_making *m, const struct stor *s);
/* Removes what was made, unless something else is there by now, or somebody uses it. No device, and nothing that graph_making_is has not told. Suspends. */
void graph_making_drop(struct co *co, struct graph_making *m);
void graph_making_end(struct graph_making *m);       /* NULL ok */
CLEANUP_DEF(struct graph_making, graph_making_end)

#endif
