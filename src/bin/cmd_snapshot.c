/* SPDX-License-Identifier: MIT
 *
 * cmd_snapshot.c: byre snapshot (FEATURES 5.057).
 *
 * Purpose      Lists, creates, applies and deletes snapshots inside an image.
 * Owns         nothing
 * Invariants   I1 exit 0 means that it is done and durable; exit 1 that the image is as it was, unless the message says more
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/snapshot_test.py
 */
#include <stdio.h>
#include <string.h>

#include "base/json_out.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/info_text.h"

struct opts {
    struct common common;
    char *format, *output, *create, *apply, *delete;
    bool image_opts, force_share, quiet, list, force;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "list", 'l', OPT_BOOL, OPT_AT(struct opts, list), .help = "list the snapshots; done when nothing else is asked for" },
    { "create", 'c', OPT_STR, OPT_AT(struct opts, create), .arg = "NAME", .help = "make a snapshot of the disk as it is" },
    { "apply", 'a', OPT_STR, OPT_AT(struct opts, apply), .arg = "SNAPSHOT", .help = "make the disk what the snapshot holds (its id or name); what the disk holds now is lost" },
    { "delete", 'd', OPT_STR, OPT_AT(struct opts, delete), .arg = "SNAPSHOT", .help = "delete the snapshot (its name or id)" },
    ROW_FORCE(struct opts),
    ROW_OUTPUT(struct opts),
    ROW_QUIET(struct opts),
    ROW_FORCE_SHARE(struct opts),
    OPT_END
};

static int print_json(struct run *r, const struct byre_info *i)
{
    struct json_out j;
    json_out_init(&j, true);
    info_json_snapshots(&j, NULL, i);
    int e = json_out_error(&j);
    if (!e)
        printf("%s\n", j.text);
    json_out_fini(&j);
    return e ? run_fail(r, "no memory") : 0;
}

static int list(struct run *r, struct byre_image *image, bool json)
{
    struct byre_err err;
    struct byre_info *i;
    int code = 0;
    if (byre_info_get(image, &i, &err))
        return run_fail_err(r, &err);
    if (json)
        code = print_json(r, i);
    else if (i->snapshot_count)
        info_print_snapshots(i);
    byre_info_free(i);
    return code;
}

static int change(struct run *r, const struct opts *o, struct byre_image *image)
{
    struct byre_err err;
    if (o->create) {
        struct byre_snapshot_opts so = byre_snapshot_opts_init();
        so.name = o->create;
        return byre_snapshot_create(image, &so, &err) ? run_fail(r, "Could not create snapshot '%s': %s", o->create, RUN_TEXT(&err)) : 0;
    }
    struct byre_snapshot_pick p = byre_snapshot_pick_init();
    if (o->apply) {
        if (run_guard(r, image, &(struct run_guard){ BYRE_GUARD_CONTENT, NULL, o->force }))
            return 1;
        p.any = o->apply;
        return byre_snapshot_apply(image, &p, &err) ? run_fail(r, "Could not apply snapshot '%s': %s", o->apply, RUN_TEXT(&err)) : 0;
    }
    p.any = o->delete;
    p.name_first = 1;
    return byre_snapshot_delete(image, &p, &err) ? run_fail(r, "Could not delete snapshot '%s': %s", o->delete, RUN_TEXT(&err)) : 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    int changes = (o->create != NULL) + (o->apply != NULL) + (o->delete != NULL), json = run_output(r, o->output);
    if (json < 0)
        return 1;
    if (changes + o->list > 1)
        return run_usage(r, "Cannot mix '-l', '-a', '-c', '-d'");
    if (r->argc != 1)
        return run_usage(r, "Expecting one image file name");
    if (changes && json)
        return run_usage(r, "--output=json is for -l");
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts, .quiet = o->quiet, .warn_raw = true,
        .flags = BYRE_OPEN_NO_BACKING | (changes ? BYRE_OPEN_DISCARD : BYRE_OPEN_READ_ONLY | BYRE_OPEN_INFO) | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
    if (!run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = changes ? change(r, o, image) : list(r, image, json);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_snapshot = { "snapshot", "[-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT] FILE", "List, create, apply and delete snapshots inside an image", rows,
                                  sizeof(struct opts), cmd_run, .flags = 0 };
