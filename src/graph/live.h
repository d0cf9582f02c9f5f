/* SPDX-License-Identifier: MIT
 *
 * live.h: what jobs need that change layers of a chain while the disk above is in use (commit, stream).
 *
 *   live.c    claims, which keep others away from such layers
 *   absent.c  requests that change what a layer holds and not what it shows, and graph_forget
 *   mode.c    opening for writing, and for reading again
 *   rebase.c  graph_mark_partial, and what graph.h has for offline commit and rebase too: another backing file
 *
 * Invariants
 *   L1  While layers are claimed, what the claim's top shows stays, and what is seen through any layer below it may change: nobody else
 *       uses those.
 *   L2  A claim changes nothing that lasts, but the length of the base.
 * Concurrency  Home loop; suspends.
 */
#ifndef GRAPH_LIVE_H
#define GRAPH_LIVE_H

#include "graph/graph.h"

struct graph_claim;
/* Claims the layers below `top` down to `base`, for `who`: others of the graph must allow it, base is opened for writing and made as long as
 * `top`. All layers from top to base stay open. */
MUST_USE int graph_claim_layers(struct co *co, struct graph_node *top, struct graph_node *base, const char *who, struct graph_claim **ret, struct byre_err *err);
/* Only those between the two, of a disk that is in use, while its base is written: what is seen through them changes, and the lowest of them
 * puts up with that until the claim ends. The rest is the caller's.
 * *ret is set when it fails, too, and is to be ended. */
MUST_USE int graph_claim_between(struct graph_node *top, struct graph_node *base, const char *who, struct graph_claim **ret, struct byre_err *err);
/* Those between are opened for writing as well, so that they can be emptied (graph_forget); all must be able to. */
MUST_USE int graph_claim_open_all(struct co *co, struct graph_claim *c, struct byre_err *err);
/* Nothing that the base has in [off, end) is held by a layer above it any more, from the lowest up to the top, each durably before the next
 * (end: at most the top's length; off: a multiple of 2 MiB, or of all clusters). The base has it durably. What a short layer would hide then stays. */
MUST_USE int graph_claim_forget(struct co *co, const struct graph_claim *c, uint64_t off, uint64_t end, struct byre_err *err);
/* All but the top say of themselves that they make sense below the top only. */
MUST_USE int graph_claim_mark(struct co *co, const struct graph_claim *c, struct byre_err *err);
/* Others may read the layers again, and change what lies below which; nobody writes to them, and the base still is open for writing while edges are held. */
void graph_claim_relax(struct graph_claim *c);
/* Takes that back, for edges that were held since; whoever reads a layer by now may be in the way. On failure it still is to be ended. */
MUST_USE int graph_claim_again(struct graph_claim *c, struct byre_err *err);
/* Base is opened for reading again, and what nobody else uses is closed. What could not be done is warned of. NULL: nothing. */
void graph_claim_end(struct co *co, struct graph_claim *c);

/* Writes, or makes zero, only where n itself has nothing, whatever guests do meanwhile: what n shows must be what is written. So bitmaps and
 * watchers are not told. Any loop. -ENOTSUP: the format cannot say zero there, write zeros. */
MUST_USE int graph_write_absent(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
MUST_USE int graph_zero_absent(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
/* Nothing that is whole in the range is in n any more, durably; what lies below shows the same. Nobody writes to n meanwhile. Any loop. */
MUST_USE int graph_forget(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
/* The same, durable behind the next flush. */
MUST_USE int graph_forget_later(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
/* The image says of itself that it makes sense only as a layer below `through`, which is recognised by its token if it has one, else by the
 * name of its file: it is not opened as a disk any more. Durable. */
MUST_USE int graph_mark_partial(struct co *co, struct graph_node *n, const struct graph_node *through, struct byre_err *err);
/* The image has a token from now on, durably, or had one. -ENOSPC: its header has no room. */
MUST_USE int graph_give_token(struct co *co, struct graph_node *n, struct byre_err *err);

/* While a job begins: the nodes (all[0], and those of the others that are not NULL) stay open, and edges stay as they are. Suspends. */
void graph_chain_hold(struct co *co, struct graph_node *const *all, unsigned count);
void graph_chain_let(struct co *co, struct graph_node *const *all, unsigned count);

/* The base of a commit has at least `size` bytes when it returns; open for writing. Suspends. */
MUST_USE int graph_make_long(struct co *co, struct graph_node *base, uint64_t size, struct byre_err *err);
/* The name by which `overlay` may record `base`: as `like`, whose backing node it is, does, where that means the same file there, else its
 * full path. Refused as by graph_name_check. Owned. */
MUST_USE int graph_name_of(struct co *co, const struct graph_node *overlay, struct graph_node *like, char **ret_name, struct byre_err *err);
/* The format in which such a name of base (NULL: of none) is opened: of the image, whatever filters lie over it. NULL: there is none. */
const char *graph_name_format(struct graph_node *base);

#endif
