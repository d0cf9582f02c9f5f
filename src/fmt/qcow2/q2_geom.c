/* SPDX-License-Identifier: MIT
 *
 * q2_geom.c: the meaning of table entries and refcounts.
 *
 * Purpose      Derived constants of an image, decoders and encoders of L1, L2 and refcount table entries, access
 *              to refcounts of any width, the one acceptance test for tables.
 * Owns         Nothing.
 * Invariants   I1 What decode accepts has no reserved bit set and is aligned: host offsets are below 2^56.
 *              I2 encode(decode(x)) == x for every accepted x.
 * Order        None: no I/O.
 * Concurrency  Pure functions.
 * Failure      Decoders answer false on hostile bytes; asserts guard callers' arguments only.
 * Tests        q2_geom_test.c
 */
#include "fmt/qcow2/q2_geom.h"

#define L2E_RESERVED 0x3f000000000001feull     /* bits 1..8 and 56..61 of a standard entry */
#define L1E_RESERVED 0x7f000000000001ffull
#define HOST_MAX (1ull << 56)

struct q2_geom q2_geom_make(uint32_t version, uint32_t cluster_bits, uint32_t refcount_order, bool ext_l2)
{
    ASSERT(version == 2 || version == 3);
    ASSERT(cluster_bits >= Q2_CLUSTER_BITS_MIN && cluster_bits <= Q2_CLUSTER_BITS_MAX);
    ASSERT(refcount_order <= 6);
    ASSERT(!ext_l2 || (version == 3 && cluster_bits >= Q2_EXT_L2_BITS_MIN));
    uint32_t csize_bits = cluster_bits - 8, bits = 1u << refcount_order;
    struct q2_geom g = {
        .version = version,
        .cluster_bits = cluster_bits,
        .cluster_size = 1ull << cluster_bits,
        .l2_entry_bytes = ext_l2 ? 16 : 8,
        .l2_bits = cluster_bits - (ext_l2 ? 4 : 3),
        .sub_bits = cluster_bits - (ext_l2 ? 5 : 0),
        .refcount_order = refcount_order,
        .refcount_bits = bits,
        .refcount_max = bits == 64 ? UINT64_MAX : (1ull << bits) - 1,
        .block_bits = cluster_bits + 3 - refcount_order,
        .csize_shift = 62 - csize_bits,
        .csize_mask = (1ull << csize_bits) - 1,
        .coff_mask = (1ull << (62 - csize_bits)) - 1,
        .zero_clusters = version >= 3,
        .ext_l2 = ext_l2,
    };
    return g;
}

static bool decode_compressed(const struct q2_geom *g, uint64_t raw, struct q2_l2e *ret)
{
    uint64_t host = raw & g->coff_mask;
    if (host >= HOST_MAX)
        return false;
    uint64_t sectors = (raw >> g->csize_shift & g->csize_mask) + 1;
    *ret = (struct q2_l2e){
        .kind = Q2_COMPRESSED,
        .copied = raw & Q2_E_COPIED,
        .host = host,
        .comp_bytes = sectors * 512 - host % 512,
    };
    return true;
}

bool q2_l2e_decode(const struct q2_geom *g, uint64_t raw, struct q2_l2e *ret)
{
    if (raw & Q2_E_COMPRESSED)
        return decode_compressed(g, raw, ret);
    uint64_t host = raw & Q2_L2E_OFF;
    bool zero = raw & Q2_E_ZERO;
    if (raw & L2E_RESERVED || !is_aligned(host, g->cluster_size))
        return false;
    if (zero && (!g->zero_clusters || g->ext_l2))
        return false;
    *ret = (struct q2_l2e){ .copied = raw & Q2_E_COPIED, .host = host };
    bool placed = host || (g->data_file && ret->copied);         /* offset 0 of a data file is a place */
    if (zero)
        ret->kind = placed ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
    else
        ret->kind = placed ? Q2_NORMAL : Q2_UNALLOCATED;
    return true;
}

uint64_t q2_l2e_encode(const struct q2_geom *g, const struct q2_l2e *e)
{
    uint64_t copied = e->copied ? Q2_E_COPIED : 0;
    if (e->kind == Q2_COMPRESSED) {
        ASSERT(e->host < HOST_MAX && e->host <= g->coff_mask && e->comp_bytes);
        uint64_t sectors = div_up(e->host % 512 + e->comp_bytes, 512);
        ASSERT(sectors - 1 <= g->csize_mask);
        return Q2_E_COMPRESSED | copied | (sectors - 1) << g->csize_shift | e->host;
    }
    ASSERT(e->host < HOST_MAX && is_aligned(e->host, g->cluster_size));
    switch (e->kind) {
    case Q2_UNALLOCATED:
        return g->data_file ? 0 : copied;        /* there COPIED alone is a place */
    case Q2_ZERO_PLAIN:
        return Q2_E_ZERO | (g->data_file ? 0 : copied);
    case Q2_ZERO_ALLOC:
        ASSERT(e->host || (g->data_file && copied));
        return Q2_E_ZERO | copied | e->host;
    default:
        ASSERT(e->host || (g->data_file && copied));
        return copied | e->host;
    }
}

/* ---- extended entries ---- */

bool q2_l2x_decode(const struct q2_geom *g, uint64_t raw, uint64_t bits, struct q2_l2e *ret)
{
    uint32_t alloc = (uint32_t)bits, zero = (uint32_t)(bits >> 32);
    if (raw & Q2_E_COMPRESSED)
        return bits == 0 && decode_compressed(g, raw, ret);
    uint64_t host = raw & Q2_L2E_OFF;
    bool placed = host || (g->data_file && raw & Q2_E_COPIED);         /* offset 0 of a data file is a place */
    if (raw & L2E_RESERVED || !is_aligned(host, g->cluster_size))      /* bit 0 means nothing here, as for the peer */
        return false;
    if (alloc & zero || (alloc && !placed))
        return false;
    *ret = (struct q2_l2e){ .kind = placed ? Q2_NORMAL : Q2_UNALLOCATED, .copied = raw & Q2_E_COPIED, .alloc = alloc, .zero = zero, .host = host };
    return true;
}

uint64_t q2_l2x_encode(const struct q2_geom *g, const struct q2_l2e *e, uint64_t *ret_bits)
{
    ASSERT(e->kind == Q2_UNALLOCATED || e->kind == Q2_NORMAL || e->kind == Q2_COMPRESSED);
    ASSERT(!(e->alloc & e->zero) && (!e->alloc || e->kind == Q2_NORMAL) && (!e->zero || e->kind != Q2_COMPRESSED));
    *ret_bits = (uint64_t)e->zero << 32 | e->alloc;
    return q2_l2e_encode(g, e);
}

enum q2_sub q2_sub_state(const struct q2_l2e *e, uint32_t i, uint32_t *ret_run)
{
    ASSERT(i < Q2_SUBCLUSTERS && e->kind != Q2_COMPRESSED);
    enum q2_sub s = e->alloc >> i & 1 ? Q2_SUB_DATA : e->zero >> i & 1 ? Q2_SUB_ZERO : Q2_SUB_ABSENT;
    uint32_t same = s == Q2_SUB_DATA ? e->alloc : s == Q2_SUB_ZERO ? e->zero : ~(e->alloc | e->zero);
    uint32_t others = ~(same >> i);          /* the bits that come in from the left are others, unless i is 0 */
    *ret_run = others ? (uint32_t)__builtin_ctz(others) : Q2_SUBCLUSTERS;
    return s;
}

/* Bits [from, to) of 32. */
static uint32_t bits_between(uint64_t from, uint64_t to)
{
    if (from >= to)
        return 0;
    return (uint32_t)((1ull << to) - (1ull << from));
}

uint32_t q2_sub_touched(const struct q2_geom *g, uint64_t from, uint64_t to)
{
    ASSERT(from < to && to <= g->cluster_size);
    return bits_between(from >> g->sub_bits, ((to - 1) >> g->sub_bits) + 1);
}

uint32_t q2_sub_inside(const struct q2_geom *g, uint64_t from, uint64_t to)
{
    ASSERT(from < to && to <= g->cluster_size);
    return bits_between(div_up(from, 1ull << g->sub_bits), to >> g->sub_bits);
}

bool q2_l1e_decode(const struct q2_geom *g, uint64_t raw, struct q2_l1e *ret)
{
    uint64_t off = raw & Q2_L1E_OFF;
    if (raw & L1E_RESERVED || !is_aligned(off, g->cluster_size))
        return false;
    *ret = (struct q2_l1e){ .l2_off = off, .copied = raw & Q2_E_COPIED };
    return true;
}

bool q2_rte_decode(const struct q2_geom *g, uint64_t raw, uint64_t *ret_off)
{
    if (!is_aligned(raw, g->cluster_size) || raw >= HOST_MAX)
        return false;
    *ret_off = raw;
    return true;
}

uint64_t q2_refcount_get(const struct q2_geom *g, const void *block, uint64_t i)
{
    const uint8_t *p = (const uint8_t *)block;
    switch (g->refcount_order) {
    case 3:
        return p[i];
    case 4:
        return be16_get((const be16 *)p + i);
    case 5:
        return be32_get((const be32 *)p + i);
    case 6:
        return be64_get((const be64 *)p + i);
    default: {
        uint64_t bit = i << g->refcount_order;
        return p[bit / 8] >> (bit % 8) & g->refcount_max;
    }
    }
}

void q2_refcount_put(const struct q2_geom *g, void *block, uint64_t i, uint64_t value)
{
    ASSERT(value <= g->refcount_max);
    uint8_t *p = (uint8_t *)block;
    switch (g->refcount_order) {
    case 3:
        p[i] = (uint8_t)value;
        break;
    case 4:
        be16_put((be16 *)p + i, (uint16_t)value);
        break;
    case 5:
        be32_put((be32 *)p + i, (uint32_t)value);
        break;
    case 6:
        be64_put((be64 *)p + i, value);
        break;
    default: {
        uint64_t bit = i << g->refcount_order;
        uint8_t *b = &p[bit / 8];
        *b = (uint8_t)((*b & ~(g->refcount_max << (bit % 8))) | value << (bit % 8));
    }
    }
}

bool q2_table_ok(const struct q2_geom *g, uint64_t off, uint64_t entries, uint32_t entry_bytes, uint64_t max_bytes)
{
    uint64_t bytes, end;
    if (mul_overflows(entries, entry_bytes, &bytes) || bytes > max_bytes)
        return false;
    if (add_overflows(off, bytes, &end) || end > HOST_MAX)
        return false;
    return is_aligned(off, g->cluster_size);
}
