/* SPDX-License-Identifier: MIT
 *
 * q2_plan.h: where everything lies in a fresh image, and which bytes. Pure: options in, a value out. q2_create.c
 * writes it, q2_measure.c only looks at its sizes.
 *
 * Clusters, in this order and without gaps:
 *     header | refcount table | refcount blocks | L1 table | LUKS header | L2 tables | data
 * L2 tables and data are there with preallocation only, the LUKS header with encryption. Every cluster has refcount 1.
 */
#ifndef Q2_PLAN_H
#define Q2_PLAN_H

#include "fmt/luks/lk_header.h"
#include "fmt/qcow2/q2_image.h"

struct q2_plan {
    struct q2_geom g;
    struct q2_header h;              /* to emit; strings owned by the plan */
    struct lk_header *crypt;         /* owned; NULL: no encryption */
    enum fmt_prealloc prealloc;
    /* first cluster and number of clusters of each part */
    uint64_t rt_first, rt_count, blocks_first, blocks_count, l1_first, l1_count, crypt_first, crypt_count, l2_first, l2_count, data_first, data_count;
    uint64_t mapped;                 /* guest clusters that L2 tables name; they lie in `data`, or in the external data file */
    uint64_t clusters;               /* all of them: the file has clusters * cluster_size bytes */
};

/* Is this the sum of all parts, refcounts for themselves included? crypt_count is set before. Sizes only; cannot fail for
 * sizes below 2^61. */
void q2_plan_layout(struct q2_plan *p, uint64_t virtual_size, bool preallocate);
/* Checks every option and lays the image out. sizes_only: for measure: names are not
 * needed. -EINVAL, -ENOTSUP, -ENOMEM name option and value. */
MUST_USE int q2_plan_make(const struct fmt_create_opts *o, bool sizes_only, struct q2_plan *ret, struct byre_err *err);
void q2_plan_fini(struct q2_plan *p);
/* Bytes of metadata clusters [first, first + n) behind the header and before the data; n * cluster_size bytes. */
void q2_plan_fill(const struct q2_plan *p, uint64_t first, uint64_t n, uint8_t *buf);

#endif
