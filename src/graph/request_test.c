/* SPDX-License-Identifier: MIT
 *
 * request_test.c: reads, writes, zeros, discards and status of chains against a model.
 *
 * Purpose      Random chains of the toy format with every kind of extent; every request compared with plain arrays;
 *              a fault in each step of a request; the cost of the short paths.
 * Owns         Nothing.
 * Invariants   I1  A failed request changes nothing outside the sectors that it names.
 * Concurrency  One loop at a time here; see stress_test.c.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include "graph/stats_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER 4096u
#define CLUSTERS 24u
#define SIZE (CLUSTERS * CLUSTER)

/* ---- calls of malloc (linked with --wrap=malloc,calloc,aligned_alloc) ---- */

static _Atomic unsigned mallocs;
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&mallocs, 1);
    return __real_malloc(n);
}

/* ---- a chain and its model ---- */

struct chain {
    struct graph *g;
    struct toyfmt *f[3];                 /* bottom first; NULL: absent */
    struct graph_node *n[3];
    struct graph_node *top;
    unsigned layers;
    uint8_t model[SIZE];
};

static void fill_layer(struct toyfmt *f, struct prng *rng, uint8_t *model, uint64_t model_len, bool bottom)
{
    uint64_t size = f->im.size;
    for (uint32_t i = 0; i < f->clusters; i++) {
        uint64_t at = (uint64_t)i * f->cluster_bytes, len = min_u64(f->cluster_bytes, model_len > at ? model_len - at : 0);
        uint8_t byte = (uint8_t)(1 + prng_below(rng, 200));
        enum fmt_kind kind = (enum fmt_kind)prng_below(rng, 4);
        toyfmt_set(f, i, kind, prng_one_in(rng, 3), byte);
        if (kind == FMT_ZERO || (bottom && kind == FMT_ABSENT))
            memset(model + at, 0, len);
        else if (kind != FMT_ABSENT)
            memset(model + at, byte, len);
    }
    if (size < model_len)                /* a shorter layer hides what lies deeper */
        memset(model + size, 0, model_len - size);
}

static void chain_make(struct co *co, struct chain *c, struct prng *rng, unsigned layers, bool cut)
{
    static const uint32_t clusters[] = { CLUSTER, CLUSTER / 2, CLUSTER * 2 };
    c->g = toy_graph(co);
    c->layers = layers;
    memset(c->model, 0, SIZE);
    for (unsigned i = 0; i < layers; i++) {
        bool top = i + 1 == layers;
        uint64_t size = top ? SIZE : SIZE / 2 + prng_below(rng, SIZE / SECTOR) * SECTOR;
        uint32_t cb = top ? CLUSTER : clusters[prng_below(rng, 3)];
        c->f[i] = toyfmt_new(co, size, cb);
        c->f[i]->cut = cut;
        prng_init(&c->f[i]->rng, prng_u64(rng));
        fill_layer(c->f[i], rng, c->model, SIZE, i == 0);
        c->n[i] = toy_node(c->g, &c->f[i]->im, i ? c->n[i - 1] : NULL);
        c->n[i]->read_only = !top;
    }
    c->top = c->n[layers - 1];
}

static void chain_close(struct co *co, struct chain *c)
{
    for (unsigned i = c->layers; i-- > 0; )
        CHECK_EQ(graph_close(co, c->n[i]), 0);
    graph_free(c->g);
    free(c);
}

static void compare_all(struct co *co, struct chain *c)
{
    uint8_t *buf = malloc(SIZE);
    memset(buf, 0x99, SIZE);
    CHECK_EQ(t_read(co, c->top, buf, SIZE, 0), 0);
    for (uint32_t i = 0; i < SIZE; i++) {
        if (buf[i] != c->model[i]) {
            CHECK_EQ(buf[i], c->model[i]);
            CHECK_EQ(i, UINT32_MAX);
            break;
        }
    }
    free(buf);
}

/* A read into many small elements. */
static void read_vector(struct co *co, struct chain *c, struct prng *rng, uint64_t off, uint64_t len)
{
    enum { VECS = 40 };
    struct iovec *vec = malloc(VECS * sizeof *vec);
    uint8_t *buf = malloc(len);
    size_t cnt = 0;
    for (uint64_t at = 0; at < len; cnt++) {
        uint64_t part = cnt == VECS - 1 ? len - at : 1 + prng_below(rng, min_u64(len - at, 3000));
        vec[cnt] = (struct iovec){ buf + at, part };
        at += part;
    }
    CHECK_EQ(graph_read(co, c->top, iov_of(vec, cnt), off), 0);
    CHECK(!memcmp(buf, c->model + off, len));
    free(buf);
    free(vec);
}

static void reads(struct co *co, void *arg)
{
    struct prng rng;
    prng_init(&rng, 11);
    for (unsigned round = 0; round < 40; round++) {
        struct chain *c = calloc(1, sizeof *c);
        chain_make(co, c, &rng, 1 + round % 3, round & 1);
        compare_all(co, c);
        for (unsigned i = 0; i < 30; i++) {
            uint64_t off = prng_below(&rng, SIZE), len = 1 + prng_below(&rng, SIZE - off);
            read_vector(co, c, &rng, off, len);
        }
        chain_close(co, c);
    }
}

/* ---- changes ---- */

enum change { WRITE, ZERO, DISCARD, CHANGES };

static int change(struct co *co, struct chain *c, enum change what, uint64_t off, uint64_t len, uint8_t byte)
{
    if (what == ZERO)
        return graph_zero(co, c->top, off, len, byte & 1 ? GRAPH_UNMAP : 0);
    if (what == DISCARD)
        return graph_discard(co, c->top, off, len);
    uint8_t *buf = malloc(len);
    memset(buf, byte, len);
    struct iovec vec[24];
    size_t cnt = 0, parts = byte % 5 ? 1 : 20;          /* some with more elements than are merged */
    for (uint64_t at = 0; at < len; cnt++) {
        uint64_t part = cnt + 1 >= parts ? len - at : min_u64(len - at, 1 + len / 20);
        vec[cnt] = (struct iovec){ buf + at, part };
        at += part;
    }
    int r = graph_write(co, c->top, iov_of(vec, cnt), off, 0);
    free(buf);
    return r;
}

/* A discard gives zeros in whole clusters of the top, nothing else changes. */
static void model_change(struct chain *c, enum change what, uint64_t off, uint64_t len, uint8_t byte)
{
    if (what == WRITE) {
        memset(c->model + off, byte, len);
    } else if (what == ZERO) {
        memset(c->model + off, 0, len);
    } else {
        uint64_t start = round_up(off, CLUSTER), end = off + len == SIZE ? SIZE : round_down(off + len, CLUSTER);
        if (start < end)
            memset(c->model + start, 0, end - start);
    }
}

static void random_range(struct prng *rng, uint64_t *off, uint64_t *len)
{
    *off = prng_below(rng, SIZE);
    *len = 1 + prng_below(rng, prng_one_in(rng, 4) ? SIZE - *off : min_u64(SIZE - *off, 9000));
    if (prng_one_in(rng, 4)) {
        *off = round_down(*off, CLUSTER);
        *len = min_u64(round_up(*len, CLUSTER), SIZE - *off);
    }
}

static void changes(struct co *co, void *arg)
{
    struct prng rng;
    prng_init(&rng, 12);
    for (unsigned round = 0; round < 40; round++) {
        struct chain *c = calloc(1, sizeof *c);
        chain_make(co, c, &rng, 1 + round % 3, round & 1);
        c->f[c->layers - 1]->known_zero = round % 8 >= 4;
        c->f[c->layers - 1]->no_zero = round % 5 == 0;
        for (unsigned i = 0; i < 40; i++) {
            uint64_t off, len;
            enum change what = (enum change)prng_below(&rng, CHANGES);
            uint8_t byte = (uint8_t)(1 + prng_below(&rng, 200));
            random_range(&rng, &off, &len);
            CHECK_EQ(change(co, c, what, off, len, byte), 0);
            model_change(c, what, off, len, byte);
            compare_all(co, c);
        }
        chain_close(co, c);
    }
}

/* A layer of 1 MiB clusters: heads and tails larger than the zero page. */
static void large_clusters(struct co *co, void *arg)
{
    struct prng rng;
    enum { BIG = 1 << 20, BYTES = 3 << 20 };
    uint8_t *model = calloc(1, BYTES), *buf = malloc(BYTES);
    prng_init(&rng, 3);
    for (unsigned round = 0; round < 4; round++) {
        struct graph *g = toy_graph(co);
        struct toyfmt *f = toyfmt_new(co, BYTES, BIG);
        struct graph_node *n = toy_node(g, &f->im, NULL);
        memset(model, 0, BYTES);
        toyfmt_set(f, 1, FMT_DATA, true, 9);
        memset(model + BIG, 9, BIG);
        for (unsigned i = 0; i < 6; i++) {
            uint64_t off = prng_below(&rng, BYTES), len = 1 + prng_below(&rng, min_u64(BYTES - off, i & 1 ? BYTES : 5000));
            memset(buf, (int)(i + 20), len);
            CHECK_EQ(t_write(co, n, buf, len, off, 0), 0);
            memset(model + off, (int)(i + 20), len);
            CHECK_EQ(t_read(co, n, buf, BYTES, 0), 0);
            CHECK(!memcmp(buf, model, BYTES));
        }
        CHECK_EQ(graph_close(co, n), 0);
        graph_free(g);
    }
    free(model);
    free(buf);
}

/* ---- a fault in each step ---- */

static int fail_store(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    _Atomic int *left = t->hook_arg;
    bool counts = op == TOY_READ || op == TOY_WRITE || op == TOY_ZERO || op == TOY_DISCARD;
    return counts && atomic_fetch_sub(left, 1) == 0 ? -EIO : 0;
}

static void outside_unchanged(struct co *co, struct chain *c, uint64_t off, uint64_t len)
{
    uint8_t *buf = malloc(SIZE);
    CHECK_EQ(t_read(co, c->top, buf, SIZE, 0), 0);
    CHECK(!memcmp(buf, c->model, off));
    CHECK(!memcmp(buf + off + len, c->model + off + len, SIZE - off - len));
    memcpy(c->model, buf, SIZE);
    free(buf);
}

/* Runs one change with a fault after `n` calls of something. true: the fault came. */
static bool change_with_fault(struct co *co, struct chain *c, struct prng *rng, unsigned where, int n)
{
    struct toyfmt *f = c->f[c->layers - 1];
    _Atomic int left = n;
    uint64_t off, len;
    enum change what = (enum change)prng_below(rng, CHANGES);
    random_range(rng, &off, &len);
    f->t->hook_arg = &left;
    f->t->hook = where ? NULL : fail_store;
    if (where)
        f->fail_step = (int)where - 1;
    f->fail_after = where ? n : -1;
    int r = change(co, c, what, off, len, 77);
    f->t->hook = NULL;
    f->fail_after = -1;
    CHECK(r == 0 || r == -EIO);
    outside_unchanged(co, c, off, len);
    return r != 0;
}

static void faults(struct co *co, void *arg)
{
    struct prng rng;
    prng_init(&rng, 13);
    for (unsigned where = 0; where <= TOYFMT_DECODE + 1; where++) {
        unsigned hits = 0;
        for (unsigned round = 0; round < 30; round++) {
            struct chain *c = calloc(1, sizeof *c);
            chain_make(co, c, &rng, 1 + round % 3, round & 1);
            c->f[c->layers - 1]->absent_after_discard = false;
            for (int n = 0; n < 6; n++)
                hits += change_with_fault(co, c, &rng, where, n);
            chain_close(co, c);
        }
        CHECK(hits >= 3);                /* the step was reached at all */
    }
}

/* ---- the short paths ---- */

static void costs(struct co *co, void *arg)
{
    struct chain *c = calloc(1, sizeof *c);
    struct prng rng;
    uint8_t *buf = malloc(SIZE);
    prng_init(&rng, 1);
    chain_make(co, c, &rng, 1, false);
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(c->f[0], i, FMT_DATA, false, 1);
    CHECK_EQ(t_write(co, c->top, buf, 4096, 8192, 0), 0);
    unsigned before = mallocs;
    for (unsigned i = 0; i < 100; i++) {
        CHECK_EQ(t_write(co, c->top, buf, 4096, 8192, 0), 0);
        CHECK_EQ(t_read(co, c->top, buf, 4096, 4096), 0);
    }
    CHECK_EQ(mallocs, before);
    CHECK_EQ(c->f[0]->begun, 0);
    free(buf);
    chain_close(co, c);
}

/* Pieces of one request meet in the store, eight of them and no more (FEATURES 1.060). */
struct meeting { unsigned inside, most; bool met; };

static int meet(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct meeting *m = t->hook_arg;
    m->inside++;
    m->most = m->inside > m->most ? m->inside : m->most;
    m->met |= m->inside == FAN_WIDTH;
    for (unsigned i = 0; i < 1000 && !m->met; i++)
        co_yield(co);
    for (unsigned i = 0; i < 20; i++)
        co_yield(co);                                /* room for a ninth */
    m->inside--;
    return 0;
}

static void pieces_meet(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct meeting m = { 0 };
    uint8_t *buf = malloc(SIZE);
    for (uint32_t i = CLUSTERS; i-- > 0; )           /* no two neighbours lie side by side in the store */
        toyfmt_set(f, i, i % 3 ? FMT_DATA : FMT_ENCODED, false, (uint8_t)(i + 1));
    struct graph_node *n = toy_node(g, &f->im, NULL);
    f->t->hook = meet;
    f->t->hook_arg = &m;
    CHECK_EQ(t_read(co, n, buf, SIZE, 0), 0);
    CHECK_EQ(m.most, 8);
    for (uint32_t i = 0; i < CLUSTERS; i++)
        CHECK_EQ(buf[i * CLUSTER], i + 1);
    m = (struct meeting){ 0 };
    CHECK_EQ(t_write(co, n, buf, SIZE, 0, 0), 0);
    CHECK_EQ(m.most, 8);
    f->t->hook = NULL;
    free(buf);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

static void bounds(struct co *co, void *arg)
{
    struct chain *c = calloc(1, sizeof *c);
    struct prng rng;
    uint8_t buf[1024] = { 0 };
    struct graph_status st;
    prng_init(&rng, 1);
    chain_make(co, c, &rng, 2, false);
    struct graph_node *n = c->top, *ro = c->n[0];
    CHECK_EQ(t_read(co, n, buf, 0, SIZE), 0);
    CHECK_EQ(t_read(co, n, buf, 0, SIZE + 1), -EIO);
    CHECK_EQ(t_read(co, n, buf, 1024, SIZE - 512), -EIO);
    CHECK_EQ(t_read(co, n, buf, 512, UINT64_MAX - 100), -EIO);
    CHECK_EQ(t_write(co, n, buf, 0, SIZE, 0), 0);
    CHECK_EQ(t_write(co, n, buf, 1024, SIZE - 512, 0), -EIO);
    CHECK_EQ(t_write(co, ro, buf, 512, 0, 0), -EPERM);
    CHECK_EQ(graph_zero(co, ro, 0, 512, 0), -EPERM);
    CHECK_EQ(graph_discard(co, ro, 0, 512), -EPERM);
    CHECK_EQ(graph_zero(co, n, SIZE, 512, 0), -EIO);
    CHECK_EQ(graph_discard(co, n, SIZE - 100, 512), -EIO);
    CHECK_EQ(graph_status(co, n, NULL, SIZE, 512, &st), -EIO);
    CHECK_EQ(graph_flush(co, ro), 0);
    CHECK_EQ(c->f[0]->t->count[TOY_FLUSH], 0);
    CHECK_EQ(graph_flush(co, n), 0);
    CHECK_EQ(c->f[1]->t->count[TOY_FLUSH], 1);
    chain_close(co, c);
}

static void fua(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct toy *t;
    struct graph_node *n = toy_node(g, &f->im, NULL), *raw = toy_raw_node(co, g, SIZE, &t);
    uint8_t buf[512] = { 1 };
    CHECK_EQ(t_write(co, n, buf, 512, 0, GRAPH_FUA), 0);
    CHECK_EQ(f->t->count[TOY_FLUSH], 1);
    CHECK_EQ(t_write(co, raw, buf, 512, 0, GRAPH_FUA), 0);
    CHECK_EQ(t->count[TOY_FUA] + t->count[TOY_FLUSH], 1);
    CHECK_EQ(t_write(co, raw, buf, 512, 0, 0), 0);
    CHECK_EQ(t->count[TOY_FUA] + t->count[TOY_FLUSH], 1);
    raw->writethrough = n->writethrough = true;
    CHECK_EQ(t_write(co, raw, buf, 512, 0, 0), 0);
    CHECK_EQ(t->count[TOY_FUA] + t->count[TOY_FLUSH], 2);
    CHECK_EQ(t_write(co, n, buf, 512, 0, 0), 0);
    CHECK_EQ(f->t->count[TOY_FLUSH], 2);
    CHECK_EQ(graph_zero(co, n, 0, 4096, 0), 0);
    CHECK_EQ(f->t->count[TOY_FLUSH], 3);
    CHECK_EQ(graph_close(co, n), 0);
    CHECK_EQ(graph_close(co, raw), 0);
    graph_free(g);
}

/* ---- zero and discard ---- */

/* FEATURES 11.023, 11.024 */
static void zero_rules(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE - 512, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    uint8_t buf[512];
    /* edges of clusters that read zero are left alone; the short last cluster counts as whole */
    CHECK_EQ(graph_zero(co, n, 512, SIZE - 1024, GRAPH_NO_FALLBACK), 0);
    CHECK_EQ(f->begun, 0);
    CHECK_EQ(f->map[0].kind, FMT_ABSENT);
    CHECK_EQ(f->map[CLUSTERS - 1].kind, FMT_ZERO);
    /* an edge with data cannot be zeroed without writing */
    toyfmt_set(f, 0, FMT_DATA, false, 5);
    toyfmt_set(f, 1, FMT_DATA, false, 5);
    CHECK_EQ(graph_zero(co, n, 512, 2 * CLUSTER - 512, GRAPH_NO_FALLBACK), -ENOTSUP);
    CHECK_EQ(f->map[1].kind, FMT_DATA);
    CHECK_EQ(graph_zero(co, n, 512, 2 * CLUSTER - 512, 0), 0);
    CHECK_EQ(f->map[1].kind, FMT_ZERO);
    CHECK_EQ(f->map[0].kind, FMT_DATA);
    CHECK_EQ(t_read(co, n, buf, 512, 512), 0);
    CHECK(mem_is_zero(buf, 512));
    CHECK_EQ(t_read(co, n, buf, 512, 0), 0);
    CHECK_EQ(buf[511], 5);
    /* a format that cannot */
    f->no_zero = true;
    toyfmt_set(f, 2, FMT_DATA, false, 6);
    CHECK_EQ(graph_zero(co, n, 2 * CLUSTER, CLUSTER, GRAPH_NO_FALLBACK), -ENOTSUP);
    CHECK_EQ(graph_zero(co, n, 2 * CLUSTER, CLUSTER, 0), 0);
    CHECK_EQ(t_read(co, n, buf, 512, 2 * CLUSTER), 0);
    CHECK(mem_is_zero(buf, 512));
    /* discard: inner clusters only, and only when wanted */
    toyfmt_set(f, 3, FMT_DATA, false, 7);
    toyfmt_set(f, 4, FMT_DATA, false, 7);
    CHECK_EQ(graph_discard(co, n, 3 * CLUSTER + 1, 2 * CLUSTER - 1), 0);
    CHECK(f->map[3].kind == FMT_DATA && f->map[4].kind == FMT_ZERO);
    n->discard = false;
    CHECK_EQ(graph_discard(co, n, 3 * CLUSTER, CLUSTER), 0);
    CHECK_EQ(f->map[3].kind, FMT_DATA);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- status ---- */

static void expect(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len, const char *what, unsigned depth)
{
    struct graph_status st;
    char text[8];
    CHECK_EQ(graph_status(co, n, bottom, off, SIZE - off, &st), 0);
    snprintf(text, sizeof text, "%c%c%c%c%c", st.present ? 'p' : '-', st.data ? 'd' : '-', st.zero ? 'z' : '-', st.compressed ? 'c' : '-', st.past_end ? 'e' : '-');
    CHECK_EQ(st.len, len);
    CHECK_EQ(st.depth, depth);
    if (!CHECK(!strcmp(text, what)))
        fprintf(stderr, "at %llu: %s, not %s\n", (unsigned long long)off, text, what);
}

static void status(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *low = toyfmt_new(co, SIZE / 2, CLUSTER), *top = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *nl = toy_node(g, &low->im, NULL), *nt = toy_node(g, &top->im, nl);
    low->cut = top->cut = true;          /* neighbours merge whatever the answers' lengths are */
    toyfmt_set(top, 0, FMT_DATA, false, 1);
    toyfmt_set(top, 1, FMT_DATA, true, 1);
    toyfmt_set(top, 2, FMT_ZERO, false, 0);
    toyfmt_set(top, 3, FMT_ENCODED, false, 1);
    toyfmt_set(low, 4, FMT_DATA, false, 1);
    toyfmt_set(low, 5, FMT_ZERO, false, 1);
    toyfmt_set(top, 20, FMT_DATA, false, 1);
    toyfmt_set(low, 8, FMT_DATA, false, 1);      /* 7 and 8 do not lie side by side in the file */
    toyfmt_set(low, 7, FMT_DATA, false, 1);
    expect(co, nt, NULL, 7 * CLUSTER, CLUSTER, "pd---", 1);
    expect(co, nt, NULL, 8 * CLUSTER, CLUSTER, "pd---", 1);
    toyfmt_set(low, 7, FMT_ABSENT, false, 0);
    toyfmt_set(low, 8, FMT_ABSENT, false, 0);
    expect(co, nt, NULL, 0, 2 * CLUSTER, "pd---", 0);
    expect(co, nt, NULL, 512, 2 * CLUSTER - 512, "pd---", 0);
    expect(co, nt, NULL, 2 * CLUSTER, CLUSTER, "p-z--", 0);
    expect(co, nt, NULL, 3 * CLUSTER, CLUSTER, "pd-c-", 0);
    expect(co, nt, NULL, 4 * CLUSTER, CLUSTER, "pd---", 1);
    expect(co, nt, NULL, 5 * CLUSTER, CLUSTER, "p-z--", 1);
    expect(co, nt, NULL, 6 * CLUSTER, 6 * CLUSTER, "--z--", 1);
    expect(co, nt, NULL, 12 * CLUSTER, 8 * CLUSTER, "--z-e", 0);
    expect(co, nt, NULL, 20 * CLUSTER, CLUSTER, "pd---", 0);
    expect(co, nt, nl, 4 * CLUSTER, 16 * CLUSTER, "-----", 0);
    expect(co, nt, nl, 20 * CLUSTER, CLUSTER, "pd---", 0);
    struct graph_status st;
    CHECK_EQ(graph_status(co, nt, NULL, 4 * CLUSTER + 512, 1024, &st), 0);
    CHECK(st.len == 1024 && st.has_offset && st.offset == (uint64_t)low->map[4].host * CLUSTER + 512 && st.node == nl);
    CHECK_EQ(graph_close(co, nt), 0);
    CHECK_EQ(graph_close(co, nl), 0);
    graph_free(g);
}

static void status_raw(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toy *t;
    struct graph_node *n = toy_raw_node(co, g, SIZE, &t);
    t->bytes[8192] = 1;
    expect(co, n, NULL, 0, 8192, "p-z--", 0);
    expect(co, n, NULL, 8192, 512, "pd---", 0);
    expect(co, n, NULL, 8704, SIZE - 8704, "p-z--", 0);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- the first sector of a disk guessed to be raw ---- */

static void guard(struct co *co, void *arg)
{
    static const uint8_t magic[8] = "QFI\xfb\0\0\0\3";
    struct graph *g = toy_graph(co);
    struct toy *t;
    struct graph_node *n = toy_raw_node(co, g, SIZE, &t);
    uint8_t buf[1024] = { 0 };
    n->guard_first = true;
    CHECK_EQ(t_write(co, n, magic, 8, 0, 0), -EPERM);
    CHECK_EQ(t_write(co, n, magic, 7, 0, 0), 0);           /* no format yet */
    CHECK_EQ(t_write(co, n, magic + 7, 1, 7, 0), -EPERM);  /* this byte would complete it */
    CHECK_EQ(t->bytes[7], 0);
    memcpy(t->bytes, "QFI\xfb\1\0\0\3", 8);
    CHECK_EQ(graph_zero(co, n, 4, 1, 0), -EPERM);          /* so would this zero */
    CHECK_EQ(graph_discard(co, n, 4, 1), 0);
    CHECK_EQ(t->bytes[4], 1);
    CHECK_EQ(graph_zero(co, n, 0, 8, 0), 0);
    memcpy(buf, magic, 8);
    CHECK_EQ(t_write(co, n, buf, 1024, 0, 0), -EPERM);
    CHECK_EQ(t_write(co, n, buf, 1024, 512, 0), 0);
    buf[3] = 0;
    CHECK_EQ(t_write(co, n, buf, 1024, 0, 0), 0);
    CHECK(!memcmp(t->bytes, buf, 1024));
    n->guard_first = false;
    CHECK_EQ(t_write(co, n, magic, 8, 0, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- a raw file whose length is no multiple of 512 ---- */

static void raw_tail(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toy *t;
    struct graph_node *n = toy_raw_node(co, g, 1000, &t);
    uint8_t buf[1024];
    memset(t->bytes, 4, 1000);
    CHECK_EQ(graph_length(n), 1024);
    CHECK_EQ(t_read(co, n, buf, 1024, 0), 0);
    CHECK(buf[999] == 4 && mem_is_zero(buf + 1000, 24));
    CHECK_EQ(t->len, 1000);
    memset(buf, 5, sizeof buf);
    CHECK_EQ(t_write(co, n, buf, 512, 512, 0), 0);
    CHECK_EQ(t->len, 1024);
    CHECK_EQ(t_read(co, n, buf, 1024, 0), 0);
    CHECK(buf[511] == 4 && buf[512] == 5 && buf[1023] == 5);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- growing over a longer backing image ---- */

static void grow(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *low = toyfmt_new(co, SIZE, CLUSTER), *top = toyfmt_new(co, 5 * CLUSTER + 512, CLUSTER);
    struct graph_node *nl = toy_node(g, &low->im, NULL), *nt = toy_node(g, &top->im, nl);
    uint8_t *buf = malloc(SIZE);
    struct byre_err err;
    for (uint32_t i = 0; i < CLUSTERS; i++)
        toyfmt_set(low, i, FMT_DATA, false, 3);
    nl->read_only = true;
    CHECK_EQ(graph_resize(co, nl, SIZE, FMT_PREALLOC_OFF, &err), -EROFS);
    CHECK_EQ(graph_resize(co, nt, 10 * CLUSTER, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(graph_length(nt), 10 * CLUSTER);
    CHECK_EQ(t_read(co, nt, buf, 10 * CLUSTER, 0), 0);
    CHECK(buf[5 * CLUSTER + 511] == 3 && mem_is_zero(buf + 5 * CLUSTER + 512, 5 * CLUSTER - 512));
    top->fail_step = TOYFMT_ZERO;
    top->fail_after = 0;
    CHECK_EQ(graph_resize(co, nt, 12 * CLUSTER, FMT_PREALLOC_OFF, &err), -EIO);
    CHECK_EQ(graph_length(nt), 10 * CLUSTER);
    CHECK_EQ(graph_close(co, nt), 0);
    CHECK_EQ(graph_close(co, nl), 0);
    graph_free(g);
    free(buf);
}

/* ---- how fast a node has been changed ---- */

#define SECOND UINT64_C(1000000000)

static void changed_lately(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct graph_changes c;
    uint64_t now = 1000 * SECOND;
    CHECK(!graph_changes_get(n, now, &c));
    const struct stats_done data = { GRAPH_STATS_WRITE, 0, 4096, now }, zeros = { GRAPH_STATS_WRITE, 0, 1 << 30, now, .blank = true }, seen = { GRAPH_STATS_READ, 0, 4096, now },
                            gone = { GRAPH_STATS_DISCARD, 0, 1 << 30, now, .blank = true };
    stats_count(n->stats, 0, &data, now);
    CHECK(!graph_changes_get(n, now + SECOND / 2, &c));                /* too short to tell */
    for (unsigned i = 1; i <= 200; i++)                                /* 20 s: 10 a second on one loop, 20 on the other */
        for (unsigned k = 0; k < 3; k++)
            stats_count(n->stats, k > 0, &data, now + i * SECOND / 10);
    now += 20 * SECOND;
    CHECK(graph_changes_get(n, now, &c));
    CHECK(c.span_ns > 6 * SECOND && c.span_ns <= 8 * SECOND);
    CHECK(c.bytes * SECOND / c.span_ns > 29 * 4096 && c.bytes * SECOND / c.span_ns < 33 * 4096);
    CHECK(graph_changes_get(n, now + 5 * SECOND, &c) && c.bytes < 31 * 4096 * 4 && c.span_ns > 6 * SECOND);      /* less of it is recent */
    CHECK(!graph_changes_get(n, now + 60 * SECOND, &c) && !c.bytes);   /* and in the end nothing */
    now += 100 * SECOND;
    for (unsigned i = 0; i < 20; i++)
        stats_count(n->stats, 1, &seen, now + i * SECOND / 10);
    CHECK(graph_changes_get(n, now + 2 * SECOND, &c) && !c.bytes && c.span_ns == 2 * SECOND);      /* in use, unchanged */
    stats_count(n->stats, 1, &zeros, now + 2 * SECOND);
    stats_count(n->stats, 0, &gone, now + 2 * SECOND);
    CHECK(graph_changes_get(n, now + 2 * SECOND, &c));
    CHECK_EQ(c.bytes, 2 * STATS_BLANK_MOST);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

#define RUN(fn, loop) static void test_##fn(void **state) { t_run(loop, fn, NULL); }
RUN(reads, 0)
RUN(changes, 1)
RUN(large_clusters, 0)
RUN(faults, 0)
RUN(costs, 1)
RUN(pieces_meet, 0)
RUN(bounds, 0)
RUN(fua, 0)
RUN(zero_rules, 1)
RUN(status, 0)
RUN(status_raw, 0)
RUN(guard, 1)
RUN(grow, 0)
RUN(raw_tail, 1)
RUN(changed_lately, 0)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads), cmocka_unit_test(test_changes), cmocka_unit_test(test_large_clusters),
        cmocka_unit_test(test_faults), cmocka_unit_test(test_costs), cmocka_unit_test(test_pieces_meet), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_fua), cmocka_unit_test(test_zero_rules), cmocka_unit_test(test_status),
        cmocka_unit_test(test_status_raw), cmocka_unit_test(test_guard), cmocka_unit_test(test_grow),
        cmocka_unit_test(test_raw_tail), cmocka_unit_test(test_changed_lately),
    };
    return T_MAIN("requests", tests);
}
