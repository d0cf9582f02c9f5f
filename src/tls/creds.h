/* SPDX-License-Identifier: MIT
 *
 * creds.h: what a side of a TLS connection proves itself with, and what it asks of the other (FEATURES 3.073).
 *
 *   x509   certificates: ca-cert.pem, ca-crl.pem (may be missing), and server-cert.pem, server-key.pem or client-cert.pem, client-key.pem
 *   psk    keys that both sides know: keys.psk, lines of user:key in hexadecimal
 *   anon   nobody proves anything: against listeners alone, not against who stands between
 *
 * Concurrency  Counted, constant once made: used from any thread.
 */
#ifndef TLS_CREDS_H
#define TLS_CREDS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum tls_kind { TLS_ANON, TLS_PSK, TLS_X509 };
struct tls_creds_opts {
    enum tls_kind kind;
    bool server;                     /* the side that listens */
    bool no_verify;                  /* verify-peer=off: the other side need not prove who it is */
    bool no_sanity_check;            /* own certificates are taken as they are */
    const char *dir;                 /* of the files; NULL: none, for ANON, and with one of the next two */
    const char *psk_file;            /* PSK, client: the file itself, instead of dir */
    bool system_trust;               /* X509, client without dir: the authorities that this machine trusts */
    const char *priority;            /* of GnuTLS; NULL: TLS_PRIORITY */
    const char *username;            /* PSK, client; NULL: "qemu" */
    const char *password;            /* of the private key; NULL: it has none */
};
#define TLS_PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

struct tls_creds;
/* Reads the files: blocks. `id` names the object in messages. No message holds a key or a password. */
MUST_USE int tls_creds_new(const char *id, const struct tls_creds_opts *o, struct tls_creds **ret_c, struct byre_err *err);
struct tls_creds *tls_creds_ref(struct tls_creds *c);
void tls_creds_unref(struct tls_creds *c);       /* NULL ok */

const char *tls_creds_id(const struct tls_creds *c);
bool tls_creds_is_server(const struct tls_creds *c);
/* Does a peer that gets through have a proved name? */
bool tls_creds_names_peer(const struct tls_creds *c);
/* Is the name of the host compared with the peer's certificate? */
bool tls_creds_needs_hostname(const struct tls_creds *c);

#endif
