/* SPDX-License-Identifier: MIT
 *
 * nbd_exec.c: executing one request.
 *
 * Purpose      Asks the disk for what an acceptable request wants and shapes the answer: data, holes, extents, errors.
 * Owns         the request's buffer until the answer is sent.
 * Invariants   I1 the request was checked by the codec: its range is inside the export as the client knows it.
 *              I2 an answer without error is given only after the disk has done its part, with FUA durably.
 *              I3 a request of any length gives way to others after a bounded amount of work, and ends early when nobody wants it.
 * Order        FUA: a disk's write or zero with the flag; else the operation, then a flush. A READ with FUA flushes first.
 * Concurrency  one coroutine per request on the connection's loop; suspends in the disk.
 * Failure      the disk's error becomes the protocol's (nbdp_error_of). READ with structured replies says where.
 * Tests        tests/nbd
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "export/nbd/nbd_priv.h"

#define WHOLE_READ_MAX NBD_SMALL_BUF           /* longer reads ask the disk where the zeros are */
#define STEP_MAX (UINT64_C(128) << 20)         /* between two looks at whether anybody still wants the result */
#define CACHE_STEP (1u << 20)
#define CACHE_MAX (UINT64_C(64) << 20)         /* of one CACHE request; it is a hint */
#define STATUS_LOOKS_MAX (1u << 20)            /* for one context of a BLOCK_STATUS, whose answer may end early: the client asks for the rest */
#define STATUS_CAP_MAX (256u << 10)            /* bytes of extents per context */

static uint32_t status_cap(const struct nbdp_request *r)
{
    return (uint32_t)min_u64(STATUS_CAP_MAX, NBDP_STATUS_BUF_MIN + r->len / 4096 * 16);
}

static uint64_t status_bytes(const struct nbdp_request *r)
{
    return (uint64_t)__builtin_popcount(r->ctx_mask) * status_cap(r);
}

uint64_t nbd_req_cost(const struct nbdp_request *r)
{
    switch (r->type) {
    case NBD_CMD_READ:
        return r->len;
    case NBD_CMD_CACHE:
        return CACHE_STEP;
    case NBD_CMD_BLOCK_STATUS:
        return status_bytes(r);
    default:
        return 0;
    }
}

static bool take_buffer(struct nbd_req *q, uint64_t len)
{
    q->buf_len = (uint32_t)len;
    q->buf = nbd_buf_get(q->conn, q->buf_len);
    return q->buf != NULL;
}

static bool take_parts(struct nbd_req *q, unsigned n)
{
    struct nbd_part *parts = n == 1 ? &q->first : malloc(n * sizeof *parts);
    if (!parts)
        return false;
    q->parts = parts;
    q->n_parts = n;
    return true;
}

static void answer_ok(struct nbd_req *q)
{
    q->n_parts = 1;
    q->first.data_len = 0;
    nbdp_reply_ok(&q->r, &q->first.head);
    nbd_req_answer(q);
}

static const char *text_of(enum nbd_error e)
{
    switch (e) {
    case NBD_EPERM:
        return "the disk refuses to be changed";
    case NBD_ENOMEM:
        return "out of memory";
    case NBD_ENOSPC:
        return "no space left for the disk";
    case NBD_ENOTSUP:
        return "zeroing would not be faster than writing";
    case NBD_ESHUTDOWN:
        return "the server is shutting down";
    case NBD_EIO:
        return "the storage failed";
    default:
        return "the disk refuses the request";
    }
}

static void answer(struct nbd_req *q, int r)
{
    if (!r) {
        answer_ok(q);
        return;
    }
    enum nbd_error e = nbdp_error_of(&q->r, r);
    nbd_req_answer_error(q, e, text_of(e));
}

/* ---- READ ---- */

struct piece { uint64_t off; uint32_t len; bool zero; };

/* Cuts the range into data and zeros. Past NBD_CHUNKS_MAX - 1 pieces, or where the disk does not know: data. */
static unsigned cut(struct co *co, const struct nbd_req *q, struct piece out[NBD_CHUNKS_MAX])
{
    const struct nbd_export *x = q->conn->x;
    uint64_t off = q->r.off, end = q->r.off + q->r.len;
    unsigned n = 0;
    while (off < end) {
        struct nbd_disk_status st = { .len = end - off };
        if (n == NBD_CHUNKS_MAX - 1 || x->ops->status(co, x->disk, off, end - off, &st))
            st = (struct nbd_disk_status){ .len = end - off };
        uint32_t len = (uint32_t)min_u64(st.len, end - off);
        if (n && out[n - 1].zero == st.zero)
            out[n - 1].len += len;
        else
            out[n++] = (struct piece){ off, len, st.zero };
        off += len;
    }
    return n;
}

static int read_part(struct co *co, struct nbd_req *q, uint64_t off, uint32_t len)
{
    const struct nbd_export *x = q->conn->x;
    struct iovec slot;
    return x->ops->read(co, x->disk, iov_one(&slot, (char *)q->buf + (off - q->r.off), len), off);
}

/* The error of a READ: with its offset where the reply can carry one. Replaces parts[at] and what follows. */
static void read_failed(struct nbd_req *q, unsigned at, uint64_t off, int r)
{
    enum nbd_error e = nbdp_error_of(&q->r, r);
    struct nbdp_fault f = { e, off, text_of(e) };
    if (q->r.mode == NBDP_SIMPLE) {
        nbd_req_answer_error(q, e, f.why);
        return;
    }
    q->parts[at].data_len = 0;
    nbdp_reply_error_at(&q->r, &f, true, &q->parts[at].head);
    q->n_parts = at + 1;
    nbd_req_answer(q);
}

static void exec_read_pieces(struct co *co, struct nbd_req *q)
{
    struct piece pieces[NBD_CHUNKS_MAX];
    unsigned n = cut(co, q, pieces);
    if (!take_parts(q, n)) {
        answer(q, -ENOMEM);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        struct nbd_part *p = &q->parts[i];
        const struct piece *c = &pieces[i];
        p->data_len = 0;
        if (c->zero) {
            nbdp_reply_hole(&q->r, c->off, c->len, i + 1 == n, &p->head);
            continue;
        }
        int r = read_part(co, q, c->off, c->len);
        if (r) {
            read_failed(q, i, c->off, r);
            return;
        }
        p->data = (char *)q->buf + (c->off - q->r.off);
        p->data_len = c->len;
        nbdp_reply_data(&q->r, c->off, c->len, i + 1 == n, &p->head);
    }
    nbd_req_answer(q);
}

static void exec_read_whole(struct co *co, struct nbd_req *q)
{
    uint32_t len = (uint32_t)q->r.len;
    bool may_cut = q->r.mode != NBDP_SIMPLE && !(q->r.flags & NBD_CMD_FLAG_DF);
    q->n_parts = 1;
    q->first.data_len = 0;
    int r = read_part(co, q, q->r.off, len);
    if (r) {
        read_failed(q, 0, q->r.off, r);
        return;
    }
    if (may_cut && mem_is_zero(q->buf, len)) {
        nbdp_reply_hole(&q->r, q->r.off, len, true, &q->first.head);
    } else {
        q->first.data = q->buf;
        q->first.data_len = len;
        nbdp_reply_data(&q->r, q->r.off, len, true, &q->first.head);
    }
    nbd_req_answer(q);
}

static void exec_read(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    int r = q->r.flags & NBD_CMD_FLAG_FUA ? x->ops->flush(co, x->disk) : 0;
    if (!r && q->r.len && !take_buffer(q, q->r.len))
        r = -ENOMEM;
    if (q->r.len > NBD_WIDE_READ)
        nbd_conn_widen(q->conn);
    if (r || !q->r.len)
        answer(q, r);
    else if (q->r.mode == NBDP_SIMPLE || (q->r.flags & NBD_CMD_FLAG_DF) || q->r.len <= WHOLE_READ_MAX)
        exec_read_whole(co, q);
    else
        exec_read_pieces(co, q);
}

/* ---- changes ---- */

static int exec_write(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    struct iovec slot;
    if (!q->r.len)
        return 0;
    unsigned flags = q->r.flags & NBD_CMD_FLAG_FUA ? NBD_DISK_FUA : 0;
    return x->ops->write(co, x->disk, iov_one(&slot, q->buf, q->r.len), q->r.off, flags);
}

/* Between two steps of a long request: others get their turn, also when the disk never waits. true: give up. */
static bool unwanted(struct co *co, const struct nbd_req *q)
{
    co_yield(co);
    return q->conn->broken || q->conn->stopping;
}

/* The next step of a long range: ends at a multiple of STEP_MAX. */
static uint64_t step(uint64_t off, uint64_t left)
{
    return min_u64(left, STEP_MAX - off % STEP_MAX);
}

static int exec_zero(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    uint64_t off = q->r.off, left = q->r.len, n;
    bool fast = q->r.flags & NBD_CMD_FLAG_FAST_ZERO, fua = q->r.flags & NBD_CMD_FLAG_FUA;
    bool once = fast || step(off, left) == left;      /* fast: all or nothing */
    unsigned flags = (fua && once ? NBD_DISK_FUA : 0) | (q->r.flags & NBD_CMD_FLAG_NO_HOLE ? 0 : NBD_DISK_UNMAP) |
                     (fast ? NBD_DISK_NO_FALLBACK : 0);
    int r = 0;
    for (; left && !r; off += n, left -= n) {
        if (off != q->r.off && unwanted(co, q))
            return -ESHUTDOWN;
        n = once ? left : step(off, left);
        r = x->ops->zero(co, x->disk, off, n, flags);
    }
    return !r && fua && !once ? x->ops->flush(co, x->disk) : r;
}

static int exec_trim(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    uint64_t off = q->r.off, left = q->r.len, n;
    int r = 0;
    for (; left && !r; off += n, left -= n) {
        if (off != q->r.off && unwanted(co, q))
            break;                                       /* a hint: the rest may be left out */
        n = step(off, left);
        r = x->ops->discard(co, x->disk, off, n);
    }
    return !r && (q->r.flags & NBD_CMD_FLAG_FUA) ? x->ops->flush(co, x->disk) : r;
}

static int exec_cache(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    uint64_t off = q->r.off, left = min_u64(q->r.len, CACHE_MAX);
    int r = left && !take_buffer(q, min_u64(left, CACHE_STEP)) ? -ENOMEM : 0;
    while (left && !r && !unwanted(co, q)) {
        struct iovec slot;
        uint64_t n = min_u64(left, CACHE_STEP);
        r = x->ops->read(co, x->disk, iov_one(&slot, q->buf, n), off);
        off += n;
        left -= n;
    }
    return r;
}

/* ---- BLOCK_STATUS ---- */

struct extent { uint64_t len; uint32_t flags; unsigned looks; };

static int extent_at(struct co *co, const struct nbd_export *x, unsigned ctx, uint64_t off, uint64_t len, struct extent *ret)
{
    struct nbd_disk_status st = { .len = len };
    int r = ctx >= 2 ? x->ops->dirty(co, x->disk, ctx - 2, off, len, &st) : x->ops->status(co, x->disk, off, len, &st);
    if (r)
        return r;
    ASSERT(st.len);
    *ret = (struct extent){ .len = st.len, .looks = st.looks ? st.looks : 1 };
    if (ctx == 0)
        ret->flags = (st.data ? 0 : NBD_STATE_HOLE) | (st.zero ? NBD_STATE_ZERO : 0);
    else
        ret->flags = ctx == 1 ? st.depth : st.data ? NBD_STATE_DIRTY : 0;
    return 0;
}

/* How much of a context's answer has been asked for. */
struct looking { unsigned total, turn; };

/* May a context's answer, which has an extent already, be continued? It is true as far as it goes, so nothing fails where it ends (I3). */
static bool may_go_on(struct co *co, const struct nbd_req *q, struct looking *l, unsigned looks)
{
    l->total += looks;
    l->turn += looks;
    if (l->turn >= NBD_STATUS_LOOKS) {
        l->turn = 0;
        if (unwanted(co, q))
            return false;
    }
    return l->total < STATUS_LOOKS_MAX;
}

/* The extents of one context into the i-th part. */
static int status_of(struct co *co, struct nbd_req *q, unsigned i, unsigned ctx)
{
    const struct nbd_export *x = q->conn->x;
    struct nbd_part *p = &q->parts[i];
    struct nbdp_status st;
    uint32_t cap = status_cap(&q->r);
    uint64_t end = q->r.off + q->r.len, at = q->r.off;
    struct looking l = { 0 };
    bool more = true;
    nbdp_status_begin(&st, &q->r, ctx, (char *)q->buf + (size_t)i * cap, cap);
    while (more && at < end) {
        struct extent e;
        int r = extent_at(co, x, ctx, at, end - at, &e);
        if (r)
            return r;
        at += min_u64(e.len, end - at);
        more = nbdp_status_add(&st, e.len, e.flags) && may_go_on(co, q, &l, e.looks);
    }
    nbdp_status_end(&st, i + 1 == q->n_parts, &p->head);
    p->data = st.buf;
    p->data_len = st.used;
    return 0;
}

static void exec_status(struct co *co, struct nbd_req *q)
{
    unsigned n = (unsigned)__builtin_popcount(q->r.ctx_mask), i = 0;
    int r = take_buffer(q, status_bytes(&q->r)) && take_parts(q, n) ? 0 : -ENOMEM;
    for (unsigned ctx = 0; ctx < NBDP_CONTEXTS_MAX && !r; ctx++)
        if (q->r.ctx_mask >> ctx & 1)
            r = status_of(co, q, i++, ctx);
    if (!r) {
        nbd_req_answer(q);
        return;
    }
    if (q->parts != &q->first)
        free(q->parts);
    q->parts = &q->first;
    answer(q, r);
}

/* ---- all ---- */

static int exec_simple(struct co *co, struct nbd_req *q)
{
    const struct nbd_export *x = q->conn->x;
    switch (q->r.type) {
    case NBD_CMD_WRITE:
        return exec_write(co, q);
    case NBD_CMD_FLUSH:
        return x->ops->flush(co, x->disk);
    case NBD_CMD_TRIM:
        return exec_trim(co, q);
    case NBD_CMD_CACHE:
        return exec_cache(co, q);
    case NBD_CMD_WRITE_ZEROES:
        return exec_zero(co, q);
    default:
        UNREACHABLE();
    }
}

void nbd_req_main(struct co *co, void *arg)
{
    struct nbd_req *q = arg;
    struct nbd_conn *c = q->conn;
    if (q->r.type == NBD_CMD_READ)
        exec_read(co, q);
    else if (q->r.type == NBD_CMD_BLOCK_STATUS)
        exec_status(co, q);
    else
        answer(q, exec_simple(co, q));
    c->executing--;
    if (!c->executing)
        co_wake_all(&c->changed);
}
