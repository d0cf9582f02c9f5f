/* SPDX-License-Identifier: MIT
 *
 * compare_test.c: the comparison.
 *
 * Purpose      First differences at every kind of place, sizes, strict mode, failures, against a plain comparison.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  Jobs on one loop, pieces on both.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#include "copy/copy_priv.h"

#define CLUSTER 4096u
#define SIZE (300u * CLUSTER)

struct two { struct graph *g; struct toyfmt *f; struct toy *t; struct graph_node *a, *b; };

/* a: the toy format, b: raw with the same content. */
static void two_make(struct co *co, struct two *w, uint64_t seed, uint64_t b_len)
{
    struct prng rng;
    prng_init(&rng, seed);
    w->g = toy_graph(co);
    w->f = toyfmt_new(co, SIZE, CLUSTER);
    w->a = toy_node(w->g, &w->f->im, NULL);
    w->b = toy_raw_node(co, w->g, b_len, &w->t);
    for (uint32_t i = 0; i < SIZE / CLUSTER; i++) {
        enum fmt_kind kind = (enum fmt_kind)prng_below(&rng, 4);
        uint8_t byte = (uint8_t)prng_below(&rng, 3);
        toyfmt_set(w->f, i, kind, false, byte);
        if ((i + 1) * CLUSTER <= b_len && (kind == FMT_DATA || kind == FMT_ENCODED))
            memset(w->t->bytes + i * CLUSTER, byte, CLUSTER);
    }
}

static void two_close(struct co *co, struct two *w)
{
    CHECK_EQ(graph_close(co, w->a), 0);
    CHECK_EQ(graph_close(co, w->b), 0);
    graph_free(w->g);
}

static void expect(struct co *co, const struct compare_job *job, enum compare_verdict verdict, uint64_t off)
{
    struct compare_result res;
    struct byre_err err = { 0 };
    CHECK_EQ(compare_run(co, job, &res, &err), 0);
    CHECK_EQ(res.verdict, verdict);
    if (verdict != COMPARE_SAME)
        CHECK_EQ(res.off, off);
    CHECK_EQ(res.size_differs, graph_length(job->a) != graph_length(job->b));
}

static void content(struct co *co, void *arg)
{
    for (unsigned round = 0; round < 12; round++) {
        struct two w;
        struct prng rng;
        prng_init(&rng, round);
        two_make(co, &w, round, SIZE);
        struct compare_job ab = { .a = w.a, .b = w.b, .piece_bytes = 65536 }, ba = { .a = w.b, .b = w.a, .piece_bytes = 65536, .workers = 3 };
        expect(co, &ab, COMPARE_SAME, 0);
        expect(co, &ba, COMPARE_SAME, 0);
        uint64_t first = UINT64_MAX;
        w.t->rng = &rng;                 /* pieces end out of order */
        w.t->delay_ns = 300000;
        for (unsigned i = 0; i < 5; i++) {
            uint64_t at = prng_below(&rng, SIZE);
            w.t->bytes[at] ^= 0x40;
            first = min_u64(first, at);
            expect(co, &ab, COMPARE_CONTENT, round_down(first, SECTOR));
            expect(co, &ba, COMPARE_CONTENT, round_down(first, SECTOR));
        }
        two_close(co, &w);
    }
}

static void lengths(struct co *co, void *arg)
{
    struct two w;
    two_make(co, &w, 3, SIZE - 10 * CLUSTER);
    for (uint32_t i = 290; i < 300; i++)
        toyfmt_set(w.f, i, FMT_DATA, false, 0);
    struct compare_job job = { .a = w.a, .b = w.b };
    expect(co, &job, COMPARE_SAME, 0);
    toyfmt_set(w.f, 295, FMT_DATA, false, 1);
    expect(co, &job, COMPARE_CONTENT, 295 * CLUSTER);
    job = (struct compare_job){ .a = w.b, .b = w.a };
    expect(co, &job, COMPARE_CONTENT, 295 * CLUSTER);
    job.strict = true;
    expect(co, &job, COMPARE_SIZE, SIZE - 10 * CLUSTER);
    two_close(co, &w);
}

static void strict(struct co *co, void *arg)
{
    struct graph *g = toy_graph(co);
    struct toyfmt *fa = toyfmt_new(co, SIZE, CLUSTER), *fb = toyfmt_new(co, SIZE, CLUSTER);
    struct graph_node *a = toy_node(g, &fa->im, NULL), *b = toy_node(g, &fb->im, NULL);
    struct compare_job job = { .a = a, .b = b, .strict = true };
    expect(co, &job, COMPARE_SAME, 0);
    toyfmt_set(fa, 9, FMT_DATA, false, 1);
    toyfmt_set(fb, 9, FMT_DATA, true, 1);
    expect(co, &job, COMPARE_SAME, 0);
    toyfmt_set(fb, 17, FMT_ZERO, false, 1);
    expect(co, &job, COMPARE_STATUS, 17 * CLUSTER);
    job.strict = false;
    expect(co, &job, COMPARE_SAME, 0);
    job.strict = true;
    toyfmt_set(fb, 9, FMT_DATA, true, 2);
    expect(co, &job, COMPARE_CONTENT, 9 * CLUSTER);
    toyfmt_set(fb, 9, FMT_DATA, false, 1);
    toyfmt_set(fa, 17, FMT_DATA, false, 0);
    expect(co, &job, COMPARE_STATUS, 17 * CLUSTER);
    CHECK_EQ(graph_close(co, a), 0);
    CHECK_EQ(graph_close(co, b), 0);
    graph_free(g);
}

static uint64_t bad_off;
static int bad_read(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_READ && off <= bad_off && bad_off < off + len ? -EIO : 0;
}

static void failures(struct co *co, void *arg)
{
    struct two w;
    struct compare_result res;
    struct byre_err err = { 0 };
    two_make(co, &w, 3, SIZE);
    for (uint32_t i = 0; i < 300; i++)
        toyfmt_set(w.f, i, FMT_DATA, false, 1);
    memset(w.t->bytes, 1, SIZE);
    struct compare_job job = { .a = w.a, .b = w.b, .piece_bytes = 65536 };
    w.t->hook = bad_read;
    bad_off = 200 * CLUSTER;
    CHECK_EQ(compare_run(co, &job, &res, &err), -EIO);
    CHECK(res.fail_b && !res.fail_status && res.fail_off <= bad_off && res.fail_off > bad_off - 65536 && strstr(err.text, "cannot read"));
    /* a difference before the bad place is a difference; behind it, the failure counts */
    w.t->bytes[100 * CLUSTER] = 7;
    expect(co, &job, COMPARE_CONTENT, 100 * CLUSTER);
    w.t->bytes[100 * CLUSTER] = 1;
    w.t->bytes[250 * CLUSTER] = 7;
    CHECK_EQ(compare_run(co, &job, &res, &err), -EIO);
    w.t->hook = NULL;
    w.f->fail_step = TOYFMT_MAP;
    w.f->fail_after = 0;
    CHECK_EQ(compare_run(co, &job, &res, &err), -EIO);
    CHECK(!res.fail_b && res.fail_status && res.fail_off == 0);
    _Atomic bool cancel = true;
    job.cancel = &cancel;
    CHECK_EQ(compare_run(co, &job, &res, &err), -ECANCELED);
    two_close(co, &w);
}

#define RUN(fn, loop) static void test_##fn(void **state) { t_run(loop, fn, NULL); }
RUN(content, 0)
RUN(lengths, 1)
RUN(strict, 0)
RUN(failures, 1)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content), cmocka_unit_test(test_lengths), cmocka_unit_test(test_strict), cmocka_unit_test(test_failures),
    };
    return T_MAIN("compare", tests);
}
