/* SPDX-License-Identifier: MIT
 *
 * q2_check.c: which rules does an image break?
 *
 * Purpose      Counts every reference, compares with the stored refcounts, judges entries and flags; the numbers are
 *              those of the peer's check (1.115, 5.018), each finding has a stable id.
 * Owns         struct q2_checker while a check runs.
 * Invariants   I1 Memory is at most a few bytes per cluster of the file plus 64 MiB, never by the virtual size.
 *              I2 A broken table is a finding; what can be read besides it is checked all the same (G.015).
 *              I3 Without fix nothing is written.
 *              I4 What the header names is what it named at one moment, and the length of the file is read behind that: so all of it lies
 *                 inside. In the header of later the refcount table may have moved behind that length, with everything it names.
 * Order        Cached changes are flushed first. Repair orders its own writes (q2_repair.c).
 * Concurrency  Home loop; the image is drained, or read-only.
 * Failure      -ENOMEM, -EIO for want of the file's length, -EROFS for repair of a read-only image.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py, fuzz/qcow2_open.c
 */
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_check_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "fmt/pieces.h"

#define RTE_LOW 0x1ffull
#define FIX_ROUNDS 4u
#define FAR_LOOKUPS_MAX 65536u
#define FINDINGS_MAX 100000u          /* told one by one; all are counted */

void q2_finding(struct q2_checker *k, bool fixed, const char *id, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    if (k->quiet || !k->o->finding || k->told++ >= FINDINGS_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    k->o->finding(k->o->arg, fixed, id, text);
}

/* How many were not told. */
static void findings_end(struct q2_checker *k)
{
    char text[80];
    if (k->quiet || !k->o->finding || k->told <= FINDINGS_MAX)
        return;
    snprintf(text, sizeof text, "%" PRIu64 " more findings are counted only", k->told - FINDINGS_MAX);
    k->o->finding(k->o->arg, false, "Q2_MORE", text);
    k->told = 0;
}

void q2_checker_fini(struct q2_checker *k)
{
    q2_counts_fini(&k->refs);
    q2_counts_fini(&k->stored);
    q2_counts_fini(&k->l2_uses);
    q2_bulk_fini(k);
    free(k->rt);
    free(k->rt_bad);
    q2_snapshots_free(k->snapshots.snapshots, k->snapshots.count);
    q2_bitmaps_free(k->bitmaps, k->bitmap_count);
    k->rt = k->rt_bad = NULL;
    k->snapshots = (struct q2_snapshot_scan){ 0 };
    k->bitmaps = NULL;
    k->bitmap_count = 0;
}

struct q2_walk q2_checker_walk(struct q2_checker *k, unsigned parts, const struct q2_visitor *v, void *arg)
{
    return (struct q2_walk){
        .store = k->store, .g = k->g, .h = &k->h, .file_bytes = k->file_bytes, .snapshots = &k->snapshots,
        .bitmaps = k->bitmaps, .bitmap_count = k->bitmap_count, .bitmaps_valid = k->bitmaps_valid,
        .parts = parts, .open_ended = k->live, .workers = k->g->data_file ? 0 : k->workers, .v = v, .arg = arg,
    };
}

/* ---- stored refcounts ---- */

static uint64_t block_of(const struct q2_checker *k, uint64_t entry) { return k->rt[entry] & ~RTE_LOW; }

bool q2_stored_known(const struct q2_checker *k, uint64_t cluster)
{
    uint64_t entry = cluster >> k->g->block_bits;
    return entry >= k->rt_entries || !bitmap_test(k->rt_bad, entry);
}

int q2_stored_exact(struct co *co, struct q2_checker *k, uint64_t cluster, uint64_t *ret)
{
    uint64_t entry = cluster >> k->g->block_bits, i = cluster & ((1ull << k->g->block_bits) - 1);
    uint64_t in_block = round_down((i << k->g->refcount_order) / 8, Q2_STORED_PAGE);
    *ret = 0;
    if (entry >= k->rt_all || !block_of(k, entry))
        return 0;
    uint64_t off = block_of(k, entry) + in_block;
    if (!is_aligned(block_of(k, entry), k->g->cluster_size) || off > INT64_MAX)
        return -EIO;
    if (k->page_off != off) {
        struct iovec v;
        k->page_off = 0;
        int rc = stor_read(co, k->store, iov_one(&v, k->page, Q2_STORED_PAGE), off);
        if (rc)
            return rc;
        k->page_off = off;
    }
    *ret = q2_refcount_get(k->g, k->page, i - (in_block * 8 >> k->g->refcount_order));
    return 0;
}

static int load_rt(struct co *co, struct q2_checker *k)
{
    const struct q2_header *h = &k->h;
    uint64_t inside = h->rt_off < k->file_bytes ? div_up(k->file_bytes - h->rt_off, 8) : 0;     /* what is not in the file is zeros */
    k->rt_all = min_u64((uint64_t)h->rt_clusters << k->g->cluster_bits >> 3, inside);
    k->rt_entries = min_u64(k->rt_all, div_up(k->clusters, 1ull << k->g->block_bits));
    k->rt = calloc(k->rt_all + 1, 8);
    k->rt_bad = bitmap_new(k->rt_entries + 1);
    if (!k->rt || !k->rt_bad)
        return -ENOMEM;
    if (!k->rt_all)
        return 0;
    struct iovec v;
    int rc = stor_read(co, k->store, iov_one(&v, k->rt, k->rt_all * 8), h->rt_off);
    if (rc) {
        k->res.check_errors++;
        k->rebuild = true;
        q2_finding(k, false, "Q2_READ", "the refcount table at %#" PRIx64 " cannot be read: %s", h->rt_off, strerror(-rc));
        memset(k->rt, 0, k->rt_all * 8);
    }
    for (uint64_t i = 0; i < k->rt_all; i++)
        k->rt[i] = be64_word(k->rt[i]);
    for (uint64_t i = 0; i < k->rt_entries; i++) {
        if (!is_aligned(block_of(k, i), k->g->cluster_size) || block_of(k, i) > INT64_MAX)
            bitmap_set(k->rt_bad, i);
    }
    return 0;
}

struct block_reader { struct q2_checker *k; uint64_t at, max; };

/* Runs of refcount blocks that lie one behind the other. */
static bool next_block(void *arg, struct fmt_piece *p)
{
    struct block_reader *r = arg;
    struct q2_checker *k = r->k;
    for (; r->at < k->rt_entries; r->at++)
        if (block_of(k, r->at) && block_of(k, r->at) < k->file_bytes && !bitmap_test(k->rt_bad, r->at))
            break;
    if (r->at == k->rt_entries)
        return false;
    p->tag = r->at;
    p->off = block_of(k, r->at++);
    p->len = k->g->cluster_size;
    while (p->len + k->g->cluster_size <= r->max && r->at < k->rt_entries && block_of(k, r->at) == p->off + p->len &&
           p->off + p->len < k->file_bytes) {
        p->len += k->g->cluster_size;
        r->at++;
    }
    return true;
}

static int use_block(struct co *co, void *arg, struct fmt_piece *p)
{
    struct q2_checker *k = ((struct block_reader *)arg)->k;
    const struct q2_geom *g = k->g;
    uint64_t per = 1ull << g->block_bits;
    for (uint64_t done = 0, entry = p->tag; done < p->len; done += g->cluster_size, entry++) {
        if (p->rc)
            bitmap_set(k->rt_bad, entry);
        if (p->rc || bitmap_test(p->marks, entry - p->tag) || mem_is_zero(p->data + done, g->cluster_size))
            continue;
        uint64_t first = entry * per, n = min_u64(per, k->clusters - first);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t v = q2_refcount_get(g, p->data + done, i);
            if (v && q2_counts_set(&k->stored, first + i, min_u64(v, Q2_STORED_LARGE)))
                return -ENOMEM;
        }
    }
    return 0;
}

static int look_at_block(void *arg, unsigned worker, struct fmt_piece *p) { return q2_bulk_stored(((struct block_reader *)arg)->k, p); }

static unsigned cores(struct co *co) { return (unsigned)min_u64(rt_cpu_workers(rt_of(co_loop(co))), FMT_PIECES_WORKERS_MAX); }

static int load_stored(struct co *co, struct q2_checker *k)
{
    static const struct fmt_pieces_ops ops = { next_block, use_block, look_at_block };
    struct block_reader r = { k, 0, max_u64(FMT_PIECES_BYTES, k->g->cluster_size) };
    int rc = load_rt(co, k);
    return rc ? rc : fmt_pieces_run_on(co, k->store, r.max, &ops, &r, k->one_by_one ? 0 : cores(co));
}

/* ---- references ---- */

/* Mapping entries whose COPIED flag must tell whether the stored count is 1. */
static void check_copied(struct co *co, struct q2_checker *k, const struct q2_ref *r)
{
    uint64_t cluster = r->off >> k->g->cluster_bits, stored = q2_counts_get(&k->stored, cluster);
    if (!q2_stored_known(k, cluster) || (k->live && k->live->counting))
        return;
    if (cluster >= k->clusters && k->far_lookups++ < FAR_LOOKUPS_MAX && q2_stored_exact(co, k, cluster, &stored))
        return;
    bool one = stored == 1;
    if (one == !!(r->raw & Q2_E_COPIED) || (one && k->live && q2_clone_is_left(k->q, cluster)))
        return;
    k->res.corruptions++;
    k->flags++;
    if (k->live)
        q2_live_fault(k, r, true);
    q2_finding(k, false, "Q2_COPIED", "%s at %#" PRIx64 ", guest offset %#" PRIx64 ": COPIED is %s but its refcount is %" PRIu64,
               q2_ref_name(r->kind), r->off, r->index, one ? "clear" : "set", stored);
}

static void count_stats(struct q2_checker *k, const struct q2_ref *r)
{
    k->res.allocated_clusters++;
    if (r->kind == Q2_REF_COMPRESSED) {
        k->res.compressed_clusters++;
        k->res.fragmented_clusters++;
        return;
    }
    if (k->next_contiguous && k->next_contiguous != r->off)
        k->res.fragmented_clusters++;
    k->next_contiguous = r->off + k->g->cluster_size;
}

static bool is_mapping(const struct q2_ref *r)
{
    return r->kind == Q2_REF_L2 || r->kind == Q2_REF_DATA || r->kind == Q2_REF_ZERO || r->kind == Q2_REF_COMPRESSED;
}

static bool is_bitmap(const struct q2_ref *r)
{
    return r->kind == Q2_REF_BITMAP_DIR || r->kind == Q2_REF_BITMAP_TABLE || r->kind == Q2_REF_BITMAP_DATA;
}

/* Something is wrong with a bitmap: with one of them, or with the directory and so with all. */
static void lost_bitmap(struct q2_checker *k, const struct q2_ref *r)
{
    k->unsure = true;
    if (r->kind == Q2_REF_BITMAP_DIR || r->index >= k->bitmap_count) {
        k->bitmaps_broken = true;
        return;
    }
    k->bitmaps[r->index].bad = "its table or its data is damaged";
    k->bitmap_faults += r->weight;
}

static void lost_l1(struct q2_checker *k, const struct q2_ref *r)
{
    k->unsure = true;
    if (r->active)
        k->leftover = min_u64(k->leftover, r->off);
    else
        k->snapshots.snapshots[r->index].lost = true;
}

static void ref_outside(struct q2_checker *k, const struct q2_ref *r)
{
    k->res.corruptions += r->weight;
    if (is_mapping(r))
        k->bad_entries++;
    if (r->kind == Q2_REF_RB || r->kind == Q2_REF_RT) {
        k->rebuild = true;
        k->structure_faults++;
    }
    if (r->kind == Q2_REF_L1)
        lost_l1(k, r);
    if (is_bitmap(r))
        lost_bitmap(k, r);
    if (r->kind == Q2_REF_CRYPTO)
        k->leftover = min_u64(k->leftover, r->off);
    q2_finding(k, false, "Q2_OUTSIDE", "%s at %#" PRIx64 " of %" PRIu64 " bytes is outside the file (entry at %#" PRIx64 ")",
               q2_ref_name(r->kind), r->off, r->bytes, r->entry_off);
}

static int on_ref(struct co *co, void *arg, const struct q2_ref *r)
{
    struct q2_checker *k = arg;
    if (r->active && r->kind >= Q2_REF_DATA && r->kind <= Q2_REF_COMPRESSED)
        count_stats(k, r);
    int live = k->live ? q2_live_ref(co, k, r) : 0;
    if (live)
        return live < 0 ? live : 0;
    if (r->active && (r->kind == Q2_REF_L2 || r->kind == Q2_REF_DATA || r->kind == Q2_REF_ZERO))
        check_copied(co, k, r);
    if (r->outside) {
        ref_outside(k, r);
        return 0;
    }
    uint64_t first = r->off >> k->g->cluster_bits, last = (r->off + r->bytes - 1) >> k->g->cluster_bits;
    for (uint64_t c = first; c <= last; c++)
        if (!(k->live && q2_live_skips(k, c)) && q2_counts_add(&k->refs, c, r->weight))
            return -ENOMEM;
    if (r->kind == Q2_REF_L2 && is_aligned(r->off, k->g->cluster_size) && q2_counts_add(&k->l2_uses, first, r->weight))
        return -ENOMEM;
    if (r->kind == Q2_REF_RB && q2_counts_get(&k->refs, first) != 1) {
        k->res.corruptions++;
        k->structure_faults++;
        k->rebuild = true;
        q2_finding(k, false, "Q2_REFCOUNT_BLOCK", "refcount block %" PRIu64 " at %#" PRIx64 " is used for something else too", r->index, r->off);
    }
    return 0;
}

static int on_table(struct co *co, void *arg, const struct q2_ref *t)
{
    struct q2_checker *k = arg;
    if (t->active) {
        k->next_contiguous = 0;
        if (k->o->progress && (!k->quiet || k->live))
            k->o->progress(k->o->arg, min_u64(t->index, k->q->h.size), k->q->h.size);
    }
    return !k->live && !k->o->fix && k->o->step ? k->o->step(co, k->o->arg) : 0;         /* a check that only reads can end at any time */
}

static void fault_reserved(struct q2_checker *k, const struct q2_ref *r)
{
    k->res.corruptions += r->weight;
    if (r->kind == Q2_REF_RB) {
        k->rebuild = true;
        k->structure_faults++;
    } else if (is_mapping(r)) {
        k->bad_entries++;
    } else if (is_bitmap(r)) {
        lost_bitmap(k, r);
    }
    q2_finding(k, false, "Q2_RESERVED", "%s: reserved bits are set in the entry %#" PRIx64 " at %#" PRIx64, q2_ref_name(r->kind), r->raw, r->entry_off);
}

static void fault_unaligned(struct q2_checker *k, const struct q2_ref *r)
{
    k->res.corruptions += r->weight;
    if (r->kind == Q2_REF_RB) {
        k->rebuild = true;
        k->structure_faults++;
    } else if (r->kind == Q2_REF_ZERO) {
        k->bad_entries++;
    } else if (is_bitmap(r)) {
        lost_bitmap(k, r);
    }
    q2_finding(k, false, "Q2_UNALIGNED", "%s at %#" PRIx64 " is not aligned to a cluster (entry at %#" PRIx64 ")", q2_ref_name(r->kind), r->off, r->entry_off);
}

static void on_fault(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc)
{
    struct q2_checker *k = arg;
    if (k->live)
        q2_live_fault(k, r, false);
    switch (f) {
    case Q2_WALK_RESERVED:
        fault_reserved(k, r);
        return;
    case Q2_WALK_UNALIGNED:
        fault_unaligned(k, r);
        return;
    case Q2_WALK_COPIED_COMPRESSED:
        k->res.corruptions += r->weight;
        k->bad_entries++;
        q2_finding(k, false, "Q2_COMPRESSED_COPIED", "compressed cluster at %#" PRIx64 ": COPIED is set (entry at %#" PRIx64 ")", r->off, r->entry_off);
        return;
    case Q2_WALK_ZERO_V2:
        k->res.corruptions += r->weight;
        k->bad_entries++;
        q2_finding(k, false, "Q2_ZERO_V2", "zero flag in a version 2 image (entry at %#" PRIx64 ")", r->entry_off);
        return;
    case Q2_WALK_DATA_FILE:
        k->res.corruptions += r->weight;
        q2_finding(k, false, "Q2_DATA_FILE", "%s at %#" PRIx64 " for guest offset %#" PRIx64 ": cannot be in an image with an external data file (entry at %#" PRIx64 ")",
                   q2_ref_name(r->kind), r->off, r->index, r->entry_off);
        return;
    case Q2_WALK_SUBCLUSTERS:            /* nobody can say which it is: as for the peer it is told, and stays */
        k->res.corruptions += r->weight;
        q2_finding(k, false, "Q2_SUBCLUSTERS", "%s at %#" PRIx64 ": its subclusters contradict one another (entry at %#" PRIx64 ", bits %#" PRIx64 ")",
                   q2_ref_name(r->kind), r->off, r->entry_off, r->bits);
        return;
    case Q2_WALK_READ:
        k->res.check_errors++;
        k->incomplete = true;
        q2_finding(k, false, "Q2_READ", "%s at %#" PRIx64 " cannot be read: %s", q2_ref_name(r->kind), r->off, strerror(-rc));
        return;
    case Q2_WALK_BAD_L1:
        k->res.corruptions++;
        k->unsure = true;
        k->snapshots.snapshots[r->index].lost = true;
        q2_finding(k, false, "Q2_SNAPSHOT_L1", "snapshot %" PRIu64 ": its L1 table of %" PRIu64 " bytes at %#" PRIx64 " is misaligned or too large",
                   r->index, r->bytes, r->off);
        return;
    case Q2_WALK_BUDGET:
        k->res.corruptions++;
        k->incomplete = true;
        q2_finding(k, false, "Q2_TOO_MANY_REFERENCES", "%s at %#" PRIx64 ": tables overlap so often that the rest is not followed", q2_ref_name(r->kind), r->off);
        return;
    }
}

static void on_data(void *arg, const struct q2_ref *r)
{
    if (r->active)
        count_stats(arg, r);
}

static const struct q2_visitor live_data_visitor = { .ref = on_ref, .fault = on_fault, .data = on_data, .table = on_table, .entry = q2_live_entry };
static const struct q2_visitor count_visitor = { .ref = on_ref, .fault = on_fault, .data = on_data, .table = on_table, .bulk = q2_bulk_table, .bulked = q2_bulk_worked };

/* ---- comparison ---- */

static void compare_one(struct q2_checker *k, uint64_t c, uint64_t stored, uint64_t refs)
{
    if (refs > k->g->refcount_max) {
        k->res.corruptions += refs - k->g->refcount_max;
        q2_finding(k, false, "Q2_REFCOUNT_OVERFLOW", "cluster %" PRIu64 ": %" PRIu64 " references do not fit refcounts of %u bits", c, refs, k->g->refcount_bits);
        refs = k->g->refcount_max;
    }
    if (stored == refs)
        return;
    bool low = stored < refs;
    if (low) {
        k->res.corruptions++;
        k->low++;
    } else {
        k->res.leaks++;
    }
    q2_finding(k, false, low ? "Q2_REFCOUNT_LOW" : "Q2_LEAK", "cluster %" PRIu64 ": refcount %" PRIu64 ", references %" PRIu64, c, stored, refs);
}

static int compare(struct co *co, struct q2_checker *k)
{
    uint64_t per = 1ull << k->g->block_bits, end = 1;
    for (uint64_t i = 0; i < k->rt_entries; i++) {
        if (!bitmap_test(k->rt_bad, i))
            continue;
        k->res.check_errors += min_u64(per, k->clusters - i * per);
        k->rebuild = true;
        q2_finding(k, false, "Q2_REFCOUNT_UNREADABLE", "refcount block %" PRIu64 " at %#" PRIx64 " cannot be read: its refcounts are unknown", i, block_of(k, i));
    }
    uint64_t ref = q2_counts_next(&k->refs, 0), count = q2_counts_next(&k->stored, 0), chunk = UINT64_MAX;
    bool all_known = !k->one_by_one && mem_is_zero(k->rt_bad, bitmap_words(k->rt_entries + 1) * 8);
    for (uint64_t c; (c = min_u64(ref, count)) != Q2_COUNTS_NONE;) {
        if (all_known && c / Q2_COUNTS_CHUNK != chunk && q2_counts_same_chunk(&k->refs, &k->stored, c)) {
            uint64_t next = round_up(c + 1, Q2_COUNTS_CHUNK);
            end = q2_counts_last(&k->refs, c) + 1;
            ref = q2_counts_next(&k->refs, next);
            count = q2_counts_next(&k->stored, next);
            continue;
        }
        int wait = k->live && c % 2048 == 0 ? q2_live_breathe(co, k) : 0;
        if (wait)
            return wait;
        chunk = c / Q2_COUNTS_CHUNK;
        if (ref == c)
            ref = q2_counts_next(&k->refs, c + 1);
        if (count == c)
            count = q2_counts_next(&k->stored, c + 1);
        if (!q2_stored_known(k, c) || (k->live && q2_live_skips(k, c)))
            continue;
        uint64_t stored = q2_counts_get(&k->stored, c);
        int rc = stored >= Q2_STORED_LARGE && k->g->refcount_bits > 16 ? q2_stored_exact(co, k, c, &stored) : 0;
        if (rc)
            return rc;
        compare_one(k, c, stored, q2_counts_get(&k->refs, c));
        end = c + 1;
        uint64_t entry = c >> k->g->block_bits;
        if (stored < q2_refs_wanted(k, c) && (entry >= k->rt_entries || !block_of(k, entry) || block_of(k, entry) >= k->file_bytes))
            k->rebuild = true;                   /* there is no block to put the count in */
    }
    k->res.image_end_offset = end << k->g->cluster_bits;
    return 0;
}

/* ---- tables beside the mapping ---- */

static int load_snapshots(struct co *co, struct q2_checker *k)
{
    int rc = q2_snapshots_scan(co, k->store, k->g, &k->h, &k->snapshots);
    if (rc == -ENOMEM)
        return rc;
    unsigned faults = k->snapshots.faults;
    if (rc) {
        k->res.check_errors++;
        k->incomplete = true;
        q2_finding(k, false, "Q2_READ", "the snapshot table cannot be read: %s", strerror(-rc));
        return 0;
    }
    k->res.corruptions += k->snapshots.bad_entries;
    if (k->snapshots.bad_entries)
        q2_finding(k, false, "Q2_SNAPSHOT_TABLE", "%" PRIu32 " entries of the snapshot table are missing or have too much or too little extra data", k->snapshots.bad_entries);
    if (faults & Q2_SNAP_COUNT) {
        k->res.corruptions++;
        k->unsure = true;
        q2_finding(k, false, "Q2_SNAPSHOT_TABLE", "%" PRIu32 " snapshots are more than %u", k->q->h.nb_snapshots, Q2_SNAPSHOTS_MAX);
    }
    if (faults & Q2_SNAP_CUT) {
        k->res.corruptions++;
        k->unsure = true;
        q2_finding(k, false, "Q2_SNAPSHOT_TABLE", "the snapshot table goes on behind 64 MiB; %" PRIu32 " entries were read", k->snapshots.count);
    }
    if (faults & (Q2_SNAP_OUTSIDE | Q2_SNAP_ENDED))
        k->unsure = true;                        /* counted as bad entries, and as a reference outside the file */
    return 0;
}

static void judge_bitmap(struct q2_checker *k, uint32_t i)
{
    struct q2_bitmap *b = &k->bitmaps[i];
    uint64_t need = div_up(div_up(k->q->h.size, 1ull << (b->granularity_bits & 63)), k->g->cluster_size * 8);
    if (!b->bad && !(b->flags & Q2_BITMAP_IN_USE) && b->table_entries != need)
        b->bad = "its table does not fit the size of the disk";
    if (!b->bad)
        return;
    k->res.corruptions++;
    k->bitmap_faults++;
    k->unsure |= !b->table_entries;              /* what it holds is not found */
    q2_finding(k, false, "Q2_BITMAPS", "bitmap directory entry %" PRIu32 "%s%s%s is refused: %s", i, b->name ? " ('" : "", b->name ? b->name : "",
               b->name ? "')" : "", b->bad);
}

static int load_bitmaps(struct co *co, struct q2_checker *k)
{
    struct byre_err why = { 0 };
    k->bitmaps_valid = k->h.has_bitmaps && k->h.autoclear & Q2_AUTOCLEAR_BITMAPS;
    int rc = q2_bitmaps_load(co, k->store, k->g, &k->h, &k->bitmaps, &k->bitmap_count, &why);
    for (uint32_t i = 0; !rc && i < k->bitmap_count; i++)
        judge_bitmap(k, i);
    if (!rc || rc == -ENOMEM)
        return rc;
    k->bitmaps_valid = false;
    if (rc == -EINVAL) {
        k->res.corruptions++;
        k->bitmaps_broken = k->unsure = true;
        q2_finding(k, false, "Q2_BITMAPS", "%s", why.text);
    } else {
        k->res.check_errors++;
        k->incomplete = true;
        q2_finding(k, false, "Q2_READ", "%s", why.text);
    }
    return 0;
}

static int count_references(struct co *co, struct q2_checker *k)
{
    int rc = q2_bulk_begin(k, cores(co));
    const struct q2_visitor *v = k->live && k->g->data_file ? &live_data_visitor : &count_visitor;
    struct q2_walk w = q2_checker_walk(k, Q2_WALK_MAPPING | Q2_WALK_SNAPSHOTS, v, k);
    if (!rc)
        rc = q2_walk(co, &w);
    if (!rc)
        rc = q2_bulk_end(k);
    w = q2_checker_walk(k, Q2_WALK_REST, &count_visitor, k);
    return rc ? rc : q2_walk(co, &w);
}

static int gather_all(struct co *co, struct q2_checker *k)
{
    int rc = 0;
    if (k->live)
        rc = q2_live_begin(co, k);
    else
        k->h = k->q->h;
    if (!rc)
        rc = stor_length(co, k->store, &k->file_bytes);      /* I4 */
    k->clusters = div_up(k->file_bytes, k->g->cluster_size);
    k->res.total_clusters = div_up(k->q->h.size, k->g->cluster_size);
    k->res.has_stats = true;
    if (!rc)
        rc = q2_counts_init(&k->refs, k->clusters + 1);
    if (!rc)
        rc = q2_counts_init(&k->stored, k->clusters + 1);
    if (!rc)
        rc = q2_counts_init(&k->l2_uses, k->clusters + 1);
    if (!rc)
        rc = k->live && k->live->counting ? load_rt(co, k) : load_stored(co, k);
    if (!rc)
        rc = load_snapshots(co, k);
    if (!rc)
        rc = load_bitmaps(co, k);
    if (!rc)
        rc = count_references(co, k);
    return rc || (k->live && k->live->counting) ? rc : compare(co, k);
}

int q2_gather(struct co *co, struct q2_checker *k, struct byre_err *err)
{
    int rc = gather_all(co, k);
    if (rc == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: no memory to check the image", k->q->name);
    return rc ? byre_fail_code(err, IO, rc, "%s: cannot be checked: %s", k->q->name, strerror(-rc)) : 0;
}

void q2_checker_init(struct q2_checker *k, struct q2_image *q, const struct fmt_check_opts *o, bool quiet)
{
    *k = (struct q2_checker){ .q = q, .store = q->im.store, .g = &q->g, .o = o, .quiet = quiet, .leftover = UINT64_MAX };
}

/* What a step of repair, which returned rc, has led to. */
static int gather_anew(struct co *co, struct q2_checker *k, int rc, struct byre_err *err)
{
    struct q2_image *q = k->q;
    const struct fmt_check_opts *o = k->o;
    uint64_t corruptions_fixed = k->res.corruptions_fixed, leaks_fixed = k->res.leaks_fixed;
    findings_end(k);
    int reloaded = q2_reload(co, q, rc ? NULL : err);
    if (rc || reloaded)
        return rc ? rc : reloaded;
    q2_checker_fini(k);
    q2_checker_init(k, q, o, true);
    rc = q2_gather(co, k, err);
    k->res.corruptions_fixed = corruptions_fixed;
    k->res.leaks_fixed = leaks_fixed;
    return rc;
}

/* Bad bitmaps leave the directory when nothing else is wrong any more, because a new one needs space (G.015). */
static int drop_bitmaps(struct co *co, struct q2_checker *k, bool *ret_dropped, struct byre_err *err)
{
    *ret_dropped = false;
    if (!k->bitmap_faults || k->res.corruptions != k->bitmap_faults || k->res.check_errors || k->rebuild || k->bitmaps_broken || !(k->o->fix & FMT_FIX_ERRORS))
        return 0;
    int rc = q2_bms_drop_bad(co, k->q, k->bitmaps, k->bitmap_count, err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < k->bitmap_count; i++)
        if (k->bitmaps[i].bad)
            q2_finding(k, true, "Q2_BITMAPS", "bitmap directory entry %" PRIu32 "%s%s%s is dropped", i, k->bitmaps[i].name ? " ('" : "",
                       k->bitmaps[i].name ? k->bitmaps[i].name : "", k->bitmaps[i].name ? "')" : "");
    k->res.corruptions_fixed += k->bitmap_faults;
    *ret_dropped = true;
    return gather_anew(co, k, 0, err);
}

/* One round of repair, then the state that it has led to. */
static int fix_round(struct co *co, struct q2_checker *k, bool *ret_changed, struct byre_err *err)
{
    int rc = q2_repair(co, k, ret_changed, err);
    if (!*ret_changed)
        return rc;
    return gather_anew(co, k, rc, err);
}

/* Mending one thing can bring another into reach (tables that overlapped are apart after a rebuild): goes on while
 * there is progress. */
static int fix_rounds(struct co *co, struct q2_checker *k, struct byre_err *err)
{
    for (unsigned round = 0; round < FIX_ROUNDS && (k->res.corruptions || k->res.leaks || k->rebuild); round++) {
        uint64_t corruptions = k->res.corruptions, leaks = k->res.leaks;
        bool changed = false;
        int rc = fix_round(co, k, &changed, err);
        if (rc)
            return rc;
        if (!changed || (k->res.corruptions == corruptions && k->res.leaks == leaks))
            break;
    }
    return 0;
}

static int fix(struct co *co, struct q2_checker *k, struct byre_err *err)
{
    bool dropped = false;
    int rc = fix_rounds(co, k, err);
    if (!rc)
        rc = drop_bitmaps(co, k, &dropped, err);
    if (!rc && dropped)
        rc = fix_rounds(co, k, err);             /* what they held is leaked now */
    return rc ? rc : q2_repair_finish(co, k, err);
}

int q2_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    if (o->fix && im->read_only)
        return byre_fail(err, READ_ONLY, "%s: a read-only image cannot be repaired", q->name);
    int rc = im->read_only ? 0 : meta_flush(co, q->meta);
    if (rc)
        return byre_fail_code(err, IO, rc, "%s: cached changes cannot be written: %s", q->name, strerror(-rc));
    struct q2_checker *k = malloc(sizeof *k);
    if (!k)
        return byre_fail(err, NOMEM, "%s: no memory to check the image", q->name);
    q2_checker_init(k, q, o, false);
    rc = q2_gather(co, k, err);
    if (!rc && o->fix)
        rc = fix(co, k, err);
    findings_end(k);
    if (!rc)
        *ret = k->res;
    q2_checker_fini(k);
    free(k);
    return rc;
}
