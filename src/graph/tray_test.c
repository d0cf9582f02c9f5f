/* SPDX-License-Identifier: MIT
 *
 * tray_test.c: attachments with a tray.
 *
 * Purpose      Media that come and go step by step, another node in the place of a medium, what does not fit, and all of it while two loops make requests.
 * Owns         Nothing.
 * Invariants   T1  Owner i changes sector i alone, in whatever medium he meets.
 * Concurrency  The graph is homed on loop 0; owners on both loops. Meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/tray.h"

#define SIZE 65536u
#define OWNERS 6u

enum { R = STOR_PERM_READ, W = STOR_PERM_WRITE, ALL = STOR_PERM_ALL };

static struct graph_node *drive(struct graph_node *n, unsigned perm, bool idle)
{
    struct graph_node *a = NULL;
    struct byre_err err = { 0 };
    CHECK_EQ(graph_attach(n, &(struct graph_attach_opts){ .who = "a drive", .perm = perm, .shared = ALL, .idle = idle, .tray = true }, &a, &err), 0);
    return a;
}

static unsigned count_told(void *arg) { return *(const unsigned *)arg; }

static void put(struct co *co, struct graph_node *n, uint8_t byte)
{
    uint8_t b[SECTOR];
    memset(b, byte, sizeof b);
    CHECK_EQ(t_write(co, n, b, sizeof b, 0, 0), 0);
}

static void has(struct co *co, struct graph_node *n, uint8_t byte)
{
    uint8_t b[SECTOR] = { 0 };
    CHECK_EQ(t_read(co, n, b, sizeof b, 0), 0);
    CHECK(b[0] == byte && b[SECTOR - 1] == byte);
}

static void answers_nothing(struct co *co, struct graph_node *a)
{
    uint8_t b[SECTOR] = { 0 };
    struct graph_status st;
    struct graph_stats s;
    graph_stats_get(a, 0, &s);
    uint64_t invalid = s.of[GRAPH_STATS_READ].invalid + s.of[GRAPH_STATS_WRITE].invalid;
    CHECK_EQ(t_read(co, a, b, sizeof b, 0), -ENOMEDIUM);
    CHECK_EQ(t_write(co, a, b, sizeof b, 0, 0), -ENOMEDIUM);
    CHECK_EQ(graph_zero(co, a, 0, SECTOR, 0), -ENOMEDIUM);
    CHECK_EQ(graph_discard(co, a, 0, SECTOR), -ENOMEDIUM);
    CHECK_EQ(graph_status(co, a, NULL, 0, SECTOR, &st), -ENOMEDIUM);
    CHECK_EQ(graph_flush(co, a), 0);
    graph_stats_get(a, 0, &s);                   /* asked for nothing, and no failure of a disk */
    CHECK_EQ(s.of[GRAPH_STATS_READ].invalid + s.of[GRAPH_STATS_WRITE].invalid, invalid + 3);
    CHECK(!s.of[GRAPH_STATS_READ].failed && !s.of[GRAPH_STATS_WRITE].failed && !graph_io_status(a));
}

/* ---- step by step ---- */

static void steps(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct graph *g = toy_graph(co);
    struct toy *t, *u;
    struct graph_node *one = toy_raw_node(co, g, SIZE, &t), *two = toy_raw_node(co, g, 2 * SIZE, &u), *a = drive(one, R | W, false);
    put(co, a, 1);
    put(co, two, 2);
    unsigned flushes = t->count[TOY_FLUSH];
    CHECK(!graph_tray_is_open(a));
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK(graph_tray_is_open(a) && graph_attached(a) == one && t->count[TOY_FLUSH] == flushes + 1);
    answers_nothing(co, a);
    has(co, one, 1);                             /* others are answered */
    struct graph_stats s;
    graph_stats_get(one, 0, &s);
    CHECK(!s.of[GRAPH_STATS_READ].invalid && !s.of[GRAPH_STATS_READ].failed);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);   /* once more: nothing to do */
    CHECK_EQ(t->count[TOY_FLUSH], flushes + 1);
    graph_tray_close(co, a);
    has(co, a, 1);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    CHECK(!graph_attached(a) && !one->users && one->refs == 1 && graph_length(a) == SIZE && !*graph_attached_name(a));
    CHECK(!a->im->store && !a->im->data);        /* nothing of what may be closed now is left */
    answers_nothing(co, a);
    CHECK_EQ(graph_close(co, one), 0);
    graph_tray_close(co, a);
    answers_nothing(co, a);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    unsigned told = 1;
    const struct graph_tray_told by = { count_told, &told };
    CHECK_EQ(graph_tray_insert(co, a, two, &by, &err), byre_fail(NULL, BAD_SIZE, "."));
    CHECK(!graph_attached(a) && !two->users && two->refs == 1 && graph_length(a) == SIZE);
    told = 0;
    CHECK_EQ(graph_tray_insert(co, a, two, &by, &err), 0);
    CHECK(graph_attached(a) == two && two->users && two->refs == 2 && graph_length(a) == 2 * SIZE);
    answers_nothing(co, a);
    graph_tray_close(co, a);
    has(co, a, 2);
    CHECK_EQ(graph_close(co, two), 0);           /* the tray has it still, alone */
    has(co, a, 2);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK(list_empty(&g->nodes));
    graph_free(g);
}

/* ---- another node in the place of a medium that is in an open tray: the pivot of a mirror ---- */

static void follows(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct graph *g = toy_graph(co);
    struct toy *t, *u;
    struct graph_node *one = toy_raw_node(co, g, SIZE, &t), *two = toy_raw_node(co, g, SIZE, &u), *a = drive(one, R | W, false);
    put(co, a, 1);
    put(co, two, 2);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_replace_node(co, one, two, &err), 0);
    CHECK(graph_attached(a) == two && !one->users && one->refs == 1);
    CHECK_EQ(graph_close(co, one), 0);
    answers_nothing(co, a);
    graph_tray_close(co, a);
    has(co, a, 2);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, two), 0);
    CHECK(list_empty(&g->nodes));
    graph_free(g);
}

/* ---- what is refused, and changes nothing ---- */

static int flush_fails(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len) { return op == TOY_FLUSH ? -ENOSPC : 0; }

static void try(struct co *co, struct graph_node *a, struct graph_node *n, int want)
{
    struct byre_err err = { 0 };
    struct graph_user *users = n->users;
    unsigned refs = n->refs;
    CHECK_EQ(graph_tray_fits(a, n, NULL, &err), want);
    CHECK_EQ(graph_tray_insert(co, a, n, NULL, &err), want);
    CHECK(!graph_attached(a) && graph_tray_is_open(a) && n->users == users && n->refs == refs && graph_length(a) == SIZE);
    answers_nothing(co, a);
}

static void too_many_filters(struct co *co, struct graph *g, struct graph_node *a, struct graph_node *n)
{
    static const struct filter_ops plain = { .name = "plain" };
    struct graph_node *all[FILTERS_MAX];
    struct filter_new f = { .ops = &plain, .below = n };
    for (unsigned i = 0; i < FILTERS_MAX; i++) {
        CHECK_EQ(filter_new(g, &f, &all[i], NULL), 0);
        f.below = all[i];
    }
    try(co, a, f.below, byre_fail(NULL, LIMIT, "."));
    for (unsigned i = FILTERS_MAX; i--;)
        CHECK_EQ(graph_close(co, all[i]), 0);
    f.below = NULL;
    CHECK_EQ(filter_new(g, &f, all, NULL), 0);   /* over nothing */
    try(co, a, all[0], byre_fail(NULL, BAD_ARGUMENT, "."));
    CHECK_EQ(graph_close(co, all[0]), 0);
}

static void refused(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct graph *g = toy_graph(co);
    struct toy *t, *u;
    struct graph_node *one = toy_raw_node(co, g, SIZE, &t), *two = toy_raw_node(co, g, SIZE, &u), *a = drive(one, R | W, false);
    t->hook = flush_fails;
    put(co, a, 1);
    CHECK_EQ(graph_tray_open(co, a, &err), -ENOSPC);
    CHECK(!graph_tray_is_open(a) && graph_attached(a) == one);
    has(co, a, 1);                               /* a medium that cannot be made durable stays */
    CHECK_EQ(graph_detach(co, a), 0);
    a = drive(two, R | W, false);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    two->read_only = true;
    try(co, a, two, byre_fail(NULL, READ_ONLY, "."));
    two->read_only = false;
    two->inactive = true;
    try(co, a, two, byre_fail(NULL, PERMISSION, "."));
    two->inactive = false;
    struct graph_user alone = { .who = "a job", .perm = R, .shared = ALL & ~W };
    CHECK_EQ(graph_user_add(two, &alone, &err), 0);
    try(co, a, two, byre_fail(NULL, PERMISSION, "."));
    graph_user_remove(&alone);
    too_many_filters(co, g, a, two);
    CHECK_EQ(graph_tray_insert(co, a, two, NULL, &err), 0);
    CHECK_EQ(graph_user_add(two, &alone, &err), byre_fail(NULL, PERMISSION, "."));       /* it demands what it demanded, also in an open tray */
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_user_add(two, &alone, &err), 0);
    graph_user_remove(&alone);
    CHECK_EQ(graph_close(co, two), 0);
    (void)!graph_close(co, one);
    graph_free(g);
}

/* What was put aside for a medium that sleeps is asked of the next one, which is active. */
static void asleep(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct graph *g = toy_graph(co);
    struct toy *t, *u;
    struct graph_node *one = toy_raw_node(co, g, SIZE, &t), *two = toy_raw_node(co, g, SIZE, &u), *a = drive(one, R | W, true);
    put(co, a, 1);
    CHECK_EQ(graph_set_active(co, g, one, false, &err), 0);
    CHECK(a->backing_use.perm == R && a->backing_use.asleep == W);
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    try(co, a, one, byre_fail(NULL, PERMISSION, "."));
    CHECK_EQ(graph_tray_insert(co, a, two, NULL, &err), 0);
    CHECK(a->backing_use.perm == (R | W) && !a->backing_use.asleep);
    graph_tray_close(co, a);
    put(co, a, 2);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, one), 0);
    CHECK_EQ(graph_close(co, two), 0);
    graph_free(g);
}

/* ---- somebody is told a length while a medium waits for its turn ---- */

struct comes { struct graph *g; unsigned told; bool waits; };

static void comes_meanwhile(struct co *co, void *arg)
{
    struct comes *c = arg;
    graph_edges_hold(co, c->g);
    c->waits = true;
    (void)co_sleep(co, 2000000);
    c->told = 1;
    graph_edges_let(co, c->g);
}

static void told_late(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct comes c = { .g = toy_graph(co) };
    struct toy *t, *u;
    struct graph_node *one = toy_raw_node(co, c.g, SIZE, &t), *two = toy_raw_node(co, c.g, 2 * SIZE, &u), *a = drive(one, R, false);
    const struct graph_tray_told by = { count_told, &c.told };
    CHECK_EQ(graph_tray_open(co, a, &err), 0);
    CHECK_EQ(graph_tray_remove(co, a), 0);
    CHECK_EQ(rt_spawn(co_loop(co), comes_meanwhile, &c), 0);
    while (!c.waits)
        (void)co_sleep(co, 100000);
    CHECK_EQ(graph_tray_fits(a, two, &by, &err), 0);
    CHECK_EQ(graph_tray_insert(co, a, two, &by, &err), byre_fail(NULL, BAD_SIZE, "."));
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, one), 0);
    CHECK_EQ(graph_close(co, two), 0);
    graph_free(c.g);
}

/* ---- while requests go on ---- */

struct world { struct graph_node *a; _Atomic bool stop; _Atomic unsigned running; };
struct owner { struct world *w; unsigned id, done, nothing; };

static void owner_main(struct co *co, void *arg)
{
    struct owner *o = arg;
    uint8_t b[SECTOR], back[SECTOR];
    for (unsigned gen = 0; !atomic_load(&o->w->stop) || !o->done || !o->nothing; gen++) {
        memset(b, (int)(gen % 251), sizeof b);
        int r = gen % 5 == 4 ? graph_flush(co, o->w->a) : t_write(co, o->w->a, b, SECTOR, (uint64_t)o->id * SECTOR, 0);
        if (!r && gen % 5 < 4 && gen % 3 == 0)
            r = t_read(co, o->w->a, back, SECTOR, (uint64_t)o->id * SECTOR);
        CHECK(r == 0 || r == -ENOMEDIUM);
        o->done += !r && gen % 5 < 4;
        o->nothing += r != 0;
        co_yield(co);
    }
    atomic_fetch_sub(&o->w->running, 1);
}

static int takes_long(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op == TOY_WRITE || op == TOY_READ)
        (void)co_sleep(co, 30000);
    return 0;
}

/* A medium that is out is closed at once: whoever touched it would touch freed memory. */
static void change(struct co *co, struct world *w, struct graph *g, bool from_closed)
{
    struct byre_err err = { 0 };
    struct toy *t;
    unsigned told = OWNERS;
    const struct graph_tray_told by = { count_told, &told };
    struct graph_node *n = toy_raw_node(co, g, SIZE, &t);
    t->hook = takes_long;
    if (!from_closed)
        CHECK_EQ(graph_tray_open(co, w->a, &err), 0);
    (void)co_sleep(co, 50000);
    CHECK_EQ(graph_tray_remove(co, w->a), 0);
    (void)co_sleep(co, 50000);
    CHECK_EQ(graph_tray_open(co, w->a, &err), 0);
    CHECK_EQ(graph_tray_insert(co, w->a, n, &by, &err), 0);
    CHECK_EQ(graph_close(co, n), 0);
    graph_tray_close(co, w->a);
    (void)co_sleep(co, 200000);
}

static void load(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toy *t;
    struct graph_node *n = toy_raw_node(co, g, SIZE, &t);
    struct world w = { .a = drive(n, R | W, false), .running = OWNERS };
    struct owner owners[OWNERS];
    CHECK_EQ(graph_close(co, n), 0);
    for (unsigned i = 0; i < OWNERS; i++) {
        owners[i] = (struct owner){ .w = &w, .id = i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), owner_main, &owners[i]), 0);
    }
    for (unsigned i = 0; i < 200; i++)
        change(co, &w, g, i % 3 == 2);
    atomic_store(&w.stop, true);
    while (atomic_load(&w.running))
        change(co, &w, g, false);
    CHECK_EQ(graph_detach(co, w.a), 0);
    CHECK(list_empty(&g->nodes));
    graph_free(g);
}

static void test_steps(void **state) { t_run(0, steps, NULL); }
static void test_follows(void **state) { t_run(0, follows, NULL); }
static void test_refused(void **state) { t_run(0, refused, NULL); }
static void test_asleep(void **state) { t_run(0, asleep, NULL); }
static void test_told_late(void **state) { t_run(0, told_late, NULL); }
static void test_load(void **state) { t_run(0, load, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_steps), cmocka_unit_test(test_follows), cmocka_unit_test(test_refused), cmocka_unit_test(test_asleep),
                                               cmocka_unit_test(test_told_late), cmocka_unit_test(test_load) };
    return T_MAIN("tray", tests);
}
