/* SPDX-License-Identifier: MIT
 *
 * qed_crash.c: the power fails inside a repair of a QED image, or its upgrade to qcow2: every state that may be left is looked at.
 *
 * Purpose      In each state the guest reads what it read before; a sound image is sound; an image in which something is wrong bears its
 *              mark if it bore one; and a repair that is begun anew ends well. An upgrade leaves a good QED image or a good qcow2 image.
 * Usage        qed-crash repair|upgrade [FIRST [LAST]]: seeds of images. With BYRE_MUTANT=NAME, built with mutants, that one is alive in what is recorded.
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
    bool upgrade;                                 /* that is what is recorded */
    uint64_t as_qed, as_qcow2;                    /* states of an upgrade */
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
        { "BARRIER_SWITCH_BEFORE", MUT_BARRIER(META_B_SWITCH_BEFORE) },
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

static int open_image(struct co *co, struct crash *c, const struct fmt_ops *ops, const struct fmt_open_opts *o, struct fmt_image **ret)
{
    struct byre_err err = { 0 };
    struct stor *s;
    int r = sim_open(co, c->w, DISK, o->read_only, &s);
    if (r < 0)
        return r;
    r = ops->open(co, s, o, ret, &err);
    if (r < 0) {
        stor_close(co, s);
        snprintf(c->why, sizeof c->why, "it does not open: %s", err.text);
    }
    return r;
}

static bool is_qed(const struct crash *c) { return !memcmp(disk(c)->data, "QED", 4); }

static int run_check(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct byre_err err = { 0 };
    struct fmt_image *im;
    int r = open_image(co, c, is_qed(c) ? &fmt_qed_ops : &fmt_qcow2_ops, &(struct fmt_open_opts){ .check_mode = true, .read_only = !c->fix }, &im);
    if (r < 0)
        return r;
    c->res = (struct fmt_check_result){ 0 };
    r = im->ops->check(co, im, &(struct fmt_check_opts){ .fix = c->fix }, &c->res, &err);
    if (r < 0)
        snprintf(c->why, sizeof c->why, "its check fails: %s", err.text);
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

static bool is_format(void *arg, const char *option) { return !strcmp(option, "format"); }

static int run_upgrade(struct co *co, void *arg)
{
    struct crash *c = arg;
    struct byre_err err = { 0 };
    struct fmt_image *im;
    struct fmt_create_opts o = { .format = (char *)"qcow2" };
    struct fmt_amend_opts a = { .o = &o, .given = is_format };
    int r = open_image(co, c, &fmt_qed_ops, &(struct fmt_open_opts){ 0 }, &im);
    if (r < 0)
        return r;
    r = im->ops->amend(co, im, &a, &err);
    if (r < 0)
        snprintf(c->why, sizeof c->why, "the upgrade fails: %s", err.text);
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

/* Nothing between the two formats. */
static int judge_upgrade(struct crash *c)
{
    uint64_t at;
    bool qed = is_qed(c);
    if (!(qed ? made_same : made_same_qcow2)(&c->m, disk(c)->data, disk(c)->len, c->guest, &at))
        return wrong(c, qed ? "the guest of the QED image reads something else" : "the guest of the qcow2 image reads something else");
    if (check(c, 0) < 0)
        return wrong(c, "a check fails");
    if (c->res.corruptions || c->res.check_errors || (!qed && c->res.leaks))
        return wrong(c, qed ? "the QED image is damaged" : "the qcow2 image is damaged, or has leaks");
    if (qed && check(c, FMT_FIX_LEAKS | FMT_FIX_ERRORS) < 0)
        return wrong(c, "the leaks of the QED image cannot be repaired");
    c->as_qed += qed;
    c->as_qcow2 += !qed;
    return 0;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct crash *c = arg;
    sim_mark m = sim_disk_mark(disk(c));
    c->w->direct = true;
    int r = c->upgrade ? judge_upgrade(c) : judge(c);
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

static int one_seed(bool upgrade, uint64_t seed, uint64_t *ret_states)
{
    static uint8_t bytes[MADE_CLUSTERS * MADE_C];
    static const uint32_t nothing[1];
    struct crash c = { .m = { .table = 1u << seed % 3, .damaged = seed % 4 > 1, .holes = true, .marked = seed % 4 != 1, .tables = 3 },
                       .upgrade = upgrade };
    struct sim_trace trace;
    struct sim_model model;
    if (upgrade)
        c.m.damaged = c.m.marked = false;
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
    int r = upgrade ? sim_run(c.w, run_upgrade, &c, 0) : check(&c, FMT_FIX_LEAKS | FMT_FIX_ERRORS);
    c.w->trace = NULL;
    if (r < 0 || (!upgrade && (c.res.corruptions || c.res.leaks)) || (upgrade && is_qed(&c))) {
        fprintf(stderr, "what is recorded fails itself: %d, %s\n", r, c.why);
        return 2;
    }
    fill(&c, bytes, len);
    sim_model_init(&model, 1, NULL);
    sim_model_start(&model, SIM_SECTOR, nothing);
    struct sim_explorer x = { .w = c.w, .t = &trace, .m = &model, .seed = seed, .visit = visit, .arg = &c };
    r = sim_explore(&x);
    *ret_states += c.states;
    if (r == 0 && upgrade && (!c.as_qed || !c.as_qcow2))
        r = 2;
    sim_model_fini(&model);
    sim_trace_fini(&trace);
    sim_world_free(c.w);
    free(c.guest);
    return r;
}

int main(int argc, char **argv)
{
    bool upgrade = argc > 1 && !strcmp(argv[1], "upgrade");
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, last = argc > 3 ? strtoull(argv[3], NULL, 0) : first, states = 0;
    if (argc < 2 || (!upgrade && strcmp(argv[1], "repair"))) {
        fprintf(stderr, "usage: qed-crash repair|upgrade [FIRST [LAST]]\n");
        return 2;
    }
    for (uint64_t seed = first; seed <= last; seed++) {
        int r = one_seed(upgrade, seed, &states);
        if (r) {
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            return r;
        }
    }
    printf("%llu states\n", (unsigned long long)states);
    return 0;
}
