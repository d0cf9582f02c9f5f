/* SPDX-License-Identifier: MIT
 *
 * blockdev.h: nodes by the options of the ecosystem (blockdev-add), and those that the user owns by name.
 *
 * Options are a JSON object as blockdev-add has them: {"driver": "qcow2", "node-name": "disk", "file": {...} or "name of a node", "backing": ...}.
 * Drivers: file, host_device, nbd, null-co, null-aio, the formats, and the filters of filters.c.
 *
 * Concurrency  Home loop; suspends.
 */
#ifndef GRAPH_BLOCKDEV_H
#define GRAPH_BLOCKDEV_H

#include <jansson.h>

#include "graph/runtime.h"

/* Opens the node with all that its options nest. It belongs to the user until graph_blockdev_del. All or nothing. */
MUST_USE int graph_blockdev_add(struct co *co, struct graph *g, const json_t *options, struct graph_node **ret_n, struct byre_err *err);
/* Closes it: refused when it is not the user's, or somebody uses it. When closing fails the node is gone all the same. */
MUST_USE int graph_blockdev_del(struct co *co, struct graph_node *n, struct byre_err *err);
/* A node that was opened by other means becomes the user's: its reference goes over to him. */
void graph_blockdev_own(struct graph_node *n);
bool graph_blockdev_owned(const struct graph_node *n);
/* At the end: gives up all that the user owns. The first error of closing. */
int graph_blockdev_close_all(struct co *co, struct graph *g);

/* Does a node of the graph use the file of this name? False, too, when it does not exist or cannot be opened. */
bool graph_uses_file(struct co *co, struct graph *g, const char *path);

/* An external snapshot: what uses `n` uses `overlay` from now on, which has nothing below it and is used by nobody, and n lies below. The
 * overlay's header says so, durably, before the first request goes to it. */
MUST_USE int graph_snapshot_above(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err);

#endif
