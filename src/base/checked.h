/* SPDX-License-Identifier: MIT
 *
 * checked.h: arithmetic that says when it overflows, and the roundings that every layer needs.
 */
#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

/* true on overflow; *ret is then unspecified */
static inline bool add_overflows(uint64_t a, uint64_t b, uint64_t *ret) { return __builtin_add_overflow(a, b, ret); }
static inline bool mul_overflows(uint64_t a, uint64_t b, uint64_t *ret) { return __builtin_mul_overflow(a, b, ret); }
static inline bool is_pow2(uint64_t v) { return v && !(v & (v - 1)); }
static inline uint64_t round_down(uint64_t v, uint64_t pow2) { return v & ~(pow2 - 1); }
static inline uint64_t round_up(uint64_t v, uint64_t pow2) { return (v + pow2 - 1) & ~(pow2 - 1); }
static inline uint64_t div_up(uint64_t v, uint64_t by) { return v / by + (v % by != 0); }
static inline bool is_aligned(uint64_t v, uint64_t pow2) { return !(v & (pow2 - 1)); }
static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }
/* is [off, off+len) inside [0, limit)? */
static inline bool range_inside(uint64_t off, uint64_t len, uint64_t limit) { return off <= limit && len <= limit - off; }

#endif
