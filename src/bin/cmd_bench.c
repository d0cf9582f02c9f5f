/* SPDX-License-Identifier: MIT
 *
 * cmd_bench.c: byre bench (FEATURES 5.067).
 *
 * Purpose      Sends requests of one size at regular steps, many at a time, and tells how long it took.
 * Owns         buffer and queue of the run
 * Invariants   I1 at most `depth` requests are in flight, and exactly `count` are sent
 *              I2 with --flush-interval a flush follows every so many requests; unless --no-drain it waits for those before it
 * Concurrency  main thread, which also runs the loop: no thread switch per request
 * Failure      exit 1 at the first failed request
 * Tests        tests/cli/bench_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"

#define TAG_FLUSH UINT64_MAX
#define DEPTH_MAX 4095            /* with one place for a flush, what a queue holds */

struct opts {
    struct common common;
    char *format, *cache, *aio, *step, *offset, *bytes, *count, *depth, *flush_interval, *pattern;
    bool image_opts, force_share, quiet, write, native, no_drain;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    { "count", 'c', OPT_STR, OPT_AT(struct opts, count), .arg = "N", .help = "requests to send [75000]" },
    { "depth", 'd', OPT_STR, OPT_AT(struct opts, depth), .arg = "N", .help = "requests in flight, at most 4095 [64]" },
    { "buffer-size", 's', OPT_STR, OPT_AT(struct opts, bytes), .arg = "SIZE", .help = "bytes per request [4K]" },
    { "step-size", 'S', OPT_STR, OPT_AT(struct opts, step), .arg = "SIZE", .help = "distance from one request to the next [the buffer size]" },
    { "offset", 'o', OPT_STR, OPT_AT(struct opts, offset), .arg = "OFFSET", .help = "where to begin [0]" },
    { "write", 'w', OPT_BOOL, OPT_AT(struct opts, write), .help = "write instead of reading" },
    { "pattern", 0, OPT_STR, OPT_AT(struct opts, pattern), .arg = "BYTE", .help = "byte to write [0]" },
    { "flush-interval", 0, OPT_STR, OPT_AT(struct opts, flush_interval), .arg = "N", .help = "flush after every N writes" },
    { "no-drain", 0, OPT_BOOL, OPT_AT(struct opts, no_drain), .help = "do not wait for the writes in flight before a flush" },
    { "aio", 'i', OPT_STR, OPT_AT(struct opts, aio), .arg = "MODE", .help = "threads, native or io_uring [io_uring]" },
    { "native", 'n', OPT_BOOL, OPT_AT(struct opts, native), .help = "short for -i native; needs -t none or directsync" },
    ROW_CACHE(struct opts, cache, "cache mode"),
    ROW_FORCE_SHARE(struct opts),
    ROW_QUIET(struct opts),
    OPT_END
};

struct bench {
    struct run *r;
    bool write, no_drain;
    uint64_t count, depth, bytes, step, offset, flush_interval;
    uint8_t pattern;
    struct byre_queue *queue;
    uint8_t *buf;
    unsigned *free_slots, free_count;    /* parts of buf that no request uses */
    uint64_t size;                       /* of the image */
    uint64_t at, sent, done, since_flush;
    bool flush_due, flush_out;
};

static int number(struct run *r, const char *word, uint64_t max, const char *what, uint64_t *ret)
{
    uint64_t v;
    if (!word)
        return 0;
    if (size_parse(word, &v))
        return run_fail(r, "Invalid %s '%s'", what, word);
    if (v > max)
        return run_fail(r, "Invalid %s '%s': the limit is %" PRIu64, what, word, max);
    *ret = v;
    return 0;
}

static int parse(struct run *r, const struct opts *o, struct bench *b)
{
    uint64_t pattern = 0;
    *b = (struct bench){ .r = r, .write = o->write, .no_drain = o->no_drain, .count = 75000, .depth = 64, .bytes = 4096 };
    if (number(r, o->count, INT32_MAX, "request count", &b->count) || number(r, o->depth, DEPTH_MAX, "queue depth", &b->depth) ||
        number(r, o->bytes, INT32_MAX, "buffer size", &b->bytes) || number(r, o->step, INT32_MAX, "step size", &b->step) ||
        number(r, o->offset, INT64_MAX, "offset", &b->offset) || number(r, o->flush_interval, INT32_MAX, "flush interval", &b->flush_interval) ||
        number(r, o->pattern, 255, "pattern byte", &pattern))
        return 1;
    b->pattern = (uint8_t)pattern;
    if (!b->depth)
        return run_fail(r, "The queue depth must be positive");
    if (!b->step)
        b->step = b->bytes;
    if (!b->write && b->flush_interval)
        return run_fail(r, "--flush-interval is only available in write tests");
    if (b->flush_interval && b->flush_interval < b->depth)
        return run_fail(r, "The flush interval must not be smaller than the queue depth");
    return 0;
}

/* The next request, in the peer's order of offsets: modulo the size of the image; at 0 when it would cross the end. */
static void next_request(struct bench *b, struct byre_request *rq)
{
    uint64_t slot = b->free_slots[--b->free_count];
    *rq = (struct byre_request){ .op = b->write ? BYRE_OP_WRITE : BYRE_OP_READ, .off = b->at, .len = b->bytes, .tag = slot,
                                 .buf = b->buf + slot * b->bytes };
    b->sent++;
    b->since_flush++;
    b->at = b->size ? (b->at + b->step) % b->size : 0;
    if (b->bytes <= b->size && b->at > b->size - b->bytes)
        b->at = 0;
}

static bool may_send(const struct bench *b)
{
    if (b->sent >= b->count || b->flush_due)
        return false;
    return byre_queue_in_flight(b->queue) - (b->flush_out ? 1 : 0) < b->depth;
}

/* Is it time for a flush, and may it go out now? */
static bool flush_now(const struct bench *b)
{
    return b->flush_due && !b->flush_out && (b->no_drain || byre_queue_in_flight(b->queue) == 0);
}

static int submit_some(struct bench *b)
{
    struct byre_request batch[64];
    unsigned n = 0;
    uint64_t room = b->depth - (byre_queue_in_flight(b->queue) - (b->flush_out ? 1 : 0));
    while (n < 64 && n < room && b->sent < b->count && !b->flush_due) {
        next_request(b, &batch[n++]);
        b->flush_due = b->flush_interval && b->since_flush == b->flush_interval;
    }
    int rc = n ? byre_queue_submit(b->queue, batch, n) : 0;
    if (rc < 0 || (unsigned)rc != n)
        return run_fail(b->r, "Failed request: %s", strerror(rc < 0 ? -rc : EAGAIN));
    if (flush_now(b)) {
        struct byre_request rq = { .op = BYRE_OP_FLUSH, .tag = TAG_FLUSH };
        if (byre_queue_submit(b->queue, &rq, 1) != 1)
            return run_fail(b->r, "Failed flush request");
        b->flush_out = true;
        b->since_flush = 0;
        b->flush_due = !b->no_drain;         /* draining: nothing else until it has come back */
    }
    return 0;
}

static int reap_some(struct bench *b)
{
    struct byre_completion c[64];
    int n = byre_queue_reap(b->queue, c, 64, 1, -1);
    for (int i = 0; i < n; i++) {
        if (c[i].result < 0)
            return run_fail(b->r, "Failed request: %s", strerror(-c[i].result));
        if (c[i].tag == TAG_FLUSH) {
            b->flush_out = false;
            b->flush_due &= b->no_drain;     /* without draining, the next one may be due already */
        } else {
            b->free_slots[b->free_count++] = (unsigned)c[i].tag;
            b->done++;
        }
    }
    return 0;
}

static int run_all(struct bench *b)
{
    int code = 0;
    while (!code && (b->done < b->count || b->flush_out || b->flush_due)) {
        while (!code && (may_send(b) || flush_now(b)))
            code = submit_some(b);
        if (!code && byre_queue_in_flight(b->queue))
            code = reap_some(b);
    }
    return code;
}

static int measure(struct bench *b, struct byre_image *image, bool quiet)
{
    struct byre_err err;
    struct timespec t1, t2;
    struct byre_queue_opts qo = byre_queue_opts_init();
    qo.depth = (unsigned)b->depth + 1;
    b->size = byre_size(image);
    b->at = b->offset;
    b->buf = aligned_alloc(4096, (b->bytes * b->depth + 4095) / 4096 * 4096 + 4096);
    b->free_slots = calloc(b->depth, sizeof *b->free_slots);
    if (!b->buf || !b->free_slots)
        return run_fail(b->r, "no memory for %" PRIu64 " buffers of %" PRIu64 " bytes", b->depth, b->bytes);
    memset(b->buf, b->pattern, b->bytes * b->depth);
    while (b->free_count < b->depth) {
        b->free_slots[b->free_count] = b->free_count;
        b->free_count++;
    }
    if (byre_queue_new(image, &qo, &b->queue, &err))
        return run_fail_err(b->r, &err);
    if (!quiet) {
        printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64 " in parallel (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
               b->count, b->write ? "write" : "read", b->bytes, b->depth, b->offset, b->step);
        if (b->flush_interval)
            printf("Sending flush every %" PRIu64 " requests\n", b->flush_interval);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    int code = run_all(b);
    clock_gettime(CLOCK_MONOTONIC, &t2);
    byre_queue_free(b->queue);
    if (!code && !quiet)
        printf("Run completed in %.3f seconds.\n", (double)(t2.tv_sec - t1.tv_sec) + (double)(t2.tv_nsec - t1.tv_nsec) / 1e9);
    return code;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct bench b;
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    int cache = run_cache(r, o->cache, BYRE_CACHE_WRITEBACK, "cache");
    int backend = cache < 0 ? -1 : run_backend(r, o->native ? "native" : o->aio, cache, "-t none");
    if (backend < 0 || parse(r, o, &b))
        return 1;
    if (o->write && o->force_share)
        return run_fail(r, "-U is possible for reading only");
    struct open_args a = { .name = r->argv[0], .format = o->format, .image_opts = o->image_opts, .cache = cache, .quiet = o->quiet,
        .warn_raw = true, .flags = (o->write ? 0 : BYRE_OPEN_READ_ONLY) | (o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
    if (!run_ctx(r, 0, backend))
        return 1;
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = measure(&b, image, o->quiet);
    free(b.buf);
    free(b.free_slots);
    run_close(r, image, &code);
    return code;
}

const struct cmd cmd_bench = { "bench", "FILE", "Measure reads or writes of an image", rows, sizeof(struct opts), cmd_run, .flags = 0 };
