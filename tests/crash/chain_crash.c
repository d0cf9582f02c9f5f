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
 *              With `runs` there are no power cuts: the guest finds what it wrote, and the trace's hash is told: the same for the same seed.
 *              active: the disk is committed into a layer below and goes on there. graph: a few jobs of all kinds, one after the other, some of
 *              them cancelled, on whatever is left of the chain.
 *              offline-commit and rebase: of the same chain, with nobody else there.
 * Usage        chain-crash [faults|runs] commit|drop|stream|stream-base|offline-commit|rebase|active|graph [FIRST [LAST]]: seeds. With BYRE_MUTANT=NAME, built with mutants, that one is alive in
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
#include "crash_files.h"
#include "job/commit.h"
#include "graph/runtime.h"
#include "job/live_commit.h"
#include "job/mirror.h"
#include "job/stream.h"
#include "meta/meta.h"
#include "sim/workload.h"

#define FILES CRASH_FILES
#define SECTORS_MAX 400u
#define GUEST_WRITES 16u
#define GROUP 8u                                 /* sectors that the guest has together */
#define GUEST_GEN 100u
#define AGAIN_ONE_IN 97u

static const char *const names[FILES] = { "base", "mid", "top", "disk" };
enum { COMMIT, STREAM, STREAM_BASE, DROP, OFFLINE_COMMIT, REBASE, ACTIVE, GRAPH, KINDS };
#define MOVES_MAX 8u

struct crash {
    struct crash_files f;
    struct prng p;
    unsigned what;
    uint64_t size[FILES];
    uint8_t *content, *got;                      /* the disk before the run, and as it is found */
    bool guests[SECTORS_MAX];                    /* the guest writes here */
    uint8_t last[SECTORS_MAX];                   /* what it did there last: nothing, a write, zeros */
    uint64_t states, named_short;
    struct { uint64_t stamp; unsigned file; } moves[MOVES_MAX];      /* the disk lies in this file from then on */
    unsigned move_count, home, jobs_done, cancelled, refused;        /* home: the file where it is to be looked for */
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct crash_mutant rows[] = {
        { "LIVE_COMMIT_UNFLUSHED", MUT_LIVE_COMMIT_UNFLUSHED }, { "FORGET_TOP_FIRST", MUT_FORGET_TOP_FIRST }, { "ABSENT_BLIND", MUT_ABSENT_BLIND }, { "BARRIER_FINAL", MUT_BARRIER(META_B_FINAL) },
        { "MIRROR_UNFLUSHED", MUT_MIRROR_UNFLUSHED }, { "COMMIT_EMPTY_EARLY", MUT_COMMIT_EMPTY_EARLY }, { "REBASE_ZERO_BELOW", MUT_REBASE_ZERO_BELOW },
    };
    return crash_mutant_alive(id, rows, sizeof rows / sizeof rows[0]);
}
#endif

/* ---- the chain ---- */

static int read_disk(struct co *co, struct crash *c, struct graph_node *n, uint8_t *to) { return crash_read(co, &c->f, n, to, c->size[3]); }

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

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    struct crash *c = arg;
    int r = fill_layer(co, c, n, i);
    return r == 0 && i == 3 ? read_disk(co, c, n, c->content) : r;
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
    return r < 0 ? crash_wrong(&c->f, "the job does not begin: %s", err.text) : 0;
}

static int wait_job(struct co *co, struct crash *c, struct job *job)
{
    while (job->status != JOB_CONCLUDED)
        (void)co_sleep(co, 1000);
    return job->result < 0 ? crash_wrong(&c->f, "the job fails: %s", job->err.text) : 0;
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
    struct rebase_job rj = { .top = n, .to = { "base", crash_format(&c->f, 0)->name, 0 }, .how.workers = 2 };
    const struct graph_open_opts go = { .filename = "base", .format = crash_format(&c->f, 0)->name, .read_only = true, .share = true };
    if (c->what == OFFLINE_COMMIT) {
        int r = commit_run(co, &cj, NULL, NULL, &err);
        return r < 0 ? crash_wrong(&c->f, "the commit fails: %s", err.text) : 0;
    }
    int r = graph_open(co, g, &go, &rj.backing, &err);
    if (r == 0) {
        r = rebase_run(co, &rj, NULL, &err);
        (void)!graph_close(co, rj.backing);
    }
    return r < 0 ? crash_wrong(&c->f, "the rebase fails: %s", err.text) : 0;
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
        r = rt_spawn_on(rt_loop_at(c->f.w->rt, 1), guest_co, &q);
        ASSERT(r == 0);
    }
    if (r == 0)
        r = wait_job(co, c, job);
    co_group_wait(co, &q.group);
    jobs_stop(co, &js);
    if (r == 0 && q.result)
        r = crash_wrong(&c->f, "a guest's write failed: %s", strerror(-q.result));
    return r == 0 && !is_short(c, n) ? crash_wrong(&c->f, "the job has ended, and the chain is as long as before") : r;
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
            r = crash_wrong(&c->f, "sector %" PRIu64 " of the disk in use is not what the guest left there", s);
    }
    return r;
}

/* ---- jobs one after the other, and a disk that moves ---- */

struct live { struct crash *c; struct graph_node *disk; struct jobs js; struct prng p; };

static struct graph_node *now_at(const struct live *v) { return graph_attached(v->disk); }

static unsigned file_of(const struct graph_node *n)
{
    unsigned i = 0;
    while (strcmp(names[i], graph_filename(n)))
        i++;
    return i;
}

/* The event: from here on the disk is where its users are. */
static void on_status(void *arg, const struct job *job)
{
    struct live *v = arg;
    struct crash *c = v->c;
    if (job->status != JOB_CONCLUDED || job->result < 0 || !job_is_mirror(job) || c->move_count == MOVES_MAX)
        return;
    c->home = file_of(now_at(v));
    c->moves[c->move_count].stamp = sim_stamp(c->f.w);
    c->moves[c->move_count++].file = c->home;
}

static struct graph_node *layer_at(struct graph_node *n, unsigned depth)
{
    while (depth--)
        n = graph_backing(n);
    return n;
}

static int start_some(struct co *co, struct live *v, unsigned depth, struct job **ret, struct byre_err *err)
{
    struct graph_node *n = now_at(v);
    unsigned kind = v->c->what == ACTIVE || depth == 1 ? (unsigned)prng_below(&v->p, v->c->what == ACTIVE ? 1 : 2) : (unsigned)prng_below(&v->p, 4);
    unsigned low = 1 + (unsigned)prng_below(&v->p, depth);
    const struct job_opts jo = { .id = "j", .keep_concluded = true };
    struct job_mirror_opts m = { .source = n, .target = layer_at(n, low), .active_commit = true, .granularity = 4096, .buf_bytes = 1 << 20, .blocking = prng_one_in(&v->p, 2), .job = jo };
    struct job_stream_opts st = { .node = n, .disk = n, .base = low < depth ? layer_at(n, low + 1) : NULL, .workers = 2, .job = jo };
    struct job_live_commit_opts lc = { .disk = n, .top = layer_at(n, 1), .base = layer_at(n, 2 + (unsigned)prng_below(&v->p, depth < 2 ? 1 : depth - 1)), .workers = 2,
                                       .drop_source = kind == 3, .window = 16384, .job = jo };
    return kind == 0 ? job_mirror_start(co, &v->js, &m, ret, err) : kind == 1 ? job_stream_start(co, &v->js, &st, ret, err) : job_live_commit_start(co, &v->js, &lc, ret, err);
}

/* To its end, or to where it is cancelled. */
static int see_through(struct co *co, struct live *v, struct job *job, bool cancel)
{
    struct crash *c = v->c;
    uint64_t wait = cancel ? prng_below(&v->p, 40000000) : UINT64_MAX;
    bool asked = false;
    for (uint64_t t0 = rt_now(co_loop(co)); job->status != JOB_CONCLUDED; (void)co_sleep(co, 100000)) {
        if (cancel && !asked && rt_now(co_loop(co)) - t0 >= wait && job->status != JOB_PENDING && job->status != JOB_WAITING && job->status != JOB_ABORTING)
            asked = job_do(job, JOB_CANCEL, NULL) == 0;
        else if (!cancel && !asked && job->status == JOB_READY)
            asked = job_do(job, JOB_COMPLETE, NULL) == 0;
        else if (cancel && !asked && job->status == JOB_READY && prng_one_in(&v->p, 8))
            (void)!job_mirror_set_blocking(job, prng_one_in(&v->p, 2), NULL);
    }
    int r = job->result;
    c->cancelled += r == -ECANCELED;
    c->jobs_done += r == 0;
    struct byre_err why = job->err;
    (void)!job_do(job, JOB_DISMISS, NULL);
    return r && !(cancel && r == -ECANCELED) ? crash_wrong(&c->f, "a job fails: %s", why.text) : 0;
}

/* Layers that a cancelled drop has left are of no use but to it. */
static int refused(struct crash *c)
{
    c->refused++;
    return 0;
}

static int some_jobs(struct co *co, struct live *v)
{
    unsigned count = v->c->what == ACTIVE ? 1 : 2 + (unsigned)prng_below(&v->p, 4);
    int r = 0;
    for (unsigned k = 0; k < count && r == 0; k++) {
        struct byre_err err = { 0 };
        struct job *job;
        unsigned depth = 0;
        for (struct graph_node *n = graph_backing(now_at(v)); n; n = graph_backing(n))
            depth++;
        if (depth == 0)
            break;
        bool cancel = v->c->what == GRAPH && prng_one_in(&v->p, 3);
        r = start_some(co, v, depth, &job, &err);
        if (r == 0)
            r = see_through(co, v, job, cancel);
        else if (v->c->cancelled && !v->c->f.w->faults.fired)
            r = refused(v->c);
        else
            r = crash_wrong(&v->c->f, "a job does not begin: %s", err.text);
    }
    return r;
}

static int run_live(struct co *co, struct crash *c, struct graph_node *n, bool guest)
{
    const struct graph_attach_opts ao = { "guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    struct live v = { .c = c };
    struct byre_err err = { 0 };
    int r = graph_attach(n, &ao, &v.disk, &err);
    if (r < 0)
        return crash_wrong(&c->f, "nobody can use the disk: %s", err.text);
    struct guest q = { .c = c, .n = v.disk };
    prng_init(&v.p, prng_below(&c->p, UINT64_C(1) << 40));
    jobs_init(&v.js, co_loop(co));
    v.js.status_changed = on_status;
    v.js.arg = &v;
    if (guest) {
        co_group_enter(&q.group);
        r = rt_spawn_on(rt_loop_at(c->f.w->rt, 1), guest_co, &q);
        ASSERT(r == 0);
    }
    r = some_jobs(co, &v);
    co_group_wait(co, &q.group);
    jobs_stop(co, &v.js);
    if (r == 0 && q.result)
        r = crash_wrong(&c->f, "a guest's write failed: %s", strerror(-q.result));
    if (r == 0 && guest)
        r = guest_finds(co, c, v.disk);
    int closed = graph_detach(co, v.disk);
    return r ? r : closed;
}

/* ---- what is recorded, and done again ---- */

static int run_any(struct co *co, struct crash *c, struct graph *g, struct graph_node *n, bool guest)
{
    return c->what >= ACTIVE ? run_live(co, c, n, guest) : c->what < OFFLINE_COMMIT ? run_job(co, c, n, guest) : run_offline(co, c, g, n);
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    c->home = 3;
    c->move_count = 0;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &c->f, g, 3, false, &n);
    if (r == 0) {
        memset(c->last, 0, sizeof c->last);
        r = run_any(co, c, g, n, true);
        if (r == 0 && c->what < ACTIVE)
            r = guest_finds(co, c, n);
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    crash_graph_free(co, g);
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
            return crash_wrong(&c->f, "sector %" PRIu64 " of the disk holds something else%s", s, after ? " when the job has been done again" : "");
    }
    return 0;
}

static int judge(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    for (unsigned i = 0; i < FILES && r == 0; i++)
        r = crash_check(co, &c->f, i);
    if (r == 0)
        r = crash_open(co, &c->f, g, c->home, true, &n);
    if (r == 0) {
        r = read_disk(co, c, n, c->got);
        if (r == 0)
            r = same(c, c->got, false);
        c->named_short += is_short(c, n);
        (void)!graph_close(co, n);
    }
    crash_graph_free(co, g);
    return r;
}

/* The job again, from here to its end. */
static int again(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &c->f, g, c->home, false, &n);
    if (r == 0) {
        bool over = c->what >= ACTIVE ? !graph_backing(n) : is_short(c, n);
        r = over ? 0 : run_any(co, c, g, n, false);
        if (r == 0 && c->what < ACTIVE) {
            r = read_disk(co, c, n, c->got);
            if (r == 0)
                r = same(c, c->got, true);
        }
        int closed = graph_close(co, n);
        r = r ? r : closed;
    }
    crash_graph_free(co, g);
    return r;
}

static int once_more(struct crash *c)
{
    unsigned home = c->home, moves = c->move_count;
    int r = sim_run(c->f.w, again, c, 0);
    if (r == 0 && c->what >= ACTIVE)
        r = sim_run(c->f.w, judge, c, 0);          /* wherever it is now */
    c->home = home;
    c->move_count = moves;
    return r;
}

static int look(void *arg, const struct sim_explorer *x)
{
    struct crash *c = arg;
    c->home = 3;
    for (unsigned i = 0; i < c->move_count && x->cut >= c->moves[i].stamp; i++)
        c->home = c->moves[i].file;
    int r = sim_run(c->f.w, judge, c, 0);
    return r == 0 && c->states++ % AGAIN_ONE_IN == 0 ? once_more(c) : r;
}

/* ---- a seed ---- */

/* Sizes, formats and clusters. */
static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 512, 4096, 4096, 16384 };
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < FILES; i++) {
        c->size[i] = (40 + prng_below(&c->p, 100)) * SIM_SECTOR;
        struct fmt_create_opts *o = &c->f.how[i];
        *o = (struct fmt_create_opts){ .size = c->size[i], .version = 3, .refcount_bits = 16, .cluster_size = clusters[prng_below(&c->p, 4)] };
        o->extended_l2 = o->cluster_size == 16384;
        o->lazy_refcounts = prng_one_in(&c->p, 4);
        if (prng_one_in(&c->p, 5) && !o->extended_l2) {
            o->version = 2;
            o->lazy_refcounts = false;
        }
        if (i) {
            o->backing_file = (char *)(uintptr_t)names[i - 1];
            o->backing_fmt = (char *)(uintptr_t)crash_format(&c->f, i - 1)->name;
        } else if (prng_one_in(&c->p, 2)) {
            o->cluster_size = 0;
        }
    }
    for (uint64_t s = 0; s < SECTORS_MAX; s++)
        c->guests[s] = s % GROUP ? c->guests[s - 1] : !s || prng_one_in(&c->p, 3);
}

static int begin(struct crash *c, unsigned what, uint64_t seed)
{
    *c = (struct crash){ .what = what, .content = calloc(SECTORS_MAX, SIM_SECTOR), .got = calloc(SECTORS_MAX, SIM_SECTOR) };
    c->f.names = names;
    c->f.filled = FILES;
    plan(c, seed);
    return crash_files_new(&c->f, seed, fill, c);
}

static void end(struct crash *c)
{
    crash_files_free(&c->f);
    free(c->content);
    free(c->got);
}

/* ---- faults ---- */

static const struct crash_fault faults[] = {
    { SIM_C_READ, -EIO, false }, { SIM_C_WRITE, -EIO, false }, { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE, -ENOSPC, true }, { SIM_C_FLUSH, -EIO, false },
    { SIM_C_WRITE | SIM_C_TRUNCATE, -EIO, true }, { SIM_C_ZERO | SIM_C_DISCARD | SIM_C_TRUNCATE, -EIO, false }, { SIM_C_OPEN | SIM_C_LOCK, -EACCES, false },
    { SIM_C_LENGTH | SIM_C_EXTENT, -EIO, false },
};

static unsigned kind;                            /* of KINDS */
static int then(void *arg) { return once_more(arg); }

static int fault_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    int r = begin(&c, kind, seed);
    if (r == 0)
        r = crash_every_fault(&(struct crash_test){ &c.f, record, judge, &c }, faults, sizeof faults / sizeof faults[0], seed, then, ret_states);
    end(&c);
    return r;
}

/* ---- power cuts ---- */

static bool only_runs;

static void tell(const struct crash *c, const struct sim_trace *t, uint64_t seed)
{
    struct hash128 h = sim_trace_hash(t);
    printf("seed %" PRIu64 ": trace %016" PRIx64 "%016" PRIx64 ", %u jobs done, %u cancelled, %u refused, the disk is %s\n", seed, h.hi, h.lo, c->jobs_done, c->cancelled,
           c->refused, names[c->home]);
}

static int one_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    struct sim_trace trace;
    sim_trace_init(&trace);
    int r = begin(&c, kind, seed);
    if (r == 0)
        r = crash_begin(&(struct crash_test){ &c.f, record, judge, &c }, &trace, seed);
    c.named_short = 0;
    if (r == 0 && !only_runs) {
        r = crash_explore(&c.f, &trace, seed, &(struct crash_visit){ &c.f, look, &c });
        if (r == 0 && kind < ACTIVE && kind != OFFLINE_COMMIT && (c.named_short == 0 || c.named_short == c.states))
            r = 2;
    } else if (r == 0 && kind >= ACTIVE) {
        tell(&c, &trace, seed);
    }
    *ret_states += only_runs ? 1 : c.states;
    sim_trace_fini(&trace);
    end(&c);
    return r;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "commit", "stream", "stream-base", "drop", "offline-commit", "rebase", "active", "graph" };
    bool faulty = argc > 1 && !strcmp(argv[1], "faults");
    only_runs = argc > 1 && !strcmp(argv[1], "runs");
    argc -= faulty || only_runs;
    argv += faulty || only_runs;
    while (kind < KINDS && (argc < 2 || strcmp(argv[1], words[kind])))
        kind++;
    if (kind == KINDS) {
        fprintf(stderr, "usage: chain-crash [faults|runs] commit|drop|stream|stream-base|offline-commit|rebase|active|graph [FIRST [LAST]]\n");
        return 2;
    }
    return crash_seeds(argc - 1, argv + 1, faulty ? fault_seed : one_seed);
}
