/* SPDX-License-Identifier: MIT
 *
 * stress_test.c: two loops on one image.
 *
 * Purpose      Writers, readers, zeroers and discarders on both loops over clusters that they share, with drains and
 *              flushes in between; every sector is checked against what its owner wrote last. Freed clusters are
 *              scribbled over after their grace period, so a request outside its section is seen.
 * Owns         Nothing.
 * Invariants   I1  In the first half of the disk sector s belongs to coroutine s % OWNERS: only that one changes it, all
 *                  read it. In the second half everybody writes, zeroes and discards what he likes: there a sector
 *                  must read as some state of that very sector.
 * Concurrency  As above; meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one. STRESS_ROUNDS=n makes it longer.
 */
#include "graph/toyfmt_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER 8192u
#define CLUSTERS 32u
#define SIZE (CLUSTERS * CLUSTER)
#define SECTORS (SIZE / SECTOR)
#define OWNERS 8u
#define OWNED (SECTORS / 2)

struct stress {
    struct graph *g;
    struct graph_node *top;
    struct toyfmt *f, *low;
    unsigned rounds;
    _Atomic unsigned running;
    struct prng delays;
};
struct owner { struct stress *s; unsigned id; uint32_t gen[SECTORS]; };    /* 0: zeros */

/* The bytes of a sector at one time; every 8 bytes the same. */
static uint64_t stamp(uint32_t sector, uint32_t gen) { return gen ? (uint64_t)(sector + 1) << 32 | gen : 0; }

static void fill_sector(uint8_t *buf, uint32_t sector, uint32_t gen)
{
    uint64_t v = stamp(sector, gen);
    for (unsigned i = 0; i < SECTOR; i += 8)
        memcpy(buf + i, &v, 8);
}

/* Is it one state of that sector, whole? */
static bool is_some_state(const uint8_t *buf, uint32_t sector)
{
    uint64_t v, w;
    memcpy(&v, buf, 8);
    for (unsigned i = 8; i < SECTOR; i += 8) {
        memcpy(&w, buf + i, 8);
        if (w != v)
            return false;
    }
    return !v || v >> 32 == sector + 1;
}

static void write_own(struct co *co, struct owner *o, uint32_t sector)
{
    uint8_t buf[SECTOR];
    fill_sector(buf, sector, ++o->gen[sector]);
    CHECK_EQ(t_write(co, o->s->top, buf, SECTOR, (uint64_t)sector * SECTOR, 0), 0);
}

static void check_own(struct co *co, struct owner *o, uint32_t sector)
{
    uint8_t buf[SECTOR], want[SECTOR];
    fill_sector(want, sector, o->gen[sector]);
    CHECK_EQ(t_read(co, o->s->top, buf, SECTOR, (uint64_t)sector * SECTOR), 0);
    CHECK(!memcmp(buf, want, SECTOR));
}

/* Reads across everybody's sectors. */
static void read_across(struct co *co, struct owner *o, struct prng *rng)
{
    uint32_t first = (uint32_t)prng_below(rng, SECTORS), n = 1 + (uint32_t)prng_below(rng, min_u64(SECTORS - first, 64));
    uint8_t *buf = malloc((size_t)n * SECTOR);
    CHECK_EQ(t_read(co, o->s->top, buf, (uint64_t)n * SECTOR, (uint64_t)first * SECTOR), 0);
    for (uint32_t i = 0; i < n; i++) {
        if (!is_some_state(buf + (size_t)i * SECTOR, first + i)) {
            CHECK_EQ(first + i, -1);
            break;
        }
    }
    free(buf);
}

/* A change of the second half: a write somewhere, or whole clusters dropped under the writers. */
static void change_any(struct co *co, struct owner *o, struct prng *rng)
{
    uint8_t buf[SECTOR];
    uint64_t half = SIZE / 2, cluster = half + prng_below(rng, half / CLUSTER) * CLUSTER;
    uint32_t sector = OWNED + (uint32_t)prng_below(rng, SECTORS - OWNED);
    switch (prng_below(rng, 6)) {
    case 0:
        CHECK_EQ(graph_zero(co, o->s->top, cluster, CLUSTER, GRAPH_UNMAP), 0);
        break;
    case 1:
        CHECK_EQ(graph_discard(co, o->s->top, cluster, CLUSTER), 0);
        break;
    default:
        fill_sector(buf, sector, 1 + (uint32_t)prng_below(rng, 1000));
        CHECK_EQ(t_write(co, o->s->top, buf, SECTOR, (uint64_t)sector * SECTOR, 0), 0);
    }
}

static void owner_main(struct co *co, void *arg)
{
    struct owner *o = arg;
    struct prng rng;
    prng_init(&rng, o->id + 1);
    for (unsigned i = 0; i < o->s->rounds; i++) {
        uint32_t sector = (uint32_t)prng_below(&rng, OWNED / OWNERS) * OWNERS + o->id;
        switch (prng_below(&rng, 12)) {
        case 0:
            CHECK_EQ(graph_zero(co, o->s->top, (uint64_t)sector * SECTOR, SECTOR, GRAPH_UNMAP), 0);
            o->gen[sector] = 0;
            break;
        case 1:
        case 2:
            read_across(co, o, &rng);
            break;
        case 3:
            check_own(co, o, sector);
            break;
        case 4:
            if (prng_one_in(&rng, 8))
                CHECK_EQ(graph_flush(co, o->s->top), 0);
            break;
        case 5:
        case 6:
        case 7:
        case 8:
            change_any(co, o, &rng);
            break;
        default:
            write_own(co, o, sector);
        }
    }
    for (uint32_t sector = o->id; sector < OWNED; sector += OWNERS)
        check_own(co, o, sector);
    atomic_fetch_sub(&o->s->running, 1);
}

/* Makes clusters shared now and then, so that their next write moves them, and drains. */
static void disturb(struct co *co, struct stress *s)
{
    struct prng rng;
    prng_init(&rng, 99);
    while (atomic_load(&s->running)) {
        (void)co_sleep(co, 200000);
        graph_drain_begin(co, s->top);
        pthread_mutex_lock(&s->f->lock);
        for (unsigned i = 0; i < 8; i++) {
            struct toyfmt_cluster *c = &s->f->map[prng_below(&rng, CLUSTERS)];
            c->shared = c->kind == FMT_DATA;
        }
        pthread_mutex_unlock(&s->f->lock);
        graph_drain_end(s->top);
    }
}

/* Some writes arrive late: what they were mapped to may be gone by then unless their section holds it. */
static int late_write(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op == TOY_WRITE && t->count[TOY_WRITE] % 8 == 0)
        (void)co_sleep(co, 2000000);
    return 0;
}

static void stress(struct co *co, void *arg)
{
    struct stress *s = calloc(1, sizeof *s);
    const char *rounds = getenv("STRESS_ROUNDS");
    s->rounds = rounds ? (unsigned)strtoul(rounds, NULL, 10) : 1500;
    s->g = toy_graph(co);
    s->low = toyfmt_new(co, SIZE, CLUSTER);
    s->f = toyfmt_new(co, SIZE, CLUSTER);
    s->f->cut = true;
    prng_init(&s->delays, 4);
    s->f->t->rng = &s->delays;
    s->f->t->delay_ns = 20000;
    s->f->t->hook = late_write;
    struct graph_node *under = toy_node(s->g, &s->low->im, NULL);
    s->top = toy_node(s->g, &s->f->im, under);
    s->running = OWNERS;
    struct owner *owners = calloc(OWNERS, sizeof *owners);
    for (unsigned i = 0; i < OWNERS; i++) {
        owners[i] = (struct owner){ .s = s, .id = i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), owner_main, &owners[i]), 0);
    }
    disturb(co, s);
    fprintf(stderr, "%u allocating writes, %u maps\n", s->f->begun, s->f->calls[TOYFMT_MAP]);
    CHECK(s->f->begun > 100);
    s->f->t->rng = NULL;
    s->f->t->hook = NULL;
    CHECK_EQ(graph_close(co, s->top), 0);
    CHECK_EQ(graph_close(co, under), 0);
    graph_free(s->g);
    free(owners);
    free(s);
}

static void test_stress(void **state) { t_run(0, stress, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_stress) };
    return T_MAIN("stress", tests);
}
