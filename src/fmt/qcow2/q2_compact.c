/* SPDX-License-Identifier: MIT
 *
 * q2_compact.c: makes the file of an image as small as what it holds, while the disk is in use (G.010).
 *
 * Purpose      Decides what is to be moved where: the end of the file is emptied into the holes in front of it, as far as they
 *              go; q2_move.c moves, q2_shorten.c cuts and punches.
 * Owns         q->compacting, a->low_end
 * Invariants   C1 What the walk finds is a hint: it reads tables on the disk while they change. Everything is looked at again under its
 *                 lock (q2_move.c).
 *              C2 Only a sound image is compacted: a scrub looks at all of it first, and frees what leaks.
 *              C3 Nothing is moved in vain: what lies behind the last cluster that has to stay is moved, and the rest stays too.
 *              C4 Space of this opening is taken from the holes first, also by others, so that the end is not refilled behind us.
 * What stays   Header, L1 and refcount tables, refcount blocks that count something, snapshots with all they share, bitmaps, the
 *              encryption header; what lies behind them is reached all the same, by punches.
 * Order        q2_move.c, q2_shorten.c
 * Concurrency  Home loop, any requests beside it. A window of clusters is held at a time (q2_move.c B1) and paid for with one grace
 *              period; between windows the job may stand still for as long as it likes.
 * Failure      What was moved stays moved; the end of the file stays where it is, or is cut as far as it is free.
 * Memory       A bit or two per cluster of the file, and Q2_MOVERS_MAX places.
 * Tests        q2_compact_test.c, crash explorer (compact-*), tests/interop/test_q2_compact.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_compact_priv.h"

#define MOVERS_MAX (1u << 18)
#define WINDOW_BYTES (2ull << 20)        /* moved for one grace period */
#define WINDOW_SPAN (16ull << 20)        /* held for it */
#define WINDOW_COUNT 256u
#define SETTLE_BYTES (32ull << 20)       /* moved between two waits for what was freed: it bounds what a crash leaks */
#define ROUNDS_MAX 4u
#define REFS_PER_STEP 512u

static int step(struct co *co, struct q2_compact *c, uint64_t bytes)
{
    c->done += bytes;
    c->total = max_u64(c->total, c->done);
    if (c->o->progress)
        c->o->progress(c->o->arg, c->done, c->total);
    co_breathe(co);
    if (c->q->failed)
        return -EIO;
    return c->o->step ? c->o->step(co, c->o->arg, bytes) : 0;
}

static int punch_step(struct co *co, void *arg, uint64_t bytes) { return step(co, arg, bytes); }

/* ---- moving what was found ---- */

static int by_host(const void *a, const void *b)
{
    uint64_t x = ((const struct q2_mover *)a)->host, y = ((const struct q2_mover *)b)->host;
    return x < y ? -1 : x > y;
}

static int64_t sort_job(void *arg)
{
    struct q2_compact *c = arg;
    qsort(c->list, c->count, sizeof *c->list, by_host);
    return 0;
}

/* How many from m on go under one lock? */
static unsigned unit_of(const struct q2_compact *c, const struct q2_mover *m, size_t left)
{
    const struct q2_image *q = c->q;
    uint64_t cs = q->g.cluster_size, most = m->kind == Q2_MOVER_PACKED ? Q2_MOVE_PIECES : q->g.ext_l2 ? 1 : max_u64(Q2_MOVE_BYTES / cs, 1);
    unsigned n = 1;
    while (n < most && n < left && m[n].kind == m->kind && m[n].guest == m->guest + n * cs &&
           round_down(m->guest, q->slice_span) == round_down(m[n].guest, q->slice_span) && (m->kind == Q2_MOVER_PACKED || m[n].host == m->host + n * cs))
        n++;
    return n;
}

static int move_window(struct co *co, struct q2_compact *c, const struct q2_mover *m, size_t n)
{
    struct q2_image *q = c->q;
    int r = 0;
    q2_hold(co, q, m->host, m[n - 1].host + q->g.cluster_size);
    for (size_t i = 0, k; r == 0 && i < n; i += k) {
        k = unit_of(c, m + i, n - i);
        r = m[i].kind == Q2_MOVER_PACKED ? q2_move_packed(co, c, m + i, (unsigned)k) : q2_move_data(co, c, m + i, (unsigned)k);
        co_yield(co);
    }
    q2_unhold(co, q);
    return r;
}

/* The first one of the window that ends in front of `end`. */
static size_t window_of(const struct q2_compact *c, size_t end)
{
    uint64_t cs = c->q->g.cluster_size, most = min_u64(max_u64(WINDOW_BYTES / cs, 1), WINDOW_COUNT), top = c->list[end - 1].host + cs;
    size_t at = end - 1;
    while (at > 0 && end - at < most && top - c->list[at - 1].host <= WINDOW_SPAN)
        at--;
    return at;
}

static int settle(struct co *co, struct q2_compact *c, uint64_t bytes)
{
    c->unsettled += bytes;
    if (c->unsettled < SETTLE_BYTES)
        return 0;
    c->unsettled = 0;
    return q2_drop_settle(co, c->q);
}

/* From the end of the file on, so that also a part of it is worth something. */
static int move_list(struct co *co, struct q2_compact *c)
{
    int r = (int)rt_cpu(co, sort_job, c);
    for (size_t end = c->count; r == 0 && end > 0 && !c->full;) {
        size_t from = window_of(c, end);
        uint64_t bytes = (end - from) * c->q->g.cluster_size;
        r = move_window(co, c, c->list + from, end - from);
        if (r == -ENOSPC) {
            c->full = true;
            r = 0;
        }
        if (r == 0)
            r = settle(co, c, bytes);
        if (r == 0)
            r = step(co, c, c->looking ? 0 : bytes);
        end = from;
    }
    c->count = 0;
    return r;
}

/* ---- looking for zeros ---- */

/* Which of the list may be zeros? Read without any lock: a hint. */
static int keep_zeros(struct co *co, struct q2_compact *c)
{
    uint64_t cs = c->q->g.cluster_size, most = max_u64(c->buf_bytes / cs, 1);
    size_t kept = 0;
    int r = (int)rt_cpu(co, sort_job, c);
    for (size_t i = 0, n; r == 0 && i < c->count; i += n) {
        struct iovec v;
        for (n = 1; n < most && i + n < c->count && c->list[i + n].host == c->list[i].host + n * cs; n++)
            ;
        r = stor_read(co, c->q->im.data, iov_one(&v, c->buf, n * cs), c->list[i].host);
        for (size_t k = 0; r == 0 && k < n; k++)
            if (mem_is_zero(c->buf + k * cs, cs))
                c->list[kept++] = c->list[i + k];
        if (r == 0)
            r = step(co, c, n * cs);
    }
    c->count = kept;
    return r;
}

static int work_off(struct co *co, struct q2_compact *c)
{
    int r = c->looking ? keep_zeros(co, c) : 0;
    return r < 0 ? r : move_list(co, c);
}

/* ---- the walk ---- */

static bool can_move(const struct q2_compact *c, const struct q2_ref *r)
{
    const struct q2_image *q = c->q;
    uint64_t size = atomic_load_explicit(&q->im.size, memory_order_relaxed);
    return r->active && !r->outside && r->index < size && (r->kind == Q2_REF_COMPRESSED || (r->raw & Q2_E_COPIED && is_aligned(r->off, q->g.cluster_size)));
}

static int pause_walk(struct co *co, struct q2_compact *c) { return ++c->refs % REFS_PER_STEP ? 0 : step(co, c, 0); }

/* First look: what can be moved at all? */
static int note(struct co *co, void *arg, const struct q2_ref *r)
{
    struct q2_compact *c = arg;
    uint32_t bits = c->q->g.cluster_bits;
    int rc = pause_walk(co, c);
    if (rc < 0 || !can_move(c, r) || r->kind == Q2_REF_L1)
        return rc;
    if (r->kind == Q2_REF_DATA || r->kind == Q2_REF_ZERO || r->kind == Q2_REF_L2)
        q2_marks_add(&c->movable, r->off >> bits, 1);
    for (uint64_t at = r->off >> bits; r->kind == Q2_REF_COMPRESSED && rc == 0 && at <= (r->off + r->bytes - 1) >> bits; at++)
        if (at < c->pieces.n)
            rc = q2_counts_add(&c->pieces, at, 1);
    return rc;
}

static bool wanted(const struct q2_compact *c, const struct q2_ref *r)
{
    uint32_t bits = c->q->g.cluster_bits;
    if (c->looking)
        return r->kind == Q2_REF_DATA || r->kind == Q2_REF_ZERO;
    for (uint64_t at = r->off >> bits; at <= (r->off + r->bytes - 1) >> bits; at++)
        if (at >= c->target && q2_marks_has(&c->movable, at))
            return true;
    return false;
}

static int keep_table(struct q2_compact *c, const struct q2_mover *m)
{
    if (c->table_count == c->table_room) {
        size_t room = c->table_room ? 2 * c->table_room : 64;
        void *p = realloc(c->tables, room * sizeof *c->tables);
        if (!p)
            return -ENOMEM;
        c->tables = p;
        c->table_room = room;
    }
    c->tables[c->table_count++] = *m;
    return 0;
}

/* Second look: the places. */
static int collect(struct co *co, void *arg, const struct q2_ref *r)
{
    struct q2_compact *c = arg;
    int rc = pause_walk(co, c);
    if (rc < 0 || !can_move(c, r) || r->kind == Q2_REF_L1 || !wanted(c, r))
        return rc;
    struct q2_mover m = { r->index, r->off, r->kind == Q2_REF_COMPRESSED ? Q2_MOVER_PACKED : Q2_MOVER_DATA };
    if (r->kind == Q2_REF_L2) {
        m.kind = Q2_MOVER_TABLE;
        return keep_table(c, &m);
    }
    c->list[c->count++] = m;
    return c->count == MOVERS_MAX ? work_off(co, c) : 0;
}

static void on_fault(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc) { (void)arg; (void)f; (void)r; (void)rc; }

static int walk(struct co *co, struct q2_compact *c, int (*fn)(struct co *co, void *arg, const struct q2_ref *r))
{
    struct q2_image *q = c->q;
    struct q2_visitor v = { .ref = fn, .fault = on_fault };
    struct q2_walk w = { .store = q->im.store, .g = &q->g, .h = &q->h, .parts = Q2_WALK_MAPPING, .v = &v, .arg = c };
    int r = meta_flush(co, q->meta);                 /* the walk reads the disk */
    if (r == 0)
        r = stor_length(co, q->im.store, &w.file_bytes);
    return r < 0 ? r : q2_walk(co, &w);
}

/* ---- a round ---- */

/* Host clusters that compressed clusters of the disk alone hold. */
static int mark_packed(struct co *co, struct q2_compact *c)
{
    int r = 0;
    for (uint64_t i = q2_counts_next(&c->pieces, 0), n; r == 0 && i != Q2_COUNTS_NONE; i = q2_counts_next(&c->pieces, i + 1)) {
        r = q2_refs_get(co, c->q, i, &n);
        if (r == 0 && n == q2_counts_get(&c->pieces, i))
            q2_marks_add(&c->movable, i, 1);
        if (r == 0)
            r = pause_walk(co, c);
    }
    return r;
}

static void pass_by(void *arg, uint64_t first, uint64_t n) { q2_marks_add(arg, first, n); }

static void pass_set(struct q2_compact *c, const struct rset *set)
{
    struct rset_range x;
    for (uint64_t at = 0; rset_next(set, at, &x); at = x.end)
        q2_marks_add(&c->passing, x.start, x.end - x.start);
}

/* Everything that can be freed is free, and known. */
static int tidy(struct co *co, struct q2_compact *c)
{
    int r = q2_alloc_scan_all(co, c->q);
    return r < 0 ? q2_judge(co, c->q, r, "the refcount of the cluster at", 0) : q2_shorten(co, c->q);
}

static int look_over(struct co *co, struct q2_compact *c)
{
    struct q2_alloc *a = c->q->alloc;
    q2_marks_fini(&c->movable);
    q2_marks_fini(&c->passing);
    q2_counts_fini(&c->pieces);
    int r = q2_counts_init(&c->pieces, a->end);
    if (r == 0)
        r = walk(co, c, note);
    return r < 0 ? r : mark_packed(co, c);
}

struct aim_job { const struct q2_shape *s; struct q2_aim aim; };

static int64_t aim_job(void *arg)
{
    struct aim_job *j = arg;
    j->aim = q2_shape_aim(j->s);
    return 0;
}

/* Where to? And how much is that? */
static int aim(struct co *co, struct q2_compact *c)
{
    struct q2_alloc *a = c->q->alloc;
    struct q2_shape s = { .end = a->end, .room = a->ready.total, .movable = &c->movable, .passing = &c->passing };
    struct q2_block_at *blocks = NULL;
    struct rset_range *list = NULL;
    int r = q2_shape_blocks(c->q, &blocks, &s.block_count);
    if (r == 0)
        r = q2_shape_free(&a->ready, &list, &s.free_count);
    pass_set(c, &a->frontier);
    pass_set(c, &a->counted);
    q2_drop_each(a, pass_by, &c->passing);
    s.blocks = blocks;
    s.free = list;
    struct aim_job job = { .s = &s };
    if (r == 0)
        r = c->movable.all || c->passing.all ? -ENOMEM : (int)rt_cpu(co, aim_job, &job);
    free(blocks);
    free(list);
    c->target = job.aim.target;
    c->total = c->done + (job.aim.moved << c->q->g.cluster_bits);
    return r;
}

static int move_tables(struct co *co, struct q2_compact *c)
{
    int r = 0;
    for (size_t i = c->table_count; r == 0 && i > 0 && !c->full; i--) {
        r = q2_move_table(co, c, &c->tables[i - 1]);
        if (r == -ENOSPC) {
            c->full = true;
            r = 0;
        }
        if (r == 0)
            r = settle(co, c, c->q->g.cluster_size);
        if (r == 0)
            r = step(co, c, c->q->g.cluster_size);
    }
    c->table_count = 0;
    return r;
}

/* One walk, and what it finds is moved. */
static int round_of(struct co *co, struct q2_compact *c)
{
    c->full = false;
    c->round_moved = 0;
    int r = look_over(co, c);
    if (r == 0)
        r = aim(co, c);
    if (r < 0 || c->target >= c->q->alloc->end)
        return r;
    q2_alloc_prefer(c->q, c->target);                /* C4 */
    r = walk(co, c, collect);
    if (r == 0)
        r = work_off(co, c);
    if (r == 0)
        r = move_tables(co, c);
    q2_alloc_prefer(c->q, 0);
    return r < 0 ? r : tidy(co, c);
}

static int look_for_zeros(struct co *co, struct q2_compact *c)
{
    c->total = atomic_load(&c->q->im.size);
    c->looking = true;
    int r = walk(co, c, collect);
    if (r == 0)
        r = work_off(co, c);
    c->looking = false;
    c->done = c->total;                              /* what is not allocated has not been read */
    return r;
}

static int work(struct co *co, struct q2_compact *c)
{
    int r = tidy(co, c);
    if (r == 0 && c->o->look_for_zeros)
        r = look_for_zeros(co, c);
    if (r == 0 && c->res->zeroed)
        r = tidy(co, c);
    for (unsigned i = 0; r == 0 && i < ROUNDS_MAX; i++) {
        r = round_of(co, c);
        if (!c->round_moved)
            break;
    }
    if (r == 0)
        r = q2_punch_free(co, c->q, punch_step, c);
    if (r == -ECANCELED && tidy(co, c) < 0)
        return -EIO;
    return r;
}

/* ---- entry ---- */

static int refused(const struct q2_image *q, struct byre_err *err)
{
    if (q->im.read_only || q->check_mode)
        return byre_fail(err, READ_ONLY, "%s: compaction is for an image that is open for writing", q->name);
    if (q->g.data_file)
        return byre_fail(err, NOT_SUPPORTED, "%s: its data lies in a file of its own, at the places where the guest has it: there is nothing to compact", q->name);
    if (q->changing)
        return byre_fail(err, BUSY, "%s: its snapshots are being changed", q->name);
    return q2_scrub_excludes(q, "compacted", err);
}

static int judge_step(struct co *co, void *arg)
{
    struct q2_compact *c = arg;
    return c->o->step ? c->o->step(co, c->o->arg, 0) : 0;
}

/* C2 */
static int judge(struct co *co, struct q2_compact *c)
{
    struct fmt_check_result res = { 0 };
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .step = judge_step, .arg = c };
    int r = q2_scrub(co, &c->q->im, &o, &res, c->err);
    if (r == 0 && (res.corruptions || res.check_errors))
        r = byre_fail(c->err, Q2_CORRUPT, "%s: %" PRIu64 " errors were found, and %" PRIu64 " places cannot be read; nothing is moved before check -r all has repaired it",
                      c->q->name, res.corruptions, res.check_errors);
    return r;
}

static void sizes(struct co *co, struct q2_image *q, uint64_t *length, uint64_t *allocated)
{
    if (stor_length(co, q->im.store, length) < 0)
        *length = 0;
    if (stor_allocated(co, q->im.store, allocated) < 0)
        *allocated = 0;
}

static int prepare(struct q2_compact *c)
{
    uint64_t cs = c->q->g.cluster_size;
    c->buf_bytes = max_u64(2 * cs, 2 * Q2_MOVE_BYTES);
    void *buf = NULL, *scratch = NULL;
    c->list = malloc(MOVERS_MAX * sizeof *c->list);
    int r = posix_memalign(&buf, 4096, c->buf_bytes) || posix_memalign(&scratch, 4096, cs) || !c->list ? -ENOMEM : 0;
    c->buf = buf;
    c->scratch = scratch;
    return r;
}

static void finish(struct q2_compact *c)
{
    q2_marks_fini(&c->movable);
    q2_marks_fini(&c->passing);
    q2_counts_fini(&c->pieces);
    free(c->list);
    free(c->tables);
    free(c->buf);
    free(c->scratch);
}

int q2_compact(struct co *co, struct fmt_image *im, const struct fmt_compact_opts *o, struct fmt_compact_result *ret, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    int r = refused(q, err);
    if (r < 0)
        return r;
    struct q2_compact *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "%s: no memory for a compaction", q->name);
    *c = (struct q2_compact){ .q = q, .o = o, .res = ret, .err = err };
    *ret = (struct fmt_compact_result){ 0 };
    r = prepare(c);
    sizes(co, q, &ret->length_before, &ret->allocated_before);
    if (r == 0)
        r = judge(co, c);
    else
        r = byre_fail(err, NOMEM, "%s: no memory for a compaction", q->name);
    if (r == 0 && q->compacting)
        r = byre_fail(err, BUSY, "%s: it is being compacted", q->name);
    if (r == 0) {
        q->compacting = true;
        r = q2_judge(co, q, work(co, c), "what a compaction met behind guest offset", 0);
        q2_alloc_prefer(q, 0);
        q->compacting = false;
        if (r < 0 && r != -ECANCELED)
            r = byre_fail_code(err, IO, r, "%s: its compaction stopped: %s", q->name, strerror(-r));
    }
    sizes(co, q, &ret->length_after, &ret->allocated_after);
    finish(c);
    free(c);
    return r;
}
