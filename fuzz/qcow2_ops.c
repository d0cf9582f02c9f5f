/* SPDX-License-Identifier: MIT
 *
 * qcow2_ops.c: fuzz target for operations on a qcow2 image: the input is a geometry, a list of guest and operator actions, and one
 * fault of the disk; the fault loops (tests/faults) run it and judge.
 *
 * Purpose      Sequences that nobody would write down. Everything else is the fault loops': the model of what each sector may hold,
 *              crash states (only what is durable, some of the rest, an earlier moment), check, use, repair, snapshots, key slots.
 * Input        Byte 0: cluster, size. 1: version and features. 2: what is filled. 3: where faults begin. 4 to 6: the fault. Then
 *              three bytes for each step.
 * Owns         One world for all inputs, unless a run hangs in it.
 * Invariants   I1  Only steps that the geometry allows: a refusal is a finding, as in the fault loops.
 *              I2  A model that does not know what a step does is not asked: one resize, and none beside snapshots.
 * Failure      Prints what is wrong and aborts.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/qcow2_ops)
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "../tests/faults/fx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fx_alloc fx_alloc;                /* nothing is refused here, and blocks are counted by the sanitizers */

struct input { const uint8_t *p; size_t left; };

static uint8_t take(struct input *in)
{
    if (!in->left)
        return 0;
    in->left--;
    return *in->p++;
}

/* ---- geometry ---- */

static void geometry(struct input *in, struct cx_geometry *g)
{
    static const uint8_t bits[8] = { 16, 16, 1, 2, 4, 8, 32, 64 };
    uint8_t a = take(in), b = take(in);
    *g = (struct cx_geometry){ .name = "fuzz", .cluster = 512ull << (a & 7), .version = b & 1 ? 2 : 3, .refcount_bits = 16 };
    g->backing = b & 2;
    if (g->version == 3) {
        unsigned kind = b >> 5;
        g->refcount_bits = bits[b >> 2 & 7];
        g->sub = kind == 1 || kind == 6;
        g->luks = kind == 2 || kind == 6;
        g->data_file = kind == 3;
        g->lazy = kind == 4;
    }
    if (g->sub && g->cluster < 16384)
        g->cluster = 16384;
    g->size = min_u64(max_u64(g->cluster * (2 + (a >> 3 & 15)), 8192), 256u << 10);
    if (a & 0x80)
        g->size -= 512 * 3;              /* the last cluster is cut */
    g->frontier = g->cluster * (a & 0x40 ? 1 : 4);
}

/* ---- steps ---- */

struct making {
    struct fx_scene *s;
    const struct cx_geometry *g;
    unsigned n;
    bool open, resized, kept, bitmaps, narrow;      /* narrow: the counts have become too small for snapshots */
    int key;                             /* the last change of key slots, -1: none */
    uint64_t size;
    struct { uint64_t from, to; } beside[FX_STEPS]; unsigned beside_count;      /* ranges of those that run together */
};

static bool snapshots_fit(const struct cx_geometry *g) { return g->refcount_bits >= 8 && !g->data_file; }
static bool bitmaps_fit(const struct cx_geometry *g) { return g->version == 3 && !g->data_file; }

static bool overlaps(const struct making *m, uint64_t from, uint64_t to)
{
    for (unsigned i = 0; i < m->beside_count; i++)
        if (from < m->beside[i].to && m->beside[i].from < to)
            return true;
    return false;
}

static void push(struct making *m, struct fx_step s)
{
    if (!s.together)
        m->beside_count = 0;
    if (m->n < FX_STEPS - 1)
        m->s->steps[m->n++] = s;
}

static void open_first(struct making *m)
{
    if (!m->open)
        push(m, (struct fx_step){ FX_OPEN_RW });
    m->open = true;
}

static void close_first(struct making *m)
{
    if (m->open)
        push(m, (struct fx_step){ FX_CLOSE });
    m->open = false;
}

/* A request of the guest; where and how long as fx_steps.c will cut it. */
static void request(struct making *m, enum fx_do what, uint8_t where, uint8_t how)
{
    const struct cx_geometry *g = m->g;
    uint64_t clusters = m->size / g->cluster, c = g->cluster / 512;
    struct fx_step s = { .what = what, .at = where & 63, .len = how & 3 };
    if (what == FX_PACK && (g->luks || g->data_file || !clusters))
        what = s.what = FX_WRITE;
    if (what == FX_PACK) {
        s.at %= clusters;
        s.len = (unsigned)min_u64(1 + s.len, clusters - s.at);
    } else if (how & 4) {
        s.at_sectors = (how >> 3 & 15) % c;
        s.len_sectors = 1 + (where >> 6);
    } else if (!s.len) {
        s.len = 1;
    }
    open_first(m);
    uint64_t from = (s.at * g->cluster + s.at_sectors * 512ull) % m->size;
    uint64_t to = from + min_u64(s.len * g->cluster + s.len_sectors * 512ull, m->size - from);
    bool unit = what == FX_PACK || what == FX_DISCARD;           /* touch whole clusters, and parts of them */
    if (unit) {
        from = round_down(from, g->cluster);
        to = round_up(to, g->cluster);
    }
    s.together = how & 0x80 && m->beside_count && m->beside_count < FX_STEPS && !overlaps(m, from, to);
    push(m, s);
    m->beside[m->beside_count].from = from;
    m->beside[m->beside_count++].to = to;
}

static void resize(struct making *m, bool grow, uint8_t how)
{
    if (m->resized || m->kept)
        return;                          /* I2 */
    open_first(m);
    unsigned len = how & 15;
    uint64_t part = round_down(m->g->size / 16 * len, 512);
    uint64_t to = grow ? m->size + part + 512 : part + 512;
    if (to > FX_SECTORS * 512ull || (!grow && to > m->size))
        return;
    push(m, (struct fx_step){ .what = grow ? FX_GROW : FX_SHRINK, .len = len });
    m->size = to;
    m->resized = true;
}

static void snapshot(struct making *m, enum fx_do what, uint8_t which)
{
    if (!snapshots_fit(m->g) || m->resized || m->bitmaps || m->narrow)
        return;
    open_first(m);
    m->kept = true;
    if (what == FX_KEEP)
        push(m, (struct fx_step){ FX_FLUSH });      /* the model takes it from the file */
    push(m, (struct fx_step){ .what = what, .at = which & 1 });
}

static void special(struct making *m, unsigned kind, uint8_t a)
{
    const struct cx_geometry *g = m->g;
    if (kind == 0 && bitmaps_fit(g) && !m->kept) {
        open_first(m);
        m->bitmaps = true;
        push(m, (struct fx_step){ .what = FX_BITMAP, .at = a & 7 });
    } else if (kind == 1 && g->luks) {
        /* what may follow: 0 and 3 add, then 1 erases the first passphrase, or 4 what 3 has added; 2 replaces */
        unsigned at = m->key < 0 ? (unsigned[]){ 0, 2, 3 }[a % 3] : m->key == 3 && a & 1 ? 4 : 1;
        if (m->key > 0 && m->key != 3)
            return;
        open_first(m);
        m->key = (int)at;
        push(m, (struct fx_step){ .what = FX_KEY, .at = at });
    } else if (kind == 2) {
        close_first(m);
        push(m, (struct fx_step){ a & 1 ? FX_REPAIR : FX_CHECK });
    } else if (kind == 3 && !g->luks && !g->lazy && !m->kept && !m->bitmaps) {
        open_first(m);
        m->narrow = true;
        push(m, (struct fx_step){ .what = FX_AMEND, .at = 1, .len = 1u << (a & 7) % 7 });
    }
}

static void step(struct making *m, struct input *in)
{
    static const enum fx_do requests[16] = { FX_WRITE, FX_WRITE, FX_WRITE, FX_WRITE, FX_WRITE, FX_PACK, FX_PACK, FX_ZERO, FX_UNMAP, FX_DISCARD, FX_DISCARD,
                                             FX_FLUSH, FX_FLUSH, FX_READ, FX_READ, FX_CLOSE };
    uint8_t kind = take(in), where = take(in), how = take(in);
    enum fx_do what = requests[kind & 15];
    if (kind & 0x80)
        switch (kind >> 4 & 7) {
        case 0: snapshot(m, FX_KEEP, where); return;
        case 1: snapshot(m, FX_APPLY, where); return;
        case 2: snapshot(m, FX_DROP, where); return;
        case 3: resize(m, where & 1, how); return;
        default: special(m, (kind >> 4 & 7) - 4, where); return;
        }
    if (what == FX_CLOSE) {
        close_first(m);
    } else if (what == FX_FLUSH || what == FX_READ) {
        open_first(m);
        push(m, (struct fx_step){ .what = what });
    } else {
        request(m, what, where, how);
    }
}

static void scene(struct input *in, const struct cx_geometry *g, struct fx_scene *s, struct fx_fault *f)
{
    static const struct { unsigned kind; enum fx_how how; int error; } faults[] = {
        { CX_F_WRITE, FX_ERROR, EIO }, { CX_F_WRITE, FX_LATE, EIO }, { CX_F_WRITE, FX_ERROR, ENOSPC }, { CX_F_WRITE, FX_SHORT, EIO },
        { CX_F_FLUSH, FX_ERROR, EIO }, { CX_F_READ, FX_ERROR, EIO }, { CX_F_READ, FX_NOTHING, EIO }, { CX_F_ZERO, FX_ERROR, EIO },
        { CX_F_TRUNCATE, FX_ERROR, ENOSPC }, { CX_F_DISCARD, FX_LATE, EIO }, { CX_F_LENGTH, FX_ERROR, EIO }, { CX_F_OPEN, FX_ERROR, EMFILE },
    };
    uint8_t fill = take(in), begin = take(in), kind = take(in), nth = take(in), seed = take(in);
    struct making m = { .s = s, .g = g, .size = g->size, .key = -1 };
    *s = (struct fx_scene){ .name = "fuzz", .on = "", .filled = fill & 15, .half = fill & 16 };
    *f = (struct fx_fault){ .kind = faults[kind % 12].kind, .how = faults[kind % 12].how, .error = faults[kind % 12].error, .forever = kind & 0x40,
                            .nth = kind & 0x80 ? 1 + nth : 0 };
    (void)seed;
    unsigned at = begin % 8;
    for (unsigned i = 0; in->left && m.n < FX_STEPS - 4; i++) {
        if (i == at)
            push(&m, (struct fx_step){ FX_FAULTS });
        step(&m, in);
    }
    if (m.n <= 1)
        push(&m, (struct fx_step){ FX_OPEN_RW });
}

/* ---- running ---- */

static void tell(const struct fx_case *c, const struct fx_run *r)
{
    const struct cx_geometry *g = &c->g;
    fprintf(stderr, "%s\ngeometry: cluster %" PRIu64 " size %" PRIu64 " version %u refcount_bits %u%s%s%s%s%s filled %u\nfault: kind %u how %u errno %d nth %" PRIu64 "%s, hit %" PRIu64 "\n",
            r->why, g->cluster, g->size, g->version, g->refcount_bits, g->backing ? " backing" : "", g->sub ? " sub" : "", g->luks ? " luks" : "", g->data_file ? " data" : "",
            g->lazy ? " lazy" : "", c->scene->filled, r->fault.kind, r->fault.how, r->fault.error, r->fault.nth, r->fault.forever ? " forever" : "", r->hits);
    for (unsigned i = 0; c->scene->steps[i].what; i++) {
        const struct fx_step *s = &c->scene->steps[i];
        fprintf(stderr, "  %2u %s%s %u+%u, %u+%u\n", 2 + i, s->together ? "& " : "", fx_do_names[s->what], s->at, s->at_sectors, s->len, s->len_sectors);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cx_world *w;
    static struct fx_run r;
    struct input in = { data, size };
    struct cx_geometry g;
    static struct fx_scene s;
    struct fx_fault f;
    static struct fx_case c;
    if (size < 10)
        return 0;
    if (!w) {
        w = malloc(sizeof *w);
        if (!w)
            abort();
        cx_world_init(w);
    }
    geometry(&in, &g);
    scene(&in, &g, &s, &f);
    alarm(60);
    if (!fx_case_make(&c, w, &s, &g))
        abort();
    c.seed = data[6];
    (void)fx_run_one(&r, w, &c, &f);
    alarm(0);
    if (r.bad) {
        tell(&c, &r);
        abort();
    }
    fx_case_free(&c);
    return 0;
}
