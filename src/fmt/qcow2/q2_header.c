/* SPDX-License-Identifier: MIT
 *
 * q2_header.c: from the bytes of the first cluster to struct q2_header, and back.
 *
 * Purpose      Refuses what is out of range before anything is derived from it; keeps what it does not know.
 * Owns         The strings and copies in struct q2_header.
 * Invariants   I1 A header that parse accepted gives a q2_geom without asserts, and every table it names is
 *                 aligned, within its cap and (outside check mode) within the file.
 *              I2 Known extensions occur at most once; unknown ones are kept byte for byte (<= 64 KiB together).
 *              I3 On failure *ret is untouched and nothing stays allocated.
 *              I4 A bitmaps extension that is malformed is no reason to refuse: its fields are taken as they
 *                 are and the loader refuses them (G.015).
 * Order        None: no I/O.
 * Concurrency  Pure functions.
 * Failure      -EINVAL bad field or extension, -ENOTSUP unknown incompatible feature, -ENOMEM.
 * Tests        q2_header_test.c, fuzz/qcow2_open.c
 */
#include "fmt/qcow2/q2_header.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"

#define UNKNOWN_EXT_MAX (64u << 10)
#define BACKING_FORMAT_MAX 15u
#define HEADER_KNOWN 112u
#define FRONTIER_BYTES 16u
#define SUPERSETS_BYTES 8u

struct parser {
    const uint8_t *buf;
    size_t len;
    uint64_t file_bytes;
    bool check_mode;
    const char *name;
    struct byre_err *err;
    struct q2_geom g;
    uint64_t backing_off;
    uint32_t backing_len;
    uint32_t seen;              /* bit per known extension */
    size_t ext_count, unknown_bytes;
    const uint8_t *names;       /* feature name table */
    size_t names_bytes;
};

enum { SEEN_BACKING_FORMAT = 1, SEEN_NAMES = 2, SEEN_BITMAPS = 4, SEEN_CRYPTO = 8, SEEN_DATA_FILE = 16, SEEN_FRONTIER = 32, SEEN_SUPERSETS = 64 };

void q2_header_fini(struct q2_header *h)
{
    free(h->backing_name);
    free(h->backing_format);
    free(h->data_file);
    free(h->tail_bytes);
    free(h->unknown_feature);
    for (size_t i = 0; i < h->unknown_count; i++)
        free(h->unknown[i].data);
    free(h->unknown);
    *h = (struct q2_header){ 0 };
}

bool q2_name_ok(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] < 0x20 || p[i] == 0x7f)
            return false;
    return true;
}

/* A copy of bytes as a string; NULL when memory ran out. */
static char *copy_string(const uint8_t *p, size_t len)
{
    char *s = malloc(len + 1);
    if (!s)
        return NULL;
    memcpy(s, p, len);
    s[len] = 0;
    return s;
}

static int take_name(struct parser *p, const char *what, const uint8_t *data, size_t len, char **ret)
{
    if (!q2_name_ok(data, len))
        return byre_fail(p->err, Q2_HEADER, "%s: the %s contains NUL or control characters", p->name, what);
    if (!len)
        return 0;
    *ret = copy_string(data, len);
    return *ret ? 0 : byre_fail(p->err, NOMEM, "%s: no memory for the header", p->name);
}

/* ---- fixed fields ---- */

static int check_identity(struct parser *p, const struct q2_disk_header *d, struct q2_header *h)
{
    if (p->len < Q2_HEADER_V2_BYTES)
        return byre_fail(p->err, BAD_FORMAT, "%s: %zu bytes are too few for a qcow2 header", p->name, p->len);
    if (be32_get(&d->magic) != Q2_MAGIC)
        return byre_fail(p->err, BAD_FORMAT, "%s: not a qcow2 file (magic %#" PRIx32 ")", p->name, be32_get(&d->magic));
    h->version = be32_get(&d->version);
    if (h->version != 2 && h->version != 3)
        return byre_fail(p->err, Q2_FEATURE, "%s: qcow2 version %" PRIu32 " is not known (2 and 3 are)", p->name, h->version);
    if (h->version == 3 && p->len < Q2_HEADER_V3_MIN)
        return byre_fail(p->err, BAD_FORMAT, "%s: %zu bytes are too few for a version 3 header", p->name, p->len);
    h->cluster_bits = be32_get(&d->cluster_bits);
    if (h->cluster_bits < Q2_CLUSTER_BITS_MIN || h->cluster_bits > Q2_CLUSTER_BITS_MAX)
        return byre_fail(p->err, Q2_HEADER, "%s: cluster_bits %" PRIu32 " is outside 9..21", p->name, h->cluster_bits);
    return 0;
}

/* Everything behind byte 72. */
static int check_v3_fields(struct parser *p, const struct q2_disk_header *d, struct q2_header *h)
{
    if (h->version == 2) {
        h->header_len = Q2_HEADER_V2_BYTES;
        h->refcount_order = 4;
        return 0;
    }
    h->header_len = be32_get(&d->header_len);
    if (h->header_len < Q2_HEADER_V3_MIN || h->header_len % 8 || h->header_len > 1ull << h->cluster_bits)
        return byre_fail(p->err, Q2_HEADER, "%s: header length %" PRIu32 " is not a multiple of 8 from 104 to one cluster",
                         p->name, h->header_len);
    if (h->header_len > p->len)
        return byre_fail(p->err, BAD_FORMAT, "%s: the file ends inside its header", p->name);
    h->incompat = be64_get(&d->incompat);
    h->compat = be64_get(&d->compat);
    h->autoclear = be64_get(&d->autoclear);
    h->refcount_order = be32_get(&d->refcount_order);
    if (h->refcount_order > 6)
        return byre_fail(p->err, Q2_HEADER, "%s: refcount_order %" PRIu32 " is above 6", p->name, h->refcount_order);
    if (h->header_len >= HEADER_KNOWN) {
        h->compression_type = d->compression_type;
        memcpy(h->pad, d->pad, sizeof h->pad);
    }
    return 0;
}

static int copy_tail(struct parser *p, struct q2_header *h)
{
    if (h->header_len <= HEADER_KNOWN)
        return 0;
    h->tail_len = h->header_len - HEADER_KNOWN;
    h->tail_bytes = malloc(h->tail_len);
    if (!h->tail_bytes)
        return byre_fail(p->err, NOMEM, "%s: no memory for the header", p->name);
    memcpy(h->tail_bytes, p->buf + HEADER_KNOWN, h->tail_len);
    return 0;
}

static int check_crypt_and_compression(struct parser *p, struct q2_header *h)
{
    if (h->crypt_method > 2)
        return byre_fail(p->err, Q2_HEADER, "%s: encryption method %" PRIu32 " is not known", p->name, h->crypt_method);
    bool flagged = h->incompat & Q2_INCOMPAT_COMPRESSION;
    if (h->compression_type > 1)
        return byre_fail(p->err, Q2_HEADER, "%s: compression type %u is not known", p->name, h->compression_type);
    if (flagged != (h->compression_type != 0))
        return byre_fail(p->err, Q2_HEADER, "%s: compression type %u contradicts the feature bit", p->name, h->compression_type);
    if (h->incompat & Q2_INCOMPAT_EXT_L2 && h->cluster_bits < 14)
        return byre_fail(p->err, Q2_HEADER, "%s: extended L2 entries need clusters of at least 16 KiB", p->name);
    return 0;
}

/* ---- extensions ---- */

static int ext_bad(struct parser *p, const char *what, uint32_t len)
{
    return byre_fail(p->err, Q2_EXTENSION, "%s: header extension '%s' has %" PRIu32 " bytes", p->name, what, len);
}

static int ext_bitmaps(struct parser *p, struct q2_header *h, const uint8_t *data, uint32_t len)
{
    h->has_bitmaps = true;
    h->bitmaps_ext_off = (uint32_t)(data - p->buf);
    h->bitmaps_ext_len = len;
    if (len != sizeof(struct q2_disk_bitmaps_ext))
        return 0;                                      /* I4: count 0 is refused by the loader */
    const struct q2_disk_bitmaps_ext *d = (const struct q2_disk_bitmaps_ext *)data;
    h->bitmap_count = be32_get(&d->reserved) ? 0 : be32_get(&d->count);
    h->bitmap_dir_bytes = be64_get(&d->dir_bytes);
    h->bitmap_dir_off = be64_get(&d->dir_off);
    return 0;
}

static int ext_crypto(struct parser *p, struct q2_header *h, const uint8_t *data, uint32_t len)
{
    if (len != 16)
        return ext_bad(p, "crypto header pointer", len);
    struct rcur c = rcur_of(data, len);
    h->has_crypto = true;
    h->crypto_off = rcur_be64(&c);
    h->crypto_len = rcur_be64(&c);
    if (h->crypt_method != 2)
        return byre_fail(p->err, Q2_EXTENSION, "%s: a crypto header pointer without LUKS encryption", p->name);
    if (!q2_table_ok(&p->g, h->crypto_off, h->crypto_len, 1, UINT64_MAX))
        return byre_fail(p->err, Q2_EXTENSION, "%s: the crypto header at %#" PRIx64 " is misplaced", p->name, h->crypto_off);
    return 0;
}

static int ext_keep(struct parser *p, struct q2_header *h, uint32_t type, const uint8_t *data, uint32_t len)
{
    p->unknown_bytes += len;
    if (p->unknown_bytes > UNKNOWN_EXT_MAX)
        return byre_fail(p->err, Q2_EXTENSION, "%s: unknown header extensions exceed 64 KiB", p->name);
    struct q2_unknown_ext *all = realloc(h->unknown, (h->unknown_count + 1) * sizeof *all);
    uint8_t *copy = malloc(len ? len : 1);
    if (all)
        h->unknown = all;
    if (!all || !copy) {
        free(copy);
        return byre_fail(p->err, NOMEM, "%s: no memory for the header", p->name);
    }
    memcpy(copy, data, len);
    h->unknown[h->unknown_count++] = (struct q2_unknown_ext){ type, len, copy };
    return 0;
}

static int ext_frontier(struct parser *p, struct q2_header *h, const uint8_t *data, uint32_t len)
{
    struct rcur c = rcur_of(data, len);
    h->has_frontier = true;
    h->frontier_ext_off = (uint32_t)(data - p->buf);
    uint64_t start = rcur_be64(&c), end = rcur_be64(&c);
    if (start <= end && is_aligned(start | end, p->g.cluster_size)) {
        h->frontier_start = start;
        h->frontier_end = end;
    }
    return 0;
}

static int ext_supersets(struct parser *p, struct q2_header *h, const uint8_t *data, uint32_t len)
{
    struct rcur c = rcur_of(data, len);
    h->has_supersets = true;
    h->superset_ext_off = (uint32_t)(data - p->buf);
    h->superset_count = rcur_be32(&c);
    h->generation = rcur_be32(&c);
    return 0;
}

static int seen_once(struct parser *p, uint32_t bit, const char *what)
{
    if (p->seen & bit)
        return byre_fail(p->err, Q2_EXTENSION, "%s: header extension '%s' occurs twice", p->name, what);
    p->seen |= bit;
    return 0;
}

static int ext_one(struct parser *p, struct q2_header *h, uint32_t type, const uint8_t *data, uint32_t len)
{
    int rc;
    switch (type) {
    case Q2_EXT_BACKING_FORMAT:
        if ((rc = seen_once(p, SEEN_BACKING_FORMAT, "backing format")))
            return rc;
        if (len > BACKING_FORMAT_MAX)
            return ext_bad(p, "backing format", len);
        return take_name(p, "backing format", data, len, &h->backing_format);
    case Q2_EXT_FEATURE_NAMES:
        p->names = data;
        p->names_bytes = len;
        return seen_once(p, SEEN_NAMES, "feature names");
    case Q2_EXT_BITMAPS:
        if ((rc = seen_once(p, SEEN_BITMAPS, "bitmaps")))
            return rc;
        return ext_bitmaps(p, h, data, len);
    case Q2_EXT_CRYPTO:
        if ((rc = seen_once(p, SEEN_CRYPTO, "crypto header pointer")))
            return rc;
        return ext_crypto(p, h, data, len);
    case Q2_EXT_DATA_FILE:
        if ((rc = seen_once(p, SEEN_DATA_FILE, "data file name")))
            return rc;
        if (len > Q2_NAME_MAX)
            return ext_bad(p, "data file name", len);
        return take_name(p, "data file name", data, len, &h->data_file);
    case Q2_EXT_FRONTIER:
        if (len != FRONTIER_BYTES || h->version < 3)
            return ext_keep(p, h, type, data, len);
        if ((rc = seen_once(p, SEEN_FRONTIER, "frontier")))
            return rc;
        return ext_frontier(p, h, data, len);
    case Q2_EXT_SUPERSETS:
        if (len != SUPERSETS_BYTES || h->version < 3)
            return ext_keep(p, h, type, data, len);
        if ((rc = seen_once(p, SEEN_SUPERSETS, "supersets")))
            return rc;
        return ext_supersets(p, h, data, len);
    case Q2_EXT_PADDING:
        return 0;                                      /* room, nothing else: not worth keeping when a header is laid out anew */
    default:
        return ext_keep(p, h, type, data, len);
    }
}

/* Extensions lie between the header and the backing name or the end of the first cluster (1.015). */
static int parse_extensions(struct parser *p, struct q2_header *h)
{
    uint64_t end = p->backing_off ? p->backing_off : p->g.cluster_size;
    if (end > p->len)
        end = p->len;
    uint64_t pos = h->header_len;
    while (pos < end && end - pos >= sizeof(struct q2_disk_ext)) {
        const struct q2_disk_ext *e = (const struct q2_disk_ext *)(p->buf + pos);
        uint32_t type = be32_get(&e->type), len = be32_get(&e->len);
        pos += sizeof *e;
        if (type == Q2_EXT_END)
            return 0;
        if (len > end - pos)
            return byre_fail(p->err, Q2_EXTENSION, "%s: header extension %#" PRIx32 " of %" PRIu32 " bytes does not fit the header",
                             p->name, type, len);
        if (++p->ext_count > Q2_EXTENSIONS_MAX)
            return byre_fail(p->err, Q2_EXTENSION, "%s: more than %u header extensions", p->name, Q2_EXTENSIONS_MAX);
        int rc = ext_one(p, h, type, p->buf + pos, len);
        if (rc)
            return rc;
        pos += round_up(len, 8);
    }
    return 0;
}

static int parse_backing(struct parser *p, struct q2_header *h)
{
    if (!p->backing_off)
        return 0;
    uint64_t room = p->g.cluster_size;
    if (p->backing_off < h->header_len || p->backing_off > room)
        return byre_fail(p->err, Q2_HEADER, "%s: the backing file name at %#" PRIx64 " is outside the header cluster", p->name, p->backing_off);
    if (p->backing_len > Q2_NAME_MAX || p->backing_len > room - p->backing_off)
        return byre_fail(p->err, Q2_HEADER, "%s: the backing file name has %" PRIu32 " bytes, which is too long", p->name, p->backing_len);
    if (!range_inside(p->backing_off, p->backing_len, p->len))
        return byre_fail(p->err, BAD_FORMAT, "%s: the file ends inside the backing file name", p->name);
    return take_name(p, "backing file name", p->buf + p->backing_off, p->backing_len, &h->backing_name);
}

/* ---- what the fields promise ---- */

static int check_features(struct parser *p, const struct q2_header *h)
{
    uint64_t unknown = h->incompat & ~Q2_INCOMPAT_KNOWN;
    if (!unknown)
        return 0;
    uint8_t bit = (uint8_t)__builtin_ctzll(unknown);
    for (size_t i = 0; i + sizeof(struct q2_disk_feature_name) <= p->names_bytes; i += sizeof(struct q2_disk_feature_name)) {
        const struct q2_disk_feature_name *f = (const struct q2_disk_feature_name *)(p->names + i);
        size_t n = strnlen((const char *)f->name, sizeof f->name);
        if (f->type == 0 && f->bit == bit && n && q2_name_ok(f->name, n))
            return byre_fail(p->err, Q2_FEATURE, "%s: needs the unknown feature '%.*s' (incompatible bit %u)",
                             p->name, (int)n, (const char *)f->name, bit);
    }
    return byre_fail(p->err, Q2_FEATURE, "%s: needs an unknown feature (incompatible bit %u)", p->name, bit);
}

static int check_table(struct parser *p, const char *what, uint64_t off, uint64_t entries, uint32_t entry_bytes, uint64_t max)
{
    if (!q2_table_ok(&p->g, off, entries, entry_bytes, max))
        return byre_fail(p->err, Q2_TABLE, "%s: the %s of %" PRIu64 " entries at %#" PRIx64 " is misaligned or too large",
                         p->name, what, entries, off);
    if (p->check_mode || !entries)
        return 0;
    /* The last cluster of a file may be cut short; what is missing reads as zeros. */
    uint64_t file = round_up(p->file_bytes, p->g.cluster_size);
    if (off < p->g.cluster_size || off >= p->file_bytes || !range_inside(off, entries * entry_bytes, file))
        return byre_fail(p->err, Q2_TABLE, "%s: the %s of %" PRIu64 " entries at %#" PRIx64 " is outside the file",
                         p->name, what, entries, off);
    return 0;
}

static int check_tables(struct parser *p, const struct q2_header *h)
{
    int rc = check_table(p, "L1 table", h->l1_off, h->l1_size, 8, Q2_L1_BYTES_MAX);
    if (rc)
        return rc;
    uint64_t need = q2_l1_entries(&p->g, h->size);
    if (h->l1_size < need)
        return byre_fail(p->err, Q2_HEADER, "%s: the L1 table has %" PRIu32 " entries, a disk of %" PRIu64 " bytes needs %" PRIu64,
                         p->name, h->l1_size, h->size, need);
    if (!h->rt_clusters && !p->check_mode)
        return byre_fail(p->err, Q2_TABLE, "%s: there is no refcount table", p->name);
    rc = check_table(p, "refcount table", h->rt_off, (uint64_t)h->rt_clusters * (p->g.cluster_size / 8), 8, Q2_RT_BYTES_MAX);
    if (rc)
        return rc;
    if (h->nb_snapshots > Q2_SNAPSHOTS_MAX && !p->check_mode)
        return byre_fail(p->err, Q2_TABLE, "%s: %" PRIu32 " snapshots are more than %u", p->name, h->nb_snapshots, Q2_SNAPSHOTS_MAX);
    return check_table(p, "snapshot table", h->snapshots_off, min_u64(h->nb_snapshots, Q2_SNAPSHOTS_MAX), sizeof(struct q2_disk_snapshot), Q2_SNAPSHOT_TABLE_MAX);
}

static int parse_into(struct parser *p, struct q2_header *h)
{
    struct q2_disk_header d = { 0 };
    memcpy(&d, p->buf, min_u64(p->len, sizeof d));
    int rc = check_identity(p, &d, h);
    if (rc)
        return rc;
    h->size = be64_get(&d.size);
    h->crypt_method = be32_get(&d.crypt_method);
    h->l1_size = be32_get(&d.l1_size);
    h->l1_off = be64_get(&d.l1_off);
    h->rt_off = be64_get(&d.rt_off);
    h->rt_clusters = be32_get(&d.rt_clusters);
    h->nb_snapshots = be32_get(&d.nb_snapshots);
    h->snapshots_off = be64_get(&d.snapshots_off);
    p->backing_off = be64_get(&d.backing_off);
    p->backing_len = be32_get(&d.backing_len);
    if ((rc = check_v3_fields(p, &d, h)) || (rc = check_crypt_and_compression(p, h)))
        return rc;
    p->g = q2_geom_make(h->version, h->cluster_bits, h->refcount_order, h->incompat & Q2_INCOMPAT_EXT_L2);
    if ((rc = copy_tail(p, h)) || (rc = parse_backing(p, h)) || (rc = parse_extensions(p, h)))
        return rc;
    if ((rc = check_features(p, h)))
        return rc;
    if (h->crypt_method == 2 && !h->has_crypto)
        return byre_fail(p->err, Q2_EXTENSION, "%s: LUKS encryption without a crypto header pointer", p->name);
    return check_tables(p, h);
}

int q2_header_parse(const uint8_t *buf, size_t len, uint64_t file_bytes, bool check_mode, const char *name, struct q2_header *ret, struct byre_err *err)
{
    struct parser p = { .buf = buf, .len = len, .file_bytes = file_bytes, .check_mode = check_mode, .name = name, .err = err };
    struct q2_header h = { 0 };
    int rc = parse_into(&p, &h);
    if (rc) {
        q2_header_fini(&h);
        return rc;
    }
    *ret = h;
    return 0;
}

int q2_header_supported(const struct q2_header *h, const char *name, struct byre_err *err)
{
    if (h->incompat & Q2_INCOMPAT_DATA_FILE && h->nb_snapshots)
        return byre_fail(err, Q2_SNAPSHOTS, "%s: %" PRIu32 " internal snapshots in an image with an external data file, which cannot have any", name, h->nb_snapshots);
    return 0;
}

/* ---- emit ---- */

static const struct { uint8_t type, bit; const char *name; } feature_names[] = {
    { 0, 0, "dirty bit" },
    { 0, 1, "corrupt bit" },
    { 0, 2, "external data file" },
    { 0, 3, "compression type" },
    { 0, 4, "extended L2 entries" },
    { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },
    { 2, 1, "raw external data" },
    { 2, 60, "byre generation" },
    { 2, 61, "byre bitmap supersets" },
    { 2, 62, "byre frontier" },
};
#define FEATURE_NAME_COUNT (sizeof feature_names / sizeof feature_names[0])

static void emit_ext(struct wcur *c, uint32_t type, const void *data, uint32_t len)
{
    wcur_be32(c, type);
    wcur_be32(c, len);
    wcur_bytes(c, data, len);
    wcur_align(c, 8);
}

static void emit_fixed(struct wcur *c, const struct q2_header *h, uint32_t header_len)
{
    struct q2_disk_header d = { 0 };
    be32_put(&d.magic, Q2_MAGIC);
    be32_put(&d.version, h->version);
    be32_put(&d.cluster_bits, h->cluster_bits);
    be64_put(&d.size, h->size);
    be32_put(&d.crypt_method, h->crypt_method);
    be32_put(&d.l1_size, h->l1_size);
    be64_put(&d.l1_off, h->l1_off);
    be64_put(&d.rt_off, h->rt_off);
    be32_put(&d.rt_clusters, h->rt_clusters);
    be32_put(&d.nb_snapshots, h->nb_snapshots);
    be64_put(&d.snapshots_off, h->snapshots_off);
    if (h->version >= 3) {
        be64_put(&d.incompat, h->incompat);
        be64_put(&d.compat, h->compat);
        be64_put(&d.autoclear, h->autoclear);
        be32_put(&d.refcount_order, h->refcount_order);
        be32_put(&d.header_len, header_len);
        d.compression_type = h->compression_type;
        memcpy(d.pad, h->pad, sizeof d.pad);
    }
    wcur_bytes(c, &d, min_u64(header_len, sizeof d));
    if (header_len > HEADER_KNOWN)
        wcur_bytes(c, h->tail_bytes, h->tail_len);
}

static void emit_pair(struct wcur *c, uint32_t type, uint64_t a, uint64_t b)
{
    uint8_t data[16];
    struct wcur w = wcur_of(data, sizeof data);
    wcur_be64(&w, a);
    wcur_be64(&w, b);
    emit_ext(c, type, data, sizeof data);
}

static void emit_feature_names(struct wcur *c)
{
    wcur_be32(c, Q2_EXT_FEATURE_NAMES);
    wcur_be32(c, FEATURE_NAME_COUNT * sizeof(struct q2_disk_feature_name));
    for (size_t i = 0; i < FEATURE_NAME_COUNT; i++) {
        struct q2_disk_feature_name f = { .type = feature_names[i].type, .bit = feature_names[i].bit };
        memcpy(f.name, feature_names[i].name, strlen(feature_names[i].name));
        wcur_bytes(c, &f, sizeof f);
    }
}

static void emit_extensions(struct wcur *c, const struct q2_header *h, const struct q2_header_layout *l)
{
    if (h->backing_format)
        emit_ext(c, Q2_EXT_BACKING_FORMAT, h->backing_format, (uint32_t)strlen(h->backing_format));
    if (h->data_file)
        emit_ext(c, Q2_EXT_DATA_FILE, h->data_file, (uint32_t)strlen(h->data_file));
    if (h->has_crypto)
        emit_pair(c, Q2_EXT_CRYPTO, h->crypto_off, h->crypto_len);
    if (h->has_bitmaps && h->bitmap_count) {
        struct q2_disk_bitmaps_ext d = { 0 };
        be32_put(&d.count, h->bitmap_count);
        be64_put(&d.dir_bytes, h->bitmap_dir_bytes);
        be64_put(&d.dir_off, h->bitmap_dir_off);
        emit_ext(c, Q2_EXT_BITMAPS, &d, sizeof d);
    }
    if (h->version >= 3 && l->frontier)
        emit_pair(c, Q2_EXT_FRONTIER, h->frontier_start, h->frontier_end);
    if (h->version >= 3 && h->has_supersets) {
        uint8_t data[SUPERSETS_BYTES];
        struct wcur w = wcur_of(data, sizeof data);
        wcur_be32(&w, h->superset_count);
        wcur_be32(&w, h->generation);
        emit_ext(c, Q2_EXT_SUPERSETS, data, sizeof data);
    }
    for (size_t i = 0; i < h->unknown_count; i++)
        emit_ext(c, h->unknown[i].type, h->unknown[i].data, h->unknown[i].len);
    if (h->version >= 3 && l->names && h->cluster_bits >= 12)
        emit_feature_names(c);
    emit_ext(c, Q2_EXT_END, NULL, 0);
}

int q2_header_emit_as(const struct q2_header *h, const struct q2_header_layout *l, uint8_t *buf, size_t buf_bytes, struct byre_err *err)
{
    ASSERT(buf_bytes == 1ull << h->cluster_bits);
    memset(buf, 0, buf_bytes);
    struct wcur c = wcur_of(buf, buf_bytes);
    emit_fixed(&c, h, h->version == 2 ? Q2_HEADER_V2_BYTES : HEADER_KNOWN + h->tail_len);
    emit_extensions(&c, h, l);
    while (h->backing_name && wcur_ok(&c) && wcur_pos(&c) < l->name_off)
        wcur_bytes(&c, "", 1);
    if (h->backing_name && l->name_off && wcur_pos(&c) != l->name_off)
        return byre_fail(err, NO_SPACE, "the header extensions reach the backing file name");
    if (h->backing_name) {
        uint32_t len = (uint32_t)strlen(h->backing_name);
        struct q2_disk_header *d = (struct q2_disk_header *)buf;
        be64_put(&d->backing_off, wcur_pos(&c));
        be32_put(&d->backing_len, len);
        wcur_bytes(&c, h->backing_name, len);
    }
    if (!wcur_ok(&c))
        return byre_fail(err, NO_SPACE, "the header does not fit a cluster of %zu bytes (name of the backing file too long?)", buf_bytes);
    return 0;
}

int q2_header_emit(const struct q2_header *h, bool reserve_frontier, uint8_t *buf, size_t buf_bytes, struct byre_err *err)
{
    struct q2_header_layout l = { .frontier = reserve_frontier || h->has_frontier, .names = true };
    return q2_header_emit_as(h, &l, buf, buf_bytes, err);
}

struct q2_header_use q2_header_used(const uint8_t *buf, size_t buf_bytes)
{
    struct q2_disk_header d = { 0 };
    memcpy(&d, buf, min_u64(buf_bytes, sizeof d));
    uint64_t off = be64_get(&d.backing_off), at = be32_get(&d.version) >= 3 ? be32_get(&d.header_len) : Q2_HEADER_V2_BYTES;
    struct q2_header_use u = { .name_off = off, .name_end = off ? min_u64(off + be32_get(&d.backing_len), buf_bytes) : 0 };
    uint64_t end = off && off < buf_bytes ? off : buf_bytes;
    while (at < end && end - at >= sizeof(struct q2_disk_ext)) {
        const struct q2_disk_ext *e = (const struct q2_disk_ext *)(buf + at);
        uint32_t type = be32_get(&e->type), len = be32_get(&e->len);
        at += sizeof *e;
        if (type == Q2_EXT_END || len > end - at)
            break;
        at = min_u64(at + round_up(len, 8), end);
    }
    u.ext_end = min_u64(at, buf_bytes);
    return u;
}

static bool is_token(const uint8_t *p, size_t len)
{
    size_t n = 0;
    while (n < len && ((p[n] >= '0' && p[n] <= '9') || (p[n] >= 'a' && p[n] <= 'f')))
        n++;
    return len == Q2_TOKEN_BYTES && n == len;
}

/* A name, and perhaps a token. */
static int take_mark(const struct q2_unknown_ext *e, struct q2_parts *p)
{
    const uint8_t *feed = memchr(e->data, '\n', e->len);
    size_t name = feed ? (size_t)(feed - e->data) : e->len, rest = feed ? e->len - name - 1 : 0;
    bool sound = name && q2_name_ok(e->data, name) && (!feed || is_token(feed + 1, rest));
    p->name = sound ? copy_string(e->data, name) : strdup("another image");
    if (sound && feed)
        p->through = copy_string(feed + 1, rest);
    return p->name && (!sound || !feed || p->through) ? 0 : -ENOMEM;
}

int q2_header_parts(const struct q2_header *h, struct q2_parts *ret)
{
    struct q2_parts p = { 0 };
    int r = 0;
    for (size_t i = 0; i < h->unknown_count && r == 0; i++) {
        const struct q2_unknown_ext *e = &h->unknown[i];
        if (e->type == Q2_EXT_PARTIAL && !p.name)
            r = take_mark(e, &p);
        if (e->type == Q2_EXT_TOKEN && !p.own && is_token(e->data, e->len) && !(p.own = copy_string(e->data, e->len)))
            r = -ENOMEM;
    }
    if (r < 0)
        q2_parts_fini(&p);
    else
        *ret = p;
    return r;
}

void q2_parts_fini(struct q2_parts *p)
{
    free(p->name);
    free(p->through);
    free(p->own);
    *p = (struct q2_parts){ 0 };
}
