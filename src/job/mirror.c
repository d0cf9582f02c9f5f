/* SPDX-License-Identifier: MIT
 *
 * mirror.c: mirror and active commit.
 *
 * Purpose     A row over the live copy (copy/live.h): what is dirty at the beginning, when it is ready, what is done so that it becomes
 *             ready in time (converge.h), and how the users go over to the target.
 * Owns        struct mirror, from job_mirror_start to fini; the copy until the job has concluded
 * Invariants  mirror.h I1 to I3. Further: M1  The source is drained for as long as it takes to end what is inside, one flush of a target that was
 *             flushed just before, and the change of edges. What is not clean then is copied with the gate open, and it is tried again.
 *             M2  Users that are on the target are let go when the job has concluded, so nothing is acknowledged there before the event: it stays
 *                 drained, with the source.
 *             M5  Who waits for the target while edges are held, or the source is drained, waits JOB_TARGET_NS at most. Behind that nothing is known of what
 *                 was asked. A flush is asked for again behind its end, with nobody waiting; a length that the target may have got or not ends the job.
 *             M3  A bitmap is cleared behind the event, while nobody writes to the source: whoever has not seen the event goes on with what it said.
 *             M4  A disk goes over to the base of an active commit with the length that it has: one that has become shorter meanwhile does not come back
 *                 longer, with what the base held there. The base is cut when all is copied and before the flush behind which users go over, not
 *                 before, since the job may be cancelled. One that was longer from the beginning stays as long as it was (FEATURES 9.045).
 * Order       copy | flush | ready | ... | (cut) | drain, clean | flush | users go over | concluded (J1, J5)
 * Concurrency Home loop. A flush, and a change of the target's length, runs in a coroutine of its own, so that cancelling does not wait for a target that
 *             stands still, nor whoever wants the edges (M5).
 * Failure     mirror.h
 * Tests       mirror_test.c, tests/cli/mirror_test.py, tests/kill/test_kill_mirror.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/dirty.h"
#include "base/mutant.h"
#include "copy/live.h"
#include "graph/live.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "graph/stats.h"
#include "job/mirror.h"
#include "job/aside.h"
#include "job/carry.h"
#include "job/leave.h"
#include "job/top.h"

#define TICK_NS UINT64_C(100000000)
#define RETRY_NS UINT64_C(100000000)
#define GRANULARITY_MIN 512u
#define GRANULARITY_MAX (UINT64_C(64) << 20)
#define SLOWDOWN_DEFAULT 20u
#define HOLD_DEFAULT_MS 1000u
#define HOLD_PART_NS UINT64_C(950000)     /* of each millisecond: a guest that is let go has its own write before it still */
#define HELD_NS UINT64_C(5000000)         /* a change that takes so long waits for the target */
#define STEP_BYTES (UINT64_C(1) << 30)
#define HURRY_NS UINT64_C(1000000000)     /* the first try of M5; each may take four times as long as the one before */
#define LEAVE_NS UINT64_C(200000000)      /* the job waits so long for requests that are with the target (leave.h) */

#ifdef MIRROR_TEST
extern int mirror_fault;                 /* of the test in sim/, which must find them */
#define FAULT(n) (mirror_fault == (n))
#else
#define FAULT(n) 0
#endif
enum { FAULT_NO_FLUSH = 1, FAULT_NOT_CLEAN, FAULT_LATE_EVENT };

/* The use of the target, which ends with the last request: of the one copy there is, or a flush that nobody waits for. */
struct leaving {
    struct job_leave base;               /* with a reference from when the job has begun */
    struct graph_user use;
    char *who;
    struct co_group flushes;             /* that are left alone: they are not repeated beside themselves */
    struct graph_node *image;            /* of the target, a reference, which keeps zeros as such (zero.c); NULL: it need not */
};

struct mirror {
    struct job *job;
    struct job_mirror_opts o;
    struct copy_live *live;              /* NULL: not begun, or ended */
    struct graph_user on_source;
    struct leaving *leaving_target;      /* until the copy has ended */
    char *who;
    struct graph_node *named;            /* what the user calls the source: it, or a filter over it. A reference */
    struct job_top top;                  /* over named */
    const struct graph_node *frozen_base;        /* edges from named down to this (NULL: to the end) are, if `frozen` */
    struct mirror_bitmap bitmap;         /* sync BITMAP */
    struct graph_claim *between;         /* active commit: nobody else sees the base through the layers that lie over it */
    struct converge conv;
    uint64_t next_tick_ns, longest_hold_ns, held_ns, pause_ns;
    uint64_t base_had;                   /* active commit: bytes of a base that was longer than the disk when the job began; 0: it was not */
    struct copy_live_state st;           /* of the last look */
    bool scanned, completing, leaving, over, ended, frozen;
    bool ending;                         /* its target is drained, or about to be */
    unsigned asking;                     /* follow_ahead: flushes that are under way; a drain of the target would wait for them */
    bool wants_blocking;                 /* copy-mode, as the user has it */
    uint64_t hurry_ns;                   /* of the next try to end */
    uint64_t stuck_size;                 /* the target was to get this length, and has not said whether it has; 0: no such thing */
};

static void leaving_free(struct leaving *l)
{
    if (l)
        free(l->who);
    free(l);
}

static void leave_free(struct job_leave *base) { leaving_free(CONTAINER_OF(base, struct leaving, base)); }

/* ---- flushing the target ---- */

/* JOB_LEFT_ALONE, as job_flush_aside. */
static int flush_aside(struct co *co, struct mirror *m, uint64_t until, bool stay)
{
    const struct job_patience p = { &m->leaving_target->flushes, until, stay };
    return MUTANT(MUT_MIRROR_UNFLUSHED) ? 0 : job_flush_aside(co, m->job, m->o.target, &p);
}

/* For so long; 0: until it has ended. -ECANCELED: the job is to end; 1: it takes longer. */
static int flush_target(struct co *co, struct mirror *m, uint64_t ns, struct byre_err *err)
{
    int r = flush_aside(co, m, ns ? rt_now(co_loop(co)) + ns : 0, false);
    if (r == JOB_LEFT_ALONE)
        return job_cancelled(m->job) ? -ECANCELED : 1;
    return r ? byre_fail_code(err, IO, r, "%s: cannot flush: %s", graph_filename(m->o.target), strerror(-r)) : 0;
}

/* Nothing is dirty, and no flush that was left alone may still fail behind one that succeeds. */
static bool is_settled(const struct mirror *m) { return m->st.calm && !m->leaving_target->flushes.n && !m->asking; }

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

static int say_stuck(const struct mirror *m, uint64_t size, struct byre_err *err)
{
    return byre_fail_code(err, IO, -ETIMEDOUT, "job '%s' copies node '%s' to node '%s', which was to become %" PRIu64 " bytes long and has not answered for " JOB_TARGET_TEXT,
                          m->who, graph_node_name(m->o.source), graph_node_name(m->o.target), size);
}

static int say_failed(const struct mirror *m, struct byre_err *err)
{
    if (m->stuck_size)
        return say_stuck(m, m->stuck_size, err);
    const struct graph_node *n = m->st.error_read ? m->o.source : m->o.target;
    return byre_fail_code(err, IO, m->st.error, "%s: cannot %s at offset %" PRIu64 ": %s", graph_filename(n), m->st.error_read ? "read" : "write",
                          m->st.error_off, strerror(-m->st.error));
}

/* 0: it goes on. */
static int on_error(struct co *co, struct mirror *m, struct byre_err *err)
{
    enum job_on_error how = job_decide(m->st.error_read ? m->o.on_source_error : m->o.on_target_error, m->st.error);
    int r = 0;
    if (job_cancelled(m->job))
        return -ECANCELED;
    if (m->st.over)                      /* whatever was wished for: nobody copies any more */
        how = JOB_ON_ERROR_REPORT;
    job_tell_error(m->job, m->st.error_read, how);
    if (how == JOB_ON_ERROR_STOP) {
        copy_live_pause(m->live, true);
        r = job_stop_for(co, m->job, m->st.error);
        copy_live_pause(m->live, false);
    } else if (how == JOB_ON_ERROR_IGNORE) {
        uint64_t until = rt_now(co_loop(co)) + RETRY_NS;
        while (rt_now(co_loop(co)) < until && !job_cancelled(m->job)) {
            uint64_t old = co_set_deadline(co, until);
            (void)co_wait_cancellable(co, &m->job->wake);
            (void)co_set_deadline(co, old);
        }
        r = point(co, m);
    } else {
        return say_failed(m, err);
    }
    copy_live_retry(m->live);
    return r;
}

/* ---- the work ---- */

static void on_wake(void *arg) { co_wake_all(&((struct mirror *)arg)->job->wake); }

/* M5. Edges are held. */
static int resize_target(struct co *co, struct mirror *m, uint64_t size, struct byre_err *err)
{
    const struct job_patience p = { &m->leaving_target->base.inside, rt_now(co_loop(co)) + JOB_TARGET_NS, false };
    int r = job_resize_aside(co, m->job, &m->leaving_target->use, size, &p, err);
    if (r != JOB_LEFT_ALONE)
        return r;
    if (job_cancelled(m->job))
        r = byre_fail_code(err, CANCELLED, -ECANCELED, "the job is being cancelled");
    else
        r = byre_fail_code(err, IO, -ETIMEDOUT, "it has not answered for " JOB_TARGET_TEXT);
    m->stuck_size = size;
    if (m->live)
        copy_live_lose(m->live, r);
    return r;
}

/* The source has another length, or is about to. The base of a commit becomes shorter at the end (M4): there may be none. */
static int follow(struct co *co, void *arg, uint64_t size, struct byre_err *err)
{
    struct mirror *m = arg;
    struct graph_node *t = m->o.target;
    struct byre_err why = { 0 };
    if (graph_length(t) == size || (m->o.active_commit && size < graph_length(t)))
        return 0;
    int r = resize_target(co, m, size, &why);
    return r ? byre_fail_code(err, NOT_SUPPORTED, r, "job '%s' copies node '%s' to node '%s', which cannot become %" PRIu64 " bytes long: %s", m->who,
                              graph_node_name(m->o.source), graph_node_name(t), size, why.text) : 0;
}

/* What it has in memory it writes now, while nobody waits, and then it is known to answer. What is wrong with the flush is told by the next one. */
static int follow_ahead(struct co *co, void *arg, struct byre_err *err)
{
    struct mirror *m = arg;
    if (m->ending)                       /* edges are held, behind which the job follows nobody any more, or goes on */
        return 0;
    m->asking++;
    int r = flush_aside(co, m, rt_now(co_loop(co)) + JOB_TARGET_NS, false);
    m->asking--;
    on_wake(m);
    if (r != JOB_LEFT_ALONE || job_cancelled(m->job))
        return 0;
    return byre_fail_code(err, IO, -ETIMEDOUT, "job '%s' copies node '%s' to node '%s', which has not answered for " JOB_TARGET_TEXT "; the length stays as it is", m->who,
                          graph_node_name(m->o.source), graph_node_name(m->o.target));
}

/* A target that gets a part of the disk and has nothing below it now: zeros hide what comes to lie there, and what the target allocates at once
 * is copied at once: what is filled up with zeros would hide it, too. */
static bool keep_zeros(const struct mirror *m)
{
    struct graph_node *image = graph_skip_filters(m->o.target);
    bool part = m->o.sync == JOB_MIRROR_BITMAP || m->o.sync == JOB_MIRROR_NONE || (m->o.sync == JOB_MIRROR_TOP && graph_backing(m->o.source));
    if (m->o.active_commit || !part || !image || graph_backing(image) || MUTANT(MUT_MIRROR_ZEROS_SHORT))
        return false;
    graph_ref(image);
    graph_stand_alone(image, true);
    m->leaving_target->image = image;
    return true;
}

/* The promise of max-slowdown is about the guest before the job: a moment of the job alone may be any moment of it. */
static void note_guest_before(struct co *co, struct mirror *m)
{
    struct graph_changes changes;
    if (graph_changes_get(m->o.source, rt_now(co_loop(co)), &changes))
        converge_before(&m->conv, changes.bytes, changes.span_ns);
}

static int begin_held(struct co *co, struct mirror *m, struct byre_err *err)
{
    const struct job_mirror_opts *o = &m->o;
    uint64_t granule = graph_image(o->target)->granule;
    struct copy_live_opts lo = {
        .source = o->source, .target = o->target, .granularity_bits = (unsigned)__builtin_ctzll(o->granularity), .buf_bytes = o->buf_bytes,
        .rate = m->job->speed, .min_sparse = o->keep_space ? 0 : job_grain(granule), .keep_space = o->keep_space, .copy_range = o->copy_range,
        .hold_ns = o->max_hold_ms * HOLD_PART_NS, .patience_ns = JOB_TARGET_NS, .blocking = m->wants_blocking, .cancelled = &m->job->cancelled, .wake = on_wake,
        .arg = m, .resize = follow, .resize_ahead = follow_ahead, .latency = m->job->latency,
        .alive = &m->leaving_target->base.inside };
    if (o->active_commit)
        lo.above = o->target;
    else if (o->sync == JOB_MIRROR_TOP)
        lo.above = graph_backing(o->source);
    int r = follow(co, m, graph_length(o->source), err);     /* it may have changed since the job was made */
    if (!r)
        lo.part = keep_zeros(m);
    if (lo.part)
        lo.granularity_bits = (unsigned)__builtin_ctzll(max_u64(o->granularity, granule));
    if (!r)
        r = copy_live_start(co, &lo, &m->live, err);
    if (!r) {
        copy_live_look(m->live, &m->st);
        note_guest_before(co, m);
        converge_begin(&m->conv, &(struct converge_sample){ .now_ns = rt_now(co_loop(co)), .guest = m->st.guest });
    }
    return r;
}

static int begin(struct co *co, struct mirror *m, struct byre_err *err)
{
    struct graph *g = graph_of(m->o.source);
    graph_edges_hold(co, g);
    int r = begin_held(co, m, err);
    graph_edges_let(co, g);
    return r;
}

static int scan_bitmap(struct co *co, struct mirror *m)
{
    int r = 0;
    for (uint64_t off = 0; !r;) {
        r = point(co, m);
        if (!r && mirror_bitmap_mark(&m->bitmap, m->live, &off))
            return 0;
    }
    return r;
}

static int scan_disk(struct co *co, struct mirror *m, struct byre_err *err)
{
    uint64_t size, len;
    for (uint64_t off = 0; off < (size = graph_length(m->o.source)); off += len) {
        int r = point(co, m);
        if (!r)
            r = copy_live_scan(co, m->live, off, min_u64(size - off, STEP_BYTES), &len);
        if (r)
            return r == -ECANCELED ? r : byre_fail_code(err, IO, r, "%s: cannot be looked through at offset %" PRIu64 ": %s", graph_filename(m->o.source), off, strerror(-r));
        copy_live_look(m->live, &m->st);
        tell_progress(m);
    }
    return 0;
}

static int scan(struct co *co, struct mirror *m, struct byre_err *err)
{
    int r = m->o.sync == JOB_MIRROR_BITMAP ? scan_bitmap(co, m) : m->o.sync == JOB_MIRROR_NONE ? 0 : scan_disk(co, m, err);
    if (r)
        return r;
    m->scanned = true;
    m->next_tick_ns = rt_now(co_loop(co)) + TICK_NS;
    copy_live_look(m->live, &m->st);
    converge_begin(&m->conv, &(struct converge_sample){ .now_ns = rt_now(co_loop(co)), .dirty = m->st.dirty + m->st.in_flight, .copied = m->st.copied, .guest = m->st.guest });
    return 0;
}

static int become_ready(struct co *co, struct mirror *m, struct byre_err *err)
{
    int r = flush_target(co, m, 0, err);
    if (r)
        return r;
    job_ready(m->job);
    m->conv.brake = 0;                   /* converge.c I3; a job that goes on to its end looks no more */
    copy_live_set_brake(m->live, 0);
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
        else if (!is_ready(m) && is_settled(m))
            r = become_ready(co, m, err);
        else if (m->completing && m->st.calm)
            return 0;
        else
            wait(co, m);
    }
    return r;
}

/* ---- the end ---- */

/* M4. What the target is to be as long as at least, and, when the disk goes over to it, no longer. */
static uint64_t end_length(const struct mirror *m) { return max_u64(graph_length(m->o.source), m->base_had); }

static bool is_too_long(const struct mirror *m) { return m->o.active_commit && !m->leaving && graph_length(m->o.target) > end_length(m); }

static int cut_base(struct co *co, struct mirror *m, struct byre_err *err)
{
    struct graph *g = graph_of(m->o.target);
    struct byre_err why = { 0 };
    if (!is_too_long(m))
        return 0;
    graph_edges_hold(co, g);
    uint64_t size = end_length(m);               /* nobody changes it now */
    int r = is_too_long(m) ? resize_target(co, m, size, &why) : 0;
    graph_edges_let(co, g);
    if (r == -ECANCELED)
        return r;
    return r ? byre_fail_code(err, NOT_SUPPORTED, r, "job '%s': the disk has become shorter, and node '%s', which is to take its place, cannot become %" PRIu64 " bytes long: %s",
                              m->who, graph_node_name(m->o.target), size, why.text) : 0;
}

/* All is copied, and durable; nobody is kept waiting for that. */
static int settle(struct co *co, struct mirror *m, struct byre_err *err)
{
    for (;;) {
        if (job_cancelled(m->job))
            return -ECANCELED;
        look(co, m);
        if (m->st.error)
            return say_failed(m, err);
        if (is_settled(m) || FAULT(FAULT_NOT_CLEAN))
            break;
        wait(co, m);
    }
    int r = cut_base(co, m, err);
    if (!r && !FAULT(FAULT_NO_FLUSH))
        r = flush_target(co, m, 0, err);
    return r;
}

/* Nobody writes, and others wait (M5). 1: it takes too long; again, behind its end. */
static int flush_held(struct co *co, struct mirror *m, struct byre_err *err)
{
    int r = flush_target(co, m, m->hurry_ns, err);
    if (r != 1)
        return r;
    if (m->hurry_ns == JOB_TARGET_NS)
        return byre_fail_code(err, IO, -ETIMEDOUT, "%s: takes more than " JOB_TARGET_TEXT " for a flush with little to do, while the disk has to wait: it stays where it is",
                              graph_filename(m->o.target));
    m->hurry_ns = min_u64(4 * m->hurry_ns, JOB_TARGET_NS);
    return 1;
}

/* Layers that the selection of what is copied names stay where they are, and so does what is between the source and what is to be replaced. */
static int freeze(struct mirror *m, struct byre_err *err)
{
    const struct job_mirror_opts *o = &m->o;
    m->frozen_base = o->active_commit ? o->target : o->sync == JOB_MIRROR_TOP ? graph_backing(o->source) : o->source;
    int r = graph_freeze(m->named, m->frozen_base, err);
    m->frozen = !r;
    return r;
}

static void thaw(struct mirror *m)
{
    if (m->frozen)
        graph_thaw(m->named, m->frozen_base);
    m->frozen = false;
}

/* Others stay away from the target until the users are on it. */
static int go_over(struct co *co, struct mirror *m, struct byre_err *err)
{
    const struct graph_going g = { .from = m->o.replaces ? m->o.replaces : m->named, .to = m->o.target, .insert = m->o.over_source, .longer = m->o.active_commit,
                                   .uses = { &m->on_source, &m->leaving_target->use }, .frozen = m->frozen ? m->named : NULL, .frozen_base = m->frozen_base };
    int r = graph_go_over(co, &g, err);
    m->frozen &= r != 0;
    return r;
}

/* A target whose requests go to the source would be drained with it (M1), before its flush; and what it shows is the source's where it has nothing. */
static int check_apart(struct graph_node *target, const struct graph_node *source, struct byre_err *err)
{
    if (!graph_goes_to(target, source))
        return 0;
    if (graph_skip_filters(target) == source)
        return byre_fail(err, BAD_ARGUMENT, "Can't mirror node into itself");
    return byre_fail(err, BAD_ARGUMENT, "node '%s' lies above '%s', or sends requests there, and cannot become a copy of it", graph_node_name(target),
                     graph_node_name(source));
}

/* 1: somebody wrote, or the target took too long; again. */
static int try_to_end(struct co *co, struct mirror *m, struct byre_err *err)
{
    uint64_t t0 = rt_now(co_loop(co));
    struct graph *g = graph_of(m->o.source);
    graph_edges_hold(co, g);
    int r = m->o.active_commit ? 0 : check_apart(m->o.target, m->o.source, err);         /* others may have put the target there meanwhile */
    if (r) {
        graph_edges_let(co, g);
        return r;
    }
    graph_drain_begin(co, m->o.source);
    copy_live_look(m->live, &m->st);
    r = ((!m->st.clean || m->leaving_target->flushes.n || m->asking) && !FAULT(FAULT_NOT_CLEAN)) || is_too_long(m);
    m->ending = !r;
    if (!r && !FAULT(FAULT_NO_FLUSH))
        r = flush_held(co, m, err);
    if (!r)
        r = job_top_take(co, &m->top, err);
    if (!r && (!m->leaving || m->o.carry_bitmaps)) {
        graph_drain_begin(co, m->o.target);          /* M2 */
        r = m->o.carry_bitmaps ? job_carry_bitmaps(co, m->o.source, m->o.target, err) : 0;
        if (!r && !m->leaving)
            r = go_over(co, m, err);
        if (r || m->leaving)
            graph_drain_end(m->o.target);
    }
    m->over = !r && !m->leaving;
    if (m->over && m->o.active_commit)
        graph_keep_writable(m->o.target);        /* it is the disk, which may be written */
    if (r) {
        graph_drain_end(m->o.source);
        m->ending = false;
    }
    graph_edges_let(co, g);
    m->pause_ns = rt_now(co_loop(co)) - t0;
    return r;
}

/* The users may go on, on the target, or where they are. Runs when the job has said that it is over: what a guest is told from now on is not on both. */
struct opening { struct graph_node *source, *named, *target; struct mirror_bitmap bitmap; struct jobs *jobs; };

static void open_gate(struct co *co, void *arg)
{
    struct opening *o = arg;
    if (o->target) {                     /* first: nobody who is there waits for what the source has to flush */
        graph_drain_end(o->target);
        (void)graph_close(co, o->target);            /* it was flushed, and nobody has written since. Here too: whoever is to delete it finds it free */
    }
    mirror_bitmap_done(co, &o->bitmap);              /* M3 */
    mirror_bitmap_give(&o->bitmap);
    graph_drain_end(o->source);
    (void)graph_close(co, o->named);
    (void)graph_close(co, o->source);    /* who uses it still, closes it well */
    co_group_leave(&o->jobs->alive);
    free(o);
}

static void leave_flushes(struct co *co, struct job_leave *base) { co_group_wait(co, &CONTAINER_OF(base, struct leaving, base)->flushes); }

/* When the last request has left the target, which may be after the job: others may use it, and job_leave opens the base of a commit that did not come to its
 * end for reading again. */
static void leave_last(struct co *co, struct job_leave *base)
{
    struct leaving *l = CONTAINER_OF(base, struct leaving, base);
    if (l->image) {
        graph_stand_alone(l->image, false);
        (void)graph_close(co, l->image); /* the target holds it, too */
    }
    graph_user_remove(&l->use);
}

static void leave_target(struct co *co, struct mirror *m)
{
    struct leaving *l = TAKE(m->leaving_target);
    l->base.may_abandon &= !m->over;     /* it is the disk now */
    l->base.keeps_pace = m->over;
    job_leave(co, &l->base, m->job->jobs, LEAVE_NS);
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
    mirror_bitmap_give(&m->bitmap);
    leave_target(co, m);
    graph_claim_end(co, m->between);
    m->between = NULL;
    job_top_end(co, &m->top);
    m->ended = true;
}

static void close_source(struct co *co, struct mirror *m)
{
    (void)graph_close(co, m->named);
    (void)graph_close(co, m->o.source);  /* who uses it still, closes it well */
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
    *o = (struct opening){ m->o.source, m->named, m->over ? m->o.target : NULL, m->bitmap, job->jobs };
    if (m->over)
        graph_ref(m->o.target);
    m->bitmap.b = NULL;
    end_copy(co, m);
    co_group_enter(&o->jobs->alive);
    if (FAULT(FAULT_LATE_EVENT)) {
        open_gate(co, o);
        (void)co_sleep(co, 20000000);
    } else if (rt_spawn(co_loop(co), open_gate, o)) {        /* it runs when this coroutine has told the end: nothing suspends until then */
        mirror_bitmap_skip(&o->bitmap);
        open_gate(co, o);                /* no memory: a moment early, and without what suspends */
    }
    return 0;
}

/* What has been done is taken out of the bitmap, if the target can say in time that it has it durably. */
static void keep_part(struct co *co, struct mirror *m)
{
    if (!m->live || !m->scanned || !m->bitmap.b || m->bitmap.mode != JOB_BITMAP_ALWAYS)
        return;
    copy_live_pause(m->live, true);      /* who waits for the target would keep the drain waiting */
    graph_drain_begin(co, m->o.source);
    struct dirty *left = mirror_bitmap_left(&m->bitmap, m->live);
    if (left && !m->leaving_target->flushes.n && flush_aside(co, m, rt_now(co_loop(co)) + LEAVE_NS, true) == 0)
        mirror_bitmap_keep(co, &m->bitmap, left);
    else
        dirty_free(left);
    graph_drain_end(m->o.source);
}

static void mirror_abort(struct co *co, struct job *job)
{
    keep_part(co, job->opaque);
    end_copy(co, job->opaque);
    close_source(co, job->opaque);
}

static int mirror_complete(struct job *job, struct byre_err *err)
{
    struct mirror *m = job->opaque;
    if (m->leaving)
        return byre_fail(err, BAD_ARGUMENT, "Job '%s' is being cancelled: the disk stays where it is", job->id);
    m->completing = true;
    return 0;
}

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

static int check_sizes(const struct job_mirror_opts *o, struct byre_err *err)
{
    uint64_t a = graph_length(o->source), b = graph_length(o->target);
    if (a != b && !o->active_commit)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' has %" PRIu64 " bytes and node '%s' has %" PRIu64 ": source and target have different sizes",
                         graph_node_name(o->source), a, graph_node_name(o->target), b);
    return 0;
}

/* Whoever uses what is replaced must see there what he saw before: the source, or what filters hand on of it (FEATURES 9.033). */
static int check_replaces(const struct job_mirror_opts *o, struct byre_err *err)
{
    if (!o->replaces)
        return 0;
    if (o->sync != JOB_MIRROR_FULL)
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'replaces' needs sync=full");
    for (struct graph_node *n = o->source; n; n = graph_is_filter(n) ? graph_backing(n) : NULL)
        if (n == o->replaces)
            return 0;
    return byre_fail(err, BAD_ARGUMENT, "Cannot replace '%s' by a node mirrored from '%s', because it cannot be guaranteed that doing so would not lead to an "
                     "abrupt change of visible data: it is neither that node nor a node that it filters", graph_node_name(o->replaces), graph_node_name(o->source));
}

/* What is wrong with the options themselves, whatever the target is. */
static int check_words(const struct job_mirror_opts *o, struct byre_err *err)
{
    if (o->granularity && (o->granularity < GRANULARITY_MIN || o->granularity > GRANULARITY_MAX))
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    if (o->granularity && !is_pow2(o->granularity))
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'granularity' expects a power of 2");
    return check_replaces(o, err);
}

int job_mirror_could(struct co *co, const struct jobs *js, const struct job_mirror_opts *o, const struct job_mirror_made *made, struct byre_err *err)
{
    struct graph *g = graph_of(o->source);
    int r = job_may_start(js, &job_mirror_kind, &o->job, err);
    if (!r)
        r = check_words(o, err);
    if (r || !o->carry_bitmaps)
        return r;
    graph_edges_hold(co, g);             /* nobody removes a bitmap while its neighbour is loaded */
    r = job_carry_could(co, graph_skip_filters(o->source), made->ops, made->filename, err);
    graph_edges_let(co, g);
    return r;
}

static int check(const struct job_mirror_opts *o, struct byre_err *err)
{
    if (o->source == o->target)
        return byre_fail(err, BAD_ARGUMENT, "Can't mirror node into itself");
    int r = graph_need_image(o->source, "a mirror", err);
    if (!r)
        r = graph_need_root(o->source, err);
    if (!r && !o->active_commit)
        r = check_apart(o->target, graph_skip_filters(o->source), err);
    if (!r)
        r = check_sizes(o, err);
    if (!r)
        r = check_words(o, err);
    if (r)
        return r;
    if (o->active_commit && o->target == graph_skip_filters(o->source))
        return byre_fail(err, BAD_ARGUMENT, "cannot commit an image into itself");
    if (o->active_commit && !graph_lies_above(o->source, o->target))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(o->target), graph_node_name(o->source));
    if (o->active_commit && graph_image(o->target)->partial)
        return byre_fail(err, NOT_SUPPORTED, "%s: since a commit that did not come to its end it makes sense only as a layer below '%s', and the disk would lie "
                         "on it alone; begin that commit again, or commit into a layer further down", graph_filename(o->target), graph_image(o->target)->partial);
    if (!o->active_commit && graph_lies_above(o->source, o->target))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' lies below '%s': what is written to it would show there", graph_node_name(o->target), graph_node_name(o->source));
    return 0;
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
    m->on_source = (struct graph_user){ .who = m->who, .perm = STOR_PERM_READ, .shared = STOR_PERM_ALL };
    struct graph_user *on_target = &m->leaving_target->use;
    *on_target = (struct graph_user){ .who = m->leaving_target->who, .perm = STOR_PERM_WRITE, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    int r = graph_user_add(m->o.source, &m->on_source, err);
    if (r)
        return r;
    r = graph_user_add(m->o.target, on_target, err);
    if (r)
        graph_user_remove(&m->on_source);
    return r;
}

static struct mirror *mirror_new(const struct job_mirror_opts *o)
{
    struct mirror *m = calloc(1, sizeof *m);
    struct leaving *l = calloc(1, sizeof *l);
    const char *name = o->job.id ? o->job.id : "mirror";
    char *who = strdup(name);
    if (!m || !l || !who || !(l->who = strdup(name))) {
        leaving_free(l);
        free(m);
        free(who);
        return NULL;
    }
    m->o = *o;
    m->named = o->source;
    m->o.source = graph_skip_filters(o->source);
    m->bitmap = (struct mirror_bitmap){ .node = m->o.source, .mode = o->bitmap_mode };
    l->base = (struct job_leave){ .target = o->target, .settle = leave_flushes, .last = leave_last, .free = leave_free,
                                  .may_abandon = !o->active_commit };        /* what is below a disk is not the job's alone */
    m->leaving_target = l;
    m->who = who;
    m->wants_blocking = o->blocking;
    m->base_had = o->active_commit && graph_length(o->target) > graph_length(o->source) ? graph_length(o->target) : 0;
    m->hurry_ns = HURRY_NS;
    m->o.max_slowdown = o->max_slowdown ? o->max_slowdown : SLOWDOWN_DEFAULT;
    if (!o->has_max_hold)
        m->o.max_hold_ms = o->converge == CONVERGE_OFF ? 0 : HOLD_DEFAULT_MS;
    m->conv = (struct converge){ .mode = o->converge, .deadline_ns = o->deadline_s * 1000000000, .max_slowdown = m->o.max_slowdown, .blocking = o->blocking };
    return m;
}

/* Of one that has not begun. */
static void mirror_undo(struct co *co, struct mirror *m)
{
    job_top_end(co, &m->top);
    thaw(m);
    mirror_bitmap_give(&m->bitmap);
    graph_user_remove(&m->on_source);
    graph_user_remove(&m->leaving_target->use);
    graph_claim_end(co, m->between);
    graph_writer_gone(co, m->o.target);
    leaving_free(m->leaving_target);
    free(m->who);
    free(m);
}

static int start(struct co *co, struct jobs *js, const struct job_mirror_opts *o, struct job **ret_job, struct byre_err *err)
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
    jo.nodes[0] = m->o.source;
    jo.nodes[1] = o->target;
    if (o->active_commit)
        r = open_base(co, m, err);
    if (!r)
        r = freeze(m, err);
    if (!r)
        r = take_nodes(m, err);
    if (!r && o->sync == JOB_MIRROR_BITMAP)
        r = mirror_bitmap_take(co, &m->bitmap, o->bitmap, err);
    if (!r && o->carry_bitmaps)
        r = job_carry_check(co, m->o.source, o->target, err);
    if (!r)
        r = job_top_put(co, &m->top, m->named, GRAPH_MIRROR_TOP, o->filter_node_name, err);
    if (!r)
        r = job_start(js, o->active_commit ? &job_active_commit_kind : &job_mirror_kind, &jo, &m->job, err);
    if (r) {
        mirror_undo(co, m);
        return r;
    }
    graph_ref(m->named);                 /* the job's coroutine has not run yet */
    graph_ref(m->o.source);
    graph_ref(m->o.target);
    *ret_job = m->job;
    return 0;
}

int job_mirror_start(struct co *co, struct jobs *js, const struct job_mirror_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct graph_node *const named[] = { o->source, o->target, o->replaces };
    graph_chain_hold(co, named, 3);
    int r = start(co, js, o, ret_job, err);
    graph_chain_let(co, named, 3);
    return r;
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
    if (m->completing && !m->leaving)    /* who asked for that was told that the disk goes over */
        return byre_fail(err, BAD_ARGUMENT, "Job '%s' is completing already: it can be cancelled with force only", job->id);
    bool was = m->leaving;
    m->leaving = false;
    int r = job_do(job, JOB_COMPLETE, err);
    m->leaving = was || !r;
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
