/* SPDX-License-Identifier: MIT
 *
 * q2_encode.c: compressed writes (FEATURES 1e).
 *
 * Purpose     Compresses clusters on the CPU pool; places, writes and links what was made of them. Any cluster may become a
 *             compressed one, whatever it was before, compressed too.
 * Owns        One struct encoded_txn per part of a write that lies in one L2 slice: its guest-range lock, its pinned slice, its pieces.
 * Invariants  C1  The range lock is taken before anything is looked up, and held until commit or abort (fmt.h I2).
 *             C2  commit only sets words of a pinned slice: it cannot fail.
 *             C3  Compressing holds no lock and looks at nothing that changes.
 *             C4  A compressed entry never carries COPIED (1.039): nobody overwrites it in place.
 * Order       Q11: counts and data before the entry (always with the data barrier, Q23 does not hold for compressed clusters); the
 *             references of the replaced entries are dropped behind it (Q9).
 * Concurrency begin, commit and abort on the home loop (rt_call); compressing on worker threads; the data I/O on the caller's loop.
 * Failure     begin: -ENOSPC, -EFBIG, -EIO, -ENOMEM with nothing held. A failed data write drops the pieces (Q9), old entries stand.
 *             Parts that were linked before a later one failed stay: each cluster is old or new.
 * Tests       q2_encode_test.c, crash explorer (op c), chaos, stress, faults, tests/interop/test_compress.py
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_unclean.h"

/* ---- compressing ---- */

struct encode_job { struct q2_image *q; const struct fmt_encoding *how; const struct fmt_encode *e; };

static int64_t encode_job(void *arg)
{
    const struct encode_job *j = arg;
    uint64_t cs = j->q->g.cluster_size;
    for (unsigned i = 0; i < j->e->count; i++) {
        const uint8_t *in = (const uint8_t *)j->e->in + i * cs;
        int64_t n = 0;
        if (!j->how->leave_zeros || !mem_is_zero(in, cs))
            n = q2_compress(j->q->codecs, j->q->h.compression_type, j->how, in, cs, (uint8_t *)j->e->out + i * cs, cs - 1);
        if (n < 0)
            return n;
        j->e->len[i] = (uint32_t)n;
    }
    return 0;
}

int q2_encode(struct co *co, struct fmt_image *im, const struct fmt_encoding *how, const struct fmt_encode *e)
{
    struct q2_image *q = q2_of(im);
    ASSERT(im->encode_bytes);
    struct encode_job j = { q, how, e };
    return (int)rt_cpu(co, encode_job, &j);      /* C3 */
}

/* ---- writing ---- */

struct encoded_txn {
    struct q2_image *q;
    uint64_t off;
    const struct iovec *enc;
    unsigned n;
    struct co_range lock;
    struct meta_block *block;
    uint32_t index;
    uint64_t host[Q2_PACK_MAX];
};

static void txn_end(struct encoded_txn *t)
{
    if (t->block)
        meta_put(t->q->meta, t->block);
    t->block = NULL;
    co_range_unlock(&t->q->locks, &t->lock);
}

/* An entry that makes no sense is a damaged image, also when it would be replaced. */
static int look(const struct encoded_txn *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        struct q2_l2e e;
        if (!q2_entry_get(t->q, t->block, t->index + i, &e))
            return -EUCLEAN;
    }
    return 0;
}

static int begin_home(struct co *co, void *arg)
{
    struct encoded_txn *t = arg;
    struct q2_image *q = t->q;
    if (q->failed)
        return -EIO;
    q2_unclean_room_wait(co, q);
    co_range_lock(co, &q->locks, &t->lock, t->off, t->off + t->n * q->g.cluster_size);       /* C1 */
    int r = q2_slice_own(co, q, t->off, &t->block, &t->index);
    if (r == 0)
        r = look(t);
    if (r == 0)
        r = q2_pack_take(co, q, t->enc, t->n, t->host);
    r = q2_judge(co, q, r, "the L2 table of guest offset", t->off);
    if (r < 0)
        txn_end(t);
    return r;
}

static struct q2_l2e entry_of(const struct encoded_txn *t, unsigned i)
{
    return (struct q2_l2e){ .kind = Q2_COMPRESSED, .host = t->host[i], .comp_bytes = t->enc[i].iov_len };     /* C4 */
}

static int commit_home(struct co *co, void *arg)
{
    struct encoded_txn *t = arg;
    struct q2_image *q = t->q;
    CO_ATOMIC(co) {                                          /* C2 */
        for (unsigned i = 0; i < t->n; i++) {
            struct q2_l2e old, new = entry_of(t, i);
            bool ok = q2_entry_get(q, t->block, t->index + i, &old);
            q2_entry_set(q, t->block, t->index + i, &new);
            if (ok)
                q2_drop_entry(q, &old);
        }
        if (!MUTANT(MUT_COMPRESSED_UNORDERED))
            meta_need_data_barrier(q->meta);
    }
    txn_end(t);
    return 0;
}

static int abort_home(struct co *co, void *arg)
{
    struct encoded_txn *t = arg;
    (void)co;
    for (unsigned i = 0; i < t->n; i++) {
        struct q2_l2e e = entry_of(t, i);
        q2_drop_entry(t->q, &e);
    }
    txn_end(t);
    return 0;
}

/* Neighbours on the disk go in one transfer. */
static int write_data(struct co *co, const struct encoded_txn *t)
{
    int r = 0;
    for (unsigned i = 0, n; i < t->n && r == 0; i += n) {
        for (n = 1; i + n < t->n && t->host[i + n] == t->host[i + n - 1] + t->enc[i + n - 1].iov_len; n++)
            ;
        stor_event(co, t->q->im.store, STOR_EV_WRITE_COMPRESSED);
        r = stor_write(co, t->q->im.store, iov_of(t->enc + i, n), t->host[i], 0);
    }
    stor_event(co, t->q->im.store, STOR_EV_L2_UPDATE_COMPRESSED);
    return r;
}

static int write_part(struct co *co, struct encoded_txn *t)
{
    struct rt_loop *home = t->q->im.home;
    int r = rt_call(co, home, begin_home, t), ended;
    if (r < 0)
        return r;
    r = write_data(co, t);
    while ((ended = rt_call(co, home, r < 0 ? abort_home : commit_home, t)) == -ENOMEM)
        co_yield(co);                            /* no coroutine for the way home: try until there is one */
    return r < 0 ? r : ended;
}

int q2_write_encoded(struct co *co, struct fmt_image *im, uint64_t off, const struct iovec *enc, unsigned n)
{
    struct q2_image *q = q2_of(im);
    uint64_t cs = q->g.cluster_size, span = q->slice_span;
    ASSERT(is_aligned(off, cs) && n);
    struct encoded_txn *t = malloc(sizeof *t);
    if (!t)
        return -ENOMEM;
    int r = 0;
    for (unsigned done = 0; done < n && r == 0; done += t->n) {
        uint64_t at = off + done * cs, left = (round_down(at, span) + span - at) >> q->g.cluster_bits;
        unsigned part = (unsigned)min_u64(min_u64(n - done, Q2_PACK_MAX), left);
        *t = (struct encoded_txn){ .q = q, .off = at, .enc = enc + done, .n = part };
        r = write_part(co, t);
        if (r == -EFBIG && done)
            r = -EIO;                            /* fmt.h: only when nothing was done */
    }
    free(t);
    return r;
}
