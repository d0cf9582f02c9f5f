/* SPDX-License-Identifier: MIT
 *
 * size.h: sizes as people write and read them.
 *
 * Grammar of size_parse:  [blanks] [+] (DIGITS [. DIGITS] | . DIGITS | 0x HEXDIGITS) [b|B|k|K|m|M|g|G|t|T|p|P|e|E]
 * Suffixes are powers of 1024. A fraction is cut down to whole bytes; without a suffix above b it must be zero.
 * 'b' and 'e' behind 0x are digits. No octal, no exponent, no sign but +.
 */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stdint.h>

#include "base/err.h"

/* All of s must be a size. -EINVAL: malformed; -ERANGE: does not fit 64 bits. *ret untouched on failure. */
MUST_USE int size_parse(const char *s, uint64_t *ret_bytes);
/* The same, with *ret_end set behind the size instead of demanding the end of the string. */
MUST_USE int size_parse_prefix(const char *s, uint64_t *ret_bytes, const char **ret_end);

#define SIZE_TEXT_MAX 48
/* "64 KiB", "1.5 GiB", "0.977 MiB", "512 B": three significant digits, the way the ecosystem prints them.
 * Returns out. */
char *size_format(uint64_t bytes, char out[SIZE_TEXT_MAX]);

#endif
