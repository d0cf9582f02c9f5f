/* SPDX-License-Identifier: MIT
 *
 * explorer.h: every state that a power cut may leave behind, made from one recorded run.
 *
 *   cut points   after the issue of every operation; before a flush makes something durable; after every promise
 *                that makes the set of legal contents smaller
 *   members      the operations that are pending at the cut, over all files; each is dropped, lands whole, or torn
 *   subsets      all, up to 12 members; else prefixes, all but one, one, all but two, and 64 at random
 *   tears        of writes longer than a sector: the first or the last 1, n/2 or n-1 sectors, metadata also by random masks;
 *                with nothing or everything else
 *   order        what lies in a sector follows the order of effects; of two operations that overlap in time and place
 *                either may come last
 *   length       the length changes of a file land in their order; what is written behind the length is not there
 *   growth       on a store that promises nothing for space gained (traits.zero_crash), a sector that was written there and
 *                has not landed holds old bytes of somebody else
 *
 * A state is made in the files of the world by difference and taken back; its key is the incremental hash of all
 * files together with that of the legal sets, so that each state is visited once for each set of promises.
 */
#ifndef SIM_EXPLORER_H
#define SIM_EXPLORER_H

#include "sim/model.h"
#include "sim/world.h"

enum sim_how { SIM_DROP, SIM_FULL, SIM_HEAD, SIM_TAIL, SIM_MASK, SIM_LATE };

struct sim_choice {
    enum sim_how how;
    uint32_t k;                          /* HEAD, TAIL: sectors */
    uint64_t mask;                       /* MASK: sector i lands if bit i % 64 is set */
};

struct sim_explorer {
    struct sim_world *w;                 /* its files hold what they held before the run */
    const struct sim_trace *t;
    struct sim_model *m;                 /* started as before the run; follows the cut */
    uint64_t seed;
    /* Called with the files of the world in a crash state, which it must leave as they are (undo). Non-zero stops. */
    int (*visit)(void *arg, struct sim_explorer *x, struct hash128 content);
    void *arg;
    bool nested;                         /* the caller takes all changes back by its own marks; hashes are not kept */

    /* the state that is visited */
    uint64_t cut;
    struct sim_op **pending;             /* in the order of their effects */
    struct sim_choice *choice;           /* one for each */
    uint32_t pending_count;
    uint64_t made;                       /* states made so far, repeated ones included */

    /* private */
    struct sim_op **order;               /* all operations by effect */
    bool *based;
    uint64_t *base_effect[SIM_FILES_MAX];
    size_t base_sectors[SIM_FILES_MAX];
    uint64_t first_len[SIM_FILES_MAX];   /* bytes, before the run */
    uint32_t cap;
    struct prng rng;
    int result;
};

/* 0, or what visit answered. The files and the model are afterwards as if everything had become durable. */
int sim_explore(struct sim_explorer *x);
/* A sample, for traces that are long: at one point in one_in, and behind events and half of the promises twice as many, up to `each` states. */
int sim_explore_some(struct sim_explorer *x, unsigned one_in, unsigned each);
/* Makes one state only: that of the text (sim_state_text). -EINVAL: the trace has no such state. */
int sim_explore_one(struct sim_explorer *x, const char *text);
/* Makes one state chosen by the seed. */
int sim_explore_random(struct sim_explorer *x);
/* "cut 41: 17 18h1 20" : operations by number in the trace, those that are not named are dropped. */
void sim_state_text(const struct sim_explorer *x, char *buf, size_t bytes);

#endif
