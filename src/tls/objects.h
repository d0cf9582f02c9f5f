/* SPDX-License-Identifier: MIT
 *
 * objects.h: credentials and rules by the ids that users give them.
 *
 * Concurrency  Any thread. What was found is counted, and lives on when its id is removed.
 */
#ifndef TLS_OBJECTS_H
#define TLS_OBJECTS_H

#include <stdbool.h>

#include "base/err.h"
#include "tls/authz.h"
#include "tls/creds.h"

struct tls_set;
MUST_USE int tls_set_new(struct tls_set **ret_s);
void tls_set_free(struct tls_set *s);            /* NULL ok */

/* Options of an object: "rules.0.match" for what is nested. The strings are the caller's. */
struct tls_word { const char *key, *value; };
struct tls_words {
    const char *type, *id;
    const struct tls_word *list;                 /* without type and id */
    unsigned count;
    const char *password;                        /* what `passwordid` names, or NULL */
};
/* Is it the name of a type of object that is made here? */
bool tls_is_type(const char *type);
/* Makes the object; reads files: blocks. EXISTS, BAD_OPTION, ... */
MUST_USE int tls_set_add(struct tls_set *s, const struct tls_words *w, struct byre_err *err);
bool tls_set_has(struct tls_set *s, const char *id);
MUST_USE int tls_set_remove(struct tls_set *s, const char *id);      /* -ENOENT */

/* For the side that listens (server) or the other. NOT_FOUND; BAD_ARGUMENT: they are for the other side. s NULL: there are none. */
MUST_USE int tls_set_creds(struct tls_set *s, const char *id, bool server, struct tls_creds **ret_c, struct byre_err *err);
struct authz *tls_set_authz(struct tls_set *s, const char *id);      /* NULL: there is none */

#endif
