/* SPDX-License-Identifier: MIT
 *
 * clean_test.c: the size of the cache follows its use, under a clock of the test's own.
 *
 * Purpose      What is dropped and when, what never is, what the timer costs an idle cache; when a cache grows.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  One loop, stepped by the test.
 * Failure      A failed check ends the program.
 * Tests        This is one (FEATURES 1.127).
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/list.h"
#include "base/test.h"
#include "meta/meta.h"
#include "rt/backend.h"

#define BLOCK 4096u
#define SECOND UINT64_C(1000000000)
#define INTERVAL (600 * SECOND)

struct fix {
    uint64_t now;
    struct rt *rt;
    struct rt_loop *loop;
    struct epoch *epoch;
    struct stor store;
    struct meta_opts opts;
    struct meta *m;
    struct meta_kind kind;
    uint64_t written, writes;                    /* the last word written, and how many times */
    void (*body)(struct co *co, struct fix *f);
    void (*outside)(struct fix *f);
    bool done;
};

/* ---- a store whose words tell where they lie ---- */

static int64_t s_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    be64 words[BLOCK / 8];
    ASSERT(v.len_bytes == BLOCK);
    for (unsigned i = 0; i < BLOCK / 8; i++)
        be64_put(&words[i], off + i);
    co_yield(co);
    iov_from_buf(v, words, BLOCK);
    return BLOCK;
}

static int64_t s_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct fix *f = CONTAINER_OF(s, struct fix, store);
    be64 first;
    co_yield(co);
    iov_to_buf(iov_slice(v, 0, 8), &first, 8);
    f->written = be64_get(&first);
    f->writes++;
    return (int64_t)v.len_bytes;
}

static int s_flush(struct co *co, struct stor *s)
{
    co_yield(co);
    return 0;
}

static int s_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = UINT64_C(1) << 40;
    return 0;
}

static void s_close(struct co *co, struct stor *s) { stor_fini(s); }

static const struct stor_ops s_ops = { .name = "telling", .preadv = s_preadv, .pwritev = s_pwritev, .flush = s_flush, .length = s_length, .close = s_close };

/* ---- a loop that is stepped, a clock that is set ---- */

static int b_init(struct rt_loop *loop, void **ret_state) { *ret_state = rt_loop_backend_arg(loop); return 0; }
static void b_fini(void *state) { }
static void b_submit(void *state, struct rt_req *r) { UNREACHABLE(); }
static void b_cancel(void *state, struct rt_req *r) { }
static void b_wait(void *state, uint64_t timeout_ns) { UNREACHABLE(); }
static void b_wakeup(void *state) { }
static uint64_t b_now(void *state) { return ((struct fix *)state)->now; }
static const struct rt_backend_ops b_ops = { .name = "sim", .init = b_init, .fini = b_fini, .submit = b_submit, .cancel = b_cancel, .wait = b_wait, .wakeup = b_wakeup, .now = b_now };

static void settle(struct fix *f)
{
    while (rt_loop_step(f->loop))
        ;
}

static bool timer_runs(const struct fix *f) { return rt_loop_next_timer(f->loop) != UINT64_MAX; }

/* Everything that happens up to `at`. */
static void go_to(struct fix *f, uint64_t at)
{
    uint64_t next;
    settle(f);
    while ((next = rt_loop_next_timer(f->loop)) <= at) {
        f->now = max_u64(f->now, next);
        rt_loop_fire_timers(f->loop);
        settle(f);
    }
    f->now = at;
}

static void body_co(struct co *co, void *arg)
{
    struct fix *f = arg;
    f->body(co, f);
    f->done = true;
}

static void in_loop(struct fix *f, void (*body)(struct co *co, struct fix *f))
{
    f->body = body;
    f->done = false;
    ASSERT(rt_spawn(f->loop, body_co, f) == 0);
    settle(f);
    ASSERT(f->done);
}

static void open_co(struct co *co, struct fix *f)
{
    ASSERT(stor_init(&f->store, &s_ops, "telling") == 0);
    f->store.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = BLOCK };
    ASSERT(epoch_new(f->loop, &f->epoch) == 0);
    f->opts.store = &f->store;
    f->opts.home = f->loop;
    f->opts.epoch = f->epoch;
    f->opts.block_bytes = BLOCK;
    ASSERT(meta_new(&f->opts, &f->m) == 0);
}

static void close_co(struct co *co, struct fix *f)
{
    meta_free_all(co, f->m);
    ASSERT(!timer_runs(f));
    epoch_free(f->epoch);
    stor_close(co, &f->store);
}

static void run(void (*outside)(struct fix *f), struct meta_opts opts)
{
    struct fix *f = calloc(1, sizeof *f);
    *f = (struct fix){ .opts = opts, .kind = { .name = "tables", .rank = META_TABLES } };
    ASSERT(rt_new_sim(&b_ops, f, 1, &f->rt) == 0);
    f->loop = rt_loop_at(f->rt, 0);
    in_loop(f, open_co);
    outside(f);
    in_loop(f, close_co);
    rt_free(f->rt);
    free(f);
}

/* ---- uses ---- */

static struct { unsigned first, count; } span;
static struct meta_block *held;

static void use_span(struct co *co, struct fix *f)
{
    for (unsigned i = span.first; i < span.first + span.count; i++) {
        struct meta_block *b;
        ASSERT(meta_get(co, f->m, &f->kind, (uint64_t)i * BLOCK, &b) == 0);
        ASSERT(meta_word(b, 1) == (uint64_t)i * BLOCK + 1);
        meta_put(f->m, b);
    }
}

static void use(struct fix *f, unsigned first, unsigned count)
{
    span.first = first;
    span.count = count;
    in_loop(f, use_span);
}

static void pin_and_dirty(struct co *co, struct fix *f)
{
    struct meta_block *b;
    ASSERT(meta_get(co, f->m, &f->kind, 0, &held) == 0);
    ASSERT(meta_get(co, f->m, &f->kind, BLOCK, &b) == 0);
    meta_set_word(f->m, b, 0, 77);
    meta_put(f->m, b);
}

static void unpin(struct co *co, struct fix *f) { meta_put(f->m, held); }
static void flush(struct co *co, struct fix *f) { ASSERT(meta_flush(co, f->m) == 0); }

/* ---- tests ---- */

/* A block goes between one and two intervals after its last use, and its memory with it. */
static void ages(struct fix *f)
{
    use(f, 0, 200);
    ASSERT(timer_runs(f));
    go_to(f, INTERVAL - 1);
    ASSERT(meta_stats(f->m).blocks == 200);
    go_to(f, INTERVAL + SECOND);                         /* all were used in this interval */
    ASSERT(meta_stats(f->m).blocks == 200 && meta_stats(f->m).cleaned == 0);
    use(f, 20, 10);
    ASSERT(meta_stats(f->m).bytes == 200 * BLOCK && meta_stats(f->m).loads == 200);
    go_to(f, 2 * INTERVAL + SECOND);
    ASSERT(meta_stats(f->m).blocks == 10 && meta_stats(f->m).bytes == 10 * BLOCK && meta_stats(f->m).cleaned == 190);
    use(f, 20, 10);
    ASSERT(meta_stats(f->m).loads == 200);               /* those are the ten that were kept */
    go_to(f, 4 * INTERVAL + 2 * SECOND);
    ASSERT(meta_stats(f->m).blocks == 0 && meta_stats(f->m).bytes == 0);
    ASSERT(!timer_runs(f));                              /* nothing wakes an idle process */
    use(f, 0, 3);
    ASSERT(meta_stats(f->m).blocks == 3 && meta_stats(f->m).loads == 203 && timer_runs(f));
}

static void test_ages(void **state) { run(ages, (struct meta_opts){ .budget_bytes = 1000 * BLOCK, .clean_ns = INTERVAL }); }

/* Neither what is pinned nor what is dirty; both start the timer when that ends. */
static void keeps(struct fix *f)
{
    in_loop(f, pin_and_dirty);
    use(f, 2, 5);
    go_to(f, 10 * INTERVAL);
    ASSERT(meta_stats(f->m).blocks == 2 && f->writes == 0);
    ASSERT(!timer_runs(f));
    in_loop(f, unpin);
    ASSERT(timer_runs(f));
    go_to(f, 12 * INTERVAL + SECOND);
    ASSERT(meta_stats(f->m).blocks == 1 && !timer_runs(f));
    in_loop(f, flush);
    ASSERT(f->writes == 1 && f->written == 77 && timer_runs(f));
    go_to(f, 15 * INTERVAL);
    ASSERT(meta_stats(f->m).blocks == 0 && meta_stats(f->m).bytes == 0);
}

static void test_keeps(void **state) { run(keeps, (struct meta_opts){ .budget_bytes = 1000 * BLOCK, .clean_ns = INTERVAL }); }

/* A reader that stands on a block keeps its memory until it leaves its section. */
static void reader(struct fix *f)
{
    use(f, 0, 64);
    epoch_token t = epoch_enter(f->epoch, f->loop);
    struct meta_block *b = meta_peek(f->m, 7 * BLOCK);
    ASSERT(b);
    go_to(f, 3 * INTERVAL);
    ASSERT(meta_stats(f->m).blocks == 0 && meta_word(b, 5) == 7 * BLOCK + 5);
    epoch_leave(f->epoch, f->loop, t);
    settle(f);
    ASSERT(!meta_peek(f->m, 7 * BLOCK));
    use(f, 0, 1);                                        /* the timer had given up waiting for the reader */
    go_to(f, 6 * INTERVAL);
    ASSERT(meta_stats(f->m).bytes == 0);
}

static void test_reader(void **state) { run(reader, (struct meta_opts){ .budget_bytes = 1000 * BLOCK, .clean_ns = INTERVAL }); }

static void off(struct fix *f)
{
    use(f, 0, 100);
    ASSERT(!timer_runs(f));
    go_to(f, 100 * INTERVAL);
    use(f, 0, 100);
    ASSERT(meta_stats(f->m).loads == 100 && !timer_runs(f));
}

static void test_off(void **state) { run(off, (struct meta_opts){ .budget_bytes = 1000 * BLOCK }); }

static void forget_some(struct co *co, struct fix *f)
{
    for (unsigned i = 0; i < 5000; i += 3)
        ASSERT(meta_forget(f->m, (uint64_t)i * BLOCK, BLOCK));
}

static void forget_rest(struct co *co, struct fix *f) { meta_forget_all(f->m); }

/* A large cache is swept in steps, whatever happens to it between two of them. */
static void steps(struct fix *f)
{
    use(f, 0, 5000);
    go_to(f, INTERVAL + SECOND);
    uint64_t last = 5000;
    for (unsigned n = 0; n < 3; n++) {
        f->now = rt_loop_next_timer(f->loop);
        rt_loop_fire_timers(f->loop);
        settle(f);
        uint64_t blocks = meta_stats(f->m).blocks;
        ASSERT(blocks < last && last - blocks <= 1024);
        if (n == 1) {
            in_loop(f, forget_some);
            blocks = meta_stats(f->m).blocks;
            use(f, 6000, 10);
            blocks += 10;
        }
        last = blocks;
    }
    in_loop(f, forget_rest);
    use(f, 0, 10);
    go_to(f, 9 * INTERVAL);
    ASSERT(meta_stats(f->m).blocks == 0 && !timer_runs(f));
}

static void test_steps(void **state) { run(steps, (struct meta_opts){ .budget_bytes = 10000 * BLOCK, .clean_ns = INTERVAL }); }

/* What is read again after it had to go makes the cache grow; what is read once, however much, does not. */
static void grows(struct fix *f)
{
    use(f, 1000, 500);
    ASSERT(meta_stats(f->m).limit == 16 && meta_stats(f->m).blocks == 16);
    for (unsigned round = 0; round < 12; round++)
        use(f, 0, 60);
    uint64_t limit = meta_stats(f->m).limit, loads = meta_stats(f->m).loads;
    ASSERT(limit >= 60 && limit <= 64);
    use(f, 0, 60);
    ASSERT(meta_stats(f->m).loads == loads);             /* all of it is there now */
    for (unsigned round = 0; round < 200; round++)
        use(f, 0, 90);
    ASSERT(meta_stats(f->m).limit == 64 && meta_stats(f->m).blocks == 64);
    go_to(f, 3 * INTERVAL);
    ASSERT(meta_stats(f->m).limit == 16 && meta_stats(f->m).blocks == 0);
    use(f, 2000, 50);
    ASSERT(meta_stats(f->m).blocks == 16);
}

static void test_grows(void **state) { run(grows, (struct meta_opts){ .budget_bytes = 16 * BLOCK, .budget_max_bytes = 64 * BLOCK, .clean_ns = INTERVAL }); }

static void fixed(struct fix *f)
{
    for (unsigned round = 0; round < 12; round++)
        use(f, 0, 60);
    ASSERT(meta_stats(f->m).limit == 16 && meta_stats(f->m).blocks == 16);
}

static void test_fixed(void **state) { run(fixed, (struct meta_opts){ .budget_bytes = 16 * BLOCK }); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ages), cmocka_unit_test(test_keeps), cmocka_unit_test(test_reader), cmocka_unit_test(test_off),
        cmocka_unit_test(test_steps), cmocka_unit_test(test_grows), cmocka_unit_test(test_fixed),
    };
    return cmocka_run_group_tests_name("meta-clean", tests, NULL, NULL);
}
