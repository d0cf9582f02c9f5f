/* SPDX-License-Identifier: MIT
 *
 * names_node.c: options of an opening that belong to nodes of any format, or to raw ones.
 *
 * Purpose     Names of the nodes of files (FEATURES 3.065), how their requests are made (3.002), whether they are kept in memory (3.020),
 *             their manager of persistent reservations (3.021), the window of a raw image (3.026), writes of zeros (3.067), as a json: name gives them.
 * Owns        Nothing; the strings of what it fills belong to struct name_node.
 * Invariants  N1  An option stands where it belongs: what only files have is refused at the format, and the other way round.
 * Order       None.
 * Concurrency Pure.
 * Failure     Names the option.
 * Tests       names_test.c, tests/cli/node_test.py
 */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/id.h"
#include "graph/graph_priv.h"

void name_node_fini(struct name_node *o)
{
    free(o->file_name);
    free(o->data_name);
    free(o->pr_manager);
    *o = (struct name_node){ 0 };
}

static int take_name(const char *key, const json_t *v, char **ret, struct byre_err *err)
{
    const char *s = json_string_value(v);
    if (!s || !id_is_good(s, GRAPH_NAME_MAX))
        return byre_fail(err, BAD_OPTION, "json: '%s': '%s' is no acceptable node name", key, s ? s : "");
    free(*ret);
    *ret = strdup(s);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory for a node name");
}

static int take_id(const char *key, const json_t *v, char **ret, struct byre_err *err)
{
    const char *s = json_string_value(v);
    if (!s)
        return byre_fail(err, BAD_OPTION, "json: '%s' must be a string", key);
    free(*ret);
    *ret = strdup(s);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory for the id of an object");
}

static int take_word(const char *key, const json_t *v, const char *const *words, unsigned *ret, struct byre_err *err)
{
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    for (unsigned i = 0; words[i]; i++)
        if (!strcmp(s, words[i])) {
            *ret = i;
            return 0;
        }
    return byre_fail(err, BAD_OPTION, "json: '%s' cannot be '%s'", key, s);
}

static int take_aio(struct name_node *o, const char *key, const json_t *v, struct byre_err *err)
{
    static const char *const words[] = { "threads", "native", "io_uring", NULL };
    unsigned mode = 0;
    int r = take_word(key, v, words, &mode, err);
    if (!r)
        o->native_aio = mode == 1;
    return r;
}

static int take_detect(struct name_node *o, const char *key, const json_t *v, struct byre_err *err)
{
    static const char *const words[] = { [GRAPH_DETECT_OFF] = "off", [GRAPH_DETECT_ON] = "on", [GRAPH_DETECT_UNMAP] = "unmap", NULL };
    unsigned mode = 0;
    int r = take_word(key, v, words, &mode, err);
    if (!r)
        o->detect = (enum graph_detect)mode;
    return r;
}

static int take_on(bool *ret_on, const char *key, const json_t *v, struct byre_err *err)
{
    static const char *const words[] = { "on", "off", NULL };
    unsigned off = json_is_false(v);
    int r = json_is_boolean(v) ? 0 : take_word(key, v, words, &off, err);
    if (!r)
        *ret_on = !off;
    return r;
}

static int take_drop(struct name_node *o, const char *key, const json_t *v, struct byre_err *err)
{
    bool drops = true;
    int r = take_on(&drops, key, v, err);
    o->keep_cache = !drops;
    return r;
}

int name_node_option(struct name_node *o, const char *key, const json_t *v, struct byre_err *err)
{
    int r;
    if (!strcmp(key, "file.node-name"))
        r = take_name(key, v, &o->file_name, err);
    else if (!strcmp(key, "data-file.node-name"))
        r = take_name(key, v, &o->data_name, err);
    else if (!strcmp(key, "file.aio") || !strcmp(key, "data-file.aio") || !strcmp(key, "aio"))
        r = take_aio(o, key, v, err);
    else if (!strcmp(key, "file.drop-cache") || !strcmp(key, "drop-cache"))
        r = take_drop(o, key, v, err);
    else if (!strcmp(key, "file.x-check-cache-dropped") || !strcmp(key, "x-check-cache-dropped"))
        r = take_on(&o->check_cache, key, v, err);
    else if (!strcmp(key, "file.pr-manager") || !strcmp(key, "pr-manager"))
        r = take_id(key, v, &o->pr_manager, err);
    else if (!strcmp(key, "detect-zeroes"))
        r = take_detect(o, key, v, err);
    else if (!strcmp(key, "offset")) {
        o->window.on = true;
        r = name_take_size(key, v, &o->window.off, err);
    } else if (!strcmp(key, "size")) {
        o->window.on = o->window.fixed = true;
        r = name_take_size(key, v, &o->window.size, err);
    } else {
        return 0;
    }
    static const char *const of_files[] = { "aio", "drop-cache", "x-check-cache-dropped", "pr-manager" };
    for (unsigned i = 0; !r && i < sizeof of_files / sizeof of_files[0]; i++)
        if (!strcmp(key, of_files[i]))
            o->file_only = of_files[i];
    return r ? r : 1;
}

int name_node_settle(const struct name_node *o, bool bare_file, struct byre_err *err)
{
    if (o->file_only && !bare_file)
        return byre_fail(err, BAD_OPTION, "json: '%s' belongs into 'file'", o->file_only);
    if (o->window.on && bare_file)
        return byre_fail(err, BAD_OPTION, "json: a file takes no '%s'; a raw image over it does", o->window.fixed ? "size" : "offset");
    return 0;
}
