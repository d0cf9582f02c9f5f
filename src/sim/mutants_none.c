/* SPDX-License-Identifier: MIT
 *
 * mutants_none.c: in the ordinary driver there are no mutants.
 *
 * Purpose      Says so.
 * Owns         Nothing.
 * Invariants   None.
 * Order        None.
 * Concurrency  None.
 * Failure      Exit code 2.
 * Tests        none needed
 */
#include <stdio.h>

#include "sim/driver.h"

int sim_mutants(const struct sim_mutant_opts *o)
{
    (void)o;
    fputs("this program has no mutants; byre-sim-mutants has\n", stderr);
    return 2;
}
