/* SPDX-License-Identifier: MIT
 *
 * size.c: parsing and printing of sizes.
 *
 * Purpose      The grammar of size.h, parsed exactly in integers: no rounding surprises, no locale.
 * Owns         nothing
 * Invariants   I1 what size_parse accepts is below 2^64 and was not rounded up
 * Concurrency  any thread
 * Failure      -EINVAL, -ERANGE
 * Tests        size_test.c
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/size.h"

static const char units[] = "bkmgtpe";

static int digit_of(char c, unsigned base)
{
    int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
    return d < (int)base ? d : -1;
}

/* Reads digits; returns where they end. *over is set when the value does not fit. */
static const char *parse_whole(const char *s, unsigned base, uint64_t *v, bool *over)
{
    *v = 0;
    for (int d; (d = digit_of(*s, base)) >= 0; s++)
        if (mul_overflows(*v, base, v) || add_overflows(*v, (uint64_t)d, v))
            *over = true;
    return s;
}

/* Reads the digits of a fraction: the first 18 as num / 10^digits, of the rest only whether one is not 0. */
static const char *parse_fraction(const char *s, uint64_t *num, uint64_t *den, bool *nonzero)
{
    *num = 0;
    *den = 1;
    *nonzero = false;
    for (int d; (d = digit_of(*s, 10)) >= 0; s++) {
        *nonzero |= d != 0;
        if (*den < 1000000000000000000u) {
            *num = *num * 10 + (uint64_t)d;
            *den *= 10;
        }
    }
    return s;
}

/* Power of 1024 that the suffix names; -1: no suffix. */
static int suffix_power(char c)
{
    if (c >= 'A' && c <= 'Z')
        c = (char)(c - 'A' + 'a');
    const char *u = c ? strchr(units, c) : NULL;
    return u ? (int)(u - units) : -1;
}

int size_parse_prefix(const char *s, uint64_t *ret_bytes, const char **ret_end)
{
    uint64_t whole, num = 0, den = 1;
    bool over = false, frac = false;
    while (*s == ' ' || (*s >= '\t' && *s <= '\r'))
        s++;
    if (*s == '+')
        s++;
    bool hex = s[0] == '0' && (s[1] == 'x' || s[1] == 'X') && digit_of(s[2], 16) >= 0;
    const char *digits = hex ? s + 2 : s;
    const char *end = parse_whole(digits, hex ? 16 : 10, &whole, &over);
    bool any = end > digits;
    if (!hex && *end == '.') {
        const char *from = end + 1;
        end = parse_fraction(from, &num, &den, &frac);
        any |= end > from;
    }
    if (!any)
        return -EINVAL;
    int power = suffix_power(*end);
    if (power >= 0)
        end++;
    if (frac && power <= 0)
        return -EINVAL;
    unsigned shift = power > 0 ? 10u * (unsigned)power : 0;
    uint64_t part = (uint64_t)(((unsigned __int128)num << shift) / den);
    if (over || mul_overflows(whole, UINT64_C(1) << shift, &whole) || add_overflows(whole, part, &whole))
        return -ERANGE;
    *ret_bytes = whole;
    *ret_end = end;
    return 0;
}

int size_parse(const char *s, uint64_t *ret_bytes)
{
    uint64_t v;
    const char *end;
    int r = size_parse_prefix(s, &v, &end);
    if (r)
        return r;
    if (*end)
        return -EINVAL;
    *ret_bytes = v;
    return 0;
}

/* bytes / 1024^u * 10^decimals, rounded to nearest, ties to even (as printf does). */
static uint64_t scaled(uint64_t bytes, unsigned u, unsigned decimals)
{
    static const unsigned pow10[] = { 1, 10, 100, 1000 };
    unsigned __int128 num = (unsigned __int128)bytes * pow10[decimals];
    unsigned __int128 one = (unsigned __int128)1 << (10 * u), half = one / 2, rem = num & (one - 1);
    uint64_t q = (uint64_t)(num >> (10 * u));
    return q + (u && (rem > half || (rem == half && (q & 1))));
}

char *size_format(uint64_t bytes, char out[SIZE_TEXT_MAX])
{
    static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned u = 0, decimals = 0;
    while (u < 6 && scaled(bytes, u, 0) >= 1000)      /* the next unit from 1000 on: never four digits */
        u++;
    uint64_t whole = bytes >> (10 * u);
    if (u)
        decimals = whole >= 100 ? 0 : whole >= 10 ? 1 : whole >= 1 ? 2 : 3;
    uint64_t v = scaled(bytes, u, decimals), den = 1;
    for (unsigned i = 0; i < decimals; i++)
        den *= 10;
    for (; decimals && v % 10 == 0; decimals--, v /= 10)
        den /= 10;
    if (decimals)
        snprintf(out, SIZE_TEXT_MAX, "%" PRIu64 ".%0*" PRIu64 " %s", v / den, (int)decimals, v % den, names[u]);
    else
        snprintf(out, SIZE_TEXT_MAX, "%" PRIu64 " %s", v, names[u]);
    return out;
}
