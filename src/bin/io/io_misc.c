/* SPDX-License-Identifier: MIT
 *
 * io_misc.c: the small commands (FEATURES 6.009 to 6.013, 6.016, 6.018).
 *
 * Purpose      flush length info discard truncate alloc map sleep sigraise abort quit help
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      1: told already
 * Tests        tests/cli/io_test.py
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "bin/info_text.h"
#include "bin/io/io.h"

static int run_flush(struct io_shell *s, const void *opts, int argc, char **argv)
{
    int rc = byre_flush(s->image);
    return rc < 0 ? io_failed("flush", rc) : 0;
}

static int run_length(struct io_shell *s, const void *opts, int argc, char **argv)
{
    char text[IO_SIZE_TEXT];
    printf("%s\n", io_size((double)byre_size(s->image), text));
    return 0;
}

static int run_info(struct io_shell *s, const void *opts, int argc, char **argv)
{
    struct byre_err err;
    struct byre_info *i;
    char text[IO_SIZE_TEXT];
    if (byre_info_get(s->image, &i, &err))
        return run_fail_err(s->r, &err);
    printf("format name: %s\n", i->format);
    printf("cluster size: %s\n", io_size((double)i->cluster_size, text));
    printf("vm state offset: %s\n", io_size((double)i->vm_state_offset, text));
    info_print_specific(i);
    byre_info_free(i);
    return 0;
}

/* ---- discard ---- */
struct discard_opts { bool machine, quiet; };
static const struct opt_row discard_rows[] = {
    { .short_name = 'C', .type = OPT_BOOL, OPT_AT(struct discard_opts, machine), .help = "report in a form for programs" },
    { .short_name = 'q', .type = OPT_BOOL, OPT_AT(struct discard_opts, quiet), .help = "no report" },
    OPT_END
};

static int run_discard(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct discard_opts *o = opts;
    struct timespec t;
    uint64_t off, len;
    if (!io_number(argv[0], &off) || !io_length(argv[1], &len))
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int rc = byre_is_read_only(s->image) ? -EPERM : byre_discard(s->image, off, len);
    if (rc < 0)
        return io_failed("discard", rc);
    io_report(&(struct io_report){ "discard", off, len, len, 1, o->quiet, o->machine }, &t);
    return 0;
}

/* ---- clone ---- */
static int run_clone(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct discard_opts *o = opts;
    struct timespec t;
    uint64_t src, dst, len;
    if (!io_number(argv[0], &src) || !io_number(argv[1], &dst) || !io_number(argv[2], &len))
        return 1;
    io_aio_reap(s, true);
    clock_gettime(CLOCK_MONOTONIC, &t);
    int rc = byre_is_read_only(s->image) ? -EPERM : byre_clone(s->image, src, dst, len);
    if (rc < 0)
        return io_failed("clone", rc);
    io_report(&(struct io_report){ "cloned", dst, len, len, 1, o->quiet, o->machine }, &t);
    return 0;
}

/* ---- truncate ---- */
struct truncate_opts { char *mode; };
static const struct opt_row truncate_rows[] = {
    { .short_name = 'm', .type = OPT_STR, OPT_AT(struct truncate_opts, mode), .arg = "MODE", .help = "what to allocate: off, metadata, falloc, full [off]" },
    OPT_END
};

static int run_truncate(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct truncate_opts *o = opts;
    struct byre_err err;
    uint64_t size;
    int mode = o->mode ? byre_prealloc_parse(o->mode) : BYRE_PREALLOC_OFF;
    if (mode < 0)
        return run_fail(s->r, "Invalid preallocation mode '%s'", o->mode);
    if (!io_number(argv[0], &size))
        return 1;
    io_aio_reap(s, true);
    return byre_resize(s->image, size, mode, &err) < 0 ? run_fail_err(s->r, &err) : 0;
}

/* ---- alloc and map: the top layer alone ---- */
static int next_extent(struct io_shell *s, uint64_t off, uint64_t end, bool *allocated, uint64_t *len)
{
    *len = 0;
    while (off + *len < end) {
        struct byre_extent e = byre_extent_init();
        int rc = byre_map(s->image, off + *len, end - off - *len, BYRE_MAP_TOP, &e);
        if (rc < 0)
            return rc;
        bool here = e.flags & BYRE_MAP_PRESENT;
        if (*len && here != *allocated)
            break;
        *allocated = here;
        *len += e.len;
    }
    return 0;
}

static int run_alloc(struct io_shell *s, const void *opts, int argc, char **argv)
{
    uint64_t off, count = 512, sum = 0, size = byre_size(s->image);
    char text[IO_SIZE_TEXT];
    if (!io_number(argv[0], &off) || (argc > 1 && !io_number(argv[1], &count)))
        return 1;
    uint64_t end = off < size ? off + min_u64(count, size - off) : off;
    for (uint64_t at = off; at < end;) {
        bool allocated = false;
        uint64_t len;
        int rc = next_extent(s, at, end, &allocated, &len);
        if (rc < 0)
            return io_failed("is_allocated", rc);
        sum += allocated ? len : 0;
        at += len;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, end - off, io_size((double)off, text));
    return 0;
}

static int run_map(struct io_shell *s, const void *opts, int argc, char **argv)
{
    uint64_t size = byre_size(s->image), len;
    for (uint64_t off = 0; off < size; off += len) {
        char a[IO_SIZE_TEXT], b[IO_SIZE_TEXT];
        bool allocated = false;
        int rc = next_extent(s, off, size, &allocated, &len);
        if (rc < 0)
            return io_failed("map", rc);
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n", io_size((double)len, a), len,
               allocated ? "   " : "not", io_size((double)off, b), off);
    }
    return 0;
}

/* ---- the process ---- */
static bool whole_number(const char *word, long *ret)
{
    char *end;
    errno = 0;
    *ret = strtol(word, &end, 0);
    return end != word && !*end && !errno && *ret >= 0;
}

static int run_sleep(struct io_shell *s, const void *opts, int argc, char **argv)
{
    long ms;
    if (!whole_number(argv[0], &ms)) {
        printf("%s is not a valid number\n", argv[0]);
        return 1;
    }
    fflush(stdout);
    struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
    return 0;
}

static int run_sigraise(struct io_shell *s, const void *opts, int argc, char **argv)
{
    long sig;
    if (!whole_number(argv[0], &sig) || sig > 64) {
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", argv[0]);
        return 1;
    }
    fflush(stdout);
    return raise((int)sig) ? 1 : 0;
}

static int run_abort(struct io_shell *s, const void *opts, int argc, char **argv)
{
    abort();
}

static int run_quit(struct io_shell *s, const void *opts, int argc, char **argv)
{
    s->quit = true;
    return 0;
}

const struct io_cmd io_cmd_flush = { "flush", "f", "", "make everything written durable", NULL, NULL, 0, 0, 0, 0, run_flush };
const struct io_cmd io_cmd_truncate = { "truncate", "t", "[-m prealloc_mode] off", "set the size of the image", NULL, truncate_rows,
    sizeof(struct truncate_opts), 1, 1, 0, run_truncate };
const struct io_cmd io_cmd_length = { "length", "l", "", "show the size of the image", NULL, NULL, 0, 0, 0, 0, run_length };
const struct io_cmd io_cmd_info = { "info", "i", "", "describe the image", NULL, NULL, 0, 0, 0, 0, run_info };
const struct io_cmd io_cmd_discard = { "discard", "d", "[-Cq] off len", "discard bytes at an offset",
    "Example: 'discard 512 1k' discards one kilobyte at offset 512.", discard_rows, sizeof(struct discard_opts), 2, 2, 0, run_discard };
const struct io_cmd io_cmd_clone = { "clone", NULL, "[-Cq] src dst len", "copy a range inside the image, sharing clusters where that is possible",
    "Example: 'clone 0 1G 64M' makes the 64 MiB at 1 GiB what the first 64 MiB are.", discard_rows, sizeof(struct discard_opts), 3, 3, 0, run_clone };
const struct io_cmd io_cmd_alloc = { "alloc", "a", "offset [count]", "count the allocated bytes of a range, in the image itself", NULL, NULL, 0, 1, 2, 0, run_alloc };
const struct io_cmd io_cmd_map = { "map", NULL, "", "list the allocated ranges of the image itself", NULL, NULL, 0, 0, 0, 0, run_map };
const struct io_cmd io_cmd_sleep = { "sleep", NULL, "milliseconds", "wait", NULL, NULL, 0, 1, 1, IO_NO_FILE, run_sleep };
const struct io_cmd io_cmd_sigraise = { "sigraise", NULL, "signal", "raise a signal", "Example: 'sigraise 15' raises SIGTERM.", NULL, 0, 1, 1, IO_NO_FILE, run_sigraise };
const struct io_cmd io_cmd_abort = { "abort", NULL, "", "end like a crash", NULL, NULL, 0, 0, 0, IO_NO_FILE, run_abort };
const struct io_cmd io_cmd_quit = { "quit", "q", "", "end the program", NULL, NULL, 0, 0, 0, IO_NO_FILE, run_quit };
const struct io_cmd io_cmd_help = { "help", "?", "[command]", "help for one or all commands", NULL, NULL, 0, 0, 1, IO_NO_FILE, io_help };
