/* SPDX-License-Identifier: MIT
 *
 * q2_unclean.h: an image that was not closed cleanly serves at once (Q12). Neither its counts nor its COPIED
 * flags can be trusted before q2_scrub.c has counted all references; q2_unclean.c says what is done in the meantime.
 */
#ifndef Q2_UNCLEAN_H
#define Q2_UNCLEAN_H

#include "fmt/qcow2/q2_counts.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_marks.h"

/* While q->unclean is there: clusters from `first` on are ours, all others are old. */
enum q2_edge {
    Q2_EDGE_KNOWN,
    Q2_EDGE_SOUGHT,                      /* a device: not known yet where its used part ends; nothing can be handed out */
    Q2_EDGE_NONE,                        /* and it could not be found out */
};
struct q2_unclean {
    uint64_t file_bytes;                 /* length of the file as it was found */
    uint64_t first;                      /* that in clusters, rounded up; a device: behind the last cluster that anything names */
    enum q2_edge edge;
    bool given_up;                       /* a scrub has ended without success: what waits for one goes on as it can */
    struct co_waitq changed;             /* edge, given_up; or the image is not unclean any more */
    bool in_memory;                      /* counts are in `counts`, not in the image (until q2_recount) */
    struct q2_counts counts;             /* of cluster first + i */
    bool frozen;                         /* q2_recount is about to write them: whoever would change one waits */
    struct co_waitq thawed;
    uint64_t mended;                     /* entries that were replaced because nothing can be behind them */
};

/* Is this opening to serve an image before it has been looked through? */
bool q2_unclean_wanted(const struct q2_image *q);
/* Begins: nothing old is trusted from here on. Before the allocator is made. -ENOMEM. */
MUST_USE int q2_unclean_begin(struct q2_image *q, struct byre_err *err);
/* Everything has been proved: flags and counts are trusted again. Suspends: no write of a cluster may be under way. */
void q2_unclean_end(struct co *co, struct q2_image *q);
void q2_unclean_free(struct q2_image *q);

/* Before clusters are taken: waits while the edge is sought. -EIO: it is not known. Suspends. */
MUST_USE int q2_unclean_await(struct co *co, struct q2_image *q);
/* Before a request of the guest that may need clusters, with nothing held: waits while the edge is sought, and while an unclean
 * device has little room behind it, for the end of the scrub: then what is old may be used. Suspends. */
void q2_unclean_room_wait(struct co *co, struct q2_image *q);
/* A scrub begins, or ends with the image as unclean as it was. Those who wait are woken. */
void q2_unclean_scrub(struct q2_image *q, bool begins);
/* The edge was found. */
void q2_unclean_found(struct q2_image *q, uint64_t first);
/* q2_edge.c. -EIO: something could not be followed. -ENOMEM. Suspends. */
MUST_USE int q2_edge_find(struct co *co, struct q2_image *q, uint64_t *ret_first);

static inline bool q2_unclean_is_old(const struct q2_image *q, uint64_t cluster) { return q->unclean && cluster < q->unclean->first; }
static inline bool q2_counts_in_memory(const struct q2_image *q) { return q->unclean && q->unclean->in_memory; }
/* Room for counts up to cluster `end`. -ENOMEM. */
MUST_USE int q2_unclean_room(struct q2_image *q, uint64_t end);
/* q2_refs_get and q2_refs_add while counts are in memory. */
MUST_USE int q2_unclean_get(struct q2_image *q, uint64_t cluster, uint64_t *ret);
MUST_USE int q2_unclean_add(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, int64_t delta);
/* A table of old entries that is about to be copied to a place of ours: what may not be followed is replaced. */
void q2_unclean_sanitise(struct q2_image *q, uint64_t *words);
/* Takes the mark of a bad entry of the L1 table away (it has been replaced). */
void q2_unclean_l1_mended(struct q2_image *q, uint64_t index);
bool q2_unclean_l1_bad(const struct q2_image *q, uint64_t index);

#endif
