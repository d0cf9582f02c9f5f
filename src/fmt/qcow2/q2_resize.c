/* SPDX-License-Identifier: MIT
 *
 * q2_resize.c: another virtual size.
 *
 * Purpose     Grow: a larger L1 table where needed, nothing stale behind the old end, then the size. Shrink: the size,
 *             then what it cut off.
 * Owns        Nothing beyond the call; the image is drained.
 * Invariants  S1  A crash shows the old or the new size, never a mix; space behind the end reads zero after a grow.
 *             S2  Until the header says the new size, memory may already be larger (im->size), so that the graph can
 *                 write zeros where a longer backing image would show (fmt.h, resize_commit).
 * Order       Q8: counts, new L1 | META_B_SWITCH_BEFORE | header bytes 36..47 | META_B_SWITCH_AFTER | old L1 dropped.
 *             Q19 grow: everything flushed, then bytes 24..31. Shrink: bytes 24..31 first, then tables and clusters. Q21: an external
 *             data file grows before the size, and shrinks behind it.
 * Concurrency Home loop, drained: no request is inside. Suspends.
 * Failure     Grow: old size, at most space leaked until close. Shrink: new size, what was not freed yet is freed by
 *             the next grow (entries behind the end are dropped before they are exposed).
 * Tests       crash explorer (grow, shrink), interop.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_image.h"

/* ---- L1 ---- */

static int write_l1(struct co *co, struct q2_image *q, const struct q2_l1 *l1, uint64_t off)
{
    return meta_write_now(co, q->meta, (const void *)l1->words, l1->alloc_bytes, off);
}

/* *ret_named: the header on the disk may name the new table, although the switch failed. */
static int switch_l1(struct co *co, struct q2_image *q, struct q2_l1 *l1, uint64_t *dirty, const struct q2_run *run, bool *ret_named)
{
    uint64_t old_off = q->h.l1_off, old_size = q->h.l1_size;
    if (!meta_forget(q->meta, run->cluster << q->g.cluster_bits, run->count << q->g.cluster_bits))
        return -EUCLEAN;
    int r = meta_pass_locked(co, q->meta);                   /* what the old table says is durable, with all it points to */
    stor_event(co, q->im.store, STOR_EV_L1_GROW_WRITE_TABLE);
    if (r == 0)
        r = write_l1(co, q, l1, run->cluster << q->g.cluster_bits);
    if (r == 0)
        r = meta_barrier(co, q->meta, META_B_SWITCH_BEFORE);
    if (r < 0)
        return r;
    stor_event(co, q->im.store, STOR_EV_L1_GROW_ACTIVATE_TABLE);
    q->h.l1_off = run->cluster << q->g.cluster_bits;
    q->h.l1_size = (uint32_t)l1->entries;
    r = q2_header_sync(co, q, 36, 48, META_B_SWITCH_AFTER);
    if (r < 0) {                         /* it was put back, durably, or nothing is written any more (q2_driver.c) */
        *ret_named = meta_stopped(q->meta);
        q->h.l1_off = old_off;
        q->h.l1_size = (uint32_t)old_size;
        return r;
    }
    q2_l1_install(q, l1, dirty);
    if (old_size)
        q2_alloc_drop(q, old_off >> q->g.cluster_bits, div_up(old_size * 8, q->g.cluster_size));
    return 0;
}

static int grow_l1(struct co *co, struct q2_image *q, uint64_t entries, struct byre_err *err)
{
    if (entries <= q->h.l1_size)
        return 0;
    if (entries * 8 > Q2_L1_BYTES_MAX)
        return byre_fail_code(err, BAD_SIZE, -EFBIG, "%s: the new size needs an L1 table of %" PRIu64 " bytes; the limit is %u", q->name, entries * 8, Q2_L1_BYTES_MAX);
    struct q2_l1 *l1;
    uint64_t *dirty;
    int r = q2_l1_replace(q, entries, atomic_load(&q->l1), &l1, &dirty);
    if (r < 0)
        return byre_fail(err, NOMEM, "%s: L1 table", q->name);
    struct q2_run run;
    stor_event(co, q->im.store, STOR_EV_L1_GROW_ALLOC_TABLE);
    r = q2_alloc_exact(co, q, div_up(entries * 8, q->g.cluster_size), &run);
    if (r == 0) {
        meta_struct_begin(co, q->meta);
        bool named = false;
        r = switch_l1(co, q, l1, dirty, &run, &named);
        meta_struct_end(q->meta);
        if (r < 0 && !named)
            q2_alloc_return(q, &run);                        /* else a leak: data must not go where an L1 table may be seen */
    }
    if (r < 0) {
        q2_l1_discard(l1, dirty);
        return byre_fail_code(err, IO, r, "%s: the L1 table cannot grow", q->name);
    }
    return 0;
}

/* The VM state is mapped behind the disk, by the entries of the L1 table that the disk does not need (FEATURES 1.058). */
int q2_state_room(struct co *co, struct fmt_image *im, uint64_t end)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (q->failed)
        return -EIO;
    if (q->im.data_raw)                  /* it would lie behind the disk in that file, which is the disk */
        return -ENOTSUP;
    int r = q2_scrub_excludes(q, "given a VM state", NULL);
    if (r < 0)
        return r;
    q->changing = true;                  /* no scrub begins */
    r = grow_l1(co, q, div_up(end, q2_l2_span(&q->g)), NULL);
    q->changing = false;
    return r;
}

/* Up to where is cut what lies behind the smaller of two sizes? Where the VM state begins follows from the number of entries that the
 * disk needs: with another number, what is left of a state would show at places where it was not saved, so all of it goes. */
static uint64_t cut_end(const struct q2_image *q, uint64_t size, uint64_t other, uint64_t end)
{
    uint64_t known = (uint64_t)q->h.l1_size * q2_l2_span(&q->g);
    return q2_l1_entries(&q->g, size) == q2_l1_entries(&q->g, other) ? min_u64(end, known) : known;
}

/* ---- cutting ---- */

/* Unallocates the entries of [off, end) inside one slice. */
static int cut_slice(struct co *co, struct q2_image *q, uint64_t off, uint64_t end, bool *ret_table)
{
    struct meta_block *b;
    uint32_t i;
    int r = q2_slice_get(co, q, off, &b, &i);
    *ret_table = r == 0 && b;
    if (r < 0 || !b)
        return r;
    meta_put(q->meta, b);
    r = q2_slice_own(co, q, off, &b, &i);
    if (r < 0)
        return r;
    static const struct q2_l2e none = { .kind = Q2_UNALLOCATED };
    for (; off < end && i < q->slice_entries; off += q->g.cluster_size, i++) {
        struct q2_l2e e;
        bool ok = q2_entry_get(q, b, i, &e);
        if (ok && q2_entry_empty(&e))
            continue;
        q2_entry_set(q, b, i, &none);
        if (ok)
            q2_drop_entry(q, &e);
    }
    meta_put(q->meta, b);
    return 0;
}

/* Drops whatever is mapped in [from, to): clusters, and L2 tables that lie in it whole. */
static int cut_range(struct co *co, struct q2_image *q, uint64_t from, uint64_t to)
{
    uint64_t span = q2_l2_span(&q->g), slice_span = q->slice_span;
    int r = 0;
    for (uint64_t off = from; r == 0 && off < to;) {
        uint64_t end = min_u64(to, round_down(off, slice_span) + slice_span);
        bool table;
        r = cut_slice(co, q, off, end, &table);
        if (r == 0 && !table)
            end = min_u64(to, round_down(off, span) + span);
        if (r == 0 && is_aligned(end, span) && end - span >= from && table) {
            uint64_t i = q2_l1_index(&q->g, end - span);
            struct q2_l1e e;
            const struct q2_l1 *l1 = atomic_load(&q->l1);
            if (q2_l1e_decode(&q->g, be64_word(atomic_load(&l1->words[i])), &e) && e.l2_off) {
                q2_l1_set(q, i, 0);
                q2_alloc_drop_table(q, e.l2_off >> q->g.cluster_bits, 1);
            }
        }
        off = end;
    }
    return r;
}

int q2_cut(struct co *co, struct q2_image *q, uint64_t from, uint64_t to) { return cut_range(co, q, from, to); }

/* ---- preallocation of the new space ---- */

static int write_zeros(struct co *co, struct q2_image *q, uint64_t off, uint64_t len)
{
    enum { PIECE = 1 << 20 };
    void *buf = NULL;
    if (posix_memalign(&buf, 4096, PIECE))
        return -ENOMEM;
    memset(buf, 0, PIECE);
    int r = 0;
    for (uint64_t done = 0; r == 0 && done < len; done += PIECE)
        r = stor_write_buf(co, q->im.data, buf, min_u64(PIECE, len - done), off + done, 0);
    free(buf);
    return r;
}

/* The host clusters of w read zero and are as solid as `mode` asks. A reused cluster holds old bytes; they do not matter
 * where no subcluster is allocated. */
static int prepare_host(struct co *co, struct q2_image *q, struct fmt_write *w, enum fmt_prealloc mode)
{
    if (q->g.ext_l2 && !q->im.data_raw)
        q2_write_reserve(w);
    if (mode == FMT_PREALLOC_FULL)
        return write_zeros(co, q, w->host, w->len);
    bool zero = (q->g.data_file && !q->im.encrypted) || q->g.ext_l2 || q2_write_known_zero(w);       /* q2_data_grow has seen to it */
    int r = zero ? 0 : stor_zero(co, q->im.data, w->host, w->len, 0);
    return r < 0 || mode == FMT_PREALLOC_METADATA ? r : stor_preallocate(co, q->im.data, w->host, w->len);
}

static int preallocate(struct co *co, struct q2_image *q, uint64_t from, uint64_t to, enum fmt_prealloc mode)
{
    from = round_up(from, q->g.cluster_size);
    while (from < to) {
        struct fmt_write w;
        int r = q2_write_begin(co, &q->im, from, to - from, &w);
        if (r < 0)
            return r;
        if (!w.len) {
            from += q->g.cluster_size;
            continue;
        }
        r = prepare_host(co, q, &w, mode);
        if (r < 0) {
            q2_write_abort(co, &q->im, &w);
            return r;
        }
        r = q2_write_commit(co, &q->im, &w);
        if (r < 0)
            return r;
        from += w.len;
    }
    return 0;
}

/* ---- the two directions ---- */

static int set_size(struct co *co, struct q2_image *q, uint64_t size, struct byre_err *err)
{
    uint64_t old = q->h.size;
    q->h.size = size;
    int r = q2_header_sync(co, q, 24, 32, META_B_HEADER);
    if (r < 0) {
        q->h.size = old;
        return byre_fail_code(err, IO, r, "%s: the new size cannot be written", q->name);
    }
    atomic_store(&q->im.size, size);
    return 0;
}

/* A snapshot that does not say how long the disk was is of the length that the header says (G.008). */
static int check_snapshot_sizes(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct q2_snapshot *list = NULL;
    uint32_t count = 0;
    int r = q->g.version < 3 && q->h.nb_snapshots ? q2_snapshots_load(co, q->im.store, &q->g, &q->h, &list, &count, err) : 0;
    for (uint32_t i = 0; !r && i < count; i++)
        if (!list[i].has_disk_size)
            r = byre_fail(err, NOT_SUPPORTED, "%s: snapshot '%s' of this version 2 image does not record the disk's size, and would get the new one; amend the image to compat=1.1 first",
                          q->name, list[i].name);
    q2_snapshots_free(list, count);
    return r;
}

static int grow(struct co *co, struct q2_image *q, uint64_t size, enum fmt_prealloc mode, struct byre_err *err)
{
    int unsaid = check_snapshot_sizes(co, q, err);
    if (unsaid)
        return unsaid;
    uint64_t old = q->h.size, cs = q->g.cluster_size;
    if (q->im.data_raw)
        mode = mode == FMT_PREALLOC_OFF ? FMT_PREALLOC_METADATA : mode;      /* the file is the guest's disk: every cluster says so (1.081) */
    if (mode != FMT_PREALLOC_OFF && q->im.has_backing && !q->g.ext_l2)        /* 1.137 */
        return byre_fail(err, NOT_SUPPORTED, "%s: preallocation=%s needs an image without a backing file", q->name, mode == FMT_PREALLOC_METADATA ? "metadata" : mode == FMT_PREALLOC_FALLOC ? "falloc" : "full");
    /* entries behind the old end were cut off by an earlier shrink, or held VM state: never to be exposed */
    uint64_t known = cut_end(q, old, size, round_up(size, q2_l2_span(&q->g)));
    int r = MUTANT(MUT_GROW_KEEP_TABLES) ? 0 : cut_range(co, q, round_up(old, cs), known);
    if (r == 0)
        r = meta_flush(co, q->meta);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: space behind the end cannot be cleared", q->name);
    r = q2_data_grow(co, q, old, size);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its data file cannot grow to %" PRIu64 " bytes", q->name, size);
    r = grow_l1(co, q, q2_l1_entries(&q->g, size), err);
    if (r < 0)
        return r;
    atomic_store(&q->im.size, size);             /* S2; the graph zeroes the rest of the old last cluster */
    if (mode != FMT_PREALLOC_OFF)
        r = preallocate(co, q, old, size, mode);
    if (r < 0) {
        atomic_store(&q->im.size, old);
        return byre_fail_code(err, IO, r, "%s: the new space cannot be prepared", q->name);
    }
    return 0;
}

static int shrink(struct co *co, struct q2_image *q, uint64_t size, struct byre_err *err)
{
    uint64_t old = q->h.size;
    if (q->g.version < 3 && q->h.nb_snapshots)
        return byre_fail(err, NOT_SUPPORTED, "%s: a version 2 image with %" PRIu32 " snapshots cannot shrink", q->name, q->h.nb_snapshots);
    int r = MUTANT(MUT_SHRINK_FREE_FIRST) ? cut_range(co, q, round_up(size, q->g.cluster_size), round_up(old, q->g.cluster_size)) : 0;
    if (r == 0)
        r = meta_flush(co, q->meta);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: flush before shrinking", q->name);
    r = set_size(co, q, size, err);
    if (r < 0)
        return r;
    bool fewer = q2_l1_entries(&q->g, size) < q2_l1_entries(&q->g, old);
    r = cut_range(co, q, round_up(size, q->g.cluster_size), cut_end(q, size, old, round_up(old, q->g.cluster_size)));
    if (fewer)
        stor_event(co, q->im.store, STOR_EV_L1_SHRINK_WRITE_TABLE);
    if (r == 0)
        r = meta_flush(co, q->meta);
    if (fewer)
        stor_event(co, q->im.store, STOR_EV_L1_SHRINK_FREE_L2_CLUSTERS);
    if (r == 0)
        r = q2_alloc_trim(co, q);
    if (r == 0)
        r = q2_data_shrink(co, q, size);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the size is %" PRIu64 " now, but what was cut off is not freed yet", q->name, size) : 0;
}

int q2_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    ASSERT_LOOP(im->home);
    if (q->failed)
        return byre_fail(err, Q2_CORRUPT, "%s: the image is corrupt", q->name);
    if (!is_aligned(size, 512))
        return byre_fail(err, BAD_SIZE, "%s: size %" PRIu64 " is no multiple of 512", q->name, size);
    if (size == q->h.size)
        return 0;
    int busy = q2_scrub_excludes(q, "resized", err);
    if (busy)
        return busy;
    q->resizing = true;
    bool grows = size > q->h.size;
    int r = grows ? grow(co, q, size, prealloc, err) : shrink(co, q, size, err);
    q->resizing = grows && r == 0;               /* else there is no commit */
    return q2_judge(co, q, r, "what a resize met behind guest offset", 0);
}

int q2_resize_commit(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    uint64_t size = atomic_load(&im->size);
    q->resizing = false;
    if (size == q->h.size)
        return 0;
    if (!keep) {
        atomic_store(&im->size, q->h.size);
        return 0;
    }
    int r = meta_flush(co, q->meta);
    if (r < 0)
        r = byre_fail_code(err, IO, r, "%s: flush before the new size", q->name);
    else
        r = set_size(co, q, size, err);
    if (r < 0)
        atomic_store(&im->size, q->h.size);
    return r;
}
