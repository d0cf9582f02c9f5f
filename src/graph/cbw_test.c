/* SPDX-License-Identifier: MIT
 *
 * cbw_test.c: copy-before-write and snapshot-access over formats in memory.
 *
 * Purpose      Whatever guests on two loops write, what snapshot-access shows is the disk of the first moment, while somebody drains, takes the filter
 *              out and puts it in, and while ranges are claimed and copied by others; a target that fails or stands still does what the policy says.
 * Owns         Nothing.
 * Invariants   T1  Before the first moment every sector holds its own number; afterwards a writer's.
 * Concurrency  The graph is homed on loop 0; guests on both loops.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "graph/cbw_priv.h"
#include "graph/filters.h"

#define CLUSTER 65536u
#define CLUSTERS 40u
#define SIZE ((uint64_t)CLUSTERS * CLUSTER)
#define GUESTS 4u

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

static int attach_for(struct graph_node *n, unsigned perm, struct graph_node **ret_a)
{
    return graph_attach(n, &(struct graph_attach_opts){ "a client", perm, STOR_PERM_ALL, false }, ret_a, NULL);
}

static struct graph_node *attach(struct graph_node *n)
{
    struct graph_node *a = NULL;
    CHECK_EQ(attach_for(n, STOR_PERM_READ | STOR_PERM_WRITE, &a), 0);
    return a;
}

/* ---- the world ---- */

struct world {
    struct graph *g;
    struct toyfmt *sf, *tf;
    struct graph_node *source, *target, *cbw, *view, *disk, *look;
    _Atomic unsigned running;
    _Atomic bool stop;
    unsigned seed;
    struct prng delays[2];
};

static void fill_old(uint8_t *buf, uint64_t off, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += 8)
        memcpy(buf + i, &(uint64_t){ (off + i) / SECTOR + 1 }, 8);
}

/* Clusters that are a multiple of 5 are absent: zeros. */
static bool is_hole(uint64_t off) { return off / CLUSTER % 5 == 0; }

static void expect_old(const uint8_t *buf, uint64_t off, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += SECTOR) {
        uint64_t v, want = is_hole(off + i) ? 0 : (off + i) / SECTOR + 1;
        memcpy(&v, buf + i, 8);
        if (!CHECK_EQ(v, want))
            return;
    }
}

static void world_open(struct co *co, struct world *w, const char *options)
{
    char text[400];
    uint8_t *buf = malloc(CLUSTER);
    w->g = toy_graph(co);
    w->sf = toyfmt_new(co, SIZE, CLUSTER);
    w->tf = toyfmt_new(co, SIZE, CLUSTER);
    w->source = toy_node(w->g, &w->sf->im, NULL);
    w->target = toy_node(w->g, &w->tf->im, NULL);
    for (uint64_t off = 0; off < SIZE; off += CLUSTER) {
        fill_old(buf, off, CLUSTER);
        if (!is_hole(off))
            CHECK_EQ(t_write(co, w->source, buf, CLUSTER, off, 0), 0);
    }
    free(buf);
    w->disk = attach(w->source);
    snprintf(text, sizeof text, "{\"target\":\"%s\"%s%s}", w->target->name, *options ? "," : "", options);
    w->cbw = make(co, "copy-before-write", w->source, text, 0);
    CHECK_EQ(graph_replace_node(co, w->source, w->cbw, NULL), 0);
    CHECK(graph_attached(w->disk) == w->cbw);
    w->view = make(co, "snapshot-access", w->cbw, "{}", 0);
    CHECK_EQ(attach_for(w->view, STOR_PERM_READ, &w->look), 0);
}

static void world_close(struct co *co, struct world *w)
{
    w->sf->t->rng = w->tf->t->rng = NULL;
    CHECK_EQ(graph_detach(co, w->look), 0);
    CHECK_EQ(graph_close(co, w->view), 0);
    CHECK_EQ(graph_detach(co, w->disk), 0);
    CHECK_EQ(graph_close(co, w->cbw), 0);
    toyfmt_check(w->sf);
    toyfmt_check(w->tf);
    CHECK_EQ(graph_close(co, w->source), 0);
    CHECK_EQ(graph_close(co, w->target), 0);
    graph_free(w->g);
}

static void delay(struct world *w, uint64_t ns)
{
    prng_init(&w->delays[0], w->seed + 1);
    prng_init(&w->delays[1], w->seed + 2);
    w->sf->t->rng = &w->delays[0];
    w->tf->t->rng = &w->delays[1];
    w->sf->t->delay_ns = w->tf->t->delay_ns = ns;
}

/* ---- guests and readers ---- */

struct guest { struct world *w; unsigned id; };

static void guest_step(struct co *co, struct guest *gu, struct prng *rng, uint8_t *buf)
{
    uint64_t len = (1 + prng_below(rng, prng_one_in(rng, 4) ? 6 * CLUSTER / SECTOR : 8)) * SECTOR, off = prng_below(rng, (SIZE - len) / SECTOR + 1) * SECTOR;
    switch (prng_below(rng, 6)) {
    case 0:
        CHECK_EQ(graph_zero(co, gu->w->disk, off, len, GRAPH_UNMAP), 0);
        break;
    case 1:
        CHECK_EQ(graph_discard(co, gu->w->disk, off, len), 0);
        break;
    case 2:
        CHECK_EQ(t_read(co, gu->w->disk, buf, len, off), 0);
        break;
    default:
        memset(buf, 0xa0 + (int)gu->id, len);
        CHECK_EQ(t_write(co, gu->w->disk, buf, len, off, 0), 0);
    }
}

static void guest_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    struct prng rng;
    uint8_t *buf = malloc(6 * CLUSTER + SECTOR);
    prng_init(&rng, gu->w->seed * 16 + gu->id);
    for (unsigned i = 0; i < 40; i++)
        guest_step(co, gu, &rng, buf);
    free(buf);
    atomic_fetch_sub(&gu->w->running, 1);
}

static void look_at_status(struct co *co, struct world *w, uint64_t off)
{
    struct graph_status st;
    CHECK_EQ(graph_status(co, w->look, NULL, off, SIZE - off, &st), 0);
    for (uint64_t at = off; st.zero && at < off + st.len; at += SECTOR)
        CHECK(is_hole(at));
}

static void reader_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    struct prng rng;
    uint8_t *buf = malloc(8 * CLUSTER);
    prng_init(&rng, gu->w->seed * 16 + gu->id);
    while (!atomic_load(&gu->w->stop)) {
        uint64_t len = (1 + prng_below(&rng, 8 * CLUSTER / SECTOR)) * SECTOR, off = prng_below(&rng, (SIZE - len) / SECTOR + 1) * SECTOR;
        if (prng_one_in(&rng, 3)) {
            CHECK_EQ(t_read(co, gu->w->look, buf, len, off), 0);
            expect_old(buf, off, len);
        }
        for (unsigned i = 0; i < 30; i++)
            look_at_status(co, gu->w, prng_below(&rng, SIZE / SECTOR) * SECTOR);
    }
    free(buf);
    atomic_fetch_sub(&gu->w->running, 1);
}

static void start(struct world *w, struct guest *all, unsigned count, void (*fn)(struct co *co, void *arg))
{
    for (unsigned i = 0; i < count; i++) {
        all[i].w = w;
        all[i].id += i;
        atomic_fetch_add(&w->running, 1);
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), fn, &all[i]), 0);
    }
}

static void read_all_old(struct co *co, struct graph_node *n)
{
    uint8_t *all = malloc(SIZE);
    CHECK_EQ(t_read(co, n, all, SIZE, 0), 0);
    expect_old(all, 0, SIZE);
    free(all);
}

/* While they run: drains of either side, of both, and a filter of another kind that comes and goes. */
static void disturb(struct co *co, struct world *w, struct prng *rng)
{
    struct graph_node *n[3] = { w->source, w->target, w->cbw };
    unsigned a = (unsigned)prng_below(rng, 3), b = (unsigned)prng_below(rng, 3);
    graph_drain_begin(co, n[a]);
    graph_drain_begin(co, n[b]);
    graph_drain_end(n[a]);
    graph_drain_end(n[b]);
    struct graph_node *f = make(co, "blkdebug", n[a], "{}", 0);
    CHECK_EQ(graph_replace_node(co, n[a], f, NULL), 0);
    CHECK_EQ(graph_remove_filter(co, f, NULL), 0);
    CHECK_EQ(graph_close(co, f), 0);
}

static void frozen_round(struct co *co, unsigned seed)
{
    struct world w = { .seed = seed };
    struct guest guests[GUESTS] = { { NULL, 0 } }, readers[2] = { { NULL, 8 }, { NULL, 8 } };
    struct prng rng;
    prng_init(&rng, seed);
    world_open(co, &w, seed % 2 ? "" : "\"on-cbw-error\":\"break-snapshot\",\"cbw-timeout\":30");
    delay(&w, 20000);
    start(&w, guests, GUESTS, guest_main);
    start(&w, readers, 2, reader_main);
    while (atomic_load(&w.running) > 2) {
        disturb(co, &w, &rng);
        (void)co_sleep(co, 300000);
    }
    atomic_store(&w.stop, true);
    while (atomic_load(&w.running))
        (void)co_sleep(co, 300000);
    read_all_old(co, w.look);
    CHECK_EQ(cbw_broken(graph_cbw(w.cbw)), 0);
    world_close(co, &w);
}

static void frozen(struct co *co, void *arg)
{
    for (unsigned i = 1; i <= 12; i++)
        frozen_round(co, i);
}

/* ---- copies beside it ---- */

struct copier { struct world *w; struct graph_node *from, *to; };

/* As the copy engine does it: read, claim, write what is todo still, end. */
static void copier_main(struct co *co, void *arg)
{
    struct copier *c = arg;
    struct cbw *cb = graph_cbw(c->w->cbw);
    uint8_t *buf = malloc(2 * CLUSTER);
    uint64_t start, end, from = 0;
    while (cbw_next(cb, from, &start, &end)) {
        struct cbw_claim claim;
        uint64_t s, e;
        end = min_u64(end, start + 2 * CLUSTER);
        CHECK_EQ(t_read(co, c->from, buf, end - start, start), 0);
        CHECK_EQ(cbw_claim(co, cb, &claim, start, end - start), 0);
        for (uint64_t at = start; at < end && cbw_next(cb, at, &s, &e) && s < end; at = e)
            CHECK_EQ(t_write(co, c->to, buf + (s - start), min_u64(e, end) - s, s, 0), 0);
        cbw_claim_end(&claim, true);
        from = end;
    }
    free(buf);
    atomic_fetch_sub(&c->w->running, 1);
}

static void beside_round(struct co *co, unsigned seed)
{
    struct world w = { .seed = seed + 100 };
    struct guest guests[GUESTS] = { { NULL, 0 } };
    struct copier c = { .w = &w };
    struct prng rng;
    prng_init(&rng, seed);
    world_open(co, &w, "");
    CHECK_EQ(graph_attach(w.source, &(struct graph_attach_opts){ "copier", STOR_PERM_READ, STOR_PERM_ALL, false }, &c.from, NULL), 0);
    CHECK_EQ(graph_attach(w.target, &(struct graph_attach_opts){ "copier", STOR_PERM_WRITE_UNCHANGED, STOR_PERM_ALL, true }, &c.to, NULL), 0);
    delay(&w, 20000);
    start(&w, guests, GUESTS, guest_main);
    atomic_fetch_add(&w.running, 1);
    CHECK_EQ(rt_spawn(co_loop(co), copier_main, &c), 0);
    while (atomic_load(&w.running)) {
        disturb(co, &w, &rng);
        (void)co_sleep(co, 200000);
    }
    CHECK_EQ(cbw_left(graph_cbw(w.cbw)), 0);
    CHECK_EQ(graph_detach(co, c.from), 0);
    CHECK_EQ(graph_detach(co, c.to), 0);
    read_all_old(co, w.look);
    read_all_old(co, w.target);
    world_close(co, &w);
}

static void beside(struct co *co, void *arg)
{
    for (unsigned i = 1; i <= 12; i++)
        beside_round(co, i);
}

/* ---- an answer that is late ---- */

static int (*real_map)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
static _Atomic bool map_waits, map_is_there;

static int late_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    if (off == 7 * CLUSTER && atomic_exchange(&map_waits, false)) {
        atomic_store(&map_is_there, true);
        while (atomic_load(&map_is_there))
            (void)co_sleep(co, 1000000);
    }
    return real_map(co, im, off, len, ret_e);
}

static void looker_main(struct co *co, void *arg)
{
    struct world *w = arg;
    look_at_status(co, w, 7 * CLUSTER);
    atomic_fetch_sub(&w->running, 1);
}

/* A status is asked of the source; before the answer comes a guest has made zeros of it. */
static void late_answer(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    world_open(co, &w, "");
    struct fmt_ops ops = *w.sf->im.ops;
    const struct fmt_ops *before = w.sf->im.ops;
    real_map = ops.map;
    ops.map = late_map;
    w.sf->im.ops = &ops;
    atomic_store(&map_waits, true);
    atomic_fetch_add(&w.running, 1);
    CHECK_EQ(rt_spawn(co_loop(co), looker_main, &w), 0);
    while (!atomic_load(&map_is_there))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(graph_zero(co, w.disk, 7 * CLUSTER, CLUSTER, GRAPH_UNMAP), 0);
    atomic_store(&map_is_there, false);
    while (atomic_load(&w.running))
        (void)co_sleep(co, 1000000);
    w.sf->im.ops = before;
    world_close(co, &w);
}

/* ---- targets that fail, or stand still ---- */

struct stall { _Atomic bool on; _Atomic int fail; _Atomic unsigned waiting; };

static int stall_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct stall *s = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_ZERO)
        return 0;
    atomic_fetch_add(&s->waiting, 1);
    while (atomic_load(&s->on))
        (void)co_sleep(co, 5000000);
    atomic_fetch_sub(&s->waiting, 1);
    return atomic_load(&s->fail);
}

static void with_stall(struct world *w, struct stall *s)
{
    w->tf->t->hook = stall_hook;
    w->tf->t->hook_arg = s;
}

static void break_guest(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct stall s = { .fail = -ENOSPC };
    uint8_t buf[SECTOR] = { 9 };
    world_open(co, &w, "\"cbw-timeout\":1");
    with_stall(&w, &s);
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, CLUSTER, 0), -ENOSPC);
    read_all_old(co, w.source);                  /* it did not happen */
    atomic_store(&s.fail, 0);
    atomic_store(&s.on, true);
    uint64_t t0 = rt_now(co_loop(co));
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, CLUSTER, 0), -EIO);
    uint64_t took = rt_now(co_loop(co)) - t0;
    CHECK(took >= 1000000000 && took < 30000000000);
    graph_drain_begin(co, w.source);             /* what is left alone holds nobody up there */
    graph_drain_end(w.source);
    atomic_store(&s.on, false);
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, CLUSTER, 0), 0);
    read_all_old(co, w.look);
    world_close(co, &w);
}

/* The second copy of one change begins when somebody drains the target already, and is left alone: it is waited for, too. */
struct late { struct world *w; _Atomic unsigned writes; _Atomic bool first, second, drained; };

static int late_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct late *l = t->hook_arg;
    unsigned nth = op == TOY_WRITE ? ++l->writes : 3;
    while ((nth == 1 && !atomic_load(&l->first)) || (nth == 2 && !atomic_load(&l->second)))
        (void)co_sleep(co, 1000000);
    return 0;
}

static void late_drain(struct co *co, void *arg)
{
    struct late *l = arg;
    graph_drain_begin(co, l->w->target);
    atomic_store(&l->drained, true);
    graph_drain_end(l->w->target);
}

static void late_write(struct co *co, void *arg)
{
    struct late *l = arg;
    uint8_t *buf = calloc(3, CLUSTER);
    CHECK_EQ(t_write(co, l->w->disk, buf, 3 * CLUSTER, 4 * CLUSTER, 0), -EIO);
    free(buf);
    atomic_fetch_sub(&l->w->running, 1);
}

static void left_alone(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct late l = { .w = &w };
    world_open(co, &w, "\"cbw-timeout\":1");
    w.tf->t->hook = late_hook;
    w.tf->t->hook_arg = &l;
    atomic_fetch_add(&w.running, 1);
    CHECK_EQ(rt_spawn(co_loop(co), late_write, &l), 0);
    while (!atomic_load(&l.writes))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(rt_spawn(co_loop(co), late_drain, &l), 0);
    (void)co_sleep(co, 20000000);
    atomic_store(&l.first, true);
    while (atomic_load(&w.running))
        (void)co_sleep(co, 1000000);
    (void)co_sleep(co, 50000000);
    CHECK_EQ(l.writes, 2);
    CHECK(!atomic_load(&l.drained));
    atomic_store(&l.second, true);
    while (!atomic_load(&l.drained))
        (void)co_sleep(co, 1000000);
    read_all_old(co, w.look);
    world_close(co, &w);
}

/* A copy asks for its claim while the target is drained; by the time it may go on the filter was taken out and closed. */
struct asker { struct cbw *cb; bool asked, done; int r; };

static void ask_claim(struct co *co, void *arg)
{
    struct asker *a = arg;
    struct cbw_claim claim;
    a->asked = true;
    a->r = cbw_claim(co, a->cb, &claim, 0, CLUSTER);
    if (!a->r)
        cbw_claim_end(&claim, false);
    a->done = true;
}

static void closed_under_a_claim(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct asker a = { NULL };
    world_open(co, &w, "");
    a.cb = graph_cbw(w.cbw);
    cbw_ref(a.cb);
    graph_drain_begin(co, w.target);
    CHECK_EQ(rt_spawn(co_loop(co), ask_claim, &a), 0);
    while (!a.asked)
        co_yield(co);
    cbw_stop(a.cb);
    CHECK_EQ(graph_detach(co, w.look), 0);
    CHECK_EQ(graph_close(co, w.view), 0);
    CHECK_EQ(graph_remove_filter(co, w.cbw, NULL), 0);
    CHECK(graph_attached(w.disk) == w.source);
    CHECK_EQ(graph_close(co, w.cbw), 0);
    (void)co_sleep(co, 5000000);
    CHECK(!a.done);
    graph_drain_end(w.target);
    while (!a.done)
        (void)co_sleep(co, 1000000);
    CHECK_EQ(a.r, -ECANCELED);
    cbw_unref(a.cb);
    CHECK_EQ(graph_detach(co, w.disk), 0);
    toyfmt_check(w.sf);
    toyfmt_check(w.tf);
    CHECK_EQ(graph_close(co, w.source), 0);
    CHECK_EQ(graph_close(co, w.target), 0);
    graph_free(w.g);
}

static void break_snapshot(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct stall s = { .on = true };
    uint8_t buf[SECTOR] = { 9 }, back[SECTOR];
    struct graph_status st;
    world_open(co, &w, "\"on-cbw-error\":\"break-snapshot\",\"cbw-timeout\":3");
    with_stall(&w, &s);
    uint64_t t0 = rt_now(co_loop(co));
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, CLUSTER, 0), 0);
    CHECK(rt_now(co_loop(co)) - t0 < 30000000000);
    CHECK_EQ(cbw_broken(graph_cbw(w.cbw)), -ETIMEDOUT);
    t0 = rt_now(co_loop(co));
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, 2 * CLUSTER, 0), 0);       /* nothing is waited for any more */
    CHECK(rt_now(co_loop(co)) - t0 < 3000000000);                      /* the time limit of a copy */
    CHECK_EQ(t_read(co, w.disk, back, SECTOR, CLUSTER), 0);
    CHECK_EQ(back[0], 9);
    CHECK_EQ(t_read(co, w.look, back, SECTOR, 7 * CLUSTER), -EACCES);
    CHECK_EQ(graph_status(co, w.look, NULL, 0, SIZE, &st), -EACCES);
    atomic_store(&s.on, false);
    while (atomic_load(&s.waiting))
        (void)co_sleep(co, 1000000);
    world_close(co, &w);
}

/* Two changes of one granule: the first breaks the snapshot while the second waits to copy, and is the new content then. */
struct second { struct world *w; struct cbw *cb; _Atomic unsigned writes; };

static int second_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct second *s = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_ZERO)
        return 0;
    atomic_fetch_add(&s->writes, 1);
    while (co_waitq_empty(&s->cb->moved))
        (void)co_sleep(co, 1000000);
    return -ENOSPC;
}

static void second_write(struct co *co, void *arg)
{
    struct second *s = arg;
    uint8_t buf[SECTOR] = { 8 };
    while (!atomic_load(&s->writes))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(t_write(co, s->w->disk, buf, SECTOR, CLUSTER + SECTOR, 0), 0);
    atomic_fetch_sub(&s->w->running, 1);
}

static void break_beside(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct second s = { .w = &w };
    uint8_t buf[SECTOR] = { 9 };
    world_open(co, &w, "\"on-cbw-error\":\"break-snapshot\"");
    s.cb = graph_cbw(w.cbw);
    w.tf->t->hook = second_hook;
    w.tf->t->hook_arg = &s;
    atomic_fetch_add(&w.running, 1);
    CHECK_EQ(rt_spawn(co_loop(co), second_write, &s), 0);
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, CLUSTER, 0), 0);
    while (atomic_load(&w.running))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(cbw_broken(s.cb), -ENOSPC);
    CHECK_EQ(s.writes, 1);                       /* nothing new has gone to the target */
    uint64_t start, end;
    CHECK(cbw_next(s.cb, CLUSTER, &start, &end) && start == CLUSTER);
    w.tf->t->hook = NULL;
    world_close(co, &w);
}

/* ---- parts, discards, permissions ---- */

static void parts(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    char text[300];
    uint8_t *buf = calloc(1, 2 * CLUSTER);
    struct graph_status st;
    world_open(co, &w, "");
    CHECK_EQ(graph_bitmap_add(co, w.source, &(struct graph_bitmap_spec){ .name = "b", .granularity = 65536 }, NULL), 0);
    memset(buf, 0xee, SECTOR);
    CHECK_EQ(t_write(co, w.disk, buf, SECTOR, 3 * CLUSTER, 0), 0);
    struct toyfmt *tf = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *t2 = toy_node(w.g, &tf->im, NULL), *look;
    snprintf(text, sizeof text, "{\"target\":\"%s\",\"bitmap\":{\"node\":\"%s\",\"name\":\"b\"}}", t2->name, w.source->name);
    struct graph_node *f = make(co, "copy-before-write", w.cbw, text, 0);
    CHECK_EQ(graph_replace_node(co, w.cbw, f, NULL), 0);
    struct graph_node *view = make(co, "snapshot-access", f, "{}", 0);
    CHECK_EQ(attach_for(view, STOR_PERM_READ | STOR_PERM_WRITE, &look), 0);
    memset(buf, 0xdd, 2 * CLUSTER);
    CHECK_EQ(t_write(co, w.disk, buf, 2 * CLUSTER, 3 * CLUSTER, 0), 0);
    CHECK_EQ(t_read(co, look, buf, SECTOR, 3 * CLUSTER), 0);
    CHECK_EQ(buf[0], 0xee);                      /* as it was when this filter began */
    CHECK_EQ(t_read(co, look, buf, SECTOR, 4 * CLUSTER), -EACCES);
    CHECK_EQ(t_read(co, look, buf, 2 * SECTOR, 4 * CLUSTER - SECTOR), -EACCES);
    CHECK_EQ(tf->map[3].kind, FMT_DATA);
    CHECK_EQ(tf->map[4].kind, FMT_ABSENT);
    CHECK_EQ(t_write(co, look, buf, SECTOR, 3 * CLUSTER, 0), -EACCES);
    CHECK_EQ(graph_zero(co, look, 3 * CLUSTER, CLUSTER, 0), -EACCES);
    CHECK_EQ(graph_discard(co, look, 3 * CLUSTER + SECTOR, CLUSTER - SECTOR), 0);        /* no whole granule */
    CHECK_EQ(t_read(co, look, buf, SECTOR, 3 * CLUSTER), 0);
    CHECK_EQ(graph_discard(co, look, 3 * CLUSTER, CLUSTER), 0);
    CHECK_EQ(t_read(co, look, buf, SECTOR, 3 * CLUSTER), -EACCES);
    CHECK_EQ(graph_status(co, look, NULL, 3 * CLUSTER, CLUSTER, &st), -EACCES);
    CHECK(tf->map[3].kind != FMT_DATA);
    CHECK_EQ(graph_detach(co, look), 0);
    CHECK_EQ(graph_close(co, view), 0);
    CHECK_EQ(graph_remove_filter(co, f, NULL), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, t2), 0);
    read_all_old(co, w.look);
    CHECK_EQ(graph_discard(co, w.look, 0, SIZE), 0);
    unsigned writes = w.tf->t->count[TOY_WRITE];
    CHECK_EQ(t_write(co, w.disk, buf, CLUSTER, 7 * CLUSTER, 0), 0);      /* nobody wants it any more */
    CHECK_EQ(w.tf->t->count[TOY_WRITE], writes);
    world_close(co, &w);
    free(buf);
}

/* Nobody writes past the filter while somebody uses it; before, anybody may. */
static void permissions(struct co *co, void *arg)
{
    struct world w = { .seed = 1 };
    struct graph_node *other = NULL;
    char text[200];
    world_open(co, &w, "");
    CHECK_EQ(attach_for(w.source, STOR_PERM_READ | STOR_PERM_WRITE, &other), -EPERM);
    CHECK_EQ(attach_for(w.source, STOR_PERM_READ, &other), 0);
    CHECK_EQ(graph_detach(co, other), 0);
    CHECK_EQ(attach_for(w.target, STOR_PERM_WRITE, &other), -EPERM);
    CHECK_EQ(attach_for(w.cbw, STOR_PERM_WRITE, &other), 0);
    CHECK_EQ(graph_resize(co, w.source, SIZE / 2, FMT_PREALLOC_OFF, NULL), -EPERM);
    /* two writers go over together */
    struct graph_node *t2 = toy_node(w.g, &toyfmt_new(co, SIZE, CLUSTER)->im, NULL);
    snprintf(text, sizeof text, "{\"target\":\"%s\"}", t2->name);
    struct graph_node *f = make(co, "copy-before-write", w.cbw, text, 0);
    (void)make(co, "snapshot-access", f, "{}", -EPERM);                  /* two write past it still */
    CHECK_EQ(graph_replace_node(co, w.cbw, f, NULL), 0);
    CHECK(graph_attached(w.disk) == f && graph_attached(other) == f);
    CHECK_EQ(graph_remove_filter(co, f, NULL), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_detach(co, other), 0);
    (void)make(co, "copy-before-write", w.source, "{}", -EINVAL);
    (void)make(co, "copy-before-write", w.source, "{\"target\":\"nobody\"}", -ENOENT);
    snprintf(text, sizeof text, "{\"target\":\"%s\"}", w.source->name);
    (void)make(co, "copy-before-write", w.source, text, -EINVAL);
    (void)make(co, "copy-before-write", w.cbw, text, -EINVAL);
    snprintf(text, sizeof text, "{\"target\":\"%s\",\"min-cluster-size\":3000}", t2->name);
    (void)make(co, "copy-before-write", w.source, text, -EINVAL);
    (void)make(co, "snapshot-access", w.source, "{}", -EINVAL);
    struct toyfmt *sf = toyfmt_new(co, SIZE / 2, CLUSTER);
    struct graph_node *small = toy_node(w.g, &sf->im, NULL);
    snprintf(text, sizeof text, "{\"target\":\"%s\"}", small->name);
    (void)make(co, "copy-before-write", w.source, text, -EINVAL);
    CHECK_EQ(graph_set_backing(co, t2, w.view, NULL), 0);                /* as any image */
    CHECK_EQ(graph_set_backing(co, w.target, t2, NULL), -ELOOP);
    CHECK_EQ(graph_close(co, small), 0);
    CHECK_EQ(graph_close(co, t2), 0);
    world_close(co, &w);
}

static void test_frozen(void **state) { t_run(0, frozen, NULL); }
static void test_beside(void **state) { t_run(0, beside, NULL); }
static void test_break_guest(void **state) { t_run(0, break_guest, NULL); }
static void test_break_snapshot(void **state) { t_run(0, break_snapshot, NULL); }
static void test_break_beside(void **state) { t_run(0, break_beside, NULL); }
static void test_left_alone(void **state) { t_run(0, left_alone, NULL); }
static void test_closed_under_a_claim(void **state) { t_run(0, closed_under_a_claim, NULL); }
static void test_late_answer(void **state) { t_run(0, late_answer, NULL); }
static void test_parts(void **state) { t_run(0, parts, NULL); }
static void test_permissions(void **state) { t_run(0, permissions, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_permissions), cmocka_unit_test(test_parts), cmocka_unit_test(test_break_guest),
                                               cmocka_unit_test(test_break_snapshot), cmocka_unit_test(test_break_beside), cmocka_unit_test(test_left_alone), cmocka_unit_test(test_closed_under_a_claim), cmocka_unit_test(test_late_answer),
                                               cmocka_unit_test(test_beside), cmocka_unit_test(test_frozen) };
    return T_MAIN("cbw", tests);
}
