/* SPDX-License-Identifier: MIT
 *
 * mode.c: a node that is in use is opened for writing, for reading, or with other options.
 *
 * Purpose     Another image of the same file takes the place of the one that a node has.
 * Owns        Nothing beyond the calls.
 * Invariants  M1  A node is never without an image: the new one is open before the old one is closed. What either of them needs of locks is
 *                 held from before the new one is opened until nothing can fail any more (struct lock_keep), by the store of each: a second
 *                 store takes what the first one has (stor_lock_beside). Nobody else gets the file in between, and nothing is to be taken back.
 *             M2  Two images of one file are never both open for writing. From writing to writing goes by way of reading.
 *             M3  Indexes (D6) that remember the node's old image are gone before the image is.
 *             M4  While a layer may be written, or has been made longer, first writes above it know nothing of what it holds (below_zero_from).
 *             M5  Bitmaps that the image does not keep go over to the new one with their bits; those that it keeps are stored when the old
 *                 one is closed.
 *             M6  Nobody else writes the file while it is open for writing. While it is open for reading somebody may (a lock that is not
 *                 there, or is not heeded): that is seen by its length and time, and bitmaps that only memory holds are then
 *                 inconsistent (G.018).
 *             M7  What was open for reading, and was opened for writing here because somebody came to write (for_writer), is open for reading again when
 *                 nobody writes any more, whoever that was:
 *                   - Who is about to write calls graph_writer_comes (a job: graph_make_writable). graph_await_writer and graph_await_end stand around
 *                     what suspends in between.
 *                   - Who has written calls graph_writer_gone, and waits for it.
 *                   - For users who go without that, users_settle calls mode_settle: a coroutine of its own, in graph->partings.
 *                   - is_left says what keeps it open for writing. Whoever takes one of those away calls mode_settle.
 *                   - Both ways edges are held. Who comes meanwhile waits for them (waits_for_writer), is in the way (mode_writer, wanted), or is refused.
 *                 A bare file with auto-read-only is no for_writer: it keeps what it has open, and gives its lock up without edges (mode_writer_gone).
 *             M8  Who waits for edges looks at no node (graph_look_begin): their holder may be closing it.
 * Order       What was open for writing is durable before anything else happens (Q16 to Q18 are the format's, when it is closed). Of what
 *             goes back by M7 most is so before edges are taken: a file that takes long keeps nobody else from them.
 * Concurrency Home loop, drained.
 * Failure     As it was, but what was open for writing may stay open for reading when the file could be opened for reading a moment before, and
 *             cannot be opened for writing any more.
 * Tests       runtime_test.c, tests/crash/snap_crash.c, tests/cli/blockdev_test.py, tests/daemon/reopen_test.py,
 *             tests/daemon/auto_read_only_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/mode.h"
#include "graph/under.h"

static const char *user_with(const struct graph_node *n, unsigned perm)
{
    for (const struct graph_user *u = n->users; u; u = u->next)
        if (u->perm & perm)
            return u->who;
    return NULL;
}

static const char *mode_changer(const struct graph_node *n) { return user_with(n, STOR_PERM_WRITE | STOR_PERM_RESIZE); }

void mode_forget_below(struct graph_node *n)
{
    for (struct graph_node *m = node_next(n->g, NULL); m; m = node_next(n->g, m))
        if (m->backing && !m->ending && chain_has(m->backing, n))
            atomic_store(&m->im->below_zero_from, UINT64_MAX);        /* M4 */
}

/* What is the image's, and not the node's. */
struct kept {
    struct fmt_image *im;
    unsigned lock_perm, lock_shared, data_perm, data_shared;
    char *data_filename;
    bool has_data_identity, guard_first, listed, is_view;
    uint64_t data_a, data_b;
    struct node_mode mode;
    struct stor_seen seen, data_seen;
};

struct node_mode mode_of(const struct graph_node *n)
{
    return (struct node_mode){ .how = n->how, .read_only = n->read_only, .discard = n->discard, .writethrough = n->writethrough, .detect = n->detect };
}

static void set_mode(struct graph_node *n, const struct node_mode *m)
{
    n->how = m->how;
    n->read_only = m->read_only;
    n->discard = m->discard;
    n->writethrough = m->writethrough;
    n->detect = m->detect;
}

static struct kept keep(const struct graph_node *n)
{
    return (struct kept){ n->im, n->lock_perm, n->lock_shared, n->data_perm, n->data_shared, n->data_filename, n->has_data_identity,
                          n->guard_first, n->bitmaps_listed, n->is_view, n->data_a, n->data_b, mode_of(n), n->seen, n->data_seen };
}

static void settle_files(struct graph_node *n)
{
    if (n->file)
        users_settle(n->file);
    if (n->data_node)
        users_settle(n->data_node);
}

static void put_back(struct graph_node *n, const struct kept *k)
{
    if (n->data_filename != k->data_filename)
        free(n->data_filename);
    n->im = k->im;
    n->lock_perm = k->lock_perm;
    n->lock_shared = k->lock_shared;
    n->data_perm = k->data_perm;
    n->data_shared = k->data_shared;
    n->data_filename = k->data_filename;
    n->has_data_identity = k->has_data_identity;
    n->guard_first = k->guard_first;
    n->bitmaps_listed = k->listed;
    n->is_view = k->is_view;
    n->data_a = k->data_a;
    n->data_b = k->data_b;
    n->seen = k->seen;
    n->data_seen = k->data_seen;
    settle_files(n);
    set_mode(n, &k->mode);
}

/* ---- locks (M1) ---- */

/* Goes on being held: what n has and wants of its locks now. */
static void keep_locks(struct graph_node *n)
{
    n->keep.perm |= n->lock_perm;
    n->keep.unshared |= STOR_PERM_ALL & ~n->lock_shared;
    if (!n->im->second)
        return;
    n->keep.data_perm |= n->data_perm;
    n->keep.data_unshared |= STOR_PERM_ALL & ~n->data_shared;
}

void mode_locks_hold(struct graph_node *n)
{
    n->keep.holds++;
    keep_locks(n);
}

void mode_locks_let(struct co *co, struct graph_node *n)
{
    ASSERT(n->keep.holds);
    if (--n->keep.holds)
        return;
    n->keep = (struct lock_keep){ 0 };
    int r = node_lock(co, n, 0, NULL);           /* only lowers them */
    (void)r;
    mode_settle(n);
}

/* The store that n has gets the locks that one in this mode will want. */
static int raise_locks(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    const struct lock_keep before = n->keep;
    const bool read_only = n->read_only;
    const unsigned perm = n->lock_perm, shared = n->lock_shared, data_perm = n->data_perm, data_shared = n->data_shared;
    n->read_only = m->read_only;
    locks_of(n, REOPEN_DENY);
    data_locks_of(n);
    keep_locks(n);
    n->read_only = read_only;
    n->lock_perm = perm;
    n->lock_shared = shared;
    n->data_perm = data_perm;
    n->data_shared = data_shared;
    int r = node_lock(co, n, 0, err);
    if (!r)
        return 0;
    n->keep = before;
    int low = node_lock(co, n, 0, NULL);         /* where one of two was raised */
    (void)low;
    return r;
}

/* A file of the node must put up with an image in this mode. */
static int ask_file(const struct graph_node *n, struct graph_node *file, struct graph_user *use, unsigned perm, struct byre_err *err)
{
    if (!file)
        return 0;
    struct graph_user want = *use;
    want.perm |= perm;                           /* and what it does now, as with locks */
    if (file->read_only && perm & STOR_PERM_WRITE)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and '%s' over it is to be written", file->name, n->name);
    int r = users_fit(file, &want, use, err);
    if (!r)
        use->perm = want.perm;
    users_settle(file);
    return r;
}

static int ask_files(struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    int r = ask_file(n, n->file, &n->file_use, m->read_only ? 0 : STOR_PERM_WRITE | STOR_PERM_RESIZE, err);
    return r ? r : ask_file(n, n->data_node, &n->data_use, data_perm_of(n, m->read_only), err);
}

/* The image beside k, if there is one, goes. Bitmaps that it has still to store are there until it is closed. */
static void drop_beside(struct co *co, struct graph_node *n, const struct kept *k)
{
    struct fmt_image *im = n->im;
    struct fmt_bitmap *stored = im->bitmaps;
    if (im == k->im)
        return;
    n->im = k->im;                               /* nobody looks at one that is going */
    int closed = im->ops->close(co, im);
    (void)closed;                                /* nothing was changed through it */
    bitmaps_list_free(stored);
}

/* Opens n in this mode beside k, which stays open (M1). */
static int open_beside(struct co *co, struct graph_node *n, const struct node_mode *m, const struct kept *k, struct byre_err *err)
{
    int r = raise_locks(co, n, m, err);
    if (!r)
        r = ask_files(n, m, err);
    if (!r) {
        set_mode(n, m);
        n->data_filename = NULL;
        n->bitmaps_listed = false;
        r = node_open_again(co, n, k->im->ops, err);
    }
    if (r) {
        drop_beside(co, n, k);
        put_back(n, k);
    }
    return r;
}

/* An image that was open for reading: nothing is lost. */
static void close_reading(struct co *co, struct kept *k)
{
    int closed = k->im->ops->close(co, k->im);
    (void)closed;
    free(k->data_filename);
}

/* After open_beside: k is to be the node's image after all. */
static void close_beside(struct co *co, struct graph_node *n, const struct kept *k)
{
    drop_beside(co, n, k);
    if (!n->read_only)
        bitmaps_free(n, NULL);                   /* who records was looked up in its list */
    put_back(n, k);
}

/* ---- bitmaps that are not the image's (M5) ---- */

struct carried { struct fmt_bitmap *own; struct tracked *room; };

static bool has_busy_bitmaps(const struct graph_node *n)
{
    for (const struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        if (b->busy && b->persistent)
            return true;
    return false;
}

/* The node's own out of the list of an image that will be closed. */
static struct fmt_bitmap *take_own(struct fmt_bitmap **list)
{
    struct fmt_bitmap *own = NULL, **tail = &own;
    for (struct fmt_bitmap **at = list; *at;) {
        struct fmt_bitmap *b = *at;
        if (b->persistent) {
            at = &b->next;
            continue;
        }
        *at = b->next;
        b->next = NULL;
        *tail = b;
        tail = &b->next;
    }
    return own;
}

static void give_own(struct graph_node *n, struct carried *c)
{
    struct fmt_bitmap **tail = &n->im->bitmaps;
    while (*tail)
        tail = &(*tail)->next;
    *tail = c->own;
    if (c->own)
        n->im->bitmap_budget = &n->bitmap_budget;
    bitmaps_publish(n, c->room);
}

/* M6. What the image keeps has been read anew. */
static void look_for_others(struct graph_node *n, const struct kept *old, struct fmt_bitmap *own)
{
    bool same = n->undisturbed || !stor_seen_differ(&old->seen, &n->seen);
    if (same && !stor_seen_differ(&old->data_seen, &n->data_seen))
        return;
    if (own || !(n->inactive || n->turning))                 /* an inactive node is there to be written by others */
        graph_warn(n, "%s: another program has written it, or opened it for writing, while it was open for reading here%s", n->filename, own ? ": what bitmaps in memory say of it is not all any more" : "");
    for (; own; own = own->next)
        own->inconsistent = true;
}

static unsigned count_own(const struct graph_node *n)
{
    unsigned count = 0;
    for (const struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        count += !b->persistent;
    return count;
}

/* ---- from reading ---- */

static int from_reading(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    struct kept old = keep(n);
    unsigned own = count_own(n);
    struct carried c = { 0 };
    int r = open_beside(co, n, m, &old, err);
    if (r)
        return r;
    c.room = bitmaps_tracked(n, 2 * own);
    if (!c.room) {
        close_beside(co, n, &old);
        return byre_fail(err, NOMEM, "%s: no memory for its bitmaps", n->filename);
    }
    c.own = take_own(&old.im->bitmaps);
    look_for_others(n, &old, c.own);
    struct fmt_bitmap *stored = old.im->bitmaps;
    close_reading(co, &old);
    bitmaps_list_free(stored);
    give_own(n, &c);
    return 0;
}

/* ---- from writing ---- */

/* Behind the close of what was open for writing, which may have changed the file once more. The image between was only there in case that
 * nothing can be opened. */
static int open_behind(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    struct kept between = keep(n);
    int r = open_beside(co, n, m, &between, err);
    if (!r)
        close_reading(co, &between);
    return r;
}

static int from_writing(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    struct kept writing = keep(n);
    struct node_mode reading = *m;
    struct carried c = { .room = bitmaps_tracked(n, 0) };
    reading.read_only = true;
    reading.discard = false;
    int r = c.room ? n->im->ops->flush(co, n->im) : -ENOMEM;
    if (r) {
        free(c.room);
        return byre_fail_code(err, IO, r, "%s: cannot be made durable: %s", n->filename, strerror(-r));
    }
    r = open_beside(co, n, &reading, &writing, err);         /* says what is wrong with the options, while nothing has changed */
    const char *writer = n->turning ? mode_changer(n) : mode_writer(n);      /* who rewrites the same by a filter that sleeps does not */
    if (!r && m->read_only && writer) {                      /* who has come since the caller looked; from here on n is read-only */
        r = byre_fail(err, PERMISSION, "node '%s': is written by '%s'", n->name, writer);
        close_beside(co, n, &writing);
    }
    if (r) {
        free(c.room);
        return r;
    }
    c.own = take_own(&writing.im->bitmaps);
    struct fmt_bitmap *stored = writing.im->bitmaps;
    int closed = writing.im->ops->close(co, writing.im);     /* M2. When it fails, what guests were told is durable is so since the flush above, and the
                                                              * bitmaps that it did not get to store are in use on the disk, so nobody trusts them. The
                                                              * node goes on in its new mode: the caller is told, and can take it back (st->switched). */
    bitmaps_free(n, stored);
    free(writing.data_filename);
    r = open_behind(co, n, m, err);
    if (r && !m->read_only) {                                /* the way that it was open before */
        if (open_behind(co, n, &writing.mode, NULL))
            graph_warn(n, "%s: was open for writing, and can only be read from now on: %s", n->filename, strerror(-r));
    }
    give_own(n, &c);
    if (m->read_only)
        r = 0;                                               /* what was between does as well */
    return closed ? byre_fail_code(err, IO, closed, "%s: was not closed well: %s", n->filename, strerror(-closed)) : r;
}

/* ---- the whole ---- */

int mode_switch(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    node_whole_begin(co, n);
    indexes_drop(co, n);
    mode_locks_hold(n);
    int r = n->read_only ? from_reading(co, n, m, err) : from_writing(co, n, m, err);
    unsigned perm = STOR_PERM_READ | (n->read_only ? 0 : STOR_PERM_WRITE | STOR_PERM_RESIZE);
    n->file_use.perm = n->file ? perm : 0;
    n->data_use.perm = n->data_node ? data_perm_of(n, n->read_only) : 0;
    settle_files(n);
    mode_locks_let(co, n);
    threshold_follow(n);
    if (n->backing)
        n->im->has_backing = true;               /* whatever the image records: what is written to it hides what lies there */
    node_set_below(n);
    if (!n->read_only)
        mode_forget_below(n);
    indexes_make(n);
    node_change_end(n);
    return r;
}

/* ---- files that images share ---- */

/* An image over the file that has the store that the file had before. */
static struct graph_node *left_behind(const struct graph_node *file)
{
    for (struct graph_node *m = node_next(file->g, NULL); m; m = node_next(file->g, m))
        if (m->file == file && mode_is_open(m) && m->im->store != file->im->store && !under_is_store(m->im->store))
            return m;
    return NULL;
}

static void take_seen(const struct stor *s, const struct graph_node *file, struct stor_seen *seen)
{
    const struct graph_node *b = under_file(s);
    if (b && (b == file || b->file == file) && file->looked_at.known && !stor_seen_differ(&file->looked_at, seen))
        *seen = file->seen;
}

/* Images that ask the file's node keep their store. What they have seen of the file, as far as nobody has written since, is what its new store saw. */
static void take_seens(const struct graph_node *file)
{
    for (struct graph_node *m = node_next(file->g, NULL); m; m = node_next(file->g, m))
        if (mode_is_open(m)) {
            take_seen(m->im->store, file, &m->seen);
            take_seen(m->im->second, file, &m->data_seen);
        }
}

/* The images that share a file's store go over to the new one. From the beginning each time: others may come and go meanwhile. */
int mode_follow_file(struct co *co, struct graph_node *file, struct byre_err *err)
{
    take_seens(file);
    struct graph_node *m;
    int r = 0;
    while (!r && (m = left_behind(file))) {
        const struct node_mode same = mode_of(m);
        graph_ref(m);
        r = mode_switch(co, m, &same, err);
        m->undisturbed = false;
        (void)node_unref(co, m);                 /* 0 unless its last user went meanwhile; then there is nobody left to tell */
    }
    return r;
}

/* Opening a file for writing may touch it. What the images that share its store have seen is compared before that. */
void mode_look_at_sharers(struct co *co, struct graph_node *file)
{
    struct stor_seen now;
    bool known = stor_file_seen(co, file->im->store, &now);  /* it is theirs, too. Others come and go while this suspends */
    file->looked_at = now;
    for (struct graph_node *m = node_next(file->g, NULL); m; m = node_next(file->g, m))
        if (m->file == file && mode_is_open(m) && m->im->store == file->im->store)
            m->undisturbed = known && !stor_seen_differ(&now, &m->seen);
}

int mode_check(struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    if (!n->how || n->flt)
        return byre_fail(err, NOT_SUPPORTED, "node '%s' cannot be opened anew", n->name);
    if ((n->is_view && !n->how->ref.node.window.on) || (!m->read_only && n->force_share))
        return byre_fail(err, READ_ONLY, "%s: shows a snapshot of an image, or an image that others write to, and is not opened in another way", n->filename);
    if (!m->read_only && !n->im->ops->write_begin)
        return byre_fail(err, READ_ONLY, "%s: %s images can only be read", n->filename, n->im->ops->name);
    if (has_busy_bitmaps(n) || n->bitmaps_saved)
        return byre_fail(err, BUSY, "%s: its bitmaps are in use", n->filename);
    return 0;
}

/* The images that will follow the file n are opened anew as well: what their lists of bitmaps hold goes. */
static int check_followers(struct graph_node *n, struct byre_err *err)
{
    for (struct graph_node *s = node_next(n->g, NULL); s && n->is_file; s = node_next(n->g, s))
        if (s->file == n && mode_is_open(s) && !under_is_store(s->im->store) && (has_busy_bitmaps(s) || s->bitmaps_saved))
            return byre_fail(err, BUSY, "%s: its bitmaps are in use, and it would be opened anew with its file '%s'", s->filename, n->name);
    return 0;
}

int mode_switch_all(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    int r = mode_check(n, m, err);
    if (!r)
        r = check_followers(n, err);
    if (!r && !m->read_only)
        r = mode_files_writer_comes(co, n, err);
    if (!r && n->is_file)
        mode_look_at_sharers(co, n);
    if (!r)
        r = mode_switch(co, n, m, err);
    return !r && n->is_file ? mode_follow_file(co, n, err) : r;
}

/* ---- several ---- */

int node_set_begin(struct co *co, struct graph *g, bool (*takes)(const void *arg, const struct graph_node *n), const void *arg, bool still,
                   struct node_set *ret, struct byre_err *err)
{
    size_t cap = 0;
    for (struct graph_node *m = node_next(g, NULL); m; m = node_next(g, m))
        cap++;
    *ret = (struct node_set){ .all = calloc(cap + 1, sizeof(struct graph_node *)), .still = still };
    if (!ret->all)
        return byre_fail(err, NOMEM, "no memory for a list of nodes");
    for (struct graph_node *m = node_next(g, NULL); m; m = node_next(g, m))
        if (takes(arg, m)) {
            graph_ref(m);
            ret->all[ret->count++] = m;
        }
    for (size_t i = 0; i < ret->count; i++)
        if (still)
            graph_still_begin(co, ret->all[i]);
        else
            graph_drain_begin(co, ret->all[i]);
    return 0;
}

void node_set_end(struct co *co, struct node_set *s)
{
    for (size_t i = 0; i < s->count; i++) {
        s->all[i]->undisturbed = false;          /* also of those that have not come so far (mode_look_at_sharers) */
        if (s->still)
            graph_still_end(s->all[i]);
        else
            graph_drain_end(s->all[i]);
    }
    for (size_t i = 0; i < s->count; i++)
        (void)node_unref(co, s->all[i]);         /* somebody else has it, or had it and has gone: then there is nobody to tell */
    free(s->all);
}

/* ---- who comes to write ---- */

/* Those that have not come to another store are looked at anew when they do. */
static void forget_looks(struct graph_node *file)
{
    for (struct graph_node *m = node_next(file->g, NULL); m; m = node_next(file->g, m))
        if (m->file == file)
            m->undisturbed = false;
}

/* M7. The image of a file with auto-read-only stays what it is when nobody writes any more (mode_writer_gone). */
static void set_for_writer(struct graph_node *n, bool opened, bool discarded)
{
    n->for_writer = opened && !(n->is_file && n->auto_read_only);
    n->discarded = discarded;
    n->stays_told = false;
}

static int writer_comes_held(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct node_mode m = mode_of(n);
    const bool discarded = n->discard;
    m.read_only = false;
    if (!n->read_only)
        return 0;
    int r = n->frozen ? byre_fail(err, BUSY, "node '%s': a job works at it", n->name) : mode_switch_all(co, n, &m, err);
    forget_looks(n);
    set_for_writer(n, !r, discarded);
    return r;
}

/* One that is about to be open for reading is opened for writing behind that. */
static bool waits_for_writer(const struct graph_node *n) { return n->auto_read_only && (n->read_only || n->going_back) && !n->inactive; }

/* Of n and what its file lies in, what must be open for writing first. */
static struct graph_node *lowest_waiting(struct graph_node *n)
{
    for (struct graph_node *f; (f = graph_skip_filters(n->file)) && waits_for_writer(f);)
        n = f;
    return n;
}

int graph_writer_comes(struct co *co, struct graph_node *n, struct byre_err *err)
{
    n = graph_skip_filters(n);
    if (!n || !waits_for_writer(n))
        return 0;
    ASSERT_LOOP(n->g->home);
    graph_ref(n);
    graph_edges_hold(co, n->g);
    n->wanted++;                                 /* it stays so, though images over it come to its new store and let the old one go */
    struct graph_node *m = NULL;
    int r = 0;
    while (!r && m != n) {
        m = lowest_waiting(n);
        r = writer_comes_held(co, m, err);
    }
    if (r)
        mode_files_writer_gone(co, m);           /* what was opened so far lies below it */
    n->wanted--;
    graph_edges_let(co, n->g);
    (void)node_unref(co, n);                     /* the caller has it */
    return r;
}

struct graph_node *graph_await_writer(struct graph_node *n)
{
    n = graph_skip_filters(n);
    if (n) {
        graph_ref(n);
        n->wanted++;
    }
    return n;
}

void graph_await_end(struct co *co, struct graph_node *image)
{
    if (!image)
        return;
    image->wanted--;
    mode_settle(image);
    (void)node_unref(co, image);                 /* its user has it, or had it and has gone meanwhile: then there is nobody to tell */
}

static bool may_go_back(const struct graph_node *n)
{
    return n->auto_read_only && n->is_file && mode_is_open(n) && !n->read_only && !n->inactive && !n->wanted && !n->keep.holds && !mode_writer(n);
}

int mode_files_writer_comes(struct co *co, struct graph_node *n, struct byre_err *err)
{
    int r = n->file ? graph_writer_comes(co, n->file, err) : 0;
    return !r && n->data_node ? graph_writer_comes(co, n->data_node, err) : r;
}

void mode_files_writer_gone(struct co *co, struct graph_node *n)
{
    graph_writer_gone(co, n->file);
    graph_writer_gone(co, n->data_node);
}

/* What it has open stays so: nobody writes by it, because n is read-only, and who is to write gets another one. Others may write from here on: what was
 * written is durable before that, and what the file looked like then is remembered (M6). A file that cannot be flushed keeps its lock. */
void mode_writer_gone(struct co *co, struct graph_node *n)
{
    if (!n || !may_go_back(n) || !graph_look_begin(n))       /* who calls may hold what lies over it only, and that may come to lie elsewhere */
        return;
    struct fmt_image *im = n->im;
    struct stor_seen seen;
    epoch_token t = epoch_enter(im->epoch, co_loop(co));     /* it is not closed meanwhile; and raw, which does not wait for this (fmt.h I4) */
    int r = im->ops->flush(co, im);
    (void)stor_file_seen(co, im->store, &seen);
    epoch_leave(im->epoch, co_loop(co), t);
    if (!r && n->im == im && may_go_back(n)) {   /* nobody has come */
        n->seen = seen;
        n->read_only = true;
        locks_of(n, 0);
        r = node_lock(co, n, 0, NULL);           /* only lowers them */
        (void)r;
        filters_refresh(n->g);
    }
    graph_look_end(n);
}

static int check_reopen(struct graph_node *n, const struct graph_user *self, unsigned perm, const struct node_mode *m, struct byre_err *err)
{
    int r = active_need(n, "be opened for writing", err);
    if (!r)
        r = mode_check(n, m, err);
    return r ? r : perm_check(n, self, perm, "open for writing", err);
}

static struct node_mode writing_mode(const struct graph_node *n)
{
    struct node_mode m = mode_of(n);
    m.read_only = false;
    m.discard = true;                            /* zeros that are written down to it stay holes */
    return m;
}

/* With what its file lies in; all or nothing. */
static int open_for_writing(struct co *co, struct graph_node *n, const struct node_mode *m, struct byre_err *err)
{
    const bool discarded = n->discard;
    int r = mode_files_writer_comes(co, n, err);
    if (!r)
        r = mode_switch(co, n, m, err);
    set_for_writer(n, !r, discarded);
    if (r)
        mode_files_writer_gone(co, n);
    return r;
}

int graph_make_writable(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(overlay->backing == n);
    if (!n->read_only)
        return 0;
    const struct node_mode m = writing_mode(n);
    int r = check_reopen(n, &overlay->backing_use, STOR_PERM_WRITE | STOR_PERM_RESIZE, &m, err);
    if (!r)
        r = open_for_writing(co, n, &m, err);
    if (!r)
        overlay->backing_use.shared |= STOR_PERM_WRITE | STOR_PERM_RESIZE;
    return r;
}

int graph_make_header_writable(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    const struct graph_user nobody = { .who = "" };
    if (!n->read_only)
        return 0;
    const struct node_mode m = writing_mode(n);
    int r = check_reopen(n, &nobody, STOR_PERM_WRITE_UNCHANGED, &m, err);
    return r ? r : open_for_writing(co, n, &m, err);
}

void graph_keep_writable(struct graph_node *n) { n->for_writer = false; }

const char *mode_writer(const struct graph_node *n) { return user_with(n, STOR_PERM_WRITE | STOR_PERM_RESIZE | STOR_PERM_WRITE_UNCHANGED); }

static int make_read_only_held(struct co *co, struct graph_node *n, struct byre_err *err)
{
    if (n->read_only)
        return 0;
    struct node_mode m = mode_of(n);
    m.read_only = true;
    m.discard = n->for_writer && n->discarded;   /* the next who comes to write finds it as the first one did */
    if (mode_writer(n))
        return byre_fail(err, PERMISSION, "node '%s': is written by '%s'", n->name, mode_writer(n));
    int r = mode_check(n, &m, err);
    if (r)
        return r;
    r = mode_switch(co, n, &m, err);
    n->for_writer &= !n->read_only;
    mode_files_writer_gone(co, n);
    return r;
}

/* Who lies over n puts up with changes of it while somebody makes some, and no longer. */
static void let_nobody_change(struct graph_node *n)
{
    for (struct graph_node *o = mode_changer(n) || n->inactive ? NULL : node_next(n->g, NULL); o; o = node_next(n->g, o))      /* not who sleeps */
        if (o->backing == n && !o->flt) {
            o->backing_use.shared &= ~(unsigned)(STOR_PERM_RESIZE | (o->lenient ? 0 : STOR_PERM_WRITE));      /* perm.c I2 */
            if (n->read_only)
                node_set_below(o);               /* M4 */
        }
}

/* Nobody claims the layer, or takes one of its bitmaps, between the look and the change. */
int graph_make_read_only(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    graph_edges_hold(co, n->g);
    int r = make_read_only_held(co, n, err);
    let_nobody_change(n);
    graph_edges_let(co, n->g);
    return r;
}

/* ---- and goes (M7) ---- */

static bool is_left(const struct graph_node *n)
{
    return n->for_writer && mode_is_open(n) && !n->read_only && !n->inactive && !n->wanted && !n->keep.holds && !mode_writer(n) && !has_busy_bitmaps(n) && !n->bitmaps_saved;
}

/* Before edges are taken. Who has closed the gate may wait for what ends behind this. */
static int flush_ahead(struct co *co, struct graph_node *n)
{
    if (!is_left(n) || n->g->edges_by == co)
        return 0;
    epoch_token t = epoch_enter(n->gate, n->g->home);
    int r = graph_is_gated(n) || n->read_only ? 0 : image_flush(co, n);
    gate_leave(co, n, t);
    return r;
}

/* With what lies below it. Where that fails it keeps its locks until somebody else has come and gone. */
static void go_back_held(struct co *co, struct graph_node *n, int flushed)
{
    struct byre_err why = { 0 };
    int r = 0;
    if (!n->for_writer || atomic_load(&n->g->parting))
        return;                                  /* somebody else has done it, or the close will: it is hurried, and its failure counts */
    n->going_back = true;
    if (is_left(n))
        r = flushed ? byre_fail_code(&why, IO, flushed, "%s: cannot be made durable, and stays open for writing: %s", n->filename, strerror(-flushed))
                    : make_read_only_held(co, n, &why);
    n->going_back = false;
    if (r && (n->read_only || (is_left(n) && !n->stays_told))) {         /* not closed well; or nobody has come meanwhile */
        n->stays_told = true;
        graph_warn(n, "%s", why.text);
    }
    let_nobody_change(n);
}

static struct graph_node *node_of_serial(struct graph *g, uint64_t serial)
{
    struct graph_node *n = node_next(g, NULL);
    while (n && n->serial != serial)
        n = node_next(g, n);
    return n && mode_is_open(n) ? n : NULL;
}

/* The caller looks at n, which ends here (M8). */
static void go_back(struct co *co, struct graph_node *n, int flushed)
{
    struct graph *g = n->g;
    const uint64_t serial = n->serial;
    graph_look_end(n);
    graph_edges_hold(co, g);
    n = node_of_serial(g, serial);
    if (n) {
        graph_ref(n);
        go_back_held(co, n, flushed);
    }
    graph_edges_let(co, g);
    if (n)
        graph_closed_badly(g, node_unref(co, n));            /* somebody else has it, or had it and has gone meanwhile */
}

/* By recursion: as deep as formats lie over one another (UNDER_LEVELS_MAX). */
void graph_writer_gone(struct co *co, struct graph_node *n)
{
    n = graph_skip_filters(n);
    if (!n || !n->for_writer)
        mode_writer_gone(co, n);
    else if (!mode_writer(n) && graph_look_begin(n)) {
        n->leaving++;
        int flushed = flush_ahead(co, n);
        n->leaving--;
        go_back(co, n, flushed);
    }
}

static void settle_main(struct co *co, void *arg)
{
    struct graph_node *n = arg;
    struct graph *g = n->g;
    const bool other = n->leaving;               /* the last who wrote is at it himself, and has begun to make it durable */
    int flushed = other ? 0 : flush_ahead(co, n);
    n->settling = false;
    if (other)
        graph_look_end(n);
    else
        go_back(co, n, flushed);
    co_group_leave(&g->partings);
}

void mode_settle(struct graph_node *n)
{
    struct graph *g = n->g;
    if (!is_left(n) || n->going_back || n->settling || atomic_load(&g->parting) || !graph_look_begin(n))
        return;
    co_group_enter(&g->partings);
    n->settling = true;
    if (rt_spawn(g->home, settle_main, n) == 0)
        return;
    n->settling = false;                         /* no memory: it keeps its locks until somebody else has come and gone */
    graph_look_end(n);
    co_group_leave(&g->partings);
}
