/* SPDX-License-Identifier: MIT
 *
 * fx_verify.c: after a run with a fault: is the image sound, and does it hold what it must?
 *
 * Purpose      Four files are looked at: the one that is there; what a power cut would leave at the least (only what was
 *              durable); one of the many states between; and one of a cut at an earlier moment, mostly behind the fault.
 * Owns         Nothing.
 * Invariants   No fault is alive here.
 * Order        check, content, snapshots; then writing, check, repair, check, content.
 * Concurrency  One coroutine of the world.
 * Failure      fx_bad().
 * Tests        test_faults.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fx.h"

struct ver { struct fx_run *r; const char *when; uint64_t set[FX_SECTORS], sizes, flags; unsigned keys; bool deep, mended, loose, tight; int era; /* 0 now, 1 crash, 2 ever */ };

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct ver *v = arg;
    (void)text;
    v->flags += !fixed && strcmp(id, "Q2_COPIED") == 0;
}

/* Q13: an operation on snapshots that was cut short leaves counts that leak, and flags beside them. */
static bool has_snaps(const struct fx_scene *s)
{
    for (unsigned i = 0; i < FX_STEPS; i++)
        if (s->steps[i].what == FX_KEEP || s->steps[i].what == FX_APPLY || s->steps[i].what == FX_DROP)
            return true;
    return false;
}

/* Q27: between a clone and a close flags of single owners may be missing, or stand beside a count that leaks. */
static bool has_clones(const struct fx_scene *s)
{
    for (unsigned i = 0; i < FX_STEPS; i++)
        if (s->steps[i].what == FX_CLONE)
            return true;
    return false;
}

static void check(struct co *co, struct ver *v, unsigned fix, bool leaks_allowed)
{
    struct fx_run *r = v->r;
    struct byre_err err = { .text = "" };
    struct fmt_check_opts o = { .fix = fix, .finding = on_finding, .arg = v };
    struct fmt_check_result res = { 0 };
    if (r->bad)
        return;
    if (cx_open(co, r->w, fix == 0, true, &err) < 0) {
        fx_bad(r, "%s: cannot be opened to check: %s", v->when, err.text);
        return;
    }
    struct fmt_image *im = graph_image(r->w->node);
    if (im->ops->check(co, im, &o, &res, &err) < 0)
        fx_bad(r, "%s: check: %s", v->when, err.text);
    int c = cx_close(co, r->w);
    if (c < 0)
        fx_bad(r, "%s: close after check: %d", v->when, c);
    if (!fix && v->loose)
        res.corruptions -= min_u64(res.corruptions, v->flags);
    v->flags = 0;
    v->loose &= !fix;
    if (!fix && (r->c->g.lazy || r->c->scene->damage == FX_UNCLEAN) && cx_marked(&r->c->g, &r->w->image))        /* Q12 */
        return;
    if (!fix && (res.corruptions || res.check_errors || (res.leaks && !leaks_allowed)))
        fx_bad(r, "%s: %" PRIu64 " corruptions, %" PRIu64 " check errors, %" PRIu64 " leaks", v->when, res.corruptions, res.check_errors, res.leaks);
}

/* Each of those in the file is known, may be there, and holds what it must; those that must be there are. */
static void snapshots(struct ver *v)
{
    struct fx_run *r = v->r;
    struct cx_snap list[CX_SNAPS_MAX];
    unsigned n = cx_snapshots(&r->w->image, list), found = 0;
    for (unsigned i = 0; i < r->m.snap_count; i++) {
        const struct fx_snap *s = &r->m.snap[i];
        unsigned may = v->era == 0 ? s->now : v->era == 1 ? s->crash : s->ever, k = 0;
        while (n <= CX_SNAPS_MAX && k < n && strcmp(list[k].name, s->s.name))
            k++;
        bool there = n <= CX_SNAPS_MAX && k < n;
        found += there;
        if (!(may & (there ? FX_THERE : FX_ABSENT)))
            fx_bad(r, "%s: snapshot %s is %s", v->when, s->s.name, there ? "there" : "gone");
        else if (there && list[k].digest != s->s.digest)
            fx_bad(r, "%s: snapshot %s has changed", v->when, s->s.name);
    }
    if (found != n)
        fx_bad(r, "%s: %u snapshots, %u of them known", v->when, n, found);
}

/* Which passphrases open it? At least one always does, and none that is gone; and no active slot is a false promise. */
static void keys(struct co *co, struct ver *v)
{
    struct fx_run *r = v->r;
    struct stor *s;
    struct fx_keys k;
    if (!r->w->keys || r->bad)
        return;
    uint64_t base = fx_luks_find(r->w->image.data, r->w->image.len, r->c->g.cluster);
    if (cx_store_open(r->w, "img", true, &s) < 0)
        abort();
    int e = fx_luks_look(co, s, base, &k);
    stor_close(co, s);
    if (e < 0)
        fx_bad(r, "%s: key slots cannot be tried: %d", v->when, e);
    else if (k.dead)
        fx_bad(r, "%s: %u active key slots that nothing opens", v->when, k.dead);
    else if (!(v->keys >> k.opens & 1))
        fx_bad(r, "%s: passphrases %u open it; allowed sets: %x", v->when, k.opens, v->keys);
    else if (v->keys == 1u << FX_KEY_B && !memcmp(r->c->start.data + base + FX_LUKS_MATERIAL, r->w->image.data + base + FX_LUKS_MATERIAL, CX_SECTOR))
        fx_bad(r, "%s: the key of the erased slot is still there", v->when);
}

static void content(struct co *co, struct ver *v)
{
    struct fx_run *r = v->r;
    struct byre_err err = { .text = "" };
    if (r->bad)
        return;
    if (cx_open(co, r->w, true, false, &err) < 0) {
        fx_bad(r, "%s: cannot be opened: %s", v->when, err.text);
        return;
    }
    uint64_t size = graph_length(r->w->node);
    bool known = false;
    for (unsigned i = 0; i < r->m.size_count; i++)
        known |= r->m.size[i] == size && (v->sizes >> i & 1);
    if (!known)
        fx_bad(r, "%s: size %" PRIu64, v->when, size);
    fx_read_judged(co, r, v->set, v->when);
    fx_bitmaps_judged(co, r, v->era == 0, v->when);
    if (cx_close(co, r->w) < 0)
        fx_bad(r, "%s: close", v->when);
    snapshots(v);
}

static void use(struct co *co, struct ver *v)
{
    struct fx_run *r = v->r;
    struct byre_err err = { .text = "" };
    if (r->bad)
        return;
    if (cx_open(co, r->w, false, false, &err) < 0) {
        fx_bad(r, "%s: cannot be opened for writing: %s", v->when, err.text);
        return;
    }
    uint64_t size = graph_length(r->w->node), off = round_down(size / 3, CX_SECTOR);
    struct fx_model *keep = malloc(sizeof *keep);
    if (!keep)
        abort();
    *keep = r->m;
    int w = fx_write_version(co, r, off, min_u64(3 * CX_SECTOR, size - off), 61);
    for (uint64_t i = off / CX_SECTOR; i < min_u64(off / CX_SECTOR + 3, size / CX_SECTOR); i++)
        v->set[i] = 1ull << 61;
    int f = graph_flush(co, r->w->node), c = cx_close(co, r->w);
    if (w < 0 || f < 0 || c < 0)
        fx_bad(r, "%s: later write %d, flush %d, close %d", v->when, w, f, c);
    r->m = *keep;
    free(keep);
}

static void verify_co(struct co *co, void *arg)
{
    struct ver *v = arg;
    bool nowhere = v->r->c->g.table && v->r->c->scene->damage == FX_UNCLEAN && cx_marked(&v->r->c->g, &v->r->w->image);
    if (nowhere || (v->r->c->scene->damage == FX_LOW_COUNT && !v->mended))
        check(co, v, FMT_FIX_LEAKS | FMT_FIX_ERRORS, true);
    check(co, v, 0, !v->mended && !v->tight);
    content(co, v);
    keys(co, v);
    if (!v->deep)
        return;
    use(co, v);
    check(co, v, 0, true);
    check(co, v, FMT_FIX_LEAKS | FMT_FIX_ERRORS, true);
    check(co, v, 0, false);
    content(co, v);
}

static void recreate_co(struct co *co, void *arg)
{
    struct fx_run *r = arg;
    struct byre_err err = { .text = "" };
    int e = fx_create(co, r->w, &r->c->g, &err);
    if (e < 0)
        fx_bad(r, "after the fault: create answers %d: %s", e, err.text);
}

/* FEATURES G.005: what failed once and works again leaves no leak, if every step and the close have succeeded. */
static bool tight(const struct fx_run *r)
{
    return r->c->scene->damage == FX_SOUND && r->closed_well && !r->fault.forever && r->steps_failed == 0;
}

static void look(struct fx_run *r, const char *when, const uint64_t *set, uint64_t sizes, bool deep)
{
    struct ver *v = malloc(sizeof *v);
    if (!v)
        abort();
    *v = (struct ver){ .r = r, .when = when, .sizes = sizes, .deep = deep, .mended = r->mended && set == r->m.now,
        .era = set == r->m.now ? 0 : set == r->m.crash ? 1 : 2, .loose = (has_snaps(r->c->scene) && (set != r->m.now || r->snap_cut)) || (has_clones(r->c->scene) && (set != r->m.now || !r->closed_well || r->clone_cut)) };
    v->tight = v->era == 0 && tight(r);
    memcpy(v->set, set, sizeof v->set);
    v->keys = v->era == 0 ? r->m.keys_now : v->era == 1 ? r->m.keys_crash : r->m.keys_ever;
    if (!r->bad && !cx_run(r->w, verify_co, v))
        fx_bad(r, "%s: deadlock", when);
    free(v);
}

/* What is certain to be there after a power cut, and nothing else. */
static void durable_only(struct fx_run *r)
{
    struct cx_world *w = r->w;
    uint64_t stamp[2] = { cx_durable_stamp(w, w->now, false), cx_durable_stamp(w, w->now, true) };
    cx_bytes_copy(&w->image, &r->c->start);
    cx_data_back(w);
    for (size_t i = 0; i < w->log_count; i++) {
        const struct cx_op *o = &w->log[i];
        if (o->kind != CX_FLUSH && o->completed && o->completed < stamp[o->in_data])
            cx_apply(o->in_data ? &w->data : &w->image, o, 0, o->len);
    }
}

void fx_verify(struct fx_run *r)
{
    struct prng p;
    bool creating = r->c->scene->steps[1].what == FX_CREATE;
    r->w->faults.nth = 0;
    if (creating && !r->created) {
        cx_image_blank(r->w);
        if (!cx_run(r->w, recreate_co, r))
            fx_bad(r, "create: deadlock");
        look(r, "created again", r->m.now, r->m.now_sizes, true);
        return;
    }
    look(r, "the image", r->m.now, r->m.now_sizes, true);
    durable_only(r);
    look(r, "what is durable", r->m.crash, r->m.crash_sizes, r->fault.nth % 4 == 0);
    if (creating)                        /* before its flush a new file may be anything */
        return;
    prng_init(&p, r->fault.nth * 977 + r->fault.kind);
    cx_state_random(r->w, &r->c->start, r->w->now, &p);
    look(r, "a crash state", r->m.crash, r->m.crash_sizes, false);
    if (r->fault.how == FX_SHORT)        /* halves of sectors: a cut between them is not of our world */
        return;
    cx_state_random(r->w, &r->c->start, 1 + prng_below(&p, r->w->now), &p);
    look(r, "an earlier crash state", r->m.ever, r->m.ever_sizes | 1, false);
}
