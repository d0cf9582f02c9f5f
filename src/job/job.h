/* SPDX-License-Identifier: MIT
 *
 * job.h: long work with a life cycle that others can watch and steer (FEATURES 9a).
 *
 *     created -> running <-> paused        running -> ready <-> standby
 *     running | ready -> waiting -> pending -> concluded -> null         any failure or cancel: -> aborting -> concluded
 *
 * A kind of job is one row, struct job_kind: what it does, and what happens at its end. The rest is here: ids, the
 * two tables of what is allowed when (job_state.c), pausing, speed, progress, the error that is kept, and telling those
 * who watch. A blocking caller in another thread that only waits for a result is lib/job.c, which has no states.
 *
 * Invariants
 *   I1  The state changes in one place, which asserts that the table allows the move, and tells the watcher.
 *   I2  A verb acts only in a state that the table names; else it is refused with the names of both.
 *   I3  A job concludes well only after kind->commit has made everything durable that it promises.
 *   I4  A job that is freed has concluded, and its coroutine has left it.
 * Order       none of its own
 * Concurrency everything on the home loop; job_progress_get and job_cancelled from any thread
 * Failure     job_start: nothing is left, and what the kind would own stays the caller's
 */
#ifndef JOB_JOB_H
#define JOB_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "graph/graph.h"
#include "rt/co.h"
#include "rt/loop.h"
#include "rt/sync.h"

enum job_status {
    JOB_UNDEFINED, JOB_CREATED, JOB_RUNNING, JOB_PAUSED, JOB_READY, JOB_STANDBY, JOB_WAITING, JOB_PENDING, JOB_ABORTING, JOB_CONCLUDED,
    JOB_NULL, JOB_STATUS_COUNT
};
enum job_verb { JOB_CANCEL, JOB_PAUSE, JOB_RESUME, JOB_SET_SPEED, JOB_COMPLETE, JOB_FINALIZE, JOB_DISMISS, JOB_VERB_COUNT };

/* The words of the protocol: "running", "set-speed". */
const char *job_status_name(enum job_status s);
const char *job_verb_name(enum job_verb v);
bool job_may_move(enum job_status from, enum job_status to);
bool job_may_verb(enum job_verb v, enum job_status s);

struct job;
struct job_kind {
    const char *type;                    /* "x-byre-scrub" */
    /* The work. Calls job_point() between steps of a second or less. 0; or negative with *err filled. Suspends. */
    int (*run)(struct co *co, struct job *job, struct byre_err *err);
    /* After run succeeded and finalizing was wanted: all of the end that may fail and shows nothing yet. Members of a group (group.h) commit when all
     * are prepared. NULL: nothing to do. */
    int (*prepare)(struct co *co, struct job *job, struct byre_err *err);
    /* Then: makes it true, durably. NULL: nothing to do. */
    int (*commit)(struct co *co, struct job *job, struct byre_err *err);
    /* After a failure or cancel, also one of prepare or commit. NULL: nothing to do. */
    void (*abort)(struct co *co, struct job *job);
    /* A job that has become ready is to end well: kind's run must return soon. NULL: such jobs cannot be completed. It may refuse, and has changed nothing then. */
    int (*complete)(struct job *job, struct byre_err *err);
    bool has_speed;                      /* run spends by job_spend() */
    /* Gives back what the job's opaque owns. After it the job does not touch opaque. NULL: nothing. */
    void (*fini)(struct job *job);
    bool block_job;                      /* also shown in the older words (query-block-jobs, BLOCK_JOB_COMPLETED) */
};

#define JOB_NODES 3u                     /* that a job may have */

struct jobs;
struct copy_latency;
struct job {
    struct list_node link;
    struct jobs *jobs;
    const struct job_kind *kind;
    void *opaque;
    char *id;                            /* NULL: internal, shown to nobody */
    enum job_status status;              /* changed by job.c alone (I1) */
    bool auto_finalize, auto_dismiss, user_paused, finalize_wanted, done, waits;
    unsigned pauses;                     /* reasons to stand still */
    atomic_bool cancelled;
    _Atomic uint64_t current, total;
    uint64_t speed, spent_until;         /* units per second, 0: no limit; time up to which the budget is used */
    int result;                          /* when concluded */
    int io_error;                        /* it stands still because of this error of a request; 0: it does not */
    struct byre_err err;
    struct copy_latency *latency;        /* copy/latency.h: of block jobs; NULL: no memory for it */
    struct job_group *group;             /* group.h; NULL: it ends by itself */
    struct job *group_next;
    struct co_waitq wake;                /* the coroutine: pause, speed or cancel has changed, finalize */
    struct graph_haste haste[JOB_NODES];
};

/* How a job ended that has been forgotten: what is told to those who ask too late. */
struct job_end { char *id, *error; const char *type; int result; };       /* error: NULL: none, or no memory for it */
#define JOB_ENDS_KEPT 64u

/* All jobs of a process. status_changed: on the home loop, after each move, must not suspend; also for internal jobs. */
struct jobs {
    struct rt_loop *home;
    struct list all;
    struct co_group alive;               /* coroutines */
    uint64_t next_number;
    bool stopping;
    struct job_end ends[JOB_ENDS_KEPT];  /* a ring: the one behind the newest is the oldest, and goes first */
    unsigned ends_at;
    void (*status_changed)(void *arg, const struct job *job);
    /* A request of a job failed, and this is done: "report", "ignore", "stop". NULL: nobody wants to know */
    void (*io_error)(void *arg, const struct job *job, bool read, const char *action);
    void *arg;
};
void jobs_init(struct jobs *js, struct rt_loop *home);
/* Cancels all, waits for their ends, and forgets them. No new one can start. Suspends. Idempotent. */
void jobs_stop(struct co *co, struct jobs *js);

struct job_opts {
    const char *id;                      /* NULL: internal. Else a well-formed name: a letter, then letters, digits and -._ */
    bool keep_pending, keep_concluded;   /* auto-finalize=false, auto-dismiss=false */
    uint64_t speed;
    void *opaque;
    bool waits;                          /* it does nothing before job_begin */
    struct graph_node *nodes[JOB_NODES]; /* where its requests go, and NULL: when it is cancelled or fails, they stand behind no limit. It needs no reference */
};
/* What job_start would refuse now, for those who have to make something before it. */
MUST_USE int job_may_start(const struct jobs *js, const struct job_kind *kind, const struct job_opts *o, struct byre_err *err);
/* Takes o->opaque on success only. -EINVAL: the id; -EEXIST. */
MUST_USE int job_start(struct jobs *js, const struct job_kind *kind, const struct job_opts *o, struct job **ret_job, struct byre_err *err);
void job_begin(struct job *job);         /* of one that waits; it is there until then, also when somebody cancels it */
struct job *job_find(const struct jobs *js, const char *id);
/* The newest end of a job of this name; NULL: there was none, or it is too long ago. */
const struct job_end *job_end_find(const struct jobs *js, const char *id);
/* The one behind `at` (NULL: the first) that has an id; NULL at the end. */
struct job *job_next(const struct jobs *js, const struct job *at);

/* A user's verb. Refused with the reason in *err. After JOB_DISMISS the job may be gone. */
MUST_USE int job_do(struct job *job, enum job_verb v, struct byre_err *err);
MUST_USE int job_set_speed(struct job *job, uint64_t speed, struct byre_err *err);
/* A reason of ours to stand still (drain), counted. */
void job_hold(struct job *job);
void job_unhold(struct job *job);

/* ---- for kinds, in the job's coroutine ---- */
/* As one of job_opts.nodes. */
void job_goes_to(struct job *job, struct graph_node *n);
/* Stands still while it has to. -ECANCELED: end now. Suspends. */
MUST_USE int job_point(struct co *co, struct job *job);
/* The same, and keeps the rate when `units` were done. Suspends. */
MUST_USE int job_spend(struct co *co, struct job *job, uint64_t units);
/* Stands still because a request failed, until somebody resumes it. -ECANCELED. Suspends. */
MUST_USE int job_stop_for(struct co *co, struct job *job, int error);
void job_progress(struct job *job, uint64_t current, uint64_t total);
/* Everything is copied; from here on it only follows. Waits for complete or cancel with job_point. */
void job_ready(struct job *job);

static inline bool job_cancelled(const struct job *job) { return atomic_load_explicit(&((struct job *)(uintptr_t)job)->cancelled, memory_order_relaxed); }
void job_progress_get(const struct job *job, uint64_t *ret_current, uint64_t *ret_total);

#endif
