/* SPDX-License-Identifier: MIT
 *
 * campaign.c: record, explore, verify.
 *
 * Purpose      Runs cases; keeps count; makes failing cases small.
 * Owns         The worlds of a case: one to record in, one to make states in.
 * Invariants   C1  Both worlds begin with the same bytes.
 *              C2  A case and its outcome depend on the case and the program alone.
 * Order        None.
 * Concurrency  One thread; minimising forks.
 * Failure      -1 and a sentence.
 * Tests        tests/crash
 */
#include "sim/campaign.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "sim/mem.h"

/* ---- text ---- */

void sim_case_text(const struct sim_case *c, char *buf, size_t bytes)
{
    char ops[1024];
    sim_workload_text(&c->workload, ops, sizeof ops);
    snprintf(buf, bytes, "why %s\ngeometry %s\nseed %llu\nloops %u\nslow %d\nworkload %s\nstate %s\n", c->why, c->geom,
        (unsigned long long)c->seed, c->loops, c->slow_writes, ops, c->state);
}

static int parse_line(const char *key, const char *value, struct sim_case *c)
{
    if (!strcmp(key, "geometry"))
        snprintf(c->geom, sizeof c->geom, "%s", value);
    else if (!strcmp(key, "seed"))
        c->seed = strtoull(value, NULL, 10);
    else if (!strcmp(key, "loops"))
        c->loops = (unsigned)strtoul(value, NULL, 10);
    else if (!strcmp(key, "slow"))
        c->slow_writes = strtoul(value, NULL, 10) != 0;
    else if (!strcmp(key, "workload"))
        return sim_workload_parse(value, &c->workload);
    else if (!strcmp(key, "state"))
        snprintf(c->state, sizeof c->state, "%s", value);
    else if (!strcmp(key, "why"))
        snprintf(c->why, sizeof c->why, "%s", value);
    else
        return -EINVAL;
    return 0;
}

int sim_case_parse(const char *text, struct sim_case *ret)
{
    struct sim_case c = { .loops = 1 };
    while (*text) {
        char line[4096], *space;
        size_t n = strcspn(text, "\n");
        if (n >= sizeof line)
            return -EINVAL;
        memcpy(line, text, n);
        line[n] = 0;
        text += n + (text[n] == '\n');
        if (!line[0] || line[0] == '#')
            continue;
        space = strchr(line, ' ');
        if (space)
            *space++ = 0;
        if (parse_line(line, space ? space : "", &c) < 0)
            return -EINVAL;
    }
    if (!sim_geom_find(c.geom) || c.loops < 1 || c.loops > 3 || !c.workload.count)
        return -EINVAL;
    *ret = c;
    return 0;
}

void sim_case_nth(const struct sim_geom *g, uint64_t seed, uint64_t n, struct sim_case *c)
{
    uint64_t h = hash_combine(seed, n);
    *c = (struct sim_case){ .seed = h >> 16, .loops = 1 + (unsigned)(h % 3), .slow_writes = h >> 8 & 1 };
    snprintf(c->geom, sizeof c->geom, "%s", g->name);
    sim_workload_nth(g, n, &c->workload);
}

/* ---- one case ---- */

struct work {
    struct sim_campaign *k;
    struct sim_case *c;
    struct sim_verify v;
    struct sim_seen *mine;               /* first walk: states of this workload */
    uint64_t count, threshold;           /* second walk: which of them are verified */
    bool counting;
};

static struct hash128 key_of(const struct work *w, const struct sim_explorer *x, struct hash128 content)
{
    uint64_t salt = hash_mix64((uint64_t)(uintptr_t)w->k->g->cluster_bits * 131 + w->k->g->size);
    return (struct hash128){ content.lo ^ hash_mix64(x->m->sum.lo + salt), content.hi ^ hash_mix64(x->m->sum.hi ^ salt) };
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct work *w = arg;
    struct sim_campaign *k = w->k;
    struct hash128 key = key_of(w, x, content);
    if (k->states_max && x->made > k->states_max)
        return 1;
    if (w->counting) {
        w->count += sim_seen_add(w->mine, key);
        return 0;
    }
    if (w->threshold && hash_combine(key.lo, w->c->seed) > w->threshold)
        return 0;
    if (k->checked && !sim_seen_add(k->checked, key))
        return 0;
    if (k->on_state)
        k->on_state(k->arg, x);
    if (k->distinct)
        sim_seen_add(k->distinct, content);
    k->tally.states++;
    int r = sim_verify_state(&w->v, x, key.lo);
    if (r < 0) {
        sim_state_text(x, w->c->state, sizeof w->c->state);
        snprintf(w->c->why, sizeof w->c->why, "%s", w->v.why);
    }
    return r;
}

/* Copies the bytes of all files. */
static void copy_files(struct sim_world *to, const struct sim_world *from)
{
    for (unsigned i = 0; i < from->file_count; i++) {
        struct sim_disk *d = &to->files[i]->disk;
        const struct sim_disk *s = &from->files[i]->disk;
        d->hashing = false;
        sim_disk_commit(d);
        sim_disk_reset(d);
        int r = sim_disk_write(d, 0, s->data, s->len);
        ASSERT(r == 0);
    }
}

static int walk(struct work *w, struct sim_world *from, const struct sim_trace *t, struct sim_world *states)
{
    struct sim_model m;
    struct sim_explorer x = { .w = states, .t = t, .m = &m, .seed = w->c->seed, .visit = visit, .arg = w };
    copy_files(states, from);
    sim_model_init(&m, w->v.im->sectors, w->v.im->below);
    sim_model_start(&m, w->v.im->g->size, w->v.im->gens);
    if (w->v.im->snap)
        sim_model_has(&m, 0, w->v.im->snap_size, w->v.im->snap);
    sim_bitmaps_start(&m, &sim_world_find(states, SIM_DISK_NAME)->disk);
    int r = w->c->state[0] && !w->counting ? sim_explore_one(&x, w->c->state) : sim_explore(&x);
    if (w->counting || (w->c->state[0] && r == 0))
        w->k->tally.made += x.made;
    sim_model_fini(&m);
    return r == 1 ? 0 : r;
}

static int explore(struct work *w, struct sim_world *from, const struct sim_trace *t, struct sim_world *states)
{
    bool one = w->c->state[0];
    if (!one && w->k->per_workload) {
        w->mine = sim_seen_new(18);
        w->counting = true;
        walk(w, from, t, states);
        w->counting = false;
        sim_seen_free(w->mine);
        if (w->count > w->k->per_workload)
            w->threshold = UINT64_MAX / w->count * w->k->per_workload;
    }
    int r = walk(w, from, t, states);
    return one && r == -EINVAL ? -ENOENT : r;
}

static void add_tally(struct sim_tally *t, const struct sim_verify *v)
{
    t->nested += v->nested;
    t->peers += v->peers;
    if (v->leaks_max > t->leaks_max) {
        t->leaks_max = v->leaks_max;
        t->bound_at_max = v->bound_at_max;
    }
}

static void print_stamp(const char *what, uint64_t stamp)
{
    if (stamp == SIM_NEVER)
        printf(" %s -", what);
    else
        printf(" %s %llu", what, (unsigned long long)stamp);
}

static void print_trace(const struct sim_trace *t)
{
    static const char *const kinds[] = { "write", "zero", "punch", "length", "flush" };
    static const char *const notes[] = { "write", "zero", "discard", "clone", "closed", "ack", "fail", "seen", "flush", "flush ack", "resize", "resize ack", "resize fail",
        "snapshot made", "snapshot applied", "snapshot deleted", "snapshot ack", "snapshot fail", "amend", "amend end", "key slots change", "key slots ack", "bitmap action", "bitmap ack", "bitmap fail" };
    for (size_t i = 0, n = 0; i < t->op_count || n < t->note_count;) {
        if (n < t->note_count && (i == t->op_count || t->notes[n].stamp < t->ops[i]->issued)) {
            const struct sim_note *x = &t->notes[n++];
            printf("       @%llu guest: %s, request %u, sector %llu, %llu sectors, generation %u\n", (unsigned long long)x->stamp, notes[x->kind], x->id,
                (unsigned long long)x->off / SIM_SECTOR, (unsigned long long)x->len / SIM_SECTOR, x->gen);
            continue;
        }
        const struct sim_op *op = t->ops[i];
        printf("%5zu  @%llu %s file %u", i++, (unsigned long long)op->issued, kinds[op->kind], op->file);
        if (op->kind == SIM_LEN)
            printf(" to %#llx", (unsigned long long)op->len);
        else if (op->kind != SIM_FLUSH)
            printf(" at %#llx, %u sectors%s", (unsigned long long)op->first * SIM_SECTOR, op->count, op->meta ? ", metadata" : "");
        print_stamp(", effect", op->effect);
        print_stamp(", done", op->done);
        print_stamp(", durable", op->durable);
        puts(op->failed ? ", FAILED" : "");
    }
}

int sim_case_run(struct sim_campaign *k, struct sim_case *c)
{
    struct sim_world *first, *live, *states;
    struct sim_image im, im2;
    struct sim_trace t;
    k->g = sim_geom_find(c->geom);
    c->why[0] = 0;
    if (sim_world_new(c->seed, 1, &first) < 0 || sim_world_new(c->seed, c->loops, &live) < 0 || sim_world_new(c->seed, 1, &states) < 0)
        abort();
    sim_image_build(first, k->g, c->seed, &im);
    sim_image_build(live, k->g, c->seed, &im2);
    sim_image_fini(&im2);
    sim_image_build(states, k->g, c->seed, &im2);
    sim_image_fini(&im2);
    sim_trace_init(&t);
    live->slow_writes = c->slow_writes;
    struct sim_record rec = { .w = live, .im = &im, .l = &c->workload, .seed = c->seed, .trace = &t };
    int r = sim_record_run(&rec);
    bool hung = r == -EDEADLK || r == -ETIME;
    k->tally.workloads++;
    if (k->verbose)
        print_trace(&t);
    if (r < 0) {
        c->state[0] = 0;
        snprintf(c->why, sizeof c->why, "%s", rec.why);
        r = -1;
    } else if (!k->worth || k->worth(k->arg)) {
        struct work w = { .k = k, .c = c };
        sim_verify_init(&w.v, states, &im);
        w.v.peer_dir = k->peer_dir;
        if (k->nested_one_in)
            w.v.nested_one_in = k->nested_one_in;
        r = explore(&w, first, &t, states);
        hung = r < 0 && strstr(c->why, "hangs");
        add_tally(&k->tally, &w.v);
        sim_verify_fini(&w.v);
    }
    sim_trace_fini(&t);
    sim_image_fini(&im);
    sim_world_free(first);
    if (!hung) {                         /* else its memory cannot be given back */
        sim_world_free(live);
        sim_world_free(states);
    }
    return r;
}

/* ---- making it small ---- */

/* Does it fail? In a process of its own, because it may die or hang. */
static bool fails(const struct sim_campaign *k, struct sim_case *c)
{
    struct sim_case *out = mmap(NULL, sizeof *out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = 0;
    if (out == MAP_FAILED)
        abort();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct sim_campaign mine = { .states_max = 200000 };
        *out = *c;
        alarm(30);
        _exit(sim_case_run(&mine, out) == -1 ? 1 : 0);
    }
    waitpid(pid, &status, 0);
    bool bad = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    if (bad && WIFEXITED(status))
        *c = *out;
    else if (bad)
        snprintf(c->why, sizeof c->why, "the process died (signal %d)", WTERMSIG(status));
    munmap(out, sizeof *out);
    (void)k;
    return bad;
}

static bool without(const struct sim_campaign *k, struct sim_case *c, unsigned i)
{
    struct sim_case t = *c;
    memmove(&t.workload.op[i], &t.workload.op[i + 1], (t.workload.count - i - 1) * sizeof t.workload.op[0]);
    t.workload.count--;
    t.state[0] = 0;
    if (i < t.workload.count && (i == 0 || !c->workload.op[i].beside))
        t.workload.op[i].beside = false;
    if (!sim_workload_fits(&t.workload, sim_geom_find(c->geom)) || !fails(k, &t))
        return false;
    *c = t;
    return true;
}

static bool shorter(const struct sim_campaign *k, struct sim_case *c, unsigned i)
{
    struct sim_case t = *c;
    if (t.workload.op[i].len < 2 || t.workload.op[i].kind == 's' || t.workload.op[i].kind == 'g')
        return false;
    t.workload.op[i].len /= 2;
    t.state[0] = 0;
    if (!sim_workload_fits(&t.workload, sim_geom_find(c->geom)) || !fails(k, &t))
        return false;
    *c = t;
    return true;
}

static bool one_loop(const struct sim_campaign *k, struct sim_case *c)
{
    struct sim_case t = *c;
    if (t.loops == 1)
        return false;
    t.loops = 1;
    t.state[0] = 0;
    if (!fails(k, &t))
        return false;
    *c = t;
    return true;
}

void sim_case_minimise(const struct sim_campaign *k, struct sim_case *c, unsigned seconds)
{
    time_t until = time(NULL) + seconds;
    bool more = true;
    while (more && time(NULL) < until) {
        more = one_loop(k, c);
        for (unsigned i = 0; i < c->workload.count && time(NULL) < until; i++)
            if (c->workload.count > 1 && without(k, c, i)) {
                more = true;
                i--;
            }
        for (unsigned i = 0; i < c->workload.count && time(NULL) < until; i++)
            more |= shorter(k, c, i);
    }
}
