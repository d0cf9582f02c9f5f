/* SPDX-License-Identifier: MIT
 *
 * names.c: what a file name means (FEATURES 3.070, 11.007; DESIGN D8).
 *
 * Purpose     Plain paths, file:PATH, PROTOCOL:..., json:{...}; relative names of backing files.
 * Owns        Nothing; fills a struct name_ref.
 * Invariants  I1  A name has a protocol when a ':' comes before the first '/'.
 *             I2  A plain relative name in an overlay is relative to the directory of the overlay; what follows
 *                 file: or stands in json:{} is relative to the working directory, as the peer has it.
 *             I3  Strict policy: the user's own text is a path, whatever it looks like; an overlay may name plain
 *                 paths only.
 * Order       None.
 * Concurrency Pure.
 * Failure     Nothing is left allocated in *ret.
 * Tests       names_test.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"
#include "stor/fdset.h"
#include "stor/nbd.h"

void name_ref_fini(struct name_ref *ref)
{
    free(ref->path);
    name_nbd_free(ref->nbd);
    free(ref->format);
    free(ref->data_path);
    free(ref->data_ref);
    free(ref->node_name);
    free(ref->file_ref);
    name_node_fini(&ref->node);
    for (unsigned i = 0; i < NAME_CRYPT_MAX; i++) {
        free(ref->crypt[i].key_secret);
        free(ref->crypt[i].format);
    }
    *ref = (struct name_ref){ 0 };
}

/* Length of the protocol in front of the first ':'; 0: none. */
static size_t protocol_len(const char *text)
{
    size_t n = strcspn(text, ":/");
    return text[n] == ':' ? n : 0;
}

static bool is_protocol(const char *text, const char *protocol)
{
    size_t n = protocol_len(text);
    return n == strlen(protocol) && !strncmp(text, protocol, n);
}

static int set_path(struct name_ref *ret, const char *dir_of, const char *path, struct byre_err *err)
{
    if (dir_of && path[0] != '/' && stor_nbd_is_name(dir_of))      /* nobody knows the folders there */
        return byre_fail(err, REFUSED_REFERENCE, "%s: '%s' is a relative name, and the image is no file of this machine", dir_of, path);
    const char *slash = dir_of && path[0] != '/' ? strrchr(dir_of, '/') : NULL;
    size_t dir_len = slash ? (size_t)(slash + 1 - dir_of) : 0, len = strlen(path);
    ret->path = malloc(dir_len + len + 1);
    if (!ret->path)
        return byre_fail(err, NOMEM, "no memory for a file name");
    if (dir_len)
        memcpy(ret->path, dir_of, dir_len);
    memcpy(ret->path + dir_len, path, len + 1);
    return 0;
}

static int parse_strict(const char *text, const char *overlay, struct name_ref *ret, struct byre_err *err)
{
    if (overlay && protocol_len(text))
        return byre_fail(err, REFUSED_REFERENCE, "%s: its backing file name '%s' is not a plain path", overlay, text);
    return set_path(ret, overlay, text, err);
}

/* Options are said in json:{"driver": "null-co", ...}. */
int name_parse_null(const char *text, struct name_ref *ret, struct byre_err *err)
{
    int n = (int)protocol_len(text);
    if (strcmp(text + n, "://"))
        return byre_fail(err, BAD_ARGUMENT, "'%s': the only name of the protocol '%.*s' is '%.*s://'", text, n, text, n, text);
    ret->null = true;
    return set_path(ret, NULL, text, err);
}

static int parse_protocol(const char *text, struct name_ref *ret, struct byre_err *err)
{
    static const char *const later[] = { "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd", "nfs", "gluster", "host_device", "fat" };
    size_t n = protocol_len(text);
    if (is_protocol(text, "file"))
        return set_path(ret, NULL, text + n + 1, err);
    if (is_protocol(text, "json"))
        return name_parse_json(text, ret, err);
    if (stor_nbd_is_name(text))
        return name_nbd_parse(text, ret, err);
    if (stor_null_is_name(text))
        return name_parse_null(text, ret, err);
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++)
        if (is_protocol(text, later[i]))
            return byre_fail(err, NOT_SUPPORTED, "'%s': the protocol '%s' is not supported yet", text, later[i]);
    return byre_fail(err, BAD_ARGUMENT, "'%s': unknown protocol '%.*s' (write './%s' for a file of that name)", text, (int)n, text, text);
}

int name_parse(enum graph_policy policy, const char *text, const char *overlay, struct name_ref *ret, struct byre_err *err)
{
    *ret = (struct name_ref){ 0 };
    int r;
    if (!text[0])
        r = byre_fail(err, BAD_ARGUMENT, "a file name is empty");
    else if (policy == GRAPH_STRICT)
        r = parse_strict(text, overlay, ret, err);
    else if (protocol_len(text))
        r = parse_protocol(text, ret, err);
    else
        r = set_path(ret, overlay, text, err);
    if (r && r != -ENOMEM && overlay && name_nests(text))
        r = byre_fail(err, REFUSED_REFERENCE, "%s: its backing file '%s' nests nodes, which a name that an image records must not do; open it with such a 'backing' instead", overlay, text);
    if (!r && overlay && name_nbd(ret) && stor_nbd_names_files(name_nbd(ret)))
        r = byre_fail(err, REFUSED_REFERENCE, "%s: its backing file '%s' would make this program read keys or certificates of its own choice; give tls-creds instead", overlay, text);
    if (!r && !ret->path[0])
        r = byre_fail(err, BAD_ARGUMENT, "'%s': the file name is empty", text);
    if (r)
        name_ref_fini(ret);
    return r;
}

enum graph_policy graph_policy_of(const struct graph *g) { return g->policy; }

int graph_name_to_make(enum graph_policy policy, const char *name, const char **ret_path, struct byre_err *err)
{
    struct name_ref ref;
    *ret_path = policy == GRAPH_STRICT || !protocol_len(name) ? name : is_protocol(name, "file") ? name + strlen("file:") : NULL;
    if (*ret_path || stor_names_no_file(name))
        return 0;
    if (!name_may_nest(name)) {
        int r = name_parse(policy, name, NULL, &ref, err);
        if (r)
            return r;
        name_ref_fini(&ref);
    }
    return byre_fail(err, NOT_SUPPORTED, "'%s': no image is made under a name that holds options; give the path of its file", name);
}

bool name_is_passed(const struct name_ref *ref)
{
    const struct stor_nbd_opts *nbd = name_nbd(ref);
    return nbd ? nbd->where == STOR_NBD_FD : fdset_is_name(ref->path) || (ref->data_path && fdset_is_name(ref->data_path));
}

int graph_name_file(enum graph_policy policy, const char *name, const char *overlay, char **ret_path, char **ret_data, struct byre_err *err)
{
    struct name_ref ref;
    int r = name_parse(policy, name, overlay, &ref, err);
    if (r)
        return r;
    if (ref.file_ref || ref.data_ref) {
        r = byre_fail(err, BAD_ARGUMENT, "'%s' names a node, and no file", name);
    } else if (name_nbd(&ref) || ref.null) {
        r = 1;
    } else {
        *ret_path = ref.path;
        *ret_data = ref.data_path;
        ref.path = ref.data_path = NULL;
    }
    name_ref_fini(&ref);
    return r;
}
