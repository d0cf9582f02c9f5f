/* SPDX-License-Identifier: MIT
 *
 * q2_guard.c: where does metadata lie? What an entry of a damaged image names must not be written when it is a table.
 *
 * Purpose      Knows the clusters of L2 tables and refcount blocks, and the L1 tables of snapshots, beside the few ranges that the
 *              header names (q->fixed). Asked before a write goes out in place, before clusters are handed out, before the last
 *              reference to one is given up, and before a table is changed.
 * Owns         struct q2_guard: a hash of clusters, and a sorted list of ranges. 10 to 32 bytes for each table: as the L1 table
 *              grows, not as the disk.
 * Invariants   G1  While q->guard is set it says what q->l1 and q->rt say: every change of an entry passes q2_l1_set or q2_rt_set; what
 *                  replaces a table as a whole drops it. Dropped, no write goes in place until it was made again (q2_guard_need).
 *              G2  A cluster that becomes a table is in it before the table is written there.
 *              G3  A number of names is kept for each cluster and kind: it stays as long as one is left. 4095 stay for ever; the next
 *                  making corrects that.
 *              G4  While it is made (in steps; others run between them), entries in front of `l1_done` and `rt_done` are followed.
 *              G5  While counts are in memory (q2_unclean.c) no refcount block is in it: nobody uses those of the disk, the table may name
 *                  anything, and what it names behind the old end is handed out. q2_recount.c, which ends that, drops it.
 * Order        None: memory only.
 * Concurrency  Home loop; q2_guard_kind and q2_guard_passes on any loop, without a lock: a slot is one word. What is replaced goes after
 *              a grace period.
 * Failure      -ENOMEM, -EIO (snapshot table) leave it unmade: writes in place wait with the error of whoever tried. No memory for one
 *              more table: it is dropped, and made again by the next write.
 * Tests        q2_guard_test.c, q2_scrub_test.c, q2_core_test.c, q2_chaos_test.c (states_ok), tests/interop/test_overlap.py
 */
#include "fmt/qcow2/q2_guard.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_snapshot.h"
#include "fmt/qcow2/q2_unclean.h"

#define STEP 16384u                      /* entries looked at between two yields */
#define SLOTS_MIN 64u
#define NAMES_MAX 4095u

struct range { uint64_t start, end; };   /* bytes */

struct q2_guard {
    uint64_t mask;                       /* slots - 1 */
    _Atomic uint64_t *slot;              /* cluster << 16 | kind << 12 | names; 0: empty, names 0: was there */
    struct range *old_l1; size_t old_l1_count;       /* sorted, disjoint */
    /* home loop */
    uint64_t used;                       /* slots that are not empty */
    uint64_t l1_done, rt_done;           /* G4 */
    bool shared_ranges;                  /* old_l1 belongs to a successor */
    struct epoch_cb reclaim;
};

const char *q2_what_name(enum q2_what k)
{
    static const char *const names[] = { "header", "active L1 table", "active L2 table", "refcount table", "refcount block", "snapshot table",
                                         "L1 table of a snapshot", "L2 table of a snapshot", "bitmap directory", "LUKS header" };
    _Static_assert(sizeof names / sizeof names[0] == Q2_K_COUNT, "a name for each kind");
    return k < Q2_K_COUNT ? names[k] : "data";
}

/* ---- the hash ---- */

static uint64_t key_of(uint64_t cluster, enum q2_what k) { return cluster << 4 | (uint64_t)k; }
static uint64_t slot_key(uint64_t v) { return v >> 12; }
static uint64_t slot_names(uint64_t v) { return v & NAMES_MAX; }
static uint64_t slot_of(const struct q2_guard *g, uint64_t cluster) { return (cluster * 0x9e3779b97f4a7c15ull >> 20) & g->mask; }

/* The slot of this key, or the empty one where it would be. */
static uint64_t find(const struct q2_guard *g, uint64_t cluster, enum q2_what k)
{
    uint64_t i = slot_of(g, cluster), v;
    while ((v = atomic_load_explicit(&g->slot[i], memory_order_relaxed)) && slot_key(v) != key_of(cluster, k))
        i = (i + 1) & g->mask;
    return i;
}

static uint64_t names_of(const struct q2_guard *g, uint64_t cluster, enum q2_what k)
{
    return slot_names(atomic_load_explicit(&g->slot[find(g, cluster, k)], memory_order_relaxed));
}

/* Bits 1 << kind. Any loop. */
static unsigned kinds_of(const struct q2_guard *g, uint64_t cluster)
{
    unsigned kinds = 0;
    uint64_t v;
    for (uint64_t i = slot_of(g, cluster); (v = atomic_load_explicit(&g->slot[i], memory_order_acquire)); i = (i + 1) & g->mask)
        if (v >> 16 == cluster && slot_names(v))
            kinds |= 1u << (slot_key(v) & 15);
    return kinds;
}

static struct q2_guard *guard_new(uint64_t tables)
{
    struct q2_guard *g = calloc(1, sizeof *g);
    uint64_t slots = SLOTS_MIN;
    while (slots < tables * 2)
        slots *= 2;
    if (!g || !(g->slot = calloc(slots, sizeof *g->slot))) {
        free(g);
        return NULL;
    }
    g->mask = slots - 1;
    return g;
}

static void guard_free(struct q2_guard *g)
{
    if (!g)
        return;
    free((void *)g->slot);
    if (!g->shared_ranges)
        free(g->old_l1);
    free(g);
}

static void reclaim(struct epoch_cb *cb) { guard_free((struct q2_guard *)((char *)cb - offsetof(struct q2_guard, reclaim))); }

/* ret takes the place of g, with room for one more. NULL: no memory. */
static struct q2_guard *larger(struct q2_guard *g)
{
    uint64_t live = 0;
    for (uint64_t i = 0; i <= g->mask; i++)
        live += slot_names(atomic_load_explicit(&g->slot[i], memory_order_relaxed)) != 0;
    struct q2_guard *n = guard_new(live + 1);
    if (!n)
        return NULL;
    for (uint64_t i = 0; i <= g->mask; i++) {
        uint64_t v = atomic_load_explicit(&g->slot[i], memory_order_relaxed);
        if (!slot_names(v))
            continue;
        atomic_store_explicit(&n->slot[find(n, v >> 16, (enum q2_what)(slot_key(v) & 15))], v, memory_order_relaxed);
        n->used++;
    }
    n->old_l1 = g->old_l1;
    n->old_l1_count = g->old_l1_count;
    n->l1_done = g->l1_done;
    n->rt_done = g->rt_done;
    g->shared_ranges = true;
    return n;
}

static bool is_full(const struct q2_guard *g) { return g->used * 4 >= (g->mask + 1) * 3; }

/* There is an empty slot. */
static void add(struct q2_guard *g, uint64_t cluster, enum q2_what k)
{
    uint64_t i = find(g, cluster, k), v = atomic_load_explicit(&g->slot[i], memory_order_relaxed);
    INV(G1, g->used <= g->mask);
    g->used += !v;
    if (slot_names(v) < NAMES_MAX)
        atomic_store_explicit(&g->slot[i], (key_of(cluster, k) << 12 | slot_names(v)) + 1, memory_order_release);
}

static void take_away(struct q2_guard *g, uint64_t cluster, enum q2_what k)
{
    uint64_t i = find(g, cluster, k), v = atomic_load_explicit(&g->slot[i], memory_order_relaxed);
    INV(G1, slot_names(v));
    if (slot_names(v) < NAMES_MAX)       /* G3 */
        atomic_store_explicit(&g->slot[i], v - 1, memory_order_release);
}

/* ---- what changes a root ---- */

void q2_guard_drop(struct q2_image *q)
{
    struct q2_guard *g = atomic_exchange_explicit(&q->guard, NULL, memory_order_acq_rel);
    q->guard_round++;
    if (g)
        epoch_defer(q->im.epoch, &g->reclaim, reclaim);
}

/* One more name, in the guard that is in use. */
static void add_in_use(struct q2_image *q, struct q2_guard *g, uint64_t cluster, enum q2_what k)
{
    if (is_full(g)) {
        struct q2_guard *n = larger(g);
        if (!n) {
            q2_guard_drop(q);
            return;
        }
        add(n, cluster, k);
        atomic_store_explicit(&q->guard, n, memory_order_release);
        epoch_defer(q->im.epoch, &g->reclaim, reclaim);
        return;
    }
    add(g, cluster, k);
}

/* In the one that is being made: there it may fail for memory, and is made anew. */
static void add_in_making(struct q2_image *q, uint64_t cluster, enum q2_what k)
{
    struct q2_guard *g = q->guard_making;
    if (!is_full(g)) {
        add(g, cluster, k);
        return;
    }
    struct q2_guard *n = larger(g);
    if (n) {
        add(n, cluster, k);
        q->guard_making = n;
        guard_free(g);
    } else {
        q->guard_round++;
    }
}

static void renamed(struct q2_image *q, bool in_use, uint64_t old, uint64_t new, enum q2_what k)
{
    struct q2_guard *g = in_use ? atomic_load_explicit(&q->guard, memory_order_relaxed) : q->guard_making;
    if (old)
        take_away(g, old >> q->g.cluster_bits, k);
    if (new && in_use)
        add_in_use(q, g, new >> q->g.cluster_bits, k);
    else if (new)
        add_in_making(q, new >> q->g.cluster_bits, k);
}

/* Where does an L1 entry say that a table is? Also of entries that cannot be right: what they name is no place for data. */
static uint64_t l2_off_of(uint64_t raw) { return raw & Q2_L1E_OFF; }

void q2_l1_set(struct q2_image *q, uint64_t i, uint64_t raw)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    uint64_t old = l2_off_of(be64_word(atomic_load_explicit(&l1->words[i], memory_order_relaxed))), new = l2_off_of(raw);
    if (old != new && q2_guard_ready(q))
        renamed(q, true, old, new, Q2_K_L2);
    if (old != new && q->guard_making && i < q->guard_making->l1_done)
        renamed(q, false, old, new, Q2_K_L2);
    meta_region_set(q->meta, &q->l1_region, i, raw);
}

void q2_rt_set(struct q2_image *q, uint64_t *rt, uint64_t i, uint64_t off)
{
    uint64_t old = rt[i];
    rt[i] = off;
    if (old != off && q2_guard_ready(q))
        renamed(q, true, old, off, Q2_K_BLOCK);
    if (old != off && q->guard_making && i < q->guard_making->rt_done)
        renamed(q, false, old, off, Q2_K_BLOCK);
}

/* ---- making ---- */

static int by_start(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Sorts, and joins what overlaps or touches. */
static void join(struct range *r, size_t *count)
{
    size_t n = 0;
    if (*count)
        qsort(r, *count, sizeof *r, by_start);
    for (size_t i = 0; i < *count; i++) {
        if (n && r[i].start <= r[n - 1].end)
            r[n - 1].end = max_u64(r[n - 1].end, r[i].end);
        else
            r[n++] = r[i];
    }
    *count = n;
}

/* The L1 tables of the snapshots, and how long the snapshot table is. */
static int find_snapshots(struct co *co, struct q2_image *q, struct q2_guard *g)
{
    struct q2_snapshot_scan scan;
    int r = q2_snapshots_scan(co, q->im.store, &q->g, &q->h, &scan);
    if (r < 0)
        return r;
    q2_fixed_snapshots(q, scan.table_bytes);
    g->old_l1 = calloc(scan.count ? scan.count : 1, sizeof *g->old_l1);
    for (uint32_t i = 0; g->old_l1 && i < scan.count; i++) {
        const struct q2_snapshot *s = &scan.snapshots[i];
        if (s->l1_ok && s->l1_size)
            g->old_l1[g->old_l1_count++] = (struct range){ s->l1_off, s->l1_off + (uint64_t)s->l1_size * 8 };
    }
    q2_snapshots_free(scan.snapshots, scan.count);
    if (!g->old_l1)
        return -ENOMEM;
    join(g->old_l1, &g->old_l1_count);
    return 0;
}

static int old_tables_of(struct co *co, struct q2_image *q, const struct range *r, uint64_t file, uint64_t *buf)
{
    for (uint64_t at = r->start; at < min_u64(r->end, file);) {
        uint64_t n = min_u64(min_u64(r->end, file) - at, STEP * 8) & ~7ull;
        if (!n)
            break;
        int e = stor_read_exact(co, q->im.store, buf, n, at);
        if (e < 0)
            return e;
        for (uint64_t i = 0; i < n / 8; i++) {
            uint64_t off = l2_off_of(be64_word(buf[i]));
            if (off && off < file)
                add_in_making(q, off >> q->g.cluster_bits, Q2_K_OLD_L2);
        }
        at += n;
    }
    return 0;
}

/* The L2 tables of the snapshots, from the disk: only when asked for (overlap-check=all). Each byte is read once. */
static int find_old_tables(struct co *co, struct q2_image *q)
{
    uint64_t file, *buf = NULL;
    int r = stor_length(co, q->im.store, &file);
    if (r < 0 || posix_memalign((void **)&buf, 4096, STEP * 8))
        return r < 0 ? r : -ENOMEM;
    for (size_t i = 0; r == 0 && i < q->guard_making->old_l1_count; i++) {
        struct range x = q->guard_making->old_l1[i];
        r = old_tables_of(co, q, &x, file, buf);
    }
    free(buf);
    return r;
}

static void find_roots(struct co *co, struct q2_image *q, uint64_t round)
{
    for (uint64_t i = 0; q->guard_round == round; i++) {
        const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
        if (i >= l1->entries)
            break;
        uint64_t off = l2_off_of(be64_word(atomic_load_explicit(&l1->words[i], memory_order_relaxed)));
        q->guard_making->l1_done = i + 1;
        if (off)
            add_in_making(q, off >> q->g.cluster_bits, Q2_K_L2);
        if (i % STEP == STEP - 1)
            co_yield(co);
    }
    for (uint64_t i = 0; q->guard_round == round && !q2_counts_in_memory(q) && i < q->rt_entries; i++) {      /* G5 */
        q->guard_making->rt_done = i + 1;
        if (q->rt[i])
            add_in_making(q, q->rt[i] >> q->g.cluster_bits, Q2_K_BLOCK);
        if (i % STEP == STEP - 1)
            co_yield(co);
    }
}

/* Under guard_mx. 1: the tables were replaced meanwhile. */
static int make(struct co *co, struct q2_image *q)
{
    uint64_t round = q->guard_round;
    q->guard_making = guard_new(0);
    if (!q->guard_making)
        return -ENOMEM;
    int r = find_snapshots(co, q, q->guard_making);
    if (r == 0 && q->overlap & 1u << Q2_K_OLD_L2)
        r = find_old_tables(co, q);
    if (r == 0)
        find_roots(co, q, round);
    struct q2_guard *g = q->guard_making;
    q->guard_making = NULL;
    if (r < 0 || q->guard_round != round) {
        guard_free(g);
        return r < 0 ? r : 1;
    }
    g->l1_done = g->rt_done = UINT64_MAX;
    atomic_store_explicit(&q->guard, g, memory_order_release);
    return 0;
}

#define TRIES 64u

int q2_guard_need(struct co *co, struct q2_image *q)
{
    ASSERT_LOOP(q->im.home);
    if (LIKELY(q2_guard_ready(q)))
        return 0;
    int r = 1;
    co_lock(co, &q->guard_mx);
    for (unsigned i = 0; i < TRIES && r > 0; i++)
        r = q2_guard_ready(q) ? 0 : make(co, q);
    co_unlock(&q->guard_mx);
    return r > 0 ? -ENOMEM : r;          /* no memory for what came in between, over and over */
}

void q2_guard_free(struct q2_image *q)
{
    guard_free(atomic_exchange(&q->guard, NULL));
}

/* ---- asking ---- */

static bool in_ranges(const struct q2_guard *g, uint64_t start, uint64_t end)
{
    size_t lo = 0, hi = g->old_l1_count;
    while (lo < hi) {                    /* the first that ends behind start */
        size_t mid = lo + (hi - lo) / 2;
        if (g->old_l1[mid].end <= start)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < g->old_l1_count && g->old_l1[lo].start < end;
}

static enum q2_what lowest(unsigned kinds) { return kinds ? (enum q2_what)__builtin_ctz(kinds) : Q2_K_NONE; }

enum q2_what q2_guard_kind(const struct q2_image *q, uint64_t host, unsigned want)
{
    enum q2_what k = lowest(q2_fixed_kinds(q, host) & want);
    const struct q2_guard *g = atomic_load_explicit(&q->guard, memory_order_acquire);
    if (UNLIKELY(k != Q2_K_NONE) || !g)
        return k;
    k = lowest(kinds_of(g, host >> q->g.cluster_bits) & want);
    if (LIKELY(k == Q2_K_NONE) && g->old_l1_count && want & 1u << Q2_K_OLD_L1 && in_ranges(g, host, host + q->g.cluster_size))
        return Q2_K_OLD_L1;
    return k;
}

#define IN_GUARD (1u << Q2_K_L2 | 1u << Q2_K_BLOCK | 1u << Q2_K_OLD_L1 | 1u << Q2_K_OLD_L2)

#define ALL_KINDS ((1u << Q2_K_COUNT) - 1)

bool q2_guard_clear(const struct q2_image *q, uint64_t host)
{
    return q2_guard_ready(q) && q2_guard_kind(q, host, ALL_KINDS) == Q2_K_NONE;
}

bool q2_guard_passes(const struct q2_image *q, uint64_t host)
{
    if (UNLIKELY(q->overlap & IN_GUARD && !q2_guard_ready(q)))
        return false;
    return q2_guard_kind(q, host, q->overlap) == Q2_K_NONE;
}

bool q2_guard_judge(struct q2_image *q, uint64_t host, uint64_t bytes)
{
    enum q2_what k = q2_guard_kind(q, round_down(host, q->g.cluster_size), q->overlap);
    if (k == Q2_K_NONE)
        return true;
    q2_note(q, host, bytes, "a write of guest data at %#" PRIx64 " was stopped: the %s lies there", host, q2_what_name(k));
    return false;
}

int q2_guard_may_take(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n)
{
    int r = q2_guard_need(co, q);
    for (uint64_t c = cluster; r == 0 && c < cluster + n; c++) {
        enum q2_what k = q2_guard_kind(q, c << q->g.cluster_bits, ALL_KINDS);
        if (k == Q2_K_NONE)
            continue;
        q2_note(q, c << q->g.cluster_bits, q->g.cluster_size, "cluster %#" PRIx64 " is free by its refcount, but the %s lies there", c << q->g.cluster_bits,
                q2_what_name(k));
        r = -EUCLEAN;
    }
    return r;
}

int q2_guard_may_change(struct co *co, struct q2_image *q, uint64_t off, enum q2_what as)
{
    int r = q2_guard_need(co, q);
    if (r < 0)
        return r;
    enum q2_what k = q2_guard_kind(q, off, ALL_KINDS & ~(1u << as) & ~(as == Q2_K_L2 ? 1u << Q2_K_OLD_L2 : 0u));
    const struct q2_guard *g = atomic_load_explicit(&q->guard, memory_order_relaxed);
    if (k == Q2_K_NONE && names_of(g, off >> q->g.cluster_bits, as) <= 1)
        return 0;
    if (k == Q2_K_NONE)
        q2_note(q, off, q->g.cluster_size, "a change of the %s at %#" PRIx64 " was stopped: it is named more than once", q2_what_name(as), off);
    else
        q2_note(q, off, q->g.cluster_size, "a change of the %s at %#" PRIx64 " was stopped: the %s lies there, too", q2_what_name(as), off, q2_what_name(k));
    return -EUCLEAN;
}

/* ---- for tests ---- */

bool q2_guard_is_right(const struct q2_image *q)
{
    const struct q2_guard *g = atomic_load(&q->guard);
    const struct q2_l1 *l1 = atomic_load(&q->l1);
    uint64_t have = 0, want = 0;
    if (!g)
        return true;
    for (uint64_t i = 0; i <= g->mask; i++) {
        uint64_t v = atomic_load(&g->slot[i]);
        have += (slot_key(v) & 15) == Q2_K_OLD_L2 ? 0 : slot_names(v);
    }
    for (uint64_t i = 0; i < l1->entries; i++) {
        uint64_t off = l2_off_of(be64_word(atomic_load(&l1->words[i])));
        want += off != 0;
        if (off && !names_of(g, off >> q->g.cluster_bits, Q2_K_L2))
            return false;
    }
    for (uint64_t i = 0; !q2_counts_in_memory(q) && i < q->rt_entries; i++) {
        want += q->rt[i] != 0;
        if (q->rt[i] && !names_of(g, q->rt[i] >> q->g.cluster_bits, Q2_K_BLOCK))
            return false;
    }
    return have == want;
}
