/* SPDX-License-Identifier: MIT
 *
 * world.h: a machine in one thread: a virtual clock, a seeded scheduler over 1..3 loops, files with a volatile
 * cache. Same seed, same program: same trace.
 *
 * Two ways to run the engine over the same files:
 *   live     operations take virtual time, complete in seeded order, and the buffer of a write is read at a seeded
 *            moment between issue and completion (D5, stor.h I4)
 *   direct   operations complete at once: for verifying a crash state, where speed is what counts
 * In both, operations are recorded when `trace` is set.
 * Concurrency  One thread. What runs is a coroutine of one of the loops of the world, in seeded order.
 */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/prng.h"
#include "graph/graph.h"
#include "rt/loop.h"
#include "sim/disk.h"
#include "sim/trace.h"
#include "stor/stor.h"

#define SIM_FILES_MAX 12u

struct sim_file {
    const char *name;
    uint32_t index;
    struct sim_disk disk;                /* as the page cache shows it */
    struct stor_limits lim;
    struct stor_traits traits;
};

/* Calls that can be made to fail. */
enum sim_call {
    SIM_C_READ = 1u << 0, SIM_C_WRITE = 1u << 1, SIM_C_FLUSH = 1u << 2, SIM_C_ZERO = 1u << 3, SIM_C_DISCARD = 1u << 4,
    SIM_C_TRUNCATE = 1u << 5, SIM_C_PREALLOC = 1u << 6, SIM_C_LENGTH = 1u << 7, SIM_C_EXTENT = 1u << 8, SIM_C_OPEN = 1u << 9,
    SIM_C_LOCK = 1u << 10, SIM_C_ALL = (1u << 11) - 1,
    SIM_C_ALLOC = 1u << 11,              /* an allocation of the engine: in programs that wrap them (fx_alloc.h), which ask sim_fault */
};
#define SIM_SHORT 1                      /* fault: not an error, but only a part of the bytes is transferred */
#define SIM_EOF 2                        /* fault: a read finds the end of the file too early */

struct sim_faults {
    unsigned kinds;                      /* of enum sim_call; 0: nothing fails */
    uint64_t nth;                        /* 1: the first call of these kinds. 0: count only */
    bool forever;                        /* this one and all that follow */
    unsigned one_in;                     /* 0; else from the nth on each call fails by chance, by rng */
    struct prng rng;
    int what;                            /* negative errno, SIM_SHORT or SIM_EOF */
    uint64_t space;                      /* bytes (non-zero sectors) all files may occupy together; 0: no limit */
    uint64_t calls, fired;               /* counted */
};

struct sim_event;

struct sim_world {
    struct prng rng;
    uint64_t now_ns, stamp;
    struct rt *rt;
    struct sim_event *heap;
    size_t heap_count, heap_cap;
    uint64_t event_seq;
    struct sim_file *files[SIM_FILES_MAX];
    unsigned file_count;
    struct sim_trace *trace;             /* NULL: nothing is recorded */
    bool direct;
    bool slow_writes;                    /* live: one write or punch in four takes 256 times longer to take effect */
    struct sim_faults faults;
    unsigned handles;                    /* open stores */
    struct graph_opener opener;          /* for graph_opts */
};

/* loops: 1..3. Never fails (mem.h), except -ENOMEM of the runtime. */
MUST_USE int sim_world_new(uint64_t seed, unsigned loops, struct sim_world **ret_w);
/* All stores closed, all coroutines ended. */
void sim_world_free(struct sim_world *w);
/* Starts the clock, the stamps and the seeds again, keeps the files. */
void sim_world_restart(struct sim_world *w, uint64_t seed);
/* name must outlive the world. The file is empty, grows, reads zeros where it grew, can punch and zero. */
struct sim_file *sim_world_file(struct sim_world *w, const char *name);
struct sim_file *sim_world_find(struct sim_world *w, const char *name);

/* Runs fn as a coroutine of loop 0 until it has returned and nothing is left to do. -EDEADLK: it can never return.
 * -ETIME: more than steps_max steps (0: 50 million). After either, the runtime has been killed and cannot be used again. */
int sim_run(struct sim_world *w, int (*fn)(struct co *co, void *arg), void *arg, uint64_t steps_max);

/* Is a run that is being recorded under way? Mutants are alive only then: they may spoil what is judged, never the judge. */
extern bool sim_recording;

/* A store over a simulated file. -ENOENT: no such file. */
MUST_USE int sim_open(struct co *co, struct sim_world *w, const char *name, bool read_only, struct stor **ret_s);

uint64_t sim_stamp(struct sim_world *w);
/* Counts a call of this kind. Does it fail? 0, or what of struct sim_faults. */
int sim_fault(struct sim_world *w, unsigned call);

/* ---- between loop.c and store.c ---- */
struct sim_event { uint64_t at_ns, seq; void (*fire)(void *arg); void *arg; };
void sim_event_add(struct sim_world *w, uint64_t delay_ns, void (*fire)(void *arg), void *arg);
/* Next event is taken out and fired; the clock moves. false: there is none. */
bool sim_event_fire(struct sim_world *w);
extern const struct rt_backend_ops sim_backend_ops;

#endif
