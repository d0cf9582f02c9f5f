/* SPDX-License-Identifier: MIT
 *
 * lk_cipher.c: encrypts and decrypts sectors.
 *
 * Purpose      Ciphers by their names, modes, initial vectors; a key set up once and used by all threads.
 * Owns         struct lk_xform, in locked memory.
 * Invariants   I1  struct lk_xform is not written after lk_xform_new.
 *              I2  A sector depends on its own bytes, the key and its number, on nothing else: sectors may be done in any
 *                  order and in pieces of any size.
 * Order        None.
 * Concurrency  Pure but for memory; any thread.
 * Failure      -ENOMEM when a key is set up; using it cannot fail.
 * Tests        luks_test.c (IEEE 1619 and other published vectors), tests/interop/test_luks.py
 */
#include <stdlib.h>
#include <string.h>

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/nettle-meta.h>
#include <nettle/serpent.h>
#include <nettle/twofish.h>
#include <nettle/cast128.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/endian.h"
#include "fmt/luks/lk_cipher.h"
#include "fmt/luks/lk_hash.h"
#include "fmt/secret.h"

#define BLOCK_MAX 16u

/* ---- ciphers ---- */

struct lk_cipher {
    const char *option, *name;
    uint32_t key_bytes, block_bytes;
    size_t ctx_bytes;
    void (*set_encrypt)(void *ctx, const uint8_t *key);
    void (*set_decrypt)(void *ctx, const uint8_t *key);
    nettle_cipher_func *encrypt, *decrypt;
};

/* Ciphers of which nettle makes one context for both directions. */
#define ONE_WAY(name, type, call)                                                                   \
    static void name(void *ctx, const uint8_t *key) { call((struct type *)ctx, key); }
ONE_WAY(serpent_128, serpent_ctx, serpent128_set_key)
ONE_WAY(serpent_192, serpent_ctx, serpent192_set_key)
ONE_WAY(serpent_256, serpent_ctx, serpent256_set_key)
ONE_WAY(twofish_128, twofish_ctx, twofish128_set_key)
ONE_WAY(twofish_192, twofish_ctx, twofish192_set_key)
ONE_WAY(twofish_256, twofish_ctx, twofish256_set_key)
ONE_WAY(cast5, cast128_ctx, cast128_set_key)
#define TWO_WAYS(name, type, enc, dec)                                                              \
    static void name##_e(void *ctx, const uint8_t *key) { enc((struct type *)ctx, key); }           \
    static void name##_d(void *ctx, const uint8_t *key) { dec((struct type *)ctx, key); }
TWO_WAYS(aes_128, aes128_ctx, aes128_set_encrypt_key, aes128_set_decrypt_key)
TWO_WAYS(aes_192, aes192_ctx, aes192_set_encrypt_key, aes192_set_decrypt_key)
TWO_WAYS(aes_256, aes256_ctx, aes256_set_encrypt_key, aes256_set_decrypt_key)

#define F(f) (nettle_cipher_func *)(f)
static const struct lk_cipher ciphers[] = {
    { "aes-128", "aes", 16, 16, sizeof(struct aes128_ctx), aes_128_e, aes_128_d, F(aes128_encrypt), F(aes128_decrypt) },
    { "aes-192", "aes", 24, 16, sizeof(struct aes192_ctx), aes_192_e, aes_192_d, F(aes192_encrypt), F(aes192_decrypt) },
    { "aes-256", "aes", 32, 16, sizeof(struct aes256_ctx), aes_256_e, aes_256_d, F(aes256_encrypt), F(aes256_decrypt) },
    { "serpent-128", "serpent", 16, 16, sizeof(struct serpent_ctx), serpent_128, serpent_128, F(serpent_encrypt), F(serpent_decrypt) },
    { "serpent-192", "serpent", 24, 16, sizeof(struct serpent_ctx), serpent_192, serpent_192, F(serpent_encrypt), F(serpent_decrypt) },
    { "serpent-256", "serpent", 32, 16, sizeof(struct serpent_ctx), serpent_256, serpent_256, F(serpent_encrypt), F(serpent_decrypt) },
    { "twofish-128", "twofish", 16, 16, sizeof(struct twofish_ctx), twofish_128, twofish_128, F(twofish_encrypt), F(twofish_decrypt) },
    { "twofish-192", "twofish", 24, 16, sizeof(struct twofish_ctx), twofish_192, twofish_192, F(twofish_encrypt), F(twofish_decrypt) },
    { "twofish-256", "twofish", 32, 16, sizeof(struct twofish_ctx), twofish_256, twofish_256, F(twofish_encrypt), F(twofish_decrypt) },
    { "cast5-128", "cast5", 16, 8, sizeof(struct cast128_ctx), cast5, cast5, F(cast128_encrypt), F(cast128_decrypt) },
};
#define CIPHER_COUNT (sizeof ciphers / sizeof ciphers[0])

const struct lk_cipher *lk_cipher_nth(unsigned i) { return i < CIPHER_COUNT ? &ciphers[i] : NULL; }
const char *lk_cipher_option(const struct lk_cipher *c) { return c->option; }
const char *lk_cipher_name(const struct lk_cipher *c) { return c->name; }

const struct lk_cipher *lk_cipher_by_option(const char *name)
{
    for (size_t i = 0; i < CIPHER_COUNT; i++)
        if (!strcmp(ciphers[i].option, name))
            return &ciphers[i];
    return NULL;
}

const struct lk_cipher *lk_cipher_by_name(const char *name, uint32_t key_bytes)
{
    for (size_t i = 0; i < CIPHER_COUNT; i++)
        if (ciphers[i].key_bytes == key_bytes && !strcmp(ciphers[i].name, name))
            return &ciphers[i];
    return NULL;
}

/* ---- names of modes and generators ---- */

static const char *const mode_names[] = { [LK_ECB] = "ecb", [LK_CBC] = "cbc", [LK_XTS] = "xts", [LK_CTR] = "ctr" };
static const char *const ivgen_names[] = { [LK_IV_NONE] = NULL, [LK_IV_PLAIN] = "plain", [LK_IV_PLAIN64] = "plain64", [LK_IV_ESSIV] = "essiv" };

const char *lk_mode_name(enum lk_mode m) { return mode_names[m]; }
const char *lk_ivgen_name(enum lk_ivgen g) { return ivgen_names[g]; }

int lk_mode_parse(const char *name, enum lk_mode *ret)
{
    for (unsigned i = LK_ECB; i <= LK_CTR; i++)
        if (!strcmp(mode_names[i], name)) {
            *ret = (enum lk_mode)i;
            return 0;
        }
    return -EINVAL;
}

int lk_ivgen_parse(const char *name, enum lk_ivgen *ret)
{
    for (unsigned i = LK_IV_PLAIN; i <= LK_IV_ESSIV; i++)
        if (!strcmp(ivgen_names[i], name)) {
            *ret = (enum lk_ivgen)i;
            return 0;
        }
    return -EINVAL;
}

/* ---- suites ---- */

/* The cipher that ESSIV runs over the sector number: its key is the hash of the key, so it is as long as the hash. */
static const struct lk_cipher *essiv_cipher(const struct lk_suite *s)
{
    return lk_cipher_by_name(s->cipher->name, (uint32_t)lk_hash_bytes(s->iv_hash));
}

int lk_suite_check(const struct lk_suite *s, const char **ret_why)
{
    if (s->mode == LK_XTS && s->cipher->block_bytes != 16)
        *ret_why = "the mode xts needs a cipher with blocks of 16 bytes";
    else if (s->mode != LK_ECB && s->ivgen == LK_IV_NONE)
        *ret_why = "this mode needs a generator of initial vectors";
    else if (s->ivgen == LK_IV_ESSIV && !s->iv_hash)
        *ret_why = "essiv needs a hash";
    else if (s->ivgen == LK_IV_ESSIV && !essiv_cipher(s))
        *ret_why = "essiv needs a hash that is as long as a key of the cipher (sha256 for 256 bits)";
    else
        return 0;
    return -EINVAL;
}

uint32_t lk_suite_key_bytes(const struct lk_suite *s)
{
    return s->mode == LK_XTS ? 2 * s->cipher->key_bytes : s->cipher->key_bytes;
}

/* ---- keys ---- */

struct lk_xform {
    struct lk_suite s;
    const struct lk_cipher *iv_cipher;       /* ESSIV, XTS; else NULL */
    void *enc, *dec, *iv;                    /* contexts, behind this struct */
    uint8_t mem[] __attribute__((aligned(64)));
};

int lk_xform_new(const struct lk_suite *s, const uint8_t *key, struct lk_xform **ret_x)
{
    const char *why;
    ASSERT(lk_suite_check(s, &why) == 0);
    size_t step = round_up(s->cipher->ctx_bytes, 64), iv_bytes = 0;
    const struct lk_cipher *iv = s->mode == LK_XTS ? s->cipher : NULL;
    const struct lk_cipher *essiv = s->ivgen == LK_IV_ESSIV ? essiv_cipher(s) : NULL;
    if (iv)
        iv_bytes = step;
    struct lk_xform *x = secret_new(sizeof *x + 2 * step + iv_bytes + (essiv ? round_up(essiv->ctx_bytes, 64) : 0));
    if (!x)
        return -ENOMEM;
    x->s = *s;
    x->enc = x->mem;
    x->dec = x->mem + step;
    s->cipher->set_encrypt(x->enc, key);
    s->cipher->set_decrypt(x->dec, key);
    if (iv)
        s->cipher->set_encrypt(x->mem + 2 * step, key + s->cipher->key_bytes);
    if (essiv) {
        uint8_t hashed[LK_HASH_BYTES_MAX];
        lk_hash_run(s->iv_hash, key, lk_suite_key_bytes(s), hashed);
        x->iv_cipher = essiv;
        x->iv = x->mem + 2 * step + iv_bytes;
        essiv->set_encrypt(x->iv, hashed);
        secret_wipe(hashed, sizeof hashed);
    }
    *ret_x = x;
    return 0;
}

void lk_xform_free(struct lk_xform *x)
{
    secret_free(x);
}

static const void *tweak_ctx(const struct lk_xform *x)
{
    return x->mem + 2 * round_up(x->s.cipher->ctx_bytes, 64);
}

/* ---- sectors ---- */

static void make_iv(const struct lk_xform *x, uint64_t sector, uint8_t iv[BLOCK_MAX])
{
    le64 n;
    memset(iv, 0, BLOCK_MAX);
    le64_put(&n, x->s.ivgen == LK_IV_PLAIN ? (uint32_t)sector : sector);
    memcpy(iv, &n, sizeof n);
    if (x->iv_cipher)
        x->iv_cipher->encrypt(x->iv, x->iv_cipher->block_bytes, iv, iv);
}

/* Two words of a buffer of any alignment. */
typedef uint64_t pair __attribute__((vector_size(16), aligned(1), may_alias));

/* IEEE 1619: each block is masked by a tweak, which doubles in GF(2^128) from block to block. */
static void xts_sector(const struct lk_xform *x, nettle_cipher_func *run, const void *ctx, uint8_t *buf, const uint8_t iv[BLOCK_MAX])
{
    uint64_t t[2 * LK_SECTOR / 16];
    le64 half[2];
    x->s.cipher->encrypt(tweak_ctx(x), 16, (uint8_t *)half, iv);
    uint64_t lo = le64_get(&half[0]), hi = le64_get(&half[1]);
    for (unsigned i = 0; i < LK_SECTOR / 16; i++) {
        le64_put((le64 *)&t[2 * i], lo);
        le64_put((le64 *)&t[2 * i + 1], hi);
        uint64_t carry = hi >> 63;
        hi = hi << 1 | lo >> 63;
        lo = lo << 1 ^ (carry ? 0x87 : 0);
    }
    pair *b = (pair *)buf;
    const pair *m = (const pair *)t;
    for (unsigned i = 0; i < LK_SECTOR / 16; i++)
        b[i] ^= m[i];
    run(ctx, LK_SECTOR, buf, buf);
    for (unsigned i = 0; i < LK_SECTOR / 16; i++)
        b[i] ^= m[i];
}

static void run_sector(const struct lk_xform *x, bool encrypt, uint8_t *buf, uint64_t sector)
{
    const struct lk_cipher *c = x->s.cipher;
    uint8_t iv[BLOCK_MAX];
    if (x->s.mode != LK_ECB)
        make_iv(x, sector, iv);
    switch (x->s.mode) {
    case LK_ECB:
        (encrypt ? c->encrypt : c->decrypt)(encrypt ? x->enc : x->dec, LK_SECTOR, buf, buf);
        break;
    case LK_CBC:
        if (encrypt)
            cbc_encrypt(x->enc, c->encrypt, c->block_bytes, iv, LK_SECTOR, buf, buf);
        else
            cbc_decrypt(x->dec, c->decrypt, c->block_bytes, iv, LK_SECTOR, buf, buf);
        break;
    case LK_XTS:
        xts_sector(x, encrypt ? c->encrypt : c->decrypt, encrypt ? x->enc : x->dec, buf, iv);
        break;
    case LK_CTR:
        ctr_crypt(x->enc, c->encrypt, c->block_bytes, iv, LK_SECTOR, buf, buf);
        break;
    }
}

static void run_all(const struct lk_xform *x, bool encrypt, uint8_t *buf, size_t len, uint64_t sector)
{
    ASSERT(is_aligned(len, LK_SECTOR));
    for (size_t at = 0; at < len; at += LK_SECTOR)
        run_sector(x, encrypt, buf + at, sector++);
}

void lk_encrypt(const struct lk_xform *x, uint8_t *buf, size_t len, uint64_t sector) { run_all(x, true, buf, len, sector); }
void lk_decrypt(const struct lk_xform *x, uint8_t *buf, size_t len, uint64_t sector) { run_all(x, false, buf, len, sector); }

int lk_aes256_cbc_decrypt(const uint8_t key[32], const uint8_t iv[16], uint8_t *buf, size_t len)
{
    struct aes256_ctx *ctx = secret_new(sizeof *ctx);
    uint8_t copy[16];
    if (!ctx)
        return -ENOMEM;
    memcpy(copy, iv, sizeof copy);
    aes256_set_decrypt_key(ctx, key);
    cbc_decrypt(ctx, (nettle_cipher_func *)aes256_decrypt, 16, copy, len, buf, buf);
    secret_free(ctx);
    return 0;
}
