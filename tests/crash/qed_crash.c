/* SPDX-License-Identifier: MIT
 *
 * qed_crash.c: the power fails inside a repair of a QED image: every state that may be left is looked at.
 *
 * Purpose      In each state the guest reads what it read before; a sound image is sound; an image in which something is wrong bears its
 *              mark if it bore one; and a repair that is begun anew ends well.
 * Usage        qed-crash [FIRST [LAST]]: seeds of images. With BYRE_MUTANT=NAME, built with mutants, that one is alive in what is recorded.
 * Owns         A simulated disk.
 * Invariants   None.
 * Concurrency  One thread.
 * Failure      Exit 1 and the state; exit 2: the test itself is broken.
 * Tests        tests/crash/test_qed_crash.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qed/qed_made_test.h"
#include "meta/meta.h"
#include "sim/explorer.h"
#include "sim/seen.h"

#define DISK "disk.qed"

struct crash {
    struct sim_world *w;
    struct made m;
    struct made_guest *guest;
    bool damaged;                                 /* before the repair */
    unsigned fix;
    struct fmt_check_result res;
    uint64_t states;
    char why[600];
};

#ifdef BYRE_MUTANTS
static uint64_t reached;
int byre_mutant_alive(int id)
{
    static const struct { const char *name; int id; } rows[] = {
        { "BARRIER_REPAIR", MUT_BARRIER(META_B_REPAIR) }, { "QED_COPY_LATE", MUT_QED_COPY_LATE }, { "QED_REUSE_EARLY", MUT_QED_REUSE_EARLY },
        { "QED_MARK_EARLY", MUT_QED_MARK_EARLY },
    };
    const char *s = getenv("BYRE_MUTANT");
    bool alive = false;
    for (unsigned i = 0; s && sim_recording && i < sizeof rows / sizeof rows[0]; i++)
        alive |= rows[i].id == id && !strcmp(rows[i].name, s);
    reached += alive;
    return alive;
}
#endif

static struct sim_disk *disk(const struct crash *c) { return &c->w->files[0]->disk; }

static int run_check(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct fmt_image *im;
    struct stor *s;
    struct byre_err err = { 0 };
    int r = sim_open(co, c->w, DISK, false, &s);
    if (r < 0)
        return r;
    r = fmt_qed_ops.open(co, s, &(struct fmt_open_opts){ .check_mode = true }, &im, &err);
    if (r < 0) {
        stor_close(co, s);
        snprintf(c->why, sizeof c->why, "it does not open: %s", err.text);
        return r;
    }
    c->res = (struct fmt_check_result){ 0 };
    r = im->ops->check(co, im, &(struct fmt_check_opts){ .fix = c->fix }, &c->res, &err);
    if (r < 0)
        snprintf(c->why, sizeof c->why, "its check fails: %s", err.text);
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

static int check(struct crash *c, unsigned fix)
{
    c->fix = fix;
    return sim_run(c->w, run_check, c, 0);
}

static int wrong(struct crash *c, const char *what)
{
    if (!c->why[0])
        snprintf(c->why, sizeof c->why, "%s", what);
    return 1;
}

static int judge(struct crash *c)
{
    uint64_t at;
    if (!made_same(&c->m, disk(c)->data, disk(c)->len, c->guest, &at))
        return wrong(c, "the guest reads something else");
    if (check(c, 0) < 0)
        return wrong(c, "a check fails");
    bool marked = made_header(disk(c)->data, disk(c)->len).features & QED_F_NEED_CHECK;
    if (c->res.corruptions && (!c->damaged || (c->m.marked && !marked)))
        return wrong(c, c->damaged ? "the mark is gone, but something is wrong" : "a sound image is damaged");
    if (check(c, FMT_FIX_LEAKS | FMT_FIX_ERRORS) < 0 || check(c, 0) < 0)
        return wrong(c, "a second repair fails");
    if (c->res.corruptions || c->res.leaks || c->res.check_errors)
        return wrong(c, "a second repair leaves something");
    if (!made_same(&c->m, disk(c)->data, disk(c)->len, c->guest, &at))
        return wrong(c, "after a second repair the guest reads something else");
    return made_header(disk(c)->data, disk(c)->len).features & QED_F_NEED_CHECK ? wrong(c, "the mark stays") : 0;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct crash *c = arg;
    sim_mark m = sim_disk_mark(disk(c));
    c->w->direct = true;
    int r = judge(c);
    sim_disk_undo(disk(c), m);
    c->states++;
    if (r) {
        char text[200];
        sim_state_text(x, text, sizeof text);
        fprintf(stderr, "%s: %s\n", text, c->why);
    }
    return r;
}

static void fill(struct crash *c, const uint8_t *bytes, uint64_t len)
{
    sim_disk_set_hashing(disk(c), false);
    sim_disk_commit(disk(c));
    sim_disk_reset(disk(c));
    int r = sim_disk_write(disk(c), 0, bytes, len);
    ASSERT(r == 0);
}

static int one_seed(uint64_t seed, uint64_t *ret_states)
{
    static uint8_t bytes[MADE_CLUSTERS * MADE_C];
    static const uint32_t nothing[1];
    struct crash c = { .m = { .table = 1u << seed % 3, .damaged = seed % 4 > 1, .holes = true, .marked = seed % 4 != 1, .tables = 3 } };
    struct sim_trace trace;
    struct sim_model model;
    memset(bytes, 0, sizeof bytes);
    prng_init(&c.m.p, seed);
    uint64_t len = made_image(&c.m, bytes);
    c.guest = made_read(&c.m, bytes, len);
    if (sim_world_new(seed, 1, &c.w))
        return 2;
    sim_world_file(c.w, DISK)->traits.regular = true;
    fill(&c, bytes, len);
    sim_trace_init(&trace);
    c.w->direct = true;
    if (check(&c, 0) < 0)
        return 2;
    c.damaged = c.res.corruptions > 0;
    sim_world_restart(c.w, seed);
    c.w->direct = false;
    c.w->trace = &trace;
    int r = check(&c, FMT_FIX_LEAKS | FMT_FIX_ERRORS);
    c.w->trace = NULL;
    if (r < 0 || c.res.corruptions || c.res.leaks) {
        fprintf(stderr, "the repair itself: %d, %s\n", r, c.why);
        return 2;
    }
    fill(&c, bytes, len);
    sim_model_init(&model, 1, NULL);
    sim_model_start(&model, SIM_SECTOR, nothing);
    struct sim_explorer x = { .w = c.w, .t = &trace, .m = &model, .seed = seed, .visit = visit, .arg = &c };
    r = sim_explore(&x);
    *ret_states += c.states;
    sim_model_fini(&model);
    sim_trace_fini(&trace);
    sim_world_free(c.w);
    free(c.guest);
    return r;
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, last = argc > 2 ? strtoull(argv[2], NULL, 0) : argc > 1 ? first : 40, states = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        int r = one_seed(seed, &states);
        if (r) {
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            return r;
        }
    }
    printf("%llu states\n", (unsigned long long)states);
    return 0;
}
