/* SPDX-License-Identifier: MIT
 *
 * new_image.c: files that commands make by the way (blockdev-snapshot-sync, drive-mirror, drive-backup).
 *
 * Purpose      An empty image of a format, maybe over another one, durably there.
 * Owns         nothing
 * Invariants   I1 a file that could not be made whole is removed again; nothing is touched for options that will not do
 *              I2 what it names as its backing file shows what the node shows that is to lie below it
 *              I3 one command at a time makes a file, and only what it has made is removed (graph/making.h)
 * Concurrency  home loop; suspends
 * Failure      as ctl_priv.h
 * Tests        tests/cli/blockdev_test.py, tests/cli/mirror_test.py, tests/daemon/making_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "ctl/ctl_priv.h"
#include "ctl/new_image.h"
#include "graph/blockdev.h"
#include "stor/stor.h"

#define NAME_INSTEAD "make the new image yourself, with the backing file that it is to record, and use mode=existing"

/* An absolute path, or the name of another machine's disk, is what the new image records. NULL: no memory. */
static char *recorded(const char *path)
{
    char *text = NULL, *cwd = path[0] == '/' || stor_names_no_file(path) ? NULL : getcwd(NULL, 0);
    int n = cwd ? asprintf(&text, "%s/%s", cwd, path) : asprintf(&text, "%s", path);
    free(cwd);
    return n < 0 ? NULL : text;
}

/* Of a file of this machine that is made. */
static int path_of(const struct graph *g, const char *file, const char **ret_path, struct byre_err *err)
{
    int r = graph_name_to_make(graph_policy_of(g), file, ret_path, err);
    if (r || *ret_path)
        return r;
    return byre_fail(err, NOT_SUPPORTED, "'%s': no image is made there; make it yourself, and use mode=existing", file);
}

int ctl_claim_image(struct co *co, struct graph *g, const char *file, const char *whose, struct graph_making **ret_m, struct byre_err *err)
{
    const char *path;
    int r = path_of(g, file, &path, err);
    if (!r)
        r = graph_making_begin(co, g, path, ret_m, err);
    if (r || !graph_uses_file(co, g, file))
        return r;
    graph_making_end(TAKE(*ret_m));
    return byre_fail(err, EXISTS, "'%s' is the file of a node that is open; %s needs a file of its own", file, whose);
}

static int make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err)
{
    struct stor *s;
    const char *path;
    int r = path_of(how->graph, how->file, &path, err);
    if (r)
        return r;
    char *below = how->below ? recorded(graph_filename(how->below)) : NULL;
    const struct fmt_create_opts o = { .size = how->size, .version = 3, .refcount_bits = 16, .backing_file = below,
                                       .backing_fmt = how->below ? (char *)(uintptr_t)graph_format(how->below)->name : NULL };
    const struct stor_file_opts so = { .create = true, .truncate_to_zero = true, .passed = graph_passed(how->graph) };
    r = how->below && !below ? byre_fail(err, NOMEM, "no memory for a file name") : how->ops->create(co, NULL, &o, err);
    if (!r)
        r = stor_file_open(co, path, &so, &s, err);
    if (!r) {
        graph_making_is(how->making, s);
        r = how->ops->create(co, s, &o, err);    /* durable when it returns */
        stor_close(co, s);
        int kept = r ? 0 : stor_file_keep_name(co, path);
        if (kept)
            r = byre_fail_code(err, IO, kept, "%s: its name cannot be made durable: %s", how->file, strerror(-kept));
        if (r)
            graph_making_drop(co, how->making);
    }
    free(below);
    return r;
}

int ctl_make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err)
{
    if (!how->below)
        return make_image(co, how, err);
    graph_ref(how->below);
    struct graph *g = graph_of(how->below);
    graph_edges_hold(co, g);
    int r = graph_name_check(co, how->below, NAME_INSTEAD, err);         /* I2 */
    graph_edges_let(co, g);
    if (!r)
        r = make_image(co, how, err);
    (void)!graph_close(co, how->below);          /* somebody else has it, or nobody is there to be told */
    return r;
}
