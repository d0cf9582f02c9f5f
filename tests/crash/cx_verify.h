/* SPDX-License-Identifier: MIT
 *
 * cx_verify.h: is one state what the guest was promised?
 */
#ifndef CX_VERIFY_H
#define CX_VERIFY_H

#include "cx_explore.h"

struct cx_verdict {
    bool bad;
    char why[300];
    uint64_t leak_bytes;
};

/* Verifies the bytes in w->image as the state of a crash at `cut`. Changes them (recovery, probes, repair).
 * nested: cut again inside the recovery. */
void cx_verify(struct cx_world *w, const struct cx_model *m, const struct cx_work *k, uint64_t cut, uint64_t snapshots, bool nested, struct cx_verdict *v);

#endif
