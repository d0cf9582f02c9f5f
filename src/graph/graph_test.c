/* SPDX-License-Identifier: MIT
 *
 * graph_test.c: drain and permissions.
 *
 * Purpose      Draining with requests in flight on two loops, nesting, a drained backing node; conflicts of users;
 *              resize against users and read-only nodes.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  The graph is homed on loop 0; requests come from both loops.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#define CLUSTER 4096u
#define SIZE (16u * CLUSTER)

/* ---- drain ---- */

struct drained {
    struct graph *g;
    struct graph_node *top, *low;
    struct toyfmt *f, *fl;
    _Atomic unsigned inside, finished;
    _Atomic bool quiet;                  /* a request that is in the store now is a fault */
};

static int slow_store(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct drained *d = t->hook_arg;
    CHECK(!atomic_load(&d->quiet));
    atomic_fetch_add(&d->inside, 1);
    (void)co_sleep(co, 2000000);
    CHECK(!atomic_load(&d->quiet));
    atomic_fetch_sub(&d->inside, 1);
    return 0;
}

static void requests(struct co *co, void *arg)
{
    struct drained *d = arg;
    uint8_t *buf = malloc(CLUSTER);
    memset(buf, 1, CLUSTER);
    for (unsigned i = 0; i < 12; i++) {
        uint64_t off = i % 16 * CLUSTER + 512;
        CHECK_EQ(i % 3 == 0 ? t_write(co, d->top, buf, 1024, off, 0) : t_read(co, d->top, buf, 1024, off), 0);
    }
    free(buf);
    atomic_fetch_add(&d->finished, 1);
}

static void drain_run(struct co *co, void *arg)
{
    struct drained *d = arg;
    for (unsigned i = 0; i < 6; i++)
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), requests, d), 0);
    for (unsigned round = 0; round < 4; round++) {
        struct graph_node *n = round & 1 ? d->low : d->top;
        (void)co_sleep(co, 3000000);
        graph_drain_begin(co, n);
        CHECK_EQ(d->inside, 0);
        atomic_store(&d->quiet, true);
        graph_drain_begin(co, d->top);
        (void)co_sleep(co, 5000000);
        graph_drain_end(d->top);
        (void)co_sleep(co, 5000000);
        CHECK_EQ(d->inside, 0);
        atomic_store(&d->quiet, false);
        graph_drain_end(n);
    }
    while (atomic_load(&d->finished) < 6)
        (void)co_sleep(co, 1000000);
    CHECK(!d->top->waiters && !d->top->gated);
}

static void drain(struct co *co, void *arg)
{
    struct drained *d = calloc(1, sizeof *d);
    d->g = toy_graph(co);
    d->fl = toyfmt_new(co, SIZE, CLUSTER);
    d->f = toyfmt_new(co, SIZE, CLUSTER);
    d->low = toy_node(d->g, &d->fl->im, NULL);
    d->top = toy_node(d->g, &d->f->im, d->low);
    for (uint32_t i = 0; i < 16; i += 2)
        toyfmt_set(d->fl, i, FMT_DATA, false, 9);
    d->f->t->hook = d->fl->t->hook = slow_store;
    d->f->t->hook_arg = d->fl->t->hook_arg = d;
    drain_run(co, d);
    d->f->t->hook = d->fl->t->hook = NULL;
    CHECK_EQ(graph_close(co, d->top), 0);
    CHECK_EQ(graph_close(co, d->low), 0);
    graph_free(d->g);
    free(d);
}

/* ---- permissions (FEATURES 11.002) ---- */

enum { R = STOR_PERM_READ, W = STOR_PERM_WRITE, U = STOR_PERM_WRITE_UNCHANGED, Z = STOR_PERM_RESIZE, ALL = STOR_PERM_ALL };

static void users(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct byre_err err = { 0 };
    struct graph_user reader = { .who = "reader", .perm = R, .shared = ALL & ~W }, writer = { .who = "writer", .perm = R | W, .shared = ALL },
                      jealous = { .who = "jealous", .perm = R, .shared = 0 }, job = { .who = "job", .perm = R | U, .shared = ALL };
    CHECK_EQ(graph_user_add(n, &reader, &err), 0);
    CHECK_EQ(graph_user_add(n, &writer, &err), -EPERM);
    CHECK(!strcmp(err.reason, "PERMISSION") && strstr(err.text, "reader") && strstr(err.text, "writer") && strstr(err.text, n->name));
    CHECK_EQ(graph_user_add(n, &job, &err), 0);
    CHECK_EQ(graph_user_add(n, &jealous, &err), -EPERM);
    CHECK(strstr(err.text, "jealous") && (strstr(err.text, "job") || strstr(err.text, "reader")));
    CHECK(!jealous.node && !writer.node);
    graph_user_remove(&reader);
    graph_user_remove(&reader);
    CHECK_EQ(graph_user_add(n, &writer, &err), 0);
    CHECK_EQ(graph_user_add(n, &reader, &err), -EPERM);
    CHECK(strstr(err.text, "reader") && strstr(err.text, "writer"));
    /* resize asks the users */
    CHECK_EQ(graph_resize(co, n, 2 * SIZE, FMT_PREALLOC_OFF, &err), 0);
    writer.shared = ALL & ~Z;
    CHECK_EQ(graph_resize(co, n, SIZE, FMT_PREALLOC_OFF, &err), -EPERM);
    CHECK(strstr(err.text, "writer") && strstr(err.text, "resize"));
    CHECK_EQ(graph_length(n), 2 * SIZE);
    graph_user_remove(&job);
    graph_user_remove(&writer);
    n->read_only = true;
    CHECK_EQ(graph_user_add(n, &writer, &err), -EROFS);
    CHECK_EQ(graph_user_add(n, &reader, &err), 0);
    graph_user_remove(&reader);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* A request that waits at a closed gate while the image is resized sees the new size. */
static void grow_later(struct co *co, void *arg)
{
    struct graph_node *n = arg;
    struct byre_err err;
    (void)co_sleep(co, 2000000);
    CHECK_EQ(graph_resize(co, n, 2 * SIZE, FMT_PREALLOC_OFF, &err), 0);
}

static void resize_under_load(struct co *co, void *arg)
{
    struct drained *d = calloc(1, sizeof *d);
    d->g = toy_graph(co);
    d->f = toyfmt_new(co, SIZE, CLUSTER);
    d->top = toy_node(d->g, &d->f->im, NULL);
    d->f->t->hook = slow_store;
    d->f->t->hook_arg = d;
    for (unsigned i = 0; i < 6; i++)
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), requests, d), 0);
    CHECK_EQ(rt_spawn(co_loop(co), grow_later, d->top), 0);
    while (atomic_load(&d->finished) < 6 || graph_length(d->top) == SIZE)
        (void)co_sleep(co, 1000000);
    (void)co_sleep(co, 5000000);
    uint8_t buf[512];
    CHECK_EQ(t_read(co, d->top, buf, 512, 2 * SIZE - 512), 0);
    CHECK_EQ(graph_close(co, d->top), 0);
    graph_free(d->g);
    free(d);
}

/* Requests that waited at the gate while the image shrank are judged by the new size. */
struct late { struct graph_node *n; int results[4]; _Atomic unsigned left; };

static void late_requests(struct co *co, void *arg)
{
    struct late *l = arg;
    uint8_t buf[512] = { 0 };
    unsigned k = atomic_fetch_sub(&l->left, 1) - 1;
    uint64_t off = SIZE - 512;
    l->results[k] = k == 0 ? t_read(co, l->n, buf, 512, off) : k == 1 ? t_write(co, l->n, buf, 512, off, 0)
                  : k == 2 ? graph_zero(co, l->n, off, 512, 0) : graph_discard(co, l->n, off, 512);
    atomic_fetch_add(&l->left, 16);
}

static void shrink_under_load(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct late l = { .n = n, .left = 4 };
    struct byre_err err;
    graph_drain_begin(co, n);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), late_requests, &l), 0);
    while (atomic_load(&l.left))
        (void)co_sleep(co, 1000000);
    (void)co_sleep(co, 5000000);                 /* they are at the gate, or on their way to it */
    CHECK_EQ(graph_resize(co, n, SIZE / 2, FMT_PREALLOC_OFF, &err), 0);
    graph_drain_end(n);
    while (atomic_load(&l.left) != 64)
        (void)co_sleep(co, 1000000);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(l.results[i], -EIO);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

#define RUN(fn, loop) static void test_##fn(void **state) { t_run(loop, fn, NULL); }
RUN(drain, 0)
RUN(users, 1)
RUN(resize_under_load, 0)
RUN(shrink_under_load, 1)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain), cmocka_unit_test(test_users), cmocka_unit_test(test_resize_under_load),
        cmocka_unit_test(test_shrink_under_load),
    };
    return T_MAIN("graph", tests);
}
