/* SPDX-License-Identifier: MIT
 *
 * cmd_bitmap.c: byre bitmap: changes the persistent bitmaps of an image.
 *
 * Purpose      Options and words of the peer's bitmap; actions are done in the order in which they are given.
 * Owns         Nothing beyond one run.
 * Invariants   I1 An action that was told to have worked is in the image; those behind a failed one are not tried (5.069).
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/bitmap_test.py
 */
#include <string.h>

#include "bin/bin.h"
#include "bin/commands.h"

struct opts {
    struct common common;
    char *format, *source_file, *source_format;
    uint64_t granularity;
    struct opt_list actions;
    bool image_opts;
};
#define ACTION OPT_ACTION, OPT_AT(struct opts, actions)

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "add", 0, ACTION, .help = "make the bitmap, and let it record" },
    { "granularity", 'g', OPT_SIZE, OPT_AT(struct opts, granularity), .help = "what one bit of the new bitmap covers [cluster size, 4 KiB to 64 KiB]" },
    { "remove", 0, ACTION, .help = "remove the bitmap, whatever state it is in" },
    { "clear", 0, ACTION, .help = "forget what was recorded" },
    { "enable", 0, ACTION, .help = "record changes from now on" },
    { "disable", 0, ACTION, .help = "stop recording, keep what was recorded" },
    { "merge", 0, ACTION, .arg = "SOURCE", .help = "add what the bitmap SOURCE holds" },
    { "source-file", 'b', OPT_STR, OPT_AT(struct opts, source_file), .arg = "SRC_FILE", .help = "image that has SOURCE" },
    { "source-format", 'F', OPT_STR, OPT_AT(struct opts, source_format), .arg = "SRC_FMT", .help = "format of SRC_FILE" },
    OPT_END
};

static int act(const struct opts *o, const char *action, struct byre_image *image, const char *name, struct byre_image *source, struct byre_err *err)
{
    if (strncmp(action, "merge=", 6) == 0)
        return byre_bitmap_merge(image, name, source ? source : image, action + 6, err);
    if (strcmp(action, "add") == 0) {
        struct byre_bitmap_opts b = byre_bitmap_opts_init();
        b.granularity = o->granularity;
        b.flags = BYRE_BITMAP_PERSISTENT;
        return byre_bitmap_add(image, name, &b, err);
    }
    if (strcmp(action, "remove") == 0)
        return byre_bitmap_remove(image, name, err);
    if (strcmp(action, "clear") == 0)
        return byre_bitmap_clear(image, name, err);
    return strcmp(action, "enable") == 0 ? byre_bitmap_enable(image, name, err) : byre_bitmap_disable(image, name, err);
}

static int act_all(struct run *r, const struct opts *o, struct byre_image *image, const char *name, struct byre_image *source)
{
    struct byre_err err;
    for (size_t i = 0; i < o->actions.count; i++)
        if (act(o, o->actions.items[i], image, name, source, &err))
            return run_fail(r, "Operation %.*s on bitmap %s failed: %s", (int)strcspn(o->actions.items[i], "="), o->actions.items[i], name, RUN_TEXT(&err));
    return 0;
}

static bool has_action(const struct opts *o, const char *name)
{
    for (size_t i = 0; i < o->actions.count; i++)
        if (strncmp(o->actions.items[i], name, strlen(name)) == 0)
            return true;
    return false;
}

static int check_words(struct run *r, const struct opts *o)
{
    if (r->argc != 2)
        return run_usage(r, "Expecting filename and bitmap name");
    if (!o->actions.count)
        return run_usage(r, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
    if (o->granularity && !has_action(o, "add"))
        return run_usage(r, "granularity only supported with --add");
    if (o->source_format && !o->source_file)
        return run_usage(r, "-F only supported with -b");
    if (o->source_file && !has_action(o, "merge="))
        return run_usage(r, "Merge bitmap source file only supported with --merge");
    return 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    int code = check_words(r, o);
    if (code || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts };
    struct open_args s = { .name = o->source_file, .format = o->source_format, .flags = BYRE_OPEN_READ_ONLY | BYRE_OPEN_NO_BACKING };
    struct byre_image *source = o->source_file ? run_open(r, &s) : NULL;
    struct byre_image *image = o->source_file && !source ? NULL : run_open(r, &a);
    code = image ? act_all(r, o, image, r->argv[1], source) : 1;
    run_close(r, image, &code);
    run_close(r, source, &code);
    return code;
}

const struct cmd cmd_bitmap = { "bitmap", "FILE BITMAP", "Change the persistent bitmaps of an image", rows, sizeof(struct opts), cmd_run };
