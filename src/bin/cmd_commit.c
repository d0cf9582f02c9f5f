/* SPDX-License-Identifier: MIT
 *
 * cmd_commit.c: byre commit (FEATURES 5.021..5.025).
 *
 * Purpose      Writes what an image holds into one of the images below it.
 * Owns         nothing
 * Invariants   I1 exit 0 means: the base holds all of it, durably (but for -t unsafe)
 *              I2 with -d or -b the image is open for reading only: not a byte of it changes
 * Concurrency  main thread; the copy runs on the threads of the context
 * Failure      exit 1; 128 + signal when cancelled. The image reads as before
 * Tests        tests/cli/commit_test.py
 */
#include <stdio.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"

struct opts {
    struct common common;
    char *format, *cache, *base, *rate, *output;
    bool image_opts, quiet, keep, force, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_CACHE(struct opts, cache, "cache mode of the images; the base is flushed at the end but for unsafe [writeback]"),
    { "base", 'b', OPT_STR, OPT_AT(struct opts, base), .arg = "BASE", .help = "image of the backing chain that takes all that lies above it [the next one]; as -d, the images above stay as they are" },
    { "drop", 'd', OPT_BOOL, OPT_AT(struct opts, keep), .help = "do not empty the image, since it will be deleted" },
    { "rate", 'r', OPT_STR, OPT_AT(struct opts, rate), .arg = "SIZE", .help = "bytes per second" },
    ROW_FORCE(struct opts),
    ROW_OUTPUT(struct opts),
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static void print_json(const struct byre_commit_result *c, const char *filename)
{
    struct json_out j;
    json_out_init(&j, true);
    jo_open_obj(&j, NULL);
    jo_str(&j, "filename", filename);
    jo_str(&j, "base", c->base);
    jo_u64(&j, "bytes-written", c->written);
    jo_u64(&j, "bytes-zeroed", c->zeroed);
    jo_close(&j);
    if (!json_out_error(&j))
        printf("%s\n", j.text);
    json_out_fini(&j);
}

static int commit(struct run *r, struct byre_image *image, uint64_t rate, struct byre_commit_result *ret)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_job *job;
    struct byre_commit_opts co = byre_commit_opts_init();
    struct progress_opts po = { o->progress_on && !o->quiet, o->quiet ? 0 : o->progress, "bytes" };
    co.flags = byre_is_read_only(image) ? BYRE_COMMIT_KEEP : 0;
    co.base = o->base;
    co.rate_bytes = rate;
    if (byre_commit_start(image, &co, ret, &job, &err))
        return run_fail_err(r, &err);
    return progress_finish(r, job, &po, "commit", image);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    uint64_t rate = 0;
    struct byre_commit_result res = byre_commit_result_init();
    struct open_args a = { .format = o->format, .image_opts = o->image_opts, .quiet = o->quiet, .flags = o->keep || o->base ? BYRE_OPEN_READ_ONLY : BYRE_OPEN_DISCARD };
    int json = run_output(r, o->output);
    if (json < 0)
        return 1;
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    if (o->rate && !run_size(r, o->rate, "rate limit", &rate))
        return 1;
    a.name = r->argv[0];
    a.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    if (a.cache < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = run_guard(r, image, &(struct run_guard){ BYRE_GUARD_COMMIT, o->base, o->force });
    if (!code)
        code = commit(r, image, rate, &res);
    if (!code && json)
        print_json(&res, byre_filename(image));
    run_close(r, image, &code);
    if (!code && !json && !o->quiet)
        printf("Image committed.\n");
    return run_finish_output(r, code);
}

const struct cmd cmd_commit = { "commit", "FILE", "Write what an image holds into its backing file", rows, sizeof(struct opts), cmd_run, .flags = 0 };
