/* SPDX-License-Identifier: MIT
 *
 * moving.h: a disk in use while a job copies it from one file to another: the world of the explorers of mirrors and backups.
 *
 * Two simulated files, "source" (raw, generation 1 in each sector) and "target" (raw, generation 2; or an empty qcow2 or QED image); guests on two loops
 * that write and flush, what they were told, and the moment of the job's event. Assertions are cmocka's.
 */
#ifndef SIM_MOVING_H
#define SIM_MOVING_H

#include "graph/runtime.h"
#include "job/job.h"
#include "sim/explorer.h"

#define MOVING_GUESTS 4u
#define MOVING_SECTORS_MAX 384u

struct moving;
struct moving_guest { struct moving *t; unsigned id; };

struct moving {
    struct sim_world *w;
    struct sim_trace trace;
    struct sim_model model;
    struct graph *g;
    struct graph_node *from, *to, *disk;
    struct jobs js;
    struct co_group guests;
    struct moving_guest guest[MOVING_GUESTS];
    uint32_t sectors;
    uint64_t seed, over;                  /* stamp of the event; 0: the job has not ended well */
    bool cancels;                         /* a job that was cancelled has ended well */
    bool ended;
    int result;                           /* of the job */
    struct sim_faults faults;             /* for the run, once the disks are open; afterwards with what they counted */
    const char *image;                    /* format of the target, with clusters of 4 KiB; NULL: it is raw */
    uint8_t *start;                       /* its bytes in the beginning */
    uint64_t start_bytes;
    uint32_t id, gen;
    uint64_t states, bad;
    char first[400];                      /* what was wrong first */
};

static inline uint64_t moving_bytes(const struct moving *t) { return (uint64_t)t->sectors * SIM_SECTOR; }

/* t: sectors, seed, faults and image are set, the rest is 0. */
void moving_init(struct moving *t);
void moving_fini(struct moving *t);
/* Both files as in the beginning. */
void moving_fill(struct moving *t);
/* Runs fn, which opens, starts guests, waits and closes by the functions below. Returns what identifies the trace. */
struct hash128 moving_run(struct moving *t, int (*fn)(struct co *co, void *arg));
void moving_open(struct co *co, struct moving *t);
/* From here on calls may fail. */
void moving_guests_start(struct co *co, struct moving *t);
/* Guests write a little on, behind the end of the job. */
void moving_guests_wait(struct co *co, struct moving *t);
void moving_close(struct co *co, struct moving *t);

/* The generation of a sector of a file that is raw, as its bytes are now. */
uint32_t moving_gen(const struct moving *t, unsigned file, uint32_t sector);
/* Opens a target that is an image read-only and reads all of it into gens. 0, or why not. */
MUST_USE int moving_read_target(struct moving *t, uint32_t *gens);

/* Every cut of the trace. visit is given t. */
void moving_explore(struct moving *t, int (*visit)(void *arg, struct sim_explorer *x, struct hash128 content));
/* For visit: counts a state that is wrong; what and where is kept of the first. */
void moving_wrong(struct moving *t, const struct sim_explorer *x, const char *what, uint32_t sector);
/* P1 of the target as it is now: nothing is lost or has two owners. */
bool moving_is_sound(const struct moving *t);
/* After the run: the model knows all that guests were told. Checks `file` against it. */
void moving_check_now(struct moving *t, unsigned file);

#endif
