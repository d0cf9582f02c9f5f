/* SPDX-License-Identifier: MIT
 *
 * image.h: opening an image and blocking I/O on it.
 *
 * Calls on one image may be made from several threads at once, except byre_close. Offsets and lengths are bytes,
 * of any alignment. Requests past the end of the image fail with -EIO. A call returns when its request is done;
 * written data is durable only after byre_flush (or with BYRE_FUA).
 */
#ifndef BYRE_IMAGE_H
#define BYRE_IMAGE_H

#include <sys/uio.h>

#include "byre/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

enum byre_cache {
    BYRE_CACHE_WRITEBACK = 0,    /* host page cache; durable after a flush */
    BYRE_CACHE_NONE = 1,         /* O_DIRECT; durable after a flush */
    BYRE_CACHE_WRITETHROUGH = 2, /* host page cache; every write is durable when it returns */
    BYRE_CACHE_DIRECTSYNC = 3,   /* O_DIRECT; every write is durable when it returns */
    BYRE_CACHE_UNSAFE = 4,       /* host page cache; flushes do nothing */
};
/* "none", "writeback", "writethrough", "directsync", "unsafe" to enum byre_cache; -EINVAL for any other word. */
BYRE_EXPORT int byre_cache_parse(const char *word);

/* byre_open_opts.flags */
enum {
    BYRE_OPEN_READ_ONLY = 1u << 0,
    BYRE_OPEN_NO_BACKING = 1u << 1,      /* leave the backing chain closed: what it would supply reads as zeros */
    BYRE_OPEN_FORCE_SHARE = 1u << 2,     /* tolerate a writer in another process (with READ_ONLY) */
    BYRE_OPEN_NO_LOCK = 1u << 3,
    BYRE_OPEN_DISCARD = 1u << 4,         /* discarded ranges are given back to the file system */
    BYRE_OPEN_REFUSE_GUESSED_RAW = 1u << 5,  /* a writable image must not have been probed as raw */
    BYRE_OPEN_CHECK = 1u << 6,           /* for byre_check_start: tolerate what a repair mends */
    BYRE_OPEN_INFO = 1u << 7,            /* for byre_info_get only: load no tables */
    BYRE_OPEN_IMAGE_OPTS = 1u << 8,      /* the name is a list of node options: "driver=qcow2,file.filename=x" */
    /* An image that was not closed cleanly opens at once, whatever its size; whoever asks for that then calls byre_scrub_start. Until
     * the scrub has ended nothing that was there is written in place, and on a block device writes wait for it. Without
     * the flag such an image is repaired before byre_open returns, unless it is opened read-only: then it is shown as it is. */
    BYRE_OPEN_SERVE_UNCLEAN = 1u << 11,
    BYRE_OPEN_STABLE = 1u << 9,          /* no other process may write or resize a file of the chain while it is open: raw layers, external data files */
    BYRE_OPEN_NO_DATA = 1u << 10,        /* guest data will not be read or written: no secret is needed for an encrypted image */
    BYRE_OPEN_DETECT_ZEROES = 1u << 12,  /* writes of nothing but zeros are stored as zeros */
    BYRE_OPEN_DETECT_UNMAP = 1u << 13,   /* the same, and give space back; needs DISCARD */
    BYRE_OPEN_COPY_ON_READ = 1u << 14,   /* what is read from the backing image is kept in the image, which must be writable */
    BYRE_OPEN_STABLE_TOP = 1u << 15,     /* the same as STABLE for the image's own file, raw or not; raw layers below it may be written */
};

enum byre_lazy { BYRE_LAZY_AS_CREATED, BYRE_LAZY_ON, BYRE_LAZY_OFF };

struct byre_open_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_OPEN_* */
    int cache;                   /* enum byre_cache */
    const char *format;          /* NULL: probed (ecosystem policy) or an error (strict policy) */
    const char *node_name;       /* at most 31 bytes; NULL: made up */
    const char *backing_names;   /* prefix: backing nodes are named PREFIX1, PREFIX2, ...; NULL: made up */
    uint64_t cache_bytes;        /* memory for metadata; 0: default */
    uint64_t frontier_bytes;     /* step by which a file is extended ahead of first writes; 0: default, UINT64_MAX: never */
    int lazy_refcounts;          /* enum byre_lazy: write reference counts late, with the image marked dirty */
    const char *data_file;       /* path of the external data file; NULL: the one that the image records */
    /* Show an internal snapshot, with the size that the disk had then; needs READ_ONLY. `snapshot` is its id or else its name;
     * or snapshot_id, snapshot_name or both, which must then both fit. All NULL: the disk itself. */
    const char *snapshot, *snapshot_id, *snapshot_name;
    const char *key_secret;      /* id of the secret that opens an encrypted image (byre_secret_add); NULL: what the name says */
    /* The image that records the name, which is nobody's choice but its own then: -EPERM when it nests nodes, or names keys or certificates to read, as for
     * the backing chain. It is seen from the working directory all the same. NULL: the caller's own name. */
    const char *recorded_by;
};
BYRE_DEFINE_INIT(byre_open_opts)

/* Opens an image and its backing chain. Blocks until all of it is open; on failure nothing is left. name: a path, seen from the working directory; with
 * the ecosystem policy (byre_ctx_opts) also file:PATH, json:{...} and nbd://... as byre(1) has them, with the strict one nothing but a path.
 * -ENOENT: no such file. -EAGAIN: another process has it open in a way that does not fit. -EINVAL: an option, a header, or not the stated format; strict
 * policy: no format was stated. -ENOTSUP: a feature. -EACCES: marked corrupt, or the secret opens nothing. -EPERM: the policy forbids a file that
 * the image names. -ELOOP, -EMLINK: the chain. Or what a system call said; err->reason tells them apart (error.h). */
BYRE_EXPORT BYRE_MUST_USE int byre_open(struct byre_ctx *ctx, const char *name, const struct byre_open_opts *opts,
                                        struct byre_image **ret_image, struct byre_err *err);
/* Flushes and closes. No other call on the image may be in progress; queues, jobs and exports of it are gone. Returns
 * the first failure; the image is gone all the same. NULL is allowed. */
BYRE_EXPORT int byre_close(struct byre_image *image);

/* ---- description ---- */
BYRE_EXPORT uint64_t byre_size(const struct byre_image *image);            /* bytes */
BYRE_EXPORT const char *byre_format(const struct byre_image *image);       /* "qcow2" */
BYRE_EXPORT const char *byre_filename(const struct byre_image *image);     /* as opened, valid until byre_close */
BYRE_EXPORT int byre_is_probed(const struct byre_image *image);            /* 1: the format was guessed */
BYRE_EXPORT int byre_is_read_only(const struct byre_image *image);
/* Opened with BYRE_OPEN_SERVE_UNCLEAN, and no scrub has made it clean yet. */
BYRE_EXPORT int byre_is_unclean(const struct byre_image *image);

/* 1: the name, as byre_open would take it, is an export of a server (nbd://...) or keeps nothing (null-co://), and no file of this machine. */
BYRE_EXPORT int byre_name_is_remote(const struct byre_ctx *ctx, const char *name);

/* ---- requests ---- */
enum {
    BYRE_FUA = 1u << 0,          /* write, zero: durable when the call returns */
    BYRE_UNMAP = 1u << 1,        /* zero: space may be given back */
    BYRE_NO_FALLBACK = 1u << 2,  /* zero: -ENOTSUP rather than write zeros */
    BYRE_COMPRESS = 1u << 3,     /* write: store whole clusters compressed (the last one of the disk may be short); -EINVAL: not whole
                                  * clusters; -ENOTSUP: the format or the image cannot */
};
BYRE_EXPORT BYRE_MUST_USE int byre_read(struct byre_image *image, void *buf, size_t len, uint64_t off);
/* Reads the VM state that lies behind the disk, addressed from 0; what was never saved is zeros. Where the image's own
 * format keeps none, that of the first image which it filters or whose content is its file. -ENOTSUP: none does. */
BYRE_EXPORT BYRE_MUST_USE int byre_read_state(struct byre_image *image, void *buf, size_t len, uint64_t off);
/* Writes it; all other requests wait meanwhile. -EFBIG: past what the format can address; -EBUSY: a scrub or a compaction runs; -ENOTSUP
 * also for an image with an external data file. */
BYRE_EXPORT BYRE_MUST_USE int byre_write_state(struct byre_image *image, const void *buf, size_t len, uint64_t off);
BYRE_EXPORT BYRE_MUST_USE int byre_readv(struct byre_image *image, const struct iovec *iov, unsigned iov_count, uint64_t off);
BYRE_EXPORT BYRE_MUST_USE int byre_write(struct byre_image *image, const void *buf, size_t len, uint64_t off, unsigned flags);
BYRE_EXPORT BYRE_MUST_USE int byre_writev(struct byre_image *image, const struct iovec *iov, unsigned iov_count, uint64_t off, unsigned flags);
/* When it returns 0 the range reads as zeros, durably so behind a flush. A part of it may when it fails. -EPERM: open for reading. */
BYRE_EXPORT BYRE_MUST_USE int byre_zero(struct byre_image *image, uint64_t off, uint64_t len, unsigned flags);
/* The content of the range is not wanted any more: a byte of it reads as zero then, or as it did. Whole clusters
 * go, and show nothing of a backing image then; does nothing without BYRE_OPEN_DISCARD. What the storage cannot do is no error. -EPERM: open for reading. */
BYRE_EXPORT BYRE_MUST_USE int byre_discard(struct byre_image *image, uint64_t off, uint64_t len);
/* [dst, dst + len) becomes what [src, src + len) is; they may overlap. In a qcow2 image the two share clusters where both lie whole in
 * it and at the same place in a cluster, until one of them is written; the rest is copied. A write of the target in all other ways:
 * a part of it may be done when the call fails. */
BYRE_EXPORT BYRE_MUST_USE int byre_clone(struct byre_image *image, uint64_t src, uint64_t dst, uint64_t len);
/* Everything acknowledged before the call is durable when it returns 0. */
BYRE_EXPORT BYRE_MUST_USE int byre_flush(struct byre_image *image);

enum byre_prealloc { BYRE_PREALLOC_OFF = 0, BYRE_PREALLOC_METADATA = 1, BYRE_PREALLOC_FALLOC = 2, BYRE_PREALLOC_FULL = 3 };
/* "off", "metadata", "falloc", "full" to enum byre_prealloc; -EINVAL for any other word. */
BYRE_EXPORT int byre_prealloc_parse(const char *word);
/* Sets the size in bytes (a multiple of 512, but for raw images). Shrinking discards what lies behind. */
BYRE_EXPORT BYRE_MUST_USE int byre_resize(struct byre_image *image, uint64_t size, int prealloc, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
