/* SPDX-License-Identifier: MIT
 *
 * bitmap_test.c: dirty bitmaps of a node: names and rules, what records, two loops that write while bitmaps change.
 * FEATURES 9.076, 9.077, 9.078, 9.079, 1.104, 1.105
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"

#define CLUSTER 8192u
#define SIZE (64u * CLUSTER)
#define GRANULARITY 512u
#define WRITERS 6u

static int add(struct co *co, struct graph_node *n, const char *name, uint64_t granularity, bool persistent, struct byre_err *err)
{
    return graph_bitmap_add(co, n, &(struct graph_bitmap_spec){ .name = name, .granularity = granularity, .persistent = persistent }, err);
}

static struct fmt_bitmap *find(struct co *co, struct graph_node *n, const char *name)
{
    struct fmt_bitmap *b;
    CHECK_EQ(graph_bitmap_find(co, n, name, &b, NULL), 0);
    return b;
}

static void rules(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct byre_err err = { 0 };
    char name[1025];
    uint8_t buf[1024] = { 1 };
    memset(name, 'n', sizeof name - 1);
    name[1024] = 0;
    CHECK_EQ(add(co, n, "", 0, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, name, 0, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, "a\tb", 0, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, "a", 3000, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, "a", 256, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, "a", 1ull << 32, false, &err), -EINVAL);
    CHECK_EQ(add(co, n, "a", 0, true, &err), -ENOTSUP);
    CHECK_EQ(add(co, n, name + 1, 0, false, &err), 0);
    CHECK_EQ(add(co, n, "a", 512, false, &err), 0);
    CHECK_EQ(add(co, n, "a", 512, false, &err), -EEXIST);
    CHECK_EQ(graph_bitmap_remove(co, n, "b", &err), -ENOENT);
    struct fmt_bitmap *a = find(co, n, "a"), *big = find(co, n, name + 1);
    CHECK_EQ(1u << big->granularity_bits, 8192);
    CHECK_EQ(t_write(co, n, buf, 1024, 100 * 512 + 17 - 17, 0), 0);
    CHECK_EQ(dirty_count(a->bits), 1024);
    CHECK_EQ(graph_zero(co, n, 0, 1, 0), 0);                          /* one byte marks its granule */
    CHECK(dirty_test(a->bits, 0));
    CHECK_EQ(dirty_count(big->bits), 2 * 8192);
    graph_bitmap_hold(a);
    CHECK_EQ(graph_bitmap_clear(co, n, "a", &err), -EBUSY);
    CHECK_EQ(graph_bitmap_remove(co, n, "a", &err), -EBUSY);
    CHECK_EQ(graph_bitmap_enable(co, n, "a", false, &err), -EBUSY);
    CHECK_EQ(graph_resize(co, n, SIZE / 2, FMT_PREALLOC_OFF, &err), -EBUSY);
    struct dirty *was;
    CHECK_EQ(dirty_copy(a->bits, a->bits->size, &was), 0);
    CHECK_EQ(graph_bitmap_set_held(co, n, a, NULL, &err), 0);        /* who holds it changes it, and it is nobody else's meanwhile */
    CHECK_EQ(dirty_count(a->bits), 0);
    CHECK_EQ(graph_bitmap_remove(co, n, "a", &err), -EBUSY);
    CHECK_EQ(graph_bitmap_set_held(co, n, a, was, &err), 0);
    dirty_free(was);
    graph_bitmap_release(n, a);
    CHECK_EQ(graph_bitmap_enable(co, n, "a", false, &err), 0);
    CHECK_EQ(t_write(co, n, buf, 512, 5000 * 8, 0), 0);
    CHECK_EQ(dirty_count(a->bits), 1024 + 512);
    CHECK_EQ(graph_bitmap_merge(co, n, "a", &(struct graph_bitmap_ref){ n, name + 1 }, 1, &err), 0);
    CHECK_EQ(dirty_count(a->bits), 3 * 8192);
    struct graph_bitmap_ref two[2] = { { n, "a" }, { n, "none" } };
    CHECK_EQ(graph_bitmap_clear(co, n, name + 1, &err), 0);
    CHECK_EQ(graph_bitmap_merge(co, n, name + 1, two, 2, &err), -ENOENT);
    CHECK_EQ(dirty_count(big->bits), 0);                              /* all of them or none */
    CHECK_EQ(graph_discard(co, n, 3 * CLUSTER, CLUSTER), 0);
    CHECK_EQ(dirty_count(big->bits), n->discard ? CLUSTER : 0);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* A job settles its bitmap while a list of changes is under way, which then fails: the bits that come back are those that were remembered. */
static void settled_in_between(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct graph_bitmaps_saved *s;
    struct fmt_bitmap *b;
    struct dirty *left, *more[4];
    CHECK_EQ(add(co, n, "a", 512, false, &err), 0);
    CHECK_EQ(graph_bitmap_find(co, n, "a", &b, &err), 0);
    CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
    graph_bitmap_hold(b);
    CHECK_EQ(graph_bitmap_follow(co, n, b, &err), 0);
    CHECK_EQ(dirty_new(b->bits->size, b->granularity_bits, NULL, &left), 0);
    struct dirty *was = b->bits;
    graph_drain_begin(co, n);
    CHECK_EQ(graph_bitmaps_save(co, n, &s, &err), 0);
    CHECK_EQ(graph_bitmap_settle(co, n, b, left, &err), 0);
    CHECK_EQ(dirty_count(b->bits), 0);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(dirty_copy(b->bits, b->bits->size, &more[i]), 0);   /* in memory that might have become free */
    graph_bitmaps_undo(co, s);
    graph_drain_end(n);
    CHECK(b->bits == was);
    for (unsigned i = 0; i < 4; i++) {
        CHECK(more[i] != was);
        dirty_free(more[i]);
    }
    CHECK_EQ(dirty_count(was), 512);
    dirty_free(left);
    graph_bitmap_release(n, b);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

static bool is_of(const struct fmt_bitmap *b, uint64_t size, uint64_t count) { return b && b->bits->size == size && dirty_count(b->bits) == count; }

/* The disk becomes longer, or shorter, while a list of changes is under way, which then fails: what comes back is of the new length. One was cleared, one not
 * touched, one removed. */
static void resized_in_between(struct co *co, void *arg)
{
    static const uint64_t sizes[] = { 4 * SIZE, SIZE / 2 };
    static const char *const names[] = { "cleared", "kept", "removed" };
    struct byre_err err = { 0 };
    struct graph_bitmaps_saved *s;
    struct dirty *more[8];
    for (unsigned k = 0; k < 2; k++) {
        struct graph *g = toy_graph(co);
        struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
        struct graph_node *n = toy_node(g, &f->im, NULL);
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(add(co, n, names[i], 512, false, &err), 0);
        CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
        graph_drain_begin(co, n);
        CHECK_EQ(graph_bitmaps_save(co, n, &s, &err), 0);
        CHECK_EQ(graph_bitmap_clear(co, n, "cleared", &err), 0);
        CHECK_EQ(graph_bitmap_remove(co, n, "removed", &err), 0);
        CHECK_EQ(node_set_length(co, n, sizes[k], false), 0);
        CHECK(is_of(find(co, n, "cleared"), sizes[k], 0));
        for (unsigned i = 0; i < 8; i++)
            CHECK_EQ(dirty_new(SIZE, 9, NULL, &more[i]), 0);         /* in memory that might have become free */
        graph_bitmaps_undo(co, s);
        graph_drain_end(n);
        for (unsigned i = 0; i < 8; i++)
            dirty_free(more[i]);
        for (unsigned i = 0; i < 3; i++)
            CHECK(is_of(find(co, n, names[i]), sizes[k], 512));
        CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, sizes[k] - 512, 0), 0);
        for (unsigned i = 0; i < 3; i++)
            CHECK(is_of(find(co, n, names[i]), sizes[k], 1024));
        CHECK_EQ(graph_close(co, n), 0);
        graph_free(g);
    }
}

/* All of them were removed: nothing is left in the list to be made longer. */
static void resized_when_empty(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct graph_bitmaps_saved *s;
    CHECK_EQ(add(co, n, "a", 512, false, NULL), 0);
    graph_drain_begin(co, n);
    CHECK_EQ(graph_bitmaps_save(co, n, &s, NULL), 0);
    CHECK_EQ(graph_bitmap_remove(co, n, "a", NULL), 0);
    CHECK_EQ(node_set_length(co, n, 2 * SIZE, true), 0);
    graph_bitmaps_undo(co, s);
    graph_drain_end(n);
    CHECK(is_of(find(co, n, "a"), 2 * SIZE, 0));
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* The same with a list that does not fail: what was remembered, and its copies, are gone. It becomes longer twice. */
static void resized_and_kept(struct co *co, void *arg)
{
    static const char *const names[] = { "cleared", "kept", "removed" };
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *n = toy_node(g, &f->im, NULL);
    struct graph_bitmaps_saved *s;
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(add(co, n, names[i], 512, false, NULL), 0);
    CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
    uint64_t each = atomic_load(&n->bitmap_budget.used) / 3;
    graph_drain_begin(co, n);
    CHECK_EQ(graph_bitmaps_save(co, n, &s, NULL), 0);
    CHECK_EQ(graph_bitmap_clear(co, n, "cleared", NULL), 0);
    CHECK_EQ(graph_bitmap_remove(co, n, "removed", NULL), 0);
    for (unsigned k = 2; k <= 4; k += 2)
        CHECK_EQ(node_set_length(co, n, k * SIZE, true), 0);
    CHECK_EQ(graph_bitmaps_keep(co, s, NULL), 0);
    graph_bitmaps_done(s);
    graph_drain_end(n);
    CHECK(is_of(find(co, n, "cleared"), 4 * SIZE, 0) && is_of(find(co, n, "kept"), 4 * SIZE, 512) && !find(co, n, "removed"));
    CHECK(each && atomic_load(&n->bitmap_budget.used) == each);          /* of "kept" */
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- what the image keeps ---- */

static struct { struct fmt_ops ops; unsigned syncs; uint64_t cleared; bool has_removed; } image;

static int image_sync(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    image.syncs++;
    image.cleared = UINT64_MAX;
    image.has_removed = false;
    for (struct fmt_bitmap *b = im->bitmaps; b; b = b->next) {
        if (!strcmp(b->name, "cleared") && b->changed)
            image.cleared = dirty_count(b->bits);
        image.has_removed |= !strcmp(b->name, "removed") && !b->slot;
        b->changed = false;
    }
    return 0;
}

static int image_mark(struct co *co, struct fmt_image *im, struct byre_err *err) { return 0; }

/* The disk is to become longer while a list of changes is under way, and does not: its bitmaps are in use on the disk now, and stored at the end, whether the
 * list fails or not. */
static void failed_in_between(struct co *co, void *arg)
{
    for (unsigned keep = 0; keep < 2; keep++) {
        struct graph *g = toy_graph(co);
        struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
        struct graph_bitmaps_saved *s;
        image.ops = *f->im.ops;
        image.ops.bitmaps_sync = image_sync;
        image.ops.bitmaps_resizing = image_mark;
        f->im.ops = &image.ops;
        struct graph_node *n = toy_node(g, &f->im, NULL);
        CHECK_EQ(add(co, n, "cleared", 512, true, NULL), 0);
        CHECK_EQ(add(co, n, "removed", 512, true, NULL), 0);
        CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
        graph_drain_begin(co, n);
        CHECK_EQ(graph_bitmaps_save(co, n, &s, NULL), 0);
        CHECK_EQ(graph_bitmap_clear(co, n, "cleared", NULL), 0);
        CHECK_EQ(graph_bitmap_remove(co, n, "removed", NULL), 0);
        for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
            b->slot = 1;
        image.syncs = 0;
        atomic_store(&f->fail_step, TOYFMT_RESIZE);
        atomic_store(&f->fail_after, 0);
        CHECK_EQ(node_set_length(co, n, 2 * SIZE, true), -EIO);
        CHECK_EQ(image.syncs, 0);                                        /* what the image had before stays there, in use, and is a superset */
        CHECK_EQ(keep ? graph_bitmaps_keep(co, s, NULL) : 0, 0);
        if (keep)
            graph_bitmaps_done(s);
        else
            graph_bitmaps_undo(co, s);
        graph_drain_end(n);
        CHECK_EQ(image.syncs, 1);
        CHECK(keep || (image.cleared == 512 && image.has_removed));      /* what the image had before comes back there, too */
        CHECK(is_of(find(co, n, "cleared"), SIZE, keep ? 0 : 512) && (find(co, n, "removed") == NULL) == (keep == 1));
        CHECK_EQ(graph_close(co, n), 0);
        graph_free(g);
    }
}

/* Goes by what it has stored, as qcow2 does, until something else is stored. */
static struct { struct fmt_ops ops; int (*close)(struct co *co, struct fmt_image *im); struct fmt_image *failing; } follower;
struct followed { struct fmt_image *im; struct fmt_bitmap *b[4]; unsigned count; uint64_t dirty, entered; };
static struct followed followed[2];

static struct followed *followed_of(const struct fmt_image *im) { return &followed[im != followed[0].im]; }

static void follow(struct followed *f)
{
    f->dirty = 0;
    for (unsigned i = 0; i < f->count; i++)
        f->dirty += !f->b[i]->inconsistent && f->b[i]->bits ? dirty_count(f->b[i]->bits) : 0;
}

static int follower_sync(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct followed *f = followed_of(im);
    follow(f);
    if (follower.failing == im)
        return -EIO;
    f->count = 0;
    for (struct fmt_bitmap *b = im->bitmaps; b && f->count < 4; b = b->next)
        if (b->persistent)
            f->b[f->count++] = b;
    for (unsigned i = 0; i < f->count; i++)
        f->b[i]->slot = i + 1;
    return 0;
}

static int follower_enter(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    followed_of(im)->entered++;
    follow(followed_of(im));
    return 0;
}

static int follower_close(struct co *co, struct fmt_image *im)
{
    follow(followed_of(im));
    free(atomic_load(&im->ahead));
    atomic_store(&im->ahead, NULL);
    return follower.close(co, im);
}

static struct graph_node *follower_new(struct co *co, struct graph *g, struct followed *f)
{
    struct toyfmt *t = toyfmt_new(co, SIZE, CLUSTER);
    struct fmt_ahead *a = calloc(1, sizeof *a + 8);
    CHECK(a != NULL);
    a->region_bits = 25;
    a->regions = 1;
    follower.close = t->im.ops->close;
    follower.ops = *t->im.ops;
    follower.ops.bitmaps_sync = follower_sync;
    follower.ops.bitmaps_resizing = image_mark;
    follower.ops.bitmap_enter = follower_enter;
    follower.ops.close = follower_close;
    t->im.ops = &follower.ops;
    atomic_store(&t->im.ahead, a);
    *f = (struct followed){ .im = &t->im };
    return toy_node(g, &t->im, NULL);
}

/* A list over two nodes: the second cannot be stored, and then the first one not either, when it is undone. What it has stored is there as long as it goes by
 * it: behind a write, and until it is closed, or has stored something else. What was added there says that all is dirty: nothing is recorded in it. */
static void not_undone(struct co *co, void *arg)
{
    for (unsigned later = 0; later < 2; later++) {
        struct graph *g = toy_graph(co);
        struct graph_node *n[2];
        struct graph_bitmaps_saved *s[2];
        follower.failing = NULL;
        for (unsigned i = 0; i < 2; i++) {
            n[i] = follower_new(co, g, &followed[i]);
            graph_drain_begin(co, n[i]);
            CHECK_EQ(graph_bitmaps_save(co, n[i], &s[i], NULL), 0);
            CHECK_EQ(add(co, n[i], "new", 512, true, NULL), 0);
        }
        follower.failing = n[1]->im;
        CHECK_EQ(graph_bitmaps_keep(co, s[0], NULL), 0);
        CHECK_EQ(graph_bitmaps_keep(co, s[1], NULL), -EIO);
        follower.failing = n[0]->im;
        for (unsigned i = 2; i-- > 0;) {
            graph_bitmaps_undo(co, s[i]);
            graph_drain_end(n[i]);
            CHECK(!find(co, n[i], "new"));
        }
        CHECK(followed[0].count == 1 && followed[1].count == 0);
        CHECK_EQ(t_write(co, n[0], (uint8_t[512]){ 1 }, 512, 512, 0), 0);
        CHECK(followed[0].entered == 1 && followed[0].dirty == SIZE);
        follower.failing = NULL;
        if (later) {
            CHECK_EQ(add(co, n[0], "new", 512, true, NULL), 0);
            CHECK(followed[0].b[0] == find(co, n[0], "new") && !n[0]->bitmaps_gone);
            CHECK_EQ(graph_bitmap_remove(co, n[0], "new", NULL), 0);
            CHECK(followed[0].count == 0 && atomic_load(&n[0]->bitmap_budget.used) == 0);
        }
        for (unsigned i = 0; i < 2; i++)
            CHECK_EQ(graph_close(co, n[i]), 0);
        graph_free(g);
    }
}

/* The disk becomes longer, but what came before that in the list cannot be stored; neither can the list as it was, when it is undone. One that was worth nothing
 * was removed: the image has it still, and so does the format. */
static void not_undone_behind_length(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct graph_bitmaps_saved *s;
    follower.failing = NULL;
    struct graph_node *n = follower_new(co, g, &followed[0]);
    CHECK_EQ(add(co, n, "kept", 512, true, NULL), 0);
    CHECK_EQ(add(co, n, "worthless", 512, true, NULL), 0);
    struct fmt_bitmap *worthless = find(co, n, "worthless");
    graph_drain_begin(co, n);
    worthless->inconsistent = true;
    dirty_free(worthless->bits);
    worthless->bits = NULL;
    CHECK_EQ(graph_bitmaps_save(co, n, &s, NULL), 0);
    CHECK_EQ(graph_bitmap_remove(co, n, "worthless", NULL), 0);
    follower.failing = n->im;
    CHECK_EQ(node_set_length(co, n, 2 * SIZE, true), 0);
    graph_bitmaps_undo(co, s);
    graph_drain_end(n);
    CHECK(find(co, n, "kept") && followed[0].count == 2 && followed[0].b[1] == worthless);
    CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
    CHECK(followed[0].entered == 1 && followed[0].dirty == 0);
    follower.failing = NULL;
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* What a list added is in the image, because the disk has become longer; the list then removes it, and holds: so does the image. */
static void removed_again(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct graph_bitmaps_saved *s;
    follower.failing = NULL;
    struct graph_node *n = follower_new(co, g, &followed[0]);
    graph_drain_begin(co, n);
    CHECK_EQ(graph_bitmaps_save(co, n, &s, NULL), 0);
    CHECK_EQ(add(co, n, "new", 512, true, NULL), 0);
    CHECK_EQ(node_set_length(co, n, 2 * SIZE, true), 0);
    CHECK_EQ(followed[0].count, 1);
    CHECK_EQ(graph_bitmap_remove(co, n, "new", NULL), 0);
    CHECK_EQ(graph_bitmaps_keep(co, s, NULL), 0);
    graph_bitmaps_done(s);
    graph_drain_end(n);
    CHECK_EQ(followed[0].count, 0);
    CHECK_EQ(t_write(co, n, (uint8_t[512]){ 1 }, 512, 512, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- two loops ---- */

struct stress { struct graph_node *n; _Atomic unsigned running, era; _Atomic uint64_t checked; unsigned rounds; };
struct writer { struct stress *s; unsigned id; };

/* Is it dirty in the first bitmap that records? true also when none does. */
static bool is_dirty(struct co *co, struct graph_node *n, uint64_t off)
{
    epoch_token t = gate_enter(co, n);
    const struct tracked *tr = atomic_load(&n->tracked);
    bool dirty = !tr || dirty_test(tr->bits[0], off);
    gate_leave(co, n, t);
    return dirty;
}

static void writer_main(struct co *co, void *arg)
{
    struct writer *w = arg;
    struct stress *s = w->s;
    struct prng rng;
    uint8_t buf[GRANULARITY];
    prng_init(&rng, w->id);
    memset(buf, (int)w->id + 1, sizeof buf);
    for (unsigned i = 0; i < s->rounds; i++) {
        uint64_t off = prng_below(&rng, SIZE / GRANULARITY) * GRANULARITY;
        unsigned era = atomic_load(&s->era);
        CHECK_EQ(prng_one_in(&rng, 4) ? graph_zero(co, s->n, off, GRANULARITY, 0) : t_write(co, s->n, buf, sizeof buf, off, 0), 0);
        bool dirty = is_dirty(co, s->n, off);
        if (era % 2 || atomic_load(&s->era) != era)
            continue;                        /* a change of the bitmaps came in between */
        CHECK(dirty);
        atomic_fetch_add(&s->checked, 1);
    }
    atomic_fetch_sub(&s->running, 1);
}

static void stress(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *f = toyfmt_new(co, SIZE, CLUSTER);
    struct stress s = { .n = toy_node(g, &f->im, NULL), .running = WRITERS, .rounds = 3000 };
    struct writer w[WRITERS];
    CHECK_EQ(add(co, s.n, "always", GRANULARITY, false, NULL), 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){ &s, i };
        CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, i % 2), writer_main, &w[i]), 0);
    }
    for (unsigned i = 0; atomic_load(&s.running); i++) {
        atomic_fetch_add(&s.era, 1);
        switch (i % 4) {
        case 0: CHECK_EQ(graph_bitmap_clear(co, s.n, "always", NULL), 0); break;
        case 1: CHECK_EQ(add(co, s.n, "other", 4096, false, NULL), 0); break;
        case 2: CHECK_EQ(graph_bitmap_merge(co, s.n, "other", &(struct graph_bitmap_ref){ s.n, "always" }, 1, NULL), 0); break;
        default: CHECK_EQ(graph_bitmap_remove(co, s.n, "other", NULL), 0);
        }
        atomic_fetch_add(&s.era, 1);
        (void)co_sleep(co, 300000);
    }
    CHECK(s.checked > 1000);
    CHECK_EQ(graph_close(co, s.n), 0);
    graph_free(g);
}

static void test_rules(void **state) { t_run(0, rules, NULL); }
static void test_settled(void **state) { t_run(0, settled_in_between, NULL); }
static void test_resized(void **state)
{
    t_run(0, resized_in_between, NULL);
    t_run(0, resized_when_empty, NULL);
    t_run(0, resized_and_kept, NULL);
}

static void test_failed(void **state) { t_run(0, failed_in_between, NULL); }
static void test_not_undone(void **state)
{
    t_run(0, not_undone, NULL);
    t_run(0, not_undone_behind_length, NULL);
    t_run(0, removed_again, NULL);
}

static void test_stress(void **state) { t_run(0, stress, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_rules), cmocka_unit_test(test_settled), cmocka_unit_test(test_resized), cmocka_unit_test(test_failed),
                                               cmocka_unit_test(test_not_undone), cmocka_unit_test(test_stress) };
    return T_MAIN("bitmap", tests);
}
