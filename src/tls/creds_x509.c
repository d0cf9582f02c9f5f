/* SPDX-License-Identifier: MIT
 *
 * creds_x509.c: certificates.
 *
 * Purpose      The files of a folder, and whether own certificates are such that a peer would take them.
 * Owns         nothing: what is loaded belongs to the credentials
 * Invariants   I1 a password is in no message
 * Concurrency  a thread that may block
 * Failure      as creds.c
 * Tests        tests/daemon/tls_test.py
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tls/creds_priv.h"

#define CHAIN_MAX 16

const char *tls_verify_text(unsigned status)
{
    static const struct { unsigned bit; const char *text; } all[] = {
        { GNUTLS_CERT_REVOKED, "it was revoked" },
        { GNUTLS_CERT_EXPIRED, "it has expired" },
        { GNUTLS_CERT_NOT_ACTIVATED, "it is not valid yet" },
        { GNUTLS_CERT_UNEXPECTED_OWNER, "it is that of another host" },
        { GNUTLS_CERT_PURPOSE_MISMATCH, "it was made for another purpose" },
        { GNUTLS_CERT_SIGNER_NOT_FOUND, "it is signed by nobody known (ca-cert.pem)" },
        { GNUTLS_CERT_SIGNER_NOT_CA, "its signer may not sign" },
        { GNUTLS_CERT_SIGNER_CONSTRAINTS_FAILURE, "its signer may not sign this" },
        { GNUTLS_CERT_INSECURE_ALGORITHM, "its algorithm is too weak" },
        { GNUTLS_CERT_SIGNATURE_FAILURE, "its signature is wrong" },
        { GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED, "the list of revocations (ca-crl.pem) is too old" },
        { GNUTLS_CERT_REVOCATION_DATA_ISSUED_IN_FUTURE, "the list of revocations (ca-crl.pem) is from the future" },
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (status & all[i].bit)
            return all[i].text;
    return "it is not valid";
}

/* "dir/name"; *ret_path NULL: there is no such file. */
static int find(const char *dir, const char *name, bool needed, char **ret_path, struct byre_err *err)
{
    char *path = NULL;
    *ret_path = NULL;
    if (asprintf(&path, "%s/%s", dir, name) < 0)
        return byre_fail(err, NOMEM, "no memory for TLS");
    if (access(path, R_OK)) {
        int e = errno;
        bool missing = e == ENOENT && !needed;
        int r = missing ? 0 : byre_fail_code(err, SYSTEM, -e, "%s: cannot be read: %s", path, strerror(e));
        free(path);
        return r;
    }
    *ret_path = path;
    return 0;
}

static int load_authorities(struct tls_creds *c, const char *dir, struct byre_err *err)
{
    AUTOFREE char *ca = NULL;
    AUTOFREE char *crl = NULL;
    /* A client that does not look needs no authority. */
    int r = find(dir, "ca-cert.pem", c->server || c->verify, &ca, err);
    if (!r)
        r = find(dir, "ca-crl.pem", false, &crl, err);
    if (r)
        return r;
    r = ca ? gnutls_lib.certificate_set_x509_trust_file(c->cred, ca, GNUTLS_X509_FMT_PEM) : 1;
    if (r <= 0)
        return byre_fail(err, BAD_ARGUMENT, "%s: no certificate of an authority: %s", ca ? ca : dir, r ? gnutls_lib.strerror(r) : "there is none in it");
    r = crl ? gnutls_lib.certificate_set_x509_crl_file(c->cred, crl, GNUTLS_X509_FMT_PEM) : 1;
    return r < 0 ? byre_fail(err, BAD_ARGUMENT, "%s: no list of revocations: %s", crl, gnutls_lib.strerror(r)) : 0;
}

/* Own certificate and the ones behind it; *ret_n certificates, to be freed. */
static int own_chain(struct tls_creds *c, gnutls_x509_crt_t list[CHAIN_MAX], unsigned *ret_n)
{
    gnutls_datum_t raw;
    *ret_n = 0;
    while (*ret_n < CHAIN_MAX && gnutls_lib.certificate_get_crt_raw(c->cred, 0, *ret_n, &raw) >= 0) {
        if (gnutls_lib.x509_crt_init(&list[*ret_n]) < 0)
            return -ENOMEM;
        ++*ret_n;
        if (gnutls_lib.x509_crt_import(list[*ret_n - 1], &raw, GNUTLS_X509_FMT_DER) < 0)
            return -EINVAL;
    }
    return 0;
}

/* Would a peer that has the same authority take it? A wrong clock or a certificate of yesterday is better told here than at each handshake. */
static int check_own(struct tls_creds *c, const char *path, struct byre_err *err)
{
    gnutls_x509_crt_t list[CHAIN_MAX];
    gnutls_x509_trust_list_t trust;
    gnutls_typed_vdata_st purpose = { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)(c->server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT) };
    unsigned n, status = 0;
    int r = own_chain(c, list, &n);
    gnutls_lib.certificate_get_trust_list(c->cred, &trust);
    if (!r && gnutls_lib.x509_trust_list_verify_crt2(trust, list, n, &purpose, 1, 0, &status, NULL) < 0)
        r = -EINVAL;
    while (n)
        gnutls_lib.x509_crt_deinit(list[--n]);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "no memory for TLS");
    if (r || status)
        return byre_fail(err, BAD_ARGUMENT, "%s: nobody would accept this certificate: %s", path, tls_verify_text(status));
    return 0;
}

static int load_own(struct tls_creds *c, const struct tls_creds_opts *o, struct byre_err *err)
{
    AUTOFREE char *cert = NULL;
    AUTOFREE char *key = NULL;
    int r = find(o->dir, c->server ? "server-cert.pem" : "client-cert.pem", c->server, &cert, err);
    if (!r)
        r = find(o->dir, c->server ? "server-key.pem" : "client-key.pem", c->server || cert, &key, err);
    if (r || (!cert && !key))
        return r;
    if (!cert)
        return byre_fail(err, NOT_FOUND, "%s has no certificate beside it (client-cert.pem)", key);
    r = gnutls_lib.certificate_set_x509_key_file2(c->cred, cert, key, GNUTLS_X509_FMT_PEM, o->password, 0);
    if (r < 0)
        return byre_fail(err, BAD_ARGUMENT, "%s and %s are not taken%s: %s", cert, key, o->password ? "" : " (without 'passwordid')", gnutls_lib.strerror(r));
    return o->no_sanity_check || (!c->server && !c->verify) ? 0 : check_own(c, cert, err);
}

/* For clients: what everybody on this machine trusts, and no certificate of its own. */
static int load_system(struct tls_creds *c, struct byre_err *err)
{
    int r = c->verify ? gnutls_lib.certificate_set_x509_system_trust(c->cred) : 1;
    return r <= 0 ? byre_fail(err, NOT_FOUND, "this machine trusts no authority: a folder with ca-cert.pem is needed (tls-certificates)") : 0;
}

int tls_x509_load(struct tls_creds *c, const struct tls_creds_opts *o, struct byre_err *err)
{
    gnutls_certificate_credentials_t cred;
    if (gnutls_lib.certificate_allocate_credentials(&cred) < 0)
        return byre_fail(err, NOMEM, "no memory for TLS");
    c->cred = cred;
    if (!o->dir)
        return load_system(c, err);
    int r = load_authorities(c, o->dir, err);
    return r ? r : load_own(c, o, err);
}
