/* SPDX-License-Identifier: MIT
 *
 * record.c: runs a workload on the engine, live, and notes what was asked for and promised.
 *
 * Purpose      Produces the trace that the explorer cuts.
 * Owns         The run.
 * Invariants   R1  A request is noted as issued before the engine sees it, and as acknowledged after it has answered.
 *              R2  Everything read on the way must be legal at that moment (sim_model_live).
 * Order        None.
 * Concurrency  Requests that are "beside" each other run as coroutines of their own, spread over the world's loops.
 * Failure      -1 and a sentence in `why`.
 * Tests        tests/crash
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "job/commit.h"
#include "rt/backend.h"
#include "rt/sync.h"
#include "sim/luks.h"
#include "sim/mem.h"
#include "sim/workload.h"

struct run {
    struct sim_record *r;
    struct graph *g;
    struct graph_node *n;
    struct sim_model model;              /* as the guest knows it now */
    struct behind *behind;               /* requests that nobody waits for yet */
    bool hurried;                        /* there are some */
};

/* ---- opening ---- */

int sim_graph_new(struct sim_world *w, struct co *co, struct graph **ret_g, struct byre_err *err)
{
    struct graph_opts o = { .opener = &w->opener, .secrets = sim_luks_secrets() };
    return graph_new(co_loop(co), &o, ret_g, err);
}

int sim_disk_open(struct co *co, struct graph *g, const struct sim_geom *geom, bool read_only, bool check_mode, struct graph_node **ret_n, struct byre_err *err)
{
    struct graph_open_opts o = { .filename = SIM_DISK_NAME, .format = sim_geom_format(geom), .read_only = read_only, .discard = true,
        .no_backing = check_mode, .fmt = { .check_mode = check_mode, .discard_no_unref = geom->keep && !check_mode, .frontier_bytes = geom->frontier, .bitmap_region_bytes = geom->bitmap_region, .unclean_ok = geom->scrub, .cache_clean_ms = geom->clean } };
    if (geom->luks)
        o.key_secret = SIM_LUKS_SECRET;
    return graph_open(co, g, &o, ret_n, err);
}

/* ---- notes ---- */

__attribute__((format(printf, 2, 3))) static int wrong(struct run *u, const char *fmt, ...)
{
    va_list ap;
    if (!u->r->why[0]) {
        va_start(ap, fmt);
        vsnprintf(u->r->why, sizeof u->r->why, fmt, ap);
        va_end(ap);
    }
    return -1;
}

static struct sim_note *note(struct run *u, enum sim_note_kind kind, uint32_t id)
{
    struct sim_note *n = sim_trace_note(u->r->trace, kind, sim_stamp(u->r->w));
    n->id = id;
    return n;
}

static void tell(struct run *u, const struct sim_note *n) { sim_model_apply(&u->model, n); }

/* Notes the end of a request; with may_fail a failure is no fault of the run. */
static int ended(struct run *u, uint32_t id, int r, enum sim_note_kind ok, enum sim_note_kind bad, const char *what)
{
    tell(u, note(u, r < 0 ? bad : ok, id));
    if (r == 0)
        return 0;
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    if (!u->r->may_fail)
        return wrong(u, "%s failed: %s", what, strerror(-r));
    return 0;
}

/* ---- requests ---- */

static int do_write(struct co *co, struct run *u, const struct sim_wop *o)
{
    uint32_t id = u->r->next_id++, gen = u->r->next_gen++;
    uint64_t len = (uint64_t)o->len * SIM_SECTOR;
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, 4096, len))
        return -ENOMEM;
    for (uint32_t i = 0; i < o->len; i++)
        sim_sector_fill(buf + (size_t)i * SIM_SECTOR, gen, o->off + i);
    struct sim_note *n = note(u, SIM_N_WRITE, id);
    n->gen = gen;
    n->off = (uint64_t)o->off * SIM_SECTOR;
    n->len = len;
    tell(u, n);
    struct iovec slot;
    int r = graph_write(co, u->n, iov_one(&slot, buf, len), (uint64_t)o->off * SIM_SECTOR, o->kind == 'c' ? GRAPH_COMPRESS : 0);
    int rc = ended(u, id, r, SIM_N_ACK, SIM_N_FAIL, "write");
    memset(buf, 0xee, len);              /* a write that is still reading it would show */
    free(buf);
    return rc;
}

/* What each sector of a range may hold when a read of it begins. */
#define BEGAN_MAX 8u
struct began { uint32_t n, gen[BEGAN_MAX]; };

static struct began *read_begins(struct run *u, uint64_t off, uint64_t len, uint64_t now)
{
    struct began *b = sim_mem_alloc(len / SIM_SECTOR * sizeof *b);
    for (uint64_t i = 0; i < len / SIM_SECTOR; i++)
        b[i].n = sim_model_list(&u->model, off / SIM_SECTOR + i, now, b[i].gen, BEGAN_MAX);
    return b;
}

static bool was_legal(const struct began *b, uint32_t gen)
{
    for (uint32_t i = 0; i < b->n; i++)
        if (b->gen[i] == gen)
            return true;
    return false;
}

/* Reads a range; every sector must be legal at some time while that goes on. gens: NULL or one per sector. */
static int read_range(struct co *co, struct run *u, uint64_t off, uint64_t len, uint32_t *gens)
{
    uint64_t issued = sim_stamp(u->r->w);
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, 4096, len))
        return -ENOMEM;
    struct iovec slot;
    struct began *began = read_begins(u, off, len, issued);
    int r = graph_read(co, u->n, iov_one(&slot, buf, len), off), rc = 0;
    if (r < 0)
        rc = u->r->may_fail ? 0 : wrong(u, "read of sector %llu failed: %s", (unsigned long long)(off / SIM_SECTOR), strerror(-r));
    for (uint64_t i = 0; r == 0 && i < len / SIM_SECTOR; i++) {
        uint64_t s = off / SIM_SECTOR + i;
        uint32_t gen = sim_sector_gen(buf + i * SIM_SECTOR, s);
        char legal[64];
        if (gens)
            gens[i] = gen;
        if (was_legal(&began[i], gen) || sim_model_live(&u->model, s, gen, issued))
            continue;
        sim_model_describe(&u->model, s, legal, sizeof legal);
        rc = wrong(u, "a read in the run found %u in sector %llu, legal: %s", gen, (unsigned long long)s, legal);
        break;
    }
    sim_mem_free(began);
    free(buf);
    return r < 0 && rc == 0 ? -EAGAIN : rc;
}

static int do_clear(struct co *co, struct run *u, const struct sim_wop *o, bool alone)
{
    uint32_t id = u->r->next_id++;
    uint64_t off = (uint64_t)o->off * SIM_SECTOR, len = (uint64_t)o->len * SIM_SECTOR;
    struct sim_note *n = note(u, o->kind == 'd' ? SIM_N_DISCARD : SIM_N_ZERO, id);
    n->off = off;
    n->len = len;
    tell(u, n);
    int r = o->kind == 'd' ? graph_discard(co, u->n, off, len) : graph_zero(co, u->n, off, len, o->kind == 'u' ? GRAPH_UNMAP : 0);
    int rc = ended(u, id, r, SIM_N_ACK, SIM_N_FAIL, o->kind == 'd' ? "discard" : "zero");
    if (rc < 0 || r < 0 || o->kind != 'd' || !alone)
        return rc;
    uint32_t *gens = sim_trace_alloc(u->r->trace, o->len * sizeof *gens);
    rc = read_range(co, u, off, len, gens);
    if (rc == -EAGAIN)
        return 0;
    if (rc == 0) {
        n = note(u, SIM_N_SEEN, id);
        n->gens = gens;
        tell(u, n);
    }
    return rc;
}

static int do_clone(struct co *co, struct run *u, const struct sim_wop *o)
{
    uint32_t id = u->r->next_id++;
    struct sim_note *n = note(u, SIM_N_CLONE, id);
    n->off = (uint64_t)o->to * SIM_SECTOR;
    n->len = (uint64_t)o->len * SIM_SECTOR;
    n->from = (uint64_t)o->off * SIM_SECTOR;
    tell(u, n);
    int r = graph_clone(co, u->n, (uint64_t)o->off * SIM_SECTOR, (uint64_t)o->to * SIM_SECTOR, (uint64_t)o->len * SIM_SECTOR);
    return ended(u, id, r, SIM_N_ACK, SIM_N_FAIL, "clone");
}

static int do_flush(struct co *co, struct run *u)
{
    uint32_t id = u->r->next_id++;
    tell(u, note(u, SIM_N_FLUSH, id));
    int r = graph_flush(co, u->n);
    if (r < 0) {
        u->r->errors++;
        if (!u->r->first_error)
            u->r->first_error = r;
        return u->r->may_fail ? 0 : wrong(u, "flush failed: %s", strerror(-r));
    }
    u->r->flushed = true;
    tell(u, note(u, SIM_N_FLUSH_ACK, id));
    return 0;
}

/* Then it refuses what changes it as a whole. */
static bool unclean(const struct run *u) { return atomic_load(&graph_image(u->n)->unclean); }

static int do_resize(struct co *co, struct run *u, uint64_t size, enum fmt_prealloc prealloc)
{
    uint32_t id = u->r->next_id++;
    struct byre_err err = { 0 };
    if (unclean(u))
        return 0;
    struct sim_note *n = note(u, SIM_N_RESIZE, id);
    n->len = size;
    tell(u, n);
    int r = graph_resize(co, u->n, size, prealloc, &err);
    n = note(u, r < 0 ? SIM_N_RESIZE_FAIL : SIM_N_RESIZE_ACK, id);
    n->len = size;
    if (r < 0 && u->r->may_fail && graph_length(u->n) == size) {      /* done, but not tidied up */
        n->kind = SIM_N_RESIZE_ACK;
    }
    tell(u, n);
    if (r < 0) {
        u->r->errors++;
        if (!u->r->first_error)
            u->r->first_error = r;
    }
    return r < 0 && !u->r->may_fail ? wrong(u, "resize failed: %s", err.text) : 0;
}

/* ---- snapshots ---- */

static const char *snap_name(char *buf, size_t bytes, uint32_t number)
{
    snprintf(buf, bytes, number ? "k%u" : "s1", number);
    return buf;
}

/* What the disk holds now, as the guest reads it; what is in no window is not known. NULL: reading failed. */
static uint32_t *learn(struct co *co, struct run *u, int *ret_rc)
{
    const struct sim_image *im = u->r->im;
    uint32_t *gens = sim_trace_alloc(u->r->trace, im->sectors * sizeof *gens);
    for (uint64_t s = 0; s < im->sectors; s++)
        gens[s] = SIM_GEN_NONE;
    *ret_rc = 0;
    for (unsigned i = 0; i < im->g->windows && *ret_rc == 0; i++) {
        uint64_t off = im->g->window[i].off, end = min_u64(off + im->g->window[i].len, graph_length(u->n));
        if (end > off)
            *ret_rc = read_range(co, u, off, end - off, gens + off / SIM_SECTOR);
    }
    return *ret_rc ? NULL : gens;
}

/* Is the snapshot in the state that the operation needs? */
static bool snap_ready(const struct run *u, const struct sim_wop *o)
{
    if (o->len >= SIM_SNAPS_MAX || sim_model_loose(&u->model) || unclean(u))
        return false;
    return u->model.snap[o->len].state == (o->kind == 'k' ? SIM_SNAP_NONE : SIM_SNAP_THERE);
}

static int do_snap(struct co *co, struct run *u, const struct sim_wop *o)
{
    struct byre_err err = { 0 };
    char name[8];
    int rc = 0;
    if (!snap_ready(u, o))
        return 0;
    snap_name(name, sizeof name, o->len);
    struct fmt_snapshot_req rq = { .op = o->kind == 'k' ? FMT_SNAPSHOT_CREATE : o->kind == 'a' ? FMT_SNAPSHOT_APPLY : FMT_SNAPSHOT_DELETE,
        .name = name, .unique = true, .pick = { .name = name }, .date_sec = 1700000000 };
    uint32_t *gens = o->kind == 'k' ? learn(co, u, &rc) : NULL, flush = u->r->next_id++;
    if (rc)
        return rc == -EAGAIN ? 0 : rc;
    tell(u, note(u, SIM_N_FLUSH, flush));
    struct sim_note *n = note(u, o->kind == 'k' ? SIM_N_SNAP_CREATE : o->kind == 'a' ? SIM_N_SNAP_APPLY : SIM_N_SNAP_DELETE, o->len);
    n->gens = gens;
    n->len = graph_length(u->n);
    tell(u, n);
    int r = graph_snapshot(co, u->n, &rq, NULL, &err);
    if (r == 0)                              /* it makes durable what was there before */
        tell(u, note(u, SIM_N_FLUSH_ACK, flush));
    tell(u, note(u, r < 0 ? SIM_N_SNAP_FAIL : SIM_N_SNAP_ACK, o->len));
    u->r->flushed |= r == 0;
    if (r == 0)
        return 0;
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "snapshot operation '%c %u' failed: %s", o->kind, o->len, err.text);
}

/* An action that makes no sense now is left out. */
static int do_bitmap(struct co *co, struct run *u, const struct sim_wop *o)
{
    const char *name = sim_bitmap_name[o->off], *from = sim_bitmap_name[o->kind == 'M' ? o->len : 0];
    struct byre_err err = { 0 };
    if (!sim_bitmap_can(&u->model, o->kind, o->off, o->kind == 'M' ? o->len : 0))
        return 0;
    uint32_t id = u->r->next_id++;
    struct sim_note *n = note(u, SIM_N_BITMAP, id);
    n->gen = (uint32_t)o->kind;
    n->off = o->off;
    n->len = o->len;
    tell(u, n);
    struct graph_bitmap_spec spec = { name, 1024, true, false };
    struct graph_bitmap_ref src = { u->n, from };
    int r = o->kind == 'A' ? graph_bitmap_add(co, u->n, &spec, &err) : o->kind == 'X' ? graph_bitmap_remove(co, u->n, name, &err)
          : o->kind == 'C' ? graph_bitmap_clear(co, u->n, name, &err) : o->kind == 'M' ? graph_bitmap_merge(co, u->n, name, &src, 1, &err)
                           : graph_bitmap_enable(co, u->n, name, o->kind == 'E', &err);
    n = note(u, r < 0 ? SIM_N_BITMAP_FAIL : SIM_N_BITMAP_ACK, id);
    n->gen = (uint32_t)o->kind;
    n->off = o->off;
    n->len = o->len;
    tell(u, n);
    if (r < 0) {
        u->r->errors++;
        if (!u->r->first_error)
            u->r->first_error = r;
    }
    return r < 0 && !u->r->may_fail ? wrong(u, "bitmap action %c failed: %s", o->kind, err.text) : 0;
}

static int do_close(struct co *co, struct run *u)
{
    uint32_t id = u->r->next_id++;
    if (!u->n)
        return 0;
    tell(u, note(u, SIM_N_FLUSH, id));
    int r = graph_close(co, u->n);
    u->n = NULL;
    if (r < 0) {
        u->r->errors++;
        if (!u->r->first_error)
            u->r->first_error = r;
        return u->r->may_fail ? 0 : wrong(u, "close failed: %s", strerror(-r));
    }
    tell(u, note(u, SIM_N_FLUSH_ACK, id));
    if (u->model.shares)
        tell(u, note(u, SIM_N_CLOSED, id));
    return 0;
}

static int start_behind(struct co *co, struct run *u, const struct sim_wop *o, unsigned i);

/* On a device requests wait for a scrub, which whoever opens it at once starts. */
static int do_open(struct co *co, struct run *u)
{
    static const struct sim_wop scrub_op = { .kind = 'i' }, cancelled[] = { { .kind = 'q', .len = 0 }, { .kind = 'q', .len = 1 }, { .kind = 'q', .len = 2 } };
    struct byre_err err = { 0 };
    int r = sim_disk_open(co, u->g, u->r->im->g, false, false, &u->n, &err);
    const struct sim_wop *scrub = &scrub_op;
    if (r == 0 && u->r->im->g->table && prng_one_in(&u->r->w->rng, 2))
        scrub = &cancelled[prng_below(&u->r->w->rng, 3)];
    if (r == 0)
        return (u->r->im->g->device || u->r->im->g->table) && atomic_load(&graph_image(u->n)->unclean) ? start_behind(co, u, scrub, 0) : 0;
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? -EAGAIN : wrong(u, "open failed: %s", err.text);
}

static int do_repair(struct co *co, struct run *u)
{
    struct byre_err err = { 0 };
    struct graph_node *n;
    int r = sim_disk_open(co, u->g, u->r->im->g, false, true, &n, &err);
    if (r == 0) {
        struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS };
        struct fmt_check_result res = { 0 };
        r = graph_format(n)->check(co, graph_image(n), &o, &res, &err);
        int r2 = graph_close(co, n);
        r = r < 0 ? r : r2;
        if (r == 0 && (res.corruptions || res.leaks || res.check_errors) && !u->r->may_fail)
            return wrong(u, "repair leaves %llu corruptions, %llu leaks", (unsigned long long)res.corruptions, (unsigned long long)res.leaks);
    }
    if (r < 0) {
        u->r->errors++;
        if (!u->r->first_error)
            u->r->first_error = r;
    }
    return r < 0 && !u->r->may_fail ? wrong(u, "repair failed: %s", err.text) : 0;
}

static bool amend_given(void *arg, const char *option)
{
    const struct sim_wop *o = arg;
    static const char *const names[] = { "compat", "refcount_bits", "lazy_refcounts", "data_file_raw" };
    return o->off < 4 && !strcmp(option, names[o->off]);
}

/* What the image cannot become is refused, and that is well. */
static int do_amend(struct co *co, struct run *u, const struct sim_wop *o)
{
    struct byre_err err = { 0 };
    struct sim_wop what = *o;
    struct fmt_create_opts fo = { .version = o->len, .refcount_bits = o->len, .lazy_refcounts = o->len == 2 };
    struct fmt_amend_opts a = { .o = &fo, .given = amend_given, .arg = &what };
    tell(u, note(u, SIM_N_AMEND, 0));
    int r = graph_amend(co, u->n, &a, &err);
    if (r == 0 || !u->r->may_fail)
        tell(u, note(u, SIM_N_AMEND_END, 0));
    if (r == 0 || r == -EINVAL || r == -ENOTSUP || r == -ERANGE)
        return 0;
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "amend failed: %s", err.text);
}

/* Changes no guest byte. What was answered well is there as long as nothing else is asked for; what a crash leaves of it nobody has
 * promised: that the tables are sound and the disk is untouched is what is looked at. */
static int do_state(struct co *co, struct run *u, const struct sim_wop *o)
{
    uint64_t len = (uint64_t)o->len * SIM_SECTOR, off = (uint64_t)o->off * SIM_SECTOR;
    uint8_t *buf = sim_mem_alloc(len);
    struct iovec slot;
    memset(buf, 0xb7, len);
    int r = graph_write_state(co, u->n, iov_one(&slot, buf, len), off);
    if (r == 0) {
        memset(buf, 0, len);
        r = graph_read_state(co, u->n, iov_one(&slot, buf, len), off);
        for (uint64_t i = 0; r == 0 && i < len; i++)
            if (buf[i] != 0xb7)
                r = -EUCLEAN;
    }
    sim_mem_free(buf);
    if (r == 0 || (r < 0 && r != -EUCLEAN && u->r->may_fail)) {
        u->r->errors += r < 0;
        u->r->first_error = r < 0 && !u->r->first_error ? r : u->r->first_error;
        return 0;
    }
    return r == -EUCLEAN ? wrong(u, "the VM state does not hold what was written") : wrong(u, "writing VM state failed: %s", strerror(-r));
}

/* What was answered well is durable. */
static int do_keys(struct co *co, struct run *u, uint32_t what)
{
    struct byre_err err = { 0 };
    struct sim_note *n = note(u, SIM_N_KEYS, 0);
    n->gen = what;
    tell(u, n);
    int r = sim_luks_change(co, u->n, what, &err);
    if (r == 0) {
        n = note(u, SIM_N_KEYS_ACK, 0);
        n->gen = what;
        tell(u, n);
        return 0;
    }
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "key slots: change %u failed: %s", what, err.text);
}

/* ---- chains ---- */

#define CHAIN_WORKERS 2u

/* A name that does not fit in the first sector of a header (E6). */
static const char *far_name(char *buf, size_t bytes, const char *name)
{
    size_t at = 0;
    for (; at < 600; at += 2)
        memcpy(buf + at, "./", 2);
    snprintf(buf + at, bytes - at, "%s", name);
    return buf;
}

static int rebase_away(struct co *co, struct run *u, bool drop, struct byre_err *err)
{
    char far[700];
    const char *now = graph_backing_filename(u->n), *to = now && !strcmp(now, SIM_BASE_NAME) ? SIM_OTHER_NAME : SIM_BASE_NAME;
    if (u->r->im->g->table && !strcmp(to, SIM_OTHER_NAME))
        to = far_name(far, sizeof far, to);
    struct graph_open_opts go = { .filename = to, .format = "raw", .read_only = true, .share = true };
    struct rebase_job job = { .top = u->n, .to = { to, "raw" }, .drop_equal = drop, .how.workers = CHAIN_WORKERS };
    int r = graph_open(co, u->g, &go, &job.backing, err);
    if (r == 0) {
        r = rebase_run(co, &job, NULL, err);
        int c = graph_close(co, job.backing);
        r = r < 0 ? r : c;
    }
    return r;
}

/* Both change no guest byte, and make durable what was acknowledged before. */
static int do_chain(struct co *co, struct run *u, char kind)
{
    struct byre_err err = { 0 };
    struct commit_job job = { .top = u->n, .how.workers = CHAIN_WORKERS };
    uint32_t flush = u->r->next_id++;
    tell(u, note(u, SIM_N_FLUSH, flush));
    int r = kind == 'n' ? commit_run(co, &job, NULL, NULL, &err) : rebase_away(co, u, kind == 'J', &err);
    if (r == 0) {
        tell(u, note(u, SIM_N_FLUSH_ACK, flush));
        u->r->flushed = true;
        return 0;
    }
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "%s failed: %s", kind == 'n' ? "commit" : "rebase", err.text);
}

struct scrub { struct run *u; struct byre_err err; uint32_t steps; bool ends; };          /* ends: cancelled behind so many steps */

static int scrub_step(struct co *co, void *arg)
{
    struct scrub *s = arg;
    (void)co;
    return s->ends && !atomic_load(&graph_image(s->u->n)->unclean) && s->steps-- == 0 ? -ECANCELED : 0;        /* requests wait for the end of that */
}

static int scrub_home(struct co *co, void *arg)
{
    struct scrub *s = arg;
    struct run *u = s->u;
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .step = scrub_step, .arg = s };
    struct fmt_check_result res = { 0 };
    struct fmt_image *im = graph_image(u->n);
    int r = graph_format(u->n)->scrub(co, im, &o, &res, &s->err);
    if (r == -EBUSY || r == 0 || (r == -ECANCELED && s->ends)) {
        if (r == 0 && (res.corruptions || res.check_errors || atomic_load(&im->unclean)) && !u->r->may_fail)
            return wrong(u, "a scrub finds %llu corruptions, %llu errors", (unsigned long long)res.corruptions, (unsigned long long)res.check_errors);
        return 0;
    }
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "a scrub failed: %s", s->err.text);
}

/* Requests of other loops run meanwhile. */
static int do_scrub(struct co *co, struct run *u, const struct sim_wop *o)
{
    struct scrub s = { .u = u, .ends = o->kind == 'q', .steps = o->len };
    return rt_call(co, graph_image(u->n)->home, scrub_home, &s);
}

static int compact_home(struct co *co, void *arg)
{
    struct scrub *s = arg;
    struct run *u = s->u;
    struct fmt_compact_opts o = { .look_for_zeros = true };
    struct fmt_compact_result res = { 0 };
    int r = graph_format(u->n)->compact(co, graph_image(u->n), &o, &res, &s->err);
    if (r == -EBUSY || r == 0)
        return 0;
    u->r->errors++;
    if (!u->r->first_error)
        u->r->first_error = r;
    return u->r->may_fail ? 0 : wrong(u, "a compaction failed: %s", s->err.text);
}

static int do_compact(struct co *co, struct run *u)
{
    struct scrub s = { .u = u };
    return rt_call(co, graph_image(u->n)->home, compact_home, &s);
}

static int join(struct co *co, struct run *u);

static int do_one(struct co *co, struct run *u, const struct sim_wop *o, bool alone)
{
    int r;
    if (strchr("sgorkaxvnjJbK", o->kind)) {
        r = join(co, u);
        if (r < 0)
            return r;
    }
    if (!u->n || (strchr("wczudpl", o->kind) && (uint64_t)max_u64(o->off, o->to) + o->len > graph_length(u->n) / SIM_SECTOR))
        return 0;                        /* the second: a growth was left out */
    switch (o->kind) {
    case 'w':
    case 'c': return do_write(co, u, o);
    case 'l': return do_clone(co, u, o);
    case 'z':
    case 'u':
    case 'd': return do_clear(co, u, o, alone);
    case 'A':
    case 'X':
    case 'C':
    case 'E':
    case 'H':
    case 'M': return do_bitmap(co, u, o);
    case 'f': return do_flush(co, u);
    case 'i':
    case 'q': return do_scrub(co, u, o);
    case 'y': return do_compact(co, u);
    case 't': return co_sleep(co, 2000000);
    case 'v': return do_amend(co, u, o);
    case 'b': return do_state(co, u, o);
    case 'K': return do_keys(co, u, o->len);
    case 'n':
    case 'j':
    case 'J': return do_chain(co, u, o->kind);
    case 's':
    case 'g': return do_resize(co, u, (uint64_t)o->len * SIM_SECTOR, o->kind == 's' ? FMT_PREALLOC_OFF : (enum fmt_prealloc)o->off);
    case 'k':
    case 'a':
    case 'x': return do_snap(co, u, o);
    case 'p':
        r = read_range(co, u, (uint64_t)o->off * SIM_SECTOR, (uint64_t)o->len * SIM_SECTOR, NULL);
        return r == -EAGAIN ? 0 : r;
    case 'o':
    case 'r':
        r = do_close(co, u);
        if (r == 0 && o->kind == 'r')
            r = do_repair(co, u);
        if (r == 0)
            r = do_open(co, u);
        return r == -EAGAIN ? 0 : r;
    }
    return -1;
}

/* ---- at the same time ---- */

struct beside { struct run *u; const struct sim_wop *o; struct co_xevent over; int result; };

static void beside_co(struct co *co, void *arg)
{
    struct beside *b = arg;
    b->result = do_one(co, b->u, b->o, false);
    co_xevent_set(&b->over);
}

static int do_group(struct co *co, struct run *u, const struct sim_wop *o, unsigned count)
{
    struct beside b[SIM_WOPS_MAX];
    unsigned loops = rt_loop_count(u->r->w->rt), started = 0;
    int r = 0;
    for (; started < count; started++) {
        b[started] = (struct beside){ .u = u, .o = &o[started] };
        co_xevent_init(&b[started].over, co_loop(co));
        r = rt_spawn_on(rt_loop_at(u->r->w->rt, started % loops), beside_co, &b[started]);
        if (r < 0)
            break;
    }
    for (unsigned i = 0; i < started; i++) {
        co_xevent_wait(co, &b[i].over);
        if (r == 0)
            r = b[i].result;
    }
    return u->r->may_fail && r == -ENOMEM ? 0 : r;
}

struct behind { struct beside b; struct behind *next; };

static int start_behind(struct co *co, struct run *u, const struct sim_wop *o, unsigned i)
{
    struct behind *x = sim_mem_alloc(sizeof *x);
    x->b = (struct beside){ .u = u, .o = o };
    co_xevent_init(&x->b.over, co_loop(co));
    int r = rt_spawn_on(rt_loop_at(u->r->w->rt, i % rt_loop_count(u->r->w->rt)), beside_co, &x->b);
    if (r < 0) {
        sim_mem_free(x);
        return u->r->may_fail ? 0 : r;
    }
    x->next = u->behind;
    u->behind = x;
    u->hurried = true;
    return co_sleep(co, prng_below(&u->r->w->rng, 2000));      /* let it begin, more or less */
}

static int join(struct co *co, struct run *u)
{
    int r = 0;
    while (u->behind) {
        struct behind *x = u->behind;
        u->behind = x->next;
        co_xevent_wait(co, &x->b.over);
        if (r == 0)
            r = x->b.result;
        sim_mem_free(x);
    }
    u->hurried = false;
    return u->r->may_fail && r == -ENOMEM ? 0 : r;
}

/* ---- the run ---- */

static int read_all(struct co *co, struct run *u)
{
    const struct sim_geom *g = u->r->im->g;
    for (unsigned i = 0; u->n && i < g->windows; i++) {
        uint64_t end = min_u64(g->window[i].off + g->window[i].len, graph_length(u->n));
        int r = end > g->window[i].off ? read_range(co, u, g->window[i].off, end - g->window[i].off, NULL) : 0;
        if (r < 0)
            return r == -EAGAIN ? 0 : r;
    }
    return 0;
}

static int run_ops(struct co *co, struct run *u)
{
    const struct sim_workload *l = u->r->l;
    int r = do_open(co, u);
    for (unsigned i = 0, n; r == 0 && i < l->count; i += n) {
        for (n = 1; i + n < l->count && l->op[i + n].beside; n++)
            ;
        if (l->op[i].behind)
            r = start_behind(co, u, &l->op[i], i);
        else
            r = n == 1 ? do_one(co, u, &l->op[i], !u->hurried) : do_group(co, u, &l->op[i], n);
        if (r == -ENOMEM && u->r->may_fail)
            r = 0;
    }
    int joined = join(co, u);
    if (r == 0)
        r = joined;
    if (r == 0)
        r = read_all(co, u);
    int r2 = do_close(co, u);
    r = r == -EAGAIN ? r2 : r < 0 ? r : r2;
    if (r == 0 && !u->r->errors && sim_bitmaps_judge_exact(&u->model, &sim_world_find(u->r->w, SIM_DISK_NAME)->disk, u->r->why, sizeof u->r->why) < 0)
        r = -1;
    return r;
}

static int run_main(struct co *co, void *arg)
{
    struct run *u = arg;
    struct byre_err err = { 0 };
    int r = sim_graph_new(u->r->w, co, &u->g, &err);
    if (r < 0)
        return u->r->may_fail ? 0 : wrong(u, "%s", err.text);
    r = run_ops(co, u);
    graph_free(u->g);
    return r;
}

int sim_record_run(struct sim_record *r)
{
    struct run u = { .r = r };
    sim_world_restart(r->w, r->seed);
    sim_luks_seed(r->seed);
    r->w->trace = r->trace;
    r->w->direct = false;
    r->next_id = 1;
    r->next_gen = SIM_GEN_USER;
    r->why[0] = 0;
    sim_model_init(&u.model, r->im->sectors, r->im->below);
    sim_model_start(&u.model, r->im->g->size, r->im->gens);
    if (r->im->snap)
        sim_model_has(&u.model, 0, r->im->snap_size, r->im->snap);
    sim_bitmaps_start(&u.model, &sim_world_find(r->w, SIM_DISK_NAME)->disk);
    int rc = sim_run(r->w, run_main, &u, 0);
    sim_model_fini(&u.model);
    r->w->trace = NULL;
    if (rc == -EDEADLK)
        snprintf(r->why, sizeof r->why, "the run hangs: nothing is left that could wake it");
    if (rc == -ETIME)
        snprintf(r->why, sizeof r->why, "the run does not end");
    return rc;
}
