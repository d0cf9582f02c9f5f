/* SPDX-License-Identifier: MIT
 *
 * secret.h: passphrases of encrypted images, credentials of TLS and rules about who may connect, given to a context under an id by which images and
 * exports name them.
 *
 * The library keeps them out of swap (as far as the process may lock memory) and out of core dumps, and wipes them. An
 * image that was opened keeps the secret that opened it, whatever happens to the id.
 */
#ifndef BYRE_SECRET_H
#define BYRE_SECRET_H

#include "byre/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Copies len bytes. -EEXIST: the id is taken. From any thread. */
BYRE_EXPORT BYRE_MUST_USE int byre_secret_add(struct byre_ctx *ctx, const char *id, const void *bytes, size_t len, struct byre_err *err);
/* -ENOENT: no such id. */
BYRE_EXPORT int byre_secret_remove(struct byre_ctx *ctx, const char *id);
/* Adds an object by its definition in the words of the ecosystem's tools: "secret,id=ID,data=TEXT" or
 * "secret,id=ID,file=PATH", with ",format=base64" where the secret is written so, and ",keyid=ID2,iv=BASE64" where it is
 * encrypted by another secret; or the same as a JSON object. The types are those of --object in byre(1): secret, throttle-group,
 * tls-creds-x509, tls-creds-psk, tls-creds-anon, the authz-* rules, and pr-manager-helper. May read files and connect to sockets, and blocks while it does. */
BYRE_EXPORT BYRE_MUST_USE int byre_object_add(struct byre_ctx *ctx, const char *definition, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
