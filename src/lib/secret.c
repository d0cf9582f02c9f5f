/* SPDX-License-Identifier: MIT
 *
 * secret.c: secrets of a context, and the options by which users define them (FEATURES 3.072, 5.002).
 *
 * Purpose      From the words of "secret,id=s,file=x,format=base64" (object.c) to bytes under an id.
 * Owns         Copies of the options and every intermediate form, wiped when the call ends.
 * Invariants   I1  No message holds a byte of a secret.
 * Concurrency  Any thread. Files are read by the calling thread.
 * Failure      Nothing is added.
 * Tests        lib_test.c, tests/cli/secret_test.py
 */
#include <errno.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/opt.h"
#include "fmt/luks/lk_cipher.h"
#include "fmt/secret.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

static int add_bytes(struct byre_ctx *ctx, const char *id, const void *bytes, size_t len, struct byre_err *err)
{
    int r = secret_set_add(ctx->secrets, id, bytes, len);
    switch (r) {
    case 0:
        return 0;
    case -EEXIST:
        return byre_fail(err, EXISTS, "there is a secret '%s' already", id);
    case -EINVAL:
        return byre_fail(err, BAD_ARGUMENT, "'%.128s' cannot be the id of a secret (1 to %u bytes)", id, SECRET_ID_MAX - 1);
    case -E2BIG:
        return byre_fail(err, LIMIT, "the secret '%s' has more than %u bytes", id, SECRET_BYTES_MAX);
    default:
        return byre_fail(err, NOMEM, "no memory for the secret '%s'", id);
    }
}

/* Groups of throttle nodes are not asked for here: that would wait for the home loop. */
int byre_secret_add(struct byre_ctx *ctx, const char *id, const void *bytes, size_t len, struct byre_err *err)
{
    int r = lib_object_claim(ctx, id, err);
    if (r)
        return r;
    r = tls_set_has(ctx->tls, id) ? byre_fail(err, EXISTS, "there is an object '%s' already", id) : add_bytes(ctx, id, bytes, len, err);
    lib_object_release(ctx, id);
    return r;
}

int byre_secret_remove(struct byre_ctx *ctx, const char *id)
{
    return secret_set_remove(ctx->secrets, id);
}

/* ---- definitions ---- */

struct words { const char *type, *id; char *data, *file, *format, *keyid, *iv, *serial; };
#define ROW(name, field) { name, 0, OPT_STR, OPT_AT(struct words, field), .help = name }
static const struct opt_row word_rows[] = {
    ROW("data", data), ROW("file", file), ROW("format", format), ROW("keyid", keyid), ROW("iv", iv),
    ROW("serial", serial), OPT_END
};

static void words_fini(struct words *w)
{
    if (w->data)
        secret_wipe(w->data, strlen(w->data));
    opt_fini(word_rows, w);
}

/* The options, as copies. */
static int take(const struct object_words *all, struct words *w, struct byre_err *err)
{
    *w = (struct words){ .type = all->type, .id = all->id };
    for (unsigned i = 0; i < all->count; i++) {
        const struct object_word *o = &all->list[i];
        bool number = o->kind == OBJECT_INTEGER && !strcmp(o->key, "serial");
        if (!number && (o->kind == OBJECT_INTEGER || o->kind == OBJECT_BOOL))
            return byre_fail(err, BAD_OPTION, "'%s' of an object must be a string", o->key);
        int r = opt_set(word_rows, w, o->key, o->kind == OBJECT_BARE ? NULL : o->value, NULL, err);
        if (r)
            return r;
    }
    return 0;
}

static bool in_keyring(const struct words *w)
{
    return strcmp(w->type, "secret_keyring") == 0;
}

bool lib_secret_is_type(const char *type)
{
    return !strcmp(type, "secret") || !strcmp(type, "secret_keyring");
}

/* Where the bytes come from: exactly one place, which the type decides. */
static int check_source(const struct words *w, struct byre_err *err)
{
    if (in_keyring(w)) {
        if (!w->serial || w->data || w->file)
            return byre_fail(err, BAD_OPTION, "the secret '%s' is a key of the kernel: it needs 'serial', and neither 'data' nor 'file'", w->id);
        return 0;
    }
    if (!w->data == !w->file || w->serial)
        return byre_fail(err, BAD_OPTION, "the secret '%s' needs either 'data' or 'file'", w->id);
    return 0;
}

static int check_words(const struct words *w, struct byre_err *err)
{
    int r = check_source(w, err);
    if (r)
        return r;
    if (w->format && strcmp(w->format, "raw") && strcmp(w->format, "base64"))
        return byre_fail(err, BAD_OPTION, "the format '%s' of the secret '%s' is not known (raw and base64 are)", w->format, w->id);
    if (!w->keyid != !w->iv)
        return byre_fail(err, BAD_OPTION, "the secret '%s': 'keyid' and 'iv' belong together", w->id);
    return 0;
}

/* ---- bytes ---- */

struct bytes { uint8_t *p; size_t len; };    /* of secret_new */

static int read_file(const char *path, const char *id, struct bytes *ret, struct byre_err *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return byre_fail_code(err, SYSTEM, -errno, "%s: cannot be opened for the secret '%s': %s", path, id, strerror(errno));
    setvbuf(f, NULL, _IONBF, 0);             /* no copy of the secret in a buffer of the C library */
    size_t cap = 4096, len = 0;
    uint8_t *p = secret_new(cap);
    int r = p ? 0 : -ENOMEM;
    while (!r) {
        size_t n = fread(p + len, 1, cap - len, f);
        len += n;
        if (len < cap)
            break;
        uint8_t *more = len < SECRET_BYTES_MAX ? secret_new(cap * 2) : NULL;
        r = more ? 0 : len < SECRET_BYTES_MAX ? -ENOMEM : -E2BIG;
        if (more) {
            memcpy(more, p, len);
            secret_free(p);
            p = more;
            cap *= 2;
        }
    }
    if (!r && ferror(f))
        r = -EIO;
    fclose(f);
    if (r) {
        secret_free(p);
        return byre_fail_code(err, SYSTEM, r, "%s: cannot be read for the secret '%s': %s", path, id, strerror(-r));
    }
    *ret = (struct bytes){ p, len };
    return 0;
}

/* The payload of a key of the kernel's keyrings. */
static int read_key(const struct words *w, struct bytes *ret, struct byre_err *err)
{
    char *end;
    errno = 0;
    long serial = strtol(w->serial, &end, 0);
    if (errno || end == w->serial || *end || serial < INT32_MIN || serial > INT32_MAX)
        return byre_fail(err, BAD_OPTION, "the secret '%s': '%s' is no serial number of a key", w->id, w->serial);
    long len = syscall(SYS_keyctl, KEYCTL_READ, (int32_t)serial, NULL, 0ul);
    if (len < 0)
        return byre_fail_code(err, SYSTEM, -errno, "the secret '%s': key %ld cannot be read: %s", w->id, serial, strerror(errno));
    uint8_t *p = len <= SECRET_BYTES_MAX ? secret_new((size_t)len + 1) : NULL;
    if (!p)
        return len > SECRET_BYTES_MAX ? byre_fail(err, LIMIT, "the secret '%s': key %ld has %ld bytes, at most %u are taken", w->id, serial, len, SECRET_BYTES_MAX)
                                      : -ENOMEM;
    long got = syscall(SYS_keyctl, KEYCTL_READ, (int32_t)serial, p, (size_t)len);
    if (got != len) {                        /* somebody changed or revoked it in between */
        int r = got < 0 ? -errno : -EAGAIN;
        secret_free(p);
        return byre_fail_code(err, SYSTEM, r, "the secret '%s': key %ld cannot be read: %s", w->id, serial, strerror(-r));
    }
    *ret = (struct bytes){ p, (size_t)len };
    return 0;
}

static int digit(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* RFC 4648 in place; line ends between the digits are allowed. false: malformed. */
static bool base64_decode(struct bytes *b)
{
    uint32_t bits = 0;
    unsigned have = 0, pad = 0;
    size_t out = 0, digits = 0;
    for (size_t i = 0; i < b->len; i++) {
        uint8_t c = b->p[i];
        if (c == '\n' || c == '\r')
            continue;
        int d = digit(c);
        if (c == '=' && pad < 2)
            pad++;
        else if (d < 0 || pad)
            return false;
        digits++;
        if (c == '=')
            continue;
        bits = bits << 6 | (uint32_t)d;
        have += 6;
        if (have >= 8) {
            have -= 8;
            b->p[out++] = (uint8_t)(bits >> have);
        }
    }
    b->len = out;
    return digits % 4 == 0;
}

static int take_bytes(const char *text, struct bytes *ret)
{
    size_t len = strlen(text);
    ret->p = secret_new(len + 1);
    ret->len = len;
    if (!ret->p)
        return -ENOMEM;
    memcpy(ret->p, text, len);
    return 0;
}

/* The bytes are encrypted by another secret: AES-256 in CBC mode with the padding of PKCS 7. */
static int decrypt(struct byre_ctx *ctx, const struct words *w, struct bytes *b, struct byre_err *err)
{
    struct bytes iv = { 0 };
    struct secret *key = secret_get(ctx->secrets, w->keyid);
    int r = key ? take_bytes(w->iv, &iv) : byre_fail(err, NO_SECRET, "the secret '%s': there is no secret '%s' (keyid)", w->id, w->keyid);
    if (!r && key->len != 32)
        r = byre_fail(err, BAD_ARGUMENT, "the secret '%s': the key '%s' has %zu bytes instead of 32", w->id, w->keyid, key->len);
    if (!r && (!base64_decode(&iv) || iv.len != 16))
        r = byre_fail(err, BAD_OPTION, "the secret '%s': 'iv' is not 16 bytes in base64", w->id);
    if (!r && (!b->len || b->len % 16))
        r = byre_fail(err, BAD_ARGUMENT, "the secret '%s': what is encrypted is no multiple of 16 bytes", w->id);
    if (!r)
        r = lk_aes256_cbc_decrypt(key->bytes, iv.p, b->p, b->len);
    uint8_t pad = r ? 0 : b->p[b->len - 1];
    if (!r && (!pad || pad > 16))
        r = byre_fail(err, WRONG_SECRET, "the secret '%s' cannot be decrypted with '%s'", w->id, w->keyid);
    for (unsigned i = 0; !r && i < pad; i++)
        if (b->p[b->len - 1 - i] != pad)
            r = byre_fail(err, WRONG_SECRET, "the secret '%s' cannot be decrypted with '%s'", w->id, w->keyid);
    if (!r)
        b->len -= pad;
    secret_put(key);
    secret_free(iv.p);
    return r;
}

static int add_words(struct byre_ctx *ctx, const struct words *w, struct byre_err *err)
{
    struct bytes b = { 0 };
    int r = in_keyring(w) ? read_key(w, &b, err) : w->file ? read_file(w->file, w->id, &b, err) : take_bytes(w->data, &b);
    if (r == -ENOMEM)
        r = byre_fail(err, NOMEM, "no memory for the secret '%s'", w->id);
    if (!r && w->format && !strcmp(w->format, "base64") && !base64_decode(&b))
        r = byre_fail(err, BAD_ARGUMENT, "the secret '%s' is not in base64", w->id);
    if (!r && w->keyid)
        r = decrypt(ctx, w, &b, err);
    if (!r)
        r = add_bytes(ctx, w->id, b.p, b.len, err);
    secret_free(b.p);
    return r;
}

int lib_secret_check(const struct object_words *all, struct byre_err *err)
{
    struct words w;
    int r = take(all, &w, err);
    words_fini(&w);
    return r;
}

int lib_secret_make(struct byre_ctx *ctx, const struct object_words *all, struct byre_err *err)
{
    struct words w;
    int r = take(all, &w, err);
    if (!r)
        r = check_words(&w, err);
    if (!r)
        r = add_words(ctx, &w, err);
    words_fini(&w);
    return r;
}
