/* SPDX-License-Identifier: MIT
 *
 * creds.c: credentials of TLS.
 *
 * Purpose      From a folder of files to what a session of GnuTLS is set up with.
 * Owns         the library's objects; keys are the library's alone once they are loaded
 * Invariants   I1 nothing changes once tls_creds_new has returned
 *              I2 bytes of keys and passwords are in no message; copies that were made here are wiped
 * Concurrency  made on one thread that may block; then any
 * Failure      nothing is made; the message names the object and the file
 * Tests        tls_test.c, tests/daemon/tls_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "tls/creds_priv.h"

#define USER_DEFAULT "qemu"
#define PSK_LINE_MAX 1024

/* ---- life ---- */

static void free_cred(struct tls_creds *c)
{
    if (!c->cred)
        return;
    switch (c->kind) {
    case TLS_X509:
        gnutls_lib.certificate_free_credentials(c->cred);
        break;
    case TLS_PSK:
        if (c->server)
            gnutls_lib.psk_free_server_credentials(c->cred);
        else
            gnutls_lib.psk_free_client_credentials(c->cred);
        break;
    case TLS_ANON:
        if (c->server)
            gnutls_lib.anon_free_server_credentials(c->cred);
        else
            gnutls_lib.anon_free_client_credentials(c->cred);
        break;
    }
}

static void creds_free(struct tls_creds *c)
{
    free_cred(c);
    if (c->priority)
        gnutls_lib.priority_deinit(c->priority);
    free(c->id);
    free(c);
}

struct tls_creds *tls_creds_ref(struct tls_creds *c)
{
    atomic_fetch_add(&c->refs, 1);
    return c;
}

void tls_creds_unref(struct tls_creds *c)
{
    if (c && atomic_fetch_sub(&c->refs, 1) == 1)
        creds_free(c);
}

const char *tls_creds_id(const struct tls_creds *c)
{
    return c->id;
}

bool tls_creds_is_server(const struct tls_creds *c)
{
    return c->server;
}

bool tls_creds_names_peer(const struct tls_creds *c)
{
    return c->kind == TLS_PSK || (c->kind == TLS_X509 && c->verify);
}

bool tls_creds_needs_hostname(const struct tls_creds *c)
{
    return c->kind == TLS_X509 && !c->server && c->verify;
}

/* ---- pre-shared keys ---- */

/* The key of `user` in lines of user:key. *ret_key is owned by the caller, who wipes it. */
static int find_key(FILE *f, const char *user, char **ret_key)
{
    char line[PSK_LINE_MAX];
    size_t n = strlen(user);
    int r = -ENOENT;
    while (r == -ENOENT && fgets(line, sizeof line, f)) {
        size_t len = strcspn(line, "\r\n");
        if (!line[len] && !feof(f)) {        /* longer than any key */
            r = -E2BIG;
            break;
        }
        line[len] = 0;
        if (strncmp(line, user, n) || line[n] != ':')
            continue;
        *ret_key = strdup(line + n + 1);
        r = *ret_key ? 0 : -ENOMEM;
    }
    if (r == -ENOENT && ferror(f))
        r = -EIO;
    explicit_bzero(line, sizeof line);
    return r;
}

static int set_key(struct tls_creds *c, const char *user, char *key, const char *path, struct byre_err *err)
{
    gnutls_datum_t d = { (unsigned char *)key, (unsigned)strlen(key) };
    int r = gnutls_lib.psk_set_client_credentials(c->cred, user, &d, GNUTLS_PSK_KEY_HEX);
    explicit_bzero(key, d.size);
    return r < 0 ? byre_fail(err, BAD_ARGUMENT, "%s: the key of '%s' is not taken: %s", path, user, gnutls_lib.strerror(r)) : 0;
}

static int load_psk_client(struct tls_creds *c, const char *user, const char *path, struct byre_err *err)
{
    gnutls_psk_client_credentials_t cred;
    if (gnutls_lib.psk_allocate_client_credentials(&cred) < 0)
        return byre_fail(err, NOMEM, "no memory for TLS");
    c->cred = cred;
    FILE *f = fopen(path, "re");
    if (!f)
        return byre_fail_code(err, SYSTEM, -errno, "%s: cannot be opened for '%s': %s", path, c->id, strerror(errno));
    setvbuf(f, NULL, _IONBF, 0);             /* I2: no copy in a buffer of the C library */
    AUTOFREE char *key = NULL;
    int r = find_key(f, user, &key);
    fclose(f);
    if (r == -ENOENT)
        return byre_fail(err, NOT_FOUND, "%s: there is no key of '%s'", path, user);
    if (r)
        return byre_fail_code(err, SYSTEM, r, "%s: cannot be read for '%s': %s", path, c->id, r == -E2BIG ? "a line is too long" : strerror(-r));
    return set_key(c, user, key, path, err);
}

/* The file is looked into at each handshake: keys may come and go. */
static int load_psk_server(struct tls_creds *c, const char *path, struct byre_err *err)
{
    gnutls_psk_server_credentials_t cred;
    if (gnutls_lib.psk_allocate_server_credentials(&cred) < 0)
        return byre_fail(err, NOMEM, "no memory for TLS");
    c->cred = cred;
    FILE *f = fopen(path, "re");
    if (!f)
        return byre_fail_code(err, SYSTEM, -errno, "%s: cannot be opened for '%s': %s", path, c->id, strerror(errno));
    fclose(f);
    int r = gnutls_lib.psk_set_server_credentials_file(cred, path);
    return r < 0 ? byre_fail(err, BAD_ARGUMENT, "%s: cannot be used by '%s': %s", path, c->id, gnutls_lib.strerror(r)) : 0;
}

static int load_psk(struct tls_creds *c, const struct tls_creds_opts *o, struct byre_err *err)
{
    if (o->psk_file)
        return load_psk_client(c, o->username ? o->username : USER_DEFAULT, o->psk_file, err);
    AUTOFREE char *folder = realpath(o->dir, NULL);      /* a daemon may leave its folder, and the file is read later */
    AUTOFREE char *path = NULL;
    if (!folder)
        return byre_fail_code(err, SYSTEM, -errno, "%s: cannot be used by '%s': %s", o->dir, c->id, strerror(errno));
    if (asprintf(&path, "%s/keys.psk", folder) < 0)
        path = NULL;
    if (!path)
        return byre_fail(err, NOMEM, "no memory for TLS");
    return c->server ? load_psk_server(c, path, err) : load_psk_client(c, o->username ? o->username : USER_DEFAULT, path, err);
}

/* ---- nobody ---- */

static int load_anon(struct tls_creds *c, struct byre_err *err)
{
    gnutls_anon_server_credentials_t server;
    gnutls_anon_client_credentials_t client;
    int r = c->server ? gnutls_lib.anon_allocate_server_credentials(&server) : gnutls_lib.anon_allocate_client_credentials(&client);
    if (r < 0)
        return byre_fail(err, NOMEM, "no memory for TLS");
    c->cred = c->server ? (void *)server : (void *)client;
    return 0;
}

/* ---- making ---- */

/* What each kind adds to the priority: others would never be agreed on. TLS 1.3 knows no anonymous servers. */
static int set_priority(struct tls_creds *c, const char *asked, struct byre_err *err)
{
    static const char *const more[] = { [TLS_ANON] = ":-VERS-TLS1.3:+ANON-ECDH:+ANON-DH", [TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK", [TLS_X509] = "" };
    AUTOFREE char *text = NULL;
    const char *at = NULL;
    if (asprintf(&text, "%s%s", asked ? asked : TLS_PRIORITY, more[c->kind]) < 0) {
        text = NULL;
        return byre_fail(err, NOMEM, "no memory for TLS");
    }
    int r = gnutls_lib.priority_init(&c->priority, text, &at);
    if (r >= 0)
        return 0;
    c->priority = NULL;
    return byre_fail(err, BAD_OPTION, "'%s': the priority '%s' is not understood at '%.64s'", c->id, asked ? asked : TLS_PRIORITY, at ? at : "");
}

static int check_opts(const char *id, const struct tls_creds_opts *o, struct byre_err *err)
{
    if (!o->dir && o->kind != TLS_ANON && !o->psk_file && !o->system_trust)
        return byre_fail(err, BAD_OPTION, "'%s' needs 'dir', the folder of its files", id);
    if (o->username && (o->kind != TLS_PSK || o->server))
        return byre_fail(err, BAD_OPTION, "'%s': 'username' is for the client's side of pre-shared keys", id);
    return 0;
}

static int load(struct tls_creds *c, const struct tls_creds_opts *o, struct byre_err *err)
{
    switch (c->kind) {
    case TLS_X509: return tls_x509_load(c, o, err);
    case TLS_PSK: return load_psk(c, o, err);
    default: return load_anon(c, err);
    }
}

int tls_creds_new(const char *id, const struct tls_creds_opts *o, struct tls_creds **ret_c, struct byre_err *err)
{
    int r = check_opts(id, o, err);
    if (r)
        return r;
    struct tls_creds *c = calloc(1, sizeof *c);
    if (c)
        c->id = strdup(id);
    if (!c || !c->id) {
        free(c);
        return byre_fail(err, NOMEM, "no memory for an object");
    }
    atomic_init(&c->refs, 1);
    c->kind = o->kind;
    c->server = o->server;
    c->verify = !o->no_verify;
    r = gnutls_lib_load(err);
    if (!r)
        r = set_priority(c, o->priority, err);
    if (!r)
        r = load(c, o, err);
    if (r)
        creds_free(c);
    else
        *ret_c = c;
    return r;
}
