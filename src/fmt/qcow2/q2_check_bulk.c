/* SPDX-License-Identifier: MIT
 *
 * q2_check_bulk.c: check of whole tables on all cores.
 *
 * Purpose      An L2 table in which nothing is wrong is counted by a worker of the CPU pool, in runs of entries that follow
 *              one another; any other table is left as it is, for the walk to tell entry by entry.
 * Owns         k->bulk: references counted by each worker, until q2_bulk_end adds them up.
 * Invariants   B1 A table is counted as a whole or not at all, and with the same numbers as q2_check.c counts.
 *              B2 A table that has a finding is never counted here: findings come from one place, in one order.
 *              B3 What the workers hold together stays below 2 bytes per cluster and 8 MiB: a worker that finds more
 *                 gives its counts away before it goes on.
 * Order        Reads only.
 * Concurrency  Workers read k->stored and k->g, which nobody changes meanwhile, and write to their own k->bulk[].
 * Failure      -ENOMEM.
 * Tests        q2_check_test.c (the same image with and without workers), tests/interop/test_q2_check.py
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/iov.h"
#include "base/bitmap.h"
#include "fmt/qcow2/q2_check_priv.h"

#define WORKERS_ROOM (8u << 20)

/* ---- L2 tables ---- */

/* Entries [i, i+n) of a table: neighbours on the disk, with the same flags. n 1 for a compressed cluster. */
struct run { uint64_t raw, first, n; };          /* first: cluster; n 0: nothing is referenced by this entry */

struct table {
    const struct q2_checker *k;
    const be64 *word;
    unsigned words;                              /* per entry: 2 with subclusters */
    uint64_t entries, allowed, limit;            /* bits an entry may have; clusters that may be named */
    bool active;
};

static struct table table_of(const struct q2_checker *k, const struct q2_ref *t, const uint8_t *data)
{
    const struct q2_geom *g = k->g;
    uint64_t offsets = Q2_L2E_OFF & ~(g->cluster_size - 1);
    return (struct table){
        .k = k, .word = (const be64 *)data, .words = g->l2_entry_bytes / 8, .entries = g->cluster_size / g->l2_entry_bytes, .active = t->active,
        .allowed = Q2_E_COPIED | offsets | (g->zero_clusters ? Q2_E_ZERO : 0),
        .limit = min_u64(k->clusters, (offsets >> g->cluster_bits) + 1),
    };
}

static uint64_t first_half(const struct table *t, uint64_t i) { return be64_get(&t->word[i * t->words]); }

/* May an entry with this first half have the second half that it has? */
static bool subclusters_agree(const struct table *t, uint64_t i, uint64_t raw)
{
    uint64_t bits = t->words == 2 ? be64_get(&t->word[2 * i + 1]) : 0;
    if (raw & Q2_E_COMPRESSED)
        return !bits;
    return !(bits & bits >> 32 & Q2_SUB_ALL) && (raw & Q2_L2E_OFF || !(bits & Q2_SUB_ALL));
}

/* The run that begins at entry i; how many entries it takes, 0: this entry is not sound. */
static uint64_t next_run(const struct table *t, uint64_t i, struct run *ret)
{
    const struct q2_geom *g = t->k->g;
    uint64_t raw = first_half(t, i), n = 1;
    *ret = (struct run){ .raw = raw };
    if (t->words == 2 && !subclusters_agree(t, i, raw))
        return 0;
    if (raw & Q2_E_COMPRESSED) {
        uint64_t off = raw & g->coff_mask, bytes = ((raw >> g->csize_shift & g->csize_mask) + 1) * 512 - off % 512;
        ret->first = off >> g->cluster_bits;
        ret->n = ((off + bytes - 1) >> g->cluster_bits) - ret->first + 1;
        return !(raw & Q2_E_COPIED) && !q2_outside(g, t->k->file_bytes, off, bytes);
    }
    if (raw & ~t->allowed)
        return 0;
    if (!(raw & Q2_L2E_OFF))
        return 1;
    ret->first = (raw & Q2_L2E_OFF) >> g->cluster_bits;
    if (ret->first >= t->limit)
        return 0;
    uint64_t most = min_u64(t->entries - i, t->limit - ret->first);
    for (uint64_t next = raw + g->cluster_size; n < most && first_half(t, i + n) == next; next += g->cluster_size, n++)
        if (t->words == 2 && !subclusters_agree(t, i + n, next))
            return 0;
    ret->n = n;
    return n;
}

static bool run_is_sound(const struct table *t, const struct run *r)
{
    if (!t->active || r->raw & Q2_E_COMPRESSED || !r->n)
        return true;
    return r->raw & Q2_E_COPIED ? q2_counts_all_one(&t->k->stored, r->first, r->n) : q2_counts_none_one(&t->k->stored, r->first, r->n);
}

static bool table_is_sound(const struct table *t)
{
    struct run r;
    for (uint64_t i = 0, n; i < t->entries; i += n) {
        n = next_run(t, i, &r);
        if (!n || !run_is_sound(t, &r))
            return false;
    }
    return true;
}

static void count_stats(struct q2_bulk *b, const struct run *r, uint64_t *next)
{
    bool compressed = r->raw & Q2_E_COMPRESSED;
    uint64_t n = compressed ? 1 : r->n;
    b->allocated += n;
    b->compressed += compressed;
    b->fragmented += compressed || (*next && *next != r->first);
    if (!compressed)
        *next = r->first + r->n;
}

int q2_bulk_table(void *arg, unsigned worker, const struct q2_ref *ref, const uint8_t *data)
{
    struct q2_checker *k = arg;
    struct q2_bulk *b = &k->bulk[worker];
    struct table t = table_of(k, ref, data);
    struct run r;
    uint64_t next = 0;
    if (mem_is_zero(data, k->g->cluster_size))
        return 1;
    if (!table_is_sound(&t))
        return 0;
    for (uint64_t i = 0, n; i < t.entries; i += n) {
        n = next_run(&t, i, &r);
        if (!r.n)
            continue;
        if (t.active)
            count_stats(b, &r, &next);
        int rc = q2_counts_add_run(&b->refs, r.first, r.n, ref->weight);
        if (rc)
            return rc;
    }
    return 1;
}

/* B3 */
int q2_bulk_worked(void *arg, unsigned worker)
{
    struct q2_checker *k = arg;
    struct q2_bulk *b = &k->bulk[worker];
    if (b->refs.data_bytes <= (WORKERS_ROOM + 2 * k->clusters) / k->workers)
        return 0;
    return q2_counts_absorb(&k->refs, &b->refs);
}

int q2_bulk_begin(struct q2_checker *k, unsigned cores)
{
    uint64_t directory = (k->clusters / Q2_COUNTS_CHUNK + 2) * sizeof(struct q2_counts_chunk);
    /* Extended L2 entries have rules of their own; without all stored counts no flag can be judged here. */
    if (k->one_by_one || !mem_is_zero(k->rt_bad, bitmap_words(k->rt_entries + 1) * 8))
        return 0;
    k->workers = (unsigned)min_u64(min_u64(cores, FMT_PIECES_WORKERS_MAX), WORKERS_ROOM / directory);
    k->bulk = calloc(k->workers + 1, sizeof *k->bulk);
    if (!k->bulk)
        return -ENOMEM;
    for (unsigned i = 0; i < k->workers; i++)
        if (q2_counts_init(&k->bulk[i].refs, k->clusters + 1))
            return -ENOMEM;
    return 0;
}

int q2_bulk_end(struct q2_checker *k)
{
    for (unsigned i = 0; i < k->workers; i++) {
        struct q2_bulk *b = &k->bulk[i];
        k->res.allocated_clusters += b->allocated;
        k->res.fragmented_clusters += b->fragmented;
        k->res.compressed_clusters += b->compressed;
        int rc = q2_counts_absorb(&k->refs, &b->refs);
        if (rc)
            return rc;
    }
    q2_bulk_fini(k);
    return 0;
}

void q2_bulk_fini(struct q2_checker *k)
{
    for (unsigned i = 0; k->bulk && i < k->workers; i++)
        q2_counts_fini(&k->bulk[i].refs);
    free(k->bulk);
    k->bulk = NULL;
    k->workers = 0;
}

/* ---- refcount blocks ---- */

/* The numbers of one chunk, which may lie in several blocks one behind the other at `from`. */
static int stored_chunk(struct q2_checker *k, uint64_t chunk, const uint8_t *from)
{
    uint64_t first = chunk * Q2_COUNTS_CHUNK;
    if (k->g->refcount_order == 4)
        return q2_counts_load16(&k->stored, chunk, from);
    for (uint64_t i = 0; i < Q2_COUNTS_CHUNK; i++) {
        uint64_t v = q2_refcount_get(k->g, from, i);
        if (v && q2_counts_set(&k->stored, first + i, min_u64(v, Q2_STORED_LARGE)))
            return -ENOMEM;
    }
    return 0;
}

int q2_bulk_stored(struct q2_checker *k, struct fmt_piece *p)
{
    uint64_t per = 1ull << k->g->block_bits, first = p->tag * per, n = p->len / k->g->cluster_size;
    uint64_t end = min_u64(first + n * per, k->clusters);
    /* Only chunks that lie in this piece as a whole: no other thread touches them. */
    for (uint64_t c = round_up(first, Q2_COUNTS_CHUNK); c + Q2_COUNTS_CHUNK <= end; c += Q2_COUNTS_CHUNK) {
        const uint8_t *from = p->data + ((c - first) << k->g->refcount_order) / 8;
        int rc = mem_is_zero(from, ((uint64_t)Q2_COUNTS_CHUNK << k->g->refcount_order) / 8) ? 0 : stored_chunk(k, c / Q2_COUNTS_CHUNK, from);
        if (rc)
            return rc;
    }
    /* A block is done if all its chunks are. */
    for (uint64_t i = 0; i < n; i++) {
        uint64_t from = round_down(first + i * per, Q2_COUNTS_CHUNK), to = round_up(first + (i + 1) * per, Q2_COUNTS_CHUNK);
        if (from >= first && to <= end)
            bitmap_set(p->marks, i);
    }
    return 0;
}
