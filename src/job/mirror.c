/* SPDX-License-Identifier: MIT
 *
 * mirror.c: mirror and active commit.
 *
 * Purpose     A row over the live copy (copy/live.h): what is dirty at the beginning, when it is ready, what is done so that it becomes
 *             ready in time (converge.h), and how the users go over to the target.
 * Owns        struct mirror, from job_mirror_start to fini; the copy until the job has concluded
 * Invariants  mirror.h I1 to I3. Further: M1  The source is drained for as long as it takes to end what is inside, one flush of a target that was
 *             flushed just before, and the change of edges. What is not clean then is copied with the gate open, and it is tried again.
 *             M2  Users that are on the target are let go when the job has concluded, so nothing is acknowledged there before the event.
 * Order       copy | flush | ready | ... | drain, clean | flush | users go over | concluded (J1, J5)
 * Concurrency Home loop. A flush runs in a coroutine of its own, so that cancelling does not wait for a target that stands still.
 * Failure     mirror.h
 * Tests       mirror_test.c, tests/cli/mirror_test.py, tests/kill/test_kill_mirror.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "copy/live.h"
#include "graph/live.h"
#include "graph/runtime.h"
#include "job/mirror.h"

#define TICK_NS UINT64_C(100000000)
#define RETRY_NS UINT64_C(100000000)
#define GRANULARITY_MIN 512u
#define GRANULARITY_MAX (UINT64_C(64) << 20)
#define SLOWDOWN_DEFAULT 20u
#define HOLD_DEFAULT_MS 1000u
#define HELD_NS UINT64_C(5000000)         /* a change that takes so long waits for the target */
#define STEP_BYTES (UINT64_C(1) << 30)

#ifdef MIRROR_TEST
extern int mirror_fault;                 /* of the test in sim/, which must find them */
#define FAULT(n) (mirror_fault == (n))
#else
#define FAULT(n) 0
#endif
enum { FAULT_NO_FLUSH = 1, FAULT_NOT_CLEAN, FAULT_LATE_EVENT };

struct mirror {
    struct job *job;
    struct job_mirror_opts o;
    struct copy_live *live;              /* NULL: not begun, or ended */
    struct graph_user on_source, on_target;
    char *who;
    struct graph_node *frozen;           /* edges above it are */
    struct graph_claim *between;         /* active commit: nobody else sees the base through the layers that lie over it */
    struct converge conv;
    uint64_t next_tick_ns, longest_hold_ns, held_ns, pause_ns;
    struct copy_live_state st;           /* of the last look */
    bool scanned, completing, leaving, over, ended;
    bool wants_blocking;                 /* copy-mode, as the user has it */
};

/* ---- a flush that can be left alone ---- */

struct aside { struct graph_node *node; struct job *job; struct jobs *jobs; bool done, left; int result; };

static void aside_main(struct co *co, void *arg)
{
    struct aside *a = arg;
    a->result = graph_flush(co, a->node);
    a->done = true;
    if (!a->left) {
        co_wake_all(&a->job->wake);
        return;
    }
    struct jobs *js = a->jobs;           /* stays until `alive` is left; the job may be gone */
    (void)graph_close(co, a->node);
    free(a);
    co_group_leave(&js->alive);
}

/* -ECANCELED: the job is to end, the flush is left alone. */
static int flush_target(struct co *co, struct mirror *m)
{
    struct aside *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    *a = (struct aside){ .node = m->o.target, .job = m->job, .jobs = m->job->jobs };
    if (rt_spawn(co_loop(co), aside_main, a)) {
        free(a);
        return -ENOMEM;
    }
    while (!a->done && !job_cancelled(m->job))
        co_wait(co, &m->job->wake);
    if (!a->done) {
        a->left = true;
        graph_ref(a->node);
        co_group_enter(&m->job->jobs->alive);
        return -ECANCELED;
    }
    int r = a->result;
    free(a);
    return r;
}

/* ---- looking, telling ---- */

static void tell_progress(struct mirror *m)
{
    uint64_t left = m->st.dirty + m->st.in_flight;
    job_progress(m->job, m->st.copied, m->st.copied + left);
}

static bool is_ready(const struct mirror *m)
{
    enum job_status s = m->job->status;
    return s == JOB_READY || s == JOB_STANDBY || s == JOB_WAITING || s == JOB_PENDING;
}

/* What the user's mode, the decisions and the end of the job make of it. */
static void obey(struct mirror *m)
{
    bool on = m->wants_blocking || m->conv.blocking || m->completing;
    if (on != copy_live_is_blocking(m->live))
        copy_live_set_blocking(m->live, on);
    copy_live_set_brake(m->live, m->conv.brake);
    copy_live_await(m->live, !is_ready(m) || m->completing);
    uint64_t speed = m->job->speed, limit = m->completing ? 0 : m->conv.copy_limit;      /* it is to end */
    copy_live_set_rate(m->live, !speed || (limit && limit < speed) ? limit : speed);
}

static void steer(struct co *co, struct mirror *m)
{
    uint64_t now = rt_now(co_loop(co));
    if (now >= m->next_tick_ns) {
        m->next_tick_ns = now + TICK_NS;
        struct converge_sample s = { .now_ns = now, .dirty = m->st.dirty + m->st.in_flight, .copied = m->st.copied, .guest = m->st.guest,
                                     .clean = m->st.calm, .ready = is_ready(m), .held = m->held_ns > HELD_NS };
        m->held_ns = 0;
        converge_step(&m->conv, &s);
    }
    obey(m);
}

static void look(struct co *co, struct mirror *m)
{
    copy_live_look(m->live, &m->st);
    m->longest_hold_ns = max_u64(m->longest_hold_ns, m->st.longest_hold_ns);
    m->held_ns = max_u64(m->held_ns, m->st.longest_hold_ns);
    tell_progress(m);
    if (m->scanned)
        steer(co, m);
}

/* Until something has happened, or it is time to look. */
static void wait(struct co *co, struct mirror *m)
{
    uint64_t old = co_set_deadline(co, rt_now(co_loop(co)) + TICK_NS);
    (void)co_wait_cancellable(co, &m->job->wake);
    (void)co_set_deadline(co, old);
}

/* A pause point: nothing is copied while the job stands still. */
static int point(struct co *co, struct mirror *m)
{
    struct job *job = m->job;
    if (!job->pauses || job_cancelled(job))
        return job_point(co, job);
    copy_live_pause(m->live, true);
    int r = job_point(co, job);
    copy_live_pause(m->live, false);
    return r;
}

/* ---- errors ---- */

static int say_failed(const struct mirror *m, struct byre_err *err)
{
    const struct graph_node *n = m->st.error_read ? m->o.source : m->o.target;
    return byre_fail_code(err, IO, m->st.error, "%s: cannot %s at offset %" PRIu64 ": %s", graph_filename(n), m->st.error_read ? "read" : "write",
                          m->st.error_off, strerror(-m->st.error));
}

static void tell_error(const struct mirror *m, const char *action)
{
    struct jobs *js = m->job->jobs;
    if (js->io_error)
        js->io_error(js->arg, m->job, m->st.error_read, action);
}

/* 0: it goes on. */
static int on_error(struct co *co, struct mirror *m, struct byre_err *err)
{
    enum job_on_error how = m->st.error_read ? m->o.on_source_error : m->o.on_target_error;
    bool stop = how == JOB_ON_ERROR_STOP || (how == JOB_ON_ERROR_ENOSPC && m->st.error == -ENOSPC);
    int r = 0;
    if (job_cancelled(m->job))
        return -ECANCELED;
    if (stop) {
        tell_error(m, "stop");
        copy_live_pause(m->live, true);
        r = job_stop_for(co, m->job, m->st.error);
        copy_live_pause(m->live, false);
    } else if (how == JOB_ON_ERROR_IGNORE) {
        tell_error(m, "ignore");
        uint64_t until = rt_now(co_loop(co)) + RETRY_NS;
        while (rt_now(co_loop(co)) < until && !job_cancelled(m->job)) {
            uint64_t old = co_set_deadline(co, until);
            (void)co_wait_cancellable(co, &m->job->wake);
            (void)co_set_deadline(co, old);
        }
        r = point(co, m);
    } else {
        tell_error(m, "report");
        return say_failed(m, err);
    }
    copy_live_retry(m->live);
    return r;
}

/* ---- the work ---- */

static void on_wake(void *arg) { co_wake_all(&((struct mirror *)arg)->job->wake); }

static int begin(struct co *co, struct mirror *m, struct byre_err *err)
{
    const struct job_mirror_opts *o = &m->o;
    uint64_t granule = graph_image(o->target)->granule;
    struct copy_live_opts lo = {
        .source = o->source, .target = o->target, .granularity_bits = (unsigned)__builtin_ctzll(o->granularity), .buf_bytes = o->buf_bytes,
        .rate = m->job->speed, .min_sparse = o->keep_space ? 0 : job_grain(granule), .keep_space = o->keep_space,
        .hold_ns = o->max_hold_ms * 1000000, .blocking = m->wants_blocking, .wake = on_wake, .arg = m, .alive = &m->job->jobs->alive };
    if (o->active_commit)
        lo.above = o->target;
    else if (o->sync == JOB_MIRROR_TOP)
        lo.above = graph_backing(o->source);
    int r = copy_live_start(co, &lo, &m->live, err);
    if (!r) {
        copy_live_look(m->live, &m->st);
        converge_begin(&m->conv, &(struct converge_sample){ .now_ns = rt_now(co_loop(co)), .guest = m->st.guest });
    }
    return r;
}

static int scan(struct co *co, struct mirror *m, struct byre_err *err)
{
    uint64_t size = graph_length(m->o.source), len;
    for (uint64_t off = 0; off < size && m->o.sync != JOB_MIRROR_NONE; off += len) {
        int r = point(co, m);
        if (!r)
            r = copy_live_scan(co, m->live, off, min_u64(size - off, STEP_BYTES), &len);
        if (r)
            return r == -ECANCELED ? r : byre_fail_code(err, IO, r, "%s: cannot be looked through at offset %" PRIu64 ": %s", graph_filename(m->o.source), off, strerror(-r));
        copy_live_look(m->live, &m->st);
        tell_progress(m);
    }
    m->scanned = true;
    m->next_tick_ns = rt_now(co_loop(co)) + TICK_NS;
    copy_live_look(m->live, &m->st);
    converge_begin(&m->conv, &(struct converge_sample){ .now_ns = rt_now(co_loop(co)), .dirty = m->st.dirty + m->st.in_flight, .copied = m->st.copied, .guest = m->st.guest });
    return 0;
}

static int become_ready(struct co *co, struct mirror *m, struct byre_err *err)
{
    int r = flush_target(co, m);
    if (r)
        return r == -ECANCELED ? r : byre_fail_code(err, IO, r, "%s: cannot flush: %s", graph_filename(m->o.target), strerror(-r));
    job_ready(m->job);
    return 0;
}

static int mirror_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct mirror *m = job->opaque;
    m->job = job;
    int r = begin(co, m, err);
    if (!r)
        r = scan(co, m, err);
    while (!r) {
        r = point(co, m);
        if (r)
            break;
        look(co, m);
        if (m->st.error)
            r = on_error(co, m, err);
        else if (!is_ready(m) && m->st.calm)
            r = become_ready(co, m, err);
        else if (m->completing && m->st.calm)
            return 0;
        else
            wait(co, m);
    }
    return r;
}

/* ---- the end ---- */

/* All is copied, and durable; nobody is kept waiting for that. */
static int settle(struct co *co, struct mirror *m, struct byre_err *err)
{
    for (;;) {
        if (job_cancelled(m->job))
            return -ECANCELED;
        look(co, m);
        if (m->st.error)
            return say_failed(m, err);
        if (m->st.calm || FAULT(FAULT_NOT_CLEAN))
            break;
        wait(co, m);
    }
    int r = FAULT(FAULT_NO_FLUSH) ? 0 : flush_target(co, m);
    return r && r != -ECANCELED ? byre_fail_code(err, IO, r, "%s: cannot flush: %s", graph_filename(m->o.target), strerror(-r)) : r;
}

/* Layers that the selection of what is copied names stay where they are. */
static int freeze(struct mirror *m, struct byre_err *err)
{
    const struct job_mirror_opts *o = &m->o;
    struct graph_node *base = o->active_commit ? o->target : o->sync == JOB_MIRROR_TOP ? graph_backing(o->source) : NULL;
    int r = base ? graph_freeze(o->source, base, err) : 0;
    m->frozen = r ? NULL : base;
    return r;
}

static void thaw(struct mirror *m)
{
    if (m->frozen)
        graph_thaw(m->o.source, m->frozen);
    m->frozen = NULL;
}

static int go_over(struct co *co, struct mirror *m, struct byre_err *err)
{
    struct graph_node *from = m->o.replaces ? m->o.replaces : m->o.source;
    thaw(m);
    graph_user_remove(&m->on_target);
    graph_user_remove(&m->on_source);
    return m->o.over_source ? graph_insert_above(co, from, m->o.target, err) : graph_replace_node(co, from, m->o.target, err);
}

/* 1: somebody wrote; again. */
static int try_to_end(struct co *co, struct mirror *m, struct byre_err *err)
{
    uint64_t t0 = rt_now(co_loop(co));
    graph_drain_begin(co, m->o.source);
    copy_live_look(m->live, &m->st);
    int r = !m->st.clean && !FAULT(FAULT_NOT_CLEAN);
    if (!r && !FAULT(FAULT_NO_FLUSH)) {
        r = flush_target(co, m);
        if (r && r != -ECANCELED)
            r = byre_fail_code(err, IO, r, "%s: cannot flush: %s", graph_filename(m->o.target), strerror(-r));
    }
    if (!r && !m->leaving)
        r = go_over(co, m, err);
    m->over = !r && !m->leaving;
    if (!m->over)
        graph_drain_end(m->o.source);
    m->pause_ns = rt_now(co_loop(co)) - t0;
    return r;
}

/* The users may go on, on the target. Runs when the job has said that it is over: what a guest is told from now on is not on the source. */
struct opening { struct graph_node *source, *target; struct jobs *jobs; };

static void open_gate(struct co *co, void *arg)
{
    struct opening *o = arg;
    graph_drain_end(o->source);
    (void)graph_close(co, o->target);    /* it was flushed */
    (void)graph_close(co, o->source);
    co_group_leave(&o->jobs->alive);
    free(o);
}

static void end_copy(struct co *co, struct mirror *m)
{
    if (m->live) {
        copy_live_look(m->live, &m->st);
        copy_live_stop(co, m->live);
    }
    m->live = NULL;
    thaw(m);
    graph_user_remove(&m->on_source);
    graph_user_remove(&m->on_target);
    graph_claim_end(co, m->between);
    m->between = NULL;
    m->ended = true;
}

static void close_nodes(struct co *co, struct mirror *m)
{
    (void)graph_close(co, m->o.target);  /* it was flushed when that was promised */
    (void)graph_close(co, m->o.source);
}

static int mirror_commit(struct co *co, struct job *job, struct byre_err *err)
{
    struct mirror *m = job->opaque;
    struct opening *o = calloc(1, sizeof *o);
    int r = o ? 0 : byre_fail(err, NOMEM, "no memory for the end of a mirror");
    bool again = !r;
    while (again) {
        r = settle(co, m, err);
        if (!r)
            r = try_to_end(co, m, err);
        again = r > 0;
    }
    if (r) {
        free(o);
        return r;
    }
    end_copy(co, m);
    if (!m->over) {
        close_nodes(co, m);
        free(o);
        return 0;
    }
    *o = (struct opening){ m->o.source, m->o.target, job->jobs };
    co_group_enter(&o->jobs->alive);
    if (FAULT(FAULT_LATE_EVENT) || rt_spawn(co_loop(co), open_gate, o))                 /* it runs when this coroutine has told the end: nothing suspends until then */
        open_gate(co, o);                /* no memory: a moment early */
    if (FAULT(FAULT_LATE_EVENT))
        (void)co_sleep(co, 20000000);
    return 0;
}

static void mirror_abort(struct co *co, struct job *job)
{
    end_copy(co, job->opaque);
    close_nodes(co, job->opaque);
}

static void mirror_complete(struct job *job) { ((struct mirror *)job->opaque)->completing = true; }

static void mirror_fini(struct job *job)
{
    struct mirror *m = job->opaque;
    free(m->who);
    free(m);
}

const struct job_kind job_mirror_kind = { .type = "mirror", .run = mirror_run, .commit = mirror_commit, .abort = mirror_abort, .complete = mirror_complete,
                                          .has_speed = true, .fini = mirror_fini, .block_job = true };
const struct job_kind job_active_commit_kind = { .type = "commit", .run = mirror_run, .commit = mirror_commit, .abort = mirror_abort, .complete = mirror_complete,
                                                 .has_speed = true, .fini = mirror_fini, .block_job = true };

/* ---- the beginning ---- */

static uint64_t granularity_for(const struct graph_node *target)
{
    struct graph_node *n = (struct graph_node *)(uintptr_t)target;
    return job_grain(graph_format(n) == &fmt_raw_ops ? UINT64_MAX : graph_image(n)->cluster);
}

static bool lies_below(const struct graph_node *top, const struct graph_node *n)
{
    for (top = graph_backing(top); top; top = graph_backing(top))
        if (top == n)
            return true;
    return false;
}

static int check_sizes(const struct job_mirror_opts *o, struct byre_err *err)
{
    uint64_t a = graph_length(o->source), b = graph_length(o->target);
    if (a != b && !o->active_commit)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' has %" PRIu64 " bytes and node '%s' has %" PRIu64 ": source and target have different sizes",
                         graph_node_name(o->source), a, graph_node_name(o->target), b);
    if (o->replaces && graph_length(o->replaces) != b)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' cannot be replaced: it has another size than the target", graph_node_name(o->replaces));
    return 0;
}

static int check(const struct job_mirror_opts *o, struct byre_err *err)
{
    if (o->source == o->target)
        return byre_fail(err, BAD_ARGUMENT, "Can't mirror node into itself");
    if (graph_need_image(o->source, "a mirror", err))
        return -EINVAL;
    if (o->granularity && (o->granularity < GRANULARITY_MIN || o->granularity > GRANULARITY_MAX))
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    if (o->granularity && !is_pow2(o->granularity))
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'granularity' expects a power of 2");
    if (o->active_commit && !lies_below(o->source, o->target))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(o->target), graph_node_name(o->source));
    if (!o->active_commit && lies_below(o->source, o->target))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' lies below '%s': what is written to it would show there", graph_node_name(o->target), graph_node_name(o->source));
    if (o->replaces && o->sync != JOB_MIRROR_FULL)
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'replaces' needs sync=full");
    return check_sizes(o, err);
}

static int open_base(struct co *co, struct mirror *m, struct byre_err *err)
{
    const struct job_mirror_opts *o = &m->o;
    struct graph_node *over = graph_overlay_in(o->source, o->target);
    int r = graph_claim_between(o->source, o->target, m->who, &m->between, err);
    if (!r)
        r = graph_make_writable(co, o->target, over, err);
    if (!r)
        r = graph_make_long(co, o->target, graph_length(o->source), err);
    return r;
}

static int take_nodes(struct mirror *m, struct byre_err *err)
{
    m->on_source = (struct graph_user){ .who = m->who, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE | STOR_PERM_WRITE_UNCHANGED };
    m->on_target = (struct graph_user){ .who = m->who, .perm = STOR_PERM_WRITE, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    int r = graph_user_add(m->o.source, &m->on_source, err);
    if (r)
        return r;
    r = graph_user_add(m->o.target, &m->on_target, err);
    if (r)
        graph_user_remove(&m->on_source);
    return r;
}

static struct mirror *mirror_new(const struct job_mirror_opts *o)
{
    struct mirror *m = calloc(1, sizeof *m);
    char *who = strdup(o->job.id ? o->job.id : "mirror");
    if (!m || !who) {
        free(m);
        free(who);
        return NULL;
    }
    m->o = *o;
    m->who = who;
    m->wants_blocking = o->blocking;
    m->o.max_slowdown = o->max_slowdown ? o->max_slowdown : SLOWDOWN_DEFAULT;
    if (!o->has_max_hold)
        m->o.max_hold_ms = o->converge == CONVERGE_OFF ? 0 : HOLD_DEFAULT_MS;
    m->conv = (struct converge){ .mode = o->converge, .deadline_ns = o->deadline_s * 1000000000, .max_slowdown = m->o.max_slowdown, .blocking = o->blocking };
    return m;
}

int job_mirror_start(struct co *co, struct jobs *js, const struct job_mirror_opts *o, struct job **ret_job, struct byre_err *err)
{
    int r = check(o, err);
    if (r)
        return r;
    struct mirror *m = mirror_new(o);
    if (!m)
        return byre_fail(err, NOMEM, "no memory for a mirror");
    if (!o->granularity)
        m->o.granularity = granularity_for(o->target);
    struct job_opts jo = o->job;
    jo.opaque = m;
    if (o->active_commit)
        r = open_base(co, m, err);
    if (!r)
        r = freeze(m, err);
    if (!r)
        r = take_nodes(m, err);
    if (!r) {
        r = job_start(js, o->active_commit ? &job_active_commit_kind : &job_mirror_kind, &jo, &m->job, err);
        if (r) {
            graph_user_remove(&m->on_source);
            graph_user_remove(&m->on_target);
        }
    }
    if (r) {
        thaw(m);
        graph_claim_end(co, m->between);
        free(m->who);
        free(m);
        return r;
    }
    graph_ref(m->o.source);              /* the job's coroutine has not run yet */
    graph_ref(m->o.target);
    *ret_job = m->job;
    return 0;
}

/* ---- steering ---- */

bool job_is_mirror(const struct job *job) { return job->kind == &job_mirror_kind || job->kind == &job_active_commit_kind; }

int job_mirror_set_blocking(struct job *job, bool on, struct byre_err *err)
{
    ASSERT(job_is_mirror(job));
    struct mirror *m = job->opaque;
    if (m->ended || job_cancelled(job))
        return byre_fail(err, BAD_ARGUMENT, "Job '%s' in state '%s' cannot accept command verb 'change'", job->id, job_status_name(job->status));
    m->wants_blocking = on;
    m->conv.blocking = on;
    co_wake_all(&job->wake);
    return 0;
}

int job_mirror_leave(struct job *job, struct byre_err *err)
{
    ASSERT(job_is_mirror(job));
    struct mirror *m = job->opaque;
    int r = job_do(job, JOB_COMPLETE, err);
    if (!r)
        m->leaving = true;
    return r;
}

void job_mirror_look(const struct job *job, struct job_mirror_state *ret)
{
    ASSERT(job_is_mirror(job));
    struct mirror *m = job->opaque;
    *ret = (struct job_mirror_state){ .ended = m->ended, .converge = &m->conv, .pivot_pause_ns = m->pause_ns };
    if (m->live) {
        copy_live_look(m->live, &m->st);
        m->longest_hold_ns = max_u64(m->longest_hold_ns, m->st.longest_hold_ns);
        ret->blocking = copy_live_is_blocking(m->live);
    }
    ret->actively_synced = ret->blocking && m->scanned && m->st.calm;
    ret->dirty = m->st.dirty + m->st.in_flight;
    ret->carried = m->st.carried;
    ret->longest_hold_ns = m->longest_hold_ns;
    ret->time_left_s = m->conv.begun ? converge_time_left(&m->conv, rt_now(job->jobs->home)) : 0;
}
