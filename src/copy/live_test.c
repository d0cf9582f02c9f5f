/* SPDX-License-Identifier: MIT
 *
 * live_test.c: the copy of a disk that goes on being written.
 *
 * Purpose      Guests on two loops write, zero and discard while the copy runs, its mode changes, its target fails or stands still:
 *              whenever it says that it is clean and nobody is inside, both disks are the same, and hold what was last answered.
 * Owns         Nothing.
 * Invariants   T1  Sector s belongs to guest s % GUESTS, who knows what he has last written there; discarded ones may be anything,
 *                  the same on both sides.
 * Concurrency  Guests on both loops; meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one. LIVE_ROUNDS=n makes it longer.
 */
#include "graph/toyfmt_test.h"

#include <stdio.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "copy/live.h"

#define CLUSTER 4096u
#define CLUSTERS 128u
#define SIZE ((uint64_t)CLUSTERS * CLUSTER)
#define SECTORS ((uint32_t)(SIZE / SECTOR))
#define GUESTS 8u
#define UNKNOWN UINT32_MAX

struct world {
    struct graph *g;
    struct toyfmt *low, *src;
    struct graph_node *under, *from, *to;
    struct toy *t;                        /* of the target */
    _Atomic bool stop, rest;
    _Atomic unsigned running, resting;
    _Atomic int delay_ns;                 /* of the target's writes */
    _Atomic int fail_one_in;              /* ... which fail so often; 0: never */
    _Atomic bool stalled;
    _Atomic uint64_t rate, next_ns;       /* bytes per second that the target takes, one request after the other; 0: any */
    _Atomic unsigned failures;
    struct co_waitq woken;
    struct co_group alive;
    uint64_t longest_ns;
    _Atomic uint32_t gen[SECTORS];
};
struct guest { struct world *w; unsigned id; unsigned pause_ns; uint64_t longest_ns; bool small; unsigned count; };

static int target_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct world *w = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_ZERO)
        return 0;
    int delay = atomic_load(&w->delay_ns), one_in = atomic_load(&w->fail_one_in);
    if (delay)
        (void)co_sleep(co, (uint64_t)delay);
    if (atomic_load(&w->rate)) {
        uint64_t now = rt_now(co_loop(co)), next = atomic_load(&w->next_ns), at, cost = len * 1000000000 / atomic_load(&w->rate);
        do
            at = (next > now ? next : now) + cost;
        while (!atomic_compare_exchange_weak(&w->next_ns, &next, at));
        (void)co_sleep(co, at - now);
    }
    while (atomic_load(&w->stalled))
        (void)co_sleep(co, 1000000);
    if (one_in && (t->count[op] * 2654435761u >> 8) % (unsigned)one_in == 0) {
        atomic_fetch_add(&w->failures, 1);
        return -EIO;
    }
    return 0;
}

static void world_open(struct co *co, struct world *w, uint8_t old)
{
    w->g = toy_graph(co);
    w->low = toyfmt_new(co, SIZE, CLUSTER);
    w->src = toyfmt_new(co, SIZE, CLUSTER);
    w->src->cut = true;
    w->under = toy_node(w->g, &w->low->im, NULL);
    w->from = toy_node(w->g, &w->src->im, w->under);
    w->to = toy_raw_node(co, w->g, SIZE, &w->t);
    memset(w->t->bytes, old, SIZE);
    w->t->hook = target_hook;
    w->t->hook_arg = w;
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(w->low, i, i % 3 ? FMT_ABSENT : FMT_DATA, false, i % 3 ? 0 : (uint8_t)(i + 1));
    for (uint32_t s = 0; s < SECTORS; s++)
        w->gen[s] = UNKNOWN;
}

static void world_close(struct co *co, struct world *w)
{
    co_group_wait(co, &w->alive);
    w->t->hook = NULL;
    CHECK_EQ(graph_close(co, w->to), 0);
    CHECK_EQ(graph_close(co, w->from), 0);
    CHECK_EQ(graph_close(co, w->under), 0);
    graph_free(w->g);
    free(w);
}

static void on_wake(void *arg) { co_wake_all(&((struct world *)arg)->woken); }

static struct copy_live *begin(struct co *co, struct world *w, struct copy_live_opts o)
{
    struct byre_err err = { 0 };
    struct copy_live *l = NULL;
    o.source = w->from;
    o.target = w->to;
    o.wake = on_wake;
    o.arg = w;
    o.alive = &w->alive;
    if (!o.granularity_bits)
        o.granularity_bits = 13;
    if (copy_live_start(co, &o, &l, &err))
        fprintf(stderr, "%s\n", err.text);
    CHECK(l != NULL);
    return l;
}

static void scan_all(struct co *co, struct copy_live *l)
{
    for (uint64_t off = 0, len; off < SIZE; off += len)
        if (!CHECK_EQ(copy_live_scan(co, l, off, SIZE - off, &len), 0))
            break;
}

static bool wait_clean(struct co *co, struct world *w, struct copy_live *l, uint64_t ns)
{
    struct copy_live_state st;
    for (uint64_t end = rt_now(co_loop(co)) + ns; rt_now(co_loop(co)) < end; ) {
        copy_live_look(l, &st);
        if (st.error)
            copy_live_retry(l);
        if (st.clean)
            return true;
        (void)co_sleep(co, 200000);
    }
    return false;
}

/* ---- guests ---- */
static void fill_sector(uint8_t *buf, uint32_t sector, uint32_t gen)
{
    uint64_t v = gen ? (uint64_t)(sector + 1) << 32 | gen : 0;
    for (unsigned i = 0; i < SECTOR; i += 8)
        memcpy(buf + i, &v, 8);
}

/* The first sector of his from somewhere on. Changes that span several sectors lie in his own stretch of the disk. */
static void guest_step(struct co *co, struct guest *gu, struct prng *rng)
{
    struct world *w = gu->w;
    uint32_t stretch = SECTORS / GUESTS, first = gu->id * stretch + (uint32_t)prng_below(rng, stretch), n = 1 + (uint32_t)prng_below(rng, gu->small ? 2 : 40);
    n = (uint32_t)min_u64(n, (gu->id + 1) * stretch - first);
    uint64_t off = (uint64_t)first * SECTOR, len = (uint64_t)n * SECTOR;
    unsigned what = (unsigned)prng_below(rng, 12);
    uint64_t t0 = rt_now(co_loop(co));
    for (uint32_t i = 0; i < n; i++)
        w->gen[first + i] = UNKNOWN;      /* until it has ended: behind a gate it may have ended without us knowing */
    if (what == 0) {
        CHECK_EQ(graph_zero(co, w->from, off, len, prng_one_in(rng, 2) ? GRAPH_UNMAP : 0), 0);
        for (uint32_t i = 0; i < n; i++)
            w->gen[first + i] = 0;
    } else if (what == 1) {
        CHECK_EQ(graph_discard(co, w->from, off, len), 0);
    } else {
        uint8_t *buf = malloc(len);
        uint32_t gen = 1 + (uint32_t)prng_below(rng, 1u << 30);
        for (uint32_t i = 0; i < n; i++)
            fill_sector(buf + (size_t)i * SECTOR, first + i, gen);
        int r = t_write(co, w->from, buf, len, off, 0);
        CHECK(r == 0 || r == -ENOSPC);    /* the toy's space comes in single clusters after a while */
        memset(buf, 0x5c, len);           /* the guest has its memory back */
        free(buf);
        for (uint32_t i = 0; i < n; i++)
            w->gen[first + i] = r ? UNKNOWN : gen;
    }
    gu->longest_ns = max_u64(gu->longest_ns, rt_now(co_loop(co)) - t0);
    gu->count++;
}

static void guest_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    struct world *w = gu->w;
    struct prng rng;
    prng_init(&rng, gu->id + 77);
    while (!atomic_load(&w->stop)) {
        if (atomic_load(&w->rest)) {
            atomic_fetch_add(&w->resting, 1);
            while (atomic_load(&w->rest))
                (void)co_sleep(co, 100000);
            atomic_fetch_sub(&w->resting, 1);
        }
        guest_step(co, gu, &rng);
        if (gu->pause_ns)
            (void)co_sleep(co, prng_below(&rng, gu->pause_ns));
        else
            co_yield(co);
    }
    atomic_fetch_sub(&w->running, 1);
}

static void guests_start(struct world *w, struct guest *gu, unsigned pause_ns)
{
    w->running = GUESTS;
    for (unsigned i = 0; i < GUESTS; i++) {
        gu[i] = (struct guest){ .w = w, .id = i, .pause_ns = pause_ns, .small = i % 2 };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), guest_main, &gu[i]), 0);
    }
}

static void guests_stop(struct co *co, struct world *w)
{
    atomic_store(&w->stop, true);
    while (atomic_load(&w->running))
        (void)co_sleep(co, 100000);
}

/* Nobody is inside: both disks are the same, and as the guests know them. */
static void compare(struct co *co, struct world *w)
{
    uint8_t *a = malloc(SIZE), *b = malloc(SIZE), want[SECTOR];
    struct iovec slot;
    CHECK_EQ(chain_read(co, w->from, iov_one(&slot, a, SIZE), 0), 0);
    CHECK_EQ(chain_read(co, w->to, iov_one(&slot, b, SIZE), 0), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        fill_sector(want, s, w->gen[s]);
        bool same = !memcmp(a + s * SECTOR, b + s * SECTOR, SECTOR);
        bool right = w->gen[s] == UNKNOWN || !memcmp(b + s * SECTOR, want, SECTOR);
        if (!CHECK(same) || !CHECK(right)) {
            fprintf(stderr, "sector %u\n", s);
            break;
        }
    }
    free(a);
    free(b);
}

/* ---- tests ---- */

static void quiet(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 4; i++) {
        struct world *w = calloc(1, sizeof *w);
        struct copy_live_state st;
        world_open(co, w, i % 2 ? 0xff : 0);
        struct copy_live *l = begin(co, w, (struct copy_live_opts){ .min_sparse = i & 2 ? 4096 : 0, .blocking = i & 1 });
        copy_live_look(l, &st);
        CHECK(st.clean);
        scan_all(co, l);
        CHECK(wait_clean(co, w, l, 60000000000));
        compare(co, w);
        copy_live_look(l, &st);
        CHECK(st.copied <= SIZE && st.copied >= SIZE / 3 && !st.dirty && !st.in_flight);
        copy_live_stop(co, l);
        world_close(co, w);
    }
}
static void test_quiet(void **state) { t_run(0, quiet, NULL); }

static int streaming;                     /* the last word about the target's store; -1: none */

void __real_stor_stream(struct stor *s, bool on);
void __wrap_stor_stream(struct stor *s, bool on);
void __wrap_stor_stream(struct stor *s, bool on)
{
    streaming = on;
    __real_stor_stream(s, on);
}

/* Who waits for the end, to flush then, lets the disk begin before. */
static void streams(struct co *co, void *arg)
{
    (void)arg;
    struct world *w = calloc(1, sizeof *w);
    world_open(co, w, 0);
    streaming = -1;
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ 0 });
    CHECK_EQ(streaming, -1);
    copy_live_await(l, true);
    CHECK_EQ(streaming, 1);
    copy_live_await(l, false);
    CHECK_EQ(streaming, 0);
    copy_live_await(l, true);
    CHECK_EQ(streaming, 1);
    copy_live_stop(co, l);
    CHECK_EQ(streaming, 0);
    world_close(co, w);
}

static void test_streams(void **state) { t_run(0, streams, NULL); }

/* Modes change all the time; at some points the copy has to be right. */
static void modes(struct co *co, void *arg)
{
    const char *more = getenv("LIVE_ROUNDS");
    unsigned rounds = more ? (unsigned)strtoul(more, NULL, 10) : 100;
    struct world *w = calloc(1, sizeof *w);
    struct guest gu[GUESTS];
    struct prng rng;
    struct copy_live_state st;
    uint64_t carried = 0;
    unsigned clean = 0;
    prng_init(&rng, 5);
    world_open(co, w, 0xaa);
    w->delay_ns = 100000;
    guests_start(w, gu, 200000);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .min_sparse = 4096, .hold_ns = 3000000, .buf_bytes = 1 << 20 });
    scan_all(co, l);
    /* on a busy machine it takes more rounds until all of it has happened */
    for (unsigned i = 0; i < rounds || (i < 10 * rounds && !(carried > 100000 && clean && w->failures)); i++) {
        copy_live_set_blocking(l, i % 2);
        copy_live_set_rate(l, prng_one_in(&rng, 4) ? 20000000 : 0);
        copy_live_set_brake(l, prng_one_in(&rng, 3) ? 3000000 : 0);
        atomic_store(&w->fail_one_in, prng_one_in(&rng, 4) ? 50 : 0);
        copy_live_pause(l, prng_one_in(&rng, 10));
        atomic_store(&w->stalled, prng_one_in(&rng, 12));
        (void)co_sleep(co, 1000000 + prng_below(&rng, 5000000));
        copy_live_look(l, &st);
        carried = st.carried;
        if (st.error)
            copy_live_retry(l);
        copy_live_pause(l, false);
        atomic_store(&w->stalled, false);
        if (i % 5)
            continue;
        atomic_store(&w->fail_one_in, 0);
        if (i % 10 == 0) {                /* as a pivot does it: both sides at once, then the gate */
            copy_live_set_blocking(l, true);
            copy_live_set_brake(l, 0);
            (void)wait_clean(co, w, l, i < rounds ? 50000000 : 1000000000);
            graph_drain_begin(co, w->from);
            copy_live_look(l, &st);
            if (st.error)
                copy_live_retry(l);
            if (st.clean) {
                compare(co, w);
                clean++;
            }
            graph_drain_end(w->from);
        } else {
            atomic_store(&w->rest, true);
            while (atomic_load(&w->resting) < GUESTS)
                (void)co_sleep(co, 100000);
            if (CHECK(wait_clean(co, w, l, 60000000000)))
                compare(co, w);
            atomic_store(&w->rest, false);
        }
    }
    copy_live_look(l, &st);
    carried = st.carried;
    guests_stop(co, w);
    CHECK(wait_clean(co, w, l, 60000000000));
    compare(co, w);
    fprintf(stderr, "%llu bytes copied, %llu carried over, %u failed, %u times clean behind the gate\n", (unsigned long long)st.copied,
            (unsigned long long)carried, w->failures, clean);
    CHECK(carried > 100000 && clean > 0 && w->failures > 0);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_modes(void **state) { t_run(0, modes, NULL); }

/* A guest that never stops, and a slow target: the background copy never ends, the blocking one does. */
static void converges(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct guest gu[GUESTS];
    world_open(co, w, 0);
    w->delay_ns = 1000000;
    guests_start(w, gu, 0);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = false });
    scan_all(co, l);
    CHECK(!wait_clean(co, w, l, 300000000));
    copy_live_set_blocking(l, true);
    struct copy_live_state st;
    uint64_t end = rt_now(co_loop(co)) + 10000000000;
    do {
        (void)co_sleep(co, 1000000);
        copy_live_look(l, &st);
    } while (st.dirty > 8 * CLUSTER && rt_now(co_loop(co)) < end);           /* discards go on making some of it dirty */
    CHECK(st.dirty <= 8 * CLUSTER);
    guests_stop(co, w);
    CHECK(wait_clean(co, w, l, 60000000000));
    compare(co, w);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_converges(void **state) { t_run(0, converges, NULL); }

/* The target stands still: guests wait no longer than they may, and the end does not wait for it. */
static void stalled(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct guest gu[GUESTS];
    struct copy_live_state st;
    world_open(co, w, 0);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = true, .hold_ns = 50000000 });
    guests_start(w, gu, 1000000);
    (void)co_sleep(co, 5000000);
    atomic_store(&w->stalled, true);
    (void)co_sleep(co, 400000000);
    copy_live_look(l, &st);
    CHECK(!st.clean && st.dirty > 0);
    CHECK(st.longest_hold_ns >= 40000000);
    uint64_t t0 = rt_now(co_loop(co));
    copy_live_stop(co, l);
    CHECK(rt_now(co_loop(co)) - t0 < 20000000000);          /* the target stands still for ever */
    CHECK(w->alive.n == 1);               /* it is still about */
    guests_stop(co, w);
    for (unsigned i = 0; i < GUESTS; i++) {
        CHECK(gu[i].count > 4);
        CHECK(gu[i].longest_ns < 20000000000);
    }
    atomic_store(&w->stalled, false);
    world_close(co, w);
}
static void test_stalled(void **state) { t_run(0, stalled, NULL); }

/* The error of the target stands until it is taken; what failed is copied again. */
static void failing(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct copy_live_state st = { 0 };
    world_open(co, w, 0xff);
    w->fail_one_in = 1;
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = true });
    scan_all(co, l);
    for (int i = 0; i < 1000 && !st.error; i++) {
        (void)co_sleep(co, 1000000);
        copy_live_look(l, &st);
    }
    CHECK_EQ(st.error, -EIO);
    CHECK(!st.error_read && !st.clean && st.dirty > 0);
    unsigned before = w->failures;
    (void)co_sleep(co, 20000000);
    CHECK_EQ(w->failures, before);        /* no piece is begun */
    w->fail_one_in = 0;
    CHECK(wait_clean(co, w, l, 60000000000));
    compare(co, w);
    w->fail_one_in = 1;                   /* a change that cannot be carried over is the guest's success and the owner's error */
    uint8_t buf[SECTOR] = { 1 };
    CHECK_EQ(t_write(co, w->from, buf, SECTOR, 0, 0), 0);
    w->gen[0] = UNKNOWN;
    st.error = 0;
    for (int i = 0; i < 1000 && !st.error; i++) {
        (void)co_sleep(co, 1000000);
        copy_live_look(l, &st);
    }
    CHECK_EQ(st.error, -EIO);
    w->fail_one_in = 0;
    CHECK(wait_clean(co, w, l, 60000000000));
    compare(co, w);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_failing(void **state) { t_run(0, failing, NULL); }

/* Only what layers above the base hold: the base below is the target of an active commit. */
static void above(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct byre_err err = { 0 };
    struct copy_live *l;
    struct copy_live_state st;
    world_open(co, w, 0);
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(w->src, i, i % 4 == 1 ? FMT_DATA : i % 4 == 2 ? FMT_ZERO : FMT_ABSENT, false, 99);
    w->under->read_only = false;
    struct copy_live_opts o = { .source = w->from, .target = w->under, .above = w->under, .granularity_bits = 12, .alive = &w->alive };
    CHECK_EQ(copy_live_start(co, &o, &l, &err), 0);
    scan_all(co, l);
    CHECK(wait_clean(co, w, l, 60000000000));
    copy_live_look(l, &st);
    CHECK(st.copied >= CLUSTERS / 4 * CLUSTER && st.copied <= CLUSTERS / 2 * CLUSTER);
    uint8_t *a = malloc(SIZE), *b = malloc(SIZE);
    CHECK_EQ(t_read(co, w->from, a, SIZE, 0), 0);
    CHECK_EQ(t_read(co, w->under, b, SIZE, 0), 0);
    CHECK(!memcmp(a, b, SIZE));
    free(a);
    free(b);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_above(void **state) { t_run(0, above, NULL); }

static void braked(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct copy_live_state st, st2;
    struct guest gu[GUESTS];
    world_open(co, w, 0);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = false });
    scan_all(co, l);
    guests_start(w, gu, 0);
    (void)co_sleep(co, 50000000);
    copy_live_set_brake(l, 1000000);
    (void)co_sleep(co, 50000000);
    copy_live_look(l, &st);
    (void)co_sleep(co, 1000000000);
    copy_live_look(l, &st2);
    CHECK(st2.guest - st.guest > 500000 && st2.guest - st.guest < 1500000);
    copy_live_set_brake(l, 0);
    guests_stop(co, w);
    CHECK(wait_clean(co, w, l, 60000000000));
    compare(co, w);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_braked(void **state) { t_run(0, braked, NULL); }

/* Pieces leave room in the queue of a slow target for changes that go there as well. */
static void slow(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct copy_live_state st;
    uint64_t most = 0;
    world_open(co, w, 0xaa);
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(w->src, i, FMT_DATA, false, (uint8_t)(i + 1));
    atomic_store(&w->rate, 256 << 10);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = true });
    scan_all(co, l);
    (void)co_sleep(co, 1200000000);
    for (;;) {
        copy_live_look(l, &st);
        most = st.in_flight > most ? st.in_flight : most;
        if (st.clean)
            break;
        (void)co_sleep(co, 10000000);
    }
    if (!CHECK(most > 0 && most <= 128 << 10))
        fprintf(stderr, "%" PRIu64 " bytes in flight\n", most);
    copy_live_stop(co, l);
    compare(co, w);
    world_close(co, w);
}
static void test_slow(void **state) { t_run(0, slow, NULL); }

/* Who waits for his requests one by one has what the brake allows, all the same. */
static void credit(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    uint8_t buf[1024] = { 1 };
    struct iovec slot;
    world_open(co, w, 0);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = true });
    atomic_store(&w->delay_ns, 30000000);
    copy_live_set_brake(l, 20 << 10);                 /* 50 ms each; 80 ms if the wait began behind the request */
    uint64_t done = 0, most = 0, begun = rt_now(co_loop(co)), end = begun;
    for (unsigned second = 0; second < 30 && most <= 15 << 10; second++) {        /* other work on the machine only makes it less */
        uint64_t before = done;
        for (end = rt_now(co_loop(co)) + 1000000000; rt_now(co_loop(co)) < end; done += sizeof buf)
            CHECK_EQ(graph_write(co, w->from, iov_one(&slot, buf, sizeof buf), 0, 0), 0);
        most = max_u64(most, done - before);
    }
    CHECK(most > 15 << 10);
    CHECK(done < (4 << 10) + (20 << 10) * (rt_now(co_loop(co)) - begun) / 1000000000);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_credit(void **state) { t_run(0, credit, NULL); }

/* Many write to one granule; whoever drains the disk when it is calm finds it clean. */
static void crowd_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    uint8_t buf[SECTOR] = { (uint8_t)gu->id };
    struct iovec slot;
    while (!atomic_load(&gu->w->stop))
        CHECK_EQ(graph_write(co, gu->w->from, iov_one(&slot, buf, sizeof buf), gu->id * SECTOR, 0), 0);
    atomic_fetch_sub(&gu->w->running, 1);
}

static void crowd(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct guest gu[GUESTS];
    struct copy_live_state st;
    unsigned tries = 0, clean = 0;
    world_open(co, w, 0);
    struct copy_live *l = begin(co, w, (struct copy_live_opts){ .blocking = true });
    atomic_store(&w->delay_ns, 3000000);
    for (unsigned i = 0; i < GUESTS; i++) {
        gu[i] = (struct guest){ .w = w, .id = i };
        atomic_fetch_add(&w->running, 1);
        CHECK_EQ(rt_spawn(co_loop(co), crowd_main, &gu[i]), 0);
    }
    for (uint64_t end = rt_now(co_loop(co)) + 5000000000; tries < 20 && rt_now(co_loop(co)) < end; (void)co_sleep(co, 7000000)) {
        copy_live_look(l, &st);
        if (!st.calm)
            continue;
        graph_drain_begin(co, w->from);
        copy_live_look(l, &st);
        tries++;
        clean += st.clean;
        graph_drain_end(w->from);
    }
    CHECK(tries == 20 && clean >= 19);
    atomic_store(&w->stop, true);
    while (atomic_load(&w->running))
        (void)co_sleep(co, 1000000);
    copy_live_stop(co, l);
    world_close(co, w);
}
static void test_crowd(void **state) { t_run(0, crowd, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quiet), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_above),
        cmocka_unit_test(test_failing),
        cmocka_unit_test(test_stalled),
        cmocka_unit_test(test_braked),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_converges),
        cmocka_unit_test(test_modes),
    };
    return T_MAIN("live", tests);
}
