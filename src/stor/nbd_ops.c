/* SPDX-License-Identifier: MIT
 *
 * nbd_ops.c: the store over an NBD server.
 *
 * Purpose      Requests of the gate become requests of the protocol, as far as the server takes them; limits come from what it told.
 * Owns         struct nbdc.
 * Invariants   I1  Nothing is asked that the server did not offer: what it cannot do is left to the gate (writes of zeros), done in two
 *                  steps (a durable write), or is nothing (trim).
 *              I2  The store is as long as the export and stays so.
 *              I3  A flush that nobody but this client has asked for is seen by the gate (sync_own_flush), or is part of a durable write: a server tells
 *                  of its loss once, and a guest's flush that finds no error because this one has got it must fail as well.
 * Order        A durable write is one request with FUA, or a write and a flush that begins after its answer.
 * Concurrency  Any loop; see nbd_set.c.
 * Failure      What the server answers; -ENOTCONN and -EIO as nbd_set.c has them.
 * Tests        tests/interop/test_nbd_client.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/hash.h"
#include "stor/nbd_priv.h"
#include "stor/stor_priv.h"

#define SCATTER_BYTES (1u << 20)          /* libnbd takes one buffer: more pieces go through a copy of at most this length */
#define SIZE_MAX_BYTES ((uint64_t)INT64_MAX)

/* ---- transfers ---- */

static bool in_one_piece(struct iov v)
{
    return v.vec[0].iov_len - v.skip_bytes >= v.len_bytes;
}

static void *piece(struct iov v)
{
    return (uint8_t *)v.vec[0].iov_base + v.skip_bytes;
}

/* What of v is moved by one request: *ret_copy is to be freed when the buffer is a copy. */
static void *buffer_for(const struct nbdc *n, struct iov *v, uint64_t off, void **ret_copy)
{
    uint64_t len = min_u64(v->len_bytes, n->info.size - off);
    *ret_copy = NULL;
    if (!in_one_piece(*v)) {
        len = min_u64(len, round_down(min_u64(SCATTER_BYTES, n->s.lim.max_transfer), n->s.lim.block));
        *ret_copy = malloc(len);
    }
    *v = iov_slice(*v, 0, len);
    return in_one_piece(*v) && !*ret_copy ? piece(*v) : *ret_copy;
}

static int64_t op_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct nbdc *n = nbdc_of(s);
    if (off >= n->info.size)
        return 0;
    AUTOFREE void *copy = NULL;
    void *buf = buffer_for(n, &v, off, &copy);
    if (!buf)
        return -ENOMEM;
    struct nbdc_req r = { .what = NBDC_READ, .off = off, .len = v.len_bytes, .buf = buf };
    int result = nbdc_do(co, n, &r);
    if (result)
        return result;
    if (copy)
        iov_from_buf(v, copy, v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int flush_as(struct co *co, struct nbdc *n, bool own)
{
    struct nbdc_req r = { .what = NBDC_FLUSH, .own = own };
    return n->info.can_flush ? nbdc_do(co, n, &r) : 0;
}

static int flush_now(struct co *co, struct nbdc *n) { return flush_as(co, n, false); }

static int flush_kept(struct co *co, struct nbdc *n) { return flush_as(co, n, true); }

static int flush_by_itself(struct co *co, struct stor *s) { return flush_kept(co, nbdc_of(s)); }

/* A change has been acknowledged. The copies that are kept of such must not grow without end: now and then they are made durable (I3). What is returned
 * is of a durable write: it is among those whose answers the gate waits for, and fails with the flush that was made for it. */
static int settle(struct co *co, struct nbdc *n, bool durable)
{
    if (!nbdc_log_is_full(&n->log))
        return 0;
    if (durable) {
        int r = flush_kept(co, n);
        return r == -ENOTCONN ? 0 : r;           /* nothing is lost: what was kept is kept */
    }
    if (n->s.no_flush)
        (void)!flush_kept(co, n);                /* nobody is told that something is durable */
    else
        sync_own_flush(co, &n->s, flush_by_itself);
    return 0;
}

static int change(struct co *co, struct nbdc *n, struct nbdc_req *r, bool durable)
{
    int result = nbdc_do(co, n, r);
    return result ? result : settle(co, n, durable);
}

static int64_t op_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct nbdc *n = nbdc_of(s);
    if (off >= n->info.size)
        return -ENOSPC;
    AUTOFREE void *copy = NULL;
    void *buf = buffer_for(n, &v, off, &copy);
    if (!buf)
        return -ENOMEM;
    if (copy)
        iov_to_buf(v, copy, v.len_bytes);
    bool fua = flags & STOR_FUA;
    struct nbdc_req r = { .what = NBDC_WRITE, .off = off, .len = v.len_bytes, .buf = buf, .flags = fua && n->info.can_fua ? LIBNBD_CMD_FLAG_FUA : 0 };
    int result = change(co, n, &r, fua);
    if (!result && fua && !n->info.can_fua)
        result = flush_now(co, n);
    return result ? result : (int64_t)v.len_bytes;
}

static int op_flush(struct co *co, struct stor *s)
{
    struct nbdc *n = nbdc_of(s);
    return nbdc_log_loss(&n->log) == NBDC_NOTHING ? 0 : flush_now(co, n);        /* all that was acknowledged is durable: nobody needs to be asked */
}

/* ---- ranges without data ---- */

/* One request after the other over [off, off+len). A server may take such ranges in the lengths of transfers only. */
static int each_span(struct co *co, struct nbdc *n, enum nbdc_what what, uint64_t off, uint64_t len, uint32_t flags)
{
    uint64_t small = n->s.lim.max_transfer, max = atomic_load(&n->small_spans) ? small : NBDC_SPAN_MAX;
    while (len) {
        struct nbdc_req r = { .what = what, .off = off, .len = min_u64(len, max), .flags = flags };
        int result = change(co, n, &r, false);
        if ((result == -EINVAL || result == -EOVERFLOW) && r.len > small) {
            atomic_store(&n->small_spans, true);
            max = small;
            continue;
        }
        if (result)
            return result;
        off += r.len;
        len -= r.len;
    }
    return 0;
}

static int op_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    struct nbdc *n = nbdc_of(s);
    bool fast = (flags & STOR_NO_FALLBACK) && !(flags & STOR_SLOW);
    if (off > n->info.size || len > n->info.size - off)
        return -ENOSPC;
    if (!n->info.can_zero || (fast && !n->info.can_fast_zero))
        return -ENOTSUP;
    return each_span(co, n, NBDC_ZERO, off, len, (fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0) | (flags & STOR_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
}

static int op_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct nbdc *n = nbdc_of(s);
    if (!n->info.can_trim || off >= n->info.size)
        return -ENOTSUP;
    return each_span(co, n, NBDC_TRIM, off, min_u64(len, n->info.size - off), 0);
}

/* Puts the notes of r to its extents, which are cut where they change: how many there are then. What no note is known of is left out. */
static unsigned with_notes(struct nbdc_req *r)
{
    unsigned at = 0;
    struct stor_extent *e = r->list;
    for (unsigned i = 0; i < r->got; i++) {
        while (at < r->noted && r->notes[at].end <= e[i].off)
            at++;
        if (at == r->noted)
            return i;
        e[i].note = r->notes[at].what;
        uint64_t end = e[i].off + e[i].len, cut = r->notes[at].end;
        if (cut >= end)
            continue;
        if (r->got < r->max)
            r->got++;
        memmove(&e[i + 2], &e[i + 1], (r->got - min_u64(r->got, i + 2)) * sizeof *e);
        if (i + 1 < r->got)
            e[i + 1] = (struct stor_extent){ .content = e[i].content, .off = cut, .len = end - cut };
        e[i].len = cut - e[i].off;
    }
    return r->got;
}

static int status(struct co *co, struct nbdc *n, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max)
{
    uint64_t span = atomic_load(&n->small_spans) ? n->s.lim.max_transfer : NBDC_SPAN_MAX;
    struct nbdc_note notes[NBDC_NOTES_MAX];
    struct nbdc_req r = { .what = NBDC_STATUS, .off = off, .list = list, .max = max, .flags = max == 1 ? LIBNBD_CMD_FLAG_REQ_ONE : 0, .note = n->o.x_dirty_bitmap,
        .notes = notes };
    if (!n->info.has_status || off >= n->info.size)
        return -ENOTSUP;
    r.len = min_u64(min_u64(len, span), n->info.size - off);
    int result = nbdc_do(co, n, &r);
    if (!result && r.note)
        r.got = with_notes(&r);
    return result ? result : r.got ? (int)r.got : -ENOTSUP;
}

static int op_extents(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max)
{
    return status(co, nbdc_of(s), off, len, list, max);
}

static int op_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    int r = status(co, nbdc_of(s), off, len, ret_e, 1);
    return r < 0 ? r : 0;
}

/* ---- length, end ---- */

static int op_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = nbdc_of(s)->info.size;
    return 0;
}

/* The protocol has no such request (FEATURES 3.037). */
static int op_truncate(struct co *co, struct stor *s, uint64_t len)
{
    return len == nbdc_of(s)->info.size ? 0 : -ENOTSUP;
}

static void set_free(struct nbdc *n)
{
    nbdc_log_fini(&n->log);
    pthread_mutex_destroy(&n->lock);
    stor_nbd_opts_fini(&n->o);
    stor_fini(&n->s);
    free(n);
}

static int stop_at_home(struct co *co, void *arg)
{
    nbdc_set_stop(co, arg);
    return 0;
}

static void op_close(struct co *co, struct stor *s)
{
    struct nbdc *n = nbdc_of(s);
    while (rt_call(co, n->home, stop_at_home, n) == -ENOMEM)
        co_breathe(co);
    set_free(n);
}

static const struct stor_ops nbd_ops = {
    .name = "nbd",
    .preadv = op_preadv,
    .pwritev = op_pwritev,
    .flush = op_flush,
    .zero = op_zero,
    .discard = op_discard,
    .truncate = op_truncate,
    .length = op_length,
    .extent = op_extent,
    .extents = op_extents,
    .close = op_close,
};

bool stor_is_nbd(const struct stor *s)
{
    return s->ops == &nbd_ops;
}

bool stor_nbd_identity(const struct stor *s, uint64_t *ret_a, uint64_t *ret_b)
{
    if (!stor_is_nbd(s) || ((const struct nbdc *)s)->o.where == STOR_NBD_FD)
        return false;                            /* the name says nothing of the server */
    struct hash128 h = hash_buf(s->name, strlen(s->name), 0);
    *ret_a = h.lo;
    *ret_b = h.hi;
    return true;
}

void stor_nbd_abandon(struct stor *s)
{
    if (stor_is_nbd(s))
        nbdc_abandon(nbdc_of(s));
}

void stor_nbd_hurry(struct stor *s, uint64_t ns)
{
    if (stor_is_nbd(s))
        nbdc_hurry(nbdc_of(s), ns);
}

unsigned stor_nbd_reconnects(const struct stor *s)
{
    return stor_is_nbd(s) ? atomic_load(&((const struct nbdc *)s)->returns) : 0;
}

/* ---- opening ---- */

/* Block sizes are the server's word: only sensible ones are gone by. */
static int set_limits(struct nbdc *n, struct byre_err *err)
{
    const struct nbdc_info *i = &n->info;
    const char *name = n->s.name;
    uint64_t block = i->min_block ? i->min_block : i->size % 512 ? 1 : 512, max = i->max_block ? i->max_block : NBDC_LEN_MAX;
    if (i->size > SIZE_MAX_BYTES)
        return byre_fail(err, PROTOCOL, "%s: the export is said to have %" PRIu64 " bytes, which is more than can be addressed", name, i->size);
    if ((block & (block - 1)) || block > 65536 || max < block)
        return byre_fail(err, PROTOCOL, "%s: the server asks for impossible blocks (at least %" PRIu64 ", at most %" PRIu64 " bytes)", name, block, max);
    if (i->size % block)
        return byre_fail(err, PROTOCOL, "%s: the size of the export, %" PRIu64 " bytes, is no multiple of the server's blocks of %" PRIu64, name, i->size, block);
    n->s.lim.block = (uint32_t)block;
    n->s.lim.max_transfer = round_down(min_u64(max, NBDC_LEN_MAX), block);
    n->s.lim.opt_block = (uint32_t)max_u64(512, min_u64(i->opt_block, 65536));
    n->s.traits.can_zero = i->can_zero;
    n->s.traits.can_punch = i->can_trim;
    return 0;
}

static int set_new(const struct stor_nbd_opts *o, const struct stor_file_opts *so, struct nbdc **ret_n)
{
    AUTOFREE char *name = stor_nbd_text(o);
    struct nbdc *n = name ? calloc(1, sizeof *n) : NULL;
    if (!n || stor_init(&n->s, &nbd_ops, name)) {
        free(n);
        return -ENOMEM;
    }
    if (stor_nbd_opts_copy(o, &n->o)) {
        stor_fini(&n->s);
        free(n);
        return -ENOMEM;
    }
    if (o->where == STOR_NBD_FD) {               /* nothing can be done again, or twice */
        n->o.passed = so->passed;
        n->o.connections = 1;
        n->o.reconnect_s = n->o.open_timeout_s = 0;
    }
    pthread_mutex_init(&n->lock, NULL);
    n->s.read_only = so->read_only;
    n->s.no_flush = so->no_flush;
    n->s.discard_ok = so->discard;
    n->warn = so->warn;
    n->warn_arg = so->warn_arg;
    *ret_n = n;
    return 0;
}

/* open-timeout: again and again, as long as there is time. */
static int first_contact(struct co *co, struct nbdc *n, struct nbd_handle **ret_h, struct byre_err *err)
{
    struct rt_loop *loop = co_loop(co);
    uint64_t last = rt_now(loop) + n->o.open_timeout_s * UINT64_C(1000000000), pause_ns = 50000000;
    for (;;) {
        uint64_t now = rt_now(loop), at = now + NBDC_HANDSHAKE_NS;
        if (n->o.open_timeout_s)
            at = min_u64(at, max_u64(last, now + 1000000));
        int r = nbdc_handshake(co, &n->o, at, ret_h, &n->info, err);
        if (!r || r == -ECANCELED || r == -ENOMEM || rt_now(loop) + pause_ns >= last)
            return r;
        r = co_sleep(co, pause_ns);
        if (r)
            return r;
        pause_ns = min_u64(pause_ns * 2, UINT64_C(1000000000));
    }
}

static int open_in(struct co *co, struct nbdc *n, struct byre_err *err)
{
    struct nbd_handle *h = NULL;
    struct byre_err why = { 0 };
    int r = first_contact(co, n, &h, &why);
    n->o.passed = NULL;
    if (r)
        return byre_fail_code(err, SYSTEM, r, "%s: %s", n->s.name, why.text[0] ? why.text : "the connection was given up");
    n->home = co_loop(co);
    r = set_limits(n, err);
    if (!r && n->info.read_only && !n->s.read_only)
        r = byre_fail(err, READ_ONLY, "%s: the server offers this export for reading only", n->s.name);
    if (r) {
        nbdc_close(co, h);
        return r;
    }
    nbdc_log_init(&n->log, n->info.can_flush, n->o.reconnect_s > 0);
    r = nbdc_set_start(co, n, h);
    if (!r)
        return 0;
    nbdc_log_fini(&n->log);
    return byre_fail(err, NOMEM, "%s: no memory for a connection", n->s.name);
}

int stor_nbd_open(struct co *co, const struct stor_nbd_opts *o, const struct stor_file_opts *so, struct stor **ret_s, struct byre_err *err)
{
    struct nbdc *n = NULL;
    int r = stor_nbd_check(o, err);
    if (r)
        return r;
    if (set_new(o, so, &n))
        return byre_fail(err, NOMEM, "no memory for an NBD connection");
    r = stor_nbd_take_creds(co, &n->o, so->tls, err);
    if (!r)
        r = open_in(co, n, err);
    if (r) {
        pthread_mutex_destroy(&n->lock);
        stor_nbd_opts_fini(&n->o);
        stor_fini(&n->s);
        free(n);
        return r;
    }
    *ret_s = &n->s;
    return 0;
}
