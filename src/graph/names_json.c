/* SPDX-License-Identifier: MIT
 *
 * names_json.c: file names of the form json:{...}.
 *
 * Purpose     Reads the options that the ecosystem's programs write into such names, nested or with dots:
 *             {"driver": "qcow2", "file": {"driver": "file", "filename": "x"}} = {"driver": "qcow2", "file.filename": "x"}.
 * Owns        Nothing; fills a struct name_ref.
 * Invariants  I1  The text may come from an image: its length and nesting are bounded before the parser sees it.
 *             I2  An option that we do not know is refused by name, never skipped.
 * Order       None.
 * Concurrency Pure. The stack use of the parser is bounded by I1.
 * Failure     Whatever *ret holds is released by the caller.
 * Tests       names_test.c
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"
#include "stor/nbd.h"

#define JSON_TEXT_MAX 65536u
#define JSON_NEST_MAX 8
#define KEY_MAX 128

/* What is collected before it is judged. Strings belong to the parsed text. */
struct fields {
    const char *driver, *filename;                    /* of the top object */
    const char *file_driver, *file_filename;          /* of "file" */
    const char *data_driver, *data_filename;          /* of "data-file" */
    bool nested_file, backing_null;
    bool top_nbd;                                     /* options of driver "nbd" beside those of the top object */
    struct name_ref *ref;
};

static bool nesting_is_low(const char *text)
{
    unsigned depth = 0;
    bool quoted = false;
    for (; *text; text++) {
        if (quoted) {
            if (*text == '\\' && text[1])
                text++;
            else if (*text == '"')
                quoted = false;
        } else if (*text == '"') {
            quoted = true;
        } else if (*text == '{' || *text == '[') {
            if (++depth > JSON_NEST_MAX)
                return false;
        } else if (*text == '}' || *text == ']') {
            depth -= depth > 0;
        }
    }
    return true;
}

static int get_string(const char *key, const json_t *v, const char **ret, struct byre_err *err)
{
    if (!json_is_string(v))
        return byre_fail(err, BAD_OPTION, "json: '%s' must be a string", key);
    *ret = json_string_value(v);
    return 0;
}

static int get_copy(const char *key, const json_t *v, char **ret, struct byre_err *err)
{
    const char *s = NULL;
    int r = get_string(key, v, &s, err);
    if (r)
        return r;
    free(*ret);
    *ret = strdup(s);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

static bool is_one_of(const char *s, const char *const *words)
{
    for (; *words; words++)
        if (!strcmp(s, *words))
            return true;
    return false;
}

/* true/false, or the words that the ecosystem writes for them. */
static int get_tri(const char *key, const json_t *v, enum name_tri *ret, struct byre_err *err)
{
    static const char *const yes[] = { "on", "true", "yes", "y", NULL }, *const no[] = { "off", "false", "no", "n", NULL };
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    if (json_is_true(v) || is_one_of(s, yes))
        *ret = NAME_YES;
    else if (json_is_false(v) || is_one_of(s, no))
        *ret = NAME_NO;
    else
        return byre_fail(err, BAD_OPTION, "json: the value of '%s' is not acceptable: on or off", key);
    return 0;
}

/* Words that stand for yes and no, and a third for "as is best" (NULL: there is none). */
static int get_words(const char *key, const json_t *v, const char *const words[5], enum name_tri *ret, struct byre_err *err)
{
    const char *s = json_is_string(v) ? json_string_value(v) : json_is_true(v) ? "on" : json_is_false(v) ? "off" : "";
    for (int i = 0; i < 5; i++)
        if (words[i] && !strcmp(s, words[i])) {
            *ret = i < 2 ? NAME_YES : i < 4 ? NAME_NO : NAME_UNSET;
            return 0;
        }
    return byre_fail(err, BAD_OPTION, "json: the value of '%s' is not acceptable", key);
}

static int no_such(const char *key, struct byre_err *err)
{
    return byre_fail(err, NOT_SUPPORTED, "json: the option '%s' is not supported", key);
}

/* Options that a node has, whether format or file. */
static int common_option(struct fields *f, const char *key, const char *leaf, const json_t *v, struct byre_err *err)
{
    static const char *const discard[5] = { "unmap", "on", "ignore", "off", NULL };
    struct { const char *name; enum name_tri *to; } tri[] = {
        { "read-only", &f->ref->read_only }, { "cache.direct", &f->ref->direct }, { "cache.no-flush", &f->ref->no_flush },
        { "force-share", &f->ref->force_share },
    };
    for (size_t i = 0; i < sizeof tri / sizeof tri[0]; i++)
        if (!strcmp(leaf, tri[i].name))
            return get_tri(key, v, tri[i].to, err);
    enum name_tri ignored, active = NAME_UNSET;
    if (!strcmp(leaf, "active")) {
        int r = get_tri(key, v, leaf == key ? &f->ref->active : &active, err);
        f->ref->file_inactive |= active == NAME_NO;
        return r;
    }
    if (!strcmp(leaf, "discard"))
        return get_words(key, v, discard, &f->ref->discard, err);
    if (!strcmp(leaf, "auto-read-only"))      /* a matter of nodes that nobody writes to yet: here it is known from the start */
        return get_tri(key, v, &ignored, err);
    return no_such(key, err);
}

static int locking_option(struct fields *f, const char *key, const json_t *v, struct byre_err *err)
{
    static const char *const locking[5] = { "on", "on", "off", "off", "auto" };
    return get_words(key, v, locking, &f->ref->locking, err);
}

static int file_option(struct fields *f, const char *key, const char *leaf, const json_t *v, struct byre_err *err)
{
    f->nested_file = true;
    if (!strcmp(leaf, "driver"))
        return get_string(key, v, &f->file_driver, err);
    if (!strcmp(leaf, "filename"))
        return get_string(key, v, &f->file_filename, err);
    if (!strcmp(leaf, "locking"))
        return locking_option(f, key, v, err);
    int r = name_nbd_option(&f->ref->nbd, key, leaf, v, err);
    return r ? (r > 0 ? 0 : r) : common_option(f, key, leaf, v, err);
}

/* The external data file is a plain file, opened as the image is. */
static int data_option(struct fields *f, const char *key, const char *leaf, const json_t *v, struct byre_err *err)
{
    if (!strcmp(leaf, "driver"))
        return get_string(key, v, &f->data_driver, err);
    if (!strcmp(leaf, "filename"))
        return get_string(key, v, &f->data_filename, err);
    return no_such(key, err);
}

/* "key-secret", "encrypt.key-secret", "encrypt.format", with "backing." in front for each layer further down. 1: it was none. */
static int crypt_option(struct fields *f, const char *key, const json_t *v, struct byre_err *err)
{
    unsigned depth = 0;
    const char *leaf = key;
    for (; !strncmp(leaf, "backing.", 8); leaf += 8)
        depth++;
    bool plain = !strcmp(leaf, "key-secret"), nested = !strcmp(leaf, "encrypt.key-secret"), format = !strcmp(leaf, "encrypt.format");
    if (!plain && !nested && !format)
        return 1;
    if (depth >= NAME_CRYPT_MAX)
        return byre_fail(err, LIMIT, "json: '%s' names a layer that is more than %d layers down", key, NAME_CRYPT_MAX - 1);
    struct name_crypt *c = &f->ref->crypt[depth];
    if (format)
        return get_copy(key, v, &c->format, err);
    if (c->key_secret)
        return byre_fail(err, BAD_OPTION, "json: '%s' is given twice", key);
    c->nested = nested;
    return get_copy(key, v, &c->key_secret, err);
}

static int top_option(struct fields *f, const char *key, const json_t *v, struct byre_err *err)
{
    int r = name_node_option(&f->ref->node, key, v, err);
    f->nested_file |= r && !strncmp(key, "file.", 5);
    if (r)
        return r > 0 ? 0 : r;
    if (!strncmp(key, "file.", 5))
        return file_option(f, key, key + 5, v, err);
    if (!strncmp(key, "data-file.", 10))
        return data_option(f, key, key + 10, v, err);
    if (!strcmp(key, "driver"))
        return get_string(key, v, &f->driver, err);
    if (!strcmp(key, "filename"))
        return get_string(key, v, &f->filename, err);
    if (!strcmp(key, "node-name"))
        return get_copy(key, v, &f->ref->node_name, err);
    if (!strcmp(key, "backing") && json_is_null(v)) {
        f->backing_null = true;
        return 0;
    }
    if (!strcmp(key, "locking")) {
        f->ref->node.file_only = "locking";
        return locking_option(f, key, v, err);
    }
    r = crypt_option(f, key, v, err);
    if (r <= 0)
        return r;
    if (!strcmp(key, "file") && json_is_string(v))
        return get_copy(key, v, &f->ref->file_ref, err);
    if ((!strcmp(key, "data-file") || !strcmp(key, "header")) && json_is_string(v)) {
        if (f->ref->data_ref)
            return byre_fail(err, BAD_OPTION, "json: an image has a 'data-file' or a 'header', and not both");
        f->ref->has_header = key[0] == 'h';
        return get_copy(key, v, &f->ref->data_ref, err);
    }
    r = name_runtime_option(&f->ref->run, key, v, err);
    if (!r) {
        r = name_nbd_option(&f->ref->nbd, key, key, v, err);
        f->top_nbd |= r;
    }
    return r ? (r > 0 ? 0 : r) : common_option(f, key, key, v, err);
}

/* Every leaf of the object by its dotted name. The walk keeps its own stack: JSON_NEST_MAX objects at most. */
static int each_option(struct fields *f, json_t *root, struct byre_err *err)
{
    struct { json_t *obj; void *at; size_t prefix; } stack[JSON_NEST_MAX];
    char key[KEY_MAX];
    int depth = 0;
    stack[0].obj = root;
    stack[0].at = json_object_iter(root);
    stack[0].prefix = 0;
    while (depth >= 0) {
        void *at = stack[depth].at;
        if (!at) {
            depth--;
            continue;
        }
        size_t prefix = stack[depth].prefix;
        json_t *v = json_object_iter_value(at);
        int n = snprintf(key + prefix, sizeof key - prefix, "%s", json_object_iter_key(at));
        if (n < 0 || prefix + (size_t)n + 2 > sizeof key)
            return byre_fail(err, BAD_OPTION, "json: a name is too long");
        stack[depth].at = json_object_iter_next(stack[depth].obj, at);
        if (json_is_object(v)) {
            key[prefix + (size_t)n] = '.';
            ASSERT(depth + 1 < JSON_NEST_MAX);
            depth++;
            stack[depth].obj = v;
            stack[depth].at = json_object_iter(v);
            stack[depth].prefix = prefix + (size_t)n + 1;
            continue;
        }
        int r = top_option(f, key, v, err);
        if (r)
            return r;
    }
    return 0;
}

bool name_driver_is_file(const char *driver) { return !strcmp(driver, "file") || !strcmp(driver, "host_device"); }

/* Is the file an export of an NBD server? By the word of its driver, or by a file name without one. */
static bool is_nbd(const char *driver, const char *filename)
{
    return driver ? !strcmp(driver, "nbd") : filename && stor_nbd_is_name(filename);
}

/* Where the file is: a path of this machine, or of another. */
static int judge_place(struct fields *f, const char *driver, const char *filename, struct byre_err *err)
{
    if (is_nbd(driver, filename))
        return name_nbd_settle(f->ref, filename, err);
    if (f->ref->nbd)
        return byre_fail(err, BAD_OPTION, "json: options of the driver 'nbd' are given, and the file is none of an NBD server");
    if (!filename)
        return byre_fail(err, BAD_OPTION, "json: no file name is given");
    if (!driver && stor_null_is_name(filename))
        return name_parse_null(filename, f->ref, err);
    f->ref->path = strdup(filename);
    return f->ref->path ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

static int judge(struct fields *f, struct byre_err *err)
{
    const char *filename = f->file_filename, *driver = f->file_driver;
    if (f->driver && (name_driver_is_file(f->driver) || !strcmp(f->driver, "nbd"))) {
        driver = f->driver;
        if (f->nested_file)
            return byre_fail(err, BAD_OPTION, "json: driver '%s' has no 'file' below it", f->driver);
        f->ref->as_file = true;
        filename = f->filename;
    } else if (f->filename) {
        return byre_fail(err, BAD_OPTION, "json: 'filename' belongs into 'file'");
    } else if (f->top_nbd) {
        return byre_fail(err, BAD_OPTION, "json: options of the driver 'nbd' belong into 'file'");
    } else if (driver && !name_driver_is_file(driver) && strcmp(driver, "nbd")) {
        return byre_fail(err, NOT_SUPPORTED, "json: the driver '%s' of 'file' is not supported", f->file_driver);
    }
    if (f->ref->file_ref && (filename || f->nested_file || !f->driver))
        return byre_fail(err, BAD_OPTION, "json: 'file' names a node; then there is no file name beside it, and the driver must be stated");
    if (f->ref->file_ref)
        filename = f->ref->file_ref;
    int r = judge_place(f, driver, filename, err);
    if (r)
        return r;
    if (f->ref->has_header && f->data_filename)
        return byre_fail(err, BAD_OPTION, "json: an image has a 'data-file' or a 'header', and not both");
    if (f->ref->data_ref && (f->data_driver || f->data_filename || f->ref->node.data_name))
        return byre_fail(err, BAD_OPTION, "json: 'data-file' names a node; then there are no options of a file beside it");
    if (f->data_driver && !name_driver_is_file(f->data_driver))
        return byre_fail(err, NOT_SUPPORTED, "json: the driver '%s' of 'data-file' is not supported", f->data_driver);
    if (f->data_driver && !f->data_filename)
        return byre_fail(err, BAD_OPTION, "json: 'data-file' names no file");
    if (f->data_filename && !(f->ref->data_path = strdup(f->data_filename)))
        return byre_fail(err, NOMEM, "no memory for a file name");
    r = name_runtime_settle(&f->ref->run, err);
    if (!r)
        r = name_node_settle(&f->ref->node, f->ref->as_file, err);
    if (!r && f->ref->node.pr_manager && (f->ref->nbd || f->ref->null))
        r = byre_fail(err, BAD_OPTION, "json: 'pr-manager' is an option of files and devices of this machine");
    if (r)
        return r;
    f->ref->no_backing = f->backing_null;
    if (f->driver && !f->ref->as_file)
        f->ref->format = strdup(f->driver);
    if (f->driver && !f->ref->as_file && !f->ref->format)
        return byre_fail(err, NOMEM, "no memory for a file name");
    return 0;
}

int name_json_load(const char *text, json_t **ret_root, struct byre_err *err)
{
    if (strnlen(text, JSON_TEXT_MAX) >= JSON_TEXT_MAX || !nesting_is_low(text))
        return byre_fail(err, LIMIT, "json: the name is too long or nested too deeply");
    json_error_t where;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return byre_fail(err, BAD_ARGUMENT, "json: %s at column %d", where.text, where.column);
    if (!json_is_object(root)) {
        json_decref(root);
        return byre_fail(err, BAD_ARGUMENT, "json: an object is needed");
    }
    *ret_root = root;
    return 0;
}

int name_parse_json(const char *text, struct name_ref *ret, struct byre_err *err)
{
    json_t *root;
    int r = name_json_load(text + strlen("json:"), &root, err);
    if (r)
        return r;
    struct fields f = { .ref = ret };
    r = each_option(&f, root, err);
    if (!r)
        r = judge(&f, err);
    json_decref(root);
    return r;
}
