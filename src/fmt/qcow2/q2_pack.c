/* SPDX-License-Identifier: MIT
 *
 * q2_pack.c: host space for compressed clusters, to the byte.
 *
 * Purpose     Fills host clusters one behind the other with pieces (compressed clusters), so that several share one.
 * Owns        a->pack: the host bytes that may be handed out next.
 * Invariants  K1  Space only moves forward: a byte that was handed out is never handed out again, whatever became of the piece,
 *                 before its host cluster has been freed by q2_drop.c and taken anew.
 *             K2  While a cluster is being filled it has one reference for that, beside those of its pieces: it cannot become
 *                 free although all pieces in it are dropped. The piece that fills it takes that reference over.
 *             K3  A piece begins and ends inside one run of clusters that were taken, and holds one reference on each
 *                 cluster it touches (1.063).
 *             K4  Pieces of two calls never share a sector: a sector that a flush has promised is not written again.
 *             K5  A cluster has at most as many pieces as its count can say (1.043): with one bit, one.
 *             K6  pack_round rises before space that was taken can be handed out (q2_decode.c).
 * Order       Counts rise here, before any entry (Q1, Q11); the caller asks for the data barrier.
 * Concurrency Home loop; take suspends, mx keeps takers apart.
 * Failure     take fails whole: what was placed is dropped again (Q9), its bytes stay unused. A crash leaves the counts of pieces
 *             under way and of the cluster being filled: leaks.
 * Tests       q2_encode_test.c, crash explorer (c4k-comp*, mutants PACK_*), interop over all widths and cluster sizes.
 */
#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_alloc_priv.h"

static uint64_t cluster_of(const struct q2_image *q, uint64_t host) { return host >> q->g.cluster_bits; }

/* K4 */
static uint64_t grain(const struct q2_image *q)
{
    return min_u64(max_u64(q->im.store->lim.block, 512), q->g.cluster_size);
}

/* Goes on at `to`, at most the end of the cluster being filled: if that, nothing more comes into it (K2). */
static void skip_to(struct q2_image *q, uint64_t to)
{
    struct q2_pack *p = &q->alloc->pack;
    if (to > p->pos && !(to % q->g.cluster_size)) {
        q2_alloc_drop(q, cluster_of(q, p->pos), 1);
        p->pieces = 0;
    }
    p->pos = to;
}

/* Gives up what is left: the reference for filling, and the clusters that were not begun. */
static void leave(struct q2_image *q)
{
    struct q2_pack *p = &q->alloc->pack;
    skip_to(q, round_up(p->pos, q->g.cluster_size));
    if (p->pos < p->end) {
        struct q2_run rest = { .cluster = cluster_of(q, p->pos), .count = cluster_of(q, p->end - p->pos) };
        q2_alloc_return(q, &rest);
    }
    p->pos = p->end = 0;
}

/* More clusters, behind the present ones if possible; else the present ones are left. */
static int more(struct co *co, struct q2_image *q, uint64_t bytes)
{
    struct q2_pack *p = &q->alloc->pack;
    struct q2_run run;
    int r = q2_alloc_take(co, q, div_up(bytes, q->g.cluster_size), &run);
    if (r < 0)
        return r;
    uint64_t at = run.cluster << q->g.cluster_bits, end = (run.cluster + run.count) << q->g.cluster_bits;
    atomic_fetch_add(&q->pack_round, 1);                     /* K6 */
    if (at != p->end || p->pos == p->end) {
        leave(q);
        p->pos = at;
    }
    p->end = end;
    return 0;
}

/* Places one piece at pos, inside [pos, end). last: of its call. -ERANGE: the cluster can have no further owner. */
static int place(struct co *co, struct q2_image *q, uint64_t len, bool last, uint64_t *ret_host)
{
    struct q2_pack *p = &q->alloc->pack;
    uint64_t cs = q->g.cluster_size, next = p->pos + len;
    bool same = cluster_of(q, p->pos) == cluster_of(q, next - 1);
    uint64_t pieces = (same ? p->pieces : 0) + 1;            /* in the cluster of the last byte */
    if (pieces >= q->g.refcount_max)
        next = round_up(next, cs);                           /* K5 */
    if (last)
        next = round_up(next, grain(q));                     /* K4 */
    if (next % cs && !MUTANT(MUT_PACK_NOT_COUNTED)) {        /* else the reference for filling becomes its own (K2) */
        int r = q2_refs_add(co, q, cluster_of(q, next), 1, 1);
        if (r < 0)
            return r;
    }
    *ret_host = p->pos;
    p->pos = next;
    p->pieces = next % cs ? pieces : 0;
    return 0;
}

/* A snapshot has used up the references that this cluster could have: the next one is filled. false: that is not why. */
static bool pass_over(struct q2_image *q)
{
    struct q2_pack *p = &q->alloc->pack;
    if (!(p->pos % q->g.cluster_size))
        return false;
    skip_to(q, round_up(p->pos, q->g.cluster_size));
    return true;
}

static uint64_t rest_bytes(const struct iovec *enc, unsigned n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += enc[i].iov_len;
    return sum;
}

static int place_all(struct co *co, struct q2_image *q, const struct iovec *enc, unsigned n, uint64_t *ret_host, unsigned *ret_done)
{
    struct q2_pack *p = &q->alloc->pack;
    unsigned i = 0;
    int r = 0;
    while (i < n && r == 0) {
        uint64_t len = enc[i].iov_len;
        ASSERT(len && len < q->g.cluster_size);
        if (len > p->end - p->pos) {
            r = more(co, q, rest_bytes(enc + i, n - i) - (p->end - p->pos));
            continue;
        }
        if (p->pos + len - 1 > q->g.coff_mask)
            r = -EFBIG;
        if (r == 0)
            r = place(co, q, len, i + 1 == n, &ret_host[i]);
        if (r == 0)
            i++;
        else if (r == -ERANGE && pass_over(q))
            r = 0;
    }
    *ret_done = i;
    return r;
}

/* The mutant's way: the cluster is held by its pieces alone between two calls. */
static void hold(struct co *co, struct q2_image *q, int delta)
{
    struct q2_pack *p = &q->alloc->pack;
    if (MUTANT(MUT_PACK_NOT_HELD) && p->pos % q->g.cluster_size) {
        int r = q2_refs_add(co, q, cluster_of(q, p->pos), 1, delta);
        (void)r;
    }
}

int q2_pack_take(struct co *co, struct q2_image *q, const struct iovec *enc, unsigned n, uint64_t *ret_host)
{
    ASSERT_LOOP(q->im.home);
    ASSERT(n && n <= Q2_PACK_MAX);
    struct q2_pack *p = &q->alloc->pack;
    unsigned done;
    stor_event(co, q->im.store, STOR_EV_CLUSTER_ALLOC_BYTES);
    co_lock(co, &p->mx);
    hold(co, q, 1);
    int r = place_all(co, q, enc, n, ret_host, &done);
    for (unsigned i = 0; r < 0 && i < done; i++) {
        struct q2_l2e e = { .kind = Q2_COMPRESSED, .host = ret_host[i], .comp_bytes = enc[i].iov_len };
        q2_drop_entry(q, &e);
    }
    if (r < 0)
        skip_to(q, round_up(p->pos, grain(q)));              /* K4 */
    hold(co, q, -1);
    co_unlock(&p->mx);
    return r;
}

/* Takes the reference for filling away at once. If it is the last, all pieces have gone the way of Q9 already. */
static int let_go(struct co *co, struct q2_image *q, uint64_t cluster)
{
    struct q2_alloc *a = q->alloc;
    uint64_t n = 0;
    co_lock(co, &a->mx);
    int r = q2_refs_get(co, q, cluster, &n);
    if (r == 0)
        r = q2_refs_add(co, q, cluster, 1, -1);
    if (r == 0 && n == 1 && rset_add(&a->ready, cluster, cluster + 1, Q2_READY_PROVED) < 0)
        a->missed++;
    co_unlock(&a->mx);
    return r;
}

int q2_pack_close(struct co *co, struct q2_image *q)
{
    struct q2_pack *p = &q->alloc->pack;
    uint64_t cs = q->g.cluster_size;
    int r = 0;
    co_lock(co, &p->mx);
    hold(co, q, 1);
    if (p->pos % cs) {
        r = let_go(co, q, cluster_of(q, p->pos));
        if (r < 0)
            q2_alloc_drop_packed(q, cluster_of(q, p->pos), 1);   /* later, like any other reference (G.005) */
        p->pos = round_up(p->pos, cs);
        p->pieces = 0;
    }
    leave(q);
    co_unlock(&p->mx);
    return r;
}
