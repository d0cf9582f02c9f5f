/* SPDX-License-Identifier: MIT
 *
 * q2_bms.h: the persistent bitmaps of an open image, shared by the files q2_bms*.c.
 *
 *   q2_bms.c        flags and claims on the disk, closing
 *   q2_bms_load.c   the list at open, content
 *   q2_bms_enter.c  before a region of the disk is changed for the first time
 *   q2_bms_sync.c   another set of bitmaps: added, removed, changed, resized
 *   q2_generation.c has somebody else written the image since we looked?
 *
 * What a bitmap is worth after a crash (P4, G.014)
 *   As long as nothing was written, a bitmap on the disk is what it was. Before the first change IN_USE is set, for all the
 *   world; before the first change inside a region, all bits of that region are set in the bitmap's own clusters. So what is
 *   in use is at any moment a superset of the truth, and the header extension Q2_EXT_SUPERSETS says so to us. Closing
 *   replaces it by the exact bits and takes IN_USE away.
 *
 * Invariants
 *   B1  Entries in front of `claimed` (the count in the extension, while its autoclear bit is set) are on the disk exact and
 *       not in use, or in use and a superset of the truth.
 *   B2  A bit of `entered` is set only when every kept bitmap has all its bits of that region durably on the disk.
 *   B3  Content on the disk is overwritten in place only while its entry is IN_USE there.
 *   B4  A cluster is written in place only when it lies where no metadata lies and has one owner. Of an image that is unclean
 *       nobody knows that: what it has (`old`) is written anew as a whole before the first change of the disk.
 *
 * Concurrency  Home loop. Requests of other loops go there when they enter a region for the first time; mx lets one round of them work at a time
 *              (docs/internals/concurrency.md).
 */
#ifndef Q2_BMS_H
#define Q2_BMS_H

#include "base/dirty.h"
#include "fmt/qcow2/q2_image.h"

struct q2_bm {                          /* one entry of the directory, in its order */
    struct q2_bitmap d;
    struct fmt_bitmap *pub;             /* NULL: it has no name */
    uint64_t *table;                    /* d.table_entries words, host order; NULL: not read */
    bool kept;                          /* records, and is loaded: the disk follows */
    bool in_use;                        /* the flag on the disk */
    bool lost;                          /* in use, and not a superset any more: not to be claimed */
    bool old;                           /* what it has lies in old clusters of an image that was unclean when it was opened: nothing of that is
                                           written in place (q2_unclean.c U7) */
    bool unsure;                        /* a write of the table failed: the disk may lack entries of `table` */
    bool differs;                       /* the disk may hold more bits than `pub->bits` anywhere, not only in entered regions */
};

struct q2_bms {
    struct co_mutex mx;                 /* entering */
    struct q2_bm *list; uint32_t count;
    bool marked;                        /* every kept one is IN_USE on the disk */
    bool waits;                         /* the set is to be written anew before anything is marked */
    bool counted;                       /* the generation is the one of this opening */
    bool claims;                        /* regions are entered; else they only count as entered */
    uint64_t *wanted, *round;           /* bit per region: somebody waits for it; it is being entered */
    uint64_t ahead_size;                /* of the disk for which regions are entered: the last one ends there */
};

static inline uint64_t q2_bm_per_cluster(const struct q2_image *q) { return q->g.cluster_size * 8; }
/* Entries of the table of a bitmap over `size` bytes. */
static inline uint64_t q2_bm_entries(const struct q2_image *q, uint64_t size, unsigned granularity_bits)
{
    return div_up(div_up(size, 1ull << granularity_bits), q2_bm_per_cluster(q));
}
#define Q2_BITMAP_BYTES_MAX (512ull << 20)

/* q2_bms.c */
/* What belongs on the disk from bit `first` on (a multiple of 8): the exact bits, with `ahead` also those of the
 * regions that are or are being entered. */
void q2_bm_fill(const struct q2_image *q, const struct fmt_bitmap *b, uint64_t first, uint8_t *buf, size_t bytes, bool ahead);
/* Writes the table words [from, to) in whole sectors. No barrier. */
MUST_USE int q2_bm_write_table(struct co *co, struct q2_image *q, struct q2_bm *bm, uint64_t from, uint64_t to);
/* Sets IN_USE in the directory where want() says so, clears it elsewhere; with one barrier when something changed. */
MUST_USE int q2_bms_set_flags(struct co *co, struct q2_image *q, bool (*want)(const struct q2_image *q, const struct q2_bm *bm));
/* Entries that may be claimed: the first so many. */
uint32_t q2_bms_claimable(const struct q2_bms *m);
/* B1: says that the first n entries are supersets when in use. -ENOSPC: the header has no room for it. */
MUST_USE int q2_bms_claim(struct co *co, struct q2_image *q, uint32_t n);
MUST_USE int q2_bms_unclaim(struct co *co, struct q2_image *q);
/* Counts in memory, then data: durable before tables may name them. */
MUST_USE int q2_bms_settle_counts(struct co *co, struct q2_image *q);
/* Adds a header extension and takes over where it is (q2_ext.h). */
MUST_USE int q2_bms_add_ext(struct co *co, struct q2_image *q, uint32_t type, const void *data, uint32_t len);
/* Moves the bitmaps extension into one sector, with what it says (q2_ext.h). -ENOSPC: the first cluster has no room. */
MUST_USE int q2_bms_move_ext(struct co *co, struct q2_image *q);
void q2_bm_free(struct q2_bm *bm);
/* im->ahead for the disk as large as it is now: first the memory, then, drained, in place of the old one. */
struct q2_ahead { struct fmt_ahead *a; uint64_t *wanted, *round; };
MUST_USE int q2_ahead_make(const struct q2_image *q, struct q2_ahead *ret);
void q2_ahead_free(struct q2_ahead *n);
void q2_ahead_install(struct q2_image *q, struct q2_ahead *n);

/* q2_bms_sync.c: the whole set anew, in the order that claims need; bits as they are in memory. No region is entered, and nobody
 * changes bitmaps. Failure: the old set stands. */
MUST_USE int q2_bms_renew(struct co *co, struct q2_image *q);

/* q2_generation.c */
/* Before the first change that a bitmap records: another generation, which nobody else has used. No barrier: the caller owes one. */
MUST_USE int q2_generation_next(struct co *co, struct q2_image *q);
/* Behind a look at what bm has on the disk: is it, and the set that it belongs to, still the one that was found at open? -ESTALE: no. */
MUST_USE int q2_generation_same(struct co *co, struct q2_image *q, const struct q2_bm *bm);

/* q2_bms_load.c */
MUST_USE int q2_bm_load_content(struct co *co, struct q2_image *q, struct q2_bm *bm);
/* -EUCLEAN: the table or what it names lies where it must not. */
MUST_USE int q2_bm_read_table(struct co *co, struct q2_image *q, struct q2_bm *bm);

#endif
