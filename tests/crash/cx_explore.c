/* SPDX-License-Identifier: MIT
 *
 * cx_explore.c: enumeration of crash states.
 *
 * Purpose      Runs a workload, and for each cut makes subsets and tears of what was pending; each distinct state is
 *              verified once.
 * Owns         The durable bytes of the current cut, the set of states seen in this run.
 * Invariants   E1 A state holds everything that completed before the last completed flush was issued, and any part of the
 *                 rest, applied in order of issue.
 *              E2 States are told apart by a 64-bit digest of bytes and length.
 * Order        None of its own.
 * Concurrency  One thread.
 * Failure      Stops at the first violation, with the cut and the reason.
 * Tests        the mutants.
 */
#include "cx_explore.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "cx_verify.h"

#define SEEN_SLOTS (1u << 20)
#define ALL_SUBSETS_MAX 6u               /* pending operations up to which every subset is tried */
#define PENDING_MAX 4096u

struct exp {
    struct cx_world *w;
    struct cx_model *m;
    const struct cx_work *k;
    const struct cx_explore_opts *o;
    struct cx_result *res;
    struct cx_bytes first, durable;      /* before the run; with what is durable at this cut */
    uint64_t cut, snapshots, states;
    uint64_t *seen;
    uint64_t seen_count;
    const struct cx_op *pending[PENDING_MAX];
    unsigned pending_count;
};

static bool stop(const struct exp *e)
{
    return e->res->violated || (e->o->max_states && e->res->states >= e->o->max_states) || (e->o->per_run && e->states >= e->o->per_run);
}

static uint64_t digest(const struct cx_bytes *b)
{
    uint64_t h = b->len * 0x9e3779b97f4a7c15ull, v;
    for (uint64_t i = 0; i < b->len; i += 8) {
        memcpy(&v, b->data + i, 8);
        if (v) {
            h = (h ^ v ^ (i * 0x9e3779b97f4a7c15ull)) * 0x9fb21c651e98df25ull;
            h ^= h >> 29;
        }
    }
    return h ? h : 1;
}

static bool fresh(struct exp *e)
{
    uint64_t h = digest(&e->w->image), i = h & (SEEN_SLOTS - 1);
    for (; e->seen[i]; i = (i + 1) & (SEEN_SLOTS - 1))
        if (e->seen[i] == h)
            return false;
    if (e->seen_count < SEEN_SLOTS * 3 / 4) {
        e->seen[i] = h;
        e->seen_count++;
    }
    return true;
}

static void put_file(const char *dir, const char *name, const struct cx_bytes *b)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(b->data, 1, b->len, f) != b->len || fclose(f)) {
        fprintf(stderr, "byre-crash: %s cannot be written\n", path);
        abort();
    }
}

/* The peer's verdict on the state in the image: exit 0 (clean) or 3 (leaks). */
static void sample(struct exp *e)
{
    char dir[200], cmd[800];
    snprintf(dir, sizeof dir, "%s/byre-crash-XXXXXX", e->o->scratch);
    if (!mkdtemp(dir))
        abort();
    put_file(dir, "img", &e->w->image);
    put_file(dir, "base", &e->w->backing);
    snprintf(cmd, sizeof cmd, "qemu-img check -q -f qcow2 %s/img >/dev/null 2>&1; r=$?; rm -rf %s; exit $r", dir, dir);
    int st = system(cmd);
    int code = WIFEXITED(st) ? WEXITSTATUS(st) : 99;
    e->res->samples++;
    if (code != 0 && code != 3) {
        e->res->violated = true;
        snprintf(e->res->why, sizeof e->res->why, "qemu-img check ends with %d", code);
        e->res->cut = e->cut;
    }
}

static void try_state(struct exp *e)
{
    if (stop(e))
        return;
    if (!fresh(e)) {
        e->res->duplicates++;
        return;
    }
    e->res->states++;
    e->states++;
    bool nested = e->o->nested && e->res->states % e->o->nested == 0;
    if (e->o->sample && e->res->states % e->o->sample == 0)
        sample(e);
    struct cx_verdict v;
    cx_verify(e->w, e->m, e->k, e->cut, e->snapshots, nested, &v);
    e->res->nested += nested;
    e->res->max_leak_bytes = max_u64(e->res->max_leak_bytes, v.leak_bytes);
    if (v.bad && !e->res->violated) {
        e->res->violated = true;
        e->res->cut = e->cut;
        snprintf(e->res->why, sizeof e->res->why, "%s", v.why);
    }
}

/* Which pending operations landed. */
enum pick_kind { PICK_MASK, PICK_PREFIX, PICK_ALL_BUT, PICK_ONE };
struct pick { enum pick_kind kind; uint64_t n, mask; };      /* mask: bit i % 64 of a word that turns with i / 64 */

static bool picked(const struct pick *p, unsigned i)
{
    switch (p->kind) {
    case PICK_PREFIX: return i < p->n;
    case PICK_ALL_BUT: return i != p->n && i != p->mask;
    case PICK_ONE: return i == p->n;
    default: return (i / 64 ? (p->mask ^ p->mask >> (i / 64)) : p->mask) >> (i % 64) & 1;
    }
}

/* torn: only [from, to) of that operation did. */
static void build(struct exp *e, struct pick p, unsigned torn, uint64_t from, uint64_t to)
{
    if (stop(e))
        return;
    cx_bytes_copy(&e->w->image, &e->durable);
    for (unsigned i = 0; i < e->pending_count; i++) {
        if (i == torn)
            cx_apply(&e->w->image, e->pending[i], from, to);
        else if (picked(&p, i))
            cx_apply(&e->w->image, e->pending[i], 0, e->pending[i]->len);
    }
    try_state(e);
}

static void whole(struct exp *e, enum pick_kind kind, uint64_t n, uint64_t mask)
{
    build(e, (struct pick){ kind, n, mask }, UINT32_MAX, 0, 0);
}

static void subsets(struct exp *e, struct prng *p)
{
    unsigned n = e->pending_count;
    if (n <= ALL_SUBSETS_MAX) {
        for (uint64_t m = 0; m < 1ull << n; m++)
            whole(e, PICK_MASK, 0, m);
        return;
    }
    for (unsigned i = 0; i <= n; i++) {
        whole(e, PICK_PREFIX, i, 0);
        whole(e, PICK_ALL_BUT, i, UINT64_MAX);
        whole(e, PICK_ONE, i, 0);
        whole(e, PICK_ALL_BUT, i, prng_below(p, n));
    }
    for (unsigned i = 0; i < 24; i++)
        whole(e, PICK_MASK, 0, prng_u64(p));
}

static void tears(struct exp *e, struct prng *p)
{
    for (unsigned i = 0; i < e->pending_count && i < 64; i++) {
        uint64_t sectors = e->pending[i]->len / CX_SECTOR;
        if (e->pending[i]->kind != CX_WRITE || sectors < 2)
            continue;
        uint64_t k[3] = { 1, sectors / 2, sectors - 1 }, at = k[prng_below(p, 3)] * CX_SECTOR;
        build(e, (struct pick){ PICK_PREFIX, i, 0 }, i, 0, at);
        build(e, (struct pick){ PICK_MASK, 0, prng_u64(p) }, i, at, e->pending[i]->len);
    }
}

static void gather(struct exp *e)
{
    uint64_t durable = cx_durable_stamp(e->w, e->cut);
    cx_bytes_copy(&e->durable, &e->first);
    e->pending_count = 0;
    for (size_t i = 0; i < e->w->log_count; i++) {
        const struct cx_op *o = &e->w->log[i];
        if (o->kind == CX_FLUSH || o->issued >= e->cut || (o->kind == CX_WRITE && !o->data))
            continue;
        if (o->completed && o->completed < durable)
            cx_apply(&e->durable, o, 0, o->len);
        else if (e->pending_count < PENDING_MAX)
            e->pending[e->pending_count++] = o;
    }
}

static void cut_at(struct exp *e, uint64_t cut)
{
    struct prng p;
    prng_init(&p, cut * 7 + e->k->seed);
    e->cut = cut;
    gather(e);
    subsets(e, &p);
    tears(e, &p);
}

static int by_stamp(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A cut behind each issue and each completion is enough: nothing changes between. */
static void all_cuts(struct exp *e)
{
    size_t n = 0;
    uint64_t *cuts = malloc((e->w->log_count * 2 + 1) * sizeof *cuts);
    for (size_t i = 0; i < e->w->log_count; i++) {
        cuts[n++] = e->w->log[i].issued + 1;
        if (e->w->log[i].completed)
            cuts[n++] = e->w->log[i].completed + 1;
        e->res->barriers += e->w->log[i].kind == CX_FLUSH;
    }
    cuts[n++] = e->w->now;
    qsort(cuts, n, sizeof *cuts, by_stamp);
    for (size_t i = 0; i < n && !stop(e); i++)
        if (i == 0 || cuts[i] != cuts[i - 1])
            cut_at(e, cuts[i]);
    free(cuts);
}

void cx_explore(struct cx_world *w, struct cx_model *m, const struct cx_work *k, const struct cx_explore_opts *o, struct cx_result *res)
{
    struct exp *e = calloc(1, sizeof *e);
    *e = (struct exp){ .w = w, .m = m, .k = k, .o = o, .res = res };
    e->seen = calloc(SEEN_SLOTS, sizeof *e->seen);
    e->first.data = calloc(1, CX_FILE_MAX);
    e->durable.data = calloc(1, CX_FILE_MAX);
    if (!cx_work_prepare(w, m, k)) {
        res->violated = true;
        snprintf(res->why, sizeof res->why, "the first image cannot be made");
    } else {
        cx_bytes_copy(&e->first, &w->image);
        e->snapshots = cx_snapshots_digest(&w->image);
        if (!cx_work_run(w, m, k)) {
            res->violated = true;
            snprintf(res->why, sizeof res->why, "the workload itself failed");
        } else {
            all_cuts(e);
        }
    }
    cx_log_clear(w);
    free(e->seen);
    free(e->first.data);
    free(e->durable.data);
    free(e);
}

void cx_minimise(struct cx_world *w, struct cx_model *m, struct cx_work *k, const struct cx_explore_opts *o)
{
    for (unsigned size = k->count / 2; size; size = size > 1 ? (size + 1) / 2 : 0) {
        for (unsigned at = 0; at + size <= k->count && k->count > 1;) {
            struct cx_work less = { .g = k->g, .seed = k->seed };
            for (unsigned i = 0; i < k->count; i++)
                if (i < at || i >= at + size)
                    cx_work_add(&less, k->steps[i]);
            if (less.count)
                less.steps[0].together = false;
            struct cx_result r = { 0 };
            cx_explore(w, m, &less, o, &r);
            if (r.violated) {
                cx_work_fini(k);
                *k = less;
            } else {
                cx_work_fini(&less);
                at += size;
            }
        }
        if (size == 1)
            break;
    }
}
