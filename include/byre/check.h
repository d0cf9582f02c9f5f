/* SPDX-License-Identifier: MIT
 *
 * check.h: consistency check and repair.
 */
#ifndef BYRE_CHECK_H
#define BYRE_CHECK_H

#include "byre/image.h"
#include "byre/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_check_opts.flags */
enum { BYRE_FIX_LEAKS = 1u << 0, BYRE_FIX_ERRORS = 1u << 1 };

struct byre_check_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_FIX_*; the image must be open for writing */
    /* Called for each finding, from an I/O thread: id is stable ("Q2_LEAK"), text a sentence. May be NULL; must not block. */
    void (*finding)(void *arg, int fixed, const char *id, const char *text);
    void *arg;
};
BYRE_DEFINE_INIT(byre_check_opts)

struct byre_check_result {
    size_t struct_size;
    uint64_t corruptions, leaks, check_errors;           /* what is left */
    uint64_t corruptions_fixed, leaks_fixed;
    int has_stats;                                       /* 1: those below are known */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    uint64_t image_end_offset;                           /* bytes; 0: not known */
};
BYRE_DEFINE_INIT(byre_check_result)

/* Checks an image that was opened with BYRE_OPEN_CHECK. -ENOTSUP (from the job) when the format has no check. *result must stay
 * until the job has ended; its counts are meaningful when the job returned 0. */
BYRE_EXPORT BYRE_MUST_USE int byre_check_start(struct byre_image *image, const struct byre_check_opts *opts, struct byre_check_result *result,
                                               struct byre_job **ret_job, struct byre_err *err);

/* Checks an image that is open for writing, beside its requests: with BYRE_FIX_LEAKS frees what nothing names (BYRE_FIX_ERRORS is
 * refused: damage is counted and left). Makes an image clean that was opened with BYRE_OPEN_SERVE_UNCLEAN, whatever the flags
 * say; with damage that it cannot mend the job succeeds, the counts tell, and byre_is_unclean stays true. One at a time: -EBUSY. While
 * it runs snapshots and a resize are refused. -ENOTSUP: the format has no such check. */
BYRE_EXPORT BYRE_MUST_USE int byre_scrub_start(struct byre_image *image, const struct byre_check_opts *opts, struct byre_check_result *result,
                                               struct byre_job **ret_job, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
