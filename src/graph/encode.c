/* SPDX-License-Identifier: MIT
 *
 * encode.c: compressed writes (FEATURES 1.065).
 *
 * Purpose     Cuts a range into clusters, has the format compress them, several at the same time, and hands over what came out;
 *             clusters that do not become smaller are written plain.
 * Owns        struct graph_encoded; the pieces in flight of one call.
 * Invariants  I1  Compressing changes nothing: no gate, no section, no order; the caller writes the result when it likes.
 *             I2  Every cluster of the range is written whole: the last one of an image is filled up with zeros.
 *             I3  write_encoded is never called inside a section of this coroutine (fmt.h I4).
 * Order       As for a write.
 * Concurrency Any loop. Compressing runs on the CPU pool; at most FAN_WIDTH jobs of a call at a time.
 * Failure     The first error. Clusters that were written before it stay.
 * Tests       encode_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "graph/graph_priv.h"

/* Clusters go to the pool in groups of about this many bytes. */
#define GROUP_BYTES (64u << 10)
/* A long request is compressed and written in steps, so that memory is bounded. */
#define STEP_BYTES (1u << 20)

struct graph_encoded {
    uint64_t off, len, unit;
    unsigned count;
    struct iovec *vec;            /* one per cluster; iov_len 0: plain */
    uint32_t *lens;
    uint8_t *out;                 /* count * unit bytes */
};

void graph_encoded_free(struct graph_encoded *e)
{
    if (!e)
        return;
    free(e->vec);
    free(e->lens);
    free(e->out);
    free(e);
}

static struct graph_encoded *encoded_new(uint64_t off, uint64_t len, uint64_t unit)
{
    struct graph_encoded *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    *e = (struct graph_encoded){ .off = off, .len = len, .unit = unit, .count = (unsigned)div_up(len, unit) };
    e->vec = calloc(e->count, sizeof *e->vec);
    e->lens = calloc(e->count, sizeof *e->lens);
    e->out = malloc(e->count * unit);
    if (e->vec && e->lens && e->out)
        return e;
    graph_encoded_free(e);
    return NULL;
}

struct encoder;
struct encode_slot { struct encoder *er; unsigned first, count, index; };
struct encoder {
    struct fan fan;
    struct graph_node *n;
    const struct fmt_encoding *how;
    struct graph_encoded *e;
    struct iov v;
    struct encode_slot slot[FAN_WIDTH];
};

static int encode_group(struct co *co, struct encoder *er, unsigned first, unsigned count)
{
    struct graph_encoded *e = er->e;
    uint64_t at = first * e->unit, whole = count * e->unit, have = min_u64(whole, e->len - at);
    struct iov v = iov_slice(er->v, at, have);
    struct fmt_encode job = { .out = e->out + at, .len = e->lens + first, .count = count };
    AUTOFREE uint8_t *copy = NULL;
    struct iovec one;
    if (iov_count(v) == 1 && have == whole) {
        (void)iov_export(v, &one, 1, NULL);       /* one, as was just counted */
        job.in = one.iov_base;
    } else {
        copy = malloc(whole);
        if (!copy)
            return -ENOMEM;
        iov_to_buf(v, copy, have);
        memset(copy + have, 0, whole - have);     /* I2 */
        job.in = copy;
    }
    return er->n->im->ops->encode(co, er->n->im, er->how, &job);
}

static void slot_run(struct co *co, void *arg)
{
    struct encode_slot *s = arg;
    fan_done(&s->er->fan, s->index, encode_group(co, s->er, s->first, s->count));
}

static int encode_all(struct co *co, struct encoder *er)
{
    struct graph_encoded *e = er->e;
    unsigned group = (unsigned)max_u64(1, GROUP_BYTES / e->unit);
    fan_init(&er->fan);
    for (unsigned at = 0; at < e->count && !er->fan.error; at += group) {
        unsigned i = fan_take(co, &er->fan);
        er->slot[i] = (struct encode_slot){ er, at, (unsigned)min_u64(group, e->count - at), i };
        if (at + group >= e->count || rt_spawn(co_loop(co), slot_run, &er->slot[i]))
            slot_run(co, &er->slot[i]);
    }
    int r = fan_wait(co, &er->fan);
    for (unsigned i = 0; i < e->count; i++)
        e->vec[i] = (struct iovec){ e->out + i * e->unit, e->lens[i] };
    return r;
}

static int range_check(const struct graph_node *n, uint64_t off, uint64_t len)
{
    uint64_t unit = n->im->encode_bytes, end = off + len;
    if (!unit)
        return -ENOTSUP;
    if (!range_inside(off, len, graph_length(n)))
        return -EIO;
    return off % unit || (end % unit && end != graph_length(n)) ? -EINVAL : 0;
}

int graph_encode(struct co *co, struct graph_node *n, const struct fmt_encoding *how, struct iov v, uint64_t off, struct graph_encoded **ret_e)
{
    int r = range_check(n, off, v.len_bytes);
    if (r || !v.len_bytes)
        return r ? r : -EINVAL;
    struct encoder *er = malloc(sizeof *er);
    struct graph_encoded *e = er ? encoded_new(off, v.len_bytes, n->im->encode_bytes) : NULL;
    if (!e) {
        free(er);
        return -ENOMEM;
    }
    er->n = n;
    er->how = how;
    er->e = e;
    er->v = v;
    r = encode_all(co, er);
    free(er);
    if (r)
        graph_encoded_free(e);
    else
        *ret_e = e;
    return r;
}

/* ---- writing ---- */

/* Clusters [i, i+count) of e as they came out; -EFBIG: not possible for these. v is for cluster i on. */
static int put_run(struct co *co, struct graph_node *n, const struct graph_encoded *e, struct iov v, unsigned i, unsigned count)
{
    uint64_t off = e->off + i * e->unit;
    int r = -EFBIG;
    if (e->vec[i].iov_len)
        r = n->im->ops->write_encoded(co, n->im, off, e->vec + i, count);
    if (r == -EFBIG)
        r = chain_write(co, n, iov_slice(v, 0, min_u64(count * e->unit, v.len_bytes)), off, 0);
    return r;
}

/* v for [off, off + v.len_bytes) of e. */
static int put_encoded(struct co *co, struct graph_node *n, const struct graph_encoded *e, struct iov v, uint64_t off)
{
    unsigned first = (unsigned)((off - e->off) / e->unit), end = first + (unsigned)div_up(v.len_bytes, e->unit);
    int r = 0;
    for (unsigned i = first, run; i < end && !r; i += run) {
        for (run = 1; i + run < end && !e->vec[i + run].iov_len == !e->vec[i].iov_len; run++)
            ;
        uint64_t at = (i - first) * e->unit;
        r = put_run(co, n, e, iov_slice(v, at, v.len_bytes - at), i, run);
    }
    return r;
}

struct encoded_req { struct graph_node *n; const struct graph_encoded *e; struct iov v; uint64_t off; };

static int watched_encoded(struct co *co, void *arg)
{
    const struct encoded_req *q = arg;
    return put_encoded(co, q->n, q->e, q->v, q->off);
}

static int encoded_watched(struct co *co, struct encoded_req *q)
{
    struct graph_change ch = { .node = q->n, .kind = GRAPH_CHANGE_WRITE, .off = q->off, .len = q->v.len_bytes, .v = &q->v, .flags = GRAPH_COMPRESS };
    return watch_run(co, &ch, watched_encoded, q);
}

int graph_write_encoded(struct co *co, struct graph_node *n, const struct graph_encoded *e, struct iov v, uint64_t off)
{
    ASSERT(off >= e->off && range_inside(off - e->off, v.len_bytes, e->len));
    struct graph_node *gate = n;
    epoch_token t = gate_enter(co, gate);      /* first: a resize may hold the gate */
    n = graph_attached(n);
    int r = change_begin(co, n, off, v.len_bytes);
    if (!r) {
        r = range_check(n, off, v.len_bytes);  /* again: the size may be another one now */
        struct encoded_req q = { n, e, v, off };
        if (!r)
            r = is_watched(n) ? encoded_watched(co, &q) : put_encoded(co, n, e, v, off);
        change_end(n, off, v.len_bytes);
    }
    if (!r && n->writethrough)
        r = image_flush(co, n);
    gate_leave(co, gate, t);
    return r < 0 ? r : 0;
}

int chain_write_compressed(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    static const struct fmt_encoding how = { 0 };
    uint64_t step = max_u64(STEP_BYTES, n->im->encode_bytes), at = 0;
    int r = range_check(n, off, v.len_bytes);
    while (!r && at < v.len_bytes) {
        struct graph_encoded *e = NULL;
        struct iov part = iov_slice(v, at, min_u64(step, v.len_bytes - at));
        r = graph_encode(co, n, &how, part, off + at, &e);
        if (!r)
            r = put_encoded(co, n, e, part, off + at);
        graph_encoded_free(e);
        at += part.len_bytes;
    }
    return r;
}
