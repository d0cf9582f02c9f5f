/* SPDX-License-Identifier: MIT
 *
 * q2_scrub.c: the check of an image that is in use (FEATURES G.001), and the end of being unclean (q2_unclean.c).
 *
 * Purpose      Runs the offline check's own rules (q2_check.c) beside requests, by leaving out what may have changed; frees
 *              leaks; of an unclean image makes the counts anew, mends what a repair would mend, and gives trust back.
 * Owns         q->scrubbing
 * Invariants   L1 A cluster is judged only if this opening has never handed it out, and nothing dropped, counted or uncounted
 *                 it since the round began, and it waited in no queue then: its references and its count stood still
 *                 while the round read them, whatever moment they were read at.
 *              L2 A table that the round may still read keeps its place and is not used for anything else: dropped tables, that of
 *                 the refcounts too, wait (q2_drop.c) until it has ended, or stands still and begins again (q2_stand.c). What names them, the header, is taken once, while
 *                 nobody is about to switch it: mixed with a later one, or with one half written, it would hide what stays.
 *              L3 Leaks are freed only when every reference could be followed, and only after what was read is durable and a grace
 *                 period has gone by. Nothing is freed that the tables in memory name: then the walk has missed something.
 *              L4 Damage is reported and left; but of an unclean image that is mended which nobody can miss: entries that
 *                 name nothing, flags against counts.
 *              L5 An entry is changed only under the lock of its guest range.
 *              L6 An image that is not proved sound stays unclean and goes on serving as such.
 * Order        What was dropped before the round is durable before it reads. Unclean: counts durable (q2_recount.c) | flags,
 *              verified by a round | dirty bit off | trust.
 * Concurrency  Home loop, any requests beside it; lets others run every few hundred references. Snapshots, resize: excluded.
 *              Actions on bitmaps may run: what a new set takes was handed out in this opening, what the old one had is dropped (L1),
 *              its directory and tables as tables (L2).
 * Failure      The round is given up, nothing half done.
 * Memory       As check: a few bytes per cluster of the file; one bit per cluster touched.
 * Tests        q2_scrub_test.c, q2_beside_test.c, crash explorer (lazy-*, *-hurt), tests/interop/test_q2_scrub.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_bms.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_stand.h"
#include "fmt/qcow2/q2_unclean.h"

#define FIXES_MAX 65536u
#define ROUNDS_MAX 5u

/* ---- what others ask and tell ---- */

void q2_scrub_touch(struct q2_image *q, uint64_t cluster, uint64_t n)
{
    if (q->scrubbing && !MUTANT(MUT_SCRUB_BLIND))
        q2_marks_add(&q->scrubbing->touched, cluster, n);
}

int q2_scrub_excludes(const struct q2_image *q, const char *what, struct byre_err *err)
{
    if (q->scrubbing)
        return byre_fail(err, BUSY, "%s: cannot be %s while its scrub runs; wait for the job, or cancel it", q->name, what);
    if (q->compacting)
        return byre_fail(err, BUSY, "%s: cannot be %s while it is being compacted; wait for the job, or cancel it", q->name, what);
    if (q->unclean)
        return byre_fail(err, BUSY, "%s: was not closed cleanly and cannot be %s before a scrub has looked it through", q->name, what);
    return 0;
}

/* ---- hooks of the checker ---- */

bool q2_live_skips(const struct q2_checker *k, uint64_t cluster)
{
    const struct q2_scrubbing *s = k->live;
    if (s->counting)
        return cluster >= s->q->unclean->first;
    return q2_marks_has(&s->q->alloc->given, cluster) || q2_marks_has(&s->touched, cluster);
}

static void add_fix(struct q2_scrubbing *s, uint64_t guest, bool l1)
{
    if (s->fix_count == s->fix_room) {
        size_t room = s->fix_room ? 2 * s->fix_room : 64;
        void *p = room <= FIXES_MAX ? realloc(s->fixes, room * sizeof *s->fixes) : NULL;
        if (!p) {
            s->fix_lost = true;
            return;
        }
        s->fixes = p;
        s->fix_room = room;
    }
    s->fixes[s->fix_count++] = (struct q2_scrub_fix){ guest, l1 };
}

void q2_live_fault(struct q2_checker *k, const struct q2_ref *r, bool flag)
{
    if (r->active && (flag ? k->live->mends_flags : k->live->counting && r->kind != Q2_REF_L2 && r->kind != Q2_REF_L1))
        add_fix(k->live, r->index, r->kind == Q2_REF_L2);
}

/* An old table names a place that did not exist when the image was opened. */
static void stale_ref(struct q2_checker *k, const struct q2_ref *r)
{
    k->res.corruptions += r->weight;
    k->bad_entries++;
    q2_finding(k, false, "Q2_OUTSIDE", "%s at %#" PRIx64 " of %" PRIu64 " bytes is outside the file (entry at %#" PRIx64 ")",
               q2_ref_name(r->kind), r->off, r->bytes, r->entry_off);
    if (r->active)
        add_fix(k->live, r->index, false);
    else
        k->unsure = true;                        /* a snapshot's: not to be changed beside requests */
}

int q2_live_breathe(struct co *co, struct q2_checker *k)
{
    struct q2_scrubbing *s = k->live;
    co_breathe(co);
    if (s->q->failed)
        return -EIO;
    fmt_step_begins(co, &s->steps);
    return s->o->step ? q2_stand_step(co, s) : 0;
}

/* One more entry was looked at: is the step over? */
static int another(struct co *co, struct q2_checker *k)
{
    return fmt_step_is_over(co, &k->live->steps, 1) ? q2_live_breathe(co, k) : 0;        /* those that take memory for new counts cost more: the clock */
}

int q2_live_begin(struct co *co, struct q2_checker *k)
{
    struct q2_scrubbing *s = k->live;
    struct q2_image *q = s->q;
    free(s->tables);
    s->tables = NULL;
    s->table_count = 0;
    meta_struct_begin(co, q->meta);              /* L2 */
    k->h = q->h;
    bool found = k->h.has_bitmaps && k->h.autoclear & Q2_AUTOCLEAR_BITMAPS;
    k->unsure |= q->bms && q->bms->count && !found;          /* a switch has failed half way: the set that we use is named nowhere */
    int r = s->counting ? q2_bms_tables(q, &s->tables, &s->table_count) : 0;
    meta_struct_end(q->meta);
    return r;
}

static bool has_table(const struct q2_scrubbing *s, uint64_t off)
{
    size_t i = 0;
    while (i < s->table_count && s->tables[i] != off)
        i++;
    return i < s->table_count;
}

/* A reference to several clusters (a table, a compressed cluster that goes on in the next) is left out for those that are, and counts
 * for the others. Outside the file as the round found it: the file may have grown. */
static bool skips_ref(const struct q2_checker *k, const struct q2_ref *r)
{
    uint32_t bits = k->g->cluster_bits;
    for (uint64_t c = r->off >> bits; c <= (r->off + r->bytes - 1) >> bits; c++)
        if (q2_live_skips(k, c) == r->outside)
            return r->outside;
    return !r->outside;
}

int q2_live_entry(struct co *co, void *arg, const struct q2_ref *r)
{
    (void)r;
    return another(co, arg);
}

int q2_live_ref(struct co *co, struct q2_checker *k, const struct q2_ref *r)
{
    struct q2_scrubbing *s = k->live;
    uint32_t bits = k->g->cluster_bits;
    int rc = another(co, k);
    if (rc)
        return rc;
    if (!s->counting)
        return skips_ref(k, r);
    uint64_t end = s->q->unclean->first << bits;
    if (r->off < end && end - r->off >= r->bytes)
        return 0;
    if (r->kind == Q2_REF_RT || r->kind == Q2_REF_RB)
        return 1;                                /* q2_recount.c makes them anew */
    bool ours = r->entry_off >= end || (r->active && r->kind == Q2_REF_L2);        /* of the L1 table: bad ones are mended first */
    if (r->kind == Q2_REF_BITMAP_TABLE)
        ours = has_table(s, r->off);
    if (ours || (!r->entry_off && r->kind != Q2_REF_BITMAP_TABLE))
        return !r->outside || q2_marks_has(&s->q->alloc->given, r->off >> bits);     /* the file has grown since the round began */
    stale_ref(k, r);
    return 1;
}

/* ---- a round ---- */

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct q2_scrubbing *s = arg;
    s->total = max_u64(s->total, s->base + total);
    if (s->o->progress)
        s->o->progress(s->o->arg, s->base + done, s->total);
}

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct q2_scrubbing *s = arg;
    if (s->o->finding && q2_stand_tells(s, id, text))
        s->o->finding(s->o->arg, fixed, id, text);
}

/* An entry may say anything: marks are kept of clusters that the file has. */
static void touch(void *arg, uint64_t first, uint64_t n)
{
    struct q2_scrubbing *s = arg;
    if (first < s->q->alloc->end)
        q2_marks_add(&s->touched, first, n);
}

static void touch_set(struct q2_scrubbing *s, const struct rset *set)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(set, at, &x); at = x.end)
        q2_marks_add(&s->touched, x.start, x.end - x.start);
}

/* Everything durable, counts that are late included. */
static int flush_all(struct co *co, struct q2_image *q)
{
    co_lock(co, &q->lazy_mx);
    meta_set_lazy_counts(q->meta, false);
    int r = meta_flush(co, q->meta);
    meta_set_lazy_counts(q->meta, q->lazy_on);
    co_unlock(&q->lazy_mx);
    return r;
}

/* L1, L2 */
static int begin_round(struct co *co, struct q2_scrubbing *s)
{
    struct q2_alloc *a = s->q->alloc;
    co_lock(co, &a->grow_mx);                    /* nothing is on its way between a count and a set */
    co_lock(co, &a->mx);
    q2_marks_fini(&s->touched);
    s->fix_count = 0;
    s->fix_lost = false;
    s->overrun = s->again = false;
    s->walking = true;
    touch_set(s, &a->frontier);
    touch_set(s, &a->counted);
    if (!MUTANT(MUT_SCRUB_FORGETS_QUARANTINE))
        q2_drop_each(a, touch, s);
    co_unlock(&a->mx);
    co_unlock(&a->grow_mx);
    return flush_all(co, s->q);
}

static void end_round(struct q2_scrubbing *s)
{
    s->walking = false;
    co_wake_all(&s->walked);
    s->base += s->q->h.size;
}

static int one_round(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, bool quiet, struct byre_err *err)
{
    q2_checker_init(k, s->q, o, quiet);
    k->live = s;
    k->one_by_one = true;
    int r = begin_round(co, s);
    if (r < 0)
        r = byre_fail_code(err, IO, r, "%s: cached changes cannot be written: %s", s->q->name, strerror(-r));
    else
        r = q2_gather(co, k, err);
    end_round(s);
    return r;
}

/* Until one has gone through that nobody paused for so long that tables were given away (q2_stand.c). */
static int round_of(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, bool quiet, struct byre_err *err)
{
    int r = one_round(co, s, k, o, quiet, err);
    while (s->again) {
        if (err)
            *err = (struct byre_err){ 0 };
        s->rounds_again = true;
        q2_checker_fini(k);
        r = one_round(co, s, k, o, quiet, err);
    }
    s->rounds_again = false;
    return r;
}

/* ---- leaks ---- */

/* L3: is that a leak which the image in memory has in use? Then something hid its references from the walk; nothing more is freed. */
static int is_missed(struct co *co, struct q2_checker *k, uint64_t c, uint64_t refs)
{
    uint64_t host = c << k->g->cluster_bits;
    int r = refs ? 0 : q2_guard_need(co, k->q);
    enum q2_what what = r == 0 && !refs ? q2_guard_kind(k->q, host, ~0u) : Q2_K_NONE;
    if (r < 0 || what == Q2_K_NONE || q2_live_skips(k, c))
        return r;
    k->unsure = true;
    k->res.check_errors++;
    q2_finding(k, false, "Q2_NOT_FREED", "cluster %" PRIu64 " was found without a reference, but the %s lies there; nothing more is freed", c, q2_what_name(what));
    return 1;
}

/* L1, L3: nothing names the cluster, or fewer than are counted, and that has not changed while we waited. 1: freed. */
static int free_one(struct co *co, struct q2_checker *k, uint64_t c, uint64_t stored, uint64_t refs)
{
    struct q2_image *q = k->q;
    struct q2_alloc *a = q->alloc;
    uint64_t n = 0;
    int r = refs ? q2_clone_unsettle(co, q) : 0; /* its lock comes before mx */
    if (r < 0)
        return r;
    co_lock(co, &a->mx);
    r = q2_refs_get(co, q, c, &n);
    bool same = r == 0 && n == stored && !q2_live_skips(k, c) && (refs || meta_forget(q->meta, c << k->g->cluster_bits, k->g->cluster_size));
    if (same)
        r = q2_refs_add(co, q, c, 1, -(int64_t)(stored - refs));
    if (r == 0 && same) {
        k->res.leaks_fixed++;
        q2_finding(k, true, "Q2_LEAK", "cluster %" PRIu64 ": refcount %" PRIu64 " set to %" PRIu64, c, stored, refs);
        if (refs)
            q2_clone_left(q, c, 1);
        if (!refs && a->reclaim)
            q2_reclaim_saw(a, c, 1);             /* it is ours to give back; soon somebody may have it */
        if (!refs && !q2_hits_metadata(q, c << k->g->cluster_bits))
            r = q2_alloc_freed(q, c, c + 1);
    }
    co_unlock(&a->mx);
    return r < 0 ? r : same;
}

/* What somebody has used or dropped while we waited is no leak that is left: the next scrub judges it. */
static int free_leaks(struct co *co, struct q2_checker *k)
{
    if (!k->res.leaks)
        return 0;
    if (k->incomplete || k->unsure || k->rebuild) {
        q2_finding(k, false, "Q2_NOT_FREED", "nothing is freed: some references cannot be followed, or the refcount structure is damaged");
        return 0;
    }
    int r = meta_flush(co, k->q->meta);          /* L3 */
    /* D3: a drop that found no memory for its quarantine looks like any leak; requests may still have seen the old mapping */
    epoch_wait_stamp(co, k->q->im.epoch, epoch_stamp(k->q->im.epoch));
    unsigned n = 0;
    uint64_t left = 0;
    for (uint64_t c = q2_counts_next(&k->stored, 0); r == 0 && c != Q2_COUNTS_NONE; c = q2_counts_next(&k->stored, c + 1)) {
        uint64_t stored = q2_counts_get(&k->stored, c), refs = q2_counts_get(&k->refs, c);
        bool leak = stored > refs && q2_stored_known(k, c) && !q2_live_skips(k, c);
        if (leak && stored < Q2_STORED_LARGE)
            r = is_missed(co, k, c, refs);
        if (r == 0 && leak && stored < Q2_STORED_LARGE)
            r = free_one(co, k, c, stored, refs);
        if (k->unsure) {
            k->res.leaks -= min_u64(k->res.leaks, k->res.leaks_fixed);
            return 0;
        }
        left += leak && r <= 0 && !q2_live_skips(k, c);
        r = r < 0 ? r : 0;
        if (r == 0 && ++n % 1024 == 0)
            r = q2_live_breathe(co, k);
    }
    k->res.leaks = r == 0 ? left : k->res.leaks;
    return r;
}

/* ---- entries (L5) ---- */

static int mend_entry(struct co *co, struct q2_image *q, uint64_t guest)
{
    struct meta_block *b;
    uint32_t i;
    int r = q2_slice_own(co, q, guest, &b, &i);  /* copies an old table, and sanitises it on the way */
    if (r < 0)
        return r;
    uint32_t word = i * (q->g.l2_entry_bytes / 8);
    uint64_t raw = meta_word(b, word);
    struct q2_ref e = { .raw = raw };
    e.kind = raw & Q2_E_COMPRESSED ? Q2_REF_COMPRESSED : raw & Q2_E_ZERO && !q->g.ext_l2 ? Q2_REF_ZERO : Q2_REF_DATA;
    e.off = raw & Q2_E_COMPRESSED ? raw & q->g.coff_mask : raw & Q2_L2E_OFF;
    e.bits = q->g.ext_l2 ? meta_word(b, word + 1) : 0;
    if (q->g.ext_l2 && !(raw & Q2_E_COMPRESSED) && !(uint32_t)e.bits)
        e.kind = Q2_REF_ZERO;
    struct q2_mended new = q2_mend_entry(&q->g, &e, !q->h.backing_name);
    if (new.raw != raw || new.bits != e.bits) {
        if (q->g.ext_l2)
            meta_set_pair(q->meta, b, word, new.raw, new.bits);
        else
            meta_set_word(q->meta, b, word, new.raw);
        q->unclean->mended++;
    }
    meta_put(q->meta, b);
    return 0;
}

static int mend_flag(struct co *co, struct q2_image *q, uint64_t guest)
{
    struct meta_block *b;
    uint32_t i;
    int r = q2_slice_own(co, q, guest, &b, &i);
    if (r < 0)
        return r;
    uint32_t word = i * (q->g.l2_entry_bytes / 8);
    uint64_t raw = meta_word(b, word), n;
    if (!(raw & Q2_E_COMPRESSED) && raw & Q2_L2E_OFF) {
        r = q2_refs_get(co, q, (raw & Q2_L2E_OFF) >> q->g.cluster_bits, &n);
        uint64_t new = n == 1 ? raw | Q2_E_COPIED : raw & ~Q2_E_COPIED;
        if (r == 0 && new != raw) {
            meta_set_word(q->meta, b, word, new);
            q->unclean->mended++;
        }
    }
    meta_put(q->meta, b);
    return r;
}

static int mend_l1_flag(struct co *co, struct q2_image *q, uint64_t guest)
{
    const struct q2_l1 *l1 = atomic_load(&q->l1);
    uint64_t i = q2_l1_index(&q->g, guest), n;
    if (i >= l1->entries)
        return 0;
    co_lock(co, &q->l2_mx);
    uint64_t raw = be64_word(atomic_load(&l1->words[i]));
    int r = raw & Q2_L1E_OFF ? q2_refs_get(co, q, (raw & Q2_L1E_OFF) >> q->g.cluster_bits, &n) : 1;
    if (r == 0 && (n == 1) != !!(raw & Q2_E_COPIED)) {
        q2_l1_set(q, i, raw ^ Q2_E_COPIED);
        q->unclean->mended++;
    }
    co_unlock(&q->l2_mx);
    return r < 0 ? r : 0;
}

static int mend_all(struct co *co, struct q2_scrubbing *s, struct q2_checker *k)
{
    struct q2_image *q = s->q;
    int r = 0;
    for (size_t i = 0; r == 0 && i < s->fix_count; i++) {
        struct co_range lock;
        struct q2_scrub_fix f = s->fixes[i];
        uint64_t at = round_down(f.guest, q->g.cluster_size);
        co_range_lock(co, &q->locks, &lock, at, at + q->g.cluster_size);
        if (s->counting)
            r = mend_entry(co, q, at);
        else
            r = f.l1 ? mend_l1_flag(co, q, at) : mend_flag(co, q, at);
        co_range_unlock(&q->locks, &lock);
        if (r == 0)
            r = q2_live_breathe(co, k);
    }
    return r;
}

/* Entries of the L1 table with bits that mean nothing lose them, as in a repair. */
static void mend_l1(struct q2_image *q)
{
    const struct q2_l1 *l1 = atomic_load(&q->l1);
    for (uint64_t i = 0; i < l1->entries; i++)
        if (q2_unclean_l1_bad(q, i)) {
            struct q2_ref e = { .kind = Q2_REF_L2, .raw = be64_word(atomic_load(&l1->words[i])) };
            e.off = e.raw & Q2_L1E_OFF;
            uint64_t new = q2_mend_entry(&q->g, &e, false).raw;
            if (new && (!is_aligned(e.off, q->g.cluster_size) || q2_hits_metadata(q, e.off)))
                continue;                        /* there may be a table, or not: that is not ours to decide */
            q2_l1_set(q, i, new);
            q2_unclean_l1_mended(q, i);
        }
}

/* ---- an unclean image ---- */

/* 1: damage that nothing here can mend. */
static int damaged(const struct q2_checker *k, const struct q2_scrubbing *s)
{
    uint64_t mendable = s->counting ? k->bad_entries : k->flags;
    return k->incomplete || k->unsure || k->res.check_errors || s->fix_lost || k->res.corruptions > mendable ||
           (!s->counting && k->rebuild);
}

static int count_round(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, bool first, struct byre_err *err)
{
    mend_l1(s->q);
    s->counting = true;
    int r = round_of(co, s, k, o, !first, err);
    if (r == 0 && k->rebuild && !k->incomplete) {        /* a structure that is misplaced or missing is made anew anyway */
        k->res.corruptions -= min_u64(k->res.corruptions, k->structure_faults);
        k->rebuild = false;
    }
    return r;
}

/* Counts all references, until there is nothing to mend; then writes the counts. */
static int make_counts(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, struct byre_err *err)
{
    for (unsigned round = 0;; round++) {
        int r = count_round(co, s, k, o, round == 0, err);
        if (r < 0 || (r = damaged(k, s)))
            return r;
        if (!s->fix_count) {
            r = q2_recount(co, k);
            return r < 0 ? byre_fail_code(err, IO, r, "%s: the counts cannot be written: %s", s->q->name, strerror(-r)) : 0;
        }
        if (round == ROUNDS_MAX)
            return 1;
        r = mend_all(co, s, k);
        if (r < 0)
            return byre_fail_code(err, IO, r, "%s: entries cannot be mended: %s", s->q->name, strerror(-r));
        q2_checker_fini(k);
    }
}

/* Compares, frees what was dropped meanwhile, sets flags right, until there is nothing left to do. */
static int prove(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, struct byre_err *err)
{
    s->counting = false;
    s->mends_flags = true;
    for (unsigned round = 0;; round++) {
        int r = round_of(co, s, k, o, true, err);
        if (r < 0 || (r = damaged(k, s)))
            return r;
        bool done = !k->res.leaks && !s->fix_count;
        if (!done)
            r = free_leaks(co, k);
        s->fixed.leaks_fixed += k->res.leaks_fixed;
        if (r == 0 && !done)
            r = mend_all(co, s, k);
        if (r < 0)
            return byre_fail_code(err, IO, r, "%s: leaks cannot be freed: %s", s->q->name, strerror(-r));
        k->res.leaks_fixed = 0;
        if (k->unsure)
            return 1;
        if (done || (round == ROUNDS_MAX && !s->fix_count))      /* clusters that are dropped without end: leaks, told so */
            return 0;
        if (round > ROUNDS_MAX)
            return 1;
        q2_checker_fini(k);
    }
}

/* Of a device: where does its used part end? Without an answer the rounds tell why. */
static int find_edge(struct co *co, struct q2_scrubbing *s, struct byre_err *err)
{
    struct q2_image *q = s->q;
    uint64_t first;
    if (q->unclean->edge == Q2_EDGE_KNOWN)
        return 0;
    int r = q2_edge_find(co, q, &first);
    if (r == 0)
        q2_unclean_found(q, first);
    else if (r == -EIO)
        q2_unclean_scrub(q, false);
    return r == -EIO || r == 0 ? 0 : byre_fail_code(err, IO, r, "%s: the end of its used part cannot be found: %s", q->name, strerror(-r));
}

static int make_clean(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, struct byre_err *err)
{
    struct q2_image *q = s->q;
    int r = find_edge(co, s, err);
    s->total = 2 * q->h.size;
    if (MUTANT(MUT_SCRUB_CLEAN_EARLY))
        r = q2_clean_mark(co, q);
    if (r == 0 && q->unclean->in_memory)
        r = make_counts(co, s, k, o, err);
    if (r == 0)
        q2_checker_fini(k);
    if (r == 0)
        r = prove(co, s, k, o, err);
    if (r)
        return r < 0 ? r : 0;                            /* L6 */
    r = q2_clean_mark(co, q);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the header cannot be written: %s", q->name, strerror(-r));
    s->fixed.corruptions_fixed += q->unclean->mended;
    q2_unclean_end(co, q);
    q2_alloc_proved(co, q);
    on_finding(s, true, "Q2_RECOUNTED", "the image was not closed cleanly; its reference counts are made anew");
    return 0;
}

static int unclean(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, struct byre_err *err)
{
    q2_unclean_scrub(s->q, true);
    int r = make_clean(co, s, k, o, err);
    if (s->q->unclean)
        q2_unclean_scrub(s->q, false);
    return r;
}

/* ---- entry ---- */

static int clean(struct co *co, struct q2_scrubbing *s, struct q2_checker *k, const struct fmt_check_opts *o, struct byre_err *err)
{
    int r = round_of(co, s, k, o, false, err);
    if (r == 0 && !k->res.corruptions && !k->res.check_errors && !k->incomplete && !k->unsure && !k->rebuild)
        q2_alloc_proved(co, s->q);
    if (r == 0 && o->fix & FMT_FIX_LEAKS) {
        r = free_leaks(co, k);
        if (r < 0)
            r = byre_fail_code(err, IO, r, "%s: leaks cannot be freed: %s", s->q->name, strerror(-r));
    }
    return r;
}

void q2_no_scrub(struct fmt_image *im)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (q->unclean && !q->scrubbing)
        q2_unclean_scrub(q, false);
}

int q2_scrub(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (im->read_only || q->check_mode)
        return byre_fail(err, READ_ONLY, "%s: a scrub is for an image that is open for writing; check it instead", q->name);
    if (!q->alloc)
        return byre_fail_code(err, IO, -EIO, "%s: its tables could not be read again after an amendment; open it anew first", q->name);
    if (q->scrubbing || q->changing || q->compacting || q->resizing)
        return byre_fail(err, BUSY, q->resizing ? "%s: it is being resized" : q->changing ? "%s: its snapshots are being changed" : q->compacting ? "%s: it is being compacted" : "%s: its scrub runs already", q->name);
    struct q2_checker *k = calloc(1, sizeof *k);
    struct q2_scrubbing *s = calloc(1, sizeof *s);
    int r = -ENOMEM;
    if (k && s) {
        *s = (struct q2_scrubbing){ .q = q, .o = o };
        struct fmt_check_opts inner = { .fix = o->fix, .finding = on_finding, .arg = s, .progress = on_progress };
        q->scrubbing = s;
        r = q->unclean ? unclean(co, s, k, &inner, err) : clean(co, s, k, &inner, err);
        q->scrubbing = NULL;
        *ret = k->res;
        ret->corruptions_fixed += s->fixed.corruptions_fixed;
        ret->leaks_fixed += s->fixed.leaks_fixed;
        s->total = max_u64(s->total, s->base);
        if (r == 0)
            on_progress(s, s->total - s->base, 0);
        q2_checker_fini(k);
        q2_marks_fini(&s->touched);
        free(s->fixes);
        free(s->told);
        free(s->tables);
    } else {
        q2_no_scrub(im);
        r = byre_fail(err, NOMEM, "%s: no memory for a scrub", q->name);
    }
    free(k);
    free(s);
    return r;
}
