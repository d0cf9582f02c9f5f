/* SPDX-License-Identifier: MIT
 *
 * q2_bitmap.c: reads the bitmap directory.
 *
 * Purpose      Parses and validates every entry; the tables and data of the bitmaps are not read here.
 * Owns         The list it returns.
 * Invariants   I1 An accepted directory has exactly the count and the size that the extension names.
 *              I2 Every accepted entry has an aligned table of at most 32 MiB, one known type, granularity 2^9..2^31,
 *                 no reserved flag, and a name without control characters that no other entry has.
 * Order        Reads only.
 * Concurrency  One coroutine; suspends in reads.
 * Failure      -EINVAL (Q2_BITMAPS) names the entry: the caller goes on without bitmaps (G.015); -ENOMEM, -EIO.
 * Tests        q2_tables_test.c, tests/interop/test_q2_check.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_stream.h"

#define GRANULARITY_MIN 9u
#define GRANULARITY_MAX 31u
#define TYPE_DIRTY 1u
#define BITMAP_BYTES_MAX (512u << 20)

void q2_bitmaps_free(struct q2_bitmap *b, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        free(b[i].name);
    free(b);
}

struct loader {
    struct stor *store;
    const struct q2_geom *g;
    const struct q2_header *h;
    struct q2_bitmap *list;
    uint32_t count;
    uint32_t *buckets, bucket_mask;    /* open addressing over names: index + 1, 0 = free */
    struct byre_err *err;
};

static int bad(struct loader *l, uint32_t i, const char *what)
{
    return byre_fail(l->err, Q2_BITMAPS, "%s: bitmap directory entry %" PRIu32 " is refused: %s", l->store->name, i, what);
}

static int check_fields(struct loader *l, uint32_t i, const struct q2_disk_bitmap_entry *d, struct q2_bitmap *b)
{
    b->table_off = be64_get(&d->table_off);
    b->table_entries = be32_get(&d->table_entries);
    b->flags = be32_get(&d->flags);
    b->granularity_bits = d->granularity_bits;
    if (d->type != TYPE_DIRTY)
        return bad(l, i, "its type is not known");
    if (b->flags & ~(Q2_BITMAP_IN_USE | Q2_BITMAP_AUTO | Q2_BITMAP_EXTRA_OK))
        return bad(l, i, "a reserved flag is set");
    if (b->granularity_bits < GRANULARITY_MIN || b->granularity_bits > GRANULARITY_MAX)
        return bad(l, i, "its granularity is outside 2^9..2^31");
    if (be32_get(&d->extra_len))
        return bad(l, i, "it has extra data, of which none is known");
    if (!be16_get(&d->name_len) || be16_get(&d->name_len) > Q2_NAME_MAX)
        return bad(l, i, "its name is empty or longer than 1023 bytes");
    if (!q2_table_ok(l->g, b->table_off, b->table_entries, 8, BITMAP_BYTES_MAX / 16) || (b->table_entries && !b->table_off))
        return bad(l, i, "its table is misaligned or too large");
    if (b->table_entries > div_up(BITMAP_BYTES_MAX, l->g->cluster_size))
        return bad(l, i, "its data exceeds 512 MiB");
    return 0;
}

/* true: the name was there already. */
static bool name_taken(struct loader *l, const char *name, uint32_t index)
{
    struct hash128 key = hash_buf(name, strlen(name), 0);
    for (uint32_t at = (uint32_t)key.lo & l->bucket_mask;; at = (at + 1) & l->bucket_mask) {
        if (!l->buckets[at]) {
            l->buckets[at] = index + 1;
            return false;
        }
        if (!strcmp(l->list[l->buckets[at] - 1].name, name))
            return true;
    }
}

static int read_entry(struct co *co, struct loader *l, struct q2_stream *st, uint32_t i)
{
    const uint8_t *p;
    struct q2_bitmap *b = &l->list[i];
    int rc = q2_stream_get(co, st, sizeof(struct q2_disk_bitmap_entry), &p);
    if (rc)
        return rc == -ENODATA ? bad(l, i, "the directory ends inside it") : rc;
    struct q2_disk_bitmap_entry d;
    memcpy(&d, p, sizeof d);
    rc = check_fields(l, i, &d, b);
    if (rc)
        return rc;
    uint32_t name_len = be16_get(&d.name_len), padded = (uint32_t)round_up(name_len, 8);
    rc = q2_stream_get(co, st, padded, &p);
    if (rc)
        return rc == -ENODATA ? bad(l, i, "the directory ends inside it") : rc;
    if (!q2_name_ok(p, name_len))
        return bad(l, i, "its name contains control characters");
    b->name = strndup((const char *)p, name_len);
    if (!b->name)
        return -ENOMEM;
    l->count = i + 1;
    return name_taken(l, b->name, i) ? bad(l, i, "its name occurs twice") : 0;
}

static int load_all(struct co *co, struct loader *l, uint64_t file)
{
    const struct q2_header *h = l->h;
    struct q2_stream st;
    if (!h->bitmap_count || h->bitmap_count > Q2_BITMAPS_MAX ||
        !q2_table_ok(l->g, h->bitmap_dir_off, h->bitmap_dir_bytes, 1, Q2_BITMAP_DIR_MAX) || !h->bitmap_dir_off ||
        h->bitmap_dir_bytes / sizeof(struct q2_disk_bitmap_entry) < h->bitmap_count)
        return byre_fail(l->err, Q2_BITMAPS, "%s: the bitmaps extension names %" PRIu32 " bitmaps in %" PRIu64 " bytes at %#" PRIx64,
                         l->store->name, h->bitmap_count, h->bitmap_dir_bytes, h->bitmap_dir_off);
    if (!range_inside(h->bitmap_dir_off, h->bitmap_dir_bytes, file))
        return byre_fail(l->err, Q2_BITMAPS, "%s: the bitmap directory at %#" PRIx64 " is outside the file", l->store->name, h->bitmap_dir_off);
    l->bucket_mask = 1;
    while (l->bucket_mask < 2 * h->bitmap_count)
        l->bucket_mask = l->bucket_mask * 2 + 1;
    l->buckets = calloc(l->bucket_mask + 1, sizeof *l->buckets);
    l->list = calloc(h->bitmap_count, sizeof *l->list);
    if (!l->buckets || !l->list)
        return -ENOMEM;
    int rc = q2_stream_init(&st, l->store, h->bitmap_dir_off, h->bitmap_dir_off + h->bitmap_dir_bytes);
    for (uint32_t i = 0; !rc && i < h->bitmap_count; i++)
        rc = read_entry(co, l, &st, i);
    if (!rc && st.pos != st.end)
        rc = byre_fail(l->err, Q2_BITMAPS, "%s: the bitmap directory is longer than its %" PRIu32 " entries", l->store->name, h->bitmap_count);
    q2_stream_fini(&st);
    return rc;
}

int q2_bitmaps_load(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_bitmap **ret, uint32_t *ret_count, struct byre_err *err)
{
    struct byre_err why = { 0 };
    struct loader l = { .store = s, .g = g, .h = h, .err = &why };
    uint64_t file;
    if (!h->has_bitmaps || !(h->autoclear & Q2_AUTOCLEAR_BITMAPS)) {
        *ret = NULL;
        *ret_count = 0;
        return 0;
    }
    int rc = stor_length(co, s, &file);
    if (!rc)
        rc = load_all(co, &l, file);
    free(l.buckets);
    if (rc) {
        q2_bitmaps_free(l.list, l.count);
        if (why.code)
            return byre_fail(err, Q2_BITMAPS, "%s", why.text);
        return byre_fail_code(err, IO, rc, "%s: the bitmap directory cannot be read: %s", s->name, strerror(-rc));
    }
    *ret = l.list;
    *ret_count = l.count;
    return 0;
}
