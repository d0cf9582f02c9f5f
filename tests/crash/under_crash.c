/* SPDX-License-Identifier: MIT
 *
 * under_crash.c: formats over nodes (src/graph/under.c): the power fails, and every n-th call fails.
 *
 * Purpose      An image lies over a node: over filters, a part of a file, another image, or several of them. It is opened as blockdev-add opens it, and
 *              guests on two loops write, zero, discard, flush and read it. All that the image relies on must hold through what lies below: a barrier is
 *              one at the bottom (Q and E rules of both images), and what a flush has covered is there (P2). In each state that a power cut
 *              leaves, every image of the stack is sound, or leaks; each sector of the disk holds what a guest may find there. In some the disk is then opened for
 *              writing, written, closed and opened again: it shows the same but for that, and all images are sound.
 *              Stacks from seed 1000 on have LUKS in them: as a format below or above others, and inside qcow2. From seed 2000 on somebody makes the disk longer and
 *              shorter meanwhile, and makes, applies and deletes internal snapshots: in each state its length is one that it may have, and a snapshot that must be there
 *              is, to the sector (P3).
 *              With `faults` every n-th call of each kind fails, once or from then on, and the same is asked of what is left. Built with ALLOC_FAULTS (under-alloc),
 *              the calls are the allocations of the engine.
 * Usage        under-crash [faults [every N]] [FIRST [LAST]]: seeds, of which as many in a row as there are shapes make all of them. With BYRE_MUTANT=NAME, built with mutants,
 *              that one is alive in what is recorded.
 * Owns         A simulated machine with four files: the bottom, an external data file, and two that are not used.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_under_crash.py
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/mutant.h"
#include "crash_files.h"
#include "graph/blockdev.h"
#include "graph/throttle.h"
#include "sim/luks.h"
#include "sim/seen.h"
#include "sim/workload.h"

#define SECTORS 96u
#define REQUEST_SECTORS 12u
#define GUESTS 3u
#define REQUESTS 7u                              /* of each guest */
#define VALUES 12u
#define FIRST_GEN 20u
#define GUEST_GEN 100u
#define AGAIN_GEN 90u
#define AGAIN_ONE_IN 16u
#define LAYERS_MAX 4u
#define PART_OFFSET 6144u                        /* of a disk that is a part of what lies below */
#define PART_BYTES (512u << 10)
#define BELOW_BYTES (1u << 20)                   /* of an image that has another one in it */
#define LETTERS 6u                               /* of the operator */
#define REACH 48u                                /* sectors that are there whatever he does: guests keep to them */
#define SNAPSHOT 1u                              /* its number in the model, */
#define SNAPSHOT_NAME "s"                        /* and its name */

enum { BOTTOM, DATA };
static const char *const names[CRASH_FILES] = { "bottom", "data", "unused", "unused-too" };

/* What lies over the file, the lowest first; the last one is the disk. */
enum layer { NOTHING, THROTTLE, ALIGNED, PREALLOCATE, PART, FIXED_PART, QCOW2, QCOW2_SMALL, QED, QCOW2_DATA, QCOW2_DATA_NODE, LUKS, QCOW2_LUKS };
static const enum layer shapes[][LAYERS_MAX + 1] = {
    { THROTTLE, QCOW2 },
    { ALIGNED, QCOW2_SMALL },
    { PREALLOCATE, QED },
    { PART, QCOW2_SMALL },
    { QCOW2, QCOW2 },
    { QED, QCOW2_SMALL },
    { QCOW2_SMALL, QED },
    { FIXED_PART, QCOW2 },
    { QCOW2, THROTTLE, PART, QCOW2 },
    { THROTTLE, QCOW2_DATA },
    { QCOW2, QCOW2, QCOW2 },
    { PREALLOCATE, ALIGNED, QCOW2 },
    { QCOW2_DATA_NODE },
}, crypts[][LAYERS_MAX + 1] = {
    { LUKS, QCOW2 },
    { QCOW2, LUKS },
    { THROTTLE, QCOW2_LUKS },
    { LUKS, QED },
}, operated[][LAYERS_MAX + 1] = {
    { THROTTLE, QCOW2 },
    { QCOW2, QCOW2_SMALL },
    { LUKS, QCOW2 },
    { PART, QCOW2_SMALL },
};
/* The last one first. operates: see operator_co. */
static const struct family { uint64_t from; const enum layer (*shapes)[LAYERS_MAX + 1]; unsigned count; bool operates; } families[] = {
    { 2000, operated, sizeof operated / sizeof operated[0], true },
    { 1000, crypts, sizeof crypts / sizeof crypts[0], false },
    { 0, shapes, sizeof shapes / sizeof shapes[0], false },
};

struct crash {
    struct crash_files f;
    struct prng p;
    const enum layer *layer;
    unsigned layers;
    struct fmt_create_opts how[LAYERS_MAX];      /* of layers that are formats */
    uint32_t first_gens[SECTORS];
    struct sim_trace *trace;                     /* of a run whose states are looked at; NULL: calls fail */
    struct sim_model now, model;                 /* what guests were told so far; what they had been told at the cut */
    struct sim_seen *seen;
    uint32_t id, gen;
    bool faulty, old_bytes;                      /* old_bytes: what the file gains may show somebody else's after a crash */
    uint64_t states, again;
    bool operates, hold;                         /* hold: guests begin nothing, */
    unsigned inside;                             /* and so many are still in a request */
    uint64_t found;                              /* sectors of the disk as it was found */
    uint32_t *kept[LETTERS];                     /* what snapshots hold: models refer to it */
    unsigned kept_count;
    const struct sim_model *by;                  /* what is there is judged by this */
    uint32_t gens[SECTORS];
    uint8_t *buf;
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct crash_mutant rows[] = {
        { "UNDER_FLUSH_STOPS", MUT_UNDER_FLUSH_STOPS }, { "FILTER_FLUSH_STOPS", MUT_FILTER_FLUSH_STOPS }, { "UNDER_GROWTH_ZERO", MUT_UNDER_GROWTH_ZERO },
        { "NEED_DATA_BARRIER", MUT_NEED_DATA_BARRIER }, { "QED_MARK_UNORDERED", MUT_QED_MARK_UNORDERED }, { "QED_CLEAN_EARLY", MUT_QED_CLEAN_EARLY }, { "DATA_FILE_LATE", MUT_DATA_FILE_LATE },
        { "SNAP_COUNT_LATE", MUT_SNAP_COUNT_LATE }, { "SNAP_FREE_FIRST", MUT_SNAP_FREE_FIRST }, { "SNAP_APPLY_FREE_FIRST", MUT_SNAP_APPLY_FREE_FIRST },
    };
    return crash_mutant_alive(id, rows, sizeof rows / sizeof rows[0]);
}
#endif

/* ---- the stack ---- */

static const struct fmt_ops *format_of(enum layer l)
{
    return l == QCOW2 || l == QCOW2_SMALL || l == QCOW2_DATA || l == QCOW2_DATA_NODE || l == QCOW2_LUKS ? &fmt_qcow2_ops : l == QED ? &fmt_qed_ops : l == LUKS ? &fmt_luks_ops : NULL;
}

/* Options of a layer over the node that `below` describes, which is taken over. */
static json_t *over(enum layer l, json_t *below)
{
    switch (l) {
    case THROTTLE: return json_pack("{s:s,s:s,s:o}", "driver", "throttle", "throttle-group", "g", "file", below);
    case ALIGNED: return json_pack("{s:s,s:i,s:o}", "driver", "blkdebug", "align", 4096, "image", below);
    case PREALLOCATE: return json_pack("{s:s,s:i,s:i,s:o}", "driver", "preallocate", "prealloc-align", 4096, "prealloc-size", 65536, "file", below);
    case PART: return json_pack("{s:s,s:i,s:o}", "driver", "raw", "offset", (int)PART_OFFSET, "file", below);
    case FIXED_PART: return json_pack("{s:s,s:i,s:i,s:o}", "driver", "raw", "offset", (int)PART_OFFSET, "size", (int)PART_BYTES, "file", below);
    case LUKS: return json_pack("{s:s,s:s,s:o}", "driver", "luks", "key-secret", SIM_LUKS_SECRET, "file", below);
    case QCOW2_LUKS: return json_pack("{s:s,s:s,s:o}", "driver", "qcow2", "encrypt.key-secret", SIM_LUKS_SECRET, "file", below);
    default: return json_pack("{s:s,s:o}", "driver", format_of(l)->name, "file", below);
    }
}

static json_t *file_options(unsigned i, bool read_only)
{
    return json_pack("{s:s,s:s,s:s,s:b}", "driver", "file", "filename", names[i], "discard", "unmap", "read-only", (int)read_only);
}

/* The node below layer `count`, nodes are "l0", "l1", and so on. */
static json_t *stack(const struct crash *c, unsigned count, bool read_only)
{
    json_t *o = file_options(BOTTOM, read_only);
    for (unsigned i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "l%u", i);
        o = over(c->layer[i], o);
        if (c->layer[i] == QCOW2_DATA_NODE)
            json_object_set_new(o, "data-file", over(THROTTLE, file_options(DATA, read_only)));
        json_object_set_new(o, "node-name", json_string(name));
        json_object_set_new(o, "discard", json_string("unmap"));
        json_object_set_new(o, "read-only", json_boolean(read_only));
    }
    ASSERT(o);
    return o;
}

static struct graph_node *layer_node(struct graph *g, unsigned i)
{
    char name[16];
    snprintf(name, sizeof name, "l%u", i);
    return graph_find(g, name);
}

struct opened { struct graph *g; struct graph_node *n; };

static int open_stack(struct co *co, struct crash *c, unsigned count, bool read_only, struct opened *ret)
{
    struct byre_err err = { 0 };
    struct throttle_group *t;
    *ret = (struct opened){ 0 };
    int r = sim_graph_new(c->f.w, co, &ret->g, &err);
    if (r == 0)
        r = throttle_group_new(ret->g, "g", &(struct throttle_limits){ 0 }, &t, &err);
    if (r == 0) {
        throttle_group_keep(t);
        json_t *o = stack(c, count, read_only);
        r = graph_blockdev_add(co, ret->g, o, &ret->n, &err);
        json_decref(o);
    }
    return r ? crash_wrong(&c->f, "the disk does not open: %s", err.text) : 0;
}

static int close_stack(struct co *co, struct opened *s)
{
    int r = s->g ? graph_blockdev_close_all(co, s->g) : 0;
    if (s->g)
        throttle_groups_free(s->g);
    graph_free(s->g);
    return r;
}

/* ---- in the beginning ---- */

/* External data goes to a file beside the bottom. */
static int open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    return sim_open(co, arg, name, false, ret_s);
}

/* Key slots of two stripes, so that it costs nothing to open it. What lies above it grows by itself. */
static int put_luks(struct co *co, struct crash *c, struct stor *to, unsigned i)
{
    struct iovec slot;
    sim_luks_area(c->buf);
    int r = stor_truncate(co, to, SIM_LUKS_BYTES + (i + 1 == c->layers ? SECTORS * SIM_SECTOR : 0));
    if (r)
        return crash_wrong(&c->f, "length: %d", r);
    return stor_write(co, to, iov_one(&slot, c->buf, SIM_LUKS_BYTES), 0, 0);
}

static int create_layer(struct co *co, struct crash *c, unsigned i)
{
    struct fmt_host host = { .open_data = open_data, .arg = c->f.w };
    struct byre_err err = { 0 };
    struct opened s;
    struct stor *to;
    if (!format_of(c->layer[i]))
        return 0;
    int r = i ? open_stack(co, c, i, false, &s) : sim_open(co, c->f.w, names[BOTTOM], false, &to);
    if (r == 0 && i)
        r = graph_node_store(co, s.n, "test", &to, &err);
    if (r == 0) {
        c->how[i].host = &host;
        r = c->layer[i] == LUKS ? put_luks(co, c, to, i) : format_of(c->layer[i])->create(co, to, &c->how[i], &err);
        stor_close(co, to);
    }
    int closed = i ? close_stack(co, &s) : 0;
    return r ? crash_wrong(&c->f, "layer %u cannot be made: %d %s", i, r, err.text) : closed;
}

static int fill_disk(struct co *co, struct crash *c)
{
    struct opened s;
    int r = open_stack(co, c, c->layers, false, &s);
    for (unsigned k = 0; k < 4 && r == 0; k++) {
        struct iovec slot;
        uint64_t at = prng_below(&c->p, SECTORS), len = min_u64(1 + prng_below(&c->p, 16), SECTORS - at);
        for (uint64_t i = 0; i < len; i++)
            sim_sector_fill(c->buf + i * SIM_SECTOR, FIRST_GEN + k, at + i);
        r = graph_write(co, s.n, iov_one(&slot, c->buf, len * SIM_SECTOR), at * SIM_SECTOR, 0);
    }
    if (r == 0)
        r = crash_read(co, &c->f, s.n, c->buf, SECTORS * SIM_SECTOR);
    for (uint64_t i = 0; i < SECTORS; i++)
        c->first_gens[i] = sim_sector_gen(c->buf + i * SIM_SECTOR, i);
    int closed = close_stack(co, &s);
    return r ? r : closed;
}

/* When all files are there: the layers are made in the first one. */
static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    struct crash *c = arg;
    (void)n;
    int r = 0;
    if (i + 1 < CRASH_FILES)
        return 0;
    for (unsigned k = 0; k < c->layers && r == 0; k++)
        r = create_layer(co, c, k);
    return r ? r : fill_disk(co, c);
}

/* ---- guests ---- */

/* Without a trace a note is for the model alone. */
static void tell(struct crash *c, const struct sim_note *what)
{
    struct sim_note *n = c->trace ? sim_trace_note(c->trace, what->kind, sim_stamp(c->f.w)) : NULL;
    struct sim_note own = *what;
    own.stamp = n ? n->stamp : sim_stamp(c->f.w);
    if (n)
        *n = own;
    sim_model_apply(&c->now, &own);
}

struct guest { struct crash *c; struct graph_node *n; struct co_group *group; struct prng rng; uint8_t *buf; };

static int change(struct co *co, struct guest *q, enum sim_note_kind kind, uint64_t first, uint64_t count)
{
    struct crash *c = q->c;
    struct iovec slot;
    uint32_t id = ++c->id, gen = GUEST_GEN + ++c->gen;
    uint64_t off = first * SIM_SECTOR, len = count * SIM_SECTOR;
    tell(c, &(struct sim_note){ .kind = kind, .id = id, .gen = gen, .off = off, .len = len });
    for (uint64_t i = 0; i < count; i++)
        sim_sector_fill(q->buf + i * SIM_SECTOR, gen, first + i);
    int r = kind == SIM_N_WRITE ? graph_write(co, q->n, iov_one(&slot, q->buf, len), off, prng_one_in(&q->rng, 6) ? GRAPH_FUA : 0)
          : kind == SIM_N_ZERO  ? graph_zero(co, q->n, off, len, prng_one_in(&q->rng, 2) ? GRAPH_UNMAP : 0)
                                : graph_discard(co, q->n, off, len);
    tell(c, &(struct sim_note){ .kind = r ? SIM_N_FAIL : SIM_N_ACK, .id = id });
    return r;
}

static int flush(struct co *co, struct guest *q)
{
    uint32_t id = ++q->c->id;
    tell(q->c, &(struct sim_note){ .kind = SIM_N_FLUSH, .id = id });
    int r = graph_flush(co, q->n);
    if (!r)
        tell(q->c, &(struct sim_note){ .kind = SIM_N_FLUSH_ACK, .id = id });
    return r;
}

/* What is read must have been there at some moment of the read. */
static int look_at(struct co *co, struct guest *q, uint64_t first, uint64_t count)
{
    struct crash *c = q->c;
    struct iovec slot;
    uint64_t issued = sim_stamp(c->f.w);
    uint32_t held[REQUEST_SECTORS][VALUES], n[REQUEST_SECTORS];
    for (uint64_t i = 0; i < count; i++)
        n[i] = sim_model_list(&c->now, first + i, issued, held[i], VALUES);
    int r = graph_read(co, q->n, iov_one(&slot, q->buf, count * SIM_SECTOR), first * SIM_SECTOR);
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        uint32_t gen = sim_sector_gen(q->buf + i * SIM_SECTOR, first + i);
        bool good = sim_model_live(&c->now, first + i, gen, issued) || n[i] == VALUES;
        for (uint32_t k = 0; k < n[i] && !good; k++)
            good = held[i][k] == gen;
        if (!good)
            return crash_never(&c->f, "a guest reads %d in sector %" PRIu64 ", which nobody had left there", (int)gen, first + i);
    }
    return r;
}

static void guest_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    uint64_t reach = q->c->operates ? REACH : SECTORS;
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t what = prng_below(&q->rng, 16), first = prng_below(&q->rng, reach), count = min_u64(1 + prng_below(&q->rng, REQUEST_SECTORS), reach - first);
        while (q->c->hold)
            (void)co_sleep(co, 1000);
        q->c->inside++;
        int r = what < 3 ? flush(co, q) : what < 5 ? look_at(co, q, first, count)
              : change(co, q, what < 12 ? SIM_N_WRITE : what < 14 ? SIM_N_ZERO : SIM_N_DISCARD, first, count);
        if (r && !q->c->faulty)
            (void)crash_wrong(&q->c->f, "a request fails: %s", strerror(-r));
        q->c->inside--;
        (void)co_sleep(co, prng_below(&q->rng, 400000));
    }
    co_group_leave(q->group);
}

/* ---- the operator ---- */

static int resize(struct co *co, struct guest *q)
{
    struct byre_err err = { 0 };
    uint32_t id = ++q->c->id;
    uint64_t size = (REACH + prng_below(&q->rng, SECTORS - REACH + 1)) * SIM_SECTOR;
    tell(q->c, &(struct sim_note){ .kind = SIM_N_RESIZE, .id = id, .len = size });
    int r = graph_resize(co, q->n, size, FMT_PREALLOC_OFF, &err);
    bool done = !r || graph_length(q->n) == size;            /* else it is done, but not tidied up */
    tell(q->c, &(struct sim_note){ .kind = done ? SIM_N_RESIZE_ACK : SIM_N_RESIZE_FAIL, .id = id, .len = size });
    return r;
}

static int read_gens(struct co *co, struct crash *c, struct graph_node *n, uint8_t *buf, uint32_t *gens)
{
    uint64_t sectors = min_u64(graph_length(n) / SIM_SECTOR, SECTORS);
    struct iovec slot;
    int r = graph_read(co, n, iov_one(&slot, buf, sectors * SIM_SECTOR), 0);
    for (uint64_t i = 0; i < SECTORS; i++)
        gens[i] = i < sectors ? sim_sector_gen(buf + i * SIM_SECTOR, i) : 0;
    c->found = sectors;
    return r;
}

/* An apply that failed may be done, but not tidied up (P3): then the disk holds the snapshot, which guests are to find from now on. Guests are held. */
static bool is_applied(struct co *co, struct guest *q)
{
    const struct sim_snap *s = q->c->now.applying;
    uint32_t gens[SECTORS];
    unsigned kinds = q->c->f.w->faults.kinds;
    if (!s || graph_length(q->n) != s->size)
        return false;
    q->c->f.w->faults.kinds = 0;         /* this is not what fails */
    int r = read_gens(co, q->c, q->n, q->c->buf, gens);
    q->c->f.w->faults.kinds = kinds;
    return !r && !memcmp(gens, s->gens, s->size / SIM_SECTOR * sizeof *gens);
}

/* Guests are held: it is known what is in it. */
static int snapshot(struct co *co, struct guest *q)
{
    struct crash *c = q->c;
    static const enum sim_note_kind kinds[] = { SIM_N_SNAP_CREATE, SIM_N_SNAP_APPLY, SIM_N_SNAP_DELETE };
    static const enum fmt_snapshot_op ops[] = { FMT_SNAPSHOT_CREATE, FMT_SNAPSHOT_APPLY, FMT_SNAPSHOT_DELETE };
    unsigned what = c->now.snap[SNAPSHOT].state == SIM_SNAP_NONE ? 0 : 1 + (unsigned)prng_below(&q->rng, 2);
    const struct fmt_snapshot_req rq = { .op = ops[what], .name = SNAPSHOT_NAME, .unique = true, .pick = { .name = SNAPSHOT_NAME }, .date_sec = 1700000000 };
    struct byre_err err = { 0 };
    uint32_t flush = ++c->id, *gens = calloc(SECTORS, sizeof *gens);
    ASSERT(gens && c->kept_count < LETTERS);
    c->kept[c->kept_count++] = gens;
    int r = read_gens(co, c, q->n, c->buf, gens);
    if (r)
        return r;
    tell(c, &(struct sim_note){ .kind = SIM_N_FLUSH, .id = flush });
    tell(c, &(struct sim_note){ .kind = kinds[what], .id = SNAPSHOT, .len = graph_length(q->n), .gens = what ? NULL : gens });
    r = graph_snapshot(co, q->n, &rq, NULL, &err);
    if (!r)
        tell(c, &(struct sim_note){ .kind = SIM_N_FLUSH_ACK, .id = flush });
    bool done = !r || is_applied(co, q);
    tell(c, &(struct sim_note){ .kind = done ? SIM_N_SNAP_ACK : SIM_N_SNAP_FAIL, .id = SNAPSHOT });
    return r;
}

static void operator_co(struct co *co, void *arg)
{
    struct guest *q = arg;
    struct crash *c = q->c;
    int r = 0;
    for (unsigned i = 0; i < LETTERS && r == 0; i++) {
        (void)co_sleep(co, prng_below(&q->rng, 500000));
        bool snaps = prng_below(&q->rng, 3) > 0;
        c->hold = snaps;
        while (snaps && c->inside)
            (void)co_sleep(co, 1000);
        r = snaps ? snapshot(co, q) : resize(co, q);
        c->hold = false;
        if (r && !c->faulty)
            (void)crash_wrong(&c->f, "the operator is refused: %s", strerror(-r));
    }
    co_group_leave(q->group);
}

static int use(struct co *co, struct crash *c, struct graph_node *n)
{
    struct co_group group = { 0 };
    struct guest q[GUESTS + 1];
    unsigned count = GUESTS + c->operates;
    for (unsigned i = 0; i < count; i++) {
        q[i] = (struct guest){ .c = c, .n = n, .group = &group, .buf = aligned_alloc(4096, REQUEST_SECTORS * SIM_SECTOR + 2048) };
        prng_init(&q[i].rng, c->f.w->rng.s[0] + i);
        co_group_enter(&group);
        int r = rt_spawn_on(rt_loop_at(c->f.w->rt, i < GUESTS ? i % 2 : 0), i < GUESTS ? guest_co : operator_co, &q[i]);
        ASSERT(r == 0 || c->faulty);
        if (r)
            co_group_leave(&group);
    }
    co_group_wait(co, &group);
    for (unsigned i = 0; i < count; i++)
        free(q[i].buf);
    return c->f.why[0] ? -1 : 0;
}

/* Models are begun anew, or gone. */
static void forget_snapshots(struct crash *c)
{
    while (c->kept_count)
        free(c->kept[--c->kept_count]);
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct opened s;
    c->id = c->gen = c->inside = 0;
    c->hold = false;
    forget_snapshots(c);
    sim_luks_seed(c->f.w->rng.s[0]);
    sim_model_start(&c->now, SECTORS * SIM_SECTOR, c->first_gens);
    int r = open_stack(co, c, c->layers, false, &s);
    if (r == 0)
        r = use(co, c, s.n);
    if (r == 0) {                                /* what comes last is a flush or the close */
        struct guest q = { .c = c, .n = s.n };
        r = prng_one_in(&c->f.w->rng, 2) ? flush(co, &q) : 0;
    }
    int closed = close_stack(co, &s);
    return r ? r : closed;
}

/* ---- a state ---- */

/* Does it say that it may be damaged? QED alone does (E1): lazy refcounts are nowhere. */
static bool is_marked(struct co *co, struct graph_node *n)
{
    struct fmt_info fi = { 0 };
    struct byre_err err = { 0 };
    bool marked = graph_format(n)->info(co, graph_image(n), &fi, &err) == 0 && fi.dirty;
    fmt_info_fini(&fi);
    return marked;
}

/* Flags that do not fit their counts. */
static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    (void)fixed;
    (void)text;
    *(uint64_t *)arg += !strcmp(id, "Q2_COPIED");
}

static int check_layer(struct co *co, struct crash *c, struct graph_node *n, unsigned i)
{
    struct byre_err err = { 0 };
    struct fmt_check_result res = { 0 };
    uint64_t flags = 0;
    if (c->layer[i] == LUKS)
        return 0;
    int r = graph_format(n)->check(co, graph_image(n), &(struct fmt_check_opts){ .finding = on_finding, .arg = &flags }, &res, &err);
    if (c->operates && i + 1 == c->layers && sim_model_loose(c->by))      /* Q13 */
        res.corruptions -= min_u64(res.corruptions, flags);
    uint64_t wrong = res.corruptions + (c->layer[i] == QED ? res.leaks : 0);         /* E1: clusters are lost under the mark only */
    if (r < 0 || res.check_errors || (wrong && !is_marked(co, n)))
        return crash_wrong(&c->f, "layer %u: %" PRIu64 " corruptions, %" PRIu64 " errors, %" PRIu64 " leaks %s", i, res.corruptions, res.check_errors, res.leaks, err.text);
    return 0;
}

static int read_disk(struct co *co, struct crash *c, struct graph_node *n)
{
    int r = read_gens(co, c, n, c->buf, c->gens);
    return r ? crash_wrong(&c->f, "the disk cannot be read: %s", strerror(-r)) : 0;
}

/* Opens it, looks at every image, reads the disk. */
static int inspect(struct co *co, struct crash *c)
{
    struct opened s;
    int r = open_stack(co, c, c->layers, true, &s);
    for (unsigned i = 0; i < c->layers && r == 0; i++)
        if (format_of(c->layer[i]))
            r = check_layer(co, c, layer_node(s.g, i), i);
    if (r == 0)
        r = read_disk(co, c, s.n);
    (void)!close_stack(co, &s);
    return r;
}

static int legal(struct crash *c, const struct sim_model *m)
{
    char text[160];
    uint64_t size = c->found * SIM_SECTOR;
    if (size != m->size && size != m->size_alt && !(m->applying && size == m->applying->size))
        return crash_wrong(&c->f, "the disk has %" PRIu64 " sectors", c->found);
    for (uint64_t i = 0; i < c->found && !m->applying; i++)
        if (!sim_model_allows(m, i, c->gens[i])) {
            sim_model_describe(m, i, text, sizeof text);
            return crash_wrong(&c->f, "sector %" PRIu64 " of the disk holds %d, not one of %s", i, (int)c->gens[i], text);
        }
    return 0;
}

static int write_one(struct co *co, struct crash *c, uint64_t at)
{
    struct opened s;
    struct iovec slot;
    int r = open_stack(co, c, c->layers, false, &s);
    if (r == 0) {
        sim_sector_fill(c->buf, AGAIN_GEN, at);
        r = graph_write(co, s.n, iov_one(&slot, c->buf, SIM_SECTOR), at * SIM_SECTOR, 0);
    }
    int closed = close_stack(co, &s);
    return r || closed ? crash_wrong(&c->f, "the disk cannot be written again: %d, %d", r, closed) : 0;
}

/* gens: of the disk as it was found. */
static int use_again(struct co *co, struct crash *c)
{
    uint32_t before[SECTORS];
    uint64_t at = c->states % c->found;
    c->again++;
    memcpy(before, c->gens, sizeof before);
    before[at] = AGAIN_GEN;
    int r = write_one(co, c, at);
    if (r == 0)
        r = inspect(co, c);
    for (uint64_t i = 0; i < SECTORS && r == 0; i++)
        if (before[i] != c->gens[i])
            r = crash_wrong(&c->f, "sector %" PRIu64 " held %d, and %d when the disk has been used again", i, (int)before[i], (int)c->gens[i]);
    return r;
}

/* P3: the snapshot is there as it was made, or is not there. The disk becomes it. */
static int apply(struct co *co, struct crash *c, const struct sim_snap *s)
{
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_APPLY, .pick = { .name = SNAPSHOT_NAME } };
    struct byre_err err = { 0 };
    struct opened o;
    int r = open_stack(co, c, c->layers, false, &o);
    if (r == 0 && graph_snapshot(co, o.n, &rq, NULL, &err))
        r = crash_wrong(&c->f, "the snapshot cannot be applied: %s", err.text);
    int closed = close_stack(co, &o);
    if (r == 0)
        r = closed ? crash_wrong(&c->f, "it cannot be closed: %d", closed) : inspect(co, c);
    if (r == 0 && c->found * SIM_SECTOR != s->size)
        r = crash_wrong(&c->f, "the snapshot has %" PRIu64 " sectors", c->found);
    for (uint64_t i = 0; i < c->found && r == 0; i++)
        if (c->gens[i] != s->gens[i])
            r = crash_wrong(&c->f, "sector %" PRIu64 " of the snapshot holds %d, not %d", i, (int)c->gens[i], (int)s->gens[i]);
    return r;
}

static int judge_by(struct co *co, struct crash *c, const struct sim_model *m)
{
    const struct sim_snap *s = &m->snap[SNAPSHOT];
    c->by = m;
    int r = inspect(co, c);
    if (r == 0)
        r = legal(c, m);
    if (r == 0 && c->states++ % AGAIN_ONE_IN == 0)
        r = use_again(co, c);
    if (r == 0 && c->states % 4 == 0 && s->state == SIM_SNAP_THERE && !m->applying)
        r = apply(co, c, s);
    return r;
}

static int judge_cut(struct co *co, void *arg) { return judge_by(co, arg, &((struct crash *)arg)->model); }
static int judge_end(struct co *co, void *arg) { return judge_by(co, arg, &((struct crash *)arg)->now); }

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct crash *c = arg;
    sim_mark m[CRASH_FILES];
    content.lo ^= x->m->sum.lo;
    content.hi ^= x->m->sum.hi;
    if (!sim_seen_add(c->seen, content))
        return 0;
    for (unsigned i = 0; i < CRASH_FILES; i++)
        m[i] = sim_disk_mark(crash_disk(&c->f, i));
    c->f.w->direct = true;
    int r = sim_run(c->f.w, judge_cut, c, 0);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        sim_disk_undo(crash_disk(&c->f, i), m[i]);
    if (r) {
        char text[400];
        sim_state_text(x, text, sizeof text);
        fprintf(stderr, "%s: %s\n", text, c->f.why);
    }
    return r ? 1 : 0;
}

/* ---- a seed ---- */

static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 1024, 4096, 16384 };
    prng_init(&c->p, seed);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        c->f.how[i] = (struct fmt_create_opts){ .size = SIM_SECTOR };
    const struct family *m = families;
    while (seed < m->from)
        m++;
    c->layer = m->shapes[seed % m->count];
    c->old_bytes = seed / m->count % 2;
    c->operates = m->operates;
    while (c->layer[c->layers])
        c->layers++;
    for (unsigned i = 0; i < c->layers; i++) {
        struct fmt_create_opts *o = &c->how[i];
        *o = (struct fmt_create_opts){ .size = i + 1 < c->layers ? BELOW_BYTES : SECTORS * SIM_SECTOR, .version = 3, .refcount_bits = 16 };
        o->cluster_size = c->layer[i] == QCOW2_SMALL ? 512 : c->layer[i] == QED ? 4096 : clusters[prng_below(&c->p, 3)];
        o->table_size = c->layer[i] == QED;
        o->extended_l2 = o->cluster_size == 16384;
        if (c->layer[i] == QCOW2_LUKS)
            *o = (struct fmt_create_opts){ .size = o->size, .version = 3, .refcount_bits = 16, .cluster_size = o->cluster_size, .secrets = sim_luks_secrets(),
                                           .encrypt = { .format = (char *)(uintptr_t)"luks", .key_secret = (char *)(uintptr_t)SIM_LUKS_SECRET, .iter_time_ms = 1 } };
        if (c->layer[i] == QCOW2_DATA || c->layer[i] == QCOW2_DATA_NODE)
            o->data_file = (char *)(uintptr_t)names[DATA];
    }
    if (c->layer[0] == FIXED_PART || c->layer[0] == PART)
        c->f.how[BOTTOM].size = PART_OFFSET + (c->layer[0] == FIXED_PART ? PART_BYTES : 0);
}

static int begin(struct crash *c, uint64_t seed)
{
    *c = (struct crash){ .buf = aligned_alloc(4096, SECTORS * SIM_SECTOR), .seen = sim_seen_new(16) };
    c->f.names = names;
    c->f.filled = CRASH_FILES;
    sim_model_init(&c->now, SECTORS, NULL);
    sim_model_init(&c->model, SECTORS, NULL);
    plan(c, seed);
    int r = crash_files_new(&c->f, seed, fill, c);
    if (r)
        fprintf(stderr, "the files cannot be made: %s\n", c->f.why);
    if (c->old_bytes) {
        struct stor_traits *t = &sim_world_find(c->f.w, names[BOTTOM])->traits;
        t->zero_growth = t->zero_crash = false;
    }
    return r;
}

static void end(struct crash *c)
{
    crash_files_free(&c->f);
    sim_model_fini(&c->now);
    sim_model_fini(&c->model);
    sim_seen_free(c->seen);
    forget_snapshots(c);
    free(c->buf);
}

/* Power cuts. */
static int cut_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c;
    struct sim_trace trace;
    sim_trace_init(&trace);
    int r = begin(&c, seed);
    c.trace = &trace;
    if (r == 0)
        r = crash_begin(&(struct crash_test){ &c.f, record, judge_end, &c }, &trace, seed);
    c.states = 0;
    if (r == 0) {
        crash_put(&c.f);
        sim_model_start(&c.model, SECTORS * SIM_SECTOR, c.first_gens);
        struct sim_explorer x = { .w = c.f.w, .t = &trace, .m = &c.model, .seed = seed, .visit = visit, .arg = &c };
        r = sim_explore(&x);
    }
    *ret_states += c.states;
    sim_trace_fini(&trace);
    end(&c);
    return r;
}

static unsigned every = 1;                       /* one n in so many */

/* Every n-th call of each kind fails; or allocation, in a program that wraps them. */
static int fault_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash_fault faults[] = {
#ifdef ALLOC_FAULTS
        { SIM_C_ALLOC, -ENOMEM, false, every }, { SIM_C_ALLOC, -ENOMEM, true, every },
#else
        { SIM_C_READ, -EIO, false }, { SIM_C_WRITE, -EIO, false }, { SIM_C_FLUSH, -EIO, false }, { SIM_C_FLUSH, -EIO, true },
        { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE, -ENOSPC, true }, { SIM_C_DISCARD | SIM_C_ZERO | SIM_C_LENGTH | SIM_C_EXTENT, -EIO, false },
#endif
    };
    struct crash c;
    int r = begin(&c, seed);
    c.faulty = true;
    if (r == 0)
        r = crash_every_fault(&(struct crash_test){ &c.f, record, judge_end, &c }, faults, sizeof faults / sizeof faults[0], seed, NULL, ret_states);
    end(&c);
    return r;
}

int main(int argc, char **argv)
{
    bool faulty = argc > 1 && !strcmp(argv[1], "faults");
    int words = faulty;
    if (faulty && argc > 3 && !strcmp(argv[2], "every")) {
        every = (unsigned)strtoul(argv[3], NULL, 0);
        words = 3;
    }
    return crash_seeds(argc - words, argv + words, faulty ? fault_seed : cut_seed);
}
