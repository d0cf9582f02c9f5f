/* SPDX-License-Identifier: MIT
 *
 * gnutls.h: GnuTLS, loaded when the first credentials are made. Private to src/tls.
 *
 * A program that speaks no TLS does not pay for the library: nothing is linked with it (rt/dlib.h).
 */
#ifndef TLS_GNUTLS_H
#define TLS_GNUTLS_H

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "base/err.h"

/* Functions by their names without "gnutls_". */
#define TLS_FUNCTIONS(X)                                                                                                                     \
    X(init) X(deinit) X(strerror) X(priority_init) X(priority_deinit) X(priority_set) X(credentials_set) X(error_is_fatal)                    \
    X(handshake) X(record_send) X(record_recv) X(alert_send) X(alert_send_appropriate) X(alert_get) X(alert_get_name) X(bye)                  \
    X(transport_set_ptr) X(transport_set_push_function) X(transport_set_pull_function) X(transport_set_pull_timeout_function)                 \
    X(transport_set_errno) X(server_name_set)                                                                                                \
    X(certificate_allocate_credentials) X(certificate_free_credentials) X(certificate_set_x509_trust_file) X(certificate_set_x509_system_trust) X(certificate_set_x509_crl_file)   \
    X(certificate_set_x509_key_file2) X(certificate_server_set_request) X(certificate_verify_peers) X(certificate_get_peers)                  \
    X(certificate_get_crt_raw) X(certificate_get_trust_list)                                                                                  \
    X(x509_crt_init) X(x509_crt_deinit) X(x509_crt_import) X(x509_crt_get_dn) X(x509_trust_list_verify_crt2)                                  \
    X(psk_allocate_server_credentials) X(psk_free_server_credentials) X(psk_set_server_credentials_file) X(psk_server_get_username)           \
    X(psk_allocate_client_credentials) X(psk_free_client_credentials) X(psk_set_client_credentials)                                           \
    X(anon_allocate_server_credentials) X(anon_free_server_credentials) X(anon_allocate_client_credentials) X(anon_free_client_credentials)

struct gnutls_lib {
#define TLS_MEMBER(name) __typeof__(gnutls_##name) *name;
    TLS_FUNCTIONS(TLS_MEMBER)
#undef TLS_MEMBER
};

/* Members are called as the library's functions are. Constant once gnutls_lib_load has succeeded: whoever holds credentials may use it. */
extern struct gnutls_lib gnutls_lib;

/* Blocks: reads files. NOT_SUPPORTED: the library is not there. */
MUST_USE int gnutls_lib_load(struct byre_err *err);

#endif
