/* SPDX-License-Identifier: MIT
 *
 * q2_disk_test.c: see q2_disk_test.h.
 *
 * Purpose      Harness of the tests of the write side.
 * Owns         The bytes of one disk.
 * Invariants   None.
 * Concurrency  One image at a time, on the loop that opened it.
 * Failure      A failed check is recorded; the running test fails when t_run returns.
 * Tests        None.
 */
#include "fmt/qcow2/q2_disk_test.h"

#include "fmt/qcow2/q2_guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct disk disk;

/* ---- the disk ---- */

static int ask(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    co_yield(co);
    while (disk.hold)
        co_yield(co);
    return disk.hook ? disk.hook(co, what, off, len, buf) : 0;
}

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    int r = ask(co, 'R', off, v.len_bytes, NULL);
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (r == 0 && n)
        iov_from_buf(v, disk.bytes + off, n);
    return r < 0 ? r : (int64_t)n;
}

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    uint8_t *buf = malloc(v.len_bytes);
    if (!buf)
        return -ENOMEM;
    iov_to_buf(v, buf, v.len_bytes);
    int r = off + v.len_bytes > (disk.fixed_length ? disk.len : DISK_CAP) ? -ENOSPC : ask(co, 'W', off, v.len_bytes, buf);
    disk.writes++;
    if (r == 0 || disk.land) {
        memcpy(disk.bytes + off, buf, v.len_bytes);
        disk.len = max_u64(disk.len, off + v.len_bytes);
    }
    free(buf);
    return r < 0 ? r : (int64_t)v.len_bytes;
}

static int disk_flush(struct co *co, struct stor *s)
{
    int r = ask(co, 'F', 0, 0, NULL);
    if (r < 0)
        return r;
    memcpy(disk.durable, disk.bytes, disk.len);
    disk.durable_len = disk.len;
    disk.flushes++;
    return 0;
}

static int disk_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = off + len > DISK_CAP ? -EFBIG : ask(co, 'Z', off, len, NULL);
    if (r < 0)
        return r;
    memset(disk.bytes + off, 0, len);
    disk.len = max_u64(disk.len, off + len);
    return 0;
}

static int disk_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    int r = ask(co, 'D', off, len, NULL);
    if (r == 0)
        memset(disk.bytes + off, 0, off < disk.len ? min_u64(len, disk.len - off) : 0);
    return r;
}

static int disk_truncate(struct co *co, struct stor *s, uint64_t len)
{
    int r = len > DISK_CAP || disk.fixed_length ? -ENOSPC : ask(co, 'T', len, 0, NULL);
    if (r < 0)
        return r;
    if (len < disk.len)
        memset(disk.bytes + len, 0, disk.len - len);
    disk.len = len;
    return 0;
}

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    uint64_t end = off + (disk.holes ? min_u64(len, 4096) : len);
    bool hole = disk.holes && mem_is_zero(disk.bytes + off, end - off);
    while (disk.holes && end < off + len && mem_is_zero(disk.bytes + end, min_u64(4096, off + len - end)) == hole)
        end = min_u64(end + 4096, off + len);
    *ret_e = (struct stor_extent){ hole ? STOR_HOLE : STOR_DATA, off, end - off };
    return 0;
}

static void disk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

static const struct stor_ops disk_ops = {
    .name = "disk", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .zero = disk_zero, .discard = disk_discard,
    .truncate = disk_truncate, .length = disk_length, .extent = disk_extent, .close = disk_close,
};

struct stor *disk_open(bool read_only)
{
    struct stor *s = calloc(1, sizeof *s);
    ASSERT(s && stor_init(s, &disk_ops, "disk") == 0);
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits = (struct stor_traits){ .regular = !disk.fixed_length, .zero_growth = true, .zero_crash = true, .can_punch = true, .can_zero = true };
    s->discard_ok = true;
    s->read_only = read_only;
    return s;
}

int disk_setup(void **state)
{
    disk = (struct disk){ .bytes = calloc(1, DISK_CAP), .durable = calloc(1, DISK_CAP) };
    return disk.bytes && disk.durable ? 0 : -1;
}

int disk_teardown(void **state)
{
    free(disk.bytes);
    free(disk.durable);
    disk = (struct disk){ 0 };
    return 0;
}

void disk_reset(void)
{
    memset(disk.bytes, 0, disk.len);
    memset(disk.durable, 0, disk.durable_len);
    disk = (struct disk){ .bytes = disk.bytes, .durable = disk.durable };
}

void disk_mark(void) { disk.flushes = disk.writes = 0; }

be64 *disk_be64(uint64_t off) { return (be64 *)(disk.bytes + off); }

/* ---- images ---- */

void img_make(struct co *co, const struct make *m)
{
    disk_reset();
    struct stor *s = disk_open(false);
    struct fmt_create_opts o = { .size = m->size, .cluster_size = m->cluster_size, .version = m->version, .refcount_bits = m->refcount_bits,
        .lazy_refcounts = m->lazy, .extended_l2 = m->sub, .data_file = m->host ? (char *)(uintptr_t)"data" : NULL, .host = m->host };
    struct byre_err err = { 0 };
    if (!CHECK_EQ(fmt_qcow2_ops.create(co, s, &o, &err), 0))
        fprintf(stderr, "%s\n", err.text);
    CHECK_EQ(stor_flush(co, s), 0);
    stor_close(co, s);
}

int img_try_open(struct co *co, const struct opening *o, struct fmt_image **ret)
{
    struct fmt_open_opts fo = { .read_only = o->read_only, .check_mode = o->check, .frontier_bytes = o->frontier_bytes, .cache_bytes = o->cache_bytes,
        .discard_no_punch = o->no_punch, .lazy_refcounts = o->lazy, .unclean_ok = o->unclean, .bitmap_region_bytes = o->bitmap_region, .overlap_check = o->overlap, .corrupted = o->corrupted, .host = o->host };
    struct stor *s = disk_open(o->read_only);
    struct byre_err err = { 0 };
    int r = fmt_qcow2_ops.open(co, s, &fo, ret, &err);
    if (r < 0)
        stor_close(co, s);
    disk_mark();
    return r;
}

struct q2_image *img_open(struct co *co, const struct opening *o)
{
    struct fmt_image *im = NULL;
    int r = img_try_open(co, o, &im);
    if (r < 0)
        fprintf(stderr, "image cannot be opened: %d\n", r);
    ASSERT(r == 0);
    return q2_of(im);
}

static void restore(const uint8_t *bytes, uint64_t len)
{
    memset(disk.bytes, 0, disk.len);
    memset(disk.durable, 0, disk.durable_len);
    memcpy(disk.bytes, bytes, len);
    memcpy(disk.durable, bytes, len);
    disk.len = disk.durable_len = len;
    disk.hook = NULL;
    disk.hold = disk.land = disk.holes = false;
}

static void crash_as(struct co *co, struct q2_image *q, const uint8_t *from, uint64_t len)
{
    uint8_t *bytes = malloc(len);
    memcpy(bytes, from, len);
    (void)img_close(co, q);              /* whatever it writes comes too late */
    restore(bytes, len);
    free(bytes);
}

void img_crash(struct co *co, struct q2_image *q) { crash_as(co, q, disk.durable, disk.durable_len); }
void img_kill(struct co *co, struct q2_image *q) { crash_as(co, q, disk.bytes, disk.len); }

int img_close(struct co *co, struct q2_image *q) { return fmt_qcow2_ops.close(co, &q->im); }

static void say(void *arg, bool fixed, const char *id, const char *text)
{
    if (getenv("Q2_TEST_VERBOSE"))
        fprintf(stderr, "    %s: %s\n", id, text);
}

uint64_t img_faults(struct co *co, uint64_t *ret_leaks)
{
    struct q2_image *q = img_open(co, &(struct opening){ .read_only = true, .check = true });
    struct fmt_check_result res = { 0 };
    CHECK_EQ(q2_check(co, &q->im, &(struct fmt_check_opts){ .finding = say }, &res, NULL), 0);
    CHECK_EQ(img_close(co, q), 0);
    if (ret_leaks)
        *ret_leaks = res.leaks;
    return res.corruptions + res.check_errors;
}

static struct q2_geom geom_of(const struct q2_disk_header *h)
{
    return q2_geom_make(be32_get(&h->version), be32_get(&h->cluster_bits), be32_get(&h->version) < 3 ? 4 : be32_get(&h->refcount_order), false);
}

uint64_t img_l1_at(uint64_t guest)
{
    const struct q2_disk_header *h = (const struct q2_disk_header *)disk.bytes;
    struct q2_geom g = geom_of(h);
    return be64_get(&h->l1_off) + 8 * q2_l1_index(&g, guest);
}

uint64_t img_l2_at(uint64_t guest)
{
    struct q2_geom g = geom_of((const struct q2_disk_header *)disk.bytes);
    uint64_t l2 = be64_get(disk_be64(img_l1_at(guest))) & Q2_L1E_OFF;
    return l2 ? l2 + 8 * q2_l2_index(&g, guest) : 0;
}

/* ---- a guest ---- */

static int fill_part(struct co *co, struct q2_image *q, enum fmt_fill fill, uint64_t guest, uint64_t host, uint64_t len)
{
    if (!len || fill == FMT_FILL_NONE)
        return 0;
    if (fill == FMT_FILL_ZERO)
        return stor_zero(co, q->im.data, host, len, 0);
    uint8_t *buf = malloc(len);
    int r = g_read(co, q, guest, len, buf);
    if (r == 0)
        r = stor_write_buf(co, q->im.data, buf, len, host, 0);
    free(buf);
    return r;
}

static int put(struct co *co, struct q2_image *q, uint64_t host, uint64_t len, uint8_t fill)
{
    uint8_t *buf = malloc(len);
    memset(buf, fill, len);
    int r = stor_write_buf(co, q->im.data, buf, len, host, 0);
    free(buf);
    return r;
}

static int write_new(struct co *co, struct q2_image *q, struct fmt_write *w, uint8_t fill)
{
    int r = fill_part(co, q, w->fill, w->off - w->head, w->host - w->head, w->head);
    if (r == 0)
        r = put(co, q, w->host, w->len, fill);
    if (r == 0)
        r = fill_part(co, q, w->fill, w->off + w->len, w->host + w->len, w->tail);
    if (r == 0)
        return q2_write_commit(co, &q->im, w);
    q2_write_abort(co, &q->im, w);
    return r;
}

int g_write(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill)
{
    int r = 0;
    for (uint64_t end = off + len, n; r == 0 && off < end; off += n) {
        struct fmt_extent e;
        struct fmt_write w;
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        r = q2_map(co, &q->im, off, end - off, &e);
        n = r == 0 ? e.len : 0;
        bool in_place = r == 0 && e.kind == FMT_DATA && e.writable;
        if (in_place)
            r = put(co, q, e.host, e.len, fill);
        epoch_leave(q->im.epoch, co_loop(co), t);
        if (r < 0 || in_place)
            continue;
        r = q2_write_begin(co, &q->im, off, end - off, &w);
        n = r == 0 ? w.len : 0;
        if (n)
            r = write_new(co, q, &w, fill);
    }
    return r;
}

int g_read(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t *buf)
{
    int r = 0;
    struct fmt_extent e;
    struct iovec slot;
    for (uint64_t end = off + len; r == 0 && off < end; buf += e.len, off += e.len) {
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        e.len = 0;
        r = q2_map(co, &q->im, off, end - off, &e);
        if (r == 0 && e.kind == FMT_DATA)
            r = stor_read(co, q->im.data, iov_one(&slot, buf, e.len), e.host);
        else if (r == 0 && e.kind == FMT_ENCODED)
            r = q2_read_encoded(co, &q->im, &e, off, iov_one(&slot, buf, e.len));
        else if (r == 0)
            memset(buf, 0, e.len);
        epoch_leave(q->im.epoch, co_loop(co), t);
    }
    return r;
}

int g_compress_bytes(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, const uint8_t *bytes)
{
    static const struct fmt_encoding how = { 0 };
    uint64_t cs = q->g.cluster_size;
    unsigned n = (unsigned)div_up(len, cs);
    uint8_t *in = calloc(n, cs), *out = malloc(n * cs);
    uint32_t *lens = calloc(n, sizeof *lens);
    struct iovec *enc = calloc(n, sizeof *enc);
    memcpy(in, bytes, len);
    int r = q2_encode(co, &q->im, &how, &(struct fmt_encode){ .in = in, .out = out, .len = lens, .count = n });
    for (unsigned i = 0; r == 0 && i < n; i++) {
        CHECK(lens[i]);                  /* the tests take bytes that become smaller */
        enc[i] = (struct iovec){ out + i * cs, lens[i] };
    }
    if (r == 0)
        r = q2_write_encoded(co, &q->im, off, enc, n);
    memset(out, 0xee, n * cs);           /* a write that is still reading it would show */
    free(in);
    free(out);
    free(lens);
    free(enc);
    return r;
}

int g_compress(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill)
{
    uint8_t *buf = malloc(len);
    memset(buf, fill, len);
    int r = g_compress_bytes(co, q, off, len, buf);
    free(buf);
    return r;
}

bool g_holds(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill)
{
    uint8_t *buf = malloc(len);
    bool ok = g_read(co, q, off, len, buf) == 0;
    for (uint64_t i = 0; ok && i < len; i++)
        ok = buf[i] == fill;
    free(buf);
    return ok;
}

int g_flush(struct co *co, struct q2_image *q) { return fmt_qcow2_ops.flush(co, &q->im); }

uint64_t g_host(struct co *co, struct q2_image *q, uint64_t off)
{
    struct fmt_extent e = { 0 };
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
    int r = q2_map(co, &q->im, off, 1, &e);
    epoch_leave(q->im.epoch, co_loop(co), t);
    return r == 0 && e.has_host ? e.host : 0;
}

/* ---- states ---- */

static bool bad_state(const char *what, uint64_t c, uint64_t count)
{
    fprintf(stderr, "cluster %llu: %s, count %llu\n", (unsigned long long)c, what, (unsigned long long)count);
    return false;
}

/* A1 of q2_ahead.c. */
static bool zeros_are_zero(const struct q2_image *q)
{
    struct rset_range x;
    uint32_t bits = q->g.cluster_bits;
    for (uint64_t at = 0; rset_next(&q->alloc->ready, at, &x); at = x.end)
        if (x.tag == Q2_READY_ZERO && !mem_is_zero(disk.bytes + (x.start << bits), (x.end - x.start) << bits))
            return bad_state("said to be zero", x.start, x.end - x.start);
    return true;
}

bool states_ok(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!zeros_are_zero(q))
        return false;
    if (!q2_guard_is_right(q))
        return bad_state("the guard does not say what the tables say", 0, 0);
    struct rset *const sets[] = { &a->frontier, &a->counted, &a->ready, &a->dropping };
    for (unsigned i = 0; i < 4; i++)
        rset_check(sets[i]);
    for (uint64_t c = 0; c < a->end; c++) {
        uint64_t n = 0, in = 0;
        if (q2_refs_get(co, q, c, &n) < 0)
            return bad_state("unreadable", c, 0);
        for (unsigned i = 0; i < 4; i++)
            in += rset_contains(sets[i], c, c + 1);
        if (in > 1)
            return bad_state("in two states", c, n);
        if (rset_contains(&a->ready, c, c + 1) ? n != 0 : in && n == 0)
            return bad_state("wrong count for its state", c, n);
    }
    for (uint64_t c = a->pack.pos >> q->g.cluster_bits; c < a->pack.end >> q->g.cluster_bits; c++) {     /* K2 */
        uint64_t n = 0;
        for (unsigned i = 0; i < 4; i++)
            if (i != 3 && rset_contains(sets[i], c, c + 1))
                return bad_state("is to be filled, and in another state", c, i);
        if (q2_refs_get(co, q, c, &n) < 0 || n == 0)
            return bad_state("is to be filled, and not counted", c, n);
    }
    for (unsigned i = 0; i < 4; i++)
        if (rset_overlaps(sets[i], a->end, UINT64_MAX))
            return bad_state("a set goes past the end", a->end, i);
    return true;
}
