/* SPDX-License-Identifier: MIT
 *
 * fx_alloc.h: the engine's allocations, counted, and the n-th of them refused. The test's own sources are compiled with
 * malloc and its kin renamed to the functions below, so they are neither counted nor refused. The wrappers are in
 * tests/faults/fx_alloc.c, and in the programs of that folder alone.
 */
#ifndef FX_ALLOC_H
#define FX_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fx_alloc {
    bool armed;                          /* counts, and refuses as told below */
    uint64_t calls;                      /* made while armed */
    uint64_t nth;                        /* 1 = the first; 0: none is refused */
    bool forever;
    bool (*refuses)(void *arg);          /* decides in place of calls, nth and forever; NULL: they do */
    void *arg;
    uint64_t hits;
    long live;                           /* blocks that the engine holds, always counted */
};
extern struct fx_alloc fx_alloc;

void *fx_plain_malloc(size_t n);
void *fx_plain_calloc(size_t n, size_t m);
void *fx_plain_realloc(void *p, size_t n);
void *fx_plain_aligned_alloc(size_t a, size_t n);
void fx_plain_free(void *p);

#endif
