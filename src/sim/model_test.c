/* SPDX-License-Identifier: MIT
 *
 * model_test.c: what a guest may find after a crash, rule by rule.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "sim/disk.h"
#include "sim/model.h"

#define N 16u

struct fix { struct sim_model m; uint64_t clock; uint32_t gens[N], below[N]; };

static void start(struct fix *f)
{
    memset(f, 0, sizeof *f);
    for (unsigned i = 0; i < N; i++) {
        f->gens[i] = 1;
        f->below[i] = 2;
    }
    sim_model_init(&f->m, N, f->below);
    sim_model_start(&f->m, 8 * SIM_SECTOR, f->gens);
}

static void tell(struct fix *f, enum sim_note_kind kind, uint32_t id, uint32_t gen, uint64_t first, uint64_t count)
{
    struct sim_note n = { .kind = kind, .id = id, .gen = gen, .stamp = ++f->clock, .off = first * SIM_SECTOR, .len = count * SIM_SECTOR };
    sim_model_apply(&f->m, &n);
}

static void only(const struct fix *f, uint64_t s, const char *legal)
{
    char buf[64];
    sim_model_describe(&f->m, s, buf, sizeof buf);
    assert_string_equal(buf, legal);
}

static void before_and_after_a_flush(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    only(&f, 3, "1");
    tell(&f, SIM_N_WRITE, 1, 16, 2, 3);
    assert_true(sim_model_allows(&f.m, 3, 1) && sim_model_allows(&f.m, 3, 16));      /* M1 */
    tell(&f, SIM_N_ACK, 1, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 3, 1));                                       /* acknowledged is not durable */
    assert_false(sim_model_live(&f.m, 3, 1, f.clock + 1));                           /* but it is what is read */
    tell(&f, SIM_N_FLUSH, 2, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 3, 1));
    tell(&f, SIM_N_FLUSH_ACK, 2, 0, 0, 0);
    only(&f, 3, "16");                                                               /* M2 */
    only(&f, 5, "1");
    sim_model_fini(&f.m);
}

static void a_flush_covers_what_ended_before_it(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    tell(&f, SIM_N_WRITE, 1, 16, 0, 1);
    tell(&f, SIM_N_FLUSH, 2, 0, 0, 0);
    tell(&f, SIM_N_ACK, 1, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 2, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 0, 1) && sim_model_allows(&f.m, 0, 16));
    sim_model_fini(&f.m);
}

static void two_at_the_same_time(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    tell(&f, SIM_N_WRITE, 1, 16, 0, 1);
    tell(&f, SIM_N_WRITE, 2, 17, 0, 1);
    tell(&f, SIM_N_ACK, 1, 0, 0, 0);
    tell(&f, SIM_N_ACK, 2, 0, 0, 0);
    tell(&f, SIM_N_FLUSH, 3, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 3, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 0, 16) && sim_model_allows(&f.m, 0, 17));     /* either may have been the last */
    assert_false(sim_model_allows(&f.m, 0, 1));
    sim_model_fini(&f.m);
}

static void a_failed_write_promises_nothing(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    tell(&f, SIM_N_WRITE, 1, 16, 0, 1);
    tell(&f, SIM_N_FAIL, 1, 0, 0, 0);
    tell(&f, SIM_N_FLUSH, 2, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 2, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 0, 1) && sim_model_allows(&f.m, 0, 16));
    sim_model_fini(&f.m);
}

static void discard_is_what_was_seen(void **state)
{
    struct fix f;
    uint32_t seen[2] = { 0, 1 };
    (void)state;
    start(&f);
    tell(&f, SIM_N_DISCARD, 1, 0, 0, 2);
    tell(&f, SIM_N_ACK, 1, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 0, 0) && sim_model_allows(&f.m, 0, 1) && sim_model_allows(&f.m, 0, 2));     /* M3 */
    struct sim_note n = { .kind = SIM_N_SEEN, .id = 1, .stamp = ++f.clock, .gens = seen };
    sim_model_apply(&f.m, &n);
    tell(&f, SIM_N_FLUSH, 2, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 2, 0, 0, 0);
    only(&f, 0, "0");
    only(&f, 1, "1");
    sim_model_fini(&f.m);
}

static void size_is_old_or_new(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    tell(&f, SIM_N_RESIZE, 1, 0, 0, 4);
    assert_int_equal(f.m.size, 8 * SIM_SECTOR);
    assert_int_equal(f.m.size_alt, 4 * SIM_SECTOR);
    only(&f, 5, "1");
    tell(&f, SIM_N_RESIZE_ACK, 1, 0, 0, 4);
    assert_int_equal(f.m.size, 4 * SIM_SECTOR);
    tell(&f, SIM_N_RESIZE, 2, 0, 0, 12);
    tell(&f, SIM_N_RESIZE_ACK, 2, 0, 0, 12);
    assert_int_equal(f.m.size, 12 * SIM_SECTOR);
    only(&f, 3, "1");
    for (unsigned s = 4; s < 12; s++)
        only(&f, s, "0");                                /* M4: what comes back reads zeros */
    sim_model_fini(&f.m);
}

static void sum_tells_sets_apart(void **state)
{
    struct fix a, b;
    (void)state;
    start(&a);
    start(&b);
    assert_true(hash128_eq(a.m.sum, b.m.sum));
    tell(&a, SIM_N_ZERO, 1, 0, 1, 1);
    assert_false(hash128_eq(a.m.sum, b.m.sum));
    tell(&b, SIM_N_ZERO, 7, 0, 1, 1);
    assert_true(hash128_eq(a.m.sum, b.m.sum));           /* whatever the request was called */
    sim_model_fini(&a.m);
    sim_model_fini(&b.m);
}

static void sectors_carry_their_name(void **state)
{
    uint8_t p[SIM_SECTOR];
    (void)state;
    sim_sector_fill(p, 77, 9);
    assert_int_equal(sim_sector_gen(p, 9), 77);
    assert_int_equal(sim_sector_gen(p, 8), sim_gen_moved(77, -1));   /* misplaced: legal only behind a clone */
    p[300] ^= 1;
    assert_int_equal(sim_sector_gen(p, 9), SIM_GEN_NONE);            /* half of it */
    sim_sector_fill(p, 0, 9);
    assert_int_equal(sim_sector_gen(p, 9), 0);
    p[511] = 1;
    assert_int_equal(sim_sector_gen(p, 9), SIM_GEN_NONE);
}

static void reset_zero(struct fix *f, unsigned sector)
{
    tell(f, SIM_N_ZERO, 8, 0, sector, 1);
    tell(f, SIM_N_ACK, 8, 0, 0, 0);
    tell(f, SIM_N_FLUSH, 9, 0, 0, 0);
    tell(f, SIM_N_FLUSH_ACK, 9, 0, 0, 0);
}

/* M7 */
static void a_clone_brings_what_its_source_may_hold(void **state)
{
    struct fix f;
    (void)state;
    start(&f);
    tell(&f, SIM_N_WRITE, 1, 20, 0, 1);
    struct sim_note n = { .kind = SIM_N_CLONE, .id = 2, .stamp = ++f.clock, .off = 3 * SIM_SECTOR, .len = SIM_SECTOR, .from = 0 };
    sim_model_apply(&f.m, &n);
    assert_true(f.m.shares);
    assert_true(sim_model_allows(&f.m, 3, 1) && sim_model_allows(&f.m, 3, sim_gen_moved(1, 3)) && sim_model_allows(&f.m, 3, sim_gen_moved(20, 3)));
    assert_false(sim_model_allows(&f.m, 3, 20));             /* what was written for another sector says so */
    tell(&f, SIM_N_WRITE, 3, 21, 0, 1);                      /* while it runs */
    assert_true(sim_model_allows(&f.m, 3, sim_gen_moved(21, 3)));
    tell(&f, SIM_N_ACK, 2, 0, 0, 0);
    tell(&f, SIM_N_WRITE, 4, 22, 0, 1);                      /* behind it */
    assert_false(sim_model_allows(&f.m, 3, sim_gen_moved(22, 3)));
    tell(&f, SIM_N_FLUSH, 5, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 5, 0, 0, 0);
    assert_false(sim_model_allows(&f.m, 3, 1));              /* it is a write of its target */
    tell(&f, SIM_N_CLOSED, 6, 0, 0, 0);
    assert_false(f.m.shares);
    tell(&f, SIM_N_WRITE, 12, 23, 9, 1);                    /* in a later opening: somebody is left alone */
    assert_true(f.m.shares);
    tell(&f, SIM_N_CLOSED, 13, 0, 0, 0);
    assert_false(f.m.shares);
    n = (struct sim_note){ .kind = SIM_N_CLONE, .id = 7, .off = 5 * SIM_SECTOR, .len = SIM_SECTOR, .from = 0 };
    reset_zero(&f, 5);
    n.stamp = ++f.clock;
    sim_model_apply(&f.m, &n);
    tell(&f, SIM_N_DISCARD, 10, 0, 0, 1);                    /* zeros for the target, which holds zeros that the clone replaces */
    tell(&f, SIM_N_ACK, 10, 0, 0, 0);
    tell(&f, SIM_N_ACK, 7, 0, 0, 0);
    tell(&f, SIM_N_FLUSH, 11, 0, 0, 0);
    tell(&f, SIM_N_FLUSH_ACK, 11, 0, 0, 0);
    assert_true(sim_model_allows(&f.m, 5, 0));
    sim_model_fini(&f.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(before_and_after_a_flush), cmocka_unit_test(a_flush_covers_what_ended_before_it), cmocka_unit_test(two_at_the_same_time),
        cmocka_unit_test(a_failed_write_promises_nothing), cmocka_unit_test(discard_is_what_was_seen), cmocka_unit_test(size_is_old_or_new),
        cmocka_unit_test(sum_tells_sets_apart), cmocka_unit_test(sectors_carry_their_name), cmocka_unit_test(a_clone_brings_what_its_source_may_hold),
    };
    return cmocka_run_group_tests_name("sim-model", tests, NULL, NULL);
}
