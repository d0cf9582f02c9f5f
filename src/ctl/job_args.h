/* SPDX-License-Identifier: MIT
 *
 * job_args.h: what the commands that begin jobs have in common: members of their arguments, rows, words.
 *
 * A command's struct of arguments has a `struct ctl_job_args job`, and an int for each error policy.
 */
#ifndef CTL_JOB_ARGS_H
#define CTL_JOB_ARGS_H

#include "ctl/ctl_priv.h"
#include "job/copying.h"

struct ctl_job_args {
    const char *id, *filter_node_name;
    uint64_t speed;
    bool auto_finalize, has_auto_finalize, auto_dismiss, has_auto_dismiss;
};
#define CTL_JOB_ROWS(T) \
    { "job-id", CTL_STR, false, CTL_AT(T, job.id), .doc = "Name of the job; the device's unless given." }, \
    { "speed", CTL_SIZE, false, CTL_AT(T, job.speed), .doc = "Bytes per second; 0: no limit." }, \
    { "auto-finalize", CTL_BOOL, false, .off = offsetof(T, job.auto_finalize), .has_off = offsetof(T, job.has_auto_finalize) }, \
    { "auto-dismiss", CTL_BOOL, false, .off = offsetof(T, job.auto_dismiss), .has_off = offsetof(T, job.has_auto_dismiss) }
#define CTL_FILTER_NAME_ROW(T) \
    { "filter-node-name", CTL_STR, false, CTL_AT(T, job.filter_node_name), \
      .doc = "Name of a filter that stands over the node meanwhile; without one there is none to be seen." }

/* The policy when a request fails; report unless given. */
extern const struct ctl_shape ctl_on_error_shape;
#define CTL_ON_ERROR_ROW(name, T, field, ...) { name, CTL_ENUM, false, CTL_AT(T, field), .of = &ctl_on_error_shape, __VA_ARGS__ }
enum job_on_error ctl_on_error(int word);

/* device: names the job unless its arguments do. */
struct job_opts ctl_job_opts(const struct ctl_job_args *a, const char *device);
/* Are there jobs here, and is the filter's name free? */
MUST_USE int ctl_job_may(struct ctl_call *call, const struct ctl_job_args *a);

#endif
