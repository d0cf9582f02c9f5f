/* SPDX-License-Identifier: MIT
 *
 * toyfmt_test.c: see toyfmt_test.h.
 *
 * Purpose      A format whose every answer a test can choose.
 * Owns         The table of clusters.
 * Invariants   I1  A host cluster is in the table once, or on the free list, or waits for its grace period.
 * Order        None.
 * Concurrency  map from any loop under a mutex; everything that changes the table runs on the home loop.
 * Failure      Injected.
 * Tests        Used by those of graph/ and copy/.
 */
#include "graph/toyfmt_test.h"

#include <stdlib.h>
#include <string.h>

static struct toyfmt *toyfmt_of(struct fmt_image *im) { return (struct toyfmt *)im; }

static int step(struct toyfmt *f, enum toyfmt_step s)
{
    atomic_fetch_add(&f->calls[s], 1);
    if (atomic_load(&f->fail_step) != (int)s || atomic_load(&f->fail_after) < 0)
        return 0;
    return atomic_fetch_sub(&f->fail_after, 1) == 0 ? -EIO : 0;
}

static uint64_t host_off(const struct toyfmt *f, uint32_t host) { return (uint64_t)host * f->cluster_bytes; }

static void scribble(struct toyfmt *f, uint32_t host, int byte)
{
    pthread_mutex_lock(&f->t->lock);
    memset(f->t->bytes + host_off(f, host), byte, f->cluster_bytes);
    f->t->len = max_u64(f->t->len, host_off(f, host + 1));
    pthread_mutex_unlock(&f->t->lock);
}

/* n host clusters side by side; TOYFMT_NONE: there are none. lock is held. */
static uint32_t take_hosts(struct toyfmt *f, uint32_t n)
{
    uint32_t host = TOYFMT_NONE;
    if (n == 1 && f->free_count)
        host = f->free_list[--f->free_count];
    else if (f->next_host + n <= f->hosts) {
        host = f->next_host;
        f->next_host += n;
    }
    for (uint32_t i = 0; i < n && host != TOYFMT_NONE; i++)
        scribble(f, host + i, f->known_zero ? 0 : TOYFMT_FRESH);
    return host;
}

struct freed { struct epoch_cb cb; struct toyfmt *f; uint32_t host; };

static void reclaim(struct epoch_cb *cb)
{
    struct freed *d = CONTAINER_OF(cb, struct freed, cb);
    scribble(d->f, d->host, TOYFMT_FREED);
    pthread_mutex_lock(&d->f->lock);
    d->f->free_list[d->f->free_count++] = d->host;
    pthread_mutex_unlock(&d->f->lock);
    free(d);
}

static void free_host(struct toyfmt *f, uint32_t host)
{
    struct freed *d = malloc(sizeof *d);
    ASSERT(d);
    d->f = f;
    d->host = host;
    epoch_defer(f->im.epoch, &d->cb, reclaim);
}

/* ---- mapping ---- */

static bool in_place(const struct toyfmt_cluster *c) { return c->kind == FMT_DATA && !c->shared; }

static int toyfmt_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e)
{
    struct toyfmt *f = toyfmt_of(im);
    int r = step(f, TOYFMT_MAP);
    if (r)
        return r;
    uint32_t cb = f->cluster_bytes, i = (uint32_t)(off / cb), in = (uint32_t)(off % cb);
    pthread_mutex_lock(&f->lock);
    ASSERT(len && off + len <= f->im.size);
    struct toyfmt_cluster c = f->map[i];
    uint32_t n = 1;
    while (c.kind != FMT_ENCODED && (uint64_t)(i + n) * cb < off + len && !(f->cut && prng_one_in(&f->rng, 4))) {
        struct toyfmt_cluster d = f->map[i + n];
        if (d.kind != c.kind || in_place(&d) != in_place(&c) || (c.kind == FMT_DATA && d.host != c.host + n))
            break;
        n++;
    }
    pthread_mutex_unlock(&f->lock);
    *e = (struct fmt_extent){ .kind = c.kind, .len = min_u64(len, (uint64_t)n * cb - in) };
    if (c.kind == FMT_DATA) {
        e->writable = in_place(&c);
        e->has_host = true;
        e->host = host_off(f, c.host) + in;
    } else if (c.kind == FMT_ENCODED) {
        e->host = host_off(f, c.host);
        e->enc_len = cb;
        e->enc_guest = (uint64_t)i * cb;
    }
    return 0;
}

static int toyfmt_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *e) { return toyfmt_map_at_hand(im, off, len, e); }

static int toyfmt_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    struct toyfmt *f = toyfmt_of(im);
    uint8_t *buf = malloc(f->cluster_bytes);
    struct iovec slot;
    int r = step(f, TOYFMT_DECODE);
    ASSERT(buf && off >= e->enc_guest && off + v.len_bytes <= e->enc_guest + f->cluster_bytes);
    if (!r)
        r = stor_read(co, im->store, iov_one(&slot, buf, f->cluster_bytes), e->host);
    for (uint32_t i = 0; i < f->cluster_bytes; i++)
        buf[i] ^= TOYFMT_XOR;
    if (!r)
        iov_from_buf(v, buf + (off - e->enc_guest), v.len_bytes);
    free(buf);
    return r;
}

/* ---- allocating writes ---- */

struct claim { struct co_range range; uint32_t first, count, host; };

static enum fmt_fill fill_of(struct toyfmt *f, const struct toyfmt_cluster *c)
{
    if (c->kind == FMT_ENCODED || c->kind == FMT_DATA || (c->kind == FMT_ABSENT && f->im.has_backing))
        return FMT_FILL_READ;
    return f->known_zero ? FMT_FILL_NONE : FMT_FILL_ZERO;
}

/* Clusters from `first` that can be begun together. lock is held. */
static uint32_t run_of(struct toyfmt *f, uint32_t first, uint32_t most)
{
    uint32_t n = 0;
    while (n < most && !in_place(&f->map[first + n]) && fill_of(f, &f->map[first + n]) == fill_of(f, &f->map[first])
           && !(n && f->cut && prng_one_in(&f->rng, 4)))
        n++;
    return n;
}

struct begin_args { struct toyfmt *f; uint64_t off, len; struct fmt_write *w; };

static int begin_on_home(struct co *co, void *arg)
{
    const struct begin_args *a = arg;
    struct toyfmt *f = a->f;
    uint32_t cb = f->cluster_bytes;
    struct claim *c = calloc(1, sizeof *c);
    ASSERT(c);
    c->first = (uint32_t)(a->off / cb);
    pthread_mutex_lock(&f->lock);
    uint32_t want = max_u64(1, run_of(f, c->first, (uint32_t)div_up(a->off + a->len, cb) - c->first));
    pthread_mutex_unlock(&f->lock);
    co_range_lock(co, &f->busy, &c->range, c->first, c->first + want);
    pthread_mutex_lock(&f->lock);
    c->count = run_of(f, c->first, want);
    c->host = c->count ? take_hosts(f, c->count) : 0;
    enum fmt_fill fill = fill_of(f, &f->map[c->first]);
    pthread_mutex_unlock(&f->lock);
    if (!c->count || c->host == TOYFMT_NONE) {
        int r = c->count ? -ENOSPC : 0;
        co_range_unlock(&f->busy, &c->range);
        free(c);
        *a->w = (struct fmt_write){ .off = a->off };
        return r;
    }
    uint64_t head = a->off % cb, end = (uint64_t)(c->first + c->count) * cb, last = min_u64(a->off + a->len, end);
    *a->w = (struct fmt_write){ .off = a->off, .len = last - a->off, .host = host_off(f, c->host) + head, .head = head,
                                .tail = end - last, .fill = fill, .priv = c };
    atomic_fetch_add(&f->begun, 1);
    return 0;
}

static int toyfmt_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w)
{
    struct begin_args a = { toyfmt_of(im), off, len, w };
    int r = step(a.f, TOYFMT_BEGIN);
    return r ? r : rt_call(co, im->home, begin_on_home, &a);
}

struct end_args { struct toyfmt *f; struct claim *c; bool keep; };

static int end_on_home(struct co *co, void *arg)
{
    const struct end_args *a = arg;
    struct toyfmt *f = a->f;
    struct claim *c = a->c;
    for (uint32_t i = 0; i < c->count; i++) {
        pthread_mutex_lock(&f->lock);
        struct toyfmt_cluster *m = &f->map[c->first + i];
        uint32_t loser = a->keep ? m->host : c->host + i;
        if (a->keep)
            *m = (struct toyfmt_cluster){ FMT_DATA, false, c->host + i };
        pthread_mutex_unlock(&f->lock);
        if (loser != TOYFMT_NONE)
            free_host(f, loser);
    }
    co_range_unlock(&f->busy, &c->range);
    free(c);
    return 0;
}

static void end_write(struct co *co, struct toyfmt *f, struct fmt_write *w, bool keep)
{
    struct end_args a = { f, w->priv, keep };
    int r = rt_call(co, f->im.home, end_on_home, &a);
    ASSERT(!r);
}

static int toyfmt_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    struct toyfmt *f = toyfmt_of(im);
    int r = step(f, TOYFMT_COMMIT);
    atomic_fetch_add(&f->committed, 1);
    end_write(co, f, w, !r);
    return r;
}

static void toyfmt_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    struct toyfmt *f = toyfmt_of(im);
    atomic_fetch_add(&f->aborted, 1);
    end_write(co, f, w, false);
}

/* ---- compressed writes: a cluster of one byte throughout becomes that byte ---- */

static int toyfmt_encode(struct co *co, struct fmt_image *im, const struct fmt_encoding *how, const struct fmt_encode *e)
{
    struct toyfmt *f = toyfmt_of(im);
    int r = step(f, TOYFMT_ENCODE);
    co_yield(co);
    for (unsigned i = 0; i < e->count && !r; i++) {
        const uint8_t *in = (const uint8_t *)e->in + (uint64_t)i * f->cluster_bytes;
        e->len[i] = !memcmp(in, in + 1, f->cluster_bytes - 1);
        ((uint8_t *)e->out)[(uint64_t)i * f->cluster_bytes] = in[0];
    }
    return r;
}

struct encoded_args { struct toyfmt *f; uint32_t first; const struct iovec *enc; unsigned n; };

static int encoded_on_home(struct co *co, void *arg)
{
    const struct encoded_args *a = arg;
    struct toyfmt *f = a->f;
    struct co_range range;
    int r = 0;
    co_range_lock(co, &f->busy, &range, a->first, a->first + a->n);
    for (unsigned i = 0; i < a->n && !r; i++) {
        uint8_t byte = *(const uint8_t *)a->enc[i].iov_base;
        ASSERT(a->enc[i].iov_len == 1 && a->first + i < f->clusters);
        pthread_mutex_lock(&f->lock);
        uint32_t host = take_hosts(f, 1), loser = f->map[a->first + i].host;
        r = host == TOYFMT_NONE ? -ENOSPC : 0;
        if (!r) {
            scribble(f, host, byte ^ TOYFMT_XOR);
            f->map[a->first + i] = (struct toyfmt_cluster){ FMT_ENCODED, false, host };
        }
        pthread_mutex_unlock(&f->lock);
        if (!r && loser != TOYFMT_NONE)
            free_host(f, loser);
    }
    co_range_unlock(&f->busy, &range);
    return r;
}

static int toyfmt_write_encoded(struct co *co, struct fmt_image *im, uint64_t off, const struct iovec *enc, unsigned n)
{
    struct toyfmt *f = toyfmt_of(im);
    struct encoded_args a = { f, (uint32_t)(off / f->cluster_bytes), enc, n };
    int r = step(f, TOYFMT_WRITE_ENCODED);
    ASSERT(off % f->cluster_bytes == 0);
    if (!r && f->too_far)
        r = -EFBIG;
    return r ? r : rt_call(co, im->home, encoded_on_home, &a);
}

/* ---- zero, discard ---- */

struct drop_args { struct toyfmt *f; uint64_t off, len; enum fmt_kind kind; };

static int drop_on_home(struct co *co, void *arg)
{
    const struct drop_args *a = arg;
    struct toyfmt *f = a->f;
    uint32_t cb = f->cluster_bytes, first = (uint32_t)(a->off / cb), end = (uint32_t)div_up(a->off + a->len, cb);
    struct co_range range;
    ASSERT(a->off % cb == 0 && ((a->off + a->len) % cb == 0 || a->off + a->len == f->im.size));
    co_range_lock(co, &f->busy, &range, first, end);
    for (uint32_t i = first; i < end; i++) {
        pthread_mutex_lock(&f->lock);
        uint32_t loser = f->map[i].host;
        f->map[i] = (struct toyfmt_cluster){ a->kind, false, TOYFMT_NONE };
        pthread_mutex_unlock(&f->lock);
        if (loser != TOYFMT_NONE)
            free_host(f, loser);
    }
    co_range_unlock(&f->busy, &range);
    return 0;
}

static int toyfmt_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    struct toyfmt *f = toyfmt_of(im);
    struct drop_args a = { f, off, len, FMT_ZERO };
    int r = step(f, TOYFMT_ZERO);
    if (!r && f->no_zero)
        r = -ENOTSUP;
    return r ? r : rt_call(co, im->home, drop_on_home, &a);
}

static int toyfmt_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    struct toyfmt *f = toyfmt_of(im);
    struct drop_args a = { f, off, len, f->absent_after_discard ? FMT_ABSENT : FMT_ZERO };
    int r = step(f, TOYFMT_DISCARD);
    return r ? r : rt_call(co, im->home, drop_on_home, &a);
}

static int toyfmt_flush(struct co *co, struct fmt_image *im) { return stor_flush(co, im->store); }

static int toyfmt_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    struct toyfmt *f = toyfmt_of(im);
    if (step(f, TOYFMT_RESIZE))
        return byre_fail(err, IO, "injected");
    uint32_t n = (uint32_t)div_up(size, f->cluster_bytes);
    pthread_mutex_lock(&f->lock);
    f->map = realloc(f->map, (n + 1) * sizeof *f->map);
    ASSERT(f->map);
    for (uint32_t i = f->clusters; i < n; i++)
        f->map[i] = (struct toyfmt_cluster){ FMT_ABSENT, false, TOYFMT_NONE };
    f->clusters = n;
    f->old_size = im->size;
    im->size = size;
    pthread_mutex_unlock(&f->lock);
    return 0;
}

static int toyfmt_resize_commit(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err)
{
    if (!keep)
        im->size = toyfmt_of(im)->old_size;
    return 0;
}

static int toyfmt_close(struct co *co, struct fmt_image *im)
{
    struct toyfmt *f = toyfmt_of(im);
    toyfmt_check(f);
    epoch_drain(co, im->epoch);
    epoch_free(im->epoch);
    stor_close(co, im->store);
    pthread_mutex_destroy(&f->lock);
    free(f->map);
    free(f->free_list);
    free(f);
    return 0;
}

static const struct fmt_ops toyfmt_ops = {
    .name = "toyfmt",
    .map = toyfmt_map,
    .map_at_hand = toyfmt_map_at_hand,
    .read_encoded = toyfmt_read_encoded,
    .encode = toyfmt_encode,
    .write_encoded = toyfmt_write_encoded,
    .write_begin = toyfmt_write_begin,
    .write_commit = toyfmt_write_commit,
    .write_abort = toyfmt_write_abort,
    .zero = toyfmt_zero,
    .discard = toyfmt_discard,
    .flush = toyfmt_flush,
    .resize = toyfmt_resize,
    .resize_commit = toyfmt_resize_commit,
    .close = toyfmt_close,
};

/* ---- making things ---- */

struct toyfmt *toyfmt_new(struct co *co, uint64_t size, uint32_t cluster_bytes)
{
    struct toyfmt *f = calloc(1, sizeof *f);
    ASSERT(f);
    f->clusters = (uint32_t)div_up(size, cluster_bytes);
    f->hosts = f->clusters * 6 + 16;
    f->cluster_bytes = cluster_bytes;
    f->t = toy_new((uint64_t)f->hosts * cluster_bytes, 1, 1);
    f->map = calloc(f->clusters + 1, sizeof *f->map);
    f->free_list = calloc(f->hosts, sizeof *f->free_list);
    ASSERT(f->map && f->free_list);
    for (uint32_t i = 0; i < f->clusters; i++)
        f->map[i].host = TOYFMT_NONE;
    pthread_mutex_init(&f->lock, NULL);
    prng_init(&f->rng, 5);
    f->fail_step = TOYFMT_STEPS;
    f->fail_after = -1;
    f->im = (struct fmt_image){ .ops = &toyfmt_ops, .store = &f->t->s, .data = &f->t->s, .home = co_loop(co), .size = size, .granule = cluster_bytes, .cluster = cluster_bytes,
                                .encode_bytes = cluster_bytes };
    int r = epoch_new(co_loop(co), &f->im.epoch);
    ASSERT(!r);
    return f;
}

void toyfmt_set(struct toyfmt *f, uint32_t i, enum fmt_kind kind, bool shared, uint8_t byte)
{
    pthread_mutex_lock(&f->lock);
    f->map[i] = (struct toyfmt_cluster){ kind, shared, TOYFMT_NONE };
    if (kind == FMT_DATA || kind == FMT_ENCODED) {
        f->map[i].host = take_hosts(f, 1);
        ASSERT(f->map[i].host != TOYFMT_NONE);
        scribble(f, f->map[i].host, kind == FMT_ENCODED ? byte ^ TOYFMT_XOR : byte);
    }
    pthread_mutex_unlock(&f->lock);
}

void toyfmt_check(struct toyfmt *f)
{
    CHECK_EQ(f->begun, f->committed + f->aborted);
    uint8_t *seen = calloc(f->hosts, 1);
    ASSERT(seen);
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->clusters; i++)
        if (f->map[i].host != TOYFMT_NONE)
            CHECK_EQ(seen[f->map[i].host]++, 0);
    for (uint32_t i = 0; i < f->free_count; i++)
        CHECK_EQ(seen[f->free_list[i]]++, 0);
    pthread_mutex_unlock(&f->lock);
    free(seen);
}

struct graph *toy_graph(struct co *co)
{
    struct graph *g = NULL;
    struct graph_opts o = { 0 };
    CHECK_EQ(graph_new(co_loop(co), &o, &g, NULL), 0);
    return g;
}

struct graph_node *toy_node(struct graph *g, struct fmt_image *im, struct graph_node *backing)
{
    struct graph_node *n = NULL;
    CHECK_EQ(node_new(g, NULL, &n, NULL), 0);
    n->filename = strdup(n->name);
    n->im = im;
    n->is_raw = im->ops == &fmt_raw_ops;
    n->no_lock = true;
    n->ready = true;
    n->discard = true;
    n->backing = backing;
    if (backing) {
        backing->refs++;
        im->has_backing = true;
        im->below_zero_from = graph_length(backing);
    }
    gates_update(g);
    return n;
}

struct graph_node *toy_raw_node(struct co *co, struct graph *g, uint64_t len, struct toy **ret_t)
{
    struct toy *t = toy_new(len, 1, 1);
    struct fmt_image *im = NULL;
    struct fmt_open_opts o = { 0 };
    CHECK_EQ(fmt_raw_ops.open(co, &t->s, &o, &im, NULL), 0);
    *ret_t = t;
    return toy_node(g, im, NULL);
}

int t_read(struct co *co, struct graph_node *n, void *buf, uint64_t len, uint64_t off)
{
    struct iovec slot;
    return graph_read(co, n, iov_one(&slot, buf, len), off);
}

int t_write(struct co *co, struct graph_node *n, const void *buf, uint64_t len, uint64_t off, unsigned flags)
{
    struct iovec slot;
    return graph_write(co, n, iov_one(&slot, buf, len), off, flags);
}
