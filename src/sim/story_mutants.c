/* SPDX-License-Identifier: MIT
 *
 * story_mutants.c: for stories whose engine is built with mutants: BYRE_MUTANT names the one that is alive.
 *
 * Purpose     A row of base/mutant.h, "BARRIER_FINAL", or "MIRROR_FAULT_1", "BACKUP_FAULT_2" and so on: the faults of src/job/mirror.c and backup.c that
 *             mirror_test.c and backup_test.c know.
 * Owns        Nothing.
 * Invariants  M1 of mutants.c: it is alive only while a story is recorded.
 * Concurrency One thread.
 * Failure     An unknown name is no mutant: all stories are right, which the test notices.
 * Tests       tests/sim/stories_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "meta/meta.h"
#include "sim/world.h"

extern int mirror_fault, backup_fault;
int mirror_fault, backup_fault;

static int fault_number(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    return name && !strncmp(name, prefix, n) ? name[n] - '0' : 0;
}

__attribute__((constructor)) static void choose(void)
{
    const char *name = getenv("BYRE_MUTANT");
    mirror_fault = fault_number(name, "MIRROR_FAULT_");
    backup_fault = fault_number(name, "BACKUP_FAULT_");
}

int byre_mutant_alive(int id)
{
    const char *s = sim_recording ? getenv("BYRE_MUTANT") : NULL;
    if (!s)
        return 0;
    if (!strcmp(s, "BARRIER_FINAL"))
        return id == MUT_BARRIER(META_B_FINAL);
#define X(name, rule, text) || (id == MUT_##name && !strcmp(s, #name))
    return 0 BYRE_MUTANT_ROWS(X);
#undef X
}
