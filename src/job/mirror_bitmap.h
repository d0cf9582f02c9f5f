/* SPDX-License-Identifier: MIT
 *
 * mirror_bitmap.h: a mirror that begins with what a dirty bitmap of its source says, and what becomes of that bitmap (FEATURES G.026).
 *
 * The target holds what the source held when the bitmap began. At the end of a mirror both hold the same, so all that was marked is done.
 *
 * Invariants  B1  A bit is taken away only when what it stands for is on the target, durably. So a bitmap may say too much, never too little.
 * Concurrency Home loop.
 */
#ifndef JOB_MIRROR_BITMAP_H
#define JOB_MIRROR_BITMAP_H

#include "copy/live.h"
#include "graph/graph.h"
#include "job/copying.h"

struct mirror_bitmap { struct graph_node *node; struct fmt_bitmap *b; enum job_bitmap_mode mode; };

/* b->node is an image, b->mode is set. Nobody else changes the bitmap from here on. Suspends. */
MUST_USE int mirror_bitmap_take(struct co *co, struct mirror_bitmap *b, const char *name, struct byre_err *err);
/* Marks some of what has to be copied, from *off on. 1: and that was all. */
int mirror_bitmap_mark(const struct mirror_bitmap *b, struct copy_live *l, uint64_t *off);
/* The source is drained; all is on the target, durably. Suspends. Warns when it fails: then the bitmap says too much. */
void mirror_bitmap_done(struct co *co, struct mirror_bitmap *b);
/* Instead, where nothing may suspend; gives it, too. It says too much, which is warned of. */
void mirror_bitmap_skip(struct mirror_bitmap *b);
/* What is not on the target, which the caller makes durable, in between. The source stays drained from the first to the second. NULL: nothing is to
 * be taken out, or there is no memory for it. */
struct dirty *mirror_bitmap_left(const struct mirror_bitmap *b, const struct copy_live *l);
void mirror_bitmap_keep(struct co *co, struct mirror_bitmap *b, struct dirty *left);
/* Others may change it again. Twice is harmless. */
void mirror_bitmap_give(struct mirror_bitmap *b);

#endif
