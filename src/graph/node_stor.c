/* SPDX-License-Identifier: MIT
 *
 * node_stor.c: a node as a byte store.
 *
 * Purpose     A format makes a fresh image in a store. When the image is to lie in a node, this is the store: what is written passes the node's gate,
 *             its filters, its bitmaps and watchers, as any other request does.
 * Owns        One reference and one use of the node.
 * Invariants  N1  From the time that the store is open until it is closed nobody else writes to the node or changes its length: others of this
 *                 graph by the use, other processes by the locks of the file at the bottom.
 *             N2  Nothing is promised of zeros, of punching or of copies: a filter may do as it likes. Only a length that can be changed is told.
 *             N3  The length is that of the image at the bottom; filters follow it.
 * Order       None: a flush is the node's flush.
 * Concurrency Home loop.
 * Failure     What the node answers.
 * Tests       tests/daemon/blockdev_create_test.py
 */
#include <stdlib.h>

#include "graph/under.h"

struct node_store {
    struct stor s;                           /* first */
    struct graph_node *n, *bottom;           /* bottom: the image below all filters; what lies between is frozen. NULL: not yet */
    const struct graph_user *self;           /* of bottom: whose use of it is ours */
    struct graph_user use;
    bool locked;                             /* N1: the bottom's locks are tightened */
    unsigned lock_perm, lock_shared;         /* what they were */
};

static struct node_store *of(struct stor *s) { return (struct node_store *)s; }

static int64_t store_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t have = graph_length(of(s)->n), len = off < have ? min_u64(v.len_bytes, have - off) : 0;
    int r = len ? graph_read(co, of(s)->n, iov_slice(v, 0, len), off) : 0;
    return r ? r : (int64_t)len;
}

static int64_t store_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    int r = graph_write(co, of(s)->n, v, off, flags & STOR_FUA ? GRAPH_FUA : 0);
    return r ? r : (int64_t)v.len_bytes;
}

static int store_flush(struct co *co, struct stor *s) { return graph_flush(co, of(s)->n); }

static int store_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    return graph_zero(co, of(s)->n, off, len, (flags & STOR_FUA ? GRAPH_FUA : 0) | (flags & STOR_UNMAP ? GRAPH_UNMAP : 0) |
                      (flags & STOR_NO_FALLBACK ? GRAPH_NO_FALLBACK : 0));
}

static int store_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len) { return graph_discard(co, of(s)->n, off, len); }

static int store_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = graph_length(of(s)->n);
    return 0;
}

/* As U5 of under.c. */
static int store_truncate(struct co *co, struct stor *s, uint64_t len)
{
    uint64_t have = graph_length(of(s)->n);
    int r = node_resize(co, of(s)->bottom, of(s)->self, len, FMT_PREALLOC_OFF, NULL);
    if (!r && len > have && !node_gains_zeros(of(s)->bottom))
        return store_zero(co, s, have, len - have, 0);
    return r == -ENOTSUP && len < have ? store_zero(co, s, len, have - len, STOR_UNMAP) : r;
}

/* Space changes nothing of what a node shows, so filters need not see it. */
static int store_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    const struct graph_node *n = of(s)->bottom;
    if (!n->is_raw || !n->is_file)
        return -ENOTSUP;
    epoch_token t = gate_enter(co, of(s)->n);    /* as any request: the file is not opened in another way meanwhile */
    int r = stor_preallocate(co, n->im->store, off, len);
    gate_leave(co, of(s)->n, t);
    return r;
}

static void unlock_bottom(struct co *co, struct node_store *t)
{
    struct graph_node *n = t->bottom;
    if (!t->locked)
        return;
    n->lock_perm = t->lock_perm;
    n->lock_shared = t->lock_shared;
    if (node_lock(co, n, 0, NULL))
        graph_warn(n, "%s: its lock cannot be lowered again", n->filename);
}

static void store_close(struct co *co, struct stor *s)
{
    struct node_store *t = of(s);
    struct graph_node *n = t->n;
    unlock_bottom(co, t);
    if (t->bottom)
        graph_thaw(n, t->bottom);
    graph_user_remove(&t->use);
    stor_fini(&t->s);
    free(t);
    graph_writer_gone(co, n);
    (void)graph_close(co, n);                /* others have it, or it was opened for this: then a flush has said what there is to say */
}

static const struct stor_ops node_ops = {
    .name = "node",
    .preadv = store_preadv,
    .pwritev = store_pwritev,
    .flush = store_flush,
    .zero = store_zero,
    .discard = store_discard,
    .truncate = store_truncate,
    .preallocate = store_preallocate,
    .length = store_length,
    .close = store_close,
};

/* N1 for other processes. Images with metadata hold such locks anyway. */
static int lock_bottom(struct co *co, struct node_store *t, struct graph_node *n, struct byre_err *err)
{
    if (!n->is_raw || n->no_lock || n->flt)
        return 0;
    t->lock_perm = n->lock_perm;
    t->lock_shared = n->lock_shared;
    n->lock_perm |= STOR_PERM_WRITE | STOR_PERM_RESIZE;
    n->lock_shared &= ~(unsigned)(STOR_PERM_WRITE | STOR_PERM_RESIZE);
    int r = node_lock(co, n, 0, err);
    t->locked = !r;
    if (r) {
        n->lock_perm = t->lock_perm;
        n->lock_shared = t->lock_shared;
    }
    return r;
}

static int find_bottom(struct node_store *t, struct byre_err *err)
{
    struct graph_node *n = t->n;
    for (t->self = &t->use; n->flt && n->backing; n = n->backing)
        t->self = &n->backing_use;
    int r = graph_freeze(t->n, n, err);
    if (!r)
        t->bottom = n;
    return r;
}

int graph_node_store(struct co *co, struct graph_node *n, const char *who, struct stor **ret_s, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    struct node_store *t = calloc(1, sizeof *t);
    if (!t || stor_init(&t->s, &node_ops, n->filename ? n->filename : n->name)) {
        free(t);
        return byre_fail(err, NOMEM, "node '%s': no memory to write an image to it", n->name);
    }
    t->n = n;
    t->use = (struct graph_user){ .who = who, .perm = STOR_PERM_READ | STOR_PERM_WRITE | STOR_PERM_RESIZE, .shared = STOR_PERM_READ };
    graph_ref(n);
    int r = graph_writer_comes(co, n, err);
    if (!r)
        r = graph_user_add(n, &t->use, err);
    if (!r)
        r = find_bottom(t, err);
    if (!r)
        r = lock_bottom(co, t, t->bottom, err);
    if (r) {
        store_close(co, &t->s);
        return r;
    }
    t->s.traits.regular = node_has_free_length(t->bottom);
    t->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = SECTOR };
    *ret_s = &t->s;
    return 0;
}

void graph_tell_recorded(struct co *co, struct graph *g, const char *overlay, const char *backing)
{
    char *path = NULL, *data = NULL;
    if (!graph_name_file(g->policy, backing, overlay, &path, &data, NULL))       /* else it lies on a server, or nobody knows where */
        graph_tell_linked(co, g, overlay, path);
    free(path);
    free(data);
}
