/* SPDX-License-Identifier: MIT
 *
 * crash_files.c: files of a simulated machine around which the power fails.
 *
 * Purpose      What chain_crash.c, snap_crash.c and ride_crash.c have in common.
 * Owns         struct crash_files.
 * Invariants   None.
 * Concurrency  One thread.
 * Failure      As the callers tell it. A mutant is alive only while something is recorded, with a trace or with calls that fail.
 * Tests        test_chain_crash.py, test_snap_crash.py, test_ride_crash.py
 */
#include "crash_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/blockdev.h"
#include "sim/fx_arm.h"
#include "sim/workload.h"

int crash_wrong(struct crash_files *f, const char *fmt, ...)
{
    va_list ap;
    if (!f->why[0]) {
        va_start(ap, fmt);
        vsnprintf(f->why, sizeof f->why, fmt, ap);
        va_end(ap);
    }
    return -1;
}

int crash_never(struct crash_files *f, const char *fmt, ...)
{
    va_list ap;
    if (!f->broken) {
        va_start(ap, fmt);
        vsnprintf(f->why, sizeof f->why, fmt, ap);
        va_end(ap);
    }
    f->broken = true;
    return -1;
}

struct sim_disk *crash_disk(const struct crash_files *f, unsigned i) { return &sim_world_find(f->w, f->names[i])->disk; }

const struct fmt_ops *crash_format(const struct crash_files *f, unsigned i)
{
    return f->how[i].table_size ? &fmt_qed_ops : f->how[i].cluster_size ? &fmt_qcow2_ops : &fmt_raw_ops;
}

/* The files as they are now. */
static void take(struct crash_files *f)
{
    for (unsigned i = 0; i < CRASH_FILES; i++) {
        f->first_len[i] = crash_disk(f, i)->len;
        f->first[i] = malloc(f->first_len[i]);
        memcpy(f->first[i], crash_disk(f, i)->data, f->first_len[i]);
    }
}

struct filling { struct crash_files *f; crash_fill *fill; void *arg; };

static int make_one(struct co *co, const struct filling *m, struct graph *g, unsigned i)
{
    struct graph_node *n;
    int r = crash_create(co, m->f, i);
    if (r || i >= m->f->filled)
        return r;
    r = crash_open(co, m->f, g, i, false, &n);
    if (r)
        return r;
    r = m->fill(co, m->arg, n, i);
    int closed = graph_close(co, n);
    return r ? r : closed;
}

static int make(struct co *co, void *arg)
{
    const struct filling *m = arg;
    struct graph *g;
    int r = sim_graph_new(m->f->w, co, &g, NULL);
    for (unsigned i = 0; i < CRASH_FILES && r == 0; i++)
        r = make_one(co, m, g, i);
    crash_graph_free(co, g);
    return r;
}

void crash_graph_free(struct co *co, struct graph *g)
{
    if (g)
        (void)!graph_blockdev_close_all(co, g);
    graph_free(g);
}

int crash_files_new(struct crash_files *f, uint64_t seed, crash_fill *fill, void *arg)
{
    struct filling m = { f, fill, arg };
    if (sim_world_new(seed, 2, &f->w))
        return 2;
    for (unsigned i = 0; i < CRASH_FILES; i++)
        sim_world_file(f->w, f->names[i])->traits.regular = true;
    f->w->direct = true;
    int r = sim_run(f->w, make, &m, 0);
    take(f);
    return r ? 2 : 0;
}

void crash_files_free(struct crash_files *f)
{
    sim_world_free(f->w);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        free(f->first[i]);
}

int crash_create(struct co *co, struct crash_files *f, unsigned i)
{
    struct stor *s;
    if (crash_format(f, i) == &fmt_raw_ops)
        return sim_disk_set_len(crash_disk(f, i), f->how[i].size);
    int r = sim_open(co, f->w, f->names[i], false, &s);
    if (r == 0) {
        r = crash_format(f, i)->create(co, s, &f->how[i], NULL);
        stor_close(co, s);
    }
    return r;
}

int crash_open(struct co *co, struct crash_files *f, struct graph *g, unsigned i, bool read_only, struct graph_node **ret)
{
    struct byre_err err = { 0 };
    const struct graph_open_opts o = { .filename = f->names[i], .format = crash_format(f, i)->name, .node_name = f->names[i], .backing_names = "layer",
                                       .read_only = read_only, .discard = true, .fmt = { .frontier_bytes = CRASH_OVERLAY_FRONTIER, .snapshot = f->snapshot },
                                       .key_secret = f->how[i].encrypt.key_secret };
    int r = graph_open(co, g, &o, ret, &err);
    return r < 0 ? crash_wrong(f, "%s does not open: %s", f->names[i], err.text) : 0;
}

int crash_read(struct co *co, struct crash_files *f, struct graph_node *n, uint8_t *to, uint64_t bytes)
{
    struct iovec slot;
    int r = graph_read(co, n, iov_one(&slot, to, bytes), 0);
    return r < 0 ? crash_wrong(f, "%s cannot be read: %s", graph_filename(n), strerror(-r)) : 0;
}

/* Counts may be late where they are lazy; an image of QED that says so is looked at when it is opened for writing. */
static bool may_be_marked(const struct crash_files *f, unsigned i) { return f->how[i].lazy_refcounts || f->how[i].table_size; }

int crash_check(struct co *co, struct crash_files *f, unsigned i)
{
    struct byre_err err = { 0 };
    struct fmt_check_result res = { 0 };
    struct fmt_image *im;
    struct stor *s;
    int r = crash_format(f, i) != &fmt_raw_ops ? sim_open(co, f->w, f->names[i], true, &s) : 1;
    if (r)
        return r < 0 ? r : 0;
    r = crash_format(f, i)->open(co, s, &(struct fmt_open_opts){ .check_mode = true, .read_only = true, .no_data = true }, &im, &err);
    if (r < 0) {
        stor_close(co, s);
        return crash_wrong(f, "%s does not open to be checked: %s", f->names[i], err.text);
    }
    r = im->ops->check(co, im, &(struct fmt_check_opts){ 0 }, &res, &err);
    int closed = im->ops->close(co, im);
    (void)closed;
    if (r < 0 || (res.corruptions && !may_be_marked(f, i)) || res.check_errors)
        return crash_wrong(f, "%s: %" PRIu64 " corruptions, %" PRIu64 " errors %s", f->names[i], res.corruptions, res.check_errors, err.text);
    return 0;
}

void crash_put(struct crash_files *f)
{
    for (unsigned i = 0; i < CRASH_FILES; i++) {
        sim_disk_set_hashing(crash_disk(f, i), false);
        sim_disk_commit(crash_disk(f, i));
        sim_disk_reset(crash_disk(f, i));
        int r = sim_disk_write(crash_disk(f, i), 0, f->first[i], f->first_len[i]);
        ASSERT(r == 0);
    }
}

static bool running;                             /* what is recorded */

int crash_mutant_alive(int id, const struct crash_mutant *rows, size_t count)
{
    const char *s = running ? getenv("BYRE_MUTANT") : NULL;
    for (size_t i = 0; s && i < count; i++)
        if (rows[i].id == id && !strcmp(rows[i].name, s))
            return 1;
    return 0;
}

/* That the engine holds. */
static long blocks(void)
{
#ifdef ALLOC_FAULTS
    return fx_alloc.live;
#else
    return 0;
#endif
}

int crash_record(struct crash_files *f, struct sim_trace *t, uint64_t seed, int (*run)(struct co *co, void *arg), void *arg)
{
    sim_world_restart(f->w, seed);
    f->w->direct = false;
    f->w->trace = t;
    running = true;
    fx_arm(f->w, true);
    int r = sim_run(f->w, run, arg, 0);
    fx_arm(f->w, false);
    running = false;
    f->w->trace = NULL;
    f->w->direct = true;
    return r;
}

int crash_begin(const struct crash_test *t, struct sim_trace *trace, uint64_t seed)
{
    int r = crash_record(t->f, trace, seed, t->record, t->arg);
    if (r == 0)
        r = sim_run(t->f->w, t->judge, t->arg, 0);
    if (r == 0)
        return 0;
    fprintf(stderr, "what is recorded fails itself: %d, %s\n", r, t->f->why);
    return t->f->why[0] ? 1 : 2;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    const struct crash_visit *v = arg;
    sim_mark m[CRASH_FILES];
    for (unsigned i = 0; i < CRASH_FILES; i++)
        m[i] = sim_disk_mark(crash_disk(v->f, i));
    v->f->w->direct = true;
    int r = v->look(v->arg, x);
    for (unsigned i = 0; i < CRASH_FILES; i++)
        sim_disk_undo(crash_disk(v->f, i), m[i]);
    if (r) {
        char text[400];
        sim_state_text(x, text, sizeof text);
        fprintf(stderr, "%s: %s\n", text, v->f->why);
        return 1;
    }
    return 0;
}

int crash_explore(struct crash_files *f, const struct sim_trace *t, uint64_t seed, const struct crash_visit *v)
{
    static const uint32_t nothing[1];
    struct sim_model model;
    crash_put(f);
    sim_model_init(&model, 1, NULL);
    sim_model_start(&model, SIM_SECTOR, nothing);
    struct sim_explorer x = { .w = f->w, .t = t, .m = &model, .seed = seed, .visit = visit, .arg = (void *)(uintptr_t)v };
    int r = sim_explore(&x);
    sim_model_fini(&model);
    return r;
}

/* ---- calls that fail ---- */

/* *ret_fired false: there are no so many calls. */
static int one_fault(const struct crash_test *t, const struct crash_fault *fault, uint64_t seed, uint64_t nth, bool *ret_fired)
{
    struct crash_files *f = t->f;
    crash_put(f);
    f->w->faults = (struct sim_faults){ .kinds = fault->kinds, .nth = nth, .what = fault->what, .forever = fault->forever };
    f->broken = false;
    long live = blocks();
    int r = crash_record(f, NULL, seed, t->record, t->arg);
    *ret_fired = f->w->faults.fired;
    f->w->faults = (struct sim_faults){ 0 };
    if (r == -EDEADLK || r == -ETIME || (r < 0 && !*ret_fired))
        return crash_wrong(f, "it hangs, or fails without a fault (%d)", r);
    if (f->broken)
        return -1;
    if (f->w->handles)
        return crash_never(f, "%u files are still open", f->w->handles);
    if (blocks() > live)
        return crash_never(f, "%ld blocks are still allocated", blocks() - live);
    f->why[0] = 0;
    return sim_run(f->w, t->judge, t->arg, 0);
}

int crash_every_fault(const struct crash_test *t, const struct crash_fault *faults, size_t count, uint64_t seed, int (*then)(void *arg), uint64_t *ret_states)
{
    for (size_t i = 0; i < count; i++) {
        bool fired = true;
        uint64_t step = faults[i].step ? faults[i].step : 1;
        for (uint64_t nth = 1 + seed % step; fired; nth += step) {
            int r = one_fault(t, &faults[i], seed, nth, &fired);
            if (r == 0 && then)
                r = then(t->arg);
            if (r) {
                fprintf(stderr, "fault %zu, call %" PRIu64 ": %d, %s\n", i, nth, r, t->f->why);
                return 1;
            }
            ++*ret_states;
        }
    }
    return 0;
}

/* ---- seeds ---- */

int crash_seeds(int argc, char **argv, int (*one)(uint64_t seed, uint64_t *ret_states))
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, last = argc > 2 ? strtoull(argv[2], NULL, 0) : first, states = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        int r = one(seed, &states);
        if (r) {
            fprintf(stderr, "seed %" PRIu64 "\n", seed);
            return r;
        }
    }
    printf("%" PRIu64 " states\n", states);
    return 0;
}
