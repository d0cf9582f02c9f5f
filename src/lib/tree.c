/* SPDX-License-Identifier: MIT
 *
 * tree.c: the public side of src/tree: scans, the guard, and the record that is kept when images get a backing file.
 *
 * Purpose      Hands paths down and results up.
 * Owns         struct byre_tree; what a context has been told about records (struct lib_records)
 * Invariants   I1 a record that cannot be kept is a warning: the image that it is about is right all the same
 * Concurrency  scans and checks: any thread that may block. Recording: the home loop, over the pool of blocking calls
 * Failure      as include/byre/tree.h
 * Tests        tests/cli/tree_test.py
 */
#include <sys/stat.h>

#include "lib/lib_priv.h"
#include "tree/tree.h"

struct byre_tree { struct tree *t; struct tree_opts o; char *registry; uint64_t skipped; };

static int add_paths(struct byre_tree *bt, const struct byre_tree_opts *o, struct byre_err *err)
{
    int r = 0;
    for (unsigned i = 0; !r && i < o->path_count; i++) {
        struct stat st;
        uint64_t skipped = 0;
        bool dir = !stat(o->paths[i], &st) && S_ISDIR(st.st_mode);
        r = dir ? tree_add_dir(bt->t, o->paths[i], !(o->flags & BYRE_TREE_FLAT), &skipped, err) : tree_add_file(bt->t, o->paths[i], err);
        bt->skipped += skipped;
    }
    return r;
}

int byre_tree_scan(const struct byre_tree_opts *opts, struct byre_tree **ret_tree, struct byre_err *err)
{
    struct byre_tree_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r && o.flags & ~(unsigned)BYRE_TREE_FLAT)
        r = byre_fail(err, BAD_ARGUMENT, "an option of the tree is out of range");
    if (r)
        return r;
    struct byre_tree *bt = calloc(1, sizeof *bt);
    if (!bt || (o.registry && !(bt->registry = strdup(o.registry)))) {
        free(bt);
        return byre_fail(err, NOMEM, "no memory for a tree of images");
    }
    bt->o.registry = bt->registry;
    r = tree_new(&bt->o, &bt->t, err);
    if (!r)
        r = add_paths(bt, &o, err);
    if (!r)
        r = tree_settle(bt->t, err);
    if (r)
        byre_tree_free(bt);
    else
        *ret_tree = bt;
    return r;
}

size_t byre_tree_count(const struct byre_tree *tree) { return tree_count(tree->t); }
uint64_t byre_tree_skipped(const struct byre_tree *tree) { return tree->skipped; }

static struct byre_tree_edge edge_of(const struct tree_edge *e)
{
    static const int links[] = { [TREE_NONE] = BYRE_TREE_NONE, [TREE_FOUND] = BYRE_TREE_FOUND, [TREE_MISSING] = BYRE_TREE_MISSING,
        [TREE_UNREADABLE] = BYRE_TREE_UNREADABLE, [TREE_REMOTE] = BYRE_TREE_REMOTE, [TREE_UNCLEAR] = BYRE_TREE_UNCLEAR };
    return (struct byre_tree_edge){ links[e->link], e->name, e->format, e->path, e->to };
}

void byre_tree_get(const struct byre_tree *tree, size_t i, struct byre_tree_image *ret)
{
    const struct tree_image *im = tree_at(tree->t, i);
    *ret = (struct byre_tree_image){
        .path = im->path, .format = im->fmt ? im->fmt->name : NULL, .why = im->why, .size = im->size, .snapshots = im->snapshots, .inside = im->named,
        .recorded = im->recorded, .backing = edge_of(&im->backing), .data_file = edge_of(&im->data), .first_child = im->first_child,
        .next_child = im->next_child, .first_user = im->first_data, .next_user = im->next_data };
}

void byre_tree_free(struct byre_tree *tree)
{
    if (!tree)
        return;
    tree_free(tree->t);
    free(tree->registry);
    free(tree);
}

/* ---- guard ---- */

struct chain { struct byre_image *image; int what; const char *base; struct byre_err *err; char **names; size_t count, first_target; size_t targets; };

static int name_chain(struct chain *c)
{
    size_t n = 0;
    for (struct graph_node *m = c->image->node; m; m = graph_backing(m))
        n++;
    c->names = calloc(n + 1, sizeof *c->names);
    if (!c->names)
        return -ENOMEM;
    for (struct graph_node *m = c->image->node; m; m = graph_backing(m), c->count++)
        if (!(c->names[c->count] = strdup(graph_filename(m))))
            return -ENOMEM;
    return 0;
}

/* Home loop: the files of the chain from the image down, and which of them are about to change. */
static int collect(struct co *co, void *arg)
{
    struct chain *c = arg;
    struct graph_node *top = c->image->node, *base = NULL;
    if (name_chain(c))
        return byre_fail(c->err, NOMEM, "no memory for a tree of images");
    c->targets = 1;
    if (c->what == BYRE_GUARD_CONTENT)
        return 0;
    base = c->base ? graph_layer(co, top, c->base) : graph_backing(top);
    if (!base) {
        c->targets = 0;                          /* the commit itself says what is wrong */
        return 0;
    }
    c->first_target = 1;
    c->targets = 0;
    for (struct graph_node *m = graph_backing(top); m; m = graph_backing(m)) {
        c->targets++;
        if (m == base)
            break;
    }
    return 0;
}

int byre_guard_check(struct byre_image *image, int what, const char *base, struct byre_err *err)
{
    struct chain c = { .image = image, .what = what, .base = base, .err = err };
    if (what != BYRE_GUARD_CONTENT && what != BYRE_GUARD_COMMIT)
        return byre_fail(err, BAD_ARGUMENT, "the guard does not know what is asked of it");
    int r = lib_call(image->ctx, lib_home(image->ctx), collect, &c);
    const char *const *names = (const char *const *)c.names;
    struct tree_guard g = { .opts = &image->ctx->records.o, .files = names ? names + c.first_target : NULL, .file_count = c.targets, .except = names,
                            .except_count = c.count };
    if (!r && c.targets)
        r = tree_guard_check(&g, err);
    for (size_t i = 0; i < c.count; i++)
        free(c.names[i]);
    free(c.names);
    return r;
}

/* ---- records ---- */

struct recording { const struct tree_opts *o; char *overlay, *backing; struct byre_err err; };

static int64_t record_now(void *arg)
{
    struct recording *rec = arg;
    return tree_record(rec->o, rec->backing, rec->overlay, &rec->err);
}

void lib_records_linked(struct co *co, void *arg, const char *overlay, const char *backing)
{
    struct lib_records *records = arg;
    struct recording rec = { .o = &records->o, .overlay = strdup(overlay), .backing = strdup(backing) };
    int64_t r = rec.overlay && rec.backing ? rt_blocking(co, record_now, &rec) : -ENOMEM;
    if (r && !rec.err.code)
        (void)!byre_fail(&rec.err, NOMEM, "%s: no memory to record its backing file", overlay);
    if (r && records->warn)
        records->warn(records->warn_arg, rec.err.text);
    free(rec.overlay);
    free(rec.backing);
}

int lib_records_init(struct lib_records *records, const struct byre_ctx_opts *o, struct byre_err *err)
{
    records->on = o->flags & BYRE_CTX_RECORD_OVERLAYS;
    records->warn = o->warn;
    records->warn_arg = o->warn_arg;
    records->registry = o->registry ? strdup(o->registry) : NULL;
    records->o.registry = records->registry;
    return o->registry && !records->registry ? byre_fail(err, NOMEM, "no memory for a context") : 0;
}

const struct tree_opts *lib_ctx_tree(const struct byre_ctx *ctx) { return &ctx->records.o; }
