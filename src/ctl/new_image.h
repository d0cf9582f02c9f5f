/* SPDX-License-Identifier: MIT
 *
 * new_image.h: files that commands make by the way. Private to ctl/.
 */
#ifndef CTL_NEW_IMAGE_H
#define CTL_NEW_IMAGE_H

#include "graph/graph.h"

/* below: what the new image names as its backing file; NULL: none. */
struct ctl_new_image { struct graph *graph; const char *file; const struct fmt_ops *ops; uint64_t size; struct graph_node *below; };
/* Durably there, under its name, when it returns 0. Refused before anything is touched where the name of below's file does not mean it. */
MUST_USE int ctl_make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err);
/* One that was made, and is not wanted. */
void ctl_drop_image(const struct graph *g, const char *file);

#endif
