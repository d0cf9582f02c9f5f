/* SPDX-License-Identifier: MIT
 *
 * latency.h: how long the pieces of a copy took, from when a worker had one to its end (FEATURES 9.100).
 *
 * Concurrency  The loop of the job that copies. Counted references: a copy may outlive its job.
 */
#ifndef COPY_LATENCY_H
#define COPY_LATENCY_H

#include <stdint.h>
#include <stdlib.h>

#define COPY_LATENCY_LIMITS 13u
static const uint64_t copy_latency_limits[COPY_LATENCY_LIMITS] = {      /* ns */
    10000, 30000, 100000, 300000, 1000000, 3000000, 10000000, 30000000, 100000000, 300000000, 1000000000, 3000000000, 10000000000
};
/* bins[i]: pieces that took at least limit i - 1 and less than limit i. */
struct copy_latency { unsigned refs; uint64_t bins[COPY_LATENCY_LIMITS + 1]; };

/* With one reference. NULL: no memory, then nothing is counted, and the rest takes NULL for it. */
static inline struct copy_latency *copy_latency_new(void)
{
    struct copy_latency *l = calloc(1, sizeof *l);
    if (l)
        l->refs = 1;
    return l;
}

static inline struct copy_latency *copy_latency_ref(struct copy_latency *l)
{
    if (l)
        l->refs++;
    return l;
}

static inline void copy_latency_unref(struct copy_latency *l)
{
    if (l && --l->refs == 0)
        free(l);
}

static inline void copy_latency_add(struct copy_latency *l, uint64_t ns)
{
    unsigned i = 0;
    while (i < COPY_LATENCY_LIMITS && copy_latency_limits[i] <= ns)
        i++;
    if (l)
        l->bins[i]++;
}

#endif
