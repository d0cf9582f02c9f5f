/* SPDX-License-Identifier: MIT
 *
 * q2_plan.c: options -> layout and bytes of a fresh image.
 *
 * Purpose      The one place that knows which create options are acceptable and how large the parts are.
 * Owns         The strings of the planned header.
 * Invariants   I1 Parts follow one another without gaps; blocks_count covers every cluster, rt_count every block.
 *              I2 What fill gives depends on the plan and the cluster number only.
 * Order        None: no I/O.
 * Concurrency  Pure functions.
 * Failure      One sentence that names option and value; *ret untouched.
 * Tests        q2_plan_test.c (golden bytes, structure), tests/interop/test_q2_create.py, tests/cli/measure_test.py
 */
#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER_DEFAULT 65536u
#define BACKING_FORMAT_MAX 15u

void q2_plan_fini(struct q2_plan *p)
{
    q2_header_fini(&p->h);
    free(p->crypt);
    p->crypt = NULL;
}

/* ---- layout ---- */

void q2_plan_layout(struct q2_plan *p, uint64_t virtual_size, bool preallocate)
{
    const struct q2_geom *g = &p->g;
    uint64_t l2_needed = q2_l1_entries(g, virtual_size);
    p->l1_count = div_up(l2_needed * 8, g->cluster_size);
    p->l2_count = preallocate ? l2_needed : 0;
    p->mapped = preallocate ? div_up(virtual_size, g->cluster_size) : 0;
    p->data_count = g->data_file ? 0 : p->mapped;
    p->blocks_count = p->rt_count = 0;
    /* Counts need space that needs counts: grows to a fixed point in a few steps. */
    for (;;) {
        p->clusters = 1 + p->rt_count + p->blocks_count + p->l1_count + p->crypt_count + p->l2_count + p->data_count;
        uint64_t blocks = div_up(p->clusters, 1ull << g->block_bits), rt = div_up(blocks * 8, g->cluster_size);
        if (blocks == p->blocks_count && rt == p->rt_count)
            break;
        p->blocks_count = blocks;
        p->rt_count = rt;
    }
    p->rt_first = 1;
    p->blocks_first = p->rt_first + p->rt_count;
    p->l1_first = p->blocks_first + p->blocks_count;
    p->crypt_first = p->l1_first + p->l1_count;
    p->l2_first = p->crypt_first + p->crypt_count;
    p->data_first = p->l2_first + p->l2_count;
}

/* ---- options ---- */

static int check_geometry(const struct fmt_create_opts *o, unsigned version, struct byre_err *err)
{
    uint64_t cluster = o->cluster_size ? o->cluster_size : CLUSTER_DEFAULT;
    unsigned bits = o->refcount_bits ? o->refcount_bits : 16;
    if (version != 2 && version != 3)
        return byre_fail(err, BAD_OPTION, "compat: version %u is not known (2 and 3 are)", version);
    if (!is_pow2(cluster) || cluster < 1u << Q2_CLUSTER_BITS_MIN || cluster > 1u << Q2_CLUSTER_BITS_MAX)
        return byre_fail(err, BAD_OPTION, "cluster_size: %" PRIu64 " is not a power of two from 512 to 2M", cluster);
    if (!is_pow2(bits) || bits > 64)
        return byre_fail(err, BAD_OPTION, "refcount_bits: %u is not a power of two from 1 to 64", bits);
    if (o->extended_l2 && cluster < 16384)
        return byre_fail(err, BAD_OPTION, "extended_l2: needs a cluster_size of at least 16k, not %" PRIu64, cluster);
    return 0;
}

static int check_v2(const struct fmt_create_opts *o, struct byre_err *err)
{
    if (o->refcount_bits && o->refcount_bits != 16)
        return byre_fail(err, BAD_OPTION, "refcount_bits: compat=0.10 has 16 bits only, not %u", o->refcount_bits);
    if (o->lazy_refcounts)
        return byre_fail(err, BAD_OPTION, "lazy_refcounts: not possible with compat=0.10");
    if (o->compression_type && strcmp(o->compression_type, "zlib"))
        return byre_fail(err, BAD_OPTION, "compression_type: compat=0.10 has zlib only, not '%s'", o->compression_type);
    if (o->extended_l2)
        return byre_fail(err, BAD_OPTION, "extended_l2: not possible with compat=0.10");
    if (o->data_file)
        return byre_fail(err, BAD_OPTION, "data_file: not possible with compat=0.10");
    return 0;
}

static int check_features(const struct fmt_create_opts *o, bool sizes_only, struct byre_err *err)
{
    if (o->compression_type && strcmp(o->compression_type, "zlib") && strcmp(o->compression_type, "zstd"))
        return byre_fail(err, BAD_OPTION, "compression_type: '%s' is not known (zlib and zstd are)", o->compression_type);
    if (o->data_file_raw && !o->data_file)
        return byre_fail(err, BAD_OPTION, "data_file_raw: needs data_file");
    if (o->data_file_raw && o->backing_file)
        return byre_fail(err, BAD_OPTION, "data_file_raw: not possible with backing_file '%s'", o->backing_file);
    if (o->data_file && o->encrypt.format)
        return byre_fail(err, NOT_SUPPORTED, "encrypt.format: not possible with data_file '%s' yet", o->data_file);
    if (!sizes_only && o->backing_file && o->prealloc != FMT_PREALLOC_OFF && !o->extended_l2)
        return byre_fail(err, BAD_OPTION, "preallocation: not possible with backing_file '%s'", o->backing_file);
    return 0;
}

static int check_names(const struct fmt_create_opts *o, struct byre_err *err)
{
    if (o->backing_fmt && !o->backing_file)
        return byre_fail(err, BAD_OPTION, "backing_fmt: '%s' without a backing_file", o->backing_fmt);
    if (o->backing_file) {
        size_t len = strlen(o->backing_file);
        if (!len || len > Q2_NAME_MAX)
            return byre_fail(err, BAD_OPTION, "backing_file: a name of %zu bytes cannot be stored (1 to %u)", len, Q2_NAME_MAX);
        if (!q2_name_ok((const uint8_t *)o->backing_file, len))
            return byre_fail(err, BAD_OPTION, "backing_file: the name contains control characters");
    }
    if (o->data_file && (!*o->data_file || strlen(o->data_file) > Q2_NAME_MAX || !q2_name_ok((const uint8_t *)o->data_file, strlen(o->data_file))))
        return byre_fail(err, BAD_OPTION, "data_file: the name cannot be stored (1 to %u bytes, no control characters)", Q2_NAME_MAX);
    if (o->backing_fmt && (!*o->backing_fmt || strlen(o->backing_fmt) > BACKING_FORMAT_MAX))
        return byre_fail(err, BAD_OPTION, "backing_fmt: '%.64s' cannot be stored (1 to %u bytes)", o->backing_fmt, BACKING_FORMAT_MAX);
    return 0;
}

static int check_size(const struct q2_plan *p, uint64_t size, struct byre_err *err)
{
    uint64_t l1_bytes = q2_l1_entries(&p->g, size) * 8;
    if (size > INT64_MAX || l1_bytes > Q2_L1_BYTES_MAX)
        return byre_fail(err, BAD_SIZE, "size: %" PRIu64 " bytes are too large for cluster_size %" PRIu64 " (the L1 table is limited to 32 MiB)",
                         size, p->g.cluster_size);
    return 0;
}

static char *dup_or_null(const char *s, bool *failed)
{
    char *d = s ? strdup(s) : NULL;
    *failed |= s && !d;
    return d;
}

static int fill_header(const struct fmt_create_opts *o, struct q2_plan *p, uint64_t size, struct byre_err *err)
{
    bool zstd = o->compression_type && !strcmp(o->compression_type, "zstd"), failed = false;
    p->h = (struct q2_header){
        .version = p->g.version,
        .cluster_bits = p->g.cluster_bits,
        .refcount_order = p->g.refcount_order,
        .size = size,
        .l1_size = (uint32_t)q2_l1_entries(&p->g, size),
        .l1_off = p->l1_first << p->g.cluster_bits,
        .rt_off = p->rt_first << p->g.cluster_bits,
        .rt_clusters = (uint32_t)p->rt_count,
        .incompat = (zstd ? Q2_INCOMPAT_COMPRESSION : 0) | (o->data_file ? Q2_INCOMPAT_DATA_FILE : 0) | (o->extended_l2 ? Q2_INCOMPAT_EXT_L2 : 0),
        .autoclear = o->data_file_raw ? Q2_AUTOCLEAR_RAW_DATA : 0,
        .compat = o->lazy_refcounts ? Q2_COMPAT_LAZY : 0,
        .compression_type = zstd,
    };
    if (p->crypt) {
        p->h.crypt_method = 2;
        p->h.has_crypto = true;
        p->h.crypto_off = p->crypt_first << p->g.cluster_bits;
        p->h.crypto_len = p->crypt->payload_off;
    }
    p->h.backing_name = dup_or_null(o->backing_file, &failed);
    p->h.backing_format = dup_or_null(o->backing_fmt, &failed);
    p->h.data_file = dup_or_null(o->data_file, &failed);
    if (failed) {
        q2_header_fini(&p->h);
        return byre_fail(err, NOMEM, "no memory for the header");
    }
    return 0;
}

int q2_plan_make(const struct fmt_create_opts *o, bool sizes_only, struct q2_plan *ret, struct byre_err *err)
{
    unsigned version = o->version ? o->version : 3, bits = o->refcount_bits ? o->refcount_bits : 16;
    int rc = check_geometry(o, version, err);
    if (!rc && version == 2)
        rc = check_v2(o, err);
    if (!rc)
        rc = check_features(o, sizes_only, err);
    if (!rc && !sizes_only)
        rc = check_names(o, err);
    if (rc)
        return rc;
    uint64_t cluster = o->cluster_size ? o->cluster_size : CLUSTER_DEFAULT;
    struct q2_plan p = { .prealloc = o->prealloc };
    p.g = q2_geom_make(version, (uint32_t)__builtin_ctzll(cluster), (uint32_t)__builtin_ctz(bits), o->extended_l2);
    p.g.data_file = o->data_file && !sizes_only;         /* measured as if it were one file, as the peer does */
    if (o->data_file_raw && p.prealloc == FMT_PREALLOC_OFF)      /* the file is the guest's disk: every cluster says so (1.081) */
        p.prealloc = FMT_PREALLOC_METADATA;
    rc = check_size(&p, o->size, err);
    if (rc)
        return rc;
    rc = q2_crypt_plan(o, &p.crypt, err);
    if (rc)
        return rc;
    if (p.crypt)
        p.crypt_count = div_up(p.crypt->payload_off, cluster);
    uint64_t size = round_up(o->size, 512);
    q2_plan_layout(&p, size, p.prealloc != FMT_PREALLOC_OFF);
    if (!sizes_only && p.rt_count << p.g.cluster_bits > Q2_RT_BYTES_MAX) {
        q2_plan_fini(&p);
        return byre_fail(err, BAD_SIZE, "size: %" PRIu64 " bytes preallocated need a refcount table above 8 MiB; use a larger cluster_size or fewer refcount_bits", o->size);
    }
    rc = fill_header(o, &p, size, err);
    if (!rc)
        *ret = p;
    else
        q2_plan_fini(&p);
    return rc;
}

/* ---- bytes ---- */

static void fill_rt(const struct q2_plan *p, uint64_t index, uint8_t *buf)
{
    uint64_t per = p->g.cluster_size / 8;
    be64 *e = (be64 *)buf;
    for (uint64_t i = 0, b = index * per; i < per && b < p->blocks_count; i++, b++)
        be64_put(&e[i], (p->blocks_first + b) << p->g.cluster_bits);
}

static void fill_block(const struct q2_plan *p, uint64_t index, uint8_t *buf)
{
    uint64_t per = 1ull << p->g.block_bits;
    uint64_t n = min_u64(per, p->clusters - index * per);
    for (uint64_t i = 0; i < n; i++)
        q2_refcount_put(&p->g, buf, i, 1);
}

static void fill_l1(const struct q2_plan *p, uint64_t index, uint8_t *buf)
{
    uint64_t per = p->g.cluster_size / 8;
    be64 *e = (be64 *)buf;
    for (uint64_t i = 0, t = index * per; i < per && t < p->l2_count; i++, t++)
        be64_put(&e[i], q2_l1e_encode((p->l2_first + t) << p->g.cluster_bits, true));
}

static void fill_l2(const struct q2_plan *p, uint64_t index, uint8_t *buf)
{
    uint64_t per = 1ull << p->g.l2_bits;
    be64 *e = (be64 *)buf;
    bool raw = p->h.autoclear & Q2_AUTOCLEAR_RAW_DATA;
    for (uint64_t i = 0, c = index * per; i < per && c < p->mapped; i++, c++) {
        bool zero = p->crypt && !p->g.ext_l2;    /* what lies there are no encrypted zeros (q2_crypt.c K3) */
        uint64_t at = p->g.data_file ? c : p->data_first + c;
        struct q2_l2e entry = { .kind = zero ? Q2_ZERO_ALLOC : Q2_NORMAL, .copied = true, .host = at << p->g.cluster_bits };
        if (!p->g.ext_l2) {
            be64_put(&e[i], q2_l2e_encode(&p->g, &entry));
            continue;
        }
        uint64_t bits;
        entry.alloc = raw ? Q2_SUB_ALL : 0;      /* else no subcluster is allocated: what lies below shows (1.137) */
        be64_put(&e[2 * i], q2_l2x_encode(&p->g, &entry, &bits));
        be64_put(&e[2 * i + 1], bits);
    }
}

void q2_plan_fill(const struct q2_plan *p, uint64_t first, uint64_t n, uint8_t *buf)
{
    ASSERT(first >= 1 && first + n <= p->data_first);
    memset(buf, 0, n << p->g.cluster_bits);
    for (uint64_t c = first; c < first + n; c++, buf += p->g.cluster_size) {
        if (c < p->blocks_first)
            fill_rt(p, c - p->rt_first, buf);
        else if (c < p->l1_first)
            fill_block(p, c - p->blocks_first, buf);
        else if (c < p->l2_first)
            fill_l1(p, c - p->l1_first, buf);
        else
            fill_l2(p, c - p->l2_first, buf);
    }
}
