/* SPDX-License-Identifier: MIT
 *
 * cmd_map.c: byre map (FEATURES 5.053, 5.054).
 *
 * Purpose      Which layer of the chain holds which range, and where in its file.
 * Owns         one pending line: neighbours that say the same become one
 * Invariants   I1 lines are printed in order, cover the range exactly, and two neighbours differ in something printed
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/map_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/commands.h"

struct opts {
    struct common common;
    char *format, *output, *start, *length;
    bool image_opts, force_share;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_OUTPUT(struct opts),
    { "start-offset", 's', OPT_STR, OPT_AT(struct opts, start), .arg = "OFFSET", .help = "where to begin [0]" },
    { "max-length", 'l', OPT_STR, OPT_AT(struct opts, length), .arg = "LENGTH", .help = "how far to go [the end]" },
    ROW_FORCE_SHARE(struct opts),
    OPT_END
};

struct line { uint64_t start, len; unsigned flags, depth; uint64_t offset; const char *filename; };

struct out { struct run *r; bool json; int lines; };

static int print_human(struct out *o, const struct line *l)
{
    if ((l->flags & BYRE_MAP_DATA) && !(l->flags & BYRE_MAP_OFFSET))
        return run_fail(o->r, "the image holds compressed clusters, which have no place in the file; use --output=json");
    if (!(l->flags & BYRE_MAP_DATA) || (l->flags & BYRE_MAP_ZERO))
        return 0;
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", l->start, l->len, l->offset, l->filename ? l->filename : "");
    return 0;
}

static const char *truth(unsigned flag)
{
    return flag ? "true" : "false";
}

static int print_json(struct out *o, const struct line *l)
{
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           o->lines++ ? ",\n" : "", l->start, l->len, l->depth, truth(l->flags & BYRE_MAP_PRESENT), truth(l->flags & BYRE_MAP_ZERO),
           truth(l->flags & BYRE_MAP_DATA));
    if (l->flags & BYRE_MAP_COMPRESSED)
        printf(", \"compressed\": true");
    if (l->flags & BYRE_MAP_OFFSET)
        printf(", \"offset\": %" PRIu64, l->offset);
    printf("}");
    return 0;
}

static int print_line(struct out *o, const struct line *l)
{
    return o->json ? print_json(o, l) : print_human(o, l);
}

static bool continues(const struct line *a, const struct line *b)
{
    if (a->flags != b->flags || a->depth != b->depth)
        return false;
    return !(a->flags & BYRE_MAP_OFFSET) || (a->offset + a->len == b->offset && a->filename == b->filename);
}

static int walk(struct out *o, struct byre_image *image, uint64_t at, uint64_t end)
{
    struct line cur = { .start = at };
    while (at < end) {
        struct byre_extent e = byre_extent_init();
        int rc = byre_map(image, at, end - at, 0, &e);
        if (rc < 0)
            return run_fail(o->r, "%s: the map cannot be read at offset %" PRIu64 ": %s", byre_filename(image), at, strerror(-rc));
        struct line next = { e.start, e.len, e.flags, e.depth, e.offset, e.filename };
        if (cur.len && continues(&cur, &next)) {
            cur.len += next.len;
        } else {
            rc = cur.len ? print_line(o, &cur) : 0;
            if (rc)
                return rc;
            cur = next;
        }
        at += e.len;
    }
    return print_line(o, &cur);
}

static int map_image(struct run *r, struct byre_image *image, const struct opts *o, struct out *out)
{
    uint64_t start = 0, len = UINT64_MAX, end = byre_size(image);
    if (o->start && !run_size(r, o->start, "start offset", &start))
        return 1;
    if (o->length && !run_size(r, o->length, "max length", &len))
        return 1;
    if (len < end && start < end - len)
        end = start + len;
    if (out->json)
        printf("[");
    else
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    int code = walk(out, image, start, end);
    if (out->json)
        printf("]\n");
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts,
        .flags = BYRE_OPEN_READ_ONLY | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
    int json = run_output(r, o->output);
    struct out out = { .r = r, .json = json > 0 };
    if (json < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = map_image(r, image, o, &out);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_map = { "map", "FILE", "Show where the content of an image lies", rows, sizeof(struct opts), cmd_run, .flags = 0 };
