/* SPDX-License-Identifier: MIT
 *
 * qed_disk_test.c: what the tests of the write side of QED share.
 *
 * Purpose      An image over a disk with a volatile cache, and a guest that reads and writes through fmt_ops.
 * Owns         Nothing: the disk is that of q2_disk_test.c.
 * Invariants   None.
 * Order        None.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        qed_write_test.c, qed_fill_test.c
 */
#include "fmt/qed/qed_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool marked(const uint8_t *bytes) { return bytes[16] & QED_F_NEED_CHECK; }

void make(struct co *co, const char *backing)
{
    disk_reset();
    struct stor *s = disk_open(false);
    struct fmt_create_opts o = { .size = SIZE, .cluster_size = C, .table_size = T, .backing_file = (char *)backing };
    CHECK_EQ(fmt_qed_ops.create(co, s, &o, NULL), 0);
    stor_close(co, s);
}

struct qed_image *reopen_as(struct co *co, bool read_only, bool unclean_ok)
{
    struct stor *s = disk_open(read_only);
    struct fmt_image *im = NULL;
    struct byre_err err = { 0 };
    int r = fmt_qed_ops.open(co, s, &(struct fmt_open_opts){ .read_only = read_only, .frontier_bytes = 32 * C, .unclean_ok = unclean_ok }, &im, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    ASSERT(r == 0);
    disk_mark();
    return qed_of(im);
}

struct qed_image *reopen(struct co *co, bool read_only) { return reopen_as(co, read_only, false); }

int shut(struct co *co, struct qed_image *q) { return fmt_qed_ops.close(co, &q->im); }

/* The process and the power are gone; what was flushed stays. */
void crash(struct co *co, struct qed_image *q)
{
    uint64_t len = disk.durable_len;
    uint8_t *bytes = malloc(len);
    memcpy(bytes, disk.durable, len);
    (void)shut(co, q);
    memset(disk.bytes, 0, max_u64(disk.len, len));
    memset(disk.durable, 0, max_u64(disk.durable_len, len));
    memcpy(disk.bytes, bytes, len);
    memcpy(disk.durable, bytes, len);
    disk.len = disk.durable_len = len;
    disk.hook = NULL;
    free(bytes);
}

struct fmt_check_result checked(struct co *co)
{
    struct qed_image *q = reopen(co, true);
    struct fmt_check_result res = { 0 };
    CHECK_EQ(q->im.ops->check(co, &q->im, &(struct fmt_check_opts){ 0 }, &res, NULL), 0);
    CHECK_EQ(shut(co, q), 0);
    return res;
}

bool sound(struct co *co)
{
    struct fmt_check_result r = checked(co);
    bool none = CHECK_EQ(r.corruptions, 0), lost = !CHECK_EQ(r.leaks, 0), failed = !CHECK_EQ(r.check_errors, 0);
    return none && !lost && !failed && !marked(disk.bytes);
}

/* ---- a guest ---- */

static int put(struct co *co, struct qed_image *q, uint64_t host, uint64_t len, uint8_t fill)
{
    if (!len)
        return 0;
    uint8_t *buf = malloc(len);
    memset(buf, fill, len);
    int r = stor_write_buf(co, q->im.store, buf, len, host, 0);
    free(buf);
    return r;
}

int write_new(struct co *co, struct qed_image *q, struct fmt_write *w, uint8_t fill)
{
    uint8_t around = w->fill == FMT_FILL_READ ? BASE : 0;         /* every test has one kind of bytes there */
    int r = 0;
    if (w->fill != FMT_FILL_NONE)
        r = put(co, q, w->host - w->head, w->head, around) | put(co, q, w->host + w->len, w->tail, around);
    if (r == 0)
        r = put(co, q, w->host, w->len, fill);
    if (r == 0)
        return q->im.ops->write_commit(co, &q->im, w);
    q->im.ops->write_abort(co, &q->im, w);
    return r;
}

int g_put(struct co *co, struct qed_image *q, uint64_t off, uint64_t len, uint8_t fill)
{
    int r = 0;
    for (uint64_t end = off + len, n; r == 0 && off < end; off += n) {
        struct fmt_extent e;
        struct fmt_write w;
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        r = q->im.ops->map(co, &q->im, off, end - off, &e);
        n = r == 0 ? e.len : 0;
        bool in_place = r == 0 && e.kind == FMT_DATA && e.writable;
        if (in_place)
            r = put(co, q, e.host, e.len, fill);
        epoch_leave(q->im.epoch, co_loop(co), t);
        if (r < 0 || in_place)
            continue;
        r = q->im.ops->write_begin(co, &q->im, off, end - off, &w);
        n = r == 0 ? w.len : 0;
        if (n)
            r = write_new(co, q, &w, fill);
    }
    return r;
}

bool holds(struct co *co, struct qed_image *q, uint64_t off, uint64_t len, uint8_t fill)
{
    uint8_t *buf = malloc(len), want = fill;
    bool ok = true;
    struct fmt_extent e;
    struct iovec slot;
    for (uint64_t end = off + len; ok && off < end; off += e.len) {
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        ok = q->im.ops->map(co, &q->im, off, end - off, &e) == 0;
        if (ok && e.kind == FMT_DATA)
            ok = stor_read(co, q->im.store, iov_one(&slot, buf, e.len), e.host) == 0;
        else if (ok)
            memset(buf, e.kind == FMT_ABSENT && q->im.has_backing ? BASE : 0, e.len);
        epoch_leave(q->im.epoch, co_loop(co), t);
        for (uint64_t i = 0; ok && i < e.len; i++)
            ok = buf[i] == want;
    }
    free(buf);
    return ok;
}

enum fmt_kind kind_at(struct co *co, struct qed_image *q, uint64_t off, uint64_t *ret_host)
{
    struct fmt_extent e = { 0 };
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
    CHECK_EQ(q->im.ops->map(co, &q->im, off, 512, &e), 0);
    epoch_leave(q->im.epoch, co_loop(co), t);
    if (ret_host)
        *ret_host = e.host;
    return e.kind;
}

int flush(struct co *co, struct qed_image *q) { return q->im.ops->flush(co, &q->im); }

int scrub(struct co *co, struct qed_image *q, unsigned fix, struct fmt_check_result *ret)
{
    return q->im.ops->scrub(co, &q->im, &(struct fmt_check_opts){ .fix = fix }, ret, NULL);
}
