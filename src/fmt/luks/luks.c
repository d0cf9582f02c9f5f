/* SPDX-License-Identifier: MIT
 *
 * luks.c: the format luks: a LUKS1 header and behind it the encrypted disk, nothing else; or the two in a file each (FEATURES 3.062).
 *
 * Purpose      Opens and makes such files. Guest offset and payload offset are the same number; lk_store.c does the rest.
 * Owns         struct luks_image: header, key, the store that decrypts, the secret that opened it; the store of a detached header.
 * Invariants   I1  size is what lies behind the payload offset, rounded up to a sector.
 *              I2  im->data exists always; without a key every request to it fails (-EACCES).
 *              I3  A detached header is im->second; its payload offset counts in the file of the disk, and may be 0. Only key slots are written to
 *                  it, and its length stays.
 *              I4  A LUKS header, of any version, that lies in the file of a disk with a detached one is not written over by that disk, nor are
 *                  its key slots. The disk may begin behind them: then the detached header is a copy of that one.
 *              I5  A header that is made over a detached one which we know comes when the disk is complete; until then, and if it fails, the old one
 *                  is what it was (lk_new.c N1). Before anything is written it is known that both places are large enough.
 * Order        A flush is the store's flush; a detached header has nothing to flush, its changes are durable one by one (Q26). Creation: key
 *              material, flush, header, flush; of a detached one the disk's file is durable before the header's is touched. A resize is durable when it is answered (P3).
 * Concurrency  map, zero, discard, flush: any loop. open, resize, close, amend: home loop.
 * Failure      open: nothing stays open. A failed creation leaves no header, but for a detached one that was there (I5).
 * Tests        luks_test.c, tests/interop/test_luks.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"

struct luks_image {
    struct fmt_image im;                     /* first */
    struct lk_header h;
    uint64_t header_len;                     /* of a detached header: bytes of its file; 0: there is none */
    struct lk_xform *x;
    struct secret *pass;
};

static struct luks_image *of(struct fmt_image *im) { return (struct luks_image *)im; }

static int area_flush(struct co *co, void *arg)
{
    return stor_flush(co, arg);
}

static struct lk_area area_of(struct stor *s)
{
    return (struct lk_area){ .store = s, .flush = area_flush, .arg = s, .name = s->name };
}

/* The area of an open image. */
static struct lk_area own_area(const struct luks_image *l)
{
    struct lk_area a = area_of(l->im.second ? l->im.second : l->im.store);
    a.len = l->header_len;
    return a;
}

/* ---- opening ---- */

static int set_size(struct co *co, struct luks_image *l, struct byre_err *err)
{
    uint64_t len;
    int r = stor_length(co, l->im.store, &len);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length", l->im.store->name);
    if (len < l->h.payload_off)
        return byre_fail(err, BAD_FORMAT, "%s: the payload begins at %" PRIu64 ", the file ends at %" PRIu64, l->im.store->name, l->h.payload_off, len);
    l->im.size = round_up(len - l->h.payload_off, LK_SECTOR);
    return 0;
}

static int unlock(struct co *co, struct luks_image *l, const struct fmt_open_opts *o, struct byre_err *err)
{
    struct lk_area a = own_area(l);
    uint8_t *key;
    unsigned slot;
    if (o->no_data && !o->key_secret)
        return 0;
    int r = lk_secret(o->secrets, o->key_secret, "key-secret", a.name, &l->pass, err);
    if (r)
        return o->no_data ? 0 : r;
    r = lk_unlock(co, &a, &l->h, l->pass, -1, &key, &slot, err);
    if (r)
        return r;
    r = lk_xform_new(&l->h.suite, key, &l->x);
    secret_free(key);
    return r ? byre_fail(err, NOMEM, "%s: no memory for keys", a.name) : 0;
}

/* I3 */
static int open_header(struct co *co, struct luks_image *l, const struct fmt_open_opts *o, struct byre_err *err)
{
    int r = o->host->open_data(co, o->host->arg, NULL, &l->im.second, err);
    if (r)
        return r;
    r = stor_length(co, l->im.second, &l->header_len);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length", l->im.second->name);
    return l->header_len ? 0 : byre_fail(err, BAD_FORMAT, "%s: there is no LUKS header, the file is empty", l->im.second->name);
}

/* I4: ciphertext does not begin like a header, so somebody has mistaken the disk, or the header. */
static int spare_other_header(struct co *co, const struct luks_image *l, struct byre_err *err)
{
    struct lk_reach own;
    if (!l->im.second || l->im.read_only)
        return 0;
    int r = lk_reach(co, l->im.store, &own);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: no memory to open the image", l->im.store->name);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot read what it begins with", l->im.store->name);
    if (!own.version || l->h.payload_off >= own.end)
        return 0;
    return byre_fail(err, BAD_FORMAT, "%s: begins with a LUKS%u header of its own, over which the disk of the header '%s' would be written from offset %" PRIu64 " on",
                     l->im.store->name, own.version, l->im.second->name, l->h.payload_off);
}

static int open_parts(struct co *co, struct luks_image *l, const struct fmt_open_opts *o, struct byre_err *err)
{
    int r = o->host && o->host->has_header ? open_header(co, l, o, err) : 0;
    if (r)
        return r;
    struct lk_area a = own_area(l);
    r = lk_load(co, &a, &l->h, err);
    if (!r)
        r = set_size(co, l, err);
    if (!r)
        r = spare_other_header(co, l, err);
    if (!r && !o->info_only)
        r = unlock(co, l, o, err);
    if (r)
        return r;
    struct lk_store_opts so = { .below = l->im.store, .x = l->x, .base = l->h.payload_off, .iv_base = l->h.payload_off };
    if (lk_store_new(&so, &l->im.data) || epoch_new(co_loop(co), &l->im.epoch))
        return byre_fail(err, NOMEM, "%s: no memory to open the image", a.name);
    return 0;
}

static void dismantle(struct co *co, struct luks_image *l)
{
    if (l->im.epoch) {
        epoch_drain(co, l->im.epoch);
        epoch_free(l->im.epoch);
    }
    stor_close(co, l->im.data);
    stor_close(co, l->im.second);
    lk_xform_free(l->x);
    secret_put(l->pass);
    free(l);
}

static int luks_open(struct co *co, struct stor *store, const struct fmt_open_opts *o, struct fmt_image **ret_im, struct byre_err *err)
{
    struct luks_image *l = calloc(1, sizeof *l);
    if (!l)
        return byre_fail(err, NOMEM, "%s: no memory to open the image", store->name);
    l->im.ops = &fmt_luks_ops;
    l->im.store = store;
    l->im.home = co_loop(co);
    l->im.granule = l->im.cluster = LK_SECTOR;
    l->im.read_only = o->read_only;
    l->im.encrypted = true;
    int r = open_parts(co, l, o, err);
    if (r) {
        dismantle(co, l);
        return r;
    }
    *ret_im = &l->im;
    return 0;
}

static int luks_close(struct co *co, struct fmt_image *im)
{
    struct stor *store = im->store;
    int r = im->read_only ? 0 : stor_flush(co, store);
    dismantle(co, of(im));
    stor_close(co, store);
    return r;
}

/* ---- requests ---- */

static int luks_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    *ret_e = (struct fmt_extent){ .kind = FMT_DATA, .writable = !im->read_only, .has_host = true, .len = len, .host = off };
    return 0;
}

static int luks_read_encoded(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    return -EIO;                             /* map() never says ENCODED */
}

/* Every range is writable in place already. */
static int luks_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w)
{
    *w = (struct fmt_write){ .off = off };
    return 0;
}

static int luks_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    return 0;
}

static void luks_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
}

/* Zeros are their ciphertext: bytes must be written. */
static int luks_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    return -ENOTSUP;
}

static int luks_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    return -ENOTSUP;
}

static int luks_flush(struct co *co, struct fmt_image *im)
{
    stor_event(co, im->store, STOR_EV_FLUSH_TO_DISK);
    return stor_flush(co, im->store);
}

/* Writes encrypted zeros over a range of the payload. */
static int fill(struct co *co, struct stor *data, uint64_t off, uint64_t end, enum fmt_prealloc prealloc)
{
    if (off >= end || prealloc == FMT_PREALLOC_OFF)
        return 0;
    int r = prealloc == FMT_PREALLOC_FALLOC ? stor_preallocate(co, data, off, end - off) : 0;
    return r == 0 || r == -ENOTSUP ? stor_zero(co, data, off, end - off, 0) : r;
}

static int luks_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    struct luks_image *l = of(im);
    uint64_t old = im->size, whole;
    if (prealloc == FMT_PREALLOC_METADATA)
        return byre_fail(err, BAD_OPTION, "%s: preallocation mode 'metadata' does not exist for luks images", im->store->name);
    if (!im->store->traits.regular)
        return byre_fail(err, NOT_SUPPORTED, "%s: is no file, so its size cannot be changed", im->store->name);
    if (add_overflows(size, l->h.payload_off, &whole) || whole > INT64_MAX)
        return byre_fail(err, BAD_SIZE, "%s: a size of %" PRIu64 " bytes is too large", im->store->name, size);
    int r = stor_truncate(co, im->store, whole);
    if (!r && size > old)
        r = fill(co, im->data, old, size, prealloc);
    if (!r)
        r = stor_flush(co, im->store);       /* P3 */
    if (r) {
        if (size > old)
            (void)!stor_truncate(co, im->store, l->h.payload_off + old);     /* the error told is the first one */
        return byre_fail_code(err, IO, r, "%s: cannot set the size to %" PRIu64, im->store->name, size);
    }
    im->size = size;
    return 0;
}

static int luks_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    struct fmt_info i = { .virtual_size = im->size, .encrypted = true };
    if (lk_describe(&of(im)->h, &i.crypt))
        return byre_fail(err, NOMEM, "%s: no memory for a description", im->store->name);
    i.crypt->detached = im->second;
    *ret_info = i;
    return 0;
}

static int luks_amend(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *o, struct byre_err *err)
{
    struct luks_image *l = of(im);
    struct lk_area a = own_area(l);
    struct lk_amending m = { .a = o, .prefix = "", .open_secret = l->pass };
    if (o->rebase)
        return byre_fail(err, NOT_SUPPORTED, "%s: luks images have no backing file", im->store->name);
    if (im->read_only || !l->pass)
        return byre_fail(err, READ_ONLY, "%s: is open read-only, or without its secret", a.name);
    if (a.store->read_only)
        return byre_fail(err, READ_ONLY, "%s: the header is open read-only", a.name);
    return lk_amend_options(co, &a, &l->h, &m, err);
}

/* ---- making ---- */

#define LK_MAGIC_BYTES 512u                       /* the sector without which there is no image */

/* I5: a device only must be large enough. */
static int check_room(struct co *co, struct stor *s, uint64_t bytes, uint64_t *ret_have, struct byre_err *err)
{
    int r = stor_length(co, s, ret_have);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot get the length: %s", s->name, strerror(-r));
    if (s->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", s->name);
    return s->traits.regular || *ret_have >= bytes ? 0 : byre_fail(err, NO_SPACE, "%s: has %" PRIu64 " bytes, the image needs %" PRIu64, s->name, *ret_have, bytes);
}

/* What it held before is not a header any more. */
static int make_room(struct co *co, struct stor *s, uint64_t bytes, uint64_t have, struct byre_err *err)
{
    bool regular = s->traits.regular;
    int r = regular ? stor_truncate(co, s, 0) : stor_zero(co, s, 0, LK_MAGIC_BYTES, 0);
    if (!r && have)
        r = stor_flush(co, s);                   /* Q28: or a crash leaves the old header over new key material */
    if (!r)
        r = regular ? stor_truncate(co, s, bytes) : stor_zero(co, s, 0, LK_HEAD_BYTES, 0);
    return r ? byre_fail_code(err, IO, r, "%s: cannot make room for %" PRIu64 " bytes", s->name, bytes) : 0;
}

/* What is made, and where. */
struct making {
    struct stor *head;                            /* gets the header */
    struct stor *disk;                            /* the same store, another one (I3), or NULL: there is only a header */
    uint64_t head_bytes;                          /* of the header, with its key slots */
    uint64_t head_have, disk_have;                /* lengths of before */
    struct lk_header h;
    struct lk_filling first;                      /* of the first slot */
};

static int prefill(struct co *co, const struct making *m, const struct fmt_create_opts *o)
{
    struct lk_xform *x = NULL;
    struct stor *data = NULL;
    int r = lk_xform_new(&m->h.suite, m->first.key, &x);
    struct lk_store_opts so = { .below = m->disk, .x = x, .base = m->h.payload_off, .iv_base = m->h.payload_off };
    if (!r)
        r = lk_store_new(&so, &data);
    if (!r)
        r = fill(co, data, 0, o->size, o->prealloc);
    stor_close(co, data);
    lk_xform_free(x);
    return r;
}

/* The disk in a file of its own, complete and durable. I4: a header that lies there goes. */
static int make_disk(struct co *co, const struct making *m, const struct fmt_create_opts *o, struct byre_err *err)
{
    int r = make_room(co, m->disk, o->size, m->disk_have, err);
    if (r)
        return r;
    if (o->prealloc != FMT_PREALLOC_OFF)
        r = prefill(co, m, o);
    if (!r)
        r = stor_flush(co, m->disk);
    return r ? byre_fail_code(err, IO, r, "%s: cannot write the image: %s", m->disk->name, strerror(-r)) : 0;
}

/* The header, and, where it lies in front of it, the disk. */
static int make_fresh(struct co *co, struct making *m, const struct lk_area *a, const struct fmt_create_opts *o, struct byre_err *err)
{
    bool together = m->disk == m->head;
    int r = make_room(co, m->head, m->head_bytes + (together ? o->size : 0), m->head_have, err);
    if (!r)
        r = lk_new_slot(co, a, &m->h, &m->first, err);
    if (r)
        return r;
    if (together && o->prealloc != FMT_PREALLOC_OFF)
        r = prefill(co, m, o);
    if (!r)
        r = stor_flush(co, m->head);              /* until here there is no header: what a crash leaves is no image */
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot write the image: %s", a->name, strerror(-r));
    r = lk_put_header(co, a, &m->h, err);
    if (r)
        return r;
    r = stor_flush(co, m->head);
    return r ? byre_fail_code(err, IO, r, "%s: cannot write the image: %s", a->name, strerror(-r)) : 0;
}

/* I5. -EAGAIN: there is no header that could be kept until then. */
static int make_over(struct co *co, struct making *m, const struct lk_area *head, const struct fmt_host *host, struct byre_err *err)
{
    struct lk_area a = *head;
    struct lk_header old;
    bool regular = m->head->traits.regular;
    a.len = m->head_have;
    int r = a.len ? lk_load(co, &a, &old, err) : -EAGAIN;
    if (r == -EINVAL || r == -ENOTSUP || r == -EAGAIN)
        return -EAGAIN;
    if (host && host->kept)
        *host->kept = true;
    if (r)                                       /* who knows what could not be read */
        return r;
    r = regular && m->head_have < m->head_bytes ? stor_truncate(co, m->head, m->head_bytes) : 0;
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot make room for %" PRIu64 " bytes", m->head->name, m->head_bytes);
    a.len = max_u64(a.len, m->head_bytes);
    r = lk_replace(co, &a, &m->h, &m->first, err);
    if (r == -EAGAIN && host && host->kept)
        *host->kept = false;
    if (!r && regular && m->head_have > m->head_bytes) {
        r = stor_truncate(co, m->head, m->head_bytes);
        if (!r)
            r = stor_flush(co, m->head);
        if (r)
            return byre_fail_code(err, IO, r, "%s: has a new header, but what lies behind it cannot be cut off", m->head->name);
    }
    return r;
}

static int create_with(struct co *co, struct making *m, const struct secret *pass, const struct fmt_create_opts *o, struct byre_err *err)
{
    struct lk_area a = area_of(m->head);
    bool together = m->disk == m->head;
    uint8_t *key = NULL;
    int r = check_room(co, m->head, m->head_bytes + (together ? o->size : 0), &m->head_have, err);
    if (!r && m->disk && !together)
        r = check_room(co, m->disk, o->size, &m->disk_have, err);
    if (!r)
        r = lk_new_key(co, &a, &m->h, o->encrypt.iter_time_ms, &key, err);
    if (r)
        return r;
    m->first = (struct lk_filling){ .key = key, .pass = pass, .iter_time_ms = o->encrypt.iter_time_ms };
    if (m->disk && !together)
        r = make_disk(co, m, o, err);
    if (!r)
        r = together ? -EAGAIN : make_over(co, m, &a, o->host, err);
    if (r == -EAGAIN)
        r = make_fresh(co, m, &a, o, err);
    secret_free(key);
    return r;
}

/* store: of the disk, or, where only a header is made, of that. */
static int create_in(struct co *co, struct stor *store, struct making *m, const struct secret *pass, const struct fmt_create_opts *o, struct byre_err *err)
{
    bool apart = !o->encrypt.detached && o->host && o->host->has_header;
    m->head_bytes = m->h.payload_off;
    m->head = store;
    m->disk = o->encrypt.detached ? NULL : store;
    if (apart || o->encrypt.detached)
        m->h.payload_off = 0;                     /* I3 */
    int r = apart ? o->host->open_data(co, o->host->arg, NULL, &m->head, err) : 0;
    if (r)
        return r;
    r = create_with(co, m, pass, o, err);
    if (apart)
        stor_close(co, m->head);
    return r;
}

static int check_create(const struct fmt_create_opts *o, const struct lk_header *h, struct byre_err *err)
{
    uint64_t whole;
    if (o->prealloc == FMT_PREALLOC_METADATA)
        return byre_fail(err, BAD_OPTION, "preallocation: 'metadata' does not exist for luks images");
    if (o->prealloc != FMT_PREALLOC_OFF && o->encrypt.detached)
        return byre_fail(err, BAD_OPTION, "preallocation: there is nothing to allocate where only a header is made");
    if (o->backing_file)
        return byre_fail(err, BAD_OPTION, "luks images cannot have a backing file");
    if (add_overflows(o->size, h->payload_off, &whole) || whole > INT64_MAX)
        return byre_fail(err, BAD_SIZE, "a size of %" PRIu64 " bytes is too large", o->size);
    return 0;
}

static int luks_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err)
{
    struct making m = { .head = NULL };
    struct secret *pass;
    int r = lk_options(&o->encrypt, "", &m.h, err);
    if (!r)
        r = check_create(o, &m.h, err);
    if (!r)
        r = lk_secret(o->secrets, o->encrypt.key_secret, "key-secret", NULL, &pass, err);
    if (r)
        return r;
    if (store)
        r = create_in(co, store, &m, pass, o, err);
    secret_put(pass);
    return r;
}

static int luks_measure(const struct fmt_create_opts *o, uint64_t data_bytes, struct fmt_measure *ret, struct byre_err *err)
{
    struct lk_header h;
    uint64_t whole;
    int r = lk_options(&o->encrypt, "", &h, err);
    if (r)
        return r;
    if (add_overflows(o->encrypt.detached ? 0 : o->size, h.payload_off, &whole))
        return byre_fail(err, BAD_SIZE, "size: %" PRIu64 " bytes are too large", o->size);
    *ret = (struct fmt_measure){ .required = whole, .fully_allocated = whole };
    return 0;
}

const struct fmt_ops fmt_luks_ops = {
    .name = "luks",
    .probe = lk_probe,
    .open = luks_open,
    .map = luks_map,
    .read_encoded = luks_read_encoded,
    .write_begin = luks_write_begin,
    .write_commit = luks_write_commit,
    .write_abort = luks_write_abort,
    .zero = luks_zero,
    .discard = luks_discard,
    .flush = luks_flush,
    .resize = luks_resize,
    .info = luks_info,
    .close = luks_close,
    .create = luks_create,
    .amend = luks_amend,
    .measure = luks_measure,
};
