/* SPDX-License-Identifier: MIT
 *
 * guard.c: refuses what would change an image under others that depend on it.
 *
 * Purpose      The question before commands that change what an image shows; where records of overlays are kept.
 * Owns         nothing
 * Invariants   I1 called by the peer's name we only warn: there it would have been done
 * Concurrency  main thread
 * Failure      told; 1
 * Tests        tests/cli/tree_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "bin/bin.h"

const char *run_registry(void)
{
    const char *s = getenv("BYRE_REGISTRY");
    return s && s[0] && strcmp(s, "none") ? s : NULL;
}

bool run_records(const struct run *r)
{
    const char *s = getenv("BYRE_REGISTRY");
    return s && s[0] ? strcmp(s, "none") != 0 : !r->peer;
}

int run_guard(struct run *r, struct byre_image *image, const struct run_guard *g)
{
    struct byre_err err;
    if (g->force || !byre_guard_check(image, g->what, g->base, &err))
        return 0;
    if (!r->peer)
        return run_fail_err(r, &err);
    run_warn(r, "%s", err.text);
    return 0;
}
