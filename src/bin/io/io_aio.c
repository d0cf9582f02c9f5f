/* SPDX-License-Identifier: MIT
 *
 * io_aio.c: aio_read, aio_write, aio_flush (FEATURES 6.008).
 *
 * Purpose      Requests that go on while the next commands run.
 * Owns         the queue and the requests in flight
 * Invariants   I1 a request is not started while one that touches the same bytes is in flight, unless both only read: the content
 *                 that results is that of the order of the commands. Not where breakpoints are set: what stands still is waited for by nobody
 *              I2 the list holds exactly what the queue holds
 * Concurrency  main thread; the requests run on the loop of the queue
 * Failure      a command succeeds when its request was submitted; what becomes of it is told later
 * Tests        tests/cli/io_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bin/io/io.h"

#define DEPTH 128u

struct io_aio {
    struct io_aio *next;
    struct io_buf buf;
    struct iovec *iov;
    struct byre_request rq;
    int pattern;                 /* reading: to verify; -1: none */
    bool dump, quiet, machine;
    struct timespec begin;
};

static void aio_free(struct io_aio *a)
{
    io_buf_fini(&a->buf);
    free(a->iov);
    free(a);
}

static void tell(const struct io_aio *a, int result)
{
    bool read = a->rq.op == BYRE_OP_READ;
    if (result < 0) {
        io_failed(read ? "readv" : "aio_write", result);
        return;
    }
    if (read && a->pattern >= 0)
        (void)io_verify(a->buf.data, a->rq.off, a->rq.len, a->pattern);
    if (read && a->dump && !a->quiet)
        io_dump(a->buf.data, a->rq.off, a->rq.len);
    io_report(&(struct io_report){ read ? "read" : "wrote", a->rq.off, a->rq.len, a->rq.len, 1, a->quiet, a->machine }, &a->begin);
}

static void take(struct io_shell *s, const struct byre_completion *c)
{
    struct io_aio **at = &s->aio, *a = (struct io_aio *)(uintptr_t)c->tag;
    while (*at && *at != a)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = a->next;
    tell(a, c->result);
    aio_free(a);
}

/* Takes completions; waits for at least `min` of them. */
static void reap(struct io_shell *s, unsigned min)
{
    struct byre_completion c[32];
    int n = byre_queue_reap(s->queue, c, 32, min, -1);
    for (int i = 0; i < n; i++)
        take(s, &c[i]);
}

void io_aio_reap(struct io_shell *s, bool wait)
{
    if (!s->queue)
        return;
    do
        reap(s, wait && s->aio ? 1 : 0);
    while (wait && s->aio);
}

void io_aio_close(struct io_shell *s)
{
    io_aio_reap(s, true);
    byre_queue_free(s->queue);
    s->queue = NULL;
}

static bool in_the_way(const struct io_shell *s, const struct byre_request *rq)
{
    for (const struct io_aio *a = s->aio; a; a = a->next) {
        bool reads = a->rq.op == BYRE_OP_READ && rq->op == BYRE_OP_READ;
        if (!reads && a->rq.off < rq->off + rq->len && rq->off < a->rq.off + a->rq.len)
            return true;
    }
    return false;
}

/* Takes a over. */
static int submit(struct io_shell *s, struct io_aio *a)
{
    struct byre_err err;
    struct byre_queue_opts qo = byre_queue_opts_init();
    qo.depth = DEPTH;
    if (!s->queue && byre_queue_new(s->image, &qo, &s->queue, &err)) {
        aio_free(a);
        return run_fail_err(s->r, &err);
    }
    while ((!s->breaks && in_the_way(s, &a->rq)) || byre_queue_in_flight(s->queue) == DEPTH)
        reap(s, 1);
    a->rq.tag = (uintptr_t)a;
    clock_gettime(CLOCK_MONOTONIC, &a->begin);
    int n = byre_queue_submit(s->queue, &a->rq, 1);
    if (n != 1) {
        aio_free(a);
        return io_failed("submit", n < 0 ? n : -EAGAIN);
    }
    a->next = s->aio;
    s->aio = a;
    return 0;
}

/* Buffers of the lengths argv[1..] at offset argv[0]. NULL: told already. */
static struct io_aio *aio_new(struct io_shell *s, int argc, char **argv, int fill)
{
    struct io_aio *a = calloc(1, sizeof *a);
    uint64_t total = 0, len;
    if (a)
        a->iov = calloc((size_t)argc, sizeof *a->iov);
    if (!a || !a->iov) {
        free(a);
        run_fail(s->r, "no memory");
        return NULL;
    }
    bool ok = io_number(argv[0], &a->rq.off);
    for (int i = 1; ok && i < argc; i++) {
        ok = io_length(argv[i], &len);
        if (ok && (total += len) > IO_LEN_MAX) {
            printf("Argument list exceed maximum size %" PRIu64 "\n", IO_LEN_MAX);
            ok = false;
        }
        if (ok)
            a->iov[a->rq.iov_count++].iov_len = len;
    }
    if (!ok || !io_buf_new(s, total, fill, &a->buf)) {
        aio_free(a);
        return NULL;
    }
    uint8_t *at = a->buf.data;
    for (unsigned i = 0; i < a->rq.iov_count; at += a->iov[i++].iov_len)
        a->iov[i].iov_base = at;
    a->rq.iov = a->iov;
    a->rq.len = total;
    return a;
}

struct aio_opts { bool machine, quiet, dump, fua, zero, unmap, registered, invalid; char *pattern; };

#define AIO_COMMON                                                                                                           \
    { .short_name = 'C', .type = OPT_BOOL, OPT_AT(struct aio_opts, machine), .help = "report in a form for programs" },      \
    { .short_name = 'i', .type = OPT_BOOL, OPT_AT(struct aio_opts, invalid), .help = "do nothing but count an invalid request" }, \
    { .short_name = 'q', .type = OPT_BOOL, OPT_AT(struct aio_opts, quiet), .help = "no report" },                            \
    { .short_name = 'r', .type = OPT_BOOL, OPT_AT(struct aio_opts, registered), .help = "register the buffer (no effect)" }

static const struct opt_row aio_read_rows[] = {
    AIO_COMMON,
    { .short_name = 'P', .type = OPT_STR, OPT_AT(struct aio_opts, pattern), .arg = "BYTE", .help = "tell when the data is not this byte throughout" },
    { .short_name = 'v', .type = OPT_BOOL, OPT_AT(struct aio_opts, dump), .help = "dump the data" },
    OPT_END
};
static const struct opt_row aio_write_rows[] = {
    AIO_COMMON,
    { .short_name = 'P', .type = OPT_STR, OPT_AT(struct aio_opts, pattern), .arg = "BYTE", .help = "byte to write [0xcd]" },
    { .short_name = 'f', .type = OPT_BOOL, OPT_AT(struct aio_opts, fua), .help = "durable when it ends" },
    { .short_name = 'z', .type = OPT_BOOL, OPT_AT(struct aio_opts, zero), .help = "write zeros by request" },
    { .short_name = 'u', .type = OPT_BOOL, OPT_AT(struct aio_opts, unmap), .help = "with -z: space may be given back" },
    OPT_END
};

/* The peer counts an invalid request in its statistics; here there is nothing to count yet. */
static int invalid(const char *kind)
{
    printf("injecting invalid %s request\n", kind);
    return 0;
}

static int run_aio_read(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct aio_opts *o = opts;
    int pattern = -1;
    if (o->pattern && !io_pattern(o->pattern, &pattern))
        return 1;
    if (o->invalid)
        return invalid("read");
    struct io_aio *a = aio_new(s, argc, argv, 0xab);
    if (!a)
        return 1;
    a->rq.op = BYRE_OP_READ;
    a->pattern = pattern;
    a->dump = o->dump;
    a->quiet = o->quiet;
    a->machine = o->machine;
    return submit(s, a);
}

static bool check_write(const struct aio_opts *o, int argc)
{
    if (o->unmap && !o->zero)
        printf("-u requires -z to be specified\n");
    else if (o->zero && o->pattern)
        printf("-z and -P cannot be specified at the same time\n");
    else if (o->zero && argc > 2)
        printf("-z supports only a single length parameter\n");
    else
        return true;
    return false;
}

static int run_aio_write(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct aio_opts *o = opts;
    int pattern = 0xcd;
    if (!check_write(o, argc) || (o->pattern && !io_pattern(o->pattern, &pattern)))
        return 1;
    if (o->invalid)
        return invalid("write");
    if (byre_is_read_only(s->image))
        return io_failed("aio_write", -EPERM);
    struct io_aio *a = aio_new(s, argc, argv, pattern);
    if (!a)
        return 1;
    a->rq.op = o->zero ? BYRE_OP_ZERO : BYRE_OP_WRITE;
    a->rq.flags = (o->fua ? BYRE_FUA : 0) | (o->unmap ? BYRE_UNMAP : 0);
    if (o->zero) {
        a->rq.iov = NULL;
        a->rq.iov_count = 0;
    }
    a->quiet = o->quiet;
    a->machine = o->machine;
    return submit(s, a);
}

static int run_aio_flush(struct io_shell *s, const void *opts, int argc, char **argv)
{
    io_aio_reap(s, true);
    return 0;
}

const struct io_cmd io_cmd_aio_read = { "aio_read", NULL, "[-Ciqrv] [-P pattern] off len [len..]", "start reading bytes",
    "The command succeeds when the request was started; aio_flush waits for it.", aio_read_rows, sizeof(struct aio_opts), 2, -1, 0, run_aio_read };
const struct io_cmd io_cmd_aio_write = { "aio_write", NULL, "[-Cfiqruz] [-P pattern] off len [len..]", "start writing bytes",
    "The command succeeds when the request was started; aio_flush waits for it.", aio_write_rows, sizeof(struct aio_opts), 2, -1, 0, run_aio_write };
const struct io_cmd io_cmd_aio_flush = { "aio_flush", NULL, "", "wait until all started requests have ended", NULL, NULL, 0, 0, 0, 0, run_aio_flush };
