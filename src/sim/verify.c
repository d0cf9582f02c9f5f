/* SPDX-License-Identifier: MIT
 *
 * verify.c: the judgement of one crash state.
 *
 * Purpose      Steps (a) to (i) of verify.h, on the engine itself, in direct mode.
 * Owns         Buffers for what was read and what must be read.
 * Invariants   V1  Every step begins from the crash state itself; what a step changed is taken back.
 *              V2  Verdicts depend on the state and the seed alone.
 * Order        None.
 * Concurrency  One thread; one coroutine per step.
 * Failure      -1 and one sentence.
 * Tests        tests/crash: mutants
 */
#include "sim/verify.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fmt/qcow2/q2_ondisk.h"
#include "rt/backend.h"
#include "rt/sync.h"
#include "sim/luks.h"
#include "sim/mem.h"
#include "sim/workload.h"

#define NESTED_DEPTH_MAX 2u

void sim_verify_init(struct sim_verify *v, struct sim_world *w, const struct sim_image *im)
{
    *v = (struct sim_verify){ .w = w, .im = im, .nested_one_in = 16, .peer_one_in = 256 };
    v->got = sim_mem_alloc(im->sectors * sizeof *v->got);
    v->expect = sim_mem_alloc(im->sectors * sizeof *v->expect);
    v->made_gens = sim_mem_alloc(im->sectors * sizeof *v->made_gens);
    v->buf = sim_mem_alloc(im->sectors * SIM_SECTOR);
}

void sim_verify_fini(struct sim_verify *v)
{
    sim_mem_free(v->got);
    sim_mem_free(v->expect);
    sim_mem_free(v->made_gens);
    sim_mem_free(v->buf);
    *v = (struct sim_verify){ 0 };
}

__attribute__((format(printf, 2, 3))) static int wrong(struct sim_verify *v, const char *fmt, ...)
{
    va_list ap;
    if (!v->why[0]) {
        va_start(ap, fmt);
        vsnprintf(v->why, sizeof v->why, fmt, ap);
        va_end(ap);
    }
    return -1;
}

static struct sim_disk *disk(const struct sim_verify *v) { return &sim_world_find(v->w, SIM_DISK_NAME)->disk; }

/* ---- (b): structure ---- */

static uint64_t leak_bound(const struct sim_verify *v)
{
    const struct sim_geom *g = v->im->g;
    uint64_t cs = 1ull << g->cluster_bits;
    uint64_t snaps = sim_model_loose(v->m) ? (SIM_SNAPS_MAX + 1) * (disk(v)->len / cs) : v->m->snapped || v->made.state ? 2 * div_up(g->size_max / cs / 8, cs / 8) + 8 : 0;
    bool unknown = g->compact || g->chain || g->tail || g->state;      /* copies, and the places that they came from; all that was emptied; VM state on its way */
    uint64_t moved = unknown ? disk(v)->len / cs : 0;
    uint64_t tables = 3 * g->table + (g->unclean ? 3 : 0);       /* QED: each may be of several clusters; what was lost in the beginning */
    return v->in_flight + 2 * (g->frontier / cs) + 4 + snaps + moved + tables;
}

/* Q12: with lazy refcounts counts are judged when the dirty bit is away. Everything else holds all the time. */
static bool is_late(const struct sim_verify *v, const struct sim_audit *a) { return !v->im->g->table && (v->im->g->lazy || v->im->g->scrub) && a->marked; }

/* E1, K2 of qed_mark.c: clusters are lost under the mark only, but for as many as were lost in the beginning. */
static int judge_mark(struct sim_verify *v, const char *when, const struct sim_audit *a)
{
    if (!a->marked && a->leaks > v->im->lost)
        return wrong(v, "%s: %" PRIu64 " clusters are lost, and there is no mark (%" PRIu64 " in the beginning)", when, a->leaks, v->im->lost);
    return 0;
}

static int audit(struct sim_verify *v, const char *when, struct sim_audit *a)
{
    sim_audit(disk(v), a);
    if (v->im->g->unclean && a->marked)  /* as damaged as it was in the beginning */
        return 0;
    if (a->broken)
        return wrong(v, "%s: the file is broken: %s", when, a->text);
    if (a->outside || (a->low && !is_late(v, a)))
        return wrong(v, "%s: %" PRIu64 " counts are too low, %" PRIu64 " references outside: %s", when, a->low, a->outside, a->text);
    if (a->copied_wrong)
        return wrong(v, "%s: COPIED is set wrongly %" PRIu64 " times: %s", when, a->copied_wrong, a->text);
    return v->im->g->table ? judge_mark(v, when, a) : 0;
}

struct findings { char first[160]; uint64_t flags, missing; };

/* How many of the flags that do not fit their counts may be so. One that is missing must be so by what the disk says, too, after clones. */
static uint64_t loose_flags(const struct sim_verify *v, const struct findings *f)
{
    if (sim_model_loose(v->m))
        return f->flags;
    return v->m->shares ? f->flags - (sim_audit_flags_missing(disk(v)) ? 0 : f->missing) : 0;
}

/* Keeps the first finding that is no leak; counts flags that do not fit their counts. */
static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct findings *f = arg;
    bool flag = !strcmp(id, "Q2_COPIED") && !fixed;
    f->flags += flag;
    f->missing += flag && strstr(text, "COPIED is clear");
    if (!f->first[0] && strcmp(id, "Q2_LEAK"))
        snprintf(f->first, sizeof f->first, "%s", text);
}

static int check(struct co *co, struct sim_verify *v, struct graph_node *n, const char *when, unsigned fix, struct fmt_check_result *res)
{
    struct byre_err err = { 0 };
    struct findings f = { .flags = 0 };
    struct fmt_check_opts o = { .fix = fix, .finding = on_finding, .arg = &f };
    int r = graph_format(n)->check(co, graph_image(n), &o, res, &err);
    if (r < 0)
        return wrong(v, "%s: check failed: %s", when, err.text);
    if (!fix)                                      /* Q13: flags beside counts that leak; the audit sees to those that would hurt */
        res->corruptions -= min_u64(res->corruptions, loose_flags(v, &f));
    v->flags = fix ? 0 : f.flags;
    if (res->corruptions || res->check_errors)
        return wrong(v, "%s: check finds %" PRIu64 " corruptions, %" PRIu64 " errors: %s", when, res->corruptions, res->check_errors, f.first);
    return 0;
}

/* ---- (c): content ---- */

static int illegal(struct sim_verify *v, const char *when, uint64_t s, const char *legal)
{
    const uint8_t *p = v->buf + s * SIM_SECTOR;
    uint32_t gen = 0;
    uint64_t at = 0;
    switch (sim_sector_parse(p, &gen, &at)) {
    case SIM_SECTOR_ZERO:
        return wrong(v, "%s: sector %" PRIu64 " reads zeros, legal: %s", when, s, legal);
    case SIM_SECTOR_GUEST:
        return wrong(v, "%s: sector %" PRIu64 " reads what was written as %u for sector %" PRIu64 ", legal: %s", when, s, gen, at, legal);
    case SIM_SECTOR_OTHER:
        break;
    }
    return wrong(v, "%s: sector %" PRIu64 " reads bytes that no guest has written (%02x%02x%02x%02x...), legal: %s", when, s, p[0], p[1], p[2], p[3], legal);
}

/* Ranges that no workload touches must read zeros, by their status. */
static int read_gap(struct co *co, struct sim_verify *v, struct graph_node *n, const char *when, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct graph_status st;
        int r = graph_status(co, n, NULL, off, end - off, &st);
        if (r < 0)
            return wrong(v, "%s: status at %" PRIu64 " failed: %s", when, off, strerror(-r));
        if (!st.zero)
            return wrong(v, "%s: %" PRIu64 " bytes at %" PRIu64 " were never written and do not read zeros", when, st.len, off);
        off += st.len;
    }
    return 0;
}

/* Reads all windows into buf and the generations into got. */
static int read_all(struct co *co, struct sim_verify *v, struct graph_node *n, const char *when)
{
    const struct sim_geom *g = v->im->g;
    uint64_t size = graph_length(n), done = 0;
    for (unsigned i = 0; i < g->windows; i++) {
        uint64_t off = g->window[i].off, end = min_u64(off + g->window[i].len, size);
        int r = read_gap(co, v, n, when, done, min_u64(off, size));
        if (r < 0)
            return r;
        if (end <= off)
            return 0;
        struct iovec slot;
        r = graph_read(co, n, iov_one(&slot, v->buf + off, end - off), off);
        if (r < 0)
            return wrong(v, "%s: reading %" PRIu64 " bytes at %" PRIu64 " failed: %s", when, end - off, off, strerror(-r));
        for (uint64_t s = off / SIM_SECTOR; s < end / SIM_SECTOR; s++)
            v->got[s] = sim_sector_gen(v->buf + s * SIM_SECTOR, s);
        done = end;
    }
    return read_gap(co, v, n, when, done, size);
}

static bool in_window(const struct sim_geom *g, uint64_t s)
{
    for (unsigned i = 0; i < g->windows; i++)
        if (s * SIM_SECTOR >= g->window[i].off && s * SIM_SECTOR < g->window[i].off + g->window[i].len)
            return true;
    return false;
}

static int judge_legal(struct sim_verify *v, const char *when)
{
    char legal[80];
    for (uint64_t s = 0; s < v->size / SIM_SECTOR; s++) {
        if (!in_window(v->im->g, s) || sim_model_allows(v->m, s, v->got[s]))
            continue;
        sim_model_describe(v->m, s, legal, sizeof legal);
        return illegal(v, when, s, legal);
    }
    return 0;
}

/* M5: is the disk wholly what the snapshot that was being applied holds? */
static bool is_applied(const struct sim_verify *v)
{
    const struct sim_snap *a = v->m->applying;
    if (!a || v->size != a->size)
        return false;
    for (uint64_t s = 0; s < v->size / SIM_SECTOR; s++)
        if (in_window(v->im->g, s) && v->got[s] != a->gens[s])
            return false;
    return true;
}

static int judge_same(struct sim_verify *v, const char *when)
{
    char legal[80];
    for (uint64_t s = 0; s < v->size / SIM_SECTOR; s++) {
        if (!in_window(v->im->g, s) || v->got[s] == v->expect[s])
            continue;
        snprintf(legal, sizeof legal, "%u alone", v->expect[s]);
        return illegal(v, when, s, legal);
    }
    return 0;
}

/* ---- (d), (e) ---- */

static const char *snap_name(char *buf, size_t bytes, unsigned number)
{
    snprintf(buf, bytes, number ? "k%u" : "s1", number);
    return buf;
}

/* M5, by the bytes of the file. */
static int judge_snap(struct sim_verify *v, const char *when, unsigned number, uint32_t *ret_there)
{
    const struct sim_snap *s = number == SIM_SNAPS_MAX - 1 && v->made.state ? &v->made : &v->m->snap[number];
    uint32_t *gens = v->got;                             /* free at this moment */
    uint64_t size = 0;
    char name[8];
    snap_name(name, sizeof name, number);
    bool there = sim_audit_snapshot(disk(v), name, v->im->below, gens, v->im->sectors, &size);
    *ret_there += there;
    if (there ? s->state == SIM_SNAP_NONE : s->state == SIM_SNAP_THERE)
        return wrong(v, "%s: snapshot %s is %s", when, name, there ? "still there" : "gone");
    if (there && size != s->size)
        return wrong(v, "%s: snapshot %s has %" PRIu64 " bytes, not %" PRIu64, when, name, size, s->size);
    for (uint64_t k = 0; there && k < min_u64(v->im->sectors, s->size / SIM_SECTOR); k++)
        if (s->gens[k] != SIM_GEN_NONE && gens[k] != s->gens[k])
            return wrong(v, "%s: sector %" PRIu64 " of snapshot %s holds %u, not %u", when, k, name, gens[k], s->gens[k]);
    return 0;
}

static int judge_rest(struct sim_verify *v, const char *when)
{
    uint32_t there = 0, all = sim_audit_snapshots(disk(v));
    for (unsigned i = 0; i < SIM_SNAPS_MAX; i++) {
        int r = judge_snap(v, when, i, &there);
        if (r < 0)
            return r;
    }
    if (there != all)
        return wrong(v, "%s: the header speaks of %u snapshots, there are %u", when, all, there);
    return 0;
}

/* (e): v->expect is what the sectors hold. */
static int judge_bitmaps(struct sim_verify *v, const char *when, enum sim_closed closed)
{
    char why[160];
    enum sim_vanish vanish = !v->im->g->header_full ? SIM_STAY : v->depth ? SIM_VANISH : SIM_VANISH_IN_ACTION;
    if (sim_bitmaps_judge(v->m, disk(v), v->expect, v->size, closed, vanish, why, sizeof why) < 0)
        return wrong(v, "%s: %s", when, why);
    return 0;
}

/* The raw bit, which an amend may have taken away. */
static bool has_raw_bit(const struct sim_verify *v)
{
    uint8_t low;
    sim_disk_read(disk(v), 95, &low, 1);
    return v->im->g->data_raw && low & Q2_AUTOCLEAR_RAW_DATA;
}

/* An external data file that is a raw image of its own holds what the guest reads (1.081). got: what it reads. */
static int judge_raw_file(struct sim_verify *v, const char *when)
{
    const struct sim_file *f = has_raw_bit(v) ? sim_world_find(v->w, SIM_DATA_NAME) : NULL;
    for (uint64_t s = 0; f && s < v->size / SIM_SECTOR; s++) {
        uint8_t sector[SIM_SECTOR];
        sim_disk_read(&f->disk, s * SIM_SECTOR, sector, sizeof sector);
        if (in_window(v->im->g, s) && sim_sector_gen(sector, s) != v->got[s])
            return wrong(v, "%s: sector %" PRIu64 " of the raw data file holds %d, the guest reads %u", when, s, (int)sim_sector_gen(sector, s), v->got[s]);
    }
    return 0;
}

/* ---- opening ---- */

typedef int step_fn(struct co *co, struct sim_verify *v, struct graph *g);

struct step { struct sim_verify *v; step_fn *fn; };

static int step_main(struct co *co, void *arg)
{
    struct step *s = arg;
    struct byre_err err = { 0 };
    struct graph *g;
    int r = sim_graph_new(s->v->w, co, &g, &err);
    if (r < 0)
        return wrong(s->v, "%s", err.text);
    r = s->fn(co, s->v, g);
    graph_free(g);
    return r;
}

static int run_step(struct sim_verify *v, step_fn *fn)
{
    struct step s = { v, fn };
    int r = sim_run(v->w, step_main, &s, 0);
    if (r == -EDEADLK || r == -ETIME)
        return wrong(v, "the engine hangs");
    return r;
}

static int open_disk(struct co *co, struct sim_verify *v, struct graph *g, const char *when, bool read_only, bool check_mode, struct graph_node **ret_n)
{
    struct byre_err err = { 0 };
    struct sim_audit a = { 0 };
    if (v->im->g->scrub && !read_only && !check_mode)
        sim_audit(disk(v), &a);
    int r = sim_disk_open(co, g, v->im->g, read_only, check_mode, ret_n, &err);
    if (r < 0)
        return wrong(v, "%s: opening failed: %s", when, err.text);
    return a.marked && !atomic_load(&graph_image(*ret_n)->unclean) ? wrong(v, "%s: a dirty image was repaired before it opened", when) : 0;
}

static int close_disk(struct co *co, struct sim_verify *v, struct graph_node *n, const char *when, int r)
{
    int c = graph_close(co, n);
    return r < 0 ? r : c < 0 ? wrong(v, "%s: closing failed: %s", when, strerror(-c)) : 0;
}

/* ---- (d) again, as the engine shows a snapshot ---- */

static int view_one(struct co *co, struct sim_verify *v, struct graph *g, const char *when, unsigned number)
{
    const struct sim_snap *s = &v->m->snap[number];
    struct byre_err err = { 0 };
    struct graph_node *n;
    char name[8];
    struct graph_open_opts o = { .filename = SIM_DISK_NAME, .format = "qcow2", .read_only = true, .fmt.snapshot.name = snap_name(name, sizeof name, number),
        .key_secret = v->im->g->luks ? SIM_LUKS_SECRET : NULL };
    int r = graph_open(co, g, &o, &n, &err);
    if (r < 0)
        return wrong(v, "%s: snapshot %s cannot be opened: %s", when, name, err.text);
    if (graph_length(n) != s->size)
        r = wrong(v, "%s: snapshot %s shows %" PRIu64 " bytes, not %" PRIu64, when, name, graph_length(n), s->size);
    if (r == 0)
        r = read_all(co, v, n, when);
    for (uint64_t k = 0; r == 0 && k < min_u64(s->size / SIM_SECTOR, v->im->sectors); k++)
        if (in_window(v->im->g, k) && v->got[k] != s->gens[k])
            r = wrong(v, "%s: sector %" PRIu64 " of snapshot %s reads %u, not %u", when, k, name, v->got[k], s->gens[k]);
    return close_disk(co, v, n, when, r);
}

static int view_snaps(struct co *co, struct sim_verify *v, struct graph *g, const char *when)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < SIM_SNAPS_MAX; i++)
        if (v->m->snap[i].state == SIM_SNAP_THERE && !v->im->g->hurt && !(v->im->g->fill_to && !i))
            r = view_one(co, v, g, when, i);
    return r;
}

/* M6, and every slot that says it is active opens. *ret_first: slots that the first passphrase opens. */
static int judge_keys(struct co *co, struct sim_verify *v, const char *when, unsigned *ret_first)
{
    struct stor *s;
    *ret_first = 1;
    if (!v->im->g->luks)
        return 0;
    int r = sim_open(co, v->w, SIM_DISK_NAME, true, &s);
    if (r < 0)
        return wrong(v, "%s: the file cannot be opened", when);
    int opens = sim_luks_look(co, s, disk(v), ret_first);
    stor_close(co, s);
    if (opens == -EUCLEAN)
        return wrong(v, "%s: an active key slot is opened by no passphrase", when);
    if (opens < 0)
        return wrong(v, "%s: the key slots cannot be read: %s", when, strerror(-opens));
    return v->m->keys >> opens & 1 ? 0 : wrong(v, "%s: the set %d of passphrases opens it; legal sets: %#x", when, opens, v->m->keys);
}

/* ---- (a) to (e): as the state is ---- */

static int look(struct co *co, struct sim_verify *v, struct graph *g)
{
    unsigned first;
    const char *when = v->depth ? "after the second crash" : "after the crash";
    struct graph_node *n;
    struct sim_audit a = { 0 };
    struct fmt_check_result res = { 0 };
    bool hurt = v->im->g->hurt;          /* the structure is judged when repair has taken the mark away, or at its end */
    if (hurt) {
        sim_audit(disk(v), &a);
        hurt = a.marked || v->im->g->version == 2;
    }
    int r = hurt ? 0 : audit(v, when, &a);
    if (r < 0)
        return r;
    r = open_disk(co, v, g, when, true, false, &n);
    if (r < 0)
        return r;
    v->size = graph_length(n);
    v->flags = 0;
    bool old_size = v->size == v->m->size || v->size == v->m->size_alt;
    if (!old_size && !(v->m->applying && v->size == v->m->applying->size))
        r = wrong(v, "%s: the size is %" PRIu64 ", legal: %" PRIu64 " or %" PRIu64, when, v->size, v->m->size, v->m->size_alt);
    hurt = hurt || is_late(v, &a);
    if (r == 0 && !hurt)
        r = check(co, v, n, when, 0, &res);
    if (r == 0 && !hurt && !res.leaks != !a.leaks)      /* the check counts clusters, the audit counts references */
        r = wrong(v, "%s: the check finds %" PRIu64 " leaks, the second opinion %" PRIu64, when, res.leaks, a.leaks);
    if (r == 0 && res.leaks > leak_bound(v) && !v->im->g->hurt)
        r = wrong(v, "%s: %" PRIu64 " leaks, at most %" PRIu64 " can be explained", when, res.leaks, leak_bound(v));
    if (r == 0 && res.leaks > v->leaks_max) {
        v->leaks_max = res.leaks;
        v->bound_at_max = leak_bound(v);
    }
    if (r == 0)
        r = read_all(co, v, n, when);
    if (r == 0 && !is_applied(v))
        r = old_size ? judge_legal(v, when) : wrong(v, "%s: the size is that of the snapshot applied, the content is not", when);
    if (r == 0)
        r = judge_raw_file(v, when);
    r = close_disk(co, v, n, when, r);
    if (r < 0)
        return r;
    memcpy(v->expect, v->got, v->im->sectors * sizeof *v->expect);
    r = judge_bitmaps(v, when, SIM_OPEN);
    if (r == 0)
        r = judge_keys(co, v, when, &first);
    if (r == 0 && prng_one_in(&v->rng, 4))
        r = view_snaps(co, v, g, when);
    return r < 0 ? r : judge_rest(v, when);
}

/* ---- (f): the guest goes on ---- */

static int probe(struct co *co, struct sim_verify *v, struct graph_node *n, uint64_t off, uint64_t len, uint32_t gen, unsigned flags)
{
    struct iovec slot;
    uint8_t *buf = NULL;
    uint64_t end = min_u64(v->size, v->im->g->window[0].off + v->im->g->window[0].len) / SIM_SECTOR;
    if (off >= end)
        return 0;
    len = min_u64(len, end - off);
    if (posix_memalign((void **)&buf, 4096, len * SIM_SECTOR))
        return -ENOMEM;
    for (uint64_t i = 0; i < len; i++) {
        sim_sector_fill(buf + i * SIM_SECTOR, gen, off + i);
        v->expect[off + i] = gen;
    }
    struct sim_note *note = v->w->trace ? sim_trace_note(v->w->trace, SIM_N_WRITE, sim_stamp(v->w)) : NULL;
    if (note) {
        note->id = gen;
        note->gen = gen;
        note->off = off * SIM_SECTOR;
        note->len = len * SIM_SECTOR;
    }
    int r = graph_write(co, n, iov_one(&slot, buf, len * SIM_SECTOR), off * SIM_SECTOR, flags);
    if (v->w->trace)
        sim_trace_note(v->w->trace, SIM_N_ACK, sim_stamp(v->w))->id = gen;
    free(buf);
    return r < 0 ? wrong(v, "a write after the crash failed: %s", strerror(-r)) : 0;
}

/* Where the request was that was issued last before the cut. */
static void crashed_range(const struct sim_verify *v, uint64_t *off, uint64_t *len)
{
    const struct sim_model *m = v->m;
    *off = 0;
    *len = 1;
    for (uint32_t i = m->req_count; i-- > 1;)
        if (m->reqs[i].len && m->reqs[i].kind != SIM_N_FLUSH) {
            *off = m->reqs[i].off / SIM_SECTOR;
            *len = m->reqs[i].len / SIM_SECTOR;
            return;
        }
}

static int three_probes(struct co *co, struct sim_verify *v, struct graph_node *n)
{
    const struct sim_geom *g = v->im->g;
    uint64_t c = (1ull << g->cluster_bits) / SIM_SECTOR, end = min_u64(v->size, g->window[0].len) / SIM_SECTOR;
    uint64_t half = g->window[0].len / 2 / SIM_SECTOR, off, len;
    uint64_t spot = half + prng_below(&v->rng, half);
    int r = probe(co, v, n, spot, 1 + prng_below(&v->rng, c), 1000, 0);                 /* nothing there, mostly */
    crashed_range(v, &off, &len);
    if (r == 0)
        r = probe(co, v, n, off + prng_below(&v->rng, len), 1 + prng_below(&v->rng, c), 1001, 0);
    bool pack = g->packs && end > 2 * c && prng_one_in(&v->rng, 2);
    if (r == 0 && pack)
        r = probe(co, v, n, round_down(prng_below(&v->rng, end - 2 * c), c), c, 1002, GRAPH_COMPRESS);
    else if (r == 0)
        r = probe(co, v, n, prng_below(&v->rng, end), 1 + prng_below(&v->rng, 2 * c), 1002, 0);
    if (r == 0 && (v->m->snapped || v->im->snap))                                    /* what is there from the beginning is shared, mostly */
        r = probe(co, v, n, prng_below(&v->rng, min_u64(half, end)), 1 + prng_below(&v->rng, 2 * c), 1004, 0);
    return r;
}

/* A snapshot on top of whatever counts and flags the crash has left. */
static int make_snap(struct co *co, struct sim_verify *v, struct graph_node *n)
{
    const struct sim_geom *g = v->im->g;
    unsigned number = SIM_SNAPS_MAX - 1;
    struct byre_err err = { 0 };
    char name[8];
    if (!sim_geom_snaps(g) || v->m->snap[number].state || !prng_one_in(&v->rng, 3) || atomic_load(&graph_image(n)->unclean))
        return 0;
    uint32_t *gens = v->w->trace ? sim_trace_alloc(v->w->trace, v->im->sectors * sizeof *gens) : v->made_gens;
    for (uint64_t s = 0; s < v->im->sectors; s++)
        gens[s] = in_window(g, s) && s * SIM_SECTOR < v->size ? v->expect[s] : SIM_GEN_NONE;
    if (v->w->trace) {
        struct sim_note *note = sim_trace_note(v->w->trace, SIM_N_SNAP_CREATE, sim_stamp(v->w));
        note->id = number;
        note->len = v->size;
        note->gens = gens;
    }
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = snap_name(name, sizeof name, number), .unique = true };
    int r = graph_snapshot(co, n, &rq, NULL, &err);
    if (r < 0)
        return wrong(v, "a snapshot after the crash failed: %s", err.text);
    if (v->w->trace)
        sim_trace_note(v->w->trace, SIM_N_SNAP_ACK, sim_stamp(v->w))->id = number;
    v->made = (struct sim_snap){ SIM_SNAP_THERE, v->size, gens };
    return 0;
}

static int flush(struct co *co, struct sim_verify *v, struct graph_node *n)
{
    if (v->w->trace)
        sim_trace_note(v->w->trace, SIM_N_FLUSH, sim_stamp(v->w))->id = 1003;
    int r = graph_flush(co, n);
    if (r < 0)
        return wrong(v, "a flush after the crash failed: %s", strerror(-r));
    if (v->w->trace)
        sim_trace_note(v->w->trace, SIM_N_FLUSH_ACK, sim_stamp(v->w))->id = 1003;
    return 0;
}

/* The first key slot gets its passphrase once more: what was interrupted is over then, and no spare slot is left of it. */
static int change_key(struct co *co, struct sim_verify *v, struct graph_node *n)
{
    struct byre_err err = { 0 };
    return v->im->g->luks && sim_luks_change(co, n, 2, &err) < 0 ? wrong(v, "a change of key slots after the crash failed: %s", err.text) : 0;
}

static int judge_slots(struct co *co, struct sim_verify *v, const char *when)
{
    unsigned first;
    int r = judge_keys(co, v, when, &first);
    return r == 0 && first != 1 ? wrong(v, "%s: %u key slots are opened by a passphrase that one is to have", when, first) : r;
}

/* Tables left behind the end by an interrupted shrink must not come back. */
static int grow(struct co *co, struct sim_verify *v, struct graph_node *n)
{
    const struct sim_geom *g = v->im->g;
    struct byre_err err = { 0 };
    if (atomic_load(&graph_image(n)->unclean))
        return 0;                        /* it would be refused */
    struct sim_note *note = v->w->trace ? sim_trace_note(v->w->trace, SIM_N_RESIZE, sim_stamp(v->w)) : NULL;
    if (note)
        note->len = g->size_max;
    int r = graph_resize(co, n, g->size_max, FMT_PREALLOC_OFF, &err);
    if (r < 0)
        return wrong(v, "growing after the crash failed: %s", err.text);
    note = v->w->trace ? sim_trace_note(v->w->trace, SIM_N_RESIZE_ACK, sim_stamp(v->w)) : NULL;
    if (note)
        note->len = g->size_max;
    for (uint64_t s = v->size / SIM_SECTOR; s < g->size_max / SIM_SECTOR; s++)
        v->expect[s] = 0;
    v->size = g->size_max;
    return 0;
}

/* ---- a scrub, in front of the probes, beside them, behind them or not at all ---- */

struct scrub { struct sim_verify *v; struct graph_node *n; const char *when; struct co_group running; int result; };

static int scrub(struct co *co, struct scrub *s)
{
    struct byre_err err = { 0 };
    struct findings f = { .flags = 0 };
    struct fmt_check_result res = { 0 };
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .finding = on_finding, .arg = &f };
    struct fmt_image *im = graph_image(s->n);
    int r = graph_format(s->n)->scrub(co, im, &o, &res, &err);
    if (r < 0)
        return wrong(s->v, "%s: scrub failed: %s", s->when, err.text);
    res.corruptions -= min_u64(res.corruptions, loose_flags(s->v, &f));     /* as check */
    if (res.corruptions || res.check_errors || atomic_load(&im->unclean))
        return wrong(s->v, "%s: a scrub finds %" PRIu64 " corruptions, %" PRIu64 " errors: %s", s->when, res.corruptions, res.check_errors, f.first);
    if (s->v->im->g->table && res.leaks)     /* its holes are filled, whatever goes on beside it */
        return wrong(s->v, "%s: a scrub leaves %" PRIu64 " clusters lost", s->when, res.leaks);
    return 0;
}

static void scrub_co(struct co *co, void *arg)
{
    struct scrub *s = arg;
    s->result = scrub(co, s);
    co_group_leave(&s->running);
}

static int scrub_and_probe(struct co *co, struct sim_verify *v, struct graph_node *n, const char *when, unsigned where)
{
    struct scrub s = { v, n, when };
    int r = where == 0 ? scrub(co, &s) : 0;
    if (r == 0 && where == 1) {
        co_group_enter(&s.running);
        r = rt_spawn(co_loop(co), scrub_co, &s);
        if (r < 0)
            return r;
        for (uint64_t i = prng_below(&v->rng, 8); i > 0; i--)
            co_yield(co);
    }
    if (r == 0)
        r = three_probes(co, v, n);
    if (r == 0)
        r = flush(co, v, n);
    co_group_wait(co, &s.running);
    if (r == 0)
        r = s.result;
    return r == 0 && where == 2 ? scrub(co, &s) : r;
}

static int go_on(struct co *co, struct sim_verify *v, struct graph *g)
{
    const char *when = v->depth ? "going on after the second crash" : "going on after the crash";
    struct graph_node *n;
    struct sim_audit a;
    int r = open_disk(co, v, g, when, false, false, &n);
    if (r < 0)
        return r;
    bool bigger = v->m->resized && v->size < v->im->g->size_max;
    if (bigger && prng_one_in(&v->rng, 2)) {
        r = grow(co, v, n);
        bigger = false;
    }
    unsigned where = v->im->g->scrub ? (unsigned)prng_below(&v->rng, 4) : 3;
    if ((v->im->g->device || v->im->g->table) && where >= 2)     /* there requests wait for it */
        where -= 2;
    bool stays = where == 3 && atomic_load(&graph_image(n)->unclean);
    if (r == 0)
        r = make_snap(co, v, n);
    if (r == 0)
        r = scrub_and_probe(co, v, n, when, where);
    if (r == 0)
        r = audit(v, when, &a);          /* the engine's own check wants a quiet image; it comes behind the close */
    if (r == 0)
        r = judge_bitmaps(v, when, SIM_OPEN);
    if (r == 0 && bigger)
        r = grow(co, v, n);
    if (r == 0)
        r = read_all(co, v, n, when);
    if (r == 0)
        r = judge_same(v, when);
    if (r == 0)
        r = judge_raw_file(v, when);
    if (r == 0)
        r = change_key(co, v, n);
    r = close_disk(co, v, n, when, r);
    if (r == 0)
        r = judge_slots(co, v, when);
    if (r == 0)
        r = audit(v, when, &a);
    if (r == 0 && (is_late(v, &a) || (v->im->g->table && a.marked)) && !stays)
        r = wrong(v, "%s: the image is still dirty after a close", when);
    if (r == 0)
        r = judge_bitmaps(v, when, stays ? SIM_CLOSED_UNCLEAN : SIM_CLOSED);
    return r < 0 ? r : judge_rest(v, when);
}

/* What was written must be there for those who open it next. */
static int come_back(struct co *co, struct sim_verify *v, struct graph *g)
{
    const char *when = "opened again";
    struct graph_node *n;
    struct fmt_check_result res;
    int r = open_disk(co, v, g, when, true, false, &n);
    if (r < 0)
        return r;
    if (graph_length(n) != v->size)
        r = wrong(v, "%s: the size is %" PRIu64 ", not %" PRIu64, when, graph_length(n), v->size);
    struct sim_audit a;
    sim_audit(disk(v), &a);
    if (r == 0 && !is_late(v, &a))
        r = check(co, v, n, when, 0, &res);
    if (r == 0 && !is_late(v, &a) && res.leaks > leak_bound(v))
        r = wrong(v, "%s: %" PRIu64 " leaks, at most %" PRIu64 " can be explained", when, res.leaks, leak_bound(v));
    if (r == 0)
        r = read_all(co, v, n, when);
    if (r == 0)
        r = judge_same(v, when);
    return close_disk(co, v, n, when, r);
}

/* ---- (g): repair ---- */

static int repair(struct co *co, struct sim_verify *v, struct graph *g)
{
    const char *when = v->depth ? "repair after the second crash" : "repair after the crash";
    struct graph_node *n;
    struct fmt_check_result res = { 0 }, again = { 0 };
    int r = open_disk(co, v, g, when, false, true, &n);
    if (r < 0)
        return r;
    r = check(co, v, n, when, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &res);
    if (r == 0 && res.leaks)
        r = wrong(v, "%s: %" PRIu64 " leaks are left", when, res.leaks);
    if (r == 0)
        r = check(co, v, n, "second repair", FMT_FIX_LEAKS | FMT_FIX_ERRORS, &again);
    if (r == 0 && (again.leaks || again.leaks_fixed || again.corruptions_fixed))
        r = wrong(v, "%s: a second repair still finds %" PRIu64 " leaks to mend", when, again.leaks_fixed);
    return close_disk(co, v, n, when, r);
}

static int after_repair(struct co *co, struct sim_verify *v, struct graph *g)
{
    const char *when = "after repair";
    struct graph_node *n;
    struct sim_audit a;
    int r = audit(v, when, &a);
    if (r < 0)
        return r;
    if (a.leaks || a.marked)
        return wrong(v, "%s: %" PRIu64 " leaks are left%s", when, a.leaks, a.marked ? ", and a mark" : "");
    r = open_disk(co, v, g, when, true, false, &n);
    if (r < 0)
        return r;
    r = read_all(co, v, n, when);
    if (r == 0)
        r = judge_same(v, when);
    r = close_disk(co, v, n, when, r);
    if (r == 0)
        r = judge_bitmaps(v, when, SIM_OPEN);
    return r < 0 ? r : judge_rest(v, when);
}

/* ---- marks over all files (V1) ---- */

static void mark(const struct sim_verify *v, sim_mark *m)
{
    for (unsigned i = 0; i < v->w->file_count; i++)
        m[i] = sim_disk_mark(&v->w->files[i]->disk);
}

static void undo(const struct sim_verify *v, const sim_mark *m)
{
    for (unsigned i = 0; i < v->w->file_count; i++)
        sim_disk_undo(&v->w->files[i]->disk, m[i]);
}

/* ---- (h): the power fails again ---- */

struct inner { struct sim_verify *v; uint32_t *first; };

static int judge(struct sim_verify *v);

static int inner_visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct sim_verify *v = arg;
    (void)content;
    v->m = x->m;
    v->in_flight += 2 * x->pending_count;
    v->nested++;
    return judge(v);
}

static int second_crash(struct sim_verify *v, step_fn *fn)
{
    struct sim_verify keep = *v;
    struct sim_trace t;
    struct sim_model m;
    sim_mark marks[SIM_FILES_MAX];
    uint32_t *first = sim_mem_alloc(v->im->sectors * sizeof *first);
    uint64_t size = v->size;
    memcpy(first, v->expect, v->im->sectors * sizeof *first);
    sim_trace_init(&t);
    mark(v, marks);
    v->w->trace = &t;
    int r = run_step(v, fn);
    v->w->trace = NULL;
    v->made.state = SIM_SNAP_NONE;
    undo(v, marks);
    if (r == 0) {
        sim_model_init(&m, v->im->sectors, v->im->below);
        sim_model_start(&m, size, first);
        for (unsigned i = 0; i < SIM_SNAPS_MAX; i++)
            if (keep.m->snap[i].state == SIM_SNAP_THERE)
                sim_model_has(&m, i, keep.m->snap[i].size, keep.m->snap[i].gens);
            else
                m.snap[i] = keep.m->snap[i];
        sim_model_keys(&m, keep.m->keys);
        m.snapped = keep.m->snapped;
        m.loose = sim_model_loose(keep.m);
        m.shares = keep.m->shares;
        m.cloned = keep.m->cloned;
        sim_bitmaps_start(&m, disk(v));
        struct sim_explorer x = { .w = v->w, .t = &t, .m = &m, .seed = prng_u64(&v->rng), .visit = inner_visit, .arg = v, .nested = true };
        m.resized = v->m->resized;
        v->depth++;
        r = sim_explore_random(&x);
        v->depth--;
        sim_model_fini(&m);
        undo(v, marks);
    }
    memcpy(v->expect, first, v->im->sectors * sizeof *first);
    v->m = keep.m;
    v->in_flight = keep.in_flight;
    v->size = size;
    sim_mem_free(first);
    sim_trace_fini(&t);
    return r;
}

/* ---- all of it ---- */

static int with_undo(struct sim_verify *v, step_fn *fn, step_fn *then)
{
    sim_mark m[SIM_FILES_MAX];
    uint64_t size = v->size;
    uint32_t *first = sim_mem_alloc(v->im->sectors * sizeof *first);
    memcpy(first, v->expect, v->im->sectors * sizeof *first);
    mark(v, m);
    int r = run_step(v, fn);
    if (r == 0)
        r = run_step(v, then);
    undo(v, m);
    v->made.state = SIM_SNAP_NONE;
    memcpy(v->expect, first, v->im->sectors * sizeof *first);
    v->size = size;
    sim_mem_free(first);
    return r;
}

static int judge(struct sim_verify *v)
{
    sim_mark m[SIM_FILES_MAX];
    mark(v, m);
    v->states++;
    int r = run_step(v, look);
    for (unsigned i = 0; r == 0 && i < v->w->file_count; i++)
        if (v->w->files[i]->disk.undo_count != m[i])
            r = wrong(v, "opening read-only has changed a file");
    if (r == 0 && v->peer_dir && !v->im->g->hurt && v->im->g->table != 1 && prng_one_in(&v->rng, v->peer_one_in)) {
        struct sim_audit a;
        sim_audit(disk(v), &a);
        v->peers += !is_late(v, &a);
        r = is_late(v, &a) || v->im->g->luks ? 0 : sim_peer_agrees(v->w, v->peer_dir, v->expect, v->size, v->flags ? SIM_PEER_FLAGS : a.leaks ? SIM_PEER_LEAKS : SIM_PEER_CLEAN, v->why, sizeof v->why);
    }
    if (r == 0 && !v->im->g->hurt)
        r = with_undo(v, go_on, come_back);
    if (r == 0)
        r = with_undo(v, repair, after_repair);
    if (r == 0 && v->depth < NESTED_DEPTH_MAX && prng_one_in(&v->rng, v->nested_one_in))
        r = second_crash(v, !v->im->g->hurt && prng_one_in(&v->rng, 2) ? go_on : repair);
    undo(v, m);
    return r;
}

/* Clusters that may be counted and not referenced: those of requests that no flush covers, twice (the new and the old
 * ones), tables with them, and whatever is being written; further what the requests of the last flush have freed, because
 * counts fall in the pass behind the one that unlinks (Q9). */
static uint64_t in_flight(const struct sim_verify *v, const struct sim_explorer *x)
{
    const struct sim_geom *g = v->im->g;
    uint64_t cs = 1ull << g->cluster_bits, n = 2 * ((x->m->unflushed + x->m->settling) / cs) + 4;
    for (uint32_t p = 0; p < x->pending_count; p++)
        n += 2 + (x->pending[p]->kind == SIM_WRITE || x->pending[p]->kind == SIM_PUNCH ? div_up(x->pending[p]->count, cs / SIM_SECTOR) : 0);
    if (g->bitmaps)                      /* directories, tables and data of sets that came or went */
        n += 40;
    if (x->m->resized || g->amend)           /* zero clusters are filled, and all counts written anew */
        n += 2 * (g->size_max / cs) + 8;
    return n;
}

int sim_verify_state(struct sim_verify *v, const struct sim_explorer *x, uint64_t seed)
{
    v->why[0] = 0;
    v->depth = 0;
    v->m = x->m;
    v->made.state = SIM_SNAP_NONE;
    v->in_flight = in_flight(v, x);
    prng_init(&v->rng, seed);
    sim_world_restart(v->w, seed);
    v->w->direct = true;
    v->w->trace = NULL;
    return judge(v);
}
