/* SPDX-License-Identifier: MIT
 *
 * workload.h: what a guest does while the power may fail: a short list of operations, as values and as text.
 *
 *   w OFF LEN    write            z OFF LEN   zeros               u OFF LEN   zeros, space may be given back
 *   d OFF LEN    discard          f           flush               s SIZE      resize
 *   o            close and open   r           close, repair, open p OFF LEN   read and compare
 *   l OFF LEN TO clone: what lies from TO on becomes what the range is
 *   c OFF LEN    compressed write of whole clusters            t            time passes
 *   k N          snapshot N (1 to 3) is made   a N         applied      x N         deleted. N 0: the one of the initial image
 *   g MODE SIZE  grows, space allocated: MODE 1 metadata, 2 falloc, 3 full (enum fmt_prealloc)
 *   v WHAT N     amend: WHAT 0, version N; 1, reference counts of N bits; 2, lazy refcounts, N 1 off, 2 on; 3, the raw bit off
 *   A N  X N  C N  E N  H N   bitmap N is added, removed, cleared, enabled, disabled ("halted")   M N K   K is merged into N
 *   K WHAT       key slots (geometries with LUKS): WHAT 0, the second passphrase gets one; 1, its slots are erased; 2, the only slot is
 *                written anew; 3, as 0, a slot whose entry lies in two sectors
 *   b OFF LEN    VM state is written (geometries that have it), from the beginning of its area on
 *   i            scrub (geometries that have it)   q N   the same of QED, cancelled behind its step N
 *   y            compaction, beside the requests (likewise)
 *   n            commit into the backing image (likewise)         j            rebase to the other backing image, or back (likewise)
 *   J            as j, and what the new backing image holds as well is dropped (not QED)
 *   "& " in front: at the same time as the operation before it. "~ " in front: nobody waits for it before the end, or
 *   before the next s, g, o, r, k, a, x, v, n, j, J, b or K. Offsets, lengths and sizes in sectors of 512 bytes.
 *   Operations are separated by ';'.
 */
#ifndef SIM_WORKLOAD_H
#define SIM_WORKLOAD_H

#include "sim/image.h"
#include "sim/model.h"
#include "sim/world.h"

#define SIM_WOPS_MAX 24u

struct sim_wop { char kind; bool beside, behind; uint32_t off, len, to; };        /* to: 'l' alone */
struct sim_workload { struct sim_wop op[SIM_WOPS_MAX]; unsigned count; };

/* -EINVAL */
MUST_USE int sim_workload_parse(const char *text, struct sim_workload *ret);
void sim_workload_text(const struct sim_workload *l, char *buf, size_t bytes);
/* May it be run on this geometry (ranges inside the guest as it is then, resize allowed)? */
bool sim_workload_fits(const struct sim_workload *l, const struct sim_geom *g);

/* The alphabet of a geometry: every parameterised operation. Returns how many; op NULL: only counts. */
unsigned sim_alphabet(const struct sim_geom *g, struct sim_wop *op, unsigned max);
/* Workload number n of a geometry: first all of length 1, then all of length 2, then seeded ones of 3 to 6 operations,
 * some of them at the same time. Each ends with or without a flush. Depends on nothing but g and n. */
void sim_workload_nth(const struct sim_geom *g, uint64_t n, struct sim_workload *ret);
/* Number n of those in which requests meet, or freed space is used again. */
void sim_workload_meeting(const struct sim_geom *g, uint64_t n, struct sim_workload *ret);

/* One recorded run. */
struct sim_record {
    struct sim_world *w;
    const struct sim_image *im;
    const struct sim_workload *l;
    uint64_t seed;
    struct sim_trace *trace;             /* notes and operations go here */
    /* results */
    char why[320];                       /* what was wrong already in the run: a request failed, a read was wrong */
    bool may_fail;                       /* requests may fail (faults): then they are only noted */
    int first_error;
    unsigned errors;
    bool flushed;                        /* the last thing that succeeded was a flush or a close of all */
    uint32_t next_id, next_gen;
};
/* Runs the workload live, with notes. 0; -1: `why` says what is wrong; -EDEADLK, -ETIME as sim_run. Afterwards the
 * files hold the final content. */
int sim_record_run(struct sim_record *r);

/* ---- shared with verify.c ---- */
MUST_USE int sim_disk_open(struct co *co, struct graph *g, const struct sim_geom *geom, bool read_only, bool check_mode, struct graph_node **ret_n, struct byre_err *err);
MUST_USE int sim_graph_new(struct sim_world *w, struct co *co, struct graph **ret_g, struct byre_err *err);

#endif
