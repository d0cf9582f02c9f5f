/* SPDX-License-Identifier: MIT
 *
 * moving.c: a disk in use while a job copies it.
 *
 * Purpose     What the explorers of mirrors and backups have in common: files, guests, what guests were told, the job's event, cuts.
 * Owns        The world, the trace and the model of struct moving.
 * Invariants  T1  The same seed gives the same trace.
 * Concurrency Two simulated loops.
 * Failure     A failed check fails the test.
 * Tests       mirror_test.c, backup_test.c
 */
#include "sim/moving.h"
#include "sim/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/test.h"

/* ---- guests ---- */

static void note(struct moving *t, enum sim_note_kind kind, uint32_t id, const struct sim_note *what)
{
    struct sim_note *n = sim_trace_note(&t->trace, kind, sim_stamp(t->w));
    n->id = id;
    if (what) {
        n->gen = what->gen;
        n->off = what->off;
        n->len = what->len;
    }
}

static void guest_write(struct co *co, struct moving *t, struct prng *rng)
{
    uint8_t buf[4 * SIM_SECTOR];
    struct iovec slot;
    uint32_t n = 1 + (uint32_t)prng_below(rng, 4), first = (uint32_t)prng_below(rng, t->sectors - n), id = ++t->id, gen = 16 + ++t->gen;
    const struct sim_note what = { .gen = gen, .off = first * SIM_SECTOR, .len = n * SIM_SECTOR };
    for (uint32_t i = 0; i < n; i++)
        sim_sector_fill(buf + i * SIM_SECTOR, gen, first + i);
    note(t, SIM_N_WRITE, id, &what);
    int r = graph_write(co, t->disk, iov_one(&slot, buf, what.len), what.off, 0);
    note(t, r ? SIM_N_FAIL : SIM_N_ACK, id, NULL);
}

static void guest_flush(struct co *co, struct moving *t)
{
    uint32_t id = ++t->id;
    note(t, SIM_N_FLUSH, id, NULL);
    if (!graph_flush(co, t->disk))
        note(t, SIM_N_FLUSH_ACK, id, NULL);
}

static void guest_main(struct co *co, void *arg)
{
    struct moving_guest *gu = arg;
    struct moving *t = gu->t;
    struct prng rng;
    prng_init(&rng, t->seed * 7 + gu->id);
    for (unsigned after = 0; after < 4; after += t->ended) {
        if (prng_one_in(&rng, 4))
            guest_flush(co, t);
        else
            guest_write(co, t, &rng);
        (void)co_sleep(co, prng_below(&rng, 1200000));
    }
    co_group_leave(&t->guests);
}

void moving_guests_start(struct co *co, struct moving *t)
{
    t->w->faults = t->faults;
    for (unsigned i = 0; i < MOVING_GUESTS; i++) {
        t->guest[i] = (struct moving_guest){ t, i };
        co_group_enter(&t->guests);
        assert_int_equal(rt_spawn(co_loop(co), guest_main, &t->guest[i]), 0);
    }
}

void moving_guests_wait(struct co *co, struct moving *t) { co_group_wait(co, &t->guests); }

/* ---- the disks ---- */

static void on_status(void *arg, const struct job *job)
{
    struct moving *t = arg;
    if (job->status != JOB_CONCLUDED)
        return;
    t->ended = true;
    t->result = job->result;
    if (job->result == (t->cancels ? -ECANCELED : 0))
        t->over = sim_stamp(t->w);
}

void moving_open(struct co *co, struct moving *t)
{
    struct byre_err err = { 0 };
    const struct graph_attach_opts ao = { "guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    struct graph_opts go = { .opener = &t->w->opener };
    assert_int_equal(graph_new(co_loop(co), &go, &t->g, &err), 0);
    struct graph_open_opts oo = { .filename = "source", .format = "raw", .node_name = "source" };
    assert_int_equal(graph_open(co, t->g, &oo, &t->from, &err), 0);
    oo.filename = oo.node_name = "target";
    oo.format = t->image ? t->image : "raw";
    assert_int_equal(graph_open(co, t->g, &oo, &t->to, &err), 0);
    assert_int_equal(graph_attach(t->from, &ao, &t->disk, &err), 0);
    jobs_init(&t->js, co_loop(co));
    t->js.status_changed = on_status;
    t->js.arg = t;
}

void moving_close(struct co *co, struct moving *t)
{
    (void)graph_detach(co, t->disk);
    if (t->to)
        (void)graph_close(co, t->to);
    (void)graph_close(co, t->from);
    graph_free(t->g);
}

/* ---- the files ---- */

static struct sim_disk *empty(struct moving *t, unsigned file, uint64_t bytes)
{
    struct sim_disk *d = &t->w->files[file]->disk;
    sim_disk_set_hashing(d, false);
    sim_disk_reset(d);
    assert_int_equal(sim_disk_set_len(d, bytes), 0);
    return d;
}

void moving_fill(struct moving *t)
{
    uint8_t buf[SIM_SECTOR];
    for (unsigned f = 0; f < 2; f++) {
        bool image = f == 1 && t->image;
        struct sim_disk *d = empty(t, f, image ? t->start_bytes : moving_bytes(t));
        for (uint32_t s = 0; s < t->sectors && !image; s++) {
            sim_sector_fill(buf, f ? 2 : 1, s);
            assert_int_equal(sim_disk_write(d, s * SIM_SECTOR, buf, sizeof buf), 0);
        }
        if (image)
            assert_int_equal(sim_disk_write(d, 0, t->start, t->start_bytes), 0);
    }
}

static int create(struct co *co, void *arg)
{
    struct moving *t = arg;
    struct fmt_create_opts o = { .size = moving_bytes(t), .version = 3, .refcount_bits = 16, .cluster_size = 4096, .table_size = strcmp(t->image, "qed") ? 0 : 1 };
    struct stor *s;
    struct byre_err err = { 0 };
    assert_int_equal(sim_open(co, t->w, "target", false, &s), 0);
    assert_int_equal(fmt_by_name(t->image)->create(co, s, &o, &err), 0);
    stor_close(co, s);
    return 0;
}

static void make_image(struct moving *t)
{
    assert_int_equal(sim_run(t->w, create, t, 0), 0);
    const struct sim_disk *d = &t->w->files[1]->disk;
    t->start_bytes = round_up(d->len, SIM_SECTOR);
    t->start = calloc(1, t->start_bytes);
    assert_non_null(t->start);
    sim_disk_read(d, 0, t->start, d->len);
    sim_world_restart(t->w, t->seed);
}

void moving_init(struct moving *t)
{
    uint32_t gens[MOVING_SECTORS_MAX];
    assert_true(t->sectors <= MOVING_SECTORS_MAX);
    sim_trace_init(&t->trace);
    assert_int_equal(sim_world_new(t->seed, 2, &t->w), 0);
    (void)sim_world_file(t->w, "source");
    (void)sim_world_file(t->w, "target");
    if (t->image)
        make_image(t);
    moving_fill(t);
    for (uint32_t s = 0; s < t->sectors; s++)
        gens[s] = 1;
    sim_model_init(&t->model, t->sectors, NULL);
    sim_model_start(&t->model, moving_bytes(t), gens);
}

void moving_fini(struct moving *t)
{
    sim_model_fini(&t->model);
    sim_trace_fini(&t->trace);
    sim_world_free(t->w);
    free(t->start);
}

struct hash128 moving_run(struct moving *t, int (*fn)(struct co *co, void *arg))
{
    t->w->trace = &t->trace;
    assert_int_equal(sim_run(t->w, fn, t, 0), 0);
    t->w->trace = NULL;
    t->faults = t->w->faults;
    return sim_trace_hash(&t->trace);
}

/* ---- looking ---- */

uint32_t moving_gen(const struct moving *t, unsigned file, uint32_t sector)
{
    uint8_t buf[SIM_SECTOR];
    sim_disk_read(&t->w->files[file]->disk, sector * SIM_SECTOR, buf, sizeof buf);
    return sim_sector_gen(buf, sector);
}

struct reading { struct moving *t; uint32_t *gens; int result; };

static int read_co(struct co *co, void *arg)
{
    struct reading *rd = arg;
    struct moving *t = rd->t;
    struct byre_err err = { 0 };
    struct graph_opts go = { .opener = &t->w->opener };
    struct graph_open_opts oo = { .filename = "target", .format = t->image, .read_only = true };
    struct graph_node *n;
    struct graph *g;
    struct iovec slot;
    static uint8_t buf[MOVING_SECTORS_MAX * SIM_SECTOR];
    assert_int_equal(graph_new(co_loop(co), &go, &g, &err), 0);
    rd->result = graph_open(co, g, &oo, &n, &err);
    if (!rd->result) {
        rd->result = graph_read(co, n, iov_one(&slot, buf, moving_bytes(t)), 0);
        for (uint32_t s = 0; s < t->sectors; s++)
            rd->gens[s] = sim_sector_gen(buf + s * SIM_SECTOR, s);
        (void)graph_close(co, n);
    }
    graph_free(g);
    return 0;
}

int moving_read_target(struct moving *t, uint32_t *gens)
{
    struct reading rd = { t, gens, 0 };
    const struct sim_faults faults = t->w->faults;
    t->w->faults = (struct sim_faults){ 0 };
    t->w->direct = true;
    assert_int_equal(sim_run(t->w, read_co, &rd, 0), 0);
    t->w->direct = false;
    t->w->faults = faults;
    return rd.result;
}

bool moving_is_sound(const struct moving *t)
{
    struct sim_audit a = { 0 };
    const struct sim_disk *d = &t->w->files[1]->disk;
    if (!t->image)
        return true;
    if (!strcmp(t->image, "qed"))            /* the mark says that it is to be looked at, and that is all */
        return sim_qed_audit(d, &a) && !a.broken && (a.marked || (!a.low && !a.outside));
    sim_audit(d, &a);
    return !a.broken && !a.low && !a.copied_wrong && !a.outside && !a.marked;
}

void moving_wrong(struct moving *t, const struct sim_explorer *x, const char *what, uint32_t sector)
{
    if (!t->bad++) {
        size_t n = (size_t)snprintf(t->first, sizeof t->first, "%s, sector %u: ", what, sector);
        sim_state_text(x, t->first + n, sizeof t->first - n);
    }
}

void moving_explore(struct moving *t, int (*visit)(void *arg, struct sim_explorer *x, struct hash128 content))
{
    moving_fill(t);
    struct sim_explorer x = { .w = t->w, .t = &t->trace, .m = &t->model, .seed = t->seed, .visit = visit, .arg = t };
    int r = sim_explore(&x);
    assert_true(r == 0 || t->bad);
}

void moving_check_now(struct moving *t, unsigned file)
{
    for (size_t i = 0; i < t->trace.note_count; i++)
        sim_model_apply(&t->model, &t->trace.notes[i]);
    static uint32_t gens[MOVING_SECTORS_MAX];
    assert_int_equal(file && t->image ? moving_read_target(t, gens) : 0, 0);
    for (uint32_t s = 0; s < t->sectors; s++) {
        bool right = sim_model_allows(&t->model, s, file && t->image ? gens[s] : moving_gen(t, file, s));
        if (!right)
            print_error("seed %llu, fault %llu of kinds %x: sector %u is wrong\n", (unsigned long long)t->seed, (unsigned long long)t->faults.nth, t->faults.kinds, s);
        assert_true(right);
    }
}
