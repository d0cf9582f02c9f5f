/* SPDX-License-Identifier: MIT
 *
 * sparse.c: runs of zeros in a buffer (FEATURES 5.031).
 *
 * Purpose     Cuts a buffer into what is stored and what becomes a hole.
 * Owns        Nothing.
 * Invariants  I1  The runs of successive calls cover the buffer.
 * Order       None.
 * Concurrency Pure.
 * Failure     None.
 * Tests       copy_test.c
 */
#include "base/iov.h"
#include "copy/copy_priv.h"

#define UNIT_MAX 4096u

uint64_t sparse_run(const uint8_t *buf, uint64_t len, uint64_t at, uint64_t min, bool *ret_zero)
{
    uint64_t unit = min_u64(min, UNIT_MAX), zero_from = 0, pos = 0;
    while (!is_pow2(unit))
        unit &= unit - 1;
    *ret_zero = false;
    while (pos < len) {
        uint64_t part = min_u64(unit - ((at + pos) & (unit - 1)), len - pos);
        if (!mem_is_zero(buf + pos, part)) {
            if (*ret_zero)
                return pos;
            zero_from = pos + part;
        } else if (pos + part - zero_from >= min) {
            if (zero_from)
                return zero_from;
            *ret_zero = true;
        }
        pos += part;
    }
    return len;
}
