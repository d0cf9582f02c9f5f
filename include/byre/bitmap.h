/* SPDX-License-Identifier: MIT
 *
 * bitmap.h: dirty bitmaps of an image: which parts of the disk have been changed since when?
 *
 * A bitmap that is enabled records every write, zero and discard. Persistent ones are kept in the image; a change made here
 * is durable when the call returns 0, and has not happened when it fails. Requests wait while a change is made.
 */
#ifndef BYRE_BITMAP_H
#define BYRE_BITMAP_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    BYRE_BITMAP_PERSISTENT = 1u << 0,    /* kept in the image */
    BYRE_BITMAP_DISABLED = 1u << 1,      /* does not record */
    BYRE_BITMAP_INCONSISTENT = 1u << 2,  /* found: was not stored by its last user; can only be removed */
    BYRE_BITMAP_DAMAGED = 1u << 3,       /* found: its entry in the image is malformed; can only be removed */
    BYRE_BITMAP_BUSY = 1u << 4,          /* found: a job or an export uses it */
};

struct byre_bitmap_opts {
    size_t struct_size;
    uint64_t granularity;        /* bytes, a power of two from 512 to 2 GiB; 0: cluster size of the image, 4 KiB to 64 KiB */
    unsigned flags;              /* PERSISTENT, DISABLED */
};
BYRE_DEFINE_INIT(byre_bitmap_opts)

struct byre_bitmap_status {
    size_t struct_size;
    uint64_t granularity, dirty; /* bytes; dirty: a multiple of the granularity, 0 when it cannot be read */
    unsigned flags;              /* BYRE_BITMAP_* */
};
BYRE_DEFINE_INIT(byre_bitmap_status)

/* name: 1 to 1023 bytes, without control characters, not taken. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_add(struct byre_image *image, const char *name, const struct byre_bitmap_opts *opts, struct byre_err *err);
/* These fail with -ENOENT: there is none of that name; -EBUSY: a job or an export uses it; -EROFS: it is persistent, and the image open for reading. All
 * but remove also with -EINVAL: it is inconsistent or damaged, and can only be removed. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_remove(struct byre_image *image, const char *name, struct byre_err *err);
/* It says that nothing was changed, and goes on recording if it did. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_clear(struct byre_image *image, const char *name, struct byre_err *err);
/* Records from now on, or no more; what it says stays. 0 also when that was so already. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_enable(struct byre_image *image, const char *name, struct byre_err *err);
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_disable(struct byre_image *image, const char *name, struct byre_err *err);
/* Adds what a bitmap of another image of the same size holds (source may be image); granularities may differ. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_merge(struct byre_image *image, const char *name, struct byre_image *source, const char *source_name,
                                                struct byre_err *err);
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_get(struct byre_image *image, const char *name, struct byre_bitmap_status *ret, struct byre_err *err);
/* *ret_len: bytes from off on, at most len, that are all dirty (returns 1) or all clean (returns 0). off + len must lie
 * inside the image, len > 0. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_run(struct byre_image *image, const char *name, uint64_t off, uint64_t len, uint64_t *ret_len, struct byre_err *err);
/* Copies all persistent bitmaps of source into image, which has none of their names. skip_broken != 0: inconsistent and damaged ones are left
 * out, with a warning (byre_ctx_opts.warn); else they are an error. All of them, or none. */
BYRE_EXPORT BYRE_MUST_USE int byre_bitmap_copy_all(struct byre_image *image, struct byre_image *source, int skip_broken, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
