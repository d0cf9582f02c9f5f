/* SPDX-License-Identifier: MIT
 *
 * qed_driver.c: opening, describing, flushing and closing a QED image.
 *
 * Purpose      Header, L1 table and cache; the row of the table of formats.
 * Owns         struct qed_image.
 * Invariants   V1  A refused or failed opening leaves the file as it was.
 *              V2  An image with the need-check mark is read as it is: no pointer of its tables is trusted (qed_map.c M1). Opened for
 *                  writing it is repaired first, or at once looked through behind (qed_scrub.c).
 *              V3  Opening for writing clears the autoclear bits, durably, before a write can be accepted (2.008).
 * Order        close: all durable, the unused end cut off, the mark away (qed_mark.c).
 * Concurrency  Home loop; map, write, zero, discard, flush: from any.
 * Failure      open: nothing stays open and the store stays the caller's. close: everything is given back, the first error is returned.
 * Tests        qed_read_test.c, qed_write_test.c, tests/interop/test_qed.py, tests/interop/test_qed_write.py, tests/cli/qed_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qed/qed_image.h"

#define CACHE_BYTES_DEFAULT (32ull << 20)
#define CACHE_BYTES_MAX (128ull << 20)           /* how far it grows where it is seen to be too small (2.014) */

static int probe(const uint8_t *buf, size_t len)
{
    return len >= sizeof(struct qed_disk_header) && le32_get((const le32 *)buf) == QED_MAGIC ? 100 : 0;
}

/* ---- opening ---- */

static int read_name(struct co *co, struct qed_image *q, struct byre_err *err)
{
    uint8_t buf[QED_NAME_MAX];
    int r = stor_read_exact(co, q->im.store, buf, q->h.backing_len, q->h.backing_off);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the name of the backing file cannot be read", q->name);
    return qed_header_take_name(&q->h, buf, q->name, err);
}

static int read_header(struct co *co, struct qed_image *q, struct byre_err *err)
{
    uint8_t first[sizeof(struct qed_disk_header)] = { 0 };
    struct iovec slot;
    uint64_t len;
    int r = stor_length(co, q->im.store, &len);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", q->name);
    r = stor_read(co, q->im.store, iov_one(&slot, first, sizeof first), 0);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the header cannot be read", q->name);
    r = qed_header_parse(first, sizeof first, len, q->name, &q->h, err);
    if (r < 0)
        return r;
    if (q->h.features & QED_F_BACKING) {
        r = read_name(co, q, err);
        if (r < 0)
            return r;
    }
    q->g = qed_header_geom(&q->h);
    qed_alloc_init(q, len);
    atomic_store(&q->file_end, qed_file_end(&q->g, len));
    atomic_store(&q->im.size, q->h.size);
    q->im.granule = q->im.cluster = q->h.cluster_size;
    q->im.has_backing = q->h.backing_name && q->h.backing_name[0];
    return 0;
}

static int load_l1(struct co *co, struct qed_image *q, struct byre_err *err)
{
    _Atomic uint64_t *l1;
    uint64_t *dirty;
    int r = qed_l1_read(co, q, q->h.size, &l1, &dirty);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: L1 table of %" PRIu64 " entries", q->name, qed_l1_used(&q->g, q->h.size));
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the L1 table at %#" PRIx64 " cannot be read", q->name, q->h.l1_off);
    qed_l1_install(q, q->h.size, l1, dirty);
    return 0;
}

/* Of an image that was not closed cleanly, when nobody looks it through behind: before anything of it is in memory. */
static int repair(struct co *co, struct qed_image *q, struct byre_err *err)
{
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS };
    struct fmt_check_result res = { 0 };
    int r = qed_check(co, &q->im, &o, &res, err);
    if (r < 0)
        return r;
    if (res.check_errors || res.corruptions)
        return byre_fail(err, QED_CORRUPT, "%s: the image was not closed cleanly and its repair left %" PRIu64 " errors; run check -r all", q->name, res.corruptions + res.check_errors);
    qed_alloc_fini(q);
    qed_header_fini(&q->h);
    return read_header(co, q, err);
}

static int prepare_writing(struct co *co, struct qed_image *q, struct byre_err *err)
{
    if (q->h.features & QED_F_NEED_CHECK) {
        q->unclean = q->mark.set = true;
        atomic_store(&q->im.unclean, true);
    }
    if (qed_tables_note(co, q) < 0)
        return byre_fail(err, NOMEM, "%s: no memory for the places of its tables", q->name);
    int r = qed_clear_autoclear(co, q);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the header cannot be written", q->name) : 0;
}

static int open_parts(struct co *co, struct qed_image *q, const struct fmt_open_opts *o, struct byre_err *err)
{
    int r = read_header(co, q, err);
    if (r < 0)
        return r;
    if (epoch_new(q->im.home, &q->im.epoch) < 0)
        return byre_fail(err, NOMEM, "%s: epochs", q->name);
    q->kind_l2 = (struct meta_kind){ .name = "l2", .rank = META_TABLES, .on_load = STOR_EV_L2_LOAD, .on_write = STOR_EV_L2_UPDATE };
    struct meta_opts mo = { .store = q->im.store, .home = q->im.home, .epoch = q->im.epoch, .block_bytes = QED_SLICE_BYTES,
                            .budget_bytes = o->cache_bytes ? o->cache_bytes : CACHE_BYTES_DEFAULT,
                            .budget_max_bytes = o->cache_bytes || o->below ? 0 : CACHE_BYTES_MAX, .clean_ns = o->cache_clean_ms * 1000000, .read_only = q->im.read_only };
    if (meta_new(&mo, &q->meta) < 0)
        return byre_fail(err, NOMEM, "%s: metadata cache", q->name);
    if (q->h.features & QED_F_NEED_CHECK && qed_writable(q) && !o->check_mode && !o->unclean_ok) {
        r = repair(co, q, err);
        if (r < 0)
            return r;
    }
    r = o->info_only ? 0 : load_l1(co, q, err);
    return r == 0 && qed_writable(q) && !o->check_mode ? prepare_writing(co, q, err) : r;
}

/* Gives back everything but the store. */
static void dismantle(struct co *co, struct qed_image *q)
{
    if (q->meta)
        meta_free_all(co, q->meta);
    if (q->im.epoch) {
        epoch_drain(co, q->im.epoch);
        epoch_free(q->im.epoch);
    }
    qed_alloc_fini(q);
    qed_header_fini(&q->h);
    qed_tables_fini(q);
    free((void *)atomic_load(&q->l1));
    free(q->l1_dirty);
    free(q->name);
    free(q);
}

static int qed_open(struct co *co, struct stor *store, const struct fmt_open_opts *o, struct fmt_image **ret_im, struct byre_err *err)
{
    const char *name = store->name ? store->name : "image";
    struct qed_image *q = calloc(1, sizeof *q);
    if (!q || !(q->name = strdup(name))) {
        free(q);
        return byre_fail(err, NOMEM, "image");
    }
    q->im.ops = &fmt_qed_ops;
    q->im.store = q->im.data = store;
    q->im.home = co_loop(co);
    q->im.read_only = o->read_only || o->info_only;
    q->info_only = o->info_only;
    q->frontier_bytes = o->frontier_bytes;
    q->corrupted = o->corrupted;
    q->corrupted_arg = o->corrupted_arg;
    int r = open_parts(co, q, o, err);
    if (r < 0) {
        dismantle(co, q);
        return r;
    }
    atomic_store(&q->im.below_zero_from, q->im.has_backing ? UINT64_MAX : 0);
    *ret_im = &q->im;
    return 0;
}

/* ---- the rest ---- */

static int qed_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    const struct qed_image *q = qed_of(im);
    struct fmt_info i = { .virtual_size = q->h.size, .cluster_size = q->g.cluster_size, .dirty = q->h.features & QED_F_NEED_CHECK };
    bool raw = q->im.has_backing && q->h.features & QED_F_BACKING_RAW;
    i.backing_name = q->im.has_backing ? strdup(q->h.backing_name) : NULL;
    i.backing_format = raw ? strdup("raw") : NULL;
    if ((q->im.has_backing && !i.backing_name) || (raw && !i.backing_format)) {
        fmt_info_fini(&i);
        return byre_fail(err, NOMEM, "%s: no memory to describe it", q->name);
    }
    *ret_info = i;
    return 0;
}

static int qed_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    return -EIO;                                  /* map() never says ENCODED */
}

static int flush_home(struct co *co, void *arg)
{
    struct qed_image *q = arg;
    return meta_flush(co, q->meta);
}

static int qed_flush(struct co *co, struct fmt_image *im) { return im->read_only ? 0 : rt_call(co, im->home, flush_home, qed_of(im)); }

static int end_writing(struct co *co, struct qed_image *q)
{
    qed_alloc_stop(co, q);
    qed_mark_stop(co, q);
    int r = meta_flush(co, q->meta);
    int left = qed_mark_leave(co, q);
    ASSERT(left <= 0);                            /* no request is inside */
    r = r < 0 ? r : left;
    if (r < 0)
        meta_abandon(co, q->meta);                /* what could not be written is given up: the mark says so */
    return r;
}

static int qed_close(struct co *co, struct fmt_image *im)
{
    struct qed_image *q = qed_of(im);
    struct stor *store = im->store;
    int r = qed_writable(q) ? end_writing(co, q) : 0;
    dismantle(co, q);
    stor_close(co, store);
    return r;
}

const struct fmt_ops fmt_qed_ops = {
    .name = "qed",
    .probe = probe,
    .peek = qed_peek,
    .open = qed_open,
    .map = qed_map,
    .map_at_hand = qed_map_at_hand,
    .read_encoded = qed_read_encoded,
    .write_begin = qed_write_begin,
    .write_commit = qed_write_commit,
    .write_abort = qed_write_abort,
    .zero = qed_zero,
    .discard = qed_discard,
    .flush = qed_flush,
    .resize = qed_resize,
    .resize_commit = qed_resize_commit,
    .amend = qed_amend,
    .make_empty = qed_make_empty,
    .reserved = qed_reserved,
    .info = qed_info,
    .check = qed_check,
    .scrub = qed_scrub,
    .no_scrub = qed_no_scrub,
    .close = qed_close,
    .create = qed_create,
};
