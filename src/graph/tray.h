/* SPDX-License-Identifier: MIT
 *
 * tray.h: attachments whose node may be taken out and become another one: drives with a tray (FEATURES G.051).
 *
 *     graph_attach (tray) -> graph_tray_open -> graph_tray_remove -> graph_tray_insert -> graph_tray_close ... -> graph_detach
 *
 * The node that such an attachment leads to is its medium, whether its tray is open or closed: its edge, its reference and what it demands of the node
 * stay, so a job that puts another node in the medium's place does so here as everywhere. With nothing in the tray there is no edge: graph_attached is NULL.
 *
 * Concurrency  Home loop. Who calls several of these in turn holds the edges (graph_edges_hold).
 */
#ifndef GRAPH_TRAY_H
#define GRAPH_TRAY_H

#include "graph/runtime.h"

bool graph_tray_is_open(const struct graph_node *a);
/* What was written through `a` is durable; from then on every request but a flush fails with -ENOMEDIUM, until the tray is closed with something in
 * it. A medium that cannot be made durable stays behind a closed tray. Open already: 0. Suspends. */
MUST_USE int graph_tray_open(struct co *co, struct graph_node *a, struct byre_err *err);
/* Suspends, and cannot fail. */
void graph_tray_close(struct co *co, struct graph_node *a);

/* Who was told how long the disk is: so many. Asked when nothing is under way any more; must not suspend. NULL: nobody. */
struct graph_tray_told { unsigned (*count)(void *arg); void *arg; };
/* Could n come into the tray now? As graph_tray_insert would refuse it. */
MUST_USE int graph_tray_fits(struct graph_node *a, struct graph_node *n, const struct graph_tray_told *told, struct byre_err *err);
/* n comes into the tray, which is open and empty, with a reference. BAD_SIZE: it has another length than those who are there were told. Suspends. */
MUST_USE int graph_tray_insert(struct co *co, struct graph_node *a, struct graph_node *n, const struct graph_tray_told *told, struct byre_err *err);
/* What is in the tray is taken out; nothing is in it: 0. Out it is in every case: a failure is that of its close, when nobody else had it, as of
 * graph_close. Suspends. */
MUST_USE int graph_tray_remove(struct co *co, struct graph_node *a);

#endif
