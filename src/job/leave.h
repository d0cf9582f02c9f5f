/* SPDX-License-Identifier: MIT
 *
 * leave.h: how a job leaves its target: its end is told behind the last request and the closing of what was its own, unless those take too long.
 *
 * Invariants
 *   L1  Whoever learns of the end of the job finds its target closed, if nobody else has it open, or at least JOB_LEAVE_NS have passed.
 *   L2  A target that does not answer is given up (graph_abandon) JOB_ABANDON_NS later, where that is allowed: nobody waits for it for ever.
 *   L3  The same while it is opened for reading again, or closed: it may stop to answer only then. Others may use it, and edges may have to be waited for,
 *       so what counts is that it has requests, and has answered none for JOB_CLOSE_NS.
 * Concurrency  Home loop of the graph.
 */
#ifndef JOB_LEAVE_H
#define JOB_LEAVE_H

#include "graph/graph.h"
#include "job/job.h"

#define JOB_LEAVE_NS UINT64_C(400000000)     /* a cancelled job is gone within a second */
#define JOB_ABANDON_NS UINT64_C(2000000000)
#define JOB_CLOSE_NS UINT64_C(10000000000)

/* A part of what the kind keeps for it. settle, last: may be NULL; both suspend. */
struct job_leave {
    struct graph_node *target;           /* a reference of its own */
    struct co_group inside;              /* flushes and copies that the job may leave alone */
    bool may_abandon;                    /* requests that are not answered are given up */
    bool keeps_pace;                     /* the target is the disk now: limits of throttle groups hold */
    void (*settle)(struct co *co, struct job_leave *l);      /* when nobody is inside: what may have to wait for the target still */
    void (*last)(struct co *co, struct job_leave *l);        /* behind that, before the target is closed */
    void (*free)(struct job_leave *l);   /* gives l back, which nobody uses any more */
    /* its own */
    struct jobs *jobs;
    struct co_waitq q;
    struct rt_timer patience;
    struct graph_haste haste;
    bool done, alone;
};

/* Of a job of js, in its coroutine. l is given away. Suspends for `patience` at most, JOB_LEAVE_NS. */
void job_leave(struct co *co, struct job_leave *l, struct jobs *js, uint64_t patience);
/* The same for one with nobody inside, who has flushed if that was promised: all of it is done here. NULL: nothing. Suspends. */
void job_leave_now(struct co *co, struct job_leave *l);

#endif
