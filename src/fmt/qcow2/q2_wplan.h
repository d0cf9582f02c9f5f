/* SPDX-License-Identifier: MIT
 *
 * q2_wplan.h: what does a write need? A pure look at entries of one slice (q2_wplan.c), for q2_write.c only.
 */
#ifndef Q2_WPLAN_H
#define Q2_WPLAN_H

#include "fmt/qcow2/q2_image.h"

enum q2_need {
    Q2_NEED_NOTHING,                     /* its first byte can be written in place */
    Q2_NEED_KEPT,                        /* the host cluster is the image's own, but what it holds there is not what the guest reads */
    Q2_NEED_CLUSTER,                     /* a new host cluster */
};

/* A guest range that begins in entry `index` of the slice and goes on through at most `max` entries. */
struct q2_wspan { const struct meta_block *b; uint32_t index, max; uint64_t off, len; };

/* What is true of the first n clusters of it. */
struct q2_wplan {
    enum q2_need need;
    uint32_t n;
    uint64_t start, stop;                /* guest range whose host bytes must be right before the entries are set; the data lies in it */
    bool zero_first, zero_last;          /* [start, off) and [off + len, stop) read zeros */
    bool zero_all;                       /* all that changes hands reads zeros */
    bool stale;                          /* KEPT: somebody may still write there in place what he mapped before it was made zero (W4 of q2_write.c) */
    bool held;                           /* CLUSTER: some of them are the image's own, and only about to be moved (q2_move.c B2) */
    uint64_t host;                       /* KEPT: the first host cluster */
};
/* -EUCLEAN: the first entry cannot be right, or names metadata as data to write into (M2 of q2_map.c). */
MUST_USE int q2_write_plan(const struct q2_image *q, const struct q2_wspan *s, struct q2_wplan *ret);
/* Can the first byte of the span be written in place? */
bool q2_write_in_place(const struct q2_image *q, const struct q2_wspan *s);
/* Extended L2: is the first host cluster the image's own, so that only subclusters change? */
bool q2_write_keeps(const struct q2_image *q, const struct q2_wspan *s);
/* What entry i of a planned span becomes when the bytes are on the host (pure). old: as it is now. host: its cluster. */
struct q2_l2e q2_write_after(const struct q2_image *q, const struct q2_l2e *old, uint64_t host, uint32_t touched);

#endif
