/* SPDX-License-Identifier: MIT
 *
 * job_test.c: both tables whole (FEATURES 9.001, 9.002), and lives of jobs with every verb at every station.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/test.h"
#include "job/group.h"

/* ---- the tables, written down a second time ---- */
static const char *const moves =
    "undefined>created created>running created>aborting created>null running>paused running>ready running>waiting running>aborting "
    "paused>running ready>standby ready>waiting ready>aborting standby>ready waiting>pending waiting>aborting pending>aborting "
    "pending>concluded aborting>concluded concluded>null ";
static const char *const permits =
    "cancel:created cancel:running cancel:paused cancel:ready cancel:standby cancel:waiting cancel:pending "
    "pause:created pause:running pause:paused pause:ready pause:standby resume:created resume:running resume:paused resume:ready "
    "resume:standby set-speed:created set-speed:running set-speed:paused set-speed:ready set-speed:standby "
    "complete:ready complete:standby finalize:pending dismiss:concluded ";

static bool named(const char *list, const char *a, char sep, const char *b)
{
    char key[64];
    snprintf(key, sizeof key, "%s%c%s ", a, sep, b);
    for (const char *at = strstr(list, key); at; at = strstr(at + 1, key))
        if (at == list || at[-1] == ' ')
            return true;
    return false;
}

static void every_move(void **state)
{
    for (int a = 0; a < JOB_STATUS_COUNT; a++)
        for (int b = 0; b < JOB_STATUS_COUNT; b++)
            if (job_may_move(a, b) != named(moves, job_status_name(a), '>', job_status_name(b)))
                fail_msg("%s to %s", job_status_name(a), job_status_name(b));
}

static const struct job_kind plain_kind = { .type = "plain" };

/* The table, and the refusal: it names state and verb, and changes nothing. */
static void every_verb(void **state)
{
    struct rt *rt;
    struct byre_err err;
    struct rt_opts o = { .loops = 1, .manual = true };
    assert_int_equal(rt_new(&o, &rt, &err), 0);
    struct jobs js;
    jobs_init(&js, rt_loop_at(rt, 0));
    for (int v = 0; v < JOB_VERB_COUNT; v++)
        for (int s = 0; s < JOB_STATUS_COUNT; s++) {
            bool may = job_may_verb(v, s);
            if (may != named(permits, job_verb_name(v), ':', job_status_name(s)))
                fail_msg("%s in %s", job_verb_name(v), job_status_name(s));
            if (may)
                continue;
            struct job job = { .jobs = &js, .kind = &plain_kind, .id = "j", .status = s };
            int r = v == JOB_SET_SPEED ? job_set_speed(&job, 1, &err) : job_do(&job, v, &err);
            assert_int_equal(r, -EINVAL);
            assert_non_null(strstr(err.text, job_status_name(s)));
            assert_non_null(strstr(err.text, job_verb_name(v)));
            assert_true(!job.cancelled && !job.pauses && !job.finalize_wanted && !job.speed && job.status == (enum job_status)s);
        }
    rt_free(rt);
}

/* ---- lives ---- */
struct world {
    struct rt *rt;
    struct jobs js;
    char story[400];                     /* states of all jobs, one after the other */
    bool done;
    int (*body)(struct co *co, struct world *w);
    /* what the test kind does */
    unsigned steps, stepped;             /* UINT_MAX: until cancelled or completed */
    int result, commit_result;
    bool becomes_ready, completed;
    unsigned committed, aborted, finished;
    uint64_t spend;
};

static void watch(void *arg, const struct job *job)
{
    struct world *w = arg;
    assert_true(strlen(w->story) + 16 < sizeof w->story);
    size_t n = strlen(w->story);
    snprintf(w->story + n, sizeof w->story - n, "%s ", job_status_name(job->status));
}

static int kind_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct world *w = job->opaque;
    for (w->stepped = 0; w->stepped < w->steps; w->stepped++) {
        int r = w->spend ? job_spend(co, job, w->spend) : job_point(co, job);
        if (r)
            return r;
        job_progress(job, w->stepped, w->steps);
        co_yield(co);
    }
    if (w->result)
        return byre_fail(err, IO, "step %u broke", w->stepped);
    if (w->becomes_ready)
        job_ready(job);
    while (w->becomes_ready && !w->completed) {
        if (job_point(co, job))
            return -ECANCELED;
        co_yield(co);
    }
    job_progress(job, w->steps, w->steps);
    return 0;
}

static int kind_commit(struct co *co, struct job *job, struct byre_err *err)
{
    struct world *w = job->opaque;
    w->committed++;
    co_yield(co);
    return w->commit_result ? byre_fail(err, NO_SPACE, "commit broke") : 0;
}

static void kind_abort(struct co *co, struct job *job)
{
    ((struct world *)job->opaque)->aborted++;
    co_yield(co);
}

static int kind_complete(struct job *job, struct byre_err *err)
{
    ((struct world *)job->opaque)->completed = true;
    return 0;
}
static void kind_fini(struct job *job) { ((struct world *)job->opaque)->finished++; }

static const struct job_kind kind = { .type = "test", .run = kind_run, .commit = kind_commit, .abort = kind_abort, .complete = kind_complete, .has_speed = true, .fini = kind_fini };
static const struct job_kind stubborn = { .type = "stubborn", .run = kind_run, .fini = kind_fini };

static void body_co(struct co *co, void *arg)
{
    struct world *w = arg;
    (void)w->body(co, w);
    jobs_stop(co, &w->js);
    jobs_stop(co, &w->js);
    w->done = true;
}

static bool is_done(void *arg) { return ((struct world *)arg)->done; }

static void live(struct world *w, int (*body)(struct co *co, struct world *w))
{
    struct byre_err err;
    struct rt_opts o = { .loops = 1, .manual = true };
    assert_int_equal(rt_new(&o, &w->rt, &err), 0);
    jobs_init(&w->js, rt_loop_at(w->rt, 0));
    w->js.status_changed = watch;
    w->js.arg = w;
    w->body = body;
    assert_int_equal(rt_spawn(w->js.home, body_co, w), 0);
    rt_loop_run(w->js.home, is_done, w);
    rt_free(w->rt);
}

static struct job *begin(struct world *w, const struct job_kind *k, bool keep_pending, bool keep_concluded)
{
    struct job *job;
    struct byre_err err;
    struct job_opts o = { .id = "j0", .keep_pending = keep_pending, .keep_concluded = keep_concluded, .opaque = w };
    assert_int_equal(job_start(&w->js, k, &o, &job, &err), 0);
    assert_int_equal(job->status, JOB_CREATED);
    return job;
}

static void until(struct co *co, const struct job *job, enum job_status s)
{
    for (unsigned i = 0; job->status != s; i++) {
        assert_true(i < 100000);
        if (i < 1000)
            co_yield(co);
        else
            (void)co_sleep(co, 1000000);
    }
}

static void until_gone(struct co *co, struct world *w)
{
    while (job_find(&w->js, "j0"))
        co_yield(co);
}

static int well(struct co *co, struct world *w)
{
    begin(w, &kind, false, false);
    until_gone(co, w);
    return 0;
}

static void ends_well(void **state)
{
    struct world w = { .steps = 3 };
    live(&w, well);
    assert_string_equal(w.story, "created running waiting pending concluded null ");
    assert_true(w.committed == 1 && w.aborted == 0 && w.finished == 1 && w.stepped == 3);
}

/* FEATURES 9.005: the error stays until dismissed. */
static int badly(struct co *co, struct world *w)
{
    struct job *job = begin(w, &kind, false, true);
    until(co, job, JOB_CONCLUDED);
    assert_int_equal(job->result, w->result ? -EIO : -ENOSPC);
    assert_non_null(strstr(job->err.text, "broke"));
    assert_ptr_equal(job_find(&w->js, "j0"), job);
    assert_ptr_equal(job_next(&w->js, NULL), job);
    assert_null(job_next(&w->js, job));
    assert_int_equal(job_do(job, JOB_DISMISS, NULL), 0);
    assert_null(job_find(&w->js, "j0"));
    return 0;
}

static void fails(void **state)
{
    struct world w = { .steps = 2, .result = 1 };
    live(&w, badly);
    assert_string_equal(w.story, "created running aborting concluded null ");
    assert_true(w.committed == 0 && w.aborted == 1 && w.finished == 1);
    struct world x = { .steps = 2, .commit_result = 1 };
    live(&x, badly);
    assert_string_equal(x.story, "created running waiting pending aborting concluded null ");
    assert_true(x.committed == 1 && x.aborted == 1 && x.finished == 1);
}

/* FEATURES 9.004: nothing is made true before finalize; 9.012: cancel undoes even then. */
static int pends(struct co *co, struct world *w)
{
    struct job *job = begin(w, &kind, true, true);
    until(co, job, JOB_PENDING);
    for (int i = 0; i < 10; i++)
        co_yield(co);
    assert_int_equal(job->status, JOB_PENDING);
    assert_int_equal(w->committed, 0);
    assert_int_equal(job_do(job, JOB_FINALIZE, NULL), 0);
    until(co, job, JOB_CONCLUDED);
    assert_int_equal(job->result, 0);
    return 0;
}

static int pends_cancelled(struct co *co, struct world *w)
{
    struct job *job = begin(w, &kind, true, true);
    until(co, job, JOB_PENDING);
    assert_int_equal(job_do(job, JOB_CANCEL, NULL), 0);
    until(co, job, JOB_CONCLUDED);
    assert_int_equal(job->result, -ECANCELED);
    return 0;
}

/* Who has started a job that waits may rely on it until it has begun it, whoever cancels meanwhile. */
static int waits_cancelled(struct co *co, struct world *w)
{
    struct job *job;
    struct job_opts o = { .id = "j0", .opaque = w, .waits = true };
    assert_int_equal(job_start(&w->js, &kind, &o, &job, NULL), 0);
    assert_int_equal(job_do(job, JOB_CANCEL, NULL), 0);
    for (unsigned i = 0; i < 100; i++)
        co_yield(co);
    assert_ptr_equal(job_find(&w->js, "j0"), job);
    assert_int_equal(job->status, JOB_CREATED);
    job_begin(job);
    for (unsigned i = 0; job_find(&w->js, "j0"); i++) {
        assert_true(i < 1000);
        co_yield(co);
    }
    return 0;
}

static void waits(void **state)
{
    struct world w = { .steps = 1 };
    live(&w, waits_cancelled);
    assert_string_equal(w.story, "created aborting concluded null ");
    assert_true(w.stepped == 0 && w.aborted == 1);
}

static void finalizes(void **state)
{
    struct world w = { .steps = 1 };
    live(&w, pends);
    assert_string_equal(w.story, "created running waiting pending concluded null ");
    struct world x = { .steps = 1 };
    live(&x, pends_cancelled);
    assert_string_equal(x.story, "created running waiting pending aborting concluded null ");
    assert_true(x.committed == 0 && x.aborted == 1);
}

/* FEATURES 9.006: two user pauses are refused, progress stands still, a hold of ours does not end a user's pause. */
static int pauses(struct co *co, struct world *w)
{
    struct byre_err err;
    struct job *job = begin(w, &kind, false, true);
    until(co, job, JOB_RUNNING);
    assert_int_equal(job_do(job, JOB_RESUME, &err), -EINVAL);
    assert_int_equal(job_do(job, JOB_PAUSE, &err), 0);
    until(co, job, JOB_PAUSED);
    assert_int_equal(job_do(job, JOB_PAUSE, &err), -EINVAL);
    unsigned at = w->stepped;
    job_hold(job);
    job_unhold(job);
    for (int i = 0; i < 20; i++)
        co_yield(co);
    assert_int_equal(w->stepped, at);
    assert_int_equal(job->status, JOB_PAUSED);
    assert_int_equal(job_do(job, JOB_RESUME, &err), 0);
    until(co, job, JOB_RUNNING);
    job_hold(job);
    until(co, job, JOB_PAUSED);
    job_unhold(job);
    until(co, job, JOB_RUNNING);
    for (unsigned before = w->stepped; w->stepped == before;)
        co_yield(co);
    assert_int_equal(job_do(job, JOB_PAUSE, &err), 0);
    until(co, job, JOB_PAUSED);
    assert_int_equal(job_do(job, JOB_CANCEL, &err), 0);           /* cancel is by force: a paused job ends too */
    until(co, job, JOB_CONCLUDED);
    return 0;
}

static void pauses_and_resumes(void **state)
{
    struct world w = { .steps = UINT32_MAX };
    live(&w, pauses);
    assert_string_equal(w.story, "created running paused running paused running paused running aborting concluded null ");
}

/* FEATURES 9.014: complete only when ready; standby is ready and paused. */
static int readies(struct co *co, struct world *w)
{
    struct byre_err err;
    struct job *job = begin(w, &kind, false, true);
    until(co, job, JOB_READY);
    assert_int_equal(job_do(job, JOB_PAUSE, &err), 0);
    until(co, job, JOB_STANDBY);
    assert_int_equal(job_do(job, JOB_COMPLETE, &err), 0);         /* when it goes on */
    assert_int_equal(job->status, JOB_STANDBY);
    assert_int_equal(job_do(job, JOB_RESUME, &err), 0);
    until(co, job, JOB_CONCLUDED);
    assert_int_equal(job->result, 0);
    return 0;
}

static int readies_without_end(struct co *co, struct world *w)
{
    struct byre_err err;
    struct job *job = begin(w, &stubborn, false, true);
    until(co, job, JOB_READY);
    assert_int_equal(job_do(job, JOB_COMPLETE, &err), -ENOTSUP);
    assert_int_equal(job_set_speed(job, 5, &err), -ENOTSUP);
    assert_int_equal(job_do(job, JOB_CANCEL, &err), 0);
    until(co, job, JOB_CONCLUDED);
    return 0;
}

static void becomes_ready(void **state)
{
    struct world w = { .steps = 1, .becomes_ready = true };
    live(&w, readies);
    assert_string_equal(w.story, "created running ready standby ready waiting pending concluded null ");
    struct world x = { .steps = 1, .becomes_ready = true };
    live(&x, readies_without_end);
    assert_string_equal(x.story, "created running ready aborting concluded null ");
}

/* FEATURES 9.003. */
static int ids(struct co *co, struct world *w)
{
    struct job *job;
    struct byre_err err;
    static const char *const bad[] = { "", "0bad", "-x", "a b", "a/b", "\xc3\xa4" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct job_opts o = { .id = bad[i], .opaque = w };
        assert_int_equal(job_start(&w->js, &kind, &o, &job, &err), -EINVAL);
    }
    begin(w, &kind, false, false);
    struct job_opts again = { .id = "j0", .opaque = w }, inner = { .opaque = w }, fast = { .id = "j1", .speed = 1, .opaque = w };
    assert_int_equal(job_start(&w->js, &kind, &again, &job, &err), -EEXIST);
    assert_int_equal(job_start(&w->js, &stubborn, &fast, &job, &err), -ENOTSUP);
    assert_int_equal(job_start(&w->js, &kind, &inner, &job, &err), 0);
    assert_string_equal(job_next(&w->js, NULL)->id, "j0");
    assert_null(job_next(&w->js, job_find(&w->js, "j0")));        /* internal ones are not shown */
    jobs_stop(co, &w->js);
    assert_int_equal(job_start(&w->js, &kind, &inner, &job, &err), -ECANCELED);
    return 0;
}

static void names(void **state)
{
    struct world w = { .steps = UINT32_MAX };
    live(&w, ids);
    assert_int_equal(w.finished, 2);                              /* nothing that was refused was taken */
    assert_int_equal(w.aborted, 2);
}

/* FEATURES 9.007: 1000 units at 10000 a second take 0.1 s; a limit that is lifted ends the wait at once. */
static int speeds(struct co *co, struct world *w)
{
    struct byre_err err;
    struct job *job;
    struct job_opts o = { .id = "j0", .speed = 10000, .keep_concluded = true, .opaque = w };
    assert_int_equal(job_start(&w->js, &kind, &o, &job, &err), 0);
    uint64_t start = rt_now(w->js.home);
    until(co, job, JOB_CONCLUDED);
    uint64_t took = rt_now(w->js.home) - start;
    assert_true(took > 150000000 && took < 20000000000);           /* 2000 units, less the slice that may be made up for */
    assert_int_equal(job_do(job, JOB_DISMISS, NULL), 0);
    w->spend = 1000000;
    assert_int_equal(job_start(&w->js, &kind, &o, &job, &err), 0);
    until(co, job, JOB_RUNNING);
    start = rt_now(w->js.home);
    (void)co_sleep(co, 50000000);
    assert_int_equal(job->status, JOB_RUNNING);
    assert_int_equal(job_do(job, JOB_PAUSE, &err), 0);            /* also in the middle of such a wait */
    until(co, job, JOB_PAUSED);
    assert_true(rt_now(w->js.home) - start < 20000000000);        /* not the 100 s of the limit */
    assert_int_equal(job_do(job, JOB_RESUME, &err), 0);
    until(co, job, JOB_RUNNING);
    assert_int_equal(job_set_speed(job, 0, &err), 0);
    until(co, job, JOB_CONCLUDED);
    assert_true(rt_now(w->js.home) - start < 20000000000);        /* not the 100 s of the limit */
    return 0;
}

static void keeps_its_speed(void **state)
{
    struct world w = { .steps = 20, .spend = 100 };
    live(&w, speeds);
}

/* ---- groups (FEATURES 9.015, 9.088, G.035, G.036) ---- */
struct member { struct job *job; unsigned steps, prepared, committed, aborted; int run_result, prepare_result, commit_result; bool cancels_others; const struct member *all; };

static int member_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct member *m = job->opaque;
    for (unsigned i = 0; i < m->steps; i++) {
        if (job_point(co, job))
            return -ECANCELED;
        co_yield(co);
    }
    return m->run_result ? byre_fail(err, IO, "the work broke") : 0;
}

static int member_prepare(struct co *co, struct job *job, struct byre_err *err)
{
    struct member *m = job->opaque;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(m->all[i].job->status, JOB_PENDING);
    for (unsigned i = 0; i < m->steps; i++)
        co_yield(co);
    m->prepared++;
    return m->prepare_result ? byre_fail(err, NO_SPACE, "preparing broke") : 0;
}

static int member_commit(struct co *co, struct job *job, struct byre_err *err)
{
    struct member *m = job->opaque;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(m->all[i].prepared, 1);             /* G2 */
    m->committed++;
    for (unsigned i = 0; m->cancels_others && i < 3; i++)
        if (&m->all[i] != m && m->all[i].job->status == JOB_PENDING)
            assert_int_equal(job_do(m->all[i].job, JOB_CANCEL, NULL), 0);
    return m->commit_result ? byre_fail(err, IO, "the commit broke") : 0;
}

static void member_abort(struct co *co, struct job *job) { ((struct member *)job->opaque)->aborted++; }
static const struct job_kind member_kind = { .type = "member", .run = member_run, .prepare = member_prepare, .commit = member_commit, .abort = member_abort };

/* Three of them, with lives of different lengths. */
static void join_three(struct world *w, struct member *m, bool last_waits)
{
    static const char *const ids[] = { "m0", "m1", "m2" };
    struct job_group *g = job_group_new();
    struct byre_err err;
    for (unsigned i = 0; i < 3; i++) {
        struct job_opts o = { .id = ids[i], .keep_concluded = true, .keep_pending = last_waits && i == 2, .opaque = &m[i] };
        m[i].all = m;
        m[i].steps += 1 + 5 * i;
        assert_int_equal(job_start(&w->js, &member_kind, &o, &m[i].job, &err), 0);
        job_group_join(g, m[i].job);
    }
    job_group_let(g);
}

static void until_all(struct co *co, const struct member *m, enum job_status s)
{
    for (unsigned i = 0; i < 3; i++)
        until(co, m[i].job, s);
}

static int together(struct co *co, struct world *w)
{
    struct member m[3] = { { 0 } };
    struct byre_err err;
    w->js.status_changed = NULL;
    join_three(w, m, true);
    until(co, m[0].job, JOB_WAITING);                        /* it has done its work, and the others have not */
    assert_int_equal(m[2].job->status, JOB_RUNNING);
    until_all(co, m, JOB_PENDING);
    for (unsigned i = 0; i < 50; i++)
        co_yield(co);
    assert_true(!m[0].prepared && !m[1].prepared && m[0].job->status == JOB_PENDING);      /* one waits for a user, so all do */
    assert_int_equal(job_do(m[2].job, JOB_FINALIZE, &err), 0);
    until_all(co, m, JOB_CONCLUDED);
    for (unsigned i = 0; i < 3; i++)
        assert_true(m[i].job->result == 0 && m[i].committed == 1 && m[i].aborted == 0);
    return 0;
}

static void groups_end_well(void **state)
{
    struct world w = { 0 };
    live(&w, together);
}

/* They have met for the last time, one has committed, and a user cancels those who have not woken yet: they commit, too (G3). */
static int too_late(struct co *co, struct world *w)
{
    struct member m[3] = { { .cancels_others = true }, { .cancels_others = true }, { .cancels_others = true } };
    w->js.status_changed = NULL;
    join_three(w, m, false);
    until_all(co, m, JOB_CONCLUDED);
    for (unsigned i = 0; i < 3; i++)
        assert_true(m[i].job->result == 0 && m[i].committed == 1 && m[i].aborted == 0);
    return 0;
}

/* The first who commits fails: those who have not begun to do so do not. */
static int first_breaks(struct co *co, struct world *w)
{
    struct member m[3] = { { .commit_result = 1 }, { .commit_result = 1 }, { .commit_result = 1 } };
    unsigned committed = 0;
    w->js.status_changed = NULL;
    join_three(w, m, false);
    until_all(co, m, JOB_CONCLUDED);
    for (unsigned i = 0; i < 3; i++)
        committed += m[i].committed;
    assert_int_equal(committed, 1);
    return 0;
}

static void groups_have_met(void **state)
{
    struct world w = { 0 }, v = { 0 };
    live(&w, too_late);
    live(&v, first_breaks);
}

/* Which member fails (3: none), and where: at its work, while it is prepared, by a user while it works, and while it waits. */
static unsigned who, where;

static int none_of_them(struct co *co, struct world *w)
{
    struct member m[3] = { { 0 } };
    struct byre_err err;
    w->js.status_changed = NULL;
    m[who].run_result = where == 0;
    m[who].prepare_result = where == 1;
    if (where == 2)
        m[who].steps = 100000;
    if (where == 3)
        m[(who + 1) % 3].steps = 100000;
    join_three(w, m, false);
    if (where == 2 || where == 3)
        until(co, m[who].job, where == 2 ? JOB_RUNNING : JOB_WAITING);
    if (where >= 2)
        assert_int_equal(job_do(m[who].job, JOB_CANCEL, &err), 0);
    until_all(co, m, JOB_CONCLUDED);
    for (unsigned i = 0; i < 3; i++) {
        int want = i != who || where >= 2 ? -ECANCELED : where == 0 ? -EIO : -ENOSPC;
        assert_int_equal(m[i].job->result, want);
        assert_true(m[i].committed == 0 && m[i].aborted == 1);
    }
    return 0;
}

static void groups_end_badly(void **state)
{
    for (who = 0; who < 3; who++)
        for (where = 0; where < 4; where++) {
            struct world w = { 0 };
            live(&w, none_of_them);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_end_well), cmocka_unit_test(groups_end_badly), cmocka_unit_test(groups_have_met),
        cmocka_unit_test(every_move), cmocka_unit_test(every_verb), cmocka_unit_test(ends_well), cmocka_unit_test(fails),
        cmocka_unit_test(finalizes), cmocka_unit_test(waits), cmocka_unit_test(pauses_and_resumes), cmocka_unit_test(becomes_ready), cmocka_unit_test(names),
        cmocka_unit_test(keeps_its_speed),
    };
    return cmocka_run_group_tests_name("job", tests, NULL, NULL);
}
