/* SPDX-License-Identifier: MIT
 *
 * qed_header.c: from the first 64 bytes of a file to struct qed_header, and back.
 *
 * Purpose      Refuses what is out of range before anything is derived from it.
 * Owns         The name in struct qed_header.
 * Invariants   I1 A header that parse accepted gives a geometry without asserts; its L1 table is aligned, behind the header
 *                 and in the file as a whole; the backing name lies in the header's clusters and in the file.
 *              I2 Bits of `features` that are not known refuse the image; those of compat and autoclear are kept as they are.
 * Order        None: no I/O.
 * Concurrency  Pure functions.
 * Failure      -EINVAL a bad field, -ENOTSUP an unknown feature, -ENOMEM.
 * Tests        qed_header_test.c, fuzz/qed_open.c
 */
#include "fmt/qed/qed_header.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/fmt.h"

void qed_header_fini(struct qed_header *h)
{
    free(h->backing_name);
    *h = (struct qed_header){ 0 };
}

struct qed_geom qed_header_geom(const struct qed_header *h) { return qed_geom_make(h->cluster_size, h->table_size, h->header_clusters); }

static struct qed_header fields(const struct qed_disk_header *d)
{
    struct qed_header h = {
        .cluster_size = le32_get(&d->cluster_size), .table_size = le32_get(&d->table_size), .header_clusters = le32_get(&d->header_size),
        .features = le64_get(&d->features), .compat = le64_get(&d->compat), .autoclear = le64_get(&d->autoclear),
        .l1_off = le64_get(&d->l1_off), .size = le64_get(&d->image_size),
    };
    if (h.features & QED_F_BACKING) {
        h.backing_off = le32_get(&d->backing_off);
        h.backing_len = le32_get(&d->backing_len);
    }
    return h;
}

static int check_places(const struct qed_header *h, uint64_t file_bytes, const char *name, struct byre_err *err)
{
    struct qed_geom g = qed_header_geom(h);
    if (h->size > g.size_max || h->size % 512)
        return byre_fail(err, QED_HEADER, "%s: image_size is %" PRIu64 ": it must be a multiple of 512 and at most %" PRIu64 " with this geometry", name, h->size, g.size_max);
    if (qed_table_kind(&g, h->l1_off, qed_file_end(&g, file_bytes)) != QED_POINTER)
        return byre_fail(err, QED_HEADER, "%s: l1_table_offset is %#" PRIx64 ": a table of %" PRIu64 " bytes must lie there, aligned to clusters of %" PRIu32
                         ", behind the header of %" PRIu64 " bytes and inside the file of %" PRIu64, name, h->l1_off, g.table_bytes, h->cluster_size, g.header_bytes, file_bytes);
    if (!(h->features & QED_F_BACKING))
        return 0;
    if (h->backing_len > QED_NAME_MAX)
        return byre_fail(err, QED_HEADER, "%s: backing_filename_size is %" PRIu32 ": the limit is %u", name, h->backing_len, QED_NAME_MAX);
    if (!range_inside(h->backing_off, h->backing_len, min_u64(g.header_bytes, file_bytes)))
        return byre_fail(err, QED_HEADER, "%s: backing_filename_offset is %" PRIu32 ": a name of %" PRIu32 " bytes does not lie in the header of %" PRIu64 " bytes there",
                         name, h->backing_off, h->backing_len, g.header_bytes);
    return 0;
}

int qed_header_parse(const uint8_t *buf, size_t len, uint64_t file_bytes, const char *name, struct qed_header *ret, struct byre_err *err)
{
    const struct qed_disk_header *d = (const struct qed_disk_header *)buf;
    if (len < sizeof *d || file_bytes < sizeof *d || le32_get(&d->magic) != QED_MAGIC)
        return byre_fail(err, BAD_FORMAT, "%s: is not a QED image", name);
    struct qed_header h = fields(d);
    if (h.features & ~QED_F_KNOWN)
        return byre_fail(err, QED_FEATURE, "%s: needs features of the QED format that are not known (bits %#" PRIx64 ")", name, (uint64_t)(h.features & ~QED_F_KNOWN));
    if (!qed_cluster_size_ok(h.cluster_size))
        return byre_fail(err, QED_HEADER, "%s: cluster_size is %" PRIu32 ": it must be a power of two from 4096 to 67108864", name, h.cluster_size);
    if (!qed_table_size_ok(h.table_size))
        return byre_fail(err, QED_HEADER, "%s: table_size is %" PRIu32 ": it must be a power of two from 1 to %u", name, h.table_size, QED_TABLE_SIZE_MAX);
    int r = check_places(&h, file_bytes, name, err);
    if (r == 0)
        *ret = h;
    return r;
}

int qed_header_take_name(struct qed_header *h, const uint8_t *bytes, const char *name, struct byre_err *err)
{
    for (uint32_t i = 0; i < h->backing_len; i++)
        if (bytes[i] < 0x20 || bytes[i] == 0x7f)
            return byre_fail(err, QED_HEADER, "%s: the name of the backing file holds a control character", name);
    char *s = malloc((size_t)h->backing_len + 1);
    if (!s)
        return byre_fail(err, NOMEM, "%s: header", name);
    memcpy(s, bytes, h->backing_len);
    s[h->backing_len] = 0;
    free(h->backing_name);
    h->backing_name = s;
    return 0;
}

void qed_header_emit(const struct qed_header *h, struct qed_disk_header *ret)
{
    *ret = (struct qed_disk_header){ 0 };
    le32_put(&ret->magic, QED_MAGIC);
    le32_put(&ret->cluster_size, h->cluster_size);
    le32_put(&ret->table_size, h->table_size);
    le32_put(&ret->header_size, h->header_clusters);
    le64_put(&ret->features, h->features);
    le64_put(&ret->compat, h->compat);
    le64_put(&ret->autoclear, h->autoclear);
    le64_put(&ret->l1_off, h->l1_off);
    le64_put(&ret->image_size, h->size);
    le32_put(&ret->backing_off, h->backing_off);
    le32_put(&ret->backing_len, h->backing_len);
}

int qed_peek(const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *ret)
{
    const struct qed_disk_header *d = (const struct qed_disk_header *)buf;
    if (len < sizeof *d || file_bytes < sizeof *d || le32_get(&d->magic) != QED_MAGIC)
        return -EINVAL;
    const struct qed_header h = fields(d);
    struct fmt_peek p = { .size = h.size, .name_off = h.backing_off, .name_len = h.backing_len };
    if (p.name_len > QED_NAME_MAX || !range_inside(p.name_off, p.name_len, file_bytes))
        return -EINVAL;
    if (p.name_len && h.features & QED_F_BACKING_RAW && !(p.backing_format = strdup("raw")))
        return -ENOMEM;
    *ret = p;
    return 0;
}

uint32_t qed_header_name_place(const struct qed_header *h)
{
    uint64_t from = round_down(h->backing_off, QED_SECTOR_BYTES), to = round_up((uint64_t)h->backing_off + h->backing_len, QED_SECTOR_BYTES);
    for (uint32_t at = QED_SECTOR_BYTES; at + QED_NAME_ROOM <= 1u << QED_CLUSTER_BITS_MIN; at += QED_SECTOR_BYTES)
        if (at + QED_NAME_ROOM <= from || at >= to)
            return at;
    ASSERT(!"I1: the old name takes three sectors of eight at most");
}
