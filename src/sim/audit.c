/* SPDX-License-Identifier: MIT
 *
 * audit.c: a second opinion on the bytes of a qcow2 file, from the specification alone.
 *
 * Purpose      Counts references and compares them with the refcounts; reads a snapshot. Shares no code with the engine,
 *              whose own check must come to the same verdict.
 * Owns         The counts while it runs.
 * Invariants   A1  Nothing outside the file is read; what cannot be followed makes the verdict `broken`.
 * Order        None.
 * Concurrency  One thread.
 * Failure      A verdict.
 * Tests        tests/crash (damage by hand is seen); agreement with the engine and the peer in every run
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <libdeflate.h>
#include <zstd.h>

#include "base/checked.h"
#include "base/endian.h"
#include "sim/bitmaps.h"
#include "sim/image.h"
#include "sim/luks.h"
#include "sim/mem.h"
#include "sim/model.h"

struct audit {
    const struct sim_disk *d;
    struct sim_audit *r;
    unsigned bits, version;
    bool data_file;                      /* guest data lies elsewhere, at the guest's offsets */
    uint64_t entry_bytes;                /* of an L2 table */
    uint64_t cs, clusters;
    uint64_t rt_off, rt_entries, order;
    uint32_t *refs;
};

static uint64_t u64(const struct audit *a, uint64_t off)
{
    be64 x = { { 0 } };
    if (range_inside(off, 8, a->d->len))
        memcpy(&x, a->d->data + off, 8);
    return be64_get(&x);
}

static uint32_t u32(const struct audit *a, uint64_t off)
{
    be32 x = { { 0 } };
    if (range_inside(off, 4, a->d->len))
        memcpy(&x, a->d->data + off, 4);
    return be32_get(&x);
}

void sim_audit_note(struct sim_audit *r, const char *fmt, ...)
{
    va_list ap;
    if (r->text[0])
        return;
    va_start(ap, fmt);
    vsnprintf(r->text, sizeof r->text, fmt, ap);
    va_end(ap);
}

static void count_bytes(struct audit *a, uint64_t off, uint64_t len, const char *what)
{
    uint64_t end = round_up(a->d->len, a->cs);
    if (!len)
        return;
    if (off > end || len > end - off) {
        a->r->outside++;
        sim_audit_note(a->r, "%s at %#llx lies outside the file", what, (unsigned long long)off);
        return;
    }
    for (uint64_t c = off >> a->bits; c <= (off + len - 1) >> a->bits; c++)
        a->refs[c]++;
}

static uint64_t stored(const struct audit *a, uint64_t c)
{
    uint64_t per = a->cs * 8 >> a->order, i = c % per;
    if (c / per >= a->rt_entries)
        return 0;
    uint64_t block = u64(a, a->rt_off + c / per * 8) & ~0x1ffull;
    if (!block || block >= a->d->len)
        return 0;
    if (a->order < 3) {
        unsigned bits = 1u << a->order, each = 8 / bits;
        uint64_t at = block + i / each;
        return at < a->d->len ? a->d->data[at] >> (i % each * bits) & ((1u << bits) - 1) : 0;
    }
    uint64_t v = 0;
    for (unsigned n = 1u << (a->order - 3), k = 0; k < n; k++)
        v = v << 8 | (block + i * n + k < a->d->len ? a->d->data[block + i * n + k] : 0);
    return v;
}

#define OFF_MASK 0x00fffffffffffe00ull
#define COPIED (1ull << 63)

struct comp { uint64_t off, len; };

static struct comp comp_of(const struct audit *a, uint64_t e)
{
    unsigned x = 62 - (a->bits - 8);
    uint64_t off = e & ((1ull << x) - 1), sectors = (e >> x & ((1ull << (62 - x)) - 1)) + 1;
    return (struct comp){ off, sectors * 512 - off % 512 };
}

static void count_entry(struct audit *a, uint64_t e)
{
    if (e >> 62 & 1) {
        struct comp c = comp_of(a, e);
        uint64_t end = round_up(a->d->len, a->cs);
        count_bytes(a, c.off, c.off < end ? min_u64(c.len, end - c.off) : c.len, "compressed cluster");
        return;
    }
    if (e & OFF_MASK && !a->data_file)
        count_bytes(a, e & OFF_MASK, a->cs, "cluster");
    if ((e & OFF_MASK) % a->cs) {
        a->r->broken = true;
        sim_audit_note(a->r, "entry %#llx is not aligned", (unsigned long long)e);
    }
}

/* at: where the entry lies in the file. */
typedef void entry_fn(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg);

/* Calls fn for every entry of the L1 table, and for every entry below it with `below` set. */
static void walk(struct audit *a, uint64_t l1, uint64_t entries, entry_fn *table, entry_fn *entry, void *arg)
{
    for (uint64_t k = 0; k < entries; k++) {
        uint64_t e = u64(a, l1 + k * 8), l2 = e & OFF_MASK;
        if (!e)
            continue;
        table(a, e, k, l1 + k * 8, arg);
        if (!range_inside(l2, a->cs, round_up(a->d->len, a->cs)) || l2 % a->cs) {
            a->r->broken = true;
            sim_audit_note(a->r, "L1 entry %#llx cannot be followed", (unsigned long long)e);
            continue;
        }
        uint64_t n = a->cs / a->entry_bytes;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t at = l2 + i * a->entry_bytes, x = u64(a, at);
            if (x || (a->entry_bytes == 16 && u64(a, at + 8)))
                entry(a, x, k * n + i, at, arg);
        }
    }
}

static void count_table(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    (void)index;
    (void)at;
    (void)arg;
    count_bytes(a, e & OFF_MASK, a->cs, "L2 table");
}

/* Extended L2: do the bits of subclusters contradict one another, or the first half? */
static void judge_bits(struct audit *a, uint64_t e, uint64_t index, uint64_t bits)
{
    bool wrong = e >> 62 & 1 ? bits != 0 : (bits & bits >> 32 & 0xffffffff) || (bits & 0xffffffff && !(e & OFF_MASK) && !(a->data_file && e & COPIED));
    if (!wrong)
        return;
    a->r->broken = true;
    sim_audit_note(a->r, "entry %#llx (%llu) has subclusters %#llx", (unsigned long long)e, (unsigned long long)index, (unsigned long long)bits);
}

static void count_mapping(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    (void)arg;
    if (a->entry_bytes == 16)
        judge_bits(a, e, index, u64(a, at + 8));
    count_entry(a, e);
    bool placed = e & OFF_MASK || e & COPIED;
    if (a->data_file && ((e >> 62 & 1) || (placed && ((e & OFF_MASK) != index * a->cs || !(e & COPIED))))) {
        a->r->broken = true;
        sim_audit_note(a->r, "entry %#llx (%llu) is not at its place in the data file", (unsigned long long)e, (unsigned long long)index);
    }
}

static void ignore_flag(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    (void)at;
    (void)a;
    (void)e;
    (void)index;
    (void)arg;
}

static void check_flag(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    uint64_t c = (e & OFF_MASK) >> a->bits;
    (void)at;
    (void)arg;
    if ((e >> 62 & 1) || !(e & COPIED))
        return;
    if (c >= a->clusters || a->refs[c] != 1) {
        a->r->copied_wrong++;
        sim_audit_note(a->r, "entry %#llx (%llu) says that its cluster has one owner", (unsigned long long)e, (unsigned long long)index);
    }
}

/* Calls fn for each snapshot's L1 table. */
static void snapshots(struct audit *a, void (*fn)(struct audit *a, uint64_t l1, uint64_t entries))
{
    uint32_t n = u32(a, 60);
    uint64_t at = u64(a, 64);
    for (uint32_t i = 0; i < n; i++) {
        if (!range_inside(at, 40, a->d->len)) {
            a->r->broken = true;
            sim_audit_note(a->r, "snapshot %u lies outside the file", i);
            return;
        }
        fn(a, u64(a, at), u32(a, at + 8));
        uint32_t ids = u32(a, at + 12);
        at += round_up(40 + (uint64_t)u32(a, at + 36) + (ids >> 16) + (ids & 0xffff), 8);
    }
    if (fn && n)
        return;
}

static void snapshot_refs(struct audit *a, uint64_t l1, uint64_t entries)
{
    count_bytes(a, l1, entries * 8, "snapshot's L1");
    walk(a, l1, entries, count_table, count_mapping, NULL);
}

static uint64_t snapshot_table_bytes(struct audit *a)
{
    uint64_t off = u64(a, 64), at = off;
    for (uint32_t i = 0; i < u32(a, 60) && range_inside(at, 40, a->d->len); i++) {
        uint32_t ids = u32(a, at + 12);
        at += round_up(40 + (uint64_t)u32(a, at + 36) + (ids >> 16) + (ids & 0xffff), 8);
    }
    return at - off;
}

/* Offset of the data of a header extension; 0: there is none. */
static uint64_t extension(const struct audit *a, uint32_t type)
{
    uint64_t at = a->version == 2 ? 72 : u32(a, 100);
    for (unsigned i = 0; i < 64 && at + 8 <= a->cs; i++) {
        uint32_t t = u32(a, at), len = u32(a, at + 4);
        if (!t)
            return 0;
        if (t == type)
            return at + 8;
        at += 8 + round_up(len, 8);
    }
    return 0;
}

static void bitmaps(struct audit *a)
{
    uint64_t ext = a->version >= 3 ? extension(a, 0x23852875u) : 0;
    if (!ext)
        return;
    bool valid = u64(a, 88) & 1;
    uint64_t bytes = u64(a, ext + 8), dir = u64(a, ext + 16), at = dir;
    if (valid)
        count_bytes(a, dir, bytes, "bitmap directory");
    for (uint32_t i = 0; valid && i < u32(a, ext) && range_inside(at, 24, a->d->len); i++) {
        uint64_t table = u64(a, at);
        uint32_t entries = u32(a, at + 8);
        count_bytes(a, table, (uint64_t)entries * 8, "bitmap table");
        for (uint32_t k = 0; k < entries; k++)
            if (u64(a, table + k * 8) & OFF_MASK)
                count_bytes(a, u64(a, table + k * 8) & OFF_MASK, a->cs, "bitmap cluster");
        at += round_up(24 + (uint64_t)u32(a, at + 20) + (u32(a, at + 16) & 0xffff), 8);
    }
}

static void luks_header(struct audit *a)
{
    uint64_t ext = extension(a, 0x0537be77u);
    if (ext)
        count_bytes(a, u64(a, ext), u64(a, ext + 8), "LUKS header");
}

static void compare(struct audit *a)
{
    for (uint64_t c = 0; c < a->clusters; c++) {
        uint64_t s = stored(a, c);
        if (s > a->refs[c])
            a->r->leaks += s - a->refs[c];
        if (s < a->refs[c]) {
            a->r->low++;
            sim_audit_note(a->r, "cluster %llu: count %llu, references %u", (unsigned long long)c, (unsigned long long)s, a->refs[c]);
        }
    }
}

static bool begin(struct audit *a, const struct sim_disk *d, struct sim_audit *r)
{
    memset(r, 0, sizeof *r);
    *a = (struct audit){ .d = d, .r = r, .version = 0 };
    a->version = u32(a, 4);
    a->bits = u32(a, 20);
    if (d->len < 104 || u32(a, 0) != 0x514649fbu || a->version < 2 || a->version > 3 || a->bits < 9 || a->bits > 21) {
        r->broken = true;
        sim_audit_note(a->r, "no header");
        return false;
    }
    a->cs = 1ull << a->bits;
    a->clusters = div_up(d->len, a->cs);
    a->rt_off = u64(a, 48);
    a->rt_entries = (uint64_t)u32(a, 56) * a->cs / 8;
    a->order = a->version == 2 ? 4 : u32(a, 96);
    if (a->order > 6 || !range_inside(a->rt_off, a->rt_entries * 8, round_up(d->len, a->cs))) {
        r->broken = true;
        sim_audit_note(a->r, "the refcount table lies outside the file");
        return false;
    }
    a->entry_bytes = a->version == 3 && u64(a, 72) >> 4 & 1 ? 16 : 8;
    r->marked = a->version == 3 && (u64(a, 72) & 3);
    a->data_file = a->version == 3 && (u64(a, 72) & 4);
    return true;
}

void sim_audit(const struct sim_disk *d, struct sim_audit *r)
{
    struct audit a;
    if (sim_qed_audit(d, r) || !begin(&a, d, r))
        return;
    a.refs = sim_mem_alloc((a.clusters + 1) * sizeof *a.refs);
    uint64_t l1 = u64(&a, 40), entries = u32(&a, 36);
    count_bytes(&a, 0, a.cs, "header");
    count_bytes(&a, l1, entries * 8, "L1");
    count_bytes(&a, a.rt_off, a.rt_entries * 8, "refcount table");
    for (uint64_t k = 0; k < a.rt_entries; k++)
        if (u64(&a, a.rt_off + k * 8))
            count_bytes(&a, u64(&a, a.rt_off + k * 8) & ~0x1ffull, a.cs, "refcount block");
    walk(&a, l1, entries, count_table, count_mapping, NULL);
    if (u32(&a, 60)) {
        count_bytes(&a, u64(&a, 64), snapshot_table_bytes(&a), "snapshot table");
        snapshots(&a, snapshot_refs);
    }
    bitmaps(&a);
    luks_header(&a);
    compare(&a);
    walk(&a, l1, entries, check_flag, a.data_file ? ignore_flag : check_flag, NULL);
    sim_mem_free(a.refs);
}

/* ---- snapshot content ---- */

struct content { const uint32_t *below; uint32_t *gens; uint64_t sectors; };

static void read_table(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    (void)a;
    (void)at;
    (void)e;
    (void)index;
    (void)arg;
}

/* The bytes of a cluster may be followed by anything. */
static bool decompress(const struct audit *a, struct comp z, uint8_t *out)
{
    if (z.off >= a->d->len)
        return false;
    const uint8_t *in = a->d->data + z.off;
    size_t len = min_u64(z.len, a->d->len - z.off), used, got = 0;
    if (a->version >= 3 && u32(a, 100) > 104 && a->d->data[104] == 1) {
        used = ZSTD_findFrameCompressedSize(in, len);
        return !ZSTD_isError(used) && ZSTD_decompress(out, a->cs, in, used) == a->cs;
    }
    struct libdeflate_decompressor *x = libdeflate_alloc_decompressor();
    bool ok = libdeflate_deflate_decompress_ex(x, in, len, out, a->cs, &used, &got) == 0 && got == a->cs;
    libdeflate_free_decompressor(x);
    return ok;
}

/* Bytes of a cluster that is not compressed; those of an encrypted image are encrypted by their place in the file. */
static void read_plain(const struct audit *a, uint64_t off, uint8_t *buf)
{
    static struct lk_xform *key;             /* one for all images, for the life of the process */
    sim_disk_read(a->d, off, buf, a->cs);
    if (u32(a, 32) == 0)
        return;
    if (!key)
        key = sim_luks_key();
    lk_decrypt(key, buf, a->cs, off / SIM_SECTOR);
}

static void read_entry(struct audit *a, uint64_t e, uint64_t index, uint64_t at, void *arg)
{
    struct content *c = arg;
    uint64_t first = index * a->cs / SIM_SECTOR, per = a->cs / SIM_SECTOR;
    if (first >= c->sectors)
        return;
    uint8_t *buf = sim_mem_alloc(a->cs);
    bool ok = true;
    if (e >> 62 & 1) {
        ok = decompress(a, comp_of(a, e), buf);
    } else if (a->entry_bytes == 16 ? (e & OFF_MASK) != 0 : !(e & 1)) {
        read_plain(a, e & OFF_MASK, buf);
    }
    uint64_t bits = a->entry_bytes == 16 && !(e >> 62 & 1) ? u64(a, at + 8) : 0xffffffff;
    for (uint64_t s = 0; s < per && first + s < c->sectors; s++) {
        if (bits >> (s * 32 / per) & 1)
            c->gens[first + s] = ok ? sim_sector_gen(buf + s * SIM_SECTOR, first + s) : SIM_GEN_NONE;
        else if (bits >> (32 + s * 32 / per) & 1)
            c->gens[first + s] = 0;
    }
    sim_mem_free(buf);
}

/* Offset of the snapshot table entry of that name; 0: there is none. */
static uint64_t find_snapshot(struct audit *a, const char *name)
{
    uint64_t at = u64(a, 64);
    size_t len = strlen(name);
    for (uint32_t i = 0, n = u32(a, 60); i < n && range_inside(at, 40, a->d->len); i++) {
        uint32_t ids = u32(a, at + 12);
        uint64_t text = at + 40 + u32(a, at + 36) + (ids >> 16);
        if ((ids & 0xffff) == len && range_inside(text, len, a->d->len) && !memcmp(a->d->data + text, name, len))
            return at;
        at += round_up(40 + (uint64_t)u32(a, at + 36) + (ids >> 16) + (ids & 0xffff), 8);
    }
    return 0;
}

bool sim_audit_snapshot(const struct sim_disk *d, const char *name, const uint32_t *below, uint32_t *gens, uint64_t sectors, uint64_t *ret_size)
{
    struct audit a;
    struct sim_audit r;
    uint64_t at = begin(&a, d, &r) && u32(&a, 60) ? find_snapshot(&a, name) : 0;
    if (!at)
        return false;
    *ret_size = u64(&a, at + 48);            /* extra data: size of the VM's state, size of the disk */
    for (uint64_t s = 0; s < sectors; s++)
        gens[s] = below ? below[s] : 0;
    struct content c = { below, gens, sectors };
    walk(&a, u64(&a, at), u32(&a, at + 8), read_table, read_entry, &c);
    for (uint64_t s = 0; r.broken && s < sectors; s++)
        gens[s] = SIM_GEN_NONE;
    return true;
}

uint32_t sim_audit_snapshots(const struct sim_disk *d)
{
    struct audit a;
    struct sim_audit r;
    return begin(&a, d, &r) ? u32(&a, 60) : 0;
}

/* ---- bitmaps ---- */

static void read_bits(const struct audit *a, uint64_t at, uint64_t size, struct sim_found *f)
{
    uint64_t table = u64(a, at), entries = u32(a, at + 8), per = a->cs * 8;
    f->bit_count = div_up(size, 1ull << f->granularity_bits);
    f->bits = sim_mem_alloc(div_up(f->bit_count, 8) + 1);
    bool fits = entries == div_up(f->bit_count, per);
    f->broken |= !fits && !f->in_use;
    for (uint64_t i = 0; i < f->bit_count; i++) {
        uint64_t k = i / per, e = k < entries ? u64(a, table + k * 8) : 1, byte = (e & OFF_MASK) + i % per / 8;
        bool set = e & OFF_MASK ? byte < a->d->len && a->d->data[byte] >> (i % 8) & 1 : e & 1;
        f->bits[i / 8] |= (uint8_t)(set << (i % 8));
    }
}

void sim_audit_bitmaps(const struct sim_disk *d, struct sim_found found[SIM_BITMAPS])
{
    struct audit a;
    struct sim_audit r;
    memset(found, 0, SIM_BITMAPS * sizeof *found);
    if (!begin(&a, d, &r) || a.version < 3 || !(u64(&a, 88) & 1))
        return;
    uint64_t ext = extension(&a, 0x23852875u), claim = extension(&a, 0x62797262u), at = ext ? u64(&a, ext + 16) : 0;
    uint32_t claimed = claim && u64(&a, 88) >> 61 & 1 ? u32(&a, claim) : 0;
    for (uint32_t i = 0; ext && i < u32(&a, ext) && range_inside(at, 24, d->len); i++) {
        uint32_t name = u32(&a, at + 16) & 0xffff;
        for (unsigned k = 0; k < SIM_BITMAPS; k++) {
            if (strlen(sim_bitmap_name[k]) != name || !range_inside(at + 24, name, d->len) || memcmp(d->data + at + 24, sim_bitmap_name[k], name))
                continue;
            struct sim_found *f = &found[k];
            f->broken = f->there;                        /* twice the same name */
            f->there = true;
            f->in_use = u32(&a, at + 12) & 1;
            f->enabled = u32(&a, at + 12) >> 1 & 1;
            f->claimed = i < claimed;
            f->granularity_bits = d->data[at + 17];
            sim_mem_free(f->bits);
            read_bits(&a, at, u64(&a, 24), f);
        }
        at += round_up(24 + (uint64_t)u32(&a, at + 20) + name, 8);
    }
}

uint64_t sim_audit_generation(const struct sim_disk *d)
{
    struct audit a;
    struct sim_audit r;
    if (!begin(&a, d, &r) || a.version < 3)
        return 0;
    uint64_t claim = extension(&a, 0x62797262u);
    return claim ? (u64(&a, 88) >> 60 & 1) << 32 | u32(&a, claim + 4) : 0;
}

bool sim_audit_flags_missing(const struct sim_disk *d)
{
    struct audit a;
    struct sim_audit r;
    return begin(&a, d, &r) && a.version >= 3 && (u64(&a, 88) >> 59 & 1) && !(u64(&a, 88) >> 58 & 1);
}

void sim_found_free(struct sim_found found[SIM_BITMAPS])
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++)
        sim_mem_free(found[i].bits);
}

bool sim_found_dirty(const struct sim_found *f, uint64_t sector)
{
    uint64_t bit = sector * SIM_SECTOR >> f->granularity_bits;
    return bit < f->bit_count && f->bits[bit / 8] >> (bit % 8) & 1;
}
