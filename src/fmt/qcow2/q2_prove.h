/* SPDX-License-Identifier: MIT
 *
 * q2_prove.h: which of the clusters that the disk counts 0 does nothing name? Home loop.
 */
#ifndef Q2_PROVE_H
#define Q2_PROVE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct q2_image;
struct q2_alloc;

struct q2_proof {
    enum { Q2_PROOF_NONE, Q2_PROOF_RUNS, Q2_PROOF_THERE, Q2_PROOF_NEVER } state;
    uint64_t missed;                     /* first writes that were filled one by one for want of it */
    uint64_t price;                      /* how many of them make it worth its while, as it was last looked up */
    unsigned tries;
    bool spoilt;                         /* a table that may still have been read is another's now */
    _Atomic uint64_t *named;             /* a bit for each cluster below `end`: something names it, or did when the proof began */
    uint64_t end;
};

/* A first write is filled by itself because only the count says of its cluster, and of enough of them behind it, that they are free. */
void q2_prove_want(struct q2_image *q);
/* Nothing names the cluster, which the disk counts 0. */
bool q2_prove_free(const struct q2_alloc *a, uint64_t cluster);
/* Something names it, although it is counted 0. */
bool q2_prove_named(const struct q2_alloc *a, uint64_t cluster);

/* ---- what others tell ---- */
/* Clusters lose a reference. */
void q2_prove_saw(struct q2_alloc *a, uint64_t cluster, uint64_t n);
/* A table loses its place. */
void q2_prove_spoil(struct q2_alloc *a);
/* Nothing names clusters [from, to) any more: they are free. */
void q2_prove_gone(struct q2_alloc *a, uint64_t from, uint64_t to);
void q2_prove_fini(struct q2_alloc *a);

#endif
