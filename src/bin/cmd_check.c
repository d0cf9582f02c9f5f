/* SPDX-License-Identifier: MIT
 *
 * cmd_check.c: byre check (FEATURES 5c, 1.120).
 *
 * Purpose      Consistency check and repair; after a repair a second pass says what is left.
 * Owns         nothing
 * Invariants   I1 exit code: 0 clean, 1 could not check, 2 corruption left, 3 only leaks left, 63 the format has no check
 * Concurrency  main thread; findings arrive from the loop that the main thread runs
 * Failure      exit 1 or 63
 * Tests        tests/cli/check_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/check_online.h"
#include "bin/commands.h"
#include "bin/progress.h"

#define EXIT_NO_CHECK 63

struct opts {
    struct common common;
    char *format, *output, *repair, *cache, *control;
    bool image_opts, force_share, quiet, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_OUTPUT(struct opts),
    { "repair", 'r', OPT_STR, OPT_AT(struct opts, repair), .arg = "leaks|all", .help = "repair what is found: leaked clusters only, or everything" },
    { "control", 0, OPT_STR, OPT_AT(struct opts, control), .arg = "PATH", .help = "check a disk that byre serve has in use, through its control socket; FILE is then the name of a node, or left out" },
    ROW_SRC_CACHE(struct opts, cache),
    ROW_FORCE_SHARE(struct opts),
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

static void on_finding(void *arg, int fixed, const char *id, const char *text)
{
    fprintf(stderr, "%s%s\n", fixed ? "Repaired: " : "", text);
}

static void print_json(const struct byre_check_result *c, const char *filename, const char *format)
{
    const struct { const char *key; uint64_t v; } rest[] = {
        { "corruptions-fixed", c->corruptions_fixed }, { "corruptions", c->corruptions }, { "leaks-fixed", c->leaks_fixed }, { "leaks", c->leaks },
        { "total-clusters", c->total_clusters }, { "allocated-clusters", c->allocated_clusters }, { "fragmented-clusters", c->fragmented_clusters },
        { "compressed-clusters", c->compressed_clusters },
    };
    struct json_out j;
    json_out_init(&j, true);
    jo_open_obj(&j, NULL);
    if (c->image_end_offset)
        jo_u64(&j, "image-end-offset", c->image_end_offset);
    jo_u64(&j, "check-errors", c->check_errors);
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        if (rest[i].v)
            jo_u64(&j, rest[i].key, rest[i].v);
    jo_str(&j, "filename", filename);
    jo_str(&j, "format", format);
    jo_close(&j);
    if (!json_out_error(&j))
        printf("%s\n", j.text);
    json_out_fini(&j);
}

static void print_human(const struct byre_check_result *c)
{
    if (!c->corruptions && !c->leaks && !c->check_errors)
        printf("No errors were found on the image.\n");
    if (c->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\nThe data may be damaged, and writing to the image may damage more.\n", c->corruptions);
    if (c->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\nThey waste space and do no other harm.\n", c->leaks);
    if (c->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", c->check_errors);
    if (c->total_clusters && c->allocated_clusters)
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               c->allocated_clusters, c->total_clusters, (double)c->allocated_clusters * 100.0 / (double)c->total_clusters,
               (double)c->fragmented_clusters * 100.0 / (double)c->allocated_clusters,
               (double)c->compressed_clusters * 100.0 / (double)c->allocated_clusters);
    if (c->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", c->image_end_offset);
}

struct pass { struct run *r; const struct opts *o; struct byre_image *image; };

/* One pass; exit code 0, 1 or 63. */
static int check_once(struct pass *p, unsigned flags, struct byre_check_result *ret)
{
    struct byre_err err;
    struct byre_job *job;
    struct byre_check_opts co = byre_check_opts_init();
    struct progress_opts po = { p->o->progress_on && !p->o->quiet, p->o->quiet ? 0 : p->o->progress, "clusters" };
    co.flags = flags;
    co.finding = on_finding;
    int rc = byre_check_start(p->image, &co, ret, &job, &err);
    if (rc)
        return run_fail_err(p->r, &err);
    rc = progress_wait(p->r, job, &po, &err);
    byre_job_free(job);
    if (rc && progress_signal())
        return run_fail(p->r, "the check was cancelled"), 128 + progress_signal();
    if (rc == -ENOTSUP)
        return run_fail(p->r, "This image format does not support checks"), EXIT_NO_CHECK;
    return rc ? run_fail(p->r, "Check failed: %s", RUN_TEXT(&err)) : 0;
}

static int report_as(struct pass *p, bool json, const struct byre_check_result *c, const char *filename, const char *format)
{
    if (p->o->quiet && !json)
        ;
    else if (json)
        print_json(c, filename, format);
    else
        print_human(c);
    if (c->check_errors)
        return run_fail(p->r, "Check failed");
    return c->corruptions ? 2 : c->leaks ? 3 : 0;
}

static int report(struct pass *p, bool json, const struct byre_check_result *c)
{
    return report_as(p, json, c, byre_filename(p->image), byre_format(p->image));
}

/* A disk in use: errors are only told there. */
static int check_served(struct run *r, unsigned fix, bool json)
{
    const struct opts *o = r->opts;
    struct pass p = { r, o, NULL };
    struct byre_check_result res;
    char *filename = NULL, *format = NULL;
    struct check_online c = { .path = o->control, .node = r->argc ? r->argv[0] : NULL, .fix_leaks = fix,
                              .progress = { o->progress_on && !o->quiet, o->quiet ? 0 : o->progress, "bytes" } };
    if (fix & BYRE_FIX_ERRORS)
        return run_usage(r, "-r all needs the image for itself; with --control only leaks can be repaired");
    if (o->format || o->image_opts || o->cache || o->force_share)
        return run_usage(r, "with --control the server has opened the image: options of opening mean nothing");
    int code = check_online(r, &c, &res, &filename, &format);
    if (!code && (res.corruptions_fixed || res.leaks_fixed) && !json && !o->quiet)
        printf("The following inconsistencies were found and repaired:\n\n    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n",
               res.leaks_fixed, res.corruptions_fixed);
    if (!code)
        code = report_as(&p, json, &res, filename, format);
    free(filename);
    free(format);
    return code;
}

static int check_image(struct pass *p, unsigned fix, bool json)
{
    struct byre_check_result first = byre_check_result_init(), second = byre_check_result_init();
    int code = check_once(p, fix, &first);
    if (code)
        return code;
    if (!first.corruptions_fixed && !first.leaks_fixed)
        return report(p, json, &first);
    if (!json && !p->o->quiet)
        printf("The following inconsistencies were found and repaired:\n\n    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n", first.leaks_fixed, first.corruptions_fixed);
    fflush(stdout);
    code = check_once(p, 0, &second);
    if (code)
        return code;
    second.leaks_fixed = first.leaks_fixed;
    second.corruptions_fixed = first.corruptions_fixed;
    return report(p, json, &second);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct open_args a = { .format = o->format, .image_opts = o->image_opts, .flags = BYRE_OPEN_CHECK | BYRE_OPEN_NO_BACKING };
    unsigned fix = 0;
    if (o->repair && strcmp(o->repair, "leaks") == 0)
        fix = BYRE_FIX_LEAKS;
    else if (o->repair && strcmp(o->repair, "all") == 0)
        fix = BYRE_FIX_LEAKS | BYRE_FIX_ERRORS;
    else if (o->repair)
        return run_usage(r, "-r takes 'leaks' or 'all', not '%s'", o->repair);
    if (o->control) {
        int form = run_output(r, o->output);
        return form < 0 ? 1 : r->argc > 1 ? run_usage(r, "at most one node can be named") : check_served(r, fix, form);
    }
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    int json = run_output(r, o->output);
    a.name = r->argv[0];
    a.cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "source cache");
    a.flags |= (fix ? 0 : BYRE_OPEN_READ_ONLY) | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0);
    if (json < 0 || a.cache < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    struct pass p = { r, o, image };
    int code = check_image(&p, fix, json);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_check = { "check", "FILE", "Look for damage in an image, and repair it", rows, sizeof(struct opts), cmd_run, .flags = 0 };
