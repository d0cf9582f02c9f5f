/* SPDX-License-Identifier: MIT
 *
 * drop_equal.c: an image gives up what the chain below it shows as well.
 *
 * Purpose     Goes through what the image itself holds, compares it with the chain below in whole clusters, and forgets what is equal.
 * Owns        Two buffers of a window.
 * Invariants  drop_equal.h. Further: L1  Only what was read from both and is equal, byte for byte, is given up. A read that fails ends the work.
 *                 L2  Internal snapshots and bitmaps keep what is theirs: what the disk shows does not change.
 * Order       One flush behind everything; before that any mix is good (I1, J3).
 * Concurrency drop_equal.h
 * Failure     drop_equal.h
 * Tests       tests/interop/test_rebase.py, crash explorer (chain-*, letter J, mutant REBASE_DROP_EARLY)
 */
#include "job/drop_equal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "graph/live.h"

#define WINDOW (2u << 20)                /* of whole clusters, whatever their size */

struct work { const struct drop_equal *d; uint8_t *own, *below; uint64_t len, cluster; };

int drop_equal_check(struct graph_node *top, struct byre_err *err)
{
    const struct fmt_image *im = graph_image(top);
    if (!im->ops->forget)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot give up what their backing file holds as well", graph_filename(top), im->ops->name);
    return im->data_raw ? byre_fail(err, NOT_SUPPORTED, "%s: its external data file is a raw image of its own, and keeps all that it holds", graph_filename(top)) : 0;
}

/* What lies behind the end of the chain below is zeros. */
static int read_below(struct co *co, struct work *w, uint64_t off, uint64_t len)
{
    struct iovec slot;
    uint64_t end = w->d->below ? graph_length(w->d->below) : 0, have = off < end ? min_u64(len, end - off) : 0;
    memset(w->below + have, 0, len - have);
    return have ? graph_read(co, w->d->below, iov_one(&slot, w->below, have), off) : 0;
}

static bool is_equal(const struct work *w, uint64_t at, uint64_t len)
{
    return !memcmp(w->own + at, w->below + at, min_u64(w->cluster, len - at));
}

/* Forgets runs of equal clusters in [off, off + len). */
static int forget_runs(struct co *co, struct work *w, uint64_t off, uint64_t len)
{
    int r = 0;
    for (uint64_t at = 0, end; r == 0 && at < len; at = end) {
        end = at + w->cluster;
        if (!is_equal(w, at, len))
            continue;
        while (end < len && is_equal(w, end, len))
            end += w->cluster;
        r = graph_forget_later(co, w->d->top, off + at, min_u64(end, len) - at);
    }
    return r;
}

static int look(struct co *co, struct work *w, uint64_t off, uint64_t len)
{
    struct iovec slot;
    int r = graph_read(co, w->d->top, iov_one(&slot, w->own, len), off);
    if (r == 0)
        r = read_below(co, w, off, len);
    return r ? r : forget_runs(co, w, off, len);
}

/* The next window in which the image itself holds something, at or behind *off. */
static int next(struct co *co, const struct work *w, uint64_t *off, uint64_t *ret_len)
{
    *ret_len = 0;
    while (*off < w->len && !*ret_len) {
        struct graph_status st;
        int r = graph_status(co, w->d->top, graph_backing(w->d->top), *off, w->len - *off, &st);
        if (r)
            return r;
        uint64_t whole = round_down(*off + st.len, w->cluster);
        if (st.present || whole <= *off)             /* a cluster that is there in part */
            *ret_len = min_u64(min_u64(round_up(*off + st.len, w->cluster), w->len) - *off, WINDOW);
        else
            *off = *off + st.len >= w->len ? w->len : whole;
    }
    return 0;
}

static int go_through(struct co *co, struct work *w)
{
    const struct job_copy_how *how = w->d->how;
    int r = 0;
    for (uint64_t off = 0, len; off < w->len && r == 0; off += len) {
        if (how->cancel && atomic_load(how->cancel))
            return -ECANCELED;
        r = next(co, w, &off, &len);
        if (r == 0 && len)
            r = look(co, w, off, len);
        if (r == 0 && how->progress)
            how->progress(how->arg, w->len + off + len, 2 * w->len);
    }
    return r ? r : graph_flush(co, w->d->top);
}

int drop_equal_run(struct co *co, const struct drop_equal *d, struct byre_err *err)
{
    struct work w = { .d = d, .len = graph_length(d->top), .cluster = graph_image(d->top)->cluster };
    int r = posix_memalign((void **)&w.own, 4096, WINDOW) || posix_memalign((void **)&w.below, 4096, WINDOW) ? -ENOMEM : go_through(co, &w);
    free(w.own);
    free(w.below);
    if (!r)
        return 0;
    return byre_fail_code(err, IO, r, "%s: has its new backing file and reads as before, but not all that is equal there could be dropped: %s",
                          graph_filename(d->top), strerror(-r));
}
