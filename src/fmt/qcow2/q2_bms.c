/* SPDX-License-Identifier: MIT
 *
 * q2_bms.c: persistent bitmaps: flags and claims on the disk, closing.
 *
 * Purpose      The steps that the other files of q2_bms.h put together; and the end: exact bits in place of supersets.
 * Owns         struct q2_bms.
 * Invariants   B1..B4 of q2_bms.h
 * Order        Claim: its count | META_B_HEADER | its autoclear bit | META_B_HEADER.
 *              Close: data in place, new data, counts | META_B_BITMAPS | tables | META_B_BITMAPS | IN_USE off | META_B_BITMAPS.
 *              Whatever part of it lands, entries in use are supersets, and those that are not are exact (Q17).
 * Concurrency  Home loop. Closing: nobody else is there.
 * Failure      Close: the first error; the bitmaps stay in use, and what the disk has is still a superset.
 * Tests        tests/crash (geometries with bitmaps), tests/interop/test_bitmaps.py, faults
 */
#include "fmt/qcow2/q2_bms.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_ext.h"

void q2_bm_free(struct q2_bm *bm)
{
    free(bm->d.name);
    free(bm->d.raw);
    free(bm->table);
}

void q2_bms_free(struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    free(atomic_load(&q->im.ahead));
    atomic_store(&q->im.ahead, NULL);
    if (!m)
        return;
    for (uint32_t i = 0; i < m->count; i++)
        q2_bm_free(&m->list[i]);
    free(m->list);
    free(m->wanted);
    free(m->round);
    free(m);
    q->bms = NULL;
}

int q2_bms_tables(const struct q2_image *q, uint64_t **ret, size_t *ret_count)
{
    const struct q2_bms *m = q->bms;
    uint64_t *list = malloc((m ? (size_t)m->count : 0) * sizeof *list + 1);
    size_t n = 0;
    if (!list)
        return -ENOMEM;
    for (uint32_t i = 0; m && i < m->count; i++)
        if (m->list[i].table)
            list[n++] = m->list[i].d.table_off;
    *ret = list;
    *ret_count = n;
    return 0;
}

/* ---- regions ---- */

#define REGION_BITS_MIN 25u              /* 32 MiB */
#define REGIONS_MAX 4096u

int q2_ahead_make(const struct q2_image *q, struct q2_ahead *ret)
{
    uint64_t size = atomic_load(&q->im.size);
    unsigned bits = q->opts.bitmap_region_bytes ? (unsigned)__builtin_ctzll(q->opts.bitmap_region_bytes) : REGION_BITS_MIN;
    while (div_up(size, 1ull << bits) > REGIONS_MAX)
        bits++;
    uint64_t regions = max_u64(div_up(size, 1ull << bits), 1), words = div_up(regions, 64);
    *ret = (struct q2_ahead){ calloc(1, sizeof *ret->a + words * 8), calloc(words, 8), calloc(words, 8) };
    if (!ret->a || !ret->wanted || !ret->round) {
        q2_ahead_free(ret);
        return -ENOMEM;
    }
    ret->a->region_bits = bits;
    ret->a->regions = regions;
    return 0;
}

void q2_ahead_free(struct q2_ahead *n)
{
    free(n->a);
    free(n->wanted);
    free(n->round);
    *n = (struct q2_ahead){ 0 };
}

void q2_ahead_install(struct q2_image *q, struct q2_ahead *n)
{
    struct q2_bms *m = q->bms;
    struct q2_ahead old = { atomic_load(&q->im.ahead), m->wanted, m->round };
    for (uint32_t i = 0; i < m->count; i++)
        m->list[i].differs |= m->list[i].kept && old.a;      /* what was entered is not known any more */
    atomic_store_explicit(&q->im.ahead, n->a, memory_order_release);
    m->wanted = n->wanted;
    m->round = n->round;
    m->ahead_size = atomic_load(&q->im.size);
    *n = (struct q2_ahead){ 0 };
    q2_ahead_free(&old);
}

/* Sets in buf, which begins with bit `first`, the bits of [from, to). */
static void set_bits(uint8_t *buf, size_t bytes, uint64_t first, uint64_t from, uint64_t to)
{
    from = max_u64(from, first) - first;
    to = min_u64(max_u64(to, first) - first, (uint64_t)bytes * 8);
    for (; from < to && from % 8; from++)
        buf[from / 8] |= (uint8_t)(1u << (from % 8));
    if (from < to)
        memset(buf + from / 8, 0xff, (to - from) / 8);
    for (from = from < to ? max_u64(from, round_down(to, 8)) : to; from < to; from++)
        buf[from / 8] |= (uint8_t)(1u << (from % 8));
}

void q2_bm_fill(const struct q2_image *q, const struct fmt_bitmap *b, uint64_t first, uint8_t *buf, size_t bytes, bool ahead)
{
    const struct fmt_ahead *a = atomic_load(&q->im.ahead);
    unsigned g = b->granularity_bits;
    dirty_export(b->bits, first, buf, bytes);
    if (!ahead || !a)
        return;
    uint64_t end = min_u64(first + (uint64_t)bytes * 8, b->bits->bits);
    for (uint64_t r = (first << g) >> a->region_bits; first < end && r < a->regions && (r << a->region_bits) >> g < end; r++) {
        bool entered = atomic_load_explicit(&a->entered[r / 64], memory_order_relaxed) >> (r % 64) & 1;
        if (entered || q->bms->round[r / 64] >> (r % 64) & 1)
            set_bits(buf, bytes, first, (r << a->region_bits) >> g, min_u64(end, ((((r + 1) << a->region_bits) - 1) >> g) + 1));
    }
}

/* ---- writing ---- */

int q2_bm_write_table(struct co *co, struct q2_image *q, struct q2_bm *bm, uint64_t from, uint64_t to)
{
    from = bm->unsure ? 0 : from;
    to = bm->unsure ? bm->d.table_entries : to;
    uint64_t a = round_down(from, 64), z = round_up(to, 64);
    be64 *buf = calloc(z - a, 8);
    bm->unsure |= !buf;
    if (!buf)
        return -ENOMEM;
    for (uint64_t i = a; i < min_u64(z, bm->d.table_entries); i++)
        be64_put(&buf[i - a], bm->table[i]);
    int r = meta_write_now(co, q->meta, buf, (z - a) * 8, bm->d.table_off + a * 8);
    free(buf);
    bm->unsure = r < 0;
    return r;
}

int q2_bms_settle_counts(struct co *co, struct q2_image *q)
{
    meta_struct_begin(co, q->meta);
    int r = meta_counts_locked(co, q->meta);
    meta_struct_end(q->meta);
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_BITMAPS);
}

/* ---- flags in the directory ---- */

/* Changes the flags of the entries in buf, the directory. true: some. */
static bool change_flags(const struct q2_image *q, uint8_t *buf, uint8_t *touched, bool (*want)(const struct q2_image *q, const struct q2_bm *bm))
{
    bool any = false;
    for (uint32_t i = 0; i < q->bms->count; i++) {
        const struct q2_bm *bm = &q->bms->list[i];
        if (!bm->d.name && !bm->d.raw)
            continue;                    /* no entry, but what is left behind the last one */
        bool in_use = want(q, bm);
        if (in_use == bm->in_use)
            continue;
        be32 *flags = &((struct q2_disk_bitmap_entry *)(buf + bm->d.pos))->flags;
        be32_put(flags, (be32_get(flags) & ~Q2_BITMAP_IN_USE) | (in_use ? Q2_BITMAP_IN_USE : 0));
        touched[((uint8_t *)flags - buf) / 512] = 1;
        any = true;
    }
    return any;
}

int q2_bms_set_flags(struct co *co, struct q2_image *q, bool (*want)(const struct q2_image *q, const struct q2_bm *bm))
{
    uint64_t bytes = round_up(q->h.bitmap_dir_bytes, 512);
    uint8_t *buf = NULL, *touched = calloc(bytes / 512 + 1, 1);
    struct iovec slot;
    if (!touched || posix_memalign((void **)&buf, 4096, max_u64(bytes, 512))) {
        free(touched);
        return -ENOMEM;
    }
    int r = stor_read(co, q->im.store, iov_one(&slot, buf, bytes), q->h.bitmap_dir_off);
    bool any = r == 0 && change_flags(q, buf, touched, want);
    for (uint64_t s = 0, n; any && r == 0 && s < bytes / 512; s += n) {
        for (n = 1; touched[s] && s + n < bytes / 512 && touched[s + n]; n++)
            ;
        if (touched[s])
            r = meta_write_now(co, q->meta, buf + s * 512, n * 512, q->h.bitmap_dir_off + s * 512);
    }
    if (any && r == 0)
        r = meta_barrier(co, q->meta, META_B_BITMAPS);
    for (uint32_t i = 0; any && r == 0 && i < q->bms->count; i++)
        q->bms->list[i].in_use = want(q, &q->bms->list[i]);
    free(touched);
    free(buf);
    return r;
}

/* ---- the claim ---- */

uint32_t q2_bms_claimable(const struct q2_bms *m)
{
    uint32_t n = 0;
    while (n < m->count && !m->list[n].d.bad && !m->list[n].pub->inconsistent && !m->list[n].lost && (m->list[n].kept || !m->list[n].in_use))
        n++;
    return n;
}

struct ext_put { struct q2_image *q; uint8_t *disk; };      /* disk: what the first cluster holds */

/* A write that fails may have landed all the same: the old bytes must be back, or the next attempt would find a header that is
 * not the one it knows. */
static int put_sectors(struct co *co, void *arg, const uint8_t *buf, uint32_t from, uint32_t to)
{
    struct ext_put *p = arg;
    struct meta *meta = p->q->meta;
    int r = meta_write_now(co, meta, buf + from, to - from, from);
    if (r == 0) {
        memcpy(p->disk + from, buf + from, to - from);
        return meta_barrier(co, meta, META_B_HEADER);
    }
    int back = meta_write_now(co, meta, p->disk + from, to - from, from);
    if (back == 0)
        back = meta_barrier(co, meta, META_B_HEADER);
    if (back < 0)
        meta_stop(meta, r);
    return r;
}

/* Behind a change that is durable nothing may fail: the place is all that memory needs. */
static void take_place(struct q2_header *h, uint32_t type, uint32_t off, uint32_t len)
{
    if (type == Q2_EXT_BITMAPS) {
        h->has_bitmaps = true;
        h->bitmaps_ext_off = off;
        h->bitmaps_ext_len = len;
    } else {
        h->has_supersets = true;
        h->superset_ext_off = off;
    }
}

int q2_bms_add_ext(struct co *co, struct q2_image *q, uint32_t type, const void *data, uint32_t len)
{
    uint8_t *buf = NULL;
    uint64_t cs = q->g.cluster_size;
    uint32_t off;
    struct iovec slot;
    if (posix_memalign((void **)&buf, 4096, 2 * cs))
        return -ENOMEM;
    struct ext_put p = { q, buf + cs };
    struct q2_ext e = { type, len, data };
    co_lock(co, &q->header_mx);
    int r = stor_read(co, q->im.store, iov_one(&slot, buf, cs), 0);
    memcpy(p.disk, buf, cs);
    if (r == 0)
        r = q2_ext_add(co, buf, (uint32_t)cs, &e, put_sectors, &p, &off);
    co_unlock(&q->header_mx);
    if (r == 0)
        take_place(&q->h, type, off, len);
    free(buf);
    return r;
}

static void shift(uint32_t *off, const struct q2_ext_moved *m) { *off += *off > m->from ? m->by : 0; }

int q2_bms_move_ext(struct co *co, struct q2_image *q)
{
    uint8_t *buf = NULL;
    uint64_t cs = q->g.cluster_size;
    struct q2_ext_moved m;
    struct iovec slot;
    if (posix_memalign((void **)&buf, 4096, 2 * cs))
        return -ENOMEM;
    struct ext_put p = { q, buf + cs };
    co_lock(co, &q->header_mx);
    int r = stor_read(co, q->im.store, iov_one(&slot, buf, cs), 0);
    memcpy(p.disk, buf, cs);
    if (r == 0)
        r = q2_ext_move(co, buf, (uint32_t)cs, Q2_EXT_BITMAPS, put_sectors, &p, &m);
    if (r == 0) {
        shift(&q->h.bitmaps_ext_off, &m);
        shift(&q->h.superset_ext_off, &m);
        shift(&q->h.frontier_ext_off, &m);
    }
    co_unlock(&q->header_mx);
    free(buf);
    return r;
}

int q2_bms_claim(struct co *co, struct q2_image *q, uint32_t n)
{
    struct q2_header *h = &q->h;
    be32 payload[2] = { 0 };
    int r = 0;
    be32_put(&payload[0], n);
    be32_put(&payload[1], h->generation);
    if (!h->has_supersets)
        r = q2_bms_add_ext(co, q, Q2_EXT_SUPERSETS, payload, sizeof payload);
    else if (h->superset_count != n)
        r = q2_header_patch(co, q, &(struct q2_patch){ h->superset_ext_off, sizeof payload, payload }, 1);
    if (r < 0)
        return r;
    h->superset_count = n;
    if (h->autoclear & Q2_AUTOCLEAR_SUPERSETS)
        return 0;
    h->autoclear |= Q2_AUTOCLEAR_SUPERSETS;
    r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
    if (r < 0)
        h->autoclear &= ~Q2_AUTOCLEAR_SUPERSETS;
    return r;
}

int q2_bms_unclaim(struct co *co, struct q2_image *q)
{
    if (!(q->h.autoclear & Q2_AUTOCLEAR_SUPERSETS))
        return 0;
    q->h.autoclear &= ~Q2_AUTOCLEAR_SUPERSETS;
    int r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
    if (r < 0)
        q->h.autoclear |= Q2_AUTOCLEAR_SUPERSETS;
    return r;
}

/* ---- closing ---- */

struct closing { struct q2_image *q; uint8_t *buf; bool new_clusters; struct q2_drop_list { uint64_t *c; size_t n, cap; } drops; };

static int remember_drop(struct closing *c, uint64_t off)
{
    struct q2_drop_list *d = &c->drops;
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 64;
        uint64_t *p = realloc(d->c, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        d->c = p;
        d->cap = cap;
    }
    d->c[d->n++] = off;
    return 0;
}

/* Does entry k of the table name something that differs from the exact bits? */
static bool must_store(const struct q2_image *q, const struct q2_bm *bm, uint64_t k)
{
    const struct fmt_ahead *a = atomic_load(&q->im.ahead);
    unsigned g = bm->pub->granularity_bits;
    uint64_t from = (k * q2_bm_per_cluster(q)) << g, to = from + (q2_bm_per_cluster(q) << g);
    if (bm->differs || !a || !q->bms->claims)
        return true;
    for (uint64_t r = from >> a->region_bits; r < a->regions && r << a->region_bits < to; r++)
        if (atomic_load_explicit(&a->entered[r / 64], memory_order_relaxed) >> (r % 64) & 1)
            return true;
    return false;
}

/* The exact bits of one cluster, in place where there is one. *ret_word: the entry as it must be. */
static int store_cluster(struct co *co, struct closing *c, struct q2_bm *bm, uint64_t k, uint64_t *ret_word)
{
    struct q2_image *q = c->q;
    uint64_t per = q2_bm_per_cluster(q), word = bm->table[k];
    enum dirty_kind kind = dirty_kind_of(bm->pub->bits, k * per, per);
    if (kind != DIRTY_MIXED) {
        *ret_word = kind == DIRTY_ONES;
        return word & Q2_BME_OFF ? remember_drop(c, word & Q2_BME_OFF) : 0;
    }
    struct q2_run run = { 0 };
    if (!(word & Q2_BME_OFF)) {
        int r = q2_alloc_take(co, q, 1, &run);
        if (r < 0)
            return r;
        word = run.cluster << q->g.cluster_bits;
        if (!meta_forget(q->meta, word, q->g.cluster_size))
            return -EUCLEAN;
        c->new_clusters = true;
    }
    q2_bm_fill(q, bm->pub, k * per, c->buf, q->g.cluster_size, false);
    *ret_word = word;
    return meta_write_now(co, q->meta, c->buf, q->g.cluster_size, word & Q2_BME_OFF);
}

/* Data of one bitmap; new table words into `words`. */
static int store_data(struct co *co, struct closing *c, struct q2_bm *bm, uint64_t *words)
{
    int r = 0;
    memcpy(words, bm->table, bm->d.table_entries * sizeof *words);
    for (uint64_t k = 0; r == 0 && k < bm->d.table_entries; k++)
        if (must_store(c->q, bm, k))
            r = store_cluster(co, c, bm, k, &words[k]);
    return r;
}

static int store_table(struct co *co, struct closing *c, struct q2_bm *bm, const uint64_t *words, bool *ret_changed)
{
    int r = 0;
    uint64_t n = bm->d.table_entries;
    for (uint64_t k = 0, end; r == 0 && k < n; k = end) {
        end = min_u64(round_down(k, 64) + 64, n);
        if (!bm->unsure && !memcmp(words + k, bm->table + k, (end - k) * sizeof *words))
            continue;
        memcpy(bm->table + k, words + k, (end - k) * sizeof *words);
        *ret_changed = true;
        r = q2_bm_write_table(co, c->q, bm, k, end);
    }
    return r;
}

static bool is_stored(const struct q2_bm *bm) { return bm->kept && bm->in_use; }
static bool stays_in_use(const struct q2_image *q, const struct q2_bm *bm) { return (void)q, bm->in_use && !bm->kept; }

/* All kept bitmaps, whose entries are IN_USE. */
static int store_all(struct co *co, struct closing *c, uint64_t **words)
{
    struct q2_image *q = c->q;
    struct q2_bms *m = q->bms;
    int r = MUTANT(MUT_BITMAP_FLAG_EARLY) ? q2_bms_set_flags(co, q, stays_in_use) : 0;
    bool any = false, tables = false;
    for (uint32_t i = 0; r == 0 && i < m->count; i++) {
        struct q2_bm *bm = &m->list[i];
        if (!is_stored(bm) && !(bm->kept && MUTANT(MUT_BITMAP_FLAG_EARLY)))
            continue;
        any = true;
        words[i] = malloc(max_u64(bm->d.table_entries, 1) * sizeof **words);
        r = words[i] ? store_data(co, c, bm, words[i]) : -ENOMEM;
    }
    if (r < 0 || !any)
        return r;
    r = c->new_clusters ? q2_bms_settle_counts(co, q) : meta_barrier(co, q->meta, META_B_BITMAPS);
    for (uint32_t i = 0; r == 0 && i < m->count; i++)
        if (words[i])
            r = store_table(co, c, &m->list[i], words[i], &tables);
    if (r == 0 && tables)
        r = meta_barrier(co, q->meta, META_B_BITMAPS);
    if (r == 0)
        r = q2_bms_set_flags(co, q, stays_in_use);           /* what they say is exact now */
    return r;
}

static bool is_loaded(const struct q2_bm *bm) { return bm->pub && bm->pub->bits && !bm->pub->bad && !bm->pub->inconsistent; }

int q2_bms_close(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    struct closing c = { .q = q };
    if (!m || q->check_mode)
        return 0;
    if (q->unclean && m->waits)
        return 0;                        /* nothing was changed, and what lies there is what it was */
    bool changed = false;
    for (struct fmt_bitmap *b = q->im.bitmaps; b; b = b->next)
        changed |= b->persistent && b->changed;
    for (uint32_t i = 0; m->waits && i < m->count; i++)      /* exact bits are due, and not in place (B4); also of one that does not record */
        changed |= m->list[i].in_use && is_loaded(&m->list[i]);
    int r = changed ? q2_bms_sync(co, &q->im, NULL) : 0;     /* an earlier one has failed */
    uint64_t **words = calloc((size_t)m->count + 1, sizeof *words);
    if (r == 0 && (!words || posix_memalign((void **)&c.buf, 4096, q->g.cluster_size)))
        r = -ENOMEM;
    if (r == 0)
        r = store_all(co, &c, words);
    for (size_t i = 0; r == 0 && i < c.drops.n; i++)
        q2_alloc_drop(q, c.drops.c[i] >> q->g.cluster_bits, 1);
    for (uint32_t i = 0; words && i < m->count; i++)
        free(words[i]);
    free(words);
    free(c.buf);
    free(c.drops.c);
    return r;
}
