/* SPDX-License-Identifier: MIT
 *
 * explorer.c: makes crash states from a trace.
 *
 * Purpose      Cut points, subsets, tears; each as a difference over what is durable at the cut.
 * Owns         The order of operations, what is durable already, per-sector stamps of it.
 * Invariants   X1  At a cut the files hold exactly the operations whose `durable` is not behind it.
 *              X2  An operation is a member of the pending set from its issue until it is durable.
 *              X3  Every state is taken back before the next one is made.
 * Order        The storage model of trace.h and explorer.h.
 * Concurrency  One thread.
 * Failure      What visit answers ends the walk.
 * Tests        explorer_test.c: sets counted by hand; toy_test.c: planted faults are found
 */
#include "sim/explorer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "sim/mem.h"

#define SUBSETS_ALL 12u
#define RANDOM_SETS 64u
#define PAIRS_MAX 400u
#define MASKS 4u

/* ---- order, base ---- */

static int by_effect(const void *a, const void *b)
{
    const struct sim_op *x = *(struct sim_op *const *)a, *y = *(struct sim_op *const *)b;
    if (x->effect != y->effect)
        return x->effect < y->effect ? -1 : 1;
    if ((x->kind == SIM_LEN) != (y->kind == SIM_LEN))
        return x->kind == SIM_LEN ? -1 : 1;
    return x->issued < y->issued ? -1 : x->issued > y->issued;
}

static void base_room(struct sim_explorer *x, uint32_t file, size_t sectors)
{
    if (sectors <= x->base_sectors[file])
        return;
    x->base_effect[file] = sim_mem_realloc(x->base_effect[file], sectors * sizeof(uint64_t));
    memset(x->base_effect[file] + x->base_sectors[file], 0, (sectors - x->base_sectors[file]) * sizeof(uint64_t));
    x->base_sectors[file] = sectors;
}

static void begin(struct sim_explorer *x)
{
    size_t n = x->t->op_count;
    x->order = sim_mem_alloc((n + 1) * sizeof *x->order);
    memcpy(x->order, x->t->ops, n * sizeof *x->order);
    qsort(x->order, n, sizeof *x->order, by_effect);
    x->based = sim_mem_alloc(n + 1);
    for (size_t i = 0; i < n; i++)
        base_room(x, x->order[i]->file, x->order[i]->first + x->order[i]->count);
    x->pending = sim_mem_alloc((n + 1) * sizeof *x->pending);
    x->choice = sim_mem_alloc((n + 1) * sizeof *x->choice);
    prng_init(&x->rng, x->seed);
    x->result = 0;
    x->made = 0;
    for (unsigned i = 0; i < x->w->file_count; i++)
        x->first_len[i] = x->w->files[i]->disk.len;
    for (unsigned i = 0; i < x->w->file_count && !x->nested; i++) {
        sim_disk_commit(&x->w->files[i]->disk);
        sim_disk_set_hashing(&x->w->files[i]->disk, true);
    }
}

static void end(struct sim_explorer *x)
{
    sim_mem_free(x->order);
    sim_mem_free(x->based);
    sim_mem_free(x->pending);
    sim_mem_free(x->choice);
    for (unsigned i = 0; i < SIM_FILES_MAX; i++) {
        sim_mem_free(x->base_effect[i]);
        x->base_effect[i] = NULL;
        x->base_sectors[i] = 0;
    }
}

static void put_len(struct sim_explorer *x, const struct sim_op *op)
{
    int r = sim_disk_set_len(&x->w->files[op->file]->disk, op->len);
    ASSERT(r == 0);                      /* the recorded run did the same */
}

/* Sector i of op, unless it lies behind the length. */
static void put_sector(struct sim_explorer *x, const struct sim_op *op, uint32_t i)
{
    struct sim_disk *d = &x->w->files[op->file]->disk;
    if ((op->first + i) * SIM_SECTOR < d->len)
        sim_disk_put(d, op->first + i, op->data ? op->data + (size_t)i * SIM_SECTOR : NULL, op->hash[i]);
}

/* X1 */
static void advance_base(struct sim_explorer *x, uint64_t cut)
{
    for (size_t k = 0; k < x->t->op_count; k++) {
        struct sim_op *op = x->order[k];
        if (x->based[k] || op->durable > cut || op->kind == SIM_FLUSH)
            continue;
        x->based[k] = true;
        if (op->kind == SIM_LEN && !op->failed)
            put_len(x, op);
        for (uint32_t i = 0; i < op->count; i++)
            if (x->base_effect[op->file][op->first + i] <= op->effect) {
                x->base_effect[op->file][op->first + i] = op->effect;
                put_sector(x, op, i);
            }
    }
    for (unsigned i = 0; i < x->w->file_count && !x->nested; i++)
        sim_disk_commit(&x->w->files[i]->disk);
}

/* X2 */
static void collect(struct sim_explorer *x, uint64_t cut)
{
    x->cut = cut;
    x->pending_count = 0;
    for (size_t k = 0; k < x->t->op_count; k++) {
        struct sim_op *op = x->order[k];
        if (op->kind != SIM_FLUSH && op->issued <= cut && op->durable > cut && (op->kind == SIM_LEN ? !op->failed : op->count))
            x->pending[x->pending_count++] = op;
    }
}

/* ---- one state ---- */

static bool lands(const struct sim_op *op, const struct sim_choice *c, uint32_t i)
{
    switch (c->how) {
    case SIM_DROP: return false;
    case SIM_FULL:
    case SIM_LATE: return true;
    case SIM_HEAD: return i < c->k;
    case SIM_TAIL: return i >= op->count - c->k;
    case SIM_MASK: return c->mask >> (i % 64) & 1;
    }
    return false;
}

/* Length changes of one file land in their order: an earlier one has landed if a later one has. */
static void settle_lengths(struct sim_explorer *x)
{
    bool later[SIM_FILES_MAX] = { false };
    for (uint32_t p = x->pending_count; p-- > 0;) {
        struct sim_op *op = x->pending[p];
        if (op->kind != SIM_LEN)
            continue;
        if (later[op->file])
            x->choice[p].how = SIM_FULL;
        later[op->file] |= x->choice[p].how != SIM_DROP;
    }
}

static void apply_op(struct sim_explorer *x, uint32_t p)
{
    const struct sim_op *op = x->pending[p];
    const struct sim_choice *c = &x->choice[p];
    if (op->kind == SIM_LEN && c->how != SIM_DROP)
        put_len(x, op);
    for (uint32_t i = 0; i < op->count; i++)
        if (lands(op, c, i) && (c->how == SIM_LATE || x->base_effect[op->file][op->first + i] <= op->effect))
            put_sector(x, op, i);
}

/* Blocks were given to the file, their content has not arrived: whatever lay there before. */
static void leave_old_bytes(struct sim_explorer *x, const struct sim_op *op)
{
    struct sim_disk *d = &x->w->files[op->file]->disk;
    uint8_t junk[SIM_SECTOR];
    for (uint32_t i = 0; i < op->count; i++) {
        uint64_t s = op->first + i;
        if (s * SIM_SECTOR < x->first_len[op->file] || s * SIM_SECTOR >= d->len || x->base_effect[op->file][s])
            continue;
        sim_sector_fill(junk, UINT32_MAX - 1, 500000 + s);
        sim_disk_put(d, s, junk, sim_sector_hash(op->file, s, junk));
    }
}

static void old_bytes(struct sim_explorer *x)
{
    for (unsigned kind = 0; kind < 2; kind++)            /* lengths first, then what lies inside */
        for (uint32_t p = 0; p < x->pending_count; p++) {
            const struct sim_op *op = x->pending[p];
            if (x->w->files[op->file]->traits.zero_crash)
                continue;
            if (kind == 0 && op->kind == SIM_LEN && x->choice[p].how != SIM_DROP)
                put_len(x, op);
            if (kind == 1 && op->kind == SIM_WRITE)
                leave_old_bytes(x, op);
        }
}

static void make(struct sim_explorer *x)
{
    sim_mark marks[SIM_FILES_MAX];
    if (x->result)
        return;
    settle_lengths(x);
    for (unsigned i = 0; i < x->w->file_count; i++)
        marks[i] = sim_disk_mark(&x->w->files[i]->disk);
    old_bytes(x);
    for (uint32_t p = 0; p < x->pending_count; p++)
        if (x->choice[p].how != SIM_DROP && x->choice[p].how != SIM_LATE)
            apply_op(x, p);
    for (uint32_t p = 0; p < x->pending_count; p++)
        if (x->choice[p].how == SIM_LATE)
            apply_op(x, p);
    struct hash128 h = { 0, 0 };
    for (unsigned i = 0; i < x->w->file_count; i++) {
        h.lo ^= x->w->files[i]->disk.sum.lo;
        h.hi ^= x->w->files[i]->disk.sum.hi;
    }
    x->made++;
    for (unsigned i = 0; i < x->w->file_count; i++)
        x->w->files[i]->disk.hashing = false;
    x->result = x->visit(x->arg, x, h);
    for (unsigned i = 0; i < x->w->file_count; i++) {
        struct sim_disk *d = &x->w->files[i]->disk;
        d->hashing = !x->nested;
        sim_disk_undo(d, marks[i]);
    }
}

/* ---- sets of members ---- */

static void all(struct sim_explorer *x, enum sim_how how)
{
    for (uint32_t p = 0; p < x->pending_count; p++)
        x->choice[p] = (struct sim_choice){ .how = how };
}

/* fixed: a member that always lands; UINT32_MAX: none. */
static void every_subset(struct sim_explorer *x, uint32_t fixed)
{
    uint32_t n = x->pending_count;
    for (uint32_t bits = 0; bits < 1u << n; bits++) {
        if (fixed != UINT32_MAX && !(bits >> fixed & 1))
            continue;
        for (uint32_t p = 0; p < n; p++)
            x->choice[p] = (struct sim_choice){ .how = bits >> p & 1 ? SIM_FULL : SIM_DROP };
        make(x);
    }
}

static void set(struct sim_explorer *x, uint32_t p, enum sim_how how)
{
    if (p != UINT32_MAX)
        x->choice[p] = (struct sim_choice){ .how = how };
}

/* In the order of issue: the first ones land, the rest does not. */
static void prefixes(struct sim_explorer *x)
{
    for (uint32_t k = 0; k <= x->pending_count; k++) {
        uint64_t limit = k < x->pending_count ? x->pending[k]->issued : SIM_NEVER;
        for (uint32_t p = 0; p < x->pending_count; p++)
            set(x, p, x->pending[p]->issued < limit ? SIM_FULL : SIM_DROP);
        make(x);
    }
}

static void pairs(struct sim_explorer *x, uint32_t fixed)
{
    uint32_t n = x->pending_count;
    uint64_t total = (uint64_t)n * (n - 1) / 2;
    bool some = total > PAIRS_MAX;
    for (uint32_t i = 0, k = 0; i < n && !x->result; i++)
        for (uint32_t j = i + 1; j < n; j++) {
            if (i == fixed || j == fixed || (some && prng_below(&x->rng, total) >= PAIRS_MAX) || k++ > 2 * PAIRS_MAX)
                continue;
            all(x, SIM_FULL);
            set(x, i, SIM_DROP);
            set(x, j, SIM_DROP);
            make(x);
        }
}

static void chosen_subsets(struct sim_explorer *x, uint32_t fixed)
{
    uint32_t n = x->pending_count;
    if (fixed == UINT32_MAX)
        prefixes(x);
    for (uint32_t p = 0; p < n; p++) {
        all(x, SIM_FULL);
        set(x, p, p == fixed ? SIM_FULL : SIM_DROP);
        make(x);
        all(x, SIM_DROP);
        set(x, p, SIM_FULL);
        set(x, fixed, SIM_FULL);
        make(x);
    }
    pairs(x, fixed);
    for (unsigned i = 0; i < RANDOM_SETS; i++) {
        uint64_t odds = 1 + prng_below(&x->rng, 7);
        for (uint32_t p = 0; p < n; p++)
            set(x, p, prng_below(&x->rng, 8) < odds ? SIM_FULL : SIM_DROP);
        set(x, fixed, SIM_FULL);
        make(x);
    }
}

static void subsets(struct sim_explorer *x, uint32_t fixed)
{
    if (x->pending_count <= SUBSETS_ALL)
        every_subset(x, fixed);
    else
        chosen_subsets(x, fixed);
}

/* ---- tears ---- */

static void tear(struct sim_explorer *x, uint32_t p, enum sim_how others)
{
    const struct sim_op *op = x->pending[p];
    uint32_t n = op->count, ks[3] = { 1, n / 2, n - 1 };
    if (n < 2)
        return;
    for (unsigned i = 0; i < 3; i++)
        for (unsigned side = 0; side < 2; side++) {
            if (i && ks[i] == ks[i - 1])
                continue;
            all(x, others);
            x->choice[p] = (struct sim_choice){ .how = side ? SIM_TAIL : SIM_HEAD, .k = ks[i] };
            make(x);
        }
    for (unsigned i = 0; i < MASKS && op->meta && n > 2; i++) {
        all(x, others);
        x->choice[p] = (struct sim_choice){ .how = SIM_MASK, .mask = prng_u64(&x->rng) };
        make(x);
    }
}

/* Of two that overlap in time and place either may come last. */
static void swaps(struct sim_explorer *x)
{
    for (uint32_t i = 0; i < x->pending_count; i++)
        for (uint32_t j = i + 1; j < x->pending_count; j++) {
            const struct sim_op *a = x->pending[i], *b = x->pending[j];
            bool place = a->file == b->file && a->first < b->first + b->count && b->first < a->first + a->count;
            if (!place || a->done < b->issued || b->done < a->issued)
                continue;
            all(x, SIM_FULL);
            set(x, i, SIM_LATE);
            make(x);
        }
}

/* ---- cuts ---- */

static uint32_t index_of(const struct sim_explorer *x, const struct sim_op *op)
{
    for (uint32_t p = 0; p < x->pending_count; p++)
        if (x->pending[p] == op)
            return p;
    return UINT32_MAX;
}

static void cut_new(struct sim_explorer *x, const struct sim_op *op)
{
    collect(x, op->issued);
    uint32_t p = index_of(x, op);
    if (p == UINT32_MAX)
        return;
    subsets(x, p);
    tear(x, p, SIM_DROP);
    tear(x, p, SIM_FULL);
}

static void cut_full(struct sim_explorer *x, uint64_t cut)
{
    collect(x, cut);
    subsets(x, UINT32_MAX);
    for (uint32_t p = 0; p < x->pending_count; p++)
        tear(x, p, SIM_FULL);
}

static void cut_before_flush(struct sim_explorer *x, uint64_t cut)
{
    collect(x, cut);
    for (uint32_t p = 0; p < x->pending_count; p++) {
        tear(x, p, SIM_FULL);
        tear(x, p, SIM_DROP);
    }
    swaps(x);
}

struct point { uint64_t stamp; enum { P_OP, P_FLUSH, P_NOTE } kind; const void *what; };

static int by_stamp(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    return x->stamp < y->stamp ? -1 : x->stamp > y->stamp ? 1 : (int)x->kind - (int)y->kind;
}

static size_t points_of(const struct sim_trace *t, struct point **ret)
{
    struct point *pt = sim_mem_alloc((2 * t->op_count + t->note_count + 1) * sizeof *pt);
    size_t n = 0;
    for (size_t i = 0; i < t->op_count; i++) {
        const struct sim_op *op = t->ops[i];
        if (op->kind != SIM_FLUSH)
            pt[n++] = (struct point){ op->issued, P_OP, op };
        if (op->kind == SIM_FLUSH ? op->done != SIM_NEVER && !op->failed : op->fua && op->durable != SIM_NEVER)
            pt[n++] = (struct point){ op->done, P_FLUSH, op };
    }
    for (size_t i = 0; i < t->note_count; i++)
        pt[n++] = (struct point){ t->notes[i].stamp, P_NOTE, &t->notes[i] };
    qsort(pt, n, sizeof *pt, by_stamp);
    *ret = pt;
    return n;
}

/* Does this promise make some content illegal that was legal? */
static bool narrows(enum sim_note_kind k)
{
    return k == SIM_N_FLUSH_ACK || k == SIM_N_RESIZE_ACK || k == SIM_N_SEEN || k == SIM_N_SNAP_ACK || k == SIM_N_KEYS_ACK;
}

static void at_point(struct sim_explorer *x, const struct point *p)
{
    if (p->kind == P_OP)
        cut_new(x, p->what);
    if (p->kind == P_FLUSH) {
        cut_before_flush(x, p->stamp - 1);
        advance_base(x, p->stamp);
    }
    if (p->kind != P_NOTE)
        return;
    const struct sim_note *n = p->what;
    struct hash128 before = x->m->sum;
    sim_model_apply(x->m, n);
    if (narrows(n->kind) && !hash128_eq(before, x->m->sum))
        cut_full(x, p->stamp);
}

int sim_explore(struct sim_explorer *x)
{
    struct point *pt;
    size_t n = points_of(x->t, &pt);
    begin(x);
    collect(x, 0);
    make(x);                             /* the state before anything */
    for (size_t i = 0; i < n && !x->result; i++)
        at_point(x, &pt[i]);
    if (!x->result)
        cut_full(x, SIM_NEVER - 1);
    advance_base(x, SIM_NEVER);
    end(x);
    sim_mem_free(pt);
    return x->result;
}

/* ---- one at random ---- */

static void random_choices(struct sim_explorer *x)
{
    uint64_t odds = prng_below(&x->rng, 9);
    for (uint32_t p = 0; p < x->pending_count; p++)
        set(x, p, prng_below(&x->rng, 8) < odds ? SIM_FULL : SIM_DROP);
    if (!x->pending_count || prng_one_in(&x->rng, 2))
        return;
    uint32_t p = (uint32_t)prng_below(&x->rng, x->pending_count);
    if (x->pending[p]->count > 1)
        x->choice[p] = (struct sim_choice){ .how = SIM_MASK, .mask = prng_u64(&x->rng) };
}

int sim_explore_random(struct sim_explorer *x)
{
    struct point *pt;
    size_t n = points_of(x->t, &pt);
    begin(x);
    uint64_t cut = n ? pt[prng_below(&x->rng, n)].stamp : 0;
    for (size_t i = 0; i < n && pt[i].stamp <= cut; i++)
        if (pt[i].kind == P_NOTE)
            sim_model_apply(x->m, pt[i].what);
    advance_base(x, cut);
    collect(x, cut);
    random_choices(x);
    make(x);
    sim_mem_free(pt);
    end(x);
    return x->result;
}

/* ---- a sample ---- */

static bool first_of(const struct sim_explorer *x, enum sim_how how)
{
    for (uint32_t p = 0; p < x->pending_count; p++)
        if (x->choice[p].how != how)
            return false;
    return true;
}

/* Nothing lands, everything, all but one; then at random. */
static void some_states(struct sim_explorer *x, uint64_t cut, unsigned each)
{
    collect(x, cut);
    all(x, SIM_DROP);
    make(x);
    all(x, SIM_FULL);
    if (x->pending_count)
        make(x);
    for (unsigned i = 2; i < each && x->pending_count; i++) {
        if (i % 4 == 2) {
            all(x, SIM_FULL);
            set(x, (uint32_t)prng_below(&x->rng, x->pending_count), SIM_DROP);
        } else {
            random_choices(x);
        }
        if (!first_of(x, SIM_DROP) && !first_of(x, SIM_FULL))
            make(x);
    }
}

static void at_point_maybe(struct sim_explorer *x, const struct point *p, unsigned one_in, unsigned each)
{
    bool chosen = prng_one_in(&x->rng, one_in);
    if (p->kind == P_OP && chosen)
        some_states(x, p->stamp, each);
    if (p->kind == P_FLUSH) {
        if (chosen)
            some_states(x, p->stamp - 1, each);
        advance_base(x, p->stamp);
    }
    if (p->kind != P_NOTE)
        return;
    const struct sim_note *n = p->what;
    sim_model_apply(x->m, n);
    if (n->kind == SIM_N_EVENT || (narrows(n->kind) && prng_one_in(&x->rng, 2)))
        some_states(x, p->stamp, 2 * each);
}

int sim_explore_some(struct sim_explorer *x, unsigned one_in, unsigned each)
{
    struct point *pt;
    size_t n = points_of(x->t, &pt);
    begin(x);
    collect(x, 0);
    make(x);
    for (size_t i = 0; i < n && !x->result; i++)
        at_point_maybe(x, &pt[i], one_in, each);
    if (!x->result)
        some_states(x, SIM_NEVER - 1, 2 * each);
    advance_base(x, SIM_NEVER);
    end(x);
    sim_mem_free(pt);
    return x->result;
}

/* ---- text ---- */

void sim_state_text(const struct sim_explorer *x, char *buf, size_t bytes)
{
    size_t at = (size_t)snprintf(buf, bytes, "cut %llu:", (unsigned long long)x->cut);
    for (uint32_t p = 0; p < x->pending_count && at + 40 < bytes; p++) {
        const struct sim_choice *c = &x->choice[p];
        size_t id = 0;
        while (x->t->ops[id] != x->pending[p])
            id++;
        if (c->how == SIM_DROP)
            continue;
        at += (size_t)snprintf(buf + at, bytes - at, " %zu", id);
        if (c->how == SIM_HEAD || c->how == SIM_TAIL)
            at += (size_t)snprintf(buf + at, bytes - at, "%c%u", c->how == SIM_HEAD ? 'h' : 't', c->k);
        if (c->how == SIM_MASK)
            at += (size_t)snprintf(buf + at, bytes - at, "m%llx", (unsigned long long)c->mask);
        if (c->how == SIM_LATE)
            at += (size_t)snprintf(buf + at, bytes - at, "L");
    }
}

static int parse_choice(struct sim_explorer *x, const char **s)
{
    char *e;
    unsigned long long id = strtoull(*s, &e, 10);
    if (e == *s || id >= x->t->op_count)
        return -EINVAL;
    uint32_t p = index_of(x, x->t->ops[id]);
    if (p == UINT32_MAX)
        return -EINVAL;
    struct sim_choice *c = &x->choice[p];
    *c = (struct sim_choice){ .how = SIM_FULL };
    char tag = *e;
    if (tag == 'h' || tag == 't' || tag == 'm') {
        unsigned long long v = strtoull(e + 1, &e, tag == 'm' ? 16 : 10);
        c->how = tag == 'h' ? SIM_HEAD : tag == 't' ? SIM_TAIL : SIM_MASK;
        c->k = (uint32_t)min_u64(v, x->t->ops[id]->count);
        c->mask = v;
    } else if (tag == 'L') {
        c->how = SIM_LATE;
        e++;
    }
    *s = e;
    return 0;
}

int sim_explore_one(struct sim_explorer *x, const char *text)
{
    unsigned long long cut;
    int at = 0, r = 0;
    if (sscanf(text, "cut %llu:%n", &cut, &at) != 1 || !at)
        return -EINVAL;
    struct point *pt;
    size_t n = points_of(x->t, &pt);
    begin(x);
    for (size_t i = 0; i < n && pt[i].stamp <= cut; i++)
        if (pt[i].kind == P_NOTE)
            sim_model_apply(x->m, pt[i].what);
    advance_base(x, cut);
    collect(x, cut);
    all(x, SIM_DROP);
    for (const char *s = text + at; r == 0 && *(s += strspn(s, " "));)
        r = parse_choice(x, &s);
    if (r == 0)
        make(x);
    sim_mem_free(pt);
    end(x);
    return r < 0 ? r : x->result;
}
