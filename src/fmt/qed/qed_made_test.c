/* SPDX-License-Identifier: MIT
 *
 * qed_made_test.c: QED images made at random.
 *
 * Purpose      What tests of repair and upgrade, and the crash explorer, begin with; and a reader that knows nothing of the engine.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  One thread.
 * Failure      Aborts.
 * Tests        qed_fix_test.c, tests/crash/qed_crash.c
 */
#include "fmt/qed/qed_made_test.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_header.h"

#define C MADE_C
#define GUEST_MAX 2048u

struct layout { bool taken[MADE_CLUSTERS]; unsigned end; };

/* n clusters one behind the other; somewhere, or in front. */
static uint64_t take(struct made *m, struct layout *l, unsigned n)
{
    for (unsigned tries = 0;; tries++) {
        unsigned at = m->holes && tries < 200 ? 1 + (unsigned)prng_below(&m->p, MADE_CLUSTERS - 60) : 1 + tries % (MADE_CLUSTERS - 20);
        bool ok = true;
        for (unsigned i = 0; i < n; i++)
            ok &= !l->taken[at + i];
        if (!ok)
            continue;
        for (unsigned i = 0; i < n; i++)
            l->taken[at + i] = true;
        l->end = l->end > at + n ? l->end : at + n;
        return at;
    }
}

/* A pointer that may be anything. */
static uint64_t wild(struct made *m, const struct layout *l)
{
    switch (prng_below(&m->p, 5)) {
    case 0:
        return (l->end + prng_below(&m->p, 4)) * C;
    case 1:
        return prng_below(&m->p, l->end) * C + 512;
    case 2:
        return prng_below(&m->p, 3);
    case 3:
        return prng_u64(&m->p);
    default:
        return prng_below(&m->p, l->end) * C;     /* perhaps the header, a table, data in use, or nothing */
    }
}

static uint64_t looked_at(const struct made *m, const struct qed_geom *g) { return min_u64(g->entries, GUEST_MAX / m->tables); }

static void some_data(struct made *m, struct layout *l, uint8_t *bytes, uint64_t at)
{
    if (prng_below(&m->p, 5) == 0) {
        made_put(bytes, at, 1);
        return;
    }
    uint64_t c = take(m, l, 1);
    bool zeros = prng_below(&m->p, 8) == 0;      /* stored ones */
    for (unsigned b = 0; b < C; b += 8)
        made_put(bytes, c * C + b, zeros ? 0 : c << 32 | 0xda7a0000u | b);
    made_put(bytes, at, c * C);
}

static void damage(struct made *m, const struct layout *l, const struct qed_header *h, const struct qed_geom *g, uint8_t *bytes)
{
    for (unsigned n = 1 + (unsigned)prng_below(&m->p, 4); n > 0; n--) {
        uint64_t i = prng_below(&m->p, m->tables), table = made_get(bytes, h->l1_off + i * 8);
        if (prng_below(&m->p, 3) == 0)
            made_put(bytes, h->l1_off + i * 8, wild(m, l));
        else if (table && is_aligned(table, C) && table < MADE_CLUSTERS * C)
            made_put(bytes, table + prng_below(&m->p, looked_at(m, g)) * 8, wild(m, l));
    }
}

uint64_t made_image(struct made *m, uint8_t *bytes)
{
    struct layout l = { .taken = { true }, .end = 1 };
    struct qed_header h = { .cluster_size = C, .table_size = m->table, .header_clusters = 1, .features = m->marked ? QED_F_NEED_CHECK : 0 };
    h.l1_off = take(m, &l, m->table) * C;
    struct qed_geom g = qed_header_geom(&h);
    h.size = m->tables * g.l2_span - C;
    for (unsigned i = 0; i < m->tables; i++) {
        if (prng_below(&m->p, 4) == 0)
            continue;
        uint64_t table = take(m, &l, m->table) * C;
        made_put(bytes, h.l1_off + i * 8, table);
        for (unsigned n = (unsigned)prng_below(&m->p, 12); n > 0; n--) {
            uint64_t at = table + prng_below(&m->p, looked_at(m, &g)) * 8;
            if (!made_get(bytes, at))
                some_data(m, &l, bytes, at);
        }
    }
    if (m->damaged)
        damage(m, &l, &h, &g, bytes);
    qed_header_emit(&h, (struct qed_disk_header *)bytes);
    return (l.end + (m->holes ? prng_below(&m->p, 4) : 0)) * C + (prng_below(&m->p, 3) == 0 ? 700 : 0);
}

/* ---- what the guest reads ---- */

struct qed_header made_header(const uint8_t *bytes, uint64_t len)
{
    struct qed_header h = { 0 };
    int r = qed_header_parse(bytes, 512, len, "made", &h, NULL);
    ASSERT(r == 0);
    return h;
}

uint64_t made_entry(const uint8_t *bytes, uint64_t len, uint64_t i)
{
    struct qed_header h = made_header(bytes, len);
    struct qed_geom g = qed_header_geom(&h);
    uint64_t end = qed_file_end(&g, len), table = made_get(bytes, h.l1_off + i / g.entries * 8);
    if (qed_table_kind(&g, table, end) != QED_POINTER)
        return 0;
    uint64_t v = made_get(bytes, table + i % g.entries * 8);
    return qed_entry_kind(&g, v, end) == QED_BAD ? 0 : v;
}

/* Is this cluster a part of a table? Then what a guest reads in it changes with the tables. */
static bool is_table(const struct made *m, const uint8_t *bytes, uint64_t len, uint64_t off)
{
    struct qed_header h = made_header(bytes, len);
    struct qed_geom g = qed_header_geom(&h);
    if (off >= h.l1_off && off < h.l1_off + g.table_bytes)
        return true;
    for (uint64_t i = 0; i < m->tables; i++) {
        uint64_t table = made_get(bytes, h.l1_off + i * 8);
        if (qed_table_kind(&g, table, qed_file_end(&g, len)) == QED_POINTER && off >= table && off < table + g.table_bytes)
            return true;
    }
    return false;
}

uint64_t made_count(const struct made *m, const uint8_t *bytes, uint64_t len)
{
    struct qed_header h = made_header(bytes, len);
    struct qed_geom g = qed_header_geom(&h);
    return m->tables * looked_at(m, &g);
}

struct made_guest *made_read(const struct made *m, const uint8_t *bytes, uint64_t len)
{
    struct qed_header h = made_header(bytes, len);
    struct qed_geom g = qed_header_geom(&h);
    uint64_t per = looked_at(m, &g), n = m->tables * per;
    struct made_guest *all = calloc(n, sizeof *all);
    ASSERT(all);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t v = made_entry(bytes, len, i / per * g.entries + i % per);
        all[i].known = v <= 1 || !is_table(m, bytes, len, v);
        all[i].kind = v <= 1 ? v : 2;
        if (v > 1)
            memcpy(all[i].bytes, bytes + v, C);
    }
    return all;
}

bool made_same(const struct made *m, const uint8_t *bytes, uint64_t len, const struct made_guest *before, uint64_t *ret_at)
{
    struct made_guest *now = made_read(m, bytes, len);
    uint64_t n = made_count(m, bytes, len), i = 0;
    while (i < n && (!before[i].known || (before[i].kind == now[i].kind && !memcmp(before[i].bytes, now[i].bytes, C))))
        i++;
    free(now);
    *ret_at = i;
    return i == n;
}

/* ---- qcow2, as far as an upgrade makes it ---- */

static uint64_t big(const uint8_t *bytes, uint64_t len, uint64_t off) { return range_inside(off, 8, len) ? be64_get((const be64 *)(bytes + off)) : 0; }

/* Entry of a guest cluster. */
static uint64_t entry_of(const struct q2_header *h, const uint8_t *bytes, uint64_t len, uint64_t i)
{
    uint64_t per = C / 8, l2 = i / per < h->l1_size ? big(bytes, len, h->l1_off + i / per * 8) & Q2_L1E_OFF : 0;
    return l2 ? big(bytes, len, l2 + i % per * 8) : 0;
}

static bool counted_once(const struct q2_header *h, const uint8_t *bytes, uint64_t len, uint64_t off)
{
    uint64_t c = off / C, block = big(bytes, len, h->rt_off + c / (C / 2) * 8);
    return block && range_inside(block, C, len) && bytes[block + c % (C / 2) * 2] == 0 && bytes[block + c % (C / 2) * 2 + 1] == 1;
}

static bool same_cluster(const struct q2_header *h, const uint8_t *bytes, uint64_t len, uint64_t e, const struct made_guest *want)
{
    uint64_t off = e & Q2_L2E_OFF;
    if (want->kind < 2)
        return e == want->kind;
    return off && e == (off | Q2_E_COPIED) && range_inside(off, C, len) && counted_once(h, bytes, len, off) && !memcmp(bytes + off, want->bytes, C);
}

bool made_same_qcow2(const struct made *m, const uint8_t *bytes, uint64_t len, const struct made_guest *before, uint64_t *ret_at)
{
    struct q2_header h = { 0 };
    *ret_at = 0;
    if (len < C || q2_header_parse(bytes, C, len, false, "made", &h, NULL))
        return false;
    uint64_t entries = m->table * C / 8, per = min_u64(entries, GUEST_MAX / m->tables), n = m->tables * per, i = 0;
    while (i < n && (i / per * entries + i % per >= h.size / C || same_cluster(&h, bytes, len, entry_of(&h, bytes, len, i / per * entries + i % per), &before[i])))
        i++;
    q2_header_fini(&h);
    *ret_at = i;
    return i == n;
}
