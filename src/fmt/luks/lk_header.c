/* SPDX-License-Identifier: MIT
 *
 * lk_header.c: parses and emits the LUKS1 header.
 *
 * Purpose      Decides which headers are acceptable; nobody behind it meets a length, an offset or a name that was not checked.
 * Owns         Nothing.
 * Invariants   I1  A parsed header has a suite that fits together, a known hash, a key of the right size.
 *              I2  Key material of a slot that is active or usable lies in the area, behind the header, and overlaps no other
 *                  such slot's.
 * Order        None: no I/O.
 * Concurrency  Pure.
 * Failure      One sentence that names file and field; *ret untouched.
 * Tests        luks_test.c, fuzz/luks_header
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk_header.h"

int lk_probe(const uint8_t *buf, size_t len)
{
    return len >= 8 && !memcmp(buf, LK_MAGIC, 6) && buf[6] == 0 && buf[7] == 1 ? 100 : 0;
}

uint64_t lk_material_bytes(uint32_t key_bytes, uint32_t stripes)
{
    return round_up((uint64_t)key_bytes * stripes, LK_SECTOR);
}

/* ---- parsing ---- */

struct parse { const char *name; struct byre_err *err; uint64_t area; };

/* A name of a fixed field as a string: ends in the field, printable, without blanks. */
static int take_text(struct parse *p, const char *what, const uint8_t *field, size_t bytes, char *ret)
{
    size_t n = strnlen((const char *)field, bytes);
    bool good = n < bytes;
    for (size_t i = 0; i < n && good; i++)
        good = field[i] > ' ' && field[i] < 0x7f;
    if (!good)
        return byre_fail(p->err, BAD_FORMAT, "%s: the %s in the LUKS header is no text", p->name, what);
    memcpy(ret, field, n + 1);
    return 0;
}

/* "xts-plain64", "cbc-essiv:sha256", "ecb" */
static int parse_mode(struct parse *p, char *text, struct lk_suite *s)
{
    char *iv = strchr(text, '-'), *hash = NULL, whole[33];
    memcpy(whole, text, sizeof whole);
    if (iv) {
        *iv++ = 0;
        hash = strchr(iv, ':');
        if (hash)
            *hash++ = 0;
    }
    if (lk_mode_parse(text, &s->mode) || (iv && lk_ivgen_parse(iv, &s->ivgen)))
        return byre_fail(p->err, NOT_SUPPORTED, "%s: the cipher mode '%s' is not supported", p->name, whole);
    s->iv_hash = hash ? lk_hash_by_name(hash) : NULL;
    if (hash && !s->iv_hash)
        return byre_fail(p->err, NOT_SUPPORTED, "%s: the hash '%s' of the cipher mode is not supported", p->name, hash);
    return 0;
}

static int parse_suite(struct parse *p, const struct lk_disk_header *d, struct lk_header *h)
{
    char cipher[33] = "", mode[33] = "", hash[33] = "";
    const char *why = NULL;
    h->key_bytes = be32_get(&d->key_bytes);
    int r = take_text(p, "cipher", d->cipher, sizeof d->cipher, cipher);
    if (!r)
        r = take_text(p, "cipher mode", d->mode, sizeof d->mode, mode);
    if (!r)
        r = take_text(p, "hash", d->hash, sizeof d->hash, hash);
    if (!r)
        r = parse_mode(p, mode, &h->suite);
    if (r)
        return r;
    uint32_t one = h->suite.mode == LK_XTS ? h->key_bytes / 2 : h->key_bytes;
    bool odd = h->suite.mode == LK_XTS && h->key_bytes % 2;
    h->suite.cipher = odd ? NULL : lk_cipher_by_name(cipher, one);
    if (!h->suite.cipher)
        return byre_fail(p->err, NOT_SUPPORTED, "%s: the cipher '%s' with a key of %" PRIu32 " bytes in mode '%s' is not supported",
                         p->name, cipher, h->key_bytes, lk_mode_name(h->suite.mode));
    if (lk_suite_check(&h->suite, &why))
        return byre_fail(p->err, BAD_FORMAT, "%s: cipher '%s': %s", p->name, cipher, why);
    h->hash = lk_hash_by_name(hash);
    return h->hash ? 0 : byre_fail(p->err, NOT_SUPPORTED, "%s: the hash '%s' is not supported", p->name, hash);
}

/* Is the place of slot i fit for key material (I2)? Others are compared when both are looked at. */
static bool place_ok(const struct parse *p, const struct lk_header *h, unsigned i)
{
    const struct lk_slot *s = &h->slot[i];
    uint64_t len = lk_material_bytes(h->key_bytes, s->stripes);
    return s->stripes && len <= LK_MATERIAL_MAX && s->off >= LK_HEAD_BYTES && range_inside(s->off, len, p->area);
}

static bool overlap(const struct lk_header *h, unsigned a, unsigned b)
{
    const struct lk_slot *x = &h->slot[a], *y = &h->slot[b];
    return x->off < y->off + lk_material_bytes(h->key_bytes, y->stripes) && y->off < x->off + lk_material_bytes(h->key_bytes, x->stripes);
}

static int parse_slots(struct parse *p, const struct lk_disk_header *d, struct lk_header *h)
{
    for (unsigned i = 0; i < LK_SLOTS; i++) {
        const struct lk_disk_slot *from = &d->slot[i];
        struct lk_slot *s = &h->slot[i];
        uint32_t active = be32_get(&from->active);
        if (active != LK_SLOT_ENABLED && active != LK_SLOT_DISABLED)
            return byre_fail(p->err, BAD_FORMAT, "%s: the state %#" PRIx32 " of key slot %u is not known", p->name, active, i);
        s->active = active == LK_SLOT_ENABLED;
        s->iterations = be32_get(&from->iterations);
        s->stripes = be32_get(&from->stripes);
        s->off = (uint64_t)be32_get(&from->material_sector) * LK_SECTOR;
        memcpy(s->salt, from->salt, sizeof s->salt);
        s->usable = place_ok(p, h, i);
        if (s->active && (!s->usable || !s->iterations))
            return byre_fail(p->err, BAD_FORMAT, "%s: key slot %u (%" PRIu32 " iterations, %" PRIu32 " stripes at offset %" PRIu64 ") is out of range",
                             p->name, i, s->iterations, s->stripes, s->off);
    }
    for (unsigned i = 0; i < LK_SLOTS; i++)
        for (unsigned k = 0; k < i; k++) {
            if (!h->slot[i].usable || !h->slot[k].usable || !overlap(h, i, k))
                continue;
            if (h->slot[i].active && h->slot[k].active)
                return byre_fail(p->err, BAD_FORMAT, "%s: the key slots %u and %u overlap", p->name, k, i);
            h->slot[h->slot[i].active ? k : i].usable = false;
        }
    return 0;
}

static int parse_into(struct parse *p, const struct lk_disk_header *d, struct lk_header *h)
{
    int r = parse_suite(p, d, h);
    if (r)
        return r;
    h->payload_off = (uint64_t)be32_get(&d->payload_sector) * LK_SECTOR;
    if (!p->area) {
        p->area = h->payload_off;
        if (!h->payload_off)
            return byre_fail(p->err, BAD_FORMAT, "%s: is the header of a disk in another file: open that, with this one as its 'header'", p->name);
        if (h->payload_off < LK_HEAD_BYTES)
            return byre_fail(p->err, BAD_FORMAT, "%s: the payload at offset %" PRIu64 " is inside the LUKS header", p->name, h->payload_off);
    }
    h->digest_iterations = be32_get(&d->digest_iterations);
    if (!h->digest_iterations)
        return byre_fail(p->err, BAD_FORMAT, "%s: the LUKS header has no iterations for the digest of its key", p->name);
    memcpy(h->digest, d->digest, sizeof h->digest);
    memcpy(h->digest_salt, d->digest_salt, sizeof h->digest_salt);
    r = take_text(p, "UUID", d->uuid, sizeof d->uuid, h->uuid);
    return r ? r : parse_slots(p, d, h);
}

int lk_header_parse(const uint8_t *buf, size_t len, uint64_t area_bytes, const char *name, struct lk_header *ret, struct byre_err *err)
{
    struct parse p = { .name = name, .err = err, .area = area_bytes };
    struct lk_disk_header d;
    struct lk_header h = { .key_bytes = 0 };
    if (len < sizeof d || memcmp(buf, LK_MAGIC, sizeof d.magic))
        return byre_fail(err, BAD_FORMAT, "%s: there is no LUKS header", name);
    memcpy(&d, buf, sizeof d);
    if (be16_get(&d.version) == 2)
        return byre_fail(err, NOT_SUPPORTED, "%s: is LUKS2 (LUKS version 2), which is not supported, only LUKS1 is", name);
    if (be16_get(&d.version) != 1)
        return byre_fail(err, NOT_SUPPORTED, "%s: LUKS version %u is not supported, only version 1", name, be16_get(&d.version));
    int r = parse_into(&p, &d, &h);
    if (!r)
        *ret = h;
    return r;
}

/* ---- making ---- */

void lk_header_lay_out(struct lk_header *h)
{
    uint64_t at = LK_ALIGN, each = round_up(lk_material_bytes(h->key_bytes, LK_STRIPES), LK_ALIGN);
    for (unsigned i = 0; i < LK_SLOTS; i++, at += each) {
        h->slot[i].off = at;
        h->slot[i].stripes = LK_STRIPES;
        h->slot[i].usable = true;
    }
    h->payload_off = at;
}

static void put_text(uint8_t *field, size_t bytes, const char *text)
{
    size_t n = strlen(text);
    ASSERT(n < bytes);
    memset(field, 0, bytes);
    memcpy(field, text, n);
}

void lk_header_emit(const struct lk_header *h, uint8_t *buf)
{
    struct lk_disk_header d = { 0 };
    char mode[32];
    const char *iv = lk_ivgen_name(h->suite.ivgen);
    snprintf(mode, sizeof mode, "%s%s%s%s%s", lk_mode_name(h->suite.mode), iv ? "-" : "", iv ? iv : "", h->suite.iv_hash ? ":" : "",
             h->suite.iv_hash ? lk_hash_name(h->suite.iv_hash) : "");
    memcpy(d.magic, LK_MAGIC, sizeof d.magic);
    be16_put(&d.version, 1);
    put_text(d.cipher, sizeof d.cipher, lk_cipher_name(h->suite.cipher));
    put_text(d.mode, sizeof d.mode, mode);
    put_text(d.hash, sizeof d.hash, lk_hash_name(h->hash));
    put_text(d.uuid, sizeof d.uuid, h->uuid);
    be32_put(&d.payload_sector, (uint32_t)(h->payload_off / LK_SECTOR));
    be32_put(&d.key_bytes, h->key_bytes);
    memcpy(d.digest, h->digest, sizeof d.digest);
    memcpy(d.digest_salt, h->digest_salt, sizeof d.digest_salt);
    be32_put(&d.digest_iterations, h->digest_iterations);
    for (unsigned i = 0; i < LK_SLOTS; i++) {
        const struct lk_slot *s = &h->slot[i];
        be32_put(&d.slot[i].active, s->active ? LK_SLOT_ENABLED : LK_SLOT_DISABLED);
        be32_put(&d.slot[i].iterations, s->iterations);
        memcpy(d.slot[i].salt, s->salt, sizeof s->salt);
        be32_put(&d.slot[i].material_sector, (uint32_t)(s->off / LK_SECTOR));
        be32_put(&d.slot[i].stripes, s->stripes);
    }
    memcpy(buf, &d, sizeof d);
}
