/* SPDX-License-Identifier: MIT
 *
 * create_crash.c: the power fails while a new image is made where an old one is: every state that may be left is looked at (Q28).
 *
 * Purpose      The job create, and the formats' own creation as `byre create` calls it, write an image over an old one with data, in a file or on a
 *              device. In each state there is the old image, sound and as it was; or no image, by its first bytes; or the new one, sound and empty.
 *              Never an old header over new tables, nor a new one over tables that are not there.
 * Usage        create-crash [FIRST [LAST]]: seeds. With BYRE_MUTANT=NAME, built with mutants, that one is alive in what is recorded.
 * Owns         A simulated machine with four files, of which the last two are empty.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_create_crash.py
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "crash_files.h"
#include "job/create.h"
#include "sim/workload.h"

#define OLD_SECTORS 48u
#define NEW_SECTORS 56u                          /* told from the old one by its size */
#define DEVICE_BYTES (256u << 10)

enum { OLD, FIRST_EMPTY };
static const char *const names[CRASH_FILES] = { "old", "a", "b", "c" };

struct crash {
    struct crash_files f;
    struct prng p;
    bool device, by_job;
    const char *driver;                          /* of the new image */
    uint64_t cluster;                            /* and its clusters */
    uint8_t *content, *got;
    uint64_t states, old_image, no_image, new_image;
};

#ifdef BYRE_MUTANTS
int byre_mutant_alive(int id)
{
    static const struct { const char *name; int id; } rows[] = {
        { "CREATE_OVER_HEADER", MUT_CREATE_OVER_HEADER }, { "CREATE_HEADER_EARLY", MUT_CREATE_HEADER_EARLY },
    };
    const char *s = getenv("BYRE_MUTANT");
    for (unsigned i = 0; s && sim_recording && i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].id == id && !strcmp(rows[i].name, s))
            return 1;
    return 0;
}
#endif

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    static uint8_t buf[SIM_SECTOR] __attribute__((aligned(4096)));
    struct crash *c = arg;
    int r = 0;
    for (uint64_t k = 0; k < OLD_SECTORS && r == 0; k++) {
        struct iovec slot;
        sim_sector_fill(buf, 10 + i, k);
        if (prng_one_in(&c->p, 2))
            r = graph_write(co, n, iov_one(&slot, buf, SIM_SECTOR), k * SIM_SECTOR, 0);
    }
    if (r == 0)
        r = crash_read(co, &c->f, n, c->got, OLD_SECTORS * SIM_SECTOR);
    memcpy(c->content, c->got, OLD_SECTORS * SIM_SECTOR);
    return r;
}

/* ---- what is recorded ---- */

static int make_by_job(struct co *co, struct crash *c, struct graph *g)
{
    struct byre_err err = { 0 };
    struct graph_node *n;
    struct jobs js;
    struct job *job;
    const struct graph_open_opts o = { .filename = names[OLD], .format = "raw", .node_name = "old", .discard = true };
    json_t *options = json_pack("{s:s,s:s,s:i,s:i}", "driver", c->driver, "file", "old", "size", NEW_SECTORS * SIM_SECTOR, "cluster-size", (int)c->cluster);
    int r = graph_open(co, g, &o, &n, &err);
    if (r)
        return crash_wrong(&c->f, "the old file does not open: %s", err.text);
    jobs_init(&js, co_loop(co));
    const struct job_create_opts jo = { .graph = g, .options = options, .job = { .id = "j" } };
    r = job_create_start(&js, &jo, &job, &err);
    while (!r && job->status != JOB_CONCLUDED)
        (void)co_sleep(co, 1000);
    if (r || job->result)
        r = crash_wrong(&c->f, "nothing is created: %s", r ? err.text : job->err.text);
    jobs_stop(co, &js);
    json_decref(options);
    int closed = graph_close(co, n);
    return r ? r : closed;
}

static int make_by_format(struct co *co, struct crash *c)
{
    struct byre_err err = { 0 };
    struct fmt_create_opts o = { .size = NEW_SECTORS * SIM_SECTOR, .version = 3, .refcount_bits = 16, .cluster_size = c->cluster };
    struct stor *s;
    int r = sim_open(co, c->f.w, names[OLD], false, &s);
    if (r)
        return r;
    if (fmt_by_name(c->driver)->create(co, s, &o, &err))
        r = crash_wrong(&c->f, "nothing is created: %s", err.text);
    stor_close(co, s);
    return r;
}

static int record(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct graph *g;
    if (!c->by_job)
        return make_by_format(co, c);
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0)
        r = make_by_job(co, c, g);
    crash_graph_free(co, g);
    return r;
}

/* ---- a state ---- */

/* 0: none. The simulated file is what a program finds: its first bytes decide. */
static bool has_magic(struct crash *c)
{
    const struct sim_disk *d = crash_disk(&c->f, OLD);
    return d->len >= SIM_SECTOR && (!memcmp(d->data, "QFI\xfb", 4) || !memcmp(d->data, "QED\0", 4));
}

static int judge_open(struct co *co, struct crash *c, struct graph_node *n)
{
    uint64_t size = graph_length(n), want = NEW_SECTORS * SIM_SECTOR;
    bool old = size == OLD_SECTORS * SIM_SECTOR;
    if (!old && size != want)
        return crash_wrong(&c->f, "an image of %" PRIu64 " bytes is neither the old one nor the new one", size);
    int r = crash_read(co, &c->f, n, c->got, size);
    for (uint64_t i = 0; i < size && r == 0; i++)
        if (c->got[i] != (old ? c->content[i] : 0))
            r = crash_wrong(&c->f, "the %s image holds something else at offset %" PRIu64, old ? "old" : "new", i);
    c->old_image += old;
    c->new_image += !old;
    return r;
}

static int judge(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct byre_err err = { 0 };
    struct graph *g;
    struct graph_node *n;
    if (!has_magic(c)) {
        c->no_image++;
        return 0;
    }
    const char *format = crash_disk(&c->f, OLD)->data[2] == 'I' ? "qcow2" : "qed";
    const struct graph_open_opts o = { .filename = names[OLD], .format = format, .read_only = true };
    int r = sim_graph_new(c->f.w, co, &g, NULL);
    if (r == 0 && graph_open(co, g, &o, &n, &err))
        r = crash_wrong(&c->f, "what begins as an image does not open: %s", err.text);
    if (r == 0) {
        r = judge_open(co, c, n);
        (void)!graph_close(co, n);
    }
    crash_graph_free(co, g);
    c->f.how[OLD].table_size = !strcmp(format, "qed");
    c->f.how[OLD].cluster_size = 4096;           /* crash_check asks for the format alone */
    return r ? r : crash_check(co, &c->f, OLD);
}

static int look(void *arg, const struct sim_explorer *x)
{
    struct crash *c = arg;
    (void)x;
    c->states++;
    return sim_run(c->f.w, judge, c, 0);
}

/* ---- a seed ---- */

static void plan(struct crash *c, uint64_t seed)
{
    static const unsigned clusters[] = { 512, 1024, 4096 };
    prng_init(&c->p, seed);
    for (unsigned i = FIRST_EMPTY; i < CRASH_FILES; i++)
        c->f.how[i] = (struct fmt_create_opts){ .size = SIM_SECTOR };
    struct fmt_create_opts *o = &c->f.how[OLD];
    *o = (struct fmt_create_opts){ .size = OLD_SECTORS * SIM_SECTOR, .version = 3, .refcount_bits = 16, .cluster_size = clusters[prng_below(&c->p, 3)] };
    c->device = seed % 3 == 0;
    c->by_job = seed % 2;
    c->driver = !c->device && seed % 5 == 0 ? "qed" : "qcow2";
    c->cluster = strcmp(c->driver, "qed") ? clusters[prng_below(&c->p, 3)] : 4096;
    if (!c->device && seed % 4 == 1) {
        o->table_size = 1;
        o->cluster_size = 4096;
    }
}

/* A device has its length, and room. */
static int make_device(struct crash *c)
{
    uint8_t *all = calloc(1, DEVICE_BYTES);
    if (!all || c->f.first_len[OLD] > DEVICE_BYTES) {
        free(all);
        return 2;
    }
    memcpy(all, c->f.first[OLD], c->f.first_len[OLD]);
    free(c->f.first[OLD]);
    c->f.first[OLD] = all;
    c->f.first_len[OLD] = DEVICE_BYTES;
    sim_world_find(c->f.w, names[OLD])->traits.regular = false;
    return 0;
}

static int explore(struct crash *c, uint64_t seed)
{
    struct sim_trace trace;
    sim_trace_init(&trace);
    crash_put(&c->f);
    int r = crash_record(&c->f, &trace, seed, record, c);
    if (r == 0)
        r = sim_run(c->f.w, judge, c, 0);
    if (r || c->new_image != 1) {
        fprintf(stderr, "what is recorded fails itself: %d, %s\n", r, c->f.why);
        sim_trace_fini(&trace);
        return 2;
    }
    r = crash_explore(&c->f, &trace, seed, &(struct crash_visit){ &c->f, look, c });
    if (r == 0 && (!c->old_image || !c->no_image || c->new_image < 2)) {
        fprintf(stderr, "not every kind of state was there: %" PRIu64 " old, %" PRIu64 " none, %" PRIu64 " new\n", c->old_image, c->no_image, c->new_image);
        r = 2;
    }
    sim_trace_fini(&trace);
    return r;
}

static int one_seed(uint64_t seed, uint64_t *ret_states)
{
    struct crash c = { .content = calloc(NEW_SECTORS, SIM_SECTOR), .got = aligned_alloc(4096, NEW_SECTORS * SIM_SECTOR) };
    c.f.names = names;
    c.f.filled = OLD + 1;
    plan(&c, seed);
    int r = crash_files_new(&c.f, seed, fill, &c);
    if (!r && c.device)
        r = make_device(&c);
    if (!r)
        r = explore(&c, seed);
    *ret_states += c.states;
    crash_files_free(&c.f);
    free(c.content);
    free(c.got);
    return r;
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, last = argc > 2 ? strtoull(argv[2], NULL, 0) : first, states = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        int r = one_seed(seed, &states);
        if (r) {
            fprintf(stderr, "seed %" PRIu64 "\n", seed);
            return r;
        }
    }
    printf("%" PRIu64 " states\n", states);
    return 0;
}
