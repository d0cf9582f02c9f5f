/* SPDX-License-Identifier: MIT
 *
 * compact.h: makes the file of an image as small as what it holds.
 */
#ifndef BYRE_COMPACT_H
#define BYRE_COMPACT_H

#include "byre/image.h"
#include "byre/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_compact_opts.flags */
enum { BYRE_COMPACT_KEEP_ZEROS = 1u << 0 };              /* data is not read in search of clusters that hold zeros alone */

struct byre_compact_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_COMPACT_* */
};
BYRE_DEFINE_INIT(byre_compact_opts)

struct byre_compact_result {
    size_t struct_size;
    uint64_t bytes_moved, bytes_zeroed;                  /* taken to another place; no longer allocated because they were zeros */
    uint64_t length_before, length_after;                /* of the file */
    uint64_t allocated_before, allocated_after;          /* what it occupies; 0: not known */
};
BYRE_DEFINE_INIT(byre_compact_result)

/* Compacts an image that is open for writing; it may be read and written meanwhile. -ENOTSUP (from the job) when the format has
 * nothing like it. *result must stay until the job has ended; it is meaningful when the job returned 0 or -ECANCELED: what was
 * moved stays moved. */
BYRE_EXPORT BYRE_MUST_USE int byre_compact_start(struct byre_image *image, const struct byre_compact_opts *opts, struct byre_compact_result *result,
                                                 struct byre_job **ret_job, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
