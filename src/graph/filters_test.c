/* SPDX-License-Identifier: MIT
 *
 * filters_test.c: copy-on-read, blkdebug and compress over a format in memory.
 *
 * Purpose      Copy-on-read while owners on two loops write and read: nothing they wrote is lost, and what was read once is not asked of the
 *              layer below again (FEATURES 3.051, 11.028). Rules of blkdebug, each kind (3.052). Writes of whole clusters through compress (3.058).
 * Owns         Nothing.
 * Invariants   T1  Cluster c belongs to owner c % OWNERS: only he changes it; everybody reads.
 * Concurrency  The graph is homed on loop 0; owners on both loops.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "graph/filters.h"

#define CLUSTER 4096u
#define CLUSTERS 12u
#define SIZE (CLUSTERS * CLUSTER)
#define SECTORS (SIZE / SECTOR)
#define OWNERS 6u

static struct graph_node *make(struct co *co, const char *driver, struct graph_node *below, const char *options, int want)
{
    json_t *o = json_loads(options, 0, NULL);
    struct graph_node *n = NULL;
    struct byre_err err = { 0 };
    CHECK(o && filter_by_name(driver));
    int r = filter_by_name(driver)->make(co, below, o, &n, &err);
    CHECK_EQ(r, want);
    CHECK(!r || err.code == r);
    json_decref(o);
    return n;
}

static struct graph_node *attach(struct graph_node *n)
{
    struct graph_node *a = NULL;
    CHECK_EQ(graph_attach(n, &(struct graph_attach_opts){ "a client", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL }, &a, NULL), 0);
    return a;
}

/* ---- copy-on-read ---- */

struct world { struct graph_node *a; _Atomic unsigned running; unsigned round; };
struct owner { struct world *w; unsigned id; uint32_t gen[SECTORS]; };

static void fill(uint8_t *buf, uint32_t sector, uint32_t gen)
{
    uint64_t v = gen ? (uint64_t)(sector + 1) << 32 | gen : 0;
    for (unsigned i = 0; i < SECTOR; i += 8)
        memcpy(buf + i, &v, 8);
}

static void check_own(struct co *co, struct owner *o, uint32_t s)
{
    uint8_t buf[SECTOR], want[SECTOR];
    fill(want, s, o->gen[s]);
    CHECK_EQ(t_read(co, o->w->a, buf, SECTOR, (uint64_t)s * SECTOR), 0);
    CHECK(!memcmp(buf, want, SECTOR));
}

static void owner_step(struct co *co, struct owner *o, struct prng *rng)
{
    uint32_t per = CLUSTER / SECTOR, first = ((uint32_t)prng_below(rng, CLUSTERS / OWNERS) * OWNERS + o->id) * per, s = first + (uint32_t)prng_below(rng, per);
    uint8_t buf[SECTOR];
    switch (prng_below(rng, 8)) {
    case 0:
    case 1:
        fill(buf, s, ++o->gen[s]);
        CHECK_EQ(t_write(co, o->w->a, buf, SECTOR, (uint64_t)s * SECTOR, 0), 0);
        break;
    case 2:
    case 3:
        CHECK_EQ(graph_zero(co, o->w->a, (uint64_t)first * SECTOR, CLUSTER, 0), 0);
        for (uint32_t i = 0; i < per; i++)
            o->gen[first + i] = 0;
        break;
    case 4:
        check_own(co, o, s);
        break;
    default:                                      /* anybody's: it is written down while he changes it */
        CHECK_EQ(t_read(co, o->w->a, buf, SECTOR, prng_below(rng, SECTORS) * SECTOR), 0);
    }
}

static void owner_main(struct co *co, void *arg)
{
    struct owner *o = arg;
    struct prng rng;
    prng_init(&rng, o->id + 1 + o->w->round * 100);
    for (unsigned i = 0; i < 60; i++)
        owner_step(co, o, &rng);
    for (uint32_t s = 0; s < SECTORS; s++)
        if (s / (CLUSTER / SECTOR) % OWNERS == o->id)
            check_own(co, o, s);
    atomic_fetch_sub(&o->w->running, 1);
}

/* Low holds the first generation of every sector. */
static void fill_low(struct co *co, struct graph_node *low)
{
    uint8_t buf[SECTOR];
    for (uint32_t s = 0; s < SECTORS; s++) {
        fill(buf, s, 1);
        CHECK_EQ(t_write(co, low, buf, SECTOR, (uint64_t)s * SECTOR, 0), 0);
    }
}

/* Every cluster is written down at most once: many short lives. */
static void copy_round(struct co *co, unsigned round)
{
    struct graph *g = toy_graph(co);
    struct world w = { .running = OWNERS, .round = round };
    struct toyfmt *lf = toyfmt_new(co, SIZE, CLUSTER), *tf = toyfmt_new(co, SIZE, CLUSTER);
    struct prng delays[2];
    struct graph_node *low = toy_node(g, &lf->im, NULL), *top = toy_node(g, &tf->im, low);
    struct owner *o = calloc(OWNERS, sizeof *o);
    fill_low(co, low);
    prng_init(&delays[0], 9);
    prng_init(&delays[1], 10);
    lf->t->rng = &delays[0];
    tf->t->rng = &delays[1];
    lf->t->delay_ns = tf->t->delay_ns = 30000;
    struct graph_node *f = make(co, "copy-on-read", top, "{}", 0);
    w.a = attach(f);
    for (unsigned i = 0; i < OWNERS; i++) {
        o[i] = (struct owner){ .w = &w, .id = i };
        for (uint32_t s = 0; s < SECTORS; s++)
            o[i].gen[s] = 1;
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), owner_main, &o[i]), 0);
    }
    while (atomic_load(&w.running))
        (void)co_sleep(co, 1000000);
    lf->t->rng = tf->t->rng = NULL;
    unsigned reads = lf->t->count[TOY_READ];
    uint8_t *all = malloc(SIZE);
    CHECK_EQ(t_read(co, w.a, all, SIZE, 0), 0);
    CHECK_EQ(lf->t->count[TOY_READ], reads);      /* everything was read once: all of it is in the top */
    free(all);
    CHECK_EQ(graph_detach(co, w.a), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, top), 0);
    CHECK_EQ(graph_close(co, low), 0);
    graph_free(g);
    free(o);
}

static void copy_on_read(struct co *co, void *arg)
{
    for (unsigned round = 0; round < 100; round++)
        copy_round(co, round);
}

static void bottom(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f[3];
    struct graph_node *n[3] = { NULL }, *stray;
    struct fmt_extent e;
    char options[80];
    uint8_t buf[SECTOR];
    for (int i = 2; i >= 0; i--) {
        f[i] = toyfmt_new(co, SIZE, CLUSTER);
        n[i] = toy_node(g, &f[i]->im, i < 2 ? n[i + 1] : NULL);
    }
    stray = toy_node(g, &toyfmt_new(co, SIZE, CLUSTER)->im, NULL);
    toyfmt_set(f[1], 3, FMT_DATA, false, 3);
    toyfmt_set(f[2], 5, FMT_DATA, false, 5);
    snprintf(options, sizeof options, "{\"bottom\":\"%s\"}", stray->name);
    (void)make(co, "copy-on-read", n[0], options, -EINVAL);
    (void)make(co, "copy-on-read", n[0], "{\"bottom\":\"nobody\"}", -ENOENT);
    snprintf(options, sizeof options, "{\"bottom\":\"%s\"}", n[1]->name);
    struct graph_node *c = make(co, "copy-on-read", n[0], options, 0), *a = attach(c);
    CHECK_EQ(t_read(co, a, buf, SECTOR, 3 * CLUSTER), 0);
    CHECK_EQ(buf[0], 3);
    CHECK_EQ(t_read(co, a, buf, SECTOR, 5 * CLUSTER), 0);
    CHECK_EQ(buf[0], 5);
    CHECK(f[0]->im.ops->map(co, &f[0]->im, 3 * CLUSTER, CLUSTER, &e) == 0 && e.kind == FMT_DATA);
    CHECK(f[0]->im.ops->map(co, &f[0]->im, 5 * CLUSTER, CLUSTER, &e) == 0 && e.kind == FMT_ABSENT);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, c), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(graph_close(co, n[i]), 0);
    CHECK_EQ(graph_close(co, stray), 0);
    graph_free(g);
}

/* ---- blkdebug ---- */

static void errors(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct graph_node *low = toy_node(g, &toyfmt_new(co, SIZE, CLUSTER)->im, NULL);
    struct graph_node *f = make(co, "blkdebug", low, "{\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\",\"errno\":28,\"once\":true},"
                                "{\"event\":\"none\",\"iotype\":\"read\",\"sector\":9},{\"event\":\"none\",\"iotype\":\"flush\",\"errno\":30},"
                                "{\"event\":\"none\",\"iotype\":\"write-zeroes\",\"x-delay-ns\":30000000}]}", 0), *a = attach(f);
    uint8_t buf[CLUSTER] = { 1 };
    CHECK_EQ(t_write(co, a, buf, SECTOR, 0, 0), -ENOSPC);
    CHECK_EQ(t_write(co, a, buf, SECTOR, 0, 0), 0);
    CHECK_EQ(t_read(co, a, buf, CLUSTER, 0), 0);
    CHECK_EQ(t_read(co, a, buf, CLUSTER, CLUSTER), -EIO);
    CHECK_EQ(t_read(co, a, buf, SECTOR, 9 * SECTOR), -EIO);
    CHECK_EQ(t_read(co, a, buf, SECTOR, 10 * SECTOR), 0);
    CHECK_EQ(t_read(co, a, buf, SECTOR, 8 * SECTOR), 0);
    CHECK_EQ(graph_flush(co, a), -EROFS);
    uint64_t start = rt_now(co_loop(co));
    CHECK_EQ(graph_zero(co, a, 0, CLUSTER, 0), 0);
    CHECK(rt_now(co_loop(co)) - start >= 30000000);
    CHECK_EQ(graph_discard(co, a, 0, CLUSTER), 0);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, low), 0);
    graph_free(g);
}

/* ---- breakpoints ---- */

struct standing { struct graph_node *a; uint64_t off; _Atomic int result; };

static void stand_main(struct co *co, void *arg)
{
    struct standing *s = arg;
    uint8_t buf[SECTOR] = { 2 };
    atomic_store(&s->result, t_write(co, s->a, buf, SECTOR, s->off, 0));
}

/* Two loops, a request on each: they stand, and go on one by one, by their tags. */
static void breakpoints(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct graph_node *low = toy_node(g, &toyfmt_new(co, SIZE, CLUSTER)->im, NULL), *f = make(co, "blkdebug", low, "{}", 0), *a = attach(f);
    struct standing s[2] = { { a, 0, 1 }, { a, CLUSTER, 1 } };
    CHECK_EQ(graph_debug_break(low, "pwritev", "x"), -ENOTSUP);
    CHECK_EQ(graph_debug_break(a, "pwrite", "x"), -ENOENT);
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(graph_debug_break(a, "pwritev", i ? "y" : "x"), 0);
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i), stand_main, &s[i]), 0);
        CHECK_EQ(graph_debug_wait(co, a, i ? "y" : "x"), 0);
    }
    CHECK_EQ(graph_debug_resume(a, "z"), -ENOENT);
    CHECK_EQ(atomic_load(&s[0].result) + atomic_load(&s[1].result), 2);
    for (unsigned i = 2; i--;) {
        CHECK_EQ(graph_debug_resume(a, i ? "y" : "x"), 0);
        while (atomic_load(&s[i].result))
            co_yield(co);
        CHECK_EQ(atomic_load(&s[0].result), i);
    }
    CHECK_EQ(graph_debug_resume(a, "x"), -ENOENT);
    CHECK_EQ(graph_debug_break(a, "pwritev_done", "left"), 0);     /* it goes with the filter */
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, low), 0);
    graph_free(g);
}

/* ---- compress ---- */

static void compressed(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *tf = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *low = toy_node(g, &tf->im, NULL), *f = make(co, "compress", low, "{}", 0), *a = attach(f);
    struct fmt_extent e;
    uint8_t *buf = malloc(4 * CLUSTER), *back = malloc(4 * CLUSTER);
    memset(buf, 7, 4 * CLUSTER);
    CHECK_EQ(t_write(co, a, buf, 3 * CLUSTER + 100, CLUSTER - 100, 0), 0);       /* a tail, and three whole ones */
    CHECK_EQ(t_read(co, a, back, 3 * CLUSTER + 100, CLUSTER - 100), 0);
    CHECK(!memcmp(buf, back, 3 * CLUSTER + 100));
    unsigned encoded = 0;
    for (unsigned i = 0; i < 5; i++) {
        CHECK_EQ(tf->im.ops->map(co, &tf->im, (uint64_t)i * CLUSTER, CLUSTER, &e), 0);
        encoded += e.kind == FMT_ENCODED;
    }
    CHECK_EQ(encoded, 3);
    free(buf);
    free(back);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, low), 0);
    graph_free(g);
}

static void test_copy_on_read(void **state) { t_run(0, copy_on_read, NULL); }
static void test_bottom(void **state) { t_run(0, bottom, NULL); }
static void test_errors(void **state) { t_run(0, errors, NULL); }
static void test_breakpoints(void **state) { t_run(0, breakpoints, NULL); }
static void test_compressed(void **state) { t_run(0, compressed, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_errors), cmocka_unit_test(test_breakpoints), cmocka_unit_test(test_compressed), cmocka_unit_test(test_bottom),
                                               cmocka_unit_test(test_copy_on_read) };
    return T_MAIN("filters", tests);
}
