/* SPDX-License-Identifier: MIT
 *
 * q2_move.c: takes one thing to another place of the file while the disk is in use: data, compressed clusters, L2 tables.
 *
 * Purpose      Copies, links the copy, and drops the old place; folds what holds zeros alone.
 * Owns         q->hold_*
 * Invariants   B1 Data moves under the lock of its guest range, and while its host cluster is held: writers in place that saw the old
 *                 mapping have left (a grace period), and no other begins, from before the copy until after the new entry.
 *              B2 Who has to replace a held cluster meanwhile (q2_write.c W6) waits for the same grace period, and the hold does not
 *                 end before he has: else somebody would write in place behind his copy.
 *              B3 Nothing is moved that has not one owner, by its flag and by its count; what a snapshot shares stays.
 *              B4 Guest data goes through im->data: a cipher depends on the place. Compressed bytes never are encrypted.
 *              B5 An L2 table moves under the lock of all that it maps: nobody has a slice of it pinned to change it. It is copied from
 *                 the cache, where the last changes are.
 *              B6 A cluster of zeros is folded only if the guest then still reads zeros: zero flag, or nothing below.
 *              B7 A compressed cluster is moved by its exact length, which decoding tells; what cannot be decoded stays.
 * Order        Q24: copy, then the entry with the data barrier (Q2, Q5, Q11), then the old place goes the way of Q9. Folding needs no
 *              barrier (Q10).
 * Concurrency  Home loop, beside any requests. A writer waits for one lock, for as long as Q2_MOVE_BYTES or one cluster take.
 * Failure      The old entry stands, the new place is given back.
 * Tests        q2_compact_test.c, crash explorer (compact-*, mutants MOVE*), tests/interop/test_q2_compact.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_compact_priv.h"
#include "fmt/qcow2/q2_guard.h"

/* ---- B1, B2 ---- */

void q2_hold(struct co *co, struct q2_image *q, uint64_t from, uint64_t end)
{
    ASSERT(from < end && !atomic_load(&q->hold_end) && (!q->hold_users || MUTANT(MUT_MOVE_USERS)));
    atomic_store(&q->hold_from, from);
    atomic_store(&q->hold_end, end);
    q->hold_stamp = epoch_stamp(q->im.epoch);
    if (!MUTANT(MUT_MOVE_NO_GRACE))
        epoch_wait_stamp(co, q->im.epoch, q->hold_stamp);
}

void q2_unhold(struct co *co, struct q2_image *q)
{
    while (q->hold_users && !MUTANT(MUT_MOVE_USERS))
        co_wait(co, &q->hold_left);
    atomic_store(&q->hold_end, 0);
}

/* ---- data ---- */

struct span { struct q2_compact *c; struct meta_block *b; uint32_t index; uint64_t guest, host; unsigned n; };

/* Is entry i still the one that the list speaks of? */
static bool same(const struct span *s, unsigned i, struct q2_l2e *e)
{
    const struct q2_image *q = s->c->q;
    uint64_t cs = q->g.cluster_size;
    return q2_entry_get(q, s->b, s->index + i, e) && (e->kind == Q2_NORMAL || e->kind == Q2_ZERO_ALLOC) && e->copied && e->host == s->host + i * cs &&
           q2_entry_fits(q, e, s->guest + i * cs);
}

static bool ours(const struct span *s, unsigned i, struct q2_l2e *e) { return same(s, i, e) && q2_guard_clear(s->c->q, e->host); }

/* B3 */
static int one_owner(struct co *co, struct q2_image *q, uint64_t host)
{
    uint64_t n;
    int r = q2_refs_get(co, q, host >> q->g.cluster_bits, &n);
    return r < 0 ? r : n == 1;
}

/* B6. false: it cannot be said that the cluster reads zeros. bytes: what it holds. */
static bool folded(const struct q2_image *q, const struct q2_l2e *old, uint64_t guest, const uint8_t *bytes, struct q2_l2e *ret)
{
    uint64_t unit = 1ull << q->g.sub_bits;
    if (q->g.ext_l2) {
        for (uint32_t i = 0; i < Q2_SUBCLUSTERS; i++)
            if (old->alloc >> i & 1 && !mem_is_zero(bytes + i * unit, unit))
                return false;
        *ret = (struct q2_l2e){ .kind = Q2_UNALLOCATED, .zero = old->zero | old->alloc };
        return true;
    }
    if (old->kind == Q2_NORMAL && !mem_is_zero(bytes, q->g.cluster_size))
        return false;
    bool nothing_below = guest >= atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed) || MUTANT(MUT_FOLD_SHOWS_BELOW);
    *ret = (struct q2_l2e){ .kind = q->g.zero_clusters && !MUTANT(MUT_FOLD_SHOWS_BELOW) ? Q2_ZERO_PLAIN : Q2_UNALLOCATED };
    return q->g.zero_clusters || nothing_below;
}

static void drop_old(struct q2_image *q, const struct q2_l2e *e) { q2_alloc_drop_moved(q, e->host >> q->g.cluster_bits, 1); }

static void fold(const struct span *s, unsigned i, const struct q2_l2e *old, const struct q2_l2e *new)
{
    struct q2_image *q = s->c->q;
    q2_entry_set(q, s->b, s->index + i, new);
    drop_old(q, old);
    s->c->res->zeroed += q->g.cluster_size;
}

/* Entries [i, i + n) of the span get the clusters from `to` on, which hold their bytes. */
static void link_run(struct co *co, const struct span *s, unsigned i, unsigned n, uint64_t to)
{
    struct q2_image *q = s->c->q;
    CO_ATOMIC(co) {
        for (unsigned k = 0; k < n; k++) {
            struct q2_l2e old, new;
            bool ok = same(s, i + k, &old);
            INV(B1, ok);
            new = old;
            new.host = to + k * q->g.cluster_size;
            q2_entry_set(q, s->b, s->index + i + k, &new);
            drop_old(q, &old);
        }
        if (!MUTANT(MUT_MOVE_UNORDERED))
            meta_need_data_barrier(q->meta);
    }
    s->c->res->moved += n * q->g.cluster_size;
    s->c->round_moved += n * q->g.cluster_size;
}

/* The part of a cluster with subclusters that holds anything: what is not allocated is not worth a byte. */
static void worth(const struct q2_image *q, const struct q2_l2e *e, uint64_t *from, uint64_t *to)
{
    *from = 0;
    *to = q->g.cluster_size;
    if (q->g.ext_l2 && e->alloc) {
        *from = (uint64_t)__builtin_ctz(e->alloc) << q->g.sub_bits;
        *to = (uint64_t)(32 - __builtin_clz(e->alloc)) << q->g.sub_bits;
    }
}

static int move_run(struct co *co, const struct span *s, unsigned i, unsigned n)
{
    struct q2_image *q = s->c->q;
    uint64_t cs = q->g.cluster_size;
    int r = 0;
    for (unsigned k; r == 0 && n; i += k, n -= k) {
        struct q2_run run;
        struct q2_l2e e;
        uint64_t from, to;
        r = q2_alloc_take_low(co, q, n, s->c->target, &run);
        if (r < 0)
            break;
        k = (unsigned)run.count;
        bool ok = same(s, i, &e);
        INV(B1, ok);
        worth(q, &e, &from, &to);
        r = stor_write_buf(co, q->im.data, s->c->buf + i * cs + from, (k - 1) * cs + to - from, (run.cluster << q->g.cluster_bits) + from, 0);   /* B4 */
        if (r < 0)
            q2_alloc_return(q, &run);
        else
            link_run(co, s, i, k, run.cluster << q->g.cluster_bits);
    }
    return r;
}

static int move_span(struct co *co, const struct span *s)
{
    struct q2_image *q = s->c->q;
    uint64_t cs = q->g.cluster_size;
    struct iovec v;
    unsigned run = 0;                                /* clusters in front of i that wait to be moved together */
    int r = stor_read(co, q->im.data, iov_one(&v, s->c->buf, s->n * cs), s->host);
    for (unsigned i = 0; r == 0 && i <= s->n; i++) {
        struct q2_l2e old, new;
        int mine = i < s->n && ours(s, i, &old) ? one_owner(co, q, old.host) : 0;
        bool zero = mine > 0 && folded(q, &old, s->guest + i * cs, s->c->buf + i * cs, &new);
        if (mine < 0)
            return mine;
        if (mine && !zero && !s->c->looking) {
            run++;
            continue;
        }
        if (run)
            r = move_run(co, s, i - run, run);
        run = 0;
        if (r == 0 && zero)
            fold(s, i, &old, &new);
    }
    return r;
}

int q2_move_data(struct co *co, struct q2_compact *c, const struct q2_mover *m, unsigned n)
{
    struct q2_image *q = c->q;
    struct span s = { .c = c, .guest = m->guest, .host = m->host, .n = n };
    struct co_range lock;
    co_range_lock(co, &q->locks, &lock, s.guest, s.guest + n * q->g.cluster_size);
    int r = q->failed ? -EIO : q2_guard_need(co, q);
    if (r == 0)
        r = q2_slice_get(co, q, s.guest, &s.b, &s.index);
    if (r == 0 && s.b) {
        if (q2_slice_is_own(q, s.guest))
            r = move_span(co, &s);
        meta_put(q->meta, s.b);
    }
    co_range_unlock(&q->locks, &lock);
    return r;
}

/* ---- compressed clusters ---- */

struct pack { struct span s; unsigned at[Q2_MOVE_PIECES]; struct iovec enc[Q2_MOVE_PIECES]; unsigned n; size_t used; };

struct measure { struct q2_image *q; const void *in; size_t in_bytes, used; void *out; bool zero; };

static int64_t measure_job(void *arg)
{
    struct measure *m = arg;
    int r = q2_decompress_used(m->q->codecs, m->q->h.compression_type, m->in, m->in_bytes, m->out, m->q->g.cluster_size, &m->used);
    m->zero = r == 0 && mem_is_zero(m->out, m->q->g.cluster_size);
    return r;
}

static bool packed_at(const struct pack *p, unsigned i, uint64_t host, struct q2_l2e *e)
{
    return q2_entry_get(p->s.c->q, p->s.b, p->s.index + i, e) && e->kind == Q2_COMPRESSED && e->host == host;
}

static void set_packed(const struct pack *p, unsigned i, const struct q2_l2e *old, const struct q2_l2e *new)
{
    q2_entry_set(p->s.c->q, p->s.b, p->s.index + i, new);
    q2_drop_entry(p->s.c->q, old);
}

/* Reads piece i; it is folded at once, or goes with the others, or stays. */
static int load_piece(struct co *co, struct pack *p, unsigned i, uint64_t host)
{
    struct q2_compact *c = p->s.c;
    struct q2_image *q = c->q;
    struct q2_l2e e, zero = { .kind = q->g.ext_l2 || !q->g.zero_clusters ? Q2_UNALLOCATED : Q2_ZERO_PLAIN, .zero = q->g.ext_l2 ? Q2_SUB_ALL : 0 };
    struct iovec v;
    if (!packed_at(p, i, host, &e) || e.comp_bytes > c->buf_bytes - p->used)
        return 0;
    int r = stor_read(co, q->im.store, iov_one(&v, c->buf + p->used, e.comp_bytes), host);
    if (r < 0)
        return r;
    struct measure m = { .q = q, .in = c->buf + p->used, .in_bytes = e.comp_bytes, .out = c->scratch };
    r = (int)rt_cpu(co, measure_job, &m);
    if (r == -ENOMEM)
        return r;
    if (r < 0 || !m.used || m.used >= q->g.cluster_size)
        return 0;                                    /* B7 */
    uint64_t guest = p->s.guest + i * q->g.cluster_size;
    if (m.zero && (q->g.zero_clusters || guest >= atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed))) {
        set_packed(p, i, &e, &zero);
        c->res->zeroed += q->g.cluster_size;
        return 0;
    }
    p->at[p->n] = i;
    p->enc[p->n++] = (struct iovec){ c->buf + p->used, m.used };
    p->used += m.used;
    return 0;
}

static int write_pieces(struct co *co, const struct pack *p, const uint64_t *host)
{
    int r = 0;
    for (unsigned i = 0, n; i < p->n && r == 0; i += n) {
        for (n = 1; i + n < p->n && host[i + n] == host[i + n - 1] + p->enc[i + n - 1].iov_len; n++)
            ;
        r = stor_write(co, p->s.c->q->im.store, iov_of(p->enc + i, n), host[i], 0);
    }
    return r;
}

static int place_pieces(struct co *co, struct pack *p)
{
    struct q2_compact *c = p->s.c;
    struct q2_image *q = c->q;
    uint64_t host[Q2_MOVE_PIECES];
    if (!p->n)
        return 0;
    if (!q2_alloc_low_has(q, div_up(p->used, q->g.cluster_size) + 1, c->target))
        return -ENOSPC;
    int r = q2_pack_take(co, q, p->enc, p->n, host);
    if (r < 0)
        return r;
    r = write_pieces(co, p, host);
    CO_ATOMIC(co) {
        for (unsigned i = 0; i < p->n; i++) {
            struct q2_l2e old, new = { .kind = Q2_COMPRESSED, .host = host[i], .comp_bytes = p->enc[i].iov_len };
            bool ok = q2_entry_get(q, p->s.b, p->s.index + p->at[i], &old);
            INV(B1, ok && old.kind == Q2_COMPRESSED);
            if (r < 0)
                q2_drop_entry(q, &new);
            else
                set_packed(p, p->at[i], &old, &new);
        }
        if (r == 0 && !MUTANT(MUT_MOVE_UNORDERED))
            meta_need_data_barrier(q->meta);
    }
    if (r == 0) {
        c->res->moved += p->used;
        c->round_moved += p->used;
    }
    return r;
}

int q2_move_packed(struct co *co, struct q2_compact *c, const struct q2_mover *m, unsigned n)
{
    struct q2_image *q = c->q;
    struct pack p = { .s = { .c = c, .guest = m->guest, .n = n } };
    struct co_range lock;
    ASSERT(n <= Q2_MOVE_PIECES);
    co_range_lock(co, &q->locks, &lock, m->guest, m->guest + n * q->g.cluster_size);
    int r = q->failed ? -EIO : q2_slice_get(co, q, m->guest, &p.s.b, &p.s.index);
    if (r == 0 && p.s.b) {
        for (unsigned i = 0; r == 0 && i < n && q2_slice_is_own(q, m->guest); i++)
            r = load_piece(co, &p, i, m[i].host);
        if (r == 0)
            r = place_pieces(co, &p);
        meta_put(q->meta, p.s.b);
    }
    co_range_unlock(&q->locks, &lock);
    return r;
}

/* ---- L2 tables ---- */

static bool table_at(const struct q2_image *q, uint64_t guest, uint64_t host, uint64_t *ret_index)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    struct q2_l1e e;
    *ret_index = q2_l1_index(&q->g, guest);
    return *ret_index < l1->entries && q2_l1e_decode(&q->g, be64_word(atomic_load_explicit(&l1->words[*ret_index], memory_order_relaxed)), &e) &&
           e.copied && e.l2_off == host && host && !q2_hits_metadata(q, host);
}

/* B5 */
static int read_table(struct co *co, struct q2_image *q, uint64_t host, uint8_t *to)
{
    int r = 0;
    if (MUTANT(MUT_MOVE_TABLE_STALE))
        return stor_read_exact(co, q->im.store, to, q->g.cluster_size, host);
    for (uint64_t at = 0; r == 0 && at < q->g.cluster_size; at += q->slice_bytes) {
        struct meta_block *b;
        r = q2_block_get(co, q, &q->kind_l2, host + at, &b);
        if (r < 0)
            break;
        memcpy(to + at, (const void *)b->words, q->slice_bytes);
        meta_put(q->meta, b);
    }
    return r == -ESTALE ? -EUCLEAN : r;
}

static int copy_table(struct co *co, struct q2_compact *c, uint64_t index, uint64_t host)
{
    struct q2_image *q = c->q;
    struct q2_run run;
    int r = q2_alloc_take_low(co, q, 1, c->target, &run);
    if (r < 0)
        return r;
    uint64_t off = run.cluster << q->g.cluster_bits;
    if (!meta_forget(q->meta, off, q->g.cluster_size))
        return -EUCLEAN;                             /* in use, whatever its count said: it stays out of reach */
    r = read_table(co, q, host, c->buf);
    if (r == 0)
        r = meta_write_now(co, q->meta, c->buf, q->g.cluster_size, off);
    if (r < 0) {
        q2_alloc_return(q, &run);
        return r;
    }
    meta_need_data_barrier(q->meta);                 /* Q5 */
    q2_l1_set(q, index, q2_l1e_encode(off, true));
    q2_alloc_drop_table(q, host >> q->g.cluster_bits, 1);
    c->res->moved += q->g.cluster_size;
    c->round_moved += q->g.cluster_size;
    return 0;
}

int q2_move_table(struct co *co, struct q2_compact *c, const struct q2_mover *m)
{
    struct q2_image *q = c->q;
    struct co_range lock;
    uint64_t index, from = round_down(m->guest, q2_l2_span(&q->g));
    co_range_lock(co, &q->locks, &lock, from, from + q2_l2_span(&q->g));
    co_lock(co, &q->l2_mx);
    int r = q->failed ? -EIO : table_at(q, m->guest, m->host, &index) ? one_owner(co, q, m->host) : 0;
    if (r > 0)
        r = copy_table(co, c, index, m->host);
    co_unlock(&q->l2_mx);
    co_range_unlock(&q->locks, &lock);
    return r;
}
