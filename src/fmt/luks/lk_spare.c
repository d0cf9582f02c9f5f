/* SPDX-License-Identifier: MIT
 *
 * lk_spare.c: how a spare key slot is known again that a crash has left.
 *
 * Purpose      While an active key slot is overwritten, another one holds the key under the new passphrase (S3 of lk_slots.c). The format has no
 *              word for that; the salt of the slot, which is anybody's choice, has one that only we read.
 * Owns         Nothing.
 * Invariants   M1  A mark binds the spare to a slot, to the salt which that one has before, or to the salt that it is going to get. So a slot
 *                  that another program has written since is nobody's spare, and none has a spare.
 *              M2  64 bits of each mark are compared: a salt that was drawn at random is not taken for one.
 * Concurrency  Pure.
 * Failure      Random bytes that cannot be had: -errno.
 * Tests        luks_test.c (left_spares), crash explorer (geometries *-luks)
 */
#include <string.h>

#include "base/mutant.h"
#include "fmt/luks/lk.h"

#define MARK_BYTES (LK_SALT_BYTES / 4)       /* of random bytes in front, and of each mark */

static void make_mark(const struct lk_header *h, const uint8_t *random, unsigned of, enum lk_mark what, const uint8_t *salt, uint8_t *ret)
{
    static const char text[] = "spare key slot";
    uint8_t in[sizeof text + MARK_BYTES + 2 + LK_SALT_BYTES] = { 0 }, out[LK_HASH_BYTES_MAX], *p = in;
    p = (uint8_t *)memcpy(p, text, sizeof text) + sizeof text;
    p = (uint8_t *)memcpy(p, random, MARK_BYTES) + MARK_BYTES;
    *p++ = (uint8_t)of;
    *p++ = (uint8_t)what;
    if (what != LK_MARK_FOR)
        memcpy(p, salt, LK_SALT_BYTES);
    lk_hash_run(h->hash, in, sizeof in, out);
    memcpy(ret, out, MARK_BYTES);
}

int lk_spare_salt(const struct lk_header *h, unsigned of, const uint8_t *after, uint8_t ret[LK_SALT_BYTES])
{
    int r = secret_random(ret, MARK_BYTES);
    for (unsigned what = LK_MARK_FOR; what <= LK_MARK_AFTER; what++)
        make_mark(h, ret, of, what, what == LK_MARK_AFTER ? after : h->slot[of].salt, ret + what * MARK_BYTES);
    return r;
}

static bool is_spare(const struct lk_header *h, unsigned k, unsigned of, enum lk_mark what)
{
    uint8_t mark[MARK_BYTES];
    if (k == of || !h->slot[k].active || (what != LK_MARK_FOR && !h->slot[of].active))
        return false;
    make_mark(h, h->slot[k].salt, of, what, h->slot[of].salt, mark);
    return !memcmp(mark, h->slot[k].salt + what * MARK_BYTES, MARK_BYTES);
}

unsigned lk_spares(const struct lk_header *h, int of, enum lk_mark what, unsigned *ret_of)
{
    unsigned mask = 0;
    for (unsigned i = 0; i < LK_SLOTS && !MUTANT(MUT_KEY_SPARE_STAYS); i++)
        for (unsigned k = 0; k < LK_SLOTS && (of < 0 || i == (unsigned)of); k++)
            if (is_spare(h, k, i, what)) {
                mask |= 1u << k;
                *ret_of = i;
            }
    return mask;
}
