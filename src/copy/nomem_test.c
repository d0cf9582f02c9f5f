/* SPDX-License-Identifier: MIT
 *
 * nomem_test.c: the n-th allocation fails.
 *
 * Purpose      Opens a chain of files, reads, writes, zeroes, asks for status, resizes, copies, compares and closes
 *              while one allocation fails, for every n; nothing may crash, hang, be left open or stay allocated, and
 *              what was acknowledged must be readable afterwards.
 * Owns         Files in a scratch folder.
 * Invariants   None.
 * Concurrency  One loop; allocations of other threads are not counted.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copy/copy.h"

/* ---- counted allocations (linked with --wrap) ---- */

static _Thread_local bool counting;
static int left;                         /* < 0: none fails */
static bool failed;
static _Atomic long live;

static bool refuse(void)
{
    if (!counting || left < 0 || left-- > 0)
        return false;
    failed = true;
    return true;
}

#define WRAP(fn, params, args)                     \
    void *__real_##fn params;                      \
    void *__wrap_##fn params;                      \
    void *__wrap_##fn params                       \
    {                                              \
        void *p = refuse() ? NULL : __real_##fn args; \
        atomic_fetch_add(&live, p != NULL);        \
        return p;                                  \
    }
WRAP(malloc, (size_t n), (n))
WRAP(calloc, (size_t n, size_t m), (n, m))
WRAP(aligned_alloc, (size_t a, size_t n), (a, n))
WRAP(strdup, (const char *s), (s))

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    if (refuse())
        return NULL;
    atomic_fetch_add(&live, p == NULL);
    return __real_realloc(p, n);
}

int __real_posix_memalign(void **p, size_t a, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n)
{
    if (refuse())
        return ENOMEM;
    int r = __real_posix_memalign(p, a, n);
    atomic_fetch_add(&live, r == 0);
    return r;
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    atomic_fetch_sub(&live, p != NULL);
    __real_free(p);
}

/* ---- the scenario ---- */

#define SIZE (2u << 20)
#define SECTORS (SIZE / SECTOR)
static uint8_t model[SIZE];              /* what the top holds */
static bool uncertain[SECTORS];          /* a failed write left this sector old or new */
static char base[512], mid[512], top[512], out[512], packed[512];

static void create(struct co *co, const char *name, const char *fmt, const char *backing, const char *backing_fmt)
{
    struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    struct fmt_create_opts o = { .size = SIZE, .version = 3, .backing_file = (char *)(uintptr_t)backing, .backing_fmt = (char *)(uintptr_t)backing_fmt };
    struct stor *s = NULL;
    CHECK_EQ(stor_file_open(co, name, &so, &s, NULL), 0);
    CHECK_EQ(fmt_by_name(fmt)->create(co, s, &o, NULL), 0);
    stor_close(co, s);
}

static int open_node(struct co *co, struct graph *g, const char *name, const char *fmt, bool read_only, struct graph_node **n)
{
    struct graph_open_opts o = { .filename = name, .format = fmt, .read_only = read_only, .discard = true };
    struct byre_err err = { 0 };
    int r = graph_open(co, g, &o, n, &err);
    CHECK(!r || (err.code == r && err.reason && err.text[0]));
    return r;
}

static void change(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, uint8_t byte)
{
    static uint8_t buf[200000];
    bool whole = off % 65536 == 0 && len % 65536 == 0;           /* compressed */
    memset(buf, byte, len);
    int r = byte ? t_write(co, n, buf, len, off, whole ? GRAPH_COMPRESS : 0) : graph_zero(co, n, off, len, GRAPH_UNMAP);
    if (!r)
        memset(model + off, byte, len);
    for (uint64_t s = off / SECTOR; s < div_up(off + len, SECTOR); s++)
        uncertain[s] = r != 0;
}

static void requests(struct co *co, struct graph_node *n)
{
    static uint8_t buf[SIZE];
    struct graph_status st;
    struct byre_err err;
    change(co, n, 4096, 512, 0x11);
    change(co, n, 60 << 10, 150000, 0x22);
    change(co, n, 100 << 10, 65536, 0);
    change(co, n, 512, 512, 0x33);
    change(co, n, 384 << 10, 131072, 0x44);
    change(co, n, 384 << 10, 65536, 0x55);
    change(co, n, 450 << 10, 512, 0x66);
    (void)!t_read(co, n, buf, SIZE, 0);
    (void)!graph_status(co, n, NULL, 0, SIZE, &st);
    (void)!graph_discard(co, n, 1 << 20, 65536);
    (void)!graph_resize(co, n, SIZE, FMT_PREALLOC_OFF, &err);
    (void)!graph_flush(co, n);
}

/* What records for a job ends with the job, whatever there is no memory for: the next one finds the bitmap as it was. */
static void follow(struct co *co, struct graph_node *n)
{
    struct fmt_bitmap *b = NULL;
    struct byre_err err;
    if (graph_bitmap_add(co, n, &(struct graph_bitmap_spec){ .name = "b", .granularity = 65536 }, &err) || graph_bitmap_find(co, n, "b", &b, &err))
        return;
    graph_bitmap_hold(b);
    for (unsigned i = 0; i < 2; i++) {
        struct dirty *rest = NULL;
        if (graph_bitmap_follow(co, n, b, &err))
            continue;
        change(co, n, 3 << 19, 512, 0x77);
        if (i == 1 && !dirty_new(SIZE, b->granularity_bits, NULL, &rest) && !graph_bitmap_settle(co, n, b, rest, &err))
            CHECK(dirty_test(b->bits, 3 << 19));
        dirty_free(rest);
        graph_bitmap_unfollow(co, n, b);
        CHECK(!b->since);
    }
    graph_bitmap_release(n, b);
}

static void scenario(struct co *co, void *arg)
{
    struct graph *g = NULL;
    struct graph_opts go = { 0 };
    struct graph_node *n = NULL, *o = NULL;
    struct byre_err err;
    counting = true;
    if (!graph_new(co_loop(co), &go, &g, &err)) {
        if (!open_node(co, g, top, "qcow2", false, &n)) {
            requests(co, n);
            follow(co, n);
            if (!open_node(co, g, out, "raw", false, &o)) {
                struct copy_part part = { n, 0, SIZE };
                struct copy_job job = { .parts = &part, .part_count = 1, .target = o, .min_sparse = 4096, .flags = COPY_NO_SPREAD };
                struct compare_job cmp = { .a = n, .b = o, .flags = COPY_NO_SPREAD };
                struct compare_result res;
                int r = copy_run(co, &job, NULL, &err);
                if (!r && !compare_run(co, &cmp, &res, &err))
                    CHECK_EQ(res.verdict, COMPARE_SAME);
                (void)!graph_close(co, o);
            }
            if (!open_node(co, g, packed, "qcow2", false, &o)) {
                struct copy_part part = { n, 0, SIZE };
                struct copy_job job = { .parts = &part, .part_count = 1, .target = o, .min_sparse = 4096, .flags = COPY_NO_SPREAD | COPY_COMPRESS };
                struct compare_job cmp = { .a = n, .b = o, .flags = COPY_NO_SPREAD };
                struct compare_result res;
                if (!copy_run(co, &job, NULL, &err) && !compare_run(co, &cmp, &res, &err))
                    CHECK_EQ(res.verdict, COMPARE_SAME);
                (void)!graph_close(co, o);
            }
            (void)!graph_close(co, n);
        }
        CHECK(!graph_next(g, NULL));
        graph_free(g);
    }
    counting = false;
}

static void verify(struct co *co, void *arg)
{
    static uint8_t buf[SIZE];
    struct graph *g = toy_graph(co);
    struct graph_node *n = NULL;
    CHECK_EQ(open_node(co, g, top, "qcow2", true, &n), 0);
    CHECK_EQ(t_read(co, n, buf, SIZE, 0), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        if (!uncertain[s] && memcmp(buf + s * SECTOR, model + s * SECTOR, SECTOR)) {
            CHECK_EQ(s, -1);
            break;
        }
    }
    memcpy(model, buf, SIZE);
    memset(uncertain, 0, sizeof uncertain);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

static void make_files(struct co *co, void *arg)
{
    snprintf(base, sizeof base, "%s", t_path("n-base"));
    snprintf(mid, sizeof mid, "%s", t_path("n-mid"));
    snprintf(top, sizeof top, "%s", t_path("n-top"));
    snprintf(out, sizeof out, "%s", t_path("n-out"));
    create(co, base, "raw", NULL, NULL);
    create(co, mid, "qcow2", base, "raw");
    create(co, top, "qcow2", mid, "qcow2");
    create(co, out, "raw", NULL, NULL);
    snprintf(packed, sizeof packed, "%s", t_path("n-packed"));
    create(co, packed, "qcow2", NULL, NULL);
    memset(model, 0, SIZE);
}

static unsigned open_files(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Memory that an ended epoch still waits to release goes a moment after the close. */
static bool settles_at(long want)
{
    for (int i = 0; i < 2000 && atomic_load(&live) != want; i++)
        usleep(1000);
    return atomic_load(&live) == want;
}

static void test_nomem(void **state)
{
    t_run(0, make_files, NULL);
    left = -1;
    t_run(0, scenario, NULL);            /* pools of the runtime are filled */
    t_run(0, verify, NULL);
    usleep(200000);
    unsigned files = open_files();
    long before = atomic_load(&live);
    int n = 0;
    do {
        left = n;
        failed = false;
        t_run(0, scenario, NULL);
        left = -1;
        if (!settles_at(before)) {
            print_error("allocation %d: %ld more are alive\n", n, atomic_load(&live) - before);
            fail();
        }
        assert_int_equal(open_files(), files);
        t_run(0, verify, NULL);
        n++;
    } while (failed);
    print_message("%d allocations\n", n);
    assert_true(n > 40);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_nomem) };
    return T_MAIN("nomem", tests);
}
