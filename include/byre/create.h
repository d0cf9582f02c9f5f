/* SPDX-License-Identifier: MIT
 *
 * create.h: making images, and measuring them beforehand.
 */
#ifndef BYRE_CREATE_H
#define BYRE_CREATE_H

#include "byre/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_create_opts.flags */
enum {
    BYRE_CREATE_NO_BACKING_CHECK = 1u << 0,  /* the backing file is recorded, not opened */
    BYRE_CREATE_EXCLUSIVE = 1u << 1,         /* fail when the file exists */
    BYRE_CREATE_SIZE = 1u << 2,              /* `size` is given */
    BYRE_CREATE_KEEP_FILE = 1u << 3,         /* format the file or device that is there (it is neither made nor cut off) */
    BYRE_CREATE_SIZE_WINS = 1u << 4,         /* a size in `options` is overridden by `size` instead of being an error */
    BYRE_CREATE_WRITABLE = 1u << 5,          /* the image will be written: a format that can only be read is refused, and no file is touched */
};

struct byre_create_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_CREATE_* */
    const char *format;          /* NULL: "raw" */
    uint64_t size;               /* bytes, with BYRE_CREATE_SIZE; else from `options` or the backing image */
    const char *const *options;  /* lists of key=value of the format ("cluster_size=4k,lazy_refcounts=on") */
    unsigned option_count;
    const char *backing_file, *backing_format;
    /* Called when everything is known and before anything is written: "fmt=qcow2 cluster_size=65536 ...". */
    void (*ready)(void *arg, const char *text);
    void *arg;
};
BYRE_DEFINE_INIT(byre_create_opts)

/* Makes an image. A file that this call made is removed again on failure; one that was there is left cut to length 0
 * (or, if it could not be opened, as it was). Refused, before anything is touched, where the file, or the external data file, is one of the
 * backing chain, or one that an open image of ctx reads. */
BYRE_EXPORT BYRE_MUST_USE int byre_create(struct byre_ctx *ctx, const char *filename, const struct byre_create_opts *opts, struct byre_err *err);

/* The creation options of a format, one "key=<type> - help" a line, through put(arg, text). -ENOENT: no such format. */
BYRE_EXPORT BYRE_MUST_USE int byre_create_help(const char *format, int with_file_options, void (*put)(void *arg, const char *text), void *arg);
/* 0: the format may have a backing file; -ENOTSUP: not; -ENOENT: no such format. */
BYRE_EXPORT int byre_format_backing(const char *format);

struct byre_measure { size_t struct_size; uint64_t required, fully_allocated, bitmaps; int has_bitmaps; };
BYRE_DEFINE_INIT(byre_measure)

struct byre_image;
/* File size (bytes) that an image made with opts needs for the content of `source` (NULL: for opts->size bytes of nothing). */
BYRE_EXPORT BYRE_MUST_USE int byre_measure_image(struct byre_ctx *ctx, struct byre_image *source, const struct byre_create_opts *opts,
                                                 struct byre_measure *ret, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
