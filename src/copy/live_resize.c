/* SPDX-License-Identifier: MIT
 *
 * live_resize.c: the copied disk gets another length (FEATURES G.031).
 *
 * Purpose     The target is never shorter than the source, and as long when nobody changes the length: it grows before the source does, and
 *             shrinks after it.
 * Owns        copy_live.next, next_whole: the bits for the new length, from begin to the change.
 * Invariants  Z1  Between begin and end nothing is under way to the target: no piece, no change of a guest, no look at what has to be copied. So
 *                 nobody touches the dirty bits when they are replaced, but guests whose requests are inside; and those have ended, because the
 *                 source is drained then.
 *             Z2  What was dirty stays so; what is new is dirty.
 * Order       grow: target, source. Shrink: source, target.
 * Concurrency Home loop.
 * Failure     The source keeps its length when the target cannot grow, or does not end within patience_ns what is under way to it. When it cannot shrink, the
 *             copy has failed. A target of which `resize` does not know what it did is lost (copy_live_lose): the copy has failed, too.
 * Tests       live_test.c, src/job/mirror_test.c
 */
#include <inttypes.h>

#include "copy/live_priv.h"

static bool busy(const struct copy_live *l) { return l->pieces || l->holds || l->scans; }

static int new_bits(const struct copy_live *l, uint64_t size, struct dirty **ret_next, struct dirty **ret_whole)
{
    *ret_whole = NULL;
    if (dirty_new(size, l->o.granularity_bits, NULL, ret_next))
        return -ENOMEM;
    if (!l->whole || !dirty_new(size, l->o.granularity_bits, NULL, ret_whole))
        return 0;
    dirty_free(*ret_next);
    return -ENOMEM;
}

static uint64_t patience(const struct copy_live *l)
{
    return l->o.patience_ns ? rt_now(l->home) + l->o.patience_ns : UINT64_MAX;
}

static int say_still(const struct copy_live *l, struct byre_err *err)
{
    return byre_fail_code(err, IO, -ETIMEDOUT, "node '%s' is copied to node '%s', which has not answered what is under way to it for %" PRIu64 " seconds; the length stays as it is",
                          graph_node_name(l->o.source), graph_node_name(l->o.target), l->o.patience_ns / 1000000000);
}

/* Edges are not held: nothing that could take long is begun with them behind this, if the target goes on to answer. */
static int ahead(struct co *co, struct graph_watch *w, struct byre_err *err)
{
    struct copy_live *l = CONTAINER_OF(w, struct copy_live, watch);
    uint64_t until = patience(l), ended = l->ended;
    while (busy(l) && l->ended == ended && !atomic_load(&l->stop))
        if (!co_wait_slice(co, &l->moved, until, LIVE_SLICE_NS))
            return say_still(l, err);
    return l->o.resize_ahead && !atomic_load(&l->stop) ? l->o.resize_ahead(co, l->o.arg, err) : 0;
}

static int begin(struct co *co, struct graph_watch *w, uint64_t size, struct byre_err *err)
{
    struct copy_live *l = CONTAINER_OF(w, struct copy_live, watch);
    struct dirty *next, *whole;
    if (new_bits(l, size, &next, &whole))
        return byre_fail(err, NOMEM, "%s: no memory for a copy of %" PRIu64 " bytes", graph_filename(l->o.source), size);
    atomic_store(&l->resizing, true);
    live_tell(l);
    uint64_t until = patience(l);
    while (busy(l) && !atomic_load(&l->stop) && co_wait_slice(co, &l->moved, until, LIVE_SLICE_NS))
        ;
    int r = busy(l) && !atomic_load(&l->stop) ? say_still(l, err) : 0;
    if (!r && size > l->size && !atomic_load(&l->stop))
        r = l->o.resize(co, l->o.arg, size, err);
    if (!r && !busy(l)) {                /* else it has been stopped, and does not look at the disk any more */
        l->next = next;
        l->next_whole = whole;
        l->old_size = l->size;
        return 0;
    }
    dirty_free(next);
    dirty_free(whole);
    atomic_store(&l->resizing, false);
    live_tell(l);
    return r;
}

static void now(struct graph_watch *w, uint64_t size)
{
    struct copy_live *l = CONTAINER_OF(w, struct copy_live, watch);
    if (!l->next)
        return;
    dirty_merge(l->next, l->dirty);      /* Z2 */
    dirty_free(l->dirty);
    l->dirty = l->next;
    l->next = NULL;
    if (l->whole) {
        dirty_merge(l->next_whole, l->whole);
        dirty_free(l->whole);
        l->whole = l->next_whole;
        l->next_whole = NULL;
    }
    l->size = l->part.len = l->c.rd.start[1] = size;
    l->cursor = 0;
    if (size > l->old_size)
        dirty_set(l->dirty, l->old_size, size - l->old_size);
}

static void end(struct co *co, struct graph_watch *w, bool done)
{
    struct copy_live *l = CONTAINER_OF(w, struct copy_live, watch);
    struct byre_err why = { 0 };
    if (!atomic_load(&l->resizing))
        return;
    dirty_free(l->next);
    dirty_free(l->next_whole);
    l->next = l->next_whole = NULL;
    bool longer = done ? l->size < l->old_size : graph_length(l->o.target) > l->size;
    int r = longer && !atomic_load(&l->stop) ? l->o.resize(co, l->o.arg, l->size, &why) : 0;
    if (r && done)
        live_failed(l, r, false, l->size);
    else if (r)
        graph_warn(l->o.target, "%s", why.text);
    atomic_store(&l->resizing, false);
    live_tell(l);
}

const struct graph_watch_size live_follows = { ahead, begin, now, end };
