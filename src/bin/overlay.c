/* SPDX-License-Identifier: MIT
 *
 * overlay.c: an overlay that nobody else sees (-s of io and nbd).
 *
 * Purpose      A temporary qcow2 image over an image that stays as it is.
 * Owns         nothing: whoever asked opens the overlay and removes its name at once
 * Invariants   none
 * Concurrency  main thread
 * Failure      told on standard error
 * Tests        tests/cli/io_test.py, tests/daemon
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bin/bin.h"

static int create_over(struct run *r, const char *path, const char *below, const struct byre_image *image)
{
    struct byre_err err;
    struct byre_create_opts c = byre_create_opts_init();
    c.format = "qcow2";
    c.backing_file = below;
    c.backing_format = byre_format(image);
    c.size = byre_size(image);
    c.flags = BYRE_CREATE_SIZE;
    if (!byre_create(r->ctx, path, &c, &err))
        return 0;
    (void)!unlink(path);
    return run_fail_err(r, &err);
}

char *overlay_make(struct run *r, const struct open_args *base)
{
    const char *dir = getenv("TMPDIR");
    char *path = NULL, *below = realpath(base->name, NULL);
    struct byre_image *image = NULL;
    int fd = -1, code = 1;
    struct open_args a = { .name = base->name, .format = base->format, .flags = BYRE_OPEN_READ_ONLY };
    if (below && !base->image_opts && (image = run_open(r, &a)))
        fd = asprintf(&path, "%s/byre.XXXXXX", dir && *dir ? dir : "/tmp") < 0 ? -1 : mkstemp(path);
    if (fd >= 0) {
        close(fd);
        code = create_over(r, path, below, image);
    } else if (!below || base->image_opts || image) {
        run_fail(r, "can't make a temporary overlay of %s", base->name);
    }
    (void)byre_close(image);
    free(below);
    if (!code)
        return path;
    free(path);
    return NULL;
}
