/* SPDX-License-Identifier: MIT
 *
 * mem.c: the simulator's own memory.
 *
 * Purpose      Allocation that never fails and is invisible to the allocation faults.
 * Owns         Nothing.
 * Invariants   The hooks below are the C library's, or in the fault runner the unwrapped ones: the symbol
 *              __real_malloc exists only where the linker wraps malloc, hence the weak references.
 * Order        None.
 * Concurrency  Any thread.
 * Failure      abort().
 * Tests        tests/faults/test_faults.py and all tests of the simulator; faults-alloc proves that its calls are not counted
 */
#include "sim/mem.h"

#include <stdlib.h>
#include <string.h>

extern void *__real_malloc(size_t) __attribute__((weak));
extern void *__real_realloc(void *, size_t) __attribute__((weak));
extern void __real_free(void *) __attribute__((weak));

void *sim_mem_alloc(size_t bytes)
{
    void *p = __real_malloc ? __real_malloc(bytes ? bytes : 1) : malloc(bytes ? bytes : 1);
    if (!p)
        abort();
    return memset(p, 0, bytes);
}

void *sim_mem_realloc(void *p, size_t bytes)
{
    void *q = __real_realloc ? __real_realloc(p, bytes ? bytes : 1) : realloc(p, bytes ? bytes : 1);
    if (!q)
        abort();
    return q;
}

void sim_mem_free(void *p)
{
    if (__real_free)
        __real_free(p);
    else
        free(p);
}
