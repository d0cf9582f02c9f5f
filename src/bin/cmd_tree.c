/* SPDX-License-Identifier: MIT
 *
 * cmd_tree.c: byre tree: chains and dependents of the images in directories.
 *
 * Purpose      Scans, and shows what was found as text, JSON or SVG.
 * Owns         nothing
 * Invariants   I1 only headers are read: images that are in use may be among them
 * Concurrency  main thread
 * Failure      exit 1 when a directory cannot be read, or when the output cannot be written. What is missing in a chain is shown, and no failure
 * Tests        tests/cli/tree_test.py
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/tree_draw.h"

struct opts {
    struct common common;
    char *output, *registry;
    bool svg, flat, quiet;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    { "flat", 0, OPT_BOOL, OPT_AT(struct opts, flat), .help = "leave out directories below the ones given" },
    { "registry", 0, OPT_STR, OPT_AT(struct opts, registry), .arg = "FILE", .help = "the registry of overlays [BYRE_REGISTRY of the environment]" },
    { "svg", 0, OPT_BOOL, OPT_AT(struct opts, svg), .help = "write a picture, as SVG" },
    ROW_OUTPUT(struct opts),
    ROW_QUIET(struct opts),
    OPT_END
};

/* ---- JSON ---- */

static const char *const link_words[] = { [BYRE_TREE_FOUND] = "found", [BYRE_TREE_MISSING] = "missing", [BYRE_TREE_UNREADABLE] = "unreadable",
    [BYRE_TREE_REMOTE] = "remote", [BYRE_TREE_UNCLEAR] = "unclear" };

struct edge_keys { const char *name, *format, *path, *state; };

static void json_edge(struct json_out *j, const struct byre_tree_edge *e, const struct edge_keys *k)
{
    if (e->link == BYRE_TREE_NONE)
        return;
    jo_str(j, k->name, e->name);
    if (k->format && e->format)
        jo_str(j, k->format, e->format);
    if (e->path)
        jo_str(j, k->path, e->path);
    jo_str(j, k->state, link_words[e->link]);
}

static void json_users(struct json_out *j, const struct byre_tree *t, const char *key, size_t i, bool data)
{
    struct byre_tree_image im;
    jo_open_arr(j, key);
    for (; i != BYRE_TREE_NOWHERE; i = data ? im.next_user : im.next_child) {
        byre_tree_get(t, i, &im);
        jo_str(j, NULL, im.path);
    }
    jo_close(j);
}

static void json_image(struct json_out *j, const struct byre_tree *t, const struct tree_row *row)
{
    static const struct edge_keys backing = { "backing-filename", "backing-filename-format", "full-backing-filename", "backing-state" };
    static const struct edge_keys data = { "data-file", NULL, "full-data-file", "data-file-state" };
    struct byre_tree_image im;
    byre_tree_get(t, row->image, &im);
    jo_open_obj(j, NULL);
    jo_str(j, "filename", im.path);
    jo_str(j, "format", im.format);
    if (im.format)
        jo_u64(j, "virtual-size", im.size);
    else
        jo_str(j, "error", im.why);
    jo_u64(j, "snapshots", im.snapshots);
    jo_u64(j, "depth", row->depth);
    jo_bool(j, "inside", im.inside);
    jo_bool(j, "recorded", im.recorded);
    json_edge(j, &im.backing, &backing);
    json_edge(j, &im.data_file, &data);
    if (row->loop)
        jo_bool(j, "backing-loop", true);
    json_users(j, t, "children", im.first_child, false);
    json_users(j, t, "data-file-users", im.first_user, true);
    jo_close(j);
}

/* An element per image, as soon as it is made: a tree may be large. */
static int print_json(struct run *r, const struct byre_tree *t, const struct tree_rows *tr)
{
    struct json_out j;
    bool first = true;
    int e = 0;
    json_out_init(&j, false);
    printf("[");
    for (size_t i = 0; !e && i < tr->count; i++) {
        if (tr->at[i].image == BYRE_TREE_NOWHERE)
            continue;
        json_out_reset(&j);
        json_image(&j, t, &tr->at[i]);
        e = json_out_error(&j);
        if (!e)
            printf("%s\n    %s", first ? "" : ",", j.text);
        first = false;
    }
    json_out_fini(&j);
    printf("\n]\n");
    return e ? run_fail(r, "no memory") : 0;
}

/* ---- run ---- */

static int show(struct run *r, const struct byre_tree *t, bool json)
{
    const struct opts *o = r->opts;
    struct tree_rows tr = { 0 };
    int code = 0;
    if (!tree_layout(t, &tr))
        code = run_fail(r, "no memory");
    else if (json)
        code = print_json(r, t, &tr);
    else if (o->svg)
        tree_draw_svg(stdout, t, &tr);
    else
        tree_draw_text(stdout, t, &tr);
    tree_rows_fini(&tr);
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_tree *t;
    struct byre_tree_opts to = byre_tree_opts_init();
    static const char *const here = ".";
    int json = run_output(r, o->output);
    if (json < 0)
        return 1;
    if (json && o->svg)
        return run_usage(r, "--svg and --output=json exclude each other");
    to.paths = r->argc ? (const char *const *)r->argv : &here;
    to.path_count = r->argc ? (unsigned)r->argc : 1;
    to.flags = o->flat ? BYRE_TREE_FLAT : 0;
    to.registry = o->registry ? o->registry : run_registry();
    if (byre_tree_scan(&to, &t, &err))
        return run_fail_err(r, &err);
    int code = show(r, t, json);
    if (byre_tree_skipped(t) && !o->quiet)
        run_warn(r, "directories that could not be read, and were left out: %" PRIu64, byre_tree_skipped(t));
    byre_tree_free(t);
    return run_finish_output(r, code);
}

const struct cmd cmd_tree = { "tree", "[DIRECTORY | FILE]...", "Show which images depend on which", rows, sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
