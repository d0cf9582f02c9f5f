/* SPDX-License-Identifier: MIT
 *
 * nodes.c: nodes that the command line of the daemon defines (FEATURES 8.002).
 *
 * Purpose      Files with names, and images over them: what "--blockdev" gives, opened through the json: names of graph/.
 * Owns         the definitions of files, and the nodes that were opened
 * Invariants   I1 a file is opened by the image that names it, not before
 * Concurrency  home loop
 * Failure      byre_err names the node; nothing is left open
 * Tests        tests/daemon
 */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"

static const char *text_of(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static bool is_taken(struct ctl *c, const char *name)
{
    return graph_find(c->env.graph, name) || json_object_get(c->files, name);
}

static int keep_file(struct ctl *c, const char *name, json_t *options, struct byre_err *err)
{
    if (!name)
        return byre_fail(err, BAD_ARGUMENT, "'node-name' must be specified for the root node");
    if (!c->files)
        c->files = json_object();
    json_t *copy = json_deep_copy(options);
    if (!copy || json_object_set_new(c->files, name, copy))
        return byre_fail(err, NOMEM, "no memory for a node");
    return 0;
}

/* A file that is named becomes its definition. */
static int resolve(struct ctl *c, json_t *image, const char *key, struct byre_err *err)
{
    const char *name = text_of(image, key);
    json_t *file = name ? json_object_get(c->files, name) : NULL;
    if (!name)
        return 0;
    if (!file)
        return byre_fail(err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
    json_t *copy = json_deep_copy(file);
    if (!copy || json_object_set_new(image, key, copy))
        return byre_fail(err, NOMEM, "no memory for a node");
    return 0;
}

static int open_image(struct co *co, struct ctl *c, json_t *image, struct byre_err *err)
{
    struct graph_node **more = reallocarray(c->nodes, c->node_count + 1, sizeof *more);
    if (!more)
        return byre_fail(err, NOMEM, "no memory for a node");
    c->nodes = more;
    char *text = json_dumps(image, 0), *name = text ? malloc(strlen(text) + 6) : NULL;
    int r = name ? 0 : byre_fail(err, NOMEM, "no memory for a node");
    if (!r) {
        memcpy(name, "json:", 5);
        memcpy(name + 5, text, strlen(text) + 1);
        struct graph_open_opts o = { .filename = name };
        r = graph_open(co, c->env.graph, &o, &c->nodes[c->node_count], err);
    }
    free(name);
    free(text);
    c->node_count += r == 0;
    return r;
}

int ctl_node_open(struct co *co, struct ctl *c, json_t *options, struct byre_err *err)
{
    const char *driver = text_of(options, "driver"), *name = text_of(options, "node-name");
    if (!driver)
        return byre_fail(err, BAD_ARGUMENT, "Parameter 'driver' is missing");
    if (name && is_taken(c, name))
        return byre_fail(err, EXISTS, "Duplicate nodes with node-name='%s'", name);
    if (strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0)
        return keep_file(c, name, options, err);
    if (!name)
        return byre_fail(err, BAD_ARGUMENT, "'node-name' must be specified for the root node");
    json_t *image = json_deep_copy(options);
    int r = image ? resolve(c, image, "file", err) : byre_fail(err, NOMEM, "no memory for a node");
    if (!r)
        r = resolve(c, image, "data-file", err);
    if (!r)
        r = open_image(co, c, image, err);
    json_decref(image);
    return r;
}

void ctl_nodes_close(struct co *co, struct ctl *c)
{
    while (c->node_count)
        if (graph_close(co, c->nodes[--c->node_count]))
            c->close_failed = true;
    free(c->nodes);
    c->nodes = NULL;
    json_decref(c->files);
    c->files = NULL;
}
