/* SPDX-License-Identifier: MIT
 *
 * index_test.c: chains with an index against the plain walk.
 *
 * Purpose      Every piece that the index answers is what the walk from the top down says, for random chains of up to 12
 *              layers with every kind of extent and different lengths; memory stays below its limit; layers that
 *              change under readers on two loops never show a cluster that was given up.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  As above; meant for TSan, too.
 * Failure      A failed check fails the test.
 * Tests        This is one. STRESS_ROUNDS=n makes the race longer.
 */
#include "graph/toyfmt_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAYERS_MAX 12u
#define SIZE (1u << 20)

struct chain {
    struct graph *g;
    struct toyfmt *f[LAYERS_MAX];           /* bottom first; NULL: raw */
    struct graph_node *n[LAYERS_MAX], *top;
    unsigned layers;
};

/* index.c calls this between finding an extent and entering the section of its layer. */
static _Atomic bool pauses;
void index_pause(void);
static void held_pause(void);
void index_pause(void)
{
    held_pause();
    static _Atomic unsigned calls;
    if (atomic_load(&pauses) && atomic_fetch_add(&calls, 1) % 40 == 0 && !rt_on_loop(rt_loop_at(t_rt, 0)))
        usleep(2000);
}

/* The toy format, which says of some encoded clusters that they are encrypted. */
static struct fmt_ops marked_ops;
static const struct fmt_ops *unmarked_ops;
static void mark(struct fmt_extent *e) { e->encrypted = e->kind == FMT_ENCODED && e->enc_guest / 4096 % 3 == 1; }

static int marked_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e)
{
    int r = unmarked_ops->map(co, im, off, len, e);
    mark(e);
    return r;
}

static int marked_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e)
{
    static _Atomic unsigned asked;
    int r = atomic_fetch_add(&asked, 1) % 8 == 7 ? -EAGAIN : unmarked_ops->map_at_hand(im, off, len, e);
    mark(e);
    return r;
}

static void chain_make(struct co *co, struct chain *c, struct prng *rng, unsigned layers)
{
    static const uint32_t clusters[] = { 4096, 2048, 8192, 65536 };
    *c = (struct chain){ .g = toy_graph(co), .layers = layers };
    for (unsigned i = 0; i < layers; i++) {
        struct graph_node *under = i ? c->n[i - 1] : NULL;
        if (!i && prng_one_in(rng, 3)) {
            struct toy *t;
            uint64_t len = SIZE / 4 + prng_below(rng, SIZE);        /* any number of bytes */
            c->n[0] = toy_raw_node(co, c->g, len, &t);
            prng_fill(rng, t->bytes, len);
        } else {
            uint64_t size = i + 1 == layers ? SIZE : SIZE / 4 + prng_below(rng, SIZE / SECTOR) * SECTOR;
            c->f[i] = toyfmt_new(co, size, clusters[prng_below(rng, 4)]);
            c->f[i]->cut = prng_one_in(rng, 2);
            if (c->f[i]->im.ops != &marked_ops)
                unmarked_ops = c->f[i]->im.ops;
            marked_ops = *unmarked_ops;
            marked_ops.map = marked_map;
            marked_ops.map_at_hand = marked_map_at_hand;
            c->f[i]->im.ops = &marked_ops;
            prng_init(&c->f[i]->rng, prng_u64(rng));
            for (uint32_t k = 0; k < c->f[i]->clusters; k++)
                toyfmt_set(c->f[i], k, prng_one_in(rng, 2) ? FMT_ABSENT : (enum fmt_kind)prng_below(rng, 4), prng_one_in(rng, 3), (uint8_t)(1 + prng_below(rng, 200)));
            c->n[i] = toy_node(c->g, &c->f[i]->im, under);
        }
        c->n[i]->no_lock = false;
        c->n[i]->read_only = i + 1 < layers;
    }
    c->top = c->n[layers - 1];
    for (unsigned i = 0; i + 1 < layers; i++)
        if (prng_one_in(rng, i ? 20 : 3))
            c->n[i]->force_share = true;    /* somebody else may change it: the index ends here, unless it is raw */
    unsigned fixed = 0;
    for (const struct graph_node *n = c->top->backing; n && (!n->force_share || n->is_raw); n = n->backing)
        fixed++;
    index_attach(c->top->backing);
    CHECK_EQ(index_stats(c->top->backing).layers, fixed < 2 ? 0 : fixed);
}

static void chain_close(struct co *co, struct chain *c)
{
    for (unsigned i = c->layers; i-- > 0;)
        CHECK_EQ(graph_close(co, c->n[i]), 0);
    CHECK_EQ(atomic_load(&c->g->index_bytes), 0);
    graph_free(c->g);
}

/* p, from the index or not, says what the plain walk says, all the way. */
static void check_piece(struct co *co, struct chain *c, struct graph_node *bottom, const struct piece *p)
{
    for (uint64_t at = p->pos; at < p->pos + p->len;) {
        struct piece w;
        uint64_t by = at - p->pos;
        CHECK_EQ(chain_walk(co, c->top, bottom, at, p->pos + p->len, &w), 0);
        piece_release(co, &w);
        enum fmt_kind kind = p->e.kind == FMT_ZERO && !p->layer ? FMT_ABSENT : p->e.kind;
        CHECK_EQ(kind, w.e.kind);
        CHECK_EQ(p->depth, w.depth);
        CHECK_EQ(p->past_end, w.past_end);
        CHECK_EQ(p->e.has_host, w.e.has_host);
        if (p->layer)
            CHECK(p->layer == w.layer);
        if (w.e.has_host)
            CHECK_EQ(p->e.host + by, w.e.host);
        if (w.e.kind == FMT_ENCODED) {
            CHECK_EQ(p->e.host, w.e.host);
            CHECK_EQ(p->e.enc_len, w.e.enc_len);
            CHECK_EQ(p->e.enc_guest, w.e.enc_guest);
            CHECK_EQ(p->e.encrypted, w.e.encrypted);
        }
        at += w.len;
    }
}

static void check_range(struct co *co, struct chain *c, struct graph_node *bottom, uint64_t off, uint64_t end)
{
    struct chain_memo memo = { { 0 } };
    while (off < end) {
        struct piece p;
        CHECK_EQ(chain_find(co, c->top, bottom, off, end, &memo, &p), 0);
        CHECK(p.len && p.len <= end - off && p.pos == off);
        CHECK_EQ(p.held, p.e.kind == FMT_DATA || p.e.kind == FMT_ENCODED);
        check_piece(co, c, bottom, &p);
        piece_release(co, &p);
        off += p.len;
    }
}

static struct graph_node *random_bottom(struct chain *c, struct prng *rng)
{
    return prng_one_in(rng, 4) ? c->n[prng_below(rng, c->layers - 1)] : NULL;
}

static void random_chains(struct co *co, void *arg)
{
    uint64_t limit = (uint64_t)(uintptr_t)arg, fills = 0, indexes = 0;
    struct prng rng;
    prng_init(&rng, limit + 3);
    for (unsigned round = 0; round < 60; round++) {
        struct chain c;
        chain_make(co, &c, &rng, 2 + (unsigned)prng_below(&rng, LAYERS_MAX - 1));
        if (limit)
            c.g->index_limit = limit;
        for (unsigned i = 0; i < 150; i++) {
            uint64_t off = prng_below(&rng, SIZE), len = 1 + prng_below(&rng, min_u64(SIZE - off, prng_one_in(&rng, 4) ? SIZE : 16384));
            check_range(co, &c, random_bottom(&c, &rng), off, off + len);
            if (i % 10 == 0)
                co_yield(co);               /* windows that were replaced go */
        }
        struct index_stats s = index_stats(c.top->backing);
        fills += s.fills;
        indexes += s.layers > 0;
        if (limit)
            CHECK(s.bytes <= limit);
        uint64_t before = s.fills;
        for (uint64_t off = 0; off < SIZE; off += 4096)
            check_range(co, &c, NULL, off, off + 4096);
        check_range(co, &c, NULL, 0, SIZE);
        s = index_stats(c.top->backing);
        before = s.fills;
        for (uint64_t off = 0; off < SIZE && !limit; off += 4096)
            check_range(co, &c, NULL, off, off + 4096);
        if (!limit)
            CHECK_EQ(index_stats(c.top->backing).fills, before);    /* all is known now */
        chain_close(co, &c);
    }
    fprintf(stderr, "%u indexes, %u fills\n", (unsigned)indexes, (unsigned)fills);
    CHECK(indexes > 30 && fills > 1000);
}

/* A layer's error is told, and not remembered; one in a part that nobody asked for is not even told. */
static void errors(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f[3];
    struct graph_node *n[3];
    uint8_t buf[512];
    for (unsigned i = 0; i < 3; i++) {
        f[i] = toyfmt_new(co, SIZE, 4096u << (2 * !i));
        n[i] = toy_node(g, &f[i]->im, i ? n[i - 1] : NULL);
        n[i]->no_lock = false;
        n[i]->read_only = i < 2;
        for (uint32_t k = 0; !i && k < f[i]->clusters; k++)
            toyfmt_set(f[i], k, FMT_DATA, false, 7);
    }
    index_attach(n[1]);
    f[0]->fail_step = TOYFMT_MAP;
    f[0]->fail_after = 0;
    CHECK_EQ(t_read(co, n[2], buf, 512, 1024), 0);                  /* the map at 0 fails, the one at 1024 does not */
    CHECK_EQ(buf[0], 7);
    f[0]->fail_after = 0;
    CHECK_EQ(t_read(co, n[2], buf, 512, SIZE / 2), -EIO);
    CHECK_EQ(t_read(co, n[2], buf, 512, SIZE / 2), 0);
    CHECK_EQ(buf[0], 7);
    for (unsigned i = 3; i-- > 0;)
        CHECK_EQ(graph_close(co, n[i]), 0);
    graph_free(g);
}

/* Where a layer ends with zeros of its own, and reads zeros because it ended, are two things. */
static void ends(struct co *co, void *arg)
{
    struct chain c = { .g = toy_graph(co), .layers = 4 };
    for (unsigned i = 0; i < 4; i++) {
        c.f[i] = toyfmt_new(co, i == 1 ? 8 * 4096 : SIZE, 4096);
        c.n[i] = toy_node(c.g, &c.f[i]->im, i ? c.n[i - 1] : NULL);
        c.n[i]->no_lock = false;
        c.n[i]->read_only = i < 3;
    }
    c.top = c.n[3];
    toyfmt_set(c.f[1], 7, FMT_ZERO, false, 0);
    toyfmt_set(c.f[0], 6, FMT_ZERO, false, 0);
    toyfmt_set(c.f[0], 8, FMT_DATA, false, 1);
    index_attach(c.n[2]);
    for (unsigned round = 0; round < 2; round++)
        for (uint64_t off = 0; off < 16 * 4096; off += 4096)
            check_range(co, &c, NULL, off, off + 4096);
    chain_close(co, &c);
}

/* Two overlays of one base use one index; without a change they trust it, after a change they do not. */
static void shared_and_changed(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f[4];
    struct graph_node *n[4];
    uint8_t buf[512];
    for (unsigned i = 0; i < 4; i++) {
        f[i] = toyfmt_new(co, SIZE, 4096);
        n[i] = toy_node(g, &f[i]->im, i == 3 ? n[1] : i ? n[i - 1] : NULL);
        n[i]->no_lock = false;
        n[i]->read_only = i < 2;
    }
    toyfmt_set(f[0], 3, FMT_DATA, false, 9);
    index_attach(n[2]->backing);
    index_attach(n[3]->backing);
    CHECK_EQ(index_stats(n[1]).layers, 2);
    CHECK_EQ(t_read(co, n[2], buf, 512, 3 * 4096), 0);
    unsigned maps = f[0]->calls[TOYFMT_MAP];
    CHECK(maps > 0);
    CHECK_EQ(t_read(co, n[3], buf, 512, 3 * 4096 + 512), 0);        /* the other overlay */
    CHECK_EQ(f[0]->calls[TOYFMT_MAP], maps);
    CHECK_EQ(buf[0], 9);
    graph_mapping_change_begin(co, n[1], 2 * 4096, 4096);           /* a neighbour in the same window, but nothing is lost */
    toyfmt_set(f[1], 3, FMT_DATA, false, 5);
    CHECK_EQ(t_read(co, n[2], buf, 512, 3 * 4096), 0);
    CHECK_EQ(buf[0], 5);
    uint64_t fills = index_stats(n[1]).fills;
    CHECK_EQ(t_read(co, n[2], buf, 512, 3 * 4096), 0);
    CHECK_EQ(index_stats(n[1]).fills, fills);                       /* not remembered yet */
    graph_mapping_change_end(n[1]);
    CHECK_EQ(t_read(co, n[3], buf, 512, 3 * 4096), 0);
    CHECK_EQ(index_stats(n[1]).fills, fills + 1);
    CHECK_EQ(t_read(co, n[2], buf, 512, 9 * 4096), 0);
    maps = f[0]->calls[TOYFMT_MAP];
    graph_mapping_change_begin(co, n[0], SIZE - 4096, 4096);        /* far away: what is known stays known */
    graph_mapping_change_end(n[0]);
    CHECK_EQ(t_read(co, n[2], buf, 512, 9 * 4096), 0);
    CHECK_EQ(f[0]->calls[TOYFMT_MAP], maps);
    for (unsigned i = 4; i-- > 0;)
        CHECK_EQ(graph_close(co, n[i]), 0);
    CHECK_EQ(atomic_load(&g->index_bytes), 0);
    graph_free(g);
}

/* ---- changes under readers ---- */

#define RACE_CLUSTER 4096u
#define RACE_CLUSTERS 12u
#define RACE_SIZE (RACE_CLUSTERS * RACE_CLUSTER)
#define READERS 6u

struct race { struct graph *g; struct graph_node *n[4]; struct toyfmt *f[4]; unsigned rounds; _Atomic unsigned running; _Atomic bool stop; _Atomic uint64_t reads; };
struct race_reader { struct race *r; unsigned id; };

/* Zeros, or the stamp of that sector, whole; never what a freed or fresh cluster holds. */
static bool sector_is_sound(const uint8_t *buf, uint32_t sector)
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

static void race_read(struct co *co, void *arg)
{
    struct race_reader *d = arg;
    struct prng rng;
    prng_init(&rng, d->id + 50);
    while (!atomic_load(&d->r->stop)) {
        uint32_t sector = (uint32_t)prng_below(&rng, RACE_SIZE / SECTOR - 16), n = 1 + (uint32_t)prng_below(&rng, 16);
        uint8_t buf[16 * SECTOR];
        CHECK_EQ(t_read(co, d->r->n[3], buf, n * SECTOR, (uint64_t)sector * SECTOR), 0);
        for (uint32_t i = 0; i < n; i++)
            if (!sector_is_sound(buf + i * SECTOR, sector + i))
                CHECK_EQ(sector + i, -1);
        atomic_fetch_add(&d->r->reads, 1);
        if (prng_one_in(&rng, 16))
            co_yield(co);
    }
    atomic_fetch_sub(&d->r->running, 1);
}

/* Gives a cluster of a lower layer up, or writes it: it goes to another place. Always the whole mapping change inside. */
static void race_change(struct co *co, struct race *r, struct prng *rng)
{
    unsigned l = (unsigned)prng_below(rng, 3);
    uint32_t c = (uint32_t)prng_below(rng, RACE_CLUSTERS);
    uint64_t off = (uint64_t)c * RACE_CLUSTER, gen = prng_below(rng, 1000) + 1;
    uint64_t words[RACE_CLUSTER / 8];
    graph_mapping_change_begin(co, r->n[l], off, RACE_CLUSTER);
    r->n[l]->read_only = false;
    if (prng_one_in(rng, 2)) {
        CHECK_EQ(graph_discard(co, r->n[l], off, RACE_CLUSTER), 0);
    } else {
        for (unsigned i = 0; i < RACE_CLUSTER / 8; i++)
            words[i] = (uint64_t)(off / SECTOR + i * 8 / SECTOR + 1) << 32 | gen;
        CHECK_EQ(t_write(co, r->n[l], words, RACE_CLUSTER, off, 0), 0);
    }
    r->n[l]->read_only = true;
    graph_mapping_change_end(r->n[l]);
}

/* An answer of map() that arrives late, when the mapping is another one. */
static struct fmt_ops late_ops;
static const struct fmt_ops *toy_ops;
static int late_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e)
{
    int r = toy_ops->map(co, im, off, len, e);
    if (off / RACE_CLUSTER % 3 == 0)
        (void)co_sleep(co, 50000);
    return r;
}

/* Some reads arrive late: what they were mapped to may be gone by then unless a section holds it. */
static int late_read(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op == TOY_READ && off / 512 % 5 == 0)
        (void)co_sleep(co, 100000);
    return 0;
}

static void race(struct co *co, void *arg)
{
    struct race *r = calloc(1, sizeof *r);
    const char *rounds = getenv("STRESS_ROUNDS");
    struct prng rng;
    prng_init(&rng, 8);
    r->rounds = rounds ? (unsigned)strtoul(rounds, NULL, 10) : 1500;
    r->g = toy_graph(co);
    for (unsigned i = 0; i < 4; i++) {
        r->f[i] = toyfmt_new(co, RACE_SIZE, RACE_CLUSTER);
        r->f[i]->absent_after_discard = i % 2;
        r->f[i]->t->hook = late_read;
        toy_ops = r->f[i]->im.ops;
        late_ops = *toy_ops;
        late_ops.map = late_map;
        r->n[i] = toy_node(r->g, &r->f[i]->im, i ? r->n[i - 1] : NULL);
        r->n[i]->no_lock = false;
        r->n[i]->read_only = i < 3;
    }
    for (unsigned i = 0; i < 4; i++)
        r->f[i]->im.ops = &late_ops;
    index_attach(r->n[2]);
    CHECK_EQ(index_stats(r->n[2]).layers, 3);
    atomic_store(&pauses, true);
    struct race_reader readers[READERS];
    r->running = READERS;
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct race_reader){ r, i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), race_read, &readers[i]), 0);
    }
    for (unsigned i = 0; i < r->rounds; i++) {
        race_change(co, r, &rng);
        if (prng_one_in(&rng, 2))
            (void)co_sleep(co, prng_below(&rng, 400000));
    }
    atomic_store(&r->stop, true);
    while (atomic_load(&r->running))
        (void)co_sleep(co, 1000000);
    atomic_store(&pauses, false);
    fprintf(stderr, "%u reads, %u fills\n", (unsigned)r->reads, (unsigned)index_stats(r->n[2]).fills);
    CHECK(index_stats(r->n[2]).fills > r->rounds / 4 && r->reads > r->rounds / 4);
    for (unsigned i = 4; i-- > 0;) {
        r->f[i]->t->hook = NULL;
        CHECK_EQ(graph_close(co, r->n[i]), 0);
    }
    graph_free(r->g);
    free(r);
}

/* ---- each window keeps its place as long as there is room ---- */

static void no_thrash(struct co *co, void *arg)
{
    enum { WINDOWS = 32, UNITS = 3 };
    struct graph *g = toy_graph(co);
    struct toyfmt *f[3];
    struct graph_node *n[3];
    uint8_t buf[512];
    for (unsigned i = 0; i < 3; i++) {
        f[i] = toyfmt_new(co, WINDOWS * 131072, 4096);
        n[i] = toy_node(g, &f[i]->im, i ? n[i - 1] : NULL);
        n[i]->no_lock = false;
        n[i]->read_only = i < 2;
        for (uint32_t k = 0; i < 2 && k < f[i]->clusters; k++)
            if (k % 2 == i)
                toyfmt_set(f[i], k, FMT_DATA, false, 7);
    }
    index_attach(n[1]);
    for (unsigned round = 0; round < 2; round++)
        for (unsigned unit = 0; unit < UNITS; unit++)
            for (unsigned w = 0; w < WINDOWS; w++)
                CHECK_EQ(t_read(co, n[2], buf, 512, w * 131072 + unit * 3 * 4096), 0);
    CHECK_EQ(index_stats(n[1]).fills, WINDOWS * UNITS);
    for (unsigned i = 3; i-- > 0;)
        CHECK_EQ(graph_close(co, n[i]), 0);
    graph_free(g);
}

/* ---- a second question about a window answers for the rest of it (N6) ---- */

#define SWEPT 32u                                                   /* clusters of a window */

struct swept { struct graph *g; struct graph_node *n[4]; struct toyfmt *f[4]; };

/* Cluster k of the window lies in layer 2 - k % 3, and everything in the lowest one. */
static void swept_make(struct co *co, struct swept *s)
{
    s->g = toy_graph(co);
    for (unsigned i = 0; i < 4; i++) {
        s->f[i] = toyfmt_new(co, SWEPT * 4096, 4096);
        s->n[i] = toy_node(s->g, &s->f[i]->im, i ? s->n[i - 1] : NULL);
        s->n[i]->no_lock = false;
        s->n[i]->read_only = i < 3;
        for (uint32_t k = 0; i < 3 && k < SWEPT; k++)
            if (!i || k % 3 == 2 - i)
                toyfmt_set(s->f[i], k, FMT_DATA, false, (uint8_t)(10 * i + 1));
    }
    index_attach(s->n[2]);
    CHECK_EQ(index_stats(s->n[2]).layers, 3);
}

static void swept_close(struct co *co, struct swept *s)
{
    for (unsigned i = 4; i-- > 0;)
        CHECK_EQ(graph_close(co, s->n[i]), 0);
    CHECK_EQ(atomic_load(&s->g->index_bytes), 0);
    graph_free(s->g);
}

static unsigned swept_maps(const struct swept *s) { return s->f[0]->calls[TOYFMT_MAP] + s->f[1]->calls[TOYFMT_MAP] + s->f[2]->calls[TOYFMT_MAP]; }

static void swept_read(struct co *co, struct swept *s, uint32_t k, uint8_t want)
{
    uint8_t buf[512];
    CHECK_EQ(t_read(co, s->n[3], buf, 512, k * 4096), 0);
    CHECK_EQ(buf[0], want);
}

static void swept_read_all(struct co *co, struct swept *s)
{
    for (uint32_t k = 0; k < SWEPT; k++)
        swept_read(co, s, k, (uint8_t)(10 * (2 - k % 3) + 1));
}

static void sweeps(struct co *co, void *arg)
{
    struct swept s;
    swept_make(co, &s);
    swept_read(co, &s, 0, 21);                                      /* the first question is about itself */
    CHECK_EQ(index_stats(s.n[2]).fills, 1);
    CHECK_EQ(s.f[1]->calls[TOYFMT_MAP], 0);
    swept_read(co, &s, 3, 21);                                      /* the second one goes as deep as it had to */
    CHECK_EQ(index_stats(s.n[2]).fills, 2);
    CHECK_EQ(s.f[1]->calls[TOYFMT_MAP] + s.f[0]->calls[TOYFMT_MAP], 0);
    unsigned maps = swept_maps(&s);
    for (uint32_t k = 0; k < SWEPT; k += 3)
        swept_read(co, &s, k, 21);
    CHECK_EQ(swept_maps(&s), maps);
    swept_read(co, &s, 2, 1);
    CHECK_EQ(index_stats(s.n[2]).fills, 3);
    maps = swept_maps(&s);
    swept_read_all(co, &s);
    CHECK_EQ(swept_maps(&s), maps);
    CHECK_EQ(index_stats(s.n[2]).fills, 3);
    graph_mapping_change_begin(co, s.n[1], 7 * 4096, 4096);         /* what nobody asked for is forgotten as well */
    toyfmt_set(s.f[1], 7, FMT_DATA, false, 99);
    graph_mapping_change_end(s.n[1]);
    swept_read(co, &s, 7, 99);
    swept_close(co, &s);
}

/* A layer that cannot be asked for all of the window hides what lies below it all the same. */
static void sweep_fails(struct co *co, void *arg)
{
    struct swept s;
    for (int after = 0; after < 24; after++)
        for (unsigned layer = 0; layer < 3; layer++) {
            swept_make(co, &s);
            swept_read(co, &s, 2, 1);
            s.f[layer]->fail_step = TOYFMT_MAP;
            s.f[layer]->fail_after = after + 1;                     /* the walk itself goes well */
            swept_read(co, &s, 5, 1);
            s.f[layer]->fail_after = -1;
            swept_read_all(co, &s);
            swept_read_all(co, &s);
            swept_close(co, &s);
        }
}

/* ---- a change waits for who has found the old place and is not in the layer's section yet ---- */

static struct { _Atomic int stage; atomic_bool in_map, begins, began, violated; struct race r; } held;

static void held_pause(void)
{
    if (rt_on_loop(rt_loop_at(t_rt, 0)) || atomic_load(&held.stage) != 1)
        return;
    atomic_store(&held.stage, 2);
    for (int i = 0; i < 100 && !held.violated; i++) {
        usleep(1000);
        atomic_store(&held.violated, atomic_load(&held.began));
    }
}

static int slow_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e)
{
    atomic_store(&held.in_map, true);
    while (atomic_load(&held.stage) != 2)
        (void)co_sleep(co, 1000000);
    return toy_ops->map(co, im, off, len, e);
}

static void held_read(struct co *co, void *arg)
{
    uint8_t buf[512];
    bool other_loop = arg;
    while (other_loop && !atomic_load(&held.begins))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(t_read(co, held.r.n[2], buf, 512, other_loop ? 0 : 4096), 0);
    atomic_fetch_sub(&held.r.running, 1);
}

static void change_waits(struct co *co, void *arg)
{
    struct race *r = &held.r;
    uint8_t buf[512];
    memset(&held, 0, sizeof held);
    r->g = toy_graph(co);
    for (unsigned i = 0; i < 3; i++) {
        r->f[i] = toyfmt_new(co, SIZE, 4096);
        r->n[i] = toy_node(r->g, &r->f[i]->im, i ? r->n[i - 1] : NULL);
        r->n[i]->no_lock = false;
        r->n[i]->read_only = i < 2;
    }
    toyfmt_set(r->f[0], 0, FMT_DATA, false, 7);
    index_attach(r->n[1]);
    CHECK_EQ(t_read(co, r->n[2], buf, 512, 0), 0);
    toy_ops = r->f[1]->im.ops;
    late_ops = *toy_ops;
    late_ops.map = slow_map;
    r->f[1]->im.ops = &late_ops;
    r->running = 2;
    atomic_store(&held.stage, 1);
    CHECK_EQ(rt_spawn(co_loop(co), held_read, NULL), 0);
    CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, 1), held_read, r), 0);
    while (!atomic_load(&held.in_map))
        (void)co_sleep(co, 1000000);
    atomic_store(&held.begins, true);                /* it waits for the first reader, who waits for the second one */
    graph_mapping_change_begin(co, r->n[0], 0, 4096);
    atomic_store(&held.began, true);
    graph_mapping_change_end(r->n[0]);
    while (atomic_load(&r->running))
        (void)co_sleep(co, 1000000);
    CHECK_EQ(held.stage, 2);
    CHECK(!held.violated);
    for (unsigned i = 3; i-- > 0;)
        CHECK_EQ(graph_close(co, r->n[i]), 0);
    graph_free(r->g);
}

static void test_random(void **state) { t_run(0, random_chains, NULL); }
static void test_small_memory(void **state) { t_run(0, random_chains, (void *)(uintptr_t)3000); }
static void test_errors(void **state) { t_run(0, errors, NULL); }
static void test_ends(void **state) { t_run(0, ends, NULL); }
static void test_shared(void **state) { t_run(0, shared_and_changed, NULL); }
static void test_no_thrash(void **state) { t_run(0, no_thrash, NULL); }
static void test_sweeps(void **state) { t_run(0, sweeps, NULL); }
static void test_sweep_fails(void **state) { t_run(0, sweep_fails, NULL); }
static void test_change_waits(void **state) { t_run(0, change_waits, NULL); }
static void test_race(void **state) { t_run(0, race, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random), cmocka_unit_test(test_small_memory), cmocka_unit_test(test_errors), cmocka_unit_test(test_ends),
        cmocka_unit_test(test_shared), cmocka_unit_test(test_no_thrash), cmocka_unit_test(test_sweeps),
        cmocka_unit_test(test_sweep_fails), cmocka_unit_test(test_change_waits),
        cmocka_unit_test(test_race),
    };
    return T_MAIN("index", tests);
}
