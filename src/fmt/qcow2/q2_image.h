/* SPDX-License-Identifier: MIT
 *
 * q2_image.h: an open qcow2 image, shared by the files of this folder only.
 *
 * Invariants (those of fmt.h and meta.h, and)
 *   G1  What requests of other loops read is atomic, a cached block of meta, or constant while the image is open: l1 and its words, slices of L2
 *       tables, fixed, guard, distrust_end, hold_from and hold_end, l1_bad, failed, pack_round, im.size. All else is the home loop's.
 *   G2  What of that is replaced as a whole (l1, guard) is freed a grace period later; l1_bad stays until the image is closed.
 *   G3  h says what the first cluster says, or is about to: who changes a field writes its sector under header_mx, and takes the field back when that
 *       fails (Q18).
 *   G4  A cluster is given up by q2_alloc_drop* when something durable named it, by q2_alloc_return when nothing ever did.
 * Order        What each file says; the rules are those of docs/internals/ordering.md, Q1 to Q28.
 * Concurrency  Home loop, unless stated; functions with `co` suspend. Which lock (their order: docs/internals/concurrency.md):
 *   locks (of guest ranges)         entries of L2 tables, from the look at them to their change; the data of a first write
 *   l2_mx                           entries of the L1 table that get another L2 table
 *   alloc->mx                       counts; which clusters are free, and who gets them
 *   alloc->grow_mx                  rt, rt_entries; the end of the file, alloc->end, settled_to
 *   meta's order                    a pass, or a change of tables on the disk itself: l1, rt and snapshots become others
 *   lazy_mx                         lazy_on, and the dirty bit
 *   header_mx                       the sectors of the first cluster
 *   clones.mx                       whether the header says that there are clones
 *   guard_mx                        who makes the guard; the others tell it what changes meanwhile (q2_guard.c)
 *   bms->mx, alloc->pack.mx         q2_bms.h, q2_pack.c
 *   drained as well                 size, version, width of counts, snapshots, another set of tables (changing, resizing, compacting say which)
 * Failure      Inside this folder -EUCLEAN: what the image holds cannot be right; -EIO: a request failed, the next may succeed (q2_judge).
 */
#ifndef Q2_IMAGE_H
#define Q2_IMAGE_H

#include <stdatomic.h>

#include "base/rset.h"
#include "fmt/fmt.h"
#include "fmt/streams.h"
#include "fmt/qcow2/q2_geom.h"
#include "fmt/qcow2/q2_header.h"
#include "fmt/qcow2/q2_marks.h"
#include "meta/meta.h"
#include "rt/sync.h"

struct q2_snapshot {                    /* one entry of the snapshot table, parsed */
    uint64_t l1_off; uint32_t l1_size;
    char *id, *name;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns, vm_state_size, disk_size, icount;
    bool has_disk_size, has_icount;
    uint8_t *extra; uint32_t extra_len; /* extra data behind the fields above, kept as found; at most 1000 bytes */
    bool lost;                          /* check found its L1 table outside the file */
    bool l1_ok;                         /* l1_off and l1_size passed q2_table_ok; else they must not be used */
};
struct q2_bitmap {                      /* one entry of the bitmap directory, parsed */
    char *name;                         /* NULL only of bad ones */
    uint64_t table_off; uint32_t table_entries, flags;
    uint8_t granularity_bits;
    uint64_t pos;                       /* of the entry in the directory */
    const char *bad;                    /* why it cannot be used (a constant string); NULL: it can */
    uint8_t *raw; uint32_t raw_len;     /* bad ones: all bytes of the entry; NULL: they cannot be told from those behind */
};

/* The L1 table as other loops see it. Replaced as a whole by growth; the old one is freed after a grace period. */
struct q2_l1 {
    uint64_t entries;                   /* used entries */
    uint64_t alloc_bytes;               /* multiple of 512 */
    _Atomic uint64_t *words;            /* disk order */
    struct epoch_cb reclaim;
};

struct q2_alloc;                        /* q2_alloc.c */
struct q2_bms;                          /* q2_bms.c */
struct q2_unclean;                      /* q2_unclean.c */
struct q2_scrubbing;                    /* q2_scrub.c */
struct q2_crypt;                        /* q2_crypt.c */
struct q2_guard;                        /* q2_guard.c */
/* Clusters that lost an owner while they had others (q2_clone.c). Home. */
/* left: those clusters; any: flags may be missing; all: at any cluster. tables: L2 tables of this opening's clones, by their number in the L1 table;
 * everywhere: there may be clones in others too. */
struct q2_clones { struct co_mutex mx; struct q2_marks left, tables; bool any, all, everywhere; };

#define Q2_FIXED 5u

struct q2_image {
    struct fmt_image im;                /* first */
    struct q2_geom g;
    struct q2_header h;                 /* memory copy of the header; changed by the home loop only */
    struct meta *meta;
    struct meta_kind kind_l2, kind_ref;
    uint32_t slice_bytes;               /* cache unit: min(cluster, 4 KiB) */
    uint32_t slice_entries;             /* L2 entries in it, */
    uint64_t slice_span;                /* and the guest bytes that they map */
    _Atomic(struct q2_l1 *) l1;
    struct fmt_streams streams;         /* home: of requests that began a write (q2_write.c W7) */
    struct { _Atomic uint64_t off, len; } fixed[Q2_FIXED];   /* L1, refcount and snapshot table, bitmap directory, LUKS header: for q2_hits_metadata on any loop */
    _Atomic uint64_t fixed_end;         /* none of these, nor the header, reaches further; 0: not known yet */
    uint64_t snapshots_bytes, snapshots_at;                  /* how long the snapshot table at snapshots_at is, once that is known */
    unsigned overlap;                   /* kinds of metadata (q2_guard.h) that no guest write may hit in place */
    _Atomic(struct q2_guard *) guard;   /* NULL: not made, or dropped */
    /* home */
    struct q2_guard *guard_making; uint64_t guard_round; struct co_mutex guard_mx;
    struct { char text[200]; uint64_t off, bytes; } why;     /* what makes the next -EUCLEAN; text "": nothing was noted */
    struct meta_region l1_region;
    uint64_t *l1_dirty;                 /* for the region */
    /* refcount table: whole in memory, home loop only */
    uint64_t *rt; uint64_t rt_entries;  /* host order offsets of blocks */
    struct q2_alloc *alloc;
    struct q2_unclean *unclean;         /* home; NULL: counts and flags are what they should be */
    _Atomic uint64_t distrust_end;      /* host bytes in front of this are old clusters of an unclean image; 0: none */
    _Atomic uint64_t hold_from, hold_end; /* host bytes in which no write begins in place (q2_move.c); end 0: none */
    _Atomic(_Atomic uint64_t *) l1_bad; /* while unclean: bit per L1 entry that must not be followed; NULL: none */
    struct q2_scrubbing *scrubbing;     /* home; NULL: no scrub runs */
    bool changing;                      /* home: tables are changed as a whole, no scrub begins */
    bool resizing;                      /* home: from resize to resize_commit, nor does one then */
    bool compacting;                    /* home: clusters are being moved, nor does one then */
    uint64_t hold_stamp; unsigned hold_users; struct co_waitq hold_left;     /* home: since when [hold_from, hold_end); writes that replace clusters of it */
    bool lazy;                          /* lazy refcounts are wanted (q2_lazy.c) */
    bool lazy_on;                       /* the dirty bit is durable, counts may be late */
    struct co_mutex lazy_mx;
    struct co_mutex header_mx;          /* read, change and write of the first sector */
    struct co_mutex l2_mx;              /* making or copying an L2 table (q2_map.c) */
    struct co_range_locks locks;        /* guest clusters being allocated, zeroed or discarded (byte offsets) */
    struct q2_snapshot *snapshots; uint32_t snapshot_count;
    struct q2_bms *bms;                 /* bitmaps of a writable image (q2_bms.h); NULL: none was ever there */
    struct q2_crypt *crypt;             /* NULL: not encrypted */
    struct stor *crypt_below;           /* what im.data decrypts; NULL: im.data is no store of ours */
    bool check_mode, info_only;
    _Atomic bool failed;                /* corruption was found, every request is refused (1.113) */
    bool told;                          /* and somebody was told */
    uint64_t leaked;                    /* clusters that the allocators of this opening could not give back */
    uint64_t file_end_at_open;          /* bytes, rounded up to a cluster */
    uint64_t file_bytes_at_open;        /* the same, exact */
    uint64_t zero_stamp; bool zero_stamped;   /* grace period before a kept zero cluster may be written (q2_write.c) */
    struct q2_clones clones;
    struct q2_codecs *codecs;
    struct q2_decoded *decoded;
    _Atomic uint64_t pack_round;        /* counts takings of host space for compressed clusters (q2_decode.c U2) */
    struct fmt_open_opts opts;
    char *name;
};
static inline struct q2_image *q2_of(struct fmt_image *im) { return (struct q2_image *)im; }
/* The file that guest data lies in, as it lies there. */
static inline struct stor *q2_data_below(const struct q2_image *q) { return q->crypt_below ? q->crypt_below : q->im.data; }
static inline void q2_slices_set(struct q2_image *q, uint32_t slice_bytes)
{
    q->slice_bytes = slice_bytes;
    q->slice_entries = slice_bytes / q->g.l2_entry_bytes;
    q->slice_span = (uint64_t)q->slice_entries << q->g.cluster_bits;
}

/* Host bytes in which no write begins in place, as they were at one moment; end 0: none. */
struct q2_held { uint64_t from, end; };

/* Any loop, in an epoch section and in front of the look at entries: an entry that is read behind an empty answer is the one that was
 * there before a hold, which then waits for this section, or the one that was put in its place. At home: whenever. */
static inline struct q2_held q2_held_now(const struct q2_image *q)
{
    struct q2_held h = { .end = atomic_load_explicit(&q->hold_end, memory_order_acquire) };
    if (UNLIKELY(h.end))
        h.from = atomic_load_explicit(&q->hold_from, memory_order_acquire);
    return h;
}

static inline bool q2_held_has(const struct q2_held *h, uint64_t host) { return UNLIKELY(h->end) && host < h->end && host >= h->from; }

/* Is the cluster at `host` about to be moved, so that nobody begins to write into it? Home loop. */
static inline bool q2_held(const struct q2_image *q, uint64_t host)
{
    struct q2_held h = q2_held_now(q);
    return q2_held_has(&h, host);
}

/* ---- L2 entries of a slice, of either size. Whoever reads or changes one by its index goes through these. ---- */
/* What an entry is worth while old clusters, those in front of distrust_end, are not to be trusted (q2_unclean.c). */
bool q2_distrusted_entry(const struct q2_image *q, uint64_t distrust_end, uint64_t slice_off, struct q2_l2e *e);
/* Any loop. false: it cannot be right. distrust_end behind the entry: one that was written when old clusters were trusted again is not taken for one of before;
 * and one of before is not read when they are, since their end waits for this section (q2_unclean_end). */
static inline bool q2_entry_get(const struct q2_image *q, const struct meta_block *b, uint32_t index, struct q2_l2e *ret)
{
    uint64_t raw, bits, distrust;
    bool ok;
    if (LIKELY(!q->g.ext_l2)) {
        ok = q2_l2e_decode(&q->g, meta_word(b, index), ret);
    } else {
        meta_pair(b, 2 * index, &raw, &bits);
        ok = q2_l2x_decode(&q->g, raw, bits, ret);
    }
    distrust = atomic_load_explicit(&q->distrust_end, memory_order_acquire);
    return LIKELY(!distrust) ? ok : ok && q2_distrusted_entry(q, distrust, b->off, ret);
}
/* Home. */
static inline void q2_entry_set(struct q2_image *q, struct meta_block *b, uint32_t index, const struct q2_l2e *e)
{
    uint64_t bits;
    if (!q->g.ext_l2) {
        meta_set_word(q->meta, b, index, q2_l2e_encode(&q->g, e));
        return;
    }
    uint64_t raw = q2_l2x_encode(&q->g, e, &bits);
    meta_set_pair(q->meta, b, 2 * index, raw, bits);
}

/* ---- tables read at open or for info and check (q2_snapshot.c, q2_bitmap.c): parse and validate, no trust ---- */
MUST_USE int q2_snapshots_load(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot **ret, uint32_t *ret_count, struct byre_err *err);
void q2_snapshots_free(struct q2_snapshot *s, uint32_t count);
MUST_USE int q2_bitmaps_load(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_bitmap **ret, uint32_t *ret_count, struct byre_err *err);
void q2_bitmaps_free(struct q2_bitmap *b, uint32_t count);
/* How many bitmaps are named by an extension that the image does not stand for: whoever wrote it last did not know of them. */
static inline uint32_t q2_bitmaps_outdated(const struct q2_header *h)
{
    return h->has_bitmaps && !(h->autoclear & Q2_AUTOCLEAR_BITMAPS) ? h->bitmap_count : 0;
}

/* ---- q2_bms*.c: persistent bitmaps (q2_bms.h) ---- */
int q2_bms_open(struct co *co, struct fmt_image *im, struct byre_err *err);
int q2_bms_load(struct co *co, struct fmt_image *im, struct fmt_bitmap *b, struct byre_err *err);
int q2_bms_sync(struct co *co, struct fmt_image *im, struct byre_err *err);
int q2_bms_fit(struct fmt_image *im, uint64_t size, struct byre_err *err);
int q2_bms_resizing(struct co *co, struct fmt_image *im, struct byre_err *err);
int q2_bms_enter(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len);
/* Exact bits in place of supersets. The guest is gone, everything else is flushed. */
MUST_USE int q2_bms_close(struct co *co, struct q2_image *q);
void q2_bms_free(struct q2_image *q);
/* Host offsets of the tables of bitmaps that this opening has read or written. -ENOMEM. */
MUST_USE int q2_bms_tables(const struct q2_image *q, uint64_t **ret, size_t *ret_count);
/* For repair: a directory without the entries that are marked bad in this list of them all; what they held leaks. */
MUST_USE int q2_bms_drop_bad(struct co *co, struct q2_image *q, const struct q2_bitmap *list, uint32_t count, struct byre_err *err);

/* ---- q2_codec.c: one cluster; any thread, for the CPU pool. k keeps the libraries' states for the next call; may be NULL ---- */
struct q2_codecs;
MUST_USE int q2_codecs_new(struct q2_codecs **ret);
void q2_codecs_free(struct q2_codecs *k);
/* Exactly one cluster. -EIO: bytes are not a cluster. */
MUST_USE int q2_decompress(struct q2_codecs *k, uint8_t type, const void *in, size_t in_bytes, void *out, size_t cluster_bytes);
/* The same; *ret_used: how many bytes it takes (as far as that can be told: else all). */
MUST_USE int q2_decompress_used(struct q2_codecs *k, uint8_t type, const void *in, size_t in_bytes, void *out, size_t cluster_bytes, size_t *ret_used);
/* Bytes made of one cluster; 0: they do not fit into `room`; -ENOMEM. */
MUST_USE int64_t q2_compress(struct q2_codecs *k, uint8_t type, const struct fmt_encoding *how, const void *in, size_t n, void *out, size_t room);

/* ---- q2_check.c, q2_create.c, q2_info.c, q2_measure.c ---- */
int q2_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
int q2_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err);
int q2_amend(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *a, struct byre_err *err);
uint64_t q2_reserved(struct co *co, struct fmt_image *im);       /* any loop */
int q2_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err);
int q2_measure(const struct fmt_create_opts *o, uint64_t data_bytes, struct fmt_measure *ret, struct byre_err *err);

/* ---- q2_driver.c ---- */
/* Throws away every cached table and reads header, L1, refcount table, snapshots and bitmaps again (after repair). Drained. */
MUST_USE int q2_reload(struct co *co, struct q2_image *q, struct byre_err *err);
/* A larger or smaller L1 table in memory, filled from `from` (may be NULL). Install makes it the one that readers and
 * passes use (q->h.l1_off is its place); it takes both. -ENOMEM. */
MUST_USE int q2_l1_replace(struct q2_image *q, uint64_t entries, const struct q2_l1 *from, struct q2_l1 **ret_new, uint64_t **ret_dirty);
void q2_l1_install(struct q2_image *q, struct q2_l1 *l1, uint64_t *dirty);
void q2_l1_discard(struct q2_l1 *l1, uint64_t *dirty);
/* Before every freeze of meta: hands over what was dropped (q2_drop.c). */
void q2_drop_freeze(struct q2_image *q);
/* Writes the 512-byte sector(s) of the first cluster that hold [from, to) from h, with one barrier (Q18). */
MUST_USE int q2_header_sync(struct co *co, struct q2_image *q, uint32_t from, uint32_t to, enum meta_barrier which);
/* Refcount table, snapshot table and width of the counts, in one write of the first sector (Q20). META_B_SWITCH_AFTER. */
MUST_USE int q2_header_sync_counts(struct co *co, struct q2_image *q);
/* The whole first sector, with a barrier. old: what it holds now. */
MUST_USE int q2_header_put_first(struct co *co, struct q2_image *q, const uint8_t *sector, const uint8_t *old, enum meta_barrier which);
/* Home, drained: everything is on the disk, nothing is ahead or behind: no frontier, no free that waits, not dirty. Goes on with
 * q2_alloc_resume, or with q2_reload when the file was changed. */
MUST_USE int q2_rest(struct co *co, struct q2_image *q);
/* q2_rewrite.c: the header cluster becomes that of h, extensions and names included: old or new at any crash (Q18). Afterwards
 * q2_reload. -ENOSPC: it does not fit, or cannot be switched to in one sector; nothing is changed. */
MUST_USE int q2_header_rewrite(struct co *co, struct q2_image *q, const struct q2_header *h, struct byre_err *err);
/* Would it be refused with -ENOSPC? Nothing is changed. */
MUST_USE int q2_header_fits(struct co *co, const struct q2_image *q, const struct q2_header *h, struct byre_err *err);
/* Writes the frontier extension and the autoclear bits (both in the first sector). No barrier. */
MUST_USE int q2_header_record_frontier(struct co *co, struct q2_image *q);
/* Writes bytes of the first cluster that all lie in one sector of it, with a barrier; q->h is the caller's. */
struct q2_patch { uint32_t from, len; const void *bytes; };
MUST_USE int q2_header_patch(struct co *co, struct q2_image *q, const struct q2_patch *p, unsigned n);
/* The same without the barrier, which the caller owes. */
MUST_USE int q2_header_patch_quietly(struct co *co, struct q2_image *q, const struct q2_patch *p, unsigned n);
/* ---- q2_corrupt.c: metadata was found to be wrong while in use (Q22, 1.113). Home loop. ---- */
/* Refuses everything from now on and sets the corrupt bit (v3); of a read-only image only tells, once. Returns -EIO. Suspends; outside
 * struct sections. what: "the L2 entry of guest offset"; says it unless something was noted. */
int q2_corrupt(struct co *co, struct q2_image *q, const char *what, uint64_t off);
/* The same inside a struct section. */
int q2_corrupt_locked(struct co *co, struct q2_image *q, const char *what, uint64_t off);
/* What makes the -EUCLEAN that follows, and which host bytes it concerns. The first one stays. */
PRINTF_LIKE(4, 5) void q2_note(struct q2_image *q, uint64_t off, uint64_t bytes, const char *fmt, ...);
/* Inside this folder -EUCLEAN says that what the image holds cannot be right, -EIO that a request failed: the next one may
 * succeed. At the edge the former marks the image and becomes -EIO. */
static inline int q2_judge(struct co *co, struct q2_image *q, int r, const char *what, uint64_t off)
{
    return r == -EUCLEAN ? q2_corrupt(co, q, what, off) : r;
}

/* ---- q2_lazy.c: lazy refcounts (Q12). Home loop. ---- */
/* Is lazy refcounting wanted for this opening? -EINVAL: asked for, and the version cannot. */
MUST_USE int q2_lazy_init(struct q2_image *q, struct byre_err *err);
/* Before the first allocation: the dirty bit, durable; nothing when that is done. Suspends. */
MUST_USE int q2_lazy_enter(struct co *co, struct q2_image *q);
/* The end of being unclean: counts are in time and right; the dirty bit away, durable. Suspends. */
MUST_USE int q2_clean_mark(struct co *co, struct q2_image *q);
/* Counts, durable, then the dirty bit away, durable. Requests may run. Suspends. */
MUST_USE int q2_lazy_leave(struct co *co, struct q2_image *q);

/* ---- q2_scrub.c: the online check. Home loop; suspends; may run while requests do ---- */
int q2_scrub(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
/* Nobody runs one: what waits for it goes on as it can. */
void q2_no_scrub(struct fmt_image *im);
/* References of these clusters are about to change, or may have: a scrub that runs does not judge them. */
void q2_scrub_touch(struct q2_image *q, uint64_t cluster, uint64_t n);
/* Waits until no scrub follows pointers. Suspends. */
void q2_scrub_wait_walk(struct co *co, struct q2_image *q);
/* -EBUSY: a scrub or a compaction runs, or the image is unclean: no snapshot, no resize. */
MUST_USE int q2_scrub_excludes(const struct q2_image *q, const char *what, struct byre_err *err);

/* ---- q2_compact.c: data from the end of the file into its holes. Home loop; suspends; may run while requests do ---- */
int q2_compact(struct co *co, struct fmt_image *im, const struct fmt_compact_opts *o, struct fmt_compact_result *ret, struct byre_err *err);
/* q2_shorten.c: cuts the file behind the last cluster in use, also over refcount blocks that count nothing else any more. */
MUST_USE int q2_shorten(struct co *co, struct q2_image *q);
/* Gives the blocks of all free clusters back to the host, whatever the discard policy. */
MUST_USE int q2_punch_free(struct co *co, struct q2_image *q, int (*step)(struct co *co, void *arg, uint64_t bytes), void *arg);

/* ---- q2_map.c ---- */
int q2_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
int q2_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
/* Would a cluster at `host` overlap what the header names: header, L1, refcount or snapshot table, bitmap directory, LUKS header? The
 * rest is in q2_guard.h. */
bool q2_hits_metadata(const struct q2_image *q, uint64_t host);
/* Which of them, as bits 1 << kind (q2_guard.h). */
unsigned q2_fixed_kinds(const struct q2_image *q, uint64_t host);
/* Home: header fields that it looks at have changed; the length of the snapshot table is known. */
void q2_fixed_update(struct q2_image *q);
void q2_fixed_snapshots(struct q2_image *q, uint64_t bytes);
/* Home: meta_get; a block that ends behind the end of the file is -EUCLEAN. */
MUST_USE int q2_block_get(struct co *co, struct q2_image *q, const struct meta_kind *k, uint64_t off, struct meta_block **ret_b);
/* Home: the pinned L2 slice that holds `guest` and the index of its entry in it. ret_b NULL: no L2 table. */
MUST_USE int q2_slice_get(struct co *co, struct q2_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index);
/* Home: has the slice of `guest` an L2 table, of the image's own? */
bool q2_slice_is_own(const struct q2_image *q, uint64_t guest);
/* Home: the same, made writable: a missing table is made, a shared one copied (Q5). */
MUST_USE int q2_slice_own(struct co *co, struct q2_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index);

/* ---- q2_refs.c: how many owners has a host cluster? Home loop. ---- */
MUST_USE int q2_refs_load_table(struct co *co, struct q2_image *q, struct byre_err *err);
MUST_USE int q2_refs_get(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t *ret_count);
/* First cluster of [cluster, cluster+n) whose count is not 0; cluster+n when all are. */
MUST_USE int q2_refs_first_used(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, uint64_t *ret_cluster);
/* The cluster behind the last one whose count is not 0. */
MUST_USE int q2_refs_end(struct co *co, struct q2_image *q, uint64_t *ret_end);
/* The end of what q2_refs_add changes whole or not at all, from `cluster` on: beyond it, what cannot be undone stays. */
uint64_t q2_refs_slice_end(const struct q2_image *q, uint64_t cluster);
/* Adds delta to each of n clusters. -ERANGE: width; -EUCLEAN: below zero. On failure nothing is changed. */
MUST_USE int q2_refs_add(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n, int64_t delta);

/* ---- q2_alloc.c: which clusters may I have? Home loop. ---- */
/* known_zero: reads zero as long as nobody writes it. settled: count and length are durable already. */
struct q2_run { uint64_t cluster, count; bool known_zero, settled; };
/* May an entry that points to r go without the barrier behind data and counts, if the guest had zeros there (Q23)? It
 * must read zero also after a crash that lost the data: not every store that promises zeros promises that (stor_traits). */
static inline bool q2_run_independent(const struct q2_image *q, const struct q2_run *r)
{
    return r->count && r->known_zero && r->settled && q->im.store->traits.zero_crash;
}
MUST_USE int q2_alloc_new(struct co *co, struct q2_image *q);
/* Gives back counts and length of the unused frontier (D4), processes frees. Before meta goes. */
MUST_USE int q2_alloc_close(struct co *co, struct q2_image *q);
void q2_alloc_resume(struct q2_image *q);         /* the image goes on all the same */
void q2_alloc_free(struct q2_image *q);
/* After open: frees behind the live disk what a crash left counted in its recorded frontier (q2_reclaim.c). */
void q2_reclaim_start(struct q2_image *q);
bool q2_reclaim_unfinished(const struct q2_image *q);
/* 1..want contiguous clusters, counted (refcount 1). -ENOSPC: nothing changed. May suspend. */
MUST_USE int q2_alloc_take(struct co *co, struct q2_image *q, uint64_t want, struct q2_run *ret);
/* The same for a caller who needs zeros around his data: free clusters may be zeroed for him, which known_zero then says. */
MUST_USE int q2_alloc_take_zeros(struct co *co, struct q2_image *q, uint64_t want, struct q2_run *ret);
/* The same, all of them in front of cluster `end`. -ENOSPC: there is no hole that is known. */
MUST_USE int q2_alloc_take_low(struct co *co, struct q2_image *q, uint64_t want, uint64_t end, struct q2_run *ret);
/* Are there as many free clusters in front of `end`? */
bool q2_alloc_low_has(const struct q2_image *q, uint64_t want, uint64_t end);
/* Others take what lies in front of `end` first; 0: as it comes. */
void q2_alloc_prefer(struct q2_image *q, uint64_t end);
/* Looks at all counts, so that every free cluster is known. Requests may run. */
MUST_USE int q2_alloc_scan_all(struct co *co, struct q2_image *q);
/* Exactly n contiguous clusters. */
MUST_USE int q2_alloc_exact(struct co *co, struct q2_image *q, uint64_t n, struct q2_run *ret);
/* Free clusters below `end` may be used now: they are looked for, from the beginning. */
void q2_alloc_scan_again(struct q2_image *q, uint64_t end);
/* Runs that were taken for one purpose. Zeroed is none. */
struct q2_taken { struct q2_run *runs; size_t count, cap; };
/* One more, of which the cache of metadata keeps nothing. -ENOMEM: it was given back; -EUCLEAN: it is in use, whatever its count said, and stays out of reach. */
MUST_USE int q2_taken_keep(struct q2_image *q, struct q2_taken *t, const struct q2_run *run);
/* give_back: nothing ever pointed to them (q2_alloc_return). Else they belong to what was made. */
void q2_taken_end(struct q2_image *q, struct q2_taken *t, bool give_back);
/* Takes back clusters that nothing ever pointed to; nothing in flight on them. Cannot fail. */
void q2_alloc_return(struct q2_image *q, const struct q2_run *r);
/* n clusters have lost one reference each in memory (L2, L1 or header change already made): dropped, punched and
 * handed out again only after Q9/D3 allow it. Cannot fail for memory: worst case is a leak, counted. */
void q2_alloc_drop(struct q2_image *q, uint64_t cluster, uint64_t n);
void q2_alloc_drop_packed(struct q2_image *q, uint64_t cluster, uint64_t n);  /* the same for what a compressed cluster touched */
void q2_alloc_drop_table(struct q2_image *q, uint64_t cluster, uint64_t n);   /* the same for clusters that the cache may hold */
#ifdef BYRE_MUTANTS
void q2_alloc_drop_cloned(struct q2_image *q, uint64_t cluster, uint64_t n);  /* a mutant's: at once */
#else
#define q2_alloc_drop_cloned(q, cluster, n) q2_alloc_drop(q, cluster, n)
#endif
void q2_alloc_drop_moved(struct q2_image *q, uint64_t cluster, uint64_t n);   /* the same for the old place of what was moved */
/* Gives unused space at the end of the file back (after a shrink). Requests may run. */
MUST_USE int q2_alloc_trim(struct co *co, struct q2_image *q);
/* Drained: waits until nothing works behind any more (frees, a growth, reclaim), so that counts may be changed on the disk
 * itself; nothing is started before q2_alloc_halt_end. On failure nothing has to be ended. */
MUST_USE int q2_alloc_halt_begin(struct co *co, struct q2_image *q);
void q2_alloc_halt_end(struct q2_image *q);
/* Clusters [from, to) have no owner any more, on the disk too, their counts are 0, and they may be used at once (Q9). */
void q2_alloc_offer(struct q2_image *q, uint64_t from, uint64_t to);
/* Waits for everything that works behind: batches of frees, a growth. */
void q2_alloc_quiesce(struct co *co, struct q2_image *q);

/* ---- q2_pack.c: host space for compressed clusters, to the byte. Home loop. ---- */
#define Q2_PACK_MAX 64u                  /* compressed clusters of one call */
/* Places n (up to Q2_PACK_MAX) of enc[i].iov_len bytes each: ret_host[i]. Neighbours lie one behind the other where they
 * can. Each then holds one reference on every host cluster it touches (Q11). -EFBIG: the file is too long for a
 * compressed entry; -ENOSPC ...: nothing is held. Suspends. */
MUST_USE int q2_pack_take(struct co *co, struct q2_image *q, const struct iovec *enc, unsigned n, uint64_t *ret_host);
/* Ends the filling of the open host cluster: afterwards every count is that of the entries and of writes under way. */
MUST_USE int q2_pack_close(struct co *co, struct q2_image *q);

/* ---- q2_encode.c: compressed writes; q2_decode.c: compressed reads ---- */
MUST_USE int q2_encode(struct co *co, struct fmt_image *im, const struct fmt_encoding *how, const struct fmt_encode *e);
MUST_USE int q2_write_encoded(struct co *co, struct fmt_image *im, uint64_t off, const struct iovec *enc, unsigned n);
struct q2_decoded;                       /* decoded clusters that are kept, by loop */
MUST_USE int q2_decoded_new(struct q2_image *q);
void q2_decoded_free(struct q2_image *q);
int q2_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v);
/* ---- q2_data.c: guest data in a file of its own. Without one they do nothing, or say yes. ---- */
/* Home: opens it, unless the image is only described. */
MUST_USE int q2_data_open(struct co *co, struct q2_image *q, struct byre_err *err);
/* May this entry stand for the guest cluster at `guest`? */
bool q2_entry_fits(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest);
/* Gives back clusters of the data file: bit i of `bits` for the i-th of n from `guest` on. Inside their range lock. */
void q2_data_punch(struct co *co, struct q2_image *q, uint64_t guest, const uint64_t *bits, uint32_t n);
/* Any loop, im.data_raw: the range is zeroed, or given back, in the file; entries stay. -ENOTSUP as stor_zero. */
MUST_USE int q2_data_raw_zero(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, unsigned flags);
MUST_USE int q2_data_raw_discard(struct co *co, struct q2_image *q, uint64_t off, uint64_t len);
/* Home, drained: [old, size) is there and reads zero / what lies behind size is cut off. */
MUST_USE int q2_data_grow(struct co *co, struct q2_image *q, uint64_t old, uint64_t size);
MUST_USE int q2_data_shrink(struct co *co, struct q2_image *q, uint64_t size);

/* ---- q2_write.c, q2_zero.c, q2_resize.c ---- */
int q2_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w);
int q2_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w);
void q2_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w);
/* The reference that a replaced entry held is dropped (Q4, Q9, Q11). Home; the entry was changed before. */
void q2_drop_entry(struct q2_image *q, const struct q2_l2e *e);
int q2_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags);
int q2_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len);
int q2_forget(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, bool later);
/* Between begin and commit, extended L2: the clusters are kept for the guest range, but no subcluster is allocated in them. */
void q2_write_reserve(struct fmt_write *w);
/* Between begin and end: do the host clusters read zero already? */
bool q2_write_known_zero(const struct fmt_write *w);
/* Unallocates what is mapped in [from, to): whole clusters. Drained. */
MUST_USE int q2_cut(struct co *co, struct q2_image *q, uint64_t from, uint64_t to);
int q2_state_room(struct co *co, struct fmt_image *im, uint64_t end);
int q2_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err);
int q2_resize_commit(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err);
/* ---- q2_snap.c, q2_snap_view.c ---- */
int q2_snapshot_op(struct co *co, struct fmt_image *im, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err);
/* The header of a read-only image names from now on what the picked snapshot holds. Before tables are loaded. */
MUST_USE int q2_snapshot_view(struct co *co, struct q2_image *q, const struct fmt_snapshot_pick *pick, struct byre_err *err);
/* ---- q2_empty.c ---- */
int q2_make_empty(struct co *co, struct fmt_image *im, struct byre_err *err);

#endif
