/* SPDX-License-Identifier: MIT
 *
 * nbd_name.c: names of disks on NBD servers (FEATURES 3.030).
 *
 * Purpose      URIs as the NBD project describes them, and the older form with colons; the way back to a URI.
 * Owns         Nothing; fills a struct stor_nbd_opts.
 * Invariants   I1  A text that comes out of stor_nbd_text reads back as the same server and export, or (a connection that was passed) not at all.
 *              I2  What a URI says and we do not know is refused, never skipped.
 * Order        None.
 * Concurrency  Pure. Names come from images: they are hostile.
 * Failure      *ret is empty.
 * Tests        nbd_name_test.c
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "stor/nbd.h"
#include "tls/objects.h"

#define EXPORT_MAX 4096u                  /* bytes of a name, by the protocol */

static void uri_tls_free(struct stor_nbd_uri_tls *t)
{
    if (!t)
        return;
    free(t->dir);
    free(t->psk_file);
    free(t->username);
    free(t);
}

void stor_nbd_opts_fini(struct stor_nbd_opts *o)
{
    free(o->path);
    free(o->host);
    free(o->port);
    free(o->fdname);
    free(o->export);
    free(o->tls_creds);
    free(o->tls_hostname);
    free(o->x_dirty_bitmap);
    uri_tls_free(o->tls);
    tls_creds_unref(o->creds);
    *o = (struct stor_nbd_opts){ 0 };
}

static int copy(const char *from, char **to)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

static int copy_tls(const struct stor_nbd_uri_tls *from, struct stor_nbd_uri_tls **to)
{
    *to = from ? calloc(1, sizeof **to) : NULL;
    if (!*to)
        return from ? -ENOMEM : 0;
    (*to)->no_verify = from->no_verify;
    return copy(from->dir, &(*to)->dir) || copy(from->psk_file, &(*to)->psk_file) || copy(from->username, &(*to)->username) ? -ENOMEM : 0;
}

int stor_nbd_opts_copy(const struct stor_nbd_opts *from, struct stor_nbd_opts *ret)
{
    struct stor_nbd_opts o = *from;
    o.path = o.host = o.port = o.fdname = o.export = o.tls_creds = o.tls_hostname = o.x_dirty_bitmap = NULL;
    o.tls = NULL;
    o.creds = from->creds ? tls_creds_ref(from->creds) : NULL;
    if (copy_tls(from->tls, &o.tls) || copy(from->x_dirty_bitmap, &o.x_dirty_bitmap) || copy(from->tls_creds, &o.tls_creds) ||
        copy(from->tls_hostname, &o.tls_hostname) || copy(from->fdname, &o.fdname) || copy(from->path, &o.path) || copy(from->host, &o.host) || copy(from->port, &o.port) || copy(from->export, &o.export)) {
        stor_nbd_opts_fini(&o);
        return -ENOMEM;
    }
    *ret = o;
    return 0;
}

int stor_nbd_check(const struct stor_nbd_opts *o, struct byre_err *err)
{
    struct sockaddr_un un;
    if (o->tls && o->tls_creds)
        return byre_fail(err, BAD_OPTION, "NBD: TLS is asked for twice, by a URI of nbds and by tls-creds");
    if (o->x_dirty_bitmap && (!o->x_dirty_bitmap[0] || strlen(o->x_dirty_bitmap) > EXPORT_MAX))
        return byre_fail(err, BAD_OPTION, "NBD: x-dirty-bitmap is the name of a meta context, of 1 to %u bytes", EXPORT_MAX);
    if (o->tls_hostname && !o->tls_creds && !o->tls)
        return byre_fail(err, BAD_OPTION, "NBD: tls-hostname needs tls-creds");
    if (o->where == STOR_NBD_UNIX && (!o->path || !o->path[0]))
        return byre_fail(err, BAD_OPTION, "NBD: the path of the server's socket is missing");
    if (o->where == STOR_NBD_UNIX && strlen(o->path) >= sizeof un.sun_path)
        return byre_fail(err, BAD_OPTION, "NBD: the path of the socket has more than %zu bytes: '%s'", sizeof un.sun_path - 1, o->path);
    if (o->where == STOR_NBD_FD && (!o->fdname || !o->fdname[0]))
        return byre_fail(err, BAD_OPTION, "NBD: the name of the descriptor (server.str) is missing");
    if (o->where != STOR_NBD_UNIX && o->where != STOR_NBD_FD && (!o->host || !o->host[0]))
        return byre_fail(err, BAD_OPTION, "NBD: the host of the server is missing");
    if (o->where == STOR_NBD_INET && o->ipv4 == STOR_NBD_OFF && o->ipv6 == STOR_NBD_OFF)
        return byre_fail(err, BAD_OPTION, "NBD: neither IPv4 nor IPv6 is allowed");
    if (o->export && strlen(o->export) > EXPORT_MAX)
        return byre_fail(err, BAD_OPTION, "NBD: the name of the export has more than %u bytes", EXPORT_MAX);
    if (o->connections > STOR_NBD_CONNECTIONS_MAX)
        return byre_fail(err, BAD_OPTION, "NBD: at most %d connections can be made", STOR_NBD_CONNECTIONS_MAX);
    if (o->reconnect_s > UINT32_MAX || o->open_timeout_s > UINT32_MAX)
        return byre_fail(err, BAD_OPTION, "NBD: a time of more than %u seconds", UINT32_MAX);
    return 0;
}

/* ---- reading ---- */

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* n bytes without their %-codes. NULL: malformed (*ret_nomem false) or no memory. */
static char *decode(const char *text, size_t n, bool *ret_nomem)
{
    char *out = malloc(n + 1);
    size_t k = 0;
    *ret_nomem = !out;
    for (size_t i = 0; out && i < n; i++) {
        char c = text[i];
        if (c == '%') {
            int high = n - i > 2 ? hex(text[i + 1]) : -1, low = n - i > 2 ? hex(text[i + 2]) : -1;
            c = (char)(high * 16 + low);
            if (high < 0 || low < 0 || !c) {
                free(out);
                return NULL;
            }
            i += 2;
        }
        out[k++] = c;
    }
    if (out)
        out[k] = 0;
    return out;
}

static int take(const char *whole, const char *text, size_t n, char **ret, struct byre_err *err)
{
    bool nomem;
    free(*ret);
    *ret = decode(text, n, &nomem);
    if (*ret)
        return 0;
    return nomem ? byre_fail(err, NOMEM, "no memory for a name") : byre_fail(err, BAD_ARGUMENT, "'%s': a %%-code is malformed", whole);
}

/* HOST, HOST:PORT, [HOST]:PORT. */
static int take_authority(const char *whole, const char *text, size_t n, struct stor_nbd_opts *o, struct byre_err *err)
{
    const char *end = text + n, *host = text, *host_end, *rest;
    if (n && *text == '[') {
        const char *close = memchr(text, ']', n);
        if (!close)
            return byre_fail(err, BAD_ARGUMENT, "'%s': ']' is missing behind the address", whole);
        host++;
        host_end = close;
        rest = close + 1;
    } else {
        const char *colon = memchr(text, ':', n);
        host_end = rest = colon ? colon : end;
    }
    if (rest != end && *rest != ':')
        return byre_fail(err, BAD_ARGUMENT, "'%s': the host is malformed", whole);
    int r = take(whole, host, (size_t)(host_end - host), &o->host, err);
    if (!r && rest != end && rest + 1 != end)
        r = take(whole, rest + 1, (size_t)(end - rest - 1), &o->port, err);
    return r;
}

/* USER@ in front of the authority: *n bytes of it are left. */
static int take_user(const char *whole, const char **text, size_t *n, struct stor_nbd_opts *o, struct byre_err *err)
{
    const char *at = memchr(*text, '@', *n);
    if (!at)
        return 0;
    if (!o->tls)
        return byre_fail(err, NOT_SUPPORTED, "'%s': the name of a user has no meaning without TLS", whole);
    size_t user = (size_t)(at - *text);
    int r = take(whole, *text, user, &o->tls->username, err);
    *text = at + 1;
    *n -= user + 1;
    return r;
}

static int take_verify(const char *whole, const char *text, size_t n, bool *ret_off, struct byre_err *err)
{
    static const char *const words[] = { "true", "1", "on", "yes", "false", "0", "off", "no" };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strlen(words[i]) == n && !strncmp(words[i], text, n)) {
            *ret_off = i >= 4;
            return 0;
        }
    return byre_fail(err, BAD_ARGUMENT, "'%s': 'tls-verify-peer' is true or false", whole);
}

/* One "KEY=VALUE" of n bytes. */
static int take_parameter(const char *whole, const char *text, size_t n, struct stor_nbd_opts *o, struct byre_err *err)
{
    const struct { const char *key; char **to; } texts[] = {
        { "socket=", o->where == STOR_NBD_UNIX && !o->abstract ? &o->path : NULL }, { "tls-certificates=", o->tls ? &o->tls->dir : NULL },
        { "tls-psk-file=", o->tls ? &o->tls->psk_file : NULL }, { "tls-hostname=", o->tls ? &o->tls_hostname : NULL },
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t k = strlen(texts[i].key);
        if (n < k || strncmp(text, texts[i].key, k))
            continue;
        if (!texts[i].to || *texts[i].to)
            return byre_fail(err, BAD_ARGUMENT, "'%s': '%.*s' belongs to %s, once", whole, (int)k - 1, text, i ? "nbds" : "nbd+unix");
        return take(whole, text + k, n - k, texts[i].to, err);
    }
    if (o->tls && n > 16 && !strncmp(text, "tls-verify-peer=", 16))
        return take_verify(whole, text + 16, n - 16, &o->tls->no_verify, err);
    return byre_fail(err, NOT_SUPPORTED, "'%s': the parameter '%.*s' is not supported", whole, (int)n, text);
}

/* The part behind '?'. */
static int take_query(const char *whole, const char *text, struct stor_nbd_opts *o, struct byre_err *err)
{
    int r = 0;
    while (*text && !r) {
        size_t n = strcspn(text, "&");
        r = take_parameter(whole, text, n, o, err);
        text += n + (text[n] == '&');
    }
    if (!r && o->tls && o->tls->dir && o->tls->psk_file)
        r = byre_fail(err, BAD_ARGUMENT, "'%s': certificates, or keys that both sides know: not both", whole);
    return r;
}

static int parse_uri(const char *whole, const char *rest, struct stor_nbd_opts *o, struct byre_err *err)
{
    if (strchr(rest, '#'))
        return byre_fail(err, BAD_ARGUMENT, "'%s': a fragment has no meaning here", whole);
    size_t authority = strcspn(rest, "/?"), path;
    const char *p = rest + authority;
    int r = take_user(whole, &rest, &authority, o, err);
    if (r)
        return r;
    if (o->where != STOR_NBD_UNIX)
        r = take_authority(whole, rest, authority, o, err);
    else if (authority)
        r = byre_fail(err, BAD_ARGUMENT, "'%s': nbd+unix names no host; write nbd+unix:///EXPORT?socket=PATH", whole);
    if (r)
        return r;
    p += *p == '/';
    path = strcspn(p, "?");
    r = take(whole, p, path, &o->export, err);
    p += path;
    if (!r && *p == '?')
        r = take_query(whole, p + 1, o, err);
    if (!r && o->where == STOR_NBD_INET && !o->host[0]) {
        free(o->host);
        o->host = strdup("localhost");
        r = o->host ? 0 : byre_fail(err, NOMEM, "no memory for a name");
    }
    return r;
}

/* nbd:HOST:PORT[:exportname=X], nbd:unix:PATH[:exportname=X]. Nothing is encoded in it. */
static int parse_old(const char *whole, const char *rest, struct stor_nbd_opts *o, struct byre_err *err)
{
    static const char mark[] = ":exportname=";
    const char *export = strstr(rest, mark);
    size_t n = export ? (size_t)(export - rest) : strlen(rest);
    int r = 0;
    if (export && !(o->export = strdup(export + sizeof mark - 1)))
        return byre_fail(err, NOMEM, "no memory for a name");
    o->where = STOR_NBD_INET;
    if (n >= 5 && !strncmp(rest, "unix:", 5)) {
        o->where = STOR_NBD_UNIX;
        o->path = strndup(rest + 5, n - 5);
        return o->path ? 0 : byre_fail(err, NOMEM, "no memory for a name");
    }
    r = take_authority(whole, rest, n, o, err);
    if (!r && !o->port)
        r = byre_fail(err, BAD_ARGUMENT, "'%s': the port is missing; write nbd:HOST:PORT or nbd:unix:PATH", whole);
    return r;
}

static const struct scheme { const char *name; enum stor_nbd_where where; bool tls; } schemes[] = {
    { "nbd://", STOR_NBD_INET, false }, { "nbd+tcp://", STOR_NBD_INET, false }, { "nbd+unix://", STOR_NBD_UNIX, false }, { "nbd+vsock://", STOR_NBD_VSOCK, false },
    { "nbds://", STOR_NBD_INET, true }, { "nbds+tcp://", STOR_NBD_INET, true }, { "nbds+unix://", STOR_NBD_UNIX, true }, { "nbds+vsock://", STOR_NBD_VSOCK, true },
};

bool stor_nbd_is_name(const char *text)
{
    return !strncmp(text, "nbd:", 4) || !strncmp(text, "nbd+", 4) || !strncmp(text, "nbds:", 5) || !strncmp(text, "nbds+", 5);
}

int stor_nbd_parse(const char *text, struct stor_nbd_opts *ret, struct byre_err *err)
{
    int r = 1;
    *ret = (struct stor_nbd_opts){ 0 };
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0] && r == 1; i++) {
        size_t n = strlen(schemes[i].name);
        if (strncmp(text, schemes[i].name, n) == 0) {
            ret->where = schemes[i].where;
            ret->tls = schemes[i].tls ? calloc(1, sizeof *ret->tls) : NULL;
            r = schemes[i].tls && !ret->tls ? byre_fail(err, NOMEM, "no memory for a name") : parse_uri(text, text + n, ret, err);
        }
    }
    if (r == 1 && !strncmp(text, "nbd:", 4))
        r = parse_old(text, text + 4, ret, err);
    if (r == 1 && !strncmp(text, "nbd+fd:", 7))
        r = byre_fail(err, NOT_SUPPORTED, "'%s': was a connection that somebody passed, and cannot be made by a name", text);
    if (r == 1)
        r = byre_fail(err, BAD_ARGUMENT, "'%s': is no name of a disk on an NBD server", text);
    if (!r)
        r = stor_nbd_check(ret, err);
    if (r)
        stor_nbd_opts_fini(ret);
    return r;
}

/* ---- writing ---- */

static void put(FILE *f, const char *text, const char *also)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (isalnum(c) || strchr("-._~", c) || strchr(also, c))
            fputc(c, f);
        else
            fprintf(f, "%%%02X", c);
    }
}

/* USER@HOST:PORT, as far as there is any of it. */
static void put_authority(FILE *f, const struct stor_nbd_opts *o)
{
    if (o->tls && o->tls->username) {
        put(f, o->tls->username, "");
        fputc('@', f);
    }
    if (o->where == STOR_NBD_FD)
        put(f, o->fdname, "");
    if (o->where == STOR_NBD_UNIX || o->where == STOR_NBD_FD)
        return;
    bool colons = strchr(o->host, ':');
    fputs(colons ? "[" : "", f);
    put(f, o->host, ":");
    fputs(colons ? "]" : "", f);
    if (o->port) {
        fputc(':', f);
        put(f, o->port, "");
    }
}

static void put_parameter(FILE *f, char *sign, const char *key, const char *value)
{
    if (!value)
        return;
    fprintf(f, "%c%s=", *sign, key);
    put(f, value, "/:");
    *sign = '&';
}

char *stor_nbd_text(const struct stor_nbd_opts *o)
{
    static const char *const begin[] = { [STOR_NBD_UNIX] = "+unix", [STOR_NBD_INET] = "", [STOR_NBD_VSOCK] = "+vsock", [STOR_NBD_FD] = "+fd" };
    char *text = NULL, sign = '?';
    size_t len;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    fprintf(f, "nbd%s%s://", o->tls ? "s" : "", begin[o->where]);
    put_authority(f, o);
    if (o->export && o->export[0])
        fputc('/', f);
    put(f, o->export ? o->export : "", "/:");
    if (o->where == STOR_NBD_UNIX)
        put_parameter(f, &sign, o->abstract ? "abstract" : "socket", o->path);
    if (o->tls) {
        put_parameter(f, &sign, "tls-certificates", o->tls->dir);
        put_parameter(f, &sign, "tls-psk-file", o->tls->psk_file);
        put_parameter(f, &sign, "tls-hostname", o->tls_hostname);
        put_parameter(f, &sign, "tls-verify-peer", o->tls->no_verify ? "false" : NULL);
    }
    bool bad = ferror(f);
    if (fclose(f) || bad) {
        free(text);
        return NULL;
    }
    return text;
}
