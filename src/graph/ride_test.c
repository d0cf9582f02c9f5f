/* SPDX-License-Identifier: MIT
 *
 * ride_test.c: small writes that go along with a copy of their cluster.
 *
 * Purpose      Who goes along, who does not, and what becomes of them when the copy fails.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  One loop, and two.
 * Failure      A failed check fails the test.
 * Tests        ride.c, fill.c
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#define CLUSTER 4096u
#define CLUSTERS 8u
#define SIZE ((uint64_t)CLUSTERS * CLUSTER)
#define GUESTS 6u

struct world {
    struct graph *g;
    struct toyfmt *low, *top;
    struct graph_node *under, *n;
    _Atomic bool read_stops, write_stops; /* requests of the layers' stores stand still */
    _Atomic unsigned reading, writing;    /* requests that have come there, in all */
    _Atomic int fail_writes, fail_reads;  /* so many of the next ones fail */
    _Atomic uint64_t read_bytes;          /* of the layer below */
};
struct guest { struct world *w; uint64_t off; uint32_t len; uint8_t byte; int result; _Atomic bool over; };

static int at_store(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct world *w = t->hook_arg;
    bool read = t == w->low->t;
    if (op != (read ? TOY_READ : TOY_WRITE))
        return 0;
    atomic_fetch_add(read ? &w->reading : &w->writing, 1);
    atomic_fetch_add(&w->read_bytes, read ? len : 0);
    while (atomic_load(read ? &w->read_stops : &w->write_stops))
        (void)co_sleep(co, 200000);
    return atomic_fetch_sub(read ? &w->fail_reads : &w->fail_writes, 1) > 0 ? -EIO : 0;
}

static struct world *world_new(struct co *co)
{
    struct world *w = calloc(1, sizeof *w);
    w->g = toy_graph(co);
    w->low = toyfmt_new(co, SIZE, CLUSTER);
    w->top = toyfmt_new(co, SIZE, CLUSTER);
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(w->low, i, FMT_DATA, false, (uint8_t)(i + 1));
    w->under = toy_node(w->g, &w->low->im, NULL);
    w->n = toy_node(w->g, &w->top->im, w->under);
    w->low->t->hook = w->top->t->hook = at_store;
    w->low->t->hook_arg = w->top->t->hook_arg = w;
    atomic_store(&w->read_stops, true);
    return w;
}

static void world_free(struct co *co, struct world *w)
{
    w->low->t->hook = w->top->t->hook = NULL;
    toyfmt_check(w->top);
    CHECK_EQ(graph_close(co, w->n), 0);
    CHECK_EQ(graph_close(co, w->under), 0);
    graph_free(w->g);
    free(w);
}

static void guest_co(struct co *co, void *arg)
{
    struct guest *g = arg;
    uint8_t *buf = malloc(g->len), *got = malloc(g->len);
    memset(buf, g->byte, g->len);
    g->result = t_write(co, g->w->n, buf, g->len, g->off, 0);
    if (!g->result) {                     /* R2: who has been answered reads what he wrote */
        CHECK_EQ(t_read(co, g->w->n, got, g->len, g->off), 0);
        CHECK(!memcmp(buf, got, g->len));
    }
    free(buf);
    free(got);
    atomic_store(&g->over, true);
}

static void start(struct co *co, struct guest *g, unsigned loop)
{
    CHECK_EQ(rt_spawn_on(rt_loop_at(rt_of(co_loop(co)), loop % rt_loop_count(rt_of(co_loop(co)))), guest_co, g), 0);
}

static unsigned on_board(struct world *w)
{
    unsigned count = 0;
    pthread_mutex_lock(&w->n->ride_lock);
    for (const struct ride *d = atomic_load(&w->n->rides); d; d = d->next)
        for (const struct rider *r = d->first; r; r = r->next)
            count++;
    pthread_mutex_unlock(&w->n->ride_lock);
    return count;
}

/* The first guest is at the point where his copy reads; then the others come, and so many of them go along. */
static void start_all(struct co *co, struct world *w, struct guest *g, unsigned n, unsigned riders)
{
    start(co, &g[0], 0);
    while (!atomic_load(&w->reading))
        (void)co_sleep(co, 100000);
    for (unsigned i = 1; i < n; i++)
        start(co, &g[i], i);
    while (on_board(w) < riders)
        (void)co_sleep(co, 100000);
}

static void finish_all(struct co *co, struct guest *g, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        while (!atomic_load(&g[i].over))
            (void)co_sleep(co, 100000);
}

/* Cluster `at` holds what the guests wrote, one after the other, and else what lies below. */
static void check_cluster(struct co *co, struct world *w, uint32_t at, const struct guest *g, unsigned n)
{
    uint8_t want[CLUSTER], got[CLUSTER];
    uint64_t off = (uint64_t)at * CLUSTER;
    memset(want, (int)at + 1, CLUSTER);
    for (unsigned i = 0; i < n; i++)
        if (!g[i].result && g[i].off >= off && g[i].off < off + CLUSTER)
            memset(want + (g[i].off - off), g[i].byte, g[i].len);
    CHECK_EQ(t_read(co, w->n, got, CLUSTER, off), 0);
    CHECK(!memcmp(want, got, CLUSTER));
}

static struct guest *guests(struct world *w)
{
    struct guest *g = calloc(GUESTS, sizeof *g);
    for (unsigned i = 0; i < GUESTS; i++)
        g[i] = (struct guest){ .w = w, .off = CLUSTER + i * SECTOR, .len = SECTOR, .byte = (uint8_t)(0xa0 + i), .result = 1 };
    return g;
}

/* All go along: one read, one write. Nobody is answered before it is over. */
static void together(struct co *co, void *arg)
{
    struct world *w = world_new(co);
    struct guest *g = guests(w);
    g[4].off = CLUSTER + 5 * SECTOR;      /* over the end of the cluster's data so far, two sectors long */
    g[4].len = 2 * SECTOR;
    g[5].off = CLUSTER + 7 * SECTOR;
    atomic_store(&w->write_stops, true);
    start_all(co, w, g, GUESTS, GUESTS - 1);
    CHECK_EQ(atomic_load(&w->reading), 1);
    atomic_store(&w->read_stops, false);
    while (!atomic_load(&w->writing))
        (void)co_sleep(co, 100000);
    (void)co_sleep(co, 5000000);
    for (unsigned i = 0; i < GUESTS; i++)
        CHECK(!atomic_load(&g[i].over));
    atomic_store(&w->write_stops, false);
    finish_all(co, g, GUESTS);
    CHECK_EQ(atomic_load(&w->writing), 1);
    CHECK_EQ(w->top->begun, 1);
    check_cluster(co, w, 1, g, GUESTS);
    free(g);
    world_free(co, w);
}

/* Who is ready to run is on board before anything is read: what they bring is not read. All of the cluster; its first half; and one that leaves a gap. */
static void spared(struct co *co, void *arg)
{
    static const struct { unsigned guests; uint32_t last; uint64_t bytes; } rows[] = { { 6, 3, 0 }, { 4, 1, CLUSTER / 2 }, { 2, 1, CLUSTER - SECTOR } };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        struct world *w = world_new(co);
        struct guest *g = guests(w);
        unsigned n = rows[k].guests;
        g[n - 1].len = rows[k].last * SECTOR;
        if (n == 2)
            g[1].off += 3 * SECTOR;
        atomic_store(&w->read_stops, false);
        for (unsigned i = 0; i < n; i++)
            CHECK_EQ(rt_spawn(co_loop(co), guest_co, &g[i]), 0);
        finish_all(co, g, n);
        CHECK_EQ(atomic_load(&w->read_bytes), rows[k].bytes);
        CHECK_EQ(atomic_load(&w->writing), 1);
        check_cluster(co, w, 1, g, n);
        free(g);
        world_free(co, w);
    }
}

/* Who reaches into another cluster, or into a granule that the copy does not write to, goes by himself. */
static void apart(struct co *co, void *arg)
{
    struct world *w = world_new(co);
    struct guest *g = guests(w);
    w->top->im.granule = 2 * SECTOR;
    g[1].off = CLUSTER + SECTOR;          /* the same granule */
    g[2].off = CLUSTER + 2 * SECTOR;      /* the next */
    g[3].off = CLUSTER + SECTOR;          /* from the one into the next */
    g[3].len = 2 * SECTOR;
    g[1].byte = g[2].byte = g[3].byte;    /* they overlap: any order will do */
    g[4].off = 3 * CLUSTER;               /* another cluster */
    start_all(co, w, g, 5, 1);
    atomic_store(&w->read_stops, false);
    finish_all(co, g, 5);
    CHECK_EQ(atomic_load(&w->writing), 4);
    for (unsigned i = 0; i < 5; i++)
        CHECK_EQ(g[i].result, 0);
    check_cluster(co, w, 3, g, 5);
    free(g);
    world_free(co, w);
}

/* The copy's write, or its read, fails: that is its own guest's matter; the others write by themselves. */
static void failing(struct co *co, void *arg)
{
    for (int what = 0; what < 2; what++) {
        struct world *w = world_new(co);
        struct guest *g = guests(w);
        atomic_store(what ? &w->fail_reads : &w->fail_writes, 1);
        start_all(co, w, g, GUESTS, GUESTS - 1);
        atomic_store(&w->read_stops, false);
        finish_all(co, g, GUESTS);
        CHECK_EQ(g[0].result, -EIO);
        for (unsigned i = 1; i < GUESTS; i++)
            CHECK_EQ(g[i].result, 0);
        check_cluster(co, w, 1, g, GUESTS);
        free(g);
        world_free(co, w);
    }
}

#define RUN(name) \
    static void test_##name(void **state) { t_run(0, name, NULL); t_run(1, name, NULL); }
RUN(together)
RUN(spared)
RUN(apart)
RUN(failing)

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_together), cmocka_unit_test(test_spared), cmocka_unit_test(test_apart), cmocka_unit_test(test_failing) };
    return T_MAIN("writes that go along", tests);
}
