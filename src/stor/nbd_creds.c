/* SPDX-License-Identifier: MIT
 *
 * nbd_creds.c: what a client of NBD servers proves itself with (FEATURES 3.030, 3.032).
 *
 * Purpose      Credentials that a user has made an object of, or those that a URI of nbds:// describes.
 * Owns         Nothing; the credentials are the caller's.
 * Invariants   I1  TLS that was asked for is never left out: without credentials there is no connection.
 *              I2  Files are read on the pool of blocking calls.
 * Order        None.
 * Concurrency  Any loop; suspends where files are read.
 * Failure      As tls/creds.h.
 * Tests        nbd_name_test.c, tests/daemon/nbd_tls_uri_test.py
 */
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "rt/loop.h"
#include "stor/nbd.h"
#include "tls/objects.h"

bool stor_nbd_names_files(const struct stor_nbd_opts *o)
{
    return o->tls && (o->tls->dir || o->tls->psk_file);
}

/* Where libnbd looks when no folder is given; NULL: nowhere there is an authority. Owned by the caller. */
static char *usual_folder(void)
{
    const char *home = getenv("HOME");
    const char *const places[] = { "/.pki/libnbd", "/.config/pki/libnbd" };
    for (size_t i = 0; home && home[0] && geteuid() && i < sizeof places / sizeof places[0]; i++) {
        AUTOFREE char *file = NULL;
        char *dir = NULL;
        if (asprintf(&dir, "%s%s", home, places[i]) < 0)
            return NULL;
        if (asprintf(&file, "%s/ca-cert.pem", dir) < 0)
            file = NULL;
        if (file && access(file, R_OK) == 0)
            return dir;
        free(dir);
    }
    return access("/etc/pki/libnbd/ca-cert.pem", R_OK) ? NULL : strdup("/etc/pki/libnbd");
}

/* The user's name on this machine; NULL: none. Owned by the caller. */
static char *own_name(void)
{
    struct passwd pw, *found = NULL;
    char text[2048];
    return getpwuid_r(geteuid(), &pw, text, sizeof text, &found) || !found ? NULL : strdup(found->pw_name);
}

struct making { const struct stor_nbd_uri_tls *t; struct tls_creds **ret; struct byre_err *err; };

static int64_t make_blocking(void *arg)
{
    struct making *m = arg;
    AUTOFREE char *folder = NULL;
    AUTOFREE char *user = NULL;
    struct tls_creds_opts o = { .kind = m->t->psk_file ? TLS_PSK : TLS_X509, .no_verify = m->t->no_verify, .dir = m->t->dir, .psk_file = m->t->psk_file,
        .username = m->t->username };
    if (o.kind == TLS_PSK && !o.username)
        o.username = user = own_name();
    else if (o.kind == TLS_X509)
        o.username = NULL;                   /* a name proves nothing beside a certificate */
    if (o.kind == TLS_X509 && !o.dir)
        o.dir = folder = usual_folder();
    o.system_trust = o.kind == TLS_X509 && !o.dir;
    return tls_creds_new("nbds", &o, m->ret, m->err);
}

int stor_nbd_take_creds(struct co *co, struct stor_nbd_opts *o, struct tls_set *set, struct byre_err *err)
{
    if (o->creds)
        return 0;
    if (o->tls_creds)
        return tls_set_creds(set, o->tls_creds, false, &o->creds, err);
    if (!o->tls)
        return 0;
    struct byre_err why = { 0 };
    struct making m = { o->tls, &o->creds, &why };
    int64_t r = rt_blocking(co, make_blocking, &m);
    if (!r)
        return 0;
    if (!why.code)
        return byre_fail(err, NOMEM, "no memory for TLS");
    if (err)
        *err = why;
    return (int)r;
}
