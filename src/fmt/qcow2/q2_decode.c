/* SPDX-License-Identifier: MIT
 *
 * q2_decode.c: compressed reads.
 *
 * Purpose     Fetches and decompresses one cluster; keeps a few that were asked for in parts.
 * Owns        q->decoded: for each loop a few decoded clusters, made when that loop first needs one.
 * Invariants  U1  The caller is in an epoch section in which the mapping was looked up: the bytes at `host` stay what they are (fmt.h I1).
 *             U2  A kept cluster is used only for the same place, the same length and the same pack_round. Bytes at a place change
 *                 only after its host cluster was freed and taken again by q2_pack.c; that raises pack_round, before the new bytes
 *                 are written and before an entry names them. Who finds the new entry sees the new round (the entry is stored
 *                 behind it), so it never takes the old bytes. A section that is still open keeps the cluster from being freed,
 *                 so what it keeps, it keeps under a round that is not newer than its bytes.
 *             U3  A kept cluster belongs to one loop; only that loop's coroutines touch it.
 *             U4  Memory: at most KEPT_BYTES and KEPT_MAX clusters (one at least) a loop. One request decodes what it names, no more.
 * Order       None.
 * Concurrency Any loop; decompressing on worker threads, outside any lock. Requests of one loop for one cluster wait for the first.
 * Failure     -EIO, -ENOMEM: nothing is kept; who waited tries by itself.
 * Tests       q2_encode_test.c, chaos, stress, tests/interop/test_compress.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_image.h"

#define KEPT_BYTES (1u << 20)
#define KEPT_MAX 32u

struct kept {
    uint64_t host, len, round;           /* len 0: nothing */
    uint64_t used;                       /* when last */
    uint8_t *bytes;
    bool busy;                           /* somebody decodes into it */
};

struct kept_loop {                       /* U3 */
    unsigned count;
    uint64_t clock;
    struct co_waitq decoded;
    struct kept k[KEPT_MAX];
};

struct q2_decoded { unsigned loops; struct kept_loop *loop[]; };

int q2_decoded_new(struct q2_image *q)
{
    unsigned loops = rt_loop_slots(rt_of(q->im.home));
    struct q2_decoded *d = calloc(1, sizeof *d + loops * sizeof(struct kept_loop *));
    if (!d)
        return -ENOMEM;
    d->loops = loops;
    q->decoded = d;
    return 0;
}

void q2_decoded_free(struct q2_image *q)
{
    struct q2_decoded *d = q->decoded;
    for (unsigned l = 0; d && l < d->loops; l++) {
        for (unsigned i = 0; d->loop[l] && i < KEPT_MAX; i++)
            free(d->loop[l]->k[i].bytes);
        free(d->loop[l]);
    }
    free(d);
    q->decoded = NULL;
}

static struct kept_loop *kept_of(struct co *co, struct q2_image *q)
{
    struct kept_loop **l = &q->decoded->loop[rt_loop_index(co_loop(co))];
    if (!*l) {
        *l = calloc(1, sizeof **l);
        if (*l)
            (*l)->count = (unsigned)max_u64(1, min_u64(KEPT_BYTES >> q->g.cluster_bits, KEPT_MAX));     /* U4 */
    }
    return *l;
}

/* ---- decoding ---- */

struct decode { struct q2_image *q; const void *in; size_t in_bytes; void *out; };

static int64_t decode_job(void *arg)
{
    struct decode *d = arg;
    return q2_decompress(d->q->codecs, d->q->h.compression_type, d->in, d->in_bytes, d->out, d->q->g.cluster_size);
}

static int decode(struct co *co, struct q2_image *q, const struct fmt_extent *e, void *out)
{
    uint8_t *buf = malloc(e->enc_len);
    if (!buf)
        return -ENOMEM;
    struct iovec slot;
    /* the last sector named may end past the end of the file: what is missing reads zero and the decoder ignores it */
    stor_event(co, q->im.store, STOR_EV_READ_COMPRESSED);
    int r = stor_read(co, q->im.store, iov_one(&slot, buf, e->enc_len), e->host);
    if (r == 0) {
        struct decode d = { q, buf, e->enc_len, out };
        r = (int)rt_cpu(co, decode_job, &d);
    }
    free(buf);
    return r;
}

/* ---- kept clusters ---- */

static struct kept *find(struct kept_loop *l, const struct fmt_extent *e, uint64_t round)
{
    for (unsigned i = 0; l && i < l->count; i++)
        if (l->k[i].len && l->k[i].host == e->host && l->k[i].len == e->enc_len && l->k[i].round == round)     /* U2 */
            return &l->k[i];
    return NULL;
}

/* The one that was not used for the longest time, with room for a cluster; NULL: all are busy, or no memory. */
static struct kept *oldest(struct q2_image *q, struct kept_loop *l)
{
    struct kept *best = NULL;
    for (unsigned i = 0; l && i < l->count; i++)
        if (!l->k[i].busy && (!best || l->k[i].used < best->used))
            best = &l->k[i];
    if (best && !best->bytes)
        best->bytes = malloc(q->g.cluster_size);
    return best && best->bytes ? best : NULL;
}

static int read_kept(struct co *co, struct q2_image *q, const struct fmt_extent *e, uint64_t in_cluster, struct iov v, struct kept *k)
{
    struct kept_loop *l = kept_of(co, q);
    k->busy = true;
    k->used = ++l->clock;
    int r = decode(co, q, e, k->bytes);
    k->busy = false;
    if (r < 0)
        k->len = 0;
    else
        iov_from_buf(v, k->bytes + in_cluster, v.len_bytes);
    co_wake_all(&l->decoded);
    return r;
}

/* Into v itself where it is one piece of memory. */
static int read_apart(struct co *co, struct q2_image *q, const struct fmt_extent *e, uint64_t in_cluster, struct iov v)
{
    uint64_t cs = q->g.cluster_size;
    if (v.len_bytes == cs && iov_count(v) == 1) {
        struct iovec to;
        (void)iov_export(v, &to, 1, NULL);       /* one, as was just counted */
        return decode(co, q, e, to.iov_base);
    }
    uint8_t *buf = malloc(cs);
    if (!buf)
        return -ENOMEM;
    int r = decode(co, q, e, buf);
    if (r == 0)
        iov_from_buf(v, buf + in_cluster, v.len_bytes);
    free(buf);
    return r;
}

int q2_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    struct q2_image *q = q2_of(im);
    if (e->encrypted)
        return q2_crypt_read_legacy(co, q, e, off, v);
    uint64_t in_cluster = off - e->enc_guest, round = atomic_load(&q->pack_round);
    ASSERT(range_inside(in_cluster, v.len_bytes, q->g.cluster_size));
    bool whole = v.len_bytes == q->g.cluster_size;
    struct kept_loop *l = whole ? q->decoded->loop[rt_loop_index(co_loop(co))] : kept_of(co, q);
    struct kept *k;
    while ((k = find(l, e, round)) && k->busy)
        co_wait(co, &l->decoded);
    if (k) {
        k->used = ++l->clock;
        iov_from_buf(v, k->bytes + in_cluster, v.len_bytes);
        return 0;
    }
    k = whole ? NULL : oldest(q, l);
    if (!k)
        return read_apart(co, q, e, in_cluster, v);
    k->host = e->host;
    k->len = e->enc_len;
    k->round = round;
    return read_kept(co, q, e, in_cluster, v, k);
}
