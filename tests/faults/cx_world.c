/* SPDX-License-Identifier: MIT
 *
 * cx_world.c: simulated scheduler and recording store.
 *
 * Purpose      Everything that the engine sees of the machine, from one seed.
 * Owns         The runtime, the bytes of both files, the log.
 * Invariants   I1 Bytes behind a file's length are zero.
 *              I2 An operation's stamps lie around the moment its bytes were taken.
 * Order        None of its own: it shows what order the engine asked for.
 * Concurrency  One thread; operations suspend a seeded number of times.
 * Failure      Faults are injected at the store's edge; the simulator itself ends the program when memory runs out.
 * Tests        test_faults.py
 */
#include "cx_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fx_luks.h"
#include "rt/backend.h"
#include "rt/rt_priv.h"

static void *must(void *p)
{
    if (!p) {
        fputs("byre-crash: no memory\n", stderr);
        abort();
    }
    return p;
}

/* ---- loop backend: nothing to wait for but the clock ---- */

static int b_init(struct rt_loop *loop, void **ret_state)
{
    *ret_state = rt_loop_backend_arg(loop);
    return 0;
}
static void b_fini(void *state) { (void)state; }
static void b_submit(void *state, struct rt_req *r)
{
    (void)state;
    (void)r;
    UNREACHABLE();
}
static void b_cancel(void *state, struct rt_req *r)
{
    (void)state;
    (void)r;
}
static void b_wait(void *state, uint64_t timeout_ns)
{
    (void)state;
    (void)timeout_ns;
}
static void b_wakeup(void *state) { (void)state; }
static uint64_t b_now(void *state) { return ((struct cx_world *)state)->clock_ns; }
static size_t b_pick(void *state, size_t n) { return prng_below(&((struct cx_world *)state)->sched, n); }
static const struct rt_backend_ops backend = { "sim", b_init, b_fini, b_submit, b_cancel, b_wait, b_wakeup, b_now, b_pick };

/* ---- store ---- */

struct cx_stor { struct stor s; struct cx_world *w; struct cx_bytes *b; bool image, data, device; };
static struct cx_stor *of(struct stor *s) { return (struct cx_stor *)s; }

static void pause_some(struct co *co, struct cx_world *w)
{
    if (!w->jitter)
        return;
    /* mostly short; now and then so long that whole other requests, passes and reuse go by */
    uint64_t n = prng_below(&w->sched, 24) ? prng_below(&w->sched, 4) : prng_below(&w->sched, 400);
    for (; n; n--)
        co_yield(co);
}

static struct cx_op *record(struct cx_stor *s, enum cx_op_kind kind, uint64_t off, uint64_t len)
{
    struct cx_world *w = s->w;
    if (!w->recording || !(s->image || s->data))
        return NULL;
    if (w->log_count == w->log_cap) {
        w->log_cap = w->log_cap ? w->log_cap * 2 : 256;
        w->log = must(realloc(w->log, w->log_cap * sizeof *w->log));
    }
    w->log[w->log_count] = (struct cx_op){ .kind = kind, .in_data = s->data, .off = off, .len = len, .issued = w->now++ };
    w->trace = (w->trace ^ (kind + off * 31 + len * 131)) * 0x9fb21c651e98df25ull;
    return &w->log[w->log_count++];
}

/* The log may have moved since: operations are found again by their place. */
static size_t place(struct cx_world *w, const struct cx_op *o) { return o ? (size_t)(o - w->log) : SIZE_MAX; }
static void completed(struct cx_world *w, size_t at)
{
    if (at != SIZE_MAX)
        w->log[at].completed = w->now++;
}

void cx_believe(struct cx_world *w)
{
    for (size_t i = 0; i < w->log_count; i++)
        if (w->log[i].kind != CX_FLUSH && !w->log[i].completed)
            w->log[i].completed = w->now++;
}

/* Does this call fail? 0, negative errno, or 1: it is cut short. */
static int fault_world(struct cx_world *w, enum cx_fault_kind kind)
{
    struct cx_faults *f = &w->faults;
    f->calls[kind]++;
    if (!f->nth || f->kind != kind || f->calls[kind] < f->nth || (f->calls[kind] > f->nth && !f->forever))
        return 0;
    f->hits++;
    return f->short_transfer ? 1 : -f->error;
}
static int fault(struct cx_stor *s, enum cx_fault_kind kind) { return fault_world(s->w, kind); }
/* The same for calls that may do their work and report an error all the same: then *ret_late is what to report. */
static int fault_late(struct cx_stor *s, enum cx_fault_kind kind, int *ret_late)
{
    int f = fault(s, kind);
    bool late = f < 0 && s->w->faults.late;
    *ret_late = late ? f : 0;
    return late ? 0 : f;
}
static struct iov cut_short(const struct cx_world *w, struct iov v)
{
    return w->faults.nothing ? iov_slice(v, 0, 0) : v.len_bytes > 1 ? iov_slice(v, 0, v.len_bytes / 2) : v;
}

/* Where a write must end. A device does not grow. */
static uint64_t room(const struct cx_stor *s) { return s->device ? s->b->len : CX_FILE_MAX; }

static int64_t s_preadv(struct co *co, struct stor *st, struct iov v, uint64_t off)
{
    struct cx_stor *s = of(st);
    int f = fault(s, CX_F_READ);
    if (f < 0)
        return f;
    if (f)
        v = cut_short(s->w, v);
    pause_some(co, s->w);
    if (off >= s->b->len)
        return 0;
    uint64_t n = min_u64(v.len_bytes, s->b->len - off);
    iov_from_buf(v, s->b->data + off, n);
    return (int64_t)n;
}

static int64_t s_pwritev(struct co *co, struct stor *st, struct iov v, uint64_t off, unsigned flags)
{
    struct cx_stor *s = of(st);
    (void)flags;
    int late, f = fault_late(s, CX_F_WRITE, &late);
    if (f < 0)
        return f;
    if (f)
        v = cut_short(s->w, v);
    if (!v.len_bytes)
        return 0;
    if (s->w->lies >> CX_F_WRITE & 1)
        return (int64_t)v.len_bytes;
    if (!range_inside(off, v.len_bytes, room(s)))
        return -ENOSPC;
    size_t at = place(s->w, record(s, CX_WRITE, off, v.len_bytes));
    pause_some(co, s->w);
    iov_to_buf(v, s->b->data + off, v.len_bytes);
    s->b->len = max_u64(s->b->len, off + v.len_bytes);
    if (at != SIZE_MAX) {
        s->w->log[at].data = must(malloc(v.len_bytes));
        memcpy(s->w->log[at].data, s->b->data + off, v.len_bytes);
    }
    pause_some(co, s->w);
    if (late)
        return late;
    completed(s->w, at);
    return (int64_t)v.len_bytes;
}

static int s_flush(struct co *co, struct stor *st)
{
    struct cx_stor *s = of(st);
    int f = fault(s, CX_F_FLUSH);
    if (f)
        return f < 0 ? f : -EIO;
    if (s->w->lies >> CX_F_FLUSH & 1)
        return 0;
    size_t at = place(s->w, record(s, CX_FLUSH, 0, 0));
    pause_some(co, s->w);
    completed(s->w, at);
    return 0;
}

static int zero_range(struct co *co, struct cx_stor *s, uint64_t off, uint64_t len, int late)
{
    size_t at = place(s->w, record(s, CX_ZERO, off, len));
    pause_some(co, s->w);
    s->b->len = max_u64(s->b->len, off + len);
    memset(s->b->data + off, 0, len);
    pause_some(co, s->w);
    if (!late)
        completed(s->w, at);
    return late;
}

static int s_zero(struct co *co, struct stor *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct cx_stor *s = of(st);
    (void)flags;
    int late, f = fault_late(s, CX_F_ZERO, &late);
    if (f)
        return f < 0 ? f : -EIO;
    if (!s->s.traits.can_zero)
        return -ENOTSUP;
    return range_inside(off, len, room(s)) ? zero_range(co, s, off, len, late) : -ENOSPC;
}

static int s_discard(struct co *co, struct stor *st, uint64_t off, uint64_t len)
{
    struct cx_stor *s = of(st);
    int late, f = fault_late(s, CX_F_DISCARD, &late);
    if (f)
        return f < 0 ? f : -EIO;
    if (off >= s->b->len || s->device)           /* a device may leave there what it held */
        return late;
    return zero_range(co, s, off, min_u64(len, s->b->len - off), late);
}

static int s_truncate(struct co *co, struct stor *st, uint64_t len)
{
    struct cx_stor *s = of(st);
    int late, f = fault_late(s, CX_F_TRUNCATE, &late);
    if (f)
        return f < 0 ? f : -EIO;
    if (s->device || len > CX_FILE_MAX)
        return -ENOSPC;
    size_t at = place(s->w, record(s, CX_TRUNCATE, 0, len));
    pause_some(co, s->w);
    if (len < s->b->len)
        memset(s->b->data + len, 0, s->b->len - len);
    s->b->len = len;
    pause_some(co, s->w);
    if (!late)
        completed(s->w, at);
    return late;
}

static int s_length(struct co *co, struct stor *st, uint64_t *ret_len)
{
    (void)co;
    int f = fault(of(st), CX_F_LENGTH);
    if (f)
        return f < 0 ? f : -EIO;
    *ret_len = of(st)->b->len;
    return 0;
}

static int s_extent(struct co *co, struct stor *st, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    (void)co;
    (void)st;
    *ret_e = (struct stor_extent){ STOR_DATA, off, len };
    return 0;
}

static int s_lock(struct co *co, struct stor *st, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err)
{
    (void)co;
    (void)st;
    (void)beside;
    (void)perm;
    (void)shared;
    (void)err;
    return 0;
}

static int s_allocated(struct co *co, struct stor *st, uint64_t *ret_bytes)
{
    return s_length(co, st, ret_bytes);
}

static void s_close(struct co *co, struct stor *st)
{
    (void)co;
    of(st)->w->open_stores--;
    stor_fini(st);
    free(st);
}

static const struct stor_ops ops = { .name = "sim", .preadv = s_preadv, .pwritev = s_pwritev, .flush = s_flush, .zero = s_zero, .discard = s_discard,
    .truncate = s_truncate, .length = s_length, .extent = s_extent, .lock = s_lock, .allocated = s_allocated, .close = s_close };

int cx_store_open(struct cx_world *w, const char *name, bool read_only, struct stor **ret_s)
{
    struct cx_stor *s = calloc(1, sizeof *s);
    int r = s ? stor_init(&s->s, &ops, name) : -ENOMEM;
    if (r < 0) {
        free(s);
        return r;
    }
    s->w = w;
    w->open_stores++;
    s->image = strcmp(name, "img") == 0;
    s->data = strcmp(name, "data") == 0;
    s->b = s->image ? &w->image : s->data ? &w->data : &w->backing;
    s->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = CX_SECTOR };
    s->device = s->image && w->device;
    s->s.traits = s->device ? (struct stor_traits){ .can_punch = true }
                            : (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true, .can_punch = true, .can_zero = true };
    s->s.read_only = read_only;
    s->s.discard_ok = w->punch;
    *ret_s = &s->s;
    return 0;
}

static int open_file(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    (void)co;
    if (strcmp(name, "img") && strcmp(name, "base") && strcmp(name, "data"))
        return byre_fail(err, NOT_FOUND, "%s: no such file", name);
    int f = fault_world(arg, CX_F_OPEN);
    if (f < 0)
        return byre_fail_code(err, SYSTEM, f, "%s", name);
    int r = cx_store_open(arg, name, o->read_only, ret_s);
    return r < 0 ? byre_fail(err, NOMEM, "%s", name) : 0;
}

static bool identity(void *arg, const struct stor *s, uint64_t *ret_a, uint64_t *ret_b)
{
    (void)arg;
    *ret_a = 1;
    *ret_b = ((const struct cx_stor *)s)->image + 2u * ((const struct cx_stor *)s)->data;
    return true;
}

/* ---- the world ---- */

void cx_world_init(struct cx_world *w)
{
    *w = (struct cx_world){ .punch = true };
    w->image.data = must(calloc(1, CX_FILE_MAX));
    w->backing.data = must(calloc(1, CX_FILE_MAX));
    w->data.data = must(calloc(1, CX_FILE_MAX));
    if (rt_new_sim(&backend, w, 1, &w->rt) < 0)
        must(NULL);
    w->loop = rt_loop_at(w->rt, 0);
    cx_world_seed(w, 0);
}

void cx_world_fini(struct cx_world *w)
{
    cx_log_clear(w);
    free(w->log);
    rt_free(w->rt);
    free(w->image.data);
    free(w->backing.data);
    free(w->data.data);
}

void cx_world_seed(struct cx_world *w, uint64_t seed)
{
    prng_init(&w->sched, seed);
    co_pool_fini(w->loop);
    cx_log_clear(w);
    w->now = 1;
    w->trace = seed;
}

void cx_log_clear(struct cx_world *w)
{
    for (size_t i = 0; i < w->log_count; i++)
        free(w->log[i].data);
    w->log_count = 0;
}

struct run { cx_body *body; void *arg; bool done; };

static void run_co(struct co *co, void *arg)
{
    struct run *r = arg;
    r->body(co, r->arg);
    r->done = true;
}

bool cx_run(struct cx_world *w, cx_body *body, void *arg)
{
    struct run r = { body, arg, false };
    if (rt_spawn_on(w->loop, run_co, &r) < 0)
        must(NULL);
    for (unsigned idle = 0; !r.done;) {
        if (rt_loop_step(w->loop)) {
            idle = 0;
            continue;
        }
        uint64_t t = rt_loop_next_timer(w->loop);
        if (t != UINT64_MAX) {
            w->clock_ns = max_u64(t, w->clock_ns);
            rt_loop_fire_timers(w->loop);
        } else if (++idle > 1000) {
            return false;
        }
    }
    while (rt_loop_step(w->loop))
        ;
    return true;
}

int cx_open(struct co *co, struct cx_world *w, bool read_only, bool check_mode, struct byre_err *err)
{
    struct graph_opener opener = { .open = open_file, .identity = identity, .arg = w };
    struct graph_opts go = { .opener = &opener, .secrets = w->keys ? fx_secrets() : NULL };
    int r = graph_new(w->loop, &go, &w->graph, err);
    if (r < 0)
        return r;
    struct graph_open_opts o = { .filename = "img", .format = w->qed ? "qed" : "qcow2", .read_only = read_only, .discard = w->punch };
    o.fmt = (struct fmt_open_opts){ .check_mode = check_mode, .frontier_bytes = w->frontier_bytes, .cache_bytes = w->cache_bytes, .unclean_ok = w->unclean_ok, .bitmap_region_bytes = w->bitmap_region };
    unsigned left = w->keys;
    do {
        o.key_secret = left ? fx_key_names[left & FX_KEY_A ? 0 : 1] : NULL;
        left &= left - 1;
        r = graph_open(co, w->graph, &o, &w->node, err);
    } while (r < 0 && left && !strcmp(err->reason, "WRONG_SECRET"));
    if (r < 0) {
        graph_free(w->graph);
        w->graph = NULL;
        w->node = NULL;
    }
    return r;
}

int cx_close(struct co *co, struct cx_world *w)
{
    int r = graph_close(co, w->node);
    graph_free(w->graph);
    w->node = NULL;
    w->graph = NULL;
    return r;
}

void cx_image_blank(struct cx_world *w)
{
    memset(w->image.data, w->device ? 0xa5 : 0, max_u64(w->image.len, w->device));
    if (w->image.len > w->device)                /* I1 */
        memset(w->image.data + w->device, 0, w->image.len - w->device);
    w->image.len = w->device;
}

void cx_bytes_copy(struct cx_bytes *to, const struct cx_bytes *from)
{
    memcpy(to->data, from->data, from->len);
    if (to->len > from->len)                     /* I1: what lies behind both is zero already */
        memset(to->data + from->len, 0, to->len - from->len);
    to->len = from->len;
}

void cx_apply(struct cx_bytes *b, const struct cx_op *o, uint64_t from, uint64_t to)
{
    if (o->kind == CX_TRUNCATE) {
        if (o->len < b->len)
            memset(b->data + o->len, 0, b->len - o->len);
        b->len = o->len;
        return;
    }
    b->len = max_u64(b->len, o->off + to);
    if (o->kind == CX_WRITE)
        memcpy(b->data + o->off + from, o->data + from, to - from);
    else
        memset(b->data + o->off + from, 0, to - from);
}

uint64_t cx_durable_stamp(const struct cx_world *w, uint64_t cut, bool in_data)
{
    uint64_t f = 0;
    for (size_t i = 0; i < w->log_count; i++) {
        const struct cx_op *o = &w->log[i];
        if (o->kind == CX_FLUSH && o->in_data == in_data && o->completed && o->completed < cut && o->issued > f)
            f = o->issued;
    }
    return f;
}

void cx_data_back(struct cx_world *w)
{
    static const struct cx_bytes nothing = { NULL, 0 };
    const struct cx_bytes *from = w->data_from ? w->data_from : &nothing;
    if (from->len)
        cx_bytes_copy(&w->data, from);
    else
        memset(w->data.data, 0, w->data.len);
    w->data.len = from->len;
}

void cx_state_random(struct cx_world *w, const struct cx_bytes *from, uint64_t cut, struct prng *p)
{
    uint64_t durable[2] = { cx_durable_stamp(w, cut, false), cx_durable_stamp(w, cut, true) };
    cx_bytes_copy(&w->image, from);
    cx_data_back(w);
    for (size_t i = 0; i < w->log_count; i++) {
        const struct cx_op *o = &w->log[i];
        if (o->kind == CX_FLUSH || o->issued >= cut || (o->kind == CX_WRITE && !o->data))
            continue;
        uint64_t to = o->len;
        if (!(o->completed && o->completed < durable[o->in_data])) {
            uint64_t dice = prng_below(p, 4);
            if (dice < 2)
                continue;
            if (dice == 2 && o->kind == CX_WRITE && o->len > CX_SECTOR)
                to = CX_SECTOR * (1 + prng_below(p, o->len / CX_SECTOR));
        }
        cx_apply(o->in_data ? &w->data : &w->image, o, 0, min_u64(to, o->len));
    }
}
