/* SPDX-License-Identifier: MIT
 *
 * io_main.c: byre io (FEATURES area 6).
 *
 * Purpose      Options of the program; commands of -c, or of standard input with a prompt.
 * Owns         struct io_shell
 * Invariants   I1 exit code 0 only when the image could be opened, every command succeeded and closing did
 * Concurrency  main thread; requests run on one thread of the context
 * Failure      exit 1; later commands run even though an earlier one failed
 * Tests        tests/cli/io_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/commands.h"
#include "bin/io/io.h"

struct opts {
    struct common common;
    char *format, *cache, *aio, *discard;
    struct opt_list commands;
    bool image_opts, read_only, snapshot, nocache, misalign, native, force_share, version, copy_on_read;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    { "version", 'V', OPT_BOOL, OPT_AT(struct opts, version), .help = "show the version and exit" },
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    { "cmd", 'c', OPT_LIST, OPT_AT(struct opts, commands), .arg = "COMMAND", .help = "run this command; may be repeated" },
    ROW_FORMAT(struct opts),
    { "read-only", 'r', OPT_BOOL, OPT_AT(struct opts, read_only), .help = "open the image read-only" },
    { "snapshot", 's', OPT_BOOL, OPT_AT(struct opts, snapshot), .help = "changes go to a temporary file that is gone at the end" },
    { "nocache", 'n', OPT_BOOL, OPT_AT(struct opts, nocache), .help = "short for -t none" },
    { "copy-on-read", 'C', OPT_BOOL, OPT_AT(struct opts, copy_on_read), .help = "keep what is read from the backing image" },
    { "misalign", 'm', OPT_BOOL, OPT_AT(struct opts, misalign), .help = "use buffers that are not aligned for direct I/O" },
    { "native-aio", 'k', OPT_BOOL, OPT_AT(struct opts, native), .help = "same as -i native" },
    { "aio", 'i', OPT_STR, OPT_AT(struct opts, aio), .arg = "MODE", .help = "threads, io_uring, or native: io_uring with direct I/O [io_uring]" },
    ROW_CACHE(struct opts, cache, "cache mode"),
    { "discard", 'd', OPT_STR, OPT_AT(struct opts, discard), .arg = "MODE", .help = "ignore (off) discards, or unmap (on) what they cover [unmap]" },
    ROW_TRACE,
    ROW_FORCE_SHARE(struct opts),
    OPT_END
};

/* ---- an overlay that nobody else sees ---- */
static int open_snapshot(struct io_shell *s, const struct io_open *base)
{
    struct open_args below = { .name = base->name, .format = base->format, .image_opts = base->image_opts };
    AUTOFREE char *path = overlay_make(s->r, &below);
    char qcow2[] = "qcow2";
    struct io_open how = { .name = path, .format = qcow2, .cache = BYRE_CACHE_UNSAFE, .copy_on_read = base->copy_on_read };
    if (!path)
        return 1;
    int code = io_image_open(s, &how);
    (void)!unlink(path);
    return code;
}

/* ---- the session ---- */
static int interactive(struct io_shell *s)
{
    AUTOFREE char *line = NULL;
    size_t cap = 0;
    int code = 0;
    while (!s->quit) {
        printf("%s> ", s->r->peer ? s->r->prog : "byre io");
        fflush(stdout);
        if (getline(&line, &cap, stdin) < 0)
            break;
        code |= io_run_line(s, line);
        io_aio_reap(s, false);
    }
    return code;
}

static int session(struct io_shell *s, const struct opts *o)
{
    int code = 0;
    if (!o->commands.count)
        return interactive(s);
    for (size_t i = 0; i < o->commands.count && !s->quit; i++) {
        code |= io_run_line(s, o->commands.items[i]);
        io_aio_reap(s, false);
        fflush(stdout);
    }
    return code;
}

static int parse(struct run *r, const struct opts *o, struct io_open *how)
{
    how->cache = run_cache(r, o->cache, o->nocache ? BYRE_CACHE_NONE : BYRE_CACHE_WRITEBACK, "cache");
    if (how->cache < 0)
        return -1;
    if (o->discard && strcmp(o->discard, "unmap") && strcmp(o->discard, "on") && strcmp(o->discard, "ignore") && strcmp(o->discard, "off")) {
        run_fail(r, "Invalid discard option: %s", o->discard);
        return -1;
    }
    how->discard = !o->discard || strcmp(o->discard, "unmap") == 0 || strcmp(o->discard, "on") == 0;
    how->read_only = o->read_only;
    how->copy_on_read = o->copy_on_read;
    how->force_share = o->force_share;
    how->image_opts = o->image_opts;
    how->format = o->format;
    if (o->force_share && !o->read_only) {
        run_fail(r, "-U is possible with -r only");
        return -1;
    }
    return io_backend(r, o->aio, o->native, how->cache);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct io_shell s = { .r = r, .misalign = o->misalign };
    struct io_open how = { 0 };
    if (o->version) {
        printf("%s version %s (byre)\n", r->prog, byre_version());
        return 0;
    }
    if (r->argc > 1)
        return run_usage(r, "at most one image can be open");
    int backend = parse(r, o, &how), code = 0;
    if (backend < 0 || !run_ctx(r, 1, backend))
        return 1;
    how.name = r->argc ? r->argv[0] : NULL;
    if (how.name)
        code = o->snapshot ? open_snapshot(&s, &how) : io_image_open(&s, &how);
    if (!code)
        code = session(&s, o);
    code |= io_image_close(&s);
    io_open_fini(&s.how);
    return code;
}

const struct cmd cmd_io = { "io", "[FILE]", "Send single requests to an image", rows, sizeof(struct opts), cmd_run, .flags = CMD_OTHER_PROGRAM };
