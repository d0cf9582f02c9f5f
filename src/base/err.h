/* SPDX-License-Identifier: MIT
 *
 * err.h: reasons and the one expression that reports them (STYLE.md, Errors).
 *
 *     return byre_fail(err, Q2_L2_UNALIGNED, "%s: L1[%u] points to %#" PRIx64, name, i, off);   -> -EIO
 *
 * The reason row gives the errno, the stable name of JSON output, and the documentation row.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <errno.h>
#include <stdarg.h>

#include "byre/error.h"

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* X(reason, errno, meaning): add rows freely, keep groups together. */
#define BYRE_REASONS(X)                                                                     \
    X(NOMEM, ENOMEM, "memory ran out")                                                      \
    X(IO, EIO, "the storage below failed")                                                  \
    X(SYSTEM, EIO, "a system call failed (the code holds its errno)")                       \
    X(BAD_ARGUMENT, EINVAL, "an argument is not acceptable")                                \
    X(BAD_OPTION, EINVAL, "an option is unknown or its value is not acceptable")            \
    X(NOT_SUPPORTED, ENOTSUP, "not supported (yet)")                                        \
    X(BAD_SIZE, EINVAL, "a size is malformed or out of range")                              \
    X(READ_ONLY, EROFS, "the image is open read-only")                                      \
    X(LOCKED, EAGAIN, "another process holds a lock on the image")                          \
    X(NO_SPACE, ENOSPC, "no space left")                                                    \
    X(BUSY, EBUSY, "something else is being done with it")                                  \
    X(NOT_FOUND, ENOENT, "no such file or object")                                          \
    X(EXISTS, EEXIST, "the name is taken")                                                  \
    X(BAD_FORMAT, EINVAL, "the file is not of the stated format")                           \
    X(UNKNOWN_FORMAT, EINVAL, "no format of that name")                                     \
    X(CANCELLED, ECANCELED, "cancelled")                                                    \
    X(FLUSH_LATCHED, EIO, "an earlier flush failed; what it covered is unknown (RG27)")     \
    X(BACKING_LOOP, ELOOP, "a backing chain contains itself (RG22)")                        \
    X(BACKING_DEPTH, EMLINK, "a backing chain is deeper than the limit (RG22)")             \
    X(BACKING_FORMAT, EINVAL, "a backing format is missing or not acceptable")              \
    X(BACKING_OPEN, EIO, "a backing file cannot be opened")                                 \
    X(REFUSED_REFERENCE, EPERM, "the image names a file that policy forbids")               \
    X(PERMISSION, EPERM, "conflicting use of a node")                                       \
    X(PROBED_RAW, EPERM, "the format was guessed as raw")                                   \
    X(Q2_HEADER, EINVAL, "a header field is out of range")                                  \
    X(Q2_EXTENSION, EINVAL, "a header extension is malformed")                              \
    X(Q2_FEATURE, ENOTSUP, "an incompatible feature is not supported")                      \
    X(Q2_TABLE, EINVAL, "a metadata table is out of range")                                 \
    X(Q2_CORRUPT, EIO, "metadata is corrupt")                                               \
    X(Q2_MARKED_CORRUPT, EACCES, "the image is marked corrupt")                             \
    X(Q2_REFCOUNT_RANGE, EINVAL, "a refcount does not fit its width")                       \
    X(Q2_BITMAPS, EINVAL, "the bitmap directory is malformed")                              \
    X(BITMAP_BUSY, EBUSY, "a bitmap is in use by a job or an export")                       \
    X(BITMAP_INCONSISTENT, EINVAL, "a bitmap was not stored when it was last in use")       \
    X(Q2_SNAPSHOTS, EINVAL, "the snapshot table is malformed")                              \
    X(QED_HEADER, EINVAL, "a header field of a QED image is out of range")                  \
    X(QED_FEATURE, ENOTSUP, "a feature of a QED image is not supported")                    \
    X(NO_SECRET, EINVAL, "an encrypted image needs a secret that was not given")            \
    X(WRONG_SECRET, EACCES, "a passphrase opens no key slot")                               \
    X(PROTOCOL, EPROTO, "the peer broke the protocol")                                      \
    X(LIMIT, E2BIG, "a limit was reached")                                                  \
    X(DEPENDENTS, EBUSY, "other images depend on what is to be changed")                   \
    X(QED_CORRUPT, EIO, "structures of a QED image contradict each other")

enum byre_reason {
#define X(name, code, text) BYRE_R_##name,
    BYRE_REASONS(X)
#undef X
    BYRE_R_COUNT
};

/* Fills *err (if not NULL) and returns the reason's negative errno. Runs to completion. */
int byre_fail_(struct byre_err *err, enum byre_reason why, int code, const char *fmt, ...) PRINTF_LIKE(4, 5);
int byre_reason_errno(enum byre_reason why);          /* positive errno of the row */
const char *byre_reason_name(enum byre_reason why);
const char *byre_reason_text(enum byre_reason why);

#define byre_fail(err, why, ...) byre_fail_((err), BYRE_R_##why, 0, __VA_ARGS__)
/* The same with an errno of its own (negative): for SYSTEM, IO and wrapped failures. */
#define byre_fail_code(err, why, code, ...) byre_fail_((err), BYRE_R_##why, (code), __VA_ARGS__)

#endif
