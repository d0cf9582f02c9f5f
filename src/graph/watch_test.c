/* SPDX-License-Identifier: MIT
 *
 * watch_test.c: watchers of a disk's changes.
 *
 * Purpose     What a watcher is told, what it may do, what it costs, and that it can come and go under load on two loops.
 * Owns        Nothing.
 * Invariants  I1  After graph_watch_remove a watcher is scribbled over: whoever comes late falls over it.
 * Concurrency Two loops; meant for TSan, too.
 * Failure     A failed check fails the test.
 * Tests       This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#define CLUSTER 4096u
#define SIZE (64 * CLUSTER)

static _Atomic unsigned mallocs;
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&mallocs, 1);
    return __real_malloc(n);
}
void *__real_calloc(size_t n, size_t m);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_calloc(size_t n, size_t m)
{
    atomic_fetch_add(&mallocs, 1);
    return __real_calloc(n, m);
}

/* ---- a watcher that notes ---- */
struct note { enum graph_change_kind kind; uint64_t off, len; unsigned flags; int result; uint8_t first; bool data; };
struct seer {
    struct graph_watch w;
    struct note log[16];
    unsigned count, id;
    int refuse;                          /* < 0: the change is not made */
    int after;                           /* < 0: what is answered in place of 0 */
    unsigned *order;                     /* ids in the order of their turn */
    unsigned *order_count;
};

static int seer_change(struct co *co, struct graph_watch *w, struct graph_change *ch)
{
    struct seer *s = CONTAINER_OF(w, struct seer, w);
    struct note *n = &s->log[s->count++ % 16];
    *n = (struct note){ ch->kind, ch->off, ch->len, ch->flags, 1, 0, ch->v != NULL };
    if (ch->v)
        iov_to_buf(iov_slice(*ch->v, 0, 1), &n->first, 1);
    if (s->order)
        s->order[(*s->order_count)++] = s->id;
    if (s->refuse)
        return s->refuse;
    n->result = graph_change_go(co, ch);
    if (s->order)
        s->order[(*s->order_count)++] = s->id;
    return n->result ? n->result : s->after;
}

struct disk { struct graph *g; struct toyfmt *f; struct graph_node *n; };

static void disk_open(struct co *co, struct disk *d)
{
    d->g = toy_graph(co);
    d->f = toyfmt_new(co, SIZE, CLUSTER);
    d->n = toy_node(d->g, &d->f->im, NULL);
}

static void disk_close(struct co *co, struct disk *d)
{
    CHECK_EQ(graph_close(co, d->n), 0);
    graph_free(d->g);
}

static bool noted(const struct seer *s, unsigned i, const struct note *want)
{
    const struct note *n = &s->log[i];
    return s->count > i && n->kind == want->kind && n->off == want->off && n->len == want->len && n->flags == want->flags && n->result == want->result &&
           n->first == want->first && n->data == want->data;
}

/* ---- what is told ---- */
static void told(struct co *co, void *arg)
{
    struct disk d;
    struct seer s = { .w.change = seer_change };
    uint8_t buf[2 * CLUSTER];
    memset(buf, 7, sizeof buf);
    disk_open(co, &d);
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    graph_watch_add(co, d.n, &s.w);
    CHECK_EQ(t_write(co, d.n, buf, sizeof buf, 512, GRAPH_FUA), 0);
    CHECK_EQ(graph_zero(co, d.n, CLUSTER + 512, 3 * CLUSTER, GRAPH_UNMAP), 0);
    CHECK_EQ(graph_discard(co, d.n, 0, SIZE), 0);
    CHECK_EQ(t_read(co, d.n, buf, 512, 0), 0);
    CHECK_EQ(graph_flush(co, d.n), 0);
    CHECK_EQ(t_write(co, d.n, buf, 512, SIZE, 0), -EIO);     /* not inside the disk: never seen */
    CHECK_EQ(t_write(co, d.n, buf, 0, 0, 0), 0);
    CHECK_EQ(s.count, 3);
    CHECK(noted(&s, 0, &(struct note){ GRAPH_CHANGE_WRITE, 512, sizeof buf, GRAPH_FUA, 0, 7, true }));
    CHECK(noted(&s, 1, &(struct note){ GRAPH_CHANGE_ZERO, CLUSTER + 512, 3 * CLUSTER, GRAPH_UNMAP, 0, 0, false }));
    CHECK(noted(&s, 2, &(struct note){ GRAPH_CHANGE_DISCARD, 0, SIZE, 0, 0, 0, false }));
    graph_watch_remove(co, &s.w);
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    CHECK_EQ(s.count, 3);
    disk_close(co, &d);
}
static void test_told(void **state) { t_run(0, told, NULL); }

static unsigned shared;
static int64_t count_clone(struct co *co, struct fmt_image *im, uint64_t src, uint64_t dst, uint64_t len)
{
    shared++;
    return 0;                                /* it is to be copied */
}

/* A clone is a write of its target to who watches, bytes and all; the format may share only where nobody does (G.004). */
static void told_of_clones(struct co *co, void *arg)
{
    struct disk d;
    struct seer s = { .w.change = seer_change };
    uint8_t buf[CLUSTER];
    memset(buf, 9, sizeof buf);
    disk_open(co, &d);
    const struct fmt_ops *was = d.f->im.ops;
    struct fmt_ops ops = *was;
    ops.clone = count_clone;
    shared = 0;
    d.f->im.ops = &ops;
    CHECK_EQ(t_write(co, d.n, buf, CLUSTER, 0, 0), 0);
    CHECK_EQ(graph_clone(co, d.n, 0, 8 * CLUSTER, CLUSTER), 0);
    CHECK_EQ(shared, 1);
    graph_watch_add(co, d.n, &s.w);
    CHECK_EQ(graph_clone(co, d.n, 0, 16 * CLUSTER, 2 * CLUSTER), 0);
    CHECK_EQ(graph_clone(co, d.n, 40 * CLUSTER, 50 * CLUSTER, CLUSTER), 0);
    CHECK(shared == 1 && s.count == 2);
    CHECK(noted(&s, 0, &(struct note){ GRAPH_CHANGE_WRITE, 16 * CLUSTER, 2 * CLUSTER, 0, 0, 9, true }));
    CHECK(noted(&s, 1, &(struct note){ GRAPH_CHANGE_ZERO, 50 * CLUSTER, CLUSTER, GRAPH_UNMAP, 0, 0, false }));
    s.refuse = -ENOSPC;
    CHECK_EQ(graph_clone(co, d.n, 0, 20 * CLUSTER, CLUSTER), -ENOSPC);
    graph_watch_remove(co, &s.w);
    CHECK_EQ(graph_clone(co, d.n, 0, 20 * CLUSTER, CLUSTER), 0);
    CHECK(shared == 2 && s.count == 3);
    d.f->im.ops = was;
    disk_close(co, &d);
}
static void test_told_of_clones(void **state) { t_run(0, told_of_clones, NULL); }

/* Writes of zeros that become requests for zeros are seen as such, once; a discard that the disk ignores is none. */
static void told_otherwise(struct co *co, void *arg)
{
    struct disk d;
    struct seer s = { .w.change = seer_change };
    uint8_t buf[CLUSTER] = { 0 };
    disk_open(co, &d);
    d.n->detect = GRAPH_DETECT_UNMAP;
    d.n->discard = false;
    graph_watch_add(co, d.n, &s.w);
    CHECK_EQ(t_write(co, d.n, buf, CLUSTER, CLUSTER, 0), 0);
    CHECK_EQ(graph_discard(co, d.n, 0, CLUSTER), 0);
    CHECK_EQ(s.count, 1);
    CHECK(noted(&s, 0, &(struct note){ GRAPH_CHANGE_ZERO, CLUSTER, CLUSTER, GRAPH_UNMAP, 0, 0, false }));
    graph_watch_remove(co, &s.w);
    disk_close(co, &d);
}
static void test_told_otherwise(void **state) { t_run(0, told_otherwise, NULL); }

static void failing(struct co *co, void *arg)
{
    struct disk d;
    struct seer s = { .w.change = seer_change };
    uint8_t buf[512] = { 5 }, back[512];
    disk_open(co, &d);
    graph_watch_add(co, d.n, &s.w);
    d.f->fail_step = TOYFMT_BEGIN;
    d.f->fail_after = 0;
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), -EIO);
    CHECK(noted(&s, 0, &(struct note){ GRAPH_CHANGE_WRITE, 0, 512, 0, -EIO, 5, true }));
    s.refuse = -EAGAIN;                  /* refused before it begins: nothing has changed */
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), -EAGAIN);
    CHECK_EQ(graph_zero(co, d.n, 0, 512, 0), -EAGAIN);
    CHECK_EQ(t_read(co, d.n, back, 512, 0), 0);
    CHECK_EQ(back[0], 0);
    s.refuse = 0;
    s.after = -ENOSPC;                   /* made, but not answered well */
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), -ENOSPC);
    CHECK_EQ(t_read(co, d.n, back, 512, 0), 0);
    CHECK_EQ(back[0], 5);
    graph_watch_remove(co, &s.w);
    disk_close(co, &d);
}
static void test_failing(void **state) { t_run(0, failing, NULL); }

static void nested(struct co *co, void *arg)
{
    static const unsigned want[] = { 2, 1, 0, 0, 1, 2 }, middle_gone[] = { 2, 0, 0, 2 };
    struct disk d;
    unsigned order[16], count = 0;
    struct seer s[3];
    uint8_t buf[512] = { 0 };
    disk_open(co, &d);
    for (unsigned i = 0; i < 3; i++) {
        s[i] = (struct seer){ .w.change = seer_change, .id = i, .order = order, .order_count = &count };
        graph_watch_add(co, d.n, &s[i].w);
    }
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    CHECK(count == 6 && !memcmp(order, want, sizeof want));
    graph_watch_remove(co, &s[1].w);
    count = 0;
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    CHECK(count == 4 && !memcmp(order, middle_gone, sizeof middle_gone));
    graph_watch_remove(co, &s[2].w);
    graph_watch_remove(co, &s[0].w);
    graph_watch_add(co, d.n, &s[1].w);   /* again */
    graph_watch_remove(co, &s[1].w);
    disk_close(co, &d);
}
static void test_nested(void **state) { t_run(0, nested, NULL); }

/* ---- what it costs ---- */
static void cost(struct co *co, void *arg)
{
    struct disk d;
    struct seer s = { .w.change = seer_change };
    uint8_t buf[512] = { 1 };
    disk_open(co, &d);
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);           /* from here on in place */
    CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    unsigned before = mallocs;
    for (int i = 0; i < 100; i++)
        CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    CHECK_EQ(mallocs, before);
    graph_watch_add(co, d.n, &s.w);
    before = mallocs;
    for (int i = 0; i < 100; i++)
        CHECK_EQ(t_write(co, d.n, buf, 512, 0, 0), 0);
    CHECK_EQ(mallocs, before);
    CHECK_EQ(s.count, 100);
    graph_watch_remove(co, &s.w);
    disk_close(co, &d);
}
static void test_cost(void **state) { t_run(0, cost, NULL); }

/* ---- waiting in a watcher; drain ---- */
struct holder { struct graph_watch w; _Atomic bool entered, go, saw_drain; _Atomic unsigned ended; };

static int holder_change(struct co *co, struct graph_watch *w, struct graph_change *ch)
{
    struct holder *h = CONTAINER_OF(w, struct holder, w);
    atomic_store(&h->entered, true);
    while (!atomic_load(&h->go)) {
        if (graph_draining(ch->node))
            atomic_store(&h->saw_drain, true);
        (void)co_sleep(co, 100000);
    }
    int r = graph_change_go(co, ch);
    atomic_fetch_add(&h->ended, 1);
    return r;
}

struct one_write { struct graph_node *n; _Atomic bool done; };
static void write_one(struct co *co, void *arg)
{
    struct one_write *o = arg;
    uint8_t buf[512] = { 9 };
    CHECK_EQ(t_write(co, o->n, buf, 512, 1024, 0), 0);
    atomic_store(&o->done, true);
}

static void let_go(struct co *co, void *arg)
{
    struct holder *h = arg;
    while (!atomic_load(&h->saw_drain))
        (void)co_sleep(co, 100000);
    atomic_store(&h->go, true);
}

static void waiting(struct co *co, void *arg)
{
    struct disk d;
    struct holder h = { .w.change = holder_change };
    disk_open(co, &d);
    struct one_write o = { .n = d.n };
    graph_watch_add(co, d.n, &h.w);
    CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, 1), write_one, &o), 0);
    while (!atomic_load(&h.entered))
        (void)co_sleep(co, 100000);
    CHECK(!graph_draining(d.n));
    CHECK_EQ(rt_spawn(co_loop(co), let_go, &h), 0);
    graph_drain_begin(co, d.n);          /* the request is told, and ends first */
    CHECK(atomic_load(&h.go) && atomic_load(&h.saw_drain));
    CHECK_EQ(h.ended, 1);
    graph_drain_end(d.n);
    graph_watch_remove(co, &h.w);
    while (!atomic_load(&o.done))
        (void)co_sleep(co, 100000);
    disk_close(co, &d);
}
static void test_waiting(void **state) { t_run(0, waiting, NULL); }

/* ---- coming and going under load ---- */
#define WRITERS 8u
struct load { struct graph_node *n; _Atomic bool stop; _Atomic unsigned running; };
struct guest { struct load *l; unsigned id; };
struct counter { struct graph_watch w; uint32_t magic; _Atomic unsigned in, seen; };

static int counter_change(struct co *co, struct graph_watch *w, struct graph_change *ch)
{
    struct counter *c = CONTAINER_OF(w, struct counter, w);
    CHECK_EQ(c->magic, 0x77a7c4e2);
    atomic_fetch_add(&c->in, 1);
    if (ch->off % 3 == 0)
        co_yield(co);
    int r = graph_change_go(co, ch);
    CHECK_EQ(c->magic, 0x77a7c4e2);
    atomic_fetch_sub(&c->in, 1);
    atomic_fetch_add(&c->seen, 1);
    return r;
}

static void guest_main(struct co *co, void *arg)
{
    struct guest *gu = arg;
    struct prng rng;
    uint8_t buf[1024];
    prng_init(&rng, gu->id + 1);
    memset(buf, (int)gu->id + 1, sizeof buf);
    while (!atomic_load(&gu->l->stop)) {
        uint64_t off = prng_below(&rng, SIZE / 512 - 2) * 512;
        switch (prng_below(&rng, 6)) {
        case 0: CHECK_EQ(graph_zero(co, gu->l->n, off, 1024, GRAPH_UNMAP), 0); break;
        case 1: CHECK_EQ(graph_discard(co, gu->l->n, off, 1024), 0); break;
        default: CHECK_EQ(t_write(co, gu->l->n, buf, 1024, off, 0), 0);
        }
        if (prng_one_in(&rng, 4))
            co_yield(co);
    }
    atomic_fetch_sub(&gu->l->running, 1);
}

static void under_load(struct co *co, void *arg)
{
    struct disk d;
    disk_open(co, &d);
    struct load l = { .n = d.n, .running = WRITERS };
    struct guest gu[WRITERS];
    unsigned seen = 0;
    for (unsigned i = 0; i < WRITERS; i++) {
        gu[i] = (struct guest){ &l, i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), guest_main, &gu[i]), 0);
    }
    struct counter *c[3] = { NULL };
    for (unsigned round = 0; round < 300; round++) {
        unsigned i = round % 3;
        if (c[i]) {
            graph_watch_remove(co, &c[i]->w);
            CHECK_EQ(c[i]->in, 0);
            seen += c[i]->seen;
            memset(c[i], 0xdb, sizeof *c[i]);                /* I1 */
            free(c[i]);
        }
        c[i] = calloc(1, sizeof *c[i]);
        c[i]->w.change = counter_change;
        c[i]->magic = 0x77a7c4e2;
        graph_watch_add(co, d.n, &c[i]->w);
        if (round % 5 == 0)
            (void)co_sleep(co, 300000);
    }
    atomic_store(&l.stop, true);
    while (atomic_load(&l.running))
        (void)co_sleep(co, 100000);
    for (unsigned i = 0; i < 3; i++) {
        graph_watch_remove(co, &c[i]->w);
        seen += c[i]->seen;
        free(c[i]);
    }
    CHECK(seen > 1000);
    disk_close(co, &d);
}
static void test_under_load(void **state) { t_run(0, under_load, NULL); }

/* add is a fence: what w has not seen has ended. */
static void let_go_soon(struct co *co, void *arg)
{
    struct holder *h = arg;
    (void)co_sleep(co, 3000000);
    atomic_store(&h->go, true);
}

static void fencing(struct co *co, void *arg)
{
    struct disk d;
    struct holder h = { .w.change = holder_change };
    struct seer s = { .w.change = seer_change };
    disk_open(co, &d);
    struct one_write o = { .n = d.n };
    graph_watch_add(co, d.n, &h.w);
    CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, 1), write_one, &o), 0);
    while (!atomic_load(&h.entered))
        (void)co_sleep(co, 100000);
    CHECK_EQ(rt_spawn(co_loop(co), let_go_soon, &h), 0);
    graph_watch_add(co, d.n, &s.w);
    CHECK_EQ(h.ended, 1);
    CHECK_EQ(s.count, 0);
    while (!atomic_load(&o.done))
        (void)co_sleep(co, 100000);
    graph_watch_remove(co, &s.w);
    graph_watch_remove(co, &h.w);
    disk_close(co, &d);
}
static void test_fencing(void **state) { t_run(0, fencing, NULL); }

/* ---- who follows the length ---- */

struct follower { struct graph_watch w; struct graph_user u; unsigned begun, told, ended; bool go, good, done; int r; };

static int follower_begin(struct co *co, struct graph_watch *w, uint64_t size, struct byre_err *err)
{
    struct follower *f = CONTAINER_OF(w, struct follower, w);
    f->begun++;
    while (!f->go)
        (void)co_sleep(co, 100000);
    return 0;
}
static void follower_now(struct graph_watch *w, uint64_t size) { CONTAINER_OF(w, struct follower, w)->told++; }
static void follower_end(struct co *co, struct graph_watch *w, bool good)
{
    struct follower *f = CONTAINER_OF(w, struct follower, w);
    f->ended++;
    f->good = good;
}
static int follower_change(struct co *co, struct graph_watch *w, struct graph_change *ch) { return graph_change_go(co, ch); }
static const struct graph_watch_size follower_size = { NULL, follower_begin, follower_now, follower_end };

static void resize_slowly(struct co *co, void *arg)
{
    struct follower *f = arg;
    f->r = graph_resize_for(co, &f->u, 2 * SIZE, NULL);
    f->done = true;
}

/* A resize that is refused does not end what follows another one, which is under way. */
static void refused_beside(struct co *co, void *arg)
{
    struct disk d;
    struct follower f = { .w = { .change = follower_change, .follows = &follower_size }, .u = { .who = "first", .shared = STOR_PERM_ALL & ~STOR_PERM_RESIZE } };
    struct byre_err err = { 0 };
    disk_open(co, &d);
    graph_watch_add(co, d.n, &f.w);
    CHECK_EQ(graph_user_add(d.n, &f.u, &err), 0);
    CHECK_EQ(rt_spawn(co_loop(co), resize_slowly, &f), 0);
    while (!f.begun)
        (void)co_sleep(co, 100000);
    CHECK_EQ(graph_resize(co, d.n, SIZE / 2, FMT_PREALLOC_OFF, &err), -EPERM);
    CHECK_EQ(f.ended, 0);
    f.go = true;
    while (!f.done)
        (void)co_sleep(co, 100000);
    CHECK_EQ(f.r, 0);
    CHECK(f.begun == 1 && f.told == 1 && f.ended == 1 && f.good);
    CHECK_EQ(graph_length(d.n), 2 * SIZE);
    graph_user_remove(&f.u);
    graph_watch_remove(co, &f.w);
    disk_close(co, &d);
}
static void test_refused_beside(void **state) { t_run(0, refused_beside, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_told), cmocka_unit_test(test_told_of_clones),
        cmocka_unit_test(test_told_otherwise),
        cmocka_unit_test(test_failing),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_waiting),
        cmocka_unit_test(test_under_load),
        cmocka_unit_test(test_fencing),
        cmocka_unit_test(test_refused_beside),
    };
    return T_MAIN("watch", tests);
}
