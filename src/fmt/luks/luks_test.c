/* SPDX-License-Identifier: MIT
 *
 * luks_test.c: ciphers, hashes, the LUKS header, key slots and secrets.
 *
 * Purpose      Published vectors; hostile headers; key slots whose changes are cut short at every write; the store that
 *              encrypts, under requests of all sizes at once.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  As stor_test.h.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"

static void unhex(const char *hex, uint8_t *out, size_t len)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)((strchr(digits, hex[2 * i]) - digits) << 4 | (strchr(digits, hex[2 * i + 1]) - digits));
}

static bool is_hex(const uint8_t *p, const char *hex)
{
    uint8_t want[LK_SECTOR];
    unhex(hex, want, strlen(hex) / 2);
    return !memcmp(p, want, strlen(hex) / 2);
}

static struct lk_suite suite_of(const char *cipher, enum lk_mode mode, enum lk_ivgen ivgen, const char *iv_hash)
{
    return (struct lk_suite){ lk_cipher_by_option(cipher), mode, ivgen, iv_hash ? lk_hash_by_name(iv_hash) : NULL };
}

/* ---- ciphers ---- */

/* IEEE 1619-2007, annex B: vectors 4 (XTS-AES-128, data unit 0) and 10 (XTS-AES-256, data unit 0xff). */
static const char xts_4[] =
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412"
    "328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce93fdf166a24912b422976146ae20ce846bb7dc9ba94a767aaef20c0d61ad0265"
    "5ea92dc4c4e41a8952c651d33174be51a10c421110e6d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172af82b604dc4b8e51bcb08235a6f434"
    "1332e4ca60482a4ba1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb7ec30bf12b1fa35b913f9f747a8afd1b130e"
    "94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc1e08298516e2c9ed03ff3c1b7860f6de76d4cecd94c8119855ef5297ca67e9f3"
    "e7ff72b1e99785ca0a7e7720c5b36dc6d72cac9574c8cbbc2f801e23e56fd344b07f22154beba0f08ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd"
    "74d20cc39881c213ee770b1010e4bea718846977ae119f7a023ab58cca0ad752afe656bb3c17256a9f6e9bf19fdd5a38fc82bbe872c5539edb609ef4f79c203e"
    "bb140f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18deb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568";
static const char xts_10[] =
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd";

static void xts_vectors(struct co *co, void *arg)
{
    uint8_t key[64], buf[LK_SECTOR];
    struct lk_xform *x;
    struct lk_suite s = suite_of("aes-128", LK_XTS, LK_IV_PLAIN64, NULL);
    unhex("2718281828459045235360287471352631415926535897932384626433832795", key, 32);
    CHECK_EQ(lk_xform_new(&s, key, &x), 0);
    for (unsigned i = 0; i < sizeof buf; i++)
        buf[i] = (uint8_t)i;
    lk_encrypt(x, buf, sizeof buf, 0);
    CHECK(is_hex(buf, xts_4));
    lk_decrypt(x, buf, sizeof buf, 0);
    for (unsigned i = 0; i < sizeof buf; i++)
        CHECK(buf[i] == (uint8_t)i);
    lk_xform_free(x);
    s = suite_of("aes-256", LK_XTS, LK_IV_PLAIN64, NULL);
    unhex("27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592", key, 64);
    CHECK_EQ(lk_xform_new(&s, key, &x), 0);
    lk_encrypt(x, buf, sizeof buf, 0xff);
    CHECK(is_hex(buf, xts_10));
    lk_xform_free(x);
}

/* One block of each cipher: FIPS 197 appendix C, RFC 2144 appendix B.1, the Twofish paper's tables, libgcrypt's answers for Serpent. */
static void block_vectors(struct co *co, void *arg)
{
    static const struct { const char *cipher, *key, *plain, *sealed; } rows[] = {
        { "aes-128", "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a" },
        { "aes-192", "000102030405060708090a0b0c0d0e0f1011121314151617", "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191" },
        { "aes-256", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089" },
        { "cast5-128", "0123456712345678234567893456789a", "0123456789abcdef", "238b4fe5847e44b2" },
        { "twofish-128", "00000000000000000000000000000000", "00000000000000000000000000000000", "9f589f5cf6122c32b6bfec2f2ae8c35a" },
        { "twofish-256", "0000000000000000000000000000000000000000000000000000000000000000", "00000000000000000000000000000000", "57ff739d4dc92c1bd7fc01700cc8216f" },
        { "serpent-128", "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "563e2cf8740a27c164804560391e9b27" },
        { "serpent-192", "000102030405060708090a0b0c0d0e0f1011121314151617", "00112233445566778899aabbccddeeff", "6ab816c82de53b93005008afa2246a02" },
        { "serpent-256", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff", "2868b7a2d28ecd5e4fdefac3c4330074" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct lk_suite s = suite_of(rows[i].cipher, LK_ECB, LK_IV_NONE, NULL);
        uint8_t key[32], buf[LK_SECTOR] = { 0 };
        struct lk_xform *x;
        unhex(rows[i].key, key, strlen(rows[i].key) / 2);
        unhex(rows[i].plain, buf, strlen(rows[i].plain) / 2);
        CHECK_EQ(lk_xform_new(&s, key, &x), 0);
        lk_encrypt(x, buf, sizeof buf, 0);
        if (!CHECK(is_hex(buf, rows[i].sealed)))
            print_message("%s\n", rows[i].cipher);
        lk_xform_free(x);
    }
}

/* CBC chains inside a sector and not beyond it; the vector of each sector is its number, cut to 32 bits by `plain`, or its
 * number encrypted by the hash of the key. */
static void modes(struct co *co, void *arg)
{
    uint8_t key[64], hashed[64], one[LK_SECTOR], iv[LK_SECTOR];
    struct lk_xform *cbc, *ecb, *essiv;
    memset(key, 0x42, sizeof key);
    struct lk_suite s = suite_of("aes-256", LK_ECB, LK_IV_NONE, NULL);
    CHECK_EQ(lk_xform_new(&s, key, &ecb), 0);
    const uint64_t number = 0x123456789abull;
    struct { enum lk_ivgen g; uint64_t iv; } plain[] = { { LK_IV_PLAIN64, number }, { LK_IV_PLAIN, (uint32_t)number } };
    for (unsigned i = 0; i < 2; i++) {
        s = suite_of("aes-256", LK_CBC, plain[i].g, NULL);
        CHECK_EQ(lk_xform_new(&s, key, &cbc), 0);
        memset(one, 0, sizeof one);
        memset(iv, 0, sizeof iv);
        le64_put((le64 *)iv, plain[i].iv);
        lk_encrypt(cbc, one, sizeof one, number);
        lk_encrypt(ecb, iv, sizeof iv, 0);
        CHECK(!memcmp(one, iv, 16));                     /* first block: E(iv ^ 0) */
        memcpy(iv, one, 16);
        lk_encrypt(ecb, iv, sizeof iv, 0);
        CHECK(!memcmp(one + 16, iv, 16));                /* second: E(first ^ 0) */
        lk_xform_free(cbc);
    }
    lk_xform_free(ecb);
    s = suite_of("aes-256", LK_CBC, LK_IV_ESSIV, "sha256");
    CHECK_EQ(lk_xform_new(&s, key, &essiv), 0);
    memset(one, 0, sizeof one);
    lk_encrypt(essiv, one, sizeof one, number);
    lk_hash_run(lk_hash_by_name("sha256"), key, 32, hashed);
    s = suite_of("aes-256", LK_ECB, LK_IV_NONE, NULL);
    CHECK_EQ(lk_xform_new(&s, hashed, &ecb), 0);
    memset(iv, 0, sizeof iv);
    le64_put((le64 *)iv, number);
    lk_encrypt(ecb, iv, sizeof iv, 0);
    lk_xform_free(ecb);
    CHECK_EQ(lk_xform_new(&s, key, &ecb), 0);
    memset(iv + 16, 0, sizeof iv - 16);
    lk_encrypt(ecb, iv, sizeof iv, 0);
    CHECK(!memcmp(one, iv, 16));
    lk_xform_free(ecb);
    lk_xform_free(essiv);
}

/* Every suite that is let through undoes itself; pieces, and memory that is not aligned, give the same bytes. */
static void all_suites(struct co *co, void *arg)
{
    uint8_t key[64], *mem = malloc(3 * 4096);
    for (unsigned i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)(i * 11);
    unsigned good = 0;
    for (unsigned c = 0; lk_cipher_nth(c); c++)
        for (unsigned m = LK_ECB; m <= LK_CTR; m++)
            for (unsigned g = LK_IV_NONE; g <= LK_IV_ESSIV; g++) {
                struct lk_suite s = { lk_cipher_nth(c), (enum lk_mode)m, (enum lk_ivgen)g, g == LK_IV_ESSIV ? lk_hash_by_name("sha256") : NULL };
                const char *why;
                struct lk_xform *x;
                if (lk_suite_check(&s, &why))
                    continue;
                good++;
                uint8_t *a = mem + 1, *b = mem + 4096 + 3, *plain = mem + 8192;
                for (unsigned i = 0; i < 2048; i++)
                    a[i] = b[i] = plain[i] = (uint8_t)(i * 7 + i / 256);
                CHECK_EQ(lk_xform_new(&s, key, &x), 0);
                lk_encrypt(x, a, 2048, 1000);
                for (unsigned i = 4; i-- > 0;)
                    lk_encrypt(x, b + i * LK_SECTOR, LK_SECTOR, 1000 + i);
                CHECK(!memcmp(a, b, 2048) && memcmp(a, plain, 2048));
                lk_decrypt(x, a, 2048, 1000);
                CHECK(!memcmp(a, plain, 2048));
                lk_xform_free(x);
            }
    CHECK(good >= 60);
    free(mem);
}

/* ---- hashes ---- */

/* RFC 6070; the others from Python's hashlib. The last needs more than one step of the pool. */
static void pbkdf2(struct co *co, void *arg)
{
    static const struct { const char *hash, *pass, *salt; uint32_t n; const char *want; } rows[] = {
        { "sha1", "password", "salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6" },
        { "sha1", "password", "salt", 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957" },
        { "sha1", "password", "salt", 4096, "4b007901b765489abead49d926f721d065a429c1" },
        { "sha1", "passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038" },
        { "sha256", "password", "salt", 4096, "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a" },
        { "sha512", "password", "salt", 1000, "afe6c5530785b6cc6b1c6453384731bd5ee432ee549fd42fb6695779ad8a1c5bf59de69c48f774efc4007d5298f9033c0241d5ab69305e7b64eceeb8d834cfec" },
        { "sha256", "password", "salt", 250001, "e8efe6f61275fd4f4d60be5072ae90d1732b9cfd" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t out[64];
        struct lk_pbkdf2 p = { lk_hash_by_name(rows[i].hash), rows[i].pass, strlen(rows[i].pass), rows[i].salt, strlen(rows[i].salt), rows[i].n };
        CHECK_EQ(lk_pbkdf2_run(co, &p, out, strlen(rows[i].want) / 2), 0);
        CHECK(is_hex(out, rows[i].want));
    }
    uint32_t little, much;
    const struct lk_hash *h = lk_hash_by_name("sha256");
    CHECK_EQ(lk_pbkdf2_calibrate(co, h, 32, 0, &little), 0);
    CHECK_EQ(lk_pbkdf2_calibrate(co, h, 32, 2000, &much), 0);
    CHECK_EQ(little, 1000);
    CHECK(much > 10 * little);
}

static void splitter(struct co *co, void *arg)
{
    static const size_t lens[] = { 16, 24, 32, 48, 64 };
    uint8_t key[64], back[64], *mem = malloc(64 * 100);
    for (unsigned i = 0; lk_hash_nth(i); i++)
        for (size_t k = 0; k < sizeof lens / sizeof lens[0]; k++) {
            size_t len = lens[k];
            CHECK_EQ(secret_random(key, len), 0);
            CHECK_EQ(lk_af_split(lk_hash_nth(i), key, len, 100, mem), 0);
            lk_af_merge(lk_hash_nth(i), mem, len, 100, back);
            CHECK(!memcmp(key, back, len));
            unsigned kept = 0, part = (unsigned)min_u64(len, lk_hash_bytes(lk_hash_nth(i)));
            mem[50 * len] ^= 1;                          /* one bit of one stripe, and nothing is left of its part */
            lk_af_merge(lk_hash_nth(i), mem, len, 100, back);
            for (unsigned b = 0; b < part; b++)
                kept += key[b] == back[b];
            CHECK(kept < 4);
        }
    free(mem);
}

/* ---- header ---- */

static void sound_header(struct lk_header *h)
{
    const struct fmt_encrypt o = { 0 };
    CHECK_EQ(lk_options(&o, "", h, NULL), 0);
    h->digest_iterations = 1000;
    memcpy(h->uuid, "d39eb635-43bf-4ebf-b65c-89ba617d0b11", 37);
    h->slot[0].active = h->slot[2].active = true;
    h->slot[0].iterations = h->slot[2].iterations = 1000;
}

static void header_round_trip(struct co *co, void *arg)
{
    struct lk_header h, back;
    uint8_t a[LK_HEAD_BYTES] = { 0 }, b[LK_HEAD_BYTES] = { 0 };
    sound_header(&h);
    CHECK_EQ(h.payload_off, 2068480);
    CHECK_EQ(h.slot[1].off, 262144);
    lk_header_emit(&h, a);
    CHECK_EQ(lk_probe(a, sizeof a), 100);
    CHECK_EQ(lk_header_parse(a, sizeof a, 0, "x", &back, NULL), 0);
    lk_header_emit(&back, b);
    CHECK(!memcmp(a, b, sizeof a));
    CHECK_EQ(lk_active_slots(&back), 2);
    CHECK(!strcmp(lk_cipher_option(back.suite.cipher), "aes-256"));
}

static void hostile_headers(struct co *co, void *arg)
{
    static const struct { unsigned off; const char *bytes; unsigned len; const char *reason; } rows[] = {
        { 0, "X", 1, "BAD_FORMAT" },
        { 6, "\0\2", 2, "NOT_SUPPORTED" },               /* LUKS2 */
        { 8, "rot13\0", 6, "NOT_SUPPORTED" },
        { 8, "\xff", 1, "BAD_FORMAT" },
        { 8, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 32, "BAD_FORMAT" },     /* no end */
        { 40, "lrw-benbi\0", 10, "NOT_SUPPORTED" },
        { 40, "xts\0", 4, "BAD_FORMAT" },                /* without a generator */
        { 40, "cbc-essiv\0", 10, "BAD_FORMAT" },         /* without its hash; the key of 64 bytes comes first */
        { 40, "xts-essiv:sha9\0", 15, "NOT_SUPPORTED" },
        { 72, "tiger\0", 6, "NOT_SUPPORTED" },
        { 104, "\0\0\0\1", 4, "BAD_FORMAT" },            /* payload inside the header */
        { 108, "\0\0\0\7", 4, "NOT_SUPPORTED" },         /* key of 7 bytes */
        { 108, "\xff\xff\xff\xff", 4, "NOT_SUPPORTED" },
        { 164, "\0\0\0\0", 4, "BAD_FORMAT" },            /* no iterations */
        { 168, "\n", 1, "BAD_FORMAT" },                  /* control bytes in the UUID */
        { 208, "\0\0\0\1", 4, "BAD_FORMAT" },            /* state of a slot */
        { 212, "\0\0\0\0", 4, "BAD_FORMAT" },            /* iterations of a slot */
        { 248, "\0\0\0\0", 4, "BAD_FORMAT" },            /* key material over the header */
        { 248, "\0\0\0\1", 4, "BAD_FORMAT" },
        { 248, "\xff\xff\xff\xff", 4, "BAD_FORMAT" },    /* behind the payload */
        { 252, "\0\0\0\0", 4, "BAD_FORMAT" },            /* no stripes */
        { 252, "\xff\xff\xff\xff", 4, "BAD_FORMAT" },
        { 344, "\0\0\0\x08", 4, "BAD_FORMAT" },          /* slot 2 over slot 0 */
    };
    struct lk_header h, back;
    uint8_t good[LK_HEAD_BYTES] = { 0 }, bad[LK_HEAD_BYTES];
    struct byre_err err;
    sound_header(&h);
    lk_header_emit(&h, good);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memcpy(bad, good, sizeof bad);
        memcpy(bad + rows[i].off, rows[i].bytes, rows[i].len);
        memset(&err, 0, sizeof err);
        int r = lk_header_parse(bad, sizeof bad, 0, "x", &back, &err);
        if (!CHECK(r < 0) || (strcmp(rows[i].reason, err.reason) && rows[i].off != 40 && !CHECK(0)))
            print_message("row %zu: %d %s %s\n", i, r, err.reason, err.text);
    }
    for (size_t n = 0; n < 592; n += 7)
        CHECK(lk_header_parse(good, n, 0, "x", &back, NULL) < 0);
    /* an inactive slot without a good place is no fault, but no key goes there */
    memcpy(bad, good, sizeof bad);
    memcpy(bad + 296, "\0\0\0\x08", 4);                  /* slot 1 over slot 0 */
    memcpy(bad + 488, "\xff\xff\xff\xff", 4);            /* slot 5 far away */
    CHECK_EQ(lk_header_parse(bad, sizeof bad, 0, "x", &back, NULL), 0);
    CHECK(!back.slot[1].usable && back.slot[0].usable && !back.slot[5].usable && back.slot[3].usable);
}

/* ---- key slots ---- */

static struct secret pass_of(const char *text) { return (struct secret){ strlen(text), (const uint8_t *)text }; }

static int store_flush(struct co *co, void *arg) { return stor_flush(co, arg); }

static struct lk_area area_of(struct toy *t)
{
    return (struct lk_area){ .store = &t->s, .base = 4096, .flush = store_flush, .arg = &t->s, .name = "toy" };
}

/* A header at 4096 of a toy store, one slot with the passphrase "one". */
static struct toy *formatted_with(struct co *co, struct lk_header *h, uint32_t stripes)
{
    struct toy *t = toy_new(0, 1, 1);
    struct lk_area a = area_of(t);
    struct fmt_encrypt o = { 0 };
    struct secret one = pass_of("one");
    CHECK_EQ(lk_options(&o, "", h, NULL), 0);
    a.len = h->payload_off;
    for (unsigned i = 0; i < LK_SLOTS; i++)
        h->slot[i].stripes = stripes;
    CHECK_EQ(lk_format(co, &a, h, &one, 0, NULL), 0);
    CHECK_EQ(stor_truncate(co, &t->s, a.base + h->payload_off), 0);      /* room for all slots, so that its length stays */
    return t;
}

static struct toy *formatted(struct co *co, struct lk_header *h) { return formatted_with(co, h, LK_STRIPES); }

static bool opens(struct co *co, struct toy *t, const char *pass, unsigned *ret_slot)
{
    struct lk_header h;
    struct lk_area a = area_of(t);
    struct secret s = pass_of(pass);
    uint8_t *key;
    unsigned slot = 99;
    if (lk_load(co, &a, &h, NULL) || lk_unlock(co, &a, &h, &s, -1, &key, &slot, NULL))
        return false;
    secret_free(key);
    if (ret_slot)
        *ret_slot = slot;
    return true;
}

/* by: the passphrase that opens a slot */
static int amend_by(struct co *co, struct toy *t, const char *by, enum fmt_key_state state, int slot, const char *new, const char *old, bool force)
{
    struct lk_header h;
    struct lk_area a = area_of(t);
    struct secret n = pass_of(new ? new : ""), o = pass_of(old ? old : ""), b = pass_of(by);
    struct lk_change k = { .state = state, .keyslot = slot, .new_secret = new ? &n : NULL, .old_secret = old ? &o : NULL,
                                .open_secret = &b, .has_iter_time = state == FMT_KEY_ACTIVE, .force = force };
    int r = lk_load(co, &a, &h, NULL);
    return r ? r : lk_amend(co, &a, &h, &k, NULL);
}

static int amend(struct co *co, struct toy *t, enum fmt_key_state state, int slot, const char *new, const char *old, bool force)
{
    return amend_by(co, t, "one", state, slot, new, old, force);
}

static unsigned active(struct co *co, struct toy *t)
{
    struct lk_header h;
    struct lk_area a = area_of(t);
    return lk_load(co, &a, &h, NULL) ? 99 : lk_active_slots(&h);
}

static void slots(struct co *co, void *arg)
{
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    unsigned slot;
    CHECK(opens(co, t, "one", &slot) && slot == 0);
    CHECK(!opens(co, t, "two", NULL) && !opens(co, t, "", NULL) && !opens(co, t, "one ", NULL));
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "two", NULL, false), 0);
    CHECK(opens(co, t, "two", &slot) && slot == 1 && opens(co, t, "one", NULL));
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 6, "six", NULL, false), 0);
    CHECK(opens(co, t, "six", &slot) && slot == 6);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 6, "seven", NULL, false), -EEXIST);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 6, "seven", NULL, true), 0);
    CHECK(opens(co, t, "seven", &slot) && slot == 6 && !opens(co, t, "six", NULL));
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 6, NULL, NULL, false), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 3, "x", "one", false), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_UNSET, 3, "x", NULL, false), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 8, "x", NULL, true), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, -1, NULL, NULL, true), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 1, "x", NULL, true), -EINVAL);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 3, NULL, NULL, false), -ENOENT);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, -1, NULL, "nobody", false), -EACCES);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 0, NULL, "two", false), -EACCES);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 1, NULL, "two", false), 0);
    CHECK(!opens(co, t, "two", NULL) && active(co, t) == 2);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, -1, NULL, "seven", false), 0);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 0, NULL, NULL, false), -EPERM);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, -1, NULL, "one", false), -EPERM);
    CHECK(opens(co, t, "one", NULL) && active(co, t) == 1);
    for (unsigned i = 1; i < LK_SLOTS; i++)
        CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "more", NULL, false), 0);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "more", NULL, false), -E2BIG);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, -1, NULL, "more", false), 0);
    CHECK_EQ(active(co, t), 1);
    CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, 0, NULL, NULL, true), 0);
    CHECK(!opens(co, t, "one", NULL) && active(co, t) == 0);
    toy_free(t);
}

/* What the store held before each write of a change, and where it wrote. */
#define CUTS_MAX 48
struct cuts { unsigned n, unflushed; struct { uint8_t *before; uint64_t off, len; } at[CUTS_MAX]; };

static int note_write(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct cuts *c = t->hook_arg;
    if (op == TOY_FLUSH)
        c->unflushed = 0;
    if (op != TOY_WRITE)
        return 0;
    CHECK_EQ(c->unflushed++, 0);                         /* S1, S2: each write waits for the one before it to be durable */
    if (CHECK(c->n < CUTS_MAX)) {
        c->at[c->n].before = memcpy(malloc(t->len), t->bytes, t->len);
        c->at[c->n].off = off;
        c->at[c->n++].len = len;
    }
    return 0;
}

/* Is every slot that the header calls active opened by one of these? */
static bool active_open(struct co *co, struct toy *t, const char *const *passes)
{
    struct lk_header h;
    struct lk_area a = area_of(t);
    if (lk_load(co, &a, &h, NULL))
        return false;
    for (unsigned i = 0; i < LK_SLOTS; i++) {
        bool open = !h.slot[i].active;
        for (const char *const *p = passes; *p && !open; p++) {
            struct secret s = pass_of(*p);
            uint8_t *key;
            unsigned slot;
            open = lk_unlock(co, &a, &h, &s, (int)i, &key, &slot, NULL) == 0;
            if (open)
                secret_free(key);
        }
        if (!open)
            return false;
    }
    return lk_active_slots(&h) > 0;
}

/* The power goes during each write of a change: it left nothing, its first half, its second half, or all. Then the disk can
 * still be opened, and an active slot always opens. then: what comes next, may be NULL. */
static void cut_short(struct co *co, struct toy *t, struct cuts *c, const char *const *passes, void (*then)(struct co *co, struct toy *t))
{
    uint8_t *end = memcpy(malloc(t->len), t->bytes, t->len);
    for (unsigned i = 0; i < c->n; i++)
        for (unsigned how = 0; how < 4; how++) {
            uint64_t off = c->at[i].off, len = c->at[i].len, half = round_up(len / 2, LK_SECTOR), from = how == 2 ? half : 0;
            uint64_t n = how == 0 ? 0 : how == 1 ? min_u64(half, len) : len - min_u64(from, len);
            const uint8_t *after = i + 1 < c->n ? c->at[i + 1].before : end;
            if (len <= LK_SECTOR && (how == 1 || how == 2))
                continue;                                /* a sector is old or new */
            memcpy(t->bytes, c->at[i].before, t->len);
            memcpy(t->bytes + off + from, after + off + from, n);
            if (!CHECK(active_open(co, t, passes)) || !CHECK(opens(co, t, passes[0], NULL) || opens(co, t, passes[1], NULL)))
                print_message("write %u, state %u\n", i, how);
            if (then && how == 0)                    /* the other states are like those before or after them */
                then(co, t);
        }
    for (unsigned i = 0; i < c->n; i++)
        free(c->at[i].before);
    free(end);
}

static void torn(struct co *co, void *arg)
{
    static const char *const passes[] = { "one", "new", "other", NULL };
    static const struct { enum fmt_key_state state; int slot; const char *new; bool force, other; } rows[] = {
        { FMT_KEY_ACTIVE, -1, "new", false, false },     /* add */
        { FMT_KEY_ACTIVE, 6, "new", false, false },      /* the slot whose description crosses a sector */
        { FMT_KEY_ACTIVE, 0, "new", true, false },       /* S3: overwrite the only one, */
        { FMT_KEY_ACTIVE, 0, "new", true, true },        /* or one of two: somebody else has the other's passphrase */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct lk_header h;
        struct toy *t = formatted(co, &h);
        struct cuts c = { 0 };
        if (rows[i].other)
            CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "other", NULL, false), 0);
        t->hook_arg = &c;
        t->hook = note_write;
        CHECK_EQ(amend(co, t, rows[i].state, rows[i].slot, rows[i].new, NULL, rows[i].force), 0);
        t->hook = NULL;
        CHECK(opens(co, t, "new", NULL));
        cut_short(co, t, &c, passes, NULL);
        toy_free(t);
    }
}

/* ---- spare slots that a crash has left (S4) ---- */

static unsigned opened_by(struct co *co, struct toy *t, const char *pass)
{
    struct lk_header h;
    struct lk_area a = area_of(t);
    struct secret s = pass_of(pass);
    unsigned n = 0, slot;
    uint8_t *key;
    CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
    for (int i = 0; i < (int)LK_SLOTS; i++)
        if (h.slot[i].active && lk_unlock(co, &a, &h, &s, i, &key, &slot, NULL) == 0) {
            secret_free(key);
            n++;
        }
    return n;
}

static void keep(struct toy *t, uint8_t **ret) { *ret = memcpy(malloc(t->len), t->bytes, t->len); }
static void back(struct toy *t, const uint8_t *was) { memcpy(t->bytes, was, t->len); }

/* The same once more, whichever passphrase is known: it ends as if nothing had been between. Another one: the first is gone as well. */
static void repeated(struct co *co, struct toy *t)
{
    static const char *const news[] = { "new", "newer" }, *const knows[] = { "one", "new" };
    unsigned others = opened_by(co, t, "other");
    uint8_t *was;
    keep(t, &was);
    for (unsigned k = 0; k < 4; k++) {
        back(t, was);
        bool there = opened_by(co, t, "one");
        if (!opens(co, t, knows[k % 2], NULL) || (k >= 2 && !there))     /* slot 0 is free: the first has had its effect */
            continue;
        CHECK_EQ(amend_by(co, t, knows[k % 2], FMT_KEY_ACTIVE, 0, news[k / 2], NULL, true), 0);
        if (!CHECK(opened_by(co, t, "one") == 0 && opened_by(co, t, news[k / 2]) == 1 && active(co, t) == 1 + others))
            print_message("known: %s, new: %s, %u active\n", knows[k % 2], news[k / 2], active(co, t));
    }
    back(t, was);
    free(was);
}

/* Seven slots are in use, the eighth is the spare: there is room for one more key, and not for two. Who makes it loses nothing. */
static void filled_up(struct co *co, struct toy *t)
{
    static const char *const knows[] = { "one", "new", "other" };
    uint8_t *was;
    keep(t, &was);
    unsigned others = opened_by(co, t, "other");
    for (unsigned k = 0; k < 3; k++) {
        back(t, was);
        if (!opens(co, t, knows[k], NULL))
            continue;
        CHECK_EQ(amend_by(co, t, knows[k], FMT_KEY_ACTIVE, -1, "more", NULL, false), 0);
        CHECK_EQ(amend_by(co, t, knows[k], FMT_KEY_ACTIVE, -1, "more", NULL, false), -E2BIG);
        CHECK(opens(co, t, knows[k], NULL) && opened_by(co, t, "more") == 1 && opened_by(co, t, "other") == others && active(co, t) == LK_SLOTS);
    }
    back(t, was);
    free(was);
}

static void left_spares(struct co *co, void *arg)
{
    static const char *const passes[] = { "one", "new", "other", NULL };
    for (unsigned full = 0; full < 2; full++) {
        struct lk_header h;
        struct toy *t = formatted_with(co, &h, 20);
        struct cuts c = { 0 };
        for (unsigned i = 0; i < (full ? LK_SLOTS - 2 : 1); i++)
            CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "other", NULL, false), 0);
        t->hook_arg = &c;
        t->hook = note_write;
        CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 0, "new", NULL, true), 0);
        t->hook = NULL;
        cut_short(co, t, &c, passes, full ? filled_up : repeated);
        toy_free(t);
    }
}

/* A slot that another program has written since the crash is nobody's spare and has none: what opens by it stays. */
static void strangers(struct co *co, void *arg)
{
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    struct lk_area a = area_of(t);
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, 1, "two", NULL, false), 0);
    CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
    uint8_t after[LK_SALT_BYTES] = { 9 }, salt[LK_SALT_BYTES];
    unsigned of = 77;
    CHECK_EQ(lk_spare_salt(&h, 0, after, salt), 0);
    memcpy(h.slot[1].salt, salt, sizeof salt);
    CHECK(lk_spares(&h, -1, LK_MARK_FOR, &of) == 2 && of == 0);
    CHECK(lk_spares(&h, 0, LK_MARK_BEFORE, &of) == 2 && !lk_spares(&h, -1, LK_MARK_AFTER, &of) && !lk_spares(&h, 3, LK_MARK_FOR, &of));
    struct lk_header now = h;
    memcpy(now.slot[0].salt, after, sizeof after);
    CHECK(!lk_spares(&now, -1, LK_MARK_BEFORE, &of) && lk_spares(&now, -1, LK_MARK_AFTER, &of) == 2);
    now.slot[0].active = false;
    CHECK(!lk_spares(&now, -1, LK_MARK_AFTER, &of) && lk_spares(&now, -1, LK_MARK_FOR, &of) == 2);
    now = h;
    now.slot[0].salt[31] ^= 1;
    CHECK(!lk_spares(&now, -1, LK_MARK_BEFORE, &of) && !lk_spares(&now, -1, LK_MARK_AFTER, &of));
    now = h;
    now.slot[1].salt[0] ^= 1;
    CHECK(!lk_spares(&now, -1, LK_MARK_FOR, &of) && !lk_spares(&now, -1, LK_MARK_BEFORE, &of));
    now = h;
    now.slot[1].active = false;
    CHECK(!lk_spares(&now, -1, LK_MARK_FOR, &of));
    toy_free(t);
}

/* What is refused without force, and says so (FEATURES 1.074). */
static void only_with_force(struct co *co, void *arg)
{
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    struct lk_area a = area_of(t);
    struct secret one = pass_of("one"), two = pass_of("two");
    struct byre_err err;
    struct lk_change k = { .state = FMT_KEY_ACTIVE, .keyslot = 0, .new_secret = &two, .open_secret = &one, .has_iter_time = true };
    CHECK_EQ(lk_amend(co, &a, &h, &k, &err), -EEXIST);
    CHECK(strstr(err.text, "slot 0 is the only active one") && strstr(err.text, "without force"));
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "two", NULL, false), 0);
    CHECK_EQ(lk_amend(co, &a, &h, &k, &err), -EEXIST);
    CHECK(strstr(err.text, "erase it first"));
    CHECK(opened_by(co, t, "one") == 1 && opened_by(co, t, "two") == 1);
    toy_free(t);
}

/* An erased slot leaves no way back: neither its salt nor its material is there. */
static void erased(struct co *co, void *arg)
{
    for (int slot = 1; slot <= 6; slot += 5) {
        struct lk_header h;
        struct toy *t = formatted(co, &h);
        struct lk_area a = area_of(t);
        struct cuts c = { 0 };
        CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, slot, "two", NULL, false), 0);
        CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
        uint8_t *was = memcpy(malloc(t->len), t->bytes, t->len);
        t->hook_arg = &c;
        t->hook = note_write;
        CHECK_EQ(amend(co, t, FMT_KEY_INACTIVE, slot, NULL, NULL, false), 0);
        t->hook = NULL;
        uint64_t off = a.base + h.slot[slot].off, len = lk_material_bytes(h.key_bytes, LK_STRIPES), same = 0;
        for (uint64_t i = 0; i < len; i += 16)
            same += !memcmp(was + off + i, t->bytes + off + i, 16);
        CHECK_EQ(same, 0);
        CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
        CHECK(mem_is_zero(h.slot[slot].salt, LK_SALT_BYTES) && !h.slot[slot].active);
        static const char *const passes[] = { "one", "two", NULL };
        cut_short(co, t, &c, passes, NULL);
        free(was);
        toy_free(t);
    }
}

/* Reads that fail, memory that ends: an error, no leak, and a slot that cannot be read does not hide one that can. */
static int fail_reads(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_READ && off == *(uint64_t *)t->hook_arg ? -EIO : 0;
}

static void unreadable(struct co *co, void *arg)
{
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    uint64_t where = 4096 + h.slot[0].off;
    CHECK_EQ(amend(co, t, FMT_KEY_ACTIVE, -1, "two", NULL, false), 0);
    t->hook_arg = &where;
    t->hook = fail_reads;
    CHECK(opens(co, t, "two", NULL) && !opens(co, t, "one", NULL));
    where = 4096;
    CHECK(!opens(co, t, "two", NULL));
    t->hook = NULL;
    toy_free(t);
}

static bool given_keys(void *arg, const char *option) { return !strcmp(option, "iter-time"); }
static bool given_slot(void *arg, const char *option) { return !strcmp(option, "keyslot"); }

/* Numbers that would be none, or another one, as an int: nothing is erased by them. */
static void slots_that_do_not_exist(struct co *co, void *arg)
{
    static const uint32_t numbers[] = { LK_SLOTS, INT32_MAX, (uint32_t)INT32_MAX + 1, UINT32_MAX - LK_SLOTS, UINT32_MAX };
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    struct lk_area a = area_of(t);
    struct secret one = pass_of("one");
    struct fmt_create_opts fo = { .encrypt = { .state = FMT_KEY_INACTIVE, .old_secret = (char *)(uintptr_t)"o" } };
    const struct fmt_amend_opts fa = { .o = &fo, .given = given_slot, .force = true };
    const struct lk_amending m = { .a = &fa, .prefix = "", .open_secret = &one };
    CHECK_EQ(secret_set_new(&fo.secrets), 0);
    CHECK_EQ(secret_set_add(fo.secrets, "o", "one", 3), 0);
    CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        fo.encrypt.keyslot = numbers[i];
        CHECK_EQ(lk_amend_options(co, &a, &h, &m, NULL), -EINVAL);
        CHECK(opens(co, t, "one", NULL));
    }
    secret_set_free(fo.secrets);
    toy_free(t);
}

/* Another secret than the image's own opens a slot for the new one. */
static void other_secret(struct co *co, void *arg)
{
    struct lk_header h;
    struct toy *t = formatted(co, &h);
    struct lk_area a = area_of(t);
    struct secret wrong = pass_of("wrong");
    struct fmt_create_opts fo = { .encrypt = { .state = FMT_KEY_ACTIVE, .new_secret = (char *)(uintptr_t)"n", .secret = (char *)(uintptr_t)"o" } };
    const struct fmt_amend_opts fa = { .o = &fo, .given = given_keys };
    const struct lk_amending m = { .a = &fa, .prefix = "", .open_secret = &wrong };
    CHECK_EQ(secret_set_new(&fo.secrets), 0);
    CHECK_EQ(secret_set_add(fo.secrets, "n", "new", 3), 0);
    CHECK_EQ(lk_load(co, &a, &h, NULL), 0);
    CHECK_EQ(lk_amend_options(co, &a, &h, &m, NULL), -EINVAL);       /* there is no secret "o" */
    CHECK_EQ(secret_set_add(fo.secrets, "o", "one", 3), 0);
    CHECK_EQ(lk_amend_options(co, &a, &h, &m, NULL), 0);
    CHECK(opens(co, t, "new", NULL) && active(co, t) == 2);
    fo.encrypt.secret = NULL;
    CHECK_EQ(lk_amend_options(co, &a, &h, &m, NULL), -EACCES);
    fo.encrypt.secret = (char *)(uintptr_t)"o";
    fo.encrypt.state = FMT_KEY_UNSET;
    fo.encrypt.new_secret = NULL;
    CHECK_EQ(lk_amend_options(co, &a, &h, &m, NULL), -EINVAL);
    CHECK_EQ(active(co, t), 2);
    secret_set_free(fo.secrets);
    toy_free(t);
}

/* ---- a header in a file of its own ---- */

#define APART_SIZE (1u << 20)
struct apart { struct toy *head, *disk; unsigned unflushed_head, unflushed_disk, headers; };

static bool has_magic(const struct toy *t) { return t->len >= 6 && !memcmp(t->bytes, LK_MAGIC, 6); }

/* Q28: the old header is gone before anything else is written to its file, and the new one comes last, when the rest of both files is durable. The
 * disk is written, and durable, before that. */
static int note_apart(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct apart *p = t->hook_arg;
    unsigned *unflushed = t == p->head ? &p->unflushed_head : &p->unflushed_disk;
    if (op == TOY_FLUSH)
        *unflushed = 0;
    if (op != TOY_WRITE && op != TOY_FUA)
        return 0;
    if (t == p->head && off == 0 && len == LK_HEAD_BYTES) {
        p->headers++;
        CHECK_EQ(p->unflushed_head + p->unflushed_disk, 0);
        CHECK_EQ(p->disk->len, APART_SIZE);
    }
    CHECK(t == p->head ? !has_magic(p->head) && !p->unflushed_disk : has_magic(p->head));
    ++*unflushed;
    return 0;
}

static int give_head(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    struct apart *p = arg;
    CHECK(!name);
    *ret_s = stor_share(&p->head->s);
    return 0;
}

static void use_apart(struct co *co, struct apart *p, struct secret_set *set, bool create)
{
    const struct fmt_host host = { .open_data = give_head, .arg = p, .has_header = true };
    const struct fmt_open_opts o = { .host = &host, .secrets = set, .key_secret = "s" };
    struct fmt_image *im;
    uint8_t buf[1000], back[1000];
    struct iovec v;
    if (!CHECK_EQ(fmt_luks_ops.open(co, stor_share(&p->disk->s), &o, &im, NULL), 0))
        return;
    CHECK_EQ(im->size, APART_SIZE);
    CHECK(im->second == &p->head->s);
    memset(buf, 0x5a, sizeof buf);
    if (create)
        CHECK_EQ(stor_write_buf(co, im->data, buf, sizeof buf, 70000, 0), 0);
    CHECK_EQ(stor_read(co, im->data, iov_one(&v, back, sizeof back), 70000), 0);
    CHECK(!memcmp(buf, back, sizeof buf));
    CHECK_EQ(fmt_luks_ops.close(co, im), 0);
}

/* A disk with a header of its own, and where the disk of a detached header may begin in it. */
static const struct own_header {
    uint16_t version;
    uint32_t payload, active, material, stripes;         /* LUKS1: slot 5; a key of 64 bytes; sectors */
    uint64_t size; const char *json;                     /* LUKS2 */
    uint64_t refused, good;                              /* bytes; good 0: nowhere */
} own_headers[] = {
    { 1, 16, LK_SLOT_DISABLED, 0, 0, 0, NULL, 0, 8192 },
    { 1, 16, LK_SLOT_DISABLED, 1000, 4000, 0, NULL, 8192 - 512, 8192 },
    { 1, 0, LK_SLOT_ENABLED, 100, 80, 0, NULL, 110 * 512 - 512, 110 * 512 },      /* behind the key slot, if it names no payload or one in front */
    { 1, 8, LK_SLOT_ENABLED, 100, 81, 0, NULL, 110 * 512, 111 * 512 },
    { 1, 8, LK_SLOT_ENABLED, UINT32_MAX, UINT32_MAX, 0, NULL, 1 << 20, 0 },
    { 1, 0, LK_SLOT_DISABLED, 0, 0, 0, NULL, 512, 1024 },
    { 2, 0, 0, 0, 0, 16384, "{\"config\":{\"json_size\":\"12288\",\"keyslots_size\":\"65536\"}}", 32768 + 65536 - 512, 32768 + 65536 },
    { 2, 0, 0, 0, 0, 16384, "{\"tokens\":{\"0\":{\"keyslots_size\":\"1\"}},\"config\":{\"keyslots_size\" : \"65536\"}}", 32768 + 65536 - 512, 32768 + 65536 },
    { 2, 0, 0, 0, 0, 32768, "{\"config\":{\"keyslots_size\":\"0\"}}", 65536 - 512, 65536 },
    { 2, 0, 0, 0, 0, 16384, "{\"config\":{\"keyslots_size\":\"65536", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, 16384, "{\"config\":{\"keyslots_size\":65536}}", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, 16384, "{\"config\":{\"keyslots_size\":\"99999999999999999999\"}}", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, 16384, "{\"config\":{\"keyslots_size\"", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, 16384, "{}", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, 4096, "{\"config\":{\"keyslots_size\":\"0\"}}", 1 << 20, 0 },
    { 2, 0, 0, 0, 0, UINT64_MAX, "{\"config\":{\"keyslots_size\":\"0\"}}", 1 << 20, 0 },
    { 3, 0, 0, 0, 0, 0, NULL, 1 << 20, 0 },
};

static void put_own_header(uint8_t *disk, const struct own_header *o)
{
    struct lk_disk_header d = { .magic = { 0 } };
    memcpy(d.magic, LK_MAGIC, sizeof d.magic);
    be16_put(&d.version, o->version);
    for (unsigned i = 0; i < LK_SLOTS; i++)
        be32_put(&d.slot[i].active, LK_SLOT_DISABLED);
    be32_put(&d.payload_sector, o->payload);
    be32_put(&d.key_bytes, 64);
    be32_put(&d.slot[5].active, o->active);
    be32_put(&d.slot[5].material_sector, o->material);
    be32_put(&d.slot[5].stripes, o->stripes);
    memcpy(disk, &d, sizeof d);
    be64 size;
    be64_put(&size, o->size);
    if (o->version == 2)
        memcpy(disk + 8, &size, sizeof size);
    if (o->json)
        memcpy(disk + 4096, o->json, strlen(o->json) + 1);
}

static int open_from(struct co *co, struct apart *p, struct fmt_open_opts *o, uint64_t payload)
{
    struct fmt_image *im;
    be32 sector;
    be32_put(&sector, (uint32_t)(payload / LK_SECTOR));
    memcpy(p->head->bytes + offsetof(struct lk_disk_header, payload_sector), &sector, sizeof sector);
    struct byre_err err;
    int r = fmt_luks_ops.open(co, stor_share(&p->disk->s), o, &im, &err);
    if (r == 0)
        return fmt_luks_ops.close(co, im);
    stor_close(co, &p->disk->s);
    CHECK(strstr(err.text, "header of its own"));
    return r;
}

/* I4 of luks.c: a disk that begins with a header of its own can be read, and not written where that one lies. */
static void other_header(struct co *co, struct apart *p, struct secret_set *set)
{
    const struct fmt_host host = { .open_data = give_head, .arg = p, .has_header = true };
    struct fmt_open_opts o = { .host = &host, .secrets = set, .key_secret = "s" };
    uint8_t *was = memcpy(malloc(p->disk->len), p->disk->bytes, p->disk->len);
    for (size_t i = 0; i < sizeof own_headers / sizeof own_headers[0]; i++) {
        const struct own_header *w = &own_headers[i];
        put_own_header(p->disk->bytes, w);
        o.read_only = false;
        if (!CHECK_EQ(open_from(co, p, &o, 0), -EINVAL) || !CHECK_EQ(open_from(co, p, &o, w->refused), -EINVAL) ||
            !CHECK_EQ(w->good ? open_from(co, p, &o, w->good) : 0, 0))
            print_message("header %zu\n", i);
        o.read_only = true;
        CHECK_EQ(open_from(co, p, &o, 0), 0);
        memcpy(p->disk->bytes, was, p->disk->len);
    }
    CHECK_EQ(open_from(co, p, &o, 0), 0);
    free(was);
}

/* Over an old header; with the disk filled, and not. Then it opens; without a header, or with another one, it does not. */
static void header_apart(struct co *co, void *arg)
{
    struct secret_set *set;
    CHECK_EQ(secret_set_new(&set), 0);
    CHECK_EQ(secret_set_add(set, "s", "one", 3), 0);
    for (unsigned full = 0; full < 2; full++) {
        struct apart p = { .head = toy_new(8192, 1, 1), .disk = toy_new(full ? 2 * APART_SIZE : 0, 1, 1) };
        const struct fmt_host host = { .open_data = give_head, .arg = &p, .has_header = true };
        struct fmt_create_opts o = { .size = APART_SIZE, .prealloc = full ? FMT_PREALLOC_FULL : FMT_PREALLOC_OFF, .host = &host, .secrets = set, .encrypt.key_secret = (char *)(uintptr_t)"s" };
        memcpy(p.head->bytes, LK_MAGIC, 6);
        p.head->s.traits.regular = p.disk->s.traits.regular = true;
        p.head->hook = p.disk->hook = note_apart;
        p.head->hook_arg = p.disk->hook_arg = &p;
        CHECK_EQ(fmt_luks_ops.create(co, &p.disk->s, &o, NULL), 0);
        CHECK_EQ(p.headers, 1);
        CHECK_EQ(p.unflushed_head + p.unflushed_disk, 0);
        p.head->hook = p.disk->hook = NULL;
        CHECK(has_magic(p.head) && !has_magic(p.disk));
        use_apart(co, &p, set, true);
        use_apart(co, &p, set, false);
        other_header(co, &p, set);
        struct fmt_open_opts alone = { .secrets = set, .key_secret = "s" };
        struct fmt_image *im;
        CHECK_EQ(fmt_luks_ops.open(co, &p.disk->s, &alone, &im, NULL), -EINVAL);
        CHECK_EQ(fmt_luks_ops.open(co, &p.head->s, &alone, &im, NULL), -EINVAL);
        p.head->len = 300;
        alone.host = &host;
        CHECK(fmt_luks_ops.open(co, &p.disk->s, &alone, &im, NULL) < 0);
        toy_free(p.head);
        toy_free(p.disk);
    }
    secret_set_free(set);
}

/* ---- a header over another one (I5 of luks.c) ---- */

struct over { struct toy *head, *disk; unsigned fail_at, ops; struct cuts cuts; bool disk_done; };

static int note_over(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct over *v = t->hook_arg;
    if (op != TOY_WRITE && op != TOY_FUA && op != TOY_FLUSH && op != TOY_TRUNCATE)
        return 0;
    if (v->fail_at && ++v->ops == v->fail_at)
        return -EIO;
    if (t == v->disk) {
        CHECK(!v->disk_done);                            /* its file is touched last */
        return 0;
    }
    v->disk_done = true;
    struct cuts *c = &v->cuts;
    if (op == TOY_FLUSH)
        c->unflushed = 0;
    if (op != TOY_WRITE || v->fail_at)
        return 0;
    CHECK(c->unflushed++ == 0 || off >= LK_HEAD_BYTES);  /* N1: sectors of the header wait for all before them */
    if (CHECK(c->n < CUTS_MAX)) {
        c->at[c->n].before = memcpy(malloc(t->len), t->bytes, t->len);
        c->at[c->n].off = off;
        c->at[c->n++].len = len;
    }
    return 0;
}

static unsigned head_opens(struct co *co, struct toy *t, const char *pass, unsigned *ret_active)
{
    struct lk_area a = { .store = &t->s, .len = t->len, .flush = store_flush, .arg = &t->s, .name = "head" };
    struct lk_header h;
    struct secret s = pass_of(pass);
    unsigned slot;
    uint8_t *key;
    if (lk_load(co, &a, &h, NULL) || lk_unlock(co, &a, &h, &s, -1, &key, &slot, NULL))
        return 99;
    secret_free(key);
    *ret_active = lk_active_slots(&h);
    return slot;
}

static int give_old(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    *ret_s = stor_share(&((struct over *)arg)->head->s);
    return 0;
}

static int make_over(struct co *co, struct over *v, struct secret_set *set, const char *secret, const char *cipher, bool *ret_kept)
{
    const struct fmt_host host = { .open_data = give_old, .arg = v, .has_header = true, .kept = ret_kept };
    const struct fmt_create_opts o = { .size = 8192, .prealloc = FMT_PREALLOC_FULL, .host = &host, .secrets = set,
        .encrypt = { .key_secret = (char *)(uintptr_t)secret, .cipher_alg = (char *)(uintptr_t)cipher, .iter_time_ms = 10 } };
    return fmt_luks_ops.create(co, &v->disk->s, &o, NULL);
}

/* Old headers: which slots beside the first, and whether that one has gone; with keys of which size. fresh: there is no room for both. */
static const struct old { const char *cipher; int slots[6]; bool erase, fresh; uint32_t payload; } olds[] = {
    { NULL, { -1 }, false, false, 0 },
    { "aes-128", { -1 }, false, false, 0 },
    { NULL, { 7, -1 }, true, false, 0 },
    { NULL, { 6, 7, -1 }, false, false, 0 },
    { NULL, { 1, 2, 3, -1 }, false, false, 0 },
    { NULL, { 1, 2, 3, 4, 5, -1 }, false, true, 0 },
    { NULL, { -1 }, false, true, 8 },                    /* a disk follows: it is not written over */
};

static void make_old(struct co *co, struct over *v, const struct old *o, struct secret_set *set)
{
    struct secret one = pass_of("one");
    struct lk_header h;
    struct fmt_encrypt e = { .cipher_alg = (char *)(uintptr_t)o->cipher };
    v->head = toy_new(0, 1, 1);
    v->disk = toy_new(0, 1, 1);
    v->head->s.traits.regular = v->disk->s.traits.regular = true;
    struct lk_area a = { .store = &v->head->s, .flush = store_flush, .arg = &v->head->s, .name = "head" };
    CHECK_EQ(lk_options(&e, "", &h, NULL), 0);
    a.len = h.payload_off;
    h.payload_off = o->payload * LK_SECTOR;
    if (o->payload)
        h.slot[0].stripes = 2;
    CHECK_EQ(lk_format(co, &a, &h, &one, 0, NULL), 0);
    CHECK_EQ(stor_truncate(co, &v->head->s, a.len), 0);
    for (const int *s = o->slots; *s >= 0; s++) {
        struct lk_change k = { .state = FMT_KEY_ACTIVE, .keyslot = *s, .new_secret = &one, .open_secret = &one, .has_iter_time = true };
        CHECK_EQ(lk_amend(co, &a, &h, &k, NULL), 0);
    }
    struct lk_change k = { .state = FMT_KEY_INACTIVE, .keyslot = 0, .open_secret = &one };
    if (o->erase)
        CHECK_EQ(lk_amend(co, &a, &h, &k, NULL), 0);
    v->head->hook = v->disk->hook = note_over;
    v->head->hook_arg = v->disk->hook_arg = v;
}

static void cut_over(struct co *co, struct over *v)
{
    struct toy *t = v->head;
    uint8_t *end = memcpy(malloc(t->len), t->bytes, t->len);
    struct cuts *c = &v->cuts;
    unsigned n;
    for (unsigned i = 0; i < c->n; i++) {
        uint64_t off = c->at[i].off, len = c->at[i].len;
        const uint8_t *after = i + 1 < c->n ? c->at[i + 1].before : end;
        for (unsigned how = 0; how < 3 && (how == 0 || len > LK_SECTOR); how++) {
            uint64_t from = how == 2 ? len / 2 : 0, part = how ? len / 2 : 0;
            memcpy(t->bytes, c->at[i].before, t->len);
            memcpy(t->bytes + off + from, after + off + from, part);
            if (!CHECK(head_opens(co, t, "one", &n) < LK_SLOTS || head_opens(co, t, "new", &n) < LK_SLOTS))
                print_message("write %u, state %u\n", i, how);
        }
        free(c->at[i].before);
    }
    memcpy(t->bytes, end, t->len);
    free(end);
}

/* Each state of the file in between opens by the old passphrase or by the new one; in the end by the new one, in the first slot. */
static void header_over(struct co *co, void *arg)
{
    struct secret_set *set;
    CHECK_EQ(secret_set_new(&set), 0);
    CHECK_EQ(secret_set_add(set, "t", "new", 3), 0);
    for (size_t i = 0; i < sizeof olds / sizeof olds[0]; i++) {
        struct over v = { .head = NULL };
        bool kept = false;
        unsigned n = 0;
        make_old(co, &v, &olds[i], set);
        if (olds[i].fresh)
            v.head->hook = NULL;
        CHECK_EQ(make_over(co, &v, set, "t", NULL, &kept), 0);
        v.head->hook = v.disk->hook = NULL;
        if (!CHECK(kept == !olds[i].fresh) || !CHECK(head_opens(co, v.head, "new", &n) == 0 && n == 1) || !CHECK(head_opens(co, v.head, "one", &n) == 99))
            print_message("old header %zu\n", i);
        if (!olds[i].fresh)
            cut_over(co, &v);
        toy_free(v.head);
        toy_free(v.disk);
    }
    secret_set_free(set);
}

/* The same with a request that fails, any of them: an error, and the file of the header is not to be emptied. */
static void header_over_fails(struct co *co, void *arg)
{
    struct secret_set *set;
    CHECK_EQ(secret_set_new(&set), 0);
    CHECK_EQ(secret_set_add(set, "t", "new", 3), 0);
    for (unsigned at = 1, r = 1; r; at++) {
        struct over v = { .fail_at = at };
        bool kept = false;
        unsigned n = 0;
        make_old(co, &v, &olds[0], set);
        uint8_t *was = memcpy(malloc(v.head->len), v.head->bytes, v.head->len);
        r = make_over(co, &v, set, "t", NULL, &kept) != 0;
        v.head->hook = v.disk->hook = NULL;
        CHECK(v.disk_done ? kept : !memcmp(was, v.head->bytes, v.head->len));
        if (!CHECK(head_opens(co, v.head, "one", &n) < LK_SLOTS || head_opens(co, v.head, "new", &n) < LK_SLOTS))
            print_message("request %u fails\n", at);
        CHECK(r || at > 10);
        free(was);
        toy_free(v.head);
        toy_free(v.disk);
    }
    secret_set_free(set);
}

/* Nothing is written before it is known that the header and the disk have room. */
static void no_room(struct co *co, void *arg)
{
    struct secret_set *set;
    CHECK_EQ(secret_set_new(&set), 0);
    CHECK_EQ(secret_set_add(set, "t", "new", 3), 0);
    for (unsigned which = 0; which < 2; which++) {
        struct over v = { .head = NULL };
        bool kept = false;
        make_old(co, &v, &olds[0], set);
        v.head->hook = v.disk->hook = NULL;
        if (which)
            v.head->s.traits.regular = false;
        v.disk->s.traits.regular = false;
        CHECK_EQ(stor_truncate(co, &v.disk->s, which ? 8192 : 8191), 0);
        if (which)
            v.head->len = 1 << 20;
        uint8_t *was = memcpy(malloc(v.head->len), v.head->bytes, v.head->len);
        CHECK_EQ(make_over(co, &v, set, "t", NULL, &kept), -ENOSPC);
        CHECK(!memcmp(was, v.head->bytes, v.head->len) && mem_is_zero(v.disk->bytes, v.disk->len));
        free(was);
        toy_free(v.head);
        toy_free(v.disk);
    }
    secret_set_free(set);
}

/* ---- the store that encrypts ---- */

#define DISK (256u << 10)

struct mirror { struct stor *data; struct toy *below; struct lk_xform *x; uint8_t *plain; uint64_t base; };

static void mirror_init(struct mirror *m, uint32_t block, uint64_t base)
{
    struct lk_suite s = suite_of("aes-128", LK_XTS, LK_IV_PLAIN64, NULL);
    uint8_t key[32] = { 1, 2, 3 };
    m->below = toy_new(DISK + base, block, block);
    m->base = base;
    m->plain = calloc(1, DISK);
    CHECK_EQ(lk_xform_new(&s, key, &m->x), 0);
    struct lk_store_opts o = { .below = &m->below->s, .x = m->x, .base = base, .iv_base = base };
    CHECK_EQ(lk_store_new(&o, &m->data), 0);
}

static void mirror_fini(struct co *co, struct mirror *m)
{
    stor_close(co, m->data);
    lk_xform_free(m->x);
    toy_free(m->below);
    free(m->plain);
}

/* Requests of any size and place, through lists of odd buffers: what is read is what was written, and below lies its
 * ciphertext, sector by sector. The buffers of writes are as they were. */
static void any_size(struct co *co, void *arg)
{
    static const uint32_t blocks[] = { 1, 512, 4096 };
    for (unsigned b = 0; b < 3; b++) {
        struct mirror m;
        struct prng p;
        mirror_init(&m, blocks[b], b == 1 ? 8192 : 0);
        prng_init(&p, 7 + b);
        CHECK_EQ(stor_zero(co, m.data, 0, DISK, 0), 0);
        uint8_t *buf = malloc(DISK), *copy = malloc(DISK);
        for (unsigned i = 0; i < 300; i++) {
            uint64_t len = 1 + prng_below(&p, prng_below(&p, 4) ? 2000 : 70000), off = prng_below(&p, DISK - len), cut = prng_below(&p, len + 1);
            if (i % 3 == 0) {                            /* whole sectors reach the store as they lie in memory */
                len = round_up(len, LK_SECTOR);
                off = round_down(min_u64(off, DISK - len), LK_SECTOR);
                cut = round_down(cut, LK_SECTOR);
            }
            struct iovec v[2] = { { buf, cut }, { buf + cut + 3, len - cut } };
            for (uint64_t k = 0; k < len + 3; k++)
                buf[k] = (uint8_t)prng_below(&p, 256);
            memcpy(copy, buf, len + 3);
            if (prng_below(&p, 2)) {
                CHECK_EQ(stor_write(co, m.data, iov_of(v, 2), off, 0), 0);
                CHECK(!memcmp(copy, buf, len + 3));
                memcpy(m.plain + off, buf, cut);
                memcpy(m.plain + off + cut, buf + cut + 3, len - cut);
            } else {
                CHECK_EQ(stor_read(co, m.data, iov_of(v, 2), off), 0);
                CHECK(!memcmp(m.plain + off, buf, cut) && !memcmp(m.plain + off + cut, buf + cut + 3, len - cut));
            }
        }
        memcpy(copy, m.plain, DISK);
        lk_encrypt(m.x, copy, DISK, 0);
        CHECK(!memcmp(copy, m.below->bytes + m.base, DISK));
        free(buf);
        free(copy);
        mirror_fini(co, &m);
    }
}

struct writer { struct mirror *m; unsigned id; };

/* Bytes id, id + 8, ... of the first two sectors belong to writer id; writer 7 also writes whole sectors behind them. */
static void write_beside(struct co *co, void *arg)
{
    struct writer *w = arg;
    uint8_t whole[4096];
    struct prng p;
    prng_init(&p, w->id);
    for (unsigned round = 0; round < 40; round++) {
        for (unsigned at = w->id; at < 1024; at += 8 * (1 + (unsigned)prng_below(&p, 6))) {
            uint8_t v = (uint8_t)(round + 1);
            CHECK_EQ(stor_write_buf(co, w->m->data, &v, 1, at, 0), 0);
            w->m->plain[at] = v;
        }
        if (w->id == 7) {
            memset(whole, (int)round, sizeof whole);
            CHECK_EQ(stor_write_buf(co, w->m->data, whole, sizeof whole, 1024, 0), 0);
        }
    }
}

static int delay(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    co_yield(co);
    return 0;
}

static struct mirror shared;

static void beside_begin(struct co *co, void *arg)
{
    mirror_init(&shared, 1, 0);
    CHECK_EQ(stor_zero(co, shared.data, 0, DISK, 0), 0);
    shared.below->hook = delay;
}

static void beside_end(struct co *co, void *arg)
{
    uint8_t buf[1024];
    struct iovec slot;
    CHECK_EQ(stor_read(co, shared.data, iov_one(&slot, buf, sizeof buf), 0), 0);
    CHECK(!memcmp(buf, shared.plain, sizeof buf));
    shared.below->hook = NULL;
    mirror_fini(co, &shared);
}

/* Parts of one sector written at once from two loops never lose one another. */
static void beside(void **state)
{
    struct writer w[8];
    void *args[8];
    for (unsigned i = 0; i < 8; i++) {
        w[i] = (struct writer){ &shared, i };
        args[i] = &w[i];
    }
    t_run(0, beside_begin, NULL);
    t_run_many(8, write_beside, args);
    t_run(0, beside_end, NULL);
}

/* Large requests are ciphered by several workers at once (FEATURES 1.060). All workers are held up: what waits for one behind
 * them is what the request was split into. */
#define LARGE (4u << 20)
#define WORKERS_MAX 12u

static struct { atomic_uint held; atomic_bool go; unsigned ended, workers; } fan;

static int64_t hold_worker(void *arg)
{
    atomic_fetch_add(&fan.held, 1);
    while (!atomic_load(&fan.go))
        usleep(100);
    return 0;
}

static void holder(struct co *co, void *arg)
{
    CHECK_EQ(rt_cpu(co, hold_worker, NULL), 0);
    fan.ended++;
}

struct large { struct stor *s; struct iov v; bool write; int result; bool done; };

static void large_request(struct co *co, void *arg)
{
    struct large *l = arg;
    l->result = l->write ? stor_write(co, l->s, l->v, 512, 0) : stor_read(co, l->s, l->v, 512);
    l->done = true;
}

/* One request while all workers are busy. ret_most: how many shares of it waited at the same time. */
static void held_up(struct co *co, struct large *l, unsigned *ret_most)
{
    fan.ended = 0;
    atomic_store(&fan.held, 0);
    atomic_store(&fan.go, false);
    for (unsigned i = 0; i < fan.workers; i++)
        CHECK_EQ(rt_spawn(co_loop(co), holder, NULL), 0);
    while (atomic_load(&fan.held) < fan.workers)
        (void)co_sleep(co, 100000);
    CHECK_EQ(rt_spawn(co_loop(co), large_request, l), 0);
    while (!(*ret_most = rt_cpu_waiting(rt_of(co_loop(co)))))
        (void)co_sleep(co, 100000);
    CHECK(!l->done);
    atomic_store(&fan.go, true);
    while (!l->done || fan.ended < fan.workers)
        (void)co_sleep(co, 100000);
    CHECK_EQ(l->result, 0);
}

static void fan_out_of(struct co *co, struct mirror *m, uint64_t len, unsigned want_read, unsigned want_write)
{
    static const uint64_t odd = 3 * LK_SECTOR;
    uint8_t *plain = malloc(len), *buf = malloc(len + 1), *cipher = malloc(len);
    struct iovec v[2] = { { buf, odd }, { buf + odd + 1, len - odd } };
    unsigned most;
    for (uint64_t i = 0; i < len; i++)
        plain[i] = (uint8_t)(i * 7 + i / 4093);
    iov_from_buf(iov_of(v, 2), plain, len);
    struct large w = { m->data, iov_of(v, 2), true, 0, false }, r = { m->data, iov_of(v, 2), false, 0, false };
    held_up(co, &w, &most);
    CHECK_EQ(most, want_write);
    memcpy(cipher, plain, len);
    lk_encrypt(m->x, cipher, len, 1);
    CHECK(!memcmp(cipher, m->below->bytes + 512, len));
    memset(buf, 0, len + 1);
    held_up(co, &r, &most);
    CHECK_EQ(most, want_read);
    iov_to_buf(iov_of(v, 2), cipher, len);
    CHECK(!memcmp(cipher, plain, len));
    free(plain);
    free(buf);
    free(cipher);
}

static void fan_out(struct co *co, void *arg)
{
    struct mirror m;
    unsigned most = (unsigned)min_u64(fan.workers, RT_SPLIT_MAX);
    mirror_init(&m, 1, 0);
    fan_out_of(co, &m, 17 << 10, 1, 1);
    fan_out_of(co, &m, 128 << 10, 1, 1);
    fan_out_of(co, &m, (128 << 10) + 512, (unsigned)min_u64(most, 3), (unsigned)min_u64(most, 3));
    fan_out_of(co, &m, LARGE - 1536, most, most);
    mirror_fini(co, &m);
}

static void fan_outs(void **state)
{
    static const unsigned workers[] = { 1, 2, 6, WORKERS_MAX };
    struct rt *usual = t_rt;
    for (unsigned i = 0; i < 4; i++) {
        fan.workers = workers[i];
        assert_int_equal(rt_new(&(struct rt_opts){ .loops = 1, .cpu_workers = workers[i] }, &t_rt, NULL), 0);
        t_run(0, fan_out, NULL);
        rt_free(t_rt);
        t_rt = usual;
    }
}

/* A large write goes down in order, and ends at the first error: what lies behind it is not tried. */
static int second_fails(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return (op == TOY_WRITE || op == TOY_FUA) && off == 1u << 20 ? -EIO : 0;
}

static void large_fails(struct co *co, void *arg)
{
    struct mirror m;
    uint8_t *buf = malloc(LARGE), *cipher = malloc(1u << 20);
    mirror_init(&m, 512, 0);
    memset(buf, 0x5a, LARGE);
    m.below->hook = second_fails;
    CHECK_EQ(stor_write_buf(co, m.data, buf, LARGE, 0, STOR_FUA), -EIO);
    memcpy(cipher, buf, 1u << 20);
    lk_encrypt(m.x, cipher, 1u << 20, 0);
    CHECK(!memcmp(m.below->bytes, cipher, 1u << 20));
    CHECK_EQ(m.below->len, 1u << 20);
    CHECK_EQ(atomic_load(&m.below->count[TOY_FUA]), 2);          /* the second is the one that failed */
    CHECK_EQ(atomic_load(&m.below->count[TOY_WRITE]), 0);
    m.below->hook = NULL;
    free(buf);
    free(cipher);
    mirror_fini(co, &m);
}

static void no_key(struct co *co, void *arg)
{
    struct toy *t = toy_new(4096, 1, 1);
    struct lk_store_opts o = { .below = &t->s };
    struct stor *s;
    uint8_t b[512] = { 0 };
    struct iovec slot;
    CHECK_EQ(lk_store_new(&o, &s), 0);
    CHECK_EQ(stor_read(co, s, iov_one(&slot, b, sizeof b), 0), -EACCES);
    CHECK_EQ(stor_write_buf(co, s, b, sizeof b, 0, 0), -EACCES);
    CHECK_EQ(stor_write_buf(co, s, b, 100, 7, 0), -EACCES);
    CHECK_EQ(stor_zero(co, s, 0, 4096, 0), -EACCES);
    CHECK_EQ(stor_copy(co, s, 0, &t->s, 0, 512), -ENOTSUP);
    CHECK_EQ(atomic_load(&t->count[TOY_WRITE]), 0);
    stor_close(co, s);
    toy_free(t);
}

/* ---- secrets ---- */

static void secrets(void **state)
{
    struct secret_set *set;
    assert_int_equal(secret_set_new(&set), 0);
    assert_int_equal(secret_set_add(set, "a", "xyz", 3), 0);
    assert_int_equal(secret_set_add(set, "a", "q", 1), -EEXIST);
    assert_int_equal(secret_set_add(set, "", "q", 1), -EINVAL);
    assert_int_equal(secret_set_add(set, "b", "", 0), 0);
    struct secret *a = secret_get(set, "a");
    assert_non_null(a);
    assert_int_equal(a->len, 3);
    assert_memory_equal(a->bytes, "xyz", 3);
    assert_null(secret_get(set, "c"));
    assert_null(secret_get(NULL, "c"));
    assert_int_equal(secret_set_remove(set, "a"), 0);
    assert_int_equal(secret_set_remove(set, "a"), -ENOENT);
    assert_null(secret_get(set, "a"));
    secret_set_free(set);
    assert_memory_equal(a->bytes, "xyz", 3);             /* held */
    secret_put(a);
}

#define RUN(fn)                                         \
    static void test_##fn(void **state) { t_run(0, fn, NULL); }
RUN(xts_vectors)
RUN(block_vectors)
RUN(modes)
RUN(all_suites)
RUN(pbkdf2)
RUN(splitter)
RUN(header_round_trip)
RUN(hostile_headers)
RUN(slots)
RUN(torn)
RUN(left_spares)
RUN(strangers)
RUN(only_with_force)
RUN(erased)
RUN(unreadable)
RUN(slots_that_do_not_exist)
RUN(other_secret)
RUN(header_apart)
RUN(header_over)
RUN(header_over_fails)
RUN(no_room)
RUN(any_size)
RUN(large_fails)
RUN(no_key)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_xts_vectors), cmocka_unit_test(test_block_vectors), cmocka_unit_test(test_modes),
        cmocka_unit_test(test_all_suites), cmocka_unit_test(test_pbkdf2), cmocka_unit_test(test_splitter),
        cmocka_unit_test(test_header_round_trip), cmocka_unit_test(test_hostile_headers), cmocka_unit_test(test_slots),
        cmocka_unit_test(test_torn), cmocka_unit_test(test_left_spares), cmocka_unit_test(test_strangers), cmocka_unit_test(test_only_with_force), cmocka_unit_test(test_erased), cmocka_unit_test(test_unreadable),
        cmocka_unit_test(test_slots_that_do_not_exist), cmocka_unit_test(test_other_secret), cmocka_unit_test(test_header_apart),
        cmocka_unit_test(test_header_over), cmocka_unit_test(test_header_over_fails), cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_any_size), cmocka_unit_test(fan_outs), cmocka_unit_test(test_large_fails), cmocka_unit_test(beside), cmocka_unit_test(test_no_key), cmocka_unit_test(secrets),
    };
    return T_MAIN("luks", tests);
}
