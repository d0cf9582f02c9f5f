/* SPDX-License-Identifier: MIT
 *
 * lk_reach.c: how far the LUKS header at the beginning of a disk reaches.
 *
 * Purpose      Who writes to a disk by a header that lies elsewhere asks first what lies there: key slots that are overwritten are the
 *              end of all data behind them. The header need not be one that we can open: any cipher, any hash, LUKS2 too.
 * Owns         The text of a LUKS2 header while it is looked at.
 * Invariants   R1  What cannot be told reaches without end (UINT64_MAX): a doubt is for the keys.
 * Concurrency  Any loop.
 * Failure      -errno of the store, -ENOMEM.
 * Tests        luks_test.c, tests/daemon/luks_header_test.py
 *
 * Sources: LUKS On-Disk Format Specification 1.2.3; LUKS2 On-Disk Format Specification 1.1.1: a binary header of 4096 bytes with the size of
 * itself and the JSON text behind it, the same once more, and then `keyslots_size` bytes, a decimal number as a string in the object `config`.
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"

#define LK2_BINARY_BYTES 4096u
#define LK2_SIZE_MIN (16u << 10)
#define LK2_SIZE_MAX (4u << 20)
#define LK2_SIZE_AT 8u                       /* be64: bytes of the binary header and the text */

static uint64_t sum(uint64_t a, uint64_t b)
{
    uint64_t s;
    return add_overflows(a, b, &s) ? UINT64_MAX : s;
}

static uint64_t reach_1(const struct lk_disk_header *d)
{
    uint64_t end = max_u64(LK_HEAD_BYTES, (uint64_t)be32_get(&d->payload_sector) * LK_SECTOR);
    for (unsigned i = 0; i < LK_SLOTS; i++) {
        const struct lk_disk_slot *s = &d->slot[i];
        uint64_t at = (uint64_t)be32_get(&s->material_sector) * LK_SECTOR;
        if (be32_get(&s->active) != LK_SLOT_DISABLED)
            end = max_u64(end, sum(at, lk_material_bytes(be32_get(&d->key_bytes), be32_get(&s->stripes))));
    }
    return end;
}

/* The number behind a name: `: "123"`. */
static uint64_t number_at(const char *p)
{
    uint64_t n = 0;
    p += strspn(p, " \t\r\n");
    if (*p++ != ':')
        return UINT64_MAX;
    p += strspn(p, " \t\r\n");
    if (*p++ != '"' || *p == '"')
        return UINT64_MAX;
    for (; *p >= '0' && *p <= '9' && n <= INT64_MAX / 10; p++)
        n = n * 10 + (uint64_t)(*p - '0');
    return *p == '"' && n < INT64_MAX ? n : UINT64_MAX;
}

/* The largest there is: a token may have a field of the same name. */
static uint64_t keyslots_bytes(const char *text)
{
    static const char name[] = "\"keyslots_size\"";
    uint64_t most = 0;
    const char *p = strstr(text, name);
    if (!p)
        return UINT64_MAX;
    for (; p; p = strstr(p, name)) {
        p += sizeof name - 1;
        most = max_u64(most, number_at(p));
    }
    return most;
}

static int reach_2(struct co *co, struct stor *s, uint64_t size, uint64_t *ret_end)
{
    if (size < LK2_SIZE_MIN || size > LK2_SIZE_MAX) {
        *ret_end = UINT64_MAX;
        return 0;
    }
    char *text = calloc(1, size - LK2_BINARY_BYTES + 1);
    struct iovec slot;
    int r = text ? stor_read(co, s, iov_one(&slot, text, size - LK2_BINARY_BYTES), LK2_BINARY_BYTES) : -ENOMEM;
    if (r >= 0)
        *ret_end = sum(2 * size, keyslots_bytes(text));
    free(text);
    return r < 0 ? r : 0;
}

int lk_reach(struct co *co, struct stor *s, struct lk_reach *ret)
{
    struct lk_disk_header d;
    struct iovec slot;
    be64 size;
    *ret = (struct lk_reach){ .version = 0 };
    int r = stor_read(co, s, iov_one(&slot, &d, sizeof d), 0);
    if (r < 0 || memcmp(d.magic, LK_MAGIC, sizeof d.magic))
        return r < 0 ? r : 0;
    ret->version = be16_get(&d.version);
    ret->end = ret->version == 1 ? reach_1(&d) : UINT64_MAX;
    memcpy(&size, (const uint8_t *)&d + LK2_SIZE_AT, sizeof size);
    return ret->version == 2 ? reach_2(co, s, be64_get(&size), &ret->end) : 0;
}
