/* SPDX-License-Identifier: MIT
 *
 * q2_repair.c: which edits make an image sound again, and in which order?
 *
 * Purpose      Mends what check found (1.116-1.119): counts, flags, entries that cannot be right, snapshot table,
 *              bitmap directory; the refcount structure as a whole when it is unusable.
 * Owns         Nothing beyond a call.
 * Invariants   I1 No guest byte changes: an entry is replaced only where nothing can be behind it (outside the file)
 *                 or by what every reader makes of it already (reserved bits).
 *              I2 Nothing is freed while a reference may be hidden from view (unreadable or endless tables; in careful
 *                 mode also unreachable snapshots and bitmaps).
 *              I3 A table entry is written only where the cluster serves as that kind of table and as nothing else.
 *              I4 Running it again after a crash anywhere leads to the same end: each stage only moves toward it.
 * Order        Counts up | entries and COPIED off | snapshot table, bitmaps, new refcount structure | counts down |
 *              COPIED on | dirty and corrupt bits off (Q22). A barrier between any two (P5).
 * Concurrency  Home loop, image drained, inside meta_struct_begin.
 * Failure      The first failed write ends it; what was done stays and is sound in itself.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py, crash explorer
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/pieces.h"
#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_clone.h"

#define L1E_RESERVED 0x7f000000000001ffull
#define L2E_RESERVED 0x3f000000000001feull

static uint64_t mend_short(const struct q2_geom *g, const struct q2_ref *r, bool unallocated_reads_zero)
{
    uint64_t zero = g->zero_clusters ? Q2_E_ZERO : unallocated_reads_zero ? 0 : r->raw;
    switch (r->kind) {
    case Q2_REF_L2:
        return r->outside || !r->off ? 0 : r->raw & ~L1E_RESERVED;
    case Q2_REF_COMPRESSED:
        return r->outside ? zero : r->raw & ~Q2_E_COPIED;
    case Q2_REF_DATA:
        return r->outside ? zero : r->raw & ~L2E_RESERVED;
    default:
        if (!g->zero_clusters)                       /* the flag is a reserved bit of version 2 */
            return r->outside ? zero : r->raw & ~(L2E_RESERVED | Q2_E_ZERO);
        if (r->outside || !is_aligned(r->off, g->cluster_size))
            return Q2_E_ZERO;
        return r->raw & ~L2E_RESERVED;
    }
}

/* What was in the cluster is gone, and reads zero now; what was absent or zero stays. */
static struct q2_mended mend_extended(const struct q2_geom *g, const struct q2_ref *r)
{
    uint32_t alloc = (uint32_t)r->bits, zero = (uint32_t)(r->bits >> 32);
    bool lost = r->outside || (r->kind == Q2_REF_ZERO && !is_aligned(r->off, g->cluster_size));
    if (r->kind == Q2_REF_COMPRESSED)
        return r->outside ? (struct q2_mended){ 0, (uint64_t)Q2_SUB_ALL << 32 } : (struct q2_mended){ r->raw & ~Q2_E_COPIED, r->bits };
    if (lost)
        return (struct q2_mended){ 0, (uint64_t)(zero | alloc) << 32 };
    return (struct q2_mended){ r->raw & ~L2E_RESERVED, r->bits };
}

struct q2_mended q2_mend_entry(const struct q2_geom *g, const struct q2_ref *r, bool unallocated_reads_zero)
{
    if (g->ext_l2 && r->kind != Q2_REF_L2)
        return mend_extended(g, r);
    return (struct q2_mended){ mend_short(g, r, unallocated_reads_zero), r->bits };
}

/* ---- entries and flags ---- */

/* What a walk over the mapping changes: entries that break rules; flags in one of the two directions. */
enum stage { STAGE_MEND = 1, STAGE_CLEAR = 2, STAGE_SET = 4 };

struct entry_pass {
    struct q2_checker *k;
    struct q2_edits edits;
    unsigned stages;
    uint64_t count;
};

/* I3: is the cluster that holds this entry used for nothing else? */
static bool container_is_safe(const struct q2_checker *k, const struct q2_ref *r)
{
    uint64_t c = r->entry_off >> k->g->cluster_bits, refs = q2_counts_get(&k->refs, c), as_l2 = q2_counts_get(&k->l2_uses, c);
    return r->kind == Q2_REF_L2 ? refs == 1 && !as_l2 : refs == as_l2;
}

static bool has_copied(const struct q2_ref *r) { return r->kind == Q2_REF_L2 || r->kind == Q2_REF_DATA || r->kind == Q2_REF_ZERO; }

/* The COPIED flag as the final counts want it; only one direction per stage. */
static uint64_t adjust_copied(const struct entry_pass *p, const struct q2_ref *r, uint64_t raw)
{
    if (!r->active || !has_copied(r) || !(raw & Q2_L2E_OFF))
        return raw;
    if (p->k->g->data_file && r->kind != Q2_REF_L2)        /* its place is its own, whatever the counts of this file say */
        return p->stages & STAGE_SET ? raw | Q2_E_COPIED : raw;
    bool one = q2_refs_wanted(p->k, (raw & Q2_L2E_OFF) >> p->k->g->cluster_bits) == 1;
    if (one)
        return p->stages & STAGE_SET ? raw | Q2_E_COPIED : raw;
    return p->stages & STAGE_CLEAR ? raw & ~Q2_E_COPIED : raw;
}

/* A preallocated zero cluster at a place that is none gives up the clusters it touched. */
static void forget_refs(struct q2_checker *k, const struct q2_ref *r)
{
    if (r->outside || r->kind != Q2_REF_ZERO || is_aligned(r->off, k->g->cluster_size))
        return;
    uint64_t c = r->off >> k->g->cluster_bits;
    q2_counts_sub(&k->refs, c, r->weight);
    q2_counts_sub(&k->refs, c + 1, r->weight);
}

static int edit_entry(struct co *co, void *arg, const struct q2_ref *r)
{
    struct entry_pass *p = arg;
    struct q2_checker *k = p->k;
    bool reads_zero = !k->q->h.backing_name;
    struct q2_mended m = p->stages & STAGE_MEND ? q2_mend_entry(k->g, r, reads_zero) : (struct q2_mended){ r->raw, r->bits };
    bool mended = m.raw != r->raw || m.bits != r->bits;
    m.raw = adjust_copied(p, r, m.raw);
    if ((m.raw == r->raw && m.bits == r->bits) || !container_is_safe(k, r)) {
        if (r->outside)
            k->leftover = min_u64(k->leftover, r->off);
        return 0;
    }
    if (mended && r->kind == Q2_REF_ZERO && !(m.raw & Q2_L2E_OFF))
        forget_refs(k, r);
    p->count += mended ? r->weight : 1;
    q2_finding(k, true, mended ? "Q2_ENTRY" : "Q2_COPIED", "%s: entry at %#" PRIx64 " is now %#" PRIx64 " (was %#" PRIx64 ")",
               q2_ref_name(r->kind), r->entry_off, m.raw, r->raw);
    if (m.bits != r->bits)
        return q2_edits_add_pair(co, &p->edits, k->q, r->entry_off, m.raw, m.bits);
    return q2_edits_add(co, &p->edits, k->q, r->entry_off, m.raw);
}

static int ignore_ref(struct co *co, void *arg, const struct q2_ref *r)
{
    return 0;
}

static void ignore_fault(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc)
{
}

static int barrier(struct co *co, struct q2_checker *k) { return meta_barrier(co, k->q->meta, META_B_REPAIR); }

static int entry_stage(struct co *co, struct q2_checker *k, unsigned stages, unsigned parts)
{
    static const struct q2_visitor v = { .ref = ignore_ref, .fault = ignore_fault, .entry = edit_entry };
    struct entry_pass p = { .k = k, .stages = stages };
    struct q2_walk w = q2_checker_walk(k, parts, &v, &p);
    int rc = q2_walk(co, &w);
    if (!rc)
        rc = q2_edits_apply(co, &p.edits, k->q);
    if (!rc && p.count)
        rc = barrier(co, k);
    q2_edits_fini(&p.edits);
    k->res.corruptions_fixed += p.count;
    return rc;
}

/* ---- counts in place ---- */

enum direction { RAISE, LOWER };

struct count_pass { struct q2_checker *k; enum direction dir; uint64_t at, count; };

static uint64_t block_at(const struct q2_checker *k, uint64_t entry) { return k->rt[entry] & ~0x1ffull; }

static bool next_block(void *arg, struct fmt_piece *p)
{
    struct count_pass *c = arg;
    struct q2_checker *k = c->k;
    for (; c->at < k->rt_entries; c->at++) {
        uint64_t off = block_at(k, c->at);
        if (off && off < k->file_bytes && q2_stored_known(k, c->at << k->g->block_bits))
            break;
    }
    if (c->at == k->rt_entries)
        return false;
    p->tag = c->at;
    p->off = block_at(k, c->at++);
    p->len = k->g->cluster_size;
    return true;
}

/* Writes the sectors of a block between the first and the last changed byte. */
static int write_block(struct co *co, struct q2_checker *k, const struct fmt_piece *p, uint64_t from, uint64_t to)
{
    from = round_down(from, 512);
    to = round_up(to, 512);
    return meta_write_now(co, k->q->meta, p->data + from, to - from, p->off + from);
}

static int use_block(struct co *co, void *arg, struct fmt_piece *p)
{
    struct count_pass *c = arg;
    struct q2_checker *k = c->k;
    uint64_t per = 1ull << k->g->block_bits, first = p->tag * per, from = UINT64_MAX, to = 0;
    if (p->rc)
        return p->rc;
    for (uint64_t i = 0; i < min_u64(per, k->clusters - first); i++) {
        uint64_t have = q2_refcount_get(k->g, p->data, i), want = q2_refs_wanted(k, first + i);
        if (have == want || (have < want) != (c->dir == RAISE))
            continue;
        q2_refcount_put(k->g, p->data, i, want);
        uint64_t bit = i << k->g->refcount_order;
        from = min_u64(from, bit / 8);
        to = (bit + k->g->refcount_bits - 1) / 8 + 1;
        c->count++;
        q2_finding(k, true, c->dir == RAISE ? "Q2_REFCOUNT_LOW" : "Q2_LEAK", "cluster %" PRIu64 ": refcount %" PRIu64 " set to %" PRIu64, first + i, have, want);
    }
    return to ? write_block(co, k, p, from, to) : 0;
}

static int count_stage(struct co *co, struct q2_checker *k, enum direction dir)
{
    static const struct fmt_pieces_ops ops = { next_block, use_block };
    struct count_pass c = { .k = k, .dir = dir };
    int rc = fmt_pieces_run(co, k->store, k->g->cluster_size, &ops, &c);
    if (!rc && c.count)
        rc = barrier(co, k);
    if (dir == RAISE)
        k->res.corruptions_fixed += c.count;
    else
        k->res.leaks_fixed += c.count;
    return rc;
}

/* ---- tables ---- */

/* A directory that cannot be read is no longer trusted: what only it named becomes free (G.015). */
static int drop_bitmaps(struct co *co, struct q2_checker *k)
{
    if (!k->bitmaps_broken)
        return 0;
    k->q->h.autoclear &= ~Q2_AUTOCLEAR_BITMAPS;
    int rc = q2_header_sync(co, k->q, 88, 96, META_B_REPAIR);
    if (!rc) {
        k->res.corruptions_fixed++;
        q2_finding(k, true, "Q2_BITMAPS", "the bitmap directory is dropped");
    }
    return rc;
}

/* Takes entries out of the list whose L1 table is lost: nothing can be behind them. true: there was one. */
static bool drop_lost_snapshots(struct q2_checker *k)
{
    struct q2_snapshot_scan *s = &k->snapshots;
    uint32_t kept = 0, all = s->count;
    for (uint32_t i = 0; i < all; i++) {
        struct q2_snapshot sn = s->snapshots[i];
        if (sn.lost) {
            q2_finding(k, true, "Q2_SNAPSHOT_L1", "snapshot %s (%s) is dropped: its L1 table is lost", sn.id, sn.name);
            free(sn.id);
            free(sn.name);
            free(sn.extra);
            k->res.corruptions_fixed++;
        } else {
            s->snapshots[kept++] = sn;
        }
    }
    s->count = kept;
    return kept < all;
}

static bool snapshots_need_repair(struct q2_checker *k)
{
    bool lost = drop_lost_snapshots(k);
    return lost || k->snapshots.bad_entries || k->snapshots.faults & (Q2_SNAP_COUNT | Q2_SNAP_CUT | Q2_SNAP_OUTSIDE | Q2_SNAP_ENDED);
}

/* ---- the two modes ---- */

/* Only too high counts, and flags when nothing else is wrong. */
static int repair_leaks(struct co *co, struct q2_checker *k)
{
    bool others = k->res.corruptions > k->flags || k->res.check_errors;
    int rc = 0;
    if (k->incomplete || k->unsure || k->rebuild) {
        q2_finding(k, false, "Q2_NOT_FREED", "nothing is freed: some references cannot be followed, or the refcount structure is damaged");
        return 0;
    }
    if (!others)
        rc = entry_stage(co, k, STAGE_CLEAR, Q2_WALK_MAPPING);
    if (!rc)
        rc = count_stage(co, k, LOWER);
    if (!rc && !others)
        rc = entry_stage(co, k, STAGE_SET, Q2_WALK_MAPPING);
    return rc;
}

/* Some references are hidden: counts may go up, nothing else. */
static int repair_blind(struct co *co, struct q2_checker *k)
{
    q2_finding(k, false, "Q2_NOT_FREED", "nothing is freed or rebuilt: some tables cannot be read");
    return k->rebuild ? 0 : count_stage(co, k, RAISE);
}

static int repair_all(struct co *co, struct q2_checker *k, struct byre_err *err)
{
    bool new_snapshots = snapshots_need_repair(k), rebuild = k->rebuild || new_snapshots;
    int rc = k->rebuild ? 0 : count_stage(co, k, RAISE);
    if (!rc && k->res.corruptions)
        rc = entry_stage(co, k, rebuild ? STAGE_MEND : STAGE_MEND | STAGE_CLEAR, Q2_WALK_MAPPING | Q2_WALK_SNAPSHOTS);
    if (!rc)
        rc = drop_bitmaps(co, k);
    if (!rc && rebuild)
        rc = q2_rebuild(co, k, new_snapshots, err);
    if (!rc && rebuild)
        rc = entry_stage(co, k, STAGE_CLEAR, Q2_WALK_MAPPING);     /* now that old tables count no more */
    if (!rc && !rebuild)
        rc = count_stage(co, k, LOWER);
    if (!rc)
        rc = entry_stage(co, k, STAGE_SET, Q2_WALK_MAPPING);
    return rc;
}

int q2_repair(struct co *co, struct q2_checker *k, bool *ret_changed, struct byre_err *err)
{
    struct byre_err why = { 0 };
    int rc;
    *ret_changed = true;
    meta_struct_begin(co, k->q->meta);
    rc = q2_clone_unsettle(co, k->q);
    if (!rc && !(k->o->fix & FMT_FIX_ERRORS))
        rc = repair_leaks(co, k);
    else if (!rc && k->incomplete)
        rc = repair_blind(co, k);
    else if (!rc)
        rc = repair_all(co, k, &why);
    meta_struct_end(k->q->meta);
    if (!rc)
        return 0;
    if (why.code)
        return byre_fail_code(err, IO, rc, "%s", why.text);
    return byre_fail_code(err, IO, rc, "%s: repair failed: %s", k->q->name, strerror(-rc));
}

int q2_repair_finish(struct co *co, struct q2_checker *k, struct byre_err *err)
{
    struct q2_image *q = k->q;
    uint64_t bits = Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT, old = q->h.incompat;
    if (!(old & bits) || k->res.corruptions || k->res.check_errors)
        return 0;
    meta_struct_begin(co, q->meta);
    q->h.incompat &= ~bits;
    int rc = q2_header_sync(co, q, 72, 80, META_B_REPAIR);
    meta_struct_end(q->meta);
    if (rc) {
        q->h.incompat = old;
        return byre_fail_code(err, IO, rc, "%s: the header cannot be written: %s", q->name, strerror(-rc));
    }
    return 0;
}
