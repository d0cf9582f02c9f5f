/* SPDX-License-Identifier: MIT
 *
 * copy_async.c: copies a disk into a new qcow2 image with asynchronous requests: many blocks are on their way at once.
 *
 *     copy_async SOURCE FORMAT TARGET
 *
 * Each block has a slot. Its tag is the number of the slot: a completion of the source's queue makes the slot a write, a
 * completion of the target's queue makes it free again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <byre/byre.h>

#define SLOTS 16
#define BLOCK (256 * 1024)

struct copy {
    struct byre_queue *from, *to;
    uint64_t size, next;
    uint64_t off[SLOTS];
    size_t len[SLOTS];
    char *buf[SLOTS];
    int free_slots[SLOTS], free_count;
};

static int failed(const char *what, int r)
{
    fprintf(stderr, "%s failed: %s\n", what, strerror(-r));
    return 1;
}

/* Starts reads while there are slots and something is left to read. */
static int start_reads(struct copy *c)
{
    struct byre_request batch[SLOTS];
    unsigned n = 0;
    while (c->free_count && c->next < c->size) {
        int s = c->free_slots[--c->free_count];
        c->off[s] = c->next;
        c->len[s] = c->size - c->next < BLOCK ? (size_t)(c->size - c->next) : BLOCK;
        c->next += c->len[s];
        memset(&batch[n], 0, sizeof batch[n]);
        batch[n].op = BYRE_OP_READ;
        batch[n].off = c->off[s];
        batch[n].len = c->len[s];
        batch[n].buf = c->buf[s];
        batch[n++].tag = (uint64_t)s;
    }
    return n && byre_queue_submit(c->from, batch, n) != (int)n ? failed("submitting", -EAGAIN) : 0;
}

/* Turns finished reads into writes. A block of zeros needs no bytes. */
static int start_writes(struct copy *c, const struct byre_completion *done, int n)
{
    static const char zeros[BLOCK];
    for (int i = 0; i < n; i++) {
        size_t s = (size_t)done[i].tag;
        struct byre_request rq;
        if (done[i].result < 0)
            return failed("reading", done[i].result);
        memset(&rq, 0, sizeof rq);
        rq.op = memcmp(c->buf[s], zeros, c->len[s]) ? BYRE_OP_WRITE : BYRE_OP_ZERO;
        rq.off = c->off[s];
        rq.len = c->len[s];
        rq.buf = c->buf[s];
        rq.tag = s;
        if (byre_queue_submit(c->to, &rq, 1) != 1)
            return failed("submitting", -EAGAIN);
    }
    return 0;
}

static int finish_writes(struct copy *c, const struct byre_completion *done, int n)
{
    for (int i = 0; i < n; i++) {
        if (done[i].result < 0)
            return failed("writing", done[i].result);
        c->free_slots[c->free_count++] = (int)done[i].tag;
    }
    return 0;
}

static int copy_all(struct copy *c)
{
    struct byre_completion done[SLOTS];
    while (c->next < c->size || c->free_count < SLOTS) {
        if (start_reads(c))
            return 1;
        unsigned reading = byre_queue_in_flight(c->from), writing = byre_queue_in_flight(c->to);
        int n = byre_queue_reap(c->from, done, SLOTS, reading ? 1 : 0, -1);
        if (start_writes(c, done, n))
            return 1;
        n = byre_queue_reap(c->to, done, SLOTS, !reading && writing ? 1 : 0, -1);
        if (finish_writes(c, done, n))
            return 1;
    }
    return 0;
}

static int copy(struct byre_image *source, struct byre_image *target)
{
    struct byre_err err;
    struct copy c;
    int code = 1;
    memset(&c, 0, sizeof c);
    c.size = byre_size(source);
    char *memory = malloc((size_t)SLOTS * BLOCK);
    for (int s = 0; s < SLOTS; s++) {
        c.buf[s] = memory ? memory + (size_t)s * BLOCK : NULL;
        c.free_slots[c.free_count++] = s;
    }
    if (!memory || byre_queue_new(source, NULL, &c.from, &err) || byre_queue_new(target, NULL, &c.to, &err))
        fprintf(stderr, "no queue\n");
    else
        code = copy_all(&c);
    byre_queue_free(c.from);            /* waits for what is in flight: the buffers are ours again */
    byre_queue_free(c.to);
    free(memory);
    int r = code ? 0 : byre_flush(target);
    return r < 0 ? failed("flushing", r) : code;
}

static int run(struct byre_ctx *ctx, char **argv)
{
    struct byre_err err;
    struct byre_image *source = NULL, *target = NULL;
    struct byre_open_opts in = byre_open_opts_init(), out = byre_open_opts_init();
    struct byre_create_opts make = byre_create_opts_init();
    int code = 1;
    in.flags = BYRE_OPEN_READ_ONLY;
    in.format = argv[2];
    out.format = make.format = "qcow2";
    make.flags = BYRE_CREATE_SIZE | BYRE_CREATE_EXCLUSIVE;
    if (byre_open(ctx, argv[1], &in, &source, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    make.size = byre_size(source);
    if (byre_create(ctx, argv[3], &make, &err) || byre_open(ctx, argv[3], &out, &target, &err))
        fprintf(stderr, "%s\n", err.text);
    else
        code = copy(source, target);
    if (byre_close(target) < 0 || byre_close(source) < 0)
        code = 1;
    return code;
}

int main(int argc, char **argv)
{
    struct byre_ctx *ctx;
    struct byre_err err;
    if (argc != 4) {
        fprintf(stderr, "usage: copy_async SOURCE FORMAT TARGET\n");
        return 2;
    }
    if (byre_ctx_new(NULL, &ctx, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    int code = run(ctx, argv);
    byre_ctx_free(ctx);
    return code;
}
