/* SPDX-License-Identifier: MIT
 *
 * cx_work.c: workloads.
 *
 * Purpose      Draws, prints, reads and runs lists of guest operations; tells the model what was asked and acknowledged.
 * Owns         Nothing beyond the lists.
 * Invariants   Operations that run together never include a resize, reopen or repair.
 * Order        Stamps of the model come from the same counter as those of the store's operations.
 * Concurrency  Coroutines of the world's one loop.
 * Failure      Said on stderr.
 * Tests        test_faults.py: it makes the image of every scenario, and reads it back.
 */
#include "cx_work.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fx_luks.h"
#include "rt/sync.h"

static const char *const names[CX_O_KINDS] = { "write", "zero", "unmap", "discard", "flush", "grow", "shrink", "reopen", "repair" };

void cx_work_add(struct cx_work *w, struct cx_step s)
{
    if (w->count == w->cap) {
        w->cap = w->cap ? w->cap * 2 : 32;
        w->steps = realloc(w->steps, w->cap * sizeof *w->steps);
        if (!w->steps)
            abort();
    }
    w->steps[w->count++] = s;
}

void cx_work_fini(struct cx_work *w)
{
    free(w->steps);
    w->steps = NULL;
    w->count = w->cap = 0;
}

/* ---- drawing ---- */

static enum cx_kind draw_kind(struct prng *p, const struct cx_geometry *g)
{
    uint64_t k = prng_below(p, 100);
    if (g->churn)
        return k < 45 ? CX_O_WRITE : k < 52 ? CX_O_ZERO : k < 60 ? CX_O_UNMAP : k < 80 ? CX_O_DISCARD : k < 96 ? CX_O_FLUSH : CX_O_REOPEN;
    if (g->resize && k >= 84)
        return k < 90 ? CX_O_GROW : k < 96 ? CX_O_SHRINK : k < 98 ? CX_O_REPAIR : CX_O_REOPEN;
    return k < 50 ? CX_O_WRITE : k < 57 ? CX_O_ZERO : k < 64 ? CX_O_UNMAP : k < 74 ? CX_O_DISCARD : k < 94 ? CX_O_FLUSH : k < 97 ? CX_O_REOPEN : CX_O_REPAIR;
}

static void draw_range(struct prng *p, const struct cx_geometry *g, uint64_t size, struct cx_step *s)
{
    uint64_t cs = g->cluster, clusters = div_up(size, cs);
    if (g->churn)
        clusters = min_u64(clusters, 4);
    s->off = prng_below(p, clusters) * cs;
    s->len = cs * (1 + prng_below(p, 2));
    bool whole = s->kind == CX_O_DISCARD || prng_below(p, 3) == 0;
    if (!whole) {
        s->off = prng_below(p, min_u64(size, clusters * cs) / CX_SECTOR) * CX_SECTOR;
        s->len = CX_SECTOR * (1 + prng_below(p, cs > 4096 ? 16 : max_u64(cs / CX_SECTOR, 1) * 3));
    }
    if (g->big)
        s->len *= 1 + prng_below(p, 24);
    s->len = min_u64(s->len, size - min_u64(s->off, size));
}

void cx_work_draw(struct cx_work *w, const struct cx_geometry *g, uint64_t seed, unsigned count)
{
    struct prng p;
    prng_init(&p, seed * 7919 + 11);
    *w = (struct cx_work){ .g = *g, .seed = seed };
    uint64_t size = g->size;
    bool alone = true;                                   /* the step before must run alone */
    while (w->count < count) {
        struct cx_step s = { .kind = draw_kind(&p, g) };
        s.together = !alone && prng_below(&p, 2);
        alone = s.kind >= CX_O_GROW;
        if (s.kind == CX_O_GROW || s.kind == CX_O_SHRINK) {
            uint64_t to = CX_SECTOR * (1 + prng_below(&p, min_u64(g->size * 2, CX_SECTORS_MAX * CX_SECTOR) / CX_SECTOR));
            s.kind = to > size ? CX_O_GROW : CX_O_SHRINK;
            s.len = size = to;
        } else if (s.kind <= CX_O_DISCARD) {
            draw_range(&p, g, size, &s);
            if (!s.len)
                continue;
        }
        s.together &= !alone;
        cx_work_add(w, s);
    }
}

/* ---- text ---- */

void cx_work_print(const struct cx_work *w, FILE *f)
{
    const struct cx_geometry *g = &w->g;
    fprintf(f, "geometry name=%s cs=%" PRIu64 " size=%" PRIu64 " bits=%u version=%u backing=%d frontier=%" PRIu64 " seed=%" PRIu64 " image=%s\n", g->name[0] ? g->name : "-",
            g->cluster, g->size, g->refcount_bits, g->version, g->backing, g->frontier, w->seed, g->image[0] ? g->image : "-");
    for (unsigned i = 0; i < w->count; i++) {
        const struct cx_step *s = &w->steps[i];
        fprintf(f, "%s%s", s->together ? "& " : "", names[s->kind]);
        if (s->kind <= CX_O_DISCARD)
            fprintf(f, " %" PRIu64, s->off);
        if (s->kind <= CX_O_DISCARD || s->kind == CX_O_GROW || s->kind == CX_O_SHRINK)
            fprintf(f, " %" PRIu64, s->len);
        fputc('\n', f);
    }
}

static bool read_step(struct cx_work *w, const char *line)
{
    struct cx_step s = { 0 };
    char word[16];
    int used = 0;
    if (line[0] == '&') {
        s.together = true;
        line += 2;
    }
    if (sscanf(line, "%15s%n", word, &used) != 1)
        return false;
    for (s.kind = 0; s.kind < CX_O_KINDS && strcmp(word, names[s.kind]); s.kind++)
        ;
    if (s.kind == CX_O_KINDS)
        return false;
    if (s.kind <= CX_O_DISCARD && sscanf(line + used, "%" SCNu64 " %" SCNu64, &s.off, &s.len) != 2)
        return false;
    if ((s.kind == CX_O_GROW || s.kind == CX_O_SHRINK) && sscanf(line + used, "%" SCNu64, &s.len) != 1)
        return false;
    cx_work_add(w, s);
    return true;
}

bool cx_work_read(struct cx_work *w, FILE *f)
{
    char line[512];
    int backing = 0;
    *w = (struct cx_work){ 0 };
    struct cx_geometry *g = &w->g;
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (strncmp(line, "geometry", 8) == 0) {
            if (sscanf(line, "geometry name=%63s cs=%" SCNu64 " size=%" SCNu64 " bits=%u version=%u backing=%d frontier=%" SCNu64 " seed=%" SCNu64 " image=%255s", g->name, &g->cluster,
                       &g->size, &g->refcount_bits, &g->version, &backing, &g->frontier, &w->seed, g->image) != 9)
                return false;
            g->backing = backing;
            if (strcmp(g->image, "-") == 0)
                g->image[0] = 0;
        } else if (!read_step(w, line)) {
            return false;
        }
    }
    return g->cluster != 0;
}

/* ---- preparing ---- */

struct prep { struct cx_world *w; struct cx_model *m; const struct cx_work *k; bool ok; };

/* The external data file of a fresh image. */
int cx_open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    (void)co;
    int e = cx_store_open(arg, name, false, ret_s);
    return e < 0 ? byre_fail(err, NOMEM, "%s", name) : 0;
}

static int make_fresh(struct co *co, struct cx_world *w, const struct cx_geometry *g, struct byre_err *err)
{
    struct stor *s;
    struct fmt_create_opts o = { .size = g->size, .cluster_size = g->cluster, .version = g->version, .refcount_bits = g->refcount_bits, .extended_l2 = g->sub };
    char base[] = "base", raw[] = "raw";
    if (g->backing) {
        o.backing_file = base;
        o.backing_fmt = raw;
    }
    if (g->luks)
        fx_luks_options(&o);
    char data[] = "data";
    struct fmt_host host = { .open_data = cx_open_data, .arg = w };
    if (g->data_file) {
        o.data_file = data;
        o.host = &host;
    }
    memset(w->image.data, 0, w->image.len);
    w->image.len = 0;
    memset(w->data.data, 0, w->data.len);
    w->data.len = 0;
    int r = cx_store_open(w, "img", false, &s);
    if (r < 0)
        return r;
    r = fmt_qcow2_ops.create(co, s, &o, err);
    stor_close(co, s);
    return r;
}

static bool load_file(struct cx_world *w, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    memset(w->image.data, 0, CX_FILE_MAX);
    w->image.len = fread(w->image.data, 1, CX_FILE_MAX, f);
    fclose(f);
    return w->image.len > 0;
}

int cx_read_all(struct co *co, struct cx_world *w, uint8_t *out)
{
    struct iovec slot;
    return graph_read(co, w->node, iov_one(&slot, out, min_u64(graph_length(w->node), CX_SECTORS_MAX * CX_SECTOR)), 0);
}

static void prepare_co(struct co *co, void *arg)
{
    struct prep *p = arg;
    struct byre_err err = { .text = "" };
    uint8_t *guest = calloc(CX_SECTORS_MAX, CX_SECTOR);
    int r = p->k->g.image[0] ? (load_file(p->w, p->k->g.image) ? 0 : -ENOENT) : make_fresh(co, p->w, &p->k->g, &err);
    if (r == 0)
        r = cx_open(co, p->w, true, false, &err);
    if (r == 0) {
        r = cx_read_all(co, p->w, guest);
        if (r == 0)
            cx_model_start(p->m, guest, graph_length(p->w->node));
        int c = cx_close(co, p->w);
        r = r ? r : c;
    }
    free(guest);
    p->ok = r == 0;
    if (r)
        fprintf(stderr, "byre-crash: the first image of %s cannot be made: %d %s\n", p->k->g.name, r, err.text);
}

bool cx_work_prepare(struct cx_world *w, struct cx_model *m, const struct cx_work *k)
{
    const struct cx_geometry *g = &k->g;
    cx_world_seed(w, k->seed * 31 + 7);
    w->recording = w->jitter = false;
    w->frontier_bytes = g->frontier;
    w->cache_bytes = 4096;
    w->keys = g->luks ? FX_KEY_A | FX_KEY_B : 0;
    w->backing.len = g->backing ? round_down(g->size * 3 / 4, CX_SECTOR) : 0;
    for (uint64_t i = 0; i < w->backing.len; i++)
        w->backing.data[i] = (uint8_t)((i >> 9) * 7 + 1);
    struct prep p = { w, m, k, false };
    return cx_run(w, prepare_co, &p) && p.ok;
}

/* ---- running ---- */

struct running {
    struct cx_world *w;
    struct cx_model *m;
    const struct cx_work *k;
    struct co_group group;
    uint32_t next_version;
    bool failed;
};
struct one { struct running *r; struct cx_step s; };

static int guest_call(struct co *co, struct cx_world *w, const struct cx_step *s, uint32_t version)
{
    if (s->kind == CX_O_ZERO || s->kind == CX_O_UNMAP)
        return graph_zero(co, w->node, s->off, s->len, s->kind == CX_O_UNMAP ? GRAPH_UNMAP : 0);
    if (s->kind == CX_O_DISCARD)
        return graph_discard(co, w->node, s->off, s->len);
    uint8_t *buf = malloc(s->len);
    if (!buf)
        return -ENOMEM;
    for (uint64_t i = 0; i < s->len; i += CX_SECTOR)
        cx_stamp(buf + i, (s->off + i) / CX_SECTOR, version);
    struct iovec slot;
    int r = graph_write(co, w->node, iov_one(&slot, buf, s->len), s->off, 0);
    free(buf);
    return r;
}

/* A discard may leave parts of clusters alone: only its whole clusters are sure to be zero afterwards. */
static bool sure(const struct running *r, const struct cx_step *s)
{
    return s->kind != CX_O_DISCARD || (s->off % r->k->g.cluster == 0 && s->len % r->k->g.cluster == 0 && r->k->g.version == 3 && !r->k->g.image[0]);
}

static void one_co(struct co *co, void *arg)
{
    struct one *o = arg;
    struct running *r = o->r;
    uint64_t issued = r->w->now++;
    int e;
    if (o->s.kind == CX_O_FLUSH) {
        e = graph_flush(co, r->w->node);
        if (e == 0)
            cx_model_flush(r->m, issued, r->w->now++);
    } else {
        uint32_t version = o->s.kind == CX_O_WRITE ? r->next_version++ : CX_ZEROS;
        cx_model_issue(r->m, o->s.off, o->s.len, version, issued);
        e = guest_call(co, r->w, &o->s, version);
        if (e == 0 && sure(r, &o->s))
            cx_model_ack(r->m, o->s.off, o->s.len, issued, r->w->now);
        r->w->now++;
    }
    if (e < 0) {
        fprintf(stderr, "byre-crash: guest operation %s failed: %d\n", names[o->s.kind], e);
        r->failed = true;
    }
    co_group_leave(&r->group);
    free(o);
}

static int resize_step(struct co *co, struct running *r, const struct cx_step *s)
{
    struct byre_err err;
    uint64_t stamp = r->w->now;
    r->w->now += 2;
    unsigned id = cx_model_resize(r->m, s->len, stamp);
    int e = graph_resize(co, r->w->node, s->len, FMT_PREALLOC_OFF, &err);
    if (e == 0)
        cx_model_resized(r->m, id, r->w->now++);
    else
        fprintf(stderr, "byre-crash: resize to %" PRIu64 ": %s\n", s->len, err.text);
    return e;
}

static int repair_step(struct co *co, struct running *r)
{
    struct byre_err err;
    struct fmt_check_result res = { 0 };
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS };
    int e = cx_open(co, r->w, false, true, &err);
    if (e < 0)
        return e;
    e = graph_image(r->w->node)->ops->check(co, graph_image(r->w->node), &o, &res, &err);
    int c = cx_close(co, r->w);
    return e < 0 ? e : c;
}

static int reopen_step(struct co *co, struct running *r, bool repair)
{
    struct byre_err err = { .text = "" };
    uint64_t issued = r->w->now++;
    int e = cx_close(co, r->w);
    if (e == 0)
        cx_model_flush(r->m, issued, r->w->now++);
    if (e == 0 && repair)
        e = repair_step(co, r);
    int o = cx_open(co, r->w, false, false, &err);
    if (o < 0)
        fprintf(stderr, "byre-crash: reopen: %s\n", err.text);
    return e < 0 ? e : o;
}

static void alone_step(struct co *co, struct running *r, const struct cx_step *s)
{
    co_group_wait(co, &r->group);
    int e = s->kind == CX_O_GROW || s->kind == CX_O_SHRINK ? resize_step(co, r, s) : reopen_step(co, r, s->kind == CX_O_REPAIR);
    if (e < 0) {
        fprintf(stderr, "byre-crash: %s failed: %d\n", names[s->kind], e);
        r->failed = true;
    }
}

static void run_body(struct co *co, void *arg)
{
    struct running *r = arg;
    struct byre_err err;
    r->failed = cx_open(co, r->w, false, false, &err) < 0;
    for (unsigned i = 0; i < r->k->count && !r->failed; i++) {
        const struct cx_step *s = &r->k->steps[i];
        if (s->kind >= CX_O_GROW) {
            alone_step(co, r, s);
            continue;
        }
        if (!s->together)
            co_group_wait(co, &r->group);
        struct one *o = malloc(sizeof *o);
        *o = (struct one){ r, *s };
        co_group_enter(&r->group);
        if (rt_spawn(r->w->loop, one_co, o) < 0)
            abort();
    }
    co_group_wait(co, &r->group);
    if (r->w->node) {
        uint64_t issued = r->w->now++;
        int e = cx_close(co, r->w);
        if (e == 0)
            cx_model_flush(r->m, issued, r->w->now++);
        r->failed |= e < 0;
    }
}

bool cx_work_run(struct cx_world *w, struct cx_model *m, const struct cx_work *k)
{
    struct running r = { .w = w, .m = m, .k = k, .next_version = 2 };
    w->recording = w->jitter = true;
    bool ended = cx_run(w, run_body, &r);
    w->recording = w->jitter = false;
    if (!ended)
        fprintf(stderr, "byre-crash: deadlock: nothing can run and the workload has not ended\n");
    return ended && !r.failed;
}
