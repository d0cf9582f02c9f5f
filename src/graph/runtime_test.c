/* SPDX-License-Identifier: MIT
 *
 * runtime_test.c: the graph changes while requests of two loops go through it.
 *
 * Purpose      Owners of sectors on two loops write and read through attachments, while nodes are put above, replaced, taken out and
 *              hung elsewhere; every sector is checked against what its owner wrote last. What is refused, and that it changes nothing.
 * Owns         Nothing.
 * Invariants   T1  Sector s belongs to owner s % OWNERS: only he changes it.
 * Concurrency  The graph is homed on loop 0; owners on both loops. Meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one. RUNTIME_ROUNDS=n makes it longer.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"

#define CLUSTER 4096u
#define CLUSTERS 24u
#define SIZE (CLUSTERS * CLUSTER)
#define SECTORS (SIZE / SECTOR)
#define OWNERS 6u

enum { R = STOR_PERM_READ, W = STOR_PERM_WRITE, U = STOR_PERM_WRITE_UNCHANGED, Z = STOR_PERM_RESIZE, ALL = STOR_PERM_ALL };

/* ---- a filter that counts, and takes its time ---- */

struct counting { _Atomic unsigned reads, writes, zeros, moved; unsigned freed; };

static int count_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    struct counting *c = n->flt_arg;
    if (atomic_fetch_add(&c->reads, 1) % 4 == 0)
        (void)co_sleep(co, 20000);
    return node_read(co, n->backing, v, off);
}

static int count_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    struct counting *c = n->flt_arg;
    if (atomic_fetch_add(&c->writes, 1) % 4 == 0)
        (void)co_sleep(co, 20000);
    return node_write(co, n->backing, v, off, flags);
}

static int count_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    atomic_fetch_add(&((struct counting *)n->flt_arg)->zeros, 1);
    return node_zero(co, n->backing, off, len, flags);
}

static void count_moved(struct graph_node *n) { atomic_fetch_add(&((struct counting *)n->flt_arg)->moved, 1); }

static void count_free(struct co *co, struct graph_node *n) { ((struct counting *)n->flt_arg)->freed++; }

static const struct filter_ops counting_ops = { .name = "counting", .read = count_read, .write = count_write, .zero = count_zero, .moved = count_moved, .free = count_free };

static struct graph_node *counter(struct graph *g, struct counting *c)
{
    struct graph_node *n = NULL;
    struct filter_new f = { .ops = &counting_ops, .arg = c };
    CHECK_EQ(filter_new(g, &f, &n, NULL), 0);
    return n;
}

static struct graph_node *attach(struct graph_node *n, unsigned perm, unsigned shared)
{
    struct graph_node *a = NULL;
    struct byre_err err = { 0 };
    CHECK_EQ(graph_attach(n, &(struct graph_attach_opts){ "an export", perm, shared }, &a, &err), 0);
    return a;
}

/* ---- owners ---- */

struct world {
    struct graph *g;
    struct graph_node *a[2];             /* attachments, one for each loop */
    struct graph_node *top;              /* what they are attached to; one reference is ours */
    _Atomic bool stop;
    _Atomic unsigned running, requests;
    struct prng rng;
    unsigned filtered;                   /* filters above the top that have seen reads and writes */
};
struct owner { struct world *w; unsigned id; uint32_t gen[SECTORS]; };

static void fill(uint8_t *buf, uint32_t sector, uint32_t gen)
{
    uint64_t v = gen ? (uint64_t)(sector + 1) << 32 | gen : 0;
    for (unsigned i = 0; i < SECTOR; i += 8)
        memcpy(buf + i, &v, 8);
}

static void own_step(struct co *co, struct owner *o, struct prng *rng)
{
    struct graph_node *a = o->w->a[o->id % 2];
    uint32_t sector = (uint32_t)prng_below(rng, SECTORS / OWNERS) * OWNERS + o->id;
    uint8_t buf[SECTOR], want[SECTOR];
    switch (prng_below(rng, 8)) {
    case 0:
        CHECK_EQ(graph_zero(co, a, (uint64_t)sector * SECTOR, SECTOR, 0), 0);
        o->gen[sector] = 0;
        break;
    case 1:
        CHECK_EQ(graph_flush(co, a), 0);
        break;
    case 2:
    case 3:
    case 4:
        fill(buf, sector, ++o->gen[sector]);
        CHECK_EQ(t_write(co, a, buf, SECTOR, (uint64_t)sector * SECTOR, 0), 0);
        break;
    default:
        fill(want, sector, o->gen[sector]);
        CHECK_EQ(t_read(co, a, buf, SECTOR, (uint64_t)sector * SECTOR), 0);
        CHECK(!memcmp(buf, want, SECTOR));
    }
    CHECK_EQ(graph_length(a), SIZE);
    atomic_fetch_add(&o->w->requests, 1);
}

static void owner_main(struct co *co, void *arg)
{
    struct owner *o = arg;
    struct prng rng;
    prng_init(&rng, o->id + 1);
    while (!atomic_load(&o->w->stop)) {
        own_step(co, o, &rng);
        co_yield(co);
    }
    for (uint32_t s = o->id; s < SECTORS; s += OWNERS) {
        uint8_t buf[SECTOR], want[SECTOR];
        fill(want, s, o->gen[s]);
        CHECK_EQ(t_read(co, o->w->a[o->id % 2], buf, SECTOR, (uint64_t)s * SECTOR), 0);
        CHECK(!memcmp(buf, want, SECTOR));
    }
    atomic_fetch_sub(&o->w->running, 1);
}

/* ---- changes ---- */

/* A layer that has come to lie below another one is not written to any more, also not by a request that was on its way. */
struct watch { _Atomic bool below; };
#define WATCHES 4096u
static struct watch watches[WATCHES];
static unsigned watch_count;

static int watch_store(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct watch *x = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_ZERO)
        return 0;
    (void)co_sleep(co, 10000 + t->count[TOY_WRITE] % 8 * 20000);
    CHECK(!atomic_load(&x->below));
    return 0;
}

static struct toyfmt *toy_of(struct graph_node *n) { return CONTAINER_OF(n->im, struct toyfmt, im); }

static struct graph_node *new_layer(struct co *co, struct world *w)
{
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    CHECK(watch_count < WATCHES);
    f->t->hook_arg = &watches[watch_count++ % WATCHES];
    f->t->hook = watch_store;
    f->im.has_backing = true;
    f->im.below_zero_from = 0;
    return toy_node(w->g, &f->im, NULL);
}

/* A new overlay above the top. */
static void snapshot(struct co *co, struct world *w)
{
    struct graph_node *n = new_layer(co, w);
    struct byre_err err = { 0 };
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), 0);
    CHECK(n->backing == w->top && graph_attached(w->a[0]) == n && graph_attached(w->a[1]) == n);
    atomic_store(&((struct watch *)toy_of(w->top)->t->hook_arg)->below, true);
    CHECK_EQ(graph_close(co, w->top), 0);        /* n holds it */
    w->top = n;
}

/* Copies what `to` has not, drained: then they are the same. */
static void copy_drained(struct co *co, struct graph_node *from, struct graph_node *to)
{
    static uint8_t buf[CLUSTER];
    struct iovec slot;
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        struct fmt_extent e;
        CHECK_EQ(to->im->ops->map(co, to->im, (uint64_t)i * CLUSTER, CLUSTER, &e), 0);
        if (e.kind != FMT_ABSENT)
            continue;
        CHECK_EQ(chain_read(co, from, iov_one(&slot, buf, CLUSTER), (uint64_t)i * CLUSTER), 0);
        CHECK_EQ(chain_write(co, to, iov_one(&slot, buf, CLUSTER), (uint64_t)i * CLUSTER, 0), 0);
    }
}

/* All in one layer: the end of a stream. */
static void flatten(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    graph_drain_begin(co, w->top);
    copy_drained(co, w->top, w->top);
    CHECK_EQ(graph_set_backing(co, w->top, NULL, &err), 0);
    graph_drain_end(w->top);
    CHECK(!w->top->backing);
}

/* The layer below the top goes, what it held is in the top: the chain is one shorter. */
static void drop_below(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct graph_node *mid = w->top->backing;
    if (!mid || !mid->backing)
        return;
    graph_drain_begin(co, w->top);
    copy_drained(co, w->top, w->top);
    CHECK_EQ(graph_set_backing(co, w->top, mid->backing, &err), 0);
    graph_drain_end(w->top);
}

/* The pivot of a mirror. */
static void pivot(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct graph_node *to = new_layer(co, w);
    graph_drain_begin(co, w->top);
    copy_drained(co, w->top, to);
    CHECK_EQ(graph_replace_node(co, w->top, to, &err), 0);
    graph_drain_end(w->top);
    CHECK(graph_attached(w->a[0]) == to && !to->backing);
    atomic_store(&((struct watch *)toy_of(w->top)->t->hook_arg)->below, true);
    CHECK_EQ(graph_close(co, w->top), 0);
    w->top = to;
}

/* A filter above a node somewhere in the chain, for a while; with one above it, now and then. */
static void filtered(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct counting one = { 0 }, two = { 0 };
    struct graph_node *under = w->top, *f = counter(w->g, &one), *f2 = counter(w->g, &two);
    if (prng_one_in(&w->rng, 2) && under->backing)
        under = under->backing;
    CHECK_EQ(graph_insert_above(co, under, f, &err), 0);
    CHECK(f->backing == under && graph_length(f) == SIZE);
    CHECK_EQ(graph_insert_above(co, f, f2, &err), 0);
    (void)co_sleep(co, 1000000);
    CHECK_EQ(graph_remove_filter(co, f, &err), 0);
    CHECK(f2->backing == under && !f->backing);
    unsigned reads = atomic_load(&one.reads), writes = atomic_load(&one.writes);
    (void)co_sleep(co, 300000);
    CHECK_EQ(graph_remove_filter(co, f2, &err), 0);
    CHECK(reads == atomic_load(&one.reads) && writes == atomic_load(&one.writes));
    w->filtered += under == w->top && writes && reads;
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, f2), 0);
    CHECK(one.freed == 1 && two.freed == 1 && one.moved >= 1);
    CHECK(graph_skip_filters(graph_attached(w->a[0])) == w->top);
}

static void change(struct co *co, struct world *w)
{
    switch (prng_below(&w->rng, 8)) {
    case 0:
    case 1:
    case 2:
        snapshot(co, w);
        break;
    case 3:
        flatten(co, w);
        break;
    case 4:
        drop_below(co, w);
        break;
    case 5:
        pivot(co, w);
        break;
    default:
        filtered(co, w);
    }
}

static void load(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct owner *owners = calloc(OWNERS, sizeof *owners);
    const char *rounds = getenv("RUNTIME_ROUNDS");
    unsigned last = 0, stuck = 0;
    w->g = toy_graph(co);
    prng_init(&w->rng, 7);
    w->top = new_layer(co, w);
    w->a[0] = attach(w->top, R | W, ALL & ~Z);
    w->a[1] = attach(w->top, R | W, ALL & ~Z);
    w->running = OWNERS;
    for (unsigned i = 0; i < OWNERS; i++) {
        owners[i] = (struct owner){ .w = w, .id = i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), owner_main, &owners[i]), 0);
    }
    for (unsigned i = rounds ? (unsigned)strtoul(rounds, NULL, 10) : 300; i; i--) {
        (void)co_sleep(co, 200000);
        change(co, w);
        stuck += last == atomic_load(&w->requests);
        last = atomic_load(&w->requests);
    }
    CHECK(w->filtered > 0);
    CHECK(stuck < 200);                          /* requests do go on between the changes */
    atomic_store(&w->stop, true);
    while (atomic_load(&w->running))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(graph_detach(co, w->a[0]), 0);
    CHECK_EQ(graph_detach(co, w->a[1]), 0);
    CHECK_EQ(graph_close(co, w->top), 0);
    CHECK(list_empty(&w->g->nodes));
    graph_free(w->g);
    free(owners);
    free(w);
}

/* ---- what is refused (FEATURES 11.010, 11.012) ---- */

struct counted { unsigned edges, roots, files, backing; };

static void count_edge(void *arg, const struct graph_edge *e)
{
    struct counted *c = arg;
    c->edges++;
    c->roots += e->outside && !strcmp(e->role, "root");
    c->files += !strcmp(e->role, "file");
    c->backing += !strcmp(e->role, "backing");
}

static void sizes_and_modes(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct toyfmt *big = toyfmt_new(co, SIZE + CLUSTER, CLUSTER), *ro = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *b = toy_node(w->g, &big->im, NULL), *r = toy_node(w->g, &ro->im, NULL);
    r->read_only = true;
    CHECK_EQ(graph_replace_node(co, w->top, b, &err), -EINVAL);
    CHECK(!strcmp(err.reason, "BAD_SIZE") && strstr(err.text, b->name) && strstr(err.text, w->top->name));
    CHECK_EQ(graph_replace_node(co, w->top, r, &err), -EROFS);
    CHECK(strstr(err.text, "an export"));
    CHECK_EQ(graph_insert_above(co, w->top, r, &err), -EROFS);
    CHECK(!r->backing && graph_attached(w->a[0]) == w->top);
    CHECK_EQ(graph_close(co, b), 0);
    CHECK_EQ(graph_close(co, r), 0);
}

static void permissions(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct graph_node *n = new_layer(co, w);
    struct graph_user jealous = { .who = "jealous", .perm = R, .shared = R }, writer = { .who = "a job", .perm = W, .shared = ALL };
    CHECK_EQ(graph_user_add(n, &jealous, &err), 0);
    CHECK_EQ(graph_replace_node(co, w->top, n, &err), -EPERM);
    CHECK(strstr(err.text, "jealous") && strstr(err.text, "an export"));
    graph_user_remove(&jealous);
    CHECK_EQ(graph_user_add(w->top, &writer, &err), 0);
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), -EPERM);      /* an overlay lets nobody write below it */
    CHECK(strstr(err.text, "a job") && strstr(err.text, n->name));
    graph_user_remove(&writer);
    CHECK(!n->backing && !n->users);
    CHECK_EQ(graph_freeze(n, NULL, &err), 0);                       /* a job goes by there being nothing below it */
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), -EPERM);
    CHECK(strstr(err.text, n->name) && !n->backing && !n->users);
    graph_thaw(n, NULL);
    CHECK_EQ(graph_promise(n, w, 0, &err), 0);
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), -EPERM);
    graph_promise_end(w->g, w);
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), 0);
    CHECK_EQ(graph_user_add(w->top, &writer, &err), -EPERM);
    CHECK_EQ(graph_insert_above(co, w->top, n, &err), -EINVAL);     /* it has something below it */
    CHECK_EQ(graph_replace_node(co, n, w->top, &err), -EPERM);
    CHECK_EQ(graph_undo_insert(co, n, &err), 0);
    CHECK(!n->backing && !n->users && graph_attached(w->a[1]) == w->top);
    CHECK_EQ(graph_close(co, n), 0);
}

/* What users of a filter want, it wants of what it filters. */
static void through_filters(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct counting c = { 0 };
    struct graph_node *f = counter(w->g, &c), *a;
    struct graph_user job = { .who = "a job", .perm = R, .shared = ALL & ~W }, shy = { .who = "shy", .perm = R, .shared = ALL };
    CHECK_EQ(graph_insert_above(co, w->top, f, &err), 0);
    CHECK_EQ(f->backing_use.perm, R | W);
    CHECK_EQ(f->backing_use.shared, ALL & ~Z);
    CHECK_EQ(graph_user_add(w->top, &job, &err), -EPERM);
    CHECK(strstr(err.text, "a job") && strstr(err.text, f->name));
    CHECK_EQ(graph_user_add(w->top, &shy, &err), 0);
    CHECK_EQ(graph_attach(f, &(struct graph_attach_opts){ "grower", R | Z, ALL }, &a, &err), -EPERM);
    CHECK(strstr(err.text, "grower") && strstr(err.text, "resize"));
    struct counted e = { 0 };
    graph_each_edge(w->g, count_edge, &e);
    CHECK(e.edges == 3 && e.roots == 2 && e.files == 1);
    graph_user_remove(&shy);
    CHECK_EQ(graph_freeze(f, w->top, &err), 0);
    CHECK_EQ(graph_remove_filter(co, f, &err), -EPERM);
    graph_thaw(f, w->top);
    CHECK_EQ(graph_remove_filter(co, f, &err), 0);
    CHECK_EQ(graph_remove_filter(co, f, &err), -EINVAL);
    CHECK(!f->backing_use.node && w->top->users);
    CHECK_EQ(graph_close(co, f), 0);
}

static void chains(struct co *co, struct world *w)
{
    struct byre_err err = { 0 };
    struct graph_node *n = new_layer(co, w), *low = w->top;
    CHECK_EQ(graph_insert_above(co, low, n, &err), 0);
    CHECK_EQ(graph_set_backing(co, low, n, &err), -ELOOP);
    CHECK_EQ(graph_freeze(n, NULL, &err), 0);
    CHECK_EQ(graph_set_backing(co, n, NULL, &err), -EPERM);
    struct graph_node *other = new_layer(co, w);
    CHECK_EQ(graph_replace_node(co, low, other, &err), -EPERM);
    CHECK(strstr(err.text, n->name));
    graph_thaw(n, NULL);
    CHECK_EQ(graph_freeze(low, n, &err), -EINVAL);
    CHECK_EQ(graph_replace_node(co, low, other, &err), 0);
    CHECK(n->backing == other && other->refs == 2);
    w->g->max_depth = 2;
    struct graph_node *third = new_layer(co, w);
    CHECK(graph_insert_above(co, n, third, &err) < 0 && !strcmp(err.reason, "BACKING_DEPTH"));
    w->g->max_depth = GRAPH_DEPTH_DEFAULT;
    CHECK_EQ(graph_close(co, third), 0);
    CHECK_EQ(graph_close(co, other), 0);
    CHECK_EQ(graph_close(co, low), 0);
    w->top = n;
}

/* ---- what comes to lie below is durable (J5): a flush of the guest does not reach it any more ---- */

struct volatile_store { unsigned unflushed; int fail; };

static int note_flush(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct volatile_store *v = t->hook_arg;
    if (op == TOY_WRITE || op == TOY_ZERO)
        v->unflushed++;
    if (op != TOY_FLUSH)
        return 0;
    if (!v->fail)
        v->unflushed = 0;
    return v->fail;
}

static struct graph_node *volatile_layer(struct co *co, struct world *w, struct volatile_store *v)
{
    struct graph_node *n = new_layer(co, w);
    toy_of(n)->t->hook = note_flush;
    toy_of(n)->t->hook_arg = v;
    return n;
}

static void durable_below(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct byre_err err = { 0 };
    struct counting c = { 0 };
    struct volatile_store low = { 0 }, mid = { 0 }, bad = { 0 };
    uint8_t buf[SECTOR] = { 1 };
    w->g = toy_graph(co);
    struct graph_node *l = volatile_layer(co, w, &low), *m = volatile_layer(co, w, &mid), *u = new_layer(co, w), *f = counter(w->g, &c);
    struct graph_node *a = attach(l, R | W, ALL & ~Z);
    CHECK_EQ(t_write(co, a, buf, SECTOR, 0, 0), 0);
    CHECK(low.unflushed > 0);
    CHECK_EQ(graph_insert_above(co, l, m, &err), 0);
    CHECK_EQ(low.unflushed, 0);
    CHECK_EQ(t_write(co, a, buf, SECTOR, SECTOR, 0), 0);
    CHECK_EQ(graph_insert_above(co, m, f, &err), 0);         /* a filter hands flushes on */
    CHECK(mid.unflushed > 0);
    CHECK_EQ(graph_insert_above(co, f, u, &err), 0);
    CHECK(mid.unflushed == 0 && low.unflushed == 0);
    CHECK_EQ(graph_close(co, u), 0);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, m), 0);
    /* also where it is hung below */
    u = new_layer(co, w);
    CHECK_EQ(t_write(co, l, buf, SECTOR, 0, 0), 0);
    CHECK(low.unflushed > 0);
    CHECK_EQ(graph_set_backing(co, u, l, &err), 0);
    CHECK_EQ(low.unflushed, 0);
    CHECK_EQ(graph_close(co, u), 0);
    /* and if it cannot be, nothing changes */
    struct graph_node *b = volatile_layer(co, w, &bad);
    u = new_layer(co, w);
    a = attach(b, R | W, ALL & ~Z);
    CHECK_EQ(t_write(co, a, buf, SECTOR, 0, 0), 0);
    bad.fail = -EIO;
    CHECK_EQ(graph_insert_above(co, b, u, &err), -EIO);
    CHECK(strstr(err.text, "durable") && graph_attached(a) == b && !u->backing && !u->users);
    CHECK(graph_set_backing(co, u, b, &err) < 0);            /* the store has given up (RG27) */
    CHECK(!u->backing && !u->users);
    CHECK_EQ(graph_detach(co, a), 0);
    (void)!graph_close(co, b);
    CHECK_EQ(graph_close(co, u), 0);
    CHECK_EQ(graph_close(co, l), 0);
    CHECK(list_empty(&w->g->nodes));
    graph_free(w->g);
    free(w);
}

static void refused(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    w->g = toy_graph(co);
    w->top = new_layer(co, w);
    w->a[0] = attach(w->top, R | W, ALL & ~Z);
    w->a[1] = attach(w->top, R, ALL & ~Z);
    sizes_and_modes(co, w);
    permissions(co, w);
    through_filters(co, w);
    chains(co, w);
    CHECK_EQ(graph_detach(co, w->a[0]), 0);
    CHECK_EQ(graph_detach(co, w->a[1]), 0);
    CHECK_EQ(graph_close(co, w->top), 0);
    CHECK(list_empty(&w->g->nodes));
    graph_free(w->g);
    free(w);
}

/* ---- statuses and sizes do not see a filter ---- */

static void unseen(struct co *co, void *arg)
{
    struct world *w = calloc(1, sizeof *w);
    struct byre_err err = { 0 };
    struct counting c = { 0 };
    struct graph_status st;
    uint8_t buf[SECTOR];
    w->g = toy_graph(co);
    struct toyfmt *low = toyfmt_new(co, SIZE - CLUSTER, CLUSTER), *up = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *l = toy_node(w->g, &low->im, NULL), *u = toy_node(w->g, &up->im, l), *a = attach(u, R | W, ALL);
    toyfmt_set(low, 1, FMT_DATA, false, 0x55);
    struct graph_node *f = counter(w->g, &c);
    CHECK_EQ(graph_insert_above(co, l, f, &err), 0);
    CHECK_EQ(graph_length(f), SIZE - CLUSTER);
    CHECK_EQ(graph_status(co, a, NULL, CLUSTER, CLUSTER, &st), 0);
    CHECK(st.data && st.depth == 1 && st.node == l && st.len == CLUSTER);
    CHECK_EQ(graph_status(co, a, NULL, SIZE - CLUSTER, CLUSTER, &st), 0);
    CHECK(st.zero && st.past_end && st.depth == 0 && st.node == u);
    CHECK_EQ(graph_status(co, a, f, CLUSTER, CLUSTER, &st), 0);
    CHECK(!st.present);
    CHECK_EQ(c.reads, 0);
    CHECK_EQ(t_read(co, a, buf, SECTOR, CLUSTER), 0);
    CHECK(buf[0] == 0x55 && c.reads == 1);
    buf[0] = 1;
    CHECK_EQ(t_write(co, a, buf, 1, CLUSTER + 7, 0), 0);     /* what surrounds a first write comes through the filter */
    CHECK(c.reads >= 2 && c.writes == 0);
    CHECK_EQ(graph_resize(co, l, SIZE - 2 * CLUSTER, FMT_PREALLOC_OFF, &err), -EPERM);
    CHECK_EQ(graph_remove_filter(co, f, &err), 0);
    CHECK_EQ(graph_insert_above(co, u, f, &err), 0);
    CHECK_EQ(graph_resize(co, u, SIZE + CLUSTER, FMT_PREALLOC_OFF, &err), 0);
    CHECK(graph_length(f) == SIZE + CLUSTER && graph_length(a) == SIZE + CLUSTER);
    CHECK_EQ(graph_remove_filter(co, f, &err), 0);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_detach(co, a), 0);
    CHECK_EQ(graph_close(co, u), 0);
    CHECK_EQ(graph_close(co, l), 0);
    graph_free(w->g);
    free(w);
}

/* ---- an overlay that is being closed ---- */

static struct { struct fmt_ops ops; const struct fmt_ops *own; _Atomic bool inside, go, over; } closing;

static int slow_close(struct co *co, struct fmt_image *im)
{
    atomic_store(&im->below_zero_from, 4711);
    atomic_store(&closing.inside, true);
    while (!atomic_load(&closing.go))
        (void)co_sleep(co, 100000);
    CHECK_EQ(atomic_load(&im->below_zero_from), 4711);
    return closing.own->close(co, im);
}

static void close_co(struct co *co, void *arg)
{
    CHECK_EQ(graph_close(co, arg), 0);
    atomic_store(&closing.over, true);
}

/* What lies below it may change meanwhile, but nobody touches its image, whose memory may be gone. */
static void ending(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct counting c = { 0 };
    struct graph *g = toy_graph(co);
    struct toyfmt *low = toyfmt_new(co, SIZE, CLUSTER), *top = toyfmt_new(co, SIZE, CLUSTER);
    closing.own = top->im.ops;
    closing.ops = *closing.own;
    closing.ops.close = slow_close;
    top->im.ops = &closing.ops;
    struct graph_node *under = toy_node(g, &low->im, NULL), *over = toy_node(g, &top->im, under), *f = counter(g, &c);
    CHECK_EQ(graph_insert_above(co, under, f, &err), 0);
    CHECK(graph_backing(over) == f);
    CHECK_EQ(rt_spawn(co_loop(co), close_co, over), 0);
    while (!atomic_load(&closing.inside))
        (void)co_sleep(co, 100000);
    CHECK_EQ(graph_remove_filter(co, f, &err), 0);
    atomic_store(&closing.go, true);
    while (!atomic_load(&closing.over))
        (void)co_sleep(co, 100000);
    CHECK_EQ(graph_close(co, f), 0);
    CHECK_EQ(graph_close(co, under), 0);
    graph_free(g);
}

static void test_ending(void **state) { t_run(0, ending, NULL); }
static void test_load(void **state) { t_run(0, load, NULL); }
static void test_refused(void **state) { t_run(0, refused, NULL); }
static void test_unseen(void **state) { t_run(0, unseen, NULL); }
static void test_durable_below(void **state) { t_run(0, durable_below, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_ending), cmocka_unit_test(test_unseen), cmocka_unit_test(test_durable_below), cmocka_unit_test(test_refused), cmocka_unit_test(test_load) };
    return T_MAIN("runtime", tests);
}
