/* SPDX-License-Identifier: MIT
 *
 * lk_hash.c: hashes, PBKDF2 and the anti-forensic splitter.
 *
 * Purpose      What LUKS does with passphrases before a cipher comes in.
 * Owns         Nothing between calls.
 * Invariants   I1  What passphrases and keys leave in memory of ours is wiped.
 * Order        None.
 * Concurrency  Any loop; long work runs on the CPU pool.
 * Failure      -ENOMEM, -EIO (no random bytes), -ECANCELED.
 * Tests        luks_test.c (RFC 6070 and others)
 */
#include <string.h>
#include <time.h>

#include <nettle/hmac.h>
#include <nettle/md5.h>
#include <nettle/nettle-meta.h>
#include <nettle/ripemd160.h>
#include <nettle/sha1.h>
#include <nettle/sha2.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/endian.h"
#include "fmt/luks/lk_hash.h"
#include "fmt/secret.h"
#include "rt/loop.h"

struct lk_hash { const char *name; const struct nettle_hash *n; };

static const struct lk_hash hashes[] = {
    { "sha256", &nettle_sha256 }, { "sha1", &nettle_sha1 }, { "sha224", &nettle_sha224 }, { "sha384", &nettle_sha384 },
    { "sha512", &nettle_sha512 }, { "ripemd160", &nettle_ripemd160 }, { "md5", &nettle_md5 },
};
#define HASH_COUNT (sizeof hashes / sizeof hashes[0])

const struct lk_hash *lk_hash_nth(unsigned i) { return i < HASH_COUNT ? &hashes[i] : NULL; }
const char *lk_hash_name(const struct lk_hash *h) { return h->name; }
size_t lk_hash_bytes(const struct lk_hash *h) { return h->n->digest_size; }

const struct lk_hash *lk_hash_by_name(const char *name)
{
    for (size_t i = 0; i < HASH_COUNT; i++)
        if (!strcmp(hashes[i].name, name))
            return &hashes[i];
    return NULL;
}

union hash_ctx { uint8_t bytes[LK_HASH_CTX_MAX]; uint64_t align; };

void lk_hash_run(const struct lk_hash *h, const void *in, size_t len, uint8_t *out)
{
    union hash_ctx ctx;
    ASSERT(h->n->context_size <= sizeof ctx);
    h->n->init(&ctx);
    h->n->update(&ctx, len, in);
    h->n->digest(&ctx, h->n->digest_size, out);
    secret_wipe(&ctx, sizeof ctx);
}

/* ---- PBKDF2 ---- */

/* Iterations of one job of the CPU pool: below a quarter of a second on any machine of this century. */
#define STEP 200000u

struct derive {                              /* in locked memory */
    union hash_ctx outer, inner, state;      /* HMAC with the passphrase as key */
    uint8_t u[LK_HASH_BYTES_MAX], t[LK_HASH_BYTES_MAX];
    const struct nettle_hash *n;
    const struct lk_pbkdf2 *p;
    uint32_t block, left;                    /* iterations to go in this block */
    uint64_t cpu_ns;                         /* spent, for calibration */
};

static uint64_t cpu_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void hmac(struct derive *d, const void *in, size_t len)
{
    hmac_update(&d->state, d->n, len, in);
    hmac_digest(&d->outer, &d->inner, &d->state, d->n, d->n->digest_size, d->u);
}

static int64_t derive_step(void *arg)
{
    struct derive *d = arg;
    uint64_t before = cpu_now();
    uint32_t n = d->left < STEP ? d->left : STEP;
    for (uint32_t i = 0; i < n; i++) {
        hmac(d, d->u, d->n->digest_size);
        for (size_t k = 0; k < d->n->digest_size; k++)
            d->t[k] ^= d->u[k];
    }
    d->left -= n;
    d->cpu_ns += cpu_now() - before;
    return 0;
}

/* One block of output into d->t. */
static int derive_block(struct co *co, struct derive *d, uint32_t block)
{
    be32 number;
    be32_put(&number, block);
    if (d->p->salt_len)
        hmac_update(&d->state, d->n, d->p->salt_len, d->p->salt);
    hmac(d, &number, sizeof number);
    memcpy(d->t, d->u, sizeof d->t);
    d->left = d->p->iterations - 1;
    while (d->left) {
        if (co_cancelled(co))
            return -ECANCELED;
        int64_t r = rt_cpu(co, derive_step, d);
        if (r < 0)
            return (int)r;
    }
    return 0;
}

static int derive_all(struct co *co, struct derive *d, uint8_t *out, size_t out_len)
{
    int r = 0;
    hmac_set_key(&d->outer, &d->inner, &d->state, d->n, d->p->pass_len, d->p->pass);
    for (uint32_t block = 1; out_len && !r; block++) {
        size_t n = out_len < d->n->digest_size ? out_len : d->n->digest_size;
        r = derive_block(co, d, block);
        memcpy(out, d->t, n);
        out += n;
        out_len -= n;
    }
    return r;
}

int lk_pbkdf2_run(struct co *co, const struct lk_pbkdf2 *p, uint8_t *out, size_t out_len)
{
    ASSERT(p->iterations > 0);
    struct derive *d = secret_new(sizeof *d);
    if (!d)
        return -ENOMEM;
    d->n = p->hash->n;
    d->p = p;
    int r = derive_all(co, d, out, out_len);
    secret_free(d);
    return r;
}

#define CALIBRATE_NS 20000000u
#define ITERATIONS_MIN 1000u

int lk_pbkdf2_calibrate(struct co *co, const struct lk_hash *hash, size_t out_len, uint64_t time_ms, uint32_t *ret_iterations)
{
    static const uint8_t salt[32];
    struct lk_pbkdf2 p = { .hash = hash, .pass = "calibrate", .pass_len = 9, .salt = salt, .salt_len = sizeof salt, .iterations = 1 << 10 };
    struct derive *d = secret_new(sizeof *d);
    uint8_t out[LK_HASH_BYTES_MAX];
    int r = d ? 0 : -ENOMEM;
    while (!r) {
        d->n = hash->n;
        d->p = &p;
        d->cpu_ns = 0;
        r = derive_all(co, d, out, 1);
        if (d->cpu_ns >= CALIBRATE_NS || p.iterations >= 1u << 30)
            break;
        p.iterations *= 2;
    }
    if (!r) {
        uint64_t blocks = div_up(out_len, hash->n->digest_size);
        double each = (double)max_u64(d->cpu_ns, 1) / p.iterations * (double)max_u64(blocks, 1);
        double want = (double)time_ms * 1e6 / each;
        *ret_iterations = want < ITERATIONS_MIN ? ITERATIONS_MIN : want > UINT32_MAX ? UINT32_MAX : (uint32_t)want;
    }
    secret_free(d);
    return r;
}

/* ---- anti-forensic splitter ---- */

/* Spreads each bit over its part: every part is hashed with its number in front. */
static void diffuse(const struct lk_hash *h, uint8_t *block, size_t len)
{
    uint8_t out[LK_HASH_BYTES_MAX];
    union hash_ctx ctx;
    uint32_t i = 0;
    for (size_t at = 0; at < len; at += h->n->digest_size, i++) {
        size_t n = len - at < h->n->digest_size ? len - at : h->n->digest_size;
        be32 number;
        be32_put(&number, i);
        h->n->init(&ctx);
        h->n->update(&ctx, sizeof number, number.b);
        h->n->update(&ctx, n, block + at);
        h->n->digest(&ctx, h->n->digest_size, out);
        memcpy(block + at, out, n);
    }
    secret_wipe(out, sizeof out);
    secret_wipe(&ctx, sizeof ctx);
}

/* d = H(... H(H(s1) ^ s2) ...) over all stripes but the last. */
static void fold(const struct lk_hash *h, const uint8_t *stripes, size_t len, uint32_t count, uint8_t *d)
{
    memset(d, 0, len);
    for (uint32_t s = 0; s + 1 < count; s++) {
        for (size_t i = 0; i < len; i++)
            d[i] ^= stripes[s * len + i];
        diffuse(h, d, len);
    }
}

int lk_af_split(const struct lk_hash *h, const uint8_t *key, size_t len, uint32_t stripes, uint8_t *out)
{
    ASSERT(stripes > 0);
    uint8_t *last = out + (size_t)(stripes - 1) * len;
    int r = secret_random(out, (size_t)(stripes - 1) * len);
    if (r < 0)
        return r;
    fold(h, out, len, stripes, last);
    for (size_t i = 0; i < len; i++)
        last[i] ^= key[i];
    return 0;
}

void lk_af_merge(const struct lk_hash *h, const uint8_t *in, size_t len, uint32_t stripes, uint8_t *key)
{
    ASSERT(stripes > 0);
    fold(h, in, len, stripes, key);
    for (size_t i = 0; i < len; i++)
        key[i] ^= in[(size_t)(stripes - 1) * len + i];
}
