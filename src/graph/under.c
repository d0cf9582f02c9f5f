/* SPDX-License-Identifier: MIT
 *
 * under.c: the node below a format, as the format's store (FEATURES 3.063, 11.001).
 *
 * Purpose     A format over a filter, or over another format: what is asked of the store is asked of the node, so that filters, watchers and bitmaps
 *             of that node see it. A bare file is no matter of this: the format shares its store (open.c).
 * Owns        An attachment to the node (its gate is the store's), frozen edges down to the first image, and what that image's file is locked for.
 * Invariants  U1  The store asks the same image for as long as it is open: edges from n down to it are frozen, and the attachment moves to filters
 *                 over n and back only (runtime.c).
 *             U2  A format goes on with its metadata when nobody asks it for anything, and may have to, for those who wait in a drain. So a drain
 *                 of the node does not hold up its store. A change of structure (another image, size, bitmaps) does: graph_shut_begin, inside
 *                 of which nothing waits for a format above.
 *             U3  The store becomes longer from within a request of the format, so that waits for no gate above the format and takes no edges.
 *             U4  Other processes are kept from the file at the bottom as they would be from the format's own file.
 *             U5  Not every image can become shorter. One that cannot keeps its length, and what would have gone reads as zeros: whoever grows it
 *                 again finds what he would find in a file, and who opens it later finds room at its end.
 * Order       None: a flush of the store is the node's flush; the format says when (D5).
 * Concurrency Requests on any loop; the length changes on the home loop, where the others go for it.
 * Failure     What the node answers. -ENOSPC: its length cannot change.
 * Tests       tests/daemon/under_test.py
 */
#include <errno.h>
#include <stdlib.h>

#include "base/mutant.h"
#include "graph/under.h"

struct under {
    struct stor s;                           /* first */
    struct list_node link;                   /* graph->unders */
    struct graph_node *at;                   /* the attachment: requests go there */
    struct graph_node *n, *bottom;           /* bottom: the first image at or below n */
    unsigned perm, shared;                   /* U4: of the bottom's file */
    struct stor_events events;               /* n is a filter that wants to know */
};

static struct under *of(struct stor *s) { return (struct under *)s; }

/* ---- the length (U3) ---- */

struct longer { struct under *u; uint64_t len; bool only_grow; };

static int set_length(struct co *co, void *arg)
{
    const struct longer *l = arg;
    while (atomic_load(&l->u->at->gated))        /* as any request: a list of changes of its bitmaps may be under way (bitmap_save.c S1) */
        gate_wait_open(co, l->u->at);
    uint64_t was = graph_length(l->u->at);
    int r = node_set_length(co, l->u->bottom, l->len, l->only_grow);
    uint64_t len = graph_length(l->u->at);
    for (struct graph_node *f = l->u->n; !r && len > was && f->flt; f = f->backing)
        if (f->flt->grown)
            f->flt->grown(co, f, len);
    return r;
}

static int change_length(struct co *co, struct under *u, uint64_t len, bool only_grow)
{
    struct longer l = { u, len, only_grow };
    return u->s.traits.regular ? rt_call(co, u->n->g->home, set_length, &l) : -ENOSPC;
}

static int reach(struct co *co, struct under *u, uint64_t end)
{
    return end <= graph_length(u->at) ? 0 : change_length(co, u, end, true);
}

/* ---- requests ---- */

static int64_t under_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t have = graph_length(of(s)->at), len = off < have ? min_u64(v.len_bytes, have - off) : 0;
    int r = len ? graph_read(co, of(s)->at, iov_slice(v, 0, len), off) : 0;
    return r ? r : (int64_t)len;
}

static int64_t under_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    int r = reach(co, of(s), off + v.len_bytes);
    if (!r)
        r = graph_write(co, of(s)->at, v, off, flags & STOR_FUA ? GRAPH_FUA : 0);
    return r ? r : (int64_t)v.len_bytes;
}

static void under_event(struct co *co, struct stor_events *e, enum stor_event_kind what)
{
    struct graph_node *n = CONTAINER_OF(e, struct under, events)->n;
    n->flt->event(co, n, what);
}

static int under_flush(struct co *co, struct stor *s) { return MUTANT(MUT_UNDER_FLUSH_STOPS) ? 0 : graph_flush(co, of(s)->at); }

static int under_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = reach(co, of(s), off + len);
    return r ? r : graph_zero(co, of(s)->at, off, len, (flags & STOR_UNMAP ? GRAPH_UNMAP : 0) | (flags & STOR_NO_FALLBACK ? GRAPH_NO_FALLBACK : 0));
}

static int under_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    uint64_t have = graph_length(of(s)->at);
    return off < have ? graph_discard(co, of(s)->at, off, min_u64(len, have - off)) : 0;
}

static int under_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = graph_length(of(s)->at);
    return 0;
}

/* U5 */
static int under_truncate(struct co *co, struct stor *s, uint64_t len)
{
    uint64_t have = graph_length(of(s)->at);
    int r = change_length(co, of(s), len, false);
    return r == -ENOTSUP && len < have ? graph_zero(co, of(s)->at, len, have - len, GRAPH_UNMAP) : r;
}

/* Space changes nothing of what a node shows, so filters need not see it. */
static int under_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    const struct graph_node *b = of(s)->bottom;
    int r = reach(co, of(s), off + len);
    if (r || !b->is_raw || !b->is_file)
        return r ? r : -ENOTSUP;
    epoch_token t = gate_enter(co, of(s)->at);   /* as any request: the file is not opened in another way meanwhile */
    r = stor_preallocate(co, b->im->store, off, len);
    gate_leave(co, of(s)->at, t);
    return r;
}

static int under_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    struct graph_status st;
    uint64_t have = graph_length(of(s)->at);
    *ret_e = (struct stor_extent){ STOR_HOLE, off, len };
    if (off >= have)
        return 0;
    int r = graph_status(co, of(s)->at, NULL, off, min_u64(len, have - off), &st);
    if (r)
        return r;
    bool nothing = st.zero && !st.data;
    *ret_e = (struct stor_extent){ nothing || !st.present ? STOR_HOLE : STOR_DATA, off, st.len };
    return 0;
}

static int under_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    const struct graph_node *b = of(s)->bottom;
    epoch_token t = gate_enter(co, of(s)->at);
    int r = b->im->store ? stor_allocated(co, b->im->store, ret_bytes) : -ENOTSUP;
    gate_leave(co, of(s)->at, t);
    return r;
}

/* ---- locks (U4) ---- */

void unders_want(const struct graph_node *bottom, unsigned *perm, unsigned *unshared)
{
    if (!bottom->is_raw || bottom->flt)           /* images with metadata hold such locks anyway */
        return;
    LIST_FOR(l, &bottom->g->unders) {
        const struct under *u = CONTAINER_OF(l, struct under, link);
        if (u->bottom == bottom) {
            *perm |= u->perm;
            *unshared |= STOR_PERM_ALL & ~u->shared;
        }
    }
}

/* With the bottom's `whole`: its image does not become another one before it has what is wanted. */
static int under_lock(struct co *co, struct stor *s, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err)
{
    struct under *u = of(s);
    graph_hold_image(co, u->bottom);
    unsigned was_perm = u->perm, was_shared = u->shared;
    u->perm = perm;
    u->shared = shared;
    int r = node_lock(co, u->bottom, 0, err);
    if (r) {
        u->perm = was_perm;
        u->shared = was_shared;
    }
    graph_release_image(u->bottom);
    return r;
}

/* ---- life ---- */

static void under_close(struct co *co, struct stor *s)
{
    struct under *u = of(s);
    struct graph_node *b = u->bottom;
    list_remove(&u->link);
    if (s->events)
        atomic_fetch_sub(&u->n->g->listeners, 1);
    if ((u->perm || u->shared != STOR_PERM_ALL) && node_lock(co, b, 0, NULL))
        graph_warn(b, "%s: its lock cannot be lowered again", b->filename);
    graph_thaw(u->n, b);
    int r = graph_detach(co, u->at);         /* the format's node has the node below it, too */
    ASSERT(r == 0);
    stor_fini(s);
    free(u);
}

static const struct stor_ops under_ops = {
    .name = "node",
    .preadv = under_preadv,
    .pwritev = under_pwritev,
    .flush = under_flush,
    .zero = under_zero,
    .discard = under_discard,
    .truncate = under_truncate,
    .preallocate = under_preallocate,
    .length = under_length,
    .extent = under_extent,
    .lock = under_lock,
    .allocated = under_allocated,
    .close = under_close,
};

bool node_gains_zeros(const struct graph_node *n)
{
    while (n->is_raw && under_is_store(n->im->store))
        n = of(n->im->store)->bottom;
    return n->im->ops != &fmt_luks_ops;
}

bool node_has_free_length(const struct graph_node *n)
{
    bool fixed = n->how && n->how->ref.node.window.fixed;
    return n->im->ops->resize && !fixed && (!n->is_raw || (n->im->store && n->im->store->traits.regular));
}

bool under_is_store(const struct stor *s) { return s && s->ops == &under_ops; }

struct graph_node *under_door(const struct stor *s) { return of((struct stor *)(uintptr_t)s)->at; }

struct graph_node *under_file(const struct stor *s)
{
    struct graph_node *b = NULL;
    for (; under_is_store(s); s = b->im->store) {
        b = of((struct stor *)(uintptr_t)s)->bottom;
        if (!b->is_raw)
            return NULL;
    }
    return b;
}

bool under_seen(struct co *co, struct stor *s, struct stor_seen *ret)
{
    const struct graph_node *b = under_file(s);
    *ret = (struct stor_seen){ 0 };
    if (!(b ? b->im->store : s))
        return false;
    struct stor *held = stor_share(b ? b->im->store : s);
    bool known = stor_file_seen(co, held, ret);
    stor_close(co, held);
    return known;
}

/* Does m write to f's file without asking f? */
static bool goes_past(const struct graph_node *m, const struct graph_node *f)
{
    return m->file == f && m->im && m->im->store == f->im->store && !m->read_only;
}

int graph_need_seen(const struct graph_node *n, const char *what, struct byre_err *err)
{
    const struct graph_node *f = graph_skip_filters((struct graph_node *)(uintptr_t)n);
    for (const struct graph_node *m = f ? node_next(f->g, NULL) : NULL; m; m = node_next(f->g, (struct graph_node *)(uintptr_t)m))
        if (goes_past(m, f))
            return byre_fail(err, PERMISSION, "node '%s': the image '%s' writes to its file directly, and %s would not see that", f->name, m->name, what);
    return 0;
}

int graph_need_root(const struct graph_node *n, struct byre_err *err)
{
    const struct graph_node *f = graph_skip_filters((struct graph_node *)(uintptr_t)n);
    for (const struct graph_node *m = node_next(n->g, NULL); m; m = node_next(n->g, (struct graph_node *)(uintptr_t)m))
        if ((m->file && graph_skip_filters(m->file) == f) || (m->data_node && graph_skip_filters(m->data_node) == f))
            return byre_fail(err, PERMISSION, "Need a root block node: node '%s' is %s of the image '%s'", n->name, m->file && graph_skip_filters(m->file) == f ? "the file" : m->has_header ? "the header" : "the external data file", m->name);
    return 0;
}

bool under_shows_format(const struct stor *s)
{
    return under_is_store(s) && !of((struct stor *)(uintptr_t)s)->bottom->is_file;       /* a filter, as far as there are any, shows what it filters */
}

static unsigned levels_of(const struct graph_node *b);

static unsigned levels_below(struct stor *s) { return under_is_store(s) ? levels_of(of(s)->bottom) : 0; }

/* Of formats over one another, b's own counted: as far as their files are nodes. */
static unsigned levels_of(const struct graph_node *b)
{
    unsigned file = levels_below(b->im->store), data = b->im->second ? levels_below(b->im->second) : 0;
    return 1 + (file > data ? file : data);
}

/* U1, and how deep it is. */
static int find_bottom(struct graph_node *n, struct graph_node **ret_b, struct byre_err *err)
{
    *ret_b = graph_skip_filters(n);
    if (!*ret_b)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing: an image cannot lie over it", n->name);
    unsigned levels = levels_of(*ret_b);
    if (levels > UNDER_LEVELS_MAX)
        return byre_fail(err, LIMIT, "node '%s': formats lie over %u others already, the limit is %u", n->name, levels - 1, UNDER_LEVELS_MAX - 1);
    return graph_freeze(n, *ret_b, err);
}

static int attach(struct under *u, const char *who, struct byre_err *err)
{
    const struct graph_attach_opts o = { .who = who, .shared = STOR_PERM_ALL, .inner = true, .idle = true };       /* what the format does is said by its own use */
    int r = graph_attach(u->n, &o, &u->at, err);
    if (r)
        return r;
    u->at->under = true;
    gates_update(u->n->g);
    return 0;
}

static void tell(struct under *u, bool read_only)
{
    const struct stor *below = u->bottom->im->store;
    u->s.read_only = read_only;
    u->s.discard_ok = u->bottom->discard;
    u->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = SECTOR };
    u->s.traits = (struct stor_traits){ .regular = !read_only && node_has_free_length(u->bottom), .direct = below && below->traits.direct };
    if (u->n->flt && u->n->flt->event) {
        u->events.raise = under_event;
        u->s.events = &u->events;
        atomic_fetch_add(&u->n->g->listeners, 1);
    }
    if (MUTANT(MUT_UNDER_GROWTH_ZERO))
        u->s.traits.zero_growth = u->s.traits.zero_crash = true;
}

int under_new(struct co *co, struct graph_node *n, const char *who, bool read_only, struct stor **ret_s, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    struct under *u = calloc(1, sizeof *u);
    if (!u || stor_init(&u->s, &under_ops, n->filename ? n->filename : n->name)) {
        free(u);
        return byre_fail(err, NOMEM, "node '%s': no memory for an image over it", n->name);
    }
    u->n = n;
    u->shared = STOR_PERM_ALL;
    int r = find_bottom(n, &u->bottom, err);
    if (!r) {
        r = attach(u, who, err);
        if (r)
            graph_thaw(n, u->bottom);
    }
    if (r) {
        stor_fini(&u->s);
        free(u);
        return r;
    }
    list_push_back(&n->g->unders, &u->link);
    tell(u, read_only);
    *ret_s = &u->s;
    return 0;
}
