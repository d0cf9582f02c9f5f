/* SPDX-License-Identifier: MIT
 *
 * cache.c: cached metadata blocks.
 *
 * Purpose     Finds, loads, validates, pins, dirties and evicts blocks; keeps the list of regions.
 * Owns        The hash of blocks, the clock ring, the dirty list.
 * Invariants  I1, I3, I4 of meta.h. Further:
 *             C1  A block is in the hash from the moment it is valid until it is evicted or forgotten; a reader
 *                 on another loop that found it may use it until it leaves its epoch section.
 *             C2  dirty_sectors != 0  <=>  the block is on the dirty list.
 *             C3  A pass pins what it writes, so a block whose write is in flight is never evicted and re-read.
 *             C4  What was read from space that was forgotten during the read never comes into the cache, and whoever
 *                 waited for it does not read there again: the space belongs to somebody else.
 * Order       None here: pass.c decides. Both halves of a pair change in one sector, without a pause (I8, Q10).
 * Concurrency Home loop; meta_peek anywhere. meta_get suspends (loads).
 * Failure     A block that cannot be read or is refused is not cached; everybody who waited reads again and
 *             gets the error of their own attempt.
 * Tests       meta_test.c (toy tables over memory and a failing store); crash explorer.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "meta/meta_priv.h"
#include "rt/loop.h"

#define META_MIN_BLOCKS 8u

static uint64_t bucket_of(const struct meta *m, uint64_t off)
{
    uint64_t k = off / m->o.block_bytes;
    k *= 0x9e3779b97f4a7c15ull;
    return (k >> 20) & m->bucket_mask;
}

/* A mapping of its own: a disk that nobody uses touches little of it, and the heap would give it memory to be cleared, all of it. */
static bool buckets_new(struct meta *m, uint64_t n)
{
    void *mem = mmap(NULL, n * sizeof *m->buckets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED)
        return false;
    m->buckets = mem;
    m->bucket_mask = n - 1;
    return true;
}

static void buckets_free(struct meta *m)
{
    (void)munmap((void *)m->buckets, (m->bucket_mask + 1) * sizeof *m->buckets);      /* it cannot fail for a whole mapping of our own */
}

int meta_new(const struct meta_opts *o, struct meta **ret_m)
{
    ASSERT(is_pow2(o->block_bytes) && o->block_bytes >= 512 && o->block_bytes <= 65536);
    struct meta *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->o = *o;
    m->dirty_unit = o->block_bytes / 64 > 512 ? o->block_bytes / 64 : 512;
    m->limit = m->limit_min = max_u64(o->budget_bytes / o->block_bytes, META_MIN_BLOCKS);
    m->limit_max = max_u64(o->budget_max_bytes / o->block_bytes, m->limit_min);
    m->dirty_max = m->limit_min / 2;
    uint64_t n = 64;
    while (n < m->limit_max / 4 && n < (1u << 20))     /* a chain of 256 layers must stay small (RG22) */
        n *= 2;
    if (!buckets_new(m, n)) {
        free(m);
        return -ENOMEM;
    }
    meta_slab_init(&m->slab, o->block_bytes);
    m->frees_new_tail = &m->frees_new;
    atomic_store(&m->clean, true);
    *ret_m = m;
    return 0;
}

static struct meta_block *block_new(struct meta *m, const struct meta_kind *k, uint64_t off)
{
    struct meta_block *b = meta_slab_take(&m->slab);
    if (!b)
        return NULL;
    b->off = off;
    b->kind = k;
    b->owner = m;
    return b;
}

/* ---- hash and ring ---- */

static struct meta_block *hash_find(const struct meta *m, uint64_t off)
{
    struct meta_block *b = atomic_load_explicit(&m->buckets[bucket_of(m, off)], memory_order_acquire);
    while (b && b->off != off)
        b = atomic_load_explicit(&b->hash_next, memory_order_acquire);
    return b;
}

struct meta_block *meta_peek(struct meta *m, uint64_t off)
{
    struct meta_block *b = hash_find(m, off);
    if (b && atomic_load_explicit(&b->used, memory_order_relaxed) != META_USED)
        atomic_store_explicit(&b->used, META_USED, memory_order_relaxed);
    return b;
}

static void hash_insert(struct meta *m, struct meta_block *b)
{
    _Atomic(struct meta_block *) *head = &m->buckets[bucket_of(m, b->off)];
    atomic_store_explicit(&b->hash_next, atomic_load_explicit(head, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(head, b, memory_order_release);
    if (m->all) {
        b->all_next = m->all;
        b->all_prev = m->all->all_prev;
        b->all_prev->all_next = b;
        m->all->all_prev = b;
    } else {
        b->all_next = b->all_prev = b;
        m->all = b;
    }
    m->blocks++;
    meta_clean_want_(m);
}

static void hash_remove(struct meta *m, struct meta_block *b)
{
    _Atomic(struct meta_block *) *at = &m->buckets[bucket_of(m, b->off)];
    for (;;) {
        struct meta_block *x = atomic_load_explicit(at, memory_order_relaxed);
        ASSERT(x);
        if (x == b)
            break;
        at = &x->hash_next;
    }
    /* b->hash_next stays: a reader standing on b goes on from there (C1) */
    atomic_store_explicit(at, atomic_load_explicit(&b->hash_next, memory_order_relaxed), memory_order_release);
    if (m->hand == b)
        m->hand = b->all_next == b ? NULL : b->all_next;
    if (m->sweep == b)
        m->sweep = b->all_next == b ? NULL : b->all_next;
    if (m->all == b)
        m->all = b->all_next == b ? NULL : b->all_next;
    b->all_prev->all_next = b->all_next;
    b->all_next->all_prev = b->all_prev;
    m->blocks--;
}

static void reclaim(struct epoch_cb *cb)
{
    struct meta_block *b = (struct meta_block *)((char *)cb - offsetof(struct meta_block, reclaim));
    struct meta *m = b->owner;
    m->reclaiming--;
    meta_slab_give(&m->slab, b);
}

static void block_retire(struct meta *m, struct meta_block *b)
{
    INV(I4, b->pins == 0 && b->dirty_sectors == 0);
    m->reclaiming++;
    epoch_defer(m->o.epoch, &b->reclaim, reclaim);
}

void meta_evict_(struct meta *m, struct meta_block *b)
{
    hash_remove(m, b);
    block_retire(m, b);
}

/* One clean, unpinned block leaves. false: every block is pinned or dirty. */
static bool evict_one(struct meta *m)
{
    if (!m->all)
        return false;
    struct meta_block *b = m->hand ? m->hand : m->all;
    for (uint64_t i = 0; i < 2 * m->blocks; i++, b = b->all_next) {
        if (b->pins || b->dirty_sectors)
            continue;
        if (atomic_fetch_and_explicit(&b->used, (uint8_t)~META_USED_CLOCK, memory_order_relaxed) & META_USED_CLOCK)
            continue;
        m->hand = b->all_next;
        meta_mark_evicted_(m, b->off);
        meta_evict_(m, b);
        m->stats.evicted++;
        return true;
    }
    m->hand = b;
    return false;
}

/* Keeps the cache in its budget where that is possible without waiting; dirt beyond half of it starts a pass. */
static void make_room(struct meta *m)
{
    while (m->blocks >= m->limit && evict_one(m))
        ;
}

/* ---- get and put ---- */

/* Who reads this block now? */
static struct meta_load *load_find(struct meta *m, uint64_t off)
{
    struct meta_load *l = m->loads;
    while (l && !(l->off == off && l->reading))
        l = l->next;
    return l;
}

static void load_end(struct meta *m, struct meta_load *l)
{
    struct meta_load **at = &m->loads;
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
}

static int load(struct co *co, struct meta *m, struct meta_block *b)
{
    stor_event(co, m->o.store, b->kind->on_load);
    int r = stor_read_exact(co, m->o.store, (void *)b->words, m->o.block_bytes, b->off);
    if (r < 0)
        return r;
    if (b->kind->validate && !b->kind->validate(b->kind->arg, b->off, (const void *)b->words, m->o.block_bytes))
        return -EUCLEAN;
    return 0;
}

static int pin_found(struct meta_block *b, const struct meta_kind *k, struct meta_block **ret_b)
{
    if (b->kind != k)
        return -EUCLEAN;                 /* two structures claim the same place: corruption */
    b->pins++;
    *ret_b = b;
    return 0;
}

/* Reads a block that nobody has and nobody reads, into the cache unless its space was forgotten meanwhile. */
static int load_new(struct co *co, struct meta *m, const struct meta_kind *k, struct meta_load *l)
{
    meta_grow_for_(m, l->off);
    make_room(m);
    m->stats.loads++;
    struct meta_block *b = block_new(m, k, l->off);
    if (!b)
        return -ENOMEM;
    l->reading = true;
    m->loading++;
    int r = load(co, m, b);
    m->loading--;
    l->reading = false;
    co_wake_all(&l->q);
    if (r == 0 && !l->forgotten)
        hash_insert(m, b);
    else
        meta_slab_give(&m->slab, b);
    return r;
}

int meta_get(struct co *co, struct meta *m, const struct meta_kind *k, uint64_t off, struct meta_block **ret_b)
{
    ASSERT(is_aligned(off, m->o.block_bytes));
    struct meta_block *b = meta_peek(m, off);
    if (b)
        return pin_found(b, k, ret_b);
    struct meta_load l = { .off = off, .next = m->loads }, *other;
    m->loads = &l;
    int r = 0;
    while (r == 0 && !l.forgotten && !(b = meta_peek(m, off))) {
        if ((other = load_find(m, off)))
            co_wait(co, &other->q);
        else
            r = load_new(co, m, k, &l);
    }
    load_end(m, &l);
    if (l.forgotten)
        return -ESTALE;
    return r < 0 ? r : pin_found(b, k, ret_b);
}

void meta_put(struct meta *m, struct meta_block *b)
{
    ASSERT(b->pins > 0);
    b->pins--;
    meta_clean_want_(m);
}

bool meta_cached(const struct meta *m, uint64_t off, uint64_t len)
{
    for (const struct meta_load *l = m->loads; l; l = l->next)
        if (!l->forgotten && l->off < off + len && off < l->off + m->o.block_bytes)
            return true;
    if (len / m->o.block_bytes > m->blocks) {    /* shorter to look at every block */
        const struct meta_block *b = m->all;
        for (uint64_t i = 0; i < m->blocks; i++, b = b->all_next)
            if (b->off < off + len && off < b->off + m->o.block_bytes)
                return true;
        return false;
    }
    for (uint64_t at = round_down(off, m->o.block_bytes); at < off + len; at += m->o.block_bytes)
        if (hash_find(m, at))
            return true;
    return false;
}

static void forget(struct meta *m, struct meta_block *b)
{
    ASSERT(b->pins == 0);
    meta_block_clean_(m, b);
    hash_remove(m, b);
    block_retire(m, b);
}

bool meta_forget(struct meta *m, uint64_t off, uint64_t len)
{
    struct meta_block *b;
    uint64_t first = round_down(off, m->o.block_bytes);
    for (uint64_t at = first; at < off + len; at += m->o.block_bytes)
        if ((b = hash_find(m, at)) && b->pins)
            return false;
    for (uint64_t at = first; at < off + len; at += m->o.block_bytes)
        if ((b = hash_find(m, at)))
            forget(m, b);
    for (struct meta_load *l = m->loads; l; l = l->next)
        if (l->off < off + len && off < l->off + m->o.block_bytes)
            l->forgotten = true;                 /* C4 */
    meta_update_clean_(m);
    return true;
}

void meta_forget_all(struct meta *m)
{
    while (m->all)
        forget(m, m->all);
    for (struct meta_load *l = m->loads; l; l = l->next)
        l->forgotten = true;                     /* C4 */
    meta_update_clean_(m);
}

/* ---- dirt ---- */

void meta_update_clean_(struct meta *m)
{
    bool clean = m->dirty_blocks == (m->lazy ? m->dirty_counts : 0) && !m->runner;
    for (struct meta_region *r = m->regions; r && clean; r = r->next)
        clean = r->dirty_count == 0;
    atomic_store_explicit(&m->clean, clean, memory_order_release);
}

bool meta_is_clean(const struct meta *m)
{
    return atomic_load_explicit(&m->clean, memory_order_acquire);
}

void meta_block_clean_(struct meta *m, struct meta_block *b)
{
    if (!b->dirty_sectors)
        return;
    b->dirty_sectors = 0;
    if (b->dirty_prev)
        b->dirty_prev->dirty_next = b->dirty_next;
    else
        m->dirty_head = b->dirty_next;
    if (b->dirty_next)
        b->dirty_next->dirty_prev = b->dirty_prev;
    else
        m->dirty_tail = b->dirty_prev;
    b->dirty_next = b->dirty_prev = NULL;
    m->dirty_blocks--;
    m->dirty_counts -= b->kind->rank == META_COUNTS;
    meta_clean_want_(m);
}

static void background_pass(struct co *co, void *arg)
{
    struct meta *m = arg;
    int r = meta_flush(co, m);
    (void)r;                             /* a failure stays in the blocks' dirt and in I6; the next flush reports it */
    m->kicked = false;
    co_wake_all(&m->frees_q);
}

static void kick(struct meta *m)
{
    if (m->kicked || m->failed)
        return;
    m->kicked = rt_spawn(m->o.home, background_pass, m) == 0;
}

void meta_block_redirty_(struct meta *m, struct meta_block *b, uint64_t sectors)
{
    if (!sectors)
        return;
    if (!b->dirty_sectors) {
        b->dirty_prev = m->dirty_tail;
        if (m->dirty_tail)
            m->dirty_tail->dirty_next = b;
        else
            m->dirty_head = b;
        m->dirty_tail = b;
        m->dirty_blocks++;
        m->dirty_counts += b->kind->rank == META_COUNTS;
        if (!m->lazy || b->kind->rank != META_COUNTS)
            atomic_store_explicit(&m->clean, false, memory_order_release);
        if (m->dirty_blocks > m->dirty_max)
            kick(m);
    }
    b->dirty_sectors |= sectors;
}

void meta_set_lazy_counts(struct meta *m, bool on)
{
    m->lazy = on;
    meta_update_clean_(m);
}

void meta_dirty(struct meta *m, struct meta_block *b, uint32_t from, uint32_t to)
{
    ASSERT(!m->o.read_only && from < to && to <= m->o.block_bytes);
    uint32_t first = from / m->dirty_unit, last = (to - 1) / m->dirty_unit;
    uint64_t mask = (last == 63 ? ~0ull : (1ull << (last + 1)) - 1) & ~((1ull << first) - 1);
    meta_block_redirty_(m, b, mask);
}

void meta_put_word(struct meta *m, struct meta_block *b, uint32_t i, uint64_t disk_word)
{
    atomic_store_explicit(&b->words[i], disk_word, memory_order_release);
    meta_dirty(m, b, i * 8, i * 8 + 8);
}

/* A reader that takes in one of the new words has to see the odd or a later count afterwards: the stores release, its
 * loads acquire (I8). */
void meta_set_pair(struct meta *m, struct meta_block *b, uint32_t i, uint64_t x, uint64_t y)
{
    ASSERT(i % 2 == 0);
    uint32_t seq = atomic_load_explicit(&b->seq, memory_order_relaxed);
    atomic_store_explicit(&b->seq, seq + 1, memory_order_relaxed);
    atomic_store_explicit(&b->words[i], be64_word(x), memory_order_release);
    atomic_store_explicit(&b->words[i + 1], be64_word(y), memory_order_release);
    atomic_store_explicit(&b->seq, seq + 2, memory_order_release);
    meta_dirty(m, b, i * 8, i * 8 + 16);
}

void meta_region_add(struct meta *m, struct meta_region *r)
{
    r->dirty_count = 0;
    r->next = m->regions;
    m->regions = r;
}

void meta_region_remove(struct meta *m, struct meta_region *r)
{
    struct meta_region **at = &m->regions;
    while (*at && *at != r)
        at = &(*at)->next;
    if (*at)
        *at = r->next;
    meta_update_clean_(m);
}

void meta_region_put(struct meta *m, struct meta_region *r, uint64_t i, uint64_t disk_word)
{
    ASSERT(i * 8 < r->bytes && !m->o.read_only);
    atomic_store_explicit(&r->words[i], disk_word, memory_order_release);
    uint64_t bit = i * 8 / 512;
    if (!(r->dirty[bit / 64] & (1ull << (bit % 64)))) {
        r->dirty[bit / 64] |= 1ull << (bit % 64);
        r->dirty_count++;
        atomic_store_explicit(&m->clean, false, memory_order_release);
    }
}

struct meta_stats meta_stats(const struct meta *m)
{
    struct meta_stats s = m->stats;
    s.blocks = m->blocks;
    s.limit = m->limit;
    s.bytes = meta_slab_bytes(&m->slab);
    return s;
}

void meta_free_all(struct co *co, struct meta *m)
{
    if (!m)
        return;
    while (m->kicked || m->runner)
        co_yield(co);
    meta_forget_all(m);
    meta_clean_stop_(m);
    epoch_drain(co, m->o.epoch);
    ASSERT(m->reclaiming == 0 && m->frees_waiting == 0);
    meta_slab_fini(&m->slab);
    free(m->marks);
    buckets_free(m);
    free(m);
}
