/* SPDX-License-Identifier: MIT
 *
 * pass.c: what reaches the disk before what.
 *
 * Purpose     Freezes the dirty state and writes it rank by rank (meta.h, "Model"); issues every barrier.
 * Owns        The order lock, the list of those who wait for a flush, the two dependency flags.
 * Invariants  I2, I6, I7 of meta.h. Further:
 *             F1  One pass at a time; a structural change excludes passes (order lock).
 *             F2  The dependency flags are taken at the freeze together with the dirt they belong to, and given
 *                 back with it when the pass fails.
 *             F3  A waiter is answered by a pass that froze after the waiter asked.
 * Order       With a second store for data (Q21) META_B_DATA_TABLES and META_B_FINAL flush that one first.
 *             counts | META_B_DATA_TABLES if some entry needs data or counts | tables | META_B_TABLES_ROOTS if some
 *             root needs a table | roots | META_B_FINAL. Data that an entry relies on was completed before the
 *             entry was set (fmt.h), so the first barrier behind the freeze covers it (Q1, Q2, Q4, Q5, Q9, Q11, E1, E2, E3).
 *             Counts are only ever raised before and lowered after (frees.c), so a crash anywhere can only leak.
 * Concurrency Home loop; suspends for I/O. Blocks may change while a pass writes: it writes its copies (D5: frozen).
 *             Lazy counts (Q12) leave the first step out, and nothing else.
 * Failure     A write fails: its sectors and all that were not written become dirty again, waiters get the error, a
 *             later pass tries again. A barrier fails: I6.
 * Tests       meta_test.c; crash explorer; mutants of every barrier and dependency.
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "meta/meta_priv.h"

#define PASS_IN_FLIGHT 16u

struct item {                            /* one run of bytes to write */
    uint64_t off, len;
    uint8_t *copy;                       /* inside frozen.buf */
    enum meta_rank rank;
    struct meta_block *block;            /* pinned; NULL: region */
    struct meta_region *region;
    uint32_t from;                       /* byte in the block (block only) */
    uint64_t sectors;                    /* block: bits; region: first sector */
    bool written;
};

struct frozen {
    struct item *items;
    size_t count;
    uint8_t *buf;
    struct meta_free *frees;
    bool need_data, need_table;
};

/* I9, Q21. Data that was acknowledged before the freeze needs one flush in a pass: by DATA_TABLES, else by FINAL. */
static int flush_data(struct co *co, struct meta *m, enum meta_barrier which)
{
    bool tables = which == META_B_DATA_TABLES && !MUTANT(MUT_DATA_FILE_LATE), last = which == META_B_FINAL && !m->data_done;
    if (!m->o.data || !(tables || last) || (last && MUTANT(MUT_DATA_FILE_UNFLUSHED)))
        return 0;
    int r = stor_flush(co, m->o.data);
    m->data_done |= r == 0;
    return r;
}

int meta_barrier(struct co *co, struct meta *m, enum meta_barrier which)
{
    if (m->failed)
        return m->failed;
    m->barriers[which]++;
    if (MUTANT(MUT_BARRIER(which)))
        return 0;
    int r = flush_data(co, m, which);
    if (which == META_B_FINAL)
        stor_event(co, m->o.store, STOR_EV_FLUSH_TO_DISK);
    if (r == 0)
        r = stor_flush(co, m->o.store);
    if (r < 0)
        m->failed = r;                   /* I6 */
    return r;
}

bool meta_stopped(const struct meta *m) { return m->failed != 0; }

void meta_stop(struct meta *m, int error)
{
    if (!m->failed)
        m->failed = error;
}

uint64_t meta_barriers(const struct meta *m, enum meta_barrier b) { return m->barriers[b]; }

void meta_need_data_barrier(struct meta *m)
{
    if (!MUTANT(MUT_NEED_DATA_BARRIER))
        m->need_data = true;
}

void meta_need_table_barrier(struct meta *m)
{
    if (!MUTANT(MUT_NEED_TABLE_BARRIER))
        m->need_table = true;
}

/* ---- freeze ---- */

/* Next run of set bits at or behind bit `from`: [*ret_first, *ret_end). */
static bool next_run(uint64_t bits, uint32_t from, uint32_t *ret_first, uint32_t *ret_end)
{
    if (from >= 64 || !(bits >> from))
        return false;
    uint32_t first = from + (uint32_t)__builtin_ctzll(bits >> from), end = first;
    while (end < 64 && (bits >> end & 1))
        end++;
    *ret_first = first;
    *ret_end = end;
    return true;
}

static bool region_bit(const struct meta_region *r, uint64_t bit) { return r->dirty[bit / 64] >> (bit % 64) & 1; }

/* left: counts are not asked for. */
static void freeze_size(const struct meta *m, bool left, size_t *ret_items, uint64_t *ret_bytes)
{
    size_t items = 0;
    uint64_t bytes = 0;
    for (struct meta_block *b = m->dirty_head; b; b = b->dirty_next)
        for (uint32_t f = 0, e = 0; !(left && b->kind->rank == META_COUNTS) && next_run(b->dirty_sectors, e, &f, &e); items++)
            bytes += (uint64_t)(e - f) * m->dirty_unit;
    for (struct meta_region *r = m->regions; r; r = r->next) {
        items += r->dirty_count;
        bytes += r->dirty_count * 512;
    }
    *ret_items = items;
    *ret_bytes = bytes;
}

static void freeze_block(struct meta *m, struct frozen *z, struct meta_block *b, uint8_t **buf)
{
    for (uint32_t f = 0, e = 0; next_run(b->dirty_sectors, e, &f, &e);) {
        struct item *it = &z->items[z->count++];
        uint32_t from = f * m->dirty_unit, len = (e - f) * m->dirty_unit;
        *it = (struct item){ .off = b->off + from, .len = len, .copy = *buf, .rank = b->kind->rank, .block = b, .from = from };
        it->sectors = (e == 64 ? ~0ull : (1ull << e) - 1) & ~((1ull << f) - 1);
        memcpy(*buf, (const uint8_t *)b->words + from, len);
        *buf += len;
        b->pins++;                       /* C3 of cache.c */
    }
    meta_block_clean_(m, b);
}

static void freeze_region(struct frozen *z, struct meta_region *r, uint8_t **buf)
{
    for (uint64_t bit = 0; r->dirty_count && bit < r->bytes / 512; bit++) {
        if (!region_bit(r, bit))
            continue;
        r->dirty[bit / 64] &= ~(1ull << (bit % 64));
        r->dirty_count--;
        z->items[z->count++] = (struct item){ .off = r->off + bit * 512, .len = 512, .copy = *buf, .rank = r->rank, .region = r, .sectors = bit };
        memcpy(*buf, (const uint8_t *)r->words + bit * 512, 512);
        *buf += 512;
    }
}

static int item_cmp(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return x->off < y->off ? -1 : x->off > y->off;
}

/* I2: all of it at one instant. -ENOMEM: nothing changed. */
static int freeze(struct meta *m, struct frozen *z)
{
    size_t items;
    uint64_t bytes;
    bool left = m->lazy && m->dirty_blocks <= m->limit_min / 4;         /* Q12; a cache full of counts must become smaller */
    freeze_size(m, left, &items, &bytes);
    *z = (struct frozen){ 0 };
    if (items) {
        void *buf = NULL;
        z->items = calloc(items, sizeof *z->items);
        if (!z->items || posix_memalign(&buf, 4096, bytes)) {
            free(z->items);
            return -ENOMEM;
        }
        z->buf = buf;
        uint8_t *at = z->buf;
        for (struct meta_block *b = m->dirty_head, *next; b; b = next) {
            next = b->dirty_next;
            if (!left || b->kind->rank != META_COUNTS)
                freeze_block(m, z, b, &at);
        }
        for (struct meta_region *r = m->regions; r; r = r->next)
            freeze_region(z, r, &at);
        INV(F1, z->count == items);
        qsort(z->items, z->count, sizeof *z->items, item_cmp);
    }
    m->data_done = false;
    z->need_data = m->need_data && !(m->lazy && MUTANT(MUT_LAZY_DATA_TOO));
    z->need_table = m->need_table;
    m->need_data = m->need_table = false;                     /* F2 */
    z->frees = meta_frees_take_(m);
    return 0;
}

static void give_back(struct meta *m, struct item *it)
{
    if (it->block) {
        meta_block_redirty_(m, it->block, it->sectors);
    } else if (!region_bit(it->region, it->sectors)) {
        it->region->dirty[it->sectors / 64] |= 1ull << (it->sectors % 64);
        it->region->dirty_count++;
    }
}

static void thaw(struct meta *m, struct frozen *z, int result)
{
    for (size_t i = 0; i < z->count; i++) {
        struct item *it = &z->items[i];
        if (result < 0)
            give_back(m, it);
        if (it->block)
            meta_put(m, it->block);
    }
    if (result < 0) {
        m->need_data |= z->need_data;
        m->need_table |= z->need_table;
        meta_frees_back_(m, z->frees);
    } else {
        meta_frees_durable_(m, z->frees);
    }
    free(z->items);
    free(z->buf);
}

/* ---- writing ---- */

struct writer {                          /* items of one rank, written by a few coroutines */
    struct meta *m;
    struct item *items;
    size_t next, end;
    int error;
    struct co_group group;
};

/* Takes items that lie side by side on the disk, so that they go out as one write. */
static bool take_run(struct writer *w, struct iovec *vec, unsigned max, unsigned *ret_n, uint64_t *ret_off, enum stor_event_kind *ret_what)
{
    if (w->next == w->end || w->error)
        return false;
    unsigned n = 0;
    const struct item *first = &w->items[w->next];
    *ret_what = first->block ? first->block->kind->on_write : first->region->on_write;
    uint64_t end = w->items[w->next].off;
    *ret_off = end;
    while (w->next < w->end && n < max && w->items[w->next].off == end) {
        struct item *it = &w->items[w->next++];
        if (MUTANT(MUT_FREEZE_NOTHING))
            memcpy(it->copy, it->block ? (const uint8_t *)it->block->words + it->from : (const uint8_t *)it->region->words + it->sectors * 512, it->len);
        vec[n++] = (struct iovec){ it->copy, it->len };
        end += it->len;
    }
    *ret_n = n;
    return true;
}

static void write_items(struct co *co, struct writer *w)
{
    struct iovec vec[16];
    unsigned n;
    uint64_t off;
    enum stor_event_kind what;
    while (take_run(w, vec, 16, &n, &off, &what)) {
        stor_event(co, w->m->o.store, what);
        int r = stor_write(co, w->m->o.store, iov_of(vec, n), off, 0);
        if (r < 0 && !w->error)
            w->error = r;
    }
}

static void writer_co(struct co *co, void *arg)
{
    struct writer *w = arg;
    write_items(co, w);
    co_group_leave(&w->group);
}

static int write_rank(struct co *co, struct meta *m, struct frozen *z, enum meta_rank rank)
{
    size_t a = 0, b;
    while (a < z->count && z->items[a].rank != rank)
        a++;
    for (b = a; b < z->count && z->items[b].rank == rank; b++)
        ;
    struct writer w = { .m = m, .items = z->items, .next = a, .end = b };
    for (size_t i = 1; i < PASS_IN_FLIGHT && i * 8 < b - a; i++) {
        co_group_enter(&w.group);
        if (rt_spawn(co_loop(co), writer_co, &w) < 0) {
            co_group_leave(&w.group);
            break;
        }
    }
    write_items(co, &w);
    co_group_wait(co, &w.group);
    return w.error;
}

static bool has_rank(const struct frozen *z, enum meta_rank rank)
{
    for (size_t i = 0; i < z->count; i++)
        if (z->items[i].rank == rank)
            return true;
    return false;
}

static int write_frozen(struct co *co, struct meta *m, struct frozen *z)
{
    if (MUTANT(MUT_COUNT_UP_LATE)) {
        int r = write_rank(co, m, z, META_TABLES);
        if (r < 0)
            return r;
    }
    int r = write_rank(co, m, z, META_COUNTS);
    if (r == 0 && z->need_data && (has_rank(z, META_TABLES) || has_rank(z, META_ROOTS)))
        r = meta_barrier(co, m, META_B_DATA_TABLES);
    if (r == 0)
        r = write_rank(co, m, z, META_TABLES);
    if (r == 0 && z->need_table && has_rank(z, META_ROOTS))
        r = meta_barrier(co, m, META_B_TABLES_ROOTS);
    if (r == 0)
        r = write_rank(co, m, z, META_ROOTS);
    if (r == 0)
        r = meta_barrier(co, m, META_B_FINAL);
    return r;
}

int meta_pass_locked(struct co *co, struct meta *m)
{
    ASSERT_LOOP(m->o.home);
    if (m->failed)
        return m->failed;
    if (m->o.before_freeze)
        m->o.before_freeze(m->o.arg);
    struct frozen z;
    int r = freeze(m, &z);
    if (r < 0)
        return r;
    uint64_t number = ++m->pass_started;
    r = write_frozen(co, m, &z);
    if (r == 0)
        m->pass_durable = number;
    thaw(m, &z, r);
    for (struct meta_waiter *w = m->waiters; w; w = w->next)
        if (!w->done && w->want <= number) {
            w->done = true;
            w->result = r;
            co_wake_all(&w->q);
        }
    meta_update_clean_(m);
    return r;
}

uint64_t meta_next_pass(const struct meta *m) { return m->pass_started + 1; }
bool meta_pass_durable(const struct meta *m, uint64_t number) { return m->pass_durable >= number; }

int meta_counts_locked(struct co *co, struct meta *m)
{
    if (m->failed)
        return m->failed;
    struct frozen z = { 0 };
    size_t items;
    uint64_t bytes;
    freeze_size(m, false, &items, &bytes);
    void *buf = NULL;
    z.items = calloc(items ? items : 1, sizeof *z.items);
    if (!z.items || posix_memalign(&buf, 4096, bytes ? bytes : 1)) {
        free(z.items);
        return -ENOMEM;
    }
    z.buf = buf;
    uint8_t *at = z.buf;
    for (struct meta_block *b = m->dirty_head, *next; b; b = next) {
        next = b->dirty_next;
        if (b->kind->rank == META_COUNTS)
            freeze_block(m, &z, b, &at);
    }
    qsort(z.items, z.count, sizeof *z.items, item_cmp);
    int r = write_rank(co, m, &z, META_COUNTS);
    thaw(m, &z, r);
    return r;
}

/* ---- those who wait ---- */

static void run_for_all(struct co *co, struct meta *m, struct meta_waiter *me)
{
    m->runner = true;
    atomic_store_explicit(&m->clean, false, memory_order_release);
    co_lock(co, &m->order);
    if (!me->done) {                     /* a structural change may have run a pass meanwhile */
        int r = meta_pass_locked(co, m);
        if (!me->done) {                 /* it failed before its freeze: nobody was answered */
            for (struct meta_waiter *w = m->waiters; w; w = w->next)
                if (!w->done) {
                    w->done = true;
                    w->result = r;
                    co_wake_all(&w->q);
                }
        }
    }
    co_unlock(&m->order);
    m->runner = false;
    meta_update_clean_(m);
    for (struct meta_waiter *w = m->waiters; w; w = w->next)
        if (!w->done) {                  /* somebody came after the freeze: let one of them run the next pass */
            co_wake_all(&w->q);
            break;
        }
}

int meta_flush(struct co *co, struct meta *m)
{
    ASSERT_LOOP(m->o.home);
    struct meta_waiter me = { .want = m->pass_started + (MUTANT(MUT_FLUSH_IGNORES_DIRT) && m->runner && m->pass_started ? 0 : 1), .next = m->waiters };
    m->waiters = &me;
    while (!me.done) {
        if (!m->runner)
            run_for_all(co, m, &me);
        else
            co_wait(co, &me.q);
    }
    struct meta_waiter **at = &m->waiters;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
    return me.result;
}

/* ---- structural changes ---- */

void meta_struct_begin(struct co *co, struct meta *m)
{
    ASSERT_LOOP(m->o.home);
    co_lock(co, &m->order);
}

void meta_struct_end(struct meta *m) { co_unlock(&m->order); }

int meta_write_now(struct co *co, struct meta *m, const void *buf, uint64_t len, uint64_t off)
{
    if (m->failed)
        return m->failed;
    return stor_write_buf(co, m->o.store, buf, len, off, 0);
}
