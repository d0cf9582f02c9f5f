/* SPDX-License-Identifier: MIT
 *
 * mirror_test.c: mirror and active commit over toy disks, with guests on two loops.
 *
 * Purpose      Guests that are attached to a disk go over to the target without noticing; what they were told stands. Events come after the
 *              flush of the target; cancelling does not wait for it; errors do what the policy says; a guest that never stops does not keep
 *              a job with a deadline from its end.
 * Owns         Nothing.
 * Invariants   T1  Sector s is changed by one guest only, who knows what he has last written there.
 * Concurrency  Jobs on loop 0, guests on both; meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/runtime.h"
#include "job/mirror.h"

#define CLUSTER 4096u
#define CLUSTERS 256u
#define SIZE ((uint64_t)CLUSTERS * CLUSTER)
#define SECTORS ((uint32_t)(SIZE / SECTOR))
#define GUESTS 6u
#define UNKNOWN UINT32_MAX
#define SEC UINT64_C(1000000000)

struct target { struct toy *t; struct graph_node *n; struct graph_node *_Atomic stalls_with; _Atomic int delay_ns, fail, fail_flush; _Atomic uint64_t rate, next_ns; _Atomic bool stalled, stalls_behind_flush, unflushed; _Atomic unsigned writes, standing; };
struct world {
    struct graph *g;
    struct toyfmt *src;
    struct graph_node *from, *disk;       /* disk: the attachment that guests use */
    struct target to;
    struct jobs js;
    unsigned events[JOB_STATUS_COUNT];
    bool early;                           /* an event came before the flush */
    bool check_flush;
    char actions[200];
    bool tries;                           /* a writer comes to the target as soon as the job aborts: how that was refused */
    int refused;
    _Atomic bool stop;
    _Atomic unsigned running;
    _Atomic uint64_t bytes;
    _Atomic uint64_t longest_ns;
    _Atomic uint32_t gen[SECTORS];
};

static int target_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct target *to = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_ZERO && op != TOY_FLUSH)
        return 0;
    atomic_fetch_add(&to->standing, 1);
    while (atomic_load(&to->stalled) || (op == TOY_FLUSH && atomic_load(&to->stalls_with) && graph_is_gated(atomic_load(&to->stalls_with))))
        (void)co_sleep(co, 1000000);
    atomic_fetch_sub(&to->standing, 1);
    if (op == TOY_FLUSH) {
        int r = atomic_load(&to->fail_flush);
        if (!r)
            atomic_store(&to->unflushed, false);
        if (atomic_load(&to->stalls_behind_flush))
            atomic_store(&to->stalled, true);
        return r;
    }
    if (atomic_load(&to->delay_ns))
        (void)co_sleep(co, (uint64_t)atomic_load(&to->delay_ns));
    if (atomic_load(&to->rate)) {         /* bytes per second, one after the other */
        uint64_t now = rt_now(co_loop(co)), next = atomic_load(&to->next_ns), at, cost = len * SEC / atomic_load(&to->rate);
        do
            at = (next > now ? next : now) + cost;
        while (!atomic_compare_exchange_weak(&to->next_ns, &next, at));
        (void)co_sleep(co, at - now);
    }
    atomic_store(&to->unflushed, true);
    atomic_fetch_add(&to->writes, 1);
    return atomic_load(&to->fail);
}

static void on_status(void *arg, const struct job *job)
{
    struct world *w = arg;
    w->events[job->status]++;
    bool good = job->status == JOB_READY || (job->status == JOB_CONCLUDED && job->result == 0);
    if (good && w->check_flush && atomic_load(&w->to.unflushed))
        w->early = true;
    const struct graph_attach_opts o = { "intruder", STOR_PERM_WRITE, STOR_PERM_ALL };
    struct graph_node *in;
    if (job->status == JOB_ABORTING && w->tries)
        w->refused = graph_attach(w->to.n, &o, &in, NULL);
}

static void on_io_error(void *arg, const struct job *job, bool read, const char *action)
{
    struct world *w = arg;
    size_t n = strlen(w->actions);
    if (n < sizeof w->actions - 20)
        snprintf(w->actions + n, sizeof w->actions - n, "%s-%s ", read ? "read" : "write", action);
}

static void attach(struct world *w, struct graph_node *n)
{
    struct byre_err err = { 0 };
    struct graph_attach_opts o = { "guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    if (!CHECK_EQ(graph_attach(n, &o, &w->disk, &err), 0))
        fprintf(stderr, "%s\n", err.text);
}

static struct world *world_open(struct co *co)
{
    struct world *w = calloc(1, sizeof *w);
    w->g = toy_graph(co);
    w->src = toyfmt_new(co, SIZE, CLUSTER);
    w->from = toy_node(w->g, &w->src->im, NULL);
    for (uint32_t i = 0; i < CLUSTERS; i += 2)
        toyfmt_set(w->src, i, FMT_DATA, false, (uint8_t)(i + 1));
    w->to.n = toy_raw_node(co, w->g, SIZE, &w->to.t);
    memset(w->to.t->bytes, 0xaa, SIZE);
    w->to.t->hook = target_hook;
    w->to.t->hook_arg = &w->to;
    for (uint32_t s = 0; s < SECTORS; s++)
        w->gen[s] = UNKNOWN;
    jobs_init(&w->js, co_loop(co));
    w->js.status_changed = on_status;
    w->js.io_error = on_io_error;
    w->js.arg = w;
    attach(w, w->from);
    return w;
}

static void world_close(struct co *co, struct world *w)
{
    atomic_store(&w->to.stalls_behind_flush, false);
    atomic_store(&w->to.stalled, false);
    jobs_stop(co, &w->js);
    w->to.t->hook = NULL;
    (void)graph_detach(co, w->disk);
    (void)graph_close(co, w->to.n);
    (void)graph_close(co, w->from);
    graph_free(w->g);
    free(w);
}

static struct job *start(struct co *co, struct world *w, struct job_mirror_opts o)
{
    struct byre_err err = { 0 };
    struct job *job = NULL;
    o.source = w->from;
    o.target = w->to.n;
    o.job.id = "m";
    o.job.keep_concluded = true;
    if (!CHECK_EQ(job_mirror_start(co, &w->js, &o, &job, &err), 0))
        fprintf(stderr, "%s\n", err.text);
    return job;
}

static bool reaches(struct co *co, const struct job *job, enum job_status s, uint64_t ns)
{
    for (uint64_t end = rt_now(co_loop(co)) + ns; job->status != s && rt_now(co_loop(co)) < end; )
        (void)co_sleep(co, 500000);
    if (job->status != s)
        fprintf(stderr, "%s, not %s: %s\n", job_status_name(job->status), job_status_name(s), job->err.text);
    return job->status == s;
}

static void do_ok(struct job *job, enum job_verb v)
{
    struct byre_err err = { 0 };
    if (!CHECK_EQ(job_do(job, v, &err), 0))
        fprintf(stderr, "%s\n", err.text);
}

/* ---- guests ---- */
enum manner { ALL_KINDS, WRITES, ONE_PLACE };
struct guest { struct world *w; unsigned id; uint64_t pause_ns; enum manner manner; };

static void fill_sector(uint8_t *buf, uint32_t sector, uint32_t gen)
{
    uint64_t v = gen ? (uint64_t)(sector + 1) << 32 | gen : 0;
    for (unsigned i = 0; i < SECTOR; i += 8)
        memcpy(buf + i, &v, 8);
}

static void guest_step(struct co *co, struct guest *gu, struct prng *rng)
{
    struct world *w = gu->w;
    uint32_t stretch = SECTORS / GUESTS, first = gu->id * stretch + (gu->manner == ONE_PLACE ? 0 : (uint32_t)prng_below(rng, stretch - 8)), n = gu->manner == ONE_PLACE ? 2 : 8;
    uint8_t buf[8 * SECTOR];
    uint32_t gen = 1 + (uint32_t)prng_below(rng, 1u << 30);
    unsigned what = gu->manner != ALL_KINDS ? 9 : (unsigned)prng_below(rng, 20);
    uint64_t t0 = rt_now(co_loop(co));
    for (uint32_t i = 0; i < n; i++) {
        fill_sector(buf + i * SECTOR, first + i, gen);
        w->gen[first + i] = UNKNOWN;
    }
    int r;
    if (what == 0)
        r = graph_zero(co, w->disk, (uint64_t)first * SECTOR, n * SECTOR, GRAPH_UNMAP);
    else if (what == 1)
        r = graph_discard(co, w->disk, (uint64_t)first * SECTOR, n * SECTOR);
    else
        r = t_write(co, w->disk, buf, n * SECTOR, (uint64_t)first * SECTOR, 0);
    CHECK(r == 0 || r == -ENOSPC);
    for (uint32_t i = 0; i < n && !r && what != 1; i++)
        w->gen[first + i] = what ? gen : 0;
    uint64_t took = rt_now(co_loop(co)) - t0, longest = atomic_load(&w->longest_ns);
    while (took > longest && !atomic_compare_exchange_weak(&w->longest_ns, &longest, took))
        ;
    atomic_fetch_add(&w->bytes, n * SECTOR);
}

static void guest_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    struct prng rng;
    prng_init(&rng, gu->id + 7);
    while (!atomic_load(&gu->w->stop)) {
        guest_step(co, gu, &rng);
        if (gu->pause_ns)
            (void)co_sleep(co, gu->pause_ns);
        else
            co_yield(co);
    }
    atomic_fetch_sub(&gu->w->running, 1);
}

static void guests_start(struct world *w, struct guest *gu, unsigned n, uint64_t pause_ns, enum manner manner)
{
    w->stop = false;
    w->running = n;
    for (unsigned i = 0; i < n; i++) {
        gu[i] = (struct guest){ w, i, pause_ns, manner };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), guest_main, &gu[i]), 0);
    }
}

static void guests_stop(struct co *co, struct world *w)
{
    atomic_store(&w->stop, true);
    while (atomic_load(&w->running))
        (void)co_sleep(co, 100000);
}

/* The disk reads as the guests know it. */
static void check_disk(struct co *co, struct world *w)
{
    uint8_t *a = malloc(SIZE), want[SECTOR];
    CHECK_EQ(t_read(co, w->disk, a, SIZE, 0), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        fill_sector(want, s, w->gen[s]);
        if (w->gen[s] != UNKNOWN && !CHECK(!memcmp(a + s * SECTOR, want, SECTOR))) {
            fprintf(stderr, "sector %u\n", s);
            break;
        }
    }
    free(a);
}

static void check_same(struct co *co, struct graph_node *x, struct graph_node *y)
{
    uint8_t *a = malloc(SIZE), *b = malloc(SIZE);
    uint64_t size = graph_length(x);
    CHECK_EQ(graph_length(y), size);
    CHECK_EQ(t_read(co, x, a, size, 0), 0);
    CHECK_EQ(t_read(co, y, b, size, 0), 0);
    CHECK(!memcmp(a, b, size));
    free(a);
    free(b);
}

/* ---- tests ---- */

/* FEATURES 9.014, 9.031, 9.032, 9.038 */
static void pivot(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 6; i++) {
        struct world *w = world_open(co);
        struct guest gu[GUESTS];
        struct job_mirror_state st;
        w->to.delay_ns = 200000;
        guests_start(w, gu, GUESTS, 300000, ALL_KINDS);
        struct job *job = start(co, w, (struct job_mirror_opts){ .blocking = i % 2, .granularity = i / 2 ? 65536 : 4096 });
        struct byre_err err;
        if (!(i % 2))                     /* so many guests keep a background copy from its end */
            CHECK_EQ(job_mirror_set_blocking(job, true, &err), 0);
        CHECK(reaches(co, job, JOB_READY, 20 * SEC));
        if (!(i % 2))
            CHECK_EQ(job_mirror_set_blocking(job, false, &err), 0);
        (void)co_sleep(co, 20000000);
        do_ok(job, JOB_COMPLETE);
        CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
        CHECK_EQ(job->result, 0);
        CHECK(graph_attached(w->disk) == w->to.n);
        unsigned before = w->src->t->count[TOY_WRITE];
        (void)co_sleep(co, 20000000);
        CHECK_EQ(w->src->t->count[TOY_WRITE], before);       /* nobody writes there any more */
        job_mirror_look(job, &st);
        CHECK(st.ended && st.pivot_pause_ns && st.pivot_pause_ns < SEC);
        guests_stop(co, w);
        check_disk(co, w);
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_pivot(void **state) { t_run(0, pivot, NULL); }

/* The mode changes a hundred times (G.027). */
static void switching(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct guest gu[GUESTS];
    struct byre_err err;
    w->to.delay_ns = 100000;
    guests_start(w, gu, GUESTS, 200000, ALL_KINDS);
    struct job *job = start(co, w, (struct job_mirror_opts){ .granularity = 4096 });
    for (unsigned i = 0; i < 100; i++) {
        CHECK_EQ(job_mirror_set_blocking(job, i % 2 == 0, &err), 0);
        (void)co_sleep(co, 3000000 + i % 7 * 1000000);
    }
    CHECK_EQ(job_mirror_set_blocking(job, true, &err), 0);
    CHECK(reaches(co, job, JOB_READY, 20 * SEC));
    do_ok(job, JOB_COMPLETE);
    CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
    CHECK_EQ(job->result, 0);
    CHECK(job_mirror_set_blocking(job, true, &err) < 0);
    guests_stop(co, w);
    check_disk(co, w);
    do_ok(job, JOB_DISMISS);
    world_close(co, w);
}
static void test_switching(void **state) { t_run(0, switching, NULL); }

/* J1: events after the flush; a flush that fails is no success (FEATURES 9.011, 9.004). */
static void flushes(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    w->check_flush = true;
    struct job *job = start(co, w, (struct job_mirror_opts){ .job.keep_pending = true });
    CHECK(reaches(co, job, JOB_READY, 10 * SEC));
    uint8_t buf[SECTOR];
    fill_sector(buf, 3, 5);
    CHECK_EQ(t_write(co, w->disk, buf, SECTOR, 3 * SECTOR, 0), 0);
    w->gen[3] = 5;
    do_ok(job, JOB_COMPLETE);
    CHECK(reaches(co, job, JOB_PENDING, 10 * SEC));
    fill_sector(buf, 9, 6);
    CHECK_EQ(t_write(co, w->disk, buf, SECTOR, 9 * SECTOR, 0), 0);           /* guests do not stand still meanwhile */
    w->gen[9] = 6;
    CHECK(graph_attached(w->disk) == w->from);
    do_ok(job, JOB_FINALIZE);
    CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
    CHECK(!w->early && w->events[JOB_READY] == 1);
    CHECK(graph_attached(w->disk) == w->to.n);
    check_disk(co, w);
    do_ok(job, JOB_DISMISS);
    world_close(co, w);

    struct byre_err err;
    w = world_open(co);                   /* who was told that it completes is not told that it does not */
    job = start(co, w, (struct job_mirror_opts){ .blocking = false });
    CHECK(reaches(co, job, JOB_READY, 10 * SEC));
    do_ok(job, JOB_COMPLETE);
    CHECK_EQ(job_mirror_leave(job, &err), -EINVAL);
    CHECK(strstr(err.text, "completing already"));
    CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
    CHECK(job->result == 0 && graph_attached(w->disk) == w->to.n);
    do_ok(job, JOB_DISMISS);
    world_close(co, w);

    w = world_open(co);                   /* soft cancel: consistent, and nobody goes over */
    w->check_flush = true;
    job = start(co, w, (struct job_mirror_opts){ .blocking = false });
    CHECK(job_mirror_leave(job, &err) < 0);                  /* not yet */
    CHECK(reaches(co, job, JOB_READY, 10 * SEC));
    CHECK_EQ(t_write(co, w->disk, buf, SECTOR, 3 * SECTOR, 0), 0);
    CHECK_EQ(job_mirror_leave(job, &err), 0);
    CHECK_EQ(job_do(job, JOB_COMPLETE, &err), -EINVAL);
    CHECK(strstr(err.text, "being cancelled"));
    CHECK_EQ(job_mirror_leave(job, &err), 0);                /* once more is no other thing */
    CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
    CHECK(job->result == 0 && !w->early && graph_attached(w->disk) == w->from);
    check_same(co, w->from, w->to.n);
    do_ok(job, JOB_DISMISS);
    world_close(co, w);

    for (unsigned late = 0; late < 2; late++) {
        w = world_open(co);
        w->to.fail_flush = late ? 0 : -EIO;
        job = start(co, w, (struct job_mirror_opts){ .blocking = true });
        if (late) {
            CHECK(reaches(co, job, JOB_READY, 10 * SEC));
            w->to.fail_flush = -EIO;
            do_ok(job, JOB_COMPLETE);
        }
        CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
        CHECK_EQ(job->result, -EIO);
        CHECK(w->events[JOB_READY] == late && graph_attached(w->disk) == w->from);
        CHECK_EQ(t_write(co, w->disk, buf, SECTOR, 0, 0), 0);
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_flushes(void **state) { t_run(0, flushes, NULL); }

/* Cancelling takes less than a second, wherever the target stands still (FEATURES 9.012). */
static void cancelling(struct co *co, void *arg)
{
    for (unsigned run = 0; run < 8; run++) {
        struct world *w = world_open(co);
        struct guest gu[GUESTS];
        unsigned where = run % 4;
        bool by_bitmap = run >= 4;        /* which is told what has been done */
        w->to.stalled = where == 0;
        CHECK_EQ(graph_bitmap_add(co, w->from, &(struct graph_bitmap_spec){ .name = "b" }, NULL), 0);
        struct job *job = start(co, w, by_bitmap ? (struct job_mirror_opts){ .blocking = true, .sync = JOB_MIRROR_BITMAP, .bitmap = "b", .bitmap_mode = JOB_BITMAP_ALWAYS }
                                                 : (struct job_mirror_opts){ .blocking = true });
        if (where) {
            CHECK(reaches(co, job, JOB_READY, 10 * SEC));
            atomic_store(where == 3 ? &w->to.stalls_behind_flush : &w->to.stalled, true);
        }
        if (where != 2)
            guests_start(w, gu, GUESTS, 1000000, ALL_KINDS);
        if (where >= 2)
            do_ok(job, JOB_COMPLETE);     /* 2: stands in its flush, 3: in the drain behind it */
        (void)co_sleep(co, 50000000);
        uint64_t t0 = rt_now(co_loop(co));
        do_ok(job, JOB_CANCEL);
        CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
        CHECK(rt_now(co_loop(co)) - t0 < 20 * SEC);                          /* the target stands still for ever */
        CHECK_EQ(job->result, -ECANCELED);
        uint64_t before = atomic_load(&w->bytes);
        (void)co_sleep(co, 50000000);
        CHECK(where == 2 || atomic_load(&w->bytes) > before);               /* guests go on */
        if (where != 2)
            guests_stop(co, w);
        CHECK(graph_attached(w->disk) == w->from);
        check_disk(co, w);
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_cancelling(void **state) { t_run(0, cancelling, NULL); }

/* FEATURES 9.009, 9.010, 9.036 */
static void policies(struct co *co, void *arg)
{
    static const struct { enum job_on_error how; int error; bool stops, fails; const char *action; } rows[] = {
        { JOB_ON_ERROR_REPORT, -EIO, false, true, "write-report " },
        { JOB_ON_ERROR_IGNORE, -EIO, false, false, "write-ignore " },
        { JOB_ON_ERROR_STOP, -EIO, true, false, "write-stop " },
        { JOB_ON_ERROR_ENOSPC, -ENOSPC, true, false, "write-stop " },
        { JOB_ON_ERROR_ENOSPC, -EIO, false, true, "write-report " },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct world *w = world_open(co);
        w->to.fail = rows[i].error;
        struct job *job = start(co, w, (struct job_mirror_opts){ .on_target_error = rows[i].how });
        if (rows[i].stops) {
            CHECK(reaches(co, job, JOB_PAUSED, 10 * SEC));
            CHECK_EQ(job->io_error, rows[i].error);
            w->to.fail = 0;
            do_ok(job, JOB_RESUME);
        } else if (!rows[i].fails) {
            for (unsigned ms = 0; ms < 20000 && !w->actions[0]; ms++)
                (void)co_sleep(co, 1000000);
            (void)co_sleep(co, 250000000);                                   /* tried again and again */
            w->to.fail = 0;
        }
        CHECK(reaches(co, job, rows[i].fails ? JOB_CONCLUDED : JOB_READY, 10 * SEC));
        CHECK(!strncmp(w->actions, rows[i].action, strlen(rows[i].action)));
        CHECK_EQ(job->result, rows[i].fails ? rows[i].error : 0);
        if (!rows[i].fails) {
            do_ok(job, JOB_COMPLETE);
            CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
            check_same(co, w->from, w->to.n);
        }
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_policies(void **state) { t_run(0, policies, NULL); }

/* FEATURES 9.006, 9.007 */
static void pausing(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct guest gu[GUESTS];
    uint64_t a, b, total;
    struct job *job = start(co, w, (struct job_mirror_opts){ .blocking = true, .job.speed = 400000 });
    guests_start(w, gu, GUESTS, 1000000, ALL_KINDS);
    uint64_t t0 = rt_now(co_loop(co));
    (void)co_sleep(co, 600000000);
    job_progress_get(job, &a, &total);
    CHECK(a > 0 && a < total && a < 760000 + 400000 * (rt_now(co_loop(co)) - t0) / SEC);
    do_ok(job, JOB_PAUSE);
    CHECK(reaches(co, job, JOB_PAUSED, 20 * SEC));
    (void)co_sleep(co, 50000000);
    unsigned before = w->to.writes;
    job_progress_get(job, &a, &total);
    (void)co_sleep(co, 300000000);
    job_progress_get(job, &b, &total);
    CHECK(a == b && w->to.writes == before);
    struct byre_err err;
    CHECK_EQ(job_set_speed(job, 0, &err), 0);
    do_ok(job, JOB_RESUME);
    CHECK(reaches(co, job, JOB_READY, 10 * SEC));
    do_ok(job, JOB_COMPLETE);
    CHECK(reaches(co, job, JOB_CONCLUDED, 10 * SEC));
    guests_stop(co, w);
    check_disk(co, w);
    do_ok(job, JOB_DISMISS);
    world_close(co, w);
}
static void test_pausing(void **state) { t_run(0, pausing, NULL); }

/* FEATURES 9.043: the active layer goes into one two below it. */
static void active(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct guest gu[GUESTS];
    struct byre_err err = { 0 };
    struct job *job = NULL;
    (void)graph_detach(co, w->disk);
    struct toyfmt *mid = toyfmt_new(co, SIZE, CLUSTER), *top = toyfmt_new(co, SIZE, 2 * CLUSTER);
    struct graph_node *m = toy_node(w->g, &mid->im, w->from), *t = toy_node(w->g, &top->im, m);
    for (uint32_t i = 0; i < CLUSTERS; i += 5)
        toyfmt_set(mid, i, i % 2 ? FMT_ZERO : FMT_DATA, false, 77);
    m->read_only = true;
    attach(w, t);
    guests_start(w, gu, GUESTS, 300000, ALL_KINDS);
    struct job_mirror_opts o = { .source = t, .target = w->from, .active_commit = true, .blocking = true, .job = { .id = "c", .keep_concluded = true } };
    CHECK_EQ(job_mirror_start(co, &w->js, &o, &job, &err), 0);
    CHECK(reaches(co, job, JOB_READY, 20 * SEC));
    do_ok(job, JOB_COMPLETE);
    CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
    CHECK_EQ(job->result, 0);
    CHECK(graph_attached(w->disk) == w->from);
    guests_stop(co, w);
    check_disk(co, w);
    do_ok(job, JOB_DISMISS);
    CHECK_EQ(graph_close(co, t), 0);
    CHECK_EQ(graph_close(co, m), 0);
    world_close(co, w);
}
static void test_active(void **state) { t_run(0, active, NULL); }

/* FEATURES 9.045, G.031: the disk becomes shorter while it is committed. It keeps that length on the base, unless that was longer from the beginning, or it
 * does not go there. */
static void active_shorter(struct co *co, void *arg)
{
    static const struct { uint64_t disk, becomes, base; bool leaves; } rows[] = {
        { SIZE, SIZE / 2, SIZE / 2, false }, { SIZE, SIZE / 2, SIZE, true }, { SIZE / 2, SIZE / 4, SIZE, false }, { SIZE, SIZE, SIZE, false },
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct world *w = world_open(co);
        struct byre_err err = { 0 };
        struct job *job = NULL;
        uint8_t *seen = calloc(1, SIZE), *then = calloc(1, SIZE);
        (void)graph_detach(co, w->disk);
        struct toyfmt *top = toyfmt_new(co, rows[i].disk, CLUSTER);
        struct graph_node *t = toy_node(w->g, &top->im, w->from);
        toyfmt_set(top, 1, FMT_DATA, false, 77);
        attach(w, t);
        struct job_mirror_opts o = { .source = t, .target = w->from, .active_commit = true, .job = { .id = "c", .keep_concluded = true } };
        CHECK_EQ(job_mirror_start(co, &w->js, &o, &job, &err), 0);
        CHECK(reaches(co, job, JOB_READY, 20 * SEC));
        CHECK_EQ(graph_resize(co, t, rows[i].becomes, FMT_PREALLOC_OFF, &err), 0);
        CHECK_EQ(graph_length(w->from), SIZE);               /* the job may be cancelled still */
        CHECK_EQ(t_read(co, t, seen, rows[i].becomes, 0), 0);
        if (rows[i].leaves)
            CHECK_EQ(job_mirror_leave(job, &err), 0);
        else
            do_ok(job, JOB_COMPLETE);
        CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
        CHECK_EQ(job->result, 0);
        CHECK(graph_attached(w->disk) == (rows[i].leaves ? t : w->from));
        CHECK_EQ(graph_length(w->from), rows[i].base);
        CHECK_EQ(t_read(co, w->from, then, rows[i].becomes, 0), 0);
        CHECK(!memcmp(seen, then, SIZE));
        do_ok(job, JOB_DISMISS);
        CHECK_EQ(graph_close(co, t), 0);
        free(seen);
        free(then);
        world_close(co, w);
    }
}
static void test_active_shorter(void **state) { t_run(0, active_shorter, NULL); }

/* Another disk over a layer between would see the base change below it. */
static void active_shared(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct byre_err err = { 0 };
    struct job *job = NULL;
    struct toyfmt *mid = toyfmt_new(co, SIZE, CLUSTER), *top = toyfmt_new(co, SIZE, CLUSTER), *other = toyfmt_new(co, SIZE, CLUSTER);
    (void)graph_detach(co, w->disk);
    struct graph_node *m = toy_node(w->g, &mid->im, w->from), *t = toy_node(w->g, &top->im, m), *another = toy_node(w->g, &other->im, NULL);
    m->read_only = true;
    attach(w, t);
    CHECK_EQ(graph_set_backing(co, another, m, &err), 0);
    struct job_mirror_opts o = { .source = t, .target = w->from, .active_commit = true, .job = { .id = "c", .keep_concluded = true } };
    CHECK(job_mirror_start(co, &w->js, &o, &job, &err) < 0);
    CHECK(strstr(err.text, m->name) && strstr(err.text, another->name));
    CHECK_EQ(graph_set_backing(co, another, NULL, &err), 0);
    CHECK_EQ(job_mirror_start(co, &w->js, &o, &job, &err), 0);
    CHECK_EQ(graph_set_backing(co, another, m, &err), -EPERM);
    CHECK(reaches(co, job, JOB_READY, 20 * SEC));
    do_ok(job, JOB_CANCEL);
    CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
    do_ok(job, JOB_DISMISS);
    CHECK_EQ(graph_set_backing(co, another, m, &err), 0);    /* as before */
    CHECK_EQ(graph_close(co, another), 0);
    CHECK_EQ(graph_close(co, t), 0);
    CHECK_EQ(graph_close(co, m), 0);
    world_close(co, w);
}
static void test_active_shared(void **state) { t_run(0, active_shared, NULL); }

/* FEATURES G.031: the length changes when nothing is under way to the target; who waits for that is let go when the job is to end. */
struct resizer { struct graph_node *n; bool done; int r; };

static void resize_main(struct co *co, void *arg)
{
    struct resizer *z = arg;
    struct byre_err err = { 0 };
    z->r = graph_resize(co, z->n, SIZE / 2, FMT_PREALLOC_OFF, &err);
    z->done = true;
}

static void resizing(struct co *co, void *arg)
{
    for (unsigned cancelled = 0; cancelled < 2; cancelled++) {
        struct world *w = world_open(co);
        struct resizer z = { .n = w->from };
        w->to.stalled = true;
        struct job *job = start(co, w, (struct job_mirror_opts){ .blocking = true });
        for (unsigned ms = 0; ms < 20000 && !atomic_load(&w->to.standing); ms++)
            (void)co_sleep(co, 1000000);
        CHECK_EQ(rt_spawn(co_loop(co), resize_main, &z), 0);
        (void)co_sleep(co, 50000000);
        CHECK(!z.done && graph_length(w->from) == SIZE);
        if (cancelled)
            do_ok(job, JOB_CANCEL);
        else
            atomic_store(&w->to.stalled, false);
        CHECK(reaches(co, job, cancelled ? JOB_CONCLUDED : JOB_READY, 20 * SEC));
        for (unsigned i = 0; i < 2000 && !z.done; i++)
            (void)co_sleep(co, 10000000);
        CHECK(z.done && z.r == 0);
        CHECK_EQ(graph_length(w->from), SIZE / 2);
        CHECK_EQ(graph_length(w->to.n), cancelled ? SIZE : SIZE / 2);
        if (!cancelled)
            check_same(co, w->from, w->to.n);
        world_close(co, w);
    }
}
static void test_resizing(void **state) { t_run(0, resizing, NULL); }

/* Until the users are on the target nobody else writes to it, however he tries. */
struct intruder { struct world *w; struct graph_node *in; bool too_early, stop, gone; };

static void intrude(struct co *co, void *arg)
{
    struct intruder *i = arg;
    const struct graph_attach_opts o = { "intruder", STOR_PERM_WRITE, STOR_PERM_ALL };
    while (!i->stop && !i->in) {
        if (graph_attach(i->w->to.n, &o, &i->in, NULL) == 0)
            i->too_early = graph_attached(i->w->disk) != i->w->to.n;
        co_yield(co);
    }
    i->gone = true;
}

static void intruding(struct co *co, void *arg)
{
    for (unsigned round = 0; round < 3; round++) {
        struct world *w = world_open(co);
        struct guest gu[GUESTS];
        struct intruder i = { .w = w };
        struct job *job = start(co, w, (struct job_mirror_opts){ .blocking = true });
        guests_start(w, gu, GUESTS, 300000, ALL_KINDS);
        CHECK(reaches(co, job, JOB_READY, 20 * SEC));
        CHECK_EQ(rt_spawn(co_loop(co), intrude, &i), 0);
        do_ok(job, JOB_COMPLETE);
        CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
        CHECK_EQ(job->result, 0);
        CHECK(graph_attached(w->disk) == w->to.n && !i.too_early);
        i.stop = true;
        while (!i.gone)
            co_yield(co);
        if (i.in)
            (void)graph_detach(co, i.in);
        guests_stop(co, w);
        check_disk(co, w);
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_intruding(void **state) { t_run(0, intruding, NULL); }

/* FEATURES 9.031, 11.012: the users cannot go over, which is seen at the last moment; until the copy has stopped the target is the job's all the same, and the source's edges stay */
static void refused_late(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    const struct graph_attach_opts reads = { "reader", STOR_PERM_READ, STOR_PERM_ALL & ~(unsigned)STOR_PERM_RESIZE }, resizes = { "resizer", STOR_PERM_READ | STOR_PERM_RESIZE, STOR_PERM_ALL };
    struct graph_node *reader, *resizer;
    struct byre_err err;
    w->tries = true;
    struct job *job = start(co, w, (struct job_mirror_opts){ .sync = JOB_MIRROR_TOP });
    CHECK(reaches(co, job, JOB_READY, 20 * SEC));
    CHECK_EQ(graph_attach(w->to.n, &reads, &reader, &err), 0);
    CHECK_EQ(graph_attach(w->from, &resizes, &resizer, &err), 0);
    do_ok(job, JOB_COMPLETE);
    CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
    CHECK_EQ(job->result, -EPERM);
    CHECK(strstr(job->err.text, "resize") != NULL);
    CHECK_EQ(w->refused, -EPERM);
    CHECK(graph_attached(w->disk) == w->from);
    CHECK_EQ(graph_promise(w->from, w, 0, &err), 0);         /* frozen no more, in the whole chain */
    graph_promise_end(w->g, w);
    do_ok(job, JOB_DISMISS);
    (void)graph_detach(co, reader);
    (void)graph_detach(co, resizer);
    world_close(co, w);
}
static void test_refused_late(void **state) { t_run(0, refused_late, NULL); }

/* The target answers a flush only when guests may go on: each try to end lets them, and others who change the graph, for longer than it had held them; the last one
 * fails the job, and the guests are where they were */
static void held_flush(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct guest gu[GUESTS];
    w->to.stalls_with = w->from;
    guests_start(w, gu, GUESTS, 1000000, ALL_KINDS);
    struct job *job = start(co, w, (struct job_mirror_opts){ .blocking = true });
    CHECK(reaches(co, job, JOB_READY, 20 * SEC));
    do_ok(job, JOB_COMPLETE);
    uint64_t before = atomic_load(&w->bytes), t0 = rt_now(co_loop(co)), longest = 0;
    (void)co_sleep(co, 100000000);
    while (job->status != JOB_CONCLUDED && rt_now(co_loop(co)) - t0 < 60 * SEC) {
        uint64_t since = rt_now(co_loop(co));
        graph_edges_hold(co, w->g);
        graph_edges_let(co, w->g);
        uint64_t took = rt_now(co_loop(co)) - since;
        longest = took > longest ? took : longest;
        (void)co_sleep(co, 1000000);
    }
    CHECK_EQ(job->status, JOB_CONCLUDED);
    CHECK(longest > SEC / 2 && longest < 13 * SEC);
    CHECK_EQ(job->result, -ETIMEDOUT);
    CHECK(strstr(job->err.text, "10 seconds") != NULL);
    CHECK(graph_attached(w->disk) == w->from && atomic_load(&w->bytes) > before);
    guests_stop(co, w);
    check_disk(co, w);
    w->to.stalls_with = NULL;
    do_ok(job, JOB_DISMISS);
    world_close(co, w);
}
static void test_held_flush(void **state) { t_run(0, held_flush, NULL); }

/* The target takes a tenth of what the guests write, who rewrite the same place, or write everywhere, for ever. */
static void founding(struct co *co, void *arg)
{
    for (unsigned hot = 0; hot < 2; hot++) {
        struct world *w = world_open(co);
        struct guest gu[GUESTS];
        struct job_mirror_state st;
        guests_start(w, gu, GUESTS, 300000, hot ? ONE_PLACE : WRITES);
        (void)co_sleep(co, 300000000);
        uint64_t before = atomic_load(&w->bytes);
        (void)co_sleep(co, SEC / 2);
        double rate = (double)(atomic_load(&w->bytes) - before) * 2, slowest = 1e18;
        atomic_store(&w->longest_ns, 0);
        atomic_store(&w->to.rate, (uint64_t)(rate / 10));
        struct job *job = start(co, w, (struct job_mirror_opts){ .converge = CONVERGE_AUTO, .deadline_s = 20, .granularity = 65536 });
        uint64_t t0 = rt_now(co_loop(co));
        while (job->status == JOB_CREATED || job->status == JOB_RUNNING) {
            before = atomic_load(&w->bytes);
            (void)co_sleep(co, SEC);
            double now = (double)(atomic_load(&w->bytes) - before);
            slowest = now < slowest ? now : slowest;
        }
        job_mirror_look(job, &st);
        CHECK_EQ(job->status, JOB_READY);
        double ready = (double)(rt_now(co_loop(co)) - t0) / 1e9;
        fprintf(stderr, "%s: ready after %.1f s of 20; guests: %.0f bytes/s before, %.0f in the slowest second; longest request %.1f ms\n",
                hot ? "1 KiB for ever" : "4 KiB everywhere", ready, rate, slowest, (double)atomic_load(&w->longest_ns) / 1e6);
        CHECK(ready < 20 && st.blocking);
        CHECK(slowest >= rate / 20);
        CHECK(atomic_load(&w->longest_ns) < 1100000000);
        do_ok(job, JOB_COMPLETE);
        CHECK(reaches(co, job, JOB_CONCLUDED, 20 * SEC));
        CHECK_EQ(job->result, 0);
        guests_stop(co, w);
        check_disk(co, w);
        do_ok(job, JOB_DISMISS);
        world_close(co, w);
    }
}
static void test_founding(void **state) { t_run(0, founding, NULL); }

static void refused(struct co *co, void *arg)
{
    struct world *w = world_open(co);
    struct job *job;
    struct byre_err err;
    struct toy *t;
    struct graph_node *small = toy_raw_node(co, w->g, SIZE - 512, &t);
    const struct job_mirror_opts bad[] = {
        { .source = w->from, .target = w->from }, { .source = w->from, .target = small }, { .source = w->from, .target = w->to.n, .granularity = 3000 },
        { .source = w->from, .target = w->to.n, .granularity = 256 }, { .source = w->from, .target = w->to.n, .granularity = 128 << 20 },
        { .source = w->from, .target = w->to.n, .active_commit = true }, { .source = w->from, .target = w->to.n, .job.id = "0bad" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(job_mirror_start(co, &w->js, &bad[i], &job, &err) < 0 && err.text[0]);
    struct job *one = start(co, w, (struct job_mirror_opts){ .blocking = true });
    const struct job_mirror_opts two = { .source = w->from, .target = w->to.n, .job.id = "two" };
    CHECK(job_mirror_start(co, &w->js, &two, &job, &err) < 0);               /* another writer of the target */
    CHECK(graph_resize(co, w->to.n, SIZE * 2, FMT_PREALLOC_OFF, &err) < 0);  /* FEATURES 9.024 */
    CHECK(strstr(err.text, "resize") != NULL);
    CHECK_EQ(graph_resize(co, w->from, SIZE / 2, FMT_PREALLOC_OFF, &err), 0);    /* FEATURES G.031: before it looked */
    CHECK(reaches(co, one, JOB_READY, 10 * SEC));
    CHECK_EQ(graph_length(w->to.n), SIZE / 2);
    CHECK(graph_resize(co, w->to.n, SIZE, FMT_PREALLOC_OFF, &err) < 0);
    CHECK_EQ(graph_resize(co, w->from, SIZE, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(graph_length(w->to.n), SIZE);
    do_ok(one, JOB_CANCEL);
    CHECK(reaches(co, one, JOB_CONCLUDED, SEC));
    do_ok(one, JOB_DISMISS);
    CHECK_EQ(graph_close(co, small), 0);
    world_close(co, w);
}
static void test_refused(void **state) { t_run(0, refused, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused), cmocka_unit_test(test_flushes), cmocka_unit_test(test_policies), cmocka_unit_test(test_cancelling),
        cmocka_unit_test(test_pausing),    cmocka_unit_test(test_pivot),   cmocka_unit_test(test_active), cmocka_unit_test(test_active_shorter), cmocka_unit_test(test_active_shared), cmocka_unit_test(test_intruding), cmocka_unit_test(test_resizing), cmocka_unit_test(test_refused_late), cmocka_unit_test(test_held_flush),
          cmocka_unit_test(test_switching),
        cmocka_unit_test(test_founding),
    };
    return T_MAIN("mirror", tests);
}
