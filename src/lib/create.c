/* SPDX-License-Identifier: MIT
 *
 * create.c: making images.
 *
 * Purpose      Options, backing image and size are settled first; then the file is made and the format writes into it.
 * Owns         struct create while a call runs
 * Invariants   I1 nothing is written before every option is known to be acceptable to its row and the backing image opened
 *              I2 a failed creation leaves no file that this call made (unless somebody has opened it since), and no header in a file that was there
 *              I3 the name of the backing image is taken as one that an image records, and not as one of the user's: what is made opens
 *              I4 no file is emptied that is one of the backing chain, or in which an image of this context lies, whatever it is called
 *              I5 when it has succeeded, the image and the name of each file that was made are durable
 * Order        see fmt_ops.create: the header is written last and flushed; then the folders
 * Concurrency  any foreign thread; the work runs on the home loop
 * Failure      names the file, the option and the value
 * Tests        tests/cli/create_test.py
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/opt.h"
#include "fmt/create_rows.h"
#include "lib/create_priv.h"

#define SIZE_LIMIT (UINT64_C(1) << 63)

/* ---- options ---- */
static int override(char **field, const char *value)
{
    char *copy = value ? strdup(value) : NULL;
    if (value && !copy)
        return -ENOMEM;
    if (value) {
        free(*field);
        *field = copy;
    }
    return 0;
}

static int parse_lists(struct create *c, struct byre_err *err)
{
    int r = opt_defaults(c->rows, &c->fo, err);
    for (unsigned i = 0; !r && i < c->o.option_count; i++)
        r = opt_parse_list(c->rows, &c->fo, c->o.options[i], &c->seen, err);
    return r;
}

static int settle_backing(struct create *c, struct byre_err *err)
{
    bool can = opt_find(c->rows, "backing_file");
    if ((c->o.backing_file || c->o.backing_format) && !can)
        return byre_fail(err, NOT_SUPPORTED, "%s: the format %s cannot have a backing file", c->filename, c->ops->name);
    if (override(&c->fo.backing_file, c->o.backing_file) || override(&c->fo.backing_fmt, c->o.backing_format))
        return byre_fail(err, NOMEM, "no memory for options");
    const char *name = c->fo.backing_file;
    if (name && !*name)
        return byre_fail(err, BAD_ARGUMENT, "%s: the name of the backing file is empty", c->filename);
    if (name && c->remote && name[0] != '/' && name[strcspn(name, ":/")] != ':')
        return byre_fail(err, BAD_ARGUMENT, "%s: the image is to lie on a server; a backing file with a relative name is not found from there", c->filename);
    if (name && strcmp(name, c->filename) == 0)
        return byre_fail(err, BAD_ARGUMENT, "%s: an image cannot be its own backing file", c->filename);
    if (name && !c->fo.backing_fmt)
        return byre_fail(err, BACKING_FORMAT, "%s: the format of the backing file '%s' must be stated", c->filename, name);
    if (!name && c->fo.backing_fmt)
        return byre_fail(err, BAD_OPTION, "%s: a backing format is given, but no backing file", c->filename);
    return 0;
}

static int settle_size(struct create *c, struct byre_err *err)
{
    bool listed = opt_seen(c->rows, c->seen, "size");
    if (listed && (c->o.flags & BYRE_CREATE_SIZE) && !(c->o.flags & BYRE_CREATE_SIZE_WINS))
        return byre_fail(err, BAD_OPTION, "%s: the size is given twice", c->filename);
    c->has_size = listed || (c->o.flags & BYRE_CREATE_SIZE);
    if (c->o.flags & BYRE_CREATE_SIZE)
        c->fo.size = c->o.size;
    return 0;
}

int create_settle(struct create *c, struct byre_err *err)
{
    const char *format = c->o.format ? c->o.format : "raw";
    c->ops = fmt_by_name(format);
    c->rows = fmt_create_rows(format, true);
    if (!c->ops || !c->rows)
        return byre_fail(err, UNKNOWN_FORMAT, "the format '%s' is not known", format);
    if ((c->o.flags & BYRE_CREATE_WRITABLE) && !c->ops->write_begin)
        return byre_fail(err, NOT_SUPPORTED, "images of the format %s can be made and read, but not written yet", format);
    int r = parse_lists(c, err);
    if (!r && c->fo.encrypt.detached && (c->o.flags & BYRE_CREATE_WRITABLE))
        r = byre_fail(err, BAD_OPTION, "detached-header: what is written needs a disk, and this makes a header alone");
    if (!r)
        r = settle_backing(c, err);
    if (!r)
        r = settle_size(c, err);
    return r;
}

void create_fini(struct create *c)
{
    if (c->rows)
        opt_fini(c->rows, &c->fo);
}

/* ---- backing image ---- */

/* Of what lies under the name of the working directory. false: nothing, or nothing that can be looked at. */
static bool identity_of(struct co *co, const char *name, uint64_t *ret_a, uint64_t *ret_b)
{
    struct stor_file_opts so = { .read_only = true, .locking = STOR_LOCK_OFF };
    struct stor *s;
    if (stor_file_open(co, name, &so, &s, NULL))
        return false;
    bool known = stor_file_identity(s, ret_a, ret_b);
    stor_close(co, s);
    return known;
}

/* chain NULL: it is not open, and begins with the file `path`. */
static bool is_in(struct co *co, const char *name, const struct graph_node *chain, const char *path)
{
    uint64_t a, b, c, d;
    if (!name || !identity_of(co, name, &a, &b))
        return false;
    return chain ? graph_has_file(chain, a, b) : identity_of(co, path, &c, &d) && a == c && b == d;
}

/* I4. By what the files are, and not by locks: a backing file may be in use elsewhere. */
static int check_places(struct co *co, const struct create *c, const struct graph_node *chain, const char *path)
{
    const char *image = c->remote ? NULL : c->filename, *bad = is_in(co, image, chain, path) ? image : is_in(co, c->fo.data_file, chain, path) ? c->fo.data_file : NULL;
    return bad ? byre_fail(c->err, BAD_ARGUMENT, "%s: is a file of the backing chain that begins with '%s', and would be emptied", bad, c->fo.backing_file) : 0;
}

/* The same of images that are open: of a raw layer that may be written elsewhere no lock says that it is being read. */
static int check_open(struct co *co, const struct create *c)
{
    const char *const names[] = { c->remote ? NULL : c->filename, c->fo.data_file };
    struct graph *g = c->ctx->graph;
    uint64_t a, b;
    for (unsigned i = 0; graph_next(g, NULL) && i < sizeof names / sizeof names[0]; i++)
        if (names[i] && identity_of(co, names[i], &a, &b))
            for (struct graph_node *n = graph_next(g, NULL); n; n = graph_next(g, n))
                if (graph_has_file(n, a, b))
                    return byre_fail(c->err, BAD_ARGUMENT, "%s: is a file of the image '%s', which is open, and would be emptied", names[i], graph_filename(n));
    return 0;
}

/* The same where nobody wants the backing file to be opened. */
static int check_places_unopened(struct co *co, const struct create *c)
{
    AUTOFREE char *path = NULL, *data = NULL;
    return graph_name_file(c->ctx->policy, c->fo.backing_file, c->filename, &path, &data, NULL) ? 0 : check_places(co, c, NULL, path);
}

static int size_from_backing(struct co *co, struct create *c)
{
    struct graph_node *n;
    struct byre_err why = { 0 };
    struct graph_open_opts go = { .filename = c->fo.backing_file, .overlay = c->filename, .format = c->fo.backing_fmt, .read_only = true };      /* I3 */
    int r = graph_open(co, c->ctx->graph, &go, &n, &why);
    if (r)
        return byre_fail_code(c->err, BACKING_OPEN, r, "%s: the backing file cannot be opened: %s", c->filename, why.text);
    if (!c->has_size)
        c->fo.size = graph_length(n);
    c->has_size = true;
    r = check_places(co, c, n, NULL);
    int closed = graph_close(co, n);
    return r ? r : closed;
}

/* ---- the line that is told before creation ---- */
static bool is_told(const struct create *c, const char *name)
{
    static const char *const always[] = { "cluster_size", "extended_l2", "compression_type", "size", "lazy_refcounts", "refcount_bits" };
    for (size_t i = 0; i < sizeof always / sizeof always[0]; i++)
        if (strcmp(always[i], name) == 0)
            return true;
    if (strcmp(name, "backing_file") == 0 || strcmp(name, "backing_fmt") == 0)
        return c->fo.backing_file;
    return opt_seen(c->rows, c->seen, name);
}

static void put_value(FILE *f, const char *value)
{
    for (; *value; value++) {
        if (*value == ',')
            fputc(',', f);
        fputc(*value, f);
    }
}

static int tell(struct create *c)
{
    char *text = NULL, buf[OPT_TEXT_MAX];
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return -ENOMEM;
    fprintf(f, "fmt=%s", c->ops->name);
    for (const char *const *name = fmt_create_order(c->ops->name); *name; name++) {
        const struct opt_row *row = opt_find(c->rows, *name);
        if (!row || !is_told(c, *name))
            continue;
        const char *value = row->flags & OPT_LATER ? "off" : opt_text(row, &c->fo, buf);
        fprintf(f, " %s=", *name);
        put_value(f, value ? value : "");
    }
    int r = fclose(f) ? -ENOMEM : 0;
    if (!r)
        c->o.ready(c->o.arg, text);
    free(text);
    return r;
}

/* ---- the file ---- */
static int open_file(struct co *co, struct create *c, struct stor **ret)
{
    struct stor_file_opts so = { .create = !(c->o.flags & BYRE_CREATE_KEEP_FILE), .exclusive = true };
    struct byre_err why;
    if (c->remote && (c->o.flags & BYRE_CREATE_EXCLUSIVE))
        return byre_fail(c->err, EXISTS, "%s: the export is there already, as it must be", c->filename);
    int r = graph_store_open(co, c->ctx->graph, c->filename, &so, ret, &why);
    c->made_file = !r && so.create && !c->remote;
    if (c->made_file)
        graph_making_is(c->making, *ret);
    if (r == -EEXIST && !(c->o.flags & BYRE_CREATE_EXCLUSIVE)) {
        so.exclusive = false;
        so.truncate_to_zero = true;
        r = graph_store_open(co, c->ctx->graph, c->filename, &so, ret, &why);
    }
    if (r && c->err)
        *c->err = why;
    return r;
}

/* The external data file: made, or emptied when it is there. Its name is the working directory's, as the peer has it. */
static int open_data(struct co *co, void *arg, const char *name, struct stor **ret, struct byre_err *err)
{
    struct create *c = arg;
    struct stor_file_opts so = { .create = true, .exclusive = true };
    int r = graph_making_begin(co, c->ctx->graph, name, &c->making_data, err);
    if (r)
        return r;
    r = stor_file_open(co, name, &so, ret, err);
    c->made_data = !r;
    if (c->made_data)
        graph_making_is(c->making_data, *ret);
    if (r == -EEXIST) {
        so.exclusive = false;
        so.truncate_to_zero = true;
        r = stor_file_open(co, name, &so, ret, err);
    }
    c->has_data = !r;
    return r;
}

/* I5. The format has flushed what it wrote. */
static int keep(struct co *co, struct create *c, const struct stor *s)
{
    const char *name = c->filename;
    int r = 0;
    if (!c->remote && s->traits.regular && !(c->o.flags & BYRE_CREATE_KEEP_FILE))
        r = stor_file_keep_name(co, name);
    if (!r && c->has_data) {
        name = c->fo.data_file;
        r = stor_file_keep_name(co, name);
    }
    return r ? byre_fail_code(c->err, IO, r, "%s: cannot be made durable: %s", name, strerror(-r)) : 0;
}

static int write_image(struct co *co, struct create *c)
{
    struct stor *s;
    struct fmt_host host = { .open_data = open_data, .arg = c };
    int r = c->ops->create(co, NULL, &c->fo, c->err);        /* nothing is touched for options that will not do */
    if (!r && !c->remote)
        r = graph_making_begin(co, c->ctx->graph, c->filename, &c->making, c->err);
    if (!r)
        r = open_file(co, c, &s);
    if (r)
        return r;
    c->fo.host = &host;
    if (s->traits.regular && !(c->o.flags & BYRE_CREATE_KEEP_FILE))
        stor_file_hint(co, c->filename, &(struct stor_file_hints){ .nocow = c->fo.nocow, .extent_bytes = c->fo.extent_size_hint });
    r = c->ops->create(co, s, &c->fo, c->err);
    if (!r)
        r = keep(co, c, s);
    if (r && !c->made_file && s->traits.regular)
        (void)!stor_truncate(co, s, 0);      /* no half-made image stays; the error told is the first one */
    stor_close(co, s);
    c->fo.host = NULL;
    if (r && c->made_data)
        graph_making_drop(co, c->making_data);
    if (r && c->made_file)
        graph_making_drop(co, c->making);
    return r;
}

/* That the new image depends on its backing file: when that cannot be kept, it is a warning. */
static int record(struct co *co, struct create *c)
{
    AUTOFREE char *path = NULL, *data = NULL;
    if (!c->ctx->records.on || !c->fo.backing_file || c->remote ||
        graph_name_file(c->ctx->policy, c->fo.backing_file, c->filename, &path, &data, NULL))
        return 0;                                /* it lies on a server, or nobody knows where */
    lib_records_linked(co, &c->ctx->records, c->filename, path);
    return 0;
}

static int create_co(struct co *co, void *arg)
{
    struct create *c = arg;
    int r = 0;
    c->fo.secrets = c->ctx->secrets;
    if (c->fo.backing_file && !(c->o.flags & BYRE_CREATE_NO_BACKING_CHECK))
        r = size_from_backing(co, c);
    else if (c->fo.backing_file)
        r = check_places_unopened(co, c);
    if (!r)
        r = check_open(co, c);
    if (r)
        return r;
    if (c->fo.encrypt.detached)
        c->fo.size = 0;                          /* of a header alone it says nothing */
    else if (!c->has_size)
        return byre_fail(c->err, BAD_SIZE, "%s: the size of the image must be given", c->filename);
    if (c->fo.size >= SIZE_LIMIT)
        return byre_fail(c->err, BAD_SIZE, "%s: a size of %" PRIu64 " bytes is too large (the limit is 2^63 - 1)", c->filename, c->fo.size);
    if (c->o.ready && tell(c))
        return byre_fail(c->err, NOMEM, "no memory for a message");
    c->fo.size = round_up(c->fo.size, 512);
    int w = write_image(co, c);
    graph_making_end(TAKE(c->making));
    graph_making_end(TAKE(c->making_data));
    return w ? w : record(co, c);
}

/* An image records the path of its data file; a name with a protocol would not be opened. */
static int settle_data_file(struct create *c)
{
    char *name = c->fo.data_file;
    int r = 0;
    for (const char *path = NULL; !r && name && path != name;) {
        r = graph_name_to_make(c->ctx->policy, name, &path, c->err);
        if (!r && !path)
            r = byre_fail(c->err, NOT_SUPPORTED, "%s: an external data file must be a file of this machine, and '%s' is none", c->filename, name);
        else if (!r && path != name)
            memmove(name, path, strlen(path) + 1);       /* what stood behind file: is looked at once more */
    }
    return r;
}

int byre_create(struct byre_ctx *ctx, const char *filename, const struct byre_create_opts *opts, struct byre_err *err)
{
    struct create c = { .ctx = ctx, .err = err };
    const char *path;
    int r = graph_name_to_make(ctx->policy, filename, &path, err);
    c.filename = path ? path : filename;
    c.remote = !path;
    if (!r)
        r = lib_take_opts(&c.o, sizeof c.o, opts, err);
    if (!r)
        r = create_settle(&c, err);
    if (!r)
        r = settle_data_file(&c);
    if (!r)
        r = lib_call(ctx, lib_home(ctx), create_co, &c);
    create_fini(&c);
    return r;
}

int byre_create_help(const char *format, int with_file_options, void (*put)(void *arg, const char *text), void *arg)
{
    const struct opt_row *rows = fmt_create_rows(format, with_file_options);
    if (!rows)
        return -ENOENT;
    opt_doc_keys(rows, &(struct opt_out){ put, arg });
    return 0;
}

int byre_format_backing(const char *format)
{
    const struct opt_row *rows = fmt_create_rows(format, false);
    return !rows ? -ENOENT : opt_find(rows, "backing_file") ? 0 : -ENOTSUP;
}

int byre_name_is_remote(const struct byre_ctx *ctx, const char *name)
{
    return graph_name_is_remote(ctx->policy, name);
}
