/* SPDX-License-Identifier: MIT
 *
 * cx_snapshot.c: reads internal snapshots without the engine.
 *
 * Purpose      An independent eye on P3 (every snapshot stays bit for bit what it was) and P4 (no bitmap lies).
 * Owns         Nothing.
 * Invariants   Shares no code with src/fmt/qcow2 but the byte order helpers. Plain and compressed descriptors are digested
 *              by the bytes they name, zero and absent clusters by their kind.
 * Order, Concurrency  None.
 * Failure      UINT64_MAX: something points outside the file.
 * Tests        test_faults.py (scenarios snap-*, and images that hold snapshots)
 */
#include <limits.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "cx_snapshot.h"

static uint64_t be(const struct cx_bytes *f, uint64_t off, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | f->data[off + i];
    return v;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9fb21c651e98df25ull;
    return h ^ h >> 29;
}

static bool digest_bytes(const struct cx_bytes *f, uint64_t off, uint64_t len, uint64_t *h)
{
    if (!range_inside(off, 1, f->len))
        return false;
    for (uint64_t i = 0; i < len; i += 8)        /* what lies behind the end of the file reads zero */
        *h = mix(*h, off + i + 8 <= CX_FILE_MAX ? be(f, off + i, 8) : 0);
    return true;
}

static bool all_zero(const struct cx_bytes *f, uint64_t off, uint64_t len)
{
    if (!range_inside(off, 1, f->len))
        return false;
    for (uint64_t i = off; i < min_u64(off + len, CX_FILE_MAX); i++)
        if (f->data[i])
            return false;
    return true;
}

/* By content: zeros are zeros, whether a flag says so, or bytes, or nothing with no image below. */
static bool digest_l2(const struct cx_bytes *f, uint64_t l2, unsigned bits, uint64_t *h)
{
    uint64_t cs = 1ull << bits;
    if (!range_inside(l2, cs, f->len))
        return false;
    for (uint64_t i = 0; i < cs / 8; i++) {
        uint64_t e = be(f, l2 + i * 8, 8), host = e & 0x00fffffffffffe00ull;
        if (e >> 62 & 1) {
            unsigned shift = 62 - (bits - 8);
            uint64_t off = e & ((1ull << shift) - 1), sectors = (e >> shift & ((1ull << (bits - 8)) - 1)) + 1;
            uint64_t len = sectors * 512 - off % 512;
            *h = mix(*h, 3);
            if (!digest_bytes(f, off / 8 * 8, min_u64(len, f->len - min_u64(off, f->len)), h))
                return false;
        } else if (e & 1 || !host || all_zero(f, host, cs)) {
            *h = mix(*h, e & 1 || host || !be(f, 8, 8));
        } else if (!digest_bytes(f, host, cs, h)) {
            return false;
        }
    }
    return true;
}

static uint64_t digest_l1(const struct cx_bytes *f, uint64_t l1, uint64_t entries)
{
    unsigned bits = (unsigned)be(f, 20, 4);
    uint64_t h = entries;
    if (!range_inside(l1, entries * 8, f->len))
        return UINT64_MAX;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t l2 = be(f, l1 + i * 8, 8) & 0x00fffffffffffe00ull;
        h = mix(h, i);
        if (l2 && !digest_l2(f, l2, bits, &h))
            return UINT64_MAX;
    }
    return h;
}

uint64_t cx_disk_digest(const struct cx_bytes *f)
{
    uint64_t span = 1ull << (2 * be(f, 20, 4) - 3);
    return digest_l1(f, be(f, 40, 8), min_u64(be(f, 36, 4), div_up(be(f, 24, 8), span)));
}

unsigned cx_snapshots(const struct cx_bytes *f, struct cx_snap list[CX_SNAPS_MAX])
{
    bool qed = be(f, 0, 4) == 0x51454400;         /* which knows none */
    uint64_t n = qed ? 0 : be(f, 60, 4), at = be(f, 64, 8);
    for (uint64_t s = 0; s < n; s++) {
        if (s == CX_SNAPS_MAX || !range_inside(at, 40, f->len))
            return UINT_MAX;
        uint64_t text = at + 40 + be(f, at + 36, 4) + be(f, at + 12, 2), len = be(f, at + 14, 2);
        if (!range_inside(text, len, f->len))
            return UINT_MAX;
        list[s] = (struct cx_snap){ .digest = digest_l1(f, be(f, at, 8), be(f, at + 8, 4)) };
        memcpy(list[s].name, f->data + text, min_u64(len, sizeof list[s].name - 1));
        at += round_up(text + len - at, 8);
    }
    return (unsigned)n;
}

/* The offset of the bitmaps extension's data, 0: none. */
static uint64_t bitmaps_extension(const struct cx_bytes *f)
{
    for (uint64_t at = be(f, 100, 4); at + 8 <= 4096;) {
        uint64_t type = be(f, at, 4), len = be(f, at + 4, 4);
        if (type == 0x23852875)
            return at + 8;
        if (type == 0)
            return 0;
        at += 8 + round_up(len, 8);
    }
    return 0;
}

bool cx_bitmaps_trusted(const struct cx_bytes *f)
{
    uint64_t ext = be(f, 4, 4) == 3 && (be(f, 88, 8) & 1) ? bitmaps_extension(f) : 0;
    if (!ext)
        return false;
    uint64_t n = be(f, ext, 4), at = be(f, ext + 16, 8);
    for (uint64_t i = 0; i < n && range_inside(at, 24, f->len); i++) {
        if (!(be(f, at + 12, 4) & 1))
            return true;
        at += round_up(24 + be(f, at + 20, 4) + be(f, at + 18, 2), 8);
    }
    return false;
}
