/* SPDX-License-Identifier: MIT
 *
 * cleanup.h: release at the end of a scope (STYLE.md).
 *
 *     AUTOFREE char *name = strdup(s);              freed when the scope ends
 *     CLEANUP(thing_freep) struct thing *t = ...;   thing_freep(&t) when the scope ends
 *     *ret = TAKE(t);                               hands t out: the variable is NULL afterwards
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <stdlib.h>

#define CLEANUP(fn) __attribute__((cleanup(fn)))
#define TAKE(p) __extension__({ __typeof__(p) take_ = (p); (p) = NULL; take_; })

static inline void base_freep(void *pp) { free(*(void **)pp); }
#define AUTOFREE CLEANUP(base_freep)

/* Defines fn##p(T **) for CLEANUP from a destructor that takes NULL. */
#define CLEANUP_DEF(T, fn) static inline void fn##p(T **pp) { fn(*pp); }

#endif
