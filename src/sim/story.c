/* SPDX-License-Identifier: MIT
 *
 * story.c: files and letters of a story.
 *
 * Purpose     A chain of four images with content, six more files that become overlays and targets, a list of letters: all of it from the seed.
 * Owns        struct story.
 * Invariants  S1 of story.h.
 * Concurrency One thread.
 * Failure     2: the simulator itself is broken.
 * Tests       tests/sim/stories_test.py
 */
#include "sim/story.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "sim/workload.h"

static const char *const names[STORY_FILES] = { "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9" };
static const struct { const char *word; unsigned weight[2]; } kinds[STORY_KINDS] = {
#define X(name, word, plain, keeping) { word, { plain, keeping } },
    STORY_LETTER_ROWS(X)
#undef X
};

const char *story_word(enum story_kind k) { return kinds[k].word; }
const char *story_name(unsigned file) { return names[file]; }

unsigned story_file_of(const struct graph_node *n)
{
    const char *name = graph_filename(n);
    unsigned i = 0;
    while (i < STORY_FILES && strcmp(names[i], name))
        i++;
    return i;
}

struct sim_disk *story_disk(const struct story *st, unsigned file) { return &st->w->files[file]->disk; }

const struct fmt_ops *story_format(const struct story *st, unsigned file)
{
    return st->how[file].table_size ? &fmt_qed_ops : st->how[file].cluster_size ? &fmt_qcow2_ops : &fmt_raw_ops;
}

int story_wrong(struct story *st, const char *fmt, ...)
{
    va_list ap;
    if (!st->why[0]) {
        va_start(ap, fmt);
        vsnprintf(st->why, sizeof st->why, fmt, ap);
        va_end(ap);
    }
    return -1;
}

void story_say(const struct story *st, const char *fmt, ...)
{
    va_list ap;
    if (!st->loud || !st->w->trace)
        return;
    va_start(ap, fmt);
    fprintf(stderr, "%10.3f ms  ", (double)st->w->now_ns / 1e6);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

/* ---- the plan ---- */

/* Overlays are images; targets may be raw. */
static void plan_file(struct story *st, unsigned i)
{
    static const unsigned clusters[] = { 512, 4096, 4096, 16384, 65536 };
    struct fmt_create_opts *o = &st->how[i];
    bool base = i == 0, spare = i >= STORY_CHAIN;
    uint64_t sectors = i < STORY_CHAIN - 1 ? STORY_SECTORS / 4 + prng_below(&st->p, STORY_SECTORS) : STORY_SECTORS;
    *o = (struct fmt_create_opts){ .size = min_u64(sectors, STORY_SECTORS) * SIM_SECTOR, .version = 3, .refcount_bits = 16 };
    if ((base && prng_one_in(&st->p, 3)) || (spare && prng_one_in(&st->p, 6)))
        return;
    o->cluster_size = clusters[prng_below(&st->p, 5)];
    o->extended_l2 = o->cluster_size == 16384;
    o->lazy_refcounts = prng_one_in(&st->p, 5);
    if (prng_one_in(&st->p, 6)) {
        o->table_size = 1 + (uint32_t)prng_below(&st->p, 2);
        o->cluster_size = 4096;
        o->extended_l2 = o->lazy_refcounts = false;
    }
    if (i && !spare) {
        o->backing_file = (char *)(uintptr_t)names[i - 1];
        o->backing_fmt = (char *)(uintptr_t)story_format(st, i - 1)->name;
    }
}

static enum story_kind any_kind(struct prng *p, bool keeps)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < STORY_KINDS; i++)
        sum += kinds[i].weight[keeps];
    uint64_t at = prng_below(p, sum);
    unsigned k = 0;
    while (at >= kinds[k].weight[keeps])
        at -= kinds[k++].weight[keeps];
    return (enum story_kind)k;
}

static void plan_letters(struct story *st)
{
    st->letters = 8 + (unsigned)prng_below(&st->p, 14);
    for (unsigned i = 0; i < st->letters; i++) {
        struct story_letter *l = &st->letter[i];
        *l = (struct story_letter){ .kind = any_kind(&st->p, st->keeps), .out = l->out };
        l->a = (uint32_t)prng_u64(&st->p);
        l->b = (uint32_t)prng_u64(&st->p);
        l->c = (uint32_t)prng_u64(&st->p);
    }
}

/* ---- what is in the files ---- */

/* Data and zeros at random places. */
static int fill(struct co *co, struct story *st, struct graph_node *n, unsigned i)
{
    static uint8_t buf[24 * SIM_SECTOR] __attribute__((aligned(4096)));
    uint64_t sectors = st->how[i].size / SIM_SECTOR;
    int r = 0;
    for (unsigned k = 0; k < 9 && r == 0; k++) {
        uint64_t at = prng_below(&st->p, sectors), len = min_u64(1 + prng_below(&st->p, 24), sectors - at);
        struct iovec slot;
        for (uint64_t s = 0; s < len; s++)
            sim_sector_fill(buf + s * SIM_SECTOR, 10 * (i + 1) + k, at + s);
        r = prng_one_in(&st->p, 4) ? graph_zero(co, n, at * SIM_SECTOR, len * SIM_SECTOR, GRAPH_UNMAP)
                                   : graph_write(co, n, iov_one(&slot, buf, len * SIM_SECTOR), at * SIM_SECTOR, 0);
    }
    return r;
}

static int read_gens(struct co *co, struct story *st, struct graph_node *n)
{
    static uint8_t buf[STORY_SECTORS * SIM_SECTOR] __attribute__((aligned(4096)));
    struct iovec slot;
    int r = graph_read(co, n, iov_one(&slot, buf, sizeof buf), 0);
    for (uint64_t s = 0; s < STORY_SECTORS; s++)
        st->first_gens[s] = sim_sector_gen(buf + s * SIM_SECTOR, s);
    return r;
}

static int create(struct co *co, struct story *st, unsigned i)
{
    struct stor *s;
    if (story_format(st, i) == &fmt_raw_ops)
        return sim_disk_set_len(story_disk(st, i), st->how[i].size);
    int r = sim_open(co, st->w, names[i], false, &s);
    if (r == 0) {
        r = story_format(st, i)->create(co, s, &st->how[i], NULL);
        stor_close(co, s);
    }
    return r;
}

static int make_one(struct co *co, struct story *st, struct graph *g, unsigned i)
{
    struct byre_err err = { 0 };
    struct graph_node *n;
    const struct graph_open_opts o = { .filename = names[i], .format = story_format(st, i)->name };
    int r = create(co, st, i);
    if (r || i >= STORY_CHAIN)
        return r;
    r = graph_open(co, g, &o, &n, &err);
    if (r)
        return r;
    r = fill(co, st, n, i);
    if (r == 0 && i == STORY_CHAIN - 1)
        r = read_gens(co, st, n);
    int closed = graph_close(co, n);
    return r ? r : closed;
}

static int make(struct co *co, void *arg)
{
    struct story *st = arg;
    struct graph *g;
    int r = sim_graph_new(st->w, co, &g, NULL);
    for (unsigned i = 0; i < STORY_FILES && r == 0; i++)
        r = make_one(co, st, g, i);
    graph_free(g);
    return r;
}

static void take(struct story *st)
{
    for (unsigned i = 0; i < STORY_FILES; i++) {
        st->first_len[i] = story_disk(st, i)->len;
        st->first[i] = malloc(st->first_len[i] + 1);
        ASSERT(st->first[i]);
        sim_disk_read(story_disk(st, i), 0, st->first[i], st->first_len[i]);
    }
}

void story_put(struct story *st)
{
    for (unsigned i = 0; i < STORY_FILES; i++) {
        struct sim_disk *d = story_disk(st, i);
        sim_disk_set_hashing(d, false);
        sim_disk_commit(d);
        sim_disk_reset(d);
        int r = sim_disk_write(d, 0, st->first[i], st->first_len[i]);
        ASSERT(r == 0);
    }
}

int story_new(struct story *st)
{
    prng_init(&st->p, st->seed);
    st->keeps = st->seed / STORY_KEEPING % 2;
    st->keep.file = STORY_FILES;
    if (sim_world_new(st->seed, 2, &st->w))
        return 2;
    sim_trace_init(&st->trace);
    for (unsigned i = 0; i < STORY_FILES; i++) {
        sim_world_file(st->w, names[i])->traits.regular = true;
        plan_file(st, i);
    }
    plan_letters(st);
    st->w->direct = true;
    int r = sim_run(st->w, make, st, 0);
    if (r)
        return 2;
    take(st);
    st->sound = sim_seen_new(16);
    sim_model_init(&st->now, STORY_SECTORS_MAX, NULL);
    sim_model_init(&st->model, STORY_SECTORS_MAX, NULL);
    return 0;
}

void story_free(struct story *st)
{
    sim_model_fini(&st->now);
    sim_model_fini(&st->model);
    sim_seen_free(st->sound);
    sim_trace_fini(&st->trace);
    for (unsigned i = 0; i < st->copies; i++)
        free(st->copy[i]);
    for (unsigned i = 0; i < STORY_FILES; i++)
        free(st->first[i]);
    sim_world_free(st->w);
}
