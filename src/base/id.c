/* SPDX-License-Identifier: MIT
 *
 * id.c: the rule for names that users give.
 *
 * Purpose      One rule for all of them.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any thread
 * Failure      none
 * Tests        util_test.c
 */
#include "base/id.h"

bool id_is_good(const char *id, size_t max)
{
    size_t len = 0;
    for (; id[len]; len++) {
        char c = id[len];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool other = (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
        if (len >= max || (!letter && (!other || len == 0)))
            return false;
    }
    return len > 0;
}
