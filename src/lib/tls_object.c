/* SPDX-License-Identifier: MIT
 *
 * tls_object.c: credentials of TLS and rules about who may connect, as users define them (FEATURES 3.073, 3.074).
 *
 * Purpose      From the words of "tls-creds-x509,id=t,endpoint=server,dir=d" (object.c) to those of tls/objects.h.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any thread that may block
 * Failure      nothing is added
 * Tests        tests/daemon/tls_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fmt/secret.h"
#include "lib/lib_priv.h"
#include "tls/objects.h"

/* The bytes of the secret that `passwordid` names as text; *ret_text is wiped and freed by the caller. */
static int take_password(struct byre_ctx *ctx, const struct object_words *w, char **ret_text, struct byre_err *err)
{
    const char *id = NULL;
    for (unsigned i = 0; i < w->count; i++)
        if (!strcmp(w->list[i].key, "passwordid"))
            id = w->list[i].value;
    struct secret *s = id ? secret_get(ctx->secrets, id) : NULL;
    if (!s)
        return 0;                            /* whoever makes the object tells that it is missing */
    size_t len = s->len;
    while (len && s->bytes[len - 1] == '\n') /* as editors leave it in files */
        len--;
    *ret_text = memchr(s->bytes, 0, len) ? NULL : secret_new(len + 1);
    int r = *ret_text ? 0 : byre_fail(err, BAD_ARGUMENT, "the secret '%s' cannot be the password of a key", id);
    if (!r)
        memcpy(*ret_text, s->bytes, len);
    secret_put(s);
    return r;
}

int lib_tls_make(struct byre_ctx *ctx, const struct object_words *w, struct byre_err *err)
{
    AUTOFREE struct tls_word *list = calloc(w->count + 1, sizeof *list);
    struct tls_words all = { .type = w->type, .id = w->id, .list = list, .count = w->count };
    char *password = NULL;
    int r = list ? take_password(ctx, w, &password, err) : byre_fail(err, NOMEM, "no memory for an object");
    for (unsigned i = 0; !r && i < w->count; i++)
        list[i] = (struct tls_word){ w->list[i].key, w->list[i].value };
    all.password = password;
    if (!r)
        r = tls_set_add(ctx->tls, &all, err);
    secret_free(password);
    return r;
}
