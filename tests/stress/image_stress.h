/* SPDX-License-Identifier: MIT
 *
 * image_stress.h: what image_stress.c, with its workers, and stress_jobs.c, with jobs on the same disk, know of one another.
 */
#ifndef IMAGE_STRESS_H
#define IMAGE_STRESS_H

#include <stdio.h>
#include <stdlib.h>

#include "graph/graph.h"
#include "rt/sync.h"

enum { WORKERS = 8, AREA = 1 << 20, SECTOR = 512, IO_MAX = 256 * 1024 };
#define DISK ((uint64_t)(WORKERS + 1) * AREA)      /* the last area is shared */

#define REQUIRE(c, ...) do { if (!(c)) { fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); exit(1); } } while (0)

struct stress {
    const char *path;
    uint64_t cluster, seed;
    unsigned operations;
    char *packed;                            /* method; NULL: none */
    bool sub, qed, scrub, compact, clone, jobs;
    unsigned scrubs, compacted;
    bool written;                            /* the workers have ended */
    struct rt *rt;
    struct graph_node *node;                 /* with jobs: what workers are attached with */
    uint8_t *model;
    struct co_group group, *beside;
    bool done;
    /* with jobs: workers go on until `enough`; nobody is inside a request while `hold` holds and `inside` is 0 */
    _Atomic bool enough, hold;
    _Atomic unsigned inside;
};

/* An empty image of the size of the disk. */
void stress_create(struct co *co, const struct stress *s, const char *path);
/* What s->node shows: the areas as their owners left them. Nobody writes. */
void stress_verify(struct co *co, struct stress *s);
/* Workers begin, and have ended when wait returns. */
void stress_start(struct co *co, struct stress *s);
void stress_wait(struct co *co, struct stress *s);
/* stress_jobs.c: all of it. */
void stress_jobs(struct co *co, struct stress *s);

#endif
