/* SPDX-License-Identifier: MIT
 *
 * convert.h: copying and comparing the content of images.
 */
#ifndef BYRE_CONVERT_H
#define BYRE_CONVERT_H

#include "byre/image.h"
#include "byre/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_convert_opts.flags */
enum {
    BYRE_CONVERT_OUT_OF_ORDER = 1u << 0, /* the target may be written in any order */
    BYRE_CONVERT_OFFLOAD = 1u << 1,      /* let the kernel copy where it can */
    BYRE_CONVERT_SALVAGE = 1u << 2,      /* what cannot be read becomes zeros; see result and `salvaged` */
    BYRE_CONVERT_TARGET_ZERO = 1u << 3,  /* the target is known to read as zeros: write none */
    BYRE_CONVERT_PRE_ZERO = 1u << 4,     /* the old content of the target may be zeroed first, if that is cheap */
    BYRE_CONVERT_BACKED = 1u << 5,       /* the target has a backing image: what it supplies already is left out */
    BYRE_CONVERT_COMPRESS = 1u << 6,     /* the target stores its clusters compressed */
    BYRE_CONVERT_FRESH = 1u << 7,        /* with BACKED: nothing has been written to the target, so that what its backing image and a source have in common
                                            need not be read; without it the target's own content is compared */
};

struct byre_convert_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_CONVERT_* */
    unsigned parallel;           /* requests at the same time, 1 to 16; 0 = 8 */
    uint64_t sparse_bytes;       /* runs of zeros from this length on (a multiple of 512) are not stored; 0: everything is written */
    uint64_t rate_bytes;         /* per second; 0: no limit */
    uint64_t source_offset;      /* where to begin in the (only) source */
    uint64_t length;             /* bytes to copy from there; 0: all of the sources */
    /* A range of the sources that became zeros (SALVAGE). From an I/O thread; may be NULL; must not block. */
    void (*salvaged)(void *arg, uint64_t off, uint64_t len, int error);
    void *arg;
    /* COMPRESS: 1 (fast) and up, zlib to 12, zstd to 22; 0: fast, and with zlib no larger than other programs make it */
    unsigned compress_level;
    int compress_small_window;   /* 1: zlib matches reach back 4 KiB at most, for readers that keep no more */
};
BYRE_DEFINE_INIT(byre_convert_opts)

/* All in bytes. The last two are meaningful when the job failed. */
struct byre_convert_result {
    size_t struct_size;
    uint64_t read, written, zeroed, skipped;
    uint64_t offloaded;          /* of `written`: copied by the kernel */
    uint64_t unreadable;         /* became zeros */
    uint64_t fail_offset;        /* from the start of the first source */
    int fail_read;               /* 1: a source failed, 0: the target */
};
BYRE_DEFINE_INIT(byre_convert_result)

/* Copies the sources, one after the other, into the target, and flushes it. *result (may be NULL) is written
 * before the job ends and must stay until then. */
BYRE_EXPORT BYRE_MUST_USE int byre_convert_start(struct byre_image *const *sources, unsigned source_count, struct byre_image *target,
                                                 const struct byre_convert_opts *opts, struct byre_convert_result *result,
                                                 struct byre_job **ret_job, struct byre_err *err);

enum byre_difference {
    BYRE_SAME = 0,
    BYRE_DIFFER_CONTENT = 1,     /* bytes differ at `offset` */
    BYRE_DIFFER_STATUS = 2,      /* strict: allocated in one, not in the other, at `offset` */
    BYRE_DIFFER_SIZE = 3,        /* strict: sizes differ */
};
enum { BYRE_COMPARE_STRICT = 1u << 0 };

struct byre_compare_result {
    size_t struct_size;
    int difference;              /* enum byre_difference */
    int size_differs;            /* 1: the sizes differ (the longer tail reads zeros when difference is BYRE_SAME) */
    uint64_t offset;             /* bytes */
    int failed_image;            /* when the job failed: 1 or 2, the image whose reading failed; 0: neither */
    int failed_status;           /* 1: the failure was in asking for block status */
};
BYRE_DEFINE_INIT(byre_compare_result)

/* Compares two images; a shorter one counts as followed by zeros. *result must stay until the job has ended. */
BYRE_EXPORT BYRE_MUST_USE int byre_compare_start(struct byre_image *a, struct byre_image *b, unsigned flags, struct byre_compare_result *result,
                                                 struct byre_job **ret_job, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
