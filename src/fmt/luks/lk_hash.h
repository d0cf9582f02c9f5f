/* SPDX-License-Identifier: MIT
 *
 * lk_hash.h: hashes by name, PBKDF2 in steps, and the anti-forensic splitter of LUKS.
 */
#ifndef LK_HASH_H
#define LK_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "rt/co.h"

#define LK_HASH_BYTES_MAX 64u
#define LK_HASH_CTX_MAX 512u

struct lk_hash;
const struct lk_hash *lk_hash_by_name(const char *name);         /* "sha256"; NULL: not known */
const struct lk_hash *lk_hash_nth(unsigned i);                   /* NULL at the end */
const char *lk_hash_name(const struct lk_hash *h);
size_t lk_hash_bytes(const struct lk_hash *h);
void lk_hash_run(const struct lk_hash *h, const void *in, size_t len, uint8_t *out);

struct lk_pbkdf2 { const struct lk_hash *hash; const void *pass; size_t pass_len; const void *salt; size_t salt_len; uint32_t iterations; };
/* RFC 8018. iterations > 0. The work runs on the CPU pool, in steps of a fraction of a second; suspends. -ENOMEM, or
 * -ECANCELED when the coroutine was cancelled. */
MUST_USE int lk_pbkdf2_run(struct co *co, const struct lk_pbkdf2 *p, uint8_t *out, size_t out_len);
/* How many iterations fill time_ms of one processor when out_len bytes are derived; at least 1000. Measures; suspends. */
MUST_USE int lk_pbkdf2_calibrate(struct co *co, const struct lk_hash *hash, size_t out_len, uint64_t time_ms, uint32_t *ret_iterations);

/* Splits len bytes of key into stripes * len bytes, of which every single one is needed to get the key back. */
MUST_USE int lk_af_split(const struct lk_hash *h, const uint8_t *key, size_t len, uint32_t stripes, uint8_t *out);
void lk_af_merge(const struct lk_hash *h, const uint8_t *in, size_t len, uint32_t stripes, uint8_t *key);

#endif
