/* SPDX-License-Identifier: MIT
 *
 * mirror_test.c: power cuts while a disk goes over to another file (J1, J5).
 *
 * Purpose      Guests write and flush while a mirror runs from one file to another, and after it. At every cut the disk is the source, from the event
 *              BLOCK_JOB_COMPLETED on the target: it holds what was promised. Three faults of the job must be found. With some seeds the disk
 *              becomes longer and shorter meanwhile (G.031), with some the copy goes by a dirty bitmap (G.026): when it failed, or was
 *              cancelled, what the bitmap does not say any more is on the target.
 *              With two seeds of five the target is an image, QED or qcow2, that is sound at every cut.
 * Owns         Nothing; the world is moving.h's.
 * Invariants   T1  The same seed gives the same trace.
 * Concurrency  Two simulated loops.
 * Failure      A failed check fails the test.
 * Tests        This is one. MIRROR_SEEDS=n makes it longer.
 */
#include "base/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dirty.h"
#include "job/mirror.h"
#include "sim/moving.h"

#define SECTORS 96u
#define SIZE ((uint64_t)SECTORS * SIM_SECTOR)

extern int mirror_fault;
int mirror_fault;
static bool cancelling;

struct world {
    struct moving m;
    bool resizes, by_bitmap, cancels;
    unsigned kept;                        /* sectors that a bitmap did not say any more when the job had failed */
};

/* All of it, so that the job has the same to do. */
static void add_bitmap(struct co *co, struct world *t)
{
    struct byre_err err = { 0 };
    struct dirty *all;
    const struct graph_bitmap_spec spec = { .name = "b", .granularity = 512 };
    assert_int_equal(graph_bitmap_add(co, t->m.from, &spec, &err), 0);
    assert_int_equal(dirty_new(SIZE, 12, NULL, &all), 0);
    dirty_set(all, 0, SIZE);
    assert_int_equal(graph_bitmap_set(co, t->m.from, "b", all, &err), 0);
    dirty_free(all);
}

/* Nobody writes. Users are on the source. */
static void check_bitmap(struct co *co, struct world *t)
{
    struct byre_err err = { 0 };
    struct fmt_bitmap *b;
    assert_int_equal(graph_bitmap_find(co, t->m.from, "b", &b, &err), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        if (dirty_test(b->bits, s * SIM_SECTOR))
            continue;
        assert_int_equal(moving_gen(&t->m, 0, s), moving_gen(&t->m, 1, s));
        t->kept++;
    }
}

/* Calls may fail: then a length stays as it is, or the job cannot end well. */
static void change_length(struct co *co, struct world *t, struct prng *rng)
{
    struct byre_err err = { 0 };
    uint64_t sizes[] = { SIZE + 128 * SIM_SECTOR, SIZE + 16 * SIM_SECTOR, SIZE };
    for (unsigned i = 0; i < 3; i++) {
        (void)co_sleep(co, prng_below(rng, 2000000));
        int r = graph_resize(co, t->m.from, sizes[i], FMT_PREALLOC_OFF, &err);
        if (r && !t->m.w->faults.fired)
            print_error("seed %llu: %s\n", (unsigned long long)t->m.seed, err.text);
        assert_true(t->m.w->faults.fired || graph_length(t->m.from) == sizes[i]);
        assert_true(t->m.w->faults.fired || t->m.ended || graph_length(t->m.to) == sizes[i]);
    }
}

static int run(struct co *co, void *arg)
{
    struct world *t = arg;
    struct byre_err err = { 0 };
    struct job *job;
    struct prng rng;
    moving_open(co, &t->m);
    if (t->by_bitmap)
        add_bitmap(co, t);
    moving_guests_start(co, &t->m);
    prng_init(&rng, t->m.seed * 31);
    const struct job_mirror_opts o = { .sync = t->by_bitmap ? JOB_MIRROR_BITMAP : JOB_MIRROR_FULL, .bitmap = "b", .bitmap_mode = JOB_BITMAP_ALWAYS, .source = t->m.from, .target = t->m.to, .granularity = 4096, .buf_bytes = 1 << 20, .blocking = t->m.seed % 2,
                                       .job = { .id = "m", .keep_concluded = true } };
    assert_int_equal(job_mirror_start(co, &t->m.js, &o, &job, &err), 0);
    if (t->resizes)
        change_length(co, t, &rng);
    (void)co_sleep(co, t->cancels ? prng_below(&rng, 8000000) : 0);
    while (job->status != JOB_READY && !t->m.ended && !t->cancels)
        (void)co_sleep(co, 1000000);
    (void)co_sleep(co, t->cancels ? 0 : 5000000);
    if (!t->m.ended && t->cancels)
        assert_int_equal(job_do(job, JOB_CANCEL, &err), 0);
    else if (!t->m.ended)
        assert_int_equal(job_do(job, JOB_COMPLETE, &err), 0);
    while (!t->m.ended)
        (void)co_sleep(co, 1000000);
    assert_ptr_equal(graph_attached(t->m.disk), t->m.result ? t->m.from : t->m.to);
    moving_guests_wait(co, &t->m);
    jobs_stop(co, &t->m.js);
    if (t->by_bitmap && t->m.result)
        check_bitmap(co, t);
    moving_close(co, &t->m);
    return 0;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct moving *t = arg;
    static uint32_t gens[SECTORS];
    unsigned file = t->over && x->cut >= t->over;
    bool image = file && t->image;
    (void)content;
    t->states++;
    if (!moving_is_sound(t) || (image && moving_read_target(t, gens))) {
        moving_wrong(t, x, "target is not sound", 0);
        return t->bad > 3;
    }
    for (uint32_t s = 0; s < SECTORS; s++)
        if (!sim_model_allows(x->m, s, image ? gens[s] : moving_gen(t, file, s))) {
            moving_wrong(t, x, file ? "target" : "source", s);
            break;
        }
    return t->bad > 3;
}

enum look { LOOK_NOT, LOOK_CUTS, LOOK_NOW };

static struct hash128 explore(struct world *t, uint64_t seed, enum look look, const struct sim_faults *faults)
{
    const char *image = seed % 5 == 3 ? "qed" : seed % 5 == 4 ? "qcow2" : NULL;
    *t = (struct world){ .m = { .sectors = SECTORS, .seed = seed, .image = image }, .resizes = seed % 4 < 2 && !image, .by_bitmap = seed % 4 > 1 && !image, .cancels = cancelling };
    if (faults)
        t->m.faults = *faults;
    moving_init(&t->m);
    struct hash128 h = moving_run(&t->m, run);
    assert_true(t->m.over > 0 || t->m.faults.fired || t->cancels);
    if (look == LOOK_NOW)
        moving_check_now(&t->m, t->m.over ? 1 : 0);
    else if (look == LOOK_CUTS)
        moving_explore(&t->m, visit);
    moving_fini(&t->m);
    return h;
}

static void test_right(void **state)
{
    const char *more = getenv("MIRROR_SEEDS");
    uint64_t seeds = more ? strtoull(more, NULL, 10) : 8, states = 0;
    struct world t;
    mirror_fault = 0;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        explore(&t, seed, LOOK_CUTS, NULL);
        if (t.m.bad)
            print_error("seed %llu: %s\n", (unsigned long long)seed, t.m.first);
        assert_int_equal(t.m.bad, 0);
        states += t.m.states;
    }
    print_message("%llu states\n", (unsigned long long)states);
    assert_true(states > 1000 * seeds);
}

static void test_same_trace(void **state)
{
    struct world t;
    mirror_fault = 0;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct hash128 a = explore(&t, seed, LOOK_NOT, NULL), b = explore(&t, seed, LOOK_NOT, NULL);
        assert_memory_equal(&a, &b, sizeof a);
    }
}

/* The n-th call fails, or all from there on: nothing hangs, the users are where the job says, and what they were told is there. */
static void test_calls_that_fail(void **state)
{
    static const unsigned kinds[] = { SIM_C_WRITE, SIM_C_FLUSH, SIM_C_READ, SIM_C_ZERO | SIM_C_DISCARD | SIM_C_EXTENT };
    unsigned runs = 0, failed = 0;
    mirror_fault = 0;
    for (unsigned i = 0; i < 4 * 2; i++) {
        struct world t;
        uint64_t nth = 1, step = 1;
        do {
            const struct sim_faults f = { .kinds = kinds[i / 2], .nth = nth, .forever = i % 2, .what = i % 3 ? -EIO : -ENOSPC };
            explore(&t, 1 + nth % 5, LOOK_NOW, &f);
            runs++;
            failed += t.m.result != 0;
            nth += step;
            step += nth > 60;
        } while (t.m.faults.fired && nth < 2000);
    }
    print_message("%u runs, in %u the job failed\n", runs, failed);
    assert_true(runs > 120 && failed > 60);
}

/* What an interrupted mirror takes out of its bitmap is on the target. */
static void test_cancelled(void **state)
{
    unsigned kept = 0, ended = 0;
    mirror_fault = 0;
    cancelling = true;
    for (uint64_t seed = 1; seed < 200; seed++) {
        struct world t;
        explore(&t, seed, LOOK_NOW, NULL);
        kept += t.kept > 0;
        ended += t.m.result == -ECANCELED;
    }
    cancelling = false;
    print_message("%u cancelled, in %u a part was kept\n", ended, kept);
    assert_true(ended > 150 && kept > 30);
}

/* 1: the event comes before the flush of the target (H6). 2: before everything is copied. 3: guests are let go before the event. */
static void test_faults(void **state)
{
    for (mirror_fault = 1; mirror_fault <= 3; mirror_fault++) {
        struct world t;
        unsigned found = 0;
        for (uint64_t seed = 1; seed <= 40 && !found; seed++) {
            explore(&t, seed, LOOK_CUTS, NULL);
            found += t.m.bad > 0;
        }
        if (!found)
            print_error("fault %d is not found\n", mirror_fault);
        assert_true(found > 0);
    }
    mirror_fault = 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_same_trace), cmocka_unit_test(test_right), cmocka_unit_test(test_calls_that_fail), cmocka_unit_test(test_cancelled), cmocka_unit_test(test_faults) };
    return cmocka_run_group_tests_name("sim-mirror", tests, NULL, NULL);
}
