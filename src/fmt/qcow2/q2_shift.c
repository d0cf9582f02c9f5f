/* SPDX-License-Identifier: MIT
 *
 * q2_shift.c: many refcounts at once.
 *
 * Purpose      Refcount changes of whole trees in one pass over the refcount blocks, in large pieces.
 * Owns         The counts and marks of one operation.
 * Invariants   S1  Every step is refused or goes through as a whole, block by block in the order of the refcount table;
 *                  `raised` tells how far up came.
 *              S2  Blocks without a cluster concerned are not read.
 *              S3  check has accepted the shift before anything is written: no sum overflows, nothing falls below zero.
 * Order        None of its own. up before what makes the new references true, down after what ends the old ones (Q13..Q15).
 * Concurrency  Home loop, image drained, cache clean and forgotten afterwards.
 * Failure      up: the piece that failed gets its old bytes back if that can be written; undo takes back the rest.
 * Tests        q2_snap_test.c, crash explorer, tests/interop/test_snapshots.py
 */
#include "fmt/qcow2/q2_shift.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/pieces.h"

int q2_shift_init(struct q2_shift *s, struct q2_image *q, uint64_t file_bytes)
{
    uint64_t n = div_up(file_bytes, q->g.cluster_size) + 1;      /* compressed bytes may end in the cluster behind a cut file */
    *s = (struct q2_shift){ .q = q };
    if (q2_counts_init(&s->gain, n) || q2_counts_init(&s->loss, n) || q2_counts_init(&s->state, n)) {
        q2_shift_fini(s);
        return -ENOMEM;
    }
    return 0;
}

void q2_shift_fini(struct q2_shift *s)
{
    q2_counts_fini(&s->gain);
    q2_counts_fini(&s->loss);
    q2_counts_fini(&s->state);
}

/* ---- one pass over the blocks concerned ---- */

enum mode { CHECK, UP, UNDO, DOWN, LOOK };

struct pass {
    struct q2_shift *s;
    enum mode mode;
    uint64_t at, limit;                /* refcount table entries */
    uint64_t next_gain, next_loss;     /* first clusters concerned at or behind `at` */
    uint64_t max;                      /* bytes of a piece */
    uint8_t *old;                      /* UP: the piece as it was */
};

static struct pass pass_of(struct q2_shift *s, enum mode mode, uint64_t limit)
{
    return (struct pass){ .s = s, .mode = mode, .limit = limit, .max = max_u64(FMT_PIECES_BYTES, s->q->g.cluster_size),
                          .next_gain = q2_counts_next(&s->gain, 0), .next_loss = q2_counts_next(&s->loss, 0) };
}

/* First refcount table entry at or behind `from` with a cluster concerned; UINT64_MAX: none. `from` only grows. */
static uint64_t next_entry(struct pass *p, uint64_t from)
{
    const struct q2_shift *s = p->s;
    uint64_t first = from << s->q->g.block_bits;
    if (p->next_gain < first)
        p->next_gain = q2_counts_next(&s->gain, first);
    if (p->next_loss < first)
        p->next_loss = q2_counts_next(&s->loss, first);
    uint64_t c = min_u64(p->next_gain, p->next_loss);
    return c == Q2_COUNTS_NONE ? UINT64_MAX : c >> s->q->g.block_bits;
}

/* Blocks of consecutive entries that lie one behind the other. */
static bool next_piece(void *arg, struct fmt_piece *x)
{
    struct pass *p = arg;
    const struct q2_image *q = p->s->q;
    uint64_t cs = q->g.cluster_size, e = next_entry(p, p->at);
    if (e >= p->limit)
        return false;
    x->tag = e;
    x->off = q->rt[e];
    x->len = cs;
    for (p->at = e + 1; p->at < p->limit && x->len + cs <= p->max; p->at++) {
        if (next_entry(p, p->at) != p->at || q->rt[p->at] != x->off + x->len)
            break;
        x->len += cs;
    }
    return true;
}

static uint64_t get(const struct q2_geom *g, const uint8_t *block, uint64_t i)
{
    return LIKELY(g->refcount_order == 4) ? be16_get((const be16 *)block + i) : q2_refcount_get(g, block, i);
}

static void put(const struct q2_geom *g, uint8_t *block, uint64_t i, uint64_t v)
{
    if (LIKELY(g->refcount_order == 4))
        be16_put((be16 *)block + i, (uint16_t)v);
    else
        q2_refcount_put(g, block, i, v);
}

static int refuse(struct q2_shift *s, uint64_t cluster, uint64_t count, int error)
{
    s->bad_cluster = cluster;
    s->bad_count = count;
    return error;
}

static int check_one(struct q2_shift *s, uint64_t c, uint64_t v, uint64_t gain, uint64_t loss)
{
    uint64_t known = s->fresh ? gain > 0 : gain;         /* references that are there already */
    if (v < known || v - known < loss || (s->fresh && gain && (v > 1 || loss)))
        return refuse(s, c, v, -EUCLEAN);
    return gain > loss && s->q->g.refcount_max - v < gain - loss ? refuse(s, c, v, -ERANGE) : 0;
}

static void note_freed(struct q2_shift *s, uint64_t c)
{
    if (!s->freed++)
        s->freed_from = c;
    s->freed_to = c + 1;
}

/* The count of cluster c, number i of its block. */
static int work_one(struct pass *p, uint8_t *block, uint64_t i, uint64_t c)
{
    struct q2_shift *s = p->s;
    const struct q2_geom *g = &s->q->g;
    uint64_t gain = q2_counts_at(&s->gain, c), loss = q2_counts_at(&s->loss, c);
    if (!(gain | loss))
        return 0;
    uint64_t v = get(g, block, i);
    switch (p->mode) {
    case CHECK:
        return check_one(s, c, v, gain, loss);
    case UP:
        if (gain > loss)
            put(g, block, i, v + (gain - loss));
        return 0;
    case UNDO:
        if (gain <= loss)
            return 0;
        if (v < gain - loss)
            return refuse(s, c, v, -EUCLEAN);
        put(g, block, i, v - (gain - loss));
        return 0;
    case DOWN:
        if (loss <= gain)
            return 0;
        if (v < loss - gain)
            return refuse(s, c, v, -EUCLEAN);
        v -= loss - gain;
        put(g, block, i, v);
        if (!v)
            note_freed(s, c);
        return v > 1 ? 0 : q2_counts_set(&s->state, c, v ? Q2_LEFT_ONE : Q2_LEFT_NONE);
    case LOOK:
        return v == 1 ? q2_counts_set(&s->state, c, Q2_LEFT_ONE) : 0;
    }
    return 0;
}

static int work_block(struct pass *p, uint8_t *block, uint64_t entry)
{
    const struct q2_shift *s = p->s;
    uint64_t first = entry << s->q->g.block_bits, end = min_u64(first + (1ull << s->q->g.block_bits), s->gain.n);
    for (uint64_t c = first, stop; c < end; c = stop) {
        bool idle = q2_counts_empty(&s->gain, c, &stop) && q2_counts_empty(&s->loss, c, &stop);
        stop = min_u64(stop, end);
        for (uint64_t k = c; !idle && k < stop; k++) {
            int r = work_one(p, block, k - first, k);
            if (r)
                return r;
        }
    }
    return 0;
}

/* A piece of counts that were raised cannot be written: its old bytes are put back, so that nothing of it counts. */
static int take_piece_back(struct co *co, struct pass *p, const struct fmt_piece *x, int error)
{
    if (p->mode != UP)
        return error;
    int r = meta_write_now(co, p->s->q->meta, p->old, x->len, x->off);
    (void)r;                               /* then some counts stay too high: a leak */
    return error;
}

static int use_piece(struct co *co, void *arg, struct fmt_piece *x)
{
    struct pass *p = arg;
    uint64_t cs = p->s->q->g.cluster_size;
    if (x->rc)
        return x->rc;
    if (p->mode == UP)
        memcpy(p->old, x->data, x->len);
    for (uint64_t i = 0; i < x->len / cs; i++) {
        int r = work_block(p, x->data + i * cs, x->tag + i);
        if (r)
            return r;
    }
    if (p->mode == CHECK || p->mode == LOOK)
        return 0;
    int r = meta_write_now(co, p->s->q->meta, x->data, x->len, x->off);
    if (r)
        return take_piece_back(co, p, x, r);
    if (p->mode == UP)
        p->s->raised = x->tag + x->len / cs;
    return 0;
}

static int run(struct co *co, struct pass *p)
{
    static const struct fmt_pieces_ops ops = { .next = next_piece, .use = use_piece, .exact = true };
    if (p->mode == UP && posix_memalign((void **)&p->old, 4096, round_up(p->max, 4096)))
        return -ENOMEM;
    int r = fmt_pieces_run(co, p->s->q->im.store, p->max, &ops, p);
    free(p->old);
    return r;
}

/* ---- steps ---- */

static int refuse_touched(struct q2_shift *s, uint64_t off, uint64_t bytes)
{
    uint32_t bits = s->q->g.cluster_bits;
    for (uint64_t c = off >> bits; bytes && c <= (off + bytes - 1) >> bits && c < s->gain.n; c++)
        if (q2_counts_get(&s->gain, c) || q2_counts_get(&s->loss, c))
            return refuse(s, c, 0, -EUCLEAN);
    return 0;
}

/* Tables must not name as theirs what is metadata of another kind (1.111). */
static int check_metadata(struct q2_shift *s)
{
    const struct q2_image *q = s->q;
    int r = refuse_touched(s, 0, q->g.cluster_size);
    for (unsigned i = 0; i < sizeof q->fixed / sizeof q->fixed[0] && !r; i++)
        r = refuse_touched(s, atomic_load_explicit(&q->fixed[i].off, memory_order_relaxed), atomic_load_explicit(&q->fixed[i].len, memory_order_relaxed));
    for (uint64_t i = 0; i < q->rt_entries && !r; i++)
        r = q->rt[i] ? refuse_touched(s, q->rt[i], q->g.cluster_size) : 0;
    return r;
}

/* A block that two entries name would be changed twice at the same time. `state` is free to use before down. */
static int check_blocks(struct q2_shift *s)
{
    const struct q2_image *q = s->q;
    int r = 0;
    uint64_t i;
    for (i = 0; i < q->rt_entries && !r; i++) {
        uint64_t c = q->rt[i] >> q->g.cluster_bits;
        if (c && (c >= s->state.n || q2_counts_get(&s->state, c)))
            r = refuse(s, c, 0, -EUCLEAN);
        else if (c)
            r = q2_counts_set(&s->state, c, 1);
    }
    while (i-- > 0)
        q2_counts_sub(&s->state, min_u64(q->rt[i] >> q->g.cluster_bits, s->state.n - 1), 1);
    return r;
}

int q2_shift_check(struct co *co, struct q2_shift *s)
{
    const struct q2_image *q = s->q;
    int r = check_metadata(s);
    if (!r)
        r = check_blocks(s);
    struct pass p = pass_of(s, CHECK, UINT64_MAX);
    for (uint64_t e = 0; !r && (e = next_entry(&p, e)) != UINT64_MAX; e++)
        if (e >= q->rt_entries || !q->rt[e])             /* no block: all counts are 0 */
            r = refuse(s, min_u64(p.next_gain, p.next_loss), 0, -EUCLEAN);
    if (r)
        return r;
    p = pass_of(s, CHECK, q->rt_entries);
    return run(co, &p);
}

int q2_shift_up(struct co *co, struct q2_shift *s)
{
    struct pass p = pass_of(s, UP, s->q->rt_entries);
    s->raised = 0;
    return run(co, &p);
}

int q2_shift_undo(struct co *co, struct q2_shift *s)
{
    struct pass p = pass_of(s, UNDO, min_u64(s->raised, s->q->rt_entries));
    return run(co, &p);
}

int q2_shift_down(struct co *co, struct q2_shift *s)
{
    struct pass p = pass_of(s, DOWN, s->q->rt_entries);
    return run(co, &p);
}

int q2_shift_look(struct co *co, struct q2_shift *s)
{
    struct pass p = pass_of(s, LOOK, s->q->rt_entries);
    return run(co, &p);
}
