/* SPDX-License-Identifier: MIT
 *
 * qed.c: QED files for the crash workloads, and a second opinion on them, both from the specification alone.
 *
 * Purpose      The initial image of a geometry with tables of `table` clusters; what a crash has left of it.
 * Owns         Nothing.
 * Invariants   B1  Every kind of entry a workload may meet is there: data, zero, absent; nothing is lost unless the geometry is unclean, or full of
 *                  holes.
 * Order        None.
 * Concurrency  One thread.
 * Failure      Aborts: the simulated disk has room.
 * Tests        tests/crash: mutants
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/endian.h"
#include "sim/image.h"
#include "sim/mem.h"
#include "sim/model.h"

enum { F_BACKING = 1, F_NEED_CHECK = 2, F_RAW = 4 };

/* ---- builder ---- */

struct build {
    const struct sim_geom *g;
    struct sim_disk *d;
    struct sim_image *im;
    uint64_t cs, next;                   /* bytes of a cluster; next free cluster */
};

static void put(struct build *b, uint64_t off, const void *buf, uint64_t len)
{
    if (sim_disk_write(b->d, off, buf, len) != 0)
        abort();
}

static void put64(struct build *b, uint64_t off, uint64_t v)
{
    le64 x;
    le64_put(&x, v);
    put(b, off, &x, 8);
}

static void put32(struct build *b, uint64_t off, uint32_t v)
{
    le32 x;
    le32_put(&x, v);
    put(b, off, &x, 4);
}

static uint64_t take(struct build *b, uint64_t n)
{
    uint64_t at = b->next * b->cs;
    b->next += n;
    return at;
}

static uint64_t data_cluster(struct build *b, uint64_t guest)
{
    uint8_t sector[SIM_SECTOR];
    uint64_t at = take(b, 1);
    for (uint64_t i = 0; i < b->cs; i += SIM_SECTOR) {
        sim_sector_fill(sector, SIM_GEN_FIRST, (guest + i) / SIM_SECTOR);
        put(b, at + i, sector, sizeof sector);
    }
    return at;
}

/* A cluster that nothing names, full of old bytes. */
static void lose(struct build *b)
{
    uint8_t sector[SIM_SECTOR];
    uint64_t at = take(b, 1);
    b->im->lost += !b->g->unclean;
    for (uint64_t i = 0; i < b->cs; i += SIM_SECTOR) {
        sim_sector_fill(sector, SIM_GEN_JUNK, 100000 + (at + i) / SIM_SECTOR);
        put(b, at + i, sector, sizeof sector);
    }
}

static uint64_t entry_of(struct build *b, uint64_t guest)
{
    uint64_t i = guest / b->cs, kind = (i + i / 8) % 8, first = guest / SIM_SECTOR;
    bool data = kind == 0 || kind == 2 || kind == 4 || kind == 7, zero = b->g->zeros && (kind == 3 || kind == 6);
    for (uint64_t s = first; (data || zero) && s < first + b->cs / SIM_SECTOR && s < b->im->sectors; s++)
        b->im->gens[s] = data ? SIM_GEN_FIRST : 0;
    return data ? data_cluster(b, guest) : zero;
}

/* The tables of the other windows are still to be made; of a geometry with `tail` they are there, too. */
static bool populated(const struct sim_geom *g, uint64_t guest)
{
    for (unsigned i = 0; i < (g->tail ? g->windows : 1); i++)
        if (guest >= g->window[i].off && guest < g->window[i].off + g->window[i].len / 2)
            return true;
    return false;
}

static bool loses(const struct sim_geom *g, uint64_t cluster) { return (g->unclean && cluster % 5 == 1) || (g->tail && cluster % 3 == 0); }

/* One L2 table, at its data: in front of it, or behind. 0: it would be empty. */
static uint64_t l2_table(struct build *b, uint64_t from, uint64_t end)
{
    uint64_t *entries = sim_mem_alloc((end - from) / b->cs * 8 + 8), l2 = 0, lost = 0;
    for (uint64_t guest = from; guest < end; guest += b->cs) {
        if (!populated(b->g, guest))
            continue;
        if (!l2)
            l2 = b->g->tail ? 1 : take(b, b->g->table);
        entries[(guest - from) / b->cs] = entry_of(b, guest);
        if (loses(b->g, guest / b->cs) && lost++ < 3)
            lose(b);
    }
    if (l2 == 1)
        l2 = take(b, b->g->table);
    for (uint64_t i = 0; l2 && i < (end - from) / b->cs; i++)
        if (entries[i])
            put64(b, l2 + i * 8, entries[i]);
    sim_mem_free(entries);
    return l2;
}

static uint64_t tables(struct build *b)
{
    uint64_t span = b->cs * (b->cs * b->g->table / 8), l1 = b->g->tail ? 0 : take(b, b->g->table), l2[64];
    ASSERT(b->g->size <= 64 * span);
    for (uint64_t k = 0; k * span < b->g->size; k++)
        l2[k] = l2_table(b, k * span, min_u64((k + 1) * span, b->g->size));
    if (!l1)
        l1 = take(b, b->g->table);
    for (uint64_t k = 0; k * span < b->g->size; k++)
        put64(b, l1 + k * 8, l2[k]);
    return l1;
}

void sim_qed_build(struct sim_disk *d, struct sim_image *im)
{
    const struct sim_geom *g = im->g;
    struct build b = { .g = g, .d = d, .im = im, .cs = 1ull << g->cluster_bits, .next = 1 };
    uint64_t l1 = tables(&b);
    put(&b, 0, "QED", 4);
    put32(&b, 4, 1u << g->cluster_bits);
    put32(&b, 8, g->table);
    put32(&b, 12, 1);
    put64(&b, 16, (g->backing ? F_BACKING | F_RAW : 0) | (g->unclean ? F_NEED_CHECK : 0));
    put64(&b, 40, l1);
    put64(&b, 48, g->size);
    if (g->backing) {
        put32(&b, 56, 64);
        put32(&b, 60, (uint32_t)strlen(SIM_BASE_NAME));
        put(&b, 64, SIM_BASE_NAME, strlen(SIM_BASE_NAME));
    }
    if (sim_disk_set_len(d, b.next * b.cs) < 0)
        abort();
}

/* ---- audit ---- */

struct audit {
    const struct sim_disk *d;
    struct sim_audit *r;
    uint64_t cs, table, clusters;
    uint8_t *owned;
};

static uint64_t u64(const struct audit *a, uint64_t off)
{
    le64 x = { { 0 } };
    if (range_inside(off, 8, a->d->len))
        memcpy(&x, a->d->data + off, 8);
    return le64_get(&x);
}

static uint64_t u32(const struct audit *a, uint64_t off) { return u64(a, off) & UINT32_MAX; }

/* n clusters from byte off on have an owner. false: they are not in the file. */
static bool own(struct audit *a, uint64_t off, uint64_t n, const char *what)
{
    uint64_t first = off / a->cs;
    if (off % a->cs || !first || first > a->clusters || n > a->clusters - first) {
        a->r->outside++;
        sim_audit_note(a->r, "%s at %#" PRIx64 " lies outside the file, or not on a cluster", what, off);
        return false;
    }
    for (uint64_t c = first; c < first + n; c++) {
        if (a->owned[c])
            sim_audit_note(a->r, "%s at %#" PRIx64 " is in use already", what, off);
        a->r->low += a->owned[c];                /* two references where one may be */
        a->owned[c] = 1;
    }
    return true;
}

static void look(struct audit *a)
{
    uint64_t l1 = u64(a, 40), n = a->table * a->cs / 8;
    a->owned[0] = 1;
    if (!own(a, l1, a->table, "the L1 table"))
        return;
    for (uint64_t k = 0; k < n; k++) {
        uint64_t l2 = u64(a, l1 + k * 8);
        if (!l2 || !own(a, l2, a->table, "an L2 table"))
            continue;
        for (uint64_t i = 0; i < n; i++)
            if (u64(a, l2 + i * 8) > 1)
                own(a, u64(a, l2 + i * 8), 1, "data");
    }
    for (uint64_t c = 0; c < a->clusters; c++)
        a->r->leaks += !a->owned[c];
}

bool sim_qed_audit(const struct sim_disk *d, struct sim_audit *r)
{
    struct audit a = { .d = d, .r = r };
    if (d->len < 64 || memcmp(d->data, "QED", 4) != 0)
        return false;
    memset(r, 0, sizeof *r);
    a.cs = u32(&a, 4);
    a.table = u32(&a, 8);
    r->marked = u64(&a, 16) & F_NEED_CHECK;
    r->broken = !a.cs || !a.table || a.cs > 1u << 26 || a.table > 16;
    if (r->broken) {
        sim_audit_note(r, "no header");
        return true;
    }
    a.clusters = d->len / a.cs;
    a.owned = sim_mem_alloc(a.clusters + 1);
    look(&a);
    sim_mem_free(a.owned);
    return true;
}
