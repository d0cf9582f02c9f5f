/* SPDX-License-Identifier: MIT
 *
 * q2_peek.c: which other files does a qcow2 image name? From its first bytes alone.
 *
 * Purpose      For those who look at the headers of many files. It accepts more than q2_header_parse does: also an image that cannot be
 *              opened, because something in it is damaged or not known, depends on the files that it names.
 * Owns         Nothing.
 * Invariants   K1 Every offset and length is checked against the first cluster and the file before it is used.
 *              K2 Only what lies before the backing name, or in the first cluster, is taken for an extension.
 * Order        None: no I/O.
 * Concurrency  Pure function.
 * Failure      -EINVAL the header is damaged, -ENOMEM.
 * Tests        src/tree/tree_test.c, fuzz/qcow2_open.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/fmt.h"
#include "fmt/qcow2/q2_header.h"
#include "fmt/qcow2/q2_ondisk.h"

#define EXT_HEAD ((uint64_t)sizeof(struct q2_disk_ext))
#define NAME_MAX_BYTES 1023u

struct head { uint32_t version, ext_off; uint64_t cluster, limit, incompat; };

static int take(const uint8_t *p, uint32_t len, char **ret)
{
    if (!q2_name_ok(p, len) || len > NAME_MAX_BYTES)
        return -EINVAL;
    free(*ret);
    *ret = strndup((const char *)p, len);
    return *ret ? 0 : -ENOMEM;
}

/* The fields that matter; ret->name_* */
static int look_at_fields(const uint8_t *buf, size_t len, uint64_t file_bytes, struct head *h, struct fmt_peek *ret)
{
    const struct q2_disk_header *d = (const struct q2_disk_header *)buf;
    if (len < Q2_HEADER_V2_BYTES || be32_get(&d->magic) != Q2_MAGIC)
        return -EINVAL;
    uint32_t bits = be32_get(&d->cluster_bits);
    h->version = be32_get(&d->version);
    if (h->version < 2 || bits < Q2_CLUSTER_BITS_MIN || bits > Q2_CLUSTER_BITS_MAX)
        return -EINVAL;
    h->cluster = 1ull << bits;
    h->limit = min_u64(h->cluster, file_bytes);
    h->ext_off = Q2_HEADER_V2_BYTES;
    if (h->version > 2) {
        if (len < Q2_HEADER_V3_MIN || be32_get(&d->header_len) < Q2_HEADER_V3_MIN)
            return -EINVAL;
        h->ext_off = be32_get(&d->header_len);
        h->incompat = be64_get(&d->incompat);
    }
    ret->size = be64_get(&d->size);
    ret->snapshots = be32_get(&d->nb_snapshots);
    ret->has_data_file = h->incompat & Q2_INCOMPAT_DATA_FILE;
    uint64_t off = be64_get(&d->backing_off);
    uint32_t n = be32_get(&d->backing_len);
    if (!off || !n)
        return 0;
    if (n > NAME_MAX_BYTES || !range_inside(off, n, h->limit))
        return -EINVAL;
    ret->name_off = off;
    ret->name_len = n;
    if (off < h->limit)
        h->limit = off;                  /* extensions end where the name begins */
    return 0;
}

/* 0; > 0: bytes that are needed to go on. */
static int look_at_extensions(const uint8_t *buf, size_t len, const struct head *h, struct fmt_peek *ret)
{
    for (uint64_t at = h->ext_off; at <= h->limit && h->limit - at >= EXT_HEAD;) {
        if (at + EXT_HEAD > len)
            return (int)h->limit;
        const struct q2_disk_ext *e = (const struct q2_disk_ext *)(buf + at);
        uint32_t type = be32_get(&e->type), n = be32_get(&e->len);
        if (type == Q2_EXT_END)
            break;
        at += EXT_HEAD;
        if (n > h->limit - at)
            return -EINVAL;
        if (type == Q2_EXT_BACKING_FORMAT || type == Q2_EXT_DATA_FILE) {
            if (at + n > len)
                return (int)h->limit;
            int r = take(buf + at, n, type == Q2_EXT_DATA_FILE ? &ret->data_file : &ret->backing_format);
            if (r)
                return r;
        }
        at += round_up(n, 8);
    }
    return 0;
}

int q2_peek(const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *ret)
{
    struct fmt_peek p = { 0 };
    struct head h = { 0 };
    int r = look_at_fields(buf, len, file_bytes, &h, &p);
    if (!r)
        r = look_at_extensions(buf, len, &h, &p);
    if (r == -EINVAL && p.name_len && !p.data_file && !p.backing_format)
        r = 0;                           /* extensions are damaged, and it depends on its backing file all the same */
    if (r) {
        fmt_peek_fini(&p);
        return r;
    }
    *ret = p;
    return 0;
}
