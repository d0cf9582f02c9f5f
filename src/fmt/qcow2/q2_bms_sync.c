/* SPDX-License-Identifier: MIT
 *
 * q2_bms_sync.c: persistent bitmaps: another set of them.
 *
 * Purpose      Makes the list in memory what the image holds: added, removed, cleared, merged, enabled, disabled, resized.
 * Owns         The new directory, tables and data until the switch; nothing is overwritten.
 * Invariants   S1  The disk holds the old set or the new one, whole. An extension across two sectors is moved into one first; where the
 *                  first cluster has no room for that, the disk holds none for a moment (Q17).
 *              S2  What is in use and claimed stays so across the switch: it moves only to the front. What is written anew is
 *                  exact and not in use; the next change of the disk marks it. Where the claim must cover less, it does
 *                  in the write that switches, or, lying in another sector, before.
 *              S3  Memory changes when the new set is durable, not before.
 * Order        Data, tables, directory, counts | META_B_SWITCH_BEFORE | extension (with the claim),
 *              autoclear bit | META_B_HEADER. Old clusters are dropped behind that (Q9).
 * Concurrency  Home loop, drained; a renewal: before any region is entered.
 * Failure      -ENOSPC, -EIO, -ENOMEM, -E2BIG: the old set stands. Only a header sector that cannot be put back stops all
 *              writing (meta_stop).
 * Tests        tests/crash, tests/interop/test_bitmaps.py, faults
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_bms.h"

struct plan {
    struct q2_image *q;
    struct byre_err *err;
    struct q2_bm *list; uint32_t count;  /* the new set */
    struct q2_taken taken;               /* for it */
    uint8_t *buf;                        /* a cluster */
    bool *lives;                         /* old entries that are in the new set with what they have */
    struct q2_ahead ahead;
    bool verbatim;                       /* repair: entries stay as they are, or leave; what leaves leaks */
    uint32_t claimed;                    /* verbatim: entries in front that were claimed */
    uint64_t dir_off, dir_bytes;
    bool lowers;                         /* fewer entries may be claimed than are */
    bool named;                          /* the disk may name the new set */
};

/* ---- clusters ---- */

/* n clusters side by side. */
static int take(struct co *co, struct plan *p, uint64_t n, uint64_t *ret_off)
{
    struct q2_run run;
    int r = q2_alloc_exact(co, p->q, n, &run);
    if (r == 0)
        r = q2_taken_keep(p->q, &p->taken, &run);
    if (r == 0)
        *ret_off = run.cluster << p->q->g.cluster_bits;
    return r;
}

/* ---- content ---- */

static int write_data(struct co *co, struct plan *p, struct q2_bm *bm)
{
    struct q2_image *q = p->q;
    const struct fmt_bitmap *b = bm->pub;
    uint64_t per = q2_bm_per_cluster(q);
    int r = 0;
    for (uint64_t k = 0; r == 0 && k < bm->d.table_entries; k++) {
        enum dirty_kind kind = dirty_kind_of(b->bits, k * per, per);
        bm->table[k] = kind == DIRTY_ONES;
        if (kind != DIRTY_MIXED)
            continue;
        q2_bm_fill(q, b, k * per, p->buf, q->g.cluster_size, false);
        r = take(co, p, 1, &bm->table[k]);
        if (r == 0)
            r = meta_write_now(co, q->meta, p->buf, q->g.cluster_size, bm->table[k]);
    }
    return r;
}

/* Whole clusters, so that nothing old is left in them. */
static int write_padded(struct co *co, struct plan *p, const void *bytes, uint64_t len, uint64_t off)
{
    uint64_t whole = round_up(len, p->q->g.cluster_size);
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, 4096, whole))
        return -ENOMEM;
    memcpy(buf, bytes, len);
    memset(buf + len, 0, whole - len);
    int r = meta_write_now(co, p->q->meta, buf, whole, off);
    free(buf);
    return r;
}

static int write_table(struct co *co, struct plan *p, struct q2_bm *bm)
{
    uint64_t n = bm->d.table_entries;
    int r = n ? take(co, p, div_up(n * 8, p->q->g.cluster_size), &bm->d.table_off) : 0;
    be64 *t = r == 0 ? malloc(max_u64(n, 1) * 8) : NULL;
    if (r == 0 && !t)
        return -ENOMEM;
    for (uint64_t i = 0; r == 0 && i < n; i++)
        be64_put(&t[i], bm->table[i]);
    if (r == 0 && n)
        r = write_padded(co, p, t, n * 8, bm->d.table_off);
    free(t);
    return r;
}

static int fits(const struct q2_image *q, const struct fmt_bitmap *b, uint64_t size, struct byre_err *err)
{
    if (q2_bm_entries(q, size, b->granularity_bits) <= div_up(Q2_BITMAP_BYTES_MAX, q->g.cluster_size))
        return 0;
    return byre_fail(err, LIMIT, "%s: bitmap '%s' would have more than %llu bytes on a disk of %" PRIu64 "; a larger granularity is needed", q->name, b->name, Q2_BITMAP_BYTES_MAX, size);
}

/* A fresh table and fresh data for what is in memory. */
static int write_content(struct co *co, struct plan *p, struct q2_bm *bm)
{
    uint64_t size = atomic_load(&p->q->im.size), n = q2_bm_entries(p->q, size, bm->pub->granularity_bits);
    if (fits(p->q, bm->pub, size, p->err))
        return -E2BIG;
    bm->table = calloc(max_u64(n, 1), sizeof *bm->table);
    if (!bm->table)
        return -ENOMEM;
    bm->d.table_entries = (uint32_t)n;
    int r = write_data(co, p, bm);
    return r < 0 ? r : write_table(co, p, bm);
}

/* ---- the new set ---- */

static int copy_entry(struct q2_bm *to, const struct q2_bm *from)
{
    *to = *from;
    to->table = NULL;
    to->d.name = from->d.name ? strdup(from->d.name) : NULL;
    to->d.raw = from->d.raw ? malloc(from->d.raw_len) : NULL;
    if (to->d.raw)
        memcpy(to->d.raw, from->d.raw, from->d.raw_len);
    if (from->table) {
        to->table = malloc(max_u64(from->d.table_entries, 1) * sizeof *to->table);
        if (to->table)
            memcpy(to->table, from->table, from->d.table_entries * sizeof *to->table);
    }
    return (from->d.name && !to->d.name) || (from->d.raw && !to->d.raw) || (from->table && !to->table) ? -ENOMEM : 0;
}

/* Can what lies on the disk stay? */
static bool stays(const struct q2_image *q, const struct fmt_bitmap *b, const struct q2_bm *old)
{
    if (!old || b->changed)
        return false;
    if (b->bad || b->inconsistent)
        return true;
    if ((old->old && b->bits) || old->unsure)
        return false;                    /* it may come to be written in place */
    if (old->d.table_entries != q2_bm_entries(q, atomic_load(&q->im.size), b->granularity_bits))
        return false;
    return !old->in_use || (old->kept && b->enabled && !old->lost);
}

static int add_bitmap(struct co *co, struct plan *p, struct fmt_bitmap *b)
{
    const struct q2_bms *m = p->q->bms;
    const struct q2_bm *old = b->slot ? &m->list[b->slot - 1] : NULL;
    struct q2_bm *bm = &p->list[p->count++];
    int r = 0;
    if (stays(p->q, b, old)) {
        r = copy_entry(bm, old);
        p->lives[b->slot - 1] = true;
    } else {
        ASSERT(b->bits);
        *bm = (struct q2_bm){ .d = { .name = strdup(b->name), .granularity_bits = (uint8_t)b->granularity_bits } };
        bm->pub = b;
        r = bm->d.name ? write_content(co, p, bm) : -ENOMEM;
    }
    bm->pub = b;
    if (r < 0 || b->bad || b->inconsistent)
        return r;
    bm->kept = b->enabled;
    bm->d.flags = (b->enabled ? Q2_BITMAP_AUTO : 0) | (bm->in_use ? Q2_BITMAP_IN_USE : 0);
    return 0;
}

/* Good ones first, so that they can be claimed; then those in use; then bad ones, as they are. */
static unsigned class_of(const struct fmt_bitmap *b) { return b->bad ? 2 : b->inconsistent; }

static int make_set(struct co *co, struct plan *p)
{
    const struct q2_bms *m = p->q->bms;
    size_t n = m->count;
    for (struct fmt_bitmap *b = p->q->im.bitmaps; b; b = b->next)
        n += b->persistent;
    p->list = calloc(n + 1, sizeof *p->list);
    p->lives = calloc((size_t)m->count + 1, sizeof *p->lives);
    int r = p->list && p->lives ? 0 : -ENOMEM;
    for (unsigned class = 0; class < 3; class++)
        for (struct fmt_bitmap *b = p->q->im.bitmaps; r == 0 && b; b = b->next)
            if (b->persistent && class_of(b) == class)
                r = add_bitmap(co, p, b);
    for (uint32_t i = 0; r == 0 && i < m->count; i++)            /* nameless ones stay */
        if (!m->list[i].d.name && m->list[i].d.raw) {
            r = copy_entry(&p->list[p->count++], &m->list[i]);
            p->lives[i] = true;
        }
    if (r == 0 && p->count > Q2_BITMAPS_MAX)
        r = byre_fail(p->err, LIMIT, "%s: %u bitmaps are the most that an image can hold", p->q->name, Q2_BITMAPS_MAX);
    return r;
}

static uint64_t entry_bytes(const struct q2_bm *bm)
{
    return bm->d.raw ? bm->d.raw_len : round_up(sizeof(struct q2_disk_bitmap_entry) + strlen(bm->d.name), 8);
}

static void emit_entry(const struct q2_bm *bm, uint8_t *at)
{
    struct q2_disk_bitmap_entry d = { .type = 1, .granularity_bits = bm->d.granularity_bits };
    if (bm->d.raw) {
        memcpy(at, bm->d.raw, bm->d.raw_len);
        be32 *flags = &((struct q2_disk_bitmap_entry *)at)->flags;
        be32_put(flags, be32_get(flags) | (bm->in_use ? Q2_BITMAP_IN_USE : 0));
        return;
    }
    be64_put(&d.table_off, bm->d.table_entries ? bm->d.table_off : 0);
    be32_put(&d.table_entries, bm->d.table_entries);
    be32_put(&d.flags, (bm->d.flags & ~Q2_BITMAP_IN_USE) | (bm->in_use ? Q2_BITMAP_IN_USE : 0));
    be16_put(&d.name_len, (uint16_t)strlen(bm->d.name));
    memcpy(at, &d, sizeof d);
    memcpy(at + sizeof d, bm->d.name, strlen(bm->d.name));
}

static int write_directory(struct co *co, struct plan *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        p->list[i].d.pos = p->dir_bytes;
        p->dir_bytes += entry_bytes(&p->list[i]);
    }
    if (!p->count)
        return 0;
    if (p->dir_bytes > Q2_BITMAP_DIR_MAX)
        return byre_fail(p->err, LIMIT, "%s: the bitmap directory would have %" PRIu64 " bytes; %u are the most", p->q->name, p->dir_bytes, Q2_BITMAP_DIR_MAX);
    uint8_t *buf = calloc(1, p->dir_bytes);
    int r = buf ? take(co, p, div_up(p->dir_bytes, p->q->g.cluster_size), &p->dir_off) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < p->count; i++)
        emit_entry(&p->list[i], buf + p->list[i].d.pos);
    if (r == 0)
        r = write_padded(co, p, buf, p->dir_bytes, p->dir_off);
    free(buf);
    return r;
}

/* ---- the switch ---- */

static int set_autoclear(struct co *co, struct q2_image *q, uint64_t set, uint64_t clear)
{
    uint64_t old = q->h.autoclear;
    q->h.autoclear = (old | set) & ~clear;
    const uint64_t changed = old ^ q->h.autoclear;
    if (!changed)
        return 0;
    int r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
    if (r < 0)
        q->h.autoclear ^= changed;       /* others may have changed other bits meanwhile */
    return r;
}

/* The extension becomes room. Its autoclear bit is off. */
static int make_padding(struct co *co, struct q2_image *q)
{
    be32 padding;
    be32_put(&padding, Q2_EXT_PADDING);
    int r = q2_header_patch(co, q, &(struct q2_patch){ q->h.bitmaps_ext_off - 8, sizeof padding, &padding }, 1);
    if (r == 0) {
        q->h.has_bitmaps = false;
        q->h.bitmaps_ext_off = 0;
    }
    return r;
}

/* No bitmap is left. */
static int switch_to_none(struct co *co, struct plan *p)
{
    struct q2_image *q = p->q;
    p->named = true;
    int r = set_autoclear(co, q, 0, Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_SUPERSETS);
    if (r == 0 && q->h.bitmaps_ext_off)
        (void)!make_padding(co, q);      /* else it stays, without the bit that makes it count */
    return r;
}

/* The extension as it was; false: there was none that counted. */
static bool old_ext(const struct q2_image *q, struct q2_disk_bitmaps_ext *ret)
{
    *ret = (struct q2_disk_bitmaps_ext){ 0 };
    be32_put(&ret->count, q->h.bitmap_count);
    be64_put(&ret->dir_bytes, q->h.bitmap_dir_bytes);
    be64_put(&ret->dir_off, q->h.bitmap_dir_off);
    return q->bms->count > 0;
}

/* Do the extension and the claim lie in one sector? */
static bool in_one_sector(const struct q2_image *q)
{
    uint32_t a = q->h.bitmaps_ext_off, z = a + (uint32_t)sizeof(struct q2_disk_bitmaps_ext) - 1;
    return a && a / 512 == z / 512 && q->h.superset_ext_off / 512 == a / 512;
}

/* Behind a change of the header: one that failed has been taken back, durably, or nothing is written any more (q2_driver.c). */
static bool may_be_named(const struct q2_image *q, int r) { return r == 0 || meta_stopped(q->meta); }

static int switch_ext(struct co *co, struct plan *p, uint32_t n)
{
    struct q2_image *q = p->q;
    struct q2_disk_bitmaps_ext d = { 0 };
    be32 claim[2] = { 0 };
    be32_put(&d.count, p->count);
    be64_put(&d.dir_bytes, p->dir_bytes);
    be64_put(&d.dir_off, p->dir_off);
    if (q->h.bitmaps_ext_off && q->h.bitmaps_ext_len != sizeof d) {      /* a damaged one becomes room */
        int r = make_padding(co, q);
        if (r < 0)
            return r;
    }
    if (!q->h.bitmaps_ext_off) {
        int r = set_autoclear(co, q, 0, Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_SUPERSETS);
        if (r == 0)
            r = q2_bms_add_ext(co, q, Q2_EXT_BITMAPS, &d, sizeof d);
        p->named = may_be_named(q, r);
        if (r == -ENOSPC)
            return byre_fail(p->err, NO_SPACE, "%s: the first cluster has no room for the bitmaps extension", q->name);
        return r < 0 ? r : set_autoclear(co, q, Q2_AUTOCLEAR_BITMAPS, 0);
    }
    uint32_t at = q->h.bitmaps_ext_off, first = min_u64(sizeof d, 512 - at % 512);
    bool torn = first < sizeof d;        /* two sectors: for a moment it must not count */
    int r = torn && !MUTANT(MUT_BITMAP_AUTOCLEAR_EARLY) ? set_autoclear(co, q, 0, Q2_AUTOCLEAR_BITMAPS) : 0;
    if (r == 0 && p->lowers && in_one_sector(q)) {           /* S2, in one write */
        be32_put(&claim[0], n);
        be32_put(&claim[1], q->h.generation);
        r = q2_header_patch(co, q, (struct q2_patch[]){ { at, sizeof d, &d }, { q->h.superset_ext_off, sizeof claim, claim } }, 2);
        if (r == 0)
            q->h.superset_count = n;
    } else if (r == 0) {
        r = q2_header_patch(co, q, &(struct q2_patch){ at, first, &d }, 1);
    }
    p->named = may_be_named(q, r);
    if (r == 0 && torn) {
        r = q2_header_patch(co, q, &(struct q2_patch){ at + first, (uint32_t)sizeof d - first, (const uint8_t *)&d + first }, 1);
        if (r < 0 && old_ext(q, &d) && q2_header_patch(co, q, &(struct q2_patch){ at, first, &d }, 1) == 0) {
            p->named = may_be_named(q, r);
            if (set_autoclear(co, q, Q2_AUTOCLEAR_BITMAPS, 0) < 0)
                return r;                /* the old set is not found any more: what it holds leaks */
        }
    }
    return r < 0 ? r : set_autoclear(co, q, Q2_AUTOCLEAR_BITMAPS, 0);
}

/* S1: other programs may have put it across two sectors. */
static int gather_ext(struct co *co, struct q2_image *q)
{
    uint32_t at = q->h.bitmaps_ext_off;
    if (!at || q->h.bitmaps_ext_len != sizeof(struct q2_disk_bitmaps_ext) || at % 512 + sizeof(struct q2_disk_bitmaps_ext) <= 512)
        return 0;
    int r = q2_bms_move_ext(co, q);
    return r == -ENOSPC ? 0 : r;
}

static int make_switch(struct co *co, struct plan *p)
{
    struct q2_image *q = p->q;
    struct q2_bms new = { .list = p->list, .count = p->count };
    uint32_t n = p->verbatim ? p->claimed : q2_bms_claimable(&new);
    bool claimed = q->h.autoclear & Q2_AUTOCLEAR_SUPERSETS;
    int r = p->count ? gather_ext(co, q) : 0;
    if (r < 0)
        return r;
    p->lowers = claimed && n < q->h.superset_count && n < p->count;
    if (p->lowers && !in_one_sector(q))                      /* S2 */
        r = q2_bms_claim(co, q, n);
    if (r < 0)
        return r;
    return p->count ? switch_ext(co, p, n) : switch_to_none(co, p);
}

/* The new set is known, its content is written. */
static int write_set(struct co *co, struct plan *p)
{
    struct q2_image *q = p->q;
    int r = write_directory(co, p);
    if (r < 0)
        return r;
    meta_struct_begin(co, q->meta);
    r = meta_counts_locked(co, q->meta);
    if (r == 0 && !MUTANT(MUT_BITMAP_SWITCH_EARLY))
        r = meta_barrier(co, q->meta, META_B_SWITCH_BEFORE);
    if (r == 0)
        r = make_switch(co, p);
    meta_struct_end(q->meta);
    return r;
}

static int write_all(struct co *co, struct plan *p)
{
    int r = make_set(co, p);
    return r < 0 ? r : write_set(co, p);
}

/* ---- memory follows ---- */

static void drop_table(struct q2_image *q, const struct q2_bm *bm)
{
    uint32_t bits = q->g.cluster_bits;
    for (uint64_t k = 0; bm->table && k < bm->d.table_entries; k++)
        if (bm->table[k] & Q2_BME_OFF)
            q2_alloc_drop(q, (bm->table[k] & Q2_BME_OFF) >> bits, 1);
    if (bm->table && bm->d.table_entries)        /* as a table: a scrub may be reading it */
        q2_alloc_drop_table(q, bm->d.table_off >> bits, div_up(8ull * bm->d.table_entries, q->g.cluster_size));
}

static void commit(struct plan *p)
{
    struct q2_image *q = p->q;
    struct q2_bms *m = q->bms;
    uint64_t cs = q->g.cluster_size, old_off = q->h.bitmap_dir_off, old_bytes = q->h.bitmap_dir_bytes;
    q->h.bitmap_count = p->count;
    q->h.bitmap_dir_off = p->dir_off;
    q->h.bitmap_dir_bytes = p->dir_bytes;
    q2_fixed_update(q);
    if (m->count && !p->verbatim)
        q2_alloc_drop_table(q, old_off >> q->g.cluster_bits, div_up(old_bytes, cs));
    for (uint32_t i = 0; i < m->count; i++) {
        if (!p->lives[i] && !p->verbatim)
            drop_table(q, &m->list[i]);
        q2_bm_free(&m->list[i]);
    }
    free(m->list);
    m->list = p->list;
    m->count = p->count;
    m->waits = false;
    p->list = NULL;
    p->count = 0;
    for (uint32_t i = 0; i < m->count; i++)
        if (m->list[i].pub) {
            m->list[i].pub->slot = i + 1;
            m->list[i].pub->changed = false;
        }
}

static void plan_fini(struct plan *p)
{
    q2_taken_end(p->q, &p->taken, !p->named);
    for (uint32_t i = 0; i < p->count; i++)
        q2_bm_free(&p->list[i]);
    free(p->list);
    free(p->lives);
    free(p->buf);
    q2_ahead_free(&p->ahead);
}

/* What will be dropped must be known before the switch: tables of entries that leave. */
static int read_leaving(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    bool *stay = calloc((size_t)m->count + 1, sizeof *stay);
    int r = stay ? 0 : -ENOMEM;
    for (struct fmt_bitmap *b = q->im.bitmaps; stay && b; b = b->next)
        if (b->slot)
            stay[b->slot - 1] = true;
    for (uint32_t i = 0; r == 0 && i < m->count; i++) {
        if (stay[i] || m->list[i].d.bad)
            continue;
        r = q2_bm_read_table(co, q, &m->list[i]);
        if (r == -EUCLEAN)
            r = 0;                       /* what a damaged table names is left to the check */
    }
    free(stay);
    return r;
}

static bool any_records(const struct q2_image *q)
{
    for (const struct fmt_bitmap *b = q->im.bitmaps; b; b = b->next)
        if (b->persistent && b->enabled && !b->bad && !b->inconsistent)
            return true;
    return false;
}

/* The old set stands, and the disk may have another size than it, or be longer than what was entered stands for: such bitmaps can no
 * longer be followed. */
static void failed(struct co *co, struct q2_image *q)
{
    struct q2_bms *m = q->bms;
    uint64_t size = atomic_load(&q->im.size);
    bool lost = false, longer = size > m->ahead_size;
    for (uint32_t i = 0; i < m->count; i++) {
        struct q2_bm *bm = &m->list[i];
        if (!bm->kept || (!longer && bm->d.table_entries == q2_bm_entries(q, size, bm->d.granularity_bits)))
            continue;
        lost = bm->pub->changed = true;
        bm->kept = false;
    }
    int r = lost ? q2_bms_unclaim(co, q) : 0;
    if (lost)
        m->claims = false;
    if (r < 0)
        meta_stop(q->meta, r);
}

int q2_bms_renew(struct co *co, struct q2_image *q)
{
    struct plan p = { .q = q };
    int r = posix_memalign((void **)&p.buf, 4096, q->g.cluster_size) ? -ENOMEM : write_all(co, &p);
    if (r == 0)
        commit(&p);
    plan_fini(&p);
    return r;
}

static int sync_with(struct co *co, struct plan *p)
{
    struct q2_image *q = p->q;
    int r = posix_memalign((void **)&p->buf, 4096, q->g.cluster_size) ? -ENOMEM : read_leaving(co, q);
    if (r == 0 && any_records(q))
        r = q2_ahead_make(q, &p->ahead);
    if (r == 0)
        r = write_all(co, p);
    if (r < 0) {
        failed(co, q);
        return r;
    }
    commit(p);
    q2_ahead_install(q, &p->ahead);      /* what is new is not in use yet: the next change marks it */
    q->bms->marked = false;
    return 0;
}

int q2_bms_sync(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (q->g.version < 3)
        return byre_fail(err, NOT_SUPPORTED, "%s: version 2 images cannot keep bitmaps", q->name);
    if (q->failed)
        return byre_fail(err, Q2_CORRUPT, "%s: the image is corrupt", q->name);
    if (!q->bms) {
        q->bms = calloc(1, sizeof *q->bms);
        if (!q->bms)
            return byre_fail(err, NOMEM, "%s: bitmaps", q->name);
    }
    struct byre_err why = { 0 };
    struct plan p = { .q = q, .err = &why };
    int r = sync_with(co, &p);
    plan_fini(&p);
    if (r < 0 && why.code)
        return byre_fail_code(err, LIMIT, r, "%s", why.text);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the bitmaps cannot be stored: %s", q->name, strerror(-r)) : 0;
}

/* ---- repair ---- */

/* The old set as it is on the disk, and of it what stays. */
static int verbatim_sets(struct plan *p, const struct q2_bitmap *list, uint32_t count)
{
    struct q2_bms *m = p->q->bms;
    bool claim = p->q->h.has_supersets && p->q->h.autoclear & Q2_AUTOCLEAR_SUPERSETS;
    m->list = calloc((size_t)count + 1, sizeof *m->list);
    p->list = calloc((size_t)count + 1, sizeof *p->list);
    p->lives = calloc((size_t)count + 1, sizeof *p->lives);
    if (!m->list || !p->list || !p->lives)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        struct q2_bm old = { .d = list[i], .in_use = list[i].flags & Q2_BITMAP_IN_USE };
        int r = copy_entry(&m->list[m->count++], &old);
        if (r == 0 && !list[i].bad) {
            r = copy_entry(&p->list[p->count++], &old);
            p->claimed += claim && i < p->q->h.superset_count;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

int q2_bms_drop_bad(struct co *co, struct q2_image *q, const struct q2_bitmap *list, uint32_t count, struct byre_err *err)
{
    struct plan p = { .q = q, .verbatim = true };
    uint64_t frontier = q->opts.frontier_bytes;
    ASSERT(!q->bms);                     /* repair, before the bitmaps are opened */
    q->bms = calloc(1, sizeof *q->bms);
    int r = q->bms ? verbatim_sets(&p, list, count) : -ENOMEM;
    if (r == 0 && !q->alloc)             /* repair of an image that was left dirty */
        r = q2_alloc_new(co, q);
    q->opts.frontier_bytes = 1;          /* no more than is needed */
    if (r == 0)
        r = write_set(co, &p);
    if (r == 0)
        commit(&p);
    q->opts.frontier_bytes = frontier;
    plan_fini(&p);
    q2_bms_free(q);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the bitmap directory cannot be written: %s", q->name, strerror(-r)) : 0;
}

/* ---- before a resize ---- */

static bool wants_all(const struct q2_image *q, const struct q2_bm *bm)
{
    (void)q;
    return bm->in_use || bm->d.raw || bm->d.name;
}

int q2_bms_fit(struct fmt_image *im, uint64_t size, struct byre_err *err)
{
    int r = 0;
    for (const struct fmt_bitmap *b = im->bitmaps; r == 0 && b; b = b->next)
        if (b->persistent && !b->bad && !b->inconsistent)
            r = fits(q2_of(im), b, size, err);
    return r;
}

int q2_bms_resizing(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    struct q2_bms *m = q->bms;
    if (!m || !m->count)
        return 0;
    uint32_t n = q2_bms_claimable(m);
    int r = n ? q2_bms_claim(co, q, n) : 0;
    if (r == -ENOSPC)
        r = 0;                           /* nobody learns that they are supersets */
    if (r == 0)
        r = q2_bms_set_flags(co, q, wants_all);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the bitmaps cannot be marked in use: %s", q->name, strerror(-r)) : 0;
}
