/* SPDX-License-Identifier: MIT
 *
 * story_keep.c: the disk of one moment, which somebody reads while guests write.
 *
 * Purpose     A filter copy-before-write comes in below the guests' own one, and goes again; meanwhile readers look at snapshot-access over it, ask what
 *             reads as zeros, give parts of it up, and a backup copies it elsewhere. Or readers look at the target of a backup with sync=none that lies over
 *             the disk (fleecing). All other letters are told meanwhile: the disk becomes longer chains, goes over to other files, is committed.
 * Owns        struct story_keep: its nodes, its readers.
 * Invariants  S4 of story.h. Further:
 *             K1  What was given up cannot be read any more, and all else can.
 *             K2  A backup of it is a copy of that moment when it ends well (J4).
 *             K3  When no job is left, the filter can be taken out.
 * Concurrency Readers on both loops; the rest is the operator's.
 * Failure     As story_tell.c.
 * Tests       tests/sim/stories_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "graph/cbw.h"
#include "sim/story.h"

#define READ_SECTORS 24u
#define GRANULE (CBW_GRANULE_MIN / SIM_SECTOR)

/* ---- what readers find ---- */

/* Is it still the disk of that moment? What a job keeps is so until it ends. */
static bool is_kept(const struct story *st)
{
    const struct story_keep *k = &st->keep;
    if (!k->id[0])
        return true;
    struct story_job *j = story_place((struct story *)(uintptr_t)st, k->id);
    struct job *job = job_find((struct jobs *)(uintptr_t)&st->js, k->id);
    return j && job && !j->asked && !j->concluded && job->status < JOB_WAITING && !job_cancelled(job);
}

/* S4: what was found once is found again. */
static int judge(struct story *st, uint64_t s, uint32_t gen, const char *how)
{
    struct story_copy *c = &st->keep.held;
    bool good = !c->count[s];
    for (unsigned k = 0; k < c->count[s] && !good; k++)
        good = c->gens[s][k] == gen;
    if (!good)
        return story_wrong(st, "a reader of the disk of one moment %s %d in sector %" PRIu64 " at %.3f ms, it held %d%s", how, (int)gen, s, (double)st->w->now_ns / 1e6,
                           (int)c->gens[s][0], c->count[s] > 1 ? " or something else" : "");
    c->count[s] = 1;
    c->gens[s][0] = gen;
    st->looks++;
    return 0;
}

struct range { uint64_t first, count; };

/* K1: may a read of it be refused? */
static bool may_refuse(const struct story *st, const struct range *q)
{
    const struct story_keep *k = &st->keep;
    bool may = k->taken || st->w->faults.fired;
    for (uint64_t s = q->first; s < q->first + q->count && !may; s++)
        may = k->going[s] || k->gone[s];
    return may;
}

static int look(struct co *co, struct story *st, const struct range *q, uint8_t *buf)
{
    struct story_keep *k = &st->keep;
    struct iovec slot;
    bool gone = false;
    for (uint64_t s = q->first; s < q->first + q->count; s++)
        gone |= k->gone[s];
    int r = graph_read(co, k->node, iov_one(&slot, buf, q->count * SIM_SECTOR), q->first * SIM_SECTOR);
    if (!is_kept(st))
        return 0;
    if (r == 0 && gone)
        return story_wrong(st, "what was given up of the disk of one moment can be read, at sector %" PRIu64, q->first);
    if (r && !(r == -EACCES && may_refuse(st, q)) && !st->w->faults.fired)
        return story_wrong(st, "the disk of one moment cannot be read at sector %" PRIu64 ": %s", q->first, strerror(-r));
    for (uint64_t i = 0; i < q->count && r == 0; i++)
        r = judge(st, q->first + i, sim_sector_gen(buf + i * SIM_SECTOR, q->first + i), "reads");
    return 0;
}

/* What is said to read as zeros does. */
static int ask_status(struct co *co, struct story *st, const struct range *q)
{
    struct graph_status s;
    int r = graph_status(co, st->keep.node, NULL, q->first * SIM_SECTOR, q->count * SIM_SECTOR, &s);
    if (!is_kept(st))
        return 0;
    if (r && !(r == -EACCES && may_refuse(st, q)) && !st->w->faults.fired)
        return story_wrong(st, "the disk of one moment does not say what it holds at sector %" PRIu64 ": %s", q->first, strerror(-r));
    for (uint64_t i = 0; r == 0 && s.zero && i < s.len / SIM_SECTOR; i++)
        r = judge(st, q->first + i, 0, "is told that it reads");
    return 0;
}

/* Whole granules are not wanted any more. */
static int give_up(struct co *co, struct story *st, struct prng *rng)
{
    struct story_keep *k = &st->keep;
    uint64_t sectors = k->held.sectors, first = prng_below(rng, sectors), end = min_u64(first + 1 + prng_below(rng, 2 * GRANULE), sectors);
    if (prng_one_in(rng, 2)) {
        first = round_down(first, GRANULE);
        end = min_u64(first + GRANULE, sectors);
    }
    for (uint64_t s = first; s < end; s++)
        k->going[s]++;
    int r = graph_discard(co, k->node, first * SIM_SECTOR, (end - first) * SIM_SECTOR);
    if (r && !k->taken && !st->w->faults.fired)
        return story_wrong(st, "a part of the disk of one moment cannot be given up: %s", strerror(-r));
    uint64_t whole = round_up(first, GRANULE), stop = end == sectors ? end : round_down(end, GRANULE);
    for (uint64_t s = first; s < end && r == 0; s++) {
        k->going[s]--;
        k->gone[s] |= s >= whole && s < stop;
    }
    return 0;
}

static void reader_main(struct co *co, void *arg)
{
    const struct story_reader *me = arg;
    struct story *st = me->st;
    struct story_keep *k = &st->keep;
    struct prng rng;
    uint8_t *buf = aligned_alloc(4096, READ_SECTORS * SIM_SECTOR);
    ASSERT(buf);
    prng_init(&rng, st->seed * 13 + st->names * 2 + me->id);
    while (!k->enough && !st->why[0] && is_kept(st)) {
        uint64_t what = prng_below(&rng, 24);
        struct range q = { .first = prng_below(&rng, k->held.sectors) };
        q.count = min_u64(1 + prng_below(&rng, READ_SECTORS), k->held.sectors - q.first);
        if (what == 0 && k->may_discard)
            (void)give_up(co, st, &rng);
        else if (what < 5)
            (void)ask_status(co, st, &q);
        else
            (void)look(co, st, &q, buf);
        (void)co_sleep(co, prng_below(&rng, 2000000));
    }
    free(buf);
    co_group_leave(&k->readers);
}

static int read_it(struct story *st, const char *name, bool discards)
{
    struct story_keep *k = &st->keep;
    const struct graph_attach_opts ao = { "reader", STOR_PERM_READ | (discards ? STOR_PERM_WRITE : 0), STOR_PERM_ALL };
    struct byre_err err = { 0 };
    int r = graph_attach(graph_find(st->g, name), &ao, &k->node, &err);
    if (r)
        return st->w->faults.fired ? r : story_wrong(st, "the disk of one moment cannot be read: %s", err.text);
    for (unsigned i = 0; i < STORY_READERS; i++) {
        k->reader[i] = (struct story_reader){ st, i };
        co_group_enter(&k->readers);
        if (rt_spawn_on(rt_loop_at(st->w->rt, i % 2), reader_main, &k->reader[i]))
            co_group_leave(&k->readers);         /* no memory: nobody reads */
    }
    return 0;
}

static void read_no_more(struct co *co, struct story *st)
{
    struct story_keep *k = &st->keep;
    k->enough = true;
    co_group_wait(co, &k->readers);
    if (k->node)
        (void)!graph_detach(co, k->node);
    k->node = NULL;
}

/* ---- by a filter ---- */

static int door_to(struct co *co, struct story *st, const struct graph_node *n)
{
    return story_ask(co, st, "blockdev-reopen", json_pack("{s:[{s:s,s:s,s:s,s:s}]}", "options", "driver", "throttle", "node-name", "door", "throttle-group", "g",
                     "file", graph_node_name(n)));
}

static int drop(struct co *co, struct story *st, char *name)
{
    int r = name[0] ? story_ask(co, st, "blockdev-del", json_pack("{s:s}", "node-name", name)) : 0;
    if (r == 0)
        name[0] = 0;
    return r;
}

void story_keep_end(struct co *co, struct story *st)
{
    struct story_keep *k = &st->keep;
    if (!k->on || k->id[0])
        return;
    k->ending = true;
    read_no_more(co, st);
    if (drop(co, st, k->view))
        return;
    struct graph_node *filter = k->filter[0] ? graph_find(st->g, k->filter) : NULL;
    if (filter && graph_backing(graph_attached(st->disk)) == filter && door_to(co, st, graph_backing(filter)))
        return;
    if (drop(co, st, k->filter) == 0 && drop(co, st, k->temp) == 0)
        k->on = false;
}

/* A file for what is overwritten. */
static int make_temp(struct co *co, struct story *st, const struct story_letter *l)
{
    struct story_keep *k = &st->keep;
    unsigned file = k->file < STORY_FILES ? k->file : story_fresh_file(st, l->a, false);
    if (file == STORY_FILES)
        return 1;
    *k = (struct story_keep){ .on = true, .file = file, .may_discard = l->c % 4 == 0 };
    st->used[file] = true;
    return story_add_node(co, st, file, NULL, k->temp);
}

static int make_filter(struct co *co, struct story *st, const struct story_letter *l)
{
    struct story_keep *k = &st->keep;
    struct graph_node *below = l->b % 4 ? graph_backing(graph_attached(st->disk)) : story_top(st);
    snprintf(k->filter, sizeof k->filter, "c%u", ++st->names);
    int r = story_ask(co, st, "blockdev-add", json_pack("{s:s,s:s,s:s,s:s,s:s}", "driver", "copy-before-write", "node-name", k->filter, "file", graph_node_name(below), "target", k->temp,
                      "on-cbw-error", l->c % 3 ? "break-guest-write" : "break-snapshot"));
    if (r) {
        k->filter[0] = 0;
        return r;
    }
    size_t note = story_copy_now(st, &k->held);
    r = door_to(co, st, graph_find(st->g, k->filter));
    story_copy_taken(st, &k->held, note);
    return r;
}

static int make_view(struct co *co, struct story *st)
{
    struct story_keep *k = &st->keep;
    snprintf(k->view, sizeof k->view, "v%u", ++st->names);
    int r = story_ask(co, st, "blockdev-add", json_pack("{s:s,s:s,s:s}", "driver", "snapshot-access", "node-name", k->view, "file", k->filter));
    if (r)
        k->view[0] = 0;
    return r ? r : read_it(st, k->view, k->may_discard);
}

static int begin(struct co *co, struct story *st, const struct story_letter *l)
{
    int r = make_temp(co, st, l);
    if (r == 0)
        r = make_filter(co, st, l);
    if (r == 0)
        r = make_view(co, st);
    if (r && st->keep.on)
        story_keep_end(co, st);
    st->done[STORY_KEEP] += r == 0;
    return r;
}

/* K2 */
static int push(struct co *co, struct story *st, const struct story_letter *l)
{
    struct story_keep *k = &st->keep;
    char name[16];
    size_t note;
    unsigned file;
    const bool could_discard = k->may_discard;
    k->may_discard = false;                      /* nobody takes a part away while the target is being made (is_whole) */
    struct story_job *j = story_new_target(co, st, STORY_BACKUP, l->b, &file, name);
    if (!j) {
        k->may_discard = could_discard;
        return 1;
    }
    struct story_copy *c = j->copy = story_copy_begin(st, file, &note);
    if (c) {
        c->sectors = k->held.sectors;
        memcpy(c->count, k->held.count, sizeof c->count);
        memcpy(c->gens, k->held.gens, sizeof c->gens);
    }
    json_t *o = json_pack("{s:s,s:s,s:s,s:b}", "device", k->view, "target", name, "sync", "full", "discard-source", l->c % 3 == 0);
    k->taken = l->c % 3 == 0;
    int r = story_start(co, st, j, "blockdev-backup", story_job_options(o, j, l));
    if (r)
        story_drop_node(co, st, name);
    st->done[STORY_KEEP] += r == 0;
    return r;
}

static bool is_whole(const struct story_keep *k)
{
    bool whole = !k->taken;
    for (uint64_t s = 0; s < k->held.sectors; s++)
        whole &= !k->going[s] && !k->gone[s];
    return whole;
}

int story_keep(struct co *co, struct story *st, const struct story_letter *l)
{
    struct story_keep *k = &st->keep;
    story_keep_look(co, st);
    if (!st->keeps || k->id[0])
        return 1;
    if (!k->on)
        return begin(co, st, l);
    if (!k->ending && is_whole(k) && l->a % 2)
        return push(co, st, l);
    story_keep_end(co, st);
    return k->on;
}

/* ---- by a job ---- */

int story_keep_job(struct story *st, const struct story_job *j, const char *node, const struct story_copy *held)
{
    struct story_keep *k = &st->keep;
    *k = (struct story_keep){ .on = true, .file = k->file, .held = *held };
    memcpy(k->id, j->id, sizeof k->id);
    int r = read_it(st, node, false);
    k->on = r == 0;
    return r;
}

void story_keep_look(struct co *co, struct story *st)
{
    struct story_keep *k = &st->keep;
    if (!k->on || !k->id[0] || is_kept(st))
        return;
    read_no_more(co, st);
    k->on = false;
    k->id[0] = 0;
}
