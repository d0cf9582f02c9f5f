/* SPDX-License-Identifier: MIT
 *
 * fx_arm.h: allocations of the engine as calls of a simulated machine that can fail (SIM_C_ALLOC), in programs that wrap them.
 */
#ifndef SIM_FX_ARM_H
#define SIM_FX_ARM_H

#include "sim/world.h"

#ifdef ALLOC_FAULTS
#include "sim/fx_alloc.h"

static bool fx_refuses(void *arg) { return sim_fault(arg, SIM_C_ALLOC) != 0; }
#endif

/* From now on they are; or not any more. Programs whose allocations are not wrapped have none that can fail. */
static inline void fx_arm(struct sim_world *w, bool on)
{
#ifdef ALLOC_FAULTS
    fx_alloc.refuses = fx_refuses;
    fx_alloc.arg = w;
    fx_alloc.armed = on;
#else
    (void)w;
    (void)on;
#endif
}

#endif
