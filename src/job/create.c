/* SPDX-License-Identifier: MIT
 *
 * create.c: a file or an image is made.
 *
 * Purpose      The formats' own creation, in a node or a new file, as a job that can be paused and cancelled.
 * Owns         struct create, until the job is forgotten; while it runs, the nodes that its options define, and what it has made of a failed image
 * Invariants   I1 nothing is touched before all options are known to be acceptable to the format, and all nodes to be ours to write
 *              I2 what fails or is cancelled leaves no file that was made here, and no image in a node: its header comes last, and what was written before is
 *                 cut off again. A detached header that is made over another one stays, or is the new one
 *              I3 the job ends well when the image, and the name of a new file, are durable
 * Order        the format's (fmt_ops.create)
 * Concurrency  home loop
 * Failure      told when the job has concluded; names the file or node, the option and the value
 * Tests        create_test.c, tests/daemon/blockdev_create_test.py
 */
#include "job/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "graph/blockdev.h"
#include "graph/making.h"
#include "job/create_opts.h"
#include "job/stepped.h"
#include "rt/loop.h"
#include "stor/stor.h"

#define SECTOR 512u
#define ID_TEXT_MAX 144u                 /* longest id of a job, and a word */
#define WIPE_BYTES 65536u                /* of a device: no header that we make begins behind it */

struct create {
    struct job *job;
    struct graph *g;
    json_t *options;
    const char *driver;                  /* of options */
    const struct fmt_ops *ops;
    const struct opt_row *rows;
    struct fmt_create_opts fo;
    uint64_t seen;
    struct stor *store, *data;           /* data: until the format takes it. A header stays here */
    bool has_header;                     /* data is one */
    struct graph_node *node;             /* of the store, a reference; NULL: it has none */
    char who[ID_TEXT_MAX];               /* as a user of nodes */
};

/* ---- options ---- */

static int check_backing(const struct create *c, struct byre_err *err)
{
    const char *name = c->fo.backing_file;
    if (name && !*name)
        return byre_fail(err, BAD_ARGUMENT, "the name of the backing file is empty");
    return !name && c->fo.backing_fmt ? byre_fail(err, BAD_OPTION, "a backing format is given, but no backing file") : 0;
}

static int check_size(struct create *c, struct byre_err *err)
{
    bool sectors = !strcmp(c->driver, "qcow2") || !strcmp(c->driver, "qed");
    if (c->fo.encrypt.detached)
        c->fo.size = 0;                  /* of a header alone it says nothing */
    if (!opt_seen(c->rows, c->seen, "size"))
        return byre_fail(err, BAD_SIZE, "the size of the image must be given");
    if (c->fo.size > INT64_MAX - SECTOR)
        return byre_fail(err, BAD_SIZE, "a size of %" PRIu64 " bytes is too large", c->fo.size);
    if (sectors && c->fo.size % SECTOR)
        return byre_fail(err, BAD_SIZE, "the size of a %s image is a multiple of %u bytes, and %" PRIu64 " is none", c->driver, SECTOR, c->fo.size);
    if (!strcmp(c->driver, "luks"))
        c->fo.size = round_up(c->fo.size, SECTOR);
    return 0;
}

static int settle(struct co *co, struct create *c, struct byre_err *err)
{
    static const char *const nodes[] = { "driver", "filename", "file", "data-file", "header", NULL };
    bool is_file = c->driver && !strcmp(c->driver, "file");
    const char *format = is_file ? "raw" : c->driver;
    c->ops = format && (is_file || strcmp(format, "raw")) ? fmt_by_name(format) : NULL;
    c->rows = c->ops ? fmt_create_rows(format, true) : NULL;
    if (!c->rows)
        return byre_fail(err, NOT_SUPPORTED, "images of the driver '%s' cannot be made", c->driver ? c->driver : "");
    int r = opt_defaults(c->rows, &c->fo, err);
    if (!r)
        r = create_opts_take(c->options, nodes, c->rows, &c->fo, &c->seen, err);
    c->fo.encrypt.detached = json_object_get(c->options, "header") && !json_object_get(c->options, "file");
    if (!r)
        r = check_backing(c, err);
    if (!r)
        r = check_size(c, err);
    return r;
}

/* ---- nodes ---- */

/* The node that an option names or defines, with a reference. */
static int take_node(struct co *co, struct create *c, const char *key, struct graph_node **ret_n, struct byre_err *err)
{
    const json_t *v = json_object_get(c->options, key);
    if (json_is_object(v)) {
        int r = graph_blockdev_add(co, c->g, v, ret_n, err);
        if (r)
            return r;
        graph_ref(*ret_n);
        (void)graph_blockdev_disown(co, *ret_n);     /* the reference above is left: nothing is closed */
        return 0;
    }
    const char *name = json_string_value(v);
    if (!name)
        return byre_fail(err, BAD_ARGUMENT, "Parameter '%s' must be specified", key);
    *ret_n = graph_find(c->g, name);
    if (!*ret_n)
        return byre_fail(err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
    graph_ref(*ret_n);
    return 0;
}

/* A store that writes to the node for the job; *ret_file (may be NULL): owned, the file that the node is. */
static int open_node(struct co *co, struct create *c, const char *key, struct stor **ret_s, char **ret_file, struct byre_err *err)
{
    struct graph_node *n;
    struct stor *below;
    int r = take_node(co, c, key, &n, err);
    if (r)
        return r;
    const struct graph_node *bottom = graph_skip_filters(n);
    if (ret_file && (!bottom || graph_format(bottom) != &fmt_raw_ops || stor_names_no_file(graph_filename(bottom))))
        r = byre_fail(err, NOT_SUPPORTED, "node '%s' is no file of this machine: an external data file must be one", graph_node_name(n));
    if (!r && ret_file && !(*ret_file = strdup(graph_filename(bottom))))
        r = byre_fail(err, NOMEM, "no memory for a file name");
    if (!r)
        r = graph_node_store(co, n, c->who, &below, err);
    if (!r && stepped_new(c->job, below, ret_s)) {
        stor_close(co, below);
        r = byre_fail(err, NOMEM, "no memory to write to node '%s'", graph_node_name(n));
    }
    if (!r)
        job_goes_to(c->job, n);
    if (!r && ret_s == &c->store) {
        c->node = n;
        return 0;
    }
    int closed = graph_close(co, n);             /* the store has its own reference */
    return r ? r : closed;
}

static int give_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    struct create *c = arg;
    *ret_s = c->has_header ? stor_share(c->data) : c->data;
    if (!c->has_header)
        c->data = NULL;
    return 0;
}

/* I2. The error told is that of the job, and then what cannot be wiped; a job that was cancelled keeps no error, so there it is a warning. */
static void wipe(struct co *co, struct create *c, struct stor *s, struct byre_err *err)
{
    struct stor *below = stepped_below(s);
    uint64_t len;
    if (!stepped_touched(s))
        return;
    int r = below->traits.regular ? stor_truncate(co, below, 0) : stor_length(co, below, &len);
    if (!r && !below->traits.regular)
        r = stor_zero(co, below, 0, min_u64(len, WIPE_BYTES), 0);
    if (!r)
        r = stor_flush(co, below);
    if (!r)
        return;
    size_t at = strlen(err->text);
    snprintf(err->text + at, sizeof err->text - at, "; %s: what was written of the image could not be wiped: %s", below->name, strerror(-r));
    if (c->node && job_cancelled(c->job))
        graph_warn(c->node, "%s: what was written of an image that is not wanted any more could not be wiped: %s", below->name, strerror(-r));
}

/* The node of the image's other file, if there is to be one. */
static int open_second(struct co *co, struct create *c, struct byre_err *err)
{
    char *data_name = NULL;
    bool has_data = json_object_get(c->options, "data-file"), has_header = json_object_get(c->options, "header");
    if (has_data && !opt_find(c->rows, "data_file"))
        return byre_fail(err, BAD_OPTION, "%s images have no 'data-file'", c->driver);
    if (has_header && !opt_find(c->rows, "detached-header"))
        return byre_fail(err, BAD_OPTION, "%s images have no 'header'", c->driver);
    c->has_header = has_header && !c->fo.encrypt.detached;
    if (c->has_header && json_equal(json_object_get(c->options, "header"), json_object_get(c->options, "file")))
        return byre_fail(err, BAD_ARGUMENT, "'header' and 'file' are the same, and the disk would lie over its header");
    if (c->has_header)
        return open_node(co, c, "header", &c->data, NULL, err);
    int r = has_data ? open_node(co, c, "data-file", &c->data, &data_name, err) : 0;
    if (!r && has_data)
        c->fo.data_file = data_name;             /* freed with the rows' strings */
    return r;
}

static int make_in_node(struct co *co, struct create *c, struct byre_err *err)
{
    bool kept = false;                           /* a header: I2 */
    struct fmt_host host = { .open_data = give_data, .arg = c, .kept = &kept };
    int r = open_second(co, c, err);
    host.has_header = c->has_header;
    if (!r)
        r = c->ops->create(co, NULL, &c->fo, err);   /* I1 */
    if (!r)
        r = open_node(co, c, c->fo.encrypt.detached ? "header" : "file", &c->store, NULL, err);
    if (!r && c->fo.backing_file && !strcmp(c->fo.backing_file, c->store->name))
        r = byre_fail(err, BAD_ARGUMENT, "%s: an image cannot be its own backing file", c->store->name);
    if (!r) {
        c->fo.host = &host;
        r = c->ops->create(co, c->store, &c->fo, err);
        c->fo.host = NULL;
        if (r && c->has_header && !kept)
            wipe(co, c, c->data, err);
        if (r && (c->has_header || !kept))
            wipe(co, c, c->store, err);
        if (!r && c->fo.backing_file)
            graph_tell_recorded(co, c->g, c->store->name, c->fo.backing_file);
    }
    int closed = c->node ? graph_close(co, c->node) : 0;     /* the store has its own reference */
    stor_close(co, c->store);
    stor_close(co, c->data);
    return r ? r : closed;
}

/* ---- files ---- */

struct removal { const char *name; };

static int64_t remove_blocking(void *arg) { return unlink(((struct removal *)arg)->name) ? -errno : 0; }

static int open_file(struct co *co, struct create *c, const char *name, bool *ret_made, struct byre_err *err)
{
    struct stor_file_opts so = { .create = true, .exclusive = true, .passed = graph_passed(c->g) };
    struct stor *below;
    int r = stor_file_open(co, name, &so, &below, err);
    *ret_made = !r;
    if (r == -EEXIST) {
        so.exclusive = false;
        so.truncate_to_zero = true;
        r = stor_file_open(co, name, &so, &below, err);
    }
    if (!r && stepped_new(c->job, below, &c->store)) {
        stor_close(co, below);
        r = byre_fail(err, NOMEM, "%s: no memory to write the file", name);
    }
    return r;
}

static int fill_file(struct co *co, struct create *c, const char *name, struct byre_err *err)
{
    const struct stor_file_hints hints = { .nocow = c->fo.nocow, .extent_bytes = c->fo.extent_size_hint };
    if (c->store->traits.regular)
        stor_file_hint(co, name, &hints);
    int r = c->ops->create(co, c->store, &c->fo, err);
    if (r)
        return r;
    r = stor_flush(co, c->store);
    if (!r)
        r = stor_file_keep_name(co, name);       /* I3 */
    return r ? byre_fail_code(err, IO, r, "%s: cannot be made durable: %s", name, strerror(-r)) : 0;
}

static int make_file(struct co *co, struct create *c, struct byre_err *err)
{
    const char *name = json_string_value(json_object_get(c->options, "filename"));
    bool made = false;
    int r = name ? c->ops->create(co, NULL, &c->fo, err) : byre_fail(err, BAD_ARGUMENT, "Parameter 'filename' is missing");
    CLEANUP(graph_making_endp) struct graph_making *making = NULL;
    if (!r)
        r = graph_making_begin(co, c->g, name, &making, err);
    if (!r && graph_uses_file(co, c->g, name))
        r = byre_fail(err, LOCKED, "'%s' is the file of a node that is open", name);
    if (!r)
        r = open_file(co, c, name, &made, err);
    if (r)
        return r;
    r = fill_file(co, c, name, err);
    if (r && !made)
        wipe(co, c, c->store, err);
    if (r && made)                               /* while it is locked: behind that it may be another's. The error told is the first one */
        (void)!rt_blocking(co, remove_blocking, &(struct removal){ name });
    stor_close(co, c->store);
    return r;
}

/* ---- the job ---- */

static int create_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct create *c = job->opaque;
    c->job = job;
    c->fo.secrets = graph_secrets(c->g);
    snprintf(c->who, sizeof c->who, "job %s", job->id ? job->id : job->kind->type);
    job_progress(job, 0, 1);
    int r = settle(co, c, err);
    if (!r)
        r = strcmp(c->driver, "file") ? make_in_node(co, c, err) : make_file(co, c, err);
    job_progress(job, 1, 1);
    return r;
}

static void create_fini(struct job *job)
{
    struct create *c = job->opaque;
    if (c->rows)
        opt_fini(c->rows, &c->fo);
    json_decref(c->options);
    free(c);
}

const struct job_kind job_create_kind = { .type = "create", .run = create_run, .fini = create_fini };

int job_create_start(struct jobs *js, const struct job_create_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct create *c = calloc(1, sizeof *c);
    json_t *options = json_deep_copy(o->options);
    if (!c || !options) {
        free(c);
        json_decref(options);
        return byre_fail(err, NOMEM, "no memory for a job");
    }
    c->g = o->graph;
    c->options = options;
    c->driver = json_string_value(json_object_get(options, "driver"));
    struct job_opts jo = o->job;
    jo.opaque = c;
    jo.keep_concluded = true;
    int r = job_start(js, &job_create_kind, &jo, ret_job, err);
    if (r) {
        json_decref(options);
        free(c);
    }
    return r;
}
