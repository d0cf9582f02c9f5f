/* SPDX-License-Identifier: MIT
 *
 * qed_tables.c: where do tables lie, so that no guest byte is written there?
 *
 * Purpose      Nothing in a file says what a cluster is: an entry that names a table looks like any other, and a write in place would go
 *              into the table. Here is the list that such entries are held against.
 * Owns         q->tables
 * Invariants   B1  The list has the L1 table and all L2 tables that were linked when it was made, in order of their places. A table that was
 *                  made since lies where no entry pointed: behind the end of the file, or where a scrub has proved it.
 *              B2  A table that has moved leaves the list before its old place holds anything else.
 * Order        None.
 * Concurrency  Lookups: any loop, inside an epoch section, or at home. The list is replaced at home, the old one goes after a grace period.
 * Failure      -ENOMEM: the old list stays.
 * Tests        qed_write_test.c (FEATURES 2.009), qed_fill_test.c
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qed/qed_image.h"

struct qed_tables { size_t n; uint64_t off[]; };

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static struct qed_tables *list_of(const struct qed_image *q)
{
    const _Atomic uint64_t *l1 = atomic_load(&q->l1);
    uint64_t end = atomic_load(&q->file_end), n = 1;
    for (uint64_t i = 0; i < q->l1_entries; i++)
        n += qed_table_kind(&q->g, le64_word(atomic_load(&l1[i])), end) == QED_POINTER;
    struct qed_tables *t = malloc(sizeof *t + n * sizeof t->off[0]);
    if (!t)
        return NULL;
    t->n = 1;
    t->off[0] = q->h.l1_off;
    for (uint64_t i = 0; i < q->l1_entries && t->n < n; i++) {
        uint64_t v = le64_word(atomic_load(&l1[i]));
        if (qed_table_kind(&q->g, v, end) == QED_POINTER)
            t->off[t->n++] = v;
    }
    qsort(t->off, t->n, sizeof t->off[0], by_value);
    return t;
}

int qed_tables_note(struct co *co, struct qed_image *q)
{
    struct qed_tables *t = list_of(q);
    if (!t)
        return -ENOMEM;
    struct qed_tables *old = atomic_exchange(&q->tables, t);
    if (old)
        epoch_wait(co, q->im.epoch);
    free(old);
    return 0;
}

void qed_tables_fini(struct qed_image *q) { free(atomic_exchange(&q->tables, NULL)); }

/* The first table that ends behind byte `host` of the file; t->n: none. */
static size_t at_or_behind(const struct qed_tables *t, uint64_t host, uint64_t table_bytes)
{
    size_t from = 0, to = t->n;
    while (from < to) {
        size_t mid = from + (to - from) / 2;
        if (t->off[mid] + table_bytes > host)
            to = mid;
        else
            from = mid + 1;
    }
    return from;
}

bool qed_hits_table(const struct qed_image *q, uint64_t host, uint64_t *len)
{
    const struct qed_tables *t = atomic_load_explicit(&q->tables, memory_order_acquire);
    size_t i = t ? at_or_behind(t, host, q->g.table_bytes) : 0;
    if (!t || i == t->n || t->off[i] >= host + *len)
        return false;
    bool hit = t->off[i] <= host;
    *len = min_u64(*len, hit ? t->off[i] + q->g.table_bytes - host : t->off[i] - host);
    return hit;
}

bool qed_table_shared(const struct qed_image *q, uint64_t off)
{
    const struct qed_tables *t = atomic_load(&q->tables);
    uint64_t bytes = q->g.table_bytes;
    size_t i = t ? at_or_behind(t, off, bytes) : 0;
    if (!t || i == t->n || t->off[i] >= off + bytes)
        return false;                            /* made since */
    return t->off[i] != off || (i + 1 < t->n && t->off[i + 1] < off + bytes);
}

void qed_tell(struct qed_image *q, uint64_t host, uint64_t bytes, const char *what)
{
    char text[160];
    if (q->told || !q->corrupted)
        return;
    q->told = true;
    snprintf(text, sizeof text, "%s at offset %#" PRIx64 " of the file: the request is refused, run check -r all", what, host);
    q->corrupted(q->corrupted_arg, &(struct fmt_corruption){ .text = text, .has_place = true, .off = host, .bytes = bytes });
}
