/* SPDX-License-Identifier: MIT
 *
 * campaign.h: one geometry, many workloads: record, explore, verify; and a case as text, so that what was found can be
 * repeated.
 */
#ifndef SIM_CAMPAIGN_H
#define SIM_CAMPAIGN_H

#include "sim/seen.h"
#include "sim/verify.h"
#include "sim/workload.h"

/* Everything that a finding needs to be made again. */
struct sim_case {
    char geom[32];
    uint64_t seed;
    unsigned loops;
    bool slow_writes;
    struct sim_workload workload;
    char state[2048];                    /* sim_state_text; empty: all states */
    char why[400];
};

/* As a file: lines "geometry", "seed", "loops", "slow", "workload", "state", "why". */
void sim_case_text(const struct sim_case *c, char *buf, size_t bytes);
MUST_USE int sim_case_parse(const char *text, struct sim_case *ret);

struct sim_tally { uint64_t workloads, made, states, nested, peers, leaks_max, bound_at_max; };

struct sim_campaign {
    const struct sim_geom *g;
    struct sim_seen *checked;            /* (content, promises) verified already; NULL: no memory across workloads */
    struct sim_seen *distinct;           /* contents, to be counted; may be NULL */
    uint64_t per_workload;               /* verify at most about so many states of each; 0: all */
    uint64_t states_max;                 /* stop the workload after so many made; 0: none */
    const char *peer_dir;
    uint64_t nested_one_in;              /* 0: as verify.h says */
    bool (*worth)(void *arg);            /* after the recorded run: shall its states be looked at? NULL: yes */
    bool verbose;                        /* prints the operations of the trace */
    struct sim_tally tally;
    /* called before each state is verified: for progress and for telling what was at work when a process dies */
    void (*on_state)(void *arg, const struct sim_explorer *x);
    void *arg;
};

/* Records and explores c->workload on c->geom. 0: nothing is wrong (c->state set: only that state was made, and -ENOENT: the
 * trace has no such state). -1: c->why, and c->state of the state at fault (empty: the run itself was wrong).
 * After -1 because of a hang the process should end. */
int sim_case_run(struct sim_campaign *k, struct sim_case *c);
/* Workload n of the geometry, with seed and loops that follow from n and `seed`. */
void sim_case_nth(const struct sim_geom *g, uint64_t seed, uint64_t n, struct sim_case *ret);
/* Takes out of the workload what is not needed for it to fail; tries for at most `seconds`. c keeps failing. Runs each
 * trial in a process of its own. */
void sim_case_minimise(const struct sim_campaign *k, struct sim_case *c, unsigned seconds);

#endif
