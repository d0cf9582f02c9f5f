/* SPDX-License-Identifier: MIT
 *
 * crash_files.h: the files of a simulated machine around which the power fails: made by a plan, kept as they were in the beginning, put back
 * for the explorer, opened and checked in each state; and how an explorer begins and ends. For chain_crash.c, snap_crash.c and ride_crash.c,
 * which know what must be in them.
 *
 * Concurrency  One thread.
 */
#ifndef CRASH_FILES_H
#define CRASH_FILES_H

#include "graph/graph_priv.h"
#include "sim/explorer.h"

#define CRASH_FILES 4u
#define CRASH_OVERLAY_FRONTIER 16384u

struct crash_files {
    struct sim_world *w;
    const char *const *names;
    unsigned filled;                             /* how many of them, from the first on, `fill` gets */
    struct fmt_create_opts how[CRASH_FILES];     /* table_size: QED; else cluster_size: qcow2; else raw */
    struct fmt_snapshot_pick snapshot;           /* crash_open shows this one; nothing: the disk */
    uint8_t *first[CRASH_FILES];                 /* before the run */
    uint64_t first_len[CRASH_FILES];
    char why[600];                               /* what is wrong, "": nothing */
    bool broken;                                 /* and no call that fails is an excuse for it */
};

/* Puts into file i what is in it in the beginning. */
typedef int crash_fill(struct co *co, void *arg, struct graph_node *n, unsigned i);
/* A machine with the files of f->names, f->how and f->filled, as `fill` leaves them: that is the beginning. 0, or 2. */
MUST_USE int crash_files_new(struct crash_files *f, uint64_t seed, crash_fill *fill, void *arg);
void crash_files_free(struct crash_files *f);
struct sim_disk *crash_disk(const struct crash_files *f, unsigned i);
const struct fmt_ops *crash_format(const struct crash_files *f, unsigned i);
/* Lays file i out as planned: an image, or raw of its size. */
MUST_USE int crash_create(struct co *co, struct crash_files *f, unsigned i);
MUST_USE int crash_open(struct co *co, struct crash_files *f, struct graph *g, unsigned i, bool read_only, struct graph_node **ret);
MUST_USE int crash_read(struct co *co, struct crash_files *f, struct graph_node *n, uint8_t *to, uint64_t bytes);
/* An image that says of itself that it is sound. */
MUST_USE int crash_check(struct co *co, struct crash_files *f, unsigned i);
/* -1, and why: the first time counts. */
int crash_wrong(struct crash_files *f, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* The same for what may not be even though a call has failed. */
int crash_never(struct crash_files *f, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Behind what goes on by itself: nodes that go back to reading (mode.c M7). NULL is none. Suspends. */
void crash_graph_free(struct co *co, struct graph *g);
/* Back to the beginning. */
void crash_put(struct crash_files *f);
/* Records `run`, whose work begins at the beginning. 0; else judge, once with the run's end, and the explorer with `visit` follow. */
MUST_USE int crash_record(struct crash_files *f, struct sim_trace *t, uint64_t seed, int (*run)(struct co *co, void *arg), void *arg);
/* Every cut. look: judges the state of the files, which are afterwards as before. */
struct crash_visit { struct crash_files *f; int (*look)(void *arg, const struct sim_explorer *x); void *arg; };
MUST_USE int crash_explore(struct crash_files *f, const struct sim_trace *t, uint64_t seed, const struct crash_visit *v);

/* What an explorer has of its own: what is recorded, and what judges the files afterwards. */
struct crash_test { struct crash_files *f; int (*record)(struct co *co, void *arg), (*judge)(struct co *co, void *arg); void *arg; };
/* Records, and judges what is there in the end. 0, or the exit code, with a word on stderr: 1 that is wrong in itself, 2 it does not even run. */
MUST_USE int crash_begin(const struct crash_test *t, struct sim_trace *trace, uint64_t seed);
/* Once for each row and each n: the nth call of these kinds fails, once or from then on; the files are judged. then: what is done behind
 * that, may be NULL. step: one n in so many (0: all). *ret_states grows. 0 or 1, with a word on stderr. */
struct crash_fault { unsigned kinds; int what; bool forever; unsigned step; };
MUST_USE int crash_every_fault(const struct crash_test *t, const struct crash_fault *faults, size_t count, uint64_t seed, int (*then)(void *arg), uint64_t *ret_states);
/* The end of main: one seed after the other, from argv[1] to argv[2]; one returns the exit code. */
int crash_seeds(int argc, char **argv, int (*one)(uint64_t seed, uint64_t *ret_states));

/* For byre_mutant_alive: is this the one that BYRE_MUTANT names, and is something recorded? */
struct crash_mutant { const char *name; int id; };
int crash_mutant_alive(int id, const struct crash_mutant *rows, size_t count);

#endif
