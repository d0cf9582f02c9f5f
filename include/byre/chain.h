/* SPDX-License-Identifier: MIT
 *
 * chain.h: moving content between an image and the images below it.
 */
#ifndef BYRE_CHAIN_H
#define BYRE_CHAIN_H

#include "byre/image.h"
#include "byre/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_commit_opts.flags */
enum { BYRE_COMMIT_KEEP = 1u << 0 };     /* the image is not emptied */

struct byre_commit_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_COMMIT_* */
    const char *base;            /* the image of the chain that takes all that lies above it; NULL: the next one */
    uint64_t rate_bytes;         /* per second; 0: no limit */
    unsigned parallel;           /* requests at the same time, 1 to 16; 0 = 8 */
};
BYRE_DEFINE_INIT(byre_commit_opts)

struct byre_commit_result {
    size_t struct_size;
    uint64_t written, zeroed;    /* bytes that the base has taken, as data and as zeros */
    const char *base;            /* name of the image that took it; valid while the image is open. NULL: none was found */
};
BYRE_DEFINE_INIT(byre_commit_result)

/* Writes what an image hides of one below it into that one, which grows if it is shorter, and makes it durable; then the image is emptied,
 * if it may be. Open the image with its chain, for writing unless KEEP, and let nothing else use it. At every moment, also after a
 * crash, it reads as before. The base stays open for writing until the image is closed. Images in between are of no use afterwards. */
BYRE_EXPORT BYRE_MUST_USE int byre_commit_start(struct byre_image *image, const struct byre_commit_opts *opts, struct byre_commit_result *result,
                                                struct byre_job **ret_job, struct byre_err *err);

/* byre_rebase_opts.flags */
enum {
    BYRE_REBASE_UNSAFE = 1u << 0,        /* only the name changes; nothing is opened. The image was opened with BYRE_OPEN_NO_BACKING */
    BYRE_REBASE_COMPRESS = 1u << 1,      /* what is copied is stored compressed */
    BYRE_REBASE_DROP_EQUAL = 1u << 2,    /* afterwards, whole clusters that the new chain holds as well are given up; not with UNSAFE */
};

struct byre_rebase_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_REBASE_* */
    const char *backing_file;    /* a relative name is seen from the image; NULL or "": no backing file */
    const char *backing_format;  /* needed with backing_file */
    int cache;                   /* enum byre_cache: of the new chain */
    unsigned parallel;           /* as above */
};
BYRE_DEFINE_INIT(byre_rebase_opts)

/* Gives an image that is open for writing another backing file. What the new chain does not supply is written into the image before
 * the name changes. At every moment, also after a crash, the image reads as before. */
BYRE_EXPORT BYRE_MUST_USE int byre_rebase_start(struct byre_image *image, const struct byre_rebase_opts *opts, struct byre_job **ret_job, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
