/* SPDX-License-Identifier: MIT
 *
 * driver.h: the parts of the driver byre-sim.
 */
#ifndef SIM_DRIVER_H
#define SIM_DRIVER_H

struct sim_mutant_opts {
    unsigned seconds;                    /* at most for each mutant; 0: 300 */
    unsigned jobs;
    const char *only;                    /* one mutant by name; NULL: all */
    const char *out;                     /* folder for the cases that caught them; NULL: none */
    const char *known;                   /* file that explains the survivors (docs/internals/ordering.md); NULL: none may survive */
};
/* Runs every mutant until the explorer catches it. Exit code. */
int sim_mutants(const struct sim_mutant_opts *o);

#endif
