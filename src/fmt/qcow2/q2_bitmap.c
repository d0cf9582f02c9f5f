/* SPDX-License-Identifier: MIT
 *
 * q2_bitmap.c: reads the bitmap directory.
 *
 * Purpose      Parses and judges every entry; the tables and data of the bitmaps are not read here.
 * Owns         The list it returns.
 * Invariants   I1 One bad entry spoils itself only (G.015): it stays in the list, with the reason and its bytes. Entries
 *                 that cannot be told apart any more are one last, nameless entry.
 *              I2 Every good entry has an aligned table for at most 512 MiB of data, the one known type, granularity
 *                 2^9..2^31, no reserved flag, and a name without control characters that no entry before it has.
 *              I3 table_entries of a bad entry is 0 when its table must not be followed.
 * Order        Reads only.
 * Concurrency  One coroutine; suspends in reads.
 * Failure      -EINVAL (Q2_BITMAPS): the extension as a whole makes no sense; -ENOMEM, -EIO.
 * Tests        q2_tables_test.c, tests/interop/test_q2_check.py, tests/interop/test_bitmaps.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/dirty.h"
#include "base/hash.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_stream.h"

#define TYPE_DIRTY 1u
#define BITMAP_BYTES_MAX (512u << 20)

void q2_bitmaps_free(struct q2_bitmap *b, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free(b[i].name);
        free(b[i].raw);
    }
    free(b);
}

struct loader {
    struct stor *store;
    const struct q2_geom *g;
    const struct q2_header *h;
    struct q2_bitmap *list;
    uint32_t count, done;              /* done: entries of the list that own something */
    uint32_t *buckets, bucket_mask;    /* open addressing over names: index + 1, 0 = free */
    struct byre_err *err;
};

/* Why the fields are not acceptable; NULL: they are. */
static const char *judge_fields(const struct loader *l, const struct q2_disk_bitmap_entry *d, const struct q2_bitmap *b)
{
    if (d->type != TYPE_DIRTY)
        return "its type is not known";
    if (b->flags & ~(Q2_BITMAP_IN_USE | Q2_BITMAP_AUTO | Q2_BITMAP_EXTRA_OK))
        return "a reserved flag is set";
    if (b->granularity_bits < DIRTY_GRANULARITY_BITS_MIN || b->granularity_bits > DIRTY_GRANULARITY_BITS_MAX)
        return "its granularity is outside 2^9..2^31";
    if (be32_get(&d->extra_len))
        return "it has extra data, of which none is known";
    if (!be16_get(&d->name_len) || be16_get(&d->name_len) > Q2_NAME_MAX)
        return "its name is empty or longer than 1023 bytes";
    if (!q2_table_ok(l->g, b->table_off, b->table_entries, 8, BITMAP_BYTES_MAX / 16) || (b->table_entries && !b->table_off))
        return "its table is misaligned or too large";
    if (b->table_entries > div_up(BITMAP_BYTES_MAX, l->g->cluster_size))
        return "its data exceeds 512 MiB";
    return NULL;
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

/* What lies behind the fields: extra data, name, padding. p has `bytes` of it. */
static int take_rest(struct loader *l, struct q2_bitmap *b, const struct q2_disk_bitmap_entry *d, const uint8_t *p, uint32_t bytes)
{
    uint32_t extra = be32_get(&d->extra_len), name_len = be16_get(&d->name_len);
    bool plain = q2_name_ok(p + extra, name_len) && name_len;
    if (plain && name_len <= Q2_NAME_MAX) {
        b->name = strndup((const char *)p + extra, name_len);
        if (!b->name)
            return -ENOMEM;
    }
    if (!b->bad && !plain)
        b->bad = "its name contains control characters";
    if (!b->bad && name_taken(l, b->name, l->count))
        b->bad = "its name occurs twice";
    if (!b->bad)
        return 0;
    b->raw_len = (uint32_t)sizeof *d + bytes;
    b->raw = malloc(b->raw_len);
    if (!b->raw)
        return -ENOMEM;
    memcpy(b->raw, d, sizeof *d);
    memcpy(b->raw + sizeof *d, p, bytes);
    return 0;
}

/* The rest of the directory cannot be told apart. */
static int give_up(struct loader *l, const char *why)
{
    l->list[l->count++] = (struct q2_bitmap){ .bad = why };
    l->done = l->count;
    return 1;
}

/* 1: the list ends here. */
static int read_entry(struct co *co, struct loader *l, struct q2_stream *st)
{
    const uint8_t *p;
    struct q2_bitmap *b = &l->list[l->count];
    struct q2_disk_bitmap_entry d;
    uint64_t pos = st->pos;
    int rc = q2_stream_get(co, st, sizeof d, &p);
    if (rc)
        return rc == -ENODATA ? give_up(l, "the directory ends inside it") : rc;
    memcpy(&d, p, sizeof d);
    *b = (struct q2_bitmap){ .pos = pos - l->h->bitmap_dir_off, .table_off = be64_get(&d.table_off), .table_entries = be32_get(&d.table_entries),
        .flags = be32_get(&d.flags), .granularity_bits = d.granularity_bits };
    b->bad = judge_fields(l, &d, b);
    if (b->bad && !(b->table_off && q2_table_ok(l->g, b->table_off, b->table_entries, 8, BITMAP_BYTES_MAX / 16)))
        b->table_entries = 0;                       /* I3 */
    uint64_t rest = round_up(sizeof d + (uint64_t)be32_get(&d.extra_len) + be16_get(&d.name_len), 8) - sizeof d;
    rc = rest > Q2_STREAM_BUF ? -ENODATA : q2_stream_get(co, st, (uint32_t)rest, &p);
    if (rc)
        return rc == -ENODATA ? give_up(l, "the directory ends inside it") : rc;
    l->done = l->count + 1;
    rc = take_rest(l, b, &d, p, (uint32_t)rest);
    l->count++;
    return rc;
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
    l->list = calloc((size_t)h->bitmap_count + 1, sizeof *l->list);
    if (!l->buckets || !l->list)
        return -ENOMEM;
    int rc = q2_stream_init(&st, l->store, h->bitmap_dir_off, h->bitmap_dir_off + h->bitmap_dir_bytes);
    for (uint32_t i = 0; !rc && i < h->bitmap_count; i++)
        rc = read_entry(co, l, &st);
    if (!rc && st.pos != st.end)
        rc = give_up(l, "bytes that belong to no entry end the directory");
    q2_stream_fini(&st);
    return rc < 0 ? rc : 0;
}

int q2_bitmaps_load(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_bitmap **ret, uint32_t *ret_count, struct byre_err *err)
{
    struct byre_err why = { 0 };
    struct loader l = { .store = s, .g = g, .h = h, .err = &why };
    uint64_t file;
    *ret = NULL;
    *ret_count = 0;
    if (!h->has_bitmaps || !(h->autoclear & Q2_AUTOCLEAR_BITMAPS))
        return 0;
    int rc = stor_length(co, s, &file);
    if (!rc)
        rc = load_all(co, &l, file);
    free(l.buckets);
    if (rc) {
        q2_bitmaps_free(l.list, l.done);
        if (why.code)
            return byre_fail(err, Q2_BITMAPS, "%s", why.text);
        return byre_fail_code(err, IO, rc, "%s: the bitmap directory cannot be read: %s", s->name, strerror(-rc));
    }
    *ret = l.list;
    *ret_count = l.count;
    return 0;
}
