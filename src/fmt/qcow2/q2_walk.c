/* SPDX-License-Identifier: MIT
 *
 * q2_walk.c: the one walk over all references of an image.
 *
 * Purpose      Check, repair and everything else that must know who points where.
 * Owns         The tables it holds while it walks: one L1 table (at most 32 MiB), the ring of pieces (at most 16 MiB).
 * Invariants   I1 Time and reads are linear in the length of the file: an L2 table that snapshots share is read once
 *                 and told with its weight; tables of the active disk, L1 tables of snapshots and bitmap tables have
 *                 a budget that no sound image can exceed, because there they lie apart from one another.
 *              I2 No value found in the image ends the walk.
 * Order        Reads only.
 * Concurrency  One coroutine, with reads ahead on the same loop; bulk() of the visitor on threads of the CPU pool.
 * Failure      Unreadable tables are told as faults.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py, fuzz/qcow2_open.c
 */
#include "fmt/qcow2/q2_walk.h"

#include <stdlib.h>

#include "base/bitmap.h"
#include "fmt/pieces.h"
#include "fmt/qcow2/q2_counts.h"

#define L1E_RESERVED 0x7f000000000001ffull
#define L2E_RESERVED 0x3f000000000001feull
#define BME_RESERVED 0xff000000000001feull
#define RTE_RESERVED 0x1ffull
#define BUDGET_SLACK (16ull << 20)
#define HOST_END (1ull << 63)

struct walker {
    const struct q2_walk *w;
    uint64_t piece_max;
    uint64_t budget;                 /* bytes of tables that may still be read in this part */
    const be64 *l1; uint64_t l1_entries, l1_off, at;
    struct q2_counts l2refs;         /* per cluster: how many snapshot L1 entries name it as an L2 table */
    uint32_t list_at; uint64_t entry_at;
    bool budget_told;
};

const char *q2_ref_name(enum q2_ref_kind k)
{
    static const char *const names[] = {
        [Q2_REF_HEADER] = "header", [Q2_REF_L1] = "L1 table", [Q2_REF_L2] = "L2 table", [Q2_REF_DATA] = "data cluster",
        [Q2_REF_ZERO] = "zero cluster", [Q2_REF_COMPRESSED] = "compressed cluster", [Q2_REF_SNAPSHOTS] = "snapshot table",
        [Q2_REF_CRYPTO] = "encryption header", [Q2_REF_BITMAP_DIR] = "bitmap directory", [Q2_REF_BITMAP_TABLE] = "bitmap table",
        [Q2_REF_BITMAP_DATA] = "bitmap data", [Q2_REF_RT] = "refcount table", [Q2_REF_RB] = "refcount block",
    };
    return names[k];
}

bool q2_outside(const struct q2_geom *g, uint64_t file_bytes, uint64_t off, uint64_t bytes)
{
    uint64_t end;
    return add_overflows(off, bytes, &end) || end >= HOST_END || (end > file_bytes && end - file_bytes >= g->cluster_size);
}

static int tell(struct co *co, struct walker *k, struct q2_ref *r)
{
    r->outside = q2_outside(k->w->g, k->w->file_bytes, r->off, r->bytes);
    return k->w->v->ref(co, k->w->arg, r);
}

/* Shows a mapping entry as such. */
static int show(struct co *co, struct walker *k, struct q2_ref *r)
{
    if (!k->w->v->entry)
        return 0;
    r->outside = r->off && q2_outside(k->w->g, k->w->file_bytes, r->off, r->bytes);
    return k->w->v->entry(co, k->w->arg, r);
}

static void fault(struct walker *k, enum q2_walk_fault f, const struct q2_ref *r, int rc)
{
    k->w->v->fault(k->w->arg, f, r, rc);
}

/* May `bytes` more of tables be read? */
static bool afford(struct walker *k, uint64_t bytes, const struct q2_ref *r)
{
    if (bytes <= k->budget) {
        k->budget -= bytes;
        return true;
    }
    if (!k->budget_told)
        fault(k, Q2_WALK_BUDGET, r, 0);
    k->budget_told = true;
    return false;
}

/* A file that grows meanwhile may come to hold more tables than it was long. */
static void set_budget(struct walker *k)
{
    k->budget = k->w->open_ended ? 2 * k->w->file_bytes + 4 * BUDGET_SLACK : k->w->file_bytes + BUDGET_SLACK;
    k->budget_told = false;
}

static int one_region(struct co *co, struct walker *k, enum q2_ref_kind kind, uint64_t off, uint64_t bytes, uint64_t index)
{
    struct q2_ref r = { .kind = kind, .off = off, .bytes = bytes, .weight = 1, .index = index };
    return bytes ? tell(co, k, &r) : 0;
}

/* ---- L2 tables ---- */

static int compressed_entry(struct co *co, struct walker *k, struct q2_ref *r)
{
    const struct q2_geom *g = k->w->g;
    uint64_t sectors = (r->raw >> g->csize_shift & g->csize_mask) + 1;
    r->kind = Q2_REF_COMPRESSED;
    r->off = r->raw & g->coff_mask;
    r->bytes = sectors * 512 - r->off % 512;
    int rc = show(co, k, r);
    if (!rc && r->raw & Q2_E_COPIED)
        fault(k, Q2_WALK_COPIED_COMPRESSED, r, 0);
    if (!rc && r->bits)
        fault(k, Q2_WALK_SUBCLUSTERS, r, 0);
    return rc ? rc : tell(co, k, r);
}

/* An entry that names a place in the external data file. Offset 0 is one when COPIED is set. */
static int data_file_entry(struct co *co, struct walker *k, struct q2_ref *r)
{
    const struct q2_geom *g = k->w->g;
    bool compressed = r->raw & Q2_E_COMPRESSED;
    bool zero = g->ext_l2 ? !(uint32_t)r->bits : r->raw & Q2_E_ZERO;
    r->kind = compressed ? Q2_REF_COMPRESSED : zero ? Q2_REF_ZERO : Q2_REF_DATA;
    r->off = 0;                          /* nothing in the image itself */
    r->bytes = g->cluster_size;
    int rc = show(co, k, r);
    if (rc)
        return rc;
    uint64_t place = r->raw & Q2_L2E_OFF;
    if (!compressed && r->raw & L2E_RESERVED)
        fault(k, Q2_WALK_RESERVED, r, 0);
    bool placed = place || r->raw & Q2_E_COPIED;
    if (!compressed && ((uint32_t)r->bits & r->bits >> 32 || (!placed && (uint32_t)r->bits)))
        fault(k, Q2_WALK_SUBCLUSTERS, r, 0);
    if (!compressed && !placed)
        return 0;
    r->off = place;
    if (compressed || (r->active && place != r->index))
        fault(k, Q2_WALK_DATA_FILE, r, 0);
    if (k->w->v->data)
        k->w->v->data(k->w->arg, r);
    return 0;
}

static int l2_entry(struct co *co, struct walker *k, struct q2_ref *r)
{
    const struct q2_geom *g = k->w->g;
    if (g->data_file)
        return data_file_entry(co, k, r);
    if (r->raw & Q2_E_COMPRESSED)
        return compressed_entry(co, k, r);
    uint32_t alloc = (uint32_t)r->bits;
    bool flag = r->raw & Q2_E_ZERO && !g->ext_l2, zero = g->ext_l2 ? !alloc : flag;      /* no bytes of the guest in it */
    r->kind = zero ? Q2_REF_ZERO : Q2_REF_DATA;
    r->off = r->raw & Q2_L2E_OFF;
    r->bytes = g->cluster_size;
    int rc = show(co, k, r);
    if (rc)
        return rc;
    if (r->raw & L2E_RESERVED)
        fault(k, Q2_WALK_RESERVED, r, 0);
    if (flag && !g->zero_clusters)
        fault(k, Q2_WALK_ZERO_V2, r, 0);
    if (alloc & r->bits >> 32 || (alloc && !r->off))
        fault(k, Q2_WALK_SUBCLUSTERS, r, 0);
    if (!r->off)
        return 0;
    if (!is_aligned(r->off, g->cluster_size))
        fault(k, Q2_WALK_UNALIGNED, r, 0);
    return tell(co, k, r);
}

/* One table that has been read. t: the reference to it. */
static int l2_table(struct co *co, struct walker *k, const struct q2_ref *t, const uint8_t *data)
{
    const struct q2_geom *g = k->w->g;
    int rc = k->w->v->table ? k->w->v->table(co, k->w->arg, t) : 0;
    if (rc)
        return rc;
    for (uint64_t i = 0; i < g->cluster_size / g->l2_entry_bytes; i++) {
        uint64_t at = i * g->l2_entry_bytes, raw = be64_get((const be64 *)(data + at));
        uint64_t bits = g->ext_l2 ? be64_get((const be64 *)(data + at + 8)) : 0;
        if (!raw && !bits)
            continue;
        struct q2_ref r = { .active = t->active, .weight = t->weight, .entry_off = t->off + at, .raw = raw, .bits = bits, .index = t->index };
        if (t->active)
            r.index += i << g->cluster_bits;
        rc = l2_entry(co, k, &r);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- L1 tables ---- */

static bool l2_readable(const struct walker *k, uint64_t raw)
{
    uint64_t off = raw & Q2_L1E_OFF;
    return off && off < k->w->file_bytes;
}

static bool active_readable(const struct walker *k, uint64_t raw)
{
    return l2_readable(k, raw) || (k->w->open_ended && raw & Q2_L1E_OFF);
}

/* Tells one L1 entry; what it points to is read later. */
static int l1_entry(struct co *co, struct walker *k, struct q2_ref *r)
{
    r->kind = Q2_REF_L2;
    r->off = r->raw & Q2_L1E_OFF;
    r->bytes = k->w->g->cluster_size;
    int rc = show(co, k, r);
    if (rc)
        return rc;
    if (r->raw & L1E_RESERVED || !r->off)        /* COPIED without a table: others take it for one at 0 */
        fault(k, Q2_WALK_RESERVED, r, 0);
    if (!r->off)
        return 0;
    if (!is_aligned(r->off, k->w->g->cluster_size))
        fault(k, Q2_WALK_UNALIGNED, r, 0);
    return tell(co, k, r);
}

/* Next run of L2 tables that lie one behind the other. */
static bool next_active_l2(void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    uint64_t size = k->w->g->cluster_size;
    for (; k->at < k->l1_entries; k->at++) {
        uint64_t raw = be64_get(&k->l1[k->at]);
        struct q2_ref r = { .kind = Q2_REF_L2, .off = raw & Q2_L1E_OFF, .bytes = size, .raw = raw, .active = true, .weight = 1 };
        if (active_readable(k, raw) && afford(k, size, &r))
            break;
    }
    if (k->at == k->l1_entries)
        return false;
    p->tag = k->at;
    p->off = be64_get(&k->l1[k->at++]) & Q2_L1E_OFF;
    p->len = size;
    while (k->at < k->l1_entries && p->len + size <= k->piece_max && k->budget >= size) {
        uint64_t raw = be64_get(&k->l1[k->at]);
        if (!active_readable(k, raw) || (raw & Q2_L1E_OFF) != p->off + p->len)
            break;
        p->len += size;
        k->budget -= size;
        k->at++;
    }
    return true;
}

/* Table n of a piece. */
static struct q2_ref active_l2(const struct walker *k, const struct fmt_piece *p, uint64_t n)
{
    uint64_t size = k->w->g->cluster_size, i = p->tag + n;
    return (struct q2_ref){ .kind = Q2_REF_L2, .active = true, .off = p->off + n * size, .bytes = size, .weight = 1,
                            .entry_off = k->l1_off + 8 * i, .raw = be64_get(&k->l1[i]), .index = i * q2_l2_span(k->w->g) };
}

static struct q2_ref shared_l2(const struct walker *k, const struct fmt_piece *p, uint64_t n)
{
    uint64_t size = k->w->g->cluster_size;
    return (struct q2_ref){ .kind = Q2_REF_L2, .off = p->off + n * size, .bytes = size, .weight = q2_counts_get(&k->l2refs, p->tag + n) };
}

typedef struct q2_ref l2_of(const struct walker *k, const struct fmt_piece *p, uint64_t n);

/* On a worker; the walker does not change meanwhile but for the place it reads at. */
static int look_at_l2(struct walker *k, unsigned worker, struct fmt_piece *p, l2_of *of)
{
    uint64_t size = k->w->g->cluster_size;
    for (uint64_t n = 0; n < p->len / size; n++) {
        struct q2_ref t = of(k, p, n);
        int rc = k->w->v->bulk(k->w->arg, worker, &t, p->data + n * size);
        if (rc < 0)
            return rc;
        if (rc)
            bitmap_set(p->marks, n);
    }
    return 0;
}

static int look_at_active_l2(void *arg, unsigned worker, struct fmt_piece *p) { return look_at_l2(arg, worker, p, active_l2); }

static int look_at_shared_l2(void *arg, unsigned worker, struct fmt_piece *p) { return look_at_l2(arg, worker, p, shared_l2); }

static int looked(void *arg, unsigned worker)
{
    const struct q2_walk *w = ((struct walker *)arg)->w;
    return w->v->bulked ? w->v->bulked(w->arg, worker) : 0;
}

static int use_l2(struct co *co, struct walker *k, struct fmt_piece *p, l2_of *of)
{
    uint64_t size = k->w->g->cluster_size;
    int rc = 0;
    for (uint64_t n = 0; !rc && n < p->len / size; n++) {
        struct q2_ref t = of(k, p, n);
        if (p->rc)
            fault(k, Q2_WALK_READ, &t, p->rc);
        else if (!bitmap_test(p->marks, n))
            rc = l2_table(co, k, &t, p->data + n * size);
        else if (k->w->v->table)
            rc = k->w->v->table(co, k->w->arg, &t);
    }
    return rc;
}

static int use_active_l2(struct co *co, void *arg, struct fmt_piece *p) { return use_l2(co, arg, p, active_l2); }

static unsigned workers_of(const struct walker *k) { return k->w->v->bulk ? k->w->workers : 0; }

static int walk_active(struct co *co, struct walker *k)
{
    static const struct fmt_pieces_ops ops = { next_active_l2, use_active_l2, look_at_active_l2, looked };
    const struct q2_header *h = k->w->h;
    struct q2_ref t = { .kind = Q2_REF_L1, .active = true, .off = h->l1_off, .bytes = (uint64_t)h->l1_size * 8, .weight = 1 };
    int rc = t.bytes ? tell(co, k, &t) : 0;
    if (rc || !h->l1_size || h->l1_off >= k->w->file_bytes)
        return rc;
    /* No more than the file has: the rest would be zeros. */
    k->l1_entries = min_u64(h->l1_size, div_up(k->w->file_bytes - h->l1_off, 8));
    k->l1_off = h->l1_off;
    k->at = 0;
    be64 *l1 = malloc(k->l1_entries * 8);
    if (!l1)
        return -ENOMEM;
    struct iovec v;
    rc = stor_read(co, k->w->store, iov_one(&v, l1, k->l1_entries * 8), h->l1_off);
    if (rc) {
        fault(k, Q2_WALK_READ, &t, rc);
        free(l1);
        return 0;
    }
    k->l1 = l1;
    for (uint64_t i = 0; !rc && i < k->l1_entries; i++) {
        uint64_t raw = be64_get(&l1[i]);
        struct q2_ref r = { .active = true, .weight = 1, .entry_off = h->l1_off + 8 * i, .raw = raw, .index = i * q2_l2_span(k->w->g) };
        rc = raw ? l1_entry(co, k, &r) : 0;
    }
    set_budget(k);
    if (!rc)
        rc = fmt_pieces_run_on(co, k->w->store, k->piece_max, &ops, k, workers_of(k));
    k->l1 = NULL;
    free(l1);
    return rc;
}

/* ---- snapshots ---- */

/* Pieces of all snapshots' L1 tables, one table after the other. tag: snapshot number. */
static bool next_snapshot_l1(void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    for (; k->list_at < k->w->snapshots->count; k->list_at++, k->entry_at = 0) {
        const struct q2_snapshot *s = &k->w->snapshots->snapshots[k->list_at];
        uint64_t off = s->l1_off + k->entry_at * 8;
        if (!s->l1_ok || k->entry_at >= s->l1_size || off >= k->w->file_bytes)
            continue;
        uint64_t len = min_u64(min_u64((s->l1_size - k->entry_at) * 8, k->piece_max), round_up(k->w->file_bytes - off, 8));
        struct q2_ref r = { .kind = Q2_REF_L1, .off = s->l1_off, .bytes = (uint64_t)s->l1_size * 8, .weight = 1, .index = k->list_at };
        if (!afford(k, len, &r))
            continue;
        *p = (struct fmt_piece){ .off = off, .len = len, .tag = k->list_at, .data = p->data };
        k->entry_at += len / 8;
        return true;
    }
    return false;
}

/* A misaligned table cannot be shared by weight: read at once. */
static int odd_l2(struct co *co, struct walker *k, const struct q2_ref *t)
{
    uint64_t size = k->w->g->cluster_size;
    if (!afford(k, size, t))
        return 0;
    uint8_t *data = malloc(size);
    if (!data)
        return -ENOMEM;
    struct iovec v;
    int rc = stor_read(co, k->w->store, iov_one(&v, data, size), t->off);
    if (rc)
        fault(k, Q2_WALK_READ, t, rc);
    rc = rc ? 0 : l2_table(co, k, t, data);
    free(data);
    return rc;
}

static int use_snapshot_l1(struct co *co, void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    const struct q2_geom *g = k->w->g;
    struct q2_ref r = { .kind = Q2_REF_L1, .off = p->off, .bytes = p->len, .weight = 1, .index = p->tag };
    if (p->rc)
        fault(k, Q2_WALK_READ, &r, p->rc);
    int rc = 0;
    for (uint64_t i = 0; !p->rc && !rc && i < p->len / 8; i++) {
        uint64_t raw = be64_get((const be64 *)p->data + i);
        if (!raw)
            continue;
        r = (struct q2_ref){ .weight = 1, .entry_off = p->off + 8 * i, .raw = raw, .index = p->tag };
        rc = l1_entry(co, k, &r);
        if (rc || !l2_readable(k, raw))
            continue;
        rc = is_aligned(r.off, g->cluster_size) ? q2_counts_add(&k->l2refs, r.off >> g->cluster_bits, 1) : odd_l2(co, k, &r);
    }
    return rc;
}

static bool next_shared_l2(void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    const struct q2_geom *g = k->w->g;
    uint64_t c = q2_counts_next(&k->l2refs, k->at);
    if (c == Q2_COUNTS_NONE)
        return false;
    p->tag = c;
    p->off = c << g->cluster_bits;
    p->len = g->cluster_size;
    for (k->at = c + 1; p->len + g->cluster_size <= k->piece_max && q2_counts_get(&k->l2refs, k->at); k->at++)
        p->len += g->cluster_size;
    return true;
}

static int use_shared_l2(struct co *co, void *arg, struct fmt_piece *p) { return use_l2(co, arg, p, shared_l2); }

static int walk_snapshots(struct co *co, struct walker *k)
{
    static const struct fmt_pieces_ops l1_ops = { next_snapshot_l1, use_snapshot_l1 },
        l2_ops = { next_shared_l2, use_shared_l2, look_at_shared_l2, looked };
    const struct q2_snapshot_scan *list = k->w->snapshots;
    int rc = 0;
    for (uint32_t i = 0; !rc && i < list->count; i++) {
        const struct q2_snapshot *s = &list->snapshots[i];
        struct q2_ref r = { .kind = Q2_REF_L1, .off = s->l1_off, .bytes = (uint64_t)s->l1_size * 8, .weight = 1, .index = i };
        if (!s->l1_ok)
            fault(k, Q2_WALK_BAD_L1, &r, 0);
        else
            rc = one_region(co, k, Q2_REF_L1, r.off, r.bytes, i);
    }
    if (!rc && list->count)
        rc = q2_counts_init(&k->l2refs, div_up(k->w->file_bytes, k->w->g->cluster_size));
    if (rc || !list->count)
        return rc;
    set_budget(k);
    k->list_at = 0;
    k->entry_at = k->at = 0;
    rc = fmt_pieces_run(co, k->w->store, k->piece_max, &l1_ops, k);
    if (!rc)
        rc = fmt_pieces_run_on(co, k->w->store, k->piece_max, &l2_ops, k, workers_of(k));
    q2_counts_fini(&k->l2refs);
    return rc;
}

/* ---- bitmaps ---- */

static bool next_bitmap_table(void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    for (; k->list_at < k->w->bitmap_count; k->list_at++, k->entry_at = 0) {
        const struct q2_bitmap *b = &k->w->bitmaps[k->list_at];
        uint64_t off = b->table_off + k->entry_at * 8;
        if (k->entry_at >= b->table_entries || off >= k->w->file_bytes)
            continue;
        uint64_t len = min_u64(min_u64((b->table_entries - k->entry_at) * 8, k->piece_max), round_up(k->w->file_bytes - off, 8));
        struct q2_ref r = { .kind = Q2_REF_BITMAP_TABLE, .off = b->table_off, .bytes = 8ull * b->table_entries, .weight = 1, .index = k->list_at };
        if (!afford(k, len, &r))
            continue;
        *p = (struct fmt_piece){ .off = off, .len = len, .tag = k->list_at, .data = p->data };
        k->entry_at += len / 8;
        return true;
    }
    return false;
}

static int use_bitmap_table(struct co *co, void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    struct q2_ref r = { .kind = Q2_REF_BITMAP_TABLE, .off = p->off, .bytes = p->len, .weight = 1, .index = p->tag };
    if (p->rc)
        fault(k, Q2_WALK_READ, &r, p->rc);
    int rc = 0;
    for (uint64_t i = 0; !p->rc && !rc && i < p->len / 8; i++) {
        uint64_t raw = be64_get((const be64 *)p->data + i);
        r = (struct q2_ref){ .kind = Q2_REF_BITMAP_DATA, .off = raw & Q2_BME_OFF, .bytes = k->w->g->cluster_size, .weight = 1,
                             .entry_off = p->off + 8 * i, .raw = raw, .index = p->tag };
        if (raw & BME_RESERVED || (r.off && raw & 1))
            fault(k, Q2_WALK_RESERVED, &r, 0);
        if (r.off && !is_aligned(r.off, k->w->g->cluster_size))
            fault(k, Q2_WALK_UNALIGNED, &r, 0);
        rc = r.off ? tell(co, k, &r) : 0;
    }
    return rc;
}

static int walk_bitmaps(struct co *co, struct walker *k)
{
    static const struct fmt_pieces_ops ops = { next_bitmap_table, use_bitmap_table };
    const struct q2_header *h = k->w->h;
    if (!k->w->bitmaps_valid)
        return 0;
    int rc = one_region(co, k, Q2_REF_BITMAP_DIR, h->bitmap_dir_off, h->bitmap_dir_bytes, 0);
    for (uint32_t i = 0; !rc && i < k->w->bitmap_count; i++)
        rc = one_region(co, k, Q2_REF_BITMAP_TABLE, k->w->bitmaps[i].table_off, 8ull * k->w->bitmaps[i].table_entries, i);
    set_budget(k);
    k->list_at = 0;
    k->entry_at = 0;
    if (!rc && k->w->bitmap_count)
        rc = fmt_pieces_run(co, k->w->store, k->piece_max, &ops, k);
    return rc;
}

/* ---- refcount structure ---- */

static bool next_rt(void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    const struct q2_header *h = k->w->h;
    uint64_t all = (uint64_t)h->rt_clusters << k->w->g->cluster_bits, off = h->rt_off + k->at;
    if (k->at >= all || off >= k->w->file_bytes)
        return false;
    p->off = off;
    p->len = min_u64(min_u64(all - k->at, k->piece_max), round_up(k->w->file_bytes - off, 8));
    p->tag = k->at / 8;
    k->at += p->len;
    return true;
}

static int use_rt(struct co *co, void *arg, struct fmt_piece *p)
{
    struct walker *k = arg;
    struct q2_ref r = { .kind = Q2_REF_RT, .off = p->off, .bytes = p->len, .weight = 1 };
    if (p->rc)
        fault(k, Q2_WALK_READ, &r, p->rc);
    int rc = 0;
    for (uint64_t i = 0; !p->rc && !rc && i < p->len / 8; i++) {
        uint64_t raw = be64_get((const be64 *)p->data + i);
        if (!raw)
            continue;
        r = (struct q2_ref){ .kind = Q2_REF_RB, .off = raw & ~RTE_RESERVED, .bytes = k->w->g->cluster_size, .weight = 1,
                             .entry_off = p->off + 8 * i, .raw = raw, .index = p->tag + i };
        if (raw & RTE_RESERVED)
            fault(k, Q2_WALK_RESERVED, &r, 0);
        else if (!is_aligned(raw, k->w->g->cluster_size))
            fault(k, Q2_WALK_UNALIGNED, &r, 0);
        else
            rc = tell(co, k, &r);
    }
    return rc;
}

static int walk_rest(struct co *co, struct walker *k)
{
    static const struct fmt_pieces_ops ops = { next_rt, use_rt };
    const struct q2_header *h = k->w->h;
    int rc = one_region(co, k, Q2_REF_HEADER, 0, k->w->g->cluster_size, 0);
    if (!rc)
        rc = one_region(co, k, Q2_REF_SNAPSHOTS, h->snapshots_off, k->w->snapshots->table_bytes, 0);
    if (!rc && h->has_crypto)
        rc = one_region(co, k, Q2_REF_CRYPTO, h->crypto_off, h->crypto_len, 0);
    if (!rc)
        rc = walk_bitmaps(co, k);
    if (!rc)
        rc = one_region(co, k, Q2_REF_RT, h->rt_off, (uint64_t)h->rt_clusters << k->w->g->cluster_bits, 0);
    k->at = 0;
    if (!rc)
        rc = fmt_pieces_run(co, k->w->store, k->piece_max, &ops, k);
    return rc;
}

int q2_walk(struct co *co, const struct q2_walk *w)
{
    struct walker k = { .w = w, .piece_max = max_u64(FMT_PIECES_BYTES, w->g->cluster_size) };
    int rc = 0;
    if (w->parts & Q2_WALK_MAPPING)
        rc = walk_active(co, &k);
    if (!rc && w->parts & Q2_WALK_SNAPSHOTS)
        rc = walk_snapshots(co, &k);
    if (!rc && w->parts & Q2_WALK_REST)
        rc = walk_rest(co, &k);
    return rc;
}
