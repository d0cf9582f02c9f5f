/* SPDX-License-Identifier: MIT
 *
 * q2_edit.c: applies changes of table entries.
 *
 * Purpose      Repair decides entry by entry and writes in batches: a sector is read and written once per batch.
 * Owns         The list.
 * Invariants   I1 Every write is whole 512-byte sectors; an entry never straddles two, and both halves of an extended one
 *                 are in the same write (Q10).
 *              I2 The order within a batch does not matter to the caller; barriers are the caller's.
 * Order        None of its own.
 * Concurrency  Home loop, inside meta_struct_begin.
 * Failure      -EIO leaves each sector old or new.
 * Tests        q2_check_test.c
 */
#include <stdlib.h>

#include "base/endian.h"
#include "fmt/qcow2/q2_check_priv.h"

#define SPAN_MAX 65536u              /* bytes rewritten at once, but for the sectors at both ends */
#define ROOM (SPAN_MAX + 1024)
#define GAP_MAX 4096u                /* entries closer than this share a span */

void q2_edits_fini(struct q2_edits *e)
{
    free(e->list);
    *e = (struct q2_edits){ 0 };
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct q2_edit *)a)->off, y = ((const struct q2_edit *)b)->off;
    return x < y ? -1 : x > y;
}

/* Applies list[from..to) that lie within one span. */
static int apply_span(struct co *co, struct q2_image *q, const struct q2_edit *from, const struct q2_edit *to, uint8_t *buf)
{
    uint64_t start = round_down(from->off, 512), len = round_up((to - 1)->off + 8, 512) - start;
    struct iovec v;
    ASSERT(len <= ROOM);
    int rc = stor_read(co, q->im.store, iov_one(&v, buf, len), start);
    if (rc)
        return rc;
    for (const struct q2_edit *e = from; e < to; e++)
        be64_put((be64 *)(buf + (e->off - start)), e->value);
    return meta_write_now(co, q->meta, buf, len, start);
}

/* The second half of an extended entry whose first half is the change in front of it. */
static bool is_second_half(const struct q2_edit *e) { return e->off % 16 == 8 && e[-1].off + 8 == e->off; }

int q2_edits_apply(struct co *co, struct q2_edits *e, struct q2_image *q)
{
    uint8_t *buf = NULL;
    int rc = 0;
    if (!e->count)
        return 0;
    if (posix_memalign((void **)&buf, 4096, ROOM))
        return -ENOMEM;
    qsort(e->list, e->count, sizeof *e->list, by_offset);
    for (size_t i = 0, n; !rc && i < e->count; i = n) {
        for (n = i + 1; n < e->count; n++)
            if (e->list[n].off - e->list[n - 1].off > GAP_MAX || (e->list[n].off - e->list[i].off > SPAN_MAX - 512 && !is_second_half(&e->list[n])))
                break;
        rc = apply_span(co, q, &e->list[i], &e->list[n], buf);
    }
    e->count = 0;
    free(buf);
    return rc;
}

int q2_edits_add(struct co *co, struct q2_edits *e, struct q2_image *q, uint64_t off, uint64_t value)
{
    ASSERT(off % 8 == 0);
    if (e->count == e->room) {
        size_t room = e->room ? e->room * 4 : 64;
        struct q2_edit *list = realloc(e->list, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        e->list = list;
        e->room = room;
    }
    e->list[e->count++] = (struct q2_edit){ off, value };
    return e->count == Q2_EDITS_MAX ? q2_edits_apply(co, e, q) : 0;
}

int q2_edits_add_pair(struct co *co, struct q2_edits *e, struct q2_image *q, uint64_t off, uint64_t raw, uint64_t bits)
{
    ASSERT(off % 16 == 0);
    int rc = e->count + 2 > Q2_EDITS_MAX ? q2_edits_apply(co, e, q) : 0;
    if (!rc)
        rc = q2_edits_add(co, e, q, off, raw);
    return rc ? rc : q2_edits_add(co, e, q, off + 8, bits);
}
