/* SPDX-License-Identifier: MIT
 *
 * cmd_resize.c: byre resize (FEATURES 5.064, 5.065, 1.142, 1.143).
 *
 * Purpose      Grows or shrinks an image, to a size or by a difference.
 * Owns         nothing
 * Invariants   I1 data is cut off only with --shrink
 *              I2 success means the image has exactly the size that was asked for
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/resize_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"

struct opts {
    struct common common;
    char *format, *preallocation;
    bool image_opts, quiet, shrink, force;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "preallocation", 0, OPT_STR, OPT_AT(struct opts, preallocation), .arg = "MODE", .help = "what to allocate for the new part (off, metadata, falloc, full) [off]" },
    ROW_QUIET(struct opts),
    { "shrink", 0, OPT_BOOL, OPT_AT(struct opts, shrink), .help = "allow the image to become smaller; what lies behind the new end is lost" },
    ROW_FORCE(struct opts),
    OPT_END
};

struct change { char sign; uint64_t bytes; int prealloc; };

static int parse_change(struct run *r, const char *word, struct change *c)
{
    c->sign = word[0] == '+' || word[0] == '-' ? word[0] : 0;
    const char *digits = c->sign ? word + 1 : word;
    int e = size_parse(digits, &c->bytes);
    if (e || c->bytes >= UINT64_C(1) << 63)
        return run_fail(r, "Invalid size '%s': a size is a number below 2^63 and one of the suffixes k, M, G, T, P, E, with + or - for a difference", word);
    return 0;
}

static int new_size(struct run *r, const struct change *c, struct byre_image *image, uint64_t *ret)
{
    uint64_t old = byre_size(image), size = c->bytes;
    if (c->sign == '+' && add_overflows(old, c->bytes, &size))
        return run_fail(r, "The new size is too large");
    if (c->sign == '-')
        size = c->bytes < old ? old - c->bytes : 0;
    if (!size)
        return run_fail(r, "The new size must be positive");
    if (size >= UINT64_C(1) << 63)
        return run_fail(r, "The new size is too large");
    *ret = size;
    return 0;
}

static int resize(struct run *r, const struct opts *o, const struct change *c, struct byre_image *image)
{
    struct byre_err err;
    uint64_t size = 0, old = byre_size(image);
    if (new_size(r, c, image, &size))
        return 1;
    if (size <= old && c->prealloc != BYRE_PREALLOC_OFF)
        return run_fail(r, "Preallocation is possible only when an image grows");
    if (size < old && !o->shrink) {
        run_fail(r, "Use --shrink to make the image smaller");
        run_warn(r, "shrinking from %" PRIu64 " to %" PRIu64 " bytes deletes all data behind the new end", old, size);
        return 1;
    }
    if (size < old && run_guard(r, image, &(struct run_guard){ BYRE_GUARD_CONTENT, NULL, o->force }))
        return 1;
    if (byre_resize(image, size, c->prealloc, &err))
        return run_fail_err(r, &err);
    /* The file of a raw image has any length; the disk that it shows, whole sectors. */
    bool raw = strcmp(byre_format(image), "raw") == 0;
    if (byre_size(image) != (raw ? round_up(size, 512) : size))
        return run_fail(r, "%s: the size became %" PRIu64 " bytes instead of %" PRIu64, byre_filename(image), byre_size(image), size);
    return 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct change c = { .prealloc = o->preallocation ? byre_prealloc_parse(o->preallocation) : BYRE_PREALLOC_OFF };
    if (r->argc != 2)
        return run_usage(r, "an image and a size are needed");
    if (c.prealloc < 0)
        return run_fail(r, "Invalid preallocation mode '%s'", o->preallocation);
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts, .quiet = o->quiet, .warn_raw = true };
    if (parse_change(r, r->argv[1], &c) || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = resize(r, o, &c, image);
    run_close(r, image, &code);
    if (!code && !o->quiet)
        printf("Image resized.\n");
    return code;
}

const struct cmd cmd_resize = { "resize", "FILE [+|-]SIZE", "Change the size of an image", rows, sizeof(struct opts), cmd_run, .flags = CMD_NUMBER_LAST };
