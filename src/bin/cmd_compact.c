/* SPDX-License-Identifier: MIT
 *
 * cmd_compact.c: byre compact (FEATURES G.010).
 *
 * Purpose      Makes the file of an image as small as what it holds; of a disk that a server has in use by the job x-byre-compact.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      exit 1; what was moved stays moved
 * Tests        tests/cli/compact_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_out.h"
#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/online.h"
#include "bin/qmp_link.h"
#include "byre/compact.h"

struct opts {
    struct common common;
    char *format, *output, *cache, *control, *speed;
    bool image_opts, quiet, progress_on, keep_zeros;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_OUTPUT(struct opts),
    { "keep-zeros", 0, OPT_BOOL, OPT_AT(struct opts, keep_zeros), .help = "do not read all data in search of clusters that hold nothing but zeros" },
    { "control", 0, OPT_STR, OPT_AT(struct opts, control), .arg = "PATH", .help = "compact a disk that byre serve has in use, through its control socket; FILE is then the name of a node, or left out" },
    { "speed", 0, OPT_STR, OPT_AT(struct opts, speed), .arg = "RATE", .help = "with --control: bytes a second that are read or moved at most, with suffixes k, M, G" },
    { "cache", 't', OPT_STR, OPT_AT(struct opts, cache), .arg = "MODE", .help = "cache mode (none, writeback, writethrough, directsync, unsafe) [writeback]" },
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static void print_json(const struct byre_compact_result *c, const char *filename, const char *format)
{
    struct json_out j;
    json_out_init(&j, true);
    jo_open_obj(&j, NULL);
    jo_u64(&j, "bytes-moved", c->bytes_moved);
    jo_u64(&j, "bytes-zeroed", c->bytes_zeroed);
    jo_u64(&j, "length-before", c->length_before);
    jo_u64(&j, "length-after", c->length_after);
    jo_u64(&j, "allocated-before", c->allocated_before);
    jo_u64(&j, "allocated-after", c->allocated_after);
    jo_str(&j, "filename", filename);
    jo_str(&j, "format", format);
    jo_close(&j);
    if (!json_out_error(&j))
        printf("%s\n", j.text);
    json_out_fini(&j);
}

static void print_human(const struct byre_compact_result *c)
{
    char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    printf("moved: %s, zeros given up: %s\n", size_format(c->bytes_moved, a), size_format(c->bytes_zeroed, b));
    printf("file length: %s, was %s\n", size_format(c->length_after, a), size_format(c->length_before, b));
    printf("disk size: %s, was %s\n", size_format(c->allocated_after, a), size_format(c->allocated_before, b));
}

static void report(const struct opts *o, bool json, const struct byre_compact_result *c, const char *filename, const char *format)
{
    if (json)
        print_json(c, filename, format);
    else if (!o->quiet)
        print_human(c);
}

static struct progress_opts progress_of(const struct opts *o)
{
    return (struct progress_opts){ o->progress_on && !o->quiet, o->quiet ? 0 : o->progress, "bytes" };
}

/* ---- a disk in use ---- */

static void take_result(const struct online *l, struct byre_compact_result *ret)
{
    const json_t *c = json_object_get(l->job, "x-byre-compact");
    *ret = byre_compact_result_init();
    ret->bytes_moved = qmp_link_number(c, "bytes-moved");
    ret->bytes_zeroed = qmp_link_number(c, "bytes-zeroed");
    ret->length_before = qmp_link_number(c, "length-before");
    ret->length_after = qmp_link_number(c, "length-after");
    ret->allocated_before = qmp_link_number(c, "allocated-before");
    ret->allocated_after = qmp_link_number(c, "allocated-after");
}

static int compact_served(struct run *r, bool json)
{
    const struct opts *o = r->opts;
    uint64_t speed = 0;
    struct byre_compact_result res;
    if (o->format || o->image_opts || o->cache)
        return run_usage(r, "with --control the server has opened the image: options of opening mean nothing");
    if (o->speed && !run_size(r, o->speed, "rate", &speed))
        return 1;
    if (speed > INT64_MAX)
        return run_fail(r, "the rate is too large");
    struct online l = { .path = o->control, .node = r->argc ? r->argv[0] : NULL, .command = "x-byre-compact", .word = "compact", .progress = progress_of(o),
                        .args = json_pack("{s:b,s:I}", "zeros", !o->keep_zeros, "speed", (json_int_t)speed) };
    int code = online_run(r, &l);
    const char *error = code ? "" : qmp_link_text(l.job, "error");
    if (!code && *error)
        code = run_fail(r, "Compaction failed: %s", error);
    if (!code && !json_object_get(l.job, "x-byre-compact"))
        code = run_fail(r, "Compaction failed: the server gives no result");
    if (!code) {
        take_result(&l, &res);
        report(o, json, &res, l.filename, l.format);
    }
    online_fini(&l);
    return code;
}

/* ---- an image of our own ---- */

static int compact(struct run *r, struct byre_image *image, struct byre_compact_result *ret)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_job *job;
    struct byre_compact_opts co = byre_compact_opts_init();
    struct progress_opts po = progress_of(o);
    co.flags = o->keep_zeros ? BYRE_COMPACT_KEEP_ZEROS : 0;
    int rc = byre_compact_start(image, &co, ret, &job, &err);
    if (rc)
        return run_fail_err(r, &err);
    rc = progress_wait(r, job, &po, &err);
    byre_job_free(job);
    if (rc == -ECANCELED)
        return run_fail(r, "Compaction was cancelled; the image is whole, and what was moved stays moved");
    return rc ? run_fail(r, "Compaction failed: %s", RUN_TEXT(&err)) : 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct byre_compact_result res = byre_compact_result_init();
    int json = run_output(r, o->output);
    if (o->control)
        return json < 0 ? 1 : r->argc > 1 ? run_usage(r, "at most one node can be named") : compact_served(r, json);
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    if (o->speed)
        return run_usage(r, "--speed is for a disk in use, with --control");
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts, .flags = BYRE_OPEN_NO_BACKING | BYRE_OPEN_DISCARD };
    a.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    if (json < 0 || a.cache < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = compact(r, image, &res);
    char *filename = strdup(byre_filename(image)), *format = strdup(byre_format(image));
    run_close(r, image, &code);
    if (!code && (!filename || !format))
        code = run_fail(r, "no memory");
    if (!code)
        report(o, json, &res, filename, format);
    free(filename);
    free(format);
    return code;
}

const struct cmd cmd_compact = { "compact", "FILE", "Make the file of an image as small as what it holds", rows, sizeof(struct opts), cmd_run, .flags = 0 };
