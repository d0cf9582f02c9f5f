/* SPDX-License-Identifier: MIT
 *
 * amend.h: changing options of an image that exists.
 */
#ifndef BYRE_AMEND_H
#define BYRE_AMEND_H

#include "byre/image.h"
#include "byre/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_amend_opts.flags */
enum { BYRE_AMEND_FORCE = 1u << 0 };     /* do also what may lose something */

struct byre_amend_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_AMEND_* */
    const char *const *options;  /* lists "compat=1.1,refcount_bits=8" of options of the format */
    unsigned option_count;
};
BYRE_DEFINE_INIT(byre_amend_opts)

/* Changes options of an image open for writing, with no request, queue, export or other job on it. What can be known before is refused
 * before anything is changed (from the call, or from the job); each option is then changed as a whole, whatever happens. */
BYRE_EXPORT BYRE_MUST_USE int byre_amend_start(struct byre_image *image, const struct byre_amend_opts *opts, struct byre_job **ret_job, struct byre_err *err);
/* Tells the options of a format that can be changed, one a line. -ENOENT: no such format; -ENOTSUP: none. */
BYRE_EXPORT int byre_amend_help(const char *format, void (*put)(void *arg, const char *text), void *arg);

#ifdef __cplusplus
}
#endif
#endif
