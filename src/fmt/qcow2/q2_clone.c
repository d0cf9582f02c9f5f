/* SPDX-License-Identifier: MIT
 *
 * q2_clone.c: a range of the disk is copied to another place of it by sharing clusters.
 *
 * Purpose     The entries of the target name the clusters that those of the source name. Both are then written by copying, as after
 *             a snapshot. What cannot be shared the caller copies.
 * Owns        The ranges of one call, locked; q->clones: clusters that lost an owner while they had others.
 * Invariants  L1  Source and target are locked from the first look to the end, and both are asked for in one moment: locks are given in
 *                 the order of asking, so nobody who wants a range that holds both may come in between.
 *             L2  While the source's flag is there, or somebody who saw it may be inside, nothing else names the cluster: he writes in
 *                 place. So: flag away, durably; a grace period; then the target's entry.
 *             L3  Of what has been counted every cluster is linked, or its count is given back by the way of all that is dropped, and
 *                 the flag comes back: the source is still the only owner.
 *             L4  What is counted and not linked yet is no leak: a scrub does not judge it (`given`).
 *             L5  The image says that it has such clusters (Q2_AUTOCLEAR_CLONES), durably, before the first one. Version 2 has no place
 *                 for that.
 *             L6  Who loses a shared cluster does not know who else has it. Where only one owner is left, and no snapshot, his flag is
 *                 missing: that costs him a copy, and is no danger. It is set at the close, by a walk over the tables that this opening's clones
 *                 were made in, if a cluster has lost an owner; in an image that was opened with such clusters the walk goes on over the others, until
 *                 all owners that are left alone have been found; and by a repair. A program that does not know
 *                 of clones leaves it as it is.
 *             L7  While no flag is missing the image says so (Q2_AUTOCLEAR_SETTLED): then a close has nothing to look for but what this opening did. It is
 *                 taken back, durably, before a cluster gets a second owner or loses one of several, before a snapshot comes or goes, and by whoever
 *                 lowers counts that were too high. Without it all is walked, and every flag set that is missing.
 * Order       Q27: counts and the cleared flags of the source (a pass) | grace period | entries of the target, with the barrier behind
 *             data and counts | the target's old clusters go the way of Q9. A crash leaves leaks, and flags that are missing, or that
 *             stand beside a count that leaks.
 * Concurrency Home loop, beside any requests. Writers of the two ranges wait for one call.
 * Failure     Nothing is linked; L3. A close that cannot set flags tells so; the next one sets them.
 * Tests       q2_clone_test.c, crash explorer (letter l, mutants CLONE_*), tests/faults, tests/interop/test_clone.py
 */
#include "fmt/qcow2/q2_clone.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"

#define CLONE_MAX 512u                   /* clusters of one call */

/* The beginning of two ranges, as far as one slice each answers. */
struct clone {
    struct q2_image *q;
    uint64_t src, dst;
    uint32_t max, n;                     /* clusters that may, and that will be shared */
    struct meta_block *sb, *db;          /* pinned; sb: only where flags are to be cleared */
    uint32_t si, di;
    bool flags;                          /* some entry of the source says that it is the only owner */
    struct q2_l2e e[CLONE_MAX];          /* the source's entries, as they were */
};

/* ---- what the image says of itself (L5) ---- */

/* Bits of ours, at once and durably. */
static int say(struct co *co, struct q2_image *q, uint64_t set, uint64_t clear)
{
    const uint64_t ours = Q2_AUTOCLEAR_CLONES | Q2_AUTOCLEAR_SETTLED;
    int r = 0;
    co_lock(co, &q->clones.mx);
    uint64_t old = q->h.autoclear & ours, new = (old | set) & ~clear;
    if (new != old) {
        q->h.autoclear ^= old ^ new;
        r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
        if (r < 0)
            q->h.autoclear ^= old ^ new;
    }
    co_unlock(&q->clones.mx);
    return r;
}

int q2_clone_unsettle(struct co *co, struct q2_image *q)
{
    return q2_clone_any(q) && !MUTANT(MUT_CLONE_SETTLED_STAYS) ? say(co, q, 0, Q2_AUTOCLEAR_SETTLED) : 0;
}

int q2_clone_distrust(struct co *co, struct q2_image *q)
{
    q->clones.any = q->clones.all = q->clones.any || q2_clone_any(q);
    return q2_clone_unsettle(co, q);
}

/* Can clusters of this image be shared at all? An external data file has one place for each cluster, the old encryption goes by the place
 * on the disk, and the counts of an unclean image are believed by nobody. (LUKS goes by the place in the file.) */
static bool shareable(const struct q2_image *q)
{
    return q->g.version >= 3 && !q->g.data_file && !q->im.weak_cipher && !q->unclean && !q->check_mode;
}

/* ---- what can be shared ---- */

/* Does everything that the entry shows lie in its cluster, or read zero whatever lies below? */
static bool shows_itself(const struct q2_image *q, const struct q2_l2e *e)
{
    return e->kind == Q2_NORMAL && (!q->g.ext_l2 || (e->alloc && (e->alloc | e->zero) == Q2_SUB_ALL)) && q2_guard_clear(q, e->host);
}

/* How many entries from the beginning on can be shared; copies them. */
static uint32_t look(struct clone *c, const struct meta_block *sb, bool own)
{
    struct q2_image *q = c->q;
    uint64_t cs = q->g.cluster_size;
    uint32_t n = 0;
    for (; n < c->max; n++) {
        struct q2_l2e old;
        if (!q2_entry_get(q, sb, c->si + n, &c->e[n]) || !q2_entry_fits(q, &c->e[n], c->src + n * cs) || !shows_itself(q, &c->e[n]))
            break;
        if (c->e[n].copied && !own)              /* in a table that is shared no entry should say so */
            break;
        if (!q2_entry_get(q, c->db, c->di + n, &old) || !q2_entry_fits(q, &old, c->dst + n * cs))
            break;
    }
    return n;
}

/* Pins the slices. The target's table comes first: the source may lie in the same one, which is then another. 1: nothing is to be shared. */
static int pin(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    struct meta_block *sb;
    int r = q2_slice_own(co, q, c->dst, &c->db, &c->di);
    if (r == 0)
        r = q2_slice_get(co, q, c->src, &sb, &c->si);
    if (r < 0 || !sb)
        return r < 0 ? r : 1;
    bool own = q2_slice_is_own(q, c->src);
    c->n = look(c, sb, own);
    for (uint32_t i = 0; i < c->n; i++)
        c->flags |= c->e[i].copied;
    if (c->flags)
        c->sb = sb;
    else
        meta_put(q->meta, sb);                   /* one that is not the image's own may go when its table is replaced */
    return c->n ? 0 : 1;
}

/* ---- counts and flags ---- */

/* One more owner each. Fewer when a count is at its end, or cannot be right. 1: none. */
static int raise(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    uint32_t bits = q->g.cluster_bits, done = 0;
    int r = 0;
    for (; r == 0 && done < c->n; done += r == 0) {
        uint64_t count, cluster = c->e[done].host >> bits;
        r = q2_refs_get(co, q, cluster, &count);
        if (r == 0 && !count)
            r = -ERANGE;
        if (r == 0) {
            q2_marks_add(&q->alloc->given, cluster, 1);      /* L4; of one that is counted, and so lies in the file */
            r = q2_refs_add(co, q, cluster, 1, 1);
        }
    }
    c->n = done;
    return done ? 0 : r == -ERANGE ? 1 : r;
}

static void set_flags(struct clone *c, bool on)
{
    struct q2_image *q = c->q;
    for (uint32_t i = 0; c->flags && i < c->n; i++) {
        if (!c->e[i].copied)
            continue;
        struct q2_l2e e = c->e[i];
        e.copied = on;
        q2_entry_set(q, c->sb, c->si + i, &e);
    }
}

/* L3 */
static void undo(struct clone *c)
{
    set_flags(c, true);
    for (uint32_t i = 0; i < c->n; i++)
        q2_alloc_drop(c->q, c->e[i].host >> c->q->g.cluster_bits, 1);
}

/* ---- the target ---- */

static void drop_old(struct q2_image *q, const struct q2_l2e *old)
{
    if (MUTANT(MUT_CLONE_FREED_EARLY) && old->kind == Q2_NORMAL)
        q2_alloc_drop_cloned(q, old->host >> q->g.cluster_bits, 1);
    else
        q2_drop_entry(q, old);
}

static void link_all(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    CO_ATOMIC(co) {
        for (uint32_t i = 0; i < c->n; i++) {
            struct q2_l2e old = { .kind = Q2_UNALLOCATED }, new = c->e[i];
            bool ok = q2_entry_get(q, c->db, c->di + i, &old);
            INV(L1, ok);
            new.copied = false;
            q2_entry_set(q, c->db, c->di + i, &new);
            drop_old(q, &old);
        }
        if (!MUTANT(MUT_CLONE_UNORDERED))
            meta_need_data_barrier(q->meta);
    }
}

#ifdef BYRE_MUTANTS
/* The mutant's way: the target first. */
static int link_first(struct co *co, struct clone *c)
{
    link_all(co, c);
    int r = meta_flush(co, c->q->meta);
    if (r == 0)
        r = raise(co, c);
    set_flags(c, false);
    return r < 0 ? r : 0;
}
#else
#define link_first(co, c) 0
#endif

/* The slices are pinned, c->n entries will be shared. */
static int share(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    if (MUTANT(MUT_CLONE_COUNT_LATE))
        return link_first(co, c);
    int r = raise(co, c);
    if (r)
        return r;
    if (!MUTANT(MUT_CLONE_KEEP_COPIED))
        set_flags(c, false);
    if (c->flags && !MUTANT(MUT_CLONE_FLAG_LATE))
        r = meta_flush(co, q->meta);
    if (r < 0) {
        undo(c);
        return r;
    }
    if (c->flags && !MUTANT(MUT_CLONE_NO_GRACE))
        epoch_wait(co, q->im.epoch);             /* L2 */
    link_all(co, c);
    return 0;
}

/* The ranges are locked. 1: the first cluster cannot be shared. */
static int work(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    int r = q2_guard_need(co, q);
    if (r == 0)
        r = pin(co, c);
    if (r == 0) {                        /* L6: who shares a cluster has his entry in one of these, now and later */
        q2_marks_add(&q->clones.tables, c->src / q2_l2_span(&q->g), 1);
        q2_marks_add(&q->clones.tables, c->dst / q2_l2_span(&q->g), 1);
        r = say(co, q, Q2_AUTOCLEAR_CLONES, Q2_AUTOCLEAR_SETTLED);      /* L5, L7 */
    }
    if (r == 0)
        r = q2_lazy_enter(co, q);
    if (r == 0)
        r = share(co, c);
    if (c->sb)
        meta_put(q->meta, c->sb);
    if (c->db)
        meta_put(q->meta, c->db);
    return q2_judge(co, q, r, "the L2 table of guest offset", c->dst);
}

/* ---- the call ---- */

/* L1 */
static int locked(struct co *co, struct clone *c)
{
    struct q2_image *q = c->q;
    uint64_t bytes = c->max * q->g.cluster_size;
    struct co_range a = { .start = c->src, .end = c->src + bytes }, b = { .start = c->dst, .end = c->dst + bytes };
    if (MUTANT(MUT_CLONE_SOURCE_UNLOCKED))
        a.end = a.start;
    co_range_lock_two(co, &q->locks, &a, &b);
    int r = q->failed ? -EIO : work(co, c);
    co_range_unlock(&q->locks, &a);
    co_range_unlock(&q->locks, &b);
    return r;
}

static uint64_t left_in_slice(const struct q2_image *q, uint64_t off) { return q->slice_span - off % q->slice_span; }

struct call { struct q2_image *q; uint64_t src, dst, len, done; };

static int clone_home(struct co *co, void *arg)
{
    struct call *k = arg;
    struct q2_image *q = k->q;
    uint64_t len = min_u64(min_u64(k->len, k->src < k->dst ? k->dst - k->src : k->src - k->dst), min_u64(left_in_slice(q, k->src), left_in_slice(q, k->dst)));
    ASSERT(len >= q->g.cluster_size);
    if (q->failed)
        return -EIO;
    if (!shareable(q))
        return -ENOTSUP;
    struct clone *c = malloc(sizeof *c);
    if (!c)
        return -ENOMEM;
    *c = (struct clone){ .q = q, .src = k->src, .dst = k->dst, .max = (uint32_t)min_u64(len >> q->g.cluster_bits, CLONE_MAX) };
    int r = locked(co, c);
    k->done = r == 0 ? c->n * q->g.cluster_size : 0;
    free(c);
    return r < 0 ? r : 0;
}

int64_t q2_clone(struct co *co, struct fmt_image *im, uint64_t src, uint64_t dst, uint64_t len)
{
    struct call k = { q2_of(im), src, dst, len, 0 };
    int r = rt_call(co, im->home, clone_home, &k);
    return r < 0 ? r : (int64_t)k.done;
}

/* ---- flags of those who are left (L6) ---- */

/* L7 */
void q2_clone_opened(struct q2_image *q)
{
    q->clones.everywhere = q2_clone_any(q);
    q->clones.any = q->clones.all = q2_clone_any(q) && !(q->h.autoclear & Q2_AUTOCLEAR_SETTLED);
}

void q2_clone_left(struct q2_image *q, uint64_t cluster, uint64_t n)
{
    if (!q2_clone_any(q))
        return;
    q->clones.any = true;
    q2_marks_add(&q->clones.left, cluster, n);
}

bool q2_clone_is_left(const struct q2_image *q, uint64_t cluster)
{
    return q->clones.all || q2_marks_has(&q->clones.left, cluster);
}

/* wanted: owners that are left alone and have not been found; shared: somebody shares, or may. */
struct settling { struct q2_image *q; uint64_t wanted; bool shared; };

/* Entry i of an own slice. */
static int settle_entry(struct co *co, struct settling *t, struct meta_block *b, uint32_t i)
{
    struct q2_image *q = t->q;
    struct q2_l2e e;
    uint64_t n = 1;
    if (!q2_entry_get(q, b, i, &e) || (e.kind != Q2_NORMAL && e.kind != Q2_ZERO_ALLOC))
        return 0;
    bool is_left = q2_clone_is_left(q, e.host >> q->g.cluster_bits);
    int r = is_left && !e.copied ? q2_refs_get(co, q, e.host >> q->g.cluster_bits, &n) : 0;
    if (r < 0)
        return r;
    t->shared |= !e.copied && (!is_left || n != 1);
    t->wanted -= is_left && n == 1 && t->wanted > 0;
    if (is_left && n == 1 && !e.copied) {
        e.copied = true;
        q2_entry_set(q, b, i, &e);
    }
    return 0;
}

static int settle_slice(struct co *co, struct settling *t, uint64_t guest)
{
    struct q2_image *q = t->q;
    struct co_range lock;
    struct meta_block *b;
    uint32_t index;
    co_range_lock(co, &q->locks, &lock, guest, guest + q->slice_span);
    int r = q2_slice_get(co, q, guest, &b, &index);
    if (r == 0 && b) {
        bool own = q2_slice_is_own(q, guest);
        t->shared |= !own;
        for (uint32_t i = 0; r == 0 && own && i < q->slice_entries; i++)
            r = settle_entry(co, t, b, i);
        meta_put(q->meta, b);
    }
    co_range_unlock(&q->locks, &lock);
    return r;
}

static int settle_table(struct co *co, struct settling *t, uint64_t index)
{
    uint64_t span = q2_l2_span(&t->q->g);
    int r = 0;
    for (uint64_t at = index * span; r == 0 && at < (index + 1) * span; at += t->q->slice_span) {
        r = settle_slice(co, t, at);
        t->shared |= r == -EUCLEAN;
        r = r == -EUCLEAN ? 0 : r;               /* a damaged table is for check to see */
    }
    return r;
}

/* Tables of this opening's clones (ours), or the others, until all have been found. *ret_whole: it was all of them. */
static int settle_tables(struct co *co, struct settling *t, bool ours, bool *ret_whole)
{
    struct q2_image *q = t->q;
    int r = 0;
    uint64_t i = 0, end = atomic_load_explicit(&q->l1, memory_order_relaxed)->entries;
    for (; r == 0 && i < end && (ours || t->wanted); i++) {
        struct q2_l1e e;
        if (q2_marks_has(&q->clones.tables, i) != ours)
            continue;
        if (!q2_l1e_decode(&q->g, be64_word(atomic_load_explicit(&atomic_load_explicit(&q->l1, memory_order_relaxed)->words[i], memory_order_relaxed)), &e))
            t->shared = true;
        else if (e.l2_off)
            r = settle_table(co, t, i);
    }
    *ret_whole = i == end;
    return r;
}

/* How many owners are left alone. Of damaged counts nothing is known. */
static int count_left(struct co *co, struct q2_image *q, uint64_t *ret)
{
    const struct q2_clones *k = &q->clones;
    uint64_t c = 0, n;
    int r = 0;
    *ret = k->all || k->left.all ? UINT64_MAX : 0;
    for (; r == 0 && !k->all && !k->left.all && q2_marks_next(&k->left, c, &c); c++) {
        r = q2_refs_get(co, q, c, &n);
        *ret += r == 0 && n == 1;
    }
    if (r == -EUCLEAN)                       /* so all tables are looked at */
        *ret = UINT64_MAX;
    return r == -EUCLEAN ? 0 : r;
}

static int settle(struct co *co, struct q2_image *q, bool *ret_shared)
{
    struct settling t = { .q = q, .shared = q->h.nb_snapshots > 0 };
    bool whole = true;
    int r = count_left(co, q, &t.wanted);
    if (r == 0)
        r = settle_tables(co, &t, true, &whole);
    if (r == 0 && q->clones.everywhere)
        r = settle_tables(co, &t, false, &whole);
    *ret_shared = t.shared || !whole;
    return r < 0 ? r : meta_flush(co, q->meta);
}

int q2_clone_settle(struct co *co, struct q2_image *q)
{
    struct q2_clones *k = &q->clones;
    bool shared = true;
    if (!q2_clone_any(q) || q->unclean || q->check_mode || q->im.read_only || MUTANT(MUT_CLONE_FORGETS_FLAG))
        return 0;
    int r = k->any ? settle(co, q, &shared) : 0;
    if (r == 0) {
        k->any = k->all = false;
        q2_marks_fini(&k->left);
        r = say(co, q, shared ? Q2_AUTOCLEAR_SETTLED : 0, shared ? 0 : Q2_AUTOCLEAR_CLONES | Q2_AUTOCLEAR_SETTLED);
    }
    if (r == 0 && !shared) {                     /* nothing is shared any more */
        k->everywhere = false;
        q2_marks_fini(&k->tables);
    }
    return r;
}

void q2_clone_free(struct q2_image *q)
{
    q2_marks_fini(&q->clones.left);
    q2_marks_fini(&q->clones.tables);
}
