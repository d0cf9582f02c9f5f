/* SPDX-License-Identifier: MIT
 *
 * lk_options.c: from words to a suite, and from a header to what info shows.
 *
 * Purpose      The options of creation, with their defaults; named secrets.
 * Owns         Nothing.
 * Invariants   I1  A header made from options has a suite that fits together.
 * Order        None: no I/O.
 * Concurrency  Pure, but for the list of secrets, which has its own lock.
 * Failure      One sentence that names option and value.
 * Tests        luks_test.c, tests/interop/test_luks.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/luks/lk.h"

static int unknown(const char *prefix, const char *option, const char *value, struct byre_err *err)
{
    return byre_fail(err, BAD_OPTION, "%s%s: '%s' is not supported", prefix, option, value);
}

int lk_options(const struct fmt_encrypt *o, const char *prefix, struct lk_header *ret, struct byre_err *err)
{
    struct lk_header h = { .key_bytes = 0 };
    const char *cipher = o->cipher_alg ? o->cipher_alg : "aes-256", *mode = o->cipher_mode ? o->cipher_mode : "xts";
    const char *ivgen = o->ivgen_alg ? o->ivgen_alg : "plain64", *hash = o->hash_alg ? o->hash_alg : "sha256";
    const char *iv_hash = o->ivgen_hash_alg ? o->ivgen_hash_alg : "sha256", *why = NULL;
    h.suite.cipher = lk_cipher_by_option(cipher);
    h.hash = lk_hash_by_name(hash);
    if (!h.suite.cipher)
        return unknown(prefix, "cipher-alg", cipher, err);
    if (lk_mode_parse(mode, &h.suite.mode))
        return unknown(prefix, "cipher-mode", mode, err);
    if (lk_ivgen_parse(ivgen, &h.suite.ivgen))
        return unknown(prefix, "ivgen-alg", ivgen, err);
    if (!h.hash)
        return unknown(prefix, "hash-alg", hash, err);
    if (h.suite.ivgen == LK_IV_ESSIV || o->ivgen_hash_alg) {
        h.suite.iv_hash = lk_hash_by_name(iv_hash);
        if (!h.suite.iv_hash)
            return unknown(prefix, "ivgen-hash-alg", iv_hash, err);
    }
    if (lk_suite_check(&h.suite, &why))
        return byre_fail(err, BAD_OPTION, "%scipher-alg=%s, %scipher-mode=%s, %sivgen-alg=%s: %s", prefix, cipher, prefix, mode, prefix, ivgen, why);
    h.key_bytes = lk_suite_key_bytes(&h.suite);
    lk_header_lay_out(&h);
    *ret = h;
    return 0;
}

int lk_secret(struct secret_set *set, const char *id, const char *option, const char *name, struct secret **ret, struct byre_err *err)
{
    if (!id && !name)
        return byre_fail(err, NO_SECRET, "%s: must name the secret that will open the image", option);
    if (!id)
        return byre_fail(err, NO_SECRET, "%s: is encrypted; '%s' must name the secret that opens it", name, option);
    *ret = secret_get(set, id);
    return *ret ? 0 : byre_fail(err, NO_SECRET, "%s%s%s: there is no secret with the id '%s'", name ? name : "", name ? ": " : "", option, id);
}

/* ---- amend ---- */

static bool stated(const struct lk_amending *m, const char *name)
{
    char whole[64];
    snprintf(whole, sizeof whole, "%s%s", m->prefix, name);
    return m->a->given(m->a->arg, whole);
}

static int secret_of(const struct lk_amending *m, const char *option, const char *id, const char *name, struct secret **ret, struct byre_err *err)
{
    char whole[64];
    snprintf(whole, sizeof whole, "%s%s", m->prefix, option);
    return id ? lk_secret(m->a->o->secrets, id, whole, name, ret, err) : 0;
}

int lk_amend_options(struct co *co, const struct lk_area *area, struct lk_header *h, const struct lk_amending *m, struct byre_err *err)
{
    const struct fmt_encrypt *e = &m->a->o->encrypt;
    bool slot = stated(m, "keyslot"), time = stated(m, "iter-time");
    if (!e->state && !slot && !time && !e->new_secret && !e->old_secret && !e->secret)
        return 0;
    if (slot && e->keyslot >= LK_SLOTS)          /* before it becomes an int */
        return byre_fail(err, BAD_OPTION, "%s: key slot %" PRIu32 " does not exist, they are numbered 0 to %u", area->name, e->keyslot, LK_SLOTS - 1);
    struct secret *opens = NULL;
    struct lk_change c = { .state = e->state, .keyslot = slot ? (int)e->keyslot : -1, .iter_time_ms = e->iter_time_ms, .has_iter_time = time, .force = m->a->force };
    int r = secret_of(m, "new-secret", e->new_secret, area->name, &c.new_secret, err);
    if (r == 0)
        r = secret_of(m, "old-secret", e->old_secret, area->name, &c.old_secret, err);
    if (r == 0)
        r = secret_of(m, "secret", e->secret, area->name, &opens, err);
    c.open_secret = opens ? opens : m->open_secret;
    if (r == 0 && !m->check_only)
        r = lk_amend(co, area, h, &c, err);
    else if (r == 0 && !c.state)
        r = byre_fail(err, BAD_OPTION, "%s: %sstate must be given to change key slots (active or inactive)", area->name, m->prefix);
    secret_put(c.new_secret);
    secret_put(c.old_secret);
    secret_put(opens);
    return r;
}

int lk_describe(const struct lk_header *h, struct fmt_crypt_info **ret)
{
    struct fmt_crypt_info *i = calloc(1, sizeof *i);
    if (!i)
        return -ENOMEM;
    *i = (struct fmt_crypt_info){
        .format = "luks", .cipher_alg = lk_cipher_option(h->suite.cipher), .cipher_mode = lk_mode_name(h->suite.mode),
        .ivgen_alg = lk_ivgen_name(h->suite.ivgen), .ivgen_hash_alg = h->suite.iv_hash ? lk_hash_name(h->suite.iv_hash) : NULL,
        .hash_alg = lk_hash_name(h->hash), .payload_offset = h->payload_off, .master_key_iters = h->digest_iterations,
    };
    memcpy(i->uuid, h->uuid, sizeof i->uuid);
    for (unsigned k = 0; k < LK_SLOTS; k++) {
        i->slots[k].active = h->slot[k].active;
        i->slots[k].iters = h->slot[k].iterations;
        i->slots[k].key_offset = h->slot[k].off;
        i->slots[k].stripes = h->slot[k].stripes;
    }
    *ret = i;
    return 0;
}
