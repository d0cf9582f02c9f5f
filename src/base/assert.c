/* SPDX-License-Identifier: MIT
 *
 * assert.c: the end of a process whose invariants do not hold.
 *
 * Purpose      Says which check failed and aborts. The only place of the library that writes to standard error.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any thread; async-signal-safe apart from snprintf
 * Failure      does not return
 * Tests        err_test.c (in a child process)
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"

_Noreturn void base_assert_fail(const char *what, const char *cond, const char *file, int line)
{
    char text[512];
    int n = snprintf(text, sizeof text, "byre: %s:%d: %s failed: %s\n", file, line, what, cond);
    if (n > (int)sizeof text - 1)
        n = (int)sizeof text - 1;
    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0)
        abort();
    abort();
}
