/* SPDX-License-Identifier: MIT
 *
 * bitmap_save.c: several changes of a node's dirty bitmaps that are one (FEATURES 9.083, 9.086).
 *
 * Purpose     Remembers the bitmaps of a node, and gives them back as they were, or stores what has become of them, at once.
 * Owns        struct graph_bitmaps_saved; what the changes took out of the list meanwhile.
 * Invariants  S1  Between save and its end nothing that is remembered is freed: bits that are replaced and bitmaps that are removed lie here.
 *             S2  Nothing is stored before graph_bitmaps_keep, so what is undone has never been on the disk; unless the bitmaps of another node
 *                 could not be kept, or the node has become another length: then it is stored once more. When the node failed to become that, what the
 *                 disk had before is in use there until the list is kept or undone, which stores in both cases.
 *             S3  What is remembered is of the length that the node has: its bits are made longer or shorter with those of the list (saved_resize_begin).
 * Order       The format's.
 * Concurrency Home loop; the node is drained all the time, and nobody else changes its bitmaps (graph_edges_hold). Only an image over a file may
 *             make that longer meanwhile (node_set_length): whoever reads or writes the list here holds the node's `whole`.
 * Failure     Undoing what has been stored may fail like any store, and is told then. The format goes on with what it has stored: so that lies on the node
 *             (bitmaps_gone), all dirty, since nothing is recorded in it any more, until a store succeeds or the image is closed.
 * Tests       bitmap_test.c, tests/daemon/transaction_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "graph/graph_priv.h"
#include "graph/mode.h"

struct grave { struct grave *next; struct dirty *bits; };
struct row { struct fmt_bitmap *b; struct dirty *bits; bool enabled, changed; };
struct graph_bitmaps_saved {
    struct graph_node *n;
    struct tracked *room;
    struct grave *graves;
    struct fmt_bitmap *removed;
    bool stored, written;                /* the end has been reached; the image was changed for it */
    unsigned count;
    struct row rows[];
};

static int save_held(struct co *co, struct graph_node *n, struct graph_bitmaps_saved **ret, struct byre_err *err)
{
    int r = bitmaps_list(co, n, err);
    unsigned count = 0;
    for (struct fmt_bitmap *b = n->im->bitmaps; b && !r; b = b->next, count++)
        if (!b->bits && !b->bad && !b->inconsistent && graph_bitmap_load(co, n, b, NULL) && !b->bad)
            r = byre_fail(err, IO, "%s: bitmap '%s' cannot be read", n->filename, b->name);
    struct graph_bitmaps_saved *s = r ? NULL : calloc(1, sizeof *s + count * sizeof s->rows[0]);
    if (s)
        s->room = bitmaps_tracked(n, 0);
    if (!r && (!s || !s->room)) {
        free(s);
        r = byre_fail(err, NOMEM, "%s: no memory for its bitmaps", n->filename);
    }
    if (r)
        return r;
    s->n = n;
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        s->rows[s->count++] = (struct row){ b, b->bits, b->enabled, b->changed };
    n->bitmaps_saved = s;
    graph_bitmap_batch_begin(n);
    *ret = s;
    return 0;
}

int graph_bitmaps_save(struct co *co, struct graph_node *n, struct graph_bitmaps_saved **ret, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(!n->bitmaps_saved);
    graph_hold_image(co, n);
    int r = save_held(co, n, ret, err);
    graph_release_image(n);
    return r;
}

/* ---- S3 ---- */

struct saved_resize { unsigned count; struct dirty *bits[]; };

void saved_resize_free(struct saved_resize *z)
{
    for (unsigned i = 0; z && i < z->count; i++)
        dirty_free(z->bits[i]);
    free(z);
}

/* Does the list have these bits still? Then its copy will be theirs as well. */
static bool is_listed(const struct graph_node *n, const struct row *row)
{
    for (const struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        if (b == row->b)
            return b->bits == row->bits;
    return false;
}

int saved_resize_begin(struct graph_node *n, uint64_t size, struct saved_resize **ret, struct byre_err *err)
{
    const struct graph_bitmaps_saved *s = n->bitmaps_saved;
    *ret = NULL;
    struct saved_resize *z = s ? calloc(1, sizeof *z + s->count * sizeof z->bits[0]) : NULL;
    int r = s && !z ? -ENOMEM : 0;
    for (; z && !r && z->count < s->count; z->count++) {
        const struct row *row = &s->rows[z->count];
        if (row->bits && !is_listed(n, row))
            r = dirty_copy(row->bits, size, &z->bits[z->count]);
    }
    if (!r) {
        *ret = z;
        return 0;
    }
    saved_resize_free(z);
    return r == -E2BIG ? byre_fail(err, LIMIT, "%s: a disk of %" PRIu64 " bytes has too many granules for a bitmap that may come back", n->filename, size)
                       : byre_fail(err, NOMEM, "%s: bitmaps", n->filename);
}

void saved_resize_swap(struct graph_node *n, struct fmt_bitmap *b, struct dirty *bits)
{
    struct graph_bitmaps_saved *s = n->bitmaps_saved;
    for (unsigned i = 0; s && i < s->count; i++)
        if (s->rows[i].b == b && s->rows[i].bits == b->bits)
            s->rows[i].bits = bits;
}

/* What is replaced lies in a grave, and so does its copy then, or is still that of a bitmap that was removed. z: NULL when the length is what it was, though
 * the list may have been stored on the way. */
void saved_resize_done(struct graph_node *n, struct saved_resize *z, bool stored)
{
    struct graph_bitmaps_saved *s = n->bitmaps_saved;
    if (!s)
        return;
    s->written |= stored;
    for (unsigned i = 0; z && i < z->count; i++) {
        struct row *row = &s->rows[i];
        if (!z->bits[i])
            continue;
        if (row->b->bits == row->bits) {
            dirty_free(row->b->bits);
            row->b->bits = z->bits[i];
        }
        for (struct grave *g = s->graves; g; g = g->next)
            if (g->bits == row->bits) {          /* who empties it frees the copy, unless that comes back */
                dirty_free(g->bits);
                g->bits = z->bits[i];
                break;
            }
        row->bits = TAKE(z->bits[i]);
    }
}

/* ---- S1 ---- */

int saved_grave(struct graph_node *n, struct grave **ret)
{
    *ret = n->bitmaps_saved ? calloc(1, sizeof **ret) : NULL;
    return n->bitmaps_saved && !*ret ? -ENOMEM : 0;
}

void saved_bury(struct graph_node *n, struct grave *g, struct dirty *bits)
{
    if (!g) {
        dirty_free(bits);
        return;
    }
    g->bits = bits;
    g->next = n->bitmaps_saved->graves;
    n->bitmaps_saved->graves = g;
}

bool saved_take(struct graph_node *n, struct fmt_bitmap *b)
{
    if (!n->bitmaps_saved)
        return false;
    b->next = n->bitmaps_saved->removed;
    n->bitmaps_saved->removed = b;
    return true;
}

/* ---- the end ---- */

static bool is_saved(const struct graph_bitmaps_saved *s, const struct fmt_bitmap *b)
{
    for (unsigned i = 0; i < s->count; i++)
        if (s->rows[i].b == b)
            return true;
    return false;
}

static bool is_saved_bits(const struct graph_bitmaps_saved *s, const struct dirty *bits)
{
    for (unsigned i = 0; i < s->count; i++)
        if (s->rows[i].bits == bits)
            return true;
    return false;
}

static void saved_free(struct graph_bitmaps_saved *s)
{
    struct graph_node *n = s->n;
    n->bitmaps_saved = NULL;
    free(s->room);
    free(s);
    mode_settle(n);                              /* they were in the way (mode.c M7) */
}

static void bury_all(struct graph_bitmaps_saved *s, bool keep_saved)
{
    for (struct grave *g = s->graves, *next; g; g = next) {
        next = g->next;
        if (!keep_saved || !is_saved_bits(s, g->bits))
            dirty_free(g->bits);
        free(g);
    }
    s->graves = NULL;
}

/* Is there a bitmap that the image keeps, or was there? */
static bool has_stored(const struct graph_bitmaps_saved *s)
{
    for (const struct fmt_bitmap *b = s->n->im->bitmaps; b; b = b->next)
        if (b->persistent)
            return true;
    for (unsigned i = 0; i < s->count; i++)
        if (s->rows[i].b->persistent)
            return true;
    return false;
}

int graph_bitmaps_keep(struct co *co, struct graph_bitmaps_saved *s, struct byre_err *err)
{
    bool nothing = s->n->read_only || !(s->written || has_stored(s));       /* what the image keeps has not changed */
    int r = nothing ? 0 : graph_bitmap_batch_end(co, s->n, err);
    s->n->bitmap_batch -= nothing;
    s->written |= !nothing && !r;
    s->stored = !r;
    if (r)
        graph_bitmap_batch_begin(s->n);          /* nothing has been stored; undo ends it */
    return r;
}

void graph_bitmaps_done(struct graph_bitmaps_saved *s)
{
    ASSERT(s->stored);
    bury_all(s, false);
    bitmaps_list_free(s->removed);
    saved_free(s);
}

static void push(struct fmt_bitmap **list, struct fmt_bitmap *b)
{
    b->next = *list;
    *list = b;
}

/* The image does not hold it any more. What was worth nothing had no bits, and goes. */
static void revive(struct graph_bitmaps_saved *s, struct fmt_bitmap *b, struct fmt_bitmap **gone)
{
    b->slot = 0;
    for (unsigned i = 0; i < s->count; i++)
        if (s->rows[i].b == b && !s->rows[i].bits) {
            s->rows[i].b = NULL;
            graph_warn(s->n, "%s: bitmap '%s', which was worth nothing, is removed", s->n->filename, b->name);
            push(gone, b);
        }
}

/* The list as it was. What came meanwhile goes: the format may go by it still. */
static void put_rows(struct graph_bitmaps_saved *s, struct fmt_bitmap **gone)
{
    struct fmt_bitmap *lists[] = { s->n->im->bitmaps, s->removed };
    for (unsigned k = 0; k < 2; k++)
        for (struct fmt_bitmap *b = lists[k], *next; b; b = next) {
            next = b->next;
            b->next = NULL;
            if (k && is_saved(s, b) && s->written)
                revive(s, b, gone);
            else if (!is_saved(s, b))
                push(gone, b);
        }
    s->removed = NULL;
    struct fmt_bitmap **tail = &s->n->im->bitmaps;
    for (unsigned i = 0; i < s->count; i++) {
        struct row *row = &s->rows[i];
        if (!row->b)
            continue;
        if (row->b->bits != row->bits)
            dirty_free(row->b->bits);
        row->b->bits = row->bits;
        row->b->enabled = row->enabled;
        row->b->changed = row->changed || (s->written && row->b->persistent && row->bits);
        *tail = row->b;
        tail = &row->b->next;
    }
    *tail = NULL;
}

/* Nobody records in these any more. written: the format may have them in its set, and follow them, until it has stored another one (bitmaps_store). */
static void let_go(struct graph_node *n, struct fmt_bitmap *gone, bool written)
{
    if (!written) {
        bitmaps_list_free(gone);
        return;
    }
    for (struct fmt_bitmap *b = gone, *next; b; b = next) {
        next = b->next;
        if (b->bits)
            dirty_set(b->bits, 0, b->bits->size);        /* should that never come about, it closes with a superset */
        push(&n->bitmaps_gone, b);
    }
}

void graph_bitmaps_undo(struct co *co, struct graph_bitmaps_saved *s)
{
    struct graph_node *n = s->n;
    struct byre_err why = { 0 };
    struct fmt_bitmap *gone = NULL;
    graph_hold_image(co, n);
    put_rows(s, &gone);
    bury_all(s, true);
    bitmaps_publish(n, s->room);
    s->room = NULL;
    bool written = s->written;
    let_go(n, gone, written);
    n->bitmap_batch -= !s->stored;               /* nothing to store */
    saved_free(s);
    graph_release_image(n);
    if (!written)
        return;
    graph_bitmap_batch_begin(n);
    if (graph_bitmap_batch_end(co, n, &why))
        graph_warn(n, "%s: a change of its bitmaps could not be taken back: %s", n->filename, why.text);
}
