/* SPDX-License-Identifier: MIT
 *
 * backup_test.c: power cuts while a disk is copied as it was (J4, J5).
 *
 * Purpose      Guests write and flush before, while and after a backup runs from one file to another. At every cut the disk holds what was promised; from the
 *              event BLOCK_JOB_COMPLETED on the target is, to the byte, the disk at the moment when the job was prepared. With half of the seeds the
 *              target is a qcow2 or a QED image, which is sound at every cut; with a third the backup goes by a dirty bitmap, which misses nothing
 *              afterwards, however the job has ended. One that copies only what is overwritten is cancelled: from that event on the target, which is
 *              closed then, holds what was overwritten. Faults of the job must be found.
 * Owns         Nothing; the world is moving.h's.
 * Invariants   T1  The same seed gives the same trace.
 * Concurrency  Two simulated loops.
 * Failure      A failed check fails the test.
 * Tests        This is one. BACKUP_SEEDS=n makes it longer.
 */
#include "base/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dirty.h"
#include "job/backup.h"
#include "sim/moving.h"

#define SECTORS 384u
#define BITMAP_GRANULE 4096u
#define FULL 1u                           /* generations up to here were on the disk before anybody wrote */

extern int backup_fault;
int backup_fault;

struct world {
    struct moving m;
    bool refused, by_bitmap;
    uint32_t frozen[SECTORS];             /* what the disk was when the job was prepared */
    bool held[SECTORS];                   /* what the bitmap said then */
    bool wanted[SECTORS];                 /* m.cancels: overwritten before the job was cancelled */
    unsigned clean;                       /* sectors that it did not say at the end, having said them before */
};

/* Nobody writes. */
static void look_at_source(struct co *co, struct world *t)
{
    struct byre_err err = { 0 };
    struct fmt_bitmap *b = NULL;
    if (t->by_bitmap)
        assert_int_equal(graph_bitmap_find(co, t->m.from, "b", &b, &err), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        t->frozen[s] = moving_gen(&t->m, 0, s);
        t->held[s] = !b || dirty_test(b->bits, s * SIM_SECTOR);
    }
}

/* Nobody writes. What the bitmap does not say is as it was when the backup was made, and in it; without one, as in the beginning. */
static void check_bitmap(struct co *co, struct world *t)
{
    struct byre_err err = { 0 };
    struct fmt_bitmap *b;
    assert_int_equal(graph_bitmap_find(co, t->m.from, "b", &b, &err), 0);
    for (uint32_t s = 0; s < SECTORS; s++) {
        bool dirty = dirty_test(b->bits, s * SIM_SECTOR);
        uint32_t now = moving_gen(&t->m, 0, s), base = t->m.over ? t->frozen[s] : FULL;
        if (!dirty && now != base)
            t->m.bad++;
        t->clean += t->held[s] && !dirty;
    }
    assert_true(!b->busy && !b->since);
}

static int run(struct co *co, void *arg)
{
    struct world *t = arg;
    struct byre_err err = { 0 };
    struct job *job;
    moving_open(co, &t->m);
    if (t->by_bitmap)
        assert_int_equal(graph_bitmap_add(co, t->m.from, &(struct graph_bitmap_spec){ .name = "b", .granularity = BITMAP_GRANULE }, &err), 0);
    moving_guests_start(co, &t->m);
    (void)co_sleep(co, 3000000);
    const struct job_backup_opts o = { .source = t->m.from, .target = t->m.to, .sync = t->by_bitmap ? JOB_BACKUP_BITMAP : JOB_BACKUP_FULL,
                                       .bitmap = t->by_bitmap ? "b" : NULL, .bitmap_mode = JOB_BITMAP_ON_SUCCESS, .on_cbw_error = CBW_BREAK_SNAPSHOT,
                                       .workers = 1 + t->m.seed % 4, .job = { .id = "b", .keep_concluded = true } };
    graph_drain_begin(co, t->m.from);
    look_at_source(co, t);
    int r = job_backup_prepare(co, &t->m.js, &o, &job, &err);
    graph_drain_end(t->m.from);
    if (r)
        t->m.ended = t->refused = true;
    else
        job_begin(job);
    while (!t->m.ended)
        (void)co_sleep(co, 1000000);
    assert_ptr_equal(graph_attached(t->m.disk), t->m.from);
    moving_guests_wait(co, &t->m);
    jobs_stop(co, &t->m.js);
    if (t->by_bitmap)
        check_bitmap(co, t);
    moving_close(co, &t->m);
    return 0;
}

/* sync=none, with a target that nobody else has open, as that of drive-backup. */
static int run_cancelled(struct co *co, void *arg)
{
    struct world *t = arg;
    struct byre_err err = { 0 };
    struct job *job;
    moving_open(co, &t->m);
    const struct job_backup_opts o = { .source = t->m.from, .target = t->m.to, .sync = JOB_BACKUP_NONE, .on_cbw_error = CBW_BREAK_SNAPSHOT,
                                       .job = { .id = "b", .keep_concluded = true } };
    look_at_source(co, t);
    assert_int_equal(job_backup_prepare(co, &t->m.js, &o, &job, &err), 0);
    (void)graph_close(co, t->m.to);
    t->m.to = NULL;
    job_begin(job);
    moving_guests_start(co, &t->m);
    (void)co_sleep(co, 3000000 + t->m.seed * 500000);
    for (uint32_t s = 0; s < SECTORS; s++)
        t->wanted[s] = moving_gen(&t->m, 0, s) != t->frozen[s];
    assert_int_equal(job_do(job, JOB_CANCEL, &err), 0);
    while (!t->m.ended)
        (void)co_sleep(co, 1000000);
    assert_true(backup_fault || !graph_find(t->m.g, "target"));
    moving_guests_wait(co, &t->m);
    jobs_stop(co, &t->m.js);
    moving_close(co, &t->m);
    return 0;
}

/* A raw target keeps what it had where the bitmap says nothing, an image is empty there; neighbours may come along in whole granules. */
static bool target_fits(const struct world *t, uint32_t s, uint32_t gen)
{
    if (t->m.cancels)
        return gen == t->frozen[s] || (!t->wanted[s] && gen == (t->m.image ? 0 : 2));
    return gen == t->frozen[s] || (!t->held[s] && gen == (t->m.image ? 0 : 2));
}

/* The first sector that is not as the event says; SECTORS: none. */
static uint32_t wrong_in_target(struct world *t)
{
    static uint32_t gens[SECTORS];
    if (t->m.image && moving_read_target(&t->m, gens))
        return 0;
    for (uint32_t s = 0; s < SECTORS; s++)
        if (!target_fits(t, s, t->m.image ? gens[s] : moving_gen(&t->m, 1, s)))
            return s;
    return SECTORS;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct world *t = arg;                /* m is its first member */
    (void)content;
    t->m.states++;
    for (uint32_t s = 0; s < SECTORS; s++)
        if (!sim_model_allows(x->m, s, moving_gen(&t->m, 0, s))) {
            moving_wrong(&t->m, x, "source", s);
            return t->m.bad > 3;
        }
    if (!moving_is_sound(&t->m)) {
        moving_wrong(&t->m, x, "target is not sound", 0);
    } else if (t->m.over && x->cut >= t->m.over) {
        uint32_t s = wrong_in_target(t);
        if (s < SECTORS)
            moving_wrong(&t->m, x, "target", s);
    }
    return t->m.bad > 3;
}

enum look { LOOK_NOT, LOOK_CUTS, LOOK_NOW, LOOK_CANCELLED };

static struct hash128 explore(struct world *t, uint64_t seed, enum look look, const struct sim_faults *faults)
{
    *t = (struct world){ .m = { .sectors = SECTORS, .seed = seed, .image = seed % 2 ? seed % 4 == 1 ? "qcow2" : "qed" : NULL }, .by_bitmap = seed % 3 == 0 };
    if (faults)
        t->m.faults = *faults;
    moving_init(&t->m);
    t->m.cancels = look == LOOK_CANCELLED;
    struct hash128 h = moving_run(&t->m, t->m.cancels ? run_cancelled : run);
    assert_true(t->m.over > 0 || t->m.faults.fired);
    t->m.w->faults = (struct sim_faults){ 0 };
    if (look == LOOK_NOW) {
        moving_check_now(&t->m, 0);
        t->m.bad += !moving_is_sound(&t->m) || (t->m.over && wrong_in_target(t) < SECTORS);
    } else if (look != LOOK_NOT) {
        moving_explore(&t->m, visit);
    }
    moving_fini(&t->m);
    return h;
}

static void test_right(void **state)
{
    const char *more = getenv("BACKUP_SEEDS");
    uint64_t seeds = more ? strtoull(more, NULL, 10) : 8, states = 0;
    struct world t;
    backup_fault = 0;
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

static unsigned wanted_of(const struct world *t)
{
    unsigned n = 0;
    for (uint32_t s = 0; s < SECTORS; s++)
        n += t->wanted[s];
    return n;
}

static void test_cancelled(void **state)
{
    struct world t;
    uint64_t states = 0;
    backup_fault = 0;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        explore(&t, seed, LOOK_CANCELLED, NULL);
        if (t.m.bad)
            print_error("seed %llu: %s\n", (unsigned long long)seed, t.m.first);
        assert_int_equal(t.m.bad, 0);
        assert_true(wanted_of(&t) > 10);
        states += t.m.states;
    }
    print_message("%llu states\n", (unsigned long long)states);
    assert_true(states > 1000);
}

static void test_same_trace(void **state)
{
    struct world t;
    backup_fault = 0;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct hash128 a = explore(&t, seed, LOOK_NOT, NULL), b = explore(&t, seed, LOOK_NOT, NULL);
        assert_memory_equal(&a, &b, sizeof a);
    }
}

/* The n-th call fails, or all from there on: nothing hangs, the source has what guests were told, the target is right if the job says so, and a
 * bitmap has lost nothing. */
struct tally { unsigned runs, failed, clean; };

/* false: bitmap or target is wrong. Every call of these kinds that there is, of one seed; many calls: not each of the later ones. */
static bool fail_calls(uint64_t seed, const struct sim_faults *how, struct tally *y)
{
    struct world t;
    struct sim_faults f = *how;
    for (f.nth = 1;; f.nth += 1 + f.nth / 96) {
        explore(&t, seed, LOOK_NOW, &f);
        if (t.m.bad && !backup_fault)
            print_error("seed %llu, fault %llu of kinds %x%s: bitmap or target is wrong\n", (unsigned long long)seed, (unsigned long long)f.nth, f.kinds, f.forever ? ", for ever" : "");
        if (t.m.bad || !t.m.faults.fired)
            return !t.m.bad;
        y->runs++;
        y->failed += t.m.result != 0 || t.refused;
        y->clean += t.clean > 0;
    }
}

static const unsigned kinds[] = { SIM_C_WRITE, SIM_C_FLUSH, SIM_C_READ, SIM_C_ZERO | SIM_C_DISCARD | SIM_C_EXTENT, SIM_C_TRUNCATE | SIM_C_LENGTH | SIM_C_PREALLOC };
#define KINDS (sizeof kinds / sizeof kinds[0])

/* Seeds 1 to 6: both kinds of target with and without a bitmap. */
static bool fail_all(struct tally *y)
{
    for (uint64_t seed = 1; seed <= 6; seed++)
        for (unsigned i = 0; i < KINDS * 2; i++) {
            const struct sim_faults how = { .kinds = kinds[i / 2], .forever = i % 2, .what = (i + seed) % 3 ? -EIO : -ENOSPC };
            if (!fail_calls(seed, &how, y))
                return false;
        }
    return true;
}

static void test_calls_that_fail(void **state)
{
    struct tally y = { 0 };
    backup_fault = 0;
    assert_true(fail_all(&y));
    print_message("%u runs, in %u the job failed, in %u a bitmap was given up\n", y.runs, y.failed, y.clean);
    assert_true(y.runs > 500 && y.failed > 200 && y.clean > 50);
}

/* 1: the event comes before the flush of the target (H9). 2: nothing is copied before it is overwritten. */
static void test_faults(void **state)
{
    for (backup_fault = 1; backup_fault <= 2; backup_fault++)
        for (unsigned odd = 0; odd < 2; odd++) {             /* raw, image */
            struct world t;
            unsigned found = 0;
            for (uint64_t seed = 2 - odd; seed <= 40 && !found; seed += 2) {
                explore(&t, seed, LOOK_CUTS, NULL);
                found += t.m.bad > 0;
            }
            if (!found)
                print_error("fault %d is not found with a target that is %s\n", backup_fault, odd ? "an image" : "raw");
            assert_true(found > 0);
        }
    backup_fault = 0;
}

/* 3: a backup that failed gives its bitmap up all the same. 4: what was written meanwhile is forgotten with what was copied. */
static void test_bitmap_faults(void **state)
{
    for (backup_fault = 3; backup_fault <= 4; backup_fault++) {
        struct tally y = { 0 };
        bool found = !fail_all(&y);
        if (!found)
            print_error("fault %d is not found\n", backup_fault);
        assert_true(found);
    }
    backup_fault = 0;
}

/* 5: the end of a cancelled job is told before its target is closed, and durable. */
static void test_early_end(void **state)
{
    for (unsigned odd = 0; odd < 2; odd++) {                 /* raw, image */
        struct world t;
        unsigned found = 0;
        backup_fault = 5;
        for (uint64_t seed = 2 - odd; seed <= 12 && !found; seed += 2) {
            explore(&t, seed, LOOK_CANCELLED, NULL);
            found += t.m.bad > 0;
        }
        backup_fault = 0;
        if (!found)
            print_error("fault 5 is not found with a target that is %s\n", odd ? "an image" : "raw");
        assert_true(found > 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_same_trace), cmocka_unit_test(test_right), cmocka_unit_test(test_calls_that_fail), cmocka_unit_test(test_faults),
                                               cmocka_unit_test(test_bitmap_faults), cmocka_unit_test(test_cancelled), cmocka_unit_test(test_early_end) };
    return cmocka_run_group_tests_name("sim-backup", tests, NULL, NULL);
}
