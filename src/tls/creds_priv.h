/* SPDX-License-Identifier: MIT
 *
 * creds_priv.h: the inside of credentials. Private to src/tls.
 */
#ifndef TLS_CREDS_PRIV_H
#define TLS_CREDS_PRIV_H

#include <stdatomic.h>

#include "tls/creds.h"
#include "tls/gnutls.h"

struct tls_creds {
    atomic_uint refs;
    char *id;
    enum tls_kind kind;
    bool server, verify;
    gnutls_priority_t priority;
    void *cred;                      /* of GnuTLS, as kind and server say */
};

/* Bits of a failed verification as text. */
const char *tls_verify_text(unsigned status);
/* creds_x509.c: fills c->cred. */
MUST_USE int tls_x509_load(struct tls_creds *c, const struct tls_creds_opts *o, struct byre_err *err);

#endif
