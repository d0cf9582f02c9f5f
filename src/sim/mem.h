/* SPDX-License-Identifier: MIT
 *
 * mem.h: memory of the simulator itself. It never fails (the test program ends instead) and does not pass through
 * malloc's wrappers, so that a test that fails the n-th allocation counts those of the engine alone.
 */
#ifndef SIM_MEM_H
#define SIM_MEM_H

#include <stddef.h>

void *sim_mem_alloc(size_t bytes);                   /* zeroed */
void *sim_mem_realloc(void *p, size_t bytes);        /* what is gained is not zeroed */
void sim_mem_free(void *p);

/* Grows an array of n elements so that one more fits. */
#define SIM_PUSH_ROOM(arr, n, cap)                                                                         \
    ((n) < (cap) ? (void)0                                                                                 \
                 : (void)((cap) = (cap) ? (cap) * 2 : 16, (arr) = (__typeof__(arr))sim_mem_realloc((arr), (cap) * sizeof *(arr))))

#endif
