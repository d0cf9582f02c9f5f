/* SPDX-License-Identifier: MIT
 *
 * cmd_rebase.c: byre rebase (FEATURES 5.058..5.063, 2.019).
 *
 * Purpose      Gives an image another backing file.
 * Owns         nothing
 * Invariants   I1 exit 0 means: the image reads as before (but for -u), and durably so (but for -t unsafe)
 * Concurrency  main thread; the copy runs on the threads of the context
 * Failure      exit 1; 128 + signal when cancelled. The image reads as before, through its old backing file
 * Tests        tests/cli/commit_test.py
 */
#include <stdio.h>
#include <unistd.h>

#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"

struct opts {
    struct common common;
    char *format, *cache, *src_cache, *backing, *backing_format;
    bool image_opts, quiet, unsafe, compress, drop_equal, force_share, force, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "backing", 'b', OPT_STR, OPT_AT(struct opts, backing), .arg = "FILE", .help = "the new backing file, as seen from the image; \"\" for none" },
    { "backing-format", 'F', OPT_STR, OPT_AT(struct opts, backing_format), .arg = "FMT", .help = "format of the new backing file" },
    { "backing-unsafe", 'u', OPT_BOOL, OPT_AT(struct opts, unsafe), .help = "change the name only: the new backing file is said to hold the same" },
    { "compress", 'c', OPT_BOOL, OPT_AT(struct opts, compress), .help = "store what is copied compressed" },
    { "drop-equal", 0, OPT_BOOL, OPT_AT(struct opts, drop_equal), .help = "afterwards, drop clusters of the image that the new backing file holds as well" },
    ROW_CACHE(struct opts, cache, "cache mode of the image; it is flushed before the name changes but for unsafe [writeback]"),
    ROW_SRC_CACHE(struct opts, src_cache),
    { "force-share", 'U', OPT_BOOL, OPT_AT(struct opts, force_share), .help = "accepted, and of no effect: an image that another program writes to cannot be changed" },
    ROW_FORCE(struct opts),
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static int rebase(struct run *r, struct byre_image *image, int src_cache)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_job *job;
    struct byre_rebase_opts ro = byre_rebase_opts_init();
    struct progress_opts po = { o->progress_on && !o->quiet, o->quiet ? 0 : o->progress, "bytes" };
    ro.flags = (o->unsafe ? BYRE_REBASE_UNSAFE : 0) | (o->compress ? BYRE_REBASE_COMPRESS : 0) | (o->drop_equal ? BYRE_REBASE_DROP_EQUAL : 0);
    ro.backing_file = o->backing;
    ro.backing_format = o->backing_format;
    ro.cache = src_cache;
    if (byre_rebase_start(image, &ro, &job, &err))
        return run_fail_err(r, &err);
    return progress_finish(r, job, &po, "rebase", image);
}

/* An unsafe rebase may change what the image shows. Where the old backing file is gone it shows nothing now, and this is the way out. */
static int guard(struct run *r, struct byre_image *image)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_info *i;
    if (!o->unsafe || o->force)
        return 0;
    if (byre_info_get(image, &i, &err))
        return run_fail_err(r, &err);
    bool works = !i->full_backing_filename || access(i->full_backing_filename, F_OK) == 0 || byre_name_is_remote(r->ctx, i->full_backing_filename);
    byre_info_free(i);
    return works ? run_guard(r, image, &(struct run_guard){ BYRE_GUARD_CONTENT, NULL, false }) : 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct open_args a = { .format = o->format, .image_opts = o->image_opts, .quiet = o->quiet, .flags = o->unsafe ? BYRE_OPEN_NO_BACKING : o->drop_equal ? BYRE_OPEN_DISCARD : 0 };
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    if (!o->backing && !o->unsafe)
        return run_usage(r, "Must specify backing file (-b) or use unsafe mode (-u)");
    a.name = r->argv[0];
    a.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    int src_cache = a.cache < 0 ? -1 : run_cache(r, o->src_cache, BYRE_CACHE_WRITEBACK, "source cache");
    if (src_cache < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = guard(r, image);
    if (!code)
        code = rebase(r, image, src_cache);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_rebase = { "rebase", "FILE", "Give an image another backing file", rows, sizeof(struct opts), cmd_run, .flags = 0 };
