/* SPDX-License-Identifier: MIT
 *
 * lk_cipher.h: what is done to each 512-byte sector: cipher, mode, and how the initial vector comes from the sector number.
 * Block ciphers are nettle's; the modes around them are written here where nettle has none that works on many sectors.
 */
#ifndef LK_CIPHER_H
#define LK_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define LK_SECTOR 512u
#define LK_KEY_BYTES_MAX 64u                /* two keys of 256 bits: XTS */

enum lk_mode { LK_ECB, LK_CBC, LK_XTS, LK_CTR };
enum lk_ivgen { LK_IV_NONE, LK_IV_PLAIN, LK_IV_PLAIN64, LK_IV_ESSIV };

struct lk_cipher;                           /* one row: algorithm and size of the key */
/* "aes-256" (the ecosystem's option); NULL: not known. */
const struct lk_cipher *lk_cipher_by_option(const char *name);
/* "aes" (the header's word) with the size of one key in bytes. */
const struct lk_cipher *lk_cipher_by_name(const char *name, uint32_t key_bytes);
const char *lk_cipher_option(const struct lk_cipher *c);         /* "aes-256" */
const char *lk_cipher_name(const struct lk_cipher *c);           /* "aes" */
const struct lk_cipher *lk_cipher_nth(unsigned i);               /* NULL at the end */

int lk_mode_parse(const char *name, enum lk_mode *ret);          /* "xts"; -EINVAL */
const char *lk_mode_name(enum lk_mode m);
int lk_ivgen_parse(const char *name, enum lk_ivgen *ret);        /* "plain64"; -EINVAL */
const char *lk_ivgen_name(enum lk_ivgen g);                      /* NULL: none */

struct lk_hash;

struct lk_suite {
    const struct lk_cipher *cipher;
    enum lk_mode mode;
    enum lk_ivgen ivgen;
    const struct lk_hash *iv_hash;          /* ESSIV only */
};
/* 0, or a sentence in *ret_why: what does not fit together. */
MUST_USE int lk_suite_check(const struct lk_suite *s, const char **ret_why);
/* Bytes of the key: twice that of the cipher for XTS. */
uint32_t lk_suite_key_bytes(const struct lk_suite *s);

/* A suite with its key. Constant once made: any number of threads may use it at once. */
struct lk_xform;
MUST_USE int lk_xform_new(const struct lk_suite *s, const uint8_t *key, struct lk_xform **ret_x);   /* -ENOMEM */
void lk_xform_free(struct lk_xform *x);     /* NULL ok */
/* In place. len: a multiple of 512; sector: number of the first, for the initial vector. buf of any alignment. */
void lk_encrypt(const struct lk_xform *x, uint8_t *buf, size_t len, uint64_t sector);
void lk_decrypt(const struct lk_xform *x, uint8_t *buf, size_t len, uint64_t sector);

/* Cipher block chaining with a given initial vector; len a multiple of 16. For secrets that are encrypted by a secret. */
MUST_USE int lk_aes256_cbc_decrypt(const uint8_t key[32], const uint8_t iv[16], uint8_t *buf, size_t len);

#endif
