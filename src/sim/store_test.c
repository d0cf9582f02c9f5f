/* SPDX-License-Identifier: MIT
 *
 * store_test.c: the storage model as the engine meets it: same seed, same trace; what a flush covers; faults.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "rt/backend.h"
#include "rt/sync.h"
#include "sim/workload.h"

/* ---- determinism, on the whole engine ---- */

static struct hash128 record(const char *geom, uint64_t seed, unsigned loops, const char *text)
{
    struct sim_world *w;
    struct sim_image im;
    struct sim_trace t;
    struct sim_workload l;
    assert_int_equal(sim_workload_parse(text, &l), 0);
    assert_int_equal(sim_world_new(seed, loops, &w), 0);
    sim_image_build(w, sim_geom_find(geom), seed, &im);
    sim_trace_init(&t);
    struct sim_record r = { .w = w, .im = &im, .l = &l, .seed = seed, .trace = &t };
    assert_int_equal(sim_record_run(&r), 0);
    struct hash128 h = sim_trace_hash(&t);
    sim_trace_fini(&t);
    sim_image_fini(&im);
    assert_int_equal(w->handles, 0);
    sim_world_free(w);
    return h;
}

static void same_seed_same_trace(void **state)
{
    static const char text[] = "w 0 8; & w 40 30; & d 8 16; ~ f; w 3 9; f; o; w 100 50; & z 100 20; s 300; f; r";
    unsigned other = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct hash128 a = record("c512", seed, 1 + seed % 3, text), b = record("c512", seed, 1 + seed % 3, text);
        assert_true(hash128_eq(a, b));
        other += !hash128_eq(a, record("c512", seed + 100, 1 + seed % 3, text));
    }
    assert_int_equal(other, 20);
}

/* ---- flushes and faults, on a bare store ---- */

struct fix { struct sim_world *w; struct sim_file *f; struct sim_trace t; struct stor *s; };

static void begin(struct fix *x)
{
    *x = (struct fix){ 0 };
    sim_trace_init(&x->t);
    assert_int_equal(sim_world_new(5, 1, &x->w), 0);
    x->f = sim_world_file(x->w, "f");
    x->w->trace = &x->t;
}

static void end(struct fix *x)
{
    sim_trace_fini(&x->t);
    assert_int_equal(x->w->handles, 0);
    sim_world_free(x->w);
}

static void write_sector(struct co *co, struct stor *s, uint64_t sector, int want)
{
    uint8_t buf[SIM_SECTOR];
    memset(buf, (int)sector + 1, sizeof buf);
    assert_int_equal(stor_write_buf(co, s, buf, sizeof buf, sector * SIM_SECTOR, 0), want);
}

struct slow { struct fix *x; struct co_waitq q; bool done; };

static void slow_writer(struct co *co, void *arg)
{
    struct slow *w = arg;
    write_sector(co, w->x->s, 9, 0);
    w->done = true;
    co_wake_all(&w->q);
}

static int flush_covers(struct co *co, void *arg)
{
    struct fix *x = arg;
    struct slow w = { .x = x };
    assert_int_equal(sim_open(co, x->w, "f", false, &x->s), 0);
    write_sector(co, x->s, 0, 0);
    assert_int_equal(rt_spawn(co_loop(co), slow_writer, &w), 0);
    co_yield(co);                        /* issued, not done */
    assert_int_equal(stor_flush(co, x->s), 0);
    while (!w.done)
        co_wait(co, &w.q);
    stor_close(co, x->s);
    return 0;
}

static const struct sim_op *op_of(const struct sim_trace *t, enum sim_op_kind kind, uint64_t first)
{
    for (size_t i = 0; i < t->op_count; i++)
        if (t->ops[i]->kind == kind && t->ops[i]->first == first)
            return t->ops[i];
    return NULL;
}

static void a_flush_covers_what_had_completed(void **state)
{
    struct fix x;
    (void)state;
    begin(&x);
    assert_int_equal(sim_run(x.w, flush_covers, &x, 0), 0);
    const struct sim_op *a = op_of(&x.t, SIM_WRITE, 0), *b = op_of(&x.t, SIM_WRITE, 9), *f = op_of(&x.t, SIM_FLUSH, 0);
    assert_int_equal(a->durable, f->done);
    assert_true(b->issued < f->issued && b->done > f->issued);
    assert_int_equal(b->durable, SIM_NEVER);
    assert_non_null(op_of(&x.t, SIM_LEN, 0));            /* the growth is an operation of its own */
    end(&x);
}

static int failed_flush(struct co *co, void *arg)
{
    struct fix *x = arg;
    assert_int_equal(sim_open(co, x->w, "f", false, &x->s), 0);
    write_sector(co, x->s, 0, 0);
    x->w->faults = (struct sim_faults){ .kinds = SIM_C_FLUSH, .nth = 1, .what = -EIO };
    assert_true(stor_flush(co, x->s) < 0);
    x->w->faults.kinds = 0;
    assert_true(stor_flush(co, x->s) < 0);               /* latched (RG27) */
    stor_close(co, x->s);
    assert_int_equal(sim_open(co, x->w, "f", false, &x->s), 0);
    write_sector(co, x->s, 1, 0);
    assert_int_equal(stor_flush(co, x->s), 0);
    stor_close(co, x->s);
    return 0;
}

static void a_failed_flush_is_for_ever(void **state)
{
    struct fix x;
    (void)state;
    begin(&x);
    assert_int_equal(sim_run(x.w, failed_flush, &x, 0), 0);
    assert_true(op_of(&x.t, SIM_WRITE, 0)->lost);
    assert_int_equal(op_of(&x.t, SIM_WRITE, 0)->durable, SIM_NEVER);
    assert_true(op_of(&x.t, SIM_WRITE, 1)->durable != SIM_NEVER);
    end(&x);
}

static int faults(struct co *co, void *arg)
{
    struct fix *x = arg;
    uint8_t buf[4 * SIM_SECTOR];
    struct sim_faults *f = &x->w->faults;
    assert_int_equal(sim_open(co, x->w, "f", false, &x->s), 0);
    for (uint64_t s = 0; s < 4; s++)
        write_sector(co, x->s, s, 0);
    *f = (struct sim_faults){ .kinds = SIM_C_WRITE, .nth = 2, .what = -ENOSPC };
    write_sector(co, x->s, 0, 0);
    write_sector(co, x->s, 1, -ENOSPC);
    write_sector(co, x->s, 2, 0);
    *f = (struct sim_faults){ .kinds = SIM_C_WRITE, .nth = 2, .forever = true, .what = -EIO };
    write_sector(co, x->s, 0, 0);
    write_sector(co, x->s, 1, -EIO);
    write_sector(co, x->s, 2, -EIO);
    assert_int_equal(f->fired, 2);
    *f = (struct sim_faults){ .kinds = SIM_C_READ, .nth = 1, .what = SIM_SHORT };
    assert_int_equal(stor_read_exact(co, x->s, buf, sizeof buf, 0), 0);              /* the gate goes on */
    assert_true(f->calls > 1);
    *f = (struct sim_faults){ .kinds = SIM_C_READ, .nth = 1, .forever = true, .what = SIM_EOF };
    assert_int_equal(stor_read_exact(co, x->s, buf, sizeof buf, 0), -EIO);
    *f = (struct sim_faults){ .space = 5 * SIM_SECTOR };
    write_sector(co, x->s, 4, 0);
    write_sector(co, x->s, 5, -ENOSPC);
    *f = (struct sim_faults){ 0 };
    stor_close(co, x->s);
    assert_int_equal(sim_open(co, x->w, "nothing", false, &x->s), -ENOENT);
    return 0;
}

static void calls_fail_as_asked(void **state)
{
    struct fix x;
    (void)state;
    begin(&x);
    assert_int_equal(sim_run(x.w, faults, &x, 0), 0);
    end(&x);
}

static int wait_for_ever(struct co *co, void *arg)
{
    struct co_waitq q = { 0 };
    (void)arg;
    co_wait(co, &q);
    return 0;
}

static void hangs_are_seen(void **state)
{
    struct sim_world *w;
    (void)state;
    assert_int_equal(sim_world_new(1, 2, &w), 0);
    assert_int_equal(sim_run(w, wait_for_ever, NULL, 0), -EDEADLK);
    sim_world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_seed_same_trace), cmocka_unit_test(a_flush_covers_what_had_completed), cmocka_unit_test(a_failed_flush_is_for_ever),
        cmocka_unit_test(calls_fail_as_asked), cmocka_unit_test(hangs_are_seen),
    };
    return cmocka_run_group_tests_name("sim-store", tests, NULL, NULL);
}
