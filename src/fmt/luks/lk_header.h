/* SPDX-License-Identifier: MIT
 *
 * lk_header.h: the LUKS1 header: bytes to values and back. Pure. Source: the LUKS On-Disk Format Specification 1.2.3.
 * Integers are big endian; offsets on disk count sectors of 512 bytes, here they are bytes.
 */
#ifndef LK_HEADER_H
#define LK_HEADER_H

#include "base/assert.h"
#include "base/endian.h"
#include "fmt/luks/lk_cipher.h"
#include "fmt/luks/lk_hash.h"

#define LK_SLOTS 8u
#define LK_SALT_BYTES 32u
#define LK_DIGEST_BYTES 20u
#define LK_STRIPES 4000u                     /* what we make; others are read */
#define LK_MATERIAL_MAX (64u << 20)          /* bytes of one key slot that we are ready to hold in memory */
#define LK_ALIGN 4096u                       /* of key slots and of the payload */

/* ---- on disk ---- */
#define LK_MAGIC "LUKS\xba\xbe"
#define LK_SLOT_ENABLED 0x00ac71f3u
#define LK_SLOT_DISABLED 0x0000deadu

struct lk_disk_slot { be32 active, iterations; uint8_t salt[LK_SALT_BYTES]; be32 material_sector, stripes; };
DISK_SIZE(struct lk_disk_slot, 48);
struct lk_disk_header {
    uint8_t magic[6];
    be16 version;
    uint8_t cipher[32], mode[32], hash[32];
    be32 payload_sector, key_bytes;
    uint8_t digest[LK_DIGEST_BYTES], digest_salt[LK_SALT_BYTES];
    be32 digest_iterations;
    uint8_t uuid[40];
    struct lk_disk_slot slot[LK_SLOTS];
};
DISK_SIZE(struct lk_disk_header, 592);
DISK_OFF(struct lk_disk_header, payload_sector, 104);
DISK_OFF(struct lk_disk_header, digest_iterations, 164);
DISK_OFF(struct lk_disk_header, slot, 208);
#define LK_HEAD_BYTES 1024u                  /* the sectors that hold the header */

/* ---- in memory ---- */
struct lk_slot {
    bool active;
    bool usable;                             /* its place is one that a key may be written to */
    uint32_t iterations, stripes;
    uint8_t salt[LK_SALT_BYTES];
    uint64_t off;                            /* bytes from the beginning of the header */
};
struct lk_header {
    struct lk_suite suite;
    const struct lk_hash *hash;
    uint32_t key_bytes;
    uint8_t digest[LK_DIGEST_BYTES], digest_salt[LK_SALT_BYTES];
    uint32_t digest_iterations;
    char uuid[41];
    uint64_t payload_off;
    struct lk_slot slot[LK_SLOTS];
};

/* Score of a file that begins like this, 0..100. */
int lk_probe(const uint8_t *buf, size_t len);
/* buf: the first len bytes of the header. area_bytes: key slots must lie in the first so many bytes behind the beginning of
 * the header; 0: in front of the payload, which must then be behind the header. name: for messages. */
MUST_USE int lk_header_parse(const uint8_t *buf, size_t len, uint64_t area_bytes, const char *name, struct lk_header *ret, struct byre_err *err);
/* Puts h into buf (at least 592 bytes), of which what lies behind stays. */
void lk_header_emit(const struct lk_header *h, uint8_t *buf);
/* Bytes of key material of one slot on disk: whole sectors. */
uint64_t lk_material_bytes(uint32_t key_bytes, uint32_t stripes);
/* Places of all slots and of the payload for this key size. */
void lk_header_lay_out(struct lk_header *h);
static inline unsigned lk_active_slots(const struct lk_header *h)
{
    unsigned n = 0;
    for (unsigned i = 0; i < LK_SLOTS; i++)
        n += h->slot[i].active;
    return n;
}

#endif
