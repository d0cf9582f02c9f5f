/* SPDX-License-Identifier: MIT
 *
 * qed_upgrade.c: a QED image becomes a qcow2 image, in its place.
 *
 * Purpose      New tables of the other format behind the end of the file; data stays where it is. A QED cluster above 2 MiB becomes a run of
 *              clusters of 2 MiB. What the QED tables occupied is free afterwards.
 * Owns         struct upgrade during the call.
 * Invariants   U1 Until the header's first sector is written nothing that the QED image uses has changed: new structures lie behind the end of
 *                 the file, the backing name in sectors of the first cluster that hold neither the header nor the old name.
 *              U2 That sector alone makes it a qcow2 image; whatever it names is durable before.
 *              U3 Only a sound image is taken: each of its clusters has one owner, so each count is 1.
 *              U4 Afterwards nothing is written through this opening any more.
 * Order        Tables, counts, name | SWITCH_BEFORE | first sector | SWITCH_AFTER.
 * Concurrency  Home loop, drained.
 * Failure      Before the switch the file is cut to its old length. If the sector cannot be written the old one is put back.
 * Tests        qed_upgrade_test.c, tests/interop/test_qed_upgrade.py, tests/crash/qed_crash.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fmt/qcow2/q2_header.h"
#include "fmt/qed/qed_check_priv.h"

#define SECTOR QED_SECTOR_BYTES
#define OUT_BYTES (1u << 20)                      /* written at once, or one cluster if that is more */
#define FIRST_BYTES (1u << QED_CLUSTER_BITS_MIN)
#define NONE UINT64_MAX

struct upgrade {
    struct qed_image *q;
    const struct fmt_amend_opts *a;
    struct q2_header h;                           /* names are borrowed */
    uint64_t cs, ratio;                           /* bytes of a new cluster; how many of them an old one is */
    struct qed_owned used;                        /* new clusters below `start` that are in use */
    uint64_t length, start, next;                 /* bytes: of the file as it was; new structures begin; the next one */
    be64 *l1, *l2;
    uint64_t l2_at;                               /* entry of the L1 table that l2 is for; NONE */
    uint8_t *out; uint64_t out_len, out_room;     /* waits to be written, and ends at `next` */
};

/* ---- is it possible? ---- */

static int backing_format(const struct upgrade *u, const char **ret, struct byre_err *err)
{
    const struct qed_image *q = u->q;
    const char *given = u->a->given(u->a->arg, "backing_fmt") ? u->a->o->backing_fmt : NULL;
    bool raw = q->h.features & QED_F_BACKING_RAW;
    *ret = NULL;
    if (!q->im.has_backing)
        return given ? byre_fail(err, BAD_OPTION, "%s: backing_fmt: there is no backing file", q->name) : 0;
    if (!given && !raw)
        return byre_fail(err, BAD_OPTION, "%s: the format of its backing file '%s' is not recorded: give it as backing_fmt", q->name, q->h.backing_name);
    if (given && raw && strcmp(given, "raw"))
        return byre_fail(err, BAD_OPTION, "%s: backing_fmt: '%s', but the image says that its backing file is raw", q->name, given);
    if (given && !fmt_by_name(given))
        return byre_fail(err, BAD_OPTION, "%s: backing_fmt: unknown format '%s'", q->name, given);
    *ret = raw ? "raw" : given;
    return 0;
}

static int check_options(struct upgrade *u, struct byre_err *err)
{
    const struct qed_image *q = u->q;
    const char *format;
    if (!u->a->given(u->a->arg, "format"))
        return byre_fail(err, BAD_OPTION, "%s: of an image of the format qed only the format can be changed (format=qcow2)", q->name);
    if (strcmp(u->a->o->format, "qcow2"))
        return byre_fail(err, BAD_OPTION, "%s: format: '%s': it can become qcow2 only", q->name, u->a->o->format);
    if (q->h.compat && !u->a->force)
        return byre_fail(err, NOT_SUPPORTED, "%s: has features that are not known (compatible bits %#" PRIx64 "): they would be lost", q->name, q->h.compat);
    if (!q->im.store->traits.regular)
        return byre_fail(err, NOT_SUPPORTED, "%s: the new tables go behind the end of the file, and it is no file", q->name);
    int r = backing_format(u, &format, err);
    u->h.backing_format = (char *)format;
    u->h.backing_name = q->im.has_backing ? q->h.backing_name : NULL;
    return r;
}

static int plan(struct co *co, struct upgrade *u, struct byre_err *err)
{
    const struct qed_image *q = u->q;
    uint32_t bits = (uint32_t)min_u64(q->g.cluster_bits, Q2_CLUSTER_BITS_MAX);
    u->cs = 1ull << bits;
    u->ratio = q->g.cluster_size / u->cs;
    uint64_t entries = max_u64(div_up(q->h.size, u->cs * (u->cs / 8)), 1);          /* a disk of no bytes has a table, too */
    if (entries * 8 > Q2_L1_BYTES_MAX)
        return byre_fail(err, BAD_SIZE, "%s: a disk of %" PRIu64 " bytes is too large for qcow2 with clusters of %" PRIu64, q->name, q->h.size, u->cs);
    int r = stor_length(co, q->im.store, &u->length);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", q->name);
    u->start = u->next = qed_file_end(&q->g, u->length);
    if (u->length > Q2_L2E_OFF >> 1)
        return byre_fail(err, BAD_SIZE, "%s: a file of %" PRIu64 " bytes is too long for qcow2", q->name, u->length);
    u->h.version = 3;
    u->h.cluster_bits = bits;
    u->h.refcount_order = 4;
    u->h.header_len = 112;
    u->h.size = q->h.size;
    u->h.l1_size = (uint32_t)entries;
    u->l2_at = NONE;
    u->out_room = max_u64(OUT_BYTES, u->cs);
    u->l1 = calloc(round_up(entries * 8, u->cs), 1);
    u->l2 = malloc(u->cs);
    void *out;
    if (posix_memalign(&out, 4096, u->out_room) == 0)
        u->out = out;
    if (!u->l1 || !u->l2 || !u->out || qed_owned_init(&u->used, u->start / u->cs) || qed_owned_take(&u->used, 0, 1) < 0)
        return byre_fail(err, NOMEM, "%s: no memory to upgrade it", q->name);
    return 0;
}

/* U3 */
static int check_sound(struct co *co, struct upgrade *u, struct byre_err *err)
{
    struct fmt_check_opts o = { .fix = 0 };
    struct fmt_check_result res = { 0 };
    int r = qed_mark_leave(co, u->q);
    if (r != 0)
        return byre_fail_code(err, IO, r < 0 ? r : -EBUSY, "%s: cannot be made clean", u->q->name);
    r = qed_check(co, &u->q->im, &o, &res, err);
    if (r == 0 && (res.corruptions || res.check_errors || u->q->h.features & QED_F_NEED_CHECK))
        return byre_fail(err, QED_HEADER, "%s: %" PRIu64 " errors were found: repair it first (check -r all)", u->q->name, res.corruptions + res.check_errors);
    return r;
}

/* ---- new structures, one behind the other ---- */

static int out_flush(struct co *co, struct upgrade *u)
{
    uint64_t len = u->out_len;
    u->out_len = 0;
    return len ? meta_write_now(co, u->q->meta, u->out, len, u->next - len) : 0;
}

/* Whole clusters. */
static int emit(struct co *co, struct upgrade *u, const void *data, uint64_t len)
{
    for (uint64_t done = 0, n; done < len; done += n) {
        n = min_u64(len - done, u->out_room - u->out_len);
        memcpy(u->out + u->out_len, (const uint8_t *)data + done, n);
        u->out_len += n;
        u->next += n;
        int r = u->out_len == u->out_room ? out_flush(co, u) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static int end_l2(struct co *co, struct upgrade *u)
{
    if (u->l2_at == NONE)
        return 0;
    be64_put(&u->l1[u->l2_at], u->next | Q2_E_COPIED);
    u->l2_at = NONE;
    return emit(co, u, u->l2, u->cs);
}

static int see_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct upgrade *u = arg;
    const struct qed_geom *g = &u->q->g;
    if (u->a->progress)
        u->a->progress(u->a->progress_arg, r->i + 1, g->entries);
    if (r->i >= qed_l1_used(g, u->q->h.size))
        return 0;
    return qed_table_kind(g, r->v, u->start) == QED_POINTER ? 1 : -EUCLEAN;
}

static int see_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct upgrade *u = arg;
    uint64_t per = u->cs / 8, first = r->i / u->cs, n = min_u64(u->ratio, r->i < u->h.size ? div_up(u->h.size - r->i, u->cs) : 0);
    if (!n)
        return 0;
    if (qed_entry_kind(&u->q->g, r->v, u->start) == QED_BAD)
        return -EUCLEAN;
    if (first / per != u->l2_at) {
        int rc = end_l2(co, u);
        if (rc < 0)
            return rc;
        u->l2_at = first / per;
        memset(u->l2, 0, u->cs);
    }
    for (uint64_t i = 0; i < n; i++)
        be64_put(&u->l2[first % per + i], r->v == 1 ? Q2_E_ZERO : (r->v + i * u->cs) | Q2_E_COPIED);
    return r->v > 1 && qed_owned_take(&u->used, r->v / u->cs, n) < 0 ? -ENOMEM : 0;
}

static int unreadable(void *arg, bool l1, uint64_t off, int error) { return error; }

static int emit_mapping(struct co *co, struct upgrade *u)
{
    static const struct qed_visitor v = { .table = see_table, .entry = see_entry, .unreadable = unreadable };
    struct qed_walk w = { .q = u->q, .v = &v, .arg = u };
    int r = qed_walk(co, &w);
    if (r == 0)
        r = end_l2(co, u);
    u->h.l1_off = u->next;
    return r < 0 ? r : emit(co, u, u->l1, round_up(u->h.l1_size * 8ull, u->cs));
}

/* ---- counts ---- */

/* Does anything lie in the clusters that refcount block b is for? `end`: bytes of the file. */
static bool block_needed(const struct upgrade *u, uint64_t b, uint64_t end)
{
    uint64_t per = u->cs / 2, first = b * per, start = u->start / u->cs;
    if (first + per > start && first < end / u->cs)
        return true;
    return qed_owned_next(&u->used, first, first + per, true) != QED_OWNED_NONE;
}

/* How long is the file with all refcount blocks and their table, which are counted, too? */
static uint64_t end_with_counts(const struct upgrade *u, uint64_t *ret_blocks)
{
    for (uint64_t blocks = 0, table = 1;;) {
        uint64_t end = u->next + (blocks + table) * u->cs, all = div_up(end / u->cs, u->cs / 2), need = 0;
        for (uint64_t b = 0; b < all; b++)
            need += block_needed(u, b, end);
        if (need == blocks && div_up(all * 8, u->cs) == table) {
            *ret_blocks = blocks;
            return end;
        }
        blocks = need;
        table = div_up(all * 8, u->cs);
    }
}

static void fill_block(const struct upgrade *u, uint64_t b, uint64_t end, be16 *block)
{
    uint64_t per = u->cs / 2, start = u->start / u->cs;
    memset(block, 0, u->cs);
    for (uint64_t i = 0, c = b * per; i < per && c < end / u->cs; i++, c++)
        if (c >= start || qed_owned_has(&u->used, c))
            be16_put(&block[i], 1);
}

static int emit_counts(struct co *co, struct upgrade *u, struct byre_err *err)
{
    uint64_t blocks, end = end_with_counts(u, &blocks), all = div_up(end / u->cs, u->cs / 2);
    if (all * 8 > Q2_RT_BYTES_MAX)
        return byre_fail(err, BAD_SIZE, "%s: a file of %" PRIu64 " bytes is too long for qcow2 with clusters of %" PRIu64, u->q->name, end, u->cs);
    AUTOFREE be64 *table = calloc(round_up(all * 8, u->cs), 1);
    AUTOFREE be16 *block = malloc(u->cs);
    if (!table || !block)
        return -ENOMEM;
    int r = 0;
    for (uint64_t b = 0; r == 0 && b < all; b++) {
        if (!block_needed(u, b, end))
            continue;
        be64_put(&table[b], u->next);
        fill_block(u, b, end, block);
        r = emit(co, u, block, u->cs);
    }
    u->h.rt_off = u->next;
    u->h.rt_clusters = (uint32_t)div_up(all * 8, u->cs);
    if (r == 0)
        r = emit(co, u, table, u->h.rt_clusters * u->cs);
    if (r == 0)
        r = out_flush(co, u);
    ASSERT(r < 0 || u->next == end);
    return r;
}

/* ---- the switch ---- */

/* *ret_tried: the header may be the new one, on the disk or some day. */
static int write_sector(struct co *co, struct upgrade *u, const uint8_t *new, const uint8_t *old, bool *ret_tried)
{
    struct meta *m = u->q->meta;
    *ret_tried = true;
    int r = meta_write_now(co, m, new, SECTOR, 0);
    if (r == 0)
        return meta_barrier(co, m, META_B_SWITCH_AFTER);
    int back = meta_write_now(co, m, old, SECTOR, 0);
    if (back == 0)
        back = meta_barrier(co, m, META_B_SWITCH_AFTER);
    *ret_tried = back < 0;
    if (back < 0)
        meta_stop(m, r);
    return r;
}

static int switch_over(struct co *co, struct upgrade *u, bool *ret_tried, struct byre_err *err)
{
    AUTOFREE uint8_t *first = aligned_alloc(4096, u->cs + FIRST_BYTES);
    if (!first)
        return -ENOMEM;
    uint8_t *old = first + u->cs;
    struct q2_header_layout l = { .name_off = u->h.backing_name ? qed_header_name_place(&u->q->h) : 0 };
    int r = q2_header_emit_as(&u->h, &l, first, u->cs, err);
    if (r < 0)
        return r;
    ASSERT(q2_header_used(first, u->cs).ext_end <= SECTOR);
    r = stor_read_exact(co, u->q->im.store, old, SECTOR, 0);
    if (r == 0 && l.name_off)
        r = meta_write_now(co, u->q->meta, first + l.name_off, QED_NAME_ROOM, l.name_off);
    if (r == 0)
        r = meta_barrier(co, u->q->meta, META_B_SWITCH_BEFORE);
    return r < 0 ? r : write_sector(co, u, first, old, ret_tried);
}

/* ---- the whole ---- */

static int run(struct co *co, struct upgrade *u, bool *ret_tried, struct byre_err *err)
{
    int r = emit_mapping(co, u);
    if (r == 0)
        r = emit_counts(co, u, err);
    return r < 0 ? r : switch_over(co, u, ret_tried, err);
}

static void fini(struct upgrade *u)
{
    qed_owned_fini(&u->used);
    free(u->l1);
    free(u->l2);
    free(u->out);
}

static int failed(const struct upgrade *u, int r, struct byre_err *err)
{
    if (r == -ENOSPC)
        return byre_fail(err, NO_SPACE, "%s: no space left for the new tables", u->q->name);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: no memory to upgrade it", u->q->name);
    return byre_fail_code(err, IO, r, "%s: cannot be upgraded: %s", u->q->name, strerror(-r));
}

/* U4: it is open as what it was. */
static void close_down(struct co *co, struct qed_image *q)
{
    qed_alloc_stop(co, q);
    qed_mark_stop(co, q);
    q->im.read_only = true;
    meta_stop(q->meta, -EROFS);
}

static int upgrade(struct co *co, struct upgrade *u, struct byre_err *err)
{
    struct byre_err why = { 0 };
    bool tried = false;
    int r = run(co, u, &tried, &why);
    if (r == 0) {
        close_down(co, u->q);
        return 0;
    }
    if (!tried)
        (void)!stor_truncate(co, u->q->im.store, u->length);       /* else the new tables are leaks, which a check gives back */
    if (why.code && err)
        *err = why;
    return why.code ? r : failed(u, r, err);
}

int qed_amend(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *a, struct byre_err *err)
{
    struct upgrade u = { .q = qed_of(im), .a = a };
    if (a->rebase)
        return qed_rebase(co, u.q, a, err);
    int r = check_options(&u, err);
    if (r == 0)
        r = qed_scrub_excludes(u.q, "upgraded", err);
    if (r == 0)
        u.q->changing = "upgraded";              /* until nothing reads what was planned any more: a scrub would move it */
    if (r == 0)
        r = check_sound(co, &u, err);
    if (r == 0)
        r = plan(co, &u, err);
    if (r == 0)
        r = upgrade(co, &u, err);
    fini(&u);
    u.q->changing = NULL;
    return r;
}
