/* SPDX-License-Identifier: MIT
 *
 * encode_test.c: compressed writes over the toy format.
 *
 * Purpose      Which clusters go compressed and which plain, short last clusters, scattered buffers, faults in each step.
 * Owns         Nothing.
 * Invariants   I1  A failed request changes nothing outside the clusters that it names.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

#define CLUSTER 4096u
#define CLUSTERS 40u
#define SIZE (CLUSTERS * CLUSTER + 3 * SECTOR)

struct disk { struct graph *g; struct toyfmt *f; struct graph_node *n; uint8_t model[SIZE]; };

static void make(struct co *co, struct disk *d)
{
    d->g = toy_graph(co);
    d->f = toyfmt_new(co, SIZE, CLUSTER);
    d->n = toy_node(d->g, &d->f->im, NULL);
    memset(d->model, 0, SIZE);
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        enum fmt_kind kind = (enum fmt_kind)(i % 4);
        toyfmt_set(d->f, i, kind, i % 8 == 2, 7);
        memset(d->model + i * CLUSTER, kind == FMT_DATA || kind == FMT_ENCODED ? 7 : 0, CLUSTER);
    }
}

static void unmake(struct co *co, struct disk *d)
{
    CHECK_EQ(graph_close(co, d->n), 0);
    graph_free(d->g);
}

static bool same(struct co *co, struct disk *d)
{
    uint8_t *buf = malloc(SIZE);
    bool ok = CHECK_EQ(t_read(co, d->n, buf, SIZE, 0), 0) && CHECK(!memcmp(buf, d->model, SIZE));
    free(buf);
    return ok;
}

/* Constant clusters become smaller, every third one does not. */
static void fill(uint8_t *buf, uint64_t len, unsigned salt)
{
    for (uint64_t i = 0; i < len; i++)
        buf[i] = (uint8_t)(i / CLUSTER % 3 == 1 ? i * 31 + salt : i / CLUSTER + salt);
}

static bool kinds(struct disk *d, uint64_t first, uint64_t count, bool encoded)
{
    bool ok = true;
    for (uint64_t i = 0; i < count; i++)
        ok &= CHECK((d->f->map[first + i].kind == FMT_ENCODED) == (encoded && i % 3 != 1));
    return ok;
}

static void whole_body(struct co *co, void *arg)
{
    struct disk *d = malloc(sizeof *d);
    make(co, d);
    fill(d->model + 3 * CLUSTER, 21 * CLUSTER, 1);
    CHECK_EQ(t_write(co, d->n, d->model + 3 * CLUSTER, 21 * CLUSTER, 3 * CLUSTER, GRAPH_COMPRESS), 0);
    CHECK(same(co, d) && kinds(d, 3, 21, true));
    /* the short last cluster, and one in front of it */
    memset(d->model + (CLUSTERS - 1) * CLUSTER, 0, SIZE - (CLUSTERS - 1) * CLUSTER);
    CHECK_EQ(t_write(co, d->n, d->model + (CLUSTERS - 1) * CLUSTER, CLUSTER + 3 * SECTOR, (CLUSTERS - 1) * CLUSTER, GRAPH_COMPRESS | GRAPH_FUA), 0);
    CHECK(same(co, d));
    CHECK_EQ(d->f->map[CLUSTERS].kind, FMT_ENCODED);
    /* plain where compressed entries reach no further */
    d->f->too_far = true;
    fill(d->model, 9 * CLUSTER, 9);
    CHECK_EQ(t_write(co, d->n, d->model, 9 * CLUSTER, 0, GRAPH_COMPRESS), 0);
    CHECK(same(co, d) && kinds(d, 0, 9, false));
    unmake(co, d);
    free(d);
}

static void test_whole(void **state) { t_run(0, whole_body, NULL); }

static void scattered_body(struct co *co, void *arg)
{
    struct disk *d = malloc(sizeof *d);
    make(co, d);
    fill(d->model + 8 * CLUSTER, 12 * CLUSTER, 3);
    struct iovec v[13];
    uint64_t at = 8 * CLUSTER;
    for (unsigned i = 0; i < 12; i++) {
        v[i] = (struct iovec){ d->model + at, i < 3 ? CLUSTER : CLUSTER - 100 * i };
        at += v[i].iov_len;
    }
    v[12] = (struct iovec){ d->model + at, 20 * CLUSTER - at };
    CHECK_EQ(graph_write(co, d->n, iov_of(v, 13), 8 * CLUSTER, GRAPH_COMPRESS), 0);
    CHECK(same(co, d) && kinds(d, 8, 12, true));
    unmake(co, d);
    free(d);
}

static void test_scattered(void **state) { t_run(0, scattered_body, NULL); }

static void refused_body(struct co *co, void *arg)
{
    struct disk *d = malloc(sizeof *d);
    uint8_t *buf = calloc(4, CLUSTER);
    make(co, d);
    CHECK_EQ(t_write(co, d->n, buf, CLUSTER, SECTOR, GRAPH_COMPRESS), -EINVAL);
    CHECK_EQ(t_write(co, d->n, buf, SECTOR, 0, GRAPH_COMPRESS), -EINVAL);
    CHECK_EQ(t_write(co, d->n, buf, SECTOR, CLUSTERS * CLUSTER, GRAPH_COMPRESS), -EINVAL);
    CHECK_EQ(t_write(co, d->n, buf, 4 * SECTOR, CLUSTERS * CLUSTER, GRAPH_COMPRESS), -EIO);
    CHECK_EQ(t_write(co, d->n, buf, 0, 0, GRAPH_COMPRESS), 0);
    d->n->read_only = true;
    CHECK_EQ(t_write(co, d->n, buf, CLUSTER, 0, GRAPH_COMPRESS), -EPERM);
    d->n->read_only = false;
    CHECK(same(co, d));
    CHECK_EQ(d->f->calls[TOYFMT_ENCODE] + d->f->calls[TOYFMT_WRITE_ENCODED], 0);
    struct toy *t;
    struct graph_node *raw = toy_raw_node(co, d->g, CLUSTER, &t);
    CHECK_EQ(t_write(co, raw, buf, CLUSTER, 0, GRAPH_COMPRESS), -ENOTSUP);
    CHECK_EQ(graph_close(co, raw), 0);
    unmake(co, d);
    free(buf);
    free(d);
}

static void test_refused(void **state) { t_run(0, refused_body, NULL); }

/* Each call of each step fails once; afterwards every cluster is old or new, and the request can be made again. */
static void faults_body(struct co *co, void *arg)
{
    static const enum toyfmt_step steps[] = { TOYFMT_ENCODE, TOYFMT_WRITE_ENCODED, TOYFMT_BEGIN, TOYFMT_COMMIT };
    unsigned failed = 0;
    for (unsigned s = 0; s < 4; s++)
        for (int after = 0; after < 5; after++) {
            struct disk *d = malloc(sizeof *d);
            make(co, d);
            uint8_t *new = malloc(SIZE), *got = malloc(SIZE);
            memcpy(new, d->model, SIZE);
            fill(new + 2 * CLUSTER, 24 * CLUSTER, 50);
            d->f->fail_step = (int)steps[s];
            d->f->fail_after = after;
            int r = t_write(co, d->n, new + 2 * CLUSTER, 24 * CLUSTER, 2 * CLUSTER, GRAPH_COMPRESS);
            CHECK(r == 0 || r == -EIO);
            CHECK((r == -EIO) == (d->f->fail_after < 0));
            failed += r == -EIO;
            CHECK_EQ(t_read(co, d->n, got, SIZE, 0), 0);
            for (uint64_t at = 0; at < SIZE; at += SECTOR)
                CHECK(!memcmp(got + at, d->model + at, SECTOR) || !memcmp(got + at, new + at, SECTOR));
            d->f->fail_after = -1;
            CHECK_EQ(t_write(co, d->n, new + 2 * CLUSTER, 24 * CLUSTER, 2 * CLUSTER, GRAPH_COMPRESS), 0);
            memcpy(d->model, new, SIZE);
            CHECK(same(co, d));
            unmake(co, d);
            free(new);
            free(got);
            free(d);
        }
    CHECK(failed > 8);
}

static void test_faults(void **state) { t_run(0, faults_body, NULL); }

/* In two steps, the second of them after the disk has changed its size. */
static void steps_body(struct co *co, void *arg)
{
    static const struct fmt_encoding how = { 0 };
    struct disk *d = malloc(sizeof *d);
    struct graph_encoded *e = NULL, *tail = NULL;
    struct iovec slot;
    make(co, d);
    fill(d->model + CLUSTER, 4 * CLUSTER, 5);
    struct iov v = iov_one(&slot, d->model + CLUSTER, 4 * CLUSTER);
    CHECK_EQ(graph_encode(co, d->n, &how, v, CLUSTER, &e), 0);
    CHECK_EQ(d->f->calls[TOYFMT_WRITE_ENCODED], 0);
    CHECK_EQ(graph_write_encoded(co, d->n, e, v, CLUSTER), 0);
    CHECK(same(co, d) && kinds(d, 1, 4, true));
    graph_encoded_free(e);
    struct iov last = iov_one(&slot, d->model + CLUSTERS * CLUSTER, 3 * SECTOR);
    CHECK_EQ(graph_encode(co, d->n, &how, last, CLUSTERS * CLUSTER, &tail), 0);
    struct byre_err err;
    CHECK_EQ(graph_resize(co, d->n, SIZE + SECTOR, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(graph_write_encoded(co, d->n, tail, last, CLUSTERS * CLUSTER), -EINVAL);
    graph_encoded_free(tail);
    CHECK(same(co, d));
    unmake(co, d);
    free(d);
}

static void test_steps(void **state) { t_run(0, steps_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_whole), cmocka_unit_test(test_scattered), cmocka_unit_test(test_refused),
                                        cmocka_unit_test(test_faults), cmocka_unit_test(test_steps) };
    return T_MAIN("graph encode", tests);
}
