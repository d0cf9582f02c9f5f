/* SPDX-License-Identifier: MIT
 *
 * copy_test.c: the copy engine over memory and files.
 *
 * Purpose      Every flag against a model; order of writes; faults on either side; cancellation; rate; salvage.
 * Owns         Files in a scratch folder.
 * Invariants   None.
 * Concurrency  Jobs on loop 0, pieces on both loops. The formats below are homed on loop 0.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "copy/copy_priv.h"

#define CLUSTER 4096u
#define CLUSTERS 600u
#define SIZE ((uint64_t)CLUSTERS * CLUSTER)

/* ---- runs of zeros ---- */

static void test_sparse(void **state)
{
    enum { LEN = 64 << 10 };
    static const struct { uint64_t at, min; uint32_t data_at, data_len; uint64_t run; bool zero; } cases[] = {
        { 0, 4096, 0, LEN, LEN, false },
        { 0, 4096, 8192, 1, 8192, true },
        { 0, 4096, 0, 8192, 8192, false },
        { 0, 4096, 4095, 1, 4096, false },
        { 0, 65536, 60000, 1, LEN, false },
        { 0, 65536, LEN, 0, LEN, true },
        { 512, 4096, 0, 100, 3584, false },
        { 512, 512, 512, 512, 512, true },
        { 0, 8192, 4096, 4096, 8192, false },
        { 0, 12288, 0, 4096, 4096, false },
    };
    uint8_t *buf = malloc(LEN);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool zero;
        memset(buf, 0, LEN);
        memset(buf + cases[i].data_at, 1, cases[i].data_len);
        uint64_t n = sparse_run(buf, LEN, cases[i].at, cases[i].min, &zero);
        if (n != cases[i].run || zero != cases[i].zero)
            print_error("case %zu: %llu %d\n", i, (unsigned long long)n, zero);
        assert_true(n == cases[i].run && zero == cases[i].zero);
    }
    free(buf);
}

/* ---- sources and targets ---- */

struct pair {
    struct graph *g;
    struct toyfmt *src, *low;
    struct graph_node *from, *under;
    struct toy *t;                       /* of a raw target */
    struct graph_node *to;
    uint8_t *model;
};

static void fill(struct toyfmt *f, struct prng *rng, uint8_t *model, bool bottom)
{
    for (uint32_t i = 0; i < f->clusters; ) {
        uint32_t run = 1 + (uint32_t)prng_below(rng, prng_one_in(rng, 3) ? 200 : 8);
        enum fmt_kind kind = (enum fmt_kind)prng_below(rng, 4);
        for (; run-- && i < f->clusters; i++) {
            uint8_t byte = prng_one_in(rng, 6) ? 0 : (uint8_t)(1 + prng_below(rng, 200));
            toyfmt_set(f, i, kind, false, byte);
            if (kind != FMT_ABSENT || bottom)
                memset(model + (uint64_t)i * CLUSTER, kind == FMT_DATA || kind == FMT_ENCODED ? byte : 0, CLUSTER);
        }
    }
}

static void pair_make(struct co *co, struct pair *p, uint64_t seed, bool raw_target, uint8_t old)
{
    struct prng rng;
    prng_init(&rng, seed);
    *p = (struct pair){ .g = toy_graph(co), .model = calloc(1, SIZE) };
    p->low = toyfmt_new(co, SIZE, CLUSTER);
    fill(p->low, &rng, p->model, true);
    p->under = toy_node(p->g, &p->low->im, NULL);
    p->src = toyfmt_new(co, SIZE, CLUSTER);
    fill(p->src, &rng, p->model, false);
    p->from = toy_node(p->g, &p->src->im, p->under);
    p->from->read_only = true;
    if (raw_target) {
        p->to = toy_raw_node(co, p->g, SIZE, &p->t);
        memset(p->t->bytes, old, SIZE);
    } else {
        struct toyfmt *f = toyfmt_new(co, SIZE, 2 * CLUSTER);
        p->to = toy_node(p->g, &f->im, NULL);
        p->t = f->t;
        for (uint32_t i = 0; i < f->clusters && old; i++)
            toyfmt_set(f, i, FMT_DATA, i % 3 == 0, old);
    }
}

static bool flush_failed;                /* the target's store has latched that: closing says so, too */

static void pair_close(struct co *co, struct pair *p)
{
    CHECK_EQ(graph_close(co, p->to), flush_failed ? -EIO : 0);
    flush_failed = false;
    CHECK_EQ(graph_close(co, p->from), 0);
    CHECK_EQ(graph_close(co, p->under), 0);
    graph_free(p->g);
    free(p->model);
}

static void expect_bytes(struct co *co, struct graph_node *n, const uint8_t *model, uint64_t len)
{
    uint8_t *buf = malloc(len);
    CHECK_EQ(t_read(co, n, buf, len, 0), 0);
    for (uint64_t i = 0; i < len; i++) {
        if (buf[i] != model[i]) {
            CHECK_EQ(buf[i], model[i]);
            CHECK_EQ(i, -1);
            break;
        }
    }
    free(buf);
}

static int run_ok(struct co *co, const struct copy_job *job, struct copy_result *res)
{
    struct byre_err err = { 0 };
    int r = copy_run(co, job, res, &err);
    if (r)
        fprintf(stderr, "copy: %s\n", err.text);
    CHECK_EQ(r, 0);
    return r;
}

/* ---- all flags ---- */

static uint64_t last_done;
static void progress(void *arg, uint64_t done, uint64_t total)
{
    CHECK(done >= last_done && done <= total);
    last_done = done;
    if (arg)
        CHECK_EQ(total, *(uint64_t *)arg);
}

static void matrix(struct co *co, void *arg)
{
    static const struct { unsigned flags; uint64_t min_sparse; bool raw; uint8_t old; unsigned workers; } cases[] = {
        { 0, 4096, true, 7, 0 }, { 0, 0, true, 7, 1 }, { COPY_TARGET_ZERO, 4096, true, 0, 4 }, { COPY_PRE_ZERO, 4096, true, 9, 16 },
        { COPY_OUT_OF_ORDER, 512, true, 7, 8 }, { COPY_OUT_OF_ORDER, 4096, false, 7, 8 }, { COPY_TARGET_ZERO, 65536, false, 0, 8 },
        { COPY_OUT_OF_ORDER, 0, false, 0, 8 }, { COPY_PRE_ZERO | COPY_OUT_OF_ORDER, 4096, false, 5, 3 }, { COPY_NO_SPREAD, 4096, false, 5, 8 },
        { COPY_OFFLOAD, 4096, true, 5, 8 }, { COPY_TARGET_ZERO, 0, true, 0, 8 }, { COPY_COMPRESS, 4096, false, 5, 8 },
        { COPY_COMPRESS | COPY_OUT_OF_ORDER, 512, false, 6, 3 }, { COPY_COMPRESS | COPY_TARGET_ZERO, 65536, false, 0, 8 },
        { COPY_COMPRESS | COPY_PRE_ZERO, 0, false, 4, 1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair p;
        struct copy_result res;
        uint64_t total = SIZE;
        pair_make(co, &p, 100 + i, cases[i].raw, cases[i].old);
        struct copy_part part = { p.from, 0, SIZE };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .flags = cases[i].flags, .min_sparse = cases[i].min_sparse,
                                .workers = cases[i].workers, .piece_bytes = 65536, .progress = progress, .arg = &total };
        last_done = 0;
        run_ok(co, &job, &res);
        CHECK_EQ(last_done, SIZE);
        CHECK_EQ(p.t->count[TOY_FLUSH], 1);
        expect_bytes(co, p.to, p.model, SIZE);
        CHECK_EQ(res.written + res.zeroed + res.skipped, SIZE);
        if (!cases[i].min_sparse)
            CHECK_EQ(res.written, SIZE);
        pair_close(co, &p);
    }
}

/* ---- parts, offsets, selection ---- */

static bool every_third(void *arg, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    uint64_t block = 3 * CLUSTER, k = from / block;
    if (from % block >= CLUSTER)
        k++;
    *ret_start = k * block;
    *ret_end = *ret_start + CLUSTER;
    return *ret_start < *(uint64_t *)arg;
}

static void parts(struct co *co, void *arg)
{
    struct pair p;
    pair_make(co, &p, 7, true, 3);
    uint64_t a = 100 * CLUSTER + 512, b = 77 * CLUSTER;
    struct copy_part part[3] = { { p.from, 512, a }, { p.from, SIZE, 0 }, { p.under, 5 * CLUSTER, b } };
    struct copy_job job = { .parts = part, .part_count = 3, .target = p.to, .target_off = 1024, .min_sparse = 4096, .piece_bytes = 65536 };
    uint8_t *want = malloc(SIZE);
    memset(want, 3, SIZE);
    memcpy(want + 1024, p.model + 512, a);
    CHECK_EQ(t_read(co, p.under, want + 1024 + a, b, 5 * CLUSTER), 0);
    run_ok(co, &job, NULL);
    expect_bytes(co, p.to, want, SIZE);
    /* only some of it */
    uint64_t total = SIZE;
    struct copy_part all = { p.from, 0, SIZE };
    memset(p.t->bytes, 3, SIZE);
    memset(want, 3, SIZE);
    for (uint64_t at = 0; at < SIZE; at += 3 * CLUSTER)
        memcpy(want + at, p.model + at, CLUSTER);
    job = (struct copy_job){ .parts = &all, .part_count = 1, .target = p.to, .min_sparse = 4096, .select = every_third, .select_arg = &total,
                             .progress = progress };
    last_done = 0;
    run_ok(co, &job, NULL);
    CHECK_EQ(last_done, SIZE);
    expect_bytes(co, p.to, want, SIZE);
    free(want);
    pair_close(co, &p);
}

static void refusals(struct co *co, void *arg)
{
    struct pair p;
    struct byre_err err;
    pair_make(co, &p, 7, true, 3);
    struct copy_part part = { p.from, 0, SIZE };
    struct copy_job good = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 4096 }, job = good;
    job.workers = COPY_WORKERS_MAX + 1;
    CHECK_EQ(copy_run(co, &job, NULL, &err), -EINVAL);
    job = good;
    job.min_sparse = 1000;
    CHECK_EQ(copy_run(co, &job, NULL, &err), -EINVAL);
    job = good;
    job.piece_bytes = 12345;
    CHECK_EQ(copy_run(co, &job, NULL, &err), -EINVAL);
    job = good;
    job.target_off = 512;
    CHECK_EQ(copy_run(co, &job, NULL, &err), -ENOSPC);
    job = good;
    job.target = p.under;
    p.under->read_only = true;
    CHECK_EQ(copy_run(co, &job, NULL, &err), -EROFS);
    part.off = 1;
    CHECK_EQ(copy_run(co, &good, NULL, &err), -EINVAL);
    part = (struct copy_part){ p.from, 0, 0 };
    CHECK_EQ(copy_run(co, &good, NULL, &err), 0);
    CHECK_EQ(p.t->bytes[0], 3);
    pair_close(co, &p);
}

/* ---- order ---- */

static uint64_t next_off;
static unsigned disorder, in_flight, most_in_flight;

static int watch_order(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_WRITE && op != TOY_ZERO)
        return 0;
    pthread_mutex_lock(&t->lock);
    disorder += off < next_off;
    next_off = off + len;
    most_in_flight = ++in_flight > most_in_flight ? in_flight : most_in_flight;
    pthread_mutex_unlock(&t->lock);
    (void)co_sleep(co, 100000 + off % 7 * 50000);
    pthread_mutex_lock(&t->lock);
    in_flight--;
    pthread_mutex_unlock(&t->lock);
    return 0;
}

static void order(struct co *co, void *arg)
{
    for (int free_order = 0; free_order < 2; free_order++) {
        struct pair p;
        pair_make(co, &p, 21, true, 3);
        struct copy_part part = { p.from, 0, SIZE };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 0, .piece_bytes = 65536,
                                .flags = free_order ? COPY_OUT_OF_ORDER : 0 };
        next_off = disorder = in_flight = most_in_flight = 0;
        p.t->hook = watch_order;
        run_ok(co, &job, NULL);
        p.t->hook = NULL;
        CHECK_EQ(most_in_flight > 1, free_order);
        CHECK_EQ(disorder > 0, free_order);
        expect_bytes(co, p.to, p.model, SIZE);
        pair_close(co, &p);
    }
}

/* ---- faults ---- */

static _Atomic int faults_left;
static int fail_nth(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    bool counts = op == *(enum toy_op *)t->hook_arg;
    return counts && atomic_fetch_sub(&faults_left, 1) == 0 ? -EIO : 0;
}

static void faults(struct co *co, void *arg)
{
    static const struct { enum toy_op op; bool at_source; } cases[] = {
        { TOY_READ, true }, { TOY_WRITE, false }, { TOY_ZERO, false }, { TOY_FLUSH, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int n = 0; n < 8; n++) {
            struct pair p;
            struct copy_result res;
            struct byre_err err = { 0 };
            pair_make(co, &p, 30 + i, true, 3);
            enum toy_op op = cases[i].op;
            struct toy *t = cases[i].at_source ? p.low->t : p.t;
            struct copy_part part = { p.from, 0, SIZE };
            struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 4096, .piece_bytes = 65536,
                                    .flags = n & 1 ? COPY_OUT_OF_ORDER : 0 };
            t->hook_arg = &op;
            faults_left = n;
            t->hook = fail_nth;
            int r = copy_run(co, &job, &res, &err);
            t->hook = NULL;
            if (op == TOY_FLUSH) {
                CHECK_EQ(r, n ? 0 : -EIO);
                flush_failed = r != 0;
            } else {
                CHECK_EQ(r, -EIO);
                CHECK_EQ(res.fail_read, cases[i].at_source);
                CHECK(res.fail_off < SIZE && strstr(err.text, cases[i].at_source ? "cannot read" : "cannot write"));
                CHECK_EQ(p.t->count[TOY_FLUSH], 0);
            }
            pair_close(co, &p);
        }
    }
}

/* ---- salvage ---- */

static uint64_t bad_off, bad_len;
static int bad_range(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_READ && off < bad_off + bad_len && bad_off < off + len ? -EIO : 0;
}

static uint64_t told_bytes;
static void salvaged(void *arg, uint64_t off, uint64_t len, int error)
{
    CHECK_EQ(error, -EIO);
    CHECK(off >= bad_off && off + len <= bad_off + bad_len);
    told_bytes += len;
}

static void salvage(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toy *from, *to;
    struct graph_node *a = toy_raw_node(co, g, SIZE, &from), *b = toy_raw_node(co, g, SIZE, &to);
    uint8_t *want = malloc(SIZE);
    memset(from->bytes, 0x55, SIZE);
    memset(to->bytes, 0x66, SIZE);
    memset(want, 0x55, SIZE);
    bad_off = 200 * SECTOR;
    bad_len = 300 * SECTOR;
    memset(want + bad_off, 0, bad_len);
    from->hook = bad_range;
    struct copy_part part = { a, 0, SIZE };
    struct copy_job job = { .parts = &part, .part_count = 1, .target = b, .min_sparse = 4096, .flags = COPY_SALVAGE, .salvaged = salvaged };
    struct copy_result res;
    told_bytes = 0;
    run_ok(co, &job, &res);
    CHECK_EQ(res.unreadable, bad_len);
    CHECK_EQ(told_bytes, bad_len);
    expect_bytes(co, b, want, SIZE);
    CHECK_EQ(graph_close(co, a), 0);
    CHECK_EQ(graph_close(co, b), 0);
    graph_free(g);
    free(want);
}

/* ---- cancel, rate ---- */

static _Atomic bool cancel_now;
static void cancel_half(void *arg, uint64_t done, uint64_t total)
{
    if (done > total / 2)
        atomic_store(&cancel_now, true);
}

static void cancelled(struct co *co, void *arg)
{
    struct pair p;
    struct byre_err err = { 0 };
    struct copy_result res;
    pair_make(co, &p, 41, true, 3);
    struct copy_part part = { p.from, 0, SIZE };
    struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 0, .piece_bytes = 65536, .progress = cancel_half,
                            .cancel = &cancel_now };
    atomic_store(&cancel_now, false);
    CHECK_EQ(copy_run(co, &job, &res, &err), -ECANCELED);
    CHECK(!strcmp(err.reason, "CANCELLED"));
    CHECK(res.written > SIZE / 4 && res.written < SIZE);
    CHECK_EQ(p.t->count[TOY_FLUSH], 0);
    pair_close(co, &p);
}

static void canceller(struct co *co, void *arg)
{
    struct rt_task *t = arg;
    (void)co_sleep(co, 50000000);
    rt_cancel(t);
}

struct task_copy { struct copy_job job; int result; };
static void task_main(struct co *co, void *arg)
{
    struct task_copy *tc = arg;
    tc->result = copy_run(co, &tc->job, NULL, NULL);
}

/* 2.4 MB at 10 MB/s take 0.2 s; a cancelled coroutine does not wait for that. */
static void rate(struct co *co, void *arg)
{
    struct pair p;
    pair_make(co, &p, 42, true, 3);
    struct copy_part part = { p.from, 0, SIZE };
    struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 0, .rate = 10000000 };
    uint64_t t = rt_now(co_loop(co));
    run_ok(co, &job, NULL);
    t = rt_now(co_loop(co)) - t;
    CHECK(t > 180000000 && t < 20000000000);
    struct task_copy tc = { job, 0 };
    struct rt_task task;
    tc.job.rate = 10000;
    t = rt_now(co_loop(co));
    CHECK_EQ(rt_task_start(co_loop(co), &task, task_main, &tc), 0);
    CHECK_EQ(rt_spawn(co_loop(co), canceller, &task), 0);
    rt_task_join(co, &task);
    CHECK_EQ(tc.result, -ECANCELED);
    CHECK(rt_now(co_loop(co)) - t < 20000000000);          /* of 240 s */
    pair_close(co, &p);
}

/* ---- hooks ---- */

struct hooked { unsigned steps, asked, busy; uint64_t bytes, off; bool read, leave; };

static int on_step(struct co *co, void *arg, uint64_t bytes)
{
    struct hooked *h = arg;
    CHECK_EQ(h->busy, 0);                        /* one at a time, though it suspends */
    h->busy = 1;
    co_yield(co);
    h->busy = 0;
    h->steps++;
    h->bytes += bytes;
    return 0;
}

static int on_failed(struct co *co, void *arg, const struct copy_failure *f)
{
    struct hooked *h = arg;
    co_yield(co);
    h->asked++;
    h->read = f->read;
    h->off = f->off;
    return h->leave ? COPY_LEAVE : h->asked < 3 ? 0 : f->error;
}

static uint64_t small_pieces(void *arg) { return 64 << 10; }

static int fail_again(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == *(enum toy_op *)t->hook_arg && atomic_fetch_sub(&faults_left, 1) > 0 ? -EIO : 0;
}

/* A request that fails is made again, or its piece is left out, or it is the end: as the hook says. */
static void hooks(struct co *co, void *arg)
{
    static const struct { enum toy_op op; bool leave; int faults, result; } cases[] = {
        { TOY_READ, false, 2, 0 }, { TOY_WRITE, false, 2, 0 }, { TOY_READ, false, 99, -EIO }, { TOY_WRITE, false, 99, -EIO }, { TOY_READ, true, 1, 0 },
        { TOY_READ, false, 0, 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair p;
        struct copy_result res;
        struct hooked h = { .leave = cases[i].leave };
        struct byre_err err = { 0 };
        pair_make(co, &p, 50 + i, true, 3);
        enum toy_op op = cases[i].op;
        struct toy *t = op == TOY_READ ? p.low->t : p.t;
        struct copy_part part = { p.from, 0, SIZE };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = p.to, .min_sparse = 4096, .flags = COPY_OUT_OF_ORDER,
                                .hooks = { .step = on_step, .failed = on_failed, .speed = small_pieces, .arg = &h } };
        t->hook_arg = &op;
        faults_left = cases[i].faults;
        t->hook = fail_again;
        CHECK_EQ(copy_run(co, &job, &res, &err), cases[i].result);
        t->hook = NULL;
        CHECK(h.steps > 0 && h.bytes > 0);
        CHECK_EQ(h.asked > 0, cases[i].faults > 0);
        CHECK(!h.asked || h.read == (op == TOY_READ));
        CHECK_EQ(res.left_out > 0, cases[i].leave);
        CHECK(res.left_out <= 8 << 10);          /* an eighth of the speed */
        if (!cases[i].result && !cases[i].leave)
            expect_bytes(co, p.to, p.model, SIZE);
        pair_close(co, &p);
    }
}

/* ---- a target with a backing image ---- */

static void backed(struct co *co, void *arg)
{
    for (int same_base = 0; same_base < 2; same_base++) {
        struct pair p;
        struct copy_result res;
        pair_make(co, &p, 50, true, 0);
        struct toyfmt *base = NULL, *top = toyfmt_new(co, SIZE, CLUSTER);
        struct graph_node *under = p.under;
        if (!same_base) {
            base = toyfmt_new(co, SIZE / 2, CLUSTER);
            under = toy_node(p.g, &base->im, NULL);
            for (uint32_t i = 0; i < base->clusters; i++) {
                uint8_t byte = p.model[(uint64_t)i * CLUSTER];
                toyfmt_set(base, i, FMT_DATA, false, i % 2 ? byte : 1);
            }
        }
        struct graph_node *to = toy_node(p.g, &top->im, under);
        struct copy_part part = { p.from, 0, SIZE };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = to, .min_sparse = 4096, .piece_bytes = 65536, .flags = COPY_BACKED };
        run_ok(co, &job, &res);
        expect_bytes(co, to, p.model, SIZE);
        CHECK_EQ(res.written + res.zeroed + res.skipped, SIZE);
        for (uint32_t i = 0; i < CLUSTERS; i++) {
            uint8_t below[CLUSTER];
            if (top->map[i].kind == FMT_ABSENT)
                continue;
            bool inside = (uint64_t)i * CLUSTER < graph_length(under);
            memset(below, 0, CLUSTER);
            if (inside)
                CHECK_EQ(t_read(co, under, below, CLUSTER, (uint64_t)i * CLUSTER), 0);
            CHECK(memcmp(below, p.model + (uint64_t)i * CLUSTER, CLUSTER) != 0);
        }
        CHECK_EQ(graph_close(co, to), 0);
        if (!same_base)
            CHECK_EQ(graph_close(co, under), 0);
        pair_close(co, &p);
    }
}

/* ---- files: the kernel copies ---- */

#define CLAIM_UNIT 65536u

static struct graph_node *file_node(struct co *co, struct graph *g, const char *name, uint64_t len)
{
    struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    struct fmt_open_opts fo = { 0 };
    struct stor *s = NULL;
    struct fmt_image *im = NULL;
    CHECK_EQ(stor_file_open(co, t_path(name), &so, &s, NULL), 0);
    CHECK_EQ(stor_truncate(co, s, len), 0);
    CHECK_EQ(fmt_raw_ops.open(co, s, &fo, &im, NULL), 0);
    return toy_node(g, im, NULL);
}

/* Zeros, but for `data` bytes behind the first MiB. To be freed. */
static uint8_t *holed(size_t bytes, size_t data)
{
    uint8_t *p = malloc(bytes);
    memset(p, 0, bytes);
    for (size_t i = 0; i < data; i++)
        p[(1 << 20) + i] = (uint8_t)(1 + i % 251);
    return p;
}

static void files(struct co *co, void *arg)
{
    enum { BYTES = 8 << 20, DATA = 3 << 20 };
    struct graph *g = toy_graph(co);
    uint8_t *data = holed(BYTES, DATA);
    struct graph_node *a = file_node(co, g, "a", BYTES);
    CHECK_EQ(t_write(co, a, data + (1 << 20), DATA, 1 << 20, 0), 0);
    for (int off = 0; off < 2; off++) {
        struct graph_node *b = file_node(co, g, "b", BYTES);
        struct copy_part part = { a, 0, BYTES };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = b, .min_sparse = 4096, .flags = COPY_TARGET_ZERO | (off ? COPY_OFFLOAD : 0) };
        struct copy_result res;
        struct stat st;
        run_ok(co, &job, &res);
        CHECK_EQ(res.offloaded, off ? DATA : 0);
        CHECK_EQ(res.written, DATA);
        CHECK_EQ(res.read, off ? 0 : DATA);
        expect_bytes(co, b, data, BYTES);
        CHECK_EQ(stat(t_path("b"), &st), 0);
        CHECK(st.st_blocks * 512 <= DATA + (1 << 17));
        CHECK_EQ(graph_close(co, b), 0);
    }
    CHECK_EQ(graph_close(co, a), 0);
    graph_free(g);
    free(data);
}

/* ---- claims: the kernel copies what is taken, and only that ---- */

struct held { struct copy_taken of[COPY_WORKERS_MAX]; unsigned takes, gives, unwritten; bool outside; };

static int hold(struct co *co, void *arg, const struct copy_taken *t)
{
    struct held *h = arg;
    CHECK_EQ(h->of[t->slot].len, 0);
    h->of[t->slot] = *t;
    h->takes++;
    return 0;
}

/* Whoever asks is about to write it. */
static bool all_wanted(void *arg, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct held *h = arg;
    bool is_held = false;
    for (unsigned i = 0; i < COPY_WORKERS_MAX; i++)
        is_held |= range_inside(from, 1, h->of[i].pos + h->of[i].len) && from >= h->of[i].pos;
    h->outside |= !is_held;
    *ret_start = from;
    *ret_end = round_up(from + 1, CLAIM_UNIT);
    return true;
}

static void let(void *arg, const struct copy_taken *t, bool written)
{
    struct held *h = arg;
    CHECK_EQ(h->of[t->slot].pos, t->pos);
    CHECK_EQ(h->of[t->slot].len, t->len);
    h->of[t->slot].len = 0;
    h->gives++;
    h->unwritten += !written;
}

/* With a target that is durable at each write the kernel cannot: what was taken for it is given back, and taken once more. */
static void offload_claims(struct co *co, void *arg)
{
    enum { BYTES = 8 << 20, DATA = 3 << 20 };
    struct graph *g = toy_graph(co);
    uint8_t *data = holed(BYTES, DATA);
    struct graph_node *a = file_node(co, g, "a", BYTES), *door = NULL;
    CHECK_EQ(t_write(co, a, data + (1 << 20), DATA, 1 << 20, 0), 0);
    for (int can = 0; can < 2; can++) {
        struct graph_node *b = file_node(co, g, "b", BYTES);
        struct held h = { 0 };
        b->writethrough = !can;
        CHECK_EQ(graph_attach(b, &(struct graph_attach_opts){ "copier", STOR_PERM_WRITE_UNCHANGED, STOR_PERM_ALL, true }, &door, NULL), 0);
        const struct copy_claims claims = { .unit = CLAIM_UNIT, .door = door, .take = hold, .wanted = all_wanted, .give = let, .arg = &h };
        struct copy_part part = { a, 0, BYTES };
        struct copy_job job = { .parts = &part, .part_count = 1, .target = b, .min_sparse = 4096, .claims = &claims,
                                .flags = COPY_TARGET_ZERO | COPY_OUT_OF_ORDER | COPY_NO_SPREAD | COPY_OFFLOAD };
        struct copy_result res;
        run_ok(co, &job, &res);
        CHECK(!h.outside);
        CHECK_EQ(h.takes, h.gives);
        CHECK_EQ(h.unwritten, can ? 0 : DATA >> 20);     /* a piece is 1 MiB */
        CHECK_EQ(res.offloaded, can ? DATA : 0);
        CHECK_EQ(res.read, can ? 0 : DATA);
        CHECK_EQ(graph_detach(co, door), 0);
        expect_bytes(co, b, data, BYTES);
        CHECK_EQ(graph_close(co, b), 0);
    }
    CHECK_EQ(graph_close(co, a), 0);
    graph_free(g);
    free(data);
}

/* The kernel must not copy a part of a new cluster whose rest comes from the backing image. */
static void offload_in_part(struct co *co, void *arg)
{
    enum { BYTES = 1 << 20, AT = 70000 - 70000 % 512, LEN = 30 * 512 };
    struct graph *g = toy_graph(co);
    char base[512], over[512];
    snprintf(base, sizeof base, "%s", t_path("base"));
    snprintf(over, sizeof over, "%s", t_path("over"));
    uint8_t *want = malloc(BYTES);
    memset(want, 0xbb, BYTES);
    struct graph_node *low = file_node(co, g, "base", BYTES), *src = file_node(co, g, "src", BYTES), *to = NULL;
    CHECK_EQ(t_write(co, low, want, BYTES, 0, 0), 0);
    CHECK_EQ(graph_close(co, low), 0);
    memset(want + AT, 0xcc, LEN);
    CHECK_EQ(t_write(co, src, want + AT, LEN, 0, 0), 0);
    struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    struct fmt_create_opts fo = { .size = BYTES, .version = 3, .backing_file = base, .backing_fmt = (char *)(uintptr_t)"raw" };
    struct stor *s = NULL;
    CHECK_EQ(stor_file_open(co, over, &so, &s, NULL), 0);
    CHECK_EQ(fmt_qcow2_ops.create(co, s, &fo, NULL), 0);
    stor_close(co, s);
    struct graph_open_opts oo = { .filename = over, .format = "qcow2" };
    CHECK_EQ(graph_open(co, g, &oo, &to, NULL), 0);
    struct copy_part part = { src, 0, LEN };
    struct copy_job job = { .parts = &part, .part_count = 1, .target = to, .target_off = AT, .min_sparse = 4096, .flags = COPY_OFFLOAD };
    run_ok(co, &job, NULL);
    expect_bytes(co, to, want, BYTES);
    CHECK_EQ(graph_close(co, to), 0);
    CHECK_EQ(graph_close(co, src), 0);
    graph_free(g);
    free(want);
}

#define RUN(fn, loop) static void test_##fn(void **state) { t_run(loop, fn, NULL); }
RUN(matrix, 0)
RUN(parts, 1)
RUN(refusals, 0)
RUN(order, 0)
RUN(faults, 1)
RUN(salvage, 0)
RUN(cancelled, 0)
RUN(rate, 0)
RUN(backed, 1)
RUN(hooks, 1)
RUN(files, 0)
RUN(offload_claims, 0)
RUN(offload_in_part, 0)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sparse), cmocka_unit_test(test_matrix), cmocka_unit_test(test_parts), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_order), cmocka_unit_test(test_faults), cmocka_unit_test(test_salvage), cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_rate), cmocka_unit_test(test_backed), cmocka_unit_test(test_files), cmocka_unit_test(test_offload_claims), cmocka_unit_test(test_offload_in_part), cmocka_unit_test(test_hooks),
    };
    return T_MAIN("copy", tests);
}
