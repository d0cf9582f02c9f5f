/* SPDX-License-Identifier: MIT
 *
 * names_nbd.c: disks of NBD servers in file names (FEATURES 3.030, 3.049).
 *
 * Purpose     URIs, and the options of driver "nbd" in json: names: server.type, server.host, export, reconnect-delay ...
 * Owns        struct name_nbd.
 * Invariants  I1  What the driver has and we do not is refused by name, never skipped.
 *             I2  After name_nbd_settle the path of the name is the URI of the same disk: two spellings of one server become one name.
 * Order       None.
 * Concurrency Pure.
 * Failure     What was collected stays with the caller's name_ref, and goes with it.
 * Tests       names_test.c, tests/interop/test_nbd_client.py
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"
#include "stor/nbd.h"

struct name_nbd {
    struct stor_nbd_opts o;
    char *type;                         /* what it said; owned */
};

const struct stor_nbd_opts *name_nbd(const struct name_ref *ref)
{
    return ref->nbd ? &ref->nbd->o : NULL;
}

void name_nbd_free(struct name_nbd *nbd)
{
    if (!nbd)
        return;
    stor_nbd_opts_fini(&nbd->o);
    free(nbd->type);
    free(nbd);
}

static int no_memory(struct byre_err *err)
{
    return byre_fail(err, NOMEM, "no memory for a file name");
}

int graph_name_nbd(const char *name, struct stor_nbd_opts *ret, struct byre_err *err)
{
    struct name_ref ref;
    int r = name_parse(GRAPH_ECOSYSTEM, name, NULL, &ref, err);
    if (r)
        return r;
    if (!ref.nbd)
        r = byre_fail(err, BAD_ARGUMENT, "'%s': is no name of a disk on an NBD server", name);
    else if (stor_nbd_opts_copy(&ref.nbd->o, ret))
        r = no_memory(err);
    name_ref_fini(&ref);
    return r;
}

int name_nbd_parse(const char *text, struct name_ref *ret, struct byre_err *err)
{
    struct name_nbd *nbd = calloc(1, sizeof *nbd);
    if (!nbd)
        return no_memory(err);
    ret->nbd = nbd;
    int r = stor_nbd_parse(text, &nbd->o, err);
    if (r)
        return r;
    ret->path = stor_nbd_text(&nbd->o);
    return ret->path ? 0 : no_memory(err);
}

/* ---- options ---- */

/* Numbers come as such too: "port": 10809. */
static int take_text(const char *key, const json_t *v, char **ret, struct byre_err *err)
{
    char *text = NULL;
    if (json_is_integer(v)) {
        if (asprintf(&text, "%" JSON_INTEGER_FORMAT, json_integer_value(v)) < 0)
            text = NULL;
    } else if (json_is_string(v)) {
        text = strdup(json_string_value(v));
    } else {
        return byre_fail(err, BAD_OPTION, "json: '%s' must be a string", key);
    }
    if (!text)
        return no_memory(err);
    free(*ret);
    *ret = text;
    return 0;
}

static int take_bool(const char *key, const json_t *v, bool *ret, struct byre_err *err)
{
    const char *s = json_is_string(v) ? json_string_value(v) : json_is_true(v) ? "on" : json_is_false(v) ? "off" : "";
    *ret = !strcmp(s, "on") || !strcmp(s, "true") || !strcmp(s, "yes");
    if (*ret || !strcmp(s, "off") || !strcmp(s, "false") || !strcmp(s, "no"))
        return 0;
    return byre_fail(err, BAD_OPTION, "json: the value of '%s' is not acceptable: on or off", key);
}

static int take_tri(const char *key, const json_t *v, enum stor_nbd_tri *ret, struct byre_err *err)
{
    bool on = false;
    int r = take_bool(key, v, &on, err);
    if (!r)
        *ret = on ? STOR_NBD_ON : STOR_NBD_OFF;
    return r;
}

/* 1, or the error of taking one. */
static int taken(int r) { return r ? r : 1; }

static int server_option(struct name_nbd *n, const char *key, const char *leaf, const json_t *v, struct byre_err *err)
{
    struct { const char *name; char **to; } texts[] = { { "type", &n->type }, { "path", &n->o.path }, { "host", &n->o.host }, { "cid", &n->o.host }, { "port", &n->o.port }, { "str", &n->o.fdname } };
    struct { const char *name; bool *to; } bools[] = { { "abstract", &n->o.abstract }, { "keep-alive", &n->o.keep_alive } };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (!strcmp(leaf, texts[i].name))
            return taken(take_text(key, v, texts[i].to, err));
    for (size_t i = 0; i < sizeof bools / sizeof bools[0]; i++)
        if (!strcmp(leaf, bools[i].name))
            return taken(take_bool(key, v, bools[i].to, err));
    if (!strcmp(leaf, "ipv4"))
        return taken(take_tri(key, v, &n->o.ipv4, err));
    if (!strcmp(leaf, "ipv6"))
        return taken(take_tri(key, v, &n->o.ipv6, err));
    if (!strcmp(leaf, "tight")) {
        bool tight = true;
        int r = take_bool(key, v, &tight, err);
        n->o.padded = !tight;
        return taken(r);
    }
    return byre_fail(err, NOT_SUPPORTED, "json: the option '%s' is not supported", key);
}

/* The first option of the driver makes the place for all. */
static int make_place(struct name_nbd **nbd, struct byre_err *err)
{
    if (!*nbd)
        *nbd = calloc(1, sizeof **nbd);
    return *nbd ? 0 : no_memory(err);
}

int name_nbd_option(struct name_nbd **nbd, const char *key, const char *leaf, const json_t *v, struct byre_err *err)
{
    static const char *const known[] = { "export", "reconnect-delay", "open-timeout", "connections", "host", "port", "path", "tls-creds", "tls-hostname", "x-dirty-bitmap" };
    bool server = !strncmp(leaf, "server.", 7), mine = server;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        mine |= !strcmp(leaf, known[i]);
    if (!mine)
        return 0;
    int r = make_place(nbd, err);
    if (r)
        return r;
    struct name_nbd *n = *nbd;
    if (server)
        return server_option(n, key, leaf + 7, v, err);
    if (!strcmp(leaf, "export"))
        return taken(take_text(key, v, &n->o.export, err));
    if (!strcmp(leaf, "x-dirty-bitmap"))
        return taken(take_text(key, v, &n->o.x_dirty_bitmap, err));
    if (!strcmp(leaf, "tls-creds") || !strcmp(leaf, "tls-hostname"))
        return taken(take_text(key, v, leaf[4] == 'c' ? &n->o.tls_creds : &n->o.tls_hostname, err));
    struct { const char *name; uint64_t *to; } numbers[] = { { "reconnect-delay", &n->o.reconnect_s }, { "open-timeout", &n->o.open_timeout_s }, { "connections", &n->o.connections } };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!strcmp(leaf, numbers[i].name))
            return taken(name_take_size(key, v, numbers[i].to, err));
    return server_option(n, key, leaf, v, err);          /* host, port, path without "server.", as they were once written */
}

static int settle_type(struct name_nbd *n, struct byre_err *err)
{
    static const struct { const char *name; enum stor_nbd_where where; } types[] = { { "unix", STOR_NBD_UNIX }, { "inet", STOR_NBD_INET }, { "vsock", STOR_NBD_VSOCK }, { "fd", STOR_NBD_FD } };
    const char *type = n->type ? n->type : n->o.path && !n->o.host ? "unix" : n->o.host && !n->o.path ? "inet" : NULL;
    if (!type)
        return byre_fail(err, BAD_OPTION, "json: driver 'nbd' needs server.type, and where the server is");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (!strcmp(type, types[i].name)) {
            n->o.where = types[i].where;
            bool fd = n->o.where == STOR_NBD_FD;
            if (fd ? n->o.host || n->o.port || n->o.path : n->o.fdname != NULL)
                return byre_fail(err, BAD_OPTION, "json: a server of type '%s' has %s", type, fd ? "a 'str', and neither host, port nor path" : "no 'str'");
            if (fd)
                return 0;
            if (n->o.where == STOR_NBD_UNIX ? n->o.host || n->o.port : n->o.path != NULL)
                return byre_fail(err, BAD_OPTION, "json: a server of type '%s' has %s", type, n->o.path ? "no path" : "neither host nor port");
            if (n->o.where != STOR_NBD_UNIX && !n->o.port)
                return byre_fail(err, BAD_OPTION, "json: server.port is missing");
            return 0;
        }
    return byre_fail(err, NOT_SUPPORTED, "json: the server.type '%s' is not supported: unix, inet, vsock or fd", type);
}

/* The server and the export by a name, other options beside it. */
static int settle_filename(struct name_nbd *n, const char *filename, struct byre_err *err)
{
    struct stor_nbd_opts o;
    if (n->type || n->o.fdname || n->o.host || n->o.path || n->o.port || n->o.export)
        return byre_fail(err, BAD_OPTION, "json: the disk is given twice, as '%s' and by options", filename);
    int r = stor_nbd_parse(filename, &o, err);
    if (r)
        return r;
    o.reconnect_s = n->o.reconnect_s;
    o.open_timeout_s = n->o.open_timeout_s;
    o.connections = n->o.connections;
    o.tls_creds = n->o.tls_creds;
    o.x_dirty_bitmap = n->o.x_dirty_bitmap;
    if (n->o.tls_hostname) {
        free(o.tls_hostname);
        o.tls_hostname = n->o.tls_hostname;
    }
    n->o = o;
    return 0;
}

int name_nbd_settle(struct name_ref *ref, const char *filename, struct byre_err *err)
{
    int r = make_place(&ref->nbd, err);
    if (!r)
        r = filename ? settle_filename(ref->nbd, filename, err) : settle_type(ref->nbd, err);
    if (!r)
        r = stor_nbd_check(&ref->nbd->o, err);
    if (r)
        return r;
    free(ref->path);
    ref->path = stor_nbd_text(&ref->nbd->o);
    return ref->path ? 0 : no_memory(err);
}
