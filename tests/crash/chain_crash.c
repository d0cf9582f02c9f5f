/* SPDX-License-Identifier: MIT
 *
 * chain_crash.c: the power fails while a job changes the chain of a disk in use: every state that may be left is looked at (J2, J3, J5).
 *
 * Purpose      base <- mid <- top <- disk, four files with flushes of their own. A commit of top into base, or a stream of what lies below the
 *              disk, runs beside a guest that writes. In each state the disk opens, by whatever its header names, and shows what it
 *              showed: each sector of the guest's the old bytes or the new ones, each other sector what it was. Its images are sound, or
 *              leak. In some states the job is begun anew and ends well.
 *              With `faults` instead every n-th call of each kind fails, once or from then on: the job or the guest may fail; afterwards the
 *              disk shows what it showed, and the job can be done again.
 *              With `runs` there are no power cuts: the guest finds what it wrote.
 *              offline-commit and rebase: of the same chain, with nobody else there.
 * Usage        chain-crash [faults|runs] commit|drop|stream|stream-base|offline-commit|rebase [FIRST [LAST]]: seeds. With BYRE_MUTANT=NAME, built with mutants, that one is alive in
 *              what is recorded.
 * Owns         A simulated machine with four files.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_chain_crash.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/mutant.h"
#include "job/commit.h"
#include "job/live_commit.h"
#include "job/stream.h"
#include "meta/meta.h"
#include "sim/explorer.h"
#include "sim/workload.h"

#define FILES 4u
#define SECTORS_MAX 400u
#define GUEST_WRITES 16u
#define GROUP 8u                                 /* sectors that the guest has together */
#define GUEST_GEN 100u
#define AGAIN_ONE_IN 97u

static const char *const names[FILES] = { "base", "mid", "top", "disk" };
enum { COMMIT, STREAM, STREAM_BASE, DROP, OFFLINE_COMMIT, REBASE };

struct crash {
    struct sim_world *w;
    struct prng p;
    unsigned what;
    uint64_t size[FILES];
    struct fmt_create_opts how[FILES];           /* cluster_size 0: raw */
    uint8_t *first[FILES], *content, *got;       /* files and disk before the run */
    uint64_t first_len[FILES];
    bool guests[SECTORS_MAX];                    /* the guest writes here */
    uint8_t last[SECTORS_MAX];                   /* what it did there last: nothing, a write, zeros */
    uint64_t states, named_short;
    char why[600];
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct { const char *name; int id; } rows[] = {
        { "LIVE_COMMIT_UNFLUSHED", MUT_LIVE_COMMIT_UNFLUSHED }, { "FORGET_TOP_FIRST", MUT_FORGET_TOP_FIRST }, { "ABSENT_BLIND", MUT_ABSENT_BLIND }, { "BARRIER_FINAL", MUT_BARRIER(META_B_FINAL) },
    };
    const char *s = getenv("BYRE_MUTANT");
    for (unsigned i = 0; s && sim_recording && i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].id == id && !strcmp(rows[i].name, s))
            return 1;
    return 0;
}
#endif

static struct sim_disk *disk(const struct crash *c, unsigned i) { return &sim_world_find(c->w, names[i])->disk; }

static const struct fmt_ops *format(const struct crash *c, unsigned i) { return c->how[i].cluster_size ? &fmt_qcow2_ops : &fmt_raw_ops; }

__attribute__((format(printf, 2, 3))) static int wrong(struct crash *c, const char *fmt, ...)
{
    va_list ap;
    if (!c->why[0]) {
        va_start(ap, fmt);
        vsnprintf(c->why, sizeof c->why, fmt, ap);
        va_end(ap);
    }
    return -1;
}

/* ---- the chain ---- */

static int open_layer(struct co *co, struct crash *c, struct graph *g, unsigned i, bool read_only, struct graph_node **ret)
{
    struct byre_err err = { 0 };
    const struct graph_open_opts o = { .filename = names[i], .format = format(c, i)->name, .node_name = names[i], .backing_names = "layer",
                                       .read_only = read_only, .discard = true, .fmt.frontier_bytes = 16384 };
    int r = graph_open(co, g, &o, ret, &err);
    return r < 0 ? wrong(c, "%s does not open: %s", names[i], err.text) : 0;
}

static int read_disk(struct co *co, struct crash *c, struct graph_node *n, uint8_t *to)
{
    struct iovec slot;
    int r = graph_read(co, n, iov_one(&slot, to, c->size[3]), 0);
    return r < 0 ? wrong(c, "the disk cannot be read: %s", strerror(-r)) : 0;
}

/* Data and zeros at random places. */
static int fill_layer(struct co *co, struct crash *c, struct graph_node *n, unsigned i)
{
    static uint8_t buf[16 * SIM_SECTOR] __attribute__((aligned(4096)));
    uint64_t sectors = c->size[i] / SIM_SECTOR;
    int r = 0;
    for (unsigned k = 0; k < 7 && r == 0; k++) {
        uint64_t at = prng_below(&c->p, sectors), len = min_u64(1 + prng_below(&c->p, 16), sectors - at);
        struct iovec slot;
        for (uint64_t s = 0; s < len; s++)
            sim_sector_fill(buf + s * SIM_SECTOR, 10 * (i + 1) + k, at + s);
        r = prng_one_in(&c->p, 3) ? graph_zero(co, n, at * SIM_SECTOR, len * SIM_SECTOR, GRAPH_UNMAP)
                                  : graph_write(co, n, iov_one(&slot, buf, len * SIM_SECTOR), at * SIM_SECTOR, 0);
    }
    return r;
}

static int make(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    int r = sim_graph_new(c->w, co, &g, NULL);
    for (unsigned i = 0; i < FILES && r == 0; i++) {
        struct stor *s;
        struct graph_node *n;
        if (c->how[i].cluster_size) {
            r = sim_open(co, c->w, names[i], false, &s);
            if (r == 0) {
                r = fmt_qcow2_ops.create(co, s, &c->how[i], NULL);
                stor_close(co, s);
            }
        } else {
            r = sim_disk_set_len(disk(c, i), c->size[i]);
        }
        if (r == 0)
            r = open_layer(co, c, g, i, false, &n);
        if (r == 0) {
            r = fill_layer(co, c, n, i);
            if (r == 0 && i == 3)
                r = read_disk(co, c, n, c->content);
            int closed = graph_close(co, n);
            r = r ? r : closed;
        }
    }
    graph_free(g);
    return r;
}

/* ---- what is recorded ---- */

struct guest { struct crash *c; struct graph_node *n; struct co_group group; int result; };

static void guest_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    uint8_t *buf = aligned_alloc(4096, 4096);
    struct crash *c = q->c;
    for (unsigned k = 0; k < GUEST_WRITES && q->result == 0; k++) {
        uint64_t at, sectors = c->size[3] / SIM_SECTOR;
        struct iovec slot;
        do
            at = prng_below(&c->p, sectors);
        while (!c->guests[at]);
        bool zero = prng_one_in(&c->p, 2);
        uint64_t from = zero ? round_down(at, GROUP) : at, to = zero ? min_u64(from + GROUP, sectors) : at + 1;
        sim_sector_fill(buf, GUEST_GEN, at);
        q->result = zero ? graph_zero(co, q->n, from * SIM_SECTOR, (to - from) * SIM_SECTOR, 0)
                         : graph_write(co, q->n, iov_one(&slot, buf, SIM_SECTOR), at * SIM_SECTOR, 0);
        memset(c->last + from, zero ? 2 : 1, to - from);
        if (q->result == 0 && prng_one_in(&c->p, 3))
            q->result = graph_flush(co, q->n);
    }
    free(buf);
    co_group_leave(&q->group);
}

static int start_job(struct co *co, struct crash *c, struct jobs *js, struct graph_node *n, struct job **ret)
{
    struct byre_err err = { 0 };
    struct graph_node *top = graph_backing(n), *base = top;
    while (base && graph_backing(base))
        base = graph_backing(base);
    struct job_live_commit_opts lo = { .disk = n, .top = top, .workers = 2, .drop_source = c->what == DROP, .window = 16384,
                                       .job = { .id = "j", .keep_concluded = true } };
    struct job_stream_opts so = { .node = n, .disk = n, .base = c->what == STREAM_BASE ? base : NULL, .workers = 2, .job = lo.job };
    int r = c->what == COMMIT || c->what == DROP ? job_live_commit_start(co, js, &lo, ret, &err) : job_stream_start(co, js, &so, ret, &err);
    return r < 0 ? wrong(c, "the job does not begin: %s", err.text) : 0;
}

static int wait_job(struct co *co, struct crash *c, struct job *job)
{
    while (job->status != JOB_CONCLUDED)
        (void)co_sleep(co, 1000);
    return job->result < 0 ? wrong(c, "the job fails: %s", job->err.text) : 0;
}

static bool is_short(const struct crash *c, struct graph_node *n)
{
    const struct graph_node *below = graph_backing(n);
    if (c->what == OFFLINE_COMMIT)
        return false;
    return c->what == STREAM ? !below : below && !graph_backing(below);
}

/* commit and rebase of a chain that nobody uses. */
static int run_offline(struct co *co, struct crash *c, struct graph *g, struct graph_node *n)
{
    struct byre_err err = { 0 };
    struct commit_job cj = { .top = n, .how.workers = 2 };
    struct rebase_job rj = { .top = n, .to = { "base", format(c, 0)->name, 0 }, .how.workers = 2 };
    const struct graph_open_opts go = { .filename = "base", .format = format(c, 0)->name, .read_only = true, .share = true };
    if (c->what == OFFLINE_COMMIT) {
        int r = commit_run(co, &cj, NULL, NULL, &err);
        return r < 0 ? wrong(c, "the commit fails: %s", err.text) : 0;
    }
    int r = graph_open(co, g, &go, &rj.backing, &err);
    if (r == 0) {
        r = rebase_run(co, &rj, NULL, &err);
        (void)!graph_close(co, rj.backing);
    }
    return r < 0 ? wrong(c, "the rebase fails: %s", err.text) : 0;
}

static int run_job(struct co *co, struct crash *c, struct graph_node *n, bool guest)
{
    struct jobs js;
    struct job *job;
    struct guest q = { .c = c, .n = n };
    jobs_init(&js, co_loop(co));
    int r = start_job(co, c, &js, n, &job);
    if (r == 0 && guest) {
        co_group_enter(&q.group);
        r = rt_spawn_on(rt_loop_at(c->w->rt, 1), guest_co, &q);
        ASSERT(r == 0);
    }
    if (r == 0)
        r = wait_job(co, c, job);
    co_group_wait(co, &q.group);
    jobs_stop(co, &js);
    if (r == 0 && q.result)
        r = wrong(c, "a guest's write failed: %s", strerror(-q.result));
    return r == 0 && !is_short(c, n) ? wrong(c, "the job has ended, and the chain is as long as before") : r;
}

/* In the running disk a guest finds what it has done last. */
static int guest_finds(struct co *co, struct crash *c, struct graph_node *n)
{
    static const uint8_t zeros[SIM_SECTOR];
    uint8_t written[SIM_SECTOR];
    int r = read_disk(co, c, n, c->got);
    for (uint64_t s = 0; s < c->size[3] / SIM_SECTOR && r == 0; s++) {
        const uint8_t *want[] = { c->content + s * SIM_SECTOR, written, zeros };
        sim_sector_fill(written, GUEST_GEN, s);
        if (memcmp(c->got + s * SIM_SECTOR, want[c->last[s]], SIM_SECTOR))
            r = wrong(c, "sector %" PRIu64 " of the disk in use is not what the guest left there", s);
    }
    return r;
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->w, co, &g, NULL);
    if (r == 0)
        r = open_layer(co, c, g, 3, false, &n);
    if (r == 0) {
        memset(c->last, 0, sizeof c->last);
        r = c->what < OFFLINE_COMMIT ? run_job(co, c, n, true) : run_offline(co, c, g, n);
        if (r == 0)
            r = guest_finds(co, c, n);
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    graph_free(g);
    return r;
}

/* ---- a state ---- */

static int same(struct crash *c, const uint8_t *got, bool after)
{
    uint8_t written[SIM_SECTOR];
    for (uint64_t s = 0; s < c->size[3] / SIM_SECTOR; s++) {
        const uint8_t *have = got + s * SIM_SECTOR;
        sim_sector_fill(written, GUEST_GEN, s);
        static const uint8_t zeros[SIM_SECTOR];
        bool old = !memcmp(have, c->content + s * SIM_SECTOR, SIM_SECTOR);
        bool new = c->guests[s] && (!memcmp(have, written, SIM_SECTOR) || !memcmp(have, zeros, SIM_SECTOR));
        if (!old && !new)
            return wrong(c, "sector %" PRIu64 " of the disk holds something else%s", s, after ? " when the job has been done again" : "");
    }
    return 0;
}

static int check_layer(struct co *co, struct crash *c, unsigned i)
{
    struct byre_err err = { 0 };
    struct fmt_check_result res = { 0 };
    struct fmt_image *im;
    struct stor *s;
    int r = c->how[i].cluster_size ? sim_open(co, c->w, names[i], true, &s) : 1;
    if (r)
        return r < 0 ? r : 0;
    r = fmt_qcow2_ops.open(co, s, &(struct fmt_open_opts){ .check_mode = true, .read_only = true }, &im, &err);
    if (r < 0) {
        stor_close(co, s);
        return wrong(c, "%s does not open to be checked: %s", names[i], err.text);
    }
    r = im->ops->check(co, im, &(struct fmt_check_opts){ 0 }, &res, &err);
    int closed = im->ops->close(co, im);
    (void)closed;
    bool marked = c->how[i].lazy_refcounts;      /* counts may be late */
    if (r < 0 || (res.corruptions && !marked) || res.check_errors)
        return wrong(c, "%s: %" PRIu64 " corruptions, %" PRIu64 " errors %s", names[i], res.corruptions, res.check_errors, err.text);
    return 0;
}

static int judge(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->w, co, &g, NULL);
    for (unsigned i = 0; i < FILES && r == 0; i++)
        r = check_layer(co, c, i);
    if (r == 0)
        r = open_layer(co, c, g, 3, true, &n);
    if (r == 0) {
        r = read_disk(co, c, n, c->got);
        if (r == 0)
            r = same(c, c->got, false);
        c->named_short += is_short(c, n);
        (void)!graph_close(co, n);
    }
    graph_free(g);
    return r;
}

/* The job again, from here to its end. */
static int again(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->w, co, &g, NULL);
    if (r == 0)
        r = open_layer(co, c, g, 3, false, &n);
    if (r == 0) {
        r = is_short(c, n) ? 0 : c->what < OFFLINE_COMMIT ? run_job(co, c, n, false) : run_offline(co, c, g, n);
        if (r == 0)
            r = read_disk(co, c, n, c->got);
        if (r == 0)
            r = same(c, c->got, true);
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    graph_free(g);
    return r;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct crash *c = arg;
    sim_mark m[FILES];
    for (unsigned i = 0; i < FILES; i++)
        m[i] = sim_disk_mark(disk(c, i));
    c->w->direct = true;
    int r = sim_run(c->w, judge, c, 0);
    if (r == 0 && c->states++ % AGAIN_ONE_IN == 0)
        r = sim_run(c->w, again, c, 0);
    for (unsigned i = 0; i < FILES; i++)
        sim_disk_undo(disk(c, i), m[i]);
    if (r) {
        char text[400];
        sim_state_text(x, text, sizeof text);
        fprintf(stderr, "%s: %s\n", text, c->why);
        return 1;
    }
    return 0;
}

/* ---- a seed ---- */

/* Sizes, formats and clusters. */
static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 512, 4096, 4096, 16384 };
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < FILES; i++) {
        c->size[i] = (40 + prng_below(&c->p, 100)) * SIM_SECTOR;
        struct fmt_create_opts *o = &c->how[i];
        *o = (struct fmt_create_opts){ .size = c->size[i], .version = 3, .refcount_bits = 16, .cluster_size = clusters[prng_below(&c->p, 4)] };
        o->extended_l2 = o->cluster_size == 16384;
        o->lazy_refcounts = prng_one_in(&c->p, 4);
        if (prng_one_in(&c->p, 5) && !o->extended_l2) {
            o->version = 2;
            o->lazy_refcounts = false;
        }
        if (i) {
            o->backing_file = (char *)(uintptr_t)names[i - 1];
            o->backing_fmt = (char *)(uintptr_t)format(c, i - 1)->name;
        } else if (prng_one_in(&c->p, 2)) {
            o->cluster_size = 0;
        }
    }
    for (uint64_t s = 0; s < SECTORS_MAX; s++)
        c->guests[s] = s % GROUP ? c->guests[s - 1] : !s || prng_one_in(&c->p, 3);
}

static void take_files(struct crash *c)
{
    for (unsigned i = 0; i < FILES; i++) {
        c->first_len[i] = disk(c, i)->len;
        c->first[i] = malloc(c->first_len[i]);
        memcpy(c->first[i], disk(c, i)->data, c->first_len[i]);
    }
}

static void put_files(struct crash *c)
{
    for (unsigned i = 0; i < FILES; i++) {
        sim_disk_set_hashing(disk(c, i), false);
        sim_disk_commit(disk(c, i));
        sim_disk_reset(disk(c, i));
        int r = sim_disk_write(disk(c, i), 0, c->first[i], c->first_len[i]);
        ASSERT(r == 0);
    }
}

static int explore(struct crash *c, uint64_t seed, struct sim_trace *trace)
{
    static const uint32_t nothing[1];
    struct sim_model model;
    sim_model_init(&model, 1, NULL);
    sim_model_start(&model, SIM_SECTOR, nothing);
    struct sim_explorer x = { .w = c->w, .t = trace, .m = &model, .seed = seed, .visit = visit, .arg = c };
    int r = sim_explore(&x);
    sim_model_fini(&model);
    return r;
}

static int begin(struct crash *c, unsigned what, uint64_t seed)
{
    *c = (struct crash){ .what = what, .content = calloc(SECTORS_MAX, SIM_SECTOR), .got = calloc(SECTORS_MAX, SIM_SECTOR) };
    plan(c, seed);
    if (sim_world_new(seed, 2, &c->w))
        return 2;
    for (unsigned i = 0; i < FILES; i++)
        sim_world_file(c->w, names[i])->traits.regular = true;
    c->w->direct = true;
    int r = sim_run(c->w, make, c, 0);
    take_files(c);
    return r ? 2 : 0;
}

static void end(struct crash *c)
{
    sim_world_free(c->w);
    for (unsigned i = 0; i < FILES; i++)
        free(c->first[i]);
    free(c->content);
    free(c->got);
}

/* ---- faults ---- */

static const struct fault { unsigned kinds; int what; bool forever; } faults[] = {
    { SIM_C_READ, -EIO, false }, { SIM_C_WRITE, -EIO, false }, { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE, -ENOSPC, true }, { SIM_C_FLUSH, -EIO, false },
    { SIM_C_WRITE | SIM_C_TRUNCATE, -EIO, true }, { SIM_C_ZERO | SIM_C_DISCARD | SIM_C_TRUNCATE, -EIO, false }, { SIM_C_OPEN | SIM_C_LOCK, -EACCES, false },
    { SIM_C_LENGTH | SIM_C_EXTENT, -EIO, false },
};

/* *ret_fired false: there are no so many calls. */
static int one_fault(struct crash *c, const struct fault *f, uint64_t seed, uint64_t nth, bool *ret_fired)
{
    put_files(c);
    sim_world_restart(c->w, seed);
    c->w->direct = false;
    c->w->faults = (struct sim_faults){ .kinds = f->kinds, .nth = nth, .what = f->what, .forever = f->forever };
    int r = sim_run(c->w, record, c, 0);
    bool fired = c->w->faults.fired;
    c->w->faults = (struct sim_faults){ 0 };
    c->w->direct = true;
    if (r == -EDEADLK || r == -ETIME || (r < 0 && !fired))
        return wrong(c, "it hangs, or fails without a fault (%d)", r);
    c->why[0] = 0;
    r = sim_run(c->w, judge, c, 0);
    if (r == 0)
        r = sim_run(c->w, again, c, 0);
    c->states++;
    *ret_fired = fired;
    return r;
}

static int fault_seed(unsigned what, uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    int r = begin(&c, what, seed);
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0] && r == 0; i++) {
        bool fired = true;
        for (uint64_t nth = 1; fired && r == 0; nth++) {
            r = one_fault(&c, &faults[i], seed, nth, &fired) ? 1 : 0;
            if (r)
                fprintf(stderr, "fault %u, call %" PRIu64 ": %s\n", i, nth, c.why);
        }
    }
    *ret_states += c.states;
    end(&c);
    return r;
}

/* ---- power cuts ---- */

static bool only_runs;

static int one_seed(unsigned what, uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    struct sim_trace trace;
    int r = begin(&c, what, seed);
    sim_trace_init(&trace);
    sim_world_restart(c.w, seed);
    c.w->direct = false;
    c.w->trace = &trace;
    if (r == 0)
        r = sim_run(c.w, record, &c, 0);
    c.w->trace = NULL;
    c.w->direct = true;
    if (r == 0)
        r = sim_run(c.w, judge, &c, 0);
    if (r) {
        fprintf(stderr, "what is recorded fails itself: %d, %s\n", r, c.why);
        return c.why[0] ? 1 : 2;
    }
    c.named_short = 0;
    put_files(&c);
    if (!only_runs)
        r = explore(&c, seed, &trace);
    *ret_states += only_runs ? 1 : c.states;
    if (r == 0 && !only_runs && what != OFFLINE_COMMIT && (c.named_short == 0 || c.named_short == c.states))
        r = 2;
    sim_trace_fini(&trace);
    end(&c);
    return r;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "commit", "stream", "stream-base", "drop", "offline-commit", "rebase" };
    bool faulty = argc > 1 && !strcmp(argv[1], "faults");
    only_runs = argc > 1 && !strcmp(argv[1], "runs");
    argc -= faulty || only_runs;
    argv += faulty || only_runs;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, last = argc > 3 ? strtoull(argv[3], NULL, 0) : first, states = 0;
    unsigned what = 0;
    while (what < 6 && (argc < 2 || strcmp(argv[1], words[what])))
        what++;
    if (what == 6) {
        fprintf(stderr, "usage: chain-crash [faults|runs] commit|drop|stream|stream-base|offline-commit|rebase [FIRST [LAST]]\n");
        return 2;
    }
    for (uint64_t seed = first; seed <= last; seed++) {
        int r = (faulty ? fault_seed : one_seed)(what, seed, &states);
        if (r) {
            fprintf(stderr, "seed %" PRIu64 "\n", seed);
            return r;
        }
    }
    printf("%" PRIu64 " states\n", states);
    return 0;
}
