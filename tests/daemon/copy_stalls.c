/* SPDX-License-Identifier: MIT
 *
 * copy_stalls.c: a library to preload: copies by the kernel take as long as a file is there.
 *
 *     COPY_STALLS=path     copy_file_range waits while path is there; each that does adds a byte to path.in before
 *
 * Purpose      A copy that stands still in the kernel, as over a server that does not answer.
 * Owns         Nothing.
 * Invariants   Without COPY_STALLS nothing changes.
 * Order        None.
 * Concurrency  Any threads.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        copy_stalled_test.py
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/types.h>

#include "stalls.h"

typedef ssize_t copy_fn(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags);

ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags)
{
    copy_fn *f = (copy_fn *)dlsym(RTLD_NEXT, "copy_file_range");
    if (!f)
        abort();
    stand_still(getenv("COPY_STALLS"));
    return f(in, in_off, out, out_off, len, flags);
}
