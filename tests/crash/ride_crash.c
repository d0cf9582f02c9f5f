/* SPDX-License-Identifier: MIT
 *
 * ride_crash.c: small writes that go along with a copy of their cluster (src/graph/ride.c): the power fails, and every n-th call fails.
 *
 * Purpose      base <- disk, on which nothing is written yet. Guests on two loops write neighbouring sectors at the same time, so that most go along
 *              with the first one's copy. Whoever is answered reads at once what he wrote. In each state that a power cut leaves, what a flush has
 *              covered is there, and all else is what it was or what was written; the images are sound, or leak. Some guests write zeros; somebody
 *              else discards and zeroes whole clusters meanwhile. Half of the clusters have data, by the seed compressed, encrypted, or shared
 *              with a snapshot, which stays what it was.
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

#include "base/checked.h"
#include "base/mutant.h"
#include "crash_files.h"
#include "sim/luks.h"
#include "sim/workload.h"

#define SECTORS 96u
#define GUESTS 8u
#define BASE_GEN 10u
#define GUEST_GEN 100u
#define ENCRYPTED_ONE_IN 32u
#define SNAPSHOT "before"

enum { BASE, DISK };
static const char *const names[CRASH_FILES] = { "base", "disk", "unused", "unused-too" };

struct crash {
    struct crash_files f;
    struct prng p;
    uint8_t *content, *got;
    unsigned per;                                /* sectors of a cluster */
    bool snapshot, compressed;                   /* one was made in the beginning; some clusters are */
    bool loose[SECTORS];                         /* somebody else discards here, or makes zeros: nothing is promised */
    bool zero[SECTORS];                          /* the guest makes zeros of it: a write like any other */
    bool begun[SECTORS], answered[SECTORS];
    uint64_t promised[SECTORS];                  /* the stamp of a flush that covers it; 0: none did */
    uint64_t cut, states, met;
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct crash_mutant rows[] = {
        { "RIDE_LEFT_BEHIND", MUT_RIDE_LEFT_BEHIND }, { "RIDE_TOLD_EARLY", MUT_RIDE_TOLD_EARLY }, { "RIDE_FAILURE_HIDDEN", MUT_RIDE_FAILURE_HIDDEN },
        { "RIDE_GAP_UNREAD", MUT_RIDE_GAP_UNREAD },
    };
    return crash_mutant_alive(id, rows, sizeof rows / sizeof rows[0]);
}
#endif

/* Half of the clusters have data of their own. */
static int fill_disk(struct co *co, struct crash *c, struct graph_node *n)
{
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = SNAPSHOT };
    struct fmt_snapshot_info info = { 0 };
    struct byre_err err = { 0 };
    int r = 0;
    for (uint64_t s = 0; s < SECTORS && r == 0; s += c->per) {
        uint64_t len = min_u64(c->per, SECTORS - s);
        struct iovec slot;
        for (uint64_t k = s; k < s + len; k++)
            sim_sector_fill(c->got + k * SIM_SECTOR, 20, k);
        if (prng_one_in(&c->p, 2))
            r = graph_write(co, n, iov_one(&slot, c->got + s * SIM_SECTOR, len * SIM_SECTOR), s * SIM_SECTOR, c->compressed && prng_one_in(&c->p, 2) ? GRAPH_COMPRESS : 0);
    }
    if (r == 0 && c->snapshot)
        r = graph_snapshot(co, n, &rq, &info, &err);
    return r < 0 ? r : crash_read(co, &c->f, n, c->content, SECTORS * SIM_SECTOR);
}

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    struct crash *c = arg;
    struct iovec slot;
    if (i == DISK)
        return fill_disk(co, c, n);
    for (uint64_t k = 0; k < SECTORS; k++)
        sim_sector_fill(c->content + k * SIM_SECTOR, BASE_GEN, k);
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
    sim_sector_fill(buf, c->zero[s] ? 0 : GUEST_GEN, s);
    c->begun[s] = true;
    if (c->zero[s] ? graph_zero(co, q->n, s * SIM_SECTOR, SIM_SECTOR, GRAPH_UNMAP) : graph_write(co, q->n, iov_one(&slot, buf, SIM_SECTOR), s * SIM_SECTOR, 0))
        return;
    c->answered[s] = true;
    if (!c->loose[s] && !graph_read(co, q->n, iov_one(&slot, got, SIM_SECTOR), s * SIM_SECTOR) && memcmp(buf, got, SIM_SECTOR))
        (void)crash_never(&c->f, "sector %" PRIu64 " has been written, and does not read so", s);
}

/* Somebody else discards whole clusters, and makes zeros of them, while guests write there. */
static void other_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    struct crash *c = q->c;
    for (uint64_t s = 0; s < SECTORS; s += c->per) {
        uint64_t off = s * SIM_SECTOR, len = min_u64(c->per, SECTORS - s) * SIM_SECTOR;
        if (!c->loose[s])
            continue;
        (void)co_sleep(co, prng_below(&c->p, 300000));
        int r = prng_one_in(&c->p, 2) ? graph_discard(co, q->n, off, len) : graph_zero(co, q->n, off, len, GRAPH_UNMAP);
        (void)r;                                 /* it may fail; what is there is judged */
    }
    co_group_leave(q->group);
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
    struct guest q[GUESTS + 1];
    memset(c->begun, 0, sizeof c->begun);
    memset(c->answered, 0, sizeof c->answered);
    memset(c->promised, 0, sizeof c->promised);
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &c->f, g, DISK, false, &n);
    if (r == 0) {
        for (unsigned i = 0; i <= GUESTS && r == 0; i++) {
            q[i] = (struct guest){ c, n, &group, i };
            co_group_enter(&group);
            r = rt_spawn_on(rt_loop_at(c->f.w->rt, i % 2), i < GUESTS ? guest_co : other_co, &q[i]);
            ASSERT(r == 0);
        }
        co_group_wait(co, &group);
        flush_all(co, c, n);
        r = c->f.why[0] ? -1 : 0;
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    crash_graph_free(co, g);
    return r;
}

/* ---- a state ---- */

static bool is(const struct crash *c, uint64_t s, uint32_t gen)
{
    uint8_t want[SIM_SECTOR];
    sim_sector_fill(want, gen, s);
    return !memcmp(c->got + s * SIM_SECTOR, want, SIM_SECTOR);
}

static int legal(struct crash *c)
{
    for (uint64_t s = 0; s < SECTORS; s++) {
        bool must = !c->loose[s] && c->promised[s] && c->cut >= c->promised[s], new = c->begun[s] && is(c, s, c->zero[s] ? 0 : GUEST_GEN);
        bool old = !memcmp(c->got + s * SIM_SECTOR, c->content + s * SIM_SECTOR, SIM_SECTOR), gone = c->loose[s] && (is(c, s, 0) || is(c, s, BASE_GEN));
        if (!new && !gone && (must || !old))
            return crash_wrong(&c->f, "sector %" PRIu64 " of the disk holds something else%s", s, must ? ", and a flush had covered it" : "");
    }
    return 0;
}

/* What the snapshot holds is what was there when it was made. */
static int judge_snapshot(struct co *co, struct crash *c, struct graph *g)
{
    struct graph_node *n;
    c->f.snapshot = (struct fmt_snapshot_pick){ .name = SNAPSHOT };
    int r = crash_open(co, &c->f, g, DISK, true, &n);
    c->f.snapshot = (struct fmt_snapshot_pick){ 0 };
    if (r < 0)
        return r;
    r = crash_read(co, &c->f, n, c->got, SECTORS * SIM_SECTOR);
    if (r == 0 && memcmp(c->got, c->content, SECTORS * SIM_SECTOR))
        r = crash_wrong(&c->f, "the snapshot has changed");
    (void)!graph_close(co, n);
    return r;
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
    if (r == 0 && c->snapshot)
        r = judge_snapshot(co, c, g);
    crash_graph_free(co, g);
    return r;
}

static int look(void *arg, const struct sim_explorer *x)
{
    struct crash *c = arg;
    c->cut = x->cut;
    if (c->f.how[DISK].encrypt.format && c->met++ % ENCRYPTED_ONE_IN)
        return 0;                                /* to open it takes a hundred times as long */
    c->states++;
    return sim_run(c->f.w, judge, c, 0);
}

/* ---- a seed ---- */

/* A snapshot may share the clusters, some of them compressed, all of them encrypted. */
static void plan_disk(struct crash *c, uint64_t seed, struct fmt_create_opts *o)
{
    static char luks[] = "luks", cipher[] = "aes-128", key[] = SIM_LUKS_SECRET;
    static const unsigned clusters[] = { 4096, 8192, 16384, 65536 };
    o->cluster_size = clusters[seed % 4];
    o->extended_l2 = o->cluster_size == 65536;   /* subclusters of four sectors */
    o->lazy_refcounts = prng_one_in(&c->p, 4);
    c->snapshot = seed % 3 == 1;
    c->compressed = seed % 3 != 2;
    if (seed % 7 == 3) {
        o->encrypt = (struct fmt_encrypt){ .format = luks, .cipher_alg = cipher, .key_secret = key, .iter_time_ms = 10 };
        o->secrets = sim_luks_secrets();
        c->compressed = false;
    }
    if (seed % 5 == 0) {
        *o = (struct fmt_create_opts){ .size = o->size, .table_size = 1, .cluster_size = 4096 };
        c->snapshot = c->compressed = false;
    }
    o->backing_file = (char *)(uintptr_t)names[BASE];
    o->backing_fmt = (char *)(uintptr_t)"raw";
}

static void plan(struct crash *c, uint64_t seed)
{
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        c->f.how[i] = (struct fmt_create_opts){ .size = (i > DISK ? 1 : SECTORS) * SIM_SECTOR, .version = 3, .refcount_bits = 16 };
    plan_disk(c, seed, &c->f.how[DISK]);
    c->per = (unsigned)min_u64(c->f.how[DISK].cluster_size / SIM_SECTOR, SECTORS);
    for (uint64_t s = 0; s < SECTORS; s++) {
        c->loose[s] = s % c->per ? c->loose[s - 1] : c->per < SECTORS && prng_one_in(&c->p, 4);
        c->zero[s] = prng_one_in(&c->p, 6);
    }
}

static int begin(struct crash *c, uint64_t seed)
{
    *c = (struct crash){ .content = aligned_alloc(4096, SECTORS * SIM_SECTOR), .got = aligned_alloc(4096, SECTORS * SIM_SECTOR) };
    c->f.names = names;
    c->f.filled = DISK + 1;
    sim_luks_seed(seed);
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
static int cut_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    struct sim_trace trace;
    sim_trace_init(&trace);
    int r = begin(&c, seed);
    c.cut = UINT64_MAX;
    if (r == 0)
        r = crash_begin(&(struct crash_test){ &c.f, record, judge, &c }, &trace, seed);
    if (r == 0)
        r = crash_explore(&c.f, &trace, seed, &(struct crash_visit){ &c.f, look, &c });
    *ret_states += c.states;
    sim_trace_fini(&trace);
    end(&c);
    return r;
}

/* Every n-th call of each kind fails once. */
static int fault_seed(uint64_t seed, uint64_t *ret_states)
{
    static const struct crash_fault faults[] = {
        { SIM_C_READ, -EIO, false }, { SIM_C_WRITE, -EIO, false }, { SIM_C_FLUSH, -EIO, false }, { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE, -EIO, false },
        { SIM_C_DISCARD | SIM_C_ZERO, -EIO, false },
    };
    struct crash c;
    int r = begin(&c, seed);
    c.cut = UINT64_MAX;
    if (r == 0)
        r = crash_every_fault(&(struct crash_test){ &c.f, record, judge, &c }, faults, sizeof faults / sizeof faults[0], seed, NULL, ret_states);
    end(&c);
    return r;
}

int main(int argc, char **argv)
{
    bool faulty = argc > 1 && !strcmp(argv[1], "faults");
    return crash_seeds(argc - faulty, argv + faulty, faulty ? fault_seed : cut_seed);
}
