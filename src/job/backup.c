/* SPDX-License-Identifier: MIT
 *
 * backup.c: backup as a job.
 *
 * Purpose     What is kept and copied, from which moment on; what becomes of errors, of the bitmap and of the filter.
 * Owns        struct backup, until the job is forgotten; the filter, the hold of the bitmap and a reference of the target until it has concluded.
 * Invariants  backup.h I1 to I4. Further:
 *             K1  What is kept, what the bitmap held and from when on it records aside are of one moment: the source is drained around all three.
 *             K2  What the job does not copy because no layer above the base has it was seen to be so before it was claimed, so it was so at that moment.
 *             K3  Nothing is discarded of the source that is not durable on the target.
 *             K4  A target that does not get all of the disk, or lies over it, gets zeros as such: what is below it, later, does not show through.
 *             K5  Nobody changes the source past the filter: it has a user as long as it keeps something, so what it denies is denied.
 *             K6  A bitmap is given up for nothing that is not durable on the target, also when the job fails.
 *             K7  Nor for what is not durable on the source: behind a power cut it would hold something older, and no bitmap says so (P4). A bitmap that
 *                 begins with the job, in one transaction, sees to that itself (graph/bitmap.c).
 * Order       copy | flush of the target, with a bitmap of the source | filter out | bitmap, event (J4, J5). Nothing suspends between the last two, and what the image holds of the
 *             bitmap follows later: a kill never finds it given up durably and nobody told. Cancelled, failed: filter out | last request | flush of the
 *             target, closed | event (leave.h), for what sync=none has copied is meant to be used.
 * Concurrency Home loop. Copy and flush run in coroutines of their own: a target that stands still does not keep the job from its end.
 * Failure     backup.h
 * Tests       ../sim/backup_test.c, tests/daemon/backup_test.py, tests/kill/test_kill_backup.py
 */
#include "job/backup.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/id.h"
#include "graph/live.h"
#include "graph/runtime.h"
#include "job/aside.h"
#include "job/backup_copy.h"
#include "job/leave.h"
#include "rt/loop.h"

#define TICK_NS UINT64_C(100000000)
#define RETRY_NS UINT64_C(100000000)
#define LEAVE_NS UINT64_C(200000000)         /* the job waits so long for pieces that are with the target */
#define FLUSH_NS UINT64_C(5000000000)        /* ... and, when it has failed, so long for a flush without which a bitmap must stay as it is */
#define DISCARD_BYTES (UINT64_C(64) << 20)   /* what has been copied is discarded in such parts */
#define STEP_BYTES (UINT64_C(1) << 30)

#ifdef BACKUP_TEST
extern int backup_fault;                     /* of the test in sim/, which must find them */
#define FAULT(n) (backup_fault == (n))
#else
#define FAULT(n) 0
#endif
enum { FAULT_NO_FLUSH = 1, FAULT_NO_COPY_BEFORE, FAULT_BITMAP_GIVEN_UP, FAULT_NOT_SINCE, FAULT_EARLY_END, FAULT_SOURCE_LATE };

struct backup {
    struct job *job;
    struct job_backup_opts o;
    char *filter_name;
    struct graph_node *filter;               /* a reference; NULL: it is gone */
    struct graph_node *keeper;               /* an attachment of the filter (K5); NULL: there is none */
    struct cbw *cb;
    bool inserted;                           /* the filter is in the graph */
    struct graph_node *over;                 /* the target's image if that lies over the source (cbw.h B6), a reference; NULL: it does not */
    struct graph_node *alone;                /* the target's image, a reference, which stands alone (K4); NULL: it does not */
    struct backup_copy *copy;
    struct job_leave *leave;                 /* holds the target, until the job is over */
    struct graph_node *source;               /* as o.source, a reference, as o.target is one; NULL: given back */
    struct graph_node *image;                /* of the bitmap, a reference; NULL: there is none, or it is given back */
    struct fmt_bitmap *bitmap;               /* NULL: none, or it is settled */
    struct dirty *held;                      /* what it held */
    uint64_t total;
    bool lost;                               /* a flush of the target failed, or was left alone: another one that succeeds says nothing of what is there */
};

static void wait_until(struct co *co, struct job *job, uint64_t until)
{
    uint64_t old = co_set_deadline(co, until);
    (void)co_wait_cancellable(co, &job->wake);
    (void)co_set_deadline(co, old);
}

/* -ECANCELED: the flush is left alone, because the job is to end, or, with `patience`, when it has taken so long. */
static int flush_aside(struct co *co, const struct backup *b, uint64_t patience)
{
    int r = job_flush_aside(co, b->job, b->o.target, &(struct job_patience){ &b->leave->inside, patience ? rt_now(co_loop(co)) + patience : 0, patience != 0 });
    return r == JOB_LEFT_ALONE ? -ECANCELED : r;
}

static int flush_target(struct co *co, struct backup *b, uint64_t patience, struct byre_err *err)
{
    int r = FAULT(FAULT_NO_FLUSH) ? 0 : flush_aside(co, b, patience);
    b->lost |= r != 0;
    return r && r != -ECANCELED ? byre_fail_code(err, IO, r, "%s: cannot flush: %s", graph_filename(b->o.target), strerror(-r)) : r;
}

/* K7. Nobody leaves it alone: it has the source's gate open, which the end of the job closes. */
static int flush_source(struct co *co, const struct backup *b, struct byre_err *err)
{
    int r = b->bitmap && b->o.bitmap_mode != JOB_BITMAP_NEVER && !FAULT(FAULT_SOURCE_LATE) ? graph_flush(co, b->o.source) : 0;
    return r ? byre_fail_code(err, IO, r, "%s: cannot flush, so bitmap '%s' stays as it is: %s", graph_filename(b->o.source), b->bitmap->name, strerror(-r)) : 0;
}

/* ---- looking, waiting ---- */

static void tell_progress(const struct backup *b)
{
    uint64_t left = cbw_left(b->cb);
    job_progress(b->job, left < b->total ? b->total - left : 0, b->total);
}

/* 0: the snapshot is whole. */
static int check_whole(const struct backup *b, struct byre_err *err)
{
    int r = cbw_broken(b->cb);
    if (!r)
        return 0;
    const struct graph_node *n = cbw_broken_by_source(b->cb) ? b->o.source : b->o.target;
    return byre_fail_code(err, IO, r, "%s: what was about to be overwritten could not be copied, so the backup is not whole: %s", graph_filename(n), strerror(-r));
}

/* ---- what was copied, and is not wanted any more (9.067) ---- */

static int discard_written(struct co *co, struct backup *b, bool all, struct byre_err *err)
{
    uint64_t start, end, at = 0;
    uint64_t have = backup_copy_written_bytes(b->copy);
    if (!have || (!all && have < DISCARD_BYTES))
        return 0;
    struct dirty *now;
    int r = dirty_new(graph_length(b->o.source), (unsigned)__builtin_ctzll(cbw_granule(b->cb)), NULL, &now);
    if (r)
        return byre_fail(err, NOMEM, "no memory for a backup");
    for (; backup_copy_written(b->copy, at, &start, &end); at = end) {
        dirty_set(now, start, end - start);
        backup_copy_forget_written(b->copy, start, end);
    }
    r = flush_target(co, b, 0, err);         /* K3 */
    for (at = 0; !r && at < now->size && dirty_next(now, at, now->size, &start, &end); at = end)
        if (graph_discard(co, backup_copy_reader(b->copy), start, end - start))
            break;                           /* as much as can be had */
    if (!r && graph_flush(co, backup_copy_reader(b->copy)))
        graph_warn(b->o.source, "%s: what was discarded takes its space still", graph_filename(b->o.source));
    dirty_free(now);
    return r;
}

/* ---- the work ---- */

/* 0: once more. */
static int on_failure(struct co *co, struct backup *b, const struct backup_failure *f, struct byre_err *err)
{
    enum job_on_error how = job_decide(f->read ? b->o.on_source_error : b->o.on_target_error, f->error);
    int r = check_whole(b, err);
    if (r || job_cancelled(b->job)) {
        if (r)
            job_tell_error(b->job, cbw_broken_by_source(b->cb), JOB_ON_ERROR_REPORT);
        return r ? r : -ECANCELED;
    }
    job_tell_error(b->job, f->read, how);
    if (how == JOB_ON_ERROR_STOP)
        return job_stop_for(co, b->job, f->error);
    if (how == JOB_ON_ERROR_IGNORE) {
        uint64_t until = rt_now(co_loop(co)) + RETRY_NS;
        while (rt_now(co_loop(co)) < until && !job_cancelled(b->job))
            wait_until(co, b->job, until);
        return job_point(co, b->job);
    }
    return byre_fail_code(err, IO, f->error, "%s: cannot %s at offset %" PRIu64 ": %s", graph_filename(f->read ? b->o.source : b->o.target),
                          f->read ? "read" : "write", f->off, strerror(-f->error));
}

/* Until the copy has ended, or the job is to. -ECANCELED: it goes on, perhaps, and is nobody's. */
static int wait_for_copy(struct co *co, struct backup *b, struct byre_err *err)
{
    uint64_t until = 0;
    int r = 0;
    while (!backup_copy_has_ended(b->copy)) {
        uint64_t now = rt_now(co_loop(co));
        tell_progress(b);
        if (!until && (r || job_cancelled(b->job))) {
            cbw_stop(b->cb);
            until = now + LEAVE_NS;
        }
        if (until && now >= until && backup_copy_is_away(b->copy))
            return r ? r : -ECANCELED;
        if (!r && !until)
            r = discard_written(co, b, false, err);
        wait_until(co, b->job, now + TICK_NS);
    }
    tell_progress(b);
    return r;
}

static int copy_round(struct co *co, struct backup *b, struct byre_err *err)
{
    uint64_t left = cbw_left(b->cb);
    int r = backup_copy_begin(b->copy, b->job, err);
    if (!r)
        r = wait_for_copy(co, b, err);
    if (r)
        return r;
    struct backup_failure f = backup_copy_result(b->copy);
    if (!f.error && left == cbw_left(b->cb)) {
        wait_until(co, b->job, rt_now(co_loop(co)) + RETRY_NS);     /* no memory to note what was copied */
        r = job_point(co, b->job);
        if (r)
            return r;
    }
    if (!f.error)
        return discard_written(co, b, true, err);
    return on_failure(co, b, &f, err);
}

/* What no layer above the base holds is not copied (K2). */
static int leave_out(struct co *co, struct backup *b, struct byre_err *err)
{
    const struct graph_node *image = graph_skip_filters(b->o.source);
    struct graph_node *base = graph_backing(image);
    uint64_t size = graph_length(b->o.source), unit = cbw_granule(b->cb);
    struct graph_status st;
    for (uint64_t off = 0; off < size; off += st.len) {
        int r = job_point(co, b->job);
        if (!r && (r = graph_status(co, backup_copy_reader(b->copy), base, off, min_u64(size - off, STEP_BYTES), &st)))
            return byre_fail_code(err, IO, r, "%s: cannot be looked through at offset %" PRIu64 ": %s", graph_filename(b->o.source), off, strerror(-r));
        if (r)
            return r;
        uint64_t start = round_up(off, unit), end = off + st.len >= size ? size : round_down(off + st.len, unit);
        if (st.present || st.past_end || st.zero || start >= end)
            continue;
        struct cbw_claim c;
        r = cbw_claim(co, b->cb, &c, start, end - start);
        if (r)
            return check_whole(b, err) ? err->code : r;
        cbw_claim_end(&c, true);
    }
    return 0;
}

/* sync=none: what is overwritten is copied, nothing else, until somebody cancels it. */
static int stand_by(struct co *co, struct backup *b, struct byre_err *err)
{
    for (;;) {
        int r = job_point(co, b->job);
        if (!r)
            r = check_whole(b, err);
        if (r)
            return r;
        tell_progress(b);
        wait_until(co, b->job, rt_now(co_loop(co)) + TICK_NS);
    }
}

static int backup_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct backup *b = job->opaque;
    int r = 0;
    b->job = job;
    if (b->o.sync == JOB_BACKUP_TOP)
        r = leave_out(co, b, err);
    b->total = cbw_left(b->cb);
    tell_progress(b);
    if (!r && b->o.sync == JOB_BACKUP_NONE)
        r = stand_by(co, b, err);
    while (!r && cbw_left(b->cb))
        r = copy_round(co, b, err);
    return r ? r : check_whole(b, err);
}

/* ---- the end ---- */

/* What the bitmap held and was not copied; without sync by it: what was not copied. NULL: no memory. */
static struct dirty *not_copied(const struct backup *b)
{
    const struct dirty *todo = cbw_todo(b->cb);
    struct dirty *left;
    uint64_t start, end, s, e;
    if (dirty_new(b->held->size, b->held->granularity_bits, NULL, &left))
        return NULL;
    if (b->o.sync != JOB_BACKUP_BITMAP) {
        dirty_merge(left, todo);
        return left;
    }
    for (uint64_t at = 0; at < todo->size && dirty_next(todo, at, todo->size, &start, &end); at = end)
        for (uint64_t in = start; in < end && in < b->held->size && dirty_next(b->held, in, min_u64(end, b->held->size), &s, &e); in = e)
            dirty_set(left, s, e - s);
    return left;
}

static void let_bitmap_go(struct backup *b)
{
    graph_bitmap_release(b->image, b->bitmap);
    b->bitmap = NULL;
}

/* K6. well: it is known to be durable. Pieces that were left alone may end while this flushes: what they have copied counts as not copied. */
static bool may_move(struct co *co, struct backup *b, bool well, struct byre_err *err)
{
    if (well || FAULT(FAULT_BITMAP_GIVEN_UP))
        return b->o.bitmap_mode != JOB_BITMAP_NEVER;
    return b->o.bitmap_mode == JOB_BITMAP_ALWAYS && !b->lost && !flush_target(co, b, FLUSH_NS, err) && !flush_source(co, b, err);
}

/* I2 */
static int settle_bitmap(struct co *co, struct backup *b, bool well, struct byre_err *err)
{
    if (!b->bitmap)
        return 0;
    struct dirty *left = b->o.bitmap_mode == JOB_BITMAP_NEVER ? NULL : not_copied(b);       /* before the flush */
    if (FAULT(FAULT_NOT_SINCE))
        (void)!dirty_clear(b->bitmap->since, 0, b->bitmap->since->size);
    bool moves = may_move(co, b, well, err);
    int r = 0;
    if (moves && !left)
        r = byre_fail(err, NOMEM, "%s: no memory for bitmap '%s'", graph_filename(b->image), b->bitmap->name);
    else if (moves)
        r = graph_bitmap_settle(co, b->image, b->bitmap, left, err);
    if (b->bitmap->since)
        graph_bitmap_unfollow(co, b->image, b->bitmap);
    let_bitmap_go(b);
    dirty_free(left);
    return r;
}

/* I4 */
static int take_filter_out(struct co *co, struct backup *b, struct byre_err *err)
{
    int r = 0;
    cbw_stop(b->cb);
    if (b->copy)
        backup_copy_drop(co, b->copy, &b->leave->inside);
    b->copy = NULL;
    if (b->keeper)
        (void)graph_detach(co, b->keeper);   /* it keeps nothing any more */
    b->keeper = NULL;
    if (b->over && b->filter && b->o.target)         /* who waits for the target is waited for while edges are held. close_target sees to what comes behind */
        graph_hurry(b->o.target, JOB_ABANDON_NS);
    if (b->over && b->filter)
        graph_cbw_let_over(co, b->filter, b->over, b->o.source);
    if (b->inserted && b->filter) {
        struct graph *g = graph_of(b->filter);
        graph_edges_hold(co, g);             /* what lies below it may be another backup's, which goes now, too */
        r = graph_remove_filter(co, b->filter, err);
        graph_edges_let(co, g);
    }
    b->inserted = b->inserted && r;
    return r;
}

/* But for what b->leave holds. */
static void close_target(struct co *co, struct backup *b)
{
    struct graph_node *target = b->o.target;
    if (b->filter)
        (void)graph_close(co, b->filter);    /* it has nothing of its own */
    b->filter = NULL;
    if (b->alone) {
        graph_stand_alone(b->alone, false);
        (void)graph_close(co, b->alone);     /* the target holds it, too */
    }
    b->alone = NULL;
    if (b->over)
        (void)graph_close(co, b->over);      /* as that */
    b->over = NULL;
    if (target)
        (void)graph_close(co, target);       /* b->leave holds it, too */
    b->o.target = NULL;
}

static void leave_at_once(struct co *co, struct backup *b)
{
    close_target(co, b);
    job_leave_now(co, b->leave);             /* it was flushed if that was promised */
    b->leave = NULL;
}

static void close_all(struct co *co, struct backup *b)
{
    close_target(co, b);
    if (b->source)
        (void)graph_close(co, b->source);    /* nothing was written to it here */
    if (b->image)
        (void)graph_close(co, b->image);
    b->source = b->image = NULL;
}

static int backup_prepare(struct co *co, struct job *job, struct byre_err *err)
{
    struct backup *b = job->opaque;
    int r = flush_target(co, b, 0, err);
    if (!r)
        r = flush_source(co, b, err);
    return r ? r : check_whole(b, err);
}

static int backup_commit(struct co *co, struct job *job, struct byre_err *err)
{
    struct backup *b = job->opaque;
    int r = take_filter_out(co, b, err);
    if (r)
        return r;
    leave_at_once(co, b);
    r = settle_bitmap(co, b, true, err);
    if (!r)
        close_all(co, b);                    /* others have the source open: this suspends not */
    return r;
}

/* What was copied for a guest's write is the copy that a cancelled sync=none leaves: it is durable when the end is told. */
static void settle_target(struct co *co, struct job_leave *l)
{
    graph_drain_begin(co, l->target);        /* requests of guests that the filter has left alone */
    graph_drain_end(l->target);
    int r = graph_flush(co, l->target);
    if (r)
        graph_warn(l->target, "%s: cannot flush: %s; what a job that is over has copied may be lost", graph_filename(l->target), strerror(-r));
}

static void backup_abort(struct co *co, struct job *job)
{
    struct backup *b = job->opaque;
    struct byre_err why = { 0 }, also = { 0 };
    if (take_filter_out(co, b, &why))
        graph_warn(b->o.source, "%s", why.text);
    if (settle_bitmap(co, b, false, &also))      /* nothing is copied any more, whether the filter has gone or not */
        graph_warn(b->o.source, "%s", also.text);
    close_all(co, b);                        /* b->leave holds the target alone, if nobody else does */
    if (b->leave)
        job_leave(co, b->leave, job->jobs, FAULT(FAULT_EARLY_END) ? 0 : JOB_LEAVE_NS);
    b->leave = NULL;
}

static void backup_free(struct backup *b)
{
    if (b->cb)
        cbw_unref(b->cb);
    dirty_free(b->held);
    free(b->filter_name);
    free(b);
}

static void backup_fini(struct job *job) { backup_free(job->opaque); }

const struct job_kind job_backup_kind = { .type = "backup", .run = backup_run, .prepare = backup_prepare, .commit = backup_commit, .abort = backup_abort, .has_speed = true,
                                          .fini = backup_fini, .block_job = true };

/* ---- the beginning ---- */

static int check(const struct job_backup_opts *o, struct byre_err *err)
{
    uint64_t a = graph_length(o->source), t = graph_length(o->target), granule = cbw_granule_for(o->target, o->min_cluster);
    if (o->source == o->target)
        return byre_fail(err, BAD_ARGUMENT, "Source and target cannot be the same");
    if (a != t)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' has %" PRIu64 " bytes and node '%s' has %" PRIu64 ": source and target have different sizes",
                         graph_node_name(o->source), a, graph_node_name(o->target), t);
    if (graph_read_only(o->target))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only: no backup can go there", graph_node_name(o->target));
    if (o->max_chunk && o->max_chunk < granule)
        return byre_fail(err, BAD_ARGUMENT, "Required max-chunk (%" PRIu64 ") is less than backup cluster size (%" PRIu64 ")", o->max_chunk, granule);
    if (cbw_over(o->target, o->source) && o->sync != JOB_BACKUP_NONE && o->sync != JOB_BACKUP_FULL)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' lies over node '%s': such a target takes a backup with sync 'none' or 'full'", graph_node_name(o->target),
                         graph_node_name(o->source));
    return 0;
}

/* The bitmap is there, sound, nobody's, and may become another one at the end. */
static int look_for_bitmap(struct co *co, const struct job_backup_opts *o, struct fmt_bitmap **ret, struct byre_err *err)
{
    struct graph_node *image = graph_skip_filters(o->source);
    struct fmt_bitmap *m = NULL;
    int r = graph_need_image(o->source, "a bitmap", err);
    if (!r)
        r = graph_bitmap_find(co, image, o->bitmap, &m, err);
    if (r)
        return r;
    if (!m)
        return byre_fail(err, NOT_FOUND, "Dirty bitmap '%s' not found", o->bitmap);
    if (m->busy)
        return byre_fail(err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", graph_filename(image), m->name);
    if (m->persistent && graph_read_only(image) && o->bitmap_mode != JOB_BITMAP_NEVER)
        return byre_fail(err, READ_ONLY, "%s: is open read-only, bitmap '%s' cannot be changed", graph_filename(image), m->name);
    *ret = m;
    return graph_bitmap_load(co, image, m, err);
}

/* What is wrong with the options themselves, whatever the target is: one that is made has clusters of 64 KiB at most. */
static int check_words(const struct job_backup_opts *o, struct byre_err *err)
{
    uint64_t granule = max_u64(CBW_GRANULE_MIN, o->min_cluster);
    if (o->min_cluster && (!is_pow2(o->min_cluster) || o->min_cluster > CBW_GRANULE_MAX))
        return byre_fail(err, BAD_ARGUMENT, "min-cluster-size %" PRIu64 " is no power of two up to %" PRIu64, o->min_cluster, CBW_GRANULE_MAX);
    if (o->max_chunk && o->max_chunk < granule)
        return byre_fail(err, BAD_ARGUMENT, "Required max-chunk (%" PRIu64 ") is less than backup cluster size (%" PRIu64 ")", o->max_chunk, granule);
    if (o->filter_node_name && !id_is_good(o->filter_node_name, GRAPH_NAME_MAX))
        return byre_fail(err, BAD_ARGUMENT, "'%s' is no acceptable node name (a letter, then at most %d letters, digits, '-', '.', '_')", o->filter_node_name,
                         GRAPH_NAME_MAX - 1);
    return 0;
}

int job_backup_could(struct co *co, const struct jobs *js, const struct job_backup_opts *o, struct byre_err *err)
{
    struct fmt_bitmap *m;
    int r = job_may_start(js, &job_backup_kind, &o->job, err);
    if (!r)
        r = check_words(o, err);
    if (!r)
        r = graph_need_seen(o->source, "a backup", err);
    if (r || !o->bitmap)
        return r;
    struct graph *g = graph_of(o->source);
    graph_edges_hold(co, g);                 /* nobody removes it while it is loaded */
    r = look_for_bitmap(co, o, &m, err);
    graph_edges_let(co, g);
    return r;
}

static int find_bitmap(struct co *co, struct backup *b, struct byre_err *err)
{
    struct fmt_bitmap *m;
    int r = look_for_bitmap(co, &b->o, &m, err);
    if (r)
        return r;
    b->image = graph_skip_filters(b->o.source);
    graph_ref(b->image);                     /* others may come to lie there in its place */
    graph_bitmap_hold(m);
    b->bitmap = m;
    return 0;
}

/* K5. A source of which the job itself discards has nobody else who changes it (backup_copy.c). */
static int keep_others_out(struct backup *b, struct byre_err *err)
{
    const struct graph_attach_opts ao = { b->o.job.id ? b->o.job.id : "backup", STOR_PERM_READ, STOR_PERM_ALL, false };
    if (!b->inserted || (b->o.discard_source && !graph_is_snapshot_access(b->o.source)))
        return 0;
    return graph_attach(b->filter, &ao, &b->keeper, err);
}

/* K1: drained. */
static int begin_drained(struct co *co, struct backup *b, struct byre_err *err)
{
    const struct job_backup_opts *o = &b->o;
    if (b->bitmap && dirty_copy(b->bitmap->bits, b->bitmap->bits->size, &b->held))
        return byre_fail(err, NOMEM, "no memory for a bitmap");
    const struct cbw_opts c = { .source = o->source, .target = o->target, .only = o->sync == JOB_BACKUP_BITMAP ? b->held : NULL, .min_granule = o->min_cluster,
                                .on_error = o->on_cbw_error, .timeout_ns = o->cbw_timeout_ns, .compress = o->compress, .of_job = true,
                                .zeros_too = o->sync != JOB_BACKUP_FULL || b->over, .over = b->over, .node_name = b->filter_name };
    int r = graph_cbw_new(co, &c, NULL, &b->filter, err);
    if (r)
        return r;
    b->cb = graph_cbw(b->filter);
    cbw_ref(b->cb);
    b->alone = c.zeros_too ? graph_skip_filters(o->target) : NULL;
    if (b->alone) {
        graph_ref(b->alone);
        graph_stand_alone(b->alone, true);
    }
    if (!b->filter_name)
        graph_set_implicit(b->filter);
    r = FAULT(FAULT_NO_COPY_BEFORE) ? 0 : graph_insert_above(co, o->source, b->filter, err);
    b->inserted = !r && !FAULT(FAULT_NO_COPY_BEFORE);
    if (!r)
        r = keep_others_out(b, err);
    if (!r && b->bitmap)
        r = graph_bitmap_follow(co, b->image, b->bitmap, err);
    return r;
}

static int begin(struct co *co, struct backup *b, struct byre_err *err)
{
    struct graph_node *source = b->o.source;
    int r = b->o.bitmap ? find_bitmap(co, b, err) : 0;
    if (r)
        return r;
    b->over = cbw_over(b->o.target, source);
    b->o.copy_range &= !b->over;             /* the kernel would go on reading when a change has broken the snapshot (C3 of cbw_copy.c), and the target is read */
    graph_drain_begin(co, source);
    if (b->over) {
        graph_ref(b->over);
        graph_drain_begin(co, b->over);      /* it goes to the source, but for a while in there */
    }
    r = begin_drained(co, b, err);
    if (b->over)
        graph_drain_end(b->over);
    graph_drain_end(source);
    return r ? r : backup_copy_new(co, &b->o, b->cb, &b->copy, err);
}

static void undo(struct co *co, struct backup *b)
{
    struct byre_err why = { 0 };
    if (b->cb && take_filter_out(co, b, &why))
        graph_warn(b->o.source, "%s", why.text);
    if (b->bitmap) {
        graph_bitmap_unfollow(co, b->image, b->bitmap);
        let_bitmap_go(b);
    }
    leave_at_once(co, b);
    close_all(co, b);
}

void job_backup_abandon(struct co *co, struct job *job)
{
    ASSERT(job->kind == &job_backup_kind && job->waits);
    undo(co, job->opaque);
    int r = job_do(job, JOB_CANCEL, NULL);
    (void)r;                                 /* somebody has cancelled it already */
    job_begin(job);
}

static void leave_free(struct job_leave *l) { free(l); }

static struct backup *backup_new(const struct job_backup_opts *o)
{
    struct backup *b = calloc(1, sizeof *b);
    struct job_leave *l = calloc(1, sizeof *l);
    char *name = o->filter_node_name ? strdup(o->filter_node_name) : NULL;
    if (!b || !l || (o->filter_node_name && !name)) {
        free(b);
        free(l);
        free(name);
        return NULL;
    }
    *l = (struct job_leave){ .target = o->target, .may_abandon = true, .settle = settle_target, .free = leave_free };
    b->o = *o;
    b->filter_name = name;
    b->source = o->source;
    b->leave = l;
    graph_ref(b->source);
    graph_ref(b->o.target);
    graph_ref(l->target);
    return b;
}

static int prepare(struct co *co, struct jobs *js, const struct job_backup_opts *o, struct job **ret_job, struct byre_err *err)
{
    int r = check(o, err);
    if (r)
        return r;
    struct backup *b = backup_new(o);
    if (!b)
        return byre_fail(err, NOMEM, "no memory for a backup");
    r = begin(co, b, err);
    struct job_opts jo = o->job;
    jo.opaque = b;
    jo.nodes[0] = o->source;
    jo.nodes[1] = o->target;
    jo.waits = true;
    if (!r)
        r = job_start(js, &job_backup_kind, &jo, &b->job, err);
    if (r) {
        undo(co, b);
        backup_free(b);
        return r;
    }
    *ret_job = b->job;
    return 0;
}

/* Nothing is resized, or opened in another way, from the look at it until the filter keeps others from that; and edges before any drain (runtime.c, V2). */
int job_backup_prepare(struct co *co, struct jobs *js, const struct job_backup_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct graph_node *const named[] = { o->source, o->target };
    graph_chain_hold(co, named, 2);
    int r = prepare(co, js, o, ret_job, err);
    graph_chain_let(co, named, 2);
    return r;
}
