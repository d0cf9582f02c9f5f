/* SPDX-License-Identifier: MIT
 *
 * q2_measure.c: how large will an image become?
 *
 * Purpose      The sizes of the fully allocated layout of q2_plan.h, which has exactly one place for everything.
 * Owns         Nothing.
 * Invariants   I1 required <= fully_allocated.
 * Order        None: no I/O.
 * Concurrency  Pure.
 * Failure      As q2_plan_make.
 * Tests        q2_plan_test.c, tests/interop/test_q2_create.py
 */
#include "fmt/qcow2/q2_plan.h"

int q2_measure(const struct fmt_create_opts *o, uint64_t data_bytes, struct fmt_measure *ret, struct byre_err *err)
{
    struct q2_plan p;
    int rc = q2_plan_make(o, true, &p, err);
    if (rc)
        return rc;
    q2_plan_layout(&p, p.h.size, true);
    uint64_t metadata = (p.clusters - p.data_count) << p.g.cluster_bits, all = p.data_count << p.g.cluster_bits;
    bool filled = o->prealloc == FMT_PREALLOC_FALLOC || o->prealloc == FMT_PREALLOC_FULL;
    *ret = (struct fmt_measure){
        .required = metadata + (filled ? all : min_u64(data_bytes, all)),
        .fully_allocated = metadata + all,
    };
    q2_plan_fini(&p);
    return 0;
}
