/* SPDX-License-Identifier: MIT
 *
 * fx_alloc.c: allocation wrappers (linked with --wrap).
 *
 * Purpose      Refuses the n-th allocation of the engine, once or from then on; counts what stays allocated.
 * Owns         fx_alloc.
 * Invariants   What was allocated through a wrapper is freed through one.
 * Order        None.
 * Concurrency  One thread.
 * Failure      NULL or ENOMEM, as asked for.
 * Tests        byre-faults counts at least one allocation per opening (test_faults.py).
 */
#include "sim/fx_alloc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

struct fx_alloc fx_alloc;

static bool refuse(void)
{
    struct fx_alloc *a = &fx_alloc;
    if (!a->armed)
        return false;
    if (a->refuses)
        return a->refuses(a->arg);
    a->calls++;
    if (!a->nth || a->calls < a->nth || (a->calls > a->nth && !a->forever))
        return false;
    a->hits++;
    return true;
}

static void *got(void *p)
{
    fx_alloc.live += p != NULL;
    if (!p)
        errno = ENOMEM;
    return p;
}

#define WRAP(fn, params, args)                          \
    void *__real_##fn params;                           \
    void *__wrap_##fn params;                           \
    void *__wrap_##fn params { return got(refuse() ? NULL : __real_##fn args); }
WRAP(malloc, (size_t n), (n))
WRAP(calloc, (size_t n, size_t m), (n, m))
WRAP(aligned_alloc, (size_t a, size_t n), (a, n))

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    void *q = refuse() ? NULL : __real_realloc(p, n);
    return p && q ? q : p ? (errno = ENOMEM, NULL) : got(q);
}

void *__wrap_reallocarray(void *p, size_t n, size_t m);
void *__wrap_reallocarray(void *p, size_t n, size_t m)
{
    size_t bytes;
    return __builtin_mul_overflow(n, m, &bytes) ? NULL : __wrap_realloc(p, bytes);
}

int __real_posix_memalign(void **p, size_t a, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n)
{
    if (refuse())
        return ENOMEM;
    int r = __real_posix_memalign(p, a, n);
    fx_alloc.live += r == 0;
    return r;
}

char *__wrap_strdup(const char *s);
char *__wrap_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = __wrap_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

char *__wrap_strndup(const char *s, size_t max);
char *__wrap_strndup(const char *s, size_t max)
{
    size_t n = strnlen(s, max);
    char *p = __wrap_malloc(n + 1);
    if (!p)
        return NULL;
    p[n] = 0;
    return memcpy(p, s, n);
}

/* Stacks of coroutines. They are kept in a pool, so they are not counted as blocks. */
void *__real_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off)
{
    if (refuse()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return __real_mmap64(a, n, prot, flags, fd, off);
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    fx_alloc.live -= p != NULL;
    __real_free(p);
}

void *fx_plain_malloc(size_t n) { return __real_malloc(n); }
void *fx_plain_calloc(size_t n, size_t m) { return __real_calloc(n, m); }
void *fx_plain_realloc(void *p, size_t n) { return __real_realloc(p, n); }
void *fx_plain_aligned_alloc(size_t a, size_t n) { return __real_aligned_alloc(a, n); }
void fx_plain_free(void *p) { __real_free(p); }
