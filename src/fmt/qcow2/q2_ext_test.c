/* SPDX-License-Identifier: MIT
 *
 * q2_ext_test.c: adding a header extension and moving one, torn at every place: the image always opens and says the same (Q18).
 * FEATURES 1.015, 1.016, 1.019, 1.022
 */
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "base/test.h"
#include "fmt/qcow2/q2_ext.h"
#include "fmt/qcow2/q2_header.h"
#include "fmt/qcow2/q2_ondisk.h"

#define FILE_BYTES (64ull << 20)

struct disk {
    uint8_t *durable;
    uint32_t bytes;
    const struct q2_header *was;         /* what it must say at every moment */
    bool wants;                          /* the extension must be there at every moment */
    unsigned states, puts;
};

static void same(const char *a, const char *b) { assert_true((!a && !b) || (a && b && !strcmp(a, b))); }

/* What the bytes say must be what they said before, with or without the new extension. Returns: with. */
static bool judge(struct disk *d, const uint8_t *bytes)
{
    struct q2_header h;
    struct byre_err err = { 0 };
    d->states++;
    int r = q2_header_parse(bytes, d->bytes, FILE_BYTES, false, "disk", &h, &err);
    if (r)
        fail_msg("state %u does not open: %s", d->states, err.text);
    same(h.backing_name, d->was->backing_name);
    same(h.backing_format, d->was->backing_format);
    assert_int_equal(h.has_frontier, d->was->has_frontier);
    assert_int_equal(h.frontier_end, d->was->frontier_end);
    assert_int_equal(h.unknown_count, d->was->unknown_count);
    for (size_t i = 0; i < h.unknown_count; i++) {
        assert_int_equal(h.unknown[i].len, d->was->unknown[i].len);
        assert_memory_equal(h.unknown[i].data, d->was->unknown[i].data, h.unknown[i].len);
    }
    bool with = h.has_bitmaps;
    if (with) {
        assert_int_equal(h.bitmap_count, 7);
        assert_int_equal(h.bitmap_dir_off, 0x30000);
        assert_int_equal(h.bitmap_dir_bytes, 0x123);
    }
    if (d->wants && !with)
        fail_msg("state %u has no bitmaps", d->states);
    q2_header_fini(&h);
    return with;
}

/* Any subset of the sectors may have landed: all of them when they are few, else single ones, all but one, and random. */
static int put(struct co *co, void *arg, const uint8_t *buf, uint32_t from, uint32_t to)
{
    struct disk *d = arg;
    struct prng p;
    uint8_t *torn = malloc(d->bytes);
    uint32_t n = (to - from) / 512;
    (void)co;
    assert_true(from % 512 == 0 && to % 512 == 0 && to <= d->bytes && n > 0);
    prng_init(&p, d->puts++);
    uint64_t tries = n <= 8 ? 1u << n : 40;
    for (uint64_t t = 0; t < tries; t++) {
        uint64_t mask = n <= 8 ? t : t < 2 ? (t ? UINT64_MAX : 1) : prng_u64(&p);
        memcpy(torn, d->durable, d->bytes);
        for (uint32_t i = 0; i < n; i++)
            if (mask >> (i % 64) & 1)
                memcpy(torn + from + i * 512, buf + from + i * 512, 512);
        judge(d, torn);
    }
    free(torn);
    memcpy(d->durable + from, buf + from, to - from);
    return 0;
}

struct shape { unsigned bits; const char *backing; bool frontier; unsigned unknown; bool names, backing_gap, v2, bitmaps; unsigned behind; };

static const uint8_t bitmaps_data[24] = { 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x23, 0, 0, 0, 0, 0, 3, 0, 0 };

/* Lays a header out by hand, as any program may have written it. */
static uint32_t lay_out(uint8_t *buf, uint32_t bytes, const struct shape *s)
{
    struct q2_disk_header *d = (struct q2_disk_header *)buf;
    uint32_t pos = s->v2 ? 72 : 112;
    memset(buf, 0, bytes);
    be32_put(&d->magic, Q2_MAGIC);
    be32_put(&d->version, s->v2 ? 2 : 3);
    be32_put(&d->cluster_bits, s->bits);
    be64_put(&d->size, 1 << 20);
    be32_put(&d->l1_size, 32);
    be64_put(&d->l1_off, 3u << s->bits);
    be64_put(&d->rt_off, 1u << s->bits);
    be32_put(&d->rt_clusters, 1);
    if (!s->v2) {
        be32_put(&d->refcount_order, 4);
        be32_put(&d->header_len, 112);
    }
#define EXT(type, len, byte)                                      \
    do {                                                          \
        if (pos + 24 + (len) > bytes)                             \
            return 0;                                             \
        be32_put((be32 *)(buf + pos), (type));                    \
        be32_put((be32 *)(buf + pos + 4), (len));                 \
        memset(buf + pos + 8, (byte), (len));                     \
        pos += 8 + ((len) + 7) / 8 * 8;                           \
    } while (0)
    if (s->backing)
        EXT(Q2_EXT_BACKING_FORMAT, 5, 'q');
    if (s->frontier)
        EXT(Q2_EXT_FRONTIER, 16, 0);
    if (s->unknown)
        EXT(0x12345678u, s->unknown, 0x5a);
    if (s->bitmaps) {
        EXT(Q2_EXT_BITMAPS, sizeof bitmaps_data, 0);
        memcpy(buf + pos - sizeof bitmaps_data, bitmaps_data, sizeof bitmaps_data);
    }
    if (s->behind)
        EXT(0x12345679u, s->behind, 0xa5);
    if (s->names)
        EXT(Q2_EXT_FEATURE_NAMES, 48 * 8, 1);
    if (pos + 8 > bytes)
        return 0;
    pos += 8;
    if (s->backing) {
        pos += s->backing_gap ? 64 : 0;
        if (pos + strlen(s->backing) > bytes)
            return 0;
        be64_put(&d->backing_off, pos);
        be32_put(&d->backing_len, (uint32_t)strlen(s->backing));
        memcpy(buf + pos, s->backing, strlen(s->backing));
        pos += (uint32_t)strlen(s->backing);
    }
    return pos <= bytes ? pos : 0;
}

static unsigned all_states;

static int try(const struct shape *s)
{
    uint32_t bytes = 1u << s->bits;
    uint8_t *buf = malloc(bytes), data[24] = { 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x23, 0, 0, 0, 0, 0, 3, 0, 0 };
    struct q2_ext e = { Q2_EXT_BITMAPS, sizeof data, data };
    struct q2_header was;
    struct byre_err err = { 0 };
    int r = 1;
    if (lay_out(buf, bytes, s)) {
        if (q2_header_parse(buf, bytes, FILE_BYTES, false, "first", &was, &err))
            fail_msg("%s", err.text);
        struct disk d = { .durable = malloc(bytes), .bytes = bytes, .was = &was };
        memcpy(d.durable, buf, bytes);
        uint32_t off = 0;
        r = q2_ext_add(NULL, buf, bytes, &e, put, &d, &off);
        assert_int_equal(judge(&d, d.durable), r == 0);
        if (r == 0) {
            assert_memory_equal(d.durable, buf, bytes);
            assert_memory_equal(buf + off, data, sizeof data);
            assert_int_equal(q2_ext_add(NULL, buf, bytes, &e, put, &d, &off), -EEXIST);
        }
        if (r)
            assert_int_equal(d.puts, 0);
        all_states += d.states;
        free(d.durable);
        q2_header_fini(&was);
    }
    free(buf);
    return r;
}

static void every_tear(void **state)
{
    (void)state;
    static const char *const names[] = { NULL, "b", "a-backing-file-of-medium-length.qcow2",
        "/a/very/long/name/that/crosses/sectors/----------------------------------------------------------------------------------"
        "------------------------------------------------------------------------------------------------------------------------"
        "------------------------------------------------------------------------------------------------------------------------"
        "------------------------------------------------------------------------------------------------------------------------"
        "------------------------------------------------------------------------------------------------------------------------"
        "------------------------------------------------------------------------------------------------------------------------" };
    static const unsigned bits[] = { 9, 10, 12, 16 };
    static const unsigned sizes[] = { 0, 8, 250, 300, 352, 360, 368, 376, 384, 392, 3000 };
    unsigned added = 0, full = 0;
    for (unsigned b = 0; b < 4; b++)
        for (unsigned n = 0; n < 4; n++)
            for (unsigned u = 0; u < sizeof sizes / sizeof sizes[0]; u++)
                for (unsigned f = 0; f < 16; f++) {
                    struct shape s = { bits[b], names[n], f & 1, sizes[u], f & 2, f & 4, f & 8 };
                    int r = try(&s);
                    added += r == 0;
                    full += r == -ENOSPC;
                }
    assert_true(added > 900 && full > 30);
    assert_true(all_states > 5000);
}

/* 1: it does not lie across two sectors, or does not fit at all. */
static int try_to_move(const struct shape *s)
{
    uint32_t bytes = 1u << s->bits;
    uint8_t *buf = malloc(bytes);
    struct q2_header was, now;
    struct q2_ext_moved m;
    struct byre_err err = { 0 };
    int r = 1;
    if (lay_out(buf, bytes, s)) {
        if (q2_header_parse(buf, bytes, FILE_BYTES, false, "first", &was, &err))
            fail_msg("%s", err.text);
        struct disk d = { .durable = malloc(bytes), .bytes = bytes, .was = &was, .wants = true };
        memcpy(d.durable, buf, bytes);
        if (was.bitmaps_ext_off % 512 > 512 - sizeof bitmaps_data)
            r = q2_ext_move(NULL, buf, bytes, Q2_EXT_BITMAPS, put, &d, &m);
        if (r == 0) {
            judge(&d, d.durable);
            assert_memory_equal(d.durable, buf, bytes);
            assert_int_equal(q2_header_parse(buf, bytes, FILE_BYTES, false, "moved", &now, NULL), 0);
            assert_int_equal(now.bitmaps_ext_off, was.bitmaps_ext_off + m.by);
            assert_true(now.bitmaps_ext_off % 512 <= 512 - sizeof bitmaps_data && m.from + 8 == was.bitmaps_ext_off);
            assert_memory_equal(buf + now.bitmaps_ext_off, bitmaps_data, sizeof bitmaps_data);
            q2_header_fini(&now);
        }
        if (r < 0)
            assert_true(r == -ENOSPC && d.puts == 0 && !memcmp(buf, d.durable, bytes));
        all_states += d.states;
        free(d.durable);
        q2_header_fini(&was);
    }
    free(buf);
    return r;
}

/* From two sectors into one: it is there at every tear. */
static void moved_at_every_tear(void **state)
{
    (void)state;
    static const char *const names[] = { NULL, "b", "a-backing-file-of-medium-length.qcow2" };
    static const unsigned bits[] = { 9, 10, 11, 12, 16 }, behind[] = { 0, 8, 100, 700 };
    unsigned moved = 0, full = 0;
    all_states = 0;
    for (unsigned b = 0; b < 5; b++)
        for (unsigned n = 0; n < 3; n++)
            for (unsigned u = 8; u < 900; u += 8)
                for (unsigned f = 0; f < 32; f++) {
                    struct shape s = { bits[b], names[n], f & 1, u, f & 2, f & 4, .bitmaps = true, .behind = behind[f >> 3] };
                    int r = try_to_move(&s);
                    moved += r == 0;
                    full += r == -ENOSPC;
                }
    assert_true(moved > 300 && full > 50);
    assert_true(all_states > 3000);
}

/* Room that a removed extension has left is used again. */
static void padding(void **state)
{
    (void)state;
    struct shape s = { 12, "b", true, 336, true, false, false };
    uint8_t buf[4096], data[24] = { 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x23, 0, 0, 0, 0, 0, 3, 0, 0 };
    struct q2_ext e = { Q2_EXT_BITMAPS, sizeof data, data };
    struct q2_header was, now;
    uint32_t off, used = lay_out(buf, sizeof buf, &s);
    assert_int_equal(q2_header_parse(buf, sizeof buf, FILE_BYTES, false, "p", &was, NULL), 0);
    struct disk d = { .durable = malloc(sizeof buf), .bytes = sizeof buf, .was = &was };
    memcpy(d.durable, buf, sizeof buf);
    assert_int_equal(q2_ext_add(NULL, buf, sizeof buf, &e, put, &d, &off), 0);
    assert_int_equal(q2_header_parse(buf, sizeof buf, FILE_BYTES, false, "p", &now, NULL), 0);
    uint32_t at = now.bitmaps_ext_off - 8;
    q2_header_fini(&now);
    be32_put((be32 *)(buf + at), Q2_EXT_PADDING);
    memcpy(d.durable, buf, sizeof buf);
    assert_false(judge(&d, buf));
    d.puts = 0;
    assert_int_equal(q2_ext_add(NULL, buf, sizeof buf, &e, put, &d, &off), 0);
    assert_true(d.puts <= 2 && used);
    assert_int_equal(q2_header_parse(d.durable, sizeof buf, FILE_BYTES, false, "p", &now, NULL), 0);
    assert_int_equal(now.bitmaps_ext_off, at + 8);
    q2_header_fini(&now);
    free(d.durable);
    q2_header_fini(&was);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_tear), cmocka_unit_test(moved_at_every_tear), cmocka_unit_test(padding) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
