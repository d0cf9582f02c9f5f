/* SPDX-License-Identifier: MIT
 *
 * explorer_test.c: the states made from small traces, counted by hand; the shared set; workloads as text.
 * What the explorer is for: FEATURES 1.047, 1.121.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sim/explorer.h"
#include "sim/seen.h"
#include "sim/workload.h"

struct fix {
    struct sim_world *w;
    struct sim_trace t;
    struct sim_model m;
    uint64_t clock;
    struct sim_seen *seen;
    bool has[256][4];                    /* file content by first byte of sectors 0..3 (index = sector 0) */
    unsigned found;
};

static void begin(struct fix *x, uint64_t len)
{
    static const uint32_t gens[8];
    memset(x, 0, sizeof *x);
    sim_trace_init(&x->t);
    assert_int_equal(sim_world_new(1, 1, &x->w), 0);
    assert_int_equal(sim_disk_set_len(&sim_world_file(x->w, "f")->disk, len), 0);
    sim_model_init(&x->m, 8, NULL);
    sim_model_start(&x->m, 8 * SIM_SECTOR, gens);
    x->seen = sim_seen_new(12);
}

static void end(struct fix *x)
{
    sim_seen_free(x->seen);
    sim_model_fini(&x->m);
    sim_trace_fini(&x->t);
    sim_world_free(x->w);
}

/* Issued and done at once; durable: by hand. */
static struct sim_op *op(struct fix *x, enum sim_op_kind kind, uint64_t first, uint32_t count, uint8_t fill)
{
    struct sim_op *o = sim_trace_op(&x->t, kind, 0, ++x->clock);
    o->first = first;
    o->count = count;
    o->len = first * SIM_SECTOR;         /* SIM_LEN: first = sectors of the new length */
    o->data = sim_trace_alloc(&x->t, count * SIM_SECTOR + 1);
    o->hash = sim_trace_alloc(&x->t, (count + 1) * sizeof *o->hash);
    memset(o->data, fill, count * SIM_SECTOR);
    for (uint32_t i = 0; i < count; i++)
        o->hash[i] = sim_sector_hash(0, first + i, o->data);
    o->effect = ++x->clock;
    o->done = ++x->clock;
    if (kind == SIM_LEN)
        o->first = 0;
    return o;
}

static void flush(struct fix *x)
{
    struct sim_op *o = sim_trace_op(&x->t, SIM_FLUSH, 0, ++x->clock);
    o->effect = o->done = ++x->clock;
    sim_trace_flushed(&x->t, 0, o->issued, o->done, true);
}

static int visit(void *arg, struct sim_explorer *e, struct hash128 content)
{
    struct fix *x = arg;
    (void)e;
    if (!sim_seen_add(x->seen, content))
        return 0;
    const struct sim_disk *d = &x->w->files[0]->disk;
    for (unsigned s = 0; s < 4; s++)
        if (s * SIM_SECTOR < d->len)
            x->has[d->data[s * SIM_SECTOR]][s] = true;
    x->found++;
    return 0;
}

static void explore(struct fix *x)
{
    struct sim_explorer e = { .w = x->w, .t = &x->t, .m = &x->m, .seed = 1, .visit = visit, .arg = x };
    assert_int_equal(sim_explore(&e), 0);
}

static void every_subset(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 8 * SIM_SECTOR);
    for (unsigned i = 0; i < 3; i++)
        op(&x, SIM_WRITE, i, 1, (uint8_t)(10 + i));
    explore(&x);
    assert_int_equal(x.found, 8);
    end(&x);
}

static void what_is_durable_stays(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 8 * SIM_SECTOR);
    op(&x, SIM_WRITE, 0, 1, 10);
    op(&x, SIM_WRITE, 1, 1, 11);
    flush(&x);
    op(&x, SIM_WRITE, 2, 1, 12);
    explore(&x);
    assert_int_equal(x.found, 4 + 1);                    /* 2 subsets of two, then one more member on both */
    end(&x);
}

static void tears_land_sector_by_sector(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 8 * SIM_SECTOR);
    op(&x, SIM_WRITE, 0, 4, 10);
    explore(&x);
    /* none, all, head 1 2 3, tail 1 2 3 */
    assert_int_equal(x.found, 8);
    end(&x);
}

static void overlaps_keep_their_order(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 8 * SIM_SECTOR);
    op(&x, SIM_WRITE, 0, 1, 10);
    op(&x, SIM_WRITE, 0, 1, 11);
    explore(&x);
    assert_int_equal(x.found, 3);                        /* 0, 10, 11 */
    assert_true(x.has[0][0] && x.has[10][0] && x.has[11][0]);
    end(&x);
}

static void length_is_a_member_of_its_own(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 0);
    op(&x, SIM_LEN, 2, 0, 0);
    op(&x, SIM_WRITE, 1, 1, 10);
    op(&x, SIM_LEN, 4, 0, 0);
    explore(&x);
    /* length 0 (data behind the end is not there); length 2 and 4, each without and with the data */
    assert_int_equal(x.found, 5);
    end(&x);
}

static void punches_are_members(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 8 * SIM_SECTOR);
    op(&x, SIM_WRITE, 0, 1, 10);
    flush(&x);
    struct sim_op *p = op(&x, SIM_PUNCH, 0, 1, 0);
    p->data = NULL;
    p->hash[0] = (struct hash128){ 0, 0 };
    op(&x, SIM_WRITE, 0, 1, 11);
    explore(&x);
    assert_int_equal(x.found, 3);                        /* 0, 10, 11 */
    end(&x);
}

static void many_members_are_sampled(void **state)
{
    struct fix x;
    (void)state;
    begin(&x, 64 * SIM_SECTOR);
    for (unsigned i = 0; i < 20; i++)
        op(&x, SIM_WRITE, i, 1, 10);
    explore(&x);
    assert_true(x.found > 20 + 20 + 190 && x.found < 4096);          /* singletons, all but one, all but two, more */
    end(&x);
}

static int same_again(void *arg, struct sim_explorer *e, struct hash128 content)
{
    struct hash128 *want = arg;
    char text[200];
    sim_state_text(e, text, sizeof text);
    assert_true(hash128_eq(*want, content));
    return 0;
}

struct keep { char text[200]; struct hash128 h; unsigned left; };

static int keep_some(void *arg, struct sim_explorer *e, struct hash128 content)
{
    struct keep *k = arg;
    if (k->left-- == 0) {
        sim_state_text(e, k->text, sizeof k->text);
        k->h = content;
    }
    return 0;
}

static void text_makes_the_state_again(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 30; n++) {
        struct fix x;
        static const uint32_t gens[8];
        begin(&x, 8 * SIM_SECTOR);
        op(&x, SIM_WRITE, 0, 4, 10)->meta = true;
        op(&x, SIM_WRITE, 2, 3, 11);
        struct keep k = { .left = n };
        struct sim_explorer e = { .w = x.w, .t = &x.t, .m = &x.m, .seed = 1, .visit = keep_some, .arg = &k };
        assert_int_equal(sim_explore(&e), 0);
        struct sim_disk *d = &x.w->files[0]->disk;
        sim_disk_reset(d);
        assert_int_equal(sim_disk_set_len(d, 8 * SIM_SECTOR), 0);
        sim_model_start(&x.m, 8 * SIM_SECTOR, gens);
        e.visit = same_again;
        e.arg = &k.h;
        assert_int_equal(sim_explore_one(&e, k.text), 0);
        assert_int_equal(sim_explore_one(&e, "cut 5: 77"), -EINVAL);
        end(&x);
    }
}

static void set_is_shared(void **state)
{
    struct sim_seen *s = sim_seen_new(10);
    int status;
    (void)state;
    pid_t pid = fork();
    if (pid == 0)
        _exit(sim_seen_add(s, (struct hash128){ 5, 6 }) ? 0 : 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_false(sim_seen_add(s, (struct hash128){ 5, 6 }));
    assert_true(sim_seen_add(s, (struct hash128){ 5, 7 }));
    assert_true(sim_seen_add(s, (struct hash128){ 0, 0 }));
    assert_false(sim_seen_add(s, (struct hash128){ 0, 0 }));
    assert_int_equal(sim_seen_count(s), 3);
    sim_seen_free(s);
}

static void workloads_are_text(void **state)
{
    struct sim_workload l, again;
    char text[1024];
    (void)state;
    for (unsigned g = 0; sim_geom_nth(g); g++)
        for (uint64_t n = 0; n < 20000; n += 7) {
            sim_workload_nth(sim_geom_nth(g), n, &l);
            assert_true(sim_workload_fits(&l, sim_geom_nth(g)));
            sim_workload_text(&l, text, sizeof text);
            assert_int_equal(sim_workload_parse(text, &again), 0);
            assert_int_equal(l.count, again.count);
            for (unsigned i = 0; i < l.count; i++) {
                assert_true(l.op[i].kind == again.op[i].kind && l.op[i].off == again.op[i].off && l.op[i].len == again.op[i].len);
                assert_true(l.op[i].beside == again.op[i].beside && l.op[i].behind == again.op[i].behind);
            }
        }
    assert_int_equal(sim_workload_parse("w 1", &l), -EINVAL);
    assert_int_equal(sim_workload_parse("w 1 0", &l), -EINVAL);
    assert_int_equal(sim_workload_parse("x 1 1", &l), -EINVAL);
    assert_int_equal(sim_workload_parse("w 1 1 1", &l), -EINVAL);
    assert_int_equal(sim_workload_parse("& w 1 1", &l), 0);
    assert_false(sim_workload_fits(&l, sim_geom_find("c4k")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_subset), cmocka_unit_test(what_is_durable_stays), cmocka_unit_test(tears_land_sector_by_sector),
        cmocka_unit_test(overlaps_keep_their_order), cmocka_unit_test(length_is_a_member_of_its_own), cmocka_unit_test(punches_are_members),
        cmocka_unit_test(many_members_are_sampled), cmocka_unit_test(text_makes_the_state_again), cmocka_unit_test(set_is_shared),
        cmocka_unit_test(workloads_are_text),
    };
    return cmocka_run_group_tests_name("sim-explorer", tests, NULL, NULL);
}
