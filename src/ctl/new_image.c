/* SPDX-License-Identifier: MIT
 *
 * new_image.c: files that commands make by the way (blockdev-snapshot-sync, drive-mirror).
 *
 * Purpose      An empty image of a format, maybe over another one, durably there.
 * Owns         nothing
 * Invariants   I1 a file that could not be made whole is removed again; nothing is touched for options that will not do
 *              I2 what it names as its backing file shows what the node shows that is to lie below it
 * Concurrency  home loop; suspends
 * Failure      as ctl_priv.h
 * Tests        tests/cli/blockdev_test.py, tests/cli/mirror_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/ctl_priv.h"
#include "ctl/new_image.h"
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

void ctl_drop_image(const char *file)
{
    struct stat st;
    if (!lstat(file, &st) && S_ISREG(st.st_mode))        /* a device, or a link to one, was not made here */
        (void)unlink(file);
}

static int make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err)
{
    struct stor *s;
    char *below = how->below ? recorded(graph_filename(how->below)) : NULL;
    const struct fmt_create_opts o = { .size = how->size, .version = 3, .refcount_bits = 16, .backing_file = below,
                                       .backing_fmt = how->below ? (char *)(uintptr_t)graph_format(how->below)->name : NULL };
    const struct stor_file_opts so = { .create = true, .truncate_to_zero = true, .passed = graph_passed(how->graph) };
    int r = how->below && !below ? byre_fail(err, NOMEM, "no memory for a file name") : how->ops->create(co, NULL, &o, err);
    if (!r)
        r = stor_file_open(co, how->file, &so, &s, err);
    if (!r) {
        r = how->ops->create(co, s, &o, err);    /* durable when it returns */
        stor_close(co, s);
        int kept = r ? 0 : stor_file_keep_name(co, how->file);
        if (kept)
            r = byre_fail_code(err, IO, kept, "%s: its name cannot be made durable: %s", how->file, strerror(-kept));
        if (r)
            ctl_drop_image(how->file);
    }
    free(below);
    return r;
}

int ctl_make_image(struct co *co, const struct ctl_new_image *how, struct byre_err *err)
{
    if (!how->below)
        return make_image(co, how, err);
    graph_ref(how->below);
    int r = graph_name_check(co, how->below, NAME_INSTEAD, err);         /* I2 */
    if (!r)
        r = make_image(co, how, err);
    (void)!graph_close(co, how->below);          /* somebody else has it, or nobody is there to be told */
    return r;
}
