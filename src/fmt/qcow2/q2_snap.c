/* SPDX-License-Identifier: MIT
 *
 * q2_snap.c: operations on internal snapshots: what creating, applying and deleting have in common.
 *
 * Purpose      Looks the snapshot up, gets space, brings the image to rest, has the operation done, gives back what it did not
 *              need or what became free.
 * Owns         struct q2_snap for the time of one operation.
 * Invariants   N1  While tables are changed on the disk itself nothing else changes any: requests are drained, passes held off,
 *                  frees, growth and reclaim are at rest, the cache is clean. Afterwards the cache knows nothing.
 *              N2  Nothing is written before the whole operation is known to be possible: space is there, every table entry
 *                  can be followed, counts are what the entries ask for at least, sums fit their width.
 *              N3  Until the header names the new table the old state is untouched but for counts that are higher and COPIED
 *                  flags that are missing: both are safe (P1), and are taken back when a step fails.
 *              N4  Space that lost its last owner is offered only when no entry of the active disk names it.
 * Order        Q13, Q14, Q15: in the files of the operations. Behind the switch: counts down, flags, cache forgotten, the
 *              rest by a pass, whose last barrier makes all of it durable.
 * Concurrency  Home loop, drained (graph/). Time and memory follow the tables, never the data: at most four bytes for each
 *              cluster of the file.
 * Failure      Before the switch: as it was, or what can be taken back of it; a leak at worst. Behind it: it has taken place, and
 *              the error says that space was not given back.
 * Tests        q2_snap_test.c, crash explorer (snapshots), tests/interop/test_snapshots.py, tests/faults
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/frontier.h"
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_snap_priv.h"
#include "fmt/qcow2/q2_walk.h"

int q2_snap_fail(struct q2_snap *s, int r, const char *what)
{
    const char *name = s->q->name;
    const struct q2_shift *h = &s->shift;
    if (r == -ENOMEM)
        return byre_fail(s->err, NOMEM, "%s: no memory while %s", name, what);
    if (r == -ERANGE)
        return byre_fail(s->err, Q2_REFCOUNT_RANGE, "%s: cluster %" PRIu64 " has %" PRIu64 " owners; refcount_bits=%u cannot count another one", name,
                         h->bad_cluster, h->bad_count, s->q->g.refcount_bits);
    if (r == -EUCLEAN && h->bad_cluster)
        return byre_fail(s->err, Q2_CORRUPT, "%s: refcount %" PRIu64 " of cluster %" PRIu64 " is not what the tables say; run check -r all", name, h->bad_count, h->bad_cluster);
    if (r == -EUCLEAN)
        return byre_fail(s->err, Q2_CORRUPT, "%s: an L1 or L2 table holds an entry that cannot be right; run check -r all", name);
    if (frontier_no_space(r))
        return byre_fail_code(s->err, NO_SPACE, r, "%s: no space while %s: %s", name, what, strerror(-r));
    return byre_fail_code(s->err, IO, r, "%s: error while %s: %s", name, what, strerror(-r));
}

/* ---- which one? ---- */

static struct q2_snapshot *by_text(const struct q2_snapshot_scan *list, const char *id, const char *name)
{
    for (uint32_t i = 0; i < list->count; i++) {
        struct q2_snapshot *s = &list->snapshots[i];
        if ((!id || !strcmp(s->id, id)) && (!name || !strcmp(s->name, name)))
            return s;
    }
    return NULL;
}

struct q2_snapshot *q2_snap_find(const struct q2_image *q, const struct q2_snapshot_scan *list, const struct fmt_snapshot_pick *p, struct byre_err *err)
{
    struct q2_snapshot *s;
    if (p->any) {
        s = by_text(list, p->any_name_first ? NULL : p->any, p->any_name_first ? p->any : NULL);
        if (!s)
            s = by_text(list, p->any_name_first ? p->any : NULL, p->any_name_first ? NULL : p->any);
    } else {
        s = by_text(list, p->id, p->name);
    }
    int r = s ? 0 : byre_fail(err, NOT_FOUND, "%s: snapshot not found: there is none with %s%s%s%s%s", q->name, p->any ? "the id or name '" : p->id ? "the id '" : "the name '",
                              p->any ? p->any : p->id ? p->id : p->name, p->id && p->name && !p->any ? "' and the name '" : "'",
                              p->id && p->name && !p->any ? p->name : "", p->id && p->name && !p->any ? "'" : "");
    return r ? NULL : s;
}

/* ---- L1 tables and the snapshot table ---- */

uint64_t *q2_snap_words(uint64_t n)
{
    void *mem;
    if (posix_memalign(&mem, 4096, q2_snap_words_bytes(n)))
        return NULL;
    memset(mem, 0, q2_snap_words_bytes(n));
    return mem;
}

void q2_snap_active_words(const struct q2_image *q, uint64_t *words, uint64_t n)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    for (uint64_t i = 0; i < min_u64(n, l1->entries); i++)
        words[i] = atomic_load_explicit(&l1->words[i], memory_order_relaxed);
}

int q2_snap_read_l1(struct co *co, const struct q2_snap *s, uint64_t *words, uint64_t n)
{
    const struct q2_snapshot *it = s->it;
    uint64_t bytes = min_u64(n, it->l1_size) * 8;
    if (!bytes)
        return 0;
    if (!it->l1_ok || q2_outside(&s->q->g, s->file_bytes, it->l1_off, (uint64_t)it->l1_size * 8))
        return -EUCLEAN;
    return stor_read_exact(co, s->q->im.store, words, bytes, it->l1_off);
}

/* A cluster whose count was lost looks free, and may have been taken for the new tables: it stays out of reach. */
static bool taken_twice(struct q2_snap *s, struct q2_run *run)
{
    struct q2_shift *h = &s->shift;
    for (uint64_t c = run->cluster; c < run->cluster + run->count; c++) {
        if (!q2_counts_get(&h->gain, c) && !q2_counts_get(&h->loss, c))
            continue;
        h->bad_cluster = c;
        h->bad_count = 0;
        *run = (struct q2_run){ 0 };
        return true;
    }
    return false;
}

int q2_snap_check(struct co *co, struct q2_snap *s)
{
    bool twice = taken_twice(s, &s->table);
    twice |= taken_twice(s, &s->l1);
    return twice ? -EUCLEAN : q2_shift_check(co, &s->shift);
}

int q2_snap_write_table(struct co *co, struct q2_snap *s, const struct q2_snapshot_scan *list)
{
    uint64_t bytes = q2_snapshots_emit(list, &s->q->g, NULL);
    if (!bytes)
        return 0;
    INV(N2, bytes <= s->table.count << s->q->g.cluster_bits);
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, 4096, round_up(bytes, 512)))
        return -ENOMEM;
    memset(buf, 0, round_up(bytes, 512));
    q2_snapshots_emit(list, &s->q->g, buf);
    int r = meta_write_now(co, s->q->meta, buf, round_up(bytes, 512), q2_run_off(s->q, &s->table));
    free(buf);
    return r;
}

int q2_snap_switch_table(struct co *co, struct q2_snap *s, uint32_t count)
{
    struct q2_header *h = &s->q->h;
    uint32_t old_count = h->nb_snapshots;
    uint64_t old_off = h->snapshots_off;
    s->named = true;
    h->nb_snapshots = count;
    h->snapshots_off = q2_run_off(s->q, &s->table);
    int r = q2_header_sync(co, s->q, 60, 72, META_B_SNAP_SWITCHED);
    if (r < 0) {
        h->nb_snapshots = old_count;
        h->snapshots_off = old_off;
        return r;
    }
    s->switched = true;
    q2_fixed_update(s->q);
    q2_guard_drop(s->q);
    if (old_count)
        q2_alloc_drop(s->q, old_off >> s->q->g.cluster_bits, div_up(s->old.table_bytes, s->q->g.cluster_size));
    return 0;
}

/* ---- behind the switch ---- */

/* The L1 entries of the active disk whose tables have one owner now. */
static void flag_l1(struct q2_snap *s)
{
    struct q2_image *q = s->q;
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    for (uint64_t i = 0; i < l1->entries; i++) {
        struct q2_l1e e;
        uint64_t raw = be64_word(atomic_load_explicit(&l1->words[i], memory_order_relaxed));
        if (q2_l1e_decode(&q->g, raw, &e) && e.l2_off && !e.copied && q2_counts_get(&s->shift.state, e.l2_off >> q->g.cluster_bits) == Q2_LEFT_ONE)
            q2_l1_set(q, i, q2_l1e_encode(e.l2_off, true));
    }
}

/* Q9: what ended the last reference is durable, no request is inside, and the punch completes before the space is offered. */
static void give_back(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    const struct q2_counts *state = &s->shift.state;
    bool punch = !q->opts.snapshots_no_punch && q->im.store->discard_ok;
    uint64_t c = s->shift.freed ? q2_counts_find(state, s->shift.freed_from, Q2_LEFT_NONE) : Q2_COUNTS_NONE;
    while (c != Q2_COUNTS_NONE) {
        uint64_t end = c + 1;
        while (end < s->shift.freed_to && q2_counts_at(state, end) == Q2_LEFT_NONE)
            end++;
        int r = punch ? stor_discard(co, q->im.store, c << q->g.cluster_bits, (end - c) << q->g.cluster_bits) : 0;
        (void)r;                           /* advisory: the clusters are free all the same */
        q2_alloc_offer(q, c, end);
        c = q2_counts_find(state, end, Q2_LEFT_NONE);
    }
}

int q2_snap_settle(struct co *co, struct q2_snap *s, bool flags, uint64_t drop_off, uint64_t drop_bytes)
{
    struct q2_image *q = s->q;
    int r = q2_shift_down(co, &s->shift);
    if (r == 0 && flags)
        r = q2_tree_flag(co, q, &s->mine, &s->shift.state);
    if (!MUTANT(MUT_SNAP_CACHE_STAYS))
        meta_forget_all(q->meta);              /* N1 */
    if (r == 0 && flags)
        flag_l1(s);
    if (r == 0)
        give_back(co, s);                      /* N4: flag has met none of it */
    if (drop_bytes)
        q2_alloc_drop(q, drop_off >> q->g.cluster_bits, div_up(drop_bytes, q->g.cluster_size));
    int r2 = meta_pass_locked(co, q->meta);
    return r < 0 ? r : r2;
}

/* ---- the frame ---- */

static int plan(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    if (q->im.read_only)
        return byre_fail(s->err, READ_ONLY, "%s: is open read-only", q->name);
    if (q->failed)
        return byre_fail(s->err, Q2_CORRUPT, "%s: the image is corrupt", q->name);
    if (q->check_mode || q->info_only)
        return byre_fail(s->err, NOT_SUPPORTED, "%s: is open for a check or a description only", q->name);
    if (q->h.incompat & Q2_INCOMPAT_DATA_FILE)
        return byre_fail(s->err, NOT_SUPPORTED, "%s: an image with an external data file cannot have internal snapshots", q->name);
    int r = q2_snapshots_scan_sound(co, q->im.store, &q->g, &q->h, &s->old, s->err);
    if (r == 0 && s->rq->op != FMT_SNAPSHOT_CREATE) {
        s->it = q2_snap_find(q, &s->old, &s->rq->pick, s->err);
        r = s->it ? 0 : -ENOENT;
    }
    if (r < 0)
        return r;
    return s->rq->op == FMT_SNAPSHOT_CREATE ? q2_snap_create_plan(co, s) : s->rq->op == FMT_SNAPSHOT_APPLY ? q2_snap_apply_plan(co, s) : q2_snap_delete_plan(co, s);
}

static int take(struct co *co, struct q2_snap *s, uint64_t bytes, struct q2_run *ret)
{
    struct q2_image *q = s->q;
    int r = bytes ? q2_alloc_exact(co, q, div_up(bytes, q->g.cluster_size), ret) : 0;
    if (r < 0)
        *ret = (struct q2_run){ 0 };           /* filled before the guard is asked: it has gone back, or stays out of reach */
    if (r == 0 && bytes && !meta_forget(q->meta, ret->cluster << q->g.cluster_bits, ret->count << q->g.cluster_bits)) {
        *ret = (struct q2_run){ 0 };           /* in use, whatever its count said: it stays out of reach */
        r = -EUCLEAN;
    }
    return r < 0 ? q2_snap_fail(s, r, "looking for space for its tables") : 0;
}

/* N1: brings the image to rest, and does it. */
static int act(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    int r = q2_alloc_halt_begin(co, q);
    if (r == 0)
        r = q2_clone_distrust(co, q);
    if (r == 0) {
        r = q2_lazy_leave(co, q);              /* counts on the disk have to be true (Q12) */
        if (r < 0)
            q2_alloc_halt_end(q);
    }
    if (r < 0)
        return q2_snap_fail(s, r, "writing what is cached");
    epoch_wait(co, q->im.epoch);
    meta_struct_begin(co, q->meta);
    r = meta_pass_locked(co, q->meta);
    if (r == 0)
        r = stor_length(co, q->im.store, &s->file_bytes);
    if (r == 0)
        r = q2_shift_init(&s->shift, q, s->file_bytes);
    if (r < 0)
        r = q2_snap_fail(s, r, "writing what is cached");
    else if (s->rq->op == FMT_SNAPSHOT_CREATE)
        r = q2_snap_create(co, s);
    else
        r = s->rq->op == FMT_SNAPSHOT_APPLY ? q2_snap_apply(co, s) : q2_snap_delete(co, s);
    meta_struct_end(q->meta);
    q2_alloc_halt_end(q);
    return r;
}

static void give_runs_back(struct q2_snap *s)
{
    if (s->named)
        return;                                /* used, or, when the switch failed, a leak: a header on the disk may name them */
    if (s->table.count)
        q2_alloc_return(s->q, &s->table);
    if (s->l1.count)
        q2_alloc_return(s->q, &s->l1);
}

static int describe(const struct q2_snapshot *it, struct fmt_snapshot_info *ret, struct byre_err *err)
{
    if (!ret)
        return 0;
    struct fmt_snapshot_info i = { .id = strdup(it->id), .name = strdup(it->name), .vm_state_size = it->vm_state_size, .disk_size = it->disk_size,
        .vm_clock_ns = it->vm_clock_ns, .icount = it->icount, .date_sec = it->date_sec, .date_nsec = it->date_nsec, .has_icount = it->has_icount };
    if (!i.id || !i.name) {
        fmt_snapshot_fini(&i);
        return byre_fail(err, NOMEM, "no memory for a description");
    }
    *ret = i;
    return 0;
}

static void fini(struct q2_snap *s)
{
    q2_snapshots_free(s->old.snapshots, s->old.count);
    free(s->made.id);
    free(s->made.name);
    q2_tree_fini(&s->mine);
    q2_tree_fini(&s->its);
    q2_shift_fini(&s->shift);
    free(s->words);
}

int q2_snapshot_op(struct co *co, struct fmt_image *im, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err)
{
    ASSERT_LOOP(im->home);
    struct q2_snap s = { .q = q2_of(im), .rq = rq, .err = err };
    struct fmt_snapshot_info info = { 0 };
    int r = q2_scrub_excludes(s.q, "given, taken or set back to a snapshot", err);
    if (r < 0)
        return r;
    s.q->changing = true;                        /* no scrub begins */
    r = plan(co, &s);
    if (r == 0 && rq->op == FMT_SNAPSHOT_APPLY && rq->before)
        r = rq->before(co, rq->arg, s.it->disk_size, err);
    if (r == 0)
        r = describe(s.it, ret ? &info : NULL, err);
    if (r == 0)
        r = take(co, &s, s.table_bytes, &s.table);
    if (r == 0)
        r = take(co, &s, s.l1_bytes, &s.l1);
    if (r == 0)
        r = act(co, &s);
    give_runs_back(&s);
    if (rq->touched)
        *rq->touched = s.named;
    s.q->changing = false;
    fini(&s);
    if (r < 0)
        fmt_snapshot_fini(&info);
    else if (ret)
        *ret = info;
    return r;
}
