/* SPDX-License-Identifier: MIT
 *
 * q2_data.c: guest data in a file of its own (FEATURES 1g).
 *
 * Purpose     Opens the external data file; judges whether an entry may stand where it does; gives space in it back; zeroes in
 *             place where the file is a raw image of its own; follows the virtual size.
 * Owns        q->im.data when it is not q->im.store.
 * Invariants  F1  A guest cluster has one place in the data file: its guest offset. No entry says anything else (1.078).
 *             F2  Nothing in the data file is counted, and nothing of it is ever handed to the allocator.
 *             F3  A punch lies inside the range lock of its clusters, so a rewrite never meets a late punch (Q9).
 *             F4  While the raw bit stands (1.081), what the guest reads and what the data file holds are the same: an entry
 *                 turns into "zero" nowhere, zeros are written into the file. An image with a backing file cannot promise
 *                 that: its raw bit is cleared before the first write.
 *             F5  To describe or to check an image opens no second file (1.080, CVE-2024-32498): then no entry can be followed.
 * Order       Q21, by meta/: the data file is durable before a table that names it. A punch may be durable before the entry that
 *             says "zero": both read zeros. Growing: the file, then the size. Shrinking: the size, then the file (Q19).
 * Concurrency open, resize: home loop. The rest: any loop, like a read or a write.
 * Failure     open: nothing stays open. A failed punch leaves old bytes behind an entry that says "zero".
 * Tests       q2_geom_test.c (entries), meta_test.c (Q21), tests/interop/test_data_file.py, crash explorer (geometries -data, mutants DATA_FILE_*)
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_alloc_priv.h"

int q2_data_open(struct co *co, struct q2_image *q, struct byre_err *err)
{
    const struct fmt_host *host = q->opts.host;
    if (!q->g.data_file || q->info_only || q->check_mode)            /* F5 */
        return 0;
    if (!host)
        return byre_fail(err, NOT_SUPPORTED, "%s: its external data file cannot be opened here", q->name);
    struct stor *s;
    int r = host->open_data(co, host->arg, q->h.data_file, &s, err);
    if (r < 0)
        return r;
    q->im.data = q->im.second = s;
    q->im.data_raw = q->h.autoclear & Q2_AUTOCLEAR_RAW_DATA && !q->im.has_backing;       /* F4 */
    return 0;
}

bool q2_entry_fits(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest)
{
    if (!q->g.data_file)
        return true;
    if (e->kind == Q2_NORMAL || e->kind == Q2_ZERO_ALLOC)
        return q->im.data != q->im.store && e->host == round_down(guest, q->g.cluster_size);
    return e->kind != Q2_COMPRESSED;
}

/* ---- giving space back ---- */

#ifdef BYRE_MUTANTS
struct later { struct q2_image *q; uint64_t off, len; };
static void later_co(struct co *co, void *arg)
{
    struct later *l = arg;
    (void)!stor_discard(co, l->q->im.data, l->off, l->len);
    co_group_leave(&l->q->alloc->drops);
    free(l);
}
static bool punch_later(struct q2_image *q, uint64_t off, uint64_t len)
{
    struct later *l = MUTANT(MUT_DATA_FILE_PUNCH_LATE) ? malloc(sizeof *l) : NULL;
    if (!l)
        return false;
    *l = (struct later){ q, off, len };
    co_group_enter(&q->alloc->drops);
    int r = rt_spawn(q->im.home, later_co, l);
    ASSERT(r == 0);
    return true;
}
#else
#define punch_later(q, off, len) false
#endif

/* The changed clusters of a slice that begins at `guest`, run by run. Bits: one for each cluster. */
void q2_data_punch(struct co *co, struct q2_image *q, uint64_t guest, const uint64_t *bits, uint32_t n)
{
    struct stor *s = q2_data_below(q);
    uint64_t size = atomic_load_explicit(&q->im.size, memory_order_relaxed), cs = q->g.cluster_size;
    if (q->opts.discard_no_punch || !s->discard_ok)
        return;
    for (uint32_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && bits[end / 64] >> (end % 64) & 1; end++)
            ;
        uint64_t off = guest + i * cs;
        uint64_t len = min_u64((end - i) * cs, off < size ? size - off : 0);
        if (len && !punch_later(q, off, len)) {
            int r = stor_discard(co, s, off, len);
            (void)r;                             /* advisory: the entries say "zero" all the same */
        }
        end += end == i;
    }
}

/* ---- a file that is a raw image of its own: zeros go into it, entries stay (F4) ---- */

enum { PIECE_ZERO = 1u << 8 };                   /* of `flags`: zero, not discard */

static int raw_piece(struct co *co, struct fmt_image *im, const struct fmt_extent *e, unsigned flags)
{
    if (e->kind != FMT_DATA)
        return e->kind == FMT_ZERO || e->kind == FMT_ABSENT ? 0 : -EIO;
    if (flags & PIECE_ZERO)
        return stor_zero(co, im->data, e->host, e->len, STOR_NO_FALLBACK | (flags & FMT_ZERO_UNMAP ? STOR_UNMAP : 0) | (flags & FMT_ZERO_SLOW ? STOR_SLOW : 0));
    return stor_discard(co, im->data, e->host, e->len);
}

static int raw_range(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    int r = 0;
    for (uint64_t end = off + len; r == 0 && off < end;) {
        struct fmt_extent e = { 0 };
        epoch_token t = epoch_enter(im->epoch, co_loop(co));
        r = q2_map(co, im, off, end - off, &e);
        if (r == 0)
            r = raw_piece(co, im, &e, flags);
        epoch_leave(im->epoch, co_loop(co), t);
        off += e.len;
    }
    return r;
}

int q2_data_raw_zero(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, unsigned flags)
{
    return raw_range(co, &q->im, off, len, (flags & (FMT_ZERO_UNMAP | FMT_ZERO_SLOW)) | PIECE_ZERO);
}

int q2_data_raw_discard(struct co *co, struct q2_image *q, uint64_t off, uint64_t len)
{
    return q->opts.discard_no_punch ? 0 : raw_range(co, &q->im, off, len, 0);
}

/* ---- size ---- */

/* Before the new size is said anywhere. What a longer file holds behind the old end goes. */
int q2_data_grow(struct co *co, struct q2_image *q, uint64_t old, uint64_t size)
{
    struct stor *s = q2_data_below(q);
    uint64_t have;
    if (!q->g.data_file)
        return 0;
    int r = stor_length(co, s, &have);
    if (r == 0 && have > old)
        r = stor_zero(co, s, old, min_u64(have, size) - old, 0);
    if (r == 0 && have < size)
        r = s->traits.regular ? stor_truncate(co, s, size) : -ENOSPC;
    return r;
}

/* Behind the durable new size. A device stays as it is. */
int q2_data_shrink(struct co *co, struct q2_image *q, uint64_t size)
{
    uint64_t have;
    struct stor *s = q2_data_below(q);
    if (!q->g.data_file || !s->traits.regular)
        return 0;
    int r = stor_length(co, s, &have);
    return r == 0 && have > size ? stor_truncate(co, s, size) : r;
}
