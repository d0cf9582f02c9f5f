/* SPDX-License-Identifier: MIT
 *
 * q2_rebuild.c: a refcount structure from nothing but the references.
 *
 * Purpose      Replaces a refcount table or blocks that are missing, misplaced or shared with something else, and
 *              with them a snapshot table that has to be written anew.
 * Owns         A layout of new clusters behind the end of what is used, while it runs.
 * Invariants   I1 Every new cluster lies behind the end of the file and behind every reference that touches it. On a device, which
 *                 cannot grow: behind every reference, when all of them could be followed.
 *              I2 There is a block exactly where a count is not zero: the size follows from what is used, never
 *                 from the virtual size.
 *              I3 Until the header sector is switched the old structure is untouched.
 * Order        New blocks, table, snapshot table | one header sector, bytes 48..71 | (Q7)
 * Concurrency  Home loop, inside meta_struct_begin.
 * Failure      Before the switch: the file is longer, nothing else. -E2BIG: the table would exceed 8 MiB.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "fmt/qcow2/q2_check_priv.h"

struct layout {
    struct q2_checker *k;
    uint64_t base;                       /* first new cluster */
    uint64_t snapshots, rt, blocks;      /* numbers of clusters, in this order */
    uint64_t end;                        /* base + all of them */
};

/* ---- what is referenced without the old structure ---- */

struct forget { struct q2_checker *k; bool snapshots; int unread; };

static int forget_old(struct co *co, void *arg, const struct q2_ref *r)
{
    struct forget *f = arg;
    bool old = r->kind == Q2_REF_RT || r->kind == Q2_REF_RB || (f->snapshots && r->kind == Q2_REF_SNAPSHOTS);
    if (!old || r->outside)
        return 0;
    uint64_t last = (r->off + r->bytes - 1) >> f->k->g->cluster_bits;
    for (uint64_t c = r->off >> f->k->g->cluster_bits; c <= last; c++)
        q2_counts_sub(&f->k->refs, c, r->weight);
    return 0;
}

static void note_unread(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc)
{
    if (f == Q2_WALK_READ && rc < 0)
        ((struct forget *)arg)->unread = rc;
}

/* ---- layout ---- */

static uint64_t wanted(const struct layout *l, uint64_t cluster)
{
    return cluster >= l->base ? cluster < l->end : q2_refs_wanted(l->k, cluster);
}

/* Number of the first block at or behind `from` that has something to count; Q2_COUNTS_NONE. */
static uint64_t next_used_block(const struct layout *l, uint64_t from)
{
    uint32_t bits = l->k->g->block_bits;
    uint64_t old = q2_counts_next(&l->k->refs, from << bits), first_new = max_u64(l->base, from << bits);
    if (old != Q2_COUNTS_NONE && old < l->base)
        return old >> bits;
    return first_new < l->end ? first_new >> bits : Q2_COUNTS_NONE;
}

static void lay_out(struct layout *l)
{
    const struct q2_geom *g = l->k->g;
    for (;;) {
        l->end = l->base + l->snapshots + l->rt + l->blocks;
        uint64_t blocks = 0, last = 0;
        for (uint64_t b = next_used_block(l, 0); b != Q2_COUNTS_NONE; b = next_used_block(l, b + 1)) {
            blocks++;
            last = b;
        }
        uint64_t rt = div_up((last + 1) * 8, g->cluster_size);
        if (blocks == l->blocks && rt == l->rt)
            return;
        l->blocks = blocks;
        l->rt = rt;
    }
}

/* ---- writing ---- */

static int write_clusters(struct co *co, struct layout *l, const void *buf, uint64_t first, uint64_t n)
{
    uint32_t bits = l->k->g->cluster_bits;
    return meta_write_now(co, l->k->q->meta, buf, n << bits, first << bits);
}

static int write_blocks(struct co *co, struct layout *l, uint8_t *rt)
{
    const struct q2_geom *g = l->k->g;
    uint64_t per = 1ull << g->block_bits, at = l->base + l->snapshots + l->rt;
    uint8_t *buf = NULL;
    int rc = 0;
    if (posix_memalign((void **)&buf, 4096, max_u64(g->cluster_size, 4096)))
        return -ENOMEM;
    for (uint64_t b = next_used_block(l, 0); !rc && b != Q2_COUNTS_NONE; b = next_used_block(l, b + 1), at++) {
        memset(buf, 0, g->cluster_size);
        for (uint64_t i = 0; i < per; i++) {
            uint64_t v = wanted(l, b * per + i);
            if (v)
                q2_refcount_put(g, buf, i, v);
        }
        be64_put((be64 *)rt + b, at << g->cluster_bits);
        rc = write_clusters(co, l, buf, at, 1);
    }
    free(buf);
    return rc;
}

static int write_snapshots(struct co *co, struct layout *l)
{
    if (!l->snapshots)
        return 0;
    uint8_t *buf = calloc(l->snapshots, l->k->g->cluster_size);
    if (!buf)
        return -ENOMEM;
    q2_snapshots_emit(&l->k->snapshots, l->k->g, buf);
    int rc = write_clusters(co, l, buf, l->base, l->snapshots);
    free(buf);
    return rc;
}

static int write_all(struct co *co, struct layout *l)
{
    uint8_t *rt = calloc(l->rt, l->k->g->cluster_size);
    if (!rt)
        return -ENOMEM;
    int rc = write_snapshots(co, l);
    if (!rc)
        rc = write_blocks(co, l, rt);
    if (!rc)
        rc = write_clusters(co, l, rt, l->base + l->snapshots, l->rt);
    free(rt);
    return rc ? rc : meta_barrier(co, l->k->q->meta, META_B_SWITCH_BEFORE);
}

/* The one step that makes it true. */
static int switch_header(struct co *co, struct layout *l, bool new_snapshots)
{
    struct q2_header *h = &l->k->q->h;
    uint32_t bits = l->k->g->cluster_bits;
    h->rt_off = (l->base + l->snapshots) << bits;
    h->rt_clusters = (uint32_t)l->rt;
    if (new_snapshots) {
        h->nb_snapshots = l->k->snapshots.count;
        h->snapshots_off = l->snapshots ? l->base << bits : 0;
    }
    h->refcount_order = l->k->g->refcount_order;         /* amend builds for another width (Q20) */
    return q2_header_sync_counts(co, l->k->q);
}

/* I1. The old structure counts too. */
static int find_base(struct co *co, struct q2_checker *k, uint64_t *ret)
{
    *ret = k->clusters + (q2_counts_get(&k->refs, k->clusters) != 0);
    if (k->store->traits.regular || k->incomplete || k->unsure)
        return 0;
    *ret = 0;
    for (uint64_t c = q2_counts_next(&k->refs, 0); c != Q2_COUNTS_NONE; c = q2_counts_next(&k->refs, *ret))
        *ret = q2_counts_last(&k->refs, c) + 1;
    return meta_barrier(co, k->q->meta, META_B_REPAIR);      /* what names nothing there is durable before something lies there (Q9) */
}

int q2_rebuild(struct co *co, struct q2_checker *k, bool new_snapshots, struct byre_err *err)
{
    static const struct q2_visitor v = { .ref = forget_old, .fault = note_unread };
    struct forget f = { k, new_snapshots, 0 };
    struct q2_walk w = q2_checker_walk(k, Q2_WALK_REST, &v, &f);
    struct layout l = { .k = k };
    int rc = find_base(co, k, &l.base);
    if (!rc)
        rc = q2_walk(co, &w);
    if (!rc && !k->res.check_errors)     /* it was read before: what it names would stay counted, and leak (G.005) */
        rc = f.unread;
    if (rc)
        return rc;
    if (new_snapshots)
        l.snapshots = div_up(q2_snapshots_emit(&k->snapshots, k->g, NULL), k->g->cluster_size);
    lay_out(&l);
    if (l.rt << k->g->cluster_bits > Q2_RT_BYTES_MAX)
        return byre_fail(err, LIMIT, "%s: a new refcount table would exceed 8 MiB; convert the image instead", k->q->name);
    if (k->leftover < l.end << k->g->cluster_bits)
        return byre_fail(err, NOT_SUPPORTED, "%s: a reference to %#" PRIx64 ", outside the file, is in the way of new tables; convert the image instead",
                         k->q->name, k->leftover);
    rc = write_all(co, &l);
    if (!rc)
        rc = switch_header(co, &l, new_snapshots);
    if (rc)
        return rc;
    k->res.leaks_fixed += k->res.leaks;
    k->res.corruptions_fixed += k->structure_faults + (k->rebuild ? k->low : 0) + (new_snapshots ? k->snapshots.bad_entries : 0);
    q2_finding(k, true, "Q2_REFCOUNT_TABLE", "the refcount structure was built anew at %#" PRIx64, k->q->h.rt_off);
    return 0;
}

/* ---- snapshot table ---- */

static void emit_one(struct wcur *c, const struct q2_snapshot *s)
{
    struct q2_disk_snapshot d = { 0 };
    size_t id_len = strlen(s->id), name_len = strlen(s->name);
    uint32_t known = s->has_icount || s->extra_len ? 24 : 16;
    be64_put(&d.l1_off, s->l1_off);
    be32_put(&d.l1_size, s->l1_size);
    be16_put(&d.id_len, (uint16_t)id_len);
    be16_put(&d.name_len, (uint16_t)name_len);
    be32_put(&d.date_sec, s->date_sec);
    be32_put(&d.date_nsec, s->date_nsec);
    be64_put(&d.vm_clock_ns, s->vm_clock_ns);
    be32_put(&d.vm_state_size, (uint32_t)min_u64(s->vm_state_size, UINT32_MAX));
    be32_put(&d.extra_len, known + s->extra_len);
    wcur_bytes(c, &d, sizeof d);
    wcur_be64(c, s->vm_state_size);
    wcur_be64(c, s->disk_size);
    if (known > 16)
        wcur_be64(c, s->has_icount ? s->icount : UINT64_MAX);
    wcur_bytes(c, s->extra, s->extra_len);
    wcur_bytes(c, s->id, id_len);
    wcur_bytes(c, s->name, name_len);
    wcur_align(c, 8);
}

uint64_t q2_snapshots_emit(const struct q2_snapshot_scan *scan, const struct q2_geom *g, uint8_t *buf)
{
    uint64_t total = 0;
    (void)g;
    for (uint32_t i = 0; i < scan->count; i++) {
        const struct q2_snapshot *s = &scan->snapshots[i];
        uint64_t len = round_up(sizeof(struct q2_disk_snapshot) + (s->has_icount || s->extra_len ? 24u : 16u) + s->extra_len + strlen(s->id) + strlen(s->name), 8);
        if (buf) {
            struct wcur c = wcur_of(buf + total, len);
            emit_one(&c, s);
            ASSERT(wcur_ok(&c));
        }
        total += len;
    }
    return total;
}
