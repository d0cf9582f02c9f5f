/* SPDX-License-Identifier: MIT
 *
 * q2_edge.c: where the used part of an unclean image on a device ends.
 *
 * Purpose     A file ends somewhere, and nothing can be named behind that; a device does not. Finds the cluster behind the last one
 *             that anything names, so that q2_unclean.c has an end behind which everything is free.
 * Owns        The highest end seen so far, by worker of the CPU pool.
 * Invariants  G1  Nothing is proved by a part of the walk: a table that was not read yet may name any cluster. So the answer
 *                 comes when all references have been seen, and not in steps; but it is the only question, needs
 *                 no memory, and goes over the tables on all cores.
 *             G2  The tables stand still: while it runs no cluster is handed out (q2_unclean_await), so no entry changes. The
 *                 answer is exact, and no old table names anything between it and the end of the device.
 *             G3  What an entry names behind the end of the device does not count: nothing is there.
 * Order       What a killed process wrote and never made durable looks like the rest. One barrier makes what was read durable
 *             before anything behind the answer is used: else a power cut could bring back an entry that names a cluster which
 *             is another's by then (Q9).
 * Concurrency Home loop, beside reads. It is not paused and not cancelled: requests wait for it. The tables of 1 TiB of data take
 *             some tenths of a second.
 * Failure     -EIO: something could not be followed; nothing is known to be free.
 * Tests       q2_scrub_test.c, crash explorer (geometries with `device`), tests/interop/test_q2_scrub.py
 */
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/pieces.h"
#include "fmt/qcow2/q2_survey.h"
#include "fmt/qcow2/q2_unclean.h"
#include "rt/loop.h"

#define REFS_PER_STEP 512u

struct edge {
    const struct q2_image *q;
    uint64_t bytes;                      /* of the device */
    uint64_t end[FMT_PIECES_WORKERS_MAX + 1];      /* host bytes; the last one is the loop's */
    unsigned refs;
};

static void named(uint64_t *end, uint64_t device, uint64_t off, uint64_t bytes)
{
    if (off < device)                    /* G3 */
        *end = max_u64(*end, off + min_u64(bytes, device - off));
}

static int see(struct co *co, void *arg, const struct q2_ref *r)
{
    struct edge *e = arg;
    named(&e->end[FMT_PIECES_WORKERS_MAX], e->bytes, r->off, r->bytes);
    if (++e->refs % REFS_PER_STEP == 0)
        co_yield(co);
    return 0;
}

/* A whole table, by a worker. What an entry means is of no interest, only what it may name. */
static int look(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data)
{
    struct edge *e = arg;
    const struct q2_geom *g = &e->q->g;
    uint64_t end = 0;
    (void)t;
    for (uint64_t at = 0; !g->data_file && at < g->cluster_size; at += g->l2_entry_bytes) {
        uint64_t raw = be64_get((const be64 *)(data + at)), off = raw & Q2_L2E_OFF, bytes = g->cluster_size;
        if (raw & Q2_E_COMPRESSED) {
            off = raw & g->coff_mask;
            bytes = ((raw >> g->csize_shift & g->csize_mask) + 1) * 512 - off % 512;
        }
        if (off)
            named(&end, e->bytes, off, bytes);
    }
    e->end[worker] = max_u64(e->end[worker], end);
    return 1;
}

int q2_edge_find(struct co *co, struct q2_image *q, uint64_t *ret_first)
{
    struct edge *e = calloc(1, sizeof *e);
    if (!e)
        return -ENOMEM;
    *e = (struct edge){ .q = q, .end = { q->g.cluster_size } };
    struct q2_survey s = { .q = q, .ref = see, .bulk = look, .arg = e,
        .workers = (unsigned)min_u64(rt_cpu_workers(rt_of(co_loop(co))), FMT_PIECES_WORKERS_MAX) };
    int r = stor_length(co, q->im.store, &e->bytes);
    if (r == 0)
        r = q2_survey(co, &s);
    uint64_t end = 0;
    for (unsigned i = 0; i <= FMT_PIECES_WORKERS_MAX; i++)
        end = max_u64(end, e->end[i]);
    if (r == 0)
        r = meta_flush(co, q->meta);
    *ret_first = div_up(end, q->g.cluster_size);
    free(e);
    return r;
}
