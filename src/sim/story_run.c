/* SPDX-License-Identifier: MIT
 *
 * story_run.c: a story is lived through and recorded.
 *
 * Purpose     Opens the chain, lets guests use it on two loops, has the operator tell his letters one after the other, ends everything in order.
 * Owns        The notes of what guests were told.
 * Invariants  S1, S2 of story.h. What a guest reads is what it or others wrote, at any moment of any job.
 * Concurrency Two simulated loops.
 * Failure     -1, and why in the story. With faults, requests, commands and jobs may fail; nothing may hang, and nothing read may be wrong.
 * Tests       tests/sim/stories_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "ctl/ctl.h"
#include "graph/blockdev.h"
#include "graph/throttle.h"
#include "sim/fx_arm.h"
#include "sim/story.h"
#include "sim/workload.h"

#define REQUEST_SECTORS 24u

/* ---- what guests were told ---- */

struct sim_note *story_note(struct story *st, enum sim_note_kind kind, uint32_t id)
{
    struct sim_note *n = sim_trace_note(&st->trace, kind, sim_stamp(st->w));
    n->id = id;
    return n;
}

void story_noted(struct story *st, const struct sim_note *n) { sim_model_apply(&st->now, n); }

static void told(struct story *st, enum sim_note_kind kind, uint32_t id) { story_noted(st, story_note(st, kind, id)); }

void story_home(struct story *st, unsigned home, unsigned maybe)
{
    ASSERT(st->events < STORY_EVENTS_MAX);
    st->event[st->events++] = (struct story_event){ sim_stamp(st->w), home, maybe };
}

/* ---- guests ---- */

struct request { enum sim_note_kind kind; uint64_t first, count; };

/* Inside the disk as it is, whatever a resize makes of it. */
static struct request some_range(const struct story *st, struct prng *rng, uint64_t most)
{
    uint64_t sectors = min_u64(st->now.size, st->now.size_alt) / SIM_SECTOR;
    struct request q = { .count = 1 + prng_below(rng, most) };
    q.first = prng_below(rng, sectors);
    if (prng_one_in(rng, 3))             /* where others are */
        q.first %= 32;
    q.count = min_u64(q.count, sectors - q.first);
    return q;
}

static int change(struct co *co, struct story *st, const struct request *q, struct prng *rng, uint8_t *buf)
{
    uint32_t id = ++st->id, gen = 200 + ++st->gen;
    struct iovec slot;
    struct sim_note *n = story_note(st, q->kind, id);
    n->gen = gen;
    n->off = q->first * SIM_SECTOR;
    n->len = q->count * SIM_SECTOR;
    story_noted(st, n);
    uint64_t off = n->off, len = n->len;
    for (uint64_t i = 0; i < q->count; i++)
        sim_sector_fill(buf + i * SIM_SECTOR, gen, q->first + i);
    int r = q->kind == SIM_N_WRITE ? graph_write(co, st->disk, iov_one(&slot, buf, len), off, 0)
          : q->kind == SIM_N_ZERO  ? graph_zero(co, st->disk, off, len, prng_one_in(rng, 2) ? GRAPH_UNMAP : 0)
                                   : graph_discard(co, st->disk, off, len);
    told(st, r ? SIM_N_FAIL : SIM_N_ACK, id);
    return r;
}

static int flush(struct co *co, struct story *st)
{
    uint32_t id = ++st->id;
    told(st, SIM_N_FLUSH, id);
    int r = graph_flush(co, st->disk);
    if (!r)
        told(st, SIM_N_FLUSH_ACK, id);
    return r;
}

/* What is read of a sector must have been there at some moment of the read. */
static int look(struct co *co, struct story *st, const struct request *q, uint8_t *buf)
{
    uint64_t issued = sim_stamp(st->w);
    struct iovec slot;
    uint32_t held[REQUEST_SECTORS][STORY_VALUES], n[REQUEST_SECTORS];
    for (uint64_t i = 0; i < q->count; i++)
        n[i] = sim_model_list(&st->now, q->first + i, issued, held[i], STORY_VALUES);
    int r = graph_read(co, st->disk, iov_one(&slot, buf, q->count * SIM_SECTOR), q->first * SIM_SECTOR);
    for (uint64_t i = 0; r == 0 && i < q->count; i++) {
        uint32_t gen = sim_sector_gen(buf + i * SIM_SECTOR, q->first + i);
        bool good = sim_model_live(&st->now, q->first + i, gen, issued) || n[i] == STORY_VALUES;
        for (uint32_t k = 0; k < n[i] && !good; k++)     /* a flush, or a shorter disk, has ruled it out meanwhile */
            good = held[i][k] == gen;
        if (!good)
            return story_wrong(st, "a guest reads %d in sector %" PRIu64 " at %.3f ms, which nobody had left there", (int)gen, q->first + i, (double)st->w->now_ns / 1e6);
    }
    return r;
}

static int one_request(struct co *co, struct story *st, struct prng *rng, uint8_t *buf)
{
    uint64_t what = prng_below(rng, 16);
    struct request q = some_range(st, rng, what < 6 ? 4 : REQUEST_SECTORS);
    if (what < 3)
        return flush(co, st);
    if (what < 6)
        return look(co, st, &q, buf);
    q.kind = what < 13 ? SIM_N_WRITE : what < 15 ? SIM_N_ZERO : SIM_N_DISCARD;
    return change(co, st, &q, rng, buf);
}

static void guest_main(struct co *co, void *arg)
{
    struct story_guest *gu = arg;
    struct story *st = gu->st;
    struct prng rng;
    uint8_t *buf = aligned_alloc(4096, REQUEST_SECTORS * SIM_SECTOR);
    ASSERT(buf);
    prng_init(&rng, st->seed * 7 + gu->id);
    while (!st->enough && !st->why[0]) {
        int r = one_request(co, st, &rng, buf);
        if (r && !st->w->faults.fired && !st->why[0])
            (void)story_wrong(st, "a guest's request fails: %s", strerror(-r));
        (void)co_sleep(co, prng_below(&rng, 3000000));
    }
    free(buf);
    co_group_leave(&st->guests);
}

static void guests_start(struct story *st)
{
    for (unsigned i = 0; i < STORY_GUESTS; i++) {
        st->guest[i] = (struct story_guest){ st, i };
        co_group_enter(&st->guests);
        int r = rt_spawn_on(rt_loop_at(st->w->rt, i % 2), guest_main, &st->guest[i]);
        ASSERT(r == 0);
    }
}

/* ---- beginning and end ---- */

/* A filter through which guests come in, so that others can be put below it. */
static int open_door(struct co *co, struct story *st, struct byre_err *err)
{
    struct throttle_group *t;
    json_t *o = json_pack("{s:s,s:s,s:s,s:s}", "driver", "throttle", "node-name", "door", "throttle-group", "g", "file", "top");
    int r = throttle_group_new(st->g, "g", &(struct throttle_limits){ 0 }, &t, err);
    if (r == 0) {
        throttle_group_keep(t);
        r = ctl_execute(co, st->ctl, &(struct ctl_request){ "blockdev-add", o, false }, NULL, err);
    }
    json_decref(o);
    return r;
}

static int open_disk(struct co *co, struct story *st)
{
    const struct graph_attach_opts ao = { "guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    const struct ctl_env env = { .graph = st->g, .jobs = &st->js };
    struct byre_err err = { 0 };
    unsigned top = STORY_CHAIN - 1;
    json_t *o = json_pack("{s:s,s:s,s:s,s:{s:s,s:s}}", "driver", story_format(st, top)->name, "node-name", "top", "discard", "unmap", "file", "driver", "file", "filename",
                          story_name(top));
    jobs_init(&st->js, co_loop(co));
    int r = ctl_new(co_loop(co), &env, &st->ctl, &err);
    ASSERT(r == 0);
    st->ctl_status = st->js.status_changed;
    st->ctl_io_error = st->js.io_error;
    st->ctl_arg = st->js.arg;
    st->js.status_changed = story_job_status;
    st->js.io_error = story_io_error;
    st->js.arg = st;
    r = ctl_execute(co, st->ctl, &(struct ctl_request){ "blockdev-add", o, false }, NULL, &err);
    json_decref(o);
    if (r == 0 && st->keeps)
        r = open_door(co, st, &err);
    if (r == 0)
        r = graph_attach(graph_find(st->g, st->keeps ? "door" : "top"), &ao, &st->disk, &err);
    if (r)
        return story_wrong(st, "the disk cannot be used: %s", err.text);
    for (unsigned i = 0; i < STORY_CHAIN; i++)
        st->used[i] = true;
    story_home(st, top, STORY_FILES);
    return 0;
}

/* Nobody writes any more: the disk is what guests left. */
static int look_at_all(struct co *co, struct story *st)
{
    uint8_t *buf = aligned_alloc(4096, REQUEST_SECTORS * SIM_SECTOR);
    ASSERT(buf);
    int r = 0;
    for (uint64_t at = 0, sectors = st->now.size / SIM_SECTOR; at < sectors && r == 0; at += REQUEST_SECTORS)
        r = look(co, st, &(struct request){ .first = at, .count = min_u64(REQUEST_SECTORS, sectors - at) }, buf);
    free(buf);
    return r && !st->w->faults.fired && !st->why[0] ? story_wrong(st, "the disk cannot be read: %s", strerror(-r)) : 0;
}

static int live(struct co *co, struct story *st)
{
    int r = 0;
    guests_start(st);
    st->w->faults = st->faults;
    for (unsigned i = 0; i < st->letters && r == 0 && !st->why[0]; i++) {
        if (st->letter[i].out)
            continue;
        (void)co_sleep(co, prng_below(&st->op, 6000000));
        r = story_tell(co, st, &st->letter[i]);
    }
    if (r == 0)
        r = story_finish(co, st);
    st->keep.enough = true;
    co_group_wait(co, &st->keep.readers);
    st->enough = true;
    co_group_wait(co, &st->guests);
    if (r == 0 && !st->why[0])
        r = look_at_all(co, st);
    return r;
}

static int main_co(struct co *co, void *arg)
{
    struct story *st = arg;
    struct byre_err err = { 0 };
    if (sim_graph_new(st->w, co, &st->g, &err))
        return story_wrong(st, "%s", err.text);
    int r = open_disk(co, st);
    if (r == 0)
        r = live(co, st);
    jobs_stop(co, &st->js);
    if (st->keep.node)
        (void)!graph_detach(co, st->keep.node);
    if (st->disk)
        (void)!graph_detach(co, st->disk);
    (void)!graph_blockdev_close_all(co, st->g);
    throttle_groups_free(st->g);
    ctl_stop(co, st->ctl);
    ctl_free(st->ctl);
    graph_free(st->g);
    return r || st->why[0] ? -1 : 0;
}

int story_run(struct story *st)
{
    story_put(st);
    sim_model_start(&st->now, STORY_SECTORS * SIM_SECTOR, st->first_gens);
    prng_init(&st->op, st->seed * 31);
    sim_world_restart(st->w, st->seed);
    st->w->direct = false;
    st->w->trace = &st->trace;
    fx_arm(st->w, true);
    int r = sim_run(st->w, main_co, st, 20000000);
    fx_arm(st->w, false);
    st->w->trace = NULL;
    st->w->direct = true;
    st->faults = st->w->faults;
    st->w->faults = (struct sim_faults){ 0 };
    if (r == -EDEADLK || r == -ETIME)
        return story_wrong(st, "it hangs");
    if (r == 0 && st->w->handles)
        return story_wrong(st, "%u files are still open", st->w->handles);
    return r;
}
