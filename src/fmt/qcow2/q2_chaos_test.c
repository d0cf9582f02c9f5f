/* SPDX-License-Identifier: MIT
 *
 * q2_chaos_test.c: a few guests at the same time, requests of the disk that fail (and may have had their effect all the
 * same), crashes that keep any sectors of what was not flushed; over all small geometries.
 *
 * Purpose      After every crash: the check finds no corruption (P1), and each guest sector holds what it held at the last
 *              flush that was acknowledged, or something written later (P2). While it runs: I1 of q2_alloc.c.
 * Owns         The disk of q2_disk_test.h, a set of values per guest sector.
 * Invariants   None.
 * Concurrency  One loop; up to four requests at once.
 * Failure      Prints the seed. Q2_CHAOS_SEED=n runs that one alone, Q2_CHAOS_RUNS=n runs more.
 * Tests        This is one.
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define SECTORS_MAX 4096u

struct values { uint64_t bits[4]; };
static bool has(const struct values *v, uint8_t x) { return v->bits[x / 64] >> (x % 64) & 1; }
static void add(struct values *v, uint8_t x) { v->bits[x / 64] |= 1ull << (x % 64); }

static struct {
    struct prng rng;
    struct make make;
    uint64_t sectors;
    struct values now[SECTORS_MAX];      /* what a read may show */
    struct values after[SECTORS_MAX];    /* what may be there after a crash */
    uint8_t next;
    unsigned fault_one_in;               /* 0: nothing fails */
    unsigned faults;
    bool packs;                          /* compressed clusters are written */
    bool device;                         /* of a fixed length, mostly too small for the whole disk */
    uint64_t size, size_other;           /* bytes; other: a resize to it failed, it may be the one after a crash */
    uint8_t *snapshot; uint64_t snapshot_size, snapshot_l1;      /* NULL: none. What it must hold for ever */
    /* the crash to come: what was there is kept at some request and used at the end */
    struct cut { uint64_t countdown; bool killed; uint8_t *bytes, *durable; uint64_t len, durable_len, size, size_other; struct values after[SECTORS_MAX]; } cut;
} chaos;

static uint64_t below(uint64_t n) { return prng_below(&chaos.rng, n); }

/* ---- the disk ---- */

/* Each sector of what was not flushed lands or not. */
static void mix(uint8_t *out, uint64_t *ret_len)
{
    uint64_t len = below(2) ? disk.len : max_u64(disk.len, disk.durable_len), mode = below(4);
    if (disk.durable_len < disk.len && below(2))
        len = disk.durable_len;
    for (uint64_t at = 0; at < len; at += SECTOR) {
        bool lands = mode == 0 || (mode > 1 && below(mode == 2 ? 2 : 8));
        memcpy(out + at, (lands ? disk.bytes : disk.durable) + at, min_u64(SECTOR, len - at));
    }
    *ret_len = len;
}

/* This is the moment: what would be there now. */
static void take_cut(void)
{
    struct cut *c = &chaos.cut;
    uint64_t cap = max_u64(disk.len, disk.durable_len);
    c->bytes = calloc(1, cap);
    c->durable = calloc(1, cap);
    memcpy(c->durable, disk.durable, disk.durable_len);
    c->durable_len = disk.durable_len;
    if (c->killed)
        memcpy(c->bytes, disk.bytes, c->len = disk.len);
    else
        mix(c->bytes, &c->len);
    c->size = chaos.size;
    c->size_other = chaos.size_other;
    memcpy(c->after, chaos.after, sizeof c->after);
}

static int chaos_hook(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    for (uint64_t n = below(6); n > 0; n--)
        co_yield(co);
    if (chaos.cut.countdown && !--chaos.cut.countdown)
        take_cut();
    if (!chaos.fault_one_in || below(chaos.fault_one_in) || what == 'D')
        return 0;
    if (what == 'F' && below(8))         /* a failed flush ends the life of the image: seldom */
        return 0;
    chaos.faults++;
    disk.land = below(2);
    return what == 'R' || what == 'F' || below(2) ? -EIO : -ENOSPC;
}

/* ---- guests ---- */

enum kind { WRITE, COMPRESS, ZERO_KEEP, ZERO_UNMAP, DISCARD, BEGIN_ABORT, READ, FLUSH };
struct op { struct q2_image *q; enum kind kind; uint64_t off, len; uint8_t fill; int r; struct co_group *group; uint8_t *buf; };

static bool changes(const struct op *o) { return o->kind < BEGIN_ABORT; }

static int abort_one(struct co *co, struct op *o)
{
    struct fmt_write w;
    int r = q2_write_begin(co, &o->q->im, o->off, o->len, &w);
    for (unsigned i = 0; i < 5; i++)
        co_yield(co);
    if (r == 0 && w.len)
        q2_write_abort(co, &o->q->im, &w);
    return r;
}

static int op_run(struct co *co, struct op *o)
{
    switch (o->kind) {
    case WRITE:
        return g_write(co, o->q, o->off, o->len, o->fill);
    case COMPRESS:
        return g_compress(co, o->q, o->off, o->len, o->fill);
    case ZERO_KEEP:
    case ZERO_UNMAP:
        return q2_zero(co, &o->q->im, o->off, o->len, o->kind == ZERO_UNMAP ? FMT_ZERO_UNMAP : 0);
    case DISCARD:
        return q2_discard(co, &o->q->im, o->off, o->len);
    case BEGIN_ABORT:
        return abort_one(co, o);
    case READ:
        return g_read(co, o->q, o->off, o->len, o->buf);
    case FLUSH:
        return g_flush(co, o->q);
    }
    return 0;
}

static void op_co(struct co *co, void *arg)
{
    struct op *o = arg;
    for (uint64_t n = below(12); n > 0; n--)
        co_yield(co);
    o->r = op_run(co, o);
    co_group_leave(o->group);
}

static struct op random_op(struct q2_image *q)
{
    static const enum kind kinds[] = { WRITE, WRITE, WRITE, WRITE, WRITE, COMPRESS, COMPRESS, COMPRESS, ZERO_KEEP, ZERO_UNMAP, DISCARD, DISCARD, BEGIN_ABORT, READ, READ, FLUSH };
    uint64_t cs = chaos.make.cluster_size, clusters = div_up(chaos.size, cs);
    struct op o = { .q = q, .kind = kinds[below(sizeof kinds / sizeof kinds[0])] };
    uint64_t first = below(2) ? below(clusters) : below(min_u64(clusters, 8)), n = 1 + below(below(4) ? 2 : below(8) ? 12 : 300);
    o.off = first * cs;
    o.len = min_u64(n * cs, chaos.size - o.off);
    if ((o.kind == WRITE || o.kind == READ) && below(2)) {
        uint64_t s = below(o.len / SECTOR);
        o.off += s * SECTOR;
        o.len = (1 + below(o.len / SECTOR - s)) * SECTOR;
    }
    bool parts = o.kind == ZERO_KEEP || o.kind == ZERO_UNMAP || o.kind == BEGIN_ABORT || (o.kind == DISCARD && !chaos.packs);
    if (chaos.make.sub && parts && below(2)) {       /* subclusters; of a compressed cluster a discard takes no part */
        uint64_t unit = cs / 32, start = o.off + below(32) * unit, len = (1 + below(40)) * unit;
        if (start < chaos.size) {
            o.off = start;
            o.len = min_u64(len, chaos.size - start);
        }
    }
    if (o.kind == COMPRESS && !chaos.packs)
        o.kind = WRITE;
    if (o.kind == WRITE || o.kind == COMPRESS)
        o.fill = chaos.next = chaos.next % 250 + 1;
    o.buf = o.kind == READ ? malloc(o.len) : NULL;
    return o;
}

static bool covers(const struct op *o, uint64_t s) { return changes(o) && o->off / SECTOR <= s && s < (o->off + o->len) / SECTOR; }

/* Some operations at once; they may overlap. */
#define OPS 6
struct round { struct op ops[OPS]; unsigned n; struct values before[SECTORS_MAX]; };

static void account(struct round *r)
{
    for (uint64_t s = 0; s < chaos.size / SECTOR; s++) {
        struct values new = { { 0 } };
        bool any = false, done = false;
        for (unsigned i = 0; i < r->n; i++)
            if (covers(&r->ops[i], s)) {
                add(&new, r->ops[i].fill);
                any = true;
                done |= r->ops[i].r == 0;
            }
        for (unsigned k = 0; k < 4 && any && !done; k++)
            new.bits[k] |= r->before[s].bits[k];
        if (any)
            chaos.now[s] = new;
    }
}

/* A flush that came back: what was done before the round is durable. */
static void account_flush(struct round *r)
{
    memcpy(chaos.after, r->before, sizeof chaos.after);
    chaos.size_other = 0;
    for (unsigned i = 0; i < r->n; i++)
        for (uint64_t s = r->ops[i].off / SECTOR; changes(&r->ops[i]) && s < (r->ops[i].off + r->ops[i].len) / SECTOR; s++)
            add(&chaos.after[s], r->ops[i].fill);
}

static bool read_ok(struct round *r, const struct op *o)
{
    for (uint64_t s = o->off / SECTOR, at = 0; s < (o->off + o->len) / SECTOR; s++, at += SECTOR) {
        struct values may = r->before[s];
        for (unsigned i = 0; i < r->n; i++)
            if (covers(&r->ops[i], s))
                add(&may, r->ops[i].fill);
        bool ok = has(&may, o->buf[at]);
        for (unsigned i = 1; ok && i < SECTOR; i++)
            ok = o->buf[at + i] == o->buf[at];
        if (!ok) {
            fprintf(stderr, "a read of guest sector %u shows %u\n", (unsigned)s, o->buf[at]);
            return false;
        }
    }
    return true;
}

static bool round_of_ops(struct co *co, struct q2_image *q)
{
    struct round *r = malloc(sizeof *r);
    struct co_group group = { 0 };
    bool ok = true;
    memcpy(r->before, chaos.now, sizeof r->before);
    r->n = 1 + (unsigned)below(OPS);
    for (unsigned i = 0; i < r->n; i++) {
        r->ops[i] = random_op(q);
        r->ops[i].group = &group;
        for (uint64_t s = 0; s < chaos.size / SECTOR; s++)
            if (covers(&r->ops[i], s))
                add(&chaos.after[s], r->ops[i].fill);
    }
    for (unsigned i = 0; i < r->n; i++) {
        co_group_enter(&group);
        CHECK_EQ(rt_spawn(co_loop(co), op_co, &r->ops[i]), 0);
    }
    co_group_wait(co, &group);
    account(r);
    for (unsigned i = 0; i < r->n; i++) {
        struct op *o = &r->ops[i];
        if (o->kind == FLUSH && o->r == 0)
            account_flush(r);
        if (o->kind == READ && o->r == 0)
            ok &= CHECK(read_ok(r, o));
        bool part = chaos.make.sub && chaos.packs && o->r == -ENOTSUP;         /* of a compressed cluster: graph/ would write */
        CHECK(o->r == 0 || chaos.faults || part || (chaos.device && o->r == -ENOSPC));
        free(o->buf);
    }
    free(r);
    return ok;
}

/* ---- another size ---- */

/* What graph/ does around the format's part. */
static int resize(struct co *co, struct q2_image *q, uint64_t size)
{
    struct byre_err err;
    uint64_t old = chaos.size, tail = min_u64(round_up(old, q->g.cluster_size), size);
    int r = q2_resize(co, &q->im, size, FMT_PREALLOC_OFF, &err);
    if (r < 0 || size < old)
        return r;
    int z = tail > old ? g_write(co, q, old, tail - old, 0) : 0;
    r = q2_resize_commit(co, &q->im, z == 0, &err);
    return z < 0 ? z : r;
}

static bool change_size(struct co *co, struct q2_image *q)
{
    uint64_t size = SECTOR * (1 + below(chaos.sectors)), old = chaos.size;
    if (size == old || (size < old && chaos.snapshot && chaos.make.version < 3))
        return true;
    chaos.size_other = size;             /* which of the two it is shows after a crash */
    int r = resize(co, q, size);
    CHECK(r == 0 || chaos.faults || (chaos.device && r == -ENOSPC));
    if (r < 0) {
        chaos.size = atomic_load(&q->im.size);
        chaos.size_other = chaos.size == size ? old : size;
        return false;
    }
    chaos.size = size;
    chaos.size_other = 0;
    for (uint64_t s = min_u64(old, size) / SECTOR; s < chaos.sectors; s++) {
        chaos.now[s] = chaos.after[s] = (struct values){ { 0 } };
        add(&chaos.now[s], 0);
        add(&chaos.after[s], 0);
    }
    return true;
}

/* ---- a snapshot, made as the specification says, without faults ---- */

static int share(struct co *co, struct q2_image *q, uint64_t host, uint64_t len)
{
    uint64_t first = host >> q->g.cluster_bits, last = (host + len - 1) >> q->g.cluster_bits;
    return q2_refs_add(co, q, first, last - first + 1, 1);
}

static int share_table(struct co *co, struct q2_image *q, uint64_t guest)
{
    int r = 0;
    for (uint64_t g = guest; r == 0 && g < guest + q2_l2_span(&q->g); g += q->g.cluster_size) {
        struct meta_block *b;
        uint32_t i;
        struct q2_l2e e;
        r = q2_slice_get(co, q, g, &b, &i);
        if (r < 0)
            return r;
        if (q2_entry_get(q, b, i, &e) && e.host) {
            e.copied = false;
            q2_entry_set(q, b, i, &e);
            meta_put(q->meta, b);
            r = share(co, q, e.host, e.kind == Q2_COMPRESSED ? e.comp_bytes : 1);
        } else {
            meta_put(q->meta, b);
        }
    }
    return r;
}

static void take_snapshot(struct co *co)
{
    bool narrow = chaos.make.refcount_bits < (chaos.packs ? 8 : 2);      /* a snapshot doubles what a shared cluster counts */
    if (narrow || chaos.snapshot || chaos.device)
        return;
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * chaos.make.cluster_size });
    struct q2_l1 *l1 = atomic_load(&q->l1);
    struct q2_run run, table;
    CHECK_EQ(q2_alloc_exact(co, q, div_up(l1->alloc_bytes, q->g.cluster_size), &run), 0);
    CHECK_EQ(q2_alloc_take(co, q, 1, &table), 0);
    for (uint64_t i = 0; i < l1->entries; i++) {
        uint64_t raw = be64_word(atomic_load(&l1->words[i]));
        if (!raw)
            continue;
        CHECK_EQ(share_table(co, q, i * q2_l2_span(&q->g)), 0);
        CHECK_EQ(share(co, q, raw & Q2_L1E_OFF, 1), 0);
        meta_region_set(q->meta, &q->l1_region, i, raw & ~Q2_E_COPIED);
    }
    uint8_t buf[64] = { 0 };
    struct q2_disk_snapshot *d = (struct q2_disk_snapshot *)buf;
    chaos.snapshot_l1 = run.cluster << q->g.cluster_bits;
    chaos.snapshot_size = chaos.size;
    be64_put(&d->l1_off, chaos.snapshot_l1);
    be32_put(&d->l1_size, q->h.l1_size);
    be16_put(&d->id_len, 1);
    be16_put(&d->name_len, 1);
    be32_put(&d->extra_len, 16);
    be64_put((be64 *)(buf + 48), chaos.size);
    memcpy(buf + 56, "1s", 2);
    CHECK_EQ(stor_write_buf(co, q->im.store, (const void *)l1->words, l1->alloc_bytes, chaos.snapshot_l1, 0), 0);
    CHECK_EQ(stor_write_buf(co, q->im.store, buf, sizeof buf, table.cluster << q->g.cluster_bits, 0), 0);
    q->h.nb_snapshots = 1;
    q->h.snapshots_off = table.cluster << q->g.cluster_bits;
    CHECK_EQ(q2_header_sync(co, q, 60, 72, META_B_HEADER), 0);
    chaos.snapshot = malloc(chaos.size);
    CHECK_EQ(g_read(co, q, 0, chaos.size, chaos.snapshot), 0);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
    memcpy(disk.durable, disk.bytes, max_u64(disk.len, disk.durable_len));
    disk.durable_len = disk.len;
    memcpy(chaos.after, chaos.now, sizeof chaos.now);
}

/* One compressed cluster of the disk's bytes. */
static bool unpack(const struct q2_geom *g, uint64_t entry, uint8_t *out)
{
    uint64_t host = entry & g->coff_mask, len = ((entry >> g->csize_shift & g->csize_mask) + 1) * 512 - host % 512;
    return host + len <= DISK_CAP && q2_decompress(NULL, 0, disk.bytes + host, len, out, g->cluster_size) == 0;
}

/* Read from the bytes of the disk, by nothing but the specification. */
static bool snapshot_holds(void)
{
    struct q2_geom g = q2_geom_make(chaos.make.version, (uint32_t)__builtin_ctzll(chaos.make.cluster_size), 4, chaos.make.sub);
    uint8_t *plain = malloc(g.cluster_size);
    bool ok = true;
    for (uint64_t at = 0; ok && chaos.snapshot && at < chaos.snapshot_size; at += SECTOR) {
        uint64_t l2 = be64_get(disk_be64(chaos.snapshot_l1 + 8 * q2_l1_index(&g, at))) & Q2_L1E_OFF;
        uint64_t entry = l2 + g.l2_entry_bytes * q2_l2_index(&g, at), e = l2 ? be64_get(disk_be64(entry)) : 0, host = e & Q2_L2E_OFF;
        bool data = host && !(g.zero_clusters && e & Q2_E_ZERO);
        if (g.ext_l2)
            data = host && be64_get(disk_be64(entry + 8)) >> (q2_in_cluster(&g, at) >> g.sub_bits) & 1;
        static const uint8_t zeros[SECTOR];
        const uint8_t *p = data ? disk.bytes + host + q2_in_cluster(&g, at) : zeros;
        if (e & Q2_E_COMPRESSED) {
            ok = unpack(&g, e, plain);
            host = 0;
            p = plain + q2_in_cluster(&g, at);
        }
        ok = ok && host < DISK_CAP && !memcmp(p, chaos.snapshot + at, SECTOR);
        if (!ok)
            fprintf(stderr, "the snapshot differs at %llu\n", (unsigned long long)at);
    }
    free(plain);
    return ok;
}

/* ---- verification ---- */

static bool verify(struct co *co, struct q2_image *q, const struct values *allowed, const char *when)
{
    uint8_t *buf = malloc(chaos.size);
    bool ok = CHECK_EQ(g_read(co, q, 0, chaos.size, buf), 0);
    for (uint64_t s = 0; ok && s < chaos.size / SECTOR; s++) {
        uint8_t v = buf[s * SECTOR];
        for (unsigned i = 1; ok && i < SECTOR; i++)
            ok = buf[s * SECTOR + i] == v;
        if (!ok || !has(&allowed[s], v)) {
            fprintf(stderr, "%s: guest sector %u holds %u\n", when, (unsigned)s, v);
            ok = CHECK(false);
        }
    }
    free(buf);
    return ok;
}

static struct q2_image *open_it(struct co *co)
{
    struct opening o = { .frontier_bytes = chaos.make.cluster_size * (1 + below(40)), .cache_bytes = below(2) ? 4096 : 0 };
    return img_open(co, &o);
}

/* Which size is it, after a resize that failed or was cut? What is behind the smaller one reads zero, or is as before. */
static bool settle_size(struct q2_image *q, bool killed)
{
    uint64_t size = atomic_load(&q->im.size), old = chaos.size, other = chaos.size_other;
    if (!CHECK(size == old || (other && size == other)))
        return false;
    for (uint64_t s = other ? min_u64(old, other) / SECTOR : chaos.sectors; s < chaos.sectors; s++)
        add(&chaos.after[s], 0);
    chaos.size = size;
    chaos.size_other = killed && other ? old + other - size : 0;         /* the header may not be durable yet */
    return true;
}

/* From now on what is there is what is promised; killed: a power cut may still take back what was not flushed. */
static void adopt(struct co *co, struct q2_image *q, bool killed)
{
    uint8_t *buf = malloc(chaos.size);
    CHECK_EQ(g_read(co, q, 0, chaos.size, buf), 0);
    for (uint64_t s = 0; s < chaos.sectors; s++) {
        chaos.now[s] = (struct values){ { 0 } };
        add(&chaos.now[s], s < chaos.size / SECTOR ? buf[s * SECTOR] : 0);
        if (!killed)
            chaos.after[s] = chaos.now[s];
    }
    free(buf);
}

/* The process is gone, and without `killed` the power: what was there at the cut is sound and holds what was promised. */
static bool crash(struct co *co, struct q2_image *q)
{
    struct cut *c = &chaos.cut;
    if (!c->bytes)
        take_cut();                      /* it did not come to that request */
    disk.hook = NULL;
    disk.land = false;
    (void)img_close(co, q);
    memset(disk.bytes, 0, disk.len);
    memset(disk.durable, 0, disk.durable_len);
    memcpy(disk.bytes, c->bytes, c->len);
    disk.len = c->len;
    disk.durable_len = c->killed ? c->durable_len : c->len;
    memcpy(disk.durable, c->killed ? c->durable : c->bytes, disk.durable_len);
    chaos.size = c->size;
    chaos.size_other = c->size_other;
    memcpy(chaos.after, c->after, sizeof c->after);
    bool ok = CHECK_EQ(img_faults(co, NULL), 0) && CHECK(snapshot_holds());
    q = img_open(co, &(struct opening){ .read_only = true });
    ok = ok && settle_size(q, c->killed) && verify(co, q, chaos.after, c->killed ? "after a kill" : "after a power cut");
    if (ok)
        adopt(co, q, c->killed);
    CHECK_EQ(img_close(co, q), 0);
    return ok;
}

/* ---- a run ---- */

/* An orderly end. */
static bool finish(struct co *co, struct q2_image *q)
{
    bool had = chaos.faults > 0;
    disk.hook = NULL;
    disk.land = false;
    int r = img_close(co, q);
    CHECK(r == 0 || had);
    if (r == 0)
        memcpy(chaos.after, chaos.now, sizeof chaos.now);
    memcpy(disk.durable, disk.bytes, max_u64(disk.len, disk.durable_len));
    disk.durable_len = disk.len;
    q = img_open(co, &(struct opening){ .read_only = true });
    bool ok = settle_size(q, false) && verify(co, q, chaos.after, "after close");
    adopt(co, q, false);
    CHECK_EQ(img_close(co, q), 0);
    return ok && CHECK_EQ(img_faults(co, NULL), 0) && CHECK(snapshot_holds());
}

static bool session(struct co *co)
{
    if (below(5) == 0)
        take_snapshot(co);
    struct q2_image *q = open_it(co);
    chaos.faults = 0;
    chaos.fault_one_in = below(3) ? 0 : 20 + (unsigned)below(200);
    chaos.cut.countdown = 1 + below(below(2) ? 30 : 600);
    chaos.cut.killed = below(4) == 0;
    disk.hook = chaos_hook;
    bool ok = true, sized = true;
    for (uint64_t n = below(20); n > 0 && sized && ok && chaos.cut.countdown; n--) {
        ok = round_of_ops(co, q);
        if (below(12) == 0)
            sized = change_size(co, q);
    }
    chaos.fault_one_in = chaos.cut.countdown = 0;
    disk.land = false;
    ok = ok && CHECK(!q->failed) && CHECK(verify(co, q, chaos.now, "while open")) && CHECK(states_ok(co, q));   /* a failed request is no damage */
    ok = ok && (chaos.cut.bytes || below(3) ? crash(co, q) : finish(co, q));
    free(chaos.cut.bytes);
    free(chaos.cut.durable);
    chaos.cut.bytes = chaos.cut.durable = NULL;
    return ok;
}

#define PLAIN_SEEDS 150u                 /* seeds behind these are for images with subclusters */

static bool run(struct co *co, uint64_t seed)
{
    static const uint32_t widths[] = { 1, 2, 4, 8, 16, 32, 64 };
    prng_init(&chaos.rng, seed);
    chaos.make = (struct make){ .version = below(5) ? 3 : 2, .refcount_bits = 16, .cluster_size = 512u << (below(2) ? 0 : below(4)) };
    if (chaos.make.version == 3)
        chaos.make.refcount_bits = widths[below(7)];
    if (seed > PLAIN_SEEDS) {
        chaos.make.version = 3;
        chaos.make.sub = true;
        chaos.make.cluster_size = 16384u << below(2);
    }
    chaos.make.size = min_u64(chaos.make.cluster_size * (40 + below(below(4) ? 400 : 4000)), SECTORS_MAX * SECTOR);
    chaos.sectors = chaos.make.size / SECTOR;
    chaos.packs = below(3) > 0;
    chaos.size = chaos.make.size = below(3) ? chaos.make.size : SECTOR * (1 + below(chaos.sectors));
    chaos.size_other = 0;
    free(chaos.snapshot);
    chaos.snapshot = NULL;
    chaos.next = 1;
    memset(chaos.now, 0, sizeof chaos.now);
    for (uint64_t s = 0; s < chaos.sectors; s++)
        add(&chaos.now[s], 0);
    memcpy(chaos.after, chaos.now, sizeof chaos.now);
    img_make(co, &chaos.make);
    chaos.device = below(5) == 0;
    if (chaos.device) {
        disk.len = disk.durable_len = disk.len + round_down(below(chaos.make.size * 5 / 4), 4096);
        disk.fixed_length = true;
    }
    bool ok = true;
    for (unsigned i = 0; ok && i < 8; i++)
        ok = session(co);
    if (!ok)
        fprintf(stderr, "Q2_CHAOS_SEED=%llu: version %u, %u bits, clusters of %llu, %llu sectors\n", (unsigned long long)seed, chaos.make.version,
                chaos.make.refcount_bits, (unsigned long long)chaos.make.cluster_size, (unsigned long long)chaos.sectors);
    return ok;
}

static void chaos_body(struct co *co, void *arg)
{
    const char *one = getenv("Q2_CHAOS_SEED"), *runs = getenv("Q2_CHAOS_RUNS");
    uint64_t first = one ? strtoull(one, NULL, 0) : 1, n = one ? 1 : runs ? strtoull(runs, NULL, 0) : PLAIN_SEEDS + 50;
    for (uint64_t seed = first; seed < first + n && run(co, seed); seed += one ? 1 : t_share())
        ;
}

static void test_chaos(void **state) { t_run(0, chaos_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_chaos) };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 chaos", tests);
    disk_teardown(NULL);
    free(chaos.snapshot);
    return failed;
}
