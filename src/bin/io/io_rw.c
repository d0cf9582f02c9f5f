/* SPDX-License-Identifier: MIT
 *
 * io_rw.c: read, readv, write, writev (FEATURES 6.004 to 6.007).
 *
 * Purpose      One blocking request a command, with verification, dump and report.
 * Owns         the buffer of the request
 * Invariants   none
 * Concurrency  main thread
 * Failure      1: told already. A pattern that does not match fails the command after the report
 * Tests        tests/cli/io_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bin/io/io.h"

#define FILL_READ 0xab
#define FILL_WRITE 0xcd

/* Runs an iovec of the words argv[1..] laid over one buffer. */
struct vec { struct iovec *iov; unsigned count; uint64_t total; };

static bool parse_vec(int argc, char **argv, struct vec *v)
{
    v->iov = calloc((size_t)argc, sizeof *v->iov);
    if (!v->iov)
        return false;
    for (int i = 0; i < argc; i++) {
        uint64_t len;
        if (!io_length(argv[i], &len))
            return false;
        v->total += len;
        v->iov[v->count++].iov_len = len;
        if (v->total > IO_LEN_MAX) {
            printf("Argument list exceed maximum size %" PRIu64 "\n", IO_LEN_MAX);
            return false;
        }
    }
    return true;
}

static void lay_vec(struct vec *v, const struct io_buf *b)
{
    uint8_t *at = b->data;
    for (unsigned i = 0; i < v->count; i++) {
        v->iov[i].iov_base = at;
        at += v->iov[i].iov_len;
    }
}

static struct timespec now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t;
}

/* ---- reading ---- */
struct read_opts { bool compat_a, compat_p, machine, quiet, dump, registered, state; char *pattern, *from, *len; };

#define READ_COMMON                                                                                                          \
    { .short_name = 'C', .type = OPT_BOOL, OPT_AT(struct read_opts, machine), .help = "report in a form for programs" },     \
    { .short_name = 'P', .type = OPT_STR, OPT_AT(struct read_opts, pattern), .arg = "BYTE", .help = "fail when the data is not this byte throughout" }, \
    { .short_name = 'q', .type = OPT_BOOL, OPT_AT(struct read_opts, quiet), .help = "no report" },                           \
    { .short_name = 'r', .type = OPT_BOOL, OPT_AT(struct read_opts, registered), .help = "register the buffer (no effect)" },  \
    { .short_name = 'v', .type = OPT_BOOL, OPT_AT(struct read_opts, dump), .help = "dump the data" }

static const struct opt_row read_rows[] = {
    READ_COMMON,
    { .short_name = 's', .type = OPT_STR, OPT_AT(struct read_opts, from), .arg = "OFF", .help = "with -P: verify from here on" },
    { .short_name = 'l', .type = OPT_STR, OPT_AT(struct read_opts, len), .arg = "LEN", .help = "with -P: verify so many bytes" },
    { .short_name = 'a', .type = OPT_BOOL, OPT_AT(struct read_opts, compat_a), .flags = OPT_HIDDEN, .help = "no effect" },
    { .short_name = 'p', .type = OPT_BOOL, OPT_AT(struct read_opts, compat_p), .flags = OPT_HIDDEN, .help = "no effect" },
    { .short_name = 'b', .type = OPT_BOOL, OPT_AT(struct read_opts, state), .help = "read the VM state, which begins at 0; sectors of 512 bytes" },
    OPT_END
};
static const struct opt_row readv_rows[] = { READ_COMMON, OPT_END };

struct verify { bool on; int pattern; uint64_t from, len; };

static bool parse_verify(const struct read_opts *o, uint64_t total, struct verify *v)
{
    *v = (struct verify){ .on = o->pattern };
    if (o->pattern && !io_pattern(o->pattern, &v->pattern))
        return false;
    if ((o->from || o->len) && !o->pattern) {
        printf("-s and -l need -P\n");
        return false;
    }
    if (o->from && !io_number(o->from, &v->from))
        return false;
    v->len = v->from <= total ? total - v->from : 0;
    if (o->len && !io_number(o->len, &v->len))
        return false;
    if (v->from > total || v->len > total - v->from) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    return true;
}

static int finish_read(const struct read_opts *o, const struct verify *v, const struct io_buf *b, uint64_t off, const struct timespec *t)
{
    bool same = !v->on || io_verify(b->data + v->from, off + v->from, v->len, v->pattern);
    if (o->dump && !o->quiet)
        io_dump(b->data, off, b->len);
    io_report(&(struct io_report){ "read", off, b->len, b->len, 1, o->quiet, o->machine }, t);
    return !same;
}

/* The VM state is addressed in whole sectors. */
static bool whole_sectors(uint64_t n, const char *what)
{
    if (n % 512)
        printf("%" PRIu64 " is not a sector-aligned value for '%s'\n", n, what);
    return n % 512 == 0;
}

static int run_read(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct read_opts *o = opts;
    uint64_t off, len;
    struct verify v;
    struct io_buf b;
    if (!io_number(argv[0], &off) || !io_length(argv[1], &len) || !parse_verify(o, len, &v) ||
        (o->state && !(whole_sectors(off, "offset") && whole_sectors(len, "count"))) || !io_buf_new(s, len, FILL_READ, &b))
        return 1;
    struct timespec t = now();
    int rc = o->state ? byre_read_state(s->image, b.data, len, off) : byre_read(s->image, b.data, len, off);
    int code = rc < 0 ? io_failed("read", rc) : finish_read(o, &v, &b, off, &t);
    io_buf_fini(&b);
    return code;
}

static int run_readv(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct read_opts *o = opts;
    struct vec vec = { 0 };
    uint64_t off;
    struct verify v;
    struct io_buf b;
    int code = 1;
    if (io_number(argv[0], &off) && parse_vec(argc - 1, argv + 1, &vec) && parse_verify(o, vec.total, &v) && io_buf_new(s, vec.total, FILL_READ, &b)) {
        lay_vec(&vec, &b);
        struct timespec t = now();
        int rc = byre_readv(s->image, vec.iov, vec.count, off);
        code = rc < 0 ? io_failed("readv", rc) : finish_read(o, &v, &b, off, &t);
        io_buf_fini(&b);
    }
    free(vec.iov);
    return code;
}

/* ---- writing ---- */
struct write_opts { bool machine, quiet, fua, no_fallback, unmap, zero, registered, compat_p, compress, state; char *pattern, *source; };

#define WRITE_COMMON                                                                                                         \
    { .short_name = 'C', .type = OPT_BOOL, OPT_AT(struct write_opts, machine), .help = "report in a form for programs" },    \
    { .short_name = 'P', .type = OPT_STR, OPT_AT(struct write_opts, pattern), .arg = "BYTE", .help = "byte to write [0xcd]" }, \
    { .short_name = 'f', .type = OPT_BOOL, OPT_AT(struct write_opts, fua), .help = "durable when the command returns" },     \
    { .short_name = 'q', .type = OPT_BOOL, OPT_AT(struct write_opts, quiet), .help = "no report" },                          \
    { .short_name = 'r', .type = OPT_BOOL, OPT_AT(struct write_opts, registered), .help = "register the buffer (no effect)" }

static const struct opt_row write_rows[] = {
    WRITE_COMMON,
    { .short_name = 's', .type = OPT_STR, OPT_AT(struct write_opts, source), .arg = "FILE", .help = "write the content of FILE, repeated" },
    { .short_name = 'z', .type = OPT_BOOL, OPT_AT(struct write_opts, zero), .help = "write zeros by request" },
    { .short_name = 'u', .type = OPT_BOOL, OPT_AT(struct write_opts, unmap), .help = "with -z: space may be given back" },
    { .short_name = 'n', .type = OPT_BOOL, OPT_AT(struct write_opts, no_fallback), .help = "with -z: fail rather than write zeros" },
    { .short_name = 'p', .type = OPT_BOOL, OPT_AT(struct write_opts, compat_p), .flags = OPT_HIDDEN, .help = "no effect" },
    { .short_name = 'b', .type = OPT_BOOL, OPT_AT(struct write_opts, state), .help = "write the VM state" },
    { .short_name = 'c', .type = OPT_BOOL, OPT_AT(struct write_opts, compress), .help = "store whole clusters compressed" },
    OPT_END
};
static const struct opt_row writev_rows[] = { WRITE_COMMON, OPT_END };

static bool check_write(const struct write_opts *o)
{
    if (o->state && o->zero)
        printf("-b and -z cannot be specified at the same time\n");
    else if (o->fua && (o->state || o->compress))
        printf("-f and -b or -c cannot be specified at the same time\n");
    else if (o->unmap && !o->zero)
        printf("-u requires -z to be specified\n");
    else if (o->no_fallback && !o->zero)
        printf("-n requires -z to be specified\n");
    else if (!!o->zero + !!o->pattern + !!o->source > 1)
        printf("Only one of -z, -P, and -s can be specified at the same time\n");
    else
        return true;
    return false;
}

static int finish_write(const struct write_opts *o, const char *what, int rc, struct io_report *rep, const struct timespec *t)
{
    rep->verb = "wrote";
    rep->asked = rep->done;
    rep->ops = 1;
    rep->quiet = o->quiet;
    rep->machine = o->machine;
    if (rc < 0)
        return io_failed(what, rc);
    io_report(rep, t);
    return 0;
}

static int run_zero(struct io_shell *s, const struct write_opts *o, char **argv)
{
    uint64_t off, len;
    if (!io_number(argv[0], &off) || !io_number(argv[1], &len))
        return 1;
    if (len > IO_LEN_MAX && !o->no_fallback) {
        printf("length cannot exceed %" PRIu64 " without -n, given %s\n", IO_LEN_MAX, argv[1]);
        return 1;
    }
    unsigned flags = (o->fua ? BYRE_FUA : 0) | (o->unmap ? BYRE_UNMAP : 0) | (o->no_fallback ? BYRE_NO_FALLBACK : 0);
    struct timespec t = now();
    int rc = byre_is_read_only(s->image) ? -EPERM : byre_zero(s->image, off, len, flags);
    return finish_write(o, "write", rc, &(struct io_report){ .off = off, .done = len }, &t);
}

static int write_buf(struct io_shell *s, const struct write_opts *o, const void *data, uint64_t len, uint64_t off)
{
    if (byre_is_read_only(s->image))
        return -EPERM;
    if (o->state)
        return byre_write_state(s->image, data, len, off);
    return byre_write(s->image, data, len, off, (o->fua ? BYRE_FUA : 0) | (o->compress ? BYRE_COMPRESS : 0));
}

static int run_write(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct write_opts *o = opts;
    uint64_t off, len;
    int pattern = FILL_WRITE;
    struct io_buf b;
    if (!check_write(o) || (o->pattern && !io_pattern(o->pattern, &pattern)))
        return 1;
    if (o->zero)
        return run_zero(s, o, argv);
    if (!io_number(argv[0], &off) || !io_length(argv[1], &len) || (o->state && !(whole_sectors(off, "offset") && whole_sectors(len, "count"))) ||
        !io_buf_new(s, len, pattern, &b))
        return 1;
    int code = 1;
    if (!o->source || io_buf_from_file(&b, o->source)) {
        struct timespec t = now();
        int rc = write_buf(s, o, b.data, len, off);
        code = finish_write(o, "write", rc, &(struct io_report){ .off = off, .done = len }, &t);
    }
    io_buf_fini(&b);
    return code;
}

static int run_writev(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct write_opts *o = opts;
    struct vec vec = { 0 };
    uint64_t off;
    int pattern = FILL_WRITE, code = 1;
    struct io_buf b;
    if (o->pattern && !io_pattern(o->pattern, &pattern))
        return 1;
    if (io_number(argv[0], &off) && parse_vec(argc - 1, argv + 1, &vec) && io_buf_new(s, vec.total, pattern, &b)) {
        lay_vec(&vec, &b);
        struct timespec t = now();
        int rc = byre_is_read_only(s->image) ? -EPERM : byre_writev(s->image, vec.iov, vec.count, off, o->fua ? BYRE_FUA : 0);
        code = finish_write(o, "writev", rc, &(struct io_report){ .off = off, .done = vec.total }, &t);
        io_buf_fini(&b);
    }
    free(vec.iov);
    return code;
}

const struct io_cmd io_cmd_read = { "read", "r", "[-bCqrv] [-P pattern [-s off] [-l len]] off len", "read bytes at an offset",
    "Example: 'read -v 512 1k' dumps one kilobyte from offset 512.", read_rows, sizeof(struct read_opts), 2, 2, 0, run_read };
const struct io_cmd io_cmd_readv = { "readv", NULL, "[-Cqrv] [-P pattern] off len [len..]", "read bytes into several buffers",
    "Example: 'readv -v 512 1k 1k' dumps two kilobytes read into two buffers.", readv_rows, sizeof(struct read_opts), 2, -1, 0, run_readv };
const struct io_cmd io_cmd_write = { "write", "w", "[-bCcfnqruz] [-P pattern | -s source_file] off len", "write bytes at an offset",
    "Example: 'write -P 0xaa 512 1k' writes one kilobyte of 0xaa at offset 512.", write_rows, sizeof(struct write_opts), 2, 2, 0, run_write };
const struct io_cmd io_cmd_writev = { "writev", NULL, "[-Cfqr] [-P pattern] off len [len..]", "write bytes from several buffers",
    "Example: 'writev 512 1k 1k' writes two kilobytes from two buffers.", writev_rows, sizeof(struct write_opts), 2, -1, 0, run_writev };
