/* SPDX-License-Identifier: MIT
 *
 * fx_run.c: makes cases, and runs one with one fault.
 *
 * Purpose      From a scenario and a geometry to a judged run.
 * Owns         The first file of a case and the values in it.
 * Invariants   A run ends with the fault gone, the image closed, and as many live blocks as before it.
 * Order        Steps, probe, close, verification.
 * Concurrency  One world at a time.
 * Failure      fx_bad(); a world in which nothing can run any more is given up.
 * Tests        test_faults.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "fx.h"

#define V_FILLED 26u
#define V_PROBE 60u

/* ---- making a case ---- */

struct fill { struct cx_world *w; const struct fx_case *c; int e; };

static void fill_co(struct co *co, void *arg)
{
    struct fill *f = arg;
    static struct fx_run r;              /* too large for a coroutine */
    struct byre_err err;
    r = (struct fx_run){ .w = f->w, .c = (struct fx_case *)(uintptr_t)f->c };
    uint64_t cs = f->c->g.cluster;
    f->e = cx_open(co, f->w, false, false, &err);
    if (f->e < 0)
        return;
    r.m = (struct fx_model){ .size_count = 1 };
    for (unsigned i = 0; i < f->c->scene->filled && f->e == 0 && (i + 1) * cs <= f->c->g.size; i += f->c->scene->half ? 2 : 1)
        f->e = fx_write_version(co, &r, i * cs, cs, V_FILLED);
    int c = cx_close(co, f->w);
    f->e = f->e ? f->e : c;
}

static uint64_t be(const struct cx_world *w, uint64_t off)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < 8; i++)
        v = v << 8 | w->image.data[off + i];
    return v;
}

/* Sets a count of 16 bits in the first refcount block. */
static void set_count(struct cx_world *w, uint64_t cluster, uint8_t count)
{
    uint64_t block = be(w, be(w, 48));
    w->image.data[block + cluster * 2] = 0;
    w->image.data[block + cluster * 2 + 1] = count;
}

static uint64_t le(const struct cx_world *w, uint64_t off) { return le64_get((const le64 *)(w->image.data + off)); }

/* The first entry goes: there is a hole in the file, and a cluster more at its end. The mark. */
static void damage_qed(struct cx_world *w, const struct fx_case *c)
{
    uint64_t cs = c->g.cluster, l2 = le(w, le(w, 40));
    if (c->scene->damage == FX_LEAKY || c->scene->damage == FX_UNCLEAN) {
        le64_put((le64 *)(w->image.data + l2), 0);
        w->image.len = (div_up(w->image.len, cs) + 1) * cs;
    }
    if (c->scene->damage == FX_UNCLEAN || c->scene->damage == FX_DIRTY)
        w->image.data[16] |= 2;
}

/* A pointer behind the end, which is no pointer: what it covers reads as if there were none. */
static void lead_nowhere(struct cx_world *w, const struct fx_case *c)
{
    uint64_t l2 = le(w, le(w, 40));
    le64_put((le64 *)(w->image.data + l2 + (c->g.size - 1) / c->g.cluster * 8), w->image.len + c->g.cluster);
}

static void damage(struct cx_world *w, const struct fx_case *c)
{
    if (c->g.table) {
        damage_qed(w, c);
        return;
    }
    uint64_t cs = c->g.cluster, end = div_up(w->image.len, cs), l2 = be(w, be(w, 40)) & 0x00fffffffffffe00ull;
    switch (c->scene->damage) {
    case FX_LEAKY:
        set_count(w, end, 1);
        w->image.len = (end + 1) * cs;
        break;
    case FX_LOW_COUNT:
        set_count(w, (be(w, l2) & 0x00fffffffffffe00ull) / cs, 0);
        break;
    case FX_UNCLEAN:
        set_count(w, (be(w, l2) & 0x00fffffffffffe00ull) / cs, 0);
        w->image.data[79] |= 1;
        break;
    case FX_DIRTY:
        w->image.data[79] |= 1;
        break;
    default:
        break;
    }
}

static void values_co(struct co *co, void *arg)
{
    struct fill *f = arg;
    struct fx_case *c = (struct fx_case *)(uintptr_t)f->c;
    struct byre_err err = { .text = "" };
    f->e = cx_open(co, f->w, true, false, &err);
    if (f->e < 0) {
        fprintf(stderr, "byre-faults: %s\n", err.text);
        return;
    }
    uint8_t *guest = calloc(CX_SECTORS_MAX, CX_SECTOR);
    f->e = cx_read_all(co, f->w, guest);
    c->size = graph_length(f->w->node);
    cx_model_start(c->values, guest, c->size);
    for (uint64_t i = 0; i < c->size / CX_SECTOR; i++)
        c->first.now[i] = c->first.crash[i] = c->first.ever[i] = 1ull << cx_version_of(c->values, guest + i * CX_SECTOR, i);
    c->first.size[0] = c->size;
    c->first.size_count = 1;
    c->first.now_sizes = c->first.crash_sizes = 1;
    c->first.keys_now = c->first.keys_crash = c->first.keys_ever = 1u << FX_KEY_A;
    free(guest);
    int e = cx_close(co, f->w);
    f->e = f->e ? f->e : e;
}

bool fx_case_make(struct fx_case *c, struct cx_world *w, const struct fx_scene *s, const struct cx_geometry *g)
{
    struct cx_work k = { .g = *g, .seed = 1 };
    struct fill f = { w, c, 0 };
    *c = (struct fx_case){ .scene = s, .g = *g, .values = malloc(sizeof *c->values) };
    if (!c->values)
        abort();
    cx_model_init(c->values);
    if (!cx_work_prepare(w, c->values, &k) || !cx_run(w, fill_co, &f) || f.e)
        return false;
    damage(w, c);
    if (!cx_run(w, values_co, &f) || f.e)
        return false;
    if (g->table && s->damage == FX_UNCLEAN)
        lead_nowhere(w, c);
    struct cx_snap list[CX_SNAPS_MAX];
    c->first.snap_count = cx_snapshots(&w->image, list);
    for (unsigned i = 0; i < c->first.snap_count; i++)
        c->first.snap[i] = (struct fx_snap){ .s = list[i], .now = FX_THERE, .crash = FX_THERE, .ever = FX_THERE };
    if (s->steps[1].what == FX_CREATE)
        cx_image_blank(w);
    c->start = (struct cx_bytes){ calloc(1, CX_FILE_MAX), w->image.len };
    if (!c->start.data)
        abort();
    memcpy(c->start.data, w->image.data, w->image.len);
    if (s->steps[1].what == FX_CREATE) {
        memset(w->data.data, 0, w->data.len);
        w->data.len = 0;
    }
    c->start_data = (struct cx_bytes){ malloc(w->data.len + 1), w->data.len };
    if (!c->start_data.data)
        abort();
    memcpy(c->start_data.data, w->data.data, w->data.len);
    return true;
}

void fx_case_free(struct fx_case *c)
{
    cx_model_fini(c->values);
    free(c->values);
    free(c->start.data);
    free(c->start_data.data);
}

/* ---- one run ---- */

/* May the engine refuse to write until the image is opened again? After a failed flush it must (RG27). When the header
 * could not be written, nor its old bytes written back, what it holds is not known: nothing may follow (Q22). */
static bool stopped(const struct fx_run *r, bool *ret_must)
{
    bool writes = r->w->node && !graph_read_only(r->w->node);
    *ret_must = writes && r->fault.kind == CX_F_FLUSH && fx_hits(r) > r->session_hits;
    if (writes && r->amend_failed && r->fault.forever)       /* changed, and could not be read again while the fault lasted */
        return true;
    if (writes && r->fault.kind == CX_F_FLUSH && fx_hits(r) > r->opening_hits)       /* of work that opening began */
        return true;
    return *ret_must || (writes && r->fault.kind == CX_F_WRITE && r->fault.forever && fx_hits(r) > r->session_hits + 1);
}

/* With the fault gone: the next operations work. */
static void probe(struct co *co, struct fx_run *r)
{
    bool must, may = stopped(r, &must);
    uint64_t size = graph_length(r->w->node), off = round_down(size / 2, CX_SECTOR);
    fx_read_judged(co, r, r->m.now, "after the fault");
    int e = fx_write_version(co, r, off, min_u64(2 * CX_SECTOR, size - off), V_PROBE);
    if (e && !may)
        fx_bad(r, "after the fault: write answers %d", e);
    if (e)
        return;
    struct fx_flush *f = malloc(sizeof *f);
    if (!f)
        abort();
    fx_flush_begin(&r->m, f);
    e = graph_flush(co, r->w->node);
    fx_flush_end(&r->m, f, e == 0);
    free(f);
    if (must ? e == 0 : e && !may)
        fx_bad(r, "after the fault: flush answers %d", e);
    fx_read_judged(co, r, r->m.now, "after the probe");
}

static void body(struct co *co, void *arg)
{
    struct fx_run *r = arg;
    fx_steps_run(co, r);
    if (!r->w->node)
        return;
    bool must, may = stopped(r, &must);
    if (!graph_read_only(r->w->node) && r->fault.nth % 3 != 1)       /* a third is closed at once */
        probe(co, r);
    int e = fx_close(co, r);
    if (must ? e == 0 : e && !may)
        fx_bad(r, "after the fault: close answers %d", e);
}

bool fx_run_one(struct fx_run *r, struct cx_world *w, struct fx_case *c, const struct fx_fault *f)
{
    long live = fx_alloc.live, keys = fx_key_memory;
    *r = (struct fx_run){ .w = w, .c = c, .fault = *f, .m = c->first, .closed_well = true };
    fx_bitmaps_start(r);
    cx_world_seed(w, c->seed);
    cx_bytes_copy(&w->image, &c->start);
    w->data_from = &c->start_data;
    cx_data_back(w);
    w->frontier_bytes = c->g.frontier;
    w->bitmap_region = c->g.bitmap_region;
    w->qed = c->g.table;
    w->cache_bytes = 4096;
    w->keys = c->g.luks ? FX_KEY_A | FX_KEY_B : 0;
    memset(&w->faults, 0, sizeof w->faults);
    fx_alloc.hits = 0;
    w->recording = w->jitter = true;
    w->lies = c->lies;
    bool ended = cx_run(w, body, r);
    w->lies = 0;
    w->recording = w->jitter = false;
    fx_alloc.armed = false;
    if (!ended) {
        fx_bad(r, "deadlock: nothing can run and the steps have not ended");
        return false;
    }
    if (fx_alloc.live != live)
        fx_bad(r, "%ld blocks are still allocated", fx_alloc.live - live);
    if (fx_key_memory != keys)
        fx_bad(r, "%ld pieces of key memory are still in use", fx_key_memory - keys);
    if (w->open_stores)
        fx_bad(r, "%d files are still open", w->open_stores);
    if (!f->nth && r->steps_failed)
        fx_bad(r, "a step failed without a fault");
    if (!r->bad)
        fx_verify(r);
    return true;
}
