/* SPDX-License-Identifier: MIT
 *
 * q2_generation.c: has somebody else written the image since we looked (FEATURES G.018)?
 *
 * Purpose      A number beside the claim on bitmaps (Q2_EXT_SUPERSETS), and an autoclear bit of its own.
 * Owns         h->generation, the bit Q2_AUTOCLEAR_GENERATION, q->bms->counted.
 * Invariants   N1  An opening that lets a bitmap record something has a generation of its own, from before the first such change.
 *              N2  The bit is set with it, and we never clear it: it is gone when a program has opened the image for writing that
 *                  clears what it does not know. What such a program does to bitmaps it answers for by the bit of the bitmaps and by
 *                  their flags, so they are not judged by this one; it is told.
 *              N3  Who reads an image and reads a bitmap later than the directory finds the same set, entry and generation
 *                  behind that, or the bitmap is inconsistent.
 * Order        Number (and bit, when both lie in the first sector: one write) | IN_USE's barrier, META_B_BITMAPS (Q16).
 * Concurrency  Home loop; next: under m->mx.
 * Failure      next: memory and disk as before (q2_driver.c). same: a read error says nothing, and is no change.
 * Tests        tests/interop/test_generation.py, tests/daemon/generation_test.py, crash explorer (geometries with bitmaps, mutant GENERATION_STAYS)
 */
#include <string.h>

#include "base/mutant.h"
#include "fmt/qcow2/q2_bms.h"

#define AUTOCLEAR_AT 88u

int q2_generation_next(struct co *co, struct q2_image *q)
{
    struct q2_header *h = &q->h;
    if (!h->has_supersets || q->bms->counted || MUTANT(MUT_GENERATION_STAYS))
        return 0;
    const uint64_t had = h->autoclear & Q2_AUTOCLEAR_GENERATION;
    const uint32_t before = h->generation;
    be32 number;
    be64 bits;
    h->generation = before + 1 ? before + 1 : 1;
    h->autoclear |= Q2_AUTOCLEAR_GENERATION;                 /* in memory first: who writes the first sector next writes it, too */
    be32_put(&number, h->generation);
    be64_put(&bits, h->autoclear);
    const struct q2_patch p[2] = { { h->superset_ext_off + 4, sizeof number, &number }, { AUTOCLEAR_AT, sizeof bits, &bits } };
    bool together = p[0].from + p[0].len <= 512;
    int r = q2_header_patch_quietly(co, q, p, together ? 2 : 1);
    if (r < 0)
        h->generation = before;
    if (r == 0 && !together && !had)
        r = q2_header_patch(co, q, p + 1, 1);
    if (r < 0)
        h->autoclear &= ~(Q2_AUTOCLEAR_GENERATION ^ had);
    q->bms->counted = r == 0;
    return r;
}

/* Bytes at `off` as they are on the disk now. */
static int look(struct co *co, const struct q2_image *q, uint64_t off, void *buf, size_t bytes)
{
    struct iovec slot;
    return stor_read(co, q->im.store, iov_one(&slot, buf, bytes), off);
}

static bool set_is(const struct q2_header *h, const struct q2_disk_bitmaps_ext *d)
{
    return be32_get(&d->count) == h->bitmap_count && be64_get(&d->dir_bytes) == h->bitmap_dir_bytes && be64_get(&d->dir_off) == h->bitmap_dir_off;
}

int q2_generation_same(struct co *co, struct q2_image *q, const struct q2_bm *bm)
{
    const struct q2_header *h = &q->h;
    const uint64_t ours = Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_SUPERSETS | Q2_AUTOCLEAR_GENERATION;
    struct q2_disk_bitmaps_ext ext;
    struct q2_disk_bitmap_entry entry;
    be32 claim[2];
    be64 bits;
    int r = look(co, q, AUTOCLEAR_AT, &bits, sizeof bits);
    if (r == 0 && (be64_get(&bits) ^ h->autoclear) & ours)
        return -ESTALE;
    if (r == 0 && h->has_supersets)
        r = look(co, q, h->superset_ext_off, claim, sizeof claim);
    if (r == 0 && h->has_supersets && be32_get(&claim[1]) != h->generation)
        return -ESTALE;
    if (r == 0)
        r = look(co, q, h->bitmaps_ext_off, &ext, sizeof ext);
    if (r == 0 && !set_is(h, &ext))
        return -ESTALE;
    if (r == 0)
        r = look(co, q, h->bitmap_dir_off + bm->d.pos, &entry, sizeof entry);
    bool same = r < 0 || (be64_get(&entry.table_off) == bm->d.table_off && be32_get(&entry.table_entries) == bm->d.table_entries &&
                          be32_get(&entry.flags) == bm->d.flags);
    return r < 0 ? r : same ? 0 : -ESTALE;
}
