/* SPDX-License-Identifier: MIT
 *
 * cmd_dd.c: byre dd (FEATURES 5.049, 5.050).
 *
 * Purpose      Copies a part of an image, counted in blocks, into a new image of that size.
 * Owns         nothing
 * Invariants   as cmd_convert.c
 * Concurrency  main thread; the copy runs on the threads of the context
 * Failure      exit 1
 * Tests        tests/cli/dd_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"
#include "bin/target.h"

struct opts {
    struct common common;
    char *format, *target_format;
    bool image_opts, force_share, progress_on;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "image-opts", 0, OPT_BOOL, OPT_AT(struct opts, image_opts), .help = "if= is a list of node options (driver=qcow2,file.filename=x)" },
    ROW_FORMAT(struct opts),
    { "target-format", 'O', OPT_STR, OPT_AT(struct opts, target_format), .def = "raw", .arg = "FMT", .help = "format of the new image" },
    ROW_FORCE_SHARE(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

struct operands { char *in, *out, *bs, *count, *skip; };

static const struct opt_row operand_rows[] = {
    { "if", 0, OPT_STR, OPT_AT(struct operands, in), .help = "image to read" },
    { "of", 0, OPT_STR, OPT_AT(struct operands, out), .help = "image to make" },
    { "bs", 0, OPT_STR, OPT_AT(struct operands, bs), .help = "bytes per block [512]" },
    { "count", 0, OPT_STR, OPT_AT(struct operands, count), .help = "blocks to copy [all]" },
    { "skip", 0, OPT_STR, OPT_AT(struct operands, skip), .help = "blocks to leave out at the start of the input [0]" },
    OPT_END
};

struct part { uint64_t off, len; };

static int parse_operands(struct run *r, struct operands *d)
{
    for (int i = 0; i < r->argc; i++) {
        struct byre_err err;
        const char *eq = strchr(r->argv[i], '=');
        AUTOFREE char *key = strndup(r->argv[i], eq ? (size_t)(eq - r->argv[i]) : strlen(r->argv[i]));
        if (!key)
            return run_fail(r, "no memory");
        if (!eq || !opt_find(operand_rows, key))
            return run_fail(r, "unrecognized operand %s", key);
        if (opt_set(operand_rows, d, key, eq + 1, NULL, &err))
            return run_fail_err(r, &err);
    }
    if (!d->in || !d->out)
        return run_fail(r, "Must specify both input and output files (if= and of=)");
    return 0;
}

static int block_number(struct run *r, const char *word, const char *what, uint64_t *ret)
{
    return word && !run_size(r, word, what, ret);
}

/* The bytes that the operands name, cut to the image. */
static int choose_part(struct run *r, const struct operands *d, uint64_t size, struct part *p)
{
    uint64_t bs = 512, count = UINT64_MAX, skip = 0, len;
    if (block_number(r, d->bs, "bs", &bs) || block_number(r, d->count, "count", &count) || block_number(r, d->skip, "skip", &skip))
        return 1;
    if (bs < 1 || bs > INT32_MAX)
        return run_fail(r, "Invalid bs '%s': it must be between 1 and 2147483647", d->bs);
    bool past = mul_overflows(bs, skip, &p->off) || p->off > size;
    if (past) {
        run_fail(r, "%s: cannot skip to specified offset", d->in);
        p->off = size;
    }
    p->len = size - p->off;
    if (d->count && !mul_overflows(bs, count, &len))
        p->len = min_u64(p->len, len);
    return 0;
}

static int copy(struct run *r, struct byre_image *source, const struct part *p, struct target *t)
{
    const struct opts *o = r->opts;
    struct byre_err err;
    struct byre_job *job;
    struct byre_convert_opts co = byre_convert_opts_init();
    struct byre_convert_result result = byre_convert_result_init();
    struct progress_opts po = { o->progress_on, o->progress, "bytes" };
    if (!p->len)
        return 0;
    co.flags = t->reads_zero ? BYRE_CONVERT_TARGET_ZERO : BYRE_CONVERT_PRE_ZERO;
    co.sparse_bytes = 4096;
    co.source_offset = p->off;
    co.length = p->len;
    if (byre_convert_start(&source, 1, t->image, &co, &result, &job, &err))
        return run_fail_err(r, &err);
    int rc = progress_wait(r, job, &po, &err);
    byre_job_free(job);
    if (progress_signal())
        return 128 + progress_signal();
    return rc < 0 ? run_fail(r, "error while %s byte %" PRIu64 ": %s", result.fail_read ? "reading" : "writing", result.fail_offset, RUN_TEXT(&err)) : 0;
}

static int dd(struct run *r, const struct operands *d)
{
    const struct opts *o = r->opts;
    struct open_args a = { .name = d->in, .format = o->format, .image_opts = o->image_opts,
        .flags = BYRE_OPEN_READ_ONLY | (o->force_share ? BYRE_OPEN_FORCE_SHARE : BYRE_OPEN_STABLE_TOP) };
    struct target t = { 0 };
    struct part p = { 0, 0 };
    struct byre_image *source = run_open(r, &a);
    if (!source)
        return 1;
    int code = choose_part(r, d, byre_size(source), &p);
    struct target_opts to = { .name = d->out, .format = o->target_format, .cache = BYRE_CACHE_WRITEBACK, .size = p.len, .what = "creating the output" };
    if (!code)
        code = target_open(r, &to, &t);
    if (!code)
        code = copy(r, source, &p, &t);
    code = target_close(r, &t, code);
    run_close(r, source, &code);
    return code;
}

static int cmd_run(struct run *r)
{
    struct operands d = { 0 };
    int code = parse_operands(r, &d);
    if (!code && !run_ctx(r, 1, BYRE_BACKEND_AUTO))
        code = 1;
    if (!code) {
        progress_catch_signals();
        code = dd(r, &d);
    }
    opt_fini(operand_rows, &d);
    return code;
}

const struct cmd cmd_dd = { "dd", "[bs=SIZE] [count=N] [skip=N] if=FILE of=FILE", "Copy a part of an image into a new one", rows, sizeof(struct opts),
                            cmd_run, .flags = 0 };
