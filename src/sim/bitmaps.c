/* SPDX-License-Identifier: MIT
 *
 * bitmaps.c: follows actions on bitmaps and judges them.
 *
 * Purpose      The model of persistent bitmaps beside model.c.
 * Owns         m->bm.
 * Invariants   bitmaps.h K1..K4
 * Order        Notes are applied in the order of their stamps.
 * Concurrency  One thread.
 * Failure      -1 and a sentence.
 * Tests        model_test.c, the mutants MUT_BITMAP_*
 */
#include "sim/bitmaps.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "sim/disk.h"
#include "sim/image.h"
#include "sim/mem.h"
#include "sim/model.h"

#define PROBE_GEN 1000u                  /* generations of verify.c's probes begin here */

const char *const sim_bitmap_name[SIM_BITMAPS] = { "bitmap", "one", "two" };

/* ---- life ---- */

static void state_init(struct sim_bm_state *s, uint64_t sectors)
{
    s->must = sim_mem_alloc(sectors);
    s->had_zero = sim_mem_alloc(sectors);
}

void sim_bitmaps_init(struct sim_model *m)
{
    m->gone = sim_mem_alloc(m->sectors * sizeof *m->gone);
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        state_init(&m->bm[i].now, m->sectors);
        state_init(&m->bm[i].alt, m->sectors);
        m->bm[i].may = sim_mem_alloc(m->sectors);
    }
}

void sim_bitmaps_fini(struct sim_model *m)
{
    sim_mem_free(m->gone);
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        sim_mem_free(m->bm[i].now.must);
        sim_mem_free(m->bm[i].now.had_zero);
        sim_mem_free(m->bm[i].alt.must);
        sim_mem_free(m->bm[i].alt.had_zero);
        sim_mem_free(m->bm[i].may);
    }
}

static void copy_state(const struct sim_model *m, struct sim_bm_state *to, const struct sim_bm_state *from)
{
    to->there = from->there;
    to->enabled = from->enabled;
    to->since = from->since;
    memcpy(to->must, from->must, m->sectors);
    memcpy(to->had_zero, from->had_zero, m->sectors);
}

static void note_zeros(const struct sim_model *m, struct sim_bm_state *s)
{
    for (uint64_t i = 0; i < m->sectors; i++)
        s->had_zero[i] = sim_model_allows(m, i, 0) || (m->below && sim_model_allows(m, i, m->below[i]));
}

void sim_bitmaps_start(struct sim_model *m, const struct sim_disk *d)
{
    struct sim_found f[SIM_BITMAPS];
    sim_audit_bitmaps(d, f);
    m->generation = sim_audit_generation(d);
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        struct sim_bm *b = &m->bm[i];
        b->open = false;
        b->now.there = f[i].there;
        b->now.enabled = f[i].enabled;
        b->now.since = 0;
        for (uint64_t s = 0; s < m->sectors; s++)
            b->may[s] = b->now.must[s] = f[i].there && sim_found_dirty(&f[i], s);
        note_zeros(m, &b->now);
    }
    sim_found_free(f);
}

/* ---- actions ---- */

bool sim_bitmap_can(const struct sim_model *m, char action, unsigned slot, unsigned from)
{
    const struct sim_bm *b = &m->bm[slot];
    if (b->open)
        return false;
    switch (action) {
    case 'A': return !b->now.there;
    case 'E': return b->now.there && !b->now.enabled;
    case 'H': return b->now.there && b->now.enabled;
    case 'M': return b->now.there && m->bm[from].now.there && !m->bm[from].open;
    }
    return b->now.there;
}

static bool changes(const struct sim_req *r) { return r->kind == SIM_N_WRITE || r->kind == SIM_N_ZERO || r->kind == SIM_N_DISCARD || r->kind == SIM_N_CLONE; }

static void mark(const struct sim_model *m, bool *set, const struct sim_req *r)
{
    for (uint64_t s = r->off / SIM_SECTOR; s < min_u64((r->off + r->len) / SIM_SECTOR, m->sectors); s++)
        set[s] = true;
}

/* What is recorded for certain: issued while it recorded, ended before `until`, and not cut off since. */
static void settle(const struct sim_model *m, const struct sim_bm_state *s, uint64_t until, bool *must)
{
    for (uint32_t i = 1; s->there && s->enabled && i < m->req_count; i++)
        if (changes(&m->reqs[i]) && m->reqs[i].ok && m->reqs[i].issued > s->since && m->reqs[i].ended < until)
            for (uint64_t x = m->reqs[i].off / SIM_SECTOR; x < min_u64((m->reqs[i].off + m->reqs[i].len) / SIM_SECTOR, m->sectors); x++)
                must[x] |= m->gone[x] < m->reqs[i].issued;
}

static void on_action(struct sim_model *m, const struct sim_note *n)
{
    struct sim_bm *b = &m->bm[n->off];
    struct sim_bm_state *a = &b->alt;
    copy_state(m, a, &b->now);
    b->open = true;
    b->issued = n->stamp;
    settle(m, &b->now, n->stamp, a->must);
    a->since = SIM_NEVER;
    switch ((char)n->gen) {
    case 'A':
        a->there = a->enabled = true;
        memset(a->must, 0, m->sectors);
        break;
    case 'X':
        a->there = false;
        break;
    case 'C':
        memset(a->must, 0, m->sectors);
        break;
    case 'E':
    case 'H':
        a->enabled = (char)n->gen == 'E';
        break;
    case 'M':
        a->since = b->now.since;         /* goes on recording as before */
        for (uint64_t s = 0; s < m->sectors; s++)
            a->must[s] |= m->bm[n->len].now.must[s];
        settle(m, &m->bm[n->len].now, n->stamp, a->must);
        break;
    }
}

static void on_action_ack(struct sim_model *m, const struct sim_note *n)
{
    struct sim_bm *b = &m->bm[n->off];
    char action = (char)n->gen;
    copy_state(m, &b->now, &b->alt);
    b->open = false;
    if (b->now.since == SIM_NEVER)
        b->now.since = n->stamp;
    if (strchr("ACE", action))
        note_zeros(m, &b->now);
    if (strchr("AC", action)) {
        memset(b->may, 0, m->sectors);
        for (uint32_t i = 1; i < m->req_count; i++)
            if (changes(&m->reqs[i]) && m->reqs[i].ended > b->issued)
                mark(m, b->may, &m->reqs[i]);
    }
    for (uint64_t s = 0; action == 'M' && s < m->sectors; s++)      /* a bit of the other one stands for up to 8 sectors */
        for (uint64_t i = round_down(s, 8); i < min_u64(round_down(s, 8) + 8, m->sectors); i++)
            b->may[s] |= m->bm[n->len].may[i];
}

static void on_request(struct sim_model *m, const struct sim_note *n)
{
    struct sim_req r = { .off = n->off, .len = n->len };
    for (unsigned i = 0; i < SIM_BITMAPS; i++)
        mark(m, m->bm[i].may, &r);
}

/* What lies behind a new end is gone, and reads zeros when it comes back. */
static void on_resize(struct sim_model *m, uint64_t size, uint64_t stamp)
{
    for (uint64_t s = min_u64(size, m->size) / SIM_SECTOR; s < m->sectors; s++)
        m->gone[s] = stamp;
    for (unsigned i = 0; i < SIM_BITMAPS; i++)
        for (uint64_t s = min_u64(size, m->size) / SIM_SECTOR; s < m->sectors; s++) {
            m->bm[i].now.must[s] = m->bm[i].alt.must[s] = false;
            m->bm[i].now.had_zero[s] = m->bm[i].alt.had_zero[s] = true;
        }
}

/* A snapshot is applied: all dirty, before the disk changes (G.007). */
static void on_apply(struct sim_model *m, const struct sim_note *n)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        struct sim_bm *b = &m->bm[i];
        copy_state(m, &b->alt, &b->now);
        b->open = true;
        b->issued = n->stamp;
        memset(b->may, 1, m->sectors);
        for (uint64_t s = 0; s < m->sectors; s++) {      /* behind the snapshot's end as on_resize */
            b->alt.must[s] = s < m->snap[n->id].size / SIM_SECTOR;
            b->alt.had_zero[s] |= !b->alt.must[s];
        }
    }
}

static void on_applied(struct sim_model *m, uint64_t stamp)
{
    for (uint64_t s = m->applying->size / SIM_SECTOR; s < m->sectors; s++)
        m->gone[s] = stamp;
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        copy_state(m, &m->bm[i].now, &m->bm[i].alt);
        m->bm[i].open = false;
    }
}

void sim_bitmaps_note(struct sim_model *m, const struct sim_note *n)
{
    switch (n->kind) {
    case SIM_N_BITMAP:
        on_action(m, n);
        break;
    case SIM_N_BITMAP_ACK:
        on_action_ack(m, n);
        break;
    case SIM_N_WRITE:
    case SIM_N_ZERO:
    case SIM_N_DISCARD:
    case SIM_N_CLONE:
        on_request(m, n);
        break;
    case SIM_N_SNAP_APPLY:
        on_apply(m, n);
        break;
    case SIM_N_SNAP_ACK:
        if (m->applying)
            on_applied(m, n->stamp);
        break;
    case SIM_N_RESIZE:
        on_resize(m, n->len, n->stamp);
        break;
    default:
        break;
    }
}

/* ---- judgement ---- */

/* A probe of verify.c wrote it. What a clone brought from another sector is more than any generation. */
static bool is_probe(uint32_t gen) { return gen >= PROBE_GEN && gen == sim_gen_of(gen); }

/* Can only requests that were issued behind `stamp` have brought this to the sector? */
static bool only_later(const struct sim_model *m, uint64_t sector, uint32_t gen, uint64_t stamp)
{
    const struct sim_cell *c = &m->cells[sector];
    bool later = false;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->v[i].gen == gen && m->reqs[c->v[i].req].issued <= stamp)
            return false;
        later |= c->v[i].gen == gen;
    }
    return later;
}

/* Has the content of this sector come from a request that the bitmap must know of? */
static bool came_later(const struct sim_model *m, const struct sim_bm_state *s, uint64_t sector, uint32_t gen)
{
    if (!s->enabled || s->since == SIM_NEVER)
        return is_probe(gen) && s->enabled;
    for (uint32_t i = 1; i < m->req_count; i++)          /* a clone may have brought it, before */
        if (m->reqs[i].kind == SIM_N_CLONE && m->reqs[i].issued <= s->since && sector >= m->reqs[i].off / SIM_SECTOR && sector < (m->reqs[i].off + m->reqs[i].len) / SIM_SECTOR)
            return false;
    if (gen == 0)
        return !s->had_zero[sector] && sector * SIM_SECTOR < min_u64(m->size, m->size_alt);
    if (is_probe(gen))
        return true;
    if (gen != sim_gen_of(gen) && gen != SIM_GEN_NONE)
        return only_later(m, sector, gen, s->since);
    for (uint32_t i = 1; i < m->req_count; i++)
        if (m->reqs[i].kind == SIM_N_WRITE && m->reqs[i].gen == gen && gen >= SIM_GEN_USER)
            return m->reqs[i].issued > s->since;
    return false;
}

/* Is what was found this state? ret: the sector that it misses. */
static bool fits(const struct sim_model *m, const struct sim_bm_state *s, const struct sim_found *f, const uint32_t *got, uint64_t size, uint64_t *ret_missing)
{
    if (s->there != f->there)
        return false;
    if (!f->there)
        return true;
    if (s->enabled != f->enabled)
        return false;
    for (uint64_t i = 0; i < size / SIM_SECTOR; i++)
        if ((s->must[i] || came_later(m, s, i, got[i])) && !sim_found_dirty(f, i)) {
            *ret_missing = i;
            return false;
        }
    return true;
}

static int wrong(char *why, size_t bytes, const char *name, const char *text, uint64_t sector)
{
    snprintf(why, bytes, "bitmap '%s' %s (sector %llu)", name, text, (unsigned long long)sector);
    return -1;
}

/* K5 */
static bool generation_stayed(const struct sim_model *m, const struct sim_bm_state *s, const struct sim_disk *d, const uint32_t *got, uint64_t size)
{
    uint64_t now = sim_audit_generation(d);
    for (uint64_t i = 0; i < size / SIM_SECTOR && (now == m->generation || !(now >> 32)); i++)
        if (got[i] >= SIM_GEN_USER && !is_probe(got[i]) && came_later(m, s, i, got[i]))     /* probes may be older than this run */
            return true;
    return false;
}

static int judge_one(const struct sim_model *m, unsigned i, const struct sim_found *f, const struct sim_disk *d, const uint32_t *got, uint64_t size, enum sim_closed closed, char *why, size_t bytes)
{
    const struct sim_bm *b = &m->bm[i];
    uint64_t missing = SIM_NEVER;
    if (f->there && f->broken)
        return wrong(why, bytes, sim_bitmap_name[i], "cannot be read", 0);
    if (f->there && f->in_use && !f->claimed)
        return wrong(why, bytes, sim_bitmap_name[i], "is in use and not claimed: it is lost", 0);
    if (f->there && f->in_use && (closed == SIM_CLOSED || (closed == SIM_CLOSED_UNCLEAN && f->enabled)))
        return wrong(why, bytes, sim_bitmap_name[i], "is in use after a close", 0);
    if (f->there && f->claimed && b->now.there && !b->open && generation_stayed(m, &b->now, d, got, size))
        return wrong(why, bytes, sim_bitmap_name[i], "has recorded, and the generation is what it was", 0);
    bool was = false;                    /* it can only be what the snapshot holds */
    for (uint64_t s = 0; m->applying && s < size / SIM_SECTOR && !was; s++)
        was = got[s] && !is_probe(got[s]) && got[s] == m->applying->gens[s] && !sim_model_allows(m, s, got[s]);
    if ((!was && fits(m, &b->now, f, got, size, &missing)) || (b->open && fits(m, &b->alt, f, got, size, &missing)))
        return 0;
    if (missing == SIM_NEVER)
        return wrong(why, bytes, sim_bitmap_name[i], !f->there ? "is gone" : !b->now.there ? "is back" : f->enabled ? "records" : "does not record", 0);
    return wrong(why, bytes, sim_bitmap_name[i], "misses a sector that has changed", missing);
}

int sim_bitmaps_judge(const struct sim_model *m, const struct sim_disk *d, const uint32_t *got, uint64_t size, enum sim_closed closed, enum sim_vanish vanish, char *why, size_t bytes)
{
    struct sim_found f[SIM_BITMAPS];
    int r = 0;
    bool open = m->size != m->size_alt, any = false;         /* a resize writes the set anew, as an action does */
    sim_audit_bitmaps(d, f);
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        open |= m->bm[i].open;
        any |= f[i].there;
    }
    if ((vanish == SIM_VANISH || (vanish && open)) && !any)
        return 0;
    for (unsigned i = 0; r == 0 && i < SIM_BITMAPS; i++)
        r = judge_one(m, i, &f[i], d, got, size, closed, why, bytes);
    sim_found_free(f);
    return r;
}

static int judge_exact(const struct sim_model *m, unsigned i, const struct sim_found *f, char *why, size_t bytes)
{
    const struct sim_bm *b = &m->bm[i];
    if (f->there != b->now.there)
        return wrong(why, bytes, sim_bitmap_name[i], f->there ? "is back after a close" : "is gone after a close", 0);
    if (!f->there)
        return 0;
    if (f->broken || f->in_use || f->enabled != b->now.enabled)
        return wrong(why, bytes, sim_bitmap_name[i], "is not as it was left", 0);
    bool *must = sim_mem_alloc(m->sectors);
    memcpy(must, b->now.must, m->sectors);
    settle(m, &b->now, SIM_NEVER, must);
    uint64_t per = max_u64((1ull << f->granularity_bits) / SIM_SECTOR, 1), bad = SIM_NEVER;
    const char *text = "misses a sector that was written";
    for (uint64_t s = 0; s < m->size / SIM_SECTOR && bad == SIM_NEVER; s++)
        if (must[s] && !sim_found_dirty(f, s))
            bad = s;
    for (uint64_t g = 0; g * per < m->size / SIM_SECTOR && bad == SIM_NEVER; g++) {
        bool may = false;
        for (uint64_t s = g * per; s < (g + 1) * per && s < m->sectors; s++)
            may |= b->may[s];
        if (!may && sim_found_dirty(f, g * per)) {
            bad = g * per;
            text = "is dirty where nothing was written";
        }
    }
    sim_mem_free(must);
    return bad == SIM_NEVER ? 0 : wrong(why, bytes, sim_bitmap_name[i], text, bad);
}

int sim_bitmaps_judge_exact(const struct sim_model *m, const struct sim_disk *d, char *why, size_t bytes)
{
    struct sim_found f[SIM_BITMAPS];
    int r = 0;
    sim_audit_bitmaps(d, f);
    for (unsigned i = 0; r == 0 && i < SIM_BITMAPS; i++)
        if (!m->bm[i].open)
            r = judge_exact(m, i, &f[i], why, bytes);
    sim_found_free(f);
    return r;
}
