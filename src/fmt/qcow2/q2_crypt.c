/* SPDX-License-Identifier: MIT
 *
 * q2_crypt.c: encrypted images.
 *
 * Purpose      Finds the key of an image and puts a store that decrypts between the guest's data and the file. Metadata and
 *              compressed clusters are not encrypted (as the ecosystem has it).
 * Owns         q->crypt; im.data of an encrypted image.
 * Invariants   K1  The initial vector of a sector comes from its place in the file (LUKS) or on the guest's disk (legacy AES).
 *              K2  Without its key no byte of guest data is read or written, but metadata can be looked at and mended.
 *              K3  What the file reads as where nothing was written says nothing about the guest: fresh clusters are written
 *                  whole, and space is never known to be zero (DESIGN D4, Q23).
 *              K4  Nothing compressed is ever written: it would lie there in plain.
 * Order        Key slots: lk_slots.c; its flush is a barrier of meta/.
 * Concurrency  Home loop; reading legacy clusters from any.
 * Failure      A missing or wrong secret refuses the opening before anything is written.
 * Tests        tests/interop/test_luks.py, crash explorer (geometry c512-luks)
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_crypt.h"
#include "rt/loop.h"

#define CRYPT_AES 1u
#define CRYPT_LUKS 2u
#define LEGACY_KEY_BYTES 16u

/* ---- opening ---- */

static int barrier(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    return meta_barrier(co, q->meta, META_B_HEADER);
}

static struct lk_area area_of(struct q2_image *q)
{
    return (struct lk_area){ .store = q->im.store, .base = q->h.crypto_off, .len = q->h.crypto_len, .flush = barrier, .arg = q, .name = q->name };
}

static int legacy_key(struct q2_crypt *c)
{
    struct lk_suite s = { .cipher = lk_cipher_by_option("aes-128"), .mode = LK_CBC, .ivgen = LK_IV_PLAIN64 };
    uint8_t *key = secret_new(LEGACY_KEY_BYTES);
    if (!key)
        return -ENOMEM;
    memcpy(key, c->pass->bytes, min_u64(c->pass->len, LEGACY_KEY_BYTES));
    int r = lk_xform_new(&s, key, &c->x);
    secret_free(key);
    return r;
}

static int find_key(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct q2_crypt *c = q->crypt;
    struct lk_area a = area_of(q);
    uint8_t *key;
    unsigned slot;
    int r = lk_secret(q->opts.secrets, q->opts.key_secret, "encrypt.key-secret", q->name, &c->pass, err);
    if (r < 0)
        return r;
    if (c->legacy)
        return legacy_key(c) < 0 ? byre_fail(err, NOMEM, "%s: no memory for keys", q->name) : 0;
    r = lk_unlock(co, &a, &c->h, c->pass, -1, &key, &slot, err);
    if (r < 0)
        return r;
    r = lk_xform_new(&c->h.suite, key, &c->x);
    secret_free(key);
    return r < 0 ? byre_fail(err, NOMEM, "%s: no memory for keys", q->name) : 0;
}

static int check_stated(const struct q2_image *q, struct byre_err *err)
{
    static const char *const names[] = { "none", "aes", "luks" };
    const char *said = q->opts.encrypt_format, *is = names[q->h.crypt_method];
    return !said || !strcmp(said, is) ? 0
           : byre_fail(err, BAD_OPTION, "%s: its encryption is '%s', encrypt.format says '%s'", q->name, is, said);
}

static int open_found(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct q2_crypt *c = q->crypt;
    struct lk_area a = area_of(q);
    int r = c->legacy ? 0 : lk_load(co, &a, &c->h, err);
    if (r == 0 && c->legacy && !q->im.read_only && !q->check_mode)
        return byre_fail(err, NOT_SUPPORTED, "%s: images with AES encryption of the old kind can only be read; convert it to LUKS", q->name);
    if (r == 0 && !q->info_only && !q->opts.no_data)
        r = find_key(co, q, err);
    if (r < 0)
        return r;
    struct lk_store_opts so = { .below = q->im.data, .x = c->legacy ? NULL : c->x };        /* K1 */
    if (lk_store_new(&so, &q->im.data) < 0)
        return byre_fail(err, NOMEM, "%s: no memory to open the image", q->name);
    q->crypt_below = so.below;
    return 0;
}

int q2_crypt_open(struct co *co, struct q2_image *q, struct byre_err *err)
{
    int r = check_stated(q, err);
    if (r < 0 || !q->h.crypt_method)
        return r;
    q->crypt = calloc(1, sizeof *q->crypt);
    if (!q->crypt)
        return byre_fail(err, NOMEM, "%s: no memory to open the image", q->name);
    q->crypt->legacy = q->h.crypt_method == CRYPT_AES;
    if (q->im.data_raw)
        return byre_fail(err, Q2_HEADER, "%s: its external data file cannot be both raw and encrypted", q->name);
    q->im.encrypted = true;
    q->im.weak_cipher = q->crypt->legacy;
    return open_found(co, q, err);
}

void q2_crypt_close(struct co *co, struct q2_image *q)
{
    if (q->crypt_below) {
        stor_close(co, q->im.data);
        q->im.data = q->crypt_below;
    }
    if (q->crypt) {
        lk_xform_free(q->crypt->x);
        secret_put(q->crypt->pass);
    }
    free(q->crypt);
    q->crypt = NULL;
}

/* ---- legacy AES ---- */

struct legacy { const struct lk_xform *x; uint8_t *buf; uint64_t len, guest; };

static int64_t decrypt_legacy(void *arg)
{
    struct legacy *l = arg;
    lk_decrypt(l->x, l->buf, l->len, l->guest / LK_SECTOR);
    return 0;
}

int q2_crypt_read_legacy(struct co *co, struct q2_image *q, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    uint64_t from = round_down(off, LK_SECTOR), to = round_up(off + v.len_bytes, LK_SECTOR);
    if (!q->crypt->x)
        return -EACCES;                                                          /* K2 */
    struct legacy l = { .x = q->crypt->x, .len = to - from, .guest = from };
    l.buf = malloc(l.len);
    if (!l.buf)
        return -ENOMEM;
    struct iovec slot;
    int r = stor_read(co, q->im.store, iov_one(&slot, l.buf, l.len), e->host + (from - e->enc_guest));
    if (r == 0)
        r = (int)rt_cpu(co, decrypt_legacy, &l);
    if (r == 0)
        iov_from_buf(v, l.buf + (off - from), v.len_bytes);
    free(l.buf);
    return r;
}

/* ---- info and key slots ---- */

int q2_crypt_info(const struct q2_image *q, struct fmt_crypt_info **ret)
{
    *ret = NULL;
    if (!q->crypt)
        return 0;
    if (!q->crypt->legacy)
        return lk_describe(&q->crypt->h, ret);
    *ret = calloc(1, sizeof **ret);
    if (*ret)
        (*ret)->format = "aes";
    return *ret ? 0 : -ENOMEM;
}

int q2_crypt_amend(struct co *co, struct q2_image *q, const struct fmt_amend_opts *a, bool check_only, struct byre_err *err)
{
    struct lk_area none = { .name = q->name }, area = q->crypt ? area_of(q) : none;
    struct lk_amending m = { .a = a, .prefix = "encrypt.", .open_secret = q->crypt ? q->crypt->pass : NULL, .check_only = true };
    int r = lk_amend_options(co, &area, NULL, &m, err);
    if (r < 0 || !a->o->encrypt.state)
        return r;
    if (!q->crypt || q->crypt->legacy || !q->crypt->pass)
        return byre_fail(err, NOT_SUPPORTED, "%s: has no key slots, it is %s", q->name, q->crypt ? "encrypted with AES of the old kind" : "not encrypted");
    m.check_only = check_only;
    return check_only ? 0 : lk_amend_options(co, &area, &q->crypt->h, &m, err);
}

/* ---- creation ---- */

int q2_crypt_plan(const struct fmt_create_opts *o, struct lk_header **ret, struct byre_err *err)
{
    const struct fmt_encrypt *e = &o->encrypt;
    bool any = e->cipher_alg || e->cipher_mode || e->ivgen_alg || e->ivgen_hash_alg || e->hash_alg || e->key_secret;
    *ret = NULL;
    if (e->legacy || (e->format && !strcmp(e->format, "aes")))
        return byre_fail(err, NOT_SUPPORTED, "encrypt.format: 'aes' is weak and can only be read; use 'luks'");
    if (e->format && strcmp(e->format, "luks"))
        return byre_fail(err, BAD_OPTION, "encrypt.format: '%s' is not known (luks is)", e->format);
    if (!e->format)
        return any ? byre_fail(err, BAD_OPTION, "encrypt.format: must be given with other options of encryption") : 0;
    if (o->prealloc != FMT_PREALLOC_OFF && o->version == 2)
        return byre_fail(err, BAD_OPTION, "preallocation: an encrypted image needs compat=1.1 for it");
    struct lk_header *h = malloc(sizeof *h);
    if (!h)
        return byre_fail(err, NOMEM, "no memory for the header");
    int r = lk_options(e, "encrypt.", h, err);
    if (r < 0) {
        free(h);
        return r;
    }
    *ret = h;
    return 0;
}

static int flush_fresh(struct co *co, void *arg)
{
    return stor_flush(co, arg);
}

int q2_crypt_write(struct co *co, struct stor *s, uint64_t base, struct lk_header *h, const struct fmt_create_opts *o, struct byre_err *err)
{
    struct secret *pass;
    int r = lk_secret(o->secrets, o->encrypt.key_secret, "encrypt.key-secret", NULL, &pass, err);
    if (r < 0)
        return r;
    if (s) {
        struct lk_area a = { .store = s, .base = base, .len = h->payload_off, .flush = flush_fresh, .arg = s, .name = s->name };
        r = lk_format(co, &a, h, pass, o->encrypt.iter_time_ms, err);
    }
    secret_put(pass);
    return r;
}
