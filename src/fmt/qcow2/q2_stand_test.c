/* SPDX-License-Identifier: MIT
 *
 * q2_stand_test.c: a scrub that is paused in the middle of its round does not keep what was dropped from being freed.
 *
 * Purpose      Tables that are dropped while it stands, and what is dropped beside them, come back; when it goes on its result is that
 *              of a round that nothing disturbed.
 * Owns         One disk (q2_disk_test.h).
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_stand.c
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_check_priv.h"

#define CS 512u
#define CLUSTERS 4000u
/* Steps that a walk takes at least, of 512 references each (q2_scrub.c); a slow machine takes more. */
#define STEPS_MIN ((CLUSTERS - 50) / 512)

static const struct make small = { 3, 16, CS, 4u << 20 };

static struct {
    struct q2_image *q;
    unsigned steps, at;                  /* stands at step number `at`; 0: never */
    bool paused, standing, over;
    unsigned findings, same;
    uint64_t done, total;
    char first[200];
    struct fmt_check_result res;
    int r;
} job;

static int on_step(struct co *co, void *arg)
{
    job.steps++;
    if (job.steps == job.at)
        job.paused = true;
    job.standing = job.paused;
    while (job.paused)
        co_yield(co);
    job.standing = false;
    return 0;
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    CHECK(done >= job.done && total >= job.total && done <= total);          /* FEATURES 9.008 */
    job.done = done;
    job.total = total;
}

static bool on_stands(void *arg) { return job.standing; }

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    if (!job.findings++)
        snprintf(job.first, sizeof job.first, "%s%s", id, text);
    else
        job.same += strlen(id) + strlen(text) == strlen(job.first) && !strcmp(job.first + strlen(id), text);
}

static void scrub_co(struct co *co, void *arg)
{
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .finding = on_finding, .progress = on_progress, .step = on_step, .stands = on_stands };
    struct byre_err err = { 0 };
    job.r = q2_scrub(co, &job.q->im, &o, &job.res, &err);
    job.over = true;
}

static void begin(struct co *co, struct q2_image *q, unsigned at)
{
    memset(&job, 0, sizeof job);
    job.q = q;
    job.at = at;
    CHECK_EQ(rt_spawn(q->im.home, scrub_co, NULL), 0);
    for (unsigned i = 0; i < 200000 && !job.standing && !job.over; i++)
        co_yield(co);
}

static void end(struct co *co)
{
    job.paused = false;
    for (unsigned i = 0; i < 2000000 && !job.over; i++)
        co_yield(co);
    CHECK(job.over && job.r == 0 && job.done == job.total);
}

/* A table that nothing names any more, and data beside it in the same batch. */
static void drop_table(struct co *co, struct q2_image *q, struct q2_run *ret_run)
{
    CHECK_EQ(q2_alloc_take(co, q, 1, ret_run), 0);
    q2_alloc_drop_table(q, ret_run->cluster, ret_run->count);
    CHECK_EQ(q2_discard(co, &q->im, 100 * CS, 50 * CS), 0);
}

static struct q2_image *full(struct co *co)
{
    img_make(co, &small);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * CS });
    CHECK_EQ(g_write(co, q, 0, CLUSTERS * CS, 0x5a), 0);
    CHECK_EQ(img_close(co, q), 0);
    return img_open(co, &(struct opening){ .frontier_bytes = 64 * CS });
}

/* Settling does not wait for the one who paused, and the clusters are free. At each step of the walk. */
static void frees_body(struct co *co, void *arg)
{
    unsigned stood = 0;
    for (unsigned at = 0; at < 14; at++) {
        struct q2_image *q = full(co);
        begin(co, q, at);
        bool walks = q->scrubbing && q->scrubbing->walking;
        if (job.standing && walks) {
            struct q2_run run;
            uint64_t n = 1, free_before = q->alloc->ready.total;
            drop_table(co, q, &run);
            CHECK_EQ(q2_drop_settle(co, q), 0);
            CHECK(q2_refs_get(co, q, run.cluster, &n) == 0 && n == 0);
            CHECK(q->alloc->ready.total > free_before);
            CHECK(!job.over && job.standing);
            CHECK_EQ(g_write(co, q, 0, 20 * CS, 0x66), 0);           /* what was freed is used again, while it stands */
            stood++;
        }
        end(co);
        CHECK(!walks || job.steps >= at + STEPS_MIN);      /* all of it was looked at again: some of what the first round saw is gone */
        CHECK(!job.res.corruptions && !job.res.leaks && !job.res.check_errors && !job.findings);
        CHECK(states_ok(co, q));
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);
    }
    CHECK(stood > 3);
}

static void test_frees(void **state) { t_run(0, frees_body, NULL); }

/* One that does not stand is waited for, as ever. */
static void waits_body(struct co *co, void *arg)
{
    struct q2_image *q = full(co);
    struct q2_run run;
    memset(&job, 0, sizeof job);
    job.q = q;
    CHECK_EQ(rt_spawn(q->im.home, scrub_co, NULL), 0);
    while (!job.over && !(q->scrubbing && q->scrubbing->walking))
        co_yield(co);
    CHECK(!job.over);
    drop_table(co, q, &run);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK(!q->scrubbing || !q->scrubbing->walking);
    end(co);
    CHECK(!job.res.corruptions && !job.res.leaks);
    CHECK_EQ(img_close(co, q), 0);
}

static void test_waits(void **state) { t_run(0, waits_body, NULL); }

/* Whoever waits and is cancelled asks all the same, whether it stands already or comes to stand later. */
static bool settled;

static void wait_co(struct co *co, void *arg)
{
    q2_scrub_wait_walk(co, job.q);
    settled = true;
}

static void cancelled_body(struct co *co, void *arg)
{
    struct rt_task t = { 0 };
    unsigned waited = 0;
    for (unsigned at = 1; at < 14; at++) {
        struct q2_image *q = full(co);
        settled = false;
        memset(&job, 0, sizeof job);
        job.q = q;
        job.at = at;
        CHECK_EQ(rt_spawn(q->im.home, scrub_co, NULL), 0);
        while (!job.over && !(q->scrubbing && q->scrubbing->walking))
            co_yield(co);
        CHECK_EQ(rt_task_start(q->im.home, &t, wait_co, NULL), 0);
        rt_cancel(&t);
        for (uint64_t until = rt_now(co_loop(co)) + 2000000000ull; !settled && !job.over && rt_now(co_loop(co)) < until;)
            co_yield(co);
        CHECK(settled || job.over);
        waited += settled && job.standing;
        end(co);
        rt_task_join(co, &t);
        CHECK(states_ok(co, q));
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);
    }
    CHECK(waited > 3);
}

static void test_cancelled(void **state) { t_run(0, cancelled_body, NULL); }

/* The round begins again: nothing is counted twice, told twice, or freed on the word of the first one. */
static void again_body(struct co *co, void *arg)
{
    unsigned stood = 0;
    for (unsigned at = 1; at < 14; at++) {
        struct q2_image *q = full(co);
        uint64_t at_l2 = img_l2_at(3 * CS), leaks = 0;
        CHECK_EQ(img_close(co, q), 0);
        be64 *entry = disk_be64(at_l2);              /* a leak, and a wrong flag: told as damage */
        be64_put(entry, be64_get(entry) & ~(1ull << 63));
        be64_put(disk_be64(img_l2_at(40 * CS)), 0);
        memcpy(disk.durable, disk.bytes, disk.len);
        q = img_open(co, &(struct opening){ .frontier_bytes = 64 * CS });
        begin(co, q, at);
        bool again = job.standing && q->scrubbing->walking;
        if (again) {
            struct q2_run run;
            drop_table(co, q, &run);
            CHECK_EQ(q2_drop_settle(co, q), 0);
            CHECK(q->scrubbing->overrun);
            stood++;
        }
        end(co);
        CHECK_EQ(job.res.corruptions, 1);
        CHECK_EQ(job.res.leaks_fixed, 1);
        CHECK_EQ(job.same, 0);
        CHECK_EQ(job.findings, 3);                   /* the flag; the leak; that it was freed */
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, &leaks), 1);
        CHECK_EQ(leaks, 0);
    }
    CHECK(stood > 3);
}

static void test_again(void **state) { t_run(0, again_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frees, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_waits, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_cancelled, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_again, disk_setup, disk_teardown),
    };
    return T_MAIN("q2_stand", tests);
}
