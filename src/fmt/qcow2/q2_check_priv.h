/* SPDX-License-Identifier: MIT
 *
 * q2_check_priv.h: what check found out, shared by check and repair only.
 *
 * Concurrency  Home loop; the image is drained, or read-only. An online check (q2_scrub.c) has requests beside it.
 */
#ifndef Q2_CHECK_PRIV_H
#define Q2_CHECK_PRIV_H

#include "fmt/pieces.h"
#include "fmt/steps.h"
#include "fmt/qcow2/q2_counts.h"
#include "fmt/qcow2/q2_marks.h"
#include "fmt/qcow2/q2_walk.h"

#define Q2_STORED_LARGE 65535u          /* stored counts at or above this are kept as this; see q2_stored_exact */

#define Q2_STORED_PAGE 512u

/* A scrub (q2_scrub.c): a check beside requests. The checker asks it about what may have changed since the round began. */
struct q2_scrubbing {
    struct q2_image *q;
    const struct fmt_check_opts *o;      /* the caller's */
    struct q2_marks touched;             /* clusters whose references may have changed since the round began */
    bool counting;                       /* the image is unclean: references are counted, not compared */
    bool mends_flags;
    bool walking; struct co_waitq walked;
    /* q2_stand.c: in the caller's step; tables went their way meanwhile; so the round begins again; and has begun again */
    bool stepping, overrun, again, rounds_again;
    uint64_t *told; size_t told_count;   /* hashes of findings */
    struct q2_scrub_fix { uint64_t guest; bool l1; } *fixes; size_t fix_count, fix_room;     /* entries to be mended */
    bool fix_lost;                       /* there are more */
    uint64_t base, total;                /* progress */
    struct fmt_steps steps;
    uint64_t *tables; size_t table_count;        /* host offsets: bitmaps that we have read or written have them when the round begins */
    struct fmt_check_result fixed;       /* of all rounds */
};

/* What one worker of the CPU pool has counted so far. */
struct q2_bulk { struct q2_counts refs; uint64_t allocated, fragmented, compressed; };

struct q2_checker {
    struct q2_image *q;
    struct stor *store;
    const struct q2_geom *g;
    const struct fmt_check_opts *o;
    struct q2_header h;                 /* as it was when the references began to be counted: beside requests it changes */
    struct fmt_check_result res;
    uint64_t told;                      /* findings told so far, and those beyond the limit */
    bool quiet;                         /* findings are not told (second pass after repair) */
    uint64_t file_bytes, clusters;      /* clusters the file has, the last one perhaps cut short */
    struct q2_counts refs, stored;      /* found and stored counts; one more index than clusters */
    struct q2_counts l2_uses;           /* of those references, how many are as an (aligned) L2 table */
    uint64_t *rt; uint64_t rt_entries;  /* refcount table as stored, host order; rt_entries: only what covers the file */
    uint64_t rt_all;                    /* all entries */
    uint8_t page[Q2_STORED_PAGE]; uint64_t page_off;   /* part of a block that q2_stored_exact read last; page_off 0: none */
    uint32_t far_lookups;               /* refcounts looked up for references outside the file; limited */
    uint64_t *rt_bad;                   /* bitmap: the block of this entry cannot be read or found */
    struct q2_scrubbing *live;           /* NULL: nothing changes while this check runs */
    struct q2_bulk *bulk; unsigned workers;            /* workers 0: everything is looked at entry by entry */
    bool one_by_one;                    /* for tests: so it shall be */
    struct q2_snapshot_scan snapshots;
    struct q2_bitmap *bitmaps; uint32_t bitmap_count;
    bool bitmaps_valid, bitmaps_broken;
    uint64_t bitmap_faults;             /* corruptions that go with the bitmaps marked bad */
    uint64_t next_contiguous;
    /* for repair */
    bool incomplete;                    /* some references could not be counted: nothing may be freed */
    bool unsure;                        /* a snapshot or the bitmaps are unreachable: careful repair frees nothing */
    bool rebuild;                       /* the refcount structure itself is unusable */
    uint64_t bad_entries;               /* L1, L2 entries that repair can mend */
    uint64_t low, flags;                /* counts that are too low; COPIED flags that are wrong */
    uint64_t structure_faults;          /* corruptions that a rebuild mends */
    uint64_t leftover;                  /* lowest offset of a reference outside the file that stays; UINT64_MAX: none */
};

PRINTF_LIKE(4, 5) void q2_finding(struct q2_checker *k, bool fixed, const char *id, const char *fmt, ...);
/* Walk of the image with the checker's tables. */
struct q2_walk q2_checker_walk(struct q2_checker *k, unsigned parts, const struct q2_visitor *v, void *arg);
/* Has the refcount of this cluster been read? */
bool q2_stored_known(const struct q2_checker *k, uint64_t cluster);
/* Exact stored count of any cluster, from the disk. -EIO: unreadable. Suspends. */
MUST_USE int q2_stored_exact(struct co *co, struct q2_checker *k, uint64_t cluster, uint64_t *ret);
/* References of a cluster, as far as the width of the counts can hold them. */
static inline uint64_t q2_refs_wanted(const struct q2_checker *k, uint64_t cluster)
{
    return min_u64(q2_counts_get(&k->refs, cluster), k->g->refcount_max);
}
void q2_checker_init(struct q2_checker *k, struct q2_image *q, const struct fmt_check_opts *o, bool quiet);
/* Reads and counts everything; fills res. -ENOMEM, -EIO (length). */
MUST_USE int q2_gather(struct co *co, struct q2_checker *k, struct byre_err *err);
void q2_checker_init(struct q2_checker *k, struct q2_image *q, const struct fmt_check_opts *o, bool quiet);
void q2_checker_fini(struct q2_checker *k);

/* q2_scrub.c: for a checker with k->live. 1: the reference is not to be judged or counted; < 0 ends the walk. Suspends. */
MUST_USE int q2_live_ref(struct co *co, struct q2_checker *k, const struct q2_ref *r);
/* entry() of the walk where most entries are no reference (external data file): lets requests run. */
MUST_USE int q2_live_entry(struct co *co, void *arg, const struct q2_ref *r);
/* Between steps of less than a millisecond: lets requests run. < 0: end now. */
MUST_USE int q2_live_breathe(struct co *co, struct q2_checker *k);
bool q2_live_skips(const struct q2_checker *k, uint64_t cluster);
void q2_live_fault(struct q2_checker *k, const struct q2_ref *r, bool flag);
/* Makes k->h, at a moment when nobody is about to switch the header. -ENOMEM. Suspends. */
MUST_USE int q2_live_begin(struct co *co, struct q2_checker *k);
/* q2_recount.c: writes the counts of an unclean image, as counted by k and as kept in memory, durably; from then on they are
 * counts like all others. Requests may run. -ENOSPC, -EIO, -ERANGE: nothing has changed, the image is as unclean as before. */
MUST_USE int q2_recount(struct co *co, struct q2_checker *k);

/* q2_check_bulk.c: all cores look at whole tables, as long as there is nothing to be found in them. */
/* Before the walk, when the stored counts are loaded. -ENOMEM. */
MUST_USE int q2_bulk_begin(struct q2_checker *k, unsigned cores);
/* Two callbacks of the visitor (q2_walk.h). */
MUST_USE int q2_bulk_table(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data);
MUST_USE int q2_bulk_worked(void *arg, unsigned worker);
/* After the walk of the mappings: everything counted is in k now. -ENOMEM. */
MUST_USE int q2_bulk_end(struct q2_checker *k);
void q2_bulk_fini(struct q2_checker *k);
/* Refcounts of a whole piece of refcount blocks; a mark for each block that is done. -ENOMEM. Any thread. */
MUST_USE int q2_bulk_stored(struct q2_checker *k, struct fmt_piece *p);

/* q2_repair.c: mends what o->fix allows. On return the image is to be loaded and checked anew.
 * *ret_changed: something was, or may have been, written. */
MUST_USE int q2_repair(struct co *co, struct q2_checker *k, bool *ret_changed, struct byre_err *err);
/* Clears the dirty and corrupt bits of an image that was found sound. */
MUST_USE int q2_repair_finish(struct co *co, struct q2_checker *k, struct byre_err *err);
/* What stands in place of a mapping entry that breaks the rules, or the entry itself (pure). r->kind, raw, bits, off and
 * outside as the walk gives them; unallocated_reads_zero: an unallocated cluster of this image reads zeros. */
struct q2_mended { uint64_t raw, bits; };
struct q2_mended q2_mend_entry(const struct q2_geom *g, const struct q2_ref *r, bool unallocated_reads_zero);

/* q2_rebuild.c: a new refcount structure with exact counts, and a new snapshot table if asked for, behind everything
 * that there is; one header sector switches to them. -ENOSPC, -EIO, -E2BIG (table over 8 MiB). */
MUST_USE int q2_rebuild(struct co *co, struct q2_checker *k, bool new_snapshots, struct byre_err *err);

/* q2_edit.c: 8-byte table entries to be changed, collected and written sector by sector. */
struct q2_edit { uint64_t off, value; };
struct q2_edits { struct q2_edit *list; size_t count, room; };       /* all zeros: empty */
#define Q2_EDITS_MAX 65536u
void q2_edits_fini(struct q2_edits *e);
/* Adds one; writes all when the list is full. off: multiple of 8. Suspends. */
MUST_USE int q2_edits_add(struct co *co, struct q2_edits *e, struct q2_image *q, uint64_t off, uint64_t value);
/* Adds both halves of an extended entry: they go out in one write of their sector. off: multiple of 16. Suspends. */
MUST_USE int q2_edits_add_pair(struct co *co, struct q2_edits *e, struct q2_image *q, uint64_t off, uint64_t raw, uint64_t bits);
/* Writes what is left, without a barrier. Suspends. */
MUST_USE int q2_edits_apply(struct co *co, struct q2_edits *e, struct q2_image *q);

#endif
