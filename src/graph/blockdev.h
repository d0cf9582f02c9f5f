/* SPDX-License-Identifier: MIT
 *
 * blockdev.h: nodes by the options of the ecosystem (blockdev-add), and those that the user owns by name.
 *
 * Options are a JSON object as blockdev-add has them: {"driver": "qcow2", "node-name": "disk", "file": {...} or "name of a node", "backing": ...}.
 * Drivers: file, host_device, nbd, null-co, null-aio, the formats, and the filters of filters.c.
 *
 *   blockdev.c         nodes come and go
 *   blockdev_reopen.c  their options change
 *   active.c           nodes leave their files to another process, and take them back
 *   snapshot.c         external snapshots
 *
 * Concurrency  Home loop; suspends.
 */
#ifndef GRAPH_BLOCKDEV_H
#define GRAPH_BLOCKDEV_H

#include <jansson.h>

#include "graph/runtime.h"

/* Opens the node with all that its options nest. It belongs to the user until graph_blockdev_del. All or nothing. */
MUST_USE int graph_blockdev_add(struct co *co, struct graph *g, const json_t *options, struct graph_node **ret_n, struct byre_err *err);
/* Other options for nodes that are open, in the words of graph_blockdev_add; what is left out goes back to its default, and "backing", which
 * must be said, is the name of a node or null. All of the list, or nothing. */
MUST_USE int graph_blockdev_reopen(struct co *co, struct graph *g, const json_t *list, struct byre_err *err);
/* As graph_find, and not in the moment in which it is opened for reading again behind who wrote to it: it is in use then. Suspends. */
struct graph_node *graph_find_settled(struct co *co, struct graph *g, const char *node_name);
/* Closes it: refused when it is not the user's, or somebody uses it. When closing fails the node is gone all the same. */
MUST_USE int graph_blockdev_del(struct co *co, struct graph_node *n, struct byre_err *err);
/* A node that was opened by other means becomes the user's: its reference goes over to him. */
void graph_blockdev_own(struct graph_node *n);
bool graph_blockdev_owned(const struct graph_node *n);
/* It stays open for as long as something else uses it, and no longer; without anything else it stays the user's. */
int graph_blockdev_disown(struct co *co, struct graph_node *n);
/* The end begins: from here on a server that has requests and answers none of them for 30 seconds is given up, of whatever the end waits for. */
void graph_parting(struct graph *g);
/* Somebody has closed a node at the end, or where nobody asks, with this error (0: none): graph_blockdev_close_all tells the first one. Home loop. */
void graph_closed_badly(struct graph *g, int error);
/* At the end. Begins to flush every node that can be written, each beside the others, and does not wait: the end may have to wait for a disk, or for
 * somebody who stands still, long before it comes to the nodes. May be called again and again. */
void graph_flush_soon(struct graph *g);
/* Then: gives up all that the user owns, each beside the others, and waits for all. The first error of closing. As graph_parting
 * for those that have come since. */
int graph_blockdev_close_all(struct co *co, struct graph *g);

/* active false: n (NULL: all), and what lies below it and is used by nobody else who is active, is made durable, closed for writing and gives its locks up,
 * so that another process may change the files; it can be read, as it was. true: n and all below it take the locks again and are opened anew, with
 * what is in the files then. All of them, or none. Refused: somebody writes to one of them who cannot do without. */
MUST_USE int graph_set_active(struct co *co, struct graph *g, struct graph_node *n, bool active, struct byre_err *err);
bool graph_is_active(const struct graph_node *n);
/* Is it read-only, or would be if it were active? */
bool graph_meant_read_only(const struct graph_node *n);

/* Does a node of the graph use the file of this name? False, too, when it does not exist or cannot be opened. */
bool graph_uses_file(struct co *co, struct graph *g, const char *path);

/* An external snapshot: what uses `n` uses `overlay` from now on, which has nothing below it and is used by nobody, and n lies below. The
 * overlay's header says so, durably, and its file is durably where its name says, before the first request goes to it. Unless somebody goes on
 * writing to it, n is open for reading from then on. */
MUST_USE int graph_snapshot_above(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err);
/* The same in steps: put, then settle; or take it back while nobody has written to the overlay. *ret_named: the overlay did not name n before. */
MUST_USE int graph_snapshot_put(struct co *co, struct graph_node *n, struct graph_node *overlay, bool *ret_named, struct byre_err *err);
void graph_snapshot_take_back(struct co *co, struct graph_node *overlay, bool named);
void graph_snapshot_settle(struct co *co, struct graph_node *n);

#endif
