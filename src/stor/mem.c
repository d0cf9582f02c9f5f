/* SPDX-License-Identifier: MIT
 *
 * mem.c: a byte store in memory, for tests and for images that live as long as the process.
 *
 * Purpose      Sparse: chunks that were never written, or zeroed as a whole, take no memory and are known as holes.
 * Owns         A hash table of chunks by index.
 * Invariants   I1  Bytes behind the length are zero in every chunk, so growing shows zeros.
 *              I2  A chunk that is not in the table reads as zeros.
 * Order        Flush has nothing to do.
 * Concurrency  Any loop; one mutex, held for one request's copying.
 * Failure      -ENOMEM from writes; what came before the failed chunk is written (a short transfer).
 * Tests        mem_test.c
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/hash.h"
#include "stor/stor.h"

enum { CHUNK_BYTES = 64 * 1024, BUCKETS_MIN = 64 };

struct chunk {
    struct chunk *next;
    uint64_t index;
    uint8_t bytes[CHUNK_BYTES];
};

struct mem_stor {
    struct stor s;                        /* first */
    pthread_mutex_t lock;
    uint64_t len;                         /* guarded by lock, as all below */
    struct chunk **buckets;
    uint64_t bucket_cnt, chunk_cnt;       /* bucket_cnt is a power of two */
};

static struct mem_stor *mem_of(struct stor *s) { return (struct mem_stor *)s; }

/* Where the chunk is linked, or where it would be. */
static struct chunk **place_of(const struct mem_stor *m, uint64_t index)
{
    struct chunk **p = &m->buckets[hash_mix64(index) & (m->bucket_cnt - 1)];
    while (*p && (*p)->index != index)
        p = &(*p)->next;
    return p;
}

/* Doubles the table when it is crowded; without memory it stays as it is. */
static void make_room(struct mem_stor *m)
{
    if (m->chunk_cnt < m->bucket_cnt)
        return;
    struct chunk **old = m->buckets, **fresh = calloc(m->bucket_cnt * 2, sizeof(struct chunk *));
    if (!fresh)
        return;
    uint64_t cnt = m->bucket_cnt;
    m->buckets = fresh;
    m->bucket_cnt *= 2;
    for (uint64_t i = 0; i < cnt; i++)
        for (struct chunk *c = old[i], *next; c; c = next) {
            next = c->next;
            struct chunk **p = &m->buckets[hash_mix64(c->index) & (m->bucket_cnt - 1)];
            c->next = *p;
            *p = c;
        }
    free(old);
}

static struct chunk *chunk_ensure(struct mem_stor *m, uint64_t index)
{
    struct chunk **p = place_of(m, index);
    if (*p)
        return *p;
    make_room(m);
    struct chunk *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    p = place_of(m, index);
    c->index = index;
    *p = c;
    m->chunk_cnt++;
    return c;
}

/* Unlinks and frees the chunk at *p. */
static void drop_at(struct mem_stor *m, struct chunk **p)
{
    struct chunk *c = *p;
    *p = c->next;
    m->chunk_cnt--;
    free(c);
}

/* Drops the chunks [first, last): by index, or by a walk of the table when that is shorter. */
static void drop_chunks(struct mem_stor *m, uint64_t first, uint64_t last)
{
    if (last > first && last - first <= m->bucket_cnt) {
        for (uint64_t i = first; i < last; i++) {
            struct chunk **p = place_of(m, i);
            if (*p)
                drop_at(m, p);
        }
        return;
    }
    for (uint64_t i = 0; i < m->bucket_cnt; i++)
        for (struct chunk **p = &m->buckets[i]; *p;) {
            if ((*p)->index >= first && (*p)->index < last)
                drop_at(m, p);
            else
                p = &(*p)->next;
        }
}

static int64_t mem_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    uint64_t len = off < m->len ? min_u64(v.len_bytes, m->len - off) : 0;
    for (uint64_t done = 0, n; done < len; done += n) {
        uint64_t in = (off + done) % CHUNK_BYTES;
        n = min_u64(len - done, CHUNK_BYTES - in);
        struct chunk *c = *place_of(m, (off + done) / CHUNK_BYTES);
        if (c)
            iov_from_buf(iov_slice(v, done, n), c->bytes + in, n);
        else
            iov_set(iov_slice(v, done, n), 0);
    }
    pthread_mutex_unlock(&m->lock);
    return (int64_t)len;
}

static int64_t mem_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct mem_stor *m = mem_of(s);
    uint64_t done = 0;
    pthread_mutex_lock(&m->lock);
    for (uint64_t n; done < v.len_bytes; done += n) {
        uint64_t in = (off + done) % CHUNK_BYTES;
        n = min_u64(v.len_bytes - done, CHUNK_BYTES - in);
        struct chunk *c = chunk_ensure(m, (off + done) / CHUNK_BYTES);
        if (!c)
            break;
        iov_to_buf(iov_slice(v, done, n), c->bytes + in, n);
    }
    m->len = done ? max_u64(m->len, off + done) : m->len;
    pthread_mutex_unlock(&m->lock);
    return done ? (int64_t)done : -ENOMEM;
}

/* Zeroes [off, end), which lies inside one chunk. */
static void clear_part(struct mem_stor *m, uint64_t off, uint64_t end)
{
    struct chunk *c = off < end ? *place_of(m, off / CHUNK_BYTES) : NULL;
    if (c)
        memset(c->bytes + off % CHUNK_BYTES, 0, end - off);
}

/* Zeroes [off, end). Lock held. */
static void clear_range(struct mem_stor *m, uint64_t off, uint64_t end)
{
    uint64_t first = round_up(off, CHUNK_BYTES), last = round_down(end, CHUNK_BYTES);
    if (first > last) {                   /* inside one chunk */
        clear_part(m, off, end);
        return;
    }
    clear_part(m, off, first);
    if (first < last)
        drop_chunks(m, first / CHUNK_BYTES, last / CHUNK_BYTES);
    clear_part(m, last, end);
}

static int mem_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    clear_range(m, off, off + len);
    m->len = max_u64(m->len, off + len);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    if (off < m->len)
        clear_range(m, off, off + min_u64(len, m->len - off));
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_truncate(struct co *co, struct stor *s, uint64_t len)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    if (len < m->len)
        clear_range(m, len, round_up(m->len, CHUNK_BYTES));   /* I1 */
    m->len = len;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    *ret_len = m->len;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    struct mem_stor *m = mem_of(s);
    pthread_mutex_lock(&m->lock);
    *ret_bytes = m->chunk_cnt * CHUNK_BYTES;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

/* Index of the first chunk at or behind `index`; UINT64_MAX if there is none. */
static uint64_t next_chunk(const struct mem_stor *m, uint64_t index)
{
    uint64_t best = UINT64_MAX;
    for (uint64_t i = 0; i < m->bucket_cnt; i++)
        for (const struct chunk *c = m->buckets[i]; c; c = c->next)
            if (c->index >= index)
                best = min_u64(best, c->index);
    return best;
}

static int mem_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    struct mem_stor *m = mem_of(s);
    uint64_t index = off / CHUNK_BYTES, last = (off + len - 1) / CHUNK_BYTES;
    pthread_mutex_lock(&m->lock);
    bool data = *place_of(m, index) != NULL;
    if (!data)
        index = next_chunk(m, index);
    while (data && index <= last && *place_of(m, index))
        index++;
    pthread_mutex_unlock(&m->lock);
    uint64_t end = index > last ? off + len : index * CHUNK_BYTES;
    *ret_e = (struct stor_extent){ data ? STOR_DATA : STOR_HOLE, off, end - off };
    return 0;
}

static void mem_close(struct co *co, struct stor *s)
{
    struct mem_stor *m = mem_of(s);
    drop_chunks(m, 0, UINT64_MAX);
    free(m->buckets);
    pthread_mutex_destroy(&m->lock);
    stor_fini(s);
    free(m);
}

static const struct stor_ops mem_ops = {
    .name = "mem",
    .preadv = mem_preadv,
    .pwritev = mem_pwritev,
    .zero = mem_zero,
    .discard = mem_discard,
    .truncate = mem_truncate,
    .length = mem_length,
    .extent = mem_extent,
    .allocated = mem_allocated,
    .close = mem_close,
};

int stor_mem_new(struct co *co, const char *name, uint64_t len, struct stor **ret_s)
{
    if (len > (uint64_t)INT64_MAX)
        return -EINVAL;
    struct mem_stor *m = calloc(1, sizeof *m);
    struct chunk **buckets = calloc(BUCKETS_MIN, sizeof(struct chunk *));
    if (!m || !buckets || stor_init(&m->s, &mem_ops, name) < 0) {
        free(m);
        free(buckets);
        return -ENOMEM;
    }
    pthread_mutex_init(&m->lock, NULL);
    m->len = len;
    m->buckets = buckets;
    m->bucket_cnt = BUCKETS_MIN;
    m->s.discard_ok = true;
    m->s.traits = (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true, .can_punch = true, .can_zero = true,
                                        .enospc_early = true };
    *ret_s = &m->s;
    return 0;
}
