/* SPDX-License-Identifier: MIT
 *
 * cx_explore.h: cut a recorded run at every moment, make the states that a power cut could leave, and verify each.
 *
 * RELIABILITY 3.6. A state is verified by: check (no corruption; leaks are counted and bounded); size and every guest
 * sector against the model; every internal snapshot against its bytes before the run; open for writing, three probe
 * writes, flush, the same again; repair to no leaks, twice, guest bytes unchanged. One state in 16 is cut again inside its
 * recovery. One in CX_SAMPLE is handed to qemu-img.
 */
#ifndef CX_EXPLORE_H
#define CX_EXPLORE_H

#include "cx_work.h"

struct cx_explore_opts {
    uint64_t max_states;                 /* distinct states to verify at most; 0 = no limit */
    uint64_t per_run;                    /* of one workload at most; 0 = no limit */
    unsigned sample;                     /* one state in so many goes to qemu-img; 0 = none */
    unsigned nested;                     /* one in so many is cut again in recovery; 0 = none */
    const char *scratch;                 /* folder for samples (in memory, best) */
};

struct cx_result {
    uint64_t states, duplicates, nested, samples;
    uint64_t max_leak_bytes;
    uint64_t barriers, allocating;       /* flushes and table-changing writes recorded */
    bool violated;
    char why[400];
    uint64_t cut;
};

/* Explores one workload. Adds to *res. Stops at the first violation. */
void cx_explore(struct cx_world *w, struct cx_model *m, const struct cx_work *k, const struct cx_explore_opts *o, struct cx_result *res);
/* Leaves out steps as long as the violation stays. Rewrites *k. */
void cx_minimise(struct cx_world *w, struct cx_model *m, struct cx_work *k, const struct cx_explore_opts *o);

/* cx_snapshot.c: a digest of every snapshot's guest bytes, read from the file by a reader of its own. 0: no snapshots.
 * UINT64_MAX: a snapshot cannot be read. */
uint64_t cx_snapshots_digest(const struct cx_bytes *image);
/* Would another program trust a persistent bitmap of this image: autoclear bit set, and an entry not marked in use? */
bool cx_bitmaps_trusted(const struct cx_bytes *image);

#endif
