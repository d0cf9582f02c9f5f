/* SPDX-License-Identifier: MIT
 *
 * model.c: sets of legal values.
 *
 * Purpose      Follows the notes of a trace and answers what a sector may hold.
 * Owns         A set per sector, the requests seen so far.
 * Invariants   model.h M1..M4. A set is never empty. sum is the xor over all (sector, generation) pairs and the sizes.
 * Order        Notes are applied in the order of their stamps.
 * Concurrency  One thread.
 * Failure      None.
 * Tests        model_test.c
 */
#include "sim/model.h"
#include "sim/luks.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/iov.h"
#include "sim/disk.h"
#include "sim/mem.h"

/* ---- sectors: {magic, generation, sector number} repeated, so that they compress and compare quickly ---- */

#define MAGIC 0x62794731u
struct mark { uint32_t magic, gen; uint64_t sector; };

void sim_sector_fill(uint8_t *p, uint32_t gen, uint64_t sector)
{
    struct mark k = { MAGIC, gen, sector };
    if (!gen) {
        memset(p, 0, SIM_SECTOR);
        return;
    }
    for (unsigned i = 0; i < SIM_SECTOR; i += sizeof k)
        memcpy(p + i, &k, sizeof k);
}

enum sim_sector_kind sim_sector_parse(const uint8_t *p, uint32_t *ret_gen, uint64_t *ret_sector)
{
    struct mark k;
    memcpy(&k, p, sizeof k);
    bool even = memcmp(p, p + sizeof k, SIM_SECTOR - sizeof k) == 0;
    if (even && k.magic == MAGIC && k.gen) {
        *ret_gen = k.gen;
        *ret_sector = k.sector;
        return SIM_SECTOR_GUEST;
    }
    return even && !k.magic && !k.gen && !k.sector ? SIM_SECTOR_ZERO : SIM_SECTOR_OTHER;
}

uint32_t sim_sector_gen(const uint8_t *p, uint64_t sector)
{
    uint32_t gen;
    uint64_t at;
    switch (sim_sector_parse(p, &gen, &at)) {
    case SIM_SECTOR_ZERO: return 0;
    case SIM_SECTOR_GUEST: return sim_gen_moved(gen, (int64_t)(sector - at));
    case SIM_SECTOR_OTHER: break;
    }
    return SIM_GEN_NONE;
}

/* ---- life ---- */

void sim_model_init(struct sim_model *m, uint64_t sectors, const uint32_t *below)
{
    *m = (struct sim_model){ .sectors = sectors, .below = below };
    m->cells = sim_mem_alloc(sectors * sizeof *m->cells);
    sim_bitmaps_init(m);
}

void sim_model_fini(struct sim_model *m)
{
    sim_bitmaps_fini(m);
    for (uint64_t s = 0; s < m->sectors; s++)
        sim_mem_free(m->cells[s].v);
    sim_mem_free(m->cells);
    sim_mem_free(m->reqs);
    *m = (struct sim_model){ 0 };
}

static void fold(struct sim_model *m, uint64_t a, uint64_t b)
{
    m->sum.lo ^= hash_combine(a + 11, b);
    m->sum.hi ^= hash_combine(b + 17, a);
}

static void fold_sizes(struct sim_model *m)
{
    fold(m, 1ull << 60, m->size);
    fold(m, 1ull << 61, m->size_alt);
}

static void fold_snaps(struct sim_model *m);

static void set_sizes(struct sim_model *m, uint64_t size, uint64_t alt)
{
    fold_sizes(m);
    m->size = size;
    m->size_alt = alt;
    fold_sizes(m);
}

static void add(struct sim_model *m, uint64_t s, uint32_t gen, uint32_t req, bool strong)
{
    struct sim_cell *c = &m->cells[s];
    SIM_PUSH_ROOM(c->v, c->n, c->cap);
    c->v[c->n++] = (struct sim_val){ gen, req, strong };
    fold(m, s, gen);
}

static void drop(struct sim_model *m, uint64_t s, uint32_t i)
{
    struct sim_cell *c = &m->cells[s];
    fold(m, s, c->v[i].gen);
    c->v[i] = c->v[--c->n];
}

static void reset(struct sim_model *m, uint64_t s, uint32_t gen)
{
    while (m->cells[s].n)
        drop(m, s, 0);
    add(m, s, gen, 0, true);
}

static struct sim_req *req(struct sim_model *m, uint32_t id)
{
    while (id >= m->req_count) {
        SIM_PUSH_ROOM(m->reqs, m->req_count, m->req_cap);
        m->reqs[m->req_count++] = (struct sim_req){ .ended = SIM_NEVER };
    }
    return &m->reqs[id];
}

void sim_model_start(struct sim_model *m, uint64_t size, const uint32_t *gens)
{
    m->req_count = 0;
    *req(m, 0) = (struct sim_req){ .ok = true };         /* issued and ended at 0 */
    m->sum = (struct hash128){ 0, 0 };
    m->resized = m->snapped = m->loose = m->shares = m->cloned = false;
    m->clones_open = 0;
    memset(m->snap, 0, sizeof m->snap);
    m->applying = NULL;
    m->keys = 1u << SIM_KEY_FIRST;
    m->unflushed = m->settling = 0;
    for (uint64_t s = 0; s < m->sectors; s++) {
        m->cells[s].n = 0;
        add(m, s, s * SIM_SECTOR < size ? gens[s] : 0, 0, true);
    }
    m->size = m->size_alt = size;
    fold_sizes(m);
    fold_snaps(m);
}

/* ---- notes ---- */

static void fold_shares(struct sim_model *m, bool shares)
{
    fold(m, 1ull << 56, m->shares);
    m->shares = shares;
    fold(m, 1ull << 56, m->shares);
}

/* Is it known that request `req` may bring `gen` to sector s? That something else did is not enough: it may end sooner, and be replaced. */
static bool brings(const struct sim_model *m, uint64_t s, uint32_t gen, uint32_t req)
{
    const struct sim_cell *c = &m->cells[s];
    for (uint32_t i = 0; i < c->n; i++)
        if (c->v[i].gen == gen && c->v[i].req == req)
            return true;
    return false;
}

/* M7: what sector s may hold from now on, clones under way may bring to their targets. */
static void add_moved(struct sim_model *m, uint64_t s, uint32_t value, unsigned depth)
{
    for (uint32_t i = 1; m->clones_open && depth < 4 && i < m->req_count; i++) {
        const struct sim_req *r = &m->reqs[i];
        if (r->kind != SIM_N_CLONE || r->ended != SIM_NEVER || s < r->from / SIM_SECTOR || s >= (r->from + r->len) / SIM_SECTOR)
            continue;
        uint64_t to = s - r->from / SIM_SECTOR + r->off / SIM_SECTOR;
        uint32_t moved = sim_gen_moved(value, (int64_t)(to - s));
        if (to == s || brings(m, to, moved, i))
            continue;
        add(m, to, moved, i, true);
        add_moved(m, to, moved, depth + 1);
    }
}

#define CLONE_VALUES 32u

static void on_clone(struct sim_model *m, const struct sim_note *n)
{
    *req(m, n->id) = (struct sim_req){ .issued = n->stamp, .ended = SIM_NEVER, .kind = n->kind, .off = n->off, .len = n->len, .from = n->from };
    m->unflushed += n->len;
    m->clones_open++;
    if (!m->cloned)
        fold(m, 1ull << 55, true);
    m->cloned = true;
    fold_shares(m, true);
    uint64_t sectors = n->len / SIM_SECTOR;
    uint32_t (*was)[CLONE_VALUES] = sim_mem_alloc(sectors * sizeof *was), *count = sim_mem_alloc(sectors * sizeof *count);
    for (uint64_t i = 0; i < sectors; i++)           /* all of them first: the ranges may overlap */
        count[i] = sim_model_list(m, n->from / SIM_SECTOR + i, n->stamp, was[i], CLONE_VALUES);
    for (uint64_t i = 0; i < sectors; i++) {
        uint64_t to = n->off / SIM_SECTOR + i;
        for (uint32_t k = 0; k < count[i]; k++) {
            uint32_t moved = sim_gen_moved(was[i][k], (int64_t)(n->off / SIM_SECTOR) - (int64_t)(n->from / SIM_SECTOR));
            add(m, to, moved, n->id, true);
            if (m->clones_open > 1)
                add_moved(m, to, moved, 0);
        }
    }
    sim_mem_free(was);
    sim_mem_free(count);
}

static void on_issue(struct sim_model *m, const struct sim_note *n)
{
    struct sim_req *r = req(m, n->id);
    *r = (struct sim_req){ .issued = n->stamp, .ended = SIM_NEVER, .kind = n->kind, .off = n->off, .len = n->len, .gen = n->gen };
    m->unflushed += n->len;
    if (m->cloned)                                   /* it may take a cluster's last owner but one away */
        fold_shares(m, true);
    for (uint64_t s = n->off / SIM_SECTOR; s < (n->off + n->len) / SIM_SECTOR; s++) {
        bool weak = n->kind == SIM_N_DISCARD;
        add(m, s, n->kind == SIM_N_WRITE ? n->gen : 0, n->id, !weak);
        add_moved(m, s, n->kind == SIM_N_WRITE ? n->gen : 0, 0);
        if (weak && m->below && m->below[s]) {
            add(m, s, m->below[s], n->id, false);
            add_moved(m, s, m->below[s], 0);
        }
    }
}

/* M3: what was read becomes the value of the discard. */
static void on_seen(struct sim_model *m, const struct sim_note *n)
{
    const struct sim_req *r = req(m, n->id);
    uint64_t first = r->off / SIM_SECTOR;
    for (uint64_t s = first; s < first + r->len / SIM_SECTOR; s++) {
        struct sim_cell *c = &m->cells[s];
        for (uint32_t i = c->n; i-- > 0;) {
            if (c->v[i].req != n->id)
                continue;
            if (c->v[i].gen == n->gens[s - first])
                c->v[i].strong = true;
            else
                drop(m, s, i);
        }
    }
}

static bool overwritten(const struct sim_model *m, const struct sim_cell *c, uint32_t i, uint64_t before)
{
    uint64_t ended = m->reqs[c->v[i].req].ended;
    for (uint32_t k = 0; k < c->n; k++) {
        const struct sim_req *r = &m->reqs[c->v[k].req];
        if (k != i && c->v[k].strong && r->ok && r->ended < before && r->issued > ended)
            return true;
    }
    return false;
}

static void on_flushed(struct sim_model *m, uint64_t issued)
{
    m->settling = m->unflushed;
    m->unflushed = 0;
    for (uint64_t s = 0; s < m->sectors; s++)
        for (uint32_t i = m->cells[s].n; i-- > 0 && m->cells[s].n > 1;)
            if (overwritten(m, &m->cells[s], i, issued))
                drop(m, s, i);
    for (uint32_t i = 1; i < m->req_count; i++)                /* what is still under way stays in the bound */
        if (m->reqs[i].ended == SIM_NEVER || m->reqs[i].ended >= issued)
            m->unflushed += m->reqs[i].len;
}

static void on_resize_ack(struct sim_model *m, uint64_t size)
{
    uint64_t from = min_u64(size, min_u64(m->size, m->size_alt)) / SIM_SECTOR;
    for (uint64_t s = from; s < m->sectors; s++)
        if (s * SIM_SECTOR >= size || s * SIM_SECTOR >= m->size)
            reset(m, s, 0);
    set_sizes(m, size, size);
}

/* ---- snapshots (M5) ---- */

static void fold_snaps(struct sim_model *m)
{
    for (unsigned i = 0; i < SIM_SNAPS_MAX; i++)
        fold(m, (1ull << 62) + i, (uint64_t)m->snap[i].state << 56 ^ m->snap[i].size);
    fold(m, 1ull << 58, m->loose);
    fold(m, 1ull << 59, m->applying ? (uint64_t)(m->applying - m->snap) + 1 : 0);
}

void sim_model_has(struct sim_model *m, unsigned number, uint64_t size, const uint32_t *gens)
{
    fold_snaps(m);
    m->snap[number] = (struct sim_snap){ SIM_SNAP_THERE, size, gens };
    fold_snaps(m);
}

bool sim_model_loose(const struct sim_model *m)
{
    bool loose = m->loose || m->applying;
    for (unsigned i = 0; i < SIM_SNAPS_MAX; i++)
        loose |= m->snap[i].state == SIM_SNAP_COMING || m->snap[i].state == SIM_SNAP_GOING;
    return loose;
}

/* Tables of snapshots are changed: as an operation on them (Q25). */
static void on_amend(struct sim_model *m, bool begins)
{
    fold_snaps(m);
    m->loose = false;
    for (unsigned i = 0; begins && i < SIM_SNAPS_MAX; i++)
        m->loose |= m->snap[i].state != SIM_SNAP_NONE;
    fold_snaps(m);
}

/* M6 */
void sim_model_keys(struct sim_model *m, unsigned keys)
{
    fold(m, 1ull << 57, m->keys);
    m->keys = keys;
    fold(m, 1ull << 57, m->keys);
}

static void snap_applied(struct sim_model *m)
{
    const struct sim_snap *a = m->applying;
    for (uint64_t s = 0; s < m->sectors; s++) {
        uint32_t gen = s * SIM_SECTOR < a->size ? a->gens[s] : 0;
        if (gen != SIM_GEN_NONE)
            reset(m, s, gen);
    }
    set_sizes(m, a->size, a->size);
    m->applying = NULL;
}

static void on_snap(struct sim_model *m, const struct sim_note *n)
{
    fold_snaps(m);
    m->snapped = true;
    switch (n->kind) {
    case SIM_N_SNAP_CREATE:
        m->snap[n->id] = (struct sim_snap){ SIM_SNAP_COMING, n->len, n->gens };
        break;
    case SIM_N_SNAP_APPLY:
        m->applying = &m->snap[n->id];
        break;
    case SIM_N_SNAP_DELETE:
        m->snap[n->id].state = SIM_SNAP_GOING;
        break;
    case SIM_N_SNAP_ACK:
        if (m->snap[n->id].state == SIM_SNAP_COMING)
            m->snap[n->id].state = SIM_SNAP_THERE;
        else if (m->snap[n->id].state == SIM_SNAP_GOING)
            m->snap[n->id].state = SIM_SNAP_NONE;
        if (m->applying)
            snap_applied(m);
        break;
    default:                             /* failed: both stay possible */
        break;
    }
    fold_snaps(m);
}

void sim_model_apply(struct sim_model *m, const struct sim_note *n)
{
    sim_bitmaps_note(m, n);
    switch (n->kind) {
    case SIM_N_WRITE:
    case SIM_N_ZERO:
    case SIM_N_DISCARD:
        on_issue(m, n);
        break;
    case SIM_N_CLONE:
        on_clone(m, n);
        break;
    case SIM_N_CLOSED:
        fold_shares(m, false);
        break;
    case SIM_N_ACK:
    case SIM_N_FAIL:
        m->clones_open -= req(m, n->id)->kind == SIM_N_CLONE;
        req(m, n->id)->ended = n->stamp;
        req(m, n->id)->ok = n->kind == SIM_N_ACK;
        break;
    case SIM_N_AMEND:
    case SIM_N_AMEND_END:
        on_amend(m, n->kind == SIM_N_AMEND);
        break;
    case SIM_N_KEYS:
        sim_model_keys(m, m->keys | 1u << sim_key_changes[n->gen].to);
        break;
    case SIM_N_KEYS_ACK:
        sim_model_keys(m, 1u << sim_key_changes[n->gen].to);
        break;
    case SIM_N_SEEN:
        on_seen(m, n);
        break;
    case SIM_N_FLUSH:
        *req(m, n->id) = (struct sim_req){ .issued = n->stamp, .ended = 0, .kind = SIM_N_FLUSH };
        break;
    case SIM_N_FLUSH_ACK:
        on_flushed(m, req(m, n->id)->issued);
        break;
    case SIM_N_RESIZE:
        m->resized = true;
        set_sizes(m, m->size, n->len);
        break;
    case SIM_N_RESIZE_ACK:
        on_resize_ack(m, n->len);
        break;
    case SIM_N_RESIZE_FAIL:              /* both stay possible */
        break;
    case SIM_N_SNAP_CREATE:
    case SIM_N_SNAP_APPLY:
    case SIM_N_SNAP_DELETE:
    case SIM_N_SNAP_ACK:
    case SIM_N_SNAP_FAIL:
        on_snap(m, n);
        break;
    case SIM_N_BITMAP:
    case SIM_N_BITMAP_ACK:
        fold(m, (3ull << 60) + n->off * 4096 + m->req_count * 16 + (n->kind == SIM_N_BITMAP_ACK), n->gen);
        break;
    case SIM_N_BITMAP_FAIL:              /* both stay possible */
    case SIM_N_EVENT:
        break;
    }
}

/* ---- questions ---- */

bool sim_model_allows(const struct sim_model *m, uint64_t sector, uint32_t gen)
{
    const struct sim_cell *c = &m->cells[sector];
    for (uint32_t i = 0; i < c->n; i++)
        if (c->v[i].gen == gen)
            return true;
    return false;
}

bool sim_model_live(const struct sim_model *m, uint64_t sector, uint32_t gen, uint64_t issued)
{
    const struct sim_cell *c = &m->cells[sector];
    for (uint32_t i = 0; i < c->n; i++)
        if (c->v[i].gen == gen && !overwritten(m, c, i, issued))
            return true;
    return false;
}

uint32_t sim_model_list(const struct sim_model *m, uint64_t sector, uint64_t now, uint32_t *out, uint32_t max)
{
    const struct sim_cell *c = &m->cells[sector];
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n && n < max; i++)
        if (!overwritten(m, c, i, now))
            out[n++] = c->v[i].gen;
    return n;
}

void sim_model_describe(const struct sim_model *m, uint64_t sector, char *buf, size_t bytes)
{
    size_t at = 0;
    buf[0] = 0;
    for (uint32_t i = 0; i < m->cells[sector].n && at + 16 < bytes; i++)
        at += (size_t)snprintf(buf + at, bytes - at, "%s%u", i ? " " : "", m->cells[sector].v[i].gen);
}
