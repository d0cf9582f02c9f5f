/* SPDX-License-Identifier: MIT
 *
 * cmd_create.c: byre create (FEATURES 5b).
 *
 * Purpose      A new image.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      exit 1; a file that was made is removed again (byre_create)
 * Tests        tests/cli/create_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/target.h"

struct opts {
    struct common common;
    char *format, *backing, *backing_format;
    struct opt_list options;
    bool quiet, unsafe;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "format", 'f', OPT_STR, OPT_AT(struct opts, format), .def = "raw", .arg = "FMT", .help = "format of the new image" },
    { "backing", 'b', OPT_STR, OPT_AT(struct opts, backing), .arg = "FILE", .help = "backing image; what the new image does not hold is read from it" },
    { "backing-format", 'F', OPT_STR, OPT_AT(struct opts, backing_format), .arg = "FMT", .help = "format of the backing image; needed with -b" },
    { "backing-unsafe", 'u', OPT_BOOL, OPT_AT(struct opts, unsafe), .help = "do not open the backing image; the size must then be given" },
    { "options", 'o', OPT_LIST, OPT_AT(struct opts, options), .arg = "KEY=VALUE,...", .help = "options of the format; '-o help' lists them" },
    ROW_QUIET(struct opts),
    OPT_END
};

static void on_ready(void *arg, const char *text)
{
    printf("Formatting '%s', %s\n", (const char *)arg, text);
    fflush(stdout);
}

static int create(struct run *r, const struct opts *o)
{
    struct byre_err err;
    struct byre_create_opts c = byre_create_opts_init();
    char *name = r->argv[0];
    if (r->argc == 2) {
        if (!run_size(r, r->argv[1], "image size", &c.size))
            return 1;
        c.flags |= BYRE_CREATE_SIZE;
    }
    if (o->unsafe)
        c.flags |= BYRE_CREATE_NO_BACKING_CHECK;
    c.format = o->format;
    c.options = (const char *const *)o->options.items;
    c.option_count = (unsigned)o->options.count;
    c.backing_file = o->backing;
    c.backing_format = o->backing_format;
    c.ready = o->quiet ? NULL : on_ready;
    c.arg = name;
    if (!run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    if (byre_create(r->ctx, name, &c, &err))
        return strstr(err.text, name) == err.text ? run_fail_err(r, &err) : run_fail(r, "%s: %s", name, RUN_TEXT(&err));
    return 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    if (target_wants_help(&o->options))
        return target_help(r, o->format, r->argc > 0);
    if (r->argc < 1)
        return run_usage(r, "the name of the new image is needed");
    if (r->argc > 2)
        return run_usage(r, "too many arguments behind '%s'", r->argv[1]);
    return create(r, o);
}

const struct cmd cmd_create = { "create", "FILE [SIZE]", "Make a new image", rows, sizeof(struct opts), cmd_run, .flags = 0 };
