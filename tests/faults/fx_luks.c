/* SPDX-License-Identifier: MIT
 *
 * fx_luks.c: encrypted images for the fault loops.
 *
 * Purpose      Passphrases; and headers whose keys cost nothing: key slots of two stripes (the header stays small), one iteration
 *              (nothing is measured: each run makes the same calls). Linked with --wrap.
 * Owns         The list of secrets.
 * Invariants   Everything else is the engine's own: the format allows both numbers.
 * Order        None.
 * Concurrency  One thread.
 * Failure      Ends the program when there is no memory; key memory that the engine does not give back is counted.
 * Tests        test_faults.py
 */
#include "fx_luks.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"
#include "sim/fx_alloc.h"

enum { STRIPES = 2 };

const char *const fx_key_names[2] = { "a", "b" };
long fx_key_memory;

struct secret_set *fx_secrets(void)
{
    static struct secret_set *set;
    bool armed = fx_alloc.armed;
    fx_alloc.armed = false;
    if (!set && (secret_set_new(&set) < 0 || secret_set_add(set, "a", "first", 5) < 0 || secret_set_add(set, "b", "second", 6) < 0))
        abort();
    fx_alloc.armed = armed;
    return set;
}

void fx_luks_options(struct fmt_create_opts *o)
{
    static char luks[] = "luks", cipher[] = "aes-128", a[] = "a";
    o->encrypt = (struct fmt_encrypt){ .format = luks, .cipher_alg = cipher, .key_secret = a, .iter_time_ms = 10 };
    o->secrets = fx_secrets();
}

uint64_t fx_luks_find(const uint8_t *file, uint64_t len, uint64_t cluster)
{
    for (uint64_t at = 0; at + cluster <= len; at += cluster)
        if (!memcmp(file + at, LK_MAGIC, sizeof LK_MAGIC - 1))
            return at;
    return 0;
}

static int try_key(struct co *co, const struct lk_area *a, const struct lk_header *h, unsigned i, const char *id)
{
    struct secret *s = secret_get(fx_secrets(), id);
    struct byre_err err;
    uint8_t *key = NULL;
    unsigned slot;
    int e = lk_unlock(co, a, h, s, (int)i, &key, &slot, &err);
    secret_put(s);
    if (e == 0)
        secret_free(key);
    return e;
}

int fx_luks_look(struct co *co, struct stor *s, uint64_t base, struct fx_keys *ret)
{
    struct lk_area a = { .store = s, .base = base, .name = "img" };
    struct lk_header h;
    struct byre_err err;
    int e = lk_load(co, &a, &h, &err);
    *ret = (struct fx_keys){ 0, 0 };
    for (unsigned i = 0; i < LK_SLOTS && e == 0; i++) {
        unsigned opens = 0;
        for (unsigned k = 0; k < 2 && h.slot[i].active && e == 0; k++) {
            e = try_key(co, &a, &h, i, fx_key_names[k]);
            opens |= e == 0 ? 1u << k : 0;
            e = e == -EACCES ? 0 : e;
        }
        ret->opens |= opens;
        ret->dead += h.slot[i].active && !opens;
    }
    return e;
}

int __wrap_lk_pbkdf2_calibrate(struct co *co, const struct lk_hash *hash, size_t out_len, uint64_t time_ms, uint32_t *ret_iterations);
int __wrap_lk_pbkdf2_calibrate(struct co *co, const struct lk_hash *hash, size_t out_len, uint64_t time_ms, uint32_t *ret_iterations)
{
    (void)co;
    (void)hash;
    (void)out_len;
    (void)time_ms;
    *ret_iterations = 1;
    return 0;
}

void __wrap_lk_header_lay_out(struct lk_header *h);
void __wrap_lk_header_lay_out(struct lk_header *h)
{
    uint64_t at = 2 * LK_SECTOR, each = round_up(lk_material_bytes(h->key_bytes, STRIPES), LK_SECTOR);
    for (unsigned i = 0; i < LK_SLOTS; i++, at += each)
        h->slot[i] = (struct lk_slot){ .off = at, .stripes = STRIPES, .usable = true };
    h->payload_off = at;
}

void *__real_secret_new(size_t bytes);
void *__wrap_secret_new(size_t bytes);
void *__wrap_secret_new(size_t bytes)
{
    void *p = __real_secret_new(bytes);
    fx_key_memory += p != NULL;
    return p;
}

void __real_secret_free(void *p);
void __wrap_secret_free(void *p);
void __wrap_secret_free(void *p)
{
    fx_key_memory -= p != NULL;
    __real_secret_free(p);
}
