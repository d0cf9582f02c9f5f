/* SPDX-License-Identifier: MIT
 *
 * assert.h: internal invariants. On in release builds. Never reachable from the bytes of an image or of a
 * peer: hostile input is refused with an error, not asserted.
 */
#ifndef BASE_ASSERT_H
#define BASE_ASSERT_H

#include <stddef.h>

_Noreturn void base_assert_fail(const char *what, const char *cond, const char *file, int line);

#define ASSERT(c) ((c) ? (void)0 : base_assert_fail("assertion", #c, __FILE__, __LINE__))
/* INV(I1, cond): cites an invariant of the head of the file or of the module's header. */
#define INV(id, c) ((c) ? (void)0 : base_assert_fail("invariant " #id, #c, __FILE__, __LINE__))
#define UNREACHABLE() base_assert_fail("unreachable", "", __FILE__, __LINE__)

#define DISK_SIZE(T, n) _Static_assert(sizeof(T) == (n), #T " has another size on disk")
#define DISK_OFF(T, f, n) _Static_assert(offsetof(T, f) == (n), #T "." #f " is elsewhere on disk")

#define LIKELY(c) __builtin_expect(!!(c), 1)
#define UNLIKELY(c) __builtin_expect(!!(c), 0)

#endif
