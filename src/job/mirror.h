/* SPDX-License-Identifier: MIT
 *
 * mirror.h: the job that makes another disk the same as one in use, and lets it take its place (FEATURES 9b, 9.043, G.026 to G.032).
 *
 * Invariants
 *   I1  J1: it is ready only after a flush of the target. At the end: nobody writes, nothing is dirty, the target is flushed, the users are
 *       on the target, and only then the job concludes.
 *   I2  The source is never written; until the job has concluded well every user is on it.
 *   I3  Completing ends: the last changes go to both sides at once, whatever the copy mode was.
 * Concurrency Home loop of the graph.
 * Failure     The users stay on the source; the target holds a part.
 */
#ifndef JOB_MIRROR_H
#define JOB_MIRROR_H

#include "graph/graph.h"
#include "job/converge.h"
#include "job/copying.h"
#include "job/mirror_bitmap.h"

enum job_mirror_sync { JOB_MIRROR_FULL, JOB_MIRROR_TOP, JOB_MIRROR_NONE, JOB_MIRROR_BITMAP };

struct job_mirror_opts {
    struct graph_node *source, *target;  /* the same length, or active: any. Changes of the source's are followed: the base of an active commit becomes
                                          * longer at once, and shorter, if it was not longer from the beginning, when the disk goes over to it. The
                                          * job takes references */
    struct graph_node *replaces;         /* whose users go to the target; NULL: the source's */
    bool over_source;                    /* the target, which has nothing below it, lies above the source at the end (sync none) */
    bool active_commit;                  /* target: a layer below the source, which takes up what those above it hold */
    enum job_mirror_sync sync;
    const char *bitmap;                  /* with sync BITMAP, of the source; only looked at by job_mirror_start */
    enum job_bitmap_mode bitmap_mode;
    bool carry_bitmaps;                  /* the target gets the bitmaps of the source, in the end */
    bool blocking;                       /* copy-mode=write-blocking */
    uint64_t granularity;                /* a power of two; 0: made up */
    uint64_t buf_bytes;                  /* 0: 16 MiB */
    bool keep_space;                     /* unmap=false */
    bool copy_range;                     /* copy/live.h */
    enum job_on_error on_source_error, on_target_error;
    enum converge_mode converge;
    uint64_t deadline_s;                 /* 0: none */
    unsigned max_slowdown;               /* 0: 20 */
    const char *filter_node_name;        /* of a filter that stands over the source meanwhile; NULL: none. Only looked at by job_mirror_start */
    uint64_t max_hold_ms; bool has_max_hold;     /* not given: 1000, or no limit without converge */
    struct job_opts job;                 /* opaque is not looked at; speed: bytes copied per second */
};
extern const struct job_kind job_mirror_kind, job_active_commit_kind;
bool job_is_mirror(const struct job *job);
/* Suspends. */
MUST_USE int job_mirror_start(struct co *co, struct jobs *js, const struct job_mirror_opts *o, struct job **ret_job, struct byre_err *err);
/* What that would refuse whatever the target is, for those who make it (of a format, under a name) first, because a file that is there is not given up
 * for what is refused. Suspends. */
struct job_mirror_made { const struct fmt_ops *ops; const char *filename; };
MUST_USE int job_mirror_could(struct co *co, const struct jobs *js, const struct job_mirror_opts *o, const struct job_mirror_made *made, struct byre_err *err);
/* Of a mirror that has not ended: from now on changes go to both sides at once, or not any more. */
MUST_USE int job_mirror_set_blocking(struct job *job, bool on, struct byre_err *err);
/* A mirror that is ready ends well, but nobody goes over to the target (block-job-cancel without force). Refused when it is completing. */
MUST_USE int job_mirror_leave(struct job *job, struct byre_err *err);

struct job_mirror_state {
    bool blocking, actively_synced, ended;
    const struct converge *converge;     /* its measures hold whatever the mode is */
    uint64_t dirty, carried;
    uint64_t pivot_pause_ns;             /* 0: none yet */
    uint64_t longest_hold_ns;
    double time_left_s;                  /* until the deadline */
};
void job_mirror_look(const struct job *job, struct job_mirror_state *ret);

#endif
