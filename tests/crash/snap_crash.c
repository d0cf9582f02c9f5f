/* SPDX-License-Identifier: MIT
 *
 * snap_crash.c: the power fails around an external snapshot of a disk in use: every state that may be left is looked at (J5, P2).
 *
 * Purpose      base <- disk, and an overlay that is taken into use while a guest writes and flushes. A fourth file says what the guest had been
 *              promised: how many of its writes were acknowledged by a flush, and that the snapshot had been taken. In each state the disk
 *              is the overlay if that names it, else what it was; it shows every write that was promised, or a later one; what the
 *              snapshot has kept is the disk of one moment, and nothing that was written behind it. Images are sound, or leak.
 *              Where somebody else goes on using the old layer it stays open for writing; else it is opened for reading by the way. With a third
 *              of the seeds the overlay is a QED image, with half of these all are.
 * Usage        snap-crash [FIRST [LAST]]: seeds. With BYRE_MUTANT=NAME, built with mutants, that one is alive in what is recorded.
 * Owns         A simulated machine with four files.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_snap_crash.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "crash_files.h"
#include "graph/blockdev.h"
#include "sim/workload.h"

#define FILES CRASH_FILES
#define SECTORS 48u
#define WRITES 40u
#define GUEST_GEN 100u

enum { BASE, DISK, OVER, LOG };
static const char *const names[FILES] = { "base", "disk", "over", "log" };
enum { LOG_PROMISED, LOG_TAKEN, LOG_SECTORS };

struct crash {
    struct crash_files f;
    struct prng p;
    bool held;                                   /* somebody else uses the old layer */
    uint8_t *content, *got;
    uint64_t at[WRITES];                         /* where the guest writes, one after the other */
    unsigned begun, answered, promised;          /* of its writes */
    unsigned before, after;                      /* the snapshot: what was answered when it was asked for, what had begun when it was taken */
    uint64_t states, old_disk, new_disk;
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct crash_mutant rows[] = { { "SNAPSHOT_UNFLUSHED", MUT_SNAPSHOT_UNFLUSHED }, { "SNAPSHOT_NAME_LATE", MUT_SNAPSHOT_NAME_LATE } };
    return crash_mutant_alive(id, rows, sizeof rows / sizeof rows[0]);
}
#endif

static int read_all(struct co *co, struct crash *c, struct graph_node *n) { return crash_read(co, &c->f, n, c->got, SECTORS * SIM_SECTOR); }

/* ---- the files ---- */

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    static uint8_t buf[SIM_SECTOR] __attribute__((aligned(4096)));
    struct crash *c = arg;
    int r = 0;
    for (uint64_t k = 0; k < SECTORS && r == 0; k++) {
        struct iovec slot;
        sim_sector_fill(buf, 10 + i, k);
        if (prng_one_in(&c->p, 2 + i))
            r = graph_write(co, n, iov_one(&slot, buf, SIM_SECTOR), k * SIM_SECTOR, 0);
    }
    if (r == 0)
        r = read_all(co, c, n);
    memcpy(c->content, c->got, SECTORS * SIM_SECTOR);
    return r;
}

/* ---- what is recorded ---- */

struct guest { struct crash *c; struct graph_node *n, *log; struct co_group group; int result; };

static int note(struct co *co, struct graph_node *log, unsigned where, unsigned what)
{
    uint8_t *buf = aligned_alloc(4096, 4096);
    struct iovec slot;
    memset(buf, (int)what, SIM_SECTOR);
    int r = graph_write(co, log, iov_one(&slot, buf, SIM_SECTOR), where * SIM_SECTOR, 0);
    free(buf);
    return r;
}

static void guest_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    struct crash *c = q->c;
    uint8_t *buf = aligned_alloc(4096, 4096);
    while (c->begun < WRITES && q->result == 0) {
        struct iovec slot;
        uint64_t at = c->at[c->begun++];
        sim_sector_fill(buf, GUEST_GEN + c->begun, at);
        q->result = graph_write(co, q->n, iov_one(&slot, buf, SIM_SECTOR), at * SIM_SECTOR, 0);
        c->answered = c->begun;
        if (q->result || !prng_one_in(&c->p, 10))
            continue;
        q->result = graph_flush(co, q->n);
        c->promised = c->answered;
        if (q->result == 0)
            q->result = note(co, q->log, LOG_PROMISED, c->promised);
    }
    free(buf);
    co_group_leave(&q->group);
}

static int take(struct co *co, struct crash *c, struct graph_node *n, struct graph_node *over, struct graph_node *log)
{
    struct byre_err err = { 0 };
    struct graph_user other = { .who = "somebody", .perm = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .shared = STOR_PERM_ALL };
    while (c->answered < WRITES / 3)
        (void)co_sleep(co, 1000);
    int r = c->held ? graph_user_add(n, &other, &err) : 0;
    c->before = c->answered;
    if (!r)
        r = graph_snapshot_above(co, n, over, &err);
    c->after = c->begun;
    graph_user_remove(&other);
    if (r)
        return crash_wrong(&c->f, "the snapshot fails: %s", err.text);
    if (graph_read_only(n) == c->held)
        return crash_wrong(&c->f, "the old layer is open in the wrong way");
    if (!c->held && index_stats(n).layers < 2)
        return crash_wrong(&c->f, "the old layers are not in an index");
    return note(co, log, LOG_TAKEN, 1);
}

static int run(struct co *co, struct crash *c, struct graph *g, struct graph_node *n)
{
    struct byre_err err = { 0 };
    struct graph_node *over = NULL, *attached = NULL, *log = NULL;
    const struct graph_attach_opts o = { "a guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    int r = crash_open(co, &c->f, g, OVER, false, &over);
    if (!r)
        r = crash_open(co, &c->f, g, LOG, false, &log);
    if (!r && graph_attach(n, &o, &attached, &err))
        r = crash_wrong(&c->f, "nobody can be attached: %s", err.text);
    if (!r) {
        struct guest q = { .c = c, .n = attached, .log = log };
        co_group_enter(&q.group);
        r = rt_spawn_on(rt_loop_at(c->f.w->rt, 1), guest_co, &q);
        ASSERT(r == 0);
        r = take(co, c, n, over, log);
        co_group_wait(co, &q.group);
        if (r == 0 && q.result)
            r = crash_wrong(&c->f, "a guest's write failed: %s", strerror(-q.result));
    }
    struct graph_node *all[] = { attached, log, over };
    for (unsigned i = 0; i < 3; i++)
        if (all[i]) {
            int closed = i ? graph_close(co, all[i]) : graph_detach(co, all[i]);
            r = r ? r : closed;
        }
    return r;
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    c->begun = c->answered = c->promised = 0;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &c->f, g, DISK, false, &n);
    if (r == 0) {
        r = run(co, c, g, n);
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    crash_graph_free(co, g);
    return r;
}

/* ---- a state ---- */

/* Each sector: what was there before, or one of the guest's writes; not older than its last one of the first `at_least`, and none behind `at_most`. */
static int legal(struct crash *c, const char *what, unsigned at_least, unsigned at_most)
{
    uint8_t want[SIM_SECTOR];
    for (uint64_t s = 0; s < SECTORS; s++) {
        bool good = false, must = false;
        for (unsigned k = at_most; k-- > 0 && !good && !must;)
            if (c->at[k] == s) {
                sim_sector_fill(want, GUEST_GEN + k + 1, s);
                good = !memcmp(c->got + s * SIM_SECTOR, want, SIM_SECTOR);
                must = k < at_least;
            }
        if (!good && (must || memcmp(c->got + s * SIM_SECTOR, c->content + s * SIM_SECTOR, SIM_SECTOR)))
            return crash_wrong(&c->f, "sector %" PRIu64 " of %s holds something else: %u writes were promised, %u may be there", s, what, at_least, at_most);
    }
    return 0;
}

static int judge_image(struct co *co, struct crash *c, struct graph *g, unsigned i, unsigned at_least, unsigned at_most, bool *ret_named)
{
    struct graph_node *n;
    int r = crash_open(co, &c->f, g, i, true, &n);
    if (r)
        return r;
    *ret_named = graph_backing(n);
    if (i != OVER || *ret_named) {
        r = read_all(co, c, n);
        if (r == 0)
            r = legal(c, names[i], at_least, at_most);
    }
    (void)!graph_close(co, n);
    return r;
}

static int judge(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    const uint8_t *log = crash_disk(&c->f, LOG)->data;
    unsigned promised = log[LOG_PROMISED * SIM_SECTOR];
    bool taken = log[LOG_TAKEN * SIM_SECTOR], over = false, named;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    for (unsigned i = 0; i < LOG && r == 0; i++)
        r = crash_check(co, &c->f, i);
    if (r == 0)
        r = judge_image(co, c, g, OVER, promised, WRITES, &over);
    if (r == 0 && taken && !over)
        r = crash_wrong(&c->f, "the snapshot has been taken, and its overlay names nothing");
    if (r == 0)
        r = judge_image(co, c, g, DISK, taken ? c->before : over ? (unsigned)min_u64(promised, c->before) : promised, over ? c->after : WRITES, &named);
    c->new_disk += over;
    c->old_disk += !over;
    crash_graph_free(co, g);
    return r;
}

static int look(void *arg, const struct sim_explorer *x)
{
    struct crash *c = arg;
    (void)x;
    c->states++;
    return sim_run(c->f.w, judge, c, 0);
}

/* ---- a seed ---- */

static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 512, 4096, 4096, 16384 };
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < FILES; i++) {
        struct fmt_create_opts *o = &c->f.how[i];
        *o = (struct fmt_create_opts){ .size = (i == LOG ? LOG_SECTORS : SECTORS) * SIM_SECTOR, .version = 3, .refcount_bits = 16 };
        if (i == LOG || (i == BASE && prng_one_in(&c->p, 2)))
            continue;
        o->cluster_size = clusters[prng_below(&c->p, 4)];
        o->extended_l2 = o->cluster_size == 16384;
        o->lazy_refcounts = prng_one_in(&c->p, 4);
        if (seed % 3 == 0 && (i == OVER || seed % 2)) {      /* the overlay, or all images */
            o->table_size = 1 + seed % 2;
            o->cluster_size = 4096;
            o->extended_l2 = o->lazy_refcounts = false;
        }
    }
    c->f.how[DISK].backing_file = (char *)(uintptr_t)names[BASE];
    c->f.how[DISK].backing_fmt = (char *)(uintptr_t)crash_format(&c->f, BASE)->name;
    c->held = prng_one_in(&c->p, 2);
    for (unsigned k = 0; k < WRITES; k++)
        c->at[k] = prng_below(&c->p, SECTORS / 2) * (1 + prng_below(&c->p, 2));
}

static void end(struct crash *c)
{
    crash_files_free(&c->f);
    free(c->content);
    free(c->got);
}

static int one_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c = { .content = calloc(SECTORS, SIM_SECTOR), .got = aligned_alloc(4096, SECTORS * SIM_SECTOR) };
    struct sim_trace trace;
    c.f.names = names;
    c.f.filled = DISK + 1;
    plan(&c, seed);
    sim_trace_init(&trace);
    int r = crash_files_new(&c.f, seed, fill, &c);
    if (r == 0)
        r = crash_begin(&(struct crash_test){ &c.f, record, judge, &c }, &trace, seed);
    c.old_disk = c.new_disk = 0;
    if (r == 0) {
        r = crash_explore(&c.f, &trace, seed, &(struct crash_visit){ &c.f, look, &c });
        if (r == 0 && (!c.old_disk || !c.new_disk))
            r = 2;                               /* the snapshot was not in what was cut */
    }
    *ret_states += c.states;
    sim_trace_fini(&trace);
    end(&c);
    return r;
}

int main(int argc, char **argv) { return crash_seeds(argc, argv, one_seed); }
