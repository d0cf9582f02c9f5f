/* SPDX-License-Identifier: MIT
 *
 * new_image.h: files that commands make by the way. Private to ctl/.
 */
#ifndef CTL_NEW_IMAGE_H
#define CTL_NEW_IMAGE_H

#include "graph/making.h"

/* A command has the name of a file that it is to make until graph_making_end, which comes when its node is open and nothing more can fail (graph/making.h).
 * EXISTS: somebody else makes that file, or a node has it open. whose: in the text, what needs the file. */
MUST_USE int ctl_claim_image(struct co *co, struct graph *g, const char *file, const char *whose, struct graph_making **ret_m, struct byre_err *err);
/* below: what the new image names as its backing file; NULL: none. */
struct ctl_new_image { struct graph *graph; struct graph_making *making; const char *file; const struct fmt_ops *ops; uint64_t size; struct graph_node *below; };
/* Durably there, under its name, when it returns 0. Refused before anything is touched where the name of below's file does not mean it. */
MUST_USE int ctl_make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err);

#endif
