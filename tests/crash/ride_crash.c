/* SPDX-License-Identifier: MIT
 *
 * ride_crash.c: small writes that go along with a copy of their cluster (src/graph/ride.c): the power fails, and every n-th call fails.
 *
 * Purpose      base <- disk, on which nothing is written yet. Guests on two loops write neighbouring sectors at the same time, so that most go along
 *              with the first one's copy. Whoever is answered reads at once what he wrote. In each state that a power cut leaves, what a flush has
 *              covered is there, and all else is what it was or what was written; the images are sound, or leak.
 *              With `faults` every n-th read, write and flush fails once: who is answered has written all the same, and the rest is as it was.
 * Usage        ride-crash [faults] [FIRST [LAST]]: seeds. With BYRE_MUTANT=NAME, built with mutants, that one is alive in what is recorded.
 * Owns         A simulated machine with four files, of which two are used.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_ride_crash.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "crash_files.h"
#include "sim/workload.h"

#define SECTORS 96u
#define GUESTS 8u
#define GUEST_GEN 100u

enum { BASE, DISK };
static const char *const names[CRASH_FILES] = { "base", "disk", "unused", "unused-too" };

struct crash {
    struct crash_files f;
    struct prng p;
    uint8_t *content, *got;
    bool begun[SECTORS], answered[SECTORS];
    uint64_t promised[SECTORS];                  /* the stamp of a flush that covers it; 0: none did */
    uint64_t cut, states;
};

static bool recording;                           /* with a trace or without one: mutants are alive */

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct { const char *name; int id; } rows[] = {
        { "RIDE_LEFT_BEHIND", MUT_RIDE_LEFT_BEHIND }, { "RIDE_TOLD_EARLY", MUT_RIDE_TOLD_EARLY }, { "RIDE_FAILURE_HIDDEN", MUT_RIDE_FAILURE_HIDDEN },
    };
    const char *s = getenv("BYRE_MUTANT");
    for (unsigned i = 0; s && recording && i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].id == id && !strcmp(rows[i].name, s))
            return 1;
    return 0;
}
#endif

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    struct crash *c = arg;
    struct iovec slot;
    if (i != BASE)
        return 0;
    for (uint64_t k = 0; k < SECTORS; k++)
        sim_sector_fill(c->content + k * SIM_SECTOR, 10, k);
    return graph_write(co, n, iov_one(&slot, c->content, SECTORS * SIM_SECTOR), 0, 0);
}

/* ---- what is recorded ---- */

struct guest { struct crash *c; struct graph_node *n; struct co_group *group; unsigned id; };

/* What is answered before the flush begins is covered when it ends. */
static void flush_all(struct co *co, struct crash *c, struct graph_node *n)
{
    bool covers[SECTORS];
    memcpy(covers, c->answered, sizeof covers);
    if (graph_flush(co, n))
        return;
    uint64_t now = sim_stamp(c->f.w);
    for (unsigned s = 0; s < SECTORS; s++)
        if (covers[s] && !c->promised[s])
            c->promised[s] = now;
}

static void write_one(struct co *co, struct guest *q, uint64_t s, uint8_t *buf)
{
    struct crash *c = q->c;
    struct iovec slot;
    uint8_t *got = buf + SIM_SECTOR;
    sim_sector_fill(buf, GUEST_GEN, s);
    c->begun[s] = true;
    if (graph_write(co, q->n, iov_one(&slot, buf, SIM_SECTOR), s * SIM_SECTOR, 0))
        return;
    c->answered[s] = true;
    if (!graph_read(co, q->n, iov_one(&slot, got, SIM_SECTOR), s * SIM_SECTOR) && memcmp(buf, got, SIM_SECTOR))
        (void)crash_wrong(&c->f, "sector %" PRIu64 " has been written, and does not read so", s);
}

static void guest_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    uint8_t *buf = aligned_alloc(4096, 4096);
    for (uint64_t s = q->id; s < SECTORS; s += GUESTS) {
        write_one(co, q, s, buf);
        if (prng_one_in(&q->c->p, 5))
            flush_all(co, q->c, q->n);
    }
    free(buf);
    co_group_leave(q->group);
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    struct co_group group = { 0 };
    struct guest q[GUESTS];
    recording = true;
    memset(c->begun, 0, sizeof c->begun);
    memset(c->answered, 0, sizeof c->answered);
    memset(c->promised, 0, sizeof c->promised);
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &c->f, g, DISK, false, &n);
    if (r == 0) {
        for (unsigned i = 0; i < GUESTS && r == 0; i++) {
            q[i] = (struct guest){ c, n, &group, i };
            co_group_enter(&group);
            r = rt_spawn_on(rt_loop_at(c->f.w->rt, i % 2), guest_co, &q[i]);
            ASSERT(r == 0);
        }
        co_group_wait(co, &group);
        flush_all(co, c, n);
        r = c->f.why[0] ? -1 : 0;
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    graph_free(g);
    recording = false;
    return r;
}

/* ---- a state ---- */

static int legal(struct crash *c)
{
    uint8_t want[SIM_SECTOR];
    for (uint64_t s = 0; s < SECTORS; s++) {
        const uint8_t *have = c->got + s * SIM_SECTOR;
        sim_sector_fill(want, GUEST_GEN, s);
        bool must = c->promised[s] && c->cut >= c->promised[s], new = c->begun[s] && !memcmp(have, want, SIM_SECTOR);
        if (!new && (must || memcmp(have, c->content + s * SIM_SECTOR, SIM_SECTOR)))
            return crash_wrong(&c->f, "sector %" PRIu64 " of the disk holds something else%s", s, must ? ", and a flush had covered it" : "");
    }
    return 0;
}

static int judge(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_check(co, &c->f, DISK);
    if (r == 0)
        r = crash_open(co, &c->f, g, DISK, true, &n);
    if (r == 0) {
        r = crash_read(co, &c->f, n, c->got, SECTORS * SIM_SECTOR);
        if (r == 0)
            r = legal(c);
        (void)!graph_close(co, n);
    }
    graph_free(g);
    return r;
}

static int look(void *arg, const struct sim_explorer *x)
{
    struct crash *c = arg;
    c->cut = x->cut;
    c->states++;
    return sim_run(c->f.w, judge, c, 0);
}

/* ---- a seed ---- */

static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 4096, 8192, 16384, 65536 };
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        c->f.how[i] = (struct fmt_create_opts){ .size = (i > DISK ? 1 : SECTORS) * SIM_SECTOR, .version = 3, .refcount_bits = 16 };
    struct fmt_create_opts *o = &c->f.how[DISK];
    o->cluster_size = clusters[seed % 4];
    o->extended_l2 = o->cluster_size == 65536;   /* subclusters of four sectors */
    o->lazy_refcounts = prng_one_in(&c->p, 4);
    if (seed % 5 == 0) {
        o->table_size = 1;
        o->cluster_size = 4096;
        o->extended_l2 = o->lazy_refcounts = false;
    }
    o->backing_file = (char *)(uintptr_t)names[BASE];
    o->backing_fmt = (char *)(uintptr_t)"raw";
}

static int begin(struct crash *c, uint64_t seed)
{
    *c = (struct crash){ .content = aligned_alloc(4096, SECTORS * SIM_SECTOR), .got = aligned_alloc(4096, SECTORS * SIM_SECTOR) };
    c->f.names = names;
    c->f.filled = DISK + 1;
    plan(c, seed);
    return crash_files_new(&c->f, seed, fill, c);
}

static void end(struct crash *c)
{
    crash_files_free(&c->f);
    free(c->content);
    free(c->got);
}

/* Power cuts. */
static int cuts(struct crash *c, uint64_t seed)
{
    struct sim_trace trace;
    sim_trace_init(&trace);
    int r = crash_record(&c->f, &trace, seed, record, c);
    c->cut = UINT64_MAX;
    if (r == 0)
        r = sim_run(c->f.w, judge, c, 0);
    if (r)
        fprintf(stderr, "what is recorded fails itself: %d, %s\n", r, c->f.why);
    else
        r = crash_explore(&c->f, &trace, seed, &(struct crash_visit){ &c->f, look, c });
    sim_trace_fini(&trace);
    return r ? c->f.why[0] ? 1 : 2 : 0;
}

/* Every n-th call of each kind fails once. */
static int failures(struct crash *c, uint64_t seed)
{
    static const unsigned kinds[] = { SIM_C_READ, SIM_C_WRITE, SIM_C_FLUSH, SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE };
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        bool fired = true;
        for (uint64_t nth = 1; fired; nth++) {
            crash_put(&c->f);
            sim_world_restart(c->f.w, seed);
            c->f.w->direct = false;
            c->f.w->faults = (struct sim_faults){ .kinds = kinds[i], .nth = nth, .what = -EIO };
            int r = sim_run(c->f.w, record, c, 0);
            fired = c->f.w->faults.fired;
            c->f.w->faults = (struct sim_faults){ 0 };
            c->f.w->direct = true;
            c->cut = UINT64_MAX;
            bool wrong = r == -EDEADLK || r == -ETIME || (r < 0 && !fired) || strstr(c->f.why, "does not read so");
            if (!wrong) {
                c->f.why[0] = 0;
                wrong = sim_run(c->f.w, judge, c, 0);
            }
            c->states++;
            if (wrong) {
                fprintf(stderr, "kind %u, call %" PRIu64 ": %d, %s\n", i, nth, r, c->f.why);
                return 1;
            }
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    bool faulty = argc > 1 && !strcmp(argv[1], "faults");
    argc -= faulty;
    argv += faulty;
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, last = argc > 2 ? strtoull(argv[2], NULL, 0) : first, states = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        struct crash c;
        int r = begin(&c, seed);
        if (r == 0)
            r = (faulty ? failures : cuts)(&c, seed);
        states += c.states;
        end(&c);
        if (r) {
            fprintf(stderr, "seed %" PRIu64 "\n", seed);
            return r;
        }
    }
    printf("%" PRIu64 " states\n", states);
    return 0;
}
