/* SPDX-License-Identifier: MIT
 *
 * bitmap_revert_test.c: bitmaps around a change of the whole disk: the way there, and the way back from every step of it. G.007
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"

#define CLUSTER 8192u
#define SIZE (64u * CLUSTER)
#define OTHER (SIZE + 5 * CLUSTER)
#define NAMES 3u

/* The format's side: what it was told to store, and where it fails. */
static struct {
    struct fmt_ops ops;
    unsigned syncs, marks, fail_sync, fail_mark;         /* the so many-th call fails; 0: none */
    uint64_t stored[8][NAMES];                           /* by sync: bytes that count as dirty; UINT64_MAX: nothing new to store */
    uint64_t fit_max;
    bool touched, touch;
    uint64_t size;                                       /* of the disk afterwards */
    int before, result;                                  /* what the hook answered; what the operation answers */
    unsigned syncs_before;
} f;

static int f_sync(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    unsigned i = 0;
    CHECK(f.syncs < 8);
    for (struct fmt_bitmap *b = im->bitmaps; b; b = b->next)
        f.stored[f.syncs][i++] = b->persistent && b->changed ? dirty_count(b->bits) : UINT64_MAX;
    if (++f.syncs == f.fail_sync)
        return byre_fail(err, NO_SPACE, "no space");
    for (struct fmt_bitmap *b = im->bitmaps; b; b = b->next)
        b->changed = false;
    return 0;
}

static int f_mark(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    return ++f.marks == f.fail_mark ? byre_fail_code(err, IO, -EIO, "no mark") : 0;
}

static int f_fit(struct fmt_image *im, uint64_t size, struct byre_err *err)
{
    CHECK_EQ(f.syncs, 0);
    return size > f.fit_max ? byre_fail(err, LIMIT, "too large") : 0;
}

static int f_snapshot(struct co *co, struct fmt_image *im, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err)
{
    f.before = rq->before(co, rq->arg, f.size, err);
    f.syncs_before = f.syncs;
    if (f.before)
        return f.before;
    if (f.touch)
        atomic_store(&im->size, f.size);
    *rq->touched = f.touched;
    return f.result;
}

static struct graph_node *node(struct co *co, struct graph *g)
{
    struct toyfmt *t = toyfmt_new(co, SIZE, CLUSTER);
    memset(&f, 0, sizeof f);
    f.ops = *t->im.ops;
    f.ops.snapshot = f_snapshot;
    f.ops.bitmaps_sync = f_sync;
    f.ops.bitmaps_resizing = f_mark;
    f.ops.bitmaps_fit = f_fit;
    f.fit_max = UINT64_MAX;
    f.size = OTHER;
    t->im.ops = &f.ops;
    struct graph_node *n = toy_node(g, &t->im, NULL);
    static const char *const names[NAMES] = { "records", "stopped", "memory" };
    for (unsigned i = 0; i < NAMES; i++)
        CHECK_EQ(graph_bitmap_add(co, n, &(struct graph_bitmap_spec){ .name = names[i], .granularity = 512, .persistent = i < 2, .disabled = i == 1 }, NULL), 0);
    uint8_t buf[512] = { 1 };
    CHECK_EQ(t_write(co, n, buf, sizeof buf, 7 * CLUSTER, 0), 0);
    f.syncs = f.marks = 0;
    return n;
}

static struct fmt_bitmap *nth(const struct graph_node *n, unsigned i)
{
    struct fmt_bitmap *b = n->im->bitmaps;
    while (i--)
        b = b->next;
    return b;
}

/* Are all dirty, or have what they had (the first write: granule at 7 clusters)? And do they go on recording? */
static void judge(struct co *co, struct graph_node *n, bool all, bool changed)
{
    uint8_t buf[512] = { 1 };
    uint64_t size = graph_length(n);
    for (unsigned i = 0; i < NAMES; i++) {
        const struct fmt_bitmap *b = nth(n, i);
        CHECK_EQ(b->bits->size, size);
        CHECK_EQ(dirty_count(b->bits), all ? size : i == 1 ? 0 : 512);
        CHECK(all || i == 1 || dirty_test(b->bits, 7 * CLUSTER));
        CHECK_EQ(b->changed, changed && b->persistent);
    }
    CHECK_EQ(t_write(co, n, buf, sizeof buf, 9 * CLUSTER, 0), 0);
    for (unsigned i = 0; i < NAMES; i++)
        CHECK_EQ(dirty_test(nth(n, i)->bits, 9 * CLUSTER), all || i != 1);
}

struct row { const char *what; unsigned fail_sync, fail_mark; bool busy, touch, touched; uint64_t fit_max; int result; int expect; unsigned syncs, marks; bool all, changed; };
static const struct row rows[] = {
    { "applied", 0, 0, false, true, true, UINT64_MAX, 0, 0, 2, 1, true, false },
    { "applied, and not stored at the end", 2, 0, false, true, true, UINT64_MAX, 0, 0, 2, 1, true, true },
    { "perhaps applied", 0, 0, false, false, true, UINT64_MAX, -EIO, -EIO, 2, 1, true, false },
    { "applied, not tidied up", 0, 0, false, true, true, UINT64_MAX, -EIO, -EIO, 2, 1, true, false },
    { "failed before the switch", 0, 0, false, false, false, UINT64_MAX, -ENOSPC, -ENOSPC, 2, 1, false, false },
    { "failed before the switch, and the way back fails", 2, 0, false, false, false, UINT64_MAX, -ENOSPC, -ENOSPC, 2, 1, false, true },
    { "not stored", 1, 0, false, false, false, UINT64_MAX, 0, -ENOSPC, 1, 0, false, false },
    { "not marked", 0, 1, false, false, false, UINT64_MAX, 0, -EIO, 2, 1, false, false },
    { "not marked, and the way back fails", 2, 1, false, false, false, UINT64_MAX, 0, -EIO, 2, 1, false, true },
    { "in use", 0, 0, true, false, false, UINT64_MAX, 0, -EBUSY, 0, 0, false, false },
    { "too large", 0, 0, false, false, false, OTHER - 1, 0, -E2BIG, 0, 0, false, false },
};

static void one(struct co *co, void *arg)
{
    const struct row *w = arg;
    struct graph *g = toy_graph(co);
    struct graph_node *n = node(co, g);
    struct byre_err err = { 0 };
    f.fail_sync = w->fail_sync;
    f.fail_mark = w->fail_mark;
    f.touch = w->touch;
    f.touched = w->touched;
    f.result = w->result ? byre_fail_code(&err, IO, w->result, "the operation") : 0;
    f.fit_max = w->fit_max;
    if (w->busy)
        graph_bitmap_hold(nth(n, 1));
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_APPLY };
    CHECK_EQ(graph_snapshot(co, n, &rq, NULL, &err), w->expect);
    CHECK_EQ(f.syncs, w->syncs);
    CHECK_EQ(f.marks, w->marks);
    for (unsigned i = 0; i < 2 && w->syncs; i++)          /* before anything changes: all dirty, at the old size, also what does not record */
        CHECK_EQ(f.stored[0][i], SIZE);
    if (w->syncs == 2)
        CHECK_EQ(f.stored[1][0], !w->all ? 512 : w->touch ? graph_length(n) : UINT64_MAX);   /* perhaps: it has that already */
    if (!f.before)
        CHECK_EQ(f.syncs_before, 1);
    if (w->busy)
        graph_bitmap_release(n, nth(n, 1));
    judge(co, n, w->all, w->changed);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* Bitmaps that nobody may trust are neither stored nor counted, but no other program may come to trust them either. */
static void damaged(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct graph_node *n = node(co, g);
    struct byre_err err = { 0 };
    f.touch = f.touched = true;
    nth(n, 0)->bad = "a reason";
    nth(n, 1)->inconsistent = true;
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_APPLY };
    CHECK_EQ(graph_snapshot(co, n, &rq, NULL, &err), 0);
    CHECK_EQ(f.marks, 1);
    CHECK_EQ(f.syncs, 0);
    CHECK_EQ(dirty_count(nth(n, 2)->bits), OTHER);
    CHECK_EQ(nth(n, 0)->bits->size, SIZE);
    nth(n, 0)->bad = NULL;
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

static void test_rows(void **state)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        print_message("  %s\n", rows[i].what);
        t_run(0, one, (void *)&rows[i]);
    }
}

static void test_damaged(void **state) { t_run(0, damaged, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_rows), cmocka_unit_test(test_damaged) };
    return T_MAIN("bitmap-revert", tests);
}
