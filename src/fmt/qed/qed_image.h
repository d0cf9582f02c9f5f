/* SPDX-License-Identifier: MIT
 *
 * qed_image.h: the inside of an open QED image.
 *
 *   qed_geom.c     arithmetic
 *   qed_header.c   the header, parsed and checked
 *   qed_driver.c   opening, describing and closing
 *   qed_map.c      where is this guest range?
 *   qed_check.c    which rules does an image break?
 *   qed_create.c   writing a fresh image
 *
 * Images are opened for reading only so far.
 */
#ifndef QED_IMAGE_H
#define QED_IMAGE_H

#include "fmt/fmt.h"
#include "fmt/qed/qed_header.h"
#include "meta/meta.h"

#define QED_SLICE_BYTES 4096u                     /* unit in which L2 tables are cached; every table is a multiple of it */
#define QED_SLICE_ENTRIES (QED_SLICE_BYTES / 8)

struct qed_image {
    struct fmt_image im;                          /* first */
    char *name;                                   /* for messages */
    struct qed_header h;
    struct qed_geom g;
    _Atomic uint64_t file_end;                    /* whole clusters of the file; grows when somebody else writes behind (force-share) */
    struct meta *meta;
    struct meta_kind kind_l2;
    _Atomic uint64_t *l1;                         /* the entries that the size uses, in disk order */
    uint64_t l1_entries;
};

static inline struct qed_image *qed_of(struct fmt_image *im) { return (struct qed_image *)im; }

int qed_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
int qed_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
int qed_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err);

#endif
