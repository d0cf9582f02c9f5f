/* SPDX-License-Identifier: MIT
 *
 * lk_new.c: a new header, where there is none, or over another one.
 *
 * Purpose      Makes a key and the first key slot for it.
 * Owns         Key material while a call runs, all of it in memory of secret_new.
 * Invariants   N1  Where a header is written over another, the file holds one of the two at each instant, whole: the material of the new slot goes
 *                  where no active slot of the old header has its own, then the first sector makes it the new header, whatever the second one says
 *                  (its slots are inactive, or active and of no use). What was of the old header goes after that.
 *              N2  In the end slot 0 is the one that is active. Until then the other one is its spare (lk_spare.c).
 * Order        Material, flush, header (Q26, Q28). N1: material, flush, first sector, flush, second sector, flush; then the rest.
 * Concurrency  Home loop of the image.
 * Failure      What was written of a new header is nothing without its first sector.
 * Tests        luks_test.c (every write torn), tests/daemon/luks_header_test.py, tests/interop/test_luks.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"

static int make_uuid(char uuid[41])
{
    uint8_t b[16];
    int r = secret_random(b, sizeof b);
    b[6] = (b[6] & 0x0f) | 0x40;             /* version 4, random */
    b[8] = (b[8] & 0x3f) | 0x80;
    size_t at = 0;
    for (unsigned i = 0; i < sizeof b; i++)
        at += (size_t)snprintf(uuid + at, 41 - at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    return r;
}

int lk_new_key(struct co *co, const struct lk_area *a, struct lk_header *h, uint64_t iter_time_ms, uint8_t **ret_key, struct byre_err *err)
{
    uint8_t *key = secret_new(h->key_bytes);
    int r = key ? secret_random(key, h->key_bytes) : -ENOMEM;
    if (r == 0)
        r = secret_random(h->digest_salt, sizeof h->digest_salt);
    if (r == 0)
        r = make_uuid(h->uuid);
    if (r == 0)
        r = lk_pbkdf2_calibrate(co, h->hash, LK_DIGEST_BYTES, iter_time_ms / 8, &h->digest_iterations);
    if (r == 0)
        r = lk_digest(co, h, key, h->digest);
    if (r == 0) {
        *ret_key = key;
        return 0;
    }
    secret_free(key);
    return lk_failed(a, "make a key", r, err);
}

int lk_new_slot(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_filling *f, struct byre_err *err)
{
    int r = lk_fill_slot(co, a, h, 0, f);
    return r < 0 ? lk_failed(a, "write the LUKS header", r, err) : 0;
}

int lk_put_header(struct co *co, const struct lk_area *a, const struct lk_header *h, struct byre_err *err)
{
    uint8_t *buf = calloc(1, LK_HEAD_BYTES);
    int r = buf ? 0 : -ENOMEM;
    if (r == 0) {
        lk_header_emit(h, buf);
        r = stor_write_buf(co, a->store, buf, LK_HEAD_BYTES, a->base, 0);
    }
    free(buf);
    return r < 0 ? lk_failed(a, "write the LUKS header", r, err) : 0;
}

int lk_format(struct co *co, const struct lk_area *a, struct lk_header *h, const struct secret *pass, uint64_t iter_time_ms, struct byre_err *err)
{
    struct lk_filling f = { .pass = pass, .iter_time_ms = iter_time_ms };
    uint8_t *key = NULL;
    int r = lk_new_key(co, a, h, iter_time_ms, &key, err);
    f.key = key;
    if (r == 0)
        r = lk_new_slot(co, a, h, &f, err);
    secret_free(key);
    return r ? r : lk_put_header(co, a, h, err);
}

/* ---- over another header ---- */

struct over {
    uint8_t now[LK_HEAD_BYTES], then[LK_HEAD_BYTES], between[LK_HEAD_BYTES];
    struct lk_header old;
};

static bool apart(const struct lk_header *h, unsigned i, const struct lk_header *old, unsigned k)
{
    uint64_t x = h->slot[i].off, y = old->slot[k].off;
    return !old->slot[k].active || x + lk_material_bytes(h->key_bytes, h->slot[i].stripes) <= y || y + lk_material_bytes(old->key_bytes, old->slot[k].stripes) <= x;
}

/* N1: can slot i be the first one? Then o has what the header is to be, and is between its two sectors. */
static bool fits(const struct lk_area *a, const struct lk_header *h, unsigned i, struct over *o)
{
    struct lk_header h2 = *h, seen;
    bool good = !o->old.payload_off || h->slot[i].off + lk_material_bytes(h->key_bytes, h->slot[i].stripes) <= o->old.payload_off;
    for (unsigned k = 0; k < LK_SLOTS; k++)
        good = good && apart(h, i, &o->old, k);
    h2.slot[i].active = true;
    h2.slot[i].iterations = 1;
    lk_header_emit(&h2, o->then);
    memcpy(o->between, o->then, LK_SECTOR);
    memcpy(o->between + LK_SECTOR, o->now + LK_SECTOR, LK_SECTOR);
    return good && lk_header_parse(o->between, LK_HEAD_BYTES, a->len, a->name, &seen, NULL) == 0 && seen.slot[i].active && seen.slot[i].off == h->slot[i].off;
}

/* No active slot of the old header has its material where the new slot has: what lies there is of no use to anybody. */
static int erase_old(struct co *co, const struct lk_area *a, const struct lk_header *old)
{
    int r = 0;
    for (unsigned k = 0; k < LK_SLOTS && r == 0; k++) {
        uint64_t bytes = old->slot[k].active ? lk_material_bytes(old->key_bytes, old->slot[k].stripes) : 0;
        uint8_t *junk = bytes ? malloc(bytes) : NULL;
        if (bytes && !junk)
            return -ENOMEM;
        r = bytes ? secret_random(junk, bytes) : 0;
        if (r == 0 && bytes)
            r = stor_write_buf(co, a->store, junk, bytes, a->base + old->slot[k].off, 0);
        free(junk);
    }
    return r ? r : a->flush(co, a->arg);
}

static int write_over(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, const struct lk_filling *f, struct over *o)
{
    uint8_t after[LK_SALT_BYTES], marked[LK_SALT_BYTES];
    struct lk_filling first = *f, last = *f;
    first.salt = marked;
    last.salt = after;
    int r = secret_random(after, sizeof after);
    if (r == 0)
        r = lk_spare_salt(h, 0, after, marked);
    if (r == 0)
        r = lk_fill_slot(co, a, h, i, i ? &first : f);
    lk_header_emit(h, o->then);
    for (unsigned s = 0; s < 2 && r == 0; s++)
        r = lk_put_sector(co, a, o->now, o->then, s);
    if (r == 0)
        r = erase_old(co, a, &o->old);
    if (r == 0 && i)
        r = lk_add_slot(co, a, h, 0, &last);
    return r == 0 && i ? lk_erase_slots(co, a, h, 1u << i) : r;
}

int lk_replace(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_filling *f, struct byre_err *err)
{
    struct over *o = calloc(1, sizeof *o);
    struct iovec slot;
    unsigned i = 0;
    int r = o ? stor_read(co, a->store, iov_one(&slot, o->now, sizeof o->now), a->base) : -ENOMEM;
    if (r >= 0)
        r = lk_header_parse(o->now, sizeof o->now, a->len, a->name, &o->old, NULL) ? -EAGAIN : 0;
    while (r == 0 && i < LK_SLOTS - 2 && !fits(a, h, i, o))      /* the last two are in the second sector */
        i++;
    if (r == 0)
        r = i < LK_SLOTS - 2 ? write_over(co, a, h, i, f, o) : -EAGAIN;
    free(o);
    return r < 0 && r != -EAGAIN ? lk_failed(a, "write the LUKS header", r, err) : r;
}
