/* SPDX-License-Identifier: MIT
 *
 * snapshot.h: snapshots inside an image (qcow2). byre_info_get lists them; byre_open_opts.snapshot opens one for reading.
 *
 * Each call does all of it or nothing, also when the power fails; it is durable when it returns 0. Requests that are made
 * meanwhile wait. Time and memory follow the image's tables, not its data.
 */
#ifndef BYRE_SNAPSHOT_H
#define BYRE_SNAPSHOT_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which one? By `id`, by `name`, or by both, which must both fit; or by `any`: an id or a name. With several of that name
 * the first. */
struct byre_snapshot_pick {
    size_t struct_size;
    const char *id, *name, *any;
    int name_first;              /* `any` is a name if there is one, else an id; 0: the other way round */
};
BYRE_DEFINE_INIT(byre_snapshot_pick)

enum { BYRE_SNAPSHOT_UNIQUE = 1u << 0 /* the name must not be empty or taken */ };

struct byre_snapshot_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_SNAPSHOT_* */
    const char *name;            /* at most 255 bytes of UTF-8; NULL: empty */
    uint32_t date_sec, date_nsec;   /* since 1970; both 0: now */
};
BYRE_DEFINE_INIT(byre_snapshot_opts)

/* A new snapshot of the disk as it is. Its id is the next free number. */
BYRE_EXPORT BYRE_MUST_USE int byre_snapshot_create(struct byre_image *image, const struct byre_snapshot_opts *opts, struct byre_err *err);
/* The disk becomes what the snapshot holds, its size too. What was written since the last snapshot is lost. */
BYRE_EXPORT BYRE_MUST_USE int byre_snapshot_apply(struct byre_image *image, const struct byre_snapshot_pick *pick, struct byre_err *err);
/* Deletes the snapshot; what it alone held becomes free. */
BYRE_EXPORT BYRE_MUST_USE int byre_snapshot_delete(struct byre_image *image, const struct byre_snapshot_pick *pick, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
