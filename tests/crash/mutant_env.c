/* SPDX-License-Identifier: MIT
 *
 * mutant_env.c: for unit tests built with mutants: the number of the living one is in BYRE_MUTANT.
 */
#include <stdlib.h>

#include "base/mutant.h"
#include "meta/meta.h"

int byre_mutant_alive(int id)
{
    const char *s = getenv("BYRE_MUTANT");
    if (!s)
        return 0;
    if (__builtin_strcmp(s, "BARRIER_CUT") == 0)
        return id == MUT_BARRIER(META_B_CUT);
#define X(name, rule, text) || (__builtin_strcmp(s, #name) == 0 && id == MUT_##name)
    return 0 BYRE_MUTANT_ROWS(X);
#undef X
}
