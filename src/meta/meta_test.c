/* SPDX-License-Identifier: MIT
 *
 * meta_test.c: passes, freezing, deferred frees and failures of meta/, over a store that records what it is told.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/assert.h"
#include "base/checked.h"
#include "meta/meta.h"

/* ---- a recording store of 64 KiB ---- */

enum { STORE_BYTES = 65536 };
struct rec { char what; uint64_t off, len; };          /* 'W' write, 'F' flush */
struct rstore {
    struct stor s;
    uint8_t bytes[STORE_BYTES];
    struct rec log[256];
    unsigned n;
    int fail_write, fail_flush;                        /* errno once when > 0 */
    void (*on_write)(struct rstore *r);
    bool hold_reads, hold_writes;                      /* requests that arrive now wait until this is false */
};

static int64_t r_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct rstore *r = (struct rstore *)s;
    uint8_t copy[512];
    ASSERT(v.len_bytes <= sizeof copy);
    memcpy(copy, r->bytes + off, v.len_bytes);
    do
        co_yield(co);
    while (r->hold_reads);
    iov_from_buf(v, copy, v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int64_t r_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct rstore *r = (struct rstore *)s;
    (void)flags;
    if (r->on_write)
        r->on_write(r);
    do
        co_yield(co);
    while (r->hold_writes);
    if (r->fail_write) {
        int e = r->fail_write;
        r->fail_write = 0;
        return -e;
    }
    r->log[r->n++] = (struct rec){ 'W', off, v.len_bytes };
    iov_to_buf(v, r->bytes + off, v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int r_flush(struct co *co, struct stor *s)
{
    struct rstore *r = (struct rstore *)s;
    co_yield(co);
    if (r->fail_flush) {
        int e = r->fail_flush;
        r->fail_flush = 0;
        return -e;
    }
    r->log[r->n++] = (struct rec){ 'F', 0, 0 };
    return 0;
}

static int r_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    (void)co;
    (void)s;
    *ret_len = STORE_BYTES;
    return 0;
}

static void r_close(struct co *co, struct stor *s)
{
    (void)co;
    stor_fini(s);
    free(s);
}

static const struct stor_ops r_ops = { .name = "recording", .preadv = r_preadv, .pwritev = r_pwritev, .flush = r_flush, .length = r_length, .close = r_close };

/* ---- fixture: one manual loop, one cache of 512-byte blocks ---- */

struct fix {
    struct rt *rt;
    struct rt_loop *loop;
    struct epoch *epoch;
    struct rstore *r, *data;                           /* data: a second store, when `with_data` */
    bool with_data;
    struct meta *m;
    struct meta_kind counts, tables;
    struct meta_region root;
    _Atomic uint64_t root_words[64];
    uint64_t root_dirty[1];
    bool done;
    void (*body)(struct co *co, struct fix *f);
};

static bool stop(void *arg) { return ((struct fix *)arg)->done; }

static void main_co(struct co *co, void *arg)
{
    struct fix *f = arg;
    f->r = calloc(1, sizeof *f->r);
    assert_int_equal(stor_init(&f->r->s, &r_ops, "recording"), 0);
    f->r->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    assert_int_equal(epoch_new(f->loop, &f->epoch), 0);
    if (f->with_data) {
        f->data = calloc(1, sizeof *f->data);
        assert_int_equal(stor_init(&f->data->s, &r_ops, "data"), 0);
    }
    struct meta_opts o = { .store = &f->r->s, .data = f->with_data ? &f->data->s : NULL, .home = f->loop, .epoch = f->epoch, .block_bytes = 512, .budget_bytes = 8 * 512 };
    assert_int_equal(meta_new(&o, &f->m), 0);
    f->counts = (struct meta_kind){ .name = "counts", .rank = META_COUNTS };
    f->tables = (struct meta_kind){ .name = "tables", .rank = META_TABLES };
    f->root = (struct meta_region){ .rank = META_ROOTS, .off = 32768, .words = f->root_words, .bytes = 512, .dirty = f->root_dirty };
    meta_region_add(f->m, &f->root);
    f->body(co, f);
    meta_free_all(co, f->m);
    epoch_free(f->epoch);
    stor_close(co, &f->r->s);
    if (f->with_data)
        stor_close(co, &f->data->s);
    f->done = true;
}

static void run_with(void (*body)(struct co *co, struct fix *f), bool with_data)
{
    struct fix f = { .body = body, .with_data = with_data };
    struct rt_opts o = { .loops = 1, .manual = true };
    assert_int_equal(rt_new(&o, &f.rt, NULL), 0);
    f.loop = rt_loop_at(f.rt, 0);
    assert_int_equal(rt_spawn(f.loop, main_co, &f), 0);
    rt_loop_run(f.loop, stop, &f);
    rt_free(f.rt);
}

/* "W4096 F W8192" */
static void run(void (*body)(struct co *co, struct fix *f)) { run_with(body, false); }

static void expect_log(struct rstore *r, const char *want)
{
    char got[1024] = "";
    for (unsigned i = 0; i < r->n; i++) {
        size_t at = strlen(got);
        if (r->log[i].what == 'F')
            snprintf(got + at, sizeof got - at, "%sF", i ? " " : "");
        else
            snprintf(got + at, sizeof got - at, "%sW%u", i ? " " : "", (unsigned)r->log[i].off);
    }
    assert_string_equal(got, want);
    r->n = 0;
}

static void set(struct co *co, struct fix *f, const struct meta_kind *k, uint64_t off, uint32_t i, uint64_t v)
{
    struct meta_block *b;
    assert_int_equal(meta_get(co, f->m, k, off, &b), 0);
    meta_set_word(f->m, b, i, v);
    meta_put(f->m, b);
}

/* ---- tests ---- */

static void order_body(struct co *co, struct fix *f)
{
    set(co, f, &f->tables, 8192, 3, 1);
    set(co, f, &f->counts, 16384, 0, 1);
    meta_region_set(f->m, &f->root, 1, 7);
    assert_false(meta_is_clean(f->m));
    meta_need_data_barrier(f->m);
    meta_need_table_barrier(f->m);
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W16384 F W8192 F W32768 F");
    assert_true(meta_is_clean(f->m));
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 8192 + 24)), 1);
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 32768 + 8)), 7);
    /* nothing relies on anything: one barrier (Q23) */
    set(co, f, &f->tables, 8192, 4, 2);
    meta_region_set(f->m, &f->root, 2, 8);
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W8192 W32768 F");
    /* data alone */
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "F");
    assert_int_equal(meta_barriers(f->m, META_B_FINAL), 3);
    assert_int_equal(meta_barriers(f->m, META_B_DATA_TABLES), 1);
}

static void test_order(void **state) { (void)state; run(order_body); }

/* Lazy counts (Q12) leave the counts out of a pass, and no barrier; they come with the first pass behind. */
static void lazy_body(struct co *co, struct fix *f)
{
    meta_set_lazy_counts(f->m, true);
    set(co, f, &f->counts, 16384, 0, 1);
    assert_true(meta_is_clean(f->m));
    set(co, f, &f->tables, 8192, 3, 1);
    meta_region_set(f->m, &f->root, 1, 7);
    assert_false(meta_is_clean(f->m));
    meta_need_data_barrier(f->m);
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "F W8192 W32768 F");
    assert_true(meta_is_clean(f->m));
    set(co, f, &f->counts, 16896, 0, 1);             /* two of eight blocks are dirty counts: still none is written */
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "F");
    set(co, f, &f->counts, 17408, 0, 1);             /* more than a quarter of the cache: now they are */
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W16384 F");
    set(co, f, &f->counts, 16384, 0, 2);
    meta_set_lazy_counts(f->m, false);
    assert_false(meta_is_clean(f->m));
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W16384 F");
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 16384)), 2);
}

static void test_lazy(void **state) { (void)state; run(lazy_body); }

static struct fix *frozen_fix;
static void change_later(struct rstore *r)
{
    struct fix *f = frozen_fix;
    r->on_write = NULL;                  /* while the counts are being written, an entry that needs more counts is set */
    struct meta_block *b = meta_peek(f->m, 8192);
    meta_set_word(f->m, b, 5, 99);
    meta_need_data_barrier(f->m);
}

static void freeze_body(struct co *co, struct fix *f)
{
    frozen_fix = f;
    set(co, f, &f->tables, 8192, 3, 1);
    set(co, f, &f->counts, 16384, 0, 1);
    meta_need_data_barrier(f->m);
    f->r->on_write = change_later;
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W16384 F W8192 F");
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 8192 + 24)), 1);
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 8192 + 40)), 0);       /* not what came after the freeze (I2) */
    assert_false(meta_is_clean(f->m));
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "F W8192 F");
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 8192 + 40)), 99);
}

static void test_freeze(void **state) { (void)state; run(freeze_body); }

struct released { struct meta_free f; bool out; };
static void release(struct meta_free *f) { ((struct released *)f)->out = true; }
static void abandon(struct meta_free *f) { (void)f; fail(); }

static void free_body(struct co *co, struct fix *f)
{
    struct released a = { 0 };
    epoch_token t = epoch_enter(f->epoch, f->loop);
    set(co, f, &f->tables, 8192, 3, 0);
    meta_defer_free(f->m, &a.f, release, abandon);
    for (int i = 0; i < 10; i++)
        co_yield(co);
    assert_false(a.out);                 /* no pass yet (I5 a) */
    assert_int_equal(meta_flush(co, f->m), 0);
    for (int i = 0; i < 10; i++)
        co_yield(co);
    assert_false(a.out);                 /* a request is still inside (I5 b) */
    assert_int_equal(meta_frees_waiting(f->m), 1);
    epoch_leave(f->epoch, f->loop, t);
    assert_int_equal(meta_settle(co, f->m), 0);
    assert_true(a.out);
    assert_int_equal(meta_frees_waiting(f->m), 0);
}

static void test_frees(void **state) { (void)state; run(free_body); }

static void failure_body(struct co *co, struct fix *f)
{
    struct released a = { 0 };
    set(co, f, &f->tables, 8192, 3, 5);
    set(co, f, &f->counts, 16384, 0, 1);
    meta_need_data_barrier(f->m);
    meta_defer_free(f->m, &a.f, release, abandon);
    f->r->fail_write = ENOSPC;
    assert_int_equal(meta_flush(co, f->m), -ENOSPC);
    expect_log(f->r, "");
    assert_false(meta_is_clean(f->m));
    for (int i = 0; i < 10; i++)
        co_yield(co);
    assert_false(a.out);
    assert_int_equal(meta_flush(co, f->m), 0);         /* the next one writes it all, with the barrier that it owes (F2) */
    expect_log(f->r, "W16384 F W8192 F");
    assert_int_equal(meta_settle(co, f->m), 0);
    assert_true(a.out);
    set(co, f, &f->tables, 8192, 3, 6);
    f->r->fail_flush = EIO;
    assert_int_equal(meta_flush(co, f->m), -EIO);
    f->r->n = 0;
    assert_true(meta_flush(co, f->m) < 0);             /* I6 */
    expect_log(f->r, "");
    meta_abandon(co, f->m);
}

static void test_failure(void **state) { (void)state; run(failure_body); }

static void evict_body(struct co *co, struct fix *f)
{
    for (uint64_t i = 0; i < 40; i++)
        set(co, f, &f->tables, i * 512, 0, i + 1);     /* five times the budget: dirt starts a pass by itself */
    for (uint64_t i = 0; i < 40; i++) {
        struct meta_block *b;
        assert_int_equal(meta_get(co, f->m, &f->tables, i * 512, &b), 0);
        assert_int_equal(meta_word(b, 0), i + 1);
        meta_put(f->m, b);
    }
    assert_int_equal(meta_flush(co, f->m), 0);
    struct meta_block *b;
    assert_int_equal(meta_get(co, f->m, &f->counts, 39 * 512, &b), -EUCLEAN);     /* two kinds claim one place */
    assert_non_null(meta_peek(f->m, 39 * 512));
}

static void test_evict(void **state) { (void)state; run(evict_body); }

struct waiter { struct fix *f; int r; bool done; };
static void waiter_co(struct co *co, void *arg)
{
    struct waiter *w = arg;
    w->r = meta_flush(co, w->f->m);
    w->done = true;
}

static void share_body(struct co *co, struct fix *f)
{
    struct waiter w[20];
    set(co, f, &f->tables, 8192, 3, 5);
    for (int i = 0; i < 20; i++) {
        w[i] = (struct waiter){ .f = f };
        assert_int_equal(rt_spawn(f->loop, waiter_co, &w[i]), 0);
    }
    bool all = false;
    while (!all) {
        co_yield(co);
        all = true;
        for (int i = 0; i < 20; i++)
            all &= w[i].done;
    }
    for (int i = 0; i < 20; i++)
        assert_int_equal(w[i].r, 0);
    assert_true(meta_barriers(f->m, META_B_FINAL) <= 2);     /* 20 flushes share passes (F3) */
}

static void test_share(void **state) { (void)state; run(share_body); }

/* A pass that fails gives its frees back, and whoever waits for them must be told. */
struct settler { struct fix *f; int r; bool done; };
static void settler_co(struct co *co, void *arg)
{
    struct settler *s = arg;
    s->r = meta_settle(co, s->f->m);
    s->done = true;
}

static void settle_body(struct co *co, struct fix *f)
{
    struct released a = { 0 };
    struct settler s = { .f = f };
    struct waiter w = { .f = f };
    set(co, f, &f->tables, 8192, 3, 5);
    meta_defer_free(f->m, &a.f, release, abandon);
    f->r->fail_write = EIO;
    f->r->hold_writes = true;
    assert_int_equal(rt_spawn(f->loop, waiter_co, &w), 0);
    for (int i = 0; i < 5; i++)
        co_yield(co);
    assert_int_equal(rt_spawn(f->loop, settler_co, &s), 0);    /* the frees are with the pass now */
    for (int i = 0; i < 5; i++)
        co_yield(co);
    f->r->hold_writes = false;
    for (int i = 0; i < 200 && !s.done; i++)
        co_yield(co);
    assert_true(w.done);
    assert_int_equal(w.r, -EIO);
    assert_true(s.done);
    assert_int_equal(s.r, 0);            /* it ran the next pass itself */
    assert_true(a.out);
}

static void test_settle(void **state) { (void)state; run(settle_body); }

/* A block that is forgotten while it is being read must not come into the cache: its space is somebody else's. */
struct getter { struct fix *f; int r; bool done; };
static void getter_co(struct co *co, void *arg)
{
    struct getter *g = arg;
    struct meta_block *b;
    g->r = meta_get(co, g->f->m, &g->f->tables, 8192, &b);
    if (g->r == 0)
        meta_put(g->f->m, b);
    g->done = true;
}

static void forget_body(struct co *co, struct fix *f)
{
    struct getter g[3];
    f->r->hold_reads = true;
    for (int i = 0; i < 3; i++) {                              /* one reads, two wait for it */
        g[i] = (struct getter){ .f = f };
        assert_int_equal(rt_spawn(f->loop, getter_co, &g[i]), 0);
    }
    for (int i = 0; i < 5; i++)
        co_yield(co);
    assert_true(meta_cached(f->m, 8192, 512));
    assert_true(meta_forget(f->m, 8192, 512));
    assert_false(meta_cached(f->m, 8192, 512));
    be64_put((be64 *)(f->r->bytes + 8192), 77);                /* the new owner's content */
    f->r->hold_reads = false;
    for (int i = 0; i < 50; i++)
        co_yield(co);
    for (int i = 0; i < 3; i++) {
        assert_true(g[i].done);
        assert_int_equal(g[i].r, -ESTALE);                     /* where the block is now, the caller must find out */
    }
    assert_false(meta_cached(f->m, 8192, 512));
    struct meta_block *b;
    assert_int_equal(meta_get(co, f->m, &f->tables, 8192, &b), 0);
    assert_int_equal(meta_word(b, 0), 77);
    assert_true(meta_cached(f->m, 8000, 512) && !meta_cached(f->m, 8000, 192));
    assert_false(meta_forget(f->m, 4096, 8192));               /* pinned: nothing is forgotten */
    assert_ptr_equal(meta_peek(f->m, 8192), b);
    meta_put(f->m, b);
}

static void test_forget(void **state) { (void)state; run(forget_body); }

struct late { struct waiter w; bool started; };
static struct late *late;
static void ask_during_pass(struct rstore *r)
{
    struct fix *f = frozen_fix;
    r->on_write = NULL;                  /* the pass has frozen: what is set now is not in it */
    meta_set_word(f->m, meta_peek(f->m, 8192), 6, 77);
    assert_int_equal(rt_spawn(f->loop, waiter_co, &late->w), 0);
}

static void late_body(struct co *co, struct fix *f)
{
    struct late l = { .w = { .f = f } };
    frozen_fix = f;
    late = &l;
    set(co, f, &f->tables, 8192, 3, 1);
    f->r->on_write = ask_during_pass;
    assert_int_equal(meta_flush(co, f->m), 0);
    while (!l.w.done)
        co_yield(co);
    assert_int_equal(l.w.r, 0);
    assert_int_equal(be64_get((be64 *)(f->r->bytes + 8192 + 48)), 77);      /* F3: a later pass answered it */
    assert_int_equal(meta_flush(co, f->m), 0);
}

static void test_late(void **state) { (void)state; run(late_body); }

/* I8: a reader on another thread never sees one half old and one half new. */
struct reader { struct meta_block *b; _Atomic bool stop; _Atomic uint64_t seen; uint64_t torn; };
static void *reader_main(void *arg)
{
    struct reader *r = arg;
    uint64_t last = 0, x, y;
    while (!atomic_load(&r->stop)) {
        meta_pair(r->b, 6, &x, &y);
        r->torn += y != ~x;
        if (x != last)
            atomic_fetch_add(&r->seen, 1);
        last = x;
    }
    return NULL;
}

static void pair_body(struct co *co, struct fix *f)
{
    struct reader r = { 0 };
    pthread_t t;
    uint64_t n = 0, x, y;
    assert_int_equal(meta_get(co, f->m, &f->tables, 8192, &r.b), 0);
    meta_set_pair(f->m, r.b, 6, n, ~n);
    assert_int_equal(pthread_create(&t, NULL, reader_main, &r), 0);
    while (n < 300000 || (atomic_load(&r.seen) < 1000 && n < 2000000000)) {
        n++;
        meta_set_pair(f->m, r.b, 6, n, ~n);
    }
    atomic_store(&r.stop, true);
    assert_int_equal(pthread_join(t, NULL), 0);
    assert_int_equal(r.torn, 0);
    assert_true(atomic_load(&r.seen) >= 1000);
    meta_pair(r.b, 6, &x, &y);
    assert_true(x == n && y == ~n);
    meta_put(f->m, r.b);
    assert_int_equal(meta_flush(co, f->m), 0);              /* both halves are dirty, and nothing else is changed */
    assert_true(be64_get((be64 *)(f->r->bytes + 8192 + 48)) == n && be64_get((be64 *)(f->r->bytes + 8192 + 56)) == ~n);
    assert_true(be64_get((be64 *)(f->r->bytes + 8192 + 40)) == 0 && be64_get((be64 *)(f->r->bytes + 8192 + 64)) == 0);
}

static void test_pair(void **state) { (void)state; run(pair_body); }

/* I9: the data store is durable before the first table, once for a pass, and by every flush. */
static struct fix *data_fix;
static void data_on_write(struct rstore *r)
{
    if (r->n == 2)                       /* counts and their barrier are out: this is the table */
        assert_int_equal(data_fix->data->n, 1);
}

static void data_body(struct co *co, struct fix *f)
{
    data_fix = f;
    set(co, f, &f->tables, 8192, 3, 1);
    set(co, f, &f->counts, 16384, 0, 1);
    meta_need_data_barrier(f->m);
    f->r->on_write = data_on_write;
    assert_int_equal(meta_flush(co, f->m), 0);
    f->r->on_write = NULL;
    expect_log(f->r, "W16384 F W8192 F");
    expect_log(f->data, "F");
    set(co, f, &f->tables, 8192, 3, 2);                  /* relies on nothing: the last barrier covers what was acknowledged */
    assert_int_equal(meta_flush(co, f->m), 0);
    expect_log(f->r, "W8192 F");
    expect_log(f->data, "F");
    meta_struct_begin(co, f->m);
    assert_int_equal(meta_barrier(co, f->m, META_B_HEADER), 0);
    meta_struct_end(f->m);
    expect_log(f->r, "F");
    expect_log(f->data, "");
    set(co, f, &f->tables, 8192, 3, 3);
    meta_need_data_barrier(f->m);
    f->data->fail_flush = EIO;                           /* no table is written after that, ever (I6) */
    assert_int_equal(meta_flush(co, f->m), -EIO);
    assert_int_equal(meta_flush(co, f->m), -EIO);
    expect_log(f->r, "");
    meta_abandon(co, f->m);
}

static void test_data(void **state) { (void)state; run_with(data_body, true); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order), cmocka_unit_test(test_lazy), cmocka_unit_test(test_freeze), cmocka_unit_test(test_frees),
        cmocka_unit_test(test_failure), cmocka_unit_test(test_evict), cmocka_unit_test(test_share), cmocka_unit_test(test_late),
        cmocka_unit_test(test_settle), cmocka_unit_test(test_forget), cmocka_unit_test(test_pair), cmocka_unit_test(test_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
