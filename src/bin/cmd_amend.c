/* SPDX-License-Identifier: MIT
 *
 * cmd_amend.c: byre amend (FEATURES 5.066, 1.138..1.141).
 *
 * Purpose      Changes options of an image that exists.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/amend_test.py
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"
#include "bin/target.h"

struct opts {
    struct common common;
    char *format, *cache;
    struct opt_list options;
    bool image_opts, quiet, force, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "options", 'o', OPT_LIST, OPT_AT(struct opts, options), .arg = "KEY=VALUE,...", .help = "options to change; '-o help' lists them" },
    ROW_CACHE(struct opts, cache, "cache mode of the image"),
    { "force", 0, OPT_BOOL, OPT_AT(struct opts, force), .help = "do also what may lose something, as erasing the last key, or what changes under another image that depends on it" },
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static int help(struct run *r, const char *format)
{
    printf("Amend options for '%s':\n", format);
    int rc = byre_amend_help(format, run_stdout.put, run_stdout.arg);
    if (rc == -ENOENT)
        return run_fail(r, "Unknown file format '%s'", format);
    return rc ? run_fail(r, "Options of %s images cannot be changed", format) : 0;
}

static int amend(struct run *r, const struct opts *o, struct byre_image *image)
{
    struct byre_err err;
    struct byre_job *job;
    struct byre_amend_opts a = byre_amend_opts_init();
    struct progress_opts po = { o->progress_on && !o->quiet, o->quiet ? 0 : o->progress, "bytes" };
    a.options = (const char *const *)o->options.items;
    a.option_count = (unsigned)o->options.count;
    a.flags = o->force ? BYRE_AMEND_FORCE : 0;
    if (byre_amend_start(image, &a, &job, &err))
        return run_fail_err(r, &err);
    int rc = progress_wait(r, job, &po, &err);
    byre_job_free(job);
    return rc ? run_fail_err(r, &err) : 0;
}

/* Do these options change what the image shows, or how it is read by others that name it? */
static bool shows_otherwise(const struct opts *o, const struct byre_image *image)
{
    static const char *const keys[] = { "format", "data_file", "data_file_raw", "backing_file" };
    bool yes = false;
    for (size_t i = 0; i < o->options.count; i++) {
        const char *text = o->options.items[i];
        char *key, *value;
        while (!yes && opt_list_next(&text, &key, &value) > 0) {
            uint64_t size;
            for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
                yes |= !strcmp(key, keys[k]);
            yes |= !strcmp(key, "size") && value && !size_parse(value, &size) && size < byre_size(image);
            free(key);
            free(value);
        }
    }
    return yes;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct open_args a = { .format = o->format, .image_opts = o->image_opts, .quiet = o->quiet, .warn_raw = true };
    if (target_wants_help(&o->options) && o->format)
        return help(r, o->format);
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    if (!o->options.count)
        return run_usage(r, "options to change are needed (-o)");
    a.name = r->argv[0];
    a.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    if (a.cache < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    bool guarded = !target_wants_help(&o->options) && shows_otherwise(o, image);
    int code = guarded ? run_guard(r, image, &(struct run_guard){ BYRE_GUARD_CONTENT, NULL, o->force }) : 0;
    if (!code)
        code = target_wants_help(&o->options) ? help(r, byre_format(image)) : amend(r, o, image);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_amend = { "amend", "FILE", "Change options of an image", rows, sizeof(struct opts), cmd_run, .flags = 0 };
