/* SPDX-License-Identifier: MIT
 *
 * authz.h: who may connect, by the identity that TLS has proved: the distinguished name of a certificate, or the user of a pre-shared key
 * (FEATURES 3.074).
 *
 * Concurrency  Counted; asked from any thread that may block.
 */
#ifndef TLS_AUTHZ_H
#define TLS_AUTHZ_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define AUTHZ_FILE_MAX (1u << 20)        /* bytes of a file of rules */

/* Strings are owned by the rules. */
struct authz_rule { char *match; bool allow, glob; };
struct authz_rules { struct authz_rule *list; size_t count; bool allow; /* whoever no rule matches */ };
void authz_rules_fini(struct authz_rules *r);
/* The first rule that matches decides. Pure. */
bool authz_rules_allow(const struct authz_rules *r, const char *identity);
/* '*' stands for any text, '?' for one byte; everything else for itself. Pure; at most len(pattern) * len(text) steps. */
bool authz_glob(const char *pattern, const char *text);
/* {"policy": "deny", "rules": [{"match": "fred", "policy": "allow", "format": "exact"}]}; `from` names the text in messages. */
MUST_USE int authz_rules_parse(const char *text, size_t len, const char *from, struct authz_rules *ret, struct byre_err *err);

struct authz;
/* identity is copied. */
MUST_USE int authz_new_simple(const char *identity, struct authz **ret_a, struct byre_err *err);
/* Rules are taken over, on success. */
MUST_USE int authz_new_list(struct authz_rules *rules, struct authz **ret_a, struct byre_err *err);
/* refresh: a file that changes is read again before the next answer; while it cannot be read, nobody may connect. Blocks. */
MUST_USE int authz_new_file(const char *path, bool refresh, struct authz **ret_a, struct byre_err *err);
/* Whoever has an account that is good for this service of PAM. NOT_SUPPORTED: there is no PAM here. Blocks. */
MUST_USE int authz_new_pam(const char *service, struct authz **ret_a, struct byre_err *err);
struct authz *authz_ref(struct authz *a);
void authz_unref(struct authz *a);       /* NULL ok */

/* May this peer connect? May block. */
bool authz_allows(struct authz *a, const char *identity);

#endif
