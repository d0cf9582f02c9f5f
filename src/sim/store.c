/* SPDX-License-Identifier: MIT
 *
 * store.c: simulated files behind struct stor_ops.
 *
 * Purpose      Files with a volatile cache for the engine to run on; every change is recorded, any call can be made to
 *              fail.
 * Owns         struct sim_stor (one per opening), the state of operations in flight (in their coroutines' frames).
 * Invariants   S1  The buffer of a write is read once, at its effect: a seeded moment between issue and completion (at the
 *                  issue when it covers a sector in part).
 *              S2  What is recorded of a write are whole sectors as the page cache holds them after its effect.
 *              S3  A failed call has changed some of its sectors (writes) or nothing.
 * Order        A flush makes durable what had completed before it was issued (trace.h).
 * Concurrency  One thread; any loop.
 * Failure      As asked for by struct sim_faults; -EFBIG past SIM_DISK_MAX.
 * Tests        store_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "rt/sync.h"
#include "rt/backend.h"
#include "sim/mem.h"
#include "sim/model.h"
#include "sim/world.h"

struct sim_stor {
    struct stor s;                       /* first */
    struct sim_world *w;
    struct sim_file *f;
};

static struct sim_stor *sim_of(struct stor *s) { return (struct sim_stor *)s; }

uint64_t sim_stamp(struct sim_world *w) { return ++w->stamp; }

/* ---- faults ---- */

int sim_fault(struct sim_world *w, unsigned call)
{
    struct sim_faults *f = &w->faults;
    if (!(f->kinds & call))
        return 0;
    f->calls++;
    if (!f->nth || (f->forever || f->one_in ? f->calls < f->nth : f->calls != f->nth) || (f->one_in && !prng_one_in(&f->rng, f->one_in)))
        return 0;
    f->fired++;
    return f->what;
}

static uint64_t occupied_by(const struct sim_disk *d)
{
    uint64_t n = 0;
    for (uint64_t s = 0; s * SIM_SECTOR < d->len; s++)
        n += !mem_is_zero(d->data + s * SIM_SECTOR, SIM_SECTOR);
    return n * SIM_SECTOR;
}

static uint64_t occupied(const struct sim_world *w)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < w->file_count; i++)
        n += occupied_by(&w->files[i]->disk);
    return n;
}

/* ---- operations in flight ---- */

struct flight {
    struct sim_world *w;
    struct sim_file *f;
    struct sim_op *op;                   /* NULL: not recorded */
    enum sim_op_kind kind;
    struct iov v;
    uint64_t off, len;
    uint64_t part;                       /* a failing write: bytes that land all the same */
    uint64_t issued;
    int64_t result;
    bool fua;
    struct co_xevent over;
};

/* What the page cache holds of the op's sectors, for the record. */
static void record_sectors(struct flight *x, uint64_t off, uint64_t len)
{
    struct sim_op *op = x->op;
    const struct sim_disk *d = &x->f->disk;
    if (!op || !len)
        return;
    op->first = off / SIM_SECTOR;
    op->count = (uint32_t)(div_up(off + len, SIM_SECTOR) - op->first);
    bool zeros = op->kind != SIM_WRITE && is_aligned(off | len, SIM_SECTOR);
    op->hash = sim_trace_alloc(x->w->trace, op->count * sizeof *op->hash);
    if (zeros)
        return;
    op->data = sim_trace_alloc(x->w->trace, (size_t)op->count * SIM_SECTOR);
    sim_disk_read(d, op->first * SIM_SECTOR, op->data, (uint64_t)op->count * SIM_SECTOR);
    for (uint32_t i = 0; i < op->count; i++)
        op->hash[i] = sim_sector_hash(x->f->index, op->first + i, op->data + (size_t)i * SIM_SECTOR);
    uint32_t gen;
    uint64_t sector;
    op->meta = sim_sector_parse(op->data, &gen, &sector) != SIM_SECTOR_GUEST;
}

/* The file has become longer because something was written behind its end. */
static void record_growth(struct flight *x, uint64_t old_len)
{
    if (!x->op || x->f->disk.len == old_len || x->op->kind == SIM_LEN)
        return;
    struct sim_op *g = sim_trace_op(x->w->trace, SIM_LEN, x->f->index, x->op->effect);
    g->len = x->f->disk.len;
    g->effect = x->op->effect;
    g->fua = x->fua;
}

static void apply_write(struct flight *x)
{
    struct sim_disk *d = &x->f->disk;
    uint64_t n = x->result < 0 ? x->part : (uint64_t)x->result, done = 0;
    for (size_t i = 0; done < n; i++) {
        const struct iovec *e = &x->v.vec[i];
        uint64_t skip = i ? 0 : x->v.skip_bytes, m = min_u64(e->iov_len - skip, n - done);
        int r = sim_disk_write(d, x->off + done, (const uint8_t *)e->iov_base + skip, m);
        if (r < 0) {
            x->result = r;
            break;
        }
        done += m;
    }
    x->len = done;
}

static void take_effect(struct flight *x)
{
    struct sim_disk *d = &x->f->disk;
    uint64_t old_len = d->len;
    if (x->op)
        x->op->effect = sim_stamp(x->w);
    if (x->kind == SIM_WRITE)
        apply_write(x);
    if (x->kind == SIM_LEN && x->result == 0)
        x->result = sim_disk_set_len(d, x->len);
    if (x->kind == SIM_ZERO && x->result == 0 && x->off + x->len > d->len)
        x->result = sim_disk_set_len(d, x->off + x->len);
    if ((x->kind == SIM_ZERO || x->kind == SIM_PUNCH) && x->result == 0)
        sim_disk_zero(d, x->off, x->len);
    if (x->kind == SIM_PUNCH)
        x->len = x->off < d->len ? min_u64(x->len, d->len - x->off) : 0;
    record_growth(x, old_len);
    if (x->op && x->kind != SIM_LEN)
        record_sectors(x, x->off, x->result < 0 && x->kind != SIM_WRITE ? 0 : x->len);
}

static void complete(struct flight *x)
{
    if (!x->op)
        return;
    uint64_t at = sim_stamp(x->w);
    x->op->failed = x->result < 0;
    if (x->kind == SIM_FLUSH) {
        x->op->done = at;
        sim_trace_flushed(x->w->trace, x->f->index, x->issued, at, x->result == 0);
        return;
    }
    x->op->done = at;
    if (x->fua && x->result >= 0)
        x->op->durable = at;
    struct sim_trace *t = x->w->trace;
    for (size_t i = t->op_count; i-- > 0 && t->ops[i]->issued >= x->op->issued;)      /* the growth it caused */
        if (t->ops[i] != x->op && t->ops[i]->kind == SIM_LEN && t->ops[i]->file == x->f->index && t->ops[i]->issued == x->op->effect) {
            t->ops[i]->done = at;
            t->ops[i]->durable = x->op->durable;
        }
}

static void complete_event(void *arg)
{
    struct flight *x = arg;
    complete(x);
    co_xevent_set(&x->over);
}

/* Mostly quick, sometimes a hundred times slower, so that completions change places. */
static uint64_t latency(struct sim_world *w) { return 500 + prng_below(&w->rng, 1ull << (8 + prng_below(&w->rng, 11))); }

static void effect_event(void *arg)
{
    struct flight *x = arg;
    take_effect(x);
    sim_event_add(x->w, latency(x->w), complete_event, x);
}

static void fly(struct co *co, struct flight *x)
{
    struct sim_world *w = x->w;
    if (w->trace) {
        x->issued = sim_stamp(w);
        x->op = sim_trace_op(w->trace, x->kind, x->f->index, x->issued);
        x->op->fua = x->fua;
        if (x->kind == SIM_LEN)
            x->op->len = x->len;
    }
    if (w->direct) {
        take_effect(x);
        complete(x);
        return;
    }
    co_xevent_init(&x->over, co_loop(co));
    bool whole = is_aligned(x->off | x->len, SIM_SECTOR);
    if (x->kind == SIM_FLUSH || whole) {
        bool late = w->slow_writes && (x->kind == SIM_WRITE || x->kind == SIM_PUNCH) && prng_one_in(&w->rng, 4);
        sim_event_add(w, latency(w) * (late ? 256 : 1), effect_event, x);
    } else {                             /* S1 */
        take_effect(x);
        sim_event_add(w, latency(w), complete_event, x);
    }
    co_xevent_wait(co, &x->over);
}

/* ---- transfers ---- */

struct nap { struct co_xevent over; };

static void nap_over(void *arg) { co_xevent_set(&((struct nap *)arg)->over); }

static void pass_time(struct co *co, struct sim_world *w)
{
    if (w->direct)
        return;
    struct nap n;
    co_xevent_init(&n.over, co_loop(co));
    sim_event_add(w, latency(w), nap_over, &n);
    co_xevent_wait(co, &n.over);
}

static uint64_t cut_short(const struct stor *s, uint64_t len)
{
    uint64_t part = round_down(len / 2, max_u64(s->lim.block, 1));
    return part ? part : len;
}

static void read_into(const struct sim_disk *d, struct iov v, uint64_t off, uint64_t n)
{
    for (uint64_t done = 0, i = 0; done < n; i++) {
        uint64_t skip = i ? 0 : v.skip_bytes, m = min_u64(v.vec[i].iov_len - skip, n - done);
        sim_disk_read(d, off + done, (uint8_t *)v.vec[i].iov_base + skip, m);
        done += m;
    }
}

static int64_t sim_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct sim_stor *x = sim_of(s);
    int fault = sim_fault(x->w, SIM_C_READ);
    pass_time(co, x->w);
    if (fault < 0)
        return fault;
    uint64_t n = off < x->f->disk.len ? min_u64(v.len_bytes, x->f->disk.len - off) : 0;
    if (fault == SIM_SHORT)
        n = cut_short(s, n);
    if (fault == SIM_EOF)
        n = 0;
    read_into(&x->f->disk, v, off, n);
    return (int64_t)n;
}

static int64_t sim_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct sim_stor *x = sim_of(s);
    int fault = sim_fault(x->w, SIM_C_WRITE);
    struct flight f = { .w = x->w, .f = x->f, .kind = SIM_WRITE, .v = v, .off = off, .len = v.len_bytes, .fua = flags & STOR_FUA };
    f.result = fault < 0 ? fault : (int64_t)(fault == SIM_SHORT ? cut_short(s, v.len_bytes) : v.len_bytes);
    if (x->w->faults.space && f.result > 0 && occupied(x->w) + (uint64_t)f.result > x->w->faults.space)
        f.result = -ENOSPC;
    if (!x->f->traits.regular && off + v.len_bytes > x->f->disk.len)
        return -ENOSPC;
    if (f.result < 0)                    /* S3 */
        f.part = round_down(prng_below(&x->w->rng, v.len_bytes + 1), SIM_SECTOR);
    fly(co, &f);
    return f.result;
}

static int simple(struct co *co, struct stor *s, unsigned call, enum sim_op_kind kind, uint64_t off, uint64_t len)
{
    struct sim_stor *x = sim_of(s);
    int fault = sim_fault(x->w, call);
    struct flight f = { .w = x->w, .f = x->f, .kind = kind, .off = off, .len = len, .result = fault < 0 ? fault : 0 };
    if (!x->f->traits.regular && (kind == SIM_LEN || (kind == SIM_ZERO && off + len > x->f->disk.len)))
        return -ENOSPC;
    fly(co, &f);
    return (int)f.result;
}

static int sim_flush(struct co *co, struct stor *s) { return simple(co, s, SIM_C_FLUSH, SIM_FLUSH, 0, 0); }

static int sim_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    (void)flags;
    return s->traits.can_zero ? simple(co, s, SIM_C_ZERO, SIM_ZERO, off, len) : -ENOTSUP;
}

static int sim_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    return s->traits.can_punch ? simple(co, s, SIM_C_DISCARD, SIM_PUNCH, off, len) : -ENOTSUP;
}

static int sim_truncate(struct co *co, struct stor *s, uint64_t len) { return simple(co, s, SIM_C_TRUNCATE, SIM_LEN, 0, len); }

/* Space is not modelled by reservation: only the length can change. */
static int sim_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct sim_stor *x = sim_of(s);
    int fault = sim_fault(x->w, SIM_C_PREALLOC);
    if (fault < 0)
        return fault;
    if (off + len <= x->f->disk.len)
        return 0;
    struct flight f = { .w = x->w, .f = x->f, .kind = SIM_LEN, .len = off + len };
    fly(co, &f);
    return (int)f.result;
}

static int sim_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    struct sim_stor *x = sim_of(s);
    int fault = sim_fault(x->w, SIM_C_LENGTH);
    pass_time(co, x->w);
    if (fault < 0)
        return fault;
    *ret_len = x->f->disk.len;
    return 0;
}

/* A block of 4 KiB that holds only zeros counts as a hole. */
static int sim_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    enum { BLOCK = 4096 };
    struct sim_stor *x = sim_of(s);
    const struct sim_disk *d = &x->f->disk;
    int fault = sim_fault(x->w, SIM_C_EXTENT);
    pass_time(co, x->w);
    if (fault < 0)
        return fault;
    uint64_t end = off;
    int kind = -1;
    while (end < off + len) {
        uint64_t b = round_down(end, BLOCK), n = b < d->len ? min_u64(BLOCK, d->len - b) : 0;
        int k = n == 0 || mem_is_zero(d->data + b, n) ? STOR_HOLE : STOR_DATA;
        if (kind >= 0 && k != kind)
            break;
        kind = k;
        end = b + BLOCK;
    }
    *ret_e = (struct stor_extent){ (enum stor_content)kind, off, min_u64(end, off + len) - off };
    return 0;
}

static int sim_lock(struct co *co, struct stor *s, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err)
{
    (void)co;
    (void)beside;
    (void)perm;
    (void)shared;
    int fault = sim_fault(sim_of(s)->w, SIM_C_LOCK);
    return fault < 0 ? byre_fail_code(err, LOCKED, fault, "%s: cannot be locked", s->name) : 0;
}

static int sim_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    (void)co;
    *ret_bytes = occupied_by(&sim_of(s)->f->disk);
    return 0;
}

static void sim_close(struct co *co, struct stor *s)
{
    (void)co;
    sim_of(s)->w->handles--;
    stor_fini(s);
    free(s);
}

static const struct stor_ops sim_ops = {
    .name = "sim", .preadv = sim_preadv, .pwritev = sim_pwritev, .flush = sim_flush, .zero = sim_zero, .discard = sim_discard,
    .truncate = sim_truncate, .preallocate = sim_preallocate, .length = sim_length, .extent = sim_extent, .lock = sim_lock,
    .allocated = sim_allocated, .close = sim_close,
};

/* ---- opening, and the world's files ---- */

int sim_open(struct co *co, struct sim_world *w, const char *name, bool read_only, struct stor **ret_s)
{
    struct sim_file *f = sim_world_find(w, name);
    int fault = sim_fault(w, SIM_C_OPEN);
    pass_time(co, w);
    if (fault < 0)
        return fault;
    if (!f)
        return -ENOENT;
    AUTOFREE struct sim_stor *x = calloc(1, sizeof *x);
    if (!x)
        return -ENOMEM;
    int r = stor_init(&x->s, &sim_ops, name);
    if (r < 0)
        return r;
    x->s.lim = f->lim;
    x->s.traits = f->traits;
    x->s.read_only = read_only;
    x->s.discard_ok = true;
    x->w = w;
    x->f = f;
    w->handles++;
    *ret_s = &TAKE(x)->s;
    return 0;
}

/* One seed gives one trace (RG10). */
static int opener_random(void *arg, void *p, size_t bytes)
{
    struct sim_world *w = arg;
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)p)[i] = (uint8_t)prng_u64(&w->rng);
    return 0;
}

static int opener_open(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    while (!strncmp(name, "./", 2))
        name += 2;
    int r = sim_open(co, arg, name, o->read_only, ret_s);
    return r < 0 ? byre_fail_code(err, SYSTEM, r, "%s: cannot be opened", name) : 0;
}

static bool opener_identity(void *arg, const struct stor *s, uint64_t *ret_a, uint64_t *ret_b)
{
    (void)arg;
    *ret_a = 1;
    *ret_b = ((const struct sim_stor *)s)->f->index;
    return true;
}

struct sim_file *sim_world_find(struct sim_world *w, const char *name)
{
    for (unsigned i = 0; i < w->file_count; i++)
        if (!strcmp(w->files[i]->name, name))
            return w->files[i];
    return NULL;
}

struct sim_file *sim_world_file(struct sim_world *w, const char *name)
{
    ASSERT(w->file_count < SIM_FILES_MAX);
    struct sim_file *f = sim_mem_alloc(sizeof *f);
    f->name = name;
    f->index = w->file_count;
    sim_disk_init(&f->disk, f->index);
    f->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    f->traits = (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true, .can_punch = true, .can_zero = true };
    w->files[w->file_count++] = f;
    return f;
}

int sim_world_new(uint64_t seed, unsigned loops, struct sim_world **ret_w)
{
    struct sim_world *w = sim_mem_alloc(sizeof *w);
    w->opener = (struct graph_opener){ .open = opener_open, .identity = opener_identity, .random = opener_random, .arg = w };
    sim_world_restart(w, seed);
    int r = rt_new_sim(&sim_backend_ops, w, loops, &w->rt);
    if (r < 0) {
        sim_mem_free(w);
        return r;
    }
    *ret_w = w;
    return 0;
}

void sim_world_restart(struct sim_world *w, uint64_t seed)
{
    ASSERT(!w->heap_count);
    prng_init(&w->rng, seed);
    w->now_ns = 1000000;
    w->stamp = 0;
    w->event_seq = 0;
}

void sim_world_free(struct sim_world *w)
{
    rt_free(w->rt);
    for (unsigned i = 0; i < w->file_count; i++) {
        sim_disk_fini(&w->files[i]->disk);
        sim_mem_free(w->files[i]);
    }
    sim_mem_free(w->heap);
    sim_mem_free(w);
}
