/* SPDX-License-Identifier: MIT
 *
 * raw.c: the format without metadata. Guest offset and host offset are the same number, but for where a window begins.
 *
 * Purpose     Answers every mapping question with "data, writable, right here"; hands zero, discard, flush and
 *             resize to the store.
 * Owns        One epoch per image, because the interface has one; nothing in it ever waits for it but close.
 * Invariants  I1  size is the length of the file rounded up to 512. What lies between the two reads zeros (the
 *                 store sees to that) and a write there makes the file longer.
 *                 With a window (FEATURES 3.026) the same holds of its part of the file; one with a size never changes it.
 *             I2  map() never fails and never suspends: the read path costs nothing, holes are the store's matter.
 * Order       A flush is the store's flush. A resize is durable when it is answered (P3).
 * Concurrency map, zero, discard, flush: any loop. open, resize, close: home loop, the last two drained.
 * Failure     A failed resize cuts the file back to its old length.
 * Tests       raw_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "fmt/fmt.h"

#define SECTOR 512u
/* Largest virtual size: what a file offset can name, rounded down to a GiB, as all the ecosystem has it (FEATURES 11.021). */
#define RAW_SIZE_MAX ((uint64_t)INT64_MAX & ~((UINT64_C(1) << 30) - 1))
/* The first block is written at creation, so that the alignment of direct I/O can be probed later (FEATURES 3.006). */
#define RAW_FIRST_BLOCK 4096u

struct raw_image {
    struct fmt_image im;
    uint64_t base;                         /* where the disk begins in the file */
    bool fixed;                            /* its size is given, not the file's */
};

static struct raw_image *raw_of(struct fmt_image *im)
{
    return CONTAINER_OF(im, struct raw_image, im);
}

static int raw_probe(const uint8_t *buf, size_t len)
{
    return 1;
}

/* Does the window lie inside a file of len bytes? */
static int check_window(const struct fmt_window *w, const struct stor *s, uint64_t len, struct byre_err *err)
{
    if (!w->on)
        return 0;
    if (w->off > len)
        return byre_fail(err, BAD_OPTION, "%s: the offset %" PRIu64 " is behind the end of the file, which has %" PRIu64 " bytes", s->name, w->off, len);
    if (w->fixed && !is_aligned(w->size, SECTOR))
        return byre_fail(err, BAD_OPTION, "%s: the size %" PRIu64 " is no multiple of %u", s->name, w->size, SECTOR);
    if (w->fixed && w->size > len - w->off)
        return byre_fail(err, BAD_OPTION, "%s: %" PRIu64 " bytes from %" PRIu64 " on reach behind the end of the file, which has %" PRIu64 " bytes",
                         s->name, w->size, w->off, len);
    return 0;
}

static int raw_open(struct co *co, struct stor *store, const struct fmt_open_opts *o, struct fmt_image **ret_im, struct byre_err *err)
{
    uint64_t len;
    int r = stor_length(co, store, &len);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length", store->name);
    if (len > RAW_SIZE_MAX)
        return byre_fail(err, BAD_SIZE, "%s: a length of %" PRIu64 " bytes is too large", store->name, len);
    r = check_window(&o->window, store, len, err);
    if (r)
        return r;
    struct raw_image *w = calloc(1, sizeof *w);
    if (!w)
        return byre_fail(err, NOMEM, "%s: no memory to open the image", store->name);
    struct fmt_image *im = &w->im;
    r = epoch_new(co_loop(co), &im->epoch);
    if (r) {
        free(w);
        return byre_fail(err, NOMEM, "%s: no memory to open the image", store->name);
    }
    w->base = o->window.on ? o->window.off : 0;
    w->fixed = o->window.on && o->window.fixed;
    im->ops = &fmt_raw_ops;
    im->store = im->data = store;
    im->home = co_loop(co);
    im->size = w->fixed ? o->window.size : round_up(len - w->base, SECTOR);
    im->granule = im->cluster = 1;
    im->read_only = o->read_only;
    im->below_zero_from = 0;
    *ret_im = im;
    return 0;
}

static int raw_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    *ret_e = (struct fmt_extent){ .kind = FMT_DATA, .writable = !im->read_only, .has_host = true, .len = len, .host = raw_of(im)->base + off };
    return 0;
}

static int raw_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    return raw_map_at_hand(im, off, len, ret_e);
}

static int raw_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    return -EIO;          /* map() never says ENCODED */
}

/* Every range is writable in place already. */
static int raw_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w)
{
    *w = (struct fmt_write){ .off = off };
    return 0;
}

static int raw_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    return 0;
}

static void raw_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
}

static int raw_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    return stor_zero(co, im->store, raw_of(im)->base + off, len, STOR_NO_FALLBACK | (flags & FMT_ZERO_UNMAP ? STOR_UNMAP : 0) | (flags & FMT_ZERO_SLOW ? STOR_SLOW : 0));
}

static int raw_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    return stor_discard(co, im->store, raw_of(im)->base + off, len);
}

static int raw_flush(struct co *co, struct fmt_image *im)
{
    stor_event(co, im->store, STOR_EV_FLUSH_TO_DISK);
    return stor_flush(co, im->store);
}

/* Gives [old, size) space by `prealloc`; the file has its new length already. */
static int raw_preallocate(struct co *co, struct stor *s, uint64_t old, uint64_t size, enum fmt_prealloc prealloc)
{
    if (size <= old || prealloc == FMT_PREALLOC_OFF)
        return 0;
    if (prealloc == FMT_PREALLOC_FALLOC)
        return stor_preallocate(co, s, old, size - old);
    size_t chunk = 1u << 20;
    AUTOFREE uint8_t *zeros = aligned_alloc(4096, chunk);
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, chunk);
    int r = 0;
    for (uint64_t off = old; off < size && !r; off += min_u64(chunk, size - off))
        r = stor_write_buf(co, s, zeros, min_u64(chunk, size - off), off, 0);
    return r;
}

/* Sets the length of the store and fills it as asked; on failure the old length is back. */
static int raw_set_length(struct co *co, struct stor *s, uint64_t old, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    if (prealloc == FMT_PREALLOC_METADATA)
        return byre_fail(err, BAD_OPTION, "%s: preallocation mode 'metadata' does not exist for raw images", s->name);
    if (size < old && prealloc != FMT_PREALLOC_OFF)
        return byre_fail(err, BAD_OPTION, "%s: preallocation has no meaning when an image shrinks", s->name);
    int r = stor_truncate(co, s, size);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot set the length to %" PRIu64 " bytes", s->name, size);
    r = raw_preallocate(co, s, old, size, prealloc);
    if (r) {
        if (stor_truncate(co, s, old))
            return byre_fail_code(err, IO, r, "%s: cannot preallocate, and the old length cannot be restored", s->name);
        return byre_fail_code(err, IO, r, "%s: cannot preallocate %" PRIu64 " bytes", s->name, size - old);
    }
    return 0;
}

static int raw_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    ASSERT_LOOP(im->home);
    uint64_t len, base = raw_of(im)->base;
    if (raw_of(im)->fixed)
        return byre_fail(err, NOT_SUPPORTED, "%s: the size was given when the image was opened; it cannot be changed", im->store->name);
    if (size > RAW_SIZE_MAX - base)
        return byre_fail(err, BAD_SIZE, "%s: a size of %" PRIu64 " bytes is too large, the limit is %" PRIu64, im->store->name, size, RAW_SIZE_MAX - base);
    int r = stor_length(co, im->store, &len);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length", im->store->name);
    r = raw_set_length(co, im->store, len, base + size, prealloc, err);
    if (r)
        return r;
    r = stor_flush(co, im->store);       /* the size is the new one for good when this returns 0 (P3) */
    if (r) {
        if (base + size > len)
            (void)!stor_truncate(co, im->store, len);        /* the error told is the first one */
        return byre_fail_code(err, IO, r, "%s: the length of %" PRIu64 " bytes cannot be made durable", im->store->name, base + size);
    }
    im->size = round_up(size, SECTOR);
    return 0;
}

static int raw_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    *ret_info = (struct fmt_info){ .virtual_size = im->size };
    return 0;
}

static int raw_close(struct co *co, struct fmt_image *im)
{
    int r = im->read_only ? 0 : stor_flush(co, im->store);
    epoch_drain(co, im->epoch);
    epoch_free(im->epoch);
    stor_close(co, im->store);
    free(raw_of(im));
    return r;
}

/* A device has the length it has; it only must be large enough. */
static int raw_create_on_device(struct co *co, struct stor *store, uint64_t size, struct byre_err *err)
{
    uint64_t len;
    int r = stor_length(co, store, &len);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length", store->name);
    if (len < size)
        return byre_fail(err, NO_SPACE, "%s: the device has %" PRIu64 " bytes, %" PRIu64 " are needed", store->name, len, size);
    return 0;
}

static int raw_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err)
{
    if (o->backing_file)
        return byre_fail(err, BAD_OPTION, "raw images cannot have a backing file");
    if (o->size > RAW_SIZE_MAX)
        return byre_fail(err, BAD_SIZE, "a size of %" PRIu64 " bytes is too large", o->size);
    if (!store)
        return o->prealloc == FMT_PREALLOC_METADATA ? byre_fail(err, BAD_OPTION, "preallocation: 'metadata' does not exist for raw images") : 0;
    if (!store->traits.regular)
        return raw_create_on_device(co, store, o->size, err);
    static const uint8_t zeros[RAW_FIRST_BLOCK];
    int r = raw_set_length(co, store, 0, o->size, o->prealloc, err);
    if (r)
        return r;
    if (o->prealloc == FMT_PREALLOC_OFF && o->size)
        r = stor_write_buf(co, store, zeros, min_u64(RAW_FIRST_BLOCK, o->size), 0, 0);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot write the first block", store->name);
    r = stor_flush(co, store);
    return r ? byre_fail_code(err, IO, r, "%s: cannot flush", store->name) : 0;
}

static int raw_measure(const struct fmt_create_opts *o, uint64_t data_clusters_bytes, struct fmt_measure *ret, struct byre_err *err)
{
    *ret = (struct fmt_measure){ .required = o->size, .fully_allocated = o->size };
    return 0;
}

const struct fmt_ops fmt_raw_ops = {
    .name = "raw",
    .probe = raw_probe,
    .open = raw_open,
    .map = raw_map,
    .map_at_hand = raw_map_at_hand,
    .read_encoded = raw_read_encoded,
    .write_begin = raw_write_begin,
    .write_commit = raw_write_commit,
    .write_abort = raw_write_abort,
    .zero = raw_zero,
    .discard = raw_discard,
    .flush = raw_flush,
    .resize = raw_resize,
    .info = raw_info,
    .check = NULL,
    .close = raw_close,
    .create = raw_create,
    .measure = raw_measure,
};
