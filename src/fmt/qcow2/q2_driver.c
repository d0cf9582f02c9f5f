/* SPDX-License-Identifier: MIT
 *
 * q2_driver.c: opening, closing and flushing a qcow2 image; its header while it is open.
 *
 * Purpose     Puts the parts together: header, cache, L1, counts, allocator. Decides what an opening may do with an
 *             image that is dirty, corrupt, holds bitmaps or unknown features.
 * Owns        struct q2_image; the header on disk (changed sector by sector, Q18).
 * Invariants  V1  A refused or failed open leaves the file byte for byte as it was, unless repair of a dirty image
 *                 was under way.
 *             V2  Writable opening: unknown autoclear bits are cleared, durably, before the first guest write can be
 *                 accepted (1.033); persistent bitmaps are followed by q2_bms.h (Q16).
 *             V3  An image marked corrupt is never opened for writing, except to check it (1.024).
 * Order       Header fields: memory, one sector, barrier; both are rolled back when that fails (Q18, Q22).
 * Concurrency Home loop; flush from any.
 * Failure     open: nothing stays open. close: everything is given back, the first error is returned.
 * Tests       interop, crash explorer (reopen), faults.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

/* Unless the user says a size: what the cache begins with, and how far it grows where tables are read again that it had to give
 * up. 128 MiB are the tables of 1 TiB with clusters of 64 KiB; with what else an opening takes, a hostile image stays below
 * 256 MiB (RG14). Layers below the top do not grow: the index of the chain remembers their mappings (D6), and there may be
 * hundreds of them. docs/adr/0003-adaptive-cache.md */
#define CACHE_BYTES_DEFAULT (32ull << 20)
#define CACHE_BYTES_MAX (128ull << 20)
#define SLICE_BYTES_MAX 4096u

static int q2_probe(const uint8_t *buf, size_t len)
{
    if (len < 8 || be32_get((const be32 *)buf) != Q2_MAGIC)
        return 0;
    return be32_get((const be32 *)(buf + 4)) >= 2 ? 100 : 0;      /* later versions too: they are refused by name, never raw */
}

/* ---- header on disk ---- */

static void header_bytes(const struct q2_header *h, struct q2_disk_header *d)
{
    memset(d, 0, sizeof *d);
    be32_put(&d->l1_size, h->l1_size);
    be32_put(&d->crypt_method, h->crypt_method);
    be64_put(&d->size, h->size);
    be64_put(&d->l1_off, h->l1_off);
    be64_put(&d->rt_off, h->rt_off);
    be32_put(&d->rt_clusters, h->rt_clusters);
    be32_put(&d->nb_snapshots, h->nb_snapshots);
    be64_put(&d->snapshots_off, h->snapshots_off);
    be64_put(&d->incompat, h->incompat);
    be64_put(&d->compat, h->compat);
    be64_put(&d->autoclear, h->autoclear);
    be32_put(&d->refcount_order, h->refcount_order);
}


/* A write of a sector of the header failed: it may be old or new there (stor.h). Whoever asked takes the change back in memory
 * and goes on with the old tables, so the old sector must be back, durably, before that; else nothing is written any more. */
static void header_back(struct co *co, struct q2_image *q, const void *sector, uint32_t at, int error)
{
    int r = meta_write_now(co, q->meta, sector, 512, at);
    if (r == 0)
        r = meta_barrier(co, q->meta, META_B_HEADER);
    if (r < 0)
        meta_stop(q->meta, error);
}

/* Writes the first sector; old: what it holds. Under header_mx. */
static int put_first(struct co *co, struct q2_image *q, const uint8_t *sector, const uint8_t *old)
{
    int r = meta_write_now(co, q->meta, sector, 512, 0);
    if (r < 0)
        header_back(co, q, old, 0, r);
    return r;
}

int q2_header_put_first(struct co *co, struct q2_image *q, const uint8_t *sector, const uint8_t *old, enum meta_barrier which)
{
    co_lock(co, &q->header_mx);
    int r = put_first(co, q, sector, old);
    co_unlock(&q->header_mx);
    return r < 0 ? r : meta_barrier(co, q->meta, which);
}

/* Changes bytes of one sector of the first cluster, all in one write. Others who change it wait. */
static int patch_header(struct co *co, struct q2_image *q, const struct q2_patch *p, unsigned n)
{
    uint8_t *buf = NULL, *old;
    if (posix_memalign((void **)&buf, 4096, 1024))
        return -ENOMEM;
    old = buf + 512;
    uint32_t base = (uint32_t)round_down(p[0].from, 512);
    struct iovec slot;
    co_lock(co, &q->header_mx);
    int r = stor_read(co, q->im.store, iov_one(&slot, old, 512), base);
    memcpy(buf, old, 512);
    for (unsigned i = 0; i < n; i++) {
        ASSERT(p[i].from >= base && p[i].from + p[i].len <= base + 512);
        memcpy(buf + (p[i].from - base), p[i].bytes, p[i].len);
    }
    if (r == 0) {
        r = meta_write_now(co, q->meta, buf, 512, base);
        if (r < 0)
            header_back(co, q, old, base, r);
    }
    co_unlock(&q->header_mx);
    free(buf);
    return r;
}

int q2_header_sync(struct co *co, struct q2_image *q, uint32_t from, uint32_t to, enum meta_barrier which)
{
    ASSERT((from >= 24 && to <= Q2_HEADER_V2_BYTES) || (from >= Q2_HEADER_V2_BYTES && to <= 100));
    struct q2_disk_header d;
    header_bytes(&q->h, &d);
    struct q2_patch p = { from, to - from, (const uint8_t *)&d + from };
    int r = patch_header(co, q, &p, 1);
    return r < 0 ? r : meta_barrier(co, q->meta, which);
}

int q2_header_sync_counts(struct co *co, struct q2_image *q)
{
    struct q2_disk_header d;
    header_bytes(&q->h, &d);
    struct q2_patch p[2] = { { 48, 72 - 48, (const uint8_t *)&d + 48 }, { 96, 4, (const uint8_t *)&d + 96 } };
    int r = patch_header(co, q, p, q->g.version >= 3 && !MUTANT(MUT_AMEND_WIDTH_LATE) ? 2 : 1);
    if (r == 0)
        r = meta_barrier(co, q->meta, META_B_SWITCH_AFTER);
    if (r == 0 && MUTANT(MUT_AMEND_WIDTH_LATE))
        r = patch_header(co, q, p + 1, 1);
    return r;
}

int q2_header_patch(struct co *co, struct q2_image *q, const struct q2_patch *p, unsigned n)
{
    int r = patch_header(co, q, p, n);
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_HEADER);
}

int q2_header_patch_quietly(struct co *co, struct q2_image *q, const struct q2_patch *p, unsigned n) { return patch_header(co, q, p, n); }

int q2_header_record_frontier(struct co *co, struct q2_image *q)
{
    be64 autoclear, range[2];
    be64_put(&autoclear, q->h.autoclear);
    be64_put(&range[0], q->h.frontier_start);
    be64_put(&range[1], q->h.frontier_end);
    struct q2_patch p[2] = { { 88, sizeof autoclear, &autoclear }, { q->h.frontier_ext_off, sizeof range, range } };
    return patch_header(co, q, p, 2);
}

/* ---- tables ---- */

static void l1_free(struct q2_l1 *l1)
{
    if (!l1)
        return;
    free((void *)l1->words);
    free(l1);
}

static struct q2_l1 *l1_new(uint64_t entries)
{
    struct q2_l1 *l1 = calloc(1, sizeof *l1);
    void *w = NULL;
    uint64_t bytes = round_up(max_u64(entries * 8, 1), 512);
    if (!l1 || posix_memalign(&w, 4096, bytes)) {
        free(l1);
        return NULL;
    }
    memset(w, 0, bytes);
    l1->entries = entries;
    l1->alloc_bytes = bytes;
    l1->words = w;
    return l1;
}

static void l1_reclaim(struct epoch_cb *cb)
{
    l1_free((struct q2_l1 *)((char *)cb - offsetof(struct q2_l1, reclaim)));
}

/* Puts a new L1 table in place of the old one, for readers and for passes. Takes l1; cannot fail after `dirty`. */
static void l1_install(struct q2_image *q, struct q2_l1 *l1, uint64_t *dirty)
{
    struct q2_l1 *old = atomic_exchange_explicit(&q->l1, l1, memory_order_acq_rel);
    meta_region_remove(q->meta, &q->l1_region);
    free(q->l1_dirty);
    q->l1_dirty = dirty;
    q->l1_region = (struct meta_region){ .rank = META_ROOTS, .off = q->h.l1_off, .words = l1->words, .bytes = l1->alloc_bytes, .dirty = dirty,
                                          .on_write = STOR_EV_L1_UPDATE };
    meta_region_add(q->meta, &q->l1_region);
    q2_fixed_update(q);
    q2_guard_drop(q);
    if (old)
        epoch_defer(q->im.epoch, &old->reclaim, l1_reclaim);
}

int q2_l1_replace(struct q2_image *q, uint64_t entries, const struct q2_l1 *from, struct q2_l1 **ret_new, uint64_t **ret_dirty)
{
    struct q2_l1 *l1 = l1_new(entries);
    uint64_t *dirty = l1 ? calloc(div_up(l1->alloc_bytes, 512 * 64), 8) : NULL;
    if (!dirty) {
        l1_free(l1);
        return -ENOMEM;
    }
    if (from)
        for (uint64_t i = 0; i < min_u64(entries, from->entries); i++)
            atomic_store_explicit(&l1->words[i], atomic_load_explicit(&from->words[i], memory_order_relaxed), memory_order_relaxed);
    *ret_new = l1;
    *ret_dirty = dirty;
    (void)q;
    return 0;
}

void q2_l1_install(struct q2_image *q, struct q2_l1 *l1, uint64_t *dirty) { l1_install(q, l1, dirty); }

void q2_l1_discard(struct q2_l1 *l1, uint64_t *dirty)
{
    l1_free(l1);
    free(dirty);
}

static int load_l1(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct q2_l1 *l1;
    uint64_t *dirty;
    int r = q2_l1_replace(q, q->h.l1_size, NULL, &l1, &dirty);
    if (r < 0)
        return byre_fail(err, NOMEM, "%s: L1 table of %" PRIu32 " entries", q->name, q->h.l1_size);
    struct iovec slot;                           /* the last cluster of a file may be cut short; check sees any table */
    if (q->h.l1_size)
        r = stor_read(co, q->im.store, iov_one(&slot, (void *)l1->words, (uint64_t)q->h.l1_size * 8), q->h.l1_off);
    if (r < 0) {
        q2_l1_discard(l1, dirty);
        return byre_fail_code(err, IO, r, "%s: the L1 table at %#" PRIx64 " cannot be read", q->name, q->h.l1_off);
    }
    l1_install(q, l1, dirty);
    return 0;
}

static void forget_parts(struct q2_image *q)
{
    q2_parts_fini(&(struct q2_parts){ q->im.partial, q->im.partial_token, q->im.token });
    q->im.partial = q->im.partial_token = q->im.token = NULL;
}

static int read_header(struct co *co, struct q2_image *q, struct byre_err *err)
{
    uint64_t len;
    int r = stor_length(co, q->im.store, &len);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", q->name);
    uint8_t first[24] = { 0 };
    struct iovec slot;
    r = stor_read(co, q->im.store, iov_one(&slot, first, sizeof first), 0);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the header cannot be read", q->name);
    uint32_t bits = be32_get((const be32 *)(first + 20));
    uint64_t want = min_u64(len, bits >= Q2_CLUSTER_BITS_MIN && bits <= Q2_CLUSTER_BITS_MAX ? 1ull << bits : 512);
    uint8_t *buf = malloc(want ? want : 1);
    if (!buf)
        return byre_fail(err, NOMEM, "%s: header", q->name);
    r = stor_read(co, q->im.store, iov_one(&slot, buf, want), 0);
    if (r < 0)
        r = byre_fail_code(err, IO, r, "%s: the header cannot be read", q->name);
    struct q2_header h;
    if (r == 0)
        r = q2_header_parse(buf, want, len, q->check_mode || q->info_only, q->name, &h, err);
    free(buf);
    if (r < 0)
        return r;
    q2_header_fini(&q->h);
    q->h = h;
    q->g = q2_geom_make(h.version, h.cluster_bits, h.refcount_order, h.incompat & Q2_INCOMPAT_EXT_L2);
    q->g.data_file = h.incompat & Q2_INCOMPAT_DATA_FILE;
    q->file_bytes_at_open = len;
    q->file_end_at_open = round_up(len, q->g.cluster_size);
    atomic_store(&q->im.size, h.size);
    q->im.granule = 1u << q->g.sub_bits;
    q->im.cluster = (uint32_t)q->g.cluster_size;
    q->im.has_backing = h.backing_name != NULL;
    struct q2_parts parts;
    if (q2_header_parts(&h, &parts) < 0)
        return byre_fail(err, NOMEM, "%s: no memory for a file name", q->name);
    forget_parts(q);
    q->im.partial = parts.name;
    q->im.partial_token = parts.through;
    q->im.token = parts.own;
    bool encodes = !h.crypt_method && !(h.incompat & Q2_INCOMPAT_DATA_FILE);        /* 1.077, 1.082 */
    q->im.encode_bytes = encodes ? (uint32_t)q->g.cluster_size : 0;
    return 0;
}

/* ---- opening ---- */

static void before_freeze(void *arg) { q2_drop_freeze(arg); }

static int make_cache(struct q2_image *q, struct byre_err *err)
{
    uint64_t unit = q->opts.l2_entry_bytes ? q->opts.l2_entry_bytes : SLICE_BYTES_MAX;
    q2_slices_set(q, (uint32_t)min_u64(q->g.cluster_size, min_u64(unit, SLICE_BYTES_MAX)));
    q->kind_l2 = (struct meta_kind){ .name = "l2", .rank = META_TABLES, .on_load = STOR_EV_L2_LOAD, .on_write = STOR_EV_L2_UPDATE };
    q->kind_ref = (struct meta_kind){ .name = "refcount", .rank = META_COUNTS, .on_load = STOR_EV_REFBLOCK_LOAD, .on_write = STOR_EV_REFBLOCK_UPDATE_PART };
    struct meta_opts mo = { .store = q->im.store, .data = q->g.data_file && q->im.data != q->im.store ? q->im.data : NULL, .home = q->im.home, .epoch = q->im.epoch, .block_bytes = q->slice_bytes,
        .budget_bytes = q->opts.cache_bytes ? q->opts.cache_bytes : CACHE_BYTES_DEFAULT,
        .budget_max_bytes = q->opts.cache_bytes || q->opts.below ? 0 : CACHE_BYTES_MAX, .clean_ns = q->opts.cache_clean_ms * 1000000, .read_only = q->im.read_only,
        .before_freeze = before_freeze, .arg = q };
    int r = meta_new(&mo, &q->meta);
    return r < 0 ? byre_fail(err, NOMEM, "%s: metadata cache", q->name) : 0;
}

/* Clears unknown autoclear bits (1.033). */
static int clear_autoclear(struct co *co, struct q2_image *q, uint64_t keep, struct byre_err *err)
{
    uint64_t old = q->h.autoclear;
    if (q->g.version < 3 || !(old & ~keep))
        return 0;
    q->h.autoclear &= keep;
    int r = q2_header_sync(co, q, 88, 96, META_B_HEADER);
    if (r < 0) {
        q->h.autoclear |= old & ~keep;
        return byre_fail_code(err, IO, r, "%s: the header cannot be written", q->name);
    }
    return 0;
}

static int repair_dirty(struct co *co, struct q2_image *q, struct byre_err *err)
{
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS };
    struct fmt_check_result res = { 0 };
    int r = q2_check(co, &q->im, &o, &res, err);
    if (r < 0)
        return r;
    if (res.check_errors || res.corruptions)
        return byre_fail(err, Q2_CORRUPT, "%s: the image was not closed cleanly and its repair left %" PRIu64 " errors; run check -r all", q->name, res.corruptions + res.check_errors);
    return 0;
}

static int make_alloc(struct co *co, struct q2_image *q, struct byre_err *err)
{
    int r = q2_alloc_new(co, q);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: allocator", q->name);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the end of the file cannot be found", q->name) : 0;
}

static int prepare_writing(struct co *co, struct q2_image *q, struct byre_err *err)
{
    if (q->check_mode)
        return make_alloc(co, q, err);
    bool clean = !(q->h.incompat & Q2_INCOMPAT_DIRTY);
    int r = q2_lazy_init(q, err);
    if (r == 0 && q2_unclean_wanted(q))
        r = q2_unclean_begin(q, err);
    else if (r == 0 && q->h.incompat & Q2_INCOMPAT_DIRTY)
        r = repair_dirty(co, q, err);
    if (r == 0 && !q->alloc)
        r = make_alloc(co, q, err);
    if (r == 0)
        r = clear_autoclear(co, q, Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_CLONES | (clean && q2_clone_any(q) ? Q2_AUTOCLEAR_SETTLED : 0) | (q->im.data_raw ? Q2_AUTOCLEAR_RAW_DATA : 0) |
                            (q->h.has_frontier ? Q2_AUTOCLEAR_FRONTIER : 0) | (q->h.has_supersets ? Q2_AUTOCLEAR_SUPERSETS | Q2_AUTOCLEAR_GENERATION : 0), err);
    q2_clone_opened(q);
    q2_fixed_update(q);                          /* it is known now which bitmaps count */
    if (r == 0 && !q->unclean)                   /* else the scrub finds what was left */
        q2_reclaim_start(q);
    return r;
}

static int load_tables(struct co *co, struct q2_image *q, struct byre_err *err)
{
    int r = load_l1(co, q, err);
    if (r == 0 && (!q->im.read_only || q->check_mode))
        r = q2_refs_load_table(co, q, err);
    return r;
}

/* Gives back everything but the store. */
static void dismantle(struct co *co, struct q2_image *q)
{
    q2_alloc_free(q);
    q2_unclean_free(q);
    if (q->meta)
        meta_free_all(co, q->meta);
    if (q->im.epoch) {
        epoch_drain(co, q->im.epoch);
        epoch_free(q->im.epoch);
    }
    q2_guard_free(q);
    l1_free(atomic_load(&q->l1));
    free(q->l1_dirty);
    free(q->rt);
    q2_snapshots_free(q->snapshots, q->snapshot_count);
    q2_bms_free(q);
    q2_crypt_close(co, q);
    if (q->im.data != q->im.store)
        stor_close(co, q->im.data);
    q2_header_fini(&q->h);
    forget_parts(q);
    q2_decoded_free(q);
    q2_clone_free(q);
    q2_codecs_free(q->codecs);
    free(q->name);
    free(q);
}

static int open_parts(struct co *co, struct q2_image *q, struct byre_err *err)
{
    int r = epoch_new(q->im.home, &q->im.epoch);
    if (r == 0)
        r = q2_codecs_new(&q->codecs);
    if (r == 0)
        r = q2_decoded_new(q);
    if (r < 0)
        return byre_fail(err, NOMEM, "%s: epochs and codecs", q->name);
    r = read_header(co, q, err);
    if (r < 0)
        return r;
    if (!q->info_only) {
        r = q2_header_supported(&q->h, q->name, err);
        if (r < 0)
            return r;
    }
    if (fmt_snapshot_picks(&q->opts.snapshot)) {
        r = q2_snapshot_view(co, q, &q->opts.snapshot, err);
        if (r < 0)
            return r;
    }
    if (q->opts.discard_no_unref && q->g.version < 3)
        return byre_fail(err, BAD_OPTION, "%s: discard-no-unref needs version 3 (compat=1.1) of the format", q->name);
    if (q->opts.l2_entry_bytes > q->g.cluster_size)
        return byre_fail(err, BAD_OPTION, "%s: l2-cache-entry-size: %u is larger than a cluster of %" PRIu64, q->name, q->opts.l2_entry_bytes, q->g.cluster_size);
    if ((q->h.incompat & Q2_INCOMPAT_CORRUPT) && !q->im.read_only && !q->check_mode)       /* V3 */
        return byre_fail(err, Q2_MARKED_CORRUPT, "%s: the image is marked corrupt; it can be opened read-only, or repaired by check -r all", q->name);
    r = q2_data_open(co, q, err);
    if (r == 0)
        r = q2_crypt_open(co, q, err);           /* a wrong passphrase is found before anything is written */
    if (r == 0)
        r = make_cache(q, err);
    if (r == 0 && !q->info_only)
        r = load_tables(co, q, err);
    if (r == 0 && !q->im.read_only)
        r = prepare_writing(co, q, err);
    return r;
}

static int q2_open(struct co *co, struct stor *store, const struct fmt_open_opts *o, struct fmt_image **ret_im, struct byre_err *err)
{
    struct q2_image *q = calloc(1, sizeof *q);
    if (!q || !(q->name = strdup(store->name ? store->name : "image"))) {
        free(q);
        return byre_fail(err, NOMEM, "image");
    }
    q->im.ops = &fmt_qcow2_ops;
    q->im.store = q->im.data = store;
    q->im.home = co_loop(co);
    q->im.read_only = o->read_only || o->info_only;
    q->check_mode = o->check_mode;
    q->info_only = o->info_only;
    q->opts = *o;
    q->overlap = (o->overlap_check & FMT_OVERLAP_GIVEN ? o->overlap_check & FMT_OVERLAP_ALL : FMT_OVERLAP_CACHED) | 1u << Q2_K_LUKS;
    atomic_store(&q->im.below_zero_from, UINT64_MAX);
    int r = open_parts(co, q, err);
    if (r < 0) {
        q2_alloc_quiesce(co, q);
        dismantle(co, q);
        return r;
    }
    if (!q->im.has_backing)
        atomic_store(&q->im.below_zero_from, 0);
    *ret_im = &q->im;
    return 0;
}

int q2_reload(struct co *co, struct q2_image *q, struct byre_err *err)
{
    q2_alloc_free(q);
    atomic_fetch_add(&q->pack_round, 1);
    meta_region_remove(q->meta, &q->l1_region);
    meta_forget_all(q->meta);
    epoch_drain(co, q->im.epoch);
    int r = read_header(co, q, err);
    if (r == 0)
        r = load_tables(co, q, err);
    if (r == 0 && !q->im.read_only)
        r = make_alloc(co, q, err);
    return r;
}

/* ---- flush and close ---- */

static int flush_home(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    return meta_flush(co, q->meta);
}

static int q2_flush(struct co *co, struct fmt_image *im)
{
    return im->read_only ? 0 : rt_call(co, im->home, flush_home, q2_of(im));
}

int q2_rest(struct co *co, struct q2_image *q)
{
    int r = meta_flush(co, q->meta);
    if (r == 0)
        r = q2_alloc_close(co, q);
    if (r == 0)
        r = q2_clone_settle(co, q);
    if (r == 0 && !q2_reclaim_unfinished(q) && !q->unclean)
        r = clear_autoclear(co, q, ~Q2_AUTOCLEAR_FRONTIER, NULL);
    if (r == 0)
        r = q2_lazy_leave(co, q);
    q2_alloc_quiesce(co, q);
    return r;
}

/* Memory or storage failed at every try (q2_drop.c). */
static void tell_leaks(const struct q2_image *q)
{
    uint64_t n = q->leaked + (q->alloc ? q->alloc->lost + q2_drop_left(q->alloc) : 0);
    if (n && q->opts.leaked && !q->check_mode)
        q->opts.leaked(q->opts.corrupted_arg, n << q->g.cluster_bits);
}

static int q2_close(struct co *co, struct fmt_image *im)
{
    struct q2_image *q = q2_of(im);
    struct stor *store = im->store;
    int r = 0, stored = 0;
    ASSERT(!q->scrubbing && !q->compacting);     /* whoever runs it has waited for its end */
    if (!im->read_only && !q->info_only) {
        r = meta_flush(co, q->meta);
        stored = r == 0 ? q2_bms_close(co, q) : 0;       /* Q17: with all that the guest wrote durable */
        int rested = q2_rest(co, q);
        r = r < 0 ? r : rested;
        if (r < 0) {
            meta_abandon(co, q->meta);           /* what could not be written is given up: a leak at worst */
            q2_alloc_quiesce(co, q);             /* a pass that ran behind may have released batches all the same */
        } else {
            tell_leaks(q);
        }
    }
    dismantle(co, q);
    stor_close(co, store);
    return r < 0 ? r : stored;
}

static uint64_t q2_state_at(const struct fmt_image *im)
{
    const struct q2_image *q = (const struct q2_image *)im;      /* it is the first member */
    return q2_l1_entries(&q->g, atomic_load_explicit(&im->size, memory_order_acquire)) * q2_l2_span(&q->g);
}

const struct fmt_ops fmt_qcow2_ops = {
    .name = "qcow2",
    .probe = q2_probe,
    .peek = q2_peek,
    .open = q2_open,
    .map = q2_map,
    .map_at_hand = q2_map_at_hand,
    .read_encoded = q2_read_encoded,
    .encode = q2_encode,
    .write_encoded = q2_write_encoded,
    .write_begin = q2_write_begin,
    .write_commit = q2_write_commit,
    .write_abort = q2_write_abort,
    .zero = q2_zero,
    .discard = q2_discard,
    .clone = q2_clone,
    .flush = q2_flush,
    .resize = q2_resize,
    .resize_commit = q2_resize_commit,
    .snapshot = q2_snapshot_op,
    .amend = q2_amend,
    .make_empty = q2_make_empty,
    .forget = q2_forget,
    .reserved = q2_reserved,
    .info = q2_info,
    .check = q2_check,
    .scrub = q2_scrub,
    .no_scrub = q2_no_scrub,
    .compact = q2_compact,
    .close = q2_close,
    .create = q2_create,
    .state_at = q2_state_at,
    .state_room = q2_state_room,
    .measure = q2_measure,
    .bitmaps_open = q2_bms_open,
    .bitmap_load = q2_bms_load,
    .bitmaps_sync = q2_bms_sync,
    .bitmaps_fit = q2_bms_fit,
    .bitmaps_resizing = q2_bms_resizing,
    .bitmap_enter = q2_bms_enter,
};
