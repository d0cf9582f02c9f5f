/* SPDX-License-Identifier: MIT
 *
 * bitmap.c: dirty bitmaps of a node.
 *
 * Purpose      Adds, removes, clears, enables, disables and merges them; says which of them requests record in.
 * Owns         im->bitmaps (the list and what it holds) and node->tracked.
 * Invariants   I1  tracked names exactly the bits of the bitmaps that are enabled and sound.
 *              I2  A request that has changed guest data sets its bits before it is answered, whether it succeeded or not
 *                  (change_end); a bitmap that begins to record therefore knows of everything that was not answered before.
 *              I3  A change here happens as a whole or not at all; a persistent one is durable first (fmt.h, bitmaps_sync).
 *              I4  Between change_start and change_finish the list is nobody else's: draining takes its time, and two may come at once, so
 *                  what was found before change_start is looked for again behind it.
 * Order        None here; the format's.
 * Concurrency  Home loop, drained: nobody is between change_begin and change_end while tracked or im->ahead change.
 * Failure      As graph.h says.
 * Tests        bitmap_test.c, tests/interop/test_bitmaps.py, tests/crash
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graph/mode.h"
#include "graph/runtime.h"

#define NAME_MAX_BYTES 1023u
#define BUDGET_BYTES (256ull << 20)        /* memory for the bits of all bitmaps of a node; beyond it more counts as dirty */

/* ---- the list ---- */

static int list_image(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct fmt_bitmap *own = n->im->bitmaps, **tail = &n->im->bitmaps;       /* that came over from another opening (mode.c) */
    n->im->bitmaps = NULL;
    int r = n->im->ops->bitmaps_open(co, n->im, err);
    n->bitmaps_listed = r == 0;
    while (*tail)
        tail = &(*tail)->next;
    *tail = own;
    return r;
}

int bitmaps_list(struct co *co, struct graph_node *n, struct byre_err *err)
{
    if (!n->im->bitmap_budget) {             /* once, before there is a bitmap: those who record read the limit on any loop */
        n->bitmap_budget.limit = BUDGET_BYTES;
        n->im->bitmap_budget = &n->bitmap_budget;
    }
    if (n->bitmaps_listed || !n->im->ops->bitmaps_open)
        return 0;
    co_lock(co, &n->listing);                /* two would each append the whole list */
    int r = n->bitmaps_listed ? 0 : list_image(co, n, err);
    co_unlock(&n->listing);
    return r;
}

static void gone_free(struct graph_node *n)
{
    bitmaps_list_free(n->bitmaps_gone);
    n->bitmaps_gone = NULL;
}

int bitmaps_store(struct co *co, struct graph_node *n, struct byre_err *err)
{
    co_lock(co, &n->listing);                /* one that is being loaded has its place in the list that this may replace */
    int r = n->im->ops->bitmaps_sync(co, n->im, err);
    if (!r)
        gone_free(n);                        /* the format has the list now, and nothing else */
    co_unlock(&n->listing);
    return r;
}

/* Changes are recorded at the image, whatever filters over it the user names. A filter that filters nothing stays what it is. */
static struct graph_node *recorded_at(struct graph_node *n)
{
    struct graph_node *image = graph_skip_filters(n);
    return image ? image : n;
}

int graph_bitmaps(struct co *co, struct graph_node *n, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    n = recorded_at(n);
    ASSERT_LOOP(n->g->home);
    int r = bitmaps_list(co, n, err);
    *ret_b = r ? NULL : n->im->bitmaps;
    return r;
}

int graph_bitmap_find(struct co *co, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    int r = graph_bitmaps(co, n, ret_b, err);
    while (!r && *ret_b && strcmp((*ret_b)->name, name))
        *ret_b = (*ret_b)->next;
    return r;
}

static int find_existing(struct co *co, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    int r = graph_bitmap_find(co, n, name, ret_b, err);
    if (r || *ret_b)
        return r;
    return byre_fail(err, NOT_FOUND, "%s: there is no bitmap '%s'", n->filename, name);
}

int graph_bitmap_load(struct co *co, struct graph_node *n, struct fmt_bitmap *b, struct byre_err *err)
{
    n = recorded_at(n);
    if (b->bad)
        return byre_fail(err, Q2_BITMAPS, "%s: bitmap '%s' is damaged: %s", n->filename, b->name, b->bad);
    if (b->inconsistent)
        return byre_fail(err, BITMAP_INCONSISTENT, "%s: bitmap '%s' is inconsistent: it was in use when somebody ended badly, or another program has changed the disk since; it can only be removed", n->filename, b->name);
    if (b->bits && !(b->persistent && n->read_only))
        return 0;
    co_lock(co, &n->listing);                /* the second to come finds it loaded: bits that others use are not replaced */
    int r = b->bad ? -EINVAL : b->bits && !(b->persistent && n->read_only) ? 0 : n->im->ops->bitmap_load(co, n->im, b, err);
    co_unlock(&n->listing);
    return r == -EINVAL && b->bad ? byre_fail(err, Q2_BITMAPS, "%s: bitmap '%s' is damaged: %s", n->filename, b->name, b->bad) : r;
}

static void bitmap_free(struct fmt_bitmap *b)
{
    if (!b)
        return;
    free(b->name);
    dirty_free(b->since);
    dirty_free(b->bits);
    free(b);
}

void bitmaps_list_free(struct fmt_bitmap *list)
{
    for (struct fmt_bitmap *b = list, *next; b; b = next) {
        next = b->next;
        bitmap_free(b);
    }
}

void bitmaps_free(struct graph_node *n, struct fmt_bitmap *list)
{
    bitmaps_list_free(list);
    gone_free(n);
    free(atomic_load(&n->tracked));
    atomic_store(&n->tracked, NULL);
}

static struct fmt_bitmap **place_of(struct graph_node *n, const struct fmt_bitmap *b)
{
    struct fmt_bitmap **at = &n->im->bitmaps;
    while (*at != b)
        at = &(*at)->next;
    return at;
}

/* ---- who records ---- */

static bool records(const struct fmt_bitmap *b) { return b->enabled && !b->inconsistent && !b->bad && b->bits; }

struct tracked *bitmaps_tracked(const struct graph_node *n, unsigned more)
{
    for (const struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        more += 2;
    return malloc(sizeof(struct tracked) + (more + 1) * sizeof(struct dirty *));
}

/* I1 */
void bitmaps_publish(struct graph_node *n, struct tracked *t)
{
    t->count = 0;
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        if (records(b)) {
            t->bits[t->count++] = b->bits;
            if (b->since)
                t->bits[t->count++] = b->since;
        }
    struct tracked *old = atomic_load(&n->tracked);
    if (!t->count) {
        free(t);
        t = NULL;
    }
    atomic_store_explicit(&n->tracked, t, memory_order_release);
    free(old);
}

/* Nothing new records: what is there has the room (I1). Drained. */
static void publish_less(struct graph_node *n)
{
    struct tracked *t = atomic_load(&n->tracked);
    unsigned had = t ? t->count : 0;
    atomic_store(&n->tracked, NULL);
    if (t)
        bitmaps_publish(n, t);
    ASSERT(!t || !atomic_load(&n->tracked) || t->count <= had);
}

int bitmaps_attach(struct co *co, struct graph_node *n, struct byre_err *err)
{
    int r = bitmaps_list(co, n, err);
    if (r || !n->im->bitmaps)
        return r;
    struct tracked *t = bitmaps_tracked(n, 0);
    if (!t)
        return byre_fail(err, NOMEM, "%s: bitmaps", n->filename);
    bitmaps_publish(n, t);
    return 0;
}

/* ---- changes ---- */

struct change {
    struct graph_node *n;
    struct tracked *t;
    struct byre_err *err;
    struct grave *grave;
    struct dirty *old;                   /* bits that go when nobody is to record in them any more; NULL: none */
};

/* I4. Drains, and holds the image. On failure nothing is to be undone. */
static int change_start(struct co *co, struct graph_node *n, struct change *c, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    node_whole_begin(co, n);
    *c = (struct change){ .n = n, .err = err, .t = bitmaps_tracked(n, 2) };
    if (c->t)
        return 0;
    node_whole_end(n);
    return byre_fail(err, NOMEM, "%s: bitmaps", n->filename);
}

/* A bitmap that begins, or gives up bits, says that the disk is known up to here: somebody copies it. What is not durable of that would be something older
 * behind a power cut, and no bitmap would say so (P4). */
static int store_behind_disk(struct co *co, struct graph_node *n, struct byre_err *err)
{
    int r = image_flush(co, n);
    return r ? byre_fail_code(err, IO, r, "%s: cannot flush, so its bitmaps stay as they are: %s", n->filename, strerror(-r)) : bitmaps_store(co, n, err);
}

/* Makes a persistent change durable. Returns whether it stands. */
static int change_store(struct co *co, struct change *c, bool persistent)
{
    return persistent && !c->n->bitmap_batch ? store_behind_disk(co, c->n, c->err) : 0;
}

static void change_buries(struct change *c, struct grave *grave, struct dirty *old)
{
    ASSERT(!c->old);
    c->grave = grave;
    c->old = old;
}

static void change_finish(struct change *c)
{
    bitmaps_publish(c->n, c->t);
    if (c->old)
        saved_bury(c->n, c->grave, c->old);
    node_whole_end(c->n);
}

static int may_write(struct graph_node *n, const struct fmt_bitmap *b, struct byre_err *err)
{
    return b->persistent && n->read_only ? byre_fail(err, READ_ONLY, "%s: is open read-only, bitmap '%s' cannot be changed", n->filename, b->name) : 0;
}

static int may_change(struct graph_node *n, const struct fmt_bitmap *b, struct byre_err *err)
{
    int r = may_write(n, b, err);
    if (!r && b->busy)
        r = byre_fail(err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", n->filename, b->name);
    return r;
}

static uint64_t default_granularity(const struct graph_node *n)
{
    uint64_t g = n->im->cluster;
    return g < 512 ? 65536 : max_u64(4096, min_u64(g, 65536));
}

static int check_spec(struct graph_node *n, const struct graph_bitmap_spec *s, uint64_t granularity, struct byre_err *err)
{
    size_t len = strlen(s->name);
    if (!len || len > NAME_MAX_BYTES)
        return byre_fail(err, BAD_ARGUMENT, "%s: the name of a bitmap has 1 to %u bytes", n->filename, NAME_MAX_BYTES);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s->name[i] < 0x20 || s->name[i] == 0x7f)
            return byre_fail(err, BAD_ARGUMENT, "%s: the name of a bitmap holds no control characters", n->filename);
    if (!is_pow2(granularity) || granularity < 512 || granularity > UINT64_C(1) << 31)
        return byre_fail(err, BAD_ARGUMENT, "%s: granularity %" PRIu64 " is no power of two from 512 to 2 GiB", n->filename, granularity);
    if (s->persistent && !n->im->ops->bitmaps_sync)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot keep bitmaps", n->filename, n->im->ops->name);
    if (s->persistent && n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only, no bitmap can be kept in it", n->filename);
    return 0;
}

static int bitmap_new(struct graph_node *n, const struct graph_bitmap_spec *s, uint64_t granularity, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    struct fmt_bitmap *b = calloc(1, sizeof *b);
    if (!b || !(b->name = strdup(s->name))) {
        bitmap_free(b);
        return byre_fail(err, NOMEM, "%s: bitmap", n->filename);
    }
    b->granularity_bits = (unsigned)__builtin_ctzll(granularity);
    b->persistent = s->persistent;
    b->enabled = !s->disabled;
    int r = dirty_new(atomic_load(&n->im->size), b->granularity_bits, &n->bitmap_budget, &b->bits);
    if (r) {
        bitmap_free(b);
        return r == -E2BIG ? byre_fail(err, LIMIT, "%s: the disk has too many granules of %" PRIu64 " bytes; a larger granularity is needed", n->filename, granularity)
                           : byre_fail(err, NOMEM, "%s: bitmap", n->filename);
    }
    *ret_b = b;
    return 0;
}

static int need_no(struct co *co, struct graph_node *n, const char *name, struct byre_err *err)
{
    struct fmt_bitmap *b;
    int r = graph_bitmap_find(co, n, name, &b, err);
    return r || !b ? r : byre_fail(err, EXISTS, "%s: there is a bitmap '%s' already", n->filename, name);
}

static int add_held(struct co *co, struct change *c, const struct graph_bitmap_spec *s, uint64_t granularity)
{
    struct fmt_bitmap *b = NULL;
    int r = need_no(co, c->n, s->name, c->err);
    if (!r)
        r = check_spec(c->n, s, granularity, c->err);        /* it may be read-only now */
    if (!r)
        r = bitmap_new(c->n, s, granularity, &b, c->err);
    if (r)
        return r;
    struct fmt_bitmap **tail = place_of(c->n, NULL);
    *tail = b;
    r = change_store(co, c, b->persistent);
    if (r) {
        *tail = NULL;
        bitmap_free(b);
    }
    return r;
}

int graph_bitmap_add(struct co *co, struct graph_node *n, const struct graph_bitmap_spec *s, struct byre_err *err)
{
    struct change c;
    n = recorded_at(n);
    int r = graph_need_image(n, "a bitmap", err);
    if (!r)
        r = graph_need_seen(n, "a bitmap", err);
    if (r)
        return r;
    uint64_t granularity = s->granularity ? s->granularity : default_granularity(n);
    r = check_spec(n, s, granularity, err);
    if (!r)
        r = need_no(co, n, s->name, err);        /* without a drain, mostly */
    if (!r)
        r = change_start(co, n, &c, err);
    if (r)
        return r;
    r = add_held(co, &c, s, granularity);
    change_finish(&c);
    return r;
}

static int find_changeable(struct co *co, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    int r = find_existing(co, n, name, ret_b, err);
    return r ? r : may_change(n, *ret_b, err);
}

int graph_bitmap_remove(struct co *co, struct graph_node *n, const char *name, struct byre_err *err)
{
    n = recorded_at(n);
    struct fmt_bitmap *b;
    struct change c;
    int r = find_changeable(co, n, name, &b, err);
    if (!r)
        r = change_start(co, n, &c, err);
    if (r)
        return r;
    r = find_changeable(co, n, name, &b, err);
    if (!r) {
        struct fmt_bitmap **at = place_of(n, b);
        *at = b->next;
        r = change_store(co, &c, b->persistent);
        if (r)
            *at = b;
    }
    change_finish(&c);
    if (!r && !saved_take(n, b))
        bitmap_free(b);
    return r;
}

/* Gives b other content; new: taken over. Inside a change. */
static int replace_bits(struct co *co, struct change *c, struct fmt_bitmap *b, struct dirty *new)
{
    struct grave *grave = NULL;
    if (saved_grave(c->n, &grave)) {
        dirty_free(new);
        return byre_fail(c->err, NOMEM, "%s: bitmaps", c->n->filename);
    }
    struct dirty *old = b->bits;
    bool changed = b->changed;
    b->bits = new;
    b->changed = b->persistent;
    int r = change_store(co, c, b->persistent);
    if (!r) {
        change_buries(c, grave, old);
        return 0;
    }
    b->bits = old;
    b->changed = changed;
    free(grave);
    dirty_free(new);
    return r;
}

/* One that is there, may be changed, and has its bits. */
static int find_loaded(struct co *co, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b, struct byre_err *err)
{
    int r = find_existing(co, n, name, ret_b, err);
    if (!r)
        r = may_change(n, *ret_b, err);
    return r ? r : graph_bitmap_load(co, n, *ret_b, err);
}

/* Inside a change. content: of a disk of the same size; NULL: nothing. */
static int set_content(struct co *co, struct change *c, struct fmt_bitmap *b, const struct dirty *content)
{
    struct dirty *new;
    if (content && content->size != b->bits->size)
        return byre_fail(c->err, BUSY, "%s: has become another size", c->n->filename);
    if (dirty_new(b->bits->size, b->granularity_bits, b->bits->budget, &new))
        return byre_fail(c->err, NOMEM, "%s: bitmap '%s'", c->n->filename, b->name);
    if (content)
        dirty_merge(new, content);
    return replace_bits(co, c, b, new);
}

int graph_bitmap_set(struct co *co, struct graph_node *n, const char *name, const struct dirty *content, struct byre_err *err)
{
    n = recorded_at(n);
    struct fmt_bitmap *b;
    struct change c;
    int r = find_loaded(co, n, name, &b, err);
    if (!r)
        r = change_start(co, n, &c, err);
    if (r)
        return r;
    r = find_loaded(co, n, name, &b, err);
    if (!r)
        r = set_content(co, &c, b, content);
    change_finish(&c);
    return r;
}

int graph_bitmap_set_held(struct co *co, struct graph_node *n, struct fmt_bitmap *b, const struct dirty *content, struct byre_err *err)
{
    n = recorded_at(n);
    struct change c;
    ASSERT(b->busy && b->bits);
    int r = change_start(co, n, &c, err);
    if (r)
        return r;
    r = may_write(n, b, err);
    if (!r)
        r = set_content(co, &c, b, content);
    change_finish(&c);
    return r;
}

int graph_bitmap_clear(struct co *co, struct graph_node *n, const char *name, struct byre_err *err)
{
    return graph_bitmap_set(co, n, name, NULL, err);
}

int graph_bitmap_enable(struct co *co, struct graph_node *n, const char *name, bool on, struct byre_err *err)
{
    n = recorded_at(n);
    struct fmt_bitmap *b;
    struct change c;
    int r = find_loaded(co, n, name, &b, err);
    if (r || b->enabled == on)
        return r;
    r = change_start(co, n, &c, err);
    if (r)
        return r;
    r = find_loaded(co, n, name, &b, err);
    if (!r && b->enabled != on) {
        b->enabled = on;
        r = change_store(co, &c, b->persistent);
        if (r)
            b->enabled = !on;
    }
    change_finish(&c);
    return r;
}

/* ---- what was written since a job began (9.081) ---- */

int graph_bitmap_follow(struct co *co, struct graph_node *n, struct fmt_bitmap *b, struct byre_err *err)
{
    struct change c;
    struct dirty *since;
    ASSERT(b->bits && b->busy && !b->since);
    if (dirty_new(b->bits->size, b->granularity_bits, b->bits->budget, &since))
        return byre_fail(err, NOMEM, "%s: bitmap '%s'", n->filename, b->name);
    int r = change_start(co, n, &c, err);
    if (r) {
        dirty_free(since);
        return r;
    }
    b->since = since;
    change_finish(&c);
    return 0;
}

int graph_bitmap_settle(struct co *co, struct graph_node *n, struct fmt_bitmap *b, const struct dirty *left, struct byre_err *err)
{
    struct change c;
    struct grave *grave = NULL;
    ASSERT(b->since);
    int r = change_start(co, n, &c, err);
    if (r)
        return r;
    if (saved_grave(n, &grave)) {                /* a list of changes may be under way, and need the old bits if it fails */
        change_finish(&c);
        return byre_fail(err, NOMEM, "%s: bitmap '%s'", n->filename, b->name);
    }
    dirty_merge(b->since, left);
    change_buries(&c, grave, b->bits);
    b->bits = b->since;                          /* what is recorded from here on is recorded in it; nobody is inside */
    b->since = NULL;
    b->changed = b->persistent;
    change_finish(&c);
    return 0;
}

void graph_bitmap_unfollow(struct co *co, struct graph_node *n, struct fmt_bitmap *b)
{
    if (!b->since)
        return;
    graph_shut_begin(co, n);
    struct dirty *since = b->since;
    b->since = NULL;
    publish_less(n);                             /* it cannot fail: the next job that follows finds the bitmap as it was */
    graph_shut_end(n);
    dirty_free(since);
}

void graph_bitmap_release(struct graph_node *n, struct fmt_bitmap *b)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(b->busy);
    b->busy--;
    mode_settle(n);                              /* it may have stayed open for writing because of this */
}

/* ---- merge ---- */

static int source_bits_held(struct co *co, struct graph_node *n, const struct graph_bitmap_ref *src, struct dirty *into, struct byre_err *err)
{
    struct fmt_bitmap *b;
    int r = find_existing(co, src->node, src->name, &b, err);
    if (!r && b->busy)
        r = byre_fail(err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", src->node->filename, b->name);
    if (!r)
        r = graph_bitmap_load(co, src->node, b, err);
    if (r)
        return r;
    if (round_up(b->bits->size, SECTOR) != round_up(into->size, SECTOR))
        return byre_fail(err, BAD_ARGUMENT, "%s: bitmap '%s' is of a disk of %" PRIu64 " bytes, %s has %" PRIu64, src->node->filename, b->name, b->bits->size,
                         n->filename, into->size);
    dirty_merge(into, b->bits);
    return 0;
}

/* The source is not removed while it is loaded. */
static int source_bits(struct co *co, struct graph_node *n, const struct graph_bitmap_ref *src, struct dirty *into, struct byre_err *err)
{
    struct graph_node *image = recorded_at(src->node);
    graph_hold_image(co, image);
    int r = source_bits_held(co, n, src, into, err);
    graph_release_image(image);
    return r;
}

/* Inside a change: what the sources held, and what n has recorded of itself up to now. */
static int merge_into(struct co *co, struct change *c, struct fmt_bitmap *b, const struct dirty *collected)
{
    struct dirty *new;
    if (b->bits->size != collected->size)
        return byre_fail(c->err, BUSY, "%s: has become another size", c->n->filename);
    if (dirty_copy(b->bits, b->bits->size, &new))
        return byre_fail(c->err, NOMEM, "%s: bitmap '%s'", c->n->filename, b->name);
    dirty_merge(new, collected);
    return replace_bits(co, c, b, new);
}

/* Sources that lie in an image over n are read from there, through n: so before it is closed. What is written to them from then on is not in it. */
int graph_bitmap_merge(struct co *co, struct graph_node *n, const char *name, const struct graph_bitmap_ref *src, unsigned count, struct byre_err *err)
{
    n = recorded_at(n);
    struct fmt_bitmap *b;
    struct change c;
    struct dirty *collected;
    int r = find_loaded(co, n, name, &b, err);
    if (r)
        return r;
    if (dirty_new(b->bits->size, b->granularity_bits, b->bits->budget, &collected))
        return byre_fail(err, NOMEM, "%s: bitmap '%s'", n->filename, name);
    for (unsigned i = 0; !r && i < count; i++)
        r = source_bits(co, n, &src[i], collected, err);
    if (!r)
        r = change_start(co, n, &c, err);        /* what is recorded from here on must not get lost with the old bits */
    if (!r) {
        r = find_loaded(co, n, name, &b, err);
        if (!r)
            r = merge_into(co, &c, b, collected);
        change_finish(&c);
    }
    dirty_free(collected);
    return r;
}

void graph_bitmap_batch_begin(struct graph_node *n) { recorded_at(n)->bitmap_batch++; }

int graph_bitmap_batch_end(struct co *co, struct graph_node *n, struct byre_err *err)
{
    n = recorded_at(n);
    ASSERT(n->bitmap_batch > 0);
    if (--n->bitmap_batch || !n->im->ops->bitmaps_sync)
        return 0;
    node_whole_begin(co, n);
    int r = store_behind_disk(co, n, err);
    node_whole_end(n);
    return r;
}

/* ---- resize ---- */

struct bitmaps_resize { struct tracked *t; struct saved_resize *saved; unsigned count; bool held, persistent; struct { struct fmt_bitmap *b; struct dirty *bits; } of[]; };

static void resize_let(struct bitmaps_resize *z)
{
    for (unsigned i = 0; z->held && i < z->count; i++)
        z->of[i].b->busy--;
}

static void resize_free(struct bitmaps_resize *z)
{
    for (unsigned i = 0; i < z->count; i++)
        dirty_free(z->of[i].bits);
    saved_resize_free(z->saved);
    free(z->t);
    free(z);
}

/* Content of another size for every sound bitmap. */
static int resize_copies(struct co *co, struct graph_node *n, uint64_t size, struct bitmaps_resize *z, struct byre_err *err)
{
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next) {
        if (b->busy)
            return byre_fail(err, BITMAP_BUSY, "%s: cannot be resized: bitmap '%s' is in use by a job or an export", n->filename, b->name);
        int r = b->bad || b->inconsistent ? 0 : graph_bitmap_load(co, n, b, b->bits ? NULL : err);
        if (b->bad)
            r = 0;                           /* found damaged just now */
        if (r)
            return r;
        if (b->bad || b->inconsistent)
            continue;
        r = dirty_copy(b->bits, size, &z->of[z->count].bits);
        if (r == -E2BIG)
            return byre_fail(err, LIMIT, "%s: a disk of %" PRIu64 " bytes has too many granules for bitmap '%s'", n->filename, size, b->name);
        if (r)
            return byre_fail(err, NOMEM, "%s: bitmap '%s'", n->filename, b->name);
        b->busy += z->held;
        z->of[z->count++].b = b;
        z->persistent |= b->persistent;
    }
    return z->persistent && n->im->ops->bitmaps_fit ? n->im->ops->bitmaps_fit(n->im, size, err) : 0;
}

int bitmaps_resize_begin(struct co *co, struct graph_node *n, uint64_t size, bool hold, struct bitmaps_resize **ret, struct byre_err *err)
{
    int r = bitmaps_list(co, n, err);
    unsigned count = 0;
    *ret = NULL;
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        count++;
    if (r || (!count && !n->bitmaps_saved))
        return r;
    struct bitmaps_resize *z = calloc(1, sizeof *z + count * sizeof z->of[0]);
    if (!z || !(z->t = bitmaps_tracked(n, 0))) {
        free(z);
        return byre_fail(err, NOMEM, "%s: bitmaps", n->filename);
    }
    z->held = hold;
    r = resize_copies(co, n, size, z, err);
    if (!r)
        r = saved_resize_begin(n, size, &z->saved, err);
    if (!r && z->persistent)
        r = n->im->ops->bitmaps_resizing(co, n->im, err);
    if (r) {
        resize_let(z);
        resize_free(z);
        return r;
    }
    *ret = z;
    return 0;
}

void bitmaps_resize_end(struct co *co, struct graph_node *n, struct bitmaps_resize *z, bool done)
{
    struct byre_err why = { 0 };
    if (!z)
        return;
    resize_let(z);
    for (unsigned i = 0; done && i < z->count; i++) {
        struct dirty *old = z->of[i].b->bits;
        saved_resize_swap(n, z->of[i].b, z->of[i].bits);
        z->of[i].b->bits = z->of[i].bits;
        z->of[i].bits = old;
    }
    saved_resize_done(n, done ? z->saved : NULL, z->persistent);
    /* On failure they are in use on the disk, and closing tries again. A list of changes that is half-way is stored only if the disk has got the length, of which
     * the old set is not; else that stays, in use, until the list ends, which stores in any case. */
    if (z->persistent && (done || !n->bitmap_batch) && bitmaps_store(co, n, &why))
        graph_warn(n, "%s", why.text);
    bitmaps_publish(n, z->t);
    z->t = NULL;
    resize_free(z);
}
