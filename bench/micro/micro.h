/* SPDX-License-Identifier: MIT
 *
 * micro.h: small pieces of the hot path, each run n times by `micro NAME N`, so that callgrind can count what one costs.
 *
 * Everything runs in one thread over a backend that answers at once (backend.c) and a store in flat memory (flat.c): no kernel, no
 * lock of our own making, the same instructions in each run.
 */
#ifndef BENCH_MICRO_H
#define BENCH_MICRO_H

#include <stdint.h>

#include "base/assert.h"
#include "graph/graph_priv.h"
#include "rt/backend.h"
#include "rt/co.h"
#include "rt/loop.h"

#define OK(call) ASSERT((call) == 0)

struct micro { const char *name, *what; void (*run)(struct co *co, uint64_t n); };
extern const struct micro micro_rt[], micro_base[], micro_disk[], micro_nbd[];      /* a NULL name ends each */

/* ---- backend.c ---- */
extern const struct rt_backend_ops echo_ops;
/* Bytes for whoever receives: how many (at most len); 0: end of the stream; -1: none now, and none later either. */
extern int64_t (*echo_feed)(void *buf, uint64_t len);

/* ---- flat.c ---- */
/* A store of growing length in memory that is there from the start. */
struct stor *flat_new(uint64_t cap);
extern const struct graph_opener flat_opener;               /* names f0, f1, ... are the stores of flat_set */
void flat_set(unsigned i, struct stor *s);

/* ---- disk.c ---- */
#define DISK_BYTES (16u << 20)
#define CLUSTER 65536u
/* A qcow2 image of so many bytes on flat memory, open and empty. */
struct disk { struct graph *g; struct graph_node *n; };
void disk_open(struct co *co, struct disk *d, uint64_t size);
void disk_fill(struct co *co, struct disk *d);
void disk_close(struct co *co, struct disk *d);

#endif
