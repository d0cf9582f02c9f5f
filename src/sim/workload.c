/* SPDX-License-Identifier: MIT
 *
 * workload.c: lists of guest operations: text, enumeration.
 *
 * Purpose      Small workloads, exhaustively for length 1 and 2, seeded beyond (RELIABILITY 3.6.6).
 * Owns         Nothing.
 * Invariants   W1  Workload n of a geometry is the same for ever: it depends on the table of geometries and n alone.
 * Order        None.
 * Concurrency  Pure.
 * Failure      -EINVAL for text.
 * Tests        workload_test.c
 */
#include "sim/workload.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"

/* ---- text ---- */

static bool has_range(char kind) { return strchr("wzudp", kind) != NULL; }

static int parse_op(const char *s, struct sim_wop *op)
{
    char kind;
    unsigned off = 0, len = 0;
    int n = 0;
    s += strspn(s, " ");
    op->beside = *s == '&';
    s += strspn(s, "& ");
    if (sscanf(s, "%c%n", &kind, &n) != 1 || !strchr("wzudfsorp", kind))
        return -EINVAL;
    s += n;
    n = 0;
    if (has_range(kind) && (sscanf(s, "%u %u%n", &off, &len, &n) != 2 || !len))
        return -EINVAL;
    if (kind == 's' && sscanf(s, "%u%n", &len, &n) != 1)
        return -EINVAL;
    s += n;
    if (s[strspn(s, " \n")])
        return -EINVAL;
    op->kind = kind;
    op->off = off;
    op->len = len;
    return 0;
}

int sim_workload_parse(const char *text, struct sim_workload *ret)
{
    char one[64];
    struct sim_workload l = { .count = 0 };
    while (*text) {
        size_t n = strcspn(text, ";");
        if (l.count == SIM_WOPS_MAX || n >= sizeof one)
            return -EINVAL;
        memcpy(one, text, n);
        one[n] = 0;
        int r = parse_op(one, &l.op[l.count]);
        if (r < 0)
            return r;
        l.count++;
        text += n + (text[n] == ';');
    }
    *ret = l;
    return 0;
}

void sim_workload_text(const struct sim_workload *l, char *buf, size_t bytes)
{
    size_t at = 0;
    buf[0] = 0;
    for (unsigned i = 0; i < l->count && at + 40 < bytes; i++) {
        const struct sim_wop *o = &l->op[i];
        at += (size_t)snprintf(buf + at, bytes - at, "%s%s%c", i ? "; " : "", o->beside ? "& " : "", o->kind);
        if (has_range(o->kind))
            at += (size_t)snprintf(buf + at, bytes - at, " %u %u", o->off, o->len);
        if (o->kind == 's')
            at += (size_t)snprintf(buf + at, bytes - at, " %u", o->len);
    }
}

bool sim_workload_fits(const struct sim_workload *l, const struct sim_geom *g)
{
    uint64_t size = g->size / SIM_SECTOR;
    for (unsigned i = 0; i < l->count; i++) {
        const struct sim_wop *o = &l->op[i];
        if (has_range(o->kind) && !range_inside(o->off, o->len, size))
            return false;
        if (o->beside && (i == 0 || !has_range(o->kind)) && o->kind != 'f')
            return false;
        if (o->beside && (!has_range(l->op[i - 1].kind) && l->op[i - 1].kind != 'f'))
            return false;
        if (o->kind == 's') {
            if (g->one_write_space || o->len > g->size_max / SIM_SECTOR || !o->len)
                return false;
            size = o->len;
        }
    }
    return l->count > 0;
}

/* ---- alphabet ---- */

struct letters { struct sim_wop *op; unsigned n, max; };

static void letter(struct letters *a, char kind, uint64_t off, uint64_t len)
{
    if (a->op && a->n < a->max)
        a->op[a->n] = (struct sim_wop){ kind, false, (uint32_t)off, (uint32_t)len };
    a->n++;
}

unsigned sim_alphabet(const struct sim_geom *g, struct sim_wop *op, unsigned max)
{
    struct letters a = { op, 0, max };
    uint64_t c = (1ull << g->cluster_bits) / SIM_SECTOR;                  /* sectors of a cluster */
    uint64_t half = g->window[0].len / 2 / SIM_SECTOR, end = min_u64(g->window[0].len, g->size) / SIM_SECTOR;
    half = min_u64(half, end - 6 * c);
    uint64_t span = 64;                                                    /* clusters of an L2 table of 512 bytes */
    uint64_t cross = g->windows > 1 ? (g->window[1].off + 64 * 1024) / SIM_SECTOR : g->cluster_bits == 9 ? span * c : 3 * c;
    uint64_t part = c > 1 ? c / 2 : 1, tail = c > 3 ? 1 : 0;
    /* clusters by the pattern of image.c: 0 data, 1 none, 2 data, 3 zero, 4 compressed or data, 5 none, 6 zero with space, 7 data */
    letter(&a, 'w', 0, c);                       /* data, whole */
    letter(&a, 'w', tail, part);                 /* data, a part */
    letter(&a, 'w', 1 * c, c);                   /* nothing there, whole */
    letter(&a, 'w', 1 * c + tail, part);
    letter(&a, 'w', 3 * c + tail, part);         /* zero cluster */
    letter(&a, 'w', 4 * c + tail, part);         /* compressed */
    letter(&a, 'w', 4 * c, c);
    letter(&a, 'w', 6 * c + tail, part);         /* zero cluster that keeps its space */
    letter(&a, 'w', 2 * c, 6 * c);               /* across all kinds */
    letter(&a, 'w', half + c, part);             /* no table there yet, or far from data */
    letter(&a, 'w', half + c, 4 * c);
    letter(&a, 'w', cross - 2 * c, 4 * c);       /* across two tables */
    letter(&a, 'w', end - c, c);                 /* the end */
    letter(&a, 'z', 0, 2 * c);
    letter(&a, 'z', 2 * c + tail, part);
    letter(&a, 'z', half, 3 * c);
    letter(&a, 'z', cross - c, 2 * c);
    letter(&a, 'u', 0, 3 * c);
    letter(&a, 'u', 4 * c, 4 * c);
    letter(&a, 'd', 0, c);
    letter(&a, 'd', 2 * c, 3 * c);
    letter(&a, 'd', 4 * c, c);
    letter(&a, 'd', 0, 16 * c < half ? 16 * c : half);
    letter(&a, 'd', cross - 2 * c, 4 * c);
    letter(&a, 'f', 0, 0);
    letter(&a, 'o', 0, 0);
    letter(&a, 'r', 0, 0);
    if (!g->one_write_space) {
        letter(&a, 's', 0, g->size_max / SIM_SECTOR);
        letter(&a, 's', 0, g->size / SIM_SECTOR + 3);
        letter(&a, 's', 0, half);
        letter(&a, 's', 0, 5 * c + tail + 1);
        letter(&a, 's', 0, g->size / SIM_SECTOR - c - tail);
    }
    return a.n;
}

/* ---- enumeration ---- */

static void push(struct sim_workload *l, struct sim_wop op)
{
    if (l->count < SIM_WOPS_MAX)
        l->op[l->count++] = op;
}

static const struct sim_wop flush_op = { 'f', false, 0, 0 };

static struct sim_wop any_op(const struct sim_geom *g, struct prng *p, const struct sim_wop *abc, unsigned n)
{
    uint64_t c = (1ull << g->cluster_bits) / SIM_SECTOR, end = min_u64(g->window[0].len, g->size) / SIM_SECTOR;
    struct sim_wop op = abc[prng_below(p, n)];
    if (has_range(op.kind) && prng_one_in(p, 2)) {       /* the same at another place, of another length */
        op.len = (uint32_t)(prng_one_in(p, 2) ? c * (1 + prng_below(p, 4)) : 1 + prng_below(p, 2 * c));
        op.off = (uint32_t)prng_below(p, end - op.len);
        if (prng_one_in(p, 2))
            op.off = (uint32_t)round_down(op.off, c);
    }
    return op;
}

static void longer(const struct sim_geom *g, uint64_t n, const struct sim_wop *abc, unsigned letters, struct sim_workload *l)
{
    struct prng p;
    prng_init(&p, hash_mix64(n) ^ 0x77);
    do {
        l->count = 0;
        unsigned len = 3 + (unsigned)prng_below(&p, 4);
        for (unsigned i = 0; i < len; i++) {
            struct sim_wop op = any_op(g, &p, abc, letters);
            if (i && (has_range(op.kind) || op.kind == 'f') && prng_one_in(&p, 2))
                op.beside = has_range(l->op[l->count - 1].kind) || l->op[l->count - 1].kind == 'f';
            push(l, op);
            if (op.beside && has_range(op.kind) && prng_one_in(&p, 2)) {      /* meet in the same place */
                l->op[l->count - 1].off = l->op[l->count - 2].off;
                if (has_range(l->op[l->count - 2].kind) && prng_one_in(&p, 2))
                    l->op[l->count - 1].len = l->op[l->count - 2].len;
            }
            if (prng_one_in(&p, 4))
                push(l, flush_op);
        }
    } while (!sim_workload_fits(l, g));
    if (prng_one_in(&p, 2))
        push(l, flush_op);
}

void sim_workload_nth(const struct sim_geom *g, uint64_t n, struct sim_workload *l)
{
    struct sim_wop abc[64];
    unsigned letters = sim_alphabet(g, abc, 64);
    ASSERT(letters <= 64);
    uint64_t ones = letters * 2, twos = (uint64_t)letters * letters * 2;
    l->count = 0;
    if (n < ones) {
        push(l, abc[n / 2]);
        if (n & 1)
            push(l, flush_op);
        return;
    }
    n -= ones;
    if (n >= twos) {
        longer(g, n - twos, abc, letters, l);
        return;
    }
    push(l, abc[n / 2 / letters]);
    if (n & 1)
        push(l, flush_op);
    push(l, abc[n / 2 % letters]);
    push(l, flush_op);
    if (!sim_workload_fits(l, g)) {              /* the first shrinks below the second: what is left of it */
        l->count = 1;
        push(l, flush_op);
    }
}
