/* SPDX-License-Identifier: MIT
 *
 * q2_wplan.c: what does a write need?
 *
 * Purpose     Looks at the entries that a guest range touches and says how far one kind of change reaches, and which bytes
 *             around the data must be right on the host before the entries are set.
 * Owns        Nothing.
 * Invariants  I1  Short entries: whole clusters change hands, so all of the first and of the last must be right.
 *             I2  Extended entries: subclusters change hands. In a cluster of the image's own only those that the data
 *                 touches; in a new cluster also those that the old one held (they move with it).
 *             I3  What is neither touched nor held stays as it was: zero or absent.
 * Order       None: pure. What it says must be filled is what Q2 asks for; W3 of q2_write.c and Q23 rest on zero_all.
 * Concurrency Pure functions of entries and of below_zero_from.
 * Failure     -EUCLEAN for a first entry that cannot be right.
 * Tests       q2_write_test.c, q2_wsub_test.c
 */
#include "fmt/qcow2/q2_wplan.h"

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_guard.h"

/* One entry. head_from, tail_to: where what must be right begins and ends, bytes in the cluster. */
struct look {
    enum q2_need need;
    uint64_t head_from, tail_to;
    bool zero_head, zero_tail, zero_all, stale, held;
};

static bool held(const struct q2_image *q, const struct q2_l2e *e) { return e->kind == Q2_NORMAL && e->copied && q2_held(q, e->host); }

static bool own(const struct q2_image *q, const struct q2_l2e *e)
{
    return e->kind == Q2_NORMAL && (e->copied || MUTANT(MUT_SHARED_IN_PLACE)) && !q2_held(q, e->host);
}

/* From which guest offset on do unallocated places read zeros? */
static uint64_t below_from(const struct q2_image *q)
{
    return MUTANT(MUT_COW_UNORDERED) ? 0 : atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
}

/* ---- short entries ---- */

static enum q2_need need_of(const struct q2_image *q, const struct q2_l2e *e)
{
    if (own(q, e))
        return Q2_NEED_NOTHING;
    if (e->kind == Q2_ZERO_ALLOC && e->copied)
        return Q2_NEED_KEPT;
    return Q2_NEED_CLUSTER;
}

/* Does the guest read zeros there, whatever lies below? */
static bool reads_zero(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest_cluster)
{
    if (e->kind == Q2_ZERO_PLAIN || e->kind == Q2_ZERO_ALLOC)
        return true;
    return e->kind == Q2_UNALLOCATED && guest_cluster >= below_from(q);
}

static void look_whole(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest, struct look *ret)
{
    bool zero = reads_zero(q, e, guest);
    *ret = (struct look){ .need = need_of(q, e), .held = held(q, e), .tail_to = q->g.cluster_size, .zero_head = zero, .zero_tail = zero, .zero_all = zero, .stale = true };
}

/* ---- extended entries ---- */

/* Subclusters from bit `from` up to bit `to`, both included. */
static uint32_t bits(uint32_t from, uint32_t to) { return (uint32_t)((2ull << to) - (1ull << from)); }

/* Subclusters in which a layer below could show something that is not zero. */
static uint32_t shows_below(const struct q2_image *q, uint64_t guest)
{
    uint64_t end = below_from(q);
    return end <= guest ? 0 : q2_sub_touched(&q->g, 0, min_u64(end - guest, q->g.cluster_size));
}

static bool all_in(const struct q2_image *q, uint32_t mask, uint64_t from, uint64_t to)
{
    return from == to || !(q2_sub_touched(&q->g, from, to) & ~mask);
}

/* Bytes [from, to) of the cluster at `guest` are written. */
static void look_sub(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest, uint64_t from, uint64_t to, struct look *ret)
{
    uint32_t first = (uint32_t)(from >> q->g.sub_bits), last = (uint32_t)((to - 1) >> q->g.sub_bits);
    uint32_t touched = bits(first, last), alloc = e->kind == Q2_COMPRESSED ? Q2_SUB_ALL : e->alloc;
    uint32_t zero = ~alloc & (e->zero | ~shows_below(q, guest)), partly = touched & ~q2_sub_inside(&q->g, from, to), around;
    *ret = (struct look){ .need = Q2_NEED_CLUSTER, .held = held(q, e), .head_from = from, .tail_to = to, .zero_all = !((touched | alloc) & ~zero) };
    if (own(q, e)) {
        ret->need = alloc >> first & 1 ? Q2_NEED_NOTHING : Q2_NEED_KEPT;
        ret->stale = touched & e->zero;
        around = partly & ~alloc;
    } else {
        around = partly | (MUTANT(MUT_SUB_LEFT_BEHIND) ? 0 : alloc & ~touched);              /* I2 */
    }
    uint32_t before = around & bits(0, first), behind = around & bits(last, Q2_SUBCLUSTERS - 1);
    if (before)
        ret->head_from = min_u64(from, (uint64_t)__builtin_ctz(before) << q->g.sub_bits);
    if (behind)
        ret->tail_to = max_u64(to, (uint64_t)(32 - __builtin_clz(behind)) << q->g.sub_bits);
    ret->zero_head = all_in(q, zero, ret->head_from, from);
    ret->zero_tail = all_in(q, zero, to, ret->tail_to);
}

/* ---- a span of them ---- */

/* Entry i of the span. false: it cannot be right, or names metadata as the image's own data (M2 of q2_map.c). */
static bool look_at(const struct q2_image *q, const struct q2_wspan *s, uint32_t i, struct q2_l2e *e, struct look *ret)
{
    uint64_t cs = q->g.cluster_size, guest = round_down(s->off, cs) + (uint64_t)i * cs;
    if (!q2_entry_get(q, s->b, s->index + i, e) || !q2_entry_fits(q, e, guest))
        return false;
    if (q->g.ext_l2)
        look_sub(q, e, guest, max_u64(s->off, guest) - guest, min_u64(s->off + s->len, guest + cs) - guest, ret);
    else
        look_whole(q, e, guest, ret);
    return ret->need == Q2_NEED_CLUSTER || q->g.data_file || q2_guard_kind(q, e->host, q->overlap) == Q2_K_NONE;
}

int q2_write_plan(const struct q2_image *q, const struct q2_wspan *s, struct q2_wplan *ret)
{
    uint64_t cs = q->g.cluster_size, c0 = round_down(s->off, cs);
    struct q2_wplan p = { .zero_all = true };
    for (p.n = 0; p.n < s->max; p.n++) {
        struct q2_l2e e;
        struct look l;
        if (!look_at(q, s, p.n, &e, &l)) {
            if (p.n)
                break;
            return -EUCLEAN;
        }
        if (p.n == 0) {
            p.need = l.need;
            p.host = e.host;
            p.start = c0 + l.head_from;
            p.zero_first = l.zero_head;
            if (p.need == Q2_NEED_NOTHING)
                break;
        } else if (l.need != p.need || (l.need == Q2_NEED_KEPT && e.host != p.host + p.n * cs)) {
            break;
        }
        p.stop = c0 + p.n * cs + l.tail_to;
        p.zero_last = l.zero_tail;
        p.zero_all &= l.zero_all;
        p.stale |= l.stale;
        p.held |= l.held;
    }
    *ret = p;
    return 0;
}

bool q2_write_in_place(const struct q2_image *q, const struct q2_wspan *s)
{
    struct q2_l2e e;
    struct look l;
    return s->b && look_at(q, s, 0, &e, &l) && l.need == Q2_NEED_NOTHING && (q->g.data_file || q2_guard_passes(q, e.host));
}

bool q2_write_keeps(const struct q2_image *q, const struct q2_wspan *s)
{
    struct q2_l2e e;
    return s->b && q2_entry_get(q, s->b, s->index, &e) && own(q, &e);
}

struct q2_l2e q2_write_after(const struct q2_image *q, const struct q2_l2e *old, uint64_t host, uint32_t touched)
{
    struct q2_l2e e = { .kind = Q2_NORMAL, .copied = true, .host = host };
    if (!q->g.ext_l2)
        return e;
    e.alloc = (old->kind == Q2_COMPRESSED ? Q2_SUB_ALL : old->alloc) | touched;
    e.zero = old->zero & ~e.alloc;
    return e;
}
