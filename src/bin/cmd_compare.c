/* SPDX-License-Identifier: MIT
 *
 * cmd_compare.c: byre compare (FEATURES 5e).
 *
 * Purpose      Do two images read the same? Strict: are they of the same size and allocation, too?
 * Owns         nothing
 * Invariants   I1 exit code: 0 same, 1 different (or wrong usage), 2 could not open, 3 no block status, 4 no data
 * Concurrency  main thread
 * Failure      exit 2, 3, 4
 * Tests        tests/cli/compare_test.py
 */
#include <inttypes.h>
#include <stdio.h>

#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"

enum { SAME = 0, DIFFERENT = 1, NOT_OPENED = 2, NO_STATUS = 3, NO_DATA = 4 };

struct opts {
    struct common common;
    char *format, *format2, *cache;
    bool image_opts, force_share, quiet, strict, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "image-opts", 0, OPT_BOOL, OPT_AT(struct opts, image_opts), .help = "both names are lists of node options (driver=qcow2,file.filename=x)" },
    { "format", 'f', OPT_STR, OPT_AT(struct opts, format), .arg = "FMT", .help = "format of the first image; probed when not given" },
    { "second-format", 'F', OPT_STR, OPT_AT(struct opts, format2), .arg = "FMT", .help = "format of the second image; probed when not given" },
    ROW_SRC_CACHE(struct opts, cache),
    { "strict", 's', OPT_BOOL, OPT_AT(struct opts, strict), .help = "sizes and allocation must be the same, too" },
    ROW_FORCE_SHARE(struct opts),
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static int failed(struct run *r, const struct byre_compare_result *c, const struct byre_err *err, struct byre_image *const *images)
{
    if (c->failed_image == 1 || c->failed_image == 2)
        run_fail(r, "%s: offset %" PRIu64 ": %s", byre_filename(images[c->failed_image - 1]), c->offset, RUN_TEXT(err));
    else
        run_fail_err(r, err);
    return c->failed_status ? NO_STATUS : NO_DATA;
}

static int told(const struct opts *o, const struct byre_compare_result *c)
{
    if (o->quiet)
        return c->difference == BYRE_SAME ? SAME : DIFFERENT;
    if (c->size_differs && c->difference != BYRE_DIFFER_SIZE)
        printf("Warning: Image size mismatch!\n");
    switch (c->difference) {
    case BYRE_SAME:
        printf("Images are identical.\n");
        return SAME;
    case BYRE_DIFFER_SIZE:
        printf("Strict mode: Image size mismatch!\n");
        break;
    case BYRE_DIFFER_STATUS:
        printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", c->offset);
        break;
    default:
        printf("Content mismatch at offset %" PRIu64 "!\n", c->offset);
    }
    return DIFFERENT;
}

static int compare(struct run *r, const struct opts *o, struct byre_image *const *images)
{
    struct byre_err err;
    struct byre_job *job;
    struct byre_compare_result result = byre_compare_result_init();
    struct progress_opts po = { o->progress_on && !o->quiet, o->quiet ? PROGRESS_NONE : o->progress, "bytes" };
    if (byre_compare_start(images[0], images[1], o->strict ? BYRE_COMPARE_STRICT : 0, &result, &job, &err)) {
        run_fail_err(r, &err);
        return NO_DATA;
    }
    int rc = progress_wait(r, job, &po, &err);
    byre_job_free(job);
    if (progress_signal())
        return 128 + progress_signal();
    return rc < 0 ? failed(r, &result, &err, images) : told(o, &result);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct byre_image *images[2] = { NULL, NULL };
    int code = NOT_OPENED, cache;
    if (r->argc != 2)
        return run_usage(r, "exactly two images are needed");
    cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "source cache");
    if (cache < 0 || !run_ctx(r, 2, BYRE_BACKEND_AUTO))
        return NOT_OPENED;
    for (int i = 0; i < 2; i++) {
        struct open_args a = { .name = r->argv[i], .format = i ? o->format2 : o->format, .image_opts = o->image_opts, .cache = cache,
            .flags = BYRE_OPEN_READ_ONLY | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
        images[i] = run_open(r, &a);
        if (!images[i])
            break;
    }
    if (images[0] && images[1])
        code = compare(r, o, images);
    run_close(r, images[1], &code);
    run_close(r, images[0], &code);
    return code;
}

const struct cmd cmd_compare = { "compare", "FILE1 FILE2", "Tell whether two images have the same content", rows, sizeof(struct opts), cmd_run, .flags = 0 };
