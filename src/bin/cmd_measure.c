/* SPDX-License-Identifier: MIT
 *
 * cmd_measure.c: byre measure (FEATURES 5.055, 5.056).
 *
 * Purpose      How much space an image would need.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/measure_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/commands.h"

struct opts {
    struct common common;
    char *format, *output, *target_format, *size, *snapshot;
    struct opt_list options;
    bool image_opts, force_share;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_OUTPUT(struct opts),
    { "target-format", 'O', OPT_STR, OPT_AT(struct opts, target_format), .arg = "FMT", .def = "raw", .help = "format of the image that would be made" },
    { "options", 'o', OPT_LIST, OPT_AT(struct opts, options), .arg = "KEY=VALUE,...", .help = "options it would be made with" },
    { "size", 's', OPT_STR, OPT_AT(struct opts, size), .arg = "SIZE", .help = "virtual size of a new image, instead of FILE" },
    ROW_SNAPSHOT(struct opts, "measure for an internal snapshot of FILE"),
    ROW_FORCE_SHARE(struct opts),
    OPT_END
};

static void print_human(const struct byre_measure *m)
{
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", m->required, m->fully_allocated);
    if (m->has_bitmaps)
        printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
}

static void print_json(const struct byre_measure *m)
{
    struct json_out j;
    json_out_init(&j, true);
    jo_open_obj(&j, NULL);
    if (m->has_bitmaps)
        jo_u64(&j, "bitmaps", m->bitmaps);
    jo_u64(&j, "required", m->required);
    jo_u64(&j, "fully-allocated", m->fully_allocated);
    jo_close(&j);
    if (!json_out_error(&j))
        printf("%s\n", j.text);
    json_out_fini(&j);
}

static int measure(struct run *r, const struct opts *o, struct byre_image *source, bool json)
{
    struct byre_err err;
    struct byre_measure m = byre_measure_init();
    struct byre_create_opts c = byre_create_opts_init();
    c.format = o->target_format;
    c.options = (const char *const *)o->options.items;
    c.option_count = (unsigned)o->options.count;
    if (o->size) {
        if (!run_size(r, o->size, "image size", &c.size))
            return 1;
        c.flags |= BYRE_CREATE_SIZE;
    }
    if (byre_measure_image(r->ctx, source, &c, &m, &err))
        return run_fail_err(r, &err);
    if (json)
        print_json(&m);
    else
        print_human(&m);
    return 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    int json = run_output(r, o->output), code;
    if (json < 0)
        return 1;
    if (r->argc > 1)
        return run_usage(r, "at most one image can be measured");
    if (o->size && r->argc)
        return run_fail(r, "--size and a file name exclude one another");
    if (!o->size && !r->argc)
        return run_fail(r, "Either --size or a file name is needed");
    if (o->size && (o->image_opts || o->format || o->force_share || o->snapshot))
        return run_fail(r, "--image-opts, -f, -l and -U need a file name");
    if (!run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    if (o->size)
        return measure(r, o, NULL, json);
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts, .snapshot = o->snapshot,
        .flags = BYRE_OPEN_READ_ONLY | BYRE_OPEN_NO_DATA | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    code = measure(r, o, image, json);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_measure = { "measure", "[FILE]", "Tell how large an image would become", rows, sizeof(struct opts), cmd_run, .flags = 0 };
