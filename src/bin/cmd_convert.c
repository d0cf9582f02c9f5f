/* SPDX-License-Identifier: MIT
 *
 * cmd_convert.c: byre convert (FEATURES 5f).
 *
 * Purpose      Copies the content of one or several images into a new or an existing one.
 * Owns         nothing
 * Invariants   I1 exit 0 means: everything was copied, and (but for -t unsafe) the target is durable
 *              I2 a target that this run made and could not finish does not stay: a file that is new is removed, one that
 *                 was there is cut to length 0. With -n, and on devices, what was copied so far stays
 * Concurrency  main thread; the copy runs on the threads of the context
 * Failure      exit 1; 128 + signal when cancelled
 * Tests        tests/cli/convert_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/progress.h"
#include "bin/target.h"

#define PARALLEL_MAX 16
#define SPARSE_MAX (UINT64_C(16) << 20)

struct opts {
    struct common common;
    char *format, *target_format, *cache, *src_cache, *backing, *backing_format, *sparse, *rate, *parallel, *snapshot, *compress_level, *compress_window;
    struct opt_list options;
    bool image_opts, target_image_opts, target_is_zero, force_share, offload, compress, quiet, no_create, out_of_order, salvage, progress_on, bitmaps, skip_broken;
    int progress;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    { "image-opts", 0, OPT_BOOL, OPT_AT(struct opts, image_opts), .help = "sources are lists of node options (driver=qcow2,file.filename=x)" },
    { "target-image-opts", 0, OPT_BOOL, OPT_AT(struct opts, target_image_opts), .help = "the target is a list of node options; needs -n" },
    { "format", 'f', OPT_STR, OPT_AT(struct opts, format), .arg = "FMT", .help = "format of the sources; probed when not given" },
    { "target-format", 'O', OPT_STR, OPT_AT(struct opts, target_format), .arg = "FMT", .help = "format of the target [raw]" },
    { "options", 'o', OPT_LIST, OPT_AT(struct opts, options), .arg = "KEY=VALUE,...", .help = "options of the target's format; '-o help' lists them" },
    { "backing", 'B', OPT_STR, OPT_AT(struct opts, backing), .arg = "FILE", .help = "backing image of the target; what it supplies already is not copied" },
    { "backing-format", 'F', OPT_STR, OPT_AT(struct opts, backing_format), .arg = "FMT", .help = "format of the backing image" },
    { "no-create", 'n', OPT_BOOL, OPT_AT(struct opts, no_create), .help = "the target exists: write into it" },
    { "target-is-zero", 0, OPT_BOOL, OPT_AT(struct opts, target_is_zero), .help = "the target reads as zeros already; needs -n" },
    { "sparse-size", 'S', OPT_STR, OPT_AT(struct opts, sparse), .arg = "SIZE", .help = "runs of zeros from this length on are not stored, 0 stores everything [4k]" },
    { "parallel", 'm', OPT_STR, OPT_AT(struct opts, parallel), .arg = "N", .help = "requests at the same time, 1 to 16 [8]" },
    { "out-of-order", 'W', OPT_BOOL, OPT_AT(struct opts, out_of_order), .help = "write to the target in any order" },
    { "copy-range", 'C', OPT_BOOL, OPT_AT(struct opts, offload), .help = "let the kernel copy where it can" },
    { "compress", 'c', OPT_BOOL, OPT_AT(struct opts, compress), .help = "store the target compressed" },
    { "compress-level", 0, OPT_STR, OPT_AT(struct opts, compress_level), .arg = "N", .help = "with -c: 1 is fast, 12 (zlib) or 22 (zstd) small" },
    { "compress-window", 0, OPT_STR, OPT_AT(struct opts, compress_window), .arg = "SIZE", .help = "with -c and zlib: how far matches reach back, 4k or 32k [32k]" },
    { "rate-limit", 'r', OPT_STR, OPT_AT(struct opts, rate), .arg = "SIZE", .help = "bytes per second" },
    { "salvage", 0, OPT_BOOL, OPT_AT(struct opts, salvage), .help = "what cannot be read becomes zeros, with a warning" },
    ROW_SNAPSHOT(struct opts, "copy an internal snapshot of the source"),
    { "bitmaps", 0, OPT_BOOL, OPT_AT(struct opts, bitmaps), .help = "copy the persistent bitmaps too" },
    { "skip-broken-bitmaps", 0, OPT_BOOL, OPT_AT(struct opts, skip_broken), .help = "with --bitmaps: leave out those that are inconsistent or damaged" },
    ROW_CACHE(struct opts, cache, "cache mode of the target; the target is flushed at the end but for unsafe [writeback]"),
    ROW_SRC_CACHE(struct opts, src_cache),
    { "force-share", 'U', OPT_BOOL, OPT_AT(struct opts, force_share), .help = "open the sources even though another program writes to them" },
    ROW_QUIET(struct opts),
    ROW_PROGRESS(struct opts),
    OPT_END
};

struct convert {
    struct run *r;
    const struct opts *o;
    uint64_t sparse, rate, parallel, level, window;
    int cache, src_cache;
    unsigned source_count;
    struct byre_image **sources;
    uint64_t total;
    struct target target;
    bool backed;
};

/* ---- options ---- */
static int parse_numbers(struct convert *c)
{
    const struct opts *o = c->o;
    c->sparse = 4096;
    c->parallel = 8;
    if (o->sparse && (!run_size(c->r, o->sparse, "sparse size", &c->sparse) || c->sparse % 512 || c->sparse > SPARSE_MAX))
        return c->sparse % 512 || c->sparse > SPARSE_MAX
            ? run_fail(c->r, "Invalid sparse size '%s': it must be a multiple of 512 up to 16777216, or 0 to store everything", o->sparse) : 1;
    if (o->rate && !run_size(c->r, o->rate, "rate limit", &c->rate))
        return 1;
    if (o->parallel && (size_parse(o->parallel, &c->parallel) || c->parallel < 1 || c->parallel > PARALLEL_MAX))
        return run_fail(c->r, "Invalid number of parallel requests '%s': it must be between 1 and %d", o->parallel, PARALLEL_MAX);
    c->src_cache = run_cache(c->r, o->src_cache, BYRE_CACHE_WRITEBACK, "source cache");
    c->cache = c->src_cache < 0 ? -1 : run_cache(c->r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    return c->cache < 0;
}

static int check_offload(struct convert *c)
{
    const struct opts *o = c->o;
    if (o->offload && o->compress)
        return run_fail(c->r, "-C (copies in the kernel) and -c exclude one another");
    if (o->offload && o->sparse)
        return run_fail(c->r, "-C (copies in the kernel) and -S exclude one another");
    if (o->offload && o->salvage)
        return run_fail(c->r, "-C (copies in the kernel) and --salvage exclude one another");
    return 0;
}

static int check_compress(struct convert *c)
{
    const char *format = c->o->target_format ? c->o->target_format : "raw";
    if (!c->o->compress)
        return c->o->compress_level || c->o->compress_window ? run_fail(c->r, "--compress-level and --compress-window need -c") : 0;
    if (c->o->compress_level && (size_parse(c->o->compress_level, &c->level) || c->level < 1 || c->level > 22))
        return run_fail(c->r, "Invalid compression level '%s': it must be between 1 and 22", c->o->compress_level);
    if (c->o->compress_window && (size_parse(c->o->compress_window, &c->window) || (c->window != 4096 && c->window != 32768)))
        return run_fail(c->r, "Invalid compression window '%s': it must be 4k or 32k", c->o->compress_window);
    if (!c->o->no_create && strcmp(format, "qcow2") != 0)
        return run_fail(c->r, "Compression is not possible in the format %s", format);
    for (size_t i = 0; i < c->o->options.count; i++)
        if (strstr(c->o->options.items[i], "preallocation=") && !strstr(c->o->options.items[i], "preallocation=off"))
            return run_fail(c->r, "Compression and preallocation exclude one another");
    for (size_t i = 0; i < c->o->options.count; i++)
        if (strstr(c->o->options.items[i], "encrypt.") || strstr(c->o->options.items[i], "encryption=on"))
            return run_fail(c->r, "Compression and encryption exclude one another: what is compressed would lie in the file in plain");
    return 0;
}

static int check_target_options(struct convert *c)
{
    const struct opts *o = c->o;
    if (o->target_image_opts && !o->no_create)
        return run_fail(c->r, "--target-image-opts needs -n");
    if (o->target_image_opts && o->target_format)
        return run_fail(c->r, "--target-image-opts and -O exclude one another");
    if (o->target_is_zero && !o->no_create)
        return run_fail(c->r, "--target-is-zero needs -n");
    if (o->target_is_zero && c->backed)
        return run_fail(c->r, "A target with a backing file does not read as zeros");
    if (o->no_create && o->options.count)
        return run_fail(c->r, "-o has no effect when the target is not made (-n)");
    if (o->backing_format && !o->backing)
        return run_fail(c->r, "-F needs -B");
    if (c->backed && c->source_count > 1)
        return run_fail(c->r, "A target of several sources cannot have a backing file");
    return 0;
}

static int check_bitmaps(struct convert *c)
{
    if (c->o->skip_broken && !c->o->bitmaps)
        return run_fail(c->r, "Use of --skip-broken-bitmaps requires --bitmaps");
    if (c->o->bitmaps && c->source_count > 1)
        return run_fail(c->r, "Copying bitmaps only possible with single source");
    if (c->o->bitmaps && c->o->snapshot)
        return run_fail(c->r, "--bitmaps and -l exclude one another: bitmaps tell nothing of a snapshot");
    return 0;
}

static bool lists_backing(const struct opt_list *l)
{
    for (size_t i = 0; i < l->count; i++) {
        const char *at = strstr(l->items[i], "backing_file=");
        if (at && (at == l->items[i] || at[-1] == ','))
            return true;
    }
    return false;
}

static int check(struct convert *c)
{
    c->backed = c->o->backing || lists_backing(&c->o->options);
    int code = parse_numbers(c);
    if (!code)
        code = check_offload(c);
    if (!code)
        code = check_compress(c);
    if (!code)
        code = check_target_options(c);
    if (!code)
        code = check_bitmaps(c);
    return code;
}

/* ---- images ---- */
static int open_sources(struct convert *c)
{
    c->sources = calloc(c->source_count, sizeof(struct byre_image *));
    if (!c->sources)
        return run_fail(c->r, "no memory");
    for (unsigned i = 0; i < c->source_count; i++) {
        struct open_args a = { .name = c->r->argv[i], .format = c->o->format, .image_opts = c->o->image_opts, .cache = c->src_cache, .snapshot = c->o->snapshot,
            .flags = BYRE_OPEN_READ_ONLY | (c->o->force_share ? BYRE_OPEN_FORCE_SHARE : BYRE_OPEN_STABLE) };
        c->sources[i] = run_open(c->r, &a);
        if (!c->sources[i])
            return 1;
        if (__builtin_add_overflow(c->total, byre_size(c->sources[i]), &c->total))
            return run_fail(c->r, "The sources together are too large");
    }
    return 0;
}

/* Before anything is made: can the bitmaps be copied? */
static int look_at_bitmaps(struct convert *c)
{
    struct byre_err err;
    struct byre_info *info;
    const char *format = c->o->target_format ? c->o->target_format : "raw";
    int code = 0;
    if (strcmp(byre_format(c->sources[0]), "qcow2") != 0)
        return run_fail(c->r, "Source lacks bitmap support");
    if (!c->o->no_create && strcmp(format, "qcow2") != 0)
        return run_fail(c->r, "Format driver '%s' does not support bitmaps", format);
    if (byre_info_get(c->sources[0], &info, &err))
        return run_fail_err(c->r, &err);
    if (info->bitmaps_damaged && !c->o->skip_broken)
        code = run_fail(c->r, "%s: the bitmap directory is damaged; try --skip-broken-bitmaps", byre_filename(c->sources[0]));
    for (size_t i = 0; !code && !c->o->skip_broken && i < info->bitmap_count; i++) {
        struct byre_bitmap_status s = byre_bitmap_status_init();
        if (byre_bitmap_get(c->sources[0], info->bitmaps[i]->name, &s, &err))
            code = run_fail_err(c->r, &err);
        else if (s.flags & (BYRE_BITMAP_INCONSISTENT | BYRE_BITMAP_DAMAGED))
            code = run_fail(c->r, "Cannot copy inconsistent bitmap '%s'; try --skip-broken-bitmaps", info->bitmaps[i]->name);
    }
    byre_info_free(info);
    return code;
}

static int copy_bitmaps(struct convert *c)
{
    struct byre_err err;
    return byre_bitmap_copy_all(c->target.image, c->sources[0], c->o->skip_broken, &err) ? run_fail_err(c->r, &err) : 0;
}

static int open_target(struct convert *c)
{
    const char *name = c->r->argv[c->source_count];
    const struct target_opts t = { .name = name, .format = c->o->target_format, .image_opts = c->o->target_image_opts, .no_create = c->o->no_create,
        .cache = c->cache, .size = c->total, .options = &c->o->options, .backing = c->o->backing, .backing_format = c->o->backing_format,
        .what = "converting", .quiet = c->o->quiet };
    if (target_open(c->r, &t, &c->target))
        return 1;
    if (byre_size(c->target.image) < c->total)
        return run_fail(c->r, "The target '%s' is smaller (%" PRIu64 " bytes) than the source (%" PRIu64 " bytes)", name,
                        byre_size(c->target.image), c->total);
    return 0;
}

/* ---- the copy ---- */
static void on_salvaged(void *arg, uint64_t off, uint64_t len, int error)
{
    run_warn(arg, "cannot read %" PRIu64 " bytes at offset %" PRIu64 ": %s; they become zeros", len, off, strerror(error < 0 ? -error : error));
}

static int copy(struct convert *c)
{
    const struct opts *o = c->o;
    struct byre_err err;
    struct byre_job *job;
    struct byre_convert_opts co = byre_convert_opts_init();
    struct byre_convert_result result = byre_convert_result_init();
    struct progress_opts po = { o->progress_on && !o->quiet, o->quiet ? PROGRESS_NONE : o->progress, "bytes" };
    co.flags = (o->out_of_order ? BYRE_CONVERT_OUT_OF_ORDER : 0) | (o->offload ? BYRE_CONVERT_OFFLOAD : 0) |
               (o->salvage ? BYRE_CONVERT_SALVAGE : 0) | (c->backed ? BYRE_CONVERT_BACKED : 0) |
               (o->target_is_zero || (c->target.reads_zero && !c->backed) ? BYRE_CONVERT_TARGET_ZERO : c->backed ? 0 : BYRE_CONVERT_PRE_ZERO);
    co.flags |= (o->compress ? BYRE_CONVERT_COMPRESS : 0) | (o->no_create ? 0 : BYRE_CONVERT_FRESH);
    co.compress_level = (unsigned)c->level;
    co.compress_small_window = c->window == 4096;
    co.parallel = (unsigned)c->parallel;
    co.sparse_bytes = c->sparse;
    co.rate_bytes = c->rate;
    co.salvaged = on_salvaged;
    co.arg = c->r;
    if (byre_convert_start(c->sources, c->source_count, c->target.image, &co, &result, &job, &err))
        return run_fail_err(c->r, &err);
    int rc = progress_wait(c->r, job, &po, &err);
    byre_job_free(job);
    if (progress_signal())
        return 128 + progress_signal();
    if (rc < 0)
        return run_fail(c->r, "error while %s byte %" PRIu64 ": %s", result.fail_read ? "reading" : "writing", result.fail_offset, RUN_TEXT(&err));
    if (result.unreadable && !o->quiet)
        run_warn(c->r, "%" PRIu64 " bytes could not be read and became zeros", result.unreadable);
    return 0;
}

static int convert(struct convert *c)
{
    int code = open_sources(c);
    if (!code && c->o->bitmaps)
        code = look_at_bitmaps(c);
    if (!code)
        code = open_target(c);
    if (!code)
        code = copy(c);
    if (!code && c->o->bitmaps)
        code = copy_bitmaps(c);
    code = target_close(c->r, &c->target, code);
    for (unsigned i = 0; c->sources && i < c->source_count; i++)
        run_close(c->r, c->sources[i], &code);
    free(c->sources);
    return code;
}

static unsigned loop_count(const struct convert *c)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t n = cores > 4 ? 4 : cores > 1 ? (uint64_t)cores : 1;
    return (unsigned)(n < c->parallel ? n : c->parallel);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct convert c = { .r = r, .o = o };
    if (target_wants_help(&o->options))
        return target_help(r, o->target_format ? o->target_format : "raw", r->argc > 0);
    if (r->argc < 2)
        return run_usage(r, "at least one source and the target are needed");
    c.source_count = (unsigned)r->argc - 1;
    if (check(&c) || !run_ctx(r, loop_count(&c), BYRE_BACKEND_AUTO))
        return 1;
    progress_catch_signals();
    return convert(&c);
}

const struct cmd cmd_convert = { "convert", "FILE [FILE...] TARGET", "Copy images into a new one, of another format or with other options", rows,
                                 sizeof(struct opts), cmd_run, .flags = 0 };
